"""
Two managers for one journal: another process is refused, this one takes turns.

A real second process holds the lock, and is killed. What two managers of one
process may do is seen at their journal, which must never be cleared under one
that still writes to it.
"""
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg.coco.lifecycle import ImageState
from cocoseg.errors import AssetWriteError, BundleBusyError, CocosegError, ResumeError

from ..builders import GOOD, LEFT, RIGHT, finish_right, make_two_images

HOLDER = '''
import sys
import kwcoco
from cocoseg import CocoStitchingManager
dset = kwcoco.CocoDataset({'videos': [], 'annotations': [], 'categories': [], 'images': [
    {'id': n, 'name': f'img{n}', 'file_name': None, 'width': 64, 'height': 64, 'auxiliary': []}
    for n in (1, 2)]})
dset.fpath = sys.argv[1]
manager = CocoStitchingManager(dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1),
                               resume='resume' in sys.argv)
manager.accumulate_image(1, None, [[[0.5, 0.25]] * 64] * 64)
manager.finalize_image(1)
print('ready', flush=True)
for order in sys.stdin:
    {'close': manager.close, 'forget': lambda: globals().pop('manager')}[order.strip()]()
    import gc
    gc.collect()
    print('done', flush=True)
'''


@contextmanager
def another_process(dset, repo_root, *words):
    """Run a process that has finished image 1 and holds its manager; yield it."""
    process = subprocess.Popen([sys.executable, '-c', HOLDER, dset.fpath, *words], cwd=repo_root,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == 'ready\n'
        yield process
    finally:
        process.kill()
        process.communicate()


def read_journal(folder):
    """Return the image ids of all lines."""
    fpath, = Path(folder).rglob('.cocoseg-*.jsonl')
    return [json.loads(line)['record']['image_id'] for line in fpath.read_text().splitlines()]


def list_locks(folder):
    return sorted(path.name for path in Path(folder).rglob('*.lock'))


# --- another process -------------------------------------------------------------

def test_another_process_has_the_journal(dset, make_manager, repo_root):
    folder = Path(dset.fpath).parent
    with another_process(dset, repo_root) as process:
        before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
        for resume in (False, True):
            with pytest.raises(BundleBusyError) as caught:
                make_manager(resume=resume)
            message = str(caught.value)
            assert isinstance(caught.value, CocosegError) and isinstance(caught.value, RuntimeError)
            assert f'process {process.pid} on {socket.gethostname()}' in message
            assert '.jsonl' in message and str(folder) in message
            assert re.search('wait.*another short_code.*another bundle', message)
        # Settings do not matter, and nothing of the other's was touched.
        with pytest.raises(BundleBusyError):
            make_manager(prob_compress='DEFLATE')
        assert before == {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
        assert read_journal(folder) == [1]
        print('close', file=process.stdin, flush=True)
        assert process.stdout.readline() == 'done\n'
        assert make_manager(resume=True).seen_image_ids == {1}


def test_a_manager_that_is_forgotten_lets_go(dset, make_manager, repo_root):
    with another_process(dset, repo_root) as process:
        print('forget', file=process.stdin, flush=True)
        assert process.stdout.readline() == 'done\n'
        make_manager()


def test_other_channels_and_folders_are_free(dset, repo_root):
    with another_process(dset, repo_root):
        for options in ({'chan_code': 'p|q'}, {'short_code': 'other'}, {'short_code': None},
                        {'assets_dname': 'elsewhere'}):
            fresh = make_two_images(Path(dset.fpath).parent)
            with make_manager_for(fresh, **options) as manager:
                finish_one(manager, 2)


def finish_one(manager, image_id):
    manager.accumulate_image(image_id, None, GOOD)
    manager.finalize_image(image_id)


def test_a_lock_ends_with_its_process_however_that_ends(dset, make_manager, repo_root):
    with another_process(dset, repo_root) as process:
        with pytest.raises(BundleBusyError):
            make_manager()
        process.send_signal(signal.SIGKILL)
        process.wait()
        # The file is still there; it is no lock.
        assert len(list_locks(Path(dset.fpath).parent)) == 1
        manager = make_manager(resume=True)
        assert manager.seen_image_ids == {1}
        finish_one(manager, 2)
    manager.close()
    assert list_locks(Path(dset.fpath).parent) == []


def test_we_hold_it_against_another_process(dset, make_manager, repo_root):
    manager = make_manager()
    finish_one(manager, 2)
    done = subprocess.run([sys.executable, '-c', HOLDER, dset.fpath], cwd=repo_root,
                          capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode != 0 and 'BundleBusyError' in done.stderr
    assert f'process {os.getpid()} ' in done.stderr
    finish_one(manager, 1)
    assert read_journal(Path(dset.fpath).parent) == [2, 1]


def test_an_image_waits_until_the_other_process_is_done(dset, make_manager, repo_root):
    """A closed manager has no lock; a write that was still under way finds that out."""
    manager = make_manager()
    manager.accumulate_image(1, None, GOOD)
    manager._finisher._journal.close()
    with another_process(dset, repo_root):
        fpath, = Path(manager.prob_dpath).glob('*.tif')
        before = fpath.read_bytes()
        with pytest.raises(AssetWriteError, match='in use by process') as caught:
            manager.finalize_image(1)
        assert isinstance(caught.value.__cause__, BundleBusyError)
        # Not even the file was touched.
        assert fpath.read_bytes() == before and manager.image_state(1) is ImageState.FAILED
    manager.finalize_image(1)
    assert fpath.read_bytes() != before


def test_the_command_line_says_it_in_one_line(tmp_path, capsys, repo_root):
    from cocoseg.cli.main import main
    dset = make_two_images(tmp_path / 'bundle')
    src = tmp_path / 'src.kwcoco.json'
    source = kwcoco.CocoDataset()
    source.fpath = os.fspath(src)
    source.add_image(name='img1', width=64, height=64, auxiliary=[])
    from cocoseg import write_cog
    write_cog(tmp_path / 'in.tif', GOOD[..., 0].astype('f4'))
    source.imgs[1]['auxiliary'].append({'file_name': 'in.tif', 'channels': 'in', 'width': 64,
                                        'height': 64, 'warp_aux_to_img': {'type': 'affine'}})
    source.dump()
    argv = ['predict', str(src), '--dst', dset.fpath, '--predictor', 'numpy:dstack',
            '--out_channels', 'x|y']
    with another_process(dset, repo_root) as process:
        assert main(argv) == 1
        line = capsys.readouterr().err.strip()
        assert line.startswith('cocoseg: ') and f'process {process.pid} ' in line
        assert '\n' not in line


# --- the same process ----------------------------------------------------------------

def test_a_cell_that_is_run_again_starts_afresh(dset, make_manager):
    """The first manager is neither closed nor gone, as in a notebook."""
    first = make_manager()
    finish_one(first, 1)
    again = make_two_images(Path(dset.fpath).parent)
    second = make_manager_for(again)
    assert second.seen_image_ids == set()
    finish_one(second, 1)
    finish_one(second, 2)
    assert read_journal(second.prob_dpath) == [1, 2]


def make_manager_for(dset, **options):
    from cocoseg import CocoStitchingManager
    return CocoStitchingManager(dset, **{
        'short_code': 'pred', 'chan_code': 'x|y', 'stitching_space': 'image',
        'expected_minmax': (0, 1), **options})


STATES = {
    'declared': lambda manager: manager.expect_windows(2, [LEFT, RIGHT]),
    'accumulating': lambda manager: manager.accumulate_image(2, LEFT, GOOD[LEFT]),
    'ready': lambda manager: manager.accumulate_image(2, None, GOOD, is_ready=True),
}


@pytest.mark.parametrize('resume', [False, True])
@pytest.mark.parametrize('state', STATES)
def test_equals_share_the_journal_while_one_works(dset, make_manager, state, resume):
    first = make_manager()
    finish_one(first, 1)
    STATES[state](first)
    other = make_two_images(Path(dset.fpath).parent)
    with make_manager_for(other, resume=resume) as second:
        assert second.seen_image_ids == ({1} if resume else set())
        assert read_journal(first.prob_dpath) == [1]
    # It was in use by both; that one closed it takes nothing from the other.
    todo = {'declared': [LEFT, RIGHT], 'accumulating': [RIGHT], 'ready': []}[state]
    for place in todo:
        first.accumulate_image(2, place, GOOD[place])
    first.finalize_image(2)
    assert read_journal(first.prob_dpath) == [1, 2]
    first.close()
    assert make_manager_for(make_two_images(Path(dset.fpath).parent),
                            resume=True).seen_image_ids == {1, 2}


@pytest.mark.parametrize('state', STATES)
def test_other_settings_wait_until_the_work_is_done(dset, make_manager, state):
    first = make_manager()
    finish_one(first, 1)
    STATES[state](first)
    before = {path: path.read_bytes() for path in Path(first.prob_dpath).iterdir()}
    for resume in (False, True):
        with pytest.raises(BundleBusyError, match='other settings.*images in work.*short_code'):
            make_manager(quantize=False, resume=resume)
    assert before == {path: path.read_bytes() for path in Path(first.prob_dpath).iterdir()}
    finish_one_or_rest(first, state)
    # Idle now, and forgotten.
    make_manager(quantize=False)
    assert list(Path(first.prob_dpath).glob('*.jsonl')) == []


def finish_one_or_rest(manager, state):
    for place in {'declared': [LEFT, RIGHT], 'accumulating': [RIGHT], 'ready': []}[state]:
        manager.accumulate_image(2, place, GOOD[place])
    manager.finalize_image(2)


def test_a_failed_image_is_still_work(dset, make_manager):
    first = make_manager()
    first.accumulate_image(1, None, GOOD)
    obstacle = Path(first.prob_dpath, f'img1_{first.options.suffix}.tif')
    obstacle.mkdir()
    with pytest.raises(AssetWriteError):
        first.finalize_image(1)
    with pytest.raises(BundleBusyError):
        make_manager(quantize=False)
    obstacle.rmdir()
    finish_right(first, [])


def test_refused_settings_leave_an_idle_manager_as_it_is(dset, make_manager):
    first = make_manager()
    finish_one(first, 1)
    with pytest.raises(ResumeError):
        make_manager(quantize=False, resume=True)
    finish_one(first, 2)
    assert read_journal(first.prob_dpath) == [1, 2]


def test_a_manager_with_work_that_is_dropped_is_not_in_the_way(dset, make_manager):
    manager = make_manager_for(dset)
    manager.accumulate_image(1, LEFT, GOOD[LEFT])
    del manager
    finish_one(make_manager_for(make_two_images(Path(dset.fpath).parent), quantize=False), 1)
    gc.collect()


def test_closing_gives_the_lock_back_at_once(dset, make_manager):
    manager = make_manager()
    manager.accumulate_image(1, None, GOOD)
    assert len(list_locks(Path(dset.fpath).parent)) == 1
    manager.close()
    assert list_locks(Path(dset.fpath).parent) == []
    with pytest.raises(ZeroDivisionError), make_manager(quantize=False) as manager:
        assert len(list_locks(Path(dset.fpath).parent)) == 1
        raise ZeroDivisionError
    assert list_locks(Path(dset.fpath).parent) == []


def test_a_manager_that_could_not_be_made_keeps_nothing(dset, make_manager):
    with make_manager() as first:
        finish_one(first, 1)
    with pytest.raises(ResumeError) as caught:
        make_manager(quantize=False, resume=True)
    # Even while the traceback refers to it.
    assert caught.value.__traceback__ is not None
    assert list_locks(Path(dset.fpath).parent) == []


def test_an_image_is_not_registered_if_its_line_cannot_be_written(dset, make_manager,
                                                                  monkeypatch):
    manager = make_manager()
    manager.accumulate_image(1, None, GOOD)
    real = os.write
    monkeypatch.setattr(os, 'write', lambda descriptor, data: real(descriptor, data[:40]))
    with pytest.raises(AssetWriteError, match='cut short'):
        manager.finalize_image(1)
    monkeypatch.undo()
    assert dset.imgs[1]['auxiliary'] == [] and 'has_predictions' not in dset.imgs[1]
    manager.finalize_image(1)
    finish_one(manager, 2)
    manager.close()
    again = make_manager_for(make_two_images(Path(dset.fpath).parent), resume=True)
    assert again.seen_image_ids == {1, 2}
    assert np.array_equal(again.result_dataset.imgs[1]['auxiliary'], dset.imgs[1]['auxiliary'])
