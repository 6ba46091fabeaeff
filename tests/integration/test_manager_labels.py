"""
Labels by the manager: tiles with ids of their own in, assets of ids out.

Judged against the labels that the tiles were cut from, and by GDAL, kwcoco,
delayed_image and shapely as readers.
"""
import itertools
import json
import logging
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import kwcoco
import kwimage
import numpy as np
import pytest
import shapely
from osgeo import gdal

from cocoseg import CocoStitchingManager, Window, WindowGrid, verify_cog
from cocoseg.cli.main import main
from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.manifest import Manifest
from cocoseg.errors import (AssetWriteError, BandCountError, BundleBusyError,
                            ChannelCollisionError, CoverageError, ImageClosedError, OptionError,
                            ResumeError, WindowShapeError)
from cocoseg.io import cog as cog_module
from cocoseg.io import images as images_module
from cocoseg.stitch.label import LabelStitcher

from ..builders import StoreFaults, fail_times, refuse

gdal.UseExceptions()

SHAPE = (150, 130)
GRID = WindowGrid(SHAPE, window=64, overlap=24)


def make_truth(seed=0, n_cells=40):
    """Return cells around random points, numbered by first pixel; some are nothing."""
    rng = np.random.default_rng(seed)
    points = rng.random((n_cells, 2)) * SHAPE
    ys, xs = np.mgrid[:SHAPE[0], :SHAPE[1]]
    distances = (ys[..., None] - points[:, 0]) ** 2 + (xs[..., None] - points[:, 1]) ** 2
    cells = distances.argmin(axis=2) + 1
    cells[cells > n_cells - 5] = 0
    return renumber(cells)


def renumber(labels):
    """Number ids by their first pixel, row by row."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    ids = np.unique(labels)
    order = [index for index in np.argsort(first) if ids[index] != 0]
    lut = np.zeros(len(ids), np.uint32)
    lut[order] = np.arange(1, len(order) + 1)
    return lut[inverse].reshape(labels.shape)


TRUTH = make_truth()


def cut(window, truth=TRUTH, dtype=np.int64):
    """Return the labels of a window under ids of its own, 0 outside of the image."""
    rng = np.random.default_rng([window.y0 + 1000, window.x0 + 1000])
    lut = np.concatenate([[0], 5 + rng.permutation(truth.max())])
    tile = np.zeros(window.shape, dtype)
    inside = window.clip(SHAPE)
    tile[inside.within(window).slices] = lut[truth[inside.slices]]
    return tile


def make_dataset(folder, n_images=2, **fields):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    for index in range(n_images):
        dset.add_image(name=f'im{index + 1}', width=SHAPE[1], height=SHAPE[0], auxiliary=[],
                       **fields)
    return dset


@pytest.fixture()
def dset(tmp_path):
    return make_dataset(tmp_path)


def make_manager(dset, **options):
    options = {'kind': 'labels', 'prob_blocksize': 64, **options}
    return CocoStitchingManager(dset, 'pred', 'segments', 'image', **options)


def add_all(manager, image_id=1, windows=GRID, declare=True, truth=TRUTH):
    if declare:
        manager.expect_windows(image_id, GRID)
    for window in windows:
        manager.accumulate_image(image_id, window, cut(window, truth))


def run_once(folder, **options):
    """Return a dataset, the figures of its image 1, and the path of its file."""
    dset = make_dataset(folder)
    with make_manager(dset, **options) as manager:
        add_all(manager)
        info = manager.finalize_image(1)
    return dset, info, get_path(dset, info)


def get_path(dset, info):
    return os.path.join(dset.bundle_dpath, info['file_name'])


def read_gdal(fpath, level=None):
    """Return the ids as stored, of the image or of an overview."""
    dataset = gdal.Open(os.fspath(fpath))
    band = dataset.GetRasterBand(1)
    data = (band if level is None else band.GetOverview(level)).ReadAsArray()
    del band
    return data


def get_asset(dset, image_id=1):
    asset, = dset.imgs[image_id]['auxiliary']
    return asset


# --- what is written -----------------------------------------------------

def test_the_tiles_are_a_hard_case():
    """Tiles differ in their ids, and cells are seen by several of them."""
    windows = list(GRID)
    assert len(windows) == 12 and TRUTH.max() > 30
    common = windows[0].intersect(windows[1])
    ours, theirs = (cut(window)[common.within(window).slices] for window in windows[:2])
    assert (ours > 0).any() and not (ours == theirs)[ours > 0].any()
    n_seen = [sum((TRUTH[window.slices] == label).any() for window in windows)
              for label in range(1, TRUTH.max() + 1)]
    assert max(n_seen) >= 4


def test_what_a_file_and_its_entry_look_like(tmp_path):
    dset, info, fpath = run_once(tmp_path)
    report = verify_cog(fpath, full=True)
    assert report.shape == (*SHAPE, 1) and report.dtype == 'uint32' and report.nodata == 0
    assert np.array_equal(read_gdal(fpath), TRUTH)
    assert np.array_equal(read_gdal(fpath, 0), TRUTH[::2, ::2])
    asset = get_asset(dset)
    assert asset == {
        'file_name': '_assets/pred/im1_segments.tif', 'channels': 'segments',
        'height': SHAPE[0], 'width': SHAPE[1], 'num_bands': 1, 'nodata': 0,
        'warp_aux_to_img': {'type': 'affine'}}
    assert dset.imgs[1]['has_predictions'] == {'segments': True}
    assert dset.imgs[1]['prediction_region']['type'] == 'MultiPolygon'
    dataset = gdal.Open(fpath)
    band = dataset.GetRasterBand(1)
    assert band.GetDescription() == 'segments' and band.GetNoDataValue() == 0
    assert band.GetScale() in (None, 1.0) and band.GetOffset() in (None, 0.0)
    assert info == {'n_anns': 0, 'total_prob': 0.0, 'n_clipped': 0, 'n_invalid': 0,
                    'file_name': asset['file_name'], 'layers': {}, 'n_labels': TRUTH.max(),
                    'n_merged': 0, 'seams': info['seams']}
    assert info['seams']['n_seams'] > 12
    assert info['seams']['mean_agreement'] == info['seams']['lowest_agreement'] == 1.0


@pytest.mark.parametrize('options, fmt', [
    ({'prob_format': 'tif'}, 'tif'), ({'label_options': {'overviews': 'mode'}}, 'mode'),
    ({'prob_compress': 'DEFLATE', 'prob_blocksize': 128}, 'deflate')])
def test_other_files_hold_the_same_ids(tmp_path, options, fmt):
    _, _, fpath = run_once(tmp_path, **options)
    assert np.array_equal(read_gdal(fpath), TRUTH)
    dataset = gdal.Open(fpath)
    n_overviews = dataset.GetRasterBand(1).GetOverviewCount()
    assert (n_overviews > 0) == (fmt != 'tif')
    if fmt == 'mode':
        found = read_gdal(fpath, 0)
        assert set(np.unique(found)) <= set(np.unique(TRUTH))
        assert not np.array_equal(found, TRUTH[::2, ::2])


@pytest.mark.parametrize('declare', [True, False], ids=['declared', 'undeclared'])
@pytest.mark.parametrize('order', ['reverse', 'shuffled', 'threads'])
def test_any_order_gives_the_same_bytes(tmp_path, order, declare):
    _, _, fpath = run_once(tmp_path / 'a')
    dset = make_dataset(tmp_path / 'b')
    windows = list(GRID)[::-1]
    if order != 'reverse':
        np.random.default_rng(3).shuffle(windows)
    with make_manager(dset) as manager:
        if order == 'threads':
            add_all(manager, windows=[], declare=declare)
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda window: manager.accumulate_image(1, window, cut(window)),
                              windows))
        else:
            add_all(manager, windows=windows, declare=declare)
        info = manager.finalize_image(1)
    assert Path(get_path(dset, info)).read_bytes() == Path(fpath).read_bytes()


@pytest.mark.parametrize('make', [
    lambda tile: tile[..., None], lambda tile: tile.astype('u2'), lambda tile: tile.tolist(),
    lambda tile: tile.astype('u8') * 10 ** 15])
def test_labels_of_any_whole_type(dset, make):
    with make_manager(dset) as manager:
        for window in GRID:
            tile = make(cut(window))
            if isinstance(tile, np.ndarray):
                tile.flags.writeable = False
            manager.accumulate_image(1, window, tile)
        info = manager.finalize_image(1)
    assert np.array_equal(read_gdal(get_path(dset, info)), TRUTH)


def test_tensors_are_labels(dset):
    torch = pytest.importorskip('torch')
    with make_manager(dset) as manager:
        for window in GRID:
            manager.accumulate_image(1, window, torch.from_numpy(cut(window)))
        info = manager.finalize_image(1)
    assert np.array_equal(read_gdal(get_path(dset, info)), TRUTH)


def test_windows_may_overhang(dset):
    grid = WindowGrid(SHAPE, window=(200, 100), overlap=30)
    assert any(not Window.from_shape(SHAPE).contains(window) for window in grid)
    with make_manager(dset) as manager:
        manager.expect_windows(1, grid)
        for window in grid:
            manager.accumulate_image(1, window, cut(window))
        assert manager.ready_image_ids() == [1]
    assert np.array_equal(read_gdal(os.path.join(dset.bundle_dpath, get_asset(dset)['file_name'])),
                          TRUTH)


def test_missing_windows_are_nothing(dset):
    windows = list(GRID)
    manager = make_manager(dset)
    add_all(manager, windows=windows[:-1])
    with pytest.warns(UserWarning, match='1 declared windows are missing'):
        info = manager.finalize_image(1)
    found = read_gdal(get_path(dset, info))
    assert not found[-20:, -20:].any() and np.array_equal(found[:40, :40], TRUTH[:40, :40])
    manager.close()


# --- readers -------------------------------------------------------------

def test_ids_are_read_back_in_image_and_video_space(tmp_path):
    """An asset at half size, in an image that is shifted and doubled in its video."""
    big = TRUTH.astype(np.uint32)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(tmp_path / 'out.kwcoco.json')
    video_id = dset.add_video(name='v', width=4 * SHAPE[1], height=4 * SHAPE[0])
    dset.add_image(name='im1', width=2 * SHAPE[1], height=2 * SHAPE[0], auxiliary=[],
                   video_id=video_id, frame_index=0,
                   warp_img_to_vid=kwimage.Affine.scale(2).concise())
    with CocoStitchingManager(dset, 'pred', 'segments', 'video', kind='labels') as manager:
        scale = {'asset_dsize': SHAPE[::-1], 'scale_asset_from_stitchspace': 0.25}
        manager.expect_windows(1, GRID, **scale)
        for window in GRID:
            manager.accumulate_image(1, window, cut(window), **scale)
    assert get_asset(dset)['warp_aux_to_img'] == {'type': 'affine', 'scale': 2.0}
    image = dset.coco_image(1)

    def read(**options):
        found = image.imdelay('segments', interpolation='nearest', **options).finalize()
        return np.squeeze(found)
    for space, factor in (('image', 2), ('video', 4), ('asset', 1)):
        expected = np.kron(big, np.ones((factor, factor), np.uint32))
        floats = read(space=space, nodata_method='float')
        assert floats.dtype == np.float64
        assert np.array_equal(floats, np.where(expected, expected, np.nan), equal_nan=True), space
        # OpenCV 4 cannot warp uint32.
        if space == 'asset' or int(cv2.__version__.partition('.')[0]) >= 5:
            found = read(space=space)
            assert found.dtype == np.uint32 and np.array_equal(found, expected), space
    half = image.imdelay('segments', interpolation='nearest', space='video', antialias=False,
                         nodata_method='float')
    found = half.scale(0.5).finalize(interpolation='nearest')
    assert set(np.unique(found[np.isfinite(found)])) <= set(np.unique(big))


def test_ids_above_24_bits_survive(tmp_path):
    """No reader may take them for float32."""
    dset = make_dataset(tmp_path)
    with make_manager(dset, prob_format='tif') as manager:
        manager.accumulate_image(1, None, TRUTH)
        fpath = get_path(dset, manager.finalize_image(1))
    dataset = gdal.Open(fpath, gdal.GA_Update)
    high = np.where(TRUTH, TRUTH + 2 ** 31, 0).astype(np.uint32)
    dataset.GetRasterBand(1).WriteArray(high)
    del dataset
    found = dset.coco_image(1).imdelay('segments', interpolation='nearest').finalize()
    assert np.array_equal(np.squeeze(found), high)


# --- polygons ------------------------------------------------------------

def list_annotations(dset):
    return [dict(annot) for annot in dset.annots(image_id=1).objs]


@pytest.mark.parametrize('write_probs', [True, False])
def test_each_segment_is_an_annotation(tmp_path, write_probs):
    dset = make_dataset(tmp_path)
    with make_manager(dset, write_preds=True, write_probs=write_probs) as manager:
        add_all(manager)
        info = manager.finalize_image(1)
    annots = list_annotations(dset)
    assert info['n_anns'] == len(annots) == TRUTH.max() == info['n_labels']
    assert [annot['segment_id'] for annot in annots] == list(range(1, TRUTH.max() + 1))
    assert len(dset.imgs[1]['auxiliary']) == write_probs
    redrawn = np.zeros(SHAPE, np.uint32)
    for annot in annots:
        assert dset.cats[annot['category_id']]['name'] == 'segments' and 'score' not in annot
        shape = kwimage.Segmentation.coerce(annot['segmentation'])
        outline = shape.to_multi_polygon().to_shapely()
        assert outline.is_valid and outline.area == (TRUTH == annot['segment_id']).sum()
        x, y, width, height = annot['bbox']
        assert outline.bounds == (x, y, x + width, y + height)
        ys, xs = np.mgrid[:SHAPE[0], :SHAPE[1]] + 0.5
        redrawn[shapely.contains_xy(outline, xs, ys)] = annot['segment_id']
    assert np.array_equal(redrawn, TRUTH)
    # What is saved can be read.
    manager.dump()
    assert kwcoco.CocoDataset(dset.fpath).n_annots == len(annots)


def test_a_segment_of_several_parts_is_one_annotation(dset):
    labels = np.zeros(SHAPE, int)
    labels[10:20, 10:20] = labels[20:30, 20:30] = 7
    labels[50:60, 50:60] = 9
    options = {'connectivity': 8}
    with make_manager(dset, write_preds=True, label_options=options) as manager:
        manager.accumulate_image(1, None, labels)
        assert manager.finalize_image(1)['n_anns'] == 2
    first, second = list_annotations(dset)
    assert len(first['segmentation']) == 2 and first['bbox'] == [10, 10, 20, 20]
    assert isinstance(second['segmentation'], dict) and second['segment_id'] == 2


def test_polygons_are_in_image_space(dset):
    with make_manager(dset, write_preds=True) as manager:
        labels = np.zeros((75, 65), int)
        labels[10:20, 5:15] = 3
        manager.accumulate_image(1, None, labels, asset_dsize=(65, 75),
                                 scale_asset_from_stitchspace=0.5)
        manager.finalize_image(1)
    annot, = list_annotations(dset)
    assert annot['bbox'] == [10, 20, 20, 20]


# --- options -------------------------------------------------------------

@pytest.mark.parametrize('options, match', [
    ({'expected_minmax': (0, 1)}, 'expected_minmax'), ({'layers': ['class']}, 'layers'),
    ({'thresh': 0.7}, 'thresh'), ({'quantize': False}, 'quantize'),
    ({'dtype': 'float64'}, 'dtype'), ({'memory_budget': 1 << 30}, 'memory_budget'),
    ({'prob_format': 'png'}, 'png'), ({'kind': 'instances'}, 'kind'),
    ({'label_options': {'min_size': 4}}, 'connectivity'),
    ({'label_options': {'size': 4}}, 'size'), ({'kind': 'soft', 'label_options': {}}, 'kind'),
    ({'memmap': 5}, 'memmap'), ({'num_bands': 2}, 'num_bands')])
def test_options_that_make_no_sense_are_refused(dset, tmp_path, options, match):
    with pytest.raises(OptionError, match=match):
        make_manager(dset, **options)
    assert os.listdir(tmp_path) == []


def test_a_device_is_refused(dset):
    pytest.importorskip('torch')
    with pytest.raises(OptionError, match='device'):
        make_manager(dset, device='cpu')


def test_bad_windows_change_nothing(dset):
    windows = list(GRID)
    with make_manager(dset, label_options={'connectivity': 4, 'min_size': 5}) as manager:
        values = np.zeros((64, 64, 3), 'f4')
        manager.expect_windows(1, GRID)
        manager.accumulate_image(1, windows[0], cut(windows[0]), values=values)
        good = cut(windows[1])
        for error, arguments in [
                (OptionError, {'weights': np.ones((64, 64)), 'values': values}),
                (OptionError, {'downweight_edges': True, 'values': values}),
                (OptionError, {}),
                (WindowShapeError, {'values': values[1:]}),
                (OptionError, {'data': good.astype('f4'), 'values': values}),
                (OptionError, {'data': good - 10 ** 6, 'values': values}),
                (OptionError, {'data': good > 0, 'values': values}),
                (BandCountError, {'data': np.stack([good] * 2, axis=2), 'values': values}),
                (WindowShapeError, {'data': good[:-1], 'values': values}),
                (CoverageError, {'space_slice': windows[0], 'values': values}),
                (CoverageError, {'space_slice': Window(1, 1, 65, 65), 'values': values}),
                (CoverageError, {'space_slice': Window(300, 300, 364, 364), 'values': values})]:
            with refuse(manager, error):
                manager.accumulate_image(1, **{'space_slice': windows[1], 'data': good,
                                               **arguments})
        with refuse(manager, CoverageError, 'twice'):
            manager.expect_windows(2, [windows[0], windows[0]])
        for window in windows[1:]:
            manager.accumulate_image(1, window, cut(window), values=values)
    assert np.array_equal(read_gdal(os.path.join(dset.bundle_dpath, get_asset(dset)['file_name'])),
                          TRUTH)


def test_values_are_not_for_blending(dset):
    with CocoStitchingManager(dset, 'pred', 'a', 'image') as manager:
        with pytest.raises(OptionError, match='values'):
            manager.accumulate_image(1, None, np.zeros(SHAPE), values=np.zeros(SHAPE))
        assert manager.managed_image_ids() == []


def test_small_labels_join_what_is_most_alike(dset):
    labels = np.ones(SHAPE, int)
    labels[:, 60:] = 2
    labels[40:43, 59] = 3
    labels[90, 100] = 4
    values = labels * np.float32(10)
    values[labels == 3], values[labels == 4] = 19, 500
    options = {'connectivity': 4, 'min_size': 10, 'max_difference': 50}
    with make_manager(dset, label_options=options) as manager:
        for window in GRID:
            inside = window.slices
            manager.accumulate_image(1, window, labels[inside], values=values[inside])
        info = manager.finalize_image(1)
    expected = labels.copy()
    expected[labels == 3] = 2
    expected[labels == 4] = 3
    assert np.array_equal(read_gdal(get_path(dset, info)), expected)
    assert (info['n_labels'], info['n_merged']) == (3, 1)


def test_connectivity_and_match_are_those_of_the_stitcher(tmp_path):
    for number, options in enumerate([{'connectivity': 4}, {'match': 'none'},
                                      {'connectivity': 8, 'match': 'none'}]):
        _, info, fpath = run_once(tmp_path / str(number), label_options=options)
        stitcher = LabelStitcher(SHAPE, GRID, **options)
        for window in GRID:
            stitcher.add(window, cut(window))
        assert np.array_equal(read_gdal(fpath), stitcher.finalize())
        assert (info['seams'] is None) == ('match' in options)


def test_seams_are_told(dset, caplog):
    with caplog.at_level(logging.INFO, 'cocoseg'), make_manager(dset) as manager:
        for window in GRID:
            tile = cut(window)
            # Every window sees more of nothing at its lower edge.
            tile[-10:] = 0
            manager.accumulate_image(1, window, tile)
        info = manager.finalize_image(1)
    seams = info['seams']
    assert 0 < seams['lowest_agreement'] < seams['mean_agreement'] < 1
    message, = [record.getMessage() for record in caplog.records if 'seams' in record.getMessage()]
    assert f'{100 * seams["mean_agreement"]:.1f} %' in message and 'image 1' in message
    json.dumps(info)


# --- the life of an image ------------------------------------------------

def test_states_and_queries(dset):
    manager = make_manager(dset)
    windows = list(GRID)
    manager.expect_windows(1, GRID)
    assert manager.pending_windows(1) == sorted(windows)
    for window in windows[:-1]:
        manager.accumulate_image(1, window, cut(window))
    assert manager.image_state(1) is ImageState.ACCUMULATING
    assert manager.pending_windows(1) == windows[-1:] and manager.patch_counts == {1: 11}
    manager.accumulate_image(1, windows[-1], cut(windows[-1]))
    assert manager.ready_image_ids() == manager.managed_image_ids() == [1]
    assert isinstance(manager.image_stitchers[1], LabelStitcher)
    manager.submit_finalize_image(1)
    manager.flush_images()
    assert manager.is_done(1) and manager.image_stitchers == {}
    with pytest.raises(ImageClosedError):
        manager.accumulate_image(1, windows[0], cut(windows[0]))
    manager.dump()
    assert kwcoco.CocoDataset(dset.fpath).imgs[1]['auxiliary'] == dset.imgs[1]['auxiliary']
    manager.close()


def test_an_incomplete_image_is_not_written(dset):
    manager = make_manager(dset)
    add_all(manager, windows=list(GRID)[:-1])
    with pytest.raises(CoverageError, match='1 of its declared windows'):
        manager.close()
    assert dset.imgs[1]['auxiliary'] == []
    assert [path for path in Path(manager.prob_dpath).iterdir() if path.suffix == '.tif'] == []


def test_channels_are_claimed(dset):
    with make_manager(dset) as manager:
        add_all(manager)
        manager.finalize_image(1)
    with make_manager(dset, resume=False) as manager, pytest.raises(ChannelCollisionError):
        add_all(manager)
    with make_manager(dset, on_collision='replace') as manager:
        add_all(manager, truth=renumber(TRUTH % 7))
    assert read_gdal(os.path.join(dset.bundle_dpath, get_asset(dset)['file_name'])).max() < (
        TRUTH.max())


PLACES = {
    'disk': {}, 'codec': {}, 'naming': {'prob_format': 'cog'}, 'registering': {},
    'tif': {'prob_format': 'tif'}}


@pytest.mark.parametrize('place', PLACES)
def test_a_failed_write_can_be_tried_again(tmp_path, monkeypatch, place):
    _, _, expected = run_once(tmp_path / 'expected', **PLACES[place])
    dset = make_dataset(tmp_path / 'out')
    manager = make_manager(dset, **PLACES[place])
    add_all(manager)

    def fail():
        with pytest.raises(AssetWriteError, match='No space left') as caught:
            manager.finalize_image(1)
        assert caught.value.image_id == 1
        assert manager.image_state(1) is ImageState.FAILED
        assert dset.imgs[1]['auxiliary'] == []
        assert not list(Path(manager.prob_dpath).glob('*.tif'))
        with pytest.raises(ImageClosedError):
            manager.accumulate_image(1, None, TRUTH)
    if place in ('disk', 'codec'):
        faults = StoreFaults(monkeypatch)
        faults.place, faults.n_failures = place, math.inf
        fail()
        fail()
        faults.n_failures = 0
    elif place == 'tif':
        with fail_times(monkeypatch, images_module, 'write_with_driver', 2):
            fail()
            fail()
    elif place == 'naming':
        with fail_times(monkeypatch, cog_module, 'write_encoded', 2):
            fail()
            fail()
    else:
        with fail_times(monkeypatch, Manifest, 'commit', 1):
            with pytest.raises(AssetWriteError, match='No space left'):
                manager.finalize_image(1)
            assert dset.imgs[1]['auxiliary'] == []
    info = manager.finalize_image(1)
    assert Path(get_path(dset, info)).read_bytes() == Path(expected).read_bytes()
    assert info['n_labels'] == TRUTH.max() and get_asset(dset)['nodata'] == 0
    manager.close()


def test_a_failed_image_fails_the_end_of_a_run(dset, monkeypatch):
    faults = StoreFaults(monkeypatch)
    manager = make_manager(dset)
    add_all(manager)
    faults.n_failures = math.inf
    with pytest.raises(AssetWriteError, match='No space left'):
        manager.close()
    assert dset.imgs[1]['auxiliary'] == []


# --- resume --------------------------------------------------------------

def test_a_run_goes_on_where_it_was_cut_short(tmp_path):
    options = {'write_preds': True, 'label_options': {'connectivity': 4}}
    dset = make_dataset(tmp_path)
    manager = make_manager(dset, **options)
    add_all(manager)
    info = manager.finalize_image(1)
    manager._release()
    stamp = os.stat(get_path(dset, info)).st_mtime_ns

    again = make_dataset(tmp_path)
    with make_manager(again, resume=True, **options) as manager:
        assert manager.is_done(1) and not manager.is_done(2)
        add_all(manager, image_id=2)
    assert os.stat(get_path(dset, info)).st_mtime_ns == stamp
    assert get_asset(again) == get_asset(dset)
    assert again.n_annots == 2 * TRUTH.max()
    assert sorted(annot['segment_id'] for annot in again.annots(image_id=1).objs) == (
        list(range(1, TRUTH.max() + 1)))


def test_a_lost_file_is_redone_with_its_annotations(tmp_path):
    options = {'write_preds': True}
    dset = make_dataset(tmp_path)
    with make_manager(dset, **options) as manager:
        add_all(manager)
        info = manager.finalize_image(1)
        manager.dump()
    data = Path(get_path(dset, info)).read_bytes()
    os.unlink(get_path(dset, info))
    again = kwcoco.CocoDataset(dset.fpath)
    # One of the user's, in the same place.
    box = dict(list_annotations(again)[0])
    again.add_annotation(image_id=1, category_id=box['category_id'], bbox=box['bbox'])
    with make_manager(again, resume=True, **options) as manager:
        assert not manager.is_done(1) and again.n_annots == 1
        add_all(manager)
    assert Path(get_path(dset, info)).read_bytes() == data
    assert again.n_annots == 1 + TRUTH.max()


@pytest.mark.parametrize('options', [
    {'label_options': {'connectivity': 4}}, {'label_options': {'overviews': 'mode'}},
    {'kind': 'soft'}])
def test_other_settings_cannot_be_resumed(tmp_path, options):
    dset, _, _ = run_once(tmp_path)
    with pytest.raises(ResumeError, match=next(iter(options))):
        make_manager(make_dataset(tmp_path), resume=True, **options)


KILLED = '''
import os, signal, sys
from pathlib import Path
from tests.integration.test_manager_labels import add_all, make_dataset, make_manager
dset = make_dataset(Path(sys.argv[1]))
manager = make_manager(dset, dump_interval=0)
add_all(manager)
manager.finalize_image(1)
add_all(manager, image_id=2)
os.kill(os.getpid(), signal.SIGKILL)
'''


def test_a_killed_process_loses_no_finished_image(tmp_path):
    done = subprocess.run([sys.executable, '-c', KILLED, os.fspath(tmp_path)], check=False,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == -9
    dset = kwcoco.CocoDataset(tmp_path / 'out.kwcoco.json')
    with make_manager(dset, resume=True) as manager:
        assert manager.seen_image_ids == {1}
        add_all(manager, image_id=2)
    for image_id in (1, 2):
        fpath = os.path.join(dset.bundle_dpath, get_asset(dset, image_id)['file_name'])
        assert np.array_equal(read_gdal(fpath), TRUTH)


def test_the_journal_is_locked_while_labels_are_in_work(dset):
    with make_manager(dset) as manager:
        add_all(manager)
        with pytest.raises(BundleBusyError):
            make_manager(dset, label_options={'connectivity': 4})


# --- verify --------------------------------------------------------------

def test_verify_accepts_labels_and_sees_damage(tmp_path, capsys):
    dset, _, fpath = run_once(tmp_path)
    dset.dump()
    check, = [check for check in audit_manifest(dset.fpath, full=True).checks
              if check.image_id == 1]
    assert check.status == 'ok' and check.n_tiles > 6
    assert main(['verify', dset.fpath, '--full']) == 0
    capsys.readouterr()
    data = bytearray(Path(fpath).read_bytes())
    data[-40] ^= 255
    Path(fpath).write_bytes(data)
    assert main(['verify', dset.fpath, '--full']) != 0
    assert 'im1_segments.tif' in capsys.readouterr().out


def test_soft_and_labels_share_a_bundle(dset):
    """Two managers on one dataset, each with its channels."""
    with make_manager(dset) as labels, CocoStitchingManager(
            dset, 'pred', 'water', 'image', expected_minmax=(0, 1)) as soft:
        for window, manager in itertools.product(GRID, (labels, soft)):
            manager.accumulate_image(1, window, cut(window) if manager is labels
                                     else np.full(window.shape, 0.5))
    found = dset.coco_image(1).imdelay('segments|water', interpolation='nearest').finalize()
    assert np.array_equal(found[..., 0], TRUTH) and abs(found[..., 1] - 0.5).max() < 1e-4
