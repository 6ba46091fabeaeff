"""
Take over what an earlier run finished: the journal, held against the files.
"""
from __future__ import annotations

import logging
import os

from cocoseg.coco.journal import compute_checksum
from cocoseg.errors import CogError

logger = logging.getLogger(__name__)


def iter_finished(journal, manifest, options):
    """
    Yield the journal's records whose asset is still whole.

    Args:
        journal (Journal): of the earlier run.
        manifest (Manifest): the dataset of this run.
        options (AssetOptions): settings of this run.

    Yields:
        tuple[dict, str | None]: the latest record of an image, and the path
        of its asset.

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
        fpath = None
        if 'asset' in record:
            fpath = os.path.join(manifest.bundle_dpath, record['asset']['file_name'])
            problem = find_problem(fpath, record, options)
            if problem:
                logger.warning('%s is redone: %s', fpath, problem)
                continue
        yield record, fpath


def find_problem(fpath, record, options):
    """
    Return what is wrong with a finished file, or None.

    The structure of a COG is checked tile by tile; other files are compared
    with their checksum.
    """
    from cocoseg.io.verify import verify_cog
    if not os.path.exists(fpath):
        return 'the file is gone'
    nbytes = os.path.getsize(fpath)
    if nbytes != record['nbytes']:
        return f'it has {nbytes} bytes, not {record["nbytes"]}'
    if options.prob_format != 'cog':
        return None if compute_checksum(fpath) == record['checksum'] else 'its checksum differs'
    try:
        verify_cog(fpath)
    except CogError as ex:
        return str(ex)
    return None
