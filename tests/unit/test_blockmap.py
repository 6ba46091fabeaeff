"""run_blocks: retries, checks, limits, and who is blamed."""
import threading
import time
from concurrent.futures import Future

import numpy as np
import pytest

from cocoseg import BlockGrid
from cocoseg.engine.block_store import BlockStore
from cocoseg.engine.blockmap import BlockRun, run_blocks
from cocoseg.engine.timings import Timings
from cocoseg.errors import OptionError, TaskError, TaskTimeoutError, WindowShapeError

GRID = BlockGrid((10, 10), 4)
EXECUTORS = ['serial', 'threads:2']


class Flaky:
    """Fails so many times per block, then returns its area."""

    def __init__(self, n_failures, error=RuntimeError):
        self.n_failures, self.error = n_failures, error
        self.calls, self.lock = {}, threading.Lock()

    def __call__(self, block, timings):
        with self.lock:
            self.calls[block.index] = self.calls.get(block.index, 0) + 1
            n = self.calls[block.index]
        if n <= self.n_failures:
            raise self.error(f'failure {n}')
        return block.core.area


@pytest.mark.parametrize('executor', EXECUTORS)
def test_every_block_is_done_once(executor):
    found = list(run_blocks(Flaky(0), GRID, BlockRun(executor)))
    assert sorted(outcome.block.index for outcome in found) == [block.index for block in GRID]
    assert sum(outcome.result for outcome in found) == 100
    assert not any(outcome.n_retries or outcome.is_resumed for outcome in found)


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_block_that_fails_is_tried_again(executor, caplog):
    found = list(run_blocks(Flaky(2), GRID, BlockRun(executor, max_retries=2)))
    assert {outcome.n_retries for outcome in found} == {2}
    assert 'block (0, 0) at Window(y=0:4, x=0:4) of blocks failed and is tried again' in caplog.text


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_block_that_fails_too_often_names_itself_and_the_cause(executor):
    work = Flaky(3)
    with pytest.raises(TaskError, match=r'block \(0, 0\) at Window.* of roofs failed.*tried 3 times'
                       r'.*RuntimeError: failure 3') as info:
        list(run_blocks(work, GRID, BlockRun(executor, max_retries=2), name='roofs'))
    assert info.value.task == GRID.get((0, 0))
    chain, error = [], info.value
    while error is not None:
        chain, error = [*chain, type(error)], error.__cause__
    assert RuntimeError in chain
    assert work.calls[0, 0] == 3


def test_no_retry_is_one_attempt():
    work = Flaky(1)
    with pytest.raises(TaskError, match=r'failed: RuntimeError: failure 1'):
        list(run_blocks(work, GRID, BlockRun(max_retries=0)))
    assert work.calls == {(0, 0): 1}


def test_what_comes_again_is_not_tried_again():
    work = Flaky(9, WindowShapeError)
    with pytest.raises(TaskError, match='WindowShapeError'):
        list(run_blocks(work, GRID, BlockRun()))
    assert work.calls == {(0, 0): 1}


def test_a_result_that_does_not_pass_the_check_is_made_again():
    counts = {}

    def work(block, timings):
        counts[block.index] = counts.get(block.index, 0) + 1
        return counts[block.index]

    found = list(run_blocks(work, GRID, BlockRun(), check=lambda block, result: result > 1))
    assert {(outcome.result, outcome.n_retries) for outcome in found} == {(2, 1)}
    with pytest.raises(TaskError, match='BlockCheckError.*did not pass the check'):
        list(run_blocks(work, GRID, BlockRun(), check=lambda block, result: False))


@pytest.mark.parametrize('executor', EXECUTORS)
def test_a_slow_block_is_named(executor):
    with pytest.raises(TaskTimeoutError, match=r'block \(0, 0\).*timeout=0.05'):
        list(run_blocks(lambda block, timings: time.sleep(0.2), BlockGrid((4, 4), 4),
                        BlockRun(executor, timeout=0.05)))


def test_so_many_blocks_are_pending_and_no_more():
    begun = []

    def work(block, timings):
        begun.append(block.index)

    found = run_blocks(work, BlockGrid((40, 40), 4), BlockRun('threads:2', max_pending=3))
    for n_taken in range(1, 6):
        next(found)
        time.sleep(0.02)
        assert len(begun) <= n_taken - 1 + 3
    found.close()
    n_begun = len(begun)
    time.sleep(0.02)
    assert len(begun) == n_begun


def test_workers_begin_once_before_their_first_block():
    events, lock = [], threading.Lock()

    def init():
        with lock:
            events.append((threading.get_ident(), 'init'))

    def work(block, timings):
        with lock:
            events.append((threading.get_ident(), 'work'))

    for _ in range(2):
        events.clear()
        list(run_blocks(work, GRID, BlockRun('threads:2', init=init)))
        for thread in {thread for thread, _ in events}:
            names = [name for who, name in events if who == thread]
            assert names[0] == 'init' and names.count('init') == 1


def test_upstream_is_finished_first():
    future, events = Future(), []
    future.set_result(1)
    run = BlockRun(upstream=[future, lambda: events.append('built')])
    run.finish_upstream()
    assert events == ['built']
    broken = Future()
    broken.set_exception(OSError('no tiles'))
    with pytest.raises(OSError, match='no tiles'):
        BlockRun(upstream=[broken]).finish_upstream()


def test_progress_sees_each_block():
    seen = {}

    def progress(steps, total, desc):
        seen.update(total=total, desc=desc, n=0)
        for step in steps:
            seen['n'] += 1
            yield step

    list(run_blocks(Flaky(0), GRID, BlockRun(progress=progress), name='roofs'))
    assert seen == {'total': 9, 'desc': 'roofs', 'n': 9}


def test_only_attempts_that_succeed_are_timed():
    def work(block, timings):
        with timings.interval('computing'):
            return fail(block, timings)

    fail, timings = Flaky(1), Timings()
    list(run_blocks(work, GRID, BlockRun(), timings=timings))
    assert len(timings.durations['computing']) == 9


def test_blocks_of_a_store_are_not_done_again(tmp_path):
    def work(block, timings):
        done.append(block.index)
        return {'area': np.array(block.core.area)}

    for n_more in (9, 0):
        done = []
        with BlockStore(tmp_path / 'work', {}, resume=True) as store:
            found = list(run_blocks(work, GRID, BlockRun(), store=store))
            assert sum(int(store.files.load(block.index, 'area')) for block in GRID) == 100
        assert len(done) == n_more
        assert sum(outcome.is_resumed for outcome in found) == 9 - n_more
        assert all(outcome.result is None for outcome in found)


@pytest.mark.parametrize('options', [
    {'executor': 'rockets'}, {'max_retries': -1}, {'max_retries': 1.5}, {'timeout': 0},
    {'timeout': -1}, {'max_pending': 0}, {'resume': 'yes'}, {'keep_tmpdir': 1}, {'upstream': [3]}])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        BlockRun(**options)
