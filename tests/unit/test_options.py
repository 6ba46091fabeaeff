"""Settings are checked when a manager is made, before any work."""
import dataclasses
import json

import numpy as np
import pytest

from cocoseg.coco.options import AssetOptions, check_run_options
from cocoseg.errors import OptionError

DEFAULT = AssetOptions(chan_code='a|b|c')


def test_derived_names():
    assert DEFAULT.channels == ('a', 'b', 'c')
    assert (DEFAULT.ext, DEFAULT.quantize_dtype) == ('.tif', 'int16')
    assert DEFAULT.suffix == '8af6a4177fe312b2'
    png = AssetOptions(chan_code='water', prob_format='png')
    assert (png.ext, png.quantize_dtype, png.suffix) == ('.png', 'uint8', 'water')


def test_ranges_of_channels():
    options = AssetOptions(chan_code='x|hidden.2:5')
    assert options.channels == ('x', 'hidden.2', 'hidden.3', 'hidden.4')


@pytest.mark.parametrize('chan_code', [None, '', 'a,b', 'a|a', 'a||b', '|', 5, ['a'], 'a\0',
                                       'h.0:0'])
def test_channels_must_be_distinct_names(chan_code):
    with pytest.raises(OptionError, match='chan_code'):
        AssetOptions(chan_code=chan_code)


@pytest.mark.parametrize('name, value', [
    ('space', 'asset'), ('space', None), ('prob_format', 'jpg'), ('prob_format', 'COG'),
    ('prob_compress', 'ZIPPY'), ('prob_blocksize', 100), ('prob_blocksize', 0),
    ('prob_blocksize', 'big'), ('dtype', 'float16'), ('dtype', 'int32'), ('dtype', 'nonsense'),
    ('expected_minmax', 1), ('expected_minmax', (1, 0)), ('expected_minmax', (0, np.nan)),
    ('expected_minmax', (0, np.inf)), ('expected_minmax', (0, 1, 2)),
    ('expected_minmax', (None, 1)), ('expected_minmax', ('0', '1')),
    ('polygon_categories', ['a', 'zebra']),
    ('short_code', ''), ('short_code', '..'), ('short_code', '/abs'), ('short_code', 'a/../b'),
    ('short_code', 5), ('short_code', 'a\0'), ('assets_dname', None), ('assets_dname', '../up'),
    ('assets_dname', '/tmp'), ('assets_dname', '.')])
def test_a_wrong_value_is_refused_with_its_name(name, value):
    # As the caller calls it; the parts that check it know a shorter name.
    known_as = {'space': 'stitching_space', 'prob_compress': 'compress',
                'prob_blocksize': 'blocksize', 'expected_minmax': 'expected_minmax|range'}
    with pytest.raises(OptionError, match=known_as.get(name, name)):
        AssetOptions(**{'chan_code': 'a|b', name: value})


def test_a_single_value_is_a_range():
    assert AssetOptions(chan_code='a', expected_minmax=(2, 2)).expected_minmax == (2, 2)


@pytest.mark.parametrize('minmax', [(np.float32(0), np.float32(1)), (np.int64(0), np.int64(1)),
                                    np.array([0, 1]), [0, 1]])
def test_a_range_of_numpy_numbers_can_be_written_down(minmax):
    options = AssetOptions(chan_code='a', expected_minmax=minmax)
    assert json.loads(json.dumps(options.expected_minmax)) == [0, 1]


def test_png_has_limits():
    AssetOptions(chan_code='a|b|c|d', prob_format='png')
    with pytest.raises(OptionError, match='4 bands.*5'):
        AssetOptions(chan_code='h.0:5', prob_format='png')
    with pytest.raises(OptionError, match='floats'):
        AssetOptions(chan_code='a', prob_format='png', quantize=False)
    # Without a file there is nothing to limit.
    AssetOptions(chan_code='h.0:5', prob_format='png', write_probs=False, write_preds=True)


@pytest.mark.parametrize('folder', ['pred', 'a/b', 'v1.2', 'no spaces but one'])
def test_folders_below_the_bundle_are_fine(folder):
    assert AssetOptions(chan_code='a', short_code=folder).short_code == folder


def test_polygon_bands():
    assert AssetOptions(chan_code='a|b').polygon_bands == [('a', 0), ('b', 1)]
    options = AssetOptions(chan_code='a|b|c', polygon_categories=['c', 'a'])
    assert options.polygon_bands == [('a', 0), ('c', 2)]


def test_options_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT.thresh = 0.1


CHANGES = dict(
    chan_code='a|b|d', short_code='other', space='image', thresh=0.25, write_probs=False,
    write_preds=True, polygon_categories=('a',), prob_compress='DEFLATE', prob_blocksize=128,
    prob_format='tif', expected_minmax=(0, 2), quantize=False, write_prediction_attrs=False,
    assets_dname='elsewhere', dtype='float64', layers=('class',))


def test_every_setting_has_a_change_below():
    assert set(CHANGES) == {field.name for field in dataclasses.fields(AssetOptions)}


@pytest.mark.parametrize('name', sorted(CHANGES))
def test_the_hash_tells_every_setting_apart(name):
    changed = dataclasses.replace(DEFAULT, **{name: CHANGES[name]})
    assert changed.config_hash != DEFAULT.config_hash
    assert changed.config_hash == dataclasses.replace(DEFAULT, **{name: CHANGES[name]}).config_hash


def test_run_options():
    for readiness in ('declared', 'contiguous'):
        for on_collision in ('raise', 'replace'):
            check_run_options(readiness, on_collision)
    with pytest.raises(OptionError, match='readiness'):
        check_run_options('guess', 'raise')
    with pytest.raises(OptionError, match='on_collision'):
        check_run_options('declared', 'overwrite')
