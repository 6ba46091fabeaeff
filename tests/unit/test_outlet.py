"""The outlet: every block reaches every sink once, whatever fails in between."""
import threading

import numpy as np
import pytest

from cocoseg import BlockGrid, Quantization, SoftStitcher, Window
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch.layers import ClassMap, ThresholdMask
from cocoseg.stitch.outlet import Outlet
from cocoseg.stitch.products import BlockValues, Products

PATIENCE = 30  # seconds until a hang becomes a failure
SHAPE = (10, 12, 2)
BLOCKS = BlockGrid(SHAPE, 4)
INDICES = [block.index for block in BLOCKS]
IMAGE = np.random.RandomState(0).rand(*SHAPE).astype('f4')
LAYERS = (ClassMap(), ThresholdMask(0.5))
EXPECTED = [IMAGE, *(layer.compute(IMAGE) for layer in LAYERS)]


class Source:
    """Blocks of IMAGE, and a record of which were taken and released."""

    def __init__(self):
        self.taken, self.released = [], []

    def take(self, index):
        self.taken.append(index)
        values = BlockValues(IMAGE[BLOCKS.get(index).core.slices].copy(), np.ones(
            BLOCKS.get(index).core.shape, 'f4'))
        values.release = lambda: self.released.append(index)
        return values


def make(sinks, products=None):
    products = Products(layers=LAYERS[:len(sinks) - 1]) if products is None else products
    return Outlet(BLOCKS, products, sinks, threading.RLock()), Source()


def assert_all_came(outlet, source, sinks):
    assert not outlet.unsent and outlet.n_unsent == 0
    assert sorted(source.taken) == sorted(source.released) == INDICES
    for sink, expected in zip(sinks, EXPECTED):
        assert np.array_equal(sink.as_array(), expected)


@pytest.mark.parametrize('n_sinks', [1, 2, 3])
def test_each_block_goes_to_each_sink_once(n_sinks):
    # A MemorySink refuses a block that comes twice.
    sinks = [MemorySink() for _ in range(n_sinks)]
    outlet, source = make(sinks)
    assert outlet.unsent == set(INDICES) and outlet.n_unsent == len(INDICES)
    outlet.send([(1, 1), (0, 2), (1, 1)], source.take)
    outlet.send([(1, 1), (2, 0)], source.take)
    outlet.send([], source.take)
    assert source.taken == [(1, 1), (0, 2), (2, 0)] == source.released
    assert outlet.unsent == set(INDICES) - set(source.taken)
    assert outlet.n_unsent == len(INDICES) - 3
    for sink in sinks:
        assert set(sink.blocks) == {BLOCKS.get(index).core for index in source.taken}
    for _ in range(2):
        outlet.send_rest(source.take)
        assert_all_came(outlet, source, sinks)


@pytest.mark.parametrize('failing', [0, 1, 2])
@pytest.mark.parametrize('n_failures', [1, 2, 5])
def test_a_sink_that_fails_is_asked_again_and_the_others_are_not(n_failures, failing):
    sinks = [FailingSink(n_failures if n == failing else 0) for n in range(3)]
    outlet, source = make(sinks)
    for _ in range(n_failures):
        with pytest.raises(OSError, match='simulated'):
            outlet.send([INDICES[0]], source.take)
        # It is rendered once, and its memory is given back at once.
        assert source.taken == source.released == [INDICES[0]]
        assert INDICES[0] in outlet.unsent
        assert [len(sink.blocks) for sink in sinks] == [1] * failing + [0] * (3 - failing)
    outlet.send(INDICES[:2], source.take)
    assert [len(sink.blocks) for sink in sinks] == [2, 2, 2]
    outlet.send_rest(source.take)
    assert_all_came(outlet, source, sinks)


def test_a_failure_holds_up_the_rest_of_the_call_and_loses_nothing():
    sinks = [MemorySink(), FailingSink(1), MemorySink()]
    outlet, source = make(sinks)
    with pytest.raises(OSError):
        outlet.send(INDICES, source.take)
    assert source.taken == INDICES[:1] and outlet.unsent == set(INDICES)
    outlet.send(INDICES, source.take)
    assert_all_came(outlet, source, sinks)


@pytest.mark.parametrize('error', [MemoryError, KeyboardInterrupt, ValueError])
def test_errors_of_any_kind_keep_the_block(error):
    class Sink(MemorySink):
        n_left = 2

        def write_block(self, window, block):
            if self.n_left:
                self.n_left -= 1
                raise error('stop')
            super().write_block(window, block)
    sinks = [MemorySink(), Sink()]
    outlet, source = make(sinks)
    for _ in range(2):
        with pytest.raises(error):
            outlet.send_rest(source.take)
    outlet.send_rest(source.take)
    assert_all_came(outlet, source, sinks)


def test_what_fails_while_it_is_made_is_made_again():
    class Layer(ClassMap):
        def compute(self, *args):
            if calls.append(args) or len(calls) == 1:
                raise RuntimeError('not now')
            return super().compute(*args)
    calls, sinks = [], [MemorySink(), MemorySink()]
    outlet, source = make(sinks, Products(layers=[Layer()]))
    with pytest.raises(RuntimeError, match='not now'):
        outlet.send([INDICES[0]], source.take)
    assert source.taken == [INDICES[0]] and not source.released
    assert not sinks[0].blocks and INDICES[0] in outlet.unsent
    outlet.send_rest(source.take)
    assert_all_came(outlet, source, sinks)


def test_a_block_that_cannot_be_taken_is_asked_for_again():
    sinks = [MemorySink()]
    outlet, source = make(sinks)

    def fail(index):
        raise OSError('cut short')
    with pytest.raises(OSError, match='cut short'):
        outlet.send(INDICES, fail)
    assert outlet.unsent == set(INDICES) and not sinks[0].blocks
    assert outlet.n_unsent == len(INDICES)
    outlet.send_rest(source.take)
    assert_all_came(outlet, source, sinks)


@pytest.mark.parametrize('n_failures', [0, 3])
@pytest.mark.parametrize('layers', [(), LAYERS])
def test_clipped_values_are_counted_once(layers, n_failures):
    codec = Quantization(0.25, 0.75)
    sinks = [FailingSink(n_failures), *(FailingSink(n_failures) for _ in layers)]
    outlet, source = make(sinks, Products(codec, layers))
    assert outlet.n_clipped == 0
    while outlet.unsent:
        try:
            outlet.send_rest(source.take)
        except OSError:
            continue
    expected, n_clipped = codec.encode(IMAGE)
    assert np.array_equal(sinks[0].as_array(), expected)
    assert outlet.n_clipped == n_clipped > 0


# ---- threads ---------------------------------------------------------------

def run_threads(works):
    done = []

    def run(work):
        work()
        done.append(work)
    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == len(works), 'a thread raised or hangs'


class FlakySink(MemorySink):
    """Every third write fails, from whatever thread."""

    def __init__(self):
        super().__init__()
        self.n_calls, self.lock = 0, threading.Lock()

    def write_block(self, window, block):
        with self.lock:
            self.n_calls += 1
            if self.n_calls % 3 == 0:
                raise OSError('flaky')
            super().write_block(window, block)


def insist(func, *args):
    while True:
        try:
            return func(*args)
        except OSError:
            continue


@pytest.mark.parametrize('seed', range(3))
def test_many_threads_send_the_same_blocks(seed):
    sinks = [FlakySink() for _ in range(3)]
    outlet, source = make(sinks)
    rng = np.random.RandomState(seed)
    orders = [[INDICES[n] for n in rng.permutation(len(INDICES))] for _ in range(3)]
    run_threads([lambda order=order: insist(outlet.send, order, source.take) for order in orders]
                + [lambda: insist(outlet.send_rest, source.take)])
    assert_all_came(outlet, source, sinks)


@pytest.mark.parametrize('fails', [False, True])
def test_the_end_waits_for_blocks_on_their_way(fails):
    class GatedSink(MemorySink):
        is_first = True

        def write_block(self, window, block):
            if self.is_first:
                self.is_first = False
                entered.set()
                assert gate.wait(PATIENCE)
                if fails:
                    raise OSError('late failure')
            super().write_block(window, block)

    def send():
        try:
            outlet.send([(1, 1)], source.take)
        except OSError as ex:
            errors.append(ex)
    entered, gate, errors = threading.Event(), threading.Event(), []
    sinks = [GatedSink()]
    outlet, source = make(sinks)
    sender, ender = (threading.Thread(target=target, daemon=True) for target in (
        send, lambda: outlet.send_rest(source.take)))
    sender.start()
    assert entered.wait(PATIENCE)
    ender.start()
    ender.join(0.1)
    assert ender.is_alive() and (1, 1) not in outlet.unsent
    gate.set()
    sender.join(PATIENCE), ender.join(PATIENCE)
    assert not ender.is_alive() and len(errors) == fails
    assert_all_came(outlet, source, sinks)


# ---- with the stitcher -----------------------------------------------------

@pytest.mark.parametrize('engine', ['auto', 'general'])
@pytest.mark.parametrize('options', [{}, {'memory_budget': 0}, {'expected_minmax': (0, 1)}])
def test_a_layer_sink_that_fails_while_windows_come(options, engine):
    windows = [Window(0, 0, 10, 6), Window(0, 4, 10, 12)]
    sinks, calm = [MemorySink(), FailingSink(5)], [MemorySink(), MemorySink()]
    for main, layer in (sinks, calm):
        stitcher = SoftStitcher(SHAPE, windows, sink=main, layers={'class': layer}, blocksize=4,
                                engine=engine, **options)
        n_failed = 0
        for window in windows:
            try:
                stitcher.add(window, IMAGE[window.slices])
            except OSError:
                n_failed += 1
        assert stitcher.is_complete
        while True:
            try:
                stitcher.finalize()
                break
            except OSError:
                n_failed += 1
        assert n_failed == 5 * (layer is sinks[1])
        assert stitcher.nbytes == 0
    for found, expected in zip(sinks, calm):
        assert np.array_equal(found.as_array(), expected.as_array())
    assert np.array_equal(sinks[1].as_array(), EXPECTED[1])
