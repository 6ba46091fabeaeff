"""
What goes to workers in other processes: a function once per run, and small tasks.

The caller packs, a worker keeps functions by the token of their run and calls
them. Both sides see bytes only, so that what cannot be packed, or unpacked, is
an error with a name and no crash of the plumbing.
"""
from __future__ import annotations

import io
import pickle
import threading
from concurrent.futures import BrokenExecutor

from cocoseg.errors import OptionError, TaskError

MAX_BYTES = 16 * 2 ** 20


class _Kept:
    """A function of a run, and how many workers of this process keep it."""

    def __init__(self, data):
        self._data, self._func = data, None
        self._lock = threading.Lock()
        self.n_users = 0

    def get(self):
        # Unpacked by the first task, which is then the one that fails if it cannot be.
        # Once, as all threads of a worker share what the function has, such as locks.
        with self._lock:
            if self._func is None:
                self._func = unpack(self._data)
            return self._func


_lock = threading.Lock()
_kept: dict[str, _Kept] = {}


def pack(value, name):
    """
    Return the bytes of what is sent to a worker.

    Uses cloudpickle if it is there, which can pack lambdas too, else pickle.

    Args:
        value (object): a function or a task.
        name (str): what it is, for messages.

    Raises:
        OptionError: if it cannot be packed, or is larger than 16 MiB.

    Example:
        >>> from cocoseg.engine.payload import pack, unpack
        >>> unpack(pack({'block': 3}, 'the task'))
        {'block': 3}
    """
    buffer = _LimitedBuffer(name)
    try:
        _get_pickle().dump(value, buffer, protocol=pickle.HIGHEST_PROTOCOL)
    except OptionError:
        raise
    except Exception as ex:
        # Whatever the parts of the value raise when they are packed.
        raise OptionError(
            f'{name} cannot be sent to another process: {type(ex).__name__}: {ex}; give a '
            'function that can be imported, with paths and small values, or use threads') from ex
    return buffer.getvalue()


def unpack(data):
    """Return what :func:`pack` packed."""
    return pickle.loads(data)


def keep_function(token, data, *, only=False):
    """
    Keep the packed function of a run, in a worker.

    Args:
        token (str): of the run.
        data (bytes): the packed function.
        only (bool): forget those of other runs.

    Example:
        >>> from cocoseg.engine.payload import (call_packed, forget_function, keep_function, pack,
        ...                                     unpack)
        >>> keep_function('doctest', pack(abs, 'the function'))
        >>> unpack(call_packed('doctest', pack(-1, 'the task')))
        1
        >>> forget_function('doctest')
    """
    with _lock:
        if only:
            _kept.clear()
        kept = _kept.setdefault(token, _Kept(data))
        kept.n_users += 1


def forget_function(token):
    """
    Forget the function of a run, in a worker: its tasks that come later do not begin.

    If several workers of this process keep it, the last of them to call does.
    """
    with _lock:
        kept = _kept.get(token)
        if kept is not None:
            kept.n_users -= 1
            if not kept.n_users:
                del _kept[token]


def call_packed(token, data):
    """
    Call the function of a run with a packed task, in a worker; return the packed result.

    Raises:
        TaskError: if the worker does not have the function.
        Exception: what the function raises, or a RuntimeError that tells of
            it, if it cannot go to another process.
    """
    try:
        result = _get_function(token)(unpack(data))
        return _get_pickle().dumps(result, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception as ex:
        if _is_portable(ex):
            raise
        raise RuntimeError(f'{type(ex).__name__}: {ex}') from ex


def _get_function(token):
    with _lock:
        kept = _kept.get(token)
    if kept is None:
        raise TaskError('the worker does not have the function of this run, which has ended')
    return kept.get()


def _is_portable(error):
    # What the pool of the worker itself raises means that the worker died.
    if isinstance(error, BrokenExecutor):
        return False
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        # Any error's own __reduce__ or __init__ may raise anything.
        return False
    return True


def _get_pickle():
    try:
        import cloudpickle
    except ImportError:
        return pickle
    return cloudpickle


class _LimitedBuffer(io.BytesIO):
    """Bytes that refuse to become too many, before they are copied."""

    def __init__(self, name):
        super().__init__()
        self._name = name

    def write(self, data):
        if self.tell() + memoryview(data).nbytes > MAX_BYTES:
            raise OptionError(
                f'{self._name} is larger than {MAX_BYTES // 2 ** 20} MiB, the most that is sent to '
                'another process; give a path, a memory map or a Zarr array in place of pixels')
        return super().write(data)
