"""
What the reference did wrong when it registered assets: items 1, 2, 7, 8, 35, 36, 38.

The numbers are those of the list of known defects of the reference, the
stitching manager that ours replaces.
"""
import copy
import json
import os
import threading
from pathlib import Path

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, ChannelCollisionError,
                            ImageClosedError, ManifestError)


def write_band(folder, name, value):
    """Write a constant 64 x 64 band and return its kwcoco entry."""
    folder.mkdir(parents=True, exist_ok=True)
    kwimage.imwrite(str(folder / f'{name}.png'), np.full((64, 64), value, np.uint8))
    return {'file_name': f'{name}.png', 'channels': name, 'width': 64, 'height': 64,
            'warp_aux_to_img': {'type': 'affine', 'scale': 1}}


def has_files(folder, pattern='**/*'):
    """Return the names of visible files below a folder."""
    return sorted(path.name for path in Path(folder).glob(pattern)
                  if path.is_file() and not path.name.startswith('.'))


class HoldingQueue:
    """A queue that runs its jobs when it is told to."""

    def __init__(self):
        self.jobs = []

    def submit(self, func, *args, **kwargs):
        """Keep the job."""
        self.jobs.append((func, args, kwargs))

    def wait_until_finished(self, desc=None):
        """Run the jobs."""
        while self.jobs:
            func, args, kwargs = self.jobs.pop(0)
            func(*args, **kwargs)


# ---- 1 ---------------------------------------------------------------------

def make_rgb_dataset(make_dataset, keys):
    """Return a dataset whose image has the lists ``keys``; 'rgb' is three bands."""
    dset = make_dataset()
    bands = [write_band(Path(dset.bundle_dpath), name, 10 * (index + 1))
             for index, name in enumerate('rgb')]
    del dset.imgs[1]['auxiliary']
    dset.imgs[1].update({key: copy.deepcopy(bands) if value == 'rgb' else value
                         for key, value in keys.items()})
    return dset


@pytest.mark.parametrize('keys, expected', [
    ({'assets': 'rgb'}, 'assets'),
    ({'auxiliary': 'rgb'}, 'auxiliary'),
    ({'auxiliary': 'rgb', 'assets': None}, 'auxiliary'),
    ({'auxiliary': 'rgb', 'assets': []}, 'auxiliary'),
])
def test_01_assets_stay_visible(make_dataset, make_manager, read, noise, keys, expected):
    """An entry in the wrong list hid every band; all bands must be read as before."""
    dset = make_rgb_dataset(make_dataset, keys)
    before, primary = read(dset, 1, 'r|g|b'), dset.coco_image(1).primary_asset()
    assert before[0, 0].tolist() == [10, 20, 30]
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert [asset['channels'] for asset in dset.imgs[1][expected]] == ['r', 'g', 'b', 'x']
    assert np.array_equal(read(dset, 1, 'r|g|b'), before)
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)
    assert dset.coco_image(1).primary_asset() == primary


@pytest.mark.parametrize('keys', [
    {'assets': 'rgb', 'auxiliary': []}, {'assets': 'rgb', 'auxiliary': None},
    {'assets': [], 'auxiliary': []}, {'assets': [], 'auxiliary': None}, {}], ids=str)
def test_01_prediction_is_visible(make_dataset, make_manager, read, noise, keys):
    """kwcoco reads only `auxiliary` once that key is there; what we add must be read."""
    dset = make_rgb_dataset(make_dataset, keys)
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_01_image_file_stays_visible(make_dataset, make_manager, read, noise):
    """The same for an image that is a file itself, without any list of assets."""
    dset = make_dataset()
    band = write_band(Path(dset.bundle_dpath), 'pan', 40)
    del dset.imgs[1]['auxiliary']
    dset.imgs[1].update(file_name=band['file_name'], channels='pan')
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert (read(dset, 1, 'pan') == 40).all()
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


# ---- 2 ---------------------------------------------------------------------

@pytest.mark.parametrize('keys', [{'auxiliary': None}, {'auxiliary': None, 'assets': None}])
def test_02_null_auxiliary(make_dataset, make_manager, read, noise, keys):
    """A null list was an AttributeError half-way; it must count as an empty list."""
    dset = make_dataset(**keys)
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert len(dset.imgs[1]['auxiliary']) == 1
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_02_registration_is_whole_or_not_at_all(make_dataset, make_manager, noise, monkeypatch):
    """A registration stopped half-way; a failing one must change nothing at all."""
    dset = make_dataset(auxiliary=None)
    manager = make_manager(dset, write_preds=True)
    data = np.zeros((64, 64, 1), np.float32)
    data[:10, :10] = data[30:40, 30:40] = 1
    manager.accumulate_image(1, None, data)
    before = copy.deepcopy(dset.dataset)
    add_annotation, calls = dset.add_annotation, []

    def fail_on_second(*args, **kwargs):
        calls.append(kwargs)
        if len(calls) == 2:
            raise ValueError('no more annotations')
        return add_annotation(*args, **kwargs)
    monkeypatch.setattr(dset, 'add_annotation', fail_on_second)
    with pytest.raises(AssetWriteError, match='no more annotations'):
        manager.finalize_image(1)
    assert dset.dataset['annotations'] == before['annotations']
    assert dset.dataset['images'] == before['images']
    assert manager.finalize_image(1)['n_anns'] == 2
    assert len(dset.anns) == 2 and len(dset.imgs[1]['auxiliary']) == 1


def test_02_odd_old_attributes_do_not_stop_half_way(make_dataset, make_manager, read, noise):
    """Attributes of the reference, an unclosed region among them, must be merged."""
    region = {'type': 'MultiPolygon', 'coordinates': [[[[0, 0], [0, 31], [31, 31], [31, 0]]]]}
    dset = make_dataset(prediction_region=region, has_predictions={'old': True})
    manager = make_manager(dset)
    manager.accumulate_image(1, (slice(0, 64), slice(32, 64)), noise(0, (64, 32, 1)))
    manager.finalize_image(1)
    assert dset.imgs[1]['has_predictions'] == {'old': True, 'x': True}
    merged = kwimage.MultiPolygon.coerce(dset.imgs[1]['prediction_region']).to_shapely()
    assert merged.is_valid and merged.area == 31 * 31 + 64 * 32


# ---- 7 ---------------------------------------------------------------------

LEFT, RIGHT = (slice(0, 64), slice(0, 32)), (slice(0, 64), slice(32, 64))


def test_07_interleaved_images_declared(make_dataset, make_manager, read, noise):
    """Order A, B, A, B overwrote A with its second half; both must be whole."""
    dset = make_dataset(2)
    manager = make_manager(dset)
    for image_id in (1, 2):
        manager.expect_windows(image_id, [LEFT, RIGHT])
    for place in (LEFT, RIGHT):
        for image_id in (1, 2):
            manager.accumulate_image(image_id, place, noise(image_id)[place])
            for ready in manager.ready_image_ids():
                manager.submit_finalize_image(ready)
    manager.close()
    for image_id in (1, 2):
        assert len(dset.imgs[image_id]['auxiliary']) == 1
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)
    assert dset.validate(missing=True, verbose=0)['errors'] == []


def test_07_late_windows_raise(make_dataset, make_manager, read, noise):
    """With the guessing of the reference, late data must raise and change no file."""
    dset = make_dataset(2)
    manager = make_manager(dset, readiness='contiguous')
    manager.accumulate_image(1, LEFT, noise(1)[LEFT])
    manager.accumulate_image(2, LEFT, noise(2)[LEFT])
    assert manager.ready_image_ids() == [1]
    manager.submit_finalize_image(1)
    manager.flush_images()
    before = copy.deepcopy(dset.imgs[1])
    with pytest.raises(ImageClosedError, match='image 1 is done'):
        manager.accumulate_image(1, RIGHT, noise(1)[RIGHT])
    manager.accumulate_image(2, RIGHT, noise(2)[RIGHT])
    manager.close()
    assert dset.imgs[1] == before and len(before['auxiliary']) == 1
    found = read(dset, 1)
    assert np.allclose(found[LEFT], noise(1)[LEFT], atol=1e-4)
    assert np.isnan(found[RIGHT]).all()
    assert np.allclose(read(dset, 2), noise(2), atol=1e-4)


def test_07_early_guess_is_taken_back(make_dataset, make_manager, read, noise):
    """An image that was guessed ready, but not submitted, must still take its data."""
    dset = make_dataset(2)
    manager = make_manager(dset, readiness='contiguous')
    for place in (LEFT, RIGHT):
        for image_id in (1, 2):
            manager.accumulate_image(image_id, place, noise(image_id)[place])
    manager.close()
    for image_id in (1, 2):
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


# ---- 8 ---------------------------------------------------------------------

def test_08_submit_detaches_and_is_idempotent(make_dataset, make_manager, read, noise):
    """Submitted images stayed managed and took data; submit must detach at once."""
    dset, queue = make_dataset(2), HoldingQueue()
    manager = make_manager(dset, writer_queue=queue)
    for image_id in (1, 2):
        manager.accumulate_image(image_id, None, noise(image_id), is_ready=True)
    for _ in range(3):
        manager.submit_finalize_image(1)
    assert len(queue.jobs) == 1
    assert manager.managed_image_ids() == [2] and manager.ready_image_ids() == [2]
    assert manager.seen_image_ids == set()
    with pytest.raises(ImageClosedError, match='image 1 is finalizing'):
        manager.accumulate_image(1, None, noise(7))
    with pytest.raises(AlreadyFinalizedError):
        manager.finalize_image(1)
    manager.flush_images()
    manager.submit_finalize_image(1)
    assert queue.jobs == [] and manager.seen_image_ids == {1}
    assert np.allclose(read(dset, 1), noise(1), atol=1e-4)


def test_08_many_threads_submit_once(make_dataset, make_manager):
    """A double submit was a KeyError later; whoever comes, one job must be made."""
    queue, errors = HoldingQueue(), []
    manager = make_manager(make_dataset(), writer_queue=queue)
    manager.accumulate_image(1, None, np.zeros((64, 64)))
    barrier = threading.Barrier(8)

    def submit():
        barrier.wait()
        try:
            manager.submit_finalize_image(1)
        except Exception as ex:
            errors.append(ex)
    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and len(queue.jobs) == 1


# ---- 35 --------------------------------------------------------------------

@pytest.mark.parametrize('chan_code, present', [
    ('b', 'r|g|b'), ('a|b', 'r|g|b'), ('hidden.0:4', 'hidden.2'), ('hidden.3', 'hidden.0:4')])
def test_35_channel_collision_is_refused(make_dataset, make_manager, chan_code, present):
    """A second asset with the same channel was added; the first window must raise."""
    asset = {'file_name': 'old.tif', 'channels': present, 'width': 64, 'height': 64}
    dset = make_dataset(auxiliary=[asset])
    before = copy.deepcopy(dset.dataset)
    manager = make_manager(dset, chan_code)
    with pytest.raises(ChannelCollisionError, match='image 1 .*old.tif'):
        manager.accumulate_image(1, None, np.zeros((64, 64)))
    with pytest.raises(ChannelCollisionError):
        manager.expect_windows(1, [LEFT, RIGHT])
    manager.close()
    assert dset.dataset == before and has_files(dset.bundle_dpath) == []


@pytest.mark.parametrize('list_key', ['auxiliary', 'assets'])
def test_35_rerun_replaces_when_asked(make_dataset, make_manager, read, noise, list_key):
    """A re-run appended duplicates; it must raise, or replace on request."""
    dset = make_dataset()
    del dset.imgs[1]['auxiliary']
    dset.imgs[1][list_key] = []
    for seed, options in enumerate([{}, {'on_collision': 'replace'}, {'on_collision': 'replace',
                                                                      'short_code': 'other'}]):
        manager = make_manager(dset, **options)
        manager.accumulate_image(1, None, noise(seed))
        manager.close()
        assert len(dset.imgs[1][list_key]) == 1, options
        assert np.allclose(read(dset, 1), noise(seed), atol=1e-4)
        with pytest.raises(ChannelCollisionError):
            make_manager(dset).accumulate_image(1, None, noise(seed))
    assert dset.validate(missing=True, verbose=0)['errors'] == []


def test_35_replace_keeps_other_channels(make_dataset, make_manager):
    """Replacing must not take channels away that nobody asked to replace."""
    asset = {'file_name': 'old.tif', 'channels': 'x|y', 'width': 64, 'height': 64}
    dset = make_dataset(auxiliary=[asset])
    manager = make_manager(dset, on_collision='replace')
    with pytest.raises(ChannelCollisionError, match='whole asset'):
        manager.accumulate_image(1, None, np.zeros((64, 64)))
    assert dset.imgs[1]['auxiliary'] == [asset]


def test_35_two_managers_want_one_channel(make_dataset, make_manager, read, noise):
    """The second manager must hear of it at its first window, the first be untouched."""
    dset = make_dataset(2)
    first, second = make_manager(dset), make_manager(dset, 'x|y', short_code='other')
    first.accumulate_image(1, None, noise())
    with pytest.raises(ChannelCollisionError, match='another manager'):
        second.accumulate_image(1, None, np.zeros((64, 64, 2)))
    second.accumulate_image(2, None, np.zeros((64, 64, 2)))
    first.close()
    second.close()
    assert [[asset['channels'] for asset in dset.imgs[image_id]['auxiliary']]
            for image_id in (1, 2)] == [['x'], ['x|y']]
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


# ---- 36 --------------------------------------------------------------------

def test_36_sql_view_is_refused(make_dataset, make_manager):
    """A result in an SQL view was lost; a real one must be refused with the remedy."""
    pytest.importorskip('sqlalchemy')
    dset = make_dataset()
    os.makedirs(dset.bundle_dpath)
    dset.dump(dset.fpath)
    view = dset.view_sql(memory=True)
    with pytest.raises(ManifestError, match='JSON-backed'):
        make_manager(view)
    assert not os.path.exists(Path(dset.bundle_dpath) / '_assets')


def test_36_sql_look_alike_is_refused(make_dataset, make_manager):
    """What is called and behaves like an SQL view must be refused as well."""
    class CocoSqlDatabase:
        def __init__(self, dset):
            self.fpath, self.index = dset.fpath, dset.index
            self.bundle_dpath = dset.bundle_dpath
            self.dataset = dset.dataset
    view = CocoSqlDatabase(make_dataset())
    with pytest.raises(ManifestError, match='CocoSqlDatabase .*kwcoco.CocoDataset'):
        make_manager(view)
    assert not os.path.exists(view.bundle_dpath)


# ---- 38 --------------------------------------------------------------------

def test_38_hashid_is_forgotten(make_dataset, make_manager, noise):
    """The dataset kept the hash of its old content; a registration must clear it."""
    dset = make_dataset()
    old = dset._build_hashid()
    assert dset.hashid == old
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    assert dset.hashid == old
    manager.finalize_image(1)
    assert dset.hashid != old
    assert dset._build_hashid() != old


def test_38_saved_manifest_is_complete(make_dataset, make_manager, read, noise):
    """What dump saves must read like the dataset in memory, entry by entry."""
    dset = make_dataset(3, n_videos=1)
    with make_manager(dset) as manager:
        for image_id in (1, 2, 3):
            manager.accumulate_image(image_id, None, noise(image_id))
            manager.submit_finalize_image(image_id)
        manager.dump()
    again = kwcoco.CocoDataset(dset.fpath)
    assert again.dataset['images'] == json.loads(json.dumps(dset.dataset['images']))
    assert all(np.allclose(read(again, image_id), noise(image_id), atol=1e-4)
               for image_id in (1, 2, 3))
