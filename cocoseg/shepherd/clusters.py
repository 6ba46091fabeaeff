"""
Clusters of colors: samples of an image, the k-means fitted to them, and its centres.

The only module that imports scikit-learn. The fit of a default segmentation is
ours, and loads nothing. With ``compat`` it comes to the centres of scikit-learn
itself, mostly by our iterations: see :func:`fit_clusters`. Does not assign the
pixels of an image to centres.
"""
from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.machine import count_cpus

from .lloyd import MAX_ITER, TOLERANCE, LloydResult, SampleTree, run_lloyd, swap_centres

# Pixels that a default fit looks at. Measured for 60 clusters and 3 seeds: the
# inertia over all valid pixels, above that of scikit-learn's best of 5 starts for
# all of them or about a million, at most (less is better):
#   synthetic, 4 bands, noise 20: 0.0 %; noise 110: -0.2 %; NAIP, 4 bands: 0.1 %;
#   Landsat 7, 6 bands: 0.1 %; Sentinel-2, 3 bands: 0.2 %; a Landsat scene with
#   clouds, 3 bands: 0.6 %.
# With 65536 pixels it is 0.4 to 1 % more, by chance of the draw.
FIT_SAMPLES = 262144
# It begins from a k-means++ start for a few pixels, which is improved by trying
# to move single centres, for some more.
_START_SAMPLES = 16384
_SWAP_SAMPLES = 65536
_N_SWAPS = 160
# It ends at a shift of the centres below this share of the mean variance, a
# tenth of scikit-learn's: worth 0.1 % of the inertia, for twice the iterations.
_FAST_TOLERANCE = 1e-5
# Share of the valid pixels in percent, and starts, of pyshepseg.
_COMPAT_PERCENT = 1
_COMPAT_STARTS = 5
# scikit-learn alone is as fast for fewer samples.
_LEAST_SAMPLES = 16384
# Valid pixels are looked for in so many pixels at a time.
_BLOCK_PIXELS = 1 << 20


def count_samples(config, n_pixels):
    """
    Return how many pixels a fit that is not ``compat`` looks at.

    Args:
        config (ShepherdConfig): ``n_samples``, or ``sample_percent``, or
            neither, which is FIT_SAMPLES.
        n_pixels (int): that a share is of.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.clusters import count_samples
        >>> count_samples(ShepherdConfig(sample_percent=30), 1000)
        300
    """
    if config.n_samples is not None:
        return config.n_samples
    if config.sample_percent is not None:
        return max(round(config.sample_percent / 100 * n_pixels), 1)
    return FIT_SAMPLES


def draw_ranks(n_valid, config):
    """
    Choose the valid pixels that a fit looks at.

    Args:
        n_valid (int): how many there are, at least 1.
        config (ShepherdConfig): its ``compat`` takes every k-th from the first,
            with k the rounded 100 / ``sample_percent``. Otherwise exactly
            :func:`count_samples` are drawn at random with ``seed``, all if there
            are fewer.

    Returns:
        ndarray: int64 (n,), ascending; 0 is the first valid pixel.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.clusters import draw_ranks
        >>> draw_ranks(10, ShepherdConfig(compat='pyshepseg', sample_percent=30)).tolist()
        [0, 3, 6, 9]
        >>> len(draw_ranks(1000, ShepherdConfig(sample_percent=30)))
        300
    """
    if config.is_compat:
        percent = _COMPAT_PERCENT if config.sample_percent is None else config.sample_percent
        return np.arange(0, n_valid, int(round(100 / percent)))
    n_samples = count_samples(config, n_valid)
    if n_samples >= n_valid:
        return np.arange(n_valid)
    rng = np.random.default_rng(config.seed)
    return np.sort(rng.choice(n_valid, n_samples, replace=False, shuffle=False))


def draw_samples(image, valid, config):
    """
    Return the valid pixels of an image that a fit looks at.

    Args:
        image (ndarray): (H, W, B), of any layout in memory; never copied.
        valid (ndarray | None): bool (H, W); None: all pixels are.
        config (ShepherdConfig): as for :func:`draw_ranks`.

    Returns:
        ndarray: (n, B) of the image's dtype, in the order of the image.

    Raises:
        OptionError: if no pixel is valid.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.clusters import draw_samples
        >>> import numpy as np
        >>> image = np.arange(12, dtype='uint8').reshape(3, 4, 1)
        >>> config = ShepherdConfig(compat='pyshepseg', sample_percent=50)
        >>> draw_samples(image, image[..., 0] != 4, config)[:, 0].tolist()
        [0, 2, 5, 7, 9, 11]
    """
    height, width = image.shape[:2]
    n_valid = height * width if valid is None else int(np.count_nonzero(valid))
    if n_valid == 0:
        raise OptionError(f'no pixel of the image of shape {image.shape} is valid, so there is '
                          'nothing to fit clusters to; look at its nodata value')
    ranks = draw_ranks(n_valid, config)
    places = ranks if valid is None else _find_places(valid, ranks)
    return image[places // width, places % width]


def _find_places(valid, ranks):
    """Return the flat indices of valid pixels by their ranks, int64 (n,)."""
    height, width = valid.shape
    n_rows = max(_BLOCK_PIXELS // width, 1)
    places, n_before = [], 0
    for y in range(0, height, n_rows):
        found = np.flatnonzero(valid[y:y + n_rows])
        first, stop = np.searchsorted(ranks, [n_before, n_before + len(found)])
        places.append(found[ranks[first:stop] - n_before] + y * width)
        n_before += len(found)
    return np.concatenate(places)


def diagonal_centres(samples, n_clusters):
    """
    Return centres spread evenly from the least to the largest values.

    Centre i is low + (i + 1) * (high - low) / (K + 1) in every band, truncated
    towards zero for integers.

    Args:
        samples (ndarray): (N, B), at least one.
        n_clusters (int): K.

    Returns:
        ndarray: (K, B) of the samples' dtype.

    Example:
        >>> from cocoseg.shepherd.clusters import diagonal_centres
        >>> import numpy as np
        >>> diagonal_centres(np.array([[0, 5], [10, 255]], 'uint8'), 3).tolist()
        [[2, 67], [5, 130], [7, 192]]
    """
    low, high = samples.min(axis=0), samples.max(axis=0)
    if samples.dtype.kind in 'iu':
        # In Python's integers, where a wide range of a signed type is no overflow.
        span = np.array([int(b) - int(a) for a, b in zip(low, high)], np.float64)
        low = low.astype(np.float64)
    else:
        span = high - low
    step = span / (n_clusters + 1)
    centres = np.empty((n_clusters, samples.shape[1]), samples.dtype)
    for index in range(n_clusters):
        centres[index] = low + (index + 1) * step
    return centres


def fit_clusters(samples, config, num_threads=None):
    """
    Fit a k-means to samples.

    The default fit begins from a k-means++ start, improved by moving single
    centres; its random numbers are drawn from ``seed``. With ``compat`` the
    centres are those of scikit-learn's own fit, called as pyshepseg calls it.
    From the diagonal they are the same bit by bit; those of scikit-learn itself
    differ from run to run by rounding where it uses more than two threads.
    From k-means++, with the random numbers that it draws from ``seed``, they
    differ by rounding. Few samples, and those of float32, are given to
    scikit-learn itself then.

    Args:
        samples (ndarray): numbers (N, B), valid pixels only; never modified.
        config (ShepherdConfig): ``n_clusters``, ``init``, ``seed``, ``compat``.
        num_threads (int | None): None is one per CPU. The result does not
            depend on it, except where scikit-learn does the work.

    Returns:
        sklearn.cluster.KMeans: fitted, with ``cluster_centers_`` (K, B),
        ``labels_`` (N,), ``inertia_`` and ``n_iter_``. Predicts integers and
        float64 or, if the samples are float32, float32 alone.

    Raises:
        OptionError: if samples are not finite, or there are fewer different
            ones than clusters.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.clusters import fit_clusters
        >>> import numpy as np
        >>> samples = np.array([[10, 1], [12, 1], [90, 7], [92, 9]], 'uint8')
        >>> kmeans = fit_clusters(samples, ShepherdConfig(n_clusters=2, init='diagonal'))
        >>> kmeans.cluster_centers_.tolist(), kmeans.predict([[80, 80]]).tolist()
        ([[11.0, 1.0], [91.0, 8.0]], [1])
    """
    return as_kmeans(fit_lazily(samples, config, num_threads))


def fit_lazily(samples, config, num_threads=None):
    """
    Do the same as :func:`fit_clusters`, and load scikit-learn only if it is needed.

    Loading takes longer than most fits.

    Returns:
        KMeans | FittedClusters: the latter of a default fit;
        :func:`as_kmeans` makes a KMeans of either.
    """
    samples = np.asarray(samples)
    _check_samples(samples, config.n_clusters)
    num_threads = count_cpus() if num_threads is None else num_threads
    if config.is_compat:
        return _fit_compat(samples, config, num_threads)
    tree = SampleTree(samples)
    if config.init == 'diagonal':
        centres = diagonal_centres(samples, config.n_clusters)
    else:
        centres = _find_start(samples, config, num_threads)
    result = run_lloyd(tree, centres, num_threads=num_threads,
                       tol=tree.tolerance * (_FAST_TOLERANCE / TOLERANCE))
    return FittedClusters(result, samples.dtype, config)


@dataclass(frozen=True)
class FittedClusters:
    """
    Clusters of a fit, which become a KMeans of scikit-learn when somebody asks.

    Attributes:
        result (LloydResult): centres and labels.
        dtype (np.dtype): of the samples.
        config (ShepherdConfig): what was asked for.
    """

    result: LloydResult
    dtype: np.dtype
    config: Any

    @property
    def cluster_centers_(self):
        """Centres (K, B); of float32 samples float32, as scikit-learn needs it to predict."""
        return self.result.centres.astype(
            np.float32 if self.dtype == np.float32 else np.float64)

    @functools.cached_property
    def kmeans(self):
        """The clusters as a fitted ``sklearn.cluster.KMeans``."""
        return _make_kmeans(self)


def as_kmeans(clusters):
    """
    Return clusters as a KMeans of scikit-learn, if they are ours; else as they are.

    Args:
        clusters (FittedClusters | KMeans | ndarray | None): of
            :func:`fit_lazily`, or what a caller gave.

    Example:
        >>> from cocoseg.shepherd.clusters import as_kmeans
        >>> as_kmeans(None) is None
        True
    """
    return clusters.kmeans if isinstance(clusters, FittedClusters) else clusters


def _check_samples(samples, n_clusters):
    if samples.ndim != 2 or samples.dtype.kind not in 'iuf' or 0 in samples.shape:
        raise OptionError(f'samples of shape {samples.shape} and dtype {samples.dtype} cannot be '
                          'fitted; give numbers of shape (N, B), at least one')
    if samples.dtype.kind == 'f':
        n_bad = len(samples) - int(np.isfinite(samples).all(axis=1).sum())
        if n_bad:
            raise OptionError(f'{n_bad} of {len(samples)} samples are NaN or infinite; '
                              'give valid pixels only')
    n_distinct = _count_distinct(samples, n_clusters)
    if n_distinct < n_clusters:
        raise OptionError(f'there are {n_distinct} different colors in {len(samples)} samples, '
                          f'fewer than n_clusters={n_clusters}; use fewer clusters, or a larger '
                          'sample_percent or n_samples')


def _count_distinct(samples, enough):
    """Count the different rows, or enough of them."""
    n_some = max(16 * enough, 1024)
    some = np.unique(samples[::max(len(samples) // n_some, 1)], axis=0)
    return len(some) if len(some) >= enough else len(np.unique(samples, axis=0))


def _find_start(samples, config, num_threads):
    """Return centres (K, B) that are good for a part of the samples."""
    rng, n_clusters = np.random.default_rng(config.seed), config.n_clusters
    n_part = min(max(_SWAP_SAMPLES, 16 * n_clusters), len(samples))
    part = samples[rng.choice(len(samples), n_part, replace=False)].astype(np.float64)
    centres = _spread_centres(part[:max(_START_SAMPLES, 16 * n_clusters)], n_clusters, rng)
    return swap_centres(SampleTree(part), centres, _N_SWAPS, rng, num_threads)


def _spread_centres(samples, n_clusters, rng):
    """
    Return samples (K, B) that are far from each other.

    The start of k-means++ (Arthur and Vassilvitskii, SODA 2007): each is drawn
    by its squared distance to the nearest before it.
    """
    centres = np.empty((n_clusters, samples.shape[1]))
    centres[0] = samples[rng.integers(len(samples))]
    distances = ((samples - centres[0]) ** 2).sum(axis=1)
    for index in range(1, n_clusters):
        reach = np.cumsum(distances)
        # Where all samples are centres already, any will do.
        place = (np.searchsorted(reach, rng.random() * reach[-1], side='right')
                 if reach[-1] > 0 else rng.integers(len(samples)))
        centres[index] = samples[min(place, len(samples) - 1)]
        np.minimum(distances, ((samples - centres[index]) ** 2).sum(axis=1), out=distances)
    return centres


def _fit_compat(samples, config, num_threads):
    """Return what scikit-learn would, called as pyshepseg calls it."""
    from sklearn.cluster import KMeans
    is_diagonal = config.init == 'diagonal'
    init = diagonal_centres(samples, config.n_clusters) if is_diagonal else 'k-means++'
    kmeans = KMeans(config.n_clusters, init=init, n_init=1 if is_diagonal else _COMPAT_STARTS,
                    random_state=None if is_diagonal else config.seed)
    if samples.dtype == np.float32 or len(samples) < _LEAST_SAMPLES:
        return kmeans.fit(samples)
    if not is_diagonal:
        return _fit_compat_starts(samples.astype(np.float64), samples.dtype, config, num_threads)
    referee = _Referee(samples)
    result = run_lloyd(samples, init, num_threads=num_threads, referee=referee)
    fitted = referee.kmeans.set_params(**kmeans.get_params())
    fitted.n_iter_ = result.n_iter
    return fitted


class _Referee:
    """Runs Lloyd's iterations by scikit-learn; keeps what it fitted last as ``kmeans``."""

    def __init__(self, samples):
        self._samples, self.kmeans = samples, None

    def __call__(self, centres, n_iter):
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning
        self.kmeans = KMeans(len(centres), init=centres, n_init=1, max_iter=n_iter, copy_x=False)
        with warnings.catch_warnings():
            # Clusters may be empty on the way; they are filled in the next iteration.
            warnings.simplefilter('ignore', ConvergenceWarning)
            # A copy that it may change, and that is gone afterwards.
            self.kmeans.fit(np.array(self._samples, np.float64, order='C'))
        return self.kmeans.cluster_centers_, self.kmeans.n_iter_


def _fit_compat_starts(samples, dtype, config, num_threads):
    """Return the best of some runs from the starts that scikit-learn draws."""
    from sklearn.cluster import kmeans_plusplus
    tree, random_state = SampleTree(samples), np.random.RandomState(config.seed)
    offset = samples.mean(axis=0)
    best = None
    for _ in range(_COMPAT_STARTS):
        centres, _ = kmeans_plusplus(samples - offset, config.n_clusters,
                                     random_state=random_state)
        result = run_lloyd(tree, centres + offset, num_threads=num_threads)
        if best is None or result.inertia < best.inertia:
            best = result
    return _make_kmeans(FittedClusters(best, dtype, config))


def _make_kmeans(clusters):
    """Return a KMeans as if it had been fitted to what the clusters were."""
    from sklearn.cluster import KMeans
    result, config = clusters.result, clusters.config
    n_clusters, n_bands = result.centres.shape
    # All that predict() needs is set by a fit, here to as many points as clusters.
    points = np.repeat(np.arange(n_clusters, dtype=np.float64)[:, None], n_bands, axis=1)
    kmeans = KMeans(n_clusters, init=points, n_init=1, max_iter=1).fit(points)
    kmeans.set_params(max_iter=MAX_ITER, init='k-means++', random_state=config.seed)
    kmeans.cluster_centers_ = clusters.cluster_centers_
    kmeans.labels_, kmeans.inertia_, kmeans.n_iter_ = result.labels, result.inertia, result.n_iter
    return kmeans


def as_centres(kmeans, n_bands):
    """
    Return the cluster centres of what a caller gave.

    Args:
        kmeans (object): a fitted KMeans, anything else with
            ``cluster_centers_``, or the centres themselves, (K, B).
        n_bands (int): B, of the image.

    Returns:
        ndarray: float64 (K, B), contiguous, a copy.

    Raises:
        OptionError: if there are none, or they do not suit the image.

    Example:
        >>> from cocoseg.shepherd.clusters import as_centres
        >>> as_centres([[1, 2], [3, 4]], n_bands=2).tolist()
        [[1.0, 2.0], [3.0, 4.0]]
    """
    centres = getattr(kmeans, 'cluster_centers_', kmeans)
    try:
        centres = np.array(centres, np.float64, order='C')
    except (TypeError, ValueError) as ex:
        raise OptionError(f'kmeans={kmeans!r} has no cluster centres; give a fitted KMeans, or '
                          f'an array of shape (K, {n_bands})') from ex
    if centres.ndim != 2 or len(centres) < 1 or centres.shape[1] != n_bands:
        raise OptionError(f'cluster centres of shape {centres.shape} do not suit an image of '
                          f'{n_bands} bands; they need shape (K, {n_bands})')
    if not np.isfinite(centres).all():
        raise OptionError('cluster centres hold NaN or infinity; fit them to valid pixels')
    return centres


def measure_distances(centres):
    """Return the distances of all pairs of centres (K, B), float32 (K * (K - 1) / 2,)."""
    centres = np.asarray(centres)
    distances, n_done = np.empty(len(centres) * (len(centres) - 1) // 2, np.float32), 0
    for index in range(1, len(centres)):
        others = centres[index:]
        distances[n_done:n_done + len(others)] = np.sqrt(
            ((centres[index - 1] - others) ** 2).sum(axis=1))
        n_done += len(others)
    return distances


def auto_max_spectral_diff(centres, percentile):
    """
    Return a percentile of the distances between cluster centres.

    Args:
        centres (ndarray): float (K, B), at least two.
        percentile (float): 0..100; between two distances it is interpolated.

    Returns:
        numpy.float32: in units of the image.

    Example:
        >>> from cocoseg.shepherd.clusters import auto_max_spectral_diff
        >>> import numpy as np
        >>> float(auto_max_spectral_diff(np.array([[0.0, 0], [3, 4], [0, 6]]), 50))
        5.0
    """
    return np.percentile(measure_distances(centres), percentile)


def resolve_max_spectral_diff(config, kmeans):
    """
    Return the largest distance of means that a config stands for.

    Args:
        config (ShepherdConfig): ``max_spectral_diff``, ``spectral_percentile``.
        kmeans (KMeans | ndarray): fitted clusters, or centres, float (K, B),
            at least two. Distances are those of centres of their own dtype.

    Returns:
        numpy.float32 | float: float32 where it comes from the centres.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.shepherd.clusters import resolve_max_spectral_diff
        >>> import numpy as np
        >>> centres = np.array([[0.0, 0], [3, 4], [0, 6]])
        >>> [float(resolve_max_spectral_diff(ShepherdConfig(max_spectral_diff=diff), centres))
        ...  for diff in ('auto', None, 7)]
        [5.0, 60.0, 7.0]
    """
    centres = np.asarray(getattr(kmeans, 'cluster_centers_', kmeans))
    if config.max_spectral_diff == 'auto':
        return auto_max_spectral_diff(centres, config.spectral_percentile)
    if config.max_spectral_diff is None:
        return 10 * measure_distances(centres).max()
    return float(config.max_spectral_diff)
