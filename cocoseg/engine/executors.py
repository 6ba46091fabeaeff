"""
Executors: one way to run independent tasks, serially, in threads, or elsewhere.

The serial executor is the specification; others run the same function on the
same tasks and may only differ in the order of the results. A task carries
paths, windows and small values, so that the same tasks can go to the workers
of :mod:`cocoseg.engine.process_executor` and :mod:`cocoseg.engine.dask_executor`.
"""
from __future__ import annotations

import logging
import re
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Callable, Iterable, Iterator, Protocol, runtime_checkable

from cocoseg.errors import OptionError, TaskError, TaskTimeoutError
from cocoseg.machine import count_cpus

logger = logging.getLogger(__name__)


@runtime_checkable
class Executor(Protocol):
    """
    Run a function on tasks, with bounded work in flight.

    ``n_workers`` is how many tasks run at a time. ``run`` may be called again
    after it ended; one thread at a time calls it. An executor may have an
    attribute ``shares_memory``; False means that tasks run in other processes:
    function, tasks and results are pickled, and what a task changes in memory
    is not seen by the caller. Without it, it is True.
    """

    @property
    def n_workers(self) -> int: ...

    def run(self, func: Callable[[Any], Any], tasks: Iterable[Any], *,
            describe: Callable[[Any], str] = repr, timeout: float | None = None,
            max_pending: int | None = None, ordered: bool = False,
            ) -> Iterator[tuple[Any, Any]]: ...


class SerialExecutor:
    """
    Run each task in the caller's thread, when its result is asked for.

    Example:
        >>> from cocoseg.engine.executors import Executor, SerialExecutor
        >>> assert isinstance(SerialExecutor(), Executor)
        >>> list(SerialExecutor().run(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
    """

    n_workers = 1
    shares_memory = True

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=True):
        """
        Yield (task, result) in order.

        Args:
            func (Callable): called with one task.
            tasks (Iterable): taken one by one.
            describe (Callable): names a task in messages.
            timeout (float | None): seconds that a task may take; noticed when
                the task has ended.
            max_pending (int | None): not needed here, as is ``ordered``.

        Raises:
            TaskError: if a task fails; from its error.
            TaskTimeoutError: if one takes too long.
        """
        for task in tasks:
            start = time.monotonic()
            try:
                result = func(task)
            except Exception as ex:
                raise make_error(task, describe, ex) from ex
            check_time(task, describe, time.monotonic() - start, timeout)
            yield task, result


class ThreadExecutor:
    """
    Run tasks in threads; they run at the same time where they release the GIL.

    The first task that fails ends the run: no other begins, and the error is
    raised when those that had begun are through. One that is beyond its
    ``timeout`` is not waited for.

    Args:
        n_workers (int): threads, at least 1.

    Example:
        >>> from cocoseg.engine.executors import ThreadExecutor
        >>> sorted(ThreadExecutor(2).run(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
    """

    shares_memory = True

    def __init__(self, n_workers):
        self.n_workers = n_workers

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=False):
        """
        Yield (task, result) as they come.

        Args:
            func, tasks, describe: as for :meth:`SerialExecutor.run`.
            timeout (float | None): seconds that a task may take, from when it
                begins.
            max_pending (int | None): tasks that are begun, or done and not yet
                taken, at most; None is two per thread.
            ordered (bool): yield in the order of the tasks.

        Raises:
            TaskError: if a task fails; from its error.
            TaskTimeoutError: if one takes too long.
        """
        max_pending = 2 * self.n_workers if max_pending is None else max(max_pending, 1)
        run = _ThreadRun(func, describe, timeout, self.n_workers)
        try:
            yield from run.iterate(iter(tasks), max_pending, ordered)
        finally:
            run.stop()


class _ThreadRun:
    """The state of one call of :meth:`ThreadExecutor.run`."""

    def __init__(self, func, describe, timeout, n_workers):
        self._func, self._describe, self._timeout = func, describe, timeout
        self._pool = ThreadPoolExecutor(n_workers, 'cocoseg-task')
        self._is_stopped = threading.Event()
        # Future -> task, and task's start by future, once it has one.
        self._tasks, self._starts = {}, {}
        self._is_late = False

    def iterate(self, tasks, max_pending, ordered):
        exhausted = False
        while True:
            while not exhausted and len(self._tasks) < max_pending:
                try:
                    task = next(tasks)
                except StopIteration:
                    exhausted = True
                    break
                self._submit(task)
            if not self._tasks:
                return
            for future in self._wait(ordered):
                task = self._tasks.pop(future)
                self._starts.pop(future, None)
                error = future.exception()
                if error is not None:
                    raise make_error(task, self._describe, error) from error
                yield task, future.result()

    def _submit(self, task):
        begun = []

        def call():
            if self._is_stopped.is_set():
                return None
            begun.append(time.monotonic())
            return self._func(task)

        future = self._pool.submit(call)
        self._tasks[future] = task
        self._starts[future] = begun

    def _wait(self, ordered):
        """Return the futures that are done, at least one; if ordered, only those due next."""
        while True:
            done = [future for future in self._tasks if future.done()]
            # A task that failed ends the run, also if it is not due yet.
            failed = [future for future in done if future.exception() is not None]
            due = [future for future in list(self._tasks)[:1] if future in done]
            if failed or (due if ordered else done):
                return failed or (due if ordered else done)
            wait([future for future in self._tasks if future not in done],
                 self._find_patience(), FIRST_COMPLETED)
            for future, begun in self._starts.items():
                if begun and self._timeout is not None:
                    elapsed = time.monotonic() - begun[0]
                    self._is_late = elapsed > self._timeout
                    check_time(self._tasks[future], self._describe, elapsed, self._timeout)

    def _find_patience(self):
        if self._timeout is None:
            return None
        now = time.monotonic()
        left = [self._timeout - (now - begun[0]) for begun in self._starts.values() if begun]
        return max(min(left, default=self._timeout), 0.0) + 0.01

    def stop(self):
        """Begin no other task, and wait for those that have begun, unless one is late."""
        self._is_stopped.set()
        self._pool.shutdown(wait=not self._is_late, cancel_futures=True)


def get_executor(spec: str | Executor | Any = 'serial') -> Executor:
    """
    Return what runs tasks.

    Args:
        spec (str | Executor | distributed.Client): 'serial'; 'threads',
            'processes' or 'dask' (a cluster of processes on this machine), one
            worker per CPU, or with a number as in 'threads:N'; the address of
            a scheduler of dask as in 'dask:tcp://host:8786'; a client of one;
            or an executor, which is returned.

    Returns:
        Executor: see :class:`Executor`.

    Raises:
        OptionError: for anything else.
        MissingDependencyError: for dask, if it is absent.

    Example:
        >>> from cocoseg import get_executor
        >>> get_executor('threads:2').n_workers, get_executor('serial').n_workers
        (2, 1)
        >>> get_executor('processes:1').shares_memory
        False
    """
    if type(spec).__module__.partition('.')[0] == 'distributed':
        from cocoseg.engine.dask_executor import DaskExecutor
        return DaskExecutor(spec)
    if isinstance(spec, Executor):
        return spec
    text = spec if isinstance(spec, str) else ''
    if re.fullmatch(r'dask:[a-z]+://.+', text):
        from cocoseg.engine.dask_executor import DaskExecutor
        return DaskExecutor(text.partition(':')[2])
    match = re.fullmatch(r'(serial|threads|processes|dask)(?::([0-9]+))?', text)
    if match is None or (match[1] == 'serial' and match[2]) or (match[2] and not int(match[2])):
        raise OptionError(f"executor={spec!r} is unknown; use 'serial', 'threads', 'processes', "
                          "'dask', 'threads:N', 'processes:N' or 'dask:N' with N of at least 1, "
                          "'dask:tcp://HOST:PORT', a distributed.Client, or an object with run() "
                          'and n_workers')
    if match[1] == 'serial':
        return SerialExecutor()
    n_workers = int(match[2]) if match[2] else count_cpus()
    if n_workers > count_cpus():
        logger.warning('executor=%r has more %s than the %d CPUs of this process; each takes '
                       'memory for a task', spec,
                       'threads' if match[1] == 'threads' else 'workers', count_cpus())
    return _make_executor(match[1], n_workers)


def _make_executor(kind, n_workers):
    if kind == 'threads':
        return ThreadExecutor(n_workers)
    if kind == 'processes':
        from cocoseg.engine.process_executor import ProcessExecutor
        return ProcessExecutor(n_workers)
    from cocoseg.engine.dask_executor import DaskExecutor
    return DaskExecutor(n_workers=n_workers)


def make_error(task, describe, cause):
    """Return the error of a task that failed; to be raised from its cause."""
    return TaskError(f'{describe(task)} failed: {type(cause).__name__}: {cause}', task=task)


def check_time(task, describe, elapsed, timeout):
    """Raise TaskTimeoutError if ``elapsed`` is more than ``timeout`` (s), unless that is None."""
    if timeout is not None and elapsed > timeout:
        raise TaskTimeoutError(
            f'{describe(task)} took {elapsed:.1f} s, more than timeout={timeout:g} s; give it '
            'more time, or make tasks smaller', task=task)
