"""
Seeded watershed: instances out of a map of boundaries, distances or foreground.

One array in, labels out: what one block of an image, or a whole one, becomes.
Blocks are cut and joined elsewhere. :func:`least_context` tells how much of
their surroundings blocks must see to find the same seeds.
"""
from __future__ import annotations

import math

import numpy as np

from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.labels.components import label_components
from cocoseg.labels.relabel import apply_lut, rank_groups
from cocoseg.labels.volume_components import label_volume
from cocoseg.postprocess.parameters import WatershedParameters
from cocoseg.postprocess.smoothing import blur, count_reach, smooth

METHODS = ('boundary', 'distance', 'foreground')
# Without a threshold, objects end for seeds where a boundary is as likely as not.
_BOUNDARY = 0.5
# How much of the height of a boundary watershed is the boundary; the rest is distance.
_ALPHA = 0.9


def seeded_watershed(surface: np.ndarray, parameters: WatershedParameters) -> np.ndarray:
    """
    Divide a predicted map into instances, flooded from its high points.

    The map is smoothed by a Gaussian of ``sigma``, and masked by ``threshold``.
    What is flooded depends on the method:

    ============  =========================  ==================================
    method        mask                       height
    ============  =========================  ==================================
    'distance'    map >= threshold           the map, px to the boundary
    'foreground'  map >= threshold           distance to the end of the mask,
                                             smoothed by ``sigma`` too
    'boundary'    1 - map >= threshold;      seeds as for 'foreground'; flooded
                  None: all pixels, seeds    are 0.9 of the boundary and 0.1 of
                  where the map is < 0.5     1 / (1 + distance) [DTW]_
    ============  =========================  ==================================

    Seeds are pixels of the mask that no other within ``seed_distance`` along
    each axis is higher than; those of one height within that distance are one
    seed. A part of the mask that has none gets one at its highest point, so
    that no object is lost. Floods go on over faces of pixels (4 neighbors, or
    6), and stay inside of the mask.

    Args:
        surface (ndarray): real numbers, shape (h, w) or (d, h, w). What is not
            finite is background. Never modified.
        parameters (WatershedParameters): method, threshold, sigma and
            seed_distance are used. Blocks are given their context, and small
            instances are dropped, by those who join blocks.

    Returns:
        ndarray: uint32, same shape; 0 for background, instances 1..n by their
        first pixel.

    Raises:
        OptionError: for method 'mutex', or an array of another kind.
        MissingDependencyError: without scikit-image.

    Note:
        May be called from several threads at a time: scikit-image's flood and
        scipy's filters, which take nearly all of the time, release the GIL.
        Takes about 40 bytes per pixel.

    References:
        .. [DTW] Beier et al., Multicut brings automated neurite segmentation
           closer to human performance, 2017 (distance transform watershed).
           <https://doi.org/10.1038/nmeth.4151>

    Example:
        >>> from cocoseg.postprocess.parameters import WatershedParameters
        >>> from cocoseg.postprocess.seeded import seeded_watershed
        >>> distance = np.array([[1, 2, 3, 2, 1, 2, 4, 2, 0, 0, 1]], np.float32)
        >>> parameters = WatershedParameters(method='distance', threshold=1, seed_distance=2)
        >>> seeded_watershed(distance, parameters).tolist()
        [[1, 1, 1, 1, 2, 2, 2, 2, 0, 0, 3]]
    """
    _check_method(parameters)
    surface = _as_surface(surface)
    smoothed, is_valid = smooth(surface, parameters.sigma)
    mask, heights, landscape = _prepare(smoothed, is_valid, parameters)
    if not mask.any():
        return np.zeros(surface.shape, np.uint32)
    seeds = find_seeds(heights, mask, parameters.seed_distance)
    labels = _import_watershed()(landscape, seeds, mask=mask)
    return _number_by_first_pixel(labels)


def find_seeds(heights, mask, seed_distance):
    """
    Find the high points from which a map is flooded.

    Args:
        heights (ndarray): float, shape (h, w) or (d, h, w), no NaN in the mask;
            -inf where no seed shall be.
        mask (ndarray): bool, same shape: where objects can be.
        seed_distance (int): px along each axis within which a seed is highest.

    Returns:
        ndarray: int32, same shape; the number of a seed at its pixels, 0
        elsewhere. Each part of the mask, connected by faces, has at least one.

    Note:
        Whether a pixel is one depends on pixels within ``seed_distance``, but
        for parts of the mask that have none there.

    Example:
        >>> from cocoseg.postprocess.seeded import find_seeds
        >>> heights = np.array([[5.0, 5, 1, 1, 9, 1, 3]])
        >>> find_seeds(heights, heights > 1, seed_distance=2).tolist()
        [[1, 1, 0, 0, 2, 0, 3]]
    """
    from scipy import ndimage
    inside = np.where(mask, heights, -np.inf)
    top = ndimage.maximum_filter(inside, 2 * seed_distance + 1, mode='constant', cval=-np.inf)
    is_seed = (inside == top) & (inside > -np.inf)
    # Squares of this side around two pixels touch if these are within the distance.
    around = ndimage.maximum_filter(is_seed, seed_distance, mode='constant') & mask
    groups, components = _label(around, corners=True), _label(mask)
    pixels = np.flatnonzero(is_seed)
    parts = components.labels.reshape(-1)[pixels]
    missing = np.ones(components.n + 1, bool)
    missing[0] = missing[parts] = False
    # One seed would tie together parts that are apart.
    keys = groups.labels.reshape(-1)[pixels].astype(np.int64) * (components.n + 1) + parts
    _, numbers = np.unique(keys, return_inverse=True)
    highest = _find_highest(inside.reshape(-1), components.labels.reshape(-1), missing)
    seeds = np.zeros(mask.size, np.int32)
    seeds[pixels] = numbers + 1
    seeds[highest] = numbers.max(initial=-1) + 2 + np.arange(len(highest))
    return seeds.reshape(mask.shape)


def least_context(parameters, radius=0):
    """
    Return how far beyond its core a block must see to find the same seeds.

    With less, a pixel of the core may be a seed in one block and none in the
    next. With it, blocks can differ only where a seed stands for a whole part
    of the mask of which they see different ends, and in how far floods from
    seeds outside reach in: a context of an object more makes that rare.

    Args:
        parameters (WatershedParameters): of a seeded method.
        radius (float): px from the middle of the widest object to its end,
            which distances are measured to. Not used for 'distance', where
            they are given.

    Returns:
        int: px.

    Raises:
        OptionError: for method 'mutex', which has no seeds.

    Example:
        >>> from cocoseg.postprocess.parameters import WatershedParameters
        >>> from cocoseg.postprocess.seeded import least_context
        >>> parameters = WatershedParameters(method='distance', threshold=1, sigma=1.5)
        >>> least_context(parameters), least_context(parameters.patch(method='foreground'), 9)
        (11, 26)
    """
    _check_method(parameters)
    reach = count_reach(parameters.sigma)
    if parameters.method == 'distance':
        return reach + parameters.seed_distance
    # The map is smoothed, and the distances to the end of its mask once more.
    return 2 * reach + math.ceil(radius) + parameters.seed_distance


def _check_method(parameters):
    if parameters.method not in METHODS:
        raise OptionError(f'method={parameters.method!r} is no watershed from seeds; use one of '
                          f'{METHODS}, or mutex_watershed')


def _as_surface(surface):
    """Return a map as float32."""
    surface = np.asarray(surface)
    if surface.ndim not in (2, 3) or surface.dtype.kind not in 'biuf':
        raise OptionError(f'the map has shape {surface.shape} and dtype {surface.dtype}; give real '
                          'numbers of shape (h, w) or (d, h, w), without an axis of channels')
    return surface.astype(np.float32, copy=False)


def _prepare(smoothed, is_valid, parameters):
    """Return the mask, the heights of which the tops are seeds, and what is flooded, low first."""
    threshold = parameters.threshold
    if parameters.method == 'distance':
        mask = is_valid & (smoothed >= threshold)
        return mask, smoothed, -smoothed
    if parameters.method == 'foreground':
        mask = is_valid & (smoothed >= threshold)
        heights = _measure(mask, parameters.sigma)
        return mask, heights, -heights
    inside = is_valid & (smoothed < _BOUNDARY if threshold is None else 1 - smoothed >= threshold)
    heights = _measure(inside, parameters.sigma)
    # 1 / (1 + distance) and not a share of the longest: that would differ between blocks.
    landscape = _ALPHA * smoothed + (1 - _ALPHA) / (1 + heights)
    mask = is_valid if threshold is None else inside
    # Wide boundaries belong to the objects beside them.
    return mask, np.where(inside, heights, np.float32(-np.inf)), landscape


def _measure(mask, sigma):
    """Return distances to the end of a mask, px, smoothed; what is outside of the map is no end."""
    from scipy import ndimage
    if mask.all():
        return np.full(mask.shape, math.hypot(*mask.shape), np.float32)
    distances = ndimage.distance_transform_edt(mask).astype(np.float32)
    return blur(distances, sigma) if sigma > 0 else distances


def _label(mask, corners=False):
    if mask.ndim == 2:
        return label_components(mask.view(np.uint8), 8 if corners else 4)
    return label_volume(mask, 26 if corners else 6)


def _find_highest(heights, labels, is_wanted):
    """Return the flat index of the first of the highest pixels of each label that is wanted."""
    if not is_wanted.any():
        return np.zeros(0, np.int64)
    pixels = np.flatnonzero(is_wanted[labels])
    ids = labels[pixels]
    order = np.lexsort((-heights[pixels], ids))
    is_first = np.append(True, np.diff(ids[order]) != 0)
    return pixels[order[is_first]]


def _number_by_first_pixel(labels):
    """Return labels renumbered 1..n in raster order, uint32."""
    flat = labels.astype(np.uint32).reshape(-1)
    firsts = np.full(int(flat.max()) + 1, -1, np.int64)
    # Of several pixels of an id the last that is assigned stays.
    firsts[flat[::-1]] = np.arange(len(flat) - 1, -1, -1)
    firsts[0] = -1
    ranks, _ = rank_groups(np.arange(len(firsts)), firsts)
    apply_lut(ranks.astype(np.uint32), flat)
    return flat.reshape(labels.shape)


def _import_watershed():
    try:
        from skimage.segmentation import watershed
    except ImportError as ex:
        raise MissingDependencyError(
            f'scikit-image is needed for a watershed from seeds, and cannot be imported: {ex}. '
            'Install it by `pip install cocoseg[instances]`') from ex
    return watershed
