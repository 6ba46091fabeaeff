"""
The pixels of an image whose windows are declared: every block leaves early.

A finished block of the mean, and of each layer, goes to a sink of its own,
usually compressed at once, until all of the image is there and the files can
be put together.
"""
from __future__ import annotations

import errno
import logging
import threading

import numpy as np

from cocoseg.coco.rendering import (Rendering, ValueSum, choose_codec, get_nodata,
                                    make_rendering)
from cocoseg.coco.sinks import EncoderSink, NoSink, SpoolSink
from cocoseg.errors import AssetWriteError, CanvasError
from cocoseg.stitch.soft import SoftStitcher, iter_strips

logger = logging.getLogger(__name__)

# Finished blocks that may wait for a disk that is full, bytes.
_MAX_REFUSED_NBYTES = 32 << 20


class StreamedPixels:
    """
    Only the blocks in work, and sinks for those that are finished.

    With a known range the mean is finished as the codes of its file; else as
    floats, which are quantized when all are there. Layers are finished as
    their files hold them. What the file of a COG holds is compressed as it
    comes, unless polygons are to be made of it.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int, int]): (H, W, C) of the asset.
        windows (WindowGrid | list[Window]): all windows that will come.
        options (AssetOptions): how the assets look.
        blocksize (int): of the blocks, px.
        memory_budget (MemoryBudget | None): for blocks in work. Finished ones
            that are not compressed are in a file then, in its ``spill_dir``.
        folder (PathLike | None): where compressed ones wait, best the folder
            of the assets; None is the system's temporary folder.
        executor (Executor | None): compresses; None is the thread that adds.

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
        >>> pixels.render().total / (256 * 64)
        1.0
        >>> layer = options.assets[1].layer
        >>> pixels.render(layer).shape, pixels.render(layer).dtype.name
        ((256, 64, 1), 'uint8')
        >>> pixels.close()
    """

    def __init__(self, image_id, shape, windows, options, blocksize, memory_budget=None, *,
                 folder=None, executor=None):
        self._image_id, self._shape, self._options = image_id, shape, options
        self._spool_options = {} if memory_budget is None else {
            'ram_nbytes': 0, 'folder': memory_budget.spill_dir}
        self._encoder_options = {
            'folder': folder, 'executor': executor, 'compress': options.prob_compress,
            'blocksize': options.prob_blocksize,
            'waiting_nbytes': None if memory_budget is None else 0}
        self._max_refused = _MAX_REFUSED_NBYTES if memory_budget is None else min(
            _MAX_REFUSED_NBYTES, memory_budget.nbytes)
        self._streams_codes = options.codec is not None
        self._mean, self._layers = self._make_sinks()
        self._is_open = self._is_closed = self._is_drained = self._is_settled = False
        self._has_warned = False
        self._lock = threading.Lock()
        self.stitcher = SoftStitcher(
            shape, windows, sink=self._mean, layers=self._layers, dtype=options.dtype,
            memory_budget=memory_budget, blocksize=blocksize,
            expected_minmax=options.expected_minmax if self._streams_codes else None,
            quantize_dtype=options.quantize_dtype)

    def _make_sinks(self):
        """Return the sink of the mean, and {layer: its sink}."""
        options, layers = self._options, {}
        mean, is_cog = NoSink(), options.prob_format == 'cog'
        dtype = options.quantize_dtype if self._streams_codes else options.dtype
        minmax = None if options.quantize else options.expected_minmax
        if (is_cog and options.write_probs and not options.write_preds
                and (self._streams_codes or not options.quantize)):
            mean = EncoderSink(
                self._image_id, self._shape, dtype, minmax, codec=options.codec,
                nodata=get_nodata(options.codec), overviews=options.assets[0].overviews,
                **self._encoder_options)
        elif options.write_probs or options.write_preds:
            mean = SpoolSink(self._image_id, self._shape, dtype, minmax, **self._spool_options)
        for layer, _ in options.layers:
            form = options.describe(layer)
            shape = (*self._shape[:2], form.n_bands)
            layers[layer] = EncoderSink(
                self._image_id, shape, form.dtype, codec=form.codec, nodata=form.nodata,
                overviews=layer.overviews, **self._encoder_options) if is_cog else SpoolSink(
                self._image_id, shape, form.dtype, **self._spool_options)
        return mean, layers

    @property
    def _sinks(self):
        return [self._mean, *self._layers.values()]

    @property
    def nbytes(self):
        """Bytes in RAM: blocks in work, and finished ones unless they are in a file."""
        return self.stitcher.nbytes + sum(sink.nbytes + sink.refused_nbytes
                                          for sink in self._sinks)

    @property
    def figures(self):
        """What is told about the image when it is settled, a new dict."""
        return {'n_invalid': self.stitcher.n_invalid}

    def add(self, window, data, weights):
        """
        Add one window; see :meth:`SoftStitcher.add`.

        A finished block that cannot be stored stays in the canvas. It is
        offered again by :meth:`settle`, which reports the error if it stays.

        Raises:
            CanvasError: if there is no room, or much cannot be stored; the
                window was not taken.
        """
        self._open()
        self._check_room()
        try:
            self.stitcher.add(window, data, weights)
        except AssetWriteError as ex:
            # Raised here, it would tell the caller to give the window again.
            logger.log(logging.DEBUG if self._has_warned else logging.WARNING,
                       'image %s: %s', self._image_id, ex)
            self._has_warned = True

    def _check_room(self):
        """Refuse windows while much of what is finished cannot be stored."""
        nbytes = sum(sink.refused_nbytes for sink in self._sinks)
        if nbytes <= self._max_refused:
            return
        for sink in self._sinks:
            try:
                sink.retry()
            except Exception as ex:
                raise CanvasError(
                    getattr(ex, 'errno', None) or errno.EIO,
                    f'image {self._image_id}: {nbytes} bytes of finished blocks cannot be stored '
                    f'({ex}); mend that, and give this window again') from ex

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
            if not self._is_drained:
                self.stitcher.finalize()
                self._is_drained = True
            for sink in self._sinks:
                sink.settle()
            self._is_settled = True

    def render(self, layer=None):
        """
        Return the :class:`Rendering` of the mean or of a layer; may be called again.

        Args:
            layer (Layer | None): one of ``options.layers``; None is the mean.
        """
        if layer is not None:
            form, sink = self._options.describe(layer), self._layers[layer]
            if isinstance(sink, EncoderSink):
                return Rendering(None, form.codec, form.nodata, encoder=sink.encoder)
            return Rendering(sink.data, form.codec, form.nodata)
        options, n_clipped = self._options, self._mean.n_clipped + self.stitcher.n_clipped
        if isinstance(self._mean, EncoderSink):
            return Rendering(None, options.codec, get_nodata(options.codec), n_clipped,
                             self._mean.total, self._mean.encoder)
        data = self._mean.data
        strips = list(iter_strips(self._shape))
        codec = choose_codec(options, (data[strip.slices] for strip in strips))
        if codec is not None and not self._streams_codes:
            data, n_clipped = self._quantize(codec, strips)
        total = ValueSum(codec)
        for strip in strips:
            total.add(data[strip.slices])
        return make_rendering(data, codec, n_clipped, total.value)

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
