"""What comes into a stitcher: arrays, tensors, shapes and weights, and every refusal."""
import numpy as np
import pytest
import shapely

from cocoseg import Window, WindowGrid
from cocoseg.errors import BandCountError, OptionError, WeightError, WindowShapeError
from cocoseg.grid.area import Area
from cocoseg.stitch.intake import (as_numpy, check_data, check_shape, check_weights, choose_area,
                                   crop_item, unit_weights)

WINDOW = Window(-1, 2, 2, 6)  # 3 x 4


# ---- shapes ----------------------------------------------------------------

@pytest.mark.parametrize('shape, expected', [
    ((4, 5), ((4, 5), None)), ([4, 5, 3], ((4, 5), 3)), (np.array([4, 5]), ((4, 5), None)),
    ((np.int64(4), np.uint8(5), 1), ((4, 5), 1)), (np.zeros((4, 5, 6)).shape, ((4, 5), 6))])
def test_shapes(shape, expected):
    found = check_shape(shape)
    assert found == expected
    assert all(type(size) is int for size in found[0])


@pytest.mark.parametrize('shape', [
    (), (4,), (4, 5, 6, 7), (0, 5), (4, 5, 0), (-1, 5), (4.0, 5), ('4', '5'), '45', 45, None,
    (4, None), np.array([4.0, 5.0]), (np.nan, 5)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(OptionError, match='shape=.*whole numbers'):
        check_shape(shape)


# ---- data ------------------------------------------------------------------

@pytest.mark.parametrize('given, channels_first', [
    ((3, 4), False), ((3, 4), True), ((3, 4, 2), False), ((2, 3, 4), True), ((1, 3, 4), True)])
def test_data_become_bands_last_without_a_copy(given, channels_first):
    data = np.random.RandomState(0).rand(*given)
    found = check_data(data, WINDOW, channels_first=channels_first)
    expected = data[..., None] if data.ndim == 2 else np.moveaxis(data, 0, -1) \
        if channels_first else data
    assert np.array_equal(found, expected) and np.shares_memory(found, data)


@pytest.mark.parametrize('data', [
    [[1, 2, 3, 4]] * 3, np.ones((3, 4), bool), np.ones((3, 4), 'u8'),
    np.ones((3, 4), 'f2'), np.ones((3, 4), '>i4'), np.ma.masked_array(np.ones((3, 4)), False)])
def test_real_numbers_of_any_kind(data):
    found = check_data(data, WINDOW, 1)
    assert type(found) is np.ndarray and found.shape == (3, 4, 1)


@pytest.mark.parametrize('shape, channels_first', [
    ((4, 3), False), ((4, 3, 2), False), ((2, 3, 4), False), ((3, 4, 2), True), ((2, 4, 3), True),
    ((4, 3), True), ((12,), False), ((), False), ((1, 3, 4, 2), False), ((2, 4), False),
    ((0, 4), False), ((1, 2, 3, 4), True)])
def test_data_of_another_shape(shape, channels_first):
    needed = r'\(\*, 3, 4\)' if channels_first else r'\(3, 4, \*\)'
    with pytest.raises(WindowShapeError, match=f'needs {needed}'):
        check_data(np.ones(shape), WINDOW, channels_first=channels_first)


@pytest.mark.parametrize('shape, n_bands, text', [
    ((3, 4, 2), 3, '2 bands but this image has 3'), ((3, 4), 2, '1 bands but this image has 2'),
    ((3, 4, 0), None, '0 bands.*at least 1'), ((3, 4, 0), 2, '0 bands but this image has 2')])
def test_other_bands(shape, n_bands, text):
    with pytest.raises(BandCountError, match=text):
        check_data(np.ones(shape), WINDOW, n_bands)


@pytest.mark.parametrize('data', [
    np.ones((3, 4), complex), np.full((3, 4), 'a'), np.full((3, 4), None),
    np.zeros((3, 4), 'M8[s]'), [['1'] * 4] * 3, np.ma.masked_array(np.ones((3, 4), complex), True)])
def test_what_is_no_real_number(data):
    with pytest.raises(WindowShapeError, match='real numbers'):
        check_data(data, WINDOW)


def test_masked_values_become_nan():
    data = np.ma.masked_array(np.arange(12).reshape(3, 4), np.eye(3, 4) == 1)
    found = as_numpy(data)
    assert np.array_equal(np.isnan(found), np.eye(3, 4) == 1)
    assert np.array_equal(found[~data.mask], data.data[~data.mask])
    assert data.data.dtype.kind == 'i' and data.data[1, 1] == 5
    # Large whole numbers keep their digits, small floats their size.
    assert as_numpy(np.ma.masked_array([2 ** 53 - 1], [False])).tolist() == [2 ** 53 - 1]
    for dtype, expected in [('f4', 'f4'), ('f8', 'f8'), ('u1', 'f4'), ('?', 'f4'), ('f2', 'f4')]:
        assert as_numpy(np.ma.masked_array(np.zeros(2, dtype), [0, 1])).dtype == expected


def test_an_array_is_not_copied():
    data = np.ones((3, 4))
    assert as_numpy(data) is data


# ---- tensors ---------------------------------------------------------------

@pytest.mark.parametrize('dtype, grad', [
    (dtype, grad) for dtype in ('float32', 'float64', 'float16', 'bfloat16')
    for grad in (False, True)] + [(dtype, False) for dtype in ('uint8', 'int64', 'bool', 'uint16')])
def test_tensors(dtype, grad):
    torch = pytest.importorskip('torch')
    tensor = torch.tensor([[0, 1], [1, 0]]).to(getattr(torch, dtype))
    if grad:
        tensor = tensor.requires_grad_() * 1
    found = as_numpy(tensor)
    assert type(found) is np.ndarray and found.tolist() == [[0, 1], [1, 0]]
    assert found.dtype == ('float32' if dtype == 'bfloat16' else dtype)
    assert tensor.requires_grad == grad


@pytest.mark.parametrize('on_device', [False, True])
def test_tensors_stay_where_they_are(on_device):
    torch = pytest.importorskip('torch')
    tensor = torch.rand(2, 3, 4)
    found = check_data(tensor, WINDOW, 2, on_device=on_device, channels_first=True)
    assert torch.is_tensor(found) == on_device and tuple(found.shape) == (3, 4, 2)
    assert np.array_equal(np.asarray(found), tensor.numpy().transpose(1, 2, 0))
    assert check_data(tensor[0], WINDOW, on_device=on_device).shape == (3, 4, 1)
    with pytest.raises(WindowShapeError):
        check_data(tensor, WINDOW, on_device=on_device)
    with pytest.raises(BandCountError):
        check_data(tensor, WINDOW, 3, on_device=on_device, channels_first=True)


def test_complex_tensors_are_refused():
    torch = pytest.importorskip('torch')
    for on_device in (False, True):
        with pytest.raises(WindowShapeError, match='real numbers'):
            check_data(torch.ones(3, 4, dtype=torch.complex64), WINDOW, on_device=on_device)


# ---- weights ---------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['f4', 'f8', 'f2', 'u1', '?', 'i8', '>f4'])
def test_weights(dtype):
    weights = np.ones((3, 4), dtype)
    weights[1, 1] = 0
    assert check_weights(weights, WINDOW) is None


@pytest.mark.parametrize('shape', [(4, 3), (3,), (3, 4, 1), (), (0, 4)])
def test_weights_of_another_shape(shape):
    with pytest.raises(WindowShapeError, match=r'weights have shape .* needs \(3, 4\)'):
        check_weights(np.ones(shape), WINDOW)


@pytest.mark.parametrize('value, dtype', [
    (-1e-30, 'float32'), (np.nan, 'float32'), (np.inf, 'float32'), (-np.inf, 'float64'),
    (1e39, 'float32'), (np.nan, 'float64')])
@pytest.mark.parametrize('place', [(0, 0), (1, 2), (2, 3)])
def test_wrong_weights(value, dtype, place):
    weights = np.ones((3, 4))
    weights[place] = value
    with pytest.raises(WeightError, match='finite and not negative'):
        check_weights(weights, WINDOW, dtype)


def test_weights_that_only_the_large_accumulator_holds():
    check_weights(np.full((3, 4), 1e39), WINDOW, 'float64')


@pytest.mark.parametrize('weights', [
    np.ones((3, 4), complex), np.full((3, 4), 'a'), np.full((3, 4), None)])
def test_weights_that_are_no_numbers(weights):
    with pytest.raises(WeightError, match='real numbers'):
        check_weights(weights, WINDOW)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_unit_weights_are_shared(dtype):
    rows, columns = unit_weights((3, 4), dtype)
    assert rows.dtype == columns.dtype == dtype
    assert rows.tolist() == [1] * 3 and columns.tolist() == [1] * 4
    assert unit_weights((3, 4), dtype)[0] is rows


# ---- windows ---------------------------------------------------------------

@pytest.mark.parametrize('full', [Window(2, 3, 5, 7), Window(-1, -2, 3, 4), Window(8, 8, 12, 13)])
@pytest.mark.parametrize('weighted', [False, True])
def test_an_item_is_what_lies_inside(full, weighted):
    rng = np.random.RandomState(0)
    data, weights = rng.rand(*full.shape, 2), rng.rand(*full.shape)
    inside = full.clip((10, 10))
    item = crop_item(full, inside, data, weights if weighted else None)
    assert (item.full, item.inside) == (full, inside)
    part = inside.within(full).slices
    assert np.array_equal(item.data, data[part]) and np.shares_memory(item.data, data)
    assert np.array_equal(item.weights, weights[part]) if weighted else item.weights is None


GRID = WindowGrid((12, 12), window=4)
SQUARE = shapely.box(0, 0, 4, 4)


def test_without_an_area_windows_stay():
    assert choose_area(None, None, (12, 12)) == (None, None)
    assert choose_area(None, GRID, (12, 12)) == (None, GRID)
    windows = iter([(slice(0, 4), slice(None)), Window(-1, 0, 3, 3)])
    assert choose_area(None, windows, (12, 12)) == (None, [Window(0, 0, 4, 12),
                                                           Window(-1, 0, 3, 3)])


@pytest.mark.parametrize('windows', [GRID, list(GRID), (window for window in GRID)])
def test_an_area_chooses_its_windows(windows):
    area, found = choose_area(SQUARE, windows, (12, 12))
    assert area == Area(SQUARE) and list(found) == [Window(0, 0, 4, 4)]
    assert len(GRID) == 9, 'the grid of the caller is what it was'


def test_an_area_may_come_with_the_windows():
    grid = WindowGrid((12, 12), window=4, area=SQUARE)
    for area in (None, SQUARE, Area(SQUARE)):
        found, windows = choose_area(area, grid, (12, 12))
        assert found == Area(SQUARE) and list(windows) == [Window(0, 0, 4, 4)]
    with pytest.raises(OptionError, match='area'):
        choose_area(shapely.box(0, 0, 5, 5), grid, (12, 12))
    assert choose_area(SQUARE, None, (12, 12)) == (Area(SQUARE), None)
