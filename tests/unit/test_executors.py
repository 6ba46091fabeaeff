"""Executors: the same results everywhere, bounded work, errors that name the task."""
import functools
import io
import multiprocessing
import os
import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cocoseg import get_executor
from cocoseg.engine import payload
from cocoseg.engine.executors import Executor, SerialExecutor, ThreadExecutor
from cocoseg.engine.process_executor import get_cpu_variables, set_cpu_share
from cocoseg.machine import count_cpus, share_rows, split_rows
from cocoseg.errors import MissingDependencyError, OptionError, TaskError, TaskTimeoutError

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
                                  'processes:0', 'processes:00', 'dask:', 'dask:0',
                                  'dask:host:8786', 'dask:tcp://', 'processes:tcp://host:1',
                                  'process'])
def test_unknown_executors(spec):
    with pytest.raises(OptionError, match="executor=.*'serial'.*'processes:N'.*'dask:tcp://"):
        get_executor(spec)


def test_executors_of_processes_start_nothing_before_they_run():
    before = multiprocessing.active_children()
    for spec, n_workers in [('processes', count_cpus()), ('processes:1', 1)]:
        executor = get_executor(spec)
        assert isinstance(executor, Executor)
        assert (executor.n_workers, executor.shares_memory) == (n_workers, False)
    assert multiprocessing.active_children() == before
    assert get_executor('serial').shares_memory and get_executor('threads').shares_memory


def test_dask_that_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, 'distributed', None)
    for spec in ['dask', 'dask:2', 'dask:tcp://127.0.0.1:1']:
        with pytest.raises(MissingDependencyError, match=r'pip install cocoseg\[dask\]'):
            get_executor(spec)


def test_more_threads_than_cpus_are_a_warning(caplog):
    n_cpus = count_cpus()
    get_executor(f'threads:{n_cpus}')
    assert caplog.text == ''
    assert get_executor(f'threads:{n_cpus + 1}').n_workers == n_cpus + 1
    assert f'more threads than the {n_cpus} CPUs' in caplog.text
    get_executor(f'processes:{n_cpus + 1}')
    assert f'more workers than the {n_cpus} CPUs' in caplog.text


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


# -- what goes to other processes

def test_what_is_packed_comes_back():
    for value in [3, {'a': (1, 2)}, np.arange(5).tolist(), abs]:
        assert payload.unpack(payload.pack(value, 'it')) == value


def test_lambdas_need_cloudpickle(monkeypatch):
    pytest.importorskip('cloudpickle')
    offset = 3
    assert payload.unpack(payload.pack(lambda task: task + offset, 'it'))(4) == 7
    monkeypatch.setitem(sys.modules, 'cloudpickle', None)
    with pytest.raises(OptionError, match='the function cannot be sent.*can be imported'):
        payload.pack(lambda task: task, 'the function')
    assert payload.unpack(payload.pack(abs, 'it')) is abs


def test_what_can_never_be_packed():
    for value in [threading.Lock(), functools.partial(print, file=io.TextIOWrapper(io.BytesIO()))]:
        with pytest.raises(OptionError, match='tile 3 cannot be sent to another process'):
            payload.pack(value, 'tile 3')


@pytest.mark.parametrize('plain', [False, True])
def test_what_is_too_large_is_refused_before_it_is_copied(monkeypatch, plain):
    if plain:
        monkeypatch.setitem(sys.modules, 'cloudpickle', None)
    payload.pack(np.zeros(payload.MAX_BYTES - 1000, 'u1'), 'it')
    with pytest.raises(OptionError, match='tile 3 is larger than 16 MiB.*path.*Zarr'):
        payload.pack({'pixels': np.zeros(payload.MAX_BYTES + 1, 'u1')}, 'tile 3')


def call(token, task):
    """Return the result of a task by the function that is kept."""
    return payload.unpack(payload.call_packed(token, payload.pack(task, 'task')))


def test_a_worker_keeps_functions_until_they_are_forgotten():
    for number in range(3):
        payload.keep_function(f'run {number}', payload.pack(number.__add__, 'it'))
    assert [call(f'run {number}', 10) for number in (0, 1, 2, 0)] == [10, 11, 12, 10]
    # A second worker in this process keeps it until it forgets it as well.
    payload.keep_function('run 1', payload.pack((1).__add__, 'it'))
    payload.forget_function('run 1')
    assert call('run 1', 10) == 11
    for _ in range(2):
        payload.forget_function('run 1')
    with pytest.raises(TaskError, match='does not have the function'):
        call('run 1', 10)
    payload.keep_function('run 3', payload.pack(abs, 'it'), only=True)
    with pytest.raises(TaskError, match='does not have the function'):
        call('run 0', 10)
    assert call('run 3', -1) == 1
    payload.forget_function('run 3')


class _Stubborn(Exception):
    """Cannot be pickled."""

    def __init__(self, one, two):
        super().__init__(f'{one} and {two}')
        self.lock = threading.Lock()


class SlowToUnpack:
    """Gives each thread time to unpack one of its own."""

    def __setstate__(self, state):
        time.sleep(0.05)

    def __getstate__(self):
        return {'some': 'state'}

    def __call__(self, task):
        return id(self)


def test_threads_of_a_worker_share_one_function():
    payload.keep_function('shared', payload.pack(SlowToUnpack(), 'the function'))
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(payload.call_packed, 'shared', payload.pack(number, 'the task'))
                 for number in range(4)]
        assert len({payload.unpack(call.result()) for call in calls}) == 1
    payload.forget_function('shared')


def test_errors_that_cannot_travel_are_told():
    def fail(task):
        raise _Stubborn(task, 2)
    payload.keep_function('stubborn', payload.pack(fail, 'it'))
    with pytest.raises(RuntimeError, match='_Stubborn: 1 and 2') as caught:
        payload.call_packed('stubborn', payload.pack(1, 'task'))
    assert isinstance(caught.value.__cause__, Exception)
    payload.forget_function('stubborn')


def test_the_share_of_the_cpus_is_an_upper_bound(monkeypatch):
    monkeypatch.setattr(os, 'environ', {'OMP_NUM_THREADS': '1', 'GDAL_NUM_THREADS': 'ALL_CPUS'})
    monkeypatch.setitem(sys.modules, 'threadpoolctl', None)
    set_cpu_share(3)
    found = {name: os.environ[name] for name in get_cpu_variables(1)}
    assert found.pop('OMP_NUM_THREADS') == '1'
    assert set(found.values()) == {'3'} and {'GDAL_NUM_THREADS', 'COCOSEG_NUM_CPUS'} <= set(found)


def test_tasks_that_come_back_beside_one_that_failed_are_not_waited_for():
    """They were taken from the queue with it, and the end of the run waited for ever."""
    from concurrent.futures import Future

    from cocoseg.engine.payload import pack
    from cocoseg.engine.remote_run import RemoteRun

    class Together(RemoteRun):
        """All tasks come back at once, and the first has failed."""

        def find_max_pending(self):
            return 3

        def send(self, handed):
            handed.future = Future()
            if handed.number == 0:
                handed.future.set_exception(ZeroDivisionError('no water'))
            else:
                handed.future.set_result(pack(handed.task, 'the result'))
            self.arrived.put(handed)

        def find_error(self, handed):
            return handed.future.exception(), False

    run = Together(abs, repr, None)
    with pytest.raises(TaskError, match='no water'):
        list(run.iterate(iter(range(3)), False))
    assert run.list_away() == []
