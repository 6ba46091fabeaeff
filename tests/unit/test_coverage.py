"""Coverage: counting windows down to complete images and final blocks."""
import numpy as np
import pytest

from cocoseg import BlockGrid, Window, WindowGrid
from cocoseg.errors import CoverageError
from cocoseg.stitch.coverage import Coverage

SHAPE = (40, 50)
GRID = WindowGrid(SHAPE, window=16, overlap=5)


def receive(cover, window):
    """Receive a window as the stitcher does: clipped."""
    return cover.receive(cover.clip(window))


def test_each_window_once_and_it_is_complete():
    cover = Coverage(SHAPE, GRID)
    assert cover.is_declared and not cover.is_complete
    left = list(GRID)
    while left:
        assert cover.pending == left
        receive(cover, left.pop(0))
    assert cover.is_complete and cover.pending == []
    assert cover.n_received == len(GRID)


def test_without_a_declaration_nothing_is_ever_complete():
    cover = Coverage(SHAPE, blocks=BlockGrid(SHAPE, 8))
    for _ in range(2):
        assert receive(cover, Window.from_shape(SHAPE)) == []
    assert not cover.is_declared and not cover.is_complete
    assert cover.pending == [] and cover.n_received == 2


@pytest.mark.parametrize('seed', range(5))
def test_blocks_become_final_with_their_last_window(seed):
    rng = np.random.RandomState(seed)
    blocks = BlockGrid(SHAPE, (7, 11))
    windows = [Window(y, x, y + height, x + width)
               for y, x, height, width in rng.randint((-5, -5, 6, 6), 30, (25, 4))]
    cover = Coverage(SHAPE, windows, blocks)
    order = list(rng.permutation(len(windows)))
    final = set()
    while order:
        became = receive(cover, windows[order.pop()])
        assert not final & set(became), 'a block became final twice'
        final |= set(became)
        # Brute force: final is what was touched and will not be touched again.
        touched = {block.index for block in blocks for window in windows
                   if not block.core.intersect(window).is_empty}
        open_ = {block.index for block in blocks for left in order
                 if not block.core.intersect(windows[left]).is_empty}
        assert final == touched - open_


def test_a_window_declared_twice_is_expected_twice():
    window = Window(0, 0, 8, 8)
    cover = Coverage(SHAPE, [window, window], BlockGrid(SHAPE, 8))
    assert receive(cover, window) == []
    assert cover.pending == [window]
    assert receive(cover, window) == [(0, 0)]
    with pytest.raises(CoverageError, match='already received'):
        receive(cover, window)


def test_windows_are_compared_by_their_part_inside():
    cover = Coverage((10, 10), [Window(-3, -3, 5, 5), Window(0, 0, 5, 5)])
    receive(cover, Window(0, 0, 5, 5))
    assert cover.pending == [Window(0, 0, 5, 5)]
    receive(cover, Window(-1, -9, 5, 5))
    assert cover.is_complete


def test_an_undeclared_window_is_refused_and_changes_nothing():
    cover = Coverage(SHAPE, GRID, BlockGrid(SHAPE, 8))
    with pytest.raises(CoverageError, match=r'not declared.*20 windows are pending'):
        cover.receive(Window(1, 1, 17, 17))
    assert cover.n_received == 0 and len(cover.pending) == len(GRID) == 20


@pytest.mark.parametrize('window', [
    Window(40, 0, 56, 16), Window(0, 50, 16, 66), Window(-16, 0, 0, 16), Window(5, 5, 5, 9)])
def test_a_window_without_a_pixel_in_the_image_is_refused(window):
    with pytest.raises(CoverageError, match='height 40 and width 50'):
        Coverage(SHAPE).clip(window)
    with pytest.raises(CoverageError, match='no pixel in the image'):
        Coverage(SHAPE, [window])


def test_an_empty_declaration_expects_nothing():
    cover = Coverage(SHAPE, [])
    assert cover.is_declared and cover.is_complete
    with pytest.raises(CoverageError):
        receive(cover, Window(0, 0, 4, 4))
