"""Masks: the rules, lazy masks of files and arrays, and the places where they are written."""
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from cocoseg import Box, BlockGrid, Window, verify_cog, write_cog
from cocoseg.errors import AssetWriteError, NodataError, OptionError, TaskError
from cocoseg.io import mask_file
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.images import write_tif
from cocoseg.io.mask_file import InternalMaskWriter, group_bands, outline_mask, sidecar_path
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.io.strips import Source
from cocoseg.postprocess import mask_sources
from cocoseg.postprocess.mask_rules import (
    BandCounter, as_bits, call_logic, coerce_logic, coerce_nodata, count_nodata, find_box,
    find_nodata)
from cocoseg.postprocess.mask_sources import CommonMask, FlagSource, MaskSource
from cocoseg.postprocess.masks import (
    choose_block_shape, compute_mask, count_valid, prepare_selector)

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}
SHAPE, N_BANDS = (150, 190), 4


def make_image(dtype='uint16', seed=0):
    """Return (150, 190, 4) with a collar of 0 that differs a little from band to band."""
    rng = np.random.default_rng(seed)
    image = rng.integers(1, 90, (*SHAPE, N_BANDS)).astype(dtype)
    rows, columns = np.mgrid[:SHAPE[0], :SHAPE[1]]
    for band in range(N_BANDS):
        image[rows + columns < 60 + 3 * band, band] = 0
    image[100:120, 130:180, 2] = 0
    return image


def count_reference(data, values):
    """Count nodata in plain numpy."""
    counts = np.zeros(data.shape[:-1], int)
    for band, found in enumerate(values):
        samples = data[..., band]
        masked = np.isin(samples, np.array(found, data.dtype))
        if data.dtype.kind == 'f':
            masked |= np.isnan(samples)
        counts += masked
    return counts


@pytest.fixture
def image():
    return make_image()


# ---- rules -----------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['bool', 'int8', 'uint8', '>i2', 'uint16', 'int32', 'uint64',
                                   'float16', 'float32', '<f8'])
def test_counts_are_those_of_numpy(dtype):
    data = np.random.default_rng(0).integers(0, 4, (13, 17, 5)).astype(dtype)
    if data.dtype.kind == 'f':
        data[2:5, 3:9, 1:3] = np.nan
    values = coerce_nodata([{0, 1}, 1, None, 0, {1}], (None,) * 5, dtype)
    before = data.copy()
    expected = count_reference(data, values)
    assert count_nodata(data, values).tolist() == expected.tolist()
    assert find_nodata(data, values).sum(axis=0).tolist() == expected.tolist()
    # A view, with gaps between its samples.
    assert count_nodata(data[::2, ::3], values).tolist() == expected[::2, ::3].tolist()
    np.testing.assert_array_equal(data, before)
    for k in range(1, 6):
        counter = BandCounter(data.shape[:2], k, 5)
        for band in range(5):
            if counter.open_box is None:
                break
            y0, x0, y1, x1 = counter.open_box
            counter.add(data[y0:y1, x0:x1, band], values[band])
        assert counter.open_box is None
        assert (counter.find_valid() == 255).tolist() == (expected < k).tolist()


def test_negative_and_special_values():
    data = np.array([[[-9999, 0.0, -0.0, np.inf, np.nan]]], np.float32).reshape(1, 5, 1)
    assert count_nodata(data, coerce_nodata(0, (None,), 'f4')).ravel().tolist() == [0, 1, 1, 0, 1]
    assert count_nodata(data, coerce_nodata(None, (None,), 'f4')).ravel().tolist() == [
        0, 0, 0, 0, 1]
    assert count_nodata(data, coerce_nodata({-9999, np.inf}, (None,), 'f4')).ravel().tolist() == [
        1, 0, 0, 1, 1]
    ints = np.array([[[-1], [255]]], np.int16)
    assert count_nodata(ints, coerce_nodata(-1, (None,), 'i2')).ravel().tolist() == [1, 0]


def test_nodata_as_readers_round_it():
    # Stored with all digits of a double; the samples are floats.
    lowest = -3.4028234663852886e+38
    data = np.array([[[lowest]]], np.float32)
    assert count_nodata(data, coerce_nodata('file', (lowest,), 'f4')).item() == 1
    # No sample can be it, in a file that says so all the same.
    assert coerce_nodata('file', (-9999.0, 7.0, np.nan), 'uint8') == ((), (7,), ())


@pytest.mark.parametrize('nodata, error, match', [
    ('zero', OptionError, "nodata='zero' is unknown"),
    ([1, 2, 3], OptionError, 'for several values in every band give a set'),
    ([1, 'a'], OptionError, 'must be a number'), (True, OptionError, 'must be a number'),
    (-9999, NodataError, 'no value of pixels of type uint8'),
    (0.5, NodataError, 'would mask nothing'), ({1, np.inf}, NodataError, 'inf'),
    (object(), OptionError, 'one entry for each')])
def test_wrong_nodata(nodata, error, match):
    with pytest.raises(error, match=match):
        coerce_nodata(nodata, (None, None), 'uint8')


@pytest.mark.parametrize('logic', ['or', 'ANY', None, 1.5, True, 0, 5, -1])
def test_wrong_logic(logic):
    with pytest.raises(OptionError, match='logic='):
        coerce_logic(logic, 4)


@pytest.mark.parametrize('logic', [
    lambda stack: stack, lambda stack: stack.sum(axis=0), lambda stack: stack.any(axis=0).tolist(),
    lambda stack: None, lambda stack: stack.any(axis=0)[1:]],
    ids=['stack', 'counts', 'list', 'nothing', 'shape'])
def test_wrong_results_of_a_function(logic):
    with pytest.raises(OptionError, match=r'must return a bool array \(3, 4\)'):
        call_logic(logic, np.zeros((2, 3, 4), bool))


def test_bits_are_views():
    for dtype in ('int16', 'uint8', 'float32', 'bool'):
        data = np.zeros((2, 3), dtype)
        assert np.shares_memory(as_bits(data), data)
    assert as_bits(np.array([1], '>u2')).tolist() == [1]


# ---- lazy masks ------------------------------------------------------------

LOGICS = {'any': 1, 'all': N_BANDS, 2: 2, 3: 3}


@pytest.mark.parametrize('logic', LOGICS)
@pytest.mark.parametrize('interleave', ['band', 'pixel'])
def test_files_give_what_arrays_give(image, tmp_path, logic, interleave):
    write_cog(tmp_path / 'a.tif', image, nodata=0, interleave=interleave, blocksize=64, **GEO)
    expected = (image == 0).sum(axis=2) < LOGICS[logic]
    assert 0 < expected.sum() < expected.size
    for block_shape in (None, 37, (64, 128), 1000):
        found = compute_mask(tmp_path / 'a.tif', logic=logic, block_shape=block_shape)
        assert found.dtype == bool
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(compute_mask(image, logic=logic, nodata=0), expected)


@pytest.mark.parametrize('interleave', ['band', 'pixel'])
def test_bands_nodata_and_functions(image, tmp_path, interleave):
    fpath = os.fspath(tmp_path / 'a.tif')
    write_cog(fpath, image, nodata=0, interleave=interleave)
    for raster in (fpath, image):
        found = compute_mask(raster, bands=[3, 1], nodata=[{0, 5, 6}, None], logic='any')
        np.testing.assert_array_equal(found, ~np.isin(image[..., 3], (0, 5, 6)))
        found = compute_mask(raster, nodata=0, logic=lambda stack: stack[0] & ~stack[2])
        np.testing.assert_array_equal(found, ~((image[..., 0] == 0) & (image[..., 2] != 0)))
    np.testing.assert_array_equal(compute_mask(fpath, bands=2), image[..., 2] != 0)
    np.testing.assert_array_equal(compute_mask(fpath, bands=2, logic=lambda stack: stack[0]),
                                  image[..., 2] != 0)
    assert compute_mask(fpath, nodata=None).all() and compute_mask(image).all()


def test_bands_that_do_not_matter_are_not_read(image, tmp_path, monkeypatch):
    write_cog(tmp_path / 'a.tif', image, nodata=0, interleave='band', blocksize=64)
    mask = MaskSource.open(Source.open(tmp_path / 'a.tif'))
    read, seen = mask_file.BandReader.read, []

    def watch(self, group, window):
        seen.append((group.number, window.shape))
        return read(self, group, window)
    monkeypatch.setattr(mask_file.BandReader, 'read', watch)
    assert mask.read(Window(100, 0, 150, 100)).all()
    assert seen == [(1, (50, 100))]
    seen.clear()
    # Band 1 masks a corner; the others are read there only.
    assert not mask.read(Window(0, 0, 64, 128))[:40, :15].any()
    assert seen == [(1, (64, 128))] + [(band, (60, 60)) for band in (2, 3, 4)]
    seen.clear()
    extra = np.zeros(SHAPE)
    extra[5, 7] = 1
    common = CommonMask.open([FlagSource(Source.open(extra)), mask])
    common.read(Window(0, 0, 64, 64))
    assert {shape for _, shape in seen} == {(1, 1)}
    seen.clear()
    common.read(Window(64, 64, 128, 128))
    assert not seen


def test_masks_of_bands(image, tmp_path):
    gdal = require_gdal()
    fpath = os.fspath(tmp_path / 'a.tif')
    write_tif(fpath, image, nodata=0)
    valid = image != 0
    np.testing.assert_array_equal(compute_mask(fpath, nodata='masks', logic='any'),
                                  valid.all(axis=2))
    np.testing.assert_array_equal(compute_mask(fpath, nodata='masks', logic=2),
                                  valid.sum(axis=2) > 2)
    # No nodata: every band is valid everywhere, and none is read.
    write_tif(tmp_path / 'b.tif', image)
    assert [group.kind for group in group_bands(tmp_path / 'b.tif', range(4), True)] == ['valid']
    for logic in ('any', 'all', lambda stack: stack.any(axis=0)):
        assert compute_mask(tmp_path / 'b.tif', nodata='masks', logic=logic).all()
    # The last band is alpha: it says where the others are valid.
    alpha = np.where(valid[..., 1], 128, 0).astype(np.uint8)
    dataset = gdal.GetDriverByName('GTiff').Create(
        os.fspath(tmp_path / 'c.tif'), SHAPE[1], SHAPE[0], 2, gdal.GDT_Byte)
    dataset.GetRasterBand(1).WriteArray(np.ones(SHAPE, np.uint8))
    dataset.GetRasterBand(2).SetColorInterpretation(gdal.GCI_AlphaBand)
    dataset.GetRasterBand(2).WriteArray(alpha)
    dataset = None
    np.testing.assert_array_equal(compute_mask(tmp_path / 'c.tif', nodata='masks', logic='any'),
                                  valid[..., 1])
    np.testing.assert_array_equal(
        compute_mask(tmp_path / 'c.tif', nodata='masks', logic=lambda stack: stack[0]),
        valid[..., 1])
    with pytest.raises(OptionError, match="nodata='masks' is for files"):
        compute_mask(image, nodata='masks')


def test_volumes():
    volume = np.random.default_rng(0).integers(0, 3, (7, 20, 30, 2)).astype(np.uint8)
    for block_shape in (None, (3, 8, 11)):
        np.testing.assert_array_equal(
            compute_mask(volume, nodata=0, logic='any', block_shape=block_shape),
            (volume != 0).all(axis=3))
    extra = np.zeros((7, 20, 30))
    extra[2:4, 5:9] = 1
    found = compute_mask(volume, nodata=0, extra_mask=extra)
    np.testing.assert_array_equal(found, (volume != 0).any(axis=3) & (extra != 0))
    mask = CommonMask.open([MaskSource.open(mask_sources_of(volume), nodata=0),
                            FlagSource(mask_sources_of(extra[..., None]))])
    assert mask.read(Box((1, 2, 3), (5, 7, 9))).shape == (4, 5, 6, 1)


def mask_sources_of(volume):
    from cocoseg.protocols import MemorySource
    return MemorySource(volume)


def test_find_box():
    valid = np.zeros((5, 6), bool)
    assert find_box(valid) is None
    valid[1, 2] = valid[3, 4] = True
    assert find_box(valid) == (slice(1, 4), slice(2, 5))


def test_masks_can_be_sent_to_other_processes(image, tmp_path):
    write_cog(tmp_path / 'a.tif', image, nodata=0)
    mask = CommonMask.open([FlagSource(Source.open(np.ones(SHAPE))),
                            MaskSource.open(Source.open(tmp_path / 'a.tif'))])
    again = pickle.loads(pickle.dumps(mask))
    window = Window(0, 0, 60, 70)
    np.testing.assert_array_equal(again.read(window), mask.read(window))


def test_blocks_are_whole_tiles(image, tmp_path):
    def choose(**options):
        write_cog(tmp_path / 'a.tif', np.zeros((1500, 2100), np.uint8), **options)
        return choose_block_shape(FlagSource(Source.open(tmp_path / 'a.tif')))
    assert choose(blocksize=512) == (1024, 1024) and choose(blocksize=192) == (1152, 1152)
    assert choose(blocksize=2048) == (1500, 2048)
    write_tif(tmp_path / 'b.tif', image[..., 0])
    rows, columns = choose_block_shape(FlagSource(Source.open(tmp_path / 'b.tif')))
    assert columns == SHAPE[1] and rows <= SHAPE[0]


# ---- where masks go --------------------------------------------------------

def test_mask_file_is_a_cog_on_the_same_place(image, tmp_path):
    src, dst = tmp_path / 'a.tif', tmp_path / 'valid.tif'
    write_cog(src, image, nodata=0, **GEO)
    result = compute_mask(src, dst, logic='any', executor='threads:2', block_shape=64)
    assert os.fspath(result.output) == os.fspath(dst) and result.n_blocks == 9
    report, info = verify_cog(dst, full=True), raster_info(dst)
    assert (report.shape, report.dtype, report.channels) == ((*SHAPE, 1), 'uint8', ('valid',))
    assert info.geotransform == GEO['transform'] and info.epsg == 32618
    expected = np.where((image != 0).all(axis=2), 255, 0)
    np.testing.assert_array_equal(read_raster(dst)[..., 0], expected)
    assert count_valid(dst) == ((expected == 255).sum(), expected.size)
    before = dst.read_bytes()
    with pytest.raises(OptionError, match='exists'):
        compute_mask(src, dst)
    assert dst.read_bytes() == before
    compute_mask(src, dst, overwrite=True, compress='DEFLATE', blocksize=128)
    assert raster_info(dst).blocksize == (128, 128)
    assert sorted(os.listdir(tmp_path)) == ['a.tif', 'valid.tif']


def test_arrays_are_filled(image):
    expected = (image != 0).any(axis=2)
    for dtype, high in ((bool, True), (np.uint8, 255)):
        out = np.zeros(SHAPE, dtype)
        compute_mask(image, out, nodata=0)
        np.testing.assert_array_equal(out, np.where(expected, high, 0))


def read_mask(fpath, number=1):
    """Return the mask that GDAL finds of a band, and its flags."""
    gdal = require_gdal()
    dataset = gdal.OpenEx(os.fspath(fpath))
    band = dataset.GetRasterBand(number)
    return band.GetMaskBand().ReadAsArray(), band.GetMaskFlags()


@pytest.mark.parametrize('driver', ['GTiff', 'PNG'])
def test_sidecar_is_found_by_gdal(image, tmp_path, driver):
    gdal = require_gdal()
    fpath = os.fspath(tmp_path / f'a.{driver.lower()}')
    write_tif(tmp_path / 'source.tif', image.astype(np.uint8))
    gdal.Translate(fpath, os.fspath(tmp_path / 'source.tif'), format=driver)
    before = Path(fpath).read_bytes()
    result = compute_mask(fpath, 'sidecar', nodata=0, logic='any', executor='threads:2')
    assert result.output == sidecar_path(fpath) and Path(fpath).read_bytes() == before
    for number in range(1, N_BANDS + 1):
        found, flags = read_mask(fpath, number)
        assert flags == gdal.GMF_PER_DATASET
        np.testing.assert_array_equal(found, np.where((image != 0).all(axis=2), 255, 0))
    verify_cog(sidecar_path(fpath), full=True)
    # It is what the masks of the bands are from now on.
    np.testing.assert_array_equal(prepare_selector(fpath), (image != 0).all(axis=2))
    with pytest.raises(OptionError, match='exists; pass overwrite=True'):
        compute_mask(fpath, 'sidecar', nodata=0)
    compute_mask(fpath, 'sidecar', nodata=0, overwrite=True)
    np.testing.assert_array_equal(read_mask(fpath)[0] != 0, (image != 0).any(axis=2))


def test_mask_inside_of_a_file(image, tmp_path):
    fpath = tmp_path / 'a.tif'
    write_tif(fpath, image, nodata=0, **GEO)
    (tmp_path / 'a.tif.aux.xml').write_text('<PAMDataset/>')
    mode = fpath.stat().st_mode
    result = compute_mask(fpath, 'internal', logic='any', executor='threads:2', block_shape=50)
    assert result.output == os.fspath(fpath)
    found, flags = read_mask(fpath)
    assert flags == require_gdal().GMF_PER_DATASET
    expected = (image != 0).all(axis=2)
    np.testing.assert_array_equal(found, np.where(expected, 255, 0))
    np.testing.assert_array_equal(read_raster(fpath), image)
    assert raster_info(fpath).geotransform == GEO['transform'] and fpath.stat().st_mode == mode
    # What describes the pixels stays; no temporary does.
    assert sorted(os.listdir(tmp_path)) == ['a.tif', 'a.tif.aux.xml']
    with pytest.raises(OptionError, match='has a mask inside; pass overwrite'):
        compute_mask(fpath, 'internal', logic='all')
    with pytest.raises(OptionError, match='which would hide a sidecar'):
        compute_mask(fpath, 'sidecar')
    compute_mask(fpath, 'internal', logic='all', overwrite=True)
    np.testing.assert_array_equal(read_mask(fpath)[0] != 0, (image != 0).any(axis=2))
    assert count_valid(fpath, is_inside=True)[0] == (image != 0).any(axis=2).sum()


def test_what_refuses_a_mask_inside(image, tmp_path):
    gdal = require_gdal()
    cog, plain, png = (tmp_path / name for name in ('cog.tif', 'plain.tif', 'a.png'))
    write_cog(cog, image)
    write_tif(plain, image.astype(np.uint8))
    gdal.Translate(os.fspath(png), os.fspath(plain), format='PNG')
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for path, match in ((cog, 'would stop being one'), (png, 'only a GeoTIFF'),
                        (image, 'is for files')):
        with pytest.raises(OptionError, match=match):
            compute_mask(path, 'internal')
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    compute_mask(plain, 'sidecar', nodata=0)
    with pytest.raises(OptionError, match='would be hidden'):
        compute_mask(plain, 'internal')
    with pytest.raises(OptionError, match='is for files'):
        compute_mask(image, 'sidecar')
    dataset = gdal.OpenEx(os.fspath(plain), gdal.OF_UPDATE)
    dataset.BuildOverviews('NEAREST', [2])
    dataset = None
    os.unlink(sidecar_path(plain))
    with pytest.raises(OptionError, match='overviews, which would have no mask'):
        compute_mask(plain, 'internal')


def test_a_failure_leaves_the_file_as_it_was(image, tmp_path, monkeypatch):
    fpath = tmp_path / 'a.tif'
    write_tif(fpath, image, nodata=0)
    before = fpath.read_bytes()

    def fail(stack):
        if stack.shape[1] < 64:
            raise ValueError('no such block')
        return stack.all(axis=0)
    for dst in ('internal', 'sidecar', tmp_path / 'b.tif'):
        with pytest.raises(TaskError, match='no such block'):
            compute_mask(fpath, dst, logic=fail, block_shape=64, max_retries=0)
        assert os.listdir(tmp_path) == ['a.tif'] and fpath.read_bytes() == before
    # What reads back otherwise is not taken.
    read = mask_file.BandReader.read
    monkeypatch.setattr(mask_file.BandReader, 'read',
                        lambda *args: np.zeros_like(read(*args)))
    with pytest.raises(AssetWriteError, match='reads back otherwise'):
        with InternalMaskWriter(fpath) as writer:
            writer.write_block(Window(0, 0, *SHAPE), np.full((*SHAPE, 1), 255, np.uint8))
    with pytest.raises(AssetWriteError, match='write every block once'):
        with InternalMaskWriter(fpath) as writer:
            writer.write_block(Window(0, 0, 50, 190), np.full((50, 190, 1), 255, np.uint8))
    assert os.listdir(tmp_path) == ['a.tif'] and fpath.read_bytes() == before


def test_outlines_have_holes(tmp_path):
    valid = np.zeros((40, 50), np.uint8)
    valid[5:35, 10:40] = 255
    valid[10:15, 20:30] = 0
    write_cog(tmp_path / 'a.tif', valid, **GEO)
    region = outline_mask(tmp_path / 'a.tif')
    assert region.area == (valid > 0).sum() and region.bounds == (10, 5, 40, 35)
    write_cog(tmp_path / 'b.tif', valid * 0)
    assert outline_mask(tmp_path / 'b.tif').is_empty


# ---- extra masks and selectors ---------------------------------------------

def test_extra_mask_is_its_values(image, tmp_path):
    extra = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    # Its own nodata is 2, which does not mask.
    write_cog(tmp_path / 'extra.tif', np.stack([extra, extra * 0 + 1], axis=2), nodata=2, **GEO)
    write_cog(tmp_path / 'a.tif', image, nodata=0, **GEO)
    expected = (image != 0).any(axis=2) & (extra != 0)
    for raster in (tmp_path / 'a.tif', image):
        found = compute_mask(raster, nodata=0, extra_mask=(tmp_path / 'extra.tif', 0))
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(compute_mask(image, nodata=0, extra_mask=extra), expected)
    with pytest.raises(OptionError, match='has 2 bands; give one'):
        compute_mask(image, extra_mask=tmp_path / 'extra.tif')
    with pytest.raises(OptionError, match='has no band 2'):
        compute_mask(image, extra_mask=(tmp_path / 'extra.tif', 2))
    write_cog(tmp_path / 'other.tif', extra, crs=32618, transform=(0, 10, 0, 0, 0, -20))
    with pytest.raises(OptionError, match='px away; warp one'):
        compute_mask(tmp_path / 'a.tif', extra_mask=tmp_path / 'other.tif')
    with pytest.raises(OptionError, match='must have the same size'):
        compute_mask(image, extra_mask=extra[1:])


def test_selector(image, tmp_path):
    other = make_image(seed=5)[:, ::-1].copy()
    write_cog(tmp_path / 'a.tif', image, nodata=0)
    write_cog(tmp_path / 'b.tif', other, nodata=0, interleave='band')
    extra = np.ones(SHAPE)
    extra[:, :70] = np.nan
    paths = (tmp_path / 'a.tif', tmp_path / 'b.tif')
    expected = (image != 0).all(axis=2) & (other[..., 1] != 0)
    found = prepare_selector(paths[0], (paths[1], 1), block_shape=64, executor='threads:2')
    assert found.dtype == bool
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(prepare_selector(*paths, bands=[2]),
                                  (image[..., 2] != 0) & (other[..., 2] != 0))
    found = prepare_selector(paths[0], (paths[1], 1), extra_masking_band=extra)
    np.testing.assert_array_equal(found, expected & (extra == 1))
    lazy = prepare_selector(paths[0], (paths[1], 1), lazy=True)
    for block in BlockGrid(SHAPE, 70):
        np.testing.assert_array_equal(lazy.read(block.core)[..., 0] == 255,
                                      expected[block.core.slices])
    prepare_selector(paths[0], (paths[1], 1), dst=tmp_path / 'c.tif')
    np.testing.assert_array_equal(read_raster(tmp_path / 'c.tif')[..., 0] == 255, expected)


@pytest.mark.parametrize('args, options, match', [
    ((), {}, 'no rasters'), (('image',), {'dst': 'sidecar'}, 'one file'),
    (('image',), {'lazy': True, 'dst': 'a.tif'}, 'computes nothing'),
    (('image',), {'lazy': True, 'max_retries': 1}, 'max_retries'),
    ((('image', 1),), {'bands': 1}, 'both choose bands'),
    (('image', 'small'), {}, 'same size'), (('image',), {'bands': 9}, r'in 0\.\.3')])
def test_wrong_selectors(image, tmp_path, monkeypatch, args, options, match):
    monkeypatch.chdir(tmp_path)
    rasters = {'image': image, 'small': image[:5]}
    args = [rasters[arg] if isinstance(arg, str) else (rasters[arg[0]], arg[1]) for arg in args]
    with pytest.raises(OptionError, match=match):
        prepare_selector(*args, **options)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('options, match', [
    ({'logic': 'al'}, "logic='al' is unknown"), ({'bands': [0, 0]}, 'each once'),
    ({'bands': [4]}, r'in 0\.\.3'), ({'logic': 3, 'bands': [0, 1]}, r'logic=3 must be in 1\.\.2'),
    ({'executor': 'thread'}, 'executor='), ({'block_shape': 0}, 'at least 1'),
    ({'speed': 3}, 'speed'), ({'compress': 'TEA'}, 'compress')])
def test_wrong_options_come_before_any_work(image, tmp_path, options, match, monkeypatch):
    monkeypatch.setattr(mask_sources.MaskSource, 'read', lambda *args: pytest.fail('was read'))
    with pytest.raises(OptionError, match=match):
        compute_mask(image, tmp_path / 'a.tif', nodata=0, **options)
    with pytest.raises(OptionError, match=match):
        compute_mask(image, nodata=0, **options)
    assert os.listdir(tmp_path) == []


def test_the_caller_keeps_its_array(image):
    image.flags.writeable = False
    before = image.copy()
    compute_mask(image, nodata=0, executor='threads:2', block_shape=40)
    np.testing.assert_array_equal(image, before)


def test_many_threads_read_one_mask(image, tmp_path):
    write_cog(tmp_path / 'a.tif', image, nodata=0, interleave='band', blocksize=64)
    mask = MaskSource.open(Source.open(tmp_path / 'a.tif'), logic=2)
    expected = mask.read(Window(0, 0, *SHAPE))
    found = []
    threads = [threading.Thread(target=lambda: found.append(mask.read(Window(0, 0, *SHAPE))))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(np.array_equal(one, expected) for one in found)
