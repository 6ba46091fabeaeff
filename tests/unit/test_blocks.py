"""BlockGrid: cores, halos, and the blocks that a window touches."""
import dataclasses

import numpy as np
import pytest

from cocoseg import BlockGrid, Window
from cocoseg.errors import OptionError


def test_cores_in_row_major_order_are_smaller_at_the_far_edges():
    grid = BlockGrid((5, 7), block=(4, 3))
    assert grid.grid_shape == (2, 3)
    assert [block.index for block in grid] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [block.core for block in grid][:3] == [
        Window(0, 0, 4, 3), Window(0, 3, 4, 6), Window(0, 6, 4, 7)]
    assert grid.get((1, 2)).core == Window(4, 6, 5, 7)
    assert len(grid) == 6


def test_one_block_may_be_larger_than_the_image():
    (block,) = BlockGrid((5, 7), block=100, halo=9)
    assert block.core == block.read == Window(0, 0, 5, 7)


def test_the_halo_is_clipped_to_the_image():
    grid = BlockGrid((9, 9), block=3, halo=(1, 2))
    assert grid.get((1, 1)).read == Window(2, 1, 7, 8)
    assert grid.get((0, 2)).read == Window(0, 4, 4, 9)
    assert all(block.read.contains(block.core) for block in grid)
    assert all(block.core == block.read for block in BlockGrid((9, 9), 3))


def test_touched_by():
    grid = BlockGrid((10, 10), block=4)
    assert grid.touched_by(Window(0, 0, 4, 4)) == (slice(0, 1), slice(0, 1))
    assert grid.touched_by(Window(3, 4, 5, 10)) == (slice(0, 2), slice(1, 3))


def test_grids_are_values():
    grid = BlockGrid((10, 7, 3), np.int32(4))
    assert grid == BlockGrid([10, 7], (4, 4), 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.block = (1, 1)


@pytest.mark.parametrize('options', [
    {'shape': (0, 5)}, {'shape': (5.5, 5)}, {'block': 0}, {'block': (4, -1)}, {'block': 2.5},
    {'halo': -1}, {'halo': (0, -1)}, {'halo': 1.5},
])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        BlockGrid(**{'shape': (9, 9), 'block': 4, **options})
