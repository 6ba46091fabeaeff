"""
Instances of the images of a kwcoco dataset, from heatmaps that were stitched before.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cocoseg.coco.annotations import outline_labels
from cocoseg.coco.derived import derive_assets
from cocoseg.coco.manifest import list_channels
from cocoseg.errors import BandCountError, OptionError
from cocoseg.io.arrays import open_source
from cocoseg.postprocess.parameters import WatershedParameters
from cocoseg.postprocess.result import LabelResult
from cocoseg.postprocess.watershed import blockwise_watershed
from cocoseg.protocols import PathLike, Progress

if TYPE_CHECKING:
    import kwcoco

# Settings of a run that do not change what it makes.
_FREE = ('executor', 'max_retries', 'timeout', 'max_pending', 'progress')


def watershed_dataset(src: kwcoco.CocoDataset | PathLike, dst: PathLike,
                      parameters: WatershedParameters, channels: str, *,
                      foreground: str | None = None, out_channels: str = 'instances',
                      space: str = 'video', block_shape: int | tuple[int, int] | None = None,
                      polygons: bool = False, category: str = 'instance',
                      short_code: str = 'instances', image_ids: Iterable[int] | None = None,
                      on_collision: str = 'raise', resume: bool = False,
                      progress: Progress | None = None, dump_interval: float | None = 60.0,
                      report: Callable[[int, LabelResult], object] | None = None,
                      **options: Any) -> kwcoco.CocoDataset:
    """
    Find instances in all images of a dataset, with a watershed of blocks.

    Each image gets an asset of one channel: uint32 ids 1..n, 0 for background,
    aligned with the heatmap's space.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to write. Its folder becomes the bundle.
        parameters (WatershedParameters): how predictions become instances.
        channels (str): of the predictions, such as 'right|below|far', in the
            order of the offsets; one for the seeded methods.
        foreground (str | None): a channel that is compared with the threshold,
            of method 'mutex'.
        out_channels (str): name of the new channel.
        space (str): 'video' or 'image'.
        block_shape (int | tuple[int, int] | None): see
            :func:`cocoseg.blockwise_watershed`.
        polygons (bool): also add each instance as an annotation, with its
            ``segment_id``, and its mean value as ``score``.
        category (str): of these annotations.
        short_code (str): folder for the new assets.
        image_ids (Iterable[int] | None): images to do; None is all.
        on_collision (str): 'raise', or 'replace' assets with this channel.
        resume (bool): take over the finished images of a run cut short, and
            the finished blocks of the image that it was at.
        progress (Callable | None): wraps an iterable of images, called with
            ``total`` and ``desc``; for example ``ubelt.ProgIter``.
        dump_interval (float | None): see :func:`cocoseg.predict_dataset`.
        report (Callable | None): called with the id of each image and its
            :class:`~cocoseg.LabelResult`, when its file is written.
        **options: of :class:`~cocoseg.engine.blockmap.BlockRun`, such as
            ``executor``, or of :class:`~cocoseg.CogWriter`, such as
            ``compress``.

    Returns:
        kwcoco.CocoDataset: the result, as saved at ``dst``.

    Raises:
        OptionError: for an option that cannot be used, or missing channels.
        BandCountError: if there are not as many channels as offsets.
        ManifestError, ChannelCollisionError, AssetWriteError, BundleBusyError,
            ResumeError: see :func:`cocoseg.predict_dataset`.
        TaskError: if a block fails; from its error, with the block.

    Example:
        >>> import kwcoco, numpy as np, ubelt as ub
        >>> from cocoseg import WatershedParameters, predict_dataset, watershed_dataset
        >>> folder = ub.Path.appdir('cocoseg/doctest/watershed').delete()
        >>> src = kwcoco.CocoDataset.demo('shapes1', image_size=(64, 64))
        >>> def is_dark(image):
        ...     return (image.mean(axis=2, keepdims=True) < 120).astype('f4')
        >>> heat = predict_dataset(src, folder / 'heat.kwcoco.json', is_dark, window=32,
        ...                        out_channels='dark', expected_minmax=(0, 1))
        >>> parameters = WatershedParameters(method='foreground', threshold=0.5, min_size=9)
        >>> dset = watershed_dataset(heat, folder / 'out.kwcoco.json', parameters, 'dark',
        ...                          polygons=True)
        >>> labels = dset.coco_image(1).imdelay('instances', interpolation='nearest').finalize()
        >>> int(labels.max()) == dset.n_annots - heat.n_annots
        True
    """
    names = list_channels(channels)
    if not isinstance(parameters, WatershedParameters):
        raise OptionError(f'parameters={parameters!r} must be WatershedParameters')
    n_needed = len(parameters.offsets) or 1
    if len(names) != n_needed:
        raise BandCountError(f'channels={channels!r} are {len(names)}, and the parameters need '
                             f'{n_needed}')
    if list_channels(out_channels) != [out_channels]:
        raise OptionError(f'out_channels={out_channels!r} must be one channel')
    settings = {'parameters': parameters.as_dict(), 'channels': channels,
                'foreground': foreground, 'block_shape': block_shape, 'polygons': polygons,
                'category': category,
                **{name: value for name, value in options.items() if name not in _FREE}}

    def make(place):
        result = blockwise_watershed(
            _read(place, channels), parameters, place.fpath,
            foreground=None if foreground is None else _read(place, foreground),
            block_shape=block_shape, overwrite=True, resume=resume, crs=place.crs,
            transform=place.transform, channels=[out_channels], **options)
        record = {}
        if polygons:
            record['annotations'] = list(_iter_annotations(place, result, category))
        if report is not None:
            report(place.image_id, result)
        return {'nodata': 0}, record

    return derive_assets(src, dst, make, out_channels, settings=settings, short_code=short_code,
                         space=space, image_ids=image_ids, on_collision=on_collision,
                         resume=resume, progress=progress, dump_interval=dump_interval)


def _read(place, channels):
    """Return the source of some channels, floats with NaN for no data."""
    present = place.coco_image.channels.fuse().as_list()
    missing = [name for name in list_channels(channels) if name not in present]
    if missing:
        raise OptionError(f'image {place.image_id} has no channels {missing}, only {present}; '
                          'choose other channels, or leave it out of image_ids')
    return open_source(place.coco_image, name=f'image {place.image_id}', channels=channels,
                       space=place.space)


def _iter_annotations(place, result, category):
    """Yield an annotation per instance."""
    for label, outline in outline_labels(place.fpath, place.warp_img_from_asset):
        score = float(result.scores[label])
        yield {'category': category, 'segment_id': label,
               **({} if math.isnan(score) else {'score': score}), **outline}
