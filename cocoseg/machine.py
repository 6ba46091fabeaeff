"""
What this machine offers to the process: CPUs, and how rows are shared between them.

Rows are shared by kernels that release the GIL and treat rows by themselves. Not by
numba's own parallel loops, which crash or queue up where several threads call them.
Imports nothing of the package.
"""
from __future__ import annotations

import os
import threading


def count_cpus():
    """
    Return how many CPUs this process may use.

    The environment variable ``COCOSEG_NUM_CPUS`` says fewer, as for a worker
    that has others beside it.

    Example:
        >>> from cocoseg.machine import count_cpus
        >>> assert count_cpus() >= 1
    """
    n_cpus = (len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity')
              else os.cpu_count() or 1)
    share = os.environ.get('COCOSEG_NUM_CPUS', '')
    return min(n_cpus, max(int(share), 1)) if share.isdigit() else n_cpus


def split_rows(n_rows, n_parts):
    """
    Return the bounds of contiguous parts of nearly equal size, none empty.

    Example:
        >>> from cocoseg.machine import split_rows
        >>> split_rows(10, 3), split_rows(2, 4)
        ([(0, 3), (3, 6), (6, 10)], [(0, 1), (1, 2)])
    """
    n_parts = max(min(n_parts, n_rows), 1)
    edges = [n_rows * index // n_parts for index in range(n_parts + 1)]
    return list(zip(edges, edges[1:]))


def share_rows(func, n_rows, num_threads=1):
    """
    Call ``func(first, stop)`` for parts of the rows 0..n_rows, in threads.

    Args:
        func (Callable[[int, int], object]): treats the rows from ``first`` up
            to ``stop``, and no others.
        n_rows (int): all of them.
        num_threads (int): at most so many parts; the first is done by this
            thread.

    Returns:
        list: what each call returned, in the order of the rows.

    Raises:
        Exception: what a call raised, the first in the order of the rows; when
            all are through.

    Example:
        >>> from cocoseg.machine import share_rows
        >>> share_rows(lambda first, stop: stop - first, 5, num_threads=2)
        [2, 3]
    """
    parts = split_rows(n_rows, num_threads)
    if len(parts) == 1:
        return [func(*parts[0])]
    # Plain threads: a pool costs several times as much, and work is often short.
    calls = [_Call(func, part) for part in parts]
    threads = [threading.Thread(target=call, name='cocoseg-rows') for call in calls[1:]]
    for thread in threads:
        thread.start()
    try:
        calls[0]()
    finally:
        for thread in threads:
            thread.join()
    return [call.get_result() for call in calls]


class _Call:
    """A call that keeps what it returned or raised."""

    def __init__(self, func, args):
        self._func, self._args = func, args
        self._result = self._error = None

    def __call__(self):
        try:
            self._result = self._func(*self._args)
        except BaseException as ex:
            self._error = ex

    def get_result(self):
        if self._error is not None:
            raise self._error
        return self._result
