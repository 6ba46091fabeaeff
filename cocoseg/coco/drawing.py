"""
Draw arrays: labels, values and classes become RGB pictures.

Arrays come in, (H, W, 3) uint8 pictures go out; no file is read or written. Here alone it
is decided which color an id or a class has, how a photograph is stretched, and which
pixels are an edge. Legends are plain data, so that a page and a plot show the same.
"""
from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cocoseg.errors import MissingDependencyError, OptionError

#: Where there is no data, and nothing lies below.
NODATA_COLOR = (128, 128, 128)
#: Where there is no segment, and nothing lies below.
EMPTY_COLOR = (24, 24, 28)

# Okabe and Ito's colors; blue, green and orange first, as water, plants and bare ground.
_PALETTE = np.array([
    (0, 114, 178), (0, 158, 115), (230, 159, 0), (204, 121, 167),
    (240, 228, 66), (86, 180, 233), (213, 94, 0), (0, 0, 0)], np.uint8)
_NAMED = {'black': '#000000', 'white': '#ffffff'}
# Of matplotlib's colormaps those that OpenCV, which is always there, holds as well.
_OPENCV_MAPS = ('cividis', 'inferno', 'magma', 'plasma', 'turbo', 'viridis')
# Fractions of 2 ** 64: golden ratio, and 1 / p and 1 / p ** 2 of p ** 3 = p + 1.
_STEPS = tuple(map(np.uint64, (0x9E3779B97F4A7C15, 0xC13FA9A902A6328F, 0x91E10DA5C79E7B1D)))
# Pixels that are treated at a time.
_CHUNK = 2 ** 21


def color_ids(ids, seed=0):
    """
    Return a bright color per id, always the same for the same id.

    Hue, saturation and brightness advance by irrational parts from one id to
    the next ([Knuth]_ 6.4, [Roberts]_), in whole numbers, so that large ids
    lose nothing. Near ids have far hues; that two ids have one color is rare.

    Args:
        ids (ndarray): whole numbers, >= 0, shape (n,).
        seed (int): another one gives other colors.

    Returns:
        ndarray: uint8 RGB, shape (n, 3).

    References:
        .. [Knuth] D. Knuth, The Art of Computer Programming 3, 1998.
        .. [Roberts] M. Roberts, The unreasonable effectiveness of quasirandom
           sequences, 2018. <https://extremelearning.com.au/>

    Example:
        >>> from cocoseg.coco.drawing import color_ids
        >>> assert (color_ids(np.array([7])) == color_ids(np.arange(9))[7]).all()
    """
    with np.errstate(over='ignore'):
        # Wraps around, which is what takes the whole part away.
        keys = np.asarray(ids).astype(np.uint64) + np.uint64(seed % 2 ** 32) * _STEPS[1]
        hue, saturation, value = (
            ((keys * step) >> np.uint64(40)).astype(np.float32) / np.float32(2 ** 24)
            for step in _STEPS)
    value = 0.7 + 0.3 * value
    chroma = value * (0.45 + 0.5 * saturation)
    colors = np.empty((len(keys), 3), np.uint8)
    for band, shift in enumerate((5, 3, 1)):
        place = (shift + 6 * hue) % 6
        colors[:, band] = np.rint(
            255 * (value - chroma * np.clip(np.minimum(place, 4 - place), 0, 1)))
    return colors


def color_classes(n_classes):
    """
    Return a color per class; the first eight suit color-blind eyes.

    Those are of [OkabeIto]_, black last. Then come lighter and darker kinds of
    the first seven, and from 22 on the colors of ids: nobody can tell so many
    apart. More classes never change the colors of the first ones.

    Returns:
        ndarray: uint8 RGB, shape (n_classes, 3).

    References:
        .. [OkabeIto] M. Okabe, K. Ito, Color universal design, 2008.
           <https://jfly.uni-koeln.de/color/>

    Example:
        >>> from cocoseg.coco.drawing import color_classes
        >>> color_classes(2).tolist()
        [[0, 114, 178], [0, 158, 115]]
    """
    hues = _PALETTE[:-1].astype(np.float32)
    kinds = [_PALETTE, 255 - (255 - hues) * 0.45, hues * 0.55]
    colors = np.concatenate([np.rint(kind).astype(np.uint8) for kind in kinds])
    more = color_ids(np.arange(len(colors), max(n_classes, len(colors))))
    return np.concatenate([colors, more])[:n_classes]


def make_legend(names, colors=None):
    """
    Return names and their colors, as plain data.

    Args:
        names (Sequence[str]): of classes, in order.
        colors (Sequence | None): a color for each; :func:`color_classes` by
            default.

    Example:
        >>> from cocoseg.coco.drawing import make_legend
        >>> make_legend(['water', 'land'])
        [('water', '#0072b2'), ('land', '#009e73')]
    """
    table = _read_colors(names, colors)
    return [(str(name), as_hex(color)) for name, color in zip(names, table)]


def as_hex(color):
    """
    Return a color, as all functions here take them, as text.

    That is as '#rrggbb', 'white', 'black', or (r, g, b) of 0..255; an
    OptionError for anything else.

    Example:
        >>> from cocoseg.coco.drawing import as_hex
        >>> as_hex((0, 128, 255)), as_hex('white')
        ('#0080ff', '#ffffff')
    """
    return '#{:02x}{:02x}{:02x}'.format(*_as_rgb(color))


def _as_rgb(color):
    """Return a color as three numbers, 0..255."""
    if isinstance(color, str):
        text = _NAMED.get(color, color)
        if re.fullmatch('#[0-9a-fA-F]{6}', text):
            return tuple(bytes.fromhex(text[1:]))
    else:
        numbers = np.asarray(color)
        if numbers.shape == (3,) and numbers.dtype.kind in 'iu' and (
                0 <= numbers.min() and numbers.max() <= 255):
            return tuple(numbers.tolist())
    raise OptionError(f"{color!r} is no color; give '#rrggbb', 'white', 'black', or three whole "
                      'numbers 0..255')


def make_ramp(cmap):
    """
    Return the colors of a colormap, lowest first: uint8, shape (256, 3).

    Args:
        cmap (str): name of a colormap of matplotlib. For 'cividis', 'inferno',
            'magma', 'plasma', 'turbo' and 'viridis' it need not be installed.

    Raises:
        OptionError: if there is none of this name.
        MissingDependencyError: for others, without matplotlib.

    Example:
        >>> from cocoseg.coco.drawing import make_ramp
        >>> make_ramp('viridis')[[0, 255]].tolist()
        [[68, 1, 84], [253, 231, 37]]
    """
    if cmap in _OPENCV_MAPS:
        import cv2
        codes = np.arange(256, dtype=np.uint8)[:, None]
        code = getattr(cv2, f'COLORMAP_{cmap.upper()}')
        return np.ascontiguousarray(cv2.applyColorMap(codes, code)[:, 0, ::-1])
    try:
        from matplotlib import colormaps
    except ImportError as ex:
        raise MissingDependencyError(
            f'matplotlib is needed for cmap={cmap!r}, and cannot be imported: {ex}. Install it by '
            f'`pip install cocoseg[report]`, or use one of {_OPENCV_MAPS}') from ex
    if cmap not in list(colormaps):
        raise OptionError(f"cmap={cmap!r} is no colormap of matplotlib; use one such as 'magma', "
                          "'viridis' or 'RdBu'")
    return np.rint(colormaps[cmap](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


def list_stops(cmap, n_stops=9):
    """
    Return [(fraction of the range, '#rrggbb'), ...] of a colormap.

    Nine come close to the whole map, see :func:`make_ramp`.

    Example:
        >>> from cocoseg.coco.drawing import list_stops
        >>> list_stops('magma', 3)
        [(0.0, '#000004'), (0.5, '#b73779'), (1.0, '#fcfdbf')]
    """
    ramp = make_ramp(cmap)
    return [(float(place), as_hex(ramp[round(place * 255)]))
            for place in np.linspace(0, 1, n_stops)]


def find_edges(labels):
    """
    Return where lines between labels (H, W) run, one pixel wide.

    Between two segments the line is on the right or lower one; around a
    segment in the background (0) it is on the segment. None is at the border.

    Example:
        >>> from cocoseg.coco.drawing import find_edges
        >>> find_edges(np.array([[4, 4, 7, 7, 7, 0, 0]])).astype(int).tolist()
        [[0, 0, 1, 0, 1, 0, 0]]
    """
    edges = np.zeros(labels.shape, bool)
    covered = labels > 0
    for first, last in (((slice(None), slice(1, None)), (slice(None), slice(-1))),
                        ((slice(1, None),), (slice(-1),))):
        differs = labels[first] != labels[last]
        edges[first] |= differs
        edges[last] |= differs & ~covered[first]
    edges &= covered
    return edges


def stretch_photo(photo, *, percentiles=(1, 99)):
    """
    Draw bands so that most of their values fit, and hues stay true.

    Args:
        photo (ndarray): real, shape (H, W, 3), or (H, W) or (H, W, 1) for gray;
            NaN or infinite without data. One stretch for all bands.
        percentiles (tuple[float, float]): which values become 0 and 255.

    Returns:
        ndarray: uint8 RGB, shape (H, W, 3); gray (128) where a band has no
            data, black if all is equal.

    Raises:
        OptionError: for another shape, or percentiles that are not in order.

    Example:
        >>> from cocoseg.coco.drawing import stretch_photo
        >>> stretch_photo(np.array([[10.0, 20, np.nan]]))[0, :, 0].tolist()
        [0, 255, 128]
    """
    photo = np.asarray(photo)
    photo = photo[..., None] if photo.ndim == 2 else photo
    if photo.ndim != 3 or photo.shape[2] not in (1, 3) or photo.dtype.kind not in 'biuf':
        raise OptionError(f'a photo has shape (H, W), (H, W, 1) or (H, W, 3) and real values, not '
                          f'{photo.shape} and {photo.dtype}; choose its bands')
    if not 0 <= percentiles[0] < percentiles[1] <= 100:
        raise OptionError(f'percentiles={percentiles} must be two that ascend, in 0..100')
    valid = np.isfinite(photo).all(axis=2)
    canvas = np.full((*valid.shape, 3), NODATA_COLOR, np.uint8)
    if valid.any():
        values = photo[valid].astype(np.float64)
        low, high = np.percentile(values, percentiles)
        canvas[valid] = _as_codes((values - low) / max(high - low, 1e-9))
    return canvas


def pick_minmax(values):
    """
    Return 2 % to 98 % of the finite values; (0, 1) if there is none.

    Example:
        >>> from cocoseg.coco.drawing import pick_minmax
        >>> pick_minmax(np.append(np.arange(101.0), np.nan))
        (2.0, 98.0)
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    return tuple(np.percentile(finite, [2, 98]).tolist()) if finite.size else (0.0, 1.0)


def draw_heatmap(values: np.ndarray, *, background: np.ndarray | None = None,
                 minmax: tuple[float, float] | None = None, cmap: str = 'magma',
                 alpha: float = 0.7) -> np.ndarray:
    """
    Draw one number per pixel through a colormap.

    Args:
        values (ndarray): real, (H, W) or (H, W, 1). NaN is transparent; infinity is as the ends.
        background (ndarray | None): uint8 RGB, shape (H, W, 3), such as of
            :func:`stretch_photo`; else NaN is gray (128).
        minmax (tuple[float, float] | None): values at the ends of the colormap; outside is clipped.
            None is :func:`pick_minmax`. If both are equal, that value has the color of the middle.
        cmap (str): as for :func:`make_ramp`.
        alpha (float): opacity over the background, 0..1; 1 without one.

    Returns:
        ndarray: uint8 RGB, shape (H, W, 3).

    Raises:
        OptionError: for arrays or options that do not fit.
        MissingDependencyError: if the colormap needs matplotlib.

    Example:
        >>> from cocoseg.coco.drawing import draw_heatmap
        >>> draw_heatmap(np.array([[0, 1, np.nan]]), minmax=(0, 1))[0].tolist()
        [[0, 0, 4], [252, 253, 191], [128, 128, 128]]
    """
    values = _as_plane(values, 'values', 'biuf')
    _check_options(values.shape, background, alpha)
    ramp = make_ramp(cmap)
    low, high = pick_minmax(values) if minmax is None else _check_minmax(minmax)
    picture, invalid = np.empty((*values.shape, 3), np.uint8), np.isnan(values)
    for rows in _iter_rows(values.shape):
        part = np.where(invalid[rows], 0, values[rows]).astype(np.float64)
        fractions = ((part - low) / (high - low) if high > low
                     else 0.5 + 0.5 * np.sign(part - low))
        np.take(ramp, _as_codes(fractions), axis=0, out=picture[rows])
    return _lay_over(picture, background, alpha, invalid, NODATA_COLOR)


def draw_segments(labels: np.ndarray, *, background: np.ndarray | None = None,
                  colors: str | np.ndarray | None = None,
                  outline: str | Sequence[int] | None = 'white', alpha: float = 0.6,
                  seed: int = 0) -> np.ndarray:
    """
    Draw segments, each in the color of its id, with lines between them.

    An id has the same color in every picture (:func:`color_ids`). If neighbors
    have similar ones by chance, the line tells them apart.

    Args:
        labels (ndarray): whole numbers, >= 0, shape (H, W); 0 is background.
        background (ndarray | None): uint8 RGB, shape (H, W, 3), such as of
            :func:`stretch_photo`; else label 0 is nearly black.
        colors (str | ndarray | None): 'mean' fills each segment by the mean of the background
            in it; an array, uint8 (N + 1, 3), has the color of each id, which is at most N.
        outline (str | Sequence[int] | None): color of the lines, of
            :func:`find_edges`, which are opaque; None for none.
        alpha (float): opacity of the fill over the background, 0..1; 1 without one.
        seed (int): the same one gives the same colors of ids.

    Returns:
        ndarray: uint8 RGB, shape (H, W, 3).

    Raises:
        OptionError: for arrays or options that do not fit.

    Example:
        >>> from cocoseg.coco.drawing import draw_segments
        >>> labels = np.array([[0, 5, 5, 9, 9]])
        >>> draw_segments(labels)[0, :, 2].tolist()
        [28, 255, 40, 255, 188]
        >>> photo = np.full((1, 5, 3), [[[0], [10], [20], [30], [60]]], np.uint8)
        >>> draw_segments(labels, background=photo, colors='mean', outline=None,
        ...               alpha=1)[0, :, 0].tolist()
        [0, 15, 15, 45, 45]
    """
    labels = _as_plane(labels, 'labels', 'iu')
    if labels.min(initial=0) < 0:
        raise OptionError(f'labels go down to {labels.min()}; give ids from 1 on, and 0 for the '
                          'background')
    _check_options(labels.shape, background, alpha)
    line = None if outline is None else _as_rgb(outline)
    choose = _choose_colors(colors, labels, background, seed)
    picture = np.empty((*labels.shape, 3), np.uint8)
    for rows in _iter_rows(labels.shape):
        # A color per run of equal pixels: a table of all ids may be larger than the picture.
        flat = labels[rows].reshape(-1)
        starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))[:flat.size]
        lengths = np.diff(starts, append=flat.size)
        picture[rows].reshape(-1, 3)[:] = np.repeat(choose(flat[starts]), lengths, axis=0)
    picture = _lay_over(picture, background, alpha, labels == 0, EMPTY_COLOR)
    if line is not None:
        picture[find_edges(labels)] = line
    return picture


def draw_classes(classes: np.ndarray, names: Sequence[str], *, colors: Sequence | None = None,
                 background: np.ndarray | None = None, alpha: float = 1.0) -> np.ndarray:
    """
    Draw classes, each in its color; :func:`make_legend` is the legend.

    Args:
        classes (ndarray): places in ``names``, whole numbers, also as floats, shape (H, W) or
            (H, W, 1). Others, such as NaN, -1 or 255, are no class, and transparent.
        names (Sequence[str]): of the classes.
        colors (Sequence | None): as for :func:`make_legend`.
        background (ndarray | None): uint8 RGB, shape (H, W, 3); else no class is gray (128).
        alpha (float): opacity over the background, 0..1; 1 without one.

    Returns:
        ndarray: uint8 RGB, shape (H, W, 3).

    Raises:
        OptionError: for arrays or options that do not fit, or floats between
            two classes, as interpolation makes.

    Example:
        >>> from cocoseg.coco.drawing import draw_classes
        >>> draw_classes(np.array([[0, 1, 255]], 'u1'), ['water', 'land'])[0].tolist()
        [[0, 114, 178], [0, 158, 115], [128, 128, 128]]
    """
    classes = _as_plane(classes, 'classes', 'biuf')
    _check_options(classes.shape, background, alpha)
    table = _read_colors(names, colors)
    inside = (classes >= 0) & (classes < len(table))
    index = np.full(classes.shape, len(table))
    index[inside] = classes[inside]
    if (index[inside] != classes[inside]).any():
        raise OptionError("classes have values between two classes; read them with "
                          "interpolation='nearest'")
    table = np.append(table, np.array([NODATA_COLOR], np.uint8), axis=0)
    return _lay_over(table[index], background, alpha, ~inside, NODATA_COLOR)


def _iter_rows(shape):
    """Yield slices of rows that fit into the caches of a processor."""
    step = max(1, _CHUNK // max(shape[1], 1))
    for first in range(0, shape[0], step):
        yield slice(first, first + step)


def _as_codes(fractions):
    """Return 0..1 as 0..255, rounded; outside is clipped."""
    return np.rint(np.clip(fractions, 0, 1) * 255).astype(np.uint8)


def _lay_over(picture, background, alpha, holes, hole_color):
    """Return a picture over another one, which shows through the holes."""
    if background is None:
        picture[holes] = hole_color
        return picture
    import cv2
    picture = cv2.addWeighted(picture, alpha, np.ascontiguousarray(background), 1 - alpha, 0,
                              dst=picture) if picture.size else picture
    np.copyto(picture, background, where=holes[..., None])
    return picture


def _choose_colors(colors, labels, background, seed):
    """Return a function from ids to their colors."""
    if colors is None:
        return lambda ids: color_ids(ids, seed)
    top = int(labels.max(initial=0))
    if isinstance(colors, str) and colors == 'mean':
        if background is None:
            raise OptionError("colors='mean' needs the background whose mean is to be drawn; "
                              'give an RGB picture')
        if top < max(labels.size, 2 ** 16):
            table = _average(labels, background, top + 1)
            return lambda ids: table[ids]
        ids, index = np.unique(labels, return_inverse=True)
        table = _average(index.reshape(labels.shape), background, len(ids))
        return lambda found: table[np.searchsorted(ids, found)]
    table = np.asarray(colors)
    if table.dtype != np.uint8 or table.ndim != 2 or table.shape[1] != 3 or len(table) <= top:
        raise OptionError(f"colors must be None, 'mean', or uint8 (N + 1, 3) for ids up to {top}, "
                          f'not {table.dtype} {table.shape}')
    return lambda ids: table[ids]


def _average(index, background, n_ids):
    """Return the mean color of each entry of ``index``, rounded."""
    counts, sums = np.zeros(n_ids, np.int64), np.zeros((3, n_ids))
    for rows in _iter_rows(index.shape):
        flat = index[rows].reshape(-1).astype(np.intp)
        counts += np.bincount(flat, minlength=n_ids)
        for band in range(3):
            sums[band] += np.bincount(flat, background[rows, :, band].reshape(-1), n_ids)
    return np.rint(sums / np.maximum(counts, 1)).T.astype(np.uint8, order='C')


def _read_colors(names, colors):
    """Return the colors of classes as an array (n, 3)."""
    if isinstance(names, str):
        raise OptionError(f'names={names!r} must be a list of names, one per class')
    if colors is None:
        return color_classes(len(names))
    if len(colors) != len(names):
        raise OptionError(f'there are {len(names)} classes but {len(colors)} colors; give one each')
    return np.array([_as_rgb(color) for color in colors], np.uint8).reshape(-1, 3)


def _as_plane(array, what, kinds):
    """Return an array (H, W) of some kinds of dtype."""
    array = np.asarray(array)
    plane = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if plane.ndim != 2 or plane.dtype.kind not in kinds:
        raise OptionError(f'{what} have shape {array.shape} and dtype {array.dtype}; they must be '
                          f'{"real" if "f" in kinds else "whole"} numbers (H, W): choose one '
                          'channel')
    return plane


def _check_options(shape, background, alpha):
    dtype = getattr(background, 'dtype', type(background).__name__)
    if background is not None and (dtype != np.uint8 or background.shape != (*shape, 3)):
        raise OptionError(f'the background is {dtype} {np.shape(background)}; it must be uint8 '
                          f'{(*shape, 3)}: see cocoseg.coco.drawing.stretch_photo')
    if not 0 <= alpha <= 1:
        raise OptionError(f'alpha={alpha!r} must be in 0..1')


def _check_minmax(minmax):
    low, high = (float(value) for value in minmax)
    if not (np.isfinite([low, high]).all() and low <= high):
        raise OptionError(f'minmax={minmax!r} must be two finite numbers, the lower one first')
    return low, high
