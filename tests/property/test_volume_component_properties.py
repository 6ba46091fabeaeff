"""Promises of the components of volumes, for what hypothesis draws."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg.labels.components import label_components
from cocoseg.labels.volume_components import label_volume

from ..unit.test_volume_components import check_components

QUICK = settings(max_examples=60, deadline=None)
CONNECTIVITIES = st.sampled_from([6, 18, 26])
DEPTHS = st.integers(1, 5)


@st.composite
def volumes(draw, depths=DEPTHS):
    """Draw small volumes of few values."""
    shape = (draw(depths), draw(st.integers(1, 6)), draw(st.integers(1, 7)))
    return draw(hnp.arrays(np.uint32, shape, elements=st.integers(0, draw(st.integers(1, 3)))))


@QUICK
@given(volumes(), CONNECTIVITIES)
def test_components_are_those_of_scipy(values, connectivity):
    check_components(values, connectivity)


@QUICK
@given(volumes(depths=st.just(1)), CONNECTIVITIES)
def test_one_slab_is_labeled_as_an_image(values, connectivity):
    image = label_components(values[0], 4 if connectivity == 6 else 8)
    assert np.array_equal(label_volume(values, connectivity).labels[0], image.labels)


@QUICK
@given(volumes(), CONNECTIVITIES, st.permutations(range(3)), st.tuples(*[st.booleans()] * 3))
def test_axes_may_be_swapped_and_flipped(values, connectivity, axes, flips):
    def turn(volume):
        return volume.transpose(axes)[tuple(slice(None, None, -1 if flip else 1)
                                            for flip in flips)]
    ours = turn(label_volume(values, connectivity).labels)
    theirs = label_volume(turn(values), connectivity)
    pairs = np.unique(np.stack([ours.ravel(), theirs.labels.ravel()]), axis=1)
    pairs = pairs[:, pairs[0] > 0]
    # One number each way: the partition is the same.
    assert pairs.shape[1] == theirs.n == len(set(pairs[0])) == len(set(pairs[1]))


@QUICK
@given(volumes())
def test_numbers_go_by_first_voxel_and_more_neighbors_only_join(values):
    counts = []
    for connectivity in (6, 18, 26):
        found = label_volume(values, connectivity)
        _, firsts = np.unique(found.labels[found.labels > 0], return_index=True)
        assert (np.diff(firsts) > 0).all() and (np.diff(found.firsts[1:]) > 0).all()
        assert found.sizes.sum() == values.size
        counts.append(found.n)
    assert counts[0] >= counts[1] >= counts[2]
