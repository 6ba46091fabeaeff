"""
The way from a complete image to a registered asset, on the writer queue.

Owns the queue, the tasks on it, and the errors that nobody has seen yet.
"""
from __future__ import annotations

import contextlib
import logging
import os
import threading

from cocoseg.coco.finalize import finish_image
from cocoseg.coco.manifest import list_files
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
        self.job = job
        self._turn = threading.Lock()
        self.nbytes = job.nbytes
        self.future = None
        self.is_finished = False

    def __call__(self):
        if not self._turn.acquire(blocking=False):
            return None
        try:
            return self._finisher.run(self.job)
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
        dumper (IntervalDumper): saves the manifest now and then.
        queue (JobQueue | Executor | None): see :class:`CocoStitchingManager`.

    Thread-safety: all methods may be called from any thread.
    """

    def __init__(self, table, manifest, journal, dumper, queue=None):
        self._table, self._manifest = table, manifest
        self._journal, self._dumper = journal, dumper
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

    def run_now(self, job):
        """
        Finish one image and return its figures.

        Raises:
            AssetWriteError: if that fails; the image can be tried again.
        """
        try:
            # Not a file is touched that somebody else may be writing.
            self.prepare()
            record, info = finish_image(job)
            self._journal.append(record)
            self._manifest.commit(record, self._table.replace)
        except BaseException as ex:
            error = self._fail(job, ex)
            if isinstance(ex, Exception):
                raise error from ex
            raise
        if info['n_clipped']:
            logger.warning('image %s: %d values were clipped to %s', job.image_id,
                           info['n_clipped'], job.options.expected_minmax)
        self._table.finish(job)
        self._dumper.save_if_due()
        return info

    def prepare(self):
        """Make sure that files may be written: nobody else does, and an old manifest is saved."""
        self._journal.ensure()
        self._dumper.prepare()

    def take(self, record, fpath):
        """Note and register an image whose files somebody else has written."""
        self.prepare()
        self._journal.append(record)
        self._manifest.commit(record, self._table.replace)
        self._table.take_over(record['image_id'], fpath)
        self._dumper.save_if_due()

    def run(self, job):
        """Finish one image; keep its error for :meth:`raise_pending`."""
        try:
            self.run_now(job)
        except AssetWriteError as ex:
            self._keep(ex)

    def _fail(self, job, cause):
        """Return the error of an image that could not be finished."""
        fpath = getattr(cause, 'path', None) or job.fpath
        what = f'image {job.image_id}' + (f': {fpath}' if fpath else '')
        error = AssetWriteError(f'{what} could not be finished: {cause}; its data is kept, mend '
                                'the cause and submit the image again', job.image_id, fpath)
        error.__cause__ = cause
        self._table.fail(job, error)
        return error

    def _keep(self, error):
        with self._lock:
            self._errors.append(error)

    def submit(self, job):
        """Put an image on the queue; may block while that is full."""
        task = FinishTask(self, job)
        queue = self.queue
        try:
            task.future = getattr(queue, 'enqueue', queue.submit)(task)
        except BaseException as ex:
            # A foreign queue may report somebody else's error here, and drop
            # our task; whether it did is not known.
            if not task.abandon():
                logger.error('the writer queue reported %r', ex)
            elif isinstance(ex, Exception):
                logger.error('the writer queue refused image %s (%r); it is finished here',
                             job.image_id, ex)
                self.run(job)
                return
            else:
                self._keep(self._fail(job, ex))
                raise
        with self._lock:
            self._tasks = [old for old in self._tasks if not old.is_finished]
            self._tasks.append(task)

    def wait(self):
        """
        Return when every submitted image has ended, well or not.

        Waits for our own tasks only: the errors of other users of a shared
        queue are not ours to raise, and must not end the wait early.
        """
        with self._lock:
            # Kept in the list, for whoever waits at the same time.
            tasks = [task for task in self._tasks if not task.is_finished]
        for task in tasks:
            self._wait_for(task)
        with self._lock:
            self._tasks = [task for task in self._tasks if task not in tasks]

    def _wait_for(self, task):
        try:
            if hasattr(task.future, 'result'):
                task.future.result()
            elif hasattr(self._queue, 'wait_until_finished'):
                self._queue.wait_until_finished()
        except BaseException as ex:
            if isinstance(ex, (KeyboardInterrupt, SystemExit)):
                raise
            logger.debug('waiting for a task ended with %r', ex)
        if task.abandon():
            # Cancelled, or dropped by its queue.
            self._keep(self._fail(task.job, RuntimeError('the writer queue did not run its job')))

    def raise_pending(self):
        """Raise the oldest error that nobody has seen; each is raised once."""
        with self._lock:
            if self._errors:
                raise self._errors.pop(0)

    def close(self):
        """Close the queue if it is ours, and the journal."""
        with self._lock:
            queue, owned = self._queue, self._owns_queue
        try:
            if owned:
                queue.close()
        finally:
            self._journal.close()


class Delegate:
    """
    Let others write the files of images; names, journal and manifest stay here.

    Made by ``CocoStitchingManager.delegate()``.

    Thread-safety: all methods may be called from any thread.
    """

    def __init__(self, table, finisher):
        self._table, self._finisher = table, finisher
        # Names of files by that of their temporaries, by image.
        self._names = {}

    def reserve(self, image_id):
        """
        Return the files of an image, which may be written from now on.

        Whoever writes them may be late, and the run be over then: their names
        are of this run, and :meth:`take` gives them those that are seen.

        Returns:
            dict[str, str]: path by channels.

        Raises:
            ChannelCollisionError: if the image has such channels.
            BundleBusyError: if somebody else writes to the folder.
        """
        from cocoseg.io.commit import make_temporary_name
        self._finisher.prepare()
        finals = self._table.reserve(image_id)
        files = {channels: make_temporary_name(final) for channels, final in finals.items()}
        self._names[image_id] = {files[channels]: final for channels, final in finals.items()}
        return files

    def take(self, record):
        """
        Name the files of an image, note it in the journal, and register it.

        Args:
            record (dict): what :func:`finish_image` told; taken over.

        Raises:
            AssetWriteError: if a file is not there, or cannot be named.
        """
        from cocoseg.io.commit import place_file
        bundle, placed = self._table.manifest.bundle_dpath, []
        names = self._names.pop(record['image_id'])
        for file in list_files(record):
            temp = os.path.join(bundle, file['asset']['file_name'])
            final = names[os.path.abspath(temp)]
            try:
                place_file(temp, final)
            except OSError as ex:
                raise AssetWriteError(f'{final}, which a worker has written, could not be named: '
                                      f'{ex}; all processes must see one folder, under one name',
                                      record['image_id'], final) from ex
            file['asset']['file_name'] = os.path.relpath(final, bundle)
            placed.append(final)
        self._finisher.take(record, placed[0] if placed else None)

    def close(self):
        """Remove what was written of images that nobody took, as the run has failed."""
        from cocoseg.io.commit import abandon_temporary
        while self._names:
            _, names = self._names.popitem()
            for temp in names:
                abandon_temporary(temp)

    @contextlib.contextmanager
    def open_folder(self):
        """
        Make a hidden folder beside the assets, for what waits to be stitched; remove it then.

        Yields:
            str: its path.

        Raises:
            BundleBusyError: if somebody else writes to the folder of assets.
        """
        from cocoseg.io.commit import temporary_folder
        self._finisher.prepare()
        with temporary_folder(os.path.join(self._table.folder, 'windows')) as folder:
            yield folder
