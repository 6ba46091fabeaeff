#!/usr/bin/env python
"""
Mask the clouds of a Sentinel-2 image, block by block.

From reflectance and a map of classes (0 shadow, 1 water, 2 snow, 3 land, 4
cloud) come, as Cloud-Optimized GeoTIFFs of 0 and 255:

* ``clear.tif``: the class is neither cloud nor shadow, and none is within a few
  pixels (a block reads that far around itself);
* ``dark.tif``: what a rule on reflectance alone takes for clear;
* ``selector.tif``: all bands of the image are there, and it is clear.

``clouds.png`` shows the image, the rule, the classes, and what is left; the
agreement of rule and classes is printed.

Usage: python dev/examples/mask_clouds.py [--data FOLDER] [--out FOLDER] [--buffer 4]
    [--repeat 1] [--executor threads:2]

The data are ``sentinel2.npz`` of ukis-csmask (Apache-2.0, DLR; contains modified
Copernicus Sentinel data), float32 reflectance of blue, green, red, nir, swir1,
swir2, and classes uint8.
"""
from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data' / 'cloudmask_s2'
SHADOW, CLOUD = 0, 4
BLUE, GREEN, RED, NIR, SWIR1, SWIR2 = range(6)
BLOCK = 200


def parse_args(argv=None):
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--data', type=Path, default=DATA, help='folder with sentinel2.npz')
    parser.add_argument('--out', type=Path, help='folder for the results; default the cache')
    parser.add_argument('--buffer', type=int, default=4, help='px around clouds and shadows')
    parser.add_argument('--repeat', type=int, default=1, help='make the image so many times larger')
    parser.add_argument('--executor', default='threads:2', help='serial, threads or threads:N')
    return parser.parse_args(argv)


def read_data(folder, repeat):
    """Return reflectance (H, W, 6) and classes (H, W); None without the file."""
    fpath = folder / 'sentinel2.npz'
    if not fpath.exists():
        return None
    with np.load(fpath) as data:
        image, classes = data['img'], data['msk'][..., 0]
    return np.tile(image, (repeat, repeat, 1)), np.tile(classes, (repeat, repeat))


def shrink(valid, buffer):
    """Return 255 where all within ``buffer`` px, rows and columns, is valid."""
    padded = np.pad(valid[..., 0], buffer, 'edge')
    for axis in (0, 1):
        parts = np.lib.stride_tricks.sliding_window_view(padded, 2 * buffer + 1, axis=axis)
        padded = parts.min(axis=-1)
    return padded


def is_dark(image):
    """
    Return 255 where a pixel is no cloud by its reflectance.

    Clouds are bright in blue, and white: not much brighter in red, and unlike
    snow also in the short-wave infrared.
    """
    blue, red, swir = image[..., BLUE], image[..., RED], image[..., SWIR1]
    cloud = (blue > 0.2) & (abs(red - blue) < 0.35 * blue) & (swir > 0.2)
    return np.where(cloud, np.uint8(0), np.uint8(255))


def make_masks(image, classes, dst, buffer, executor):
    """Write the three masks; return them by name as bool (H, W)."""
    from cocoseg import compute_mask, map_blocks, prepare_selector
    from cocoseg.io.raster import read_raster
    run = {'block_shape': BLOCK, 'executor': executor, 'overwrite': True}
    compute_mask(classes, dst / 'free.tif', nodata={CLOUD, SHADOW}, **run)
    map_blocks(functools.partial(shrink, buffer=buffer), dst / 'free.tif', dst / 'clear.tif',
               halo=buffer, **run)
    map_blocks(is_dark, image, dst / 'dark.tif', **run)
    prepare_selector(image, extra_masking_band=dst / 'clear.tif', dst=dst / 'selector.tif', **run)
    return {name: read_raster(dst / f'{name}.tif')[..., 0] == 255
            for name in ('free', 'clear', 'dark', 'selector')}


def draw(image, masks, fpath):
    """Write a row of pictures, with a gap between them."""
    from cocoseg.io.images import write_image
    colors = np.clip(image[..., [RED, GREEN, BLUE]] / 0.5, 0, 1) ** 0.6
    tint = np.array([1.0, 0.2, 0.6])
    panels = [colors] + [np.where(masks[name][..., None], colors, 0.35 * colors + 0.65 * tint)
                         for name in ('dark', 'free')]
    panels.append(colors * masks['selector'][..., None])
    gap = np.ones((image.shape[0], 8, 3))
    row = [part for panel in panels for part in (panel, gap)][:-1]
    write_image(fpath, np.rint(255 * np.concatenate(row, axis=1)).astype(np.uint8), fmt='png')


def main(argv=None):
    """Make masks and picture; return an exit code."""
    args = parse_args(argv)
    data = read_data(args.data, args.repeat)
    if data is None:
        print(f'skipped: there is no {args.data / "sentinel2.npz"}; give its folder with --data')
        return 0
    if args.out is None:
        import ubelt as ub
        args.out = Path(ub.Path.appdir('cocoseg/examples/mask_clouds'))
    args.out.mkdir(parents=True, exist_ok=True)
    image, classes = data
    masks = make_masks(image, classes, args.out, args.buffer, args.executor)
    draw(image, masks, args.out / 'clouds.png')
    clouds, found = classes == CLOUD, ~masks['dark']
    both = int((clouds & found).sum())
    print(f'clear     {masks["clear"].mean():.1%} of {clouds.size} px, {args.buffer} px away from '
          'clouds and shadows')
    print(f'selected  {masks["selector"].mean():.1%}')
    print(f'rule      finds {both / max(clouds.sum(), 1):.1%} of the clouds; '
          f'{both / max(found.sum(), 1):.1%} of what it finds is cloud')
    print(f'picture   {args.out / "clouds.png"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
