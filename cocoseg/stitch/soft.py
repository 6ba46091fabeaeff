"""
The soft stitcher: the weighted mean of all windows over each pixel of an image.

It owns the state of ONE image: an engine that holds the sums, the coverage, the
blend plan, and the outlet for finished blocks. It checks what comes in, clips it
to the image, and hands finished blocks to sinks or the array to the caller.
"""
from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from cocoseg.errors import (BandCountError, ImageClosedError, NothingAccumulatedError,
                            OptionError, WindowShapeError)
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window, WindowLike
from cocoseg.grid.windows import WindowGrid
from cocoseg.protocols import BlockSink, PathLike
from cocoseg.stitch.blend import BlendPlan, get_profile
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.carry import MAX_BATCH, CarryCanvas
from cocoseg.stitch.coverage import Coverage, Covered
from cocoseg.stitch.engines import EngineOptions, add_items, make_canvas, make_carry
from cocoseg.stitch.intake import (as_numpy, as_planes, check_data, check_shape, check_weights,
                                   choose_area, crop_item, unit_weights)
from cocoseg.stitch.layers import Layer, match_sinks
from cocoseg.stitch.outlet import Outlet
from cocoseg.stitch.products import Products, iter_strips
from cocoseg.stitch.quantize import Quantization

__all__ = ['SoftStitcher', 'as_numpy', 'check_weights', 'iter_strips']


class SoftStitcher(Covered):
    """
    Blend overlapping window predictions into one image.

    The result at a pixel is ``sum(w_i * v_i) / sum(w_i)`` over the windows i
    that cover it with finite values. A pixel that got nothing is NaN.

    Lifecycle: open, then sealed (no more data), then closed (memory freed).
    ``finalize`` goes through all of it.

    With a sink, memory follows the windows in flight. Declared windows in
    row-major order and without NaN take the fastest way
    (:mod:`cocoseg.stitch.carry`); the first that does not ends that, and
    results differ by rounding at most.

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
        memmap (None | bool | PathLike): accumulate in files without a name,
            in the system's temporary folder (True) or the given one.
        device (str | torch.device): 'numpy' or a torch device, where sums are
            then held; only finished blocks come back.
        memory_budget (int | MemoryBudget | None): bytes of blocks in RAM, for
            this image or for all that share one; what is beyond waits in a
            file without a name.
        spill_dir (PathLike | None): folder for that file; None is the
            system's temporary folder.
        nan_policy (str): 'pixel': a pixel with NaN or infinity in any band
            gets nothing from that window; 'band': only in these bands.
        area (polygon | None): pixels whose centre lies outside get no data;
            see :class:`~cocoseg.grid.area.Area`. None is that of ``windows``,
            if it has one.
        layers (Mapping[Layer | str, BlockSink] | Sequence[Layer | str] | None):
            further products of the same pass, each with its sink; without a
            sink, a list. See :mod:`cocoseg.stitch.layers`, :meth:`read_layers`.
        channels_first (bool): data come as (C, h, w), as in torch. They are
            not transposed in memory.
        engine (str): 'auto', or 'general' to leave out the fastest way.
        num_threads (int): threads that share the work of one window.

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

    def __init__(
            self, shape: tuple[int, ...], windows: WindowGrid | Iterable[WindowLike] | None = None,
            *, sink: BlockSink | None = None, expected_minmax: tuple[float, float] | None = None,
            quantize_dtype: DTypeLike = np.int16, blocksize: int = 256,
            profile: str | Callable = 'linear', dtype: str = 'float32',
            memmap: None | bool | PathLike = None, device: Any = 'numpy',
            memory_budget: int | MemoryBudget | None = None, spill_dir: PathLike | None = None,
            nan_policy: str = 'pixel', area: Any = None, layers: Mapping | Sequence | None = None,
            channels_first: bool = False, engine: str = 'auto', num_threads: int = 1) -> None:
        self._dims, self._n_bands = check_shape(shape)
        self._options = EngineOptions(engine, dtype, memmap, device, memory_budget, spill_dir,
                                      nan_policy, num_threads)
        get_profile(profile)
        self._profile = profile
        self._channels_first = bool(channels_first)
        codec = None if expected_minmax is None else Quantization(
            *expected_minmax, dtype=np.dtype(quantize_dtype).name)
        self._area, self._windows = choose_area(area, windows, self._dims)
        layers = match_sinks(layers, sink)
        self._products = Products(codec, list(layers), self._area)
        self._products.check(self._n_bands)
        in_blocks = sink is not None or self._options.budget is not None
        self._blocks = BlockGrid(self._dims, blocksize) if in_blocks else None
        self._coverage = Coverage(self._dims, self._windows,
                                  None if sink is None else self._blocks)
        self._canvas = None
        self._sealed = self._closed = False
        self._lock = threading.RLock()
        self._final = set()  # blocks whose windows all came, until they are taken
        self._outlet = None if sink is None else Outlet(
            self._blocks, self._products, [sink, *layers.values()], self._lock)
        self.n_invalid = 0

    def __repr__(self):
        state = 'closed' if self._closed else 'sealed' if self._sealed else 'open'
        return '<SoftStitcher(h={}, w={}, c={}, {})>'.format(*self.shape, state)

    @property
    def shape(self) -> tuple[int, int, int | None]:
        """(H, W, C) of the result; C is None until it is known."""
        return (*self._dims, self._n_bands)

    @property
    def nbytes(self) -> int:
        """Bytes that sums and begun blocks hold now."""
        return 0 if self._canvas is None else self._canvas.nbytes

    @property
    def peak_nbytes(self) -> int:
        """The most bytes that sums and begun blocks held."""
        return 0 if self._canvas is None else self._canvas.peak_nbytes

    @property
    def engine(self) -> str | None:
        """'carry', 'general', or None before the first window."""
        if self._canvas is None:
            return None
        return 'carry' if isinstance(self._canvas, CarryCanvas) else 'general'

    @property
    def weights(self) -> np.ndarray:
        """Sum of weights per pixel, (H, W), zeros before the first window; a copy."""
        if self._canvas is None:
            return np.zeros(self._dims, self._options.dtype)
        with self._lock:
            return self._get_canvas().weights

    @property
    def n_clipped(self) -> int:
        """Values outside ``expected_minmax`` in the blocks that were sent."""
        return 0 if self._outlet is None else self._outlet.n_clipped

    def add(self, window: WindowLike | None, data: ArrayLike,
            weights: ArrayLike | None = None) -> int:
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
        self._check_open(window)
        return self._add(list(filter(None, [self._prepare(window, data, weights)])))

    def add_batch(self, windows: Sequence[WindowLike], data: Sequence | np.ndarray,
                  weights: Sequence | None = None) -> int:
        """
        Add the predictions of several windows, which costs less than one by one.

        Args:
            windows (Sequence[Window | tuple[slice, slice] | kwimage.Box]): see :meth:`add`.
            data (Sequence[ndarray | Tensor]): as many, for example one array
                of shape (N, h, w, C).
            weights (Sequence[ndarray | Tensor | None] | None): as many, or None.

        Returns:
            int: pixels that received a contribution.

        Raises:
            WindowShapeError: also if the numbers of windows and data differ.
            Exception: as for :meth:`add`; then no window of the batch was
                added, unless a sink or the canvas raised.
        """
        weights = [None] * len(windows) if weights is None else weights
        if not len(windows) == len(data) == len(weights):
            raise WindowShapeError(f'{len(windows)} windows came with {len(data)} predictions and '
                                   f'{len(weights)} weights; give as many of each')
        self._check_open(windows)
        items = list(filter(None, map(self._prepare, windows, data, weights)))
        counts = {item.data.shape[2] for item in items}
        if len(counts) > 1:
            raise BandCountError(f'the predictions of one batch have {sorted(counts)} bands; every '
                                 'window needs the same bands')
        return self._add(items)

    def _prepare(self, window, data, weights):
        """Return one checked window, or None if the area of interest leaves it out."""
        full = (Window.from_shape(self._dims) if window is None
                else Window.coerce(window, self._dims))
        data = check_data(data, full, self._n_bands, self._options.on_device,
                          self._channels_first)
        inside = self._coverage.clip(full)
        if weights is not None:
            weights = as_numpy(weights)
            check_weights(weights, full, self._options.dtype)
        touches = self._area is None or self._area.touches(inside)
        return crop_item(full, inside, data, weights) if touches else None

    def _add(self, items):
        """Add checked windows, all or none; send what is final; return the pixels added."""
        added, error = 0, None
        while items:
            chunk = items[:MAX_BATCH]
            with self._lock:
                self._check_open([item.full for item in chunk])
                if not added and len(items) > MAX_BATCH:
                    self._coverage.check_all([item.inside for item in items])
                expected = self._coverage.check_all([item.inside for item in chunk])
                n_windows, n_pixels = self._accumulate(chunk)
                final = [index for item, entry in zip(chunk[:n_windows], expected)
                         for index in self._coverage.count(item.inside, entry)]
                self._final.update(final)
            items, added = items[n_windows:], added + n_pixels
            try:
                self._send_final(final)
            except Exception as ex:
                # A batch is taken as a whole, like the one window of an add.
                error = error or ex
        if error is not None:
            raise error
        return added

    def _send_final(self, indices):
        if indices:
            self._outlet.send(indices, self._take)
            with self._lock:
                if self.is_complete and not self._outlet.n_unsent:
                    # Nobody finalized yet, but nothing needs the memory any more.
                    self._canvas.close()

    def clip(self, window: WindowLike | None) -> Window:
        """Return the part of a window inside the image; CoverageError if there is none."""
        return self._coverage.clip(window)

    def _accumulate(self, items):
        """Add the first windows of some; return how many, and their valid pixels."""
        canvas = self._ensure_canvas(items[0].data.shape[2])
        if isinstance(canvas, CarryCanvas):
            fitting = items[:canvas.match(items)]
            n_windows = fitting and canvas.add([as_planes(item.data, canvas.dtype)
                                                for item in fitting])
            if n_windows:
                return n_windows, sum([item.inside.area for item in items[:n_windows]])
            canvas = self._leave_carry()
        n_windows, added, invalid = add_items(canvas, items, self._get_plan_weights)
        self.n_invalid += invalid
        return n_windows, added

    @functools.cached_property
    def _plan(self):
        return BlendPlan(self._windows, self._profile)

    def _get_plan_weights(self, full, inside):
        """Return the separable weights of the part of a window inside the image."""
        if self._windows is None:
            return unit_weights(inside.shape, self._options.dtype)
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
            shape = (*self._dims, n_bands)
            self._products.check(n_bands)
            if self._outlet is not None and self.is_declared:
                self._canvas = make_carry(shape, self._blocks, self._plan, self._options,
                                          self._products)
            if self._canvas is None:
                self._canvas = self._make_general(shape)
            self._n_bands = n_bands
        elif n_bands != self._n_bands:
            # Two first windows raced; the loser is checked here.
            raise BandCountError(f'data has {n_bands} bands but this image has {self._n_bands}')
        return self._canvas

    def _make_general(self, shape):
        return make_canvas(shape, self._blocks, self._options,
                           plan=self._plan if self.is_declared else None,
                           deviations=self._products.needs_deviations, lock=self._lock)

    def _leave_carry(self):
        """Go on with the general canvas, from where the carry strip is."""
        carry, self._canvas = self._canvas, self._make_general(self._canvas.shape)
        carry.pour_into(self._canvas)
        # What was clipped in blocks that are begun is in their sums, clipped.
        self._outlet.n_clipped += carry.n_clipped
        self._canvas.peak_nbytes = max(carry.peak_nbytes, carry.nbytes + self._canvas.nbytes)
        carry.close()
        return self._canvas

    def advance(self, row: int) -> None:
        """
        Say that undeclared windows stay below ``row``, and send what is final.

        Args:
            row (int): first row that windows may still touch, px.

        Raises:
            OptionError: without a sink, or if windows were declared.
        """
        if self._outlet is None or self.is_declared:
            raise OptionError('advance is for streaming undeclared windows to a sink; declared '
                              'windows are counted')
        with self._lock:
            self._check_open(f'row {row}')
            self._coverage.advance(row)
            final = [index for index in sorted(self._outlet.unsent)
                     if self._blocks.get(index).core.y1 <= row] if self._canvas else []
        self._outlet.send(final, self._take)

    # ---- finished data -----------------------------------------------------

    def seal(self) -> None:
        """
        Refuse data from now on. May be called again.

        Raises:
            NothingAccumulatedError: if no window was ever added.
        """
        with self._lock:
            self._check_data_came()
            self._sealed = True

    def _check_data_came(self):
        if self._canvas is None:
            raise NothingAccumulatedError(
                f'{self!r} has received no data, so there is nothing to finalize')
        if self._closed:
            raise ImageClosedError(f'{self!r} was already finalized; its memory is freed')

    def _get_canvas(self):
        """Return the general canvas, which can be read anywhere."""
        self._check_data_came()
        return self._leave_carry() if isinstance(self._canvas, CarryCanvas) else self._canvas

    def _take(self, index):
        """Return the values of a block, for the outlet."""
        if self._closed:
            raise ImageClosedError(f'{self!r} was closed while blocks were sent to the sink')
        values = self._canvas.take(index, index in self._final)
        self._final.discard(index)
        return values

    def read(self, window: Window) -> np.ndarray:
        """
        Return the blended values of a window inside the image.

        Returns:
            ndarray: accumulator dtype, shape (h, w, C), NaN where no data,
            also where a block was sent already.
        """
        return self._read_values(window).compute_mean()

    def read_layers(self, window: Window,
                    layers: Iterable[Layer] | None = None) -> dict[Layer, np.ndarray]:
        """
        Return extra layers of a window inside the image, None is all of them.

        As {Layer: (h, w, K) array as its sink would get it}.
        """
        return self._products.render_layers(self._read_values(window), layers)

    def _read_values(self, window):
        with self._lock:
            values = self._get_canvas().read(window)
        self._products.crop(values, window)
        return values

    def encode(self, codec: Quantization, window: Window,
               out: np.ndarray | None = None) -> tuple[np.ndarray, int]:
        """
        Return the quantized values of a window inside the image.

        Args:
            codec (Quantization): the code to use.
            window (Window): inside the image.
            out (ndarray | None): (h, w, C), C-contiguous, of the code's dtype, to fill.

        Returns:
            tuple[ndarray, int]: codes (h, w, C), and the number clipped.
        """
        return self._read_values(window).encode(codec, out)

    def finalize(self) -> np.ndarray | Any:
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
        if self._outlet is not None:
            if not self.is_complete:
                # What is missing leaves blocks that are begun and not finished.
                with self._lock:
                    self._get_canvas()
            self._outlet.send_rest(self._take)
        else:
            codec = self._products.codec
            out = np.empty(self.shape, self._options.dtype)
            for strip in iter_strips(self._dims):
                part = self.read(strip)
                if codec is not None:
                    np.clip(part, codec.orig_min, codec.orig_max, out=part)
                out[strip.slices] = part
        self.close()
        return out

    def close(self) -> None:
        """Free the memory and the files, finished or not. May be called twice."""
        with self._lock:
            self._sealed = self._closed = True
            if self._canvas is not None:
                self._canvas.close()
