"""
Tell a complete Cloud-Optimized GeoTIFF from one that only looks so.

A write that was killed leaves a file that opens, reads and passes every
validator: its missing tiles have offset 0, which readers take for "nodata".
So every byte is accounted for here: those of the header by its directories,
all others by tiles, of which each must say its own size. That needs the header
and 12 bytes per tile. GDAL is only used to decode.
"""
from __future__ import annotations

import html
import os
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import CogError
from cocoseg.io.tiff_read import Damage, FileBytes, read_directories, read_layout
from cocoseg.protocols import PathLike

_COMPRESSIONS = {
    1: 'NONE', 5: 'LZW', 7: 'JPEG', 8: 'DEFLATE', 32773: 'PACKBITS', 32946: 'DEFLATE',
    34887: 'LERC', 34925: 'LZMA', 50000: 'ZSTD', 50001: 'WEBP', 50002: 'JXL', 52546: 'JXL'}
_GHOST_LINES = (
    b'LAYOUT=IFDS_BEFORE_DATA', b'BLOCK_ORDER=ROW_MAJOR', b'BLOCK_LEADER=SIZE_AS_UINT4',
    b'BLOCK_TRAILER=LAST_4_BYTES_REPEATED', b'KNOWN_INCOMPATIBLE_EDITION=NO')
# Planes of a tile one behind the other, not whole planes.
_TILE_BY_TILE = b'INTERLEAVE=TILE'
_GHOST_TITLE = 43  # bytes of the first line, which says the size of the others
_MAX_GAP = 4096  # bytes; a writer may align the first tile to a page of the disk
_MARKS_AT_ONCE = 4096
_MARK = 4  # bytes of the leader before a tile, and of the trailer behind it
_KINDS = {1: 'uint', 2: 'int', 3: 'float', 4: 'uint', 5: 'complex_int', 6: 'complex'}
_FLOAT_BITS = {16: 16, 24: 32, 32: 32, 64: 64}
_MAX_SIDE = 2 ** 31 - 1  # px
_MAX_SAMPLES = 2 ** 16 - 1


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
        shape (tuple[int, int]): (h, w) in px.
        n_samples (int): bands.
        n_planes (int): tiles per place: the bands if each has its own.
        dtype (str): numpy name of the pixel type.
        codec (int): number of the compression.
        nodata (int | float | None): of all bands.
        is_overview (bool): a smaller version of another level.
        is_mask (bool): a validity mask of another level.
        tile_nbytes (int): of the pixels of one tile, decoded.
        offsets, counts (ndarray): int64, shape (n,), where each tile starts
            and its bytes, row-major, plane by plane.
    """

    shape: tuple[int, int]
    n_samples: int
    n_planes: int
    dtype: str
    codec: int
    nodata: int | float | None
    is_overview: bool
    is_mask: bool
    tile_nbytes: int
    offsets: np.ndarray
    counts: np.ndarray


def verify_cog(fpath: PathLike, *, full: bool = False) -> CogReport:
    """
    Check that a file is a complete Cloud-Optimized GeoTIFF.

    Checks that the layout hints of GDAL are there and not revoked by a later
    edit; the full image comes first and then its overviews, fine to coarse;
    every tile of every level is stored, in row-major order, coarse levels
    first; the size before each tile and the repeated bytes behind it agree;
    and that these are all bytes of the file, from the first to the last. Files
    with sparse (absent) tiles are refused, as those cannot be told from damage.

    Reads the header and 12 bytes per tile. Damage to the pixels of a tile takes
    ``full`` to find, and a codec that notices: DEFLATE mostly does, ZSTD and
    LZW store no checksum. Values that the layout does not depend on (such as a
    coordinate) are not protected at all. That no byte has changed is only told
    by a checksum of the file, see :func:`cocoseg.coco.audit.audit_manifest`.

    Args:
        fpath (str | PathLike): file to check. It may be anything at all.
        full (bool): also decode every pixel with GDAL. Reads the whole file.

    Returns:
        CogReport: what the file holds.

    Raises:
        CogError: if the file is anything else, with the first thing wrong.
        FileNotFoundError: if there is no such file.
        OSError: if the system cannot read it.
        MissingDependencyError: without GDAL, if ``full``.

    Thread-safety: may be called from any thread.

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
    # Opening a pipe must not wait for somebody who writes to it.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0))
    try:
        report, has_mask = _examine(path, FileBytes(descriptor))
        if full:
            _decode(path, len(report.overview_shapes), has_mask)
    except Damage as ex:
        raise CogError(
            f'{path} is not a complete Cloud-Optimized GeoTIFF: {ex}; write it again') from ex
    finally:
        os.close(descriptor)
    return report


def _examine(path, source):
    """Check all but the pixels; return the report, and whether there are masks."""
    layout = read_layout(source)
    spans, lines = _check_ghost(source, layout)
    directories = read_directories(source, layout)
    levels = [_level_of(directory) for directory in directories]
    _check_kin(levels)
    for index, level in enumerate(levels):
        _check_tiles(index, level, source.nbytes, _TILE_BY_TILE in lines)
    offsets, counts, owners = _check_data(levels, source.nbytes)
    spans += [span for directory in directories for span in directory.spans]
    _check_header(source, spans, int(offsets[0]) - _MARK)
    _check_marks(source, offsets, counts, owners)
    report = _report_of(path, directories[0], levels, source.nbytes)
    return report, any(level.is_mask for level in levels)


def _check_ghost(source, layout):
    """Check the layout hints right behind the header; return their place and lines."""
    start = layout.nbytes
    title = source.read(start, min(_GHOST_TITLE, source.nbytes - start))
    if not (title.startswith(b'GDAL_STRUCTURAL_METADATA_SIZE=') and title[30:36].isdigit()
            and title[36:] == b' bytes\n'):
        raise Damage('it has no layout hints (LAYOUT=IFDS_BEFORE_DATA) behind the header')
    length = int(title[30:36])
    lines = source.read(start + _GHOST_TITLE, length).split(b'\n')
    for line in _GHOST_LINES:
        if line not in lines:
            raise Damage(f'its layout hints lack {line.decode()}, as after an edit in place')
    return [(0, start), (start, start + _GHOST_TITLE + length)], lines


def _level_of(directory):
    """Describe one directory, with the places of its tiles."""
    read = directory.read_number
    shape = (read(257), read(256))
    if not {322, 323, 324, 325} <= directory.fields.keys():
        raise Damage(f'the image of {shape} px has no tiles')
    tile_height, tile_width = read(323), read(322)
    n_samples, planar = read(277, 1), read(284, 1)
    if not (all(0 < side <= _MAX_SIDE for side in (*shape, tile_height, tile_width))
            and tile_height % 16 == tile_width % 16 == 0
            and 0 < n_samples <= _MAX_SAMPLES and planar in (1, 2)):
        raise Damage(f'an image cannot have {shape} px of {n_samples} bands (layout {planar}) in '
                     f'tiles of {(tile_height, tile_width)} px')
    n_planes = n_samples if planar == 2 else 1
    n_tiles = -(-shape[0] // tile_height) * -(-shape[1] // tile_width) * n_planes
    n_found = tuple(directory.fields[tag].count for tag in (324, 325))
    if n_found != (n_tiles, n_tiles):
        raise Damage(f'the image of {shape} px has {n_tiles} tiles, but {n_found[0]} tile offsets '
                     f'and {n_found[1]} tile sizes')
    bits = _read_same(directory, 258, n_samples)
    dtype = _name_dtype(_KINDS.get(_read_same(directory, 339, n_samples)), bits)
    codec, subfile = read(259, 1), read(254, 0)
    _check_codec(codec, read(317, 1), dtype)
    row_bits = tile_width * (n_samples // n_planes) * bits
    return Level(
        shape=shape, n_samples=n_samples, n_planes=n_planes, dtype=dtype, codec=codec,
        nodata=_nodata_of(directory.read_text(42113), dtype),
        is_overview=bool(subfile & 1), is_mask=bool(subfile & 4),
        tile_nbytes=tile_height * (-(-row_bits // 8)),
        offsets=directory.read_numbers(324, n_tiles), counts=directory.read_numbers(325, n_tiles))


def _read_same(directory, tag, n_samples):
    """Return a number that is given once per band, 1 by default, and the same for all."""
    values = directory.read_numbers(tag, n_samples).tolist() or [1]
    if len(set(values)) > 1 or len(values) not in (1, n_samples):
        raise Damage(f'its bands differ in their type: {len(values)} values {sorted(set(values))} '
                     f'in field {tag}, for {n_samples} bands')
    return values[0]


def _name_dtype(kind, bits):
    """Return the numpy name of the type that holds pixels of some bits."""
    holder = next((size for size in (8, 16, 32, 64) if size >= bits), None)
    if kind == 'uint' and bits > 0 and holder:
        return f'uint{holder}'
    if kind == 'int' and bits == holder:
        return f'int{bits}'
    if kind == 'float' and bits in _FLOAT_BITS:
        return f'float{_FLOAT_BITS[bits]}'
    if (kind == 'complex' and bits in (64, 128)) or (kind == 'complex_int' and bits in (32, 64)):
        return f'{kind}{bits}'
    raise Damage(f'its pixels are of no known type: {bits} bits of {kind or "an unknown format"}')


def _check_codec(codec, predictor, dtype):
    """Check that the compression is known, and can be of such pixels."""
    if codec not in _COMPRESSIONS:
        raise Damage(f'its compression {codec} is unknown')
    if predictor not in ((1, 2, 3) if dtype.startswith('float') else (1, 2)):
        raise Damage(f'its predictor {predictor} is none of {dtype}')


def _check_kin(levels):
    """Check that the full image comes first, then overviews, fine to coarse."""
    images = [level for level in levels if not level.is_mask]
    first = levels[0]
    if first.is_mask or first.is_overview:
        raise Damage('the first image directory is not the full image')
    for finer, coarser in zip(images, images[1:]):
        smaller = (coarser.shape != finer.shape
                   and coarser.shape[0] <= finer.shape[0] and coarser.shape[1] <= finer.shape[1])
        if not (coarser.is_overview and smaller and _is_scaled(first.shape, coarser.shape)):
            raise Damage(
                f'the image of {coarser.shape} px behind the one of {finer.shape} px '
                'is no overview of it')
        if ((coarser.n_samples, coarser.n_planes, coarser.dtype)
                != (first.n_samples, first.n_planes, first.dtype)):
            raise Damage(f'the overview of {coarser.shape} px has other bands than the image')
        if coarser.nodata is not None and str(coarser.nodata) != str(first.nodata):
            raise Damage(f'the overview of {coarser.shape} px has the nodata value '
                         f'{coarser.nodata}, the image {first.nodata}')
    shapes = [level.shape for level in levels if level.is_mask]
    if len(set(shapes)) < len(shapes) or not set(shapes) <= {level.shape for level in images}:
        raise Damage(f'its masks of {shapes} px are not those of its images')


def _is_scaled(full, part):
    """Return True if one factor makes the full shape the smaller one, but for a pixel."""
    low = max(size / (small + 1) for size, small in zip(full, part))
    high = min(size / (small - 1) if small > 1 else np.inf for size, small in zip(full, part))
    return low <= high


def _check_tiles(index, level, nbytes, is_tile_by_tile):
    """Check that every tile of a level is stored, in order."""
    offsets, counts = level.offsets, level.counts
    missing = int(((offsets <= 0) | (counts <= 0)).sum())
    if missing:
        raise Damage(f'{missing} of {len(offsets)} tiles of level {index} are missing')
    outside = int(((offsets > nbytes) | (counts > nbytes)).sum())
    if outside:
        raise Damage(f'{outside} tiles of level {index} are behind the end of the file')
    planes = offsets.reshape(level.n_planes, -1)
    if (np.diff((planes.T if is_tile_by_tile else planes).ravel()) <= 0).any():
        raise Damage(f'the tiles of level {index} are not in row-major order')
    if level.codec == 1 and (counts != level.tile_nbytes).any():
        raise Damage(f'the tiles of level {index} are not compressed, and take other than '
                     f'{level.tile_nbytes} bytes')


def _check_data(levels, nbytes):
    """
    Check that tiles are all that there is from the first of them to the end.

    Returns:
        tuple[ndarray, ndarray, ndarray]: int64, shape (n,), in the order of
        the file: offset and bytes of every tile, and its level.
    """
    offsets = np.concatenate([level.offsets for level in levels])
    counts = np.concatenate([level.counts for level in levels])
    owners = np.repeat(np.arange(len(levels)), [len(level.offsets) for level in levels])
    order = np.argsort(offsets, kind='stable')
    offsets, counts, owners = offsets[order], counts[order], owners[order]
    ends = offsets + counts + _MARK
    end = int(ends.max())
    if end != nbytes:
        raise Damage(
            f'{end - nbytes} bytes are missing at the end' if end > nbytes
            else f'{nbytes - end} bytes follow the last tile')
    gaps = offsets[1:] - _MARK - ends[:-1]
    wrong = np.flatnonzero(gaps)
    if len(wrong):
        k = int(wrong[0])
        raise Damage(
            f'a tile of level {owners[k]} at byte {offsets[k]} overlaps one of level '
            f'{owners[k + 1]}' if gaps[k] < 0 else
            f'{gaps[k]} bytes at {ends[k]} belong to no tile, as after an edit in place')
    images = [level for level in levels if not level.is_mask]
    for finer, coarser in zip(images, images[1:]):
        if coarser.offsets.max() > finer.offsets.min():
            raise Damage(f'the tiles of {coarser.shape} px are behind those of {finer.shape} px')
    return offsets, counts, owners


def _check_header(source, spans, start):
    """
    Check that directories are all that there is before the first tile.

    What lies between may only be zero bytes, for alignment: a directory that
    is in no chain would be there.
    """
    last = 0
    for begin, end in [*sorted(spans), (start, start)]:
        if begin < last:
            raise Damage(f'parts of its header overlap at byte {begin}')
        if begin - last > _MAX_GAP or source.read(last, begin - last).strip(b'\0'):
            raise Damage(f'bytes {last} to {begin} belong to no part of it, as if a directory '
                         'was lost')
        last = end


def _check_marks(source, offsets, counts, owners):
    """Check the size before each tile and the repeated bytes behind it."""
    next_leader = source.read(int(offsets[0]) - _MARK, _MARK)
    # Not all at a time: millions of small pieces take more memory than the file.
    for start in range(0, len(offsets), _MARKS_AT_ONCE):
        part = slice(start, start + _MARKS_AT_ONCE)
        sizes = counts[part]
        # No gaps: the end of a tile, its trailer and the next leader are one piece.
        pieces = source.read_each((offsets[part] + sizes - _MARK).tolist(), 3 * _MARK)
        marks = next_leader + b''.join(pieces)
        if len(marks) < 3 * _MARK * len(sizes):
            raise Damage('it became shorter while it was read')
        marks, next_leader = marks[:3 * _MARK * len(sizes)], marks[3 * _MARK * len(sizes):]
        leaders, tails, trailers = np.frombuffer(marks, '<u4').reshape(-1, 3).T
        # A tile of less than 4 bytes is filled up with zeros.
        tails = tails >> (8 * np.maximum(_MARK - sizes, 0)).astype(np.uint32)
        wrong = np.flatnonzero((leaders != sizes) | (trailers != tails))
        if len(wrong):
            number = start + wrong[0]
            index = int((owners[:number] == owners[number]).sum())
            raise Damage(f'the marks around tile {index} of level {owners[number]} disagree '
                         'with it')


def _decode(path, n_overviews, has_mask):
    """Decode every pixel of every level, and of its mask, with GDAL."""
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
                    _decode_raster(dataset, dataset)
                    if has_mask:
                        _decode_raster(dataset, dataset.GetRasterBand(1).GetMaskBand())
                finally:
                    close_dataset(dataset)
        except OSError as ex:
            raise Damage(str(ex)) from ex


def _decode_raster(dataset, raster):
    """Read all pixels of a dataset, or of one of its bands, a row of tiles at a time."""
    step = dataset.GetRasterBand(1).GetBlockSize()[1]
    for y0 in range(0, dataset.RasterYSize, step):
        rows = min(step, dataset.RasterYSize - y0)
        if raster.ReadAsArray(0, y0, dataset.RasterXSize, rows) is None:
            raise RuntimeError(f'rows {y0}..{y0 + rows} cannot be read')


def _report_of(path, directory, levels, nbytes):
    """Collect what a file holds, from its first directory and all levels."""
    first = levels[0]
    return CogReport(
        path=path,
        shape=(*first.shape, first.n_samples),
        dtype=first.dtype,
        n_tiles=sum(len(level.offsets) for level in levels),
        overview_shapes=tuple(
            level.shape for level in levels if level.is_overview and not level.is_mask),
        nbytes=nbytes,
        compression=_COMPRESSIONS[first.codec],
        nodata=first.nodata,
        channels=_channels_of(directory.read_text(42112), first.n_samples),
    )


def _nodata_of(text, dtype):
    """Return the nodata value in GDAL's tag, an int where the pixels are."""
    if text is None:
        return None
    is_whole = 'int' in dtype
    try:
        return int(text) if is_whole else float(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        raise Damage(f'its nodata value {text[:99]!r} is no number') from None
    return int(value) if is_whole and value.is_integer() else value


def _channels_of(text, n_samples):
    """Return the band descriptions in GDAL's metadata."""
    names = [None] * n_samples
    # GDAL declares no entities; expanding those of somebody else has no end.
    if text is not None and '<!' in text:
        raise Damage('its metadata declares entities')
    try:
        for item in ElementTree.fromstring(text) if text else ():
            if item.get('role') == 'description':
                index = int(item.get('sample'))
                if not 0 <= index < n_samples:
                    raise ValueError(f'there is no band {index}')
                # GDAL escapes the text, and then the XML around it once more.
                names[index] = html.unescape(item.text or '')
    except (ElementTree.ParseError, TypeError, ValueError) as ex:
        raise Damage(f'its metadata is damaged ({ex})') from ex
    return tuple(names)
