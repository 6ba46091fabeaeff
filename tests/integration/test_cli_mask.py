"""``cocoseg mask``: rasters and manifests from the command line."""
import os

import kwcoco
import numpy as np
import pytest

from cocoseg import verify_cog
from cocoseg.cli.main import main
from cocoseg.coco.demo import demo_dataset
from cocoseg.io.cog import write_cog
from cocoseg.io.images import write_tif
from cocoseg.io.mask_file import sidecar_path
from cocoseg.io.raster import read_raster


@pytest.fixture
def image():
    image = np.random.default_rng(0).integers(1, 200, (90, 110, 3)).astype(np.uint8)
    image[:30, :50] = 0
    image[:40, :20, 1] = 0
    image[70:, 100:, 2] = 255
    return image


@pytest.fixture
def raster(tmp_path, image):
    write_tif(tmp_path / 'image.tif', image, nodata=0, crs=32618,
              transform=(500000., 10., 0., 4000000., 0., -10.))
    return os.fspath(tmp_path / 'image.tif')


def mask(src, dst, *options):
    return main(['mask', os.fspath(src), '--dst', os.fspath(dst), *map(os.fspath, options)])


@pytest.mark.parametrize('options, find', [
    ([], lambda image: (image != 0).any(axis=2)),
    (['--logic', 'any', '--executor', 'threads:2'], lambda image: (image != 0).all(axis=2)),
    (['--logic', '2', '--nodata', '0', '255', '--block_size', '40', '64'],
     lambda image: np.isin(image, (0, 255)).sum(axis=2) < 2),
    (['--nodata', '255', '--bands', '2'], lambda image: image[..., 2] != 255),
    (['--nodata', 'none', '--logic', 'any'], lambda image: image[..., 0] >= 0),
    (['--nodata', 'masks', '--logic', 'any', '--bands', '0', '1'],
     lambda image: (image[..., :2] != 0).all(axis=2)),
    (['--extra_mask', 'extra.tif'],
     lambda image: (image != 0).any(axis=2) & (np.arange(110) % 3 > 0))])
def test_raster_to_mask(tmp_path, raster, image, capsys, monkeypatch, options, find):
    monkeypatch.chdir(tmp_path)
    extra = np.broadcast_to(np.arange(110) % 3, (90, 110)).astype(np.uint8)
    write_cog(tmp_path / 'extra.tif', extra)
    dst = tmp_path / 'valid.tif'
    assert mask(raster, dst, *options) == 0
    found, expected = read_raster(dst)[..., 0], find(image)
    np.testing.assert_array_equal(found, np.where(expected, 255, 0))
    assert verify_cog(dst).dtype == 'uint8'
    printed = capsys.readouterr().out
    assert f'mask      {dst}' in printed and 'reading' in printed
    assert f'valid     {expected.sum()} of {expected.size} px' in printed


@pytest.mark.parametrize('place', ['sidecar', 'internal'])
def test_raster_to_its_own_mask(raster, image, capsys, place):
    assert mask(raster, place, '--logic', 'any') == 0
    assert os.path.exists(sidecar_path(raster)) == (place == 'sidecar')
    expected = (image != 0).all(axis=2)
    assert f'valid     {expected.sum()} of' in capsys.readouterr().out
    assert mask(raster, place, '--logic', 'any') == 1
    assert 'overwrite=True' in capsys.readouterr().err
    assert mask(raster, place, '--overwrite') == 0


def test_config_file(tmp_path, raster, image):
    config = tmp_path / 'mask.yaml'
    config.write_text(f'src: {raster}\ndst: {tmp_path}/valid.tif\nlogic: any\n')
    assert main(['mask', '--config', os.fspath(config)]) == 0
    np.testing.assert_array_equal(read_raster(tmp_path / 'valid.tif')[..., 0] != 0,
                                  (image != 0).all(axis=2))


def test_manifest_to_manifest(tmp_path, capsys):
    src = demo_dataset(tmp_path / 'demo')
    src.dump()
    dst = tmp_path / 'out' / 'mask.kwcoco.json'
    options = ['--channels', 'red|nir', '--mask_channel', 'clear', '--logic', 'any', '--nodata',
               '100', '--valid_region']
    assert mask(src.fpath, dst, *options) == 0
    assert f'manifest  {dst}' in capsys.readouterr().out
    result = kwcoco.CocoDataset(dst)
    for image_id in result.images():
        image = result.coco_image(image_id)
        pixels = image.imdelay('red|nir', nodata_method='float').finalize()
        expected = ~((pixels == 100) | np.isnan(pixels)).any(axis=2)
        found = image.imdelay('clear', nodata_method=None).finalize().reshape(expected.shape)
        np.testing.assert_array_equal(found, np.where(expected, 255, 0))
        assert image.valid_region().to_shapely().area == pytest.approx(expected.sum())
    assert main(['verify', os.fspath(dst), '--full']) == 0
    before = {path: path.stat().st_mtime_ns for path in dst.parent.rglob('*.tif')}
    assert len(before) == result.n_images
    assert mask(src.fpath, dst, *options, '--resume') == 0
    assert {path: path.stat().st_mtime_ns for path in dst.parent.rglob('*.tif')} == before
    # Masks of masks would have the same channel.
    assert mask(dst, tmp_path / 'out' / 'again.kwcoco.json', *options) == 1
    assert 'clear' in capsys.readouterr().err
    assert mask(dst, tmp_path / 'out' / 'again.kwcoco.json', *options, '--overwrite') == 0


@pytest.mark.parametrize('options, message', [
    (['--logic', 'most'], "logic='most' is unknown"), (['--logic', '4'], r'must be in 1..3'),
    (['--nodata', 'file', '0'], 'must be numbers'), (['--nodata', '-1'], 'no value of pixels'),
    (['--bands', '3'], 'in 0..2'), (['--extra_mask', 'nowhere.tif'], 'nowhere.tif'),
    (['--extra_mask', 'image.tif'], 'has 3 bands'), (['--executor', 'many'], "executor='many'"),
    (['--resume'], '--resume is for manifests'), (['--channels', 'r'], '--channels is for'),
    (['--timeout', '0'], 'timeout=0')])
def test_wrong_options_of_a_raster(tmp_path, raster, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert mask(raster, 'valid.tif', *options) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ['image.tif']


def test_wrong_output(tmp_path, raster, capsys):
    assert mask(raster, tmp_path / 'valid.png') == 1
    assert 'ends with .tif, sidecar, or internal' in capsys.readouterr().err
    assert mask(raster, tmp_path / 'no' / 'valid.tif') == 1
    assert mask(tmp_path / 'none.tif', tmp_path / 'valid.tif') == 1
    assert main(['mask', raster]) == 2
    assert os.listdir(tmp_path) == ['image.tif']


def test_options_of_rasters_with_a_manifest(tmp_path, capsys):
    src = demo_dataset(tmp_path / 'demo')
    src.dump()
    for options in (['--bands', '0'], ['--extra_mask', 'a.tif'], ['--executor', 'threads']):
        assert mask(src.fpath, tmp_path / 'out.kwcoco.json', *options) == 1
        assert 'is for rasters' in capsys.readouterr().err
    assert mask(src.fpath, tmp_path / 'out.kwcoco.json', '--nodata', 'masks') == 1
    assert not (tmp_path / 'out.kwcoco.json').exists()
