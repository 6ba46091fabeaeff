"""
The pixels of one image, from its first window to the arrays that are written.

Two ways with one interface: :class:`CanvasPixels` accumulates the image as a
whole and renders it at the end; :class:`StreamedPixels`, for images whose
windows are declared, lets every block go as soon as it is final. A third is
for labels, :class:`~cocoseg.coco.label_pixels.LabelPixels`.
"""
from __future__ import annotations

import numpy as np

from cocoseg.coco.label_pixels import LabelPixels
from cocoseg.coco.rendering import (Rendering, ValueSum, choose_codec, clip_values,
                                    make_rendering)
from cocoseg.coco.streamed import StreamedPixels
from cocoseg.stitch.soft import SoftStitcher, iter_strips

__all__ = ['CanvasPixels', 'StreamedPixels', 'make_pixels']

# Side of the blocks where no file has tiles of another, px.
_BLOCKSIZE = 256


def make_pixels(image_id, shape, windows, options, canvas, *, folder=None, executor=None):
    """
    Make what holds the pixels of an image that begins.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int]): (H, W) of the asset, px.
        windows (WindowGrid | list[Window] | None): the declared windows.
        options (AssetOptions): how the assets look.
        canvas (dict): ``device``, ``memmap``, and ``memory_budget``, a
            MemoryBudget or None.
        folder, executor: of :class:`StreamedPixels`.

    Returns:
        StreamedPixels | CanvasPixels | LabelPixels: the last for labels, the
        first if blocks can leave early.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> from cocoseg.grid.window import Window
        >>> canvas = {'device': 'numpy', 'memmap': None, 'memory_budget': None}
        >>> for windows in (None, [Window(0, 0, 4, 4)]):
        ...     pixels = make_pixels(1, (4, 4), windows, AssetOptions('a'), canvas)
        ...     print(type(pixels).__name__, pixels.nbytes)
        CanvasPixels 0
        StreamedPixels 0
    """
    device, memmap, budget = canvas['device'], canvas['memmap'], canvas['memory_budget']
    is_mapped = memmap is not None and memmap is not False
    if options.kind == 'labels':
        return LabelPixels(image_id, shape, windows, options, folder=folder, executor=executor,
                           spill_dir=memmap if is_mapped and memmap is not True else None)
    shape = (*shape, len(options.channels))
    if (windows is not None and options.assets and not is_mapped
            and str(device) == 'numpy'):
        blocksize = _BLOCKSIZE if options.prob_format == 'png' else options.prob_blocksize
        return StreamedPixels(image_id, shape, windows, options,
                              _fit_blocksize(blocksize, shape), budget,
                              folder=folder, executor=executor)
    # The range is for layers, which have the same format in either way.
    return CanvasPixels(SoftStitcher(
        shape, windows, dtype=options.dtype, memmap=memmap, device=device,
        memory_budget=None if is_mapped else budget,
        layers=[layer for layer, _ in options.layers],
        expected_minmax=None if options.codec is None else options.expected_minmax,
        quantize_dtype=options.quantize_dtype,
        blocksize=_fit_blocksize(_BLOCKSIZE, shape)), options)


def _fit_blocksize(blocksize, shape):
    """Return a side of blocks that is not beyond the image: memory is counted in blocks."""
    return min(blocksize, max(shape[:2]))


class CanvasPixels:
    """
    The whole canvas of an image, rendered at the end strip by strip.

    Args:
        stitcher (SoftStitcher): without a sink.
        options (AssetOptions): how the assets look.

    Thread-safety: ``add`` may be called from many threads, the rest from one
    at a time.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> pixels = CanvasPixels(SoftStitcher((2, 2, 1)), AssetOptions('a', quantize=False))
        >>> pixels.add(None, np.full((2, 2), 0.5), None)
        >>> pixels.settle()
        >>> pixels.render().total
        2.0
    """

    def __init__(self, stitcher, options):
        self.stitcher, self._options = stitcher, options

    @property
    def nbytes(self):
        """Bytes of the canvas."""
        return self.stitcher.nbytes

    @property
    def figures(self):
        """What is told about the image when it is settled, a new dict."""
        return {'n_invalid': self.stitcher.n_invalid}

    def add(self, window, data, weights):
        """Add one window; see :meth:`SoftStitcher.add`."""
        self.stitcher.add(window, data, weights)

    def settle(self):
        """Refuse data from now on. May be called again."""
        self.stitcher.seal()

    def render(self, layer=None):
        """
        Return the :class:`Rendering` of the mean or of a layer; may be called again.

        Args:
            layer (Layer | None): one of ``options.layers``; None is the mean.
        """
        if layer is not None:
            return self._render_layer(layer)
        options, stitcher = self._options, self.stitcher
        strips = list(iter_strips(stitcher.shape))
        codec = choose_codec(options, map(stitcher.read, strips))
        data = np.empty(stitcher.shape, options.dtype if codec is None else codec.dtype)
        n_clipped, total = 0, ValueSum(codec)
        for strip in strips:
            part = data[strip.slices]
            if codec is None:
                part[...], clipped = clip_values(stitcher.read(strip), options.expected_minmax)
            else:
                clipped = stitcher.encode(codec, strip, out=part)[1]
            n_clipped += clipped
            total.add(part)
        return make_rendering(data, codec, n_clipped, total.value)

    def _render_layer(self, layer):
        form = self._options.describe(layer)
        data = np.empty((*self.stitcher.shape[:2], form.n_bands), form.dtype)
        for strip in iter_strips(self.stitcher.shape):
            data[strip.slices] = self.stitcher.read_layers(strip, [layer])[layer]
        return Rendering(data, form.codec, form.nodata)

    def read_plane(self, band):
        """Return one band, accumulator dtype, shape (H, W), NaN where no data."""
        plane = np.empty(self.stitcher.shape[:2], self._options.dtype)
        for strip in iter_strips(plane.shape):
            plane[strip.slices] = self.stitcher.read(strip)[..., band]
        return plane

    def get_limit(self, thresh):
        """Return what a value of :meth:`read_plane` is above if it is above ``thresh``."""
        return thresh

    def close(self):
        """Free the memory. May be called twice."""
        self.stitcher.close()
