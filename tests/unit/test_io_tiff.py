"""The header of a file: parsed with struct and tifffile, and against a file of GDAL's."""
import io
import struct

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.io.codecs import Codec
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.levels import Level
from cocoseg.io.overviews import compute_overview_shapes
from cocoseg.io.tiff import Tag, build_header

SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 12: 8, 16: 8}
CODES = {1: 'B', 2: 'B', 3: 'H', 4: 'I', 12: 'd', 16: 'Q'}
# Numbers that the parser below does not interpret.
SHORT, LONG, DOUBLE, ASCII, LONG8 = 3, 4, 12, 2, 16


def make_levels(shape, blocksize=64, n_planes=1, seed=0, largest=5000):
    """Return levels whose tiles have sizes at random."""
    rng = np.random.default_rng(seed)
    levels = [Level(each, blocksize, n_planes)
              for each in [shape, *compute_overview_shapes(shape, blocksize)]]
    for level in levels:
        level.counts[...] = rng.integers(1, largest, level.counts.shape)
    return levels


def parse(header, alignment=8):
    """Read all directories by hand: [(place, {tag: (type, values, their place)})], is_big."""
    assert header[:2] == b'II'
    (magic,) = struct.unpack_from('<H', header, 2)
    is_big = magic == 43
    if is_big:
        assert struct.unpack_from('<HH', header, 4) == (8, 0)
        (place,) = struct.unpack_from('<Q', header, 8)
    else:
        assert magic == 42
        (place,) = struct.unpack_from('<I', header, 4)
    count, entry, link = ('<Q', '<HHQ', '<Q') if is_big else ('<H', '<HHI', '<I')
    width, directories = struct.calcsize(link), []
    while place:
        (n_tags,) = struct.unpack_from(count, header, place)
        at, tags, order = place + struct.calcsize(count), {}, []
        for _ in range(n_tags):
            code, kind, n_values = struct.unpack_from(entry, header, at)
            at += struct.calcsize(entry)
            nbytes, values_at = n_values * SIZES[kind], at
            if nbytes > width:
                (values_at,) = struct.unpack_from(link, header, at)
                assert values_at % alignment == 0 and values_at + nbytes <= len(header)
            content = header[values_at:values_at + nbytes]
            values = (content if kind in (1, 2)
                      else list(struct.unpack(f'<{n_values}{CODES[kind]}', content)))
            if nbytes <= width and alignment > 1:
                assert header[at + nbytes:at + width] == bytes(width - nbytes)
            tags[code] = (kind, values, values_at if nbytes > width else None)
            order.append(code)
            at += width
        assert order == sorted(set(order))
        directories.append((place, tags))
        (place,) = struct.unpack_from(link, header, at)
    return directories, is_big


def check_layout(header, nbytes, levels, is_big):
    """Check the places of directories and tiles against the order that a COG promises."""
    directories, found_big = parse(header)
    assert found_big == is_big and len(directories) == len(levels)
    places = [place for place, _ in directories]
    assert places == sorted(places) and all(place % 8 == 0 for place in places)
    at = len(header)
    for (_, tags), level in reversed(list(zip(directories, levels))):
        counts = level.counts.ravel().tolist()
        assert tags[325][1] == counts and tags[325][0] == LONG
        assert tags[324][0] == (LONG8 if is_big else LONG)
        for offset, count in zip(tags[324][1], counts):
            # Behind its size, before the repetition of its end.
            assert offset == at + 4
            at += 4 + count + 4
        assert (tags[257][1], tags[256][1]) == ([level.shape[0]], [level.shape[1]])
    assert at == nbytes
    return directories


@given(shape=st.tuples(st.integers(1, 900), st.integers(1, 900)), n_planes=st.integers(1, 3),
       bigtiff=st.sampled_from([None, True, False]), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_tiles_lie_where_the_directories_say(shape, n_planes, bigtiff, seed):
    levels = make_levels(shape, 64, n_planes, seed)
    header, nbytes = build_header(levels, Codec('ZSTD', 1, 2), 64, {}, {}, bigtiff)
    directories = check_layout(header, nbytes, levels, bool(bigtiff))
    for number, (_, tags) in enumerate(directories):
        assert tags[259][1] == [50000] and tags[317][1] == [2]
        assert tags[322][1] == tags[323][1] == [64]
        assert (tags[254][1] == [1]) if number else 254 not in tags


@pytest.mark.parametrize('bigtiff', [False, True])
def test_tifffile_reads_the_same(bigtiff):
    levels = make_levels((300, 470))
    extra = {258: Tag.of(SHORT, [8]), 262: Tag.of(SHORT, 1), 277: Tag.of(SHORT, 1),
             33550: Tag(DOUBLE, 3, struct.pack('<3d', 2, 3, 0)), 42113: Tag(ASCII, 3, b'-1\0')}
    header, nbytes = build_header(levels, Codec('LERC_ZSTD', 1), 64, extra, {}, bigtiff)
    with tifffile.TiffFile(io.BytesIO(header)) as tif:
        assert tif.is_bigtiff == bigtiff and len(tif.pages) == len(levels)
        for number, (page, level) in enumerate(zip(tif.pages, levels)):
            tags = {tag.code: tag.value for tag in page.tags}
            assert (tags[257], tags[256]) == level.shape
            assert np.array_equal(np.atleast_1d(tags[325]), level.counts.ravel())
            assert tags[50674] == (4, 2) and tags[259] == 34887
            assert (33550 in tags) == (number == 0)
        assert nbytes == tags_end(tif.pages[0])
        first = {tag.code: tag.value for tag in tif.pages[0].tags}
    assert first[33550] == (2, 3, 0) and first[42113] == '-1'


def tags_end(page):
    """Return where the last tile of a page ends, with its trailer."""
    tags = {tag.code: tag.value for tag in page.tags}
    return np.atleast_1d(tags[324])[-1] + np.atleast_1d(tags[325])[-1] + 4


# ---- single values --------------------------------------------------------------

@pytest.mark.parametrize('bigtiff, width', [(False, 4), (True, 8)])
@pytest.mark.parametrize('nbytes', [0, 1, 3, 4, 5, 7, 8, 9, 16, 17])
def test_values_that_fit_are_in_the_entry(bigtiff, width, nbytes):
    content = bytes(range(1, nbytes + 1))
    header, _ = build_header(make_levels((64, 64)), Codec('NONE'), 64,
                             {700: Tag(1, nbytes, content), 701: Tag(2, 2, b'x\0')}, {}, bigtiff)
    ((_, tags),), _ = parse(header)
    kind, values, place = tags[700]
    assert (kind, values) == (1, content) and (place is None) == (nbytes <= width)
    assert tags[701] == (2, b'x\0', None)


@pytest.mark.parametrize('bigtiff', [False, True])
def test_a_thousand_bands(bigtiff):
    extra = {258: Tag.of(SHORT, [16] * 1000), 339: Tag.of(SHORT, [2] * 1000),
             338: Tag.of(SHORT, [0] * 999), 42112: Tag(ASCII, 100001, b'm' * 100000 + b'\0')}
    levels = make_levels((200, 300), n_planes=1000, largest=90)
    header, nbytes = build_header(levels, Codec('ZSTD'), 64, extra,
                                  {code: extra[code] for code in (258, 338, 339)}, bigtiff)
    directories = check_layout(header, nbytes, levels, bigtiff)
    for number, (_, tags) in enumerate(directories):
        assert tags[258][1] == [16] * 1000 and tags[339][1] == [2] * 1000
        assert tags[338][1] == [0] * 999
        assert (42112 in tags) == (number == 0)
    assert directories[0][1][42112][1] == b'm' * 100000 + b'\0'


def test_tags_of_whole_numbers_are_little_endian():
    assert Tag.of(SHORT, [1, 513]) == Tag(3, 2, b'\1\0\1\2')
    assert Tag.of(LONG, 1) == Tag(4, 1, b'\1\0\0\0')
    assert Tag.of(LONG8, np.array([2 ** 40], '>i8')) == Tag(16, 1, (2 ** 40).to_bytes(8, 'little'))


def test_a_tag_of_the_caller_never_replaces_one_of_the_layout():
    wrong = {code: Tag.of(LONG, 7) for code in (256, 257, 259, 322, 323, 324, 325)}
    levels = make_levels((100, 100))
    header, nbytes = build_header(levels, Codec('DEFLATE'), 64, wrong, wrong)
    check_layout(header, nbytes, levels, False)


def test_nothing_that_was_given_is_modified():
    levels, extra = make_levels((100, 100)), {262: Tag.of(SHORT, 1)}
    before = [level.counts.copy() for level in levels]
    first = build_header(levels, Codec('ZSTD'), 64, extra, extra)
    assert first == build_header(levels, Codec('ZSTD'), 64, extra, extra)
    assert extra == {262: Tag.of(SHORT, 1)}
    for level, counts in zip(levels, before):
        assert np.array_equal(level.counts, counts)


@pytest.mark.parametrize('codec, tags', [
    (Codec('NONE'), {259: [1]}), (Codec('LZW', None, 2), {259: [5], 317: [2]}),
    (Codec('DEFLATE', 6, 3), {259: [8], 317: [3]}), (Codec('LZMA'), {259: [34925]}),
    (Codec('LERC'), {259: [34887], 50674: [4, 0]}),
    (Codec('LERC_DEFLATE'), {259: [34887], 50674: [4, 1]}),
    (Codec('LERC_ZSTD'), {259: [34887], 50674: [4, 2]})])
def test_the_codec_is_named(codec, tags):
    header, _ = build_header(make_levels((200, 100)), codec, 64, {}, {})
    for _, found in parse(header)[0]:
        assert {code: found[code][1] for code in (259, 317, 50674) if code in found} == tags


# ---- 4 GiB ------------------------------------------------------------------------

def make_huge(nbytes, bigtiff=None):
    """Return levels of a file of exactly ``nbytes`` bytes, on paper."""
    levels = make_levels((64 * 50, 64 * 30), largest=10)
    for level in levels:
        level.counts[...] = 1000
    header, small = build_header(levels, Codec('ZSTD'), 64, {}, {}, bigtiff)
    missing, tiles = nbytes - small, levels[0].counts
    tiles += missing // tiles.size
    tiles[0, 0, 0] += missing - missing // tiles.size * tiles.size
    return levels, len(header)


@pytest.mark.parametrize('beyond', [-1, 0])
def test_the_largest_file_with_short_offsets(beyond):
    levels, n_header = make_huge(2 ** 32 - 1 + beyond)
    for bigtiff in (None, False):
        header, nbytes = build_header(levels, Codec('ZSTD'), 64, {}, {}, bigtiff)
        assert nbytes == 2 ** 32 - 1 + beyond and len(header) == n_header
        check_layout(header, nbytes, levels, False)


@pytest.mark.parametrize('beyond', [1, 2, 2 ** 30, 2 ** 36])
def test_a_larger_file_has_long_offsets(beyond):
    levels, n_header = make_huge(2 ** 32 - 1 + beyond)
    if beyond == 2 ** 36:
        assert levels[0].counts.max() < 2 ** 31
    header, nbytes = build_header(levels, Codec('ZSTD'), 64, {}, {}, None)
    assert nbytes == 2 ** 32 - 1 + beyond - n_header + len(header)
    directories = check_layout(header, nbytes, levels, True)
    assert max(directories[0][1][324][1]) > 2 ** 32 - 2 ** 28
    with pytest.raises(OverflowError, match='bigtiff=None'):
        build_header(levels, Codec('ZSTD'), 64, {}, {}, False)


# ---- GDAL ---------------------------------------------------------------------------

def write_with_gdal(path, shape, options=()):
    gdal = require_gdal()
    source = gdal.GetDriverByName('MEM').Create('', shape[1], shape[0], shape[2], gdal.GDT_Byte)
    for band in range(shape[2]):
        rng = np.random.default_rng(band)
        source.GetRasterBand(band + 1).WriteArray(rng.integers(0, 255, shape[:2]).astype('u1'))
    result = gdal.GetDriverByName('COG').CreateCopy(str(path), source, 0, [
        'BLOCKSIZE=128', 'COMPRESS=DEFLATE', *options])
    del result, source
    return path.read_bytes()


@pytest.mark.parametrize('bigtiff', [False, True])
def test_hints_are_the_bytes_of_gdal(tmp_path, bigtiff):
    theirs = write_with_gdal(tmp_path / 'a.tif', (200, 300, 1),
                             [f'BIGTIFF={"YES" if bigtiff else "NO"}'])
    levels = make_levels((200, 300), 128)
    ours, _ = build_header(levels, Codec('DEFLATE'), 128, {}, {}, bigtiff)
    start = 16 if bigtiff else 8
    length = int(theirs[start:].partition(b'SIZE=')[2][:6]) + 43
    assert ours[start:start + length] == theirs[start:start + length]
    # The header and the place of the first directory too.
    assert ours[:start] == theirs[:start]


def test_directories_are_like_those_of_gdal(tmp_path):
    """Of the same image: the same tags of the same types, with the same values but sizes."""
    theirs, _ = parse(write_with_gdal(tmp_path / 'a.tif', (200, 300, 1), ['BIGTIFF=NO']), 1)
    levels = make_levels((200, 300), 128)
    extra = {code: Tag.of(SHORT, 1) for code in (262, 277, 284, 339)} | {258: Tag.of(SHORT, 8)}
    ours, _ = parse(build_header(levels, Codec('DEFLATE'), 128, extra, extra)[0])
    assert len(ours) == len(theirs)
    for (_, mine), (_, other) in zip(ours, theirs):
        # GDAL also says that there is no predictor.
        assert set(mine) == set(other) - {317} and other[317][1] == [1]
        for code in set(mine) - {324, 325}:
            assert mine[code][1] == other[code][1]
        assert len(mine[324][1]) == len(other[324][1])
