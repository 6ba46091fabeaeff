"""
Blend weights: how much each overlapping window counts at each pixel.

Along one axis, the windows of a grid hand over to each other one by one. For
each neighbouring pair there is a *handover*: a ramp from 0 to 1 inside their
overlap. The weight of window i is the handover into it minus the handover out
of it, so that the weights are a partition of unity by construction (up to the
rounding of float32)::

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
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window, WindowLike
from cocoseg.grid.windows import WindowGrid

if TYPE_CHECKING:
    from cocoseg.stitch.forecast import PlanReport

# Weight of a window where another one has fully taken over. It lets a pixel
# keep its only prediction when that other window is missing or NaN. A power of
# two, so that where it is the whole weight, dividing by it again is exact.
FLOOR = np.float32(2.0 ** -20)

# Windows whose neighbours are looked up at a time, to bound memory.
_LOOKUP = 4096


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
        They sum to 1 at every pixel, unless ``profile`` is None: then all are 1.

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
    return _normalize(intervals, weights)


def _normalize(intervals, weights):
    """
    Raise weights to FLOOR, and scale the others so that they still sum to 1.

    In float64, since the floors alone would make a sum of 1 + 1e-6 per window.
    A window that is alone at a pixel keeps exactly 1.
    """
    result = []
    first = 0
    for last, (_, stop) in enumerate(intervals, start=1):
        # Parts without a gap, so that a gap costs no memory.
        if last < len(intervals) and intervals[last][0] < stop:
            continue
        origin = intervals[first][0]
        places = [slice(start - origin, end - origin) for start, end in intervals[first:last]]
        taken, left = np.zeros(stop - origin), np.ones(stop - origin)
        for place, weight in zip(places, weights[first:last]):
            above = weight > FLOOR
            taken[place] += np.where(above, weight, 0)
            left[place] -= np.where(above, 0, FLOOR)
        scale = left / taken
        for place, weight in zip(places, weights[first:last]):
            scaled = np.where(weight > FLOOR, weight * scale[place], FLOOR)
            result.append(np.maximum(scaled, FLOOR).astype(np.float32))
        first = last
    return result


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
    intervals = tuple(sorted({(getattr(window, lo), getattr(window, hi)) for window in windows}))
    stops = [stop for _, stop in intervals]
    starts = [start for start, _ in intervals]
    ascending = all(a < b for seq in (starts, stops) for a, b in zip(seq, seq[1:]))
    return intervals if ascending else None


def _measure_depths(windows):
    """
    Measure how deep other windows reach over the sides of each window, px.

    A side that no other window covers, for example at the image border, has
    depth 0 and keeps full weight. Returns int64 (n, 4): top, left, bottom, right.
    """
    import shapely
    edges = np.array([(w.y0, w.x0, w.y1, w.x1) for w in windows])
    boxes = shapely.box(*edges[:, [1, 0, 3, 2]].T)
    tree = shapely.STRtree(boxes)
    depths = np.zeros_like(edges)
    for start in range(0, len(windows), _LOOKUP):
        mine, other = tree.query(boxes[start:start + _LOOKUP])
        mine += start
        here, there = edges[mine], edges[other]
        # (height, width) of the common part, twice: for both ends of each axis.
        common = np.minimum(here, there)[:, 2:] - np.maximum(here, there)[:, :2]
        common = np.tile(np.where((common > 0).all(axis=1, keepdims=True), common, 0), 2)
        beyond = np.hstack([there[:, :2] < here[:, :2], there[:, 2:] > here[:, 2:]])
        np.maximum.at(depths, mine, np.where(beyond, common, 0))
    return depths


def _tapered(length, depth_before, depth_after, profile):
    """Return weights of one axis that fall towards the sides others reach over."""
    weights = np.ones(length)
    if profile is not None:
        for depth, view in ((depth_before, weights), (depth_after, weights[::-1])):
            ramp = min(depth, max(length // 2, 1))
            if depth > 0:
                view[:ramp] *= profile(np.arange(1, ramp + 1) / (ramp + 1))
    return np.maximum(weights, FLOOR).astype(np.float32)


def _compute_local(windows, profile):
    """Return the weights of each window of an irregular list, {window: (wy, wx)}."""
    taper = functools.lru_cache(maxsize=None)(functools.partial(_tapered, profile=profile))
    return {window: (taper(window.shape[0], top, bottom), taper(window.shape[1], left, right))
            for window, (top, left, bottom, right)
            in zip(windows, _measure_depths(windows).tolist())}


def _is_lattice(windows):
    """Return True if the windows share rows and columns, so that chains fit them all."""
    rows = Counter((window.y0, window.y1) for window in windows)
    columns = Counter((window.x0, window.x1) for window in windows)
    # An interval that few windows use is likely staggered against the others:
    # its neighbours in the chain are no neighbours in the image, and in the
    # chain it would spoil the ramps of all that do not even touch it.
    return (2 * min(rows.values()) >= len(columns)
            and 2 * min(columns.values()) >= len(rows))


@dataclass(frozen=True, eq=False)
class BlendPlan:
    """
    The blend weights of a set of declared windows.

    On a :class:`WindowGrid` the weights are a partition of unity with the seam
    bound described at the top of this module; with an area of interest they are
    those of the full grid, and this holds at every pixel of the area. A list of
    windows that lie on rows and columns (also with some holes) is a partition
    of unity where no window is missing; its ramps take the whole overlap of
    each pair, since nothing says which overlap was asked for. In any other
    list each window tapers towards the sides that other windows reach over,
    weights are normalised when the image is finished, and no bound is claimed.

    Args:
        windows (WindowGrid | Iterable[Window]): the declared windows.
        profile (str | Callable): see :func:`get_profile`.

    Attributes:
        lattice (tuple | None): (rows, columns), each a tuple of half-open
            (start, stop) intervals, px, ascending, if the declared windows are
            every combination of them, each exactly once.
        is_unity (bool): True if the weights of each axis sum to 1 wherever all
            windows come. False for 'constant' where windows overlap, for
            windows declared twice, and for lists without rows and columns.

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
        >>> assert np.abs(total - 1).max() < 1e-6
        >>> plan.lattice, plan.is_unity
        ((((0, 6), (4, 10)), ((0, 6),)), True)
    """

    windows: WindowGrid | tuple[Window, ...]
    profile: str | Callable = 'linear'
    lattice: tuple | None = field(init=False, repr=False, default=None)
    is_unity: bool = field(init=False, repr=False, default=False)
    # Weights of each axis by interval, or of each window if there are no rows and columns.
    _axes: tuple | None = field(init=False, repr=False, default=None)
    _local: dict | None = field(init=False, repr=False, default=None)
    # What get_weights accepts; None is every combination of the intervals.
    _declared: frozenset | None = field(init=False, repr=False, default=None)

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, windows: WindowGrid | Iterable[WindowLike],
                     profile: str | Callable = 'linear') -> None: ...

    def __post_init__(self):
        function = get_profile(self.profile)
        if isinstance(self.windows, WindowGrid):
            self._plan_grid(self.windows, function)
        else:
            self._plan_list([Window.coerce(window) for window in self.windows], function)

    def _plan_grid(self, grid, profile):
        chains = [tuple((start, start + length) for start in starts)
                  for starts, length in zip((grid.row_starts, grid.column_starts), grid.window)]
        # No overlap requested: use what the grid has by chance, not a hard cut.
        self._plan_chains(chains, [overlap or None for overlap in grid.overlap], profile)
        if grid.area is None or len(grid) == len(chains[0]) * len(chains[1]):
            object.__setattr__(self, 'lattice', tuple(chains))
        else:
            object.__setattr__(self, '_declared', frozenset(grid))

    def _plan_list(self, windows, profile):
        put = object.__setattr__
        if not windows:
            raise OptionError('a blend plan needs at least one window')
        put(self, 'windows', tuple(windows))
        unique = list(dict.fromkeys(windows))
        chains = (_chain_of(unique, 0), _chain_of(unique, 1))
        if None in chains or not _is_lattice(unique):
            put(self, '_local', _compute_local(unique, profile))
            return
        self._plan_chains(chains, (None, None), profile)
        put(self, '_declared', frozenset(unique))
        if len(unique) != len(windows):
            put(self, 'is_unity', False)
        elif len(unique) == len(chains[0]) * len(chains[1]):
            put(self, 'lattice', chains)

    def _plan_chains(self, chains, ramps, profile):
        object.__setattr__(self, '_axes', tuple(
            dict(zip(chain, compute_handovers(chain, ramp, profile)))
            for chain, ramp in zip(chains, ramps)))
        object.__setattr__(self, 'is_unity', profile is not None or not any(
            before[1] > after[0] for chain in chains for before, after in zip(chain, chain[1:])))

    def describe(self, **options: Any) -> PlanReport:
        """
        Forecast what stitching these windows holds in memory, before any data.

        Args:
            **options: ``shape``, ``n_bands``, ``dtype``, ``quantize_dtype``
                and ``blocksize``; see :func:`cocoseg.stitch.forecast.describe_plan`.

        Returns:
            PlanReport: windows, blocks, the engine, and the peak of live
            blocks and bytes; printed, one line.

        Example:
            >>> from cocoseg import BlendPlan, WindowGrid
            >>> report = BlendPlan(WindowGrid((4096, 4096), 256, 64)).describe(n_bands=3)
            >>> report.n_windows, report.peak_blocks
            (441, 18)
        """
        from cocoseg.stitch.forecast import describe_plan
        return describe_plan(self, **options)

    def get_weights(self, window: Window) -> tuple[np.ndarray, np.ndarray]:
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
            if self._local is not None:
                return self._local[window]
            if self._declared is None or window in self._declared:
                return (self._axes[0][window.y0, window.y1],
                        self._axes[1][window.x0, window.x1])
        except KeyError:
            pass
        raise CoverageError(
            f'{window} is not one of the {len(self.windows)} windows that this '
            'plan was made for; declare it, or pass weights')


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
def edge_weights(shape: tuple[int, ...]) -> np.ndarray:
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
