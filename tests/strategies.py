"""
What the property tests draw, and the plain numpy model that they compare with.

Test files import it as ``from ..strategies import …``.
"""
import numpy as np
from hypothesis import strategies as st

from cocoseg import BlendPlan, Window, WindowGrid
from cocoseg.grid.windows import FITS

SEEDS = st.integers(0, 2 ** 32 - 1)
QUANTIZE_DTYPES = ('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32')


@st.composite
def axes(draw, max_window=32, windows_across=4):
    """Draw (size, window, overlap) of one axis; the window may overhang."""
    window = draw(st.integers(1, max_window))
    overlap = draw(st.integers(0, window - 1))
    return draw(st.integers(1, windows_across * window)), window, overlap


@st.composite
def window_grids(draw, max_window=12):
    """Draw a WindowGrid: any fit and overlap, also larger than its image."""
    sizes, windows, overlaps = zip(*(draw(axes(max_window)) for _ in range(2)))
    return WindowGrid(sizes, windows, overlaps, draw(st.sampled_from(FITS)))


@st.composite
def windows_near(draw, shape, max_size=16):
    """Draw a window with a pixel inside an image of ``shape``; it may overhang any side."""
    starts, stops = [], []
    for size in shape[:2]:
        length = draw(st.integers(1, max_size))
        starts.append(draw(st.integers(1 - length, size - 1)))
        stops.append(starts[-1] + length)
    return Window(*starts, *stops)


def window_lists(shape, max_windows=8):
    """Draw a list of windows that follow no grid."""
    return st.lists(windows_near(shape), min_size=1, max_size=max_windows)


def spoil(data, rng, fraction=0.1):
    """Return a copy of ``data`` with some NaN and infinite entries."""
    kinds = np.array([np.nan, np.inf, -np.inf], data.dtype)
    return np.where(rng.rand(*data.shape) < fraction, rng.choice(kinds, data.shape), data)


def blend_model(shape, parts):
    """
    Blend in float64 on an array that is padded until no window overhangs.

    ``parts`` are (window, data (h, w, C), weights (h, w)). The result is
    (H, W, C), NaN where no valid pixel has weight.
    """
    edges = np.array([(part[0].y0, part[0].x0, part[0].y1, part[0].x1) for part in parts])
    pad = int(max(0, -edges[:, :2].min(), *(edges[:, 2:].max(axis=0) - shape[:2])))
    height, width, n_bands = shape
    sums = np.zeros((height + 2 * pad, width + 2 * pad, n_bands))
    totals = np.zeros(sums.shape[:2])
    for window, data, weights in parts:
        place = window.shift(pad, pad).slices
        valid = np.isfinite(data).all(axis=2)
        used = np.where(valid, np.asarray(weights, float), 0)
        sums[place] += np.where(valid[..., None], data, 0) * used[..., None]
        totals[place] += used
    inner = (slice(pad, pad + height), slice(pad, pad + width))
    with np.errstate(invalid='ignore', divide='ignore'):
        return (sums / totals[..., None])[inner]


def crop_padded(image, window):
    """Return the window of ``image``, with arbitrary values where it overhangs."""
    height, width = image.shape[:2]
    rows = np.clip(np.arange(window.y0, window.y1), 0, height - 1)
    columns = np.clip(np.arange(window.x0, window.x1), 0, width - 1)
    return image[np.ix_(rows, columns)]


def get_axis_weights(size, window, overlap, fit, profile='linear'):
    """Return the blend weights of all windows on one axis, float64 (n, size), 0 outside."""
    grid = WindowGrid((1, size), (1, window), (0, overlap), fit)
    plan = BlendPlan(grid, profile)
    weights = np.zeros((len(grid), size))
    for row, part in zip(weights, grid):
        inside = part.clip(grid.shape)
        row[inside.x0:inside.x1] = plan.get_weights(part)[1][:inside.x1 - inside.x0]
    return weights


def compute_step(size, window, overlap, fit):
    """
    Return the largest step that blending adds between neighbouring pixels.

    The supremum over all predictions in [0, 1]: half the change of the
    normalised weights, ``max_x 1/2 sum_i |W_i(x + 1) - W_i(x)|``.
    """
    weights = get_axis_weights(size, window, overlap, fit)
    weights /= weights.sum(axis=0)
    return (np.abs(np.diff(weights, axis=1)).sum(axis=0) / 2).max(initial=0)
