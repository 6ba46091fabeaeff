"""
Tell a complete Cloud-Optimized GeoTIFF from one that only looks so.

A write that was killed leaves a file that opens, reads and passes every
validator: its missing tiles have offset 0, which readers take for "nodata".
So the structure is checked tile by tile here. GDAL is only used to decode.
"""
from __future__ import annotations

import html
import itertools
import os
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CogError

_COMPRESSIONS = {
    1: 'NONE', 5: 'LZW', 7: 'JPEG', 8: 'DEFLATE', 32946: 'DEFLATE', 34887: 'LERC',
    34925: 'LZMA', 50000: 'ZSTD', 50001: 'WEBP', 50002: 'JXL', 52546: 'JXL'}
_GHOST_LINES = (
    b'LAYOUT=IFDS_BEFORE_DATA', b'BLOCK_ORDER=ROW_MAJOR', b'BLOCK_LEADER=SIZE_AS_UINT4',
    b'BLOCK_TRAILER=LAST_4_BYTES_REPEATED', b'KNOWN_INCOMPATIBLE_EDITION=NO')
_MAX_LEVELS = 200
_MAX_GAP = 4096  # bytes; a writer may align the first tile to a page of the disk
_MARK = 4  # bytes of the leader before a tile, and of the trailer behind it


@dataclass(frozen=True)
class CogReport:
    """
    What a complete file holds.

    Attributes:
        path (str): of the file.
        shape (tuple[int, int, int]): (H, W, C) in px.
        dtype (str): numpy name of the pixel type.
        n_tiles (int): stored tiles of all levels.
        overview_shapes (tuple[tuple[int, int], ...]): (h, w), fine to coarse.
        nbytes (int): size of the file.
        compression (str): GDAL's name of the codec.
        nodata (int | float | None): of all bands.
        channels (tuple[str | None, ...]): band descriptions.
    """

    path: str
    shape: tuple[int, int, int]
    dtype: str
    n_tiles: int
    overview_shapes: tuple[tuple[int, int], ...]
    nbytes: int
    compression: str
    nodata: int | float | None
    channels: tuple[str | None, ...]


@dataclass(frozen=True)
class Level:
    """
    One image file directory: the full image, an overview, or a mask.

    Attributes:
        position (int): offset of the directory in the file, bytes.
        end (int): offset behind it and its values, bytes.
        shape (tuple[int, int]): (h, w) in px.
        is_overview (bool): a smaller version of another level.
        is_mask (bool): a validity mask of another level.
        offsets, counts (ndarray): int64, where each tile starts and its bytes.
    """

    position: int
    end: int
    shape: tuple[int, int]
    is_overview: bool
    is_mask: bool
    offsets: np.ndarray
    counts: np.ndarray


def verify_cog(fpath, *, full=False):
    """
    Check that a file is a complete Cloud-Optimized GeoTIFF.

    Checks that the layout hints of GDAL are there and not revoked by a later
    edit; the full image comes first and then its overviews, fine to coarse;
    every tile of every level is stored, in row-major order, coarse levels
    first; the marks around the first and last tile of each level agree; and
    the last tile ends the file to the byte. Files with sparse (absent) tiles
    are refused, as those cannot be told from damage.

    Args:
        fpath (str | PathLike): file to check.
        full (bool): also check the marks of every tile and decode every pixel
            with GDAL. Reads the whole file.

    Returns:
        CogReport: what the file holds.

    Raises:
        CogError: if the file is anything else, with the first thing wrong.
        FileNotFoundError: if there is no such file.
        OSError: if the system cannot read it.

    Example:
        >>> from cocoseg.errors import CogError
        >>> from cocoseg.io.cog import write_cog
        >>> from cocoseg.io.verify import verify_cog
        >>> import numpy as np, os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     fpath = os.path.join(folder, 'a.tif')
        >>>     report = write_cog(fpath, np.ones((300, 200), np.uint8))
        >>>     assert verify_cog(fpath, full=True) == report
        >>>     os.truncate(fpath, report.nbytes - 1)
        >>>     try:
        >>>         verify_cog(fpath)
        >>>     except CogError as ex:
        >>>         print(str(ex).split(': ')[1])
        1 bytes are missing at the end; write it again
        >>> report.shape, report.overview_shapes, report.n_tiles
        ((300, 200, 1), ((150, 100),), 3)
    """
    path = os.fspath(fpath)
    with open(path, 'rb') as file:
        try:
            report, levels = _examine(path, file)
            for index, level in enumerate(levels):
                last = len(level.offsets) - 1
                tiles = range(last + 1) if full else {0, last}
                _check_marks(file, index, level, tiles)
            if full:
                _decode(path, len(report.overview_shapes))
        except _Damage as ex:
            raise CogError(
                f'{path} is not a complete Cloud-Optimized GeoTIFF: {ex}; '
                'write it again') from ex
    return report


class _Damage(Exception):
    """What is wrong with a file, for the message of a CogError."""


def _examine(path, file):
    """Check all that the header says; return the report and the levels."""
    nbytes = os.fstat(file.fileno()).st_size
    _check_ghost(file)
    import tifffile
    try:
        with tifffile.TiffFile(path) as tif:
            pages = list(itertools.islice(tif.pages, _MAX_LEVELS))
            levels = [_level_of(page) for page in pages]
            report = _report_of(path, pages[0], levels, nbytes)
    except _Damage:
        raise
    except Exception as ex:
        # Damaged bytes can make a parser fail in any way.
        raise _Damage(f'its structure is damaged ({ex})') from ex
    _check_order(levels)
    _check_tiles(levels, nbytes)
    return report, levels


def _check_ghost(file):
    """Check the magic and the layout hints right behind the header."""
    head = file.read(16)
    big = head[:4] in (b'II+\0', b'MM\0+')
    if not big and head[:4] not in (b'II*\0', b'MM\0*'):
        raise _Damage(f'it is no TIFF, it starts with {head[:4]!r}')
    file.seek(16 if big else 8)
    title = file.read(43)
    if not (title.startswith(b'GDAL_STRUCTURAL_METADATA_SIZE=') and title[30:36].isdigit()):
        raise _Damage('it has no layout hints (LAYOUT=IFDS_BEFORE_DATA) behind the header')
    lines = file.read(int(title[30:36])).split(b'\n')
    for line in _GHOST_LINES:
        if line not in lines:
            raise _Damage(f'its layout hints lack {line.decode()}, as after an edit in place')


def _level_of(page):
    """Describe one tifffile page."""
    shape = (page.imagelength, page.imagewidth)
    if not page.is_tiled:
        raise _Damage(f'the image of {shape} px has no tiles')
    rows = -(-page.imagelength // page.tilelength)
    columns = -(-page.imagewidth // page.tilewidth)
    planes = page.samplesperpixel if page.planarconfig == 2 else 1
    offsets = np.array(page.dataoffsets, dtype=np.int64)
    counts = np.array(page.databytecounts, dtype=np.int64)
    if not len(offsets) == len(counts) == rows * columns * planes > 0:
        raise _Damage(
            f'{len(offsets)} tile offsets and {len(counts)} tile sizes for '
            f'{rows} x {columns} x {planes} tiles')
    return Level(
        position=page.offset, shape=shape, offsets=offsets, counts=counts,
        end=max(tag.valueoffset + tag.valuebytecount for tag in page.tags),
        is_overview=bool(page.subfiletype & 1), is_mask=bool(page.subfiletype & 4))


def _check_order(levels):
    """Check that the full image comes first, then overviews, fine to coarse."""
    images = [level for level in levels if not level.is_mask]
    if levels[0].is_mask or levels[0].is_overview:
        raise _Damage('the first image directory is not the full image')
    positions = [level.position for level in levels]
    if positions != sorted(positions):
        raise _Damage(f'its image directories are out of order: {positions}')
    for finer, coarser in zip(images, images[1:]):
        smaller = (coarser.shape != finer.shape
                   and coarser.shape[0] <= finer.shape[0] and coarser.shape[1] <= finer.shape[1])
        if not (coarser.is_overview and smaller):
            raise _Damage(
                f'the image of {coarser.shape} px behind the one of {finer.shape} px '
                'is no overview of it')


def _check_tiles(levels, nbytes):
    """Check that every tile is stored, in order and without gaps."""
    for index, level in enumerate(levels):
        missing = int(((level.offsets <= 0) | (level.counts <= 0)).sum())
        if missing:
            raise _Damage(f'{missing} of {len(level.offsets)} tiles of level {index} are missing')
        outside = int(((level.offsets > nbytes) | (level.counts > nbytes)).sum())
        if outside:
            raise _Damage(f'{outside} tiles of level {index} are behind the end of the file')
        if (np.diff(level.offsets) <= 0).any():
            raise _Damage(f'the tiles of level {index} are not in row-major order')
    start = min(int(level.offsets[0]) for level in levels) - _MARK
    end = max(int((level.offsets + level.counts).max()) for level in levels) + _MARK
    if end != nbytes:
        raise _Damage(
            f'{end - nbytes} bytes are missing at the end' if end > nbytes
            else f'{nbytes - end} bytes follow the last tile')
    header_end = max(level.end for level in levels)
    if not header_end <= start <= header_end + _MAX_GAP:
        raise _Damage(
            f'its image directories end at byte {header_end} and its tiles start at {start}, '
            'as if a directory was lost')
    stored = sum(int(level.counts.sum()) + 2 * _MARK * len(level.counts) for level in levels)
    if stored != end - start:
        raise _Damage(f'its tiles take {stored} bytes of the {end - start} from first to last')
    images = [level for level in levels if not level.is_mask]
    for finer, coarser in zip(images, images[1:]):
        if coarser.offsets[-1] > finer.offsets[0]:
            raise _Damage(f'the tiles of {coarser.shape} px are behind those of {finer.shape} px')


def _check_marks(file, index, level, tiles):
    """Check the size before each tile and the repeated bytes behind it."""
    for tile in tiles:
        offset, count = int(level.offsets[tile]), int(level.counts[tile])
        file.seek(offset - _MARK)
        leader = file.read(_MARK)
        tail_length = min(count, _MARK)
        file.seek(offset + count - tail_length)
        tail = file.read(tail_length)
        trailer = file.read(_MARK)
        if leader != struct.pack('<I', count) or not (
                len(trailer) == _MARK and trailer.endswith(tail)):
            raise _Damage(f'the marks around tile {tile} of level {index} disagree with it')


def _decode(path, n_overviews):
    """Decode every pixel of every level with GDAL."""
    from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
    gdal = require_gdal()
    for index in range(-1, n_overviews):
        options = [] if index < 0 else [f'OVERVIEW_LEVEL={index}']
        try:
            with gdal_errors_as_exceptions(f'decoding level {index + 1}') as errors:
                dataset = gdal.OpenEx(
                    os.fsencode(path), gdal.OF_RASTER, allowed_drivers=['GTiff'],
                    open_options=options)
                errors.check('opening it', dataset)
                try:
                    _decode_dataset(dataset)
                finally:
                    close_dataset(dataset)
        except OSError as ex:
            raise _Damage(str(ex)) from ex


def _decode_dataset(dataset):
    """Read all pixels of one level, a row of tiles at a time."""
    step = dataset.GetRasterBand(1).GetBlockSize()[1]
    for y0 in range(0, dataset.RasterYSize, step):
        rows = min(step, dataset.RasterYSize - y0)
        if dataset.ReadAsArray(0, y0, dataset.RasterXSize, rows) is None:
            raise RuntimeError(f'rows {y0}..{y0 + rows} cannot be read')


def _report_of(path, page, levels, nbytes):
    """Collect what a file holds, from its first tifffile page."""
    dtype = np.dtype(page.dtype)
    codec = int(page.compression)
    return CogReport(
        path=path,
        shape=(page.imagelength, page.imagewidth, page.samplesperpixel),
        dtype=dtype.name,
        n_tiles=sum(len(level.offsets) for level in levels),
        overview_shapes=tuple(
            level.shape for level in levels if level.is_overview and not level.is_mask),
        nbytes=nbytes,
        compression=_COMPRESSIONS.get(codec, str(codec)),
        nodata=_nodata_of(page, dtype),
        channels=_channels_of(page),
    )


def _nodata_of(page, dtype):
    """Return the nodata value in GDAL's tag, an int where the pixels are."""
    text = page.tags.valueof('GDAL_NODATA')
    if text is None:
        return None
    value = float(text)
    return int(value) if dtype.kind in 'iu' and value.is_integer() else value


def _channels_of(page):
    """Return the band descriptions in GDAL's metadata."""
    names = [None] * page.samplesperpixel
    text = page.tags.valueof('GDAL_METADATA')
    for item in ElementTree.fromstring(text) if text else ():
        if item.get('role') == 'description':
            # GDAL escapes the text, and then the XML around it once more.
            names[int(item.get('sample'))] = html.unescape(item.text)
    return tuple(names)
