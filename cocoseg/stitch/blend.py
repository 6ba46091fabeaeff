"""
Blend weights: how much each overlapping window counts at each pixel.

Along one axis, the windows of a grid hand over to each other one by one. For
each neighbouring pair there is a *handover*: a ramp from 0 to 1 inside their
overlap. The weight of window i is the handover into it minus the handover out
of it, so that the weights are a partition of unity by construction::

    window 0   1111111\\
    window 1          /1111111\\          ramps lie inside the overlaps
    window 2                  /1111111    borders of the image keep weight 1

All the ramps of an axis have the same length (the requested overlap), also
where windows overlap by more. Then the terms telescope: moving one pixel, at
most one handover's slope is left over, and the step that blending adds is at
most ``1 / overlap`` of the value range (and 1e-6 for the floor below), for
every image size, balanced or flush, even when many windows cover a pixel.

Weights are separable, ``wy[i] * wx[j]``; full 2-D maps are never built here
except for :func:`edge_weights`, which mirrors an existing convention.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid

# Weight of a window where another one has fully taken over. It lets a pixel
# keep its only prediction when that other window is missing or NaN. A power of
# two, so that where it is the whole weight, dividing by it again is exact.
FLOOR = np.float32(2.0 ** -20)


def _cosine(t):
    return 0.5 - 0.5 * np.cos(np.pi * t)


def _gaussian(t):
    # The share of the right one of two Gaussian bells whose centres lie at the
    # ends of the handover, each with a standard deviation of 1/3 of it.
    return 1 / (1 + np.exp(-9.0 * (t - 0.5)))


PROFILES = {
    'linear': lambda t: t,
    'cosine': _cosine,
    'gaussian': _gaussian,
    'constant': None,
}


def get_profile(profile):
    """
    Return the handover function named ``profile``.

    Args:
        profile (str | Callable): 'linear' (smallest possible step), 'cosine'
            (no kink), 'gaussian', 'constant' (every window counts the same:
            the plain mean), or a non-decreasing function that maps a float64
            array in (0, 1) to [0, 1].

    Returns:
        Callable | None: None for 'constant'.

    Raises:
        OptionError: for an unknown name, or a function that is not monotone.

    Example:
        >>> get_profile('linear')(np.array([0.25])).tolist()
        [0.25]
    """
    if callable(profile):
        probe = np.asarray(profile(np.linspace(0.01, 0.99, 33)), dtype=float)
        if (probe.shape != (33,) or not np.isfinite(probe).all() or probe.min() < 0
                or probe.max() > 1 or (np.diff(probe) < 0).any()):
            raise OptionError(
                'a custom blend profile must map (0, 1) to [0, 1] without falling; '
                f'over 0.01 … 0.99 it gave {probe}')
        return profile
    if profile not in PROFILES:
        raise OptionError(f'profile={profile!r} is unknown; use one of '
                          f'{sorted(PROFILES)} or a function')
    return PROFILES[profile]


def compute_handovers(intervals, ramp, profile):
    """
    Compute the weights of a chain of intervals along one axis.

    Args:
        intervals (Sequence[tuple[int, int]]): half-open pixel intervals with
            strictly ascending starts and ends.
        ramp (int | None): length of each handover, px; None means the whole
            overlap of each pair. Never longer than an overlap.
        profile (Callable | None): see :func:`get_profile`.

    Returns:
        list[ndarray]: float32 weights, one array per interval, each >= FLOOR.

    Example:
        >>> first, second = compute_handovers([(0, 4), (2, 6)], 2, get_profile('linear'))
        >>> assert np.allclose(first, [1, 1, 2 / 3, 1 / 3])
    """
    if profile is None:
        return [np.ones(stop - start, np.float32) for start, stop in intervals]
    weights = [np.ones(stop - start) for start, stop in intervals]
    for left in range(len(intervals) - 1):
        start1 = intervals[left + 1][0]
        overlap = intervals[left][1] - start1
        if overlap <= 0:
            continue
        length = overlap if ramp is None else min(ramp, overlap)
        # Centred in the overlap.
        begin = start1 + (overlap - length) // 2
        share = np.asarray(profile(np.arange(1, length + 1) / (length + 1)), float)
        _hand_over(intervals, weights, left, begin, share)
    return [np.maximum(weight, FLOOR).astype(np.float32) for weight in weights]


def _hand_over(intervals, weights, left, begin, share):
    """Subtract one handover from every window up to ``left``, add it to the next."""
    # W_left = C_left - C_next, and C_next is `share` on the ramp, 1 after it.
    start0, stop0 = intervals[left]
    tail = np.ones(stop0 - begin)
    tail[:len(share)] = share
    weights[left][begin - start0:] -= tail
    # C_next starts as 1 everywhere in the next window; lower it before and on the ramp.
    start1 = intervals[left + 1][0]
    weights[left + 1][:begin - start1] = 0
    weights[left + 1][begin - start1:begin - start1 + len(share)] = share


def _chain_of(windows, axis):
    """Return the unique intervals on an axis, or None if they do not form a chain."""
    lo, hi = ('y0', 'y1') if axis == 0 else ('x0', 'x1')
    intervals = sorted({(getattr(window, lo), getattr(window, hi)) for window in windows})
    stops = [stop for _, stop in intervals]
    starts = [start for start, _ in intervals]
    ascending = all(a < b for seq in (starts, stops) for a, b in zip(seq, seq[1:]))
    return intervals if ascending else None


def _side_depths(window, others):
    """
    Measure how deep other windows reach over each side of ``window``, px.

    A side that no other window covers, for example at the image border, has
    depth 0 and keeps full weight.
    """
    top = bottom = left = right = 0
    for other in others:
        common = window.intersect(other)
        if common.is_empty or other == window:
            continue
        height, width = common.shape
        if other.y0 < window.y0:
            top = max(top, height)
        if other.y1 > window.y1:
            bottom = max(bottom, height)
        if other.x0 < window.x0:
            left = max(left, width)
        if other.x1 > window.x1:
            right = max(right, width)
    return (top, bottom), (left, right)


def _tapered(length, depth_before, depth_after, profile):
    """Return weights of one axis that fall towards the sides others reach over."""
    weights = np.ones(length)
    if profile is not None:
        for depth, view in ((depth_before, weights), (depth_after, weights[::-1])):
            ramp = min(depth, max(length // 2, 1))
            if depth > 0:
                view[:ramp] *= profile(np.arange(1, ramp + 1) / (ramp + 1))
    return np.maximum(weights, FLOOR).astype(np.float32)


@dataclass(frozen=True, eq=False)
class BlendPlan:
    """
    The blend weights of a set of declared windows.

    On a :class:`WindowGrid` the weights are a partition of unity with the seam
    bound described at the top of this module. A list of windows that lie on
    rows and columns (also with holes) is a partition of unity where no window
    is missing; its ramps take the whole overlap of each pair, since nothing
    says which overlap was asked for. In any other list each window tapers
    towards the sides that other windows reach over, weights are normalised
    when the image is finished, and no bound is claimed.

    Args:
        windows (WindowGrid | Iterable[Window]): the declared windows.
        profile (str | Callable): see :func:`get_profile`.

    Raises:
        OptionError: for an unknown profile or no windows.

    Thread-safety: immutable after construction.

    Example:
        >>> from cocoseg import BlendPlan, WindowGrid
        >>> grid = WindowGrid((10, 6), window=6, overlap=2)
        >>> plan = BlendPlan(grid)
        >>> total = np.zeros((10, 6))
        >>> for window in grid:
        ...     wy, wx = plan.get_weights(window)
        ...     total[window.slices] += wy[:, None] * wx
        >>> assert np.allclose(total, 1)
    """

    windows: WindowGrid | tuple
    profile: object = 'linear'
    _axes: tuple = field(init=False, repr=False, default=None)

    def __post_init__(self):
        put = object.__setattr__
        function = get_profile(self.profile)
        is_grid = isinstance(self.windows, WindowGrid)
        windows = tuple(self.windows)
        if not windows:
            raise OptionError('a blend plan needs at least one window')
        if not is_grid:
            put(self, 'windows', tuple(Window.coerce(window) for window in windows))
            windows = self.windows
        chains = (_chain_of(windows, 0), _chain_of(windows, 1))
        if None in chains or not (is_grid or _is_lattice(windows, *chains)):
            put(self, '_axes', self._compute_irregular(windows, function))
            return
        # No overlap requested: use what the grid has by chance, not a hard cut.
        ramps = [overlap or None for overlap in self.windows.overlap] if is_grid else (None, None)
        put(self, '_axes', tuple(
            dict(zip(chain, compute_handovers(chain, ramp, function)))
            for chain, ramp in zip(chains, ramps)))

    @staticmethod
    def _compute_irregular(windows, profile):
        import shapely
        windows = list(dict.fromkeys(windows))
        boxes = shapely.box(*np.array([(w.x0, w.y0, w.x1, w.y1) for w in windows]).T)
        tree = shapely.STRtree(boxes)
        weights = {}
        for window, box in zip(windows, boxes):
            near = [windows[index] for index in tree.query(box)]
            depths_y, depths_x = _side_depths(window, near)
            weights[window] = (_tapered(window.shape[0], *depths_y, profile),
                               _tapered(window.shape[1], *depths_x, profile))
        return weights

    def get_weights(self, window):
        """
        Return the weights of a declared window as (wy, wx).

        Args:
            window (Window): one of the declared windows.

        Returns:
            tuple[ndarray, ndarray]: float32, shapes (h,) and (w,), > 0; the
            weight of pixel (i, j) is ``wy[i] * wx[j]``. Shared: do not modify.

        Raises:
            CoverageError: if the window was not declared.
        """
        try:
            if isinstance(self._axes, dict):
                return self._axes[window]
            return (self._axes[0][window.y0, window.y1],
                    self._axes[1][window.x0, window.x1])
        except KeyError:
            raise CoverageError(
                f'{window} is not one of the {len(self.windows)} windows that this '
                'plan was made for; declare it, or pass weights') from None


def _is_lattice(windows, rows, columns):
    """Return True if the windows share rows and columns, so that a chain fits all."""
    # Half-filled lattices appear with areas of interest. With fewer windows the
    # rows are likely staggered, and neighbours in the chain are no neighbours.
    return 2 * len(set(windows)) >= len(rows) * len(columns)


def _edge_profile(size):
    """Return the 1-D plateau-topped Gaussian of :func:`edge_weights`."""
    # Standard deviation that OpenCV derives from a kernel size.
    sigma = 0.3 * ((size - 1) * 0.5 - 1) + 0.8
    offset = np.arange(size) - (size - 1) / 2
    bell = np.exp(-0.5 * (offset / sigma) ** 2)
    bell /= bell.max()
    # Dilation by an odd kernel of about size / 8 makes the flat top.
    reach = (max(size // 8, 3) | 1) // 2
    padded = np.pad(bell, reach)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1).max(axis=1)


@functools.lru_cache(maxsize=64)
def edge_weights(shape):
    """
    Compute weights that fall from the centre of a window to its edges.

    The convention of geowatch's ``upweight_center_mask``: a Gaussian over the
    whole window with OpenCV's default standard deviation, divided by its
    maximum, dilated by a rectangle of an eighth of the window, at least 0.001.

    Args:
        shape (tuple[int, int]): (h, w) of the window, px.

    Returns:
        ndarray: float32, shape (h, w), in [0.001, 1], read-only and shared.

    References:
        .. [geowatch] Kitware, geowatch/utils/util_kwimage.py,
           https://gitlab.kitware.com/computer-vision/geowatch

    Example:
        >>> weights = edge_weights((32, 48))
        >>> weights.shape, float(weights.max()), weights.flags.writeable
        ((32, 48), 1.0, False)
        >>> assert np.isclose(weights[0, 0], 0.001)
    """
    rows, columns = (_edge_profile(size) for size in shape)
    weights = np.maximum(rows[:, None] * columns, 0.001).astype(np.float32)
    weights.flags.writeable = False
    return weights
