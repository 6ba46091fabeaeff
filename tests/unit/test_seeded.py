"""The seeded watershed against plain loops, on drawn objects, and on real nuclei."""
import sys

import numpy as np
import pytest
from scipy import ndimage

from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.postprocess import seeded
from cocoseg.postprocess.parameters import WatershedParameters
from cocoseg.postprocess.scores import score_labels
from cocoseg.postprocess.seeded import find_seeds, least_context, seeded_watershed

pytest.importorskip('skimage')

DISTANCE = WatershedParameters(method='distance', threshold=1, seed_distance=3)
FOREGROUND = DISTANCE.patch(method='foreground', threshold=0.5)
BOUNDARY = DISTANCE.patch(method='boundary', threshold=0.5)


def draw_balls(shape, centers, radius):
    """Return True in balls around some centers."""
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), axis=-1)
    return np.any([((grid - center) ** 2).sum(axis=-1) <= radius ** 2 for center in centers],
                  axis=0)


def seeds_model(heights, mask, distance):
    """Find seeds by loops: sets of pixel indices."""
    parts, n_parts = ndimage.label(mask)
    tops = []
    for index in zip(*np.nonzero(mask)):
        around = tuple(slice(max(i - distance, 0), i + distance + 1) for i in index)
        if heights[index] >= heights[around][mask[around]].max():
            tops.append(index)
    sets = [{top} for top in tops]
    for a in tops:
        for b in tops:
            near = max(abs(i - j) for i, j in zip(a, b)) <= distance
            ours, theirs = (next(s for s in sets if p in s) for p in (a, b))
            if near and parts[a] == parts[b] and ours is not theirs:
                sets.remove(theirs)
                ours |= theirs
    for part in set(range(1, n_parts + 1)) - {parts[top] for top in tops}:
        best = np.where(parts == part, heights, -np.inf)
        sets.append({np.unravel_index(np.argmax(best), mask.shape)})
    return {frozenset(tuple(map(int, index)) for index in s) for s in sets}


def as_sets(seeds):
    return {frozenset(map(tuple, np.argwhere(seeds == number).tolist()))
            for number in range(1, seeds.max() + 1)}


@pytest.mark.parametrize('shape', [(9, 11), (4, 5, 6)])
@pytest.mark.parametrize('distance', [1, 2, 3])
def test_seeds_are_those_of_plain_loops(shape, distance):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        heights = rng.integers(0, 40, shape).astype(np.float32)
        mask = rng.random(shape) < 0.8
        # The loops join seeds over gaps of the mask, which ours only do if narrow:
        # with distinct heights there is nothing to join.
        heights += rng.permutation(heights.size).reshape(shape) / heights.size / 2
        assert as_sets(find_seeds(heights, mask, distance)) == seeds_model(heights, mask, distance)


@pytest.mark.parametrize('distance', [1, 2, 3])
def test_tops_of_one_height_are_one_seed(distance):
    for gap in range(1, 5):
        heights = np.ones((7, 12), np.float32)
        heights[2, 2] = heights[2 + min(gap, 4), 2 + gap] = 5
        seeds = find_seeds(heights, heights > 0, distance)
        on_tops = np.unique(seeds[heights == 5])
        assert len(on_tops) == (1 if gap <= distance else 2) and on_tops[0] > 0


def test_a_seed_does_not_tie_parts_together_that_are_apart():
    mask = np.ones((5, 7), bool)
    mask[:, 3] = False
    seeds = find_seeds(np.ones((5, 7), np.float32), mask, 5)
    assert len(np.unique(seeds[:, :3])) == len(np.unique(seeds[:, 4:])) == 1
    assert seeds[0, 0] != seeds[0, 6]


def test_a_low_part_beside_a_high_one_has_its_highest_point_as_seed():
    heights = np.array([[9, 8, 0, 2, 3, 3, 0]], np.float32)
    seeds = find_seeds(heights, heights > 0, 6)
    assert seeds.tolist() == [[1, 0, 0, 0, 2, 0, 0]]


@pytest.mark.parametrize('shape, centers', [
    ((30, 44), [(14, 12), (14, 25), (10, 37)]),
    ((21, 22, 36), [(10, 10, 10), (10, 10, 23)]),
])
def test_balls_that_touch_are_parted_by_each_method(shape, centers):
    balls = draw_balls(shape, centers, 7)
    n = len(centers)
    nearest = np.argmin([draw_distances(shape, center) for center in centers], axis=0)
    truth = np.where(balls, nearest + 1, 0)
    distances = ndimage.distance_transform_edt(balls)
    is_edge = ndimage.grey_dilation(truth, 3) != truth
    maps = [(DISTANCE, distances, 0.9), (FOREGROUND, balls * 0.8, 0.9),
            (BOUNDARY, np.where(balls, is_edge, 1.0), 0.5)]
    for parameters, surface, least_iou in maps:
        labels = seeded_watershed(surface, parameters.patch(seed_distance=6))
        scores = score_labels(truth, labels)
        assert labels.dtype == np.uint32 and scores.n_matched == scores.n_labels == n
        assert scores.mean_iou > least_iou
        assert not labels[~balls].any()


def draw_distances(shape, center):
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), axis=-1)
    return np.sqrt(((grid - center) ** 2).sum(axis=-1))


@pytest.mark.parametrize('parameters, map_of', [
    (DISTANCE, lambda v: 2 * v), (FOREGROUND, lambda v: v), (BOUNDARY, lambda v: 1 - v)],
    ids=['distance', 'foreground', 'boundary'])
def test_mask_is_the_threshold_inclusive(parameters, map_of):
    # Exact in float32, also as 1 minus the boundary.
    values = np.array([[0, 0.25, 0.5, 0.75, 1, 0.375, 0.5, 0.4375]])
    labels = seeded_watershed(map_of(values), parameters)
    assert ((labels > 0) == (values >= 0.5)).all()


def test_boundary_without_threshold_fills_everything_along_the_ridge():
    boundary = np.full((20, 31), 0.1)
    boundary[:, 12] = 0.9
    labels = seeded_watershed(boundary, BOUNDARY.patch(threshold=None, seed_distance=9))
    assert labels.min() == 1 and labels.max() == 2
    assert (labels[:, :12] == 1).all() and (labels[:, 13:] == 2).all()
    # With one, the ridge is no object's.
    masked = seeded_watershed(boundary, BOUNDARY.patch(seed_distance=9))
    assert ((masked == 0) == (boundary > 0.5)).all() and masked.max() == 2


def test_a_wide_boundary_is_no_object_of_its_own():
    boundary = np.zeros((20, 60))
    boundary[:, 20:45] = 1
    parameters = BOUNDARY.patch(threshold=None)
    labels = seeded_watershed(boundary, parameters)
    assert labels.min() == 1 and len(np.unique(labels[:, :20])) == 1
    assert set(np.unique(labels[:, 20:45])) == {labels[0, 0], labels[0, 59]}
    # Nothing but boundary is one object, as nothing is masked.
    assert (seeded_watershed(np.ones((5, 6)), parameters) == 1).all()


def test_boundary_is_followed_and_not_only_the_distances():
    # The ridge is nearer to the left seed than the middle between the seeds.
    boundary = np.zeros((15, 40))
    boundary[:, 14] = 0.3
    boundary[[0, -1]] = boundary[:, [0, 25, -1]] = 1
    boundary[7, 25] = 0
    labels = seeded_watershed(boundary, BOUNDARY.patch(seed_distance=4))
    assert labels[7, 20] != labels[7, 30]
    assert len(np.unique(labels[3:12, 30:36])) == 1


def test_sigma_smooths_speckles_away():
    rng = np.random.default_rng(0)
    cone = 12 - np.hypot(*np.mgrid[-12:13, -12:13]) + rng.normal(0, 0.5, (25, 25))
    counts = [seeded_watershed(cone, DISTANCE.patch(sigma=sigma, seed_distance=2)).max()
              for sigma in (0, 2)]
    assert counts[0] > 2 and counts[1] == 1


@pytest.mark.parametrize('sigma', [0, 1.5])
@pytest.mark.parametrize('parameters', [DISTANCE, FOREGROUND, BOUNDARY.patch(threshold=None)],
                         ids=lambda parameters: parameters.method)
def test_what_is_not_finite_is_background_and_weighs_nothing(parameters, sigma):
    surface = np.full((20, 24), 0.25 if parameters.method == 'boundary' else 2.0)
    gap = np.zeros(surface.shape, bool)
    gap[5:9, 3:20] = True
    surface[gap] = np.nan
    surface[5, 3], surface[8, 19] = np.inf, -np.inf
    surface.flags.writeable = False
    labels = seeded_watershed(surface, parameters.patch(sigma=sigma))
    # Smoothing neither spreads the gap nor pulls what is beside it below the threshold.
    assert np.array_equal(labels == 0, gap)


def test_a_gap_far_away_changes_no_bit():
    rng = np.random.default_rng(1)
    surface = rng.random((40, 60)).astype(np.float32)
    smooth, _ = seeded.smooth(surface, 2.0)
    surface[:, 55:] = np.nan
    with_gap, _ = seeded.smooth(surface, 2.0)
    assert np.array_equal(smooth[:, :47], with_gap[:, :47])
    assert not np.array_equal(smooth[:, 47:55], with_gap[:, 47:55])


@pytest.mark.parametrize('parameters', [DISTANCE, FOREGROUND, BOUNDARY],
                         ids=lambda parameters: parameters.method)
def test_nothing_and_everything(parameters):
    low, high = (1.0, 0.0) if parameters.method == 'boundary' else (0.0, 1.0)
    for shape in ((6, 7), (3, 4, 5)):
        assert not seeded_watershed(np.full(shape, low), parameters).any()
        labels = seeded_watershed(np.full(shape, high), parameters.patch(seed_distance=9))
        assert (labels == 1).all()
    assert seeded_watershed(np.full((4, 0), low), parameters).shape == (4, 0)
    assert not seeded_watershed(np.full((4, 5), np.nan), parameters).any()


def test_ids_are_dense_by_first_pixel_and_parts_are_never_joined():
    smooth = ndimage.gaussian_filter(np.random.default_rng(2).random((60, 70)), 2)
    labels = seeded_watershed(smooth, FOREGROUND.patch(threshold=float(np.median(smooth))))
    ids, firsts = np.unique(labels[labels > 0], return_index=True)
    assert ids.tolist() == list(range(1, labels.max() + 1)) and (np.diff(firsts) > 0).all()
    parts, n_parts = ndimage.label(smooth.astype(np.float32) >= np.float32(np.median(smooth)))
    assert np.array_equal(parts > 0, labels > 0) and labels.max() > n_parts
    pairs = np.unique(np.stack([labels[labels > 0], parts[labels > 0]]), axis=1)
    assert pairs.shape[1] == labels.max()


@pytest.mark.parametrize('method', ['distance', 'foreground', 'boundary'])
@pytest.mark.parametrize('sigma', [0, 1.0])
def test_blocks_with_the_least_context_find_the_seeds_of_the_whole(method, sigma):
    rng = np.random.default_rng(3)
    centers = [(y + rng.integers(-2, 3), x + rng.integers(-2, 3))
               for y in range(10, 100, 17) for x in range(10, 130, 17)]
    inside = 9 - np.min([draw_distances((100, 130), center) for center in centers], axis=0)
    inside = np.clip(inside, 0, None)
    surface = {'distance': inside, 'foreground': inside / 9, 'boundary': 1 - inside / 9}[method]
    threshold = 0.75 if method == 'boundary' else 2.0 if method == 'distance' else 0.25
    parameters = DISTANCE.patch(method=method, threshold=threshold, sigma=sigma)

    def find(data):
        smooth, is_valid = seeded.smooth(data.astype(np.float32), sigma)
        mask, heights, _ = seeded._prepare(smooth, is_valid, parameters)
        return find_seeds(heights, mask, parameters.seed_distance) > 0

    def find_in_blocks(halo):
        found = np.zeros(surface.shape, bool)
        for block in BlockGrid(surface.shape, 31, halo):
            core = find(surface[block.read.slices])[block.core.within(block.read).slices]
            found[block.core.slices] = core
        return found

    whole = find(surface)
    assert whole.sum() > 40
    halo = least_context(parameters, radius=0 if method == 'distance' else 12)
    assert np.array_equal(find_in_blocks(halo), whole)
    assert not np.array_equal(find_in_blocks(0), whole)


def test_least_context_adds_up_what_a_seed_depends_on():
    assert least_context(DISTANCE) == 3
    assert least_context(DISTANCE.patch(sigma=2)) == 8 + 3
    assert least_context(FOREGROUND.patch(sigma=2), radius=4.5) == 8 + 5 + 8 + 3
    assert least_context(BOUNDARY, radius=10) == 13


@pytest.mark.parametrize('call', [lambda p: seeded_watershed(np.ones((2, 2)), p), least_context],
                         ids=['seeded_watershed', 'least_context'])
def test_a_mutex_watershed_is_refused(call):
    with pytest.raises(OptionError, match='mutex_watershed'):
        call(WatershedParameters(offsets=[(0, 1)]))


@pytest.mark.parametrize('surface', [np.ones(3), np.ones((1, 2, 3, 4)), np.ones((2, 2), complex),
                                     np.array([['a']])], ids=['1-D', '4-D', 'complex', 'text'])
def test_what_is_no_map_is_refused(surface):
    with pytest.raises(OptionError, match=r'real numbers of shape \(h, w\)'):
        seeded_watershed(surface, DISTANCE)


def test_absence_of_scikit_image_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'skimage.segmentation', None)
    with pytest.raises(MissingDependencyError, match=r'pip install cocoseg\[instances\]'):
        seeded_watershed(np.ones((3, 3)), DISTANCE)


# ---- real nuclei -----------------------------------------------------------

@pytest.fixture(scope='module')
def nuclei(repo_root):
    """Labels (512, 512) of 125 nuclei."""
    path = repo_root.parent / 'shared' / 'data' / 'cells_stardist' / 'mask2d.tif'
    if not path.exists():
        pytest.skip(f'no sample data at {path}')
    import tifffile
    return tifffile.imread(path).astype(np.int64)


def test_nuclei_are_found_again_by_noisy_distances(nuclei):
    distances = np.zeros(nuclei.shape)
    for number, part in enumerate(ndimage.find_objects(nuclei), 1):
        if part is not None:
            nucleus = nuclei[part] == number
            distances[part][nucleus] = ndimage.distance_transform_edt(
                np.pad(nucleus, 1))[1:-1, 1:-1][nucleus]
    noise = np.random.default_rng(0).normal(0, 0.3, nuclei.shape) * (distances > 0)
    parameters = DISTANCE.patch(threshold=0.5, sigma=1, seed_distance=8)
    scores = score_labels(nuclei, seeded_watershed(distances + noise, parameters))
    assert scores.n_truth == 125 and scores.f1 > 0.98 and scores.mean_iou > 0.95


def test_nuclei_are_found_again_by_noisy_foreground(nuclei):
    noise = np.random.default_rng(0).normal(0, 0.2, nuclei.shape)
    labels = seeded_watershed((nuclei > 0) + noise, FOREGROUND.patch(sigma=1, seed_distance=8))
    scores = score_labels(nuclei, labels)
    # Nothing in the foreground parts those that touch but their shape.
    assert scores.f1 > 0.94 and scores.mean_iou > 0.94
