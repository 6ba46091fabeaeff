"""
One image across workers: they predict its windows, and the caller stitches.

For an image that is too large to wait for one worker. A task is a run of
windows, about a row of the grid, which a worker reads and predicts as it would
alone. What it predicted goes through a file beside the assets; the caller adds
all windows to one stitcher, in the order of the grid, so that no border between
workers exists, and the bytes are those of one process.
"""
from __future__ import annotations

import contextlib
import itertools
import os
import secrets
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.coco.predict_steps import stitch_steps
from cocoseg.coco.remote import cut_dataset, open_dataset
from cocoseg.engine.sharing import choose_task_length
from cocoseg.errors import WindowShapeError

# Where an array may begin in a file, bytes.
_ALIGNMENT = 64


@dataclass(frozen=True)
class WindowsTask:
    """
    A run of windows of one image, in the order of the grid.

    Attributes:
        image_id (int): of kwcoco.
        name (str | None): of the image, for messages.
        dataset (dict): a kwcoco dataset of this image alone, as JSON has it.
        fpath (str): of the manifest that is written in the end.
        number (int): of the first window, over all images of a run.
        windows (tuple[Window, ...]): to predict.
    """

    image_id: int
    name: str | None
    dataset: dict
    fpath: str
    number: int
    windows: tuple

    def __str__(self):
        return (f'image {self.image_id} {self.name!r}, windows {self.windows[0]} to '
                f'{self.windows[-1]}')


@dataclass(frozen=True)
class StoredPart:
    """Arrays in one file: its name, and (dtype, shape) of each."""

    name: str
    arrays: tuple


class PartFiles:
    """
    A folder of predictions that are done and not yet stitched. Can be pickled.

    Args:
        folder (str): must exist, and be seen by all workers under this name.

    Example:
        >>> import tempfile
        >>> from cocoseg.coco.remote_windows import PartFiles
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = PartFiles(folder)
        ...     part = files.save(3, [np.ones((1, 2), 'f4'), np.array([True])])
        ...     arrays = [array.tolist() for array in files.load(part)]
        ...     files.remove(part)
        ...     arrays, os.listdir(folder)
        ([[[1.0, 1.0]], [True]], [])
    """

    def __init__(self, folder):
        self._folder = folder

    def save(self, number, arrays):
        """
        Write arrays to a new file, which appears when it is whole.

        Raises:
            WindowShapeError: if they hold Python objects.
        """
        # A task that is done twice, as its worker seemed dead, has two files.
        name = f'{number}-{secrets.token_hex(4)}.raw'
        path = os.path.join(self._folder, name)
        temporary = f'{path}.tmp'
        try:
            with open(temporary, 'xb') as file:
                for array in arrays:
                    if array.dtype.hasobject:
                        raise WindowShapeError(f'a prediction is of {array.dtype}; a predictor '
                                               'returns numbers')
                    file.write(bytes(-file.tell() % _ALIGNMENT))
                    file.write(np.ascontiguousarray(array).data.cast('B') if array.size else b'')
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        return StoredPart(name, tuple((array.dtype.str, array.shape) for array in arrays))

    def load(self, part):
        """Return the arrays of a file, mapped, not to be written to."""
        data = np.memmap(os.path.join(self._folder, part.name), np.uint8, 'r')
        found, stop = [], 0
        for dtype, shape in part.arrays:
            start = stop + -stop % _ALIGNMENT
            stop = start + np.dtype(dtype).itemsize * int(np.prod(shape, dtype=np.int64))
            found.append(np.asarray(data[start:stop]).view(dtype).reshape(shape))
        return found

    def remove(self, part):
        """Remove a file; what is mapped of it stays until it is let go of."""
        os.unlink(os.path.join(self._folder, part.name))


@dataclass(frozen=True)
class WindowsWork:
    """
    Predict a run of windows; what a worker does.

    Attributes:
        loop (PredictLoop): reads and predicts.
        files (PartFiles): where predictions go.
    """

    loop: Any
    files: PartFiles

    def __call__(self, task):
        """Return where the predictions are, and counts of windows."""
        loop = self.loop.fork()
        read = loop.make_reader(open_dataset(task), task.image_id)
        predictions, images = [], []
        with loop.predict(read, {task.image_id: task.windows}) as steps:
            for _, _, found, seen in steps:
                predictions += found
                images += seen if loop.runner.keeps_images else ()
        return (self.files.save(task.number, predictions + images),
                (loop.runner.n_windows, loop.runner.n_skipped))


def predict_windows_of(manager, loop, grids, executor, progress=None):
    """
    Predict the windows of images on the workers of an executor, and stitch them here.

    Args:
        manager (CocoStitchingManager): finishes the images.
        loop (PredictLoop): what workers do.
        grids (dict[int, WindowGrid]): by image id.
        executor (Executor): that shares no memory.
        progress (Callable | None): wraps an iterable.

    Raises:
        TaskError: if a run of windows fails; from its error. Images that are
            finished are registered.
    """
    n_windows = {image_id: choose_task_length(grid, loop.batch_size, manager.num_bands,
                                              executor.n_workers)
                 for image_id, grid in grids.items()}
    n_tasks = sum(-(-len(grid) // n_windows[image_id]) for image_id, grid in grids.items())
    with manager.delegate().open_folder() as folder:
        files = PartFiles(folder)
        steps = executor.run(WindowsWork(loop, files), _iter_tasks(manager, grids, n_windows),
                             describe=str, ordered=True)
        with contextlib.closing(steps):
            shown = steps if progress is None else progress(steps, total=n_tasks, desc='predict')
            stitch_steps(manager, grids, _iter_loaded(shown, files, loop.runner))


def _iter_tasks(manager, grids, n_windows):
    number = itertools.count()
    for image_id, grid in grids.items():
        dataset, name = cut_dataset(manager, image_id)
        windows = iter(grid)
        while chosen := tuple(itertools.islice(windows, n_windows[image_id])):
            yield WindowsTask(image_id, name, dataset, manager.manifest.fpath, next(number),
                              chosen)


def _iter_loaded(steps, files, runner):
    """Yield (image id, windows, predictions, images or None for each) of tasks that are done."""
    for task, (part, (n_windows, n_skipped)) in steps:
        runner.n_windows += n_windows
        runner.n_skipped += n_skipped
        arrays, n_own = files.load(part), len(task.windows)
        yield (task.image_id, task.windows, arrays[:n_own],
               arrays[n_own:] if runner.keeps_images else itertools.repeat(None, n_own))
        files.remove(part)
