"""Plain TIFF and PNG files."""
import os

import numpy as np
import pytest

from cocoseg.errors import AssetWriteError, OptionError
from cocoseg.io import images
from cocoseg.io.images import write_image, write_png, write_tif
from cocoseg.io.raster import raster_info, read_raster


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint32', 'float32', 'float64'])
@pytest.mark.parametrize('shape', [(1, 1), (1, 700), (70, 90, 3), (130, 65, 7)])
def test_tif_round_trip(tmp_path, dtype, shape):
    data = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    if data.dtype.kind == 'f':
        data.flat[0] = np.nan
    data.flags.writeable = False
    write_tif(tmp_path / 'a.tif', data, blocksize=64)
    found = read_raster(tmp_path / 'a.tif')
    np.testing.assert_array_equal(found, data.reshape(found.shape))
    info = raster_info(tmp_path / 'a.tif')
    assert info.blocksize == (64, 64) and info.overview_count == 0
    assert os.listdir(tmp_path) == ['a.tif']


def test_tif_keeps_what_it_is_told(tmp_path):
    write_tif(tmp_path / 'a.tif', np.zeros((4, 5, 2), np.int16), nodata=-9999, crs=32618,
              transform=(5.0, 2.0, 0.0, 7.0, 0.0, -2.0), channels='a|b', scale=0.25,
              offset=1, metadata={'key': 'a value'}, compress='deflate', level=9)
    info = raster_info(tmp_path / 'a.tif')
    assert info.nodata == -9999 and info.epsg == 32618 and info.channels == ('a', 'b')
    assert info.geotransform == (5.0, 2.0, 0.0, 7.0, 0.0, -2.0)
    assert info.scales == (0.25, 0.25) and info.offsets == (1, 1)
    assert info.metadata['key'] == 'a value'
    assert os.listdir(tmp_path) == ['a.tif']


@pytest.mark.parametrize('dtype', ['uint8', 'uint16'])
@pytest.mark.parametrize('n_bands', [1, 2, 3, 4])
def test_png_round_trip(tmp_path, dtype, n_bands):
    top = np.iinfo(dtype).max
    data = np.random.default_rng(0).integers(0, top, (50, 33, n_bands), endpoint=True).astype(dtype)
    write_png(tmp_path / 'a.png', data)
    found = read_raster(tmp_path / 'a.png')
    np.testing.assert_array_equal(found, data)
    assert found.dtype == data.dtype
    assert os.listdir(tmp_path) == ['a.png']


@pytest.mark.parametrize('data', [
    np.zeros((4, 4, 5), np.uint8), np.zeros((4, 4), np.int16), np.zeros((4, 4), np.float32)])
def test_png_refuses_what_it_cannot_hold(tmp_path, data):
    with pytest.raises(OptionError, match='1 to 4 bands of uint8 or uint16'):
        write_png(tmp_path / 'a.png', data)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('fmt, magic', [('cog', b'II*\0'), ('tif', b'II*\0'), ('png', b'\x89PNG')])
def test_one_door(tmp_path, fmt, magic):
    fpath = tmp_path / 'a'
    nbytes = write_image(fpath, np.zeros((4, 5), np.uint8), fmt=fmt)
    content = fpath.read_bytes()
    assert content.startswith(magic) and len(content) == nbytes


def test_one_door_checks_its_options(tmp_path):
    data = np.zeros((4, 5), np.uint8)
    with pytest.raises(OptionError, match='jpg'):
        write_image(tmp_path / 'a', data, fmt='jpg')
    with pytest.raises(OptionError, match='overviews'):
        write_image(tmp_path / 'a', data, fmt='tif', overviews='average')
    with pytest.raises(OptionError, match='nodata'):
        write_image(tmp_path / 'a', data, fmt='png', nodata=0)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('fmt', ['tif', 'png'])
def test_other_pixels_on_disk_are_refused(tmp_path, monkeypatch, fmt):
    monkeypatch.setattr(images, 'read_raster', lambda *args: np.ones((4, 5, 1), np.uint8))
    with pytest.raises(AssetWriteError, match='other pixels'):
        write_image(tmp_path / 'a', np.zeros((4, 5), np.uint8), fmt=fmt)
    assert os.listdir(tmp_path) == []
