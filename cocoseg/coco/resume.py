"""
Begin a run: its folder, and what an earlier run finished there.

The journal is held against the files; what is whole is taken over.
"""
from __future__ import annotations

import logging
import os
import weakref

from cocoseg.coco.journal import compute_checksum
from cocoseg.coco.lifecycle import ImageState
from cocoseg.coco.manifest import list_files
from cocoseg.errors import AssetWriteError, CogError

logger = logging.getLogger(__name__)


def make_folder(manifest, options):
    """
    Return the folder for assets, made and without leftovers of killed runs.

    Args:
        manifest (Manifest): of the bundle.
        options (AssetOptions): name the folder.

    Raises:
        AssetWriteError: if it cannot be made.
    """
    from cocoseg.io.commit import sweep_temporaries
    folder = os.path.normpath(os.path.join(
        manifest.bundle_dpath, options.assets_dname, options.short_code or ''))
    try:
        os.makedirs(folder, exist_ok=True)
        sweep_temporaries(folder)
        # A manifest that was being dumped.
        sweep_temporaries(manifest.bundle_dpath)
    except OSError as ex:
        raise AssetWriteError(f'cannot use the asset folder {folder}: {ex}; choose a '
                              'writable bundle', path=folder) from ex
    return folder


def make_busy(table):
    """
    Return a function that says whether images are in work, which keeps nothing alive.

    Args:
        table (JobTable): of the images.
    """
    ref = weakref.ref(table)

    def is_busy():
        table = ref()
        return table is not None and bool(table.jobs_in(*ImageState))
    return is_busy


def begin_run(journal, manifest, table, dumper, resume):
    """
    Take the journal, and take over what is finished.

    Args:
        journal (Journal): of this run.
        manifest (Manifest): told of finished images that it does not know.
        table (JobTable): told which images are done.
        dumper (IntervalDumper): saves the manifest if it named a file that is
            not whole.
        resume (bool): go on after an earlier run; False forgets it.

    Raises:
        BundleBusyError: if somebody else has the journal.
        ResumeError: if the earlier run had other settings.
        AssetWriteError: if the journal cannot be locked or cleared.
        OSError: if the manifest cannot be saved.
    """
    try:
        records = journal.begin(resume)
    except OSError as ex:
        raise AssetWriteError(f'cannot use the journal {journal.fpath}: {ex}; choose a writable '
                              'bundle', path=journal.fpath) from ex
    try:
        is_cog = table.options.prob_format == 'cog'
        has_lost = False
        for record, fpath, problem in iter_finished(records, manifest, is_cog):
            if problem:
                logger.warning('%s is redone: %s', fpath, problem)
                manifest.retract(record)
                has_lost = True
                continue
            if not manifest.holds(record):
                manifest.retract(record)
                manifest.commit(record, replace=True)
            table.take_over(record['image_id'], fpath)
        if has_lost:
            dumper.save_now()
    except BaseException:
        journal.close()
        raise


def iter_finished(records, manifest, is_cog=False):
    """
    Yield the records of a journal that belong to this dataset.

    Args:
        records (list[dict]): of the earlier run, oldest first.
        manifest (Manifest): the dataset of this run.
        is_cog (bool): files have to be Cloud-Optimized GeoTIFFs.

    Yields:
        tuple[dict, str | None, str | None]: the latest record of an image, the
        path of its (first) file, and what is wrong with that, if anything: if
        one file of an image is lost, it is another image for all of them.
    """
    latest = {record['image_id']: record for record in records}
    images = manifest.dset.index.imgs
    for image_id, record in latest.items():
        img = images.get(image_id)
        if img is None or img.get('name') != record.get('image_name'):
            logger.warning('image %s of the journal is another one now; it is redone', image_id)
            continue
        checked = [(fpath, find_problem(fpath, file, is_cog)) for fpath, file in (
            (os.path.join(manifest.bundle_dpath, file['asset']['file_name']), file)
            for file in list_files(record))] or [(None, None)]
        fpath, problem = next((found for found in checked if found[1]), checked[0])
        yield record, fpath, problem


def find_problem(fpath, record, is_cog=False):
    """
    Return what is wrong with a finished file, or None.

    It was verified before it got its name, so it is whole if no byte changed.

    Args:
        fpath (str): the file.
        record (dict): ``nbytes`` and ``checksum`` that it had.
        is_cog (bool): also read its structure again.

    Example:
        >>> import ubelt as ub
        >>> fpath = ub.Path.appdir('cocoseg/doctest').ensuredir() / 'whole.txt'
        >>> fpath.write_text('123456789') and find_problem(
        ...     fpath, {'nbytes': 9, 'checksum': 'cbf43926'})
        >>> find_problem(fpath, {'nbytes': 8, 'checksum': 'cbf43926'})
        'it has 9 bytes, not 8'
    """
    if not os.path.isfile(fpath):
        return 'the file is gone'
    nbytes = os.path.getsize(fpath)
    if nbytes != record['nbytes']:
        return f'it has {nbytes} bytes, not {record["nbytes"]}'
    if compute_checksum(fpath) != record['checksum']:
        return 'its bytes have changed'
    if is_cog:
        from cocoseg.io.verify import verify_cog
        try:
            verify_cog(fpath)
        except CogError as ex:
            return str(ex)
    return None
