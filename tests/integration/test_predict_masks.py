"""Masks in the predict loop: windows without valid pixels are not predicted."""
import logging

import kwcoco
import numpy as np
import pytest

from cocoseg import predict_dataset, write_cog
from cocoseg.cli.main import main
from cocoseg.coco.masks import mask_dataset
from cocoseg.errors import ChannelCollisionError, OptionError

SIZE = 200


class Doubler:
    """Doubles the first band, and remembers what it saw."""

    def __init__(self, channels='double'):
        self.channels, self.seen = channels, []

    def __call__(self, image):
        self.seen.append(image)
        return image[..., :1] * 2

    def predict_batch(self, images):
        return np.stack([self(image) for image in images])


@pytest.fixture
def src(tmp_path):
    """Two images of 200 x 200: valid on the left, and in a corner; and a mask of other places."""
    dset = kwcoco.CocoDataset()
    dset.fpath = tmp_path / 'src' / 'data.kwcoco.json'
    dset.fpath.parent.mkdir()
    rng = np.random.default_rng(0)
    for name in ('one', 'two'):
        image = rng.integers(1, 100, (SIZE, SIZE, 2)).astype(np.int16)
        if name == 'one':
            image[:, 90:] = -1
        else:
            image[:150] = -1
        clear = np.zeros((SIZE, SIZE), np.uint8)
        clear[10:60, 10:60] = 255
        clear[160:170, 190:] = 1
        write_cog(dset.fpath.parent / f'{name}.tif', image, nodata=-1)
        # 0 is its nodata, too, as of our own masks.
        write_cog(dset.fpath.parent / f'{name}_clear.tif', clear, nodata=0)
        image_id = dset.add_image(name=name, width=SIZE, height=SIZE, file_name=None, assets=[
            {'file_name': f'{name}.tif', 'channels': 'a|b', 'width': SIZE, 'height': SIZE},
            {'file_name': f'{name}_clear.tif', 'channels': 'clear', 'width': SIZE,
             'height': SIZE}])
        assert image_id
    dset.dump()
    return dset


def read(dset, image_id, channels='double'):
    found = dset.coco_image(image_id).imdelay(channels, nodata_method='float').finalize()
    return np.asarray(found, float).reshape(SIZE, SIZE, -1)


def read_pixels(dset, image_id):
    return np.asarray(dset.coco_image(image_id).imdelay('a|b', nodata_method='float').finalize())


@pytest.mark.parametrize('options', [
    {}, {'prefetch': 0}, {'batch_size': 4}, {'expected_minmax': (0, 200)},
    {'layers': ['disagreement']}], ids=['plain', 'serial', 'batches', 'streamed', 'layers'])
def test_nodata_windows_are_not_predicted(src, tmp_path, caplog, options):
    plain, masked = Doubler(), Doubler()
    options = {'window': 48, 'overlap': 16, 'channels': 'a|b', **options}
    expected = predict_dataset(src, tmp_path / 'a' / 'p.kwcoco.json', plain, **options)
    with caplog.at_level(logging.INFO, 'cocoseg.coco.predict'):
        found = predict_dataset(src, tmp_path / 'b' / 'p.kwcoco.json', masked, mask='nodata',
                                **options)
    for image_id in (1, 2):
        np.testing.assert_array_equal(read(found, image_id), read(expected, image_id))
    n_empty = sum(np.isnan(image).all() for image in plain.seen)
    assert n_empty > 10 and len(masked.seen) == len(plain.seen) - n_empty
    assert not any(np.isnan(image).all() for image in masked.seen)
    assert f'{n_empty} of {len(plain.seen)} windows have no valid pixel' in caplog.text


@pytest.mark.parametrize('batch_size', [1, 5])
def test_windows_outside_of_a_mask(src, tmp_path, batch_size):
    predictor = Doubler()
    # Without channels: all of the image but the mask.
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', predictor, window=32, overlap=8,
                           mask='clear', expected_minmax=(0, 200), batch_size=batch_size)
    clear = np.zeros((SIZE, SIZE), bool)
    clear[10:60, 10:60] = clear[160:170, 190:] = True
    for image_id in (1, 2):
        pixels = read_pixels(src, image_id)
        expected = np.where(clear, pixels[..., 0] * 2, np.nan)
        np.testing.assert_allclose(read(dset, image_id)[..., 0], expected, atol=0.02)
    assert np.isfinite(read(dset, 1)).any() and np.isfinite(read(dset, 2)).any()
    assert 0 < len(predictor.seen) < 30 and all(image.shape[2] == 2 for image in predictor.seen)


def test_outputs_are_probed_where_data_is(src, tmp_path):
    predictor = Doubler(channels=None)
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', predictor, window=32, overlap=0,
                           channels='a|b', mask='nodata', image_ids=[2])
    assert not any(np.isnan(image).all() for image in predictor.seen)
    assert read(dset, 2, 'pred.0').shape == (SIZE, SIZE, 1)


def test_an_image_without_any_valid_pixel(src, tmp_path):
    def never(image):
        raise AssertionError('was predicted')
    empty = np.zeros((SIZE, SIZE), np.uint8)
    for name in ('one', 'two'):
        write_cog(src.fpath.parent / f'{name}_clear.tif', empty)
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', never, window=64, mask='clear',
                           channels='a|b', out_channels='x|y', expected_minmax=(0, 1))
    assert np.isnan(read(dset, 1, 'x|y')).all()


def test_labels_are_0_where_masked(src, tmp_path):
    def number(image):
        return np.isfinite(image).all(axis=2).astype(np.int32)
    number.kind = 'labels'
    dset = predict_dataset(src, tmp_path / 'out.kwcoco.json', number, window=64, overlap=16,
                           channels='a|b', mask='clear')
    labels = dset.coco_image(1).imdelay('segments', interpolation='nearest',
                                        nodata_method=None).finalize().reshape(SIZE, SIZE)
    clear = np.zeros((SIZE, SIZE), bool)
    clear[10:60, 10:60] = clear[160:170, 190:] = True
    expected = clear & np.isfinite(read_pixels(src, 1)).all(axis=2)
    np.testing.assert_array_equal(labels != 0, expected)
    assert len(np.unique(labels[expected])) == 1


@pytest.mark.parametrize('mask, match', [('cloud', r"no channels \['cloud'\]"), (3, 'mask=3'),
                                         ('a|b', "mask='a|b'"), ('', "mask=''")])
def test_wrong_masks(src, tmp_path, mask, match):
    with pytest.raises(OptionError, match=match.replace('|', r'\|')):
        predict_dataset(src, tmp_path / 'out.kwcoco.json', Doubler(), channels='a|b', mask=mask)
    assert not (tmp_path / 'out.kwcoco.json').exists()


def test_a_mask_is_noted_for_resume(src, tmp_path):
    from cocoseg.errors import ResumeError
    options = {'window': 64, 'channels': 'a|b', 'settings': {'predictor': 'v1'}}
    dst = tmp_path / 'out.kwcoco.json'
    predict_dataset(src, dst, Doubler(), mask='clear', **options)
    again = Doubler()
    predict_dataset(src, dst, again, mask='clear', resume=True, **options)
    assert not again.seen
    with pytest.raises(ResumeError, match='mask was "clear"|mask'):
        predict_dataset(src, dst, Doubler(), mask='nodata', resume=True, **options)


def test_masks_that_we_made(src, tmp_path):
    """From nodata to a mask asset, to its outline, to predictions."""
    first = mask_dataset(src, tmp_path / 'a' / 'mask.kwcoco.json', 'a|b', nodata={7, 8},
                         logic='any', window=70, valid_region=True)
    for image_id in (1, 2):
        pixels = read_pixels(src, image_id)
        expected = ~(np.isnan(pixels) | np.isin(pixels, (7, 8))).any(axis=2)
        found = first.coco_image(image_id).imdelay('valid', nodata_method=None).finalize()
        np.testing.assert_array_equal(found.reshape(SIZE, SIZE), np.where(expected, 255, 0))
        region = first.coco_image(image_id).valid_region().to_shapely()
        assert region.area == pytest.approx(expected.sum())
    saved = kwcoco.CocoDataset(first.fpath)
    assert saved.index.imgs[1]['valid_region'] and 'has_predictions' not in saved.index.imgs[1]
    predictor = Doubler()
    dset = predict_dataset(first, tmp_path / 'b' / 'p.kwcoco.json', predictor, window=32,
                           channels='a|b', mask='valid')
    pixels = read_pixels(src, 1)
    invalid = (np.isnan(pixels) | np.isin(pixels, (7, 8))).any(axis=2)
    np.testing.assert_array_equal(np.isnan(read(dset, 1)[..., 0]), invalid)
    with pytest.raises(ChannelCollisionError, match='valid'):
        mask_dataset(first, tmp_path / 'a' / 'again.kwcoco.json', 'a|b')
    again = mask_dataset(first, tmp_path / 'a' / 'again.kwcoco.json', 'a|b', overwrite=True)
    assert len([asset for asset in again.index.imgs[1]['assets']
                if asset['channels'] == 'valid']) == 1


@pytest.mark.parametrize('options, match', [
    ({'logic': 'some'}, 'logic='), ({'logic': 3}, r'in 1\.\.2'), ({'nodata': 'masks'}, 'masks'),
    ({'nodata': [1]}, 'one entry for each'), ({'mask_channel': 'a|b'}, 'one channel'),
    ({'image_ids': [9]}, 'no images'), ({'channels': 'z'}, 'no channels')])
def test_wrong_options_of_masks(src, tmp_path, options, match):
    with pytest.raises(OptionError, match=match):
        mask_dataset(src, tmp_path / 'out.kwcoco.json', **{'channels': 'a|b', **options})
    assert not (tmp_path / 'out.kwcoco.json').exists()


def test_function_as_logic(src, tmp_path):
    dset = mask_dataset(src, tmp_path / 'out.kwcoco.json', 'a|b', nodata=[5, None],
                        logic=lambda nodata: nodata[0])
    found = dset.coco_image(1).imdelay('valid', nodata_method=None).finalize()
    pixels = read_pixels(src, 1)
    np.testing.assert_array_equal(found.reshape(SIZE, SIZE) != 0,
                                  ~(np.isnan(pixels[..., 0]) | (pixels[..., 0] == 5)))


def test_from_the_command_line(src, tmp_path):
    dst = tmp_path / 'out.kwcoco.json'
    code = main(['predict', str(src.fpath), '--dst', str(dst), '--predictor',
                 'tests.integration.test_predict_masks:double', '--channels', 'a|b', '--window',
                 '64', '--out_channels', 'double', '--mask', 'clear'])
    assert code == 0
    found = read(kwcoco.CocoDataset(dst), 1)
    assert np.isfinite(found[20, 20]).all() and np.isnan(found[100, 20]).all()


def double(image):
    """Predictor of the test above."""
    return image[..., :1] * 2
