"""Single pixels and small segments are merged by the rules."""
import numpy as np
import pytest

from cocoseg.errors import LabelOverflowError, OptionError, WindowShapeError
from cocoseg.labels import relabel as relabel_module
from cocoseg.shepherd import eliminate as eliminate_module
from cocoseg.shepherd.clumps import find_clumps
from cocoseg.shepherd.eliminate import eliminate_singles, eliminate_small
from cocoseg.shepherd.eliminate_kernels import MAX_LISTED

from ..shepherd_model import (
    close_gaps, find_small_with_near_neighbor, make_noisy_image, model_singles, model_small,
    number_by_first_pixel)

MODES = pytest.mark.parametrize('compat', [True, False], ids=['compat', 'default'])
FOUR = pytest.mark.parametrize('four_connected', [True, False], ids=['four', 'eight'])


@pytest.fixture(autouse=True)
def share_small_work(monkeypatch):
    """Let threads share even few candidates."""
    for module, name in [(eliminate_module, '_LEAST_CANDIDATES'),
                         (eliminate_module, '_LEAST_PIXELS'), (relabel_module, '_LEAST_PIXELS')]:
        monkeypatch.setattr(module, name, 1)


def make_case(seed, dtype='uint8', shape=(14, 17, 2), null_share=0.1):
    """Return (image, labels) of clumps of equal pixels."""
    rng = np.random.default_rng(seed)
    image, valid = make_noisy_image(rng, shape, 4, dtype, null_share)
    clusters = (image[..., 0].astype(np.uint16) + 1) * valid
    return image, find_clumps(clusters)[0]


# -- single pixels

@MODES
@FOUR
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'int32', 'uint64', 'float32', 'float64'])
def test_singles_go_where_the_model_says(compat, four_connected, dtype):
    for seed in range(3):
        image, labels = make_case(seed, dtype, null_share=0.02 if seed else 0.3)
        expected = model_singles(image, labels, four_connected, compat)
        for num_threads in (1, 3):
            result = eliminate_singles(image, labels, four_connected=four_connected,
                                       compat=compat, num_threads=num_threads)
            assert np.array_equal(result.labels, expected)
            assert result.n_segments == expected.max()
            assert result.n_eliminated == labels.max() - expected.max() > 0


def test_single_pixel_takes_the_first_of_equally_near_neighbors():
    image = np.array([[9, 4, 9], [4, 5, 6], [9, 6, 9]], np.uint8)
    labels = np.array([[1, 1, 2], [3, 4, 2], [3, 5, 5]], np.uint32)
    # Up, left, right and down are all at a distance of 1; up comes first.
    assert eliminate_singles(image, labels).labels[1, 1] == 1


def test_single_pixels_among_single_pixels_wait_for_each_other():
    image = np.array([[1, 2, 3, 4, 4]], np.uint8)
    labels = np.array([[1, 2, 3, 4, 4]], np.uint32)
    result = eliminate_singles(image, labels)
    assert result.labels.tolist() == [[1, 1, 1, 1, 1]] and result.n_eliminated == 3
    alone = np.array([[1, 2, 3]], np.uint32)
    assert eliminate_singles(image[:, :3], alone).labels.tolist() == [[1, 2, 3]]


def test_square_beyond_64_bits_is_measured_and_overflows_in_compat():
    low, high = -2 ** 31, 2 ** 31 - 1
    image = np.array([[2 ** 30, 2 ** 30, high, low, low]], np.int32)
    labels = np.array([[1, 1, 2, 3, 3]], np.uint32)
    assert eliminate_singles(image, labels).labels.tolist() == [[1, 1, 1, 2, 2]]
    assert eliminate_singles(image, labels, compat=True).labels.tolist() == [[1, 1, 2, 2, 2]]
    # One that has overflowed gives way to the next.
    image = image[:, ::-1].copy()
    for compat in (True, False):
        result = eliminate_singles(image, labels, compat=compat)
        assert result.labels.tolist() == [[1, 1, 2, 2, 2]]


def test_null_that_is_not_a_number_attracts_no_pixel():
    image = np.array([[np.nan, np.nan, 5, 9, 9]])
    labels = np.array([[0, 0, 1, 2, 2]], np.uint32)
    for compat in (True, False):
        result = eliminate_singles(image, labels, compat=compat)
        assert result.labels.tolist() == [[0, 0, 1, 1, 1]]


def test_gaps_of_the_given_labels_are_closed_too():
    image = np.ones((1, 4), np.uint8)
    result = eliminate_singles(image, np.array([[7, 7, 3, 3]], np.uint32), n_segments=9)
    assert result.labels.tolist() == [[2, 2, 1, 1]] and result.n_segments == 2
    assert result.n_eliminated == 0


# -- small segments

@MODES
@FOUR
@pytest.mark.parametrize('min_size', [1, 2, 5, 12])
def test_small_segments_go_where_the_model_says(compat, four_connected, min_size):
    for seed, dtype in enumerate(['uint8', 'int16', 'float32', 'float64', 'int32', 'uint8']):
        image, labels = make_case(seed, dtype)
        limit = [0.0, 0.8, 1.5, 1e9][seed % 4]
        expected, n_merged = model_small(image, labels, min_size, limit, four_connected, compat)
        for num_threads in (1, 3):
            result = eliminate_small(image, labels, min_size, limit, compat=compat,
                                     four_connected=four_connected, num_threads=num_threads)
            assert np.array_equal(result.labels, expected)
            assert result.n_segments == expected.max()
            assert result.n_eliminated == n_merged


@MODES
def test_segments_too_large_to_list_at_once_go_where_the_model_says(compat):
    image = np.random.default_rng(0).integers(0, 9, (40, 60, 2)).astype(np.uint8)
    labels = np.ones((40, 60), np.uint32)
    labels[:, 15:30], labels[:, 30:], labels[3:9, 4:9] = 2, 3, 4
    assert 15 * 40 - 30 > MAX_LISTED
    expected, n_merged = model_small(image, labels, 800, 1e9, True, compat)
    assert n_merged == 3
    result = eliminate_small(image, labels, 800, 1e9, compat=compat)
    assert np.array_equal(result.labels, expected)


def test_very_many_segments_without_neighbors_stay():
    image = np.ones((270, 160), np.uint8)
    labels = np.zeros((270, 160), np.uint32)
    labels[::2, ::4] = np.arange(1, 135 * 40 + 1).reshape(135, 40)
    labels[::2, 1::4] = labels[::2, ::4]
    result = eliminate_small(image, labels, 5, 1e9)
    assert np.array_equal(result.labels, labels) and result.n_eliminated == 0


def test_limit_itself_is_near_enough():
    image = np.array([[0, 0, 3, 4, 4, 4]], np.uint8)
    labels = np.array([[1, 1, 2, 3, 3, 3]], np.uint32)
    assert eliminate_small(image, labels, 2, 1.0).n_eliminated == 1
    assert eliminate_small(image, labels, 2, np.nextafter(1.0, 0)).n_eliminated == 0


def test_float32_limit_is_squared_as_such_in_compat():
    # 0.1 as float32 is a little more than 0.1, and so is the distance.
    image = np.array([[0, 0, 0.1]], np.float32)
    labels = np.array([[1, 1, 2]], np.uint32)
    assert eliminate_small(image, labels, 2, np.float32(0.1), compat=True).n_eliminated == 1
    assert eliminate_small(image, labels, 2, 0.1, compat=True).n_eliminated == 0


def test_small_segment_joins_a_smaller_one_only_by_default():
    image = np.array([[5, 5, 5, 6, 6, 90, 90, 90, 90]], np.uint8)
    labels = np.array([[1, 1, 1, 2, 2, 3, 3, 3, 3]], np.uint32)
    labels[0, :3] = 0
    labels[0, 2] = 1
    # Of 1 and 2 pixels: the first one joins the second, which is too far from the third.
    for compat in (True, False):
        result = eliminate_small(image, labels, 4, 10, compat=compat)
        assert result.labels.tolist() == [[0, 0, 1, 1, 1, 2, 2, 2, 2]]
    # Of 3 and 3 pixels: none is larger.
    labels = np.array([[1, 1, 1, 2, 2, 2, 3, 3, 3, 3]], np.uint32)
    image = np.array([[5, 5, 5, 6, 6, 6, 90, 90, 90, 90]], np.uint8)
    assert eliminate_small(image, labels, 4, 10, compat=True).n_eliminated == 0
    assert eliminate_small(image, labels, 4, 10).labels.tolist() == [[1] * 6 + [2] * 4]


def test_of_equally_near_segments_the_lower_id_is_joined():
    image = np.array([[0, 0, 5, 5, 10, 10]], np.uint8)
    labels = np.array([[3, 3, 1, 1, 2, 2]], np.uint32)
    assert eliminate_small(image, labels, 4, 5).labels.tolist() == [[1, 1, 2, 2, 2, 2]]


@FOUR
def test_small_segments_are_left_only_beyond_the_limit(four_connected):
    n_left = 0
    for seed in range(8):
        image, labels = make_case(seed, 'float64', (20, 20, 3))
        result = eliminate_small(image, labels, 6, 1.2, four_connected=four_connected)
        assert not find_small_with_near_neighbor(image, result.labels, 6, 1.2, four_connected)
        n_left += (np.bincount(result.labels.ravel())[1:] < 6).sum()
    assert n_left > 0


@MODES
def test_minimum_beyond_the_image_merges_all(compat):
    image, labels = make_case(0, null_share=0)
    # Segments of equal size do not merge in compat, so let them differ.
    labels = (np.arange(labels.size).reshape(labels.shape) > 9).astype(np.uint32) + 1
    result = eliminate_small(image, labels, 10 ** 12, np.inf, compat=compat)
    assert result.n_segments == 1 and (result.labels == 1).all()


def test_ids_are_by_first_pixel_and_keep_their_order_in_compat():
    image = np.array([[4, 4, 9, 9, 9, 4]], np.uint8)
    labels = np.array([[3, 3, 1, 1, 1, 2]], np.uint32)
    assert np.array_equal(eliminate_small(image, labels, 1, 1).labels,
                          number_by_first_pixel(labels))
    assert np.array_equal(eliminate_small(image, labels, 1, 1, compat=True).labels,
                          close_gaps(labels))


@pytest.mark.parametrize('ids', [(1, 2, 3, 4, 5, 6), (6, 5, 4, 3, 2, 1)])
def test_segments_of_one_size_are_merged_by_id_whenever_they_got_it(ids):
    """
    The middle ends with two neighbors that are equally near.

    It takes the one next to the pixels that it got first: those of the lower
    id, though one has grown to the size and the other had it from the start.
    """
    lengths = (20, 1, 2, 4, 3, 20)
    image = np.repeat([60, 50, 50, 50, 50, 40], lengths)[None].astype(np.uint8)
    labels = np.repeat(ids, lengths)[None].astype(np.uint32)
    expected, n_merged = model_small(image[..., None], labels, 11, 1e9, True, True)
    result = eliminate_small(image, labels, 11, 1e9, compat=True)
    assert np.array_equal(result.labels, expected) and n_merged == 4
    assert (expected[0, 25] == expected[0, 0]) == (ids[0] == 1)


# -- both

@pytest.mark.parametrize('eliminate', [
    eliminate_singles, lambda image, labels, **keys: eliminate_small(image, labels, 4, 9, **keys)])
def test_arrays_of_the_caller_are_not_changed(eliminate):
    image, labels = make_case(3)
    kept = labels.copy()
    image.flags.writeable = False
    result = eliminate(image, labels)
    assert result.n_eliminated > 0 and np.array_equal(labels, kept)
    assert not np.shares_memory(result.labels, labels)


@pytest.mark.parametrize('eliminate', [
    eliminate_singles, lambda image, labels, *args: eliminate_small(image, labels, 4, 9, *args)])
def test_labels_that_do_not_fit_raise(eliminate):
    image, labels = make_case(0)
    with pytest.raises(WindowShapeError):
        eliminate(image[1:], labels)
    with pytest.raises(OptionError):
        eliminate(image, labels.astype(np.int64))
    with pytest.raises(LabelOverflowError):
        eliminate(image, labels, int(labels.max()) - 1)


@pytest.mark.parametrize('min_size, limit', [(0, 1), (2.5, 1), (3, -1), (3, np.nan)])
def test_size_and_limit_that_make_no_sense_raise(min_size, limit):
    image, labels = make_case(0)
    with pytest.raises(OptionError, match='min_size'):
        eliminate_small(image, labels, min_size, limit)
