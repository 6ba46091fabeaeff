"""Tables of segments: values that cannot change, and files that hold them exactly."""
import pickle
import sys

import numpy as np
import pytest

from cocoseg.errors import AssetWriteError, CocosegError, MissingDependencyError, OptionError
from cocoseg.shepherd.segment_table import SegmentTable, check_table_path


@pytest.fixture
def table():
    rng = np.random.default_rng(0)
    return SegmentTable(np.array([1, 2, 5, 2 ** 32 - 1]), {
        'mean': np.append(rng.normal(size=3), np.nan), 'p50': np.array([-9999, 7, 2, 3], np.int16),
        'wide': np.array([2 ** 40, 1, 2, 3]), 'single': rng.random(4).astype(np.float32)})


@pytest.mark.parametrize('suffix', ['.csv', '.parquet', '.PARQUET'])
def test_round_trip(table, tmp_path, suffix):
    pytest.importorskip('pyarrow' if suffix != '.csv' else 'pandas')
    path = tmp_path / f'a{suffix}'
    path.write_text('an older file')
    table.write(path)
    found = SegmentTable.read(path)
    assert found.ids.tolist() == table.ids.tolist()
    assert list(found.columns) == list(table.columns)
    for name, column in table.columns.items():
        np.testing.assert_array_equal(found[name].astype(column.dtype), column)
        if suffix != '.csv':
            assert found[name].dtype == column.dtype
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_others_can_read_it(table, tmp_path):
    pandas = pytest.importorskip('pandas')
    pytest.importorskip('pyarrow')
    table.write(tmp_path / 'a.parquet')
    table.write(tmp_path / 'a.csv')
    for frame in (pandas.read_parquet(tmp_path / 'a.parquet'),
                  pandas.read_csv(tmp_path / 'a.csv')):
        assert list(frame.columns) == ['segment', 'mean', 'p50', 'wide', 'single']
        assert frame['segment'].tolist() == table.ids.tolist()
        np.testing.assert_allclose(frame['mean'].to_numpy(), table['mean'], rtol=1e-15)


def test_pandas(table):
    frame = table.to_pandas()
    assert frame.index.name == 'segment' and frame.loc[5, 'p50'] == 2
    frame.loc[5, 'p50'] = 0
    assert table['p50'][2] == 2


def test_nothing_can_be_changed(table):
    for array in (table.ids, table['mean']):
        with pytest.raises(ValueError):
            array[0] = 1
    with pytest.raises(TypeError):
        table.columns['mean'] = 1
    with pytest.raises(AttributeError):
        table.ids = 1
    with pytest.raises(KeyError, match='none of the columns'):
        table['nothing']
    ids = np.array([3])
    SegmentTable(ids, {})
    ids[0] = 4


def test_pickle(table):
    found = pickle.loads(pickle.dumps(table))
    assert found.ids.tolist() == table.ids.tolist() and found['wide'].tolist() == table[
        'wide'].tolist()


def test_take(table):
    part = table.take([5, 1], new_ids=[1, 2])
    assert part.ids.tolist() == [1, 2] and part['p50'].tolist() == [2, -9999]
    assert len(table.take([])) == 0
    with pytest.raises(OptionError, match=r'no row for 2 of 3 segments, such as \[3, 4\]'):
        table.take([3, 1, 4])
    with pytest.raises(OptionError, match='no row'):
        SegmentTable(np.empty(0, int), {}).take([1])


def test_join(table):
    other = SegmentTable(table.ids[::-1], {'order': np.arange(4)})
    assert table.join(other)['order'].tolist() == [3, 2, 1, 0]
    with pytest.raises(OptionError, match='in both'):
        table.join(table)
    with pytest.raises(OptionError, match='no row'):
        table.join(SegmentTable(np.array([1]), {'order': np.arange(1)}))


@pytest.mark.parametrize('ids, columns, match', [
    ([0, 1], {}, '1..4294967295'), ([1, 1], {}, 'twice'), ([1.5], {}, 'whole numbers'),
    ([2 ** 32], {}, 'whole numbers'), ([[1]], {}, 'shape'), ([1], {'a': [1, 2]}, 'shape'),
    ([1], {'a': ['x']}, 'dtype'), ([1], {'Segment': [1]}, 'named'), ([1], {'': [1]}, 'named')])
def test_wrong_tables(ids, columns, match):
    with pytest.raises(OptionError, match=match):
        SegmentTable(np.array(ids), {name: np.array(column) for name, column in columns.items()})


def test_paths_are_checked_before(table, tmp_path, monkeypatch):
    with pytest.raises(OptionError, match='csv'):
        check_table_path(tmp_path / 'a.txt')
    with pytest.raises(AssetWriteError):
        check_table_path(tmp_path / 'no' / 'a.csv')
    (tmp_path / 'b.csv').mkdir()
    with pytest.raises(AssetWriteError):
        check_table_path(tmp_path / 'b.csv')
    monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
    for function in (check_table_path, table.write, SegmentTable.read):
        with pytest.raises(MissingDependencyError, match='pip install pyarrow'):
            function(tmp_path / 'a.parquet')
    check_table_path(tmp_path / 'a.csv')


def test_a_failed_write_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = tmp_path / 'a.csv'
    path.write_text('old')

    def fail(self, temp):
        temp.write_text('half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('pandas.DataFrame.to_csv', fail)
    with pytest.raises(OSError, match='No space'):
        table.write(path)
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1


def test_files_without_ids(tmp_path):
    (tmp_path / 'a.csv').write_text('a,b\n1,2\n')
    with pytest.raises(CocosegError, match="no column 'segment'"):
        SegmentTable.read(tmp_path / 'a.csv')
    (tmp_path / 'a.csv').write_text('name,segment,b\nx,3,2\n')
    assert list(SegmentTable.read(tmp_path / 'a.csv').columns) == ['b']
