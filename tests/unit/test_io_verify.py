"""
Verification: complete files pass, damaged ones never do.

Most files come from our writer and from GDAL. Those that neither can write (of
the other byte order, with planes of their own, with tiles of a byte) are built
here byte by byte; nothing decodes them.
"""
import itertools
import os
import shutil
import struct
import tracemalloc

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoseg.errors import CogError
from cocoseg.io.cog import write_cog
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.images import write_tif
from cocoseg.io.verify import verify_cog

gdal = require_gdal()


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A complete file of three levels, about 300 kB."""
    fpath = tmp_path_factory.mktemp('good') / 'good.tif'
    data = np.random.default_rng(0).integers(0, 2 ** 15, (400, 300)).astype(np.int16)
    write_cog(fpath, data, nodata=-9999, blocksize=128)
    return fpath


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    """A complete file of two levels, about 2 kB, with all kinds of fields."""
    fpath = tmp_path_factory.mktemp('small') / 'small.tif'
    data = np.full((100, 90, 2), 7, np.int16)
    write_cog(fpath, data, nodata=-9999, blocksize=64, channels='a|b', crs=32633,
              transform=(5e5, 10, 0, 4e6, 0, -10), scale=0.5)
    return fpath


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copy(good, tmp_path / 'copy.tif')


def gdal_cog(fpath, data, options=(), mask=None):
    """Write a COG with GDAL alone."""
    source = gdal.GetDriverByName('MEM').Create(
        '', data.shape[1], data.shape[0], 1, gdal.GDT_Int16)
    source.GetRasterBand(1).WriteArray(data)
    if mask is not None:
        source.CreateMaskBand(gdal.GMF_PER_DATASET)
        source.GetRasterBand(1).GetMaskBand().WriteArray(mask)
    with gdal_errors_as_exceptions():
        close_dataset(gdal.GetDriverByName('COG').CreateCopy(str(fpath), source, 0, list(options)))


GHOST = (b'LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n'
         b'BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n ')
SHAPES = ((40, 50), (20, 25))


def verify(folder, content):
    """Return the report of a file of these bytes."""
    (folder / 'a.tif').write_bytes(content)
    return verify_cog(folder / 'a.tif')


def refuse(folder, content, match=None):
    """Expect an error for a file of these bytes."""
    with pytest.raises(CogError, match=match):
        verify(folder, content)


def gtiff_cog(fpath, data, options=()):
    """Write (B, H, W) with overviews by GDAL's GeoTIFF driver, as kwimage does."""
    n_bands, height, width = data.shape
    source = gdal.GetDriverByName('MEM').Create('', width, height, n_bands, gdal.GDT_Int16)
    source.WriteArray(data)
    with gdal_errors_as_exceptions():
        source.BuildOverviews('NEAREST', [2, 4])
        close_dataset(gdal.GetDriverByName('GTiff').CreateCopy(str(fpath), source, 0, [
            'COPY_SRC_OVERVIEWS=YES', 'TILED=YES', 'BLOCKXSIZE=128', 'BLOCKYSIZE=128', *options]))


def build_directory(order, big, position, fields, following):
    """Return one directory; fields are {tag: (type number, values)}."""
    word, n_word = ('Q', 8) if big else ('I', 4)
    entries, extra = [], b''
    end = position + (8 if big else 2) + (20 if big else 12) * len(fields) + n_word
    for tag, (kind, values) in sorted(fields.items()):
        code = {2: 'B', 3: 'H', 4: 'I', 16: 'Q'}[kind]
        data = struct.pack(f'{order}{len(values)}{code}', *values)
        if len(data) > n_word:
            place = struct.pack(order + word, end + len(extra))
            extra += data
        else:
            place = data.ljust(n_word, b'\0')
        entries.append(struct.pack(f'{order}HH{word}', tag, kind, len(values)) + place)
    start = struct.pack(order + ('Q' if big else 'H'), len(fields))
    following = end + len(extra) if following else 0
    return start + b''.join(entries) + struct.pack(order + word, following) + extra


def build_cog(shapes=SHAPES, *, order='<', big=False, n_bands=1, planar=1, ghost=GHOST,
              sizes=(5, 12), by_tile=False, change=None, fields=(), gap=b'', fine_first=False):
    """
    Return the bytes of a COG with tiles of 16 px and some bytes each.

    ``change(offsets, counts)`` may change what the directories say of the
    tiles, a list of each per level; the tiles stay. ``fields`` are changes of
    the fields of each level.
    """
    n_planes = n_bands if planar == 2 else 1
    n_tiles = [n_planes * -(-height // 16) * -(-width // 16) for height, width in shapes]
    counts = [[size for size, _ in zip(itertools.cycle(sizes), range(n))] for n in n_tiles]
    head = b'GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n' % len(ghost) + ghost
    head += b'\0' * (len(head) % 2)
    first = (16 if big else 8) + len(head)
    head = ((b'II' if order == '<' else b'MM')
            + (struct.pack(f'{order}HHHQ', 43, 8, 0, first) if big
               else struct.pack(f'{order}HI', 42, first)) + head)

    def build_header(offsets, counts):
        header = head
        for k, (height, width) in enumerate(shapes):
            more = fields[k] if k < len(fields) else {}
            header += build_directory(order, big, len(header), {
                254: (4, [min(k, 1)]), 256: (3, [width]), 257: (3, [height]),
                258: (3, [8] * n_bands), 259: (3, [5]), 262: (3, [1]), 277: (3, [n_bands]),
                284: (3, [planar]), 322: (3, [16]), 323: (3, [16]),
                324: (16 if big else 4, offsets[k]), 325: (4, counts[k]),
                339: (3, [1] * n_bands), **more}, following=k + 1 < len(shapes))
        return header + gap
    data = b''
    start = len(build_header(counts, counts))
    offsets = [[0] * n for n in n_tiles]
    for k in sorted(range(len(shapes)), reverse=not fine_first):
        places = np.arange(n_tiles[k]).reshape(n_planes, -1)
        for i in (places.T if by_tile else places).ravel():
            offsets[k][i] = start + len(data) + 4
            tile = bytes((k + i + b) % 255 + 1 for b in range(counts[k][i]))
            data += struct.pack('<I', len(tile)) + tile + tile[-4:].ljust(4, b'\0')
    if change is not None:
        change(offsets, counts)
    return build_header(offsets, counts) + data


def test_report(good):
    report = verify_cog(good, full=True)
    assert report.shape == (400, 300, 1) and report.dtype == 'int16'
    assert report.overview_shapes == ((200, 150), (100, 75))
    assert report.n_tiles == 12 + 4 + 1
    assert report.nbytes == os.path.getsize(good)
    assert report.compression == 'ZSTD' and report.nodata == -9999
    assert report.channels == (None,)


@pytest.mark.parametrize('options', [
    ['BIGTIFF=YES'], ['BIGTIFF=NO'], ['COMPRESS=DEFLATE'], ['COMPRESS=NONE', 'BLOCKSIZE=128'],
    ['OVERVIEWS=NONE'], ['NUM_THREADS=2', 'BLOCKSIZE=128']])
def test_files_of_gdal_pass(tmp_path, options):
    data = np.random.default_rng(0).integers(0, 2 ** 15, (600, 530)).astype(np.int16)
    gdal_cog(tmp_path / 'a.tif', data, options)
    verify_cog(tmp_path / 'a.tif', full=True)
    head = (tmp_path / 'a.tif').read_bytes()[:4]
    assert head == (b'II+\0' if 'BIGTIFF=YES' in options else b'II*\0')


def test_files_with_a_mask_pass(tmp_path):
    data = np.ones((600, 530), np.int16)
    gdal_cog(tmp_path / 'a.tif', data, ['BLOCKSIZE=128'], mask=np.eye(600, 530, dtype='u1') * 255)
    report = verify_cog(tmp_path / 'a.tif', full=True)
    assert report.overview_shapes == ((300, 265), (150, 132), (75, 66))
    with open(tmp_path / 'a.tif', 'r+b') as file:
        file.truncate(report.nbytes - 1)
    with pytest.raises(CogError):
        verify_cog(tmp_path / 'a.tif')


@pytest.mark.parametrize('level', [0, 2])
def test_full_decodes_masks(tmp_path, level):
    mask = np.random.default_rng(0).integers(0, 2, (600, 530)).astype(np.uint8) * 255
    gdal_cog(tmp_path / 'a.tif', np.ones((600, 530), np.int16), ['BLOCKSIZE=128'], mask=mask)
    with tifffile.TiffFile(tmp_path / 'a.tif') as tif:
        masks = [page for page in tif.pages if page.subfiletype & 4]
        offset, count = masks[level].dataoffsets[1], masks[level].databytecounts[1]
    with open(tmp_path / 'a.tif', 'r+b') as file:
        file.seek(offset + 2)
        file.write(b'\xff' * (count - 8))
    verify_cog(tmp_path / 'a.tif')
    with pytest.raises(CogError, match=f'decoding level {level}'):
        verify_cog(tmp_path / 'a.tif', full=True)


@pytest.mark.parametrize('options', [
    ['ENDIANNESS=BIG'], ['ENDIANNESS=BIG', 'BIGTIFF=YES'], ['BIGTIFF=YES', 'COMPRESS=LZW']])
def test_files_of_the_geotiff_driver_pass(tmp_path, options):
    """What kwimage writes: layout hints, but not by GDAL's COG driver."""
    data = np.random.default_rng(0).integers(0, 99, (3, 400, 300)).astype(np.int16)
    gtiff_cog(tmp_path / 'a.tif', data, options)
    report = verify_cog(tmp_path / 'a.tif', full=True)
    assert (report.shape, report.dtype) == ((400, 300, 3), 'int16')
    assert (tmp_path / 'a.tif').read_bytes()[:2] == (b'MM' if 'BIG' in options[0][-3:] else b'II')


LAYOUTS = [dict(order=order, big=big, n_bands=n_bands, planar=planar)
           for order in '<>' for big in (False, True)
           for n_bands, planar in ((1, 1), (3, 1), (3, 2), (1000, 1), (1000, 2))]


@pytest.mark.parametrize('options', LAYOUTS, ids=str)
def test_layouts(tmp_path, options):
    """Both byte orders and sizes of offsets, bands in one tile or in their own."""
    content = build_cog(**options)
    report = verify(tmp_path, content)
    n_planes = options['n_bands'] if options['planar'] == 2 else 1
    assert report.n_tiles == n_planes * (3 * 4 + 2 * 2)
    assert report.shape == (40, 50, options['n_bands']) and report.dtype == 'uint8'
    assert report.overview_shapes == ((20, 25),)
    for k in (1, 2, len(content) // 2):
        refuse(tmp_path, content[:-k])


def test_tiles_one_behind_the_other_in_each_plane(tmp_path):
    """GDAL says so in a hint if the planes of a tile follow each other."""
    ghost = GHOST.replace(b'KNOWN', b'INTERLEAVE=TILE\nKNOWN')
    content = build_cog(n_bands=3, planar=2, by_tile=True, ghost=ghost)
    assert verify(tmp_path, content).n_tiles == 48
    refuse(tmp_path, content.replace(b'INTERLEAVE=TILE', b'INTERLEAVE=BAND'), 'row-major')
    refuse(tmp_path, build_cog(n_bands=3, planar=2, ghost=ghost), 'row-major')


@pytest.mark.parametrize('sizes', [(1,), (2, 3), (4, 1, 5)])
def test_tiles_of_a_few_bytes(tmp_path, sizes):
    """Shorter than a trailer, which zeros fill up; the piece before is the leader."""
    content = build_cog(sizes=sizes)
    assert verify(tmp_path, content).n_tiles == 16
    for position in range(1, 9):
        changed = bytearray(content)
        changed[-position] ^= 1
        refuse(tmp_path, bytes(changed), 'marks around tile 11 of level 0')


def test_truncation(copy):
    nbytes = os.path.getsize(copy)
    steps = [1, 2, 3, 4, 5, 8, 9, 100, 1000, 4096, 65536, 200_000, nbytes - 17, nbytes - 1, nbytes]
    for cut in steps:
        os.truncate(copy, nbytes - cut)
        with pytest.raises(CogError) as caught:
            verify_cog(copy)
        assert str(copy) in str(caught.value)


def test_every_truncation(small, tmp_path):
    content = small.read_bytes()
    assert verify(tmp_path, content).n_tiles == 5
    for nbytes in range(len(content)):
        os.truncate(tmp_path / 'a.tif', 0)
        refuse(tmp_path, content[:nbytes])


@pytest.mark.parametrize('extra', [b'\0', b'\0' * 4096])
def test_trailing_bytes(copy, extra):
    with open(copy, 'ab') as file:
        file.write(extra)
    with pytest.raises(CogError, match=f'{len(extra)} bytes follow'):
        verify_cog(copy)


@pytest.mark.parametrize('tag', ['TileOffsets', 'TileByteCounts'])
def test_every_missing_tile(small, tmp_path, tag):
    content = small.read_bytes()
    with tifffile.TiffFile(small) as tif:
        found = [(level, page.tags[tag]) for level, page in enumerate(tif.pages)]
    n_tiles = 0
    for level, entry in found:
        width = entry.valuebytecount // entry.count
        for place in range(entry.valueoffset, entry.valueoffset + entry.valuebytecount, width):
            changed = content[:place] + b'\0' * width + content[place + width:]
            refuse(tmp_path, changed, f'1 of {entry.count} tiles of level {level} are missing')
            n_tiles += 1
    assert n_tiles == verify_cog(small).n_tiles


def test_sparse_file(tmp_path):
    """What a killed GDAL leaves: it opens, reads, and lacks all its tiles."""
    data = np.zeros((600, 530), np.int16)
    gdal_cog(tmp_path / 'a.tif', data, ['SPARSE_OK=YES', 'BLOCKSIZE=128'])
    gtiff_cog(tmp_path / 'b.tif', data[None], ['SPARSE_OK=YES'])
    for name in 'ab':
        assert gdal.Open(str(tmp_path / f'{name}.tif')).ReadAsArray() is not None
        with pytest.raises(CogError, match='25 of 25 tiles of level 0 are missing'):
            verify_cog(tmp_path / f'{name}.tif')


@pytest.mark.parametrize('edit', ['grow', 'shrink', 'describe'])
def test_edited_file(tmp_path, edit):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 9999, (400, 300)).astype(np.int16)
    zeros = np.zeros_like(noise)
    write_cog(tmp_path / 'a.tif', noise if edit == 'shrink' else zeros, blocksize=128)
    with gdal_errors_as_exceptions():
        dataset = gdal.OpenEx(str(tmp_path / 'a.tif'), gdal.OF_UPDATE)
        if edit == 'describe':
            dataset.GetRasterBand(1).SetDescription('new')
        else:
            dataset.GetRasterBand(1).WriteArray((noise if edit == 'grow' else zeros)[:50, :50])
        close_dataset(dataset)
    with pytest.raises(CogError, match='edit in place'):
        verify_cog(tmp_path / 'a.tif')


def flip(fpath, position):
    """Change one byte."""
    with open(fpath, 'r+b') as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xff]))


def test_marks_of_every_tile(good, copy):
    with tifffile.TiffFile(good) as tif:
        tiles = [(level, k, *place) for level, page in enumerate(tif.pages)
                 for k, place in enumerate(zip(page.dataoffsets, page.databytecounts))]
    assert len(tiles) == 17
    for level, k, offset, count in tiles:
        for position in (offset - 4, offset - 1, offset + count - 1, offset + count,
                         offset + count + 3):
            flip(copy, position)
            with pytest.raises(CogError, match=f'marks around tile {k} of level {level}'):
                verify_cog(copy)
            flip(copy, position)
    verify_cog(copy)


def test_quick_check_does_not_read_pixels(good, copy):
    with tifffile.TiffFile(good) as tif:
        offset = tif.pages[0].dataoffsets[4]
    flip(copy, offset + 20)
    assert verify_cog(copy).n_tiles == 17


def test_full_decodes(tmp_path):
    fpath = tmp_path / 'a.tif'
    data = np.random.default_rng(0).integers(0, 9, (300, 300)).astype(np.uint8)
    for level in (0, 1):
        write_cog(fpath, data, compress='deflate', blocksize=128)
        with tifffile.TiffFile(fpath) as tif:
            offset = tif.pages[level].dataoffsets[1]
        with open(fpath, 'r+b') as file:
            file.seek(offset + 100)
            file.write(b'\xff' * 200)
        verify_cog(fpath)
        with pytest.raises(CogError, match=f'decoding level {level}'):
            verify_cog(fpath, full=True)


@pytest.mark.parametrize('content', [
    b'', b'I', b'II*\0', b'II+\0', b'not a tiff at all, but long enough for a header' * 9,
    b'II*\0\x08\0\0\0' + b'\xff' * 500, b'\0' * 4096, b'\x89PNG\r\n\x1a\n' + b'\0' * 99,
    b'II*\0\xc0\0\0\0GDAL_STRUCTURAL_METADATA_SIZE=000140 bytes\n' + b'LAYOUT=' * 50])
def test_other_files(tmp_path, content):
    (tmp_path / 'a.tif').write_bytes(content)
    with pytest.raises(CogError):
        verify_cog(tmp_path / 'a.tif')


def test_plain_tiffs(tmp_path):
    write_tif(tmp_path / 'tiled.tif', np.zeros((300, 300), np.uint8))
    tifffile.imwrite(tmp_path / 'striped.tif', np.zeros((300, 300), np.uint8))
    with gdal_errors_as_exceptions():
        dataset = gdal.GetDriverByName('GTiff').Create(str(tmp_path / 'empty.tif'), 300, 300, 1)
        close_dataset(dataset)
    for name in ('tiled', 'striped', 'empty'):
        with pytest.raises(CogError, match='layout hints'):
            verify_cog(tmp_path / f'{name}.tif')


def test_missing_path_and_other_things(tmp_path):
    with pytest.raises(FileNotFoundError):
        verify_cog(tmp_path / 'missing.tif')
    with pytest.raises(CogError, match='it is a folder'):
        verify_cog(tmp_path)
    (tmp_path / 'empty.tif').touch()
    with pytest.raises(CogError, match='it is empty'):
        verify_cog(tmp_path / 'empty.tif')
    os.mkfifo(tmp_path / 'pipe')
    with pytest.raises(CogError, match='it is no regular file'):
        verify_cog(tmp_path / 'pipe')


def test_revoked_hints(tmp_path):
    """GDAL writes this over the hints when it edits a file."""
    refuse(tmp_path, build_cog(ghost=GHOST.replace(b'=NO\n ', b'=YES\n')),
           'lack KNOWN_INCOMPATIBLE_EDITION=NO')


def swap_two(offsets, counts):
    offsets[0][2:4], counts[0][2:4] = offsets[0][3:1:-1], counts[0][3:1:-1]


def overlap_next(offsets, counts):
    counts[0][1] += 1


def leave_gap(offsets, counts):
    counts[0][1] -= 1


def share_first(offsets, counts):
    offsets[0][0], counts[0][0] = offsets[1][0], counts[1][0]


def share_level(offsets, counts):
    offsets[0][:4], counts[0][:4] = offsets[1], counts[1]


def point_to_header(offsets, counts):
    offsets[1][0] = 10


def point_behind(offsets, counts):
    offsets[0][3] = 2 ** 31


def end_early(offsets, counts):
    counts[0][-1] -= 1


def end_late(offsets, counts):
    counts[0][-1] += 1


@pytest.mark.parametrize('change, match', [
    (swap_two, 'row-major order'), (overlap_next, 'overlaps'), (leave_gap, 'belong to no tile'),
    (share_first, 'overlaps'), (share_level, 'overlaps'), (point_to_header, 'belong to no tile'),
    (point_behind, 'behind the end'), (end_early, '1 bytes follow'),
    (end_late, '1 bytes are missing')])
@pytest.mark.parametrize('options', [{}, {'order': '>', 'big': True}], ids=['small', 'big'])
def test_places_of_tiles(tmp_path, change, match, options):
    content = build_cog(**options)
    changed = build_cog(change=change, **options)
    assert verify(tmp_path, content) and len(changed) == len(content)
    refuse(tmp_path, changed, match)


def test_levels_in_the_wrong_order(tmp_path):
    verify(tmp_path, build_cog([(40, 50), (20, 25), (10, 13)]))
    refuse(tmp_path, build_cog([(40, 50), (10, 13), (20, 25)]), 'no overview of it')
    refuse(tmp_path, build_cog([(40, 50), (20, 40)]), 'no overview of it')
    refuse(tmp_path, build_cog([(40, 50), (40, 50)]), 'no overview of it')


def test_offset_of_64_bits(tmp_path):
    """As a signed number it would be negative."""
    def point_far(offsets, counts):
        offsets[0][3] = 2 ** 63 + offsets[0][3]
    refuse(tmp_path, build_cog(big=True, change=point_far), f'holds {2 ** 63}'[:-4])


@pytest.mark.parametrize('fields, match', [
    ([{259: (3, [6])}], 'compression 6 is unknown'),
    ([{317: (3, [3])}], 'predictor 3 is none of uint8'),
    ([{317: (3, [9])}], 'predictor 9 is none of uint8'),
    ([{258: (3, [8, 8, 16])}], 'bands differ'),
    ([{258: (3, [8, 8])}], 'bands differ'),
    ([{258: (3, [8, 8, 8, 8])}], 'holds 4 values'),
    ([{339: (3, [9, 9, 9])}], 'no known type'),
    ([{258: (3, [65] * 3)}], 'no known type'),
    ([{339: (3, [3, 3, 3])}], 'no known type'),
    ([{322: (3, [17])}], 'an image cannot have'),
    ([{322: (3, [0])}], 'an image cannot have'),
    ([{277: (3, [0])}], 'an image cannot have'),
    ([{284: (3, [3])}], 'an image cannot have'),
    ([{256: (3, [0])}], 'an image cannot have'),
    ([{256: (3, [65])}], '15 tiles, but 12 tile offsets and 12 tile sizes'),
    ([{256: (3, [])}], 'no field 256'),
    ([{254: (4, [1])}], 'not the full image'),
    ([{254: (4, [4])}], 'not the full image'),
    ([{}, {254: (4, [0])}], 'no overview of it'),
    ([{}, {339: (3, [2] * 3)}], 'other bands'),
    ([{}, {254: (4, [4])}], 'not those of its images'),
    ([{42113: (2, b'-9\0')}, {42113: (2, b'-8\0')}], 'nodata value -8, the image -9'),
    ([{}, {42113: (2, b'-8\0')}], 'nodata value -8, the image None'),
    ([{42113: (2, b'none\0')}], "'none' is no number"),
    ([{42113: (3, [1, 2])}], 'is no text')], ids=str)
def test_fields_that_cannot_be(tmp_path, fields, match):
    """Bytes of the header that no other byte repeats must at least make sense together."""
    verify(tmp_path, build_cog(n_bands=3))
    refuse(tmp_path, build_cog(n_bands=3, fields=fields), match)


@pytest.mark.parametrize('dtype, bits, kind', [
    ('uint8', 8, 1), ('uint8', 7, 1), ('uint16', 12, 1), ('int8', 8, 2), ('int64', 64, 2),
    ('float16', 16, 3), ('float32', 24, 3), ('float64', 64, 3), ('complex64', 64, 6)])
def test_types_of_pixels(tmp_path, dtype, bits, kind):
    fields = [{258: (3, [bits]), 339: (3, [kind])}] * 2
    assert verify(tmp_path, build_cog(fields=fields)).dtype == dtype


@pytest.mark.parametrize('text, bits, value', [
    (b'7', 8, 7), (b' 7.0 ', 8, 7), (b'7.5', 8, 7.5), (b'9007199254740993', 64, 2 ** 53 + 1)])
def test_nodata(tmp_path, text, bits, value):
    """Overviews need not have one; whole numbers are exact."""
    fields = [{258: (3, [bits]), 42113: (2, text + b'\0')}, {258: (3, [bits])}]
    assert repr(verify(tmp_path, build_cog(fields=fields)).nodata) == repr(value)


def test_tiles_without_compression_have_one_size(tmp_path):
    fields = [{259: (3, [1])}] * 2
    verify(tmp_path, build_cog(fields=fields, sizes=(256,)))
    refuse(tmp_path, build_cog(fields=fields, sizes=(256, 255)), 'other than 256 bytes')


def test_masks_belong_to_images(tmp_path):
    mask = {254: (4, [4])}
    verify(tmp_path, build_cog([(40, 50), (40, 50), (20, 25)], fields=[{}, mask]))
    for shapes in ([(40, 50), (24, 50), (20, 25)], [(40, 50), (40, 50), (40, 50)]):
        refuse(tmp_path, build_cog(shapes, fields=[{}, mask, mask]), 'not those of its images')


def test_fine_levels_before_coarse_ones(tmp_path):
    refuse(tmp_path, build_cog(fine_first=True), r'tiles of \(20, 25\) px are behind those')


def test_alignment_before_the_first_tile(tmp_path):
    """As many zeros as a page of the disk has, and nothing else."""
    for gap in (b'\0', b'\0' * 4096):
        verify(tmp_path, build_cog(gap=gap))
    for gap in (b'\0' * 4097, b'\0' * 99 + b'1', b'1\0'):
        refuse(tmp_path, build_cog(gap=gap), 'directory was lost')


def change(content, position, form, *values):
    """Return bytes with others packed into them."""
    changed = bytearray(content)
    struct.pack_into(form, changed, position, *values)
    return bytes(changed)


@pytest.mark.parametrize('position, form, values, match', [
    (4, '<H', [4], 'offsets of 4 bytes'), (6, '<H', [1], 'offsets of 8 bytes'),
    (8, '<Q', [0], 'no image directory'), (8, '<Q', [2 ** 63], 'behind its end'),
    (200, '<Q', [0], 'has 0 fields'), (200, '<Q', [2 ** 62], 'fields'),
    (200, '<Q', [1001], 'has 1001 fields'),
    (208, '<H', [300], 'damaged at its field 1'), (210, '<H', [99], 'damaged at its field 0'),
    (208 + 10 * 20 + 12, '<Q', [2 ** 40], 'the field 324 .* behind the end of the file'),
    (52, '<c', [b'.'], 'no layout hints')])
def test_pointers_that_cannot_be(tmp_path, position, form, values, match):
    content = build_cog(big=True)
    refuse(tmp_path, change(content, position, form, *values), match)


def test_names_of_bands(tmp_path):
    """GDAL escapes them twice."""
    names = ['a&b', '<é>"', '']
    source = gdal.GetDriverByName('MEM').Create('', 90, 80, 3, gdal.GDT_Byte)
    for number, name in enumerate(names, 1):
        source.GetRasterBand(number).SetDescription(name)
    with gdal_errors_as_exceptions():
        close_dataset(gdal.GetDriverByName('COG').CreateCopy(str(tmp_path / 'a.tif'), source))
    assert verify_cog(tmp_path / 'a.tif').channels == ('a&b', '<é>"', None)


def find_entry(content, tag, big):
    """Return the position of the first entry with a tag in a file of build_cog."""
    kind = 16 if big and tag == 324 else 4 if tag in (324, 325) else 3
    return content.index(struct.pack('<HH', tag, kind))


@pytest.mark.parametrize('big', [False, True])
@pytest.mark.parametrize('tags', [(256,), (257,), (277,), (324,), (325,), (324, 325), (258,)],
                         ids=str)
def test_huge_numbers_cost_nothing(tmp_path, tags, big):
    """A count of 2**60 is refused before anything of that size is made."""
    content = bytearray(build_cog(big=big))
    for tag in tags:
        place = find_entry(content, tag, big)
        if tag in (256, 257, 277):
            content[place + 2] = 4
            content[place + (12 if big else 8):place + (16 if big else 12)] = b'\xff\xff\xff\x7f'
        else:
            number = struct.pack('<Q', 2 ** 60) if big else struct.pack('<I', 2 ** 31)
            content[place + 4:place + 4 + len(number)] = number
    tracemalloc.start()
    try:
        refuse(tmp_path, bytes(content))
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize('big', [False, True])
def test_circle_of_directories(tmp_path, big):
    content = bytearray(build_cog(big=big))
    (first,) = struct.unpack_from('<Q' if big else '<I', content, 8 if big else 4)
    place = first + (8 + 13 * 20 if big else 2 + 13 * 12)
    struct.pack_into('<Q' if big else '<I', content, place, first)
    refuse(tmp_path, bytes(content), 'out of order')


def test_chain_of_directories_without_end(tmp_path):
    shapes = [(16, 16)] * 300
    refuse(tmp_path, build_cog(shapes), 'more than 200')


@pytest.mark.parametrize('content, match', [
    (b'<!DOCTYPE a [<!ENTITY b "b">]><GDALMetadata>&b;</GDALMetadata>', 'declares entities'),
    (b'<GDALMetadata><Item role="description" sample="-1">x</Item></GDALMetadata>', 'no band -1'),
    (b'<GDALMetadata><Item role="description">x</Item></GDALMetadata>', 'metadata is damaged'),
    (b'<GDALMetadata>', 'metadata is damaged')])
def test_damaged_metadata(small, tmp_path, content, match):
    with tifffile.TiffFile(small) as tif:
        tag = tif.pages[0].tags['GDAL_METADATA']
    whole = small.read_bytes()
    text = content.ljust(tag.valuebytecount, b'\0')
    end = tag.valueoffset + tag.valuebytecount
    assert len(text) == tag.valuebytecount
    refuse(tmp_path, whole[:tag.valueoffset] + text + whole[end:], match)


def test_lost_overviews(copy):
    """Cut the chain of image directories behind the first."""
    with tifffile.TiffFile(copy) as tif:
        page, form = tif.pages[0], tif.tiff
        where = page.offset + form.tagnosize + form.tagsize * len(page.tags)
    with open(copy, 'r+b') as file:
        file.seek(where)
        assert any(file.read(form.offsetsize))
        file.seek(where)
        file.write(b'\0' * form.offsetsize)
    with pytest.raises(CogError, match='directory was lost'):
        verify_cog(copy)


def test_lost_overviews_of_few_bytes(tmp_path):
    """A lost directory and its tiles are no alignment, however small they are."""
    content = bytearray(build_cog())
    (first,) = struct.unpack_from('<I', content, 4)
    struct.pack_into('<I', content, first + 2 + 13 * 12, 0)
    refuse(tmp_path, bytes(content), 'directory was lost')


def list_critical(fpath):
    """Return the positions of bytes that say where tiles are, or mark them."""
    found = set(range(8, 43))
    with tifffile.TiffFile(fpath) as tif:
        for page in tif.pages:
            for name in ('TileOffsets', 'TileByteCounts'):
                tag = page.tags[name]
                found |= set(range(tag.valueoffset, tag.valueoffset + tag.valuebytecount))
            for offset, count in zip(page.dataoffsets, page.databytecounts):
                found |= set(range(offset - 4, offset))
                found |= set(range(offset + count - 4, offset + count + 4))
    return found


def list_marks_and_header(fpath):
    """Return the positions of all bytes but those of pixels."""
    with tifffile.TiffFile(fpath) as tif:
        header = min(page.dataoffsets[0] for page in tif.pages)
    return set(range(header)) | list_critical(fpath)


@pytest.mark.parametrize('bits', [0x01, 0x10, 0x80, 0xff])
def test_every_flip_outside_of_pixels(small, tmp_path, bits):
    """It is refused, or the tiles are where they were; nothing else is raised."""
    content, good = small.read_bytes(), verify_cog(small)
    critical, passed = list_critical(small), set()
    (tmp_path / 'a.tif').write_bytes(content)
    for position in sorted(list_marks_and_header(small)):
        with open(tmp_path / 'a.tif', 'r+b', buffering=0) as file:
            os.pwrite(file.fileno(), bytes([content[position] ^ bits]), position)
            try:
                report = verify_cog(tmp_path / 'a.tif')
            except CogError:
                pass
            else:
                passed.add(position)
                assert ((report.n_tiles, report.nbytes, report.dtype, report.shape[2])
                        == (good.n_tiles, good.nbytes, good.dtype, good.shape[2]))
            os.pwrite(file.fileno(), content[position:position + 1], position)
    assert verify_cog(tmp_path / 'a.tif').shape == good.shape
    assert not passed & critical
    # Coordinates and text, which have no redundancy.
    assert len(passed) < 700


@given(st.data())
@settings(max_examples=150, deadline=None,
          suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_never_escapes_as_another_error(good, tmp_path, data):
    """Random damage to the header region is a CogError, or harmless; nothing else."""
    content = bytearray(good.read_bytes())
    with tifffile.TiffFile(good) as tif:
        header = min(page.dataoffsets[0] for page in tif.pages)
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, header - 1))
        junk = data.draw(st.binary(min_size=1, max_size=9))
        content[start:start + len(junk)] = junk
    fpath = tmp_path / 'damaged.tif'
    fpath.write_bytes(content)
    try:
        report = verify_cog(fpath)
    except CogError:
        return
    assert report.nbytes == len(content)
