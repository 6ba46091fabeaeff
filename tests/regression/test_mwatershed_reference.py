"""
What mwatershed 0.5.4 does: the same partitions, and its panics and gaps mended.

The facts of the reference were taken from its own runs; where it can be imported, it
is run again and compared pixel by pixel.
"""
import numpy as np
import pytest

from cocoseg.postprocess.mutex import mutex_watershed

from ..cells import OFFSETS_2D, OFFSETS_3D, make_affinities, make_cells

LONG = [*OFFSETS_2D, (9, 0), (0, 9), (4, 4), (4, -4)]
LONG_3D = [*OFFSETS_3D, (4, 0, 0), (0, 4, 0), (0, 0, -4)]


def make_distinct(weights):
    """Return weights float32 of the same order and signs whose magnitudes all differ."""
    bits = np.abs(weights).ravel().view(np.uint32).astype(np.int64)
    order = np.argsort(bits, kind='stable')
    count = np.arange(len(bits))
    raised = np.empty_like(bits)
    raised[order] = np.maximum.accumulate(bits[order] - count) + count
    magnitudes = raised.astype(np.uint32).view(np.float32).reshape(weights.shape)
    return np.copysign(magnitudes, weights)


def make_weights(shape, offsets, noise, seed=0):
    """Return weights float32 (C, ...) of noisy cells, all different: its sort is not stable."""
    cells = make_cells(shape, 9 if len(shape) == 2 else 6, seed)
    affinities = make_affinities(cells, offsets, noise, seed + 1)
    return make_distinct(np.moveaxis(affinities, -1, 0) - np.float32(0.5))


def run_reference(weights, offsets):
    mwatershed = pytest.importorskip('mwatershed')
    return mwatershed.agglom(weights.astype(np.float64), [list(offset) for offset in offsets])


def check_same_partition(labels, reference):
    """Compare up to the choice of ids; 0 is background in both."""
    pairs = np.unique(np.stack([labels.ravel(), reference.ravel().astype(np.int64)]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1]))
    assert not (pairs[0] == 0)[pairs[1] != 0].any() and not (pairs[1] == 0)[pairs[0] != 0].any()


@pytest.mark.parametrize('noise', [0.15, 0.35])
@pytest.mark.parametrize('shape, offsets', [
    ((96, 110), OFFSETS_2D), ((96, 110), LONG), ((20, 24, 28), LONG_3D)], ids=str)
def test_partitions_are_those_of_the_reference(shape, offsets, noise):
    for seed in range(2):
        weights = make_weights(shape, offsets, noise, seed)
        labels = mutex_watershed(weights, offsets, bias=0)
        assert labels.max() > 50
        check_same_partition(labels, run_reference(weights, offsets))


def test_partitions_of_weights_without_any_structure():
    """Here background is common, and so are pixels whose attractions are all blocked."""
    rng = np.random.default_rng(0)
    for mean in (-0.6, 0.0, 0.5):
        weights = make_distinct(rng.normal(mean, 1, (8, 40, 40)).astype(np.float32))
        weights[0, 0, 0] = 9        # see the test of the first pixel
        labels = mutex_watershed(weights, LONG, bias=0)
        check_same_partition(labels, run_reference(weights, LONG))


# A pixel of row 1 has one attraction, to its left, which a heavier mutex forbids.
BLOCKED = np.full((2, 2, 5), -0.1, np.float32)
BLOCKED[0, 1, 1:3], BLOCKED[1, 1, 1] = (0.5, 0.4), -0.9
# The same at the first pixel of the array.
BLOCKED_FIRST = np.full((2, 1, 4), -0.1, np.float32)
BLOCKED_FIRST[0, 0, :2], BLOCKED_FIRST[1, 0, 0] = (0.4, 0.5), -0.9
SHORT = [(0, 1), (0, 2)]


def test_a_blocked_pixel_is_an_object_of_its_own():
    labels = mutex_watershed(BLOCKED, SHORT, bias=0)
    assert labels.tolist() == [[0, 0, 0, 0, 0], [0, 1, 1, 2, 0]]
    check_same_partition(labels, run_reference(BLOCKED, SHORT))


def test_the_first_pixel_is_no_exception():
    """The reference numbers pixels from 0, and so takes the first one for background."""
    labels = mutex_watershed(BLOCKED_FIRST, SHORT, bias=0)
    assert labels.tolist() == [[1, 2, 2, 0]]
    reference = run_reference(BLOCKED_FIRST, SHORT)
    assert reference[0, 0] == 0 and reference[0, 1] == reference[0, 2] != 0


def test_without_attraction_all_is_background():
    weights = np.full((2, 6, 6), -0.3, np.float32)
    assert not mutex_watershed(weights, OFFSETS_2D[:2], bias=0).any()
    assert not run_reference(weights, OFFSETS_2D[:2]).any()


def test_weights_of_zero_do_not_attract():
    weights = np.zeros((2, 6, 6), np.float32)
    assert not mutex_watershed(weights, OFFSETS_2D[:2], bias=0).any()
    assert not run_reference(weights, OFFSETS_2D[:2]).any()


def test_ids_are_dense():
    """The reference gives 9 to the only object of this image."""
    weights = np.ones((2, 8, 8), np.float32)
    assert np.unique(mutex_watershed(weights, OFFSETS_2D[:2], bias=0)).tolist() == [1]
    assert len(np.unique(run_reference(weights, OFFSETS_2D[:2]))) == 1


def test_one_axis_of_equal_weights_gives_one_segment_per_line():
    weights = np.stack([np.full((6, 6), 0.5), np.full((6, 6), -0.5)]).astype(np.float32)
    labels = mutex_watershed(weights, OFFSETS_2D[:2], bias=0)
    assert np.array_equal(labels, np.repeat(np.arange(1, 7), 6).reshape(6, 6))
    check_same_partition(labels, run_reference(weights, OFFSETS_2D[:2]))


def test_equal_weights_in_the_order_of_channels_and_pixels():
    """All are equal, so the reference leaves its edges in their order, which is ours."""
    rng = np.random.default_rng(3)
    for _ in range(5):
        weights = rng.choice([-0.5, 0.5, 0.5], (4, 12, 12)).astype(np.float32)
        weights[:2, 0, 0] = 0.5
        labels = mutex_watershed(weights, OFFSETS_2D, bias=0)
        check_same_partition(labels, run_reference(weights, OFFSETS_2D))


def test_runs_repeat_themselves():
    weights = make_weights((40, 40), LONG, 0.35).round(1)
    first = mutex_watershed(weights, LONG, bias=0)
    assert all(np.array_equal(first, mutex_watershed(weights, LONG, bias=0)) for _ in range(3))


def test_float32_is_enough():
    weights = np.ones((2, 8, 8), np.float32)
    mwatershed = pytest.importorskip('mwatershed')
    with pytest.raises(TypeError):
        mwatershed.agglom(weights, [[0, 1], [1, 0]])
    assert mutex_watershed(weights, [(0, 1), (1, 0)]).max() == 1


def test_nan_is_no_data_instead_of_a_panic():
    weights = np.ones((2, 6, 7), np.float32)
    weights[:, 2] = np.nan
    weights[1, 1] = np.nan
    labels = mutex_watershed(weights, [(0, 1), (1, 0)])
    assert labels[:, 0].tolist() == [1, 1, 0, 2, 2, 2]
    mwatershed = pytest.importorskip('mwatershed')
    with pytest.raises(BaseException) as caught:
        mwatershed.agglom(weights.astype(np.float64), [[0, 1], [1, 0]])
    assert type(caught.value).__name__ == 'PanicException'
