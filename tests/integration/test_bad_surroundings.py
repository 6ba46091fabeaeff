"""
Bad surroundings of the stitching manager: datasets, names, folders and disks.

As in test_bad_input.py: a typed error, nothing changed, and a right end later.
"""
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg import CocoStitchingManager, predict_dataset
from cocoseg.errors import AssetWriteError, CocosegError, ManifestError

from ..builders import GOOD, LEFT, RIGHT, finish_right, put_in_state

# ---- datasets --------------------------------------------------------------

class CocoSqlDatabase(kwcoco.CocoDataset):
    """What carries this name cannot take results, whatever else it can."""


@pytest.mark.parametrize('kind', ['look-alike', 'none', 'dict', 'path', 'number'])
def test_what_is_no_json_dataset(dset, tmp_path, kind):
    """An SQL view, and anything that is no dataset, is refused with the remedy."""
    other = CocoSqlDatabase(dset.dataset)
    other.fpath = dset.fpath
    result = {'look-alike': other, 'none': None, 'dict': dset.dataset, 'path': dset.fpath,
              'number': 3}[kind]
    before = copy.deepcopy(dset.dataset)
    with pytest.raises(ManifestError, match='kwcoco.CocoDataset'):
        CocoStitchingManager(result, 'pred', 'x|y')
    assert dset.dataset == before and list(tmp_path.iterdir()) == []


def test_sql_view(dset, tmp_path):
    """A real SQL view is refused as well, also as the input of a prediction."""
    pytest.importorskip('sqlalchemy')
    Path(dset.fpath).parent.mkdir()
    dset.dump(dset.fpath)
    view = dset.view_sql(memory=True)
    for call in (lambda: CocoStitchingManager(view, 'pred', 'x|y'),
                 lambda: predict_dataset(view, tmp_path / 'dst.kwcoco.json', np.copy)):
        with pytest.raises(CocosegError, match='CocoDataset'):
            call()
    assert not (tmp_path / 'bundle' / '_assets').exists()
    assert not (tmp_path / 'dst.kwcoco.json').exists()


@pytest.mark.parametrize('fpath', [None, '', './data.kwcoco.json'])
def test_manifest_without_a_path(dset, tmp_path, monkeypatch, fpath):
    """A manifest that lives nowhere has no place for assets."""
    monkeypatch.chdir(tmp_path)
    dset.fpath = fpath
    with pytest.raises(ManifestError, match='fpath'):
        CocoStitchingManager(dset, 'pred', 'x|y')
    assert list(tmp_path.iterdir()) == []


def test_manifest_path_without_a_folder(dset, tmp_path, monkeypatch):
    """A bare file name is a path like any other."""
    monkeypatch.chdir(tmp_path)
    dset.fpath = 'named.kwcoco.json'
    with CocoStitchingManager(dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1)) as manager:
        finish_right(manager, [LEFT, RIGHT])
        manager.dump()
    assert sorted(path.name for path in tmp_path.iterdir()) == ['_assets', 'named.kwcoco.json']


@pytest.mark.parametrize('device', ['fantasy', 'cuda:99'])
def test_device_that_is_not_there(make_manager, device):
    """A device that cannot be had is an error of ours, with or without torch."""
    with pytest.raises(CocosegError, match='device|torch'):
        manager = make_manager(device=device)
        manager.accumulate_image(1, None, GOOD)


# ---- names -----------------------------------------------------------------

HOSTILE = ['../../escape', '/abs/olute', 'a/b', '..', 'nul\0byte', 'n' * 400, 'frame', 'frame',
           None, None, '', 'Frame']


def test_hostile_names_stay_inside(tmp_path):
    """Names that are missing, equal, long or dangerous give distinct files in the folder."""
    (tmp_path / 'src').mkdir()
    videos = [{'id': n, 'name': f'../v{n}', 'width': 24, 'height': 16} for n in (1, 2)]
    images = []
    for index, name in enumerate(HOSTILE):
        kwimage.imwrite(str(tmp_path / 'src' / f'{index}.png'),
                        np.full((16, 24), 10 * index, np.uint8))
        images.append({'id': index + 1, 'name': name, 'file_name': f'{index}.png',
                       'width': 24, 'height': 16, 'channels': 'pan',
                       'video_id': 1 + (index in (7, 9)), 'frame_index': index})
    src = kwcoco.CocoDataset({'images': images, 'videos': videos, 'annotations': [],
                              'categories': []}, bundle_dpath=str(tmp_path / 'src'))
    src.fpath = str(tmp_path / 'src' / 'data.kwcoco.json')
    dst = tmp_path / 'dst' / 'out.kwcoco.json'
    result = predict_dataset(src, dst, lambda image: image / 255, window=16, overlap=4,
                             channels='pan', out_channels='p', expected_minmax=(0, 1))
    assets = [result.imgs[index + 1]['auxiliary'][-1]['file_name']
              for index in range(len(HOSTILE))]
    assert len({name.casefold() for name in assets}) == len(HOSTILE)
    folder = tmp_path / 'dst' / '_assets' / 'pred'
    for index, name in enumerate(assets):
        path = tmp_path / 'dst' / name
        assert path.is_file() and path.resolve().parent == folder.resolve()
        found = result.coco_image(index + 1).imdelay('p', space='image').finalize()
        assert np.allclose(found, 10 * index / 255, atol=1e-4)
    outside = [path for path in tmp_path.rglob('*') if path.is_file() and path.suffix == '.tif'
               and path.parent != folder]
    assert outside == []


# ---- folders and disks -----------------------------------------------------

def test_bundle_below_a_file(dset, tmp_path):
    """A folder that cannot be made is reported when the manager is made."""
    (tmp_path / 'file').write_text('no folder')
    dset.fpath = str(tmp_path / 'file' / 'out.kwcoco.json')
    before = copy.deepcopy(dset.dataset)
    with pytest.raises(AssetWriteError, match='file.*writable'):
        CocoStitchingManager(dset, 'pred', 'x|y')
    assert dset.dataset == before


def test_memmap_below_a_file(make_manager, tmp_path):
    """A memmap folder that cannot be used is an error of ours, and nothing is begun."""
    (tmp_path / 'file').write_text('no folder')
    with pytest.raises(CocosegError, match='memmap'):
        manager = make_manager(memmap=tmp_path / 'file' / 'maps')
        manager.accumulate_image(1, None, GOOD)


@pytest.mark.parametrize('obstacle', ['removed', 'file'])
def test_asset_folder_that_goes_away(manager, dset, obstacle):
    """Whoever removes the folder meanwhile costs an error at most, no data."""
    todo = put_in_state(manager, 'begun')
    folder = Path(manager.prob_dpath)
    folder.rmdir()
    if obstacle == 'file':
        folder.write_text('in the way')
        for place in todo:
            manager.accumulate_image(1, place, GOOD[place])
        before, todo = copy.deepcopy(dset.dataset), []
        with pytest.raises(AssetWriteError) as caught:
            manager.finalize_image(1)
        assert caught.value.image_id == 1 and str(folder) in str(caught.value)
        assert dset.dataset == before and manager.managed_image_ids() == [1]
        folder.unlink()
    finish_right(manager, todo)


def test_manifest_that_cannot_be_saved(manager, dset, tmp_path):
    """A manifest that cannot be written is an error; a good path works afterwards."""
    finish_right(manager, [LEFT, RIGHT])
    (tmp_path / 'file').write_text('no folder')
    before = copy.deepcopy(dset.dataset)
    for fpath in (tmp_path / 'file' / 'out.kwcoco.json', tmp_path):
        with pytest.raises(OSError):
            manager.dump(fpath)
    assert dset.dataset == before
    manager.dump()
    assert kwcoco.CocoDataset(dset.fpath).dataset['images'] == dset.dataset['images']


FULL_DISK = '''
import copy, json, os, resource, sys
import kwcoco, numpy as np
from cocoseg import CocoStitchingManager
from cocoseg.errors import CocosegError
folder, facts = sys.argv[1], {}
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
data = np.random.RandomState(0).rand(300, 300)
for name, options in [('asset', {}), ('memmap', {'memmap': folder + '/maps'}),
                      ('budget', {'memory_budget': 1}), ('declared', {}),
                      ('spooled', {'memory_budget': 1, 'prob_format': 'tif'})]:
    dset = kwcoco.CocoDataset({'videos': [], 'annotations': [], 'categories': [], 'images': [
        {'id': 1, 'name': 'a', 'file_name': None, 'width': 300, 'height': 300,
         'auxiliary': []}]})
    dset.fpath = os.path.join(folder, name, 'out.kwcoco.json')
    manager = CocoStitchingManager(dset, 'pred', 'x', 'image', expected_minmax=(0, 1), **options)
    before, begun = copy.deepcopy(dset.dataset), False
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
    try:
        if name in ('declared', 'spooled'):
            manager.expect_windows(1, [(slice(0, 300), slice(0, 300))])
        manager.accumulate_image(1, None, data)
        begun = True
        manager.finalize_image(1)
        fact = {'error': None}
    except Exception as ex:
        fact = {'error': type(ex).__name__, 'is_ours': isinstance(ex, CocosegError),
                'message': str(ex)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    fact['unchanged'] = dset.dataset == before
    fact['files'] = [path for _, _, paths in os.walk(os.path.dirname(dset.fpath))
                     for path in paths if not path.endswith(('.jsonl', '.lock'))]
    fact['begun'] = begun
    if not begun:
        fact['not_begun'] = manager.managed_image_ids() == [] and not manager.patch_counts[1]
        manager.accumulate_image(1, None, data)
    manager.finalize_image(1)
    found = dset.coco_image(1).imdelay('x', space='image').finalize()[..., 0]
    fact['error_at_last'] = float(abs(found - data).max())
    facts[name] = fact
print(json.dumps(facts))
'''


def test_full_disk(tmp_path, repo_root):
    """A full disk is a typed error in every place, and is tried again with success."""
    result = subprocess.run([sys.executable, '-c', FULL_DISK, str(tmp_path)], cwd=repo_root,
                            capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    facts = json.loads(result.stdout.splitlines()[-1])
    for name, fact in facts.items():
        assert fact['is_ours'], (name, fact)
        assert fact['unchanged'] and fact['files'] == [], (name, fact)
        assert fact['error_at_last'] < 1e-4, (name, fact)
        assert fact.get('not_begun', True), name
    # The blocks of a window that is being added are in RAM; they are spilled to be read.
    # Blocks of a COG are compressed, and these fit in RAM until the file is made.
    begun = ['asset', 'budget', 'declared']
    assert [name for name in facts if facts[name]['begun']] == begun
    assert {facts[name]['error'] for name in begun} == {'AssetWriteError'}
    assert facts['memmap']['error'] == facts['spooled']['error'] == 'CanvasError'
    assert os.listdir(tmp_path / 'maps') == []
