"""
What scripts written for the reference manager rely on, and what is new.

The manager is used from outside only: constructor, methods, attributes, queues,
threads, several managers on one dataset, runs that fail and runs that resume.
"""
import inspect
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kwarray
import kwcoco
import kwimage
import numpy as np
import pytest
from shapely.geometry import shape

from cocoseg import (CocoStitchingManager, SoftStitcher, Window, WindowGrid, WriterQueue,
                     edge_weights)
from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, BandCountError,
                            ChannelCollisionError, CoverageError, ImageClosedError,
                            NothingAccumulatedError, OptionError, ResumeError, UnknownImageError,
                            WindowShapeError)
from cocoseg.io import images as images_module
from cocoseg.protocols import EagerQueue
from cocoseg.stitch.budget import MemoryBudget

from ..builders import watch_files

SIZE = 48
STEP = 1 / 32767


def make_dataset(folder, n_videos=1, n_frames=3):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    for video in range(n_videos):
        video_id = dset.add_video(name=f'v{video}', width=SIZE, height=SIZE)
        for frame in range(n_frames):
            dset.add_image(name=f'v{video}f{frame}', width=SIZE, height=SIZE, video_id=video_id,
                           frame_index=frame, auxiliary=[])
    return dset


@pytest.fixture()
def dset(tmp_path):
    return make_dataset(tmp_path)


def make_manager(dset, chan_code='a|b', **options):
    options = {'expected_minmax': (0, 1), **options}
    return CocoStitchingManager(dset, 'pred', chan_code, **options)


def full(value=0.5, n_bands=2):
    return np.full((SIZE, SIZE, n_bands), value)


def read(dset, image_id, channels='a|b'):
    return dset.coco_image(image_id).imdelay(channels, space='asset').finalize()


def list_assets(dset, image_id):
    return dset.index.imgs[image_id].get('auxiliary') or []


def fail_writes(monkeypatch, n_failures=1, only=''):
    """Let the next writes (of files with ``only`` in their name) raise."""
    real = images_module.write_image
    left = [n_failures]

    def write_image(fpath, *args, **kwargs):
        if left[0] > 0 and only in os.path.basename(fpath):
            left[0] -= 1
            raise OSError(28, 'No space left on device (simulated)')
        return real(fpath, *args, **kwargs)
    monkeypatch.setattr(images_module, 'write_image', write_image)


class Turnstile(EagerQueue):
    """A queue that keeps its jobs until told to run them."""

    def __init__(self):
        self.jobs = []

    def submit(self, func, *args):
        self.jobs.append((func, args))

    def wait_until_finished(self, desc=None):
        while self.jobs:
            func, args = self.jobs.pop(0)
            func(*args)


# --- a drop-in -----------------------------------------------------------

REFERENCE = ('result_dataset short_code chan_code stitching_space device memmap thresh '
             'write_probs write_preds num_bands prob_compress prob_blocksize prob_format '
             'polygon_categories expected_minmax quantize writer_queue write_prediction_attrs '
             'assets_dname dtype').split()


def test_constructor_takes_the_arguments_of_the_reference_in_order():
    names = list(inspect.signature(CocoStitchingManager).parameters)
    assert names[:len(REFERENCE)] == REFERENCE
    kinds = [p.kind for p in inspect.signature(CocoStitchingManager).parameters.values()]
    assert all(kind is inspect.Parameter.KEYWORD_ONLY for kind in kinds[len(REFERENCE):])


def test_accumulate_takes_the_arguments_of_the_reference_in_order():
    names = list(inspect.signature(CocoStitchingManager.accumulate_image).parameters)
    assert names == ('self gid space_slice data asset_dsize scale_asset_from_stitchspace is_ready '
                     'weights downweight_edges kwargs').split()


def test_the_historical_spelling_is_an_alias(dset):
    manager = CocoStitchingManager(dset, 'pred', 'a', stiching_space='image')
    assert manager.stitching_space == manager.stiching_space == 'image'
    with pytest.raises(OptionError, match='stitching_space'):
        CocoStitchingManager(dset, 'pred', 'a', stiching_space='asset')


def test_scripts_hang_their_own_attributes_on_it(dset):
    manager = make_manager(dset)
    manager.head_keep_idxs, manager.num_hidden = [0, 1], 4
    assert (manager.head_keep_idxs, manager.num_hidden) == ([0, 1], 4)
    assert (manager.chan_code, manager.num_bands) == ('a|b', 2)


def test_the_private_names_that_scripts_poke_at(dset):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full(), is_ready=True)
    assert manager._seen_gids == set()
    assert manager._stitched_gid_patch_histograms[1] == 1
    assert manager._ready_gids == {1}
    manager._ready_gids.difference_update([1])
    manager.submit_finalize_image(1)
    manager.flush_images()
    assert manager._seen_gids == manager.seen_image_ids == {1}
    assert manager._ready_gids == set()


def test_image_stitchers_is_a_mapping_to_loop_over(dset):
    manager = make_manager(dset)
    for image_id in (1, 2):
        manager.accumulate_image(image_id, None, full())
    for image_id in list(manager.image_stitchers):
        assert isinstance(manager.image_stitchers[image_id], SoftStitcher)
        manager.submit_finalize_image(image_id)
    assert manager.image_stitchers == {}


@pytest.mark.parametrize('make', [kwarray.Stitcher, SoftStitcher])
def test_center_weighted_add_on_a_bare_stitcher(make):
    data = np.random.RandomState(0).rand(12, 16)
    data[3, 4] = np.nan
    data.flags.writeable = False
    stitcher = make((12, 16))
    CocoStitchingManager._stitcher_center_weighted_add(stitcher, None, data)
    CocoStitchingManager._stitcher_center_weighted_add(
        stitcher, (slice(8, 16), slice(-2, 4)), np.ones((8, 6)))
    sums, weights = np.nan_to_num(data) * edge_weights((12, 16)), edge_weights((12, 16)).copy()
    weights[3, 4] = 0
    sums[8:, :4] += edge_weights((8, 6))[:4, 2:]
    weights[8:, :4] += edge_weights((8, 6))[:4, 2:]
    with np.errstate(invalid='ignore'):
        found = stitcher.finalize()
        assert np.allclose(found.reshape(12, 16), sums / weights, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize('options, message', [
    ({'num_bands': 3}, 'num_bands=3'), ({'readiness': 'guess'}, 'readiness'),
    ({'on_collision': 'ask'}, 'on_collision'), ({'memory_budget': 0}, 'memory_budget'),
    ({'device': 'cuda', 'memmap': True}, 'device'),
    ({'device': 'cpu', 'memory_budget': 1}, 'device'),
    ({'prob_compress': 'ZIPPY'}, 'ZIPPY'), ({'prob_format': 'jpg'}, 'prob_format'),
    ({'dtype': 'float16'}, 'float16'), ({'chan_code': None}, 'chan_code'),
    ({'assets_dname': '../up'}, 'assets_dname')])
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, options, message):
    dset = make_dataset(tmp_path)
    with pytest.raises(OptionError, match=message):
        make_manager(dset, **options)
    assert os.listdir(tmp_path) == []


def test_num_bands_may_be_given(dset):
    assert make_manager(dset, num_bands=2).num_bands == 2


def test_without_a_short_code_assets_lie_in_the_asset_folder(dset, tmp_path):
    manager = CocoStitchingManager(dset, chan_code='a', expected_minmax=(0, 1))
    manager.accumulate_image(1, None, full(0.5, 1))
    assert manager.finalize_image(1)['file_name'] == '_assets/v0f0_a.tif'


def test_an_asset_folder_that_cannot_be_made(dset, tmp_path):
    (tmp_path / '_assets').write_text('a file')
    with pytest.raises(AssetWriteError, match='_assets'):
        make_manager(dset)


# --- accumulating --------------------------------------------------------

class FakeTensor:
    """As much of a torch tensor as the manager may use."""

    def __init__(self, data):
        self._data = data
        self.shape = data.shape

    def detach(self):
        return self

    cpu = detach

    def __array__(self, dtype=None, copy=None):
        return self._data if dtype is None else self._data.astype(dtype)


@pytest.mark.parametrize('place', [
    (slice(4, 20), slice(8, 40)), [slice(4, 20), slice(8, 40)], Window(4, 8, 20, 40),
    kwimage.Box.coerce([8, 4, 40, 20], format='ltrb'),
    (slice(np.int64(4), 20.0), slice(np.float32(8), np.int16(40)))])
def test_all_spellings_of_a_window(dset, place):
    manager = make_manager(dset)
    manager.accumulate_image(1, place, np.full((16, 32, 2), 0.5))
    manager.finalize_image(1)
    found = read(dset, 1)
    assert np.isnan(found[:4]).all() and np.isnan(found[:, :8]).all()
    assert np.abs(found[4:20, 8:40] - 0.5).max() <= STEP / 2


def test_no_window_is_the_whole_asset(dset):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, np.full((20, 30, 2), 0.5), asset_dsize=(30, 20),
                             scale_asset_from_stitchspace=(30 / 48, 20 / 48))
    manager.finalize_image(1)
    assert read(dset, 1).shape == (20, 30, 2)


@pytest.mark.parametrize('start, stop, row', [(-16, 32, 16), (-16, 60, 16), (40, 88, 0)])
def test_windows_may_hang_over(dset, start, stop, row):
    """A negative start is outside; it does not count from the end."""
    ramp = np.linspace(0, 1, 48)[:, None, None] * np.ones((1, SIZE, 2))
    ramp = np.resize(ramp, (stop - start, SIZE, 2))
    manager = make_manager(dset)
    manager.accumulate_image(1, (slice(start, stop), slice(0, SIZE)), ramp)
    manager.finalize_image(1)
    found = read(dset, 1)[max(start, 0):min(stop, SIZE)]
    assert np.abs(found - ramp[row:row + len(found)]).max() <= STEP / 2 + 1e-6


def test_a_plane_stands_for_every_channel(dset):
    manager = make_manager(dset)
    plane = np.random.RandomState(0).rand(SIZE, SIZE)
    manager.accumulate_image(1, None, plane)
    manager.finalize_image(1)
    assert np.abs(read(dset, 1) - plane[..., None]).max() <= STEP / 2 + 1e-6


def test_tensors_of_data_and_weights(dset):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, FakeTensor(full(0.25)), weights=FakeTensor(np.ones((48, 48))))
    manager.accumulate_image(1, None, FakeTensor(full(1)[..., 0]),
                             weights=FakeTensor(np.full((48, 48), 2.0)), downweight_edges=False)
    manager.finalize_image(1)
    assert np.abs(read(dset, 1) - 0.75).max() <= STEP


def test_the_arrays_of_the_caller_are_not_touched(dset):
    data = np.random.RandomState(0).rand(SIZE, SIZE, 2).astype('f4')
    data[3:9, 4:7, 1] = np.nan
    data[20, 20] = np.inf
    weights = np.ones((SIZE, SIZE))
    kept = data.copy()
    for array in (data, weights):
        array.flags.writeable = False
    manager = make_manager(dset)
    info = None
    for downweight_edges in (True, False):
        manager.accumulate_image(1, None, data, weights=weights, downweight_edges=downweight_edges)
    info = manager.finalize_image(1)
    assert np.array_equal(data, kept, equal_nan=True) and (weights == 1).all()
    assert info['n_invalid'] == 2 * (6 * 3 + 1)
    assert np.isnan(read(dset, 1)).any(axis=2).sum() == 19


def test_edges_weigh_less(dset):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full(1), downweight_edges=True)
    manager.accumulate_image(1, None, full(0))
    manager.finalize_image(1)
    edges = edge_weights((SIZE, SIZE))
    assert np.abs(read(dset, 1)[..., 0] - edges / (edges + 1)).max() <= STEP


def test_old_argument_names_still_work_and_say_so(dset):
    manager = make_manager(dset)
    with pytest.warns(DeprecationWarning, match='asset_dsize'):
        manager.accumulate_image(1, None, np.ones((24, 24, 2)), dsize=(24, 24), scale=0.5)
    manager.finalize_image(1)
    assert list_assets(dset, 1)[0]['warp_aux_to_img'] == {'scale': 2.0, 'type': 'affine'}
    with pytest.raises(TypeError, match='colour'):
        manager.accumulate_image(2, None, full(), colour='red')


def test_size_and_scale_are_those_of_the_first_window(dset):
    manager = make_manager(dset)
    first = dict(asset_dsize=(24, 24), scale_asset_from_stitchspace=0.5)
    data = np.ones((24, 24, 2))
    manager.accumulate_image(1, None, data, **first)
    manager.accumulate_image(1, None, data)
    manager.accumulate_image(1, None, data, asset_dsize=np.array([24, 24]),
                             scale_asset_from_stitchspace=(0.5, 0.5))
    with pytest.raises(OptionError, match='asset_dsize'):
        manager.accumulate_image(1, None, data, asset_dsize=(24, 25))
    with pytest.raises(OptionError, match='scale'):
        manager.accumulate_image(1, None, data, scale_asset_from_stitchspace=0.25)
    assert manager.patch_counts[1] == 3


def test_a_scale_without_a_size_is_questioned(dset):
    with pytest.warns(UserWarning, match='not scaled'):
        make_manager(dset).accumulate_image(1, None, full(), scale_asset_from_stitchspace=0.5)


@pytest.mark.parametrize('options, error', [
    (dict(asset_dsize=(0, 5)), OptionError), (dict(asset_dsize=(48.5, 48)), OptionError),
    (dict(scale_asset_from_stitchspace=0), OptionError),
    (dict(data=np.ones((48, 47, 2))), WindowShapeError), (dict(data=full(1, 3)), BandCountError),
    (dict(data=np.full((48, 48, 2), 'x')), WindowShapeError),
    (dict(space_slice=(slice(50, 98), slice(0, 48))), CoverageError),
    (dict(space_slice=(slice(0, 48, 2), slice(0, 48))), CoverageError),
    (dict(space_slice=(slice(0, 47.5), slice(0, 48))), CoverageError),
    (dict(space_slice='everything'), CoverageError), (dict(gid=77), UnknownImageError)])
def test_a_refused_window_leaves_no_trace(dset, options, error):
    manager, other = make_manager(dset), make_manager(dset)
    options = {'gid': 1, 'space_slice': None, 'data': full(), **options}
    with pytest.raises(error):
        manager.accumulate_image(**options)
    assert manager.managed_image_ids() == [] and not manager.patch_counts
    # The channels are free again.
    other.accumulate_image(1, None, full())
    other.finalize_image(1)


@pytest.mark.parametrize('options', [{}, {'downweight_edges': True},
                                     {'weights': np.ones((0, 4))}])
def test_an_empty_window_is_refused_however_it_is_weighted(dset, options):
    manager = make_manager(dset)
    with pytest.raises(CoverageError):
        manager.accumulate_image(1, (slice(3, 3), slice(0, 4)), np.ones((0, 4, 2)), **options)
    manager.expect_windows(1, [Window(0, 0, 4, 4)])


@pytest.mark.parametrize('image_id', [np.int64(1), np.uint8(1)])
def test_image_ids_may_be_numpy_numbers(dset, image_id):
    manager = make_manager(dset)
    manager.accumulate_image(image_id, None, full())
    manager.finalize_image(image_id)
    assert manager.is_done(1)
    make_manager(dset, resume=True)
    manager.dump()
    assert len(list_assets(kwcoco.CocoDataset(dset.fpath), 1)) == 1


def test_threads_lose_nothing(dset):
    """Whole numbers add up exactly in any order."""
    manager = make_manager(dset, expected_minmax=None, quantize=False)
    rng = np.random.RandomState(0)
    places = [(y, x) for y in range(0, 33, 4) for x in range(0, 33, 4)]
    jobs = [(image_id, Window(y, x, y + 16, x + 16), rng.randint(0, 9, (16, 16, 2)))
            for y, x in places for image_id in (1, 2)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda job: manager.accumulate_image(*job), jobs))
    assert manager.patch_counts == {1: len(places), 2: len(places)}
    for image_id in (1, 2):
        sums, counts = np.zeros((SIZE, SIZE, 2)), np.zeros((SIZE, SIZE, 1))
        for other_id, window, data in jobs:
            if other_id == image_id:
                sums[window.slices] += data
                counts[window.slices] += 1
        manager.finalize_image(image_id)
        assert np.array_equal(read(dset, image_id), (sums / counts).astype('f4'))


# --- windows that are declared, and readiness ----------------------------

def test_an_image_is_ready_when_its_last_window_came(dset):
    manager = make_manager(dset)
    grid = WindowGrid((SIZE, SIZE), 32, 8)
    manager.expect_windows(1, grid)
    assert manager.pending_windows(1) == sorted(grid)
    assert manager.managed_image_ids() == [] and not manager.is_done(1)
    for index, window in enumerate(reversed(list(grid))):
        assert manager.ready_image_ids() == []
        manager.accumulate_image(1, window, np.full((32, 32, 2), 0.5))
        assert len(manager.pending_windows(1)) == len(grid) - index - 1
    assert manager.ready_image_ids() == [1]
    with pytest.raises(CoverageError, match='not declared or was already received'):
        manager.accumulate_image(1, window, np.full((32, 32, 2), 0.5))


def test_declared_windows_blend_with_the_linear_plan(dset):
    """A partition of unity: crops of an image give the image, a step a ramp."""
    manager = make_manager(dset)
    grid = WindowGrid((SIZE, SIZE), (SIZE, 32), (0, 16))
    manager.expect_windows(1, grid)
    for window, value in zip(grid, (0, 1)):
        manager.accumulate_image(1, window, np.full((SIZE, 32, 2), value))
    manager.finalize_image(1)
    row = read(dset, 1)[0, :, 0]
    assert np.abs(np.diff(row)).max() <= 1 / 16
    assert (row[:16] == 0).all() and np.abs(row[32:] - 1).max() < STEP


@pytest.mark.parametrize('windows', [
    [(slice(0, None), slice(0, 24)), (slice(0, None), slice(24, None))],
    [(slice(None), slice(None, 24)), (slice(None), slice(24, None))]])
def test_declared_slices_may_be_open(dset, windows):
    manager = make_manager(dset)
    manager.expect_windows(1, windows)
    for window in windows:
        manager.accumulate_image(1, window, np.full((SIZE, 24, 2), 0.5))
    assert manager.ready_image_ids() == [1]


def test_a_declared_window_may_come_clipped(dset):
    """A grid whose only window overhangs the image; the script crops to the image."""
    manager = make_manager(dset)
    manager.expect_windows(1, WindowGrid((SIZE, SIZE), 64))
    manager.accumulate_image(1, None, full(0.25))
    assert manager.ready_image_ids() == [1]
    manager.finalize_image(1)
    assert np.abs(read(dset, 1) - 0.25).max() <= STEP


def test_windows_are_declared_once_and_first(dset):
    manager = make_manager(dset)
    manager.expect_windows(1, iter([Window(0, 0, 48, 48)]), asset_dsize=(48, 48),
                           scale_asset_from_stitchspace=1)
    with pytest.raises(CoverageError, match='already'):
        manager.expect_windows(1, [Window(0, 0, 48, 48)])
    manager.accumulate_image(2, None, full())
    with pytest.raises(CoverageError, match='already'):
        manager.expect_windows(2, [Window(0, 0, 48, 48)])
    with pytest.raises(CoverageError, match='no pixel'):
        manager.expect_windows(3, [Window(0, 0, 4, 4), Window(60, 0, 64, 4)])
    assert manager.pending_windows(3) == []


def test_finalizing_with_gaps_warns_and_leaves_them(dset):
    manager = make_manager(dset)
    manager.expect_windows(1, [Window(0, 0, 48, 24), Window(0, 24, 48, 48)])
    manager.accumulate_image(1, Window(0, 0, 48, 24), np.ones((48, 24, 2)))
    with pytest.warns(UserWarning, match='1 declared windows are missing.*x=24:48'):
        manager.finalize_image(1)
    found = read(dset, 1)
    assert np.isnan(found[:, 24:]).all() and np.isfinite(found[:, :24]).all()
    assert shape(dset.index.imgs[1]['prediction_region']).area == 48 * 24


def test_the_first_call_can_say_that_it_is_all(dset):
    manager = make_manager(dset)
    manager.accumulate_image(2, None, full(), is_ready=True)
    assert manager.ready_image_ids() == [2]


def test_the_caller_has_the_last_word_on_readiness(dset):
    manager = make_manager(dset)
    windows = [Window(0, 0, 48, 24), Window(0, 24, 48, 48)]
    for image_id in (1, 2):
        manager.expect_windows(image_id, windows)
    manager.accumulate_image(1, windows[0], full()[:, :24], is_ready=True)
    manager.accumulate_image(2, windows[0], full()[:, :24])
    manager.accumulate_image(2, windows[1], full()[:, :24], is_ready=False)
    assert manager.ready_image_ids() == [1]
    assert manager.pending_windows(1) == [windows[1]] and manager.pending_windows(2) == []


def test_nothing_is_ready_by_itself(dset):
    manager = make_manager(dset)
    for image_id in (1, 2, 1):
        manager.accumulate_image(image_id, None, full())
    assert manager.ready_image_ids() == []
    manager.mark_ready(2)
    assert manager.ready_image_ids() == [2] and manager.managed_image_ids() == [1, 2]


@pytest.mark.parametrize('space, expected', [
    ('video', [[], [], [], [1, 2, 3], [1, 2, 3]]),
    ('image', [[], [1], [1, 2], [1, 2, 3], [1, 2, 3, 4]])])
def test_contiguous_readiness_follows_the_order_of_the_reference(tmp_path, space, expected):
    dset = make_dataset(tmp_path, n_videos=2)
    manager = make_manager(dset, stitching_space=space, readiness='contiguous')
    for image_id, ready in zip((1, 2, 3, 4, 5), expected):
        manager.accumulate_image(image_id, None, full())
        assert manager.ready_image_ids() == ready


# --- finishing -----------------------------------------------------------

def test_figures_of_a_finished_image(dset):
    manager = make_manager(dset)
    data = full(0.5)
    data[:4, :4] = 2
    data[10:12, 0, 0] = np.nan
    manager.accumulate_image(1, None, data)
    info = manager.finalize_image(1)
    assert set(info) >= {'n_anns', 'total_prob', 'n_clipped', 'n_invalid', 'file_name'}
    assert (info['n_anns'], info['n_clipped'], info['n_invalid']) == (0, 32, 2)
    # The sum of what was written: the 2 were clipped to 1.
    assert info['total_prob'] == pytest.approx(np.nansum(read(dset, 1), dtype=float))
    assert info['total_prob'] == pytest.approx(32 * 1 + (data.size - 32 - 4) * 0.5, rel=1e-4)
    assert info['file_name'] == list_assets(dset, 1)[0]['file_name']


def test_an_image_is_finalized_once(dset):
    manager = make_manager(dset)
    for func in (manager.finalize_image, manager.submit_finalize_image, manager.mark_ready):
        with pytest.raises(NothingAccumulatedError):
            func(1)
    manager.accumulate_image(1, None, full())
    manager.finalize_image(1)
    manager.submit_finalize_image(1)
    with pytest.raises(KeyError):
        manager.finalize_image(1)
    with pytest.raises(AlreadyFinalizedError):
        manager.finalize_image(1)
    assert len(list_assets(dset, 1)) == 1


def test_submit_detaches_the_image_at_once(dset):
    queue = Turnstile()
    manager = make_manager(dset, writer_queue=queue)
    manager.accumulate_image(1, None, full(), is_ready=True)
    for _ in range(3):
        manager.submit_finalize_image(1)
    assert len(queue.jobs) == 1
    assert manager.managed_image_ids() == [] and manager.ready_image_ids() == []
    assert not manager.is_done(1) and manager.seen_image_ids == set()
    assert list_assets(dset, 1) == []
    with pytest.raises(ImageClosedError, match='finalizing'):
        manager.accumulate_image(1, None, full())
    with pytest.raises(ImageClosedError):
        manager.expect_windows(1, [Window(0, 0, 4, 4)])
    with pytest.raises(ImageClosedError):
        manager.mark_ready(1)
    with pytest.raises(AlreadyFinalizedError):
        manager.finalize_image(1)
    manager.flush_images()
    assert manager.is_done(1) and len(list_assets(dset, 1)) == 1
    with pytest.raises(ImageClosedError, match='done'):
        manager.accumulate_image(1, None, full())


def test_late_data_for_interleaved_images_raises(dset):
    """Images A, B, A, B: the reference wrote A twice, the second time half of it."""
    manager = make_manager(dset, stitching_space='image', readiness='contiguous')
    for image_id in (1, 2):
        manager.accumulate_image(image_id, (slice(0, 24), slice(0, 48)), full()[:24])
        for ready in manager.ready_image_ids():
            manager.submit_finalize_image(ready)
    with pytest.raises(ImageClosedError, match='expect_windows'):
        manager.accumulate_image(1, (slice(24, 48), slice(0, 48)), full()[:24])


def make_blocking_queue(workers):
    from kwutil.util_parallel import BlockingJobQueue
    return BlockingJobQueue(mode='thread', max_workers=workers)


QUEUES = {
    'none': lambda: None, 'serial': lambda: WriterQueue(workers=0),
    'threads': lambda: WriterQueue(workers=2), 'one job': lambda: WriterQueue(1, 1, 1),
    'executor': lambda: ThreadPoolExecutor(2), 'eager': EagerQueue, 'turnstile': Turnstile,
    'kwutil serial': lambda: make_blocking_queue(0),
    'kwutil threads': lambda: make_blocking_queue(2),
}


@pytest.mark.parametrize('name', list(QUEUES))
@pytest.mark.parametrize('later', [False, True])
def test_every_kind_of_queue(dset, name, later):
    queue = QUEUES[name]()
    manager = make_manager(dset, writer_queue=None if later else queue)
    if later:
        manager.writer_queue = queue
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full(image_id / 4))
        manager.submit_finalize_image(image_id)
    manager.flush_images()
    assert manager.seen_image_ids == {1, 2, 3}
    for image_id in (1, 2, 3):
        assert np.abs(read(dset, image_id) - image_id / 4).max() <= STEP / 2 + 1e-7
    manager.close()
    if queue is not None:
        # The queue is the caller's, and still open.
        assert manager.writer_queue is queue
        queue.submit(len, [])


@pytest.mark.parametrize('name', list(QUEUES))
def test_a_failed_write_on_every_kind_of_queue(dset, name, monkeypatch):
    fail_writes(monkeypatch, only='v0f1')
    manager = make_manager(dset, writer_queue=QUEUES[name]())
    errors = []
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full(image_id / 4))
    for image_id in (1, 2, 3):
        try:
            manager.submit_finalize_image(image_id)
        except AssetWriteError as ex:
            errors.append(ex)
    try:
        manager.flush_images()
    except AssetWriteError as ex:
        errors.append(ex)
    manager.flush_images()
    error, = errors
    assert error.image_id == 2 and error.path.endswith('.tif') and 'simulated' in str(error)
    assert manager.seen_image_ids == {1, 3} and manager.managed_image_ids() == [2]
    assert list_assets(dset, 2) == [] and 'has_predictions' not in dset.index.imgs[2]
    assert not os.path.exists(error.path)
    manager.submit_finalize_image(2)
    manager.flush_images()
    assert manager.seen_image_ids == {1, 2, 3}
    assert np.abs(read(dset, 2) - 0.5).max() <= STEP


def test_the_errors_of_others_on_a_shared_queue_are_not_ours(dset):
    with WriterQueue(workers=1) as queue:
        manager = make_manager(dset, writer_queue=queue)
        manager.accumulate_image(1, None, full())
        queue.submit(int, 'not a number')
        manager.submit_finalize_image(1)
        manager.flush_images()
        assert manager.is_done(1)
        with pytest.raises(ValueError):
            queue.wait_until_finished()


def test_an_error_that_was_raised_is_not_raised_again(dset, monkeypatch):
    fail_writes(monkeypatch)
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full())
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    manager.accumulate_image(2, None, full())
    manager.flush_images()
    manager.finalize_image(1)


def test_an_error_in_the_background_meets_the_next_window(dset, monkeypatch):
    fail_writes(monkeypatch)
    manager = make_manager(dset, writer_queue=EagerQueue())
    manager.accumulate_image(1, None, full())
    with pytest.raises(AssetWriteError):
        manager.submit_finalize_image(1)
    fail_writes(monkeypatch)
    queue = Turnstile()
    manager.writer_queue = queue
    manager.submit_finalize_image(1)
    queue.wait_until_finished()
    with pytest.raises(AssetWriteError, match='image 1'):
        manager.accumulate_image(2, None, full())
    # The window was not taken, and the same call works now.
    assert manager.patch_counts[2] == 0
    manager.accumulate_image(2, None, full())
    assert manager.managed_image_ids() == [1, 2]


def test_an_older_file_survives_a_failed_write(dset, monkeypatch):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full(0.25))
    fpath = Path(manager.manifest.bundle_dpath, manager.finalize_image(1)['file_name'])
    old = fpath.read_bytes()
    again = make_manager(dset, on_collision='replace')
    again.accumulate_image(1, None, full(0.75))
    fail_writes(monkeypatch)
    with pytest.raises(AssetWriteError):
        again.finalize_image(1)
    assert fpath.read_bytes() == old and len(list_assets(dset, 1)) == 1
    assert np.abs(read(dset, 1) - 0.25).max() < STEP


def test_a_target_that_is_a_folder(dset, tmp_path):
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full())
    manager.accumulate_image(2, None, full())
    target = manager.finalize_image(2)['file_name'].replace('v0f1', 'v0f0')
    (tmp_path / target).mkdir()
    with pytest.raises(AssetWriteError, match='image 1'):
        manager.finalize_image(1)
    assert list_assets(dset, 1) == [] and manager.managed_image_ids() == [1]
    (tmp_path / target).rmdir()
    manager.finalize_image(1)
    assert manager.is_done(1)


# --- closing -------------------------------------------------------------

def test_leaving_the_block_writes_what_is_left(dset):
    with make_manager(dset) as manager:
        manager.accumulate_image(1, None, full(), is_ready=True)
        manager.accumulate_image(2, None, full())
    assert manager.seen_image_ids == {1, 2}
    manager.close()
    assert manager.managed_image_ids() == []
    with pytest.raises(ImageClosedError, match='closed'):
        manager.accumulate_image(3, None, full())
    assert manager.is_done(1) and not manager.is_done(3)


def test_closing_does_not_write_images_with_gaps(dset):
    manager = make_manager(dset)
    manager.expect_windows(1, [Window(0, 0, 48, 24), Window(0, 24, 48, 48)])
    manager.accumulate_image(1, Window(0, 0, 48, 24), full()[:, :24])
    manager.accumulate_image(2, None, full())
    with pytest.raises(CoverageError, match='image 1 was not written.*1 of its declared'):
        manager.close()
    assert list_assets(dset, 1) == [] and manager.seen_image_ids == {2}
    manager.close()


def test_closing_reports_a_failed_image(dset, monkeypatch):
    fail_writes(monkeypatch, only='v0f0')
    manager = make_manager(dset)
    manager.accumulate_image(1, None, full())
    manager.accumulate_image(2, None, full())
    with pytest.raises(AssetWriteError, match='image 1'):
        manager.close()
    assert manager.seen_image_ids == {2}


def test_an_exception_in_the_block_finishes_only_what_was_submitted(dset):
    with pytest.raises(ZeroDivisionError):
        with make_manager(dset) as manager:
            for image_id in (1, 2):
                manager.accumulate_image(image_id, None, full())
            manager.submit_finalize_image(1)
            raise ZeroDivisionError
    assert manager.seen_image_ids == {1}
    assert len(list_assets(dset, 1)) == 1 and list_assets(dset, 2) == []


def test_dump_saves_after_the_last_write(dset):
    manager = make_manager(dset, writer_queue=WriterQueue(workers=2))
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full())
        manager.submit_finalize_image(image_id)
    manager.dump()
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert all(len(list_assets(reopened, image_id)) == 1 for image_id in (1, 2, 3))
    manager.close()


def test_the_manifest_file_is_only_written_by_dump(dset):
    with make_manager(dset) as manager:
        manager.accumulate_image(1, None, full())
    assert not os.path.exists(dset.fpath)


# --- several managers on one dataset -------------------------------------

def test_two_managers_cannot_predict_the_same_channel(dset):
    first, second = make_manager(dset, 'a|b'), make_manager(dset, 'b|c')
    first.accumulate_image(1, None, full())
    with pytest.raises(ChannelCollisionError, match="'b' of image 1"):
        second.accumulate_image(1, None, full())
    second.accumulate_image(2, None, full())
    first.finalize_image(1)
    with pytest.raises(ChannelCollisionError):
        second.accumulate_image(1, None, full())


def test_a_closed_manager_gives_its_channels_back(dset):
    with pytest.raises(ZeroDivisionError), make_manager(dset) as first:
        first.accumulate_image(1, None, full())
        raise ZeroDivisionError
    make_manager(dset).accumulate_image(1, None, full())


def test_predicted_channels_must_be_new_or_replaced(dset):
    with make_manager(dset) as manager:
        manager.accumulate_image(1, None, full(0.25))
    with pytest.raises(ChannelCollisionError, match="on_collision='replace'"):
        make_manager(dset).accumulate_image(1, None, full(0.75))
    with make_manager(dset, on_collision='replace') as manager:
        manager.accumulate_image(1, None, full(0.75))
    asset, = list_assets(dset, 1)
    assert np.abs(read(dset, 1) - 0.75).max() < STEP
    assert dset.validate() == {'errors': [], 'warnings': []}


#: Head: (channels, scale of its asset against the video).
HEADS = {'change': ('salient|other', 1), 'class': ('ac|bg|x', 1), 'saliency': ('sal', 0.5),
         'hidden': ('hidden.0:4', 0.25)}


class Head:
    """One head of a fusion model: its manager, and a model of what it saw."""

    def __init__(self, name, dset, queue, readiness):
        self.channels, self.scale = HEADS[name]
        self.manager = CocoStitchingManager(
            dset, f'pred_{name}', self.channels, 'video', expected_minmax=(0, 1),
            writer_queue=queue, readiness=readiness)
        self.size = int(SIZE * self.scale)
        self.sums, self.weights = {}, {}

    def predict(self, image_id, place, seed):
        """Predict one window, given in video space."""
        window = Window(*(int(edge * self.scale) for edge in place))
        data = np.random.RandomState(seed).rand(*window.shape, self.manager.num_bands)
        data = data.astype('f4')
        data[0, 0] = np.nan
        self.manager.accumulate_image(
            image_id, window.slices, data, asset_dsize=(self.size, self.size),
            scale_asset_from_stitchspace=self.scale, downweight_edges=True)
        weights = edge_weights(window.shape).astype(float)
        weights[0, 0] = 0
        sums = self.sums.setdefault(image_id, np.zeros((self.size, self.size, data.shape[2])))
        total = self.weights.setdefault(image_id, np.zeros((self.size, self.size, 1)))
        sums[window.slices] += np.nan_to_num(data) * weights[..., None]
        total[window.slices] += weights[..., None]

    def submit_ready(self):
        for image_id in self.manager.ready_image_ids():
            self.manager.submit_finalize_image(image_id)

    def check(self, dset, image_id):
        with np.errstate(invalid='ignore'):
            expected = self.sums[image_id] / self.weights[image_id]
        found = read(dset, image_id, self.channels)
        assert found.shape == expected.shape
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.nanmax(np.abs(found - expected)) <= STEP / 2 + 1e-6


@pytest.mark.parametrize('readiness', ['declared', 'contiguous'])
@pytest.mark.parametrize('queue', ['threads', 'kwutil threads'])
def test_a_fusion_predict_script(tmp_path, readiness, queue):
    dset = make_dataset(tmp_path, n_videos=3, n_frames=2)
    unused = [5, 6]
    queue = QUEUES[queue]()
    heads = [Head(name, dset, queue, readiness) for name in HEADS]
    places = [(y, x, y + 32, x + 32) for y in (0, 16) for x in (0, 16)]
    with ThreadPoolExecutor(4) as pool:
        for image_id in (1, 2, 3, 4):
            for index, place in enumerate(places):
                list(pool.map(lambda head: head.predict(image_id, place, index), heads))
                for head in heads:
                    head.submit_ready()
    if readiness == 'contiguous':
        # The first video went to the writer when the second began.
        assert all(head.manager.managed_image_ids() == [3, 4] for head in heads)
    queue.wait_until_finished()
    for head in heads:
        for image_id in head.manager.managed_image_ids():
            head.manager.submit_finalize_image(image_id)
    for head in heads:
        head.manager.flush_images()
    queue.wait_until_finished()
    seen = set.union(*(head.manager.seen_image_ids for head in heads))
    assert set(dset.images()) - seen == set(unused)
    dset.remove_images(unused)
    dset.dump()

    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate() == {'errors': [], 'warnings': []}
    for image_id in (1, 2, 3, 4):
        img = reopened.index.imgs[image_id]
        assert img['has_predictions'] == {channels: True for channels, _ in HEADS.values()}
        region = shape(img['prediction_region'])
        assert region.is_valid and region.area == SIZE * SIZE
        assert len(img['auxiliary']) == len(HEADS)
        for head in heads:
            head.check(reopened, image_id)
        # All heads of all scales, aligned.
        every = '|'.join(channels for channels, _ in HEADS.values())
        stack = reopened.coco_image(image_id).imdelay(every, space='video').finalize()
        assert stack.shape == (SIZE, SIZE, 2 + 3 + 1 + 4)


# --- resuming ------------------------------------------------------------

def run_first(folder, image_ids=(1,), dump=False, **options):
    """A run that ends (as if killed) after some images; return a fresh dataset."""
    dset = make_dataset(folder)
    manager = make_manager(dset, **options)
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full(image_id / 4))
    for image_id in image_ids:
        manager.finalize_image(image_id)
    if dump:
        manager.dump()
        return kwcoco.CocoDataset(dset.fpath)
    return make_dataset(folder)


def get_fpath(folder, image_id=1, ext='.tif'):
    fpath, = folder.glob(f'_assets/pred/v0f{image_id - 1}_*{ext}')
    return fpath


@pytest.mark.parametrize('dump', [False, True])
@pytest.mark.parametrize('prob_format', ['cog', 'tif', 'png'])
def test_a_resumed_run_does_only_what_is_left(tmp_path, dump, prob_format):
    ext = '.png' if prob_format == 'png' else '.tif'
    dset = run_first(tmp_path, dump=dump, prob_format=prob_format)
    before = os.stat(get_fpath(tmp_path, 1, ext))
    manager = make_manager(dset, resume=True, prob_format=prob_format)
    assert manager.seen_image_ids == {1} and manager.is_done(1) and not manager.is_done(2)
    assert len(list_assets(dset, 1)) == 1 and list_assets(dset, 2) == []
    assert dset.index.imgs[1]['has_predictions'] == {'a|b': True}
    with pytest.raises(ImageClosedError):
        manager.accumulate_image(1, None, full())
    for image_id in (2, 3):
        manager.accumulate_image(image_id, None, full(image_id / 4))
    manager.close()
    manager.dump()
    after = os.stat(get_fpath(tmp_path, 1, ext))
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate() == {'errors': [], 'warnings': []}
    for image_id in (1, 2, 3):
        assert np.abs(read(reopened, image_id) - image_id / 4).max() <= 1 / 254


def test_a_resumed_run_gives_the_same_bytes(tmp_path):
    dset = run_first(tmp_path, image_ids=(1,))
    with make_manager(dset, resume=True) as manager:
        for image_id in (2, 3):
            manager.accumulate_image(image_id, None, full(image_id / 4))
    (tmp_path / 'whole').mkdir()
    run_first(tmp_path / 'whole', image_ids=(1, 2, 3))
    for image_id in (1, 2, 3):
        assert (get_fpath(tmp_path, image_id).read_bytes()
                == get_fpath(tmp_path / 'whole', image_id).read_bytes())


@pytest.mark.parametrize('options', [
    {'expected_minmax': (0, 2)}, {'prob_compress': 'DEFLATE'}, {'quantize': False},
    {'dtype': 'float64'}, {'stitching_space': 'image'}])
def test_other_settings_cannot_resume(tmp_path, options):
    dset = run_first(tmp_path)
    with pytest.raises(ResumeError, match='other settings'):
        make_manager(dset, resume=True, **options)
    assert list_assets(dset, 1) == []
    # Starting afresh forgets the earlier run.
    make_manager(dset, **options)
    assert make_manager(dset, resume=True).seen_image_ids == set()


def test_resuming_where_nothing_was_done(dset):
    assert make_manager(dset, resume=True).seen_image_ids == set()


def truncate(fpath):
    os.truncate(fpath, fpath.stat().st_size - 40)


def flip_a_byte(fpath):
    content = bytearray(fpath.read_bytes())
    content[len(content) // 2] ^= 0xFF
    fpath.write_bytes(content)


@pytest.mark.parametrize('dump', [False, True])
@pytest.mark.parametrize('damage, prob_format', [
    (truncate, 'cog'), (truncate, 'tif'), (truncate, 'png'), (flip_a_byte, 'cog'),
    (flip_a_byte, 'tif'), (flip_a_byte, 'png'), (os.unlink, 'cog')])
def test_a_damaged_asset_is_redone(tmp_path, damage, prob_format, dump):
    dset = run_first(tmp_path, image_ids=(1, 2), dump=dump, prob_format=prob_format)
    damage(get_fpath(tmp_path, 1, '.png' if prob_format == 'png' else '.tif'))
    manager = make_manager(dset, resume=True, prob_format=prob_format)
    assert manager.seen_image_ids == {2}
    manager.accumulate_image(1, None, full(0.25))
    manager.finalize_image(1)
    assert len(list_assets(dset, 1)) == 1
    assert np.abs(read(dset, 1) - 0.25).max() <= 1 / 254


def test_the_journal_of_another_dataset_is_not_believed(tmp_path):
    dset = run_first(tmp_path, image_ids=(1, 2))
    dset.index.imgs[1]['name'] = 'another'
    dset.remove_images([2])
    assert make_manager(dset, resume=True).seen_image_ids == set()


@pytest.mark.parametrize('write_probs', [True, False])
@pytest.mark.parametrize('dump', [False, True])
@pytest.mark.parametrize('thresh, n_polygons', [(0.2, 2), (0.9, 0)])
def test_polygons_are_resumed_too(tmp_path, write_probs, dump, thresh, n_polygons):
    options = {'write_preds': True, 'write_probs': write_probs, 'thresh': thresh}
    dset = run_first(tmp_path, dump=dump, **options)
    manager = make_manager(dset, resume=True, **options)
    assert manager.seen_image_ids == {1}
    assert len(dset.images([1]).annots[0]) == n_polygons
    assert dset.index.imgs[1]['has_predictions'] == {'a|b': True}


@pytest.mark.parametrize('dump', [False, True])
def test_polygons_of_a_damaged_asset_are_not_doubled(tmp_path, dump):
    dset = run_first(tmp_path, dump=dump, write_preds=True, thresh=0.2)
    truncate(get_fpath(tmp_path))
    with make_manager(dset, resume=True, write_preds=True, thresh=0.2) as manager:
        manager.accumulate_image(1, None, full(0.25))
    assert len(dset.images([1]).annots[0]) == 2


def test_resuming_twice_changes_nothing(tmp_path):
    dset = run_first(tmp_path, image_ids=(1, 2))
    make_manager(dset, resume=True)
    before = json.dumps(dset.dataset)
    assert make_manager(dset, resume=True).seen_image_ids == {1, 2}
    assert json.dumps(dset.dataset) == before


# --- memory --------------------------------------------------------------

def test_blocks_beyond_the_budget_wait_in_files(dset, monkeypatch):
    made = watch_files(monkeypatch)
    budget = MemoryBudget(int(1.5 * SIZE * SIZE * 3 * 4))
    manager = make_manager(dset, memory_budget=budget)
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full(image_id / 4))
        assert 0 < budget.used <= budget.nbytes
    assert {kind for kind, _ in made} == {'spill'}
    manager.close()
    for image_id in (1, 2, 3):
        assert np.abs(read(dset, image_id) - image_id / 4).max() <= STEP


def test_a_finished_image_gives_its_memory_back(dset, monkeypatch):
    made = watch_files(monkeypatch)
    budget = MemoryBudget(int(1.5 * SIZE * SIZE * 3 * 4))
    manager = make_manager(dset, memory_budget=budget)
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, full())
        manager.finalize_image(image_id)
        assert budget.used == 0
    assert made == []


def test_managers_share_a_budget(dset):
    budget = MemoryBudget(int(1.5 * SIZE * SIZE * 3 * 4))
    managers = [make_manager(dset, channels, memory_budget=budget) for channels in ('a|b', 'c|d')]
    for image_id in (1, 2, 3):
        for manager in managers:
            manager.accumulate_image(image_id, None, full(image_id / 4))
            assert budget.used <= budget.nbytes
    for manager, channels in zip(managers, ('a|b', 'c|d')):
        manager.close()
        for image_id in (1, 2, 3):
            assert np.abs(read(dset, image_id, channels) - image_id / 4).max() <= STEP
    assert budget.used == 0


@pytest.mark.parametrize('space', ['video', 'image'])
def test_memmap_in_both_spaces_leaves_no_files(dset, tmp_path, monkeypatch, space):
    made = watch_files(monkeypatch)
    manager = make_manager(dset, memmap=tmp_path / 'maps', stitching_space=space, dtype='float64')
    manager.accumulate_image(1, None, full())
    assert made and set(made) == {('canvas', str(tmp_path / 'maps'))}
    assert manager.image_stitchers[1].weights.dtype == np.float64
    assert os.listdir(tmp_path / 'maps') == []
    manager.close()
    assert np.abs(read(dset, 1) - 0.5).max() <= STEP
    assert os.listdir(tmp_path / 'maps') == []


def test_a_torch_canvas_gives_the_same(dset):
    torch = pytest.importorskip('torch')
    data = np.random.RandomState(0).rand(32, 32, 2).astype('f4')
    data[4, 5, 0] = np.nan
    results = []
    for channels, device, wrap in (('a|b', 'numpy', np.asarray), ('c|d', 'cpu', torch.from_numpy)):
        manager = make_manager(dset, channels, device=device)
        for place in ((0, 0), (10, 20)):
            window = Window(*place, place[0] + 32, place[1] + 32)
            manager.accumulate_image(1, window, wrap(data), downweight_edges=True)
        manager.finalize_image(1)
        results.append(read(dset, 1, channels))
    assert np.array_equal(np.isnan(results[0]), np.isnan(results[1]))
    assert np.nanmax(np.abs(results[0] - results[1])) <= STEP


def test_many_threads_stitch_submit_and_dump_at_a_time(tmp_path):
    dset = make_dataset(tmp_path, n_videos=2)
    grid = list(WindowGrid((SIZE, SIZE), 24, 8))
    start = threading.Barrier(6)
    with WriterQueue(workers=2) as queue:
        managers = [make_manager(dset, channels, writer_queue=queue) for channels in ('a|b', 'c|d')]

        def work(image_id):
            start.wait()
            for manager in managers:
                manager.expect_windows(image_id, grid)
                for window in grid:
                    manager.accumulate_image(image_id, window, np.full((24, 24, 2), image_id / 8))
                assert image_id in manager.ready_image_ids()
                manager.submit_finalize_image(image_id)
                manager.dump()
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(1, 7)))
        for manager in managers:
            manager.close()
    managers[0].manifest.dump()
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate() == {'errors': [], 'warnings': []}
    for image_id in range(1, 7):
        assert np.abs(read(reopened, image_id, 'c|d') - image_id / 8).max() <= STEP
        assert len(list_assets(reopened, image_id)) == 2
