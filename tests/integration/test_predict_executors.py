"""predict_dataset on processes and dask: the bytes and the manifest of the serial run."""
import json
import os
import pickle
import time

import numpy as np
import pytest

from cocoseg import ShepherdConfig, ShepherdPredictor, get_executor, mask_dataset, predict_dataset
from cocoseg.engine.executors import SerialExecutor
from cocoseg.errors import ChannelCollisionError, OptionError, TaskError


@pytest.fixture(scope='module', params=['processes:2', 'dask'])
def executor(request):
    if request.param == 'dask':
        pytest.importorskip('distributed')
    return get_executor(request.param)


@pytest.fixture(scope='module')
def src(tmp_path_factory):
    """Return the packaged video, as a manifest."""
    return make_source(tmp_path_factory.mktemp('src'))


def make_source(folder):
    import kwcoco
    from cocoseg import write_cog
    dset = kwcoco.CocoDataset()
    dset.fpath = os.path.join(folder, 'src.kwcoco.json')
    video = dset.add_video(name='place', width=150, height=120)
    for number in range(4):
        rng = np.random.default_rng(number)
        pixels = rng.integers(1, 200, (120 + number, 150, 3)).astype(np.uint8)
        pixels[:40, :70] = 0
        write_cog(os.path.join(folder, f'{number}.tif'), pixels, nodata=0, crs=32618,
                  transform=(500, 10, 0, 800, 0, -10))
        image_id = dset.add_image(
            name=['a', 'A', 'b/c', 'd'][number], width=150, height=120 + number, video_id=video,
            frame_index=number, warp_img_to_vid={'scale': 1}, timestamp=number)
        dset.add_asset(image_id, file_name=f'{number}.tif', channels='r|g|b', width=150,
                       height=120 + number, warp_aux_to_img={'scale': 1})
    dset.dump()
    return dset.fpath


def brightness(image):
    """A predictor that can be imported."""
    return image.mean(axis=2, keepdims=True) / 255


def fail_on_the_third(image):
    if image.shape[0] > 0 and np.nanmax(image) > 0 and fail_on_the_third.when(image):
        raise ZeroDivisionError('no water here')
    return image[..., :1]


def is_large(image):
    """Images are told by their noise."""
    return bool(np.nansum(image) % 7 < 3)


fail_on_the_third.when = is_large


def read_bundle(folder):
    """Return the files by name, and the images of the manifest."""
    files = {}
    for where, _, names in os.walk(folder):
        for name in names:
            if name.endswith('.tif'):
                path = os.path.join(where, name)
                with open(path, 'rb') as file:
                    files[os.path.relpath(path, folder)] = file.read()
    with open(os.path.join(folder, 'out.kwcoco.json')) as file:
        data = json.load(file)
    images = sorted(data['images'], key=lambda img: img['id'])
    annots = sorted((sorted((k, str(v)) for k, v in ann.items() if k != 'id')
                     for ann in data['annotations']))
    return files, images, annots


def run(src, folder, executor, predictor=brightness, **options):
    return predict_dataset(src, folder / 'out.kwcoco.json', predictor, 48, 16, executor=executor,
                           **{'out_channels': 'bright', 'expected_minmax': (0, 1), **options})


def list_temporaries(folder):
    return [name for _, folders, names in os.walk(folder) for name in folders + names
            if name.endswith('.tmp')]


@pytest.mark.parametrize('split', ['images', 'rows'])
@pytest.mark.parametrize('options', [
    {}, {'space': 'image', 'batch_size': 1, 'prefetch': 0},
    {'layers': ['mask', 'disagreement'], 'write_preds': True, 'thresh': 0.3},
    {'mask': 'nodata', 'memory_budget': 20_000}], ids=['plain', 'image', 'layers', 'mask'])
def test_bytes_and_manifest_are_those_of_one_process(executor, src, tmp_path, options, split):
    run(src, tmp_path / 'serial', 'serial', **options)
    run(src, tmp_path / 'other', executor, split=split, **options)
    assert read_bundle(tmp_path / 'serial') == read_bundle(tmp_path / 'other')
    assert list_temporaries(tmp_path / 'other') == []


@pytest.mark.parametrize('split', ['images', 'rows'])
def test_segments_with_clusters_of_all_images(executor, src, tmp_path, split):
    def make():
        return ShepherdPredictor(ShepherdConfig(n_clusters=5, min_segment_size=9), num_threads=1)
    for name, one in (('serial', 'serial'), ('other', executor)):
        predict_dataset(src, tmp_path / name / 'out.kwcoco.json', make(), 64, 16, executor=one,
                        split=split, label_options={
                            'connectivity': 4, 'min_size': 30, 'max_difference': 40.0})
    assert read_bundle(tmp_path / 'serial') == read_bundle(tmp_path / 'other')


class DependsOnItsBatch:
    """A predictor whose result shows which windows it saw together."""

    def __call__(self, image):
        raise AssertionError('predict_batch is there')

    def predict_batch(self, images):
        return np.nan_to_num(images[..., :1]) / 999 + np.nanmean(images) / 999


@pytest.mark.parametrize('batch_size', [3, 100])
def test_batches_are_those_of_one_process(executor, src, tmp_path, batch_size):
    for name, one in (('serial', 'serial'), ('other', executor)):
        run(src, tmp_path / name, one, DependsOnItsBatch(), batch_size=batch_size, split='rows')
    assert read_bundle(tmp_path / 'serial') == read_bundle(tmp_path / 'other')


def test_rows_share_what_is_more_than_the_share_of_a_worker(executor, src, tmp_path):
    seen = []

    def progress(steps, total, desc):
        seen.append(total)
        return steps
    run(src, tmp_path / 'one', executor, image_ids=[3], progress=progress)
    run(src, tmp_path / 'all', executor, progress=progress)
    # Twelve windows of one image by rows; then four images.
    assert seen[0] > 4 and seen[1:] == [4]


def test_a_failure_names_the_windows_and_leaves_nothing(executor, src, tmp_path):
    with pytest.raises(TaskError, match=r"image \d '.*', windows Window.*ZeroDivisionError"):
        run(src, tmp_path / 'cut', executor, fail_on_the_third, split='rows',
            settings={'predictor': 'same'})
    assert list_temporaries(tmp_path / 'cut') == []
    run(src, tmp_path / 'cut', executor, settings={'predictor': 'same'}, resume=True)
    run(src, tmp_path / 'whole', 'serial')
    assert set(read_bundle(tmp_path / 'cut')[0]) == set(read_bundle(tmp_path / 'whole')[0])


def test_predictions_that_are_no_numbers(executor, src, tmp_path):
    def predict(image):
        return np.full(image.shape[:2], None)
    if executor.__class__.__name__ == 'ProcessExecutor':
        pytest.importorskip('cloudpickle')
    with pytest.raises(TaskError, match='returns numbers'):
        run(src, tmp_path / 'a', executor, predict, split='rows')


class NeverTwiceAtATime:
    """A predictor as most are: of one thread."""

    is_busy = False

    def __call__(self, image):
        assert not NeverTwiceAtATime.is_busy
        NeverTwiceAtATime.is_busy = True
        time.sleep(0.02)
        NeverTwiceAtATime.is_busy = False
        return image[..., :1] / 255


@pytest.mark.parametrize('split', ['images', 'rows'])
def test_one_thread_of_a_worker_is_in_the_predictor(src, tmp_path, split):
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(1, threads_per_worker=3, dashboard_address=None) as cluster, \
            distributed.Client(cluster, set_as_default=False) as client:
        run(src, tmp_path / 'other', client, NeverTwiceAtATime(), split=split)
    run(src, tmp_path / 'serial', 'serial', NeverTwiceAtATime())
    assert read_bundle(tmp_path / 'serial') == read_bundle(tmp_path / 'other')


def test_a_split_that_is_unknown(src, tmp_path):
    with pytest.raises(OptionError, match="split='columns' is unknown"):
        run(src, tmp_path / 'a', 'serial', split='columns')


def test_a_failure_names_the_image_and_the_rest_is_resumed(executor, src, tmp_path):
    with pytest.raises(TaskError, match=r"image \d '.*' failed.*ZeroDivisionError: no water"):
        run(src, tmp_path / 'cut', executor, fail_on_the_third, settings={'predictor': 'same'})
    assert list_temporaries(tmp_path / 'cut') == []
    run(src, tmp_path / 'cut', executor, brightness, settings={'predictor': 'same'}, resume=True)
    run(src, tmp_path / 'whole', 'serial')
    # Nobody did an image twice into another file.
    assert set(read_bundle(tmp_path / 'cut')[0]) == set(read_bundle(tmp_path / 'whole')[0])


def test_a_worker_that_is_late_changes_no_file(src, tmp_path):
    class Late:
        """Keeps what it was to do, as a worker that nobody can stop."""

        shares_memory, n_workers, calls = False, 1, []

        def run(self, func, tasks, **options):
            tasks = list(tasks)
            self.calls += [(func, pickle.loads(pickle.dumps(task))) for task in tasks]
            yield from SerialExecutor().run(func, tasks, **options)
    late = Late()
    run(src, tmp_path / 'a', late, split='images')
    before = read_bundle(tmp_path / 'a')
    for func, task in late.calls:
        func.loop.runner.predictor = lambda image: image[..., :1] * 0
        func(task)
    assert read_bundle(tmp_path / 'a')[1:] == before[1:]
    assert {name: data for name, data in read_bundle(tmp_path / 'a')[0].items()
            if name in before[0]} == before[0]
    # They are found out by their names.
    assert len(list_temporaries(tmp_path / 'a')) == 4


def test_what_is_done_is_not_done_again(executor, src, tmp_path):
    run(src, tmp_path / 'a', executor, image_ids=[1, 2])
    before = {name: os.stat(tmp_path / 'a' / name).st_mtime_ns
              for name in read_bundle(tmp_path / 'a')[0]}
    run(src, tmp_path / 'a', executor, resume=True)
    run(src, tmp_path / 'whole', 'serial')
    assert read_bundle(tmp_path / 'a') == read_bundle(tmp_path / 'whole')
    assert all(os.stat(tmp_path / 'a' / name).st_mtime_ns == when for name, when in before.items())


def test_collisions_are_found_before_anything_is_written(executor, src, tmp_path):
    run(src, tmp_path / 'a', 'serial')
    with pytest.raises(ChannelCollisionError):
        predict_dataset(tmp_path / 'a' / 'out.kwcoco.json', tmp_path / 'b' / 'out.kwcoco.json',
                        brightness, 48, 16, out_channels='bright', executor=executor)
    assert not [name for _, _, names in os.walk(tmp_path / 'b') for name in names
                if name.endswith('.tif')]


def test_masks_of_datasets(executor, src, tmp_path):
    for name, one in (('serial', 'serial'), ('other', executor)):
        mask_dataset(src, tmp_path / name / 'out.kwcoco.json', valid_region=True, executor=one)
    assert read_bundle(tmp_path / 'serial') == read_bundle(tmp_path / 'other')


def test_threads_are_not_for_predictors(src, tmp_path):
    with pytest.raises(OptionError, match='prefetch'):
        run(src, tmp_path / 'a', 'threads:2')
