"""
Which images are shared by all workers, and how many windows go into a task.

Pure arithmetic on sizes: those who run and those who plan ask the same.
"""
from __future__ import annotations

from cocoseg.errors import OptionError

#: Ways to divide the images of a run among workers; see :func:`choose_shared`.
SPLITS = ('auto', 'images', 'rows')
#: Bytes of predictions in one task, at most, unless a single batch has more.
MAX_PART_NBYTES = 64 << 20
# Tasks per worker, at least: the last of them is waited for.
_TASKS_PER_WORKER = 4


def check_split(split):
    """Raise OptionError for an unknown way to divide images."""
    if split not in SPLITS:
        raise OptionError(f'split={split!r} is unknown; use one of {SPLITS}')


def choose_shared(split, sizes, n_workers):
    """
    Return the images whose windows are shared by all workers.

    Args:
        split (str): 'images' for none, 'rows' for all, 'auto' for those that
            are more than a worker's share of the run.
        sizes (dict[K, int]): number of windows by image.
        n_workers (int): images that can be done at a time.

    Returns:
        list[K]: some of the keys.

    Example:
        >>> from cocoseg.engine.sharing import choose_shared
        >>> choose_shared('auto', {'a': 40, 'b': 2}, 2), choose_shared('auto', {'a': 40}, 1)
        (['a'], [])
    """
    n_all = sum(sizes.values())
    return [key for key, n_windows in sizes.items()
            if is_shared(split, n_windows, n_all, n_workers)]


def is_shared(split, n_windows, n_all, n_workers):
    """
    Return True if an image of so many windows, of those of all images, is shared.

    Example:
        >>> from cocoseg.engine.sharing import is_shared
        >>> [is_shared('auto', n_windows, 100, 4) for n_windows in (25, 26)]
        [False, True]
    """
    return split == 'rows' or (split == 'auto' and n_windows > n_all / n_workers)


def choose_task_length(grid, batch_size, n_channels, n_workers):
    """
    Return how many windows a task has: whole batches, about a row of the grid.

    Args:
        grid (WindowGrid): of an image that workers share.
        batch_size (int): windows per call of the predictor.
        n_channels (int): K that are predicted, as float32.
        n_workers (int): tasks that are done at a time.

    Example:
        >>> from cocoseg import WindowGrid
        >>> from cocoseg.engine.sharing import choose_task_length
        >>> grid = WindowGrid((4000, 10_000), 500)
        >>> [choose_task_length(grid, batch_size, 1, 2) for batch_size in (1, 8)]
        [20, 24]
    """
    nbytes = 4 * n_channels * grid.window[0] * grid.window[1]
    most = min(grid.grid_shape[1], MAX_PART_NBYTES // nbytes,
               -(-len(grid) // (_TASKS_PER_WORKER * n_workers)))
    return max(-(-most // batch_size), 1) * batch_size
