"""Plans: what they say is what small runs do, and their bounds hold."""
import math
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import (BlendPlan, BlockGrid, ShepherdConfig, WatershedParameters, WindowGrid,
                     blockwise_watershed, get_executor, map_blocks, segment_raster)
from cocoseg.engine.block_store import BlockStore
from cocoseg.engine.estimate import estimate_time, list_warnings, parse_executor
from cocoseg.engine.executors import SerialExecutor
from cocoseg.engine.plan import (
    bound_stitching, count_read, plan_blocks, plan_predict, plan_segments, plan_watershed)
from cocoseg.errors import OptionError
from cocoseg.shepherd.tiles import TilePlan

WRITER_NBYTES = 64 << 20
# Of small Python objects, which no plan counts.
SLACK = 500_000


class CountingExecutor(SerialExecutor):
    """Counts the tasks that are handed out."""

    n_tasks = 0

    def run(self, func, tasks, **options):
        for step in super().run(func, tasks, **options):
            self.n_tasks += 1
            yield step


class NoiseSource:
    """Makes pixels when they are read, and counts them."""

    name, dtype = 'noise', np.dtype(np.float32)

    def __init__(self, *shape):
        self.shape, self.n_read, self.n_largest = shape, 0, 0

    def read(self, window):
        self.n_read += math.prod(window.shape)
        self.n_largest = max(self.n_largest, math.prod(window.shape))
        rng = np.random.default_rng(window.slices[0].start + window.slices[1].start)
        return rng.random((*window.shape, self.shape[-1]), dtype=np.float32)


class NoSink:
    """Takes blocks and forgets them."""

    def write_block(self, window, block):
        pass


def trace_peak(function):
    """Return what a function returns, and the most bytes that were allocated meanwhile."""
    tracemalloc.start()
    try:
        found = function()
        return found, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- counts ----------------------------------------------------------------

@st.composite
def grids(draw):
    window = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    overlap = tuple(draw(st.integers(0, size - 1)) for size in window)
    shape = draw(st.tuples(st.integers(1, 120), st.integers(1, 120)))
    return WindowGrid(shape, window, overlap, draw(st.sampled_from(['balanced', 'flush'])))


@settings(max_examples=60, deadline=None)
@given(grids(), st.integers(1, 3))
def test_windows_are_those_of_the_grid(grid, n_images):
    plan = plan_predict(grid.shape, grid.window, grid.overlap, n_bands=2, n_channels=3,
                        fit=grid.fit, n_images=n_images)
    windows = list(grid)
    assert plan.n_units == n_images * len(windows)
    assert plan.n_read == n_images * sum(window.clip(grid.shape).area for window in windows)
    assert plan.n_pixels == n_images * math.prod(grid.shape)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(1, 12), st.integers(0, 15)),
                min_size=2, max_size=3))
def test_blocks_are_those_of_the_grid(axes):
    grid = BlockGrid(*zip(*axes))
    blocks = list(grid)
    plan = plan_blocks(grid.shape, grid.block, grid.halo, n_bands=1, n_channels=2)
    assert plan.n_units == len(blocks)
    assert plan.n_read == count_read(grid) == sum(math.prod(one.read.shape) for one in blocks)
    assert plan.result_nbytes == math.prod(grid.shape) * 2 * 4


@pytest.mark.parametrize('shape, block, halo', [
    ((90, 70), 32, 5), ((64, 64), 64, 9), ((10, 33, 20), (4, 16, 16), (1, 2, 3))])
def test_run_over_blocks_is_as_planned(tmp_path, shape, block, halo):
    source, executor = NoiseSource(*shape, 2), CountingExecutor()
    result = map_blocks(lambda pixels: pixels * 2, source, block_shape=block, halo=halo,
                        executor=executor, workdir=tmp_path / 'work', keep_tmpdir=True)
    options = dict(n_bands=2, n_channels=2)
    plan = plan_blocks(shape, block, halo, **options, is_kept=True)
    assert (plan.n_units, plan.n_tasks, plan.n_read) == (
        result.n_blocks, executor.n_tasks, source.n_read)
    assert plan.result_nbytes == result.output.nbytes
    files = sum(path.stat().st_size for path in (tmp_path / 'work').glob('*.npy'))
    without = plan_blocks(shape, block, halo, **options)
    assert plan.temporary_nbytes - without.temporary_nbytes == files


def test_watershed_is_as_planned(tmp_path):
    source, executor = NoiseSource(150, 130, 4), CountingExecutor()
    parameters = WatershedParameters([(0, 1), (1, 0), (0, 5), (5, 0)], context=8)
    result = blockwise_watershed(source, parameters, block_shape=64, executor=executor,
                                 workdir=tmp_path / 'work', keep_tmpdir=True)
    facts = sum(len(np.load(path)) - 1 for path in (tmp_path / 'work').glob('*.facts.npy'))
    plan = plan_watershed((150, 130), 64, 8, n_bands=4, label_size=source.n_read / facts)
    assert (plan.n_units, plan.n_tasks, plan.n_read) == (9, executor.n_tasks, source.n_read)
    assert plan.result_nbytes == result.output.nbytes
    assert plan.n_labels in (facts, facts + 1)
    files = sum(path.stat().st_size for path in (tmp_path / 'work').glob('*.npy'))
    packed = 2 * plan.result_nbytes * 4 // 3
    assert files <= plan.temporary_nbytes - packed <= files + 50


def test_segment_tiles_are_as_planned(tmp_path):
    image = np.random.default_rng(0).integers(1, 200, (110, 90, 3), dtype=np.uint8)
    executor = CountingExecutor()
    result = segment_raster(image, tmp_path / 'segments.tif', ShepherdConfig(n_clusters=4),
                            tile_size=48, overlap=16, executor=executor)
    tiles = TilePlan.make((110, 90), 48, 16)
    plan = plan_segments(tiles.row_spans, tiles.column_spans, n_bands=3)
    assert plan.n_units == plan.n_tasks == executor.n_tasks == math.prod(result.grid_shape)
    assert plan.n_read == sum(window.area for window in tiles)
    assert plan.result_nbytes == 110 * 90 * 4


# ---- bounds ----------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(grids(), st.sampled_from([16, 32, 256]), st.sampled_from([None, 'int16']))
def test_forecasts_are_within_the_bound_of_stitching(grid, blocksize, dtype):
    report = BlendPlan(grid).describe(n_bands=3, blocksize=blocksize, quantize_dtype=dtype)
    assert report.peak_nbytes <= bound_stitching(grid.shape, grid.window, 3, blocksize)


def test_bound_of_stitching_does_not_grow_with_the_height():
    low, high = (bound_stitching((height, 4000), (256, 256), 5) for height in (20_000, 2_000_000))
    assert low == high < 0.1 * 20_000 * 4000 * 5 * 4


def test_blocks_take_no_more_memory_than_planned():
    source = NoiseSource(1200, 1100, 3)
    _, peak = trace_peak(lambda: map_blocks(lambda pixels: pixels[..., :2] * 2, source, NoSink(),
                                            block_shape=512, halo=20))
    plan = plan_blocks((1200, 1100), 512, 20, n_bands=3, n_channels=2)
    bound = plan.worker_nbytes + plan.driver_nbytes - WRITER_NBYTES
    assert bound / 3 < peak < bound + SLACK


def test_joining_takes_no_more_memory_than_planned():
    source = NoiseSource(512, 512, 2)
    parameters = WatershedParameters([(0, 1), (1, 0)], bias=0.7, context=2,
                                     filter_fragments=False)

    def run():
        return blockwise_watershed(source, parameters, NoSink(), block_shape=128)
    run()
    source.n_read = 0
    result, peak = trace_peak(run)
    plan = plan_watershed((512, 512), 128, 2, n_bands=2,
                          label_size=max(source.n_read / result.n_labels, 1))
    bound = plan.worker_nbytes + plan.driver_nbytes - WRITER_NBYTES
    assert result.n_labels > 20_000
    assert bound / 4 < peak < bound + SLACK


def test_notes_of_blocks_take_no_more_than_planned(tmp_path):
    def note_all():
        for index in range(2000):
            store.note((index, 12345), {'labels': 2 ** 31 + index, 'facts': 2 ** 30 + index})
    with BlockStore(tmp_path / 'work', None) as store:
        _, peak = trace_peak(note_all)
    one, many = (plan_blocks((1, n), 1, n_bands=1, n_channels=1, is_kept=True).driver_nbytes
                 for n in (1, 2001))
    assert (many - one) / 4 < peak < many - one


PEAKS = '''
import sys
import numpy as np
from cocoseg import ShepherdConfig, WatershedParameters, blockwise_watershed, segment_raster
rng = np.random.default_rng(0)

def peak():
    with open('/proc/self/status') as file:
        found = dict(line.split(':', 1) for line in file)
    return int(found['VmHWM'].split()[0]) * 1024

def watershed(size):
    pixels = rng.random((size, size, 4), dtype=np.float32)
    parameters = WatershedParameters([(0, 1), (1, 0), (0, 9), (9, 0)], context=16)
    return lambda: blockwise_watershed(pixels, parameters, block_shape=size)

def segment(size):
    pixels = rng.integers(1, 9, (size // 8, size // 8, 3), dtype=np.uint8)
    pixels = pixels.repeat(8, axis=0).repeat(8, axis=1)
    centres = np.arange(9.0)[:, None] * np.ones(3)
    return lambda: segment_raster(pixels, sys.argv[2], ShepherdConfig(), tile_size=size,
                                  overlap=16, kmeans=centres)

make = {'watershed': watershed, 'segment': segment}[sys.argv[1]]
make(64)()
run = make(int(sys.argv[3]))
with open('/proc/self/clear_refs', 'w') as file:
    file.write('5')
before = peak()
run()
print(peak() - before)
'''


@pytest.mark.parametrize('purpose, make', [
    ('watershed', lambda size: plan_watershed((size, size), size, 16, n_bands=4)),
    ('segment', lambda size: plan_segments([(0, size)], [(0, size)], n_bands=3))])
def test_processes_take_no_more_memory_than_planned(tmp_path, purpose, make):
    if not os.access('/proc/self/clear_refs', os.W_OK):
        pytest.skip('this system does not tell the peak of memory')
    size = 1024
    done = subprocess.run([sys.executable, '-c', PEAKS, purpose, os.fspath(tmp_path / 'a.tif'),
                           str(size)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    plan = make(size)
    assert plan.worker_nbytes / 4 < int(done.stdout) < plan.worker_nbytes + plan.driver_nbytes


# ---- executors, times and warnings -----------------------------------------

@pytest.mark.parametrize('spec', ['serial', 'threads', 'threads:2', 'processes', 'processes:2',
                                  'dask', 'dask:2'])
def test_workers_are_those_of_the_executor(spec):
    if spec.startswith('dask'):
        pytest.importorskip('distributed')
    kind, n_workers = parse_executor(spec)
    assert kind == spec.partition(':')[0]
    assert n_workers == get_executor(spec).n_workers


@pytest.mark.parametrize('spec, n_workers, found', [
    ('processes:3', None, 3), ('dask:3', None, 3), ('dask', 7, 7), ('dask:tls://host:1', 9, 9)])
def test_workers_of_clusters(spec, n_workers, found):
    assert parse_executor(spec, n_workers) == (spec.partition(':')[0], found)


@pytest.mark.parametrize('spec, n_workers, match', [
    ('fibers', None, 'unknown'), ('threads:0', None, 'unknown'), ('serial:2', None, 'unknown'),
    ('processes:tcp://host:1', None, 'unknown'), (3, None, 'unknown'),
    ('dask:tcp://host:1', None, 'how many'), ('threads:2', 3, 'is for dask'),
    ('dask', 0, 'at least 1')])
def test_wrong_executors(spec, n_workers, match):
    with pytest.raises(OptionError, match=match):
        parse_executor(spec, n_workers)


def make_plan(n_blocks, **options):
    return plan_blocks((100, 100 * n_blocks), 100, n_bands=1, n_channels=1, **options)


def test_plans_add_up():
    first, second = make_plan(3, is_kept=True), make_plan(2, is_kept=True)
    both = first + second
    assert (both.n_images, both.n_units, both.n_read) == (2, 5, 50_000)
    assert both.result_nbytes == first.result_nbytes + second.result_nbytes
    assert both.temporary_nbytes == first.temporary_nbytes
    assert both.driver_nbytes == first.driver_nbytes
    images = [plan_predict((10, 10), 5, 0, n_bands=1, n_channels=1, n_images=n) for n in (1, 3, 4)]
    assert images[0] + images[1] == images[2] and images[2].driver_nbytes == 4 * 6000
    with pytest.raises(OptionError, match='do not add up'):
        first + plan_predict((10, 10), 5, 0, n_bands=1, n_channels=1)


def test_no_task_is_done_by_several_workers():
    assert estimate_time(make_plan(4), 1e4, 'threads', 2).work == 2
    assert estimate_time(make_plan(5), 1e4, 'threads', 2).work == 3
    assert estimate_time(make_plan(5), 1e4, 'threads', 50).work == 1


def test_joins_and_writes_of_blocks_take_no_worker():
    plan = plan_watershed((100, 400), 100, 1, n_bands=4)
    estimate = estimate_time(plan, plan.n_read, 'dask', 4, 1e12)
    assert (plan.n_tasks, plan.n_long, estimate.task, estimate.work) == (12, 4, 0.25, 0.25)


def test_predictions_are_written_by_workers():
    plan = plan_predict((512, 512), 256, 0, n_bands=1, n_channels=1, n_images=8)
    estimate = estimate_time(plan, 512 * 512, 'dask', 4, write_rate=1)
    assert (estimate.task, estimate.total, estimate.write) == (1, 2, 0)


def test_one_image_is_shared_by_workers_and_written_by_one():
    plan = plan_predict((5120, 5120), 512, 0, n_bands=1, n_channels=1, n_workers=4, is_shared=True)
    assert (plan.n_units, plan.n_tasks, plan.driven_nbytes) == (100, 15, plan.result_nbytes)
    estimate = estimate_time(plan, 512 * 512, 'dask', 4, write_rate=1e6)
    assert math.isclose(estimate.task, 100 / 15) and math.isclose(estimate.work, 4 * 100 / 15)
    assert estimate.write == 5120 ** 2 * 2 / 1e6
    alone = plan_predict((5120, 5120), 512, 0, n_bands=1, n_channels=1, n_workers=4)
    assert alone.driven_nbytes == 0 and alone.n_tasks == 1
    assert alone.worker_nbytes > plan.worker_nbytes and alone.driver_nbytes < plan.driver_nbytes


@pytest.mark.parametrize('rates', [(0, 1), (-1, 1), (1, 0), (math.nan, 1)])
def test_wrong_rates(rates):
    with pytest.raises(OptionError, match='above 0'):
        estimate_time(make_plan(1), rates[0], write_rate=rates[1])


@pytest.mark.parametrize('plan, rate, write_rate, n_workers, match', [
    (make_plan(9), 1e4, 1e9, 10, 'only 9 of 10 workers'),
    (make_plan(9), 1e6, 1e9, 2, 'a task takes 0.01 s'),
    (make_plan(9), 1e4, 1e3, 2, 'writes the result sets the pace'),
    (make_plan(900), 1e7, 1e12, 400, 'to hand out'),
    (plan_blocks((500, 500), 100, 30, n_bands=1, n_channels=1), 1e4, 1e9, 2, 'is read 2.2 times'),
    (plan_watershed((2 ** 21, 2 ** 21), 1024, 32, n_bands=4), 1e5, 1e12, 2, '32 bits')])
def test_warnings(plan, rate, write_rate, n_workers, match):
    estimate = estimate_time(plan, rate, 'dask', n_workers, write_rate)
    assert any(match in warning for warning in list_warnings(plan, estimate, 'dask', n_workers))


def test_no_warning_for_a_good_plan():
    plan = make_plan(9)
    assert list_warnings(plan, estimate_time(plan, 1e4, 'dask', 2, 1e9), 'dask', 2) == []
    assert list_warnings(plan, estimate_time(plan, 1e6), 'serial') == []


@pytest.mark.parametrize('make', [
    lambda: plan_predict((9, 9), 4, 1, n_bands=0, n_channels=1),
    lambda: plan_predict((9, 9), 4, 1, n_bands=1, n_channels=1, n_images=0),
    lambda: plan_predict((9, 9), 4, 4, n_bands=1, n_channels=1),
    lambda: plan_blocks((9, 9), 0, n_bands=1, n_channels=1),
    lambda: plan_blocks((9, 9), 4, n_bands=1, n_channels=1.5),
    lambda: plan_watershed((9, 9), 4, 1, n_bands=1, label_size=0),
    lambda: plan_watershed((9, 9), 4, 1, n_bands=1, n_workers=-1)])
def test_wrong_sizes(make):
    with pytest.raises(OptionError):
        make()
