"""
What is written of an image: its pixels as a file will hold them.
"""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from cocoseg.stitch.quantize import Quantization, compute_range


@dataclass(frozen=True)
class Rendering:
    """
    One raster of an image as its file will hold it.

    Attributes:
        data (ndarray | None): shape (H, W, C), codes or plain values; None if
            they are in ``encoder``.
        codec (Quantization | None): of the codes.
        nodata (int | float): value of samples without data, maybe NaN.
        n_clipped (int): values that were outside the expected range.
        total (float): sum of the values written.
        encoder (PyramidEncoder | None): the same, compressed already.
    """

    data: np.ndarray
    codec: Any
    nodata: float
    n_clipped: int = 0
    total: float = 0.0
    encoder: Any = None

    @property
    def shape(self):
        """(H, W, C) of the raster, px."""
        return self.encoder.shape if self.data is None else self.data.shape

    @property
    def dtype(self):
        """Type of its pixels."""
        return self.encoder.dtype if self.data is None else self.data.dtype


def make_rendering(data, codec, n_clipped, total):
    """
    Return the rendering of a mean.

    Example:
        >>> make_rendering(np.zeros((1, 1, 1), 'f4'), None, 0, 0.0).nodata
        nan
    """
    return Rendering(data, codec, get_nodata(codec), n_clipped, total)


def get_nodata(codec):
    """
    Return what stands for a sample without data in a mean.

    Args:
        codec (Quantization | None): of its file; None is one of floats.

    Example:
        >>> get_nodata(None), get_nodata(Quantization(0, 1))
        (nan, -9999)
    """
    return np.nan if codec is None else codec.nodata


def choose_codec(options, parts):
    """
    Return the code of an image, or None for float files.

    Args:
        options (AssetOptions): how the asset looks.
        parts (Iterable[ndarray]): the values, used if no range is expected.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> choose_codec(AssetOptions('a'), [np.array([2.0]), np.array([np.nan, 5.0])])
        Quantization(orig_min=2.0, orig_max=5.0, dtype='int16', orig_dtype='float32')
    """
    if options.codec is not None or not options.quantize:
        return options.codec
    ranges = [compute_range(part) for part in parts if np.isfinite(part).any()]
    low, high = (min(low for low, _ in ranges), max(high for _, high in ranges)) \
        if ranges else (0, 1)
    return Quantization(low, high, dtype=options.quantize_dtype, orig_dtype=options.dtype)


def clip_values(values, minmax):
    """
    Clip floats to a range.

    Args:
        values (ndarray): floats, NaN where no data. Never modified.
        minmax (tuple[float, float] | None): None clips nothing.

    Returns:
        tuple[ndarray, int]: the clipped values, and how many were outside.

    Example:
        >>> clip_values(np.array([-1, 0.5, np.nan, 1 + 1e-9]), (0, 1))
        (array([0. , 0.5, nan, 1. ]), 1)
    """
    if minmax is None:
        return values, 0
    low, high = minmax
    # The rounding of a mean is no clipping worth a warning.
    slack = 1e-6 * (high - low)
    n_clipped = int(((values < low - slack) | (values > high + slack)).sum())
    return np.clip(values, low, high), n_clipped


class ValueSum:
    """
    Sum the valid values of a raster part by part; the order does not matter.

    Args:
        codec (Quantization | None): of the codes; None for floats.

    Thread-safety: one thread at a time.

    Example:
        >>> total = ValueSum(Quantization(-1, 3))
        >>> total.add(np.array([-9999, 0, 32767], np.int16))
        >>> total.value
        2.0
    """

    def __init__(self, codec):
        self._codec = codec
        self._n_valid = self._codes = 0
        self._parts = []

    def add(self, data):
        """
        Add a part.

        Args:
            data (ndarray): any shape; codes, or floats with NaN where no data.
        """
        self.note(self.measure(data))

    def measure(self, data):
        """Return what :meth:`note` needs of a part; from any thread."""
        codec = self._codec
        if codec is None:
            return float(np.nansum(data, dtype=np.float64))
        n_missing = int(np.count_nonzero(data == codec.nodata))
        return (data.size - n_missing,
                int(data.sum(dtype=np.int64)) - n_missing * codec.nodata)

    def note(self, part):
        """Add a part that was measured."""
        if self._codec is None:
            self._parts.append(part)
            return
        self._n_valid, self._codes = self._n_valid + part[0], self._codes + part[1]

    @property
    def value(self):
        """The sum so far."""
        codec = self._codec
        if codec is None:
            return math.fsum(self._parts)
        return ((self._codes - self._n_valid * codec.quant_min) * codec.step
                + self._n_valid * float(codec.orig_min))
