"""``cocoseg segment``: rasters and manifests from the command line."""
import os

import kwcoco
import numpy as np
import pytest

from cocoseg import verify_cog
from cocoseg.cli.main import main
from cocoseg.coco.demo import demo_dataset
from cocoseg.io.cog import write_cog
from cocoseg.io.raster import raster_info, read_raster

OPTIONS = ['--n_clusters', '8', '--min_segment_size', '20']


@pytest.fixture
def raster(tmp_path):
    """A small raster of patches, uint8, 2 bands, nodata 0."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(1, 255, (12, 14, 2)), np.ones((9, 9, 1))).astype(np.uint8)
    image[:20, :30] = 0
    write_cog(tmp_path / 'image.tif', image, nodata=0, crs=32618,
              transform=(500000., 10., 0., 4000000., 0., -10.))
    return os.fspath(tmp_path / 'image.tif')


def segment(src, dst, *options):
    return main(['segment', os.fspath(src), '--dst', os.fspath(dst), *OPTIONS,
                 *map(os.fspath, options)])


def test_raster_to_raster(tmp_path, raster, capsys):
    dst = tmp_path / 'segments.tif'
    assert segment(raster, dst, '--tile_size', '64', '--overlap', '16', '--executor', 'threads:2',
                   '--table', tmp_path / 'sizes.csv') == 0
    printed = capsys.readouterr().out
    labels = read_raster(dst)[..., 0]
    assert np.array_equal(labels == 0, (read_raster(raster) == 0).any(axis=2))
    assert verify_cog(dst).dtype == 'uint32' and raster_info(dst).epsg == 32618
    assert f'segments  {labels.max()}' in printed and 'agreement' in printed
    assert 'Segmentation timings (s)' in printed and f'labels    {dst}' in printed
    assert len((tmp_path / 'sizes.csv').read_text().splitlines()) == labels.max() + 1


def test_saved_clusters_give_the_same(tmp_path, raster):
    first, again, clusters = (tmp_path / name for name in ('a.tif', 'b.tif', 'clusters.npz'))
    assert segment(raster, first, '--save_clusters', clusters) == 0
    assert segment(raster, again, '--clusters', clusters, '--seed', '5') == 0
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize('options', [
    ['--connectivity', '8', '--max_spectral_diff', 'none'],
    ['--max_spectral_diff', '3.5', '--bands', '1', '--init', 'diagonal'],
    ['--compat', 'pyshepseg', '--sample_percent', '100', '--recode', 'simple'],
    ['--driver', 'HFA', '--colors', '3', '--creation_options', 'COMPRESSED=YES'],
])
def test_options_reach_the_segmentation(tmp_path, raster, options):
    assert segment(raster, tmp_path / 'segments.out', *options) == 0
    assert read_raster(tmp_path / 'segments.out').max() > 10


def test_manifest_to_manifest(tmp_path, capsys):
    src = demo_dataset(tmp_path / 'demo')
    src.dump()
    dst = tmp_path / 'out' / 'segments.kwcoco.json'
    options = ['--tile_size', '256', '--overlap', '64', '--channels', 'red|nir']
    assert segment(src.fpath, dst, *options, '--save_clusters', tmp_path / 'c.npz') == 0
    assert f'manifest  {dst}' in capsys.readouterr().out
    result = kwcoco.CocoDataset(dst)
    for image_id in result.images():
        labels = result.coco_image(image_id).imdelay('segments', interpolation='nearest',
                                                     space='asset').finalize()
        assert labels.max() > 50
    assert main(['verify', os.fspath(dst), '--full']) == 0
    before = {path: path.read_bytes() for path in dst.parent.rglob('*.tif')}
    assert segment(src.fpath, dst, *options, '--resume') == 0
    assert {path: path.read_bytes() for path in dst.parent.rglob('*.tif')} == before


@pytest.mark.parametrize('options, message', [
    (['--polygons', 'True'], 'polygons is for manifests; leave it out; for outlines'),
    (['--resume', 'True'], 'resume is for manifests'),
    (['--channels', 'red'], 'channels is for manifests'),
    (['--max_spectral_diff', 'much'], "max_spectral_diff='much'"),
    (['--overlap', '31'], 'odd'),
    (['--clusters', 'image.tif'], 'holds no clusters'),
    (['--clusters', 'nowhere.npz'], 'nowhere.npz'),
    (['--save_clusters', 'no/folder/a.npz'], 'no/folder/a.npz'),
    (['--n_clusters', '1'], 'n_clusters=1'),
])
def test_wrong_options_of_a_raster(tmp_path, raster, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(['segment', raster, '--dst', 'segments.tif', *options]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert os.listdir(tmp_path) == ['image.tif']


def test_wrong_options_of_a_manifest(tmp_path, capsys):
    src = demo_dataset(tmp_path / 'demo')
    src.dump()
    for options in (['--executor', 'threads'], ['--table', 'a.csv'], ['--driver', 'HFA']):
        assert segment(src.fpath, tmp_path / 'out.kwcoco.json', *options) == 1
        assert 'is for rasters' in capsys.readouterr().err


def test_missing_input(tmp_path, capsys):
    assert segment(tmp_path / 'none.tif', tmp_path / 'segments.tif') == 1
    assert 'none.tif' in capsys.readouterr().err
    assert main(['segment']) == 2
