"""
Finish one image: from its stitcher to files on disk and a record.

Runs on a writer thread. Nothing here touches the manifest: the record that is
returned holds all that the manifest will be told, so that a journal line and
a live run take the same path.
"""
from __future__ import annotations

import json
import logging
import os
from contextlib import ExitStack, contextmanager

from cocoseg.coco.annotations import iter_annotations
from cocoseg.coco.geometry import (compute_region, concise_affine, georeference,
                                   region_to_geojson)
from cocoseg.coco.journal import compute_checksum
from cocoseg.errors import AssetWriteError, OptionError
from cocoseg.io.commit import atomic_write

logger = logging.getLogger(__name__)


def finish_image(job):
    """
    Write all assets of one image and describe them.

    Args:
        job (ImageJob): what to write, and where.

    Returns:
        tuple[dict, dict]: the record for the manifest, and the figures for
        the caller (``n_anns``, ``total_prob``, ``n_clipped``, ``file_name``,
        ``layers``, and those of its pixels).

    Raises:
        OSError: if a file cannot be written; none is visible then.
    """
    options, stitcher = job.options, job.stitcher
    job.pixels.settle()
    info = {'n_anns': 0, 'total_prob': 0.0, 'n_clipped': 0, **job.pixels.figures,
            'file_name': None, 'layers': {}}
    record = {'image_id': job.image_id, 'image_name': job.img.get('name')}
    files = _write_files(job, info)
    if options.write_probs:
        record.update(files.pop(0))
    if files:
        record['layers'] = files
    if options.write_prediction_attrs:
        region = compute_region(stitcher.received, job.warp_img_from_asset, job.img)
        record['region'] = region_to_geojson(region)
        record['has_predictions'] = {options.chan_code: True}
    if options.write_preds:
        record['annotations'] = list(iter_annotations(job))
        info['n_anns'] = len(record['annotations'])
    return record, info


def _write_files(job, info):
    """Write all files, then name them; return what the journal says of each."""
    specs, files = job.options.assets, []
    place = (None, None)
    if specs:
        os.makedirs(os.path.dirname(job.fpath), exist_ok=True)
    if specs and job.options.prob_format != 'png':
        place = _find_place(job)
    with _stage(job.fpaths) as staged:
        for spec, fpath, temp in zip(specs, job.fpaths, staged):
            # One raster at a time is in memory.
            rendering = job.pixels.render(spec.layer)
            with _naming(job, fpath, temp):
                _write_asset(job, spec, rendering, temp, place)
                files.append({'asset': _make_entry(job, spec, rendering, fpath),
                              'nbytes': os.path.getsize(temp),
                              'checksum': compute_checksum(temp)})
            if spec.layer is None:
                info.update(n_clipped=rendering.n_clipped, total_prob=rendering.total,
                            file_name=files[-1]['asset']['file_name'])
            else:
                info['layers'][spec.name] = files[-1]['asset']['file_name']
            del rendering
    return files


def _find_place(job):
    """Return coordinate system and transform of an asset, as far as a TIFF can hold them."""
    from cocoseg.io.template import check_crs
    crs, transform = georeference(job.img, job.warp_img_from_asset, job.bundle_dpath)
    try:
        check_crs(crs)
    except OptionError as ex:
        # Predictions without it are worth more than none.
        logger.warning('image %s: %s; its assets have no coordinate system', job.image_id, ex)
        return None, transform
    return crs, transform


@contextmanager
def _stage(fpaths):
    """
    Yield where to write each file; at the end, all of them get their names.

    One file is atomic by itself. Several are written whole under temporary
    names before the first is renamed, so that files of an earlier run stay if
    one of them fails.
    """
    if len(fpaths) <= 1:
        yield fpaths
        return
    with ExitStack() as stack:
        yield [stack.enter_context(atomic_write(fpath)) for fpath in fpaths]


@contextmanager
def _naming(job, fpath, temp):
    """Let errors of writing a temporary file name the file that it was to be."""
    try:
        yield
    except OSError as ex:
        if temp == fpath:
            raise
        message = str(ex).replace(os.fspath(temp), fpath)
        raise AssetWriteError(message, job.image_id, fpath) from ex


def _write_asset(job, spec, rendering, fpath, place):
    """Write one file."""
    from cocoseg.io.cog import write_encoded
    from cocoseg.io.dataset import RasterMeta
    from cocoseg.io.images import write_image
    options = job.options
    if options.prob_format == 'png':
        write_image(fpath, rendering.data, fmt='png')
        return
    facts = _describe(spec, rendering, place)
    if rendering.encoder is not None:
        meta = RasterMeta.coerce(rendering.dtype, rendering.shape[2], **facts)
        write_encoded(fpath, rendering.encoder, meta)
        return
    layout = {'compress': options.prob_compress, 'blocksize': options.prob_blocksize}
    if options.prob_format == 'cog':
        layout['overviews'] = spec.overviews
    write_image(fpath, rendering.data, fmt=options.prob_format, **facts, **layout)


def _describe(spec, rendering, place):
    """Return what a TIFF says about its pixels."""
    codec = rendering.codec
    scale, offset = (None, None) if codec is None else codec.scale_offset
    metadata = {'channels': spec.chan_code,
                'quantization': json.dumps(None if codec is None else codec.as_dict())}
    if spec.categories is not None:
        metadata['categories'] = json.dumps(spec.categories)
    return {'nodata': rendering.nodata, 'crs': place[0], 'transform': place[1],
            'channels': spec.channels, 'scale': scale, 'offset': offset, 'metadata': metadata}


def _make_entry(job, spec, rendering, fpath):
    """Return the kwcoco entry of a file."""
    height, width, n_bands = rendering.shape
    entry = {
        'file_name': os.path.relpath(fpath, job.bundle_dpath),
        'channels': spec.chan_code,
        'height': height, 'width': width, 'num_bands': n_bands,
        'warp_aux_to_img': concise_affine(job.warp_img_from_asset),
    }
    if rendering.codec is not None:
        entry['quantization'] = rendering.codec.as_dict()
    elif rendering.dtype.kind in 'iu':
        # A png has no other place for it.
        entry['nodata'] = int(rendering.nodata)
    if spec.categories is not None:
        entry['categories'] = list(spec.categories)
    return entry
