"""The kernels of the carry strip against a plain numpy reference."""
import numpy as np
import pytest

from cocoseg import Quantization
from cocoseg.stitch import carry_kernels

BANDS = (1, 2, 3, 5)
DTYPES = ('float32', 'float64')
CODES = ('uint8', 'int16')
TOLERANCE = {'float32': 1e-6, 'float64': 1e-14}
SENTINEL = 77
# Of data, and of what was left.
LIMITS = (-1.0, 1.0)


class Problem:
    """One random window (h, w, C), what was left for it, and a rectangle to write."""

    def __init__(self, rng, n_bands, dtype, *, bands_first=False, shape=None):
        self.n_bands, self.dtype = n_bands, np.dtype(dtype)
        height, width = shape or rng.randint(1, (14, 24))
        self.data = rng.uniform(*LIMITS, (height, width, n_bands)).astype(dtype)
        self.rows, self.columns = rng.rand(height).astype(dtype), rng.rand(width).astype(dtype)
        # Up to all of the window: neighbours may overlap by more than half.
        self.y_shared, self.x_shared = rng.randint(0, (height + 1, width + 1))
        self.carry_start = rng.randint(0, 5)
        self.left = rng.uniform(*LIMITS, (height, max(self.x_shared, 1), n_bands)).astype(dtype)
        across = self.carry_start + width + rng.randint(0, 3)
        self.carry = rng.uniform(
            *LIMITS, (max(self.y_shared, 1), across, n_bands)).astype(dtype)
        self.ya, self.xa = rng.randint(0, (height, width))
        self.yb, self.xb = rng.randint((self.ya, self.xa), (height, width)) + 1
        self.place = tuple(int(start) for start in rng.randint(0, 4, 2))
        self.bands_first = bands_first

    @property
    def part(self):
        return slice(self.ya, self.yb), slice(self.xa, self.xb)

    def compute(self):
        """Return what the rectangle should hold, float64 (n, m, C)."""
        values = self.data * (self.rows[:, None] * self.columns)[..., None].astype('f8')
        values[:, :self.x_shared] += self.left[:, :self.x_shared]
        inside = slice(self.carry_start, self.carry_start + self.data.shape[1])
        values[:self.y_shared] += self.carry[:self.y_shared, inside]
        return values[self.part]

    def make_out(self, dtype=None):
        """Return a flat output with room around the rectangle."""
        shape = (self.place[0] + self.yb - self.ya + 2, self.place[1] + self.xb - self.xa + 3)
        return np.full((shape[0], shape[1] * self.n_bands), SENTINEL, dtype or self.dtype)

    def cut(self, out):
        """Return (the rectangle (n, m, C), whether all around it is as it was)."""
        image = out.reshape(len(out), -1, self.n_bands).copy()
        y, x = self.place
        target = (slice(y, y + self.yb - self.ya), slice(x, x + self.xb - self.xa))
        part = image[target].copy()
        image[target] = SENTINEL
        return part, bool((image == SENTINEL).all())

    def run(self, kernel, out, *codec):
        height, width, n_bands = self.data.shape
        planes = self.data.reshape(1, height, width * n_bands)
        if self.bands_first:
            planes = np.ascontiguousarray(self.data.transpose(2, 0, 1))
        inputs = [planes, self.rows, np.repeat(self.columns, n_bands),
                  self.left.reshape(height, -1), self.carry.reshape(len(self.carry), -1)]
        before = [array.copy() for array in inputs]
        planes, rows, columns, left, carry = inputs
        result = kernel(planes, n_bands, rows, columns, left, self.x_shared, carry, self.y_shared,
                        self.carry_start, self.ya, self.xa, self.yb, self.xb, out, *self.place,
                        *codec)
        for array, old in zip(inputs, before):
            assert np.array_equal(array, old, equal_nan=True), 'an input was modified'
        return result

    def sum(self):
        """Return (result, rectangle, whether all around is as it was) of the float kernel."""
        out = self.make_out()
        return (self.run(carry_kernels._kernel_carry, out), *self.cut(out))

    def encode(self, codec):
        """The same of the kernel that makes codes."""
        out = self.make_out(codec.dtype)
        result = self.run(carry_kernels._kernel_carry_encode, out, codec.kernel_args[:4])
        return (result, *self.cut(out))


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_a_rectangle_is_the_window_and_what_was_left(dtype, n_bands, bands_first):
    rng = np.random.RandomState(n_bands)
    for _ in range(40):
        problem = Problem(rng, n_bands, dtype, bands_first=bands_first)
        result, actual, is_untouched = problem.sum()
        assert result is True and is_untouched
        np.testing.assert_allclose(actual, problem.compute(), atol=TOLERANCE[dtype])


@pytest.mark.parametrize('share', [(0, 0), (0, 1), (1, 0), (0.6, 0.7), (1, 1)])
def test_the_parts_that_neighbours_share(share):
    rng = np.random.RandomState(0)
    for bands_first in (False, True):
        problem = Problem(rng, 2, 'float64', shape=(10, 10), bands_first=bands_first)
        problem.y_shared, problem.x_shared = (int(10 * part) for part in share)
        problem.left, problem.carry = (rng.rand(10, 20, 2) for _ in range(2))
        problem.ya = problem.xa = 0
        problem.yb = problem.xb = 10
        result, actual, is_untouched = problem.sum()
        assert result is True and is_untouched
        np.testing.assert_allclose(actual, problem.compute(), atol=1e-14)
        alone = problem.data * (problem.rows[:, None] * problem.columns)[..., None]
        differs = (actual != alone).any(axis=2)
        assert differs[:problem.y_shared].all() and differs[:, :problem.x_shared].all()
        assert not differs[problem.y_shared:, problem.x_shared:].any()


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
def test_a_whole_window_is_the_sum_of_its_rectangles(dtype, bands_first):
    rng = np.random.RandomState(1)
    problem = Problem(rng, 3, dtype, shape=(9, 11), bands_first=bands_first)
    whole, pasted = np.empty((9, 11, 3), dtype), np.empty((9, 11, 3), dtype)
    problem.place = (0, 0)
    for ya, yb in ((0, 9), (0, 4), (4, 9)):
        for xa, xb in ((0, 11), (0, 1), (1, 7), (7, 11)):
            problem.ya, problem.yb, problem.xa, problem.xb = ya, yb, xa, xb
            out = whole if (yb - ya, xb - xa) == (9, 11) else pasted
            out[problem.part] = problem.sum()[1]
    np.testing.assert_allclose(pasted, whole, atol=TOLERANCE[dtype])


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('code', CODES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_codes_are_those_of_the_float_result(dtype, code, bands_first):
    rng = np.random.RandomState(2)
    n_clipped = 0
    for n_bands in BANDS:
        for limits in ((-0.4, 0.7), (-3, 3), (0.2, 0.2), (1000, 1001)):
            problem = Problem(rng, n_bands, dtype, bands_first=bands_first)
            if limits[0] == 1000:
                # An offset that leaves few digits for what is behind the point.
                problem.left += np.array(1000, dtype)
            codec = Quantization(*limits, code)
            expected, clipped = codec.encode(problem.sum()[1])
            result, actual, is_untouched = problem.encode(codec)
            assert is_untouched
            assert np.array_equal(actual, expected)
            assert result == clipped
            n_clipped += clipped
    assert n_clipped > 0


@pytest.mark.parametrize('dtype', DTYPES)
def test_values_within_half_a_step_are_not_clipped(dtype):
    codec = Quantization(0, 1, 'uint8')
    problem = Problem(np.random.RandomState(0), 1, dtype, shape=(1, 6))
    problem.data = np.array([-0.6, -0.4, 0, 254, 254.4, 254.6], dtype).reshape(1, 6, 1) / 254
    problem.rows, problem.columns = np.ones(1, dtype), np.ones(6, dtype)
    problem.y_shared = problem.x_shared = problem.ya = problem.xa = 0
    problem.yb, problem.xb = 1, 6
    result, actual, _ = problem.encode(codec)
    assert result == 2
    assert actual.ravel().tolist() == [1, 1, 1, 255, 255, 255]


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('dtype', DTYPES)
def test_a_value_that_is_not_finite_is_found_anywhere(dtype, bands_first):
    codec = Quantization(0, 1, 'int16')
    for n_bands in (1, 3):
        problem = Problem(np.random.RandomState(3), n_bands, dtype, shape=(5, 9),
                          bands_first=bands_first)
        problem.ya, problem.xa, problem.yb, problem.xb = 1, 1, 4, 7
        clean = problem.data
        for number, place in enumerate(np.ndindex(clean.shape)):
            problem.data = clean.copy()
            problem.data[place] = (np.nan, np.inf, -np.inf)[number % 3]
            is_finite = bool(np.isfinite(problem.data[problem.part]).all())
            result, _, is_untouched = problem.sum()
            assert result is is_finite and is_untouched
            result, _, is_untouched = problem.encode(codec)
            assert (result >= 0) == is_finite and result >= -1 and is_untouched


@pytest.mark.parametrize('dtype', DTYPES)
def test_many_values_that_are_not_finite_do_not_cancel(dtype):
    problem = Problem(np.random.RandomState(4), 2, dtype, shape=(3, 40))
    problem.ya = problem.xa = 0
    problem.yb, problem.xb = 3, 40
    for first, second in ((np.inf, -np.inf), (np.inf, np.inf), (np.nan, np.inf)):
        problem.data[:, ::2], problem.data[:, 1::2] = first, second
        assert problem.sum()[0] is False
        assert problem.encode(Quantization(0, 1))[0] == -1


@pytest.mark.parametrize('dtype', DTYPES)
def test_the_largest_values_are_finite(dtype):
    problem = Problem(np.random.RandomState(5), 2, dtype, shape=(4, 33))
    problem.data[...] = np.finfo(dtype).max
    problem.rows[...], problem.columns[...] = 0.5, 0.5
    problem.left[...] = problem.carry[...] = 0
    result, actual, _ = problem.sum()
    assert result is True
    assert (actual == np.array(np.finfo(dtype).max / 4, dtype)).all()


def carry_window(problem, codec, first=0, last=None):
    """Run the kernel of a whole window; return what it gave and what should be."""
    rng, n_bands = np.random.RandomState(problem.data.size), problem.n_bands
    height, width = problem.data.shape[:2]
    y_ready, x_ready = rng.randint(1, (height + 1, width + 1))
    y_split, x_split = rng.randint(1, (y_ready + 1, x_ready + 1))
    corner = rng.randint(0, 3, 2)
    shapes = [(corner[0] + y_split, corner[1] + x_split), (corner[0] + y_split, x_ready - x_split),
              (y_ready - y_split, corner[1] + x_split), (y_ready - y_split, x_ready - x_split)]
    blocks = [np.full((rows, columns * n_bands), SENTINEL, codec.dtype) for rows, columns in shapes]
    planes = problem.data.reshape(1, height, -1)
    if problem.bands_first:
        planes = np.ascontiguousarray(problem.data.transpose(2, 0, 1))
    left = np.zeros((height, width * n_bands), problem.dtype)
    left[:, :problem.x_shared * n_bands] = problem.left[:, :problem.x_shared].reshape(height, -1)
    carry = problem.carry.reshape(len(problem.carry), -1)
    carry_out = np.full((height, carry.shape[1]), SENTINEL, problem.dtype)
    left_out = np.full_like(left, SENTINEL)
    found = carry_kernels._kernel_carry_window(
        (planes, n_bands, problem.rows, np.repeat(problem.columns, n_bands), left,
         problem.x_shared, carry), problem.y_shared, problem.carry_start,
        (first, height if last is None else last, int(y_split), int(y_ready)),
        (int(x_split), int(x_ready), width), tuple(blocks), tuple(corner.tolist()), carry_out,
        left_out, codec.kernel_args[:4])
    problem.ya, problem.xa, problem.yb, problem.xb = 0, 0, height, width
    values = problem.compute()
    # The carry is for the window that ends a pixel.
    plain = values.copy()
    inside = slice(problem.carry_start, problem.carry_start + width)
    plain[:problem.y_shared] -= problem.carry[:problem.y_shared, inside]
    wholes = [block.reshape(*shape, n_bands) for block, shape in zip(blocks, shapes)]
    final = np.vstack([np.hstack([wholes[0][corner[0]:, corner[1]:], wholes[1][corner[0]:]]),
                       np.hstack([wholes[2][:, corner[1]:], wholes[3]])])
    carried = carry_out.reshape(height, -1, n_bands)[:height - y_ready,
                                                     problem.carry_start:][:, :x_ready]
    kept = left_out.reshape(height, width, n_bands)[:, :width - x_ready]
    return found, [
        (final, values[:y_ready, :x_ready], codec), (carried, values[y_ready:, :x_ready], None),
        (kept, plain[:, x_ready:], None)]


@pytest.mark.parametrize('bands_first', [False, True])
@pytest.mark.parametrize('n_bands', BANDS)
@pytest.mark.parametrize('dtype', DTYPES)
def test_a_whole_window_is_its_rectangles(dtype, n_bands, bands_first):
    rng = np.random.RandomState(n_bands)
    for turn in range(40):
        codec = Quantization(-0.4, 0.9, CODES[turn % 2])
        problem = Problem(rng, n_bands, dtype, bands_first=bands_first)
        counts, parts = carry_window(problem, codec)
        for found, expected, code in parts:
            assert found.shape == expected.shape
            if code is None:
                np.testing.assert_allclose(found, expected, atol=4 * TOLERANCE[dtype])
            else:
                codes, n_clipped = code.encode(expected)
                assert np.abs(found.astype(int) - codes).max() <= 1
                assert abs(sum(counts) - n_clipped) <= 1


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_a_whole_window_that_is_not_finite(value):
    codec = Quantization(-1, 1)
    for position in range(4 * 5 * 2):
        problem = Problem(np.random.RandomState(3), 2, 'float32', shape=(4, 5))
        problem.data.reshape(-1)[position] = value
        assert carry_window(problem, codec)[0] == (-1, 0, 0, 0)


def test_rows_of_a_whole_window_may_be_shared_out():
    problem, codec = Problem(np.random.RandomState(0), 3, 'float32', shape=(9, 7)), \
        Quantization(-1, 1)
    _, whole = carry_window(problem, codec)
    for first, last in ((0, 4), (4, 9)):
        _, parts = carry_window(problem, codec, first, last)
        for (found, _, _), (expected, _, _) in zip(parts[2:], whole[2:]):
            assert np.array_equal(found[first:last], expected[first:last])
            assert (found[:first] == SENTINEL).all() and (found[last:] == SENTINEL).all()
