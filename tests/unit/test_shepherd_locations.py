"""Where the pixels of segments are, how many, and what they sum up to."""
import numpy as np
import pytest
from numba import njit

from cocoseg.errors import LabelOverflowError, OptionError, WindowShapeError
from cocoseg.shepherd.locations import band_sums, segment_locations, segment_sizes


def make_labels(shape=(13, 11), n_segments=9):
    labels = np.random.default_rng(0).integers(0, n_segments + 1, shape).astype(np.uint32)
    labels[labels == 4] = 0
    return labels


def test_sizes_are_a_histogram_with_null():
    labels = make_labels()
    assert np.array_equal(segment_sizes(labels), np.bincount(labels.ravel()))
    assert np.array_equal(segment_sizes(labels, 12), np.bincount(labels.ravel(), minlength=13))
    assert segment_sizes(labels).dtype == np.uint32


def test_locations_are_those_of_each_label_in_raster_order():
    labels = make_labels()
    locations = segment_locations(labels, 12)
    assert len(locations.starts) == 14
    for segment in range(1, 13):
        rows, columns = locations.get(segment)
        expected = np.nonzero(labels == segment)
        assert np.array_equal(rows, expected[0]) and np.array_equal(columns, expected[1])
    assert len(locations.get(0)[0]) == 0
    assert len(locations.rows) == np.count_nonzero(labels)


@pytest.mark.parametrize('segment', [-1, 13])
def test_unknown_segment_raises(segment):
    with pytest.raises(OptionError, match=f'no segment {segment}'):
        segment_locations(make_labels(), 12).get(segment)


def test_locations_can_be_used_in_compiled_loops():
    @njit
    def find_lowest_rows(starts, rows):
        lowest = np.full(len(starts) - 1, -1)
        for segment in range(len(starts) - 1):
            for k in range(starts[segment], starts[segment + 1]):
                lowest[segment] = max(lowest[segment], rows[k])
        return lowest
    labels = make_labels()
    locations = segment_locations(labels)
    found = find_lowest_rows(locations.starts, locations.rows)
    for segment in set(labels.ravel().tolist()) - {0}:
        assert found[segment] == np.nonzero(labels == segment)[0].max()


@pytest.mark.parametrize('dtype', ['uint8', 'int32', 'float32', 'float64'])
def test_band_sums_are_those_of_each_label(dtype):
    labels = make_labels()
    image = np.random.default_rng(1).integers(0, 99, (13, 11, 3)).astype(dtype)
    expected = [image[labels == label].sum(axis=0, dtype=float) for label in range(13)]
    for out in (np.float32, np.float64):
        sums = band_sums(image, labels, 12, dtype=out)
        assert sums.dtype == out and np.array_equal(sums, expected)


@pytest.mark.parametrize('dtype', ['uint16', 'int32', 'float32', 'float64'])
def test_float32_sums_are_rounded_at_each_pixel(dtype):
    rng = np.random.default_rng(2)
    image = (rng.random((40, 50)) * (6e4 if dtype == 'uint16' else 6e7)).astype(dtype)
    # Few pixels each, so that sums are as small as what is lost of a value; many of the last.
    labels = rng.integers(0, 500, (40, 50)).astype(np.uint32)
    labels[20:] = 499
    expected = np.zeros((500, 1), np.float32)
    for label, value in zip(labels.ravel(), image.ravel()):
        expected[label, 0] = np.float64(expected[label, 0]) + np.float64(value)
    sums = band_sums(image, labels, dtype=np.float32)
    assert np.array_equal(sums, expected)
    assert not np.array_equal(sums, band_sums(image, labels))


def test_what_does_not_fit_raises():
    labels = make_labels()
    with pytest.raises(OptionError):
        segment_sizes(labels.astype(int))
    with pytest.raises(LabelOverflowError):
        segment_locations(labels, 3)
    with pytest.raises(WindowShapeError):
        band_sums(np.ones((11, 13)), labels)
    with pytest.raises(OptionError, match='float64 or float32'):
        band_sums(np.ones((13, 11)), labels, dtype=np.int64)


def test_read_only_labels_are_fine():
    labels = make_labels()
    labels.flags.writeable = False
    assert segment_sizes(labels).sum() == labels.size
