"""blockwise_watershed: every parameter acts, blocks agree, and what is refused."""
import os

import numpy as np
import pytest

from cocoseg import (Roi, WatershedParameters, Window, blockwise_watershed, enumerate_parameters,
                     mutex_watershed, write_cog)
from cocoseg.errors import BandCountError, CoverageError, OptionError, TaskError
from cocoseg.io.raster import read_raster
from cocoseg.postprocess.smoothing import smooth
from cocoseg.postprocess.watershed import compute_means

from ..cells import OFFSETS_2D, OFFSETS_3D, make_affinities, make_cells, partition

SHAPE = (96, 120)
CELLS = make_cells(SHAPE, 14)
AFFINITIES = make_affinities(CELLS, OFFSETS_2D, noise=0.2)
PARAMETERS = WatershedParameters(OFFSETS_2D, context=16)


def find(affinities=AFFINITIES, parameters=PARAMETERS, **options):
    return blockwise_watershed(affinities, parameters, **{'block_shape': 32, **options})


def test_one_block_is_the_plain_watershed():
    result = find(parameters=PARAMETERS.patch(filter_fragments=False), block_shape=200)
    expected = mutex_watershed(np.moveaxis(AFFINITIES, -1, 0), OFFSETS_2D)
    assert np.array_equal(result.output, expected)
    assert result.seams == [] and result.grid_shape == (1, 1)
    assert result.sizes.tolist() == [0, *np.bincount(expected.ravel())[1:]]


def test_blocks_are_joined_to_what_one_block_finds():
    whole, blocks = find(block_shape=200), find()
    assert partition(whole.output) == partition(blocks.output)
    # Ids by first pixel, so that they are the same, too.
    assert np.array_equal(whole.output, blocks.output)
    assert blocks.grid_shape == (3, 4) and blocks.agreement > 0.95
    # Each block with its right, lower, and diagonal neighbors.
    assert len(blocks.seams) == 3 * 3 + 2 * 4 + 2 * 2 * 3
    np.testing.assert_allclose(blocks.scores[1:], whole.scores[1:], rtol=1e-6)


def test_volumes_are_joined_to_what_one_block_finds():
    cells = make_cells((24, 40, 44), 11)
    affinities = make_affinities(cells, OFFSETS_3D, noise=0.1)
    parameters = WatershedParameters(OFFSETS_3D, context=8)
    whole = blockwise_watershed(affinities, parameters, block_shape=64)
    blocks = blockwise_watershed(affinities, parameters, block_shape=(8, 16, 16),
                                 executor='threads:2')
    assert np.array_equal(whole.output, blocks.output)


def test_the_order_of_workers_changes_nothing():
    noisy = make_affinities(CELLS, OFFSETS_2D, noise=0.5)
    serial = find(noisy)
    for executor in ('threads:2', 'threads:4'):
        threads = find(noisy, executor=executor)
        assert np.array_equal(serial.output, threads.output)
        assert np.array_equal(serial.scores, threads.scores, equal_nan=True)
        assert serial.seams == threads.seams


def test_bias_divides_attraction_from_repulsion():
    counts = [find(parameters=PARAMETERS.patch(bias=bias, filter_fragments=False)).n_labels
              for bias in (0.1, 0.5, 0.9)]
    assert counts[0] < counts[1] < counts[2]


def test_min_size_drops_small_instances_whatever_the_blocks():
    parameters = PARAMETERS.patch(min_size=100)
    for block_shape in (32, 200):
        found, everything = find(parameters=parameters), find(block_shape=block_shape)
        is_large = everything.sizes >= 100
        assert 0 < found.n_labels == is_large.sum() < everything.n_labels
        assert np.array_equal(found.output > 0, is_large[everything.output])


def test_sigma_smooths_as_the_whole_image_would_be():
    noisy = make_affinities(CELLS, OFFSETS_2D, noise=0.5)
    noisy[40:45, 50:60] = np.nan
    channels = [smooth(noisy[..., channel], 1.5) for channel in range(noisy.shape[2])]
    smoothed = np.stack([np.where(is_valid, values, np.nan) for values, is_valid in channels], 2)
    blocks = find(noisy, PARAMETERS.patch(sigma=1.5))
    assert np.array_equal(blocks.output, find(smoothed).output)
    assert blocks.n_labels < find(noisy).n_labels
    assert not blocks.output[40:45, 50:60].any()


def test_threshold_masks_by_the_mean_affinity_or_by_a_foreground():
    # Edges that leave the image count for nothing.
    means = compute_means(np.moveaxis(AFFINITIES, -1, 0), OFFSETS_2D)
    assert np.allclose(means[:-4, :-4], AFFINITIES.mean(axis=2)[:-4, :-4])
    masked = find(parameters=PARAMETERS.patch(threshold=0.8))
    assert masked.n_labels and not masked.output[means < 0.8].any()
    assert find().output[means < 0.8].any()
    foreground = np.zeros(SHAPE, np.float32)
    foreground[10:50, 20:90] = 0.9
    found = find(parameters=PARAMETERS.patch(threshold=0.5), foreground=foreground)
    assert found.n_labels and not found.output[foreground == 0].any()


def test_context_is_what_blocks_see():
    noisy = make_affinities(CELLS, OFFSETS_2D, noise=0.45)
    whole = partition(find(noisy, block_shape=200).output)
    shares = [len(whole & partition(find(noisy, PARAMETERS.patch(context=context)).output))
              / len(whole) for context in (4, 16, 32)]
    assert shares[0] < shares[2] and shares[1] > 0.97


def test_fragments_that_do_not_hold_together_are_dropped():
    kept, every = find(), find(parameters=PARAMETERS.patch(filter_fragments=False))
    noisy = make_affinities(CELLS, OFFSETS_2D, noise=0.6)
    kept, every = (find(noisy, PARAMETERS.patch(filter_fragments=is_on)) for is_on in (True, False))
    assert 0 < kept.n_labels == (every.scores[1:] >= 0.5).sum() < every.n_labels
    assert np.array_equal(kept.output > 0, (every.scores >= 0.5)[every.output])


@pytest.mark.parametrize('method', ['foreground', 'distance', 'boundary'])
def test_seeded_methods_find_the_same_in_blocks(method):
    pytest.importorskip('skimage')
    from scipy import ndimage
    inside = np.zeros(SHAPE, bool)
    for y in range(12, SHAPE[0], 24):
        for x in range(12, SHAPE[1], 24):
            inside[y - 8:y + 8, x - 8:x + 8] = True
    inside[12, :100] = True
    surface = {'foreground': inside.astype(np.float32), 'boundary': 1 - inside.astype(np.float32),
               'distance': ndimage.distance_transform_edt(inside).astype(np.float32)}[method]
    parameters = WatershedParameters(method=method, threshold=0.5, context=24, seed_distance=6)
    whole, blocks = (blockwise_watershed(surface, parameters, block_shape=block_shape)
                     for block_shape in (200, 40))
    assert whole.n_labels == 20 and np.array_equal(whole.output > 0, inside)
    assert np.array_equal(whole.output, blocks.output)
    assert (blocks.scores[1:] > 0.4).all()


def test_nan_is_background_and_nothing_reaches_through_it():
    affinities = AFFINITIES.copy()
    affinities[:, 60:70] = np.nan
    result = find(affinities)
    assert not result.output[:, 60:70].any()
    everywhere = find(np.full((*SHAPE, 4), np.nan, np.float32))
    assert everywhere.n_labels == 0 and not everywhere.output.any()


def test_background_stays_background():
    affinities = AFFINITIES.copy()
    affinities[20:70, 30:80] = 0
    for options in ({}, {'block_shape': 200}):
        found = find(affinities, **options).output
        # Pixels before the hole reach 4 px into it.
        assert not found[24:70, 34:80].any() and found[:10].all()


def test_edges_that_leave_the_image_do_not_lower_the_mean():
    affinities = np.where(np.arange(30)[:, None, None] < 26, 0.9, [0.0, 0.9]).astype(np.float32)
    affinities = np.broadcast_to(affinities, (30, 40, 2)).copy()
    parameters = WatershedParameters([(4, 0), (0, 1)], context=4)
    for block_shape in (100, 8):
        result = blockwise_watershed(affinities, parameters, block_shape=block_shape)
        # The last channel leaves it at the right, where nothing else is missing.
        np.testing.assert_allclose(result.scores[1:], 0.9, rtol=1e-5)


def test_a_raster_becomes_a_raster(tmp_path):
    write_cog(tmp_path / 'a.tif', AFFINITIES, crs=32618, transform=(500, 10, 0, 800, 0, -10))
    result = find(tmp_path / 'a.tif', dst=tmp_path / 'b.tif')
    labels = read_raster(tmp_path / 'b.tif')[..., 0]
    assert labels.dtype == np.uint32 and np.array_equal(labels, find().output)
    assert sorted(os.listdir(tmp_path)) == ['a.tif', 'b.tif'] and result.n_labels == labels.max()
    with pytest.raises(OptionError, match='overwrite'):
        find(dst=tmp_path / 'b.tif')


def test_zarr_volumes_keep_their_place(tmp_path):
    pytest.importorskip('zarr')
    from cocoseg import ZarrArray
    affinities = make_affinities(make_cells((16, 30, 32), 10), OFFSETS_3D, noise=0.1)
    source = ZarrArray.create(tmp_path / 'a.zarr/affs', 'czyx', Roi((80, 0, 8), (640, 120, 128)), 3,
                              (40, 4, 4), 'float32')
    source.data[:] = np.moveaxis(affinities, -1, 0)
    parameters = WatershedParameters(OFFSETS_3D, context=6)
    blockwise_watershed(source, parameters, tmp_path / 'b.zarr/labels', block_shape=(8, 16, 16))
    found = ZarrArray.open(tmp_path / 'b.zarr/labels')
    assert found.roi == source.roi and found.voxel_size == source.voxel_size
    assert np.array_equal(found.data[:],
                          blockwise_watershed(affinities, parameters, block_shape=40).output)
    part = Roi((160, 40, 8), (320, 80, 128))
    blockwise_watershed(source, parameters, tmp_path / 'c.zarr', block_shape=(8, 16, 16), roi=part)
    assert ZarrArray.open(tmp_path / 'c.zarr').roi == part
    with pytest.raises(CoverageError, match='snap_to_grid'):
        blockwise_watershed(source, parameters, roi=Roi((161, 40, 8), (320, 80, 128)))


def test_filters_may_change_when_a_run_is_resumed(tmp_path):
    options = {'workdir': tmp_path / 'work', 'keep_tmpdir': True, 'resume': True}
    first = find(**options)
    found = find(parameters=PARAMETERS.patch(min_size=100), **options)
    assert (first.n_resumed, found.n_resumed) == (0, 12)
    assert np.array_equal(found.output, find(parameters=PARAMETERS.patch(min_size=100)).output)


@pytest.mark.parametrize('options, error', [
    ({'affinities': AFFINITIES[..., :3]}, BandCountError),
    ({'affinities': AFFINITIES.astype(np.int16)}, OptionError),
    ({'affinities': AFFINITIES[..., None]}, OptionError),
    ({'block_shape': 8}, OptionError),
    ({'block_shape': (32, 32, 32)}, OptionError),
    ({'ndim': 3}, OptionError),
    ({'foreground': np.zeros(SHAPE)}, OptionError),
    ({'foreground': np.zeros((5, 5)), 'parameters': PARAMETERS.patch(threshold=0.5)}, OptionError),
    ({'foreground': np.zeros((*SHAPE, 2)), 'parameters': PARAMETERS.patch(threshold=0.5)},
     BandCountError),
    ({'parameters': {'offsets': [(0, 1)]}}, OptionError),
    ({'roi': Window(0, 0, 0, 0)}, CoverageError),
    ({'roi': Window(0, 0, 1000, 10)}, CoverageError),
    ({'dst': 'labels.png'}, OptionError),
])
def test_wrong_input_is_refused(options, error):
    with pytest.raises(error):
        find(**options)


def test_a_seeded_watershed_needs_one_channel_and_enough_context():
    parameters = WatershedParameters(method='foreground', threshold=0.5, seed_distance=9)
    with pytest.raises(BandCountError, match='4 channels'):
        find(parameters=parameters)
    with pytest.raises(OptionError, match='seeds'):
        find(AFFINITIES[..., :1], parameters.patch(context=4))
    with pytest.raises(OptionError, match='at least 1'):
        find(AFFINITIES[..., :1], parameters.patch(context=0))


def test_a_block_that_fails_is_named():
    class Broken:
        name, shape, dtype = 'broken', AFFINITIES.shape, AFFINITIES.dtype

        def read(self, window):
            if window.x0 > 40:
                raise OSError('bad sector')
            return AFFINITIES[window.slices]

    with pytest.raises(TaskError, match=r'block \(0, 2\).*label broken.*bad sector'):
        find(Broken(), max_retries=0)


@pytest.mark.parametrize('changes', [
    {'method': 'magic'}, {'offsets': ()}, {'offsets': [(0, 0)]}, {'offsets': [(0, 1), (0, 1)]},
    {'offsets': [(0, 1), (0, 1, 1)]}, {'offsets': [(1,)]}, {'offsets': [(0.5, 1)]}, {'offsets': 3},
    {'threshold': np.nan}, {'threshold': 'high'}, {'sigma': -1}, {'sigma': np.inf},
    {'min_size': -1}, {'min_size': 1.5}, {'bias': None}, {'bias': np.nan}, {'context': -1},
    {'context': 3}, {'context': (16, 2)}, {'context': (16, 16, 16)}, {'seed_distance': 0},
    {'method': 'distance'}, {'method': 'foreground', 'offsets': ()},
    {'method': 'boundary'}])
def test_wrong_parameters_are_refused(changes):
    with pytest.raises(OptionError):
        PARAMETERS.patch(**changes)


def test_parameters_are_enumerated():
    found = list(enumerate_parameters(PARAMETERS, sigma=[0, 1], threshold=[None, 0.5]))
    assert [(one.sigma, one.threshold) for one in found] == [
        (0, None), (0, 0.5), (1, None), (1, 0.5)]
    assert all(one.patch(sigma=0, threshold=None) == PARAMETERS for one in found)
    for choices in ({'speed': [1]}, {'sigma': []}):
        with pytest.raises(OptionError):
            list(enumerate_parameters(PARAMETERS, **choices))
