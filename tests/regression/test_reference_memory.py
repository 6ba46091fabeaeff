"""
What the reference did wrong with memory and threads: items 18 to 20, and 26.
"""
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import SoftStitcher, Window, WindowGrid
from cocoseg.errors import (AlreadyFinalizedError, CocosegError, ImageClosedError,
                            NothingAccumulatedError, WindowShapeError)
from cocoseg.stitch.budget import MemoryBudget

from ..builders import watch_files


def run_threads(functions, timeout=30):
    """Run functions at the same time; return their exceptions."""
    barrier, errors = threading.Barrier(len(functions)), []

    def run(function):
        barrier.wait()
        try:
            function()
        except Exception as ex:
            errors.append(ex)
    threads = [threading.Thread(target=run, args=[function]) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
        assert not thread.is_alive(), 'a thread hangs'
    return errors


# ---- 18 --------------------------------------------------------------------

@pytest.mark.parametrize('options', [
    {'memmap': 'folder'}, {'memmap': True}, {'memory_budget': 1},
    {'memmap': 'folder', 'memory_budget': 1}], ids=str)
@pytest.mark.parametrize('end', ['close', 'error', 'nothing'])
def test_18_memmaps_leave_no_files(make_dataset, make_manager, noise, read, tmp_path,
                                   monkeypatch, options, end):
    """Memmap files were never deleted; there must be none at any time."""
    folder, made = tmp_path / 'maps', watch_files(monkeypatch)
    folder.mkdir()
    monkeypatch.setattr(tempfile, 'tempdir', str(folder))
    options = {key: folder if value == 'folder' else value for key, value in options.items()}
    dset = make_dataset(3)
    manager = make_manager(dset, **options)
    try:
        with manager:
            for image_id in (1, 2, 3):
                manager.accumulate_image(image_id, None, noise(image_id))
                assert os.listdir(folder) == []
            kind = 'canvas' if 'memmap' in options else 'spill'
            assert made and set(made) == {(kind, str(folder))}
            manager.finalize_image(2)
            assert os.listdir(folder) == []
            if end == 'error':
                raise ZeroDivisionError
            if end == 'close':
                manager.close()
    except ZeroDivisionError:
        assert manager.seen_image_ids == {2}
    assert os.listdir(folder) == []
    assert np.allclose(read(dset, 2), noise(2), atol=1e-4)


def test_18_memory_budget_is_kept(make_dataset, make_manager, noise, read, monkeypatch):
    """Every open image stayed in RAM; what is beyond the budget must be on disk."""
    made, dset = watch_files(monkeypatch), make_dataset(5)
    budget = MemoryBudget(2 * 64 * 64 * 2 * 4)
    manager = make_manager(dset, memory_budget=budget)
    top, bottom = Window(0, 0, 40, 64), Window(24, 0, 64, 64)
    for window in (top, bottom):
        for image_id in dset.images():
            manager.accumulate_image(image_id, window, noise(image_id)[window.slices])
            assert 0 < budget.used <= budget.nbytes
    assert {kind for kind, _ in made} == {'spill'}
    manager.finalize_image(1)
    manager.close()
    assert budget.used == 0
    for image_id in dset.images():
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


HOLDER = '''
import sys
import kwcoco, numpy as np
from cocoseg import CocoStitchingManager
folder, maps = sys.argv[1:]
dset = kwcoco.CocoDataset({'videos': [], 'annotations': [], 'categories': [], 'images': [
    {'id': n, 'name': f'img{n}', 'file_name': None, 'width': 512, 'height': 512,
     'auxiliary': []} for n in (1, 2)]})
dset.fpath = folder + '/out.kwcoco.json'
manager = CocoStitchingManager(dset, 'pred', 'x', 'image', memmap=maps)
for image_id in (1, 2):
    manager.accumulate_image(image_id, None, np.ones((512, 512)))
print('holding', flush=True)
sys.stdin.read()
'''


def test_18_killed_process_leaves_no_files(tmp_path, repo_root):
    """A killed process left its memmap files; the system must take them back."""
    maps = tmp_path / 'maps'
    process = subprocess.Popen(
        [sys.executable, '-c', HOLDER, str(tmp_path / 'bundle'), str(maps)], cwd=repo_root,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line == 'holding\n', process.communicate()[1][-3000:]
        mapped = Path(f'/proc/{process.pid}/maps')
        if mapped.exists():
            assert str(maps) in mapped.read_text()
        assert os.listdir(maps) == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert os.listdir(maps) == []


# ---- 19 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype, itemsize', [('float32', 4), ('float64', 8)])
def test_19_one_weight_plane(make_dataset, make_manager, dtype, itemsize):
    """Weights were kept per channel; one plane must serve all of them."""
    manager = make_manager(make_dataset(), 'x.0:10', dtype=dtype)
    manager.accumulate_image(1, None, np.ones((64, 64, 10)))
    stitcher = manager.image_stitchers[1]
    assert stitcher.weights.shape == (64, 64)
    assert stitcher.nbytes == 64 * 64 * (10 + 1) * itemsize


# ---- 20 --------------------------------------------------------------------

FINALISER = '''
    import json, resource, sys
    import kwcoco, numpy as np
    from cocoseg import CocoStitchingManager, WindowGrid
    def peak():
        unit = 1 if sys.platform == 'darwin' else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    dset = kwcoco.CocoDataset({'videos': [], 'annotations': [], 'categories': [], 'images': [
        {'id': n, 'name': f'img{n}', 'file_name': None, 'width': size, 'height': size,
         'auxiliary': []} for n, size in [(1, 600), (2, 2048)]]})
    dset.fpath = sys.argv[1] + '/out.kwcoco.json'
    memmap = sys.argv[2] if len(sys.argv) > 2 else None
    manager = CocoStitchingManager(dset, 'pred', 'x.0:5', 'image', expected_minmax=(0, 1),
                                   memmap=memmap)
    data = np.random.RandomState(0).rand(512, 512, 5).astype('f4')
    def fill(image_id, size):
        for window in WindowGrid((size, size), window=512, overlap=0):
            manager.accumulate_image(image_id, window, data)
    fill(1, 600)
    manager.finalize_image(1)
    facts = dict(image=2048 * 2048 * 5 * 4, base=peak())
    fill(2, 2048)
    facts['filled'] = peak()
    manager.finalize_image(2)
    facts['finished'] = peak()
    print(json.dumps(facts))
'''


@pytest.mark.parametrize('memmap', [False, True])
def test_20_finalise_in_strips(run_child, tmp_path, memmap):
    """Finalising took five times the float image; it must stay near the sums themselves."""
    found = run_child(FINALISER, tmp_path, *[tmp_path / 'maps'] * memmap)
    image, canvas = found['image'], found['image'] * 6 / 5
    assert found['filled'] - found['base'] < 1.2 * canvas
    # Codes (half the floats), their overviews (a third of that), and buffers.
    assert found['finished'] - found['filled'] < 1.1 * image
    # The reference: 5.1 times the float image.
    assert found['finished'] - found['base'] < 2.2 * image


# ---- 26 --------------------------------------------------------------------

@pytest.mark.parametrize('options', [{}, {'memmap': True}, {'dtype': 'float64'}], ids=str)
def test_26_no_update_is_lost(make_dataset, make_manager, read, options):
    """Two threads on one image lost updates; every window must count, from the first."""
    dset = make_dataset()
    manager = make_manager(dset, **options)

    def add():
        for index in range(60):
            manager.accumulate_image(1, None, np.full((64, 64), index % 2, np.float32),
                                     downweight_edges=False)
    assert run_threads([add] * 6) == []
    assert (manager.image_stitchers[1].weights == 360).all()
    assert manager.patch_counts[1] == 360
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1), 0.5, atol=1e-4)


def test_26_threads_fill_declared_windows(make_dataset, make_manager, read, noise):
    """From many threads, an image must be ready once, after its last window."""
    dset = make_dataset(4)
    manager, submitted = make_manager(dset), []
    grid = list(WindowGrid((64, 64), window=16, overlap=4))
    for image_id in dset.images():
        manager.expect_windows(image_id, grid)
    todo = [(image_id, window) for image_id in dset.images() for window in grid]
    np.random.RandomState(0).shuffle(todo)

    def work(part):
        for image_id, window in part:
            manager.accumulate_image(image_id, window, noise(image_id)[window.slices])
            for ready in manager.ready_image_ids():
                submitted.append(ready)
                manager.submit_finalize_image(ready)
    assert run_threads([lambda part=todo[k::4]: work(part) for k in range(4)]) == []
    manager.flush_images()
    assert manager.seen_image_ids == {1, 2, 3, 4} == set(submitted)
    for image_id in dset.images():
        assert len(dset.imgs[image_id]['auxiliary']) == 1
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


class LateData:
    """Data that is computed when the manager asks, with other things happening then."""

    def __init__(self, data, happen):
        self.data, self.happen = data, happen

    def __array__(self, dtype=None, copy=None):
        thread = threading.Thread(target=self.happen)
        thread.start()
        thread.join(5)
        return np.array(self.data, dtype)


def test_26_refused_window_takes_no_other_with_it(make_dataset, make_manager, read, noise):
    """A bad first window of one thread must not throw away the good one of another."""
    dset, refused = make_dataset(), []
    manager = make_manager(dset)

    def send_bad():
        with pytest.raises(WindowShapeError):
            manager.accumulate_image(1, None, np.zeros((3, 3)))
        refused.append(True)
    manager.accumulate_image(1, None, LateData(noise(), send_bad))
    assert refused == [True]
    assert manager.managed_image_ids() == [1]
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


@pytest.mark.parametrize('finish', ['finalize_image', 'submit_finalize_image'])
def test_26_window_in_flight_while_finalising(make_dataset, make_manager, read, noise, finish):
    """A window on its way while its image is finalised must be in the file, or raise."""
    dset = make_dataset()
    manager = make_manager(dset)
    top, bottom = (slice(0, 32), slice(0, 64)), (slice(32, 64), slice(0, 64))
    manager.accumulate_image(1, top, noise()[top])

    def end():
        getattr(manager, finish)(1)
        manager.flush_images()
    try:
        manager.accumulate_image(1, bottom, LateData(noise()[bottom], end))
        is_taken = True
    except ImageClosedError:
        is_taken = False
    manager.flush_images()
    assert manager.is_done(1)
    found = read(dset, 1)
    assert np.allclose(found[top], noise()[top], atol=1e-4)
    assert np.isfinite(found[bottom]).all() == is_taken
    assert manager.managed_image_ids() == []


def test_26_region_covers_what_is_in_the_file(make_dataset, make_manager, read, monkeypatch):
    """A window that gets in just before the end must be in the region as well."""
    dset = make_dataset()
    manager = make_manager(dset)
    left, right = (slice(0, 64), slice(0, 32)), (slice(0, 64), slice(32, 64))
    manager.accumulate_image(1, left, np.ones((64, 32)))
    add, threads = SoftStitcher.add, []

    def add_and_end(self, *args, **kwargs):
        added = add(self, *args, **kwargs)
        threads.append(threading.Thread(target=manager.finalize_image, args=[1]))
        threads[0].start()
        # If finalising waits for this window, which would be right, go on.
        threads[0].join(0.5)
        return added
    monkeypatch.setattr(SoftStitcher, 'add', add_and_end)
    manager.accumulate_image(1, right, np.ones((64, 32)))
    threads[0].join(10)
    valid = np.isfinite(read(dset, 1)[..., 0])
    from shapely.geometry import shape
    assert shape(dset.imgs[1]['prediction_region']).area == valid.sum()


def test_26_windows_race_with_finalising(make_dataset, make_manager, read):
    """In a race of windows and submit, taken and written must be the same set."""
    dset = make_dataset(12, dsize=(64, 64))
    manager = make_manager(dset)
    cells = list(WindowGrid((64, 64), window=8, overlap=0))

    def work(image_id, part, taken):
        for window in part:
            try:
                manager.accumulate_image(image_id, window, np.ones((8, 8)))
                taken.append(window)
            except ImageClosedError:
                return

    def end(image_id, start):
        start.wait(10)
        manager.submit_finalize_image(image_id)
    for image_id in dset.images():
        taken, start = [cells[0]], threading.Event()
        manager.accumulate_image(image_id, cells[0], np.ones((8, 8)))
        workers = [lambda part=cells[1 + k::3]: work(image_id, part, taken) for k in range(3)]
        threading.Timer(0.001 * image_id, start.set).start()
        assert run_threads([*workers, lambda: end(image_id, start)]) == []
        manager.flush_images()
        expected = np.zeros((64, 64), bool)
        for window in taken:
            expected[window.slices] = True
        assert np.array_equal(np.isfinite(read(dset, image_id)[..., 0]), expected)


def test_26_finalise_from_many_threads(make_dataset, make_manager, read, noise):
    """However many threads finalise an image, it must be written once."""
    dset = make_dataset()
    manager, infos = make_manager(dset), []
    manager.accumulate_image(1, None, noise())
    errors = run_threads([lambda: infos.append(manager.finalize_image(1))] * 6)
    assert len(infos) == 1 and len(errors) == 5
    assert all(isinstance(error, AlreadyFinalizedError) for error in errors)
    assert len(dset.imgs[1]['auxiliary']) == 1
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_26_close_races_with_everything(make_dataset, make_manager, read, noise):
    """Closing while others add and submit must leave whole assets or none."""
    for _ in range(5):
        dset = make_dataset(8, bundle=f'bundle{_}')
        manager = make_manager(dset)

        def work(image_ids):
            for image_id in image_ids:
                try:
                    manager.accumulate_image(image_id, None, noise(image_id))
                    manager.submit_finalize_image(image_id)
                except (ImageClosedError, NothingAccumulatedError):
                    return
        errors = run_threads([lambda: work([1, 3, 5, 7]), lambda: work([2, 4, 6, 8]),
                              manager.close])
        assert [error for error in errors if not isinstance(error, CocosegError)] == []
        for image_id in dset.images():
            entries = dset.imgs[image_id]['auxiliary']
            assert len(entries) <= 1
            assert not entries or np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_26_dump_while_images_are_finished(make_dataset, make_manager, noise):
    """A manifest saved meanwhile was half registered; each must be whole at any time."""
    dset = make_dataset(24, dsize=(32, 32))
    managers = [make_manager(dset, name, writer_queue=ThreadPoolExecutor(2))
                for name in ('x', 'y')]
    managers[0].manifest.dump()
    stop, n_seen = threading.Event(), []

    def check():
        while not stop.is_set():
            managers[0].manifest.dump()
            saved = kwcoco.CocoDataset(dset.fpath)
            for img in saved.imgs.values():
                channels = [asset['channels'] for asset in img['auxiliary']]
                assert sorted(channels) == sorted(img.get('has_predictions', {}))
            assert saved.missing_images(check_aux=True) == []
            n_seen.append(sum(len(img['auxiliary']) for img in saved.imgs.values()))

    def produce(manager):
        for image_id in dset.images():
            manager.accumulate_image(image_id, None, noise(image_id, (32, 32, 1)))
            manager.submit_finalize_image(image_id)
        manager.flush_images()

    def produce_all():
        try:
            assert run_threads([lambda: produce(managers[0]), lambda: produce(managers[1])]) == []
        finally:
            stop.set()
    assert run_threads([check, produce_all], timeout=60) == []
    assert n_seen == sorted(n_seen)
    managers[0].dump()
    saved = json.loads(Path(dset.fpath).read_text())
    assert [len(img['auxiliary']) for img in saved['images']] == [2] * 24
    assert all(sorted(img['has_predictions']) == ['x', 'y'] for img in saved['images'])


def test_26_stitcher_from_many_threads():
    """The stitcher below the manager must keep its own sums right as well."""
    stitcher = SoftStitcher((32, 32, 2))
    window = Window(0, 0, 32, 32)
    errors = run_threads([lambda: [stitcher.add(window, np.ones((32, 32, 2)))
                                   for _ in range(100)]] * 4)
    assert errors == [] and (stitcher.weights == 400).all()
    assert np.allclose(stitcher.finalize(), 1)
