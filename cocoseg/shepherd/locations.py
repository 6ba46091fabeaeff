"""
Where the pixels of segments are, how many, and what they sum up to.

For those who calculate something per segment, in numpy or in loops of their
own that numba compiles: all results are plain arrays indexed by segment id.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.shepherd.assign import as_pixels
from cocoseg.shepherd.clumps import Segments, check_labels


@dataclass(frozen=True)
class SegmentLocations:
    """
    The pixels of each segment, in raster order.

    Those of segment ``s`` are ``rows[starts[s]:starts[s + 1]]`` and the same
    of ``columns``. In a loop that numba compiles, pass the three arrays.

    Attributes:
        starts (ndarray): int64 (N + 2,); id 0, null, has none.
        rows (ndarray): int32 (n,), of all pixels that are not null.
        columns (ndarray): int32 (n,).
    """

    starts: np.ndarray
    rows: np.ndarray
    columns: np.ndarray

    def get(self, segment):
        """
        Return the pixels of one segment, to index an image with.

        Args:
            segment (int): id, 0..N.

        Returns:
            tuple[ndarray, ndarray]: int32, rows and columns; views.

        Raises:
            OptionError: if there is no such id.
        """
        if not 0 <= segment < len(self.starts) - 1:
            raise OptionError(f'there is no segment {segment}; ids are '
                              f'0..{len(self.starts) - 2}')
        part = slice(self.starts[segment], self.starts[segment + 1])
        return self.rows[part], self.columns[part]


def segment_sizes(labels, n_segments=None):
    """
    Count the pixels of each segment.

    Args:
        labels (ndarray): uint32 (H, W), C-contiguous, 0 where null.
        n_segments (int | None): highest id N; None finds it.

    Returns:
        ndarray: uint32 (N + 1,), px by id; of id 0, null pixels.

    Raises:
        OptionError, WindowShapeError, LabelOverflowError: if these are no
            labels, or one is above ``n_segments``.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.locations import segment_sizes
        >>> segment_sizes(np.array([[1, 1, 0], [3, 1, 0]], np.uint32))
        array([2, 3, 0, 1], dtype=uint32)
    """
    return Segments.from_labels(labels, n_segments).sizes


def segment_locations(labels, n_segments=None):
    """
    List the pixels of each segment.

    Args:
        labels, n_segments: as for :func:`segment_sizes`.

    Returns:
        SegmentLocations: 8 bytes per pixel, and 8 per segment.

    Raises:
        OptionError, WindowShapeError, LabelOverflowError: as for
            :func:`segment_sizes`.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.locations import segment_locations
        >>> image = np.array([[10, 20, 30], [40, 50, 60]])
        >>> locations = segment_locations(np.array([[1, 2, 2], [2, 1, 0]], np.uint32))
        >>> image[locations.get(1)], image[locations.get(2)]
        (array([10, 50]), array([20, 30, 40]))
    """
    from cocoseg.shepherd.location_kernels import _kernel_list_locations
    sizes = segment_sizes(labels, n_segments).astype(np.int64)
    sizes[0] = 0
    starts = np.concatenate([[0], np.cumsum(sizes)])
    rows, columns = np.empty((2, starts[-1]), np.int32)
    _kernel_list_locations(labels.reshape(-1), labels.shape[1], starts[:-1].copy(), rows, columns)
    return SegmentLocations(starts, rows, columns)


def band_sums(image, labels, n_segments=None, *, dtype=np.float64):
    """
    Sum up the bands of each segment.

    Args:
        image (ndarray): int or float, (H, W, B) or (H, W).
        labels, n_segments: as for :func:`segment_sizes`.
        dtype (DTypeLike): float64, or float32: then each addition, in raster
            order, is rounded, as in pyshepseg.

    Returns:
        ndarray: ``dtype``, (N + 1, B); the mean of a segment is its sum by its
        size. Row 0 sums up null pixels.

    Raises:
        OptionError: for another dtype, or as for :func:`segment_sizes`.
        WindowShapeError: if labels and image differ in shape.
        LabelOverflowError: as for :func:`segment_sizes`.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.locations import band_sums, segment_sizes
        >>> image = np.array([[1, 2, 5], [3, 6, 7]], np.uint8)
        >>> labels = np.array([[1, 1, 2], [1, 2, 2]], np.uint32)
        >>> sums = band_sums(image, labels)
        >>> (sums[1:] / segment_sizes(labels)[1:, None]).tolist()
        [[2.0], [6.0]]
    """
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise OptionError(f'dtype={dtype!r} must be float64 or float32')
    pixels = as_pixels(image)
    n_segments = check_labels(labels, n_segments, pixels.shape[:2])
    sums = np.zeros((n_segments + 1, pixels.shape[2]), dtype)
    add_bands(pixels, labels.reshape(-1), sums)
    return sums


def add_bands(pixels, labels, sums):
    """
    Add the bands of pixels to the sums of their labels.

    Args:
        pixels (Pixels): of the image.
        labels (ndarray): uint32 (H * W,).
        sums (ndarray): float (N + 1, B). Modified in place.
    """
    from cocoseg.shepherd.location_kernels import _kernel_band_sums
    # Where float32 holds every value, adding in float32 rounds just as well.
    dtype = pixels.flat.dtype
    is_narrow = dtype == np.float32 or (dtype.kind != 'f' and dtype.itemsize <= 2)
    wide = sums.dtype if is_narrow else np.float64
    _kernel_band_sums(pixels.flat, pixels.steps, labels, pixels.shape[1], np.zeros(1, wide), sums)
