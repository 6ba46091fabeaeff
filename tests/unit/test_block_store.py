"""The folder of block results: whole or not there, known again, one run at a time."""
import os

import numpy as np
import pytest

from cocoseg.engine.block_store import BlockFiles, BlockStore
from cocoseg.errors import BundleBusyError, OptionError, ResumeError

KEY = {'kind': 'test', 'block': (4, 4)}


def fill(folder, key=None, resume=False, indices=((0, 0), (0, 1))):
    with BlockStore(folder, key or KEY, resume) as store:
        for index in indices:
            store.note(index, store.files.save(index, {'labels': np.full(3, index[1])}))


def test_arrays_come_back_from_their_files_and_are_not_to_be_written(tmp_path):
    files = BlockFiles(tmp_path)
    pixels = np.arange(24).reshape(2, 3, 4)[:, ::-1]
    files.save((1, 2, 3), {'a': pixels, 'none': np.empty((0, 5), np.uint16)})
    found = files.load((1, 2, 3), 'a')
    assert np.array_equal(found, pixels) and isinstance(found, np.memmap)
    assert files.load((1, 2, 3), 'none').shape == (0, 5)
    with pytest.raises(ValueError, match='read-only'):
        found[0] = 1


def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch):
    files = BlockFiles(tmp_path)
    files.save((0, 0), {'a': np.ones(3)})

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('numpy.save', fail)
    with pytest.raises(OSError):
        files.save((0, 0), {'a': np.zeros(3)})
    assert os.listdir(tmp_path) == ['0-0.a.npy']
    assert files.load((0, 0), 'a').tolist() == [1, 1, 1]


def test_what_is_done_is_known_again(tmp_path):
    fill(tmp_path / 'work')
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        assert sorted(store.done) == [(0, 0), (0, 1)]
        assert store.is_done((0, 1)) and not store.is_done((5, 5))
    with BlockStore(tmp_path / 'work', KEY) as store:
        assert not store.done and os.listdir(store.folder) == ['blocks.jsonl']


def test_a_folder_of_other_settings_is_refused_with_what_differs(tmp_path):
    fill(tmp_path / 'work')
    with pytest.raises(ResumeError, match=r'block=\[4, 4\] instead of \[8, 8\]'):
        BlockStore(tmp_path / 'work', {**KEY, 'block': (8, 8)}, resume=True)
    # It is not touched by that.
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        assert len(store.done) == 2


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.txt').write_text('years of work')
    for resume in (False, True):
        with pytest.raises(OptionError, match='thesis.txt'):
            BlockStore(tmp_path, KEY, resume)
    assert (tmp_path / 'thesis.txt').read_text() == 'years of work'


def test_one_run_at_a_time_has_the_folder(tmp_path):
    with BlockStore(tmp_path / 'work', KEY):
        with pytest.raises(BundleBusyError, match='another run'):
            BlockStore(tmp_path / 'work', KEY, resume=True)
    BlockStore(tmp_path / 'work', KEY, resume=True).close()


@pytest.mark.parametrize('n_bytes', [1, 20, 60])
def test_a_line_that_was_cut_off_does_not_count(tmp_path, n_bytes):
    fill(tmp_path / 'work')
    journal = tmp_path / 'work' / 'blocks.jsonl'
    journal.write_bytes(journal.read_bytes()[:-n_bytes])
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        assert sorted(store.done) == ([(0, 0), (0, 1)] if n_bytes == 1 else [(0, 0)])
        store.note((0, 2), store.files.save((0, 2), {'labels': np.ones(1)}))
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        assert (0, 2) in store.done


@pytest.mark.parametrize('harm', ['cut', 'flip', 'remove'])
def test_a_result_that_is_not_what_it_was_is_done_again(tmp_path, harm, caplog):
    fill(tmp_path / 'work')
    path, = (tmp_path / 'work').glob('0-1.*labels.npy')
    data = bytearray(path.read_bytes())
    if harm == 'remove':
        path.unlink()
    elif harm == 'cut':
        path.write_bytes(data[:-5])
    else:
        data[-1] ^= 1
        path.write_bytes(data)
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        assert store.is_done((0, 0)) and not store.is_done((0, 1))
    assert 'done again' in caplog.text


def test_temporaries_of_a_killed_run_vanish_with_the_folder(tmp_path):
    fill(tmp_path / 'work')
    (tmp_path / 'work' / '0-2.labels.npy.abcd.tmp').write_bytes(b'half')
    with BlockStore(tmp_path / 'work', KEY, resume=True) as store:
        store.remove()
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system does not fork')
def test_a_child_that_was_forked_meanwhile_does_not_keep_the_folder(tmp_path):
    store = BlockStore(tmp_path / 'work', {'a': 1})
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        # As between fork and exec, when a worker process is started.
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    store.close()
    BlockStore(tmp_path / 'work', {'a': 1}, resume=True).close()
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)
