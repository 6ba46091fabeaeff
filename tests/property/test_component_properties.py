"""Components block by block are those of the whole, whatever the blocks are."""
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from cocoseg import connected_components
from cocoseg.labels.components import label_components

_REACH = {4: 1, 8: 2, 6: 1, 18: 2, 26: 3}


@st.composite
def volumes(draw, ndim, n_values=2):
    """Random arrays, from nearly empty to nearly full."""
    shape = tuple(draw(st.integers(1, 24 if ndim == 2 else 9)) for _ in range(ndim))
    seed, share = draw(st.integers(0, 2 ** 20)), draw(st.floats(0.1, 0.9))
    rng = np.random.default_rng(seed)
    return (rng.integers(1, n_values, shape, endpoint=n_values > 2)
            * (rng.random(shape) < share)).astype(np.uint8)


def draw_blocks(data, ndim):
    return tuple(data.draw(st.integers(1, 26 if ndim == 2 else 10)) for _ in range(ndim))


def label_whole(image, connectivity):
    """Return scipy's labels, which are numbered by first pixel, too."""
    structure = ndimage.generate_binary_structure(image.ndim, _REACH[connectivity])
    return ndimage.label(image, structure)[0]


@settings(max_examples=60, deadline=None)
@given(volumes(2), st.sampled_from([4, 8]), st.data())
def test_images_are_labeled_as_at_once(image, connectivity, data):
    result = connected_components(image, block_shape=draw_blocks(data, 2),
                                  connectivity=connectivity)
    expected = label_whole(image, connectivity)
    assert np.array_equal(result.output, expected)
    assert result.n_labels == expected.max(initial=0)
    assert result.sizes[1:].tolist() == np.bincount(expected.ravel())[1:].tolist()


@settings(max_examples=40, deadline=None)
@given(volumes(3), st.sampled_from([6, 18, 26]), st.data())
def test_volumes_are_labeled_as_at_once(image, connectivity, data):
    result = connected_components(image, block_shape=draw_blocks(data, 3),
                                  connectivity=connectivity)
    assert np.array_equal(result.output, label_whole(image, connectivity))


@settings(max_examples=40, deadline=None)
@given(volumes(2, n_values=4), st.sampled_from([4, 8]), st.data())
def test_components_of_one_value_are_labeled_as_at_once(image, connectivity, data):
    result = connected_components(image, block_shape=draw_blocks(data, 2),
                                  connectivity=connectivity, by_value=True)
    assert np.array_equal(result.output, label_components(image, connectivity).labels)


@settings(max_examples=20, deadline=None)
@given(volumes(2), st.integers(0, 9), st.data())
def test_small_components_are_told_by_all_their_blocks(image, min_size, data):
    result = connected_components(image, block_shape=draw_blocks(data, 2), min_size=min_size)
    labels = label_whole(image, 4)
    sizes = np.bincount(labels.ravel())
    assert np.array_equal(result.output > 0, (sizes[labels] >= min_size) & (labels > 0))
    ids = np.unique(result.output[result.output > 0])
    assert ids.tolist() == list(range(1, result.n_labels + 1))


@settings(max_examples=15, deadline=None)
@given(volumes(2), st.data())
def test_the_executor_changes_nothing(image, data):
    blocks = draw_blocks(data, 2)
    serial, threads = (connected_components(image, block_shape=blocks, executor=executor).output
                       for executor in ('serial', 'threads:3'))
    assert np.array_equal(serial, threads)


@settings(max_examples=15, deadline=None)
@given(volumes(2), st.sampled_from([4, 8]), st.data())
def test_a_turned_image_has_the_turned_components(image, connectivity, data):
    def partition(labels):
        return {tuple(np.flatnonzero(labels.ravel() == label)) for label in
                range(1, labels.max(initial=0) + 1)}
    found = connected_components(image, block_shape=draw_blocks(data, 2),
                                 connectivity=connectivity).output
    turned = connected_components(image.T[::-1], block_shape=draw_blocks(data, 2),
                                  connectivity=connectivity).output
    assert partition(found) == partition(np.ascontiguousarray(turned[::-1].T))
