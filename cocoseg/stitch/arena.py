"""
Where the numbers of a canvas live: slabs in RAM, mapped files, spilled blocks.
"""
from __future__ import annotations

import errno
import mmap
import os
import tempfile
from contextlib import suppress

import numpy as np

from cocoseg.errors import CanvasError

# Slabs are large, so that the system can back them by huge pages: the first
# touch of a small page costs as much as the additions to it.
_SLAB_NBYTES = 32 << 20
_HUGE_PAGE = 2 << 20


class Arena:
    """
    Zeroed arrays of one size, cut out of slabs and used again.

    Args:
        size (int): numbers per array.
        dtype (dtype): of all arrays.
        n_arrays (int | None): how many will be asked for at most, if known.
        grouped (bool): many arrays per slab. False gives each its own memory,
            which goes back to the system when it is given back.

    Attributes:
        nbytes (int): bytes of all slabs.

    Thread-safety: none; the stitcher holds a lock.

    Example:
        >>> arena = Arena(200, np.dtype('f4'))
        >>> array = arena.take()
        >>> array[...] = 1
        >>> arena.give(array)
        >>> float(arena.take().sum())
        0.0
    """

    def __init__(self, size, dtype, n_arrays=None, grouped=True):
        self.nbytes = 0
        self._dtype = np.dtype(dtype)
        # A multiple of a cache line, so that no two arrays share one.
        self._size = -(-size * self._dtype.itemsize // 64) * 64 // self._dtype.itemsize
        self._grouped = grouped
        per_slab = _SLAB_NBYTES // (self._size * self._dtype.itemsize)
        if n_arrays is not None:
            # What a slab rounds up to is little beside the image.
            per_slab = min(per_slab, n_arrays // 16)
        self._per_slab = max(1, per_slab) if grouped else 1
        self._free = []

    @property
    def _array_nbytes(self):
        return self._size * self._dtype.itemsize

    def take(self):
        """Return a zeroed flat array of at least the size."""
        if not self._free:
            nbytes = self._per_slab * self._array_nbytes
            slab = _map_memory(nbytes).view(self._dtype)
            self._free += [slab[start:start + self._size]
                           for start in range(0, slab.size, self._size)]
            self.nbytes += nbytes
        return self._free.pop()

    def give(self, array):
        """Take back what :meth:`take` gave; nobody may use it any more."""
        if not self.nbytes:
            # Closed meanwhile.
            return
        if not self._grouped:
            self.nbytes -= self._array_nbytes
            return
        # Now, while it is still in the cache of the processor.
        array.fill(0)
        self._free.append(array)

    def close(self):
        """Let go of all memory that is not in use elsewhere. May be called twice."""
        self._free = []
        self.nbytes = 0


def _map_memory(nbytes):
    """Return zeroed bytes, in huge pages where that pays and the system has them."""
    if nbytes < 2 * _HUGE_PAGE:
        return np.zeros(nbytes, np.uint8)
    try:
        memory = mmap.mmap(-1, nbytes + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError) as ex:
        raise MemoryError(f'cannot map {nbytes} bytes: {ex}') from ex
    if hasattr(mmap, 'MADV_HUGEPAGE'):
        # A kernel may know the word and not have the pages.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    data = np.frombuffer(memory, np.uint8)
    start = -data.ctypes.data % _HUGE_PAGE
    return data[start:start + nbytes]


class FileArena:
    """
    The same as :class:`Arena`, in files without a name.

    A file is gone as soon as the process is, however it ends. Its space is
    reserved at once: a full disk is an error now, not a crash (SIGBUS) in the
    middle of a sum.

    Args:
        size (int): numbers per array.
        dtype (dtype): of all arrays.
        folder (PathLike | None): where; made if missing. None is the
            system's temporary folder.

    Raises:
        CanvasError: from :meth:`take`, if the folder cannot be used or is full.

    Example:
        >>> FileArena(3, np.dtype('f4')).take().tolist()
        [0.0, 0.0, 0.0]
    """

    def __init__(self, size, dtype, folder=None):
        self.nbytes = 0
        self._size, self._dtype = size, np.dtype(dtype)
        self._folder = None if folder is None else os.fspath(folder)

    def take(self):
        """Return a zeroed flat array."""
        nbytes = self._size * self._dtype.itemsize
        try:
            if self._folder is not None:
                os.makedirs(self._folder, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._folder, prefix='cocoseg-canvas-') as file:
                _reserve(file, nbytes)
                # The mapping keeps the file alive after the descriptor is closed.
                array = np.memmap(file, dtype=self._dtype, mode='r+', shape=(self._size,))
        except (OSError, OverflowError) as ex:
            place, reason = self._folder or tempfile.gettempdir(), getattr(ex, 'strerror', ex)
            raise CanvasError(getattr(ex, 'errno', errno.EFBIG), f'cannot map {nbytes} bytes in '
                              f'{place}: {reason}; free space there or choose another memmap '
                              'folder') from ex
        self.nbytes += nbytes
        return array

    def give(self, array):
        """Let go of the file of an array."""
        self.nbytes = max(0, self.nbytes - array.nbytes)

    def close(self):
        """Forget what is in use; it vanishes with its mapping. May be called twice."""
        self.nbytes = 0


def _reserve(file, nbytes):
    """Give a file its size, with real space behind it where the system can."""
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except (AttributeError, OSError) as ex:
        if getattr(ex, 'errno', None) not in (
                None, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        file.truncate(nbytes)


class SpillFile:
    """
    Places for blocks in a file without a name, made with the first block.

    Args:
        slot_nbytes (int): the most that a block needs.
        folder (PathLike | None): where; None is the system's temporary folder.

    Example:
        >>> store = SpillFile(64)
        >>> store.put('a', [np.arange(3.0)])
        >>> back = np.zeros(3)
        >>> store.fetch('a', [back])
        >>> back.tolist(), 'a' in store
        ([0.0, 1.0, 2.0], False)
        >>> store.close()
    """

    def __init__(self, slot_nbytes, folder=None):
        self._slot_nbytes = slot_nbytes
        self._folder = folder
        self._file = None
        self._slots = {}
        self._free = []
        self._n_slots = 0

    def __contains__(self, key):
        return key in self._slots

    def put(self, key, arrays):
        """
        Write the arrays of a block.

        Raises:
            CanvasError: if there is no room; nothing was written then.
        """
        slot = self._free.pop() if self._free else self._n_slots
        self._n_slots = max(self._n_slots, slot + 1)
        try:
            if self._file is None:
                # Without a buffer: what a full disk refused must not come again later,
                # in the middle of reading or closing.
                self._file = tempfile.TemporaryFile(
                    buffering=0, dir=self._folder, prefix='cocoseg-spill-')
            self._file.seek(slot * self._slot_nbytes)
            for array in arrays:
                rest = memoryview(array).cast('B')
                while rest:
                    rest = rest[self._file.write(rest):]
        except OSError as ex:
            self._free.append(slot)
            raise CanvasError(ex.errno or errno.EIO, f'cannot spill a block: {ex.strerror}; free '
                              'space, choose another spill_dir, or give a larger '
                              'memory_budget') from ex
        self._slots[key] = slot

    def fetch(self, key, arrays):
        """
        Read a block back into its arrays, and free its place.

        Raises:
            CanvasError: if the file cannot be read, or was cut short; the
                block keeps its place then.
        """
        slot = self._slots[key]
        try:
            self._file.seek(slot * self._slot_nbytes)
            for array in arrays:
                rest = memoryview(array).cast('B')
                while rest:
                    n_read = self._file.readinto(rest)
                    if not n_read:
                        raise OSError(errno.EIO, 'the file was cut short')
                    rest = rest[n_read:]
        except OSError as ex:
            raise CanvasError(ex.errno or errno.EIO, 'cannot read a block back from the spill file '
                              f'of the canvas: {ex.strerror}; stitch the image again') from ex
        del self._slots[key]
        self._free.append(slot)

    def close(self):
        """Let the file vanish. May be called twice."""
        if self._file is not None:
            self._file.close()
        self._file, self._slots = None, {}
