"""
The way from a complete image to a registered asset, on the writer queue.

Owns the queue, the tasks on it, and the errors that nobody has seen yet.
"""
from __future__ import annotations

import logging
import threading

from cocoseg.coco.finalize import finish_image
from cocoseg.errors import AssetWriteError

logger = logging.getLogger(__name__)


class FinishTask:
    """
    The callable that a queue runs; ``nbytes`` is what waits in memory for it.

    It never raises: a queue would report the error to whoever comes next. The
    error stays with its image, and with the finisher that asks for it.
    """

    def __init__(self, finisher, job):
        self._finisher = finisher
        self._job = job
        self._turn = threading.Lock()
        self.nbytes = job.nbytes
        self.future = None
        self.is_finished = False

    def __call__(self):
        if not self._turn.acquire(blocking=False):
            return None
        try:
            return self._finisher.run(self._job)
        finally:
            self.is_finished = True

    def abandon(self):
        """Return True if the task had not started; then it never will."""
        return self._turn.acquire(blocking=False)


class Finisher:
    """
    Finish images now, or on a queue.

    Args:
        table (JobTable): told how each image ends.
        manifest (Manifest): gets the records.
        journal (Journal): gets them first.
        queue (JobQueue | Executor | None): see :class:`CocoStitchingManager`.

    Thread-safety: all methods may be called from any thread.
    """

    def __init__(self, table, manifest, journal, queue=None):
        self._table, self._manifest, self._journal = table, manifest, journal
        self._lock = threading.Lock()
        self._queue, self._owns_queue = queue, False
        self._tasks = []
        self._errors = []

    @property
    def queue(self):
        """The writer queue, made on first use."""
        with self._lock:
            if self._queue is None:
                from cocoseg.io.queue import WriterQueue
                self._queue, self._owns_queue = WriterQueue(workers=1), True
            return self._queue

    @queue.setter
    def queue(self, queue):
        with self._lock:
            old, owned = self._queue, self._owns_queue
            self._queue, self._owns_queue = queue, False
        if owned:
            old.close()

    def run(self, job):
        """Finish one image; return its figures, or None and keep the error."""
        try:
            record, info = finish_image(job)
            self._journal.append(record)
            self._manifest.commit(record, self._table.replace)
        except BaseException as ex:
            self._fail(job, ex)
            if not isinstance(ex, Exception):
                raise
            return None
        if info['n_clipped']:
            logger.warning('image %s: %d values were clipped to %s', job.image_id,
                           info['n_clipped'], job.options.expected_minmax)
        self._table.finish(job)
        return info

    def _fail(self, job, cause):
        error = AssetWriteError(
            f'image {job.image_id}: {job.fpath} could not be finished: {cause}; its data is '
            'kept, mend the cause and submit the image again', job.image_id, job.fpath)
        error.__cause__ = cause
        self._table.fail(job, error)
        with self._lock:
            self._errors.append(error)

    def run_now(self, job):
        """Finish one image; return its figures, or raise its error."""
        info = self.run(job)
        if info is None:
            with self._lock:
                self._errors.remove(job.error)
            raise job.error
        return info

    def submit(self, job):
        """Put an image on the queue; may block while that is full."""
        task = FinishTask(self, job)
        try:
            task.future = self.queue.submit(task)
        except BaseException as ex:
            # A shared queue may report somebody else's error here, and whether
            # it kept our task is not known.
            if task.abandon():
                self._fail(job, ex)
            raise
        with self._lock:
            self._tasks = [old for old in self._tasks if not old.is_finished]
            self._tasks.append(task)

    def wait(self):
        """Return when every submitted image has ended, well or not."""
        queue = self._queue
        if hasattr(queue, 'wait_until_finished'):
            queue.wait_until_finished()
        # Executors and lazy futures have nothing else to wait for.
        with self._lock:
            tasks, self._tasks = self._tasks, []
        for task in tasks:
            if not task.is_finished and hasattr(task.future, 'result'):
                task.future.result()

    def raise_pending(self):
        """Raise the oldest error that nobody has seen; each is raised once."""
        with self._lock:
            if self._errors:
                raise self._errors.pop(0)

    def close(self):
        """Close the queue if it is ours."""
        with self._lock:
            queue, owned = self._queue, self._owns_queue
        if owned:
            queue.close()
