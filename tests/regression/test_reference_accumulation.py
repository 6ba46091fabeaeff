"""
What the reference did wrong while it accumulated: items 13 to 17, 21 to 25.
"""
import copy

import kwimage
import numpy as np
import pytest

from cocoseg import Window, WindowGrid
from cocoseg.errors import (BandCountError, CoverageError, OptionError, WeightError,
                            WindowShapeError)

from ..builders import watch_files

NAN, INF = float('nan'), float('inf')


@pytest.fixture
def manager(make_dataset, make_manager):
    """A manager of one 64 x 64 image with the channel x."""
    return make_manager(make_dataset())


# ---- 13 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['f2', 'f4', 'f8', '>f4', 'u1', 'i8'])
@pytest.mark.parametrize('downweight_edges', [False, True])
@pytest.mark.parametrize('with_weights', [False, True])
def test_13_inputs_are_never_modified(make_dataset, make_manager, with_weights,
                                      downweight_edges, dtype):
    """NaN became 0 in the caller's array; arrays, also read-only ones, must stay as given."""
    manager = make_manager(make_dataset(), 'x|y', expected_minmax=None)
    data = (np.random.RandomState(0).rand(80, 80, 2) * 9).astype(dtype)
    weights = np.random.RandomState(1).rand(40, 40).astype('f4') if with_weights else None
    if data.dtype.kind == 'f':
        data[3, 3] = data[4, 4, 0] = NAN
        data[5, 5] = INF
    view = data[::2, ::2]
    before = data.tobytes(), weights is not None and weights.tobytes()
    for writeable in (True, False):
        view.flags.writeable = writeable
        if weights is not None:
            weights.flags.writeable = writeable
        for place in [(slice(0, 40), slice(0, 40)), (slice(-8, 32), slice(40, 80))]:
            manager.accumulate_image(1, place, view, weights=weights,
                                     downweight_edges=downweight_edges)
    manager.finalize_image(1)
    assert (data.tobytes(), weights is not None and weights.tobytes()) == before


def test_13_edge_weights_are_not_handed_out_mutable():
    """The memoised edge weights were shared and mutable; nobody must spoil them."""
    from cocoseg import edge_weights
    first = edge_weights((16, 24))
    before = first.copy()
    if first.flags.writeable:
        first[...] = 7
    assert np.array_equal(edge_weights((16, 24)), before)


# ---- 14 --------------------------------------------------------------------

@pytest.mark.parametrize('bad', [NAN, INF, -INF])
@pytest.mark.parametrize('options', [
    {}, {'dtype': 'float64'}, {'memmap': True}, {'quantize': False}, {'expected_minmax': None},
    {'prob_format': 'png'}], ids=str)
@pytest.mark.parametrize('with_weights', [False, True])
def test_14_invalid_pixels(make_dataset, make_manager, read, with_weights, options, bad):
    """Infinity saturated the pixel; NaN and infinity in any band must skip and count it."""
    dset = make_dataset()
    manager = make_manager(dset, 'x|y', **options)
    weights = np.ones((64, 64), np.float32) if with_weights else None
    data = np.full((64, 64, 2), 0.25)
    data[0, 0] = 0
    data[10:20, 10:20, 1] = bad
    manager.accumulate_image(1, None, data, weights=weights)
    manager.accumulate_image(1, (slice(0, 15), slice(0, 64)), np.full((15, 64, 2), 0.75))
    data[40:, :, 0] = bad
    info = manager.finalize_image(1)
    assert info['n_invalid'] == 100
    found = read(dset, 1, 'x|y')
    expected = np.full((64, 64, 2), 0.25)
    expected[0, 0] = 0
    expected[:15] = (expected[:15] + 0.75) / 2
    expected[10:15, 10:20] = 0.75
    expected[15:20, 10:20] = NAN
    assert np.array_equal(np.isnan(found), np.isnan(expected))
    assert np.allclose(found, expected, atol=1 / 254, equal_nan=True)


@pytest.mark.parametrize('options', [
    {}, {'quantize': False}, {'expected_minmax': None}, {'prob_format': 'png'},
    {'prob_format': 'png', 'expected_minmax': None}, {'prob_format': 'tif'},
    {'dtype': 'float64'}], ids=str)
@pytest.mark.parametrize('bad', [NAN, INF])
def test_14_image_without_any_valid_pixel(make_dataset, make_manager, read, bad, options):
    """An image that is NaN or infinite all over must end as a file of nodata."""
    dset = make_dataset()
    manager = make_manager(dset, 'x|y', **options)
    manager.accumulate_image(1, None, np.full((64, 64, 2), bad))
    info = manager.finalize_image(1)
    assert np.isnan(read(dset, 1, 'x|y')).all()
    assert info['n_invalid'] == 64 * 64 and info['n_clipped'] == 0 and info['total_prob'] == 0


@pytest.mark.parametrize('minmax', [(0, 1), None])
def test_14_overflow_of_the_sums(make_dataset, make_manager, read, minmax):
    """Where finite values overflow the sums, no wrong value may look valid."""
    dset = make_dataset()
    manager = make_manager(dset, expected_minmax=minmax)
    manager.accumulate_image(1, None, np.full((64, 64), 0.5))
    place = (slice(0, 8), slice(0, 8))
    for sign in (1, 1, -1, -1, -1):
        manager.accumulate_image(1, place, np.full((8, 8), sign * 3e38, np.float32))
    manager.finalize_image(1)
    found = read(dset, 1)[..., 0]
    # The true mean is -5e37; only its clipped value, or no value, is right.
    assert minmax is None or not found[place][np.isfinite(found[place])].any()
    found[place] = 0.5
    assert np.allclose(found, 0.5, atol=1e-4)


# ---- 15 --------------------------------------------------------------------

def test_15_negative_start_is_outside(manager, make_dataset, read):
    """A negative start put data row 0 at image row 0; it must be clipped in place."""
    data = np.arange(64 * 64).reshape(64, 64) / 4096
    manager.accumulate_image(1, (slice(-16, 48), slice(0, 64)), data)
    manager.finalize_image(1)
    found = read(manager.result_dataset, 1)[..., 0]
    assert np.allclose(found[:48], data[16:], atol=1e-4) and np.isnan(found[48:]).all()


@pytest.mark.parametrize('downweight_edges', [False, True])
def test_15_every_overhang(make_dataset, make_manager, read, downweight_edges):
    """Windows over each edge and corner must act as if the image went on there."""
    places = [Window(y, x, y + 40, x + 32) for y in (-39, -7, 20, 50, 63)
              for x in (-31, -3, 25, 45, 63)]
    rng, margin = np.random.RandomState(0), 64
    sums, counts = np.zeros((2, 192, 192))
    dset = make_dataset()
    manager = make_manager(dset)
    from cocoseg import edge_weights
    weights = edge_weights((40, 32)) if downweight_edges else np.ones((40, 32))
    for place in places:
        data = rng.rand(40, 32)
        manager.accumulate_image(1, place, data, downweight_edges=downweight_edges)
        part = place.shift(margin, margin).slices
        sums[part] += data * weights
        counts[part] += weights
    manager.finalize_image(1)
    inside = (slice(margin, margin + 64),) * 2
    with np.errstate(invalid='ignore'):
        expected = (sums / counts)[inside]
    assert np.allclose(read(dset, 1)[..., 0], expected, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize('rows', [(-64, 0), (64, 128), (-1000, -900), (10, 10)])
@pytest.mark.parametrize('axis', [0, 1])
def test_15_windows_without_a_pixel_are_refused(manager, rows, axis):
    """A window outside wrote nothing, silently (also item 21); it must raise."""
    places = [slice(*rows), slice(0, 64)]
    place = tuple(places[::1 if axis == 0 else -1])
    shape = [rows[1] - rows[0], 64][::1 if axis == 0 else -1]
    for options in [{}, {'weights': np.ones(shape)}, {'downweight_edges': True}]:
        with pytest.raises(CoverageError, match='no pixel'):
            manager.accumulate_image(1, place, np.ones((*shape, 1)), **options)
        assert manager.patch_counts[1] == 0 and manager.managed_image_ids() == []


# ---- 16 --------------------------------------------------------------------

@pytest.mark.parametrize('shape', [(50, 60), (63, 64), (64, 65), (65, 64), (64,), (64, 64, 1, 1)])
def test_16_shape_mismatch_is_refused(manager, shape):
    """Data of another shape was cropped or pinned to a corner; it must raise."""
    with pytest.raises(WindowShapeError, match=r'\(64, 64'):
        manager.accumulate_image(1, (slice(0, 64), slice(0, 64)), np.ones(shape))
    with pytest.raises(WindowShapeError, match=r'\(64, 64'):
        manager.accumulate_image(1, None, np.ones(shape))
    assert manager.patch_counts[1] == 0 and manager.managed_image_ids() == []


@pytest.mark.parametrize('shape', [(64, 63), (54, 54), (64,), (64, 64, 1), (), (1, 1)])
@pytest.mark.parametrize('downweight_edges', [False, True])
def test_16_weights_of_another_shape_are_refused(manager, shape, downweight_edges):
    """Weights were cropped silently by up to ten pixels; they must fit exactly."""
    with pytest.raises(WindowShapeError, match='weights have shape'):
        manager.accumulate_image(1, None, np.ones((64, 64)), weights=np.ones(shape),
                                 downweight_edges=downweight_edges)
    assert manager.patch_counts[1] == 0 and manager.managed_image_ids() == []


def test_16_fractional_windows_are_refused(manager):
    """Feature windows were re-quantised by chance; a fraction of a pixel must raise."""
    for place in [(slice(0, 31.5), slice(0, 64)), kwimage.Box.coerce([0, 0, 64, 31.5], 'ltrb')]:
        with pytest.raises(CoverageError, match='whole number'):
            manager.accumulate_image(1, place, np.ones((31, 64)))
    manager.accumulate_image(1, (slice(0, 32.0), slice(np.int64(0), np.float32(64))),
                             np.ones((32, 64)))
    assert manager.patch_counts[1] == 1


# ---- 17 --------------------------------------------------------------------

@pytest.mark.parametrize('space', ['image', 'video'])
def test_17_dtype_and_memmap_hold_in_both_spaces(make_dataset, make_manager, tmp_path, monkeypatch,
                                                 space):
    """Image space ignored dtype and memmap; both must be honoured in both spaces."""
    dset, made = make_dataset(n_videos=1), watch_files(monkeypatch)
    manager = make_manager(dset, stitching_space=space, dtype='float64', quantize=False,
                           memmap=tmp_path / 'maps', expected_minmax=None)
    value = 1 + 1e-12
    manager.accumulate_image(1, None, np.full((64, 64), value))
    assert made and set(made) == {('canvas', str(tmp_path / 'maps'))}
    assert manager.image_stitchers[1].weights.dtype == np.float64
    manager.finalize_image(1)
    from cocoseg.io.raster import read_raster
    found = read_raster(f'{manager.prob_dpath}/img1_x.tif')
    assert found.dtype == np.float64 and (found == value).all()


def test_17_float64_codes_are_rounded_from_float64(make_dataset, make_manager, read):
    """With a float64 canvas the codes must be as exact as the data."""
    dset = make_dataset()
    manager = make_manager(dset, dtype='float64', expected_minmax=(1e9, 1e9 + 1))
    data = 1e9 + np.random.RandomState(0).rand(64, 64)
    manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    found = read(dset, 1)[..., 0]
    assert found.dtype == np.float64
    assert np.abs(found - data).max() <= 0.5 / 32767 * 1.01


# ---- 21 --------------------------------------------------------------------

@pytest.mark.parametrize('bad', [-1e-9, -INF, NAN, INF])
@pytest.mark.parametrize('downweight_edges', [False, True])
def test_21_bad_weights_are_refused(manager, bad, downweight_edges):
    """Negative weights were taken silently; one bad weight must refuse the window."""
    weights = np.ones((64, 64))
    weights[63, 63] = bad
    with pytest.raises(WeightError, match='finite and not negative'):
        manager.accumulate_image(1, None, np.ones((64, 64)), weights=weights,
                                 downweight_edges=downweight_edges)
    assert manager.patch_counts[1] == 0 and manager.managed_image_ids() == []


def test_21_zero_weights_leave_no_data(manager, read):
    """Pixels whose weights are all 0 have no value; they must become nodata."""
    weights = np.ones((64, 64))
    weights[:32] = 0
    manager.accumulate_image(1, None, np.full((64, 64), 0.5), weights=weights)
    manager.finalize_image(1)
    found = read(manager.result_dataset, 1)
    assert np.isnan(found[:32]).all() and np.allclose(found[32:], 0.5, atol=1e-4)


# ---- 22 --------------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['float16', np.float16, 'int32', 'uint8', 'complex64', 'word'])
def test_22_narrow_accumulators_are_refused(make_dataset, make_manager, dtype):
    """float16 weights saturated at 2048; only float32 and float64 may accumulate."""
    with pytest.raises(OptionError, match='float32'):
        make_manager(make_dataset(), dtype=dtype)


@pytest.mark.parametrize('dtype', ['float32', 'float64', np.float32, np.dtype('f8')])
def test_22_many_windows_on_one_pixel(make_dataset, make_manager, read, dtype):
    """3000 windows gave the weight 2048; every one of them must count."""
    dset = make_dataset(dsize=(16, 16))
    manager = make_manager(dset, dtype=dtype)
    zeros, ones = np.zeros((16, 16), np.float16), np.ones((16, 16), np.float16)
    for index in range(3000):
        manager.accumulate_image(1, None, ones if index % 3 == 0 else zeros)
    assert (manager.image_stitchers[1].weights == 3000).all()
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1), 1 / 3, atol=1e-4)


# ---- 23 --------------------------------------------------------------------

@pytest.mark.parametrize('chan_code, n_bands', [('a|b', 3), ('a|b', 1), ('a', 2),
                                                ('hidden.0:16', 15), ('a|b.0:3', 2)])
def test_23_band_count_is_that_of_the_channels(make_dataset, make_manager, chan_code, n_bands):
    """Channels a|b with 3 bands were registered so; every window must be checked."""
    dset = make_dataset(2)
    before = copy.deepcopy(dset.dataset)
    manager = make_manager(dset, chan_code)
    for image_id in (1, 2):
        with pytest.raises(BandCountError, match=f'{n_bands} bands'):
            manager.accumulate_image(image_id, None, np.ones((64, 64, n_bands)))
        manager.accumulate_image(image_id, None, np.ones((64, 64, manager.num_bands)))
        with pytest.raises(BandCountError):
            manager.accumulate_image(image_id, None, np.ones((64, 64, n_bands)))
        assert manager.patch_counts[image_id] == 1
    assert dset.dataset == before


def test_23_plane_stands_for_every_channel(make_dataset, make_manager, read, noise):
    """Data without a band axis is meant for all channels, and no other number passes."""
    dset = make_dataset()
    manager = make_manager(dset, 'a|b|c', num_bands=3)
    manager.accumulate_image(1, None, noise()[..., 0])
    manager.finalize_image(1)
    assert np.allclose(read(dset, 1, 'a|b|c'), noise(), atol=1e-4)
    for num_bands in (2, 4, 0, None, '3', 'all'):
        with pytest.raises(OptionError, match='num_bands'):
            make_manager(make_dataset(), 'a|b|c', num_bands=num_bands)


# ---- 24 --------------------------------------------------------------------

@pytest.mark.parametrize('readiness', ['declared', 'contiguous'])
def test_24_first_window_can_make_ready(make_dataset, make_manager, readiness):
    """is_ready=True on the first call marked None ready; it must mark the image given."""
    manager = make_manager(make_dataset(3), readiness=readiness)
    manager.accumulate_image(2, None, np.ones((64, 64)), is_ready=True)
    assert manager.ready_image_ids() == [2]
    manager.accumulate_image(3, None, np.ones((64, 64)), is_ready=False)
    assert manager.ready_image_ids() == [2]


# ---- 25 --------------------------------------------------------------------

def test_25_declared_windows_decide_in_any_order(make_dataset, make_manager, read, noise):
    """Readiness was guessed from the order; each image must be ready at its last window."""
    dset = make_dataset(6, n_videos=2)
    manager = make_manager(dset, stitching_space='video')
    grid = list(WindowGrid((64, 64), window=32, overlap=8))
    for image_id in dset.images():
        manager.expect_windows(image_id, grid)
    todo = [(image_id, window) for image_id in dset.images() for window in grid]
    np.random.RandomState(0).shuffle(todo)
    left = {image_id: len(grid) for image_id in dset.images()}
    for image_id, window in todo:
        left[image_id] -= 1
        assert len(manager.pending_windows(image_id)) == left[image_id] + 1
        manager.accumulate_image(image_id, window, noise(image_id)[window.slices])
        assert manager.ready_image_ids() == ([] if left[image_id] else [image_id])
        if not left[image_id]:
            manager.submit_finalize_image(image_id)
            manager.flush_images()
    for image_id in dset.images():
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1e-4)


def test_25_nothing_is_guessed_unless_asked(make_dataset, make_manager):
    """Without a declaration nothing may be ready before the caller says so."""
    manager = make_manager(make_dataset(4, n_videos=2), stitching_space='video')
    for image_id in (1, 3, 2, 4, 1):
        manager.accumulate_image(image_id, None, np.ones((64, 64)))
        assert manager.ready_image_ids() == []
    manager.mark_ready(3)
    assert manager.ready_image_ids() == [3]


def test_25_the_guess_is_opt_in(make_dataset, make_manager):
    """With readiness='contiguous', data of the next video must end all frames of the last."""
    manager = make_manager(make_dataset(4, n_videos=2), stitching_space='video',
                           readiness='contiguous')
    for image_id in (1, 2):
        manager.accumulate_image(image_id, None, np.ones((64, 64)))
    assert manager.ready_image_ids() == []
    manager.accumulate_image(3, None, np.ones((64, 64)))
    assert sorted(manager.ready_image_ids()) == [1, 2]
    manager.accumulate_image(4, None, np.ones((64, 64)))
    assert sorted(manager.ready_image_ids()) == [1, 2]


def test_25_wrong_windows_are_refused(make_dataset, make_manager):
    """A window that nobody declared, or that came before, must not count."""
    manager = make_manager(make_dataset())
    left, right = (slice(0, 64), slice(0, 32)), (slice(0, 64), slice(32, 64))
    manager.expect_windows(1, [left, right, right])
    data = np.ones((64, 32))
    manager.accumulate_image(1, left, data)
    for place in [left, (slice(0, 64), slice(16, 48))]:
        with pytest.raises(CoverageError, match='declare'):
            manager.accumulate_image(1, place, data)
        with pytest.raises(CoverageError, match='declare'):
            manager.accumulate_image(1, place, data, weights=data)
    for n_pending in (1, 0):
        manager.accumulate_image(1, right, data)
        assert len(manager.pending_windows(1)) == n_pending
    assert manager.ready_image_ids() == [1] and manager.patch_counts[1] == 3
