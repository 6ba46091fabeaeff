"""
What goes wrong in riogrande's block-parallel masks, as tests of ours.

Each test names the fault. The names of its features are those of the table in
docs/howto/migrate_from_riogrande.rst.
"""
import inspect
import io
import os
import re
import threading
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

import cocoseg
from cocoseg import BlockGrid, map_blocks, write_cog
from cocoseg.errors import OptionError, ResumeError, TaskError
from cocoseg.io.images import write_tif
from cocoseg.io.mask_file import sidecar_path
from cocoseg.io.raster import read_raster
from cocoseg.postprocess.masks import compute_mask, prepare_selector


@pytest.fixture
def image():
    image = np.random.default_rng(0).integers(1, 9, (60, 70, 3)).astype(np.uint8)
    image[:20, :30] = 0
    image[:25, :20, 1] = 0
    return image


def test_a_misspelt_logic_is_not_all(image):
    for logic in ('al', 'ANY', 'or', ''):
        with pytest.raises(OptionError, match='logic='):
            compute_mask(image, nodata=0, logic=logic)


def test_a_callable_logic_is_called(image):
    """It was documented, and taken for 'all'."""
    found = compute_mask(image, nodata=0, logic=lambda nodata: nodata[1])
    np.testing.assert_array_equal(found, image[..., 1] != 0)


@pytest.mark.parametrize('executor', ['serial', 'threads:1'])
def test_one_worker_does_not_wait_for_itself(image, tmp_path, executor):
    """With one CPU the collector took the only worker, and nothing moved."""
    done = []

    def run():
        compute_mask(image, tmp_path / 'a.tif', nodata=0, block_shape=16, executor=executor)
        done.append(prepare_selector(image, block_shape=16, executor=executor))
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout=120)
    assert done and done[0].all()


@pytest.mark.parametrize('shape', [(1, 1), (3, 200), (59, 70), (61, 71)])
def test_a_raster_smaller_than_a_block(shape):
    """It got blocks with negative origins."""
    image = np.random.default_rng(1).integers(0, 2, (*shape, 2)).astype(np.uint8)
    found = compute_mask(image, nodata=0, logic='any', block_shape=(60, 1000))
    np.testing.assert_array_equal(found, (image != 0).all(axis=2))


@pytest.mark.parametrize('shape, block', [((60, 70), 32), ((7, 5), 3), ((4, 4), 9), ((33, 1), 32)])
def test_blocks_partition_with_a_border(shape, block):
    """What was left over shrank the block before the last."""
    count = np.zeros(shape, int)
    for one in BlockGrid(shape, block, halo=2):
        count[one.core.slices] += 1
        assert one.read.contains(one.core) and one.read.clip(shape) == one.read
    assert (count == 1).all()


def test_blocks_in_flight_are_bounded(image):
    """The queue of results had no limit."""
    lock, open_now, most = threading.Lock(), set(), []

    def begin(data, block):
        with lock:
            open_now.add(block.index)
            most.append(len(open_now))
        return data[..., :1]

    class Slow:
        def write_block(self, window, block):
            with lock:
                open_now.discard((window.y0 // 4, window.x0 // 4))
    map_blocks(begin, image, Slow(), block_shape=4, executor='threads:2', max_pending=3)
    assert len(most) == 15 * 18 and max(most) <= 4


def test_the_file_that_is_read_is_not_written(image, tmp_path):
    """The mask went into the file that the workers held open."""
    fpath = tmp_path / 'a.tif'
    write_tif(fpath, image, nodata=0)
    before, seen = fpath.read_bytes(), []

    def watch(nodata):
        seen.append(fpath.read_bytes() == before)
        return nodata.all(axis=0)
    compute_mask(fpath, 'internal', logic=watch, block_shape=16)
    assert len(seen) == 20 and all(seen)
    assert fpath.read_bytes() != before
    np.testing.assert_array_equal(read_raster(fpath), image)


def test_a_block_that_fails_is_tried_again(image):
    failures = iter([True, False, True])

    def stumble(nodata):
        if next(failures, False):
            raise OSError('the disk was busy')
        return nodata.any(axis=0)
    found = compute_mask(image, nodata=0, logic=stumble, block_shape=40, max_retries=2)
    np.testing.assert_array_equal(found, (image != 0).all(axis=2))


def test_a_run_that_was_cut_short_goes_on(image, tmp_path):
    seen, is_broken = [], [True]

    def work(nodata):
        seen.append(nodata.shape)
        if is_broken[0] and len(seen) == 4:
            raise OSError('killed')
        return nodata.any(axis=0)
    options = {'nodata': 0, 'logic': work, 'block_shape': 30, 'max_retries': 0, 'resume': True}
    write_cog(tmp_path / 'a.tif', image)
    with pytest.raises(TaskError, match='killed'):
        compute_mask(tmp_path / 'a.tif', tmp_path / 'mask.tif', **options)
    assert not (tmp_path / 'mask.tif').exists()
    is_broken[0] = False
    result = compute_mask(tmp_path / 'a.tif', tmp_path / 'mask.tif', **options)
    assert (result.n_resumed, result.n_blocks, len(seen)) == (3, 6, 4 + 3)
    np.testing.assert_array_equal(read_raster(tmp_path / 'mask.tif')[..., 0] != 0,
                                  (image != 0).all(axis=2))


def test_another_input_is_not_resumed(image, tmp_path):
    seen, is_broken = [], [True]

    def work(nodata):
        seen.append(nodata.shape)
        if is_broken[0] and len(seen) == 4:
            raise OSError('killed')
        return nodata.any(axis=0)
    extra = np.ones(image.shape[:2], np.uint8)
    options = {'nodata': 0, 'logic': work, 'block_shape': 30, 'max_retries': 0, 'resume': True}
    with pytest.raises(TaskError, match='killed'):
        compute_mask(image, tmp_path / 'mask.tif', extra_mask=extra, **options)
    is_broken[0] = False
    for changes in ({'nodata': 1}, {'bands': [0, 1]}, {'extra_mask': 1 - extra}, {}):
        with pytest.raises(ResumeError):
            compute_mask(image, tmp_path / 'mask.tif', **{**options, **changes})
    with pytest.raises(ResumeError):
        compute_mask(image + 1, tmp_path / 'mask.tif', extra_mask=extra, **options)
    result = compute_mask(image, tmp_path / 'mask.tif', extra_mask=extra, **options)
    assert result.n_resumed == 3


def test_nothing_is_printed(image, tmp_path):
    write_tif(tmp_path / 'a.tif', image)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        compute_mask(tmp_path / 'a.tif', 'sidecar', nodata=0)
        prepare_selector(tmp_path / 'a.tif', extra_masking_band=image[..., 0])
    assert out.getvalue() == '' and os.path.exists(sidecar_path(tmp_path / 'a.tif'))


def test_timings_are_kept(image, tmp_path):
    """They were measured, and mostly dropped."""
    result = compute_mask(image, tmp_path / 'a.tif', nodata=0, block_shape=30)
    assert result.timings.summary()['reading']['count'] == result.n_blocks == 6
    assert 'reading' in result.format_timings()


def test_a_selector_need_not_fit_in_memory(image, tmp_path):
    """It was a whole matrix always."""
    lazy = prepare_selector(image, extra_masking_band=image[..., 0], lazy=True)
    result = map_blocks(lambda data, selected: np.where(selected != 0, data, 0),
                        [image, lazy], tmp_path / 'selected.tif', block_shape=16)
    np.testing.assert_array_equal(read_raster(result.output),
                                  np.where(image[..., :1] != 0, image, 0))


FEATURES = ('compute_mask prepare_selector create_views process_block process_masks runner_call '
            'combine_views data_writer fill_matrix TimedTask')


def test_all_of_its_features_are_in_the_table(repo_root):
    text = (repo_root / 'docs' / 'howto' / 'migrate_from_riogrande.rst').read_text('utf-8')
    # What comes then is checked in tests/integration/test_migration_pages.py.
    text = text.partition('.. list-table:: What the documentation refers to')[0]
    rows = re.findall(r'^   \* - ``(\w+)``\n     - ``(\w+)``$', text, re.MULTILINE)
    theirs, ours = zip(*rows)
    assert set(FEATURES.split()) <= set(theirs)
    functions = rows[:len(FEATURES.split())]
    assert all(hasattr(cocoseg, name) for _, name in functions)
    # The last two are of map_blocks, and of what it calls; their row may name a function, too.
    arguments = {*inspect.signature(compute_mask).parameters,
                 *inspect.signature(prepare_selector).parameters,
                 *inspect.signature(map_blocks).parameters, 'progress', 'block',
                 'compute_mask', 'prepare_selector'}
    assert {name for _, name in rows[len(functions):]} <= arguments
