"""
A bounded queue of background jobs, mostly writes.

Knows nothing about files: a job is a callable, its size is its ``nbytes``.
Waiting for room sleeps on a condition, it never polls.
"""
from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cocoseg.errors import OptionError

logger = logging.getLogger(__name__)


class WriterQueue:
    """
    Run jobs in background threads, with a bound on the bytes that wait.

    A submitted job always runs. Its error is logged, kept in its future, and
    raised again by the first of: the next :meth:`submit` (which still queues
    its own job), :meth:`wait_until_finished`, :meth:`close`. An error is
    raised once; when several wait, the first is raised and the others are
    noted on it. Leaving a ``with`` block closes the queue; if the block
    itself raised, that error passes and those of jobs are only logged.

    Satisfies :class:`cocoseg.protocols.JobQueue`. All methods may be called
    from any thread. A job may submit further jobs; these are admitted at once,
    above the bounds, because a job that waited for room could wait for
    itself. A job must not wait for the queue, nor for a future that needs the
    thread it runs in.

    Args:
        workers (int): threads; 0 runs each job inside :meth:`submit`.
        max_pending_bytes (int): bound on the sum of the ``nbytes`` of queued
            and running jobs. A larger job is admitted when no other bytes
            are pending.
        max_pending_jobs (int | None): bound on the number of queued and
            running jobs; None is ``workers + 2``.

    Raises:
        OptionError: for a negative or zero bound.

    Example:
        >>> from cocoseg.io.queue import WriterQueue
        >>> from cocoseg.protocols import JobQueue
        >>> done = []
        >>> with WriterQueue(workers=2) as queue:
        >>>     assert isinstance(queue, JobQueue)
        >>>     futures = [queue.submit(done.append, i) for i in range(5)]
        >>> sorted(done), queue.n_pending
        ([0, 1, 2, 3, 4], 0)
    """

    def __init__(self, workers: int = 1, max_pending_bytes: int = 256 * 2 ** 20,
                 max_pending_jobs: int | None = None) -> None:
        if max_pending_jobs is None:
            max_pending_jobs = workers + 2
        if workers < 0 or max_pending_bytes < 1 or max_pending_jobs < 1:
            raise OptionError(
                f'workers={workers}, max_pending_bytes={max_pending_bytes}, '
                f'max_pending_jobs={max_pending_jobs}: give at least 0, 1 and 1')
        self.workers = workers
        self.max_pending_bytes = max_pending_bytes
        self.max_pending_jobs = max_pending_jobs
        # Guards everything below; notified whenever a job ends.
        self._changed = threading.Condition()
        # Held while waiting for room: later submitters queue up behind, so
        # that small jobs cannot keep a large one out for ever.
        self._entrance = threading.Lock()
        self._n_pending = 0
        self._pending_bytes = 0
        self._errors = []
        self._closed = False
        self._inside = threading.local()
        self._executor = None
        if workers:
            self._executor = ThreadPoolExecutor(workers, thread_name_prefix='cocoseg-writer')

    @property
    def n_pending(self) -> int:
        """Number of jobs that are queued or running."""
        with self._changed:
            return self._n_pending

    def has_room(self) -> bool:
        """Return True if :meth:`submit` would take a small job without waiting."""
        with self._changed:
            return self._fits(0)

    def submit(self, func: Callable, *args: Any, **kwargs: Any) -> Future:
        """
        Queue a job, waiting for room first.

        Args:
            func (Callable): called as ``func(*args, **kwargs)``. Its attribute
                ``nbytes``, if any, is the memory in bytes that it holds.

        Returns:
            Future: of the job.

        Raises:
            Exception: the first error of an earlier job. The new job is
                queued, and will run, all the same.
            RuntimeError: if the queue is closed; the job is not queued.
        """
        earlier = []
        future = self._enqueue(func, args, kwargs, earlier)
        self._raise_first(earlier)
        return future

    def enqueue(self, func: Callable, *args: Any, **kwargs: Any) -> Future:
        """
        Queue a job like :meth:`submit`, leaving earlier errors to others.

        For a user of a shared queue, who is not to answer for the jobs of the
        rest.

        Returns:
            Future: of the job.

        Raises:
            RuntimeError: if the queue is closed; the job is not queued.
        """
        return self._enqueue(func, args, kwargs, None)

    def wait_until_finished(self, desc: str | None = None) -> None:
        """
        Wait until every submitted job has ended.

        Args:
            desc (str | None): what is waited for, for the log.

        Raises:
            Exception: the first error of a job that was not raised before.
            RuntimeError: if called by one of the queue's own jobs.
        """
        self._wait(desc)
        self._raise_first(self._take_errors())

    def flush(self) -> None:
        """Do the same as :meth:`wait_until_finished`."""
        self.wait_until_finished()

    def close(self) -> None:
        """
        Wait for all jobs, then refuse new ones. May be called again.

        Raises:
            Exception: the first error of a job that was not raised before.
            RuntimeError: if called by one of the queue's own jobs.
        """
        self._shut_down()
        self._raise_first(self._take_errors())

    def __enter__(self) -> WriterQueue:
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if error is None:
            self.close()
            return
        # The body's own error is the one to raise; those of jobs are in the log.
        self._shut_down()
        self._take_errors()

    def _enqueue(self, func, args, kwargs, earlier):
        """Queue a job; errors of jobs before it are moved to ``earlier``, a list."""
        nbytes = int(getattr(func, 'nbytes', 0) or 0)
        if self._is_inside_job():
            self._admit(nbytes, wait=False)
        else:
            with self._entrance:
                self._admit(nbytes, wait=True)
            if earlier is not None:
                earlier += self._take_errors()
        return self._start(nbytes, func, args, kwargs)

    def _is_inside_job(self):
        """Return True in a thread that runs one of our jobs."""
        return getattr(self._inside, 'depth', 0) > 0

    def _fits(self, nbytes):
        """Return True if a job has room now; the condition is held."""
        return (self._n_pending < self.max_pending_jobs
                and (self._pending_bytes == 0
                     or self._pending_bytes + max(nbytes, 1) <= self.max_pending_bytes))

    def _admit(self, nbytes, wait):
        """Reserve room for a job, waiting for it if asked to."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._closed or self._fits(nbytes))
            # Jobs may still submit while close() waits for them.
            if self._closed and wait:
                raise RuntimeError(
                    'this WriterQueue is closed; submit before close(), or make a new one')
            self._n_pending += 1
            self._pending_bytes += nbytes

    def _start(self, nbytes, func, args, kwargs):
        """Run an admitted job, here or in a thread."""
        try:
            if self._executor is not None:
                future = self._executor.submit(self._run, func, args, kwargs)
            else:
                future = self._run_now(func, args, kwargs)
        except BaseException:
            self._release(nbytes, None)
            raise
        # Not inside _run, because a cancelled job never gets there.
        future.add_done_callback(lambda done: self._release(nbytes, done))
        return future

    def _run(self, func, args, kwargs):
        """Run one job, marking the thread meanwhile."""
        self._inside.depth = getattr(self._inside, 'depth', 0) + 1
        try:
            return func(*args, **kwargs)
        finally:
            self._inside.depth -= 1

    def _run_now(self, func, args, kwargs):
        """Run one job in this thread; its error goes into the future."""
        future = Future()
        future.set_running_or_notify_cancel()
        try:
            future.set_result(self._run(func, args, kwargs))
        except Exception as ex:
            future.set_exception(ex)
        return future

    def _release(self, nbytes, future):
        """Give back the room of a job that has ended."""
        error = None
        if future is not None and not future.cancelled():
            error = future.exception()
        if error is not None:
            # Also for those who never come back to ask.
            logger.error('a job failed: %r', error)
        with self._changed:
            self._n_pending -= 1
            self._pending_bytes -= nbytes
            if error is not None:
                self._errors.append(error)
            self._changed.notify_all()

    def _wait(self, desc=None):
        """Wait until no job is pending."""
        if self._is_inside_job():
            raise RuntimeError(
                'a job waits for the queue that runs it, which would never end; '
                'wait outside of the job')
        if desc:
            logger.debug('%s: waiting for %d jobs', desc, self.n_pending)
        with self._changed:
            self._changed.wait_for(lambda: self._n_pending == 0)

    def _shut_down(self):
        """Refuse new jobs, then wait for the old ones and end the threads."""
        if self._is_inside_job():
            raise RuntimeError('a job closes the queue that runs it; close it outside of the job')
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wait()
        if self._executor is not None:
            self._executor.shutdown(wait=True)

    def _take_errors(self):
        """Return the errors to raise, and forget them."""
        with self._changed:
            errors, self._errors = self._errors, []
        return errors

    def _raise_first(self, errors):
        """Raise the first error, if any, with the others noted on it."""
        if not errors:
            return
        first, *others = errors
        for ex in others:
            if hasattr(first, 'add_note'):  # Python >= 3.11
                first.add_note(f'another job failed too: {ex!r}')
        raise first
