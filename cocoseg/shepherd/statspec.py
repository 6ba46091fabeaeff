"""
What can be asked about segments: names of statistics, and functions of users.

A name is parsed once into a frozen :class:`Stat`; everything below works with
those, and nothing that is wrong gets past here.
"""
from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Callable

from cocoseg.errors import OptionError

# Of the valid pixels of a band: by running sums, and by sorting.
MOMENTS = ('count', 'min', 'max', 'mean', 'std')
ORDERS = ('median', 'mode', 'percentile')
# Of the shape, without an image; the columns of each.
SHAPES = {
    'area': ('area',),
    'area_crs': ('area_crs',),
    'bbox': ('bbox_y0', 'bbox_x0', 'bbox_y1', 'bbox_x1'),
    'centroid': ('centroid_x', 'centroid_y'),
    'centroid_crs': ('centroid_crs_x', 'centroid_crs_y'),
    'perimeter': ('perimeter',),
    'n_edge_pixels': ('n_edge_pixels',),
}
_IN_CRS = ('area_crs', 'centroid_crs')
_KNOWN = ("'count', 'min', 'max', 'mean', 'std', 'median', 'mode', 'percentile:P' or 'pP' with P "
          "in 0..100, 'variogram:D' with D at least 1; without an image "
          + ', '.join(repr(name) for name in SHAPES) + " and 'n_edge_pixels:4'")


@dataclass(frozen=True)
class UserStat:
    """
    A statistic of your own: a function of the pixels of one segment.

    ``func(x, y, values, param)`` returns a float. ``x`` and ``y`` are int64 of
    shape (n,), the pixel's column and row in the whole image, in raster order.
    ``values`` are float64 of shape (n,), of one band; or (n, B), if ``is_joint``,
    of all bands. Pixels without a valid value are left out, and a segment
    without any is not asked about. Do not write to the arrays.

    A function that is compiled by ``numba.njit`` is called from compiled code,
    any other from Python, about a hundred times slower for small segments.

    Args:
        func (Callable): as above.
        param (object): is handed through; for a compiled function what numba
            takes, such as a number, a tuple of numbers, or an array.
        is_joint (bool): one column from all bands, of pixels that are valid in
            each of them, instead of one column per band.

    Example:
        >>> from cocoseg.shepherd.statspec import UserStat
        >>> def compute_range(x, y, values, param):
        ...     return values.max() - values.min()
        >>> UserStat(compute_range).is_joint
        False
    """

    func: Callable[[Any, Any, Any, Any], float]
    param: Any = None
    is_joint: bool = False

    def __post_init__(self):
        if not callable(self.func):
            raise OptionError(f'UserStat got {self.func!r}, which is no function; give '
                              'func(x, y, values, param)')


@dataclass(frozen=True)
class Stat:
    """
    One statistic that is wanted, parsed.

    Attributes:
        column (str): begin of the names of its columns.
        kind (str): of :data:`MOMENTS`, :data:`ORDERS` or :data:`SHAPES`, or 'user'.
        percent (float | None): of a percentile or median.
        neighbors (int | None): of 'n_edge_pixels', 4 or 8.
        user (UserStat | None): of 'user'.
    """

    column: str
    kind: str
    percent: float | None = None
    neighbors: int | None = None
    user: UserStat | None = None

    @property
    def is_shape(self):
        """True if no image is needed."""
        return self.kind in SHAPES

    @property
    def is_joint(self):
        """True if one column is from all bands."""
        return self.user is not None and self.user.is_joint

    @property
    def is_in_crs(self):
        """True if a geotransform is needed."""
        return self.kind in _IN_CRS

    @property
    def shape_columns(self):
        """Names of the columns of a statistic of the shape."""
        return tuple(self.column + name[len(self.kind):] for name in SHAPES[self.kind])


def parse_stat(spec):
    """
    Parse one statistic.

    Args:
        spec (str | tuple[str, str | UserStat]): a name, or a name for the
            column and what is in it.

    Returns:
        Stat: frozen.

    Raises:
        OptionError: if it is unknown, or its number is outside its limits.

    Example:
        >>> from cocoseg.shepherd.statspec import parse_stat
        >>> parse_stat('percentile:90') == parse_stat('p90')
        True
        >>> parse_stat(('sum', 'total'))
        Traceback (most recent call last):
            ...
        cocoseg.errors.OptionError: the statistic 'total' is unknown; use 'count', 'min', 'max', \
'mean', 'std', 'median', 'mode', 'percentile:P' or 'pP' with P in 0..100, 'variogram:D' with D at \
least 1; without an image 'area', 'area_crs', 'bbox', 'centroid', 'centroid_crs', 'perimeter', \
'n_edge_pixels' and 'n_edge_pixels:4'
    """
    if isinstance(spec, str):
        return _parse_name(spec, None)
    if isinstance(spec, (tuple, list)) and len(spec) == 2 and isinstance(spec[0], str):
        column, what = spec
        if not column.strip():
            raise OptionError(f'the name of a column is empty, in {spec!r}')
        if isinstance(what, UserStat):
            return Stat(column, 'user', user=what)
        if isinstance(what, str):
            return _parse_name(what, column)
    raise OptionError(f'the statistic {spec!r} is neither a name nor a pair (column, name) or '
                      '(column, UserStat(func))')


def _parse_name(name, column):
    base, _, number = name.partition(':')
    match = re.fullmatch(r'p([0-9.]+)', name)
    if match:
        base, number = 'percentile', match[1]
    if base == 'percentile':
        percent = _parse_number(name, number, 0, 100)
        return Stat(column or f'p{percent:g}', base, percent=percent)
    if base == 'variogram':
        from cocoseg.shepherd.user_stats import variogram
        distance = _parse_number(name, number, 1, math.inf)
        return Stat(column or f'variogram{distance:g}', 'user', user=variogram(distance))
    if base == 'n_edge_pixels':
        if number not in ('', '4', '8'):
            raise OptionError(f'the statistic {name!r} counts 4 or 8 neighbors')
        neighbors = int(number or 8)
        return Stat(column or ('n_edge_pixels' if neighbors == 8 else 'n_edge_pixels4'), base,
                    neighbors=neighbors)
    if number == '' and ':' not in name and base in (*MOMENTS, *ORDERS, *SHAPES):
        return Stat(column or base, base, percent=50.0 if base == 'median' else None)
    raise OptionError(f'the statistic {name!r} is unknown; use {_KNOWN}')


def _parse_number(name, text, low, high):
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not low <= number <= high:
        limits = f'in {low}..{high}' if math.isfinite(high) else f'of at least {low}'
        raise OptionError(f'the statistic {name!r} needs a number {limits}, such as '
                          f'{name.partition(":")[0]}:{min(max(low, 10), high):g}')
    return number


def parse_stats(specs):
    """
    Parse the statistics that are wanted.

    Args:
        specs (str | Sequence): names, or pairs as for :func:`parse_stat`; or
            names in one string, with commas between them.

    Returns:
        tuple[Stat, ...]: in the same order.

    Raises:
        OptionError: if there is none, one is wrong, or two have one column.

    Example:
        >>> from cocoseg.shepherd.statspec import parse_stats
        >>> [stat.column for stat in parse_stats('mean, std,p2.5')]
        ['mean', 'std', 'p2.5']
    """
    if isinstance(specs, str):
        specs = [name.strip() for name in specs.split(',') if name.strip()]
    stats = tuple(parse_stat(spec) for spec in specs)
    if not stats:
        raise OptionError(f'stats={specs!r} asks for nothing; use {_KNOWN}')
    check_distinct([stat.column for stat in stats])
    return stats


def check_distinct(columns):
    """
    Raise OptionError if two columns would have one name.

    Names that differ in case only count as one, as they do in databases.

    Example:
        >>> from cocoseg.shepherd.statspec import check_distinct
        >>> check_distinct(['a', 'b'])
    """
    folded = [column.casefold() for column in [*columns, 'segment']]
    twice = sorted({column for column in columns if folded.count(column.casefold()) > 1})
    if twice:
        raise OptionError(f'columns {twice} would be there twice (the ids are in "segment"); '
                          'give each another name: (column, statistic)')
