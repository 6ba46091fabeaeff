"""
The images of the segmentation races.

Synthetic ones, seeded: parcels with sharp edges in twelve classes, smooth fields,
texture, roads, noise, and a region of nodata (0). ``clean`` has little noise, as
harvested fields seen by a good sensor; ``noisy`` has much. Real ones: the packaged
NAIP image, and further scenes where a folder of them is given.
"""
from __future__ import annotations

from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
NAIP = ROOT / 'cocoseg/coco/demodata/m_4709963_se_14_1_20120731.tif'
NODATA, N_BANDS, N_CLASSES, CELL = 0, 4, 12, 40
# name -> (seed, standard deviation of the noise)
KINDS = {'clean': (42, 20.0), 'noisy': (7, 110.0)}
# Real scenes in a folder of samples: name -> files, one after the other as bands.
SCENES = {
    'naip': ['naip_nd/m_4709963_se_14_1_20120731.tif'],
    'landsat7': ['landsat7_olinda/L7_ETMs.tif'],
    'sentinel2': ['s2_29RKH_20200219/B03.tif', 's2_29RKH_20200219/B04.tif',
                  's2_29RKH_20200219/B08.tif'],
}


def _smooth(rng, size, cell):
    """Return a random field that changes over about ``cell`` px."""
    from scipy import ndimage
    n = max(4, size // cell + 3)
    coarse = rng.standard_normal((n, n)).astype(np.float32)
    return ndimage.zoom(coarse, (size + 2 * cell) / n, order=3)[:size, :size]


def _make_parcels(rng, size):
    """Return the number of the parcel of each pixel: cells around jittered points."""
    from scipy import ndimage
    grid = np.arange(CELL // 2, size, CELL)
    y, x = np.meshgrid(grid, grid, indexing='ij')
    y = np.clip(y + rng.integers(-18, 19, y.shape), 0, size - 1)
    x = np.clip(x + rng.integers(-18, 19, x.shape), 0, size - 1)
    # Not every point has a parcel, so that they differ in size.
    kept = rng.random(y.size) > 0.35
    y, x = y.ravel()[kept], x.ravel()[kept]
    is_open, numbers = np.ones((size, size), bool), np.zeros((size, size), np.int32)
    is_open[y, x] = False
    numbers[y, x] = np.arange(1, len(y) + 1)
    _, (near_y, near_x) = ndimage.distance_transform_edt(is_open, return_indices=True)
    return numbers[near_y, near_x]


def _draw_roads(rng, size):
    road, along = np.zeros((size, size), bool), np.arange(size)
    for _ in range(size // 150):
        start, end = rng.integers(0, size, 2)
        across = np.clip(start + (along * (end - start)) // size, 0, size - 1)
        road[(across, along) if rng.random() < .5 else (along, across)] = True
    return road


def make_image(kind, size):
    """
    Return a synthetic image, uint16 (size, size, 4); the same at every call.

    Args:
        kind (str): 'clean' or 'noisy'.
        size (int): height and width, px.
    """
    seed, noise = KINDS[kind]
    rng = np.random.default_rng(seed)
    parcel = _make_parcels(rng, size)
    class_of = rng.integers(0, N_CLASSES, parcel.max() + 1)
    means = rng.uniform(300, 3500, (N_CLASSES, N_BANDS))
    jitter = rng.normal(0, 60, (parcel.max() + 1, N_BANDS))
    broad = [_smooth(rng, size, 200) * 120 for _ in range(3)]
    texture = _smooth(rng, size, 12) * 40
    mix = rng.normal(0, 1, (N_BANDS, 3))
    road = _draw_roads(rng, size)
    out = np.empty((size, size, N_BANDS), np.uint16)
    for band in range(N_BANDS):
        values = means[class_of[parcel], band] + jitter[parcel, band]
        for number in range(3):
            values += mix[band, number] * broad[number]
        values += texture * (0.5 + rng.random())
        values[road] = 2500 + 200 * band
        values += rng.normal(0, noise, values.shape)
        out[..., band] = np.clip(values, 1, 10000).astype(np.uint16)
    y, x = np.ogrid[:size, :size]
    out[(y + 2 * x < size * 0.35)
        | ((y - size * .7) ** 2 + (x - size * .6) ** 2 < (size * .06) ** 2)] = NODATA
    return out


def load_scenes(folder):
    """
    Return real images (H, W, B) by name, and why others are absent.

    Args:
        folder (Path | None): with the files of ``SCENES``.
    """
    from cocoseg.io.raster import read_raster
    found, absent = {'naip (packaged)': read_raster(NAIP)}, {}
    for name, files in SCENES.items():
        paths = [None if folder is None else folder / file for file in files]
        if all(path is not None and path.exists() for path in paths):
            found[name] = np.concatenate([read_raster(path) for path in paths], axis=2)
        else:
            absent[name] = 'no folder with it; see --scenes'
    return found, absent


def write_image(fpath, image):
    """Write an image as a GeoTIFF that both sides read, with its nodata value."""
    from cocoseg.io.cog import write_cog
    write_cog(fpath, image, nodata=NODATA, transform=(300000., 10., 0., 7000000., 0., -10.),
              compress='DEFLATE', overviews=None if max(image.shape) <= 512 else 'average')
