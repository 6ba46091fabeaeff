"""
Where the compressed tiles of a file wait until all of them are there.

A Cloud-Optimized GeoTIFF begins with what is known last: the sizes of all
tiles, and the smallest overview. So tiles go to a nameless file first, in the
order in which they come, and are copied to their places at the end, which
costs little, as nothing is compressed again.
"""
from __future__ import annotations

import errno
import logging
import os
import tempfile
import threading
from contextlib import contextmanager

from cocoseg.errors import ImageClosedError
from cocoseg.io.commit import make_suffix

logger = logging.getLogger(__name__)

# Below this, a file costs more than the memory that it saves.
RAM_NBYTES = 1 << 20
# A copy by the system has a price of its own: short pieces are copied together.
_LEAST_COPY = 1 << 16
_BATCH = 1 << 20


class _OpenFiles:
    """
    Counts the files of all spools: at most half of what the process may open.

    Beyond that, others could not even write what is finished. Spools that come
    later stay in RAM.
    """

    def __init__(self):
        self._n_open = 0
        self._has_warned = False
        self._lock = threading.Lock()

    def enter(self):
        """Return True if one more may be opened, which :meth:`leave` ends."""
        limit = _get_file_limit() // 2
        with self._lock:
            if self._n_open < limit:
                self._n_open += 1
                return True
            if not self._has_warned:
                logger.warning('%d files of images in work are open, half of what this process '
                               'may open; tiles of further images wait in RAM. Raise the limit '
                               '(ulimit -n), or finish images earlier', self._n_open)
            self._has_warned = True
            return False

    def leave(self):
        """Note that a file was closed."""
        with self._lock:
            self._n_open -= 1


def _get_file_limit():
    """Return how many files this process may open."""
    try:
        import resource
    except ImportError:  # Windows
        return 512
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 2 ** 20 if soft == resource.RLIM_INFINITY else soft


_FILES = _OpenFiles()


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
        self._n_users = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

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
        views = [memoryview(part).cast('B') for part in parts]
        nbytes = sum(view.nbytes for view in views)
        with self._using():
            with self._lock:
                data = b''.join(views) if self._file is None else None
                offset = self._take_room(nbytes)
                if self._file is None:
                    self._ram[offset:offset + nbytes] = data
                    return offset
                descriptor = self._file.fileno()
            try:
                write_all(descriptor, views, offset)
            except BaseException:
                # Room that is lost with every try would fill the disk.
                self.free(offset, nbytes)
                raise
        return offset

    @contextmanager
    def _using(self):
        """Yield the descriptor of the file, or None; it is not closed meanwhile."""
        with self._lock:
            if self._is_closed:
                raise ImageClosedError('the spool was closed; its tiles are gone')
            self._n_users += 1
            descriptor = None if self._file is None else self._file.fileno()
        try:
            yield descriptor
        finally:
            with self._changed:
                self._n_users -= 1
                self._changed.notify_all()

    def _take_room(self, nbytes):
        """Return where some bytes go; move to a file if they do not fit in RAM."""
        room = self._free.get(nbytes)
        if room:
            return room.pop()
        if self._file is None and self._size + nbytes > self._ram_nbytes and _FILES.enter():
            try:
                self._open_file()
            except BaseException:
                _FILES.leave()
                raise
        if self._file is None:
            # Without memory for it, the next must not come to lie elsewhere.
            self._ram.extend(bytes(nbytes))
        offset = self._size
        self._size += nbytes
        return offset

    def _open_file(self):
        """Move from RAM to a file."""
        # Some disks cannot make a file without a name: it has one for a moment.
        file = tempfile.TemporaryFile(dir=self._folder, prefix='.cocoseg-spool-',
                                      suffix=make_suffix(), buffering=0)
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
        with self._using() as descriptor:
            if descriptor is None:
                with self._lock:
                    if self._file is None:
                        return bytes(self._ram[offset:offset + nbytes])
                    # It went to a file meanwhile.
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
        with self._using() as source:
            if source is None:
                for offset, nbytes in pieces:
                    write_all(descriptor, [self.read(offset, nbytes)])
            else:
                self._copy_file(source, descriptor, pieces)

    @staticmethod
    def _copy_file(source, descriptor, pieces):
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

    def __del__(self):
        if getattr(self, '_file', None) is not None:
            # Forgotten, with the image that it was for.
            self._file.close()
            _FILES.leave()

    def close(self):
        """Let go of the memory and the file. May be called twice."""
        with self._changed:
            self._is_closed = True
            # Its number could be that of another file while somebody writes.
            self._changed.wait_for(lambda: not self._n_users)
            self._ram = bytearray()
            if self._file is not None:
                self._file.close()
                self._file = None
                _FILES.leave()


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
    try:
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
    finally:
        # An error that is kept keeps this frame: no part of it could be resized.
        for view in views:
            view.release()


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
            # Some disks say so instead; where the file ends, only a read can tell.
            _copy_by_hand(source, target, offset, nbytes)
            return
        offset, nbytes = offset + copied, nbytes - copied


def _copy_by_hand(source, target, offset, nbytes):
    room = bytearray(min(_BATCH, nbytes))
    while nbytes:
        view = memoryview(room)[:min(len(room), nbytes)]
        _read_into(source, view, offset)
        write_all(target, [view])
        offset, nbytes = offset + view.nbytes, nbytes - view.nbytes
