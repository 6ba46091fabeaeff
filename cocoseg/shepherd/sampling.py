"""
Which pixels of a raster the clusters are fitted to.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.shepherd.assign import find_valid
from cocoseg.shepherd.clusters import count_samples

# Side of the blocks that are read for a sample, px: tiles of files are often as large.
_BLOCKSIZE = 256
# A quarter of the blocks is read, within these bounds: few places see few kinds of land.
_MIN_BLOCKS, _MAX_BLOCKS = 64, 1024
# pyshepseg's sample: about so many pixels, taken from blocks of such a side.
_REFERENCE_PIXELS, _REFERENCE_BLOCKSIZE = 1_000_000, 1024


@dataclass(frozen=True)
class RasterSample:
    """
    Valid pixels of a raster.

    Attributes:
        pixels (ndarray): the dtype of the raster, shape (n, B); n may be 0,
            if no pixel of the raster is valid.
        percent (float): share of the pixels of the raster that were looked at
            and so might have been drawn, or with ``compat`` were drawn.
    """

    pixels: np.ndarray
    percent: float


def sample_raster(read, shape, n_bands, dtype, config, nodata=None, run=map):
    """
    Draw valid pixels from a raster.

    By default the pixels come from blocks at random places; more blocks are
    read until there are enough valid pixels, or none are left. Both are
    seeded. With ``config.compat``, every k-th pixel of every k-th row, counted
    anew in each block of 1024 px, as pyshepseg does.

    Args:
        read (Callable[[Window], ndarray]): returns (h, w, B) pixels.
        shape (tuple[int, int]): (H, W) of the raster, px.
        n_bands (int): B.
        dtype (dtype): of the pixels.
        config (ShepherdConfig): how many, and how.
        nodata (float | None): a pixel is null if any band is equal to it.
        run (Callable): ``map``, or the ``map`` of a pool of threads.

    Returns:
        RasterSample: the same whatever ``run`` is.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.sampling import sample_raster
        >>> image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1)
        >>> config = ShepherdConfig(n_clusters=2, n_samples=4)
        >>> sample = sample_raster(lambda window: image[window.slices], (5, 6), 1, 'u1', config, 0)
        >>> sample.pixels.shape, 0 in sample.pixels
        ((4, 1), False)
    """
    if config.is_compat:
        return _sample_reference(read, shape, n_bands, dtype, config, nodata, run)

    n_wanted = count_samples(config, shape[0] * shape[1])
    rng = np.random.default_rng(config.seed)
    blocks = [block.core for block in BlockGrid(shape, _BLOCKSIZE)]
    blocks = [blocks[index] for index in rng.permutation(len(blocks))]
    step = min(max(len(blocks) // 4, _MIN_BLOCKS), _MAX_BLOCKS)
    step = max(step, math.ceil(4 * n_wanted / _BLOCKSIZE ** 2))
    reader = _BlockReader(read, n_bands, nodata, config.seed)
    # Of each block so many pixels that a quarter of the blocks would do.
    most = math.ceil(4 * n_wanted / min(step, len(blocks)))
    parts, n_seen = _read_blocks(reader, blocks, step, n_wanted, most, run)
    n_found = sum(map(len, parts))
    if n_found < n_wanted and any(len(part) == most for part in parts):
        # Few blocks have valid pixels, and all of these are needed.
        parts, n_seen = _read_blocks(reader, blocks, len(blocks), n_wanted, None, run)
    pixels = np.concatenate(parts)
    if len(pixels) > n_wanted:
        pixels = pixels[np.sort(rng.choice(len(pixels), n_wanted, replace=False))]
    return RasterSample(pixels.astype(dtype, copy=False), 100 * n_seen / (shape[0] * shape[1]))


def _read_blocks(reader, blocks, step, n_wanted, most, run):
    """Read ``step`` blocks at a time until there are enough pixels; return (parts, px read)."""
    found, n_seen = [], 0
    for start in range(0, len(blocks), step):
        # In the order of the file, which is faster to read.
        windows = sorted(blocks[start:start + step])
        found += list(run(lambda window: reader.read(window, most), windows))
        n_seen += sum(window.area for window in windows)
        if sum(map(len, found)) >= n_wanted:
            break
    return found, n_seen


@dataclass(frozen=True)
class _BlockReader:
    """Reads valid pixels of blocks, the same ones in any thread and order."""

    read_pixels: Callable
    n_bands: int
    nodata: float | None
    seed: int

    def read(self, window, most):
        """Return valid pixels of a block (n, B), at most so many, or all, as a copy."""
        pixels = self.read_pixels(window)
        valid = find_valid(pixels, self.nodata)
        pixels = pixels.reshape(-1, self.n_bands) if valid is None else pixels[valid]
        if most is not None and len(pixels) > most:
            rng = np.random.default_rng([self.seed, window.y0, window.x0])
            return pixels[np.sort(rng.choice(len(pixels), most, replace=False))]
        return np.array(pixels)


def _sample_reference(read, shape, n_bands, dtype, config, nodata, run):
    """Draw pixels where pyshepseg does; they are in the same order, too."""
    if config.sample_percent is None:
        proportion = min(1, math.sqrt(_REFERENCE_PIXELS / (shape[0] * shape[1])))
        percent = 100 * proportion ** 2
    else:
        proportion, percent = math.sqrt(config.sample_percent / 100), config.sample_percent
    skip = int(round(1 / proportion))
    rows = []
    for y in range(0, shape[0], _REFERENCE_BLOCKSIZE):
        windows = [Window(y, x, y + _REFERENCE_BLOCKSIZE, x + _REFERENCE_BLOCKSIZE).clip(shape)
                   for x in range(0, shape[1], _REFERENCE_BLOCKSIZE)]
        # A copy, as what is left out would be kept by a view.
        parts = run(lambda window: read(window)[::skip, ::skip].copy(), windows)
        pixels = np.concatenate(list(parts), axis=1)
        valid = find_valid(pixels, nodata)
        rows.append(pixels.reshape(-1, n_bands) if valid is None else pixels[valid])
    pixels = np.concatenate([np.empty((0, n_bands), dtype), *rows])
    return RasterSample(pixels, percent)
