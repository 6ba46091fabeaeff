"""
Run tasks in worker processes of this machine.

Each worker is a pool of one process, so that it is known which task a process
had when it died or was late, and only that one is replaced. Processes are
spawned, never forked: a fork in a program with threads can hang.
"""
from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor

from cocoseg.engine.payload import call_packed, keep_function
from cocoseg.engine.remote_run import Handed, RemoteRun
from cocoseg.errors import TaskError
from cocoseg.machine import count_cpus

logger = logging.getLogger(__name__)

# Read by libraries when they start their threads.
_THREAD_VARIABLES = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS',
                     'NUMBA_NUM_THREADS', 'GDAL_NUM_THREADS')
CPU_VARIABLE = 'COCOSEG_NUM_CPUS'


class ProcessExecutor:
    """
    Run tasks in processes; for functions that hold the GIL.

    A worker is started when a task needs one, and kept for the next run, until
    :meth:`close`, or until the executor is gone. The function and the tasks
    are pickled, at most 16 MiB each: they carry paths, windows and small
    values. A script must start its work under ``if __name__ == '__main__':``,
    as each worker imports it.

    The first task that fails ends the run: no other begins, and the error is
    raised when those that had begun are through. One that is beyond its
    ``timeout`` is killed. A task whose process died is run again, twice at
    most.

    Args:
        n_workers (int): processes, at least 1. Each is told to use its share
            of the CPUs, for the threads of its libraries.

    Example:
        >>> from cocoseg.engine.process_executor import ProcessExecutor
        >>> executor = ProcessExecutor(1)
        >>> sorted(executor.run(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
        >>> executor.close()
    """

    shares_memory = False

    def __init__(self, n_workers):
        self.n_workers = n_workers
        self._lock = threading.Lock()
        self._idle = []
        weakref.finalize(self, _close_workers, self._idle, wait=False)

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=False):
        """
        Yield (task, result) as they come.

        Args:
            func (Callable): can be pickled.
            tasks (Iterable): taken one by one; can be pickled.
            describe, timeout, max_pending, ordered: as for
                :meth:`cocoseg.engine.executors.ThreadExecutor.run`; the time
                to start a process does not count.

        Raises:
            OptionError: if the function or a task cannot be pickled, or is too
                large.
            TaskError: if a task fails, or its process died three times.
            TaskTimeoutError: if one takes too long.
        """
        max_pending = 2 * self.n_workers if max_pending is None else max(max_pending, 1)
        run = _ProcessRun(func, describe, timeout, self.n_workers, max_pending)
        with self._lock:
            run.idle[:], self._idle[:] = self._idle, []
        try:
            yield from run.iterate(iter(tasks), ordered)
        except (KeyboardInterrupt, SystemExit):
            run.is_urgent = True
            raise
        finally:
            try:
                run.stop()
            finally:
                self._take_back(run.idle)

    def close(self):
        """End the worker processes; a later run starts others."""
        with self._lock:
            workers, self._idle[:] = list(self._idle), []
        _close_workers(workers, wait=True)

    def _take_back(self, workers):
        with self._lock:
            n_kept = max(self.n_workers - len(self._idle), 0)
            self._idle += workers[:n_kept]
        _close_workers(workers[n_kept:], wait=True)


class _Worker:
    """A pool of one process, and what is known of it."""

    def __init__(self, n_cpus):
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'),
                                        initializer=_begin_worker, initargs=(n_cpus,))
        self.pid = None
        # The run whose function it has.
        self.token = None

    def kill(self):
        if self.pid is not None:
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                logger.debug('process %d had ended', self.pid)


def _close_workers(workers, *, wait):
    for worker in workers:
        worker.pool.shutdown(wait=wait, cancel_futures=True)
    del workers[:]


class _ProcessRun(RemoteRun):
    """
    The state of one call of :meth:`ProcessExecutor.run`.

    A worker that becomes free begins the next task at once, in the thread of
    its pool, also while the caller is busy. ``_lock`` guards what follows it.
    """

    def __init__(self, func, describe, timeout, n_workers, max_pending):
        super().__init__(func, describe, timeout)
        self._n_workers, self._max_pending = n_workers, max_pending
        self._lock = threading.Condition()
        self._backlog: deque[Handed] = deque()
        self.idle, self._busy, self._dead = [], set(), []
        self._is_stopped = False

    def find_max_pending(self):
        """Return how many tasks may be handed out and not yet taken."""
        return self._max_pending

    def send(self, handed):
        """Begin a task as soon as a worker is free."""
        with self._lock:
            # One that is run again goes first.
            (self._backlog.appendleft if handed.n_deaths else self._backlog.append)(handed)
        self._bury()
        self._feed()

    def find_error(self, handed):
        """Return the error of a task that is back, or None; and whether its worker died."""
        error = handed.future.exception()
        if not isinstance(error, BrokenExecutor):
            return error, False
        if handed.begun is None:
            raise TaskError(
                f'{self.describe(handed.task)} was not done: its worker process ended before it '
                'was ready; a script must start its work under `if __name__ == "__main__":`, as '
                'each worker imports it', task=handed.task) from error
        return error, True

    def _feed(self):
        """Begin what waits, on workers that are free, or new."""
        while True:
            with self._lock:
                has_room = self.idle or len(self._busy) < self._n_workers
                if self._is_stopped or not self._backlog or not has_room:
                    return
                handed = self._backlog.popleft()
                worker = self.idle.pop() if self.idle else None
                if worker is None:
                    worker = _Worker(max(count_cpus() // self._n_workers, 1))
                self._busy.add(worker)
            if worker.pid is None:
                self._submit(worker, handed, self._note_start, os.getpid)
            else:
                self._begin(worker, handed)

    def _submit(self, worker, handed, note, func, *args):
        """Let a worker call a function; whatever goes wrong comes back with the task."""
        try:
            future = worker.pool.submit(func, *args)
        except Exception as ex:
            if isinstance(ex, BrokenExecutor) and worker.pid is not None:
                self._replace(worker, handed)
                return
            # No process can be started, or the program ends.
            future = Future()
            future.set_exception(ex)
        handed.future = future
        future.add_done_callback(functools.partial(note, worker, handed))

    def _replace(self, worker, handed):
        """Begin a task on another worker than one that died while it had nothing to do."""
        handed.begun = None
        with self._lock:
            self._backlog.appendleft(handed)
            self._release(worker, is_dead=True)
        self._feed()

    def _note_start(self, worker, handed, future):
        if future.exception() is not None:
            self._note_end(worker, handed, future)
            return
        worker.pid = future.result()
        with self._lock:
            if self._is_stopped:
                self._release(worker)
                return
        self._begin(worker, handed)

    def _begin(self, worker, handed):
        handed.begun = time.monotonic()
        data = None if worker.token == self.token else self.func_data
        worker.token = self.token
        self._submit(worker, handed, self._note_end, _call, self.token, data, handed.data)

    def _note_end(self, worker, handed, future):
        """See that a task is back. In the thread of the pool, which may hold its own lock."""
        error = future.exception()
        is_dead = isinstance(error, BrokenExecutor)
        is_usable = worker.pid is not None and not is_dead
        with self._lock:
            self._is_stopped = self._is_stopped or (error is not None and not is_dead)
            self._release(worker, not is_usable)
        self.arrived.put(handed)
        if is_usable:
            self._feed()

    def _release(self, worker, is_dead=False):
        self._busy.discard(worker)
        (self._dead if is_dead else self.idle).append(worker)
        self._lock.notify_all()

    def _bury(self):
        with self._lock:
            dead, self._dead = self._dead, []
        _close_workers(dead, wait=True)

    def stop(self):
        """Begin no other task, and wait for those that have begun; kill them if urgent."""
        with self._lock:
            self._is_stopped = True
            self._backlog.clear()
        try:
            if not self.is_urgent:
                self._wait_for_busy()
        finally:
            # Nobody is busy any more, unless it is urgent, or became so while we waited.
            with self._lock:
                busy = list(self._busy)
            for worker in busy:
                worker.kill()
            self._wait_for_busy()
            self._bury()

    def _wait_for_busy(self):
        with self._lock:
            self._lock.wait_for(lambda: not self._busy)


# -- in the worker

def _call(token, func_data, data):
    if func_data is not None:
        keep_function(token, func_data, only=True)
    return call_packed(token, data)


def _begin_worker(n_cpus):
    """Set up a worker process: its CPUs, and that it ends when its parent does."""
    # Ctrl-C is for the parent, which decides what becomes of us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_cpu_share(n_cpus)
    threading.Thread(target=_end_with_parent, name='cocoseg-parent', daemon=True).start()


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def get_cpu_variables(n_cpus):
    """
    Return the environment that tells libraries how many CPUs are theirs.

    Example:
        >>> from cocoseg.engine.process_executor import get_cpu_variables
        >>> get_cpu_variables(2)['OMP_NUM_THREADS']
        '2'
    """
    return dict.fromkeys((CPU_VARIABLE, *_THREAD_VARIABLES), str(n_cpus))


def set_cpu_share(n_cpus):
    """Let the libraries of this process use so many CPUs, unless the user has set less."""
    for name, value in get_cpu_variables(n_cpus).items():
        present = os.environ.get(name, '')
        if not (present.isdigit() and 0 < int(present) < n_cpus):
            os.environ[name] = value
    # Those that the main module has loaded already do not read it again.
    if 'numpy' in sys.modules:
        try:
            from threadpoolctl import threadpool_limits
        except ImportError:
            return
        threadpool_limits(n_cpus)
