"""Compressed tiles: decoded by imagecodecs they are what was packed."""
import threading

import imagecodecs
import numpy as np
import pytest

from cocoseg.errors import OptionError
from cocoseg.io.codecs import Codec
from cocoseg.io.packing import TilePacker
from cocoseg.io.tile_codec import TileCodec

DTYPES = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'float32', 'float64']
DECODERS = {'NONE': bytes, 'ZSTD': imagecodecs.zstd_decode, 'DEFLATE': imagecodecs.zlib_decode,
            'LZW': imagecodecs.lzw_decode, 'LZMA': imagecodecs.lzma_decode}
SECONDS = {'LERC': bytes, 'LERC_ZSTD': imagecodecs.zstd_decode,
           'LERC_DEFLATE': imagecodecs.zlib_decode}
SIDE = 64


def random_bits(shape, dtype, seed=0):
    """Return pixels of any bits."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    return np.frombuffer(np.random.default_rng(seed).bytes(count * dtype.itemsize),
                         dtype).reshape(shape)


def encode(codec, tile):
    """Return the payloads of a tile as bytes."""
    return [bytes(payload) for payload in codec.iter_payloads(tile)]


def pack(tile, predictor=1, side=SIDE):
    """Return the bytes that a tile has before compression."""
    return TilePacker(side, tile.shape[2], tile.dtype, predictor)(tile).tobytes()


def decode_lerc(name, payload, shape):
    """Return the pixels of a LERC payload, NaN where it says invalid."""
    pixels, mask = imagecodecs.lerc_decode(SECONDS[name](payload), masks=True)
    pixels = pixels.reshape(shape).copy()
    if mask is not None:
        pixels[~mask.reshape(shape[:2]).astype(bool)] = np.nan
    return pixels


@pytest.mark.parametrize('name', DECODERS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_payloads_decode_to_packed_tiles(name, dtype):
    predictors = [1] if name in ('NONE', 'LZMA') else [1, 2]
    predictors += [3] * (len(predictors) > 1 and dtype.startswith('float'))
    smooth = np.add.outer(np.arange(61), np.arange(47))[:, :, None].astype(dtype)
    for predictor in predictors:
        for tile in (random_bits((61, 47, 3), dtype), np.repeat(smooth, 3, 2),
                     np.full((SIDE, SIDE, 3), 9, dtype)):
            codec = TileCodec(Codec(name, None, predictor), dtype, 3, SIDE)
            (payload,) = encode(codec, tile)
            assert DECODERS[name](payload) == pack(tile, predictor)


@pytest.mark.parametrize('name', SECONDS)
@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('n_bands', [1, 3])
def test_lerc_is_lossless(name, dtype, n_bands):
    shape = (SIDE, SIDE, n_bands)
    if dtype.startswith('float'):
        limits = np.finfo(dtype)
        extremes = [limits.max, -limits.max, limits.tiny, np.inf, -np.inf, 0, 1 / 3]
        noise = np.random.default_rng(0).normal(size=shape).astype(dtype)
    else:
        limits = np.iinfo(dtype)
        extremes = [limits.min, limits.max, 0, 1]
        noise = random_bits(shape, dtype)
    rng = np.random.default_rng(1)
    for tile in (noise, rng.choice(np.array(extremes, dtype), shape),
                 np.where(rng.random(shape) < 0.01, np.array(extremes[0], dtype), noise)):
        (payload,) = encode(TileCodec(Codec(name), dtype, n_bands, SIDE), tile)
        np.testing.assert_array_equal(decode_lerc(name, payload, shape), tile)


@pytest.mark.parametrize('name', SECONDS)
def test_lerc_keeps_nan(name):
    tile = np.random.default_rng(0).random((SIDE, SIDE, 2)).astype(np.float32)
    tile[3:20, 7:50] = np.nan
    for part in (tile, np.full_like(tile, np.nan), tile[:, :7].copy()):
        (payload,) = encode(TileCodec(Codec(name), 'float32', 2, SIDE), part)
        height, width = part.shape[:2]
        found = decode_lerc(name, payload, (SIDE, SIDE, 2))[:height, :width]
        np.testing.assert_array_equal(found, part)


def test_lerc_refuses_nan_in_some_bands_and_goes_on():
    codec = TileCodec(Codec('LERC'), 'float32', 2, SIDE)
    tile = np.random.default_rng(0).random((SIDE, SIDE, 2)).astype(np.float32)
    expected = encode(codec, tile)
    spoiled = tile.copy()
    spoiled[5, 5, 1] = np.nan
    with pytest.raises(ValueError, match="interleave='band'"):
        encode(codec, spoiled)
    assert encode(codec, tile) == expected
    apart = TileCodec(Codec('LERC'), 'float32', 2, SIDE, 'band')
    for band, payload in enumerate(encode(apart, spoiled)):
        found = decode_lerc('LERC', payload, (SIDE, SIDE, 1))
        np.testing.assert_array_equal(found, spoiled[:, :, band:band + 1])


@pytest.mark.parametrize('name, level', [
    ('ZSTD', 1), ('ZSTD', 22), ('DEFLATE', 1), ('DEFLATE', 9), ('LZW', None), ('LZMA', 0),
    ('NONE', None)])
def test_there_is_room_for_what_cannot_be_compressed(name, level):
    for side, n_bands in ((SIDE, 1), (256, 3)):
        tile = random_bits((side, side, n_bands), 'uint8', seed=side)
        (payload,) = encode(TileCodec(Codec(name, level), 'uint8', n_bands, side), tile)
        assert DECODERS[name](payload) == tile.tobytes()


def test_bands_are_stored_apart():
    tile = random_bits((50, 64, 3), 'int16').copy()
    tile[:, :, 1] = 7
    codec = TileCodec(Codec('ZSTD', 1, 2), 'int16', 3, SIDE, 'band')
    payloads = encode(codec, tile)
    assert codec.n_planes == len(payloads) == 3
    for band, payload in enumerate(payloads):
        assert imagecodecs.zstd_decode(payload) == pack(tile[:, :, band:band + 1].copy(), 2)


@pytest.mark.parametrize('interleave, n_bands, n_planes', [
    ('pixel', 1, 1), ('pixel', 4, 1), ('band', 1, 1), ('band', 4, 4)])
def test_planes(interleave, n_bands, n_planes):
    codec = TileCodec(Codec('NONE'), 'uint8', n_bands, SIDE, interleave)
    assert codec.n_planes == n_planes
    payloads = encode(codec, np.zeros((SIDE, SIDE, n_bands), np.uint8))
    assert [len(payload) for payload in payloads] == [SIDE * SIDE * n_bands // n_planes] * n_planes


# ---- tiles of one value --------------------------------------------------------

def count_calls(monkeypatch):
    """Return a list that grows with each call of the codec."""
    calls, compress = [], imagecodecs.zstd_encode

    def watch(*args, **options):
        calls.append(1)
        return compress(*args, **options)
    monkeypatch.setattr(imagecodecs, 'zstd_encode', watch)
    return calls


def test_a_tile_of_one_value_is_compressed_once(monkeypatch):
    calls = count_calls(monkeypatch)
    codec = TileCodec(Codec('ZSTD', 1, 2), 'int16', 2, SIDE)
    # Also a part at an edge, first or later.
    shapes = [(9, 5, 2), (SIDE, SIDE, 2), (1, 1, 2)]
    payloads = {encode(codec, np.full(shape, -9999, np.int16))[0] for shape in shapes}
    assert len(payloads) == len(calls) == 1
    assert imagecodecs.zstd_decode(payloads.pop()) == pack(
        np.full((SIDE, SIDE, 2), -9999, np.int16), 2)


def test_many_values_take_no_more_memory_but_stay_right(monkeypatch):
    codec = TileCodec(Codec('NONE'), 'int32', 1, SIDE)
    for _ in range(2):
        for value in range(200):
            (payload,) = encode(codec, np.full((1, 1, 1), value, np.int32))
            assert payload == np.full(SIDE * SIDE, value, np.int32).tobytes()
    assert len(codec._constants) <= 64


def test_values_that_are_equal_but_have_other_bits_are_not_mixed_up():
    codec = TileCodec(Codec('NONE'), 'float32', 1, SIDE)
    other_nan = np.array([0x7fc00001], np.uint32).view(np.float32)[0]
    for value in np.array([0.0, -0.0, np.nan, other_nan, 0.0, -0.0, np.nan, other_nan], 'f4'):
        tile = np.full((SIDE, SIDE, 1), value)
        assert encode(codec, tile) == [tile.tobytes()]


def test_bands_of_one_value_each_are_not_one_value():
    tile = np.zeros((SIDE, SIDE, 2), np.uint8)
    tile[:, :, 1] = 5
    for interleave in ('pixel', 'band'):
        payloads = encode(TileCodec(Codec('NONE'), 'uint8', 2, SIDE, interleave), tile)
        expected = [tile] if interleave == 'pixel' else [tile[:, :, 0], tile[:, :, 1]]
        assert payloads == [part.tobytes() for part in expected]


def test_a_codec_that_fails_is_not_remembered(monkeypatch):
    codec = TileCodec(Codec('ZSTD', 1), 'uint8', 1, SIDE)
    tile = np.full((SIDE, SIDE, 1), 4, np.uint8)

    def fail(*args, **options):
        raise MemoryError('no memory (simulated)')
    with monkeypatch.context() as patch:
        patch.setattr(imagecodecs, 'zstd_encode', fail)
        with pytest.raises(MemoryError, match='simulated'):
            encode(codec, tile)
    assert imagecodecs.zstd_decode(encode(codec, tile)[0]) == tile.tobytes()


# ---- memory and threads ---------------------------------------------------------

def test_a_tile_is_never_modified():
    for name, dtype in (('NONE', 'uint8'), ('ZSTD', 'float32'), ('LERC', 'float32')):
        tile = np.random.default_rng(0).integers(0, 99, (40, 50, 2)).astype(dtype)
        if dtype == 'float32':
            tile[3] = np.nan
        before = tile.tobytes()
        tile.flags.writeable = False
        for interleave in ('pixel', 'band'):
            for payload in TileCodec(Codec(name), dtype, 2, SIDE, interleave).iter_payloads(tile):
                assert len(payload)
        assert tile.tobytes() == before


@pytest.mark.parametrize('name', ['NONE', 'ZSTD', 'DEFLATE', 'LZW', 'LERC_ZSTD'])
def test_threads_share_a_codec(name):
    codec = TileCodec(Codec(name), 'uint16', 2, SIDE, 'band')
    tiles = [random_bits((SIDE, SIDE - seed, 2), 'uint16', seed) for seed in range(4)]
    tiles += [np.full((SIDE, SIDE, 2), seed, np.uint16) for seed in range(4)]
    expected = [encode(TileCodec(Codec(name), 'uint16', 2, SIDE, 'band'), tile) for tile in tiles]
    wrong = []

    def work(start):
        for k in range(start, start + 40):
            tile = k % len(tiles)
            if encode(codec, tiles[tile]) != expected[tile]:
                wrong.append(tile)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize('dtype, n_bands, side, interleave, fits', [
    ('float64', 15, 4096, 'pixel', True), ('float64', 16, 4096, 'pixel', False),
    ('float64', 1000, 4096, 'band', True), ('uint8', 1000, 1024, 'pixel', True),
    ('uint8', 1000, 4096, 'pixel', False)])
def test_a_tile_larger_than_readers_can_address_is_refused(dtype, n_bands, side, interleave, fits):
    def make():
        return TileCodec(Codec('ZSTD', 1), dtype, n_bands, side, interleave)
    if fits:
        assert make().n_planes in (1, n_bands)
        return
    with pytest.raises(OptionError, match="interleave='band'"):
        make()
