"""One memory budget for many images: its bound, its order, its files, and threads."""
import gc
import math
import os
import resource
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest

from cocoseg import BlockGrid, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CanvasError, OptionError
from cocoseg.protocols import MemorySink
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.canvas import BlockCanvas

from .test_canvas import POLICIES, EagerCanvas, assert_same_bits, make_parts

PATIENCE = 60  # seconds until a hang becomes a failure
SHAPE = (50, 70, 3)
BLOCKS = BlockGrid(SHAPE, 16)
# Of the sums; a plane of weights is a third of that.
BLOCK_NBYTES = 16 * 16 * 3 * 4
ONES = (np.ones(16, 'f4'), np.ones(16, 'f4'))
BUDGETS = [0, 1, 2 * BLOCK_NBYTES, 7 * BLOCK_NBYTES, 10 ** 9]


def make(budget, **options):
    return BlockCanvas(SHAPE, BLOCKS, budget=budget, **options)


def get_parts(seed=0, n_parts=40):
    return make_parts(np.random.RandomState(seed), n_parts, SHAPE, max_size=30)


def find_blocks(part):
    """Return the indices of the blocks that a window touches."""
    y0, x0, data, _ = part
    return {index for index, *_ in BLOCKS.iter_parts(
        y0, x0, y0 + data.shape[0], x0 + data.shape[1])}


def add_block(canvas, index, value=1):
    """Add a window that is exactly one block."""
    window = BLOCKS.get(index).core
    canvas.add(window.y0, window.x0, np.full((16, 16, 3), value, 'f4'), ONES)


@contextmanager
def full_disk(nbytes=0):
    """Let no file be written beyond a size. Whatever is compiled inside must be so before."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# ---- options ---------------------------------------------------------------

@pytest.mark.parametrize('nbytes', [-1, math.nan, math.inf, '1', '1GB', True, None, [1], 1j])
def test_wrong_budgets_are_refused(nbytes):
    with pytest.raises(OptionError, match='memory_budget'):
        MemoryBudget(nbytes)


def test_coerce():
    budget = MemoryBudget(2.5e9, 'folder')
    assert (budget.nbytes, budget.spill_dir, budget.used) == (2500000000, 'folder', 0)
    assert MemoryBudget.coerce(budget) is budget and MemoryBudget.coerce(None) is None
    made = MemoryBudget.coerce(7, 'there')
    assert (made.nbytes, made.spill_dir) == (7, 'there')
    assert '0 of 7' in repr(made)
    for data in (budget, None):
        with pytest.raises(OptionError, match='spill_dir'):
            MemoryBudget.coerce(data, 'there')


# ---- one image -------------------------------------------------------------

@pytest.mark.parametrize('deviations', [False, True])
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('nbytes', BUDGETS)
def test_the_sums_do_not_depend_on_the_budget(nbytes, nan_policy, deviations):
    budget = MemoryBudget(nbytes)
    canvas = make(budget, nan_policy=nan_policy, deviations=deviations)
    expected = EagerCanvas(SHAPE, nan_policy=nan_policy)
    for number, part in enumerate(get_parts()):
        assert canvas.add(*part) == expected.add(*part)
        if number % 10 == 0:
            assert_same_bits(canvas.read(Window(8, 8, 40, 50)), expected,
                             (slice(8, 40), slice(8, 50)), deviations)
    for block in BLOCKS:
        values = canvas.take(block.index)
        assert_same_bits(values, expected, block.core.slices, deviations)
        values.release()
    assert budget.used == canvas.nbytes == 0
    canvas.close()


@pytest.mark.parametrize('nbytes', BUDGETS)
def test_the_bound_is_kept_and_files_have_no_name(tmp_path, nbytes):
    budget = MemoryBudget(nbytes, tmp_path)
    canvas, touched = make(budget), set()
    for y0, x0, data, weights in get_parts():
        part = (y0, x0, np.nan_to_num(data), weights if isinstance(weights, tuple)
                else (weights[:, 0], weights[0]))
        canvas.add(*part)
        used = find_blocks(part)
        n_used = len(used)
        touched |= used
        assert budget.used == canvas.nbytes
        # A block with many windows has a plane too.
        assert budget.used <= max(nbytes, n_used * BLOCK_NBYTES) + n_used * BLOCK_NBYTES // 3
        assert canvas.n_live >= n_used
        assert os.listdir(tmp_path) == []
    assert canvas.n_live >= min(len(touched), nbytes * 3 // (4 * BLOCK_NBYTES)), 'nor is it wasted'
    canvas.close()
    assert budget.used == 0 and os.listdir(tmp_path) == []


def test_the_blocks_of_the_window_in_work_stay():
    budget = MemoryBudget(0)
    canvas = make(budget)
    canvas.add(0, 0, np.ones((20, 20, 3)), (np.ones(20), np.ones(20)))
    assert canvas.n_live == 4 and budget.used == 4 * BLOCK_NBYTES
    canvas.add(20, 0, np.ones((20, 40, 3)), (np.ones(20), np.ones(40)))
    assert canvas.n_live == 6 and budget.used == 6 * BLOCK_NBYTES
    canvas.read(Window(0, 0, 1, 1))
    assert canvas.n_live == 0 and budget.used == 0
    canvas.close()


def test_taken_blocks_are_not_spilled():
    budget = MemoryBudget(0)
    canvas, expected = make(budget), EagerCanvas(SHAPE)
    for part in get_parts():
        canvas.add(*part), expected.add(*part)
    canvas.read(Window.from_shape(SHAPE))
    taken = {block: canvas.take(block.index) for block in list(BLOCKS)[::3]}
    held = budget.used
    assert held >= len(taken) * BLOCK_NBYTES
    for part in get_parts(seed=1):
        canvas.add(*part)
    canvas.read(Window.from_shape(SHAPE))
    assert canvas.n_live == 0 and budget.used == held
    for block, values in taken.items():
        assert_same_bits(values, expected, block.core.slices)
        values.release()
    assert budget.used == 0
    canvas.close()


def test_closing_with_blocks_everywhere():
    budget = MemoryBudget(3 * BLOCK_NBYTES)
    canvas = make(budget)
    for column in range(4):
        add_block(canvas, (0, column))
    values = canvas.take((0, 3))
    assert canvas.n_live == 2
    for _ in range(2):
        canvas.close()
        assert budget.used == canvas.nbytes == canvas.n_live == 0
    values.release()
    assert budget.used == 0
    # It is not in the way of the next.
    other = make(budget)
    for column in range(4):
        add_block(other, (1, column))
    assert other.n_live == 3 and budget.used == 3 * BLOCK_NBYTES
    other.close()


def test_a_shared_budget_does_not_hold_images_that_are_done():
    budget = MemoryBudget(2 * BLOCK_NBYTES)
    canvas = make(budget)
    for column in range(4):
        add_block(canvas, (0, column))
    canvas.take((0, 3)).release()
    canvas.take((0, 1))
    canvas.close()
    reference = weakref.ref(canvas)
    del canvas
    gc.collect()
    assert reference() is None


# ---- many images -----------------------------------------------------------

def test_the_block_that_was_not_touched_for_longest_goes_first():
    budget = MemoryBudget(3 * BLOCK_NBYTES)
    first, second, third = (make(budget) for _ in range(3))
    add_block(first, (0, 0))
    add_block(second, (0, 0))
    add_block(first, (1, 1))
    add_block(first, (0, 0))
    add_block(third, (2, 2))
    assert (first.n_live, second.n_live, third.n_live) == (2, 0, 1)
    add_block(third, (2, 3))
    assert (first.n_live, second.n_live, third.n_live) == (1, 0, 2)
    # What went was (1, 1): the other comes back without pushing anything out.
    add_block(first, (0, 0))
    assert (first.n_live, second.n_live, third.n_live) == (1, 0, 2)
    add_block(second, (0, 0))
    assert (first.n_live, second.n_live, third.n_live) == (1, 1, 1)
    assert budget.used == 3 * BLOCK_NBYTES
    for canvas, index, total in [(first, (0, 0), 3), (first, (1, 1), 1), (second, (0, 0), 2),
                                 (third, (2, 2), 1), (third, (2, 3), 1)]:
        assert (canvas.take(index).weights == total).all()
    for canvas in (first, second, third):
        canvas.close()
    assert budget.used == 0


@pytest.mark.parametrize('nbytes', BUDGETS)
def test_images_in_turn(nbytes):
    budget, n_images = MemoryBudget(nbytes), 4
    canvases = [make(budget, nan_policy=POLICIES[n % 2], deviations=n == 3)
                for n in range(n_images)]
    expected = [EagerCanvas(SHAPE, nan_policy=POLICIES[n % 2]) for n in range(n_images)]
    for parts in zip(*(get_parts(seed, 25) for seed in range(n_images))):
        for canvas, model, part in zip(canvases, expected, parts):
            assert canvas.add(*part) == model.add(*part)
            assert budget.used == sum(other.nbytes for other in canvases)
    for n, (canvas, model) in enumerate(zip(canvases, expected)):
        assert_same_bits(canvas.read(Window.from_shape(SHAPE)), model, deviations=n == 3)
        assert budget.used <= max(nbytes, BLOCK_NBYTES)
    for canvas in canvases:
        canvas.close()
    assert budget.used == 0


def test_an_image_in_work_is_not_waited_for():
    budget, outcome = MemoryBudget(BLOCK_NBYTES), []
    busy, other = make(budget), make(budget)
    add_block(busy, (0, 0))
    with busy.lock:
        thread = threading.Thread(target=lambda: outcome.append(add_block(other, (0, 0))),
                                  daemon=True)
        thread.start()
        thread.join(PATIENCE)
        assert outcome == [None]
        assert (busy.n_live, other.n_live) == (1, 1) and budget.used == 2 * BLOCK_NBYTES
    add_block(other, (0, 0))
    assert (busy.n_live, other.n_live) == (0, 1) and budget.used == BLOCK_NBYTES
    assert (busy.weights[:16, :16] == 1).all() and (other.weights[:16, :16] == 2).all()
    busy.close(), other.close()


# ---- errors ----------------------------------------------------------------

def test_a_full_disk_leaves_the_window_out():
    budget = MemoryBudget(2 * BLOCK_NBYTES)
    canvas, other, expected = make(budget), make(budget), EagerCanvas(SHAPE)
    for part in get_parts(n_parts=10):
        canvas.add(*part), expected.add(*part)
    add_block(other, (0, 0))
    assert canvas.weights.any()
    window = (5, 5, np.ones((40, 40, 3), 'f4'), (np.ones(40, 'f4'), np.ones(40, 'f4')))
    with full_disk():
        for _ in range(3):
            with pytest.raises(CanvasError, match='spill'):
                canvas.add(*window)
    assert_same_bits(canvas.read(Window.from_shape(SHAPE)), expected)
    assert canvas.add(*window) == expected.add(*window)
    assert_same_bits(canvas.read(Window.from_shape(SHAPE)), expected)
    assert (other.weights[:16, :16] == 1).all()
    for each in (canvas, other):
        each.close()
    assert budget.used == 0


def test_closing_while_the_disk_is_full():
    budget = MemoryBudget(0)
    canvas = make(budget)
    add_block(canvas, (0, 0))
    with full_disk():
        with pytest.raises(CanvasError):
            add_block(canvas, (1, 1))
        canvas.close()
    assert budget.used == canvas.nbytes == 0


def test_a_spill_folder_that_is_not_there(tmp_path):
    budget = MemoryBudget(0, tmp_path / 'later')
    canvas = make(budget)
    add_block(canvas, (0, 0))
    with pytest.raises(CanvasError, match='spill_dir'):
        add_block(canvas, (0, 1))
    (tmp_path / 'later').mkdir()
    add_block(canvas, (0, 1))
    assert np.array_equal(canvas.weights[:16, :48], np.repeat([[1, 1, 0]], 16, axis=1)
                          * np.ones((16, 1)))
    canvas.close()


# ---- stitchers and threads -------------------------------------------------

GRID = WindowGrid((60, 50), window=20, overlap=8)


def make_predictions(seed):
    """Return {window: data} of an image, some with NaN."""
    rng = np.random.RandomState(seed)
    data = {window: rng.rand(20, 20, 2).astype('f4') for window in GRID}
    for window in list(GRID)[seed % 3::5]:
        data[window][seed, 3] = np.nan
    return data


def stitch_whole(predictions):
    stitcher = SoftStitcher(GRID.shape, GRID, engine='general')
    for window, data in predictions.items():
        stitcher.add(window, data)
    return stitcher.finalize()


def run_threads(works):
    """Run functions at the same time; fail if one raises or hangs."""
    barrier, done = threading.Barrier(len(works)), []

    def run(work):
        barrier.wait(PATIENCE)
        done.append(work())
    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(done) == len(works), 'a thread raised or hangs'


@pytest.mark.parametrize('engine', ['auto', 'general'])
@pytest.mark.parametrize('streamed', [False, True])
@pytest.mark.parametrize('nbytes', [0, 5000, 10 ** 8])
def test_each_thread_has_its_image(nbytes, streamed, engine):
    budget = MemoryBudget(nbytes)
    images = [make_predictions(seed) for seed in range(4)]
    results = {}

    def work(number):
        sink = MemorySink() if streamed else None
        stitcher = SoftStitcher(GRID.shape, GRID, memory_budget=budget, blocksize=16, sink=sink,
                                engine=engine)
        for window, data in images[number].items():
            stitcher.add(window, data)
        found = stitcher.finalize()
        results[number] = sink.as_array() if streamed else found
    run_threads([lambda n=n: work(n) for n in range(4)])
    assert budget.used == 0
    for number, predictions in enumerate(images):
        np.testing.assert_allclose(results[number], stitch_whole(predictions), rtol=1e-5)


@pytest.mark.parametrize('nbytes', [0, 5000])
@pytest.mark.parametrize('streamed', [False, True])
def test_all_threads_add_to_all_images(streamed, nbytes):
    budget = MemoryBudget(nbytes)
    images = [make_predictions(seed) for seed in range(2)]
    sinks = [MemorySink() if streamed else None for _ in images]
    stitchers = [SoftStitcher(GRID.shape, GRID, memory_budget=budget, blocksize=16, sink=sink,
                              num_threads=2, engine='general') for sink in sinks]

    def work(number):
        windows = list(GRID)[number::4]
        for turn, window in enumerate(windows):
            # Half of the threads begin with the other image.
            for image in ((0, 1) if number % 2 else (1, 0)):
                stitchers[image].add(window, images[image][window])
            if turn % 3 == 0:
                stitchers[number % 2].read(Window(5, 5, 40, 40))
    run_threads([lambda n=n: work(n) for n in range(4)])
    found = [stitcher.finalize() for stitcher in stitchers]
    assert budget.used == 0
    for number, predictions in enumerate(images):
        result = sinks[number].as_array() if streamed else found[number]
        np.testing.assert_allclose(result, stitch_whole(predictions), rtol=1e-5)


@pytest.mark.parametrize('order', ['rows', 'random'])
@pytest.mark.parametrize('nbytes', [0, 5 * 1024 * 4, 10 ** 9])
def test_a_stream_is_the_same_with_any_budget_and_holds_little(nbytes, order):
    shape, rng = (200, 90, 3), np.random.RandomState(0)
    grid = WindowGrid(shape, window=32, overlap=8)
    windows = list(grid)
    if order == 'random':
        rng.shuffle(windows)
    image = rng.rand(*shape).astype('f4')
    sink = MemorySink()
    stitcher = SoftStitcher(shape, grid, sink=sink, blocksize=16, memory_budget=nbytes)
    whole = SoftStitcher(shape, grid)
    peak = 0
    for number, window in enumerate(windows):
        data = image[window.slices].copy()
        if number % 3 == 1:
            data[rng.rand(32, 32) > 0.99] = np.nan
        stitcher.add(window, data)
        whole.add(window, data)
        peak = max(peak, stitcher.nbytes)
    stitcher.finalize()
    np.testing.assert_allclose(sink.as_array(), whole.finalize(), rtol=1e-5)
    # A window of 32 px touches at most 3 x 3 blocks of 16; their planes come on top.
    assert peak <= max(nbytes, 9 * 768 * 4) + 9 * 256 * 4
