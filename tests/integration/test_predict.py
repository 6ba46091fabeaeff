"""The predict loop: windows of a dataset through a predictor, and back again."""
import copy
import os
from pathlib import Path

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg import EstimatorPredictor, load_predictor, predict_dataset, write_cog
from cocoseg.errors import (ChannelCollisionError, ManifestError, OptionError, ResumeError,
                            WindowShapeError)

H, W = 52, 70
STEP = 1 / 32767


def make_pixels(seed, border=6):
    """(H, W, 2) float32 in [0, 1], with a nodata frame on two sides and a hole."""
    data = np.random.RandomState(seed).rand(H, W, 2).astype('f4')
    data[:border] = np.nan
    data[:, W - border:] = np.nan
    data[30:33, 20:24] = np.nan
    return data


def make_source(folder, n_images=2, video=True, shifts=(), **options):
    """Write a bundle of float images with the bands ``red|nir``; return the dataset."""
    folder.mkdir(parents=True, exist_ok=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'data.kwcoco.json')
    video_id = dset.add_video(name='vid', width=W, height=H) if video else None
    for index in range(n_images):
        place = {'video_id': video_id, 'frame_index': index} if video else {}
        if index < len(shifts):
            place['warp_img_to_vid'] = {'type': 'affine', 'offset': shifts[index]}
        image_id = dset.add_image(name=f'f{index}', width=W, height=H, auxiliary=[], **place)
        pixels = make_pixels(image_id, **options)
        for band, name in enumerate(['red', 'nir']):
            file_name = f'f{index}_{name}.tif'
            write_cog(folder / file_name, pixels[..., band], nodata=np.nan)
            dset.index.imgs[image_id]['auxiliary'].append({
                'file_name': file_name, 'channels': name, 'width': W, 'height': H,
                'warp_aux_to_img': {'type': 'affine'}})
    dset.dump()
    return kwcoco.CocoDataset(dset.fpath)


@pytest.fixture()
def src(tmp_path):
    return make_source(tmp_path / 'src')


@pytest.fixture()
def dst(tmp_path):
    return tmp_path / 'dst' / 'out.kwcoco.json'


class Recorder:
    """An identity predictor that remembers what it saw."""

    def __init__(self):
        self.shapes, self.batches = [], []

    def __call__(self, image):
        assert image.dtype == np.float32
        self.shapes.append(image.shape)
        return image


class BatchRecorder(Recorder):
    def predict_batch(self, images):
        self.batches.append(images.shape)
        return images


def run(src, dst, predictor=None, **options):
    options = {'window': 24, 'expected_minmax': (0, 1), 'out_channels': 'p|q', **options}
    return predict_dataset(src, dst, Recorder() if predictor is None else predictor, **options)


def check_identity(dset, image_ids=(1, 2), channels='p|q', space='asset', **options):
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate() == {'errors': [], 'warnings': []}
    for image_id in image_ids:
        found = reopened.coco_image(image_id).imdelay(channels, space=space).finalize()
        expected = make_pixels(image_id, **options)
        assert np.array_equal(np.isnan(found), np.isnan(expected))
        assert np.nanmax(np.abs(found - expected)) <= STEP / 2 + 1e-6


# --- the round trip ------------------------------------------------------

@pytest.mark.parametrize('window, overlap', [
    ((26, 35), 0), ((26, 35), (0, 0)), (13, 0.5), (24, 0.3), ((20, 33), 7), ((17, 70), (5, 0)),
    ((1, 35), 0), ((52, 70), 0.3), (64, 0.3), (200, 0.9)])
@pytest.mark.parametrize('fit', ['balanced', 'flush'])
def test_an_identity_gives_its_input_back(src, dst, window, overlap, fit):
    predictor = Recorder()
    dset = run(src, dst, predictor, window=window, overlap=overlap, fit=fit)
    check_identity(dset)
    shape = (window, window) if isinstance(window, int) else window
    assert set(predictor.shapes) == {(*shape, 2)}


def test_what_lies_outside_the_image_is_nan_for_the_predictor(src, dst):
    seen = []

    def look(image):
        seen.append(image.copy())
        return image
    run(src, dst, look, window=80, image_ids=[1])
    image, = seen
    assert np.isnan(image[H:]).all() and np.isnan(image[:, W:]).all()
    assert np.array_equal(image[:H, :W], make_pixels(1), equal_nan=True)


def test_pixels_without_data_get_no_prediction(src, dst):
    dset = run(src, dst, lambda image: np.ones((*image.shape[:2], 1)), out_channels='one')
    found = dset.coco_image(1).imdelay('one', space='asset').finalize()
    empty = np.isnan(make_pixels(1)).all(axis=2)
    assert np.array_equal(np.isnan(found[..., 0]), empty)
    assert (found[~empty] == 1).all()


def test_images_may_be_of_any_integer_type_with_nodata(tmp_path, dst):
    src = make_source(tmp_path / 'src', n_images=1)
    codes = np.arange(H * W).reshape(H, W).astype('u2')
    codes[10:20, 5:9] = 0
    write_cog(tmp_path / 'src' / 'f0_red.tif', codes, nodata=0)
    dset = run(src, dst, channels='red', out_channels='copy', expected_minmax=(0, 32767))
    found = dset.coco_image(1).imdelay('copy', space='asset').finalize()[..., 0]
    assert np.array_equal(np.isnan(found), codes == 0)
    assert np.array_equal(found[codes != 0], codes[codes != 0])


@pytest.mark.parametrize('space', ['image', 'video'])
def test_images_without_a_video(tmp_path, dst, space):
    dset = run(make_source(tmp_path / 'src', video=False), dst, space=space)
    check_identity(dset, space='image')


# --- video space ---------------------------------------------------------

def make_ramps(folder, shifts):
    """Frames of one plane, value = video x / 100 + video y / 200, each shifted."""
    dset = make_source(folder, n_images=len(shifts), shifts=shifts)
    ys, xs = np.mgrid[:H, :W].astype(float)
    for index, (dx, dy) in enumerate(shifts):
        ramp = (xs + dx) / 100 + (ys + dy) / 200
        for name in ('red', 'nir'):
            write_cog(folder / f'f{index}_{name}.tif', ramp.astype('f4'), nodata=np.nan)
    return dset


def test_frames_are_aligned_in_video_space(tmp_path, dst):
    """Subpixel shifts: all frames show the same plane at the same video pixel."""
    shifts = [(0, 0), (0.4, -0.25), (-3.5, 2.75)]
    src = make_ramps(tmp_path / 'src', shifts)
    dset = run(src, dst, window=(20, 30), overlap=0.4, space='video')
    ys, xs = np.mgrid[:H, :W].astype(float)
    plane = (xs / 100 + ys / 200)[..., None]
    for image_id, (dx, dy) in zip((1, 2, 3), shifts):
        warp = dset.index.imgs[image_id]['auxiliary'][-1]['warp_aux_to_img']
        assert warp.get('offset', [0, 0]) == pytest.approx([-dx, -dy])
        found = dset.coco_image(image_id).imdelay('p|q', space='video').finalize()
        inside = (slice(4, H - 4), slice(5, W - 5))
        assert np.abs(found[inside] - plane[inside]).max() <= STEP + 2e-4
        # The same as warping the whole frame at once, up to the shore.
        whole = src.coco_image(image_id).imdelay(
            'red|nir', space='video', nodata_method='float').finalize()
        assert np.array_equal(np.isnan(found), np.isnan(whole))
        assert np.nanmax(np.abs(found - whole)) <= STEP + 2e-4
        if image_id == 3:
            # The frame does not reach these pixels of the video.
            assert np.isnan(found[:2]).all() and np.isnan(found[:, -3:]).all()
            assert np.isfinite(found[3:, :-4]).all()


def test_what_a_shifted_frame_does_not_show_is_not_black(tmp_path, dst):
    """Bytes without a nodata value: outside the frame there is no data, not 0."""
    kwimage.imwrite(tmp_path / 'pan.png', np.full((30, 40), 100, 'u1'))
    src = kwcoco.CocoDataset()
    src.fpath = os.fspath(tmp_path / 'src.kwcoco.json')
    src.add_image(name='f0', file_name='pan.png', channels='pan', width=40, height=30,
                  video_id=src.add_video(name='vid', width=40, height=30), frame_index=0,
                  warp_img_to_vid={'type': 'affine', 'offset': (5.5, 4.25)})
    dset = run(src, dst, window=16, out_channels='copy', expected_minmax=(0, 200))
    found = dset.coco_image(1).imdelay('copy', space='video').finalize()[..., 0]
    assert np.isnan(found[:4]).all() and np.isnan(found[:, :5]).all()
    assert np.abs(found[6:, 7:] - 100).max() <= 100 * STEP + 1e-5


def test_image_space_does_not_resample(tmp_path, dst):
    src = make_source(tmp_path / 'src', shifts=[(0.4, -0.25), (3, 4)])
    dset = run(src, dst, space='image')
    check_identity(dset)
    assert dset.index.imgs[1]['auxiliary'][-1]['warp_aux_to_img'] == {'type': 'affine'}


def test_a_video_of_another_size(tmp_path, dst):
    src = make_source(tmp_path / 'src', n_images=1)
    src.index.videos[1].update(width=35, height=26)
    src.index.imgs[1]['warp_img_to_vid'] = {'type': 'affine', 'scale': 0.5}
    dset = run(src, dst, window=16)
    asset = dset.index.imgs[1]['auxiliary'][-1]
    assert (asset['width'], asset['height']) == (35, 26)
    assert asset['warp_aux_to_img'] == {'scale': 2.0, 'type': 'affine'}


# --- batches and channels ------------------------------------------------

@pytest.mark.parametrize('batch_size', [2, 5, 100])
def test_batches_give_the_same_as_single_windows(src, tmp_path, batch_size):
    predictor = BatchRecorder()
    dset = run(src, tmp_path / 'batched' / 'out.json', predictor, batch_size=batch_size)
    check_identity(dset)
    assert predictor.shapes == []
    sizes = [batch[0] for batch in predictor.batches]
    single = Recorder()
    run(src, tmp_path / 'single' / 'out.json', single)
    n_windows = len(single.shapes)
    assert sum(sizes) == n_windows and max(sizes) == min(batch_size, n_windows // 2)
    assert {batch[1:] for batch in predictor.batches} == {(24, 24, 2)}
    for name in ('f0', 'f1'):
        one, two = (next((tmp_path / kind).glob(f'_assets/pred/{name}_*.tif')).read_bytes()
                    for kind in ('batched', 'single'))
        assert one == two


def test_output_channels_are_inferred(src, tmp_path):
    def three(image):
        return np.zeros((*image.shape[:2], 3))
    dset = run(src, tmp_path / 'a.json', three, out_channels=None, short_code='feat')
    assert dset.index.imgs[1]['auxiliary'][-1]['channels'] == 'feat.0:3'
    three.channels = 'x|y|z'
    dset = run(src, tmp_path / 'b.json', three, out_channels=None, short_code='named')
    assert dset.index.imgs[2]['auxiliary'][-1]['channels'] == 'x|y|z'


def test_input_channels_are_chosen_and_ordered(src, dst):
    dset = run(src, dst, channels='nir|red')
    found = dset.coco_image(1).imdelay('q|p', space='asset').finalize()
    assert np.nanmax(np.abs(found - make_pixels(1))) <= STEP / 2 + 1e-6


def test_a_prediction_without_a_band_axis_is_one_channel(src, dst):
    dset = run(src, dst, lambda image: image[..., 0], out_channels=None)
    assert dset.index.imgs[1]['auxiliary'][-1]['channels'] == 'pred.0:1'


class FakeTensor:
    def __init__(self, data):
        self.data = data

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.data


def test_predictions_may_be_tensors(src, dst):
    check_identity(run(src, dst, lambda image: FakeTensor(image)))


def test_some_images_only(src, dst):
    dset = run(src, dst, image_ids=iter([2]))
    assert len(dset.index.imgs[1]['auxiliary']) == 2
    assert 'has_predictions' not in dset.index.imgs[1]
    check_identity(dset, image_ids=[2])


def test_manager_options_pass_through(src, dst):
    dset = run(src, dst, prob_format='png', short_code='ping', memory_budget=1)
    asset = dset.index.imgs[1]['auxiliary'][-1]
    assert asset['file_name'].startswith('_assets/ping/') and asset['file_name'].endswith('.png')
    with pytest.raises(TypeError):
        run(src, dst, no_such_option=1)


def test_progress_is_told_how_much_there_is(src, dst):
    calls = []

    def progress(steps, total, desc):
        steps = list(steps)
        calls.append((len(steps), total, desc))
        return steps
    run(src, dst, BatchRecorder(), batch_size=4, progress=progress)
    (n_steps, total, desc), = calls
    assert n_steps == total > 2 and isinstance(desc, str)


# --- what is refused -----------------------------------------------------

def test_missing_channels(src, dst):
    with pytest.raises(OptionError, match=r"no channels \['blue'\]"):
        run(src, dst, channels='red|blue')
    del src.index.imgs[2]['auxiliary'][1]
    with pytest.raises(OptionError, match='image 2 has no channels'):
        run(src, dst)


@pytest.mark.parametrize('predict, message', [
    (lambda image: image[:-1], r'\(23, 24, 2\)'), (lambda image: image[None], 'height and width'),
    (lambda image: image.mean(), r'shape \(\)')])
def test_a_prediction_of_another_shape(src, dst, predict, message):
    with pytest.raises(WindowShapeError, match=message):
        run(src, dst, predict)
    assert not dst.exists()
    assert list(dst.parent.rglob('*.tif')) == []


def test_a_batch_of_another_length(src, dst):
    class Forgetful(BatchRecorder):
        def predict_batch(self, images):
            return images[:-1]
    with pytest.raises(WindowShapeError, match='3 predictions for a batch of 4'):
        run(src, dst, Forgetful(), batch_size=4)


@pytest.mark.parametrize('options, message', [
    ({'predictor': 'numpy:sqrt'}, 'cannot be called'), ({'batch_size': 0}, 'batch_size=0'),
    ({'batch_size': 2}, 'predict_batch'), ({'overlap': 1.0}, 'overlap=1.0'),
    ({'overlap': -0.1}, 'overlap'), ({'overlap': 24}, 'overlap'), ({'window': 0}, 'at least 1'),
    ({'window': 2.5}, 'window'), ({'fit': 'loose'}, 'fit'), ({'space': 'world'}, 'space'),
    ({'prefetch': -1}, 'prefetch=-1'), ({'prefetch': 1.5}, 'prefetch=1.5'),
    ({'batch_size': 1.5}, 'batch_size=1.5'),
    ({'image_ids': []}, 'no images'), ({'image_ids': [99]}, '99'), ({'image_ids': [1, 99]}, '99')])
def test_options_that_make_no_sense(src, dst, options, message):
    with pytest.raises(OptionError, match=message):
        run(src, dst, **options)
    assert not dst.exists()


def test_the_input_manifest_is_never_the_output(src, tmp_path):
    before = Path(src.fpath).read_bytes()
    os.symlink(src.fpath, tmp_path / 'link.json')
    for dst in (src.fpath, tmp_path / 'src' / '..' / 'src' / 'data.kwcoco.json',
                tmp_path / 'link.json'):
        with pytest.raises(OptionError, match='input manifest'):
            run(src, dst)
        with pytest.raises(OptionError, match='input manifest'):
            run(src.fpath, dst)
    assert Path(src.fpath).read_bytes() == before


def test_a_source_that_lives_nowhere(dst, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ManifestError):
        run(kwcoco.CocoDataset(), dst)


def test_predicting_a_channel_that_exists(src, dst):
    with pytest.raises(ChannelCollisionError, match='nir'):
        run(src, dst, out_channels='nir|x')


def test_a_predictor_cannot_change_its_input(src, dst):
    def scribble(image):
        image[...] = 0
        return image
    with pytest.raises(ValueError, match='read-only'):
        run(src, dst, scribble)


# --- input and output ----------------------------------------------------

@pytest.mark.parametrize('same_folder', [True, False])
def test_the_input_is_not_changed(src, tmp_path, same_folder):
    before = copy.deepcopy(src.dataset), src.fpath, Path(src.fpath).read_bytes()
    dst = tmp_path / ('src' if same_folder else 'elsewhere') / 'out.kwcoco.json'
    dset = run(src, dst)
    assert (src.dataset, src.fpath, Path(src.fpath).read_bytes()) == before
    assert dset is not src and dset.fpath == os.fspath(dst)
    check_identity(dset)
    assert dset.coco_image(1).imdelay('red|p').finalize().shape == (H, W, 2)
    assert dset.dataset == kwcoco.CocoDataset(dset.fpath).dataset


def test_the_input_may_be_a_path(src, dst):
    check_identity(run(Path(src.fpath), os.fspath(dst)))


# --- resuming ------------------------------------------------------------

class Interrupted(Exception):
    pass


def stop_at_image_two(image):
    """Fail at the first window of the second image."""
    # Only image 1 has this value anywhere.
    stop_at_image_two.n_calls += 1
    if stop_at_image_two.n_calls > stop_at_image_two.n_windows:
        raise Interrupted
    return image


def test_a_run_that_was_cut_short_goes_on(src, tmp_path):
    whole = Recorder()
    run(src, tmp_path / 'whole' / 'out.json', whole)
    n_windows = len(whole.shapes) // 2
    stop_at_image_two.n_calls, stop_at_image_two.n_windows = 0, n_windows
    dst = tmp_path / 'resumed' / 'out.json'
    with pytest.raises(Interrupted):
        run(src, dst, stop_at_image_two)
    assert not dst.exists() and len(list(dst.parent.rglob('*.tif'))) == 1

    rest = Recorder()
    dset = run(src, dst, rest, resume=True)
    assert len(rest.shapes) == n_windows
    check_identity(dset)
    names = [path.name for path in (tmp_path / 'whole').rglob('*.tif')]
    assert len(names) == 2
    for name in names:
        one, two = (next((tmp_path / kind).rglob(name)).read_bytes()
                    for kind in ('whole', 'resumed'))
        assert one == two

    again = Recorder()
    check_identity(run(src, dst, again, resume=True))
    assert again.shapes == []
    with pytest.raises(ResumeError):
        run(src, dst, resume=True, expected_minmax=(0, 2))


# --- estimators ----------------------------------------------------------

@pytest.fixture(scope='module')
def classifier():
    from sklearn.linear_model import LogisticRegression
    pixels = np.random.RandomState(0).rand(400, 2)
    return LogisticRegression().fit(pixels, np.where(pixels[:, 0] > pixels[:, 1], 'red', 'green'))


@pytest.mark.parametrize('batch_size', [1, 7])
def test_an_estimator_from_a_file(src, dst, tmp_path, classifier, batch_size):
    import skops.io
    skops.io.dump(classifier, tmp_path / 'model.skops')
    predictor = load_predictor(os.fspath(tmp_path / 'model.skops'))
    dset = predict_dataset(src, dst, predictor, 24, batch_size=batch_size, expected_minmax=(0, 1),
                           out_channels='p_green|p_red')
    pixels = make_pixels(1)
    valid = np.isfinite(pixels).all(axis=2)
    found = dset.coco_image(1).imdelay('p_green|p_red', space='asset').finalize()
    assert np.array_equal(np.isfinite(found).all(axis=2), valid)
    expected = classifier.predict_proba(pixels[valid])
    assert np.abs(found[valid] - expected).max() <= STEP / 2 + 1e-6
    assert np.abs(found[valid].sum(axis=1) - 1).max() <= STEP


def test_its_classes_name_the_channels(src, dst, classifier):
    # 'red' is a band of the input already, which must not go unnoticed.
    with pytest.raises(ChannelCollisionError, match='red'):
        predict_dataset(src, dst, EstimatorPredictor(classifier), 24)
    dset = predict_dataset(src, dst, EstimatorPredictor(classifier), 24, channels='nir|red',
                           out_channels='green|other')
    assert dset.index.imgs[1]['has_predictions'] == {'green|other': True}
