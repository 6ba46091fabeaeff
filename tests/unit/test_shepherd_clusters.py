"""Samples of images, the fit of clusters to them, and what is made of their centres."""
import math
import pickle

import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from cocoseg import ShepherdConfig
from cocoseg.errors import OptionError
from cocoseg.io.raster import read_raster
from cocoseg.shepherd import clusters, lloyd
from cocoseg.shepherd.clusters import (
    as_centres, auto_max_spectral_diff, diagonal_centres, draw_ranks, draw_samples, fit_clusters,
    measure_distances, resolve_max_spectral_diff)

COMPAT = ShepherdConfig(compat='pyshepseg', init='diagonal', n_clusters=20)
INT_DTYPES = ('u1', 'i1', 'u2', 'i2', 'i4', 'u4', 'i8')


def make_pixels(dtype, n_pixels=5000, n_bands=3, seed=0):
    """Return pixels (N, B) in clumps, within the range of a byte for integers."""
    rng = np.random.default_rng(seed)
    middles = rng.integers(10, 100, (15, n_bands))
    pixels = middles[rng.integers(0, 15, n_pixels)] + rng.normal(0, 6, (n_pixels, n_bands))
    pixels = pixels.clip(1, 120)
    return (pixels - 60 if np.dtype(dtype).kind != 'u' else pixels).astype(dtype)


@pytest.fixture(autouse=True, scope='module')
def two_threads():
    """With more, scikit-learn adds up in any order, and differs from itself by rounding."""
    with threadpool_limits(2, user_api='openmp'):
        yield


@pytest.fixture
def no_small_fits(monkeypatch):
    """Let our iterations do small fits, too."""
    monkeypatch.setattr(clusters, '_LEAST_SAMPLES', 0)
    monkeypatch.setattr(lloyd, '_PART_SIZE', 1000)


def fit_reference(samples, config):
    """Fit as pyshepseg does, with seeded random numbers."""
    is_diagonal = config.init == 'diagonal'
    init = diagonal_centres(samples, config.n_clusters) if is_diagonal else 'k-means++'
    return KMeans(config.n_clusters, init=init, n_init=1 if is_diagonal else 5,
                  random_state=config.seed).fit(samples)


def check_same_fit(kmeans, expected):
    assert np.array_equal(kmeans.cluster_centers_, expected.cluster_centers_)
    assert kmeans.cluster_centers_.dtype == expected.cluster_centers_.dtype
    assert kmeans.n_iter_ == expected.n_iter_ and kmeans.inertia_ == expected.inertia_
    assert np.array_equal(kmeans.labels_, expected.labels_)


# ---- samples ---------------------------------------------------------------

@pytest.mark.parametrize('percent, step', [(None, 100), (100, 1), (70, 1), (60, 2), (30, 3),
                                           (0.1, 1000)])
def test_compat_takes_every_kth_valid_pixel(percent, step):
    config = COMPAT.patch(sample_percent=percent)
    assert draw_ranks(2500, config).tolist() == list(range(0, 2500, step))


@pytest.mark.parametrize('options, expected', [
    ({'n_samples': 77}, 77), ({'n_samples': 3000}, 2500), ({'sample_percent': 10}, 250),
    ({'sample_percent': 0.001}, 1), ({}, 2500)])
def test_default_draws_an_exact_number_of_different_pixels(options, expected):
    ranks = draw_ranks(2500, ShepherdConfig(**options))
    assert len(ranks) == expected and (np.diff(ranks) > 0).all()
    assert ranks[0] >= 0 and ranks[-1] < 2500


def test_default_draws_a_good_number_of_many(monkeypatch):
    monkeypatch.setattr(clusters, 'FIT_SAMPLES', 100)
    first, again, other = (draw_ranks(100_000, ShepherdConfig(seed=seed)) for seed in (4, 4, 5))
    assert len(first) == 100 and np.array_equal(first, again) and not np.array_equal(first, other)
    # From all over.
    assert np.bincount(first // 25_000, minlength=4).min() > 10


@pytest.mark.parametrize('block_pixels', [1, 100, 1 << 20])
@pytest.mark.parametrize('config', [COMPAT.patch(sample_percent=20), COMPAT,
                                    ShepherdConfig(n_samples=90), ShepherdConfig()])
def test_samples_are_the_valid_pixels_of_their_ranks(config, block_pixels, monkeypatch):
    monkeypatch.setattr(clusters, '_BLOCK_PIXELS', block_pixels)
    image = np.random.default_rng(0).integers(0, 99, (3, 31, 17), 'u2')
    valid = np.random.default_rng(1).random((31, 17)) > 0.4
    valid[5:9] = False
    for layout in (image.transpose(1, 2, 0), np.ascontiguousarray(image.transpose(1, 2, 0))):
        pixels = layout[valid]
        found = draw_samples(layout, valid, config)
        assert found.dtype == 'u2'
        assert np.array_equal(found, pixels[draw_ranks(len(pixels), config)])
        everything = draw_samples(layout, None, config)
        assert np.array_equal(everything, layout.reshape(-1, 3)[draw_ranks(31 * 17, config)])


def test_an_image_without_valid_pixels():
    with pytest.raises(OptionError, match='no pixel'):
        draw_samples(np.ones((4, 5, 2)), np.zeros((4, 5), bool), ShepherdConfig())


# ---- the diagonal ----------------------------------------------------------

@pytest.mark.parametrize('dtype', [*INT_DTYPES, 'f4', 'f8'])
def test_diagonal_centres_follow_their_rule(dtype):
    samples = make_pixels(dtype, 100)
    centres = diagonal_centres(samples, 7)
    assert centres.shape == (7, 3) and centres.dtype == samples.dtype
    low, high = samples.min(axis=0), samples.max(axis=0)
    for index in range(7):
        exact = [float(a) + (index + 1) * ((float(b) - float(a)) / 8) for a, b in zip(low, high)]
        if samples.dtype.kind == 'f':
            np.testing.assert_allclose(centres[index], exact, rtol=1e-5)
        else:
            assert centres[index].tolist() == [math.trunc(value) for value in exact]


def test_diagonal_of_a_range_that_the_dtype_cannot_hold():
    assert diagonal_centres(np.array([[-100], [100]], 'i1'), 3).tolist() == [[-50], [0], [50]]
    # More centres than a byte can count.
    assert diagonal_centres(np.array([[0], [255]], 'u1'), 300)[-1] == 254


# ---- compat ----------------------------------------------------------------

@pytest.mark.parametrize('dtype', [*INT_DTYPES, 'f8', 'f4'])
def test_compat_from_the_diagonal_is_scikit_learn_bit_by_bit(dtype, no_small_fits):
    # Integers of this range are full of ties, and clusters are empty at first.
    samples = make_pixels(dtype)
    check_same_fit(fit_clusters(samples, COMPAT), fit_reference(samples, COMPAT))


def test_compat_does_most_of_the_work_itself(no_small_fits, monkeypatch):
    asked = []
    real = clusters._Referee.__call__

    def ask(referee, centres, n_iter):
        asked.append(n_iter)
        return real(referee, centres, n_iter)
    monkeypatch.setattr(clusters._Referee, '__call__', ask)
    samples = (make_pixels('f8') * 100).astype('i2')
    kmeans = fit_clusters(samples, COMPAT)
    check_same_fit(kmeans, fit_reference(samples, COMPAT))
    assert 1 <= sum(asked) < kmeans.n_iter_ / 2


def test_compat_with_doubts_in_every_iteration(no_small_fits, monkeypatch):
    monkeypatch.setattr(lloyd, '_DOUBT', 1.0)
    for max_referred in (2, 1000):
        monkeypatch.setattr(lloyd, '_MAX_REFERRED', max_referred)
        samples = make_pixels('u2', 500)
        check_same_fit(fit_clusters(samples, COMPAT), fit_reference(samples, COMPAT))


def test_small_compat_fits_are_scikit_learn_alone(monkeypatch):
    monkeypatch.setattr(clusters, 'run_lloyd', None)
    samples = make_pixels('u1', 300)
    check_same_fit(fit_clusters(samples, COMPAT), fit_reference(samples, COMPAT))


@pytest.mark.parametrize('dtype', ['u1', 'u2', 'f8', 'f4'])
def test_compat_from_random_starts_is_scikit_learn_with_that_seed(dtype, no_small_fits):
    samples, config = make_pixels(dtype, 2000), COMPAT.patch(init='k-means++', seed=3)
    kmeans, expected = fit_clusters(samples, config), fit_reference(samples, config)
    np.testing.assert_allclose(kmeans.cluster_centers_, expected.cluster_centers_, rtol=1e-9)
    np.testing.assert_allclose(kmeans.inertia_, expected.inertia_, rtol=1e-9)
    assert kmeans.n_iter_ == expected.n_iter_
    assert np.array_equal(kmeans.labels_, expected.labels_)


def test_a_compat_fit_has_the_parameters_of_the_references(no_small_fits):
    samples = make_pixels('u2')
    params = fit_clusters(samples, COMPAT).get_params()
    assert np.array_equal(params.pop('init'), diagonal_centres(samples, 20))
    expected = KMeans(20, n_init=1).get_params()
    assert params == {name: value for name, value in expected.items() if name != 'init'}


# ---- the default fit -------------------------------------------------------

@pytest.mark.parametrize('dtype', ['u1', 'i2', 'f4', 'f8'])
def test_default_fit_is_as_good_as_the_best_of_many(dtype):
    samples = make_pixels(dtype)
    kmeans = fit_clusters(samples, ShepherdConfig(n_clusters=15))
    best = KMeans(15, n_init=10, random_state=0).fit(samples.astype('f8'))
    assert kmeans.inertia_ <= 1.005 * best.inertia_
    # It is what its centres say.
    distances = ((samples[:, None].astype('f8') - kmeans.cluster_centers_) ** 2).sum(axis=2)
    assert np.array_equal(kmeans.labels_, distances.argmin(axis=1))
    np.testing.assert_allclose(kmeans.inertia_, distances.min(axis=1).sum(), rtol=1e-6)


def test_default_fit_from_the_diagonal_is_the_references_but_for_ties():
    samples = (make_pixels('f8') * 1e4).astype('i4')
    config = COMPAT.patch(compat=None)
    kmeans, expected = fit_clusters(samples, config), fit_reference(samples, COMPAT)
    # It goes on for longer, from about there.
    assert kmeans.n_iter_ >= expected.n_iter_
    assert expected.inertia_ * 0.98 < kmeans.inertia_ <= expected.inertia_


def test_fits_are_seeded_and_do_not_depend_on_threads(monkeypatch):
    monkeypatch.setattr(lloyd, '_PART_SIZE', 1000)
    samples, config = make_pixels('f8'), ShepherdConfig(n_clusters=15, seed=1)
    fits = [fit_clusters(samples, config, num_threads) for num_threads in (1, 1, 3, None)]
    for kmeans in fits[1:]:
        check_same_fit(kmeans, fits[0])
    other = fit_clusters(samples, config.patch(seed=2))
    assert not np.array_equal(other.cluster_centers_, fits[0].cluster_centers_)


def test_parts_of_the_samples_are_enough_for_a_start(monkeypatch):
    monkeypatch.setattr(clusters, '_START_SAMPLES', 100)
    monkeypatch.setattr(clusters, '_SWAP_SAMPLES', 2000)
    samples = make_pixels('u2')
    whole = fit_reference(samples, COMPAT.patch(init='k-means++', n_clusters=15))
    assert fit_clusters(samples, ShepherdConfig(n_clusters=15)).inertia_ < 1.02 * whole.inertia_


@pytest.mark.parametrize('config', [ShepherdConfig(n_clusters=20), COMPAT,
                                    COMPAT.patch(init='k-means++')])
@pytest.mark.parametrize('dtype', ['u2', 'f4', 'f8'])
def test_a_fit_predicts_and_survives_pickling(config, dtype, no_small_fits):
    samples = make_pixels(dtype, 1000)
    kmeans = pickle.loads(pickle.dumps(fit_clusters(samples, config)))
    assert isinstance(kmeans, KMeans) and kmeans.n_features_in_ == 3
    assert np.array_equal(kmeans.predict(samples), kmeans.labels_)
    if dtype != 'f4':
        assert np.array_equal(kmeans.predict(samples.astype('f8')), kmeans.labels_)


def test_samples_are_not_modified_and_may_be_of_any_layout(no_small_fits):
    samples = np.asfortranarray(make_pixels('u2', 1000))[::2]
    samples.flags.writeable = False
    before = samples.copy()
    for config in (COMPAT, COMPAT.patch(compat=None), ShepherdConfig(n_clusters=20)):
        kmeans = fit_clusters(samples, config)
        check_same_fit(fit_clusters(np.ascontiguousarray(samples), config), kmeans)
    assert np.array_equal(samples, before)


# ---- wrong samples ---------------------------------------------------------

@pytest.mark.parametrize('config', [ShepherdConfig(n_clusters=20), COMPAT])
def test_fewer_colors_than_clusters(config, monkeypatch):
    monkeypatch.setattr(clusters, 'run_lloyd', None)
    monkeypatch.setattr(clusters, 'swap_centres', None)
    samples = np.repeat(np.arange(19, dtype='u1')[:, None], 500, axis=0)
    with pytest.raises(OptionError, match='19 different colors in 9500 samples.*n_clusters=20'):
        fit_clusters(samples, config)


def test_colors_that_are_rare_count():
    samples = np.zeros((20_000, 2), 'u1')
    samples[1:7] = np.arange(12).reshape(6, 2)
    assert clusters._count_distinct(samples, 8) == 7
    kmeans = fit_clusters(samples, ShepherdConfig(n_clusters=7))
    assert len(np.unique(kmeans.labels_)) == 7 and kmeans.inertia_ == 0


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', ['f4', 'f8'])
def test_samples_that_are_not_finite(dtype, value):
    samples = make_pixels(dtype)
    samples[7, 1] = samples[7, 2] = samples[9, 0] = value
    with pytest.raises(OptionError, match='2 of 5000 samples are NaN or infinite'):
        fit_clusters(samples, COMPAT)


@pytest.mark.parametrize('samples', [np.zeros((0, 3)), np.zeros((5, 0)), np.zeros(5),
                                     np.zeros((4, 4, 3)), np.zeros((5, 3), 'c8'),
                                     np.full((5, 3), 'a')])
def test_samples_that_are_no_samples(samples):
    with pytest.raises(OptionError, match='samples of shape'):
        fit_clusters(samples, COMPAT)


# ---- centres ---------------------------------------------------------------

def test_centres_of_what_has_them():
    samples = make_pixels('f4', 100)
    kmeans = KMeans(4, n_init=1).fit(samples)
    assert kmeans.cluster_centers_.dtype == 'f4'
    for source in (kmeans, kmeans.cluster_centers_, kmeans.cluster_centers_.tolist(),
                   np.asfortranarray(kmeans.cluster_centers_)):
        centres = as_centres(source, 3)
        assert np.array_equal(centres, kmeans.cluster_centers_) and centres.dtype == 'f8'
        assert centres.flags.c_contiguous
    centres[:] = 0
    assert kmeans.cluster_centers_.any()


@pytest.mark.parametrize('source', [KMeans(4), None, 'kmeans', [[1, 2], [3]], object()])
def test_no_centres(source):
    with pytest.raises(OptionError, match='kmeans|cluster centres'):
        as_centres(source, 2)


@pytest.mark.parametrize('centres, message', [
    (np.zeros((4, 3)), r'\(4, 3\) do not suit an image of 2 bands'),
    (np.zeros(2), 'do not suit'), (np.zeros((0, 2)), 'do not suit'),
    (np.array([[1, np.nan]]), 'NaN'), (np.array([[1, np.inf]]), 'NaN or infinity')])
def test_centres_that_do_not_suit_an_image(centres, message):
    with pytest.raises(OptionError, match=message):
        as_centres(centres, 2)


@pytest.mark.parametrize('dtype', ['f4', 'f8'])
@pytest.mark.parametrize('shape', [(2, 1), (9, 4), (12, 11)])
def test_distances_of_all_pairs(shape, dtype):
    centres = np.random.default_rng(0).normal(0, 1000, shape).astype(dtype)
    expected = [np.float32(np.sqrt(((centres[i] - centres[j]) ** 2).sum()))
                for i in range(len(centres)) for j in range(i + 1, len(centres))]
    distances = measure_distances(centres)
    assert distances.dtype == 'f4' and distances.tolist() == [float(value) for value in expected]


def test_largest_distances_and_their_dtypes():
    centres = np.array([[0.0, 0], [3, 4], [0, 6], [0, 1]])
    distances = measure_distances(centres)
    config = ShepherdConfig(spectral_percentile=30)
    auto = resolve_max_spectral_diff(config, centres)
    assert auto.dtype == 'f4' and auto == np.percentile(distances, 30)
    assert auto == auto_max_spectral_diff(centres, 30)
    none = resolve_max_spectral_diff(config.patch(max_spectral_diff=None), centres)
    assert none.dtype == 'f4' and none == 60
    assert type(resolve_max_spectral_diff(config.patch(max_spectral_diff=3), centres)) is float


# ---- real images -----------------------------------------------------------

@pytest.fixture(scope='module')
def landsat(repo_root):
    """Pixels (N, 6) of a Landsat 7 scene."""
    path = repo_root.parent / 'shared' / 'data' / 'landsat7_olinda' / 'L7_ETMs.tif'
    if not path.exists():
        pytest.skip(f'no sample image at {path}')
    return read_raster(path).reshape(-1, 6)


def test_compat_fit_of_a_real_image(landsat):
    samples = landsat[::8]
    config = COMPAT.patch(n_clusters=60)
    check_same_fit(fit_clusters(samples, config), fit_reference(samples, config))


def test_default_fit_of_a_real_image(landsat):
    samples = landsat[::4]
    kmeans = fit_clusters(samples, ShepherdConfig(n_clusters=30))
    expected = KMeans(30, n_init=5, random_state=0).fit(samples)
    assert kmeans.inertia_ <= 1.005 * expected.inertia_
