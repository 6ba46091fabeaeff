"""The writer queue: bounds, order of errors, no lost job."""
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import cocoseg
from cocoseg.errors import OptionError
from cocoseg.io.queue import WriterQueue
from cocoseg.protocols import JobQueue

PATIENCE = 30  # seconds until a hang becomes a failure


class Job:
    """A job of a size, that waits for its gate and says that it ran."""

    def __init__(self, nbytes=0, gate=None):
        self.nbytes = nbytes
        self.gate = gate
        self.started = threading.Event()
        self.ran = False

    def __call__(self):
        self.started.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        self.ran = True
        return self.nbytes


def fail(text):
    raise ValueError(text)


def submit_in_thread(queue, job):
    """Submit from another thread; return the thread and an event set when admitted."""
    admitted = threading.Event()

    def work():
        queue.submit(job)
        admitted.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, admitted


def is_waiting(queue):
    """Return True once a submitter holds the entrance; waits for it."""
    deadline = threading.Event()
    for _ in range(1000):
        if queue._entrance.locked():
            return True
        deadline.wait(0.01)
    return False


@pytest.mark.parametrize('workers', [0, 1, 3])
def test_all_jobs_run(workers):
    done = []
    queue = WriterQueue(workers)
    assert isinstance(queue, JobQueue)
    futures = [queue.submit(lambda i=i: done.append(i) or i) for i in range(20)]
    queue.flush()
    assert sorted(done) == list(range(20))
    assert [future.result() for future in futures] == list(range(20))
    assert queue.n_pending == 0 and queue.has_room()
    queue.close()


def test_serial_queue_is_eager():
    with WriterQueue(workers=0) as queue:
        thread_ids = []
        future = queue.submit(lambda *args, **kwargs: thread_ids.append((
            threading.get_ident(), args, kwargs)), 1, key=2)
        assert future.done()
        assert thread_ids == [(threading.get_ident(), (1,), {'key': 2})]


def test_bytes_bound_blocks_and_admits():
    gate = threading.Event()
    with WriterQueue(workers=1, max_pending_bytes=100, max_pending_jobs=50) as queue:
        first, second, third = Job(60, gate), Job(40, gate), Job(1, gate)
        queue.submit(first)
        queue.submit(second)
        assert not queue.has_room()
        thread, admitted = submit_in_thread(queue, third)
        assert is_waiting(queue) and not admitted.wait(0.1)
        assert queue.n_pending == 2
        gate.set()
        assert admitted.wait(PATIENCE)
        thread.join(PATIENCE)
    assert first.ran and second.ran and third.ran


def test_job_above_the_bound_is_admitted_alone():
    gate = threading.Event()
    with WriterQueue(workers=2, max_pending_bytes=100) as queue:
        small, large = Job(1, gate), Job(1000)
        queue.submit(small)
        thread, admitted = submit_in_thread(queue, large)
        assert is_waiting(queue) and not admitted.wait(0.1) and not large.started.is_set()
        gate.set()
        assert admitted.wait(PATIENCE)
        thread.join(PATIENCE)
    assert large.ran


def test_jobs_bound_counts_jobs_without_size():
    gate = threading.Event()
    with WriterQueue(workers=1, max_pending_jobs=2) as queue:
        queue.submit(Job(gate=gate))
        assert queue.has_room()
        queue.submit(Job(gate=gate))
        assert not queue.has_room()
        thread, admitted = submit_in_thread(queue, Job())
        assert is_waiting(queue) and not admitted.wait(0.1)
        gate.set()
        thread.join(PATIENCE)
        assert admitted.is_set()


def test_error_surfaces_at_next_submit_whose_job_still_runs():
    queue = WriterQueue(workers=1)
    failed = queue.submit(fail, 'first')
    assert str(failed.exception()) == 'first'
    queue._wait()
    job = Job()
    with pytest.raises(ValueError, match='first'):
        queue.submit(job)
    queue.flush()  # raised once only
    assert job.ran
    queue.close()


def test_serial_error_surfaces_at_next_call():
    queue = WriterQueue(workers=0)
    future = queue.submit(fail, 'first')
    assert str(future.exception()) == 'first'
    job = Job()
    with pytest.raises(ValueError, match='first'):
        queue.submit(job)
    assert job.ran
    queue.submit(fail, 'second')
    with pytest.raises(ValueError, match='second'):
        queue.close()
    queue.close()


def test_flush_raises_the_first_of_several(caplog):
    gate = threading.Event()
    queue = WriterQueue(workers=1, max_pending_jobs=10)
    queue.submit(Job(gate=gate))
    for text in ('first', 'second', 'third'):
        queue.submit(fail, text)
    gate.set()
    with pytest.raises(ValueError, match='first') as caught:
        queue.wait_until_finished(desc='writing')
    assert "ValueError('third')" in caplog.text
    if sys.version_info >= (3, 11):
        assert len(caught.value.__notes__) == 2
    queue.flush()
    queue.close()


def test_body_error_is_not_masked():
    job = Job()
    with pytest.raises(KeyError, match='body'):
        with WriterQueue(workers=1) as queue:
            queue.submit(fail, 'job')
            queue._wait()
            with pytest.raises(ValueError):
                queue.submit(job)
            queue.submit(fail, 'another job')
            raise KeyError('body')
    assert job.ran and queue.n_pending == 0


def test_with_block_raises_job_errors():
    with pytest.raises(ValueError, match='late'):
        with WriterQueue(workers=2) as queue:
            queue.submit(fail, 'late')


@pytest.mark.parametrize('workers', [0, 1])
def test_submit_after_close_is_refused(workers):
    queue = WriterQueue(workers)
    queue.close()
    job = Job()
    with pytest.raises(RuntimeError, match='closed'):
        queue.submit(job)
    assert not job.ran and queue.n_pending == 0


def test_close_wakes_a_waiting_submitter():
    gate = threading.Event()
    queue = WriterQueue(workers=1, max_pending_jobs=1)
    queue.submit(Job(gate=gate))
    refused = []

    def work():
        try:
            queue.submit(Job())
        except RuntimeError as ex:
            refused.append(ex)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert is_waiting(queue)
    closer = threading.Thread(target=queue.close, daemon=True)
    closer.start()
    thread.join(PATIENCE)
    assert len(refused) == 1
    gate.set()
    closer.join(PATIENCE)
    assert not closer.is_alive()


@pytest.mark.parametrize('workers', [0, 1])
def test_jobs_may_submit_jobs(workers):
    done = []
    queue = WriterQueue(workers, max_pending_jobs=1)

    def outer():
        for i in range(5):
            queue.submit(done.append, i)

    queue.submit(outer)
    queue.close()
    assert sorted(done) == list(range(5))


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.parametrize('method', ['flush', 'close'])
def test_jobs_must_not_wait_for_their_queue(workers, method):
    queue = WriterQueue(workers)
    future = queue.submit(lambda: getattr(queue, method)())
    with pytest.raises(RuntimeError, match='outside of the job'):
        future.result(PATIENCE)
    with pytest.raises(RuntimeError, match='outside of the job'):
        queue.close()


def test_cancelled_job_gives_its_room_back():
    gate = threading.Event()
    with WriterQueue(workers=1) as queue:
        queue.submit(Job(gate=gate))
        future = queue.submit(Job(10))
        assert future.cancel()
        gate.set()
        queue.flush()
        assert queue.n_pending == 0 and queue.has_room()


def test_many_submitters():
    done = []
    with WriterQueue(workers=2, max_pending_bytes=10) as queue:
        def work(k):
            for i in range(50):
                job = Job(i % 12)
                queue.submit(job)
                done.append(job)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    assert len(done) == 200 and all(job.ran for job in done)


def test_jobs_of_a_forgotten_queue_still_run():
    script = (
        'import time\n'
        'from cocoseg.io.queue import WriterQueue\n'
        'queue = WriterQueue(workers=1)\n'
        'queue.submit(time.sleep, 0.2)\n'
        'queue.submit(print, "done")\n')
    result = subprocess.run(
        [sys.executable, '-c', script], check=True, capture_output=True, text=True, timeout=60,
        cwd=Path(cocoseg.__file__).parent.parent)
    assert result.stdout.strip() == 'done'


@pytest.mark.parametrize('options', [
    {'workers': -1}, {'max_pending_bytes': 0}, {'max_pending_jobs': 0}])
def test_bad_bounds_are_refused(options):
    with pytest.raises(OptionError):
        WriterQueue(**options)
