"""Items made ahead in a thread: order, errors, early ends, and bounded memory."""
import contextvars
import gc
import itertools
import logging
import queue
import signal
import subprocess
import sys
import threading
import traceback
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.engine import prefetch as module
from cocoseg.engine.prefetch import Prefetcher, iter_batches, predict_windows, prefetch
from cocoseg.errors import OptionError, WindowShapeError
from cocoseg.grid.windows import WindowGrid
from cocoseg.stitch.soft import SoftStitcher

PATIENCE = 30  # seconds until a hang becomes a failure
DEPTHS = [0, 1, 2, 7]
THREADED = [1, 2, 7]


def list_pullers():
    """Return the threads that are pulling items."""
    return [thread for thread in threading.enumerate() if thread.name == 'cocoseg-prefetch']


def wait_for_pullers():
    """Wait until no thread pulls any more, for tests that only told them to end."""
    for thread in list_pullers():
        thread.join(PATIENCE)
    assert list_pullers() == []


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Every test ends all threads; what it kept alive is collected before."""
    assert list_pullers() == []
    yield
    if list_pullers():
        gc.collect()
    wait_for_pullers()


class Source:
    """A generator that notes how it is used."""

    def __init__(self, items=None, error=None, error_at=None):
        self.made = []
        self.closed = threading.Event()
        self.threads = set()
        self.started = queue.SimpleQueue()
        self._items = itertools.count() if items is None else items
        self._error, self._error_at = error, error_at

    def __iter__(self):
        try:
            for place, item in enumerate(self._items):
                self.threads.add(threading.current_thread())
                self.started.put(item)
                if place == self._error_at:
                    self.fail()
                self.made.append(item)
                yield item
        finally:
            self.threads.add(threading.current_thread())
            self.closed.set()

    def fail(self):
        raise self._error

    def wait_until_started(self, n_items):
        for _ in range(n_items):
            self.started.get(timeout=PATIENCE)

    def is_waiting(self):
        """Return True if no further item is begun within a moment."""
        try:
            self.started.get(timeout=0.05)
        except queue.Empty:
            return True
        return False


# ---- order ---------------------------------------------------------------

@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('make', [list, iter, dict.fromkeys, lambda items: (n for n in items)])
def test_all_items_come_in_order(make, depth):
    assert list(prefetch(make(range(50)), depth)) == list(range(50))
    assert list_pullers() == []


@settings(max_examples=50)
@given(items=st.lists(st.none() | st.integers() | st.booleans()), depth=st.integers(0, 20),
       inner=st.integers(0, 3))
def test_prefetch_is_the_identity(items, depth, inner):
    assert list(prefetch(items, depth)) == items
    assert list(prefetch(prefetch(iter(items), inner), depth)) == items


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_empty_source(depth):
    items = prefetch(iter(()), depth)
    assert next(items, 'end') == next(items, 'end') == 'end'
    assert list_pullers() == []


def test_the_depth_may_be_huge_or_numpy():
    assert list(prefetch(range(9), sys.maxsize)) == list(prefetch(range(9), np.int64(3)))


@pytest.mark.parametrize('depth', [-1, 1.0, None, '2', np.nan])
def test_a_depth_that_makes_no_sense(depth):
    with pytest.raises(OptionError, match='depth=.* at least 0'):
        prefetch([1], depth)


def test_what_is_no_iterable_is_refused_at_once():
    with pytest.raises(TypeError):
        prefetch(5)


def test_one_thread_iterates_the_source_and_it_is_another():
    source = Source(range(20))
    assert list(prefetch(source, 3)) == source.made
    assert len(source.threads) == 1 and threading.current_thread() not in source.threads
    source = Source(range(20))
    assert list(prefetch(source, 0)) == source.made
    assert source.threads == {threading.current_thread()}


def test_nothing_is_made_before_the_first_item_is_asked_for():
    source = Source()
    with prefetch(source) as items:
        assert source.made == [] and list_pullers() == []
        assert next(items) == 0


def test_context_variables_reach_the_thread():
    variable = contextvars.ContextVar('variable', default='unset')
    variable.set('mine')
    assert list(prefetch((variable.get() for _ in range(3)), 2)) == ['mine'] * 3


# ---- how far ahead ---------------------------------------------------------

@pytest.mark.parametrize('depth', THREADED)
def test_a_slow_consumer_is_never_more_than_depth_behind(depth):
    source = Source()
    with prefetch(source, depth) as items:
        assert next(items) == 0
        source.wait_until_started(1 + depth)
        for taken in range(1, 6):
            assert source.is_waiting()
            assert len(source.made) == taken + depth
            next(items)
            source.wait_until_started(1)


@pytest.mark.parametrize('depth', DEPTHS)
def test_the_bound_holds_at_full_speed(depth):
    asked, ahead = itertools.count(), []
    n_asked = 0

    def make(item):
        ahead.append(item + 1 - n_asked)
        return item
    items = prefetch(map(make, range(2000)), depth)
    for _ in asked:
        n_asked += 1
        if next(items, None) is None:
            break
    assert len(ahead) == 2000 and max(ahead) <= depth + (depth == 0)


def test_a_slow_source_is_waited_for():
    gates = [threading.Event() for _ in range(3)]

    def wait(gate):
        assert gate.wait(PATIENCE)
        return gate
    items = prefetch(map(wait, gates), 2)
    for gate in gates:
        threading.Timer(0.02, gate.set).start()
        assert next(items) is gate
    assert list(items) == []


# ---- memory ----------------------------------------------------------------

class Item:
    """Something that can be seen to die."""

    alive = weakref.WeakSet()

    def __init__(self, number):
        self.number = number
        Item.alive.add(self)


@pytest.mark.parametrize('depth', DEPTHS)
def test_few_items_are_alive(depth):
    counts = []

    def make(number):
        item = Item(number)
        counts.append(len(Item.alive))
        return item
    for number, item in enumerate(prefetch(map(make, range(300)), depth)):
        assert item.number == number
    del item
    assert len(counts) == 300 and max(counts) <= depth + 2
    assert len(Item.alive) == 0


@pytest.mark.parametrize('n_taken', [1, 2, 5])
@pytest.mark.parametrize('depth', THREADED)
def test_a_taken_item_belongs_to_the_consumer_alone(depth, n_taken):
    """Also the last that was made, while the thread makes another."""
    at_last, gate = threading.Event(), threading.Event()

    def source():
        for number in range(n_taken):
            yield Item(number)
        at_last.set()
        assert gate.wait(PATIENCE)
    with prefetch(source(), depth) as items:
        for _ in range(n_taken):
            item = next(items)
        ref = weakref.ref(item)
        assert at_last.wait(PATIENCE) and set(Item.alive) == {item}
        del item
        assert ref() is None
        gate.set()


def test_closing_drops_what_was_made():
    items = prefetch(map(Item, itertools.count()), 5)
    first = next(items)
    items.close()
    assert set(Item.alive) == {first}
    del first


def test_an_error_is_not_kept_alive():
    class Failure(Exception):
        pass

    def source():
        yield 1
        raise Failure
    items = prefetch(source(), 2)
    gc.collect()
    gc.disable()
    try:
        try:
            list(items)
        except Failure as ex:
            ref = weakref.ref(ex)
        # Without a cycle it dies at once, and with it all that its frames hold.
        assert ref() is None
    finally:
        gc.enable()


# ---- errors ------------------------------------------------------------------

class Odd(BaseException):
    pass


@pytest.mark.parametrize('depth', [0, 1, 3, 20])
@pytest.mark.parametrize('error_at', [0, 4, 9])
@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Odd])
def test_an_error_comes_in_its_place(kind, error_at, depth):
    error = kind('gone wrong')
    source = Source(range(10), error, error_at)
    found, items = [], prefetch(source, depth)
    with pytest.raises(kind) as caught:
        for item in items:
            found.append(item)
    assert caught.value is error and found == list(range(error_at))
    assert list_pullers() == []
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[0] == 'test_an_error_comes_in_its_place' and names[-1] == 'fail'
    # As with a generator, that was the end.
    assert list(items) == []
    items.close()


@pytest.mark.parametrize('depth', DEPTHS)
def test_nothing_is_pulled_after_an_error(depth):
    calls = []

    def make(number):
        calls.append(number)
        if number == 2:
            raise ValueError('two')
        return number
    items = prefetch(map(make, range(9)), depth)
    with pytest.raises(ValueError, match='two'):
        list(items)
    assert calls == [0, 1, 2] and list(items) == []


@pytest.mark.parametrize('depth', THREADED)
def test_an_error_that_is_never_reached_is_never_raised(depth):
    with prefetch(Source(range(10), ValueError(), 1), depth) as items:
        assert next(items) == 0
    assert list_pullers() == []


def test_a_source_that_asks_for_its_own_items():
    def source():
        yield next(items)
    items = prefetch(source())
    with pytest.raises(RuntimeError, match='its own next item'):
        next(items)


def test_a_thread_that_cannot_start(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")
    monkeypatch.setattr(module._Puller, 'start', refuse)
    with prefetch([1, 2]) as items, pytest.raises(RuntimeError, match='start'):
        next(items)


# ---- consumers that stop early ------------------------------------------------

@pytest.mark.parametrize('n_taken', [0, 1, 5])
@pytest.mark.parametrize('depth', DEPTHS)
def test_leaving_the_block_ends_thread_and_source(depth, n_taken):
    source = Source()
    with prefetch(source, depth) as items:
        for _ in range(n_taken):
            next(items)
    assert list_pullers() == [] and source.closed.is_set() == (n_taken > 0)
    assert list(items) == []
    assert len(source.threads) <= 1
    assert (threading.current_thread() in source.threads) == (depth == 0 and n_taken > 0)


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_error_of_the_consumer_passes(kind):
    source = Source()
    with pytest.raises(kind), prefetch(source) as items:
        for _ in items:
            raise kind
    assert list_pullers() == [] and source.closed.is_set()


@pytest.mark.parametrize('depth', THREADED)
def test_a_loop_that_is_left_ends_thread_and_source(depth):
    source = Source()
    for item in prefetch(source, depth):
        if item == 3:
            break
    wait_for_pullers()
    assert source.closed.is_set() and len(source.threads) == 1
    assert len(source.made) <= 4 + depth


@pytest.mark.parametrize('kind', [ValueError, KeyboardInterrupt])
def test_a_loop_that_fails_ends_thread_and_source(kind):
    source = Source()
    try:
        for _ in prefetch(source):
            raise kind
    except kind:
        wait_for_pullers()
    assert source.closed.is_set()


def test_garbage_in_a_cycle_ends_thread_and_source():
    source = Source()
    items = prefetch(source)
    next(items)
    items.myself = items
    del items
    gc.collect()
    wait_for_pullers()
    assert source.closed.is_set()


@pytest.mark.parametrize('depth', DEPTHS)
def test_closing_is_idempotent_and_may_come_first(depth):
    source = Source()
    items = prefetch(source, depth)
    items.close()
    items.close()
    assert list(items) == [] and source.made == []


def test_a_source_that_cannot_be_closed_just_ends():
    items = prefetch(map(str, itertools.count()), 2)
    assert next(items) == '0'
    items.close()
    assert list_pullers() == []


def test_closing_waits_for_the_item_that_is_made():
    started, gate = threading.Event(), threading.Event()

    def source():
        yield 0
        started.set()
        assert gate.wait(PATIENCE)
        yield 1
    items = prefetch(source(), 1)
    assert next(items) == 0 and started.wait(PATIENCE)
    threading.Timer(0.05, gate.set).start()
    items.close()
    assert gate.is_set() and list_pullers() == []


def test_another_thread_may_close():
    started, gate = threading.Event(), threading.Event()

    def source():
        started.set()
        assert gate.wait(PATIENCE)
        yield 0
    items = prefetch(source())
    found = []
    consumer = threading.Thread(target=lambda: found.append(list(items)))
    consumer.start()
    assert started.wait(PATIENCE)
    closer = threading.Thread(target=items.close)
    closer.start()
    gate.set()
    for thread in (consumer, closer):
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert found in ([[]], [[0]])


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_error_while_closing_reaches_who_closes(depth):
    def source():
        try:
            yield from itertools.count()
        finally:
            raise ValueError('the tap is stuck')
    with pytest.raises(ValueError, match='stuck'), prefetch(source(), depth) as items:
        next(items)
    assert list_pullers() == []


def test_an_error_while_closing_is_logged_when_nobody_waits(caplog):
    def source():
        try:
            yield from itertools.count()
        finally:
            raise ValueError('the tap is stuck')
    with caplog.at_level(logging.ERROR, logger='cocoseg'):
        for _ in prefetch(source()):
            break
        wait_for_pullers()
    assert 'the tap is stuck' in caplog.text


def test_an_interrupt_wakes_the_consumer():
    gate, closed = threading.Event(), threading.Event()

    def source():
        try:
            yield 0
            # The consumer sleeps by now: a signal just before would wake nobody.
            gate.wait(0.1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert gate.wait(PATIENCE)
            yield 1
        finally:
            closed.set()
    found = []
    # A job in the background of a shell is started with interrupts ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with prefetch(source(), 1) as items:
            with pytest.raises(KeyboardInterrupt):
                found.extend(items)
                assert gate.wait(PATIENCE)
            # The source is still at it: nobody waited for it.
            assert not closed.is_set()
            gate.set()
    finally:
        signal.signal(signal.SIGINT, before)
    assert closed.is_set() and list(items) == [] and 1 not in found


@pytest.mark.parametrize('wait', ['', 'time.sleep(0.2)'])
def test_python_ends_while_an_iterator_is_alive(wait):
    code = f'''
import time
from cocoseg.engine.prefetch import prefetch
def source():
    try:
        for number in range(10 ** 9):
            {wait or 'pass'}
            yield number
    finally:
        print('closed', flush=True)
items = prefetch(prefetch(source()), 3)
print(next(items))
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ['0', 'closed'], '')


# ---- one inside of another -----------------------------------------------------

@pytest.mark.parametrize('depths', list(itertools.product([0, 1, 3], repeat=3)))
def test_nested(depths):
    source = Source(range(40))
    items = source
    for depth in depths:
        items = prefetch(map(lambda number: number + 1, items), depth)
    assert list(items) == [number + 3 for number in range(40)]
    assert list_pullers() == []


@pytest.mark.parametrize('depths', list(itertools.product([0, 2], repeat=2)))
def test_closing_closes_the_inner_first(depths):
    source = Source()
    with prefetch(prefetch(source, depths[0]), depths[1]) as items:
        assert [next(items), next(items)] == [0, 1]
    assert source.closed.is_set() and list_pullers() == []
    assert len(source.threads) == 1


@pytest.mark.parametrize('depths', list(itertools.product([0, 2], repeat=2)))
def test_an_error_passes_through(depths):
    error = Odd()
    found = []
    with pytest.raises(Odd) as caught:
        for item in prefetch(prefetch(Source(range(9), error, 5), depths[0]), depths[1]):
            found.append(item)
    assert caught.value is error and found == [0, 1, 2, 3, 4]


def test_a_source_may_prefetch_for_itself():
    def rows(n_rows):
        for row in range(n_rows):
            with prefetch(range(row), 1) as columns:
                yield sum(columns)
    assert list(prefetch(rows(6), 2)) == [0, 0, 1, 3, 6, 10]


# ---- batches ---------------------------------------------------------------------

@settings(max_examples=50)
@given(items=st.lists(st.integers()), size=st.integers(1, 12))
def test_batches_are_full_but_the_last_and_never_empty(items, size):
    batches = list(iter_batches(iter(items), size))
    assert sum(batches, []) == items
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(0 < len(batch) <= size for batch in batches)


def test_batches_are_taken_when_asked_for():
    numbers = itertools.count()
    batches = iter_batches(numbers, 3)
    assert next(batches) == [0, 1, 2] and next(numbers) == 3


def test_batches_are_not_kept():
    batches = iter_batches(map(Item, range(9)), 3)
    next(batches)
    assert len(Item.alive) == 0
    del batches


@pytest.mark.parametrize('size', [0, -1, 1.5, None])
def test_a_batch_size_that_makes_no_sense(size):
    with pytest.raises(OptionError, match='batch_size=.* at least 1'):
        iter_batches([1], size)
    with pytest.raises(OptionError, match='batch_size=.* at least 1'):
        predict_windows([1], list, batch_size=size)


# ---- predicting windows ------------------------------------------------------------

@settings(max_examples=30)
@given(n_windows=st.integers(0, 30), batch_size=st.integers(1, 9), depth=st.integers(0, 4))
def test_pairs_are_in_order_and_no_batch_is_empty(n_windows, batch_size, depth):
    sizes, threads = [], set()

    def predict(windows):
        assert isinstance(windows, list)
        sizes.append(len(windows))
        threads.add(threading.current_thread())
        return np.square(windows)
    pairs = predict_windows(iter(range(n_windows)), predict, batch_size=batch_size, prefetch=depth)
    assert list(pairs) == [(n, n * n) for n in range(n_windows)]
    assert sum(sizes) == n_windows and 0 not in sizes
    assert max(sizes, default=0) == min(batch_size, n_windows)
    assert len(threads) == (n_windows > 0)
    assert (threading.current_thread() in threads) == (n_windows > 0 and depth == 0)


@pytest.mark.parametrize('prefetch', [0, 1, 3])
@pytest.mark.parametrize('batch_size', [1, 4, 100])
def test_predicted_windows_can_be_stitched(batch_size, prefetch):
    image = np.random.RandomState(0).rand(40, 50, 2)
    grid = WindowGrid(image.shape[:2], window=16, overlap=5)

    def run(predict, **options):
        stitcher = SoftStitcher(image.shape, grid)
        for window, data in predict_windows(grid, predict, **options):
            stitcher.add(window, data)
        return stitcher.finalize()
    found = run(lambda batch: np.stack([image[window.slices] for window in batch]),
                batch_size=batch_size, prefetch=prefetch)
    assert np.array_equal(found, run(lambda batch: [image[batch[0].slices]], prefetch=0))
    assert np.allclose(found, image)


@pytest.mark.parametrize('depth', DEPTHS)
@pytest.mark.parametrize('result, message', [
    ([], '0 predictions for 3 windows'), ([1, 2], '2 predictions for 3 windows'),
    (np.zeros((4, 2)), '4 predictions for 3 windows'), (None, 'NoneType for 3 windows'),
    (np.float32(0), 'float32 for 3 windows')])
def test_another_number_of_predictions(result, message, depth):
    with pytest.raises(WindowShapeError, match=message):
        list(predict_windows(range(9), lambda batch: result, batch_size=3, prefetch=depth))


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_error_of_the_predictor_comes_after_the_pairs_before(depth):
    def predict(windows):
        if 4 in windows:
            raise Odd('four')
        return windows
    found = []
    with pytest.raises(Odd, match='four'):
        for window, _ in predict_windows(range(9), predict, batch_size=2, prefetch=depth):
            found.append(window)
    assert found == [0, 1, 2, 3] and list_pullers() == []


@pytest.mark.parametrize('depth', DEPTHS)
def test_an_error_of_the_windows_comes_in_its_place(depth):
    pairs = predict_windows(Source(range(9), Odd(), 4), list, prefetch=depth)
    found = []
    with pytest.raises(Odd):
        found.extend(window for window, _ in pairs)
    assert list_pullers() == []


@pytest.mark.parametrize('depth', DEPTHS)
def test_leaving_predicted_windows_ends_the_thread(depth):
    source = Source()
    for window, prediction in predict_windows(source, list, batch_size=2, prefetch=depth):
        assert window == prediction
        if window == 3:
            break
    wait_for_pullers()
    assert source.closed.wait(PATIENCE)
    assert len(source.made) <= 4 + 2 * (depth + 1)


@pytest.mark.parametrize('prefetch', [-1, 1.5, None])
def test_a_prefetch_that_makes_no_sense(prefetch):
    with pytest.raises(OptionError, match='prefetch='):
        predict_windows([1], list, prefetch=prefetch)


def test_prefetch_makes_a_prefetcher():
    assert isinstance(prefetch([]), Prefetcher)
