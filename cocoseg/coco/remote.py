"""
Images across workers: each predicts one at a time, and writes its files.

What travels is small: an image's entry in the manifest, the names of its files,
the predictor and the settings; and back, the record for the journal. A worker
sees the files of the bundle, and nothing of the manifest. Its files have the
names of temporaries until the caller takes them, so that a worker that is late
harms no other run. Images that are too large to wait for one worker go by
:mod:`cocoseg.coco.remote_windows`.
"""
from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from cocoseg.coco.manager import CocoStitchingManager
from cocoseg.coco.manifest import get_manifest
from cocoseg.errors import OptionError


@dataclass(frozen=True)
class ImageTask:
    """
    An image to predict, and where its files go.

    Attributes:
        image_id (int): of kwcoco.
        name (str | None): of the image, for messages.
        dataset (dict): a kwcoco dataset of this image alone, as JSON has it.
        fpath (str): of the manifest that is written in the end.
        files (dict[str, str]): absolute path by channels, of temporaries.
    """

    image_id: int
    name: str | None
    dataset: dict
    fpath: str
    files: dict

    def __str__(self):
        return f'image {self.image_id} {self.name!r}'


@dataclass(frozen=True)
class ImageWork:
    """
    Predict one image and write its files; what a worker does.

    Attributes:
        loop (PredictLoop): reads, predicts, and stitches.
        options (dict): of the manager.
    """

    loop: Any
    options: dict

    def __call__(self, task):
        """Return the record of an image, as the journal has it, and counts of windows."""
        loop = self.loop.fork()
        dset = open_dataset(task)
        get_manifest(dset).give_files(task.image_id, task.files)
        with _WorkerManager(dset, **self.options) as manager:
            read = loop.make_reader(dset, task.image_id)
            loop(manager, read, {task.image_id: loop.make_grid(read, task.image_id)})
            manager.flush_images()
        record, = manager.records
        return record, (loop.runner.n_windows, loop.runner.n_skipped)


class _WorkerManager(CocoStitchingManager):
    """A manager that notes nothing, but keeps the records of what it finished."""

    def _make_journal(self, config, texts):
        self._keeper = _RecordKeeper()
        return self._keeper

    @property
    def records(self):
        """One per finished image."""
        return self._keeper.records


class _RecordKeeper:
    """What a manager needs of a journal, in memory."""

    fpath = None

    def __init__(self):
        self.records = []

    def begin(self, resume=False):
        """There is nothing from before."""
        return []

    def ensure(self):
        """The manager of all images has the folder."""

    def append(self, record):
        """Keep a record."""
        self.records.append(record)

    def close(self):
        """Nothing is open."""


def open_dataset(task):
    """
    Return the dataset of an image that a worker has to do.

    Args:
        task (ImageTask | WindowsTask): with ``dataset`` and ``fpath``.
    """
    import kwcoco
    dset = kwcoco.CocoDataset(task.dataset)
    dset.fpath = task.fpath
    return dset


def predict_images(manager, loop, image_ids, options, executor, progress=None):
    """
    Predict images on the workers of an executor, one on each at a time.

    Args:
        manager (CocoStitchingManager): of all images; names files, and gets
            the records.
        loop (PredictLoop): what workers do.
        image_ids (Sequence[int]): to do.
        options (dict): of the manager.
        executor (Executor): that shares no memory.
        progress (Callable | None): wraps an iterable.

    Raises:
        OptionError: for options that cannot be sent.
        TaskError: if an image fails; from its error. Finished ones are
            registered, and need not be done again with ``resume=True``.
    """
    if options.get('writer_queue') is not None:
        raise OptionError('writer_queue cannot be sent to workers; leave it out, each has its own')
    delegate = manager.delegate()
    # What was done before is not sent to workers.
    sent = {name: value for name, value in options.items() if name not in ('resume',
                                                                           'writer_queue')}
    work = ImageWork(loop, {**sent, 'dump_interval': None})
    tasks = (_make_task(manager, delegate, image_id) for image_id in image_ids)
    steps = executor.run(work, tasks, describe=str)
    with contextlib.closing(delegate), contextlib.closing(steps):
        for _, (record, (n_windows, n_skipped)) in (steps if progress is None else
                          progress(steps, total=len(image_ids), desc='predict')):
            delegate.take(record)
            loop.runner.n_windows += n_windows
            loop.runner.n_skipped += n_skipped


def _make_task(manager, delegate, image_id):
    files = delegate.reserve(image_id)
    dataset, name = cut_dataset(manager, image_id)
    return ImageTask(image_id, name, dataset, manager.manifest.fpath, files)


def cut_dataset(manager, image_id):
    """Return a dataset of one image, as JSON has it, and the name of the image."""
    dset = manager.result_dataset
    with manager.manifest.lock:
        img = dset.index.imgs[image_id]
        video = dset.index.videos.get(img.get('video_id'))
        dataset = {'images': [dict(img)], 'videos': [dict(video)] if video else [],
                   'categories': [dict(cat) for cat in dset.dataset.get('categories', ())],
                   'annotations': []}
    return dataset, img.get('name')
