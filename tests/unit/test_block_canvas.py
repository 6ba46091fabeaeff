"""The canvas in blocks: the same bits however it is cut, and blocks that come and go."""
import errno
import os
import threading

import numpy as np
import pytest

from cocoseg import BlockGrid, Quantization, Window
from cocoseg.errors import CanvasError
from cocoseg.stitch import arena
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.canvas import BlockCanvas

from .test_canvas import DTYPES, POLICIES, EagerCanvas, assert_same_bits, make_parts

SHAPE = (50, 70, 3)
BLOCKS = BlockGrid(SHAPE, 16)
ONES = (np.ones(16, 'f4'), np.ones(16, 'f4'))
OPTIONS = {'in RAM': {}, 'in files': {'memmap': True}, 'on a budget': {'budget': 3000}}


def make(blocks=BLOCKS, options='in RAM', **others):
    """Return a canvas; every budget is its own."""
    options = {**OPTIONS[options], **others}
    if 'budget' in options:
        options['budget'] = MemoryBudget.coerce(options['budget'])
    return BlockCanvas(SHAPE, blocks, **options)


def get_parts(seed=0, n_parts=50):
    return make_parts(np.random.RandomState(seed), n_parts, SHAPE, max_size=30)


def fill(canvas, parts, **options):
    """Add the parts, and return an EagerCanvas that has them too."""
    expected = EagerCanvas(SHAPE, canvas.dtype, **options)
    for part in parts:
        assert canvas.add(*part) == expected.add(*part)
    return expected


# ---- sums ------------------------------------------------------------------

@pytest.mark.parametrize('num_threads', [1, 2, 3])
@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_blocks_hold_the_same_bits(dtype, nan_policy, options, num_threads):
    for deviations in (False, True):
        canvas = make(BLOCKS, options, dtype=dtype, nan_policy=nan_policy,
                      num_threads=num_threads, deviations=deviations)
        expected = fill(canvas, get_parts(), nan_policy=nan_policy)
        for block in BLOCKS:
            values = canvas.take(block.index)
            assert_same_bits(values, expected, block.core.slices, deviations)
            values.release()
        assert canvas.n_live == 0 and not canvas.weights.any()
        canvas.close()


@pytest.mark.parametrize('size', [1, (3, 70), (50, 3), (7, 13), (50, 70), (60, 80), 1000])
def test_blocks_of_any_size(size):
    blocks = BlockGrid(SHAPE, size)
    canvas = make(blocks)
    expected = fill(canvas, get_parts(n_parts=12))
    for block in blocks:
        assert_same_bits(canvas.take(block.index), expected, block.core.slices)


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('options', OPTIONS)
def test_reading_does_not_change_anything(options, nan_policy):
    canvas = make(BLOCKS, options, nan_policy=nan_policy)
    expected = EagerCanvas(SHAPE, nan_policy=nan_policy)
    for number, part in enumerate(get_parts()):
        canvas.add(*part), expected.add(*part)
        window = Window(number // 2, number, number + 9, number + 20).clip(SHAPE)
        assert_same_bits(canvas.read(window), expected, window.slices)
        if number % 5 == 0:
            assert np.array_equal(canvas.weights, expected.weights)
    assert_same_bits(canvas.read(Window.from_shape(SHAPE)), expected)
    canvas.close()


@pytest.mark.parametrize('n_before', [0, 1, 5])
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('options', OPTIONS)
def test_sums_and_terms_can_be_loaded(options, nan_policy, n_before):
    rng = np.random.RandomState(0)
    expected, canvas = EagerCanvas(SHAPE, nan_policy=nan_policy), make(
        BLOCKS, options, nan_policy=nan_policy)
    terms = {block.index: [] for block in BLOCKS}
    for y0, x0, height, width in [(0, 0, 20, 33), (10, 5, 16, 16), (7, 0, 40, 70),
                                  (48, 60, 2, 10), (16, 16, 16, 16)][:n_before]:
        rows, columns = (rng.rand(size).astype('f4') for size in (height, width))
        expected.add(y0, x0, rng.rand(height, width, 3), (rows, columns))
        for index, (ya, xa, yb, xb), (by, bx) in BLOCKS.iter_parts(
                y0, x0, y0 + height, x0 + width):
            terms[index].append((ya - by, xa - bx, ya - y0, xa - x0, yb - ya, xb - xa,
                                 rows, columns))
    for block in BLOCKS:
        if terms[block.index]:
            canvas.load(block.index, expected.sums[block.core.slices], terms[block.index])
    for part in get_parts():
        assert canvas.add(*part) == expected.add(*part)
    for block in BLOCKS:
        assert_same_bits(canvas.take(block.index), expected, block.core.slices)
    canvas.close()


# ---- blocks that come and go -------------------------------------------------

@pytest.mark.parametrize('options', OPTIONS)
def test_a_taken_block_is_out(options):
    canvas = make(BLOCKS, options)
    canvas.add(0, 0, np.ones((16, 16, 3)), ONES)
    values = canvas.take((0, 0))
    assert canvas.n_live == 0 and not canvas.weights.any()
    # What comes later is another block.
    canvas.add(0, 0, np.full((16, 16, 3), 5), ONES)
    again = canvas.take((0, 0))
    assert (values.sums == 1).all() and (values.weights == 1).all()
    assert (again.sums == 5).all() and (again.weights == 1).all()
    for other in (canvas.take((0, 0)), canvas.take((3, 4))):
        assert not other.sums.any() and not other.weights.any()
        assert np.isnan(other.compute_mean()).all()
    assert other.sums.shape == (2, 6, 3) and other.weights.shape == (2, 6)
    canvas.close()


@pytest.mark.parametrize('options', OPTIONS)
def test_taken_blocks_share_nothing(options):
    canvas = make(BLOCKS, options, deviations=True)
    expected = fill(canvas, get_parts())
    taken = {block: canvas.take(block.index) for block in BLOCKS}
    arrays = [array for values in taken.values()
              for array in (values.sums, values.weights, values.deviations)]
    assert not any(np.shares_memory(first, second)
                   for n, first in enumerate(arrays) for second in arrays[:n])
    fill(canvas, get_parts(seed=1))
    canvas.read(Window.from_shape(SHAPE))
    for block, values in taken.items():
        assert_same_bits(values, expected, block.core.slices, deviations=True)
    canvas.close()


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('options', OPTIONS)
def test_recycled_memory_is_clean(options, nan_policy):
    canvas = make(BLOCKS, options, deviations=True, nan_policy=nan_policy)
    data = np.full((16, 16, 3), 7.0)
    data[3, 3, 1] = np.nan
    nbytes = None
    for turn in range(4):
        for _ in range(2):
            canvas.add(0, 16, data + turn, ONES if turn % 2 else np.ones((16, 16)))
        assert nbytes in (None, canvas.nbytes), 'memory was used again'
        nbytes = canvas.nbytes
        canvas.take((0, 1)).release()
        # Larger and smaller blocks get the same memory.
        for index in [(1, 1), (3, 4), (0, 1)]:
            values = canvas.take(index)
            assert not values.sums.any() and not values.weights.any()
            assert not values.deviations.any()
            values.release()
    canvas.close()
    assert canvas.nbytes == 0


@pytest.mark.parametrize('options', OPTIONS)
def test_memory_follows_the_blocks_in_work(options):
    shape = (16 * 40, 16, 3)
    canvas = BlockCanvas(shape, BlockGrid(shape, 16), memmap=OPTIONS[options].get('memmap'),
                         budget=MemoryBudget(10 ** 6) if options == 'on a budget' else None)
    for row in range(40):
        canvas.add(16 * row, 0, np.ones((16, 16, 3)), ONES)
        assert canvas.n_live == 1
        canvas.take((row, 0)).release()
        assert canvas.n_live == 0
        if options != 'in RAM':
            assert canvas.nbytes == 0
    if options == 'in RAM':
        # A slab holds several blocks, but never much of the image.
        assert canvas.peak_nbytes == canvas.nbytes <= 40 * 768 * 4 // 8
    else:
        assert canvas.peak_nbytes == {'in files': 1024, 'on a budget': 768}[options] * 4
    canvas.close()


@pytest.mark.parametrize('options', OPTIONS)
def test_values_outlive_the_canvas(options):
    canvas = make(BLOCKS, options, num_threads=2)
    expected = fill(canvas, get_parts())
    first, second = canvas.take((0, 0)), canvas.take((1, 1))
    first.release()
    first.release()
    for _ in range(2):
        canvas.close()
        assert canvas.nbytes == 0
    assert_same_bits(second, expected, BLOCKS.get((1, 1)).core.slices)
    second.release()
    second.release()
    assert canvas.nbytes == 0 and canvas.n_live == 0


def test_a_block_released_twice_is_given_away_once():
    canvas = make()
    first = canvas.take((0, 0))
    first.release()
    first.release()
    second, third = canvas.take((0, 1)), canvas.take((0, 2))
    assert not np.shares_memory(second.sums, third.sums)


@pytest.mark.parametrize('nan_policy', POLICIES)
def test_codes_are_those_of_the_mean(nan_policy):
    canvas = make(nan_policy=nan_policy)
    fill(canvas, get_parts(), nan_policy=nan_policy)
    codec = Quantization(-1, 1, 'uint8')
    for block in BLOCKS:
        values = canvas.take(block.index)
        mean = values.compute_mean()
        expected, n_clipped = codec.encode(mean)
        codes, found = values.encode(codec)
        assert codes.dtype == 'uint8' and np.array_equal(codes, expected)
        assert found == n_clipped


QUARTER = (np.full(16, 0.5, 'f4'), np.full(16, 0.5, 'f4'))


@pytest.mark.parametrize('options', ['in RAM', 'on a budget'])
@pytest.mark.parametrize('nan_policy', POLICIES)
def test_where_weights_add_up_to_1_nothing_is_divided(nan_policy, options):
    canvas, rng = make(BLOCKS, options, nan_policy=nan_policy, is_unity=True), np.random
    data = rng.RandomState(0).rand(4, 16, 16, 3).astype('f4')
    for column in range(5):
        for part in data:
            canvas.add(0, 16 * column if column < 4 else 54, part, QUARTER)
    # A block that is not complete, and one that knows its weights already.
    assert (canvas.take((0, 0)).weights == 1).all()
    canvas.read(Window(0, 16, 1, 17))
    assert (canvas.take((0, 1), is_complete=True).weights == 1).all()
    values = canvas.take((0, 2), is_complete=True)
    assert values.weights is None
    expected = (data[0] * 0.25 + data[1] * 0.25) + data[2] * 0.25 + data[3] * 0.25
    assert np.array_equal(values.compute_mean(), expected)
    assert np.array_equal(values.encode(Quantization(0.4, 0.6))[0],
                          Quantization(0.4, 0.6).encode(expected)[0])
    values.release()
    assert make().take((0, 0), is_complete=True).weights is not None
    canvas.close()


@pytest.mark.parametrize('nan_policy', POLICIES)
def test_where_a_value_is_missing_weights_do_not_add_up_to_1(nan_policy):
    canvas = make(is_unity=True, nan_policy=nan_policy)
    for number in range(4):
        data = np.full((16, 16, 3), number, 'f4')
        if number == 2:
            data[5, 6, 1] = np.nan
        canvas.add(0, 0, data, QUARTER)
    mean = canvas.take((0, 0), is_complete=True).compute_mean()
    expected = np.full((16, 16, 3), 1.5, 'f4')
    expected[5, 6, slice(1, 2) if nan_policy == 'band' else slice(None)] = (0 + 1 + 3) / 3
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    # Weights per pixel are nobody's plan.
    canvas.add(16, 16, np.full((16, 16, 3), 5), np.full((16, 16), 2))
    assert (canvas.take((1, 1), is_complete=True).compute_mean() == 5).all()


def test_deviations_need_their_weights():
    canvas = make(is_unity=True, deviations=True)
    canvas.add(0, 0, np.ones((16, 16, 3)), ONES)
    assert (canvas.take((0, 0), is_complete=True).weights == 1).all()


# ---- threads ---------------------------------------------------------------

def count_workers():
    return sum(thread.name.startswith('cocoseg-canvas') for thread in threading.enumerate())


def test_threads_end_with_the_canvas():
    before = count_workers()
    canvas = make(num_threads=3)
    canvas.add(0, 0, np.ones(SHAPE), (np.ones(50), np.ones(70)))
    assert before < count_workers() <= before + 2
    canvas.close()
    assert count_workers() == before
    assert (BlockCanvas(SHAPE, BLOCKS).add(0, 0, np.ones(SHAPE), np.ones(SHAPE[:2]))
            == (3500, 0))
    assert count_workers() == before


@pytest.mark.parametrize('num_threads', [1, 3])
def test_invalid_pixels_of_all_blocks_are_counted(num_threads):
    canvas, rng = make(num_threads=num_threads), np.random.RandomState(0)
    data = rng.rand(*SHAPE)
    data[rng.rand(*SHAPE) > 0.9] = np.inf
    invalid = int((~np.isfinite(data)).any(axis=2).sum())
    assert canvas.add(0, 0, data, np.ones(SHAPE[:2])) == (3500 - invalid, invalid)
    canvas.close()


# ---- errors leave a window out as a whole --------------------------------------

@pytest.mark.parametrize('num_threads', [1, 2])
@pytest.mark.parametrize('options', ['in files', 'on a budget'])
@pytest.mark.parametrize('n_before', range(4))
def test_no_room_for_one_of_the_blocks(monkeypatch, options, n_before, num_threads):
    canvas = make(BLOCKS, options, num_threads=num_threads, memmap=options == 'in files')
    expected = fill(canvas, [part for part in get_parts() if part[0] + len(part[2]) < 16])
    calls = []
    name, owner, error = (
        ('posix_fallocate', os, OSError(errno.ENOSPC, 'full')) if options == 'in files'
        else ('_map_memory', arena, MemoryError('full')))
    work = getattr(owner, name)

    def fail(*args):
        calls.append(args)
        if len(calls) > n_before:
            raise error
        return work(*args)
    window = (16, 16, np.ones((32, 32, 3)), (np.ones(32), np.ones(32)))
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(CanvasError):
            canvas.add(*window)
    assert_same_bits(canvas.read(Window.from_shape(SHAPE)), expected)
    assert canvas.add(*window) == expected.add(*window)
    assert_same_bits(canvas.read(Window.from_shape(SHAPE)), expected)
    canvas.close()
    assert canvas.nbytes == 0
