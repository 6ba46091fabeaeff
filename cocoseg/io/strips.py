"""
Rasters from files and from arrays behind one face, read strip by strip.

A :class:`Source` answers the same questions for both, so that what works on
rows of pixels does not ask where they come from. Rows are read by
:func:`cocoseg.io.raster.read_raster`; any number of threads may do so.
"""
from __future__ import annotations

import math
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.grid.window import Window
from cocoseg.io.dataset import as_geotransform, check_mask
from cocoseg.io.raster import open_dataset, raster_info, read_raster, srs_wkt

# Samples of a strip, about: a few of them are in memory at a time.
STRIP_SAMPLES = 1 << 22
MAX_LABEL = 2 ** 32 - 1
# Shifts of a raster below this, px, come from rounding.
_LEAST_SHIFT = 1e-3


@dataclass(frozen=True)
class Source:
    """
    A raster: a file that GDAL opens, or an array.

    Make it with :meth:`open`.

    Attributes:
        name (str): what it is, for messages.
        shape (tuple[int, int, int]): (H, W, C) in px.
        dtype (np.dtype): of what :meth:`read_rows` returns.
        nodata (tuple[int | float | None, ...]): per band; None for none.
        channels (tuple[str | None, ...]): names of the bands.
        geotransform (tuple | None): 6 numbers in GDAL's order.
        crs_wkt (str | None): coordinate system.
        block_rows (int): rows that are stored, and so best read, together.
        pixels (ndarray | None): (H, W, C) of an array; None for a file.
        fpath (str | None): of a file; None for an array.
    """

    name: str
    shape: tuple[int, int, int]
    dtype: np.dtype
    nodata: tuple
    channels: tuple
    geotransform: tuple | None = None
    crs_wkt: str | None = None
    block_rows: int = 1
    pixels: np.ndarray | None = None
    fpath: str | None = None

    @classmethod
    def open(cls, raster, name='image', *, crs=None, transform=None):
        """
        Return the source of a raster, without reading pixels of a file.

        Args:
            raster (str | PathLike | array_like): a path that GDAL opens, or an
                array (H, W) or (H, W, C) of whole numbers or floats. Kept, not
                copied.
            name (str): what it is, for messages.
            crs, transform: of an array, as for :func:`cocoseg.write_cog`; a
                file has its own.

        Returns:
            Source: immutable.

        Raises:
            OptionError: if it is no such array, or ``crs`` or ``transform`` is
                wrong, or is given for a file.
            OSError: if GDAL cannot open the file.

        Example:
            >>> from cocoseg.io.strips import Source
            >>> source = Source.open(np.arange(12).reshape(4, 3))
            >>> source.shape, source.read_rows(1, 3)[:, :, 0].tolist()
            ((4, 3, 1), [[3, 4, 5], [6, 7, 8]])
        """
        if not isinstance(raster, (str, os.PathLike)):
            return cls._from_array(raster, name, crs, transform)
        if crs is not None or transform is not None:
            raise OptionError(f'{name} is a file, which has its own crs and transform; give '
                              'them for an array only')
        info = raster_info(raster)
        dtype = _checked_dtype(np.dtype(info.dtype), name)
        return cls(name=f'{name} {os.fspath(raster)}', shape=info.shape, dtype=dtype,
                   nodata=read_nodata(raster), channels=info.channels,
                   geotransform=info.geotransform, crs_wkt=info.crs_wkt,
                   block_rows=info.blocksize[0], fpath=os.fspath(raster))

    @classmethod
    def _from_array(cls, data, name, crs, transform):
        check_mask(data)
        pixels = np.asarray(data)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if pixels.ndim != 3 or 0 in pixels.shape:
            raise OptionError(f'{name} has shape {np.shape(data)}; give (H, W) or (H, W, C), '
                              'nothing empty, or a path')
        return cls(name=name, shape=pixels.shape, dtype=_checked_dtype(pixels.dtype, name),
                   nodata=(None,) * pixels.shape[2], channels=(None,) * pixels.shape[2],
                   geotransform=as_geotransform(transform), crs_wkt=srs_wkt(crs), pixels=pixels)

    def __getstate__(self):
        # Workers may have another working directory.
        state = dict(self.__dict__)
        if self.fpath is not None and os.path.exists(self.fpath):
            state['fpath'] = os.path.abspath(self.fpath)
        return state

    def read(self, window, bands=None):
        """
        Read a window inside the raster.

        Args:
            window (Window): px.
            bands (Sequence[int] | None): counted from 0; None is all.

        Returns:
            ndarray: shape (h, w, C); of an array a view where that can be, so
            do not write to it.

        Raises:
            OSError: if GDAL cannot read it.
        """
        if self.pixels is None:
            return read_raster(self.fpath, window, bands)
        pixels = self.pixels[window.slices]
        return pixels if bands is None else pixels[:, :, list(bands)]

    def read_rows(self, first, stop, bands=None, columns=None):
        """
        Read some rows.

        Args:
            first, stop (int): rows ``first`` up to ``stop``.
            bands (Sequence[int] | None): counted from 0; None is all.
            columns (tuple[int, int] | None): columns of the first up to the
                second; None is all.

        Returns:
            ndarray: shape (stop - first, W, C); of an array a view where that
            can be, so do not write to it.

        Raises:
            OSError: if GDAL cannot read it.
        """
        left, right = (0, self.shape[1]) if columns is None else columns
        return self.read(Window(first, left, stop, right), bands)

    def check_bands(self, bands):
        """
        Return the bands to read, counted from 0.

        Args:
            bands (Sequence[int] | int | None): None is all.

        Raises:
            OptionError: if there is none, one is named twice, or does not exist.

        Example:
            >>> Source.open(np.zeros((2, 2, 3))).check_bands([2, 0])
            (2, 0)
        """
        n_bands = self.shape[2]
        if bands is None:
            return tuple(range(n_bands))
        if isinstance(bands, (int, np.integer)):
            bands = [bands]
        chosen = tuple(int(band) for band in bands)
        if (not chosen or len(set(chosen)) < len(chosen)
                or min(chosen) < 0 or max(chosen) >= n_bands):
            raise OptionError(f'bands={list(bands)} of {self.name}, which has {n_bands}: give at '
                              f'least one, each once and in 0..{n_bands - 1}')
        return chosen

    def as_label_source(self):
        """
        Return itself, checked to be one band of whole numbers.

        Raises:
            OptionError: if it is not.

        Example:
            >>> assert Source.open(np.ones((2, 2), int)).as_label_source().shape == (2, 2, 1)
        """
        if self.shape[2] != 1:
            raise OptionError(f'{self.name} has {self.shape[2]} bands; labels are one band')
        if self.dtype.kind not in 'iu':
            raise OptionError(f'{self.name} has pixels of type {self.dtype}; labels are whole '
                              'numbers: convert it to uint32')
        return self

    def read_labels(self, first, stop, columns=None):
        """
        Read rows of labels; see :meth:`read_rows` and :func:`as_labels`.

        Returns:
            ndarray: uint32, shape (stop - first, W), C-contiguous; 0 is null.
            Of an array a view where that can be, so do not write to it.
        """
        block = self.read_rows(first, stop, columns=columns)[:, :, 0]
        return as_labels(block, self.nodata[0], self.name)


def _checked_dtype(dtype, name):
    if dtype.kind not in 'biuf' or dtype.itemsize > 8:
        raise OptionError(f'{name} has pixels of type {dtype}; give whole numbers or floats')
    return dtype


def read_nodata(fpath):
    """
    Return the nodata value of each band of a file.

    Args:
        fpath (str | PathLike): a path, or any string that GDAL opens.

    Returns:
        tuple[int | float | None, ...]: one per band; may hold NaN.

    Example:
        >>> from cocoseg.io.cog import write_cog
        >>> from cocoseg.io.strips import read_nodata
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.ones((30, 40, 2), np.int16), nodata=-9999)
        >>>     found = read_nodata(fpath)
        >>> found
        (-9999.0, -9999.0)
    """
    with open_dataset(fpath) as dataset:
        return tuple(dataset.GetRasterBand(number + 1).GetNoDataValue()
                     for number in range(dataset.RasterCount))


def as_labels(block, nodata=None, name='labels'):
    """
    Return labels as uint32, where 0 is null.

    Args:
        block (ndarray): whole numbers, shape (H, W). Never modified.
        nodata (int | float | None): another value that means null.
        name (str): what they are, for messages.

    Returns:
        ndarray: uint32, shape (H, W), C-contiguous; ``block`` itself where that
        can be.

    Raises:
        LabelOverflowError: if one is negative or above 2**32 - 1.

    Example:
        >>> from cocoseg.io.strips import as_labels
        >>> as_labels(np.array([[-1, 7]]), nodata=-1).tolist()
        [[0, 7]]
    """
    if nodata is not None and nodata != 0 and not math.isnan(nodata):
        block = np.where(block == nodata, block.dtype.type(0), block)
    if block.dtype.kind == 'i' or block.dtype.itemsize > 4:
        low, high = int(block.min(initial=0)), int(block.max(initial=0))
        if low < 0 or high > MAX_LABEL:
            raise LabelOverflowError(f'{name} holds labels {low}..{high}; they must be in '
                                     f'0..{MAX_LABEL}, where 0 is null')
    return np.ascontiguousarray(block, np.uint32)


def check_same_grid(first, second):
    """
    Raise OptionError unless two sources lie on each other, pixel by pixel.

    The sizes must be equal, and where both have them the geotransforms (to a
    thousandth of a pixel at the corners) and the coordinate systems.

    Args:
        first, second (Source): any two.

    Example:
        >>> from cocoseg.io.strips import Source, check_same_grid
        >>> check_same_grid(Source.open(np.zeros((2, 3))), Source.open(np.ones((2, 3, 4))))
    """
    if first.shape[:2] != second.shape[:2]:
        raise OptionError(f'{first.name} has {first.shape[:2]} px and {second.name} '
                          f'{second.shape[:2]}; they must have the same size')
    if first.geotransform is not None and second.geotransform is not None:
        shift = _find_shift(first.geotransform, second.geotransform, first.shape)
        if shift > _LEAST_SHIFT:
            raise OptionError(
                f'{first.name} has the geotransform {first.geotransform} and {second.name} '
                f'{second.geotransform}, up to {shift:.3g} px away; warp one to the other')
    if (first.crs_wkt is not None and second.crs_wkt is not None
            and not is_same_crs(first.crs_wkt, second.crs_wkt)):
        raise OptionError(f'{first.name} and {second.name} have different coordinate systems, '
                          f'{_name_crs(first.crs_wkt)} and {_name_crs(second.crs_wkt)}; warp one '
                          'to the other')


def _find_shift(first, second, shape):
    """Return how far apart two geotransforms are at the corners, in px of the first."""
    height, width = shape[:2]
    columns, rows = np.array([0, width, 0, width]), np.array([0, 0, height, height])
    dx, dy = (np.array(one) - np.array(other) for one, other in zip(
        apply_geotransform(first, columns, rows), apply_geotransform(second, columns, rows)))
    _, a, b, _, d, e = first
    determinant = a * e - b * d
    return float(max(np.abs((e * dx - b * dy) / determinant).max(),
                     np.abs((a * dy - d * dx) / determinant).max()))


def apply_geotransform(geotransform, x, y):
    """
    Return world coordinates of pixel coordinates, whose origin is a corner.

    Args:
        geotransform (tuple): 6 numbers in GDAL's order.
        x, y (ndarray | float): columns and rows; centers are at halves.

    Returns:
        tuple: world x and y.

    Example:
        >>> from cocoseg.io.strips import apply_geotransform
        >>> apply_geotransform((500, 10, 0, 800, 0, -10), 0.5, 2)
        (505.0, 780.0)
    """
    x0, a, b, y0, d, e = geotransform
    return x0 + a * x + b * y, y0 + d * x + e * y


def is_same_crs(first, second):
    """
    Return True if two WKT texts mean the same coordinate system.

    Example:
        >>> from cocoseg.io.strips import is_same_crs
        >>> from cocoseg.io.raster import srs_wkt
        >>> is_same_crs(srs_wkt(4326), srs_wkt(4326)), is_same_crs(srs_wkt(4326), srs_wkt(32618))
        (True, False)
    """
    if first == second:
        return True
    from osgeo import osr
    systems = [osr.SpatialReference(), osr.SpatialReference()]
    for system, wkt in zip(systems, (first, second)):
        system.ImportFromWkt(wkt)
    return bool(systems[0].IsSame(systems[1]))


def _name_crs(wkt):
    """Return what a WKT text calls itself."""
    parts = wkt.split('"')
    return repr(parts[1] if len(parts) > 1 else wkt[:40])


def choose_strip_rows(sources, n_bands=1):
    """
    Return how many rows of several sources are well read together.

    Args:
        sources (Sequence[Source]): of the same size.
        n_bands (int): bands that are read, of all of them together.

    Returns:
        int: about :data:`STRIP_SAMPLES` samples, but whole tiles of each source.

    Example:
        >>> from cocoseg.io.strips import Source, choose_strip_rows
        >>> choose_strip_rows([Source.open(np.zeros((5000, 1 << 12)))], 2)
        512
    """
    height, width = sources[0].shape[:2]
    unit = max(source.block_rows for source in sources)
    common = math.lcm(*(source.block_rows for source in sources))
    if common <= 4 * unit:
        unit = common
    rows = max(STRIP_SAMPLES // (width * n_bands), 1)
    return min(-(-rows // unit) * unit, height)


def iter_strips(height, rows):
    """
    Yield the bounds of strips of so many rows, from the top; the last may be lower.

    Example:
        >>> from cocoseg.io.strips import iter_strips
        >>> list(iter_strips(5, 2))
        [(0, 2), (2, 4), (4, 5)]
    """
    for first in range(0, height, rows):
        yield first, min(first + rows, height)


def read_ahead(read, strips, ahead=True):
    """
    Yield what ``read`` returns for each strip, and read the next one meanwhile.

    Args:
        read (Callable[[int, int], object]): reads the rows of a strip.
        strips (Iterable[tuple[int, int]]): bounds of strips.
        ahead (bool): False: read each strip when it is asked for.

    Yields:
        tuple[tuple[int, int], object]: bounds, and what was read.

    Example:
        >>> from cocoseg.io.strips import read_ahead
        >>> list(read_ahead(lambda first, stop: stop - first, [(0, 2), (2, 3)]))
        [((0, 2), 2), ((2, 3), 1)]
    """
    strips = list(strips)
    if not ahead or len(strips) < 2:
        for strip in strips:
            yield strip, read(*strip)
        return
    with ThreadPoolExecutor(1, 'cocoseg-read') as pool:
        pending = pool.submit(read, *strips[0])
        for strip, following in zip(strips, [*strips[1:], None]):
            data = pending.result()
            if following is not None:
                pending = pool.submit(read, *following)
            yield strip, data
