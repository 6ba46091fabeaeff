"""
Statistics by functions of pixels that come ready: for :func:`segment_stats`.

Each function here returns a :class:`~cocoseg.shepherd.statspec.UserStat`, and
its compiled code in :mod:`cocoseg.shepherd.user_stat_kernels` is an example of
how to write one.
"""
from __future__ import annotations

import math

from cocoseg.errors import OptionError
from cocoseg.io.dataset import as_geotransform
from cocoseg.shepherd.statspec import UserStat


def variogram(distance):
    """
    Return how much pixels of a segment differ that lie so far apart.

    The square root of the mean squared difference between all pairs of valid
    pixels of the segment whose distance, rounded down, is ``distance``. NaN if
    there is no such pair.

    Args:
        distance (float): px, at least 1; rounded down.

    Raises:
        OptionError: if it is less than 1, or not finite.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.stats import segment_stats
        >>> from cocoseg.shepherd.user_stats import variogram
        >>> image, segments = np.array([[1, 1, 4]]), np.ones((1, 3), np.uint8)
        >>> table = segment_stats(image, segments, [('v', variogram(2))])
        >>> float(table['v'][0])
        3.0
    """
    if not 1 <= distance < math.inf:
        raise OptionError(f'distance={distance!r} of a variogram must be at least 1 px')
    return UserStat(_Lazy('variogram'), int(distance))


def mean_coordinate(axis, transform=None):
    """
    Return the mean coordinate of the centers of a segment's valid pixels.

    Unlike 'centroid', this leaves out pixels that are not valid in the band.

    Args:
        axis (str): 'x' or 'y'.
        transform (array_like | None): pixel corners to world, as for
            :func:`cocoseg.write_cog`; None is in px, the corner of the image
            being (0, 0).

    Raises:
        OptionError: for another axis, or a wrong transform.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.stats import segment_stats
        >>> from cocoseg.shepherd.user_stats import mean_coordinate
        >>> image, segments = np.array([[1, np.nan, 4]]), np.ones((1, 3), np.uint8)
        >>> table = segment_stats(image, segments, [('x', mean_coordinate('x'))])
        >>> float(table['x'][0])
        1.5
    """
    if axis not in ('x', 'y'):
        raise OptionError(f"axis={axis!r} must be 'x' or 'y'")
    x0, a, b, y0, d, e = as_geotransform(transform) or (0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    return UserStat(_Lazy('mean_coordinate'), (x0, a, b) if axis == 'x' else (y0, d, e))


def edge_pixels(neighbors=8):
    """
    Return how many valid pixels of a segment lack one of their neighbors.

    A neighbor is lacking where it belongs to another segment, to none, is not
    valid in the band, or is outside the image.

    Args:
        neighbors (int): 8, or 4 for those that share an edge.

    Raises:
        OptionError: for another number.

    Example:
        >>> import numpy as np
        >>> from cocoseg.shepherd.stats import segment_stats
        >>> from cocoseg.shepherd.user_stats import edge_pixels
        >>> segments = np.ones((4, 5), np.uint8)
        >>> table = segment_stats(segments, segments, [('n', edge_pixels())])
        >>> float(table['n'][0])
        14.0
    """
    if neighbors not in (4, 8):
        raise OptionError(f'neighbors={neighbors!r} must be 4 or 8')
    return UserStat(_Lazy('edge_pixels'), neighbors)


class _Lazy:
    """A compiled function by its name: not loaded, nor numba, before it is used."""

    def __init__(self, name):
        self.name = name

    def load(self):
        """Return the compiled function."""
        from cocoseg.shepherd import user_stat_kernels
        return getattr(user_stat_kernels, self.name)

    def __call__(self, x, y, values, param):
        return self.load()(x, y, values, param)

    def __eq__(self, other):
        return isinstance(other, _Lazy) and other.name == self.name

    def __hash__(self):
        return hash(self.name)


def load_function(func):
    """
    Return the function of a UserStat, and whether numba compiles it.

    Args:
        func (Callable): of a :class:`~cocoseg.shepherd.statspec.UserStat`.

    Returns:
        tuple[Callable, bool]: the function itself.

    Example:
        >>> from cocoseg.shepherd.user_stats import load_function, variogram
        >>> load_function(max), load_function(variogram(1).func)[1]
        ((<built-in function max>, False), True)
    """
    from numba.extending import is_jitted
    if isinstance(func, _Lazy):
        func = func.load()
    return func, bool(is_jitted(func))
