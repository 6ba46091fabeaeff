"""
What comes into a stitcher: arrays of callers, checked and made plain.
"""
from __future__ import annotations

import dataclasses
import functools
import operator
from typing import Any, NamedTuple

import numpy as np

from cocoseg.errors import BandCountError, OptionError, WeightError, WindowShapeError
from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid


def as_numpy(data):
    """
    Return an array or a torch tensor (any device) as a numpy array.

    What a masked array masks becomes NaN; torch's bfloat16, which numpy does
    not have, becomes float32.

    Example:
        >>> as_numpy([[1, 2]]).shape
        (1, 2)
    """
    if hasattr(data, 'detach'):
        data = data.detach()
        is_bfloat = str(getattr(data, 'dtype', '')) == 'torch.bfloat16'
        data = (data.float() if is_bfloat else data).cpu()
    if isinstance(data, np.ma.MaskedArray):
        data = data.astype(np.result_type(data.dtype, np.float32)).filled(np.nan)
    return np.asarray(data)


def as_planes(data, dtype):
    """
    Return the data of a window in the layout of the kernels.

    Args:
        data (ndarray): real, shape (h, w, C), of any strides.
        dtype (dtype): of the canvas.

    Returns:
        ndarray: (1, h, w * C), or (C, h, w) if the bands lie first in memory,
        as in a permuted torch tensor. C-contiguous; a view where possible.

    Example:
        >>> tensor = np.zeros((3, 4, 5), 'f4')
        >>> as_planes(tensor.transpose(1, 2, 0), np.dtype('f4')).shape
        (3, 4, 5)
        >>> as_planes(np.zeros((4, 5, 3)), np.dtype('f4')).shape
        (1, 4, 15)
    """
    height, width, n_bands = data.shape
    rows, columns, bands = data.strides
    if n_bands > 1 and bands > rows >= columns > 0:
        return np.ascontiguousarray(data.transpose(2, 0, 1), dtype)
    return np.ascontiguousarray(data, dtype).reshape(1, height, width * n_bands)


class _ById:
    """An array as the key of a cache, which keeps it alive."""

    def __init__(self, array):
        self.array = array

    def __eq__(self, other):
        return self.array is other.array

    def __hash__(self):
        return id(self.array)


@functools.lru_cache(maxsize=8)
def _expand_shared(key, n_bands):
    return _expand(key.array, n_bands)


def _expand(weights, n_bands):
    from cocoseg.stitch import kernels
    expanded = np.empty((weights.shape[0], weights.shape[1] * n_bands), weights.dtype)
    kernels._kernel_expand(weights, n_bands, expanded)
    return expanded


def expand_weights(weights, n_bands):
    """
    Return weights (h, w) repeated for every band, (h, w * C); never to be modified.

    Arrays that nobody can change, such as edge weights, which come for every
    window, are expanded once.

    Example:
        >>> expand_weights(np.array([[1.0, 2.0]]), 2).tolist()
        [[1.0, 1.0, 2.0, 2.0]]
    """
    if n_bands == 1:
        return weights
    if weights.flags.owndata and not weights.flags.writeable:
        return _expand_shared(_ById(weights), n_bands)
    return _expand(weights, n_bands)


def check_shape(shape):
    """
    Return ((H, W), C or None) of a shape of whole numbers.

    Raises:
        OptionError: for anything else.

    Example:
        >>> check_shape((4, 5)), check_shape((4, 5, 3))
        (((4, 5), None), ((4, 5), 3))
    """
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise OptionError(f'shape={shape!r} must be (H, W) or (H, W, C), whole numbers >= 1')
    return sizes[:2], (sizes[2] if len(sizes) == 3 else None)


def check_data(data, window, n_bands=None, on_device=False, channels_first=False):
    """
    Return the data of a window as (h, w, C), a view where possible.

    Args:
        data (ndarray | Tensor): real, (h, w) or (h, w, C); with
            ``channels_first`` (C, h, w).
        window (Window): where it belongs.
        n_bands (int | None): C, if it is known.
        on_device (bool): leave tensors what they are.
        channels_first (bool): the bands are the first axis.

    Raises:
        WindowShapeError: if data disagrees with the window.
        BandCountError: if C is another.

    Example:
        >>> check_data(np.ones((5, 2, 3)), Window(0, 0, 2, 3), channels_first=True).shape
        (2, 3, 5)
    """
    if on_device and hasattr(data, 'detach'):
        is_real = not data.is_complex()
    else:
        data = as_numpy(data)
        is_real = data.dtype.kind in 'fiub'
    if not is_real:
        raise WindowShapeError(f'data for {window} has dtype {data.dtype}; give real numbers')
    given = tuple(data.shape)
    if len(given) == 2:
        data = data[..., None]
    elif len(given) == 3 and channels_first:
        data = data.transpose(1, 2, 0) if isinstance(data, np.ndarray) else data.permute(1, 2, 0)
    if len(given) not in (2, 3) or tuple(data.shape[:2]) != window.shape:
        height, width = window.shape
        wanted = f'(*, {height}, {width})' if channels_first else f'({height}, {width}, *)'
        raise WindowShapeError(
            f'data has shape {given} but {window} needs {wanted}; '
            'resize the prediction to its window, or give the window it was made for')
    if data.shape[2] < 1 or n_bands not in (None, data.shape[2]):
        raise BandCountError(
            f'data for {window} has {data.shape[2]} bands but this image has '
            f'{n_bands or "at least 1"}; every window needs the same bands')
    return data


class Item(NamedTuple):
    """A checked window: as it came, its part inside the image, and its data there."""

    full: Window
    inside: Window
    data: Any
    weights: np.ndarray | None


def crop_item(full, inside, data, weights):
    """
    Return an :class:`Item` of the data of a window, cropped to the image.

    Example:
        >>> item = crop_item(Window(-1, 0, 2, 1), Window(0, 0, 2, 1), np.zeros((3, 1, 1)), None)
        >>> item.data.shape
        (2, 1, 1)
    """
    if inside is not full:
        part = inside.within(full).slices
        data, weights = data[part], None if weights is None else weights[part]
    return Item(full, inside, data, weights)


def choose_area(area, windows, shape):
    """
    Return the area of interest or None, and the declared windows that touch it.

    Args:
        area (polygon | None): None is that of the windows, if they have one.
        windows (WindowGrid | Iterable[Window] | None): those that will come.
        shape (tuple[int, int]): (H, W) of the image, px.

    Raises:
        OptionError: if the windows have another area.

    Example:
        >>> import shapely
        >>> area, windows = choose_area(shapely.box(0, 0, 3, 3),
        ...                             [Window(0, 0, 2, 2), Window(5, 5, 6, 6)], (6, 6))
        >>> windows
        [Window(y=0:2, x=0:2)]
    """
    if windows is not None and not isinstance(windows, WindowGrid):
        # Also because a generator has only one of its two readers.
        windows = [Window.coerce(window, shape) for window in windows]
    if area is None:
        return getattr(windows, 'area', None), windows
    from cocoseg.grid.area import Area
    area = Area.coerce(area)
    if isinstance(windows, WindowGrid):
        if windows.area not in (None, area):
            raise OptionError('the windows have another area of interest already; give it once')
        windows = dataclasses.replace(windows, area=area)
    elif windows is not None:
        # What a window sees beyond the image is no reason to wait for it.
        windows = [window for window in windows if area.touches(window.clip(shape))]
    return area, windows


def check_weights(weights, window, dtype='float32'):
    """
    Check dense weights of a window.

    Args:
        weights (ndarray): real, shape (h, w) == ``window.shape``.
        window (Window): where they belong.
        dtype (str): accumulator that must hold them.

    Raises:
        WindowShapeError: for another shape.
        WeightError: if a weight is negative, NaN, infinite, or no number.

    Example:
        >>> check_weights(np.ones((2, 3)), Window(0, 0, 2, 3))
    """
    if weights.shape != window.shape:
        raise WindowShapeError(
            f'weights have shape {weights.shape} but {window} needs {window.shape}; '
            'give one weight per pixel of the window')
    if weights.dtype.kind not in 'fiub':
        raise WeightError(f'weights for {window} have dtype {weights.dtype}; give real numbers')
    # NaN fails both comparisons.
    if not (weights.min(initial=0) >= 0
            and weights.max(initial=0) <= np.finfo(dtype).max):
        raise WeightError(
            f'weights for {window} lie in {weights.min()} … {weights.max()}; '
            'they must be finite and not negative')


@functools.lru_cache(maxsize=64)
def unit_weights(shape, dtype):
    """
    Return separable weights of 1, (h,) and (w,); shared, never to be modified.

    Example:
        >>> [len(part) for part in unit_weights((2, 3), 'float32')]
        [2, 3]
    """
    return tuple(np.ones(size, dtype) for size in shape)
