"""
From the pixels of a tile to the compressed bytes of a file.

The codecs are those of imagecodecs, which release the GIL; packing is ours.
"""
from __future__ import annotations

import threading

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.packing import TilePacker, is_constant

# Beyond this, readers cannot address the bytes of a tile by a signed number.
_MAX_TILE_NBYTES = 2 ** 31 - 1
_MAX_CONSTANTS = 64


# Scratch memory of each thread, for the layout that it has met last: many files
# may be open at a time, and most are alike.
_OWN = threading.local()


class TileCodec:
    """
    Compress the tiles of one file.

    A tile of one value, such as nodata, is compressed once for all.

    Args:
        codec (Codec): checked compression.
        dtype (dtype): of the pixels.
        n_bands (int): bands of the image.
        blocksize (int): side of a tile, px.
        interleave (str): 'pixel': one payload holds all bands; 'band': each
            band has one.

    Raises:
        OptionError: if a tile would be too large for a TIFF.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> from cocoseg.io.codecs import Codec
        >>> from cocoseg.io.tile_codec import TileCodec
        >>> codec = TileCodec(Codec('NONE'), 'uint8', 2, 16, 'band')
        >>> [len(payload) for payload in codec.iter_payloads(np.zeros((3, 4, 2), np.uint8))]
        [256, 256]
    """

    def __init__(self, codec, dtype, n_bands, blocksize, interleave='pixel'):
        self._codec, self._dtype, self._blocksize = codec, np.dtype(dtype), blocksize
        self._is_split = interleave == 'band' and n_bands > 1
        self.n_planes = n_bands if self._is_split else 1
        self._depth = n_bands // self.n_planes
        self._nbytes = blocksize * blocksize * self._depth * self._dtype.itemsize
        if self._nbytes > _MAX_TILE_NBYTES:
            raise OptionError(
                f'a tile of {blocksize} x {blocksize} px with {n_bands} bands of {self._dtype} '
                f"has {self._nbytes} bytes, more than a TIFF can hold; use interleave='band' or "
                'a smaller blocksize')
        self._encode = _ENCODERS[codec.name.partition('_')[0]]
        self._constants = {}

    def iter_payloads(self, tile):
        """
        Yield the compressed bytes of each plane of a tile.

        Args:
            tile (ndarray): C-contiguous, shape (h, w, C), at most a full tile.
                Never modified.

        Yields:
            bytes-like: valid until the next one.

        Raises:
            Exception: whatever the codec raises.
        """
        if not self._is_split:
            yield self._compress(tile)
            return
        for band in range(tile.shape[2]):
            yield self._compress(np.ascontiguousarray(tile[:, :, band:band + 1]))

    def _compress(self, plane):
        if not is_constant(plane):
            return self._encode(self, plane)
        # The edge of a tile is repeated: also a part has the bytes of a full one.
        key = plane[0, 0, 0].tobytes()
        payload = self._constants.get(key)
        if payload is None:
            payload = bytes(self._encode(self, plane))
            if len(self._constants) < _MAX_CONSTANTS:
                self._constants[key] = payload
        return payload

    def _pack(self, plane):
        layout = (self._blocksize, self._depth, self._dtype, self._codec.predictor)
        if getattr(_OWN, 'layout', None) != layout:
            _OWN.pack, _OWN.layout = TilePacker(*layout), layout
        return _OWN.pack(plane)

    def _get_room(self):
        """Return memory for a result; new pages for each are dear with many threads."""
        # What ZSTD and DEFLATE may need for data that they cannot compress.
        nbytes = self._nbytes + self._nbytes // 8 + 4096
        if len(getattr(_OWN, 'room', b'')) != nbytes:
            _OWN.room = bytearray(nbytes)
        return _OWN.room

    def _encode_none(self, plane):
        return self._pack(plane).reshape(-1).view(np.uint8).data

    def _encode_zstd(self, plane):
        import imagecodecs
        return imagecodecs.zstd_encode(
            self._pack(plane), level=self._codec.level, out=self._get_room())

    def _encode_deflate(self, plane):
        import imagecodecs
        return imagecodecs.deflate_encode(
            self._pack(plane), level=self._codec.level, out=self._get_room())

    def _encode_lzw(self, plane):
        import imagecodecs
        return imagecodecs.lzw_encode(self._pack(plane))

    def _encode_lzma(self, plane):
        import imagecodecs
        return imagecodecs.lzma_encode(self._pack(plane), level=self._codec.level)

    def _encode_lerc(self, plane):
        import imagecodecs
        side = self._blocksize
        second = self._codec.name.partition('_')[2].lower() or None
        level = self._codec.level
        pixels = self._pack(plane).view(self._dtype).reshape(side, side, self._depth)
        masks = None
        if self._dtype.kind == 'f':
            masks = self._mask_valid(pixels)
        return imagecodecs.lerc_encode(
            pixels[:, :, 0] if self._depth == 1 else pixels, level=0, version=4, masks=masks,
            compression=second, compressionargs=None if level is None else {'level': level})

    @staticmethod
    def _mask_valid(pixels):
        """Return which pixels are not NaN, (h, w), or None for all of them."""
        is_nan = np.isnan(pixels)
        if not is_nan.any():
            return None
        is_invalid = is_nan.all(axis=2)
        if not np.array_equal(is_invalid, is_nan.any(axis=2)):
            raise ValueError(
                'LERC cannot hold a pixel that is NaN in some of its bands only; use another '
                "compression, such as ZSTD, or interleave='band'")
        return ~is_invalid


_ENCODERS = {
    'NONE': TileCodec._encode_none, 'ZSTD': TileCodec._encode_zstd,
    'DEFLATE': TileCodec._encode_deflate, 'LZW': TileCodec._encode_lzw,
    'LZMA': TileCodec._encode_lzma, 'LERC': TileCodec._encode_lerc}
