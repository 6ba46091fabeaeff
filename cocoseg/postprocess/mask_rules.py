"""
When a pixel is valid: nodata values per band, and how bands are combined.

Pure arrays. A sample is nodata if it is NaN or one of the values of its band.
The logic says from how many such bands on a pixel is masked; where a count is
not enough, a function of the nodata of all bands says it.
"""
from __future__ import annotations

import math
import numbers
from collections.abc import Sequence, Set

import numpy as np

from cocoseg.errors import NodataError, OptionError

LOGICS = ('any', 'all')
SOURCES = ('file', 'masks')
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def coerce_logic(logic, n_bands):
    """
    Return how many bands must be nodata to mask a pixel, or the function.

    Args:
        logic (str | int | Callable): 'any', 'all', a number of bands, or a
            function of the nodata of all bands.
        n_bands (int): of them.

    Returns:
        int | Callable: 1..n_bands, or the function.

    Raises:
        OptionError: for anything else.

    Example:
        >>> from cocoseg.postprocess.mask_rules import coerce_logic
        >>> coerce_logic('any', 4), coerce_logic('all', 4), coerce_logic(3, 4)
        (1, 4, 3)
    """
    if callable(logic):
        return logic
    if isinstance(logic, str) and logic in LOGICS:
        return 1 if logic == 'any' else n_bands
    is_whole = isinstance(logic, (int, np.integer)) and not isinstance(logic, bool)
    if not is_whole:
        raise OptionError(f"logic={logic!r} is unknown; use 'any', 'all', a number of bands, or a "
                          'function of the (B, h, w) nodata')
    if not 1 <= logic <= n_bands:
        raise OptionError(f'logic={logic} must be in 1..{n_bands}, the number of bands')
    return int(logic)


def coerce_nodata(nodata, file_nodata, dtype):
    """
    Return the values that are nodata, for each band.

    Args:
        nodata (str | float | Set | Sequence | None): 'file' for those of the
            file; a number, or a set of numbers, for every band; a sequence with
            one of these, or None, per band; None for NaN only.
        file_nodata (Sequence[float | None]): of the file, per band. One that
            no sample can be is passed over.
        dtype (dtype): of the samples.

    Returns:
        tuple[tuple[float, ...], ...]: distinct values per band, without NaN,
        which is nodata anyway.

    Raises:
        OptionError: for anything else.
        NodataError: for a value that no sample can be.

    Example:
        >>> from cocoseg.postprocess.mask_rules import coerce_nodata
        >>> coerce_nodata({0, 255}, (None, None), np.uint8)
        ((0, 255), (0, 255))
        >>> coerce_nodata([7, None], (None, None), np.float32)
        ((7.0,), ())
    """
    dtype, n_bands = np.dtype(dtype), len(file_nodata)
    if isinstance(nodata, str):
        if nodata != 'file':
            raise OptionError(f"nodata={nodata!r} is unknown; use 'file', 'masks', a number, a "
                              'set of numbers, one of these per band, or None')
        return tuple(_as_values(None if value is None else {value}, dtype, is_strict=False)
                     for value in file_nodata)
    if isinstance(nodata, np.ndarray):
        nodata = nodata.tolist()
    if nodata is None or isinstance(nodata, (numbers.Number, Set)):
        return (_as_values(nodata, dtype),) * n_bands
    if not isinstance(nodata, Sequence) or len(nodata) != n_bands:
        raise OptionError(f'nodata={nodata!r} must be one number or one entry for each of the '
                          f'{n_bands} bands; for several values in every band give a set, '
                          'such as {0, 255}')
    return tuple(_as_values(entry, dtype) for entry in nodata)


def _as_values(entry, dtype, is_strict=True):
    """Return the distinct values of one band, as samples would be."""
    if entry is None:
        return ()
    values = []
    for value in (entry if isinstance(entry, Set) else [entry]):
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise OptionError(f'nodata={value!r} must be a number, a set of numbers, or None')
        sample = _as_sample(value, dtype)
        if sample is None and is_strict:
            raise NodataError(f'nodata={value!r} is no value of pixels of type {dtype}, and would '
                              'mask nothing; give one that they can have, or None')
        if sample is not None and sample == sample:
            values.append(sample)
    return tuple(sorted(set(values)))


def _as_sample(value, dtype):
    """Return a number as a sample holds it; None if none can."""
    if dtype.kind == 'f':
        # As readers of a file do, whose nodata is told with more digits.
        with np.errstate(over='ignore'):
            return float(dtype.type(value))
    limits = (0, 1) if dtype.kind == 'b' else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    is_whole = math.isfinite(value) and value == int(value)
    return int(value) if is_whole and limits[0] <= value <= limits[1] else None


def as_bits(data):
    """
    Return samples as the kernels want them: contiguous, unsigned or float.

    Args:
        data (ndarray): any whole numbers, floats or bools. Never modified.

    Returns:
        ndarray: of the same shape: the bits of whole numbers; float32 or
        float64; a view where that can be.

    Example:
        >>> from cocoseg.postprocess.mask_rules import as_bits
        >>> as_bits(np.array([-1], np.int16)).tolist()
        [65535]
    """
    dtype = data.dtype.newbyteorder('=')
    if dtype.kind == 'f':
        return np.ascontiguousarray(data, dtype if dtype in _FLOATS else np.float32)
    return np.ascontiguousarray(data, dtype).view(f'u{dtype.itemsize}')


def _pack(values, dtype):
    """Return the values of one band as the kernels compare them."""
    return as_bits(np.array(values, dtype))


def count_nodata(data, values):
    """
    Count the bands of each pixel that are nodata.

    Args:
        data (ndarray): shape (h, w, B), or (d, h, w, B). Never modified.
        values (Sequence[Sequence[float]]): of :func:`coerce_nodata`.

    Returns:
        ndarray: uint16, shape (h, w), or (d, h, w).

    Example:
        >>> from cocoseg.postprocess.mask_rules import count_nodata
        >>> count_nodata(np.array([[[0, 5, 0], [1, 1, 1]]]), [(0,), (5,), (7,)]).tolist()
        [[2, 0]]
    """
    from cocoseg.postprocess.mask_kernels import _kernel_count_all
    n_rows, n_bands = max(map(len, values), default=0), data.shape[-1]
    table, counts_value = np.zeros((n_rows, n_bands), data.dtype), np.zeros((n_rows, n_bands), 'u1')
    for band, found in enumerate(values):
        table[:len(found), band] = found
        counts_value[:len(found), band] = 1
    counts = np.empty(data.shape[:-1], np.uint16)
    width = data.shape[-2]
    _kernel_count_all(as_bits(data).reshape(-1, width, n_bands), as_bits(table), counts_value,
                      counts.reshape(-1, width))
    return counts


def find_nodata(data, values):
    """
    Return which samples are nodata, bands first.

    Args:
        data (ndarray): shape (h, w, B), or (d, h, w, B). Never modified.
        values (Sequence[Sequence[float]]): of :func:`coerce_nodata`.

    Returns:
        ndarray: bool, shape (B, h, w), or (B, d, h, w).

    Example:
        >>> from cocoseg.postprocess.mask_rules import find_nodata
        >>> find_nodata(np.array([[[0.0, 5], [np.nan, 1]]]), [(0,), ()]).tolist()
        [[[True, True]], [[False, False]]]
    """
    stack = np.empty((data.shape[-1], *data.shape[:-1]), bool)
    for band, found in enumerate(values):
        samples = data[..., band]
        stack[band] = np.isnan(samples) if samples.dtype.kind == 'f' else False
        for value in found:
            stack[band] |= samples == samples.dtype.type(value)
    return stack


def call_logic(logic, stack):
    """
    Return what a function of the nodata of all bands masks.

    Args:
        logic (Callable): bool (B, h, w) -> bool (h, w), True where masked.
        stack (ndarray): bool (B, h, w).

    Returns:
        ndarray: bool (h, w).

    Raises:
        OptionError: if it returns anything else.

    Example:
        >>> from cocoseg.postprocess.mask_rules import call_logic
        >>> call_logic(lambda stack: stack[0] & ~stack[1], np.array([[[True]], [[False]]])).tolist()
        [[True]]
    """
    masked = logic(stack)
    shape, dtype = getattr(masked, 'shape', None), getattr(masked, 'dtype', None)
    if shape != stack.shape[1:] or str(dtype) != 'bool':
        raise OptionError(
            f'logic returned {type(masked).__name__} of shape {shape} and type {dtype} for nodata '
            f'of shape {stack.shape}; it must return a bool array {stack.shape[1:]}, True where '
            'a pixel is masked')
    return masked


class BandCounter:
    """
    Count nodata band by band, and know when the rest does not matter.

    Args:
        shape (tuple[int, int]): (h, w), px.
        n_masked (int): so many bands mask a pixel.
        n_bands (int): bands that will come, by weight.

    Attributes:
        counts (ndarray): uint16 (h, w), bands that are nodata so far.

    Example:
        >>> from cocoseg.postprocess.mask_rules import BandCounter
        >>> counter = BandCounter((2, 3), n_masked=2, n_bands=2)
        >>> counter.add(np.array([[1, 1, 0], [1, 1, 1]]), (0,))
        >>> counter.open_box
        (0, 2, 1, 3)
        >>> counter.add(np.array([[0]]), (0,))
        >>> counter.open_box, counter.find_valid().tolist()
        (None, [[255, 255, 0], [255, 255, 255]])
    """

    def __init__(self, shape, n_masked, n_bands):
        self.counts = np.zeros(shape, np.uint16)
        self._n_masked, self._n_left = n_masked, n_bands
        self.open_box = (0, 0, *shape)

    def add(self, band, values, weight=1):
        """
        Take the next band, of the pixels in ``open_box`` only.

        Args:
            band (ndarray): (h, w) of the box. Never modified.
            values (Sequence[float]): that are nodata.
            weight (int): bands that are nodata where this one is.
        """
        from cocoseg.postprocess.mask_kernels import _kernel_count_band
        y0, x0, _, _ = self.open_box
        self._n_left -= weight
        box = np.empty(4, np.int64)
        _kernel_count_band(as_bits(band), _pack(values, band.dtype), weight, self._n_masked,
                           self._n_left, self.counts, y0, x0, box)
        self.open_box = tuple(box.tolist()) if box[2] else None

    def skip(self, weight):
        """Take so many bands that are valid everywhere."""
        self._n_left -= weight
        if (self.counts + self._n_left < self._n_masked).all():
            self.open_box = None

    def find_valid(self):
        """Return uint8 (h, w), 255 where valid, 0 where masked."""
        return as_mask(self.counts < self._n_masked)


def find_box(valid):
    """
    Return slices of the smallest box that holds what is not 0; None if nothing is.

    Example:
        >>> from cocoseg.postprocess.mask_rules import find_box
        >>> find_box(np.array([[0, 0, 0], [0, 9, 0]]))
        (slice(1, 2, None), slice(1, 2, None))
    """
    slices = []
    for axis in range(valid.ndim):
        others = tuple(other for other in range(valid.ndim) if other != axis)
        places = np.flatnonzero(valid.any(axis=others))
        if not len(places):
            return None
        slices.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(slices)


def as_mask(valid):
    """
    Return uint8, 255 where valid, 0 elsewhere.

    Example:
        >>> from cocoseg.postprocess.mask_rules import as_mask
        >>> as_mask(np.array([True, False])).tolist()
        [255, 0]
    """
    # The negative of a 1 of 8 bits.
    return np.negative(valid.view(np.uint8))
