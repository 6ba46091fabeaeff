"""
Bad input to the stitching manager: a typed error with the values and the remedy.

Each case is tried on an image that is untouched, begun, or declared. Nothing
may change by it, and the image must end right afterwards.
"""
import copy
import warnings

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg.coco.lifecycle import ImageState
from cocoseg.errors import (AlreadyFinalizedError, AssetWriteError, BandCountError, CocosegError,
                            CoverageError, ImageClosedError, ManifestError,
                            NothingAccumulatedError, OptionError, UnknownImageError, WeightError,
                            WindowShapeError)

from ..builders import GOOD, LEFT, RIGHT, finish_right, put_in_state, refuse, take_picture

NAN, INF = float('nan'), float('inf')
STATES = ['untouched', 'begun', 'declared']


def swap(array, index, value):
    """Return a copy of an array with one entry changed."""
    array = np.array(array, copy=True)
    array[index] = value
    return array


# ---- data, windows and weights ---------------------------------------------

BAD_DATA = {
    'rows': (np.zeros((63, 64, 2)), WindowShapeError, r'\(63, 64, 2\).*\(64, 64'),
    'transposed': (np.zeros((2, 64, 64)), BandCountError, '64 bands'),
    'one axis': (np.zeros(64), WindowShapeError, r'\(64,'),
    'no axis': (0.5, WindowShapeError, 'shape'),
    'four axes': (np.zeros((1, 64, 64, 2)), WindowShapeError, r'\(1, 64, 64, 2\)'),
    'one band': (np.zeros((64, 64, 1)), BandCountError, r"1 bands.*'x\|y'.*2"),
    'three bands': (np.zeros((64, 64, 3)), BandCountError, r"3 bands.*'x\|y'.*2"),
    'no band': (np.zeros((64, 64, 0)), BandCountError, '0 bands'),
    'nothing': (None, WindowShapeError, 'dtype object'),
    'text': ('prediction', WindowShapeError, 'dtype'),
    'complex': (np.zeros((64, 64, 2), complex), WindowShapeError, 'complex128.*real'),
    'objects': (np.zeros((64, 64, 2), object), WindowShapeError, 'object.*real'),
    'dates': (np.zeros((64, 64, 2), 'M8[s]'), WindowShapeError, 'datetime64.*real'),
}
BAD_WINDOWS = {
    'outside': ((slice(64, 128), slice(0, 64)), CoverageError, 'y=64:128.*height 64'),
    'negative': ((slice(-64, 0), slice(0, 64)), CoverageError, 'y=-64:0.*outside'),
    'empty': ((slice(5, 5), slice(0, 64)), CocosegError, 'y=5:5'),
    'reversed': ((slice(64, 0), slice(0, 64)), CoverageError, 'y=64:0'),
    'fraction': ((slice(0, 63.5), slice(0, 64)), CoverageError, '63.5.*round'),
    'step': ((slice(0, 128, 2), slice(0, 64)), CoverageError, 'step'),
    'NaN': ((slice(0, NAN), slice(0, 64)), CoverageError, 'nan'),
    'infinite': ((slice(0, INF), slice(0, 64)), CoverageError, 'inf'),
    'text edge': ((slice(0, 'all'), slice(0, 64)), CoverageError, 'all'),
    'one slice': ((slice(0, 64),), CoverageError, 'pair of slices'),
    'numbers': ((0, 0, 64, 64), CoverageError, 'pair of slices'),
    'text': ('everything', CoverageError, "'everything'.*Window"),
    'float box': (kwimage.Box.coerce([0, 0, 64, 63.7], 'ltrb'), CoverageError, '63.7'),
}
BAD_WEIGHTS = {
    'negative': (swap(np.ones((64, 64)), (5, 5), -0.1), WeightError, '-0.1.*negative'),
    'NaN': (swap(np.ones((64, 64)), (5, 5), NAN), WeightError, 'nan.*finite'),
    'infinite': (swap(np.ones((64, 64)), (5, 5), INF), WeightError, 'inf.*finite'),
    'rows': (np.ones((63, 64)), WindowShapeError, r'\(63, 64\).*\(64, 64\)'),
    'per band': (np.ones((64, 64, 2)), WindowShapeError, r'\(64, 64, 2\)'),
    'number': (0.5, WindowShapeError, 'weights'),
    'complex': (np.ones((64, 64), complex), WeightError, 'complex.*real'),
    'text': (np.full((64, 64), 'w'), WeightError, 'real'),
}


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('case', BAD_DATA)
@pytest.mark.parametrize('options', [{}, {'downweight_edges': True}, {'is_ready': True}], ids=str)
def test_data_that_does_not_fit(manager, case, state, options):
    """Data of another shape, band count or kind is refused with both values."""
    data, error, match = BAD_DATA[case]
    todo = put_in_state(manager, state)
    for place in (None, (slice(0, 64), slice(0, 64))):
        with refuse(manager, error, match):
            manager.accumulate_image(1, place, data, **options)
    finish_right(manager, todo)


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('case', BAD_WINDOWS)
@pytest.mark.parametrize('options', [{}, {'downweight_edges': True}], ids=str)
def test_windows_that_do_not_fit(manager, case, state, options):
    """A window outside, empty, or that is no rectangle of whole pixels is refused."""
    place, error, match = BAD_WINDOWS[case]
    todo = put_in_state(manager, state)
    for data in [GOOD] if case != 'empty' else [GOOD, GOOD[:0]]:
        with refuse(manager, error, match):
            manager.accumulate_image(1, place, data, **options)
    finish_right(manager, todo)


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('case', BAD_WEIGHTS)
@pytest.mark.parametrize('downweight_edges', [False, True])
def test_weights_that_do_not_fit(manager, case, state, downweight_edges):
    """Weights that are negative, not finite or of another shape are refused."""
    weights, error, match = BAD_WEIGHTS[case]
    todo = put_in_state(manager, state)
    with refuse(manager, error, match):
        manager.accumulate_image(1, None, GOOD, weights=weights,
                                 downweight_edges=downweight_edges)
    finish_right(manager, todo)


def test_overhanging_windows_are_clipped_not_wrapped(manager):
    """What overhangs is cut off on its own side and appears nowhere else."""
    frame = np.pad(GOOD, ((20, 20), (20, 20), (0, 0)), constant_values=7)
    for y in (-20, 32):
        for x in (-20, 32):
            place = (slice(y, y + 52), slice(x, x + 52))
            manager.accumulate_image(1, place, frame[y + 20:y + 72, x + 20:x + 72])
    finish_right(manager, [])


def test_masked_values_are_not_used(manager):
    """The mask of a masked array is refused or obeyed, never dropped."""
    data = np.ma.masked_array(np.full((64, 64, 2), 0.5), np.zeros((64, 64, 2), bool))
    data[:8, :8] = np.ma.masked
    data.data[:8, :8] = 0.9
    try:
        manager.accumulate_image(1, None, data)
    except CocosegError:
        return
    manager.finalize_image(1)
    found = manager.result_dataset.coco_image(1).imdelay('x|y', space='image').finalize()
    assert np.isnan(found[:8, :8]).all() and np.allclose(found[8:], 0.5, atol=1e-4)


class Broken:
    """Data that cannot be computed, as on a device that runs out of memory."""

    def __array__(self, dtype=None, copy=None):
        raise MemoryError('no memory for the prediction')


def test_data_that_fails_to_come(manager, make_manager):
    """An error of the caller's own data passes, and nothing is begun by it."""
    before = take_picture(manager)
    for options in ({}, {'downweight_edges': True}):
        with pytest.raises(MemoryError):
            manager.accumulate_image(1, None, Broken(), **options)
        with pytest.raises(MemoryError):
            manager.accumulate_image(1, None, GOOD, weights=Broken(), **options)
    assert take_picture(manager) == before
    make_manager(chan_code='y|z').expect_windows(1, [LEFT])
    manager.expect_windows(2, [LEFT, RIGHT])


@pytest.mark.parametrize('options', [{}, {'expected_minmax': None}, {'prob_format': 'png'}],
                         ids=str)
@pytest.mark.parametrize('value', [0.5, 0, NAN, INF, -INF])
def test_data_of_one_value(make_manager, dset, value, options):
    """Constant, all-NaN and infinite data have a defined result."""
    manager = make_manager(**options)
    manager.accumulate_image(1, None, np.full((64, 64, 2), value))
    info = manager.finalize_image(1)
    found = dset.coco_image(1).imdelay('x|y', space='image').finalize()
    expected = value if np.isfinite(value) else NAN
    assert np.allclose(found, expected, atol=0.51 / 254, equal_nan=True)
    assert info['n_invalid'] == (0 if np.isfinite(value) else 64 * 64)


# ---- images, sizes and scales ----------------------------------------------

@pytest.mark.parametrize('image_id', [99, 0, -1, None, 'img1', 1.5], ids=str)
def test_unknown_image(manager, image_id):
    """An id that the manifest has not is refused everywhere."""
    calls = [lambda: manager.accumulate_image(image_id, None, GOOD),
             lambda: manager.expect_windows(image_id, [LEFT]),
             lambda: manager.finalize_image(image_id),
             lambda: manager.submit_finalize_image(image_id),
             lambda: manager.mark_ready(image_id), lambda: manager.is_done(image_id),
             lambda: manager.image_state(image_id), lambda: manager.pending_windows(image_id)]
    for call in calls:
        with refuse(manager, UnknownImageError, '2 images.*1, 2'):
            call()
    finish_right(manager, [LEFT, RIGHT])


def test_image_id_of_numpy(manager, dset):
    """An id that came out of an array is the same image, and is saved as a number."""
    for place in (LEFT, RIGHT):
        manager.accumulate_image(np.int64(1), place, GOOD[place])
    manager.finalize_image(np.int64(1))
    found = dset.coco_image(1).imdelay('x|y', space='image').finalize()
    assert np.allclose(found, GOOD, atol=1e-4)
    assert manager.is_done(1) and manager.seen_image_ids == {1}
    manager.dump()
    assert kwcoco.CocoDataset(dset.fpath).imgs[1]['auxiliary'] == dset.imgs[1]['auxiliary']


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('asset_dsize', [
    (0, 64), (-1, 64), (64, 64, 2), 64, ('wide', 'high'), (NAN, 64), (63.5, 64)], ids=str)
def test_asset_size_that_cannot_be(manager, state, asset_dsize):
    """A size that is no pair of whole positive numbers is refused."""
    todo = put_in_state(manager, state)
    with refuse(manager, OptionError):
        manager.accumulate_image(1, LEFT, GOOD[LEFT], asset_dsize=asset_dsize)
    if state == 'untouched':
        with refuse(manager, OptionError):
            manager.expect_windows(1, [LEFT], asset_dsize=asset_dsize)
    finish_right(manager, todo)


@pytest.mark.parametrize('state', STATES)
@pytest.mark.parametrize('scale', [
    0, NAN, INF, (0, 1), (1,), (1, 2, 3), 'large', np.eye(2), np.zeros((3, 3)),
    {'scale': 0}, {'size': 2}], ids=str)
def test_scale_that_cannot_be(manager, state, scale):
    """A scale that is no invertible affine transform is refused."""
    todo = put_in_state(manager, state)
    with refuse(manager, OptionError, 'scale'):
        manager.accumulate_image(1, LEFT, GOOD[LEFT], asset_dsize=(64, 64),
                                 scale_asset_from_stitchspace=scale)
    finish_right(manager, todo)


@pytest.mark.parametrize('changed', [
    {'asset_dsize': (32, 64)}, {'scale_asset_from_stitchspace': 2},
    {'asset_dsize': (64, 64), 'scale_asset_from_stitchspace': (1, 0.5)}], ids=str)
def test_size_and_scale_do_not_change_on_the_way(manager, changed):
    """Another size or scale than that of the first window is refused, not ignored."""
    todo = put_in_state(manager, 'begun')
    with refuse(manager, OptionError, 'image 1 was begun with'):
        manager.accumulate_image(1, RIGHT, GOOD[RIGHT], **changed)
    finish_right(manager, todo)


def test_image_without_a_size(manager, dset):
    """Where the manifest gives no size, the caller must."""
    size = {key: dset.imgs[1].pop(key) for key in ('width', 'height')}
    with refuse(manager, ManifestError, 'no width.*asset_dsize'):
        manager.accumulate_image(1, None, GOOD)
    dset.imgs[1].update(size)
    finish_right(manager, [LEFT, RIGHT])


@pytest.mark.parametrize('warp', [{'scale': 0}, {'matrix': np.zeros((3, 3)).tolist()}, 'skewed'],
                         ids=str)
def test_warp_that_cannot_be_inverted(make_manager, dset, warp):
    """A transform of the manifest that is none is refused with the first window."""
    dset.imgs[1]['warp_img_to_vid'] = warp
    manager = make_manager(stitching_space='video')
    with refuse(manager, CocosegError, 'warp_img_to_vid'):
        manager.accumulate_image(1, LEFT, GOOD[LEFT])
    del dset.imgs[1]['warp_img_to_vid']
    finish_right(manager, [LEFT, RIGHT])


@pytest.mark.parametrize('info', [
    {'auth': ['ESRI', '1']}, {'auth': ['EPSG', '999999']}, {'auth': ['EPSG', 'x']}, {},
    {'auth': ['EPSG', '4326'], 'axis_mapping': 'SIDEWAYS'}], ids=str)
def test_georeference_that_cannot_be(manager, dset, info):
    """World coordinates that mean nothing stop the asset, and it is tried again."""
    todo = put_in_state(manager, 'begun')
    for place in todo:
        manager.accumulate_image(1, place, GOOD[place])
    dset.imgs[1].update(wld_crs_info={**info, 'x': 1}, wld_to_pxl={'type': 'affine', 'scale': 2})
    before = copy.deepcopy(dset.dataset)
    with pytest.raises(AssetWriteError):
        manager.finalize_image(1)
    assert dset.dataset == before and manager.managed_image_ids() == [1]
    assert manager.image_state(1) is ImageState.FAILED
    del dset.imgs[1]['wld_crs_info']
    finish_right(manager, [])


# ---- the life of an image --------------------------------------------------

def test_finalizing_an_untouched_image(manager):
    """There is nothing to write; the image can be begun afterwards."""
    for call in (manager.finalize_image, manager.submit_finalize_image, manager.mark_ready):
        with refuse(manager, NothingAccumulatedError, 'image 1 has received no data'):
            call(1)
    manager.expect_windows(1, [LEFT, RIGHT])
    with refuse(manager, NothingAccumulatedError, 'image 1 has received no data'):
        manager.finalize_image(1)
    finish_right(manager, [LEFT, RIGHT])


def test_data_after_the_end(manager):
    """A finished image takes no data, no declaration and no second end."""
    finish_right(manager, [LEFT, RIGHT])
    with refuse(manager, ImageClosedError, 'image 1 is done'):
        manager.accumulate_image(1, LEFT, GOOD[LEFT])
    with refuse(manager, ImageClosedError, 'image 1 is done'):
        manager.expect_windows(1, [LEFT])
    with refuse(manager, ImageClosedError):
        manager.mark_ready(1)
    with refuse(manager, AlreadyFinalizedError, 'image 1 is done'):
        manager.finalize_image(1)
    before = take_picture(manager)
    manager.submit_finalize_image(1)
    manager.flush_images()
    assert take_picture(manager) == before


def test_data_after_close(manager):
    """A closed manager refuses data, and closing it again is no error."""
    manager.close()
    manager.close()
    with refuse(manager, ImageClosedError, 'closed'):
        manager.accumulate_image(1, LEFT, GOOD[LEFT])
    with refuse(manager, CocosegError):
        manager.submit_finalize_image(1)


def test_declarations_that_contradict(manager):
    """Windows are declared once, before the first comes, and inside the image."""
    with refuse(manager, CoverageError, 'no pixel'):
        manager.expect_windows(1, [LEFT, (slice(64, 80), slice(0, 64))])
    with refuse(manager, CocosegError):
        manager.expect_windows(1, [LEFT, 'RIGHT'])
    with refuse(manager, CocosegError):
        manager.expect_windows(1, None)
    manager.expect_windows(1, [LEFT, RIGHT])
    with refuse(manager, CoverageError, 'declare all'):
        manager.expect_windows(1, [LEFT, RIGHT])
    finish_right(manager, [LEFT, RIGHT])


def test_closing_with_windows_missing(make_manager, dset):
    """An incomplete image is named and not written; the others are."""
    manager = make_manager()
    manager.expect_windows(1, [LEFT, RIGHT])
    manager.accumulate_image(1, LEFT, GOOD[LEFT])
    manager.accumulate_image(2, None, GOOD)
    with pytest.raises(CoverageError, match=r'image 1 was not written: 1 .*x=32:64'):
        manager.close()
    assert dset.imgs[1]['auxiliary'] == [] and 'has_predictions' not in dset.imgs[1]
    found = dset.coco_image(2).imdelay('x|y', space='image').finalize()
    assert np.allclose(found, GOOD, atol=1e-4)


def test_finalizing_with_windows_missing_warns(manager, dset):
    """Who finalises an incomplete image gets it, with a gap and a warning."""
    put_in_state(manager, 'declared')
    with pytest.warns(UserWarning, match=r'1 declared windows are missing.*x=32:64'):
        manager.finalize_image(1)
    found = dset.coco_image(1).imdelay('x|y', space='image').finalize()
    assert np.allclose(found[LEFT], GOOD[LEFT], atol=1e-4) and np.isnan(found[RIGHT]).all()


def test_good_input_warns_of_nothing(manager):
    """What is right passes without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        finish_right(manager, [LEFT, RIGHT])
