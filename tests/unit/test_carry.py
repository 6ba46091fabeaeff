"""The carry strip: when it is used, what it makes and holds, and leaving it anywhere."""
import numpy as np
import pytest
import shapely

from cocoseg import BlendPlan, BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CoverageError
from cocoseg.protocols import FailingSink, MemorySink
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.carry import CarryCanvas
from cocoseg.stitch.intake import Item
from cocoseg.stitch.lanes import find_lanes
from cocoseg.stitch.coverage import Coverage
from cocoseg.stitch.layers import Disagreement

from ..strategies import blend_model

FLOAT_TOLERANCE = 2e-6  # of the largest value
# 4 x 5 windows each; in the second one every pixel inside is in 9 of them.
LATTICES = [WindowGrid((36, 44), window=12, overlap=4), WindowGrid((24, 28), window=12, overlap=8)]


def as_items(windows):
    """Return windows as a stitcher hands them on, clipped and without weights."""
    return [Item(window, window, None, None) for window in windows]


def make_data(windows, n_bands=2, seed=0, low=0.0, high=1.0):
    """Return one random float32 (h, w, C) per window."""
    rng = np.random.RandomState(seed)
    return [rng.uniform(low, high, (*window.shape, n_bands)).astype('f4') for window in windows]


def stitch(windows, data, shape=None, **options):
    """Return (stitcher, sink) after all windows in order and the end."""
    shape = (*(shape or windows.shape)[:2], data[0].shape[2])
    sink = MemorySink()
    stitcher = SoftStitcher(shape, windows, sink=sink, **options)
    for window, part in zip(windows, data):
        stitcher.add(window, part)
    stitcher.finalize()
    return stitcher, sink


def compute_reference(windows, data, shape, profile='linear'):
    """Return the blended image in float64."""
    plan = BlendPlan(windows, profile)
    weights = [np.outer(*plan.get_weights(window)).astype('f8') for window in windows]
    return blend_model((*shape[:2], data[0].shape[2]), list(zip(windows, data, weights)))


def make_canvas(grid, blocksize=8, n_bands=1, codec=None, dtype='float32', **options):
    """Return a CarryCanvas and its lanes."""
    lanes = find_lanes(BlendPlan(grid), grid.shape, dtype)
    blocks = BlockGrid(grid.shape, blocksize)
    return CarryCanvas((*grid.shape, n_bands), blocks, lanes, dtype, codec, **options), lanes


def as_planes(array):
    return np.ascontiguousarray(array).reshape(1, len(array), -1)


# ---- what it makes ------------------------------------------------------------

GEOMETRIES = {
    'plain': WindowGrid((40, 50), 16, 4),
    'flush': WindowGrid((41, 53), 16, 4, 'flush'),
    'balanced with slack': WindowGrid((41, 53), 16, 4),
    'no overlap': WindowGrid((40, 50), (10, 25)),
    'no overlap requested': WindowGrid((41, 53), 16),
    'more than half': WindowGrid((40, 45), (12, 14), (9, 11)),
    'more than half, flush': WindowGrid((40, 45), (12, 14), (9, 11), 'flush'),
    'nearly all': WindowGrid((9, 12), 5, 4),
    'half': WindowGrid((40, 48), 16, 8),
    'one row': WindowGrid((7, 50), 16, 4),
    'one column': WindowGrid((50, 7), 16, 4),
    'larger than the image': WindowGrid((5, 7), 16, 4),
    'one pixel': WindowGrid((1, 1), 1),
    'one pixel, large window': WindowGrid((1, 1), 9, 3),
    'windows of a pixel': WindowGrid((5, 6), 1),
    'lines': WindowGrid((6, 20), (1, 8), (0, 3)),
}


@pytest.mark.parametrize('blocksize', [1, 5, 16, 64])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_the_result_is_the_weighted_mean(name, blocksize):
    grid = GEOMETRIES[name]
    if blocksize == 1:
        # Enough blocks that end inside a window, not thousands.
        grid = WindowGrid([min(size, 20) for size in grid.shape], grid.window, grid.overlap,
                          grid.fit)
    data = make_data(grid)
    expected = compute_reference(grid, data, grid.shape)
    stitcher, sink = stitch(grid, data, blocksize=blocksize)
    assert stitcher.engine == 'carry'
    assert set(sink.blocks) == {block.core for block in BlockGrid(grid.shape, blocksize)}
    assert sink.as_array().dtype == np.float32
    np.testing.assert_allclose(sink.as_array(), expected, atol=FLOAT_TOLERANCE)
    stitcher, sink = stitch(grid, data, blocksize=blocksize, expected_minmax=(0.2, 0.9))
    codes, n_clipped = Quantization(0.2, 0.9).encode(expected)
    assert stitcher.engine == 'carry'
    assert sink.as_array().dtype == np.int16
    assert np.abs(sink.as_array() - codes.astype(int)).max() <= 1
    assert abs(stitcher.n_clipped - n_clipped) <= 2


@pytest.mark.parametrize('name', ['plain', 'more than half', 'larger than the image'])
def test_float64_is_accurate(name):
    grid = GEOMETRIES[name]
    data = [part.astype('f8') + 1e6 for part in make_data(grid)]
    stitcher, sink = stitch(grid, data, dtype='float64', blocksize=16)
    assert stitcher.engine == 'carry' and sink.as_array().dtype == np.float64
    # The weights are those of the plan up to float32, and add up to 1 up to float64: what is
    # off depends on the spread of the values, not on their offset.
    expected = compute_reference(grid, data, grid.shape)
    np.testing.assert_allclose(sink.as_array(), expected, rtol=0, atol=2e-7)


@pytest.mark.parametrize('dtype', ['int8', 'uint8', 'uint16', 'int32', 'uint32'])
def test_codes_of_any_dtype(dtype):
    grid = GEOMETRIES['plain']
    data = make_data(grid)
    codec = Quantization(-1, 2, dtype)
    stitcher, sink = stitch(grid, data, expected_minmax=(-1, 2), quantize_dtype=dtype,
                            blocksize=16)
    assert stitcher.engine == 'carry' and sink.as_array().dtype == dtype
    expected = compute_reference(grid, data, grid.shape)
    tolerance = codec.step * 0.5 + FLOAT_TOLERANCE
    np.testing.assert_allclose(codec.decode(sink.as_array()), expected, atol=tolerance)


@pytest.mark.parametrize('profile', ['cosine', 'gaussian', lambda t: t ** 2])
def test_other_profiles(profile):
    grid = GEOMETRIES['more than half']
    data = make_data(grid)
    stitcher, sink = stitch(grid, data, profile=profile, blocksize=16)
    assert stitcher.engine == 'carry'
    np.testing.assert_allclose(sink.as_array(), compute_reference(grid, data, grid.shape, profile),
                               atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('name', ['plain', 'more than half', 'lines', 'larger than the image'])
def test_threads_and_layouts_change_nothing(name, bands_first):
    grid = GEOMETRIES[name]
    data = make_data(grid, 3)
    if bands_first:
        data = [np.ascontiguousarray(part.transpose(2, 0, 1)) for part in data]
    results = []
    for num_threads in (1, 2, 5):
        for minmax in (None, (0.3, 0.6)):
            sink = MemorySink()
            stitcher = SoftStitcher((*grid.shape, 3), grid, sink=sink, expected_minmax=minmax,
                                    blocksize=7, num_threads=num_threads,
                                    channels_first=bands_first)
            for window, part in zip(grid, data):
                stitcher.add(window, part)
            assert stitcher.engine == 'carry'
            stitcher.finalize()
            results.append((sink.as_array(), stitcher.n_clipped))
    for first, *others in (results[::2], results[1::2]):
        for other in others:
            assert np.array_equal(other[0], first[0]) and other[1] == first[1]
    assert results[1][1] > 0
    if not bands_first:
        np.testing.assert_allclose(results[0][0], compute_reference(grid, data, grid.shape),
                                   atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize('dtype', ['uint8', 'bool', 'int64', 'float16', 'float64', '>f4'])
def test_data_of_any_real_dtype(dtype):
    grid = GEOMETRIES['plain']
    data = [(part * 2).astype(dtype) for part in make_data(grid)]
    views = [np.repeat(part, 2, axis=1)[:, ::2] for part in data]
    for part in views:
        part.flags.writeable = False
    stitcher, sink = stitch(grid, views, blocksize=16)
    assert stitcher.engine == 'carry'
    np.testing.assert_allclose(sink.as_array(), compute_reference(grid, data, grid.shape),
                               atol=2 * FLOAT_TOLERANCE)


# ---- lists of windows -----------------------------------------------------------

# Rows and columns of any heights and widths; some overhang.
LISTS = {
    'of a grid': ([(0, 16), (12, 28), (24, 40)], [(0, 16), (14, 30)]),
    'uneven rows': ([(0, 5), (3, 20), (19, 22), (22, 40)], [(0, 10), (9, 11), (10, 30)]),
    'many over a pixel': ([(0, 20), (2, 22), (4, 39), (6, 40)], [(0, 25), (1, 29), (3, 30)]),
    'overhanging': ([(-7, 9), (5, 21), (17, 49)], [(-3, 12), (11, 40)]),
    'one overhangs all sides': ([(-4, 50)], [(-1, 33)]),
}


def make_list(rows, columns):
    return [Window(y0, x0, y1, x1) for y0, y1 in rows for x0, x1 in columns]


@pytest.mark.parametrize('blocksize', [6, 64])
@pytest.mark.parametrize('name', LISTS)
def test_lists_that_are_a_complete_lattice(name, blocksize):
    windows, shape = make_list(*LISTS[name]), (40, 30)
    data = make_data(windows)
    stitcher, sink = stitch(windows, data, shape, blocksize=blocksize)
    assert stitcher.engine == 'carry'
    expected = compute_reference(windows, data, shape)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(sink.as_array(), expected, atol=FLOAT_TOLERANCE)
    # Declared in any order: it is the order of coming that counts.
    mixed = list(np.random.RandomState(0).permutation(len(windows)))
    sink = MemorySink()
    stitcher = SoftStitcher((*shape, 2), [windows[index] for index in mixed], sink=sink,
                            blocksize=blocksize)
    for window, part in zip(windows, data):
        stitcher.add(window, part)
    assert stitcher.engine == 'carry'
    np.testing.assert_allclose(sink.as_array(), expected, atol=FLOAT_TOLERANCE)


def test_a_window_may_come_without_what_it_overhangs():
    windows, shape = make_list(*LISTS['overhanging']), (40, 30)
    data = make_data(windows)
    _, expected = stitch(windows, data, shape)
    sink = MemorySink()
    stitcher = SoftStitcher((*shape, 2), windows, sink=sink)
    for window, part in zip(windows, data):
        inside = window.clip(shape)
        stitcher.add(inside, part[inside.within(window).slices])
    assert stitcher.engine == 'carry'
    assert np.array_equal(sink.as_array(), expected.as_array())


LATTICE = make_list(*LISTS['of a grid'])


# ---- when it is used --------------------------------------------------------------

PLAIN = GEOMETRIES['plain']
CORNER = shapely.box(0, 0, 20, 20)
ALL = shapely.box(-1, -1, 99, 99)
GENERAL = {
    'asked for': (PLAIN, {'engine': 'general'}),
    'plain mean of overlapping windows': (PLAIN, {'profile': 'constant'}),
    'area of the grid': (WindowGrid((40, 50), 16, 4, area=CORNER), {}),
    'area of the grid that leaves out nothing': (WindowGrid((40, 50), 16, 4, area=ALL), {}),
    'area of the stitcher': (PLAIN, {'area': CORNER}),
    'area of the stitcher that leaves out nothing': (PLAIN, {'area': ALL}),
    'a layer of deviations': (PLAIN, {'layers': {Disagreement(): MemorySink()}}),
    'files': (PLAIN, {'memmap': True}),
    'a small budget': (PLAIN, {'memory_budget': 1000}),
    'not declared': (None, {}),
    'an incomplete lattice': (LATTICE[:-1], {}),
    'a window twice': ([*LATTICE, LATTICE[0]], {}),
    'a gap': (make_list([(0, 16), (17, 40)], [(0, 30), (20, 50)]), {}),
    'a border left out': (make_list([(0, 16), (10, 39)], [(0, 30), (20, 50)]), {}),
    'no lattice': ([Window(0, 0, 20, 30), Window(3, 20, 40, 50), Window(15, 0, 40, 25)], {}),
    'the same rows inside': (make_list([(-3, 20), (0, 40)], [(0, 30), (20, 50)]), {}),
    'rows inside of others inside': (make_list([(0, 39), (4, 45), (9, 50)], [(0, 50)]), {}),
}
CARRY = {
    'plain': (PLAIN, {}),
    'plain mean of windows side by side': (GEOMETRIES['no overlap'], {'profile': 'constant'}),
    'layers of the mean': (PLAIN, {'layers': {'class': MemorySink(), 'mask': MemorySink()}}),
    'NaN per band': (PLAIN, {'nan_policy': 'band'}),
    'a large budget': (PLAIN, {'memory_budget': 1 << 24}),
    'codes of 32 bits': (PLAIN, {'expected_minmax': (0, 1), 'quantize_dtype': 'uint32'}),
    'a list': (list(PLAIN), {}),
}


@pytest.mark.parametrize('engine, name', [*(('general', name) for name in GENERAL),
                                          *(('carry', name) for name in CARRY)])
def test_the_engine_of_a_case(engine, name):
    windows, options = (GENERAL if engine == 'general' else CARRY)[name]
    stitcher = SoftStitcher((40, 50, 2), windows, sink=MemorySink(), **options)
    assert stitcher.engine is None
    first = Window(0, 0, 16, 16) if windows is None else next(iter(windows))
    stitcher.add(first, np.ones((*first.shape, 2)))
    assert stitcher.engine == engine
    stitcher.close()


def test_without_a_sink_there_is_nothing_to_carry():
    stitcher = SoftStitcher((40, 50, 1), PLAIN)
    stitcher.add(Window(0, 0, 16, 16), np.ones((16, 16)))
    assert stitcher.engine == 'general'


def test_a_budget_that_others_have_filled_is_respected():
    budget = MemoryBudget(200_000)
    other = SoftStitcher((200, 200, 4), memory_budget=budget)
    for expected in ('carry', 'general'):
        stitcher = SoftStitcher((40, 50, 1), PLAIN, sink=MemorySink(), blocksize=16,
                                memory_budget=budget)
        stitcher.add(Window(0, 0, 16, 16), np.ones((16, 16)))
        assert stitcher.engine == expected
        stitcher.close()
        other.add(None, np.ones((200, 200, 4)))
    other.close()
    assert budget.used == 0


# ---- the canvas itself -------------------------------------------------------------

@pytest.mark.parametrize('name', ['plain', 'more than half, flush', 'larger than the image'])
def test_the_next_window_is_the_next_of_the_grid(name):
    grid = GEOMETRIES[name]
    canvas, _ = make_canvas(grid)
    for window in grid:
        inside = window.clip(grid.shape)
        assert canvas.next_window == inside
        assert canvas.match(as_items([inside])) == 1
        assert canvas.add([np.zeros((1, *inside.shape), 'f4')]) == 1
        assert canvas.match(as_items([inside])) == 0
    assert canvas.next_window is None


def test_windows_of_one_row_match_up_to_its_end():
    canvas, _ = make_canvas(LATTICES[0])
    windows = list(LATTICES[0])
    assert canvas.match(as_items(windows)) == 5
    assert canvas.match(as_items(windows[:3])) == 3
    assert canvas.match(as_items([windows[0], windows[2]])) == 1
    assert canvas.match(as_items(windows[1:])) == 0
    assert canvas.add([np.zeros((1, 12, 12), 'f4')] * 2) == 2
    assert canvas.match(as_items(windows)) == 0
    assert canvas.match(as_items(windows[2:])) == 3


@pytest.mark.parametrize('num_threads', [1, 3])
@pytest.mark.parametrize('codec', [None, Quantization(0.25, 0.75)])
@pytest.mark.parametrize('grid', LATTICES)
def test_a_window_that_is_not_finite_adds_nothing(grid, codec, num_threads):
    data = make_data(grid, 1)
    canvas, _ = make_canvas(grid, codec=codec, num_threads=num_threads)
    clean, _ = make_canvas(grid, codec=codec)
    rng = np.random.RandomState(0)
    for window, part in zip(grid, data):
        for value in (np.nan, np.inf):
            bad = part.copy()
            bad[tuple(rng.randint(0, part.shape))] = value
            assert canvas.add([as_planes(bad)]) == 0
            assert canvas.next_window == window
        assert canvas.add([as_planes(part)]) == 1
        assert clean.add([as_planes(part)]) == 1
    for block in BlockGrid(grid.shape, 8):
        if codec is None:
            actual, expected = (one.take(block.index).compute_mean() for one in (canvas, clean))
            assert np.array_equal(actual, expected)
        else:
            actual, expected = (one.take(block.index).encode(codec) for one in (canvas, clean))
            assert np.array_equal(actual[0], expected[0]) and actual[1] == expected[1]
    canvas.close()
    clean.close()


def test_closing_frees_all():
    budget = MemoryBudget(1 << 20)
    canvas, _ = make_canvas(PLAIN, budget=budget, num_threads=2)
    assert canvas.add([np.ones((1, 16, 16), 'f4')]) == 1
    assert budget.used == canvas.nbytes == canvas.peak_nbytes > 0
    canvas.close()
    canvas.close()
    assert canvas.nbytes == budget.used == 0


# ---- what it holds -------------------------------------------------------------------

def measure_peak(shape, overlap=4, blocksize=16, **options):
    grid = WindowGrid(shape, 16, overlap, 'flush')
    data = np.zeros((16, 16, 2), 'f4')
    stitcher = SoftStitcher((*shape, 2), grid, sink=MemorySink(), blocksize=blocksize, **options)
    for window in grid:
        stitcher.add(window, data)
    assert stitcher.engine == 'carry'
    stitcher.finalize()
    assert stitcher.nbytes == 0
    return stitcher.peak_nbytes


@pytest.mark.parametrize('options', [
    {}, {'overlap': 12}, {'blocksize': 8}, {'blocksize': 40}, {'expected_minmax': (0, 1)}])
def test_memory_does_not_depend_on_the_height(options):
    # All are whole numbers of strides, and of turns of strides and blocks.
    peak = measure_peak((160, 64), **options)
    assert measure_peak((640, 64), **options) == peak
    assert peak < measure_peak((160, 256), **options) < 5 * peak
    assert peak <= 160 * 64 * 2 * 4


def run_canvas(grid, blocksize, codec):
    """Return (peak, forecast) bytes of a canvas whose blocks leave when they are final."""
    canvas, lanes = make_canvas(grid, blocksize, 2, codec)
    blocks = BlockGrid(grid.shape, blocksize)
    cover = Coverage(grid.shape, grid, blocks)
    for window in grid:
        inside = window.clip(grid.shape)
        canvas.add([np.zeros((1, inside.shape[0], inside.shape[1] * 2), 'f4')])
        for index in cover.receive(inside):
            canvas.take(index)
    forecast = CarryCanvas.forecast_nbytes((*grid.shape, 2), blocks, lanes, 'float32', codec)
    return canvas.peak_nbytes, forecast


CODECS = pytest.mark.parametrize('codec', [None, Quantization(0, 1)])


@CODECS
@pytest.mark.parametrize('blocksize', [1, 5, 16, 64])
@pytest.mark.parametrize('name', GEOMETRIES)
def test_a_forecast_is_never_too_low(name, blocksize, codec):
    peak, forecast = run_canvas(GEOMETRIES[name], blocksize, codec)
    assert 0 < peak <= forecast


@CODECS
@pytest.mark.parametrize('shape, window, overlap, blocksize', [
    ((300, 400), 64, 16, 64), ((300, 400), 64, 32, 64), ((300, 400), 64, 48, 64),
    ((300, 400), 64, 0, 64), ((200, 300), 20, 4, 64), ((400, 300), 48, 12, 32)])
def test_a_forecast_is_close(shape, window, overlap, blocksize, codec):
    peak, forecast = run_canvas(WindowGrid(shape, window, overlap), blocksize, codec)
    assert peak <= forecast <= 1.5 * peak


# ---- several windows at a time ----------------------------------------------------

def stitch_batches(grid, data, sizes, weights=None, **options):
    """Return (stitcher, array) of windows that come in batches of these sizes."""
    sink, windows, first = MemorySink(), list(grid), 0
    stitcher = SoftStitcher((*grid.shape, 2), grid, sink=sink, **options)
    for size in sizes:
        part = slice(first, first + size)
        batch = windows[part], data[part], None if weights is None else weights[part]
        n_pixels = sum(int(np.isfinite(one).all(axis=2).sum()) for one in data[part])
        assert stitcher.add_batch(*batch) == n_pixels
        first += size
        assert stitcher.n_windows == first
    stitcher.finalize()
    return stitcher, sink.as_array()


@pytest.mark.parametrize('num_threads', [1, 3])
@pytest.mark.parametrize('grid', LATTICES)
@pytest.mark.parametrize('sizes', [[20], [5] * 4, [2] * 10, [3] * 6 + [2], [1, 19], [0, 7, 0, 13]])
def test_batches_are_the_same_as_one_by_one(grid, sizes, num_threads):
    data = make_data(grid, low=-0.5)
    for options in ({}, {'expected_minmax': (0, 1)}):
        one, sink = stitch(grid, data, blocksize=7, **options)
        stitcher, actual = stitch_batches(grid, data, sizes, blocksize=7,
                                          num_threads=num_threads, **options)
        assert stitcher.engine == 'carry'
        assert np.array_equal(actual, sink.as_array())
        assert stitcher.n_clipped == one.n_clipped


@pytest.mark.parametrize('num_threads', [1, 3])
@pytest.mark.parametrize('grid', LATTICES)
@pytest.mark.parametrize('sizes', [[20], [6, 6, 8]])
def test_a_batch_may_leave_it_anywhere(grid, sizes, num_threads):
    rng = np.random.RandomState(0)
    for number in range(20):
        data, weights = make_data(grid, seed=number), [None] * 20
        if number % 2:
            weights[number] = rng.rand(12, 12) + 0.1
            # A second reason, further on.
            data[-1][3, 3] = np.nan
        else:
            # In some rows only, that is in one of the threads.
            data[number][rng.randint(12), rng.randint(12)] = np.inf
        stitcher, actual = stitch_batches(grid, data, sizes, weights, blocksize=7,
                                          num_threads=num_threads)
        assert stitcher.engine == 'general' and stitcher.n_invalid == 1
        _, expected = stitch_batches(grid, data, [1] * 20, weights, blocksize=7, engine='general')
        np.testing.assert_allclose(actual, expected, atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize('engine', ['auto', 'general'])
@pytest.mark.parametrize('change', [
    lambda batch: batch.append(batch[0]), lambda batch: batch.append(Window(1, 1, 13, 13)),
    lambda batch: batch.insert(0, next(iter(LATTICES[0])))])
def test_a_batch_that_is_refused_adds_nothing(change, engine):
    grid, sink = LATTICES[0], MemorySink()
    windows, data = list(grid), make_data(grid)
    stitcher = SoftStitcher((*grid.shape, 2), grid, sink=sink, engine=engine)
    stitcher.add(windows[0], data[0])
    batch = windows[1:4]
    change(batch)
    with pytest.raises(CoverageError):
        stitcher.add_batch(batch, [np.ones((12, 12, 2))] * len(batch))
    assert stitcher.n_windows == 1 and stitcher.pending == windows[1:]
    stitcher.add_batch(windows[1:], data[1:])
    np.testing.assert_allclose(sink.as_array(), compute_reference(grid, data, grid.shape),
                               atol=FLOAT_TOLERANCE)


@pytest.mark.parametrize('breaks', [False, True])
def test_a_budget_is_told_of_all_bytes(breaks):
    budget = MemoryBudget(1 << 20)
    stitcher = SoftStitcher((40, 50, 2), PLAIN, sink=MemorySink(), blocksize=16,
                            memory_budget=budget)
    peak = 0
    for number, (window, part) in enumerate(zip(PLAIN, make_data(PLAIN))):
        if breaks and number == 6:
            part[3, 4] = np.nan
        stitcher.add(window, part)
        assert budget.used == stitcher.nbytes
        peak = max(peak, stitcher.nbytes)
        assert stitcher.peak_nbytes >= peak
    assert stitcher.engine == ('general' if breaks else 'carry')
    stitcher.finalize()
    assert budget.used == stitcher.nbytes == 0
    assert stitcher.peak_nbytes >= peak


# ---- leaving it ----------------------------------------------------------------------

WAYS = ('nan', 'order', 'weights', 'read')


def break_at(way, number, grid, engine, *, minmax, blocksize, **options):
    """Stitch, with a window out of line; return (array, n_clipped, n_invalid, read)."""
    data = make_data(grid, seed=number, low=-0.2, high=1.2)
    order = list(range(len(data)))
    weights, found = None, None
    if way == 'nan':
        data[number][5:9, 3:8, 1] = np.nan
        data[number][0, 0] = np.inf
    elif way == 'order':
        order[number:] = order[:number - 1:-1] if number else order[::-1]
    elif way == 'weights':
        weights = np.random.RandomState(number).rand(12, 12) + 0.1
    sink = MemorySink()
    stitcher = SoftStitcher((*grid.shape, 2), grid, sink=sink, expected_minmax=minmax,
                            blocksize=blocksize, engine=engine, **options)
    windows = list(grid)
    for step, index in enumerate(order):
        if step == number and way == 'read':
            if not step:
                # Nothing can be read before the first window.
                stitcher.add(windows[index], data[index])
                continue
            found = stitcher.read(Window.from_shape(grid.shape))
        stitcher.add(windows[index], data[index], weights if step == number else None)
        if engine == 'auto':
            is_last_in_order = way == 'order' and number == len(order) - 1
            stays = step < number or is_last_in_order or (way == 'read' and not number)
            assert stitcher.engine == ('carry' if stays else 'general')
    assert stitcher.is_complete
    assert set(sink.blocks) == {block.core for block in BlockGrid(grid.shape, blocksize)}
    stitcher.finalize()
    return sink.as_array(), stitcher.n_clipped, stitcher.n_invalid, found


@pytest.mark.parametrize('blocksize', [5, 8, 40])
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('grid', LATTICES)
def test_floats_are_the_same_wherever_it_is_left(grid, way, blocksize):
    for number in range(len(grid)):
        actual, expected = (break_at(way, number, grid, engine, minmax=None, blocksize=blocksize)
                            for engine in ('auto', 'general'))
        np.testing.assert_allclose(actual[0], expected[0], atol=FLOAT_TOLERANCE)
        assert actual[1:3] == expected[1:3]
        if expected[3] is not None:
            np.testing.assert_allclose(actual[3], expected[3], atol=FLOAT_TOLERANCE)
            assert np.isfinite(expected[3]).any()


@pytest.mark.parametrize('blocksize', [8, 40])
@pytest.mark.parametrize('way', WAYS)
@pytest.mark.parametrize('grid', LATTICES)
def test_codes_are_the_same_wherever_it_is_left(grid, way, blocksize):
    codec = Quantization(0, 1)
    for number in range(len(grid)):
        actual, expected = (break_at(way, number, grid, engine, minmax=(0, 1),
                                     blocksize=blocksize) for engine in ('auto', 'general'))
        assert np.array_equal(actual[0] == codec.nodata, expected[0] == codec.nodata)
        assert np.abs(actual[0].astype(int) - expected[0]).max() <= 1
        assert actual[2] == expected[2]
        if expected[3] is not None:
            # Finished pixels are held as codes, which are clipped.
            values = np.clip(expected[3], 0, 1)
            np.testing.assert_allclose(np.clip(actual[3], 0, 1), values, atol=codec.step)


@pytest.mark.parametrize('way', WAYS)
def test_clipped_values_are_counted_wherever_it_is_left(way):
    for number in range(20):
        actual, expected = (break_at(way, number, LATTICES[0], engine, minmax=(0.3, 0.6),
                                     blocksize=40) for engine in ('auto', 'general'))
        # Rounding may move a value over the margin.
        assert abs(actual[1] - expected[1]) <= 2
        assert expected[1] > 500


@pytest.mark.parametrize('options', [
    {'nan_policy': 'band'}, {'memory_budget': 60_000}, {'num_threads': 3},
    {'dtype': 'float64'}, {'layers': {'mask': None, 'class': None}}])
@pytest.mark.parametrize('grid', LATTICES)
def test_options_are_the_same_wherever_it_is_left(grid, options):
    layers = options.get('layers', {})
    for number in range(len(grid)):
        results = []
        for engine in ('auto', 'general'):
            sinks = {name: MemorySink() for name in layers}
            mine = {**options, 'layers': sinks}
            results.append((*break_at('nan', number, grid, engine, minmax=None, blocksize=8,
                                      **mine), sinks))
        actual, expected = results
        np.testing.assert_allclose(actual[0], expected[0], atol=FLOAT_TOLERANCE)
        assert actual[2] == expected[2]
        for name in layers:
            found, wanted = (result[4][name].as_array() for result in results)
            # The mean was not near a threshold, and bands were not near a tie.
            assert (found == wanted).mean() > 0.999
            assert np.array_equal(found == 255, wanted == 255)


@pytest.mark.parametrize('breaks', [False, True])
def test_codes_have_the_digits_of_float64(breaks):
    # The values need 9 digits, and float32 has 7.
    grid, minmax = LATTICES[0], (10_000, 10_001)
    codec = Quantization(*minmax)
    data = [part.astype('f8') + 10_000 for part in make_data(grid)]
    if breaks:
        data[7][0, 0] = np.nan
    stitcher, sink = stitch(grid, data, dtype='float64', expected_minmax=minmax, blocksize=40)
    assert stitcher.engine == ('general' if breaks else 'carry')
    codes, _ = codec.encode(compute_reference(grid, data, grid.shape))
    assert np.array_equal(sink.as_array() == codec.nodata, codes == codec.nodata)
    assert np.abs(sink.as_array().astype(int) - codes).max() <= 1


def test_a_peak_is_not_forgotten():
    for way in ('read', 'nan'):
        stitcher = SoftStitcher((36, 44, 2), LATTICES[0], sink=MemorySink(), blocksize=4)
        data = make_data(LATTICES[0])
        for number, (window, part) in enumerate(zip(LATTICES[0], data)):
            peak = stitcher.peak_nbytes
            if number == 10:
                assert stitcher.engine == 'carry'
                if way == 'read':
                    stitcher.read(Window(0, 0, 1, 1))
                else:
                    part[0] = np.nan
            stitcher.add(window, part)
            assert stitcher.peak_nbytes >= max(peak, stitcher.nbytes)


@pytest.mark.parametrize('minmax', [None, (0, 1)])
@pytest.mark.parametrize('read', [lambda stitcher: stitcher.read(Window(0, 0, 1, 1)),
                                  lambda stitcher: stitcher.weights,
                                  lambda stitcher: stitcher.encode(Quantization(0, 1),
                                                                   Window(0, 0, 1, 1))])
def test_reading_after_the_last_window_loses_no_block(read, minmax):
    grid = LATTICES[0]
    data = make_data(grid)
    expected = compute_reference(grid, data, grid.shape)
    sink = FailingSink(1)
    stitcher = SoftStitcher((*grid.shape, 2), grid, sink=sink, blocksize=36,
                            expected_minmax=minmax)
    failed = 0
    for window, part in zip(grid, data):
        try:
            stitcher.add(window, part)
        except OSError:
            failed += 1
    # The first of the two blocks failed; the other may have been left for later.
    assert failed == 1 and stitcher.is_complete
    read(stitcher)
    stitcher.finalize()
    actual = sink.as_array()
    if minmax is not None:
        actual = Quantization(*minmax).decode(actual)
    np.testing.assert_allclose(actual, expected, atol=5e-5)


@pytest.mark.parametrize('number', range(0, 20, 3))
@pytest.mark.parametrize('way', WAYS)
def test_blocks_that_a_sink_refused_are_not_lost(way, number):
    grid, sink = LATTICES[1], FailingSink(5)
    data = make_data(grid, seed=1)
    order = list(range(20))
    if way == 'nan':
        data[number][...] = np.nan
    elif way == 'order':
        order[number:] = order[number:][::-1]
    windows, weights = list(grid), [None] * 20
    if way == 'weights':
        weights[number] = np.outer(*BlendPlan(grid).get_weights(windows[number]))
    stitcher = SoftStitcher((*grid.shape, 2), grid, sink=sink, blocksize=5)
    failed = 0
    for step, index in enumerate(order):
        if way == 'read' and step == number > 0:
            stitcher.read(Window(0, 0, 9, 9))
        try:
            stitcher.add(windows[index], data[index], weights[index])
        except OSError:
            failed += 1
    while len(sink.blocks) < len(BlockGrid(grid.shape, 5)):
        try:
            stitcher.finalize()
        except OSError:
            failed += 1
    assert failed == 5
    np.testing.assert_allclose(sink.as_array(), compute_reference(grid, data, grid.shape),
                               atol=FLOAT_TOLERANCE)
