"""connected_components: inputs, outputs, and what is refused."""
import os

import numpy as np
import pytest

from cocoseg import CogWriter, connected_components, verify_cog, write_cog
from cocoseg.errors import OptionError, TaskError
from cocoseg.io.raster import read_raster

IMAGE = np.array([[1, 1, 0, 3], [0, 1, 0, 3], [2, 0, 0, 0]], np.uint8)
LABELS = [[1, 1, 0, 2], [0, 1, 0, 2], [3, 0, 0, 0]]


def test_a_file_becomes_a_file_with_its_place(tmp_path):
    src, dst = tmp_path / 'mask.tif', tmp_path / 'labels.tif'
    write_cog(src, np.kron(IMAGE, np.ones((40, 40), np.uint8)), crs=32618,
              transform=(500, 10, 0, 800, 0, -10))
    result = connected_components(src, dst, block_shape=64, executor='threads:2')
    assert result.output == str(dst) and result.n_labels == 3
    report = verify_cog(dst, full=True)
    assert report.shape == (120, 160, 1)
    found = read_raster(dst)[..., 0]
    assert found.dtype == np.uint32
    assert found[::40, ::40].tolist() == LABELS
    from cocoseg.io.raster import raster_info
    assert raster_info(dst).geotransform == (500, 10, 0, 800, 0, -10)
    # No folder of blocks stays.
    assert sorted(os.listdir(tmp_path)) == ['labels.tif', 'mask.tif']


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int16', 'uint32', 'float32', 'float64'])
def test_all_but_zero_is_an_object_whatever_the_type(dtype):
    assert connected_components(IMAGE.astype(dtype), block_shape=2).output.tolist() == LABELS


def test_nan_is_no_object():
    image = np.where(IMAGE == 3, np.nan, IMAGE)
    assert connected_components(image, block_shape=2).output.tolist() == (
        [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0]])
    assert connected_components(image, block_shape=2, threshold=2).sizes.tolist() == [0, 1]


def test_a_threshold_belongs_to_the_objects():
    assert connected_components(IMAGE / 4, threshold=0.5).output.tolist() == (
        [[0, 0, 0, 1], [0, 0, 0, 1], [2, 0, 0, 0]])


def test_nodata_is_background(tmp_path):
    write_cog(tmp_path / 'a.tif', np.kron(IMAGE, np.ones((9, 9), np.uint8)), nodata=3)
    for options in ({}, {'by_value': True}):
        result = connected_components(tmp_path / 'a.tif', block_shape=16, **options)
        assert result.sizes.tolist() == [0, 3 * 81, 81]


def test_a_band_is_chosen():
    image = np.stack([np.zeros_like(IMAGE), IMAGE], axis=2)
    assert connected_components(image, band=1).output.tolist() == LABELS
    assert connected_components(image).n_labels == 0


def test_values_beyond_31_bits_are_told_apart_at_borders():
    image = np.array([[2 ** 40, 2 ** 40 + 1, 2 ** 40 + 1]], np.uint64)
    assert connected_components(image, block_shape=1, by_value=True).output.tolist() == [[1, 2, 2]]


def test_an_image_smaller_than_a_block_and_one_without_objects():
    assert connected_components(IMAGE, block_shape=1000).output.tolist() == LABELS
    empty = connected_components(np.zeros((5, 7), np.uint8), block_shape=3)
    assert empty.n_labels == 0 and not empty.output.any() and empty.agreement == 1


def test_what_was_given_is_not_modified():
    image = IMAGE.copy()
    image.flags.writeable = False
    connected_components(image, block_shape=2)
    assert np.array_equal(image, IMAGE)


def test_a_memory_map_is_filled_in_place(tmp_path):
    out = np.lib.format.open_memmap(tmp_path / 'out.npy', 'w+', np.uint32, IMAGE.shape)
    result = connected_components(IMAGE, out, block_shape=2)
    assert result.output is out and np.load(tmp_path / 'out.npy').tolist() == LABELS


def test_blocks_are_kept_where_asked(tmp_path):
    work = tmp_path / 'work'
    connected_components(IMAGE, block_shape=2, workdir=work, keep_tmpdir=True)
    assert len([*work.glob('0-0.*.facts.npy'), *work.glob('0-0.*.labels.npy')]) == 2
    assert (work / 'blocks.jsonl').exists()
    assert connected_components(IMAGE, block_shape=2, workdir=work, resume=True).n_resumed == 4
    assert not work.exists()


@pytest.mark.parametrize('options', [
    {'connectivity': 6}, {'connectivity': True}, {'connectivity': 4.5}, {'band': 1}, {'band': -1},
    {'threshold': np.nan}, {'by_value': True, 'threshold': 1}, {'min_size': -1},
    {'min_size': 2.5}, {'block_shape': 0}, {'block_shape': (4, 4, 4)}, {'resume': True},
    {'compress': 'ZSTD'}, {'max_retries': -1}, {'dst': np.zeros((3, 3), np.uint32)},
    {'dst': np.zeros((3, 4), np.uint8)}, {'dst': 'labels.jpg'}])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        connected_components(IMAGE, **options)


def test_values_are_whole_numbers_of_at_least_zero():
    with pytest.raises(OptionError, match='float64'):
        connected_components(IMAGE.astype(float), by_value=True)
    with pytest.raises(TaskError, match='OptionError.*-1'):
        connected_components(IMAGE.astype(int) - 1, by_value=True)


def test_an_existing_output_stays_without_overwrite(tmp_path):
    dst = tmp_path / 'labels.tif'
    dst.write_text('precious')
    with pytest.raises(OptionError, match='overwrite'):
        connected_components(IMAGE, dst)
    assert dst.read_text() == 'precious' and os.listdir(tmp_path) == ['labels.tif']
    connected_components(IMAGE, dst, overwrite=True)
    assert read_raster(dst)[..., 0].tolist() == LABELS


def test_nothing_stays_of_a_run_that_fails(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(CogWriter, 'write_block', fail)
    with pytest.raises(OSError):
        connected_components(IMAGE, tmp_path / 'labels.tif')
    assert not os.listdir(tmp_path)
