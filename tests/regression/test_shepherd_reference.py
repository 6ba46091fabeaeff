"""
What pyshepseg 2.0.3 does: kept on request, and its mistakes mended by default.

The numbers of the reference were taken from its own code; where it can be
imported, it is run again and compared pixel by pixel.
"""
import tracemalloc
import zlib

import numpy as np
import pytest
from sklearn.cluster import KMeans

from cocoseg import ShepherdConfig, shepherd_segment
from cocoseg.io.raster import read_raster
from cocoseg.shepherd.assign import assign_clusters, find_valid
from cocoseg.shepherd.clumps import find_clumps
from cocoseg.shepherd.eliminate import eliminate_small
from cocoseg.shepherd.segment import segment_pixels

from ..shepherd_model import find_small_with_near_neighbor

COMPAT = ShepherdConfig(n_clusters=12, compat='pyshepseg', init='diagonal')


def make_image(dtype, shape=(90, 110)):
    """Return (H, W, 3) of fields with texture and lone pixels; 0 is null. No random numbers."""
    y, x = np.mgrid[:shape[0], :shape[1]]
    image = np.empty((*shape, 3), np.int64)
    for band in range(3):
        fields = (y // 17 * 5 + x // 23 * 3 + band * 2) % 7 * 25
        texture = (y * y * 3 + x * x * 5 + x * y * (band + 1)) % 13
        image[..., band] = 20 + fields + texture
    image[(y * 31 + x * 17) % 29 == 0] += 40
    image[(y + 2 * x < 40) | ((y - 60) ** 2 + (x - 80) ** 2 < 90)] = 0
    image[(y * 13 + x * 7) % 211 == 0] = 0
    return image.astype(dtype)


def make_kmeans(image, n_clusters=12):
    """Return clusters along the diagonal, without a fit."""
    n_bands = image.shape[-1]
    dtype = np.float32 if image.dtype == np.float32 else np.float64
    kmeans = KMeans(n_clusters, n_init=1, max_iter=1)
    kmeans.fit(np.arange(n_clusters * n_bands, dtype=dtype).reshape(n_clusters, n_bands))
    steps = np.arange(n_clusters, dtype=dtype)[:, None]
    kmeans.cluster_centers_ = np.ascontiguousarray(
        17.3 + steps * (19.1 + np.arange(n_bands) * 1.7)).astype(dtype)
    return kmeans


def summarize(result):
    labels = np.ascontiguousarray(result.labels, '<u4')
    return (result.n_segments, result.n_singles_eliminated, result.n_small_eliminated,
            zlib.crc32(labels.tobytes()))


CASES = [(dtype, four_connected, min_size) for dtype in ('uint8', 'int16', 'float32')
         for four_connected in (True, False) for min_size in (5, 50)]
# (segments, singles merged, small ones merged, CRC-32 of the labels) of pyshepseg.
EXPECTED = {
    (True, 5): (85, 550, 65, 1746424089), (True, 50): (18, 550, 132, 4140241615),
    (False, 5): (17, 404, 48, 1299851135), (False, 50): (7, 404, 58, 3163657527)}


@pytest.mark.parametrize('dtype, four_connected, min_size', CASES)
def test_labels_of_the_reference_on_request(dtype, four_connected, min_size):
    image = make_image(dtype)
    config = COMPAT.patch(four_connected=four_connected, min_segment_size=min_size)
    result = shepherd_segment(image, config, nodata=0, kmeans=make_kmeans(image))
    assert summarize(result) == EXPECTED[four_connected, min_size]


@pytest.mark.parametrize('dtype, four_connected, min_size', CASES)
def test_reference_itself_gives_the_same_labels(dtype, four_connected, min_size):
    shepseg = pytest.importorskip('pyshepseg.shepseg')
    image = make_image(dtype)
    kmeans = make_kmeans(image)
    expected = shepseg.doShepherdSegmentation(
        np.ascontiguousarray(np.moveaxis(image, -1, 0)), kmeansObj=kmeans, imgNullVal=0,
        minSegmentSize=min_size, fourConnected=four_connected, fixedKMeansInit=True)
    config = COMPAT.patch(four_connected=four_connected, min_segment_size=min_size)
    result = shepherd_segment(image, config, nodata=0, kmeans=kmeans)
    assert np.array_equal(result.labels, expected.segimg)
    assert result.max_spectral_diff == expected.maxSpectralDiff


@pytest.fixture
def naip(repo_root):
    """A real image of four bands, uint8, with null 0."""
    fpath = repo_root.parent / 'shared/data/naip_nd/m_4709963_se_14_1_20180716.tif'
    if not fpath.exists():
        pytest.skip('the sample images are not here')
    return read_raster(fpath)


def test_labels_of_the_reference_on_a_real_image(naip):
    # By the reference as above, with clusters of make_kmeans.
    result = shepherd_segment(naip, COMPAT, nodata=0, kmeans=make_kmeans(naip))
    assert summarize(result) == (1122, 14649, 11434, 1837939834)


@pytest.mark.parametrize('four_connected, expected', [
    (True, [10001, 10001, 10001, 9997]), (False, [10001, 10002, 494, 10001, 9502])])
def test_large_uniform_regions_are_split_only_on_request(four_connected, expected):
    clusters = np.ones((200, 200), np.uint16)
    labels, _ = find_clumps(clusters, four_connected, max_size=10000)
    assert np.bincount(labels.ravel())[1:].tolist() == expected
    image, kmeans = np.full((200, 200, 1), 60, np.uint8), make_kmeans(np.full((1, 1, 1), 60.0))
    config = COMPAT.patch(four_connected=four_connected, max_spectral_diff=0)
    assert shepherd_segment(image, config, kmeans=kmeans).n_segments == len(expected)
    assert shepherd_segment(image, config.patch(compat=None), kmeans=kmeans).n_segments == 1


# -- row 1: null is a segment like others

LONE_VALID = (np.array([[0, 0, 0], [0, 4, 0], [0, 0, 0]], np.uint8), (1, 1))
LONE_NULL = (np.array([[4, 4, 4], [4, 0, 9], [9, 9, 9]], np.uint8), (1, 1))


@pytest.mark.parametrize('image, place', [LONE_VALID, LONE_NULL], ids=['valid', 'null'])
def test_null_and_valid_never_change_places(image, place):
    centres, valid = np.array([[4.0], [9.0]]), find_valid(image, 0)
    config = ShepherdConfig(min_segment_size=2)
    labels = segment_pixels(image, valid, centres, 1.0, config).labels
    assert np.array_equal(labels > 0, valid)
    compat = segment_pixels(image, valid, centres, 1.0, config.patch(compat='pyshepseg')).labels
    assert np.array_equal(np.argwhere((compat > 0) != valid), [place])


# -- row 15: a large minimum took time for every size and every segment

def test_large_minimum_needs_no_round_for_every_size(monkeypatch):
    from cocoseg.shepherd import eliminate_kernels
    calls = []
    take = eliminate_kernels._kernel_take_size

    def count(*args):
        calls.append(take(*args))
        return calls[-1]
    monkeypatch.setattr(eliminate_kernels, '_kernel_take_size', count)
    labels = np.repeat(np.arange(1, 41, dtype=np.uint32), np.arange(1, 41))[None]
    image = (labels * 6).astype(np.uint8)
    result = eliminate_small(image, labels, 10 ** 9, 5.0, compat=True)
    assert result.n_eliminated == 0 and len(calls) == 41


# -- row 16: 32 to 50 bytes per pixel to find the nearest centres

def test_nearest_centres_are_found_without_a_copy_of_the_image():
    image = make_image('uint8', (400, 500))
    centres = make_kmeans(image).cluster_centers_
    assign_clusters(image[:9, :9], centres, nodata=0)
    tracemalloc.start()
    try:
        assign_clusters(image, centres, nodata=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # Two for the numbers, one for what is valid.
    assert 3 <= peak / (400 * 500) < 3.5


# -- row 21: an image of null raised an obscure error

@pytest.mark.parametrize('config', [COMPAT, COMPAT.patch(compat=None)], ids=['compat', 'default'])
def test_image_of_null_has_no_segments(config):
    result = shepherd_segment(np.zeros((4, 5, 3), np.uint8), config, nodata=0)
    assert result.n_segments == 0 and not result.labels.any()


# -- row 22: NaN was neither data nor nodata

@pytest.mark.parametrize('config', [COMPAT, COMPAT.patch(compat=None)], ids=['compat', 'default'])
@pytest.mark.parametrize('nodata', [None, np.nan, -1])
def test_pixels_with_nan_are_null(config, nodata):
    image = make_image('float32')
    is_null = (image == 0).any(axis=-1)
    image[is_null, 1] = np.nan
    result = shepherd_segment(image, config.patch(sample_percent=20), nodata=nodata)
    assert not result.labels[is_null].any()
    assert result.labels[~is_null].all()
    assert np.isfinite(result.kmeans.cluster_centers_).all()


# -- issue 59: small segments remained though they had near neighbors

def test_no_small_segment_has_a_near_neighbor():
    image = make_image('int16')
    kmeans = make_kmeans(image)
    n_near = []
    for config in (COMPAT, COMPAT.patch(compat=None)):
        result = shepherd_segment(image, config.patch(max_spectral_diff=8.0), nodata=0,
                                  kmeans=kmeans)
        n_near.append(len(find_small_with_near_neighbor(image, result.labels, 50, 8.0, True)))
    assert n_near[0] > 0 and n_near[1] == 0


# -- float32: scikit-learn decides by rounding where two centres are equally near

def test_pixels_between_two_centres_are_decided_as_by_scikit_learn():
    rng = np.random.default_rng(0)
    image = (rng.random((60, 70, 3)) * 5000).astype(np.float32)
    kmeans = make_kmeans(image)
    kmeans.cluster_centers_ = (rng.random((12, 3)) * 5000).astype(np.float32)
    # Pixels halfway between centres.
    first, second = kmeans.cluster_centers_[:6], kmeans.cluster_centers_[6:]
    image[:6, :6] = (first[:, None] + second) / 2
    expected = kmeans.predict(image.reshape(-1, 3)).reshape(60, 70) + 1
    found = assign_clusters(image, kmeans.cluster_centers_, predict=kmeans.predict)
    assert np.array_equal(found, expected)
    assert not np.array_equal(assign_clusters(image, kmeans.cluster_centers_), expected)


# -- the float32 sums of the reference lose small values beyond 2^24

def test_sums_of_large_segments_are_exact_by_default():
    # 2^24 is even; each 1 that is added to it is lost in float32.
    image = np.ones((1, 200), np.int32)
    image[0, 0] = 2 ** 24
    image[0, 199] = 2 ** 24 // 199 + 2
    labels = np.ones((1, 200), np.uint32)
    labels[0, 199] = 2
    distance = abs((2 ** 24 + 198) / 199 - image[0, 199])
    assert eliminate_small(image, labels, 2, distance + 1e-6).n_segments == 1
    assert eliminate_small(image, labels, 2, distance + 1e-6, compat=True).n_segments == 2
