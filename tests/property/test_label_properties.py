"""Promises of the label stitcher, for images, tilings and orders that hypothesis draws."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cocoseg import LabelStitcher
from cocoseg.labels.components import label_components

from ..strategies import SEEDS, window_grids, window_lists

QUICK = settings(max_examples=60, deadline=None)


@st.composite
def tilings(draw):
    """Draw (shape, windows): a grid, or a list that follows no grid."""
    grid = draw(window_grids())
    if draw(st.booleans()):
        return grid.shape, list(grid)
    windows = draw(window_lists(grid.shape))
    return grid.shape, list({window.clip(grid.shape): window for window in windows}.values())


def draw_labels(shape, rng, connectivity, n_values=3):
    """Return blobs, numbered by first pixel, with some background."""
    smooth = ndimage.gaussian_filter(rng.random(shape), 0.8)
    values = np.digitize(smooth, np.quantile(smooth, np.linspace(0.3, 0.9, n_values)))
    return label_components(values.astype(np.uint32), connectivity).labels.astype(np.int64)


def stitch(shape, windows, tiles, order, declared=True, **options):
    """Return the finished labels and the stitcher; tiles come in the given order."""
    stitcher = LabelStitcher(shape, windows if declared else None, **options)
    for index in order:
        stitcher.add(windows[index], *tiles[index])
    return stitcher.finalize(), stitcher


def crop(labels, window, shape, offset):
    """Return the labels of a window that may overhang, with ids of its own."""
    inside, out = window.clip(shape), np.zeros(window.shape, np.int64)
    out[inside.within(window).slices] = labels[inside.slices]
    return np.where(out, 3 * out + offset, 0)


def is_canonical(labels, n):
    """True if the ids are 1..n in the order of their first pixels."""
    ids, first = np.unique(labels, return_index=True)
    first = first[ids > 0]
    return ids[ids > 0].tolist() == list(range(1, n + 1)) and (np.diff(first) > 0).all()


def is_connected(labels, n, connectivity):
    structure = np.ones((3, 3)) if connectivity == 8 else None
    return all(ndimage.label(labels == number, structure)[1] == 1 for number in range(1, n + 1))


@QUICK
@given(tilings(), SEEDS, st.sampled_from([None, 4, 8]))
def test_order_does_not_matter_and_no_pixel_is_lost(tiling, seed, connectivity):
    (shape, windows), rng = tiling, np.random.default_rng(seed)
    # Tiles that disagree: each sees blobs of its own, on a common background.
    null = rng.random(shape) < 0.1
    tiles = []
    for index, window in enumerate(windows):
        seen = draw_labels(shape, np.random.default_rng(seed % (index + 2)), 4)
        tiles.append((crop(np.where(null, 0, seen + 1), window, shape, index),))
    covered = np.zeros(shape, bool)
    for window in windows:
        covered[window.clip(shape).slices] = True
    results = [stitch(shape, windows, tiles, rng.permutation(len(windows)), declared,
                      connectivity=connectivity) for declared in (True, True, False)]
    labels, stitcher = results[0]
    for other, other_stitcher in results[1:]:
        assert np.array_equal(labels, other)
        assert stitcher.seams == other_stitcher.seams
    assert np.array_equal(labels > 0, covered & ~null)
    assert is_canonical(labels, stitcher.n_labels)
    assert np.array_equal(np.bincount(labels.ravel(), minlength=stitcher.n_labels + 1)[1:],
                          stitcher.sizes[1:])
    if connectivity:
        assert is_connected(labels, stitcher.n_labels, connectivity)
    assert all(0 <= seam.agreement <= 1 for seam in stitcher.seams)


@QUICK
@given(window_grids(), SEEDS)
def test_crops_of_labels_agree_completely(grid, seed):
    rng = np.random.default_rng(seed)
    truth = draw_labels(grid.shape, rng, 4)
    windows = list(grid)
    tiles = [(crop(truth, window, grid.shape, index),) for index, window in enumerate(windows)]
    labels, stitcher = stitch(grid.shape, windows, tiles, rng.permutation(len(windows)))
    # Each id is part of one object; where tiles overlap, all that they share is linked.
    for number in range(1, stitcher.n_labels + 1):
        assert len(np.unique(truth[labels == number])) == 1
    assert all(seam.agreement == 1 for seam in stitcher.seams)
    assert np.array_equal(labels > 0, truth > 0)


@QUICK
@given(tilings(), SEEDS, st.sampled_from([4, 8]), st.integers(2, 12),
       st.sampled_from([0.0, 1.0, 2.0, np.inf]))
def test_small_labels_are_left_only_where_nothing_is_alike(tiling, seed, connectivity, min_size,
                                                          limit):
    (shape, windows), rng = tiling, np.random.default_rng(seed)
    values = rng.integers(0, 5, (*shape, 2))
    tiles = []
    for index, window in enumerate(windows):
        seen = draw_labels(shape, np.random.default_rng(seed % (index + 2)), connectivity)
        inside, part = window.clip(shape), np.zeros((*window.shape, 2))
        part[inside.within(window).slices] = values[inside.slices]
        tiles.append((crop(seen, window, shape, index), part))
    options = {'connectivity': connectivity, 'min_size': min_size, 'max_difference': limit}
    labels, stitcher = stitch(shape, windows, tiles, rng.permutation(len(windows)), **options)
    again, _ = stitch(shape, windows, tiles, rng.permutation(len(windows)), **options)
    assert np.array_equal(labels, again)
    assert is_canonical(labels, stitcher.n_labels)
    assert is_connected(labels, stitcher.n_labels, connectivity)
    means = np.stack([np.bincount(labels.ravel(), values[..., band].ravel(),
                                  stitcher.n_labels + 1) for band in (0, 1)], axis=1)
    means /= np.maximum(stitcher.sizes, 1)[:, None]
    structure = np.ones((3, 3)) if connectivity == 8 else None
    for number in np.flatnonzero((stitcher.sizes < min_size) & (stitcher.sizes > 0)):
        around = ndimage.binary_dilation(labels == number, structure)
        neighbors = set(np.unique(labels[around])) - {0, number}
        for other in neighbors:
            assert np.linalg.norm(means[number] - means[other]) > limit
