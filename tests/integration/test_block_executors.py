"""Block runs by threads, processes and dask: the bytes of the serial run."""
import os
import pickle

import numpy as np
import pytest

from cocoseg import (WatershedParameters, blockwise_watershed, compute_mask, connected_components,
                     get_executor, map_blocks, write_cog)
from cocoseg.errors import OptionError, TaskError

from ..cells import OFFSETS_2D, OFFSETS_3D, make_affinities, make_cells

SHAPE = (150, 190)


@pytest.fixture(scope='module', params=['threads:2', 'processes:2', 'dask'])
def executor(request):
    if request.param == 'dask':
        pytest.importorskip('distributed')
    return get_executor(request.param)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Return a folder with affinities and an image with nodata."""
    folder = tmp_path_factory.mktemp('blocks')
    affinities = make_affinities(make_cells(SHAPE, 12), OFFSETS_2D, noise=0.3)
    write_cog(folder / 'affinities.tif', affinities, blocksize=64)
    image = np.random.default_rng(0).integers(0, 3, (*SHAPE, 3)).astype(np.uint8)
    write_cog(folder / 'image.tif', image, nodata=0, blocksize=64)
    volume = make_affinities(make_cells((24, 40, 44), 10), OFFSETS_3D, noise=0.2)
    np.save(folder / 'volume.npy', volume)
    return folder


def blur(pixels):
    """A function that can be imported."""
    padded = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), mode='edge').astype(np.float32)
    return (padded[:-2] + padded[1:-1] + padded[2:]) / 3


def fail_at(pixels, block):
    if block.index == (1, 1):
        raise ZeroDivisionError('no water here')
    return pixels


def list_runs(folder):
    """Return runs by name: each takes an executor and a path."""
    image, affinities = folder / 'image.tif', folder / 'affinities.tif'
    parameters = WatershedParameters(OFFSETS_2D, context=16, min_size=5)
    return {
        'map': lambda executor, dst: map_blocks(
            blur, image, dst, block_shape=64, halo=1, executor=executor),
        'mask': lambda executor, dst: compute_mask(
            image, dst, logic='any', block_shape=64, executor=executor),
        'components': lambda executor, dst: connected_components(
            image, dst, block_shape=64, by_value=True, executor=executor),
        'watershed': lambda executor, dst: blockwise_watershed(
            affinities, parameters, dst, block_shape=64, executor=executor),
    }


@pytest.mark.parametrize('name', ['map', 'mask', 'components', 'watershed'])
def test_files_have_the_same_bytes(executor, folder, tmp_path, name):
    run = list_runs(folder)[name]
    run('serial', tmp_path / 'serial.tif')
    run(executor, tmp_path / 'other.tif')
    assert (tmp_path / 'serial.tif').read_bytes() == (tmp_path / 'other.tif').read_bytes()
    # No folder of blocks, and no temporary, stays.
    assert sorted(os.listdir(tmp_path)) == ['other.tif', 'serial.tif']


def test_volumes_have_the_same_labels(executor, folder):
    volume = np.load(folder / 'volume.npy', mmap_mode='r')
    parameters = WatershedParameters(OFFSETS_3D, context=8)
    found = [blockwise_watershed(volume, parameters, block_shape=(8, 16, 16), executor=one)
             for one in ('serial', executor)]
    assert np.array_equal(found[0].output, found[1].output)
    assert np.array_equal(found[0].scores, found[1].scores, equal_nan=True)
    assert found[0].seams == found[1].seams
    assert set(found[1].timings.durations) >= {'reading', 'labeling', 'linking', 'writing'}


def test_a_failure_names_the_block_and_the_cause(executor, folder, tmp_path):
    with pytest.raises(TaskError, match=r'block \(1, 1\).*ZeroDivisionError: no water here'):
        map_blocks(fail_at, folder / 'image.tif', tmp_path / 'a.tif', block_shape=64,
                   executor=executor)
    assert not os.listdir(tmp_path)


def test_a_run_goes_on_with_another_executor(executor, folder, tmp_path):
    run = list_runs(folder)['watershed']
    run('serial', tmp_path / 'serial.tif')
    options = {'block_shape': 64, 'resume': True}
    parameters = WatershedParameters(OFFSETS_2D, context=16, min_size=5)

    class Cut:
        """Ends after five blocks, as a kill would."""

        n_workers = 1

        def run(self, func, tasks, **options):
            for number, task in enumerate(tasks):
                if number == 5:
                    raise KeyboardInterrupt
                yield task, func(task)
    with pytest.raises(KeyboardInterrupt):
        blockwise_watershed(folder / 'affinities.tif', parameters, tmp_path / 'cut.tif',
                            executor=Cut(), **options)
    result = blockwise_watershed(folder / 'affinities.tif', parameters, tmp_path / 'cut.tif',
                                 executor=executor, **options)
    assert result.n_resumed == 5
    assert (tmp_path / 'serial.tif').read_bytes() == (tmp_path / 'cut.tif').read_bytes()


def test_large_arrays_are_not_sent():
    executor = get_executor('processes:2')
    with pytest.raises(OptionError, match='path'):
        map_blocks(blur, np.zeros((3000, 3000, 1)), executor=executor)


def test_paths_are_absolute_where_they_are_sent(folder, monkeypatch):
    from cocoseg.io.strips import Source
    monkeypatch.chdir(folder)
    source = Source.open('image.tif')
    data = pickle.dumps(source)
    monkeypatch.chdir('/')
    assert pickle.loads(data).read_rows(0, 1).shape == (1, SHAPE[1], 3)
