"""Segmentation and statistics by workers without shared memory: the bytes of the serial run."""
import os
import pickle
import threading

import numpy as np
import pytest
from scipy import ndimage

from cocoseg import ShepherdConfig, get_executor, segment_raster, segment_stats
from cocoseg.errors import OptionError, TaskError
from cocoseg.io.cog import write_cog
from cocoseg.shepherd import tile_store, value_stats
from cocoseg.shepherd.statspec import UserStat
from cocoseg.shepherd.tile_store import TileStore
from cocoseg.shepherd.tiles import TilePlan
from cocoseg.shepherd.value_stats import divide_segments

CONFIG = ShepherdConfig(n_clusters=20, min_segment_size=30)
SHAPES = ['area', 'bbox', 'centroid', 'perimeter', 'n_edge_pixels', 'n_edge_pixels:4']
STATS = ['count', 'min', 'mean', 'std', 'median', 'mode', 'variogram:2', *SHAPES]


class Pickling:
    """An executor that hands over nothing but pickles, as processes do; in this process."""

    n_workers = 2
    shares_memory = False

    def __init__(self, folder=os.curdir):
        # Workers may have another working directory.
        self.folder, self.seen = folder, []

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=False):
        tasks = list(tasks)
        for task in tasks if ordered else tasks[::-1]:
            sent, home = pickle.dumps((func, task)), os.getcwd()
            os.chdir(self.folder)
            try:
                call, copy = pickle.loads(sent)
                result = pickle.dumps(call(copy))
            except Exception as ex:
                raise TaskError(f'{describe(task)} failed: {ex}', task=task) from ex
            finally:
                os.chdir(home)
            self.seen.append((len(sent), len(result)))
            yield task, pickle.loads(result)


def make_image(shape=(600, 600)):
    """Return an image like that of an aerial camera, uint8 (H, W, 4), with a corner of 0."""
    rng = np.random.default_rng(0)
    smooth = ndimage.gaussian_filter(rng.random(shape), 6)
    classes = np.digitize(smooth, np.quantile(smooth, np.linspace(0, 1, 12)[1:-1]))
    image = rng.integers(30, 220, (11, 4))[classes] + rng.normal(0, 6, (*shape, 4))
    image = np.clip(image, 1, 255).astype(np.uint8)
    image[:90, :70] = 0
    return image


@pytest.fixture(scope='module')
def path(tmp_path_factory):
    """A file of 600 x 600 px."""
    path = tmp_path_factory.mktemp('image') / 'image.tif'
    write_cog(path, make_image(), nodata=0, blocksize=256)
    return path


@pytest.fixture(scope='module')
def serial_files(path):
    """The serial runs: results and bytes, by config and recode, made when first asked for."""
    found = {}

    def get(config, recode):
        if (config, recode) not in found:
            dst = path.parent / f'serial{len(found)}.tif'
            result = segment(path, dst, config=config, recode=recode)
            found[config, recode] = result, dst.read_bytes()
        return found[config, recode]
    return get


@pytest.fixture(scope='module', params=['pickling', 'processes:2', 'dask:2'])
def executor(request):
    """Executors whose workers do not share the memory of the caller."""
    if request.param == 'pickling':
        return Pickling()
    if request.param == 'dask:2':
        pytest.importorskip('distributed')
    return get_executor(request.param)


def segment(src, dst, executor='serial', config=CONFIG, **options):
    return segment_raster(src, dst, config, 256, 64, executor, **options)


# ---- segmentation

@pytest.mark.parametrize('config, recode', [
    (CONFIG, 'overlap'), (CONFIG, 'simple'),
    (CONFIG.patch(compat='pyshepseg', init='diagonal', sample_percent=10), 'overlap'),
], ids=['overlap', 'simple', 'compat'])
def test_files_have_the_same_bytes(path, tmp_path, serial_files, executor, config, recode):
    serial, content = serial_files(config, recode)
    other = segment(path, tmp_path / 'other.tif', executor, config, recode=recode)
    assert (tmp_path / 'other.tif').read_bytes() == content
    assert np.array_equal(serial.sizes, other.sizes) and serial.seams == other.seams
    assert np.array_equal(serial.kmeans.cluster_centers_, other.kmeans.cluster_centers_)
    assert serial.n_segments > 100 and serial.grid_shape != (1, 1)
    # Nothing of the tiles stays.
    assert os.listdir(tmp_path) == ['other.tif']
    # What workers have measured came home.
    n_tiles = other.grid_shape[0] * other.grid_shape[1]
    summary = other.timings.summary()
    assert [summary[name]['count'] for name in ('reading', 'segmentation', 'storing')] == [
        n_tiles] * 3


def test_a_tile_that_fails_names_itself_and_leaves_nothing(path, tmp_path, executor):
    # What is cut off is of the last tile only.
    broken = tmp_path / 'broken.tif'
    write_cog(broken, make_image(), nodata=0, blocksize=256, compress='NONE', overviews=None)
    centres = np.array([[50.0] * 4, [100.0] * 4, [200.0] * 4])
    os.truncate(broken, os.path.getsize(broken) - 200_000)
    with pytest.raises(TaskError, match=r'tile \(2, 2\) at Window.*broken.tif failed'):
        segment(broken, tmp_path / 'out.tif', executor, kmeans=centres)
    assert os.listdir(tmp_path) == ['broken.tif']


def test_a_writer_that_fails_leaves_nothing(path, tmp_path, monkeypatch):
    def refuse(self, tile):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr('cocoseg.stitch.label.LabelStitcher.insert', refuse)
    with pytest.raises(OSError, match='No space'):
        segment(path, tmp_path / 'out.tif', Pickling())
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('compat', [None, 'pyshepseg'])
def test_tasks_and_results_are_small(path, tmp_path, compat):
    executor = Pickling()
    config = CONFIG.patch(compat=compat, init='diagonal', sample_percent=50)
    segment(path, tmp_path / 'out.tif', executor, config)
    assert len(executor.seen) >= 4
    # Centres of clusters take some kB; a tile of labels takes 256 kB.
    assert max(sent for sent, _ in executor.seen) < 16_000
    assert max(result for _, result in executor.seen) < 4_000


def test_tiles_are_removed_as_they_are_used(path, tmp_path):
    counts = []

    class Watching(Pickling):
        def run(self, *args, **options):
            for step in super().run(*args, **options):
                folder, = (path for path in tmp_path.glob('.*.tmp') if path.is_dir())
                counts.append(len({name.split('.')[0] for name in os.listdir(folder)}))
                yield step
    segment(path, tmp_path / 'out.tif', Watching())
    # The one before is removed when the next one is asked for: here each waits alone.
    assert counts == [1] + [2] * 8 or counts == [1] * 9


def test_arrays_are_sent_only_if_they_are_small(tmp_path, monkeypatch):
    image = make_image((200, 220))
    labels = {}
    for name, executor in (('serial', 'serial'), ('sent', Pickling())):
        segment_raster(image, tmp_path / f'{name}.tif', CONFIG, 128, 32, executor, nodata=0)
        labels[name] = (tmp_path / f'{name}.tif').read_bytes()
    assert labels['serial'] == labels['sent']
    monkeypatch.setattr(tile_store, 'MAX_SENT_NBYTES', image.nbytes - 1)
    with pytest.raises(OptionError, match='raster in memory take 176000 bytes.*give a path'):
        segment_raster(image, tmp_path / 'out.tif', CONFIG, 128, 32, Pickling(), nodata=0)
    segment_raster(image, tmp_path / 'out.tif', CONFIG, 128, 32, 'threads:2', nodata=0)
    monkeypatch.setattr(tile_store, 'MAX_SENT_NBYTES', 200_000)
    with pytest.raises(OptionError, match='segments and image in memory take'):
        segment_stats(image, np.ones((200, 220), np.uint32), executor=Pickling())


def test_a_path_may_be_relative(path, tmp_path, monkeypatch):
    monkeypatch.chdir(path.parent)
    result = segment('image.tif', tmp_path / 'out.tif', Pickling(tmp_path))
    assert result.n_segments > 100


def test_a_worker_that_is_late_finds_no_folder(tmp_path):
    plan = TilePlan(((0, 2),), ((0, 2),), (0, 0))
    with TileStore.open_beside(tmp_path / 'out.tif', plan) as store:
        late = pickle.loads(pickle.dumps(store))
    with pytest.raises(FileNotFoundError):
        late.save(next(iter(plan)), np.ones((2, 2), np.uint32))
    assert os.listdir(tmp_path) == []


# ---- statistics

@pytest.fixture(scope='module')
def segments(path):
    """Segments of the file."""
    dst = path.parent / 'segments.tif'
    segment(path, dst)
    return dst


def assert_equal_tables(one, other):
    assert list(one.columns) == list(other.columns)
    assert np.array_equal(one.ids, other.ids)
    for name, column in one.columns.items():
        assert column.dtype == other.columns[name].dtype, name
        assert np.array_equal(column, other.columns[name],
                              equal_nan=column.dtype.kind == 'f'), name


def compute_joint_range(x, y, values, param):
    """A function that can be imported."""
    return float(values.max() - values.min() + 1e-3 * x.sum() + param * y[0])


def test_tables_are_the_same(path, segments, executor):
    stats = [*STATS, ('range', UserStat(compute_joint_range, 0.5, is_joint=True))]
    serial = segment_stats(path, segments, stats)
    assert_equal_tables(serial, segment_stats(path, segments, stats, executor=executor,
                                              block_rows=64))


@pytest.mark.parametrize('executor', ['threads:2', Pickling()], ids=['threads', 'pickling'])
def test_floats_and_large_segments_have_the_same_table(executor):
    rng = np.random.default_rng(1)
    image = rng.normal(1e6, 1, (120, 50, 2)).astype(np.float32)
    image[rng.random((120, 50)) < 0.1, 1] = np.nan
    labels = np.arange(6000).reshape(120, 50) // 75 + 10
    # One that is nearly all of the image, one that hangs in two parts, and one of no data.
    labels[:, :9] = 3
    labels[5, 20], labels[110, 20] = 7, 7
    labels[50:60, 30:40], image[50:60, 30:40] = 500, np.nan
    serial = segment_stats(image, labels, STATS)
    assert np.isnan(serial['mean_b1']).any()
    for rows in (7, 40, 120):
        assert_equal_tables(serial, segment_stats(image, labels, STATS, executor=executor,
                                                  block_rows=rows, num_threads=2))


@pytest.mark.parametrize('seed', range(4))
def test_shapes_of_parts_add_up(seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, (13, 9)) * (rng.random((13, 9)) < 0.9)
    labels = np.kron(labels, np.ones((rng.integers(1, 4), 1), int))
    serial = segment_stats(None, labels, SHAPES)
    for rows in (1, 2, 5):
        for executor in ('threads:3', Pickling()):
            assert_equal_tables(serial, segment_stats(None, labels, SHAPES, executor=executor,
                                                      block_rows=rows))


@pytest.mark.parametrize('most', [10 ** 6, 50])
def test_parts_hold_each_segment_once(monkeypatch, most):
    monkeypatch.setattr(value_stats, '_MAX_SEGMENTS', most)
    rng = np.random.default_rng(2)
    first = rng.integers(0, 900, 400).astype(np.int32)
    last = np.minimum(first + rng.integers(0, 300, 400), 999).astype(np.int32)
    ids = np.flatnonzero(rng.random(400) < 0.8).astype(np.uint32)
    parts = divide_segments(ids, first, last, rows=10, n_parts=4)
    assert len(parts) == 5 if most > 400 else len(parts) > 6
    assert parts[0].stop - parts[0].first > 500
    assert max(len(part.ids) for part in parts) <= most
    assert np.array_equal(np.sort(np.concatenate([part.ids for part in parts])), ids)
    for part in parts:
        assert part.first == first[part.ids].min()
        assert part.stop == last[part.ids].max() + 1
        assert np.array_equal(part.last_rows, last[part.ids])
    # Only high segments are read from further above.
    n_high = sum(part.stop - part.first > 510 for part in parts)
    assert n_high <= 1 if most > 400 else n_high < len(parts)
    assert divide_segments(ids[:0], first, last, 10, 4) == []


def test_an_image_of_no_segments_has_an_empty_table():
    table = segment_stats(np.ones((4, 5)), np.zeros((4, 5), np.uint8), executor=Pickling())
    assert len(table.ids) == 0


def test_progress_and_timings_of_parts(path, segments):
    from cocoseg.engine.timings import Timings
    seen, timings = [], Timings()

    def progress(steps, total, desc):
        steps = list(steps)
        seen.append((desc, len(steps) == total))
        return steps
    segment_stats(path, segments, executor=Pickling(), block_rows=100, timings=timings,
                  progress=progress)
    assert seen == [('shapes', True), ('values', True)]
    assert set(timings.durations) == {'walltime', 'reading', 'shapes', 'accumulation',
                                      'completion'}


def test_a_part_that_fails_names_itself(executor):
    # The part has whole numbers that do not fit in 32 bits.
    image = np.ones((100, 20), np.int64)
    image[70, 3] = 2 ** 40
    labels = np.repeat(np.arange(1, 101), 20).reshape(100, 20)
    with pytest.raises(TaskError, match='25 segments in the rows 50 to 75 of image failed'):
        segment_stats(image, labels, ['mean'], executor=executor, block_rows=5)


def test_functions_that_cannot_be_sent_are_refused():
    labels = np.ones((4, 5), np.uint8)
    lock = threading.Lock()
    stats = [('mine', UserStat(lambda x, y, values, param: 1.0 + lock.locked()))]
    with pytest.raises(OptionError, match="function of 'mine' cannot be sent.*imported"):
        segment_stats(labels, labels, stats, executor=Pickling())
    assert segment_stats(labels, labels, stats, executor='threads:2')['mine'].tolist() == [1.0]
