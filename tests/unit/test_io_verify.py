"""Verification: complete files pass, damaged ones never do."""
import os
import shutil
import struct

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


def test_truncation(copy):
    nbytes = os.path.getsize(copy)
    steps = [1, 2, 3, 4, 5, 8, 9, 100, 1000, 4096, 65536, 200_000, nbytes - 17, nbytes - 1, nbytes]
    for cut in steps:
        os.truncate(copy, nbytes - cut)
        with pytest.raises(CogError) as caught:
            verify_cog(copy)
        assert str(copy) in str(caught.value)


@pytest.mark.parametrize('extra', [b'\0', b'\0' * 4096])
def test_trailing_bytes(copy, extra):
    with open(copy, 'ab') as file:
        file.write(extra)
    with pytest.raises(CogError, match=f'{len(extra)} bytes follow'):
        verify_cog(copy)


@pytest.mark.parametrize('tag', ['TileOffsets', 'TileByteCounts'])
@pytest.mark.parametrize('level', [0, 1])
def test_missing_tile(copy, tag, level):
    with tifffile.TiffFile(copy) as tif:
        where = tif.pages[level].tags[tag].valueoffset
    with open(copy, 'r+b') as file:
        file.seek(where + 4 if tag == 'TileOffsets' else where)
        file.write(b'\0' * 4)
    with pytest.raises(CogError, match=f'1 of .* tiles of level {level} are missing|size'):
        verify_cog(copy)


def test_sparse_file(tmp_path):
    """What a killed GDAL leaves: it opens, reads, and lacks all its tiles."""
    data = np.zeros((600, 530), np.int16)
    gdal_cog(tmp_path / 'a.tif', data, ['SPARSE_OK=YES', 'BLOCKSIZE=128'])
    assert gdal.Open(str(tmp_path / 'a.tif')).ReadAsArray() is not None
    with pytest.raises(CogError, match='25 of 25 tiles of level 0 are missing'):
        verify_cog(tmp_path / 'a.tif')


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
    with pytest.raises(CogError, match='edit in place|its tiles take'):
        verify_cog(tmp_path / 'a.tif')


def flip(fpath, position):
    """Change one byte."""
    with open(fpath, 'r+b') as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 0xff]))


def test_marks_of_first_and_last_tile(good, copy):
    with tifffile.TiffFile(good) as tif:
        tiles = [(page.dataoffsets[k], page.databytecounts[k])
                 for page in tif.pages for k in (0, -1)]
    for offset, count in tiles:
        for position in (offset - 4, offset - 1, offset + count - 1, offset + count):
            shutil.copy(good, copy)
            flip(copy, position)
            with pytest.raises(CogError, match='marks around tile'):
                verify_cog(copy)


def test_full_checks_inner_tiles(good, copy):
    with tifffile.TiffFile(good) as tif:
        offset, count = tif.pages[0].dataoffsets[4], tif.pages[0].databytecounts[4]
    flip(copy, offset + count)
    verify_cog(copy)
    with pytest.raises(CogError, match='marks around tile 4 of level 0'):
        verify_cog(copy, full=True)


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


def test_missing_path_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        verify_cog(tmp_path / 'missing.tif')
    with pytest.raises(IsADirectoryError):
        verify_cog(tmp_path)


def test_lost_overviews(copy):
    """Cut the chain of image directories behind the first."""
    with tifffile.TiffFile(copy) as tif:
        page = tif.pages[0]
        where = page.offset + 2 + 12 * len(page.tags)
    with open(copy, 'r+b') as file:
        file.seek(where)
        assert struct.unpack('<I', file.read(4))[0] > 0
        file.seek(where)
        file.write(b'\0' * 4)
    with pytest.raises(CogError, match='directory was lost'):
        verify_cog(copy)


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
