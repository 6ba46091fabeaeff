"""
How fast this machine moves memory: the limit that no stitcher passes.

Streams over arrays of 256 MB by one and by two threads, numpy and numba, best
of several. The traffic that stitching cannot avoid is to read every tile once
and to write every int16 value once. Its time is taken as that of copying as
many bytes as are written, and of reading the rest.
"""
from __future__ import annotations

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

NBYTES = 256_000_000
REPEATS = 3
THREADS = (1, 2)


@functools.lru_cache(maxsize=1)
def compile_streams():
    """Return the compiled (read, copy); they release the interpreter's lock."""
    import numba

    @numba.njit(nogil=True, fastmath=True)
    def read(values):
        total = np.float32(0)
        for index in range(values.size):
            total += values[index]
        return total

    @numba.njit(nogil=True)
    def copy(out, values):
        for index in range(values.size):
            out[index] = values[index]

    return read, copy


def time_halves(work, n_threads, *arrays):
    """Return the shortest time in s in which threads do a work, a part each."""
    parts = list(zip(*[np.array_split(array, n_threads) for array in arrays]))
    best = np.inf
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            for job in [pool.submit(work, *part) for part in parts]:
                job.result()
            best = min(best, time.perf_counter() - start)
    return best


def read_pool(tiles):
    """Read every value of a list of tiles."""
    read, _ = compile_streams()
    for tile in tiles:
        read(tile.reshape(-1))


def measure_pool(tiles, n_threads):
    """Return how fast the tiles themselves are read, GB/s."""
    # Twelve times around, or the start of the threads would count.
    parts = [tiles[index::n_threads] * 12 for index in range(n_threads)]
    best = np.inf
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(REPEATS):
            start = time.perf_counter()
            list(pool.map(read_pool, parts))
            best = min(best, time.perf_counter() - start)
    return 12 * sum(tile.nbytes for tile in tiles) / best / 1e9


def measure(tiles):
    """
    Return the bandwidths, GB/s by name; a copied byte counts twice.

    ``read`` and ``copy`` are of big arrays, ``pool`` is reading the tiles.
    """
    read, copy = compile_streams()
    values, out = (np.ones(NBYTES // 4, np.float32) for _ in range(2))
    read(values[:8]), copy(out[:8], values[:8])
    found = {}
    for n_threads in THREADS:
        seconds = min(time_halves(work, n_threads, values) for work in (read, np.max))
        found[f'read_{n_threads}'] = values.nbytes / seconds / 1e9
        seconds = min(time_halves(work, n_threads, out, values) for work in (copy, np.copyto))
        found[f'copy_{n_threads}'] = 2 * values.nbytes / seconds / 1e9
        found[f'pool_{n_threads}'] = measure_pool(tiles, n_threads)
    return found


def compute_traffic(problem):
    """Return the (read, written) bytes that stitching cannot avoid."""
    height, width, n_bands = problem.shape
    window = problem.windows[0]
    return len(problem.windows) * window.area * n_bands * 4, height * width * n_bands * 2


def compute_limit(traffic, bandwidths, n_threads, source='read'):
    """
    Return the least time for the traffic, s.

    Args:
        traffic (tuple): bytes read and written.
        bandwidths (dict): of :func:`measure`, GB/s.
        n_threads (int): 1 or 2.
        source (str): 'read' or 'pool', how fast tiles are read at best.

    Example:
        >>> compute_limit((3e9, 1e9), {'read_1': 10, 'copy_1': 10}, 1)
        0.4
    """
    n_read, n_written = traffic
    return ((n_read - n_written) / bandwidths[f'{source}_{n_threads}']
            + 2 * n_written / bandwidths[f'copy_{n_threads}']) / 1e9
