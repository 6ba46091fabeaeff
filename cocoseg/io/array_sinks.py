"""
Where blocks of a run end up: an array, a GeoTIFF, a Zarr array, or another sink.

An :class:`OutputSink` takes each pixel exactly once and has two ends:
``commit`` gives the output its name, ``abort`` leaves nothing of it. Which of
them a path or an array gets is decided in :mod:`cocoseg.io.arrays`.
"""
from __future__ import annotations

import math
import shutil
import threading

import numpy as np

from cocoseg.errors import (
    CocosegError, CoverageError, ImageClosedError, OptionError, WindowShapeError)
from cocoseg.grid.box import Box
from cocoseg.grid.window import Window
from cocoseg.io.commit import as_write_error
from cocoseg.io.exactness import check_holds
from cocoseg.io.zarr_array import ZarrArray
from cocoseg.io.zarr_place import make_temporary, place_array
from cocoseg.io.zarr_store import create_zarr


class OutputSink:
    """
    Take finished blocks, and end as a whole or not at all.

    Leaving a ``with`` block commits, or aborts after an exception. Satisfies
    :class:`cocoseg.protocols.BlockSink`.

    Args:
        name (str): what it is, for messages.
        shape (tuple[int, ...]): (H, W, C) or (D, H, W, C), px.
        dtype (dtype): of the blocks; what they have may be narrower.

    Attributes:
        output (object): what :meth:`commit` returned, or None.

    Thread-safety: ``write_block`` may be called from any thread.
    """

    def __init__(self, name, shape, dtype):
        self.name, self.shape, self.dtype = name, tuple(shape), np.dtype(dtype)
        self.output = None
        self._is_open = True
        self._lock = threading.Lock()
        # Windows that are written, or being written.
        self._taken, self._n_written = set(), 0

    def write_block(self, window, block):
        """
        Take one block.

        Args:
            window (Window | Box): where it belongs, inside the output.
            block (ndarray): shape (h, w, C) or (d, h, w, C); without channels
                for one.

        Raises:
            CoverageError: if the window leaves the output, or was written
                before.
            WindowShapeError: for another shape.
            OptionError: if the output cannot hold its type exactly.
            ImageClosedError: after :meth:`commit` or :meth:`abort`.
            AssetWriteError: if it cannot be stored; it can be given again.
        """
        box = Box.from_slices(window.slices)
        block = self._check_block(window, box, block)
        with self._lock:
            if not self._is_open:
                raise ImageClosedError(f'{self.name} is closed already; open another sink')
            if box in self._taken:
                raise CoverageError(f'{window} of {self.name} was written before; give each '
                                    'block once')
            self._taken.add(box)
        try:
            self._store(window, block)
        except BaseException:
            with self._lock:
                self._taken.discard(box)
            raise
        with self._lock:
            self._n_written += box.size

    def _check_block(self, window, box, block):
        block = np.asarray(block)
        if block.ndim == box.ndim and self.shape[-1] == 1:
            block = block[..., None]
        if len(self.shape) != box.ndim + 1 or not Box.from_shape(self.shape[:-1]).contains(box):
            raise CoverageError(f'{window} leaves {self.name} of shape {self.shape}; clip it first')
        if block.shape != (*box.shape, self.shape[-1]):
            raise WindowShapeError(f'block has shape {block.shape} but {window} of {self.name} '
                                   f'needs {(*box.shape, self.shape[-1])}')
        check_holds(self.dtype, block.dtype, self.name)
        return block

    def commit(self, fill_missing=False):
        """
        Finish the output and return it.

        May be called again after an error, and after success returns the same.

        Args:
            fill_missing (bool): pixels that were not written stay what they
                are: 0 in what is new, nodata in a GeoTIFF, which must have one.

        Returns:
            object: the array, or the path (str).

        Raises:
            CoverageError: if pixels are missing.
            ImageClosedError: after :meth:`abort`.
            AssetWriteError: if it cannot be written; nothing is visible.
        """
        if self.output is not None:
            return self.output
        if not self._is_open:
            raise ImageClosedError(f'{self.name} was aborted; open another sink')
        wanted = math.prod(self.shape[:-1])
        if self._n_written != wanted and not fill_missing:
            raise CoverageError(f'{self.name} got {self._n_written} of {wanted} pixels; write the '
                                'other blocks, or commit with fill_missing=True')
        self.output = self._finish(fill_missing)
        self._is_open = False
        return self.output

    def abort(self):
        """Drop the output. Does nothing after :meth:`commit`, and may be called twice."""
        if self._is_open:
            self._is_open = False
            self._drop()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        try:
            if exc_type is None and self._is_open:
                self.commit()
        finally:
            self.abort()

    def _store(self, window, block):
        raise NotImplementedError

    def _finish(self, fill_missing):
        raise NotImplementedError

    def _drop(self):
        """Undo what is there; by default nothing."""


def check_array(pixels, name='array'):
    """
    Raise OptionError unless an array can be written to.

    Example:
        >>> from cocoseg.io.array_sinks import check_array
        >>> check_array(np.zeros(3))
    """
    if isinstance(pixels, np.ma.MaskedArray) or not pixels.flags.writeable:
        raise OptionError(f'{name} is masked or cannot be written to; give a plain, writable array')


class ArraySink(OutputSink):
    """
    Write into an array or a memory map, in place.

    Args:
        pixels (ndarray): of ``shape``, or without the axis of channels for one.
            After :meth:`abort` it keeps what was written until then.
        shape, dtype: see :class:`OutputSink`.
        name (str): what it is, for messages.

    Example:
        >>> from cocoseg import Window
        >>> from cocoseg.io.array_sinks import ArraySink
        >>> with ArraySink(np.zeros((2, 3)), (2, 3, 1), 'uint8') as sink:
        ...     sink.write_block(Window(0, 0, 2, 3), np.ones((2, 3, 1), 'uint8'))
        >>> sink.output.sum()
        np.float64(6.0)
    """

    def __init__(self, pixels, shape, dtype, name='array'):
        super().__init__(name, shape, dtype)
        if pixels.shape not in (self.shape, self.shape[:-1] if self.shape[-1] == 1 else None):
            raise OptionError(f'{name} has shape {pixels.shape}, the blocks are of {self.shape}; '
                              'give an array of that shape')
        check_array(pixels, name)
        check_holds(pixels.dtype, self.dtype, name)
        self._pixels = pixels
        self._view = pixels if pixels.ndim == len(self.shape) else pixels[..., None]

    def _store(self, window, block):
        self._view[window.slices] = block

    def _finish(self, fill_missing):
        if isinstance(self._pixels, np.memmap):
            self._pixels.flush()
        return self._pixels


class CogSink(OutputSink):
    """
    Write a Cloud-Optimized GeoTIFF.

    Args:
        writer (CogWriter): new. True and False become 1 and 0 of its uint8.
        dtype (dtype): see :class:`OutputSink`.
    """

    def __init__(self, writer, dtype):
        super().__init__(writer.fpath, writer.shape, dtype)
        check_holds(writer.dtype, self.dtype, writer.fpath)
        self._writer = writer

    def _store(self, window, block):
        place = Window.from_slices(window.slices)
        self._writer.write_block(place, block.astype(self._writer.dtype, copy=False))

    def _finish(self, fill_missing):
        self._writer.close(fill_missing)
        return self._writer.fpath

    def _drop(self):
        self._writer.abort()


class ZarrSink(OutputSink):
    """
    Write a new Zarr array, which appears as a whole.

    Until then it has a hidden name beside its container.

    Args:
        identifier (ArrayIdentifier): where it will be.
        layout (VolumeLayout): its axes, voxel size and offset.
        shape, dtype: see :class:`OutputSink`.
        block (int | tuple[int, ...]): extent of the blocks that are written, px;
            each is whole chunks.
        overwrite (bool): replace an array that is there.
        **options: ``name``, ``metadata`` and ``zarr_format`` of
            :func:`cocoseg.io.zarr_store.create_zarr`.
    """

    def __init__(self, identifier, layout, shape, dtype, *, block, overwrite=False, **options):
        super().__init__(str(identifier), shape, dtype)
        self._identifier, self._overwrite = identifier, overwrite
        self._temporary = make_temporary(identifier)
        try:
            data = create_zarr(self._temporary, layout, self.shape, self.dtype, block, **options)
        except BaseException:
            self._drop()
            raise
        self._array = ZarrArray(data, layout, name=self.name, mode='w-')

    def _store(self, window, block):
        try:
            self._array.write_block(window, block)
        except CocosegError:
            raise
        except OSError as ex:
            raise as_write_error(self.name, ex) from ex

    def _finish(self, fill_missing):
        try:
            place_array(self._temporary, self._identifier, self._overwrite)
        except OSError as ex:
            raise as_write_error(self.name, ex) from ex
        return self.name

    def _drop(self):
        shutil.rmtree(self._temporary, ignore_errors=True)


class PassingSink(OutputSink):
    """
    Pass blocks on to a sink that somebody else opened, and will close.

    Args:
        sink (BlockSink): gets each block once. Also a
            :class:`~cocoseg.io.zarr_array.ZarrArray`, which is written in place.
        shape, dtype: see :class:`OutputSink`.
        output (object): what :meth:`commit` returns; None is the sink.
    """

    def __init__(self, sink, shape, dtype, output=None):
        super().__init__(str(getattr(sink, 'name', type(sink).__name__)), shape, dtype)
        self._sink, self._result = sink, sink if output is None else output

    def _store(self, window, block):
        self._sink.write_block(window, block)

    def _finish(self, fill_missing):
        return self._result
