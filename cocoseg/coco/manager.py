"""
The stitching manager: windows of many images in, registered assets out.

It owns the life of every image (see :mod:`cocoseg.coco.lifecycle`) and wires
the parts: a stitcher per image accumulates, the writer queue runs
:func:`finish_image`, the journal remembers, the manifest registers.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from cocoseg.coco.arrivals import take_window
from cocoseg.coco.checkpoint import IntervalDumper
from cocoseg.coco.compat import center_weighted_add, take_deprecated
from cocoseg.coco.finisher import Delegate, Finisher
from cocoseg.coco.jobs import JobTable
from cocoseg.coco.journal import Journal
from cocoseg.coco.label_options import LabelOptions, make_asset_options
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.manifest import get_manifest
from cocoseg.coco.options import (check_dump_interval, check_num_bands, check_run_options,
                                  make_canvas_options)
from cocoseg.coco.resume import begin_run, make_busy, make_folder
from cocoseg.errors import AlreadyFinalizedError, CoverageError, OptionError
from cocoseg.grid.window import Window, WindowLike
from cocoseg.protocols import PathLike
from cocoseg.stitch.budget import MemoryBudget

if TYPE_CHECKING:
    import kwcoco
    from numpy.typing import ArrayLike

logger = logging.getLogger(__name__)


class CocoStitchingManager:
    """
    Stitch window predictions into assets of the images of a kwcoco dataset.

    A drop-in for geowatch's ``CocoStitchingManager``. Give it windows with
    :meth:`accumulate_image`, in any order and from any thread; hand finished
    images to the writer with :meth:`submit_finalize_image`; end with
    :meth:`close` or a ``with`` block, which writes what is left. Save the
    manifest with :meth:`dump`.

    The assets of an image are written to temporary files, flushed, verified,
    renamed, noted in the journal, and only then registered, all together. If
    that fails, nothing of them is visible, the accumulated data stays, and
    submitting again tries again.

    The journal is locked until the manager is closed or forgotten. In one
    process, a manager takes it over from one that has no images in work.

    Leaving a ``with`` block by an exception finishes the images that were
    submitted and drops the others: what is not complete must not look so.

    Args:
        result_dataset (kwcoco.CocoDataset): JSON-backed, with ``fpath`` set;
            changed in place when an image is finished. Several managers may
            share one. Its file is only written by :meth:`dump`, unless there
            is a ``dump_interval``.
        short_code (str | None): folder below the asset folder.
        chan_code (str): channels of the asset, one per band, such as
            ``'water|bare'`` or ``'hidden.0:16'``.
        stitching_space (str): 'video' or 'image': the space that windows live
            in, up to the scale given with each image. ``stiching_space``, the
            historical spelling, is an alias.
        device (str | torch.device): 'numpy', or where a torch canvas lives.
        memmap (None | bool | PathLike): accumulate in memory-mapped files, in
            the system's temporary folder (True) or the given one. The files
            have no name: they vanish with the process however it ends.
        thresh (float): values above it are inside a polygon (write_preds).
        write_probs (bool): write and register the soft asset.
        write_preds (bool): add scored polygons of the thresholded channels as
            annotations, in image space.
        num_bands (int | str): 'auto', or a number that must agree with chan_code.
        prob_compress (str): ZSTD (default), DEFLATE, LZW, … or RAW.
        prob_blocksize (int): tile size of the file, px.
        prob_format (str): 'cog', 'tif' (tiled GeoTIFF) or 'png' (8 bit, at
            most 4 bands, no georeference).
        polygon_categories (list[str] | None): channels that become polygons;
            None is all. Each channel name is the category name.
        expected_minmax (tuple[float, float] | None): range of the values;
            others are clipped and counted. None: the range of each image.
        quantize (bool): write int16 (png: uint8) codes, else floats.
        writer_queue (JobQueue | None): shared by several managers; a
            :class:`~cocoseg.io.queue.WriterQueue`, a kwutil ``BlockingJobQueue``, or an executor of
            ``concurrent.futures``. None makes one with a single thread. May be assigned later.
        write_prediction_attrs (bool): add ``prediction_region`` (image space)
            and ``has_predictions`` to the image.
        assets_dname (str): asset folder in the bundle.
        dtype (str): accumulator, 'float32' or 'float64'.
        readiness (str): 'declared': an image is ready when its declared
            windows came (:meth:`expect_windows`) or :meth:`mark_ready` says
            so. 'contiguous': also when data for another image (video) comes,
            as in the reference; only for input in that order.
        on_collision (str): 'raise' if an image already has one of the
            channels, or 'replace' that asset.
        resume (bool): take over the finished assets of a run that was cut
            short (:meth:`is_done`). It must have had the same settings.
        memory_budget (int | MemoryBudget | None): bytes of RAM for the sums of all images; a
            :class:`~cocoseg.stitch.budget.MemoryBudget` is shared with other managers. What is
            beyond waits in files without a name. With ``memmap`` it is not used.
        layers (Sequence[str | Layer] | dict[str | Layer, str]): further
            assets: 'class' (the largest channel), 'mask' (above ``thresh``),
            'disagreement' (deviation between windows), or a
            :class:`~cocoseg.stitch.layers.Layer`. A dict chooses their
            channels instead of ``{short_code}_class``, ``water_mask``,
            ``water_std``. They do not depend on ``write_probs``.
        dump_interval (float | None): seconds. The manifest is saved when an
            image is finished and the last time was so long ago (or 20 times
            what saving took), and before the first file gets its name if
            there is an old one. None: only by :meth:`dump`.
        settings (dict | None): what else changes the bytes, such as
            ``{'model': 'v3'}``: JSON values by name, for ``resume``.
        kind (str): 'soft', values that are blended; or 'labels', ids that
            mean something in one window only, which become ids of the image
            (:class:`~cocoseg.stitch.label.LabelStitcher`): one channel of
            uint32, 0 is nodata. Options about values are refused then;
            polygons are those of the segments. A folder as ``memmap`` is
            where ids of more than 64 MiB wait, which they do in any case.
        label_options (dict | LabelOptions | None): for labels:
            ``connectivity``, ``match``, ``min_size``, ``max_difference``, and
            ``overviews``; see :class:`~cocoseg.coco.label_options.LabelOptions`.

    Raises:
        OptionError: for an option that is unknown or contradicts another.
        ManifestError: for an SQL-backed dataset, or one without ``fpath``.
        AssetWriteError: if the asset folder cannot be made.
        BundleBusyError: if another process has the journal, or a manager with
            other settings that has images in work.
        ResumeError: if the earlier run had other settings.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> import kwcoco, numpy as np, ubelt as ub
        >>> from cocoseg import CocoStitchingManager, WindowGrid
        >>> dset = kwcoco.CocoDataset.demo('vidshapes1-frames1', image_size=(64, 64)).copy()
        >>> dset.reroot(absolute=True)
        >>> dset.fpath = ub.Path.appdir('cocoseg/doctest/manager').delete() / 'out.kwcoco.json'
        >>> windows = WindowGrid((64, 64), window=40, overlap=8)
        >>> with CocoStitchingManager(dset, 'pred', 'water|bare', expected_minmax=(0, 1)) as self:
        ...     self.expect_windows(1, windows)
        ...     for window in windows:
        ...         self.accumulate_image(1, window, np.full((40, 40, 2), 0.25))
        ...     assert self.ready_image_ids() == [1]
        >>> assert self.is_done(1)
        >>> data = dset.coco_image(1).imdelay('water', space='video').finalize()
        >>> assert data.shape == (64, 64, 1) and abs(data - 0.25).max() < 1 / 32767
    """

    def __init__(self, result_dataset: kwcoco.CocoDataset, short_code: str | None = None,
                 chan_code: str | None = None, stitching_space: str = 'video',
                 device: Any = 'numpy', memmap: None | bool | PathLike = None, thresh: float = 0.5,
                 write_probs: bool = True, write_preds: bool = False, num_bands: int | str = 'auto',
                 prob_compress: str = 'ZSTD', prob_blocksize: int = 256, prob_format: str = 'cog',
                 polygon_categories: list[str] | None = None,
                 expected_minmax: tuple[float, float] | None = None, quantize: bool = True,
                 writer_queue: Any = None, write_prediction_attrs: bool = True,
                 assets_dname: str = '_assets', dtype: str = 'float32', *,
                 stiching_space: str | None = None, readiness: str = 'declared',
                 on_collision: str = 'raise', resume: bool = False,
                 memory_budget: int | MemoryBudget | None = None, layers: Sequence | dict = (),
                 dump_interval: float | None = None, settings: dict | None = None,
                 kind: str = 'soft', label_options: dict | LabelOptions | None = None) -> None:
        self.manifest = get_manifest(result_dataset)
        self.result_dataset = result_dataset
        self.options = make_asset_options(
            kind, label_options, chan_code=chan_code, short_code=short_code,
            space=stitching_space if stiching_space is None else stiching_space,
            thresh=thresh, write_probs=write_probs, write_preds=write_preds,
            polygon_categories=polygon_categories, prob_compress=prob_compress,
            prob_blocksize=prob_blocksize, prob_format=prob_format,
            expected_minmax=expected_minmax, quantize=quantize,
            write_prediction_attrs=write_prediction_attrs,
            assets_dname=assets_dname, dtype=dtype, layers=layers)
        check_run_options(readiness, on_collision)
        check_num_bands(num_bands, chan_code, self.num_bands)
        canvas = make_canvas_options(device, memmap, memory_budget, kind)
        config, texts = self.options.describe_run(settings)
        dumper = IntervalDumper(self.manifest, check_dump_interval(dump_interval))
        self.prob_dpath = make_folder(self.manifest, self.options)
        self._table = JobTable(self.manifest, self, self.options, self.prob_dpath,
                               canvas, readiness, on_collision == 'replace')
        journal = self._make_journal(config, texts)
        self._finisher = Finisher(self._table, self.manifest, journal, dumper, writer_queue)
        self._closed = False
        begin_run(journal, self.manifest, self._table, dumper, resume)

    def _make_journal(self, config, texts):
        return Journal(os.path.join(self.prob_dpath, self.options.journal_name), config, texts,
                       is_busy=make_busy(self._table))

    def delegate(self) -> Delegate:
        """Return what lets others write the files of images; see its class."""
        return Delegate(self._table, self._finisher)

    # ---- what callers read -------------------------------------------------

    @property
    def chan_code(self) -> str:
        """Channel spec of the asset."""
        return self.options.chan_code

    @property
    def stitching_space(self) -> str:
        """'video' or 'image'."""
        return self.options.space

    stiching_space = stitching_space

    @property
    def num_bands(self) -> int:
        """Number of channels."""
        return len(self.options.channels)

    @property
    def patch_counts(self) -> dict[int, int]:
        """Windows received so far, a Counter by image id."""
        return self._table.patch_counts

    @property
    def writer_queue(self) -> Any:
        """The queue that finishes images; made on first use, may be assigned."""
        return self._finisher.queue

    @writer_queue.setter
    def writer_queue(self, queue: Any) -> None:
        self._finisher.queue = queue

    @property
    def image_stitchers(self) -> dict[int, Any]:
        """Stitchers of the managed images, a new dict by image id."""
        return {job.image_id: job.stitcher for job in self._table.managed()}

    @property
    def seen_image_ids(self) -> set[int]:
        """Ids of the images that are finished and registered, a new set."""
        return self._table.done_ids

    def managed_image_ids(self) -> list[int]:
        """Return the ids of images with data that nobody submitted, or that failed."""
        return [job.image_id for job in self._table.managed()]

    def ready_image_ids(self) -> list[int]:
        """Return the ids of images that are complete and wait to be submitted."""
        return [job.image_id for job in self._table.jobs_in(ImageState.READY)]

    def image_state(self, image_id: int) -> ImageState:
        """Return the :class:`~cocoseg.coco.lifecycle.ImageState` of an image."""
        return self._table.get_state(image_id)

    def is_done(self, image_id: int) -> bool:
        """Return True if the assets of this image are on disk and registered."""
        return self.image_state(image_id) is ImageState.DONE

    def pending_windows(self, image_id: int) -> list[Window]:
        """Return the declared windows (clipped, asset px) that did not come yet."""
        self.manifest.get_image(image_id)
        job = self._table.get(image_id)
        return [] if job is None else job.stitcher.pending

    # Names that scripts written for the reference poke at.
    _seen_gids = seen_image_ids
    _stitched_gid_patch_histograms = patch_counts

    @property
    def _ready_gids(self):
        return set(self.ready_image_ids())

    # ---- accumulating ------------------------------------------------------

    def expect_windows(self, image_id: int, windows: Iterable[WindowLike],
                       asset_dsize: tuple[int, int] | None = None,
                       scale_asset_from_stitchspace: Any = None) -> None:
        """
        Declare all windows of an image before the first comes.

        The image is ready exactly when the last of them has come. Windows that
        are added without weights blend with the linear plan of these windows.
        Blocks that no window can touch any more leave the canvas at once (not
        with ``memmap``, a torch device, where no asset is written, or labels).

        Args:
            image_id (int): kwcoco image id.
            windows (WindowGrid | Iterable[Window | tuple[slice, slice]]):
                asset px; a window declared twice is expected twice (labels of
                one place come once).
            asset_dsize, scale_asset_from_stitchspace: see :meth:`accumulate_image`.

        Raises:
            UnknownImageError: if the manifest has no such image.
            CoverageError: if data came already, or a window is outside.
            ImageClosedError: if the image is being written, or done.
            OptionError: if size or scale cannot be.
            AssetWriteError: if another image failed to be written meanwhile;
                nothing was declared then, declare it again.
        """
        self._finisher.raise_pending()
        self._table.declare(image_id, windows, asset_dsize, scale_asset_from_stitchspace)

    def accumulate_image(self, gid: int, space_slice: WindowLike | None, data: ArrayLike,
                         asset_dsize: tuple[int, int] | None = None,
                         scale_asset_from_stitchspace: Any = None, is_ready: bool | str = 'auto',
                         weights: ArrayLike | None = None, downweight_edges: bool = False,
                         **kwargs: Any) -> None:
        """
        Add the prediction of one window to an image.

        Args:
            gid (int): kwcoco image id.
            space_slice (tuple[slice, slice] | Window | kwimage.Box | None):
                where the data belongs, in pixels of the asset. May overhang;
                negative means outside. None is the whole asset.
            data (ndarray | Tensor): real, shape (h, w, C), NaN or infinite
                where invalid; never modified. (h, w) stands for every channel.
                Of labels: int, (h, w) or (h, w, 1), 0 where nothing is.
            asset_dsize (tuple[int, int] | None): (w, h) of the asset, px.
                None is the size of the video (image), not scaled.
            scale_asset_from_stitchspace (float | tuple | Affine | None): the
                asset's scale against stitching space; a pair is (sx, sy).
            is_ready (bool | str): True marks the image ready after this
                window, False never does, 'auto' follows ``readiness``.
            weights (ndarray | Tensor | None): finite, >= 0, shape (h, w).
            downweight_edges (bool): multiply by
                :func:`~cocoseg.stitch.blend.edge_weights`.
            **kwargs: ``values`` (ndarray | None), of labels, shape (h, w, B):
                what tells which are alike, for ``min_size``, else not looked
                at; ``dsize`` and ``scale``, deprecated names of two above.

        Raises:
            UnknownImageError: if the manifest has no such image.
            WindowShapeError: if data or weights disagree with the window.
            BandCountError: if the bands are not those of ``chan_code``.
            WeightError: if a weight is negative or not finite.
            CoverageError: if the window is outside or was not declared.
            ImageClosedError: if the image is being written, or done.
            CanvasError: if there is no room to accumulate in; this window was
                not taken.
            AssetWriteError: if another image failed to be written meanwhile;
                this window was not taken then, give it again.
        """
        self._finisher.raise_pending()
        if is_ready not in (True, False, 'auto'):
            raise OptionError(f"is_ready={is_ready!r} must be True, False or 'auto'")
        values = kwargs.pop('values', None)
        asset_dsize, scale = take_deprecated(kwargs, asset_dsize, scale_asset_from_stitchspace)
        job = self._table.enter(gid, asset_dsize, scale)
        try:
            take_window(job, space_slice, data, weights=weights,
                        downweight_edges=downweight_edges, values=values)
            self._table.receive(job, is_ready)
        finally:
            self._table.leave(job)

    def mark_ready(self, image_id: int) -> None:
        """
        Say that an image is complete, until another window comes for it.

        Raises:
            NothingAccumulatedError: if none ever came.
            ImageClosedError: if the image is being written, or done.
        """
        self._table.mark_ready(image_id)

    _stitcher_center_weighted_add = staticmethod(center_weighted_add)

    # ---- finishing ---------------------------------------------------------

    def finalize_image(self, gid: int) -> dict[str, Any]:
        """
        Write and register one image now, and return when it is done.

        Args:
            gid (int): kwcoco image id.

        Returns:
            dict: ``n_anns``, ``total_prob`` (sum of the values written),
            ``n_clipped`` (values outside ``expected_minmax``), ``n_invalid``
            (pixels of windows skipped as NaN or infinite), ``file_name``,
            ``layers`` (file names by name: 'class', …; 'mask_2' for a second).
            Of labels also ``n_labels``, ``n_merged`` (labels below ``min_size``
            that joined another), and ``seams`` (None, or ``n_seams``,
            ``mean_agreement`` and ``lowest_agreement`` of neighboring windows).

        Raises:
            NothingAccumulatedError: if no data came for it.
            AlreadyFinalizedError: if it was finalized or submitted before.
            AssetWriteError: if it cannot be written; the data stays, and
                finalizing again tries again.
        """
        return self._finisher.run_now(self._table.begin_finalize(gid))

    def submit_finalize_image(self, gid: int) -> None:
        """
        Hand an image to the writer queue; submitting it again does nothing.

        Blocks while the queue is full.

        Raises:
            NothingAccumulatedError: if no data came for it.
            AssetWriteError: if another image failed meanwhile; this one is
                submitted all the same.
        """
        self._submit(gid)
        self._finisher.raise_pending()

    def _submit(self, image_id):
        try:
            self._finisher.submit(self._table.begin_finalize(image_id))
        except AlreadyFinalizedError:
            logger.debug('image %s was submitted before', image_id)

    def flush_images(self) -> None:
        """
        Wait until every submitted image is written.

        Raises:
            AssetWriteError: for the first that failed; call again for the next.
        """
        self._finisher.wait()
        self._finisher.raise_pending()

    def dump(self, fpath: PathLike | None = None) -> None:
        """
        Wait for submitted images, then save the manifest atomically.

        Args:
            fpath (PathLike | None): default the dataset's ``fpath``.

        Raises:
            AssetWriteError: if an image failed; the manifest is not saved.
            OSError: if the manifest cannot be written; an old one stays.
        """
        self.flush_images()
        self.manifest.dump(fpath)

    def close(self) -> None:
        """
        Write every image that holds data, wait, and free everything.

        An image whose declared windows did not all come is not written. May
        be called twice.

        Raises:
            AssetWriteError: if an image could not be written.
            CoverageError: if declared windows are missing; finalize such an
                image before, to have it with gaps.
        """
        if self._closed:
            return
        try:
            incomplete = []
            # Other threads may go on: each image is judged once, as it is now.
            for job in self._table.jobs_in(ImageState.UNSEEN, ImageState.ACCUMULATING,
                                           ImageState.READY):
                state, pending = job.state, job.stitcher.pending
                if pending and state is not ImageState.READY:
                    incomplete.append((job, pending))
                elif state is not ImageState.UNSEEN:
                    self._submit(job.image_id)
            self._finisher.wait()
            failed = self._table.jobs_in(ImageState.FAILED)
        finally:
            self._release()
        for job in failed[1:]:
            logger.error('%s', job.error)
        if failed:
            raise failed[0].error
        if incomplete:
            job, pending = incomplete[0]
            raise CoverageError(
                f'image {job.image_id} was not written: {len(pending)} of its declared windows '
                f'did not come, the first is {pending[0]} ({len(incomplete)} such images); add '
                'them, or finalize the image before closing to have it with gaps')

    def _release(self):
        self._closed = True
        try:
            self._finisher.close()
        finally:
            self._table.close()

    def __enter__(self) -> CocoStitchingManager:
        return self

    def __exit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
        if exc_type is None:
            self.close()
            return
        # Images that are not complete must not look finished; those that were
        # submitted are.
        try:
            self._finisher.wait()
        finally:
            self._release()
