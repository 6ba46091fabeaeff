"""
What the reference did wrong with names, regions, and files: items 31 to 34, and 37.
"""
import copy
import json
import os
from pathlib import Path

import kwcoco
import numpy as np
import pytest
from shapely.geometry import box, shape

from cocoseg import Window, WindowGrid
from cocoseg.errors import ChannelCollisionError, OptionError
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.raster import raster_info
from cocoseg.io.verify import verify_cog


# ---- 31 --------------------------------------------------------------------

NAMES = [None, None, 'a/b', 'a-b', '../../out', '..', '.', '', 'x\0y', 'x' * 500, 'x' * 501,
         'A', 'a', 'a:b', 'é/ü', 'a\nb', ' a', 'a ', '.hidden', '-rf', '7', 'a\\b', '*?"<>|',
         'CON', '~', '$HOME', '%s', 'img_id3', 'name.tif']


def test_31_every_name_gets_a_safe_file(make_dataset, make_manager, read, tmp_path):
    """Names made sub-directories, collided or failed; each must get a file of its own."""
    dset = make_dataset(len(NAMES), dsize=(16, 16))
    for img, name in zip(dset.dataset['images'], NAMES):
        img['name'] = name
    manager = make_manager(dset)
    for image_id in dset.images():
        manager.accumulate_image(image_id, None, np.full((16, 16), image_id / 100))
        manager.finalize_image(image_id)
    file_names = [dset.imgs[image_id]['auxiliary'][0]['file_name'] for image_id in dset.images()]
    assert len({name.casefold() for name in file_names}) == len(NAMES)
    folder = Path(manager.prob_dpath)
    for file_name in file_names:
        path = Path(dset.bundle_dpath, file_name)
        assert path.parent == folder and path.is_file() and path.resolve().parent == folder
        assert path.name.isascii() and path.name.isprintable() and len(path.name) < 200
        assert not set(path.name) & set('/\\:*?"<>| \n\0') and path.name[0] not in '.-'
    for image_id in dset.images():
        assert np.allclose(read(dset, image_id), image_id / 100, atol=1e-4)
    visible = [path for path in tmp_path.rglob('*')
               if path.is_file() and not path.name.startswith('.')]
    assert len(visible) == len(NAMES)


def test_31_same_name_in_two_videos(make_dataset, make_manager, read, noise):
    """The second of two equal names overwrote the first; both must be kept."""
    dset = make_dataset(4, n_videos=2)
    for img in dset.dataset['images']:
        img['name'] = f'frame{img["frame_index"]}'
    manager = make_manager(dset, stitching_space='video')
    for image_id in dset.images():
        manager.accumulate_image(image_id, None, noise(image_id))
        manager.submit_finalize_image(image_id)
    manager.close()
    for image_id in dset.images():
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_31_names_do_not_depend_on_the_order(make_dataset, make_manager):
    """A run that is resumed finishes images in another order; their names must stay."""
    found = []
    for order in ([1, 2, 3, 4], [4, 2, 3, 1]):
        dset = make_dataset(4, dsize=(16, 16), bundle=f'from{order[0]}')
        for img, name in zip(dset.dataset['images'], ['same', 'same', 'Same', 'same_id1']):
            img['name'] = name
        manager = make_manager(dset)
        for image_id in order:
            manager.accumulate_image(image_id, None, np.zeros((16, 16)))
            manager.finalize_image(image_id)
        found.append([dset.imgs[image_id]['auxiliary'][0]['file_name']
                      for image_id in sorted(order)])
    assert found[0] == found[1] and len({name.casefold() for name in found[0]}) == 4


def test_31_names_do_not_meet_across_channels(make_dataset, make_manager, read, noise):
    """'a' + 'b_c' and 'a_b' + 'c' are the same; no two assets may share a file."""
    dset = make_dataset(2)
    dset.imgs[1]['name'], dset.imgs[2]['name'] = 'a', 'a_b'
    managers = [make_manager(dset, chan_code) for chan_code in ('b_c', 'c', 'A_B', 'a_b')]
    for seed, manager in enumerate(managers):
        for image_id in (1, 2):
            manager.accumulate_image(image_id, None, noise(10 * seed + image_id))
            manager.finalize_image(image_id)
    names = [asset['file_name'].casefold() for img in dset.imgs.values()
             for asset in img['auxiliary']]
    assert len(set(names)) == 8
    for seed, manager in enumerate(managers):
        for image_id in (1, 2):
            assert np.allclose(read(dset, image_id, manager.chan_code),
                               noise(10 * seed + image_id), atol=1e-4)


def test_31_files_of_the_manifest_are_never_overwritten(make_dataset, make_manager, read, noise):
    """A file that the manifest names already must not be taken for a new asset."""
    dset = make_dataset(2)
    dset.imgs[2]['name'] = 'other'
    old = {'file_name': '_assets/pred/img1_x.tif', 'channels': 'old', 'width': 64, 'height': 64}
    dset.imgs[2]['auxiliary'] = [old]
    path = Path(dset.bundle_dpath, old['file_name'])
    path.parent.mkdir(parents=True)
    path.write_bytes(b'of somebody else')
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert path.read_bytes() == b'of somebody else'
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


@pytest.mark.parametrize('chan_code', ['hidden.0:4', 'a/b', 'a b', 'é', 'x' * 300, '..', 'a|b'])
def test_31_channels_make_safe_names(make_dataset, make_manager, noise, chan_code):
    """A channel code with / or : went into the file name as it was."""
    dset = make_dataset()
    manager = make_manager(dset, chan_code)
    manager.accumulate_image(1, None, noise()[..., 0])
    manager.finalize_image(1)
    path = Path(dset.bundle_dpath, dset.imgs[1]['auxiliary'][0]['file_name'])
    assert path.parent == Path(manager.prob_dpath) and path.is_file()
    assert path.name.isascii() and not set(path.name) & set('/\\:*?"<>| ') and len(path.name) < 200


def test_31_no_short_code_means_no_folder(make_dataset, make_manager):
    """short_code None made a folder called None; it must be the asset folder itself."""
    dset = make_dataset()
    manager = make_manager(dset, short_code=None, assets_dname='out/deep')
    manager.accumulate_image(1, None, np.zeros((64, 64)))
    manager.finalize_image(1)
    assert dset.imgs[1]['auxiliary'][0]['file_name'] == 'out/deep/img1_x.tif'


def test_31_images_that_come_later(make_dataset, make_manager, read, noise):
    """An image added later with the same name must not take over a file."""
    dset = make_dataset()
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise(1))
    twin = {**copy.deepcopy(dset.imgs[1]), 'id': 2}
    dset.dataset['images'].append(twin)
    dset.index.imgs[2] = twin
    manager.accumulate_image(2, None, noise(2))
    manager.close()
    for image_id in (1, 2):
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


# ---- 32 --------------------------------------------------------------------

def get_region(dset, image_id=1):
    """Return the prediction region, checked as GeoJSON of closed rings."""
    geojson = json.loads(json.dumps(dset.imgs[image_id]['prediction_region']))
    assert geojson['type'] == 'MultiPolygon'
    for polygon in geojson['coordinates']:
        for ring in polygon:
            assert ring[0] == ring[-1] and len(ring) >= 4
    region = shape(geojson)
    assert region.is_valid
    return region


def test_32_region_is_in_image_space(make_dataset, make_manager):
    """The region was in asset pixels and pixel centres; it must be the image's, by edges."""
    dset = make_dataset(dsize=(200, 100))
    manager = make_manager(dset)
    manager.accumulate_image(1, None, np.ones((50, 100)), asset_dsize=(100, 50),
                             scale_asset_from_stitchspace=0.5)
    manager.finalize_image(1)
    assert get_region(dset).equals(box(0, 0, 200, 100))


def test_32_region_of_touching_windows(make_dataset, make_manager):
    """Windows that touch at a corner made an invalid polygon of another area."""
    dset = make_dataset(dsize=(128, 128))
    manager = make_manager(dset)
    for y, x in [(0, 0), (64, 64), (32, 96)]:
        manager.accumulate_image(1, Window(y, x, y + 64, x + 64), np.ones((64, 64)))
    manager.finalize_image(1)
    expected = box(0, 0, 64, 64).union(box(64, 64, 128, 128)).union(box(96, 32, 128, 96))
    assert get_region(dset).equals(expected)


def test_32_region_with_a_hole_and_overhang(make_dataset, make_manager):
    """A ring of windows has a hole, and what overhangs the image is no part of it."""
    dset = make_dataset()
    manager = make_manager(dset)
    for y in (-10, 18, 46):
        for x in (-10, 18, 46):
            if (y, x) != (18, 18):
                manager.accumulate_image(1, Window(y, x, y + 28, x + 28), np.ones((28, 28)))
    manager.finalize_image(1)
    assert get_region(dset).equals(box(0, 0, 64, 64).difference(box(18, 18, 46, 46)))


def test_32_region_of_two_heads(make_dataset, make_manager):
    """The second head overwrote the region of the first; they must be merged."""
    dset = make_dataset()
    for chan_code, x in [('x', 0), ('y', 20)]:
        manager = make_manager(dset, chan_code)
        manager.accumulate_image(1, Window(0, x, 64, x + 20), np.ones((64, 20)))
        manager.finalize_image(1)
    assert get_region(dset).equals(box(0, 0, 40, 64))
    assert dset.imgs[1]['has_predictions'] == {'x': True, 'y': True}


@pytest.mark.parametrize('scale', [(0.5, 0.25), [2, 3], {'scale': (0.5, 2)}, 1 / 3,
                                   np.diag([0.5, 0.75, 1])], ids=str)
def test_32_scales_that_are_not_uniform(make_dataset, make_manager, read, scale):
    """The scale may differ per axis; region and reading must agree with it."""
    factors = {'scale': scale} if not isinstance(scale, dict) else scale
    factor = factors['scale'] if not isinstance(scale, np.ndarray) else (0.5, 0.75)
    sx, sy = factor if np.ndim(factor) else (factor, factor)
    dset = make_dataset(dsize=(120, 60))
    width, height = round(120 * sx), round(60 * sy)
    manager = make_manager(dset)
    data = np.zeros((height, width))
    data[:, width // 2:] = 1
    manager.accumulate_image(1, None, data, asset_dsize=(width, height),
                             scale_asset_from_stitchspace=scale)
    manager.finalize_image(1)
    assert get_region(dset).symmetric_difference(box(0, 0, 120, 60)).area < 1e-6
    found = read(dset, 1)[..., 0]
    assert found.shape == (60, 120)
    assert np.allclose(found[20:40, 5:50], 0, atol=1e-3)
    assert np.allclose(found[20:40, 70:115], 1, atol=1e-3)


def test_32_video_space_with_a_translation(make_dataset, make_manager, read):
    """Windows of a video lie elsewhere in each image; region and asset must follow."""
    dset = make_dataset(n_videos=1, dsize=(64, 64))
    dset.imgs[1].update(width=40, height=30, warp_img_to_vid={
        'type': 'affine', 'scale': [2, 2], 'offset': [8, 4]})
    manager = make_manager(dset, stitching_space='video')
    data = np.zeros((64, 64))
    data[20:40, 30:50] = 1
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    # Video (0, 0) is image (-4, -2); the video ends at image (28, 30).
    assert get_region(dset).equals(box(0, 0, 28, 30))
    in_video = read(dset, 1, space='video')[..., 0]
    assert in_video.shape == (64, 64)
    assert np.allclose(in_video[22:38, 32:48], 1, atol=1e-3)
    assert np.allclose(in_video[6:18, 10:60], 0, atol=1e-3)
    in_image = read(dset, 1)[..., 0]
    assert in_image.shape == (30, 40)
    assert np.allclose(in_image[9:17, 12:20], 1, atol=1e-3)
    assert np.isnan(in_image[:, 29:]).all()


def test_32_image_of_no_video_in_video_space(make_dataset, make_manager, read, noise):
    """An image without a video is its own video."""
    dset = make_dataset()
    manager = make_manager(dset, stitching_space='video')
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert get_region(dset).equals(box(0, 0, 64, 64))
    assert np.allclose(read(dset, 1), noise(), atol=1e-4)


def test_32_attributes_can_be_left_out(make_dataset, make_manager, noise):
    """Without prediction attributes the image must get an asset and nothing else."""
    dset = make_dataset()
    manager = make_manager(dset, write_prediction_attrs=False)
    before = copy.deepcopy(dset.imgs[1])
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert {**dset.imgs[1], 'auxiliary': []} == before


# ---- 33 --------------------------------------------------------------------

@pytest.mark.parametrize('prob_format', ['cog', 'tif'])
def test_33_file_tells_what_it_holds(make_dataset, make_manager, noise, prob_format):
    """Channels were lost, nodata unset and the quantisation no JSON; all must be there."""
    gdal, dset = require_gdal(), make_dataset()
    manager = make_manager(dset, 'water|bare', prob_format=prob_format, expected_minmax=(-1, 3))
    manager.accumulate_image(1, None, noise(0, (64, 64, 2)))
    manager.finalize_image(1)
    dataset = gdal.Open(str(next(Path(manager.prob_dpath).glob('*.tif'))))
    entry = dset.imgs[1]['auxiliary'][0]
    metadata = dataset.GetMetadata()
    assert metadata['channels'] == 'water|bare'
    assert json.loads(metadata['quantization']) == entry['quantization']
    for index, name in enumerate(['water', 'bare']):
        band = dataset.GetRasterBand(index + 1)
        assert band.GetDescription() == name
        assert band.GetNoDataValue() == -9999 == entry['quantization']['nodata']
        assert band.GetScale() == pytest.approx(4 / 32767)
        assert band.GetOffset() == -1
    assert (entry['height'], entry['width'], entry['num_bands']) == (64, 64, 2)
    assert entry['quantization']['orig_dtype'] == 'float32'


def test_33_float_file_has_nan_for_nodata(make_dataset, make_manager, noise):
    """Without quantisation there is no such entry, and NaN is the nodata value."""
    gdal, dset = require_gdal(), make_dataset()
    manager = make_manager(dset, quantize=False)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert 'quantization' not in dset.imgs[1]['auxiliary'][0]
    dataset = gdal.Open(f'{manager.prob_dpath}/img1_x.tif')
    assert np.isnan(dataset.GetRasterBand(1).GetNoDataValue())


def test_33_georeference(make_dataset, make_manager, noise):
    """The world coordinates of the manifest must be in the file, at the asset's scale."""
    dset = make_dataset(dsize=(200, 100), wld_crs_info={
        'auth': ['EPSG', '32633'], 'axis_mapping': 'OAMS_TRADITIONAL_GIS_ORDER'},
        wld_to_pxl={'type': 'affine', 'matrix': [[0.1, 0, -50000], [0, -0.1, -400000], [0, 0, 1]]})
    manager = make_manager(dset)
    manager.accumulate_image(1, None, noise(0, (50, 100, 1)), asset_dsize=(100, 50),
                             scale_asset_from_stitchspace=0.5)
    manager.finalize_image(1)
    info = raster_info(f'{manager.prob_dpath}/img1_x.tif')
    assert info.geotransform == pytest.approx((500000, 20, 0, -4000000, 0, -20))
    assert '32633' in info.crs_wkt


# ---- 34 --------------------------------------------------------------------

JUDGE = '''
    import json, sys
    from rio_cogeo.cogeo import cog_validate
    print(json.dumps(cog_validate(sys.argv[1], strict=True, quiet=True)))
'''


def test_34_is_a_cog_with_nodata_aware_overviews(make_dataset, make_manager, run_child):
    """There were no overviews without a CRS, and nodata bled into them."""
    pytest.importorskip('rio_cogeo')
    gdal, dset = require_gdal(), make_dataset(dsize=(1100, 700))
    manager = make_manager(dset, 'x|y')
    rng = np.random.RandomState(0)
    data = np.float32(0.4) + rng.rand(700, 1100, 2).astype(np.float32) * np.float32(0.2)
    data[rng.rand(700, 1100) < 0.3] = np.nan
    data[:, 600:800] = np.nan
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    path = next(Path(manager.prob_dpath).glob('*.tif'))
    is_valid, errors, warnings = run_child(JUDGE, path)
    assert is_valid and errors == [] and warnings == []
    report = verify_cog(path, full=True)
    assert report.overview_shapes[:2] == ((350, 550), (175, 275))
    dataset = gdal.Open(str(path))
    assert dataset.GetMetadata('IMAGE_STRUCTURE')['LAYOUT'] == 'COG'
    for level in range(2):
        codes = dataset.GetRasterBand(2).GetOverview(level).ReadAsArray()
        valid = codes != -9999
        assert valid[:, :250 >> level].mean() > 0.9
        assert codes[valid].min() >= 0.4 * 32767 - 1 and codes[valid].max() <= 0.6 * 32767 + 1
        assert not valid[:, (600 >> level + 1) + 1:(800 >> level + 1) - 1].any()
    small = dset.coco_image(1).imdelay('y', space='image', nodata_method='float').scale(0.25)
    zoomed = small.finalize(optimize=True)
    assert 0.39 < np.nanmin(zoomed) and np.nanmax(zoomed) < 0.61


# ---- 37 --------------------------------------------------------------------

@pytest.mark.parametrize('n_bands', [1, 2, 3, 4])
def test_37_png_with_up_to_four_bands(make_dataset, make_manager, read, n_bands):
    """png with two bands failed after the registration; one to four must be read back."""
    dset, channels = make_dataset(), '|'.join('abcd'[:n_bands])
    manager = make_manager(dset, channels, prob_format='png')
    data = np.random.RandomState(0).rand(64, 64, n_bands)
    data[:9, :9] = np.nan
    # Where a last band was taken for transparency, others would change with it.
    data[10:20, 10:20, -1] = 0
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1, channels), data, atol=0.51 / 254, equal_nan=True)
    entry = dset.imgs[1]['auxiliary'][0]
    assert entry['file_name'].endswith('.png') and entry['num_bands'] == n_bands
    assert (entry['quantization']['quant_min'], entry['quantization']['nodata']) == (1, 0)


@pytest.mark.parametrize('options', [
    {'chan_code': 'a|b|c|d|e'}, {'chan_code': 'a.0:16'}, {'chan_code': 'a', 'quantize': False}],
    ids=str)
def test_37_what_png_cannot_hold_is_refused(make_dataset, make_manager, options):
    """More than four bands, or floats, must be refused before anything is made."""
    dset = make_dataset()
    before = copy.deepcopy(dset.dataset)
    with pytest.raises(OptionError, match='png'):
        make_manager(dset, prob_format='png', **options)
    assert dset.dataset == before and not os.path.exists(dset.bundle_dpath)


def test_37_no_rerun_in_another_format(make_dataset, make_manager):
    """An asset of the same channels in another format is still the same channels."""
    dset = make_dataset()
    for prob_format in ('png', 'cog'):
        manager = make_manager(dset, prob_format=prob_format, on_collision='replace')
        manager.accumulate_image(1, None, np.zeros((64, 64)))
        manager.finalize_image(1)
    assert len(dset.imgs[1]['auxiliary']) == 1
    with pytest.raises(ChannelCollisionError):
        make_manager(dset, prob_format='png').accumulate_image(1, None, np.zeros((64, 64)))


def test_saved_result_is_valid_for_kwcoco(make_dataset, make_manager, noise):
    """All in all: what is saved must pass kwcoco's own validation."""
    dset = make_dataset(3, n_videos=1, dsize=(80, 60))
    grid = WindowGrid((60, 80), window=32, overlap=8)
    with make_manager(dset, 'x|y', stitching_space='video') as manager:
        for image_id in dset.images():
            manager.expect_windows(image_id, grid)
            for window in grid:
                manager.accumulate_image(image_id, window, noise(image_id, (32, 32, 2)))
            manager.submit_finalize_image(image_id)
        manager.dump()
    result = kwcoco.CocoDataset(dset.fpath).validate(missing=True, verbose=0)
    assert result['errors'] == []
