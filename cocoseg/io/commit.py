"""
Atomic commit of files: a reader sees the old file or the new one, never a part.

The order is fixed: write under a temporary name in the same folder, flush to
the disk, verify, rename, flush the folder. Temporaries carry the process that
made them in their name, so that a later run can sweep those of dead processes
and leave alone those of living ones. Knows nothing about image formats.
"""
from __future__ import annotations

import errno
import functools
import hashlib
import logging
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from cocoseg.errors import AssetWriteError

logger = logging.getLogger(__name__)

# Files that GDAL may put beside the one it writes, and forgets when it fails.
_SIDECARS = ('.ovr', '.msk', '.aux.xml', '.ovr.tmp', '.msk.ovr.tmp')
_MAX_NAME_BYTES = 255
_TEMPORARY = re.compile(
    r'^\..+\.(?P<pid>[0-9]+)\.(?P<place>[0-9a-f]{8})[0-9a-f]{8}\.tmp'
    r'(?:' + '|'.join(re.escape(suffix) for suffix in _SIDECARS) + r')?$')
_ONE_WEEK = 7 * 24 * 3600
# Temporaries of ours that we do not want any more, and others may still write.
_abandoned: set[str] = set()


@functools.lru_cache(maxsize=None)
def _place():
    """Return 8 hex digits for where our process ids mean something."""
    try:
        namespace = os.readlink('/proc/self/ns/pid')
    except OSError:
        namespace = ''
    place = f'{socket.gethostname()}|{namespace}'
    return hashlib.sha256(place.encode('utf-8', 'replace')).hexdigest()[:8]


def make_suffix():
    """
    Return a fresh end of a name, by which a file without use is swept later.

    Example:
        >>> from cocoseg.io.commit import make_suffix
        >>> import os
        >>> make_suffix().split('.')[1] == str(os.getpid())
        True
    """
    return f'.{os.getpid()}.{_place()}{secrets.token_hex(4)}.tmp'


def _temporary_path(final):
    """Return a fresh hidden sibling of ``final`` whose name the disk accepts."""
    tail = make_suffix()
    room = _MAX_NAME_BYTES - len(tail) - 1 - max(map(len, _SIDECARS))
    stem = os.fsencode(final.name)[:room].decode('utf-8', 'ignore')
    return final.with_name(f'.{stem}{tail}')


def _fsync_path(path, flags=os.O_RDONLY):
    """Flush one file or folder to the disk."""
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    except OSError as ex:
        # The system's own error does not say which file.
        raise OSError(ex.errno, ex.strerror, str(path)) from ex
    finally:
        os.close(fd)


def fsync_folder(folder):
    """Make changes of the names in a folder durable, where the system can flush it."""
    if os.name == 'nt':
        return
    try:
        _fsync_path(folder)
    except OSError as ex:
        # Some network disks cannot, and a folder may be writable but not
        # readable. A real input/output error passes.
        if ex.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EPERM):
            raise
        logger.debug('cannot flush folder %s: %s', folder, ex)


def _unlink_quietly(path):
    """Remove a file if it is there; a failure is logged, not raised."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as ex:
        logger.warning('cannot remove %s: %s', path, ex)
        return False
    return True


def _remove_quietly(path):
    """Remove a file or a folder; tell whether it was there and is gone, and log a failure."""
    if not os.path.isdir(path) or os.path.islink(path):
        return _unlink_quietly(path)
    shutil.rmtree(path, ignore_errors=True)
    if os.path.exists(path):
        logger.warning('cannot remove all of %s', path)
        return False
    return True


def _remove_with_sidecars(path):
    """Remove a file and what GDAL may have left beside it."""
    for suffix in ('', *_SIDECARS):
        _unlink_quietly(f'{path}{suffix}')


@contextmanager
def atomic_write(fpath, *, verify=None):
    """
    Write a file that appears complete, durable and checked, or not at all.

    Yields an empty temporary file in the same folder for the block to fill.
    When the block ends well: flush it to the disk, ``verify`` it, rename it,
    flush the folder. After any exception the temporary is gone and ``fpath``
    is as it was. A replaced file takes its GDAL sidecars (``.aux.xml``,
    ``.ovr``, ``.msk``) with it, as they describe pixels that no longer exist.

    Args:
        fpath (str | PathLike): final path; its folder must exist.
        verify (Callable[[Path], object] | None): called with the temporary
            path after it is on the disk; raises to refuse the file.

    Yields:
        Path: absolute path of the temporary.

    Raises:
        OSError: as the system reports it: no folder, no permission, disk full,
            or ``fpath`` is a folder. Only an error while the folder is
            flushed comes after the rename.

    Note:
        Threads and processes may write the same path at a time: each has its
        own temporary, and the last rename wins.

    Example:
        >>> from cocoseg.io.commit import atomic_write
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     with atomic_write(os.path.join(folder, 'a.txt')) as temp:
        >>>         written = temp.write_text('whole')
        >>>         assert os.listdir(folder) == [temp.name]
        >>>     names = os.listdir(folder)
        >>> names
        ['a.txt']
    """
    final = Path(os.path.abspath(fpath))
    if final.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
    temp = _temporary_path(final)
    # Made here, so that an unusable folder is reported by the system itself.
    os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        yield temp
        _fsync_path(temp, os.O_RDWR)
        if verify is not None:
            verify(temp)
        replaced = final.exists()
        os.replace(temp, final)
    except BaseException:
        _remove_with_sidecars(temp)
        raise
    _remove_with_sidecars(temp)
    _settle(final, replaced)


def _settle(final, replaced):
    """Make a rename durable; without the sidecars of what was there before."""
    if replaced:
        for suffix in ('.ovr', '.msk', '.aux.xml'):
            _unlink_quietly(f'{final}{suffix}')
    fsync_folder(final.parent)


def make_temporary_name(fpath):
    """
    Return the path of a fresh temporary beside a file, which nobody has made.

    For another process, to which it is a file like any other; the one that
    called gives it its name by :func:`place_file`, or is killed, and then
    :func:`sweep_temporaries` removes it.

    Args:
        fpath (str | PathLike): final path.

    Example:
        >>> from cocoseg.io.commit import make_temporary_name
        >>> os.path.basename(make_temporary_name('a.tif')).startswith('.a.tif.')
        True
    """
    return str(_temporary_path(Path(os.path.abspath(fpath))))


def abandon_temporary(temp):
    """
    Remove a temporary that another process may write, now or later.

    What it leaves after that, :func:`sweep_temporaries` removes, also of this
    process.

    Args:
        temp (str): of :func:`make_temporary_name`.

    Example:
        >>> from cocoseg.io.commit import abandon_temporary, make_temporary_name, sweep_temporaries
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     temp = make_temporary_name(os.path.join(folder, 'a.txt'))
        ...     abandon_temporary(temp)
        ...     n_written = Path(temp).write_text('late')
        ...     sweep_temporaries(folder) == [temp]
        True
    """
    _abandoned.add(temp)
    _unlink_quietly(temp)


def place_file(temp, fpath):
    """
    Give a whole, flushed file its name, durably.

    Args:
        temp (str | PathLike): of :func:`make_temporary_name`.
        fpath (str | PathLike): final path, in the same folder.

    Raises:
        OSError: as the system reports it.

    Example:
        >>> from cocoseg.io.commit import make_temporary_name, place_file
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fpath = os.path.join(folder, 'a.txt')
        ...     temp = make_temporary_name(fpath)
        ...     n_written = Path(temp).write_text('whole')
        ...     place_file(temp, fpath)
        ...     os.listdir(folder)
        ['a.txt']
    """
    final = Path(os.path.abspath(fpath))
    replaced = final.exists()
    os.replace(temp, final)
    _settle(final, replaced)


@contextmanager
def temporary_folder(fpath):
    """
    Make a hidden folder beside a file; it is removed in the end.

    For what other processes leave there until it is used. If this process is
    killed, :func:`sweep_temporaries` removes the folder.

    Args:
        fpath (str | PathLike): whose folder must exist.

    Yields:
        str: absolute path of the new folder.

    Raises:
        OSError: if it cannot be made.

    Example:
        >>> from cocoseg.io.commit import temporary_folder
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with temporary_folder(os.path.join(folder, 'a.tif')) as temp:
        ...         assert os.listdir(folder) == [os.path.basename(temp)]
        ...     os.listdir(folder)
        []
    """
    final = Path(os.path.abspath(fpath))
    temp = _temporary_path(final)
    os.mkdir(temp)
    try:
        yield str(temp)
    finally:
        # Whoever was not waited for finds no folder to write to, once it has another name.
        gone = _temporary_path(final)
        with suppress(OSError):
            os.rename(temp, gone)
        for path in (gone, temp):
            if path.exists():
                _remove_quietly(path)


def as_write_error(path, cause):
    """
    Return the error for a file that could not be written.

    Args:
        path (str): final path of the file.
        cause (Exception): what happened; raise the result from it.

    Example:
        >>> from cocoseg.io.commit import as_write_error
        >>> as_write_error('a.tif', OSError(28, 'No space left')).path
        'a.tif'
    """
    return AssetWriteError(
        f'could not write {path}: {cause}. Nothing of it was kept; check the free space '
        'and the permissions of its folder, then write it again', path=path)


def check_writable(fpath):
    """
    Raise unless a file could be written, as far as that can be told before.

    For work that takes long before it writes. Leaves nothing behind.

    Args:
        fpath (str | PathLike): final path of the file.

    Raises:
        AssetWriteError: if its folder does not exist or cannot be written to,
            or if the path is a folder.

    Example:
        >>> from cocoseg.errors import AssetWriteError
        >>> from cocoseg.io.commit import check_writable
        >>> try:
        ...     check_writable('/no/such/folder/a.tif')
        ... except AssetWriteError as ex:
        ...     print(ex.path)
        /no/such/folder/a.tif
    """
    final = Path(os.path.abspath(fpath))
    try:
        if final.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(final))
        temp = _temporary_path(final)
        os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        os.unlink(temp)
    except OSError as ex:
        raise as_write_error(os.fspath(fpath), ex) from ex


def refusing(path, verify):
    """
    Return a ``verify`` of :func:`atomic_write` that refuses by AssetWriteError.

    Args:
        path (str): final path of the file.
        verify (Callable[[Path], object] | None): raises OSError or ValueError
            to refuse a file.
    """
    if verify is None:
        return None

    def checked(temp):
        try:
            verify(temp)
        except (OSError, ValueError) as ex:
            raise as_write_error(path, ex) from ex

    return checked


def _is_alive(pid):
    """Return True unless the system says that no process has this id."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


def _is_orphan(path, match, foreign_age_s):
    """Return True if nobody can still be writing this temporary."""
    if os.name == 'posix' and match['place'] == _place():
        return not _is_alive(int(match['pid']))
    # The process is on another machine or in another container, where we
    # cannot look: only age tells.
    try:
        return time.time() - os.stat(path).st_mtime > foreign_age_s
    except FileNotFoundError:
        return False


def list_orphans(folder, foreign_age_s=_ONE_WEEK):
    """
    List the temporaries that killed processes left in one folder.

    Args:
        folder, foreign_age_s: of :func:`sweep_temporaries`, which removes them.

    Returns:
        list[str]: their paths, sorted.

    Example:
        >>> from cocoseg.io.commit import list_orphans
        >>> list_orphans('no_such_folder')
        []
    """
    try:
        folder = os.path.abspath(folder)
        names = sorted(os.listdir(folder))
    except FileNotFoundError:
        return []
    matches = [(os.path.join(folder, name), _TEMPORARY.match(name)) for name in names]
    return [path for path, match in matches
            if match and (path in _abandoned or _is_orphan(path, match, foreign_age_s))]


def sweep_temporaries(folder, *, foreign_age_s=_ONE_WEEK):
    """
    Remove the temporaries that killed processes left in one folder.

    Only names that this module makes are considered, files and folders. Those of a
    living process on this machine stay. Those of another machine or container
    (a shared disk) go once they are old, because their process cannot be seen
    from here. May run while others write.

    Args:
        folder (str | PathLike): folder to sweep, not its subfolders. A
            missing folder has nothing to sweep.
        foreign_age_s (float): age in seconds since the last change, from
            which a temporary of another machine counts as abandoned.

    Returns:
        list[str]: paths that were removed, sorted.

    Example:
        >>> from cocoseg.io.commit import atomic_write, sweep_temporaries
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     # the process with this (impossible) id is dead
        >>>     with atomic_write(os.path.join(folder, 'a.txt')) as temp:
        >>>         pid = f'.{os.getpid()}.'
        >>>         orphan = str(temp).replace(pid, f'.{2 ** 40}.')
        >>>         os.close(os.open(orphan, os.O_CREAT))
        >>>         removed = sweep_temporaries(folder)
        >>>         assert removed == [orphan] and temp.exists()
    """
    removed = [path for path in list_orphans(folder, foreign_age_s) if _remove_quietly(path)]
    if removed:
        logger.info('removed %d abandoned temporaries from %s', len(removed), folder)
    return removed
