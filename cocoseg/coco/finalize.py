"""
Finish one image: from its stitcher to a file on disk and a record.

Runs on a writer thread. Nothing here touches the manifest: the record that is
returned holds all that the manifest will be told, so that a journal line and
a live run take the same path.
"""
from __future__ import annotations

import json
import os

import numpy as np

from cocoseg.coco.geometry import (compute_region, concise_affine, georeference,
                                   region_to_geojson)
from cocoseg.coco.journal import compute_checksum


def finish_image(job):
    """
    Write the asset of one image and describe it.

    Args:
        job (ImageJob): what to write, and where.

    Returns:
        tuple[dict, dict]: the record for the manifest, and the figures for
        the caller (``n_anns``, ``total_prob``, ``n_clipped``, ``n_invalid``,
        ``file_name``).

    Raises:
        OSError: if the file cannot be written; nothing is visible then.
    """
    options, stitcher = job.options, job.stitcher
    stitcher.seal()
    codec = _choose_codec(options, stitcher)
    info = {'n_anns': 0, 'total_prob': 0.0, 'n_clipped': 0,
            'n_invalid': stitcher.n_invalid, 'file_name': None}
    record = {'image_id': job.image_id, 'image_name': job.img.get('name')}
    if options.write_probs:
        data, info['n_clipped'], info['total_prob'] = _render(options, stitcher, codec)
        record['asset'] = _write_asset(job, data, codec)
        record['nbytes'] = os.path.getsize(job.fpath)
        record['checksum'] = compute_checksum(job.fpath)
        info['file_name'] = record['asset']['file_name']
    if options.write_prediction_attrs:
        region = compute_region(stitcher.received, job.warp_img_from_asset, job.img)
        record['region'] = region_to_geojson(region)
        record['has_predictions'] = {options.chan_code: True}
    if options.write_preds:
        record['annotations'] = list(_iter_annotations(job))
        info['n_anns'] = len(record['annotations'])
    return record, info


def _choose_codec(options, stitcher):
    """Return the code of this image, or None for float files."""
    from cocoseg.stitch.quantize import Quantization, compute_range
    from cocoseg.stitch.soft import iter_strips
    if not options.quantize:
        return None
    minmax = options.expected_minmax
    if minmax is None:
        weights = stitcher.weights
        ranges = [compute_range(stitcher.read(strip)) for strip in iter_strips(stitcher.shape)
                  if weights[strip.slices].any()]
        minmax = (min(low for low, _ in ranges), max(high for _, high in ranges)) \
            if ranges else (0, 1)
    return Quantization(*minmax, dtype=options.quantize_dtype, orig_dtype=options.dtype)


def _render(options, stitcher, codec):
    """Return the whole image as the file will hold it, clipped count, and sum."""
    from cocoseg.stitch.soft import iter_strips
    n_clipped, total = 0, 0.0
    data = np.empty(stitcher.shape, options.dtype if codec is None else codec.dtype)
    for strip in iter_strips(stitcher.shape):
        part = data[strip.slices]
        if codec is None:
            part[...] = stitcher.read(strip)
            if options.expected_minmax is not None:
                low, high = options.expected_minmax
                # The rounding of a mean is no clipping worth a warning.
                slack = 1e-6 * (high - low)
                n_clipped += int(((part < low - slack) | (part > high + slack)).sum())
                np.clip(part, low, high, out=part)
            total += float(np.nansum(part, dtype=np.float64))
        else:
            _, clipped, part_total = stitcher.encode(codec, strip, out=part)
            n_clipped, total = n_clipped + clipped, total + part_total
    return data, n_clipped, total


def _write_asset(job, data, codec):
    """Write the file and return its kwcoco entry."""
    from cocoseg.io.images import write_image
    options = job.options
    os.makedirs(os.path.dirname(job.fpath), exist_ok=True)
    quantization = None if codec is None else codec.as_dict()
    details = {}
    if options.prob_format != 'png':
        crs, transform = georeference(job.img, job.warp_img_from_asset, job.bundle_dpath)
        scale, offset = (None, None) if codec is None else codec.scale_offset
        details = dict(
            nodata=np.nan if codec is None else codec.nodata, crs=crs, transform=transform,
            compress=options.prob_compress, blocksize=options.prob_blocksize,
            channels=options.channels, scale=scale, offset=offset,
            metadata={'channels': options.chan_code, 'quantization': json.dumps(quantization)})
    write_image(job.fpath, data, fmt=options.prob_format, **details)
    height, width, n_bands = data.shape
    entry = {
        'file_name': os.path.relpath(job.fpath, job.bundle_dpath),
        'channels': options.chan_code,
        'height': height, 'width': width, 'num_bands': n_bands,
        'warp_aux_to_img': concise_affine(job.warp_img_from_asset),
    }
    if quantization is not None:
        entry['quantization'] = quantization
    return entry


def _iter_annotations(job):
    """Yield scored polygons of the thresholded channels, in image space."""
    import kwimage
    from scipy import ndimage

    from cocoseg.io.polygonize import polygonize_labels
    from cocoseg.stitch.soft import iter_strips
    stitcher, options = job.stitcher, job.options
    for category, band in options.polygon_bands:
        plane = np.empty(stitcher.shape[:2], options.dtype)
        for strip in iter_strips(stitcher.shape):
            plane[strip.slices] = stitcher.read(strip)[..., band]
        # NaN compares false: pixels without data are in no polygon.
        labels, n_labels = ndimage.label(plane > options.thresh)
        scores = ndimage.mean(plane, labels, index=np.arange(1, n_labels + 1))
        for label, polygon in polygonize_labels(labels.astype(np.int32)):
            shape = kwimage.Polygon.from_shapely(polygon).warp(job.warp_img_from_asset)
            yield {'category': category, 'score': float(scores[label - 1]),
                   'bbox': [float(part) for part in shape.box().to_xywh().data],
                   'segmentation': shape.to_coco(style='new')}
