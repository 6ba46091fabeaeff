"""The predict loop in threads: the same files, the same errors, no thread left."""
import gc
import itertools
import os
import queue
import shutil
import threading
import traceback
import weakref
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import CocoStitchingManager, predict_dataset, write_cog
from cocoseg.cli.main import main
from cocoseg.coco import predict_steps as module
from cocoseg.errors import AssetWriteError, BandCountError, OptionError, WindowShapeError

PATIENCE = 30  # seconds until a hang becomes a failure
DEPTHS = [0, 1, 4]
SHAPE = (40, 52)
N_IMAGES = 3
N_WINDOWS = 12  # per image, for windows of 16 px that share 3


def list_pullers():
    """Return the threads that read or predict."""
    return [thread for thread in threading.enumerate() if thread.name == 'cocoseg-prefetch']


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(scope='module')
def src(tmp_path_factory):
    """A bundle of images with a hole, without a video."""
    folder = tmp_path_factory.mktemp('src')
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'data.kwcoco.json')
    for index in range(N_IMAGES):
        pixels = np.random.RandomState(index).rand(*SHAPE).astype('f4')
        pixels[5:30, 10:14] = np.nan
        write_cog(folder / f'f{index}.tif', pixels, nodata=np.nan)
        dset.add_image(name=f'f{index}', file_name=f'f{index}.tif', channels='red',
                       width=SHAPE[1], height=SHAPE[0])
    dset.dump()
    return dset.fpath


@pytest.fixture
def dst(tmp_path):
    return tmp_path / 'dst' / 'out.kwcoco.json'


class Predictor:
    """Square the input; fail in one call; remember where it was called."""

    def __init__(self, error=None, error_at=None):
        self.threads, self.sizes = set(), []
        self.inside = threading.Lock()
        self._error, self._error_at = error, error_at

    def __call__(self, image):
        return self.predict_batch(image[None])[0]

    def predict_batch(self, images):
        assert self.inside.acquire(blocking=False), 'two calls at a time'
        self.threads.add(threading.current_thread())
        if len(self.sizes) == self._error_at:
            self.fail()
        self.sizes.append(len(images))
        self.inside.release()
        return images ** 2

    def fail(self):
        raise self._error


def run(src, dst, predictor=None, **options):
    options = {'window': 16, 'overlap': 3, 'expected_minmax': (0, 1), 'out_channels': 'p',
               **options}
    return predict_dataset(src, dst, predictor or Predictor(), **options)


def read_bundle(dst):
    """Return the bytes of all files below the folder of a manifest, by name."""
    # Records of runs tell their times.
    return {path.relative_to(dst.parent).as_posix(): path.read_bytes()
            for path in sorted(dst.parent.rglob('*'))
            if path.is_file() and not path.name.endswith('.run.json')}


def list_assets(dst):
    """Return all that is in the asset folder but the journal and the record of the run."""
    return [path.name for path in dst.parent.rglob('_assets/*/*')
            if not path.name.endswith(('.jsonl', '.run.json'))]


# ---- the same result -------------------------------------------------------

@pytest.mark.parametrize('batch_size', [1, 5])
def test_the_files_are_the_same(src, tmp_path, batch_size):
    bundles = []
    for depth in DEPTHS:
        dst = tmp_path / str(depth) / 'out.kwcoco.json'
        predictor = Predictor()
        run(src, dst, predictor, batch_size=batch_size, prefetch=depth)
        assert sum(predictor.sizes) == N_IMAGES * N_WINDOWS
        bundles.append(read_bundle(dst))
    assert len([name for name in bundles[0] if name.endswith('.tif')]) == N_IMAGES
    assert bundles[0] == bundles[1] == bundles[2]


@pytest.mark.parametrize('depth', DEPTHS)
def test_one_thread_calls_the_predictor(src, dst, depth):
    predictor = Predictor()
    run(src, dst, predictor, prefetch=depth)
    assert len(predictor.threads) == 1
    assert (threading.current_thread() in predictor.threads) == (depth == 0)


def test_reading_predicting_and_stitching_are_threads_of_their_own(src, dst, monkeypatch):
    threads = {'read': set(), 'stitch': set()}

    def note(owner, name, key):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            threads[key].add(threading.current_thread())
            return original(*args, **kwargs)
        monkeypatch.setattr(owner, name, wrapped)
    note(module.WindowReader, '__call__', 'read')
    note(CocoStitchingManager, 'expect_windows', 'stitch')
    note(CocoStitchingManager, 'accumulate_image', 'stitch')
    note(CocoStitchingManager, 'submit_finalize_image', 'stitch')
    predictor = Predictor()
    run(src, dst, predictor)
    assert threads['stitch'] == {threading.current_thread()}
    (reader,), (runner,) = threads['read'], predictor.threads
    assert len({reader, runner, threading.current_thread()}) == 3


def test_they_work_at_the_same_time(src, dst, monkeypatch):
    """Reading goes on while the predictor waits for it, and so does stitching."""
    n_read, all_read = itertools.count(1), threading.Event()
    read = module.WindowReader.__call__

    def count(self, image_id, window):
        if next(n_read) == 4:
            all_read.set()
        return read(self, image_id, window)
    monkeypatch.setattr(module.WindowReader, '__call__', count)

    def wait(image):
        assert all_read.wait(PATIENCE)
        return image
    run(src, dst, wait, prefetch=3)


def test_progress_wraps_the_batches(src, dst):
    seen = []

    def progress(steps, total, desc):
        for step in steps:
            seen.append((threading.current_thread(), total, desc))
            yield step
    run(src, dst, progress=progress, batch_size=5, prefetch=2)
    assert seen == [(threading.current_thread(), 3 * N_IMAGES, 'predict')] * 3 * N_IMAGES


def test_the_probe_for_the_number_of_outputs(src, dst):
    dset = run(src, dst, lambda image: np.concatenate([image, image], axis=2), out_channels=None)
    assert dset.index.imgs[1]['auxiliary'][-1]['channels'] == 'pred.0:2'


# ---- what is held meanwhile ----------------------------------------------------

@pytest.mark.parametrize('depth', DEPTHS)
def test_images_are_opened_one_after_the_other(src, dst, monkeypatch, depth):
    n_open = []
    accumulate = CocoStitchingManager.accumulate_image

    def count(manager, *args, **kwargs):
        accumulate(manager, *args, **kwargs)
        n_open.append(sum(manager.image_state(image_id).value in ('unseen', 'accumulating')
                          and bool(manager.pending_windows(image_id)) for image_id in (1, 2, 3)))
    monkeypatch.setattr(CocoStitchingManager, 'accumulate_image', count)
    run(src, dst, prefetch=depth)
    assert len(n_open) == N_IMAGES * N_WINDOWS and max(n_open) == 1


@pytest.mark.parametrize('depth', DEPTHS)
def test_few_windows_are_alive(src, dst, monkeypatch, depth):
    """Those that were read ahead and the one that is predicted; that one dies at once."""
    alive, counts, deaths = set(), [], queue.SimpleQueue()
    read = module.WindowReader.__call__

    def die(number):
        alive.remove(number)
        deaths.put(number)

    def track(self, image_id, window):
        number = len(counts)
        for _ in range({5: 5, 20: 15}.get(number, 0)):
            # While this one is read, all others are done with.
            deaths.get(timeout=PATIENCE)
        data = read(self, image_id, window).copy()
        alive.add(number)
        weakref.finalize(data, die, number)
        counts.append(len(alive))
        return data
    monkeypatch.setattr(module.WindowReader, '__call__', track)
    run(src, dst, lambda image: image + 1, prefetch=depth, expected_minmax=(1, 2))
    assert len(counts) == N_IMAGES * N_WINDOWS
    assert max(counts) <= depth + 1


@pytest.mark.parametrize('depth', [1, 2])
def test_few_predictions_are_alive(src, dst, depth):
    alive, counts = [], []

    def predict(image):
        prediction = np.ones((*image.shape[:2], 1))
        alive.append(weakref.ref(prediction))
        counts.append(sum(ref() is not None for ref in alive))
        return prediction
    run(src, dst, predict, prefetch=depth)
    assert max(counts) <= depth + 2


# ---- errors ----------------------------------------------------------------------

class Odd(BaseException):
    pass


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('error_at', [0, 3, N_WINDOWS, 2 * N_WINDOWS + 5, 3 * N_WINDOWS - 1])
@pytest.mark.parametrize('kind', [ZeroDivisionError, Odd])
def test_an_error_of_the_predictor(src, dst, kind, error_at, depth):
    error = kind('no more')
    with pytest.raises(kind) as caught:
        run(src, dst, Predictor(error, error_at), prefetch=depth)
    assert caught.value is error and list_pullers() == []
    assert traceback.extract_tb(error.__traceback__)[-1].name == 'fail'
    # Whole images are there, and nothing of the others.
    assert sorted(list_assets(dst)) == sorted(
        name for name in list_assets(dst) if name.endswith('.tif'))
    assert len(list_assets(dst)) == error_at // N_WINDOWS
    assert not dst.exists()


@pytest.mark.parametrize('depth', DEPTHS)
def test_what_failed_goes_on(src, tmp_path, depth):
    whole, cut = tmp_path / 'whole' / 'out.json', tmp_path / 'cut' / 'out.json'
    run(src, whole, prefetch=0)
    with pytest.raises(Odd):
        run(src, cut, Predictor(Odd(), N_WINDOWS + 1), prefetch=depth)
    predictor = Predictor()
    run(src, cut, predictor, prefetch=depth, resume=True)
    assert len(predictor.sizes) == 2 * N_WINDOWS
    assert read_bundle(cut) == read_bundle(whole)


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('kind', [OSError, KeyboardInterrupt])
@pytest.mark.parametrize('error_at', [0, 17, N_IMAGES * N_WINDOWS - 1])
def test_an_error_of_reading(src, dst, monkeypatch, error_at, kind, depth):
    numbers, error, predictor = itertools.count(), kind('torn tape'), Predictor()
    read = module.WindowReader.__call__

    def fail(self, image_id, window):
        if next(numbers) == error_at:
            raise error
        return read(self, image_id, window)
    monkeypatch.setattr(module.WindowReader, '__call__', fail)
    with pytest.raises(kind) as caught:
        run(src, dst, predictor, prefetch=depth)
    assert caught.value is error and list_pullers() == []
    assert len(predictor.sizes) == error_at
    assert len(list_assets(dst)) == error_at // N_WINDOWS and not dst.exists()


def test_a_file_that_is_no_image(src, tmp_path):
    shutil.copytree(Path(src).parent, tmp_path / 'src')
    (tmp_path / 'src' / 'f2.tif').write_text('no image')
    kinds = set()
    for depth in DEPTHS:
        dst = tmp_path / str(depth) / 'out.kwcoco.json'
        with pytest.raises(Exception) as caught:
            run(tmp_path / 'src' / 'data.kwcoco.json', dst, prefetch=depth)
        kinds.add(caught.type)
        assert len(list_assets(dst)) == 2 and not dst.exists()
    assert len(kinds) == 1


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_error_of_stitching(src, dst, depth):
    """The predictor gives one more band than there are channels."""
    with pytest.raises(BandCountError):
        run(src, dst, lambda image: np.zeros((*image.shape[:2], 2)), prefetch=depth)
    assert list_pullers() == [] and list_assets(dst) == [] and not dst.exists()


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_error_of_writing(src, dst, monkeypatch, depth):
    from cocoseg.coco import finisher

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device (simulated)')
    monkeypatch.setattr(finisher, 'finish_image', fail)
    with pytest.raises(AssetWriteError):
        run(src, dst, prefetch=depth)
    assert list_pullers() == [] and list_assets(dst) == [] and not dst.exists()


@pytest.mark.parametrize('depth', DEPTHS)
def test_a_batch_of_another_length(src, dst, depth):
    class Forgetful(Predictor):
        def predict_batch(self, images):
            return images[:1] if len(images) == 2 else images
    with pytest.raises(WindowShapeError, match='1 predictions for a batch of 2'):
        run(src, dst, Forgetful(), batch_size=5, prefetch=depth)
    assert list_assets(dst) == [] and not dst.exists()


@pytest.mark.parametrize('depth', DEPTHS)
def test_a_progress_that_fails(src, dst, depth):
    def progress(steps, total, desc):
        yield from itertools.islice(steps, 4)
        raise Odd
    with pytest.raises(Odd):
        run(src, dst, progress=progress, prefetch=depth)
    assert list_pullers() == [] and not dst.exists()


def test_garbage_collection_in_the_threads_does_no_harm(src, dst):
    def predict(image):
        gc.collect(0)
        return image
    gc_threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        run(src, dst, predict, prefetch=1)
    finally:
        gc.set_threshold(*gc_threshold)
    assert len(list_assets(dst)) == N_IMAGES


@pytest.mark.parametrize('depth', [-1, 2.5, None])
def test_a_prefetch_that_makes_no_sense(src, dst, depth):
    with pytest.raises(OptionError, match='prefetch='):
        run(src, dst, prefetch=depth)
    assert not dst.parent.exists()


# ---- the command line ------------------------------------------------------------

def test_the_command_line(src, tmp_path, capsys):
    bundles = []
    for depth in ('0', '3'):
        dst = tmp_path / depth / 'out.kwcoco.json'
        assert main(['predict', src, '--dst', os.fspath(dst), '--predictor', 'numpy:sqrt',
                     '--window', '16', '--prefetch', depth, '--expected_minmax', '0', '1']) == 0
        bundles.append(read_bundle(dst))
    assert bundles[0] == bundles[1] and len(bundles[0]) == N_IMAGES + 2
    capsys.readouterr()
    assert main(['predict', src, '--dst', os.fspath(tmp_path / 'out.json'), '--predictor',
                 'numpy:sqrt', '--prefetch', '-1']) == 1
    assert 'prefetch=-1' in capsys.readouterr().err
