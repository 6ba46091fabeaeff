"""Masks are those of the whole array, whatever the blocks, the executor and the logic."""
import functools

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cocoseg import Window, write_cog
from cocoseg.io.strips import Source
from cocoseg.postprocess.mask_sources import MaskSource
from cocoseg.postprocess.masks import compute_mask, prepare_selector

DTYPES = ('uint8', 'int16', 'float32')


@st.composite
def images(draw):
    """Small images of few values, and what is nodata in each band."""
    n_bands = draw(st.integers(1, 4))
    shape = (draw(st.integers(1, 12)), draw(st.integers(1, 12)), n_bands)
    dtype = draw(st.sampled_from(DTYPES))
    values = [0, 1, 2] + ([np.nan] if dtype == 'float32' else [])
    image = draw(hnp.arrays(dtype, shape, elements=st.sampled_from(values)))
    nodata = draw(st.lists(st.sampled_from([None, 0, 1, frozenset({0, 2})]), min_size=n_bands,
                           max_size=n_bands))
    return image, nodata


def find_stack(image, nodata):
    """Return bool (B, h, w) in plain numpy."""
    stack = []
    for band, entry in enumerate(nodata):
        values = [] if entry is None else list(entry) if isinstance(entry, frozenset) else [entry]
        samples = image[..., band]
        stack.append(np.isin(samples, np.array(values, image.dtype)) | (samples != samples))
    return np.array(stack)


blocks = st.tuples(st.integers(1, 14), st.integers(1, 14))


@settings(max_examples=40)
@given(images(), blocks, st.data())
def test_masks_are_those_of_the_whole_array(case, block_shape, data):
    image, nodata = case
    stack = find_stack(image, nodata)
    n_bands = len(stack)
    k = data.draw(st.integers(1, n_bands))
    find = functools.partial(compute_mask, image, nodata=nodata, block_shape=block_shape)
    np.testing.assert_array_equal(find(logic=k), stack.sum(axis=0) < k)
    np.testing.assert_array_equal(find(logic='any'), ~stack.any(axis=0))
    np.testing.assert_array_equal(find(logic='all'), ~stack.all(axis=0))
    np.testing.assert_array_equal(find(logic='any'), find(logic=1))
    np.testing.assert_array_equal(find(logic='all'), find(logic=n_bands))
    np.testing.assert_array_equal(find(logic=lambda part: part.sum(axis=0) >= k), find(logic=k))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(images(), blocks, st.sampled_from(['band', 'pixel']), st.data())
def test_files_are_what_arrays_are(tmp_path, case, block_shape, interleave, data):
    image, nodata = case
    k = data.draw(st.integers(1, image.shape[2]))
    # Larger than a tile, so that blocks are cut by tiles.
    image = np.tile(image, (9, 11, 1))
    write_cog(tmp_path / 'a.tif', image, blocksize=64, interleave=interleave)
    block_shape = tuple(9 * size for size in block_shape)
    np.testing.assert_array_equal(
        compute_mask(tmp_path / 'a.tif', nodata=nodata, logic=k, block_shape=block_shape),
        find_stack(image, nodata).sum(axis=0) < k)


@settings(max_examples=20)
@given(images(), blocks)
def test_any_and_all_are_dual(case, block_shape):
    """Not any is all of not: De Morgan, with what is data taken for nodata."""
    image, nodata = case
    masked = ~compute_mask(image, nodata=nodata, logic='any', block_shape=block_shape)
    opposite = (~np.moveaxis(find_stack(image, nodata), 0, 2)).astype(np.uint8)
    # In the opposite 1 stands for data; all bands being data is not any being nodata.
    np.testing.assert_array_equal(
        masked, compute_mask(opposite, nodata=1, logic='all', block_shape=block_shape))


@settings(max_examples=20)
@given(images(), blocks)
def test_more_bands_mask_less(case, block_shape):
    image, nodata = case
    masks = [compute_mask(image, nodata=nodata, logic=k, block_shape=block_shape)
             for k in range(1, image.shape[2] + 1)]
    assert all((one <= other).all() for one, other in zip(masks, masks[1:]))


@settings(max_examples=10)
@given(images(), blocks)
def test_executors_are_equal(case, block_shape):
    image, nodata = case
    found = [compute_mask(image, nodata=nodata, block_shape=block_shape, executor=executor)
             for executor in ('serial', 'threads:2')]
    np.testing.assert_array_equal(*found)


@settings(max_examples=20)
@given(images(), blocks, st.data())
def test_selectors_are_products(case, block_shape, data):
    image, nodata = case
    extra = data.draw(hnp.arrays('uint8', image.shape[:2], elements=st.integers(0, 1)))
    one = MaskSource.open(Source.open(image), nodata=nodata, logic='any')
    found = prepare_selector(image, extra, nodata=None, extra_masking_band=extra,
                             block_shape=block_shape)
    expected = ~np.isnan(image.astype(float)).any(axis=2) & (extra != 0)
    np.testing.assert_array_equal(found, expected)
    lazy = prepare_selector(image, nodata=nodata, extra_masking_band=extra, lazy=True)
    whole = Window.from_shape(image.shape)
    np.testing.assert_array_equal(lazy.read(whole), np.minimum(
        one.read(whole), 255 * extra[..., None]))
