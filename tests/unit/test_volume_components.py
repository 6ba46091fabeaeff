"""Components of volumes against scipy, and against those of images."""
import threading

import numpy as np
import pytest
from scipy import ndimage

from cocoseg.errors import LabelOverflowError, OptionError
from cocoseg.labels import volume_components
from cocoseg.labels.components import label_components
from cocoseg.labels.volume_components import label_volume

# Axes along which touching voxels may differ, by connectivity.
RANKS = {6: 1, 18: 2, 26: 3}


def volume_model(values, connectivity):
    """Label each value by scipy, and number by first voxel."""
    structure = ndimage.generate_binary_structure(3, RANKS[connectivity])
    out, n = np.zeros(values.shape, int), 0
    for value in np.unique(values[values > 0]):
        part, count = ndimage.label(values == value, structure)
        out[part > 0] = part[part > 0] + n
        n += count
    ids, first = np.unique(out, return_index=True)
    ids, first = ids[ids > 0], np.sort(first[ids > 0])
    lut = np.zeros(n + 1, int)
    lut[out.ravel()[first]] = np.arange(1, n + 1)
    return lut[out], first


def check_components(values, connectivity):
    """Check labels, sizes and first voxels; return what was found."""
    found = label_volume(values, connectivity)
    expected, firsts = volume_model(values, connectivity)
    assert found.labels.dtype == np.uint32 and found.n == len(firsts)
    assert np.array_equal(found.labels, expected)
    assert np.array_equal(found.sizes, np.bincount(expected.ravel(), minlength=1))
    assert np.array_equal(found.firsts[1:], firsts)
    return found


@pytest.mark.parametrize('connectivity', [6, 18, 26])
@pytest.mark.parametrize('shape', [(1, 1, 1), (5, 1, 1), (1, 1, 5), (7, 6, 1), (6, 7, 9)])
@pytest.mark.parametrize('n_values', [2, 4])
def test_components_are_those_of_scipy(shape, connectivity, n_values):
    rng = np.random.default_rng(n_values)
    for share in (0.2, 0.5, 0.9):
        values = rng.integers(1, n_values, shape) * (rng.random(shape) < share)
        check_components(values.astype(np.uint32), connectivity)


@pytest.mark.parametrize('connectivity', [6, 18, 26])
def test_each_neighbor_counts_for_its_connectivity_only(connectivity):
    for offset in np.ndindex(3, 3, 3):
        values = np.zeros((3, 3, 3), np.uint32)
        values[1, 1, 1] = values[offset] = 9
        rank = np.abs(np.array(offset) - 1).sum()
        assert label_volume(values, connectivity).n == (1 if rank <= RANKS[connectivity] else 2)


def test_arms_that_meet_late_are_one():
    # A comb whose teeth hang together in the last slab only, and then a spiral.
    values = np.zeros((4, 3, 9), np.uint32)
    values[:, 1, ::2] = 5
    assert check_components(values, 26).n == 5
    values[3, 1] = 5
    assert check_components(values, 6).n == 1


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.uint64])
def test_values_of_other_types_and_strides_are_read_and_kept(dtype):
    values = np.random.default_rng(0).integers(0, 2, (8, 10, 9)).astype(dtype)
    if dtype == np.uint64:
        values *= np.uint64(2 ** 40)
    values.flags.writeable = False
    view = values[::2, ::3].T
    assert np.array_equal(label_volume(view).labels, volume_model(np.array(view), 6)[0])


def test_one_slab_is_an_image():
    values = np.random.default_rng(1).integers(0, 3, (1, 40, 31)).astype(np.uint32)
    for ours, theirs in ((6, 4), (18, 8), (26, 8)):
        found, expected = label_volume(values, ours), label_components(values[0], theirs)
        assert np.array_equal(found.labels[0], expected.labels)
        assert np.array_equal(found.sizes, expected.sizes)
        assert np.array_equal(found.firsts, expected.firsts)


@pytest.mark.parametrize('shape', [(0, 3, 3), (2, 0, 3), (2, 3, 0)])
def test_nothing_has_no_components(shape):
    found = label_volume(np.ones(shape, np.uint32))
    assert found.n == 0 and found.labels.shape == shape and found.sizes.tolist() == [0]


def test_threads_do_not_disturb_each_other():
    volumes = [np.random.default_rng(seed).integers(0, 3, (9, 20, 20)).astype(np.uint32)
               for seed in range(4)]
    results = [None] * 4

    def label(index):
        results[index] = label_volume(volumes[index], 26).labels

    threads = [threading.Thread(target=label, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for values, labels in zip(volumes, results):
        assert np.array_equal(labels, volume_model(values, 26)[0])


@pytest.mark.parametrize('connectivity', [4, 8, None, True, '6'])
def test_another_connectivity_is_refused(connectivity):
    with pytest.raises(OptionError, match='must be 6'):
        label_volume(np.ones((2, 2, 2), np.uint32), connectivity)


def test_images_and_volumes_too_large_are_refused(monkeypatch):
    with pytest.raises(OptionError, match='label_components'):
        label_volume(np.ones((2, 2), np.uint32))
    monkeypatch.setattr(volume_components, 'MAX_VOXELS', 7)
    with pytest.raises(LabelOverflowError, match='block by block'):
        label_volume(np.ones((2, 2, 2), np.uint32))
