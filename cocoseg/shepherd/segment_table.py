"""
The table of segments: one row per segment, in memory, read and written whole.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Mapping

import numpy as np
from numpy.typing import ArrayLike

from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.io.commit import atomic_write, check_writable
from cocoseg.io.strips import MAX_LABEL
from cocoseg.protocols import PathLike

if TYPE_CHECKING:
    import pandas

ID_COLUMN = 'segment'
SUFFIXES = ('.csv', '.parquet')


@dataclass(frozen=True, eq=False)
class SegmentTable:
    """
    Figures of segments: one row per segment, by ascending id.

    Ids that do not occur in the image have no row. All arrays are read-only.

    Args:
        ids (array_like): whole numbers, shape (N,), at least 1, each once.
        columns (Mapping[str, array_like]): of numbers, shape (N,), by name.

    Raises:
        OptionError: if a column has another length, is not of numbers, or is
            named 'segment'; or if an id is there twice.

    Example:
        >>> from cocoseg.shepherd.segment_table import SegmentTable
        >>> table = SegmentTable(np.array([1, 2, 5]), {'mean': np.array([0.5, 7, 1])})
        >>> len(table), list(table.columns), float(table['mean'][1])
        (3, ['mean'], 7.0)
        >>> table.take([5, 1]).ids.tolist()
        [5, 1]
    """

    ids: np.ndarray
    columns: Mapping[str, np.ndarray]

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, ids: ArrayLike, columns: Mapping[str, ArrayLike]) -> None: ...

    def __post_init__(self):
        ids = np.asarray(self.ids)
        if ids.ndim != 1 or (ids.size and (ids.dtype.kind not in 'iu' or ids.min() < 1
                                           or ids.max() > MAX_LABEL)):
            raise OptionError(f'ids have shape {ids.shape} and dtype {ids.dtype}; they must be a '
                              f'list of whole numbers in 1..{MAX_LABEL}')
        if len(np.unique(ids)) < len(ids):
            raise OptionError('an id is there twice; a table has one row per segment')
        columns = {name: np.asarray(column) for name, column in self.columns.items()}
        for name, column in columns.items():
            _check_column(name, column, len(ids))
        object.__setattr__(self, 'ids', _lock(ids.astype(np.uint32, copy=False)))
        object.__setattr__(self, 'columns', MappingProxyType(
            {name: _lock(column) for name, column in columns.items()}))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, name: str) -> np.ndarray:
        """Return a column by name."""
        if name not in self.columns:
            raise KeyError(f'{name!r} is none of the columns {list(self.columns)}')
        return self.columns[name]

    def __repr__(self):
        return f'SegmentTable({len(self)} segments, columns {list(self.columns)})'

    def __reduce__(self):
        return type(self), (np.array(self.ids), dict(self.columns))

    def find_rows(self, ids: ArrayLike) -> np.ndarray:
        """
        Return the rows of segments.

        Args:
            ids (array_like): of segments, in any order.

        Returns:
            ndarray: int64, shape like ``ids``.

        Raises:
            OptionError: if a segment has no row.

        Example:
            >>> SegmentTable(np.array([2, 3]), {}).find_rows([3])
            array([1])
        """
        ids = np.asarray(ids)
        order = np.argsort(self.ids, kind='stable')
        places = np.searchsorted(self.ids, ids, sorter=order)
        rows = order[np.minimum(places, max(len(self) - 1, 0))] if len(self) else places
        missing = ids != self.ids[rows] if len(self) else np.ones(ids.shape, bool)
        if missing.any():
            raise OptionError(f'the table has no row for {int(missing.sum())} of {ids.size} '
                              f'segments, such as {ids[missing][:3].tolist()}; make it from the '
                              'same raster')
        return rows

    def take(self, ids: ArrayLike, new_ids: ArrayLike | None = None) -> SegmentTable:
        """
        Return the rows of some segments.

        Args:
            ids (array_like): of segments, in the wanted order.
            new_ids (array_like | None): what they are called in the new table;
                None keeps their ids.

        Returns:
            SegmentTable: a new one.

        Raises:
            OptionError: if a segment has no row.

        Example:
            >>> table = SegmentTable(np.array([4, 9]), {'area': np.array([30, 50])})
            >>> part = table.take([9], new_ids=[1])
            >>> part.ids.tolist(), part['area'].tolist()
            ([1], [50])
        """
        rows = self.find_rows(ids)
        return SegmentTable(self.ids[rows] if new_ids is None else np.asarray(new_ids),
                            {name: column[rows] for name, column in self.columns.items()})

    def join(self, other: SegmentTable) -> SegmentTable:
        """
        Return a table with the columns of another one beside these.

        Args:
            other (SegmentTable): has a row for each segment of this one.

        Raises:
            OptionError: if a segment has no row there, or a column is in both.

        Example:
            >>> first = SegmentTable(np.array([1, 2]), {'a': np.array([3, 4])})
            >>> second = SegmentTable(np.array([2, 1]), {'b': np.array([5, 6])})
            >>> first.join(second)['b'].tolist()
            [6, 5]
        """
        twice = sorted(set(self.columns) & set(other.columns))
        if twice:
            raise OptionError(f'columns {twice} are in both tables')
        return SegmentTable(self.ids, {**self.columns, **other.take(self.ids).columns})

    def to_pandas(self) -> pandas.DataFrame:
        """
        Return a ``pandas.DataFrame`` whose index is the id.

        Raises:
            MissingDependencyError: without pandas.

        Example:
            >>> table = SegmentTable(np.array([4]), {'area': np.array([30])})
            >>> int(table.to_pandas().loc[4, 'area'])
            30
        """
        pandas = _require('pandas')
        return pandas.DataFrame({name: np.array(column) for name, column in self.columns.items()},
                                index=pandas.Index(np.array(self.ids), name=ID_COLUMN))

    def write(self, fpath: PathLike) -> None:
        """
        Write a file, which appears when it is complete.

        The ids are the first column, 'segment'.

        Args:
            fpath (str | PathLike): path that ends with '.csv' or '.parquet'; its
                folder must exist.

        Raises:
            OptionError: for another suffix.
            MissingDependencyError: without pyarrow, which writes Parquet, or
                pandas, which writes CSV.
            OSError: as the system reports it.

        Example:
            >>> import os, tempfile
            >>> table = SegmentTable(np.array([4, 7]), {'mean': np.array([0.1, np.nan])})
            >>> with tempfile.TemporaryDirectory() as folder:
            >>>     table.write(os.path.join(folder, 'a.csv'))
            >>>     text = open(os.path.join(folder, 'a.csv')).read()
            >>>     found = SegmentTable.read(os.path.join(folder, 'a.csv'))
            >>> text.split(), found['mean'].tolist()
            (['segment,mean', '4,0.1', '7,'], [0.1, nan])
        """
        check_table_path(fpath)
        with atomic_write(fpath) as temp:
            if _get_suffix(fpath) == '.csv':
                self.to_pandas().to_csv(temp)
                return
            arrow, parquet = _require('pyarrow'), _require('pyarrow.parquet')
            arrays = {ID_COLUMN: self.ids, **self.columns}
            parquet.write_table(arrow.table(
                {name: arrow.array(array) for name, array in arrays.items()}), os.fspath(temp))

    @classmethod
    def read(cls, fpath: PathLike) -> SegmentTable:
        """
        Read a file that :meth:`write` wrote, or one like it.

        Args:
            fpath (str | PathLike): path that ends with '.csv' or '.parquet'.

        Returns:
            SegmentTable: with the columns of numbers.

        Raises:
            OptionError: for another suffix, or without a column 'segment'.
            FileNotFoundError: if there is no such file.
            MissingDependencyError: without what reads it.
        """
        if _get_suffix(fpath) == '.parquet':
            frame = _require('pyarrow.parquet').read_table(os.fspath(fpath))
            columns = {name: frame[name].to_numpy() for name in frame.column_names}
        else:
            frame = _read_csv(fpath)
            columns = {name: frame[name].to_numpy() for name in frame.columns}
        if ID_COLUMN not in columns:
            raise OptionError(f'{os.fspath(fpath)} has no column {ID_COLUMN!r}, but '
                              f'{list(columns)}')
        ids = columns.pop(ID_COLUMN)
        return cls(ids, {name: column for name, column in columns.items()
                         if column.dtype.kind in 'biuf'})


def check_table_path(fpath):
    """
    Raise unless a table could be written to a path; nothing is written.

    Args:
        fpath (str | PathLike): path that :meth:`SegmentTable.write` will get.

    Raises:
        OptionError: if its suffix is unknown.
        MissingDependencyError: without what writes it.
        AssetWriteError: if there is no such folder, it cannot be written to,
            or the path is a folder.

    Example:
        >>> from cocoseg.shepherd.segment_table import check_table_path
        >>> check_table_path('table.xlsx')
        Traceback (most recent call last):
            ...
        cocoseg.errors.OptionError: 'table.xlsx' does not end with one of ('.csv', '.parquet')
    """
    if _get_suffix(fpath) == '.parquet':
        _require('pyarrow.parquet')
    else:
        _require('pandas')
    check_writable(fpath)


def _get_suffix(fpath):
    suffix = Path(fpath).suffix.lower()
    if suffix not in SUFFIXES:
        raise OptionError(f'{os.fspath(fpath)!r} does not end with one of {SUFFIXES}')
    return suffix


def _read_csv(fpath):
    """Return a frame whose numbers are exactly those of the text."""
    pandas = _require('pandas')
    # From version 3 on that is the default, and asking for it is deprecated.
    is_old = int(pandas.__version__.partition('.')[0]) < 3
    return pandas.read_csv(fpath, **{'float_precision': 'round_trip'} if is_old else {})


def _require(name):
    import importlib
    try:
        return importlib.import_module(name)
    except ImportError as ex:
        package = name.partition('.')[0]
        raise MissingDependencyError(
            f'{package} is needed for this kind of table, and cannot be imported: {ex}. Install '
            f'it by `pip install {package}`, or use another of {SUFFIXES}') from ex


def _check_column(name, column, n_rows):
    if not isinstance(name, str) or not name or name.casefold() == ID_COLUMN:
        raise OptionError(f'a column is named {name!r}; give another name')
    if column.shape != (n_rows,) or column.dtype.kind not in 'biuf':
        raise OptionError(f'the column {name!r} has shape {column.shape} and dtype '
                          f'{column.dtype}; it must be ({n_rows},) numbers')


def _lock(array):
    """Return a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view
