"""
The stages of the predict loop: windows are read, predicted and stitched.

Each stage is an iterator over the one before, and may run in a thread of its
own. Which process a stage runs in is for others to say.
"""
from __future__ import annotations

import copy
import itertools
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cocoseg.coco.geometry import stitchspace_dsize
from cocoseg.coco.manifest import list_channels
from cocoseg.engine.prefetch import Prefetcher, iter_batches
from cocoseg.errors import OptionError, WindowShapeError
from cocoseg.grid.windows import WindowGrid


@dataclass(frozen=True)
class PredictLoop:
    """
    How windows are read and predicted; can be sent to workers if the predictor can.

    Attributes:
        runner (BatchRunner): calls the predictor.
        channels (str): of the input.
        space, window, overlap, fit, batch_size, prefetch, mask: of
            :func:`predict_dataset`, checked.
    """

    runner: Any
    channels: str
    space: str
    window: tuple
    overlap: tuple
    fit: str
    batch_size: int
    prefetch: int
    mask: str | None

    def make_reader(self, dset, image_id):
        """Return what reads windows of a dataset that has this image."""
        return WindowReader(dset, self.channels, self.space, image_id, check_mask(self.mask))

    def make_grid(self, read, image_id):
        """Return the windows of an image."""
        return WindowGrid(read.get_shape(image_id), self.window, self.overlap, self.fit)

    def fork(self):
        """Return one that counts for itself; the predictor is the same, and called in turn."""
        return replace(self, runner=self.runner.fork())

    def predict(self, read, windows):
        """
        Return an iterator over (image id, windows, predictions, images or None), by batch.

        Args:
            read (WindowReader): of the dataset.
            windows (dict[int, Iterable[Window]]): by image id.

        Returns:
            Prefetcher: to be closed.
        """
        inputs = Prefetcher(iter_inputs(read, windows, self.batch_size), self.prefetch)
        return Prefetcher(iter_predictions(self.runner, inputs), self.prefetch)

    def __call__(self, manager, read, grids, progress=None):
        """Predict images and hand them to a manager, which finishes them."""
        with self.predict(read, grids) as steps:
            if progress is not None:
                n_steps = sum(-(-len(grid) // self.batch_size) for grid in grids.values())
                steps = progress(steps, total=n_steps, desc='predict')
            stitch_steps(manager, grids, steps)


def check_mask(mask):
    """
    Return the channel that masks the inputs, if there is one.

    Example:
        >>> check_mask('valid'), check_mask('nodata'), check_mask(None)
        ('valid', None, None)
    """
    if mask is not None and (not isinstance(mask, str) or len(list_channels(mask)) != 1):
        raise OptionError(f"mask={mask!r} must be 'nodata', or one channel that is 0 where masked")
    return None if mask == 'nodata' else mask


def iter_inputs(read, windows_of, batch_size):
    """Yield (image id, windows, images) batch by batch."""
    for image_id, all_windows in windows_of.items():
        for windows in iter_batches(all_windows, batch_size):
            yield image_id, windows, [read(image_id, window) for window in windows]


def iter_predictions(run, inputs):
    """Yield (image id, windows, predictions, images or None for each) batch by batch."""
    def predict(image_id, windows, images):
        found = run(images, windows)
        return image_id, windows, found, (
            images if run.keeps_images else itertools.repeat(None, len(images)))

    # No loop over the inputs, which would keep one alive beyond its turn.
    with inputs:
        yield from itertools.starmap(predict, inputs)


def stitch_steps(manager, grids, steps):
    """Accumulate predictions, and submit each image when it is complete."""
    current = None
    for image_id, windows, predictions, images in steps:
        if image_id != current:
            # Not earlier: a declared image is an open one.
            current, (height, width) = image_id, grids[image_id].shape
            manager.expect_windows(image_id, grids[image_id], asset_dsize=(width, height))
        for window, prediction, image in zip(windows, predictions, images):
            manager.accumulate_image(image_id, window, prediction, values=image)
        for ready in manager.ready_image_ids():
            manager.submit_finalize_image(ready)


class WindowReader:
    """Read the input of one window, aligned in stitching space."""

    def __init__(self, dset, channels, space, first_id, mask=None):
        self._dset, self._space, self._mask = dset, space, mask
        if channels is None:
            names = dset.coco_image(first_id).channels.fuse().as_list()
            channels = '|'.join(name for name in names if name != mask)
        self.channels = channels
        self._names = set(list_channels(channels)) | ({mask} - {None})
        self._n_bands = len(list_channels(channels))
        self._open = (None, None, None)

    def get_shape(self, image_id):
        """Return (H, W) of an image in stitching space."""
        img = self._dset.index.imgs[image_id]
        video = self._dset.index.videos.get(img.get('video_id'))
        return stitchspace_dsize(img, video, self._space)[::-1]

    def _get_delayed(self, image_id):
        if self._open[0] != image_id:
            coco_img = self._dset.coco_image(image_id)
            present = set(coco_img.channels.fuse().as_list())
            if not self._names <= present:
                raise OptionError(
                    f'image {image_id} has no channels {sorted(self._names - present)}, only '
                    f'{sorted(present)}; choose other channels, or leave it out of image_ids')
            space = self._space if coco_img.img.get('video_id') is not None else 'image'
            delayed = coco_img.imdelay(self.channels, space=space, nodata_method='float')
            # As it is stored: its nodata may be 0, which is what masks.
            mask = None if self._mask is None else coco_img.imdelay(
                self._mask, space=space, interpolation='nearest', nodata_method=None)
            self._open = (image_id, delayed, mask)
        return self._open[1:]

    def __call__(self, image_id, window):
        """Return float32 (h, w, B), NaN outside the image, where masked and where no data is."""
        delayed, mask = self._get_delayed(image_id)
        inside = window.clip(self.get_shape(image_id))
        valid = None if mask is None else self._read_mask(mask, inside)
        if valid is not None and not valid.any():
            return np.full((*window.shape, self._n_bands), np.nan, np.float32)
        data = np.asarray(delayed.crop(inside.slices).finalize(), np.float32)
        if valid is not None and not valid.all():
            data = np.where(valid, data, np.float32(np.nan))
        if inside == window:
            return data
        out = np.full((*window.shape, data.shape[2]), np.nan, np.float32)
        out[inside.within(window).slices] = data
        return out

    @staticmethod
    def _read_mask(mask, window):
        """Return bool (h, w, 1), True where the channel of the mask is neither 0 nor NaN."""
        found = np.asarray(mask.crop(window.slices).finalize(
            interpolation='nearest', antialias=False)).reshape(*window.shape, 1)
        return (found != 0) & ~np.isnan(found)


class BatchRunner:
    """
    Call the predictor, and check and mask what it returns.

    Attributes:
        n_windows, n_skipped (int): that were asked for, and not predicted.

    Thread-safety: each thread has a :meth:`fork`; one at a time is in the predictor.
    """

    # True where stitching needs what was predicted on.
    keeps_images = False

    def __init__(self, predictor, batch_size, is_labels=False, skips=False):
        if not callable(predictor):
            raise OptionError(f'predictor={predictor!r} cannot be called')
        if batch_size < 1:
            raise OptionError(f'batch_size={batch_size} must be at least 1')
        if batch_size > 1 and not hasattr(predictor, 'predict_batch'):
            raise OptionError(f'batch_size={batch_size} needs a predictor with predict_batch; '
                              f'{predictor!r} has none, use batch_size=1')
        self.predictor, self._batched = predictor, batch_size > 1
        self.is_labels, self.skips = is_labels, skips
        # K of what is not predicted, known once the output is.
        self.n_channels = None
        self.n_windows = self.n_skipped = 0
        self._turn = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != '_turn'}

    def __setstate__(self, state):
        vars(self).update(state, _turn=threading.Lock())

    def fork(self):
        """Return one that counts for itself, of the same predictor, for another thread."""
        other = copy.copy(self)
        other._turn, other.n_windows, other.n_skipped = self._turn, 0, 0
        return other

    def __call__(self, images, windows):
        """Return one (h, w, K) prediction per window, and do not predict those without data."""
        self.n_windows += len(images)
        todo = [number for number, image in enumerate(images)
                if not self.skips or not np.isnan(image).all()]
        self.n_skipped += len(images) - len(todo)
        if len(todo) == len(images):
            return self.predict(images, windows)
        found = [self._make_empty(window) for window in windows]
        if todo:
            predictions = self.predict([images[number] for number in todo],
                                       [windows[number] for number in todo])
            for number, prediction in zip(todo, predictions):
                found[number] = prediction
        return found

    def _make_empty(self, window):
        """Return the prediction where no data is."""
        if self.is_labels:
            return np.zeros((*window.shape, 1), np.int32)
        return np.full((*window.shape, self.n_channels), np.nan, np.float32)

    def predict(self, images, windows):
        """Return one (h, w, K) prediction per window."""
        for image in images:
            image.flags.writeable = False
        with self._turn:
            if self._batched:
                found = list(self.predictor.predict_batch(np.stack(images)))
            else:
                found = [self.predictor(image) for image in images]
        if len(found) != len(images):
            raise WindowShapeError(f'the predictor returned {len(found)} predictions for a '
                                   f'batch of {len(images)} windows')
        return [self._mask(image, prediction, window)
                for image, prediction, window in zip(images, found, windows)]

    def _mask(self, image, prediction, window):
        if hasattr(prediction, 'detach'):
            prediction = prediction.detach().cpu().numpy()
        prediction = np.asarray(prediction)
        if prediction.ndim == 2:
            prediction = prediction[..., None]
        if prediction.ndim != 3 or prediction.shape[:2] != window.shape:
            raise WindowShapeError(
                f'the predictor returned shape {prediction.shape} for {window}, which needs '
                f'{(*window.shape, "K")}; a predictor keeps height and width')
        empty = np.isnan(image).all(axis=2)
        if empty.any():
            # Zeros of its own type, in place of ids.
            prediction = np.where(empty[..., None], prediction.dtype.type(0) if self.is_labels
                                  else np.nan, prediction)
        return prediction
