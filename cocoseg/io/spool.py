"""
A place for the finished blocks of one image until all of them are there.

Blocks come in any order and a file of their final form may need them in
another, so they wait here: as the integers (or floats) that will be written,
in RAM while that is little, else in a file without a name.
"""
from __future__ import annotations

import errno
import os
import tempfile
import threading

import numpy as np

from cocoseg.errors import CanvasError, CoverageError, ImageClosedError, WindowShapeError
from cocoseg.grid.window import Window

# Below this, a file costs more than the memory that it saves.
RAM_NBYTES = 32 << 20


class BlockSpool:
    """
    Hold a whole image that is delivered block by block.

    Satisfies :class:`cocoseg.protocols.BlockSink`. A file vanishes with the
    process, however it ends. Its space is reserved at once: a full disk is an
    error now, not a crash (SIGBUS) when a block is written.

    Args:
        shape (tuple[int, int, int]): (H, W, C) of the image.
        dtype (dtype): of the blocks; integer or float.
        folder (PathLike | None): of the file, made if it is missing; None is
            the system's temporary folder.
        ram_nbytes (int): an image of at most so many bytes stays in RAM.

    Raises:
        CanvasError: if there is no room, or the folder cannot be used.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> from cocoseg.io.spool import BlockSpool
        >>> from cocoseg.protocols import BlockSink
        >>> spool = BlockSpool((2, 4, 1), np.int16, ram_nbytes=0)
        >>> assert isinstance(spool, BlockSink)
        >>> for x in (2, 0):
        >>>     spool.write_block(Window(0, x, 2, x + 2), np.full((2, 2, 1), x, np.int16))
        >>> spool.is_complete, spool.data[..., 0].tolist()
        (True, [[0, 0, 2, 2], [0, 0, 2, 2]])
        >>> spool.close()
    """

    def __init__(self, shape, dtype, folder=None, *, ram_nbytes=RAM_NBYTES):
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        nbytes = int(np.prod(self.shape)) * self.dtype.itemsize
        in_ram = nbytes <= ram_nbytes
        self._data = (_allocate(self.shape, self.dtype) if in_ram
                      else _map_file(self.shape, self.dtype, folder))
        self._ram_nbytes = nbytes if in_ram else 0
        self._written = set()
        self._n_pixels = 0
        self._lock = threading.Lock()

    @property
    def nbytes(self):
        """Bytes held in RAM; 0 if they are in a file, or after :meth:`close`."""
        return self._ram_nbytes if self._data is not None else 0

    @property
    def is_complete(self):
        """True if every pixel was written."""
        height, width, _ = self.shape
        with self._lock:
            return self._n_pixels == height * width

    @property
    def data(self):
        """
        The image, shape (H, W, C), a view; 0 where no block was written yet.

        Raises:
            ImageClosedError: after :meth:`close`.
        """
        data = self._data
        if data is None:
            raise ImageClosedError('the spool was closed; its blocks are gone')
        return data

    def write_block(self, window, block):
        """
        Store one block.

        Args:
            window (Window): where it belongs, inside the image.
            block (ndarray): of this spool's dtype, shape (h, w, C) with
                (h, w) == ``window.shape``. Copied.

        Raises:
            WindowShapeError: for another shape or dtype.
            CoverageError: if the window is outside the image, or was written
                before.
            ImageClosedError: after :meth:`close`.
        """
        data = self.data
        self._check(window, block)
        with self._lock:
            if window in self._written:
                raise CoverageError(f'{window} was written twice; give each block once')
            self._written.add(window)
        # Not under the lock: blocks do not overlap.
        try:
            data[window.slices] = block
        except BaseException:
            with self._lock:
                self._written.discard(window)
            raise
        with self._lock:
            self._n_pixels += window.area

    def _check(self, window, block):
        expected = (*window.shape, self.shape[2])
        if block.shape != expected or block.dtype != self.dtype:
            raise WindowShapeError(
                f'the block for {window} has shape {block.shape} and dtype {block.dtype}; this '
                f'spool takes {expected} and {self.dtype}')
        if window.is_empty or not Window.from_shape(self.shape).contains(window):
            raise CoverageError(f'{window} is not inside the image of shape {self.shape}')

    def close(self):
        """Let go of the memory; a file vanishes with it. May be called twice."""
        # A thread that still writes or reads keeps the mapping alive till it is done.
        self._data = None


def _allocate(shape, dtype):
    try:
        return np.zeros(shape, dtype)
    except MemoryError as ex:
        raise CanvasError(errno.ENOMEM, f'no memory for a spool of {shape}: {ex}') from ex


def _map_file(shape, dtype, folder):
    """Return a zeroed array on a file without a name, with real space behind it."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix='cocoseg-spool-') as file:
            _reserve(file, nbytes)
            # The mapping keeps the file alive after the descriptor is closed.
            return np.memmap(file, dtype=dtype, mode='r+', shape=shape)
    except OSError as ex:
        place = tempfile.gettempdir() if folder is None else os.fspath(folder)
        raise CanvasError(ex.errno or errno.EIO,
                          f'cannot reserve {nbytes} bytes in {place}: {ex.strerror}; free space '
                          'there, or choose another folder for temporary files') from ex


def _reserve(file, nbytes):
    """Give a file its size; where the system can, with space that is its own."""
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except (AttributeError, OSError) as ex:
        # Some systems and disks cannot.
        if getattr(ex, 'errno', None) not in (
                None, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        file.truncate(nbytes)
