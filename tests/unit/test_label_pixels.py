"""Options of label managers, and the pixels of one image of labels."""
import errno
import math
import threading

import numpy as np
import pytest

from cocoseg import Window, WindowGrid
from cocoseg.coco.label_options import (LabelAssetOptions, LabelOptions, make_asset_options)
from cocoseg.coco.label_pixels import LabelPixels
from cocoseg.coco.options import AssetOptions, make_canvas_options
from cocoseg.coco.pixels import make_pixels
from cocoseg.coco.sinks import EncoderSink, SpoolSink
from cocoseg.errors import AssetWriteError, ImageClosedError, OptionError
from cocoseg.stitch import label as label_module

from ..builders import StoreFaults, watch_files

TRUTH = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((30, 25), int))
GRID = WindowGrid(TRUTH.shape, window=48, overlap=16)
TIF = LabelAssetOptions('seg', prob_format='tif')


def make_tile(window, scramble=7):
    """Return the labels of a window under ids of its own."""
    tile = TRUTH[window.slices]
    return (tile * scramble + window.y0 + window.x0).astype(np.int64)


def fill(pixels, windows=GRID):
    for window in windows:
        pixels.add(window, make_tile(window))


# --- options -----------------------------------------------------------------

def test_label_options_from_a_dict_or_nothing():
    assert LabelOptions.coerce(None) == LabelOptions() == LabelOptions.coerce({})
    options = LabelOptions.coerce({'connectivity': 8, 'min_size': np.int64(5)})
    assert LabelOptions.coerce(options) is options
    assert options.needs_values and not LabelOptions(4, min_size=1).needs_values
    assert options.of_stitcher == {'connectivity': 8, 'match': 'overlap', 'min_size': 5,
                                   'max_difference': math.inf}


@pytest.mark.parametrize('options, match', [
    (5, 'dict'), ('overlap', 'dict'), ({'minsize': 4}, 'minsize.*unknown'),
    ({5: 4}, 'unknown'), ({'connectivity': 6}, 'connectivity'), ({'match': 'best'}, 'match'),
    ({'min_size': 5}, 'connectivity'), ({'min_size': -1}, 'min_size'),
    ({'min_size': 2.5, 'connectivity': 4}, 'min_size'), ({'min_size': True}, 'min_size'),
    ({'max_difference': -1}, 'max_difference'), ({'max_difference': math.nan}, 'max_difference'),
    ({'max_difference': '3'}, 'max_difference'), ({'overviews': 'average'}, 'overviews')])
def test_label_options_that_cannot_be(options, match):
    with pytest.raises(OptionError, match=match):
        LabelOptions.coerce(options)


@pytest.mark.parametrize('name, value', [
    ('thresh', 0.3), ('expected_minmax', (0, 1)), ('expected_minmax', np.array([0, 1])),
    ('quantize', False), ('dtype', 'float64'), ('dtype', np.float64), ('layers', ['class'])])
def test_options_about_values_are_refused(name, value):
    with pytest.raises(OptionError, match=name):
        LabelAssetOptions('seg', **{name: value})


def test_values_that_say_the_default_are_not_refused():
    options = LabelAssetOptions('seg', thresh=0.5, dtype=np.float32, layers=[], quantize=True)
    assert options == LabelAssetOptions('seg')


def test_labels_are_one_channel_of_a_tiff():
    with pytest.raises(OptionError, match='2 channels'):
        LabelAssetOptions('a|b')
    with pytest.raises(OptionError, match='png'):
        LabelAssetOptions('a', prob_format='png')
    assert LabelAssetOptions('a', prob_format='png', write_probs=False).assets == ()
    spec, = LabelAssetOptions('a', label_options={'overviews': 'mode'}).assets
    assert (spec.overviews, spec.layer, spec.suffix) == ('mode', None, 'a')


def test_kinds():
    assert type(make_asset_options('soft', chan_code='a|b')) is AssetOptions
    assert type(make_asset_options('labels', {'match': 'none'}, chan_code='a')) is (
        LabelAssetOptions)
    with pytest.raises(OptionError, match='kind'):
        make_asset_options('hard', chan_code='a')
    with pytest.raises(OptionError, match='label_options'):
        make_asset_options('soft', {}, chan_code='a')


def test_blended_runs_keep_the_hash_that_they_had():
    """A bundle of a release before labels can be resumed."""
    assert AssetOptions('a|b|c').config_hash == '5640767d1db61920'
    options = AssetOptions('a|b', 'p', expected_minmax=(0, 1), layers=['class'])
    assert options.describe_run({'window': [3, 4]})[0] == '12bbc6b5acbfad66'


def test_the_hash_tells_settings_of_labels_apart():
    hashes = [LabelAssetOptions('a', label_options=options).config_hash for options in (
        {}, {'connectivity': 4}, {'connectivity': 8}, {'match': 'none'}, {'overviews': 'mode'},
        {'connectivity': 4, 'min_size': 9},
        {'connectivity': 4, 'min_size': 9, 'max_difference': 3})]
    hashes += [AssetOptions('a').config_hash, LabelAssetOptions('b').config_hash]
    assert len(set(hashes)) == len(hashes)
    assert LabelAssetOptions('a').config_hash == LabelAssetOptions('a', label_options=LabelOptions(
        max_difference=np.float32(np.inf))).config_hash
    texts = LabelAssetOptions('a').describe_run()[1]
    assert texts['kind'] == "'labels'" and 'inf' in texts['label_options']
    assert 'thresh' not in texts


@pytest.mark.parametrize('canvas', [('cpu', None, None), ('numpy', None, 1 << 30)])
def test_sums_are_not_for_labels(canvas):
    with pytest.raises(OptionError, match='device|memory_budget'):
        make_canvas_options(*canvas, 'labels')


def test_canvas_options_for_labels():
    assert make_canvas_options('numpy', '/some/where', None, 'labels')['memmap'] == '/some/where'


# --- pixels ------------------------------------------------------------------

def test_ids_are_those_of_the_image():
    for windows in (None, GRID):
        pixels = LabelPixels(1, TRUTH.shape, windows, TIF)
        fill(pixels, reversed(list(GRID)))
        assert pixels.nbytes > 0
        pixels.settle()
        rendering = pixels.render()
        assert rendering.dtype == np.uint32 and rendering.nodata == 0 and rendering.codec is None
        assert np.array_equal(rendering.data[..., 0], TRUTH)
        assert np.array_equal(pixels.read_labels(), TRUTH)
        assert pixels.figures == {
            'n_invalid': 0, 'n_labels': 12, 'n_merged': 0,
            'seams': {'n_seams': len(pixels.stitcher.seams), 'mean_agreement': 1.0,
                      'lowest_agreement': 1.0}}
        pixels.settle()
        assert pixels.render().data is not None
        pixels.close()
        pixels.close()
        assert pixels.nbytes == 0


def test_one_tile_has_no_seams():
    pixels = LabelPixels(1, TRUTH.shape, None, TIF)
    pixels.add(None, TRUTH)
    pixels.settle()
    assert pixels.figures['seams'] is None


@pytest.mark.parametrize('options, kind', [
    ({}, EncoderSink), ({'write_preds': True}, SpoolSink), ({'prob_format': 'tif'}, SpoolSink),
    ({'write_probs': False, 'write_preds': True}, SpoolSink)])
def test_where_ids_wait(tmp_path, options, kind):
    canvas = {'device': 'numpy', 'memmap': None, 'memory_budget': None}
    pixels = make_pixels(1, TRUTH.shape, GRID, LabelAssetOptions('seg', **options), canvas,
                         folder=tmp_path)
    assert isinstance(pixels, LabelPixels) and isinstance(pixels._sink, kind)
    fill(pixels)
    pixels.settle()
    assert pixels.render().shape == (*TRUTH.shape, 1)
    pixels.close()


@pytest.mark.parametrize('memmap, is_ours', [('folder', True), (True, False), (None, False)])
def test_large_images_wait_in_the_folder(tmp_path, monkeypatch, memmap, is_ours):
    monkeypatch.setattr(label_module, '_RAM_NBYTES', 0)
    made = watch_files(monkeypatch)
    memmap = tmp_path / memmap if isinstance(memmap, str) else memmap
    if is_ours:
        memmap.mkdir()
    canvas = make_canvas_options('numpy', memmap, None, 'labels')
    pixels = make_pixels(1, TRUTH.shape, GRID, TIF, canvas)
    fill(pixels)
    pixels.settle()
    assert np.array_equal(pixels.read_labels(), TRUTH)
    assert made and all((folder == str(memmap)) == is_ours for _, folder in made)
    pixels.close()


@pytest.mark.parametrize('options', [{}, {'prob_format': 'tif'}], ids=['cog', 'tif'])
def test_what_could_not_be_stored_is_stored_by_the_next_try(tmp_path, monkeypatch, options):
    monkeypatch.setattr(label_module, '_STRIP_PIXELS', 20 * TRUTH.shape[1])
    faults = StoreFaults(monkeypatch)
    pixels = LabelPixels(1, TRUTH.shape, GRID, LabelAssetOptions('seg', prob_blocksize=64,
                                                                 **options), folder=tmp_path)
    fill(pixels)

    def fail_late(window):
        if window.y0 >= 40:
            raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
    faults.hook = fail_late
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='No space left'):
            pixels.settle()
        with pytest.raises(ImageClosedError):
            pixels.add(None, TRUTH)
    faults.hook, faults.n_failures = None, math.inf
    with pytest.raises(AssetWriteError, match='No space left'):
        pixels.settle()
    faults.n_failures = 0
    pixels.settle()
    # Each strip once.
    assert sum(window.area for window in faults.taken) == TRUTH.size
    if not options:
        assert pixels.render().encoder.shape == (*TRUTH.shape, 1)
    else:
        assert np.array_equal(pixels.read_labels(), TRUTH)
    pixels.close()


@pytest.mark.parametrize('options', [{}, {'prob_format': 'tif'}], ids=['cog', 'tif'])
def test_an_interrupt_behind_a_stored_strip(tmp_path, monkeypatch, options):
    """The strip is in the file, but nobody could say so: it is offered again."""
    monkeypatch.setattr(label_module, '_STRIP_PIXELS', 20 * TRUTH.shape[1])
    pixels = LabelPixels(1, TRUTH.shape, GRID, LabelAssetOptions('seg', prob_blocksize=64,
                                                                 **options), folder=tmp_path)
    fill(pixels)
    real, seen = pixels._sink.write_block, []

    def write(window, block):
        real(window, block)
        seen.append(window)
        if len(seen) == 2:
            raise KeyboardInterrupt
    monkeypatch.setattr(pixels._sink, 'write_block', write)
    with pytest.raises(KeyboardInterrupt):
        pixels.settle()
    pixels.settle()
    assert sum(window.area for window in set(seen)) == TRUTH.size
    if options:
        assert np.array_equal(pixels.read_labels(), TRUTH)
    # What is wrong in another way is so each time.
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='shape'):
            pixels.stitcher._sink.write_block(Window(0, 0, 30, 9), np.zeros((30, 9, 2), np.uint32))
    pixels.close()


def test_a_tile_on_its_way_is_waited_for(monkeypatch):
    """Settling meanwhile, it is in the image as a whole."""
    entered, leave = threading.Event(), threading.Event()
    real = label_module.LabelStitcher._paint

    def paint(*args):
        entered.set()
        assert leave.wait(20)
        return real(*args)
    monkeypatch.setattr(label_module.LabelStitcher, '_paint', paint)
    pixels = LabelPixels(1, TRUTH.shape, [Window.from_shape(TRUTH.shape)], TIF)
    adding = threading.Thread(target=pixels.add, args=(None, TRUTH))
    adding.start()
    assert entered.wait(20)
    settling = threading.Thread(target=pixels.settle)
    settling.start()
    settling.join(0.05)
    assert settling.is_alive()
    leave.set()
    adding.join()
    settling.join()
    assert np.array_equal(pixels.read_labels(), TRUTH)


def test_values_are_not_kept_unless_they_are_needed():
    pixels = LabelPixels(1, TRUTH.shape, None, TIF)
    # Of another height: nobody looks.
    pixels.add(None, TRUTH, np.zeros((2, 2, 1)))
    assert pixels.nbytes == TRUTH.nbytes
    needy = LabelPixels(1, TRUTH.shape, None, LabelAssetOptions(
        'seg', prob_format='tif', label_options={'connectivity': 4, 'min_size': 5}))
    with pytest.raises(OptionError, match='values'):
        needy.add(None, TRUTH)
    needy.add(None, TRUTH, np.zeros((*TRUTH.shape, 1), 'f4'))
    assert needy.nbytes == TRUTH.nbytes + 4 * TRUTH.size
