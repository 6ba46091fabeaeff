"""
What is made of the sums and weights of a block when it is final.
"""
from __future__ import annotations

import numpy as np


def compute_mean(sums, weights):
    """
    Compute the weighted mean.

    Args:
        sums (ndarray): float32 or float64, shape (h, w, C).
        weights (ndarray): the same dtype, shape (h, w).

    Returns:
        ndarray: the same dtype, shape (h, w, C), NaN where the weight is 0.

    Example:
        >>> compute_mean(np.full((1, 1, 2), 3.0), np.full((1, 1), 2.0)).tolist()
        [[[1.5, 1.5]]]
    """
    from cocoseg.stitch import kernels
    out = np.empty(sums.shape, sums.dtype)
    kernels._kernel_normalize(sums, weights, out)
    return out


def encode_mean(codec, sums, weights, out=None):
    """
    Compute the weighted mean as integer codes, in one pass.

    Args:
        codec (Quantization): the code to use.
        sums (ndarray): float32 or float64, shape (h, w, C).
        weights (ndarray): the same dtype, shape (h, w).
        out (ndarray | None): (h, w, C), C-contiguous, of the code's dtype, to fill.

    Returns:
        tuple[ndarray, int, float]: codes (h, w, C), how many values were
        clipped, and the sum of all valid values.

    Example:
        >>> from cocoseg import Quantization
        >>> encode_mean(Quantization(0, 1), np.ones((1, 1, 1)), np.full((1, 1), 2.0))[0].item()
        16384
    """
    from cocoseg.stitch import kernels
    if out is None:
        out = np.empty(sums.shape, codec.dtype)
    n_clipped, total = kernels._kernel_normalize_encode(
        np.ascontiguousarray(sums), np.ascontiguousarray(weights), *codec.kernel_args, out)
    return out, int(n_clipped), float(total)
