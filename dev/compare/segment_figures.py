"""
Figures of segments: area, count, mean, least and largest value of each.

Segments are cells around random points, whole but for nodata. Both sides get
labels and values as arrays in RAM; rasterstats, which takes polygons, gets
those of the same pixels, made before the clock starts.
"""
from __future__ import annotations

import bench_path  # noqa: F401
import numpy as np
from cases import Agreement, Case, Trial, timed
from instance_problem import make_cells
from shepherd_problem import NODATA, make_image

SIZE, POLYGONS_SIZE, SPACING = 2000, 500, 25
# A sum of whole numbers is exact; a quotient may round in its last digit.
MOST_RELATIVE = 1e-12


def make_segments(size):
    """Return an image (size, size, 4), and labels (size, size) that are 0 at nodata."""
    image = make_image('clean', size)
    labels = make_cells((size, size), SPACING)
    labels[(image == NODATA).any(axis=2)] = 0
    return image, labels


def compare_columns(ours, theirs):
    """Return the largest relative difference of any figure of any segment."""
    shapes = {name: (len(ours[name]), len(theirs[name])) for name in ours}
    if any(first != second for first, second in shapes.values()):
        raise ValueError(f'the numbers of segments differ: {shapes}')
    worst = max(float((np.abs(np.asarray(ours[name], float) - np.asarray(theirs[name], float))
                       / np.maximum(np.abs(np.asarray(theirs[name], float)), 1)).max())
                for name in ours)
    return Agreement('largest relative difference', worst, MOST_RELATIVE, True,
                     facts={'segments': len(ours['id']), 'figures': len(ours) - 1})


def measure_ours(image, labels, stats):
    """Return our columns by name."""
    from cocoseg import segment_stats
    table = segment_stats(image, labels, stats, nodata=None)
    return {'id': table.ids, **table.columns}


def prepare_regionprops(size):
    """Race skimage.measure.regionprops_table on all bands."""
    from skimage.measure import regionprops_table
    image, labels = make_segments(size)
    names = {'label': 'id', 'area': 'area', **{
        f'intensity_{stat}-{band}': f'{stat}_b{band}'
        for stat in ('mean', 'min', 'max') for band in range(image.shape[2])}}

    def measure():
        found = regionprops_table(labels, image, ('label', 'area', 'intensity_mean',
                                                  'intensity_min', 'intensity_max'))
        return {ours: found[theirs] for theirs, ours in names.items()}
    return Trial(f'{size} x {size} x 4 uint16, {len(np.unique(labels)) - 1} segments',
                 timed(lambda: measure_ours(image, labels, ['area', 'mean', 'min', 'max'])),
                 timed(measure), compare_columns)


def make_polygons(labels, transform):
    """Return ids and, for each, the outline of its pixels as a GeoJSON geometry."""
    from rasterio.features import shapes
    parts = {}
    for shape, value in shapes(labels, labels > 0, transform=transform):
        parts.setdefault(int(value), []).append(shape['coordinates'])
    ids = sorted(parts)
    return ids, [{'type': 'MultiPolygon', 'coordinates': parts[number]} for number in ids]


def prepare_rasterstats(size):
    """Race rasterstats.zonal_stats on one band; polygons are made before."""
    from rasterio.transform import from_origin
    from rasterstats import zonal_stats
    image, labels = make_segments(size)
    band = np.ascontiguousarray(image[..., 0])
    transform = from_origin(0, size, 1, 1)
    ids, polygons = make_polygons(labels, transform)
    stats = ['count', 'mean', 'min', 'max']

    def measure():
        rows = zonal_stats(polygons, band, affine=transform, stats=stats, nodata=NODATA)
        return {'id': ids, **{stat: [row[stat] for row in rows] for stat in stats}}
    return Trial(f'{size} x {size} x 1 uint16, {len(ids)} segments',
                 timed(lambda: measure_ours(band, labels, stats)), timed(measure),
                 compare_columns)


CASES = [
    Case('statistics/regionprops', 'scikit-image regionprops_table', 'scikit-image',
         ('skimage',), 'labels, values, figures', prepare_regionprops, SIZE,
         'pip install scikit-image'),
    Case('statistics/rasterstats', 'rasterstats zonal_stats', 'rasterstats',
         ('rasterstats', 'rasterio'), 'pixels of segments, values, figures', prepare_rasterstats,
         POLYGONS_SIZE, 'pip install rasterstats', isolated=True),
]
