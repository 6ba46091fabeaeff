"""
The bytes of a Cloud-Optimized GeoTIFF that are not pixels.

::

    header │ layout hints │ directory of the full image, of each overview
    tiles of the coarsest overview … of the finest │ tiles of the full image

Each tile stands between its size and a repetition of its last 4 bytes, which
the layout hints promise: a reader that knows them needs a single request for
a tile. Sizes and places are computed here; nothing is written.

References:
    .. [TIFF6] Adobe, TIFF Revision 6.0, 1992.
    .. [BigTIFF] https://www.awaresystems.be/imaging/tiff/bigtiff.html
    .. [COG] https://gdal.org/drivers/raster/cog.html, header ghost area.
"""
from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from cocoseg.io.levels import MARK

_HINTS = (
    b'LAYOUT=IFDS_BEFORE_DATA\n'
    b'BLOCK_ORDER=ROW_MAJOR\n'
    b'BLOCK_LEADER=SIZE_AS_UINT4\n'
    b'BLOCK_TRAILER=LAST_4_BYTES_REPEATED\n'
    # The blank is room for the YES of a program that edits the file in place.
    b'KNOWN_INCOMPATIBLE_EDITION=NO\n ')
_HINTS = b'GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n' % len(_HINTS) + _HINTS
_SHORT, _LONG, _LONG8 = 3, 4, 16
_FORMATS = {_SHORT: '<u2', _LONG: '<u4', _LONG8: '<u8'}
_MAX_CLASSIC_NBYTES = 2 ** 32 - 1

# Numbers of tags.
SUBFILE_TYPE, WIDTH, HEIGHT, COMPRESSION, PREDICTOR = 254, 256, 257, 259, 317
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTE_COUNTS = 322, 323, 324, 325
LERC_PARAMETERS = 50674
_LERC_VERSION = 4
_LERC_SECONDS = {'LERC': 0, 'LERC_DEFLATE': 1, 'LERC_ZSTD': 2}
_REDUCED_IMAGE = 1


@dataclass(frozen=True)
class Tag:
    """
    One entry of an image file directory.

    Attributes:
        dtype (int): TIFF's number of the type.
        count (int): values.
        data (bytes): the values, little endian.
    """

    dtype: int
    count: int
    data: bytes

    @classmethod
    def of(cls, dtype, values):
        """Return a tag of whole numbers."""
        array = np.atleast_1d(np.asarray(values)).astype(_FORMATS[dtype])
        return cls(dtype, array.size, array.tobytes())


def build_header(levels, codec, blocksize, main_tags, overview_tags, bigtiff=None):
    """
    Build all that stands before the first tile.

    Args:
        levels (list[Level]): the full image, then overviews, fine to coarse,
            with the sizes of all tiles.
        codec (Codec): of the tiles.
        blocksize (int): side of a tile, px.
        main_tags, overview_tags (dict[int, Tag]): what else the directory of
            the full image, and of each overview, holds.
        bigtiff (bool | None): offsets of 64 bits; None where 32 do not do.

    Returns:
        tuple[bytes, int]: the header, and the size of the whole file in bytes.

    Raises:
        OverflowError: if ``bigtiff`` is False and the file is 4 GiB or more.

    Example:
        >>> from cocoseg.io.codecs import Codec
        >>> from cocoseg.io.levels import Level
        >>> from cocoseg.io.tiff import build_header
        >>> level = Level((64, 64), 64, n_planes=1)
        >>> level.counts[...] = 4096
        >>> header, nbytes = build_header([level], Codec('NONE'), 64, {}, {})
        >>> header[:4], nbytes - len(header)
        (b'II*\\x00', 4104)
    """
    directories = [_describe_level(number, level, codec, blocksize,
                                   overview_tags if number else main_tags)
                   for number, level in enumerate(levels)]
    n_data = sum(int(level.counts.sum()) + 2 * MARK * level.counts.size for level in levels)
    if not bigtiff:
        header = _build(levels, directories, is_big=False)
        if len(header) + n_data <= _MAX_CLASSIC_NBYTES:
            return header, len(header) + n_data
        if bigtiff is False:
            raise OverflowError(f'the file has {len(header) + n_data} bytes, more than a TIFF '
                                'with offsets of 32 bits can hold; use bigtiff=None')
    header = _build(levels, directories, is_big=True)
    return header, len(header) + n_data


def _describe_level(number, level, codec, blocksize, extra):
    """Return the tags of a level but for the offsets of its tiles."""
    height, width = level.shape
    tags = {
        **extra,
        WIDTH: Tag.of(_LONG, width), HEIGHT: Tag.of(_LONG, height),
        COMPRESSION: Tag.of(_SHORT, codec.tag),
        TILE_WIDTH: Tag.of(_SHORT, blocksize), TILE_HEIGHT: Tag.of(_SHORT, blocksize),
        TILE_BYTE_COUNTS: Tag.of(_LONG, level.counts.ravel())}
    if number:
        tags[SUBFILE_TYPE] = Tag.of(_LONG, _REDUCED_IMAGE)
    if codec.predictor != 1:
        tags[PREDICTOR] = Tag.of(_SHORT, codec.predictor)
    if codec.name in _LERC_SECONDS:
        tags[LERC_PARAMETERS] = Tag.of(_LONG, [_LERC_VERSION, _LERC_SECONDS[codec.name]])
    return tags


def _build(levels, directories, is_big):
    """Lay out the header twice: for its size, and with the places that follow from it."""
    width = 8 if is_big else 4
    empty = [np.zeros(level.counts.size, np.int64) for level in levels]
    size = len(_join(directories, empty, width))
    places = [None] * len(levels)
    for number in reversed(range(len(levels))):
        steps = levels[number].counts.ravel() + 2 * MARK
        ends = size + np.cumsum(steps)
        places[number] = ends - steps + MARK
        size = int(ends[-1])
    return _join(directories, places, width)


def _join(directories, places, width):
    """Return header, hints and directories, with offsets of ``width`` bytes."""
    start = 16 if width == 8 else 8
    first = _align(start + len(_HINTS))
    head = (struct.pack('<2sHHHQ', b'II', 43, 8, 0, first) if width == 8
            else struct.pack('<2sHI', b'II', 42, first))
    parts, at = [(head + _HINTS).ljust(first, b'\0')], first
    for number, (tags, place) in enumerate(zip(directories, places)):
        offsets = Tag.of(_LONG8 if width == 8 else _LONG, place)
        directory = _build_directory({**tags, TILE_OFFSETS: offsets}, at, width,
                                     is_last=number + 1 == len(directories))
        parts.append(directory)
        at += len(directory)
    return b''.join(parts)


def _build_directory(tags, at, width, is_last):
    """Return one directory that begins at a place in the file, and its long values."""
    count, entry, link = ('Q', '<HHQ', '<Q') if width == 8 else ('H', '<HHI', '<I')
    n_entry = struct.calcsize(entry) + width
    values_at = at + struct.calcsize('<' + count) + n_entry * len(tags) + width
    entries, values = [], b''
    for code in sorted(tags):
        tag = tags[code]
        if len(tag.data) <= width:
            value = tag.data.ljust(width, b'\0')
        else:
            values = values.ljust(_align(values_at + len(values)) - values_at, b'\0')
            value = struct.pack(link, values_at + len(values))
            values += tag.data
        entries.append(struct.pack(entry, code, tag.dtype, tag.count) + value)
    end = _align(values_at + len(values))
    values = values.ljust(end - values_at, b'\0')
    return b''.join([struct.pack('<' + count, len(tags)), *entries,
                     struct.pack(link, 0 if is_last else end), values])


def _align(place):
    """Return the next place that is a multiple of 8."""
    return -(-place // 8) * 8
