"""
Raster attribute tables: figures of segments inside of a label raster.

Only some formats can hold such a table: a row per label, from 0 on, and columns
of numbers. Everything here asks :func:`check_attribute_table_driver` first, so
that nobody learns after a long run that a format cannot.
"""
from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager

import numpy as np

from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.io.commit import atomic_write, check_writable, refusing
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.label_dataset import open_labels
from cocoseg.io.raster import open_dataset
from cocoseg.io.strips import Source

DRIVERS = ('HFA', 'KEA')
# Rows that are written at a time.
PAGE_ROWS = 100_000
# What a file of format HFA keeps of a name.
_MAX_NAME_BYTES = 63
_INT32 = np.iinfo(np.int32)
_DEFAULT_OPTIONS = {'HFA': ('COMPRESS=YES',), 'KEA': ()}


def check_attribute_table_driver(name):
    """
    Raise unless a format can hold an attribute table, and can be written here.

    Args:
        name (str): GDAL's name of the format.

    Raises:
        OptionError: if it cannot, or there is none of this name.
        MissingDependencyError: if this GDAL was built without it.

    Example:
        >>> from cocoseg.io.attribute_table import check_attribute_table_driver
        >>> check_attribute_table_driver('HFA')
        >>> check_attribute_table_driver('GTiff')
        Traceback (most recent call last):
            ...
        cocoseg.errors.OptionError: the format 'GTiff' holds no attribute table; use one of \
('HFA', 'KEA'), or write the table beside it, as Parquet or CSV
    """
    if name not in DRIVERS:
        raise OptionError(f'the format {name!r} holds no attribute table; use one of {DRIVERS}, '
                          'or write the table beside it, as Parquet or CSV')
    if require_gdal().GetDriverByName(name) is None:
        raise MissingDependencyError(f'this GDAL was built without the format {name}; install '
                                     'one that has it, or use HFA')


def check_attribute_table_file(fpath):
    """
    Raise unless an attribute table can be written to a raster that exists.

    Args:
        fpath (str | PathLike): path of a raster.

    Raises:
        OptionError: if its format cannot hold one.
        PermissionError: if it cannot be written to.
        OSError: if GDAL cannot open it.
    """
    with open_dataset(fpath) as dataset:
        name = dataset.GetDriver().ShortName
    check_attribute_table_driver(name)
    if not os.access(fpath, os.W_OK):
        raise PermissionError(13, 'the raster cannot be written to', os.fspath(fpath))


def random_colors(n_labels, seed=0):
    """
    Return a color per label, to tell neighbors from each other.

    Args:
        n_labels (int): largest label.
        seed (int): the same one gives the same colors; the first labels keep
            theirs when there are more.

    Returns:
        ndarray: uint8, shape (N + 1, 4), RGBA; label 0 is transparent.

    Example:
        >>> from cocoseg.io.attribute_table import random_colors
        >>> colors = random_colors(100)
        >>> colors.shape, colors[0].tolist(), colors[1:, 3].min().item()
        ((101, 4), [0, 0, 0, 0], 255)
    """
    colors = np.zeros((n_labels + 1, 4), np.uint8)
    colors[1:, :3] = np.random.default_rng(seed).integers(0, 256, (n_labels, 3))
    colors[1:, 3] = 255
    return colors


def estimate_statistics(histogram):
    """
    Return GDAL's metadata about the labels of a raster, from their histogram.

    Args:
        histogram (ndarray): pixels by label, shape (N + 1,); entry 0 (null)
            does not count.

    Returns:
        dict[str, str]: 'STATISTICS_…'; empty if there is no label.

    Example:
        >>> from cocoseg.io.attribute_table import estimate_statistics
        >>> found = estimate_statistics(np.array([9, 0, 3, 1]))
        >>> found['STATISTICS_MINIMUM'], found['STATISTICS_MEAN'], found['STATISTICS_MODE']
        ('2', '2.25', '2')
    """
    counts = np.array(histogram, np.float64)
    counts[:1] = 0
    present = np.flatnonzero(counts)
    if len(present) == 0:
        return {}
    labels, weights = present.astype(np.float64), counts[present]
    total = weights.sum()
    mean = (labels * weights).sum() / total
    deviation = np.sqrt(((labels - mean) ** 2 * weights).sum() / total)
    median = present[np.searchsorted(np.cumsum(weights), total / 2)]
    found = {'MINIMUM': present[0], 'MAXIMUM': present[-1], 'MEAN': mean, 'STDDEV': deviation,
             'MODE': counts.argmax(), 'MEDIAN': median, 'SKIPFACTORX': 1, 'SKIPFACTORY': 1}
    # As Python's own numbers, which print themselves exactly.
    texts = {f'STATISTICS_{name}': str(np.asarray(value).item()) for name, value in found.items()}
    return {**texts, 'STATISTICS_HISTOBINFUNCTION': 'direct'}


def write_attribute_table(fpath, table):
    """
    Add the columns of a table to a label raster that exists.

    A column of the same name is replaced. Whole numbers are stored in 32 bits,
    or as reals if they do not fit. Labels without a row get 0. The file is
    changed in place: an error leaves it readable, but perhaps not all columns
    filled; write them again.

    Args:
        fpath (str | PathLike): a raster of format HFA or KEA.
        table (SegmentTable): columns by segment.

    Raises:
        OptionError: if its format cannot hold the table; before any change.
        OSError: if GDAL cannot write it.

    Example:
        >>> from cocoseg.io.attribute_table import copy_labels, write_attribute_table
        >>> from cocoseg.io.raster import open_dataset
        >>> from cocoseg.shepherd.segment_table import SegmentTable
        >>> table = SegmentTable(np.array([1, 2]), {'area': np.array([3, 2])})
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.img')
        >>>     copy_labels(np.array([[1, 1, 2], [1, 0, 2]]), fpath)
        >>>     write_attribute_table(fpath, table)
        >>>     with open_dataset(fpath) as dataset:
        >>>         found = dataset.GetRasterBand(1).GetDefaultRAT().ReadAsArray(0).tolist()
        >>> found
        [0, 3, 2]
    """
    check_attribute_table_file(fpath)
    _check_names(table.columns)
    with _open_update(fpath) as dataset:
        _write_columns(dataset, table.ids, table.columns)


def write_label_raster_attributes(fpath, histogram, colors=None):
    """
    Write what viewers expect of a label raster: histogram, statistics, colors.

    As :func:`write_attribute_table`, of the columns 'Histogram' and, with
    colors, 'Red', 'Green', 'Blue' and 'Opacity'.

    Args:
        fpath (str | PathLike): a raster of format HFA or KEA.
        histogram (ndarray): pixels by label, shape (N + 1,); entry 0 (null)
            does not count.
        colors (ndarray | None): uint8 RGB(A) by label, shape (N + 1, 3) or
            (N + 1, 4), such as of :func:`random_colors`.

    Raises:
        OptionError: if its format cannot hold them, or the shapes do not fit;
            before any change.
        OSError: if GDAL cannot write it.
    """
    check_attribute_table_file(fpath)
    histogram, colors = _check_attributes(histogram, colors)
    with _open_update(fpath) as dataset:
        _write_attributes(dataset, histogram, colors)


def copy_labels(src, dst, driver='HFA', *, options=None, histogram=None, colors=None, table=None,
                crs=None, transform=None):
    """
    Copy labels to a format that holds an attribute table, of any size.

    The file is marked as thematic and appears when it is complete. What is
    larger than 2 GB as HFA has most in a second file, ``.ige``, beside it.

    Args:
        src (str | PathLike | ndarray): a path that GDAL opens, such as a label
            COG, or (H, W) whole numbers.
        dst (str | PathLike): path of the file; its folder must exist.
        driver (str): 'HFA' or 'KEA'.
        options (Sequence[str] | None): creation options of the driver, such as
            'COMPRESS=YES', which HFA has by default.
        histogram, colors: as for :func:`write_label_raster_attributes`.
        table (SegmentTable | None): as for :func:`write_attribute_table`.
        crs, transform: of an array, as for :func:`cocoseg.write_cog`.

    Raises:
        OptionError: if something cannot be honoured; before any work.
        MissingDependencyError: if this GDAL was built without the driver.
        AssetWriteError: if the file cannot be read back.
        OSError: if GDAL or the system cannot read or write.
    """
    check_attribute_table_driver(driver)
    source = Source.open(src, 'labels', crs=crs, transform=transform).as_label_source()
    check_writable(dst)
    if table is not None:
        _check_names(table.columns)
    if histogram is not None or colors is not None:
        histogram, colors = _check_attributes(histogram, colors)
    options = list(_DEFAULT_OPTIONS[driver] if options is None else options)
    final = os.path.abspath(dst)
    folder, name = os.path.split(final)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.cocoseg-labels-') as work:
        # Under its own name, by which the two files of large ones know each other.
        made = os.path.join(work, name)
        _create_copy(source, made, driver, options)
        with _open_update(made) as dataset:
            if histogram is not None:
                _write_attributes(dataset, histogram, colors)
            if table is not None:
                _write_columns(dataset, table.ids, table.columns)
        with atomic_write(final, verify=refusing(final, _make_check(source))) as temp:
            second = os.path.splitext(name)[0] + '.ige'
            if os.path.exists(os.path.join(work, second)):
                os.replace(os.path.join(work, second), os.path.join(folder, second))
            os.replace(made, temp)


def _create_copy(source, fpath, driver, options):
    """Copy the pixels, as they are, and say that they are classes."""
    gdal = require_gdal()
    with gdal_errors_as_exceptions(f'writing {fpath}') as errors:
        with open_labels(source) as dataset:
            copy = gdal.GetDriverByName(driver).CreateCopy(fpath, dataset, 0, options)
            errors.check(f'writing {fpath}', copy)
            copy.GetRasterBand(1).SetMetadataItem('LAYER_TYPE', 'thematic')
            close_dataset(copy)


def _make_check(source):
    def check(temp):
        with open_dataset(temp) as dataset:
            found = dataset.RasterYSize, dataset.RasterXSize
        if found != source.shape[:2]:
            raise OSError(f'it has {found} px instead of {source.shape[:2]}')
    return check


@contextmanager
def _open_update(fpath):
    """Yield GDAL's dataset, to be changed."""
    gdal = require_gdal()
    name = os.fspath(fpath)
    with gdal_errors_as_exceptions(f'writing to {name}') as errors:
        dataset = gdal.OpenEx(os.fsencode(name), gdal.OF_RASTER | gdal.OF_UPDATE)
        errors.check(f'opening {name} to write to it', dataset)
        try:
            yield dataset
        finally:
            close_dataset(dataset)


def _check_names(names):
    for name in names:
        if not name.strip() or len(name.encode()) > _MAX_NAME_BYTES:
            raise OptionError(f'the column {name!r} has {len(name.encode())} bytes; an attribute '
                              f'table keeps names of 1..{_MAX_NAME_BYTES}')


def _check_attributes(histogram, colors):
    """Return both as arrays; colors with four columns, or None."""
    histogram = np.asarray(histogram)
    if histogram.ndim != 1 or histogram.dtype.kind not in 'iuf' or len(histogram) == 0:
        raise OptionError(f'histogram has shape {histogram.shape} and dtype {histogram.dtype}; it '
                          'must be a number of pixels for each label from 0 on')
    if colors is None:
        return histogram, None
    colors = np.asarray(colors)
    if colors.dtype != np.uint8 or colors.shape not in ((len(histogram), 3), (len(histogram), 4)):
        raise OptionError(f'colors have shape {colors.shape} and dtype {colors.dtype}; they must '
                          f'be uint8 ({len(histogram)}, 3) or ({len(histogram)}, 4)')
    return histogram, colors


def _write_attributes(dataset, histogram, colors):
    gdal = require_gdal()
    band = dataset.GetRasterBand(1)
    counts = np.array(histogram, np.float64)
    counts[0] = 0
    columns = {'Histogram': counts}
    usages = {'Histogram': gdal.GFU_PixelCount}
    if colors is not None:
        names = ('Red', 'Green', 'Blue', 'Opacity')
        kinds = (gdal.GFU_Red, gdal.GFU_Green, gdal.GFU_Blue, gdal.GFU_Alpha)
        usages.update(zip(names, kinds))
        columns.update(zip(names, colors.T.astype(np.int32)))
        if colors.shape[1] == 3:
            columns['Opacity'] = np.minimum(np.arange(len(colors)), 1).astype(np.int32) * 255
    _write_columns(dataset, np.arange(len(counts)), columns, usages)
    band.SetMetadataItem('LAYER_TYPE', 'thematic')
    for key, value in estimate_statistics(histogram).items():
        band.SetMetadataItem(key, value)


def _write_columns(dataset, ids, columns, usages=None):
    """Write columns to the table of the first band, page by page."""
    gdal = require_gdal()
    rat = dataset.GetRasterBand(1).GetDefaultRAT()
    if rat is None:
        raise RuntimeError('there is no attribute table')
    n_rows = max(rat.GetRowCount(), int(ids.max(initial=0)) + 1)
    if n_rows > rat.GetRowCount():
        rat.SetRowCount(n_rows)
    order = np.argsort(ids, kind='stable')
    sorted_ids = ids[order]
    kinds = {name: _choose_kind(column) for name, column in columns.items()}
    places = {rat.GetNameOfCol(place): place for place in range(rat.GetColumnCount())}
    for name in set(kinds) & set(places):
        # GDAL cannot remove a column; whole numbers can be stored as reals.
        if rat.GetTypeOfCol(places[name]) not in (kinds[name], gdal.GFT_Real):
            raise OptionError(f'the attribute table has a column {name!r} of whole numbers '
                              'already; give the new one another name')
    for name, column in columns.items():
        if name not in places:
            places[name] = rat.GetColumnCount()
            if rat.CreateColumn(name, kinds[name], (usages or {}).get(name, gdal.GFU_Generic)):
                raise RuntimeError(f'the column {name!r} cannot be made')
        dtype = np.int32 if kinds[name] == gdal.GFT_Integer else np.float64
        for start in range(0, n_rows, PAGE_ROWS):
            page = np.zeros(min(PAGE_ROWS, n_rows - start), dtype)
            first, stop = np.searchsorted(sorted_ids, [start, start + len(page)])
            page[sorted_ids[first:stop].astype(np.int64) - start] = column[order[first:stop]]
            if rat.WriteArray(page, places[name], start):
                raise RuntimeError(f'the column {name!r} cannot be written from row {start} on')


def _choose_kind(column):
    """Return GDAL's type of a column: 32 bits, or real."""
    gdal = require_gdal()
    is_whole = column.dtype.kind in 'biu' and (len(column) == 0 or (
        _INT32.min <= column.min() and column.max() <= _INT32.max))
    return gdal.GFT_Integer if is_whole else gdal.GFT_Real
