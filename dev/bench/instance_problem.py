"""
Cells whose outlines are known, and noisy affinities of them, in two and three axes.

Each pixel belongs to the nearest of random points (Voronoi); pixels near the
border of two cells have no cell, in part of the problems. An affinity is 1
within a cell and 0 across, plus noise, perhaps blurred as networks blur, and
clipped to 0..1.
"""
from __future__ import annotations

import numpy as np
from scipy import ndimage, spatial

OFFSETS = {
    4: [(1, 0), (0, 1), (4, 0), (0, 4)],
    8: [(1, 0), (0, 1), (3, 0), (0, 3), (4, 4), (4, -4), (9, 0), (0, 9)],
    6: [(1, 0, 0), (0, 1, 0), (0, 0, 1), (4, 0, 0), (0, 4, 0), (0, 0, 4)],
}


def make_cells(shape, spacing, seed=0):
    """Return int32 ids 1..n of the nearest point, about one per spacing ** ndim px."""
    rng = np.random.default_rng(seed)
    n = max(int(np.prod(shape) / spacing ** len(shape)), 1)
    points = rng.random((n, len(shape))) * shape
    grids = np.meshgrid(*map(np.arange, shape), indexing='ij')
    found = spatial.cKDTree(points).query(np.stack(grids, -1).reshape(-1, len(shape)))[1]
    return (found.reshape(shape) + 1).astype(np.int32)


def make_affinities(cells, offsets, noise, blur=0.0, seed=1):
    """Return float32 (C, ...) affinities; edges that leave the array are NaN-free 0."""
    rng = np.random.default_rng(seed)
    out = np.empty((len(offsets), *cells.shape), np.float32)
    for channel, offset in enumerate(offsets):
        same = cells == np.roll(cells, [-step for step in offset], tuple(range(cells.ndim)))
        values = same + rng.normal(0, noise, cells.shape)
        if blur:
            # Noise of the same strength as before, but correlated.
            values = same + noise * _blur_noise(rng, cells.shape, blur)
        out[channel] = np.clip(values, 0, 1)
    return out


def _blur_noise(rng, shape, blur):
    field = ndimage.gaussian_filter(rng.normal(0, 1, shape), blur)
    return field / field.std()
