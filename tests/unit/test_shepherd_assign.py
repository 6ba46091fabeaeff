"""Which pixels are valid, and which cluster centre is nearest to each."""
import numpy as np
import pytest

from cocoseg.errors import BandCountError, NodataError, OptionError, WindowShapeError
from cocoseg.shepherd.assign import as_pixels, assign_clusters, check_mask, find_valid

from ..shepherd_model import model_clusters, model_valid

DTYPES = ('uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64', 'float16',
          'float32', 'float64')


def make_image(shape, dtype='uint8', seed=0, n_values=50):
    return np.random.default_rng(seed).integers(0, n_values, shape).astype(dtype)


def make_centres(n_centres, n_bands, seed=0):
    return np.random.default_rng(seed).random((n_centres, n_bands)) * 50


def lay_out(image, layout):
    """Return an equal image with another order of its bytes in memory."""
    if layout == 'bands first':
        return np.moveaxis(np.ascontiguousarray(np.moveaxis(image, -1, 0)), 0, -1)
    if layout == 'crop':
        large = np.zeros((image.shape[0] + 3, image.shape[1] * 2, image.shape[2] + 1), image.dtype)
        large[2:-1, ::2, 1:] = image
        return large[2:-1, ::2, 1:]
    if layout == 'backward':
        return image[::-1, ::-1].copy()[::-1, ::-1]
    if layout == 'swapped bytes':
        return image.astype(image.dtype.newbyteorder())
    if layout == 'unaligned':
        raw = np.zeros(image.nbytes + 1, np.uint8)[1:].view(image.dtype).reshape(image.shape)
        raw[...] = image
        assert not raw.flags.aligned
        return raw
    return np.asfortranarray(image) if layout == 'fortran' else image


LAYOUTS = ('bands first', 'crop', 'backward', 'swapped bytes', 'unaligned', 'fortran')


@pytest.mark.parametrize('layout', LAYOUTS)
def test_any_layout_in_memory_is_read_right(layout):
    image = make_image((9, 21, 3), 'int16')
    image[2, 3, 1] = -7
    laid_out = lay_out(image, layout)
    assert np.array_equal(laid_out, image)
    centres = make_centres(7, 3)
    assert np.array_equal(assign_clusters(laid_out, centres, nodata=-7),
                          assign_clusters(image, centres, nodata=-7))


@pytest.mark.parametrize('layout', ['bands first', 'crop', 'fortran'])
def test_plain_layouts_are_not_copied(layout):
    image = lay_out(make_image((9, 21, 3)), layout)
    pixels = as_pixels(image)
    assert np.shares_memory(pixels.flat, image) and not pixels.flat.flags.writeable
    for y, x, band in [(0, 0, 0), (8, 20, 2), (3, 7, 1)]:
        place = np.dot((y, x, band), pixels.steps)
        assert pixels.flat[place] == image[y, x, band]


def test_image_of_one_pixel_or_one_value_repeated_is_read():
    assert assign_clusters(np.full((1, 1), 3, np.uint8), [[1.0], [3.0]]).tolist() == [[2]]
    repeated = np.broadcast_to(np.uint8(3), (4, 5, 2))
    assert (assign_clusters(repeated, [[3.0, 3.0], [1.0, 1.0]]) == 1).all()


# -- valid pixels

@pytest.mark.parametrize('dtype', DTYPES)
def test_pixels_with_nodata_in_any_band_are_null(dtype):
    image = make_image((7, 9, 3), dtype, n_values=4)
    valid = find_valid(image, 2)
    assert np.array_equal(valid, model_valid(image, 2))
    assert 0 < valid.sum() < valid.size


@pytest.mark.parametrize('nodata', [None, np.nan, 1.5])
def test_pixels_that_are_not_finite_are_null(nodata):
    image = make_image((5, 6, 2), 'float32')
    image[0, 1, 0], image[1, 1, 1], image[2, 2], image[3, 3, 0] = np.nan, np.inf, -np.inf, 1.5
    valid = find_valid(image, nodata)
    assert np.array_equal(valid, model_valid(image, nodata))
    assert valid.sum() == valid.size - (3 if nodata != 1.5 else 4)


@pytest.mark.parametrize('dtype, nodata', [('uint8', -9999), ('uint8', 256), ('int16', 0.5),
                                           ('int16', np.nan), ('uint16', np.inf)])
def test_nodata_that_the_dtype_cannot_hold_is_found_nowhere(dtype, nodata):
    image = make_image((4, 5, 2), dtype)
    image[0, 0] = 0
    assert find_valid(image, nodata) is None


def test_nodata_of_a_float_image_is_rounded_as_the_image_was():
    image = np.array([[0.1, -3.4028234663852886e38]], np.float32)
    assert find_valid(image, 0.1).tolist() == [[False, True]]
    assert find_valid(image, -3.4028234663852886e38).tolist() == [[True, False]]


def test_widest_integers_are_told_apart():
    image = np.array([[2 ** 63 - 1, 2 ** 63 - 2]], np.int64)
    assert find_valid(image, 2 ** 63 - 2).tolist() == [[True, False]]


@pytest.mark.parametrize('num_threads', [1, 3])
def test_mask_and_nodata_both_count_and_the_mask_is_not_changed(num_threads):
    image = make_image((11, 9, 2), n_values=6)
    mask = np.random.default_rng(1).random((11, 9)) < 0.6
    kept = mask.copy()
    valid = find_valid(image, 3, mask, num_threads=num_threads)
    assert np.array_equal(valid, model_valid(image, 3, mask))
    assert np.array_equal(mask, kept)


def test_nothing_is_made_where_nothing_can_be_null():
    image, mask = make_image((4, 5, 2)), np.ones((4, 5), bool)
    assert find_valid(image) is None
    assert find_valid(image, None, mask) is mask


@pytest.mark.parametrize('nodata', ['0', True, 1j, [0, 0]])
def test_nodata_that_is_no_number_raises(nodata):
    with pytest.raises(NodataError, match='not a real number'):
        find_valid(make_image((4, 5, 2)), nodata)


@pytest.mark.parametrize('mask, error', [
    (np.ones((4, 5), np.uint8), OptionError), ([[True] * 5] * 4, OptionError),
    (np.ones((5, 4), bool), WindowShapeError), (np.ones((4, 5, 1), bool), WindowShapeError)])
def test_mask_of_another_kind_raises(mask, error):
    with pytest.raises(error, match='mask'):
        check_mask(mask, (4, 5, 2))
    with pytest.raises(error, match='mask'):
        find_valid(make_image((4, 5, 2)), 0, mask)


@pytest.mark.parametrize('image, error', [
    (np.ones((4, 5, 2), bool), OptionError), (np.ones((4, 5, 2), complex), OptionError),
    (np.ones((4, 5, 2), object), OptionError), (np.ma.masked_array(np.ones((4, 5))), OptionError),
    (np.array([['a']]), OptionError), (np.ones((4, 5), np.longdouble), OptionError),
    (np.ones(5), WindowShapeError), (np.ones((1, 4, 5, 2)), WindowShapeError),
    (np.ones((0, 5, 2)), WindowShapeError), (np.ones((4, 5, 0)), WindowShapeError)])
def test_image_of_another_kind_raises(image, error):
    with pytest.raises(error, match='image'):
        as_pixels(image)


# -- nearest centres

@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint64', 'float16', 'float32', 'float64'])
@pytest.mark.parametrize('n_bands', [1, 3, 4, 5, 9])
def test_nearest_centre_is_that_of_the_model(dtype, n_bands):
    # Odd sizes, so that blocks are cut off at both edges.
    image = make_image((13, 37, n_bands), dtype, n_bands)
    valid = np.random.default_rng(2).random((13, 37)) < 0.8
    valid[:8, 16:32] = True
    centres = make_centres(20, n_bands)
    expected = model_clusters(image, centres, valid)
    assert np.array_equal(assign_clusters(image, centres, valid), expected)
    everywhere = model_clusters(image, centres, np.ones_like(valid))
    assert np.array_equal(assign_clusters(image, centres), everywhere)


def test_leaving_out_far_centres_changes_nothing():
    # Smooth, so that most centres are left out, with steps and lone pixels.
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:70, :90]
    image = np.stack([y + x, y * 2, x * 3 + 50 * (y > 30)], axis=-1) + rng.normal(0, 2, (70, 90, 3))
    image[rng.random((70, 90)) < 0.02] *= 3
    centres = rng.random((300, 3)) * 300
    distances = ((image[:, :, None] - centres) ** 2).sum(axis=-1)
    for num_threads in (1, 2):
        found = assign_clusters(image, centres, num_threads=num_threads)
        assert np.array_equal(found, distances.argmin(axis=-1) + 1)


def test_of_equally_near_centres_the_first_is_taken():
    image = np.array([[4, 6, 8]], np.uint8)
    assert assign_clusters(image, [[9.0], [3.0], [5.0], [5.0], [7.0]]).tolist() == [[2, 3, 1]]


def test_as_many_centres_as_fit_are_numbered():
    centres = np.arange(65535.0)[:, None]
    image = np.array([[0, 65534, 65535, 40000]], np.uint16)
    assert assign_clusters(image, centres).tolist() == [[1, 65535, 65535, 40001]]


def test_values_far_from_zero_keep_their_differences():
    image = np.array([[1e12 + 1, 1e12 + 4]])
    assert assign_clusters(image, [[1e12 + 3.0], [1e12]]).tolist() == [[2, 1]]


def test_judge_is_asked_only_about_equally_near_centres():
    asked = []

    def predict(samples):
        asked.append(samples)
        return np.full(len(samples), 1)
    image = np.array([[[1, 1], [5, 5], [9, 9]], [[5, 5], [0, 0], [8, 8]]], np.int16)
    centres = [[1.0, 1.0], [9.0, 9.0]]
    found = assign_clusters(image, centres, nodata=0, predict=predict)
    assert found.tolist() == [[1, 2, 2], [2, 0, 2]]
    assert [samples.tolist() for samples in asked] == [[[5, 5], [5, 5]]]
    assert asked[0].dtype == np.int16
    assert assign_clusters(image, centres, nodata=0).tolist() == [[1, 1, 2], [1, 0, 2]]


def test_judge_is_not_called_without_a_doubt():
    image = np.array([[1, 2, 8]], np.uint8)
    found = assign_clusters(image, [[1.0], [9.0]], predict=lambda samples: 1 / 0)
    assert found.tolist() == [[1, 1, 2]]


def test_float32_is_in_doubt_sooner():
    near = 5 + 2e-7
    image = np.array([[near]])
    counts = []
    for dtype in (np.float32, np.float64):
        counts.append(0)
        assign_clusters(image.astype(dtype), [[1.0], [9.0]], predict=lambda samples: (
            counts.__setitem__(-1, len(samples)), np.zeros(len(samples)))[1])
    assert counts == [1, 0]


def test_doubt_grows_with_the_centres():
    # The squares of the centres are rounded to 2 in float32, and the distances differ by 2.
    image, centres = np.array([[1e-4]], np.float32), [[-5000.0], [5000.0]]
    asked = []
    assign_clusters(image, centres, predict=lambda samples: (asked.append(1), [0])[1])
    assert asked == [1]


def test_centres_that_do_not_fit_raise():
    image = make_image((4, 5, 2))
    with pytest.raises(BandCountError, match='3 bands and the image has 2'):
        assign_clusters(image, make_centres(4, 3))
    for centres in (np.zeros((0, 2)), np.zeros(2), np.zeros((65536, 2)), [[np.nan, 1.0]]):
        with pytest.raises(OptionError, match='centres'):
            assign_clusters(image, centres)


def test_image_that_must_not_be_written_to_is_fine():
    image = make_image((4, 5, 2))
    image.flags.writeable = False
    mask = np.ones((4, 5), bool)
    mask.flags.writeable = False
    assert assign_clusters(image, make_centres(3, 2), mask, nodata=1).shape == (4, 5)
