"""
The manifest: the one place that reads and changes a kwcoco dataset.

Several managers share one dataset, and background writers finish images while
the caller adds others. So there is exactly one :class:`Manifest` per dataset,
with one lock. A change is prepared completely before the first key is touched:
it happens as a whole or not at all.
"""
from __future__ import annotations

import json
import os
import threading
import time
import weakref

from cocoseg.errors import ChannelCollisionError, ManifestError, UnknownImageError
from cocoseg.coco.geometry import merge_regions
from cocoseg.coco.names import compute_stems

_MANIFESTS = weakref.WeakKeyDictionary()
_MANIFESTS_LOCK = threading.Lock()

# A dump at an interval waits so many times as long as the last one took: 5 % of the time.
_PAUSE = 20

# What kwcoco puts into `fpath` when nobody did.
_PLACEHOLDER_FPATH = './data.kwcoco.json'


def get_manifest(dset):
    """
    Return the manifest of a dataset; the same object for the same dataset.

    Args:
        dset (kwcoco.CocoDataset): JSON-backed, with ``fpath`` set.

    Raises:
        ManifestError: for an SQL view, or a dataset that lives nowhere.

    Example:
        >>> import kwcoco
        >>> dset = kwcoco.CocoDataset.demo('vidshapes1')
        >>> assert get_manifest(dset) is get_manifest(dset)
    """
    check_dataset(dset)
    with _MANIFESTS_LOCK:
        if dset not in _MANIFESTS:
            _MANIFESTS[dset] = Manifest(dset)
        return _MANIFESTS[dset]


def check_dataset(dset):
    """
    Raise unless results can be registered in ``dset``.

    Raises:
        ManifestError: for an SQL view, or a dataset that lives nowhere.
    """
    index = getattr(dset, 'index', None)
    if type(dset).__name__ == 'CocoSqlDatabase' or not isinstance(
            getattr(dset, 'dataset', None), dict) or index is None:
        raise ManifestError(
            f'{type(dset).__name__} cannot take results: it must be a JSON-backed '
            'kwcoco.CocoDataset; load the manifest with kwcoco.CocoDataset(path)')
    fpath = os.fspath(dset.fpath) if dset.fpath else ''
    if not fpath or (fpath == _PLACEHOLDER_FPATH and not os.path.exists(fpath)):
        raise ManifestError(
            f'the result dataset has fpath={dset.fpath!r}: assets are written beside the '
            'manifest, so set `result_dataset.fpath` before making a manager')


def list_channels(spec):
    """
    Return the channel names of a spec as a list.

    Example:
        >>> list_channels('a|b'), list_channels('hidden.0:3')
        (['a', 'b'], ['hidden.0', 'hidden.1', 'hidden.2'])
    """
    from delayed_image import FusedChannelSpec
    return list(FusedChannelSpec.coerce(spec).as_list())


def list_files(record):
    """
    Return what a record says of each file of its image.

    The mean is told in the record itself, and layers beside it, so that records
    without layers read as they always did.

    Args:
        record (dict): of a journal, see :func:`~cocoseg.coco.finalize.finish_image`.

    Returns:
        list[dict]: ``asset`` (the kwcoco entry), ``nbytes`` and ``checksum``.

    Example:
        >>> record = {'image_id': 1, 'asset': {'channels': 'a'}, 'layers': [
        ...     {'asset': {'channels': 'a_mask'}}]}
        >>> [file['asset']['channels'] for file in list_files(record)]
        ['a', 'a_mask']
    """
    main = [] if record.get('asset') is None else [record]
    return [*main, *(record.get('layers') or ())]


def _list_assets(record):
    """Return the kwcoco entries of a record, and their channels."""
    assets = [file['asset'] for file in list_files(record)]
    return assets, [channel for asset in assets for channel in list_channels(asset['channels'])]


def asset_key(img):
    """
    Return the list where an image keeps its assets.

    An image must not hold both: kwcoco reads ``auxiliary`` first and would
    hide every asset in ``assets``. Null counts as absent.

    Example:
        >>> asset_key({'assets': [{}], 'auxiliary': None}), asset_key({'auxiliary': [{}]})
        ('assets', 'auxiliary')
        >>> asset_key({'file_name': 'rgb.png'})
        'auxiliary'
    """
    if img.get('assets') is not None and not img.get('auxiliary'):
        return 'assets'
    return 'auxiliary'


class Manifest:
    """
    A kwcoco dataset with a lock, and the names and channels promised so far.

    Get one from :func:`get_manifest`; do not make a second for a dataset.

    Thread-safety: all methods may be called from any thread; :meth:`dump` not
    by one that holds the lock.

    Attributes:
        lock (RLock): held by whoever reads several things, or changes any.
    """

    clock = staticmethod(time.monotonic)

    def __init__(self, dset):
        # The dictionary of manifests must not keep its own keys alive.
        self._dset = weakref.ref(dset)
        self.lock = threading.RLock()
        # Taken before the lock, and kept while the file is flushed, when others go on.
        self._dump_lock = threading.Lock()
        self._last_dump = None
        self._stems = None
        self._owners, self._given = {}, {}
        self._claims = {}

    @property
    def dset(self):
        """The kwcoco dataset."""
        return self._dset()

    @property
    def fpath(self):
        """Absolute path of the manifest file."""
        return os.path.abspath(os.fspath(self.dset.fpath))

    @property
    def bundle_dpath(self):
        """Absolute folder of the manifest file."""
        return os.path.dirname(self.fpath)

    def get_image(self, image_id):
        """
        Return the image dictionary.

        Raises:
            UnknownImageError: if there is no such image.
        """
        images = self.dset.index.imgs
        if image_id not in images:
            known = list(images)[:5]
            raise UnknownImageError(f'no image has id {image_id!r}; the manifest has '
                                    f'{len(images)} images, with ids like {known}')
        return images[image_id]

    def get_video(self, img):
        """Return the video dictionary of an image, or None."""
        video_id = img.get('video_id')
        return None if video_id is None else self.dset.index.videos.get(video_id)

    # ---- promises ----------------------------------------------------------

    def reserve_file(self, image_id, chan_code, folder, suffix, ext):
        """
        Return a file path (absolute) that no other asset of the dataset uses.

        The same image and channels get the same path again.
        """
        owner = (image_id, chan_code)
        with self.lock:
            if owner in self._given:
                return self._given[owner]
            images = self.dset.index.imgs
            if self._stems is None or image_id not in self._stems:
                self._stems = compute_stems(images)
                self._owners.update(self._existing_owners())
            stem = self._stems[image_id]
            fpath = os.path.join(folder, f'{stem}_{suffix}{ext}')
            if self._owners.setdefault(fpath.casefold(), owner) != owner:
                # 'a' + '_b_c' and 'a_b' + '_c' are the same name.
                fpath = os.path.join(folder, f'{stem}_id{image_id}_{suffix}{ext}')
                if self._owners.setdefault(fpath.casefold(), owner) != owner:
                    raise ManifestError(f'{fpath} already belongs to image and channels '
                                        f'{self._owners[fpath.casefold()]}; use another short_code')
            return fpath

    def give_files(self, image_id, fpaths):
        """
        Let the files of an image be those that the manifest of all images reserved.

        Args:
            image_id (int): of kwcoco.
            fpaths (dict[str, str]): absolute path by channels.
        """
        with self.lock:
            self._given.update({(image_id, code): fpath for code, fpath in fpaths.items()})

    def _existing_owners(self):
        owners = {}
        for image_id, img in self.dset.index.imgs.items():
            for asset in _iter_assets(img):
                if asset.get('file_name'):
                    fpath = os.path.abspath(os.path.join(self.bundle_dpath, asset['file_name']))
                    owners.setdefault(fpath.casefold(), (image_id, asset.get('channels')))
        return owners

    def claim_channels(self, image_id, channels, owner, replace=False):
        """
        Promise that ``owner`` will add these channels to an image.

        Raises:
            ChannelCollisionError: if the image has one of them already, or
                another owner promised it.
        """
        with self.lock:
            self._find_replaced(self.get_image(image_id), channels, replace)
            for channel in channels:
                other = self._claims.get((image_id, channel))
                if other is not None and other() not in (None, owner):
                    raise ChannelCollisionError(
                        f'channel {channel!r} of image {image_id} is being predicted by '
                        'another manager; give each manager its own channels (those of layers '
                        'by a dict, layers={layer: channels})')
            for channel in channels:
                self._claims[image_id, channel] = weakref.ref(owner)

    def release_channels(self, image_id, channels):
        """Take the promise of :meth:`claim_channels` back."""
        with self.lock:
            for channel in channels:
                self._claims.pop((image_id, channel), None)

    def _find_replaced(self, img, channels, replace):
        """Return the assets that hold these channels; raise if they may not go."""
        wanted, found = set(channels), []
        for asset in _iter_assets(img):
            present = set(list_channels(asset['channels'])) if asset.get('channels') else set()
            if not present & wanted:
                continue
            if not replace or asset is img or not present <= wanted:
                raise ChannelCollisionError(
                    f'image {img["id"]} already has {sorted(present & wanted)} in '
                    f'{asset.get("file_name")!r}; predict other channels, or pass '
                    "on_collision='replace' where the whole asset may go")
            found.append(asset)
        return found

    def holds(self, record):
        """
        Return True if a record is registered already, with all that it says.

        A file of the same name may have been made with another code.
        """
        with self.lock:
            img = self.get_image(record['image_id'])
            assets, _ = _list_assets(record)
            told = img.get('has_predictions') or {}
            return (all(any(_is_same(old, new) and _says(old, new) for old in _iter_assets(img))
                        for new in assets)
                    and len(self._find_annotations(record)) >= len(record.get('annotations', ()))
                    and set(record.get('has_predictions', ())) <= set(told))

    def _find_annotations(self, record):
        """Return the ids of annotations that a record made."""
        def describe(annotation, category):
            return (category, tuple(annotation['bbox']), annotation.get('score'),
                    annotation.get('segment_id'))
        wanted = {describe(new, new['category']) for new in record.get('annotations', ())}
        names = {category_id: cat['name'] for category_id, cat in self.dset.cats.items()}
        return [old['id'] for old in self.dset.annots(image_id=record['image_id']).objs
                if describe(old, names.get(old.get('category_id'))) in wanted] if wanted else []

    def retract(self, record):
        """Take what a record registered out of the manifest, if it is there."""
        with self.lock:
            img, (assets, _) = self.get_image(record['image_id']), _list_assets(record)
            for key in ('assets', 'auxiliary'):
                if img.get(key):
                    img[key] = [old for old in img[key]
                                if not any(_is_same(old, asset) for asset in assets)]
            self._retract_attrs(img, record, assets)
            self.dset.remove_annotations(self._find_annotations(record))
            self.dset._invalidate_hashid()

    @staticmethod
    def _retract_attrs(img, record, assets):
        told = img.get('has_predictions') or {}
        codes = {*(asset['channels'] for asset in assets), *record.get('has_predictions', ())}
        if not codes & set(told):
            return
        img['has_predictions'] = {code: value for code, value in told.items() if code not in codes}
        if not img['has_predictions']:
            # With other predictions, what was covered cannot be told apart.
            del img['has_predictions']
            if record.get('region') is not None:
                img.pop('prediction_region', None)

    # ---- changes -----------------------------------------------------------

    def commit(self, record, replace=False):
        """
        Register the finished assets of an image and what belongs to them.

        Args:
            record (dict): ``image_id``, and optionally ``asset``, ``layers``
                (see :func:`list_files`), ``region``, ``has_predictions``,
                ``annotations`` (with category names).
            replace (bool): drop existing assets with these channels.

        Raises:
            ChannelCollisionError: if the channels are taken.
            UnknownImageError: if the image is gone.
        """
        with self.lock:
            img = self.get_image(record['image_id'])
            changes = self._prepare(img, record, replace)
            self._add_annotations(img['id'], record.get('annotations', ()))
            img.update(changes)
            if img.get('assets') and not img.get('auxiliary', True):
                # kwcoco reads the empty list, and would hide every asset.
                del img['auxiliary']
            self.dset._invalidate_hashid()
            self.release_channels(img['id'], _list_assets(record)[1])

    def _prepare(self, img, record, replace):
        changes = {}
        assets, channels = _list_assets(record)
        if assets:
            replaced = self._find_replaced(img, channels, replace)
            key = asset_key(img)
            keep = [old for old in (img.get(key) or [])
                    if not any(old is gone for gone in replaced)]
            changes[key] = [*keep, *map(dict, assets)]
            for other in {'assets', 'auxiliary'} - {key}:
                if img.get(other) and replaced:
                    changes[other] = [old for old in img[other]
                                      if not any(old is gone for gone in replaced)]
        if record.get('region') is not None:
            changes['prediction_region'] = merge_regions(img.get('prediction_region'),
                                                         record['region'])
        if record.get('has_predictions'):
            changes['has_predictions'] = {**(img.get('has_predictions') or {}),
                                          **record['has_predictions']}
        return changes

    def _add_annotations(self, image_id, annotations):
        """Add all annotations with their categories, or none."""
        dset = self.dset
        known = set(dset.index.cats)
        added = []
        try:
            for annotation in annotations:
                fields = dict(annotation)
                category_id = dset.ensure_category(fields.pop('category'))
                added.append(dset.add_annotation(image_id=image_id, category_id=category_id,
                                                 **fields))
        except BaseException:
            dset.remove_annotations(added)
            dset.remove_categories(set(dset.index.cats) - known, keep_annots=True)
            raise

    def dump(self, fpath=None):
        """
        Write the manifest so that a reader sees the old file or the new one.

        Args:
            fpath (PathLike | None): where; default the dataset's ``fpath``.
        """
        with self._dump_lock:
            self._save(fpath)

    def dump_if_due(self, interval, since):
        """
        Dump unless that was done lately, or another thread is about it.

        Waits for at least 20 times as long as the last dump took, so that
        saving takes at most 5 % of the time.

        Args:
            interval (float): seconds since the end of the last dump.
            since (float): when the run began, by :attr:`clock`.

        Returns:
            bool: True if the manifest was saved.

        Raises:
            OSError: as :meth:`dump`; the next try waits as after a dump.
        """
        if not self._dump_lock.acquire(blocking=False):
            return False
        try:
            due = since + interval
            if self._last_dump is not None:
                ended, seconds = self._last_dump
                due = max(due, ended + max(interval, _PAUSE * seconds))
            if self.clock() < due:
                return False
            self._save()
            return True
        finally:
            self._dump_lock.release()

    def _save(self, fpath=None):
        from cocoseg.io.commit import atomic_write
        is_own = fpath is None
        fpath = self.fpath if is_own else os.path.abspath(os.fspath(fpath))
        began = self.clock()
        try:
            os.makedirs(os.path.dirname(fpath), exist_ok=True)
            is_zip = fpath.endswith('.zip')
            # Not by its path, beside which kwcoco would make a temporary of its own.
            mode, encoding = ('wb', None) if is_zip else ('w', 'utf8')
            with atomic_write(fpath) as temporary, open(
                    temporary, mode, encoding=encoding) as file, self.lock:
                self.dset.dump(file, compress=is_zip)
        finally:
            if is_own:
                ended = self.clock()
                self._last_dump = (ended, ended - began)


def _is_same(old, new):
    """Return True if two entries are of one file with the same channels."""
    return old.get('file_name') == new['file_name'] and old.get('channels') == new['channels']


def _says(old, new):
    """
    Return True if an entry has all fields of another, as JSON tells them.

    Example:
        >>> _says({'a': (1, 2), 'id': 7}, {'a': [1, 2]}), _says({'a': 1}, {'a': 2})
        (True, False)
    """
    old, new = ({key: json.dumps(entry.get(key), sort_keys=True, default=repr) for key in new}
                for entry in (old, new))
    return old == new


def _iter_assets(img):
    """Yield the image itself if it is a file, then the assets of both lists."""
    if img.get('file_name'):
        yield img
    yield from img.get('assets') or ()
    yield from img.get('auxiliary') or ()
