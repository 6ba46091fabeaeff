"""Window: integer edges, conversions, and the algebra of rectangles."""
import dataclasses

import numpy as np
import pytest

from cocoseg import Window
from cocoseg.errors import CoverageError


def test_sizes():
    window = Window(y0=2, x0=3, y1=7, x1=15)
    assert window.shape == (5, 12)
    assert window.dsize == (12, 5)
    assert window.area == 60
    assert not window.is_empty
    assert Window(2, 3, 2, 9).is_empty
    assert window.slices == (slice(2, 7), slice(3, 15))
    assert repr(window) == 'Window(y=2:7, x=3:15)'


@pytest.mark.parametrize('edge', [7, np.int64(7), np.uint8(7), 7.0, np.float32(7)])
def test_whole_edges_become_python_ints(edge):
    window = Window(0, 0, edge, 9)
    assert window == Window(0, 0, 7, 9)
    assert type(window.y1) is int
    assert hash(window) == hash(Window(0, 0, 7, 9))


@pytest.mark.parametrize('edge', [1.5, np.float64(0.01), None, 'a', float('nan'), float('inf')])
def test_an_edge_that_is_no_integer_is_refused(edge):
    with pytest.raises(CoverageError):
        Window(0, 0, edge, 9)


@pytest.mark.parametrize('edges', [(5, 0, 4, 1), (0, 5, 1, 4)])
def test_an_end_before_the_start_is_refused(edges):
    with pytest.raises(CoverageError, match='before it starts'):
        Window(*edges)


def test_is_a_frozen_value_in_row_major_order():
    window = Window(0, 0, 1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        window.y0 = 3
    ordered = [Window(0, 0, 2, 2), Window(0, 5, 2, 7), Window(1, 0, 3, 2)]
    assert sorted(reversed(ordered)) == ordered
    assert len({window, Window(0, 0, 1, 1)}) == 1


def test_slices_there_and_back():
    window = Window(-3, 2, 5, 9)
    assert Window.from_slices(window.slices) == window
    # Negative is outside the image, never counted from the end.
    assert Window.from_slices((slice(-3, -1), slice(0, 2)), (10, 10)) == Window(-3, 0, -1, 2)
    assert Window.from_slices((slice(None), slice(4, None)), (10, 20)) == Window(0, 4, 10, 20)


def test_slices_that_are_no_rectangle_are_refused():
    with pytest.raises(CoverageError, match='step'):
        Window.from_slices((slice(0, 4, 2), slice(0, 4)))
    with pytest.raises(CoverageError, match='no stop'):
        Window.from_slices((slice(0, None), slice(0, 4)))


def test_coerce():
    window = Window(-1, 2, 3, 8)
    assert Window.coerce(window) is window
    assert Window.coerce(window.slices) == window
    assert Window.coerce(list(window.slices)) == window
    assert Window.coerce(window.as_box()) == window


@pytest.mark.parametrize('format', ['ltrb', 'xywh', 'cxywh'])
def test_coerce_reads_every_format_of_box(format):
    box = Window(1, 2, 5, 8).as_box().toformat(format)
    assert Window.coerce(box) == Window(1, 2, 5, 8)


def test_coerce_refuses_a_box_between_pixels():
    with pytest.raises(CoverageError, match='whole number'):
        Window.coerce(Window(0, 0, 3, 3).as_box().scale(0.5))


@pytest.mark.parametrize('data', [None, 3, 'abc', (0, 0, 4, 4), (slice(0, 4),), [slice(0, 1), 3]])
def test_coerce_refuses_anything_else(data):
    with pytest.raises(CoverageError, match='cannot read a window'):
        Window.coerce(data)


def test_shift_and_within_are_inverse():
    window, outer = Window(4, 5, 9, 11), Window(3, -2, 20, 20)
    assert window.shift(2, -7) == Window(6, -2, 11, 4)
    assert window.within(outer) == Window(1, 7, 6, 13)
    assert window.within(outer).shift(outer.y0, outer.x0) == window


@pytest.mark.parametrize('margin', [2, (2, 2), np.int64(2)])
def test_pad_grows_each_side(margin):
    assert Window(1, 1, 3, 4).pad(margin) == Window(-1, -1, 5, 6)


def test_pad_per_axis():
    assert Window(1, 1, 3, 4).pad((0, 3)) == Window(1, -2, 3, 7)


def test_intersect_equals_common_pixels():
    def pixels(window):
        return {(y, x) for y in range(window.y0, window.y1) for x in range(window.x0, window.x1)}

    rng = np.random.RandomState(0)
    for _ in range(200):
        (a, b) = (Window(*lo, *(lo + rng.randint(0, 6, 2))) for lo in rng.randint(-4, 4, (2, 2)))
        common = a.intersect(b)
        assert pixels(common) == pixels(a) & pixels(b)
        assert common.area == len(pixels(common))
        assert pixels(common) == pixels(b.intersect(a))


def test_clip_is_in_global_coordinates():
    assert Window(-3, -2, 4, 30).clip((10, 20)) == Window(0, 0, 4, 20)
    assert Window(-3, -3, -1, -1).clip((10, 20)).is_empty
    assert Window(10, 0, 12, 4).clip((10, 20)).is_empty


def test_contains():
    outer = Window(0, 0, 5, 5)
    assert outer.contains(outer)
    assert outer.contains(Window(1, 1, 5, 5))
    assert not outer.contains(Window(1, 1, 6, 5))
    assert not Window(1, 1, 5, 5).contains(outer)
