"""Streaming to a sink, by whichever engine, against a float64 model; also from threads."""
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.grid.windows import FITS
from cocoseg.protocols import MemorySink
from cocoseg.stitch.budget import MemoryBudget

from ..strategies import SEEDS, axes, blend_model, spoil

PATIENCE = 30  # seconds until a hang becomes a failure
# Of the largest value, 1.5; a pixel may be in dozens of windows.
TOLERANCE = {'float32': 2e-6 * 1.5, 'float64': 1e-6}


@st.composite
def grids(draw):
    """Draw (shape, WindowGrid), up to 60 windows."""
    sizes, windows, overlaps = zip(*(draw(axes(max_window=8, windows_across=3)) for _ in range(2)))
    return sizes, WindowGrid(sizes, windows, overlaps, draw(st.sampled_from(FITS)))


@st.composite
def chains(draw):
    """Draw (size, intervals) that follow each other on an axis; some may overhang."""
    start = draw(st.integers(-4, 0))
    stop = draw(st.integers(1, 9))
    chain = [(start, stop)]
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(start + 1, stop))
        stop = draw(st.integers(stop + 1, stop + 7))
        chain.append((start, stop))
    # Every window is inside at least in part; the last pixels may be left out.
    return draw(st.integers(max(start, 0) + 1, stop + 1)), chain


@st.composite
def lattices(draw):
    """Draw (shape, list of windows) on rows and columns of any sizes."""
    (height, rows), (width, columns) = draw(chains()), draw(chains())
    return (height, width), [Window(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]


PLANS = st.one_of(grids(), lattices()).filter(lambda plan: len(plan[1]) <= 60)
OPTIONS = st.fixed_dictionaries({
    'engine': st.sampled_from(['auto', 'auto', 'auto', 'general']),
    'dtype': st.sampled_from(['float32', 'float32', 'float64']),
    'blocksize': st.integers(2, 30),
    'num_threads': st.sampled_from([1, 1, 3]),
    'memory_budget': st.sampled_from([None, None, 0, 3000, 1 << 24]),
    'expected_minmax': st.sampled_from([None, (-0.5, 1.5), (0.1, 0.8)]),
    'quantize_dtype': st.sampled_from(['int16', 'int16', 'uint8', 'int32']),
    'channels_first': st.booleans(),
    'profile': st.sampled_from(['linear', 'linear', 'cosine', 'constant']),
})
# How windows come: each of them may end the carry strip.
WAYS = st.fixed_dictionaries({
    'order': st.sampled_from(['grid', 'grid', 'grid', 'swap', 'random']),
    'holes': st.sampled_from([0, 0, 1, 4]),
    'weights': st.sampled_from([0, 0, 1, 4]),
    'missing': st.sampled_from([0, 0, 0, 1, 4]),
    'batch': st.sampled_from([1, 1, 4]),
})


class Arrivals:
    """The windows of a plan as they come: (window, data, weights or None) each."""

    def __init__(self, shape, windows, n_bands, ways, seed, profile='linear'):
        rng = np.random.RandomState(seed)
        self.shape, self.windows = (*shape, n_bands), list(windows)
        plan, number = BlendPlan(windows, profile), len(self.windows)
        data = [rng.uniform(-0.5, 1.5, (*window.shape, n_bands)).astype('f4')
                for window in self.windows]
        weights = [None] * number
        for index in rng.permutation(number)[:ways['holes']]:
            data[index] = spoil(data[index], rng, rng.choice([0.05, 0.5, 1]))
        for index in rng.permutation(number)[:ways['weights']]:
            # Zeros: such a pixel has no weight at all.
            weights[index] = rng.rand(*self.windows[index].shape) * rng.choice(
                [0, 1], self.windows[index].shape, p=[0.2, 0.8])
        order = np.arange(number)
        if ways['order'] == 'random':
            rng.shuffle(order)
        elif ways['order'] == 'swap':
            swapped = rng.randint(number, size=2)
            order[swapped] = order[swapped[::-1]]
        left_out = rng.permutation(number)[:min(ways['missing'], number - 1)]
        self.missing = [self.windows[index] for index in left_out]
        order = [index for index in order if index not in left_out]
        self.parts = [(self.windows[index], data[index], weights[index]) for index in order]
        self._plan = plan

    def compute_mean(self):
        """Return (H, W, C) in float64, NaN where no valid pixel has weight."""
        return blend_model(self.shape, [
            (window, data, np.outer(*self._plan.get_weights(window)).astype('f8')
             if weights is None else weights)
            for window, data, weights in self.parts])

    def find_final(self, blocks):
        """Return the blocks that some window touches, and none that is missing."""
        windows = {window for window, _, _ in self.parts}
        return {block.core for block in blocks
                if any(not block.core.intersect(window).is_empty for window in windows)
                and all(block.core.intersect(window).is_empty for window in self.missing)}

    def count_valid(self, window, data):
        inside = window.clip(self.shape)
        return int(np.isfinite(data[inside.within(window).slices]).all(axis=2).sum())


def send(stitcher, arrivals, channels_first, batch):
    """Add all windows; check the counts that are returned."""
    parts = [(window, np.ascontiguousarray(data.transpose(2, 0, 1)) if channels_first else data,
              weights) for window, data, weights in arrivals.parts]
    valid = [arrivals.count_valid(window, data) for window, data, _ in arrivals.parts]
    for first in range(0, len(parts), batch):
        some = parts[first:first + batch]
        added = (stitcher.add(*some[0]) if batch == 1
                 else stitcher.add_batch(*map(list, zip(*some))))
        assert added == sum(valid[first:first + batch])
    area = sum(window.clip(arrivals.shape).area for window, _, _ in parts)
    assert stitcher.n_invalid == area - sum(valid)


def assert_same_values(actual, expected, options):
    """Compare what the sink got with the float64 mean; return the limits of n_clipped."""
    tolerance = TOLERANCE[options['dtype']]
    if options['expected_minmax'] is None:
        assert actual.dtype == options['dtype']
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)
        return 0, 0
    low, high = options['expected_minmax']
    codec = Quantization(low, high, options['quantize_dtype'])
    assert actual.dtype == codec.dtype
    codes = codec.encode(expected)[0]
    assert np.array_equal(actual == codec.nodata, np.isnan(expected))
    assert np.array_equal(actual == codec.nodata, codes == codec.nodata)
    steps = np.abs(actual.astype('i8') - codes)
    assert steps.max() <= max(1, np.ceil(tolerance / codec.step))
    beyond = np.maximum(low - expected, expected - high) - codec.step / 2
    return int((beyond > tolerance).sum()), int((beyond > -tolerance).sum())


@settings(max_examples=300)
@given(PLANS, st.integers(1, 3), OPTIONS, WAYS, SEEDS)
def test_blocks_are_the_weighted_mean(plan, n_bands, options, ways, seed):
    (shape, windows), options = plan, dict(options)
    if options['memory_budget'] is not None:
        options['memory_budget'] = MemoryBudget(options['memory_budget'])
    arrivals = Arrivals(shape, windows, n_bands, ways, seed, options['profile'])
    sink, blocks = MemorySink(), BlockGrid(shape, options['blocksize'])
    stitcher = SoftStitcher(arrivals.shape, windows, sink=sink, **options)
    send(stitcher, arrivals, options['channels_first'], ways['batch'])
    assert stitcher.pending == sorted(window.clip(shape) for window in arrivals.missing)
    assert stitcher.is_complete == (not arrivals.missing)
    # What is final is with the sink, and nothing else is.
    assert set(sink.blocks) == arrivals.find_final(blocks)
    stitcher.finalize()
    assert set(sink.blocks) == {block.core for block in blocks}
    assert stitcher.nbytes == 0
    assert options['memory_budget'] is None or options['memory_budget'].used == 0
    for window, block in sink.blocks.items():
        assert block.shape == (*window.shape, n_bands)
    lowest, highest = assert_same_values(sink.as_array(), arrivals.compute_mean(), options)
    assert lowest <= stitcher.n_clipped <= highest


@settings(max_examples=60)
@given(PLANS, WAYS, SEEDS, st.integers(3, 20))
def test_the_end_may_come_at_any_time(plan, ways, seed, blocksize):
    shape, windows = plan
    arrivals = Arrivals(shape, windows, 2, {**ways, 'missing': 0}, seed)
    # As if the run were cut short: in order, and then nothing.
    number = 1 + seed % len(arrivals.parts)
    arrivals.missing = [window for window, _, _ in arrivals.parts[number:]]
    arrivals.parts = arrivals.parts[:number]
    sink = MemorySink()
    stitcher = SoftStitcher(arrivals.shape, windows, sink=sink, blocksize=blocksize)
    send(stitcher, arrivals, False, ways['batch'])
    assert set(sink.blocks) == arrivals.find_final(BlockGrid(shape, blocksize))
    stitcher.finalize()
    np.testing.assert_allclose(sink.as_array(), arrivals.compute_mean(), rtol=0,
                               atol=TOLERANCE['float32'])


@settings(max_examples=60)
@given(PLANS, SEEDS, st.integers(3, 20), st.integers(1, 3))
def test_the_same_input_gives_the_same_bits(plan, seed, blocksize, n_bands):
    shape, windows = plan
    ways = {'order': 'grid', 'holes': 0, 'weights': 0, 'missing': 0}
    arrivals = Arrivals(shape, windows, n_bands, ways, seed)
    results = []
    for options in ({}, {'num_threads': 4}, {'memory_budget': 1 << 26}, {'batch': 5}):
        sink, batch = MemorySink(), options.pop('batch', 1)
        stitcher = SoftStitcher(arrivals.shape, windows, sink=sink, blocksize=blocksize, **options)
        send(stitcher, arrivals, False, batch)
        stitcher.finalize()
        results.append((stitcher.engine, sink.as_array()))
    for engine, array in results[1:]:
        assert engine == results[0][0]
        assert np.array_equal(array, results[0][1], equal_nan=True)


# ---- threads -----------------------------------------------------------------

GRID = WindowGrid((40, 52), window=12, overlap=5)


class SlowSink(MemorySink):
    """A sink that others overtake; it counts its writes under a lock."""

    def __init__(self):
        super().__init__()
        self.lock, self.n_writes, self.most_at_a_time, self.n_inside = threading.Lock(), 0, 0, 0

    def write_block(self, window, block):
        with self.lock:
            self.n_writes += 1
            self.n_inside += 1
            self.most_at_a_time = max(self.most_at_a_time, self.n_inside)
        time.sleep(0.0005)
        super().write_block(window, block)
        with self.lock:
            self.n_inside -= 1


@pytest.fixture
def fast_switches():
    """Let threads take turns far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def run_threads(*works):
    """Run functions at the same time; raise what they raise, and if one hangs."""
    errors, barrier = [], threading.Barrier(len(works))

    def run(work):
        try:
            barrier.wait(PATIENCE)
            work()
        except BaseException as ex:
            errors.append(ex)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), 'a thread hangs'
    if errors:
        raise errors[0]


def make_arrivals(order, seed, holes=0):
    ways = {'order': order, 'holes': holes, 'weights': holes, 'missing': 0}
    return Arrivals(GRID.shape, GRID, 2, ways, seed)


def check_result(stitcher, sink, arrivals, minmax):
    assert stitcher.is_complete and stitcher.n_windows == len(GRID)
    stitcher.finalize()
    assert sink.n_writes == len(sink.blocks) == len(BlockGrid(GRID.shape, 8))
    options = {'dtype': 'float32', 'expected_minmax': minmax, 'quantize_dtype': 'int16'}
    lowest, highest = assert_same_values(sink.as_array(), arrivals.compute_mean(), options)
    assert lowest <= stitcher.n_clipped <= highest


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('minmax', [None, (0, 1)])
@pytest.mark.parametrize('order', ['grid', 'random'])
@pytest.mark.parametrize('engine, num_threads', [('auto', 1), ('auto', 3), ('general', 1)])
def test_four_threads_in_any_order(fast_switches, engine, num_threads, order, minmax, seed):
    arrivals, sink = make_arrivals(order, seed, holes=seed % 2), SlowSink()
    stitcher = SoftStitcher((*GRID.shape, 2), GRID, sink=sink, expected_minmax=minmax,
                            blocksize=8, engine=engine, num_threads=num_threads)
    todo = iter(list(arrivals.parts))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                part = next(todo, None)
            if part is None:
                return
            stitcher.add(*part)
    run_threads(*[work] * 4)
    check_result(stitcher, sink, arrivals, minmax)


@pytest.mark.parametrize('minmax', [None, (0, 1)])
def test_the_strip_goes_on_while_blocks_are_written(fast_switches, minmax):
    arrivals, sink = make_arrivals('grid', 0), SlowSink()
    stitcher = SoftStitcher((*GRID.shape, 2), GRID, sink=sink, expected_minmax=minmax,
                            blocksize=8)

    def work(first):
        for index in range(first, len(GRID), 4):
            limit = time.monotonic() + PATIENCE
            # The window before was taken, and its blocks are on their way.
            while stitcher.n_windows < index:
                assert time.monotonic() < limit
                time.sleep(0)
            stitcher.add(*arrivals.parts[index])
    run_threads(*[lambda first=first: work(first) for first in range(4)])
    assert stitcher.engine == 'carry' and sink.most_at_a_time > 1
    check_result(stitcher, sink, arrivals, minmax)


@pytest.mark.parametrize('seed', range(8))
def test_reading_while_windows_come(fast_switches, seed):
    arrivals, sink = make_arrivals('grid', seed), SlowSink()
    stitcher = SoftStitcher((*GRID.shape, 2), GRID, sink=sink, blocksize=8)
    expected = arrivals.compute_mean()
    done = threading.Event()
    # After the first window there is something to read.
    stitcher.add(*arrivals.parts[0])

    def add():
        try:
            for part in arrivals.parts[1:]:
                stitcher.add(*part)
        finally:
            done.set()

    def read():
        while stitcher.n_windows < 3 * (seed + 1) and not done.is_set():
            time.sleep(0)
        while not done.is_set():
            values = stitcher.read(Window.from_shape(GRID.shape))
            assert values.shape == expected.shape
            assert len(stitcher.pending) <= len(GRID)
            assert (stitcher.weights >= 0).all()
    run_threads(add, read)
    check_result(stitcher, sink, arrivals, None)


@pytest.mark.parametrize('seed', range(4))
def test_finalizing_while_blocks_are_written(fast_switches, seed):
    arrivals, sink = make_arrivals('grid', seed), SlowSink()
    stitcher = SoftStitcher((*GRID.shape, 2), GRID, sink=sink, blocksize=8)

    def add():
        for part in arrivals.parts:
            stitcher.add(*part)

    def finalize():
        limit = time.monotonic() + PATIENCE
        while not stitcher.is_complete:
            assert time.monotonic() < limit
            time.sleep(0)
        stitcher.finalize()
        # What others were still writing is there too.
        assert len(sink.blocks) == len(BlockGrid(GRID.shape, 8))
    run_threads(add, finalize)
    np.testing.assert_allclose(sink.as_array(), arrivals.compute_mean(), rtol=0,
                               atol=TOLERANCE['float32'])
