"""
Validity masks of the images of a kwcoco dataset, as assets of one channel.

A mask is a layer of the predict loop: its windows, files, journal and manifest
are those of any prediction.
"""
from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cocoseg.coco.dataset import list_image_ids, load_dataset
from cocoseg.coco.geometry import warp_img_from_stitchspace
from cocoseg.coco.manifest import get_manifest, list_channels
from cocoseg.coco.predict import predict_dataset
from cocoseg.errors import OptionError
from cocoseg.postprocess.mask_rules import (
    as_mask, call_logic, coerce_logic, coerce_nodata, count_nodata, find_nodata)
from cocoseg.protocols import PathLike, Progress
from cocoseg.stitch.layers import LayerFormat

if TYPE_CHECKING:
    import kwcoco

logger = logging.getLogger(__name__)

# Channel of what is only there to make the mask of; it is not written.
SHARE_CHANNEL = 'valid_share'


def mask_dataset(src: kwcoco.CocoDataset | PathLike, dst: PathLike, channels: str | None = None,
                 mask_channel: str = 'valid', *, logic: str | int | Callable = 'all',
                 nodata: str | float | Set | Sequence | None = 'file', space: str = 'image',
                 window: int | tuple[int, int] = 1024, valid_region: bool = False,
                 overwrite: bool = False, resume: bool = False,
                 image_ids: Iterable[int] | None = None, short_code: str = 'mask',
                 progress: Progress | None = None, **options: Any) -> kwcoco.CocoDataset:
    """
    Add a validity mask to every image of a dataset.

    Each image gets an asset of one channel, a Cloud-Optimized GeoTIFF of uint8
    on the pixels of the image: 255 where it is valid, 0 where it is masked,
    which is also its nodata value.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to write. Its folder becomes the bundle.
        channels (str | None): bands that count, such as 'red|green|nir'; None
            is all the channels of the first image.
        mask_channel (str): name of the new channel.
        logic (str | int | Callable): when a pixel is masked, as for
            :func:`cocoseg.compute_mask`. One without data in any band always is.
        nodata (str | float | Set | Sequence | None): values that are nodata
            beside those of the files and NaN, which always are; 'file' and
            None for no others.
        space (str): 'image', or 'video' for masks on the pixels of the video.
        window (int | tuple[int, int]): (h, w) of what is read at a time, px.
        valid_region (bool): also store the outline of each mask as the
            ``valid_region`` of its image, image px, along the pixel edges.
        overwrite (bool): replace an asset with this channel.
        resume (bool): take over the finished images of a run cut short. Give
            ``settings`` to tell one function as ``logic`` from another.
        image_ids (Iterable[int] | None): images to mask; None is all.
        short_code (str): folder for the new assets.
        progress (Callable | None): see :func:`cocoseg.predict_dataset`.
        **options: of :func:`cocoseg.predict_dataset`, such as ``prefetch``,
            ``dump_interval``, ``settings``, ``prob_compress``.

    Returns:
        kwcoco.CocoDataset: the result, as saved at ``dst``.

    Raises:
        OptionError: for an option that cannot be used, or missing channels.
        NodataError: for a nodata value that no pixel can have.
        ChannelCollisionError: if an image has this channel already.
        ManifestError, AssetWriteError, BundleBusyError, ResumeError: see
            :func:`cocoseg.predict_dataset`.

    Example:
        >>> import kwcoco, ubelt as ub
        >>> from cocoseg import mask_dataset
        >>> src = kwcoco.CocoDataset.demo('vidshapes1-frames2', image_size=(64, 64))
        >>> dst = ub.Path.appdir('cocoseg/doctest/mask').delete() / 'out.kwcoco.json'
        >>> dset = mask_dataset(src, dst, 'r|g|b', nodata=0, logic='any', valid_region=True)
        >>> found = dset.coco_image(1).imdelay('valid', nodata_method=None).finalize()
        >>> sorted(set(found.ravel().tolist())), dset.index.imgs[1]['valid_region'] != []
        ([0, 255], True)
    """
    src = load_dataset(src)
    image_ids = list_image_ids(src, image_ids)
    if channels is None:
        channels = '|'.join(src.coco_image(image_ids[0]).channels.fuse().as_list())
    if not isinstance(mask_channel, str) or len(list_channels(mask_channel)) != 1:
        raise OptionError(f'mask_channel={mask_channel!r} must be the name of one channel')
    predictor = ValidPredictor.make(logic, nodata, len(list_channels(channels)))
    result = predict_dataset(
        src, dst, predictor, window, 0, channels=channels, out_channels=SHARE_CHANNEL, space=space,
        image_ids=image_ids, short_code=short_code, progress=progress, resume=resume,
        layers={ValidLayer(): mask_channel}, write_probs=False, write_prediction_attrs=False,
        expected_minmax=(0, 1), on_collision='replace' if overwrite else 'raise', **options)
    if valid_region:
        add_valid_regions(result, mask_channel, space, image_ids)
    return result


def add_valid_regions(dset, mask_channel, space='image', image_ids=None):
    """
    Store the outlines of masks as the ``valid_region`` of their images; save the manifest.

    Args:
        dset (kwcoco.CocoDataset): changed in place, and saved.
        mask_channel (str): channel of masks in ``space``, 0 where masked, each
            a file of its own.
        space (str): 'image' or 'video'.
        image_ids (Iterable[int] | None): None is all.

    Raises:
        OptionError: if an image has no such asset.
        OSError: if a mask cannot be read, or the manifest not be saved.
    """
    import kwimage
    from cocoseg.io.mask_file import outline_mask
    manifest = get_manifest(dset)
    for image_id in dset.images() if image_ids is None else image_ids:
        img = manifest.get_image(image_id)
        asset = dset.coco_image(image_id).find_asset(mask_channel)
        if asset is None or asset['channels'] != mask_channel:
            raise OptionError(f'image {image_id} has no asset of the channel {mask_channel!r} '
                              'alone; run mask_dataset first')
        region = outline_mask(os.path.join(manifest.bundle_dpath, asset['file_name']))
        polygons = kwimage.MultiPolygon.from_shapely(
            region if hasattr(region, 'geoms') else _as_multi(region))
        region = polygons.warp(warp_img_from_stitchspace(img, space)).to_coco(style='new')
        with manifest.lock:
            img['valid_region'] = region
            dset._invalidate_hashid()
    manifest.dump()


def _as_multi(region):
    import shapely
    return shapely.MultiPolygon([] if region.is_empty else [region])


@dataclass(frozen=True)
class ValidPredictor:
    """Turn pixels into 1 where they are valid, NaN where they are masked."""

    logic: Any
    values: tuple

    @classmethod
    def make(cls, logic, nodata, n_bands):
        if isinstance(nodata, str) and nodata == 'masks':
            raise OptionError("nodata='masks' is for rasters; the images of a dataset are read "
                              "with the nodata values of their files, use nodata='file'")
        return cls(coerce_logic(logic, n_bands),
                   coerce_nodata(nodata, (None,) * n_bands, np.float32))

    @property
    def fingerprint(self):
        """What tells it from others in a later run; None for a function."""
        return None if callable(self.logic) else f'valid:{self.logic}:{self.values}'

    def __call__(self, image):
        if callable(self.logic):
            valid = ~call_logic(self.logic, find_nodata(image, self.values))
        else:
            valid = count_nodata(image, self.values) < self.logic
        return np.where(valid, np.float32(1), np.float32(np.nan))[..., None]


@dataclass(frozen=True)
class ValidLayer:
    """255 where the mean is there, 0 elsewhere."""

    name: ClassVar[str] = 'valid'
    needs_deviations: ClassVar[bool] = False
    overviews: ClassVar[str] = 'nearest'

    def describe(self, n_bands, codec=None):
        """Return the format of the raster."""
        return LayerFormat('uint8', 1, 0)

    def compute(self, mean, weights=None, deviations=None, codec=None):
        """Return the block; see :class:`~cocoseg.stitch.layers.Layer`."""
        return as_mask(np.ascontiguousarray(np.isfinite(mean[..., :1])))
