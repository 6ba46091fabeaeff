"""
Disks of a child's own: a small one, and one that is read-only.

The mounts are in a namespace of the process. Nobody else sees them, and they
vanish with it.
"""
import ctypes
import os

_CLONE_NEWNS = 0x20000
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18


def _call(name, *args):
    """Call the C library; raise OSError as os does."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


def _mount(source, target, kind, flags, options=None):
    _call('mount', source.encode(), os.fsencode(target), kind.encode(),
          ctypes.c_ulong(flags), None if options is None else options.encode())


def enter_namespace():
    """Give this process mounts of its own; OSError where that is not permitted."""
    _call('unshare', _CLONE_NEWNS)
    _mount('none', '/', '', _MS_REC | _MS_PRIVATE)


def mount_small(folder, nbytes):
    """Put an empty disk of this size onto a folder."""
    _mount('none', folder, 'tmpfs', 0, f'size={nbytes}')


def lock(folder):
    """Put a read-only view of a folder onto itself; files that are open stay so."""
    _mount(os.fspath(folder), folder, '', _MS_BIND)
    _mount('none', folder, '', _MS_REMOUNT | _MS_BIND | _MS_RDONLY)


def unlock(folder):
    """Take the view of :func:`lock` away."""
    _call('umount2', os.fsencode(folder), 2)
