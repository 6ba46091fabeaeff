"""
The pictures of one image in a report: which there are, and how they are drawn.

A layer is an asset, or a band of it. It is read by :mod:`cocoseg.coco.report_read`, and
how arrays become colors is for :mod:`cocoseg.coco.drawing`. What cannot be read becomes
a picture that says why.
"""
from __future__ import annotations

import errno
import logging
import math
import os
import re
from dataclasses import dataclass, replace

import numpy as np

from cocoseg.coco.drawing import (draw_classes, draw_heatmap, draw_segments, list_stops,
                                  make_legend, stretch_photo)
from cocoseg.coco.manifest import list_channels
from cocoseg.coco.report_read import read_nearest, read_smooth
from cocoseg.errors import CocosegError

logger = logging.getLogger(__name__)

_N_BINS = 48
_PHOTO_BANDS = (('red', 'green', 'blue'), ('r', 'g', 'b'), ('R', 'G', 'B'),
                ('B04', 'B03', 'B02'), ('B4', 'B3', 'B2'))
_STD, _MASK = re.compile(r'_std(\.\d+)?$'), re.compile(r'_mask(\.\d+)?$')
_COVERAGE = ('predicted', 'nothing predicted', 'not reached')
_COVERAGE_COLORS = ('#009e73', '#e69f00', '#3a3a44')
_MASK_NAMES = ('off', 'on')
_MASK_COLORS = ('#2b2b33', '#f0e442')
_LEAST_OUTLINED = 30  # pixels of a picture per segment, below which lines hide all


# ---- values ----------------------------------------------------------------

@dataclass(frozen=True)
class Histogram:
    """
    How values are distributed over a picture.

    Attributes:
        low, high (float): least and largest finite value.
        mean (float): of the finite values.
        counts (tuple[int, ...]): pixels in bins of equal width.
        n_invalid (int): pixels without a finite value.

    Example:
        >>> found = Histogram.of(np.array([[0.0, 1.0, 1.0, np.nan]]))
        >>> found.low, found.high, found.counts[0], found.counts[-1], found.n_invalid
        (0.0, 1.0, 1, 2, 1)
        >>> Histogram.of(np.full((2, 2), np.nan))
    """

    low: float
    high: float
    mean: float
    counts: tuple[int, ...]
    n_invalid: int

    @classmethod
    def of(cls, values):
        """Return the histogram of an array, or None if no value is finite."""
        finite = np.asarray(values, np.float64)
        finite = finite[np.isfinite(finite)]
        if not finite.size:
            return None
        low, high = float(finite.min()), float(finite.max())
        counts = ([int(finite.size)] if low == high else
                  np.histogram(finite, _N_BINS, (low, high))[0].tolist())
        return cls(low, high, float(finite.mean()), tuple(counts),
                   int(np.size(values) - finite.size))


@dataclass(frozen=True)
class Picture:
    """
    One layer of an image, drawn.

    Attributes:
        kind (str): 'photo', 'heat', 'classes', 'mask', 'disagreement',
            'segments' or 'coverage'.
        title (str): for people; names in it come from a manifest.
        pixels (ndarray | None): uint8 RGB, shape (h, w, 3); None if there
            is a problem.
        legend (tuple[tuple[str, str, float], ...]): name, color and share of
            the pixels that are of any class.
        ramp (tuple): (fraction, color) of a heatmap, lowest first.
        minmax (tuple[float, float] | None): values at the ends of the ramp.
        histogram (Histogram | None): of the true values.
        detail (str): what else is to be said.
        problem (str | None): why there is no picture.
    """

    kind: str
    title: str
    pixels: np.ndarray | None = None
    legend: tuple = ()
    ramp: tuple = ()
    minmax: tuple | None = None
    histogram: Histogram | None = None
    detail: str = ''
    problem: str | None = None


@dataclass(frozen=True)
class LayerPlan:
    """
    An asset that becomes one picture, or one per channel.

    Attributes:
        kind (str): of its pictures.
        names (tuple[str, ...]): its channels; () for an input that has none.
        path (str): of its (first) file, absolute.
        asset (dict): its entry in the manifest; not modified.
        problem (str | None): what is wrong with the file.
        bands (tuple): (path, band, entry) of each channel of a photo, which
            may be in several files.
    """

    kind: str
    names: tuple[str, ...]
    path: str
    asset: dict
    problem: str | None = None
    bands: tuple = ()

    @property
    def title(self):
        """The channels, for people."""
        return ', '.join(self.names) or os.path.basename(self.path)


@dataclass(frozen=True)
class DrawOptions:
    """
    How pictures are made.

    Attributes:
        max_side (int): longest side, px.
        max_channels (int): at most so many pictures of one asset.
        cmap (str): colormap of heatmaps.
    """

    max_side: int = 768
    max_channels: int = 12
    cmap: str = 'magma'


# ---- which layers there are ------------------------------------------------

def plan_layers(img, checks):
    """
    Return the layers of an image, the photo first.

    Args:
        img (dict): kwcoco image; not modified.
        checks (Sequence[AssetCheck]): of each file that it names, in the order
            of :func:`~cocoseg.coco.audit.audit_manifest`.

    Returns:
        list[LayerPlan]: those with a file.

    Example:
        >>> from cocoseg.coco.audit import AssetCheck
        >>> img = {'id': 1, 'assets': [{'file_name': 'a.tif', 'channels': 'r|g|b'}]}
        >>> [plan.title for plan in plan_layers(img, [AssetCheck('/a.tif', 1, 'skipped')])]
        ['r, g, b']
    """
    assets = [asset for asset in (img, *(img.get('assets') or ()), *(img.get('auxiliary') or ()))
              if asset.get('file_name')]
    pairs = list(zip(assets, checks))
    ours = {id(asset) for asset, check in pairs if is_ours(check)}
    # Without its journal a layer is known by where it lies, and what is said of it.
    folders = {os.path.dirname(check.path) for asset, check in pairs if id(asset) in ours}
    ours |= {id(asset) for asset, check in pairs
             if os.path.dirname(check.path) in folders and _looks_like_layer(asset)}
    photo = _plan_photo([pair for pair in pairs if id(pair[0]) not in ours])
    plans = [] if photo is None else [photo]
    for asset, check in pairs:
        if id(asset) in ours:
            is_lost = check.status == 'bad' or _is_remote(check.path)
            problem = check.problem if is_lost else None
            plans.append(LayerPlan(_find_kind(asset, check.path, problem),
                                   _split(asset.get('channels')), check.path, asset, problem))
    order = ('photo', 'heat', 'classes', 'mask', 'disagreement', 'segments')
    return sorted(plans, key=lambda plan: order.index(plan.kind))


def is_ours(check):
    """
    Return True if an audit looked at a file as one of ours.

    Args:
        check (AssetCheck): what it found.
    """
    return check.status != 'skipped' or check.problem is not None


def _looks_like_layer(asset):
    names = _split(asset.get('channels'))
    return (any(asset.get(key) is not None for key in ('quantization', 'nodata', 'categories'))
            or bool(names) and all(_STD.search(name) for name in names))


def _is_remote(path):
    """Return True for a file that only the network has, where a report does not go."""
    return '://' in path or path.startswith('/vsi')


def _split(spec):
    try:
        return tuple(list_channels(spec)) if spec else ()
    except (ValueError, TypeError, AttributeError):
        return (str(spec),)


def _find_kind(asset, path, problem):
    """Return what is in one of our assets, by its entry and the type of its samples."""
    from cocoseg.io.raster import raster_info
    names = _split(asset.get('channels'))
    if asset.get('categories'):
        return 'classes'
    if names and all(_STD.search(name) for name in names):
        return 'disagreement'
    if asset.get('quantization') or asset.get('nodata') is None:
        return 'heat'
    if names and all(_MASK.search(name) for name in names):
        return 'mask'
    try:
        return 'mask' if not problem and raster_info(path).dtype == 'uint8' else 'segments'
    except (CocosegError, OSError):
        # Drawing it will tell.
        return 'segments'


def _plan_photo(inputs):
    """Return what shows the image itself best, or None."""
    local = [(asset, check) for asset, check in inputs if not _is_remote(check.path)]
    owners = {name: (check.path, band, asset) for asset, check in reversed(local)
              for band, name in enumerate(_split(asset.get('channels')))}
    if not local:
        return None
    first = _split(local[0][0].get('channels'))
    names = next((names for names in _PHOTO_BANDS if all(name in owners for name in names)),
                 first[:3] if len(first) > 2 else first[:1])
    bands = tuple(owners[name] for name in names)
    path, _, asset = bands[0] if bands else (local[0][1].path, 0, local[0][0])
    return LayerPlan('photo', names, path, asset, bands=bands)


# ---- how they are drawn ----------------------------------------------------

def draw_layers(img, plans, grid, options):
    """
    Draw the layers of an image, and where windows reached.

    Args:
        img (dict): kwcoco image; not modified.
        plans (Sequence[LayerPlan]): of :func:`plan_layers`, the photo first.
        grid (Grid): of the pictures.
        options (DrawOptions): how.

    Returns:
        tuple[list[Picture], list[str]]: the pictures, all of one shape, and
        notes about what is not shown.
    """
    told = [plan.asset['categories'] for plan in plans if plan.kind == 'classes']
    artist = _Artist(img, grid, options, told)
    pictures = [picture for plan in plans for picture in artist.draw(plan)]
    coverage = _guard(Picture('coverage', 'coverage'), artist.draw_coverage)
    return [*pictures, *coverage], artist.notes


def _guard(failed, draw, *args):
    """Return the pictures that are drawn, or one that says why there are none."""
    try:
        return draw(*args)
    except (CocosegError, OSError) as ex:
        reason = getattr(ex, 'strerror', None) or str(ex)
    except Exception as ex:
        # Readers of formats fail in any way, and one file must not take the page along.
        logger.debug('%s of %s cannot be drawn', failed.kind, failed.title, exc_info=True)
        reason = f'{type(ex).__name__}: {ex}'
    return [replace(failed, problem=f'it cannot be read: {reason}')]


class _Artist:
    """Draw the layers of one image; knows the photo below them, and where they have data."""

    def __init__(self, img, grid, options, told=()):
        self._img, self._grid, self._options = img, grid, options
        # Names of the classes of which there is a map already.
        self._told = told
        self._photo = self._valid = None
        self.notes = []

    def draw(self, plan):
        """Return the pictures of a layer."""
        failed = Picture(plan.kind, plan.title, problem=plan.problem)
        if plan.problem:
            return [failed]
        return _guard(failed, getattr(self, f'_draw_{plan.kind}'), plan)

    def _limit(self, plan):
        """Return (band, channel) of those that are drawn."""
        shown = list(enumerate(plan.names))[:self._options.max_channels]
        if len(shown) < len(plan.names):
            self.notes.append(f'{len(shown)} of the {len(plan.names)} channels of '
                              f'{os.path.basename(plan.path)} are shown')
        return shown

    def _add_valid(self, valid):
        self._valid = valid if self._valid is None else self._valid | valid

    # ---- values that can be averaged ---------------------------------------

    def _read(self, path, bands, asset):
        if not os.path.isfile(path):
            raise FileNotFoundError(errno.ENOENT, 'there is no such file', path)
        return read_smooth(path, bands, self._grid, asset.get('warp_aux_to_img'),
                           asset.get('quantization'))

    def _draw_photo(self, plan):
        if len({path for path, _, _ in plan.bands}) > 1:
            values = np.concatenate([self._read(path, [band], asset)
                                     for path, band, asset in plan.bands], axis=2)
        else:
            bands = [band for _, band, _ in plan.bands] or None
            values = self._read(plan.path, bands, plan.asset)
        self._photo = stretch_photo(values if values.shape[2] == 3 else values[..., 0])
        return [Picture('photo', plan.title, self._photo,
                        detail='stretched from the 1st to the 99th percentile')]

    def _draw_heat(self, plan):
        bands = self._limit(plan)
        values = self._read(plan.path, [band for band, _ in bands], plan.asset)
        code = plan.asset.get('quantization') or {}
        minmax = _as_range(code.get('orig_min'), code.get('orig_max'))
        pictures = [self._draw_values('heat', name, values[..., place], minmax,
                                      self._options.cmap)
                    for place, (_, name) in enumerate(bands)]
        self._add_valid(np.isfinite(values).any(axis=2))
        is_told = list(plan.names) in self._told
        if minmax == (0, 1) and 2 <= len(plan.names) == len(bands) and not is_told:
            pictures.append(_draw_largest(plan.names, values))
        return pictures

    def _draw_disagreement(self, plan):
        bands = self._limit(plan)
        values = self._read(plan.path, [band for band, _ in bands], plan.asset)
        # One scale for all channels. Few pixels differ much, and would leave the rest dark.
        positive = values[np.isfinite(values) & (values > 0)]
        top = float(np.percentile(positive, 99)) if positive.size else 1.0
        return [self._draw_values('disagreement', name, values[..., place], (0.0, top), 'viridis')
                for place, (_, name) in enumerate(bands)]

    @staticmethod
    def _draw_values(kind, name, values, minmax, cmap):
        histogram = Histogram.of(values)
        if minmax is None:
            minmax = (0.0, 1.0) if histogram is None else (histogram.low, histogram.high)
        return Picture(kind, name, draw_heatmap(values, minmax=minmax, cmap=cmap),
                       ramp=tuple(list_stops(cmap)), minmax=minmax, histogram=histogram,
                       detail='' if histogram else 'no pixel has data')

    # ---- values that cannot -------------------------------------------------

    def _pick(self, plan, band):
        return read_nearest(plan.path, band, self._grid, plan.asset.get('warp_aux_to_img'),
                            plan.asset.get('nodata'))

    def _draw_classes(self, plan):
        values = self._pick(plan, 0)
        self._add_valid(np.isfinite(values))
        names = [str(name) for name in plan.asset['categories']]
        return [_make_classes('classes', plan.title, values, names)]

    def _draw_mask(self, plan):
        # Of a validity mask 0 is nodata, too.
        return [_make_classes('mask', name, np.where(np.isnan(found), np.nan, found > 0),
                              _MASK_NAMES, _MASK_COLORS)
                for found, name in ((self._pick(plan, band), name)
                                    for band, name in self._limit(plan))]

    def _draw_segments(self, plan):
        labels = np.nan_to_num(self._pick(plan, 0)).astype(np.int64)
        self._add_valid(labels > 0)
        n_labels = np.unique(labels[labels > 0]).size
        is_fine = n_labels * _LEAST_OUTLINED > labels.size
        pixels = draw_segments(labels, background=self._photo,
                               outline=None if is_fine else 'white', alpha=0.55)
        return [Picture('segments', plan.title, pixels, detail=(
            f'{n_labels:,} segments seen at this size, highest id {labels.max(initial=0):,}'))]

    def draw_coverage(self):
        """Return the picture of where windows reached, and where they found data."""
        region, shape = self._img.get('prediction_region'), self._grid.shape
        if region is None and self._valid is None:
            return []
        reached = np.ones(shape, bool) if region is None else draw_region(region, self._grid)
        classes = np.where(reached, 1, 2)
        if self._valid is not None:
            classes[self._valid] = 0
        detail = ('the manifest has no prediction_region, so what no window reached is not told'
                  if region is None else '')
        if self._valid is None:
            detail = 'no prediction can be read, so what was predicted is not known'
        picture = _make_classes('coverage', 'coverage', classes, _COVERAGE, _COVERAGE_COLORS)
        return [replace(picture, detail=detail)]


def _as_range(low, high):
    """Return two finite numbers in order, or None."""
    is_right = all(isinstance(value, (int, float)) and math.isfinite(value)
                   for value in (low, high)) and low < high
    return (low, high) if is_right else None


def _make_classes(kind, title, classes, names, colors=None):
    """Return the picture of classes, with their shares."""
    inside = np.isfinite(classes) & (classes >= 0) & (classes < len(names))
    counts = np.bincount(classes[inside].astype(np.intp), minlength=len(names))
    legend = tuple((name, color, count / max(inside.sum(), 1)) for (name, color), count
                   in zip(make_legend(names, colors), counts.tolist()))
    return Picture(kind, title, draw_classes(classes, names, colors=colors), legend=legend,
                   detail='' if inside.any() else 'no pixel has data')


def _draw_largest(names, values):
    """Return the picture of which channel is largest, where an asset does not tell."""
    valid = np.isfinite(values).all(axis=2)
    classes = np.where(valid, np.where(valid[..., None], values, 0).argmax(axis=2), -1)
    picture = _make_classes('classes', 'largest channel', classes, names)
    return replace(picture, detail=picture.detail or 'computed for this page from the channels')


def draw_region(region, grid):
    """
    Return which pixels of a picture a GeoJSON region covers.

    Args:
        region (dict): MultiPolygon in image space, px.
        grid (Grid): of the picture.

    Returns:
        ndarray: bool, shape (h, w).

    Example:
        >>> square = [[[0, 0], [20, 0], [20, 40], [0, 40], [0, 0]]]
        >>> region = {'type': 'MultiPolygon', 'coordinates': [square]}
        >>> from cocoseg.coco.report_read import Grid
        >>> draw_region(region, Grid((2, 4), (40, 40))).astype(int).tolist()
        [[1, 1, 0, 0], [1, 1, 0, 0]]
    """
    import shapely
    height, width = grid.shape
    scale = np.array(grid.scale_xy)
    shape = shapely.transform(shapely.geometry.shape(region), lambda points: points * scale)
    shapely.prepare(shape)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.asarray(shapely.contains_xy(shape, columns, rows))
