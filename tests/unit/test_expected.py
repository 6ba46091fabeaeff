"""Declared windows: a grid is remembered as a table of its windows would be, in less room."""
import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from cocoseg import Window, WindowGrid
from cocoseg.errors import CoverageError
from cocoseg.stitch.coverage import Coverage
from cocoseg.stitch.expected import ExpectedGrid, ExpectedList, make_expected

from ..strategies import SEEDS, window_grids, windows_near

GRIDS = {
    'plain': WindowGrid((40, 50), 16, 5),
    'flush': WindowGrid((41, 53), (12, 16), (3, 7), 'flush'),
    'no overlap': WindowGrid((40, 48), (10, 16)),
    'nearly all': WindowGrid((9, 12), 5, 4),
    'larger than the image': WindowGrid((5, 7), 16, 4),
    'higher than the image': WindowGrid((5, 40), 16, 4),
    'wider than the image': WindowGrid((40, 5), 16, 4),
    'one pixel': WindowGrid((1, 1), 1),
    'area': WindowGrid((40, 50), 16, 5, area=shapely.Polygon([(2, 2), (30, 5), (9, 36)])),
    'area of one window': WindowGrid((40, 50), 16, 5, area=shapely.box(0, 0, 1, 1)),
    'area of all': WindowGrid((40, 50), 16, 5, area=shapely.box(0, 0, 50, 40)),
    'area, small image': WindowGrid((5, 40), 16, 4, area=shapely.box(0, 0, 3, 3)),
}


def make_pair(grid):
    """Return the record of a grid, and the table that it must agree with."""
    clip = Coverage(grid.shape).clip
    return ExpectedGrid(grid), ExpectedList(list(grid), grid.shape, clip)


def compare(record, table, windows):
    """Compare all that can be asked of two records, about these windows."""
    assert len(record) == len(table)
    assert record.n_left == table.n_left
    assert list(record) == list(table)
    assert record.pending == table.pending
    assert record.received == table.received
    for window in windows:
        key, entry = record.find(window), table.find(window)
        assert (key is None) == (entry is None), window
        if key is not None:
            assert record.count_left(key) == table.count_left(entry)
            assert record.get_declared(key, window) == table.get_declared(entry, window)


def list_near_misses(grid):
    """Return clipped windows near those of a grid: moved, larger, smaller, and of lost places."""
    found = set()
    full = WindowGrid(grid.shape, grid.window, grid.overlap, grid.fit)
    for window in full:
        for change in np.ndindex(3, 3, 3, 3):
            y0, x0, y1, x1 = (edge + step - 1 for edge, step in zip(
                (window.y0, window.x0, window.y1, window.x1), change))
            if y0 < y1 and x0 < x1:
                inside = Window(y0, x0, y1, x1).clip(grid.shape)
                if not inside.is_empty:
                    found.add(inside)
    return sorted(found)


@pytest.mark.parametrize('name', GRIDS)
def test_a_grid_is_remembered_as_a_table_would_be(name):
    grid = GRIDS[name]
    record, table = make_pair(grid)
    near = list_near_misses(grid)
    compare(record, table, near)
    order = np.random.RandomState(0).permutation(len(record))
    for number in order:
        inside = list(table)[number]
        record.take(record.find(inside))
        table.take(table.find(inside))
        compare(record, table, [inside])
    compare(record, table, near)
    assert record.n_left == 0 and record.pending == []
    assert record.received == {window.clip(grid.shape) for window in grid}


@pytest.mark.parametrize('name', ['plain', 'higher than the image', 'area'])
def test_only_windows_of_the_grid_are_found(name):
    grid = GRIDS[name]
    record, _ = make_pair(grid)
    declared = {window.clip(grid.shape) for window in grid}
    near = list_near_misses(grid)
    assert {window for window in near if record.find(window) is not None} == declared
    assert len(near) > len(declared)


def test_windows_that_the_area_leaves_out_are_not_found():
    grid = GRIDS['area']
    record, _ = make_pair(grid)
    full = list(WindowGrid(grid.shape, grid.window, grid.overlap, grid.fit))
    found = [window for window in full if record.find(window.clip(grid.shape)) is not None]
    assert found == list(grid) and 0 < len(found) < len(full)
    assert len(record) == record.n_left == len(grid)


def test_the_declared_window_overhangs_as_the_grid_does():
    record, _ = make_pair(GRIDS['larger than the image'])
    inside = Window(0, 0, 5, 7)
    assert record.get_declared(record.find(inside), inside) == Window(0, 0, 16, 16)
    assert record.pending == list(record) == [inside]


@given(st.data(), window_grids(), SEEDS)
def test_any_grid_in_any_order(data, grid, seed):
    record, table = make_pair(grid)
    windows = list(table)
    strangers = [data.draw(windows_near(grid.shape)).clip(grid.shape) for _ in range(5)]
    order = np.random.RandomState(seed).permutation(len(windows))
    stop = data.draw(st.integers(0, len(windows)))
    for number in order[:stop]:
        record.take(record.find(windows[number]))
        table.take(table.find(windows[number]))
    compare(record, table, [*windows, *strangers])


@given(window_grids(max_window=8), SEEDS)
def test_coverage_counts_a_grid_as_a_list(grid, seed):
    """Also the errors, and windows that come as they overhang."""
    first, second = Coverage(grid.shape, grid), Coverage(grid.shape, list(grid))
    windows = list(grid)
    for number in np.random.RandomState(seed).randint(0, len(windows), 2 * len(windows)):
        messages = []
        for cover in (first, second):
            try:
                cover.receive(cover.clip(windows[number]))
            except CoverageError as ex:
                messages.append(str(ex))
        assert len(messages) in (0, 2) and len(set(messages)) < 2
        assert first.is_complete == second.is_complete
    assert first.pending == second.pending and first.received == second.received
    assert first.n_received == second.n_received


# ---- which one ---------------------------------------------------------------------

def test_a_grid_over_another_image_is_a_table():
    grid = GRIDS['plain']
    assert isinstance(make_expected(grid, (40, 50), None), ExpectedGrid)
    cover = Coverage((40, 60), grid)
    for window in grid:
        cover.receive(window)
    assert cover.is_complete
    clip = Coverage((40, 60)).clip
    assert isinstance(make_expected(grid, (40, 60), clip), ExpectedList)
    assert isinstance(make_expected(list(grid), (40, 50), clip), ExpectedList)


def test_a_grid_over_a_smaller_image_is_clipped_or_refused():
    cover = Coverage((38, 49), GRIDS['plain'])
    for window in GRIDS['plain']:
        cover.receive(cover.clip(window))
    assert cover.is_complete
    with pytest.raises(CoverageError, match='no pixel in the image'):
        Coverage((20, 50), GRIDS['plain'])


def test_a_table_knows_each_declaration():
    windows = [Window(-2, 0, 4, 4), Window(0, 0, 4, 4), Window(0, 0, 4, 4)]
    record = make_expected(windows, (8, 8), Coverage((8, 8)).clip)
    inside = Window(0, 0, 4, 4)
    key = record.find(inside)
    assert len(record) == record.n_left == record.count_left(key) == 3
    assert [record.get_declared(key, window) for window in windows] == windows
    record.take(key)
    assert record.pending == [inside, inside] and record.received == {inside}


def test_the_record_of_a_grid_takes_two_bytes_per_window():
    grid = WindowGrid((4000, 4000), 16, 8)
    make_pair(GRIDS['plain'])
    tracemalloc.start()
    try:
        record = ExpectedGrid(grid)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(record) == 499 ** 2
    # Two flags, and tables of 2 x 499 starts.
    assert held < 2 * len(record) + 300_000
