"""
Where segment ids end: a Cloud-Optimized GeoTIFF, or a format with attribute tables.
"""
from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.commit import check_writable, sweep_temporaries, temporary_folder

_TEMPORARY = 'segments.tif'


@dataclass
class LabelOutput:
    """
    The files of one label raster. Make it with :meth:`make`.

    Ids are always written to a Cloud-Optimized GeoTIFF, block by block. For
    another format that is a temporary file, which is copied when it is done.

    Attributes:
        path (str): the label raster.
        driver (str): 'COG', or a format of GDAL.
        creation_options (tuple[str, ...]): for that format.
        table (str | None): path of a table of the segments.
        colors (int | None): seed of random colors.

    Example:
        >>> from cocoseg.errors import OptionError
        >>> from cocoseg.shepherd.output import LabelOutput
        >>> try:
        ...     LabelOutput.make('segments.tif', 'PNG')
        ... except OptionError as ex:
        ...     print(str(ex).split(';')[0])
        the format 'PNG' holds no attribute table
    """

    path: str
    driver: str
    creation_options: tuple
    table: str | None
    colors: int | None
    _folder: str | None = field(default=None, repr=False)

    @classmethod
    def make(cls, dst, driver='COG', creation_options=(), table=None, colors=None):
        """
        Check what is to be written, before it is made.

        Raises:
            OptionError: for a format without attribute tables, options that
                have no meaning, or a table of another kind.
            AssetWriteError: if a folder cannot be written to.
            MissingDependencyError: if a library for the table is missing.
        """
        path, options = os.fspath(dst), tuple(creation_options)
        if driver == 'COG' and options:
            raise OptionError(f'creation_options={options} are for other formats; a COG is '
                              'written with compress and blocksize')
        if driver != 'COG':
            from cocoseg.io.attribute_table import check_attribute_table_driver
            check_attribute_table_driver(driver)
        if colors is not None and not (isinstance(colors, (int, np.integer)) and colors >= 0):
            raise OptionError(f'colors={colors!r} must be a seed, a whole number of at least 0')
        if colors is not None and driver == 'COG' and table is None:
            raise OptionError('colors of a COG are columns of its table; give table, or another '
                              "driver such as 'HFA'")
        if table is not None:
            from cocoseg.shepherd.segment_table import check_table_path
            table = os.fspath(table)
            check_table_path(table)
            check_writable(table)
        check_writable(path)
        return cls(path, driver, options, table, colors)

    @contextmanager
    def writing(self):
        """Yield the path of the GeoTIFF to write; a temporary one vanishes afterwards."""
        # What runs that were killed have left.
        sweep_temporaries(os.path.dirname(os.path.abspath(self.path)))
        if self.driver == 'COG':
            yield self.path
            return
        with temporary_folder(self.path) as self._folder:
            yield os.path.join(self._folder, _TEMPORARY)

    def finish(self, sizes):
        """
        Write what goes beside the GeoTIFF, or in its place, inside of :meth:`writing`.

        Args:
            sizes (ndarray): int64 (n + 1,), px by id.
        """
        colors = None
        if self.colors is not None:
            from cocoseg.io.attribute_table import random_colors
            colors = random_colors(len(sizes) - 1, self.colors)
        if self._folder is not None:
            from cocoseg.io.attribute_table import copy_labels
            copy_labels(os.path.join(self._folder, _TEMPORARY), self.path, self.driver,
                        options=self.creation_options or None, histogram=sizes, colors=colors)
        if self.table is not None:
            from cocoseg.shepherd.segment_table import SegmentTable
            # Without rows for ids that have no pixel, as in tables of statistics.
            ids = np.flatnonzero(sizes)
            columns = {'n_pixels': sizes[ids]}
            if colors is not None:
                columns.update(zip(('red', 'green', 'blue'), colors[ids].T))
            SegmentTable(ids, columns).write(self.table)
