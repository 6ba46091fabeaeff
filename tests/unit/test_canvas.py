"""The canvas in RAM, in files, and on a torch device."""
import errno
import os
import tempfile

import numpy as np
import pytest

from cocoseg import SoftStitcher, Window
from cocoseg.errors import CanvasError, OptionError
from cocoseg.stitch.canvas import (Canvas, TorchCanvas, check_canvas_options, check_dtype,
                                   compute_nbytes, make_canvas)

from ..strategies import blend_model, spoil

SHAPE = (30, 40, 3)


def make_parts(rng, n_parts=12, n_bands=SHAPE[2]):
    """Return random (window, data, weights) inside the canvas, with NaN in the data."""
    parts = []
    for _ in range(n_parts):
        height, width = rng.randint(1, 15, 2)
        y, x = rng.randint(0, SHAPE[0] - height), rng.randint(0, SHAPE[1] - width)
        data = spoil(rng.randn(height, width, n_bands).astype('f4'), rng, 0.02)
        separable = (rng.rand(height).astype('f4'), rng.rand(width).astype('f4'))
        weights = separable if rng.rand() < 0.5 else rng.rand(height, width)
        parts.append((Window(y, x, y + height, x + width), data, weights))
    return parts


def add_all(canvas, parts):
    return [canvas.add(window.y0, window.x0, data, weights) for window, data, weights in parts]


def get_mean(canvas):
    sums, weights = canvas.read(Window.from_shape(SHAPE))
    with np.errstate(invalid='ignore', divide='ignore'):
        return np.where(weights[..., None] > 0, sums / weights[..., None], np.nan)


def get_expected(parts):
    dense = [(window, data, np.outer(weights[0].astype('f8'), weights[1])
              if isinstance(weights, tuple) else weights) for window, data, weights in parts]
    return blend_model(SHAPE, dense)


@pytest.mark.parametrize('dtype, tolerance', [('float32', 1e-4), ('float64', 1e-10)])
def test_sums_of_any_windows(dtype, tolerance):
    parts = make_parts(np.random.RandomState(0))
    canvas = Canvas(SHAPE, dtype)
    for (added, invalid), (_, data, _) in zip(add_all(canvas, parts), parts):
        assert added == np.isfinite(data).all(axis=2).sum()
        assert added + invalid == data.shape[0] * data.shape[1]
    np.testing.assert_allclose(get_mean(canvas), get_expected(parts), rtol=tolerance,
                               atol=tolerance)


@pytest.mark.parametrize('dtype', ['uint8', 'int16', 'bool', 'float16', 'float64', '>f4', '>i2'])
def test_data_of_any_real_dtype(dtype):
    data = np.arange(12).reshape(3, 2, 2).astype(dtype)
    canvas = Canvas((3, 2, 2))
    canvas.add(0, 0, data, np.ones((3, 2)))
    assert np.array_equal(canvas.sums, data.astype('f4'))


@pytest.mark.parametrize('layout', [
    np.asfortranarray, lambda array: array[::-1, ::-1], np.ascontiguousarray])
def test_data_of_any_layout(layout):
    data = layout(np.random.RandomState(0).rand(5, 6, 3).astype('f4'))
    canvas = Canvas((5, 6, 3))
    canvas.add(0, 0, data, layout(np.ones((5, 6))))
    assert np.array_equal(canvas.sums, data)


@pytest.mark.parametrize('weights', [
    (np.full(4, 0.5, 'f4'), np.full(5, 2, 'f4')), np.ones((4, 5), 'f4'), np.ones((4, 5), 'f8')])
def test_inputs_are_not_modified(weights):
    data = spoil(np.random.RandomState(0).rand(4, 5, 2).astype('f4'), np.random.RandomState(1))
    before = data.copy()
    arrays = [data, *(weights if isinstance(weights, tuple) else [weights])]
    for array in arrays:
        array.flags.writeable = False
    canvas = Canvas((4, 5, 2))
    canvas.add(0, 0, data, weights)
    assert np.array_equal(data, before, equal_nan=True)
    assert np.isfinite(canvas.sums).all()


def test_shared_weights_may_be_used_for_other_windows():
    # Read-only weights are expanded once; that must not outlive them.
    first, second = np.ones((4, 5), 'f4'), np.full((4, 5), 3, 'f4')
    for array in (first, second):
        array.flags.writeable = False
    canvas = Canvas((8, 5, 2))
    for y0, weights in [(0, first), (4, first), (4, second), (0, first)]:
        canvas.add(y0, 0, np.ones((4, 5, 2)), weights)
    assert np.array_equal(canvas.weights, np.repeat([[2], [4]], 4, axis=0) * np.ones((8, 5)))
    assert np.array_equal(canvas.sums, np.repeat(canvas.weights[..., None], 2, axis=2))


def test_a_read_only_view_of_weights_that_change():
    base = np.ones((4, 5), 'f4')
    view = base.view()
    view.flags.writeable = False
    canvas = Canvas((4, 5, 2))
    canvas.add(0, 0, np.ones((4, 5, 2)), view)
    base[...] = 3
    canvas.add(0, 0, np.ones((4, 5, 2)), view)
    assert (canvas.weights == 4).all()
    assert (canvas.sums == 4).all()


@pytest.mark.parametrize('dtype', ['float16', 'int32', 'complex64', 'nonsense', bool, None])
def test_dtypes_that_cannot_accumulate_are_refused(dtype):
    for make in (check_dtype, lambda dtype: Canvas(SHAPE, dtype)):
        with pytest.raises(OptionError, match='cannot accumulate'):
            make(dtype)


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('memmap', [None, True])
def test_nbytes(dtype, memmap):
    canvas = Canvas(SHAPE, dtype, memmap)
    assert canvas.nbytes == compute_nbytes(SHAPE, dtype) == 30 * 40 * 4 * np.dtype(dtype).itemsize
    canvas.close()
    canvas.close()
    assert canvas.nbytes == 0


# ---- files ------------------------------------------------------------------

def count_open_files():
    return len(os.listdir('/dev/fd'))


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_a_memmap_is_the_same_and_leaves_nothing(tmp_path, dtype):
    folder = tmp_path / 'new' / 'folder'
    parts = make_parts(np.random.RandomState(1))
    in_ram, in_file = Canvas(SHAPE, dtype), Canvas(SHAPE, dtype, folder)
    assert add_all(in_ram, parts) == add_all(in_file, parts)
    assert np.array_equal(in_ram.sums, in_file.sums)
    assert np.array_equal(in_ram.weights, in_file.weights)
    assert isinstance(in_file._sums, np.memmap)
    assert os.listdir(folder) == []
    in_file.close()
    assert os.listdir(folder) == []


def test_a_memmap_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path))
    before = count_open_files()
    canvas = Canvas(SHAPE, memmap=True)
    assert not canvas.sums.any()
    assert os.listdir(tmp_path) == []
    canvas.close()
    assert count_open_files() == before


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_an_error_now(tmp_path, monkeypatch, code):
    def fail(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, 'posix_fallocate', fail, raising=False)
    before = count_open_files()
    with pytest.raises(CanvasError, match=f'cannot map 14400 bytes in {tmp_path}') as caught:
        Canvas(SHAPE, memmap=tmp_path)
    assert isinstance(caught.value, OSError) and caught.value.errno == code
    assert os.listdir(tmp_path) == []
    assert count_open_files() == before


@pytest.mark.parametrize('error', [OSError(errno.EOPNOTSUPP, 'no'), OSError(errno.EINVAL, 'no')])
def test_where_space_cannot_be_reserved_it_is_taken_as_needed(tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(os, 'posix_fallocate', fail, raising=False)
    canvas = Canvas(SHAPE, memmap=tmp_path)
    canvas.add(0, 0, np.ones(SHAPE), np.ones(SHAPE[:2]))
    assert (canvas.sums == 1).all()


def test_where_the_call_is_missing_it_is_not_needed(tmp_path, monkeypatch):
    monkeypatch.delattr(os, 'posix_fallocate', raising=False)
    assert Canvas(SHAPE, memmap=tmp_path).sums.sum() == 0


def test_a_memmap_folder_that_cannot_be_made(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(CanvasError, match='file'):
        Canvas(SHAPE, memmap=tmp_path / 'file')


def test_no_memory_is_a_typed_error():
    with pytest.raises(CanvasError, match='use memmap'):
        make_canvas((10 ** 8, 10 ** 8, 1))


# ---- torch ------------------------------------------------------------------

def test_a_device_and_a_memmap_exclude_each_other(tmp_path):
    for check in (check_canvas_options, lambda device, memmap: SoftStitcher(
            SHAPE, device=device, memmap=memmap)):
        with pytest.raises(OptionError, match='exclude each other'):
            check('cpu', tmp_path)
        with pytest.raises(OptionError, match='must be a folder'):
            check('numpy', 3)
    assert type(make_canvas(SHAPE, memmap=False)) is Canvas


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99', None])
def test_a_device_that_is_not_there_is_refused(device):
    with pytest.raises(OptionError, match='cannot be used'):
        SoftStitcher(SHAPE, device=device)


def test_a_torch_canvas_agrees_with_ours():
    torch = pytest.importorskip('torch')
    parts = make_parts(np.random.RandomState(2))
    ours, theirs = Canvas(SHAPE, 'float64'), make_canvas(SHAPE, dtype='float64', device='cpu')
    assert type(theirs) is TorchCanvas
    expected = add_all(ours, parts)
    assert expected == add_all(theirs, [
        (window, torch.from_numpy(data), weights) for window, data, weights in parts])
    np.testing.assert_allclose(get_mean(theirs), get_mean(ours), rtol=1e-12)
    np.testing.assert_allclose(theirs.weights, ours.weights, rtol=1e-12)
    assert theirs.nbytes == ours.nbytes
    theirs.close()
    theirs.close()
    assert theirs.nbytes == 0


def test_a_torch_canvas_does_not_modify_its_inputs():
    torch = pytest.importorskip('torch')
    data = torch.ones(4, 5, 2, requires_grad=True)
    array = np.ones((4, 5, 2), 'f4')
    array[0] = np.nan
    before = array.copy()
    array.flags.writeable = False
    canvas = TorchCanvas((4, 5, 2), 'cpu')
    assert canvas.add(0, 0, data, np.ones((4, 5))) == (20, 0)
    assert canvas.add(0, 0, array, np.ones((4, 5))) == (15, 5)
    assert np.array_equal(array, before, equal_nan=True)
    assert (data == 1).all()
    assert canvas.weights.sum() == 35
