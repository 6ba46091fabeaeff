"""
Extra layers as assets of their own: class map, mask and disagreement.

Judged against numpy in float64 on the same windows, against the mean that lies
beside them, and by GDAL, kwcoco and delayed_image as readers.
"""
import dataclasses
import errno
import gc
import json
import math
import os
import subprocess
import sys
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import kwcoco
import kwimage
import numpy as np
import pytest
import shapely
from delayed_image import FusedChannelSpec
from osgeo import gdal

from cocoseg import (BlendPlan, ClassMap, CocoStitchingManager, Disagreement, ThresholdMask, Window,
                     WindowGrid, WriterQueue, predict_dataset, verify_cog, write_cog)
from cocoseg.cli.main import main
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.options import AssetOptions
from cocoseg.coco.pixels import CanvasPixels, StreamedPixels
from cocoseg.coco.sinks import RasterSink
from cocoseg.errors import (AssetWriteError, CanvasError, ChannelCollisionError, OptionError,
                            ResumeError)
from cocoseg.io import cog as cog_module
from cocoseg.io import images as images_module
from cocoseg.protocols import EagerQueue
from cocoseg.stitch.layers import LayerFormat

from ..builders import (StoreFaults, count_stored, get_encoders, spill_tiles, wait_for_tiles,
                        watch_files, watch_tile_files)

gdal.UseExceptions()

SHAPE = (200, 152)
BANDS = 3
GRID = WindowGrid(SHAPE, window=64, overlap=16)
PLAN = BlendPlan(GRID)
IMAGE = np.random.RandomState(0).uniform(-0.05, 1.05, (*SHAPE, BANDS)).astype('f4')
STEP = 1 / 32767
# A float32 mean of values near 1, from at most 9 windows.
NOISE = 2e-6
ALL = ('class', 'mask', 'disagreement')


def make_dataset(folder, n_images=3, **fields):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    for index in range(n_images):
        dset.add_image(name=f'im{index + 1}', width=SHAPE[1], height=SHAPE[0], auxiliary=[],
                       **fields)
    return dset


@pytest.fixture()
def dset(tmp_path):
    return make_dataset(tmp_path)


def make_manager(dset, chan_code='a|b|c', **options):
    options = {'expected_minmax': (0, 1), 'prob_blocksize': 64, 'layers': ALL, **options}
    return CocoStitchingManager(dset, 'pred', chan_code, 'image', **options)


def shuffled(windows, seed=0):
    """Return windows in random order, the first not first."""
    windows = list(windows)
    np.random.RandomState(seed).shuffle(windows)
    return windows[1:] + windows[:1]


def predict(window):
    """Return predictions in which windows do not agree."""
    return IMAGE[window.slices] + np.float32(0.05 * ((window.y0 + window.x0) % 5))


def with_holes(window):
    """Return predictions with NaN in some pixels of each window, and in a square of all."""
    data = predict(window)
    data[np.random.RandomState(window.y0 + window.x0).rand(*window.shape) < 0.2] = np.nan
    ys, xs = np.mgrid[window.slices]
    data[(ys >= 20) & (ys < 50) & (xs >= 60) & (xs < 100)] = np.nan
    return data


def add_all(manager, image_id=1, windows=GRID, make=predict, declare=True):
    """Add windows; undeclared ones with the weights of the plan."""
    if declare:
        manager.expect_windows(image_id, GRID)
    for window in windows:
        rows, columns = PLAN.get_weights(window)
        manager.accumulate_image(image_id, window, make(window),
                                 weights=None if declare else rows[:, None] * columns)


def list_assets(dset, image_id=1):
    return dset.index.imgs[image_id]['auxiliary']


def list_files(manager):
    return sorted(path.name for path in Path(manager.prob_dpath).iterdir()
                  if path.suffix != '.jsonl')


def get_journal(manager):
    fpath, = Path(manager.prob_dpath).glob('.*.jsonl')
    return fpath


def read_gdal(fpath, level=None):
    """Return (H, W, C) as stored, of the image or of an overview."""
    dataset = gdal.Open(os.fspath(fpath))
    bands = [dataset.GetRasterBand(i + 1) for i in range(dataset.RasterCount)]
    if level is not None:
        bands = [band.GetOverview(level) for band in bands]
    data = np.stack([band.ReadAsArray() for band in bands], axis=2)
    del bands
    return data


def get_path(dset, info, name=None):
    return os.path.join(dset.bundle_dpath, info['layers'][name] if name else info['file_name'])


def read_all(dset, info):
    """Return {name: pixels as stored} of the layers."""
    return {name: read_gdal(get_path(dset, info, name)) for name in info['layers']}


class Reference:
    """Mean and spread of some windows in float64."""

    def __init__(self, windows=GRID, make=predict):
        windows = list(windows)
        values = np.zeros((len(windows), *SHAPE, BANDS))
        weights = np.zeros_like(values)
        for value, weight, window in zip(values, weights, windows):
            data = make(window).astype('f8')
            valid = np.isfinite(data).all(axis=2, keepdims=True)
            value[window.slices] = np.where(valid, data, 0)
            weight[window.slices] = valid * np.outer(*PLAN.get_weights(window))[..., None]
        with np.errstate(invalid='ignore'):
            self.mean = (values * weights).sum(axis=0) / weights.sum(axis=0)
            self.spread = np.sqrt((weights * (values - self.mean) ** 2).sum(axis=0)
                                  / weights.sum(axis=0))
        self.is_nodata = np.isnan(self.mean[..., 0])

    def check(self, found, thresh=0.5, spread_step=None):
        """Compare layers as stored; values near a decision may fall on either side."""
        for name, data in found.items():
            getattr(self, f'check_{name}')(data, *{'mask': [thresh],
                                                   'disagreement': [spread_step]}.get(name, []))

    def check_class(self, data):
        assert data.dtype == 'uint8' and data.shape == (*SHAPE, 1)
        assert np.array_equal(data[..., 0] == 255, self.is_nodata)
        ranked = np.sort(np.nan_to_num(self.mean), axis=2)
        is_clear = (ranked[..., -1] - ranked[..., -2] > 2 * NOISE) & ~self.is_nodata
        assert is_clear.sum() > 0.99 * (~self.is_nodata).sum()
        assert np.array_equal(data[..., 0][is_clear], self.mean.argmax(axis=2)[is_clear])

    def check_mask(self, data, thresh):
        assert data.dtype == 'uint8' and data.shape == (*SHAPE, BANDS)
        assert np.array_equal(data == 255, np.repeat(self.is_nodata[..., None], BANDS, 2))
        is_clear = (np.abs(self.mean - thresh) > NOISE) & ~self.is_nodata[..., None]
        assert is_clear.sum() > 0.99 * BANDS * (~self.is_nodata).sum()
        assert np.array_equal(data[is_clear], (self.mean > thresh)[is_clear])

    def check_disagreement(self, data, step):
        if step is not None:
            assert data.dtype == {STEP / 2: 'int16', 1 / 508: 'uint8'}[step]
            nodata = -9999 if data.dtype == 'int16' else 0
            first = 0 if data.dtype == 'int16' else 1
            data = np.where(data == nodata, np.nan, (data.astype('f8') - first) * step)
        else:
            assert data.dtype == 'float32'
        tolerance = 1e-5 + (step or 0) / 2
        assert np.array_equal(np.isnan(data), np.repeat(self.is_nodata[..., None], BANDS, 2))
        assert np.nanmax(np.abs(data - self.spread)) <= tolerance
        assert np.nanmax(self.spread) > 0.05


# --- the values ----------------------------------------------------------

#: Way: (order of windows, whether they are declared, options, class of the pixels).
WAYS = {
    'in order': (list(GRID), True, {}, StreamedPixels),
    'shuffled': (shuffled(GRID), True, {}, StreamedPixels),
    'budget': (shuffled(GRID), True, {'memory_budget': 200_000}, StreamedPixels),
    'undeclared': (shuffled(GRID), False, {}, CanvasPixels),
    'mapped': (list(GRID), True, {'memmap': True}, CanvasPixels),
}
FORMATS = {
    'cog': ({}, STEP / 2), 'tif': ({'prob_format': 'tif'}, STEP / 2),
    'png': ({'prob_format': 'png'}, 1 / 508), 'free range': ({'expected_minmax': None}, None),
    'floats': ({'quantize': False}, None), 'float64': ({'dtype': 'float64'}, STEP / 2),
    'free floats': ({'quantize': False, 'expected_minmax': None}, None),
}


def check_way(folder, way, name, make, layers):
    """Stitch image 1 in one way, compare all with the reference; return the layers."""
    order, declare, options, kind = WAYS[way]
    more, spread_step = FORMATS[name]
    dset = make_dataset(folder, 1)
    with make_manager(dset, layers=layers, **options, **more) as manager:
        add_all(manager, windows=order, make=make, declare=declare)
        assert type(manager._table.get(1).pixels) is kind
        info = manager.finalize_image(1)
    found = read_all(dset, info)
    assert list(found) == list(layers)
    reference = Reference(make=make)
    reference.check(found, spread_step=spread_step)
    mean = dset.coco_image(1).imdelay('a|b|c', space='asset').finalize()
    expected = reference.mean if name == 'free range' or 'free' in name \
        else np.clip(reference.mean, 0, 1)
    assert np.array_equal(np.isnan(mean[..., 0]), reference.is_nodata)
    assert np.nanmax(np.abs(mean - expected)) <= (1 / 254 if name == 'png' else 2 * STEP)
    return found


@pytest.mark.parametrize('make', [predict, with_holes])
@pytest.mark.parametrize('name', FORMATS)
def test_layers_are_those_of_the_windows(tmp_path, name, make):
    check_way(tmp_path, 'shuffled', name, make, ALL)


@pytest.mark.parametrize('layers', [('class', 'mask'), ALL])
@pytest.mark.parametrize('way', WAYS)
def test_every_way_to_stitch_gives_the_same_layers(tmp_path, way, layers):
    for make in (predict, with_holes):
        (tmp_path / make.__name__).mkdir()
        check_way(tmp_path / make.__name__, way, 'cog', make, layers)


def test_windows_in_order_take_the_fast_way_without_a_disagreement(dset):
    for layers, engine in ((('class', 'mask'), 'carry'), (ALL, 'general')):
        manager = make_manager(dset, layers=layers, on_collision='replace')
        manager.expect_windows(1, GRID)
        for window in list(GRID)[:3]:
            manager.accumulate_image(1, window, predict(window))
        assert manager.image_stitchers[1].engine == engine
        with pytest.raises(Exception, match='did not come'):
            manager.close()


def test_layers_agree_with_the_mean_beside_them(dset):
    with make_manager(dset, thresh=0.3) as manager:
        add_all(manager, make=with_holes)
        info = manager.finalize_image(1)
    mean = dset.coco_image(1).imdelay('a|b|c', space='asset').finalize()
    found = read_all(dset, info)
    valid = np.isfinite(mean[..., 0])
    chosen = np.take_along_axis(mean, found['class'] % 255, axis=2)[..., 0]
    assert (chosen[valid] >= mean[valid].max(axis=1) - STEP).all()
    off = (found['mask'][valid] == 1) != (mean[valid] > 0.3)
    assert (np.abs(mean[valid][off] - 0.3) <= STEP).all()


def test_the_mean_is_the_same_with_and_without_layers(tmp_path):
    contents = set()
    for layers in ((), ('class',), ALL):
        dset = make_dataset(tmp_path / f'{len(layers)}', 1)
        with make_manager(dset, layers=layers) as manager:
            add_all(manager, windows=shuffled(GRID), make=with_holes)
            info = manager.finalize_image(1)
        contents.add(Path(get_path(dset, info)).read_bytes())
        assert set(info['layers']) == set(layers)
    assert len(contents) == 1


def test_missing_windows_are_nodata_in_all_layers(tmp_path):
    for name in ('cog', 'png', 'free floats'):
        (tmp_path / name).mkdir()
        dset = make_dataset(tmp_path / name, 1)
        manager = make_manager(dset, **FORMATS[name][0])
        windows = list(GRID)[:5]
        add_all(manager, windows=windows)
        with pytest.warns(UserWarning, match='declared windows'):
            info = manager.finalize_image(1)
        reference = Reference(windows)
        assert 0.2 < reference.is_nodata.mean() < 0.8
        reference.check(read_all(dset, info), spread_step=FORMATS[name][1])


def test_windows_that_are_all_nan(dset):
    manager = make_manager(dset)
    add_all(manager, make=lambda window: np.full((*window.shape, 3), np.nan))
    found = read_all(dset, manager.finalize_image(1))
    assert {name: np.unique(data).tolist() for name, data in found.items()} == {
        'class': [255], 'mask': [255], 'disagreement': [-9999]}


def test_an_area_of_interest(dset):
    grid = WindowGrid(SHAPE, window=64, overlap=16, area=shapely.box(20, 30, 120, 150))
    manager = make_manager(dset)
    manager.expect_windows(1, grid)
    for window in grid:
        manager.accumulate_image(1, window, predict(window))
    found = read_all(dset, manager.finalize_image(1))
    inside = np.zeros(SHAPE, bool)
    inside[30:150, 20:120] = True
    assert np.array_equal(found['class'][..., 0] != 255, inside)
    assert np.array_equal((found['mask'] != 255).all(axis=2), inside)
    assert np.array_equal((found['disagreement'] != -9999).all(axis=2), inside)


def test_a_torch_canvas_gives_the_same(dset):
    pytest.importorskip('torch')
    manager = make_manager(dset, device='cpu')
    add_all(manager, make=with_holes)
    Reference(make=with_holes).check(read_all(dset, manager.finalize_image(1)),
                                     spread_step=STEP / 2)


def test_layers_of_ones_own_and_their_parameters(dset):
    """Two masks, a limit of one's own, and channels by choice."""
    layers = {ThresholdMask(0.2): 'low_a|low_b|low_c', ThresholdMask((0.5, 0.6, 0.7)): None,
              Disagreement(0.25): 'std.0:3', 'class': 'landcover'}
    with make_manager(dset, layers=layers, expected_minmax=None) as manager:
        add_all(manager, windows=shuffled(GRID))
        info = manager.finalize_image(1)
    assert [asset['channels'] for asset in list_assets(dset)] == [
        'a|b|c', 'low_a|low_b|low_c', 'a_mask|b_mask|c_mask', 'std.0:3', 'landcover']
    assert list(info['layers']) == ['mask', 'mask_2', 'disagreement', 'class']
    found, reference = read_all(dset, info), Reference()
    reference.check_mask(found['mask'], 0.2)
    reference.check_mask(found['mask_2'], np.array([0.5, 0.6, 0.7]))
    spread = dset.coco_image(1).imdelay('std.0:3', space='asset').finalize()
    assert list_assets(dset)[3]['quantization']['orig_max'] == 0.25
    assert np.abs(spread - np.minimum(reference.spread, 0.25)).max() <= 1e-4


@dataclasses.dataclass(frozen=True)
class Range:
    """Largest minus smallest mean."""

    name: ClassVar[str] = 'range'
    needs_deviations: ClassVar[bool] = False
    overviews: ClassVar[str] = 'average'

    def describe(self, n_bands, codec=None):
        return LayerFormat('float32', 1, np.nan)

    def compute(self, mean, weights=None, deviations=None, codec=None):
        return np.ptp(mean, axis=2, keepdims=True).astype('f4')


@pytest.mark.parametrize('declare', [True, False])
def test_a_layer_of_another_kind(dset, declare):
    with make_manager(dset, layers=[Range()]) as manager:
        add_all(manager, declare=declare)
        info = manager.finalize_image(1)
    assert list_assets(dset)[1]['channels'] == 'pred_range'
    assert 'nodata' not in list_assets(dset)[1]
    found = read_gdal(get_path(dset, info, 'range'))
    assert np.abs(found[..., 0] - np.ptp(Reference().mean, axis=2)).max() < 1e-5


# --- the files -----------------------------------------------------------

@pytest.fixture(scope='module')
def placed(tmp_path_factory):
    """A georeferenced image with a frame of nodata, stitched with all layers."""
    folder = tmp_path_factory.mktemp('placed')
    dset = make_dataset(folder, 1, wld_to_pxl={
        'type': 'affine', 'scale': 0.1, 'offset': (-50000, 400000)}, wld_crs_info={
        'auth': ['EPSG', '32618'], 'axis_mapping': 'OAMS_TRADITIONAL_GIS_ORDER'})
    with make_manager(dset, prob_compress='DEFLATE') as manager:
        add_all(manager, make=with_holes)
        info = manager.finalize_image(1)
    manager.dump()
    return kwcoco.CocoDataset(dset.fpath), info


def test_entries_of_the_manifest(placed):
    dset, info = placed
    assert dset.validate() == {'errors': [], 'warnings': []}
    common = {'height': SHAPE[0], 'width': SHAPE[1], 'warp_aux_to_img': {'type': 'affine'}}
    assert list_assets(dset)[1:] == [
        {'file_name': '_assets/pred/im1_pred_class.tif', 'channels': 'pred_class',
         'num_bands': 1, 'nodata': 255, 'categories': ['a', 'b', 'c'], **common},
        {'file_name': info['layers']['mask'], 'channels': 'a_mask|b_mask|c_mask',
         'num_bands': 3, 'nodata': 255, **common},
        {'file_name': info['layers']['disagreement'], 'channels': 'a_std|b_std|c_std',
         'num_bands': 3, 'quantization': {
             'orig_dtype': 'float32', 'orig_min': 0.0, 'orig_max': 0.5, 'quant_min': 0,
             'quant_max': 32767, 'nodata': -9999}, **common}]
    assert info['layers']['mask'].endswith('_mask.tif')
    assert info['layers']['disagreement'].endswith('_disagreement.tif')
    assert dset.index.imgs[1]['has_predictions'] == {'a|b|c': True}


@pytest.mark.parametrize('name, nodata, scale', [
    ('class', 255, None), ('mask', 255, None), ('disagreement', -9999, STEP / 2)])
def test_a_tiff_says_everything_without_the_manifest(placed, name, nodata, scale):
    dset, info = placed
    fpath = get_path(dset, info, name)
    verify_cog(fpath, full=True)
    entry = next(asset for asset in list_assets(dset)
                 if asset['file_name'] == info['layers'][name])
    dataset, main_ = gdal.Open(fpath), gdal.Open(get_path(dset, info))
    assert dataset.GetMetadataItem('LAYOUT', 'IMAGE_STRUCTURE') == 'COG'
    assert dataset.GetMetadataItem('COMPRESSION', 'IMAGE_STRUCTURE') == 'DEFLATE'
    assert dataset.GetGeoTransform() == main_.GetGeoTransform() == pytest.approx(
        (500000, 10, 0, -4000000, 0, 10))
    assert dataset.GetSpatialRef().GetAuthorityCode(None) == '32618'
    metadata = dataset.GetMetadata()
    assert metadata['channels'] == entry['channels']
    assert json.loads(metadata['quantization']) == entry.get('quantization')
    assert ('categories' in metadata) == (name == 'class')
    if name == 'class':
        assert json.loads(metadata['categories']) == entry['categories'] == ['a', 'b', 'c']
    for index, channel in enumerate(entry['channels'].split('|')):
        band = dataset.GetRasterBand(index + 1)
        assert band.GetDescription() == channel and band.GetNoDataValue() == nodata
        assert band.GetBlockSize() == [64, 64]
        assert band.GetScale() == pytest.approx(scale) if scale else band.GetScale() in (None, 1)
        del band


@pytest.mark.parametrize('name', ['class', 'mask'])
def test_overviews_of_categories_hold_no_others(placed, name):
    dset, info = placed
    fpath = get_path(dset, info, name)
    data = read_gdal(fpath)
    dataset = gdal.Open(fpath)
    count = dataset.GetRasterBand(1).GetOverviewCount()
    assert count >= 2
    for level in range(count):
        data = data[::2, ::2]
        assert np.array_equal(read_gdal(fpath, level), data)


def test_overviews_of_a_disagreement_are_means(placed):
    dset, info = placed
    fpath = get_path(dset, info, 'disagreement')
    full = np.where((data := read_gdal(fpath)) == -9999, np.nan, data.astype('f8'))
    quads = np.stack([full[y::2, x::2] for y in (0, 1) for x in (0, 1)])
    codes = read_gdal(fpath, 0)
    assert np.array_equal(codes == -9999, np.isnan(quads).all(axis=0))
    valid = codes != -9999
    assert np.abs(codes[valid] - np.nanmean(quads[:, valid], axis=0)).max() <= 0.5 + 1e-9


@pytest.mark.parametrize('space, scale', [('video', 1), ('video', 0.5), ('image', 0.5)])
def test_kwcoco_reads_them_in_place(tmp_path, space, scale):
    """A square on the asset grid is found again in stitching space, in every layer."""
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(tmp_path / 'out.kwcoco.json')
    video_id = dset.add_video(name='vid', width=48, height=40)
    dset.add_image(name='f', width=96, height=80, video_id=video_id, frame_index=0, auxiliary=[],
                   warp_img_to_vid={'type': 'affine', 'scale': 0.5})
    width, height = (48, 40) if space == 'video' else (96, 80)
    data = np.zeros((int(height * scale), int(width * scale), 2))
    data[..., 0] = 0.4
    data[4:10, 6:16, 1] = 1
    data[12:16, :4] = np.nan
    place = {'asset_dsize': data.shape[1::-1], 'scale_asset_from_stitchspace': scale}
    with CocoStitchingManager(dset, 'pred', 'a|b', space, expected_minmax=(0, 1),
                              layers=ALL) as manager:
        manager.accumulate_image(1, None, data, **place)
        # Windows that agree, and one corner where they do not.
        manager.accumulate_image(1, (slice(0, 2), slice(0, 2)), data[:2, :2] + 0.5)
    manager.dump()
    coco_img = kwcoco.CocoDataset(dset.fpath).coco_image(1)
    for channel in ('pred_class', 'b_mask'):
        found = coco_img.imdelay(channel, space=space, interpolation='nearest',
                                 nodata_method='float').finalize()
        found = np.atleast_3d(found)[..., 0]
        assert found.shape == (height, width)
        expected = np.where(np.isnan(data[..., 0]), np.nan, data[..., 1] > 0.5)
        expected[:2, :2] = channel == 'b_mask' and np.nan
        expected = expected.repeat(round(1 / scale), 0).repeat(round(1 / scale), 1)
        ours = np.s_[round(2 / scale):]
        assert np.array_equal(found[ours], expected[ours], equal_nan=True)
    spread = coco_img.imdelay('a_std|b_std', space=space, interpolation='nearest').finalize()
    edge = round(2 / scale)
    assert np.abs(spread[:edge, :edge] - 0.25).max() < STEP
    assert np.nanmax(spread[edge:]) == 0
    assert np.array_equal(np.isnan(spread[..., 0])[edge:], np.isnan(expected)[edge:])


def test_ranges_of_channels_keep_well_formed_names(tmp_path):
    dset = make_dataset(tmp_path, 1)
    data = np.random.RandomState(0).rand(*SHAPE, 18)
    with CocoStitchingManager(dset, 'v1.2 a/b', 'x|hidden.0:16|other.3', 'image', layers=ALL,
                              expected_minmax=(0, 1)) as manager:
        manager.accumulate_image(1, None, data)
    manager.dump()
    reopened = kwcoco.CocoDataset(dset.fpath)
    codes = [asset['channels'] for asset in list_assets(reopened)[1:]]
    assert codes == ['v1_2_a_b_class', 'x_mask|hidden_mask.0:16|other_mask.3',
                     'x_std|hidden_std.0:16|other_std.3']
    coco_img = reopened.coco_image(1)
    for code in codes:
        spec = FusedChannelSpec.coerce(code)
        # kwcoco shortens specs, which fails on names such as 'hidden.0_mask'.
        assert spec.concise().normalize().as_list() == spec.as_list()
    found = coco_img.imdelay('hidden_mask.0:16', space='image').finalize()
    assert np.array_equal(found, data[..., 1:17] > 0.5)
    some = coco_img.imdelay('hidden_mask.7|other_std.3|x|v1_2_a_b_class').finalize()
    assert np.array_equal(some[..., 0], data[..., 8] > 0.5)
    assert (some[..., 1] == 0).all() and np.abs(some[..., 2] - data[..., 0]).max() <= STEP
    assert np.array_equal(some[..., 3], data.argmax(axis=2))
    assert list_assets(reopened)[1]['categories'][:3] == ['x', 'hidden.0', 'hidden.1']


def test_names_of_channels_that_kwcoco_knows_by_another(tmp_path):
    assert [spec.chan_code for spec in AssetOptions('rgb|h:2', layers=['mask']).assets] == [
        'rgb|h:2', 'r_mask|g_mask|b_mask|h_mask.0|h_mask.1']


@pytest.mark.parametrize('quantize', [True, False])
def test_many_classes(tmp_path, quantize):
    dset = make_dataset(tmp_path, 1)
    data = np.random.RandomState(0).rand(*SHAPE, 300).astype('f4')
    with CocoStitchingManager(dset, None, 'h.0:300', 'image', expected_minmax=(0, 1),
                              quantize=quantize, write_probs=False, layers=['class']) as manager:
        manager.accumulate_image(1, None, data)
        info = manager.finalize_image(1)
    found = read_gdal(get_path(dset, info, 'class'))
    assert found.dtype == np.uint16 and np.array_equal(found[..., 0], data.argmax(axis=2))
    entry, = list_assets(dset)
    assert entry['file_name'] == '_assets/im1_pred_class.tif'
    assert entry['nodata'] == 65535 and len(entry['categories']) == 300


# --- png -----------------------------------------------------------------

def test_png(dset):
    with make_manager(dset, prob_format='png') as manager:
        add_all(manager, make=with_holes)
        info = manager.finalize_image(1)
    assert all(name.endswith('.png') for name in info['layers'].values())
    reference = Reference(make=with_holes)
    coco_img = dset.coco_image(1)
    classes, mask = (np.atleast_3d(coco_img.imdelay(code, space='asset').finalize())
                     for code in ('pred_class', 'a_mask|b_mask|c_mask'))
    reference.check({'class': classes, 'mask': mask})
    spread = coco_img.imdelay('a_std|b_std|c_std', space='asset').finalize()
    assert np.array_equal(np.isnan(spread[..., 0]), reference.is_nodata)
    assert np.nanmax(np.abs(spread - reference.spread)) <= 1 / 500
    assert [asset.get('nodata') for asset in list_assets(dset)] == [None, 255, 255, None]


@pytest.mark.parametrize('options, message', [
    ({'layers': ['disagreement'], 'expected_minmax': None}, "'disagreement'.*float32.*cog"),
    ({'layers': [Disagreement(2)], 'expected_minmax': None}, 'int16.*cog'),
    ({'layers': ['disagreement'], 'quantize': False, 'write_probs': False}, 'float32'),
    ({'layers': ['class', 'mask'], 'chan_code': 'h.0:5', 'write_probs': False}, '4 bands.*5'),
    ({'layers': [Range()]}, 'float32')])
def test_what_does_not_fit_a_png_is_refused_first(tmp_path, options, message):
    with pytest.raises(OptionError, match=message):
        make_manager(make_dataset(tmp_path), prob_format='png', **options)
    assert os.listdir(tmp_path) == []


# --- without the mean ----------------------------------------------------

@pytest.mark.parametrize('declare', [True, False])
@pytest.mark.parametrize('name', ['cog', 'free range', 'png'])
def test_layers_without_the_mean(dset, name, declare, monkeypatch):
    options, step = FORMATS[name]
    if name == 'free range':
        # A png of 8 bits and a disagreement of unknown range do not go together.
        options = {**options, 'prob_format': 'tif'}
    made, init = [], RasterSink.__init__

    def watch(self, image_id, shape, dtype, *args, **options):
        made.append((type(self).__name__, shape[2], np.dtype(dtype).name))
        init(self, image_id, shape, dtype, *args, **options)
    monkeypatch.setattr(RasterSink, '__init__', watch)
    manager = make_manager(dset, write_probs=False, **options)
    add_all(manager, declare=declare)
    assert type(manager._table.get(1).pixels) is (StreamedPixels if declare else CanvasPixels)
    dtype = {'png': 'uint8', 'cog': 'int16'}.get(name, 'float32')
    kind = 'EncoderSink' if name == 'cog' else 'SpoolSink'
    assert made == ([(kind, 1, 'uint8'), (kind, 3, 'uint8'), (kind, 3, dtype)] if declare else [])
    info = manager.finalize_image(1)
    assert (info['file_name'], info['n_clipped'], info['total_prob']) == (None, 0, 0)
    Reference().check(read_all(dset, info), spread_step=step)
    assert [asset['channels'] for asset in list_assets(dset)] == [
        'pred_class', 'a_mask|b_mask|c_mask', 'a_std|b_std|c_std']
    assert dset.index.imgs[1]['has_predictions'] == {'a|b|c': True}
    assert len(list_files(manager)) == 3


def test_polygons_without_the_mean(tmp_path):
    annotations = []
    for kind, write_probs in (('with', True), ('without', False)):
        (tmp_path / kind).mkdir()
        dset = make_dataset(tmp_path / kind, 1)
        with make_manager(dset, write_probs=write_probs, write_preds=True, thresh=0.9) as manager:
            add_all(manager)
            assert manager.finalize_image(1)['n_anns'] > 10
        annotations.append([(a['bbox'], a['score']) for a in dset.annots().objs])
    assert annotations[0] == annotations[1]


def test_files_are_the_same_with_and_without_polygons(tmp_path):
    """The mean is compressed as it comes, or only when polygons were made of it."""
    contents = []
    for write_preds in (False, True):
        dset = make_dataset(tmp_path / f'{write_preds}', 1)
        with make_manager(dset, write_preds=write_preds, thresh=2) as manager:
            add_all(manager, windows=shuffled(GRID), make=with_holes)
            info = manager.finalize_image(1)
        contents.append((info, [Path(manager.prob_dpath, name).read_bytes()
                                for name in list_files(manager)]))
    assert contents[0] == contents[1] and len(contents[0][1]) == 4


def test_two_managers_share_a_folder_and_the_channels(dset):
    """One writes the mean, another the layers; each has a journal of its own."""
    for options in ({'layers': ()}, {'write_probs': False, 'layers': ['class', 'mask']}):
        with make_manager(dset, **options) as manager:
            add_all(manager)
    assert len(list_assets(dset)) == 3
    fresh = make_dataset(Path(dset.bundle_dpath))
    for options in ({'layers': ()}, {'write_probs': False, 'layers': ['class', 'mask']}):
        assert make_manager(fresh, resume=True, **options).seen_image_ids == {1}
    assert list_assets(fresh) == list_assets(dset)


# --- options -------------------------------------------------------------

@pytest.mark.parametrize('layers, message', [
    ('class', "layers='class' must be a list"), (5, 'must be a list'), (['classes'], 'unknown'),
    (['class', 'class'], "'class' twice"), (['mask', ThresholdMask()], "'mask' twice"),
    ([ClassMap], 'unknown'), ([None], 'unknown'), ({'class': ''}, "'class'"),
    ({'class': 'a,b'}, 'fused'), ({'class': 'x|y'}, '1 bands.*2 channels'),
    ({'class': 7}, 'fused'), ({'mask': 'x|y'}, '3 bands.*2 channels'),
    ({'mask': 'x|y|x'}, 'distinct'), ({'class': 'a'}, "channel 'a'.*chan_code.*dict"),
    ([ThresholdMask(0.1), ThresholdMask(0.2)], "'a_mask'.*ThresholdMask.*dict"),
    ({'class': 'c_mask', 'mask': None}, "'c_mask'.*ClassMap"),
    ([ThresholdMask((0.1, 0.2))], '2 numbers'), ({'class': 'x:y'}, 'spec')])
def test_wrong_layers_are_refused_before_anything_is_made(tmp_path, layers, message):
    with pytest.raises(OptionError, match=message):
        make_manager(make_dataset(tmp_path), layers=layers)
    assert os.listdir(tmp_path) == []


def test_a_class_map_needs_classes(tmp_path):
    with pytest.raises(OptionError, match="at least 2 bands.*'mask'"):
        make_manager(make_dataset(tmp_path), 'a', layers=['class'])
    make_manager(make_dataset(tmp_path), 'a', layers=['mask', 'disagreement'])


def test_default_names_that_meet_a_channel_are_refused(tmp_path):
    with pytest.raises(OptionError, match="'a_std'.*chan_code"):
        make_manager(make_dataset(tmp_path), 'a|a_std', layers=['disagreement'])
    make_manager(make_dataset(tmp_path), 'a|a_std', layers={'disagreement': 'x|y'})


@pytest.mark.parametrize('change, message', [
    ({'name': 'a.b'}, 'letters'), ({'name': '../x'}, 'letters'), ({'name': ''}, 'letters'),
    ({'overviews': 'cubic'}, 'cubic'), ({'__repr__': object.__repr__}, 'frozen dataclass'),
    ({'__hash__': None}, 'frozen dataclass')])
def test_layers_of_ones_own_are_checked(tmp_path, change, message):
    layer = type('Odd', (Range,), change)()
    with pytest.raises(OptionError, match=message):
        make_manager(make_dataset(tmp_path), layers=[layer])


def test_no_layers_is_no_option(tmp_path):
    for layers in (None, (), [], {}):
        options = AssetOptions('a|b|c', layers=layers)
        assert options.layers == () and options == AssetOptions('a|b|c')
        # Journals of runs before there were layers can still be resumed.
        assert options.config_hash == '5640767d1db61920'


def test_layers_change_the_hash_and_nothing_else_does(tmp_path):
    hashes = {AssetOptions('a|b', layers=layers).config_hash for layers in (
        (), ('class',), ('mask',), ('class', 'mask'), (ThresholdMask(0.4),), ({'mask': 'x|y'}),
        ('disagreement',), (Disagreement(1),), (Disagreement(2),), (Range(),))}
    assert len(hashes) == 10
    code = ('from cocoseg.coco.options import AssetOptions; print(AssetOptions('
            "'a|b', layers=['class', 'mask', 'disagreement']).config_hash)")
    ours = AssetOptions('a|b', layers=[ClassMap(), ThresholdMask(0.5), Disagreement()])
    for seed in '01':
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                              env={**os.environ, 'PYTHONHASHSEED': seed}, check=True,
                              cwd=Path(__file__).resolve().parents[2])
        assert done.stdout.strip() == ours.config_hash
    assert hash(ours) == hash(AssetOptions('a|b', layers=['class', 'mask', 'disagreement']))


# --- channels that are taken ---------------------------------------------

def test_a_channel_that_the_image_has_is_a_collision(tmp_path):
    old = {'file_name': 'old.tif', 'channels': 'pred_class', 'width': SHAPE[1],
           'height': SHAPE[0], 'warp_aux_to_img': {'type': 'affine'}}
    write_cog(tmp_path / 'old.tif', np.zeros(SHAPE, 'u1'))
    dset = make_dataset(tmp_path, 1)
    list_assets(dset).append(old)
    manager = make_manager(dset)
    for _ in range(2):
        with pytest.raises(ChannelCollisionError, match="'pred_class'.*on_collision"):
            manager.expect_windows(1, GRID)
        with pytest.raises(ChannelCollisionError, match="'pred_class'"):
            manager.accumulate_image(1, None, IMAGE)
    assert manager.image_state(1) is ImageState.UNSEEN and list_files(manager) == []
    # Nothing stays claimed.
    holder = make_manager(dset, layers=())
    holder.expect_windows(1, GRID)
    other = CocoStitchingManager(dset, 'other', 'a|b|c', 'image', on_collision='replace')
    with pytest.raises(ChannelCollisionError, match='another manager'):
        other.expect_windows(1, GRID)
    # What a manager promised that is closed or forgotten is not kept.
    del holder
    gc.collect()
    other.expect_windows(1, GRID)


def test_replacing_all_assets_of_an_earlier_run(dset):
    for value, collision in ((0.25, 'raise'), (0.75, 'replace')):
        with make_manager(dset, on_collision=collision) as manager:
            add_all(manager, make=lambda window, value=value: np.full(
                (*window.shape, 3), [0, value, 0.5]))
    assert [asset['channels'] for asset in list_assets(dset)] == [
        'a|b|c', 'pred_class', 'a_mask|b_mask|c_mask', 'a_std|b_std|c_std']
    found = dset.coco_image(1).imdelay('pred_class|b|b_mask').finalize()
    assert np.abs(found - [1, 0.75, 1]).max() <= STEP
    assert len(list_files(manager)) == 4
    with pytest.raises(ChannelCollisionError):
        make_manager(dset).expect_windows(1, GRID)


def test_an_asset_that_holds_more_than_a_layer_may_not_go(tmp_path):
    dset = make_dataset(tmp_path, 1)
    list_assets(dset).append({'file_name': 'x.tif', 'channels': 'pred_class|z'})
    with pytest.raises(ChannelCollisionError, match='whole asset'):
        make_manager(dset, on_collision='replace').expect_windows(1, GRID)
    # One that our assets hold together may.
    list_assets(dset)[0]['channels'] = 'pred_class|a'
    with make_manager(dset, on_collision='replace') as manager:
        add_all(manager)
    assert len(list_assets(dset)) == 4


def test_two_managers_with_one_short_code(dset):
    """The class map is called after the short code, so the second has to choose a name."""
    first, second = make_manager(dset), make_manager(dset, 'x|y|z')
    add_all(first)
    with pytest.raises(ChannelCollisionError, match="'pred_class' of image 1.*layers={layer"):
        second.expect_windows(1, GRID)
    third = make_manager(dset, 'x|y|z', layers={'class': 'other_class', 'mask': None})
    add_all(third, make=lambda window: 1 - predict(window))
    # Each image has its own channels.
    add_all(second, 2)
    for manager in (third, first, second):
        manager.close()
    assert [len(list_assets(dset, image_id)) for image_id in (1, 2)] == [4 + 3, 4]
    names = list_files(first)
    assert len(names) == len(set(names)) == 11
    both = dset.coco_image(1).imdelay('pred_class|other_class').finalize()
    assert np.array_equal(both[..., 0], Reference().mean.argmax(axis=2))
    assert (both[..., 0] != both[..., 1]).mean() > 0.9
    assert dset.index.imgs[1]['has_predictions'] == {'a|b|c': True, 'x|y|z': True}


def test_a_closed_manager_gives_all_channels_back(dset):
    with pytest.raises(ZeroDivisionError), make_manager(dset) as first:
        first.accumulate_image(1, None, IMAGE)
        raise ZeroDivisionError
    with make_manager(dset) as second:
        second.accumulate_image(1, None, IMAGE)
    assert len(list_assets(dset)) == 4


# --- failures ------------------------------------------------------------

class WriteFaults:
    """
    Lets chosen writes fail, after the file was made on the disk.

    Of pixels, and of tiles that were compressed as they came; the first writes
    a COG by the second.
    """

    def __init__(self, monkeypatch):
        self.n_written, self.left = 0, {}
        self._is_inside = False
        for module, name in ((images_module, 'write_image'), (cog_module, 'write_encoded')):
            monkeypatch.setattr(module, name, self._watch(getattr(module, name)))

    def _watch(self, real):
        def write(fpath, *args, **kwargs):
            if self._is_inside:
                return real(fpath, *args, **kwargs)
            name = next((key for key, n in self.left.items() if n and key in str(fpath)), None)
            if name is not None:
                self.left[name] -= 1
                raise OSError(errno.ENOSPC, 'No space left on device (simulated)',
                              os.fspath(fpath))
            self._is_inside = True
            try:
                result = real(fpath, *args, **kwargs)
            finally:
                self._is_inside = False
            self.n_written += 1
            return result
        return write


@pytest.fixture()
def faults(monkeypatch):
    return WriteFaults(monkeypatch)


POLYGONS = {'write_preds': True, 'thresh': 0.99, 'polygon_categories': ['a']}
#: How pixels wait for their files: (options, whether windows are declared).
WAITING = {
    'compressed': ({}, True), 'raw mean': (POLYGONS, True),
    'raw': ({**POLYGONS, 'prob_format': 'tif'}, True), 'canvas': (POLYGONS, False)}


@pytest.mark.parametrize('way', WAITING)
@pytest.mark.parametrize('name, n_before', [('pred_class', 1), ('_mask', 2),
                                            ('_disagreement', 3)])
def test_a_failure_registers_nothing_and_shows_nothing(dset, faults, name, n_before, way):
    options, declare = WAITING[way]
    manager = make_manager(dset, **{'thresh': 0.99, **options})
    add_all(manager, declare=declare)
    before = json.dumps(dset.dataset)
    faults.left[name] = 2
    for attempt in (1, 2):
        with pytest.raises(AssetWriteError, match=f'image 1.*{name}.*simulated') as caught:
            manager.finalize_image(1)
        assert name in caught.value.path and os.path.dirname(caught.value.path) == str(
            manager.prob_dpath)
        assert '.tmp' not in str(caught.value)
        assert faults.n_written == attempt * n_before
        assert list_files(manager) == [] and not list(Path(manager.prob_dpath).glob('.*.jsonl'))
        assert json.dumps(dset.dataset) == before
        assert manager.image_state(1) is ImageState.FAILED and manager.managed_image_ids() == [1]
    info = manager.finalize_image(1)
    assert len(list_files(manager)) == 4 == len(list_assets(dset))
    assert info['n_anns'] == dset.n_annots
    assert (dset.n_annots > 0) == ('write_preds' in options)
    Reference().check(read_all(dset, info), thresh=0.99, spread_step=STEP / 2)


@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_older_files_survive_a_failed_write(dset, faults, name):
    options = FORMATS[name][0]
    with make_manager(dset, **options) as manager:
        add_all(manager)
    folder = Path(manager.prob_dpath)
    before = {name: (folder / name).read_bytes() for name in list_files(manager)}
    again = make_manager(dset, on_collision='replace', **options)
    add_all(again, make=lambda window: 1 - predict(window))
    faults.left['_disagreement'] = 1
    with pytest.raises(AssetWriteError):
        again.finalize_image(1)
    assert {name: (folder / name).read_bytes() for name in list_files(manager)} == before
    assert len(before) == 4 == len(list_assets(dset))
    again.finalize_image(1)
    after = {name: (folder / name).read_bytes() for name in list_files(manager)}
    assert set(after) == set(before) and len(set(after.values()) - set(before.values())) >= 3


def test_a_target_that_is_a_folder(dset):
    manager = make_manager(dset)
    add_all(manager)
    obstacle = Path(manager.prob_dpath, 'im1_pred_class.tif')
    obstacle.mkdir()
    with pytest.raises(AssetWriteError, match='image 1'):
        manager.finalize_image(1)
    assert list_assets(dset) == [] and list_files(manager) == [obstacle.name]
    obstacle.rmdir()
    manager.finalize_image(1)
    assert len(list_assets(dset)) == 4


def test_a_failure_of_the_journal_registers_nothing(dset, monkeypatch):
    manager = make_manager(dset)
    add_all(manager)

    def fail(record):
        raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
    monkeypatch.setattr(manager._finisher._journal, 'append', fail)
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    assert list_assets(dset) == [] and manager.seen_image_ids == set()
    monkeypatch.undo()
    manager.finalize_image(1)
    assert len(list_assets(dset)) == 4 == len(list_files(manager))


@pytest.mark.parametrize('name', ['cog', 'tif'])
@pytest.mark.parametrize('submit', [False, True])
def test_a_block_of_a_layer_that_cannot_be_stored(dset, monkeypatch, submit, name):
    """The mean took the block already, and is not offered it again."""
    watch = StoreFaults(monkeypatch)
    manager = make_manager(dset, writer_queue=EagerQueue(), **FORMATS[name][0])

    def is_of_classes(store):
        """Tell by the bands, of a spool or of the encoder that it belongs to."""
        encoders = [encoder for encoder in get_encoders(manager) if encoder is not None]
        shapes = {encoder._spool: encoder.shape for encoder in encoders}
        return shapes.get(store, getattr(store, 'shape', (0, 0, 0)))[2] == 1
    watch.only, watch.n_failures = is_of_classes, math.inf
    add_all(manager)
    wait_for_tiles(manager)
    assert manager.ready_image_ids() == [1]
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='image 1.*simulated'):
            manager.submit_finalize_image(1) if submit else manager.finalize_image(1)
        assert list_files(manager) == [] and list_assets(dset) == []
    watch.n_failures = 3
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    watch.n_failures = 0
    Reference().check(read_all(dset, manager.finalize_image(1)), spread_step=STEP / 2)
    times = Counter(watch.taken)
    assert len(times) == 12 and set(times.values()) == {4}


@pytest.mark.parametrize('options, n_spools', [
    ({'prob_format': 'tif'}, 4), ({'expected_minmax': None}, 1), (POLYGONS, 1)])
def test_no_room_for_one_of_the_spools(dset, monkeypatch, options, n_spools):
    """What is compressed as it comes reserves none."""
    manager = make_manager(dset, memory_budget=1 << 30, **{'thresh': 0.99, **options})
    manager.expect_windows(1, GRID)
    real, calls = os.posix_fallocate, []
    refused = min(n_spools, 3)

    def refuse_one(descriptor, offset, nbytes):
        calls.append(nbytes)
        if len(calls) in (refused, refused + 1):
            raise OSError(errno.ENOSPC, 'No space left on device')
        real(descriptor, offset, nbytes)
    monkeypatch.setattr(os, 'posix_fallocate', refuse_one)
    first = next(iter(GRID))
    for _ in range(2):
        with pytest.raises(CanvasError, match='image 1.*No space left'):
            manager.accumulate_image(1, first, predict(first))
    assert manager.pending_windows(1) == sorted(GRID) and not manager.patch_counts
    for window in GRID:
        manager.accumulate_image(1, window, predict(window))
    assert len(calls) == n_spools + 2
    step = None if 'expected_minmax' in options else STEP / 2
    Reference().check(read_all(dset, manager.finalize_image(1)), thresh=0.99, spread_step=step)


# --- resuming ------------------------------------------------------------

def run_first(folder, image_ids=(1, 2), dump=False, **options):
    """A run that ends (as if killed) after some images; return a fresh dataset."""
    folder.mkdir(exist_ok=True)
    dset = make_dataset(folder)
    manager = make_manager(dset, **options)
    for image_id in image_ids:
        add_all(manager, image_id, windows=shuffled(GRID, image_id))
        manager.finalize_image(image_id)
    if dump:
        manager.dump()
        return kwcoco.CocoDataset(dset.fpath)
    return make_dataset(folder)


def finish(dset, **options):
    """Resume and do what is left; return the ids that were done before."""
    with make_manager(dset, resume=True, **options) as manager:
        done = manager.seen_image_ids
        for image_id in {1, 2, 3} - done:
            add_all(manager, image_id, windows=shuffled(GRID, image_id))
    manager.dump()
    return done


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """The folder of a run that nothing cut short."""
    folder = tmp_path_factory.mktemp('whole')
    finish(make_dataset(folder))
    return folder


def check_same(folder, other):
    """Compare all files of two bundles, and their manifests."""
    folders = [path / '_assets' / 'pred' for path in (folder, other)]
    names = [sorted(path.name for path in one.iterdir() if path.suffix != '.jsonl')
             for one in folders]
    assert names[0] == names[1] and len(names[0]) >= 9
    for name in names[0]:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    images = [kwcoco.CocoDataset(os.fspath(path / 'out.kwcoco.json')).dataset['images']
              for path in (folder, other)]
    for one, two in zip(*images):
        assert sorted(one['auxiliary'], key=str) == sorted(two['auxiliary'], key=str)
        assert one['has_predictions'] == two['has_predictions']


@pytest.mark.parametrize('dump', [False, True])
@pytest.mark.parametrize('write_probs', [True, False])
def test_a_resumed_run_does_only_what_is_left(tmp_path, dump, write_probs):
    options = {'write_probs': write_probs}
    finish(make_dataset(tmp_path / 'whole'), **options)
    dset = run_first(tmp_path / 'cut', dump=dump, **options)
    stats = {path: path.stat().st_mtime_ns for path in (tmp_path / 'cut').rglob('*.tif')}
    assert finish(dset, **options) == {1, 2}
    check_same(tmp_path / 'cut', tmp_path / 'whole')
    for path, mtime in stats.items():
        assert path.stat().st_mtime_ns == mtime
    assert finish(make_dataset(tmp_path / 'cut'), **options) == {1, 2, 3}


def truncate(fpath):
    os.truncate(fpath, fpath.stat().st_size - 40)


def flip_a_byte(fpath):
    content = bytearray(fpath.read_bytes())
    content[len(content) // 2] ^= 0xFF
    fpath.write_bytes(content)


@pytest.mark.parametrize('dump', [False, True])
@pytest.mark.parametrize('damage', [os.unlink, truncate, flip_a_byte])
@pytest.mark.parametrize('index', range(4))
def test_an_image_with_one_damaged_file_is_redone(tmp_path, whole, damage, index, dump):
    dset = run_first(tmp_path / 'cut', dump=dump)
    line = json.loads(get_journal(make_manager(dset, resume=True)).read_text().splitlines()[0])
    files = [line['record'], *line['record']['layers']]
    assert len(files) == 4
    damage(Path(dset.bundle_dpath, files[index]['asset']['file_name']))
    dset = kwcoco.CocoDataset(dset.fpath) if dump else make_dataset(tmp_path / 'cut')
    manager = make_manager(dset, resume=True)
    assert manager.seen_image_ids == {2}
    # Nothing of a broken image stays registered, and all of a whole one is.
    assert list_assets(dset, 1) == [] and len(list_assets(dset, 2)) == 4
    assert finish(dset) == {2}
    check_same(tmp_path / 'cut', whole)


def test_a_kill_between_the_files_and_the_journal(tmp_path, whole):
    """All files have their names, but no line says so."""
    dset = run_first(tmp_path / 'cut')
    journal, = (tmp_path / 'cut').rglob('*.jsonl')
    first, second = journal.read_text().splitlines()
    journal.write_text(first + '\n' + second[:len(second) // 2])
    assert finish(dset) == {1}
    check_same(tmp_path / 'cut', whole)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize('n_renames', range(4))
def test_a_kill_between_two_names(tmp_path, whole, monkeypatch, n_renames):
    """Some files have their names; the next run makes the same bytes, and sweeps."""
    dset = make_dataset(tmp_path / 'cut')
    manager = make_manager(dset)
    add_all(manager, 1, windows=shuffled(GRID, 1))
    real, finals = os.replace, []

    def replace(src, dst):
        if not os.path.basename(dst).startswith('.'):
            if len(finals) == n_renames:
                raise Killed
            finals.append(dst)
        real(src, dst)
    monkeypatch.setattr(os, 'replace', replace)
    with pytest.raises(Killed):
        manager.finalize_image(1)
    monkeypatch.undo()
    assert list_assets(dset) == [] and list_files(manager) == sorted(map(os.path.basename, finals))
    assert finish(make_dataset(tmp_path / 'cut')) == set()
    check_same(tmp_path / 'cut', whole)


def test_the_journal_names_every_file(tmp_path):
    run_first(tmp_path)
    journal, = tmp_path.rglob('*.jsonl')
    for line in journal.read_text().splitlines():
        record = json.loads(line)['record']
        files = [record, *record['layers']]
        assert [file['asset']['channels'] for file in files] == [
            'a|b|c', 'pred_class', 'a_mask|b_mask|c_mask', 'a_std|b_std|c_std']
        for file in files:
            fpath = tmp_path / file['asset']['file_name']
            assert file['nbytes'] == fpath.stat().st_size and len(file['checksum']) == 8


def test_a_manifest_that_lost_one_asset_gets_it_back(tmp_path):
    dset = run_first(tmp_path, dump=True)
    del list_assets(dset, 1)[2]
    assert make_manager(dset, resume=True).seen_image_ids == {1, 2}
    assert sorted(asset['channels'] for asset in list_assets(dset, 1)) == [
        'a_mask|b_mask|c_mask', 'a_std|b_std|c_std', 'a|b|c', 'pred_class']


@pytest.mark.parametrize('layers', [(), ('class',), ('class', 'mask', Disagreement(1)),
                                    {'class': 'x', 'mask': None, 'disagreement': None}])
def test_other_layers_cannot_resume(tmp_path, layers):
    dset = run_first(tmp_path)
    with pytest.raises(ResumeError, match='other settings'):
        make_manager(dset, resume=True, layers=layers)
    assert list_assets(dset, 1) == []


def test_layers_cannot_be_added_to_a_run_without(tmp_path):
    dset = run_first(tmp_path, layers=())
    with pytest.raises(ResumeError, match='other settings'):
        make_manager(dset, resume=True)
    assert make_manager(dset, resume=True, layers=()).seen_image_ids == {1, 2}


# --- memory --------------------------------------------------------------

def test_one_raster_at_a_time_is_in_memory(dset, monkeypatch):
    """Whole canvases: the arrays of earlier files are gone when the next is written."""
    alive, real = [], images_module.write_image

    def write_image(fpath, data, **options):
        assert [ref() for ref in alive] == [None] * len(alive)
        alive.append(weakref.ref(data))
        return real(fpath, data, **options)
    monkeypatch.setattr(images_module, 'write_image', write_image)
    manager = make_manager(dset)
    add_all(manager, declare=False)
    manager.finalize_image(1)
    assert len(alive) == 4


@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_bytes_that_wait(dset, monkeypatch, name):
    made, tiles = watch_files(monkeypatch), watch_tile_files(monkeypatch)
    manager = make_manager(dset, **FORMATS[name][0])
    manager.expect_windows(1, GRID)
    job = manager._table.get(1)
    assert job.nbytes == 0
    for window in GRID:
        manager.accumulate_image(1, window, predict(window))
    wait_for_tiles(manager)
    # Codes of 2 bytes for the mean and the spread, of 1 byte for mask and classes.
    raw = [SHAPE[0] * SHAPE[1] * size for size in (3 * 2, 1, 3, 3 * 2)]
    if name == 'tif':
        assert job.nbytes == sum(raw)
    else:
        stored = [count_stored(encoder) for encoder in get_encoders(manager)]
        assert job.nbytes == sum(stored)
        # The mean is noise, and has overviews.
        assert stored[0] > raw[0] and min(stored) > 1000
    manager.finalize_image(1)
    assert job.nbytes == 0 and made == tiles == []


@pytest.mark.parametrize('options, n_raw', [
    ({}, 0), ({'prob_format': 'tif'}, 4), (POLYGONS, 1), ({'expected_minmax': None}, 1)])
def test_with_a_budget_every_layer_waits_in_a_file(tmp_path, monkeypatch, options, n_raw):
    """As it is, in the folder for temporary files; compressed, beside the assets."""
    made, tiles = watch_files(monkeypatch), watch_tile_files(monkeypatch)
    spill_tiles(monkeypatch)
    dset = make_dataset(tmp_path)
    manager = make_manager(dset, memory_budget=1 << 20, **options)
    manager.expect_windows(1, GRID)
    assert made == tiles == []
    for window in GRID:
        manager.accumulate_image(1, window, predict(window))
    wait_for_tiles(manager)
    assert [kind for kind, _ in made].count('spool') == n_raw
    assert tiles == [str(manager.prob_dpath)] * (4 - n_raw)
    assert manager._table.get(1).nbytes == 0 and list_files(manager) == []
    step = None if 'expected_minmax' in options else STEP / 2
    Reference().check(read_all(dset, manager.finalize_image(1)),
                      thresh=options.get('thresh', 0.5), spread_step=step)


# --- threads -------------------------------------------------------------

def test_threads_add_to_many_images(dset):
    manager = make_manager(dset, writer_queue=WriterQueue(workers=2))
    todo = [(image_id, window) for image_id in (1, 2, 3) for window in GRID]
    for image_id in (1, 2, 3):
        manager.expect_windows(image_id, GRID)
    np.random.RandomState(0).shuffle(todo)

    def work(item):
        image_id, window = item
        manager.accumulate_image(image_id, window, predict(window))
        for ready in manager.ready_image_ids():
            manager.submit_finalize_image(ready)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, todo))
    manager.flush_images()
    manager.close()
    reference = Reference()
    for image_id in (1, 2, 3):
        found = {name: read_gdal(os.path.join(dset.bundle_dpath, asset['file_name']))
                 for name, asset in zip(ALL, list_assets(dset, image_id)[1:])}
        assert len(found) == 3
        reference.check(found, spread_step=STEP / 2)


# --- from the outside ----------------------------------------------------

def make_source(folder):
    """Write a bundle of one image with the bands ``red|nir``; return its pixels."""
    folder.mkdir()
    data = np.random.RandomState(0).randint(0, 256, (52, 70, 2)).astype('u1')
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'data.kwcoco.json')
    image_id = dset.add_image(name='f', width=70, height=52, auxiliary=[])
    for band, name in enumerate(['red', 'nir']):
        kwimage.imwrite(folder / f'{name}.png', data[..., band])
        list_assets(dset, image_id).append({
            'file_name': f'{name}.png', 'channels': name, 'width': 70, 'height': 52,
            'warp_aux_to_img': {'type': 'affine'}})
    dset.dump()
    return data / np.float32(255)


def scale_down(image):
    """A predictor: bytes as fractions."""
    return image / np.float32(255)


def test_predict_dataset_makes_layers(tmp_path):
    data = make_source(tmp_path / 'src')
    dset = predict_dataset(tmp_path / 'src' / 'data.kwcoco.json', tmp_path / 'dst' / 'out.json',
                           scale_down, 24, 8, out_channels='p|q', expected_minmax=(0, 1),
                           layers={'class': 'bigger', 'mask': None})
    found = dset.coco_image(1).imdelay('bigger|p_mask|q_mask').finalize()
    clear = np.abs(data[..., 0] - data[..., 1]) > 1e-5
    assert np.array_equal(found[..., 0][clear], data.argmax(axis=2)[clear])
    assert np.array_equal(found[..., 1:], data > 0.5)


def test_the_command_line(tmp_path, capsys):
    data = make_source(tmp_path / 'src')
    (tmp_path / 'my_scaling.py').write_text(
        'def scale_down(image):\n    return image / 255\n')
    command = ['predict', str(tmp_path / 'src' / 'data.kwcoco.json'), '--dst',
               str(tmp_path / 'dst' / 'out.kwcoco.json'), '--predictor', 'my_scaling:scale_down',
               '--out_channels', 'p|q', '--window', '24', '--expected_minmax', '0', '1']
    sys.path.insert(0, str(tmp_path))
    try:
        assert main([*command, '--layers', 'class, mask,disagreement']) == 0
        assert main([*command, '--layers', 'klass']) == 1
    finally:
        sys.path.remove(str(tmp_path))
    assert "layer 'klass' is unknown" in capsys.readouterr().err
    dset = kwcoco.CocoDataset(os.fspath(tmp_path / 'dst' / 'out.kwcoco.json'))
    assert [asset['channels'] for asset in list_assets(dset)[2:]] == [
        'p|q', 'pred_class', 'p_mask|q_mask', 'p_std|q_std']
    found = dset.coco_image(1).imdelay('pred_class|q_std').finalize()
    clear = np.abs(data[..., 0] - data[..., 1]) > 1e-5
    assert np.array_equal(found[..., 0][clear], data.argmax(axis=2)[clear])
    assert np.abs(found[..., 1]).max() <= STEP


def test_a_window_that_overhangs_and_brings_weights(dset):
    """Layers of what was given, where windows were not declared."""
    manager = make_manager(dset)
    manager.accumulate_image(1, Window(-10, 0, SHAPE[0], SHAPE[1]),
                             np.full((SHAPE[0] + 10, SHAPE[1], 3), [0.9, 0.2, 0.1]))
    manager.accumulate_image(1, None, np.full((*SHAPE, 3), [0.1, 0.2, 0.9]),
                             weights=np.full(SHAPE, 3.0))
    found = read_all(dset, manager.finalize_image(1))
    assert np.unique(found['class']).tolist() == [2]
    assert (found['mask'] == [0, 0, 1]).all()
    expected = np.sqrt(3 / 16) * np.array([0.8, 0, 0.8])
    assert np.abs(found['disagreement'] * STEP / 2 - expected).max() <= STEP
