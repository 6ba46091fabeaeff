"""
Segmentation: pyshepseg label by label, and two methods of scikit-image beside it.

Images, clusters and drivers are those of ``dev/bench/races_shepherd.py``. For
the same cluster centres, our labels are to be those of pyshepseg. SLIC and
Felzenszwalb's graph segment by other rules: they are a reference of speed, and
how far their boundaries agree with ours is told without a bound.
"""
from __future__ import annotations

import os
import tempfile
import warnings

import bench_path  # noqa: F401
import numpy as np
from cases import Agreement, Case, Trial, timed
from races_shepherd import (OVERLAP, TILE_SIZE, configure, get_peer, make_tiled_runs,
                            segment_peer)
from shepherd_problem import NODATA, make_image, write_image

SIZE, TILED_SIZE = 1000, 3000
# Boundaries agree if they are at most so far apart, px.
REACH = 2
REMEDY = 'put a checkout of pyshepseg 2.0.3 on PYTHONPATH'
REMEDY_SKIMAGE = 'pip install scikit-image'


def compare_labels(ours, theirs):
    """Return the share of pixels with the very same label."""
    if ours.shape != theirs.shape:
        raise ValueError(f'shapes {ours.shape} and {theirs.shape} cannot be compared')
    return Agreement('pixels with the same label, %', 100 * float((ours == theirs).mean()), 100,
                     facts={'segments': int(ours.max()), 'their_segments': int(theirs.max())})


def prepare_pyshepseg(size):
    """Race one image in RAM, clusters given."""
    from cocoseg import shepherd_segment
    image = make_image('noisy', size)
    kmeans = get_peer()[0].fitSpectralClusters(np.moveaxis(image, -1, 0), 60, 1, NODATA, True)
    return Trial(
        f'{size} x {size} x 4 uint16, 60 clusters, fitted before',
        timed(lambda: shepherd_segment(image, configure(), nodata=NODATA, kmeans=kmeans).labels),
        timed(lambda: segment_peer(image, kmeans).segimg), compare_labels)


def prepare_tiled(size):
    """Race a file to a file, with the fit, from the same start."""
    from cocoseg.io.raster import read_raster
    get_peer()
    folder = tempfile.TemporaryDirectory()
    src = os.path.join(folder.name, 'image.tif')
    write_image(src, make_image('clean', size))
    runs = make_tiled_runs(src, folder.name)

    def list_turn(name, file):
        # The path keeps the folder until both files have been compared.
        return lambda: (runs[name]()['wall_s'], (folder, file))

    def compare(ours, theirs):
        return compare_labels(*(read_raster(os.path.join(place.name, file))
                                for place, file in (ours, theirs)))
    return Trial(f'{size} x {size} x 4 uint16 GeoTIFF, tiles of {TILE_SIZE} px that overlap by '
                 f'{OVERLAP}, 60 clusters', list_turn('compat', 'ours.tif'),
                 list_turn('pyshepseg_fixed', 'theirs.img'), compare)


def find_boundaries(labels):
    """Return where a pixel has another label than the one below it or to its right."""
    found = np.zeros(labels.shape, bool)
    found[:-1] |= labels[:-1] != labels[1:]
    found[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return found


def compare_boundaries(ours, theirs):
    """Return how far boundaries agree: F1 of those that have one of the other side nearby."""
    from scipy import ndimage
    first, second = find_boundaries(ours), find_boundaries(theirs)
    around = np.ones((2 * REACH + 1,) * 2, bool)

    def share_near(one, other):
        near = ndimage.binary_dilation(other, around)
        return float(near[one].mean()) if one.any() else 1.0
    found, right = share_near(first, second), share_near(second, first)
    score = 2 * found * right / (found + right) if found + right else 0.0
    return Agreement(f'boundaries within {REACH} px, F1, %; another method', 100 * score,
                     facts={'segments': len(np.unique(ours)) - 1,
                            'their_segments': len(np.unique(theirs))})


def segment_ours(image):
    """Return our labels, with the fit, by default."""
    from cocoseg import shepherd_segment
    return shepherd_segment(image, nodata=NODATA).labels


def make_reference(image, segment):
    """Return the trial of another method, which takes nothing and returns labels."""
    height, width, n_bands = image.shape
    return Trial(f'{height} x {width} x {n_bands} uint16, with the fit',
                 timed(lambda: segment_ours(image)), timed(segment), compare_boundaries)


def prepare_slic(size):
    """Race SLIC with as many segments."""
    from skimage.segmentation import slic
    image = make_image('clean', size)
    valid = (image != NODATA).all(axis=2)
    n_segments = int(segment_ours(image).max())
    # Below its default of 10, which makes squares of an image like this.
    return make_reference(image, lambda: slic(image, n_segments, compactness=0.1, channel_axis=-1,
                                              mask=valid))


def prepare_felzenszwalb(size):
    """Race Felzenszwalb's graph with the same least size of a segment."""
    from cocoseg import ShepherdConfig
    from skimage.segmentation import felzenszwalb
    image = make_image('clean', size)
    least = ShepherdConfig().min_segment_size
    # Its threshold is made for values in 0..1, as floats.
    scaled = image.astype(np.float32) / np.float32(image.max())

    def segment():
        with warnings.catch_warnings():
            # That four bands are bands is what channel_axis says.
            warnings.simplefilter('ignore', RuntimeWarning)
            return felzenszwalb(scaled, scale=10, sigma=0.5, min_size=least, channel_axis=-1)
    return make_reference(image, segment)


CASES = [
    Case('segmentation/pyshepseg', 'pyshepseg, whole image', 'pyshepseg', ('pyshepseg',),
         'image, cluster centres, least size, connectivity', prepare_pyshepseg, SIZE, REMEDY),
    Case('segmentation/pyshepseg_tiled', 'pyshepseg, tiled, file to file', 'pyshepseg',
         ('pyshepseg',), 'file, start of the fit, tiles, overlap', prepare_tiled, TILED_SIZE,
         REMEDY),
    Case('segmentation/slic', 'scikit-image slic, reference', 'scikit-image',
         ('skimage',), 'image, number of segments; the method differs', prepare_slic, SIZE,
         REMEDY_SKIMAGE),
    Case('segmentation/felzenszwalb', 'scikit-image felzenszwalb, reference',
         'scikit-image', ('skimage',), 'image, least size; the method differs',
         prepare_felzenszwalb, SIZE, REMEDY_SKIMAGE),
]
