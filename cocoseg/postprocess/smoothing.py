"""
Smooth predictions that have gaps.
"""
from __future__ import annotations

import math

import numpy as np

# Standard deviations after which a Gaussian ends, as for scipy.
TRUNCATE = 4.0


def count_reach(sigma):
    """
    Return how far the Gaussian of :func:`smooth` reaches, px.

    Example:
        >>> from cocoseg.postprocess.smoothing import count_reach
        >>> count_reach(0), count_reach(1.5)
        (0, 6)
    """
    return math.floor(TRUNCATE * sigma + 0.5)


def smooth(values, sigma):
    """
    Smooth an array with a Gaussian; gaps stay, and count for nothing.

    Args:
        values (ndarray): float32, shape (h, w) or (d, h, w); what is not finite
            is a gap. Never modified.
        sigma (float): standard deviation, px; 0 changes nothing.

    Returns:
        tuple[ndarray, ndarray]: float32, and where there is no gap, bool, of the
        same shape. Gaps hold some finite number.

    Example:
        >>> from cocoseg.postprocess.smoothing import smooth
        >>> values, is_valid = smooth(np.array([[1, 1, np.nan]], np.float32), 2.0)
        >>> values[is_valid].tolist(), is_valid.tolist()
        ([1.0, 1.0], [[True, True, False]])
    """
    is_valid = np.isfinite(values)
    is_whole = is_valid.all()
    filled = values if is_whole else np.where(is_valid, values, np.float32(0))
    if sigma == 0:
        return filled, is_valid
    out = blur(filled, sigma)
    if not is_whole:
        weights = blur(is_valid.astype(np.float32), sigma)
        # Elsewhere nothing is missing, and the map is as if there were no gaps.
        is_near = is_valid & (weights < 1 - 1e-6)
        out[is_near] /= weights[is_near]
    return out, is_valid


def blur(values, sigma):
    """
    Return an array without gaps, smoothed with a Gaussian, edges repeated.

    Example:
        >>> from cocoseg.postprocess.smoothing import blur
        >>> blur(np.ones((2, 3), np.float32), 1.0).round(6).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    from scipy import ndimage
    return ndimage.gaussian_filter(values, sigma, mode='nearest', truncate=TRUNCATE)
