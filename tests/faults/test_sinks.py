"""A sink that throws: every block arrives once, whoever added the window."""
import random
import threading
import time

import numpy as np
import pytest

from cocoseg import SoftStitcher, WindowGrid
from cocoseg.errors import ImageClosedError
from cocoseg.protocols import FailingSink, MemorySink

PATIENCE = 60  # seconds until a hang becomes a failure
GRID = WindowGrid((150, 170), window=40, overlap=12)
RNG = np.random.RandomState(0)
PREDICTIONS = {window: RNG.rand(*window.shape, 2).astype('f4') for window in GRID}


class MoodySink(MemorySink):
    """A sink that fails by chance, before it stores a block or not at all."""

    def __init__(self, seed, chance):
        super().__init__()
        self._random, self._chance = random.Random(seed), chance
        self._lock = threading.Lock()
        self.n_failed = 0

    def write_block(self, window, block):
        time.sleep(0.0002)
        with self._lock:
            if self._random.random() < self._chance:
                self.n_failed += 1
                raise OSError(5, 'the sink is in a bad mood')
            super().write_block(window, block)


def add_from_threads(stitcher, n_threads, seed):
    """Begin to add all windows from several threads, in any order; return how to wait."""
    order = list(PREDICTIONS)
    random.Random(seed).shuffle(order)
    failures, others = [], []

    def work(windows):
        for window in windows:
            try:
                stitcher.add(window, PREDICTIONS[window])
            except OSError:
                failures.append(window)
            except BaseException as ex:
                others.append(ex)
    threads = [threading.Thread(target=work, args=[order[start::n_threads]], daemon=True)
               for start in range(n_threads)]
    for thread in threads:
        thread.start()

    def join():
        """Return how often it failed."""
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), 'a thread hangs'
        assert others == []
        return len(failures)
    return join


def finalize(stitcher):
    """Finalize when all windows were taken, until that ends well; return how often it failed."""
    deadline = time.monotonic() + PATIENCE
    while stitcher.n_windows < len(GRID):
        assert time.monotonic() < deadline, 'not all windows were taken'
        time.sleep(0.0005)
    n_failed = 0
    while True:
        try:
            stitcher.finalize()
            return n_failed
        except OSError:
            n_failed += 1
            with pytest.raises(ImageClosedError):
                stitcher.add(next(iter(GRID)), PREDICTIONS[next(iter(GRID))])


def check_blocks(stitcher, sink, windows, order):
    """The sink holds every block once, and together they are the image."""
    assert stitcher.n_windows == len(GRID)
    expected = SoftStitcher(GRID.shape, windows)
    for window in order:
        expected.add(window, PREDICTIONS[window])
    # A second write of a block, or of a part of one, raises in the sink.
    assert sum(window.area for window in sink.blocks) == 150 * 170
    np.testing.assert_allclose(sink.as_array(), expected.finalize(), atol=1e-5)


@pytest.mark.parametrize('windows', [None, GRID], ids=['undeclared', 'declared'])
@pytest.mark.parametrize('chance', [0.1, 0.7])
@pytest.mark.parametrize('n_threads', [1, 6])
def test_a_sink_that_fails_at_random(windows, chance, n_threads):
    seed = int(chance * 10) + n_threads
    sink = MoodySink(seed, chance)
    stitcher = SoftStitcher(GRID.shape, windows, sink=sink, blocksize=32)
    join = add_from_threads(stitcher, n_threads, seed)
    # Others may still be sending.
    n_failed = finalize(stitcher) + join()
    # Each failure was told to somebody.
    assert n_failed == sink.n_failed > 0
    check_blocks(stitcher, sink, windows, GRID)


@pytest.mark.parametrize('n_threads', [1, 6])
@pytest.mark.parametrize('n_failures', [1, 5, 1000])
def test_a_sink_that_fails_for_a_while(n_failures, n_threads):
    """A thousand failures are more than there are windows: all is sent at the end."""
    sink = FailingSink(n_failures)
    stitcher = SoftStitcher(GRID.shape, GRID, sink=sink, blocksize=32)
    join = add_from_threads(stitcher, n_threads, n_failures)
    n_failed = finalize(stitcher) + join()
    # Its counter has no lock.
    assert 0 < n_failed <= n_failures + n_threads
    check_blocks(stitcher, sink, GRID, GRID)
