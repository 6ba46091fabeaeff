"""
Open and make the arrays of zarr, with errors that say what to do.

Where they lie is known to :mod:`cocoseg.io.zarr_place`, what they mean to
:mod:`cocoseg.io.zarr_layout`.
"""
from __future__ import annotations

import errno
import json
import os

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.zarr_layout import choose_chunks
from cocoseg.io.zarr_place import find_node, require_zarr


def open_zarr(identifier, mode='r'):
    """
    Open an array of format 2 or 3.

    Args:
        identifier (ArrayIdentifier): where it is.
        mode (str): 'r', or 'r+' to write to it.

    Returns:
        zarr.Array: open.

    Raises:
        FileNotFoundError: if there is no array.
        OptionError: if it is a group.
        MissingDependencyError: without zarr.
    """
    zarr = require_zarr()
    if not identifier.is_remote:
        kind = find_node(identifier.path)
        if kind == 'group':
            raise OptionError(f'{identifier} is a group, which has {list_arrays(identifier)}; '
                              'name one of its arrays, such as a.zarr/volumes/raw')
        if kind != 'array':
            raise FileNotFoundError(errno.ENOENT, 'no such Zarr array', identifier.path)
    return zarr.open_array(store=identifier.path, mode='r' if mode == 'r' else 'r+')


def list_arrays(identifier):
    """Return the paths of the arrays in a group of this machine, sorted."""
    root = identifier.path
    found = []
    for folder, names, _ in os.walk(root):
        if find_node(folder) == 'array':
            found.append(os.path.relpath(folder, root))
            # What is below are its chunks.
            names.clear()
    return sorted(found)


def create_zarr(path, layout, shape, dtype, block, *, name=None, metadata=None, zarr_format=3):
    """
    Make an array of zeros.

    Args:
        path (str | PathLike): of a folder that does not exist.
        layout (VolumeLayout): axes, voxel size and offset.
        shape (tuple[int, ...]): extent per spatial axis, and the channels, px.
        dtype (dtype): of the pixels.
        block (int | tuple[int, ...]): extent of the blocks that are written, px;
            each gets whole chunks.
        name (str | None): kept as an attribute.
        metadata (dict | None): further attributes.
        zarr_format (int): 2 or 3.

    Returns:
        zarr.Array: open for writing.

    Raises:
        OptionError: for a type or a block that cannot be.
        OSError: as the system reports it.
    """
    zarr = require_zarr()
    dtype = check_dtype(dtype)
    spatial, n_channels = tuple(shape[:-1]), int(shape[-1])
    chunks = choose_chunks(spatial, block, dtype.itemsize * n_channels)
    attributes = {**check_metadata(metadata or {}, layout), **layout.as_attributes(),
                  **({'name': str(name)} if name else {})}
    return zarr.create_array(
        os.fspath(path), shape=layout.arrange(spatial, n_channels),
        chunks=layout.arrange(chunks, n_channels), dtype=dtype, fill_value=0,
        zarr_format=zarr_format, attributes=attributes,
        dimension_names=list(layout.axes) if zarr_format == 3 else None)


def check_dtype(dtype):
    """
    Return the type of pixels, in the byte order of this machine.

    Raises:
        OptionError: if it is no type of numbers.

    Example:
        >>> from cocoseg.io.zarr_store import check_dtype
        >>> check_dtype('uint32')
        dtype('uint32')
    """
    try:
        found = np.dtype(dtype).newbyteorder('=')
    except TypeError as ex:
        raise OptionError(f'dtype={dtype!r} is no type of pixels ({ex})') from ex
    if dtype is None or found.kind not in 'biuf' or found.itemsize > 8:
        raise OptionError(f'dtype={dtype!r} must be of whole numbers or floats, of at most 64 bits')
    return found


def check_metadata(metadata, layout):
    """
    Return attributes to add, checked.

    Args:
        metadata (dict[str, object]): by name.
        layout (VolumeLayout): whose attributes they must not replace.

    Raises:
        OptionError: if JSON cannot hold them, or they say where the array lies.

    Example:
        >>> from cocoseg.io.zarr_layout import VolumeLayout
        >>> from cocoseg.io.zarr_store import check_metadata
        >>> check_metadata({'model': 'v3'}, VolumeLayout('yx'))
        {'model': 'v3'}
    """
    if not isinstance(metadata, dict) or not all(isinstance(key, str) for key in metadata):
        raise OptionError(f'metadata={metadata!r} must be a dict with names as keys')
    taken = sorted(set(metadata) & set(layout.as_attributes()))
    if taken:
        raise OptionError(f'metadata has {taken}, which say where the pixels lie and are set when '
                          'the array is made; use other names')
    try:
        return json.loads(json.dumps(metadata))
    except (TypeError, ValueError) as ex:
        raise OptionError(f'metadata={metadata!r} is not what JSON can hold: {ex}') from ex


def check_channels(num_channels, layout):
    """
    Return how many channels there are, 1 without an axis of them.

    Args:
        num_channels (int | None): None without an axis.
        layout (VolumeLayout): with the axes.

    Raises:
        OptionError: if the axes say something else.

    Example:
        >>> from cocoseg.io.zarr_layout import VolumeLayout
        >>> from cocoseg.io.zarr_store import check_channels
        >>> check_channels(3, VolumeLayout('cyx')), check_channels(None, VolumeLayout('yx'))
        (3, 1)
    """
    if (num_channels is None) != (layout.channel_axis is None):
        raise OptionError(f"num_channels={num_channels} with axes={list(layout.axes)}: give 'c' "
                          'among the axes and a number, or neither')
    if num_channels is None:
        return 1
    if not isinstance(num_channels, (int, np.integer)) or num_channels < 1:
        raise OptionError(f'num_channels={num_channels!r} must be a whole number, at least 1')
    return int(num_channels)


def as_block(write_size, layout):
    """
    Return an extent in world units as one in px.

    Raises:
        OptionError: if it is no whole number of voxels.

    Example:
        >>> from cocoseg.io.zarr_layout import VolumeLayout
        >>> from cocoseg.io.zarr_store import as_block
        >>> as_block((400, 40), VolumeLayout('yx', voxel_size=(40, 4)))
        (10, 10)
    """
    sizes = tuple(write_size) if hasattr(write_size, '__len__') else (write_size,) * layout.ndim
    if len(sizes) == len(layout.axes):
        # As some give it, with the channels.
        sizes = layout.pick(sizes)
    if len(sizes) != layout.ndim or any(
            size < step or size % step for size, step in zip(sizes, layout.voxel_size)):
        raise OptionError(f'write_size={write_size!r} must be whole voxels of {layout.voxel_size} '
                          'per spatial axis, world units')
    return tuple(int(size // step) for size, step in zip(sizes, layout.voxel_size))
