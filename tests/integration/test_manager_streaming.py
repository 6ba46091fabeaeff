"""
Declared images stream: finished blocks leave while windows come.

What a COG holds is compressed at once, by other threads; what has to be seen
again waits as it is. Each promise is kept by both. Judged against the same
manager with ``memmap``, which keeps whole canvases, and against undeclared
windows with the weights of the plan.
"""
import errno
import gc
import math
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import kwcoco
import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from cocoseg import BlendPlan, CocoStitchingManager, Window, WindowGrid, WriterQueue
from cocoseg.coco import streamed
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.pixels import CanvasPixels, StreamedPixels
from cocoseg.coco.sinks import EncoderSink, NoSink, SpoolSink
from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, CanvasError, CocosegError,
                            CoverageError, ImageClosedError, NothingAccumulatedError)
from cocoseg.io import cog as cog_module
from cocoseg.io import images as images_module
from cocoseg.io import pyramid as pyramid_module
from cocoseg.io import tile_spool as tile_spool_module
from cocoseg.io.tile_spool import TileSpool
from cocoseg.protocols import EagerQueue
from cocoseg.stitch.budget import MemoryBudget

from ..builders import (InlineExecutor, StoreFaults, count_stored, count_waiting, fail_times,
                        get_encoders, spill_tiles, wait_for_tiles, watch_files, watch_tile_files)

SHAPE = (640, 192)
BLOCK = 64
GRID = WindowGrid(SHAPE, window=64, overlap=16)
FIRST = next(iter(GRID))
IMAGE = np.random.RandomState(0).uniform(-0.1, 1.1, (*SHAPE, 2)).astype('f4')
STEP = 1 / 32767
FORMATS = {
    'cog': {}, 'tif': {'prob_format': 'tif'}, 'png': {'prob_format': 'png'},
    'floats': {'quantize': False}, 'free floats': {'quantize': False, 'expected_minmax': None},
    'free range': {'expected_minmax': None}, 'float64': {'dtype': 'float64'},
    'free png': {'prob_format': 'png', 'expected_minmax': None},
    'polygons': {'write_preds': True, 'thresh': 2},
}
#: Formats whose blocks are compressed as they come; those of the rest wait as they are.
ENCODED = ('cog', 'floats', 'free floats', 'float64')
RAW_NBYTES = 640 * 192 * 2 * 2


def make_dataset(folder, n_images=3):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    for index in range(n_images):
        dset.add_image(name=f'im{index + 1}', width=SHAPE[1], height=SHAPE[0], auxiliary=[])
    return dset


@pytest.fixture()
def dset(tmp_path):
    return make_dataset(tmp_path)


def make_manager(dset, **options):
    options = {'expected_minmax': (0, 1), 'prob_blocksize': BLOCK, **options}
    return CocoStitchingManager(dset, 'pred', 'a|b', 'image', **options)


def read(dset, image_id):
    return dset.coco_image(image_id).imdelay('a|b', space='asset').finalize()


def shuffled(windows, seed=0):
    """Return windows in random order, the first not first."""
    windows = list(windows)
    np.random.RandomState(seed).shuffle(windows)
    return windows[1:] + windows[:1]


def with_holes(window):
    """Return the prediction of a window, with NaN in some."""
    data = IMAGE[window.slices].copy()
    data[np.random.RandomState(window.y0 + window.x0).rand(*window.shape) < 0.05] = np.nan
    return data


def predict(window):
    """Return predictions in which windows do not agree."""
    return IMAGE[window.slices] + np.float32(0.02 * ((window.y0 + window.x0) % 5))


def add_all(manager, image_id=1, windows=GRID, make=predict, **options):
    for window in windows:
        manager.accumulate_image(image_id, window, make(window), **options)


def stitch(folder, windows=GRID, make=predict, declare=True, **options):
    """Stitch image 1; return (bytes of the file, figures, dataset)."""
    folder.mkdir()
    dset = make_dataset(folder, 1)
    with make_manager(dset, **options) as manager:
        if declare:
            manager.expect_windows(1, GRID)
        add_all(manager, windows=windows, make=make)
        info = manager.finalize_image(1)
    return Path(dset.bundle_dpath, info['file_name']).read_bytes(), info, dset


ORDERS = {'rows': list(GRID), 'shuffled': shuffled(GRID), 'backwards': list(GRID)[::-1]}


@pytest.fixture(scope='module')
def stitched(tmp_path_factory):
    """Return a function that stitches image 1 in each way once: (bytes, figures, pixels)."""
    known = {}

    def get(name='cog', make=predict, order='rows', **options):
        key = (name, make, order, *sorted(options.items()))
        if key not in known:
            content, info, dset = stitch(
                tmp_path_factory.mktemp('stitched') / 'x', ORDERS[order], make,
                **{**FORMATS[name], **options})
            known[key] = (content, info, read(dset, 1))
        return known[key]
    return get


@pytest.fixture()
def watch(monkeypatch):
    return StoreFaults(monkeypatch)


def list_files(manager):
    """Return all names in the asset folder but that of the journal."""
    return sorted(path.name for path in Path(manager.prob_dpath).iterdir()
                  if path.suffix != '.jsonl')


# --- blocks leave while windows come -------------------------------------

@pytest.mark.parametrize('name', ['cog', 'tif'])
@pytest.mark.parametrize('make', [predict, with_holes])
def test_blocks_leave_while_windows_come(dset, watch, stitched, make, name):
    expected = np.clip(stitched('floats', make, memmap=True)[2], 0, 1)
    watch.taken.clear()
    manager = make_manager(dset, readiness='declared', **FORMATS[name])
    manager.expect_windows(1, GRID)
    whole, most = 640 * 192 * (2 + 1) * 4, 0
    n_blocks = 10 * 3
    for index, window in enumerate(GRID):
        assert manager.ready_image_ids() == []
        manager.accumulate_image(1, window, make(window))
        left = list(GRID)[index + 1:]
        first = min((other.y0 for other in left), default=SHAPE[0])
        assert len(watch.taken) >= first // BLOCK * 3
        most = max(most, manager.image_stitchers[1].nbytes)
    assert manager.ready_image_ids() == [1]
    assert len(watch.taken) == len(set(watch.taken)) == n_blocks
    assert most < whole / 3
    manager.finalize_image(1)
    assert len(watch.taken) == n_blocks
    assert np.nanmax(np.abs(read(dset, 1) - expected)) <= STEP
    assert np.array_equal(np.isnan(read(dset, 1)), np.isnan(expected))


@pytest.mark.parametrize('make', [predict, with_holes])
def test_finishing_only_puts_the_file_together(dset, watch, make):
    """All tiles of all levels are compressed when the last window has come, each once."""
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    windows = list(GRID)
    add_all(manager, windows=windows[:-4], make=make)
    wait_for_tiles(manager)
    encoder, = get_encoders(manager)
    n_tiles = [level.counts.size for level in encoder.levels]
    assert n_tiles == [30, 10, 3, 2, 1]
    n_stored = [np.count_nonzero(level.counts) for level in encoder.levels]
    # All but the last rows of tiles, and what lies above them.
    assert n_stored[0] == len(watch.taken) >= 24 and n_stored[1] >= 8 and n_stored[2] >= 2
    add_all(manager, windows=windows[-4:], make=make)
    wait_for_tiles(manager)
    assert all(level.counts.all() for level in encoder.levels)
    assert watch.n_compressed == sum(n_tiles)
    manager.finalize_image(1)
    assert watch.n_compressed == sum(n_tiles)


@pytest.mark.parametrize('name, mean, layer', [
    ('cog', EncoderSink, EncoderSink), ('floats', EncoderSink, EncoderSink),
    ('free floats', EncoderSink, EncoderSink), ('float64', EncoderSink, EncoderSink),
    ('free range', SpoolSink, EncoderSink), ('polygons', SpoolSink, EncoderSink),
    ('tif', SpoolSink, SpoolSink), ('png', SpoolSink, SpoolSink),
    ('only layers', NoSink, EncoderSink), ('layers and polygons', SpoolSink, EncoderSink)])
def test_what_is_compressed_as_it_comes(dset, name, mean, layer):
    more = {'only layers': {'write_probs': False},
            'layers and polygons': {'write_probs': False, 'write_preds': True}}
    manager = make_manager(dset, layers=['class', 'mask'], **{**FORMATS, **more}[name])
    manager.expect_windows(1, GRID)
    sinks = manager._table.get(1).pixels._sinks
    assert [type(sink) for sink in sinks] == [mean, layer, layer]


def test_live_memory_does_not_grow_with_the_height(tmp_path, monkeypatch):
    """Twenty rows of windows hold what five rows hold, also of what is finished."""
    spill_tiles(monkeypatch)
    peaks, jobs = [], []
    for n_rows in (5, 20):
        grid = WindowGrid((16 + 48 * n_rows, 192), window=64, overlap=16)
        dset = kwcoco.CocoDataset()
        dset.fpath = os.fspath(tmp_path / f'{n_rows}' / 'out.kwcoco.json')
        dset.add_image(name='a', width=192, height=grid.shape[0], auxiliary=[])
        manager = make_manager(dset)
        manager.expect_windows(1, grid)
        peak = most = 0
        for window in grid:
            manager.accumulate_image(1, window, np.zeros((*window.shape, 2)))
            wait_for_tiles(manager)
            peak = max(peak, manager.image_stitchers[1].nbytes)
            most = max(most, manager._table.get(1).nbytes)
        peaks.append(peak)
        jobs.append(most)
        manager.close()
    assert peaks[1] <= 1.1 * peaks[0]
    assert peaks[1] < (16 + 48 * 20) * 192 * 3 * 4 / 4
    # Halves of tiles that wait for a neighbour: less in each level above.
    assert peaks[1] < jobs[1] <= 1.1 * jobs[0] < 1.5 * peaks[0]


@pytest.mark.parametrize('options, streams', [
    ({}, True), ({'prob_format': 'png'}, True), ({'write_preds': True}, True),
    ({'memory_budget': 1 << 20}, True), ({'memmap': False}, True), ({'memmap': True}, False),
    ({'memmap': True, 'memory_budget': 1 << 20}, False),
    ({'write_probs': False, 'write_preds': True}, False)])
def test_what_streams(dset, options, streams):
    manager = make_manager(dset, **options)
    manager.expect_windows(1, GRID)
    assert type(manager._table.get(1).pixels) is (StreamedPixels if streams else CanvasPixels)
    manager.accumulate_image(2, None, IMAGE)
    assert type(manager._table.get(2).pixels) is CanvasPixels


def test_a_torch_device_does_not_stream(dset):
    pytest.importorskip('torch')
    manager = make_manager(dset, device='cpu')
    manager.expect_windows(1, GRID)
    add_all(manager)
    assert type(manager._table.get(1).pixels) is CanvasPixels
    manager.finalize_image(1)
    assert np.isfinite(read(dset, 1)).all()


# --- the same file -------------------------------------------------------

@pytest.mark.parametrize('name', list(FORMATS))
def test_the_same_bytes_as_from_a_whole_canvas(tmp_path, stitched, name):
    """With NaN in every block both divide by weights, the same to the last bit."""
    streamed, info, dset = stitch(tmp_path / 'streamed', ORDERS['shuffled'], with_holes,
                                  **FORMATS[name])
    whole, expected, _ = stitched(name, with_holes, 'shuffled', memmap=True)
    assert streamed == whole
    if 'floats' in name:
        # Floats are added up in other parts.
        expected = {**expected, 'total_prob': pytest.approx(expected['total_prob'], rel=1e-12)}
    assert info == expected
    assert dset.validate() == {'errors': [], 'warnings': []}


@pytest.mark.parametrize('order', ['rows', 'shuffled'])
@pytest.mark.parametrize('make', [predict, with_holes])
@pytest.mark.parametrize('name', ['cog', 'png', 'floats', 'free range', 'float64'])
def test_a_stream_is_the_same_to_one_step(stitched, name, make, order):
    _, info, found = stitched(name, make, order)
    _, expected, wanted = stitched(name, make, order, memmap=True)
    step = {'png': 1 / 254, 'floats': 1e-6, 'free range': 1.3 * STEP}.get(name, STEP)
    assert np.array_equal(np.isnan(found), np.isnan(wanted))
    # Decoded values are float32, which rounds a step.
    assert np.nanmax(np.abs(found - wanted)) <= step * (1 + 5e-3)
    assert info['n_invalid'] == expected['n_invalid']
    assert abs(info['n_clipped'] - expected['n_clipped']) <= 2
    assert info['total_prob'] == pytest.approx(expected['total_prob'], rel=1e-6)


@pytest.mark.parametrize('order', [list(GRID), shuffled(GRID), list(GRID)[::-1]])
def test_the_same_as_undeclared_windows_with_the_weights_of_the_plan(tmp_path, order):
    """The other way to the same image: every window brings its weights, densely."""
    _, _, dset = stitch(tmp_path / 'declared', order, with_holes)
    other = make_dataset(tmp_path / 'undeclared', 1)
    plan = BlendPlan(GRID)
    with make_manager(other) as manager:
        for window in order:
            rows, columns = plan.get_weights(window)
            manager.accumulate_image(1, window, with_holes(window),
                                     weights=rows[:, None] * columns)
    found, expected = read(dset, 1), read(other, 1)
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.nanmax(np.abs(found - expected)) <= STEP * (1 + 1e-3)


@pytest.mark.parametrize('name', ['cog', 'floats', 'free range'])
def test_windows_may_bring_weights(tmp_path, name):
    results = []
    for kind, memmap in (('streamed', None), ('whole', True)):
        dset = make_dataset(tmp_path / kind, 1)
        with make_manager(dset, memmap=memmap, **FORMATS[name]) as manager:
            manager.expect_windows(1, GRID)
            add_all(manager, windows=shuffled(GRID), downweight_edges=True,
                    weights=np.full((64, 64), 0.5))
        fpath, = Path(manager.prob_dpath).glob('*.tif')
        results.append(fpath.read_bytes())
    assert results[0] == results[1]


@pytest.mark.parametrize('name', ['cog', 'floats', 'tif'])
def test_figures_are_of_what_was_written(dset, name):
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    add_all(manager, make=with_holes)
    info = manager.finalize_image(1)
    found = read(dset, 1)
    assert info['total_prob'] == pytest.approx(np.nansum(found, dtype=float), rel=1e-9)
    assert info['n_clipped'] > 1000
    assert info['n_invalid'] == sum(np.isnan(with_holes(w)).any(axis=2).sum() for w in GRID)


# --- readiness, gaps -----------------------------------------------------

@pytest.mark.parametrize('name, seed', [('cog', 0), ('cog', 1), ('cog', 2), ('tif', 0)])
def test_ready_exactly_at_the_last_window(dset, watch, seed, name):
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    order = shuffled(GRID, seed)
    for index, window in enumerate(order):
        assert manager.ready_image_ids() == []
        assert manager.pending_windows(1) == sorted(order[index:])
        assert len(watch.taken) < 30
        manager.accumulate_image(1, window, predict(window))
    assert manager.ready_image_ids() == [1] and manager.pending_windows(1) == []
    assert len(watch.taken) == 30
    with pytest.raises(CoverageError, match='already received'):
        manager.accumulate_image(1, window, predict(window))
    manager.submit_finalize_image(1)
    manager.flush_images()
    assert manager.is_done(1)


def test_overlapping_images_interleaved(dset, watch):
    manager = make_manager(dset)
    orders = {image_id: shuffled(GRID, image_id) for image_id in (1, 2, 3)}
    for image_id in orders:
        manager.expect_windows(image_id, GRID)
    for index in range(len(GRID)):
        for image_id, order in orders.items():
            manager.accumulate_image(image_id, order[index],
                                     predict(order[index]) * np.float32(image_id / 4))
    assert manager.ready_image_ids() == [1, 2, 3]
    manager.close()
    expected = {}
    for image_id in orders:
        other = make_dataset(Path(dset.bundle_dpath, f'{image_id}'), 1)
        with make_manager(other, memmap=True) as whole:
            whole.expect_windows(1, GRID)
            add_all(whole, windows=orders[image_id],
                    make=lambda window: predict(window) * np.float32(image_id / 4))
        expected[image_id] = read(other, 1)
    for image_id in orders:
        np.testing.assert_allclose(read(dset, image_id), expected[image_id], rtol=0,
                                   atol=STEP * (1 + 5e-3))


@pytest.mark.parametrize('name', ['cog', 'png', 'floats', 'free range'])
@pytest.mark.parametrize('n_windows', [1, 3, 30])
def test_missing_windows_leave_no_data(tmp_path, name, n_windows):
    dset = make_dataset(tmp_path, 1)
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    windows = list(GRID)
    add_all(manager, windows=windows[:n_windows])
    assert manager.pending_windows(1) == sorted(windows[n_windows:])
    with pytest.warns(UserWarning, match=f'{len(windows) - n_windows} declared windows'):
        manager.finalize_image(1)
    covered = np.zeros(SHAPE, bool)
    for window in windows[:n_windows]:
        covered[window.slices] = True
    found = read(dset, 1)
    assert np.array_equal(np.isfinite(found), np.repeat(covered[..., None], 2, axis=2))
    assert shape(dset.imgs[1]['prediction_region']).area == covered.sum()


def test_windows_that_are_all_nan(dset):
    for image_id, minmax in ((1, (0, 1)), (2, None)):
        manager = make_manager(dset, expected_minmax=minmax)
        manager.expect_windows(image_id, GRID)
        add_all(manager, image_id, make=lambda window: np.full((*window.shape, 2), np.nan))
        info = manager.finalize_image(image_id)
        assert np.isnan(read(dset, image_id)).all()
        assert (info['total_prob'], info['n_clipped']) == (0, 0)


def test_an_area_of_interest(dset):
    """Windows beside it are not waited for, and nothing is if only they came."""
    corner = shapely.box(20, 30, 150, 200)
    grid = WindowGrid(SHAPE, window=64, overlap=16, area=corner)
    beside = [window for window in GRID if window not in list(grid)]
    assert len(grid) > 5 and len(beside) > 5
    manager = make_manager(dset)
    manager.expect_windows(1, grid)
    add_all(manager, windows=beside)
    assert manager.image_state(1) is ImageState.UNSEEN and not manager.patch_counts
    with pytest.raises(NothingAccumulatedError):
        manager.finalize_image(1)
    for window in grid:
        assert manager.ready_image_ids() == []
        manager.accumulate_image(1, window, predict(window))
    assert manager.ready_image_ids() == [1]
    manager.finalize_image(1)
    inside = np.zeros(SHAPE, bool)
    inside[30:200, 20:150] = True
    assert np.array_equal(np.isfinite(read(dset, 1)[..., 0]), inside)


def test_a_window_in_flight_while_finalizing(dset):
    """It is in the file as a whole, or raises."""
    manager = make_manager(dset)
    manager.expect_windows(1, [Window(0, 0, 640, 96), Window(0, 96, 640, 192)])
    manager.accumulate_image(1, Window(0, 0, 640, 96), IMAGE[:, :96])

    class LateData:
        """Computed when it is asked for; the image is finalized meanwhile."""

        def __array__(self, dtype=None, copy=None):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                thread = threading.Thread(target=manager.finalize_image, args=[1])
                thread.start()
                thread.join(10)
            return np.array(IMAGE[:, 96:], dtype)
    try:
        manager.accumulate_image(1, Window(0, 96, 640, 192), LateData())
        is_taken = True
    except ImageClosedError:
        is_taken = False
    found = read(dset, 1)
    assert np.isfinite(found[:, :96]).all()
    assert np.isfinite(found[:, 96:]).all() == is_taken


# --- failures ------------------------------------------------------------

@pytest.mark.parametrize('name', ['tif', 'free range', 'polygons'])
def test_no_room_for_the_spool(dset, monkeypatch, name):
    """The window was not taken; given again it is, when there is room."""
    manager = make_manager(dset, memory_budget=1 << 30, **FORMATS[name])
    manager.expect_windows(1, GRID)
    order = list(GRID)

    def refuse(descriptor, offset, nbytes):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', refuse, raising=False)
    for _ in range(2):
        with pytest.raises(CanvasError, match='image 1.*No space left'):
            manager.accumulate_image(1, order[0], predict(order[0]))
    assert manager.pending_windows(1) == order and not manager.patch_counts
    assert manager.image_state(1) is ImageState.UNSEEN
    monkeypatch.undo()
    add_all(manager)
    manager.finalize_image(1)
    assert np.isfinite(read(dset, 1)).all()


def test_compressed_tiles_reserve_no_room(dset, monkeypatch, stitched):
    """How much they need is not known before."""
    expected = stitched('cog', predict, 'rows')[0]

    def refuse(descriptor, offset, nbytes):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'posix_fallocate', refuse, raising=False)
    manager = make_manager(dset, memory_budget=1 << 30)
    manager.expect_windows(1, GRID)
    add_all(manager)
    info = manager.finalize_image(1)
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('name, place', [
    ('cog', 'disk'), ('cog', 'codec'), ('floats', 'disk'), ('tif', 'disk'), ('free range', 'disk')])
@pytest.mark.parametrize('n_failures', [1, 4])
def test_a_block_that_cannot_be_stored_is_offered_again(
        tmp_path, watch, stitched, caplog, name, place, n_failures):
    """The window was taken; the block waits in the canvas, and finalizing stores it."""
    expected = stitched(name, predict, 'shuffled')[0]
    dset = make_dataset(tmp_path, 1)
    manager = make_manager(dset, **FORMATS[name])
    manager._table._executor = InlineExecutor()
    manager.expect_windows(1, GRID)
    watch.taken.clear()
    watch.place, watch.n_failures = place, n_failures
    caplog.clear()
    add_all(manager, windows=ORDERS['shuffled'])
    assert watch.n_failures == 0 and manager.patch_counts[1] == len(GRID)
    assert manager.ready_image_ids() == [1]
    # A block to compress was taken, and its tile is tried again by the next.
    n_refused = n_failures - (name in ENCODED)
    assert len(watch.taken) == 30 - n_refused
    warned = [line for line in caplog.records if 'image 1' in line.getMessage()]
    assert len(warned) == min(n_refused, 1)
    assert all('simulated' in line.getMessage() for line in warned)
    info = manager.finalize_image(1)
    assert len(watch.taken) == 30
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('place', ['disk', 'codec'])
@pytest.mark.parametrize('n_failures', [1, 20])
def test_threads_that_fail_now_and_then_lose_no_tile(tmp_path, watch, stitched, place, n_failures):
    """Tiles of all levels, many of them in work at a time."""
    expected, figures, _ = stitched('cog', predict, 'shuffled')
    dset = make_dataset(tmp_path, 1)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    watch.place, watch.n_failures = place, n_failures
    add_all(manager, windows=ORDERS['shuffled'][:60])
    add_all(manager, windows=ORDERS['shuffled'][60:])
    watch.n_failures = 0
    info = manager.finalize_image(1)
    assert info == figures
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('name, place', [
    ('cog', 'disk'), ('cog', 'codec'), ('floats', 'disk'), ('tif', 'disk')])
@pytest.mark.parametrize('n_before, submit', [(0, False), (15, True), (29, False), (29, True)])
def test_a_disk_that_stays_full_fails_the_image(
        dset, watch, stitched, name, place, n_before, submit):
    """Since the first block, or one in the middle, or the last."""
    expected, figures, _ = stitched(name)
    manager = make_manager(dset, writer_queue=EagerQueue(), **FORMATS[name])
    manager._table._executor = InlineExecutor()
    manager.expect_windows(1, GRID)
    watch.taken.clear()
    watch.place = place

    def fill_up(window):
        if len(watch.taken) == n_before:
            watch.n_failures = math.inf
    watch.hook = fill_up
    add_all(manager)
    # A block to compress is taken first; then its tile fails.
    assert len(watch.taken) == n_before + (name in ENCODED)
    assert manager.ready_image_ids() == [1]
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='image 1.*simulated') as caught:
            manager.submit_finalize_image(1) if submit else manager.finalize_image(1)
        assert caught.value.image_id == 1
        assert manager.image_state(1) is ImageState.FAILED
        assert manager.managed_image_ids() == [1] and dset.imgs[1]['auxiliary'] == []
        assert list_files(manager) == []
        with pytest.raises(ImageClosedError):
            manager.accumulate_image(1, FIRST, predict(FIRST))
    watch.hook, watch.n_failures = None, 0
    info = manager.finalize_image(1)
    assert info == figures and len(watch.taken) == 30
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('name', ['cog', 'floats'])
def test_windows_are_refused_while_much_cannot_be_stored(
        dset, watch, stitched, monkeypatch, name):
    """Else all of a large image would wait in RAM for a disk that is full."""
    expected, figures, _ = stitched(name)
    monkeypatch.setattr(streamed, '_MAX_REFUSED_NBYTES', 0)
    manager = make_manager(dset, **FORMATS[name])
    manager._table._executor = InlineExecutor()
    manager.expect_windows(1, GRID)
    watch.n_failures, refused = math.inf, 0
    for window in GRID:
        try:
            manager.accumulate_image(1, window, predict(window))
        except CanvasError as ex:
            assert 'image 1' in str(ex) and 'simulated' in str(ex)
            refused += 1
            before = manager._table.get(1).nbytes
            with pytest.raises(CanvasError):
                manager.accumulate_image(1, window, predict(window))
            assert manager._table.get(1).nbytes == before
            watch.n_failures = 0
            manager.accumulate_image(1, window, predict(window))
            watch.n_failures = math.inf
    assert refused >= 1
    watch.n_failures = 0
    info = manager.finalize_image(1)
    assert info == {**figures, 'total_prob': pytest.approx(figures['total_prob'], rel=1e-12)}
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


def write_some_tiles(spool, descriptor, pieces):
    """Leave a part of a file on the disk."""
    os.write(descriptor, b'half a tile')


@pytest.mark.parametrize('name, owner, function, make', [
    ('cog', cog_module, 'write_encoded', None), ('cog', TileSpool, 'copy_to', write_some_tiles),
    ('cog', cog_module, 'verify_cog', None), ('floats', TileSpool, 'copy_to', write_some_tiles),
    ('free range', cog_module, 'write_encoded', None),
    ('free range', images_module, 'write_image', None), ('png', images_module, 'write_image', None),
    ('tif', images_module, '_read_back', None)])
def test_a_failed_file_is_written_again(
        tmp_path, monkeypatch, watch, stitched, name, owner, function, make):
    """From what waits: no block is asked for again, and none is compressed again."""
    expected, figures, _ = stitched(name)
    dset = make_dataset(tmp_path, 1)
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    add_all(manager)
    wait_for_tiles(manager)
    watch.taken.clear()
    n_compressed = watch.n_compressed
    with fail_times(monkeypatch, owner, function, 2, make) as left:
        for attempt in (1, 0):
            with pytest.raises(AssetWriteError, match='image 1.*simulated') as caught:
                manager.finalize_image(1)
            assert left == [attempt] and caught.value.image_id == 1
            assert manager.image_state(1) is ImageState.FAILED
            assert list_files(manager) == [] and dset.imgs[1]['auxiliary'] == []
        assert manager.finalize_image(1) == figures
    fpath, = (Path(manager.prob_dpath, file) for file in list_files(manager))
    assert fpath.read_bytes() == expected
    assert watch.taken == []
    if name in ENCODED:
        assert watch.n_compressed == n_compressed
    with pytest.raises(AlreadyFinalizedError):
        manager.finalize_image(1)


@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_a_failed_image_is_in_memory_until_it_is_done(dset, monkeypatch, name):
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    add_all(manager)
    job = manager._table.get(1)
    (Path(manager.prob_dpath) / 'obstacle').mkdir()
    monkeypatch.setattr(job, 'fpaths', [str(Path(manager.prob_dpath) / 'obstacle')])
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    # The codes as they wait, and nothing of the canvas.
    assert job.stitcher.nbytes == 0
    if name == 'tif':
        assert job.nbytes == RAW_NBYTES
    else:
        encoder, = get_encoders(manager)
        assert 0.2 * RAW_NBYTES < job.nbytes == count_stored(encoder)
    monkeypatch.undo()
    manager.finalize_image(1)
    assert job.nbytes == 0


def interrupt_storing(watch, monkeypatch, manager):
    """Send Ctrl-C just before a block is stored."""
    def hook(window):
        if len(watch.taken) == 10:
            watch.hook = None
            raise KeyboardInterrupt
    watch.hook = hook


def interrupt_adding_up(watch, monkeypatch, manager):
    """Send Ctrl-C while the values of a block are added up for the figures."""
    real = np.nansum

    def nansum(*args, **options):
        if len(watch.taken) == 10:
            monkeypatch.setattr(np, 'nansum', real)
            raise KeyboardInterrupt
        return real(*args, **options)
    monkeypatch.setattr(np, 'nansum', nansum)


def interrupt_waiting(watch, monkeypatch, manager):
    """Send a real Ctrl-C while a block waits for a thread to compress it."""
    monkeypatch.setattr(pyramid_module, '_LEAST_IN_FLIGHT_NBYTES', 1)
    gate, main = threading.Event(), threading.get_ident()
    watch.codec_hook = lambda: gate.wait(30)

    def is_waiting():
        files = [entry.filename for entry in traceback.extract_stack(sys._current_frames()[main])]
        return files[-1] == threading.__file__ and pyramid_module.__file__ in files

    def run():
        while not is_waiting():
            time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)
        # Only now, so that the waiting ends by the signal.
        time.sleep(0.2)
        gate.set()
    threading.Thread(target=run, daemon=True).start()


@pytest.mark.parametrize('name, interrupt', [
    ('cog', interrupt_storing), ('tif', interrupt_storing), ('floats', interrupt_adding_up),
    ('cog', interrupt_waiting)])
def test_an_interrupt_loses_no_block(dset, watch, stitched, monkeypatch, name, interrupt):
    """In a notebook: the windows that are left come later."""
    expected, figures, _ = stitched(name)
    watch.taken.clear()
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt(watch, monkeypatch, manager)
        with pytest.raises(KeyboardInterrupt):
            add_all(manager)
    finally:
        signal.signal(signal.SIGINT, before)
    left = manager.pending_windows(1)
    assert 5 < len(left) < len(GRID)
    add_all(manager, windows=left)
    info = manager.finalize_image(1)
    assert info == figures
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('n_threads', [0, 1])
def test_a_system_that_gives_no_more_threads(dset, stitched, monkeypatch, n_threads):
    """Tiles are compressed by the threads there are, or by the caller."""
    expected, figures, _ = stitched('cog')
    monkeypatch.setattr(cog_module, 'count_cpus', lambda: 4)
    real, begun = threading.Thread.start, []

    def start(thread):
        if thread.name.startswith('cocoseg-encode'):
            if len(begun) == n_threads:
                raise RuntimeError("can't start new thread")
            begun.append(thread)
        real(thread)
    monkeypatch.setattr(threading.Thread, 'start', start)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    add_all(manager)
    done = []
    # It must not take the tests with it if it waits for ever.
    finish = threading.Thread(target=lambda: done.append(manager.finalize_image(1)), daemon=True)
    finish.start()
    finish.join(30)
    assert done == [figures] and len(begun) == n_threads
    assert Path(dset.bundle_dpath, done[0]['file_name']).read_bytes() == expected


# --- bookkeeping ---------------------------------------------------------

@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_bytes_that_wait(dset, name):
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    manager.expect_windows(2, GRID)
    jobs = [manager._table.get(image_id) for image_id in (1, 2)]
    assert [job.nbytes for job in jobs] == [0, 0]

    def count_finished():
        """Return the bytes of finished blocks, counted by what they must be."""
        if name == 'tif':
            return RAW_NBYTES
        wait_for_tiles(manager)
        encoder, = get_encoders(manager)
        return count_stored(encoder) + count_waiting(encoder)
    for window in GRID:
        manager.accumulate_image(1, window, predict(window))
        finished = count_finished()
        assert jobs[0].nbytes == finished + manager.image_stitchers[1].nbytes
        assert jobs[1].nbytes == 0
    assert manager.image_stitchers[1].nbytes == 0 and finished > 0.2 * RAW_NBYTES
    manager.finalize_image(1)
    assert [job.nbytes for job in jobs] == [0, 0]


def test_tiles_that_wait_for_a_thread_are_counted(dset, watch):
    """Whole, until they are compressed."""
    gate = threading.Event()
    watch.codec_hook = lambda: gate.wait(30)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    add_all(manager)
    job = manager._table.get(1)
    assert job.stitcher.nbytes == 0 and job.nbytes == RAW_NBYTES
    gate.set()
    wait_for_tiles(manager)
    encoder, = get_encoders(manager)
    assert job.nbytes == count_stored(encoder)
    manager.close()
    assert np.isfinite(read(dset, 1)).all()


def test_windows_wait_while_the_threads_are_busy(dset, watch, monkeypatch):
    """So that memory is bounded also where compression is the slowest."""
    monkeypatch.setattr(pyramid_module, '_LEAST_IN_FLIGHT_NBYTES', 1)
    monkeypatch.setattr(cog_module, 'count_cpus', lambda: 2)
    tile, gate, stuck = 64 * 64 * 2 * 2, threading.Event(), threading.Event()
    watch.codec_hook = lambda: gate.wait(30)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)

    def work():
        add_all(manager)
        stuck.set()
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert not stuck.wait(0.3)
    job = manager._table.get(1)
    # Two tiles for each thread, and the one that waits.
    assert 2 * tile <= job.nbytes - job.stitcher.nbytes <= 5 * tile < RAW_NBYTES / 5
    gate.set()
    thread.join(30)
    assert stuck.is_set() and manager.ready_image_ids() == [1]
    manager.close()
    assert np.isfinite(read(dset, 1)).all()


@pytest.mark.parametrize('name', ['cog', 'tif', 'free range'])
def test_declaring_costs_nothing(dset, monkeypatch, name):
    """Thousands of images may be declared before the first window comes."""
    made, tiles = watch_files(monkeypatch), watch_tile_files(monkeypatch)
    spill_tiles(monkeypatch)
    manager = make_manager(dset, memory_budget=1 << 20, **FORMATS[name])
    before = set(threading.enumerate())
    for image_id in (1, 2, 3):
        manager.expect_windows(image_id, GRID)
    assert made == tiles == [] and set(threading.enumerate()) <= before
    add_all(manager, windows=list(GRID)[:1])
    # Room for tiles is taken by the first tile, and not before.
    assert [kind for kind, _ in made] == ([] if name == 'cog' else ['spool'])
    assert tiles == []
    add_all(manager, windows=list(GRID)[1:20])
    wait_for_tiles(manager)
    assert tiles == ([str(manager.prob_dpath)] if name == 'cog' else [])
    assert len(made) == (name != 'cog')
    with pytest.raises(CoverageError):
        manager.close()


@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_with_a_budget_finished_blocks_are_in_files(tmp_path, monkeypatch, stitched, name):
    """As they are, in its folder; compressed, beside the file that they will be."""
    expected = stitched(name, predict, 'shuffled')[2]
    made, tiles = watch_files(monkeypatch), watch_tile_files(monkeypatch)
    spill_tiles(monkeypatch, ram_nbytes=1000)
    dset, spill_dir = make_dataset(tmp_path), tmp_path / 'spill'
    spill_dir.mkdir()
    budget = MemoryBudget(100_000, spill_dir)
    manager = make_manager(dset, memory_budget=budget, **FORMATS[name])
    orders = {1: ORDERS['shuffled'], 2: shuffled(GRID, 2), 3: shuffled(GRID, 3)}
    for image_id in orders:
        manager.expect_windows(image_id, GRID)
    for index in range(len(GRID)):
        for image_id, order in orders.items():
            manager.accumulate_image(image_id, order[index], predict(order[index]))
            # A window touches at most four blocks, which are always there.
            assert budget.used <= max(budget.nbytes, 4 * 64 * 64 * 3 * 4)
    for image_id in orders:
        wait_for_tiles(manager, image_id)
        assert manager._table.get(image_id).nbytes == 0
    assert ('spill', str(spill_dir)) in made
    assert {folder for _, folder in made} == {str(spill_dir)}
    assert made.count(('spool', str(spill_dir))) == (3 if name == 'tif' else 0)
    assert tiles == ([str(manager.prob_dpath)] * 3 if name == 'cog' else [])
    assert os.listdir(spill_dir) == list_files(manager) == []
    manager.close()
    assert budget.used == 0
    assert np.array_equal(read(dset, 1), expected)


def test_leaving_by_an_exception_writes_what_was_submitted(dset):
    with pytest.raises(ZeroDivisionError):
        with make_manager(dset) as manager:
            for image_id in (1, 2, 3):
                manager.expect_windows(image_id, GRID)
                add_all(manager, image_id, windows=list(GRID)[:-1] if image_id == 3 else GRID)
            manager.submit_finalize_image(1)
            raise ZeroDivisionError
    assert manager.seen_image_ids == {1}
    assert [len(dset.imgs[image_id]['auxiliary']) for image_id in (1, 2, 3)] == [1, 0, 0]
    with pytest.raises(ImageClosedError):
        manager.accumulate_image(2, FIRST, predict(FIRST))


@pytest.mark.parametrize('name', ['cog', 'tif'])
def test_closing_does_not_write_images_with_gaps(dset, watch, name):
    manager = make_manager(dset, **FORMATS[name])
    for image_id in (1, 2):
        manager.expect_windows(image_id, GRID)
        add_all(manager, image_id, windows=list(GRID)[:-1] if image_id == 1 else GRID)
    assert len(watch.taken) > 30
    job = manager._table.get(1)
    assert job.nbytes > 0
    with pytest.raises(CoverageError, match='image 1 was not written.*1 of its declared'):
        manager.close()
    assert manager.seen_image_ids == {2} and dset.imgs[1]['auxiliary'] == []
    assert job.nbytes == 0 and len(list_files(manager)) == 1


@pytest.mark.parametrize('memory_budget', [None, 60_000])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, memory_budget):
    def run(folder, image_ids, resume=False):
        dset = make_dataset(folder)
        manager = make_manager(dset, resume=resume, memory_budget=memory_budget)
        for image_id in image_ids:
            assert not manager.is_done(image_id)
            manager.expect_windows(image_id, GRID)
            add_all(manager, image_id, make=with_holes)
            manager.finalize_image(image_id)
        return manager
    run(tmp_path / 'cut', [1])
    manager = run(tmp_path / 'cut', [2, 3], resume=True)
    assert manager.seen_image_ids == {1, 2, 3}
    run(tmp_path / 'whole', [1, 2, 3])
    folders = [tmp_path / name / '_assets' / 'pred' for name in ('cut', 'whole')]
    for path in sorted(folders[0].glob('*.tif')):
        assert path.read_bytes() == (folders[1] / path.name).read_bytes()


# --- threads -------------------------------------------------------------

@pytest.mark.parametrize('name', ['cog', 'floats', 'free range'])
def test_threads_add_to_many_images(tmp_path, name):
    dset = make_dataset(tmp_path, 4)
    manager = make_manager(dset, writer_queue=WriterQueue(workers=2), **FORMATS[name])
    todo = [(image_id, window) for image_id in (1, 2, 3, 4) for window in GRID]
    for image_id in (1, 2, 3, 4):
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
    assert manager.seen_image_ids == {1, 2, 3, 4}
    expected = read(stitch(tmp_path / 'expected', memmap=True, **FORMATS[name])[2], 1)
    for image_id in (1, 2, 3, 4):
        assert np.abs(read(dset, image_id) - expected).max() <= 1.3 * STEP
    manager.close()


@pytest.mark.parametrize('name, place', [('cog', 'sink'), ('tif', 'sink'), ('cog', 'codec')])
def test_finalizing_waits_for_blocks_on_their_way(dset, watch, name, place):
    """The last window came while another thread was still storing or compressing a block."""
    manager = make_manager(dset, **FORMATS[name])
    halves = [Window(0, 0, 640, 96), Window(0, 96, 640, 192)]
    manager.expect_windows(1, halves)
    inside, gate = threading.Event(), threading.Event()

    def hold(*windows):
        if windows in ((), (Window(0, 0, 64, 64),)) and not inside.is_set():
            inside.set()
            assert gate.wait(30)
    setattr(watch, 'hook' if place == 'sink' else 'codec_hook', hold)
    first = threading.Thread(target=manager.accumulate_image, args=(1, halves[0], IMAGE[:, :96]))
    first.start()
    assert inside.wait(30)
    manager.accumulate_image(1, halves[1], IMAGE[:, 96:])
    if place == 'codec':
        first.join(30)
    assert manager.ready_image_ids() == [1]
    last = threading.Thread(target=manager.finalize_image, args=(1,))
    last.start()
    last.join(0.2)
    assert last.is_alive() and not manager.is_done(1)
    gate.set()
    for thread in (first, last):
        thread.join(30)
    assert manager.is_done(1) and manager.patch_counts[1] == 2
    assert np.isfinite(read(dset, 1)).all()


@pytest.mark.parametrize('is_retry', [False, True])
def test_closing_waits_for_a_tile_that_is_being_stored(dset, watch, monkeypatch, is_retry):
    """Else the file is closed below it, and the system gives its number to another file."""
    spill_tiles(monkeypatch)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    windows, inside, gate = list(GRID), threading.Event(), threading.Event()
    add_all(manager, windows=windows[:8])
    wait_for_tiles(manager)
    if is_retry:
        watch.n_failures = math.inf
        add_all(manager, windows=windows[8:12])
        wait_for_tiles(manager)
        watch.n_failures = 0
    real, files = tile_spool_module.write_all, []

    def write_all(descriptor, *args):
        files.append(os.fstat(descriptor).st_ino)
        inside.set()
        assert gate.wait(30)
        files.append(os.fstat(descriptor).st_ino)
        real(descriptor, *args)
    monkeypatch.setattr(tile_spool_module, 'write_all', write_all)

    def add():
        # The manager is closed meanwhile.
        with suppress(CocosegError):
            add_all(manager, windows=windows[12 if is_retry else 8:])

    def close():
        with suppress(ZeroDivisionError), manager:
            raise ZeroDivisionError
    adder, closer = (threading.Thread(target=work, daemon=True) for work in (add, close))
    adder.start()
    assert inside.wait(30)
    closer.start()
    closer.join(0.3)
    assert closer.is_alive()
    gate.set()
    for thread in (closer, adder):
        thread.join(30)
        assert not thread.is_alive()
    assert len(files) >= 2 and len(set(files)) == 1


@pytest.mark.parametrize('name, n_attempts', [('cog', 4), ('tif', 2)])
def test_closing_races_with_everything(tmp_path, name, n_attempts):
    """Whole assets or none, and only errors of ours."""
    for attempt in range(n_attempts):
        dset, errors = make_dataset(tmp_path / f'{attempt}', 4), []
        manager = make_manager(dset, **FORMATS[name])

        def work(image_ids):
            try:
                for image_id in image_ids:
                    manager.expect_windows(image_id, GRID)
                    add_all(manager, image_id)
                    manager.submit_finalize_image(image_id)
            except CocosegError:
                return
            except Exception as ex:
                errors.append(ex)
        threads = [threading.Thread(target=work, args=[ids]) for ids in ([1, 3], [2, 4])]
        for thread in threads:
            thread.start()
        try:
            manager.close()
        except CoverageError as ex:
            assert 'did not come' in str(ex)
        for thread in threads:
            thread.join(30)
        assert errors == []
        for image_id in (1, 2, 3, 4):
            entries = dset.imgs[image_id]['auxiliary']
            assert len(entries) <= 1
            assert not entries or np.isfinite(read(dset, image_id)).all()


@pytest.mark.parametrize('is_closed', [True, False])
def test_threads_that_compress_end_with_their_manager(tmp_path, is_closed):
    """Also when it is forgotten, with an image that never became whole."""
    before, dset = set(threading.enumerate()), make_dataset(tmp_path)
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    add_all(manager, windows=list(GRID)[:20])
    ours = {thread for thread in set(threading.enumerate()) - before
            if thread.name.startswith('cocoseg-encode')}
    assert 1 <= len(ours) <= cog_module.count_cpus()
    if is_closed:
        with pytest.raises(CoverageError):
            manager.close()
    else:
        del manager
        gc.collect()
    for thread in ours:
        thread.join(30)
        assert not thread.is_alive()


# --- polygons ------------------------------------------------------------

def draw(window):
    """Blobs, with values at, above and below the threshold, and a hole of no data."""
    ys, xs = np.mgrid[window.slices]
    blobs = np.sin(ys / 40) * np.cos(xs / 30)
    data = np.stack([np.where(blobs > 0.3, 0.5 + blobs / 2, 0.5),
                     np.where(blobs < -0.2, 0.8, 0.2)], axis=2)
    data[(ys % 97 < 3) & (xs > 100)] = np.nan
    return data


@pytest.mark.parametrize('name', ['cog', 'png', 'floats', 'free range'])
@pytest.mark.parametrize('thresh', [0.5, -1, 2])
def test_polygons_are_those_of_undeclared_windows(tmp_path, name, thresh):
    found = []
    for kind in ('declared', 'undeclared'):
        dset = make_dataset(tmp_path / kind, 1)
        cells = WindowGrid(SHAPE, window=64)
        with make_manager(dset, write_preds=True, thresh=thresh, **FORMATS[name]) as manager:
            if kind == 'declared':
                manager.expect_windows(1, cells)
            add_all(manager, windows=cells, make=draw)
            info = manager.finalize_image(1)
        annotations = dset.images([1]).annots[0].objs
        assert info['n_anns'] == len(annotations)
        found.append(annotations)
    declared, undeclared = found
    assert (len(undeclared) > 4) == (thresh == 0.5) and len(declared) == len(undeclared)
    for one, other in zip(declared, undeclared):
        assert (one['category_id'], one['bbox']) == (other['category_id'], other['bbox'])
        assert one['segmentation'] == other['segmentation']
        assert one['score'] == pytest.approx(other['score'], abs=1 / 254 if name == 'png' else STEP)


def test_a_value_at_the_threshold_is_not_above_it(dset):
    """Its code decodes to a little more than the threshold."""
    for image_id, (value, thresh) in enumerate([(0.5, 0.5), (0.1, 0.1), (0.5 + 3 * STEP, 0.5)], 1):
        manager = make_manager(dset, write_preds=True, thresh=thresh, on_collision='replace')
        manager.expect_windows(image_id, GRID)
        add_all(manager, image_id, make=lambda window: np.full((*window.shape, 2), value))
        assert manager.finalize_image(image_id)['n_anns'] == (2 if image_id == 3 else 0)
