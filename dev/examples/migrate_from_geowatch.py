#!/usr/bin/env python
"""
Move a script from geowatch's stitching manager to ours, and then to a better one.

The same predictions are stitched three times:

``geowatch``
    as scripts do it there: accumulate, poll what is ready, finalize what is
    left, dump. Only where geowatch can be imported.
``drop_in``
    the same function, with our class in place of theirs.
``better``
    windows are declared, so that images are ready when they are, and in any
    order; a ``with`` block finishes or leaves them; a run that was cut short
    goes on where it was. It is stopped on purpose here, after the first image.

The files are compared code by code, and bytes where they should be equal.

Usage: python dev/examples/migrate_from_geowatch.py [--dst FOLDER] [--size PX]
"""
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from naip_video import make_parser, make_video, save_row

from cocoseg import CocoStitchingManager, WindowGrid
from cocoseg.coco.dataset import open_result
from cocoseg.coco.drawing import draw_heatmap
from cocoseg.io.raster import read_raster

CHANNELS = 'water|land'
OPTIONS = {'short_code': 'pred', 'chan_code': CHANNELS, 'expected_minmax': (0, 1)}


def predict(pixels):
    """Return the probabilities of water and land (h, w, 2) of green and near infrared."""
    green, nir = np.moveaxis(pixels, 2, 0)
    water = 1 / (1 + np.exp(-20 * (green - nir) / np.maximum(green + nir, 1)))
    return np.stack([water, 1 - water], axis=2)


def iter_windows(dset, image_id):
    """Yield slices and pixels, as a data loader does; NaN where there is no data."""
    delayed = dset.coco_image(image_id).imdelay('green|nir', space='video', nodata_method='float')
    for window in plan_windows(dset):
        yield window.slices, np.asarray(delayed.crop(window.slices).finalize(), np.float32)


def plan_windows(dset):
    """Return the windows of a frame."""
    video, = dset.videos().objs
    return WindowGrid((video['height'], video['width']), 128, 32)


def stitch_the_old_way(manager_class, dset, dst, **options):
    """
    Stitch as it is done with geowatch; return the manifest.

    ``stiching_space`` is how the reference spells it. What is ready is found by
    looking: when a window of the next video comes, or with ``is_ready``.
    """
    result = open_result(dset, dst)
    manager = manager_class(result, stiching_space='video', **OPTIONS, **options)
    for image_id in dset.images():
        for space_slice, pixels in iter_windows(dset, image_id):
            manager.accumulate_image(image_id, space_slice, predict(pixels),
                                     downweight_edges=True)
        ready_ids = list(manager.ready_image_ids())
        for ready_id in ready_ids:
            manager.submit_finalize_image(ready_id)
        # The reference does not forget what was submitted; ours does, and lets this pass.
        manager._ready_gids.difference_update(ready_ids)
    manager.flush_images()
    for image_id in list(manager.managed_image_ids()):
        manager.submit_finalize_image(image_id)
    manager.flush_images()
    result.dump()
    return result


def stitch_the_better_way(dset, dst, resume=False, stop_after=None):
    """
    Stitch declared windows; return the manifest.

    Args:
        dset (kwcoco.CocoDataset): the input.
        dst (Path): manifest to write.
        resume (bool): take over what a run has finished that was cut short.
        stop_after (int | None): images, after which power fails.
    """
    result = open_result(dset, dst)
    with CocoStitchingManager(result, **OPTIONS, resume=resume,
                              settings={'model': 'index'}) as manager:
        todo = [image_id for image_id in dset.images() if not manager.is_done(image_id)]
        print(f'better    {len(todo)} of {len(dset.images())} images are to be done')
        for number, image_id in enumerate(todo):
            if number == stop_after:
                raise InterruptedError('stopped on purpose')
            manager.expect_windows(image_id, plan_windows(dset))
            for space_slice, pixels in iter_windows(dset, image_id):
                # Without downweight_edges, windows blend by their plan, and faster.
                manager.accumulate_image(image_id, space_slice, predict(pixels),
                                         downweight_edges=True)
            for ready_id in manager.ready_image_ids():
                manager.submit_finalize_image(ready_id)
        manager.dump()
    return result


def list_files(dset):
    """Return the paths of the assets that were made, in the order of the images."""
    return [Path(dset.bundle_dpath) / dset.coco_image(image_id).find_asset('water')['file_name']
            for image_id in dset.images()]


def compare(first, second):
    """Return the largest difference of codes, and how many files have the same bytes."""
    pairs = list(zip(list_files(first), list_files(second)))
    steps = [np.abs(read_raster(one).astype(int) - read_raster(other)).max()
             for one, other in pairs]
    return max(steps), sum(one.read_bytes() == other.read_bytes() for one, other in pairs)


def find_geowatch():
    """Return the class of geowatch, or None."""
    try:
        from geowatch.tasks.fusion.coco_stitcher import CocoStitchingManager as theirs
    except ImportError:
        return None
    return theirs


def main(argv=None):
    """Run the example."""
    args = make_parser('migrate_from_geowatch', __doc__).parse_args(argv)
    dset = make_video(args.dst, args.size)
    results = {'drop_in': stitch_the_old_way(
        CocoStitchingManager, dset, args.dst / 'drop_in' / 'pred.kwcoco.json',
        # The guess of the reference: an image is ready when windows of another one come.
        readiness='contiguous')}
    dst = args.dst / 'better' / 'pred.kwcoco.json'
    try:
        stitch_the_better_way(dset, dst, stop_after=1)
    except InterruptedError as ex:
        print(f'better    {ex}; once more:')
    results['better'] = stitch_the_better_way(dset, dst, resume=True)
    theirs = find_geowatch()
    if theirs is None:
        print('geowatch  is not installed, and was left out')
    else:
        results['geowatch'] = stitch_the_old_way(
            theirs, dset, args.dst / 'geowatch' / 'pred.kwcoco.json')
    for name in results.keys() - {'drop_in'}:
        step, n_equal = compare(results['drop_in'], results[name])
        print(f'drop_in and {name}: at most {step} of 32767 codes apart, '
              f'{n_equal} of {len(dset.images())} files with equal bytes')
    codes = {name: read_raster(list_files(result)[0])[..., 0] for name, result in results.items()}
    save_row(args.dst / 'water.png', {
        name: draw_heatmap(np.where(array < 0, np.nan, array / 32767), minmax=(0, 1))
        for name, array in codes.items()})
    for name, result in results.items():
        print(f'{name:<9} {result.fpath}')
    print(f'picture   {args.dst / "water.png"}')


if __name__ == '__main__':
    sys.exit(main())
