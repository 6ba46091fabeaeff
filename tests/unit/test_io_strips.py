"""Rasters behind one face: files and arrays, strips, labels, and grids that fit or not."""
import threading

import numpy as np
import pytest

from cocoseg import Window, write_cog
from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.io import strips
from cocoseg.io.images import write_tif
from cocoseg.io.strips import (
    Source, as_labels, check_same_grid, choose_strip_rows, is_same_crs, iter_strips, read_ahead)

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


@pytest.fixture
def data():
    return np.random.default_rng(0).integers(0, 200, (70, 90, 3)).astype(np.uint16)


@pytest.mark.parametrize('from_file', [True, False])
def test_reads_the_same_from_files_and_arrays(data, tmp_path, from_file):
    write_cog(tmp_path / 'a.tif', data, nodata=7, blocksize=64, channels='r|g|b', **GEO)
    source = (Source.open(str(tmp_path / 'a.tif'), 'image') if from_file
              else Source.open(data, 'image', **GEO))
    assert (source.shape, source.dtype) == (data.shape, data.dtype)
    assert source.geotransform == GEO['transform'] and '18N' in source.crs_wkt
    np.testing.assert_array_equal(source.read_rows(3, 9), data[3:9])
    np.testing.assert_array_equal(source.read_rows(3, 9, [2, 0], (5, 8)), data[3:9, 5:8, [2, 0]])
    np.testing.assert_array_equal(source.read(Window(1, 2, 3, 4)), data[1:3, 2:4])
    if from_file:
        assert source.nodata == (7, 7, 7) and source.channels == ('r', 'g', 'b')
        assert source.block_rows == 64 and source.name == f'image {tmp_path / "a.tif"}'
    else:
        assert source.nodata == source.channels == (None,) * 3
        assert np.shares_memory(source.read_rows(3, 9), data)


def test_wrong_sources(data, tmp_path):
    write_tif(tmp_path / 'a.tif', data)
    with pytest.raises(OptionError, match='has its own crs'):
        Source.open(tmp_path / 'a.tif', transform=GEO['transform'])
    for wrong, match in ((np.ones(3), 'shape'), (np.ones((0, 3)), 'nothing empty'),
                         (np.ones((2, 2), complex), 'complex'), (np.array([['a']]), '<U1'),
                         (np.ma.ones((2, 2)), 'masked')):
        with pytest.raises(OptionError, match=match):
            Source.open(wrong)
    with pytest.raises(FileNotFoundError):
        Source.open('no.tif')
    with pytest.raises(OptionError, match='3 bands'):
        Source.open(tmp_path / 'a.tif', 'segments').as_label_source()


@pytest.mark.parametrize('dtype', ['uint8', 'int8', 'uint16', 'int32', 'uint32', 'int64', 'uint64'])
def test_labels(dtype):
    block = np.array([[0, 3, 100]], dtype)
    found = as_labels(block)
    assert found.dtype == np.uint32 and found.tolist() == [[0, 3, 100]]
    assert (found is block) == (dtype == 'uint32')
    assert as_labels(block, nodata=3.0).tolist() == [[0, 0, 100]]
    assert as_labels(block, nodata=np.nan).tolist() == as_labels(block, -5).tolist() == [
        [0, 3, 100]]
    assert block.tolist() == [[0, 3, 100]]


def test_labels_beyond_32_bits():
    assert as_labels(np.array([[2 ** 32 - 1]])).tolist() == [[2 ** 32 - 1]]
    for block in (np.array([[2 ** 32]]), np.array([[-1]], np.int8), np.array([[2 ** 64 - 1]])):
        with pytest.raises(LabelOverflowError):
            as_labels(block)
    # What is nodata may be any number.
    assert as_labels(np.array([[-1, 2]], np.int16), nodata=-1).tolist() == [[0, 2]]


def open_grid(transform=None, crs=None, shape=(10, 20)):
    return Source.open(np.zeros(shape), crs=crs, transform=transform)


@pytest.mark.parametrize('other, fits', [
    (GEO['transform'], True), ((500_000.001, 10, 0, 4_000_000, 0, -20), True),
    ((500_001, 10, 0, 4_000_000, 0, -20), False), ((500_000, 10, 0, 4_000_000, 0, 20), False),
    ((500_000, 10.00001, 0, 4_000_000, 0, -20), True), ((500_000, 10, 1, 4_000_000, 0, -20), False),
    (None, True)])
def test_grids(other, fits):
    first, second = open_grid(GEO['transform']), open_grid(other)
    for pair in ((first, second), (second, first)):
        if fits:
            check_same_grid(*pair)
        else:
            with pytest.raises(OptionError, match='px away'):
                check_same_grid(*pair)


def test_turned_grids():
    """Pixels are compared along their own axes."""
    first = open_grid((1000, 0, 2, 500, 3, 0))
    check_same_grid(first, open_grid((1000.0001, 0, 2, 500, 3, 0)))
    with pytest.raises(OptionError, match='up to 0.5 px'):
        check_same_grid(first, open_grid((1001, 0, 2, 500, 3, 0)))


def test_coordinate_systems():
    first, second = open_grid(crs=32618), open_grid(crs=4326)
    with pytest.raises(OptionError, match="'WGS 84 / UTM zone 18N' and 'WGS 84'"):
        check_same_grid(first, second)
    check_same_grid(first, open_grid())
    # The same one, by another name.
    renamed = first.crs_wkt.replace('"WGS 84 / UTM zone 18N"', '"UTM 18 North"', 1)
    assert is_same_crs(first.crs_wkt, renamed) and renamed != first.crs_wkt


@pytest.mark.parametrize('block_rows, n_bands, expected', [
    ((1,), 1, 42), ((64,), 1, 64), ((16, 64), 1, 64), ((64, 96), 1, 192), ((64, 63), 1, 64),
    ((1,), 4, 10), ((512,), 1, 300)])
def test_strips_are_whole_tiles(monkeypatch, block_rows, n_bands, expected):
    import dataclasses
    monkeypatch.setattr(strips, 'STRIP_SAMPLES', 4200)
    source = open_grid(shape=(300, 100))
    sources = [dataclasses.replace(source, block_rows=rows) for rows in block_rows]
    assert choose_strip_rows(sources, n_bands) == expected
    assert choose_strip_rows(sources, 10 ** 9) >= 1


def test_strips_cover_all_rows():
    assert list(iter_strips(7, 7)) == [(0, 7)] and list(iter_strips(7, 9)) == [(0, 7)]
    assert list(iter_strips(7, 3)) == [(0, 3), (3, 6), (6, 7)]


@pytest.mark.parametrize('ahead', [True, False])
def test_read_ahead(ahead):
    """In order; at most one more than was asked for is read, by another thread."""
    read, threads = [], set()

    def work(first, stop):
        read.append(first)
        threads.add(threading.current_thread().name)
        return first * 10

    found = read_ahead(work, iter_strips(5, 1), ahead)
    for number, (strip, value) in enumerate(found):
        assert strip == (number, number + 1) and value == number * 10
        assert len(read) <= number + 1 + ahead
    assert read == [0, 1, 2, 3, 4]
    assert (threading.current_thread().name in threads) == (not ahead)


@pytest.mark.parametrize('ahead', [True, False])
def test_read_ahead_passes_errors(ahead):
    def work(first, stop):
        if first == 2:
            raise OSError('bad disk')
        return first
    found = read_ahead(work, iter_strips(5, 1), ahead)
    assert [next(found)[1], next(found)[1]] == [0, 1]
    with pytest.raises(OSError, match='bad disk'):
        next(found)
