"""The spool: finished blocks of one image, in RAM or in a file without a name."""
import errno
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cocoseg import BlockGrid, Window
from cocoseg.errors import CanvasError, CoverageError, ImageClosedError, WindowShapeError
from cocoseg.io.spool import BlockSpool
from cocoseg.protocols import BlockSink

from ..builders import watch_files

SHAPE = (20, 37, 3)
IMAGE = np.random.RandomState(0).randint(-9999, 32767, SHAPE).astype('i2')
BLOCKS = [block.core for block in BlockGrid(SHAPE, 8)]


@pytest.fixture(params=['ram', 'file'])
def make(request, tmp_path):
    """Return a function that makes a spool of each kind."""
    limit = {'ram': 1 << 20, 'file': 0}[request.param]

    def make_spool(shape=SHAPE, dtype='i2'):
        return BlockSpool(shape, dtype, tmp_path / 'spool', ram_nbytes=limit)
    return make_spool


@pytest.mark.parametrize('seed', [0, 1])
def test_blocks_in_any_order_make_the_image(make, seed):
    spool, order = make(), list(BLOCKS)
    assert isinstance(spool, BlockSink)
    np.random.RandomState(seed).shuffle(order)
    for index, window in enumerate(order):
        assert not spool.is_complete
        spool.write_block(window, IMAGE[window.slices])
        assert spool.is_complete == (index == len(order) - 1)
    assert spool.data.dtype == np.int16 and spool.data.flags.c_contiguous
    assert np.array_equal(spool.data, IMAGE)


def test_blocks_from_threads(make):
    spool = make()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda window: spool.write_block(window, IMAGE[window.slices]), BLOCKS))
    assert spool.is_complete and np.array_equal(spool.data, IMAGE)


@pytest.mark.parametrize('dtype', ['u1', 'i2', 'f4', 'f8'])
def test_every_dtype_is_kept(make, dtype):
    spool, image = make(dtype=dtype), IMAGE.astype(dtype)
    spool.write_block(Window.from_shape(SHAPE), image)
    assert spool.data.dtype == dtype and np.array_equal(spool.data, image)


def test_nan_is_kept(make):
    spool = make((2, 2, 1), 'f4')
    spool.write_block(Window(0, 0, 2, 2), np.full((2, 2, 1), np.nan, 'f4'))
    assert np.isnan(spool.data).all()


@pytest.mark.parametrize('window, block, error', [
    (Window(0, 0, 8, 8), np.zeros((8, 7, 3), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8, 2), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8, 3), 'i4'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8, 3), 'u2'), WindowShapeError),
    (Window(16, 0, 24, 8), np.zeros((8, 8, 3), 'i2'), CoverageError),
    (Window(-8, 0, 0, 8), np.zeros((8, 8, 3), 'i2'), CoverageError),
    (Window(4, 4, 4, 8), np.zeros((0, 4, 3), 'i2'), CoverageError)])
def test_what_does_not_fit_is_refused(make, window, block, error):
    spool = make()
    with pytest.raises(error, match='y='):
        spool.write_block(window, block)
    assert (spool.data == 0).all() and not spool.is_complete


def test_a_block_is_written_once(make):
    spool = make()
    spool.write_block(BLOCKS[0], IMAGE[BLOCKS[0].slices])
    with pytest.raises(CoverageError, match='twice'):
        spool.write_block(BLOCKS[0], np.zeros((8, 8, 3), 'i2'))
    assert np.array_equal(spool.data[BLOCKS[0].slices], IMAGE[BLOCKS[0].slices])


class Broken:
    """An array that cannot be copied."""

    shape, dtype = (8, 8, 3), np.dtype('i2')

    def __array__(self, dtype=None, copy=None):
        raise OSError(errno.EIO, 'Input/output error (simulated)')


def test_a_block_that_failed_can_be_given_again(make):
    spool = make()
    with pytest.raises(OSError, match='simulated'):
        spool.write_block(BLOCKS[0], Broken())
    spool.write_block(BLOCKS[0], IMAGE[BLOCKS[0].slices])
    assert np.array_equal(spool.data[BLOCKS[0].slices], IMAGE[BLOCKS[0].slices])


def test_a_closed_spool_is_empty_and_refuses(make):
    spool = make()
    view = spool.data
    spool.close()
    spool.close()
    assert spool.nbytes == 0
    with pytest.raises(ImageClosedError):
        spool.write_block(BLOCKS[0], IMAGE[BLOCKS[0].slices])
    with pytest.raises(ImageClosedError):
        assert spool.data is None
    # Whoever still reads is not hurt.
    assert (view == 0).all()


# ---- where it is -----------------------------------------------------------

def test_small_images_stay_in_ram(tmp_path, monkeypatch):
    made = watch_files(monkeypatch)
    spool = BlockSpool(SHAPE, 'i2', ram_nbytes=IMAGE.nbytes)
    assert spool.nbytes == IMAGE.nbytes and made == []
    beyond = BlockSpool(SHAPE, 'i2', tmp_path, ram_nbytes=IMAGE.nbytes - 1)
    assert beyond.nbytes == 0 and made == [('spool', str(tmp_path))]


def test_files_have_no_name_and_all_their_space_at_once(tmp_path, monkeypatch):
    reserved = []

    def reserve(descriptor, offset, nbytes):
        os.truncate(descriptor, offset + nbytes)
        reserved.append((offset, os.fstat(descriptor).st_size))
    monkeypatch.setattr(os, 'posix_fallocate', reserve, raising=False)
    spool = BlockSpool(SHAPE, 'i2', tmp_path, ram_nbytes=0)
    assert reserved == [(0, IMAGE.nbytes)]
    spool.write_block(Window.from_shape(SHAPE), IMAGE)
    assert os.listdir(tmp_path) == []


def test_the_default_folder_is_that_for_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 'missing'))
    with pytest.raises(CanvasError, match='missing'):
        BlockSpool(SHAPE, 'i2', ram_nbytes=0)


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EFBIG, errno.EIO])
def test_a_full_disk_is_an_error_at_once(tmp_path, monkeypatch, code):
    def refuse(descriptor, offset, nbytes):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, 'posix_fallocate', refuse, raising=False)
    with pytest.raises(CanvasError, match=f'{IMAGE.nbytes} bytes.*folder') as caught:
        BlockSpool(SHAPE, 'i2', tmp_path, ram_nbytes=0)
    assert caught.value.errno == code
    monkeypatch.undo()
    BlockSpool(SHAPE, 'i2', tmp_path, ram_nbytes=0).close()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('code', [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_a_disk_that_cannot_reserve_is_used_all_the_same(tmp_path, monkeypatch, code):
    def refuse(descriptor, offset, nbytes):
        raise OSError(code, os.strerror(code))
    monkeypatch.setattr(os, 'posix_fallocate', refuse, raising=False)
    spool = BlockSpool(SHAPE, 'i2', tmp_path, ram_nbytes=0)
    spool.write_block(Window.from_shape(SHAPE), IMAGE)
    assert np.array_equal(spool.data, IMAGE)


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(CanvasError, match='file'):
        BlockSpool(SHAPE, 'i2', tmp_path / 'file', ram_nbytes=0)


def test_too_little_memory(monkeypatch):
    def refuse(shape, dtype):
        raise MemoryError('Unable to allocate (simulated)')
    monkeypatch.setattr(np, 'zeros', refuse)
    with pytest.raises(CanvasError, match='simulated') as caught:
        BlockSpool(SHAPE, 'i2')
    assert caught.value.errno == errno.ENOMEM
