#!/usr/bin/env python
"""
Number the ponds and lakes of a video: from a heatmap to instances and polygons.

1. ``predict_dataset`` stitches a heatmap of water. The model is an index of two
   bands; it stands for any model that says what is an object.
2. ``watershed_dataset`` separates what touches, block by block, and joins blocks:
   ids as one more COG per frame, and each instance as an annotation with its
   score. Waters that a narrow channel joins become two.
3. Blocks are compared with a run in one block, and instances with the components
   of what is water beyond doubt.

Usage: python dev/examples/instances_from_heatmap.py [--dst FOLDER] [--size PX]
    [--block 128] [--min_size 60]

Needs scikit-image: pip install cocoseg[instances]
"""
from __future__ import annotations

import sys

import numpy as np
from naip_video import draw_photo, make_parser, make_video, read_channels, save_row

from cocoseg import (
    WatershedParameters, agree_objects, blockwise_watershed, predict_dataset, watershed_dataset)
from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.demo import index_labels
from cocoseg.coco.drawing import draw_heatmap, draw_segments


class WaterIndex:
    """
    A predictor of water (h, w, 1), 0..1, of green and near infrared.

    It looks at a pixel and at what is around it, which takes the glitter of waves
    away: so windows differ near their borders, and overlap.
    """

    channels = 'water'
    fingerprint = 'water-index-1'

    def __call__(self, image):
        """Predict one window; NaN stays NaN."""
        from scipy import ndimage
        green, nir = np.moveaxis(image, 2, 0)
        index = (green - nir) / np.maximum(green + nir, 1)
        is_valid = np.isfinite(index)
        smooth = ndimage.gaussian_filter(np.where(is_valid, index, 0), 1)
        smooth /= np.maximum(ndimage.gaussian_filter(is_valid.astype(np.float32), 1), 1e-6)
        return np.where(is_valid, 1 / (1 + np.exp(-25 * (smooth - 0.05))), np.nan)[..., None]


def read_ids(dset, image_id):
    """Return the ids of instances, int64 (H, W)."""
    return np.nan_to_num(read_channels(dset, image_id, 'instances')[..., 0]).astype(np.int64)


def compare(dset, parameters):
    """
    Compare with other ways to the same objects, over all images.

    Returns:
        tuple[float, float]: share of the instances that a single block finds as
        well, and share of the pixels that are water beyond doubt, and in
        objects of a size, that are part of an instance.
    """
    same, n_objects, n_found, n_water = 0.0, 0, 0, 0
    for image_id in dset.images():
        ids = read_ids(dset, image_id)
        heat = read_channels(dset, image_id, 'water')
        whole = blockwise_watershed(heat, parameters, block_shape=max(ids.shape))
        same += agree_objects(ids, whole.output) * whole.n_labels
        n_objects += whole.n_labels
        water = find_water(read_channels(dset, image_id), parameters.min_size)
        n_found += (water & (ids > 0)).sum()
        n_water += water.sum()
    return same / max(n_objects, 1), n_found / max(n_water, 1)


def find_water(image, min_size):
    """Return where water is beyond doubt, bool (H, W), without what is smaller than an instance."""
    from scipy import ndimage
    labels, _ = ndimage.label(index_labels(image) == 1)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return (sizes >= min_size)[labels]


def draw(dset, fpath):
    """Write the heatmap and the outlined instances of a frame side by side."""
    image_id = 2
    photo, ids = draw_photo(dset, image_id), read_ids(dset, image_id)
    save_row(fpath, {
        'photo': photo,
        'heatmap of water': draw_heatmap(read_channels(dset, image_id, 'water'), minmax=(0, 1),
                                         background=photo),
        f'{len(np.unique(ids[ids > 0]))} instances': draw_segments(ids, background=photo,
                                                                   alpha=0.55),
    })


def main(argv=None):
    """Run the example."""
    parser = make_parser('instances_from_heatmap', __doc__)
    parser.add_argument('--block', type=int, default=128, help='px of a side of a block')
    parser.add_argument('--min_size', type=int, default=60, help='px of the smallest instance')
    args = parser.parse_args(argv)
    parameters = WatershedParameters(method='foreground', threshold=0.5, sigma=1, context=48,
                                     seed_distance=14, min_size=args.min_size)
    dset = make_video(args.dst, args.size)
    heat = predict_dataset(dset, args.dst / 'heat.kwcoco.json', WaterIndex(), window=128,
                           overlap=32, channels='green|nir', short_code='heat',
                           expected_minmax=(0, 1))
    by_image = {}
    result = watershed_dataset(
        heat, args.dst / 'instances.kwcoco.json', parameters, 'water', block_shape=args.block,
        polygons=True, category='water body', report=by_image.__setitem__)
    audit = audit_manifest(result.fpath, full=True)
    draw(result, args.dst / 'instances.png')
    print(f'manifest   {result.fpath}')
    print(f'picture    {args.dst / "instances.png"}')
    print(f'verified   {len(audit.select("ok"))} files')
    for image_id, found in by_image.items():
        print(f'image {image_id}    {found.n_labels} instances; the largest has '
              f'{found.sizes[1:].max(initial=0)} px; blocks agree on {found.agreement:.1%} of '
              'the px at seams')
    share, covered = compare(result, parameters)
    print(f'one block  finds {share:.1%} of the instances as well')
    print(f'agreement  {covered:.1%} of what is water beyond doubt is in an instance')


if __name__ == '__main__':
    sys.exit(main())
