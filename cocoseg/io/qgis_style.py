"""
Say in QGIS's own words how a raster is to be drawn: QML, as text.

QGIS applies a file ``{stem}.qml`` beside ``{stem}.tif`` when it opens the raster.
These functions are pure: colors and ranges come in as plain data, text goes out.
Values are the true ones, as QGIS applies the scale and offset of a band; and what
is nodata or NaN in the file is transparent by itself.

Elements and attributes are those that the renderers of QGIS read and write
(``create`` and ``writeXml`` of ``src/core/raster/qgs*renderer.cpp`` and
``qgscolorrampshader.cpp``, <https://github.com/qgis/QGIS>). They are checked against
that, not by a QGIS.
"""
from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np

from cocoseg.errors import OptionError

#: With more ids than this, QGIS gets a ramp through as many, see :func:`make_segments_qml`.
MAX_ENTRIES = 4096
#: What tells a style of ours; QGIS drops it when it saves a style.
MARK = 'written by cocoseg'

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
# Of which these elements are; older ones read most of them.
_VERSION = '3.22.0'
# What XML 1.0 has no way to write.
_FORBIDDEN = re.compile('[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]')
_COLOR = re.compile('#[0-9a-fA-F]{6}')


def make_heatmap_qml(stops, minmax, *, band=1, opacity=1.0):
    """
    Draw one band through a ramp of colors: QGIS's "singleband pseudocolor".

    Values outside have the colors of the ends.

    Args:
        stops (Sequence[tuple[float, str]]): (fraction of the range,
            '#rrggbb'), the fractions ascend from 0 to 1.
        minmax (tuple[float, float]): true values at the ends.
        band (int): counted from 1, as QGIS does.
        opacity (float): 0..1.

    Returns:
        str: the style.

    Raises:
        OptionError: for stops or a range that do not ascend, or another option
            out of its range.

    Example:
        >>> from cocoseg.io.qgis_style import make_heatmap_qml
        >>> text = make_heatmap_qml([(0, '#000000'), (1, '#ffffff')], (0, 0.5), band=2)
        >>> ElementTree.fromstring(text).find('.//item[2]').attrib
        {'value': '0.5', 'label': '0.5', 'color': '#ffffff', 'alpha': '255'}
    """
    low, high = (float(value) for value in minmax)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise OptionError(f'minmax={minmax!r} must be two finite numbers, the lower one first')
    places = [float(place) for place, _ in stops]
    if len(places) < 2 or places[0] != 0 or places[-1] != 1 or min(np.diff(places)) <= 0:
        raise OptionError(f'the stops are at {places}; they must ascend from 0 to 1')
    root, renderer = _start('singlebandpseudocolor', band, opacity)
    renderer.set('classificationMin', _number(low))
    renderer.set('classificationMax', _number(high))
    shader = _add_shader(renderer, low, high)
    _add_ramp(shader, stops)
    for place, color in stops:
        # Exactly the ends, whatever rounding does.
        value = high if place == 1 else low + place * (high - low)
        _add(shader, 'item', value=_number(value), label=f'{value:.4g}', color=_hex(color),
             alpha='255')
    return _finish(root)


def make_classes_qml(entries, *, band=1, opacity=1.0):
    """
    Draw each value in a color of its own: QGIS's "paletted/unique values".

    Values that are not listed are transparent.

    Args:
        entries (Sequence[tuple]): (value, name, '#rrggbb' or None), distinct
            values; None is transparent, but in the legend.
        band (int): counted from 1.
        opacity (float): 0..1.

    Returns:
        str: the style.

    Raises:
        OptionError: for equal values, or an option out of its range.

    Example:
        >>> from cocoseg.io.qgis_style import make_classes_qml
        >>> text = make_classes_qml([(0, 'wet & dry', '#0072b2')])
        >>> '"wet &amp; dry"' in text
        True
    """
    values = [_number(value) for value, _, _ in entries]
    if len(set(values)) != len(values):
        raise OptionError(f'values of classes must be distinct, not {values[:20]}')
    root, renderer = _start('paletted', band, opacity)
    palette = _add(renderer, 'colorPalette')
    for value, (_, name, color) in zip(values, entries):
        _add(palette, 'paletteEntry', value=value, label=_clean(name),
             color=_hex(color or '#000000'), alpha='0' if color is None else '255')
    return _finish(root)


def make_segments_qml(ids, choose_colors, *, band=1, opacity=1.0):
    """
    Draw segments, each in the color of its id; 0 is transparent.

    Up to ``MAX_ENTRIES`` ids are listed, each with its color ("paletted").
    More would make a layer slow to open: QGIS needed 24.5 s for a palette of
    50 000 before, and 1.6 s after [QGIS56784]_, and lists each in the legend.
    If the first time grew with the square, 4096 entries take some 0.2 s.

    Beyond that the colors of ``MAX_ENTRIES`` ids, evenly spaced from the
    lowest to the highest, are the stops of a ramp ("singleband pseudocolor",
    interpolated), a file of 0.3 MB. Ids are numbered by their first pixel, so
    that neighbors with other first rows have far numbers: a row of N segments
    in H rows is N / H ids, and a stop N / 4096. Of the neighbors among 250 000
    cells in 3000 rows, 94 % differ by 10 levels of 255 or more in a band. The
    others, which mostly begin in one row, may look alike.

    Args:
        ids (ndarray): whole numbers, > 0, shape (n,), ascending: those in the
            image; of more than ``MAX_ENTRIES`` only the first and the last
            matter.
        choose_colors (Callable[[ndarray], ndarray]): from ids (n,) to uint8
            RGB (n, 3); ``cocoseg.coco.drawing.color_ids`` is that of
            ``draw_segments``.
        band (int): counted from 1.
        opacity (float): 0..1.

    Returns:
        str: the style.

    Raises:
        OptionError: for ids that do not ascend from 1 or more, or an option
            out of its range.

    References:
        .. [QGIS56784] Raster - paletted: fix slow rendering with huge number
           of classes. <https://github.com/qgis/QGIS/pull/56784>

    Example:
        >>> from cocoseg.io.qgis_style import make_segments_qml
        >>> def gray(ids):
        ...     return np.full((len(ids), 3), ids[:, None] % 256, np.uint8)
        >>> few = make_segments_qml(np.array([3, 7]), gray)
        >>> [entry.get('color') for entry in ElementTree.fromstring(few).iter('paletteEntry')]
        ['#030303', '#070707']
        >>> many = make_segments_qml(np.arange(1, 10 ** 5), gray)
        >>> len(list(ElementTree.fromstring(many).iter('item')))
        4096
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or ids.dtype.kind not in 'iu' or len(ids) and (
            ids[0] < 1 or (ids[1:] <= ids[:-1]).any()):
        raise OptionError(f'ids are {ids.dtype} {ids.shape}; they must be whole numbers that '
                          'ascend from 1 or more')
    if len(ids) <= MAX_ENTRIES:
        return make_classes_qml(
            [(value, str(value), color) for value, color in zip(ids.tolist(), _list_colors(
                choose_colors, ids))], band=band, opacity=opacity)
    first, last = int(ids[0]), int(ids[-1])
    stops = np.array([first + (last - first) * step // (MAX_ENTRIES - 1)
                      for step in range(MAX_ENTRIES)], np.uint64)
    root, renderer = _start('singlebandpseudocolor', band, opacity, transparent=0)
    renderer.set('classificationMin', str(first))
    renderer.set('classificationMax', str(last))
    shader = _add_shader(renderer, first, last)
    for value, color in zip(stops.tolist(), _list_colors(choose_colors, stops)):
        _add(shader, 'item', value=str(value), label=str(value), color=color, alpha='255')
    return _finish(root)


def make_rgb_qml(bands, minmax, *, opacity=1.0):
    """
    Draw three bands as red, green and blue: QGIS's "multiband color".

    Args:
        bands (Sequence[int]): three, counted from 1.
        minmax (tuple[float, float] | Sequence[tuple[float, float]]): true
            values at 0 and full brightness, of all bands or of each.
        opacity (float): 0..1.

    Returns:
        str: the style.

    Raises:
        OptionError: for other than three bands, or an option out of its range.

    Example:
        >>> from cocoseg.io.qgis_style import make_rgb_qml
        >>> root = ElementTree.fromstring(make_rgb_qml((4, 3, 2), (0, 0.3)))
        >>> root.find('pipe/rasterrenderer').get('redBand')
        '4'
    """
    ranges = [minmax] * 3 if np.ndim(minmax) == 1 else list(minmax)
    if len(bands) != 3 or len(ranges) != 3:
        raise OptionError(f'there are {len(bands)} bands and {len(ranges)} ranges; give three')
    root, renderer = _start('multibandcolor', None, opacity)
    for color, band, (low, high) in zip(('red', 'green', 'blue'), bands, ranges):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise OptionError(f'minmax={(low, high)!r} of {color} must be two finite numbers, '
                              'the lower one first')
        renderer.set(f'{color}Band', _check_band(band))
        stretch = _add(renderer, f'{color}ContrastEnhancement')
        for name, text in (('minValue', _number(low)), ('maxValue', _number(high)),
                           ('algorithm', 'StretchToMinimumMaximum')):
            _add(stretch, name).text = text
    return _finish(root)


def is_ours(text):
    """
    Return True for a style that these functions made, and nobody saved since.

    Args:
        text (str): the file, or its beginning.

    Example:
        >>> from cocoseg.io.qgis_style import is_ours, make_classes_qml
        >>> is_ours(make_classes_qml([])), is_ours('<qgis/>')
        (True, False)
    """
    return f'<!--{MARK}-->' in text[:1000]


def _start(kind, band, opacity, transparent=None):
    """Return the root of a style, and its renderer."""
    if not 0 <= opacity <= 1:
        raise OptionError(f'opacity={opacity!r} must be in 0..1')
    root = ElementTree.Element('qgis', version=_VERSION, styleCategories='Symbology')
    root.append(ElementTree.Comment(MARK))
    pipe = _add(root, 'pipe')
    _add(_add(pipe, 'provider'), 'resampling', enabled='false', maxOversampling='2',
         zoomedInResamplingMethod='nearestNeighbour', zoomedOutResamplingMethod='nearestNeighbour')
    renderer = _add(pipe, 'rasterrenderer', type=kind, opacity=_number(opacity), alphaBand='-1',
                    nodataColor='')
    if band is not None:
        renderer.set('band', _check_band(band))
    holes = _add(renderer, 'rasterTransparency')
    if transparent is not None:
        value = _number(transparent)
        _add(_add(holes, 'singleValuePixelList'), 'pixelListEntry', min=value, max=value,
             percentTransparent='100')
    # The range is ours: QGIS must not look for another one in the file.
    origin = _add(renderer, 'minMaxOrigin')
    for name, text in (('limits', 'None'), ('extent', 'WholeRaster'),
                       ('statAccuracy', 'Estimated'), ('cumulativeCutLower', '0.02'),
                       ('cumulativeCutUpper', '0.98'), ('stdDevFactor', '2')):
        _add(origin, name).text = text
    return root, renderer


def _finish(root):
    """Return a style as text, with what follows the renderer."""
    pipe = root.find('pipe')
    _add(pipe, 'brightnesscontrast', brightness='0', contrast='0', gamma='1')
    _add(pipe, 'huesaturation', saturation='0', grayscaleMode='0', colorizeOn='0',
         colorizeRed='255', colorizeGreen='128', colorizeBlue='128', colorizeStrength='100')
    _add(pipe, 'rasterresampler', maxOversampling='2')
    _add(root, 'blendMode').text = '0'
    ElementTree.indent(root)
    return _DOCTYPE + ElementTree.tostring(root, encoding='unicode') + '\n'


def _add_shader(renderer, low, high):
    """Return what the items of a ramp go into."""
    return _add(_add(renderer, 'rastershader'), 'colorrampshader', colorRampType='INTERPOLATED',
                classificationMode='1', clip='0', minimumValue=_number(low),
                maximumValue=_number(high))


def _add_ramp(shader, stops):
    """Add the ramp that the dialog of QGIS shows, and stretches to other ranges."""
    colors = [','.join(str(int(_hex(color)[at:at + 2], 16)) for at in (1, 3, 5)) + ',255'
              for _, color in stops]
    inner = ':'.join(f'{_number(place)};{color}'
                     for (place, _), color in list(zip(stops, colors))[1:-1])
    options = _add(_add(shader, 'colorramp', type='gradient', name='[source]'), 'Option',
                   type='Map')
    for name, value in (('color1', colors[0]), ('color2', colors[-1]), ('discrete', '0'),
                        ('rampType', 'gradient'), ('stops', inner)):
        _add(options, 'Option', type='QString', name=name, value=value)


def _add(parent, tag, /, **attributes):
    return ElementTree.SubElement(parent, tag, attributes)


def _list_colors(choose_colors, ids):
    """Return the colors of ids as '#rrggbb'."""
    return ['#{:02x}{:02x}{:02x}'.format(*color) for color in choose_colors(ids).tolist()]


def _check_band(band):
    if int(band) != band or band < 1:
        raise OptionError(f'band={band!r} must be a whole number from 1 on, as QGIS counts')
    return str(int(band))


def _hex(color):
    if not isinstance(color, str) or not _COLOR.fullmatch(color):
        raise OptionError(f"{color!r} is no color; give '#rrggbb'")
    return color.lower()


def _number(value):
    """Return the shortest text that is read back as the same number."""
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(
        float(value))


def _clean(text):
    return _FORBIDDEN.sub('\ufffd', str(text))
