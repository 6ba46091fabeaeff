"""
Declared images stream: finished blocks leave for a spool while windows come.

Judged against the same manager with ``memmap``, which keeps whole canvases,
and against undeclared windows with the weights of the plan.
"""
import errno
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kwcoco
import numpy as np
import pytest
import shapely
from shapely.geometry import shape

from cocoseg import BlendPlan, CocoStitchingManager, Window, WindowGrid, WriterQueue
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.pixels import CanvasPixels, StreamedPixels
from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, CanvasError, CocosegError,
                            CoverageError, ImageClosedError, NothingAccumulatedError)
from cocoseg.io import images as images_module
from cocoseg.io.spool import BlockSpool
from cocoseg.protocols import EagerQueue
from cocoseg.stitch.budget import MemoryBudget

from ..builders import watch_files

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
}


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


class Watch:
    """Counts the blocks that spools take, and fails some of them."""

    def __init__(self, monkeypatch):
        self.taken, self.n_failures, self.hook = [], 0, None
        real = BlockSpool.write_block

        def write_block(spool, window, block):
            if self.hook is not None:
                self.hook(window)
            if self.n_failures:
                self.n_failures -= 1
                raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
            real(spool, window, block)
            self.taken.append(window)
        monkeypatch.setattr(BlockSpool, 'write_block', write_block)


@pytest.fixture()
def watch(monkeypatch):
    return Watch(monkeypatch)


# --- blocks leave while windows come -------------------------------------

@pytest.mark.parametrize('make', [predict, with_holes])
def test_blocks_leave_while_windows_come(dset, watch, make):
    manager = make_manager(dset, readiness='declared')
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
    expected = np.clip(stitch(Path(dset.bundle_dpath, 'x'), make=make, quantize=False,
                              memmap=True)[2].coco_image(1).imdelay('a|b').finalize(), 0, 1)
    assert np.nanmax(np.abs(read(dset, 1) - expected)) <= STEP
    assert np.array_equal(np.isnan(read(dset, 1)), np.isnan(expected))


def test_live_memory_does_not_grow_with_the_height(tmp_path):
    """Twenty rows of windows hold what five rows hold."""
    peaks = []
    for n_rows in (5, 20):
        grid = WindowGrid((16 + 48 * n_rows, 192), window=64, overlap=16)
        dset = kwcoco.CocoDataset()
        dset.fpath = os.fspath(tmp_path / f'{n_rows}' / 'out.kwcoco.json')
        dset.add_image(name='a', width=192, height=grid.shape[0], auxiliary=[])
        manager = make_manager(dset)
        manager.expect_windows(1, grid)
        peak = 0
        for window in grid:
            manager.accumulate_image(1, window, np.zeros((*window.shape, 2)))
            peak = max(peak, manager.image_stitchers[1].nbytes)
        peaks.append(peak)
        manager.close()
    assert peaks[1] <= 1.1 * peaks[0]
    assert peaks[1] < (16 + 48 * 20) * 192 * 3 * 4 / 4


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
def test_the_same_bytes_as_from_a_whole_canvas(tmp_path, name):
    """With NaN in every block both divide by weights, the same to the last bit."""
    options, order = FORMATS[name], shuffled(GRID)
    streamed, info, dset = stitch(tmp_path / 'streamed', order, with_holes, **options)
    whole, expected, _ = stitch(tmp_path / 'whole', order, with_holes, memmap=True, **options)
    assert streamed == whole and info == expected
    assert dset.validate() == {'errors': [], 'warnings': []}


@pytest.mark.parametrize('order', [list(GRID), shuffled(GRID)])
@pytest.mark.parametrize('make', [predict, with_holes])
@pytest.mark.parametrize('name', ['cog', 'png', 'floats', 'free range', 'float64'])
def test_a_stream_is_the_same_to_one_step(tmp_path, name, make, order):
    options = FORMATS[name]
    _, info, dset = stitch(tmp_path / 'streamed', order, make, **options)
    _, expected, other = stitch(tmp_path / 'whole', order, make, memmap=True, **options)
    step = {'png': 1 / 254, 'floats': 1e-6, 'free range': 1.3 * STEP}.get(name, STEP)
    found, wanted = read(dset, 1), read(other, 1)
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


def test_figures_are_of_what_was_written(dset):
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    add_all(manager, make=with_holes)
    info = manager.finalize_image(1)
    found = read(dset, 1)
    assert info['total_prob'] == pytest.approx(np.nansum(found, dtype=float), rel=1e-9)
    assert info['n_clipped'] > 1000
    assert info['n_invalid'] == sum(np.isnan(with_holes(w)).any(axis=2).sum() for w in GRID)


# --- readiness, gaps -----------------------------------------------------

@pytest.mark.parametrize('seed', range(3))
def test_ready_exactly_at_the_last_window(dset, watch, seed):
    manager = make_manager(dset)
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

def test_no_room_for_the_spool(dset, monkeypatch):
    """The window was not taken; given again it is, when there is room."""
    manager = make_manager(dset, memory_budget=1 << 30)
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


@pytest.mark.parametrize('name', ['cog', 'floats'])
@pytest.mark.parametrize('n_failures', [1, 4])
def test_a_block_that_cannot_be_stored_is_offered_again(tmp_path, watch, caplog, name, n_failures):
    """The window was taken; the block waits in the canvas, and finalizing stores it."""
    expected = stitch(tmp_path / 'expected', shuffled(GRID), **FORMATS[name])[0]
    dset = make_dataset(tmp_path, 1)
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    watch.n_failures = n_failures
    caplog.clear()
    add_all(manager, windows=shuffled(GRID))
    assert watch.n_failures == 0 and manager.patch_counts[1] == len(GRID)
    assert manager.ready_image_ids() == [1]
    warned = [line for line in caplog.records if 'image 1' in line.getMessage()]
    assert len(warned) == 1 and 'simulated' in warned[0].getMessage()
    info = manager.finalize_image(1)
    assert Path(dset.bundle_dpath, info['file_name']).read_bytes() == expected


@pytest.mark.parametrize('submit', [False, True])
def test_a_disk_that_stays_full_fails_the_image(dset, watch, submit):
    manager = make_manager(dset, writer_queue=EagerQueue())
    manager.expect_windows(1, GRID)
    add_all(manager, windows=list(GRID)[:-1])
    n_taken = len(watch.taken)
    watch.n_failures = 1000
    add_all(manager, windows=list(GRID)[-1:])
    assert len(watch.taken) == n_taken and manager.ready_image_ids() == [1]
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='image 1.*simulated') as caught:
            manager.submit_finalize_image(1) if submit else manager.finalize_image(1)
        assert caught.value.image_id == 1
        assert manager.image_state(1) is ImageState.FAILED
        assert manager.managed_image_ids() == [1] and dset.imgs[1]['auxiliary'] == []
        with pytest.raises(ImageClosedError):
            manager.accumulate_image(1, FIRST, predict(FIRST))
    watch.n_failures = 0
    manager.finalize_image(1)
    assert np.isfinite(read(dset, 1)).all()


@pytest.mark.parametrize('name', ['cog', 'floats', 'free range', 'png'])
def test_a_failed_file_is_written_again_from_the_spool(tmp_path, monkeypatch, watch, name):
    expected, figures, _ = stitch(tmp_path / 'expected', **FORMATS[name])
    watch.taken.clear()
    dset = make_dataset(tmp_path, 1)
    real, left = images_module.write_image, [2]

    def write_image(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
        return real(*args, **kwargs)
    monkeypatch.setattr(images_module, 'write_image', write_image)
    manager = make_manager(dset, **FORMATS[name])
    manager.expect_windows(1, GRID)
    add_all(manager)
    for _ in range(2):
        with pytest.raises(AssetWriteError, match='simulated'):
            manager.finalize_image(1)
        assert manager.image_state(1) is ImageState.FAILED
    assert manager.finalize_image(1) == figures
    fpath, = (path for path in Path(manager.prob_dpath).iterdir() if path.suffix != '.jsonl')
    assert fpath.read_bytes() == expected
    with pytest.raises(AlreadyFinalizedError):
        manager.finalize_image(1)


def test_a_failed_image_is_in_memory_until_it_is_done(dset, monkeypatch):
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    add_all(manager)
    job = manager._table.get(1)
    (Path(manager.prob_dpath) / 'obstacle').mkdir()
    monkeypatch.setattr(job, 'fpaths', [str(Path(manager.prob_dpath) / 'obstacle')])
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    # The codes, and nothing of the canvas.
    assert job.stitcher.nbytes == 0 and job.nbytes == 640 * 192 * 2 * 2
    monkeypatch.undo()
    manager.finalize_image(1)
    assert job.nbytes == 0


# --- bookkeeping ---------------------------------------------------------

def test_bytes_that_wait(dset):
    manager = make_manager(dset)
    manager.expect_windows(1, GRID)
    manager.expect_windows(2, GRID)
    jobs = [manager._table.get(image_id) for image_id in (1, 2)]
    assert [job.nbytes for job in jobs] == [0, 0]
    add_all(manager, windows=list(GRID)[:10])
    codes = 640 * 192 * 2 * 2
    assert jobs[0].nbytes == codes + manager.image_stitchers[1].nbytes > codes
    add_all(manager, windows=list(GRID)[10:])
    manager.finalize_image(1)
    assert [job.nbytes for job in jobs] == [0, 0]


def test_declaring_costs_nothing(dset, monkeypatch):
    """Thousands of images may be declared before the first window comes."""
    made = watch_files(monkeypatch)
    manager = make_manager(dset, memory_budget=1 << 20)
    for image_id in (1, 2, 3):
        manager.expect_windows(image_id, GRID)
    assert made == []
    add_all(manager, windows=list(GRID)[:1])
    assert [kind for kind, _ in made] == ['spool']


def test_with_a_budget_finished_blocks_are_in_its_folder(tmp_path, monkeypatch):
    made, dset = watch_files(monkeypatch), make_dataset(tmp_path)
    (tmp_path / 'spill').mkdir()
    budget = MemoryBudget(100_000, tmp_path / 'spill')
    manager = make_manager(dset, memory_budget=budget)
    orders = {image_id: shuffled(GRID, image_id) for image_id in (1, 2, 3)}
    for image_id in orders:
        manager.expect_windows(image_id, GRID)
    for index in range(len(GRID)):
        for image_id, order in orders.items():
            manager.accumulate_image(image_id, order[index], predict(order[index]))
            # A window touches at most four blocks, which are always there.
            assert budget.used <= max(budget.nbytes, 4 * 64 * 64 * 3 * 4)
    assert sorted(made).count(('spool', str(tmp_path / 'spill'))) == 3
    assert ('spill', str(tmp_path / 'spill')) in made
    assert os.listdir(tmp_path / 'spill') == []
    manager.close()
    assert budget.used == 0
    expected = stitch(tmp_path / 'expected', orders[1])[2]
    assert np.array_equal(read(dset, 1), read(expected, 1))


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


def test_closing_does_not_write_images_with_gaps(dset, watch):
    manager = make_manager(dset)
    for image_id in (1, 2):
        manager.expect_windows(image_id, GRID)
        add_all(manager, image_id, windows=list(GRID)[:-1] if image_id == 1 else GRID)
    assert len(watch.taken) > 30
    with pytest.raises(CoverageError, match='image 1 was not written.*1 of its declared'):
        manager.close()
    assert manager.seen_image_ids == {2} and dset.imgs[1]['auxiliary'] == []


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


def test_finalizing_waits_for_blocks_on_their_way(dset, watch):
    """The last window came while another thread was still storing a block."""
    manager = make_manager(dset)
    halves = [Window(0, 0, 640, 96), Window(0, 96, 640, 192)]
    manager.expect_windows(1, halves)
    inside, gate = threading.Event(), threading.Event()

    def hold(window):
        if window == Window(0, 0, 64, 64):
            inside.set()
            assert gate.wait(30)
    watch.hook = hold
    first = threading.Thread(target=manager.accumulate_image, args=(1, halves[0], IMAGE[:, :96]))
    first.start()
    assert inside.wait(30)
    manager.accumulate_image(1, halves[1], IMAGE[:, 96:])
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


def test_closing_races_with_everything(tmp_path):
    """Whole assets or none, and only errors of ours."""
    for attempt in range(4):
        dset, errors = make_dataset(tmp_path / f'{attempt}', 4), []
        manager = make_manager(dset)

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
