"""Cells that fill an image or a volume, and noisy affinities of them."""
import numpy as np
from scipy.spatial import cKDTree

OFFSETS_2D = [(0, 1), (1, 0), (0, 4), (4, 0)]
OFFSETS_3D = [(0, 0, 1), (0, 1, 0), (1, 0, 0)]


def make_cells(shape, spacing, seed=0):
    """Return ids 1..n, each pixel that of the nearest of random points."""
    rng = np.random.default_rng(seed)
    points = rng.random((max(int(np.prod(shape) / spacing ** len(shape)), 1), len(shape))) * shape
    pixels = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1)
    return cKDTree(points).query(pixels.reshape(-1, len(shape)))[1].reshape(shape) + 1


def make_affinities(cells, offsets, noise, seed=1):
    """Return float32 (..., C): 1 within a cell and 0 across, plus noise, in 0..1."""
    rng = np.random.default_rng(seed)
    channels = [cells == np.roll(cells, [-step for step in offset], range(cells.ndim))
                for offset in offsets]
    affinities = np.stack(channels, -1) + rng.normal(0, noise, (*cells.shape, len(offsets)))
    return np.clip(affinities, 0, 1).astype(np.float32)


def partition(labels):
    """Return the objects of a label array, each as its sorted pixels."""
    flat = labels.ravel()
    order = np.argsort(flat, kind='stable')
    bounds = np.flatnonzero(np.diff(flat[order])) + 1
    parts = np.split(order, bounds)
    return {part.tobytes() for part in parts if len(part) and flat[part[0]] > 0}
