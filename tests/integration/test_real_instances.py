"""Instances of real images: annotated nuclei, and a volume of electron microscopy."""
import runpy
import sys

import kwcoco
import numpy as np
import pytest

from cocoseg import (
    WatershedParameters, agree_objects, blockwise_watershed, connected_components, score_labels)
from cocoseg.io.raster import read_raster
from cocoseg.labels.volume_components import label_volume

from ..instances import draw_affinities

OFFSETS = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -9), (0, -9, 0), (-4, 0, 0)]


@pytest.fixture(scope='session')
def data(repo_root):
    """Folder of the sample data, which is beside the repository or nowhere."""
    path = repo_root.parent / 'shared' / 'data'
    if not path.is_dir():
        pytest.skip(f'no sample data at {path}')
    return path


@pytest.fixture(scope='session')
def bodies(data):
    """Annotated bodies of a part of the volume, uint32 (24, 120, 120)."""
    with np.load(data / 'em_fib25' / 'fib25_trvol250_z0_32.npz') as arrays:
        return arrays['gt_bodies'][:24, 60:180, 60:180].astype(np.uint32)


@pytest.fixture(scope='session')
def nuclei(data):
    """Gray image and true ids (512, 512)."""
    folder = data / 'cells_stardist'
    return [read_raster(folder / name)[..., 0] for name in ('img2d.tif', 'mask2d.tif')]


@pytest.fixture
def run_example(repo_root, monkeypatch, capsys):
    """Return a function that runs an example, and returns what it prints."""
    def run(name, *argv):
        pytest.importorskip('matplotlib')
        folder = repo_root / 'dev' / 'examples'
        monkeypatch.syspath_prepend(str(folder))
        runpy.run_path(str(folder / name))['main']([str(word) for word in argv])
        sys.modules.pop('drawing', None)
        return capsys.readouterr().out
    return run


@pytest.mark.parametrize('connectivity', [6, 26])
def test_components_of_bodies_are_those_of_the_whole(bodies, connectivity):
    result = connected_components(bodies, block_shape=(7, 50, 32), by_value=True,
                                  connectivity=connectivity)
    whole = label_volume(bodies, connectivity)
    assert np.array_equal(result.output, whole.labels) and result.n_labels == whole.n
    assert result.agreement == 1


def test_components_of_nuclei_are_those_of_the_whole(nuclei):
    from scipy import ndimage
    image, _ = nuclei
    result = connected_components(image, block_shape=60, threshold=40, connectivity=8)
    labels, n_labels = ndimage.label(image >= 40, np.ones((3, 3)))
    assert result.n_labels == n_labels and agree_objects(result.output, labels) == 1


def test_bodies_are_found_again_in_blocks(bodies):
    truth = label_volume(bodies, 26).labels
    affinities = draw_affinities(truth.astype(np.int32), OFFSETS, noise=0.3)
    parameters = WatershedParameters(OFFSETS, sigma=0.6, min_size=100, context=(10, 24, 24),
                                     filter_fragments=False)
    blocks = blockwise_watershed(affinities, parameters, block_shape=(12, 60, 60))
    whole = blockwise_watershed(affinities, parameters, block_shape=truth.shape)
    assert len(blocks.seams) > 10 and blocks.agreement > 0.97
    assert agree_objects(blocks.output, whole.output) > 0.8
    assert score_labels(whole.output, blocks.output).vi < 0.1
    scores = score_labels(truth, blocks.output)
    assert scores.vi < 0.3 and scores.rand_error < 0.05


def test_nuclei_of_the_image_alone(nuclei):
    pytest.importorskip('skimage')
    image, truth = nuclei
    parameters = WatershedParameters(method='foreground', threshold=6.0, sigma=1, min_size=30,
                                     seed_distance=6, context=48)
    result = blockwise_watershed(np.sqrt(image.astype(np.float32)), parameters, block_shape=100)
    scores = score_labels(truth, result.output)
    assert scores.f1 > 0.7 and scores.n_truth == 125
    whole = blockwise_watershed(np.sqrt(image.astype(np.float32)), parameters, block_shape=512)
    assert agree_objects(result.output, whole.output) > 0.9


def test_example_of_nuclei(data, tmp_path, run_example):
    pytest.importorskip('skimage')
    (tmp_path / 'data' / 'cells_dsb2018').mkdir(parents=True)
    for name in ('243443ae303c_img.png', '243443ae303c_inst.png'):
        (tmp_path / 'data' / 'cells_dsb2018' / name).write_bytes(
            (data / 'cells_dsb2018' / name).read_bytes())
    printed = run_example('find_nuclei.py', '--data', tmp_path / 'data', '--out',
                          tmp_path / 'out', '--executor', 'serial')
    scores = {line.split()[0]: float(line.split()[3]) for line in printed.splitlines()[1:4]}
    assert scores['mutex'] > 0.9 and scores['distance'] > 0.7 and scores['bright'] > 0.3
    for name in ('nuclei.png', 'search.png', 'search.csv'):
        assert (tmp_path / 'out' / name).stat().st_size > 500
    dset = kwcoco.CocoDataset(tmp_path / 'out' / 'mutex' / 'instances.kwcoco.json')
    assert dset.n_annots > 50 and all(0 < annot['score'] <= 1 for annot in dset.anns.values())


def test_example_of_a_volume(data, bodies, tmp_path, run_example):
    zarr = pytest.importorskip('zarr')
    (tmp_path / 'data' / 'em_fib25').mkdir(parents=True)
    with np.load(data / 'em_fib25' / 'fib25_trvol250_z0_32.npz') as arrays:
        part = {name: arrays[name][:, :120, :120] for name in ('raw', 'gt_bodies')}
    np.savez(tmp_path / 'data' / 'em_fib25' / 'fib25_trvol250_z0_32.npz', **part)
    printed = run_example('segment_em_volume.py', '--data', tmp_path / 'data', '--out',
                          tmp_path / 'out', '--executor', 'serial')
    assert 'of the objects are the same' in printed and '2x2x2' in printed
    assert (tmp_path / 'out' / 'volume.png').stat().st_size > 5000
    group = zarr.open_group(tmp_path / 'out' / 'em.zarr', mode='r')
    assert sorted(group.array_keys()) == ['affinities', 'bodies', 'instances', 'raw', 'truth',
                                          'whole']
    assert group['instances'].shape == part['raw'].shape and group['instances'][:].max() > 10


@pytest.mark.parametrize('name', ['find_nuclei.py', 'segment_em_volume.py'])
def test_examples_without_data_say_so(tmp_path, run_example, name):
    printed = run_example(name, '--data', tmp_path / 'none', '--out', tmp_path / 'out')
    assert 'Nothing was done' in printed and not (tmp_path / 'out').exists()
