"""The lock on a journal, and the clock of the dumps."""
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading

import kwcoco
import pytest

from cocoseg.coco import checkpoint
from cocoseg.coco.checkpoint import FileLock, IntervalDumper, get_lock_path
from cocoseg.coco.manifest import get_manifest
from cocoseg.coco.options import AssetOptions, check_dump_interval
from cocoseg.errors import OptionError

# --- the lock ----------------------------------------------------------------


@pytest.fixture()
def fpath(tmp_path):
    checkpoint._warn_once.cache_clear()
    return str(tmp_path / 'x.lock')


def test_one_has_it_at_a_time(fpath):
    first, second = FileLock(fpath), FileLock(fpath)
    assert first.acquire() and not second.acquire() and not second.is_held
    first.release()
    first.release()
    assert second.acquire() and not first.acquire()
    second.release()


def test_the_file_says_who_has_it_and_goes_with_the_lock(fpath):
    lock = FileLock(fpath)
    assert lock.acquire()
    with open(fpath) as file:
        holder = json.load(file)
    assert (holder['pid'], holder['host']) == (os.getpid(), socket.gethostname())
    assert f'process {os.getpid()} on {socket.gethostname()}, since 2' in lock.describe_holder()
    lock.release()
    assert not os.path.exists(fpath)


def test_what_a_dead_process_left_is_no_lock(fpath):
    with open(fpath, 'w') as file:
        json.dump({'pid': 1, 'host': 'elsewhere' * 20, 'since': 'long ago'}, file)
    lock = FileLock(fpath)
    assert lock.acquire() and f'process {os.getpid()} ' in lock.describe_holder()
    lock.release()


@pytest.mark.parametrize('content', ['', '{', '5', '{"pid": 1}', '\0' * 9])
def test_a_holder_that_says_nothing_is_just_another(fpath, content):
    with open(fpath, 'w') as file:
        file.write(content)
    assert FileLock(fpath).describe_holder() == 'another process'
    assert FileLock(f'{fpath}.gone').describe_holder() == 'another process'


def test_children_do_not_inherit_it(fpath):
    lock = FileLock(fpath)
    assert lock.acquire() and not os.get_inheritable(lock._descriptor)
    lock.release()


def test_a_copy_of_the_descriptor_does_not_keep_it(fpath):
    """As a child has it that was forked by other means than Python's."""
    lock, other = FileLock(fpath), FileLock(fpath)
    assert lock.acquire()
    # The same file, as if it could not be removed.
    os.link(fpath, f'{fpath}.kept')
    copy = os.dup(lock._descriptor)
    lock.release()
    os.rename(f'{fpath}.kept', fpath)
    assert other.acquire()
    other.release()
    os.close(copy)


def test_a_file_that_was_removed_meanwhile_is_not_taken_for_the_lock(fpath, monkeypatch):
    """The holder removes it between our opening and our locking it."""
    holder, late = FileLock(fpath), FileLock(fpath)
    assert holder.acquire()
    real, others = checkpoint.fcntl.flock, [FileLock(fpath)]

    def flock(descriptor, operation):
        monkeypatch.undo()
        holder.release()
        # Somebody else makes the file anew before we lock the old one.
        assert others[0].acquire()
        real(descriptor, operation)
    monkeypatch.setattr(checkpoint.fcntl, 'flock', flock)
    assert not late.acquire()
    others[0].release()
    assert late.acquire()
    late.release()


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL])
def test_a_disk_without_locks_is_used_with_one_warning(fpath, monkeypatch, caplog, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))
    monkeypatch.setattr(checkpoint.fcntl, 'flock', flock)
    locks = [FileLock(fpath) for _ in range(3)]
    assert all(lock.acquire() for lock in locks)
    warning, = caplog.records
    assert warning.levelno == logging.WARNING and os.strerror(number) in warning.getMessage()
    for lock in locks:
        lock.release()


def test_a_system_without_flock_is_used_with_one_warning(fpath, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, 'fcntl', None)
    locks = [FileLock(fpath) for _ in range(3)]
    assert all(lock.acquire() for lock in locks)
    assert ['no flock' in record.getMessage() for record in caplog.records] == [True]
    for lock in locks:
        lock.release()


def test_a_lock_that_cannot_be_made_is_a_warning(tmp_path, caplog):
    checkpoint._warn_once.cache_clear()
    lock = FileLock(str(tmp_path / 'gone' / 'x.lock'))
    assert lock.acquire() and 'gone' in caplog.text
    lock.release()


def test_an_unforeseen_failure_is_an_error(fpath, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.EIO, 'Input/output error (simulated)')
    monkeypatch.setattr(checkpoint.fcntl, 'flock', flock)
    lock = FileLock(fpath)
    with pytest.raises(OSError, match='simulated'):
        lock.acquire()
    assert not lock.is_held


def test_a_full_disk_leaves_the_holder_unknown(fpath, monkeypatch):
    def fail(*args, **options):
        raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
    monkeypatch.setattr(checkpoint.json, 'dump', fail)
    lock, other = FileLock(fpath), FileLock(fpath)
    assert lock.acquire() and not other.acquire()
    assert other.describe_holder() == 'another process'
    lock.release()


def test_paths_of_locks_are_distinct_and_beside_the_folder(tmp_path):
    places = ['a/b/.cocoseg-c.jsonl', 'a/b/.cocoseg-d.jsonl', 'a/.cocoseg-b-c.jsonl',
              'a/b-c/.cocoseg-d.jsonl', 'a/b/.cocoseg-c-d.jsonl', 'a/x y/.cocoseg-ü.jsonl']
    paths = [get_lock_path(tmp_path / place) for place in places]
    assert len(set(paths)) == len(places)
    for place, path in zip(places, paths):
        assert os.path.dirname(path) == os.path.dirname(os.path.dirname(tmp_path / place))
        name = os.path.basename(path)
        assert name.startswith('.cocoseg-') and name.endswith('.lock')


def test_links_lead_to_the_same_lock(tmp_path):
    (tmp_path / 'real' / 'pred').mkdir(parents=True)
    (tmp_path / 'link').symlink_to(tmp_path / 'real' / 'pred')
    fpaths = [tmp_path / 'real' / 'pred' / 'j.jsonl', tmp_path / 'link' / 'j.jsonl']
    assert get_lock_path(fpaths[0]) == get_lock_path(fpaths[1])
    shared = checkpoint.share_file(fpaths[0])
    assert checkpoint.share_file(fpaths[1]) is shared


# --- forks -------------------------------------------------------------------

FORK = '''
    import os, signal, sys, threading
    from cocoseg.coco.journal import Journal
    from cocoseg.errors import BundleBusyError
    fpath = sys.argv[1]
    journal = Journal(fpath, 'abc', is_busy=lambda: True)
    journal.begin()
    # As if another thread was appending at the moment of the fork.
    entered, done = threading.Event(), threading.Event()
    def append():
        with journal._held.mutex:
            entered.set()
            done.wait()
    thread = threading.Thread(target=append)
    thread.start()
    entered.wait()
    to_parent, from_child = os.pipe()[::-1]
    child = os.fork()
    if child == 0:
        signal.alarm(50)
        try:
            journal.append({'image_id': 2})
            word = b'it wrote'
        except BundleBusyError as ex:
            word = b'busy' if f'process {os.getppid()} ' in str(ex) else b'busy with another'
        journal.close()
        del journal
        os.write(to_parent, word)
        # The test waits until nobody has its end of the pipe.
        os.close(1)
        signal.pause()
        os._exit(0)
    done.set()
    thread.join()
    print(os.read(from_child, 99).decode(), child, flush=True)
    journal.append({'image_id': 1})
    if sys.argv[2] == 'close':
        journal.close()
    print(len(journal.read()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
@pytest.mark.parametrize('end', ['kill', 'close'])
def test_a_forked_child_neither_has_the_lock_nor_keeps_it(tmp_path, repo_root, end):
    """Workers of a data loader are forked while a manager is open, and outlive it."""
    (tmp_path / 'pred').mkdir()
    fpath = tmp_path / 'pred' / 'j.jsonl'
    done = subprocess.run([sys.executable, '-c', textwrap.dedent(FORK), str(fpath), end],
                          cwd=repo_root, stdout=subprocess.PIPE, text=True, timeout=60)
    (*word, child), n_lines = (line.split(' ') for line in done.stdout.splitlines())
    try:
        assert (word, n_lines) == (['busy'], ['1'])
        # The parent is gone, the child lives.
        os.kill(int(child), 0)
        lock = FileLock(get_lock_path(fpath))
        assert lock.acquire()
        lock.release()
    finally:
        os.kill(int(child), signal.SIGKILL)


# --- dumps -------------------------------------------------------------------

class Clock:
    """A clock that goes only when told; each dump takes ``seconds``."""

    def __init__(self):
        self.now, self.seconds = 1000.0, 0.0

    def __call__(self):
        return self.now


@pytest.fixture()
def dset(tmp_path):
    dset = kwcoco.CocoDataset()
    dset.fpath = str(tmp_path / 'out.kwcoco.json')
    return dset


@pytest.fixture()
def clock(dset, monkeypatch):
    """The clock of the manifest; ``dset.dumps_at`` are the times of its dumps."""
    clock, real, dset.dumps_at = Clock(), dset.dump, []

    def dump(*args, **options):
        dset.dumps_at.append(clock.now)
        clock.now += clock.seconds
        real(*args, **options)
    monkeypatch.setattr(dset, 'dump', dump)
    get_manifest(dset).clock = clock
    return clock


def run_for(dumper, clock, seconds, step=1.0):
    """Finish an image every so many seconds."""
    end = clock.now + seconds
    while clock.now < end:
        clock.now += step
        dumper.save_if_due()


def test_dumps_come_at_intervals(dset, clock):
    run_for(IntervalDumper(get_manifest(dset), 10), clock, 45)
    assert dset.dumps_at == [1010, 1020, 1030, 1040]
    assert os.path.exists(dset.fpath)


def test_dumps_take_no_more_than_a_twentieth_of_the_time(dset, clock):
    clock.seconds = 7
    run_for(IntervalDumper(get_manifest(dset), 1), clock, 1000)
    gaps = [after - before for before, after in zip(dset.dumps_at, dset.dumps_at[1:])]
    assert len(gaps) > 4 and all(147 <= gap <= 148 for gap in gaps)
    assert clock.seconds * len(gaps) <= 0.05 * sum(gaps)


def test_a_dump_by_the_caller_counts(dset, clock):
    dumper = IntervalDumper(get_manifest(dset), 10)
    clock.now += 9
    get_manifest(dset).dump()
    run_for(dumper, clock, 12)
    assert dset.dumps_at == [1009, 1019]


def test_a_dump_to_somewhere_else_does_not(dset, clock, tmp_path):
    dumper = IntervalDumper(get_manifest(dset), 10)
    clock.now += 9
    get_manifest(dset).dump(tmp_path / 'copy.json')
    run_for(dumper, clock, 1)
    assert dset.dumps_at == [1009, 1010]


def test_managers_of_one_dataset_share_the_clock(dset, clock):
    dumpers = [IntervalDumper(get_manifest(dset), 10) for _ in range(2)]
    for _ in range(25):
        for dumper in dumpers:
            run_for(dumper, clock, 1)
    assert dset.dumps_at == [1010, 1020, 1030, 1040, 1050]


def test_without_an_interval_nothing_is_ever_saved(dset, clock):
    dumper = IntervalDumper(get_manifest(dset), None)
    open(dset.fpath, 'w').close()
    dumper.prepare()
    dumper.save_now()
    run_for(dumper, clock, 10000, step=1000)
    assert dset.dumps_at == []


def test_a_dump_that_fails_is_logged_and_tried_later(dset, clock, monkeypatch, caplog):
    dumper = IntervalDumper(get_manifest(dset), 10)
    with monkeypatch.context() as patch:
        def fail(*args, **options):
            dset.dumps_at.append(clock.now)
            raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
        patch.setattr(dset, 'dump', fail)
        run_for(dumper, clock, 25)
    assert dset.dumps_at == [1010, 1020] and not os.path.exists(dset.fpath)
    assert caplog.text.count('simulated') == 2 and 'tried again' in caplog.text
    run_for(dumper, clock, 10)
    assert dset.dumps_at == [1010, 1020, 1030] and os.path.exists(dset.fpath)


def test_an_old_manifest_is_saved_over_before_the_first_file(dset, clock):
    manifest = get_manifest(dset)
    with open(dset.fpath, 'w') as file:
        file.write('old')
    dumper = IntervalDumper(manifest, 10)
    for _ in range(3):
        dumper.prepare()
    assert dset.dumps_at == [1000]
    assert kwcoco.CocoDataset(dset.fpath).dataset == dset.dataset


def test_where_there_is_none_nothing_is_saved_early(dset, clock):
    IntervalDumper(get_manifest(dset), 0).prepare()
    assert dset.dumps_at == []


def test_an_old_manifest_that_cannot_be_saved_over_is_an_error(dset, monkeypatch):
    dumper = IntervalDumper(get_manifest(dset), 10)
    os.mkdir(dset.fpath)
    for _ in range(2):
        with pytest.raises(OSError):
            dumper.prepare()
    os.rmdir(dset.fpath)
    dumper.prepare()


def test_others_go_on_while_the_file_is_flushed(dset, monkeypatch):
    """A slow disk must not stop those who register images, nor make them wait to dump."""
    manifest, real, flushing, go_on = get_manifest(dset), os.fsync, *(
        threading.Event() for _ in range(2))

    def fsync(descriptor):
        flushing.set()
        assert go_on.wait(60)
        real(descriptor)
    monkeypatch.setattr(os, 'fsync', fsync)
    thread = threading.Thread(target=manifest.dump)
    thread.start()
    assert flushing.wait(60)
    try:
        assert manifest.lock.acquire(timeout=30)
        manifest.lock.release()
        assert not manifest.dump_if_due(0, manifest.clock() - 1)
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize('value', [-1, -0.001, float('nan'), True, False, '60', [], 1j])
def test_a_wrong_interval_is_refused(value):
    with pytest.raises(OptionError, match='dump_interval.*seconds'):
        check_dump_interval(value)


@pytest.mark.parametrize('value', [0, 0.5, 60, float('inf')])
def test_an_interval_is_seconds(value):
    assert check_dump_interval(value) == value


# --- settings ----------------------------------------------------------------

def test_settings_change_the_hash_and_are_told():
    options = AssetOptions('a|b')
    described = [options.describe_run(settings) for settings in (
        None, {'model': 'v1'}, {'model': 'v2'}, {'Model': 'v1'}, {'model': ['v1']},
        {'model': 'v1', 'window': [2, 1]}, {'model': 'v1', 'window': [1, 2]}, {'model': None})]
    assert len({config for config, _ in described}) == len(described)
    assert described[-2][1]['settings.window'] == '[1, 2]'
    # Runs without settings have the hash that they had before there were any.
    assert described[0][0] == options.config_hash == options.describe_run({})[0]


def test_equal_settings_have_one_hash():
    options = AssetOptions('a|b')
    one = options.describe_run({'a': 1, 'b': {'x': (1, 2), 'y': None}})
    two = options.describe_run({'b': {'y': None, 'x': [1, 2]}, 'a': 1})
    assert one == two


@pytest.mark.parametrize('settings, message', [
    (['a'], 'must be a dict'), ('a', 'must be a dict'), ({1: 2}, 'names as keys'),
    ({'model': object()}, "'model'.*JSON"), ({'model': {1, 2}}, "'model'.*JSON")])
def test_settings_that_cannot_be_told_are_refused(settings, message):
    with pytest.raises(OptionError, match=message):
        AssetOptions('a|b').describe_run(settings)
