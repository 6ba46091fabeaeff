"""
The pixels of an image whose windows are declared: every block leaves early.

A finished block of the mean, and of each layer, waits in a spool of its own
until all of the image is there and the files can be written.
"""
from __future__ import annotations

import logging
import threading

import numpy as np

from cocoseg.coco.rendering import (Rendering, choose_codec, clip_values, make_rendering,
                                    sum_values)
from cocoseg.errors import AssetWriteError, CanvasError
from cocoseg.stitch.soft import SoftStitcher, iter_strips

logger = logging.getLogger(__name__)


class SpoolSink:
    """
    The sink of one raster of an image; its spool is made when it is opened.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int, int]): (H, W, K) of the raster.
        dtype (dtype): of its blocks.
        minmax (tuple[float, float] | None): blocks are clipped to this range.
        **spool_options: for :class:`~cocoseg.io.spool.BlockSpool`.

    Attributes:
        n_clipped (int): values that were outside of the range.

    Thread-safety: ``write_block`` may be called from many threads.

    Example:
        >>> from cocoseg.grid.window import Window
        >>> sink = SpoolSink(1, (2, 2, 1), 'float32', (0, 1))
        >>> sink.open()
        >>> sink.write_block(Window(0, 0, 2, 2), np.full((2, 2, 1), 3, 'f4'))
        >>> sink.data.max().item(), sink.n_clipped, sink.nbytes
        (1.0, 4, 16)
        >>> sink.close()
    """

    def __init__(self, image_id, shape, dtype, minmax=None, **spool_options):
        self._image_id, self._shape, self._dtype = image_id, shape, dtype
        self._minmax, self._spool_options = minmax, spool_options
        self._spool = None
        self._lock = threading.Lock()
        self.n_clipped = 0

    def open(self):
        """
        Reserve room for all blocks. May be called again.

        Raises:
            CanvasError: if there is none.
        """
        from cocoseg.io.spool import BlockSpool
        if self._spool is None:
            try:
                self._spool = BlockSpool(self._shape, self._dtype, **self._spool_options)
            except CanvasError as ex:
                raise CanvasError(ex.errno, f'image {self._image_id}: {ex.strerror}') from ex

    def write_block(self, window, block):
        """
        Store a finished block; the stitcher calls this.

        Raises:
            AssetWriteError: if it cannot be stored.
        """
        try:
            block, n_clipped = clip_values(block, self._minmax)
            self._spool.write_block(window, block)
        except Exception as ex:
            raise AssetWriteError(f'the block at {window} could not be stored: {ex}',
                                  self._image_id) from ex
        with self._lock:
            self.n_clipped += n_clipped

    @property
    def data(self):
        """The raster, (H, W, K), a view; see :class:`~cocoseg.io.spool.BlockSpool`."""
        return self._spool.data

    @property
    def nbytes(self):
        """Bytes in RAM."""
        return 0 if self._spool is None else self._spool.nbytes

    def close(self):
        """Free the memory and the file. May be called twice."""
        if self._spool is not None:
            self._spool.close()


class _NoSink:
    """Lets go of the blocks of a mean that nobody writes."""

    nbytes = n_clipped = 0

    def open(self):
        pass

    def write_block(self, window, block):
        pass

    close = open


class StreamedPixels:
    """
    Only the blocks in work, and spools for those that are finished.

    With a known range the mean is finished as the codes of its file; else as
    floats, which are quantized when all are there. Layers are finished as
    their files hold them.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int, int]): (H, W, C) of the asset.
        windows (WindowGrid | list[Window]): all windows that will come.
        options (AssetOptions): how the assets look.
        blocksize (int): of the blocks, px.
        memory_budget (MemoryBudget | None): for blocks in work. Finished ones
            are in a file then, in its ``spill_dir``.

    Thread-safety: ``add`` may be called from many threads, the rest from one
    at a time.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> from cocoseg.grid.windows import WindowGrid
        >>> options = AssetOptions('a|b', expected_minmax=(0, 1), layers=['class'])
        >>> grid = WindowGrid((256, 64), 64)
        >>> pixels = StreamedPixels(1, (256, 64, 2), grid, options, 64)
        >>> for window in grid:
        ...     pixels.add(window, np.eye(2)[np.ones((64, 64), int)], None)
        ...     assert pixels.stitcher.nbytes <= 64 * 64 * 2 * 8
        >>> pixels.settle()
        >>> pixels.render().data[0, 0].tolist()
        [0, 32767]
        >>> pixels.render(options.assets[1].layer).data[0, 0].tolist()
        [1]
        >>> pixels.close()
    """

    def __init__(self, image_id, shape, windows, options, blocksize, memory_budget=None):
        self._image_id, self._shape, self._options = image_id, shape, options
        self._spool_options = {} if memory_budget is None else {
            'ram_nbytes': 0, 'folder': memory_budget.spill_dir}
        self._streams_codes = options.codec is not None
        self._mean, self._layers = self._make_sinks()
        self._is_open = self._has_warned = self._is_settled = self._is_closed = False
        self._lock = threading.Lock()
        self.stitcher = SoftStitcher(
            shape, windows, sink=self._mean, layers=self._layers, dtype=options.dtype,
            memory_budget=memory_budget, blocksize=blocksize,
            expected_minmax=options.expected_minmax if self._streams_codes else None,
            quantize_dtype=options.quantize_dtype)

    def _make_sinks(self):
        """Return the sink of the mean, and {layer: its sink}."""
        options = self._options
        mean = _NoSink()
        if options.write_probs or options.write_preds:
            mean = SpoolSink(
                self._image_id, self._shape,
                options.quantize_dtype if self._streams_codes else options.dtype,
                None if options.quantize else options.expected_minmax, **self._spool_options)
        layers = {}
        for layer, _ in options.layers:
            form = options.describe(layer)
            layers[layer] = SpoolSink(self._image_id, (*self._shape[:2], form.n_bands),
                                      form.dtype, **self._spool_options)
        return mean, layers

    @property
    def _sinks(self):
        return [self._mean, *self._layers.values()]

    @property
    def nbytes(self):
        """Bytes in RAM: blocks in work, and finished ones unless they are in a file."""
        return self.stitcher.nbytes + sum(sink.nbytes for sink in self._sinks)

    def add(self, window, data, weights):
        """
        Add one window; see :meth:`SoftStitcher.add`.

        A finished block that cannot be stored stays in the canvas. It is
        offered again by :meth:`settle`, which reports the error if it stays.

        Raises:
            CanvasError: if there is no room; the window was not taken.
        """
        self._open()
        try:
            self.stitcher.add(window, data, weights)
        except AssetWriteError as ex:
            # Raised here, it would tell the caller to give the window again.
            logger.log(logging.DEBUG if self._has_warned else logging.WARNING,
                       'image %s: %s', self._image_id, ex)
            self._has_warned = True

    def _open(self):
        """Reserve room for the finished blocks, with the first window."""
        with self._lock:
            if self._is_open or self._is_closed:
                return
            for sink in self._sinks:
                sink.open()
            self._is_open = True

    def settle(self):
        """
        Take what is left of the canvas, and free it. May be called again.

        Raises:
            AssetWriteError: if a block cannot be stored; call again to retry.
        """
        if not self._is_settled:
            self.stitcher.finalize()
            self._is_settled = True

    def render(self, layer=None):
        """
        Return the :class:`Rendering` of the mean or of a layer; may be called again.

        Args:
            layer (Layer | None): one of ``options.layers``; None is the mean.
        """
        if layer is not None:
            form = self._options.describe(layer)
            return Rendering(self._layers[layer].data, form.codec, form.nodata)
        data, options = self._mean.data, self._options
        strips = list(iter_strips(self._shape))
        codec = choose_codec(options, (data[strip.slices] for strip in strips))
        n_clipped = self._mean.n_clipped + self.stitcher.n_clipped
        if codec is not None and not self._streams_codes:
            data, n_clipped = self._quantize(codec, strips)
        total = sum(sum_values(data[strip.slices], codec) for strip in strips)
        return make_rendering(data, codec, n_clipped, total)

    def _quantize(self, codec, strips):
        """Return the codes of the floats in the spool, and how many were clipped."""
        from cocoseg.io.spool import BlockSpool
        floats, n_clipped = self._mean.data, 0
        # The floats stay, for another try and for polygons.
        codes = BlockSpool(self._shape, codec.dtype, **self._spool_options)
        for strip in strips:
            part, clipped = codec.encode(floats[strip.slices])
            codes.write_block(strip, part)
            n_clipped += clipped
        return codes.data, n_clipped

    def read_plane(self, band):
        """Return one band, accumulator dtype, shape (H, W), NaN where no data."""
        data = self._mean.data
        if not self._streams_codes:
            return np.array(data[..., band])
        plane = np.empty(self._shape[:2], self._options.dtype)
        for strip in iter_strips(self._shape):
            plane[strip.slices] = self._options.codec.decode(data[strip.slices][..., band])
        return plane

    def get_limit(self, thresh):
        """
        Return what a value of :meth:`read_plane` is above if it is above ``thresh``.

        Codes are rounded: a value at the threshold must not come to lie above.
        """
        codec = self._options.codec
        if codec is None or not codec.orig_min <= thresh <= codec.orig_max:
            return thresh
        return codec.decode(codec.encode(np.array([thresh], self._options.dtype))[0])[0]

    def close(self):
        """Free the memory and the files. May be called twice."""
        self.stitcher.close()
        with self._lock:
            self._is_closed = True
        for sink in self._sinks:
            sink.close()
