"""Segmentation of one image in memory, from pixels to result."""
import dataclasses
import logging

import numpy as np
import pytest
from sklearn.cluster import KMeans

from cocoseg import ShepherdConfig, shepherd_segment
from cocoseg.engine.timings import Timings
from cocoseg.errors import (
    BandCountError, LabelOverflowError, NodataError, OptionError, WindowShapeError)
from cocoseg.shepherd.assign import find_valid
from cocoseg.shepherd.segment import segment_pixels

from ..shepherd_model import make_noisy_image, model_segment

CONFIG = ShepherdConfig(n_clusters=4, min_segment_size=5, init='diagonal')
COMPAT = CONFIG.patch(compat='pyshepseg', sample_percent=100)


def make_image(seed=0, shape=(24, 31, 2), dtype='uint8'):
    return make_noisy_image(np.random.default_rng(seed), shape, 6, dtype)


def make_kmeans(image, n_clusters=4):
    samples = image.reshape(-1, image.shape[-1])
    return KMeans(n_clusters, n_init=1, random_state=0).fit(samples.astype(np.float64))


# -- the pieces together

@pytest.mark.parametrize('config', [CONFIG, COMPAT], ids=['default', 'compat'])
@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'float32', 'float64'])
def test_segments_are_those_of_the_model(config, dtype):
    for seed, four_connected in [(0, True), (1, False)]:
        config = config.patch(four_connected=four_connected)
        image, valid = make_image(seed, dtype=dtype)
        # Far from the middle between any two values.
        centres = np.array([[1.2, 2.7], [5.3, 1.4], [3.1, 4.9], [5.9, 5.8]])
        limit = np.float32(2.5)
        expected = model_segment(image, valid, centres, limit, config)
        for num_threads in (1, 2):
            found = segment_pixels(image, valid, centres, limit, config, num_threads=num_threads)
            assert np.array_equal(found.labels, expected[0])
            assert found[1:] == expected[1:]
            assert min(found[1:]) > 0


@pytest.mark.parametrize('config', [CONFIG, COMPAT], ids=['default', 'compat'])
def test_whole_run_is_that_of_its_pieces(config):
    image, valid = make_image()
    kmeans = make_kmeans(image[valid])
    result = shepherd_segment(image, config.patch(max_spectral_diff=2.0), nodata=0, kmeans=kmeans)
    found = segment_pixels(image, valid, kmeans.cluster_centers_, 2.0, config,
                           predict=kmeans.predict)
    assert np.array_equal(result.labels, found.labels)
    assert result.labels.dtype == np.uint32 and result.labels.flags.c_contiguous
    assert (result.n_segments, result.n_singles_eliminated, result.n_small_eliminated) == found[1:]
    assert result.kmeans is kmeans and result.max_spectral_diff == 2.0


def test_clusters_are_fitted_to_valid_pixels_only():
    image, valid = make_image()
    image = image.astype(np.float64)
    image[~valid] = 1e9
    result = shepherd_segment(image, CONFIG, nodata=1e9)
    assert result.kmeans.cluster_centers_.max() < 10
    assert result.kmeans.cluster_centers_.shape == (4, 2)
    assert np.array_equal(result.labels == 0, ~valid)


def test_reused_clusters_give_the_same_segments():
    image, _ = make_image()
    first = shepherd_segment(image, CONFIG, nodata=0)
    again = shepherd_segment(image, CONFIG.patch(seed=5), nodata=0, kmeans=first.kmeans)
    assert np.array_equal(first.labels, again.labels)
    assert 'spectralclusters' not in again.timings.durations


def test_segmentation_is_the_same_again():
    image, _ = make_image()
    config = CONFIG.patch(init='k-means++')
    first, second = (shepherd_segment(image, config, nodata=0, num_threads=n) for n in (1, 3))
    assert np.array_equal(first.labels, second.labels)


def test_default_options_segment_an_image():
    y, x = np.mgrid[:90, :80]
    image = np.stack([y // 30 * 40 + 20, x // 40 * 90 + y % 30, x + y], axis=-1).astype(np.uint8)
    result = shepherd_segment(image)
    assert 1 < result.n_segments < 200
    assert np.bincount(result.labels.ravel())[0] == 0


@pytest.mark.parametrize('layout', ['bands first', 'big endian', 'read only', 'half'])
def test_any_kind_of_array_gives_the_same_segments(layout):
    image, _ = make_image(dtype='float32')
    kept = image.copy()
    expected = shepherd_segment(image, CONFIG, nodata=0)
    other = image
    if layout == 'bands first':
        other = np.moveaxis(np.ascontiguousarray(np.moveaxis(image, -1, 0)), 0, -1)
    elif layout == 'big endian':
        other = image.astype('>f4')
    elif layout == 'half':
        other = image.astype(np.float16)
    else:
        image.flags.writeable = False
    result = shepherd_segment(other, CONFIG, nodata=0)
    assert np.array_equal(result.labels, expected.labels)
    assert np.array_equal(image, kept)


def test_one_band_may_come_without_its_axis():
    image, _ = make_image(shape=(20, 22, 1))
    with_axis = shepherd_segment(image, CONFIG, nodata=0)
    without = shepherd_segment(image[:, :, 0], CONFIG, nodata=0)
    assert np.array_equal(with_axis.labels, without.labels)


# -- null

@pytest.mark.parametrize('config', [CONFIG, COMPAT], ids=['default', 'compat'])
def test_null_by_value_by_mask_and_by_nan_are_the_same(config):
    image, valid = make_image(dtype='float64')
    by_value = shepherd_segment(image, config, nodata=0)
    by_mask = shepherd_segment(image, config, mask=valid)
    assert np.array_equal(by_value.labels, by_mask.labels)
    if config is CONFIG:
        # In compat a null pixel attracts by its value, and NaN has none.
        image[~valid, 1] = np.nan
        by_nan = shepherd_segment(image, config)
        assert np.array_equal(by_value.labels, by_nan.labels)


@pytest.mark.parametrize('limit, expected', [('auto', None), (None, None), (3, 3.0)])
def test_image_without_a_valid_pixel_has_no_segments(limit, expected):
    lines = []
    result = shepherd_segment(np.zeros((5, 6, 2)), CONFIG.patch(max_spectral_diff=limit), nodata=0,
                              progress=lines.append)
    assert not result.labels.any() and result.labels.shape == (5, 6)
    assert result.labels.dtype == np.uint32
    assert (result.n_segments, result.n_singles_eliminated, result.n_small_eliminated) == (0, 0, 0)
    assert result.kmeans is None and result.max_spectral_diff == expected
    assert 'walltime' in result.timings.durations and 'no pixel is valid' in lines[0]


def test_image_without_a_valid_pixel_keeps_the_given_clusters():
    kmeans = make_kmeans(make_image()[0])
    result = shepherd_segment(np.zeros((5, 6, 2)), CONFIG, nodata=0, kmeans=kmeans)
    assert result.kmeans is kmeans and result.max_spectral_diff > 0


@pytest.mark.parametrize('config', [CONFIG, COMPAT], ids=['default', 'compat'])
@pytest.mark.parametrize('shape', [(1, 1), (9, 7)])
def test_pieces_make_nothing_of_null(config, shape):
    found = segment_pixels(np.zeros((*shape, 2)), np.zeros(shape, bool), np.eye(2), 1.0, config)
    assert not found.labels.any() and found[1:] == (0, 0, 0)


# -- options

def test_kmeans_is_asked_between_two_centres_only_in_compat():
    image, centres, asked = np.full((2, 3, 1), 5.0), np.array([[1.0], [9.0]]), []

    def predict(samples):
        asked.append(len(samples))
        return np.zeros(len(samples))
    for config in (CONFIG, COMPAT):
        segment_pixels(image, None, centres, 1.0, config, predict=predict)
    assert asked == [6]


def test_minimum_of_one_pixel_merges_nothing_by_default():
    image, valid = make_image()
    config = CONFIG.patch(min_segment_size=1)
    result = shepherd_segment(image, config, nodata=0)
    assert result.n_singles_eliminated == result.n_small_eliminated == 0
    assert 1 in np.bincount(result.labels.ravel())
    compat = shepherd_segment(image, COMPAT.patch(min_segment_size=1), nodata=0)
    assert compat.n_singles_eliminated > 0


def test_limit_that_was_used_is_reported_as_a_number():
    image, _ = make_image()
    kmeans = make_kmeans(image)
    centres = kmeans.cluster_centers_
    distances = [np.linalg.norm(a - b) for i, a in enumerate(centres) for b in centres[:i]]
    for limit, expected in [('auto', np.median(distances)), (None, 10 * max(distances)), (7, 7)]:
        result = shepherd_segment(image, CONFIG.patch(max_spectral_diff=limit), kmeans=kmeans)
        assert type(result.max_spectral_diff) is float
        assert result.max_spectral_diff == pytest.approx(expected, rel=1e-6)


def test_steps_are_timed_and_told(caplog):
    image, _ = make_image()
    lines = []
    with caplog.at_level(logging.INFO, 'cocoseg.shepherd'):
        result = shepherd_segment(image, CONFIG, nodata=0, progress=lines.append)
    names = ['spectralclusters', 'assign', 'clump', 'singles', 'small', 'walltime']
    assert list(result.timings.durations) == names
    assert lines == caplog.messages
    words = ['clusters fitted', 'clumps', 'single pixels merged', 'small segments merged']
    assert [word in line for word, line in zip(words, lines, strict=True)] == [True] * 4
    assert f'{result.n_segments} segments left' in lines[-1]


def test_timings_of_pieces_can_be_collected():
    image, valid = make_image()
    timings = Timings()
    for _ in range(2):
        segment_pixels(image, valid, np.eye(2), 1.0, CONFIG, timings=timings)
    assert {name: len(times) for name, times in timings.durations.items()} == {
        'assign': 2, 'clump': 2, 'singles': 2, 'small': 2}


def test_result_is_frozen():
    result = shepherd_segment(np.zeros((2, 2)), CONFIG, nodata=0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.n_segments = 3


# -- errors

IMAGE = make_image()[0]


@pytest.mark.parametrize('image, options, error, match', [
    (IMAGE > 2, {}, OptionError, 'bool'),
    (IMAGE * 1j, {}, OptionError, 'complex'),
    (IMAGE.astype(object), {}, OptionError, 'object'),
    (np.ma.masked_equal(IMAGE, 0), {}, OptionError, 'masked array'),
    (IMAGE[None], {}, WindowShapeError, 'shape'),
    (IMAGE[:0], {}, WindowShapeError, 'shape'),
    (IMAGE, {'nodata': 'zero'}, NodataError, 'zero'),
    (IMAGE, {'mask': np.ones((3, 4), bool)}, WindowShapeError, 'mask'),
    (IMAGE, {'mask': IMAGE[..., 0]}, OptionError, 'mask'),
    (IMAGE, {'num_threads': 0}, OptionError, 'num_threads'),
    (IMAGE, {'num_threads': '2'}, OptionError, 'num_threads'),
    (IMAGE, {'kmeans': KMeans(3)}, OptionError, 'give a fitted KMeans'),
    (IMAGE, {'kmeans': make_kmeans(IMAGE[..., :1])}, OptionError, '2 bands'),
    (IMAGE[..., :1] // 6, {}, OptionError, 'cluster'),
    (np.broadcast_to(np.uint8(1), (1 << 16, 1 << 15, 1)), {}, LabelOverflowError, 'tiles')])
def test_wrong_input_raises_before_anything_is_done(image, options, error, match):
    with pytest.raises(error, match=match):
        shepherd_segment(image, CONFIG, **options)


def test_bands_of_centres_and_image_must_be_the_same():
    with pytest.raises(BandCountError):
        segment_pixels(IMAGE, find_valid(IMAGE), np.eye(3), 1.0, CONFIG)
