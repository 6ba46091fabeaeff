"""Box and Roi: geometry in any number of axes, in voxels and in world units."""
import dataclasses
import pickle

import pytest

from cocoseg import BlockGrid, Box, Window
from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.roi import Roi, as_voxel_size


# ---- Box ---------------------------------------------------------------------

def test_box_knows_its_extent():
    box = Box((1, -2, 3), (4, 2, 3))
    assert (box.shape, box.ndim, box.size, box.is_empty) == ((3, 4, 0), 3, 0, True)
    assert box.slices == (slice(1, 4), slice(-2, 2), slice(3, 3))
    assert repr(box) == 'Box(1:4, -2:2, 3:3)'
    assert Box.from_shape((2, 3)) == Box((0, 0), (2, 3))


@pytest.mark.parametrize('starts, stops, match', [
    ((0, 0), (1,), 'one entry'), ((), (), 'at least one'), ((0, 2), (1, 1), 'before it starts'),
    ((0.5, 0), (1, 1), 'whole'), (('a', 0), (1, 1), 'whole')])
def test_wrong_boxes(starts, stops, match):
    with pytest.raises(CoverageError, match=match):
        Box(starts, stops)


def test_boxes_are_values_in_row_major_order():
    box = Box((1.0, 2), (3, 4))
    assert box == Box((1, 2), (3, 4)) and hash(box) == hash(Box((1, 2), (3, 4)))
    assert sorted([Box((1, 0), (2, 1)), Box((0, 5), (1, 6))])[0].starts == (0, 5)
    assert pickle.loads(pickle.dumps(box)) == box
    with pytest.raises(dataclasses.FrozenInstanceError):
        box.starts = (0, 0)


def test_a_box_of_two_axes_does_what_a_window_does():
    window, other = Window(-2, 3, 4, 8), Window(1, 1, 9, 5)
    box, rival = Box.from_slices(window.slices), Box.from_slices(other.slices)
    for ours, theirs in ((box.clip((3, 6)), window.clip((3, 6))),
                         (box.pad(2), window.pad(2)), (box.pad((1, 0)), window.pad((1, 0))),
                         (box.shift(1, -1), window.shift(1, -1)),
                         (box.intersect(rival), window.intersect(other)),
                         (box.within(rival), window.within(other))):
        assert ours == Box.from_slices(theirs.slices)
    assert box.contains(rival) == window.contains(other) is False
    assert box.contains(box)


def test_axes_must_agree():
    box = Box((0, 0), (2, 2))
    for call in (lambda: box.shift(1), lambda: box.pad((1, 2, 3)), lambda: box.clip((4,)),
                 lambda: box.intersect(Box((0,), (1,)))):
        with pytest.raises(ValueError):
            call()


@pytest.mark.parametrize('shape, block, halo', [
    ((3, 3, 3), (2, 2), (1, 1, 1)), ((3, 3), (2, 2, 2), 0), ((3, 3, 3), (2, 2, 0), 0),
    ((3, 3, 3), (2, 2, 2), -1), ((3, 3, 3), (2, 2, 1.5), 0)])
def test_wrong_grids_of_volumes(shape, block, halo):
    with pytest.raises(OptionError):
        BlockGrid(shape, block, halo)


def test_grids_of_volumes():
    grid = BlockGrid((5, 7, 9, 2), block=(4, 4, 4), halo=(0, 1, 2))
    assert (grid.shape, grid.grid_shape, len(grid)) == ((5, 7, 9), (2, 2, 3), 12)
    assert [block.index for block in grid][:4] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0)]
    block = grid.get((1, 0, 1))
    assert (block.core, block.read) == (Box((4, 0, 4), (5, 4, 8)), Box((4, 0, 2), (5, 5, 9)))
    assert [block.core for block in BlockGrid((5,), block=(4,))] == [Box((0,), (4,)),
                                                                     Box((4,), (5,))]


# ---- Roi ---------------------------------------------------------------------

def test_roi_knows_its_extent():
    roi = Roi((-40, 8), (80, 4))
    assert (roi.end, roi.ndim, roi.size, roi.is_empty) == ((40, 12), 2, 320, False)
    assert Roi((0, 0), (0, 4)).is_empty
    assert Roi.from_ends((-40, 8), (40, 12)) == roi
    assert repr(roi) == 'Roi(-40:40, 8:12)' and pickle.loads(pickle.dumps(roi)) == roi


@pytest.mark.parametrize('offset, shape, match', [
    ((0, 0), (1,), 'one entry'), ((), (), 'at least one'), ((0, 0), (1, -1), 'negative'),
    ((0.5, 0), (1, 1), 'whole')])
def test_wrong_regions(offset, shape, match):
    with pytest.raises(CoverageError, match=match):
        Roi(offset, shape)


def test_region_of_another_library():
    class Region:
        offset, shape = (8, 4), (4, 4)

    assert Roi.coerce(Region()) == Roi((8, 4), (4, 4))
    with pytest.raises(OptionError, match='Roi'):
        Roi.coerce((slice(0, 4),))


def test_region_to_voxels_and_back():
    roi = Roi((140, 8), (80, 8))
    box = roi.to_box((40, 4), origin=(100, 0))
    assert box == Box((1, 2), (3, 4))
    assert Roi.from_box(box, (40, 4), (100, 0)) == roi
    assert Roi.from_box(Window(1, 2, 3, 4), 10) == Roi((10, 20), (20, 20))


@pytest.mark.parametrize('roi', [Roi((1, 0), (40, 4)), Roi((0, 0), (41, 4)), Roi((0, 0), (40, 6))])
def test_sides_inside_of_voxels_are_refused_and_the_remedy_helps(roi):
    with pytest.raises(CoverageError, match='snap_to_grid'):
        roi.to_box((40, 4))
    for mode in ('grow', 'closest'):
        assert roi.snap_to_grid((40, 4), mode).to_box((40, 4)).size > 0


def test_snapping():
    roi = Roi((3, 5), (10, 10))
    assert roi.snap_to_grid(4) == roi.snap_to_grid(4, 'grow') == Roi.from_ends((0, 4), (16, 16))
    assert roi.snap_to_grid(4, 'shrink') == Roi.from_ends((4, 8), (12, 12))
    assert roi.snap_to_grid(4, 'closest') == Roi.from_ends((4, 4), (12, 16))
    assert roi.snap_to_grid(4, origin=(3, 1)) == Roi.from_ends((3, 5), (15, 17))
    with pytest.raises(CoverageError, match="mode='grow'"):
        Roi((1, 1), (2, 2)).snap_to_grid(4, 'shrink')
    with pytest.raises(CoverageError, match='empty'):
        Roi((1, 1), (0, 2)).snap_to_grid(4)
    with pytest.raises(OptionError, match='largest'):
        roi.snap_to_grid(4, 'largest')


def test_regions_meet():
    roi = Roi((0, 0), (10, 10))
    assert roi.intersect(Roi((5, -5), (10, 10))) == Roi((5, 0), (5, 5))
    assert roi.intersect(Roi((10, 0), (5, 5))).is_empty
    assert roi.contains(Roi((2, 2), (8, 8))) and not roi.contains(Roi((2, 2), (9, 8)))
    assert roi.contains((0, 9)) and not roi.contains((0, 10))
    assert roi.grow(2, (0, 1)) == Roi((-2, -2), (12, 13))
    assert roi.grow(-4) == Roi((4, 4), (2, 2)) and roi.shift(1, -1) == Roi((1, -1), (10, 10))
    with pytest.raises(CoverageError):
        roi.grow(-6)


@pytest.mark.parametrize('wrong', [0, (4, 4), (4, 0, 4), 3.5, (4, 4, None)])
def test_wrong_voxel_sizes(wrong):
    with pytest.raises(OptionError, match='voxel_size'):
        as_voxel_size(wrong, 3)
