"""The soft stitcher: early blocks, failing sinks, threads, and files."""
import errno
import os
import queue
import threading

import numpy as np
import pytest

from cocoseg import BlockGrid, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CanvasError, CoverageError, ImageClosedError, OptionError
from cocoseg.protocols import FailingSink, MemorySink

PATIENCE = 30  # seconds until a hang becomes a failure
# Strides of 14: a list of these windows blends as the grid does.
GRID = WindowGrid((48, 62), window=20, overlap=6)
RNG = np.random.RandomState(0)
PREDICTIONS = {window: RNG.rand(*window.shape, 2).astype('f4') for window in GRID}


def stitch(windows=None, order=GRID, **options):
    """Return the stitched PREDICTIONS."""
    stitcher = SoftStitcher(GRID.shape, windows, **options)
    for window in order:
        stitcher.add(window, PREDICTIONS[window])
    return stitcher.finalize()


@pytest.mark.parametrize('seed', [None, 0, 1])
def test_blocks_leave_as_soon_as_they_are_final(seed):
    order = list(GRID)
    if seed is not None:
        np.random.RandomState(seed).shuffle(order)
    sink, blocks = MemorySink(), BlockGrid(GRID.shape, 16)
    stitcher = SoftStitcher(GRID.shape, GRID, sink=sink, blocksize=16)
    for index, window in enumerate(order):
        stitcher.add(window, PREDICTIONS[window])
        left = order[index + 1:]
        assert set(sink.blocks) == {
            block.core for block in blocks
            if all(block.core.intersect(other).is_empty for other in left)}
    assert stitcher.is_complete
    assert len(sink.blocks) == len(blocks), 'all blocks left before the end was declared'
    assert stitcher.finalize() is None
    # The engines differ by rounding.
    np.testing.assert_allclose(sink.as_array(), stitch(GRID, order), atol=1e-6)


def test_without_a_declaration_blocks_leave_at_the_end():
    sink = MemorySink()
    stitcher = SoftStitcher(GRID.shape, sink=sink, blocksize=16)
    for window, data in PREDICTIONS.items():
        stitcher.add(window, data)
    assert not sink.blocks
    assert stitcher.finalize() is None
    assert np.array_equal(sink.as_array(), stitch())


def test_blocks_that_nothing_touched_are_sent_too():
    sink = MemorySink()
    stitcher = SoftStitcher((20, 20), [Window(0, 0, 5, 5)], sink=sink, blocksize=8,
                            expected_minmax=(0, 1))
    stitcher.add(Window(0, 0, 5, 5), np.ones((5, 5)))
    stitcher.finalize()
    assert len(sink.blocks) == 9
    assert (sink.as_array()[..., 0] == -9999).sum() == 400 - 25


def test_a_block_belongs_to_the_sink():
    sink = MemorySink()
    windows = [Window(0, 0, 8, 4), Window(0, 4, 8, 8)]
    stitcher = SoftStitcher((8, 8), windows, sink=sink, blocksize=4)
    stitcher.add(Window(0, 0, 8, 4), np.ones((8, 4)))
    for block in sink.blocks.values():
        block[...] = 7
    stitcher.add(Window(0, 4, 8, 8), np.ones((8, 4)))
    stitcher.finalize()
    assert (sink.as_array()[:, 4:] == 1).all()


@pytest.mark.parametrize('windows', [None, GRID])
@pytest.mark.parametrize('n_failures', [1, 3, 7])
def test_a_failing_sink_loses_nothing(windows, n_failures):
    sink = FailingSink(n_failures)
    stitcher = SoftStitcher(GRID.shape, windows, sink=sink, blocksize=16)
    n_failed = 0
    for window, data in PREDICTIONS.items():
        try:
            stitcher.add(window, data)
        except OSError:
            n_failed += 1
    assert stitcher.n_windows == len(GRID), 'the data of a failed add was taken'
    while True:
        try:
            stitcher.finalize()
            break
        except OSError:
            n_failed += 1
            with pytest.raises(ImageClosedError):
                stitcher.add(window, data)
    assert n_failed == n_failures
    np.testing.assert_allclose(sink.as_array(), stitch(windows), atol=1e-6)


class GatedSink(MemorySink):
    """A sink whose first write waits for a gate, and then fails if told to."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails = fails
        self.entered, self.gate = threading.Event(), threading.Event()

    def write_block(self, window, block):
        if not self.entered.is_set():
            self.entered.set()
            assert self.gate.wait(PATIENCE)
            if self.fails:
                raise OSError(errno.EIO, 'late failure')
        super().write_block(window, block)


def finalize_during_a_write(sink):
    """Finalize while another thread's add is inside the sink; return what both did."""
    window = Window(0, 0, 8, 8)
    stitcher = SoftStitcher((8, 8), [window], sink=sink, blocksize=4)
    outcome = {}

    def add():
        try:
            stitcher.add(window, np.ones((8, 8)))
        except OSError as ex:
            outcome['add'] = ex

    def finalize():
        try:
            stitcher.finalize()
        except OSError as ex:
            outcome['finalize'] = ex
        outcome['n_blocks'] = len(sink.blocks)

    adder, finalizer = (threading.Thread(target=run, daemon=True) for run in (add, finalize))
    adder.start()
    assert sink.entered.wait(PATIENCE)
    assert stitcher.is_complete
    finalizer.start()
    finalizer.join(0.2)
    sink.gate.set()
    adder.join(PATIENCE)
    finalizer.join(PATIENCE)
    return stitcher, outcome


def test_finalize_returns_after_the_last_block_is_written():
    sink = GatedSink()
    _, outcome = finalize_during_a_write(sink)
    assert outcome == {'n_blocks': 4}
    assert (sink.as_array() == 1).all()


def test_a_block_that_fails_during_finalize_can_be_written_again():
    sink = GatedSink(fails=True)
    stitcher, _ = finalize_during_a_write(sink)
    if len(sink.blocks) < 4:
        stitcher.finalize()
    assert (sink.as_array() == 1).all() and sink.as_array().shape == (8, 8, 1)


# ---- threads and files ------------------------------------------------------

@pytest.mark.parametrize('windows', [None, GRID])
def test_four_threads_agree_with_one(windows):
    def work():
        try:
            while True:
                window = todo.get_nowait()
                stitcher.add(window, PREDICTIONS[window])
        except queue.Empty:
            done.append(threading.current_thread())

    todo, done, sink = queue.Queue(), [], MemorySink()
    for window in GRID:
        todo.put(window)
    stitcher = SoftStitcher(GRID.shape, windows, sink=sink, blocksize=8)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == 4 and stitcher.n_windows == len(GRID)
    stitcher.finalize()
    np.testing.assert_allclose(sink.as_array(), stitch(windows), rtol=1e-6)


def test_a_memmap_is_the_same_and_leaves_nothing(tmp_path):
    stitcher = SoftStitcher(GRID.shape, GRID, memmap=tmp_path)
    for window, data in PREDICTIONS.items():
        stitcher.add(window, data)
        assert os.listdir(tmp_path) == []
    assert np.array_equal(stitcher.finalize(), stitch(GRID))
    assert os.listdir(tmp_path) == []


def test_a_full_disk_leaves_the_stitcher_usable(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError(errno.ENOSPC, 'No space left on device')

    stitcher = SoftStitcher((4, 4), [Window(0, 0, 4, 4)], memmap=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'posix_fallocate', fail, raising=False)
        with pytest.raises(CanvasError, match='cannot map'):
            stitcher.add(None, np.ones((4, 4)))
    assert stitcher.pending == [Window(0, 0, 4, 4)]
    stitcher.add(None, np.ones((4, 4)))
    assert (stitcher.finalize() == 1).all()


# ---- a low-water mark instead of a declaration --------------------------------

def test_advance_sends_what_lies_above():
    image = RNG.rand(40, 12, 2).astype('f4')
    sink = MemorySink()
    stitcher = SoftStitcher(image.shape, sink=sink, blocksize=8)
    stitcher.advance(0)
    for y in range(0, 40, 4):
        window = Window(y, 0, min(y + 8, 40), 12)
        stitcher.add(window, image[window.slices])
        stitcher.advance(y + 4)
        rows = {block.y0 for block in sink.blocks}
        assert rows == set(range(0, (y + 4) // 8 * 8, 8))
    assert stitcher.nbytes <= 4 * 8 * 8 * 3 * 4
    stitcher.finalize()
    assert np.allclose(sink.as_array(), image, atol=1e-6)


def test_after_advance_no_window_may_reach_up():
    stitcher = SoftStitcher((20, 4), sink=MemorySink(), blocksize=4)
    stitcher.add(Window(0, 0, 8, 4), np.ones((8, 4)))
    stitcher.advance(6)
    stitcher.advance(2)
    with pytest.raises(CoverageError, match='above row 6'):
        stitcher.add(Window(5, 0, 9, 4), np.ones((4, 4)))
    stitcher.add(Window(6, 0, 9, 4), np.ones((3, 4)))
    stitcher.finalize()
    with pytest.raises(ImageClosedError):
        stitcher.advance(7)


def test_advance_needs_a_stream_without_declaration():
    for stitcher in (SoftStitcher((4, 4)), SoftStitcher((4, 4), [Window(0, 0, 4, 4)],
                                                        sink=MemorySink())):
        with pytest.raises(OptionError, match='advance'):
            stitcher.advance(2)
