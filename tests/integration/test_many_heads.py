"""
Several heads of one model: managers that share a dataset, a budget and a writer.

A head of full resolution and one at half of it are fed from one loop, with
images interleaved. A pixel of the coarse truth covers 2 x 2 of the fine one, so
that both can be compared where video space puts them.
"""
import os
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import (CocoStitchingManager, MemoryBudget, SoftStitcher, Window, WindowGrid,
                     WriterQueue)
from cocoseg.protocols import MemorySink

from ..builders import watch_files

COARSE_SHAPE = (61, 75)
FINE_SHAPE = (122, 150)
GRID = WindowGrid(COARSE_SHAPE, window=24, overlap=8)
IMAGES = (1, 2, 3)
STEP = 1 / 32767
BANDS = 2


def double(window):
    return Window(2 * window.y0, 2 * window.x0, 2 * window.y1, 2 * window.x1)


PAIRS = [(double(window), window) for window in GRID]
#: Shuffled, and the first window of the plan is not the first to come.
ORDER = [PAIRS[number] for number in np.random.RandomState(1).permutation(len(PAIRS))]
assert ORDER[0] != PAIRS[0]


def make_truth(image_id):
    """Return (fine, coarse) float32 (h, w, 2): the coarse one, each pixel as 2 x 2, and it."""
    coarse = np.random.RandomState(image_id).rand(*COARSE_SHAPE, BANDS).astype('f4')
    return coarse.repeat(2, axis=0).repeat(2, axis=1), coarse


TRUTH = {image_id: make_truth(image_id) for image_id in IMAGES}


def make_dataset(folder):
    """Return a dataset of a video whose frames lie in it moved and scaled."""
    height, width = FINE_SHAPE
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    video_id = dset.add_video(name='vid', width=width, height=height)
    for index in range(len(IMAGES)):
        dset.add_image(name=f'frame{index}', width=width // 2, height=height // 2,
                       video_id=video_id, frame_index=index, auxiliary=[],
                       warp_img_to_vid={'scale': 2.0, 'type': 'affine'})
    return dset


def make_heads(dset, **options):
    options = {'stitching_space': 'video', 'expected_minmax': (0, 1), 'prob_blocksize': 64,
               **options}
    return [CocoStitchingManager(dset, short_code, chan_code, **options)
            for short_code, chan_code in (('fine', 'fa|fb'), ('coarse', 'ca|cb'))]


def get_options(head):
    """Return where an asset of a head lies: (of the fine one, of the coarse one)."""
    width, height = COARSE_SHAPE[::-1]
    return ({}, {'asset_dsize': (width, height), 'scale_asset_from_stitchspace': 0.5})[head]


def predict(image_id, head, window):
    """Return the truth of a window, and slightly else in each."""
    offset = (3 * window.y0 + window.x0) % 7 * 1e-3
    return np.clip(TRUTH[image_id][head][window.slices] + np.float32(offset), 0, 1)


def feed(heads, pairs=PAIRS, declare=True, convert=np.asarray, check=None):
    """Give each window of each image to both heads, the images interleaved."""
    for head, manager in enumerate(heads):
        for image_id in IMAGES if declare else ():
            manager.expect_windows(image_id, [pair[head] for pair in PAIRS], **get_options(head))
    for pair in pairs:
        for image_id in IMAGES:
            for head, manager in enumerate(heads):
                data = predict(image_id, head, pair[head])
                manager.accumulate_image(image_id, pair[head], convert(data),
                                         **get_options(head))
                if check is not None:
                    check()


def finish(heads):
    for image_id in IMAGES:
        for manager in heads:
            manager.submit_finalize_image(image_id)
    for manager in heads:
        manager.close()


def stitch(folder, *, pairs=PAIRS, declare=True, convert=np.asarray, check=None, **options):
    """Return the dataset after both heads are done."""
    dset = make_dataset(folder)
    with WriterQueue(workers=2) as queue:
        heads = make_heads(dset, writer_queue=queue, **options)
        feed(heads, pairs, declare, convert, check)
        finish(heads)
    return dset


def read_assets(dset):
    """Return {(image, channels): pixels as stored}."""
    from osgeo import gdal
    return {(image_id, info['channels']): gdal.Open(
        os.path.join(dset.bundle_dpath, info['file_name'])).ReadAsArray()
        for image_id in IMAGES for info in dset.imgs[image_id]['auxiliary']}


def read_bytes(dset):
    return {path.name: path.read_bytes()
            for path in sorted(Path(dset.bundle_dpath, '_assets').rglob('*.tif'))}


def read_video(dset, image_id, channels):
    """Return channels in video space, without mixing pixels."""
    return dset.coco_image(image_id).imdelay(
        channels, space='video', interpolation='nearest').finalize()


# ---- one budget --------------------------------------------------------------------

#: The blocks of one window, 4 x 64 x 64 x 2 floats, fit; all sums are 549 000 bytes or more.
SMALL = 150_000


def watch_budget(budget):
    """Return a function that keeps the most bytes that were used, and that."""
    used = []
    return (lambda: used.append(budget.used)), used


@pytest.mark.parametrize('declare', [True, False])
@pytest.mark.parametrize('pairs', [PAIRS, ORDER], ids=['in order', 'shuffled'])
def test_a_small_budget_changes_no_result(tmp_path, monkeypatch, pairs, declare):
    free = stitch(tmp_path / 'free', pairs=pairs, declare=declare)
    made = watch_files(monkeypatch)
    budget = MemoryBudget(SMALL, spill_dir=tmp_path)
    check, used = watch_budget(budget)
    bound = stitch(tmp_path / 'bound', pairs=pairs, declare=declare, memory_budget=budget,
                   check=check)
    # Each of the six images has a spill file of its own, all in the given folder.
    spills = [folder for kind, folder in made if kind == 'spill']
    assert len(spills) == 2 * len(IMAGES) and set(spills) == {str(tmp_path)}
    assert 0 < max(used) <= SMALL
    assert budget.used == 0
    expected, found = read_assets(free), read_assets(bound)
    assert len(found) == len(IMAGES) * 2 and found.keys() == expected.keys()
    for key, codes in found.items():
        assert codes.dtype == np.int16
        assert np.abs(codes.astype(int) - expected[key]).max() <= 1
    if pairs is ORDER or not declare:
        assert read_bytes(bound) == read_bytes(free)


def test_both_heads_are_aligned_in_video_space(tmp_path):
    budget = MemoryBudget(SMALL, spill_dir=tmp_path)
    dset = stitch(tmp_path / 'bound', memory_budget=budget)
    for image_id in IMAGES:
        both = read_video(dset, image_id, 'fa|fb|ca|cb')
        fine, _ = TRUTH[image_id]
        assert both.shape == (*FINE_SHAPE, 2 * BANDS) and np.isfinite(both).all()
        # What windows add to the truth is at most 6e-3.
        for head in (both[..., :BANDS], both[..., BANDS:]):
            assert np.abs(head - fine).max() <= 6e-3 + STEP
        moved = np.abs(both[:, 2:, BANDS:] - fine[:, :-2]).mean()
        assert moved > 0.2, 'the truth does not tell a shift of a pixel'
        infos = {info['channels']: info for info in dset.imgs[image_id]['auxiliary']}
        assert (infos['fa|fb']['height'], infos['fa|fb']['width']) == FINE_SHAPE
        assert (infos['ca|cb']['height'], infos['ca|cb']['width']) == COARSE_SHAPE


def test_the_budget_is_free_after_an_error(tmp_path):
    budget = MemoryBudget(SMALL, spill_dir=tmp_path)
    heads = make_heads(make_dataset(tmp_path / 'out'), memory_budget=budget)
    with pytest.raises(KeyError), heads[0], heads[1]:
        feed(heads, PAIRS[:3])
        assert budget.used > 0
        raise KeyError
    assert budget.used == 0


def test_heads_have_the_bound_together_not_each(tmp_path):
    """One head fills the budget; what the other one needs is taken from it."""
    budget = MemoryBudget(SMALL, spill_dir=tmp_path)
    heads = make_heads(make_dataset(tmp_path / 'out'), memory_budget=budget)
    for number, manager in enumerate(heads):
        width, height = (FINE_SHAPE, COARSE_SHAPE)[number][::-1]
        window = Window(0, 0, height, width) if number else Window(0, 0, 48, 150)
        data = np.full((*window.shape, BANDS), 0.5, 'f4')
        manager.accumulate_image(1, window, data, **get_options(number))
    held = [manager.image_stitchers[1].nbytes for manager in heads]
    assert budget.used == sum(held) <= SMALL
    assert held[1] > 0
    for manager in heads:
        manager.close()
    assert budget.used == 0


def test_one_queue_outlives_the_heads(tmp_path):
    with WriterQueue(workers=1) as queue:
        for name in ('first', 'second'):
            heads = make_heads(make_dataset(tmp_path / name), writer_queue=queue)
            feed(heads)
            finish(heads)
            assert queue.n_pending == 0
            assert all(manager.seen_image_ids == set(IMAGES) for manager in heads)
    assert read_bytes_of(tmp_path / 'first') == read_bytes_of(tmp_path / 'second')


def read_bytes_of(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.rglob('*.tif'))}


# ---- tensors -------------------------------------------------------------------------

class Tensors:
    """Make permuted views of (C, h, w) tensors, as networks return them; keep copies."""

    def __init__(self, torch):
        self._torch, self.made = torch, []

    def make_planes(self, data):
        planes = self._torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1)))
        self.made.append((planes, planes.clone()))
        return planes

    def __call__(self, data):
        view = self.make_planes(data).permute(1, 2, 0)
        assert not view.is_contiguous() and view.shape == data.shape
        return view

    def check_unchanged(self):
        assert self.made
        assert all(self._torch.equal(planes, copy) for planes, copy in self.made)


@pytest.mark.parametrize('pairs', [PAIRS, ORDER], ids=['in order', 'shuffled'])
def test_permuted_tensors_are_the_same_as_arrays(tmp_path, pairs):
    tensors = Tensors(pytest.importorskip('torch'))
    expected = stitch(tmp_path / 'arrays', pairs=pairs)
    found = stitch(tmp_path / 'tensors', pairs=pairs, convert=tensors)
    assert len(tensors.made) == 2 * len(IMAGES) * len(PAIRS)
    tensors.check_unchanged()
    assert read_bytes(found) == read_bytes(expected)


def test_tensors_with_nan_and_of_half_floats(tmp_path):
    torch = pytest.importorskip('torch')

    def with_nan(data):
        data = data.astype('f2')
        data[3:5, 2] = np.nan
        return data

    tensors = Tensors(torch)
    expected = stitch(tmp_path / 'arrays', convert=with_nan)
    found = stitch(tmp_path / 'tensors', convert=lambda data: tensors(with_nan(data)))
    assert all(torch.equal(planes.isnan(), copy.isnan()) and planes.isnan().any()
               and torch.equal(planes.nan_to_num(), copy.nan_to_num())
               for planes, copy in tensors.made)
    assert read_bytes(found) == read_bytes(expected)


@pytest.mark.parametrize('options', [
    {}, {'engine': 'general'}, {'num_threads': 2}, {'memory_budget': SMALL},
    {'nan_policy': 'band'}], ids=str)
def test_planes_are_the_same_as_permuted_views(tmp_path, options):
    """A stitcher takes (C, h, w) as they are, one by one and as a batch (N, C, h, w)."""
    torch = pytest.importorskip('torch')
    tensors, results = Tensors(torch), []
    windows = [pair[0] for pair in PAIRS]
    if 'memory_budget' in options:
        options = {**options, 'spill_dir': tmp_path}

    def make(channels_first):
        sink = MemorySink()
        results.append(sink)
        return SoftStitcher((*FINE_SHAPE, BANDS), windows, sink=sink, blocksize=32,
                            expected_minmax=(0, 1), channels_first=channels_first, **options)

    arrays, views, planes, batches = (make(flag) for flag in (False, False, True, True))
    for window in windows:
        data = predict(1, 0, window)
        arrays.add(window, data)
        views.add(window, tensors(data))
        planes.add(window, tensors.make_planes(data))
    for first in range(0, len(windows), 5):
        part = windows[first:first + 5]
        batch = torch.stack([tensors.make_planes(predict(1, 0, window)) for window in part])
        batches.add_batch(part, batch)
    for stitcher in (arrays, views, planes, batches):
        stitcher.finalize()
    tensors.check_unchanged()
    expected, *others = [sink.as_array() for sink in results]
    assert np.abs(expected / 32767 - TRUTH[1][0]).max() <= 6e-3 + STEP
    for found in others:
        assert np.array_equal(found, expected)
