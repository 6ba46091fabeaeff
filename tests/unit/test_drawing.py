"""
Pictures of arrays: colors of ids and classes, stretches, edges, and what lies below.
"""
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg.coco import drawing
from cocoseg.coco.drawing import (EMPTY_COLOR, NODATA_COLOR, as_hex, color_classes, color_ids,
                                  draw_classes, draw_heatmap, draw_segments, find_edges,
                                  list_stops, make_legend, make_ramp, pick_minmax, stretch_photo)
from cocoseg.errors import MissingDependencyError, OptionError

LABELS = hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7),
                    elements=st.integers(0, 4))


def pack(colors):
    """Return colors as one number each."""
    return colors.astype(int) @ [1, 256, 65536]


def draw_pixel_by_pixel(labels, background, alpha):
    """Draw segments with white lines, the slow way."""
    height, width = labels.shape
    picture = np.zeros((height, width, 3))
    for y in range(height):
        for x in range(width):
            if labels[y, x] == 0:
                picture[y, x] = EMPTY_COLOR if background is None else background[y, x]
                continue
            fill = color_ids(labels[y, x:x + 1])[0]
            picture[y, x] = fill if background is None else (
                alpha * fill + (1 - alpha) * background[y, x])
            before = [labels[place] for place in ((y - 1, x), (y, x - 1)) if min(place) >= 0]
            after = [labels[place] for place in ((y + 1, x), (y, x + 1))
                     if place[0] < height and place[1] < width]
            if any(label != labels[y, x] for label in before) or 0 in after:
                picture[y, x] = 255
    return picture


# --- colors --------------------------------------------------------------


def test_color_of_an_id_does_not_depend_on_the_others():
    ids = np.array([5, 900, 2 ** 40, 2 ** 63 - 1])
    colors = color_ids(ids)
    for index, color in enumerate(colors):
        assert np.array_equal(color_ids(ids[index:index + 1])[0], color)
    assert np.array_equal(color_ids(ids.astype(np.uint64)), colors)
    assert len(set(pack(colors))) == 4


def test_near_ids_never_share_a_color():
    packed = pack(color_ids(np.arange(1, 100_000)))
    for shift in [*range(1, 100), 1000, 1024, 4096, 9999]:
        assert (packed[shift:] != packed[:-shift]).all(), shift


def test_colors_of_ids_are_bright_and_not_gray():
    colors = color_ids(np.arange(1, 5000)).astype(int)
    assert colors.max(axis=1).min() >= 178
    assert (colors.max(axis=1) - colors.min(axis=1)).min() >= 75


def test_consecutive_ids_look_different():
    colors = color_ids(np.arange(1, 20_000)).astype(int)
    assert np.abs(colors[1:] - colors[:-1]).max(axis=1).min() >= 40


def test_seed_changes_colors():
    ids = np.arange(1, 200)
    assert (pack(color_ids(ids, 1)) != pack(color_ids(ids))).mean() > 0.99
    assert np.array_equal(color_ids(ids, 1), color_ids(ids, 1))


def test_classes_begin_with_the_palette_and_keep_their_colors():
    assert [as_hex(color) for color in color_classes(3)] == ['#0072b2', '#009e73', '#e69f00']
    assert len(np.unique(color_classes(300), axis=0)) == 300
    assert np.array_equal(color_classes(300)[:9], color_classes(9))
    assert color_classes(0).shape == (0, 3)


def test_the_palette_cannot_be_changed_from_outside():
    color_classes(3)[:] = 0
    assert color_classes(1).tolist() == [[0, 114, 178]]


def test_legend_is_plain_data():
    legend = make_legend(['a', '<b>'], ['#FF0000', (0, 1, 2)])
    assert legend == [('a', '#ff0000'), ('<b>', '#000102')]
    assert all(type(text) is str for item in legend for text in item)
    assert make_legend([]) == []


@pytest.mark.parametrize('color', ['red', '#12345', '#12345g', (1, 2), (1, 2, 256), (-1, 0, 0),
                                   (0.5, 0.5, 0.5), None])
def test_what_is_no_color_is_refused(color):
    with pytest.raises(OptionError, match='no color'):
        as_hex(color)


def test_ramps_are_those_of_matplotlib():
    matplotlib = pytest.importorskip('matplotlib')
    for name in (*drawing._OPENCV_MAPS, 'RdBu'):
        expected = matplotlib.colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255
        assert np.array_equal(make_ramp(name), np.rint(expected)), name


def test_ramp_needs_matplotlib_only_where_it_must(monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    assert make_ramp('magma').shape == (256, 3)
    with pytest.raises(MissingDependencyError, match=r'pip install cocoseg\[report\]'):
        draw_heatmap(np.zeros((2, 2)), cmap='RdBu')


def test_unknown_colormap_is_refused():
    pytest.importorskip('matplotlib')
    with pytest.raises(OptionError, match='no_such_map'):
        make_ramp('no_such_map')


def test_stops_follow_the_ramp():
    ramp, stops = make_ramp('magma').astype(int), list_stops('magma', 17)
    places = np.array([place for place, _ in stops])
    colors = np.array([tuple(bytes.fromhex(color[1:])) for _, color in stops])
    assert places[0] == 0 and places[-1] == 1
    lines = np.stack([np.interp(np.linspace(0, 1, 256), places, colors[:, band])
                      for band in range(3)], axis=1)
    assert np.abs(lines - ramp).max() < 6


# --- edges and segments ---------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(LABELS, st.booleans(), st.sampled_from([0, 0.25, 1]))
def test_segments_are_drawn_as_pixel_by_pixel(labels, has_background, alpha):
    background = np.arange(labels.size * 3).reshape(*labels.shape, 3).astype(np.uint8)
    background = background if has_background else None
    picture = draw_segments(labels, background=background, alpha=alpha)
    expected = draw_pixel_by_pixel(labels, background, alpha)
    assert picture.dtype == np.uint8
    assert np.abs(picture - expected).max() <= 0.51
    plain = draw_segments(labels, background=background, alpha=alpha, outline=None)
    assert np.array_equal(plain[~find_edges(labels)], picture[~find_edges(labels)])


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_each_border_between_labels_has_an_edge_on_one_side(labels):
    edges = find_edges(labels)
    assert not (edges & (labels == 0)).any()
    across = labels[:, :-1] != labels[:, 1:]
    assert (edges[:, :-1] | edges[:, 1:])[across].all()
    down = labels[:-1] != labels[1:]
    assert (edges[:-1] | edges[1:])[down].all()


def test_lines_are_one_pixel_wide_and_not_at_the_border():
    labels = np.repeat([[3, 3, 3, 8, 8, 8]], 4, axis=0)
    assert find_edges(labels).astype(int).tolist() == [[0, 0, 0, 1, 0, 0]] * 4


def test_chunks_of_rows_make_no_difference(monkeypatch):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 9, (50, 40)) * 7
    photo = rng.integers(0, 256, (50, 40, 3), np.uint8)
    values = rng.normal(size=(50, 40))

    def draw_all():
        return [draw_segments(labels, background=photo, colors='mean'), draw_segments(labels),
                draw_heatmap(values, background=photo)]
    whole = draw_all()
    monkeypatch.setattr(drawing, '_CHUNK', 90)
    assert all(np.array_equal(*pair) for pair in zip(whole, draw_all()))


@pytest.mark.parametrize('factor', [1, 10 ** 12], ids=['small ids', 'huge ids'])
def test_mean_fills_segments_by_the_photo(factor):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 5, (30, 20)) * factor
    photo = rng.integers(0, 256, (30, 20, 3), np.uint8)
    picture = draw_segments(labels, background=photo, colors='mean', outline=None, alpha=1)
    for label in np.unique(labels):
        inside = labels == label
        expected = photo[inside] if label == 0 else np.rint(photo[inside].mean(axis=0))
        assert (picture[inside] == expected).all()


def test_colors_may_be_given_by_id():
    table = np.array([(0, 0, 0), (9, 8, 7), (1, 2, 3)], np.uint8)
    picture = draw_segments(np.array([[0, 1, 2]], np.int8), colors=table, outline=None)
    assert picture[0].tolist() == [list(EMPTY_COLOR), [9, 8, 7], [1, 2, 3]]
    for wrong in (table[:2], table.astype(int), table[:, :2], 'median'):
        with pytest.raises(OptionError, match='colors must be'):
            draw_segments(np.array([[0, 1, 2]]), colors=wrong)


def test_one_id_has_one_color_in_all_pictures():
    first = draw_segments(np.array([[7, 7, 4000]]), outline=None)
    other = draw_segments(np.full((2, 2), 7, np.uint64), outline=None)
    assert np.array_equal(first[0, 0], other[1, 1])


@pytest.mark.parametrize('shape', [(0, 5), (5, 0), (1, 1)])
def test_tiny_pictures(shape):
    photo = np.zeros((*shape, 3), np.uint8)
    for background in (None, photo):
        assert draw_segments(np.ones(shape, int), background=background).shape == (*shape, 3)
        assert draw_heatmap(np.ones(shape), background=background).shape == (*shape, 3)
        assert draw_classes(np.ones(shape, int), ['a'], background=background).shape == (*shape, 3)
    assert stretch_photo(np.ones(shape)).shape == (*shape, 3)


@pytest.mark.parametrize('options, match', [
    ({'labels': np.ones((2, 2))}, 'whole numbers'),
    ({'labels': np.ones((2, 2, 2), int)}, r'\(2, 2, 2\)'),
    ({'labels': np.full((2, 2), -1)}, 'down to -1'),
    ({'background': np.zeros((2, 3, 3), np.uint8)}, 'background is uint8'),
    ({'background': np.zeros((2, 2, 3))}, 'stretch_photo'),
    ({'background': 'white'}, 'background is str'),
    ({'alpha': 1.5}, 'alpha=1.5'), ({'alpha': float('nan')}, 'alpha=nan'),
    ({'outline': 'pink'}, 'pink'), ({'colors': 'mean'}, 'needs the background')])
def test_segments_refuse_what_does_not_fit(options, match):
    options = {'labels': np.ones((2, 2), int), **options}
    with pytest.raises(OptionError, match=match):
        draw_segments(**options)


# --- heatmaps -------------------------------------------------------------


def test_heatmap_ends_middle_and_no_data():
    ramp = make_ramp('magma')
    values = np.array([[-np.inf, -5, 0, 5, 10, 99, np.inf, np.nan]], np.float32)
    picture = draw_heatmap(values[..., None], minmax=(0, 10))
    assert np.array_equal(picture[0, :-1], ramp[[0, 0, 0, 128, 255, 255, 255]])
    assert picture[0, -1].tolist() == list(NODATA_COLOR)


def test_heatmap_lies_over_its_background():
    photo = np.full((1, 2, 3), 100, np.uint8)
    picture = draw_heatmap(np.array([[1, np.nan]]), background=photo, minmax=(0, 1), alpha=0.5)
    assert np.abs(picture[0, 0] - (make_ramp('magma')[255] / 2 + 50)).max() <= 0.5
    assert picture[0, 1].tolist() == [100, 100, 100]
    assert (photo == 100).all()


def test_heatmap_of_a_constant_is_the_middle():
    ramp = make_ramp('magma')
    assert np.array_equal(draw_heatmap(np.full((2, 2), 7.0))[0, 0], ramp[128])
    picture = draw_heatmap(np.array([[1, 2, 3]]), minmax=(2, 2))
    assert np.array_equal(picture[0], ramp[[0, 128, 255]])


def test_heatmap_without_a_finite_value():
    values = np.array([[np.nan, np.inf, -np.inf]])
    assert pick_minmax(values) == (0, 1)
    picture = draw_heatmap(values)
    assert picture[0, 0].tolist() == list(NODATA_COLOR)
    assert np.array_equal(picture[0, 1:], make_ramp('magma')[[255, 0]])


def test_range_leaves_out_the_outer_values():
    values = np.append(np.arange(1000.0), [np.nan, np.inf])
    assert pick_minmax(values) == (pytest.approx(19.98), pytest.approx(979.02))
    assert pick_minmax(np.array([60000, 65000], np.float16))[1] < 65100


@pytest.mark.parametrize('dtype', [np.float16, np.int16, np.uint8, bool])
def test_heatmap_takes_all_real_numbers(dtype):
    picture = draw_heatmap(np.array([[0, 1]]).astype(dtype), minmax=(0, 1))
    assert np.array_equal(picture[0], make_ramp('magma')[[0, 255]])


@pytest.mark.parametrize('values, options, match', [
    (np.zeros((2, 2, 3)), {}, 'one channel'), (np.zeros((2, 2), complex), {}, 'complex'),
    (np.zeros((2, 2)), {'minmax': (1, 0)}, 'lower one first'),
    (np.zeros((2, 2)), {'minmax': (0, np.inf)}, 'finite')])
def test_heatmap_refuses_what_does_not_fit(values, options, match):
    with pytest.raises(OptionError, match=match):
        draw_heatmap(values, **options)


# --- classes and photographs ----------------------------------------------


def test_classes_outside_of_the_names_are_transparent():
    photo = np.arange(18, dtype=np.uint8).reshape(1, 6, 3)
    classes = np.array([[0, 1, 2, -1, np.nan, np.inf]])
    picture = draw_classes(classes, ['a', 'b'], background=photo)
    assert np.array_equal(picture[0, :2], color_classes(2))
    assert np.array_equal(picture[0, 2:], photo[0, 2:])
    alone = draw_classes(classes, ['a', 'b'], colors=['white', '#010203'])
    assert alone[0].tolist() == [[255] * 3, [1, 2, 3], *[list(NODATA_COLOR)] * 4]


def test_classes_of_small_dtypes_with_many_names():
    picture = draw_classes(np.array([[0, 255]], np.uint8), [str(n) for n in range(300)])
    assert np.array_equal(picture[0], color_classes(300)[[0, 255]])
    assert (draw_classes(np.zeros((1, 1), bool), []) == NODATA_COLOR).all()


@pytest.mark.parametrize('classes, options, match', [
    (np.array([[0.5]]), {}, "interpolation='nearest'"),
    (np.zeros((2, 2, 2), int), {}, 'one channel'),
    (np.zeros((2, 2), int), {'names': 'ab'}, 'list of names'),
    (np.zeros((2, 2), int), {'colors': ['white']}, '2 classes but 1 colors')])
def test_classes_refuse_what_does_not_fit(classes, options, match):
    with pytest.raises(OptionError, match=match):
        draw_classes(classes, **{'names': ['a', 'b'], **options})


def test_photo_has_one_stretch_for_all_bands():
    photo = np.random.default_rng(0).normal(100, 10, (40, 40, 3)) + [0, 20, -20]
    picture = stretch_photo(photo).astype(float)
    assert picture[..., 1].mean() > picture[..., 0].mean() + 40 > picture[..., 2].mean() + 80
    low, high = np.percentile(photo, [5, 95])
    other = stretch_photo(photo, percentiles=(5, 95))
    assert (other[photo <= low] == 0).all() and (other[photo >= high] == 255).all()


def test_photo_without_data_is_gray_and_a_constant_black():
    photo = np.ones((2, 2, 3))
    photo[0, 0, 1], photo[1, 1, 2] = np.nan, np.inf
    picture = stretch_photo(photo)
    assert picture[0, 0].tolist() == picture[1, 1].tolist() == list(NODATA_COLOR)
    assert picture[0, 1].tolist() == [0, 0, 0]
    assert (stretch_photo(np.full((2, 2), np.nan)) == NODATA_COLOR).all()


@pytest.mark.parametrize('photo, percentiles', [
    (np.ones((2, 2, 4)), (1, 99)), (np.ones(3), (1, 99)), (np.ones((2, 2)), (99, 1)),
    (np.ones((2, 2)), (-1, 50))], ids=['bands', 'line', 'order', 'below 0'])
def test_photo_refuses_what_does_not_fit(photo, percentiles):
    with pytest.raises(OptionError):
        stretch_photo(photo, percentiles=percentiles)


def test_no_picture_changes_its_input():
    labels, values = np.array([[0, 1], [2, 2]]), np.array([[np.nan, 1], [2, 3]])
    photo = np.full((2, 2, 3), 50, np.uint8)
    for array in (labels, values, photo):
        array.flags.writeable = False
    draw_segments(labels, background=photo, colors='mean')
    draw_heatmap(values, background=photo)
    draw_classes(labels, ['a', 'b'], background=photo)
    stretch_photo(values)
