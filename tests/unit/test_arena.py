"""Memory of canvases: slabs that are used again, mapped files, and the spill file."""
import errno
import gc
import mmap
import os
import resource
import tempfile
from contextlib import contextmanager

import numpy as np
import pytest

from cocoseg.errors import CanvasError
from cocoseg.stitch.arena import Arena, FileArena, SpillFile

DTYPES = ('float32', 'float64')
MIB = 1 << 20


@contextmanager
def full_disk(nbytes=0):
    """Let no file be written beyond a size."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def count_open_files():
    gc.collect()
    return len(os.listdir('/dev/fd'))


def make(kind, size, dtype):
    if kind == 'files':
        return FileArena(size, np.dtype(dtype))
    return Arena(size, dtype, n_arrays=100, grouped=kind == 'grouped')


# ---- arrays ----------------------------------------------------------------

@pytest.mark.parametrize('kind', ['grouped', 'alone', 'files'])
@pytest.mark.parametrize('size', [1, 15, 16, 17, 1000])
@pytest.mark.parametrize('dtype', DTYPES)
def test_arrays_are_zero_and_share_nothing(dtype, size, kind):
    arena, taken = make(kind, size, dtype), []
    for number in range(20):
        array = arena.take()
        assert array.dtype == dtype and array.ndim == 1 and array.size >= size
        assert not array.any()
        array[...] = number + 1
        taken.append(array)
        assert arena.nbytes >= sum(part.nbytes for part in taken)
    assert all((array == number + 1).all() for number, array in enumerate(taken))


@pytest.mark.parametrize('kind', ['grouped', 'alone', 'files'])
def test_what_was_given_back_is_clean(kind):
    arena, rng, taken = make(kind, 100, 'f4'), np.random.RandomState(0), []
    peak = 0
    for _ in range(200):
        if taken and rng.rand() < 0.5:
            arena.give(taken.pop(rng.randint(len(taken))))
        elif len(taken) < 10:
            taken.append(arena.take())
            assert not taken[-1].any()
            taken[-1][...] = np.nan
        peak = max(peak, arena.nbytes)
    n_most = 10 + (100 // 16 if kind == 'grouped' else 0)
    assert peak <= n_most * 112 * 4, 'the memory is used again'
    assert not any(np.shares_memory(first, second)
                   for n, first in enumerate(taken) for second in taken[:n])
    for array in taken:
        arena.give(array)
    assert (arena.nbytes == 0) == (kind != 'grouped')


@pytest.mark.parametrize('kind', ['grouped', 'alone', 'files'])
def test_closing(kind):
    arena = make(kind, 100, 'f4')
    first, second = arena.take(), arena.take()
    second[...] = 7
    arena.give(first)
    for _ in range(2):
        arena.close()
        assert arena.nbytes == 0
    assert (second == 7).all(), 'it is in use'
    arena.give(second)
    assert arena.nbytes == 0


@pytest.mark.parametrize('n_arrays, expected', [
    (None, 32), (1, 1), (16, 1), (64, 4), (10 ** 6, 32)])
def test_slabs_hold_many_arrays_but_not_much_of_an_image(n_arrays, expected):
    arena = Arena(MIB // 4, 'f4', n_arrays)
    arrays = [arena.take() for _ in range(expected)]
    assert arena.nbytes == expected * MIB
    arrays.append(arena.take())
    assert arena.nbytes == 2 * expected * MIB


@pytest.mark.parametrize('nbytes', [4 * MIB - 64, 4 * MIB, 5 * MIB])
def test_large_arrays(nbytes):
    array = Arena(nbytes // 8, 'f8', n_arrays=1).take()
    assert array.nbytes == nbytes and not array.any()
    if nbytes >= 4 * MIB:
        assert array.ctypes.data % (2 * MIB) == 0
    array[...] = 1
    assert array.sum() == nbytes // 8


def test_a_large_array_lives_as_long_as_it_is_used():
    arena = Arena(MIB, 'f8')
    array = arena.take()
    array[...] = 3
    arena.close()
    del arena
    gc.collect()
    assert (array == 3).all()


def test_systems_without_huge_pages(monkeypatch):
    class Refusing(mmap.mmap):
        def madvise(self, *args):
            raise OSError(errno.EINVAL, 'Invalid argument')
    with monkeypatch.context() as patch:
        patch.setattr(mmap, 'mmap', Refusing)
        assert not Arena(MIB, 'f8').take().any()
    monkeypatch.delattr(mmap, 'MADV_HUGEPAGE', raising=False)
    assert not Arena(MIB, 'f8').take().any()


@pytest.mark.parametrize('size', [10 ** 15, 10 ** 20])
def test_more_memory_than_there_is(size):
    for grouped in (False, True):
        arena = Arena(size, 'f4', grouped=grouped)
        with pytest.raises(MemoryError, match='cannot map'):
            arena.take()
        assert arena.nbytes == 0


# ---- files -----------------------------------------------------------------

def test_mapped_files_have_no_name_and_end_with_their_array(tmp_path):
    before = count_open_files()
    arena = FileArena(1000, np.dtype('f4'), tmp_path / 'new')
    array = arena.take()
    array[...] = 1
    assert arena.nbytes == 4000
    assert os.listdir(tmp_path / 'new') == []
    arena.give(array)
    assert arena.nbytes == 0
    del array
    assert count_open_files() == before


def test_the_space_of_a_mapped_file_is_reserved(tmp_path, monkeypatch):
    calls, reserve = [], os.posix_fallocate
    monkeypatch.setattr(os, 'posix_fallocate', lambda *args: (calls.append(args), reserve(*args)))
    FileArena(1000, np.dtype('f8'), tmp_path).take()
    assert [call[1:] for call in calls] == [(0, 8000)]


def test_a_full_disk_for_a_mapped_file(tmp_path):
    arena, before = FileArena(1000, np.dtype('f4'), tmp_path), count_open_files()
    with full_disk(100):
        with pytest.raises(CanvasError, match='cannot map 4000 bytes') as caught:
            arena.take()
    assert caught.value.errno == errno.EFBIG and str(tmp_path) in str(caught.value)
    assert arena.nbytes == 0 and os.listdir(tmp_path) == [] and count_open_files() == before
    assert not arena.take().any()


# ---- the spill file --------------------------------------------------------

def make_arrays(seed, sizes=(30, 10), dtype='f4'):
    rng = np.random.RandomState(seed)
    return [rng.rand(5, size).astype(dtype) for size in sizes]


def fetch(store, key, arrays):
    """Return what is stored under a key, into arrays like those that were put."""
    found = [np.full_like(array, np.nan) for array in arrays]
    store.fetch(key, found)
    return found


def assert_stored(store, blocks):
    for key, arrays in blocks.items():
        assert key in store
        assert all(map(np.array_equal, fetch(store, key, arrays), arrays))
        assert key not in store


@pytest.mark.parametrize('dtype', DTYPES)
def test_blocks_come_back_in_any_order(tmp_path, dtype):
    store, rng, blocks = SpillFile(40 * 5 * 8, tmp_path), np.random.RandomState(0), {}
    for turn in range(100):
        if blocks and rng.rand() < 0.5:
            key = list(blocks)[rng.randint(len(blocks))]
            assert_stored(store, {key: blocks.pop(key)})
        elif len(blocks) < 6:
            # Blocks at the border are smaller, and some have one array only.
            blocks[turn, 0] = make_arrays(turn, [(30, 10), (30,), (7, 2)][turn % 3], dtype)
            store.put((turn, 0), blocks[turn, 0])
        assert os.listdir(tmp_path) == []
        assert all(key in store for key in blocks)
    assert os.fstat(store._file.fileno()).st_size <= 6 * 40 * 5 * 8, 'places are used again'
    assert_stored(store, blocks)
    store.close()


def test_nothing_is_made_until_it_is_needed(tmp_path):
    before = count_open_files()
    store = SpillFile(100, tmp_path / 'missing')
    assert 'a' not in store
    store.close()
    store.close()
    assert count_open_files() == before
    with pytest.raises(CanvasError, match='spill_dir'):
        store.put('a', make_arrays(0))
    assert 'a' not in store


@pytest.mark.parametrize('n_fits', range(4))
def test_a_full_disk_loses_nothing(n_fits):
    # Also where it fills up within an array, or between two of a block.
    nbytes = 40 * 5 * 4
    blocks = {key: make_arrays(key) for key in range(3)}
    store = SpillFile(nbytes)
    for key, arrays in blocks.items():
        store.put(key, arrays)
    last = make_arrays(9)
    with full_disk(3 * nbytes + n_fits * 250):
        if n_fits < 3:
            for _ in range(3):
                with pytest.raises(CanvasError, match='cannot spill') as caught:
                    store.put('last', last)
                assert caught.value.errno == errno.EFBIG
            assert 'last' not in store
        assert_stored(store, {1: blocks.pop(1)})
        store.put('last', last)
        assert_stored(store, {'last': last})
    store.put('last', last)
    store.put(1, make_arrays(1))
    assert os.fstat(store._file.fileno()).st_size <= 4 * nbytes
    assert_stored(store, {**blocks, 'last': last, 1: make_arrays(1)})
    store.close()


def test_a_full_disk_does_not_keep_the_file_open():
    before = count_open_files()
    store = SpillFile(4000)
    with full_disk(10):
        with pytest.raises(CanvasError):
            store.put('a', [np.ones(3, 'f4'), np.ones(3, 'f4')])
        store.close()
        store.close()
    assert count_open_files() == before


def test_a_file_that_was_cut_short_is_noticed():
    store = SpillFile(800)
    for key in range(2):
        store.put(key, make_arrays(key))
    os.ftruncate(store._file.fileno(), 1000)
    for _ in range(2):
        with pytest.raises(CanvasError, match='cut short') as caught:
            fetch(store, 1, make_arrays(1))
        assert caught.value.errno == errno.EIO
    assert 1 in store
    assert_stored(store, {0: make_arrays(0)})
    store.close()


def test_systems_that_write_and_read_a_little_at_a_time(monkeypatch):
    open_file = tempfile.TemporaryFile

    class Slow:
        def __init__(self, *args, **kwargs):
            self.file = open_file(*args, **kwargs)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            return self.file.write(data[:7])

        def readinto(self, data):
            return self.file.readinto(data[:11])
    monkeypatch.setattr(tempfile, 'TemporaryFile', Slow)
    store = SpillFile(800)
    blocks = {key: make_arrays(key) for key in range(3)}
    for key, arrays in blocks.items():
        store.put(key, arrays)
    assert_stored(store, blocks)
    store.close()


def test_a_store_that_was_closed_is_empty():
    store = SpillFile(800)
    store.put('a', make_arrays(0))
    store.close()
    assert 'a' not in store
    store.put('b', make_arrays(1))
    assert_stored(store, {'b': make_arrays(1)})
    store.close()
