"""
Which pixels are valid, and which cluster centre each of them is nearest to.

The second step of a segmentation: image and centres in, cluster numbers out.
Pixels without data are decided here once, for all the steps that follow: where
a band is nodata, NaN or infinite, or where the caller's mask says so.
"""
from __future__ import annotations

import numbers
from dataclasses import dataclass

import numpy as np

from cocoseg.machine import share_rows
from cocoseg.errors import BandCountError, NodataError, OptionError, WindowShapeError

_NO_MASK = np.zeros((0, 0), bool)


@dataclass(frozen=True)
class Pixels:
    """
    The memory of an image, as compiled loops read it.

    Attributes:
        flat (ndarray): (n,), any int or float dtype, read-only, contiguous.
        shape (tuple[int, int, int]): (H, W, B).
        steps (tuple[int, int, int]): entries of ``flat`` from a row to the
            next, from a column to the next, and from a band to the next.
    """

    flat: np.ndarray
    shape: tuple[int, int, int]
    steps: tuple[int, int, int]


def as_pixels(image):
    """
    Return a view of an image for compiled loops; copy it only if it must be.

    Bands first or last, crops and every other row are read where they are. A
    copy is made of arrays that run backward, that are in the byte order of
    another machine, or whose dtype is float16.

    Args:
        image (ndarray): int or float, (H, W, B), or (H, W) for one band.

    Returns:
        Pixels: the view.

    Raises:
        OptionError: for another dtype, or something that is not a plain array.
        WindowShapeError: for another number of axes, or an axis of 0.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.assign import as_pixels
        >>> bands_first = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
        >>> pixels = as_pixels(np.moveaxis(bands_first, 0, -1))
        >>> pixels.shape, pixels.steps, np.shares_memory(pixels.flat, bands_first)
        ((3, 4, 2), (4, 1, 12), True)
    """
    image = as_image(image)
    itemsize = image.dtype.itemsize
    if not image.flags.aligned or any(step < 0 or step % itemsize for step in image.strides):
        image = image.copy(order='C')
    steps = tuple(step // itemsize for step in image.strides)
    size = 1 + sum((length - 1) * step for length, step in zip(image.shape, steps))
    flat = np.lib.stride_tricks.as_strided(image, (size,), (itemsize,), writeable=False)
    return Pixels(flat, image.shape, steps)


def as_image(image):
    """
    Return an image with three axes and a dtype that compiled loops know.

    Copied only from float16 or the byte order of another machine.

    Args:
        image (ndarray): int or float, (H, W, B), or (H, W) for one band.

    Returns:
        ndarray: (H, W, B).

    Raises:
        OptionError, WindowShapeError: as for :func:`as_pixels`.
    """
    if isinstance(image, np.ma.MaskedArray):
        raise OptionError('image is a masked array, whose mask would be lost; pass image.data, '
                          'and mask=~numpy.ma.getmaskarray(image).any(axis=-1)')
    image = np.asarray(image)
    if image.dtype.kind not in 'iuf' or image.dtype.itemsize > 8:
        raise OptionError(f'image has dtype {image.dtype}; convert it to a whole or floating '
                          'dtype of up to 64 bits')
    if image.ndim not in (2, 3) or image.size == 0:
        raise WindowShapeError(f'image has shape {image.shape}; it needs to be (H, W, B), or '
                               '(H, W) for one band, with no axis of 0')
    dtype = np.float32 if image.dtype == np.float16 else image.dtype.newbyteorder('=')
    image = image.astype(dtype, copy=False)
    return image if image.ndim == 3 else image[:, :, None]


def find_valid(image, nodata=None, mask=None, *, num_threads=1):
    """
    Mark the pixels that have data in all bands.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W).
        nodata (float | None): a pixel is null if any band is equal to it. A
            value that the dtype of the image cannot hold is found nowhere.
            Pixels with NaN or infinity are null anyway.
        mask (ndarray | None): bool (H, W), True where valid.
        num_threads (int): that share the rows.

    Returns:
        ndarray | None: bool (H, W), True where valid; new, or the ``mask``
        itself if nothing can be added to it. None if there is neither a mask,
        nor nodata, nor a dtype that has NaN, so that all pixels are valid.

    Raises:
        NodataError: if ``nodata`` is not a real number.
        OptionError, WindowShapeError: as for :func:`as_pixels`, and for a
            mask of another dtype or shape.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.assign import find_valid
        >>> image = np.array([[[7, 1.5], [0, 2]], [[3, 1], [np.nan, 1]]])
        >>> find_valid(image, nodata=0)
        array([[ True, False],
               [ True, False]])
    """
    pixels = as_pixels(image)
    check_mask(mask, pixels.shape)
    nodata = _as_image_value(nodata, pixels.flat.dtype)
    if nodata is None:
        return mask
    from cocoseg.shepherd.assign_kernels import _kernel_find_valid
    valid = np.ones(pixels.shape[:2], bool) if mask is None else mask.copy()

    def find(first, stop):
        _kernel_find_valid(pixels.flat, pixels.steps, pixels.shape[2], nodata, first, stop, valid)
    share_rows(find, len(valid), num_threads)
    return valid


def check_mask(mask, shape):
    """Raise unless a mask is None, or bool of the first two lengths of ``shape``."""
    if mask is None:
        return
    if not isinstance(mask, np.ndarray) or mask.dtype != bool:
        raise OptionError(f'the mask is {getattr(mask, "dtype", type(mask).__name__)}; it needs '
                          'to be a bool array, True where pixels are valid')
    if mask.shape != tuple(shape[:2]):
        raise WindowShapeError(f'the mask has shape {mask.shape}, and the image {tuple(shape)}; '
                               f'the mask needs {tuple(shape[:2])}')


def _as_image_value(nodata, dtype):
    """Return nodata as a value of the image; None if there is nothing to look for."""
    nothing = dtype.type(np.nan) if dtype.kind == 'f' else None
    if nodata is None:
        return nothing
    if not isinstance(nodata, numbers.Real) or isinstance(nodata, bool):
        raise NodataError(f'nodata={nodata!r} is not a real number; give one number for all '
                          'bands, or None')
    if dtype.kind == 'f':
        with np.errstate(over='ignore'):
            return dtype.type(nodata)
    if not np.isfinite(nodata) or nodata != int(nodata):
        return None
    limits = np.iinfo(dtype)
    return dtype.type(int(nodata)) if limits.min <= int(nodata) <= limits.max else None


def assign_clusters(image, centres, valid=None, *, nodata=None, num_threads=1, predict=None):
    """
    Number each pixel by the nearest cluster centre.

    Distances are Euclidean, in float64. Of centres that are equally near the
    first one is taken.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W).
        centres (ndarray): float, (K, B), K of at most 65535.
        valid (ndarray | None): bool (H, W); None means all.
        nodata (float | None): see :func:`find_valid`, which is called with
            both; so pixels with NaN or infinity are null.
        num_threads (int): that share the rows.
        predict (Callable | None): another judge, called with the pixels
            (n, B) that are equally far from two centres but for rounding; it
            returns the numbers, from 0, of their centres. To decide as the
            ``predict`` of scikit-learn's KMeans does, with its rounding.

    Returns:
        ndarray: uint16 (H, W), 1 + the index of the centre; 0 where null.

    Raises:
        BandCountError: if centres and image differ in their bands.
        OptionError: if there is no centre, or there are too many, or one is
            not finite.
        NodataError, WindowShapeError: as for :func:`find_valid`.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.assign import assign_clusters
        >>> image = np.array([[3, 8, 4], [5, 0, 9]], np.uint8)
        >>> assign_clusters(image, [[4.0], [9.0]], nodata=0)
        array([[1, 2, 1],
               [1, 0, 2]], dtype=uint16)
    """
    valid = find_valid(image, nodata, valid, num_threads=num_threads)
    return assign_valid(image, centres, valid, num_threads=num_threads, predict=predict)


def assign_valid(image, centres, valid, *, num_threads=1, predict=None):
    """
    Do the same as :func:`assign_clusters` where ``valid`` is known.

    Args:
        image, centres, num_threads, predict: as for :func:`assign_clusters`.
        valid (ndarray | None): of :func:`find_valid`, or stricter.

    Returns:
        ndarray: uint16 (H, W).
    """
    from cocoseg.shepherd.assign_kernels import MIN_PLANES, _kernel_assign
    pixels = as_pixels(image)
    check_mask(valid, pixels.shape)
    centres = _checked_centres(centres, pixels.shape[2])
    n_bands = pixels.shape[2]
    planes = np.zeros((max(n_bands, MIN_PLANES), len(centres)))
    planes[:n_bands] = centres.T
    largest = float((centres ** 2).sum(axis=1).max())
    tolerance = 0.0 if predict is None else _find_tolerance(pixels)
    out = np.zeros(pixels.shape[:2], np.uint16)
    doubtful = np.zeros(pixels.shape[:2] if predict else (0, 0), bool)

    def assign(first, stop):
        _kernel_assign(pixels.flat, pixels.steps, n_bands, _NO_MASK if valid is None else valid,
                       planes, largest, tolerance, first, stop, out, doubtful)
    share_rows(assign, len(out), num_threads)
    if doubtful.any():
        out[doubtful] = np.asarray(predict(as_image(image)[doubtful])) + 1
    return out


def _find_tolerance(pixels):
    """
    Return how far off two squared distances are, relative to the squared values.

    For distances as ``|c|^2 - 2 x.c``, each step of which is rounded to the
    precision that scikit-learn calculates in.
    """
    unit = 2.0 ** -24 if pixels.flat.dtype == np.float32 else 2.0 ** -53
    return 4 * (pixels.shape[2] + 4) * unit


def _checked_centres(centres, n_bands):
    centres = np.ascontiguousarray(centres, np.float64)
    if centres.ndim != 2 or not 1 <= len(centres) <= 65535 or not np.isfinite(centres).all():
        raise OptionError(f'centres of shape {centres.shape} must be finite numbers of shape '
                          '(K, B), with 1 to 65535 centres')
    if centres.shape[1] != n_bands:
        raise BandCountError(f'centres have {centres.shape[1]} bands and the image has '
                             f'{n_bands}; fit the clusters to an image of the same bands')
    return centres
