"""
The predict loop: a kwcoco dataset and a predictor in, a stitched dataset out.

Windows are read in one thread, predicted in another and stitched in that of
the caller, in one order: each stage is an iterator over the one before.
"""
from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cocoseg.coco.dataset import list_image_ids, open_result
from cocoseg.coco.label_options import LabelOptions
from cocoseg.coco.manager import CocoStitchingManager
from cocoseg.coco.predict_steps import BatchRunner, PredictLoop, WindowReader, check_mask
from cocoseg.coco.remote import predict_images
from cocoseg.coco.remote_windows import predict_windows_of
from cocoseg.coco.run_record import RunClock, write_run_record
from cocoseg.coco.sampling import fit_predictor
from cocoseg.engine.executors import Executor, SerialExecutor, get_executor
from cocoseg.engine.prefetch import check_depth
from cocoseg.engine.sharing import check_split, choose_shared
from cocoseg.errors import OptionError
from cocoseg.grid.window import as_pair
from cocoseg.grid.windows import WindowGrid
from cocoseg.protocols import PathLike, Predictor, Progress

if TYPE_CHECKING:
    import kwcoco

logger = logging.getLogger(__name__)


def predict_dataset(src: kwcoco.CocoDataset | PathLike, dst: PathLike, predictor: Predictor,
                    window: int | tuple[int, int] = (512, 512), overlap: float | tuple = 0.3, *,
                    channels: str | None = None, out_channels: str | None = None,
                    space: str = 'video', batch_size: int = 1, fit: str = 'balanced',
                    image_ids: Iterable[int] | None = None, short_code: str = 'pred',
                    progress: Progress | None = None, prefetch: int = 2,
                    dump_interval: float | None = 60.0, settings: dict | None = None,
                    mask: str | None = None, executor: str | Executor = 'serial',
                    split: str = 'auto', **manager_options: Any) -> kwcoco.CocoDataset:
    """
    Run a predictor over the images of a dataset and stitch what it gives.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to write. Its folder becomes the bundle.
        predictor (Predictor): (h, w, B) float32, NaN where no data -> (h, w, K).
            Pixels without any data in get none out. One whose ``kind`` is
            'labels' returns ids, int (h, w, 1), which are put together by its
            ``label_options``. A :class:`~cocoseg.protocols.FittedPredictor`
            is fitted first, to pixels of all the images.
        window (int | tuple[int, int]): (h, w) of a window, px of ``space``.
        overlap (float | int | tuple): a float in [0, 1) is a fraction of the
            window; an int or (y, x) is pixels.
        channels (str | None): input bands, such as 'red|green|nir'; None is
            all the channels of the first image.
        out_channels (str | None): names of the K outputs. None: the
            predictor's ``channels``, else ``{short_code}.0:K``, or 'segments'.
        space (str): 'video' or 'image'.
        batch_size (int): windows per call; above 1 the predictor needs
            ``predict_batch``, (N, h, w, B) -> (N, h, w, K).
        fit (str): placement of windows, 'balanced' or 'flush'.
        image_ids (Iterable[int] | None): images to run on; None is all.
        short_code (str): folder for the new assets.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.
        prefetch (int): batches that are read ahead of the predictor, in a
            thread, and batches that are predicted ahead of the stitching, in
            another. 0 does all in the caller's thread; the result is the same.
        dump_interval (float | None): seconds between two times that the
            manifest is saved while images are finished; see
            :class:`CocoStitchingManager`. None: only at the end.
        settings (dict | None): what else changes the bytes, JSON by name, for
            ``resume``. Window, overlap, fit and input channels are noted
            anyway, and the predictor if it has an identity: an attribute
            ``config_hash`` or ``fingerprint`` (str). A function has none; give
            ``{'predictor': 'v3'}``, which goes first.
        mask (str | None): do not give the predictor windows without any valid
            pixel; nothing comes out there. 'nodata': valid is where any input
            band has data. Else a channel that is 0 where masked, such as
            :func:`cocoseg.mask_dataset` makes: its masked pixels count as
            pixels without data, in all windows.
        executor (str | Executor): who does the images; see
            :func:`cocoseg.get_executor`. 'serial' is this process, with the
            threads of ``prefetch``. With processes or dask each worker does
            one image at a time, and writes its files; names, journal and
            manifest are those of the caller. The predictor is sent to them.
        split (str): 'images': as above. 'rows': the windows of each image are
            predicted by all workers, row by row, and stitched here, through
            files beside the assets. 'auto' does so with images that are more
            than a worker's share of all windows. The bytes are the same.
        **manager_options: for :class:`CocoStitchingManager`, such as
            ``expected_minmax``, ``prob_format``, ``resume``, ``memory_budget``,
            ``layers``. ``kind`` and ``label_options`` go before those of the
            predictor.

    Returns:
        kwcoco.CocoDataset: the result, as saved at ``dst``.

    Note:
        One thread at a time calls the predictor, but not that of the caller.
        What holds for one thread only, such as ``torch.no_grad()``, belongs
        inside of the predictor.

    Raises:
        ManifestError: if ``src`` is no manifest, or not one on JSON.
        OptionError: for an option that cannot be used, or missing channels.
        WindowShapeError: if the predictor returns another height or width.
        AssetWriteError: if an asset cannot be written.
        BundleBusyError: if somebody else is writing to ``dst``.
        ResumeError: if the run to be resumed had other settings.
        Exception: whatever the predictor raises.

    Example:
        >>> import kwcoco, ubelt as ub
        >>> from cocoseg import predict_dataset
        >>> src = kwcoco.CocoDataset.demo('vidshapes1-frames2', image_size=(64, 64))
        >>> dst = ub.Path.appdir('cocoseg/doctest/predict').delete() / 'out.kwcoco.json'
        >>> def is_bright(image):
        ...     return (image.mean(axis=2, keepdims=True) > 127).astype('f4')
        >>> dset = predict_dataset(src, dst, is_bright, window=32, channels='r|g|b',
        ...                        out_channels='bright', expected_minmax=(0, 1))
        >>> dset.coco_image(1).imdelay('bright').finalize().shape
        (64, 64, 1)
    """
    clock, executor_name = RunClock.start(), str(executor)
    executor = _check_executor(executor)
    job = prepare_prediction(
        src, dst, predictor, window, overlap, channels=channels, out_channels=out_channels,
        space=space, batch_size=batch_size, fit=fit, image_ids=image_ids, short_code=short_code,
        prefetch=prefetch, settings=settings, mask=mask, split=split, **manager_options)
    with CocoStitchingManager(job.result, settings=job.settings, dump_interval=dump_interval,
                              **job.manager_options) as manager:
        run = job.loop.runner
        run.n_channels = manager.num_bands
        todo = {image_id: grid for image_id, grid in job.grids.items()
                if not manager.is_done(image_id)}
        if executor is None:
            job.loop(manager, job.read, todo, progress)
        else:
            _predict_elsewhere(manager, job, todo, split, executor, progress)
        manager.dump()
        write_run_record(
            os.path.join(manager.prob_dpath, manager.options.journal_name),
            clock.stop(images=len(todo), windows=sum(map(len, todo.values())),
                       px=sum(math.prod(grid.shape) for grid in todo.values()),
                       executor=executor_name, prefetch=prefetch))
    if mask is not None:
        logger.info('mask=%r: %d of %d windows have no valid pixel and were not predicted', mask,
                    run.n_skipped, run.n_windows)
    return job.result


@dataclass(frozen=True)
class PredictJob:
    """
    What :func:`predict_dataset` is to do, checked; nothing was written.

    Attributes:
        result (kwcoco.CocoDataset): the input under its new name.
        read (WindowReader): of the images.
        grids (dict[int, WindowGrid]): of the images that were chosen, by id.
        loop (PredictLoop): how windows are predicted.
        settings (dict): that change the bytes.
        manager_options (dict): for :class:`CocoStitchingManager`.
    """

    result: Any
    read: WindowReader
    grids: dict
    loop: PredictLoop
    settings: dict
    manager_options: dict


def prepare_prediction(src, dst, predictor, window=(512, 512), overlap=0.3, *, channels=None,
                       out_channels=None, space='video', batch_size=1, fit='balanced',
                       image_ids=None, short_code='pred', prefetch=2, settings=None, mask=None,
                       split='auto', is_dry=False, **manager_options):
    """
    Check what :func:`predict_dataset` is given, and find out what is to be done.

    Args:
        src, dst, predictor, window, overlap, channels, out_channels, space,
            batch_size, fit, image_ids, short_code, prefetch, settings, mask,
            split, **manager_options: of that function.
        is_dry (bool): do not fit a predictor that has to be.

    Returns:
        PredictJob: with the options of the manager that are not checked yet.
    """
    check_depth(prefetch, 'prefetch')
    check_split(split)
    result = open_result(src, dst)
    image_ids = list_image_ids(result, image_ids)
    read = WindowReader(result, channels, space, image_ids[0], check_mask(mask))
    window = as_pair(window, 'window')
    kind = _find_kind(predictor, manager_options)
    run = BatchRunner(predictor, batch_size, kind == 'labels', skips=mask is not None)
    overlap = _overlap_pixels(overlap, window)
    grids = {image_id: WindowGrid(read.get_shape(image_id), window, overlap, fit)
             for image_id in image_ids}
    if not is_dry:
        fit_predictor(predictor, read, {image_id: grid.shape for image_id, grid in grids.items()})
    if kind == 'labels':
        manager_options = _add_label_options(predictor, manager_options)
        run.keeps_images = manager_options['label_options'].needs_values
    settings = _complete_settings(settings, predictor, window=list(window),
                                  overlap=list(overlap), fit=fit, channels=read.channels,
                                  **({} if mask is None else {'mask': mask}))
    if out_channels is None:
        out_channels = _infer_channels(run, read, image_ids[0], grids, short_code)
    loop = PredictLoop(run, read.channels, space, window, overlap, fit, batch_size, prefetch, mask)
    return PredictJob(result, read, grids, loop, settings, {
        'short_code': short_code, 'chan_code': out_channels, 'stitching_space': space,
        **manager_options})


def _check_executor(executor):
    """
    Return who does the images, or None for this process.

    Example:
        >>> _check_executor('serial')
    """
    executor = get_executor(executor)
    if isinstance(executor, SerialExecutor):
        return None
    if getattr(executor, 'shares_memory', True):
        raise OptionError(f'executor={executor!r} shares memory, and a predictor is called by one '
                          "thread at a time; use 'serial' with prefetch, processes, or dask")
    return executor


def _predict_elsewhere(manager, job, grids, split, executor, progress):
    """Predict images on workers: first those that all of them share, then one on each."""
    shared = choose_shared(split, {image_id: len(grid) for image_id, grid in grids.items()},
                           executor.n_workers)
    if shared:
        predict_windows_of(manager, job.loop, {image_id: grids[image_id] for image_id in shared},
                           executor, progress)
    rest = [image_id for image_id in grids if image_id not in set(shared)]
    if rest:
        predict_images(manager, job.loop, rest, job.manager_options, executor, progress)


def _find_kind(predictor, options):
    """
    Return what a predictor makes, 'soft' or 'labels'.

    Example:
        >>> _find_kind(len, {}), _find_kind(len, {'kind': 'labels'})
        ('soft', 'labels')
    """
    makes_labels = getattr(predictor, 'kind', None) == 'labels'
    kind = options.get('kind', 'labels' if makes_labels else 'soft')
    if makes_labels and kind != 'labels':
        raise OptionError(f"kind={kind!r}, but the predictor makes 'labels'; leave kind out")
    return kind


def _add_label_options(predictor, options):
    """Return the options of a manager of labels, with those of the predictor."""
    found = options.get('label_options')
    if found is None:
        found = getattr(predictor, 'label_options', None)
    return {**options, 'kind': 'labels', 'label_options': LabelOptions.coerce(found)}


def _overlap_pixels(overlap, window):
    """
    Return the overlap in pixels per axis.

    Example:
        >>> _overlap_pixels(0.25, (64, 100)), _overlap_pixels(8, (64, 100))
        ((16, 25), (8, 8))
    """
    if isinstance(overlap, float):
        if not 0 <= overlap < 1:
            raise OptionError(f'overlap={overlap} as a fraction must be in [0, 1); give pixels '
                              'as an int')
        return tuple(min(round(overlap * size), size - 1) for size in window)
    return as_pair(overlap, 'overlap')


def _complete_settings(settings, predictor, **ours):
    """
    Return the settings of the caller, those of the loop, and the predictor's identity.

    Example:
        >>> _complete_settings({'model': 'v3'}, len, fit='flush')
        {'model': 'v3', 'fit': 'flush'}
    """
    settings = {} if settings is None else settings
    if not isinstance(settings, dict) or set(settings) & set(ours):
        raise OptionError(f'settings={settings!r} must be a dict, and not with {sorted(ours)}, '
                          'which are noted anyway')
    identity = None if 'predictor' in settings else identify_predictor(predictor)
    return {**settings, **ours, **({} if identity is None else {'predictor': identity})}


def identify_predictor(predictor):
    """
    Return what tells a predictor from others, the same in each run, or None.

    Args:
        predictor (Predictor): may have an attribute ``config_hash`` or
            ``fingerprint`` (str). The name of a function is not enough: what
            it does may change.

    Raises:
        OptionError: if the attribute is no string.

    Example:
        >>> class Model:
        ...     fingerprint = 'unet-epoch-12'
        >>> identify_predictor(Model()), identify_predictor(len)
        ('unet-epoch-12', None)
    """
    for name in ('config_hash', 'fingerprint'):
        identity = getattr(predictor, name, None)
        if identity is None:
            continue
        if not isinstance(identity, str):
            raise OptionError(f'predictor.{name}={identity!r} must be a string that stays the '
                              "same from run to run; or pass settings={'predictor': …}")
        return identity
    return None


def _infer_channels(run, read, image_id, grids, short_code):
    channels = getattr(run.predictor, 'channels', None)
    if isinstance(channels, str):
        return channels
    if run.is_labels:
        return 'segments'
    place, image = _find_probe(read, image_id, grids[image_id], run.skips)
    probe = run.predict([image], [place])[0]
    return f'{short_code}.0:{probe.shape[2]}'


def _find_probe(read, image_id, windows, wants_data):
    """Return the first window and its pixels; if wanted, the first one with data."""
    first = None
    for window in windows:
        image = read(image_id, window)
        if not wants_data or not np.isnan(image).all():
            return window, image
        first = first or (window, image)
    return first
