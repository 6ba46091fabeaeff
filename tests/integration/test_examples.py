"""The predict scripts in dev/examples run from anywhere, and what they make is right."""
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import verify_cog
from cocoseg.io.raster import raster_info, read_raster

NAMES = ('predict_sklearn', 'predict_torch', 'migrate_from_geowatch', 'segment_and_classify',
         'instances_from_heatmap')
SIZE = 192
PROBS = 'bare|vegetation|water'


@pytest.fixture
def run_example(repo_root, tmp_path):
    """Return a function that runs a script in a folder of its own, and returns what it prints."""
    def run(name, *argv, path=''):
        dst = tmp_path / 'made' / name
        (tmp_path / 'elsewhere').mkdir(exist_ok=True)
        script = repo_root / 'dev' / 'examples' / f'{name}.py'
        return subprocess.run(
            [sys.executable, str(script), '--dst', str(dst), '--size', str(SIZE), *argv],
            cwd=tmp_path / 'elsewhere', capture_output=True, text=True, check=False,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join([str(path), str(repo_root)])}), dst
    return run


@pytest.fixture
def load_example(repo_root, monkeypatch):
    """Return a function that imports a script and returns its names."""
    folder = repo_root / 'dev' / 'examples'
    monkeypatch.syspath_prepend(str(folder))
    return lambda name: runpy.run_path(str(folder / f'{name}.py'))


def check_run(outcome, picture):
    """Check that a script ended well and made its picture; return what it printed."""
    done, dst = outcome
    assert done.returncode == 0, done.stderr
    assert raster_info(dst / picture).shape[0] >= SIZE and str(dst) in done.stdout
    return done.stdout


def find_shares(printed, pattern):
    """Return the percentages of the lines that match, as fractions."""
    return [float(number) / 100 for number in re.findall(pattern + r'\D*([\d.]+)%', printed)]


def list_assets(fpath):
    """Return the dataset, and the new files of its images by channels; all are verified."""
    dset = kwcoco.CocoDataset(str(fpath))
    files = []
    for image_id in dset.images():
        assets = {asset['channels']: Path(dset.bundle_dpath) / asset['file_name']
                  for asset in dset.coco_image(image_id).assets
                  if asset['channels'] != 'red|green|blue|nir'}
        for path in assets.values():
            verify_cog(path, full=True)
        files.append(assets)
    return dset, files


def test_sklearn(run_example):
    outcome = run_example('predict_sklearn', '--trees', '8')
    printed = check_run(outcome, 'classes.png')
    dset, files = list_assets(outcome[1] / 'pred.kwcoco.json')
    spread = 'bare_std|vegetation_std|water_std'
    for assets in files:
        assert set(assets) == {PROBS, 'pred_class', spread}
        probs, classes = (read_raster(assets[name]) for name in (PROBS, 'pred_class'))
        assert probs.shape == (SIZE, SIZE, 3)
        ordered = np.sort(probs, axis=2)
        is_clear = ordered[..., 2] - ordered[..., 1] > 1
        assert is_clear.mean() > 0.9
        assert (probs.argmax(axis=2) == classes[..., 0])[is_clear].all()
        # The model looks around a pixel, so that windows differ at their borders, and only there.
        assert 0 < (read_raster(assets[spread]) > 30).mean() < 0.2
    assert dset.coco_image(1).find_asset('pred_class')['categories'] == PROBS.split('|')
    shares = find_shares(printed, r'(?m)^(?:bare|vegetation|water) ')
    assert len(shares) == 3 and min(shares) > 0.9
    assert 'verified  9 files' in printed


def test_torch(run_example):
    pytest.importorskip('torch')
    outcome = run_example('predict_torch', '--steps', '30')
    printed = check_run(outcome, 'heads.png')
    dset, files = list_assets(outcome[1] / 'pred.kwcoco.json')
    shapes = {channels: raster_info(path).shape for channels, path in files[0].items()}
    hidden = 'hidden.0:8'
    assert shapes == {'salient': (SIZE, SIZE, 1), 'water|vegetation|bare': (SIZE, SIZE, 3),
                      'class_class': (SIZE, SIZE, 1), hidden: (SIZE // 2, SIZE // 2, 8)}
    found = dset.coco_image(1).imdelay(hidden, space='video').finalize()
    assert found.shape == (SIZE, SIZE, 8)
    assert find_shares(printed, 'agreement')[0] > 0.8 and 'verified   12 files' in printed


def test_without_torch(run_example, tmp_path):
    (tmp_path / 'torch.py').write_text("raise ImportError('there is none')")
    done, dst = run_example('predict_torch', path=tmp_path)
    assert done.returncode == 1 and not dst.exists()
    assert 'there is none' in done.stderr and 'pip install cocoseg[torch]' in done.stderr


def test_geowatch(run_example):
    outcome = run_example('migrate_from_geowatch')
    printed = check_run(outcome, 'water.png')
    assert '3 of 3 images are to be done' in printed and '2 of 3 images are to be done' in printed
    ways = [list_assets(outcome[1] / name / 'pred.kwcoco.json')[1] for name in
            ('drop_in', 'better')]
    assert len(ways[0]) == 3
    for old, new in zip(*ways):
        codes = [read_raster(assets['water|land']).astype(int) for assets in (old, new)]
        assert np.abs(codes[0] - codes[1]).max() <= 1 and codes[0].std() > 1000
    assert re.search(r'drop_in and better: at most [01] of 32767 codes apart', printed)


def test_segments(run_example):
    outcome = run_example('segment_and_classify')
    printed, dst = check_run(outcome, 'cover.png'), outcome[1]
    dset, files = list_assets(dst / 'cover.kwcoco.json')
    assert dset.coco_image(2).find_asset('cover')['categories'] == ['water', 'vegetation', 'bare']
    segments, cover = (read_raster(path)[..., 0] for path in
                       (dst / 'segments.tif', files[1]['cover']))
    assert ((cover == 255) == (segments == 0)).all()
    pairs = np.unique(np.stack([segments[segments > 0], cover[segments > 0]]), axis=1)
    assert pairs.shape[1] == segments.max() > 50 and set(pairs[1]) == {0, 1, 2}
    assert find_shares(printed, 'agreement')[0] > 0.9
    aligned = dset.coco_image(2).imdelay('cover', space='video', interpolation='nearest',
                                         nodata_method='float').finalize()
    assert np.array_equal(np.nan_to_num(aligned.reshape(cover.shape), nan=255), cover)


def test_colors_of_segments(load_example, tmp_path):
    from osgeo import gdal

    from cocoseg import write_cog
    write_cog(tmp_path / 'cover.tif', np.zeros((64, 64), np.uint8))
    load_example('segment_and_classify')['write_legend'](tmp_path / 'cover.tif')
    dataset = gdal.Open(str(tmp_path / 'cover.tif'))
    band = dataset.GetRasterBand(1)
    assert band.GetColorTable().GetColorEntry(0) == (0, 114, 178, 255)
    assert band.GetCategoryNames() == ['water', 'vegetation', 'bare']


def test_instances(run_example):
    pytest.importorskip('skimage')
    outcome = run_example('instances_from_heatmap', '--block', '96')
    printed = check_run(outcome, 'instances.png')
    dset, files = list_assets(outcome[1] / 'instances.kwcoco.json')
    for image_id, assets in zip(dset.images(), files):
        ids = read_raster(assets['instances'])[..., 0]
        annots = dset.annots(image_id=image_id).objs
        assert sorted(annot['segment_id'] for annot in annots) == list(range(1, ids.max() + 1))
        assert ids.max() > 1 and all(0.5 < annot['score'] <= 1 for annot in annots)
        assert np.bincount(ids.ravel()).min() >= 60
    assert find_shares(printed, 'agreement')[0] > 0.9 and find_shares(printed, 'finds')[0] > 0.8


@pytest.mark.parametrize('name', NAMES)
def test_help(load_example, name, capsys):
    if name == 'predict_torch':
        pytest.importorskip('torch')
    main = load_example(name)['main']
    with pytest.raises(SystemExit) as caught:
        main(['--help'])
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and '--dst' in printed and '--size' in printed


def test_size_that_does_not_fit(load_example, tmp_path):
    main = load_example('migrate_from_geowatch')['main']
    with pytest.raises(SystemExit, match='--size 500 is more than the 480 px'):
        main(['--dst', str(tmp_path), '--size', '500'])
