"""
Take over what an earlier run finished: the journal, held against the files.
"""
from __future__ import annotations

import logging
import os

from cocoseg.coco.journal import compute_checksum
from cocoseg.coco.manifest import list_files

logger = logging.getLogger(__name__)


def iter_finished(journal, manifest):
    """
    Yield the journal's records that belong to this dataset.

    Args:
        journal (Journal): of the earlier run.
        manifest (Manifest): the dataset of this run.

    Yields:
        tuple[dict, str | None, str | None]: the latest record of an image, the
        path of its (first) file, and what is wrong with that, if anything: if
        one file of an image is lost, it is another image for all of them.

    Raises:
        ResumeError: if the journal was written with other settings.
    """
    latest = {record['image_id']: record for record in journal.read()}
    images = manifest.dset.index.imgs
    for image_id, record in latest.items():
        img = images.get(image_id)
        if img is None or img.get('name') != record.get('image_name'):
            logger.warning('image %s of the journal is another one now; it is redone', image_id)
            continue
        checked = [(fpath, find_problem(fpath, file)) for fpath, file in (
            (os.path.join(manifest.bundle_dpath, file['asset']['file_name']), file)
            for file in list_files(record))] or [(None, None)]
        fpath, problem = next((found for found in checked if found[1]), checked[0])
        yield record, fpath, problem


def find_problem(fpath, record):
    """
    Return what is wrong with a finished file, or None.

    It was verified before it got its name, so it is whole if no byte changed.

    Args:
        fpath (str): the file.
        record (dict): ``nbytes`` and ``checksum`` that it had.
    """
    if not os.path.exists(fpath):
        return 'the file is gone'
    nbytes = os.path.getsize(fpath)
    if nbytes != record['nbytes']:
        return f'it has {nbytes} bytes, not {record["nbytes"]}'
    if compute_checksum(fpath) != record['checksum']:
        return 'its bytes have changed'
    return None
