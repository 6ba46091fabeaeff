"""
What the reference did wrong when a write failed or was cut short: items 3 to 6.
"""
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg.coco.lifecycle import ImageState
from cocoseg.errors import AssetWriteError, CogError, OptionError, ResumeError
from cocoseg.io.verify import verify_cog


# ---- 3 ---------------------------------------------------------------------

@pytest.mark.parametrize('on_queue', [False, True])
@pytest.mark.parametrize('prob_format', ['cog', 'tif', 'png'])
def test_03_failed_write_registers_nothing(make_dataset, make_manager, read, noise,
                                           prob_format, on_queue):
    """A failed write left a dangling entry and lost the data; it must be retried."""
    dset = make_dataset()
    manager = make_manager(dset, prob_format=prob_format)
    manager.accumulate_image(1, None, noise())
    before = copy.deepcopy(dset.dataset)
    obstacle = Path(manager.prob_dpath) / ('img1_x.png' if prob_format == 'png' else 'img1_x.tif')
    obstacle.mkdir()

    def finish():
        if on_queue:
            manager.submit_finalize_image(1)
            manager.flush_images()
        else:
            manager.finalize_image(1)
    for _ in range(2):
        with pytest.raises(AssetWriteError) as caught:
            finish()
        assert caught.value.image_id == 1 and str(obstacle) in str(caught.value)
        assert dset.dataset == before
        assert manager.managed_image_ids() == [1] and not manager.is_done(1)
        assert manager.image_state(1) is ImageState.FAILED
        assert [name for name in os.listdir(manager.prob_dpath) if name != obstacle.name] == []
    obstacle.rmdir()
    finish()
    assert manager.is_done(1) and len(dset.imgs[1]['auxiliary']) == 1
    assert np.allclose(read(dset, 1), noise(), atol=2 / 254 if prob_format == 'png' else 1e-4)


# ---- 4 ---------------------------------------------------------------------

FULL_DISK = '''
    import copy, json, os, resource, sys
    import kwcoco, numpy as np
    from cocoseg import CocoStitchingManager
    dset = kwcoco.CocoDataset({'videos': [], 'annotations': [], 'categories': [], 'images': [
        {'id': 1, 'name': 'a', 'file_name': None, 'width': 300, 'height': 300,
         'auxiliary': []}]})
    dset.fpath = os.path.join(sys.argv[1], 'out.kwcoco.json')
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    facts = {}
    def attempt(function):
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 << 10, hard))
        try:
            function()
            return 'no error'
        except Exception as ex:
            return type(ex).__name__
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    data = np.random.RandomState(0).rand(300, 300, 1)
    for fmt in ['cog', 'tif', 'png', 'journal']:
        is_journal = fmt == 'journal'
        manager = CocoStitchingManager(
            dset, fmt, fmt, 'image', expected_minmax=(0, 1),
            prob_format='cog' if is_journal else fmt)
        folder = manager.prob_dpath
        if is_journal:
            # The asset is small; only the line about it finds no room.
            with open(os.path.join(folder, f'.cocoseg-{fmt}.jsonl'), 'w') as file:
                file.write(chr(10) * (64 << 10))
        manager.accumulate_image(1, None, data * 0 + .5 if is_journal else data)
        before = copy.deepcopy(dset.dataset)
        kind = attempt(lambda: manager.finalize_image(1))
        facts[fmt] = dict(
            kind=kind, unchanged=before == dset.dataset, managed=manager.managed_image_ids(),
            files=[name for name in os.listdir(folder) if not name.endswith('.jsonl')])
        manager.finalize_image(1)
        back = dset.coco_image(1).imdelay(fmt, space='image').finalize()
        truth = data * 0 + .5 if is_journal else data
        facts[fmt]['error_after_retry'] = float(abs(back - truth).max())
    manager.dump()
    dset.dataset['info'] = ['x' * (128 << 10)]
    facts['dump'] = dict(
        kind=attempt(manager.dump), n_images=kwcoco.CocoDataset(dset.fpath).n_images,
        files=sorted(os.listdir(sys.argv[1])))
    print(json.dumps(facts))
'''


def test_04_full_disk_is_an_error(tmp_path, run_child):
    """A full disk registered a cut-off file; it must raise, register nothing, be retried."""
    facts = run_child(FULL_DISK, tmp_path)
    for name in ['cog', 'tif', 'png', 'journal']:
        fact = facts[name]
        assert fact['kind'] == 'AssetWriteError', name
        assert fact['unchanged'] and fact['managed'] == [1], name
        assert fact['error_after_retry'] < (1 / 254 if name == 'png' else 1e-4), name
        if name != 'journal':
            assert fact['files'] == [], name
    assert facts['dump']['kind'] in ('OSError', 'AssetWriteError')
    assert facts['dump']['n_images'] == 1
    assert facts['dump']['files'] == ['_assets', 'out.kwcoco.json']


# ---- 5 ---------------------------------------------------------------------

@pytest.mark.parametrize('options', [
    {'prob_compress': 'FANTASY'}, {'prob_compress': ''}, {'prob_compress': 7},
    {'prob_compress': 'JPEG'}, {'prob_blocksize': 100}, {'prob_blocksize': 0},
    {'prob_blocksize': -256}, {'prob_blocksize': '256'}, {'prob_format': 'jpg'},
    {'prob_format': None}, {'dtype': 'int16'}, {'dtype': 'float16'}, {'dtype': None},
    {'readiness': 'sometimes'}, {'on_collision': 'merge'}, {'stitching_space': 'asset'},
    {'expected_minmax': (1, 0)}, {'expected_minmax': (0, float('nan'))},
    {'expected_minmax': (0, float('inf'))}, {'expected_minmax': 3}, {'expected_minmax': 'ab'},
    {'chan_code': None}, {'chan_code': ''}, {'chan_code': 'a|a'}, {'chan_code': 'a|b,c'},
    {'short_code': '../out'}, {'short_code': '/abs'}, {'short_code': 'a\0'},
    {'assets_dname': '..'}, {'assets_dname': ''}, {'num_bands': 3}, {'memory_budget': 0},
    {'memory_budget': -1}, {'polygon_categories': ['y']},
    {'memmap': 3}, {'memory_budget': 'much'},
], ids=str)
def test_05_unknown_options_are_refused(make_dataset, make_manager, options):
    """An unknown option was a warning at most; it must be refused before any file."""
    dset = make_dataset()
    with pytest.raises(OptionError) as caught:
        make_manager(dset, **options)
    name, value = next(iter(options.items()))
    values = map(str, value if isinstance(value, tuple) else [value])
    assert name in str(caught.value) or all(part in str(caught.value) for part in values)
    assert not os.path.exists(dset.bundle_dpath)


@pytest.mark.parametrize('compress, found', [
    ('ZSTD', 'ZSTD'), ('deflate', 'DEFLATE'), ('LZW', 'LZW'), ('RAW', 'NONE')])
def test_05_known_options_are_honoured(make_dataset, make_manager, noise, compress, found):
    """The compression asked for must be the one in the file."""
    manager = make_manager(make_dataset(), prob_compress=compress, prob_blocksize=64)
    manager.accumulate_image(1, None, noise())
    manager.finalize_image(1)
    assert verify_cog(Path(manager.prob_dpath) / 'img1_x.tif').compression == found


# ---- 6 ---------------------------------------------------------------------

N_IMAGES = 24

# Finishes images one by one, as a rerun of a long job would.
PRODUCER = f'N_IMAGES = {N_IMAGES}' + '''
import os, sys
import kwcoco, numpy as np
from cocoseg import CocoStitchingManager, WriterQueue

def make_source(folder):
    """Return the dataset to predict on: the saved result if there is one."""
    fpath = os.path.join(folder, 'out.kwcoco.json')
    if os.path.exists(fpath):
        return kwcoco.CocoDataset(fpath)
    images = [{'id': image_id, 'name': f'img{image_id}', 'file_name': None,
               'width': 300, 'height': 300, 'auxiliary': []}
              for image_id in range(1, N_IMAGES + 1)]
    dset = kwcoco.CocoDataset({'images': images, 'videos': [], 'annotations': [],
                               'categories': []})
    dset.fpath = fpath
    return dset

def make_data(image_id):
    """Return what is predicted for an image."""
    return np.random.RandomState(image_id).rand(300, 300, 3).astype(np.float32)

def produce(folder, prob_format):
    """Finish all images that are not finished; return the dataset and how many were."""
    dset = make_source(folder)
    queue = WriterQueue(workers=2)
    with queue, CocoStitchingManager(
            dset, 'pred', 'x|y|z', 'image', expected_minmax=(0, 1),
            prob_format=prob_format, writer_queue=queue, resume=True) as manager:
        done = sorted(manager.seen_image_ids)
        for image_id in dset.images():
            if not manager.is_done(image_id):
                manager.accumulate_image(image_id, None, make_data(image_id))
                manager.submit_finalize_image(image_id)
            if image_id % 5 == 0:
                manager.dump()
        manager.dump()
    return dset, done
'''


def kill_after(folder, prob_format, n_files, repo_root):
    """Run the producer, and kill it when so many assets have their final name."""
    code = PRODUCER + 'produce(*sys.argv[1:])'
    process = subprocess.Popen(
        [sys.executable, '-c', code, str(folder), prob_format], cwd=repo_root,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        while len(list_assets(folder)) < n_files:
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()


def list_assets(folder):
    """Return the paths of all files that look finished."""
    return [path for path in sorted((folder / '_assets' / 'pred').glob('*'))
            if not path.name.startswith('.')]


def assert_whole(path):
    """Raise unless a finished file can be read to its last pixel."""
    if path.suffix == '.tif':
        verify_cog(path, full=True)
    assert kwimage.imread(str(path)).shape == (300, 300, 3)


def read_journal(folder):
    """Return the complete records of the journal; only the last line may be cut."""
    fpaths = list((folder / '_assets' / 'pred').glob('.cocoseg-*.jsonl'))
    *lines, last = fpaths[0].read_text().split('\n') if fpaths else ['']
    assert last == '' or not last.endswith('}'), 'a line lacks its end'
    return [json.loads(line)['record'] for line in lines]


@pytest.mark.parametrize('prob_format', ['cog', 'png'])
def test_06_killed_while_writing(tmp_path, repo_root, prob_format):
    """A kill left cut-off files under final names; what is there must be whole."""
    folder, names = tmp_path / 'bundle', {}
    exec(PRODUCER, names)
    for n_files in (1, 12):
        kill_after(folder, prob_format, n_files, repo_root)
        for path in list_assets(folder):
            assert_whole(path)
        noted = [record['asset']['file_name'] for record in read_journal(folder)]
        assert len(noted) == len(set(noted)) >= n_files - 2
        for file_name in noted:
            assert_whole(folder / file_name)
        if (folder / 'out.kwcoco.json').exists():
            saved = kwcoco.CocoDataset(folder / 'out.kwcoco.json')
            assert saved.missing_images(check_aux=True) == []
    dset, done = names['produce'](str(folder), prob_format)
    assert len(done) == len(noted)
    assert len(list_assets(folder)) == N_IMAGES
    leftovers = [path.name for path in (folder / '_assets' / 'pred').glob('.*')]
    assert [name for name in leftovers if not name.endswith('.jsonl')] == []
    undisturbed = tmp_path / 'undisturbed'
    names['produce'](str(undisturbed), prob_format)
    for path, other in zip(list_assets(folder), list_assets(undisturbed)):
        assert path.name == other.name and path.read_bytes() == other.read_bytes()
    for image_id in dset.images():
        assert len(dset.imgs[image_id]['auxiliary']) == 1
        found = dset.coco_image(image_id).imdelay('x|y|z', space='image').finalize()
        assert np.abs(found - names['make_data'](image_id)).max() < 1 / 254


def start_and_stop(dset, make_manager, noise, n_done, **options):
    """Finish some images and drop the manager as a crash would."""
    manager = make_manager(dset, **options)
    for image_id in range(1, n_done + 1):
        manager.accumulate_image(image_id, None, noise(image_id))
        manager.finalize_image(image_id)
    return Path(manager.prob_dpath)


@pytest.mark.parametrize('options', [
    {'expected_minmax': (0, 2)}, {'prob_compress': 'DEFLATE'}, {'prob_blocksize': 128},
    {'prob_format': 'tif'}, {'prob_format': 'png'}, {'quantize': False},
    {'dtype': 'float64'}, {'stitching_space': 'video'}], ids=str)
def test_06_resume_with_other_settings(make_dataset, make_manager, noise, options):
    """Files of two kinds must not be mixed: a resume with other settings must raise."""
    folder = start_and_stop(make_dataset(2), make_manager, noise, 1)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    dset = make_dataset(2)
    untouched = copy.deepcopy(dset.dataset)
    with pytest.raises(ResumeError, match='other settings.*short_code'):
        make_manager(dset, resume=True, **options)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert dset.dataset == untouched
    assert make_manager(dset, resume=True).seen_image_ids == {1}


@pytest.mark.parametrize('from_saved', [False, True])
@pytest.mark.parametrize('prob_format', ['cog', 'png'])
@pytest.mark.parametrize('damage', ['gone', 'short', 'zeros'])
def test_06_resume_redoes_damaged_assets(make_dataset, make_manager, read, noise, damage,
                                         prob_format, from_saved):
    """A finished file that was damaged since must be found out, and done again."""
    dset = make_dataset(2)
    folder = start_and_stop(dset, make_manager, noise, 2, prob_format=prob_format)
    if from_saved:
        dset.dump(dset.fpath)
        dset = kwcoco.CocoDataset(dset.fpath)
    else:
        dset = make_dataset(2)
    path, = folder.glob('img1_x.*')
    content = path.read_bytes()
    if damage == 'gone':
        path.unlink()
    else:
        path.write_bytes({'short': content[:-50], 'empty': b'', 'zeros': bytes(len(content))}
                         [damage])
    manager = make_manager(dset, prob_format=prob_format, resume=True)
    assert manager.seen_image_ids == {2}
    manager.accumulate_image(1, None, noise(1))
    manager.close()
    for image_id in (1, 2):
        assert len(dset.imgs[image_id]['auxiliary']) == 1
        assert np.allclose(read(dset, image_id), noise(image_id), atol=1 / 254)


@pytest.mark.parametrize('garbage', ['{"version": 1, "conf', 'half', '\0' * 60, '\xff\xfe'])
def test_06_resume_with_a_broken_journal_line(make_dataset, make_manager, read, noise, garbage):
    """A line that a crash cut short must cost one image, not the whole run."""
    folder = start_and_stop(make_dataset(2), make_manager, noise, 2)
    journal, = folder.glob('.cocoseg-*.jsonl')
    first, second, _ = journal.read_text().split('\n')
    cut = second[:len(second) // 2] if garbage == 'half' else garbage
    journal.write_text(f'{first}\n{cut}')
    dset = make_dataset(2)
    manager = make_manager(dset, resume=True)
    assert manager.seen_image_ids == {1}
    manager.accumulate_image(2, None, noise(2))
    manager.close()
    assert make_manager(make_dataset(2), resume=True).seen_image_ids == {1, 2}
    assert np.allclose(read(dset, 2), noise(2), atol=1e-4)


def test_06_resume_knows_an_image_by_its_name(make_dataset, make_manager, noise):
    """An id that means another image now must not take over the old asset."""
    start_and_stop(make_dataset(2), make_manager, noise, 2)
    dset = make_dataset(2)
    dset.imgs[2]['name'] = 'another'
    assert make_manager(dset, resume=True).seen_image_ids == {1}
    assert dset.imgs[2]['auxiliary'] == []


def test_06_unfinished_file_has_no_final_name(make_dataset, make_manager, noise, monkeypatch):
    """A reader saw the file grow; until it is verified there must be no such name."""
    from cocoseg.io import cog
    manager = make_manager(make_dataset())
    manager.accumulate_image(1, None, noise())
    seen, verify = [], cog.verify_cog

    def look(path, **options):
        seen.extend(os.listdir(manager.prob_dpath))
        verify(path, **options)
        raise CogError('found wrong')
    monkeypatch.setattr(cog, 'verify_cog', look)
    with pytest.raises(AssetWriteError, match='found wrong'):
        manager.finalize_image(1)
    assert len(seen) == 1 and seen[0].startswith('.') and seen[0].endswith('.tmp')
    assert os.listdir(manager.prob_dpath) == []
