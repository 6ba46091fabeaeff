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
    """Yield the outline of each segment, by id."""
    # No image has 2^31 segments to be made polygons of.
    outlines = list(outline_labels(job.pixels.read_labels().astype(np.int32),
                                   job.warp_img_from_asset))
    for category, _ in job.options.polygon_bands:
        for label, outline in outlines:
            yield {'category': category, 'segment_id': label, **outline}


def outline_labels(labels, warp_img_from_asset):
    """
    Yield the outline of each label, by id; one of several parts is one.

    Args:
        labels (ndarray | str): int32 (H, W), 0 is background, or a file.
        warp_img_from_asset (kwimage.Affine): asset to image.

    Yields:
        tuple[int, dict]: id, and ``bbox`` and ``segmentation`` of an
        annotation, in image space.

    Example:
        >>> import kwimage
        >>> labels = np.array([[4, 4, 0], [0, 0, 2]], np.int32)
        >>> for label, outline in outline_labels(labels, kwimage.Affine.scale(2)):
        ...     print(label, outline['bbox'])
        2 [4.0, 2.0, 2.0, 2.0]
        4 [0.0, 0.0, 4.0, 2.0]
    """
    import kwimage
    import shapely

    from cocoseg.io.polygonize import polygonize_labels
    parts = {}
    for label, polygon in polygonize_labels(labels):
        parts.setdefault(int(label), []).append(polygon)
    for label in sorted(parts):
        polygons = parts[label]
        shape = (kwimage.Polygon.from_shapely(polygons[0]) if len(polygons) == 1 else
                 kwimage.MultiPolygon.from_shapely(shapely.MultiPolygon(polygons)))
        yield label, _describe(shape.warp(warp_img_from_asset))


def _describe(shape):
    """Return the box and the outline of a polygon, or of several, as kwcoco has them."""
    return {'bbox': [float(part) for part in shape.box().to_xywh().data],
            'segmentation': shape.to_coco(style='new')}
