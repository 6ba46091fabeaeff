"""
Take over what an earlier run finished: the journal, held against the files.
"""
from __future__ import annotations

import logging
import os

from cocoseg.coco.journal import compute_checksum

logger = logging.getLogger(__name__)


def iter_finished(journal, manifest):
    """
    Yield the journal's records that belong to this dataset.

    Args:
        journal (Journal): of the earlier run.
        manifest (Manifest): the dataset of this run.

    Yields:
        tuple[dict, str | None, str | None]: the latest record of an image, the
        path of its asset, and what is wrong with that file, if anything.

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
        fpath = problem = None
        if 'asset' in record:
            fpath = os.path.join(manifest.bundle_dpath, record['asset']['file_name'])
            problem = find_problem(fpath, record)
        yield record, fpath, problem


def find_problem(fpath, record):
    """
    Return what is wrong with a finished file, or None.

    It was verified before it got its name, so it is whole if no byte changed.
    """
    if not os.path.exists(fpath):
        return 'the file is gone'
    nbytes = os.path.getsize(fpath)
    if nbytes != record['nbytes']:
        return f'it has {nbytes} bytes, not {record["nbytes"]}'
    if compute_checksum(fpath) != record['checksum']:
        return 'its bytes have changed'
    return None
