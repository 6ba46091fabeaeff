"""The canvas on a torch device: it agrees with ours, whatever tensors come."""
import numpy as np
import pytest

from cocoseg import BlockGrid, Quantization, SoftStitcher, Window, WindowGrid
from cocoseg.errors import CanvasError, OptionError
from cocoseg.protocols import MemorySink
from cocoseg.stitch.canvas import BlockCanvas
from cocoseg.stitch.torch_canvas import TorchCanvas, check_device

from .test_canvas import POLICIES, make_parts, put_bands_first

torch = pytest.importorskip('torch')

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]
SHAPE = (30, 40, 3)
TOLERANCE = {'float32': 1e-6, 'float64': 1e-12}
CODES = ('uint8', 'int8', 'int16', 'uint16', 'int32', 'uint32')


def get_parts(seed=0, n_bands=3):
    return make_parts(np.random.RandomState(seed), 40, (*SHAPE[:2], n_bands), offset=3)


def make_both(dtype='float64', size=None, device='cpu', n_bands=3, **options):
    """Return a canvas of ours and one of torch, for the same image."""
    shape = (*SHAPE[:2], n_bands)
    blocks = None if size is None else BlockGrid(shape, size)
    return (BlockCanvas(shape, blocks, dtype, **options),
            TorchCanvas(shape, device, blocks, dtype, **options))


def assert_close(theirs, ours, tolerance):
    """Compare values with ours, relative to what the sums of a pixel may be."""
    assert theirs.weights.dtype == ours.weights.dtype and theirs.sums.dtype == ours.sums.dtype
    assert theirs.weights.shape == ours.weights.shape and theirs.sums.shape == ours.sums.shape
    assert np.array_equal(theirs.weights > 0, ours.weights > 0)
    np.testing.assert_allclose(theirs.weights, ours.weights, rtol=tolerance)
    scale = 6 * np.maximum(ours.weights.reshape(*ours.sums.shape[:2], -1), 1)
    assert (np.abs(theirs.sums - ours.sums) <= tolerance * scale).all()
    assert (theirs.deviations is None) == (ours.deviations is None)
    if ours.deviations is not None:
        assert (np.abs(theirs.deviations - ours.deviations) <= 10 * tolerance * scale).all()
        assert np.array_equal(theirs.deviations == 0, ours.deviations == 0)
    assert np.array_equal(np.isnan(theirs.compute_mean()), np.isnan(ours.compute_mean()))


# ---- sums ------------------------------------------------------------------

@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size', [None, 16, (7, 40)])
@pytest.mark.parametrize('deviations', [False, True])
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_it_agrees_with_ours(dtype, nan_policy, deviations, size, device):
    ours, theirs = make_both(dtype, size, device, nan_policy=nan_policy, deviations=deviations)
    for number, (y0, x0, data, weights) in enumerate(get_parts()):
        given = torch.from_numpy(data).to(device) if number % 2 else data
        assert theirs.add(y0, x0, given, weights) == ours.add(y0, x0, data, weights)
    window = Window(3, 5, 28, 33)
    assert_close(theirs.read(window), ours.read(window), TOLERANCE[dtype])
    np.testing.assert_allclose(theirs.weights, ours.weights, rtol=TOLERANCE[dtype])
    for block in BlockGrid(SHAPE, size or SHAPE[:2]):
        mine, other = ours.take(block.index), theirs.take(block.index)
        assert_close(other, mine, TOLERANCE[dtype])
        mean = mine.compute_mean()
        np.testing.assert_allclose(other.compute_mean(), mean, rtol=1e-4, atol=1e-4)
        if dtype == 'float64':
            np.testing.assert_allclose(other.compute_mean(), mean, rtol=1e-12, atol=1e-12)
        mine.release(), other.release()
    assert theirs.n_live == theirs.nbytes == 0


@pytest.mark.parametrize('n_bands', [1, 2])
def test_one_band_has_one_weight(n_bands):
    ours, theirs = make_both(n_bands=n_bands, nan_policy='band')
    for part in get_parts(n_bands=n_bands):
        assert theirs.add(*part) == ours.add(*part)
    assert_close(theirs.take((0, 0)), ours.take((0, 0)), 1e-12)


@pytest.mark.parametrize('nan_policy', POLICIES)
def test_an_untouched_block_is_empty(nan_policy):
    for canvas in make_both('float32', 16, nan_policy=nan_policy, deviations=True):
        values = canvas.take((1, 2))
        assert values.sums.shape == values.deviations.shape == (14, 8, 3)
        assert not values.sums.any() and not values.weights.any() and not values.deviations.any()
        assert np.isnan(values.compute_mean()).all()
        codes, n_clipped = values.encode(Quantization(0, 1))
        assert (codes == -9999).all() and n_clipped == 0


# ---- codes -----------------------------------------------------------------

@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('quantize_dtype', CODES)
def test_codes_agree_with_ours(quantize_dtype, dtype, nan_policy, device):
    ours, theirs = make_both(dtype, 16, device, nan_policy=nan_policy)
    for part in get_parts():
        ours.add(*part), theirs.add(*part)
    codec = Quantization(2, 4.5, quantize_dtype)
    # Codes of 32 bits are finer than a float32.
    step = max(1, codec.factor * 6 * TOLERANCE[dtype] * 10) if codec.factor > 1e6 else 1
    n_nodata = 0
    for block in BlockGrid(SHAPE, 16):
        mine, other = ours.take(block.index), theirs.take(block.index)
        expected, n_clipped = mine.encode(codec)
        codes, found_clipped = other.encode(codec)
        assert codes.dtype == quantize_dtype and codes.flags.c_contiguous
        assert np.array_equal(codes == codec.nodata, expected == codec.nodata)
        assert np.abs(codes.astype('i8') - expected).max() <= step
        assert abs(found_clipped - n_clipped) <= (0 if dtype == 'float64' else 2)
        out = np.empty_like(codes)
        assert other.encode(codec, out)[0] is out and np.array_equal(out, codes)
        n_nodata += (codes == codec.nodata).sum()
    assert n_nodata > 0


@pytest.mark.parametrize('quantize_dtype', CODES)
def test_the_ends_of_the_range(quantize_dtype):
    codec = Quantization(-1, 3, quantize_dtype)
    data = np.array([[-1, 3, -50, 50, np.nan, 1e38]])[..., None]
    weights = np.ones((1, 6))
    for canvas in (BlockCanvas((1, 6, 1)), TorchCanvas((1, 6, 1), 'cpu')):
        for _ in range(5):
            canvas.add(0, 0, data, weights)
        codes, n_clipped = canvas.take((0, 0)).encode(codec)
        low, high = codec.quant_min, codec.quant_max
        # 5e38 is more than a float32 holds.
        assert codes.ravel().tolist() == [low, high, low, high, codec.nodata, codec.nodata]
        assert n_clipped == 2


def test_a_constant_range():
    codec = Quantization(3, 3, 'uint8')
    for canvas in (BlockCanvas((1, 3, 1)), TorchCanvas((1, 3, 1), 'cpu')):
        canvas.add(0, 0, np.array([[[3], [np.nan], [4]]]), np.ones((1, 3)))
        codes, n_clipped = canvas.take((0, 0), is_complete=True).encode(codec)
        assert codes.ravel().tolist() == [1, 0, 1] and n_clipped == 1


@pytest.mark.parametrize('nan_policy', POLICIES)
def test_pixels_can_be_dropped(nan_policy):
    mask = np.random.RandomState(0).rand(*SHAPE[:2]) < 0.3
    found = []
    for canvas in make_both(nan_policy=nan_policy, deviations=True):
        for part in get_parts():
            canvas.add(*part)
        values = canvas.take((0, 0))
        before = values.compute_mean()
        values.drop(mask)
        mean = values.compute_mean()
        assert np.isnan(mean[mask]).all() and not values.weights[mask].any()
        assert np.array_equal(mean[~mask], before[~mask], equal_nan=True)
        codes, _ = values.encode(Quantization(2, 4))
        assert (codes[mask] == -9999).all()
        found.append(np.isnan(mean))
        values.release()
    assert np.array_equal(*found)


# ---- tensors ---------------------------------------------------------------

TENSORS = {
    'float32': lambda t: t, 'float64': lambda t: t.double(), 'float16': lambda t: t.half(),
    'bfloat16': lambda t: t.bfloat16(), 'uint8': lambda t: t.to(torch.uint8),
    'int16': lambda t: t.to(torch.int16), 'int64': lambda t: t.to(torch.int64),
    'uint16': lambda t: t.to(torch.uint16), 'uint32': lambda t: t.to(torch.uint32),
    'bool': lambda t: t > 3, 'grad': lambda t: t.clone().requires_grad_(),
    'part of a graph': lambda t: t.clone().requires_grad_() * 1,
    'channels last': lambda t: t.permute(2, 0, 1)[None].contiguous(
        memory_format=torch.channels_last)[0].permute(1, 2, 0),
    'permuted': lambda t: t.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    'every other': lambda t: t.repeat_interleave(2, 0).repeat_interleave(2, 2)[::2, :, ::2],
    'expanded': lambda t: t[:1, :1, :1].expand(t.shape),
}


@pytest.mark.parametrize('through', ['canvas', 'cpu', 'numpy'])
@pytest.mark.parametrize('kind', TENSORS)
def test_tensors_of_any_kind(kind, through):
    base = torch.arange(4 * 6 * 3).reshape(4, 6, 3).float()
    tensor = TENSORS[kind](base)
    before = tensor.detach().clone()
    assert tensor.shape == base.shape
    if through == 'canvas':
        canvas = TorchCanvas((4, 6, 3), 'cpu', BlockGrid((4, 6), 4))
        assert canvas.add(0, 0, tensor, np.full((4, 6), 2)) == (24, 0)
        mean = canvas.read(Window(0, 0, 4, 6)).compute_mean()
    else:
        stitcher = SoftStitcher((4, 6), device=through)
        assert stitcher.add(None, tensor) == 24
        mean = stitcher.finalize()
    assert np.array_equal(mean, before.float().numpy())
    assert torch.equal(tensor.detach(), before) and tensor.dtype == before.dtype
    assert base.sum() == 72 * 71 / 2


def test_infinite_halves_are_invalid():
    tensor = torch.tensor([[1e5, 1.0], [-1e5, float('nan')]]).half()[..., None]
    ours, theirs = BlockCanvas((2, 2, 1)), TorchCanvas((2, 2, 1), 'cpu')
    assert theirs.add(0, 0, tensor, np.ones((2, 2))) == (1, 3)
    assert ours.add(0, 0, tensor.numpy(), np.ones((2, 2))) == (1, 3)


def test_values_beyond_the_accumulator_are_invalid():
    data = np.array([[[1e300], [1]]])
    for dtype, n_valid in [('float32', 1), ('float64', 2)]:
        canvas = TorchCanvas((1, 2, 1), 'cpu', dtype=dtype)
        added = canvas.add(0, 0, torch.from_numpy(data), np.ones((1, 2)))
        assert added == (n_valid, 2 - n_valid)


@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('separable', [False, True])
def test_inputs_are_not_modified(separable, nan_policy):
    data = torch.ones(4, 5, 2, requires_grad=True)
    array = np.ones((4, 5, 2), 'f4')
    array[0] = np.nan
    weights = (np.ones(4, 'f4'), np.ones(5, 'f4')) if separable else np.ones((4, 5), 'f4')
    parts = [array, *(weights if separable else [weights])]
    before = [part.copy() for part in parts]
    for part in parts:
        part.flags.writeable = False
    canvas = TorchCanvas((4, 5, 2), 'cpu', deviations=True, nan_policy=nan_policy)
    for _ in range(2):
        assert canvas.add(0, 0, data, weights) == (20, 0)
        assert canvas.add(0, 0, array, weights) == (15, 5)
    values = canvas.take((0, 0))
    values.drop(np.ones((4, 5), bool))
    values.encode(Quantization(0, 1))
    assert all(map(np.array_equal, parts[1:], before[1:]))
    assert np.array_equal(array, before[0], equal_nan=True)
    assert (data == 1).all() and data.grad is None


def test_data_may_change_after_they_were_added():
    canvas = TorchCanvas((4, 5, 2), 'cpu')
    data, weights = torch.ones(4, 5, 2), np.ones((4, 5), 'f4')
    canvas.add(0, 0, data, weights)
    data += 5
    weights += 5
    assert (canvas.weights == 1).all() and (canvas.read(Window(0, 0, 4, 5)).sums == 1).all()


def test_a_layout_of_numpy():
    ours, theirs = make_both()
    for y0, x0, data, weights in get_parts():
        ours.add(y0, x0, data, weights)
        theirs.add(y0, x0, put_bands_first(data[::-1])[::-1], weights)
    assert_close(theirs.take((0, 0)), ours.take((0, 0)), 1e-12)


# ---- life ------------------------------------------------------------------

def test_bytes_are_counted():
    ours, theirs = make_both('float32', 16, deviations=True, nan_policy='band')
    assert theirs.nbytes == theirs.peak_nbytes == theirs.n_live == 0
    theirs.add(10, 10, np.ones((10, 10, 3)), np.ones((10, 10)))
    assert theirs.n_live == 4 and theirs.nbytes == theirs.peak_nbytes == (
        (16 * 16 + 16 * 16 + 2 * 14 * 16) * 9 * 4)
    values = [theirs.take(index) for index in ((0, 0), (1, 1))]
    assert theirs.n_live == 2 and theirs.nbytes == theirs.peak_nbytes
    for _ in range(2):
        values[0].release()
        assert theirs.nbytes == (16 * 16 + 2 * 14 * 16) * 9 * 4
    for _ in range(2):
        theirs.close()
        assert theirs.nbytes == theirs.n_live == 0
    values[1].release()
    values[1].release()
    assert theirs.nbytes == 0 and theirs.peak_nbytes > 0


def test_a_taken_block_is_out():
    canvas = TorchCanvas((8, 8, 1), 'cpu', BlockGrid((8, 8), 4))
    canvas.add(0, 0, np.ones((8, 8, 1)), np.ones((8, 8)))
    values = canvas.take((0, 0))
    canvas.add(0, 0, np.full((4, 4, 1), 5), np.ones((4, 4)))
    assert (values.sums == 1).all() and (canvas.take((0, 0)).sums == 5).all()
    assert not canvas.weights[:4, :4].any() and (canvas.weights[4:] == 1).all()


@pytest.mark.parametrize('n_before', range(4))
def test_no_memory_leaves_the_window_out(monkeypatch, n_before):
    canvas = TorchCanvas((4, 8, 1), 'cpu', BlockGrid((4, 8), 4))
    calls, make = [], torch.zeros

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) > n_before:
            raise RuntimeError('CUDA out of memory')
        return make(*args, **kwargs)
    window = (0, 0, np.ones((4, 8, 1)), np.ones((4, 8)))
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'zeros', fail)
        with pytest.raises(CanvasError, match='no memory on cpu.*out of memory'):
            canvas.add(*window)
    assert not canvas.weights.any()
    assert canvas.add(*window) == (32, 0)
    assert (canvas.weights == 1).all()


@pytest.mark.parametrize('device', ['nonsense', 'cuda:99', None, 'cpu!'])
def test_a_device_that_is_not_there_is_refused(device):
    for make in (check_device, lambda device: SoftStitcher(SHAPE, device=device)):
        with pytest.raises(OptionError, match='cannot be used'):
            make(device)


@pytest.mark.parametrize('options', [{'dtype': 'float16'}, {'nan_policy': 'none'}])
def test_wrong_options_are_refused(options):
    with pytest.raises(OptionError):
        TorchCanvas(SHAPE, 'cpu', **options)


@pytest.mark.parametrize('device', [torch.device('cpu'), *DEVICES])
@pytest.mark.parametrize('nan_policy', POLICIES)
@pytest.mark.parametrize('quantized', [False, True])
def test_a_stream_is_that_of_ours(device, nan_policy, quantized):
    grid, rng = WindowGrid((40, 50), window=20, overlap=6), np.random.RandomState(0)
    sinks = MemorySink(), MemorySink()
    options = {'blocksize': 16, 'nan_policy': nan_policy, 'channels_first': True,
               'expected_minmax': (0.2, 0.7) if quantized else None}
    mine, other = (SoftStitcher((40, 50, 2), grid, sink=sink, device=place, **options)
                   for sink, place in zip(sinks, ('numpy', device)))
    for window in grid:
        data = rng.rand(2, *window.shape).astype('f4')
        data[0, :3] = np.nan
        assert mine.add(window, data) == other.add(window, torch.from_numpy(data).to(device))
    mine.finalize(), other.finalize()
    expected, found = (sink.as_array() for sink in sinks)
    assert found.dtype == expected.dtype and other.n_clipped == mine.n_clipped
    if quantized:
        assert np.array_equal(found == -9999, expected == -9999)
        assert np.abs(found.astype(int) - expected).max() <= 1
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5)
