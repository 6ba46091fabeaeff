"""
Lanes: the rows and columns of a lattice of windows, and how they share pixels.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.grid.window import Window


@dataclass(frozen=True)
class Lane:
    """
    One row, or one column, of a lattice of windows.

    Attributes:
        start (int): first pixel inside the image.
        stop (int): pixel after the last.
        weights (ndarray): (stop - start,), which add up to 1 over all lanes.
    """

    start: int
    stop: int
    weights: np.ndarray


def find_lanes(plan, shape, dtype):
    """
    Find the rows and columns of windows that can be carried.

    Args:
        plan (BlendPlan): of all declared windows.
        shape (tuple[int, int]): (H, W) of the image, px.
        dtype (dtype): of the weights.

    Returns:
        tuple[list[Lane], list[Lane]] | None: None if the windows are no
        complete lattice, leave a gap, or have weights that do not add up to 1.

    Example:
        >>> from cocoseg import BlendPlan, WindowGrid
        >>> rows, columns = find_lanes(BlendPlan(WindowGrid((9, 5), 5, 1)), (9, 5), 'f4')
        >>> [(lane.start, lane.stop) for lane in rows], len(columns)
        ([(0, 5), (4, 9)], 1)
    """
    if plan.lattice is None or not plan.is_unity:
        return None
    rows, columns = plan.lattice
    found = []
    for axis, (intervals, size) in enumerate(zip((rows, columns), shape)):
        lanes = []
        for start, stop in intervals:
            window = (Window(start, columns[0][0], stop, columns[0][1]) if axis == 0
                      else Window(rows[0][0], start, rows[0][1], stop))
            weights = plan.get_weights(window)[axis]
            first, last = max(start, 0), min(stop, size)
            lanes.append(Lane(first, last, weights[first - start:last - start]))
        if not _is_chain(lanes, size):
            return None
        found.append(_normalize(lanes, size, dtype))
    return tuple(found)


def _normalize(lanes, size, dtype):
    """Make the weights add up to 1 as well as the dtype can; those of a plan are float32."""
    total = np.zeros(size)
    for lane in lanes:
        total[lane.start:lane.stop] += lane.weights
    return [Lane(lane.start, lane.stop,
                 (lane.weights / total[lane.start:lane.stop]).astype(dtype)) for lane in lanes]


def _is_chain(lanes, size):
    """Return True if lanes follow each other without a gap, from border to border."""
    pairs = list(zip(lanes, lanes[1:]))
    return (lanes[0].start == 0 and lanes[-1].stop == size
            and all(a.start < b.start <= a.stop < b.stop for a, b in pairs))


@dataclass(frozen=True)
class Span:
    """
    One lane against its neighbours and the blocks.

    ``next`` is where the next lane starts, up to which pixels become final;
    ``shared`` pixels from ``start`` are those of the lane before. ``parts``
    are the blocks of the final pixels: (block, first, last, first in block),
    the middle two from ``start``.
    """

    start: int
    stop: int
    next: int
    shared: int
    parts: tuple


def make_spans(lanes, block, size):
    """Return the :class:`Span` of each lane of an axis."""
    spans = []
    for number, lane in enumerate(lanes):
        end = lanes[number + 1].start if number + 1 < len(lanes) else size
        before = lanes[number - 1].stop if number else lane.start
        parts = []
        for index in range(lane.start // block, -(-end // block)):
            first, last = max(lane.start, index * block), min(end, (index + 1) * block)
            parts.append((index, first - lane.start, last - lane.start, first - index * block))
        spans.append(Span(lane.start, lane.stop, end, max(before - lane.start, 0), tuple(parts)))
    return spans


def strip_shapes(shape, lanes):
    """Return the shapes of the carry and of the left strip."""
    rows, columns = lanes
    depth, width = (max((a.stop - b.start for a, b in zip(chain, chain[1:])), default=0)
                    for chain in lanes)
    height = max(lane.stop - lane.start for lane in rows)
    return (max(depth, 1), shape[1] * shape[2]), (height, max(width, 1) * shape[2])
