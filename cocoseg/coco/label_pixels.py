"""
The pixels of one image of labels, from its first tile to what is written.

The third way beside those of :mod:`cocoseg.coco.pixels`, with their interface:
ids mean something when all tiles are there, so all of an image waits, and then
goes strip by strip to where its file is made of it.
"""
from __future__ import annotations

import logging
import threading

import numpy as np

from cocoseg.coco.rendering import Rendering
from cocoseg.coco.sinks import EncoderSink, SpoolSink
from cocoseg.errors import AssetWriteError, CoverageError, ImageClosedError
from cocoseg.stitch.label import LabelStitcher

logger = logging.getLogger(__name__)


class LabelPixels:
    """
    A label stitcher, and a sink for the finished ids.

    The ids are decided once, by the first :meth:`settle`. What its sink could
    not store then stays in the stitcher, and the next call goes on with it.

    Args:
        image_id (int): for messages.
        shape (tuple[int, int]): (H, W) of the asset, px.
        windows (WindowGrid | list[Window] | None): all tiles, if declared.
        options (LabelAssetOptions): how the asset looks.
        spill_dir (PathLike | None): where ids of large images wait; None is
            the system's temporary folder.
        folder (PathLike | None): where compressed ones wait; None is the same.
        executor (Executor | None): compresses; None is the thread that settles.

    Thread-safety: ``add`` may be called from many threads, the rest from one
    at a time.

    Example:
        >>> from cocoseg.coco.label_options import LabelAssetOptions
        >>> from cocoseg.coco.label_pixels import LabelPixels
        >>> pixels = LabelPixels(1, (4, 6), None, LabelAssetOptions('a', prob_format='tif'))
        >>> pixels.add((slice(0, 4), slice(2, 6)), np.full((4, 4), 900))
        >>> pixels.settle()
        >>> pixels.render().data[0, :, 0].tolist(), pixels.figures['n_labels']
        ([0, 0, 1, 1, 1, 1], 1)
        >>> pixels.close()
    """

    def __init__(self, image_id, shape, windows, options, *, spill_dir=None, folder=None,
                 executor=None):
        self._image_id, self._options = image_id, options
        shape = (*shape, 1)
        if options.prob_format == 'cog' and options.write_probs and not options.write_preds:
            sink = EncoderSink(
                image_id, shape, options.main_dtype, nodata=0, folder=folder, executor=executor,
                compress=options.prob_compress, blocksize=options.prob_blocksize,
                overviews=options.assets[0].overviews)
        else:
            # Also for polygons, which are made of all of it.
            sink = SpoolSink(image_id, shape, options.main_dtype, folder=spill_dir)
        self._sink = sink
        self.stitcher = LabelStitcher(shape[:2], windows, sink=_OnceSink(sink),
                                      spill_dir=spill_dir, **options.label_options.of_stitcher)
        self._is_sealed = self._is_drained = self._is_settled = False
        self._n_adding = 0
        self._changed = threading.Condition()

    @property
    def nbytes(self):
        """Bytes in RAM."""
        return self.stitcher.nbytes + self._sink.nbytes

    def add(self, window, labels, values=None):
        """
        Add one tile; see :meth:`LabelStitcher.add`.

        Args:
            values (ndarray | None): not looked at unless ``min_size`` needs them.

        Raises:
            ImageClosedError: after :meth:`settle`.
        """
        with self._changed:
            if self._is_sealed:
                raise ImageClosedError(f'image {self._image_id} is being written; labels for '
                                       f'{window} came too late')
            self._n_adding += 1
        try:
            needed = self._options.label_options.needs_values
            self.stitcher.add(window, labels, values if needed else None)
        finally:
            with self._changed:
                self._n_adding -= 1
                self._changed.notify_all()

    def settle(self):
        """
        Decide the ids, and store them. May be called again.

        Raises:
            AssetWriteError: if they cannot be stored; call again to retry.
            CanvasError: if there is no room for them.
        """
        with self._changed:
            self._is_sealed = True
            # A tile is in it as a whole, or not at all.
            self._changed.wait_for(lambda: not self._n_adding)
        if self._is_settled:
            return
        if not self._is_drained:
            self._sink.open()
            self.stitcher.finalize()
            self._is_drained = True
            self._tell_seams()
        self._sink.settle()
        self._is_settled = True

    def _tell_seams(self):
        seams = self.figures['seams']
        if seams is not None:
            logger.info('image %s: %d labels; tiles agree in %.1f %% of what they label at %d '
                        'seams, %.1f %% at the worst', self._image_id, self.stitcher.n_labels,
                        100 * seams['mean_agreement'], seams['n_seams'],
                        100 * seams['lowest_agreement'])

    @property
    def figures(self):
        """
        What is told about the image when it is settled, a new dict.

        ``n_labels``; ``n_merged``, labels below the least size that joined
        another; ``seams``, None or how well neighboring tiles agree.
        """
        agreements = [seam.agreement for seam in self.stitcher.seams]
        return {'n_invalid': 0, 'n_labels': self.stitcher.n_labels,
                'n_merged': self.stitcher.n_merged, 'seams': {
                    'n_seams': len(agreements), 'mean_agreement': float(np.mean(agreements)),
                    'lowest_agreement': min(agreements)} if agreements else None}

    def render(self, layer=None):
        """
        Return the :class:`Rendering` of the labels; may be called again.

        Args:
            layer (None): labels have no layers.
        """
        if isinstance(self._sink, EncoderSink):
            return Rendering(None, None, 0, encoder=self._sink.encoder)
        return Rendering(self._sink.data, None, 0)

    def read_labels(self):
        """Return all ids, uint32 (H, W), a view; only of an image with polygons."""
        return self._sink.data[..., 0]

    def close(self):
        """Free the memory and the files. May be called twice."""
        self.stitcher.close()
        self._sink.close()


class _OnceSink:
    """
    Bear a block that comes again although it was stored.

    An interrupt may come between the storing and the stitcher's noting it. The
    sinks of files take no pixel twice.
    """

    def __init__(self, sink):
        self._sink, self._offered = sink, None

    def write_block(self, window, block):
        """Store a block, unless it was stored when it came last."""
        is_again, self._offered = window == self._offered, window
        try:
            self._sink.write_block(window, block)
        except AssetWriteError as ex:
            if not (is_again and isinstance(ex.__cause__, CoverageError)):
                raise
