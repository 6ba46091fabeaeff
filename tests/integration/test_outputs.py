"""
What lies in a bundle afterwards, judged by others.

kwcoco reopens the manifest, GDAL reads the files, delayed_image decodes them,
shapely checks the regions, and rio-cogeo validates the COGs in a process of
its own (rasterio brings another GDAL along, and must not share one with ours).
"""
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from xml.sax.saxutils import escape

import kwcoco
import kwimage
import numpy as np
import pytest
from delayed_image import FusedChannelSpec
from delayed_image.helpers import dequantize
from osgeo import gdal
from shapely.geometry import shape

from cocoseg import CocoStitchingManager, Window, WindowGrid, write_cog
from cocoseg.errors import AssetWriteError

from ..builders import ROTATED

gdal.UseExceptions()
CODES = 32767


def make_dataset(folder, dsize=(256, 256), vid_scale=1, video=True, **fields):
    """One image, in a video of the same or another scale."""
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    width, height = dsize
    if video:
        vid_dsize = [round(size * vid_scale) for size in dsize]
        fields['video_id'] = dset.add_video(name='vid', width=vid_dsize[0], height=vid_dsize[1])
        fields['frame_index'] = 0
        fields.setdefault('warp_img_to_vid', {'type': 'affine', 'scale': vid_scale})
    fields.setdefault('auxiliary', [])
    dset.add_image(name='f0', width=width, height=height, **fields)
    return dset


def stitch(dset, data, chan_code='a|b|c', window=None, place=None, **options):
    """Stitch one window into image 1 and save; return (asset, fpath, reopened)."""
    options = {'expected_minmax': (0, 1), **options}
    manager = CocoStitchingManager(dset, 'pred', chan_code, **options)
    manager.accumulate_image(1, window, data, **(place or {}))
    manager.finalize_image(1)
    manager.close()
    manager.dump()
    reopened = kwcoco.CocoDataset(dset.fpath)
    asset = get_assets(reopened)[-1]
    return asset, os.path.join(reopened.bundle_dpath, asset['file_name']), reopened


def get_assets(dset):
    img = dset.index.imgs[1]
    return [*(img.get('assets') or ()), *(img.get('auxiliary') or ())]


def read_gdal(fpath, level=None):
    """Return (H, W, C) as stored, of the image or of an overview."""
    dataset = gdal.Open(fpath)
    bands = [dataset.GetRasterBand(i + 1) for i in range(dataset.RasterCount)]
    if level is not None:
        bands = [band.GetOverview(level) for band in bands]
    data = np.stack([band.ReadAsArray() for band in bands], axis=2)
    del bands
    return data


def make_data(shape_, seed=0):
    """Values in [0, 1] with some NaN, float32."""
    rng = np.random.RandomState(seed)
    data = rng.rand(*shape_).astype('f4')
    data[rng.rand(*shape_[:2]) < 0.1] = np.nan
    return data


# --- the manifest --------------------------------------------------------

def test_exact_manifest_fields(tmp_path):
    """Video mode, an asset of half the video's size, a video of half the image's."""
    dset = make_dataset(tmp_path, vid_scale=0.5)
    data = make_data((64, 64, 3))
    stitch(dset, data, place={'asset_dsize': (64, 64), 'scale_asset_from_stitchspace': 0.5})
    img = kwcoco.CocoDataset(dset.fpath).index.imgs[1]
    assert img['auxiliary'] == [{
        'file_name': '_assets/pred/f0_8af6a4177fe312b2.tif',
        'channels': 'a|b|c', 'height': 64, 'width': 64, 'num_bands': 3,
        'warp_aux_to_img': {'scale': 4.0, 'type': 'affine'},
        'quantization': {'orig_dtype': 'float32', 'orig_min': 0, 'orig_max': 1,
                         'quant_min': 0, 'quant_max': 32767, 'nodata': -9999}}]
    assert img['has_predictions'] == {'a|b|c': True}
    assert shape(img['prediction_region']).equals(shape(
        {'type': 'Polygon', 'coordinates': [[[0, 0], [256, 0], [256, 256], [0, 256], [0, 0]]]}))
    assert set(img) == {'id', 'file_name', 'name', 'width', 'height', 'video_id', 'frame_index',
                        'warp_img_to_vid', 'auxiliary', 'prediction_region', 'has_predictions'}


def test_the_reopened_manifest_gives_the_pixels_back(tmp_path):
    dset = make_dataset(tmp_path, vid_scale=0.5)
    data = make_data((64, 64, 3))
    asset, fpath, reopened = stitch(
        dset, data, place={'asset_dsize': (64, 64), 'scale_asset_from_stitchspace': 0.5})
    assert reopened.validate() == {'errors': [], 'warnings': []}
    by_gdal = dequantize(read_gdal(fpath), asset['quantization'])
    by_kwcoco = reopened.coco_image(1).imdelay('a|b|c', space='asset').finalize()
    for found in (by_gdal, by_kwcoco):
        assert np.array_equal(np.isnan(found), np.isnan(data) | np.isnan(data).any(2)[..., None])
        assert np.nanmax(np.abs(found - data)) <= 0.5 / CODES * (1 + 1e-3)
    coco_img = reopened.coco_image(1)
    assert coco_img.imdelay('b', space='image').finalize().shape == (256, 256, 1)
    assert coco_img.imdelay('b', space='video').finalize().shape == (128, 128, 1)


@pytest.mark.parametrize('scale, warp_img_to_vid, expected', [
    (None, {'type': 'affine'}, {'type': 'affine'}),
    ((0.5, 0.25), {'type': 'affine'}, {'scale': [2.0, 4.0], 'type': 'affine'}),
    (0.5, {'type': 'affine', 'offset': (10, -4)},
     {'offset': [-10.0, 4.0], 'scale': 2.0, 'type': 'affine'}),
    (kwimage.Affine.affine(scale=0.5, offset=(1, 2)), {'type': 'affine', 'scale': 0.5},
     {'offset': [-4.0, -8.0], 'scale': 4.0, 'type': 'affine'})])
def test_the_transform_of_the_asset(tmp_path, scale, warp_img_to_vid, expected):
    dset = make_dataset(tmp_path, warp_img_to_vid=warp_img_to_vid)
    asset, *_ = stitch(dset, np.ones((20, 30, 3)), place={
        'asset_dsize': (30, 20), 'scale_asset_from_stitchspace': scale})
    assert asset['warp_aux_to_img'] == expected


@pytest.mark.parametrize('space, scale, offset', [
    ('video', 1, (0, 0)), ('video', 0.5, (0, 0)), ('video', 0.5, (-12, 8)), ('image', 0.5, (6, 2))])
def test_what_was_put_somewhere_is_read_there(tmp_path, space, scale, offset):
    """A bright square, drawn on the asset grid, found again in stitching space."""
    dset = make_dataset(tmp_path, dsize=(96, 80),
                        warp_img_to_vid={'type': 'affine', 'offset': offset})
    data = np.zeros((int(80 * scale), int(96 * scale), 1))
    data[10:20, 12:30] = 1
    stitch(dset, data, 'a', stitching_space=space, place={
        'asset_dsize': data.shape[1::-1], 'scale_asset_from_stitchspace': scale})
    found = dset.coco_image(1).imdelay('a', space=space, interpolation='nearest').finalize()
    ys, xs = np.nonzero(found[..., 0] > 0.5)
    edges = np.array([ys.min(), ys.max() + 1, xs.min(), xs.max() + 1])
    assert edges.tolist() == [edge / scale for edge in (10, 20, 12, 30)]


@pytest.mark.parametrize('key', ['assets', 'auxiliary'])
def test_the_bands_that_were_there_stay_readable(tmp_path, key):
    kwimage.imwrite(tmp_path / 'rgb.png', np.full((32, 32, 3), 77, 'u1'))
    band = {'file_name': 'rgb.png', 'channels': 'r|g|b', 'width': 32, 'height': 32,
            'warp_aux_to_img': {'type': 'affine'}}
    dset = make_dataset(tmp_path, (32, 32), auxiliary=[band] if key == 'auxiliary' else None)
    if key == 'assets':
        img = dset.index.imgs[1]
        del img['auxiliary']
        img['assets'] = [band]
    _, _, reopened = stitch(dset, np.ones((32, 32, 2)), 'x|y')
    assert set(reopened.index.imgs[1]) & {'assets', 'auxiliary'} == {key}
    stack = reopened.coco_image(1).imdelay('r|g|b|x|y').finalize()
    assert (stack[..., :3] == 77).all() and (stack[..., 3:] == 1).all()
    assert reopened.coco_image(1).primary_asset()['file_name'] == 'rgb.png'
    assert reopened.validate() == {'errors': [], 'warnings': []}


def test_the_regions_of_two_heads_are_merged(tmp_path):
    dset = make_dataset(tmp_path, (64, 48))
    left, right = Window(0, 0, 48, 32), Window(0, 32, 24, 64)
    stitch(dset, np.ones((48, 32, 1)), 'a', window=left)
    # The other head works at a quarter of the resolution.
    stitch(dset, np.ones((6, 8, 2)), 'b|c', window=Window(0, 8, 6, 16), place={
        'asset_dsize': (16, 12), 'scale_asset_from_stitchspace': 0.25})
    img = kwcoco.CocoDataset(dset.fpath).index.imgs[1]
    assert img['has_predictions'] == {'a': True, 'b|c': True}
    region = shape(img['prediction_region'])
    assert region.is_valid and region.geom_type == 'MultiPolygon'
    assert region.area == left.area + right.area
    for polygon in img['prediction_region']['coordinates']:
        assert all(ring[0] == ring[-1] for ring in polygon)


def test_prediction_attributes_can_be_left_out(tmp_path):
    _, _, reopened = stitch(make_dataset(tmp_path, (32, 32)), np.ones((32, 32, 3)),
                            write_prediction_attrs=False)
    assert not {'prediction_region', 'has_predictions'} & set(reopened.index.imgs[1])


# --- the files -----------------------------------------------------------

@pytest.fixture(scope='module')
def large(tmp_path_factory):
    """A stitched image of several tiles, with a border that is nodata."""
    folder = tmp_path_factory.mktemp('large')
    dset = make_dataset(folder, (600, 520), wld_to_pxl={
        'type': 'affine', 'scale': 0.1, 'offset': (-50000, 400000)}, wld_crs_info={
        'auth': ['EPSG', '32618'], 'axis_mapping': 'OAMS_TRADITIONAL_GIS_ORDER'})
    ys, xs = np.mgrid[:520, :600] / 600
    data = np.stack([ys, 1 - xs], axis=2).astype('f4')
    data[:, :101] = np.nan
    manager = CocoStitchingManager(dset, 'pred', 'a|b', expected_minmax=(0, 1))
    grid = WindowGrid((520, 600), 256, 64)
    manager.expect_windows(1, grid)
    for window in grid:
        inside = window.clip((520, 600))
        manager.accumulate_image(1, inside, data[inside.slices])
    manager.close()
    asset, = get_assets(dset)
    return os.path.join(dset.bundle_dpath, asset['file_name']), asset, data


def test_a_coordinate_system_that_no_geotiff_holds(tmp_path, caplog):
    """The prediction is written without it, and a warning says so."""
    (tmp_path / 'base.vrt').write_text(
        f'<VRTDataset rasterXSize="32" rasterYSize="32"><SRS>{escape(ROTATED)}</SRS>'
        '<GeoTransform>5, 2, 0, 7, 0, -2</GeoTransform>'
        '<VRTRasterBand dataType="Byte" band="1"/></VRTDataset>')
    dset = make_dataset(tmp_path, (32, 32), video=False, file_name='base.vrt')
    with CocoStitchingManager(dset, 'pred', 'a', 'image', expected_minmax=(0, 1)) as manager:
        manager.accumulate_image(1, None, np.ones((32, 32)))
    (asset,) = get_assets(dset)
    fpath = os.path.join(dset.bundle_dpath, asset['file_name'])
    dataset = gdal.Open(fpath)
    assert dataset.GetSpatialRef() is None and dataset.ReadAsArray().min() == CODES
    assert dataset.GetGeoTransform() == (5, 2, 0, 7, 0, -2)
    assert 'coordinate system' in caplog.text


def test_a_tiff_says_everything_without_the_manifest(large):
    fpath, asset, data = large
    dataset = gdal.Open(fpath)
    assert dataset.GetMetadataItem('LAYOUT', 'IMAGE_STRUCTURE') == 'COG'
    assert dataset.GetMetadataItem('COMPRESSION', 'IMAGE_STRUCTURE') == 'ZSTD'
    metadata = dataset.GetMetadata()
    assert metadata['channels'] == 'a|b'
    assert json.loads(metadata['quantization']) == asset['quantization']
    for index, channel in enumerate('ab'):
        band = dataset.GetRasterBand(index + 1)
        assert band.GetDescription() == channel
        assert band.GetNoDataValue() == asset['quantization']['nodata'] == -9999
        assert band.GetBlockSize() == [256, 256]
        # True values for programs that know nothing of kwcoco.
        stored = band.ReadAsArray()
        true = np.where(stored == band.GetNoDataValue(), np.nan,
                        stored * band.GetScale() + band.GetOffset())
        assert np.array_equal(np.isnan(true), np.isnan(data[..., index]))
        assert np.nanmax(np.abs(true - data[..., index])) <= 0.5 / CODES + 1e-6
        del band


def test_overviews_are_means_of_the_valid_pixels(large):
    fpath, _, data = large
    dataset = gdal.Open(fpath)
    count = dataset.GetRasterBand(1).GetOverviewCount()
    assert count >= 2
    codes = read_gdal(fpath, level=0)
    assert codes.shape == (260, 300, 2)
    # Column 50 holds column 100 (nodata) and column 101.
    assert (codes[:, :50] == -9999).all() and (codes[:, 50:] >= 0).all()
    expected = np.stack([data[2 * i:2 * i + 2].mean(axis=0) for i in range(260)])
    expected = np.nanmean(np.stack([expected[:, 1::2][:, 50:], expected[:, 0::2][:, 50:]]), axis=0)
    assert np.abs(codes[:, 50:] / CODES - expected).max() <= 1.01 / CODES
    coarsest = read_gdal(fpath, level=count - 1)
    assert ((coarsest == -9999) | (coarsest >= 0)).all()


def test_rio_cogeo_finds_nothing_to_complain_about(large, tmp_path):
    if importlib.util.find_spec('rio_cogeo') is None:
        pytest.skip('rio-cogeo is not installed; it judges our COGs: pip install rio-cogeo')
    as_float = stitch(make_dataset(tmp_path, (600, 300)), make_data((300, 600, 3)),
                      quantize=False, prob_compress='DEFLATE')[1]
    # rio starts with another GDAL and must not see the data of ours.
    env = {name: value for name, value in os.environ.items()
           if name not in ('GDAL_DATA', 'PROJ_LIB', 'PROJ_DATA', 'GDAL_DRIVER_PATH')}
    rio = Path(sys.executable).with_name('rio')
    command = [rio] if rio.exists() else [sys.executable, '-m', 'rasterio.rio.main']
    for fpath in (large[0], as_float):
        result = subprocess.run([*command, 'cogeo', 'validate', '--strict', fpath], env=env,
                                capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr
        assert 'is a valid cloud optimized GeoTIFF' in result.stdout, result.stdout


def test_floats_keep_nan(tmp_path):
    data = make_data((40, 50, 3)) * 3 - 1
    asset, fpath, reopened = stitch(make_dataset(tmp_path, (50, 40)), data, quantize=False,
                                    expected_minmax=None)
    assert 'quantization' not in asset
    found = read_gdal(fpath)
    assert found.dtype == np.float32
    assert np.array_equal(found, np.where(np.isnan(data).any(2)[..., None], np.nan, data),
                          equal_nan=True)
    assert np.isnan(gdal.Open(fpath).GetRasterBand(1).GetNoDataValue())
    by_kwcoco = reopened.coco_image(1).imdelay('a|b|c', space='asset').finalize()
    assert np.array_equal(by_kwcoco, found, equal_nan=True)


def test_floats_are_clipped_to_the_expected_range(tmp_path):
    _, fpath, _ = stitch(make_dataset(tmp_path, (50, 40)), make_data((40, 50, 3)) * 3 - 1,
                         quantize=False)
    found = read_gdal(fpath)
    assert np.nanmin(found) == 0 and np.nanmax(found) == 1


def test_a_float64_canvas_makes_a_float64_file(tmp_path):
    data = make_data((40, 50, 3)).astype(float) + 1e-12
    asset, fpath, _ = stitch(make_dataset(tmp_path, (50, 40)), data, quantize=False,
                             dtype='float64')
    assert read_gdal(fpath).dtype == np.float64


def test_a_plain_tiff(tmp_path):
    data = make_data((70, 90, 3))
    asset, fpath, _ = stitch(make_dataset(tmp_path, (90, 70)), data, prob_format='tif',
                             prob_blocksize=64, prob_compress='LZW')
    assert fpath.endswith('.tif')
    dataset = gdal.Open(fpath)
    assert dataset.GetRasterBand(1).GetBlockSize() == [64, 64]
    assert dataset.GetMetadataItem('COMPRESSION', 'IMAGE_STRUCTURE') == 'LZW'
    assert dataset.GetRasterBand(2).GetDescription() == 'b'
    found = dequantize(read_gdal(fpath), asset['quantization'])
    assert np.nanmax(np.abs(found - data)) <= 0.5 / CODES * (1 + 1e-3)


@pytest.mark.parametrize('chan_code', ['a', 'a|b', 'a|b|c', 'h.0:4'])
def test_a_png(tmp_path, chan_code):
    n_bands = FusedChannelSpec.coerce(chan_code).numel()
    data = make_data((40, 50, n_bands))
    asset, fpath, reopened = stitch(make_dataset(tmp_path, (50, 40)), data, chan_code,
                                    prob_format='png')
    assert fpath.endswith('.png')
    assert asset['quantization'] == {'orig_dtype': 'float32', 'orig_min': 0, 'orig_max': 1,
                                     'quant_min': 1, 'quant_max': 255, 'nodata': 0}
    codes = read_gdal(fpath)
    assert codes.dtype == np.uint8 and codes.shape == data.shape
    found = reopened.coco_image(1).imdelay(chan_code, space='asset').finalize()
    for values in (found, dequantize(codes, asset['quantization'])):
        assert np.array_equal(np.isnan(values), np.isnan(data))
        assert np.nanmax(np.abs(values - data)) <= 0.5 / 254 * (1 + 1e-3)


@pytest.mark.parametrize('prob_format', ['cog', 'tif', 'png'])
@pytest.mark.parametrize('value, minmax', [(0, None), (1, None), (0.3, None), (-7.25, None),
                                           (5, (5, 5)), (np.nan, None), (np.nan, (0, 1))])
def test_constant_and_empty_images(tmp_path, prob_format, value, minmax):
    asset, fpath, reopened = stitch(make_dataset(tmp_path, (50, 40)), np.full((40, 50, 3), value),
                                    prob_format=prob_format, expected_minmax=minmax)
    found = reopened.coco_image(1).imdelay('a|b|c', space='asset').finalize()
    assert np.array_equal(found, np.full((40, 50, 3), value, 'f4'), equal_nan=True)


@pytest.mark.parametrize('prob_compress', ['ZSTD', 'DEFLATE', 'LZW', 'RAW', 'NONE'])
def test_every_compression_holds_the_same(tmp_path, prob_compress):
    data = make_data((40, 50, 3))
    asset, fpath, _ = stitch(make_dataset(tmp_path, (50, 40)), data, prob_compress=prob_compress,
                             prob_blocksize=128)
    found = dequantize(read_gdal(fpath), asset['quantization'])
    assert np.nanmax(np.abs(found - data)) <= 0.5 / CODES * (1 + 1e-3)
    compression = gdal.Open(fpath).GetMetadataItem('COMPRESSION', 'IMAGE_STRUCTURE')
    assert compression == (None if prob_compress in ('RAW', 'NONE') else prob_compress)


def test_hostile_names_stay_in_the_asset_folder(tmp_path):
    bundle = tmp_path / 'bundle'
    dset = make_dataset(bundle, (32, 32))
    dset.index.imgs[1]['name'] = '../../../escape'
    asset, fpath, reopened = stitch(dset, np.ones((32, 32, 1)), '../../channel')
    assert os.path.dirname(os.path.realpath(fpath)) == os.path.realpath(bundle / '_assets/pred')
    assert os.listdir(tmp_path) == ['bundle']
    assert reopened.validate() == {'errors': [], 'warnings': []}


def test_a_bundle_can_be_moved(tmp_path):
    _, _, reopened = stitch(make_dataset(tmp_path / 'here', (32, 32)), np.ones((32, 32, 3)))
    os.rename(tmp_path / 'here', tmp_path / 'there')
    moved = kwcoco.CocoDataset(tmp_path / 'there' / 'out.kwcoco.json')
    assert (moved.coco_image(1).imdelay('a').finalize() == 1).all()


# --- world coordinates ---------------------------------------------------

def test_georeference_of_the_manifest(tmp_path):
    """0.1 px per metre and an asset of half the resolution: 20 m pixels."""
    dset = make_dataset(tmp_path, wld_to_pxl={
        'type': 'affine', 'scale': 0.1, 'offset': (-50000, 400000)}, wld_crs_info={
        'auth': ['EPSG', '32618'], 'axis_mapping': 'OAMS_TRADITIONAL_GIS_ORDER'})
    _, fpath, _ = stitch(dset, np.ones((128, 128, 3)), place={
        'asset_dsize': (128, 128), 'scale_asset_from_stitchspace': 0.5})
    dataset = gdal.Open(fpath)
    assert dataset.GetGeoTransform() == pytest.approx((500000, 20, 0, -4000000, 0, 20))
    assert dataset.GetSpatialRef().GetAuthorityCode(None) == '32618'


def test_georeference_through_the_video(tmp_path):
    """Asset, video and image grids all differ."""
    dset = make_dataset(tmp_path, warp_img_to_vid={'type': 'affine', 'scale': 0.5,
                                                   'offset': (4, 8)},
                        wld_to_pxl={'type': 'affine', 'scale': 0.1, 'offset': (-50000, 400000)},
                        wld_crs_info={'auth': ['EPSG', '32618']})
    _, fpath, _ = stitch(dset, np.ones((64, 64, 3)), place={
        'asset_dsize': (64, 64), 'scale_asset_from_stitchspace': 0.5})
    # Asset (0, 0) is video (0, 0), image (-8, -16), world -80 and -160 m.
    assert gdal.Open(fpath).GetGeoTransform() == pytest.approx(
        (500000 - 80, 40, 0, -4000000 - 160, 0, 40))


@pytest.mark.parametrize('axis_mapping', ['OAMS_TRADITIONAL_GIS_ORDER', 'OAMS_AUTHORITY_COMPLIANT'])
def test_geographic_coordinates_in_either_axis_order(tmp_path, axis_mapping):
    lonlat_from_img = np.array([[0.01, 0, 10], [0, -0.02, 50], [0, 0, 1]])
    wld_from_img = lonlat_from_img
    if axis_mapping == 'OAMS_AUTHORITY_COMPLIANT':
        wld_from_img = lonlat_from_img[[1, 0, 2]]
    dset = make_dataset(
        tmp_path, wld_to_pxl=kwimage.Affine(np.linalg.inv(wld_from_img)).concise(),
        wld_crs_info={'auth': ['EPSG', '4326'], 'axis_mapping': axis_mapping})
    _, fpath, _ = stitch(dset, np.ones((256, 256, 3)))
    dataset = gdal.Open(fpath)
    assert dataset.GetGeoTransform() == pytest.approx((10, 0.01, 0, 50, 0, -0.02))
    assert dataset.GetSpatialRef().GetAuthorityCode(None) == '4326'


def test_georeference_of_an_existing_file(tmp_path):
    write_cog(tmp_path / 'band.tif', np.ones((64, 64), 'u1'), crs=32618,
              transform=[[40, 0, 500000], [0, -40, 4000000], [0, 0, 1]])
    dset = make_dataset(tmp_path, auxiliary=[{
        'file_name': 'band.tif', 'channels': 'pan', 'width': 64, 'height': 64,
        'warp_aux_to_img': {'type': 'affine', 'scale': 4}}])
    _, fpath, _ = stitch(dset, np.ones((128, 128, 3)), place={
        'asset_dsize': (128, 128), 'scale_asset_from_stitchspace': 0.5})
    dataset = gdal.Open(fpath)
    assert dataset.GetGeoTransform() == pytest.approx((500000, 20, 0, 4000000, 0, -20))
    assert dataset.GetSpatialRef().GetAuthorityCode(None) == '32618'


def test_no_georeference_where_none_is_known(tmp_path):
    _, fpath, _ = stitch(make_dataset(tmp_path), np.ones((256, 256, 3)))
    dataset = gdal.Open(fpath)
    assert dataset.GetSpatialRef() is None
    assert dataset.GetGeoTransform(can_return_null=True) in (None, (0, 1, 0, 0, 0, 1))


def test_a_georeference_that_cannot_be_used_stops_the_write(tmp_path):
    dset = make_dataset(tmp_path, wld_crs_info={'auth': ['LOCAL', 'x']})
    with pytest.raises(AssetWriteError, match='authority must be EPSG'):
        stitch(dset, np.ones((256, 256, 3)))
    assert get_assets(dset) == []


# --- polygons ------------------------------------------------------------

def predict_polygons(folder, data, place=None, **options):
    dset = make_dataset(folder, (64, 48))
    stitch(dset, data, 'a|b', place=place, **{'write_preds': True, **options})
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate() == {'errors': [], 'warnings': []}
    return reopened, list(reopened.annots().objs)


def get_polygon(annotation):
    return kwimage.MultiPolygon.coerce(annotation['segmentation']).to_shapely()


def test_polygons_follow_pixel_edges_in_image_space(tmp_path):
    data = np.zeros((24, 32, 2))
    data[4:10, 6:16, 0] = 0.75
    data[4, 6, 0] = 0.95
    data[20:24, 30:32, 1] = 0.5
    place = {'asset_dsize': (32, 24), 'scale_asset_from_stitchspace': 0.5}
    dset, annotations = predict_polygons(tmp_path, data, place)
    annotation, = annotations
    assert dset.cats[annotation['category_id']]['name'] == 'a'
    polygon = get_polygon(annotation)
    assert polygon.bounds == (12, 8, 32, 20) and polygon.area == 20 * 12
    assert annotation['bbox'] == [12, 8, 20, 12]
    assert annotation['score'] == pytest.approx((0.75 * 59 + 0.95) / 60, abs=1e-4)


def test_each_part_is_a_polygon_and_holes_stay_open(tmp_path):
    data = np.zeros((48, 64, 2))
    data[2:12, 2:12, 0] = 0.9
    data[5:9, 5:9, 0] = 0.1
    data[20:24, 20:24, 0] = 0.6
    data[30:40, 30:40, 1] = 0.8
    data[30:32, 30:32] = np.nan
    dset, annotations = predict_polygons(tmp_path, data)
    found = sorted((dset.cats[a['category_id']]['name'], get_polygon(a).area,
                    round(a['score'], 3)) for a in annotations)
    assert found == [('a', 16, 0.6), ('a', 84, 0.9), ('b', 96, 0.8)]
    assert all(get_polygon(annotation).is_valid for annotation in annotations)


def test_threshold_and_categories(tmp_path):
    data = np.zeros((48, 64, 2))
    data[:8, :8] = 0.5
    data[20:30, 20:30] = 0.2
    dset, annotations = predict_polygons(tmp_path, data, thresh=0.1, polygon_categories=['b'])
    assert {dset.cats[a['category_id']]['name'] for a in annotations} == {'b'}
    assert sorted(get_polygon(a).area for a in annotations) == [64, 100]
    # A value at the threshold is not above it.
    (tmp_path / 'other').mkdir()
    _, annotations = predict_polygons(tmp_path / 'other', data, thresh=0.5)
    assert annotations == []


def test_an_image_that_is_all_above_the_threshold(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        _, annotations = predict_polygons(tmp_path, np.ones((48, 64, 2)))
    assert [get_polygon(a).area for a in annotations] == [64 * 48] * 2
    assert [a['score'] for a in annotations] == [1, 1]


def test_polygons_without_the_heatmap(tmp_path):
    data = np.zeros((48, 64, 2))
    data[:8, :8] = 0.9
    dset = make_dataset(tmp_path, (64, 48))
    with CocoStitchingManager(dset, 'pred', 'a|b', write_preds=True, write_probs=False,
                              expected_minmax=(0, 1)) as manager:
        manager.accumulate_image(1, None, data)
        info = manager.finalize_image(1)
    assert info['n_anns'] == 2 and info['file_name'] is None
    assert get_assets(dset) == [] and dset.n_annots == 2
    assert list((tmp_path / '_assets').rglob('*.tif')) == []
    assert dset.index.imgs[1]['has_predictions'] == {'a|b': True}
