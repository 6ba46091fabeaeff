"""
What a Shepherd segmentation is asked to do: one frozen, checked value.
"""
from __future__ import annotations

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Any

from cocoseg.errors import OptionError

INITS = ('k-means++', 'diagonal')
COMPATS = (None, 'pyshepseg')


@dataclass(frozen=True)
class ShepherdConfig:
    """
    Options of a Shepherd segmentation.

    The names of pyshepseg's arguments are in
    ``docs/howto/migrate_from_pyshepseg.rst`` beside these. With
    ``compat='pyshepseg'`` the labels are those of pyshepseg 2.0.3 for the same
    cluster centres, with its treatment of null pixels, its sampling for the
    fit, and its stitching of tiles. The default mends these:

    * a valid pixel never becomes null, and a null pixel never becomes valid;
    * segments below ``min_segment_size`` are merged until only those are left
      whose every neighbour is beyond ``max_spectral_diff``, or that have none;
    * a uniform region is one segment, however large;
    * the clusters are fitted to fewer pixels from a better start.

    Args:
        n_clusters (int): of the k-means that colours are reduced to, 2..65535.
        min_segment_size (int): px, at least 1; smaller segments are merged. 1
            merges nothing, but with ``compat`` single pixels.
        max_spectral_diff (float | str | None): largest distance between the
            means of segments that are merged, in units of the image. 'auto'
            is a percentile of the distances between cluster centres; None is
            ten times the largest of them, which is no limit.
        spectral_percentile (float): that percentile, 0..100.
        four_connected (bool): pixels touch at edges; False: also at corners.
        init (str): where the k-means begins: 'k-means++', or 'diagonal', evenly
            from the least to the largest values of the bands, which needs no
            random numbers.
        sample_percent (float | None): share of the valid pixels that the
            k-means is fitted to, above 0, at most 100. With ``compat`` None is
            pyshepseg's: every 100th pixel of an image, about a million of a
            raster.
        n_samples (int | None): number of such pixels instead of their share.
            None, without a share, is enough for a good fit. Not with ``compat``.
        seed (int): of the random choices of the fit.
        compat (str | None): None, or 'pyshepseg'.

    Raises:
        OptionError: for a value outside these limits.

    Example:
        >>> from cocoseg import ShepherdConfig
        >>> config = ShepherdConfig(n_clusters=20, min_segment_size=30)
        >>> config.patch(compat='pyshepseg').is_compat, config.is_compat
        (True, False)
    """

    n_clusters: int = 60
    min_segment_size: int = 50
    max_spectral_diff: float | str | None = 'auto'
    spectral_percentile: float = 50
    four_connected: bool = True
    init: str = 'k-means++'
    sample_percent: float | None = None
    n_samples: int | None = None
    seed: int = 0
    compat: str | None = None

    def __post_init__(self):
        _check_whole('n_clusters', self.n_clusters, 2, 65535)
        _check_whole('min_segment_size', self.min_segment_size, 1)
        _check_whole('seed', self.seed, 0, 2 ** 32 - 1)
        limit = self.max_spectral_diff
        if limit not in ('auto', None):
            _check_number('max_spectral_diff', limit, 0, math.inf, "or 'auto', or None")
        _check_number('spectral_percentile', self.spectral_percentile, 0, 100)
        if not isinstance(self.four_connected, bool):
            raise OptionError(f'four_connected={self.four_connected!r} must be True or False')
        for name, choices in (('init', INITS), ('compat', COMPATS)):
            if getattr(self, name) not in choices:
                raise OptionError(f'{name}={getattr(self, name)!r} is unknown; use one of '
                                  f'{choices}')
        if self.sample_percent is not None:
            _check_number('sample_percent', self.sample_percent, 0, 100)
            if self.sample_percent == 0:
                raise OptionError('sample_percent=0 leaves no pixel to fit clusters to')
        if self.n_samples is not None:
            _check_whole('n_samples', self.n_samples, self.n_clusters)
            if self.sample_percent is not None or self.is_compat:
                raise OptionError(f'n_samples={self.n_samples} excludes sample_percent and '
                                  'compat; give one of them')

    @property
    def is_compat(self) -> bool:
        """True if the labels are to be those of pyshepseg."""
        return self.compat is not None

    def patch(self, **changes: Any) -> ShepherdConfig:
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)


def _check_whole(name, value, low, high=None):
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or value < low or (high is not None and value > high):
        limits = f'at least {low}' if high is None else f'in {low}..{high}'
        raise OptionError(f'{name}={value!r} must be a whole number, {limits}')


def _check_number(name, value, low, high, otherwise=''):
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        raise OptionError(f'{name}={value!r} must be a number in {low}..{high}{otherwise and ", "}'
                          f'{otherwise}')
