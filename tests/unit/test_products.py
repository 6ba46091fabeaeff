"""What is made of finished sums: means, codes, layers, and the area of interest."""
import numpy as np
import pytest
import shapely

from cocoseg import Quantization, Window
from cocoseg.grid.area import Area
from cocoseg.stitch.layers import ClassMap, Disagreement, LayerFormat, ThresholdMask
from cocoseg.stitch.products import BlockValues, Products

DTYPES = ('float32', 'float64')
CODECS = ('int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32')


def make_values(dtype='float32', per_band=False, shape=(9, 7, 3), seed=0):
    """Return values with samples that no window covered."""
    rng = np.random.RandomState(seed)
    weights = rng.uniform(0.1, 3, shape if per_band else shape[:2])
    weights *= rng.rand(*weights.shape) > 0.2
    full = weights.reshape(*shape[:2], -1)
    sums = rng.uniform(-1, 2, shape) * full
    deviations = rng.rand(*shape) * full
    return BlockValues(*(array.astype(dtype) for array in (sums, weights, deviations)))


def get_mean(values):
    weights = values.weights.reshape(*values.sums.shape[:2], -1)
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(weights > 0, values.sums / weights, np.array(np.nan, values.sums.dtype))


# ---- values ----------------------------------------------------------------

@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('shape', [(9, 7, 3), (1, 1, 1), (5, 6, 1), (1, 9, 2)])
@pytest.mark.parametrize('dtype', DTYPES)
def test_the_mean(dtype, shape, per_band):
    values = make_values(dtype, per_band, shape)
    before = values.sums.copy(), values.weights.copy()
    mean = values.compute_mean()
    assert mean.dtype == dtype and mean.flags.c_contiguous and mean.flags.owndata
    assert np.array_equal(mean, get_mean(values), equal_nan=True)
    mean[...] = 7
    assert np.array_equal(values.sums, before[0]) and np.array_equal(values.weights, before[1])


@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('quantize_dtype', CODECS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_codes(dtype, quantize_dtype, per_band):
    values, codec = make_values(dtype, per_band), Quantization(-0.5, 1, quantize_dtype)
    mean = get_mean(values)
    expected, expected_clipped = codec.encode(mean)
    codes, n_clipped = values.encode(codec)
    assert codes.dtype == quantize_dtype and codes.shape == mean.shape
    assert np.array_equal(codes, expected) and n_clipped == expected_clipped > 0
    assert type(n_clipped) is int
    out = np.empty_like(codes)
    assert values.encode(codec, out)[0] is out and np.array_equal(out, codes)
    values.release()


@pytest.mark.parametrize('per_band', [False, True])
def test_dropped_pixels_have_no_value_and_arrays_stay(per_band):
    values = make_values(per_band=per_band)
    weights, expected = values.weights, get_mean(values)
    before = weights.copy()
    mask = np.zeros((9, 7), bool)
    mask[2:4, 1] = mask[8] = True
    for _ in range(2):
        values.drop(mask)
        expected[mask] = np.nan
        assert np.array_equal(values.compute_mean(), expected, equal_nan=True)
    codes, _ = values.encode(Quantization(-1, 2))
    assert np.array_equal(codes == -9999, np.isnan(expected))
    assert np.array_equal(weights, before)


@pytest.mark.parametrize('quantize_dtype', CODECS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_without_weights_the_sums_are_the_mean(dtype, quantize_dtype):
    sums = make_values(dtype).sums
    before, codec = sums.copy(), Quantization(-0.5, 1, quantize_dtype)
    values = BlockValues(sums, None)
    mean = values.compute_mean()
    assert np.array_equal(mean, before) and not np.shares_memory(mean, sums)
    expected, expected_clipped = codec.encode(before)
    codes, n_clipped = values.encode(codec)
    assert np.array_equal(codes, expected) and n_clipped == expected_clipped > 0
    out = np.empty_like(codes)
    assert values.encode(codec, out)[0] is out and np.array_equal(out, codes)
    mask = np.zeros((9, 7), bool)
    mask[3, 3:] = True
    values.drop(mask)
    assert np.array_equal(np.isnan(values.compute_mean()), np.repeat(mask[..., None], 3, axis=2))
    assert np.array_equal(values.encode(codec)[0][~mask], codes[~mask])
    assert (values.encode(codec)[0][mask] == codec.nodata).all()
    assert np.array_equal(sums, before)


# ---- products --------------------------------------------------------------

WINDOW = Window(20, 10, 29, 17)


def test_the_mean_alone():
    values = make_values()
    blocks, n_clipped = Products().render(values, WINDOW)
    assert n_clipped == 0 and len(blocks) == 1
    assert np.array_equal(blocks[0], get_mean(values), equal_nan=True)


def test_codes_alone():
    values, codec = make_values(), Quantization(-0.5, 1, 'uint8')
    (codes,), n_clipped = Products(codec).render(values, WINDOW)
    expected, expected_clipped = codec.encode(get_mean(values))
    assert np.array_equal(codes, expected) and n_clipped == expected_clipped


@pytest.mark.parametrize('per_band', [False, True])
@pytest.mark.parametrize('codec', [None, Quantization(-0.5, 1, 'uint16')])
def test_layers_are_made_of_the_mean_before_it_is_coded(codec, per_band):
    layers = [ClassMap(), Disagreement(), ThresholdMask(0.1)]
    products, values = Products(codec, layers), make_values(per_band=per_band)
    mean = get_mean(values)
    blocks, n_clipped = products.render(values, WINDOW)
    assert len(blocks) == 4 and all(block.shape[:2] == (9, 7) for block in blocks)
    if codec is None:
        assert np.array_equal(blocks[0], mean, equal_nan=True) and n_clipped == 0
    else:
        expected, expected_clipped = codec.encode(mean)
        assert np.array_equal(blocks[0], expected) and n_clipped == expected_clipped > 0
    for layer, block in zip(layers, blocks[1:]):
        form = layer.describe(3, codec)
        assert block.dtype == form.dtype and block.shape[2] == form.n_bands
        assert np.array_equal(block, layer.compute(
            mean, values.weights, values.deviations, codec), equal_nan=block.dtype.kind == 'f')
    assert products.needs_deviations
    assert not Products(codec, [ClassMap(), ThresholdMask()]).needs_deviations
    assert not Products(codec).needs_deviations


def test_a_layer_of_the_user():
    class Weights:
        name, needs_deviations, overviews = 'weights', False, 'average'

        def describe(self, n_bands, codec=None):
            return LayerFormat('float32', 1, 0)

        def compute(self, mean, weights=None, deviations=None, codec=None):
            return weights[..., None].copy()
    values = make_values()
    (_, block), _ = Products(layers=[Weights()]).render(values, WINDOW)
    assert np.array_equal(block[..., 0], values.weights)


@pytest.mark.parametrize('per_band', [False, True])
def test_outside_the_area_is_no_data_in_every_product(per_band):
    # Left of x = 13, and none of the rows below 25.
    area = Area(shapely.box(-5, 0, 13, 25))
    outside = np.ones((9, 7), bool)
    outside[:5, :3] = False
    layers = [ClassMap(), ThresholdMask(), Disagreement()]
    for codec in (None, Quantization(-1, 2)):
        for some in ([], layers):
            values = make_values(per_band=per_band)
            expected = get_mean(values)
            expected[outside] = np.nan
            blocks, _ = Products(codec, some, area).render(values, WINDOW)
            mean = blocks[0] if codec is None else np.where(
                blocks[0] == codec.nodata, np.nan, codec.decode(blocks[0]))
            np.testing.assert_allclose(mean, expected, atol=1e-4)
            for layer, block in zip(some, blocks[1:]):
                nodata = layer.describe(3, codec).nodata
                is_missing = np.isnan(block) if nodata != nodata else block == nodata
                assert is_missing[outside].all() and not is_missing.all()


def test_crop_leaves_what_lies_inside():
    values = make_values()
    weights = values.weights
    Products().crop(values, WINDOW)
    Products(area=Area(shapely.box(0, 0, 100, 100))).crop(values, WINDOW)
    assert values.weights is weights
    Products(area=Area(shapely.box(50, 50, 100, 100))).crop(values, WINDOW)
    assert not values.weights.any() and weights.any()
