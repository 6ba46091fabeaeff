"""Zarr arrays: by region in world units, by block in voxels, and how they appear."""
import json
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from cocoseg import BlockGrid, Box, Window
from cocoseg.errors import (
    AssetWriteError, CoverageError, OptionError, WindowShapeError)
from cocoseg.grid.roi import Roi
from cocoseg.io import zarr_place
from cocoseg.io.arrays import check_sink, open_sink, open_source
from cocoseg.io.zarr_array import ZarrArray
from cocoseg.io.zarr_layout import VolumeLayout, choose_chunks
from cocoseg.io.zarr_place import ArrayIdentifier, find_node
from cocoseg.protocols import BlockSink, BlockSource

zarr = pytest.importorskip('zarr', minversion='3')

VOLUME = np.random.default_rng(1).integers(0, 200, (5, 6, 7, 2)).astype(np.int16)
IMAGE = VOLUME[:, :, 0]
# A volume of 5 x 6 x 7 voxels, and an image of 5 x 6.
PLACE = {3: Roi((400, 8, -4), (200, 24, 28)), 2: Roi((400, 8), (200, 24))}
SIZE = {3: (40, 4, 4), 2: (40, 4)}
AXES = {3: 'zyx', 2: 'yx'}


def make_array(path, ndim=3, **options):
    """Create an array with two channels in front."""
    wanted = {'axes': 'c' + AXES[ndim], 'roi': PLACE[ndim], 'num_channels': 2,
              'voxel_size': SIZE[ndim], 'dtype': 'int16', **options}
    keys = ('axes', 'roi', 'num_channels', 'voxel_size', 'dtype')
    return ZarrArray.create(path, *(wanted.pop(key) for key in keys), **wanted)


def list_hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith('.')]


# ---- names -----------------------------------------------------------------------

@pytest.mark.parametrize('text, container, dataset', [
    ('/a/b.zarr', '/a/b.zarr', ''), ('/a/b.zarr/', '/a/b.zarr', ''),
    ('b.zarr/volumes/raw', 'b.zarr', 'volumes/raw'), ('b.zarr/c.zarr/d', 'b.zarr', 'c.zarr/d'),
    (Path('/a/b.zarr/raw'), '/a/b.zarr', 'raw'), ('s3://x/b.zarr/raw', 's3://x/b.zarr', 'raw')])
def test_identifiers_are_spelled_by_paths(text, container, dataset):
    identifier = ArrayIdentifier.parse(text)
    assert (identifier.container, identifier.dataset) == (container, dataset)
    assert ArrayIdentifier.parse(str(identifier)) == identifier
    assert pickle.loads(pickle.dumps(identifier)) == identifier
    assert identifier.is_remote == str(text).startswith('s3')


def test_identifiers_of_other_classes_and_of_nothing():
    class LocalArrayIdentifier:
        container, dataset = Path('/a/b.n'), 'raw'

    assert ArrayIdentifier.parse(LocalArrayIdentifier()) == ArrayIdentifier('/a/b.n', 'raw')
    for wrong in ('a.tif', 3, None):
        with pytest.raises(OptionError, match='Zarr'):
            ArrayIdentifier.parse(wrong)
    for container, dataset in (('', 'a'), ('/', ''), ('a.zarr', '../b')):
        with pytest.raises(OptionError, match='container'):
            ArrayIdentifier(container, dataset)


@pytest.mark.parametrize('axes', ['xy', 'zxy', 'ycx', 'zycx', 'cyxc', 'x', 'tyx', '', 'czcyx'])
def test_wrong_axes(axes):
    with pytest.raises(OptionError, match='axes'):
        VolumeLayout(axes)


@pytest.mark.parametrize('shape, block, itemsize', [
    ((5000, 700), 1024, 4), ((300, 300, 300), 128, 8), ((64, 64), (5, 64), 1), ((9, 9), 100, 1)])
def test_blocks_hold_whole_chunks(shape, block, itemsize):
    chunks = choose_chunks(shape, block, itemsize)
    sides = block if isinstance(block, tuple) else (block,) * len(shape)
    for part in BlockGrid(shape, sides):
        for piece, chunk, size in zip(part.core.slices, chunks, shape):
            assert piece.start % chunk == 0 and (piece.stop % chunk == 0 or piece.stop == size)
    assert np.prod(chunks) * itemsize <= 1 << 22


# ---- made and opened ----------------------------------------------------------------

@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('dataset', ['', 'raw', 'volumes/raw'])
def test_what_is_made_is_found_again(tmp_path, ndim, dataset):
    identifier = ArrayIdentifier(tmp_path / 'a.zarr', dataset)
    made = make_array(identifier, ndim, name='affinities')
    for found in (made, ZarrArray.open(str(identifier)), pickle.loads(pickle.dumps(made))):
        assert found.axes == tuple('c' + AXES[ndim]) and found.spatial_axes == tuple(AXES[ndim])
        assert (found.dims, found.voxel_size, found.roi) == (ndim, SIZE[ndim], PLACE[ndim])
        assert (found.num_channels, found.dtype) == (2, np.int16)
        assert found.shape == (*VOLUME.shape[:ndim], 2)
        assert found.data.shape == (2, *VOLUME.shape[:ndim])
        assert (found.name, str(found)) == ('affinities',) * 2
        assert found.file_name == tmp_path / 'a.zarr' and found.dataset == dataset
        assert found.fpath == str(tmp_path / 'a.zarr' / dataset).rstrip('/')
        assert isinstance(found, BlockSource) and isinstance(found, BlockSink)
    assert made.writable and not ZarrArray.open(identifier).writable
    assert ZarrArray.open(identifier, 'mine').name == 'mine'
    assert os.listdir(tmp_path) == ['a.zarr']


def test_other_readers_find_what_they_ask_for(tmp_path):
    make_array(tmp_path / 'a.zarr/volumes/raw')
    array = zarr.open_group(tmp_path / 'a.zarr', mode='r')['volumes/raw']
    assert array.metadata.zarr_format == 3
    assert array.metadata.dimension_names == ('c', 'z', 'y', 'x')
    attrs = dict(array.attrs)
    assert attrs['offset'] == [400, 8, -4] and attrs['axis_names'] == ['c', 'z', 'y', 'x']
    assert attrs['voxel_size'] == attrs['resolution'] == [40, 4, 4]


def test_dacapo_names_of_the_two_ways(tmp_path):
    path = ArrayIdentifier(tmp_path / 'a.zarr', 'raw')
    made = ZarrArray.create_from_array_identifier(
        path, ['c', 'z', 'y', 'x'], PLACE[3], None, SIZE[3], np.uint8, write_size=(80, 8, 8))
    assert made.axes == ('z', 'y', 'x') and made.num_channels is None
    assert made.chunks == made.data.chunks == (2, 2, 2)
    found = ZarrArray.open_from_array_identifier(path, 'ids')
    assert (found.name, found.mode, found.shape) == ('ids', 'r', (5, 6, 7, 1))


ATTRS = [
    ({}, 'zyx', (1, 1, 1), (0, 0, 0)),
    ({'resolution': [40, 4, 4]}, 'zyx', (40, 4, 4), (0, 0, 0)),
    ({'voxel_size': [40.0, 4, 4], 'offset': [400, 8, 0]}, 'zyx', (40, 4, 4), (400, 8, 0)),
    ({'offset': [8, 4]}, 'cyx', (1, 1), (8, 4)),
    ({'voxel_size': [8, 4]}, 'cyx', (8, 4), (0, 0)),
    ({'axes': ['y', 'x', 'c'], 'voxel_size': [8, 4]}, 'yxc', (8, 4), (0, 0)),
    ({'axis_names': ['c^', 'y', 'x'], 'voxel_size': [8, 4]}, 'cyx', (8, 4), (0, 0)),
    ({'axes': ['c', 'y', 'x'], 'voxel_size': [1, 8, 4], 'offset': [0, 5, 6]}, 'cyx', (8, 4),
     (5, 6)),
    ({'axes': [{'name': 'c'}, {'name': 'y'}, {'name': 'x'}]}, 'cyx', (1, 1), (0, 0))]


@pytest.mark.parametrize('zarr_format', [2, 3])
@pytest.mark.parametrize('attrs, axes, voxel_size, offset', ATTRS,
                         ids=[str(number) for number in range(len(ATTRS))])
def test_arrays_of_others_may_tell_less(tmp_path, attrs, axes, voxel_size, offset, zarr_format):
    zarr.create_array(tmp_path / 'a.zarr', shape=(2, 3, 4), dtype='>u2', attributes=attrs,
                      zarr_format=zarr_format)[:] = np.arange(24).reshape(2, 3, 4)
    found = ZarrArray.open(tmp_path / 'a.zarr')
    assert (found.axes, found.voxel_size, found.roi.offset) == (tuple(axes), voxel_size, offset)
    assert found.dtype == np.uint16 and found.dtype.isnative
    assert found.read(Box.from_shape(found.shape[:-1])).dtype.isnative
    np.testing.assert_array_equal(found[found.roi], np.arange(24).reshape(2, 3, 4))


def test_names_of_dimensions_tell_the_axes(tmp_path):
    zarr.create_array(tmp_path / 'a.zarr', shape=(2, 3, 4), dtype='u1',
                      dimension_names=['y', 'x', 'c'])
    assert ZarrArray.open(tmp_path / 'a.zarr').axes == ('y', 'x', 'c')
    assert ZarrArray.open(tmp_path / 'a.zarr', axes='cyx').axes == ('c', 'y', 'x')


@pytest.mark.parametrize('shape, attrs, match', [
    ((2, 3, 4, 5), {}, 'axes='), ((2,), {}, 'axes='), ((2, 3, 4), {'axes': ['y', 'x']}, 'axes='),
    ((2, 3), {'axes': ['x', 'y']}, 'order'), ((2, 3), {'voxel_size': [1.5, 2]}, 'unit'),
    ((2, 3), {'offset': [0.5, 2]}, 'unit'), ((2, 3), {'voxel_size': [0, 2]}, 'at least 1'),
    ((2, 3, 4), {'voxel_size': [1, 2], 'axes': ['z', 'y', 'x']}, 'voxel_size')],
    ids=lambda value: str(value))
def test_arrays_that_contradict_themselves(tmp_path, shape, attrs, match):
    zarr.create_array(tmp_path / 'a.zarr', shape=shape, dtype='u1', attributes=attrs)
    with pytest.raises(OptionError, match=match):
        ZarrArray.open(tmp_path / 'a.zarr')


def test_places_without_an_array(tmp_path):
    make_array(tmp_path / 'a.zarr/volumes/raw')
    for path in ('b.zarr', 'a.zarr/volumes/labels'):
        with pytest.raises(FileNotFoundError):
            ZarrArray.open(tmp_path / path)
    with pytest.raises(OptionError, match=r"group, which has \['volumes/raw'\]"):
        ZarrArray.open(tmp_path / 'a.zarr')
    with pytest.raises(OptionError, match='create'):
        ZarrArray.open(tmp_path / 'a.zarr/volumes/raw', mode='w')


@pytest.mark.parametrize('options, error, match', [
    ({'roi': Roi((400, 8, 0), (200, 24, 30))}, CoverageError, 'snap_to_grid'),
    ({'roi': Roi((400, 8, 0), (0, 24, 28))}, CoverageError, 'empty'),
    ({'roi': Roi((400, 8), (200, 24))}, OptionError, 'as many'),
    ({'roi': 'all'}, OptionError, 'Roi'),
    ({'num_channels': None}, OptionError, 'neither'), ({'num_channels': 0}, OptionError, 'least 1'),
    ({'axes': 'zyx'}, OptionError, 'neither'), ({'axes': 'cxyz'}, OptionError, 'order'),
    ({'voxel_size': (40, 4)}, OptionError, 'voxel_size'),
    ({'voxel_size': 0}, OptionError, 'at least 1'), ({'dtype': 'U3'}, OptionError, 'numbers'),
    ({'dtype': None}, OptionError, 'numbers'), ({'mode': 'r'}, OptionError, 'mode'),
    ({'write_size': (40, 4, 6)}, OptionError, 'write_size')],
    ids=lambda value: str(value) if isinstance(value, dict) else '')
def test_arrays_that_cannot_be_made(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        make_array(tmp_path / 'a.zarr/raw', **options)
    assert os.listdir(tmp_path) == []


def test_an_offset_that_is_no_multiple_of_the_voxel_size(tmp_path):
    array = make_array(tmp_path / 'a.zarr', roi=Roi((3, 1, 1), (200, 24, 28)))
    assert array.roi == Roi((3, 1, 1), (200, 24, 28))
    roi = Roi((4, 2, 2), (60, 4, 4)).snap_to_grid(SIZE[3], 'grow', array.roi.offset)
    assert array[roi].shape == (2, 2, 2, 2)


@pytest.mark.parametrize('other', [
    {'voxel_size': (40, 2, 2)}, {'dtype': 'int32'}, {'num_channels': 3},
    {'roi': Roi((440, 8, -4), (200, 24, 28))}, {'roi': Roi((400, 8, -4), (240, 24, 28))},
    {'axes': 'zyxc'}], ids=str)
def test_an_array_that_exists_must_be_the_same(tmp_path, other):
    array = make_array(tmp_path / 'a.zarr/raw')
    array[array.roi] = 5
    again = make_array(tmp_path / 'a.zarr/raw')
    assert again.data[:].min() == 5 and again.writable
    with pytest.raises(OptionError, match='exists with'):
        make_array(tmp_path / 'a.zarr/raw', **other)
    with pytest.raises(OptionError, match='exists'):
        make_array(tmp_path / 'a.zarr/raw', mode='w-')
    assert ZarrArray.open(tmp_path / 'a.zarr/raw').data[:].min() == 5
    for options in ({'overwrite': True}, {'mode': 'w'}):
        again[again.roi] = 5
        again = make_array(tmp_path / 'a.zarr/raw', **options)
        assert again.data[:].max() == 0
    assert os.listdir(tmp_path) == ['a.zarr']


def test_what_is_no_array_is_never_replaced(tmp_path):
    make_array(tmp_path / 'a.zarr/volumes/raw')
    (tmp_path / 'b.zarr').mkdir()
    (tmp_path / 'b.zarr' / 'thesis.txt').write_text('all of it')
    (tmp_path / 'c.zarr').write_text('a file')
    (tmp_path / 'd.zarr').mkdir()
    (tmp_path / 'd.zarr' / 'zarr.json').write_text('{"node_type": "ar')
    for path, match in (('a.zarr', 'group'), ('a.zarr/volumes', 'group'),
                        ('b.zarr', 'folder'), ('d.zarr', 'folder'),
                        ('a.zarr/volumes/raw/deeper', 'inside'), ('c.zarr', 'file'),
                        ('c.zarr/raw', 'inside')):
        with pytest.raises(OptionError, match=match):
            make_array(tmp_path / path, overwrite=True)
        with pytest.raises(OptionError, match=match):
            open_sink(tmp_path / path, (4, 4, 1), 'uint8', overwrite=True)
    with pytest.raises(FileNotFoundError):
        make_array(tmp_path / 'no' / 'a.zarr')
    with pytest.raises(OptionError, match='folder of this machine'):
        make_array('s3://bucket/a.zarr')
    assert (tmp_path / 'b.zarr' / 'thesis.txt').read_text() == 'all of it'
    assert list_hidden(tmp_path) == []


def test_an_array_in_a_container_of_format_2(tmp_path):
    zarr.open_group(tmp_path / 'a.zarr', mode='w', zarr_format=2)
    make_array(tmp_path / 'a.zarr/volumes/raw')
    found = zarr.open_group(tmp_path / 'a.zarr', mode='r')['volumes/raw']
    assert found.metadata.zarr_format == 2
    assert ZarrArray.open(tmp_path / 'a.zarr/volumes/raw').axes == ('c', 'z', 'y', 'x')


# ---- by region ------------------------------------------------------------------------

@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('axes', ['c*', '*c', '*'])
def test_regions_are_voxels_times_their_size(tmp_path, ndim, axes):
    has_channels = 'c' in axes
    array = make_array(tmp_path / 'a.zarr', ndim, axes=axes.replace('*', AXES[ndim]),
                       num_channels=2 if has_channels else None)
    pixels = (VOLUME if ndim == 3 else IMAGE)[..., slice(None) if has_channels else 0]
    stored = np.moveaxis(pixels, -1, 0) if axes == 'c*' else pixels
    array[array.roi] = stored
    np.testing.assert_array_equal(array.data[:], stored)
    box = Box((1, 2, 3)[:ndim], (4, 6, 5)[:ndim])
    roi = Roi.from_box(box, SIZE[ndim], PLACE[ndim].offset)
    expected = pixels[box.slices]
    np.testing.assert_array_equal(array[roi], np.moveaxis(expected, -1, 0) if axes == 'c*'
                                  else expected)
    block = array.read(box)
    np.testing.assert_array_equal(block, expected if has_channels else expected[..., None])
    assert block.flags.c_contiguous
    array[roi] = -3
    assert (array.read(box) == -3).all() and (array.data[:] == -3).sum() == block.size


def test_regions_that_cannot_be_meant(tmp_path):
    array = make_array(tmp_path / 'a.zarr')
    cases = [(Roi((400, 8, -2), (40, 4, 4)), 'snap_to_grid'),
             (Roi((0, 8, 0), (40, 4, 4)), 'leaves'),
             (Roi((400, 8, 0), (40, 0, 4)), 'empty'), (Roi((400, 8), (40, 4)), 'axes')]
    for roi, match in cases:
        with pytest.raises(CoverageError, match=match):
            array[roi]
        with pytest.raises(CoverageError, match=match):
            array[roi] = 1
    with pytest.raises(OptionError, match='Roi'):
        array[1:2]
    assert array.data[:].max() == 0


def test_values_that_do_not_fit(tmp_path):
    array = make_array(tmp_path / 'a.zarr')
    roi = Roi((400, 8, -4), (40, 4, 4))
    with pytest.raises(WindowShapeError, match=r'\(2, 1, 1, 1\)'):
        array[roi] = np.zeros((1, 1, 1, 2), np.int16)
    for value in (np.zeros((2, 1, 1, 1)), 0.5, 40000, np.nan):
        with pytest.raises(OptionError, match='cannot hold'):
            array[roi] = value
    array[roi] = 7.0
    assert array.data[:].sum() == 14


def test_numbers_in_floats(tmp_path):
    array = make_array(tmp_path / 'a.zarr', dtype='float64')
    for value in (np.nan, np.inf, 0.25):
        array[array.roi] = value
        np.testing.assert_array_equal(np.unique(array.data[:]), [value])
    with pytest.raises(OptionError, match='cannot hold'):
        array[array.roi] = 2 ** 53 + 1


def test_arrays_for_reading_are_not_written_to(tmp_path):
    make_array(tmp_path / 'a.zarr')
    array = ZarrArray.open(tmp_path / 'a.zarr')
    for write in (lambda: array.__setitem__(array.roi, 1), lambda: array.add_metadata({'a': 1}),
                  lambda: array.write_block(Box.from_shape((5, 6, 7)), VOLUME),
                  lambda: open_sink(array, VOLUME.shape, 'int16'),
                  lambda: open_sink(array.data, VOLUME.shape, 'int16'), lambda: check_sink(array)):
        with pytest.raises(OptionError, match=r"'r\+'"):
            write()
    assert array.data[:].max() == 0
    for mode in ('r+', 'a'):
        ZarrArray.open(tmp_path / 'a.zarr', mode=mode)[array.roi] = 4
        assert array.data[:].min() == 4


# ---- by block -------------------------------------------------------------------------

def test_blocks_that_do_not_fit(tmp_path):
    array = make_array(tmp_path / 'a.zarr')
    with pytest.raises(WindowShapeError, match='block has shape'):
        array.write_block(Box((0, 0, 0), (1, 1, 2)), VOLUME[:1, :1, :1])
    for box in (Box((0, 0, -1), (1, 1, 1)), Box((0, 0, 6), (1, 1, 8)), Window(0, 0, 1, 1)):
        with pytest.raises(CoverageError):
            array.write_block(box, VOLUME[:1, :1, :1])
        with pytest.raises(CoverageError):
            array.read(box)
    with pytest.raises(OptionError, match='cannot hold'):
        array.write_block(Box((0, 0, 0), (1, 1, 1)), VOLUME[:1, :1, :1].astype(np.int32))


def test_threads_write_parts_of_one_chunk(tmp_path):
    array = make_array(tmp_path / 'a.zarr', 2, axes='yx', num_channels=None,
                       roi=Roi((0, 0), (400, 4 * 30)), dtype='uint16')
    assert array.chunks == (10, 30)
    threads = [threading.Thread(target=array.write_block, args=(
        Window(0, x, 10, x + 1), np.full((10, 1), x, np.uint8))) for x in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(array.data[:], np.broadcast_to(np.arange(30), (10, 30)))


# ---- sources and sinks ------------------------------------------------------------------

def test_sources_of_zarr(tmp_path):
    array = make_array(tmp_path / 'a.zarr/raw')
    array.write_block(Box.from_shape((5, 6, 7)), VOLUME)
    box = Box((1, 2, 0), (4, 6, 5))
    path = tmp_path / 'a.zarr' / 'raw'
    for obj in (path, str(path), ArrayIdentifier.parse(path), array, zarr.open_array(path),
                pickle.loads(pickle.dumps(open_source(path, 3)))):
        source = open_source(obj, ndim=3)
        assert (source.shape, source.dtype) == (VOLUME.shape, np.int16)
        np.testing.assert_array_equal(source.read(box), VOLUME[box.slices])
        assert source.fpath == str(path)
    with pytest.raises(OptionError, match='3 of space'):
        open_source(path, ndim=2)


def test_zarr_arrays_without_names_have_their_channels_last(tmp_path):
    zarr.create_array(tmp_path / 'a.zarr', data=IMAGE)
    zarr.create_array(tmp_path / 'b.zarr', data=VOLUME)
    for obj in (tmp_path / 'a.zarr', zarr.open_array(tmp_path / 'a.zarr')):
        assert open_source(obj).shape == (5, 6, 2)
        assert open_source(obj, ndim=3).shape == (5, 6, 2, 1)
    assert open_source(tmp_path / 'b.zarr', ndim=3).shape == VOLUME.shape
    with pytest.raises(OptionError, match='axes='):
        open_source(tmp_path / 'b.zarr')
    memory = zarr.create_array({}, data=IMAGE)
    np.testing.assert_array_equal(open_source(memory).read(Window(0, 0, 5, 6)), IMAGE)


@pytest.mark.parametrize('ndim', [2, 3])
@pytest.mark.parametrize('n_channels', [1, 2])
@pytest.mark.parametrize('dataset', ['', '/volumes/labels'])
def test_a_new_zarr_array_appears_as_a_whole(tmp_path, ndim, n_channels, dataset):
    pixels = (VOLUME if ndim == 3 else IMAGE)[..., :n_channels]
    path = f'{tmp_path}/a.zarr{dataset}'
    sink = open_sink(path, pixels.shape, 'int16', chunks=4, voxel_size=SIZE[ndim],
                     offset=PLACE[ndim].offset, name='ids', metadata={'model': 'v3'})
    for block in BlockGrid(pixels.shape, (4,) * ndim):
        assert find_node(tmp_path / 'a.zarr') is None
        sink.write_block(block.core, pixels[block.core.slices])
    assert sink.commit() == path and os.listdir(tmp_path) == ['a.zarr']
    found = ZarrArray.open(path)
    assert found.axes == ('c',) * (n_channels > 1) + tuple(AXES[ndim])
    assert (found.roi, found.voxel_size, found.name) == (PLACE[ndim], SIZE[ndim], 'ids')
    assert found.attrs['model'] == 'v3' and found.chunks == (4,) * ndim
    np.testing.assert_array_equal(found.read(Box.from_shape(pixels.shape[:-1])), pixels)


def test_options_of_a_new_zarr_array(tmp_path):
    with open_sink(tmp_path / 'a.zarr', IMAGE.shape, 'int16', axes='yxc') as sink:
        sink.write_block(Window(0, 0, 5, 6), IMAGE)
    np.testing.assert_array_equal(zarr.open_array(tmp_path / 'a.zarr')[:], IMAGE)
    with open_sink(tmp_path / 'b.zarr', (5, 6, 1), bool, axes='cyx') as sink:
        sink.write_block(Window(0, 0, 5, 6), IMAGE[..., 0] > 99)
    assert zarr.open_array(tmp_path / 'b.zarr').shape == (1, 5, 6)
    assert open_source(tmp_path / 'b.zarr').dtype == bool


def test_a_zarr_array_lies_where_its_source_does(tmp_path):
    source = make_array(tmp_path / 'a.zarr')
    with open_sink(tmp_path / 'b.zarr', (5, 6, 7, 1), 'uint32', like=source) as sink:
        sink.write_block(Box.from_shape((5, 6, 7)), np.ones((5, 6, 7), np.uint32))
    assert ZarrArray.open(tmp_path / 'b.zarr').roi == PLACE[3]
    with open_sink(tmp_path / 'c.zarr', (5, 6, 7, 1), 'uint32', like=source, offset=0) as sink:
        sink.write_block(Box.from_shape((5, 6, 7)), np.ones((5, 6, 7), np.uint32))
    found = ZarrArray.open(tmp_path / 'c.zarr')
    assert (found.roi.offset, found.voxel_size) == ((0, 0, 0), SIZE[3])


@pytest.mark.parametrize('options, match', [
    ({'nodata': 0}, 'nodata'), ({'axes': 'yx'}, 'fit'), ({'axes': 'czyx'}, 'fit'),
    ({'axes': 'cxy'}, 'order'), ({'voxel_size': 0.5}, 'unit'), ({'offset': (1, 2, 3)}, 'offset'),
    ({'chunks': 0}, 'chunks'), ({'chunks': (4, 4, 4)}, 'chunks'),
    ({'metadata': {'a': object}}, 'JSON'), ({'metadata': {'offset': 3}}, 'offset')], ids=str)
def test_wrong_options_of_a_new_zarr_array(tmp_path, options, match):
    with pytest.raises(OptionError, match=match):
        open_sink(tmp_path / 'a.zarr', (5, 6, 2), 'int16', **options)
    assert os.listdir(tmp_path) == []


def test_zarr_arrays_are_filled_in_place(tmp_path):
    array = make_array(tmp_path / 'a.zarr')
    plain = zarr.create_array(tmp_path / 'b.zarr', shape=VOLUME.shape, dtype='i4')
    for dst in (array, plain):
        sink = open_sink(dst, VOLUME.shape, 'int16')
        for block in BlockGrid(VOLUME.shape, (3, 3, 3)):
            sink.write_block(block.core, VOLUME[block.core.slices])
        assert sink.commit() is dst
        np.testing.assert_array_equal(open_source(dst, 3).read(Box.from_shape((5, 6, 7))), VOLUME)
    for shape, dtype, match in (((5, 6, 7, 1), 'int16', 'shape'),
                                (VOLUME.shape, 'float32', 'cannot hold')):
        with pytest.raises(OptionError, match=match):
            open_sink(array, shape, dtype)


def fill(sink, value):
    sink.write_block(Window(0, 0, 4, 4), np.full((4, 4), value, np.uint8))
    return sink


@pytest.mark.parametrize('path', ['a.zarr', 'a.zarr/ids'])
def test_a_zarr_array_is_replaced_if_wanted_and_at_the_end_only(tmp_path, path):
    path = str(tmp_path / path)
    fill(open_sink(path, (4, 4, 1), 'uint8'), 1).commit()
    with pytest.raises(OptionError, match='overwrite'):
        open_sink(path, (4, 4, 1), 'uint8')
    for ending in ('abort', 'commit'):
        sink = fill(open_sink(path, (4, 4, 1), 'uint8', overwrite=True), 5)
        assert zarr.open_array(path, mode='r')[:].max() == 1
        assert list_hidden(tmp_path)
        getattr(sink, ending)()
        assert os.listdir(tmp_path) == ['a.zarr']
    assert zarr.open_array(path, mode='r')[:].min() == 5


def test_two_that_write_one_name(tmp_path):
    first, second = (open_sink(tmp_path / 'a.zarr', (4, 4, 1), 'uint8') for _ in range(2))
    fill(first, 1).commit()
    with pytest.raises(AssetWriteError, match='meanwhile'):
        fill(second, 2).commit()
    assert zarr.open_array(tmp_path / 'a.zarr')[:].max() == 1
    second.abort()
    assert list_hidden(tmp_path) == []


def test_a_failed_rename_leaves_what_was_there(tmp_path, monkeypatch):
    fill(open_sink(tmp_path / 'a.zarr', (4, 4, 1), 'uint8'), 1).commit()
    sink = fill(open_sink(tmp_path / 'a.zarr', (4, 4, 1), 'uint8', overwrite=True), 2)
    rename, calls = os.rename, []

    def failing(src, dst):
        calls.append(src)
        if len(calls) == 2:
            raise OSError(28, 'No space left on device')
        rename(src, dst)

    monkeypatch.setattr(zarr_place.os, 'rename', failing)
    with pytest.raises(AssetWriteError, match='space'):
        sink.commit()
    assert zarr.open_array(tmp_path / 'a.zarr')[:].max() == 1
    # Mended, it can be tried again: no block was lost.
    sink.commit()
    assert zarr.open_array(tmp_path / 'a.zarr')[:].max() == 2
    assert list_hidden(tmp_path) == []


def test_a_chunk_that_cannot_be_stored(tmp_path, monkeypatch):
    sink = open_sink(tmp_path / 'a.zarr', (4, 4, 1), 'uint8')
    with monkeypatch.context() as patch:
        def fail(*args):
            raise OSError(28, 'No space left on device')
        patch.setattr(ZarrArray, 'write_block', fail)
        with pytest.raises(AssetWriteError, match='space') as info:
            fill(sink, 1)
    assert info.value.path == str(tmp_path / 'a.zarr')
    fill(sink, 1).commit()
    assert zarr.open_array(tmp_path / 'a.zarr')[:].min() == 1


def test_what_a_killed_process_left_is_removed(tmp_path):
    identifier = ArrayIdentifier(tmp_path / 'a.zarr', 'ids')
    living = zarr_place.make_temporary(identifier)
    dead = Path(str(living).replace(f'.{os.getpid()}.', f'.{2 ** 40}.'))
    other = dead.with_name(dead.name.replace('a.zarr', 'b.zarr'))
    for folder in (living, dead, other):
        folder.mkdir()
        (folder / 'zarr.json').write_text('{}')
    check_sink(str(identifier))
    assert sorted(os.listdir(tmp_path)) == sorted([living.name, other.name])


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    # A folder without permissions would do, but not for root.
    def fail(path):
        raise PermissionError(13, 'Permission denied', str(path))
    monkeypatch.setattr(Path, 'mkdir', fail)
    with pytest.raises(AssetWriteError, match='Permission denied') as info:
        check_sink(tmp_path / 'a.zarr')
    assert info.value.path == str(tmp_path / 'a.zarr')


# ---- notes and viewers --------------------------------------------------------------------

def test_metadata(tmp_path):
    array = make_array(tmp_path / 'a.zarr')
    array.add_metadata({'model': 'v3', 'epochs': (1, 2)})
    attrs = ZarrArray.open(tmp_path / 'a.zarr').attrs
    assert (attrs['model'], attrs['epochs'], attrs['offset']) == ('v3', [1, 2], [400, 8, -4])
    for wrong in ({'voxel_size': [1, 1, 1]}, {'a': {1}}, {1: 2}, 'model'):
        with pytest.raises(OptionError, match='metadata'):
            array.add_metadata(wrong)


def test_layers_of_neuroglancer(tmp_path):
    array = make_array(tmp_path / 'a.zarr/raw', name='affinities')
    layer = json.loads(json.dumps(array.neuroglancer_layer()))
    assert layer['name'] == 'affinities' and layer['type'] == 'image'
    assert layer['source']['url'] == f'zarr://file://{tmp_path}/a.zarr/raw'
    transform = layer['source']['transform']
    assert transform['outputDimensions'] == {
        'c^': [1, ''], 'z': [1, 'nm'], 'y': [1, 'nm'], 'x': [1, 'nm']}
    # The first corner of voxel (1, 2, 3) of channel 1, by the matrix and by the region.
    place = np.array(transform['matrix']) @ [1, 1, 2, 3, 1]
    assert place.tolist() == [1, *Roi.from_box(Box((1, 2, 3), (2, 3, 4)), SIZE[3],
                                               PLACE[3].offset).offset]
    array.add_metadata({'units': ['um', 'nm', 'nm']})
    layer = array.neuroglancer_layer('http://localhost:9000/a.zarr/')
    assert layer['source']['url'] == 'zarr://http://localhost:9000/a.zarr/raw'
    assert layer['source']['transform']['outputDimensions']['z'] == [1, 'um']
    ids = make_array(tmp_path / 'b.zarr', 2, axes='yx', num_channels=None, dtype='uint64')
    assert ids.neuroglancer_layer()['type'] == 'segmentation'
