"""
What is made of the sums and weights of finished pixels.
"""
from __future__ import annotations

import numpy as np

from cocoseg.grid.window import Window

# Rows that are normalized at a time: about 8 MB of float32 for 4096 x 5.
_STRIP_PIXELS = 1 << 19


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


class BlockValues:
    """
    Weighted sums of a rectangle of pixels, ready to become products.

    Args:
        sums (ndarray): float32 or float64, shape (h, w, C), C-contiguous.
        weights (ndarray | None): the same dtype, shape (h, w), or (h, w, C)
            where bands have weights of their own; C-contiguous. None is 1
            everywhere.
        deviations (ndarray | None): weighted sums of squared deviations,
            shape (h, w, C).

    Thread-safety: none needed; one thread finishes a block.

    Example:
        >>> values = BlockValues(np.full((1, 1, 2), 3.0), np.full((1, 1), 2.0))
        >>> values.compute_mean().tolist()
        [[[1.5, 1.5]]]
        >>> from cocoseg import Quantization
        >>> values.encode(Quantization(0, 3))[0].tolist()
        [[[16384, 16384]]]
    """

    def __init__(self, sums, weights, deviations=None):
        self.sums, self.weights, self.deviations = sums, weights, deviations

    @property
    def _flat(self):
        height, width, n_bands = self.sums.shape
        return self.sums.reshape(height, width * n_bands), self.weights.reshape(height, -1)

    def drop(self, mask):
        """Forget the pixels where ``mask``, bool (h, w), is True."""
        self.weights = (np.ones(mask.shape, self.sums.dtype) if self.weights is None
                        else self.weights.copy())
        self.weights[mask] = 0

    def compute_mean(self):
        """Return the weighted mean, (h, w, C) of the same dtype, NaN where no weight."""
        from cocoseg.stitch import kernels
        if self.weights is None:
            return self.sums.copy()
        out = np.empty(self.sums.shape, self.sums.dtype)
        sums, weights = self._flat
        kernels._kernel_normalize(sums, weights, out.reshape(sums.shape))
        return out

    def encode(self, codec, out=None):
        """
        Compute the weighted mean as integer codes, in one pass.

        Args:
            codec (Quantization): the code to use.
            out (ndarray | None): (h, w, C), C-contiguous, of the code's dtype, to fill.

        Returns:
            tuple[ndarray, int]: codes (h, w, C), and how many values were clipped.
        """
        from cocoseg.stitch import kernels
        if out is None:
            out = np.empty(self.sums.shape, codec.dtype)
        if self.weights is None:
            n_clipped = kernels._kernel_encode(self.sums.reshape(-1), *codec.kernel_args,
                                               out.reshape(-1))
        else:
            sums, weights = self._flat
            n_clipped = kernels._kernel_normalize_encode(
                sums, weights, *codec.kernel_args, out.reshape(sums.shape))
        return out, int(n_clipped)

    def release(self):
        """Give the memory back to its canvas; it is ours, so there is nothing to do."""


class Products:
    """
    The products of every finished block: the blended mean and extra layers.

    Args:
        codec (Quantization | None): the mean as codes, or as floats.
        layers (Sequence[Layer]): see :mod:`cocoseg.stitch.layers`.
        area (Area | None): pixels outside of it are no data.

    Example:
        >>> from cocoseg.grid.window import Window
        >>> from cocoseg.stitch.layers import ClassMap
        >>> products = Products(layers=[ClassMap()])
        >>> values = BlockValues(np.array([[[1.0, 2.0]]]), np.ones((1, 1)))
        >>> (mean, classes), n_clipped = products.render(values, Window(0, 0, 1, 1))
        >>> mean.tolist(), classes.tolist()
        ([[[1.0, 2.0]]], [[[1]]])
    """

    def __init__(self, codec=None, layers=(), area=None):
        self.codec, self.layers, self.area = codec, tuple(layers), area

    @property
    def needs_deviations(self):
        """True if a layer asks for the spread between windows."""
        return any(layer.needs_deviations for layer in self.layers)

    def check(self, n_bands):
        """Raise OptionError if a layer cannot be made of so many bands; None is not known."""
        for layer in self.layers if n_bands is not None else ():
            layer.describe(n_bands, self.codec)

    def crop(self, values, window):
        """Drop the pixels of a window that lie outside the area of interest."""
        if self.area is None:
            return
        from cocoseg.stitch.masking import mask_outside
        mask = mask_outside(self.area, window)
        if mask is not None:
            values.drop(mask)

    def render(self, values, window):
        """
        Make the products of one block.

        Args:
            values (BlockValues): or what stands for it in another canvas.
            window (Window): where the block lies.

        Returns:
            tuple[list[ndarray], int]: the mean, then each layer, (h, w, K);
            and how many values of the mean were clipped.
        """
        self.crop(values, window)
        if not self.layers:
            if self.codec is None:
                return [values.compute_mean()], 0
            codes, n_clipped = values.encode(self.codec)
            return [codes], n_clipped
        mean, n_clipped = values.compute_mean(), 0
        made = self._compute_layers(mean, values, self.layers)
        if self.codec is not None:
            mean, n_clipped = self.codec.encode(mean)
        return [mean, *made], n_clipped

    def render_layers(self, values, layers=None):
        """Return {Layer: array (h, w, K)} of some layers, None is all."""
        layers = self.layers if layers is None else layers
        return dict(zip(layers, self._compute_layers(values.compute_mean(), values, layers)))

    def _compute_layers(self, mean, values, layers):
        return [layer.compute(mean, values.weights, values.deviations, self.codec)
                for layer in layers]
