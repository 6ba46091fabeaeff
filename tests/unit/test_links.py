"""Links between blocks: by contact as in the whole, by majority without the halo."""
import itertools

import numpy as np
import pytest
from scipy import ndimage

from cocoseg import BlockGrid
from cocoseg.postprocess.label_blocks import FACTS, measure_labels, relabel
from cocoseg.postprocess.links import ContactLinker, LabeledBlock, OverlapLinker, iter_directions


def make_block(block, labels, shape):
    facts = measure_labels(labels[block.core.within(block.read).slices], int(labels.max()),
                           block.core, shape)
    return LabeledBlock(block, labels, facts)


@pytest.mark.parametrize('ndim', [2, 3])
def test_directions_are_half_of_all_neighbors(ndim):
    steps = iter_directions(ndim)
    both = {*steps, *(tuple(-part for part in step) for step in steps)}
    assert both == set(itertools.product((-1, 0, 1), repeat=ndim)) - {(0,) * ndim}
    assert len(steps) == len(both) // 2


@pytest.mark.parametrize('ndim, reach', [(2, 1), (2, 2), (3, 1), (3, 2), (3, 3)])
def test_contacts_are_those_of_the_whole(ndim, reach):
    rng = np.random.default_rng(ndim * 10 + reach)
    shape = (6,) * ndim
    grid = BlockGrid(shape, (3,) * ndim)
    whole = rng.integers(1, 4, shape) * (rng.random(shape) < 0.6)
    blocks = {block.index: make_block(block, np.arange(1, 3 ** ndim + 1, dtype=np.uint32)
                                      .reshape((3,) * ndim) * (whole[block.core.slices] > 0), shape)
              for block in grid}
    for labeled in blocks.values():
        # A label for each pixel, with its value.
        values = whole[labeled.block.core.slices].ravel()
        facts = np.zeros(3 ** ndim + 1, FACTS)
        facts['value'][1:] = values
        object.__setattr__(labeled, 'facts', facts)
    linker = ContactLinker(reach)
    found = set()
    for index, step in itertools.product(blocks, linker.directions(ndim)):
        other = tuple(map(sum, zip(index, step)))
        if other in blocks:
            pairs, seam = linker.link(blocks[index], blocks[other], step)
            assert seam.n_links == len(pairs) and seam.agreement == 1
            found |= {((index, a), (other, b)) for a, b in pairs.tolist()}
    expected = set()
    for pixel in np.argwhere(whole):
        for step in itertools.product((-1, 0, 1), repeat=ndim):
            other = pixel + step
            if (0 < sum(map(abs, step)) <= reach and (other >= 0).all() and (other < 6).all()
                    and whole[tuple(other)] == whole[tuple(pixel)]):
                names = []
                for place in (pixel, other):
                    index = tuple((place // 3).tolist())
                    names.append((index, int(np.ravel_multi_index(place % 3, (3,) * ndim)) + 1))
                if names[0][0] < names[1][0]:
                    expected.add(tuple(names))
    assert found == expected


def test_labels_seen_in_a_halo_alone_are_not_linked():
    grid = BlockGrid((4, 12), (4, 6), halo=3)
    left, right = grid
    # Something that the left block has in its halo only, and something that crosses.
    first, second = np.zeros((2, 4, 9), np.uint32)
    first[0, 7:9], first[2, 3:9] = 1, 2
    second[0, 4:6], second[2, 0:6] = 1, 2
    blocks = [make_block(block, labels, (4, 12)) for block, labels in
              zip((left, right), (first, second))]
    pairs, seam = OverlapLinker().link(*blocks, (0, 1))
    assert pairs.tolist() == [[2, 2]]
    # They do agree there, which is told.
    assert seam.agreement == 1 and seam.n_labeled == 8


def test_blocks_without_common_pixels_have_nothing_to_say():
    grid = BlockGrid((4, 12), (4, 6))
    blocks = [make_block(block, np.ones((4, 6), np.uint32), (4, 12)) for block in grid]
    pairs, seam = OverlapLinker().link(*blocks, (0, 1))
    assert pairs.shape == (0, 2) and seam.n_labeled == 0 and seam.agreement == 1


@pytest.mark.parametrize('shape', [(20, 30), (5, 6, 7)])
def test_measures_are_those_of_numpy(shape):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 9, shape).astype(np.uint32)
    values = rng.random(shape).astype(np.float32)
    values[values < 0.1] = np.nan
    for block in BlockGrid(shape, tuple(size // 2 + 1 for size in shape)):
        part = block.core.slices
        facts = measure_labels(whole[part], 8, block.core, shape, values[part])
        assert facts['size'].tolist() == [0, *np.bincount(whole[part].ravel(), minlength=9)[1:]]
        sums = ndimage.sum_labels(np.nan_to_num(values[part]), whole[part], np.arange(1, 9))
        np.testing.assert_allclose(facts['sum'][1:], sums, rtol=1e-6)
        only = np.zeros(shape, np.uint32)
        only[part] = whole[part]
        for label in range(1, 9):
            places = np.flatnonzero(only.ravel() == label)
            assert facts['first'][label] == (places[0] if len(places) else -1)


@pytest.mark.parametrize('dtype', [np.uint16, np.uint32])
def test_relabeling_is_a_lookup(dtype):
    rng = np.random.default_rng(0)
    lut = rng.integers(0, 2 ** 32, 100).astype(np.uint32)
    for shape in ((11, 13), (3, 5, 7)):
        labels = rng.integers(0, 100, shape).astype(dtype)
        assert np.array_equal(relabel(labels, lut), lut[labels])
        part = labels[..., 1:-1]
        assert np.array_equal(relabel(part, lut), lut[part])
