"""The fit of clusters, for any small samples, held against plain comparisons and scikit-learn."""
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cocoseg import ShepherdConfig
from cocoseg.shepherd import clusters, lloyd
from cocoseg.shepherd.clusters import diagonal_centres, draw_samples, fit_clusters
from cocoseg.shepherd.lloyd import SampleTree

from ..strategies import SEEDS
from ..unit.test_shepherd_lloyd import assign_all, check_run


@pytest.fixture(autouse=True, scope='module')
def small_parts():
    """Let small trees have many leaves and parts, and small fits be ours."""
    # With more, scikit-learn adds up in any order, and differs from itself by rounding.
    with threadpool_limits(2, user_api='openmp'), pytest.MonkeyPatch.context() as patch:
        patch.setattr(lloyd, '_PART_SIZE', 20)
        patch.setattr(lloyd, '_LEAF_SIZE', 8)
        patch.setattr(clusters, '_LEAST_SAMPLES', 0)
        yield


@st.composite
def problems(draw, dtypes=('u1', 'i2', 'f8')):
    """Draw samples (N, B) and different centres (K, B), with duplicates and far centres."""
    rng = np.random.default_rng(draw(SEEDS))
    n_samples, n_bands = draw(st.integers(2, 120)), draw(st.integers(1, 5))
    dtype = draw(st.sampled_from(dtypes))
    top = draw(st.sampled_from([3, 12, 100]))
    samples = rng.integers(0, top + 1, (n_samples, n_bands))
    if dtype == 'f8':
        samples = samples + rng.normal(0, 0.3, samples.shape)
    n_clusters = draw(st.integers(1, min(12, n_samples)))
    spread = draw(st.sampled_from([1, 1, 4]))
    centres = rng.uniform(0, top * spread, (n_clusters, n_bands)).round(draw(st.integers(0, 2)))
    return samples.astype(dtype), centres


@given(problems(), st.integers(1, 3))
def test_runs_are_those_of_a_comparison_with_every_centre(problem, num_threads):
    samples, centres = problem
    check_run(samples, centres, num_threads=num_threads, max_iter=40)


@given(problems())
def test_an_assignment_is_a_partition_by_the_nearest_centre(problem):
    samples, centres = problem
    tree = SampleTree(samples)
    labels, distances = assign_all(samples.astype(float), centres)
    sums, counts, _ = tree.assign(centres)
    expected = np.zeros_like(centres)
    np.add.at(expected, labels, samples)
    np.testing.assert_allclose(sums, expected, rtol=1e-12, atol=1e-12)
    assert np.array_equal(counts, np.bincount(labels, minlength=len(centres)))
    assert np.array_equal(tree.label(centres)[0], labels)
    _, _, n_ties = tree.assign(centres, 1e-13)
    near = np.sort(distances, axis=1)[:, :2]
    n_equal = np.count_nonzero(near[:, 0] == near[:, -1]) if near.shape[1] > 1 else 0
    assert n_ties >= n_equal


@given(SEEDS, st.integers(2, 12), st.sampled_from(['u1', 'i2', 'u4', 'f8']),
       st.sampled_from([4, 30, 250]), st.integers(1, 5))
@pytest.mark.filterwarnings('ignore::sklearn.exceptions.ConvergenceWarning')
def test_compat_is_scikit_learn_bit_by_bit(seed, n_clusters, dtype, top, n_bands):
    rng = np.random.default_rng(seed)
    samples = (rng.random((rng.integers(20, 400), n_bands)) ** 2 * top).astype(dtype)
    assume(len(np.unique(samples, axis=0)) >= n_clusters)
    config = ShepherdConfig(compat='pyshepseg', init='diagonal', n_clusters=n_clusters)
    kmeans = fit_clusters(samples, config)
    expected = KMeans(n_clusters, init=diagonal_centres(samples, n_clusters), n_init=1)
    expected.fit(samples)
    assert np.array_equal(kmeans.cluster_centers_, expected.cluster_centers_)
    assert np.array_equal(kmeans.labels_, expected.labels_)
    assert kmeans.n_iter_ == expected.n_iter_ and kmeans.inertia_ == expected.inertia_


@given(SEEDS, st.integers(1, 30), st.integers(1, 30), st.floats(0, 1), st.integers(2, 100),
       st.booleans())
def test_samples_are_valid_pixels_in_order(seed, height, width, share, percent, is_compat):
    rng = np.random.default_rng(seed)
    image = rng.permutation(height * width).reshape(height, width, 1)
    valid = rng.random((height, width)) <= share
    assume(valid.any())
    config = ShepherdConfig(sample_percent=percent, compat='pyshepseg' if is_compat else None)
    found = draw_samples(image, valid, config)[:, 0].tolist()
    pixels = image[valid][:, 0].tolist()
    if is_compat:
        assert found == pixels[::int(round(100 / percent))]
    else:
        assert len(found) == max(round(len(pixels) * percent / 100), 1)
        places = [pixels.index(pixel) for pixel in found]
        assert places == sorted(set(places))
