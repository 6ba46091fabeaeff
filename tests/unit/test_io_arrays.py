"""The doors of a block run: what can be read, and the two ends of what is written."""
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pytest

from cocoseg import BlockGrid, Box, Window, write_cog
from cocoseg.errors import (
    AssetWriteError, CoverageError, ImageClosedError, MissingDependencyError, OptionError,
    WindowShapeError)
from cocoseg.io.array_sources import MappedPlace
from cocoseg.io.arrays import check_sink, open_sink, open_source
from cocoseg.io.exactness import holds
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.io.strips import Source
from cocoseg.protocols import BlockSink, BlockSource, MemorySink, MemorySource

IMAGE = np.random.default_rng(0).integers(0, 200, (70, 90, 3)).astype(np.uint16)
VOLUME = np.random.default_rng(1).integers(0, 200, (5, 6, 7, 2)).astype(np.int16)
GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -10)}


def write_blocks(sink, pixels, block=4):
    """Write an array block by block, in no order."""
    ndim = len(sink.shape) - 1
    grid = list(BlockGrid(pixels.shape, (block,) * ndim))
    for index in np.random.default_rng(0).permutation(len(grid)):
        sink.write_block(grid[index].core, pixels[grid[index].core.slices])


# ---- sources -------------------------------------------------------------------

def test_images_are_read_alike_from_files_arrays_and_maps(tmp_path):
    write_cog(tmp_path / 'a.tif', IMAGE, **GEO)
    np.save(tmp_path / 'a.npy', IMAGE)
    mapped = np.load(tmp_path / 'a.npy', mmap_mode='r')
    for obj in (tmp_path / 'a.tif', str(tmp_path / 'a.tif'), IMAGE, mapped, MemorySource(IMAGE)):
        source = open_source(obj)
        assert isinstance(source, BlockSource)
        assert (source.shape, source.dtype) == (IMAGE.shape, IMAGE.dtype)
        np.testing.assert_array_equal(source.read(Window(3, 5, 20, 21)), IMAGE[3:20, 5:21])
    assert open_source(tmp_path / 'a.tif').geotransform == GEO['transform']
    assert np.shares_memory(open_source(IMAGE).read(Window(0, 0, 4, 4)), IMAGE)
    assert np.shares_memory(open_source(mapped).read(Window(0, 0, 4, 4)), mapped)


@pytest.mark.parametrize('pixels, ndim, shape', [
    (IMAGE, 2, (70, 90, 3)), (IMAGE[..., 0], 2, (70, 90, 1)), (IMAGE, 3, (70, 90, 3, 1)),
    (VOLUME, 3, (5, 6, 7, 2)), (VOLUME[..., 0], 3, (5, 6, 7, 1))],
    ids=['image', 'plane', 'volume of 3 axes', 'volume', 'volume without channels'])
def test_axes_are_counted(pixels, ndim, shape):
    source = open_source(pixels, ndim)
    assert source.shape == shape
    box = Box((1,) * ndim, (3,) * ndim)
    np.testing.assert_array_equal(source.read(box), pixels.reshape(shape)[box.slices])


def test_true_and_false_stay_so():
    for ndim in (2, 3):
        assert open_source(np.ones((2, 3, 4), bool), ndim).dtype == bool


def test_a_source_is_returned_as_it_is():
    source = Source.open(IMAGE, 'mine')
    assert open_source(source) is source
    with pytest.raises(OptionError, match='3 axes'):
        open_source(source, ndim=3)


@pytest.mark.parametrize('obj, ndim, match', [
    (np.ones(3), 2, 'shape'), (np.ones((1, 2, 3, 4)), 2, 'shape'), (np.ones((2, 3)), 3, 'shape'),
    (np.ones((0, 3)), 2, 'empty'), (np.ones((0, 3, 3)), 3, 'empty'),
    (np.ones((2, 3), complex), 2, 'complex'), (np.ones((2, 3, 4), complex), 3, 'complex'),
    (np.ma.ones((2, 3)), 2, 'masked'), (np.ma.ones((2, 3, 4)), 3, 'masked'),
    ([[1, 2]], 2, 'builtins.list'), (3, 2, 'builtins.int'), (None, 2, 'None'),
    ('a.tif', 3, 'image'), (IMAGE, 4, 'ndim')],
    ids=lambda value: str(getattr(value, 'shape', value)))
def test_wrong_sources(obj, ndim, match):
    with pytest.raises(OptionError, match=match):
        open_source(obj, ndim)


def test_options_of_another_kind_of_source_are_refused():
    with pytest.raises(OptionError, match='CocoImage'):
        open_source(IMAGE, channels='r')
    with pytest.raises(OptionError, match='CocoImage'):
        open_source(IMAGE, space='video')


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_source(tmp_path / 'no.tif')


# ---- memory maps ---------------------------------------------------------------

PARTS = {'all': np.s_[:], 'rows': np.s_[3:], 'steps': np.s_[10:60:3, 5:], 'back': np.s_[::-1],
         'band': np.s_[..., 1], 'turned': np.s_[...]}


@pytest.mark.parametrize('part', PARTS)
@pytest.mark.parametrize('offset', [0, 5000])
def test_any_part_of_a_map_is_pickled_as_its_place(tmp_path, part, offset):
    mapped = np.memmap(tmp_path / 'a.bin', IMAGE.dtype, 'w+', offset, IMAGE.shape)
    mapped[:] = IMAGE
    pixels = mapped[PARTS[part]]
    pixels = np.swapaxes(pixels, 0, 1) if part == 'turned' else pixels
    for ndim in {2, pixels.ndim}:
        data = pickle.dumps(open_source(pixels, ndim, 'mine'))
        assert len(data) < 1000
        found = pickle.loads(data)
        assert found.name == 'mine' and found.dtype == IMAGE.dtype
        whole = Box.from_shape(found.shape[:-1])
        np.testing.assert_array_equal(found.read(whole), pixels.reshape(found.shape))
        assert not found.read(whole).flags.writeable


def test_maps_that_differ_from_their_file_go_as_arrays(tmp_path):
    np.save(tmp_path / 'a.npy', IMAGE)
    mapped = np.load(tmp_path / 'a.npy', mmap_mode='c')
    mapped[0, 0] = 99
    assert MappedPlace.find(mapped) is None
    found = pickle.loads(pickle.dumps(open_source(mapped)))
    np.testing.assert_array_equal(found.read(Window(0, 0, 1, 1)), [[[99, 99, 99]]])
    assert MappedPlace.find(IMAGE) is None
    assert pickle.loads(pickle.dumps(open_source(VOLUME, 3))).pixels.tolist() == VOLUME.tolist()


# ---- images of datasets ----------------------------------------------------------

@pytest.fixture
def coco_image(tmp_path):
    """An image of 40 x 30 px: a red and a green band, and one at half the resolution."""
    import kwcoco
    write_cog(tmp_path / 'rg.tif', IMAGE[:40, :30, :2].astype(np.int16), nodata=7)
    write_cog(tmp_path / 'half.tif', IMAGE[:20, :15, 2])
    dset = kwcoco.CocoDataset()
    dset.fpath = str(tmp_path / 'data.kwcoco.json')
    video_id = dset.add_video(name='video', width=80, height=60)
    image_id = dset.add_image(
        name='image', width=30, height=40, video_id=video_id, frame_index=0, file_name=None,
        warp_img_to_vid={'type': 'affine', 'scale': 2}, auxiliary=[
            {'file_name': 'rg.tif', 'channels': 'r|g', 'width': 30, 'height': 40,
             'warp_aux_to_img': None},
            {'file_name': 'half.tif', 'channels': 'nir', 'width': 15, 'height': 20,
             'warp_aux_to_img': {'type': 'affine', 'scale': 2}}])
    return dset.coco_image(image_id)


def test_coco_images_are_read_where_asked_with_nan_for_nodata(coco_image):
    source = open_source(coco_image, name='mine')
    assert isinstance(source, BlockSource) and source.name == 'mine image'
    assert source.shape == (40, 30, 3) and source.channels == ('r', 'g', 'nir')
    assert source.dtype.kind == 'f'
    expected = IMAGE[:40, :30, :2].astype(float)
    expected[expected == 7] = np.nan
    assert np.isnan(expected).any()
    window = Window(3, 5, 31, 30)
    found = source.read(window)
    assert found.dtype == source.dtype and found.flags.c_contiguous
    np.testing.assert_array_equal(found[..., :2], expected[window.slices])
    whole = coco_image.imdelay('r|g|nir', nodata_method='float').finalize()
    np.testing.assert_allclose(source.read(Window(0, 0, 40, 30)), whole)
    assert [os.path.basename(path) for path in source.fpaths] == ['rg.tif', 'half.tif']
    assert all(map(os.path.exists, source.fpaths))


def test_coco_images_in_space_of_their_video(coco_image):
    source = open_source(coco_image, channels='g', space='video')
    assert source.shape == (60, 80, 1)
    whole = coco_image.imdelay('g', space='video', nodata_method='float').finalize()
    np.testing.assert_allclose(source.read(Window(0, 0, 60, 80)), whole)


def test_coco_images_are_read_by_threads_and_go_to_processes(coco_image):
    source = open_source(coco_image, channels='g|r', name='mine')
    whole = source.read(Window(0, 0, 40, 30))
    found = {}

    def read(block):
        found[block.core] = source.read(block.core)

    threads = [threading.Thread(target=read, args=(block,)) for block in BlockGrid((40, 30), 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for window, part in found.items():
        np.testing.assert_array_equal(part, whole[window.slices])
    assert len(found) == len(threads)
    data = pickle.dumps(source)
    assert len(data) < 5000 and coco_image.dset is not None
    other = pickle.loads(data)
    assert (other.name, other.shape, other.channels) == (
        'mine image', source.shape, ('g', 'r'))
    np.testing.assert_array_equal(other.read(Window(0, 0, 40, 30)), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(other)).read(Window(1, 2, 9, 9)),
                                  whole[1:9, 2:9])


@pytest.mark.parametrize('options, match', [
    ({'channels': 'r|blue'}, 'blue'), ({'space': 'world'}, 'space'), ({'ndim': 3}, 'two axes')])
def test_wrong_wishes_of_coco_images(coco_image, options, match):
    with pytest.raises(OptionError, match=match):
        open_source(coco_image, **options)


def test_space_of_a_video_that_an_image_does_not_have(coco_image):
    del coco_image.img['video_id']
    with pytest.raises(OptionError, match='no video'):
        open_source(coco_image, space='video')


def test_delayed_images_are_computed_where_read(coco_image):
    delayed = coco_image.imdelay('r').scale(2)
    source = open_source(delayed, name='twice')
    assert isinstance(source, BlockSource) and source.shape == (80, 60, 1)
    np.testing.assert_allclose(source.read(Window(10, 0, 30, 60)),
                               delayed.crop((slice(10, 30), slice(0, 60))).finalize())
    with pytest.raises(CoverageError, match='clip'):
        source.read(Window(0, 0, 81, 60))
    with pytest.raises(OptionError, match='CocoImage'):
        pickle.dumps(source)


def test_delayed_images_without_a_size(tmp_path):
    from delayed_image import DelayedLoad
    with pytest.raises(OptionError, match='prepare'):
        open_source(DelayedLoad(tmp_path / 'a.tif'))


# ---- sinks: arrays ---------------------------------------------------------------

def test_a_new_array():
    for pixels in (IMAGE, VOLUME):
        with open_sink(None, pixels.shape, pixels.dtype) as sink:
            assert isinstance(sink, BlockSink)
            write_blocks(sink, pixels)
        assert sink.output is sink.commit()
        np.testing.assert_array_equal(sink.output, pixels)
        assert sink.output.dtype == pixels.dtype


@pytest.mark.parametrize('pixels, dst', [
    (IMAGE, np.zeros(IMAGE.shape, np.float32)), (IMAGE[..., :1], np.zeros((70, 90), np.int64)),
    (VOLUME, np.zeros(VOLUME.shape, np.int16)), (VOLUME[..., :1], np.zeros((5, 6, 7), np.int16)),
    (IMAGE[..., :1] > 99, np.zeros((70, 90, 1), np.uint8))],
    ids=['wider', 'plane', 'volume', 'volume without channels', 'mask'])
def test_an_array_is_filled_in_place(pixels, dst):
    sink = open_sink(dst, pixels.shape, pixels.dtype)
    write_blocks(sink, pixels)
    assert sink.commit() is dst
    np.testing.assert_array_equal(dst.reshape(pixels.shape), pixels)


def test_a_map_is_filled_and_flushed(tmp_path):
    dst = np.memmap(tmp_path / 'a.bin', np.int16, 'w+', 0, VOLUME.shape)
    sink = open_sink(dst, VOLUME.shape, VOLUME.dtype)
    write_blocks(sink, VOLUME)
    assert sink.commit() is dst
    np.testing.assert_array_equal(np.fromfile(tmp_path / 'a.bin', np.int16).reshape(VOLUME.shape),
                                  VOLUME)


def make_locked():
    pixels = np.zeros((4, 5))
    pixels.flags.writeable = False
    return pixels


@pytest.mark.parametrize('dst, dtype, match', [
    (np.zeros((4, 6)), 'uint8', 'shape'), (np.zeros((4, 5, 2)), 'uint8', 'shape'),
    (np.zeros((4, 5), 'uint8'), 'int16', 'cannot hold'),
    (np.zeros((4, 5), 'float32'), 'uint32', 'cannot hold'),
    (np.zeros((4, 5)), 'uint64', 'cannot hold'), (make_locked(), 'uint8', 'written'),
    (np.ma.zeros((4, 5)), 'uint8', 'written')],
    ids=['shape', 'channels', 'signed', 'rounded', 'rounded in 64 bits', 'locked', 'masked'])
def test_arrays_that_cannot_be_filled(dst, dtype, match):
    before = np.array(dst)
    with pytest.raises(OptionError, match=match):
        open_sink(dst, (4, 5, 1), dtype)
    np.testing.assert_array_equal(before, dst)


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int32', 'uint32', 'int64', 'uint64'])
@pytest.mark.parametrize('other', ['uint8', 'int32', 'uint32', 'int64', 'uint64', 'float32',
                                   'float64'])
def test_holds_is_what_the_extremes_say(dtype, other):
    values = [False, True] if dtype == 'bool' else [
        int(np.iinfo(dtype).min), int(np.iinfo(dtype).max), int(np.iinfo(dtype).max) - 1]
    with np.errstate(all='ignore'):
        try:
            exact = all(int(np.array(value, dtype).astype(other)) == value for value in values)
        except OverflowError:
            exact = False
    if np.dtype(other).kind != 'f':
        # A cast between whole numbers may wrap there and back.
        info = np.iinfo(other)
        exact = all(info.min <= value <= info.max for value in values)
    assert holds(other, dtype) == exact


# ---- sinks: any ------------------------------------------------------------------

SINKS = ['array', 'tif', 'sink']


@pytest.fixture(params=SINKS)
def opened(request, tmp_path):
    """A sink of 8 x 8 px, int16, of each kind."""
    dst = {'array': None, 'tif': tmp_path / 'a.tif', 'sink': MemorySink()}[request.param]
    sink = open_sink(dst, (8, 8, 1), 'int16', **({'nodata': 0} if request.param == 'tif' else {}))
    yield sink
    sink.abort()


def test_blocks_that_do_not_fit(opened):
    ones = np.ones((4, 4, 1), np.int16)
    with pytest.raises(WindowShapeError, match='shape'):
        opened.write_block(Window(0, 0, 4, 3), ones)
    with pytest.raises(CoverageError, match='leaves'):
        opened.write_block(Window(6, 0, 10, 4), ones)
    with pytest.raises(CoverageError, match='leaves'):
        opened.write_block(Box((0, 0, 0), (4, 4, 1)), ones)
    with pytest.raises(OptionError, match='cannot hold'):
        opened.write_block(Window(0, 0, 4, 4), ones.astype(np.int32))
    # What was refused was not taken.
    opened.write_block(Window(0, 0, 4, 4), ones)
    with pytest.raises(CoverageError, match='before'):
        opened.write_block(Window(0, 0, 4, 4), ones)
    with pytest.raises(CoverageError, match='16 of 64'):
        opened.commit()
    for y, x in ((0, 4), (4, 0), (4, 4)):
        # Narrower, and without channels.
        opened.write_block(Window(y, x, y + 4, x + 4), np.ones((4, 4), np.uint8))
    opened.commit()
    with pytest.raises(ImageClosedError):
        opened.write_block(Window(0, 0, 4, 4), ones)
    assert opened.commit() is opened.output
    opened.abort()


def test_missing_blocks_may_be_left(opened):
    opened.write_block(Window(0, 0, 4, 8), np.ones((4, 8), np.int16))
    output = opened.commit(fill_missing=True)
    if isinstance(output, str):
        output = read_raster(output)
    if isinstance(output, np.ndarray):
        assert output[:4].min() == 1 and output[4:].max() == 0


def test_after_an_abort_there_is_no_end(opened, tmp_path):
    with pytest.raises(RuntimeError, match='mine'), opened:
        opened.write_block(Window(0, 0, 4, 4), np.ones((4, 4), np.int16))
        raise RuntimeError('mine')
    with pytest.raises(ImageClosedError, match='abort'):
        opened.commit()
    with pytest.raises(ImageClosedError):
        opened.write_block(Window(0, 4, 4, 8), np.ones((4, 4), np.int16))
    assert os.listdir(tmp_path) == [] and opened.output is None


def test_a_block_that_could_not_be_stored_is_given_again():
    class Failing(MemorySink):
        fails = True

        def write_block(self, window, block):
            if self.fails:
                raise OSError('full')
            super().write_block(window, block)

    inner = Failing()
    sink = open_sink(inner, (4, 4, 1), 'uint8')
    with pytest.raises(OSError, match='full'):
        sink.write_block(Window(0, 0, 4, 4), np.ones((4, 4, 1), np.uint8))
    with pytest.raises(CoverageError, match='0 of 16'):
        sink.commit()
    inner.fails = False
    sink.write_block(Window(0, 0, 4, 4), np.ones((4, 4, 1), np.uint8))
    assert sink.commit() is inner and inner.as_array().all()


def test_threads_write_at_a_time():
    sink = open_sink(None, (64, 64, 1), 'int64')
    blocks = list(BlockGrid((64, 64), 8))
    errors = []

    def write(part):
        for number in part:
            try:
                sink.write_block(blocks[number].core, np.full((8, 8, 1), number))
            except CoverageError:
                errors.append(number)

    # Every block is given twice: one of them wins.
    threads = [threading.Thread(target=write, args=(range(first, 64, 2),))
               for first in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(errors) == list(range(64))
    np.testing.assert_array_equal(sink.commit()[::8, ::8, 0].ravel(), np.arange(64))


@pytest.mark.parametrize('dst, shape, options, match', [
    (3, (4, 5, 1), {}, 'builtins.int'), ('a.png', (4, 5, 1), {}, r'\.tif'),
    (None, (4, 5), {}, 'shape'), (None, (4, 0, 1), {}, 'shape'),
    (None, (4, 5, 1), {'nodata': 0}, 'nodata'), (None, (4, 5, 1), {'dtype': 'U3'}, '<U3'),
    (None, (4, 5, 1), {'like': MemorySource(np.ones((4, 6, 1)))}, 'like')],
    ids=['kind', 'suffix', 'axes', 'empty', 'options', 'dtype', 'like'])
def test_wrong_sinks(dst, shape, options, match):
    with pytest.raises(OptionError, match=match):
        open_sink(dst, shape, **{'dtype': 'uint8', **options})


# ---- sinks: GeoTIFF ---------------------------------------------------------------

def test_a_geotiff_lies_where_its_source_does(tmp_path):
    write_cog(tmp_path / 'a.tif', IMAGE, **GEO)
    source = open_source(tmp_path / 'a.tif')
    with open_sink(tmp_path / 'b.tif', IMAGE.shape, IMAGE.dtype, like=source, nodata=7,
                   channels='r|g|b', blocksize=64) as sink:
        write_blocks(sink, IMAGE, 30)
        assert os.listdir(tmp_path) == ['a.tif']
    assert sink.output == str(tmp_path / 'b.tif')
    info = raster_info(tmp_path / 'b.tif')
    assert (info.geotransform, info.epsg, info.nodata) == (GEO['transform'], 32618, 7)
    assert info.channels == ('r', 'g', 'b') and info.blocksize == (64, 64)
    np.testing.assert_array_equal(read_raster(tmp_path / 'b.tif'), IMAGE)
    # What is said goes before what the source tells.
    with open_sink(tmp_path / 'c.tif', (70, 90, 1), 'uint8', like=source, crs=4326) as sink:
        sink.write_block(Window(0, 0, 70, 90), np.ones((70, 90), np.uint8))
    assert raster_info(tmp_path / 'c.tif').epsg == 4326


def test_a_geotiff_holds_masks_as_one_and_zero(tmp_path):
    mask = IMAGE[..., :1] > 99
    with open_sink(tmp_path / 'a.tif', mask.shape, bool, overviews='nearest') as sink:
        write_blocks(sink, mask, 30)
    found = read_raster(tmp_path / 'a.tif')
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, mask)


def test_a_file_that_exists_is_replaced_if_wanted_and_at_the_end_only(tmp_path):
    write_cog(tmp_path / 'a.tif', np.ones((4, 4), np.uint8))
    with pytest.raises(OptionError, match='overwrite'):
        open_sink(tmp_path / 'a.tif', (4, 4, 1), 'uint8')
    for ending in ('abort', 'commit'):
        sink = open_sink(tmp_path / 'a.tif', (4, 4, 1), 'uint8', overwrite=True)
        sink.write_block(Window(0, 0, 4, 4), np.full((4, 4), 5, np.uint8))
        assert read_raster(tmp_path / 'a.tif').max() == 1
        getattr(sink, ending)()
        assert os.listdir(tmp_path) == ['a.tif']
    assert read_raster(tmp_path / 'a.tif').min() == 5


@pytest.mark.parametrize('shape, options, match', [
    ((4, 4, 4, 1), {}, 'volumes'), ((4, 4, 1), {'voxel_size': 4}, 'voxel_size'),
    ((4, 4, 1), {'dtype': 'int64'}, 'int64'), ((4, 4, 1), {'compress': 'JPEG'}, 'JPEG')],
    ids=['volume', 'option', 'dtype', 'value'])
def test_wrong_geotiffs(tmp_path, shape, options, match):
    with pytest.raises(OptionError, match=match):
        open_sink(tmp_path / 'a.tif', shape, **{'dtype': 'uint8', **options})
    assert os.listdir(tmp_path) == []


def test_outputs_are_checked_before_their_pixels_are_known(tmp_path):
    write_cog(tmp_path / 'a.tif', np.ones((4, 4), np.uint8))
    for good in (None, np.zeros(3), MemorySink(), tmp_path / 'b.tif', str(tmp_path / 'B.TIFF')):
        check_sink(good)
    check_sink(tmp_path / 'a.tif', overwrite=True)
    for wrong in (tmp_path / 'a.tif', tmp_path, 'a.png', 3, make_locked()):
        with pytest.raises(OptionError):
            check_sink(wrong)
    with pytest.raises(AssetWriteError):
        check_sink(tmp_path / 'no' / 'a.tif')
    assert os.listdir(tmp_path) == ['a.tif']


def test_without_zarr_all_else_works(repo_root):
    code = ('import sys; sys.modules["zarr"] = None\n'
            'import numpy as np\n'
            'from cocoseg.errors import MissingDependencyError\n'
            'from cocoseg.io.arrays import open_sink, open_source\n'
            'assert open_source(np.ones((2, 3))).shape == (2, 3, 1)\n'
            'open_sink(None, (2, 3, 1), "uint8").abort()\n'
            'for call in (lambda: open_source("a.zarr"), lambda: '
            'open_sink("a.zarr", (2, 3, 1), "u1")):\n'
            '    try:\n        call()\n'
            '    except MissingDependencyError as ex:\n'
            '        assert "cocoseg[zarr]" in str(ex)\n'
            '    else:\n        raise SystemExit("no error")\n')
    done = subprocess.run([sys.executable, '-c', code], cwd=repo_root, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert issubclass(MissingDependencyError, ImportError)
