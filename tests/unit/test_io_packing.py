"""Packing of tiles against plain numpy, and against the encoders of imagecodecs."""
import threading

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.io.overviews import METHODS, reduce_by_two
from cocoseg.io.packing import TilePacker, as_bits, is_constant

INTEGERS = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32']
DTYPES = [*INTEGERS, 'float32', 'float64']
SIDE = 16


def random_bits(shape, dtype, seed):
    """Return pixels of any bits: also NaN with a payload, infinities and both zeros."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(count * dtype.itemsize),
                         dtype).reshape(shape)


def pad_tile(tile, side=SIDE):
    """Repeat the last column and row of a tile."""
    return np.pad(tile, ((0, side - tile.shape[0]), (0, side - tile.shape[1]), (0, 0)), 'edge')


def pack_reference(tile, predictor, side=SIDE):
    """Return what a packer must give, from the words of the TIFF specifications."""
    full = pad_tile(tile, side)
    bits = full.view(f'u{full.itemsize}')
    if predictor == 2:
        packed = bits.copy()
        packed[:, 1:] = bits[:, 1:] - bits[:, :-1]
        return packed.reshape(side, -1)
    if predictor == 3:
        n_bands = full.shape[2]
        # (row, byte, value): the most significant byte first.
        planes = bits.astype(bits.dtype.newbyteorder('>')).view(np.uint8).reshape(
            side, -1, full.itemsize).transpose(0, 2, 1).reshape(side, -1)
        packed = planes.copy()
        packed[:, n_bands:] = planes[:, n_bands:] - planes[:, :-n_bands]
        return packed
    return bits.reshape(side, -1)


@st.composite
def tiles(draw, dtypes=DTYPES):
    """Draw a tile of up to a full square, of any bits, or with few values."""
    dtype = np.dtype(draw(st.sampled_from(dtypes)))
    size = st.integers(1, SIDE)
    shape = (draw(size), draw(size), draw(st.integers(1, 5)))
    tile = random_bits(shape, dtype, draw(st.integers(0, 2 ** 32 - 1)))
    if draw(st.booleans()):
        tile = np.where(as_bits(tile) % 3, tile.reshape(-1)[0], tile)
    return tile


@given(tile=tiles(), predictor=st.sampled_from([1, 2]))
@settings(max_examples=200)
def test_copies_and_differences_equal_numpy(tile, predictor):
    pack = TilePacker(SIDE, tile.shape[2], tile.dtype, predictor)
    expected = pack_reference(tile, predictor)
    found = pack(tile)
    assert found.dtype == expected.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found, expected)


@given(tile=tiles(['float32', 'float64']))
@settings(max_examples=100)
def test_float_differences_equal_numpy(tile):
    found = TilePacker(SIDE, tile.shape[2], tile.dtype, 3)(tile)
    expected = pack_reference(tile, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@given(tile=tiles(INTEGERS))
@settings(max_examples=60)
def test_differences_equal_imagecodecs(tile):
    found = TilePacker(SIDE, tile.shape[2], tile.dtype, 2)(tile)
    expected = imagecodecs.delta_encode(pad_tile(tile), axis=-2)
    assert found.tobytes() == expected.tobytes()


@given(tile=tiles(['float32', 'float64']))
@settings(max_examples=60)
def test_float_differences_equal_imagecodecs(tile):
    found = TilePacker(SIDE, tile.shape[2], tile.dtype, 3)(tile)
    expected = imagecodecs.floatpred_encode(pad_tile(tile), axis=-2)
    assert found.tobytes() == np.asarray(expected).tobytes()


@given(first=tiles(['float32']), second=tiles(['float32']), predictor=st.sampled_from([1, 2, 3]))
@settings(max_examples=60)
def test_a_packer_keeps_nothing_of_the_tile_before(first, second, predictor):
    # The second is smaller, in one band: its padding lies where the first had pixels.
    first, second = pad_tile(first[:, :, :1]), second[:, :, :1].copy()
    pack = TilePacker(SIDE, 1, 'float32', predictor)
    pack(first)
    np.testing.assert_array_equal(pack(second), pack_reference(second, predictor))


@pytest.mark.parametrize('predictor', [1, 2, 3])
def test_a_tile_is_never_modified(predictor):
    tile = random_bits((7, 9, 2), 'float32', 0)
    assert not tile.flags.writeable
    TilePacker(SIDE, 2, 'float32', predictor)(tile)
    copy = tile.copy()
    before = copy.tobytes()
    TilePacker(SIDE, 2, 'float32', predictor)(copy)[...] = 1
    assert copy.tobytes() == before


@pytest.mark.parametrize('n_bands', [1, 2, 300])
@pytest.mark.parametrize('predictor', [1, 2, 3])
def test_a_tile_of_one_pixel_fills_the_square(n_bands, predictor):
    tile = random_bits((1, 1, n_bands), 'float64', n_bands)
    found = TilePacker(SIDE, n_bands, 'float64', predictor)(tile)
    np.testing.assert_array_equal(found, pack_reference(tile, predictor))


def test_packers_of_many_threads_do_not_meet():
    tasks = [(random_bits((SIDE, 11, 3), 'float32', seed), seed % 3 + 1) for seed in range(6)]
    wrong = []

    def work(tile, predictor):
        pack, expected = TilePacker(SIDE, 3, 'float32', predictor), pack_reference(tile, predictor)
        wrong.extend(k for k in range(300) if not np.array_equal(pack(tile), expected))
    threads = [threading.Thread(target=work, args=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


# ---- one value ---------------------------------------------------------------

@given(dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2 ** 32 - 1),
       n_values=st.integers(1, 5000), place=st.integers(0, 4999), has_other=st.booleans())
@settings(max_examples=200)
def test_one_other_value_anywhere_is_seen(dtype, seed, n_values, place, has_other):
    values = np.full(n_values, random_bits((1,), dtype, seed)[0])
    values = values.view(f'u{values.itemsize}')
    if has_other:
        # The last bit alone.
        values[place % n_values] ^= 1
    tile = values.view(dtype)
    assert is_constant(tile) == (not has_other or n_values == 1)


@pytest.mark.parametrize('place', [0, 1, 1023, 1024, 1025, 2047, 2048, 4095])
def test_the_ends_of_the_runs_are_looked_at(place):
    values = np.zeros(4096, np.uint8)
    values[place] = 1
    assert not is_constant(values)
    values[place] = 0
    assert is_constant(values)


def test_bits_count_not_numbers():
    zeros = np.zeros((4, 4, 1), np.float32)
    zeros[1, 1] = -0.0
    assert not is_constant(zeros)
    # A NaN is no number but has bits; another NaN has others.
    nans = np.full((4, 4, 1), np.nan, np.float32)
    assert is_constant(nans)
    nans.view(np.uint32)[3, 3] ^= 1
    assert np.isnan(nans).all() and not is_constant(nans)


# ---- half size, where the numbers are extreme ---------------------------------

def halve_by_python(data, nodata):
    """Average 2 x 2 squares of one band with Python's whole numbers."""
    limits = np.iinfo(data.dtype)
    rows = []
    for y in range(0, data.shape[0], 2):
        row = []
        for x in range(0, data.shape[1], 2):
            square = [value for value in data[y:y + 2, x:x + 2, 0].ravel().tolist()
                      if value != nodata]
            mean = nodata
            if square:
                mean = (2 * sum(square) + len(square)) // (2 * len(square))
                if mean == nodata:
                    mean += 1 if nodata < limits.max else -1
            row.append(mean)
        rows.append(row)
    return rows


@st.composite
def extreme_integers(draw):
    """Draw a small image near the ends of its type and near zero, and a nodata value."""
    dtype = np.dtype(draw(st.sampled_from(INTEGERS)))
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    value = (st.integers(low, low + 3) | st.integers(high - 3, high)
             | st.integers(max(low, -2), 2))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    data = np.array(draw(st.lists(value, min_size=height * width, max_size=height * width)), dtype)
    return data.reshape(height, width, 1), draw(st.none() | value)


@given(extreme_integers())
@settings(max_examples=300)
def test_means_of_extreme_integers_are_those_of_python(case):
    data, nodata = case
    found = reduce_by_two(data, 'average', nodata)
    assert found[:, :, 0].tolist() == halve_by_python(data, nodata)


@given(extreme_integers(), st.integers(2, 4))
@settings(max_examples=100)
def test_bands_are_halved_apart(case, n_bands):
    data, nodata = case
    image = np.concatenate([np.roll(data, k, axis=1) for k in range(n_bands)], axis=2)
    for method in METHODS:
        found = reduce_by_two(image, method, nodata)
        for band in range(n_bands):
            alone = reduce_by_two(image[:, :, band:band + 1], method, nodata)
            np.testing.assert_array_equal(found[:, :, band:band + 1], alone)


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('nodata', [None, 3, 7])
def test_an_image_of_one_value_stays_one(method, dtype, nodata):
    found = reduce_by_two(np.full((5, 7, 2), 7, dtype), method, nodata)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.full((3, 4, 2), 7, dtype))


@pytest.mark.parametrize('method', ['average', 'mode'])
@pytest.mark.parametrize('nodata, expected', [(None, np.nan), (np.nan, np.nan), (-9999, -9999)])
@pytest.mark.parametrize('spoil', [False, True])
def test_nan_becomes_nodata_also_where_all_is_nan(method, nodata, expected, spoil):
    data = np.full((4, 4, 1), np.nan, np.float32)
    if spoil:
        data[3, 3] = 5
    found = reduce_by_two(data, method, nodata)[:, :, 0]
    wanted = [[expected, expected], [expected, 5 if spoil else expected]]
    np.testing.assert_array_equal(found, np.array(wanted, np.float32))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('nodata', [np.inf, -np.inf, 0.0, 'max', 'min'])
def test_a_mean_that_equals_nodata_moves_to_a_valid_neighbor(dtype, nodata):
    limits = np.finfo(dtype)
    nodata = {'max': float(limits.max), 'min': float(limits.min)}.get(nodata, nodata)
    data = np.array([[1, -1], [2, -2]], dtype)[:, :, None]
    if nodata != 0:
        # Infinite on the way, or exactly so.
        near = np.nextafter(limits.dtype.type(nodata), limits.dtype.type(0))
        data = np.full((2, 2, 1), near, dtype)
    found = reduce_by_two(data, 'average', nodata)
    assert np.isfinite(found).all() and (found != nodata).all()


def test_means_of_huge_doubles_do_not_overflow():
    # A sum of four goes beyond the type; their mean does not.
    huge = np.finfo(np.float64).max
    data = np.array([[huge, huge / 2], [huge, huge]])[:, :, None]
    found = reduce_by_two(data)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[0, 0, 0], huge * 0.875, rtol=1e-15)
