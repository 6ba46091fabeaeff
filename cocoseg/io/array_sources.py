"""
Sources of blocks beside rasters and Zarr: arrays, memory maps, delayed images.

Each satisfies :class:`cocoseg.protocols.BlockSource`. Those that can be opened
again by name are pickled as that name, so that a task for another process
carries a path and not an image.
"""
from __future__ import annotations

import copy
import os
import threading
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window
from cocoseg.io.dataset import check_mask
from cocoseg.io.strips import Source


def check_pixels(dtype, name):
    """
    Raise OptionError unless pixels are numbers that we compute with.

    Example:
        >>> from cocoseg.io.array_sources import check_pixels
        >>> check_pixels(np.dtype('bool'), 'mask')
    """
    if dtype.kind not in 'biuf' or dtype.itemsize > 8:
        raise OptionError(f'{name} has pixels of type {dtype}; give whole numbers or floats')


@dataclass(frozen=True)
class MappedPlace:
    """
    Where a part of a memory map lies in its file.

    Attributes:
        fpath (str): the file.
        start (int): of the first pixel, bytes.
        shape, strides (tuple[int, ...]): of the part; strides in bytes.
        dtype (np.dtype): of its pixels.
    """

    fpath: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype

    @classmethod
    def find(cls, array):
        """
        Return the place of an array in a file, or None.

        Args:
            array (ndarray): None for any but a view of a memory map of a file
                that shows what the file holds.
        """
        root = array
        while isinstance(root.base, np.ndarray):
            root = root.base
        if not isinstance(root, np.memmap) or root.filename is None or root.mode == 'c':
            return None
        first, zero = (one.__array_interface__['data'][0] for one in (array, root))
        return cls(str(root.filename), root.offset + first - zero, array.shape, array.strides,
                   array.dtype)

    def open(self):
        """Return the part, read-only, shape and dtype as they were."""
        mapped = np.memmap(self.fpath, np.uint8, 'r')
        return np.ndarray(self.shape, self.dtype, mapped, self.start, self.strides)


class MappedSource(Source):
    """
    The source of an image in a memory map, which other processes open again.

    Example:
        >>> from cocoseg.io.array_sources import MappedSource
        >>> import numpy as np, os, pickle, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.npy')
        >>>     np.save(fpath, np.arange(10 ** 6).reshape(1000, 1000))
        >>>     source = MappedSource.open(np.load(fpath, mmap_mode='r')[10:])
        >>>     data = pickle.dumps(source)
        >>>     assert pickle.loads(data).read_rows(0, 1)[0, 5] == 10_005
        >>> assert len(data) < 1000
    """

    def __reduce__(self):
        return _open_mapped, (type(self), MappedPlace.find(self.pixels), self.name)


def _open_mapped(kind, place, name):
    return kind.open(place.open(), name)


@dataclass(frozen=True)
class VolumeSource:
    """
    The source of a volume in memory, or in a memory map.

    Make it with :meth:`open`.

    Attributes:
        name (str): what it is, for messages.
        pixels (ndarray): shape (D, H, W, C); not a copy.
    """

    name: str
    pixels: np.ndarray

    @classmethod
    def open(cls, pixels, name='volume'):
        """
        Return the source of a volume.

        Args:
            pixels (ndarray): whole numbers or floats, shape (D, H, W) or
                (D, H, W, C). Kept, not copied; never modified.
            name (str): what it is, for messages.

        Raises:
            OptionError: for another array, or an empty one.

        Example:
            >>> from cocoseg import Box
            >>> from cocoseg.io.array_sources import VolumeSource
            >>> source = VolumeSource.open(np.arange(24).reshape(2, 3, 4))
            >>> source.shape, source.read(Box((1, 2, 3), (2, 3, 4))).tolist()
            ((2, 3, 4, 1), [[[[23]]]])
        """
        check_mask(pixels)
        pixels = np.asarray(pixels)
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or 0 in pixels.shape:
            raise OptionError(f'{name} has shape {pixels.shape}; give (D, H, W) or (D, H, W, C), '
                              'nothing empty')
        check_pixels(pixels.dtype, name)
        return cls(name, pixels)

    @property
    def shape(self):
        """(D, H, W, C), px."""
        return self.pixels.shape

    @property
    def dtype(self):
        """Type of what is read."""
        return self.pixels.dtype

    def read(self, box):
        """Return a view of the voxels of a box inside; do not write to it."""
        return self.pixels[box.slices]

    def __reduce__(self):
        place = MappedPlace.find(self.pixels)
        if place is None:
            return type(self), (self.name, self.pixels)
        return _open_mapped, (type(self), place, self.name)


class DelayedSource:
    """
    The source of a delayed image, which is computed where it is read.

    Args:
        delayed (delayed_image.DelayedOperation): with (h, w) in ``dsize``.
        name (str): what it is, for messages.

    Raises:
        OptionError: if its size is unknown, or its pixels are no numbers.

    Note:
        One thread reads at a time: the tree holds open files. It cannot be
        pickled, for the same reason; a :class:`CocoSource` can do both.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.array_sources import DelayedSource
        >>> from delayed_image import DelayedIdentity
        >>> delayed = DelayedIdentity(np.ones((3, 4), np.float32), dsize=(4, 3))
        >>> source = DelayedSource(delayed.scale(2), 'twice')
        >>> source.shape, source.read(Window(0, 0, 2, 3)).shape
        ((6, 8, 1), (2, 3, 1))
    """

    def __init__(self, delayed, name='image'):
        self.name = name
        self._delayed = delayed
        self._lock = threading.Lock()
        width, height = delayed.dsize or (None, None)
        if not width or not height:
            raise OptionError(f'{name} has the size (w, h) {delayed.dsize}; prepare() the delayed '
                              'image, which must not be empty')
        probe = self._compute(Window(0, 0, 1, 1))
        check_pixels(probe.dtype, name)
        self.shape, self.dtype = (int(height), int(width), probe.shape[2]), probe.dtype

    def read(self, window):
        """
        Compute a window inside the image.

        Args:
            window (Window): px of the delayed image.

        Returns:
            ndarray: shape (h, w, C), C-contiguous.

        Raises:
            CoverageError: if the window leaves the image.
        """
        if not Window.from_shape(self.shape).contains(window):
            raise CoverageError(f'{window} leaves {self.name} of shape {self.shape}; clip it first')
        return np.ascontiguousarray(self._compute(window), self.dtype)

    def _compute(self, window):
        with self._lock:
            return _finalize(self._delayed, window)

    def __reduce__(self):
        raise OptionError(f'{self.name} is a delayed image, which holds open files and cannot go '
                          'to another process; give the CocoImage itself, or use threads')


def _finalize(delayed, window):
    """Return the pixels of a window, shape (h, w, C)."""
    data = delayed.crop(window.slices).finalize()
    check_mask(data)
    data = np.asarray(data)
    return data[:, :, None] if data.ndim == 2 else data


class CocoSource(DelayedSource):
    """
    The source of channels of an image of a kwcoco dataset, NaN where no data is.

    Threads and processes that read it open the files for themselves.

    Args:
        coco_image (kwcoco.CocoImage): not modified, and not kept: what is
            needed of it is copied.
        channels (str | None): such as 'red|green'; None is all.
        space (str): 'image' or 'video'; an image of no video has only the first.
        name (str): what it is, for messages.

    Attributes:
        channels (tuple[str, ...]): one per band.
        fpaths (tuple[str, ...]): the files of the image.

    Raises:
        OptionError: if a channel is missing, or there is none.
    """

    def __init__(self, coco_image, channels=None, space='image', name='image'):
        present = coco_image.channels.fuse().as_list()
        if channels is None:
            channels = '|'.join(present)
        if space not in ('image', 'video'):
            raise OptionError(f"space={space!r} must be 'image' or 'video'")
        if space == 'video' and coco_image.img.get('video_id') is None:
            raise OptionError(f"{name} belongs to no video; use space='image'")
        # The dataset stays here: a task carries one image of it.
        self._image = copy.copy(coco_image).detach()
        self._bundle = str(coco_image.bundle_dpath)
        self._channels, self._space = channels, space
        self._local = threading.local()
        delayed = self._make_delayed()
        wanted = delayed.channels.fuse().as_list()
        if not wanted or not set(wanted) <= set(present):
            raise OptionError(f'{name} has no channels {sorted(set(wanted) - set(present))}, only '
                              f'{present}; choose some of these')
        super().__init__(delayed, name)
        self.channels = tuple(wanted)
        self.fpaths = tuple(os.path.join(self._bundle, obj['file_name'])
                            for obj in coco_image.iter_asset_objs() if obj.get('file_name'))

    def _make_delayed(self):
        return self._image.imdelay(self._channels, space=self._space, nodata_method='float',
                                   bundle_dpath=self._bundle)

    def _compute(self, window):
        # Files that one thread has open are not for another.
        delayed = getattr(self._local, 'delayed', None)
        if delayed is None:
            delayed = self._local.delayed = self._make_delayed()
        return _finalize(delayed, window)

    def __reduce__(self):
        return _reopen_coco, (self._image, self._bundle, self._channels, self._space, self.name)


def _reopen_coco(image, bundle, channels, space, name):
    image.bundle_dpath = bundle
    return CocoSource(image, channels, space, name)
