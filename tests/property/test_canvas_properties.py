"""The canvas: any blocks, threads, files and budgets give the bits of plain numpy."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import BlockGrid, Quantization, Window
from cocoseg.stitch.arena import SpillFile
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.canvas import BlockCanvas

from ..strategies import SEEDS, spoil, window_lists
from ..unit.test_canvas import EagerCanvas, assert_same_bits, put_bands_first, unalign

DIMS = (19, 23)
LISTS = window_lists(DIMS, max_windows=12)
BLOCKS = st.one_of(st.none(), st.integers(3, 30), st.tuples(st.integers(2, 30),
                                                            st.integers(2, 30)))
LAYOUTS = (np.asarray, np.asfortranarray, put_bands_first, unalign,
           lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1])
SCALES = ((1, 0), (1e-3, 1), (1e4, 1e6), (1e30, 0), (1e-40, 0))


@st.composite
def canvas_options(draw, holds=('memory', 'files', 'budget')):
    """Draw what a canvas is made of, besides its shape and blocks."""
    options = {'dtype': draw(st.sampled_from(['float32', 'float64'])),
               'nan_policy': draw(st.sampled_from(['pixel', 'band'])),
               'deviations': draw(st.booleans()),
               'num_threads': draw(st.sampled_from([1, 1, 2, 3]))}
    held = draw(st.sampled_from(holds))
    if held == 'files':
        options['memmap'] = True
    if held == 'budget':
        options['budget'] = MemoryBudget(draw(st.sampled_from([0, 2000, 20000])))
    return options


def make_parts(windows, n_bands, seed):
    """Return (y0, x0, data, weights): any scale, layout, NaN pattern and weights."""
    rng, parts = np.random.RandomState(seed), []
    for window in windows:
        inside = window.clip(DIMS)
        scale, offset = SCALES[rng.randint(len(SCALES))]
        data = offset + scale * rng.randn(*inside.shape, n_bands)
        data = spoil(data.astype('f4'), rng, rng.choice([0, 0, 0.01, 0.3]))
        weights = tuple(rng.choice([0, 1e-20, 0.3, 1, 3], size).astype('f4')
                        for size in inside.shape)
        if rng.rand() < 0.3:
            weights = rng.rand(*inside.shape)
        parts.append((inside.y0, inside.x0, LAYOUTS[rng.randint(len(LAYOUTS))](data), weights))
    return parts


def make_canvas(shape, size, options):
    blocks = BlockGrid(shape, DIMS if size is None else size)
    return BlockCanvas(shape, None if size is None else blocks, **options), blocks


@given(LISTS, st.integers(1, 4), BLOCKS, canvas_options(), SEEDS)
def test_the_sums_are_those_of_plain_numpy(windows, n_bands, size, options, seed):
    shape = (*DIMS, n_bands)
    canvas, blocks = make_canvas(shape, size, options)
    expected = EagerCanvas(shape, options['dtype'], options['nan_policy'])
    for part in make_parts(windows, n_bands, seed):
        assert canvas.add(*part) == expected.add(*part)
    for block in blocks:
        values = canvas.take(block.index)
        assert_same_bits(values, expected, block.core.slices, options['deviations'])
        values.release()
    canvas.close()
    assert canvas.nbytes == 0


@given(LISTS, BLOCKS, canvas_options(), SEEDS)
def test_looking_and_taking_in_between_changes_nothing_else(windows, size, options, seed):
    shape, rng = (*DIMS, 2), np.random.RandomState(seed)
    canvas, blocks = make_canvas(shape, size, options)
    expected = EagerCanvas(shape, options['dtype'], options['nan_policy'])
    indices = [block.index for block in blocks]
    for part in make_parts(windows * 2, 2, seed):
        assert canvas.add(*part) == expected.add(*part)
        window = Window(rng.randint(0, 19), rng.randint(0, 23), 19, 23)
        if rng.rand() < 0.3:
            assert_same_bits(canvas.read(window), expected, window.slices, options['deviations'])
        if rng.rand() < 0.3:
            index = indices[rng.randint(len(indices))]
            core = blocks.get(index).core.slices
            values = canvas.take(index)
            assert_same_bits(values, expected, core, options['deviations'])
            if rng.rand() < 0.5:
                values.release()
            for array in (expected.sums, expected.planes, expected.deviations):
                array[core] = 0
    assert np.array_equal(canvas.weights, expected.weights)
    canvas.close()


@given(st.lists(st.tuples(LISTS, canvas_options(('memory',)), st.integers(3, 12)), min_size=2,
                max_size=4), st.sampled_from([0, 1000, 3000, 20000]), SEEDS)
def test_images_that_share_a_budget_do_not_share_numbers(images, nbytes, seed):
    budget, shape = MemoryBudget(nbytes), (*DIMS, 2)
    made, todo = [], []
    for number, (windows, options, size) in enumerate(images):
        canvas, blocks = make_canvas(shape, size, {**options, 'budget': budget})
        made.append((canvas, blocks, EagerCanvas(shape, options['dtype'], options['nan_policy'])))
        todo += [(number, part) for part in make_parts(windows, 2, seed + number & 0xffff)]
    for turn in np.random.RandomState(seed).permutation(len(todo)):
        number, part = todo[turn]
        canvas, _, expected = made[number]
        assert canvas.add(*part) == expected.add(*part)
        assert budget.used == sum(other.nbytes for other, *_ in made)
    for (canvas, blocks, expected), (_, options, _) in zip(made, images):
        for block in blocks:
            values = canvas.take(block.index)
            assert_same_bits(values, expected, block.core.slices, options['deviations'])
            values.release()
        canvas.close()
    assert budget.used == 0


@given(LISTS, st.sampled_from([0, 2000, 8000]), st.integers(4, 12), SEEDS)
def test_the_bound_of_separable_windows(windows, nbytes, size, seed):
    budget, shape = MemoryBudget(nbytes), (*DIMS, 3)
    canvas, blocks = make_canvas(shape, size, {'budget': budget})
    # Arrays end with a cache line.
    most = -(-min(size, 19) * min(size, 23) * 3 * 4 // 64) * 64
    for y0, x0, data, _ in make_parts(windows, 3, seed):
        height, width = data.shape[:2]
        canvas.add(y0, x0, np.nan_to_num(data), (np.ones(height), np.ones(width)))
        n_used = len(list(blocks.iter_parts(y0, x0, y0 + height, x0 + width)))
        assert budget.used <= max(nbytes, n_used * most)
        assert canvas.nbytes == budget.used
    canvas.close()
    assert budget.used == 0


@given(LISTS, canvas_options(), BLOCKS, SEEDS, st.sampled_from(['uint8', 'int16', 'int32']))
def test_codes_are_those_of_the_mean(windows, options, size, seed, quantize_dtype):
    canvas, blocks = make_canvas((*DIMS, 2), size, options)
    for y0, x0, data, weights in make_parts(windows, 2, seed):
        canvas.add(y0, x0, np.clip(data, -2, 2), weights)
    codec = Quantization(-1, 1.5, quantize_dtype)
    for block in blocks:
        values = canvas.take(block.index)
        expected, n_clipped = codec.encode(values.compute_mean())
        codes, found = values.encode(codec)
        assert np.array_equal(codes, expected) and found == n_clipped
    canvas.close()


@pytest.mark.parametrize('device', ['cpu'])
@settings(max_examples=50)
@given(LISTS, st.integers(1, 3), st.integers(5, 25), canvas_options(('memory',)), SEEDS)
def test_a_torch_canvas_agrees(device, windows, n_bands, size, options, seed):
    torch = pytest.importorskip('torch')
    from cocoseg.stitch.torch_canvas import TorchCanvas
    shape, rng = (*DIMS, n_bands), np.random.RandomState(seed)
    ours, blocks = make_canvas(shape, size, options)
    options = {name: value for name, value in options.items() if name != 'num_threads'}
    theirs = TorchCanvas(shape, device, blocks, **options)
    for window in windows:
        inside = window.clip(DIMS)
        data = spoil(rng.uniform(1, 2, (*inside.shape, n_bands)).astype('f4'), rng, 0.05)
        weights = tuple(rng.uniform(0.1, 1, size).astype('f4') for size in inside.shape)
        part = torch.from_numpy(np.ascontiguousarray(data.transpose(2, 0, 1))).permute(1, 2, 0)
        assert theirs.add(inside.y0, inside.x0, part, weights) == ours.add(
            inside.y0, inside.x0, data, weights)
    tolerance = {'float32': 1e-6, 'float64': 1e-12}[options['dtype']]
    codec = Quantization(1.2, 1.9, 'uint8')
    for block in blocks:
        mine, other = ours.take(block.index), theirs.take(block.index)
        for name in ('sums', 'weights'):
            np.testing.assert_allclose(getattr(other, name), getattr(mine, name), rtol=tolerance)
        if options['deviations']:
            np.testing.assert_allclose(other.deviations, mine.deviations, rtol=1e3 * tolerance,
                                       atol=10 * tolerance)
        expected, codes = mine.encode(codec)[0], other.encode(codec)[0]
        assert np.array_equal(codes == 0, expected == 0)
        assert np.abs(codes.astype(int) - expected).max() <= 1
    ours.close()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 50)), max_size=40))
def test_the_spill_file_is_a_dict(steps):
    """A key that is there is fetched, one that is not is put."""
    store, model = SpillFile(400), {}
    try:
        for turn, (key, size) in enumerate(steps):
            assert (key in store) == (key in model)
            if key in model:
                arrays = model.pop(key)
                found = [np.empty_like(array) for array in arrays]
                store.fetch(key, found)
                assert all(map(np.array_equal, found, arrays))
            else:
                model[key] = [np.full(size, turn, 'f4'), np.full((1, size), -turn, 'f4')]
                store.put(key, model[key])
    finally:
        store.close()
