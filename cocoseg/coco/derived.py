"""
One new asset per image of a dataset, made by a function, image by image.

What a model predicts window by window goes through the manager. This is for
what is made from a whole image at a time, by block runs that bound their
memory themselves: masks, instances. The order is that of the manager: file,
journal, manifest.
"""
from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from dataclasses import dataclass
from typing import Any, Callable

from cocoseg.coco.dataset import list_image_ids, open_result
from cocoseg.coco.geometry import (concise_affine, georeference, stitchspace_dsize,
                                   warp_img_from_stitchspace)
from cocoseg.coco.journal import Journal, compute_checksum
from cocoseg.coco.manifest import get_manifest
from cocoseg.coco.names import compute_suffix
from cocoseg.coco.resume import iter_finished
from cocoseg.errors import AssetWriteError, OptionError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImagePlace:
    """
    An image, and where its new asset goes.

    Attributes:
        image_id (int): of kwcoco.
        coco_image (kwcoco.CocoImage): the image.
        space (str): 'video', or 'image' for images of no video.
        fpath (str): file to write, atomically.
        shape (tuple[int, int]): (H, W) of the asset, px.
        crs (str | None): coordinate system.
        transform (ndarray | None): 3 x 3, pixel corners to world.
        warp_img_from_asset (kwimage.Affine): asset px to image px.
    """

    image_id: int
    coco_image: Any
    space: str
    fpath: str
    shape: tuple
    crs: str | None
    transform: Any
    warp_img_from_asset: Any


def derive_assets(src, dst, make, channel, *, settings, short_code, space='video',
                  image_ids=None, on_collision='raise', resume=False, progress=None,
                  dump_interval=60.0):
    """
    Make one asset of one channel per image, and register it.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to write. Its folder becomes the bundle.
        make (Callable): called with an :class:`ImagePlace`; writes its file,
            atomically, and returns entries of the asset and of the record,
            two dicts; of the record, ``annotations`` (with category names).
        channel (str): name of the channel.
        settings (dict): what changes the bytes, plain values, for ``resume``.
        short_code (str): folder of the assets, below '_assets'.
        space (str): 'video' or 'image', that the assets are aligned with.
        image_ids (Iterable[int] | None): images to do; None is all.
        on_collision (str): 'raise', or 'replace' an asset with this channel.
        resume (bool): take over the finished images of a run cut short.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``.
        dump_interval (float | None): seconds between two times that the
            manifest is saved meanwhile; None: only at the end.

    Returns:
        kwcoco.CocoDataset: the result, as saved at ``dst``.

    Raises:
        OptionError: for an option that cannot be used.
        ManifestError: if ``src`` is no manifest.
        ChannelCollisionError: if an image has such a channel.
        AssetWriteError: if an asset cannot be written.
        BundleBusyError: if somebody else is writing to ``dst``.
        ResumeError: if the run to be resumed had other settings.
        Exception: whatever ``make`` raises.
    """
    if space not in ('video', 'image') or on_collision not in ('raise', 'replace'):
        raise OptionError(f"space={space!r} must be 'video' or 'image', on_collision="
                          f"{on_collision!r} 'raise' or 'replace'")
    result = open_result(src, dst)
    image_ids = list_image_ids(result, image_ids)
    run = _Run(result, make, channel, short_code, space, on_collision == 'replace')
    settings = {name: str(value) for name, value in
                {**settings, 'channel': channel, 'space': space}.items()}
    with run.open_journal(settings):
        done = run.take_over(resume)
        run.claim([image_id for image_id in image_ids if image_id not in done])
        todo = [image_id for image_id in image_ids if image_id not in done]
        steps = todo if progress is None else progress(todo, total=len(todo), desc=short_code)
        for image_id in steps:
            run.do(image_id)
            if dump_interval is not None:
                run.manifest.dump_if_due(dump_interval, run.began)
        run.manifest.dump()
    return result


class _Run:
    """The state of one call of :func:`derive_assets`."""

    def __init__(self, dset, make: Callable, channel, short_code, space, replace):
        self.manifest = get_manifest(dset)
        self.began = self.manifest.clock()
        self._dset, self._make, self._channel = dset, make, channel
        self._space, self._replace = space, replace
        self._folder = os.path.join(self.manifest.bundle_dpath, '_assets', short_code)
        self._journal = None

    def open_journal(self, settings):
        """Make the folder and the journal, which is closed at the end of the ``with`` block."""
        from contextlib import closing

        from cocoseg.io.commit import sweep_temporaries
        try:
            os.makedirs(self._folder, exist_ok=True)
            sweep_temporaries(self._folder)
        except OSError as ex:
            raise AssetWriteError(f'cannot use the asset folder {self._folder}: {ex}; choose a '
                                  'writable bundle', path=self._folder) from ex
        text = json.dumps(settings, sort_keys=True)
        config = hashlib.sha256(text.encode()).hexdigest()[:16]
        self._journal = Journal(os.path.join(self._folder, 'journal.jsonl'), config, settings)
        return closing(self._journal)

    def take_over(self, resume):
        """Return the ids of images that an earlier run has finished; register them."""
        done = set()
        for record, fpath, problem in iter_finished(self._journal.begin(resume), self.manifest,
                                                    is_cog=True):
            self.manifest.retract(record)
            if problem:
                logger.warning('%s is redone: %s', fpath, problem)
                continue
            self.manifest.commit(record, replace=True)
            done.add(record['image_id'])
        return done

    def claim(self, image_ids):
        """Raise before anything is made if an image has such a channel already."""
        for image_id in image_ids:
            self.manifest.claim_channels(image_id, [self._channel], self, self._replace)

    def do(self, image_id):
        """Make, note and register one asset."""
        start = time.perf_counter()
        place = self._find_place(image_id)
        entry, record = self._make(place)
        height, width = place.shape
        asset = {'file_name': os.path.relpath(place.fpath, self.manifest.bundle_dpath),
                 'channels': self._channel, 'height': height, 'width': width, 'num_bands': 1,
                 'warp_aux_to_img': concise_affine(place.warp_img_from_asset), **entry}
        record = {'image_id': image_id, 'image_name': place.coco_image.img.get('name'),
                  'asset': asset, 'nbytes': os.path.getsize(place.fpath),
                  'checksum': compute_checksum(place.fpath), **record}
        self._journal.append(record)
        self.manifest.commit(record, replace=self._replace)
        logger.info('%s: %.1f s', place.fpath, time.perf_counter() - start)

    def _find_place(self, image_id):
        img = self.manifest.get_image(image_id)
        video = self.manifest.get_video(img)
        space = self._space if video is not None else 'image'
        width, height = stitchspace_dsize(img, video, space)
        warp = warp_img_from_stitchspace(img, space)
        fpath = self.manifest.reserve_file(image_id, self._channel, self._folder,
                                           compute_suffix(self._channel), '.tif')
        crs, transform = georeference(img, warp, self.manifest.bundle_dpath)
        return ImagePlace(image_id, self._dset.coco_image(image_id), space, fpath,
                          (height, width), crs, transform, warp)
