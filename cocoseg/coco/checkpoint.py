"""
Who may write a journal, and when the manifest is saved.

A journal belongs to one process at a time: a lock of the system says so, which
vanishes with the process however it ends. Within a process its users share one
:class:`SharedFile`. Knows nothing of what is written.
"""
from __future__ import annotations

import errno
import functools
import json
import logging
import os
import socket
import threading
import time
import weakref

from cocoseg.coco.names import compute_stem

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

logger = logging.getLogger(__name__)

_TAKEN = (errno.EAGAIN, errno.EWOULDBLOCK, errno.EACCES)
# What disks without such locks say, most of them over a network.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS,
             errno.EBADF)

_PATIENCE = 20  # looks at a lock that this process is about to release

_SHARED = weakref.WeakValueDictionary()
_SHARED_LOCK = threading.Lock()


@functools.lru_cache(maxsize=None)
def _warn_once(reason):
    """Say that there is no lock, once per reason and process."""
    logger.warning('the journal cannot be locked (%s); see that no other process writes to the '
                   'same bundle and short_code', reason)


class FileLock:
    """
    An exclusive lock of this process on a file of its own, which it removes.

    A process that is forked off does not have it, and does not keep it alive.
    Where the system has no such locks, it is had by everybody, with a warning.

    Args:
        fpath (str): the file; holds who has the lock, as JSON.

    Thread-safety: not thread-safe; a :class:`SharedFile` has a mutex.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lock, other = [FileLock(os.path.join(folder, 'x.lock')) for _ in range(2)]
        ...     assert lock.acquire() and lock.acquire() and not other.acquire()
        ...     assert str(os.getpid()) in other.describe_holder()
        ...     lock.release()
        ...     assert os.listdir(folder) == [] and other.acquire()
        ...     other.release()
    """

    def __init__(self, fpath):
        self.fpath = fpath
        self.is_held = False
        self._descriptor = None

    def acquire(self):
        """
        Return True if this process has the lock now, or had it before.

        Raises:
            OSError: if the system fails in an unforeseen way.
        """
        if not self.is_held:
            self.is_held = self._take()
        return self.is_held

    def _take(self):
        if fcntl is None:
            _warn_once('this system has no flock')
            return True
        while True:
            try:
                descriptor = _open_lock(self.fpath)
            except OSError as ex:
                _warn_once(f'{self.fpath}: {ex.strerror}')
                return True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_file_at(descriptor, self.fpath):
                    break
                # Its holder removed it just now; there may be a new one.
                os.close(descriptor)
            except OSError as ex:
                os.close(descriptor)
                if ex.errno in _TAKEN:
                    return False
                if ex.errno not in _NO_LOCKS:
                    raise
                _warn_once(f'{self.fpath}: {ex.strerror}')
                return True
        self._descriptor = descriptor
        self._sign()
        return True

    def _sign(self):
        """Write who has the lock into the file."""
        holder = {'pid': os.getpid(), 'host': socket.gethostname(),
                  'since': time.strftime('%Y-%m-%dT%H:%M:%S%z')}
        try:
            with open(self._descriptor, 'w', closefd=False) as file:
                file.truncate()
                json.dump(holder, file)
        except OSError as ex:
            # A full disk, or the file of somebody else: the lock holds all the same.
            logger.debug('cannot write to %s: %s', self.fpath, ex)

    def describe_holder(self):
        """Return who has the lock, as far as that is known."""
        try:
            with open(self.fpath, encoding='utf8') as file:
                holder = json.load(file)
            return 'process {pid} on {host}, since {since}'.format(**holder)
        except (OSError, ValueError, KeyError, TypeError):
            return 'another process'

    def release(self):
        """Let go of the lock, and remove its file. May be called twice."""
        descriptor, self._descriptor, self.is_held = self._descriptor, None, False
        if descriptor is None:
            return
        try:
            if _is_file_at(descriptor, self.fpath):
                os.unlink(self.fpath)
            # Closing alone would leave it to a child that shares the descriptor.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        except OSError as ex:
            logger.debug('cannot clear %s: %s', self.fpath, ex)
        finally:
            os.close(descriptor)

    def forget(self):
        """Leave the lock to the process that this one was forked off."""
        descriptor, self._descriptor, self.is_held = self._descriptor, None, False
        if descriptor is not None:
            os.close(descriptor)


def _open_lock(fpath):
    """Return a descriptor of a lock file, which may be that of another user."""
    flags = os.O_CREAT | getattr(os, 'O_CLOEXEC', 0)
    try:
        return os.open(fpath, os.O_RDWR | flags, 0o666)
    except PermissionError:
        return os.open(fpath, os.O_RDONLY | getattr(os, 'O_CLOEXEC', 0))


def _is_file_at(descriptor, fpath):
    """Return True if a descriptor is of the file that has this path now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(fpath))
    except FileNotFoundError:
        return False


class SharedFile:
    """
    What all users of one file in this process have in common.

    The lock on the file is held while there are users. It is released when
    the last one leaves. Users keep this object while they are in, and nobody
    else does, so that it is released as well when all of them are forgotten.

    Attributes:
        mutex (RLock): for whatever is done with the file.
        users (WeakSet): those who entered; guarded by the mutex.
    """

    def __init__(self, fpath):
        self.mutex = threading.RLock()
        self.users = weakref.WeakSet()
        self._lock = FileLock(get_lock_path(fpath))
        weakref.finalize(self, self._lock.release)

    def enter(self, user):
        """Add a user, and return None; or who has the lock, if that is another process."""
        with self.mutex:
            for _ in range(_PATIENCE):
                if self._lock.acquire():
                    self.users.add(user)
                    return None
                holder = self._lock.describe_holder()
                if f'process {os.getpid()} on {socket.gethostname()},' not in holder:
                    break
                # Users that another thread let go of just now are still being freed.
                time.sleep(0.01)
            return holder

    def leave(self, user):
        """Take a user away. May be called twice."""
        with self.mutex:
            self.users.discard(user)
            if not self.users:
                self._lock.release()

    def forget(self):
        """Begin anew in a process that was forked off; a thread of old may hold the mutex."""
        self.mutex = threading.RLock()
        self.users = weakref.WeakSet()
        self._lock.forget()


def get_lock_path(fpath):
    """
    Return where the lock on a file is: beside its folder.

    So there is nothing but assets and journals in the folder of assets, and a
    journal may be removed while it is locked.

    Example:
        >>> os.path.relpath(get_lock_path('bundle/_assets/pred/.cocoseg-water.jsonl'))
        'bundle/_assets/.cocoseg-pred-water_1138e295d3f4.lock'
    """
    folder, name = os.path.split(os.path.realpath(fpath))
    parent, folder_name = os.path.split(folder)
    stem = os.path.splitext(name)[0].removeprefix('.cocoseg-')
    return os.path.join(parent, f'.cocoseg-{compute_stem(f"{folder_name}/{stem}")}.lock')


def share_file(fpath):
    """
    Return the :class:`SharedFile` of a path, the same for the same file.

    Example:
        >>> assert share_file('a/b/c.jsonl') is share_file('a/b/../b/c.jsonl')
    """
    _watch_forks()
    key = os.path.realpath(fpath)
    with _SHARED_LOCK:
        shared = _SHARED.get(key)
        if shared is None:
            shared = _SHARED[key] = SharedFile(key)
        return shared


@functools.lru_cache(maxsize=None)
def _watch_forks():
    if hasattr(os, 'register_at_fork'):
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all():
    global _SHARED_LOCK
    _SHARED_LOCK = threading.Lock()
    for shared in list(_SHARED.values()):
        shared.forget()


class IntervalDumper:
    """
    Save a manifest now and then while images are finished.

    A run that is killed then leaves a manifest that is not far behind.

    Args:
        manifest (Manifest): what to save.
        interval (float | None): seconds between two dumps, at least; None is
            never.

    Thread-safety: all methods may be called from any thread.
    """

    def __init__(self, manifest, interval):
        self._manifest, self._interval = manifest, interval
        self._since = manifest.clock()
        self._lock = threading.Lock()
        self._is_ready = interval is None

    def prepare(self):
        """
        Before the first file gets its name, save the manifest over an old one.

        The old one may describe a file of other bytes under that name.

        Raises:
            OSError: if that fails; call again.
        """
        if self._is_ready:
            return
        with self._lock:
            if not self._is_ready:
                if os.path.exists(self._manifest.fpath):
                    self._manifest.dump()
                self._is_ready = True

    def save_now(self):
        """Save the manifest, unless it is never to be saved."""
        if self._interval is not None:
            self._manifest.dump()

    def save_if_due(self):
        """Save the manifest if it is time; a failure is logged, and tried later."""
        if self._interval is None:
            return
        try:
            self._manifest.dump_if_due(self._interval, self._since)
        except Exception as ex:
            logger.warning('%s could not be saved now (%s); it is tried again with a later image',
                           self._manifest.fpath, ex)
