"""
Zarr arrays that know where they lie in the world, in two or three axes.

A :class:`ZarrArray` is indexed by regions in world units, and is a source and a
sink of blocks in voxels as well. It has the names of dacapo's class, so that
scripts for that find here what they ask for.
"""
from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cocoseg.errors import CoverageError, OptionError, WindowShapeError
from cocoseg.grid.box import Box
from cocoseg.grid.roi import Roi
from cocoseg.grid.window import Window
from cocoseg.io.exactness import as_exact, check_holds
from cocoseg.io.neuroglancer import describe_layer
from cocoseg.io.zarr_layout import VolumeLayout
from cocoseg.io.zarr_place import (
    ArrayIdentifier, check_place, find_format, make_temporary, place_array)
from cocoseg.io.zarr_store import (
    as_block, check_channels, check_dtype, check_metadata, create_zarr, open_zarr)
from cocoseg.protocols import PathLike

if TYPE_CHECKING:
    import zarr

_OPEN_MODES = ('r', 'r+', 'a')
_CREATE_MODES = ('a', 'w', 'w-')
# Side of the blocks that chunks are made for, where nobody says it, px.
_DEFAULT_BLOCK = {2: 1024, 3: 128}


class ZarrArray:
    """
    A Zarr array with axes, a voxel size and an offset in world units.

    Make it with :meth:`create`, :meth:`open` or :meth:`wrap`. What it holds is
    read and written at once; nothing is cached. Satisfies
    :class:`cocoseg.protocols.BlockSource` and
    :class:`cocoseg.protocols.BlockSink`, and can be pickled.

    Attributes:
        identifier (ArrayIdentifier | None): None if it is in no folder.
        name (str): what it is, for messages and viewers.
        mode (str): 'r', 'r+', or that of :meth:`create`.
        layout (VolumeLayout): axes, voxel size and offset.
        data (zarr.Array): the array itself, in the order of ``axes``.

    Thread-safety: any number of threads may read and write; of processes only
    where each writes whole chunks.

    Example:
        >>> # xdoctest: +REQUIRES(module:zarr)
        >>> from cocoseg.grid.roi import Roi
        >>> from cocoseg.io.zarr_array import ZarrArray
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     path = os.path.join(folder, 'a.zarr/volumes/raw')
        >>>     array = ZarrArray.create(path, 'zyx', Roi((0, 0, 0), (400, 40, 40)),
        >>>                              None, (40, 4, 4), 'uint8')
        >>>     array[Roi((40, 0, 0), (80, 40, 40))] = 7
        >>>     found = ZarrArray.open(path)
        >>>     assert found.data[1:3].min() == 7 and found.data[3:].max() == 0
        >>> found.shape, found.roi
        ((10, 10, 10, 1), Roi(0:400, 0:40, 0:40))
    """

    def __init__(self, data: zarr.Array, layout: VolumeLayout, *,
                 identifier: ArrayIdentifier | None = None, name: str = '',
                 mode: str = 'r') -> None:
        self.data, self.layout, self.identifier, self.mode = data, layout, identifier, mode
        self.name = name or str(data.attrs.get('name', identifier or 'zarr array'))
        # Threads that write parts of one chunk would lose what the other writes.
        self._lock = threading.Lock()

    # ---- made -----------------------------------------------------------------

    @classmethod
    def open(cls, identifier: ArrayIdentifier | PathLike, name: str = '', mode: str = 'r', *,
             axes: Sequence[str] | None = None) -> ZarrArray:
        """
        Open an array that exists.

        Args:
            identifier (ArrayIdentifier | str | PathLike): where it is, such as
                '/a/b.zarr/volumes/raw'; an address is read with fsspec.
            name (str): what it is; empty takes that which it was made with.
            mode (str): 'r', or 'r+' (the same as 'a') to write to it.
            axes (Sequence[str] | None): instead of those that its attributes
                name. Without any, two axes are y, x, three are z, y, x, and
                the numbers of a voxel size tell whether channels are first.

        Returns:
            ZarrArray: of format 2 or 3; the voxel size is 1 and the offset 0
            where the attributes do not tell.

        Raises:
            FileNotFoundError: if there is no array.
            OptionError: if it is a group, or its axes cannot be told.
            MissingDependencyError: without zarr.
        """
        if mode not in _OPEN_MODES:
            raise OptionError(f'mode={mode!r} must be one of {_OPEN_MODES}; to make an array, '
                              'call ZarrArray.create')
        identifier = ArrayIdentifier.parse(identifier)
        data = open_zarr(identifier, mode)
        layout = VolumeLayout.read(data, str(identifier), axes)
        return cls(data, layout, identifier=identifier, name=name, mode=mode)

    @classmethod
    def wrap(cls, data: zarr.Array, name: str = '', *, axes: Sequence[str] | None = None,
             default_axes: Sequence[str] | None = None,
             identifier: ArrayIdentifier | None = None) -> ZarrArray:
        """
        Return the face of an open array.

        Args:
            data (zarr.Array): kept; written to if it may be.
            name (str): what it is.
            axes, default_axes: see :meth:`VolumeLayout.read`.
            identifier (ArrayIdentifier | None): where it is; None asks the
                array.

        Raises:
            OptionError: if its axes cannot be told.
        """
        layout = VolumeLayout.read(data, name or str(data), axes, default_axes)
        identifier = identifier or ArrayIdentifier.find(data)
        return cls(data, layout, identifier=identifier, name=name,
                   mode='r' if data.read_only else 'r+')

    @classmethod
    def create(cls, identifier: ArrayIdentifier | PathLike, axes: Sequence[str], roi: Roi,
               num_channels: int | None, voxel_size: int | Sequence[int], dtype: DTypeLike, *,
               mode: str = 'a', write_size: Sequence[int] | None = None, name: str | None = None,
               overwrite: bool = False) -> ZarrArray:
        """
        Make an array of zeros, or open the same array if it exists.

        Args:
            identifier (ArrayIdentifier | str | PathLike): where; the folder of
                the container must exist, groups below are made.
            axes (Sequence[str]): y, x or z, y, x, with 'c' first or last for
                channels.
            roi (Roi): where it lies, whole voxels, world units.
            num_channels (int | None): None without an axis of channels.
            voxel_size (int | Sequence[int]): world units per spatial axis.
            dtype (dtype): of the pixels.
            mode (str): if there is an array: 'a' opens it, 'w' replaces it,
                'w-' refuses.
            write_size (Sequence[int] | None): extent of what is written at a
                time, world units; it holds whole chunks then. None is 1024 px
                a side, or 128 of volumes.
            name (str | None): what it is; kept as an attribute.
            overwrite (bool): the same as mode 'w'.

        Returns:
            ZarrArray: open for writing. Format 3 (2 in a container of that).

        Raises:
            CoverageError: if the region is empty, or its sides lie in voxels.
            OptionError: for an option that cannot be honoured, or with mode
                'a' if the array that exists is another.
            OSError: as the system reports it.
            MissingDependencyError: without zarr.
        """
        identifier = ArrayIdentifier.parse(identifier)
        if mode not in _CREATE_MODES:
            raise OptionError(f'mode={mode!r} must be one of {_CREATE_MODES}')
        roi = Roi.coerce(roi)
        roi.check_filled('the place of an array')
        layout = VolumeLayout(axes, voxel_size)
        if roi.ndim != layout.ndim:
            raise OptionError(f'{roi} has {roi.ndim} axes and axes={list(layout.axes)} has '
                              f'{layout.ndim} of space; give as many')
        layout = replace(layout, offset=roi.offset)
        shape = roi.to_box(layout.voxel_size, roi.offset).shape
        dtype, n_channels = check_dtype(dtype), check_channels(num_channels, layout)
        block = (_DEFAULT_BLOCK[layout.ndim] if write_size is None
                 else as_block(write_size, layout))
        exists = check_place(identifier)
        replaces = overwrite or mode == 'w'
        if exists and not replaces:
            return cls._open_same(identifier, layout, shape, num_channels, dtype, name, mode)
        temporary = make_temporary(identifier)
        try:
            create_zarr(temporary, layout, (*shape, n_channels), dtype, block, name=name,
                        zarr_format=find_format(identifier))
            place_array(temporary, identifier, overwrite=replaces)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        return cls(open_zarr(identifier, 'r+'), layout, identifier=identifier, name=name or '',
                   mode=mode)

    @classmethod
    def _open_same(cls, identifier, layout, shape, num_channels, dtype, name, mode):
        """Open an array that exists, which must be the one that is asked for."""
        if mode == 'w-':
            raise OptionError(f'{identifier} exists; choose another name, or overwrite=True')
        found = cls.open(identifier, name or '', 'r+')
        for what, wanted, has in (
                ('axes', layout.axes, found.axes), ('shape', shape, found.shape[:-1]),
                ('num_channels', num_channels, found.num_channels),
                ('voxel_size', layout.voxel_size, found.voxel_size),
                ('offset', layout.offset, found.roi.offset),
                ('dtype', dtype, found.dtype)):
            if wanted != has:
                raise OptionError(f'{identifier} exists with {what} {has}, not {wanted}; choose '
                                  'another name, or overwrite=True')
        found.mode = mode
        return found

    @classmethod
    def create_from_array_identifier(cls, array_identifier: ArrayIdentifier | PathLike,
                                     axes: Sequence[str], roi: Roi, num_channels: int | None,
                                     voxel_size: int | Sequence[int], dtype: DTypeLike,
                                     mode: str = 'a', write_size: Sequence[int] | None = None,
                                     name: str | None = None, overwrite: bool = False) -> ZarrArray:
        """
        Make an array, with the arguments of dacapo's method of this name.

        As there, ``num_channels=None`` takes an axis of channels away. All else
        is as for :meth:`create`.
        """
        if num_channels is None:
            axes = [axis for axis in axes if axis != 'c']
        return cls.create(array_identifier, axes, roi, num_channels, voxel_size, dtype,
                          mode=mode, write_size=write_size, name=name, overwrite=overwrite)

    @classmethod
    def open_from_array_identifier(cls, array_identifier: ArrayIdentifier | PathLike,
                                   name: str = '', mode: str = 'r') -> ZarrArray:
        """Open an array by dacapo's name of :meth:`open`."""
        return cls.open(array_identifier, name, mode)

    # ---- what it is -----------------------------------------------------------

    @property
    def file_name(self) -> Path | None:
        """Path of the container, or None."""
        return None if self.identifier is None else Path(self.identifier.container)

    @property
    def fpath(self) -> str | None:
        """Absolute path of the array, or None if it is in no folder of this machine."""
        is_local = self.identifier is not None and not self.identifier.is_remote
        return self.identifier.path if is_local else None

    @property
    def dataset(self) -> str:
        """Path of the array in its container."""
        return self.data.path if self.identifier is None else self.identifier.dataset

    @property
    def attrs(self) -> Any:
        """The attributes as stored."""
        return self.data.attrs

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes, in the order of ``data``."""
        return self.layout.axes

    @property
    def spatial_axes(self) -> tuple[str, ...]:
        """Names of the axes of space."""
        return self.layout.spatial_axes

    @property
    def dims(self) -> int:
        """Number of axes of space."""
        return self.layout.ndim

    @property
    def voxel_size(self) -> tuple[int, ...]:
        """Extent of a voxel per axis of space, world units."""
        return self.layout.voxel_size

    @property
    def roi(self) -> Roi:
        """Where the array lies, world units."""
        return self.layout.get_roi(self.data.shape)

    @property
    def writable(self) -> bool:
        """True if it may be written to."""
        return self.mode != 'r' and not self.data.read_only

    @property
    def dtype(self) -> np.dtype:
        """Type of what is read, in the byte order of this machine."""
        return self.data.dtype.newbyteorder('=')

    @property
    def num_channels(self) -> int | None:
        """Number of channels; None without an axis of them."""
        axis = self.layout.channel_axis
        return None if axis is None else self.data.shape[axis]

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) or (D, H, W, C), px; the channels count as 1 if there is no axis."""
        return (*self.layout.pick(self.data.shape), self.num_channels or 1)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Extent per axis of space of what must be written as a whole, px."""
        return self.layout.pick(self.data.shards or self.data.chunks)

    def __repr__(self):
        return (f'<ZarrArray {self.name} axes={"".join(self.axes)} {self.roi} '
                f'voxel_size={self.voxel_size} {self.dtype}>')

    def __str__(self):
        return self.name

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if key != '_lock'}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    # ---- by region, world units -------------------------------------------------

    def __getitem__(self, roi: Roi) -> np.ndarray:
        """
        Read a region, as stored.

        Args:
            roi (Roi): inside the array, whole voxels.

        Returns:
            ndarray: one axis for each of ``axes``.

        Raises:
            CoverageError: if the region leaves the array, is empty, or its
                sides lie in voxels.
        """
        return np.asarray(self.data[self._find(roi)]).astype(self.dtype, copy=False)

    def __setitem__(self, roi: Roi, value: ArrayLike) -> None:
        """
        Write a region, as stored.

        Args:
            roi (Roi): inside the array, whole voxels.
            value (ndarray | int | float): one axis for each of ``axes``, or a
                number.

        Raises:
            CoverageError: as for reading.
            WindowShapeError: for another shape.
            OptionError: if the array is read-only, or cannot hold the values.
        """
        index = self._find(roi)
        extent = tuple(part.stop - part.start for part in index)
        value = np.asarray(value)
        if value.ndim == 0:
            value = np.broadcast_to(as_exact(value, self.dtype, self.name), extent)
        if value.shape != extent:
            raise WindowShapeError(f'value has shape {value.shape} but {roi} of {self.name} needs '
                                   f'{extent}, the axes {list(self.axes)}')
        self._write(index, value)

    def _find(self, roi):
        roi = Roi.coerce(roi)
        if roi.ndim != self.dims:
            raise CoverageError(f'{roi} has {roi.ndim} axes, {self.name} {self.dims} of space')
        roi.check_filled('read or written')
        if not self.roi.contains(roi):
            raise CoverageError(f'{roi} leaves {self.name}, which covers {self.roi}; intersect '
                                'it first')
        return self._index(roi.to_box(self.voxel_size, self.layout.offset))

    def _index(self, place):
        """Return the slices of some voxels, one per axis; they must lie inside."""
        whole = Box.from_shape(self.shape[:-1])
        if len(place.slices) != whole.ndim:
            raise CoverageError(f'{place} has {len(place.slices)} axes, {self.name} {self.dims} of '
                                'space')
        if not whole.contains(Box.from_slices(place.slices)):
            raise CoverageError(f'{place} leaves {self.name} of shape {self.shape}; clip it first')
        return self.layout.arrange(place.slices, slice(0, self.shape[-1]))

    # ---- by block, px -----------------------------------------------------------

    def read(self, window: Window | Box) -> np.ndarray:
        """
        Read voxels, channels last.

        Args:
            window (Window | Box): inside the array, px.

        Returns:
            ndarray: shape (h, w, C) or (d, h, w, C), C-contiguous.

        Raises:
            CoverageError: if it leaves the array.
        """
        block = np.asarray(self.data[self._index(window)])
        axis = self.layout.channel_axis
        block = block[..., None] if axis is None else np.moveaxis(block, axis, -1)
        return np.ascontiguousarray(block, self.dtype)

    def write_block(self, window: Window | Box, block: np.ndarray) -> None:
        """
        Write voxels, channels last.

        Args:
            window (Window | Box): inside the array, px.
            block (ndarray): shape (h, w, C) or (d, h, w, C); without channels
                for one. Never modified.

        Raises:
            CoverageError: if it leaves the array.
            WindowShapeError: for another shape.
            OptionError: if the array is read-only, or cannot hold the type.
        """
        index, block = self._index(window), np.asarray(block)
        if block.ndim == self.dims and self.shape[-1] == 1:
            block = block[..., None]
        if block.shape != (*window.shape, self.shape[-1]):
            raise WindowShapeError(f'block has shape {block.shape} but {window} of {self.name} '
                                   f'needs {(*window.shape, self.shape[-1])}')
        axis = self.layout.channel_axis
        self._write(index, block[..., 0] if axis is None else np.moveaxis(block, -1, axis))

    def _write(self, index, value):
        if not self.writable:
            raise OptionError(f"{self.name} was opened with mode={self.mode!r}; open it with 'r+'")
        check_holds(self.dtype, value.dtype, self.name)
        if self._is_whole(index):
            self.data[index] = value
        else:
            with self._lock:
                self.data[index] = value

    def _is_whole(self, index):
        """Return True if slices take all of every chunk that they touch."""
        units = self.data.shards or self.data.chunks
        return all(part.start % unit == 0 and (part.stop % unit == 0 or part.stop == size)
                   for part, unit, size in zip(index, units, self.data.shape))

    # ---- notes ------------------------------------------------------------------

    def add_metadata(self, metadata: dict[str, Any]) -> None:
        """
        Add attributes to the array.

        Args:
            metadata (dict[str, object]): what JSON can hold. Not the axes, voxel
                size or offset, which say what the pixels are.

        Raises:
            OptionError: for anything else, or if the array is read-only.
        """
        if not self.writable:
            raise OptionError(f"{self.name} was opened with mode={self.mode!r}; open it with 'r+'")
        self.data.attrs.update(check_metadata(metadata, self.layout))

    def neuroglancer_layer(self, url: str | None = None) -> dict:
        """
        Return the layer by which neuroglancer shows the array.

        Args:
            url (str | None): where the container is served, such as
                'http://localhost:9000/b.zarr'; None is its own address.

        Returns:
            dict: see :func:`cocoseg.io.neuroglancer.describe_layer`.

        Example:
            >>> # xdoctest: +REQUIRES(module:zarr)
            >>> from cocoseg.io.zarr_array import ZarrArray
            >>> import zarr
            >>> data = zarr.create_array({}, shape=(4, 4), dtype='u4')
            >>> layer = ZarrArray.wrap(data, 'ids').neuroglancer_layer('http://localhost/a.zarr')
            >>> layer['type'], layer['source']['url']
            ('segmentation', 'zarr://http://localhost/a.zarr')
        """
        if url is not None:
            address = '/'.join(part for part in (url.rstrip('/'), self.dataset) if part)
        elif self.identifier is None:
            address = str(self.data.store_path)
        else:
            address = ('' if self.identifier.is_remote else 'file://') + self.identifier.path
        return describe_layer(self, address)
