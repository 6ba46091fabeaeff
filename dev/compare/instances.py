"""
Instances: the mutex watershed, a seeded watershed, and connected components.

Whole images in RAM on both sides; ours in one block, or for components in
blocks with two threads. What is compared is which pixels are one object, not
the ids.
"""
from __future__ import annotations

import bench_path  # noqa: F401
import numpy as np
import races_mutex
from cases import Agreement, Case, Trial, timed
from instance_problem import OFFSETS
from races_blocks import BLOCK, make_mask

MUTEX_SIZE, SEEDED_SIZE, COMPONENTS_SIZE = 1024, 1024, 4096
N_OFFSETS, NOISE, BLUR = 8, 0.35, 0
SEED_DISTANCE, LEAST_DISTANCE = 5, 0.5
# Ties, and peaks that are near each other, are taken by other rules.
LEAST_SEEDED = 99
THREADS = 2


def compare_objects(ours, theirs, bound=100.0):
    """Return the share of pixels whose object is the same set in both."""
    share = 100 * races_mutex.measure_agreement(ours, theirs)
    return Agreement('pixels in equal objects, %', share, bound,
                     facts={'objects': int(ours.max()),
                            'their_objects': len(np.unique(theirs[theirs != 0]))})


def prepare_mwatershed(size):
    """Race mwatershed with weights that all differ, where the result is unique."""
    agglom = races_mutex.get_peer()
    offsets = OFFSETS[N_OFFSETS]
    weights = races_mutex.make_weights(N_OFFSETS, size, NOISE, BLUR)
    # The only type that it takes; made before the clock starts.
    wide, steps = weights.astype(np.float64), [list(offset) for offset in offsets]
    shape = ' x '.join(map(str, weights.shape[1:]))
    return Trial(f'{shape} px, {N_OFFSETS} offsets, noise {NOISE}',
                 timed(lambda: races_mutex.run_ours(weights, offsets)),
                 timed(lambda: agglom(wide, steps)), compare_objects)


def make_distances(size):
    """Return px to the end of smooth blobs that touch, float32 (size, size)."""
    from scipy import ndimage
    noise = np.random.default_rng(0).random((size, size), dtype=np.float32)
    field = ndimage.gaussian_filter(noise, 4)
    inside = ndimage.distance_transform_edt(field > np.median(field))
    # Without it, distances are often equal, and so are seeds.
    return ndimage.gaussian_filter(inside, 1).astype(np.float32)


def prepare_seeded(size):
    """Race the usual recipe of scikit-image: peaks, then a flood from them."""
    from cocoseg import WatershedParameters, seeded_watershed
    from skimage.feature import peak_local_max
    from skimage.measure import label
    from skimage.segmentation import watershed
    distances = make_distances(size)
    parameters = WatershedParameters(method='distance', threshold=LEAST_DISTANCE,
                                     seed_distance=SEED_DISTANCE)

    def flood():
        mask = distances >= LEAST_DISTANCE
        peaks = peak_local_max(distances, min_distance=SEED_DISTANCE, exclude_border=False,
                               labels=label(mask, connectivity=1))
        markers = np.zeros(distances.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return watershed(-distances, markers, mask=mask)
    return Trial(f'{size} x {size} px of distances, seeds {SEED_DISTANCE} px apart',
                 timed(lambda: seeded_watershed(distances, parameters)), timed(flood),
                 lambda ours, theirs: compare_objects(ours, theirs, LEAST_SEEDED))


def prepare_components(size, connectivity, label_whole):
    """Race the components of a mask, ours in blocks."""
    from cocoseg import connected_components
    mask = make_mask(size)
    block = min(BLOCK, max(size // 2, 1))
    return Trial(f'{mask.shape[0]} x {mask.shape[1]} px mask, {connectivity}-connected; ours in '
                 f'blocks of {block} px, threads: {THREADS}',
                 timed(lambda: connected_components(
                     mask, block_shape=block, connectivity=connectivity,
                     executor=f'threads:{THREADS}').output),
                 timed(lambda: label_whole(mask)), compare_objects)


def prepare_scipy(size):
    """Race scipy.ndimage.label, 4-connected."""
    from scipy import ndimage
    return prepare_components(size, 4, lambda mask: ndimage.label(mask)[0])


def prepare_skimage(size):
    """Race skimage.measure.label, 8-connected."""
    from skimage.measure import label
    return prepare_components(size, 8, lambda mask: label(mask, connectivity=2))


CASES = [
    Case('instances/mwatershed', 'mwatershed.agglom', 'mwatershed', ('mwatershed',),
         'affinities, all of different weight, and offsets', prepare_mwatershed, MUTEX_SIZE,
         'pip install mwatershed'),
    Case('instances/seeded', 'scikit-image peak_local_max, watershed', 'scikit-image', ('skimage',),
         'distances, threshold, distance of seeds', prepare_seeded, SEEDED_SIZE,
         'pip install scikit-image'),
    Case('instances/scipy', 'SciPy ndimage.label', 'scipy', ('scipy',), 'mask', prepare_scipy,
         COMPONENTS_SIZE, 'pip install scipy'),
    Case('instances/skimage', 'scikit-image measure.label', 'scikit-image', ('skimage',), 'mask',
         prepare_skimage, COMPONENTS_SIZE, 'pip install scikit-image'),
]
