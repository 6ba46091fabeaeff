"""
The codec between float predictions and the integers that files hold.

``code = rint((value - orig_min) * (quant_max - quant_min) / (orig_max - orig_min))
+ quant_min``, computed in float64; NaN and infinities become ``nodata``. The
dictionary form is what ``delayed_image`` decodes; it is the oracle of our tests.
"""
from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import DTypeLike

from cocoseg.errors import OptionError

logger = logging.getLogger(__name__)

# Nodata of the signed codes, unless the dtype is too small to hold it.
SIGNED_NODATA = -9999


def _code_range(dtype):
    """
    Return (quant_min, quant_max, nodata) of an integer dtype.

    Signed dtypes use the codes from 0, so that nodata is well apart; unsigned
    ones keep 0 for nodata.
    """
    info = np.iinfo(dtype)
    if info.min < 0:
        return 0, int(info.max), max(int(info.min), SIGNED_NODATA)
    return 1, int(info.max), 0


def _plain_number(name, value):
    """Return a limit as a Python number, which JSON can hold."""
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    value = int(value) if isinstance(value, bool) else value
    if not isinstance(value, (int, float)):
        raise OptionError(f'{name}={value!r} of the value range must be a number')
    return value


def _as_flat(values):
    """Return real numbers as a flat array that the kernels take."""
    flat = np.ascontiguousarray(values).reshape(-1)
    is_known = flat.dtype.kind == 'f' and flat.dtype.itemsize in (4, 8) and flat.dtype.isnative
    return flat if is_known else flat.astype(np.float64)


@dataclass(frozen=True)
class Quantization:
    """
    One affine float <-> integer code.

    Attributes:
        orig_min (float): value of the lowest code.
        orig_max (float): value of the highest code; equal to ``orig_min`` for
            constant data, which then decodes exactly.
        dtype (str): integer dtype of the codes.
        orig_dtype (str): float dtype to decode to.

    Raises:
        OptionError: for a dtype that is no integer of at most 32 bits, or
            limits that are not finite or in the wrong order.

    Example:
        >>> code = Quantization(0, 1)
        >>> ints, n_clipped = code.encode(np.array([0.0, 0.5, 1.5, np.nan], 'f4'))
        >>> ints.tolist(), n_clipped
        ([0, 16384, 32767, -9999], 1)
        >>> code.decode(ints).round(4).tolist()
        [0.0, 0.5, 1.0, nan]
    """

    orig_min: float
    orig_max: float
    dtype: str = 'int16'
    orig_dtype: str = 'float32'

    def __post_init__(self):
        dtype = np.dtype(self.dtype)
        if dtype.kind not in 'iu' or dtype.itemsize > 4:
            # A float64 cannot hold every 64-bit code.
            raise OptionError(f'quantize_dtype={dtype} is not an integer of 8, 16 or 32 bits')
        object.__setattr__(self, 'dtype', dtype.name)
        for name in ('orig_min', 'orig_max'):
            object.__setattr__(self, name, _plain_number(name, getattr(self, name)))
        low, high = self.orig_min, self.orig_max
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise OptionError(f'the value range {low} … {high} must be finite and ascending')
        if not math.isfinite(float(high) - float(low)):
            raise OptionError(f'the value range {low} … {high} is wider than float64 can hold')

    @property
    def quant_min(self) -> int:
        """Lowest code."""
        return _code_range(self.dtype)[0]

    @property
    def quant_max(self) -> int:
        """Highest code."""
        return _code_range(self.dtype)[1]

    @property
    def nodata(self) -> int:
        """Code of invalid values."""
        return _code_range(self.dtype)[2]

    @property
    def step(self) -> float:
        """Difference in value between neighbouring codes; 0 for a constant."""
        return (float(self.orig_max) - float(self.orig_min)) / (self.quant_max - self.quant_min)

    @property
    def factor(self) -> float:
        """Codes per unit of value; 0 for a constant."""
        extent = float(self.orig_max) - float(self.orig_min)
        factor = (self.quant_max - self.quant_min) / extent if extent else 0.0
        # A range of a few denormals: no code can tell its values apart.
        return factor if math.isfinite(factor) else 0.0

    @property
    def kernel_args(self) -> tuple:
        """(low, high, factor, quant_min, nodata), as the kernels take them."""
        return (float(self.orig_min), float(self.orig_max), self.factor,
                self.quant_min, self.nodata)

    @property
    def scale_offset(self) -> tuple[float, float]:
        """(scale, offset) with value = code * scale + offset, as GDAL stores them."""
        # Constant data has the lowest code only, and GDAL readers reject scale 0.
        step = self.step or 1.0
        return step, float(self.orig_min) - self.quant_min * step

    def encode(self, values: np.ndarray) -> tuple[np.ndarray, int]:
        """
        Quantize an array.

        Args:
            values (ndarray): any real dtype and shape. Never modified.

        Returns:
            tuple[ndarray, int]: codes of the same shape, and how many values
            were clipped by more than half a step.
        """
        from cocoseg.stitch import kernels
        values = np.asarray(values)
        out = np.empty(values.shape, self.dtype)
        n_clipped = kernels._kernel_encode(_as_flat(values), *self.kernel_args, out.reshape(-1))
        return out, int(n_clipped)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """
        Return the float values of integer codes, NaN for nodata.

        Args:
            codes (ndarray): integers, any shape.

        Returns:
            ndarray: ``orig_dtype``, the same shape.
        """
        codes = np.asarray(codes)
        values = (codes.astype(np.float64) - self.quant_min) * self.step + float(self.orig_min)
        values = values.astype(self.orig_dtype)
        return np.where(codes == self.nodata, np.array(np.nan, values.dtype), values)

    def as_dict(self) -> dict:
        """Return the kwcoco ``quantization`` entry that delayed_image reads."""
        return {'orig_dtype': self.orig_dtype,
                'orig_min': self.orig_min, 'orig_max': self.orig_max,
                'quant_min': self.quant_min, 'quant_max': self.quant_max,
                'nodata': self.nodata}


def compute_range(values):
    """
    Return (min, max) of the finite entries, as Python floats.

    Args:
        values (ndarray): any real dtype and shape.

    Returns:
        tuple[float, float]: (0.0, 1.0) if no entry is finite.

    Example:
        >>> compute_range(np.array([[np.nan, 2.0], [np.inf, -1.0]]))
        (-1.0, 2.0)
    """
    from cocoseg.stitch import kernels
    low, high, count = kernels._kernel_minmax(_as_flat(values))
    return (float(low), float(high)) if count else (0.0, 1.0)


@overload
def quantize_image(imdata: None, old_min: float, old_max: float,
                   quantize_dtype: DTypeLike = np.int16) -> dict: ...


@overload
def quantize_image(imdata: np.ndarray, old_min: float | None = None, old_max: float | None = None,
                   quantize_dtype: DTypeLike = np.int16) -> tuple[np.ndarray, dict]: ...


def quantize_image(imdata: np.ndarray | None, old_min: float | None = None,
                   old_max: float | None = None,
                   quantize_dtype: DTypeLike = np.int16) -> tuple[np.ndarray, dict] | dict:
    """
    Quantize a float image so that it can be inverted approximately.

    Args:
        imdata (ndarray | None): any real dtype and shape, NaN or infinite
            where invalid. Never modified. None asks for the dictionary only.
        old_min (float | None): expected minimum of the data; values below are
            clipped. None: the smallest finite value.
        old_max (float | None): the same for the maximum.
        quantize_dtype (dtype): integer dtype of 8, 16 or 32 bits.

    Returns:
        tuple[ndarray, dict]: codes of the same shape, and the quantization
        entry for ``delayed_image.helpers.dequantize``. The dictionary alone
        when ``imdata`` is None.

    Raises:
        OptionError: for a dtype or a range that cannot be used, or without
            both data and range.

    Note:
        The error is at most half a step, (old_max - old_min) / (number of
        codes). Data of one value decodes to that value exactly.

    Example:
        >>> from cocoseg import quantize_image
        >>> from delayed_image.helpers import dequantize
        >>> imdata = np.random.RandomState(0).randn(8, 8, 3)
        >>> quant, quantization = quantize_image(imdata)
        >>> error = np.abs(dequantize(quant, quantization) - imdata).max()
        >>> step = (imdata.max() - imdata.min()) / 32767
        >>> assert error <= step / 2 * (1 + 1e-6)

    Example:
        >>> quantize_image(None, 0, 1, np.uint8)['nodata']
        0
    """
    orig_dtype = 'float32'
    if imdata is None:
        if old_min is None or old_max is None:
            raise OptionError('without data, quantize_image needs old_min and old_max')
    else:
        imdata = np.asarray(imdata)
        if imdata.dtype.kind not in 'fiub':
            raise OptionError(f'cannot quantize data of dtype {imdata.dtype}; give real numbers')
        if imdata.dtype.kind in 'iu' and imdata.dtype.itemsize > 2 or imdata.dtype == np.float64:
            orig_dtype = 'float64'
        if old_min is None or old_max is None:
            low, high = compute_range(imdata)
            # Data that lies wholly outside a one-sided limit is clipped to it.
            old_min = min(low, high if old_max is None else old_max) if old_min is None else old_min
            old_max = max(high, old_min) if old_max is None else old_max
    code = Quantization(old_min, old_max, np.dtype(quantize_dtype).name, orig_dtype)
    if imdata is None:
        return code.as_dict()
    ints, n_clipped = code.encode(imdata)
    if n_clipped:
        logger.info('quantize_image clipped %d of %d values to %s … %s',
                    n_clipped, imdata.size, old_min, old_max)
    return ints, code.as_dict()
