"""map_blocks: sources, sinks, halos, and whatever a function may do wrong."""
import functools
import os
import time

import numpy as np
import pytest
from scipy import ndimage

from cocoseg import Box, Roi, Window, map_blocks, write_cog
from cocoseg.errors import (BlockCheckError, CoverageError, OptionError, ResumeError, TaskError,
                            TaskTimeoutError, WindowShapeError)
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.protocols import MemorySink, MemorySource

IMAGE = np.random.default_rng(0).random((37, 53, 2)).astype(np.float32)


def blur(data):
    """A filter that reaches 2 px."""
    return ndimage.uniform_filter(data, (5, 5, 1), mode='nearest')


def test_a_filter_with_halo_is_that_of_the_whole():
    for block_shape in (8, (5, 20), 100):
        result = map_blocks(blur, IMAGE, block_shape=block_shape, halo=2, executor='threads:2')
        np.testing.assert_allclose(result.output, blur(IMAGE), rtol=1e-5)
    # Without it, it is not: the halo is read.
    assert not np.allclose(map_blocks(blur, IMAGE, block_shape=8).output, blur(IMAGE))


def test_volumes():
    volume = np.random.default_rng(0).random((9, 11, 13))
    def blur_volume(data):
        return ndimage.uniform_filter(data[..., 0], 3, mode='nearest')
    result = map_blocks(blur_volume, volume, block_shape=(4, 5, 6), halo=1)
    np.testing.assert_allclose(result.output, ndimage.uniform_filter(volume, 3, mode='nearest'))
    assert result.output.shape == volume.shape and result.n_blocks == 27


def test_functions_return_the_core_or_what_was_read_with_or_without_channels():
    def cut(data, block):
        return data[block.core.within(block.read).slices]
    whole = map_blocks(lambda data: data, IMAGE, block_shape=10, halo=3).output
    core = map_blocks(cut, IMAGE, block_shape=10, halo=3).output
    plane = map_blocks(lambda data: data[..., 1], IMAGE, block_shape=10, halo=3).output
    assert np.array_equal(whole, IMAGE) and np.array_equal(core, IMAGE)
    assert np.array_equal(plane, IMAGE[..., 1])


def test_ufuncs_and_partials_are_functions():
    assert np.array_equal(map_blocks(np.sqrt, IMAGE, block_shape=9).output, np.sqrt(IMAGE))
    assert np.array_equal(map_blocks(functools.partial(np.add, 1), IMAGE).output, IMAGE + 1)


def test_several_sources_are_several_arguments(tmp_path):
    write_cog(tmp_path / 'a.tif', IMAGE)
    result = map_blocks(lambda a, b: a[..., 0] + b[..., 0], [tmp_path / 'a.tif', IMAGE],
                        block_shape=16)
    assert np.array_equal(result.output, 2 * IMAGE[..., 0])
    with pytest.raises(OptionError, match='size'):
        map_blocks(np.add, [IMAGE, IMAGE[1:]])
    with pytest.raises(OptionError, match='none'):
        map_blocks(np.add, [])


def test_a_file_becomes_a_file_in_its_place(tmp_path):
    write_cog(tmp_path / 'a.tif', IMAGE, crs=32618, transform=(500, 10, 0, 800, 0, -10))
    result = map_blocks(lambda data: (data > 0.5).astype(np.uint8), tmp_path / 'a.tif',
                        tmp_path / 'b.tif', block_shape=16, nodata=255, channels=['x', 'y'])
    assert np.array_equal(read_raster(tmp_path / 'b.tif'), IMAGE > 0.5)
    info = raster_info(tmp_path / 'b.tif')
    assert info.geotransform == (500, 10, 0, 800, 0, -10) and info.channels == ('x', 'y')
    assert result.output == str(tmp_path / 'b.tif')
    assert sorted(os.listdir(tmp_path)) == ['a.tif', 'b.tif']


def test_a_part_has_its_own_place(tmp_path):
    write_cog(tmp_path / 'a.tif', IMAGE, crs=32618, transform=(500, 10, 0, 800, 0, -10))
    part = Window(4, 10, 30, 41)
    map_blocks(blur, tmp_path / 'a.tif', tmp_path / 'b.tif', roi=part, block_shape=16, halo=2)
    np.testing.assert_allclose(read_raster(tmp_path / 'b.tif'), blur(IMAGE[part.slices]), rtol=1e-5)
    assert raster_info(tmp_path / 'b.tif').geotransform == (600, 10, 0, 760, 0, -10)
    by_slices = map_blocks(blur, IMAGE, roi=part.slices, block_shape=16, halo=2).output
    np.testing.assert_allclose(by_slices, blur(IMAGE[part.slices]), rtol=1e-5)


@pytest.mark.parametrize('roi', [
    Window(0, 0, 0, 5), Window(-1, 0, 5, 5), Window(0, 0, 38, 5), Box((0, 0), (0, 9))])
def test_a_part_must_be_a_part(roi):
    with pytest.raises(CoverageError):
        map_blocks(blur, IMAGE, roi=roi)


@pytest.mark.parametrize('roi', [Box((0, 0, 0), (1, 1, 1)), 7, Roi((0, 0), (4, 4)), 'all'])
def test_a_part_is_in_the_axes_and_units_of_the_source(roi):
    with pytest.raises(OptionError):
        map_blocks(blur, IMAGE, roi=roi)


def test_regions_of_zarr_arrays_in_world_units(tmp_path):
    pytest.importorskip('zarr')
    from cocoseg import ZarrArray
    array = ZarrArray.create(tmp_path / 'a.zarr/raw', 'zyx', Roi((80, 0, 0), (320, 40, 40)), None,
                             (40, 4, 4), 'uint8')
    array.data[:] = np.arange(800).reshape(8, 10, 10) % 251
    map_blocks(lambda data: data + 1, array, tmp_path / 'b.zarr', block_shape=(2, 3, 4),
               roi=Roi((160, 8, 0), (80, 20, 40)))
    found = ZarrArray.open(tmp_path / 'b.zarr')
    assert found.roi == Roi((160, 8, 0), (80, 20, 40)) and found.voxel_size == (40, 4, 4)
    assert np.array_equal(found.data[:], array.data[2:4, 2:7] + 1)
    with pytest.raises(CoverageError, match='snap_to_grid'):
        map_blocks(np.sqrt, array, roi=Roi((160, 9, 0), (80, 20, 40)), block_shape=(2, 3, 4))
    with pytest.raises(CoverageError, match='empty'):
        map_blocks(np.sqrt, array, roi=Roi((160, 8, 0), (0, 20, 40)), block_shape=(2, 3, 4))


def test_ports_of_ones_own():
    sink = MemorySink()
    result = map_blocks(lambda data: data, MemorySource(IMAGE), sink, block_shape=10)
    assert result.output is sink and np.array_equal(sink.as_array(), IMAGE)


def test_the_order_of_workers_changes_nothing():
    def slow(data, block):
        time.sleep(0.002 * ((block.index[0] + block.index[1]) % 3))
        return data * 2
    for executor in ('serial', 'threads:4'):
        assert np.array_equal(map_blocks(slow, IMAGE, block_shape=10, executor=executor).output,
                              2 * IMAGE)


@pytest.mark.parametrize('result', [None, np.zeros((3, 3)), np.zeros(4), 'text', [1, 2, 3], {}])
def test_results_of_another_shape_are_refused(result):
    with pytest.raises(TaskError, match='block .* of .*WindowShapeError') as info:
        map_blocks(lambda data: result, IMAGE, block_shape=10)
    assert isinstance(info.value.__cause__, WindowShapeError)


def test_results_of_changing_type_are_refused():
    def change(data, block):
        return data.astype(np.float64 if block.index == (1, 1) else np.float32)
    with pytest.raises(WindowShapeError, match=r'float64.*\(1, 1\).*float32'):
        map_blocks(change, IMAGE, block_shape=10)


def test_a_failure_names_the_block_and_its_cause():
    def fail(data, block):
        if block.index == (2, 3):
            raise ZeroDivisionError('no water')
        return data
    with pytest.raises(TaskError, match=r'block \(2, 3\) at Window\(y=20:30, x=30:40\).*'
                       'ZeroDivisionError: no water'):
        map_blocks(fail, IMAGE, block_shape=10)


def test_retries_checks_and_timeouts():
    seen = []

    def flaky(data, block):
        seen.append(block.index)
        if seen.count(block.index) == 1:
            raise OSError('the network is slow')
        return data
    result = map_blocks(flaky, IMAGE, block_shape=20, max_retries=1)
    assert result.n_retries == result.n_blocks == 6 and np.array_equal(result.output, IMAGE)
    with pytest.raises(TaskError) as info:
        map_blocks(lambda data: data, IMAGE, check=lambda block, found: found.max() < 0.1,
                   max_retries=0)
    assert isinstance(info.value.__cause__, BlockCheckError)
    with pytest.raises(TaskTimeoutError):
        map_blocks(lambda data: time.sleep(0.05), IMAGE, timeout=0.01, executor='threads:2')


def test_functions_get_what_they_must_not_change():
    image = IMAGE.copy()
    image.flags.writeable = False
    map_blocks(blur, image, block_shape=10)
    assert np.array_equal(image, IMAGE)


def test_an_output_that_exists_stays(tmp_path):
    called = []
    dst = tmp_path / 'a.tif'
    dst.write_text('precious')
    with pytest.raises(OptionError, match='overwrite'):
        map_blocks(called.append, IMAGE, dst)
    assert not called and dst.read_text() == 'precious'


def test_nothing_stays_of_a_run_that_fails(tmp_path):
    def fail(data, block):
        if block.index == (3, 5):
            raise ValueError('late')
        return data
    with pytest.raises(TaskError):
        map_blocks(fail, IMAGE, tmp_path / 'a.tif', block_shape=10)
    assert not os.listdir(tmp_path)


def test_a_failed_run_is_resumed(tmp_path):
    called, broken = [], [True]

    def work(data, block):
        called.append(block.index)
        if broken and block.index == (3, 5):
            raise ValueError('late')
        return data
    options = {'block_shape': 10, 'resume': True, 'max_retries': 0}
    with pytest.raises(TaskError):
        map_blocks(work, IMAGE, tmp_path / 'a.tif', **options)
    assert os.listdir(tmp_path) == ['.a.tif.blocks']
    broken.clear()
    called.clear()
    result = map_blocks(work, IMAGE, tmp_path / 'a.tif', **options)
    assert called == [(3, 5)] and result.n_resumed == 23
    assert np.array_equal(read_raster(tmp_path / 'a.tif'), IMAGE)
    assert os.listdir(tmp_path) == ['a.tif']


def test_what_changed_meanwhile_is_not_resumed(tmp_path):
    def work(data):
        return data
    work_options = {'block_shape': 20, 'resume': True, 'workdir': tmp_path / 'w',
                    'keep_tmpdir': True}
    map_blocks(work, IMAGE, **work_options)
    with pytest.raises(ResumeError, match='crc'):
        map_blocks(work, IMAGE + 1, **work_options)
    with pytest.raises(ResumeError, match='block'):
        map_blocks(work, IMAGE, **{**work_options, 'block_shape': 21})
    with pytest.raises(ResumeError, match='func'):
        map_blocks(blur, IMAGE, **work_options)
    assert map_blocks(work, IMAGE, **work_options).n_resumed == 6


@pytest.mark.parametrize('options', [
    {'func': 5}, {'source': 'text.txt.zarrr'}, {'source': object()}, {'block_shape': 0},
    {'halo': -1}, {'sink': 'a.png'}, {'sink': np.zeros((3, 3))},
    {'max_retries': -1}, {'executor': 'x'}, {'unknown': 1}, {'resume': True}])
def test_wrong_options_are_refused(options):
    options = {'func': blur, 'source': IMAGE, **options}
    with pytest.raises((OptionError, OSError)):
        map_blocks(options.pop('func'), options.pop('source'), options.pop('sink', None), **options)
