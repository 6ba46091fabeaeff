"""
What the attributes of a Zarr array say: its axes, and where it lies in the world.

The attributes are those that funlib, daisy and dacapo write and read. Knows
nothing of files; a :class:`VolumeLayout` is a plain value.
"""
from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.roi import Roi, as_voxel_size
from cocoseg.grid.window import as_int

CHANNEL_AXIS = 'c'
SPATIAL_AXES = {2: ('y', 'x'), 3: ('z', 'y', 'x')}
# What chunks are halved towards, bytes: a few MB are read and decoded at once.
_CHUNK_NBYTES = 1 << 22


@dataclass(frozen=True)
class VolumeLayout:
    """
    Axes of an array, and where it lies in the world.

    Args:
        axes (Sequence[str]): 'y', 'x', with 'z' before them for a volume, and
            'c' for channels first or last, if there are any.
        voxel_size (int | Sequence[int]): world units, one per spatial axis.
        offset (int | Sequence[int]): where the first voxel begins, world units.

    Raises:
        OptionError: for other axes, or numbers that are not whole.

    Example:
        >>> from cocoseg.io.zarr_layout import VolumeLayout
        >>> layout = VolumeLayout(['c', 'z', 'y', 'x'], (40, 4, 4))
        >>> layout.spatial_axes, layout.channel_axis, layout.offset
        (('z', 'y', 'x'), 0, (0, 0, 0))
        >>> layout.get_roi((2, 10, 100, 100))
        Roi(0:400, 0:400, 0:400)
    """

    axes: tuple[str, ...]
    voxel_size: tuple[int, ...] = 1
    offset: tuple[int, ...] = 0
    spatial_axes: tuple[str, ...] = field(init=False)

    def __post_init__(self):
        put = object.__setattr__
        axes = tuple(self.axes)
        spatial = tuple(axis for axis in axes if axis != CHANNEL_AXIS)
        if (spatial not in SPATIAL_AXES.values() or axes.count(CHANNEL_AXIS) > 1
                or CHANNEL_AXIS in axes[1:-1]):
            raise OptionError(f'axes={list(axes)} must be y, x or z, y, x in this order, with '
                              f"{CHANNEL_AXIS!r} first or last if there are channels")
        put(self, 'axes', axes)
        put(self, 'spatial_axes', spatial)
        put(self, 'voxel_size', as_voxel_size(self.voxel_size, len(spatial)))
        put(self, 'offset', _as_offset(self.offset, len(spatial)))

    @classmethod
    def read(cls, data, name, axes=None, default_axes=None):
        """
        Read the layout of an array from its attributes.

        Args:
            data (zarr.Array): its attributes may be those of funlib and daisy,
                any subset of them, or none.
            name (str): what it is, for messages.
            axes (Sequence[str] | None): instead of those that it names.
            default_axes (Sequence[str] | None): where it names none.

        Raises:
            OptionError: if they contradict the array, or cannot be told.
        """
        attrs, ndim = dict(data.attrs), len(data.shape)
        voxel_size = attrs.get('voxel_size', attrs.get('resolution'))
        offset = attrs.get('offset')
        axes = axes or _find_axes(data, attrs) or default_axes or _guess_axes(
            ndim, voxel_size if voxel_size is not None else offset)
        if axes is None or len(axes) != ndim:
            raise OptionError(f'{name} has shape {data.shape}, and '
                              f'{"no" if axes is None else list(axes)} names of axes; give axes=, '
                              "such as ('c', 'z', 'y', 'x')")
        try:
            return cls(axes, _pick_spatial(voxel_size, axes, 1), _pick_spatial(offset, axes, 0))
        except OptionError as ex:
            raise OptionError(f'{name}: {ex}') from ex

    @property
    def ndim(self):
        """Number of spatial axes."""
        return len(self.spatial_axes)

    @property
    def channel_axis(self):
        """Place of the channels among the axes, or None."""
        return self.axes.index(CHANNEL_AXIS) if CHANNEL_AXIS in self.axes else None

    def arrange(self, spatial, channel):
        """Return one entry per axis, from one per spatial axis and that of the channels."""
        entries = list(spatial)
        if self.channel_axis is not None:
            entries.insert(self.channel_axis, channel)
        return tuple(entries)

    def pick(self, entries):
        """Return those of one entry per axis that are of spatial axes."""
        return tuple(entry for axis, entry in zip(self.axes, entries) if axis != CHANNEL_AXIS)

    def get_roi(self, shape):
        """Return where an array of ``shape``, one entry per axis, lies in the world."""
        return Roi(self.offset, tuple(
            size * step for size, step in zip(self.pick(shape), self.voxel_size)))

    def as_attributes(self):
        """Return what funlib, daisy and dacapo read."""
        return {'axes': list(self.axes), 'axis_names': list(self.axes),
                'voxel_size': list(self.voxel_size), 'resolution': list(self.voxel_size),
                'offset': list(self.offset)}


def _as_offset(offset, ndim):
    entries = tuple(offset) if hasattr(offset, '__len__') else (offset,) * ndim
    try:
        entries = tuple(as_int(entry, 'offset') for entry in entries)
    except CoverageError:
        entries = ()
    if len(entries) != ndim:
        raise OptionError(f'offset={offset!r} must be whole world units, an int or one for each '
                          f'of {ndim} axes; choose a smaller unit for fractions')
    return entries


def _find_axes(data, attrs):
    """Return the names of the axes that an array gives, or None."""
    for names in (attrs.get('axes'), attrs.get('axis_names'),
                  getattr(data.metadata, 'dimension_names', None)):
        if names and None not in names:
            names = [name['name'] if isinstance(name, dict) else str(name) for name in names]
            # How funlib marks axes that are not spatial.
            return tuple(CHANNEL_AXIS if name.endswith('^') else name for name in names)
    return None


def _guess_axes(ndim, numbers):
    """Return the axes of an array that names none; numbers are of its spatial axes."""
    n_spatial = len(numbers) if hasattr(numbers, '__len__') else min(ndim, 3)
    spatial = SPATIAL_AXES.get(n_spatial)
    if spatial is None or ndim not in (n_spatial, n_spatial + 1):
        return None
    if ndim == n_spatial:
        return spatial
    # Only numbers that are there tell; by the habit of those who write them.
    return (CHANNEL_AXIS, *spatial) if hasattr(numbers, '__len__') else None


def _pick_spatial(numbers, axes, default):
    """Return the entries of an attribute that are of spatial axes."""
    if numbers is None:
        return default
    if hasattr(numbers, '__len__') and len(numbers) == len(axes):
        return [entry for axis, entry in zip(axes, numbers) if axis != CHANNEL_AXIS]
    return numbers


def choose_chunks(shape, block, itemsize):
    """
    Return chunks of which every block holds whole ones.

    Args:
        shape (tuple[int, ...]): extent per spatial axis, px.
        block (int | tuple[int, ...]): extent of the blocks that are written, px.
        itemsize (int): bytes of a pixel, of all its channels.

    Returns:
        tuple[int, ...]: px; a half, quarter … of a block until a chunk has a
        few MB, as far as that goes.

    Raises:
        OptionError: for a block without extent.

    Example:
        >>> from cocoseg.io.zarr_layout import choose_chunks
        >>> choose_chunks((5000, 700), 1024, 4), choose_chunks((500, 500, 500), 256, 4)
        ((1024, 700), (128, 128, 64))
    """
    blocks = tuple(block) if hasattr(block, '__len__') else (block,) * len(shape)
    if len(blocks) != len(shape) or any(
            not isinstance(size, (int, np.integer)) or size < 1 for size in blocks):
        raise OptionError(f'chunks={block!r} must be whole pixels, at least 1, an int or one for '
                          f'each of {len(shape)} axes')
    chunks = [min(int(size), extent) for size, extent in zip(blocks, shape)]
    while math.prod(chunks) * itemsize > _CHUNK_NBYTES:
        even = [axis for axis, size in enumerate(chunks) if size % 2 == 0]
        if not even:
            break
        widest = max(even, key=lambda axis: (chunks[axis], axis))
        chunks[widest] //= 2
    return tuple(chunks)
