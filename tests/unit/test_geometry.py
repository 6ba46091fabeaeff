"""Where assets lie: scales, transforms, covered regions, world coordinates."""
import json

import kwimage
import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import shape

from cocoseg import Window, write_cog
from cocoseg.coco.geometry import (coerce_dsize, coerce_scale, compute_region, concise_affine,
                                   georeference, merge_regions, region_to_geojson,
                                   stitchspace_dsize, warp_img_from_stitchspace)
from cocoseg.errors import ManifestError, OptionError

EYE = kwimage.Affine.eye()
FACTORS = st.floats(0.01, 100)


# --- transforms ----------------------------------------------------------

@pytest.mark.parametrize('scale', [
    (0.5, 2), [0.5, 2], np.array([0.5, 2]), kwimage.Affine.scale((0.5, 2)),
    np.diag([0.5, 2, 1]), {'type': 'affine', 'scale': (0.5, 2)}])
def test_all_spellings_of_a_scale_agree(scale):
    assert np.array_equal(coerce_scale(scale).matrix, np.diag([0.5, 2, 1]))


@pytest.mark.parametrize('scale, factor', [(None, 1), (2, 2), (0.25, 0.25),
                                           (np.float32(0.5), 0.5), (np.int64(3), 3)])
def test_a_single_factor_counts_for_both_axes(scale, factor):
    assert np.array_equal(coerce_scale(scale).matrix, np.diag([factor, factor, 1]))


@pytest.mark.parametrize('scale', [0, (0, 1), (1, 0), np.nan, np.inf, (1, np.nan), 'half',
                                   (1, 2, 3), np.zeros((3, 3)), np.eye(2), object()])
def test_a_scale_that_cannot_be_inverted_is_refused(scale):
    with pytest.raises(OptionError, match='scale_asset_from_stitchspace'):
        coerce_scale(scale)


@given(st.tuples(FACTORS, FACTORS), st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)),
       st.floats(-3, 3), st.floats(-0.9, 0.9))
def test_concise_affine_is_plain_json_and_loses_nothing(scale, offset, theta, shearx):
    warp = kwimage.Affine.affine(scale=scale, offset=offset, theta=theta, shearx=shearx)
    concise = json.loads(json.dumps(concise_affine(warp)))
    back = kwimage.Affine.coerce(concise)
    assert np.allclose(back.matrix, warp.matrix, rtol=1e-6, atol=1e-6)


def test_concise_affine_is_that_of_the_reference():
    assert concise_affine(kwimage.Affine.scale(4.0)) == {'scale': 4.0, 'type': 'affine'}
    assert concise_affine(EYE) == {'type': 'affine'}
    assert concise_affine(kwimage.Affine.affine(scale=(2, 3), offset=(-1, 5))) == {
        'offset': [-1.0, 5.0], 'scale': [2.0, 3.0], 'type': 'affine'}


def test_stitching_space_is_video_space_or_image_space():
    img = {'warp_img_to_vid': {'type': 'affine', 'scale': 0.5, 'offset': (3, 4)}}
    found = warp_img_from_stitchspace(img, 'video').matrix
    assert np.allclose(found, [[2, 0, -6], [0, 2, -8], [0, 0, 1]])
    assert np.array_equal(warp_img_from_stitchspace(img, 'image').matrix, np.eye(3))


@pytest.mark.parametrize('img', [{}, {'warp_img_to_vid': None}])
def test_an_image_without_a_transform_is_its_own_video(img):
    assert np.array_equal(warp_img_from_stitchspace(img, 'video').matrix, np.eye(3))


@pytest.mark.parametrize('warp', [{'type': 'affine', 'scale': 0},
                                  {'type': 'affine', 'scale': np.nan}, {'matrix': [[0, 0, 0]] * 3}])
def test_a_video_transform_without_an_inverse_is_an_error(warp):
    with pytest.raises(ManifestError, match='5.*warp_img_to_vid'):
        warp_img_from_stitchspace({'id': 5, 'warp_img_to_vid': warp}, 'video')


@pytest.mark.parametrize('dsize', [(30, 20), [30, 20], (30.0, np.float32(20)), np.array([30, 20])])
def test_sizes_are_whole_numbers(dsize):
    found = coerce_dsize(dsize)
    assert found == (30, 20) and all(type(size) is int for size in found)


@pytest.mark.parametrize('dsize', [(30.5, 20), (0, 20), (-1, 20), (30,), (1, 2, 3), 30, 'wh',
                                   (np.nan, 1), (np.inf, 1), (None, 1)])
def test_other_sizes_are_refused(dsize):
    with pytest.raises(OptionError, match='asset_dsize'):
        coerce_dsize(dsize)


def test_size_of_stitching_space():
    img, video = {'id': 1, 'width': 30, 'height': 20}, {'id': 1, 'width': 15, 'height': 10}
    assert stitchspace_dsize(img, video, 'video') == (15, 10)
    assert stitchspace_dsize(img, video, 'image') == (30, 20)
    assert stitchspace_dsize(img, None, 'video') == (30, 20)
    for bad in ({'id': 7, 'name': 'x'}, {'id': 7, 'width': 5, 'height': None}):
        with pytest.raises(ManifestError, match='7.*asset_dsize'):
            stitchspace_dsize(bad, None, 'image')


# --- regions -------------------------------------------------------------

WINDOWS = st.tuples(st.integers(0, 19), st.integers(0, 19), st.integers(1, 9), st.integers(1, 9)
                    ).map(lambda t: Window(t[0], t[1], t[0] + t[2], t[1] + t[3]).clip((20, 20)))


@given(st.lists(WINDOWS, min_size=1, max_size=8), st.sampled_from([0.5, 1, 4]),
       st.sampled_from([1, 3]))
def test_region_is_valid_and_covers_what_the_windows_cover(windows, sx, sy):
    painted = np.zeros((20, 20), bool)
    for window in windows:
        painted[window.slices] = True
    region = compute_region(windows, kwimage.Affine.scale((sx, sy)), {})
    assert region.is_valid
    assert region.area == pytest.approx(painted.sum() * sx * sy)
    ys, xs = np.nonzero(painted)
    inside = shapely.contains_xy(region, (xs + 0.5) * sx, (ys + 0.5) * sy)
    assert inside.all()
    geojson = json.loads(json.dumps(region_to_geojson(region)))
    assert shape(geojson).is_valid and shape(geojson).area == pytest.approx(region.area)
    for polygon in geojson['coordinates']:
        assert all(ring[0] == ring[-1] and len(ring) >= 4 for ring in polygon)


def test_windows_that_touch_in_a_corner_stay_valid():
    windows = [Window(0, 0, 8, 8), Window(8, 8, 16, 16)]
    region = compute_region(windows, EYE, {'width': 16, 'height': 16})
    assert region.is_valid and region.area == 128
    assert len(region_to_geojson(region)['coordinates']) == 2


def test_region_has_pixel_edges_in_image_space_and_ends_at_the_image():
    # 0.5 scale asset of 51 px for an image of 101: half a pixel too much.
    region = compute_region([Window(0, 0, 51, 51)], kwimage.Affine.scale(2),
                            {'width': 101, 'height': 101})
    assert region.bounds == (0, 0, 101, 101)


def test_a_hole_between_windows_stays_a_hole():
    frame = [Window(0, 0, 2, 9), Window(7, 0, 9, 9), Window(0, 0, 9, 2), Window(0, 7, 9, 9)]
    region = compute_region(frame, EYE, {})
    coordinates = region_to_geojson(region)['coordinates']
    assert len(coordinates) == 1 and len(coordinates[0]) == 2
    assert shape(region_to_geojson(region)).area == 81 - 25


def test_no_windows_no_region():
    region = compute_region([], EYE, {'width': 4, 'height': 4})
    assert region_to_geojson(region) == {'type': 'MultiPolygon', 'coordinates': []}


def test_lines_and_points_are_no_region():
    mixed = shapely.GeometryCollection([shapely.LineString([(0, 0), (1, 1)]),
                                        shapely.Point(3, 3), shapely.box(0, 0, 2, 1)])
    assert shape(region_to_geojson(mixed)).equals(shapely.box(0, 0, 2, 1))


@pytest.mark.parametrize('old', [None, {}, {'type': 'MultiPolygon', 'coordinates': []}])
def test_merging_with_nothing_gives_the_new_region(old):
    new = region_to_geojson(shapely.box(0, 0, 2, 2))
    assert merge_regions(old, new) == new


def test_merging_is_the_union():
    parts = [region_to_geojson(shapely.box(x, 0, x + 4, 4)) for x in (0, 2, 20)]
    merged = merge_regions(merge_regions(parts[0], parts[1]), parts[2])
    assert shape(merged).is_valid and shape(merged).area == 24 + 16


def test_an_old_region_of_the_reference_is_mended():
    # Not closed, in pixel centres, and two squares that touch in a corner.
    bow_tie = {'type': 'MultiPolygon', 'coordinates': [
        [[[0, 0], [4, 4], [4, 0], [0, 4]]]]}
    merged = shape(merge_regions(bow_tie, region_to_geojson(shapely.box(10, 0, 12, 2))))
    assert merged.is_valid and merged.area == pytest.approx(8 + 4)


# --- world coordinates ---------------------------------------------------

def make_img(code, wld_from_img, axis_mapping='OAMS_TRADITIONAL_GIS_ORDER', **info):
    wld_to_pxl = kwimage.Affine(np.linalg.inv(wld_from_img)).concise()
    return {'id': 3, 'wld_to_pxl': wld_to_pxl, 'wld_crs_info': {
        'auth': ['EPSG', str(code)], 'axis_mapping': axis_mapping, **info}}


UTM = np.array([[10.0, 0, 500000], [0, 10, -4000000], [0, 0, 1]])


def test_manifest_georeference_in_utm():
    wkt, transform = georeference(make_img(32618, UTM), kwimage.Affine.scale(2), '/')
    assert 'UTM zone 18N' in wkt
    assert np.allclose(transform, [[20, 0, 500000], [0, 20, -4000000], [0, 0, 1]])


def test_axis_order_of_the_authority_gives_the_same_place():
    """EPSG:4326 is (latitude, longitude); a GeoTIFF is longitude first."""
    lonlat = np.array([[0.5, 0, 10], [0, -0.25, 50], [0, 0, 1.0]])
    plain = georeference(make_img(4326, lonlat), EYE, '/')
    swapped = georeference(make_img(4326, lonlat[[1, 0, 2]], 'OAMS_AUTHORITY_COMPLIANT'), EYE, '/')
    assert plain[0] == swapped[0]
    assert np.allclose(plain[1], lonlat) and np.allclose(swapped[1], lonlat)


def test_axis_order_of_the_authority_matters_only_where_it_differs():
    wkt, transform = georeference(make_img(32618, UTM, 'OAMS_AUTHORITY_COMPLIANT'), EYE, '/')
    assert np.allclose(transform, UTM)


@pytest.mark.parametrize('change', [
    {'wld_to_pxl': None}, {'wld_crs_info': {'auth': ['ESRI', '1'], 'axis_mapping': 'x'}},
    {'wld_crs_info': {'auth': None}}, {'wld_crs_info': {'auth': ['EPSG', '4326'],
                                                       'axis_mapping': 'OAMS_CUSTOM'}}])
def test_georeference_that_is_not_understood_is_an_error(change):
    img = {**make_img(4326, UTM), **change}
    with pytest.raises(ManifestError, match='3'):
        georeference(img, EYE, '/')


def test_without_a_manifest_entry_the_first_file_with_a_crs_tells(tmp_path):
    write_cog(tmp_path / 'plain.tif', np.zeros((8, 8), 'u1'))
    write_cog(tmp_path / 'geo.tif', np.zeros((8, 8), 'u1'), crs=32618, transform=UTM)
    img = {'id': 1, 'auxiliary': [
        {'file_name': 'gone.tif'}, {'file_name': 'plain.tif'},
        {'file_name': 'geo.tif', 'warp_aux_to_img': {'type': 'affine', 'scale': 4}}]}
    wkt, transform = georeference(img, kwimage.Affine.scale(2), str(tmp_path))
    assert 'UTM zone 18N' in wkt
    # asset px = 2 image px = half a file px.
    assert np.allclose(transform, [[5, 0, 500000], [0, 5, -4000000], [0, 0, 1]])


def test_base_image_comes_first(tmp_path):
    write_cog(tmp_path / 'base.tif', np.zeros((8, 8), 'u1'), crs=32618, transform=UTM)
    img = {'id': 1, 'file_name': 'base.tif', 'auxiliary': None, 'assets': None}
    assert np.allclose(georeference(img, EYE, str(tmp_path))[1], UTM)


def test_nothing_known_is_no_georeference(tmp_path):
    write_cog(tmp_path / 'plain.tif', np.zeros((8, 8), 'u1'))
    img = {'id': 1, 'assets': [{'file_name': 'plain.tif'}, {'file_name': 'gone.tif'}]}
    assert georeference(img, EYE, str(tmp_path)) == (None, None)
