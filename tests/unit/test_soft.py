"""The soft stitcher: what comes out, and what may be put in."""
import numpy as np
import pytest

from cocoseg import BlendPlan, SoftStitcher, Window, WindowGrid, edge_weights
from cocoseg.stitch.quantize import Quantization

from ..strategies import blend_model, crop_padded

# Strides of 14: a list of these windows blends as the grid does.
GRID = WindowGrid((48, 62), window=20, overlap=6)
RNG = np.random.RandomState(0)
PREDICTIONS = {window: RNG.rand(*window.shape, 2).astype('f4') for window in GRID}


def stitch(windows=None, order=GRID, **options):
    """Return the stitched PREDICTIONS."""
    stitcher = SoftStitcher(GRID.shape, windows, **options)
    for window in order:
        stitcher.add(window, PREDICTIONS[window])
    return stitcher.finalize()


def get_dense(windows, window):
    """Return the (h, w) weights that a plan gives a window."""
    return np.outer(*(weights.astype('f8') for weights in BlendPlan(windows).get_weights(window)))


# ---- what comes out ---------------------------------------------------------

def test_the_result_is_the_weighted_mean():
    expected = blend_model((48, 62, 2), [
        (window, data, get_dense(GRID, window)) for window, data in PREDICTIONS.items()])
    result = stitch(GRID)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert stitch(GRID, dtype='float64').dtype == np.float64
    np.testing.assert_allclose(stitch(GRID, dtype='float64'), expected, rtol=1e-12)


def test_without_a_declaration_every_window_counts_the_same():
    expected = blend_model((48, 62, 2), [
        (window, data, np.ones(window.shape)) for window, data in PREDICTIONS.items()])
    np.testing.assert_allclose(stitch(), expected, rtol=1e-5)


def test_given_weights_are_used_also_when_windows_are_declared():
    weights = edge_weights((20, 20))
    expected = blend_model((48, 62, 2), [
        (window, data, weights) for window, data in PREDICTIONS.items()])
    for windows in (None, GRID):
        stitcher = SoftStitcher(GRID.shape, windows)
        for window in GRID:
            stitcher.add(window, PREDICTIONS[window], weights)
        np.testing.assert_allclose(stitcher.finalize(), expected, rtol=1e-5)


def test_two_dimensional_data_is_one_band():
    stitcher = SoftStitcher((4, 5))
    assert stitcher.shape == (4, 5, None)
    assert stitcher.add(None, np.eye(4, 5)) == 20
    assert stitcher.shape == (4, 5, 1)
    assert np.array_equal(stitcher.finalize()[..., 0], np.eye(4, 5, dtype='f4'))


def test_windows_that_overhang_are_clipped():
    data = np.arange(36.0).reshape(6, 6)
    stitcher = SoftStitcher((5, 5), dtype='float64')
    assert stitcher.add(Window(-2, -3, 4, 3), data) == 4 * 3
    assert stitcher.add((slice(3, 9), slice(4, 10)), data, np.ones((6, 6))) == 2 * 1
    result = stitcher.finalize()[..., 0]
    assert np.array_equal(result[:4, :3], data[2:, 3:])
    assert np.array_equal(result[3:, 4:], data[:2, :1])
    assert np.isfinite(result).sum() == 14


def test_invalid_pixels_contribute_nothing():
    first, second = np.ones((4, 4, 2)), np.full((4, 4, 2), 3.0)
    first[0, 0, 1], first[1, 1, 0], first[3, 3, 0] = np.nan, np.inf, -np.inf
    second[3, 3, 1] = np.nan
    stitcher = SoftStitcher((4, 4))
    assert stitcher.add(None, first) == 13
    assert stitcher.add(None, second) == 15
    assert stitcher.n_invalid == 4
    result = stitcher.finalize()
    assert (result[0, 0] == 3).all() and (result[1, 1] == 3).all()
    assert np.isnan(result[3, 3]).all()
    assert (result == 2).sum() == 2 * 13


def test_pixels_without_weight_have_no_value():
    stitcher = SoftStitcher((2, 2))
    stitcher.add(None, np.ones((2, 2)), np.array([[0, 1], [2, 0.5]]))
    assert np.array_equal(stitcher.weights, [[0, 1], [2, 0.5]])
    assert np.array_equal(stitcher.finalize()[..., 0], [[np.nan, 1], [1, 1]], equal_nan=True)


def test_expected_minmax_clips_the_result():
    stitcher = SoftStitcher((1, 4), expected_minmax=(0, 1))
    stitcher.add(None, np.array([[-1, 0.25, 2, np.nan]]))
    assert np.array_equal(stitcher.finalize().ravel(), [0, 0.25, 1, np.nan], equal_nan=True)


def test_read_and_encode_before_the_end():
    stitcher = SoftStitcher(GRID.shape, GRID, dtype='float64')
    for window in GRID:
        stitcher.add(window, PREDICTIONS[window])
    part = Window(3, 4, 33, 29)
    values = stitcher.read(part)
    codec = Quantization(0.2, 0.8)
    codes, n_clipped = stitcher.encode(codec, part)
    out = np.empty((30, 25, 2), 'int16')
    assert stitcher.encode(codec, part, out)[0] is out
    assert np.array_equal(codes, out)
    assert np.array_equal(codes, codec.encode(values)[0])
    assert n_clipped == codec.encode(values)[1] > 0
    assert np.array_equal(stitcher.finalize()[part.slices], values)


def test_an_overflowing_sum_is_the_same_in_float_and_in_integers():
    stitcher = SoftStitcher((2, 2))
    for _ in range(2):
        stitcher.add(None, np.full((2, 2), 3e38, 'f4'))
    codec, window = Quantization(0, 1), Window(0, 0, 2, 2)
    codes, n_clipped = stitcher.encode(codec, window)
    expected, expected_clipped = codec.encode(stitcher.read(window))
    assert np.array_equal(codes, expected)
    assert n_clipped == expected_clipped


def test_windows_in_any_notation():
    expected = stitch(GRID)
    for declare in (list(GRID), (window for window in GRID), [w.slices for w in GRID],
                    [w.as_box() for w in GRID], set(GRID)):
        stitcher = SoftStitcher(GRID.shape, declare)
        for index, window in enumerate(GRID):
            place = (window, window.slices, window.as_box())[index % 3]
            stitcher.add(place, PREDICTIONS[window])
        assert stitcher.is_complete
        assert np.array_equal(stitcher.finalize(), expected)


def test_slices_without_ends_mean_the_whole_image():
    whole = (slice(None), slice(None))
    for windows in (None, [whole]):
        stitcher = SoftStitcher((4, 5), windows)
        stitcher.add(whole, np.eye(4, 5))
        assert np.array_equal(stitcher.finalize()[..., 0], np.eye(4, 5))


def test_pending_windows_can_be_added():
    # The image is smaller than the window; pending tells the part inside.
    for declare, give in [(Window(0, 0, 16, 16), Window(0, 0, 10, 12)),
                          (Window(0, 0, 10, 12), Window(0, 0, 16, 16)),
                          (Window(-3, -3, 16, 16), Window(-1, -1, 11, 13))]:
        stitcher = SoftStitcher((10, 12), [declare])
        assert stitcher.pending == [Window(0, 0, 10, 12)]
        image = np.random.RandomState(0).rand(10, 12, 1).astype('f4')
        stitcher.add(give, crop_padded(image, give))
        assert stitcher.is_complete
        assert np.array_equal(stitcher.finalize(), image)


def test_windows_with_the_same_part_inside_keep_their_own_weights():
    image_shape = (12, 8, 1)
    windows = [Window(-3, 0, 5, 8), Window(0, 0, 5, 8), Window(4, 0, 12, 8)]
    data = [np.full((*window.shape, 1), value) for value, window in enumerate(windows)]
    expected = blend_model(image_shape, [
        (window, part, get_dense(windows, window)) for window, part in zip(windows, data)])
    for order in ((0, 1, 2), (1, 0, 2)):
        stitcher = SoftStitcher(image_shape, [windows[index] for index in order])
        for index in order:
            stitcher.add(windows[index], data[index])
        np.testing.assert_allclose(stitcher.finalize(), expected, rtol=1e-5)


# ---- inputs -----------------------------------------------------------------

class FakeTensor:
    """As much of a torch tensor as the numpy path may use, and no more."""

    def __init__(self, array, steps=()):
        self.array = array
        self.steps = steps

    @property
    def shape(self):
        return self.array.shape

    def detach(self):
        return FakeTensor(self.array, (*self.steps, 'detach'))

    def cpu(self):
        return FakeTensor(self.array, (*self.steps, 'cpu'))

    def __array__(self, dtype=None, copy=None):
        if self.steps != ('detach', 'cpu'):
            raise TypeError(f'cannot convert after {self.steps}: requires grad, or not on the CPU')
        return np.asarray(self.array, dtype)


def test_masked_values_are_invalid():
    data = np.ma.masked_array([[1, 2], [3, 4]], [[0, 1], [0, 0]])
    stitcher = SoftStitcher((2, 2))
    assert stitcher.add(None, data) == 3
    assert data.dtype.kind == 'i' and data.data[0, 1] == 2
    expected = [[1, np.nan], [3, 4]]
    assert np.array_equal(stitcher.finalize()[..., 0], expected, equal_nan=True)


def test_tensors_are_brought_to_numpy():
    stitcher = SoftStitcher(GRID.shape)
    plain = SoftStitcher(GRID.shape)
    weights = edge_weights((20, 20))
    for window, data in PREDICTIONS.items():
        stitcher.add(window, FakeTensor(data), FakeTensor(weights))
        plain.add(window, data, weights)
    assert np.array_equal(stitcher.finalize(), plain.finalize())


def test_torch_tensors_are_taken_on_their_device():
    torch = pytest.importorskip('torch')
    expected = stitch(GRID)
    for device in ('numpy', 'cpu'):
        stitcher = SoftStitcher(GRID.shape, GRID, device=device)
        for window, data in PREDICTIONS.items():
            stitcher.add(window, torch.from_numpy(data).requires_grad_())
        np.testing.assert_allclose(stitcher.finalize(), expected, rtol=1e-5)


@pytest.mark.parametrize('dtype', ['bool', 'uint8', 'int32', 'float16', 'float64', '>f4'])
def test_weights_of_any_real_dtype(dtype):
    stitcher = SoftStitcher((2, 2))
    weights = np.array([[0, 1], [1, 1]], dtype)
    for value in (1, 2):
        stitcher.add(None, np.full((2, 2), value), weights)
        weights = np.ones((2, 2), dtype)
    assert np.array_equal(stitcher.finalize()[..., 0], [[2, 1.5], [1.5, 1.5]])


@pytest.mark.parametrize('weights', [None, np.ones((20, 20)), np.ones((20, 20), 'f4')])
@pytest.mark.parametrize('windows', [None, GRID])
def test_inputs_are_not_modified(windows, weights):
    if weights is not None:
        weights.flags.writeable = False
    stitcher = SoftStitcher(GRID.shape, windows, expected_minmax=(0.4, 0.6))
    for window, data in PREDICTIONS.items():
        given = data.copy()
        given[3, 3, 0] = np.nan
        before = given.copy()
        given.flags.writeable = False
        stitcher.add(window, given, weights)
        assert np.array_equal(given, before, equal_nan=True)
    stitcher.finalize()
    assert weights is None or (weights == 1).all()


def test_the_plan_is_not_changed_by_use():
    plan = BlendPlan(GRID)
    before = [np.outer(*plan.get_weights(window)) for window in GRID]
    stitch(GRID)
    assert all(np.array_equal(np.outer(*plan.get_weights(window)), weights)
               for window, weights in zip(GRID, before))
