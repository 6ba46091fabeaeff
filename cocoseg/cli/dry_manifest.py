"""
``--dry_run`` of the commands that run over the images of a kwcoco dataset.
"""
from __future__ import annotations

import inspect
import os

from cocoseg.cli.common import say
from cocoseg.cli.dry_run import (
    begin_preview, check_folder, preview_output, preview_work, run_until_store)
from cocoseg.cli.ending import list_finished


def preview_prediction(src, dst, predictor, window=(512, 512), overlap=0.3, *, channels=None,
                       out_channels=None, space='video', batch_size=1, short_code='pred',
                       prefetch=2, dump_interval=60.0, mask=None, executor='serial',
                       split='auto', progress=None, **manager_options):
    """
    Check and print what :func:`cocoseg.predict_dataset` would do.

    The predictor is called once if only that tells how many channels it has,
    as in a real run.

    Args:
        src, dst, predictor, window, overlap, channels, out_channels, space,
            batch_size, short_code, prefetch, dump_interval, mask, executor,
            split, **manager_options: of that function.
        progress (object): not used, as there is none.

    Raises:
        CocosegError: as that function, before its first window.
    """
    from cocoseg.coco.manifest import get_manifest
    from cocoseg.coco.predict import prepare_prediction
    job = prepare_prediction(
        src, dst, predictor, window, overlap, channels=channels, out_channels=out_channels,
        space=space, batch_size=batch_size, short_code=short_code, prefetch=prefetch, mask=mask,
        split=split, is_dry=True, **manager_options)
    result, loop, image_ids = job.result, job.loop, list(job.grids)
    _check_inputs(result, job.read, mask, image_ids, job.grids)
    kind = 'labels' if loop.runner.is_labels else 'soft'
    options, values = _check_manager(
        kind, {'dump_interval': dump_interval, **job.manager_options})
    check_folder(dst)
    done = _find_finished(get_manifest(result), options, job.settings, values['resume'])
    claim_channels(result, [one for one in image_ids if one not in done],
                   options.asset_channels, values['on_collision'] == 'replace')
    begin_preview(src)
    preview_work('predict', src, executor, window=list(loop.window), overlap=float(overlap),
                 channels=loop.channels, channels_out=len(options.channels),
                 space=space, batch_size=batch_size, prefetch=prefetch, split=split,
                 pixel_nbytes=_count_pixel_bytes(options),
                 # Labels, and what is not written, are put together in another way.
                 has_memory=kind == 'soft' and values['write_probs'])
    say(f'channels  {"|".join(options.asset_channels)}')
    _preview_bundle(result, dst, short_code, done)


def _check_inputs(dset, read, mask, image_ids, grids):
    """Raise unless all images have the channels, and a pixel of the first one can be read."""
    from cocoseg.coco.manifest import list_channels
    from cocoseg.coco.predict_steps import check_mask
    wanted = [*list_channels(read.channels), *([check_mask(mask)] if check_mask(mask) else [])]
    check_channels(dset, image_ids, wanted)
    window = next(iter(grids[image_ids[0]]))
    read(image_ids[0], type(window)(window.y0, window.x0, window.y0 + 1, window.x0 + 1))


def check_channels(dset, image_ids, channels):
    """
    Raise unless all images have these channels.

    Args:
        dset (kwcoco.CocoDataset): that has the images.
        image_ids (Sequence[int]): of them.
        channels (Sequence[str]): their names.
    """
    from cocoseg.errors import OptionError
    for image_id in image_ids:
        present = set(dset.coco_image(image_id).channels.fuse().as_list())
        missing = sorted(set(channels) - present)
        if missing:
            raise OptionError(f'image {image_id} has no channels {missing}, only '
                              f'{sorted(present)}; choose other channels, or leave it out of '
                              'image_ids')


def _check_manager(kind, given):
    """Return the options of assets, and all those of the manager, checked as it does."""
    from cocoseg.coco.label_options import make_asset_options
    from cocoseg.coco.manager import CocoStitchingManager
    from cocoseg.coco.options import check_dump_interval, check_run_options, make_canvas_options
    parameters = inspect.signature(CocoStitchingManager.__init__).parameters
    values = {name: one.default for name, one in parameters.items()
              if one.default is not inspect.Parameter.empty}
    values.update(given, kind=kind)
    names = ('chan_code', 'short_code', 'thresh', 'write_probs', 'write_preds',
             'polygon_categories', 'prob_compress', 'prob_blocksize', 'prob_format',
             'expected_minmax', 'quantize', 'write_prediction_attrs', 'assets_dname', 'dtype',
             'layers')
    options = make_asset_options(kind, values['label_options'], space=values['stitching_space'],
                                 **{name: values[name] for name in names})
    check_run_options(values['readiness'], values['on_collision'])
    make_canvas_options(values['device'], values['memmap'], values['memory_budget'], kind)
    check_dump_interval(values['dump_interval'])
    return options, values


def _count_pixel_bytes(options):
    """Return the bytes per pixel of all assets."""
    import numpy as np
    dtypes = [(options.main_dtype if spec.layer is None else options.describe(spec.layer).dtype,
               len(spec.channels)) for spec in options.assets]
    return sum(np.dtype(dtype).itemsize * n_channels for dtype, n_channels in dtypes)


def _find_finished(manifest, options, settings, resume):
    """Return the images that an earlier run has finished, if it had the same settings."""
    from cocoseg.coco.journal import Journal
    from cocoseg.coco.resume import iter_finished
    config, texts = options.describe_run(settings)
    if not resume:
        return set()
    fpath = os.path.join(manifest.bundle_dpath, options.assets_dname, options.short_code or '',
                         options.journal_name)
    records = Journal(fpath, config, texts).read()
    return {record['image_id'] for record, _, problem in iter_finished(
        records, manifest, options.prob_format == 'cog') if not problem}


def claim_channels(dset, image_ids, channels, replace):
    """
    Raise if images have channels that they would get.

    Args:
        dset (kwcoco.CocoDataset): that has the images.
        image_ids (Sequence[int]): of those to be done.
        channels (Sequence[str]): new ones.
        replace (bool): old ones may go.
    """
    from cocoseg.coco.manifest import get_manifest
    manifest, owner = get_manifest(dset), _Owner()
    for image_id in image_ids:
        manifest.claim_channels(image_id, channels, owner, replace)
        manifest.release_channels(image_id, channels)


class _Owner:
    """Who claims channels, for a moment."""


def _preview_bundle(dset, dst, short_code, done):
    """Print what of a bundle would stay, and what be written."""
    if done:
        say(f'finished  {len(done)} of {dset.n_images} images by an earlier run; they stay')
    folder = os.path.join(os.path.dirname(os.path.abspath(dst)), '_assets', short_code)
    n_files = len([name for name in os.listdir(folder) if not name.startswith('.')]) if (
        os.path.isdir(folder)) else 0
    say(f'assets    {folder}{f", where {n_files} files are" if n_files else ""}')
    preview_output(dst)


def preview_masks(src, dst, channels, mask_channel, *, logic, nodata, space, overwrite, resume,
                  valid_region=False, progress=None):
    """
    Check and print what :func:`cocoseg.mask_dataset` would do.

    Args:
        src, dst, channels, mask_channel, logic, nodata, space, overwrite, resume,
            valid_region: of that function.
        progress (object): not used, as there is none.
    """
    from cocoseg.coco import masks
    from cocoseg.coco.dataset import list_image_ids, load_dataset
    from cocoseg.coco.manifest import list_channels
    from cocoseg.errors import OptionError
    dset = load_dataset(src)
    image_ids = list_image_ids(dset)
    if channels is None:
        channels = '|'.join(dset.coco_image(image_ids[0]).channels.fuse().as_list())
    if len(list_channels(mask_channel)) != 1:
        raise OptionError(f'mask_channel={mask_channel!r} must be the name of one channel')
    predictor = masks.ValidPredictor.make(logic, nodata, len(list_channels(channels)))
    preview_prediction(
        src, dst, predictor, 1024, 0, channels=channels, out_channels=masks.SHARE_CHANNEL,
        space=space, short_code='mask', layers={masks.ValidLayer(): mask_channel},
        write_probs=False, write_prediction_attrs=False, expected_minmax=(0, 1), resume=resume,
        on_collision='replace' if overwrite else 'raise')


def preview_instances(src, dst, parameters, channels, *, foreground, out_channels, space,
                      block_shape, on_collision, executor, resume, **run_options):
    """
    Check and print what :func:`cocoseg.watershed_dataset` would do.

    Args:
        src, dst, parameters, channels, foreground, out_channels, space, block_shape,
            on_collision, executor, resume, **run_options: of that function.
    """
    from cocoseg.coco.dataset import list_image_ids, open_result
    from cocoseg.coco.manifest import list_channels
    from cocoseg.engine.blockmap import BlockRun
    from cocoseg.errors import BandCountError, OptionError
    names, n_needed = list_channels(channels), len(parameters.offsets) or 1
    if len(names) != n_needed:
        raise BandCountError(f'channels={channels!r} are {len(names)}, and the parameters need '
                             f'{n_needed}')
    if list_channels(out_channels) != [out_channels]:
        raise OptionError(f'out_channels={out_channels!r} must be one channel')
    BlockRun(max_retries=run_options['max_retries'], timeout=run_options['timeout'])
    result = open_result(src, dst)
    image_ids = list_image_ids(result)
    check_channels(result, image_ids, [*names, *([foreground] if foreground else [])])
    check_folder(dst)
    done = list_finished(dst, 'instances') & set(image_ids) if resume else set()
    claim_channels(result, [one for one in image_ids if one not in done], [out_channels],
                   on_collision == 'replace')
    _check_first_image(result, image_ids[0], parameters, channels, foreground, space, block_shape)
    begin_preview(src)
    preview_work('watershed', src, executor, space=space, channels=channels,
                 block_shape=_as_extents(block_shape), context=_as_extents(parameters.context))
    say(f'channels  {out_channels}')
    _preview_bundle(result, dst, 'instances', done)


def _check_first_image(dset, image_id, parameters, channels, foreground, space, block_shape):
    """Raise for parameters that do not fit the blocks of an image."""
    from cocoseg.io.arrays import open_source
    from cocoseg.postprocess.watershed import blockwise_watershed
    image = dset.coco_image(image_id)
    space = space if image.img.get('video_id') is not None else 'image'

    def read(spec):
        return open_source(image, name=f'image {image_id}', channels=spec, space=space)
    run_until_store(blockwise_watershed, read(channels), parameters, block_shape=block_shape,
                     foreground=None if foreground is None else read(foreground))


def _as_extents(numbers):
    return None if numbers is None else [*numbers] if isinstance(
        numbers, (tuple, list)) else [numbers]
