"""
Styles of QGIS: well formed, with the elements that QGIS reads, and the right colors.

There is no QGIS here. ``shade`` reads a style as its renderers do: a palette by equal
values, a ramp by lines between its items, both without what is transparent.
"""
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.coco.drawing import color_ids, list_stops, make_ramp
from cocoseg.errors import OptionError
from cocoseg.io.qgis_style import (MAX_ENTRIES, MARK, is_ours, make_classes_qml, make_heatmap_qml,
                                   make_rgb_qml, make_segments_qml)

BLACK_WHITE = [(0, '#000000'), (1, '#ffffff')]
# What each renderer of QGIS writes, besides type, opacity, alphaBand and nodataColor.
ATTRIBUTES = {'singlebandpseudocolor': {'band', 'classificationMin', 'classificationMax'},
              'paletted': {'band'}, 'multibandcolor': {'redBand', 'greenBand', 'blueBand'}}
STYLES = {
    'heatmap': make_heatmap_qml(list_stops('magma'), (0, 1)),
    'classes': make_classes_qml([(0, 'a', '#000000'), (1, 'b', None)]),
    'few segments': make_segments_qml(np.arange(1, 9), color_ids),
    'many segments': make_segments_qml(np.arange(1, 9999), color_ids),
    'photo': make_rgb_qml((1, 2, 3), (0, 255)),
}


def read_renderer(text):
    """Return the renderer of a style."""
    return ElementTree.fromstring(text).find('pipe/rasterrenderer')


def shade(text, value):
    """Return the color of a value as QGIS would draw it, or None where it is transparent."""
    renderer = read_renderer(text)
    for hole in renderer.iter('pixelListEntry'):
        if float(hole.get('min')) <= value <= float(hole.get('max')):
            return None
    items = [(float(item.get('value')), tuple(bytes.fromhex(item.get('color')[1:])),
              item.get('alpha')) for item in renderer.iter(
                  'paletteEntry' if renderer.get('type') == 'paletted' else 'item')]
    if renderer.get('type') == 'paletted':
        return next((color for found, color, alpha in items
                     if found == value and alpha == '255'), None)
    if np.isnan(value):
        return None
    values = [found for found, _, _ in items]
    return tuple(np.interp(value, values, [color[band] for _, color, _ in items])
                 for band in range(3))


@pytest.mark.parametrize('name', STYLES)
def test_style_has_the_form_that_qgis_writes(name):
    text = STYLES[name]
    assert text.startswith("<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n<qgis ")
    root = ElementTree.fromstring(text)
    assert root.tag == 'qgis' and root.get('styleCategories') == 'Symbology'
    assert [child.tag for child in root] == ['pipe', 'blendMode']
    assert [child.tag for child in root.find('pipe')] == [
        'provider', 'rasterrenderer', 'brightnesscontrast', 'huesaturation', 'rasterresampler']
    renderer = read_renderer(text)
    assert set(renderer.attrib) == ATTRIBUTES[renderer.get('type')] | {
        'type', 'opacity', 'alphaBand', 'nodataColor'}
    assert renderer.find('minMaxOrigin/limits').text == 'None'
    assert renderer.get('alphaBand') == '-1' and renderer.get('nodataColor') == ''


def test_heatmap_is_the_ramp_over_the_true_range():
    text = make_heatmap_qml(list_stops('viridis', 17), (-0.1, 0.7), band=3, opacity=0.5)
    renderer = read_renderer(text)
    assert renderer.get('type') == 'singlebandpseudocolor' and renderer.get('band') == '3'
    assert renderer.get('opacity') == '0.5'
    assert float(renderer.get('classificationMin')) == -0.1
    assert float(renderer.get('classificationMax')) == 0.7
    shader = renderer.find('rastershader/colorrampshader')
    assert shader.get('colorRampType') == 'INTERPOLATED' and shader.get('clip') == '0'
    ramp = make_ramp('viridis').astype(int)
    for step, value in enumerate(np.linspace(-0.1, 0.7, 256)):
        assert np.abs(np.array(shade(text, value)) - ramp[step]).max() < 6
    assert shade(text, -9) == tuple(ramp[0]) and shade(text, 9) == tuple(ramp[255])
    assert shade(text, np.nan) is None


def test_heatmap_gives_the_dialog_of_qgis_its_ramp():
    text = make_heatmap_qml([(0, '#000000'), (0.25, '#ff8001'), (1, '#ffffff')], (0, 8))
    options = {option.get('name'): option.get('value')
               for option in read_renderer(text).find('.//colorramp').iter('Option')}
    assert options['color1'] == '0,0,0,255' and options['color2'] == '255,255,255,255'
    assert options['stops'] == '0.25;255,128,1,255'
    assert [item.get('value') for item in read_renderer(text).iter('item')] == ['0', '2', '8']


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e30, 1e30), st.floats(1e-6, 1e6))
def test_numbers_come_back_exactly(low, span):
    high = low + span
    if low < high:
        items = list(read_renderer(make_heatmap_qml(BLACK_WHITE, (low, high))).iter('item'))
        assert [float(item.get('value')) for item in items] == [low, high]


def test_classes_have_their_names_and_colors():
    text = make_classes_qml([(0, 'water', '#0072B2'), (7, 'land', '#009e73'), (9, 'none', None)],
                            band=2)
    assert [entry.attrib for entry in read_renderer(text).iter('paletteEntry')] == [
        {'value': '0', 'label': 'water', 'color': '#0072b2', 'alpha': '255'},
        {'value': '7', 'label': 'land', 'color': '#009e73', 'alpha': '255'},
        {'value': '9', 'label': 'none', 'color': '#000000', 'alpha': '0'}]
    assert shade(text, 7) == (0, 158, 115) and shade(text, 255) is None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_any_name_is_well_formed(name):
    text = make_classes_qml([(1, name, '#000000')])
    text.encode('utf8')
    label = read_renderer(text).find('.//paletteEntry').get('label')
    assert len(label) == len(name)


def test_names_are_escaped_and_what_xml_forbids_is_replaced():
    name = '"<a>" & \'b\'\x00\x1b\ud800 é 水'
    text = make_classes_qml([(1, name, '#000000')])
    assert read_renderer(text).find('.//paletteEntry').get('label') == (
        '"<a>" & \'b\'\ufffd\ufffd\ufffd é 水')
    injected = make_classes_qml([(1, '"/><script/>', '#000000')])
    assert not list(ElementTree.fromstring(injected).iter('script'))


def test_few_segments_have_the_colors_of_pictures():
    ids = np.array([2, 5, 4_000_000_000], np.uint32)
    text = make_segments_qml(ids, color_ids)
    for label, color in zip(ids.tolist(), color_ids(ids)):
        assert shade(text, label) == tuple(color)
    assert shade(text, 0) is None and shade(text, 3) is None


def test_many_segments_are_a_ramp_from_the_first_to_the_last():
    full = make_segments_qml(np.arange(1, MAX_ENTRIES + 1), color_ids)
    assert read_renderer(full).get('type') == 'paletted'
    ids = np.arange(1, 1_000_001)
    text = make_segments_qml(ids, color_ids)
    items = [int(item.get('value')) for item in read_renderer(text).iter('item')]
    assert len(items) == MAX_ENTRIES and (np.diff(items) > 0).all()
    assert (items[0], items[-1]) == (1, 1_000_000)
    assert len(text) < 400_000
    for label in (1, items[77], 1_000_000):
        assert shade(text, label) == tuple(color_ids(np.array([label]))[0])
    assert shade(text, 0) is None


def test_neighbors_among_many_segments_look_apart():
    # Squares of 8 px numbered by their first pixel, the rows of each column shifted.
    y, x = np.mgrid[:800, :800]
    cells = (y + x // 8 * 3) // 8 * 1000 + x // 8
    _, first, inverse = np.unique(cells, return_index=True, return_inverse=True)
    labels = (np.argsort(np.argsort(first)) + 1)[inverse].reshape(800, 800)
    text = make_segments_qml(np.arange(1, labels.max() + 1), color_ids)
    assert read_renderer(text).get('type') == 'singlebandpseudocolor'
    items = [(int(item.get('value')), tuple(bytes.fromhex(item.get('color')[1:])))
             for item in read_renderer(text).iter('item')]
    colors = np.stack([np.interp(labels, [value for value, _ in items],
                                 [color[band] for _, color in items]) for band in range(3)], -1)
    for axis in (0, 1):
        border = np.diff(labels, axis=axis) != 0
        apart = np.abs(np.diff(colors, axis=axis)).max(axis=2)[border]
        assert (apart > 10).mean() > 0.9


def test_photo_has_a_stretch_for_each_band():
    renderer = read_renderer(make_rgb_qml((4, 3, 2), [(0, 1), (2, 3), (0.5, 0.75)]))
    assert [renderer.get(f'{color}Band') for color in ('red', 'green', 'blue')] == ['4', '3', '2']
    assert [renderer.find(f'{color}ContrastEnhancement/maxValue').text
            for color in ('red', 'green', 'blue')] == ['1', '3', '0.75']
    assert renderer.find('redContrastEnhancement/algorithm').text == 'StretchToMinimumMaximum'


def test_mark_tells_ours_from_what_qgis_saved():
    for text in STYLES.values():
        assert is_ours(text)
        assert not is_ours(text.replace(f'<!--{MARK}-->', ''))
        # QGIS reads and writes elements, not comments.
        saved = ElementTree.tostring(ElementTree.fromstring(text), encoding='unicode')
        assert not is_ours(saved)


@pytest.mark.parametrize('make, match', [
    (lambda: make_heatmap_qml(BLACK_WHITE, (1, 1)), 'lower one first'),
    (lambda: make_heatmap_qml(BLACK_WHITE, (0, float('inf'))), 'finite'),
    (lambda: make_heatmap_qml(BLACK_WHITE[:1], (0, 1)), 'ascend from 0 to 1'),
    (lambda: make_heatmap_qml(BLACK_WHITE[::-1], (0, 1)), 'ascend from 0 to 1'),
    (lambda: make_heatmap_qml([(0, 'red'), (1, '#ffffff')], (0, 1)), 'red'),
    (lambda: make_heatmap_qml(BLACK_WHITE, (0, 1), band=0), 'band=0'),
    (lambda: make_heatmap_qml(BLACK_WHITE, (0, 1), opacity=2), 'opacity=2'),
    (lambda: make_classes_qml([(1, 'a', '#000000'), (1.0, 'b', '#000000')]), 'distinct'),
    (lambda: make_segments_qml(np.array([0, 1]), color_ids), 'ascend from 1'),
    (lambda: make_segments_qml(np.array([2, 2]), color_ids), 'ascend from 1'),
    (lambda: make_segments_qml(np.array([1.5]), color_ids), 'whole numbers'),
    (lambda: make_rgb_qml((1, 2), (0, 1)), 'give three'),
    (lambda: make_rgb_qml((1, 2, 3), [(0, 1), (0, 1), (1, 0)]), 'blue'),
], ids=range(13))
def test_what_does_not_fit_is_refused(make, match):
    with pytest.raises(OptionError, match=match):
        make()
