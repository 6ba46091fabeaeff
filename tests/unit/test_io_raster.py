"""Reading rasters: pixels, facts, and errors that say what is wrong."""
import threading

import numpy as np
import pytest

from cocoseg.errors import CoverageError, OptionError
from cocoseg.grid.window import Window
from cocoseg.io.cog import write_cog
from cocoseg.io.gdal_gate import close_dataset, gdal_errors_as_exceptions, require_gdal
from cocoseg.io.images import write_tif
from cocoseg.io.raster import raster_info, read_raster, srs_wkt


@pytest.fixture
def sample(tmp_path):
    rng = np.random.default_rng(0)
    data = rng.integers(-500, 500, (70, 90, 3)).astype(np.int16)
    fpath = tmp_path / 'sample.tif'
    write_cog(fpath, data, nodata=-9999, blocksize=64, channels='r|g|b')
    return fpath, data


def test_reads_all(sample):
    fpath, data = sample
    found = read_raster(fpath)
    np.testing.assert_array_equal(found, data)
    assert found.dtype == data.dtype and found.flags.c_contiguous


@pytest.mark.parametrize('bands', [None, [2], [2, 0], (1, 1)])
@pytest.mark.parametrize('window', [
    None, Window(3, 5, 70, 90), (slice(10, 11), slice(None, 3)), Window(63, 63, 66, 67)])
def test_reads_parts(sample, window, bands):
    fpath, data = sample
    expected = data if window is None else data[Window.coerce(window).slices]
    if bands is not None:
        expected = expected[:, :, list(bands)]
    np.testing.assert_array_equal(read_raster(fpath, window, bands), expected)


@pytest.mark.parametrize('window', [
    Window(0, 0, 71, 90), Window(-1, 0, 5, 5), Window(3, 3, 3, 9), Window(80, 0, 90, 9)])
def test_window_outside_is_refused(sample, window):
    with pytest.raises(CoverageError, match='clip it first'):
        read_raster(sample[0], window)


@pytest.mark.parametrize('bands', [[], [3], [-1]])
def test_absent_band_is_refused(sample, bands):
    with pytest.raises(OptionError, match=r'0\.\.2'):
        read_raster(sample[0], bands=bands)


def test_missing_and_unreadable_files(tmp_path):
    garbage = tmp_path / 'garbage.tif'
    garbage.write_bytes(b'II*\0' + bytes(range(256)))
    for function in (read_raster, raster_info):
        with pytest.raises(FileNotFoundError):
            function(tmp_path / 'missing.tif')
        with pytest.raises(OSError, match='garbage.tif'):
            function(garbage)


def test_damaged_tile_raises(tmp_path):
    fpath = tmp_path / 'a.tif'
    write_tif(fpath, np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8),
              compress='deflate')
    with open(fpath, 'r+b') as file:
        file.seek(fpath.stat().st_size // 2)
        file.write(b'\xff' * 300)
    with pytest.raises(OSError, match='a.tif'):
        read_raster(fpath)


def test_info_of_a_full_file(tmp_path):
    fpath = tmp_path / 'a.tif'
    rotated = [[3.0, 4.0, 1000.5], [4.0, -3.0, 2000.25], [0, 0, 1]]
    write_cog(fpath, np.zeros((300, 70, 2), np.float32), nodata=np.nan, crs='EPSG:32618',
              transform=rotated, channels=['a', 'b'], scale=[0.5, 2], offset=3, blocksize=128,
              metadata={'made': 'by a test'})
    info = raster_info(fpath)
    assert info.shape == (300, 70, 2) and info.dtype == 'float32'
    assert np.isnan(info.nodata)
    assert info.epsg == 32618 and 'UTM zone 18N' in info.crs_wkt
    assert info.geotransform == (1000.5, 3.0, 4.0, 2000.25, 4.0, -3.0)
    assert info.channels == ('a', 'b')
    assert info.scales == (0.5, 2.0) and info.offsets == (3.0, 3.0)
    assert info.overview_count == 2 and info.blocksize == (128, 128)
    assert info.metadata['made'] == 'by a test'


def test_info_of_a_bare_file(tmp_path):
    fpath = tmp_path / 'a.tif'
    write_tif(fpath, np.zeros((5, 7), np.uint8))
    info = raster_info(fpath)
    assert info.shape == (5, 7, 1) and info.nodata is None
    assert info.crs_wkt is None and info.epsg is None and info.geotransform is None
    assert info.channels == (None,) and info.scales == (None,) and info.overview_count == 0


def test_mixed_types_are_widened(tmp_path):
    write_tif(tmp_path / 'a.tif', np.full((1, 2), 200, np.uint8))
    write_tif(tmp_path / 'b.tif', np.full((1, 2), -5, np.int16))
    band = ('<VRTRasterBand dataType="{}" band="{}"><SimpleSource><SourceFilename '
            'relativeToVRT="1">{}.tif</SourceFilename></SimpleSource></VRTRasterBand>')
    (tmp_path / 'a.vrt').write_text(
        '<VRTDataset rasterXSize="2" rasterYSize="1">' + band.format('Byte', 1, 'a')
        + band.format('Int16', 2, 'b') + '</VRTDataset>')
    assert raster_info(tmp_path / 'a.vrt').dtype == 'int16'
    assert read_raster(tmp_path / 'a.vrt').tolist() == [[[200, -5], [200, -5]]]


def test_signed_bytes_of_old_files(tmp_path):
    gdal = require_gdal()
    if not hasattr(gdal, 'GDT_Int8'):
        fpath = tmp_path / 'a.tif'
        with gdal_errors_as_exceptions():
            dataset = gdal.GetDriverByName('GTiff').Create(
                str(fpath), 2, 1, 1, gdal.GDT_Byte, ['PIXELTYPE=SIGNEDBYTE'])
            dataset.WriteRaster(0, 0, 2, 1, np.array([-3, 5], np.int8).tobytes())
            close_dataset(dataset)
        assert read_raster(fpath).ravel().tolist() == [-3, 5]
        assert raster_info(fpath).dtype == 'int8'


def test_threads_read_one_file(sample):
    fpath, data = sample
    found = []

    def work():
        for _ in range(10):
            found.append(np.array_equal(read_raster(fpath), data))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [True] * 40


def test_srs_spellings_agree():
    expected = srs_wkt(32618)
    assert srs_wkt('EPSG:32618') == srs_wkt(np.int64(32618)) == srs_wkt(expected) == expected
    assert srs_wkt(None) is None


@pytest.mark.parametrize('crs', [
    999999, -1, 2 ** 70, 'EPSG:999999', 'not a crs', '', True, 3.5, ['EPSG:4326']])
def test_unknown_srs_is_refused(crs):
    with pytest.raises(OptionError, match='give an EPSG code'):
        srs_wkt(crs)
