"""Forecasts: what a plan says is what a run shows, and what follows from its windows."""
import math

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import BlendPlan, BlockGrid, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CoverageError, OptionError
from cocoseg.protocols import MemorySink

from ..strategies import window_grids, window_lists

#: Name: (windows, shape of the image, engine).
PLANS = {
    'even': (WindowGrid((96, 128), 32, 8), (96, 128), 'carry'),
    'odd': (WindowGrid((101, 87), 31, 7), (101, 87), 'carry'),
    'odd, flush': (WindowGrid((101, 87), 31, 7, 'flush'), (101, 87), 'carry'),
    'no overlap': (WindowGrid((96, 64), 32), (96, 64), 'carry'),
    'no overlap requested': (WindowGrid((101, 87), 32), (101, 87), 'carry'),
    'more than half': (WindowGrid((70, 61), 32, (25, 20)), (70, 61), 'carry'),
    'nearly all': (WindowGrid((30, 25), 16, 14), (30, 25), 'carry'),
    'larger than the image': (WindowGrid((19, 33), 64, 16), (19, 33), 'carry'),
    'higher than the image': (WindowGrid((19, 133), 64, 16), (19, 133), 'carry'),
    'one pixel': (WindowGrid((1, 1), 1), (1, 1), 'carry'),
    'tall': (WindowGrid((301, 20), 32, 8), (301, 20), 'carry'),
    'wide': (WindowGrid((20, 301), 32, 8), (20, 301), 'carry'),
    'area': (WindowGrid((101, 87), 31, 7, area=shapely.box(40, 30, 60, 90)), (101, 87), 'general'),
    'area of all': (WindowGrid((101, 87), 31, 7, area=shapely.box(0, 0, 87, 101)), (101, 87),
                    'general'),
    'list of a grid': (list(WindowGrid((101, 87), 31, 7)), (101, 87), 'carry'),
    'lattice': ([Window(y0, x0, y1, x1) for y0, y1 in [(0, 40), (30, 75), (70, 101)]
                 for x0, x1 in [(0, 50), (20, 87)]], (101, 87), 'carry'),
    'overhanging lattice': ([Window(y0, x0, y1, x1) for y0, y1 in [(-9, 40), (30, 110)]
                             for x0, x1 in [(-3, 50), (20, 99)]], (101, 87), 'carry'),
    'lattice with a hole': (list(WindowGrid((101, 87), 31, 7))[:-1], (101, 87), 'general'),
    'twice': ([Window(0, 0, 40, 87), Window(30, 0, 101, 87)] * 2, (101, 87), 'general'),
    'irregular': ([*WindowGrid((101, 87), 31, 7), Window(33, 21, 77, 48)], (101, 87), 'general'),
    'a gap': ([Window(0, 0, 40, 87), Window(60, 0, 101, 87)], (101, 87), 'general'),
}
OPTIONS = {
    'codes': {'expected_minmax': (0, 1)},
    'codes of a byte': {'expected_minmax': (0, 1), 'quantize_dtype': 'uint8'},
    'codes of 32 bits': {'expected_minmax': (0, 1), 'quantize_dtype': 'int32'},
    'floats': {},
    'float64': {'dtype': 'float64'},
    'codes from float64': {'expected_minmax': (0, 1), 'dtype': 'float64'},
    'codes of 32 bits from float64': {'expected_minmax': (0, 1), 'quantize_dtype': 'int32',
                                      'dtype': 'float64'},
}
BLOCKSIZES = (16, 24, 64, 512)


def describe(windows, shape, n_bands=1, blocksize=16, profile='linear', **options):
    """Return the report for the options of a stitcher."""
    if 'expected_minmax' not in options:
        options['quantize_dtype'] = None
    options.pop('expected_minmax', None)
    return BlendPlan(windows, profile).describe(shape=shape, n_bands=n_bands, blocksize=blocksize,
                                                **options)


def run(windows, shape, n_bands=1, **options):
    """Return (stitcher, engine while windows came, number of windows, number of blocks)."""
    sink, engines = MemorySink(), set()
    stitcher = SoftStitcher((*shape, n_bands), windows, sink=sink, **options)
    for window in windows:
        stitcher.add(window, np.zeros((*window.shape, n_bands), 'f4'))
        engines.add(stitcher.engine)
    stitcher.finalize()
    engine, = engines
    return stitcher, engine, stitcher.n_windows, len(sink.blocks)


def simulate(windows, shape, blocksize, engine):
    """
    Return the most blocks and pixels of blocks that are begun, pixel by pixel.

    A block is begun when a window first touches it, or (carry) when one ends a
    pixel of it; it leaves with the last window that touches it.
    """
    first, last = np.full(shape, -1), np.full(shape, -1)
    for number, window in enumerate(windows):
        place = window.clip(shape).slices
        first[place] = np.where(first[place] < 0, number, first[place])
        last[place] = number
    lives = []
    for block in BlockGrid(shape, blocksize):
        end = last[block.core.slices]
        begin = end if engine == 'carry' else first[block.core.slices]
        if end.max() >= 0:
            lives.append((begin[begin >= 0].min(), end.max(), block.core.area))
    begun = [[area for start, stop, area in lives if start <= number <= stop]
             for number in range(len(list(windows)))]
    return max(map(len, begun)), max(map(sum, begun))


def measure_strips(windows, shape, n_bands, itemsize):
    """Return the bytes of two carries and two left strips, of the largest overlaps (or 1 px)."""
    inside = [window.clip(shape) for window in windows]
    spans = [sorted({(window.y0, window.y1) for window in inside}),
             sorted({(window.x0, window.x1) for window in inside})]
    shared = [max([1, *(before[1] - after[0] for before, after in zip(axis, axis[1:]))])
              for axis in spans]
    height = max(stop - start for start, stop in spans[0])
    return 2 * (shared[0] * shape[1] + height * shared[1]) * n_bands * itemsize


def bound_general(report, blocksize, itemsize, is_settled):
    """Return the most bytes that slabs for the blocks of a report take."""
    height, width, n_bands = report.shape
    n_pixels = min(height, blocksize) * min(width, blocksize)
    total = 0
    for size in [n_pixels * n_bands, n_pixels][:1 + is_settled]:
        slot = -(-size * itemsize // 64) * 64
        per_slab = max(1, min((32 << 20) // slot, report.n_blocks // 16))
        total += -(-report.peak_blocks // per_slab) * per_slab * slot
    return total


# ---- the figures are those of a run -------------------------------------------------

def check_run(windows, shape, n_bands=1, blocksize=16, **options):
    """Compare a report with a run and with the simulation; return it."""
    report = describe(windows, shape, n_bands, blocksize, **options)
    stitcher, engine, n_windows, n_blocks = run(windows, shape, n_bands, blocksize=blocksize,
                                                **options)
    peak_blocks, peak_pixels = simulate(windows, shape, blocksize, engine)
    itemsize = np.dtype(options.get('dtype', 'float32')).itemsize
    assert (report.engine, report.n_windows, report.n_blocks) == (engine, n_windows, n_blocks)
    assert report.shape == stitcher.shape == (*shape, n_bands)
    assert report.peak_blocks == peak_blocks
    assert report.window_pixels == sum(window.area for window in windows)
    assert report.image_nbytes == shape[0] * shape[1] * n_bands * itemsize
    assert report.fraction == report.peak_nbytes / report.image_nbytes
    if engine == 'carry':
        code = np.dtype(options.get('quantize_dtype', 'int16')).itemsize
        per_value = code if 'expected_minmax' in options and code <= 2 else itemsize
        strips = measure_strips(windows, shape, n_bands, itemsize)
        assert report.peak_nbytes == strips + peak_pixels * n_bands * per_value
        assert stitcher.peak_nbytes == report.peak_nbytes
    else:
        slot = min(blocksize, shape[0]) * min(blocksize, shape[1])
        assert report.peak_nbytes == peak_blocks * slot * n_bands * itemsize
        most = max(sum(not block.core.intersect(window).is_empty for window in windows)
                   for block in BlockGrid(shape, blocksize))
        assert (report.peak_nbytes <= stitcher.peak_nbytes
                <= bound_general(report, blocksize, itemsize, is_settled=most > 32))
    return report


@pytest.mark.parametrize('blocksize', BLOCKSIZES)
@pytest.mark.parametrize('name', PLANS)
def test_a_report_tells_what_a_run_shows(name, blocksize):
    windows, shape, engine = PLANS[name]
    for options in ({'expected_minmax': (0, 1)}, {}):
        assert check_run(windows, shape, 2, blocksize, **options).engine == engine


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('name', ['odd', 'more than half', 'larger than the image', 'area',
                                  'irregular'])
def test_dtypes(name, options):
    windows, shape, _ = PLANS[name]
    for n_bands in (1, 3):
        check_run(windows, shape, n_bands, 24, **OPTIONS[options])


@pytest.mark.parametrize('profile, engine', [
    ('linear', 'carry'), ('gaussian', 'carry'), ('constant', 'general')])
def test_profiles(profile, engine):
    windows, shape, _ = PLANS['odd']
    assert check_run(windows, shape, profile=profile).engine == engine
    windows, shape, _ = PLANS['no overlap']
    assert check_run(windows, shape, profile=profile).engine == 'carry'


@given(window_grids(), st.integers(1, 3), st.sampled_from([3, 8, 16, 64]),
       st.sampled_from(sorted(OPTIONS)))
@settings(max_examples=40)
def test_any_grid(grid, n_bands, blocksize, options):
    assert check_run(grid, grid.shape, n_bands, blocksize, **OPTIONS[options]).engine == 'carry'


@given(window_lists((30, 25)), st.sampled_from([4, 16, 64]))
@settings(max_examples=40)
def test_any_list(windows, blocksize):
    check_run(windows, (30, 25), 1, blocksize)


def test_the_shape_is_that_of_the_windows():
    grid = PLANS['odd'][0]
    assert describe(grid, None).shape == (101, 87, 1)
    assert describe(list(grid), None) == describe(list(grid), (101, 87))
    # Overhanging windows are cut where the image ends, if it is told where.
    assert describe([Window(0, 0, 9, 8)], None).shape == (9, 8, 1)
    assert describe([Window(0, 0, 9, 8)], (5, 6, 4)).shape == (5, 6, 1)


def test_a_larger_image_than_that_of_the_grid_has_gaps():
    report = check_run(PLANS['odd'][0], (120, 90))
    assert report.engine == 'general'


# ---- what it depends on ---------------------------------------------------------------

@pytest.mark.parametrize('blocksize', [16, 48, 256])
@pytest.mark.parametrize('overlap', [0, 8, 20])
def test_the_peak_does_not_depend_on_the_height(overlap, blocksize):
    def describe_image(height, width):
        return describe(WindowGrid((height, width), 32, overlap, 'flush'), None, 2, blocksize)

    # Whole numbers of strides, and of turns of strides and blocks.
    turn = math.lcm(32 - overlap, blocksize)
    low, high = (describe_image(overlap + turn * number, 128) for number in (4, 8))
    assert low.engine == high.engine == 'carry'
    assert (low.peak_blocks, low.peak_nbytes) == (high.peak_blocks, high.peak_nbytes)
    assert high.n_windows > 1.9 * low.n_windows and high.fraction < 0.6 * low.fraction
    wide = describe_image(overlap + turn * 4, 512)
    assert low.peak_nbytes < wide.peak_nbytes < 5 * low.peak_nbytes


def test_the_general_engine_does_not_depend_on_the_height_either():
    reports = [describe(WindowGrid((height, 96), 32, 8, 'flush'), None, 2, 32, profile='constant')
               for height in (24 * 16 + 8, 24 * 64 + 8)]
    assert {report.engine for report in reports} == {'general'}
    assert len({(report.peak_blocks, report.peak_nbytes) for report in reports}) == 1


# ---- words -----------------------------------------------------------------------------

@pytest.mark.parametrize('name', PLANS)
def test_a_report_is_one_line_with_its_figures(name):
    windows, shape, engine = PLANS[name]
    report = describe(windows, shape, 2)
    line = str(report)
    assert '\n' not in line and len(line) < 200
    height, width = shape
    for figure in [f'{height} x {width} x 2:', f' {report.n_windows} windows ',
                   f'({report.window_pixels / (height * width):.2f} predictions per pixel)',
                   f' {report.n_blocks} blocks;', f' {engine} engine,',
                   f' at most {report.peak_blocks} blocks begun,',
                   f' {report.peak_nbytes / 1e6:.1f} MB ', f'({report.fraction:.2%} of the image)']:
        assert figure in line, line


@pytest.mark.parametrize('windows, shape', [
    ([Window(0, 0, 9, 9), Window(20, 20, 30, 30)], (15, 15)),
    ([Window(0, 15, 9, 20)], (15, 15)),
    ([Window(-9, 0, 0, 9), Window(0, 0, 9, 9)], None),
    (WindowGrid((40, 40), 16, 4), (20, 20)),
])
def test_windows_outside_the_image_are_refused(windows, shape):
    with pytest.raises(CoverageError, match='has no pixel in the image of height'):
        describe(windows, shape)


@pytest.mark.parametrize('options', [
    {'shape': (50,)}, {'shape': (0, 5)}, {'shape': (50.5, 50)}, {'blocksize': 0},
    {'blocksize': 1.5}])
def test_sizes_that_cannot_be_are_refused(options):
    with pytest.raises(OptionError, match='must be'):
        BlendPlan(WindowGrid((50, 50), 16)).describe(**options)


@pytest.mark.parametrize('options', [
    {'n_bands': 0}, {'n_bands': 1.5}, {'dtype': 'float16'}, {'dtype': 'int8'},
    {'quantize_dtype': 'int64'}, {'quantize_dtype': 'float32'}, {'blocksize': 0},
    {'shape': (0, 5)}])
def test_what_a_stitcher_would_refuse_is_refused(options):
    with pytest.raises(OptionError):
        BlendPlan(WindowGrid((20, 20), 8, 2)).describe(**options)
