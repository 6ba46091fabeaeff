"""
Segmentation of the images of a dataset, window by window, with one set of clusters.

Judged against the segmentation of a whole image in memory, and by what must
hold for segments whatever the windows are.
"""
import itertools
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import kwcoco
import numpy as np
import pytest
from scipy import ndimage

from cocoseg import (CocoStitchingManager, ShepherdConfig, ShepherdPredictor, Window, WindowGrid,
                     predict_dataset, segment_raster, shepherd_segment, write_cog)
from cocoseg.cli.main import main
from cocoseg.coco import predict as predict_module
from cocoseg.coco.sampling import draw_dataset_samples, fit_predictor
from cocoseg.coco.segment import segment_dataset
from cocoseg.errors import BandCountError, NodataError, OptionError, ResumeError
from cocoseg.io.raster import read_raster
from cocoseg.protocols import FittedPredictor, Predictor
from cocoseg.shepherd.clusters import FIT_SAMPLES

SHAPES = {1: (140, 120), 2: (90, 130), 3: (64, 64)}
CONFIG = ShepherdConfig(n_clusters=6, min_segment_size=12)
OPTIONS = {'window': 64, 'overlap': 24, 'channels': 'r|g'}


def make_image(seed, shape, n_bands=2, empty=18):
    """Return uint8 (H, W, B) of blobs and noise, 0 where nodata: at a side, and in spots."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(*shape, n_bands)), (6, 6, 0)) * 25
    image = np.clip(np.digitize(smooth, [-1, 0, 1]) * 55 + 40 + rng.normal(0, 5, smooth.shape),
                    1, 255).astype(np.uint8)
    image[:, :empty] = 0
    # One band is enough to have no data.
    image[30:34, 40:45, 0] = 0
    return image


def make_dataset(folder, shapes=None, **options):
    folder.mkdir(parents=True, exist_ok=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'in.kwcoco.json')
    for image_id, shape in (shapes or SHAPES).items():
        write_cog(folder / f'in{image_id}.tif', make_image(image_id, shape, **options), nodata=0,
                  channels=['r', 'g'])
        dset.add_image(id=image_id, name=f'im{image_id}', width=shape[1], height=shape[0], assets=[
            {'file_name': f'in{image_id}.tif', 'channels': 'r|g', 'width': shape[1],
             'height': shape[0], 'num_bands': 2, 'warp_aux_to_img': {'type': 'affine'}}])
    return dset


@pytest.fixture(scope='module')
def src(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp('src'))


@pytest.fixture(scope='module')
def kmeans(src):
    predictor = ShepherdPredictor(CONFIG)
    predictor.fit(np.concatenate([get_pixels(image_id) for image_id in SHAPES]))
    return predictor.kmeans


def get_floats(image_id, shape=None):
    image = make_image(image_id, shape or SHAPES[image_id])
    return np.where(image == 0, np.nan, image).astype(np.float32)


def get_pixels(image_id):
    image = get_floats(image_id)
    return image[np.isfinite(image).all(axis=2)]


def read_labels(dset, image_id):
    """Return the labels as stored."""
    fpath, = list_paths(dset, image_id)
    return read_raster(fpath)[..., 0]


def list_paths(dset, image_id):
    return [os.path.join(dset.bundle_dpath, asset['file_name'])
            for asset in dset.imgs[image_id]['assets'] if asset['channels'] != 'r|g']


def read_bytes(dset):
    return {image_id: Path(list_paths(dset, image_id)[0]).read_bytes() for image_id in SHAPES}


def check_segments(labels, values, config, limit):
    """Check what holds for the segments of an image: ids, places, parts and sizes."""
    valid = np.isfinite(values).all(axis=2)
    assert labels.dtype == np.uint32 and np.array_equal(labels > 0, valid)
    ids, first, sizes = np.unique(labels[valid], return_index=True, return_counts=True)
    assert np.array_equal(ids, np.arange(1, len(ids) + 1)) and (np.diff(first) > 0).all()
    corners = None if config.four_connected else np.ones((3, 3))
    n_parts = sum(ndimage.label(labels == label, corners)[1] for label in ids)
    assert n_parts == len(ids)
    means = np.stack([ndimage.mean(np.where(valid, band, 0).astype('f8'), labels, ids)
                      for band in np.moveaxis(values, 2, 0)], axis=1)
    for label in ids[sizes < config.min_segment_size]:
        around = ndimage.binary_dilation(labels == label, corners) & (labels != label) & valid
        distances = np.linalg.norm(means[np.unique(labels[around]) - 1] - means[label - 1], axis=1)
        assert (distances > limit * (1 - 1e-5)).all(), label
    return sizes


# --- one window ----------------------------------------------------------

def test_a_window_is_segmented_as_an_image_is(kmeans):
    image = get_floats(1)
    image.flags.writeable = False
    expected = shepherd_segment(image, CONFIG, kmeans=kmeans)
    for num_threads in (None, 1, 3):
        predictor = ShepherdPredictor(CONFIG, kmeans, num_threads=num_threads)
        labels = predictor(image)
        assert labels.dtype == np.uint32 and labels.shape == (*image.shape[:2], 1)
        assert np.array_equal(labels[..., 0], expected.labels) and labels.max() > 20
    assert predictor.max_spectral_diff == expected.max_spectral_diff
    # What lies around the image makes no difference.
    padded = np.full((200, 300, 2), np.nan, np.float32)
    padded[20:160, 90:210] = image
    found = predictor(padded)
    assert np.array_equal(found[20:160, 90:210, 0], expected.labels)
    assert np.count_nonzero(found) == np.count_nonzero(expected.labels)


def test_pixels_without_data_are_in_no_segment(kmeans):
    image = get_floats(3)
    image[5, 40], image[8, 41, 1], image[9, 42, 0] = np.nan, np.inf, 77
    predictor = ShepherdPredictor(CONFIG, kmeans, nodata=77)
    image[image[..., 1] == 77, 1] = 78
    labels = predictor(image)[..., 0]
    valid = np.isfinite(image).all(axis=2) & (image[..., 0] != 77)
    assert np.array_equal(labels > 0, valid) and not labels[[5, 8, 9], [40, 41, 42]].any()
    empty = np.full((10, 12, 2), np.nan, np.float32)
    assert not predictor(empty).any() and not ShepherdPredictor(CONFIG)(empty).any()


def test_centres_are_as_good_as_a_fit(kmeans):
    image = get_floats(2)
    by_centres = ShepherdPredictor(CONFIG, kmeans.cluster_centers_)
    assert np.array_equal(by_centres(image), ShepherdPredictor(CONFIG, kmeans)(image))


@pytest.mark.parametrize('arguments, error, match', [
    ({'config': CONFIG.patch(compat='pyshepseg')}, OptionError, 'compat'),
    ({'kmeans': 'clusters'}, OptionError, 'centres'), ({'kmeans': 5}, OptionError, 'centres'),
    ({'kmeans': [[np.nan, 1], [1, 2]]}, OptionError, 'NaN'),
    ({'kmeans': [[1.0, 2.0]]}, OptionError, 'max_spectral_diff'),
    ({'nodata': 'none'}, NodataError, 'nodata'), ({'num_threads': 0}, OptionError, 'num_threads'),
    ({'num_threads': 1.5}, OptionError, 'num_threads')])
def test_what_a_predictor_cannot_be_made_of(arguments, error, match):
    with pytest.raises(error, match=match):
        ShepherdPredictor(**arguments)


def test_windows_that_cannot_be_segmented(kmeans):
    with pytest.raises(OptionError, match='no clusters'):
        ShepherdPredictor(CONFIG)(get_floats(3))
    with pytest.raises(BandCountError, match='3 bands'):
        ShepherdPredictor(CONFIG, kmeans)(np.ones((9, 9, 3), 'f4'))


def test_one_cluster_will_do_with_a_limit():
    predictor = ShepherdPredictor(CONFIG.patch(max_spectral_diff=5), [[1.0, 2.0]])
    assert np.array_equal(np.unique(predictor(np.ones((9, 9, 2), 'f4'))), [1])


# --- what the loop asks for ----------------------------------------------

def test_it_is_a_predictor_that_is_fitted(kmeans):
    predictor = ShepherdPredictor(CONFIG)
    assert isinstance(predictor, FittedPredictor) and isinstance(predictor, Predictor)
    assert not isinstance(len, FittedPredictor)
    assert (predictor.kind, predictor.channels, predictor.is_fitted) == (
        'labels', 'segments', False)
    assert predictor.label_options.max_difference == np.inf
    assert predictor.max_spectral_diff is None
    assert ShepherdPredictor(CONFIG.patch(max_spectral_diff=9)).max_spectral_diff == 9
    fitted = ShepherdPredictor(CONFIG.patch(four_connected=False), kmeans)
    options = fitted.label_options
    assert (options.connectivity, options.min_size) == (8, 12)
    assert options.max_difference == fitted.max_spectral_diff > 0


@pytest.mark.parametrize('config, expected', [
    (CONFIG, FIT_SAMPLES), (CONFIG.patch(n_samples=77), 77), (CONFIG.patch(sample_percent=2), 2000),
    (CONFIG.patch(sample_percent=0.001), 1)])
def test_how_many_samples_it_wants(config, expected):
    assert ShepherdPredictor(config).count_samples(100_000) == expected


def test_the_hash_tells_what_changes_labels(kmeans):
    def make(config=CONFIG, **options):
        return ShepherdPredictor(config, **options).config_hash
    other = kmeans.cluster_centers_ + 1
    hashes = [make(), make(CONFIG.patch(seed=5)), make(CONFIG.patch(min_segment_size=3)),
              make(nodata=3), make(kmeans=kmeans), make(kmeans=other)]
    assert len(set(hashes)) == len(hashes) and all(isinstance(item, str) for item in hashes)
    assert make(kmeans=kmeans) == make(kmeans=kmeans.cluster_centers_, num_threads=2)
    code = ('import sys, pickle; from cocoseg import ShepherdPredictor as P; '
            'print(P(**pickle.loads(bytes.fromhex(sys.argv[1]))).config_hash)')
    arguments = pickle.dumps({'config': CONFIG, 'kmeans': kmeans.cluster_centers_}).hex()
    done = subprocess.run([sys.executable, '-c', code, arguments], capture_output=True, text=True,
                          check=True)
    assert done.stdout.strip() == make(kmeans=kmeans)


def test_it_can_be_pickled(kmeans):
    predictor = ShepherdPredictor(CONFIG, kmeans)
    again = pickle.loads(pickle.dumps(predictor))
    assert again.config_hash == predictor.config_hash
    assert np.array_equal(again(get_floats(3)), predictor(get_floats(3)))


# --- the samples ---------------------------------------------------------

def make_read(images, seen=None):
    """Return a function that reads windows, and notes how much it read of each image."""
    def read(image_id, window):
        if seen is not None:
            seen[image_id] = seen.get(image_id, 0) + window.area
        return images[image_id][window.slices]
    return read


def is_valid(image):
    return np.isfinite(image).all(axis=2)


def test_samples_are_pixels_of_all_images():
    # The value tells image and place; a third of each has no data.
    images = {}
    for image_id, shape in {7: (600, 700), 3: (300, 350), 5: (40, 50)}.items():
        image = np.arange(np.prod(shape), dtype='f4').reshape(*shape, 1)
        image = np.concatenate([np.full_like(image, image_id), image], axis=2)
        image[:, :shape[1] // 3, 1] = np.nan
        images[image_id] = image
    shapes = {image_id: image.shape[:2] for image_id, image in images.items()}
    samples = draw_dataset_samples(make_read(images), shapes, 5000, is_valid, seed=4)
    assert samples.dtype == np.float32 and np.isfinite(samples).all()
    assert len(np.unique(samples, axis=0)) == len(samples)
    counts = {image_id: int((samples[:, 0] == image_id).sum()) for image_id in images}
    n_pixels = sum(height * width for height, width in shapes.values())
    for image_id, (height, width) in shapes.items():
        assert counts[image_id] == -(-5000 * height * width // n_pixels)
    again = draw_dataset_samples(make_read(images), dict(sorted(shapes.items())), 5000, is_valid,
                                 seed=4)
    assert np.array_equal(samples, again)
    other = draw_dataset_samples(make_read(images), shapes, 5000, is_valid, seed=5)
    assert len(other) == len(samples) and not np.array_equal(samples, other)


def test_a_part_of_each_image_is_read():
    images = {image_id: np.zeros((1500, 1600, 1), 'f4') for image_id in range(1, 31)}
    seen = {}
    samples = draw_dataset_samples(make_read(images, seen), dict.fromkeys(images, (1500, 1600)),
                                   30_000, is_valid)
    assert len(samples) == 30_000 and set(seen) == set(images)
    assert all(n_pixels <= 9 * 256 ** 2 for n_pixels in seen.values())


def test_data_is_found_where_most_is_empty():
    image = np.full((1000, 1000, 1), np.nan, 'f4')
    image[900:910, 900:950] = 3
    samples = draw_dataset_samples(make_read({1: image}), {1: image.shape[:2]}, 400, is_valid)
    assert len(samples) == 400 and (samples == 3).all()
    image[900:910, 900:950, 0] = np.arange(500).reshape(10, 50)
    everything = draw_dataset_samples(make_read({1: image}), {1: image.shape[:2]}, 10 ** 4,
                                      is_valid)
    assert sorted(everything[:, 0]) == list(range(500))
    none = draw_dataset_samples(make_read({1: image * np.nan}), {1: image.shape[:2]}, 400, is_valid)
    assert none.shape == (0, 1)


def test_more_samples_than_memory_are_refused():
    images = {1: np.zeros((10, 10, 4), 'f4')}
    with pytest.raises(OptionError, match='do not fit'):
        draw_dataset_samples(make_read(images), {1: (10, 10)}, 1 << 40, is_valid)


def test_only_what_wants_it_is_fitted(kmeans):
    shapes = {3: SHAPES[3]}
    read = make_read({3: get_floats(3)})
    predictor = ShepherdPredictor(CONFIG, nodata=200)
    seen = []
    predictor.fit, real = lambda samples: (seen.append(samples), real(samples)), predictor.fit
    assert fit_predictor(predictor, read, shapes) and predictor.is_fitted
    assert len(seen) == 1 and not (seen[0] == 200).any() and np.isfinite(seen[0]).all()
    assert not fit_predictor(predictor, read, shapes)
    assert not fit_predictor(ShepherdPredictor(CONFIG, kmeans), None, shapes)
    assert not fit_predictor(len, None, shapes)


# --- datasets ------------------------------------------------------------

def test_one_window_gives_the_segments_of_the_image(src, tmp_path, kmeans):
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', ShepherdPredictor(CONFIG, kmeans),
                           window=256, overlap=0, channels='r|g')
    for image_id in SHAPES:
        expected = shepherd_segment(get_floats(image_id), CONFIG, kmeans=kmeans)
        assert np.array_equal(read_labels(dset, image_id), expected.labels)


@pytest.mark.parametrize('config', [
    CONFIG, CONFIG.patch(four_connected=False), CONFIG.patch(max_spectral_diff=20.0),
    CONFIG.patch(min_segment_size=1)], ids=['default', 'eight', 'limit', 'single'])
def test_segments_of_windows(src, tmp_path, config):
    predictor = ShepherdPredictor(config)
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', predictor, **OPTIONS)
    assert predictor.is_fitted and len(predictor.kmeans.cluster_centers_) == 6
    for image_id in SHAPES:
        labels, values = read_labels(dset, image_id), get_floats(image_id)
        sizes = check_segments(labels, values, config, predictor.max_spectral_diff)
        expected = shepherd_segment(values, config, kmeans=predictor.kmeans)
        assert abs(len(sizes) - expected.n_segments) <= max(0.15 * expected.n_segments, 3)
        asset = dset.imgs[image_id]['assets'][-1]
        assert asset['nodata'] == 0 and 'quantization' not in asset
    found = dset.coco_image(1).imdelay('segments', interpolation='nearest').finalize()
    assert np.array_equal(np.squeeze(found), read_labels(dset, 1))


def test_the_raster_itself_gives_the_same_segments(src, tmp_path, kmeans):
    """Its pixels are whole numbers, which float32 holds exactly."""
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', ShepherdPredictor(CONFIG, kmeans),
                           **OPTIONS)
    for image_id in SHAPES:
        segment_raster(os.path.join(src.bundle_dpath, f'in{image_id}.tif'), tmp_path / 'seg.tif',
                       CONFIG, tile_size=64, overlap=24, kmeans=kmeans)
        assert np.array_equal(read_raster(tmp_path / 'seg.tif')[..., 0],
                              read_labels(dset, image_id))


def test_labels_depend_on_no_way_to_run(src, tmp_path, kmeans):
    class Batched(ShepherdPredictor):
        def predict_batch(self, images):
            return [self(image) for image in images]
    runs = [({'prefetch': 2}, {}), ({'prefetch': 0}, {'num_threads': 1}),
            ({'prefetch': 3, 'batch_size': 4}, {'num_threads': 3}),
            ({'image_ids': [3, 1, 2]}, {})]
    found = []
    for number, (options, arguments) in enumerate(runs):
        predictor = Batched(CONFIG, **arguments)
        dset = predict_dataset(src, tmp_path / str(number) / 'out.kwcoco.json', predictor,
                               **OPTIONS, **options)
        found.append((read_bytes(dset), predictor.config_hash))
    assert all(item == found[0] for item in found)


class StoppedError(Exception):
    pass


def test_a_run_goes_on_with_the_same_clusters(src, tmp_path):
    class Stopping(ShepherdPredictor):
        n_left = 14

        def __call__(self, image):
            self.n_left -= 1
            if self.n_left < 0:
                raise StoppedError
            return super().__call__(image)
    whole = predict_dataset(src, tmp_path / 'whole/out.kwcoco.json', ShepherdPredictor(CONFIG),
                            **OPTIONS)
    dst = tmp_path / 'resumed/out.kwcoco.json'
    with pytest.raises(StoppedError):
        predict_dataset(src, dst, Stopping(CONFIG), prefetch=0, **OPTIONS)
    first, = dst.parent.rglob('*.tif')
    stamp = first.stat().st_mtime_ns
    n_calls = []

    class Counting(ShepherdPredictor):
        def __call__(self, image):
            n_calls.append(1)
            return super().__call__(image)
    resumed = predict_dataset(src, dst, Counting(CONFIG), resume=True, **OPTIONS)
    assert read_bytes(resumed) == read_bytes(whole) and first.stat().st_mtime_ns == stamp
    n_windows = [len(WindowGrid(SHAPES[image_id], 64, 24)) for image_id in (2, 3)]
    assert len(n_calls) == sum(n_windows)
    with pytest.raises(ResumeError, match='predictor'):
        predict_dataset(src, dst, ShepherdPredictor(CONFIG.patch(seed=3)), resume=True, **OPTIONS)
    with pytest.raises(ResumeError, match='label_options'):
        predict_dataset(src, dst, ShepherdPredictor(CONFIG.patch(min_segment_size=5)), resume=True,
                        **OPTIONS)


def test_clusters_are_fitted_once_and_may_be_used_again(src, tmp_path, monkeypatch):
    calls, real = [], ShepherdPredictor.fit

    def fit(self, samples):
        calls.append(samples)
        return real(self, samples)
    monkeypatch.setattr(ShepherdPredictor, 'fit', fit)
    predictor = ShepherdPredictor(CONFIG.patch(n_samples=2000))
    predict_dataset(src, tmp_path / 'a/out.kwcoco.json', predictor, **OPTIONS)
    samples, = calls
    assert 2000 <= len(samples) <= 2003 and np.isfinite(samples).all()
    pixels = {tuple(pixel) for image_id in SHAPES for pixel in get_pixels(image_id).tolist()}
    assert {tuple(pixel) for pixel in samples.tolist()} <= pixels
    before = predictor.config_hash
    again = predict_dataset(src, tmp_path / 'b/out.kwcoco.json', predictor, image_ids=[2],
                            **OPTIONS)
    given = predict_dataset(src, tmp_path / 'c/out.kwcoco.json', ShepherdPredictor(
        CONFIG.patch(n_samples=2000), predictor.kmeans), image_ids=[2], **OPTIONS)
    assert len(calls) == 1 and predictor.config_hash == before
    assert np.array_equal(read_labels(again, 2), read_labels(given, 2))


def test_images_without_data(tmp_path, caplog):
    src = make_dataset(tmp_path / 'src', {1: (50, 40)}, empty=40)
    predictor = ShepherdPredictor(CONFIG)
    with caplog.at_level(logging.WARNING, 'cocoseg'):
        dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', predictor, **OPTIONS)
    assert not read_labels(dset, 1).any() and not predictor.is_fitted
    assert any('no pixel has data' in record.getMessage() for record in caplog.records)
    # Beside one with data.
    both = make_dataset(tmp_path / 'both', {1: (50, 40), 2: (50, 90)}, empty=40)
    dset = predict_dataset(both, tmp_path / 'both.kwcoco.json', ShepherdPredictor(CONFIG),
                           **OPTIONS)
    assert not read_labels(dset, 1).any()
    assert np.array_equal(read_labels(dset, 2)[:, 40:] > 0, np.isfinite(
        np.where(make_image(2, (50, 90), empty=40) == 0, np.nan, 1)).all(axis=2)[:, 40:])


def test_too_few_colors_are_told(tmp_path):
    folder = tmp_path / 'src'
    src = make_dataset(folder, {1: (50, 40)})
    write_cog(folder / 'in1.tif', np.full((50, 40, 2), 7, np.uint8), nodata=0)
    with pytest.raises(OptionError, match='1 different colors'):
        predict_dataset(src, tmp_path / 'out.kwcoco.json', ShepherdPredictor(CONFIG), **OPTIONS)
    assert not (tmp_path / '_assets').exists()


def test_segment_dataset_is_the_short_way(src, tmp_path):
    options = {'window': 64, 'overlap': 24, 'channels': 'r|g'}
    dset = segment_dataset(src, tmp_path / 'a/out.kwcoco.json', CONFIG, **options)
    longer = predict_dataset(src, tmp_path / 'b/out.kwcoco.json', ShepherdPredictor(CONFIG),
                             **OPTIONS)
    assert read_bytes(dset) == read_bytes(longer)
    # By default all channels, and windows that are larger than the images.
    dset = segment_dataset(src, tmp_path / 'c/out.kwcoco.json', CONFIG, polygons=True,
                           out_channels='parts', short_code='seg', image_ids=[3], num_threads=1)
    labels = read_labels(dset, 3)
    assert dset.imgs[3]['assets'][-1]['channels'] == 'parts'
    assert '/seg/' in dset.imgs[3]['assets'][-1]['file_name']
    annots = dset.annots(image_id=3).objs
    assert [annot['segment_id'] for annot in annots] == list(range(1, labels.max() + 1))
    with pytest.raises(OptionError, match='memory_budget'):
        segment_dataset(src, tmp_path / 'd/out.kwcoco.json', CONFIG, memory_budget=1 << 30)


def test_segments_by_the_command_line(src, tmp_path):
    src.dump()
    dst = tmp_path / 'out.kwcoco.json'
    assert main(['predict', src.fpath, '--dst', os.fspath(dst), '--predictor',
                 'cocoseg.coco.shepherd_predictor:ShepherdPredictor', '--channels', 'r|g',
                 '--window', '128', '--overlap', '32']) == 0
    dset = kwcoco.CocoDataset(dst)
    assert read_labels(dset, 1).max() > 5
    assert main(['verify', os.fspath(dst), '--full']) == 0


# --- other predictors of labels ------------------------------------------

def label_dark(image):
    """Return the connected dark regions of a window."""
    return ndimage.label(np.nan_to_num(image[..., 0]) < 100)[0].astype(np.int16)


def test_any_function_can_make_labels(src, tmp_path):
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', label_dark, kind='labels',
                           label_options={'connectivity': 4}, **OPTIONS)
    assert dset.imgs[1]['assets'][-1]['channels'] == 'segments'
    image = get_floats(1)
    labels = read_labels(dset, 1)
    empty = np.isnan(image).all(axis=2)
    assert not labels[empty].any()
    expected, n_regions = ndimage.label((np.nan_to_num(image[..., 0]) < 100) & ~empty)
    assert np.array_equal(labels > 0, expected > 0)
    # Regions that windows saw as a part are whole again: each is one label.
    pairs = np.unique(np.stack([labels[labels > 0], expected[labels > 0]]), axis=1)
    assert len(np.unique(pairs[1])) == n_regions <= pairs.shape[1] <= 1.2 * n_regions


def test_what_a_predictor_of_labels_may_not_do(src, tmp_path, kmeans):
    dst = tmp_path / 'out.kwcoco.json'
    with pytest.raises(OptionError, match='kind'):
        predict_dataset(src, dst, ShepherdPredictor(CONFIG, kmeans), kind='soft', **OPTIONS)
    with pytest.raises(OptionError, match='float64'):
        predict_dataset(src, dst, lambda image: image[..., :1].astype(float), kind='labels',
                        **OPTIONS)
    with pytest.raises(OptionError, match='expected_minmax'):
        predict_dataset(src, dst, ShepherdPredictor(CONFIG, kmeans), expected_minmax=(0, 1),
                        **OPTIONS)
    with pytest.raises(OptionError, match='label_options'):
        predict_dataset(src, dst, lambda image: image, label_options={'min_size': 3}, **OPTIONS)


def test_options_go_before_those_of_the_predictor(src, tmp_path, kmeans):
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', ShepherdPredictor(CONFIG, kmeans),
                           label_options={'match': 'none'}, out_channels='mine', **OPTIONS)
    assert dset.imgs[1]['assets'][-1]['channels'] == 'mine'
    joined = predict_dataset(src, tmp_path / 'b.kwcoco.json', ShepherdPredictor(CONFIG, kmeans),
                             short_code='joined', **OPTIONS)
    assert read_labels(dset, 1).max() > read_labels(joined, 1).max()


@pytest.mark.parametrize('min_size, n_with', [(12, 1), (1, 0)])
def test_pixels_go_along_only_where_they_are_needed(src, tmp_path, kmeans, monkeypatch, min_size,
                                                    n_with):
    seen, real = [], CocoStitchingManager.accumulate_image

    def accumulate(self, gid, place, data, **options):
        values = options.get('values')
        seen.append(values is not None)
        if values is not None:
            inside = Window.coerce(place).clip(SHAPES[gid])
            assert np.array_equal(values[inside.within(Window.coerce(place)).slices],
                                  get_floats(gid)[inside.slices], equal_nan=True)
        return real(self, gid, place, data, **options)
    monkeypatch.setattr(CocoStitchingManager, 'accumulate_image', accumulate)
    predictor = ShepherdPredictor(CONFIG.patch(min_segment_size=min_size), kmeans)
    predict_dataset(src, tmp_path / 'out.kwcoco.json', predictor, **OPTIONS)
    assert seen and set(seen) == {bool(n_with)}


def test_other_things_of_that_name_are_not_labels():
    class Interpolator:
        kind = 'linear'

        def __call__(self, image):
            return image
    for predictor, options in itertools.product([Interpolator(), len], [{}, {'kind': 'soft'}]):
        assert predict_module._find_kind(predictor, options) == 'soft'
