"""
Plain numpy models of the statistics of segments, which tests compare with.

Test files import it as ``from .segment_models import …``.
"""
import numpy as np

NAMES = ('count', 'min', 'max', 'mean', 'std', 'median', 'mode', 'p0', 'p10', 'p100', 'p33.3')
SHAPES = ('area', 'bbox', 'centroid', 'perimeter', 'n_edge_pixels', 'n_edge_pixels:4')


def model_value(values, name):
    """Return one statistic of the valid values of a segment."""
    if name == 'count':
        return len(values)
    if len(values) == 0:
        return np.nan
    if name == 'mode':
        found, counts = np.unique(values, return_counts=True)
        return found[counts.argmax()]
    if name == 'median':
        name = 'p50'
    if name.startswith('p'):
        # The least value up to which there are enough.
        found = np.sort(values)
        enough = np.arange(1, len(found) + 1) >= len(found) * float(name[1:]) / 100
        return found[enough.argmax()]
    return getattr(np.asarray(values, float), name)()


def model_values(image, segments, names, nodata=None):
    """Return {name: float64 per segment} of one band; invalid is NaN or nodata."""
    valid = np.isfinite(image)
    if nodata is not None:
        valid &= image != nodata
    ids = np.unique(segments[segments > 0])
    return ids, {name: np.array([model_value(image[(segments == label) & valid], name)
                                 for label in ids]) for name in names}


def model_shape(segments, label):
    """Return the columns of all statistics of the shape of one segment."""
    inside = np.pad(segments == label, 1)
    y, x = np.nonzero(inside)
    shifted = {(dy, dx): inside[y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)
               if (dy, dx) != (0, 0)}
    edges = [shifted[step] for step in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return {'area': len(y), 'bbox_y0': y.min() - 1, 'bbox_x0': x.min() - 1, 'bbox_y1': y.max(),
            'bbox_x1': x.max(), 'centroid_x': x.mean() - 0.5, 'centroid_y': y.mean() - 0.5,
            'perimeter': sum(int((~edge).sum()) for edge in edges),
            'n_edge_pixels': int((~np.all(list(shifted.values()), axis=0)).sum()),
            'n_edge_pixels4': int((~np.all(edges, axis=0)).sum())}


def make_segments(rng, shape, n_labels=9, size=3, dtype=np.uint32):
    """Return blobs of labels 0..n_labels, 0 being null."""
    coarse = rng.integers(0, n_labels + 1, [-(-side // size) for side in shape])
    labels = np.kron(coarse, np.ones((size, size), int))[:shape[0], :shape[1]]
    noisy = rng.random(shape) < 0.15
    labels[noisy] = rng.integers(0, n_labels + 1, noisy.sum())
    return labels.astype(dtype)
