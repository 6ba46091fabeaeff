"""
The raster that is segmented: its bands, its nodata value, its pixels by window.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.errors import NodataError
from cocoseg.io.strips import Source


@dataclass(frozen=True)
class SegmentSource:
    """
    The bands of a raster that are segmented, with one nodata value.

    Make it with :meth:`open`.

    Attributes:
        source (Source): where the pixels come from.
        bands (tuple[int, ...]): counted from 0.
        nodata (int | float | None): for all of them.

    Example:
        >>> from cocoseg.grid.window import Window
        >>> from cocoseg.shepherd.raster import SegmentSource
        >>> source = SegmentSource.open(np.arange(24).reshape(3, 4, 2), bands=[1], nodata=7)
        >>> source.shape, source.n_bands, source.read(Window(0, 0, 1, 2)).ravel().tolist()
        ((3, 4), 1, [1, 3])
    """

    source: Source
    bands: tuple[int, ...]
    nodata: int | float | None

    @classmethod
    def open(cls, src, bands=None, nodata='file'):
        """
        Check a raster before it is read.

        Args:
            src (str | PathLike | ndarray): a path that GDAL opens, or an array
                (H, W, B) or (H, W).
            bands (Sequence[int] | None): counted from 0; None is all.
            nodata (float | str | None): 'file' is what the bands say.

        Raises:
            OptionError: if it is no such array, or a band does not exist.
            NodataError: if ``nodata`` is 'file' and the bands differ.
            OSError: if GDAL cannot open the file.
        """
        source = Source.open(src, 'raster')
        bands = source.check_bands(bands)
        if isinstance(nodata, str):
            if nodata != 'file':
                raise NodataError(f"nodata={nodata!r} must be a number, None, or 'file'")
            nodata = _find_common([source.nodata[band] for band in bands], source.name)
        return cls(source, bands, nodata)

    @property
    def name(self):
        """What it is, for messages."""
        return self.source.name

    @property
    def shape(self):
        """(H, W) in px."""
        return self.source.shape[:2]

    @property
    def n_bands(self):
        """Number of bands."""
        return len(self.bands)

    @property
    def dtype(self):
        """Type of the pixels."""
        return self.source.dtype

    @property
    def crs_wkt(self):
        """Coordinate system as WKT, or None."""
        return self.source.crs_wkt

    @property
    def geotransform(self):
        """Six numbers in GDAL's order, or None."""
        return self.source.geotransform

    def read(self, window):
        """Return the pixels of a window, (h, w, B). May be called from any thread."""
        return self.source.read(window, self.bands)


def _find_common(values, name):
    """Return the one nodata value of all bands; NaN is like NaN."""
    distinct = {'nan' if value is not None and np.isnan(value) else value for value in values}
    if len(distinct) > 1:
        raise NodataError(f'the bands of {name} have the nodata values {values}; choose bands '
                          'that have the same, or say which with nodata=')
    return values[0]
