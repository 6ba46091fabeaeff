"""Connected pixels of one cluster."""
import numpy as np
import pytest

from cocoseg.errors import LabelOverflowError, OptionError, WindowShapeError
from cocoseg.labels import components, relabel
from cocoseg.shepherd.clumps import (
    Segments, check_labels, find_clump_segments, find_clumps)

from ..shepherd_model import model_clumps


@pytest.fixture(autouse=True)
def share_small_work(monkeypatch):
    """Let threads share even small images."""
    monkeypatch.setattr(components, '_LEAST_ROWS', 1)
    monkeypatch.setattr(relabel, '_LEAST_PIXELS', 1)


def make_clusters(rng, shape, n_values, null_share=0.1):
    clusters = rng.integers(1, n_values + 1, shape).astype(np.uint16)
    clusters[rng.random(shape) < null_share] = 0
    return clusters


def draw(text):
    """Return clusters from a drawing: a cluster per character, null for a dot."""
    rows = [row.strip() for row in text.split()]
    return np.array([[0 if c == '.' else ord(c) for c in row] for row in rows], np.uint16)


SHAPES = {
    'spiral': '#######. ......#. .####.#. .#..#.#. .#.##.#. .#....#. .######.',
    'comb': '#.#.#.#.# #.#.#.#.# #.#.#.#.# #.#.#.#.# #########',
    'fork': '##.##.##.## .###.###... ..#...#..## ..#####...# ......#...# ......#####',
    'rings': 'aaaaaaa abbbbba abcccba abc.cba abcccba abbbbba aaaaaaa',
    'diagonals': '#.#.#.# .#.#.#. #.#.#.# .#.#.#. #.#.#.#',
    'column': '# # # # #',
    'row': '##.####',
}


@pytest.mark.parametrize('name', SHAPES)
@pytest.mark.parametrize('four_connected', [True, False])
@pytest.mark.parametrize('num_threads', [1, 2, 3, 5])
def test_winding_shapes_are_labeled_as_by_the_model(name, four_connected, num_threads):
    clusters = draw(SHAPES[name])
    labels, highest = find_clumps(clusters, four_connected, num_threads=num_threads)
    expected, n_expected = model_clumps(clusters, four_connected)
    assert np.array_equal(labels, expected) and highest == n_expected
    assert labels.dtype == np.uint32


@pytest.mark.parametrize('four_connected', [True, False])
def test_noise_is_labeled_as_by_the_model(four_connected):
    rng = np.random.default_rng(0)
    for n_values in (1, 2, 3, 6) * 6:
        clusters = make_clusters(rng, rng.integers(1, 20, 2), n_values)
        expected, n_expected = model_clumps(clusters, four_connected)
        for num_threads in (1, 2, 4, 7):
            labels, highest = find_clumps(clusters, four_connected, num_threads=num_threads)
            assert np.array_equal(labels, expected) and highest == n_expected


@pytest.mark.parametrize('num_threads', [1, 2, 4])
@pytest.mark.parametrize('max_size', [None, 3])
def test_sizes_and_first_pixels_are_counted_along(num_threads, max_size):
    clusters = make_clusters(np.random.default_rng(1), (40, 30), 2)
    segments = find_clump_segments(clusters, True, max_size, num_threads=num_threads)
    flat = segments.labels.ravel()
    assert np.array_equal(segments.sizes, np.bincount(flat))
    ids, firsts = np.unique(flat, return_index=True)
    assert np.array_equal(segments.firsts[1:], firsts[ids > 0])
    measured = Segments.from_labels(segments.labels)
    assert np.array_equal(measured.sizes, segments.sizes)
    assert np.array_equal(measured.firsts[1:], segments.firsts[1:])


@pytest.mark.parametrize('four_connected', [True, False])
@pytest.mark.parametrize('max_size', [1, 2, 7, 30])
def test_clumps_are_split_as_by_the_model(four_connected, max_size):
    rng = np.random.default_rng(max_size)
    for n_values in (1, 2, 3) * 4:
        clusters = make_clusters(rng, rng.integers(1, 20, 2), n_values, 0.05)
        expected, n_expected = model_clumps(clusters, four_connected, max_size)
        for num_threads in (1, 3):
            labels, highest = find_clumps(clusters, four_connected, max_size,
                                          num_threads=num_threads)
            assert np.array_equal(labels, expected) and highest == n_expected


def test_very_many_pieces_are_numbered():
    clusters = np.ones((60, 70), np.uint16)
    expected, n_expected = model_clumps(clusters, True, 2)
    labels, highest = find_clumps(clusters, True, 2)
    # More than fit in the first buffers.
    assert highest == n_expected > 1000
    assert np.array_equal(labels, expected)


def test_clump_of_the_size_limit_and_its_first_pixel_is_whole():
    clusters = np.ones((1, 8), np.uint16)
    assert find_clumps(clusters, max_size=7)[1] == 1
    assert find_clumps(clusters, max_size=6)[1] == 2


@pytest.mark.parametrize('num_threads', [1, 2])
def test_image_of_null_has_no_clumps(num_threads):
    segments = find_clump_segments(np.zeros((5, 4), np.uint16), num_threads=num_threads)
    assert not segments.labels.any() and segments.n_segments == 0
    assert segments.sizes.tolist() == [20]


def test_clusters_of_any_layout_are_read_and_left_alone():
    clusters = make_clusters(np.random.default_rng(2), (12, 9), 2)
    expected, _ = find_clumps(clusters)
    turned = np.asfortranarray(clusters)
    turned.flags.writeable = False
    assert np.array_equal(find_clumps(turned)[0], expected)


@pytest.mark.parametrize('clusters, options, error', [
    (np.ones((3, 4), np.int32), {}, OptionError), ([[1]], {}, OptionError),
    (np.ones(4, np.uint16), {}, WindowShapeError), (np.ones((0, 4), np.uint16), {},
                                                    WindowShapeError),
    (np.ones((3, 4), np.uint16), {'max_size': 0}, OptionError),
    (np.broadcast_to(np.uint16(1), (1 << 16, 1 << 15)), {}, LabelOverflowError)])
def test_clusters_of_another_kind_raise(clusters, options, error):
    with pytest.raises(error):
        find_clumps(clusters, **options)


@pytest.mark.parametrize('labels, n_segments, error', [
    (np.ones((3, 4), np.int64), None, OptionError),
    (np.ones((3, 4), np.uint32)[:, ::2], None, OptionError),
    (np.ones(3, np.uint32), None, WindowShapeError),
    (np.full((3, 4), 2 ** 31, np.uint32), None, LabelOverflowError),
    (np.full((3, 4), 7, np.uint32), 6, LabelOverflowError)])
def test_labels_of_another_kind_raise(labels, n_segments, error):
    with pytest.raises(error, match='label'):
        check_labels(labels, n_segments)


def test_labels_of_another_shape_than_the_image_raise():
    with pytest.raises(WindowShapeError, match=r'\(3, 4\)'):
        check_labels(np.ones((4, 3), np.uint32), None, (3, 4))
    assert check_labels(np.full((3, 4), 7, np.uint32)) == 7
    assert check_labels(np.full((3, 4), 7, np.uint32), 9) == 9
