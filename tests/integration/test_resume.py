"""
A run that was cut short goes on: same bytes, same manifest, only what is left.

A child is killed at every flush and rename of a run that saves its manifest at
intervals, over a bundle of an older run. Then what else must be the same is
changed, and what an earlier run left is damaged.
"""
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kwcoco
import numpy as np
import pytest
from osgeo import gdal

from cocoseg import (CocoStitchingManager, EstimatorPredictor, WriterQueue, load_predictor,
                     predict_dataset, write_cog)
from cocoseg.coco import manifest as manifest_module
from cocoseg.coco.journal import compute_checksum
from cocoseg.coco.predict import identify_predictor
from cocoseg.errors import AssetWriteError, OptionError, ResumeError
from cocoseg.io.verify import verify_cog

from ..builders import GOOD, make_two_images

# --- what is seen of a bundle ----------------------------------------------------


def iter_registered(folder):
    """Yield (path, entry) of all assets of ours that the saved manifest names."""
    fpath = Path(folder) / 'out.kwcoco.json'
    for img in json.loads(fpath.read_text())['images'] if fpath.exists() else ():
        for asset in img['auxiliary']:
            if asset['file_name'].startswith('_assets'):
                yield Path(folder) / asset['file_name'], asset


def find_lies(folder):
    """Return what the saved manifest says that is not so."""
    lies = []
    for path, asset in iter_registered(folder):
        if not path.exists():
            lies.append(f'{path.name} is not there')
            continue
        verify_cog(path, full=True)
        told = json.loads(gdal.Open(os.fspath(path)).GetMetadata()['quantization'])
        if told != asset['quantization']:
            lies.append(f'{path.name} has the code {told}, not {asset["quantization"]}')
    return lies


def read_files(folder):
    """Return the bytes of all assets."""
    return {path.name: path.read_bytes() for path in Path(folder, '_assets').rglob('*.*')
            if not path.name.startswith('.')}


def list_hidden(folder):
    return [path.name for path in Path(folder).rglob('.*') if not path.name.endswith('.jsonl')]


def load(folder):
    return kwcoco.CocoDataset(Path(folder) / 'out.kwcoco.json').dataset


# --- killed at every step -----------------------------------------------------------

KILLS = '''
    import json, os, shutil, signal, sys
    import kwcoco, numpy as np
    # Children need not import and compile it again. No thread is started here.
    import cv2, delayed_image, imagecodecs, kwimage, safer, scipy.ndimage, shapely, tifffile
    from osgeo import gdal, osr
    import cocoseg.coco.finalize, cocoseg.io.images, cocoseg.io.polygonize, cocoseg.io.verify
    from cocoseg import CocoStitchingManager, SoftStitcher, WriterQueue
    stitcher = SoftStitcher((72, 80, 2))
    stitcher.add((slice(0, 72), slice(0, 80)), np.ones((72, 80, 2), 'f4'))
    stitcher.finalize()
    # A kill loses nothing that was written; only a power cut would.
    os.fsync = lambda descriptor: None
    # Every image is followed by a dump, however long the last one took.
    cocoseg.coco.manifest._PAUSE = 0

    def run(folder, scale=1.0, resume=False):
        # The code of a file depends on its values: no range is given.
        images = [{'id': n, 'name': f'img{n}', 'file_name': None, 'width': 80, 'height': 72,
                   'auxiliary': []} for n in (1, 2)]
        dset = kwcoco.CocoDataset({'images': images, 'videos': [], 'annotations': [],
                                   'categories': []})
        dset.fpath = os.path.join(folder, 'out.kwcoco.json')
        with WriterQueue(workers=0) as queue, CocoStitchingManager(
                dset, 'pred', 'x|y', 'image', write_preds=True, thresh=0.997, dump_interval=0,
                prob_blocksize=64, writer_queue=queue, resume=resume) as manager:
            done = sorted(manager.seen_image_ids)
            for n in {1, 2} - set(done):
                data = np.random.RandomState(n).rand(72, 80, 2).astype('f4') * scale
                manager.accumulate_image(n, None, data)
                manager.submit_finalize_image(n)
            manager.dump()
        return done

    def trap(last):
        """Die before the call number ``last``; return the list of calls."""
        calls = []
        def wrap(name, real):
            def wrapped(*args, **options):
                calls.append(name)
                if len(calls) == last:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **options)
            setattr(os, name, wrapped)
        wrap('fsync', os.fsync)
        wrap('replace', os.replace)
        return calls

    def fork(work):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        status = os.waitpid(pid, 0)[1]
        return os.waitstatus_to_exitcode(status)

    root = sys.argv[1]
    old, whole = os.path.join(root, 'old'), os.path.join(root, 'whole')
    assert fork(lambda: run(old, scale=0.5)) == 0 == fork(lambda: run(whole))
    for last in range(1, 99):
        cut = os.path.join(root, f'cut{last}')
        shutil.copytree(old, cut)
        def work():
            trap(last)
            run(cut)
        status = fork(work)
        after = cut + '_resumed'
        shutil.copytree(cut, after)
        def resume():
            with open(os.path.join(after, 'done'), 'w') as file:
                json.dump(run(after, resume=True), file)
        assert fork(resume) == 0
        if status == 0:
            break
        assert status == -signal.SIGKILL
'''


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
def test_killed_at_every_step_over_an_older_run(tmp_path, repo_root):
    subprocess.run([sys.executable, '-c', textwrap.dedent(KILLS), os.fspath(tmp_path)],
                   cwd=repo_root, check=True)
    whole, reference = read_files(tmp_path / 'whole'), load(tmp_path / 'whole')
    old = read_files(tmp_path / 'old')
    assert whole.keys() == old.keys() and all(whole[name] != old[name] for name in whole)
    assert len(reference['annotations']) > 5 and find_lies(tmp_path / 'whole') == []
    cuts = sorted(tmp_path.glob('cut*_resumed'), key=lambda path: int(re.sub(r'\D', '', path.name)))
    assert len(cuts) > 15
    n_done = []
    for after in cuts:
        cut = after.with_name(after.name.removesuffix('_resumed'))
        # What was killed: a manifest that tells the truth, and files of one run or the other.
        assert find_lies(cut) == [], cut.name
        for name, content in read_files(cut).items():
            assert content in (old[name], whole[name]), (cut.name, name)
        # What went on.
        assert read_files(after) == whole, cut.name
        assert load(after) == reference, cut.name
        assert list_hidden(after) == [], cut.name
        n_done.append(len(json.loads((after / 'done').read_text())))
    assert n_done == sorted(n_done) and set(n_done) == {0, 1, 2}


def test_a_reader_never_sees_a_manifest_that_is_not_true(tmp_path, monkeypatch):
    """Two writers, and dumps whenever an image is done; the reader never stops."""
    images = [{'id': n, 'name': f'img{n}', 'file_name': None, 'width': 64, 'height': 64,
               'auxiliary': []} for n in range(1, 25)]
    dset = kwcoco.CocoDataset({'images': images, 'videos': [], 'annotations': [],
                               'categories': []})
    dset.fpath = str(tmp_path / 'out.kwcoco.json')
    monkeypatch.setattr(manifest_module, '_PAUSE', 0)
    seen, lies, is_over, passes = set(), [], threading.Event(), threading.Semaphore(0)

    def read():
        while not is_over.is_set() and not lies:
            seen.add(len(list(iter_registered(tmp_path))))
            lies.extend(find_lies(tmp_path))
            passes.release()
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(read)
        try:
            with WriterQueue(workers=2) as queue, CocoStitchingManager(
                    dset, 'pred', 'x|y', 'image', dump_interval=0, writer_queue=queue) as manager:
                for image_id in dset.images():
                    manager.accumulate_image(image_id, None, GOOD * image_id)
                    manager.submit_finalize_image(image_id)
                    if image_id % 8 == 0:
                        # However slow the reader is, it sees something in between.
                        manager.flush_images()
                        assert all(passes.acquire(timeout=60) for _ in range(2))
        finally:
            is_over.set()
        reader.result()
    assert lies == [] and len(seen) > 2


# --- saving at intervals -------------------------------------------------------------

def make_manager(dset, **options):
    return CocoStitchingManager(dset, **{
        'short_code': 'pred', 'chan_code': 'x|y', 'stitching_space': 'image',
        'expected_minmax': (0, 1), **options})


def finish(manager, *image_ids, data=GOOD):
    for image_id in image_ids:
        manager.accumulate_image(image_id, None, data)
        manager.finalize_image(image_id)


@pytest.mark.parametrize('interval, expected', [(None, None), (1e9, None), (0, 1)])
def test_only_an_interval_saves_by_itself(tmp_path, interval, expected):
    dset = make_two_images(tmp_path)
    with make_manager(dset, dump_interval=interval) as manager:
        finish(manager, 1)
        assert os.path.exists(dset.fpath) == (expected is not None)
        assert len(list(iter_registered(tmp_path))) == (expected or 0)


def test_an_image_stays_finished_if_the_manifest_cannot_be_saved_then(tmp_path, caplog):
    dset = make_two_images(tmp_path)
    os.mkdir(dset.fpath)
    (tmp_path / 'out.kwcoco.json' / 'full').touch()
    with make_manager(dset, dump_interval=0) as manager:
        manager._finisher._dumper._is_ready = True
        finish(manager, 1)
        assert manager.is_done(1) and 'could not be saved now' in caplog.text
        with pytest.raises(OSError):
            manager.dump()


def test_an_old_manifest_that_cannot_be_replaced_stops_the_first_image(tmp_path, monkeypatch):
    dset = make_two_images(tmp_path)
    dset.dump()
    manager = make_manager(dset, dump_interval=1e9)
    manager.accumulate_image(1, None, GOOD)
    with monkeypatch.context() as patch:
        def fail(*args, **options):
            raise OSError(28, 'No space left on device (simulated)')
        patch.setattr(dset, 'dump', fail)
        with pytest.raises(AssetWriteError, match='simulated'):
            manager.finalize_image(1)
    assert read_files(tmp_path) == {}
    manager.finalize_image(1)
    assert len(read_files(tmp_path)) == 1


@pytest.mark.parametrize('option', [{'dump_interval': -1}, {'dump_interval': float('nan')},
                                    {'dump_interval': True}, {'dump_interval': '60'},
                                    {'settings': ['a']}, {'settings': {'model': object()}}])
def test_wrong_options_are_refused_before_anything_is_made(tmp_path, option):
    with pytest.raises(OptionError, match=next(iter(option))):
        make_manager(make_two_images(tmp_path), **option)
    assert os.listdir(tmp_path) == []


# --- what must be the same --------------------------------------------------------------

def test_settings_must_be_the_same(tmp_path):
    with make_manager(make_two_images(tmp_path), settings={'model': 'v1'}) as manager:
        finish(manager, 1)
    for settings, told in (({'model': 'v2'}, 'settings.model was "v1", now "v2"'),
                           (None, 'settings.model was "v1", now not given')):
        with pytest.raises(ResumeError, match=re.escape(told)):
            make_manager(make_two_images(tmp_path), settings=settings, resume=True)
    with make_manager(make_two_images(tmp_path), settings={'model': 'v1'}, resume=True) as manager:
        assert manager.seen_image_ids == {1}


@pytest.mark.parametrize('option, told', [
    ({'prob_compress': 'DEFLATE'}, "prob_compress was 'ZSTD', now 'DEFLATE'"),
    ({'expected_minmax': (0, 2)}, 'expected_minmax was (0, 1), now (0, 2)'),
    ({'layers': ['mask']}, 'layers was not given, now ')])
def test_the_option_that_differs_is_named(tmp_path, option, told):
    with make_manager(make_two_images(tmp_path)) as manager:
        finish(manager, 1)
    with pytest.raises(ResumeError) as caught:
        make_manager(make_two_images(tmp_path), resume=True, **option)
    message = str(caught.value)
    assert told in message and '.jsonl' in message and 'short_code' in message
    hashes = re.search(r'hash (\w{16}), now (\w{16})', message)
    assert hashes[1] == manager.options.config_hash != hashes[2]
    assert message.count(' was ') == 2


def make_source(folder):
    """Write two images of one band; return the path of their manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'src.kwcoco.json')
    for index in range(2):
        image_id = dset.add_image(name=f'f{index}', width=70, height=52, auxiliary=[])
        for name in ('red', 'nir'):
            pixels = np.random.RandomState(image_id).rand(52, 70).astype('f4')
            write_cog(folder / f'f{index}_{name}.tif', pixels)
            dset.imgs[image_id]['auxiliary'].append({
                'file_name': f'f{index}_{name}.tif', 'channels': name, 'width': 70, 'height': 52,
                'warp_aux_to_img': {'type': 'affine'}})
    dset.dump()
    return dset.fpath


@pytest.fixture(scope='module')
def src(tmp_path_factory):
    return make_source(tmp_path_factory.mktemp('src'))


class Model:
    """A predictor that says who it is, and ends the run at some call."""

    def __init__(self, fingerprint=None, end_at=None):
        self.n_calls, self.end_at = 0, end_at
        if fingerprint is not None:
            self.fingerprint = fingerprint

    def __call__(self, image):
        if self.n_calls == self.end_at:
            raise KeyboardInterrupt
        self.n_calls += 1
        return image[..., :1]


def predict(src, folder, model, **options):
    return predict_dataset(src, folder / 'out.kwcoco.json', model, **{
        'window': 40, 'overlap': 0.25, 'out_channels': 'heat', 'expected_minmax': (0, 1),
        'space': 'image', **options})


N_WINDOWS = 4  # of an image


@pytest.fixture()
def cut(src, tmp_path):
    """A bundle whose run was ended in the second image."""
    with pytest.raises(KeyboardInterrupt):
        predict(src, tmp_path, Model('v1', N_WINDOWS + 2))
    return tmp_path


@pytest.mark.parametrize('options, told', [
    ({'window': 36}, 'settings.window was [40, 40], now [36, 36]'),
    ({'overlap': 11}, 'settings.overlap was [10, 10], now [11, 11]'),
    ({'fit': 'flush'}, 'settings.fit was "balanced", now "flush"'),
    ({'channels': 'nir|red'}, 'settings.channels was "red|nir", now "nir|red"'),
    ({'space': 'video'}, "space was 'image', now 'video'"),
    ({'settings': {'seed': 1}}, 'settings.seed was not given, now 1'),
    ({'predictor': Model('v2')}, 'settings.predictor was "v1", now "v2"'),
    ({'predictor': Model()}, 'settings.predictor was "v1", now not given')])
def test_what_the_loop_was_told_must_be_the_same(src, cut, options, told):
    model = options.pop('predictor', Model('v1'))
    before = read_files(cut)
    with pytest.raises(ResumeError, match=re.escape(told)):
        predict(src, cut, model, resume=True, **options)
    assert model.n_calls == 0 and read_files(cut) == before and len(before) == 1


def test_other_channels_are_another_journal(src, cut):
    """There is nothing to resume, and the file of the first run is not mixed in."""
    model = Model('v1')
    dset = predict(src, cut, model, out_channels='other', resume=True)
    assert model.n_calls == 2 * N_WINDOWS
    assert [asset['channels'] for asset in dset.imgs[1]['auxiliary']] == ['red', 'nir', 'other']


@pytest.mark.parametrize('options', [
    {}, {'batch_size': 1}, {'prefetch': 0}, {'memory_budget': 1}, {'dump_interval': None},
    {'overlap': 10}, {'window': (40, 40)}, {'channels': 'red|nir'}])
def test_a_loop_that_was_cut_short_goes_on(src, cut, tmp_path_factory, options):
    whole = tmp_path_factory.mktemp('whole')
    expected = predict(src, whole, Model('v1')).dataset
    model = Model('v1')
    found = predict(src, cut, model, resume=True, **options)
    # The image that was cut short began again from its first window.
    assert model.n_calls == N_WINDOWS
    assert read_files(cut) == read_files(whole)
    strip = json.dumps(expected).replace(os.fspath(whole), '')
    assert json.dumps(found.dataset).replace(os.fspath(cut), '') == strip
    assert json.loads(strip) == json.loads(json.dumps(load(cut)).replace(os.fspath(cut), ''))
    again = Model('v1')
    predict(src, cut, again, resume=True, **options)
    assert again.n_calls == 0


def test_the_loop_saves_its_manifest_while_it_runs(src, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        predict(src, tmp_path, Model(end_at=N_WINDOWS + 2), dump_interval=0)
    registered = list(iter_registered(tmp_path))
    assert [asset['channels'] for _, asset in registered] == ['heat']
    assert find_lies(tmp_path) == []


def test_the_command_resumes(src, tmp_path, monkeypatch, capsys):
    from cocoseg.cli.main import main
    (tmp_path / 'ending.py').write_text(
        'calls = []\n'
        'def model(image):\n'
        '    calls.append(1)\n'
        f'    if len(calls) == {N_WINDOWS + 2}:\n'
        '        raise KeyboardInterrupt\n'
        '    return image[..., :1]\n')
    monkeypatch.syspath_prepend(tmp_path)
    argv = ['predict', src, '--dst', os.fspath(tmp_path / 'out.kwcoco.json'), '--predictor',
            'ending:model', '--window', '40', '--overlap', '10', '--out_channels', 'heat',
            '--space', 'image', '--dump_interval', '0']
    assert main(argv) == 130
    assert len(list(iter_registered(tmp_path))) == 1
    assert main([*argv, '--resume']) == 0
    import ending
    assert len(ending.calls) == 2 * N_WINDOWS + 2
    assert len(list(iter_registered(tmp_path))) == 2 and find_lies(tmp_path) == []
    capsys.readouterr()
    assert main([*argv, '--resume', '--window', '36']) == 1
    assert 'settings.window was [40, 40], now [36, 36]' in capsys.readouterr().err
    assert main([*argv, '--dump_interval', '-3']) == 1
    assert 'dump_interval=-3.0' in capsys.readouterr().err


# --- who the predictor is -----------------------------------------------------------------

def test_a_predictor_says_who_it_is():
    assert identify_predictor(Model('v1')) == 'v1'
    model = Model('v1')
    model.config_hash = 'abc'
    assert identify_predictor(model) == 'abc'


@pytest.mark.parametrize('predictor', [len, Model(), lambda image: image, np.sqrt])
def test_a_name_is_no_identity(predictor):
    assert identify_predictor(predictor) is None


def test_an_identity_is_a_string():
    with pytest.raises(OptionError, match='predictor.fingerprint=5.*string'):
        identify_predictor(Model(5))


def test_the_caller_may_name_the_predictor(src, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        predict(src, tmp_path, Model(end_at=N_WINDOWS + 2), settings={'predictor': 'mine'})
    with pytest.raises(ResumeError, match='settings.predictor was "mine", now "v1"'):
        predict(src, tmp_path, Model('v1'), resume=True)
    model = Model('v1')
    predict(src, tmp_path, model, resume=True, settings={'predictor': 'mine'})
    assert model.n_calls == N_WINDOWS


@pytest.mark.parametrize('settings', [{'window': [9, 9]}, {'fit': 'flush'}, ['a'], 'a'])
def test_settings_cannot_hide_those_of_the_loop(src, tmp_path, settings):
    with pytest.raises(OptionError, match='settings=.*noted anyway'):
        predict(src, tmp_path, Model(), settings=settings)


def fit(seed=0, **options):
    from sklearn.ensemble import RandomForestClassifier
    pixels = np.random.RandomState(seed).rand(200, 2)
    return RandomForestClassifier(3, random_state=0, **options).fit(pixels, pixels[:, 0] > 0.5)


def test_an_estimator_is_known_by_what_it_has_learned():
    found = [EstimatorPredictor(estimator).config_hash
             for estimator in (fit(), fit(), fit(seed=1), fit(max_depth=1))]
    assert found[0] == found[1] and len(set(found)) == 3


def test_an_estimator_in_a_file_is_known_by_the_file(tmp_path):
    import skops.io
    for name, seed in (('a', 0), ('b', 1)):
        skops.io.dump(fit(seed), tmp_path / f'{name}.skops')
    trusted = skops.io.get_untrusted_types(file=tmp_path / 'a.skops')
    found = [load_predictor(os.fspath(tmp_path / f'{name}.skops'), trusted).config_hash
             for name in 'aab']
    assert found[0] == found[1] != found[2]


def test_what_cannot_be_hashed_has_no_identity():
    class Odd:
        def __init__(self):
            self.lock = threading.Lock()

        def get_params(self):
            return {}

        def predict(self, pixels):
            return pixels

    class Bare:
        def predict(self, pixels):
            return pixels
    assert EstimatorPredictor(Odd()).config_hash is EstimatorPredictor(Bare()).config_hash is None
    assert EstimatorPredictor(Bare(), config_hash='mine').config_hash == 'mine'


# --- what an earlier run left ---------------------------------------------------------------

def test_a_file_with_the_right_bytes_of_a_wrong_kind_is_redone(tmp_path):
    """The journal and the file agree, and yet it is no Cloud-Optimized GeoTIFF."""
    with make_manager(make_two_images(tmp_path)) as manager:
        finish(manager, 1, 2)
    path, journal = sorted(Path(manager.prob_dpath).glob('*.tif'))[0], *tmp_path.rglob('*.jsonl')
    content = bytearray(path.read_bytes())
    content[16:24] = bytes(8)
    path.write_bytes(content)
    first, second = map(json.loads, journal.read_text().splitlines())
    first['record'].update(checksum=compute_checksum(path), nbytes=len(content))
    journal.write_text(f'{json.dumps(first)}\n{json.dumps(second)}\n')
    manager = make_manager(make_two_images(tmp_path), resume=True)
    assert manager.seen_image_ids == {2}
    finish(manager, 1)
    verify_cog(path, full=True)


@pytest.mark.parametrize('interval', [None, 1e9])
def test_what_is_lost_is_taken_out_of_the_manifest_first(tmp_path, interval):
    """With an interval, readers are told before anything else is done."""
    options = {'write_preds': True, 'thresh': 0.997}
    with make_manager(make_two_images(tmp_path), **options) as manager:
        finish(manager, 1, 2)
        manager.dump()
    whole = load(tmp_path)
    lost = sorted(Path(manager.prob_dpath).glob('*.tif'))[0]
    lost.unlink()
    dset = kwcoco.CocoDataset(tmp_path / 'out.kwcoco.json')
    manager = make_manager(dset, resume=True, dump_interval=interval, **options)
    for found in (dset.dataset, load(tmp_path)) if interval else (dset.dataset,):
        img = found['images'][0]
        assert img['auxiliary'] == [] and not {'has_predictions', 'prediction_region'} & set(img)
        assert {ann['image_id'] for ann in found['annotations']} == {2}
    assert (len(list(iter_registered(tmp_path))) == 1) == (interval is not None)
    finish(manager, 1)
    manager.dump()
    again = load(tmp_path)
    assert again['images'] == whole['images']

    def strip(annotations):
        return sorted(json.dumps({**ann, 'id': None}, sort_keys=True) for ann in annotations)
    assert strip(again['annotations']) == strip(whole['annotations'])


def test_the_region_of_another_head_stays(tmp_path):
    dset = make_two_images(tmp_path)
    for channels in ('x|y', 'p|q'):
        with make_manager(dset, chan_code=channels) as manager:
            finish(manager, 1)
    before = dset.imgs[1]['prediction_region']
    next(Path(manager.prob_dpath).glob(f'*_{manager.options.suffix}.tif')).unlink()
    make_manager(dset, chan_code='p|q', resume=True)
    assert dset.imgs[1]['has_predictions'] == {'x|y': True}
    assert dset.imgs[1]['prediction_region'] == before


@pytest.mark.parametrize('write_preds', [False, True])
def test_a_manifest_of_an_older_run_gets_the_new_code(tmp_path, write_preds):
    """The file was replaced, and the run killed before the manifest was saved."""
    options = {'expected_minmax': None, 'write_preds': write_preds, 'thresh': 0.2}
    with make_manager(make_two_images(tmp_path), **options) as manager:
        finish(manager, 1)
        manager.dump()
    saved = kwcoco.CocoDataset(tmp_path / 'out.kwcoco.json')
    with make_manager(saved, on_collision='replace', **options) as manager:
        finish(manager, 1, data=GOOD * 3)
    dset = kwcoco.CocoDataset(tmp_path / 'out.kwcoco.json')
    manager = make_manager(dset, on_collision='replace', resume=True, **options)
    assert manager.seen_image_ids == {1}
    asset, = dset.imgs[1]['auxiliary']
    assert asset['quantization']['orig_max'] == pytest.approx(3 * GOOD.max())
    found = dset.coco_image(1).imdelay('x|y', space='image').finalize()
    assert np.abs(found - GOOD * 3).max() < 1e-3


def test_annotations_are_not_doubled_if_only_an_asset_is_missing(tmp_path):
    options = {'write_preds': True, 'thresh': 0.997}
    with make_manager(make_two_images(tmp_path), **options) as manager:
        finish(manager, 1)
        manager.dump()
    dset = kwcoco.CocoDataset(tmp_path / 'out.kwcoco.json')
    n_annots = dset.n_annots
    dset.imgs[1]['auxiliary'].clear()
    make_manager(dset, resume=True, **options)
    assert dset.n_annots == n_annots > 5 and len(dset.imgs[1]['auxiliary']) == 1


def test_leftovers_of_killed_processes_are_swept_where_they_can_be(tmp_path):
    """Of assets, also below a short code with folders, and of a manifest."""
    from cocoseg.io.commit import atomic_write
    dset = make_two_images(tmp_path)
    folder = tmp_path / '_assets' / 'a' / 'b'
    folder.mkdir(parents=True)
    left = []
    for fpath in (folder / 'img1.tif', tmp_path / 'out.kwcoco.json'):
        with atomic_write(fpath) as temporary:
            # The process with this (impossible) id is dead.
            left.append(Path(str(temporary).replace(f'.{os.getpid()}.', f'.{2 ** 40}.')))
            left[-1].touch()
        fpath.unlink()
    (tmp_path / '.mine.tmp').touch()
    make_manager(dset, short_code='a/b')
    assert not any(path.exists() for path in left) and (tmp_path / '.mine.tmp').exists()
