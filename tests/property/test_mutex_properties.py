"""The mutex watershed, for any small affinities: the labels of a plain loop, and its symmetries."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.postprocess import mutex
from cocoseg.postprocess.mutex import mutex_watershed

from ..strategies import SEEDS
from ..unit.test_mutex import mutex_watershed_model


@pytest.fixture(autouse=True, scope='module')
def small_bands():
    """Let few edges be sorted at once, and tables grow early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mutex, '_LEAST_BAND', 16)
        patch.setattr(mutex, '_LEAST_TABLE', 4)
        yield


@st.composite
def problems(draw, max_pixels=80):
    """Draw (affinities, offsets, bias, mask or None), in two or three axes."""
    ndim = draw(st.sampled_from([2, 3]))
    shape = tuple(draw(st.lists(st.integers(1, 10 if ndim == 2 else 5), min_size=ndim,
                                max_size=ndim)))
    steps = st.tuples(*[st.integers(-4, 4)] * ndim).filter(any)
    offsets = draw(st.lists(steps, min_size=1, max_size=6, unique=True))
    rng = np.random.default_rng(draw(SEEDS))
    values = rng.normal(draw(st.sampled_from([0.3, 0.5, 0.8])), 0.4, (len(offsets), *shape))
    # Few digits make many ties.
    values = values.round(draw(st.sampled_from([0, 1, 2, 9]))).astype(np.float32)
    values[rng.random(values.shape) < draw(st.sampled_from([0, 0, 0.2]))] = np.nan
    mask = rng.random(shape) < 0.8 if draw(st.booleans()) else None
    return values, offsets, draw(st.sampled_from([0.5, 0.25, 0.0, -1.0])), mask


def as_partition(labels):
    """Return the first pixel of each pixel's label, -1 for background."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.where(labels > 0, first[inverse].reshape(labels.shape), -1)


@given(problems())
def test_labels_are_those_of_edge_after_edge(problem):
    affinities, offsets, bias, mask = problem
    labels = mutex_watershed(affinities, offsets, bias, mask=mask)
    assert np.array_equal(labels, mutex_watershed_model(affinities, offsets, bias, mask))


@given(problems(), st.sampled_from([1 / 4, 2.0]))
def test_only_the_order_and_the_sign_of_weights_count(problem, share):
    affinities, offsets, bias, mask = problem
    labels = mutex_watershed(affinities, offsets, bias, mask=mask)
    weights = affinities - np.float32(bias)
    # By a power of two nothing is rounded.
    again = mutex_watershed(weights * np.float32(share), offsets, 0, mask=mask)
    assert np.array_equal(labels, again)


@given(problems())
def test_labels_are_dense_and_in_the_order_of_first_pixels(problem):
    affinities, offsets, bias, mask = problem
    labels = mutex_watershed(affinities, offsets, bias, mask=mask)
    ids, first = np.unique(labels[labels > 0], return_index=True)
    assert ids.tolist() == list(range(1, len(ids) + 1)) and (np.diff(first) > 0).all()


@given(SEEDS, st.integers(0, 1))
def test_without_ties_a_mirrored_image_has_mirrored_segments(seed, axis):
    rng = np.random.default_rng(seed)
    offsets = [(0, 1), (1, 0), (0, 3), (-2, 2)]
    weights = rng.permutation(np.arange(1, 4 * 70 + 1)) * rng.choice([-1, 1, 1], 4 * 70)
    weights = weights.reshape(4, 7, 10).astype(np.float32)
    mirrored = [tuple(-step if at == axis else step for at, step in enumerate(offset))
                for offset in offsets]
    labels = mutex_watershed(weights, offsets, 0)
    flipped = mutex_watershed(np.flip(weights, axis + 1), mirrored, 0)
    assert np.array_equal(as_partition(labels), as_partition(np.flip(flipped, axis)))
    # An edge may be told from either end.
    back = [tuple(-step for step in offset) for offset in offsets]
    moved = np.full(weights.shape, np.nan, np.float32)
    for channel, offset in enumerate(offsets):
        for (y, x), value in np.ndenumerate(weights[channel]):
            if 0 <= y + offset[0] < 7 and 0 <= x + offset[1] < 10:
                moved[channel, y + offset[0], x + offset[1]] = value
    assert np.array_equal(labels, mutex_watershed(moved, back, 0))


@settings(max_examples=30)
@given(problems())
def test_bands_and_contraction_change_nothing(problem):
    affinities, offsets, bias, mask = problem
    labels = mutex_watershed(affinities, offsets, bias, mask=mask)
    for name, value in (('_BAND_SHARE', 1.0), ('_LEAST_BAND', 1), ('_WORTHWHILE', 0.0),
                        ('_WORTHWHILE', 0.999)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mutex, name, value)
            assert np.array_equal(labels, mutex_watershed(affinities, offsets, bias, mask=mask))
