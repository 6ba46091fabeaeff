"""
The problem of the streaming races, and what contestants share.

A float32 image of 3 bands from windows of 256 px that overlap by 64 px, laid
evenly. A pool of 64 different tiles is handed out in turn, as it is, to
everybody: 50 MB, more than the caches of one core hold, so that tiles are read
from memory as a model's predictions are. (A third-level cache that many cores
share may hold the pool; the limit is therefore also measured on the pool.)
"""
from __future__ import annotations

import functools
import inspect
import threading
import time

import numpy as np

WINDOW, OVERLAP, BANDS = 256, 64, 3
N_TILES = 64
HOLE = 40
MINMAX = (0, 1)
TOP, NODATA = 32767, -9999
# Values that are quantized at a time; they stay in the cache of a core.
STRIP = 1 << 18


class Absent(Exception):
    """A contestant cannot take part; the message says why."""


class Problem:
    """
    One image to stitch.

    Args:
        shape (tuple): (H, W, C).

    Attributes:
        grid (WindowGrid): what cocoseg gets as its declaration.
        order (ndarray): a random order of the windows, always the same.
    """

    def __init__(self, shape):
        from cocoseg import WindowGrid
        self.shape = shape
        self.grid = WindowGrid(shape, WINDOW, OVERLAP)
        self.order = np.random.default_rng(1).permutation(len(self.grid))

    @functools.cached_property
    def windows(self):
        """All windows in row-major order."""
        return list(self.grid)

    @functools.cached_property
    def tiles(self):
        """The pool of tiles, float32 (256, 256, C)."""
        return make_tiles(self.shape[2])

    @functools.cached_property
    def nan_tiles(self):
        """The pool with a square hole of NaN in each tile, each elsewhere."""
        rng = np.random.default_rng(2)
        tiles = [tile.copy() for tile in self.tiles]
        for tile in tiles:
            y, x = rng.integers(0, WINDOW - HOLE, 2)
            tile[y:y + HOLE, x:x + HOLE] = np.nan
        return tiles

    @property
    def n_pixels(self):
        """Pixels of the image."""
        return self.shape[0] * self.shape[1]

    @property
    def float_mb(self):
        """Size of the image as float32, MiB as resident memory is counted."""
        return self.n_pixels * self.shape[2] * 4 / 2 ** 20

    def list_jobs(self, *, shuffled=False, nan=False):
        """Return [(window, tile)]; a window has the same tile in any order."""
        tiles = self.nan_tiles if nan else self.tiles
        order = self.order if shuffled else range(len(self.windows))
        return [(self.windows[index], tiles[index % N_TILES]) for index in order]

    def iter_jobs(self):
        """Yield (window, tile) in row-major order; windows are made on the way."""
        for index, window in enumerate(self.grid):
            yield window, self.tiles[index % N_TILES]


def make_tiles(n_bands):
    """Return the pool: smooth random values in [0, 1], float32 (256, 256, C)."""
    rng = np.random.default_rng(0)
    # Linear interpolation of a lattice of 9 x 9 random values.
    nodes, places = np.linspace(0, WINDOW - 1, 9), np.arange(WINDOW)
    spread = np.stack([np.interp(places, nodes, row) for row in np.eye(9)], axis=1)
    return [np.ascontiguousarray(np.einsum('yi,ijc,xj->yxc', spread, rng.random((9, 9, n_bands)),
                                           spread, optimize=True).astype(np.float32))
            for _ in range(N_TILES)]


class Clock:
    """
    The times of one run, from when the clock is made.

    Time on the wall is what counts. That of the processors, of all threads, is
    kept beside it: it does not count what other processes took from a run, but
    also threads that wait in a loop.
    """

    def __init__(self):
        self._cpu, self._start = time.process_time(), time.perf_counter()
        self._added = None

    def mark_added(self):
        """All windows have been added."""
        self._added = time.perf_counter()

    def stop(self):
        """Return the figures of the run, s."""
        done, cpu = time.perf_counter(), time.process_time()
        return {'total_s': done - self._start, 'add_s': self._added - self._start,
                'cpu_s': cpu - self._cpu}


class NullSink:
    """Count blocks and pixels, and drop them."""

    def __init__(self):
        self.n_blocks = self.n_pixels = 0
        self._lock = threading.Lock()

    def write_block(self, window, block):
        """Count one block."""
        height, width = block.shape[:2]
        with self._lock:
            self.n_blocks += 1
            self.n_pixels += height * width

    def check(self, problem):
        """Raise unless every pixel came once."""
        if self.n_pixels != problem.n_pixels:
            raise RuntimeError(f'{self.n_pixels} pixels came instead of {problem.n_pixels}')


class ArraySink(NullSink):
    """Paste blocks into one int16 array, which is what the others end with."""

    def __init__(self, shape):
        super().__init__()
        self.codes = np.empty(shape, np.int16)

    def write_block(self, window, block):
        """Paste one block."""
        self.codes[window.slices] = block
        super().write_block(window, block)


def make_stitcher(problem, sink, **options):
    """
    Return a stitcher of ours for a problem.

    One thread, unless the options say otherwise.

    Raises:
        Absent: if this cocoseg does not know an option.
    """
    from cocoseg import SoftStitcher
    known = inspect.signature(SoftStitcher.__init__).parameters
    missing = [name for name in options if name not in known]
    if missing:
        raise Absent(f'SoftStitcher has no {", ".join(missing)}')
    if 'num_threads' in known:
        options.setdefault('num_threads', 1)
    options = {'windows': problem.grid, 'expected_minmax': MINMAX, **options}
    return SoftStitcher(problem.shape, sink=sink, **options)


def stitch(problem, jobs, sink, **options):
    """Push all jobs through a stitcher of ours; NaN and order as in the jobs."""
    stitcher = make_stitcher(problem, sink, **options)
    for window, tile in jobs:
        stitcher.add(window, tile)
    stitcher.finalize()


def encode_numpy(mean):
    """
    Quantize the result of a peer, float32 in [0, 1] or NaN, to int16.

    ``mean`` is overwritten. Strip by strip, which is faster than whole-array
    steps, so that peers do not lose time where they do nothing special.
    """
    codes = np.empty(mean.shape, np.int16)
    values, out = mean.reshape(-1), codes.reshape(-1)
    for start in range(0, len(values), STRIP):
        part = values[start:start + STRIP]
        np.multiply(part, TOP, out=part)
        np.rint(part, out=part)
        invalid = np.isnan(part)
        if invalid.any():
            part[invalid] = NODATA
        out[start:start + STRIP] = part
    return codes


def encode_torch(mean):
    """Do what :func:`encode_numpy` does to a contiguous tensor, with torch's threads."""
    import torch
    codes = torch.empty(mean.shape, dtype=torch.int16)
    # Each of torch's threads gets such a strip.
    size = STRIP * torch.get_num_threads()
    for part, out in zip(mean.reshape(-1).split(size), codes.reshape(-1).split(size)):
        out.copy_(part.mul_(TOP).round_().nan_to_num_(nan=NODATA))
    return codes
