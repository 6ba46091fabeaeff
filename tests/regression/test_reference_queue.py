"""
What the reference did wrong with its writer queue: items 9 to 12.

``kwutil``'s BlockingJobQueue is that queue; callers pass it in, so the manager
must be right in spite of it.
"""
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from kwutil.util_parallel import BlockingJobQueue

from cocoseg.coco import finisher
from cocoseg.coco.lifecycle import ImageState
from cocoseg.errors import AssetWriteError, CocosegError
from cocoseg.io.queue import WriterQueue
from cocoseg.protocols import EagerQueue

QUEUES = {
    'default': lambda: None,
    'eager': EagerQueue,
    'writer-0': lambda: WriterQueue(workers=0),
    'writer-1': lambda: WriterQueue(workers=1, max_pending_jobs=1),
    'writer-3': lambda: WriterQueue(workers=3),
    'kwutil-0': lambda: BlockingJobQueue(max_workers=0),
    'kwutil-1': lambda: BlockingJobQueue(max_workers=1),
    'kwutil-3': lambda: BlockingJobQueue(max_workers=3),
    'executor-1': lambda: ThreadPoolExecutor(1),
    'executor-3': lambda: ThreadPoolExecutor(3),
}


@pytest.fixture(params=sorted(QUEUES))
def queue(request):
    """Every kind of queue that callers pass in."""
    return QUEUES[request.param]()


class ForeignError(RuntimeError):
    """The error of a job that is not ours."""


def fail(gate=None):
    """Be a job of somebody else that fails."""
    if gate is not None:
        gate.wait(10)
    raise ForeignError('a job of somebody else')


def wait_until(condition):
    """Wait for something that happens in another thread."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError('it never happened')


# ---- 9 ---------------------------------------------------------------------

def test_09_serial_jobs_run_in_submit():
    """A serial job ran on the next submit only; it must be done when submit returns."""
    done = []
    with WriterQueue(workers=0) as queue:
        for index in range(3):
            queue.submit(done.append, index)
            assert done == list(range(index + 1))


@pytest.mark.parametrize('name', ['default', 'eager', 'writer-0', 'writer-1', 'executor-1'])
def test_09_last_image_needs_no_flush(make_dataset, make_manager, read, noise, name):
    """The last image was never written without a flush; it must be."""
    dset = make_dataset(3)
    manager = make_manager(dset, writer_queue=QUEUES[name]())
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, noise(image_id))
        manager.submit_finalize_image(image_id)
    if name in ('eager', 'writer-0'):
        assert manager.seen_image_ids == {1, 2, 3}
    wait_until(lambda: manager.seen_image_ids == {1, 2, 3})
    assert np.allclose(read(dset, 3), noise(3), atol=1e-4)


@pytest.mark.parametrize('end', ['with', 'close', 'flush', 'dump'])
def test_09_every_end_writes_the_last_image(make_dataset, make_manager, read, noise, queue, end):
    """Whatever the queue, flush, dump, close and with must leave nothing behind."""
    dset = make_dataset(3)
    manager = make_manager(dset, writer_queue=queue)
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, noise(image_id))
        if end in ('flush', 'dump'):
            manager.submit_finalize_image(image_id)
    if end == 'with':
        with manager:
            pass
    else:
        getattr(manager, {'flush': 'flush_images'}.get(end, end))()
    assert manager.seen_image_ids == {1, 2, 3}
    for image_id in (1, 2, 3):
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_09_queue_is_assigned_after_construction(make_dataset, make_manager, queue):
    """Scripts assign the queue later; it must be used, and never be closed by us."""
    manager = make_manager(make_dataset(2))
    manager.accumulate_image(1, None, np.zeros((64, 64)))
    manager.submit_finalize_image(1)
    manager.writer_queue = queue if queue is not None else EagerQueue()
    manager.accumulate_image(2, None, np.zeros((64, 64)))
    manager.close()
    assert manager.is_done(1) and manager.is_done(2)
    if queue is not None:
        done = []
        queue.submit(done.append, 1)
        if isinstance(queue, ThreadPoolExecutor):
            queue.shutdown()
        else:
            queue.wait_until_finished()
        assert done == [1]


# ---- 10 --------------------------------------------------------------------

def test_10_has_room_when_empty():
    """has_room was inverted: it must be true when empty and false when full."""
    gate = threading.Event()
    with WriterQueue(workers=1, max_pending_jobs=2) as queue:
        assert queue.has_room()
        queue.submit(gate.wait, 10)
        assert queue.has_room()
        last = queue.submit(gate.wait, 10)
        assert not queue.has_room()
        gate.set()
        last.result()
        wait_until(queue.has_room)


# ---- 11 --------------------------------------------------------------------

@pytest.mark.parametrize('wait', ['submit', 'wait_until_finished', 'close'])
def test_11_waiting_does_not_spin(wait):
    """The wait for room was a busy loop; a waiting thread must run no code."""
    gate, calls, inside = threading.Event(), [], threading.Event()
    queue = WriterQueue(workers=1, max_pending_jobs=1)
    queue.submit(gate.wait, 10)

    def count(frame, event, arg):
        calls.append(event)

    def block():
        sys.setprofile(count)
        inside.set()
        try:
            if wait == 'submit':
                queue.submit(len, ())
            else:
                getattr(queue, wait)()
        finally:
            sys.setprofile(None)
    thread = threading.Thread(target=block)
    thread.start()
    inside.wait(10)
    time.sleep(0.3)
    n_calls = len(calls)
    time.sleep(0.2)
    assert thread.is_alive() and len(calls) == n_calls < 100
    gate.set()
    thread.join(10)
    assert not thread.is_alive()
    queue.close()


# ---- 12 --------------------------------------------------------------------

@pytest.mark.parametrize('workers', [0, 2])
def test_12_no_submitted_job_is_dropped(workers):
    """A failed job raised from another's submit and dropped that job; all must run."""
    done, raised = [], []
    queue = WriterQueue(workers=workers)
    failed = queue.submit(fail)
    with suppress(ForeignError):
        failed.result()
    for index in range(4):
        try:
            queue.submit(done.append, index)
        except ForeignError as ex:
            raised.append(ex)
    try:
        queue.wait_until_finished()
    except ForeignError as ex:
        raised.append(ex)
    assert sorted(done) == [0, 1, 2, 3]
    assert raised == [failed.exception()]
    queue.wait_until_finished()
    queue.close()


def test_12_all_errors_are_told_once():
    """Only one future was checked, for ever; each error must be told exactly once."""
    gate, queue = threading.Event(), WriterQueue(workers=3, max_pending_jobs=9)
    futures = [queue.submit(fail, gate) for _ in range(3)]
    gate.set()
    with pytest.raises(ForeignError) as caught:
        queue.wait_until_finished()
    assert caught.value in [future.exception() for future in futures]
    if sys.version_info >= (3, 11):
        assert len(caught.value.__notes__) == 2
    queue.wait_until_finished()
    queue.close()
    queue.close()
    with pytest.raises(RuntimeError, match='closed'):
        queue.submit(len, ())


def block_images(manager, image_ids):
    """Make the writes of some images fail; return the obstacles."""
    folders = [Path(manager.prob_dpath) / f'img{image_id}_x.tif' for image_id in image_ids]
    for folder in folders:
        folder.mkdir()
    return folders


def collect_errors(function, n_calls):
    """Call a function several times; return the images whose errors it raised."""
    found = []
    for _ in range(n_calls):
        try:
            function()
        except AssetWriteError as ex:
            found.append(ex.image_id)
    return found


def send(manager, image_id, data):
    """Send a window until it is taken; return the images whose errors were told."""
    told = []
    while True:
        try:
            manager.accumulate_image(image_id, None, data)
            return told
        except AssetWriteError as ex:
            told.append(ex.image_id)


def test_12_each_error_stays_with_its_image(make_dataset, make_manager, read, noise, queue):
    """An error hit whoever came next; other images must be written, and it be retried."""
    dset, told = make_dataset(4), []
    manager = make_manager(dset, writer_queue=queue)
    obstacles = block_images(manager, [1, 3])
    for image_id in (1, 2, 3, 4):
        told += send(manager, image_id, noise(image_id))
        told += collect_errors(lambda: manager.submit_finalize_image(image_id), 1)
    told += collect_errors(manager.flush_images, 4)
    assert sorted(told) == [1, 3]
    assert manager.seen_image_ids == {2, 4} and manager.managed_image_ids() == [1, 3]
    for folder in obstacles:
        folder.rmdir()
    for image_id in (1, 3):
        manager.submit_finalize_image(image_id)
    manager.close()
    for image_id in (1, 2, 3, 4):
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_12_window_is_not_half_taken_when_an_error_is_told(make_dataset, make_manager, read,
                                                           noise):
    """Where accumulate tells another image's error, sending the window again must be right."""
    dset = make_dataset(2)
    manager = make_manager(dset, writer_queue=WriterQueue(workers=0))
    block_images(manager, [1])
    manager.accumulate_image(1, None, noise(1))
    manager._finisher.submit(manager._table.begin_finalize(1))
    with pytest.raises(AssetWriteError) as caught:
        manager.accumulate_image(2, None, noise(2))
    assert caught.value.image_id == 1 and manager.patch_counts[2] == 0
    manager.accumulate_image(2, None, noise(2))
    manager.finalize_image(2)
    assert manager.patch_counts[2] == 1
    assert np.allclose(read(dset, 2), noise(2), atol=1e-4)


def test_12_managers_share_a_queue(make_dataset, make_manager, read, noise, queue):
    """An error of one manager must never come out of another with the same queue."""
    dset = make_dataset(3)
    first = make_manager(dset, writer_queue=queue)
    second = make_manager(dset, 'y', writer_queue=queue)
    block_images(first, [1, 2, 3])
    for image_id in (1, 2, 3):
        send(first, image_id, noise(image_id))
        second.accumulate_image(image_id, None, noise(image_id))
        collect_errors(lambda: first.submit_finalize_image(image_id), 1)
        second.submit_finalize_image(image_id)
    second.close()
    with pytest.raises(AssetWriteError):
        first.close()
    for image_id in (1, 2, 3):
        assert [asset['channels'] for asset in dset.imgs[image_id]['auxiliary']] == ['y']
        assert np.allclose(read(dset, image_id, 'y'), noise(image_id), atol=1e-4)


@pytest.mark.parametrize('name', ['writer-0', 'writer-1', 'kwutil-0', 'kwutil-1', 'kwutil-3'])
def test_12_foreign_error_at_close_loses_nothing(make_dataset, make_manager, read, noise, name):
    """The job of somebody else failed on the shared queue; close must write all the same."""
    dset, queue = make_dataset(3), QUEUES[name]()
    manager = make_manager(dset, writer_queue=queue)
    for image_id in (1, 2, 3):
        manager.accumulate_image(image_id, None, noise(image_id))
    queue.submit(fail)
    with suppress(ForeignError, CocosegError):
        manager.close()
    for image_id in (1, 2, 3):
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


@pytest.mark.parametrize('end', ['close', 'flush'])
def test_12_foreign_error_never_spoils_a_running_write(make_dataset, make_manager, read, noise,
                                                       monkeypatch, end):
    """While a write runs, a foreign error must not free the memory below it."""
    gate, finish_image = threading.Event(), finisher.finish_image

    def finish_later(job):
        gate.wait(10)
        return finish_image(job)
    monkeypatch.setattr(finisher, 'finish_image', finish_later)
    dset, queue = make_dataset(), BlockingJobQueue(max_workers=2)
    manager = make_manager(dset, writer_queue=queue)
    manager.accumulate_image(1, None, noise())
    queue.submit(fail)
    manager.submit_finalize_image(1)
    threading.Timer(0.2, gate.set).start()
    with suppress(ForeignError, CocosegError):
        manager.close() if end == 'close' else manager.flush_images()
    gate.set()
    wait_until(lambda: not any(job.running() for job in queue.jobs))
    assert len(dset.imgs[1]['auxiliary']) == 1
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_12_error_in_the_with_block_never_spoils_a_running_write(
        make_dataset, make_manager, read, noise, monkeypatch):
    """An interrupt while the manager waits must not register a file of rubbish."""
    gate, finish_image = threading.Event(), finisher.finish_image

    def finish_later(job):
        gate.wait(10)
        return finish_image(job)
    monkeypatch.setattr(finisher, 'finish_image', finish_later)
    dset, executor = make_dataset(), ThreadPoolExecutor(1)

    class Interrupted:
        """A queue, and its only future, on which every wait ends with Ctrl-C."""

        def submit(self, func):
            executor.submit(func)
            return self

        def result(self, timeout=None):
            raise KeyboardInterrupt
        wait_until_finished = result
    manager = make_manager(dset, writer_queue=Interrupted())
    threading.Timer(0.3, gate.set).start()
    with pytest.raises(KeyboardInterrupt):
        with manager:
            manager.accumulate_image(1, None, noise())
            manager.submit_finalize_image(1)
    gate.wait(10)
    executor.shutdown()
    for _ in dset.imgs[1]['auxiliary']:
        assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_12_cancelled_jobs_are_not_lost(make_dataset, make_manager, read, noise):
    """A shared executor that drops its jobs must not make images vanish unnoticed."""
    gate, executor, dset = threading.Event(), ThreadPoolExecutor(1), make_dataset(2)
    manager = make_manager(dset, writer_queue=executor)
    executor.submit(gate.wait, 10)
    for image_id in (1, 2):
        manager.accumulate_image(image_id, None, noise(image_id))
        manager.submit_finalize_image(image_id)
    threading.Timer(0.1, gate.set).start()
    executor.shutdown(cancel_futures=True)
    told = collect_errors(manager.flush_images, 3)
    assert sorted(told) == [1, 2]
    assert [manager.image_state(image_id) for image_id in (1, 2)] == [ImageState.FAILED] * 2
    for image_id in (1, 2):
        manager.finalize_image(image_id)
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_12_closed_queue_loses_nothing(make_dataset, make_manager, read, noise):
    """A queue that refuses the job must not cost the image."""
    dset, queue = make_dataset(), WriterQueue(workers=1)
    manager = make_manager(dset, writer_queue=queue)
    manager.accumulate_image(1, None, noise())
    queue.close()
    with suppress(AssetWriteError, RuntimeError):
        manager.submit_finalize_image(1)
    manager.writer_queue = EagerQueue()
    if not manager.is_done(1):
        assert manager.managed_image_ids() == [1]
        collect_errors(lambda: manager.submit_finalize_image(1), 1)
    assert manager.is_done(1)
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_12_two_threads_see_one_error(make_dataset, make_manager, noise, monkeypatch):
    """finalize_image must raise its own error, even if a flush elsewhere told it before."""
    manager = make_manager(make_dataset())
    block_images(manager, [1])
    manager.accumulate_image(1, None, noise())
    fail_job = finisher.Finisher._fail

    def fail_and_tell(self, job, cause):
        error = fail_job(self, job, cause)
        # As if another thread flushed just now.
        collect_errors(manager.flush_images, 1)
        return error
    monkeypatch.setattr(finisher.Finisher, '_fail', fail_and_tell)
    with pytest.raises(AssetWriteError) as caught:
        manager.finalize_image(1)
    assert caught.value.image_id == 1
