"""The block canvas: the same sums as a whole canvas, in bounded memory."""
import errno

import numpy as np
import pytest

from cocoseg.errors import CanvasError, OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid
from cocoseg.protocols import MemorySink
from cocoseg.stitch.block_canvas import BlockCanvas
from cocoseg.stitch.canvas import Canvas
from cocoseg.stitch.soft import SoftStitcher

SHAPE = (50, 70, 3)
BLOCKS = BlockGrid(SHAPE, 16)
BLOCK_NBYTES = 16 * 16 * 4 * 4


def iter_input(n_windows=40, seed=0):
    """Yield (y0, x0, data, weights) with NaN, separable and dense weights in turn."""
    rng = np.random.RandomState(seed)
    for turn in range(n_windows):
        height, width = rng.randint(1, 30, 2)
        y0, x0 = rng.randint(0, SHAPE[0] - height + 1), rng.randint(0, SHAPE[1] - width + 1)
        data = rng.rand(height, width, SHAPE[2]).astype('f4')
        data[rng.rand(height, width) > 0.95] = np.nan
        weights = rng.rand(height, width).astype('f4')
        yield y0, x0, data, weights if turn % 2 else (weights[:, 0], weights[0])


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('budget', [None, 0, 2 * BLOCK_NBYTES])
def test_the_sums_are_those_of_a_whole_canvas(dtype, budget):
    blocky, whole = BlockCanvas(SHAPE, BLOCKS, dtype, budget), Canvas(SHAPE, dtype)
    for window in iter_input():
        assert blocky.add(*window) == whole.add(*window)
    for block in BLOCKS:
        sums, weights = blocky.take(block)
        assert np.array_equal(sums, whole.sums[block.core.slices])
        assert np.array_equal(weights, whole.weights[block.core.slices])
        blocky.recycle((sums, weights))
    blocky.close()


def test_reading_does_not_change_anything():
    blocky, whole = BlockCanvas(SHAPE, BLOCKS, memory_budget=BLOCK_NBYTES), Canvas(SHAPE)
    for number, window in enumerate(iter_input()):
        blocky.add(*window), whole.add(*window)
        part = Window(number, number, number + 9, number + 20).clip(SHAPE)
        for found, expected in zip(blocky.read(part), whole.read(part)):
            assert np.array_equal(found, expected)
    assert np.array_equal(blocky.weights, whole.weights)
    blocky.close()


def test_the_budget_is_kept_and_files_have_no_name(tmp_path):
    canvas = BlockCanvas(SHAPE, BLOCKS, memory_budget=3 * BLOCK_NBYTES, spill_dir=tmp_path)
    for window in iter_input():
        canvas.add(*window)
        y0, x0, data, _ = window
        rows, columns = BLOCKS.touched_by(Window(y0, x0, y0 + len(data), x0 + data.shape[1]))
        n_used = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert canvas.nbytes <= max(3, n_used) * BLOCK_NBYTES
        assert list(tmp_path.iterdir()) == []
    canvas.close()
    assert canvas.nbytes == 0


def test_a_taken_block_is_out_and_can_come_back():
    canvas, block = BlockCanvas(SHAPE, BLOCKS), BLOCKS.get((0, 0))
    ones = (np.ones(4, 'f4'), np.ones(4, 'f4'))
    canvas.add(0, 0, np.ones((4, 4, 3)), ones)
    arrays = canvas.take(block)
    assert canvas.n_live == 0 and not canvas.weights.any()
    canvas.give_back(block, arrays)
    canvas.add(0, 0, np.ones((4, 4, 3)), ones)
    sums, weights = canvas.take(block)
    assert (sums[:4, :4] == 2).all() and weights.sum() == 32


def test_recycled_memory_is_clean():
    canvas = BlockCanvas(SHAPE, BLOCKS)
    canvas.add(0, 0, np.ones((16, 16, 3)), np.ones((16, 16)))
    canvas.recycle(canvas.take(BLOCKS.get((0, 0))))
    nbytes = canvas.nbytes
    sums, weights = canvas.take(BLOCKS.get((1, 1)))
    assert not sums.any() and not weights.any() and nbytes == BLOCK_NBYTES


def test_a_full_disk_is_an_error_with_a_remedy(monkeypatch):
    canvas = BlockCanvas(SHAPE, BLOCKS, memory_budget=0)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr('tempfile.TemporaryFile', fail)
    canvas.add(0, 0, np.ones((4, 4, 3)), np.ones((4, 4)))
    with pytest.raises(CanvasError, match='spill'):
        canvas.add(20, 20, np.ones((14, 4, 3)), np.ones((14, 4)))
    monkeypatch.undo()
    assert canvas.weights.sum() == 16, 'a window that failed is left out as a whole'
    canvas.close()


def test_a_budget_needs_a_stream():
    for options in [{}, {'sink': MemorySink(), 'memmap': True}]:
        with pytest.raises(OptionError, match='memory_budget'):
            SoftStitcher((4, 4), memory_budget=100, **options)
    with pytest.raises(OptionError, match='spill_dir'):
        SoftStitcher((4, 4), sink=MemorySink(), spill_dir='.')


@pytest.mark.parametrize('budget', [None, 0, 5 * BLOCK_NBYTES])
@pytest.mark.parametrize('order', ['rows', 'random'])
def test_a_stream_is_the_same_with_any_budget_and_holds_little(budget, order):
    shape, rng = (200, 90, 3), np.random.RandomState(0)
    grid = WindowGrid(shape, window=32, overlap=8)
    windows = list(grid)
    if order == 'random':
        rng.shuffle(windows)
    image = rng.rand(*shape).astype('f4')
    sink = MemorySink()
    stitcher = SoftStitcher(shape, grid, sink=sink, blocksize=16, memory_budget=budget)
    whole = SoftStitcher(shape, grid)
    peak = 0
    for window in windows:
        data = np.where(rng.rand(32, 32, 1) > 0.99, np.nan, image[window.slices])
        stitcher.add(window, data)
        whole.add(window, data)
        peak = max(peak, stitcher.nbytes)
    stitcher.finalize()
    assert np.array_equal(sink.as_array(), whole.finalize(), equal_nan=True)
    if budget is not None:
        # A window of 32 px touches at most 3 x 3 blocks of 16.
        assert peak <= max(budget, 9 * BLOCK_NBYTES)
    elif order == 'rows':
        # Rows in flight, not the height of the image: 4 of 13 rows of 6 blocks.
        assert peak <= 4 * 6 * BLOCK_NBYTES
