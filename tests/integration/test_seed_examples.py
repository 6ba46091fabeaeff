"""
The examples of the reference's documentation, as they stand.

Only the import is ours, and kwcoco's demo data replaces geowatch's, which is
the same toy video with world coordinates. What the examples print is kept;
checks that they leave to the reader follow below each.
"""
# ruff: noqa: F403, F405
import kwcoco
import kwimage
import numpy as np
import pytest
import ubelt as ub

from cocoseg import *


@pytest.fixture()
def dset(tmp_path):
    """kwcoco's demo in a bundle of its own, so that its cache stays as it is."""
    dset = kwcoco.CocoDataset.demo('vidshapes2-frames3-multispectral')
    dset.reroot(absolute=True)
    dset.fpath = tmp_path / 'data.kwcoco.json'
    return dset


def test_stitch_in_video_space(dset):
    result_dataset = dset.copy()
    self = CocoStitchingManager(
        result_dataset=result_dataset,
        short_code='demofeat',
        chan_code='df1|df2',
        prob_format='png',
        stiching_space='video')
    coco_img = result_dataset.images().coco_images[0]
    # Compute a feature in 0.5 video space for a subset of an image
    gid = coco_img.img['id']
    hidden = coco_img.imdelay(space='video').finalize().mean(axis=2)
    my_feature = kwimage.imresize(hidden, scale=0.5)
    asset_dsize = my_feature.shape[0:2][::-1]
    space_slice = None
    self.accumulate_image(gid, space_slice, my_feature,
                          asset_dsize=asset_dsize,
                          scale_asset_from_stitchspace=0.5)
    self.finalize_image(gid)
    # The new auxiliary image is now in our result dataset
    result_img = result_dataset.coco_image(gid)
    print(ub.urepr(result_img.img, nl=-1))
    assert 'df1' in result_img.channels
    im1 = result_img.imdelay('df1', space='video')
    im2 = result_img.imdelay(channels='df1', space='asset')
    assert im1.shape[0] == hidden.shape[0]
    assert im2.shape[0] == my_feature.shape[0]

    found = im2.finalize()[..., 0]
    half_step = (my_feature.max() - my_feature.min()) / 254 / 2
    assert np.abs(found - my_feature).max() <= half_step * (1 + 1e-4)
    assert result_img.img['auxiliary'][-1]['file_name'].endswith('.png')


def test_stitch_in_image_space(dset):
    result_dataset = dset.copy()
    self = CocoStitchingManager(
        result_dataset=result_dataset,
        short_code='demofeat',
        chan_code='df1|df2',
        stiching_space='image')
    coco_img = result_dataset.images().coco_images[0]
    # Compute a feature in 0.5 image space for a subset of an image
    gid = coco_img.img['id']
    hidden = coco_img.imdelay(space='image').finalize().mean(axis=2)
    my_feature = kwimage.imresize(hidden, scale=0.5)
    asset_dsize = my_feature.shape[0:2][::-1]
    space_slice = None
    self.accumulate_image(gid, space_slice, my_feature,
                          asset_dsize=asset_dsize,
                          scale_asset_from_stitchspace=0.5)
    self.finalize_image(gid)
    # The new auxiliary image is now in our result dataset
    result_img = result_dataset.coco_image(gid)
    print(ub.urepr(result_img.img, nl=-1))
    assert 'df1' in result_img.channels
    im1 = result_img.imdelay('df1', space='image')
    im2 = result_img.imdelay(channels='df1', space='asset')
    assert im1.shape[0] == 600
    assert im2.shape[0] == 300

    found = im2.finalize()[..., 0]
    half_step = (my_feature.max() - my_feature.min()) / 32767 / 2
    assert np.abs(found - my_feature).max() <= half_step * (1 + 1e-2)
    # The input is as it was.
    assert 'df1' not in dset.coco_image(gid).channels


def test_quantize_data_that_is_not_between_0_and_1():
    from delayed_image.helpers import dequantize
    # Test error when input is not nicely between 0 and 1
    imdata = (np.random.randn(32, 32, 3) - 1.) * 2.5
    quant1, quantization1 = quantize_image(imdata)
    recon1 = dequantize(quant1, quantization1)
    error1 = np.abs((recon1 - imdata)).sum()
    print('error1 = {!r}'.format(error1))
    assert error1 <= imdata.size * np.ptp(imdata) / 32767 / 2
    #
    for i in range(1, 20):
        print('i = {!r}'.format(i))
        quant2, quantization2 = quantize_image(imdata, old_min=-i, old_max=i)
        recon2 = dequantize(quant2, quantization2)
        error2 = np.abs((recon2 - imdata)).sum()
        print('error2 = {!r}'.format(error2))
        clipped = np.abs(np.clip(imdata, -i, i) - imdata).sum()
        assert error2 <= clipped + imdata.size * 2 * i / 32767 / 2


def test_quantize_to_uint8():
    # Test dequantize with uint8
    from delayed_image.helpers import dequantize
    imdata = np.random.randn(32, 32, 3)
    quant1, quantization1 = quantize_image(imdata, quantize_dtype=np.uint8)
    recon1 = dequantize(quant1, quantization1)
    error1 = np.abs((recon1 - imdata)).sum()
    print('error1 = {!r}'.format(error1))
    assert error1 <= imdata.size * np.ptp(imdata) / 254 / 2


def test_quantize_signed_and_unsigned():
    # Test quantization with different signed / unsigned combos
    print(quantize_image(None, 0, 1, np.int16))
    print(quantize_image(None, 0, 1, np.int8))
    print(quantize_image(None, 0, 1, np.uint8))
    print(quantize_image(None, 0, 1, np.uint16))

    for dtype, limits in [(np.int16, (0, 32767, -9999)), (np.int8, (0, 127, -128)),
                          (np.uint8, (1, 255, 0)), (np.uint16, (1, 65535, 0))]:
        found = quantize_image(None, 0, 1, dtype)
        assert (found['quant_min'], found['quant_max'], found['nodata']) == limits
        assert (found['orig_min'], found['orig_max']) == (0, 1)


@pytest.mark.filterwarnings("ignore:Table 'images' is missing")
def test_demo(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    # See the contents of the function for details, might port it to a full
    # doctest later.
    dset = demo_coco_stitching_manager()

    assert str(dset.fpath).startswith(str(tmp_path))
    reopened = kwcoco.CocoDataset(dset.fpath)
    assert reopened.validate()['errors'] == []
    for coco_img in reopened.images().coco_images:
        feature = coco_img.imdelay('demochan.0:3', space='video').finalize()
        assert feature.shape == (128, 128, 3) and np.isfinite(feature).all()
        # The marks at the borders of the windows are blended away inside.
        assert feature[32:96, 32:96].max() < 1
