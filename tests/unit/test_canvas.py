"""The canvas as one block, in RAM and in files, against plain numpy to the last bit."""
import errno
import gc
import os
import tempfile

import numpy as np
import pytest

from cocoseg import SoftStitcher, Window
from cocoseg.errors import CanvasError, OptionError
from cocoseg.stitch.canvas import (BlockCanvas, as_planes, check_canvas_options, check_dtype,
                                   check_nan_policy, compute_nbytes)

from ..strategies import blend_model, spoil

SHAPE = (30, 40, 3)
DTYPES = ('float32', 'float64')
POLICIES = ('pixel', 'band')
ONES = (np.ones(30, 'f4'), np.ones(40, 'f4'))


class EagerCanvas:
    """What a canvas must hold, to the last bit: every window is added when it comes."""

    def __init__(self, shape, dtype='float32', nan_policy='pixel'):
        self.dtype = np.dtype(dtype)
        self.per_band = nan_policy == 'band' and shape[2] > 1
        self.sums, self.deviations = np.zeros(shape, dtype), np.zeros(shape, dtype)
        self.planes = np.zeros(shape if self.per_band else (*shape[:2], 1), dtype)

    @property
    def weights(self):
        return self.planes if self.per_band else self.planes[..., 0]

    def add(self, y0, x0, data, weights):
        with np.errstate(over='ignore'):
            data = np.asarray(data).astype(self.dtype)
        if isinstance(weights, tuple):
            rows, columns = (np.asarray(part, self.dtype) for part in weights)
            weights = rows[:, None] * columns
        part = (slice(y0, y0 + data.shape[0]), slice(x0, x0 + data.shape[1]))
        valid = np.isfinite(data)
        valid = valid if self.per_band else valid.all(axis=2, keepdims=True)
        new = np.where(valid, np.asarray(weights, self.dtype)[..., None], self.dtype.type(0))
        old = self.planes[part]
        with np.errstate(invalid='ignore', divide='ignore', over='ignore'):
            distance = data - self.sums[part] / old
            term = new * (old / (old + new)) * distance * distance
            self.deviations[part] += np.where((old > 0) & (new > 0), term, self.dtype.type(0))
            self.sums[part] += np.where(valid, data * new, self.dtype.type(0))
        self.planes[part] += new
        covered = valid.any(axis=2)
        return int(covered.sum()), int((~covered).sum())


def assert_same_bits(values, expected, part=(slice(None), slice(None)), deviations=False):
    """Compare BlockValues with a part of an EagerCanvas."""
    assert values.sums.dtype == values.weights.dtype == expected.dtype
    assert np.array_equal(values.sums, expected.sums[part])
    assert np.array_equal(values.weights, expected.weights[part])
    assert (values.deviations is not None) == deviations
    if deviations:
        assert np.array_equal(values.deviations, expected.deviations[part])


def make_parts(rng, n_parts=40, shape=SHAPE, max_size=15, fraction=0.02, offset=0):
    """Return random (y0, x0, data, weights) inside an image; half of them without NaN."""
    parts = []
    for _ in range(n_parts):
        height, width = (rng.randint(1, min(max_size, size) + 1) for size in shape[:2])
        y0, x0 = rng.randint(0, shape[0] - height + 1), rng.randint(0, shape[1] - width + 1)
        data = (offset + rng.randn(height, width, shape[2])).astype('f4')
        if rng.rand() < 0.5:
            data = spoil(data, rng, fraction)
        separable = (rng.rand(height).astype('f4'), rng.rand(width).astype('f4'))
        weights = separable if rng.rand() < 0.7 else rng.rand(height, width)
        parts.append((y0, x0, data, weights))
    return parts


def read_all(canvas):
    return canvas.read(Window.from_shape(canvas.shape))


# ---- sums ------------------------------------------------------------------

@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-4), ('float64', 1e-10)])
def test_the_mean_of_any_windows(dtype, tolerance):
    parts = make_parts(np.random.RandomState(0))
    canvas = BlockCanvas(SHAPE, dtype=dtype)
    for y0, x0, data, weights in parts:
        added, invalid = canvas.add(y0, x0, data, weights)
        assert added == np.isfinite(data).all(axis=2).sum()
        assert added + invalid == data.shape[0] * data.shape[1]
    expected = blend_model(SHAPE, [
        (Window(y0, x0, y0 + data.shape[0], x0 + data.shape[1]), data,
         np.outer(weights[0].astype('f8'), weights[1]) if isinstance(weights, tuple) else weights)
        for y0, x0, data, weights in parts])
    np.testing.assert_allclose(read_all(canvas).compute_mean(), expected, rtol=tolerance,
                               atol=tolerance)


@pytest.mark.parametrize('memmap', [None, True])
@pytest.mark.parametrize('deviations', [False, True])
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('dtype', DTYPES)
def test_sums_are_those_of_plain_numpy(dtype, nan_policy, deviations, memmap):
    expected = EagerCanvas(SHAPE, dtype, nan_policy)
    canvas = BlockCanvas(SHAPE, dtype=dtype, nan_policy=nan_policy, deviations=deviations,
                         memmap=memmap)
    for part in make_parts(np.random.RandomState(1), 60):
        assert canvas.add(*part) == expected.add(*part)
    assert np.array_equal(canvas.weights, expected.weights)
    assert_same_bits(read_all(canvas), expected, deviations=deviations)
    assert_same_bits(canvas.take((0, 0)), expected, deviations=deviations)
    canvas.close()


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('n_windows', [1, 32, 33, 34, 70])
def test_any_number_of_windows_over_one_block(n_windows, nan_policy):
    rng = np.random.RandomState(n_windows)
    expected = EagerCanvas((5, 6, 2), nan_policy=nan_policy)
    canvas = BlockCanvas((5, 6, 2), nan_policy=nan_policy)
    for _ in range(n_windows):
        part = (0, 0, rng.rand(5, 6, 2), (rng.rand(5).astype('f4'), rng.rand(6).astype('f4')))
        assert canvas.add(*part) == expected.add(*part) == (30, 0)
    assert_same_bits(canvas.take((0, 0)), expected)


@pytest.mark.parametrize('first_bad', [0, 1, 3, 4])
@pytest.mark.parametrize('nan_policy', POLICIES)
def test_nan_in_any_row_after_windows_without(nan_policy, first_bad):
    rng = np.random.RandomState(0)
    expected = EagerCanvas((5, 6, 2), nan_policy=nan_policy)
    canvas = BlockCanvas((5, 6, 2), nan_policy=nan_policy)
    for turn in range(6):
        data = rng.rand(5, 6, 2).astype('f4')
        if turn % 3 == 1:
            data[first_bad, turn, turn % 2] = np.nan
        part = (0, 0, data, (rng.rand(5).astype('f4'), rng.rand(6).astype('f4')))
        assert canvas.add(*part) == expected.add(*part)
    assert_same_bits(canvas.take((0, 0)), expected)


def test_bands_count_for_themselves():
    canvas = BlockCanvas((2, 2, 2), nan_policy='band')
    data = np.ones((2, 2, 2), 'f4')
    data[0, 0, 0] = data[1, 1] = np.nan
    assert canvas.add(0, 0, data, (np.ones(2), np.ones(2))) == (3, 1)
    values = canvas.take((0, 0))
    assert np.array_equal(values.weights, np.isfinite(data))
    assert np.array_equal(values.compute_mean(), data, equal_nan=True)
    # One band has nobody to count apart from.
    assert BlockCanvas((2, 2, 1), nan_policy='band').weights.shape == (2, 2)


def test_a_lone_window_does_not_deviate():
    canvas = BlockCanvas((4, 4, 1), deviations=True, dtype='float64')
    canvas.add(0, 0, np.full((4, 3, 1), 1e8 + 0.1), (np.full(4, 0.3), np.full(3, 0.7)))
    canvas.add(0, 2, np.full((4, 2, 1), 1e8 + 2.1), (np.full(4, 0.3), np.full(2, 0.7)))
    values = canvas.take((0, 0))
    assert (values.deviations[:, [0, 1, 3]] == 0).all()
    # Two equal weights, 2 apart: each deviates by 1.
    np.testing.assert_allclose(values.deviations[:, 2, 0] / values.weights[:, 2], 1, rtol=1e-6)


# ---- inputs ----------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'uint64', 'bool', 'float16', 'float64',
                                   'longdouble', '>f4', '>i2'])
def test_data_of_any_real_dtype(dtype):
    data = np.arange(12).reshape(3, 2, 2).astype(dtype)
    canvas = BlockCanvas((3, 2, 2))
    canvas.add(0, 0, data, np.ones((3, 2)))
    assert np.array_equal(read_all(canvas).sums, data.astype('f4'))


def unalign(array):
    raw = np.frombuffer(b'.' + np.ascontiguousarray(array).tobytes(), np.uint8)
    return raw[1:].view(array.dtype).reshape(array.shape)


def put_bands_first(array):
    if array.ndim == 2:
        return np.asfortranarray(array)
    return np.ascontiguousarray(array.transpose(2, 0, 1)).transpose(1, 2, 0)


LAYOUTS = {
    'fortran': np.asfortranarray, 'unaligned': unalign, 'bands first': put_bands_first,
    'reversed': lambda array: np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
    'bands reversed': lambda array: np.ascontiguousarray(array[..., ::-1])[..., ::-1],
    'every other': lambda array: np.repeat(np.repeat(array, 2, 0), 2, 1)[::2, ::2],
    'part of bands first': lambda array: put_bands_first(np.pad(
        array, [(1, 2), (2, 1)] + [(0, 0)] * (array.ndim - 2)))[1:-2, 2:-1],
    'bands first, upside down': lambda array: put_bands_first(array[::-1])[::-1],
    'bands before columns': lambda array: np.ascontiguousarray(
        array.swapaxes(1, -1)).swapaxes(1, -1),
}


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('n_bands', [1, 3])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_data_of_any_layout(layout, n_bands, nan_policy):
    shape, change = (*SHAPE[:2], n_bands), LAYOUTS[layout]
    expected, canvas = EagerCanvas(shape, nan_policy=nan_policy), BlockCanvas(
        shape, nan_policy=nan_policy, deviations=True)
    for y0, x0, data, weights in make_parts(np.random.RandomState(2), 20, shape):
        given = weights if isinstance(weights, tuple) else change(weights)
        assert np.array_equal(change(data), data, equal_nan=True)
        assert canvas.add(y0, x0, change(data), given) == expected.add(y0, x0, data, weights)
    assert_same_bits(read_all(canvas), expected, deviations=True)


def test_one_value_for_the_whole_window():
    canvas = BlockCanvas(SHAPE)
    canvas.add(0, 0, np.broadcast_to(np.float32(2), SHAPE), ONES)
    assert (read_all(canvas).sums == 2).all()


@pytest.mark.parametrize('shape', [(4, 5, 3), (1, 5, 3), (4, 1, 3), (1, 1, 3), (4, 5, 1)])
def test_planes_are_views_where_they_can_be(shape):
    data = np.random.RandomState(0).rand(*shape).astype('f4')
    flat = as_planes(data, np.dtype('f4'))
    assert flat.shape == (1, shape[0], shape[1] * shape[2]) and flat.flags.c_contiguous
    assert np.shares_memory(flat, data) and np.array_equal(flat.ravel(), data.ravel())
    first = put_bands_first(data)
    planes = as_planes(first, np.dtype('f4'))
    assert planes.flags.c_contiguous
    if planes.shape[0] == 1:
        assert np.array_equal(planes, flat)
    else:
        assert np.array_equal(planes, data.transpose(2, 0, 1))
        assert np.shares_memory(planes, first)
    if shape == (4, 5, 3):
        assert planes.shape == (3, 4, 5)
        assert as_planes(first, np.dtype('f8')).dtype == 'f8'


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('deviations', [False, True])
@pytest.mark.parametrize('weights', [
    (np.full(4, 0.5, 'f4'), np.full(5, 2, 'f4')), np.ones((4, 5), 'f4'), np.ones((4, 5), 'f8')])
def test_inputs_are_not_modified(weights, deviations, nan_policy):
    data = spoil(np.random.RandomState(0).rand(4, 5, 2).astype('f4'), np.random.RandomState(1))
    before = data.copy()
    arrays = [data, *(weights if isinstance(weights, tuple) else [weights])]
    for array in arrays:
        array.flags.writeable = False
    canvas = BlockCanvas((4, 5, 2), deviations=deviations, nan_policy=nan_policy)
    for _ in range(2):
        canvas.add(0, 0, data, weights)
    assert np.array_equal(data, before, equal_nan=True)
    assert all((part == part.flat[0]).all() for part in arrays[1:])
    assert np.isfinite(read_all(canvas).sums).all()


def test_shared_weights_may_be_used_for_other_windows():
    first, second = np.ones((4, 5), 'f4'), np.full((4, 5), 3, 'f4')
    canvas = BlockCanvas((8, 5, 2))
    for y0, weights in [(0, first), (4, first), (4, second), (0, first)]:
        canvas.add(y0, 0, np.ones((4, 5, 2)), weights)
    assert np.array_equal(canvas.weights, np.repeat([[2], [4]], 4, axis=0) * np.ones((8, 5)))
    assert np.array_equal(read_all(canvas).sums, np.repeat(canvas.weights[..., None], 2, axis=2))


def test_weights_per_pixel_and_data_may_change_after_they_were_added():
    weights, data = np.ones((4, 5), 'f4'), np.ones((4, 5, 2), 'f4')
    canvas = BlockCanvas((4, 5, 2))
    canvas.add(0, 0, data, weights)
    weights[...], data[...] = 3, 7
    assert (canvas.weights == 1).all()
    assert (read_all(canvas).sums == 1).all()


def test_what_was_read_is_a_copy():
    canvas = BlockCanvas(SHAPE, deviations=True)
    canvas.add(0, 0, np.ones(SHAPE), ONES)
    values = read_all(canvas)
    for array in (values.sums, values.weights, values.deviations, canvas.weights):
        array[...] = 9
    assert (canvas.weights == 1).all() and (read_all(canvas).sums == 1).all()
    assert not read_all(canvas).deviations.any()


# ---- options ---------------------------------------------------------------

@pytest.mark.parametrize('dtype', ['float16', 'int32', 'complex64', 'nonsense', bool, None])
def test_dtypes_that_cannot_accumulate_are_refused(dtype):
    for make in (check_dtype, lambda dtype: BlockCanvas(SHAPE, dtype=dtype)):
        with pytest.raises(OptionError, match='cannot accumulate'):
            make(dtype)


@pytest.mark.parametrize('policy', ['', 'Pixel', None, 1, ('pixel',)])
def test_unknown_policies_are_refused(policy):
    for make in (check_nan_policy, lambda policy: BlockCanvas(SHAPE, nan_policy=policy)):
        with pytest.raises(OptionError, match='nan_policy.*unknown'):
            make(policy)


def test_a_device_and_a_memmap_exclude_each_other(tmp_path):
    for check in (check_canvas_options, lambda device, memmap: SoftStitcher(
            SHAPE, device=device, memmap=memmap)):
        with pytest.raises(OptionError, match='exclude each other'):
            check('cpu', tmp_path)
        with pytest.raises(OptionError, match='must be a folder'):
            check('numpy', 3)
        check('numpy', False)
        check('numpy', str(tmp_path))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('memmap', [None, False, True])
def test_nbytes(dtype, memmap):
    canvas = BlockCanvas(SHAPE, dtype=dtype, memmap=memmap)
    itemsize = np.dtype(dtype).itemsize
    assert compute_nbytes(SHAPE, dtype) == 30 * 40 * 4 * itemsize
    assert canvas.nbytes == canvas.n_live == 0
    canvas.add(0, 0, np.ones(SHAPE), ONES)
    # In RAM there is no plane until something needs one.
    assert canvas.nbytes == 30 * 40 * (4 if memmap else 3) * itemsize
    canvas.add(0, 0, np.ones(SHAPE), np.ones(SHAPE[:2]))
    assert canvas.nbytes == canvas.peak_nbytes == compute_nbytes(SHAPE, dtype)
    assert canvas.n_live == 1
    for _ in range(2):
        canvas.close()
        assert canvas.nbytes == canvas.n_live == 0
    assert canvas.peak_nbytes == compute_nbytes(SHAPE, dtype)


# ---- files and memory ------------------------------------------------------

def count_open_files():
    # What other tests forgot may go at any time.
    gc.collect()
    return len(os.listdir('/dev/fd'))


@pytest.mark.parametrize('dtype', DTYPES)
def test_a_memmap_leaves_nothing(tmp_path, dtype):
    folder = tmp_path / 'new' / 'folder'
    canvas, expected = BlockCanvas(SHAPE, dtype=dtype, memmap=folder), EagerCanvas(SHAPE, dtype)
    for part in make_parts(np.random.RandomState(1)):
        canvas.add(*part), expected.add(*part)
        assert os.listdir(folder) == []
    values = canvas.take((0, 0))
    assert isinstance(values.sums, np.memmap)
    assert_same_bits(values, expected)
    canvas.close()
    assert os.listdir(folder) == []
    assert_same_bits(values, expected)


def test_a_memmap_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    before = count_open_files()
    canvas = BlockCanvas(SHAPE, memmap=True)
    canvas.add(0, 0, np.ones(SHAPE), ONES)
    assert isinstance(canvas.take((0, 0)).sums, np.memmap)
    assert os.listdir(tmp_path) == []
    canvas.close()
    assert count_open_files() == before


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
@pytest.mark.parametrize('n_before', [0, 1])
def test_a_full_disk_is_an_error_now(tmp_path, monkeypatch, code, n_before):
    reserve, calls = os.posix_fallocate, []

    def fail(*args):
        calls.append(args)
        if len(calls) > n_before:
            raise OSError(code, os.strerror(code))
        reserve(*args)
    before = count_open_files()
    canvas = BlockCanvas(SHAPE, memmap=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'posix_fallocate', fail)
        size = (14400, 4800)[n_before]
        with pytest.raises(CanvasError, match=f'cannot map {size} bytes in {tmp_path}') as caught:
            canvas.add(0, 0, np.ones(SHAPE), ONES)
    assert isinstance(caught.value, OSError) and caught.value.errno == code
    assert os.listdir(tmp_path) == [] and count_open_files() == before
    assert canvas.n_live == 0 and canvas.nbytes == 0
    canvas.add(0, 0, np.ones(SHAPE), ONES)
    assert (read_all(canvas).sums == 1).all() and (canvas.weights == 1).all()


@pytest.mark.parametrize('error', [OSError(errno.EOPNOTSUPP, 'no'), OSError(errno.EINVAL, 'no'),
                                   OSError(errno.ENOSYS, 'no')])
def test_where_space_cannot_be_reserved_it_is_taken_as_needed(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, 'posix_fallocate', fail, raising=False)
    canvas = BlockCanvas(SHAPE, memmap=tmp_path)
    canvas.add(0, 0, np.ones(SHAPE), np.ones(SHAPE[:2]))
    assert (read_all(canvas).sums == 1).all()


def test_where_the_call_is_missing_it_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'posix_fallocate', raising=False)
    canvas = BlockCanvas(SHAPE, memmap=tmp_path)
    canvas.add(0, 0, np.ones(SHAPE), ONES)
    assert (canvas.take((0, 0)).sums == 1).all()


def test_a_memmap_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    for folder in ('file', 'file/below'):
        canvas = BlockCanvas(SHAPE, memmap=tmp_path / folder)
        with pytest.raises(CanvasError, match='file'):
            canvas.add(0, 0, np.ones(SHAPE), ONES)


def test_no_memory_is_a_typed_error():
    canvas = BlockCanvas((10 ** 8, 10 ** 8, 1))
    for _ in range(2):
        with pytest.raises(CanvasError, match='use memmap') as caught:
            canvas.add(0, 0, np.ones((1, 1, 1)), np.ones((1, 1)))
        assert caught.value.errno == errno.ENOMEM
        assert canvas.n_live == canvas.nbytes == 0
