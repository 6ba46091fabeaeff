"""
Where the compressed tiles of a file wait until all of them are there.

A Cloud-Optimized GeoTIFF begins with what is known last: the sizes of all
tiles, and the smallest overview. So tiles go to a nameless file first, in the
order in which they come, and are copied to their places at the end, which
costs little, as nothing is compressed again.
"""
from __future__ import annotations

import errno
import os
import tempfile
import threading

from cocoseg.errors import ImageClosedError

# Below this, a file costs more than the memory that it saves.
RAM_NBYTES = 1 << 20
# A copy by the system has a price of its own: short pieces are copied together.
_LEAST_COPY = 1 << 16
_BATCH = 1 << 20


class TileSpool:
    """
    Bytes that are appended in any order, read again, and copied to a file.

    In RAM while they are few, then in a file without a name in ``folder``,
    which vanishes with the process however it ends.

    Args:
        folder (PathLike): where the file is made, when it is needed.
        ram_nbytes (int): bytes that may stay in RAM.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> from cocoseg.io.tile_spool import TileSpool
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     spool = TileSpool(folder, ram_nbytes=4)
        >>>     places = [spool.append([part, b'.']) for part in (b'abc', b'de')]
        >>>     assert not os.listdir(folder)
        >>>     found = [spool.read(places[1], 3), spool.read(places[0], 4)]
        >>>     spool.close()
        >>> found
        [b'de.', b'abc.']
    """

    def __init__(self, folder, ram_nbytes=RAM_NBYTES):
        self._folder = os.path.abspath(folder)
        self._ram_nbytes = ram_nbytes
        self._ram = bytearray()
        self._file = None
        self._size = 0
        self._free = {}
        self._is_closed = False
        self._lock = threading.Lock()

    @property
    def nbytes(self):
        """Bytes in RAM."""
        return len(self._ram)

    def append(self, parts):
        """
        Store bytes, and return where they are.

        Args:
            parts (Sequence[bytes-like]): stored one behind the other.

        Raises:
            OSError: if the disk is full, or for any reason of the system's;
                the bytes are not stored then.
            ImageClosedError: after :meth:`close`.
        """
        nbytes = sum(memoryview(part).nbytes for part in parts)
        with self._lock:
            self._check_open()
            room = self._free.get(nbytes)
            if room:
                offset = room.pop()
            elif self._file is None and self._size + nbytes <= self._ram_nbytes:
                offset = self._size
                for part in parts:
                    self._ram += part
                self._size += nbytes
                return offset
            else:
                if self._file is None:
                    self._open_file()
                offset = self._size
                self._size += nbytes
            if self._file is None:
                self._ram[offset:offset + nbytes] = b''.join(parts)
                return offset
            descriptor = self._file.fileno()
        write_all(descriptor, parts, offset)
        return offset

    def _check_open(self):
        if self._is_closed:
            raise ImageClosedError('the spool was closed; its tiles are gone')

    def _open_file(self):
        """Move from RAM to a file."""
        file = tempfile.TemporaryFile(dir=self._folder, prefix='.cocoseg-spool-', buffering=0)
        try:
            if self._ram:
                write_all(file.fileno(), [self._ram], 0)
        except BaseException:
            file.close()
            raise
        self._file, self._ram = file, bytearray()

    def read(self, offset, nbytes):
        """
        Return stored bytes.

        Raises:
            OSError: if the system cannot read them.
            ImageClosedError: after :meth:`close`.
        """
        with self._lock:
            self._check_open()
            if self._file is None:
                return bytes(self._ram[offset:offset + nbytes])
            descriptor = self._file.fileno()
        room = bytearray(nbytes)
        _read_into(descriptor, memoryview(room), offset)
        return bytes(room)

    def free(self, offset, nbytes):
        """Let bytes go; others of the same number may take their place."""
        with self._lock:
            self._free.setdefault(nbytes, []).append(offset)

    def copy_to(self, descriptor, pieces):
        """
        Append stored bytes to a file, in a given order.

        Args:
            descriptor (int): of the file, open for writing; its position is used.
            pieces (Iterable[tuple[int, int]]): (offset, number) of bytes.

        Raises:
            OSError: if the system cannot write them.
            ImageClosedError: after :meth:`close`.
        """
        with self._lock:
            self._check_open()
            source = None if self._file is None else self._file.fileno()
        if source is None:
            for offset, nbytes in pieces:
                write_all(descriptor, [memoryview(bytes(self._ram[offset:offset + nbytes]))])
            return
        batch, waiting = bytearray(_BATCH), 0
        for offset, nbytes in _join_runs(pieces):
            if waiting and (nbytes >= _LEAST_COPY or waiting + nbytes > _BATCH):
                write_all(descriptor, [memoryview(batch)[:waiting]])
                waiting = 0
            if nbytes >= _LEAST_COPY:
                _copy(source, descriptor, offset, nbytes)
            else:
                _read_into(source, memoryview(batch)[waiting:waiting + nbytes], offset)
                waiting += nbytes
        if waiting:
            write_all(descriptor, [memoryview(batch)[:waiting]])

    def close(self):
        """Let go of the memory and the file. May be called twice."""
        with self._lock:
            self._is_closed = True
            self._ram = bytearray()
            if self._file is not None:
                self._file.close()
                self._file = None


def _join_runs(pieces):
    """Yield the pieces, those that lie one behind the other as one."""
    start = end = None
    for offset, nbytes in pieces:
        if offset != end:
            if start is not None:
                yield start, end - start
            start = offset
        end = offset + nbytes
    if start is not None:
        yield start, end - start


def write_all(descriptor, parts, offset=None):
    """
    Write all bytes, where the system may stop half way (a limit, a signal).

    Args:
        descriptor (int): open for writing.
        parts (Sequence[bytes-like]): written one behind the other.
        offset (int | None): where in the file; None is its position.

    Raises:
        OSError: as the system reports it, with a reason when nothing goes on.
    """
    views = [view for view in (memoryview(part).cast('B') for part in parts) if view.nbytes]
    while views:
        written = (os.writev(descriptor, views) if offset is None
                   else os.pwritev(descriptor, views, offset))
        if written == 0:
            raise OSError(errno.EIO, 'the system wrote nothing')
        if offset is not None:
            offset += written
        while views and written >= views[0].nbytes:
            written -= views.pop(0).nbytes
        if written:
            views[0] = views[0][written:]


def _read_into(descriptor, view, offset):
    """Fill a view from a place in a file."""
    while view.nbytes:
        found = os.preadv(descriptor, [view], offset)
        if found == 0:
            raise OSError(errno.EIO, 'the file of waiting tiles ends too early')
        view, offset = view[found:], offset + found


def _copy(source, target, offset, nbytes):
    """Append a range of a file to another, inside of the system where it can."""
    while nbytes:
        try:
            copied = os.copy_file_range(source, target, nbytes, offset_src=offset)
        except (AttributeError, OSError) as ex:
            # Other systems, and some disks, cannot.
            if getattr(ex, 'errno', None) not in (
                    None, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP,
                    errno.EBADF, errno.EPERM, errno.ETXTBSY):
                raise
            _copy_by_hand(source, target, offset, nbytes)
            return
        if copied == 0:
            raise OSError(errno.EIO, 'the file of waiting tiles ends too early')
        offset, nbytes = offset + copied, nbytes - copied


def _copy_by_hand(source, target, offset, nbytes):
    room = bytearray(min(_BATCH, nbytes))
    while nbytes:
        view = memoryview(room)[:min(len(room), nbytes)]
        _read_into(source, view, offset)
        write_all(target, [view])
        offset, nbytes = offset + view.nbytes, nbytes - view.nbytes
