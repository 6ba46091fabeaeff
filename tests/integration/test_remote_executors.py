"""Executors of processes and dask do what the serial one does, also when workers die."""
import gc
import itertools
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback
import tracemalloc

import numpy as np
import pytest

from cocoseg import get_executor
from cocoseg.engine.executors import Executor
from cocoseg.errors import OptionError, TaskError, TaskTimeoutError
from cocoseg.machine import count_cpus

pytest.importorskip('cloudpickle')

REMOTE = ['processes:2', 'dask:2']
SPECS = ['serial', 'threads:2', *REMOTE]


@pytest.fixture(scope='module')
def executors():
    """Executors by spec, made when asked for; starting workers takes long."""
    made = {}

    def get(spec):
        if spec.startswith('dask'):
            pytest.importorskip('distributed')
        if spec not in made:
            made[spec] = get_executor(spec)
        return made[spec]

    yield get
    for executor in made.values():
        if not executor.shares_memory:
            executor.close()


@pytest.fixture
def executor(request, executors):
    return executors(request.param)


def over(specs):
    """Run a test with each of some executors."""
    return pytest.mark.parametrize('executor', specs, indirect=True)


def count_marks(path):
    return path.stat().st_size if path.exists() else 0


def wait_until(condition, seconds=10):
    """Return True once a condition holds, False if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def make_marker(path, work):
    """Return a function that leaves a byte in a file, then works."""
    def mark(task):
        with open(path, 'ab', buffering=0) as file:
            file.write(b'.')
        return work(task)
    return mark


# -- the same results

FUNCTIONS = {
    'importable': abs,
    'lambda': lambda task: task ** 2,
    'array': lambda task: np.full((3, 2), task).tolist(),
    'nothing': lambda task: None,
    'function': lambda task: (lambda: task),
}


@over(SPECS)
@pytest.mark.parametrize('name', FUNCTIONS)
@pytest.mark.parametrize('ordered', [False, True])
def test_results_are_those_of_the_serial_executor(executor, name, ordered):
    assert isinstance(executor, Executor)
    func = FUNCTIONS[name]
    found = list(executor.run(func, iter(range(-5, 15)), ordered=ordered))
    if not ordered:
        found.sort(key=lambda pair: pair[0])
    assert [task for task, _ in found] == list(range(-5, 15))
    for task, result in found:
        assert (result() if name == 'function' else result) == (
            task if name == 'function' else func(task))
    assert list(executor.run(func, [])) == []


@over(SPECS)
def test_order_when_the_first_is_the_slowest(executor):
    def slow_at_first(task):
        time.sleep(0.1 if task % 4 == 0 else 0)
        return task
    found = [task for task, _ in executor.run(slow_at_first, range(12), ordered=True)]
    assert found == list(range(12))


@over(REMOTE)
def test_tasks_run_at_the_same_time_in_other_processes(executor, tmp_path):
    def meet(task, folder=str(tmp_path)):
        open(f'{folder}/{task}', 'w').close()
        end = time.monotonic() + 20
        while len(os.listdir(folder)) < 2 and time.monotonic() < end:
            time.sleep(0.01)
        return os.getpid(), len(os.listdir(folder))
    found = [result for _, result in executor.run(meet, range(2))]
    assert [count for _, count in found] == [2, 2]
    assert os.getpid() not in {pid for pid, _ in found}
    assert len({pid for pid, _ in found}) == 2


@over(REMOTE)
def test_workers_are_kept_and_have_their_share_of_the_cpus(executor):
    def tell(task):
        return os.getpid(), (count_cpus(), int(os.environ['NUMBA_NUM_THREADS']))
    found = {result for _ in range(2) for _, result in executor.run(tell, range(20))}
    share = max(count_cpus() // 2, 1)
    assert len({pid for pid, _ in found}) <= 2
    assert {shares for _, shares in found} == {(share, share)}


# -- back-pressure

@over(REMOTE)
@pytest.mark.parametrize('ordered', [False, True])
def test_no_more_is_begun_than_may_be_pending(executor, tmp_path, ordered):
    taken = itertools.count()
    run = executor.run(make_marker(tmp_path / 'begun', abs), taken, max_pending=3,
                       ordered=ordered)
    for n_taken in range(1, 8):
        next(run)
        time.sleep(0.03)
        assert count_marks(tmp_path / 'begun') <= n_taken + 3
    run.close()
    assert next(taken) <= 7 + 3
    n_begun = count_marks(tmp_path / 'begun')
    time.sleep(0.1)
    assert count_marks(tmp_path / 'begun') == n_begun


@over(REMOTE)
def test_workers_go_on_while_the_caller_is_busy(executor, tmp_path):
    run = executor.run(make_marker(tmp_path / 'begun', abs), range(50), max_pending=6)
    next(run)
    # No call of next() hands out what is pending.
    assert wait_until(lambda: count_marks(tmp_path / 'begun') >= 6)
    run.close()


@over(['processes:2'])
def test_memory_does_not_grow_with_the_number_of_tasks(executor):
    def measure(n_tasks):
        tracemalloc.start()
        n_done = sum(1 for _ in executor.run(abs, range(n_tasks)))
        gc.collect()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert n_done == n_tasks
        return peak
    # The peak of few tasks is that of what is pending.
    few = max(measure(100) for _ in range(3))
    assert measure(5000) < few + 100_000


@over(['dask:2'])
def test_dask_holds_no_more_futures_than_may_be_pending(executor):
    run = executor.run(abs, range(300))
    client = None
    for n_taken, _ in enumerate(run, 1):
        client = client or executor.get_client()
        # Those that are released are taken away by another thread, soon.
        assert len(client.futures) <= 10 * executor.n_workers
        if n_taken % 50 == 0:
            n_tasks = client.run_on_scheduler(lambda dask_scheduler: len(dask_scheduler.tasks))
            assert n_tasks <= 10 * executor.n_workers


# -- errors

@over(SPECS)
@pytest.mark.parametrize('ordered', [False, True])
def test_an_error_names_its_task_and_where_it_came_from(executor, tmp_path, ordered):
    def fail_somewhere(task):
        if task == 5:
            raise ZeroDivisionError('five')
        time.sleep(0.002)

    begun = tmp_path / 'begun'
    with pytest.raises(TaskError, match='tile 5 failed: ZeroDivisionError: five') as caught:
        for _ in executor.run(make_marker(begun, fail_somewhere), range(500),
                              describe='tile {}'.format, ordered=ordered):
            pass
    assert caught.value.task == 5
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    text = ''.join(traceback.format_exception(caught.value))
    assert 'fail_somewhere' in text
    n_begun = count_marks(begun)
    assert 6 <= n_begun < 100
    time.sleep(0.05)
    assert count_marks(begun) == n_begun
    assert list(executor.run(abs, [-1])) == [(-1, 1)]


@over(REMOTE)
def test_an_error_that_cannot_be_unpickled_is_still_told(executor):
    def fail(task):
        class Stubborn(Exception):
            def __init__(self, one, two):
                super().__init__(f'{one} and {two}')
        raise Stubborn(task, 'more')
    with pytest.raises(TaskError, match='7 failed: .*Stubborn: 7 and more'):
        list(executor.run(fail, [7]))
    assert list(executor.run(abs, [-1])) == [(-1, 1)]


@over(SPECS)
def test_an_error_of_the_iterable_is_raised_as_it_is(executor):
    def iter_tasks():
        yield from range(3)
        raise KeyError('no more')
    with pytest.raises(KeyError, match='no more'):
        list(executor.run(abs, iter_tasks()))
    assert len(list(executor.run(abs, range(5)))) == 5


@over(REMOTE)
def test_those_that_had_begun_are_through_when_an_error_is_raised(executor, tmp_path):
    def work(task, folder=str(tmp_path)):
        if task == 1:
            while not os.path.exists(f'{folder}/begun'):
                time.sleep(0.01)
            raise ValueError('second')
        open(f'{folder}/begun', 'w').close()
        time.sleep(0.5)
        open(f'{folder}/through', 'w').close()
    with pytest.raises(TaskError, match='second'):
        list(executor.run(work, range(2)))
    assert (tmp_path / 'through').exists()


@over(REMOTE)
def test_what_is_too_large_or_cannot_be_pickled(executor):
    pixels = np.zeros(17 * 2 ** 20, 'u1')
    with pytest.raises(OptionError, match='the function is larger than 16 MiB'):
        list(executor.run(lambda task: pixels.sum(), range(3)))
    with pytest.raises(OptionError, match='tile .* is larger than 16 MiB'):
        list(executor.run(np.sum, [pixels], describe='tile {}'.format))
    with pytest.raises(OptionError, match='cannot be sent to another process'):
        list(executor.run(abs, [3, multiprocessing.Lock()]))
    with pytest.raises(TaskError, match='3 failed: TypeError'):
        list(executor.run(lambda task: sys._getframe(), [3]))
    assert list(executor.run(abs, [-1])) == [(-1, 1)]


# -- time

@over(REMOTE)
def test_a_task_that_is_late_is_not_waited_for(executor):
    start = time.monotonic()
    with pytest.raises(TaskTimeoutError, match='tile 2 took .* more than timeout=0.5 s') as caught:
        list(executor.run(lambda task: time.sleep(60 if task == 2 else 0), range(4), timeout=0.5,
                          describe='tile {}'.format))
    assert caught.value.task == 2
    assert time.monotonic() - start < 30
    assert len(list(executor.run(abs, range(5)))) == 5


@over(REMOTE)
def test_time_in_the_queue_and_of_the_start_does_not_count(executor):
    executor.close()
    found = list(executor.run(lambda task: time.sleep(0.15), range(12), max_pending=12,
                              timeout=0.6))
    assert len(found) == 12


# -- workers that die

@over(REMOTE)
def test_a_worker_that_dies_once_changes_no_result(executor, tmp_path, caplog):
    def die_once(task, path=str(tmp_path / 'died')):
        if task in (3, 11):
            try:
                open(f'{path}{task}', 'x').close()
            except FileExistsError:
                return -task
            os.kill(os.getpid(), signal.SIGKILL)
        return -task
    with caplog.at_level(logging.WARNING, 'cocoseg'):
        found = sorted(executor.run(die_once, range(20)))
    assert found == [(task, -task) for task in range(20)]
    assert len(list(tmp_path.glob('died*'))) == 2


def test_it_is_told_that_a_worker_died(executors, tmp_path, caplog):
    def die_once(task, path=str(tmp_path / 'died')):
        if not os.path.exists(path):
            open(path, 'x').close()
            os._exit(3)
    list(executors('processes:2').run(die_once, [7], describe='tile {}'.format))
    assert 'the worker process of tile 7 died; it is run again' in caplog.text


@over(REMOTE)
def test_a_task_that_always_kills_its_worker(executor, tmp_path):
    def die(task):
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(TaskError, match='tile 9 failed: its worker process died, 3 times.*'
                       'fewer workers') as caught:
        list(executor.run(make_marker(tmp_path / 'begun', die), [9], describe='tile {}'.format))
    assert caught.value.task == 9
    assert count_marks(tmp_path / 'begun') == 3
    assert len(list(executor.run(abs, range(5)))) == 5


def test_only_the_task_that_kills_is_blamed(executors):
    def die_at_seven(task):
        if task == 7:
            os._exit(1)
        time.sleep(0.01)
    with pytest.raises(TaskError, match='^7 failed: its worker process died'):
        list(executors('processes:2').run(die_at_seven, range(40)))


def test_processes_that_died_while_they_were_idle(caplog):
    executor = get_executor('processes:4')

    def tell(task):
        time.sleep(0.2)
        return os.getpid()

    pids = {pid for _, pid in executor.run(tell, range(4))}
    assert len(pids) == 4
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    # No task is to blame, although one after the other is dead.
    assert list(executor.run(abs, [-1])) == [(-1, 1)]
    assert 'is run again' not in caplog.text
    executor.close()


# -- nothing is left

def list_children():
    return {child.pid for child in multiprocessing.active_children()}


@over(['processes:2'])
def test_processes_end_with_their_executor(executor):
    before = list_children()
    own = get_executor('processes:2')
    run = own.run(lambda task: time.sleep(0.05), range(100))
    next(run)
    assert len(list_children() - before) == 2
    run.close()
    own.close()
    assert list_children() == before
    assert len(list(own.run(abs, range(3)))) == 3
    del own, run
    gc.collect()
    assert wait_until(lambda: list_children() == before)


def test_a_run_within_a_run_has_its_own_processes(executors):
    executor = executors('processes:2')
    found = []
    for task, _ in executor.run(abs, range(4)):
        found += [(task, inner) for inner, _ in executor.run(abs, range(2))]
    assert sorted(found) == list(itertools.product(range(4), range(2)))


def test_a_cluster_ends_with_its_executor():
    pytest.importorskip('distributed')
    psutil = pytest.importorskip('psutil')
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    own = get_executor('dask:1')
    run = own.run(abs, range(100))
    next(run)
    started = {child.pid for child in psutil.Process().children(recursive=True)} - before
    assert started
    run.close()
    own.close()
    # The tracker of shared resources is one for all, and stays.
    left = {child.pid for child in psutil.Process().children(recursive=True)
            if 'resource_tracker' not in ' '.join(child.cmdline())}
    assert not left & started


PROGRAM = '''
import sys, time
from cocoseg import get_executor

def work(task):
    if task == 1:
        print('begun', flush=True)
        time.sleep(60)
    return task

if __name__ == '__main__' or {is_bare}:
    for task, _ in get_executor('{spec}').run(work, range(3), max_pending=1):
        pass
'''


@pytest.mark.parametrize('spec', REMOTE)
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGKILL], ids=['interrupt', 'kill'])
def test_no_process_outlives_the_program(tmp_path, spec, number):
    psutil = pytest.importorskip('psutil')
    pytest.importorskip('distributed')
    script = tmp_path / 'script.py'
    script.write_text(PROGRAM.format(spec=spec, is_bare=False))
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline() == 'begun\n'
        children = psutil.Process(program.pid).children(recursive=True)
        program.send_signal(number)
        _, errors = program.communicate(timeout=30)
    assert program.returncode not in (0, None)
    if number == signal.SIGINT:
        assert errors.rstrip().endswith('KeyboardInterrupt')
    _, alive = psutil.wait_procs(children, timeout=15)
    assert not alive


def test_processes_that_cannot_be_started(monkeypatch):
    def refuse(self):
        raise OSError(12, 'Cannot allocate memory (simulated)')
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, 'start', refuse)
    with pytest.raises(TaskError, match='failed: OSError.*Cannot allocate') as caught:
        list(get_executor('processes:2').run(abs, range(3)))
    assert isinstance(caught.value.__cause__, OSError)


def test_a_script_without_a_guard_is_told_so(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(PROGRAM.format(spec='processes:2', is_bare=True))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True,
                          check=False, timeout=60)
    assert done.returncode == 1
    assert 'if __name__ == "__main__":' in done.stderr.splitlines()[-1]


def test_a_program_ends_quietly(tmp_path):
    pytest.importorskip('distributed')
    script = tmp_path / 'script.py'
    script.write_text(
        'from cocoseg import get_executor\n'
        "if __name__ == '__main__':\n"
        "    executors = [get_executor(spec) for spec in ('processes:2', 'dask:2')]\n"
        '    for executor in executors:\n'
        '        print(len(list(executor.run(abs, range(30)))))\n')
    done = subprocess.run([sys.executable, '-X', 'dev', '-W', 'ignore', str(script)],
                          capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, '30\n30\n', '')


# -- clients and schedulers of others

@pytest.fixture(scope='module')
def cluster():
    """A cluster in the threads of this process: quick to start."""
    distributed = pytest.importorskip('distributed')
    with distributed.LocalCluster(n_workers=2, threads_per_worker=2, processes=False,
                                  protocol='tcp', dashboard_address='127.0.0.1:0',
                                  silence_logs=logging.CRITICAL) as cluster:
        yield cluster


def test_a_client_is_used_and_not_closed(cluster):
    from distributed import Client
    with Client(cluster, set_as_default=False) as client:
        executor = get_executor(client)
        assert (executor.n_workers, executor.shares_memory) == (4, False)
        assert sorted(executor.run(abs, range(9))) == [(task, task) for task in range(9)]
        executor.close()
        assert client.status == 'running'
        assert len(list(executor.run(abs, range(9), timeout=30))) == 9
        # Nothing is left at the scheduler but what others put there.
        assert wait_until(lambda: not client.run_on_scheduler(
            lambda dask_scheduler: len(dask_scheduler.tasks)))
        assert not client.run_on_scheduler(
            lambda dask_scheduler: [name for name in dask_scheduler.worker_plugins
                                    if len(name) == 32])
    with pytest.raises(TaskError, match='client .* is closed'):
        list(executor.run(abs, range(3)))


def test_the_address_of_a_scheduler(cluster):
    executor = get_executor(f'dask:{cluster.scheduler_address}')
    assert executor.n_workers == 4
    assert len(list(executor.run(abs, range(9)))) == 9
    client = executor.get_client()
    executor.close()
    assert client.status == 'closed'


def test_nobody_answers_at_an_address():
    dask = pytest.importorskip('dask')
    pytest.importorskip('distributed')
    with dask.config.set({'distributed.comm.timeouts.connect': '1s'}):
        with pytest.raises(TaskError, match='no scheduler of dask answers at tcp://127.0.0.1:9'):
            list(get_executor('dask:tcp://127.0.0.1:9').run(abs, [1]))


def test_targets_that_are_none():
    pytest.importorskip('distributed')
    from cocoseg.engine.dask_executor import DaskExecutor
    with pytest.raises(OptionError, match='target=3 is neither a client'):
        DaskExecutor(3)


SCHEDULER = '''
import time
from distributed import LocalCluster
if __name__ == '__main__':
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, silence_logs=50,
                           dashboard_address='127.0.0.1:0')
    print(cluster.scheduler_address, flush=True)
    time.sleep(60)
'''


def test_a_scheduler_that_is_killed(tmp_path):
    pytest.importorskip('distributed')
    script = tmp_path / 'scheduler.py'
    script.write_text(SCHEDULER)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.DEVNULL) as program:
        executor = get_executor('dask:' + program.stdout.readline().strip())
        run = executor.run(lambda task: time.sleep(0 if task == 0 else 30), range(10),
                           describe='tile {}'.format)
        assert next(run) == (0, None)
        program.kill()
        start = time.monotonic()
        with pytest.raises(TaskError, match='tile [1-9] was not done: the scheduler') as caught:
            next(run)
    assert caught.value.task in range(1, 10)
    assert time.monotonic() - start < 20
    executor.close()
