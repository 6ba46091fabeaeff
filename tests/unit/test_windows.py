"""WindowGrid: where windows are placed, and which options are refused."""
import dataclasses

import numpy as np
import pytest

from cocoseg import Window, WindowGrid
from cocoseg.errors import OptionError
from cocoseg.grid.window import as_pair
from cocoseg.grid.windows import compute_starts


@pytest.mark.parametrize('size, window, overlap, balanced, flush', [
    (10, 4, 1, [0, 3, 6], [0, 3, 6]),        # fits: both are the same
    (11, 4, 1, [0, 2, 5, 7], [0, 3, 6, 7]),  # the slack is shared, or in the last pair
    (4, 4, 3, [0], [0]),                     # one window, exactly
    (3, 4, 3, [0], [0]),                     # one window that overhangs
    (5, 4, 3, [0, 1], [0, 1]),
    (5, 4, 0, [0, 1], [0, 1]),
    (8, 4, 0, [0, 4], [0, 4]),
    (3, 1, 0, [0, 1, 2], [0, 1, 2]),
])
def test_starts(size, window, overlap, balanced, flush):
    assert compute_starts(size, window, overlap) == balanced
    assert compute_starts(size, window, overlap, 'flush') == flush


def test_a_grid_is_the_product_of_its_starts():
    grid = WindowGrid((10, 7), window=(4, 5), overlap=(1, 2))
    assert grid.row_starts == [0, 3, 6]
    assert grid.column_starts == [0, 2]
    assert grid.grid_shape == (3, 2)
    assert list(grid) == [Window(y, x, y + 4, x + 5) for y in (0, 3, 6) for x in (0, 2)]
    assert len(grid) == len(list(grid)) == 6
    assert list(grid) == list(grid), 'a grid can be read again'


def test_a_small_image_gets_one_window_that_overhangs():
    assert list(WindowGrid((3, 9), window=4, overlap=2)) == [
        Window(0, 0, 4, 4), Window(0, 2, 4, 6), Window(0, 3, 4, 7), Window(0, 5, 4, 9)]


def test_grids_are_values():
    grid = WindowGrid((10, 7, 3), np.int64(4), overlap=[1, 2])
    assert grid == WindowGrid([10, 7], (4, 4), (1, 2))
    assert hash(grid) == hash(WindowGrid((10, 7), 4, (1, 2)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.window = (2, 2)


@pytest.mark.parametrize('options', [
    {'shape': (0, 5)}, {'shape': (5,)}, {'shape': (5.5, 5)},
    {'window': 0}, {'window': (4, -1)}, {'window': 4.5}, {'window': (1, 2, 3)}, {'window': 'ab'},
    {'overlap': -1}, {'overlap': 4}, {'overlap': (0, 5)}, {'overlap': 0.3}, {'overlap': None},
    {'fit': 'tight'}, {'fit': None},
])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        WindowGrid(**{'shape': (9, 9), 'window': 4, 'overlap': 1, **options})


def test_a_refusal_names_the_value_and_the_choice():
    with pytest.raises(OptionError, match=r"fit='tight'.*balanced.*flush"):
        WindowGrid((9, 9), 4, fit='tight')
    with pytest.raises(OptionError, match=r'overlap=0\.3 must be whole pixels'):
        as_pair(0.3, 'overlap')
