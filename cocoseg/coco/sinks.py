"""
Where the finished blocks of an image wait for its files.

A raster that becomes a Cloud-Optimized GeoTIFF as it is, is compressed block
by block (:class:`EncoderSink`). One whose codes depend on the range of all its
values, that becomes another format, or that is looked at again for polygons,
waits as it is (:class:`SpoolSink`).
"""
from __future__ import annotations

import os
import tempfile
import threading

import numpy as np

from cocoseg.coco.rendering import ValueSum, clip_values
from cocoseg.errors import AssetWriteError, CanvasError


class RasterSink:
    """
    What both sinks share: values are clipped, and errors name the image.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int, int]): (H, W, K) of the raster.
        dtype (dtype): of its blocks.
        minmax (tuple[float, float] | None): blocks are clipped to this range.

    Attributes:
        n_clipped (int): values that were outside of the range.

    Thread-safety: ``write_block`` may be called from many threads.
    """

    def __init__(self, image_id, shape, dtype, minmax=None):
        self._image_id, self._shape, self._dtype = image_id, shape, np.dtype(dtype)
        self._minmax = minmax
        # Bytes of blocks that could not be stored: the stitcher keeps them.
        self._refused = {}
        self._lock = threading.Lock()
        self.n_clipped = 0

    def write_block(self, window, block):
        """
        Store a finished block; the stitcher calls this.

        Raises:
            AssetWriteError: if it cannot be stored.
        """
        try:
            block, n_clipped = clip_values(block, self._minmax)
            self._store(window, block)
        except Exception as ex:
            with self._lock:
                self._refused[window] = block.nbytes
            raise AssetWriteError(f'the block at {window} could not be stored: {ex}',
                                  self._image_id) from ex
        with self._lock:
            self._refused.pop(window, None)
            self.n_clipped += n_clipped

    @property
    def refused_nbytes(self):
        """Bytes of the blocks that could not be stored, and are still elsewhere."""
        with self._lock:
            return sum(self._refused.values())

    def retry(self):
        """
        Try what could not be stored once more.

        Raises:
            Exception: why it cannot be.
        """

    def settle(self):
        """Wait until all blocks are stored; the stitcher has no more."""


class SpoolSink(RasterSink):
    """
    Keep the blocks of a raster as they are.

    Args:
        *args: of :class:`RasterSink`.
        **spool_options: for :class:`~cocoseg.io.spool.BlockSpool`.

    Example:
        >>> from cocoseg.coco.sinks import SpoolSink
        >>> from cocoseg.grid.window import Window
        >>> sink = SpoolSink(1, (2, 2, 1), 'float32', (0, 1))
        >>> sink.open()
        >>> sink.write_block(Window(0, 0, 2, 2), np.full((2, 2, 1), 3, 'f4'))
        >>> sink.data.max().item(), sink.n_clipped, sink.nbytes
        (1.0, 4, 16)
        >>> sink.close()
    """

    def __init__(self, image_id, shape, dtype, minmax=None, **spool_options):
        super().__init__(image_id, shape, dtype, minmax)
        self._spool_options = spool_options
        self._spool = None

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

    def _store(self, window, block):
        self._spool.write_block(window, block)

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


class EncoderSink(RasterSink):
    """
    Compress the blocks of a raster as the tiles of its file.

    Args:
        image_id, shape, dtype, minmax: of :class:`RasterSink`.
        nodata (int | float): value of samples without data, maybe NaN.
        codec (Quantization | None): of the blocks, for their sum.
        folder (PathLike | None): where compressed tiles wait; None is the
            system's temporary folder.
        executor (Executor | None): of the compression.
        waiting_nbytes (int | None): RAM for overview tiles that wait; None is
            that of :class:`~cocoseg.io.pyramid.PyramidEncoder`.
        **cog_options: of :class:`~cocoseg.io.cog.CogOptions`.

    Example:
        >>> from cocoseg.coco.sinks import EncoderSink
        >>> from cocoseg.grid.window import Window
        >>> sink = EncoderSink(1, (2, 2, 1), 'float32', (0, 1), nodata=np.nan)
        >>> sink.open()
        >>> sink.write_block(Window(0, 0, 2, 2), np.full((2, 2, 1), 3, 'f4'))
        >>> sink.settle()
        >>> sink.total, sink.n_clipped, [level.shape for level in sink.encoder.levels]
        (4.0, 4, [(2, 2)])
        >>> sink.close()
    """

    def __init__(self, image_id, shape, dtype, minmax=None, *, nodata, codec=None, folder=None,
                 executor=None, waiting_nbytes=None, **cog_options):
        super().__init__(image_id, shape, dtype, minmax)
        self._nodata, self._cog_options = nodata, cog_options
        self._folder = tempfile.gettempdir() if folder is None else folder
        self._executor, self._waiting_nbytes = executor, waiting_nbytes
        self._sum = ValueSum(codec)
        self.encoder = None

    def open(self):
        """Make the encoder. May be called again."""
        from cocoseg.io.cog import CogOptions
        if self.encoder is None:
            os.makedirs(self._folder, exist_ok=True)
            options = CogOptions.coerce(self._dtype, **self._cog_options)
            self.encoder = options.make_encoder(
                self._shape, self._dtype, self._folder, self._nodata, self._executor,
                self._waiting_nbytes)

    def _store(self, window, block):
        # First: an interrupt after the block was taken would have it offered again.
        part = self._sum.measure(block)
        self.encoder.write_block(window, block)
        with self._lock:
            self._sum.note(part)

    @property
    def total(self):
        """Sum of the valid values so far."""
        with self._lock:
            return self._sum.value

    def retry(self):
        """Try what could not be stored once more; see :class:`RasterSink`."""
        self.encoder.retry()

    def settle(self):
        """
        Wait until all tiles are stored. May be called again.

        Raises:
            AssetWriteError: if one cannot be stored; all are kept.
        """
        try:
            self.encoder.finish()
        except Exception as ex:
            raise AssetWriteError(f'a tile could not be stored: {ex}', self._image_id) from ex

    @property
    def nbytes(self):
        """Bytes in RAM."""
        return 0 if self.encoder is None else self.encoder.nbytes

    def close(self):
        """Free the memory and the file. May be called twice."""
        if self.encoder is not None:
            self.encoder.close()


class NoSink:
    """Lets go of the blocks of a mean that nobody writes."""

    nbytes = n_clipped = refused_nbytes = 0

    def open(self):
        """Do nothing, like all of it."""

    def write_block(self, window, block):
        """Forget a block."""

    settle = retry = close = open
