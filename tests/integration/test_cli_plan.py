"""``cocoseg plan``: what it says before is what the other commands do."""
import json
import os

import kwcoco
import numpy as np
import pytest

from cocoseg import ShepherdConfig, map_blocks, predict_dataset, segment_raster
from cocoseg.cli.main import main
from cocoseg.io.cog import write_cog
from cocoseg.io.images import write_tif
from cocoseg.io.raster import read_raster


@pytest.fixture
def plan(capsys):
    """A function that returns what the command prints, parsed."""
    def run(src, *options):
        capsys.readouterr()
        assert main(['plan', os.fspath(src), *map(str, options), '--json']) == 0
        return json.loads(capsys.readouterr().out)
    return run


@pytest.fixture
def raster(tmp_path):
    image = np.random.default_rng(0).integers(1, 200, (150, 210, 3), dtype=np.uint8)
    write_cog(tmp_path / 'image.tif', image)
    return tmp_path / 'image.tif'


@pytest.fixture
def manifest(tmp_path):
    """Two images of one size and one of another, with three bands."""
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(tmp_path / 'data.kwcoco.json')
    for name, (height, width) in {'a': (90, 70), 'b': (90, 70), 'c': (40, 120)}.items():
        fpath = os.fspath(tmp_path / f'{name}.tif')
        write_tif(fpath, np.full((height, width, 3), 7, np.uint8))
        dset.add_image(name=name, width=width, height=height, assets=[{
            'file_name': fpath, 'channels': 'r|g|b', 'width': width, 'height': height,
            'warp_aux_to_img': {'scale': 1.0}}])
    dset.dump()
    return dset.fpath


class Counter:
    """A predictor of five channels that counts windows and px."""

    def __init__(self):
        self.shapes = []

    def __call__(self, image):
        self.shapes.append(image.shape)
        return np.repeat(image.mean(axis=2, keepdims=True) / 255, 5, axis=2)


count_windows = Counter()


def test_prediction_is_as_planned(tmp_path, manifest, plan):
    found = plan(manifest, '--window', 32, '--overlap', 8, '--channels_out', 5)['plan']
    predictor = Counter()
    dset = predict_dataset(manifest, tmp_path / 'out' / 'out.kwcoco.json', predictor, 32, 8,
                           out_channels='v|w|x|y|z', expected_minmax=(0, 1))
    assert found['n_images'] == found['n_tasks'] == dset.n_images == 3
    assert found['n_units'] == len(predictor.shapes)
    assert found['n_read'] == sum(height * width for height, width, _ in predictor.shapes)
    files = list((tmp_path / 'out').rglob('*.tif'))
    assert found['result_nbytes'] == sum(read_raster(path).nbytes for path in files)
    assert sum(path.stat().st_size for path in files) <= found['temporary_nbytes']
    added = os.path.getsize(dset.fpath) - os.path.getsize(manifest)
    assert added / 3 < found['manifest_nbytes'] and added < 1.5 * found['manifest_nbytes']


def test_forecast_and_bound_are_of_one_kind(plan, monkeypatch):
    options = ['2000x3000', '--window', 256, '--overlap', 64, '--channels_out', 5]
    close = plan(*options)['plan']
    monkeypatch.setattr('cocoseg.cli.plan._MAX_FORECAST', 0)
    loose = plan(*options)['plan']
    assert close['worker_nbytes'] < loose['worker_nbytes'] < 2 * close['worker_nbytes']
    assert {**close, 'worker_nbytes': 0} == {**loose, 'worker_nbytes': 0}


def test_blocks_are_as_planned(raster, plan):
    found = plan(raster, '--for', 'blocks', '--block_shape', 64, 100, '--context', 3,
                 '--channels_out', 2, '--dtype', 'uint8')['plan']
    sizes = []
    def measure(pixels):
        sizes.append(pixels[..., 0].size)
        return pixels[..., :2]
    result = map_blocks(measure, raster, block_shape=(64, 100), halo=3)
    assert (found['n_units'], found['n_read']) == (result.n_blocks, sum(sizes))
    assert found['result_nbytes'] == result.output.nbytes
    more = plan(raster, '--for', 'blocks', '--executor', 'processes:2')['plan']
    same = plan(raster, '--for', 'blocks', '--resume')['plan']
    less = plan(raster, '--for', 'blocks')['plan']
    assert more['temporary_nbytes'] == same['temporary_nbytes'] > less['temporary_nbytes']


def test_volumes_have_three_axes(plan):
    found = plan('20x300x400', '--for', 'watershed', '--context', 4, 16, 16, '--channels_in', 3)
    assert found['plan']['n_units'] == 1 * 3 * 4
    assert found['plan']['n_pixels'] == 20 * 300 * 400


@pytest.mark.parametrize('shape, options, n_pixels, n_units', [
    ((10, 64, 64, 3), ['--block_shape', 8], 10 * 64 * 64, 2 * 8 * 8),
    ((64, 48), ['--block_shape', 32], 64 * 48, 4),
    ((10, 64, 64), ['--block_shape', 8, 64, 64], 10 * 64 * 64, 2)])
def test_zarr_arrays(tmp_path, plan, shape, options, n_pixels, n_units):
    zarr = pytest.importorskip('zarr')
    zarr.create_array(tmp_path / 'a.zarr', shape=shape, dtype='f4')
    found = plan(tmp_path / 'a.zarr', '--for', 'blocks', *options)['plan']
    assert (found['n_pixels'], found['n_units']) == (n_pixels, n_units)


def test_segmentation_is_as_planned(tmp_path, raster, plan):
    found = plan(raster, '--for', 'segment', '--window', 64, '--overlap', 16)['plan']
    result = segment_raster(raster, tmp_path / 'segments.tif', ShepherdConfig(n_clusters=4),
                            tile_size=64, overlap=16)
    assert found['n_units'] == np.prod(result.grid_shape)
    assert found['result_nbytes'] == read_raster(result.path).nbytes


@pytest.mark.parametrize('purpose', ['predict', 'blocks', 'watershed', 'segment'])
def test_sizes_that_are_not_here(plan, purpose):
    """A continent at half a meter, in no time."""
    found = plan('5500000x5500000', '--for', purpose, '--rate', 1, '--channels_in', 4)
    assert found['plan']['n_pixels'] == 5_500_000 ** 2
    assert found['seconds']['work'] == pytest.approx(found['plan']['n_read'] / 1e6)
    assert found['plan']['n_units'] > 1e6


def test_many_images_are_their_sum(plan):
    for purpose in ('predict', 'blocks', 'watershed'):
        one, many = (plan('100x80', '--for', purpose, '--n_images', n)['plan'] for n in (1, 1001))
        for name in ('n_images', 'n_units', 'n_tasks', 'n_read', 'result_nbytes', 'n_labels'):
            assert many[name] == 1001 * one[name]
        assert many['worker_nbytes'] == one['worker_nbytes']


def test_workers_share_the_time(plan):
    one, many = (plan('1000x1000', '--n_images', 64, '--rate', 1, '--executor', executor,
                      *options) for executor, options in
                 (('serial', ()), ('dask:tcp://localhost:8786', ('--n_workers', 32))))
    assert one['seconds']['work'] == pytest.approx(32 * many['seconds']['work'])
    assert (many['n_workers'], many['rate_from']) == (32, 'given')


def test_calibration_reads(raster, plan):
    for purpose in ('predict', 'blocks', 'watershed', 'segment'):
        found = plan(raster, '--for', purpose, '--calibrate')
        assert found['rate_from'] == 'reading only'
        assert found['pixels_per_second'] > 0 and found['seconds']['total'] > 0


def test_calibration_predicts(manifest, plan):
    count_windows.shapes.clear()
    found = plan(manifest, '--window', 32, '--calibrate', '--channels', 'r|b', '--predictor',
                 f'{__name__}:count_windows')
    assert found['rate_from'] == 'predicting'
    assert set(count_windows.shapes) == {(32, 32, 2)} and len(count_windows.shapes) == 5


def test_printed_plan(capsys):
    assert main(['plan', '4096x4096', '--for', 'watershed', '--channels_in', '4', '--rate', '0.5',
                 '--executor', 'dask:100']) == 0
    printed = capsys.readouterr().out
    assert 'blocks    64, ' in printed and 'tasks     192 for 100 dask workers' in printed
    assert 'result    67.1 MB raw' in printed and 'labels    about' in printed
    assert 'rate      0.5 Mpx/s per worker (given)' in printed and 'set the pace' in printed
    assert main(['plan', '4096x4096']) == 0
    printed = capsys.readouterr().out
    assert 'manifest' in printed and 'set the pace' not in printed


@pytest.mark.parametrize('src, options, message', [
    ('90x90', ['--block_shape', '4'], '--block_shape is for blocks and watershed'),
    ('90x90', ['--for', 'watershed', '--window', '4'], '--window is for predict and segment'),
    ('90x90', ['--dtype_in', 'uint8'], '--dtype_in is for'),
    ('90x90', ['--dtype', 'pixels'], 'is no type of pixels'),
    ('90x90', ['--calibrate'], 'needs pixels'),
    ('90x90', ['--space', 'image'], 'for a manifest'),
    ('90x90', ['--predictor', 'numpy:sqrt'], '--predictor is for --calibrate'),
    ('90x90', ['--executor', 'fibers'], "executor='fibers' is unknown"),
    ('90x90', ['--executor', 'threads:2'], 'one thread at a time'),
    ('90x90', ['--rate', '0'], 'above 0'),
    ('90x90', ['--overlap', '3.5'], 'whole pixels'),
    ('90x90', ['--overlap', '600'], 'below'),
    ('0x90', [], 'at least 1'),
    ('9x90x90', [], 'is a volume'),
    ('missing.kwcoco.json', [], 'is no file'),
    ('missing.kwcoco.json', ['--for', 'segment'], 'is a manifest'),
    ('missing.tif', ['--n_images', '2'], '--n_images is for a size'),
    ('missing.tif', [], 'missing.tif')])
def test_what_has_no_meaning_is_an_error(tmp_path, monkeypatch, capsys, src, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(['plan', src, *options]) == 1
    assert message in capsys.readouterr().err
