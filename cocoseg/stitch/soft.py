"""
The soft stitcher: the weighted mean of all windows over each pixel of an image.

It owns the state of ONE image: a canvas, the coverage, and the blend plan. It
checks everything that comes in, clips windows to the image, and hands finished
blocks to a sink or the whole array to the caller.
"""
from __future__ import annotations

import functools
import operator
import threading

import numpy as np

from cocoseg.errors import (BandCountError, ImageClosedError, NothingAccumulatedError,
                            OptionError, WeightError, WindowShapeError)
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid
from cocoseg.stitch.blend import BlendPlan, get_profile
from cocoseg.stitch.block_canvas import BlockCanvas
from cocoseg.stitch.canvas import check_canvas_options, check_dtype, make_canvas
from cocoseg.stitch.coverage import Coverage
from cocoseg.stitch.products import compute_mean, encode_mean
from cocoseg.stitch.quantize import Quantization

# Rows that are normalized at a time: about 8 MB of float32 for 4096 x 5.
_STRIP_PIXELS = 1 << 19


def as_numpy(data):
    """
    Return an array or a torch tensor (any device) as a numpy array.

    What a masked array masks becomes NaN.

    Example:
        >>> as_numpy([[1, 2]]).shape
        (1, 2)
    """
    if hasattr(data, 'detach'):
        data = data.detach().cpu()
    if isinstance(data, np.ma.MaskedArray):
        data = data.astype(np.result_type(data.dtype, np.float32)).filled(np.nan)
    return np.asarray(data)


def check_weights(weights, window, dtype='float32'):
    """
    Check dense weights of a window.

    Args:
        weights (ndarray): real, shape (h, w) == ``window.shape``.
        window (Window): where they belong.
        dtype (str): accumulator that must hold them.

    Raises:
        WindowShapeError: for another shape.
        WeightError: if a weight is negative, NaN, infinite, or no number.

    Example:
        >>> check_weights(np.ones((2, 3)), Window(0, 0, 2, 3))
    """
    if weights.shape != window.shape:
        raise WindowShapeError(
            f'weights have shape {weights.shape} but {window} needs {window.shape}; '
            'give one weight per pixel of the window')
    if weights.dtype.kind not in 'fiub':
        raise WeightError(f'weights for {window} have dtype {weights.dtype}; give real numbers')
    # NaN fails both comparisons.
    if not (weights.min(initial=0) >= 0
            and weights.max(initial=0) <= np.finfo(dtype).max):
        raise WeightError(
            f'weights for {window} lie in {weights.min()} … {weights.max()}; '
            'they must be finite and not negative')


@functools.lru_cache(maxsize=64)
def _unit_weights(shape, dtype):
    """Return separable weights of 1; shared, the kernels only read them."""
    return tuple(np.ones(size, dtype) for size in shape)


def _check_shape(shape):
    """Return ((H, W), C or None) of a shape of whole numbers."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    if len(sizes) not in (2, 3) or min(sizes) < 1:
        raise OptionError(f'shape={shape!r} must be (H, W) or (H, W, C), whole numbers >= 1')
    return sizes[:2], (sizes[2] if len(sizes) == 3 else None)


def iter_strips(shape):
    """
    Yield windows of whole rows that are cheap to hold in float.

    Example:
        >>> list(iter_strips((3, 400_000)))[:2]
        [Window(y=0:1, x=0:400000), Window(y=1:2, x=0:400000)]
    """
    height, width = shape[:2]
    rows = max(1, _STRIP_PIXELS // max(width, 1))
    for y in range(0, height, rows):
        yield Window(y, 0, min(y + rows, height), width)


class SoftStitcher:
    """
    Blend overlapping window predictions into one image.

    The result at a pixel is ``sum(w_i * v_i) / sum(w_i)`` over the windows i
    that cover it with finite values. A pixel with NaN or infinity in any band
    of a window gets nothing from that window; a pixel that got nothing is NaN.

    Lifecycle: open, then sealed (no more data), then closed (memory freed).
    ``finalize`` goes through all of it.

    Args:
        shape (tuple): (H, W) or (H, W, C) of the result. Without C, the first
            window tells the number of bands.
        windows (WindowGrid | Iterable[Window] | None): all windows that will
            come. Then windows blend with the plan of these windows unless
            ``weights`` are given, a window that was not declared is an error,
            and with a sink each block leaves as soon as it is final.
        sink (BlockSink | None): receives the finished blocks, each once.
        expected_minmax (tuple[float, float] | None): values outside are
            clipped; with a sink, blocks are quantized to ``quantize_dtype``.
        quantize_dtype (dtype): integer dtype of quantized blocks.
        blocksize (int): height and width of the blocks for the sink, px.
        profile (str | Callable): see :class:`~cocoseg.stitch.blend.BlendPlan`.
        dtype (str): accumulator, 'float32' or 'float64'.
        memmap (None | bool | PathLike): see :class:`~cocoseg.stitch.canvas.Canvas`.
        device (str | torch.device): 'numpy' or a torch device.
        memory_budget (int | None): bytes of blocks in RAM, with a sink; what
            is beyond waits in a file without a name.
        spill_dir (PathLike | None): folder for that file; None is the
            system's temporary folder.

    Raises:
        OptionError: for an option that is unknown or contradicts another.
        CoverageError: if a declared window lies outside the image.

    Thread-safety: ``add`` may be called from many threads. The sink may then
    be called from several of them at a time, for different blocks.

    Example:
        >>> from cocoseg import SoftStitcher, WindowGrid
        >>> image = np.random.RandomState(0).rand(50, 70, 2).astype('f4')
        >>> grid = WindowGrid(image.shape, window=32, overlap=8)
        >>> stitcher = SoftStitcher(image.shape, grid)
        >>> for window in grid:
        ...     n_pixels = stitcher.add(window, image[window.slices])
        >>> assert stitcher.is_complete
        >>> assert np.allclose(stitcher.finalize(), image, atol=1e-6)
    """

    def __init__(self, shape, windows=None, *, sink=None, expected_minmax=None,
                 quantize_dtype=np.int16, blocksize=256, profile='linear',
                 dtype='float32', memmap=None, device='numpy', memory_budget=None,
                 spill_dir=None):
        self._dims, self._n_bands = _check_shape(shape)
        self._canvas_options = {'dtype': check_dtype(dtype).name, 'memmap': memmap,
                                'device': device}
        check_canvas_options(device, memmap)
        if memory_budget is not None and (sink is None or memmap or str(device) != 'numpy'):
            raise OptionError(f'memory_budget={memory_budget!r} is for streaming to a sink from '
                              'RAM; give a sink, and no memmap or device')
        if spill_dir is not None and memory_budget is None:
            raise OptionError(f'spill_dir={spill_dir!r} is only used with a memory_budget')
        self._memory_budget, self._spill_dir = memory_budget, spill_dir
        get_profile(profile)
        self._profile = profile
        self._codec = None
        if expected_minmax is not None:
            self._codec = Quantization(*expected_minmax, dtype=np.dtype(quantize_dtype).name)
        self._sink = sink
        if windows is not None and not isinstance(windows, WindowGrid):
            # Also because a generator has only one of its two readers.
            windows = [Window.coerce(window, self._dims) for window in windows]
        self._windows = windows
        blocks = BlockGrid(self._dims, blocksize) if sink is not None else None
        self._coverage = Coverage(self._dims, windows, blocks)
        self._plan = None
        self._canvas = None
        self._unsent = set(block.index for block in blocks) if blocks else set()
        self._sealed = False
        self._closed = False
        self._lock = threading.RLock()
        self._sent = threading.Condition(self._lock)
        self._n_sending = 0
        self.n_invalid = 0

    def __repr__(self):
        height, width = self._dims
        state = 'closed' if self._closed else 'sealed' if self._sealed else 'open'
        return f'<SoftStitcher(h={height}, w={width}, c={self._n_bands}, {state})>'

    @property
    def shape(self):
        """(H, W, C) of the result; C is None until it is known."""
        return (*self._dims, self._n_bands)

    @property
    def nbytes(self):
        """Bytes that the canvas holds now."""
        return 0 if self._canvas is None else self._canvas.nbytes

    @property
    def weights(self):
        """Sum of weights per pixel, (H, W); zeros before the first window."""
        if self._canvas is None:
            return np.zeros(self._dims, self._canvas_options['dtype'])
        return self._canvas.weights

    @property
    def n_windows(self):
        """Number of windows received."""
        return self._coverage.n_received

    @property
    def received(self):
        """The parts of the image that windows covered, a new set of Windows."""
        with self._lock:
            return set(self._coverage.received)

    @property
    def is_declared(self):
        """True if the windows to come are known."""
        return self._coverage.is_declared

    @property
    def is_complete(self):
        """True if windows were declared and all of them came."""
        return self._coverage.is_complete

    @property
    def pending(self):
        """Declared windows (clipped to the image) that did not come yet."""
        with self._lock:
            return self._coverage.pending

    def add(self, window, data, weights=None):
        """
        Add the prediction of one window.

        Args:
            window (Window | tuple[slice, slice] | kwimage.Box | None): where
                the data belongs, px; may overhang the image, and is clipped.
                Negative means outside. None is the whole image.
            data (ndarray | Tensor): real, shape (h, w) or (h, w, C) with
                (h, w) == ``window.shape``. Never modified.
            weights (ndarray | Tensor | None): finite, >= 0, shape (h, w).
                None: the weights of the plan if windows were declared, else 1.

        Returns:
            int: pixels that received a contribution.

        Raises:
            WindowShapeError: if data or weights disagree with the window.
            BandCountError: if C is not that of this image.
            WeightError: if a weight is negative or not finite.
            CoverageError: if the window is outside the image, was not
                declared, or came before.
            ImageClosedError: if the image was already finalized.
            Exception: whatever the sink raises. The data was taken; do not add
                it again. ``finalize`` offers the block again.
        """
        full = (Window.from_shape(self._dims) if window is None
                else Window.coerce(window, self._dims))
        self._check_open(full)
        data = self._check_data(data, full)
        inside = self._coverage.clip(full)
        weights = self._choose_weights(full, inside, weights)
        if inside != full:
            data = data[inside.within(full).slices]
        with self._lock:
            self._check_open(inside)
            self._coverage.check_expected(inside)
            canvas = self._ensure_canvas(data.shape[2])
            added, invalid = canvas.add(inside.y0, inside.x0, data, weights)
            self.n_invalid += invalid
            final = self._coverage.count(inside)
        self._send(final)
        return added

    def clip(self, window):
        """
        Return the part of a window inside the image.

        Raises:
            CoverageError: if there is none.
        """
        return self._coverage.clip(window)

    def _check_data(self, data, window):
        on_device = str(self._canvas_options['device']) != 'numpy'
        if not (on_device and hasattr(data, 'detach')):
            data = as_numpy(data)
            if data.dtype.kind not in 'fiub':
                raise WindowShapeError(f'data for {window} has dtype {data.dtype}; '
                                       'give real numbers')
        if len(data.shape) == 2:
            data = data[..., None]
        if len(data.shape) != 3 or tuple(data.shape[:2]) != window.shape:
            height, width = window.shape
            raise WindowShapeError(
                f'data has shape {tuple(data.shape)} but {window} needs ({height}, {width}, *); '
                'resize the prediction to its window, or give the window it was made for')
        if data.shape[2] < 1 or self._n_bands not in (None, data.shape[2]):
            raise BandCountError(
                f'data for {window} has {data.shape[2]} bands but this image has '
                f'{self._n_bands or "at least 1"}; every window needs the same bands')
        return data

    def _choose_weights(self, full, inside, weights):
        """Return the weights of the part of a window inside the image."""
        if weights is not None:
            weights = as_numpy(weights)
            check_weights(weights, full, self._canvas_options['dtype'])
            return weights if inside == full else weights[inside.within(full).slices]
        if self._windows is None:
            return _unit_weights(inside.shape, self._canvas_options['dtype'])
        with self._lock:
            if self._plan is None:
                self._plan = BlendPlan(self._windows, self._profile)
            declared = self._coverage.find_declared(full, inside)
        rows, columns = self._plan.get_weights(declared)
        if declared != inside:
            crop = inside.within(declared).slices
            rows, columns = rows[crop[0]], columns[crop[1]]
        return rows, columns

    def _check_open(self, window):
        if self._sealed:
            raise ImageClosedError(
                f'data for {window} came after the image was finalized; finalize only when '
                'every window has been added, or declare the windows in advance')

    def _ensure_canvas(self, n_bands):
        if self._canvas is None:
            self._canvas = self._make_canvas((*self._dims, n_bands))
            self._n_bands = n_bands
        elif n_bands != self._n_bands:
            # Two first windows raced; the loser is checked here.
            raise BandCountError(f'data has {n_bands} bands but this image has {self._n_bands}')
        return self._canvas

    def _make_canvas(self, shape):
        options = self._canvas_options
        if self._sink is None or str(options['device']) != 'numpy' or options['memmap']:
            return make_canvas(shape, **options)
        return BlockCanvas(shape, self._coverage.blocks, options['dtype'], self._memory_budget,
                           self._spill_dir)

    def advance(self, row):
        """
        Say that undeclared windows stay below ``row``, and send what is final.

        Args:
            row (int): first row that windows may still touch, px.

        Raises:
            OptionError: without a sink, or if windows were declared.
            ImageClosedError: if the image was already finalized.
        """
        if self._sink is None or self.is_declared:
            raise OptionError('advance is for streaming undeclared windows to a sink; declared '
                              'windows are counted')
        with self._lock:
            self._check_open(f'row {row}')
            self._coverage.advance(row)
            blocks = self._coverage.blocks
            final = [index for index in sorted(self._unsent)
                     if blocks.get(index).core.y1 <= row] if self._canvas else []
        self._send(final)

    # ---- finished data -----------------------------------------------------

    def seal(self):
        """
        Refuse data from now on. May be called again.

        Raises:
            NothingAccumulatedError: if no window was ever added.
        """
        with self._lock:
            self._get_canvas()
            self._sealed = True

    def _get_canvas(self):
        if self._canvas is None:
            raise NothingAccumulatedError(
                f'{self!r} has received no data, so there is nothing to finalize')
        if self._closed:
            raise ImageClosedError(f'{self!r} was already finalized; its memory is freed')
        return self._canvas

    def read(self, window):
        """
        Return the blended values of a window inside the image.

        Returns:
            ndarray: accumulator dtype, shape (h, w, C), NaN where no data.
        """
        return compute_mean(*self._get_canvas().read(window))

    def encode(self, codec, window, out=None):
        """
        Return the quantized values of a window inside the image.

        Args:
            codec (Quantization): the code to use.
            window (Window): inside the image.
            out (ndarray | None): (h, w, C), C-contiguous, of the code's dtype, to fill.

        Returns:
            tuple[ndarray, int, float]: codes (h, w, C), how many values were
            clipped, and the sum of all valid values.
        """
        return encode_mean(codec, *self._get_canvas().read(window), out)

    def _make_block(self, arrays):
        if self._codec is not None:
            return encode_mean(self._codec, *arrays)[0]
        return compute_mean(*arrays)

    def _send(self, indices):
        """Hand final blocks to the sink; a block whose write fails stays ours."""
        for index in indices:
            with self._lock:
                if index not in self._unsent:
                    continue
                block = self._coverage.blocks.get(index)
                arrays = self._get_canvas().take(block)
                self._unsent.discard(index)
                self._n_sending += 1
            sent = False
            try:
                self._sink.write_block(block.core, self._make_block(arrays))
                sent = True
            finally:
                with self._lock:
                    if sent:
                        self._canvas.recycle(arrays)
                    else:
                        self._canvas.give_back(block, arrays)
                        self._unsent.add(index)
                    self._n_sending -= 1
                    self._sent.notify_all()

    def _send_rest(self):
        """Hand over every block that is left, also those that fail meanwhile elsewhere."""
        while True:
            with self._lock:
                rest = sorted(self._unsent)
            self._send(rest)
            with self._lock:
                self._sent.wait_for(lambda: self._n_sending == 0)
                if not self._unsent:
                    return

    def finalize(self):
        """
        End the image.

        Returns:
            ndarray | None: accumulator dtype, shape (H, W, C), NaN where no
            data came, clipped to ``expected_minmax`` if given. None with a
            sink, which has received every block then.

        Raises:
            NothingAccumulatedError: if no window was ever added.
            ImageClosedError: on a second call.
            Exception: whatever the sink raises; then call again to retry the
                blocks that it did not take.
        """
        self.seal()
        out = None
        if self._sink is not None:
            self._send_rest()
        else:
            out = np.empty(self.shape, self._canvas_options['dtype'])
            for strip in iter_strips(self._dims):
                part = self.read(strip)
                if self._codec is not None:
                    np.clip(part, self._codec.orig_min, self._codec.orig_max, out=part)
                out[strip.slices] = part
        self.close()
        return out

    def close(self):
        """Free the memory and the files, finished or not. May be called twice."""
        with self._lock:
            self._sealed = self._closed = True
            if self._canvas is not None:
                self._canvas.close()
