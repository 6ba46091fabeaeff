"""
Extra layers: rasters that a finished block gives besides its blended mean.

A layer sees a block once, when it is final, in the same pass that makes its
mean, and becomes an asset of its own: the class map that a user looks at, a
mask, or how much the windows over a pixel disagree. Layers are frozen values
without state, so one may serve any number of images and threads.
"""
from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from cocoseg.errors import BandCountError, OptionError, WindowShapeError
from cocoseg.stitch.quantize import Quantization

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LayerFormat:
    """
    What the raster of a layer holds.

    Attributes:
        dtype (str): dtype of its samples.
        n_bands (int): number of its bands, K.
        nodata (int | float): value of samples without data, maybe NaN.
        codec (Quantization | None): what the integers stand for; None if they
            stand for themselves, or are floats.

    Example:
        >>> LayerFormat('uint8', 1, 255).quantization is None
        True
    """

    dtype: str
    n_bands: int
    nodata: float
    codec: Quantization | None = None

    @property
    def quantization(self) -> dict | None:
        """The kwcoco ``quantization`` entry, a new dict, or None."""
        return None if self.codec is None else self.codec.as_dict()


@runtime_checkable
class Layer(Protocol):
    """
    Turn a finished block into the block of another raster.

    Attributes:
        name (str): short, for file names and options.
        needs_deviations (bool): whether the canvas must keep the squared
            deviations, C more planes.
        overviews (str): how overviews are made: 'nearest' or 'average'.

    Thread-safety: all methods may be called from many threads.
    """

    @property
    def name(self) -> str: ...

    @property
    def needs_deviations(self) -> bool: ...

    @property
    def overviews(self) -> str: ...

    def describe(self, n_bands: int, codec: Quantization | None = None) -> LayerFormat:
        """
        Say what the raster holds, for a mean of ``n_bands`` bands.

        ``codec`` is that of the mean, or None. Raises OptionError if the
        layer cannot be made from such a mean.
        """

    def compute(self, mean: np.ndarray, weights: np.ndarray | None = None,
                deviations: np.ndarray | None = None,
                codec: Quantization | None = None) -> Any:
        """
        Make the block of the layer.

        ``mean`` is float32 or float64, shape (h, w, C), not finite where no
        data; ``weights`` float (h, w) or (h, w, C), or None where they are 1
        and no deviations are needed; ``deviations`` float (h, w, C), the
        weighted sums of squared deviations. None of them is modified.
        Returns a new array (h, w, K), C-contiguous, as ``describe(C, codec)``
        says.
        """


@dataclass(frozen=True)
class ClassMap:
    """
    The band with the largest mean, counted from 0; ties go to the lowest.

    A band that is not finite at a pixel cannot win there, so where NaN is
    judged band by band a class is the best of the bands with data. A pixel is
    nodata only if no band has data. Samples are uint8 with nodata 255, or
    uint16 with nodata 65535 for more than 255 bands.

    Example:
        >>> nan = np.nan
        >>> mean = np.array([[[0.2, 0.7, 0.1], [0.5, 0.5, 0], [nan, 0.1, 0.2], [nan] * 3]])
        >>> ClassMap().compute(mean)[..., 0].tolist()
        [[1, 0, 2, 255]]
    """

    name: ClassVar[str] = 'class'
    needs_deviations: ClassVar[bool] = False
    overviews: ClassVar[str] = 'nearest'

    def describe(self, n_bands: int, codec: Quantization | None = None) -> LayerFormat:
        """
        Return the format for a mean of ``n_bands`` bands.

        Raises:
            OptionError: for fewer than 2 bands, or more than a uint16 can tell.

        Example:
            >>> ClassMap().describe(5)
            LayerFormat(dtype='uint8', n_bands=1, nodata=255, codec=None)
        """
        if n_bands < 2:
            raise OptionError(f'a class map needs at least 2 bands to choose from, not {n_bands}; '
                              "for one band use the layer 'mask'")
        for dtype in ('uint8', 'uint16'):
            # The highest value is nodata.
            nodata = int(np.iinfo(dtype).max)
            if n_bands <= nodata:
                return LayerFormat(dtype, 1, nodata)
        raise OptionError(f'a class map of {n_bands} bands does not fit uint16; at most 65535')

    def compute(self, mean: np.ndarray, weights: np.ndarray | None = None,
                deviations: np.ndarray | None = None,
                codec: Quantization | None = None) -> np.ndarray:
        """
        Return the class of each pixel; see :meth:`Layer.compute`.

        Raises:
            OptionError: for a mean of one band.
            WindowShapeError: if mean is not (h, w, C) of float32 or float64.

        Example:
            >>> ClassMap().compute(np.eye(2)[None]).shape
            (1, 2, 1)
        """
        from cocoseg.stitch import layer_kernels
        mean = _check_mean(mean)
        form = self.describe(mean.shape[2])
        out = np.empty((*mean.shape[:2], 1), form.dtype)
        layer_kernels._kernel_argmax(mean, form.nodata, out[..., 0])
        return out


@dataclass(frozen=True)
class ThresholdMask:
    """
    Tell where the mean is above a threshold, 1 or 0, band by band.

    A value equal to the threshold is 0. The threshold is rounded to the dtype
    of the mean, so the result is that of numpy's ``mean > threshold``. Samples
    are uint8, 255 where a value is not finite.

    Args:
        threshold (float | Sequence[float]): one for all bands, or one per
            band; finite. Kept as a float or a tuple of floats.

    Raises:
        OptionError: for a threshold that is not finite, or no number at all.

    Example:
        >>> mean = np.array([[[0.2, 0.7], [0.5, np.nan]]])
        >>> ThresholdMask().compute(mean).tolist()
        [[[0, 1], [0, 255]]]
        >>> ThresholdMask((0.1, 0.9)).compute(mean).tolist()
        [[[1, 0], [1, 255]]]
    """

    threshold: float | tuple[float, ...] = 0.5

    name: ClassVar[str] = 'mask'
    needs_deviations: ClassVar[bool] = False
    overviews: ClassVar[str] = 'nearest'

    if TYPE_CHECKING:
        # The field says what is kept; this, what may be given.
        def __init__(self, threshold: float | Sequence[float] = 0.5) -> None: ...

    def __post_init__(self):
        try:
            values = tuple(self.threshold)
        except TypeError:
            object.__setattr__(self, 'threshold', _as_finite('threshold', self.threshold))
            return
        if not values:
            raise OptionError('threshold is empty; give one number, or one per band')
        object.__setattr__(self, 'threshold',
                           tuple(_as_finite('threshold', value) for value in values))

    def describe(self, n_bands: int, codec: Quantization | None = None) -> LayerFormat:
        """
        Return the format for a mean of ``n_bands`` bands.

        Raises:
            OptionError: if there are thresholds per band, but not ``n_bands``.

        Example:
            >>> ThresholdMask().describe(3)
            LayerFormat(dtype='uint8', n_bands=3, nodata=255, codec=None)
        """
        if isinstance(self.threshold, tuple) and len(self.threshold) != n_bands:
            raise OptionError(f'threshold={self.threshold} has {len(self.threshold)} numbers but '
                              f'the mean has {n_bands} bands; give one number, or one per band')
        return LayerFormat('uint8', n_bands, 255)

    def compute(self, mean: np.ndarray, weights: np.ndarray | None = None,
                deviations: np.ndarray | None = None,
                codec: Quantization | None = None) -> np.ndarray:
        """
        Return the mask of each band; see :meth:`Layer.compute`.

        Raises:
            OptionError: if the number of thresholds is not that of the bands.
            WindowShapeError: if mean is not (h, w, C) of float32 or float64.

        Example:
            >>> ThresholdMask(2).compute(np.array([[[1.0], [3.0]]])).tolist()
            [[[0], [1]]]
        """
        from cocoseg.stitch import layer_kernels
        mean = _check_mean(mean)
        form = self.describe(mean.shape[2])
        out = np.empty(mean.shape, form.dtype)
        thresholds = np.full(mean.shape[2], self.threshold)
        layer_kernels._kernel_threshold(mean, thresholds, form.nodata, out)
        return out


@dataclass(frozen=True)
class Disagreement:
    """
    The weighted standard deviation between the windows over a pixel.

    Per band, ``sqrt(sum(w_i * (v_i - mean) ** 2) / sum(w_i))`` over the windows
    i that gave the mean: 0 where one window was alone or all said the same,
    large where the prediction depends on where the window lay. NaN where there
    is no data.

    Stored as float32 with nodata NaN, or as integer codes if a limit is known:
    ``max_value``, or else half of the value range of the mean's own codec. No
    values of that range can have a larger standard deviation; values of
    windows that left it are clipped to the limit.

    Args:
        max_value (float | None): value of the highest code; finite, > 0.

    Raises:
        OptionError: for a ``max_value`` that is no such number.

    Note:
        With n windows over a pixel and values up to M in magnitude, the error
        is at most ``2 * (n + 2) * eps * M``, with eps of the canvas (1.2e-7 for
        float32): it grows with the values, not with their spread. A spread
        below that is noise, and so is what another order of the windows
        changes; usually both are near ``eps * M``. For values with a large
        offset take it off first, or use a float64 canvas.
        In float32, deviations below 1e-19 or above 1e19 cannot be squared:
        they give 0 and nodata.

    Example:
        >>> mean, weights = np.full((1, 3, 1), 0.5, 'f4'), np.array([[4, 1, 0]], 'f4')
        >>> deviations = np.array([[[0.25], [0], [0]]], 'f4')
        >>> Disagreement().compute(mean, weights, deviations)[..., 0].tolist()
        [[0.25, 0.0, nan]]
        >>> codec = Quantization(0, 1, 'uint8')
        >>> Disagreement().compute(mean, weights, deviations, codec)[..., 0].tolist()
        [[128, 1, 0]]
    """

    max_value: float | None = None

    name: ClassVar[str] = 'disagreement'
    needs_deviations: ClassVar[bool] = True
    overviews: ClassVar[str] = 'average'

    def __post_init__(self):
        if self.max_value is None:
            return
        value = _as_finite('max_value', self.max_value)
        if value <= 0:
            raise OptionError(f'max_value={value} of a disagreement must be above 0')
        object.__setattr__(self, 'max_value', value)

    def describe(self, n_bands: int, codec: Quantization | None = None) -> LayerFormat:
        """
        Return the format for a mean of ``n_bands`` bands.

        Args:
            n_bands (int): bands of the mean.
            codec (Quantization | None): of the mean; gives the integer dtype
                ('int16' without it) and, without ``max_value``, the limit.

        Example:
            >>> Disagreement().describe(2)
            LayerFormat(dtype='float32', n_bands=2, nodata=nan, codec=None)
            >>> form = Disagreement().describe(2, Quantization(-1, 1, 'uint16'))
            >>> form.dtype, form.nodata, form.quantization['orig_max']
            ('uint16', 0, 1.0)
        """
        limit = self.max_value
        if limit is None and codec is not None:
            limit = (float(codec.orig_max) - float(codec.orig_min)) / 2
        if limit is None:
            return LayerFormat('float32', n_bands, math.nan)
        ours = Quantization(0.0, limit, 'int16' if codec is None else codec.dtype)
        return LayerFormat(ours.dtype, n_bands, ours.nodata, ours)

    def compute(self, mean: np.ndarray, weights: np.ndarray | None = None,
                deviations: np.ndarray | None = None,
                codec: Quantization | None = None) -> np.ndarray:
        """
        Return the standard deviation of each sample; see :meth:`Layer.compute`.

        Raises:
            OptionError: without weights or deviations.
            WindowShapeError: if mean is not (h, w, C) of float32 or float64,
                or weights or deviations do not match it.

        Example:
            >>> ones = np.ones((1, 1, 1))
            >>> Disagreement(2).compute(ones, ones, ones).item()
            16384
        """
        from cocoseg.stitch import layer_kernels
        mean = _check_mean(mean)
        if weights is None or deviations is None:
            raise OptionError('a disagreement needs weights and deviations; the canvas must '
                              'accumulate the deviations')
        deviations = np.asarray(deviations)
        if deviations.shape != mean.shape or deviations.dtype.type not in _FLOATS:
            raise WindowShapeError(f'deviations are {deviations.dtype} {deviations.shape} but the '
                                   f'mean has shape {mean.shape}; both must be float and agree')
        deviations = _as_plain(deviations, deviations.dtype.type)
        weights = np.asarray(weights)
        if weights.shape not in (mean.shape, mean.shape[:2]):
            raise WindowShapeError(f'weights have shape {weights.shape} but the mean has '
                                   f'{mean.shape}; give one weight per pixel, or per sample')
        weights = _as_plain(weights, deviations.dtype)
        if weights.ndim == 2:
            weights = weights[..., None]
        form = self.describe(mean.shape[2], codec)
        out = np.empty(mean.shape, 'float32' if form.codec is None else deviations.dtype)
        layer_kernels._kernel_deviation(deviations, weights, out)
        if form.codec is None:
            return out
        codes, n_clipped = form.codec.encode(out)
        if n_clipped:
            logger.info('clipped %d of %d disagreements to %s', n_clipped, out.size,
                        form.codec.orig_max)
        return codes


LAYERS = {layer.name: layer for layer in (ClassMap, ThresholdMask, Disagreement)}


def get_layer(spec):
    """
    Return the layer that an option asks for.

    Args:
        spec (Layer | str): a layer, or the name of one: 'class', 'mask',
            'disagreement', with its default options.

    Returns:
        Layer: ``spec`` itself if it is one.

    Raises:
        OptionError: for an unknown name, or anything else.

    Example:
        >>> get_layer('mask')
        ThresholdMask(threshold=0.5)
        >>> get_layer(ThresholdMask(0.9)).threshold
        0.9
    """
    if isinstance(spec, str) and spec in LAYERS:
        return LAYERS[spec]()
    # A class has the attributes of its instances; it is not a layer yet.
    if isinstance(spec, Layer) and not isinstance(spec, type):
        return spec
    raise OptionError(f'layer {spec!r} is unknown; use one of {sorted(LAYERS)}, or a layer such '
                      'as ThresholdMask(0.5)')


_FLOATS = (np.float32, np.float64)


def match_sinks(layers, sink):
    """
    Return {Layer: its sink} of the layers that a stitcher shall make.

    Args:
        layers (Mapping[Layer | str, BlockSink] | Sequence[Layer | str] | None):
            a mapping if there is a sink, else a sequence.
        sink (BlockSink | None): of the mean.

    Raises:
        OptionError: for an unknown layer, or one that is named twice, or if
            sinks are missing or not needed.

    Example:
        >>> match_sinks(['class'], None)
        {ClassMap(): None}
    """
    layers = {} if layers is None else layers
    if layers and isinstance(layers, Mapping) != (sink is not None):
        raise OptionError(f'layers={layers!r}: with a sink, give a sink for each layer too, as '
                          'a dict; without one, a list of layers')
    found = {get_layer(spec): layers[spec] if sink is not None else None for spec in layers}
    if len(found) < len(layers):
        raise OptionError(f'layers={layers!r} names a layer twice')
    return found


def _as_plain(values, dtype):
    """Return an array as the kernels take it: native and C-contiguous."""
    return np.ascontiguousarray(values, dtype)


def _check_mean(mean):
    """Return a blended mean as the kernels take it, or raise."""
    mean = np.asarray(mean)
    if mean.ndim != 3 or mean.dtype.type not in _FLOATS:
        raise WindowShapeError(f'the mean is {mean.dtype} {mean.shape}; a layer needs (h, w, C) '
                               'of float32 or float64')
    if mean.shape[2] < 1:
        raise BandCountError(f'the mean has shape {mean.shape}; it needs at least 1 band')
    return _as_plain(mean, mean.dtype.type)


def _as_finite(name, value):
    """Return an option as a finite float, or raise."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise OptionError(f'{name}: {value!r} is not a finite number')
    return number
