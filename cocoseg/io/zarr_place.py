"""
Where a Zarr array lies on the disk, and how a complete one gets there.

An :class:`ArrayIdentifier` names the array inside of its container. Arrays are
put in place as a whole, by a rename; until then they have a hidden name beside
the container. zarr itself is imported when a function needs it.
"""
from __future__ import annotations

import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.io.commit import as_write_error, fsync_folder, list_orphans, make_suffix
from cocoseg.protocols import PathLike

_SUFFIX = '.zarr'
_FLUSH_THREADS = 8


def require_zarr():
    """
    Return the module zarr.

    Raises:
        MissingDependencyError: if it, at least version 3, cannot be imported.
    """
    try:
        import zarr
    except ImportError as ex:
        raise MissingDependencyError(
            f'zarr is needed for .zarr arrays, and cannot be imported: {ex}. Install it by '
            '`pip install cocoseg[zarr]`, or use a GeoTIFF or an array') from ex
    if int(zarr.__version__.partition('.')[0]) < 3:
        raise MissingDependencyError(f'zarr {zarr.__version__} is too old, it must be at least 3; '
                                     'install it by `pip install --upgrade cocoseg[zarr]`')
    return zarr


@dataclass(frozen=True, order=True)
class ArrayIdentifier:
    """
    The name of a Zarr array: a container, and the array inside of it.

    A plain value that goes to other processes; nothing is opened.

    Args:
        container (str | PathLike): folder, or an address that zarr can read.
        dataset (str): path of the array in it; empty if the container is the
            array itself.

    Raises:
        OptionError: if the container is empty, or the dataset leaves it.

    Example:
        >>> from cocoseg.io.zarr_place import ArrayIdentifier
        >>> identifier = ArrayIdentifier.parse('/a/b.zarr/volumes/raw')
        >>> identifier.container, identifier.dataset, str(identifier)
        ('/a/b.zarr', 'volumes/raw', '/a/b.zarr/volumes/raw')
    """

    container: str
    dataset: str = ''

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, container: PathLike, dataset: str = '') -> None: ...

    def __post_init__(self):
        container = os.fspath(self.container).rstrip('/')
        parts = [part for part in str(self.dataset).split('/') if part not in ('', '.')]
        if not container or '..' in parts:
            raise OptionError(f'container={self.container!r} and dataset={self.dataset!r} must '
                              'be a folder, and a path below it')
        object.__setattr__(self, 'container', container)
        object.__setattr__(self, 'dataset', '/'.join(parts))

    @classmethod
    def parse(cls, text: PathLike | ArrayIdentifier) -> ArrayIdentifier:
        """
        Return the identifier that a path spells.

        Args:
            text (str | PathLike | ArrayIdentifier): the container is what goes
                up to the first part that ends with '.zarr'.

        Raises:
            OptionError: if no part does.
        """
        if isinstance(text, cls):
            return text
        if hasattr(text, 'container') and hasattr(text, 'dataset'):
            return cls(text.container, text.dataset)
        if is_zarr_path(text):
            parts = os.fspath(text).split('/')
            last = next(i for i, part in enumerate(parts) if part.endswith(_SUFFIX))
            return cls('/'.join(parts[:last + 1]), '/'.join(parts[last + 1:]))
        raise OptionError(f'{text!r} names no Zarr array; give a path such as '
                          "'/a/b.zarr/volumes/raw', or ArrayIdentifier(container, dataset)")

    @classmethod
    def find(cls, data: Any) -> ArrayIdentifier | None:
        """Return where an open zarr array lies, or None if in no folder of this machine."""
        scheme, _, path = str(data.store_path).partition('://')
        if scheme != 'file':
            return None
        return cls.parse(path) if is_zarr_path(path) else cls(path)

    def __str__(self):
        return f'{self.container}/{self.dataset}' if self.dataset else self.container

    @property
    def is_remote(self) -> bool:
        """True for an address such as 's3://…', where this machine cannot rename."""
        return '://' in self.container

    @property
    def path(self) -> str:
        """Absolute path, or the address."""
        return str(self) if self.is_remote else os.path.abspath(str(self))

    def check_local(self) -> None:
        """Raise OptionError for an address, where nothing can be written."""
        if self.is_remote:
            raise OptionError(f'{self} is not a folder of this machine; write to one, and copy '
                              'it there when it is complete')


def is_zarr_path(obj):
    """
    Return True for a path of which a part ends with '.zarr'.

    Example:
        >>> from cocoseg.io.zarr_place import is_zarr_path
        >>> is_zarr_path('a/b.zarr/raw'), is_zarr_path('a/zarr/b.tif'), is_zarr_path(3)
        (True, False, False)
    """
    if not isinstance(obj, (str, os.PathLike)):
        return False
    text = os.fspath(obj)
    return isinstance(text, str) and any(part.endswith(_SUFFIX) for part in text.split('/'))


def find_node(path):
    """
    Return what lies at a path: 'array', 'group', 'folder', 'file' or None.

    Args:
        path (str | PathLike): of a folder; it need not exist.

    Returns:
        str | None: 'folder' is one that is not empty and not known to Zarr.

    Example:
        >>> from cocoseg.io.zarr_place import find_node
        >>> assert find_node('no_such_folder') is None
    """
    path = Path(path)
    if not path.is_dir():
        return 'file' if os.path.lexists(path) else None
    if (path / 'zarr.json').is_file():
        return _read_kind(path / 'zarr.json')
    for name, kind in (('.zarray', 'array'), ('.zgroup', 'group')):
        if (path / name).is_file():
            return kind
    return 'folder' if any(path.iterdir()) else None


def _read_kind(path):
    """Return what the metadata of a node says; 'folder' if they are damaged."""
    try:
        kind = json.loads(path.read_text('utf-8'))['node_type']
    except (ValueError, KeyError, TypeError):
        return 'folder'
    return kind if kind in ('array', 'group') else 'folder'


def check_place(identifier):
    """
    Raise unless an array can be put where an identifier says, or be replaced there.

    Args:
        identifier (ArrayIdentifier): of the array.

    Returns:
        bool: True if an array is there already.

    Raises:
        OptionError: if something else is there, or above it another array.
        FileNotFoundError: if the folder of the container does not exist.
    """
    identifier.check_local()
    container = Path(os.path.abspath(identifier.container))
    if not container.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, 'no such folder', str(container.parent))
    above = container
    for part in (identifier.dataset.split('/') if identifier.dataset else []):
        if find_node(above) in ('array', 'file'):
            raise OptionError(f'{identifier} would lie inside of {above}, which is no group; '
                              'choose another place')
        above = above / part
    kind = find_node(above)
    if kind not in (None, 'array'):
        raise OptionError(f'{identifier} exists and is a {kind}, not an array, and so is not '
                          'replaced; choose another place, or remove it')
    return kind == 'array'


def find_format(identifier):
    """Return the version of the Zarr format that the container has; 3 for a new one."""
    root = Path(os.path.abspath(identifier.container))
    is_old = (root / '.zgroup').is_file() and not (root / 'zarr.json').is_file()
    return 2 if is_old and identifier.dataset else 3


def make_temporary(identifier):
    """
    Return a fresh hidden name beside the container, where no reader of it looks.

    What processes that are dead left there of this container is removed.
    """
    # On the disk of the container, so that a rename can do.
    container = Path(os.path.realpath(identifier.container))
    stem = f'.{container.name[:100]}'
    for orphan in list_orphans(container.parent):
        if os.path.basename(orphan).startswith(stem) and os.path.isdir(orphan):
            shutil.rmtree(orphan, ignore_errors=True)
    return container.with_name(f'{stem}{make_suffix()}')


def check_temporary(identifier):
    """Raise AssetWriteError unless a folder can be made where arrays are, until complete."""
    try:
        temporary = make_temporary(identifier)
        temporary.mkdir()
        temporary.rmdir()
    except OSError as ex:
        raise as_write_error(str(identifier), ex) from ex


def make_groups(identifier):
    """Make the groups above an array, where they are not there yet."""
    if not identifier.dataset:
        return
    zarr = require_zarr()
    group = zarr.open_group(os.path.abspath(identifier.container), mode='a',
                            zarr_format=find_format(identifier))
    for part in identifier.dataset.split('/')[:-1]:
        group = group.require_group(part)


def place_array(temporary, identifier, overwrite=False):
    """
    Give a complete array its name, durably.

    Args:
        temporary (Path): of :func:`make_temporary`; gone afterwards.
        identifier (ArrayIdentifier): its name.
        overwrite (bool): replace an array that is there.

    Raises:
        FileExistsError: if one is there, and shall not be replaced.
        OSError: as the system reports it; what was there is there still.
    """
    flush_tree(temporary)
    make_groups(identifier)
    final = Path(os.path.abspath(str(identifier)))
    if find_node(final) is None:
        # Over an empty folder too.
        os.rename(temporary, final)
    elif not overwrite:
        raise FileExistsError(errno.EEXIST, 'another array was put there meanwhile', str(final))
    else:
        old = make_temporary(identifier)
        os.rename(final, old)
        try:
            os.rename(temporary, final)
        except OSError:
            os.rename(old, final)
            raise
        shutil.rmtree(old, ignore_errors=True)
    fsync_folder(final.parent)


def flush_tree(folder):
    """Flush all files below a folder to the disk, and the folders."""
    folders, files = [], []
    for root, _, names in os.walk(folder):
        folders.append(root)
        files += [os.path.join(root, name) for name in names]
    with ThreadPoolExecutor(_FLUSH_THREADS, 'cocoseg-flush') as pool:
        list(pool.map(_flush_file, files))
    for root in reversed(folders):
        fsync_folder(root)


def _flush_file(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
