"""The geometry of a pyramid: which tiles, in which order, and where."""
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cocoseg.io.levels import MARK, Level, iter_z_order
from cocoseg.io.overviews import compute_overview_shapes

GRIDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def interleave_bits(row, column):
    """Return the place of a tile on a Z curve."""
    return sum((row >> k & 1) << 2 * k + 1 | (column >> k & 1) << 2 * k for k in range(16))


@given(GRIDS)
def test_the_order_is_that_of_interleaved_bits(grid_shape):
    every = [(row, column) for row in range(grid_shape[0]) for column in range(grid_shape[1])]
    assert list(iter_z_order(grid_shape)) == sorted(every, key=lambda at: interleave_bits(*at))


@given(GRIDS)
def test_few_overview_tiles_wait_at_a_time(grid_shape):
    """Those of a square follow each other: at most three wait in each level."""
    waiting, n_levels, most = {}, 0, 0
    while 2 ** n_levels < max(grid_shape):
        n_levels += 1

    def offer(level, index):
        if level > n_levels:
            return 0
        parent, below = (level, index[0] // 2, index[1] // 2), 2 ** (level - 1)
        rows, columns = (-(-size // below) for size in grid_shape)
        waiting[parent] = waiting.get(parent, 0) + 1
        expected = (min(2, rows - index[0] // 2 * 2) * min(2, columns - index[1] // 2 * 2))
        if waiting[parent] == expected:
            del waiting[parent]
            offer(level + 1, parent[1:])
        return sum(waiting.values())
    for index in iter_z_order(grid_shape):
        most = max(most, offer(1, index))
    assert waiting == {} and most <= 3 * n_levels


@pytest.mark.parametrize('grid_shape', [(1, 1), (1, 1000), (1000, 1), (3, 200)])
def test_long_grids_are_walked_without_detours(grid_shape):
    found = list(iter_z_order(grid_shape))
    assert len(found) == len(set(found)) == grid_shape[0] * grid_shape[1]


@given(shape=st.tuples(st.integers(1, 700), st.integers(1, 700)), n_planes=st.integers(1, 3),
       seed=st.integers(0, 999))
def test_pieces_come_plane_by_plane_and_row_by_row(shape, n_planes, seed):
    level = Level(shape, 64, n_planes)
    rng = np.random.default_rng(seed)
    level.offsets[...] = rng.integers(0, 2 ** 40, level.offsets.shape)
    level.counts[...] = rng.integers(1, 2 ** 31, level.counts.shape)
    expected = [(level.offsets[at], level.counts[at] + 2 * MARK)
                for at in np.ndindex(*level.counts.shape)]
    assert list(level.iter_pieces()) == expected
    rows, columns = -(-shape[0] // 64), -(-shape[1] // 64)
    assert level.counts.shape == (n_planes, rows, columns) and level.shape == shape
    assert all(type(number) is int for piece in level.iter_pieces() for number in piece)


@given(shape=st.tuples(st.integers(1, 3000), st.integers(1, 3000)))
def test_each_tile_lies_below_exactly_one_tile_of_the_next_level(shape):
    shapes = [shape, *compute_overview_shapes(shape, 64)]
    for below, above in zip(shapes, shapes[1:]):
        fine, coarse = Level(below, 64, 1).grid, Level(above, 64, 1).grid
        assert coarse.grid_shape == tuple(-(-size // 2) for size in fine.grid_shape)
        # The halves of its tiles fill a coarse tile without a gap.
        for index in ((0, 0), (coarse.grid_shape[0] - 1, coarse.grid_shape[1] - 1)):
            height, width = coarse.get(index).core.shape
            rows = [fine.get((row, 0)).core.shape[0]
                    for row in range(2 * index[0], min(2 * index[0] + 2, fine.grid_shape[0]))]
            columns = [fine.get((0, column)).core.shape[1] for column in
                       range(2 * index[1], min(2 * index[1] + 2, fine.grid_shape[1]))]
            assert sum(-(-size // 2) for size in rows) == height
            assert sum(-(-size // 2) for size in columns) == width
