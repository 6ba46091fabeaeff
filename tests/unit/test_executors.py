"""Executors: the same results everywhere, bounded work, errors that name the task."""
import pickle
import threading
import time

import pytest

from cocoseg import get_executor
from cocoseg.engine.executors import Executor, SerialExecutor, ThreadExecutor
from cocoseg.machine import count_cpus, share_rows, split_rows
from cocoseg.errors import OptionError, TaskError, TaskTimeoutError

SPECS = ['serial', 'threads:1', 'threads:3']


@pytest.mark.parametrize('spec', SPECS)
def test_every_task_has_its_result(spec):
    executor = get_executor(spec)
    assert isinstance(executor, Executor)
    found = list(executor.run(lambda task: task ** 2, range(50)))
    assert sorted(found) == [(task, task ** 2) for task in range(50)]
    assert list(executor.run(abs, [])) == []


@pytest.mark.parametrize('spec', SPECS)
def test_results_come_in_order_when_asked(spec):
    def slow_at_first(task):
        time.sleep(0.02 if task % 3 == 0 else 0)
        return task
    found = [task for task, _ in get_executor(spec).run(slow_at_first, range(12), ordered=True)]
    assert found == list(range(12))


def test_threads_run_at_the_same_time():
    barrier = threading.Barrier(2, timeout=10)
    assert len(list(ThreadExecutor(2).run(lambda task: barrier.wait(), range(2)))) == 2


@pytest.mark.parametrize('ordered', [False, True])
def test_no_more_is_begun_than_may_be_pending(ordered):
    begun, lock = [], threading.Lock()

    def note(task):
        with lock:
            begun.append(task)
        return task

    run = ThreadExecutor(4).run(note, range(100), max_pending=3, ordered=ordered)
    for n_taken in range(1, 20):
        next(run)
        time.sleep(0.002)
        assert len(begun) <= n_taken + 3
    run.close()
    time.sleep(0.05)
    assert len(begun) <= 19 + 3


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('ordered', [False, True])
def test_an_error_names_the_task_and_its_cause(spec, ordered):
    begun = []

    def fail(task):
        begun.append(task)
        if task == 5:
            raise ZeroDivisionError('five')
        time.sleep(0.001)
        return task

    with pytest.raises(TaskError, match='tile 5 failed: ZeroDivisionError: five') as caught:
        for _ in get_executor(spec).run(fail, range(1000), describe='tile {}'.format,
                                        ordered=ordered):
            pass
    assert caught.value.task == 5
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert len(begun) < 100
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.task) == (str(caught.value), 5)


def test_an_error_is_seen_before_an_earlier_task_ends():
    release = threading.Event()

    def work(task):
        if task == 0:
            release.wait(10)
        if task == 1:
            raise ValueError('second')
        return task

    run = ThreadExecutor(2).run(work, range(2), ordered=True)
    threading.Timer(0.2, release.set).start()
    with pytest.raises(TaskError, match='second'):
        next(run)


@pytest.mark.parametrize('spec', ['serial', 'threads:2'])
def test_a_task_that_takes_too_long(spec):
    release = threading.Event()
    start = time.monotonic()
    with pytest.raises(TaskTimeoutError, match='give it more time') as caught:
        # The serial executor can only tell when the task has ended.
        list(get_executor(spec).run(lambda task: release.wait(0.3 if spec == 'serial' else 20),
                                    ['slow'], timeout=0.1))
    release.set()
    assert caught.value.task == 'slow' and isinstance(caught.value, TimeoutError)
    assert time.monotonic() - start < 10


def test_time_in_the_queue_does_not_count():
    found = list(ThreadExecutor(1).run(lambda task: time.sleep(0.05), range(8), max_pending=8,
                                       timeout=0.3))
    assert len(found) == 8


def test_no_thread_is_left():
    before = threading.active_count()
    list(ThreadExecutor(3).run(abs, range(10)))
    run = ThreadExecutor(3).run(abs, range(10))
    next(run)
    run.close()
    assert threading.active_count() == before


@pytest.mark.parametrize('spec', ['', 'thread', 'threads:0', 'threads:x', 'serial:2', 3, None,
                                  'dask'])
def test_unknown_executors(spec):
    with pytest.raises(OptionError, match='executor='):
        get_executor(spec)


def test_more_threads_than_cpus_are_a_warning(caplog):
    n_cpus = count_cpus()
    get_executor(f'threads:{n_cpus}')
    assert caplog.text == ''
    assert get_executor(f'threads:{n_cpus + 1}').n_workers == n_cpus + 1
    assert f'more threads than the {n_cpus} CPUs' in caplog.text


def test_an_executor_is_returned_as_it_is():
    executor = SerialExecutor()
    assert get_executor(executor) is executor
    assert get_executor('threads').n_workers >= 1


@pytest.mark.parametrize('n_rows, n_parts', [(1, 1), (1, 9), (7, 3), (100, 7), (5, 5)])
def test_rows_are_shared_without_gap(n_rows, n_parts):
    parts = split_rows(n_rows, n_parts)
    assert [row for first, stop in parts for row in range(first, stop)] == list(range(n_rows))
    assert len(parts) == min(n_rows, n_parts)
    sizes = [stop - first for first, stop in parts]
    assert max(sizes) - min(sizes) <= 1
    assert share_rows(lambda first, stop: (first, stop), n_rows, n_parts) == parts


def test_an_error_in_a_part_is_raised():
    with pytest.raises(ZeroDivisionError):
        share_rows(lambda first, stop: 1 // first, 4, 2)
