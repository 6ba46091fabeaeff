"""The packaged demo: its data, its transforms, its classifier, its previews."""
import hashlib
import os
from importlib import resources

import numpy as np
import pytest

from cocoseg.coco import demo
from cocoseg.coco.preview import draw_class_map, draw_heatmap, draw_photo, draw_preview
from cocoseg.errors import AssetWriteError, BandCountError, ManifestError, OptionError

CHANNELS = demo.IMAGE_CHANNELS


@pytest.fixture(scope='module')
def dset(tmp_path_factory):
    return demo.demo_dataset(tmp_path_factory.mktemp('bundle'))


@pytest.fixture(scope='module')
def classifier(dset):
    return demo.fit_pixel_classifier(dset)


@pytest.fixture(scope='module')
def photos(dset):
    """Every frame in its own pixels."""
    return [demo._read_image(dset, image_id, CHANNELS) for image_id in dset.images()]


@pytest.fixture(scope='module')
def predicted(dset, classifier, tmp_path_factory):
    """A copy of the manifest with quantized predictions, without the stitcher."""
    import kwimage
    dpath = tmp_path_factory.mktemp('predicted')
    copy = demo.demo_dataset(dpath)
    for image_id in copy.images():
        image = demo._read_image(copy, image_id, CHANNELS, 'video')
        probs = classifier(image)
        ints = np.where(np.isnan(probs), -9999, np.rint(probs * 32767)).astype(np.int16)
        file_name = f'pred_{image_id}.tif'
        kwimage.imwrite(dpath / file_name, ints, backend='gdal', space=None)
        coco_image = copy.coco_image(image_id)
        coco_image.img['assets'].append({
            'file_name': file_name, 'channels': demo.CLASS_CHANNELS,
            'width': image.shape[1], 'height': image.shape[0], 'num_bands': 3,
            'warp_aux_to_img': coco_image.warp_img_from_vid.concise(),
            'quantization': {
                'orig_min': 0, 'orig_max': 1, 'orig_dtype': 'float32',
                'quant_min': 0, 'quant_max': 32767, 'nodata': -9999}})
    return copy


# --- data and manifest ---------------------------------------------------


def test_data_package_is_small_and_is_what_its_readme_says():
    folder = resources.files('cocoseg.coco') / 'demodata'
    files = [path for path in folder.iterdir() if path.is_file()]
    assert sum(len(path.read_bytes()) for path in files) < 4_000_000
    readme = (folder / 'README.md').read_text()
    tifs = [path for path in files if path.name.endswith('.tif')]
    assert len(tifs) == 3
    for path in tifs:
        assert f'{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}' in readme


def test_bands_are_named_georeferenced_and_have_nodata(dset):
    from osgeo import gdal
    for image_id in dset.images():
        fpath = os.path.join(dset.bundle_dpath, dset.imgs[image_id]['assets'][0]['file_name'])
        source = gdal.Open(fpath)
        bands = [source.GetRasterBand(index) for index in (1, 2, 3, 4)]
        assert [band.GetDescription() for band in bands] == CHANNELS.split('|')
        assert {band.GetNoDataValue() for band in bands} == {0.0}
        assert source.GetSpatialRef().GetAuthorityCode(None) == '26914'


def test_manifest_is_valid_and_survives_a_reload(dset):
    import kwcoco
    again = kwcoco.CocoDataset(dset.fpath)
    report = again.validate(corrupted=True, verbose=0)
    assert report['errors'] == [] and report['warnings'] == []
    assert again.images().lookup('frame_index') == [0, 1, 2]
    assert again.images().lookup('date_captured') == ['2009-08-18', '2012-07-31', '2018-07-16']
    assert again.videos().lookup('name') == ['naip_nd']


def test_demo_dataset_can_be_made_twice_in_one_folder(tmp_path):
    demo.demo_dataset(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob('*'))
    demo.demo_dataset(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob('*')) == before
    assert len(before) == 5   # the folder, three images, the manifest


# --- transforms ----------------------------------------------------------


def test_video_offsets_are_those_of_the_origins(dset):
    offsets = [dset.coco_image(image_id).warp_vid_from_img.matrix for image_id in dset.images()]
    assert np.array_equal(offsets[0], np.eye(3))
    assert offsets[1][:2, 2].tolist() == [0.0, 0.4]    # origin 2 m further south
    assert offsets[2][:2, 2].tolist() == [0.4, -0.2]   # 2 m further east, 1 m north
    video = dset.videos().objs[0]
    assert (video['width'], video['height']) == (512, 480)


def test_world_transforms_are_those_of_the_files(dset):
    import kwimage
    from osgeo import gdal
    for image_id in dset.images():
        img = dset.imgs[image_id]
        source = gdal.Open(os.path.join(dset.bundle_dpath, img['assets'][0]['file_name']))
        pxl_from_wld = kwimage.Affine.coerce(img['wld_to_pxl']).matrix
        x0, dx, _, y0, _, dy = source.GetGeoTransform()
        world = np.array([[x0, y0, 1], [x0 + 512 * dx, y0 + 7 * dy, 1]])
        pixels = world @ pxl_from_wld.T
        assert np.allclose(pixels, [[0, 0, 1], [512, 7, 1]], atol=1e-6)


def _edges(image):
    """Edge strength of the near infrared band, without a border."""
    import cv2
    smooth = cv2.GaussianBlur(image[..., 3], (0, 0), 1)
    return np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0),
                    cv2.Sobel(smooth, cv2.CV_32F, 0, 1))[6:-6, 6:-6]


def _shift(image, dx, dy):
    import cv2
    matrix = np.array([[1, 0, dx], [0, 1, dy]], np.float64)
    return cv2.warpAffine(image, matrix, (512, 480), borderMode=cv2.BORDER_REPLICATE)


def _correlation(first, second):
    return np.corrcoef(first.ravel(), second.ravel())[0, 1]


@pytest.mark.parametrize('first, second, margin', [
    (0, 1, 0.002), (0, 2, 0.002), (1, 2, 0.02)])
def test_frames_align_better_in_video_space(dset, photos, first, second, margin):
    """
    The mirrored transform blurs as much as the true one, so it is the control:
    the gain comes from the place, not from smoothing. The fields of 2009 look
    least like those of the other years, so those margins are small.
    """
    ids = list(dset.images())
    offsets = [dset.coco_image(image_id).warp_vid_from_img.matrix[:2, 2] for image_id in ids]
    aligned, ignored, mirrored = [
        _correlation(*[_edges(_shift(photos[index], *(sign * offsets[index])))
                       for index in (first, second)])
        for sign in (1, 0, -1)]
    assert aligned > ignored + margin
    assert aligned > mirrored + margin


def test_imdelay_resamples_with_the_pixel_corner_convention(dset, photos):
    image = demo._read_image(dset, 3, CHANNELS, 'video')
    expected = _shift(photos[2], 0.4, -0.2)
    inside = (slice(4, -4), slice(4, -4))
    assert np.abs(image[inside] - expected[inside]).max() < 4   # cv2 rounds to 1/32 px
    assert np.abs(image[inside] - photos[2][inside]).max() > 20


# --- classifier ----------------------------------------------------------


def test_classifier_agrees_with_the_index_labels_on_held_out_pixels(photos, classifier):
    for photo in photos:
        labels = demo.index_labels(photo)
        used = demo.held_out_pixels(labels.shape) & (labels > 0)
        assert set(np.unique(labels)) == {0, 1, 2, 3}
        predicted = classifier(photo).argmax(axis=2)[used] + 1
        assert (predicted == labels[used]).mean() > 0.95


def test_classifier_returns_probabilities_and_keeps_its_input(photos, classifier):
    window = np.ascontiguousarray(photos[1][100:150, 200:270])
    window[5, 7, 2] = np.nan
    window[20:30] = np.nan
    before = window.copy()
    window.flags.writeable = False
    probs = classifier(window)
    assert probs.shape == (50, 70, 3) and probs.dtype == np.float32
    assert np.array_equal(window, before, equal_nan=True)
    invalid = np.isnan(window).any(axis=2)
    assert np.isnan(probs[invalid]).all()
    assert np.allclose(probs[~invalid].sum(axis=1), 1, atol=1e-5)
    assert probs[~invalid].min() >= 0


def test_missing_pixels_do_not_leak_into_their_neighbours(classifier):
    lake = np.full((40, 40, 4), (60, 70, 60, 10), np.float32)
    holed = lake.copy()
    holed[15:20, 15:20] = np.nan
    valid = ~np.isnan(holed).any(axis=2)
    assert np.allclose(classifier(holed)[valid], classifier(lake)[valid], atol=1e-3)


@pytest.mark.parametrize('shape', [(1, 1), (1, 9), (0, 5)])
def test_classifier_takes_tiny_and_empty_windows(classifier, shape):
    probs = classifier(np.full((*shape, 4), (80, 90, 70, 190), np.float32))
    assert probs.shape == (*shape, 3)
    assert (probs.argmax(axis=2) == 1).all()   # vegetation


def test_classifier_sees_only_nan_as_nan(classifier):
    probs = classifier(np.full((4, 5, 4), np.nan, np.float32))
    assert probs.shape == (4, 5, 3) and np.isnan(probs).all()


def test_classifier_depends_on_the_neighbourhood(photos, classifier):
    """Else overlapping windows would have nothing to blend in this demo."""
    whole = classifier(photos[0])[200:300, 200:300]
    window = classifier(np.ascontiguousarray(photos[0][200:300, 200:300]))
    difference = np.abs(whole - window)
    assert difference[:4].max() > 0.01
    assert difference[10:-10, 10:-10].max() < 1e-4


def test_one_seed_gives_one_model(dset, photos, classifier):
    window = photos[0][:64, :64]
    again = demo.fit_pixel_classifier(dset, seed=0)
    other = demo.fit_pixel_classifier(dset, seed=1)
    assert np.array_equal(again(window), classifier(window))
    assert not np.array_equal(other(window), classifier(window))


def test_classifier_can_be_pickled(photos, classifier):
    import pickle
    window = photos[0][:32, :32]
    again = pickle.loads(pickle.dumps(classifier))
    assert np.array_equal(again(window), classifier(window))
    assert again.channels == 'water|vegetation|bare'


def test_classifier_refuses_another_number_of_bands(classifier):
    with pytest.raises(BandCountError, match=r'\(8, 8, 3\).*red\|green\|blue\|nir'):
        classifier(np.zeros((8, 8, 3), np.float32))


def test_fit_refuses_images_without_the_classes(tmp_path):
    dset = demo.demo_dataset(tmp_path)
    dset.remove_images([1, 2, 3])
    with pytest.raises(ManifestError, match='no training pixels'):
        demo.fit_pixel_classifier(dset)


# --- agreement and previews ----------------------------------------------


def test_agreement_is_measured_through_the_manifest(predicted):
    assert demo.measure_agreement(predicted) > 0.95
    shuffled = demo.measure_agreement(predicted, 'bare|water|vegetation')
    assert shuffled < 0.2


def test_preview_is_a_whole_picture(predicted, tmp_path):
    import kwimage
    fpath = draw_preview(predicted, 3, demo.CLASS_CHANNELS, tmp_path / 'a' / 'frame.png')
    canvas = kwimage.imread(fpath)
    assert canvas.shape[0] > 480 and canvas.shape[1] > 3 * 512 and canvas.shape[2] == 3
    for panel in np.array_split(canvas, 3, axis=1):
        assert panel.std() > 30
    colors = {tuple(color) for color in canvas.reshape(-1, 3)[::7]}
    assert {(0, 114, 178), (0, 158, 115), (230, 159, 0)} <= colors
    assert os.listdir(tmp_path / 'a') == ['frame.png']


def test_preview_shows_missing_data_grey(predicted, tmp_path):
    import kwimage
    fpath = draw_preview(predicted, 2, demo.CLASS_CHANNELS, tmp_path / 'frame.png')
    canvas = kwimage.imread(fpath)
    photo = canvas[:, :512]
    grey_rows = np.flatnonzero((photo == 128).all(axis=(1, 2)))
    # The 2012 frame starts 0.4 px lower in the video and is one row shorter.
    assert 1 <= len(grey_rows) <= 4


def test_preview_can_show_another_class(predicted, tmp_path):
    first, other = tmp_path / 'a.png', tmp_path / 'b.png'
    assert draw_preview(predicted, 1, demo.CLASS_CHANNELS, first) == str(first)
    draw_preview(predicted, 1, demo.CLASS_CHANNELS, other, heat_channel='bare')
    assert first.read_bytes() != other.read_bytes()


def test_preview_refuses_channels_that_are_not_there(dset, predicted, tmp_path):
    with pytest.raises(ManifestError, match='water'):
        draw_preview(dset, 1, demo.CLASS_CHANNELS, tmp_path / 'a.png')
    with pytest.raises(OptionError, match='cloud'):
        draw_preview(predicted, 1, demo.CLASS_CHANNELS, tmp_path / 'a.png',
                     heat_channel='cloud')
    assert os.listdir(tmp_path) == []


def test_preview_that_cannot_be_written_leaves_nothing(predicted, tmp_path):
    (tmp_path / 'frame.png').mkdir()
    with pytest.raises(AssetWriteError, match='frame.png') as info:
        draw_preview(predicted, 1, demo.CLASS_CHANNELS, tmp_path / 'frame.png')
    assert info.value.image_id == 1
    assert os.listdir(tmp_path) == ['frame.png']


def test_pictures_keep_their_input(photos):
    probs = np.random.default_rng(0).random((6, 7, 3)).astype(np.float32)
    probs[2, 3] = np.nan
    probs.flags.writeable = False
    for draw, data in [(draw_photo, probs), (draw_class_map, probs),
                       (draw_heatmap, probs[..., 0])]:
        picture = draw(data)
        assert picture.shape == (6, 7, 3) and picture.dtype == np.uint8
        assert picture[2, 3].tolist() == [128, 128, 128]


# --- the run -------------------------------------------------------------


def test_run_demo_makes_assets_and_previews(tmp_path):
    import kwcoco
    result = demo.run_demo(tmp_path / 'demo')
    for fpath in [result.manifest_fpath, *result.asset_fpaths, *result.preview_fpaths]:
        assert os.path.getsize(fpath) > 1000
    assert len(result.asset_fpaths) == len(result.preview_fpaths) == 3
    assert result.agreement > 0.95
    assert list(result.timings) == ['dataset', 'fit', 'predict', 'previews', 'check']
    again = kwcoco.CocoDataset(result.manifest_fpath)
    assert again.validate(corrupted=True, verbose=0)['errors'] == []
    for image_id in again.images():
        channels = again.coco_image(image_id).channels.fuse().as_list()
        assert channels == [*CHANNELS.split('|'), *demo.CLASS_CHANNELS.split('|')]
        photo = demo._read_image(again, image_id, CHANNELS, 'video')
        probs = demo._read_image(again, image_id, demo.CLASS_CHANNELS, 'video')
        # The later frames do not reach all borders of the video.
        assert np.isnan(photo).any() == (image_id > 1)
        assert np.array_equal(np.isnan(photo).any(axis=2), np.isnan(probs).any(axis=2))
