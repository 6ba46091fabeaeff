"""Tiled segmentation: the reference's labels, the promises, and what is refused."""
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from cocoseg import ShepherdConfig, Window, segment_raster, shepherd_segment, verify_cog
from cocoseg.errors import (AssetWriteError, CocosegError, NodataError, OptionError, TaskError,
                            TaskTimeoutError)
from cocoseg.io.cog import write_cog
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.io.strips import Source
from cocoseg.shepherd import tiled as tiled_module

ROOT = Path(__file__).resolve().parents[2]
NAIP = ROOT / 'cocoseg' / 'coco' / 'demodata' / 'm_4709963_se_14_1_20120731.tif'
# Labels of pyshepseg 2.0.3 for this image: 30 clusters from the fixed start, over all pixels.
REFERENCE = np.load(ROOT / 'tests' / 'data' / 'pyshepseg_labels.npz')
COMPAT = ShepherdConfig(n_clusters=30, init='diagonal', compat='pyshepseg')


@pytest.fixture(scope='module')
def naip():
    """The image as (H, W, B)."""
    return read_raster(NAIP)


@pytest.fixture(scope='module')
def naip_centres():
    """Centres of its clusters, so that tests need not fit them."""
    return REFERENCE['centres_0']


def make_image(shape=(120, 140), n_bands=3, seed=0):
    """Return patches of land with noise, uint16, and a corner of nodata 0."""
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.random(shape), 4)
    classes = np.digitize(smooth, np.quantile(smooth, [0.2, 0.4, 0.6, 0.8]))
    image = rng.integers(500, 4000, (5, n_bands))[classes] + rng.normal(0, 60, (*shape, n_bands))
    image = image.astype(np.uint16)
    image[:shape[0] // 5, :shape[1] // 6] = 0
    return image


IMAGE = make_image()
CONFIG = ShepherdConfig(n_clusters=8, min_segment_size=15)


def segment(tmp_path, image=IMAGE, config=CONFIG, tile_size=48, overlap=16, **options):
    """Segment into a file; return its labels and the result."""
    options = {'nodata': 0, **options}
    result = segment_raster(image, tmp_path / 'segments.tif', config, tile_size, overlap, **options)
    return read_raster(tmp_path / 'segments.tif')[..., 0], result


# ---- labels of the reference

@pytest.mark.parametrize('executor', ['serial', 'threads:2'])
@pytest.mark.parametrize('name, tile_size, overlap, config, options', [
    ('tiled', 128, 32, COMPAT, {}),
    ('simple', 128, 32, COMPAT, {'recode': 'simple'}),
    ('tiled_null', 100, 40, COMPAT.patch(four_connected=False, min_segment_size=20),
     {'nodata': 60}),
])
def test_whole_runs_have_the_labels_of_the_reference(tmp_path, name, tile_size, overlap, config,
                                                     options, executor):
    labels, result = segment(tmp_path, NAIP, config, tile_size, overlap, executor=executor,
                             **options)
    centres = REFERENCE[f'centres_{options.get("nodata", 0)}']
    assert np.allclose(result.kmeans.cluster_centers_, centres, rtol=1e-12, atol=0)
    assert np.count_nonzero(labels != REFERENCE[name]) == 0
    counts = np.bincount(labels.ravel())
    counts[0] = 0
    assert np.array_equal(result.sizes, counts)
    assert result.n_segments == labels.max()
    # The reference never tells: its check returns nothing.
    assert result.has_empty_segments == (counts[1:] == 0).any()
    assert result.has_empty_segments == (name == 'simple')
    assert isinstance(result.max_spectral_diff, float) and result.max_spectral_diff > 0
    assert result.sample_percent == 100


def test_one_image_has_the_labels_of_the_reference(naip):
    result = shepherd_segment(naip, COMPAT, nodata=60, kmeans=REFERENCE['centres_60'])
    assert np.count_nonzero(result.labels != REFERENCE['memory_null']) == 0


# ---- promises of the default

@pytest.mark.parametrize('tile_size, overlap', [(48, 16), (64, 0), (50, 40), (1000, 100),
                                                ((30, 90), (10, 30))])
@pytest.mark.parametrize('four_connected', [True, False])
def test_segments_keep_the_promises(tmp_path, tile_size, overlap, four_connected):
    config = CONFIG.patch(four_connected=four_connected)
    labels, result = segment(tmp_path, config=config, tile_size=tile_size, overlap=overlap)
    null = (IMAGE == 0).any(axis=2)
    assert np.array_equal(labels == 0, null)
    ids, first = np.unique(labels[labels > 0], return_index=True)
    assert ids.tolist() == list(range(1, result.n_segments + 1)) and (np.diff(first) > 0).all()
    assert not result.has_empty_segments and (result.sizes[1:] > 0).all()
    structure = None if four_connected else np.ones((3, 3))
    assert all(ndimage.label(labels == number, structure)[1] == 1 for number in ids)
    means = np.array([[0, 0, 0]] + [IMAGE[labels == number].mean(axis=0) for number in ids])
    for number in np.flatnonzero((result.sizes < 15) & (result.sizes > 0)):
        around = ndimage.binary_dilation(labels == number, structure)
        for other in set(np.unique(labels[around])) - {0, number}:
            distance = np.linalg.norm(means[number] - means[other])
            assert distance > result.max_spectral_diff * (1 - 1e-9)


def test_tiles_of_the_whole_raster_give_the_segments_of_memory(tmp_path):
    labels, result = segment(tmp_path, tile_size=500, overlap=10)
    memory = shepherd_segment(IMAGE, CONFIG, nodata=0, kmeans=result.kmeans)
    assert np.array_equal(labels, memory.labels)
    assert result.grid_shape == (1, 1) and result.seams == []


def test_executors_and_orders_give_the_same_bytes(tmp_path):
    contents = set()
    for executor in ('serial', 'threads:3', _Backward()):
        segment(tmp_path, executor=executor)
        contents.add((tmp_path / 'segments.tif').read_bytes())
    assert len(contents) == 1


class _Backward:
    """An executor that ends the last task first."""

    n_workers = 1

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=False):
        tasks = list(tasks)
        for task in tasks if ordered else tasks[::-1]:
            yield task, func(task)


def test_two_threads_segment_at_the_same_time(tmp_path, monkeypatch):
    barrier, plain = threading.Barrier(2, timeout=20), tiled_module.segment_pixels
    n_met = []

    def meet(*args, **options):
        if len(n_met) < 2:
            n_met.append(1)
            barrier.wait()
        return plain(*args, **options)
    monkeypatch.setattr(tiled_module, 'segment_pixels', meet)
    labels, _ = segment(tmp_path, executor='threads:2')
    assert len(n_met) == 2 and labels.max() > 0


def test_reads_are_limited(tmp_path, monkeypatch):
    reading, most, lock = [0], [0], threading.Lock()
    plain = Source.read

    def read(self, window, bands=None):
        with lock:
            reading[0] += 1
            most[0] = max(most[0], reading[0])
        threading.Event().wait(0.005)
        try:
            return plain(self, window, bands)
        finally:
            with lock:
                reading[0] -= 1
    monkeypatch.setattr(Source, 'read', read)
    segment(tmp_path, executor='threads:4', max_concurrent_reads=1)
    assert most == [1]
    segment(tmp_path, executor='threads:4')
    assert most[0] > 1


def test_simple_recode_keeps_tiles_apart(tmp_path):
    config = CONFIG.patch(min_segment_size=1)
    labels, result = segment(tmp_path, recode='simple', tile_size=(70, 140), config=config)
    assert result.grid_shape == (2, 1)
    middle = 120 // 2
    assert not set(np.unique(labels[:middle])) & set(np.unique(labels[middle:])) - {0}
    matched, _ = segment(tmp_path, tile_size=(70, 140), config=config)
    assert set(np.unique(matched[:middle])) & set(np.unique(matched[middle:])) - {0}


def test_all_of_no_data_is_all_null(tmp_path):
    for config in (CONFIG, CONFIG.patch(compat='pyshepseg')):
        labels, result = segment(tmp_path, np.zeros((50, 60, 2), np.uint8), config)
        assert not labels.any() and result.n_segments == 0 and result.kmeans is None
        assert np.isnan(result.max_spectral_diff) and result.sizes.tolist() == [0]


def test_nan_is_no_data(tmp_path):
    image = IMAGE.astype(np.float32)
    image[IMAGE == 0] = np.nan
    image[50, 60, 1] = np.nan
    labels, _ = segment(tmp_path, image, nodata=None)
    assert np.array_equal(labels == 0, np.isnan(image).any(axis=2))


def test_bands_and_clusters_can_be_chosen(tmp_path):
    _, first = segment(tmp_path, bands=[2, 0])
    assert first.kmeans.cluster_centers_.shape == (8, 2)
    labels, again = segment(tmp_path, bands=[2, 0], kmeans=first.kmeans)
    assert again.sample_percent is None and again.kmeans is first.kmeans
    plain, _ = segment(tmp_path, IMAGE[:, :, [2, 0]], kmeans=first.kmeans.cluster_centers_)
    assert np.array_equal(labels, plain)


# ---- files

def test_file_is_a_cog_with_the_place_of_the_raster(tmp_path):
    transform = (500000.0, 10.0, 0.0, 4000000.0, 0.0, -10.0)
    write_cog(tmp_path / 'image.tif', np.kron(IMAGE, np.ones((6, 6, 1), np.uint16)), nodata=0,
              crs=32618, transform=transform)
    result = segment_raster(tmp_path / 'image.tif', tmp_path / 'segments.tif', CONFIG, 512, 64)
    assert verify_cog(tmp_path / 'segments.tif', full=True).dtype == 'uint32'
    info = raster_info(tmp_path / 'segments.tif')
    assert (info.nodata, info.epsg, info.geotransform) == (0, 32618, transform)
    assert info.channels == ('segments',) and info.overview_count > 0
    assert result.path == os.fspath(tmp_path / 'segments.tif')
    assert sorted(os.listdir(tmp_path)) == ['image.tif', 'segments.tif']
    # Overviews hold ids, not means of ids.
    from cocoseg.io.raster import open_dataset
    with open_dataset(tmp_path / 'segments.tif') as dataset:
        small = dataset.GetRasterBand(1).GetOverview(0).ReadAsArray()
    assert np.array_equal(small, read_raster(tmp_path / 'segments.tif')[::2, ::2, 0])


def test_timings_have_every_stage(tmp_path):
    _, result = segment(tmp_path, executor='threads:2')
    summary = result.timings.summary()
    assert set(summary) == {'walltime', 'sampling', 'spectralclusters', 'reading', 'segmentation',
                            'waiting', 'stitchtiles', 'writing'}
    n_tiles = result.grid_shape[0] * result.grid_shape[1]
    assert summary['segmentation']['count'] == summary['reading']['count'] == n_tiles
    assert result.format_timings().startswith('Segmentation timings (s)\nWalltime: ')


def test_table_and_colors(tmp_path):
    _, result = segment(tmp_path, table=tmp_path / 'segments.csv', colors=3)
    lines = (tmp_path / 'segments.csv').read_text().splitlines()
    assert lines[0] == 'segment,n_pixels,red,green,blue'
    assert len(lines) == result.n_segments + 1
    assert [int(line.split(',')[1]) for line in lines[1:]] == result.sizes[1:].tolist()


@pytest.mark.parametrize('config', [CONFIG, CONFIG.patch(compat='pyshepseg')])
def test_formats_with_attribute_tables(tmp_path, config):
    result = segment_raster(IMAGE, tmp_path / 'segments.img', config, 48, 16, nodata=0,
                            driver='HFA', creation_options=['COMPRESSED=YES'], colors=0)
    cog, _ = segment(tmp_path, config=config)
    assert np.array_equal(read_raster(tmp_path / 'segments.img')[..., 0], cog)
    from cocoseg.io.raster import open_dataset
    with open_dataset(tmp_path / 'segments.img') as dataset:
        band = dataset.GetRasterBand(1)
        table = band.GetDefaultRAT()
        names = [table.GetNameOfCol(index) for index in range(table.GetColumnCount())]
        histogram = table.ReadAsArray(names.index('Histogram'))
        assert band.GetMetadataItem('LAYER_TYPE') == 'thematic'
        del band, table
    assert np.array_equal(histogram, result.sizes)
    assert {'Red', 'Green', 'Blue'} <= set(names)
    assert sorted(os.listdir(tmp_path)) == ['segments.img', 'segments.tif']


# ---- what is refused, before anything takes long

@pytest.fixture
def no_fit(monkeypatch):
    """Fail if clusters are fitted or tiles are segmented."""
    def refuse(*args, **options):
        raise AssertionError('long work was begun')
    for name in ('fit_lazily', 'segment_pixels', 'sample_raster'):
        monkeypatch.setattr(tiled_module, name, refuse)


@pytest.mark.parametrize('options, message', [
    ({'overlap': 15}, 'overlap=15 px is odd'),
    ({'tile_size': 16, 'overlap': 16}, 'below tile_size=16'),
    ({'tile_size': 16, 'overlap': 40}, 'below tile_size=16'),
    ({'overlap': -2}, 'overlap=-2'),
    ({'tile_size': 0}, 'tile_size'),
    ({'tile_size': 33.5}, 'tile_size'),
    ({'executor': 'thread'}, "executor='thread'"),
    ({'recode': 'best'}, "recode='best'"),
    ({'bands': [0, 3]}, 'bands='),
    ({'bands': []}, 'bands='),
    ({'driver': 'GTiff'}, 'GTiff'),
    ({'creation_options': ['A=B']}, 'creation_options'),
    ({'colors': 1}, 'colors'),
    ({'table': 'segments.xls'}, 'xls'),
    ({'max_concurrent_reads': 0}, 'max_concurrent_reads=0'),
    ({'tile_timeout': 0}, 'tile_timeout=0'),
    ({'num_threads': 0}, 'num_threads=0'),
    ({'kmeans': np.zeros((4, 2))}, 'bands'),
    ({'compress': 'JPEG'}, 'JPEG'),
    ({'blocksize': 100}, 'blocksize=100'),
    ({'nodata': 'none'}, "nodata='none'"),
])
def test_options_that_cannot_be(tmp_path, monkeypatch, no_fit, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CocosegError, match=message):
        segment(tmp_path, **options)
    assert os.listdir(tmp_path) == []


def test_fewer_colors_than_clusters(tmp_path, monkeypatch):
    monkeypatch.setattr(tiled_module, 'segment_pixels', None)
    image = np.array([[1, 2, 3] * 20] * 30, np.uint8)
    with pytest.raises(OptionError, match='3.*8'):
        segment(tmp_path, image)
    assert os.listdir(tmp_path) == []


def test_bands_that_differ_in_nodata(tmp_path, no_fit):
    from osgeo import gdal
    name = os.fspath(tmp_path / 'image.vrt')
    for index, nodata in enumerate((0, 255)):
        write_cog(tmp_path / f'{index}.tif', np.ones((20, 20), np.uint8), nodata=nodata)
    gdal.BuildVRT(name, [os.fspath(tmp_path / f'{index}.tif') for index in (0, 1)],
                  separate=True).FlushCache()
    with pytest.raises(NodataError, match=r'0.*255.*nodata='):
        segment_raster(name, tmp_path / 'out.tif', CONFIG)
    with pytest.raises(AssertionError, match='long work'):
        segment_raster(name, tmp_path / 'out.tif', CONFIG, bands=[1])
    with pytest.raises(AssertionError, match='long work'):
        segment_raster(name, tmp_path / 'out.tif', CONFIG, nodata=7)


def test_output_that_cannot_be_written(tmp_path, no_fit):
    for place in (tmp_path / 'no' / 'such' / 'folder.tif', tmp_path):
        with pytest.raises(AssetWriteError):
            segment_raster(IMAGE, place, CONFIG, 48, 16)
    with pytest.raises(AssetWriteError):
        segment_raster(IMAGE, tmp_path / 'a.tif', CONFIG, 48, 16,
                       table=tmp_path / 'none' / 'a.csv')
    with pytest.raises(FileNotFoundError):
        segment_raster(tmp_path / 'missing.tif', tmp_path / 'a.tif', CONFIG)
    assert os.listdir(tmp_path) == []


# ---- errors on the way

@pytest.mark.parametrize('executor', ['serial', 'threads:2'])
@pytest.mark.parametrize('driver', ['COG', 'HFA'])
def test_an_error_in_a_tile_names_it_and_leaves_nothing(tmp_path, monkeypatch, executor, driver):
    plain = Source.read

    def read(self, window, bands=None):
        if window.contains(Window(50, 70, 51, 71)) and window.shape[0] < 100:
            raise OSError(5, 'Input/output error (simulated)')
        return plain(self, window, bands)
    kmeans = segment(tmp_path)[1].kmeans
    os.unlink(tmp_path / 'segments.tif')
    monkeypatch.setattr(Source, 'read', read)
    with pytest.raises(TaskError, match=r'tile \(\d, \d\) at Window.*simulated') as caught:
        segment(tmp_path, executor=executor, kmeans=kmeans, driver=driver)
    assert isinstance(caught.value.__cause__, OSError)
    assert isinstance(caught.value.task, Window)
    assert os.listdir(tmp_path) == []


def test_a_tile_that_takes_too_long(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(tiled_module, 'segment_pixels', lambda *args, **options: release.wait(20))
    with pytest.raises(TaskTimeoutError, match='tile'):
        segment(tmp_path, executor='threads:2', tile_timeout=0.2)
    release.set()
    assert os.listdir(tmp_path) == []


def test_an_interrupt_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    (tmp_path / 'segments.tif').write_text('old')

    def interrupt(steps, total, desc):
        for number, step in enumerate(steps):
            if number == 2:
                raise KeyboardInterrupt
            yield step
    with pytest.raises(KeyboardInterrupt):
        segment(tmp_path, progress=interrupt, executor='threads:2')
    assert os.listdir(tmp_path) == ['segments.tif']
    assert (tmp_path / 'segments.tif').read_text() == 'old'


def test_progress_sees_every_tile(tmp_path):
    seen = []

    def progress(steps, total, desc):
        assert desc == 'segment'
        for step in steps:
            seen.append(step[0])
            yield step
        assert len(seen) == total
    _, result = segment(tmp_path, progress=progress)
    assert len(seen) == result.grid_shape[0] * result.grid_shape[1]
