"""``cocoseg watershed``: rasters, Zarr arrays and manifests from the command line."""
import os

import kwcoco
import numpy as np
import pytest
from scipy import ndimage

from cocoseg import WatershedParameters, blockwise_watershed, verify_cog, write_cog
from cocoseg.cli.main import main
from cocoseg.cli.watershed import as_offsets
from cocoseg.coco.demo import demo_dataset
from cocoseg.errors import OptionError
from cocoseg.io.raster import open_dataset, raster_info, read_raster

from ..instances import OFFSETS, draw_affinities, draw_disks, draw_volume, make_bundle

VECTORS = ['--offsets', '0,1', '1,0', '-9,0', '0,-9']
GEO = {'crs': 32618, 'transform': (500000., 10., 0., 4000000., 0., -10.)}


@pytest.fixture(autouse=True)
def stay_in_a_folder(tmp_path, monkeypatch):
    """Nothing is written to where the tests are run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def truth():
    """Disks in rows that nearly touch, int32 (90, 120)."""
    return draw_disks()


@pytest.fixture
def affinities(tmp_path, truth):
    """A raster of affinities of the disks."""
    write_cog(tmp_path / 'affinities.tif', draw_affinities(truth), **GEO)
    return 'affinities.tif'


@pytest.fixture
def foreground(tmp_path, truth):
    """A raster of where disks are."""
    write_cog(tmp_path / 'foreground.tif', (truth > 0).astype('f4'), **GEO)
    return 'foreground.tif'


def watershed(src, dst, *options):
    return main(['watershed', os.fspath(src), '--dst', os.fspath(dst), *map(str, options)])


def test_raster_to_raster(tmp_path, affinities, truth, capsys):
    assert watershed(affinities, 'ids.tif', *VECTORS, '--block_shape', 48, '--context', 16,
                     '--threshold', 0.25, '--executor', 'threads:2') == 0
    labels = read_raster('ids.tif')[..., 0]
    assert np.array_equal(labels, truth)
    assert verify_cog('ids.tif').dtype == 'uint32' and raster_info('ids.tif').epsg == 32618
    printed = capsys.readouterr().out
    assert f'instances {truth.max()}\n' in printed
    # 2 x 3 blocks have 7 sides, and 2 x 2 corners, in common.
    assert 'seams     11, agreement 1.0000 overall, 1.0000 at least' in printed
    assert f'labels    {tmp_path}/ids.tif\n' in printed and 'Walltime' in printed
    assert sorted(os.listdir()) == ['affinities.tif', 'ids.tif']


@pytest.mark.parametrize('vectors', [
    ['--offsets', '0,1', '1,0', '-9,0', '0,-9'], ['--offsets', '0,1 1,0 -9,0 0,-9'],
    ['--offsets=0,1', '1,0', '-9,0', '0,-9'], ['--offsets', '-9,0 0,-9 0,1 1,0']])
def test_offsets_may_be_spelled_in_several_ways(affinities, truth, vectors):
    if vectors[-1].startswith('-9'):
        write_cog(affinities, draw_affinities(truth, as_offsets(vectors[-1])))
    assert watershed(affinities, 'ids.tif', *vectors, '--threshold', 0.25) == 0
    assert np.array_equal(read_raster('ids.tif')[..., 0], truth)


def test_a_single_negative_offset(truth):
    write_cog('one.tif', draw_affinities(truth, [(-1, 0)]))
    assert watershed('one.tif', 'ids.tif', '--offsets=-1,0', '--threshold', 0.25) == 0
    # Columns of pixels are all that is joined.
    assert read_raster('ids.tif').max() > truth.max()


@pytest.mark.parametrize('words', [['0,x'], ['0.5,1'], [[0, 'a']], [3]])
def test_offsets_that_are_no_numbers(words):
    with pytest.raises(OptionError, match='--offsets'):
        as_offsets(words)


@pytest.mark.parametrize('options, changes', [
    (['--threshold', 0.6], {'threshold': 0.6}),
    (['--sigma', 1.5], {'sigma': 1.5}),
    (['--min_size', 150], {'min_size': 150}),
    (['--bias', 0.8], {'bias': 0.8}),
    (['--bias', 0.9, '--keep_fragments'], {'bias': 0.9, 'filter_fragments': False}),
    (['--context', 9, 20], {'context': (9, 20)}),
])
def test_options_reach_the_watershed(tmp_path, truth, options, changes):
    noisy = draw_affinities(truth, noise=0.35)
    write_cog('noisy.tif', noisy)
    assert watershed('noisy.tif', 'ids.tif', *VECTORS, '--block_shape', 32, 40, *options) == 0
    base = WatershedParameters(OFFSETS)
    expected = blockwise_watershed(noisy, base.patch(**changes), block_shape=(32, 40)).output
    assert np.array_equal(read_raster('ids.tif')[..., 0], expected)
    plain = blockwise_watershed(noisy, base, block_shape=(32, 40)).output
    assert not np.array_equal(plain, expected)


def test_a_foreground_of_its_own(affinities, truth):
    half = (truth > 0).astype('f4')
    half[:, 58:] = 0
    write_cog('half.tif', half, **GEO)
    assert watershed(affinities, 'ids.tif', *VECTORS, '--threshold', 0.5, '--foreground',
                     'half.tif') == 0
    assert np.array_equal(read_raster('ids.tif')[..., 0] > 0, half > 0)


@pytest.mark.parametrize('method, threshold', [
    ('foreground', 0.5), ('distance', 0.5), ('boundary', 0.4)])
def test_seeded_methods(method, threshold):
    pytest.importorskip('skimage')
    truth = draw_disks(radius=10.5)
    values = {'foreground': truth > 0, 'boundary': truth == 0,
              'distance': ndimage.distance_transform_edt(truth)}[method]
    write_cog('map.tif', values.astype('f4'))
    # As many as there are, and rows of them that touch.
    for distance, n_instances in ((8, truth.max()), (25, 4)):
        ids = f'{distance}.tif'
        assert watershed('map.tif', ids, '--method', method, '--threshold', threshold, '--sigma',
                         0.5, '--seed_distance', distance, '--block_shape', 80, '--context',
                         40) == 0
        assert read_raster(ids).max() == n_instances


def test_nodata_of_a_raster_is_background(truth):
    pytest.importorskip('skimage')
    for dtype, nodata in (('f4', 1000), ('u1', 255)):
        boundary = np.where(truth > 0, 1, 0).astype(dtype)
        boundary[:30] = nodata
        write_cog('map.tif', boundary, nodata=nodata)
        assert watershed('map.tif', 'ids.tif', '--method', 'foreground', '--threshold', 0.5,
                         '--overwrite') == 0
        labels = read_raster('ids.tif')[..., 0]
        assert np.array_equal(labels > 0, boundary == 1) and labels.max() > 3


def test_polygons_of_a_raster(affinities, truth, capsys):
    assert watershed(affinities, 'ids.tif', *VECTORS, '--threshold', 0.25, '--polygons',
                     'ids.gpkg') == 0
    assert 'polygons  ' in capsys.readouterr().out
    from osgeo import ogr
    vector = ogr.Open('ids.gpkg')
    features = [(row['segment'], row['size'], row['score']) for row in vector.GetLayer('instances')]
    del vector
    sizes = np.bincount(truth.ravel())
    assert [(label, size) for label, size, _ in features] == list(enumerate(sizes))[1:]
    assert all(0.5 < score < 0.95 for _, _, score in features)


def test_volumes_from_zarr_to_zarr(capsys):
    pytest.importorskip('zarr')
    from cocoseg.grid.roi import Roi
    from cocoseg.io.zarr_array import ZarrArray
    truth, offsets = draw_volume(), [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -6), (-4, 0, 0)]
    source = ZarrArray.create('em.zarr/affs', 'czyx', Roi((80, 0, 0), (24 * 8, 320, 320)),
                              len(offsets), (8, 8, 8), 'f4')
    source.data[:] = np.moveaxis(draw_affinities(truth, offsets), -1, 0)
    assert watershed('em.zarr/affs', 'em.zarr/ids', '--offsets', '0,0,1', '0,1,0', '1,0,0',
                     '0,0,-6', '-4,0,0', '--block_shape', 12, 20, 20, '--context', 6, 10, 10,
                     '--threshold', 0.2) == 0
    ids = ZarrArray.open('em.zarr/ids')
    assert np.array_equal(ids.data[:], truth) and ids.roi == source.roi
    assert f'instances {truth.max()}\n' in capsys.readouterr().out


def test_ndim_tells_a_volume_without_offsets():
    zarr = pytest.importorskip('zarr')
    pytest.importorskip('skimage')
    truth = draw_volume()
    data = zarr.create_array('map.zarr', shape=truth.shape, dtype='f4')
    data[:] = truth > 0
    options = ['--method', 'foreground', '--threshold', 0.5, '--context', 12]
    assert watershed('map.zarr', 'ids.zarr', *options, '--ndim', 3) == 0
    assert zarr.open_array('ids.zarr').shape == truth.shape
    assert watershed('map.zarr', 'other.zarr', *options) == 1


def test_options_from_a_file(tmp_path, affinities, truth):
    (tmp_path / 'options.yaml').write_text(
        f'src: {affinities}\ndst: ids.tif\noffsets: [[0, 1], [1, 0], [-9, 0], [0, -9]]\n'
        'threshold: 0.25\ncontext: 16\nblock_shape: [40, 50]\n')
    assert main(['watershed', '--config', 'options.yaml']) == 0
    assert np.array_equal(read_raster('ids.tif')[..., 0], truth)


def test_manifest_to_manifest(tmp_path, truth, capsys):
    dset = make_bundle(tmp_path / 'src', [truth, truth[:44]])
    options = ['--channels', 'right|below|up|left', *VECTORS, '--threshold', 0.25, '--block_shape',
               48, '--context', 16]
    assert watershed(dset.fpath, 'out/ids.kwcoco.json', *options, '--polygons', '--category',
                     'disk') == 0
    result = kwcoco.CocoDataset('out/ids.kwcoco.json')
    n_instances = truth.max() + len(np.unique(truth[:44])) - 1
    printed = capsys.readouterr().out
    assert f'instances {n_instances}\n' in printed and 'seams     ' in printed
    assert 'images    2, of which 2 were done now' in printed
    assert len(result.annots(result.index.cid_to_aids[
        result.index.name_to_cat['disk']['id']])) == n_instances
    assert main(['verify', 'out/ids.kwcoco.json', '--full']) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob('out/**/*.tif')}
    assert watershed(dset.fpath, 'out/ids.kwcoco.json', *options, '--polygons', '--category',
                     'disk', '--resume') == 0
    assert 'of which 0 were done now' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob('out/**/*.tif')} == before


def test_a_channel_is_replaced_on_demand(tmp_path, truth):
    dset = make_bundle(tmp_path / 'src', [truth])
    options = ['--channels', 'right|below|up|left', *VECTORS]
    assert watershed(dset.fpath, 'a/ids.kwcoco.json', *options, '--threshold', 0.25) == 0
    assert watershed('a/ids.kwcoco.json', 'b/ids.kwcoco.json', *options) == 1
    assert watershed('a/ids.kwcoco.json', 'b/ids.kwcoco.json', *options, '--overwrite',
                     '--min_size', 10 ** 6) == 0
    image = kwcoco.CocoDataset('b/ids.kwcoco.json').coco_image(1)
    assert image.channels.fuse().as_list().count('instances') == 1
    assert image.imdelay('instances', interpolation='nearest').finalize().max() == 0


def test_a_run_is_resumed(affinities, truth, monkeypatch):
    from cocoseg.postprocess import watershed as module
    real, n_calls = module.label_instances, []

    def fail(*args, **kwargs):
        n_calls.append(1)
        if len(n_calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)
    options = [*VECTORS, '--threshold', 0.25, '--block_shape', 48, '--context', 16]
    monkeypatch.setattr(module, 'label_instances', fail)
    assert watershed(affinities, 'ids.tif', *options, '--resume') == 130
    assert not os.path.exists('ids.tif')
    assert watershed(affinities, 'ids.tif', *options, '--resume') == 0
    # Three blocks were done, and the fourth and two more are now.
    assert len(n_calls) == 4 + 3
    assert np.array_equal(read_raster('ids.tif')[..., 0], truth)
    assert sorted(os.listdir()) == ['affinities.tif', 'ids.tif']


@pytest.mark.parametrize('options, message', [
    (['--channels', 'a'], '--channels is for manifests'),
    (['--category', 'a'], '--category is for manifests'),
    (['--seed_distance', 3], '--seed_distance is for the seeded methods'),
    (['--polygons'], 'give --polygons a path'),
    (['--polygons', 'ids.shp'], '.gpkg'),
    (['--polygons', 'none/ids.gpkg'], 'none/ids.gpkg'),
    (['--context', 4], 'context=(4, 4) is smaller than the largest offsets'),
    (['--block_shape', 16], 'smaller than the context'),
    (['--foreground', 'affinities.tif'], 'foreground is for'),
    (['--offsets', '0,1', '1,0'], '4 channels and 2 offsets'),
    (['--offsets', '0,1', '1,0', '0,1', '0,2'], 'different from each other'),
    (['--executor', 'robots'], 'robots'),
    (['--max_retries', -1], 'max_retries=-1'),
])
def test_wrong_options_of_a_raster(affinities, capsys, options, message):
    assert watershed(affinities, 'ids.tif', *VECTORS, *options) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.splitlines()) == 1
    assert os.listdir() == ['affinities.tif']


@pytest.mark.parametrize('options, message', [
    (['--method', 'foreground'], 'needs a threshold'),
    (['--method', 'distance', '--threshold', 1, '--offsets', '0,1'], '--offsets is for mutex'),
    (['--method', 'distance', '--threshold', 1, '--bias', 0.4], '--bias is for mutex'),
    (['--method', 'boundary', '--foreground', 'a.tif'], '--foreground is for mutex'),
    (['--method', 'boundary', '--keep_fragments'], '--keep_fragments is for mutex'),
    ([], 'needs offsets'),
])
def test_wrong_options_of_a_method(foreground, capsys, options, message):
    assert watershed(foreground, 'ids.tif', *options) == 1
    assert message in capsys.readouterr().err and os.listdir() == ['foreground.tif']


@pytest.mark.parametrize('dst, options, message', [
    ('out.kwcoco.json', ['--ndim', 2], '--ndim is for rasters'),
    ('out.kwcoco.json', [], 'give --channels'),
    ('out.tif', ['--channels', 'red'], 'so must be --dst=out.tif'),
    ('out.kwcoco.json', ['--channels', 'red', '--polygons', 'a.gpkg'], 'takes no path'),
    ('out.kwcoco.json', ['--channels', 'red', '--category', 'a'], 'add --polygons'),
    ('out.kwcoco.json', ['--channels', 'red|nir'], "are 2, and the parameters need 1"),
    ('out.kwcoco.json', ['--channels', 'teal'], "no channels ['teal']"),
])
def test_wrong_options_of_a_manifest(tmp_path, capsys, dst, options, message):
    pytest.importorskip('skimage')
    src = demo_dataset(tmp_path / 'demo')
    assert watershed(src.fpath, dst, '--method', 'foreground', '--threshold', 5, *options) == 1
    assert message in capsys.readouterr().err
    assert not os.path.exists(dst)


def test_wrong_arguments(affinities, capsys):
    assert main(['watershed']) == 2
    with pytest.raises(SystemExit) as caught:
        watershed(affinities, 'ids.tif', '--nonsense', 1)
    assert caught.value.code == 2 and 'cocoseg watershed: error' in capsys.readouterr().err
    assert watershed('none.tif', 'ids.tif', *VECTORS) == 1
    assert 'none.tif' in capsys.readouterr().err
    write_cog('ids.tif', np.zeros((4, 4), 'u4'))
    assert watershed(affinities, 'ids.tif', *VECTORS) == 1
    with open_dataset('ids.tif') as dataset:
        assert dataset.RasterXSize == 4
    assert 'ids.tif exists' in capsys.readouterr().err


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['watershed', '--help'])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert 'cocoseg watershed affinities.tif' in printed and '--config' in printed
