"""
Polygons of what was predicted, as annotations of an image.
"""
from __future__ import annotations

import numpy as np


def iter_annotations(job):
    """
    Yield the annotations of an image, with category names, in image space.

    Args:
        job (ImageJob): settled.

    Yields:
        dict: of values, one per connected region above the threshold, with
        its ``score``; of labels, one per segment, with its ``segment_id``.
    """
    return _iter_segments(job) if job.options.kind == 'labels' else _iter_regions(job)


def _iter_regions(job):
    """Yield scored polygons of the thresholded channels."""
    import kwimage
    from scipy import ndimage

    from cocoseg.io.polygonize import polygonize_labels
    limit = job.pixels.get_limit(job.options.thresh)
    for category, band in job.options.polygon_bands:
        plane = job.pixels.read_plane(band)
        # NaN compares false: pixels without data are in no polygon.
        labels, n_labels = ndimage.label(plane > limit)
        scores = ndimage.mean(plane, labels, index=np.arange(1, n_labels + 1))
        for label, polygon in polygonize_labels(labels.astype(np.int32)):
            shape = kwimage.Polygon.from_shapely(polygon).warp(job.warp_img_from_asset)
            yield {'category': category, 'score': float(scores[label - 1]),
                   **_describe(shape)}


def _iter_segments(job):
    """Yield the outline of each segment, by id; one of several parts is one annotation."""
    import kwimage
    import shapely

    from cocoseg.io.polygonize import polygonize_labels
    parts = {}
    # No image has 2^31 segments to be made polygons of.
    for label, polygon in polygonize_labels(job.pixels.read_labels().astype(np.int32)):
        parts.setdefault(label, []).append(polygon)
    for category, _ in job.options.polygon_bands:
        for label in sorted(parts):
            polygons = parts[label]
            shape = (kwimage.Polygon.from_shapely(polygons[0]) if len(polygons) == 1 else
                     kwimage.MultiPolygon.from_shapely(shapely.MultiPolygon(polygons)))
            yield {'category': category, 'segment_id': int(label),
                   **_describe(shape.warp(job.warp_img_from_asset))}


def _describe(shape):
    """Return the box and the outline of a polygon, or of several, as kwcoco has them."""
    return {'bbox': [float(part) for part in shape.box().to_xywh().data],
            'segmentation': shape.to_coco(style='new')}
