"""Segmentation by the model, and what holds of every segmentation."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.shepherd.clumps import find_clumps
from cocoseg.shepherd.config import ShepherdConfig
from cocoseg.shepherd.eliminate import eliminate_singles, eliminate_small
from cocoseg.shepherd.segment import segment_pixels

from ..shepherd_model import (
    count_sizes, find_disconnected, find_small_with_near_neighbor, make_noisy_image, model_clumps,
    model_segment, model_singles, model_small, number_by_first_pixel)

FEW = settings(max_examples=60)


@st.composite
def cases(draw):
    """Draw (image, valid, centres, limit, config)."""
    rng = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3)))
    n_values = draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(['uint8', 'float32']))
    null_share = draw(st.sampled_from([0, 0.03, 0.2]))
    image, valid = make_noisy_image(rng, shape, n_values, dtype, null_share)
    # Odd, so that no pixel is equally far from two of them but for rounding.
    centres = rng.random((draw(st.integers(1, 5)), shape[2])) * (n_values + 1)
    config = ShepherdConfig(four_connected=draw(st.booleans()),
                            min_segment_size=draw(st.integers(1, 12)))
    limit = draw(st.sampled_from([0.0, 0.5, 1.3, 1e6]))
    return image, valid, centres, limit, config


@FEW
@given(cases(), st.sampled_from([None, 'pyshepseg']))
def test_segmentation_follows_the_model(case, compat):
    image, valid, centres, limit, config = case
    config = config.patch(compat=compat)
    found = segment_pixels(image, valid, centres, limit, config)
    expected = model_segment(image, valid, centres, limit, config)
    assert np.array_equal(found.labels, expected[0])
    assert found[1:] == expected[1:]


@FEW
@given(cases())
def test_default_segments_are_dense_connected_and_large_where_they_may(case):
    image, valid, centres, limit, config = case
    labels, n_segments, _, _ = segment_pixels(image, valid, centres, limit, config)
    assert np.array_equal(labels > 0, valid)
    assert set(labels.ravel().tolist()) - {0} == set(range(1, n_segments + 1))
    assert np.array_equal(labels, number_by_first_pixel(labels))
    assert not find_disconnected(labels, config.four_connected)
    assert not find_small_with_near_neighbor(image, labels, config.min_segment_size, limit,
                                             config.four_connected)


@FEW
@given(cases(), st.integers(1, 40))
def test_stages_follow_the_model_with_small_clumps(case, max_size):
    image, valid, _, limit, config = case
    four = config.four_connected
    clusters = image[..., 0].astype(np.uint16) * valid
    labels, n_clumps = find_clumps(clusters, four, max_size)
    expected, n_expected = model_clumps(clusters, four, max_size)
    assert np.array_equal(labels, expected) and n_clumps == n_expected
    for compat in (True, False):
        singles = eliminate_singles(image, labels, four_connected=four, compat=compat)
        assert np.array_equal(singles.labels, model_singles(image, labels, four, compat))
        small = eliminate_small(image, singles.labels, config.min_segment_size, limit,
                                four_connected=four, compat=compat)
        expected, n_merged = model_small(image, singles.labels, config.min_segment_size, limit,
                                         four, compat)
        assert np.array_equal(small.labels, expected) and small.n_eliminated == n_merged


@FEW
@given(cases())
def test_without_a_limit_only_islands_are_small(case):
    image, valid, centres, _, config = case
    labels = segment_pixels(image, valid, centres, np.inf, config).labels
    islands, _ = model_clumps(valid.astype(np.uint16), config.four_connected)
    sizes, of_island = count_sizes(labels), count_sizes(islands)
    for label, island in set(zip(labels.ravel().tolist(), islands.ravel().tolist())) - {(0, 0)}:
        assert sizes[label] >= min(config.min_segment_size, of_island[island])
