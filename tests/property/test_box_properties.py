"""Boxes and blocks in one to four axes, against masks of numpy."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import BlockGrid, Box
from cocoseg.grid.roi import SNAP_MODES, Roi

FEW = settings(max_examples=50)
# Boxes lie in arrays that begin here, so that all their edges are inside.
LOW, HIGH = -4, 9


@st.composite
def boxes(draw, ndim, low=LOW, high=HIGH):
    """Draw a box with edges in low..high; it may be empty."""
    edges = [sorted(draw(st.tuples(*[st.integers(low, high)] * 2))) for _ in range(ndim)]
    return Box(*zip(*edges))


@st.composite
def box_pairs(draw):
    """Draw two boxes of one number of axes."""
    ndim = draw(st.integers(1, 3))
    return draw(boxes(ndim)), draw(boxes(ndim))


@st.composite
def block_grids(draw):
    """Draw a grid of one to four axes, and whose blocks may be larger than it."""
    ndim = draw(st.integers(1, 4))
    limits = {1: 40, 2: 12, 3: 7, 4: 4}
    sizes, blocks = (st.tuples(*[st.integers(1, limits[ndim])] * ndim) for _ in range(2))
    return BlockGrid(draw(sizes), draw(blocks), draw(st.tuples(*[st.integers(0, 3)] * ndim)))


def as_mask(box):
    """Return which voxels of an array that begins at LOW are inside."""
    mask = np.zeros((HIGH - LOW,) * box.ndim, bool)
    mask[tuple(slice(part.start - LOW, part.stop - LOW) for part in box.slices)] = True
    return mask


@FEW
@given(box_pairs())
def test_boxes_meet_where_their_masks_do(pair):
    first, second = pair
    common = first.intersect(second)
    assert common.ndim == first.ndim
    np.testing.assert_array_equal(as_mask(common), as_mask(first) & as_mask(second))
    assert common.size == np.count_nonzero(as_mask(first) & as_mask(second))
    assert first.contains(common) or common.is_empty
    if not second.is_empty:
        assert first.contains(second) == (as_mask(second) <= as_mask(first)).all()


@FEW
@given(box_pairs(), st.integers(1, 8))
def test_clipped_boxes_index_arrays(pair, size):
    box, _ = pair
    shape = (size,) * box.ndim
    inside = box.clip(shape)
    expected = as_mask(box)[(slice(-LOW, -LOW + size),) * box.ndim]
    mask = np.zeros(shape, bool)
    mask[inside.slices] = True
    np.testing.assert_array_equal(mask, expected)


@FEW
@given(box_pairs())
def test_within_finds_the_part_again(pair):
    outer, inner = pair
    inner = outer.intersect(inner)
    if inner.is_empty:
        return
    field = np.arange((HIGH - LOW) ** outer.ndim).reshape((HIGH - LOW,) * outer.ndim)
    np.testing.assert_array_equal(
        field[outer.shift(*[-LOW] * outer.ndim).slices][inner.within(outer).slices],
        field[inner.shift(*[-LOW] * outer.ndim).slices])


@FEW
@given(block_grids())
def test_cores_partition_the_volume_and_lie_in_what_is_read(grid):
    hits = np.zeros(grid.shape, int)
    frame = Box.from_shape(grid.shape)
    blocks = list(grid)
    for block in blocks:
        core, read = (Box.from_slices(one.slices) for one in (block.core, block.read))
        hits[core.slices] += 1
        assert not core.is_empty and read.contains(core) and frame.contains(read)
        assert read == core.pad(grid.halo).clip(grid.shape)
        assert grid.get(block.index) == block
    assert hits.min() == hits.max() == 1
    assert len(blocks) == len(grid) == len({block.index for block in blocks})
    assert [block.index for block in blocks] == sorted(block.index for block in blocks)


@FEW
@given(st.integers(1, 3).flatmap(lambda ndim: st.tuples(
    boxes(ndim, -50, 50), st.tuples(*[st.integers(1, 9)] * ndim),
    st.tuples(*[st.integers(-5, 5)] * ndim))), st.sampled_from(SNAP_MODES))
def test_snapped_regions_are_those_of_whole_voxels(drawn, mode):
    box, voxel_size, origin = drawn
    roi = Roi(box.starts, box.shape)
    if roi.is_empty or (mode != 'grow' and min(np.subtract(roi.shape, voxel_size) // voxel_size)
                        < 1):
        return
    found = roi.snap_to_grid(voxel_size, mode, origin)
    voxels = found.to_box(voxel_size, origin)
    assert Roi.from_box(voxels, voxel_size, origin) == found
    moved = np.abs(np.subtract((found.offset, found.end), (roi.offset, roi.end)))
    assert (moved < voxel_size).all()
    assert {'grow': found.contains(roi), 'shrink': roi.contains(found),
            'closest': (2 * moved <= voxel_size).all()}[mode]
    assert found.snap_to_grid(voxel_size, mode, origin) == found
