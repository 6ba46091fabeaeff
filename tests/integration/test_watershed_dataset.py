"""Instances of datasets: aligned, annotated, resumed; and each parameter has its effect."""
import json
import os

import kwcoco
import kwimage
import numpy as np
import pytest

from cocoseg import (
    WatershedParameters, blockwise_watershed, verify_cog, watershed_dataset, write_cog)
from cocoseg.errors import BandCountError, ChannelCollisionError, OptionError, ResumeError
from cocoseg.grid.window import Window
from cocoseg.postprocess import watershed as watershed_module
from cocoseg.postprocess.watershed import compute_means
from cocoseg.postprocess.scores import score_labels

from ..instances import CHANNELS, OFFSETS, draw_affinities, draw_disks, make_bundle

PARAMETERS = WatershedParameters(OFFSETS, threshold=0.25, context=16)


@pytest.fixture
def truths():
    return [draw_disks(), draw_disks((60, 80)), draw_disks((70, 50))]


@pytest.fixture
def src(tmp_path, truths):
    """Three images with affinities of disks, and their foreground."""
    return make_bundle(tmp_path / 'src', truths)


@pytest.fixture
def video(tmp_path):
    """A video of 120 x 90 with two frames of other resolutions and places."""
    folder = tmp_path / 'video'
    folder.mkdir()
    dset = kwcoco.CocoDataset()
    dset.fpath = str(folder / 'src.kwcoco.json')
    video_id = dset.add_video(name='disks', width=120, height=90)
    truth = draw_disks()
    for index, (scale, offset) in enumerate([(2, (0, 0)), (1, (7, -4))]):
        warp_vid_from_img = kwimage.Affine.affine(scale=scale, offset=offset)
        values = kwimage.warp_affine((truth > 0).astype('f4'), warp_vid_from_img.inv(),
                                     dsize=(120 // scale, 90 // scale))
        write_cog(folder / f'{index}.tif', values, channels='nuclei')
        height, width = values.shape
        image_id = dset.add_image(
            name=f'frame{index}', width=width, height=height, video_id=video_id,
            frame_index=index, warp_img_to_vid=warp_vid_from_img.concise())
        dset.add_asset(image_id, file_name=f'{index}.tif', channels='nuclei', width=width,
                       height=height, warp_aux_to_img={'scale': 1})
    dset.dump()
    return dset


def read_labels(dset, image_id=1, space='asset', channel='instances'):
    image = dset.coco_image(image_id)
    found = image.imdelay(channel, interpolation='nearest', antialias=False, space=space).finalize()
    return found.reshape(found.shape[:2])


def warp_labels(dset, image_id, space):
    """Return the labels of an image in a space; what the asset does not cover is 0."""
    image = dset.coco_image(image_id)
    asset = image.find_asset('instances')
    warp = kwimage.Affine.coerce(asset['warp_aux_to_img'])
    dsize = image.dsize
    if space == 'video':
        warp, dsize = image.warp_vid_from_img @ warp, (image.video['width'], image.video['height'])
    return kwimage.warp_affine(read_labels(dset, image_id).astype(np.int32), warp, dsize=dsize,
                               interpolation='nearest', origin_convention='corner')


def list_assets(folder):
    """Return the bytes of all files that were made, by name."""
    return {path.name: path.read_bytes() for path in sorted(folder.rglob('*.tif'))}


# ---- where instances lie -----------------------------------------------------

def test_images_become_their_truth(tmp_path, src, truths):
    before, reports = json.dumps(src.dataset), []
    dset = watershed_dataset(src.fpath, tmp_path / 'out' / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                             block_shape=32, report=lambda *args: reports.append(args))
    assert json.dumps(kwcoco.CocoDataset(src.fpath).dataset) == before
    for image_id, truth in enumerate(truths, start=1):
        assert np.array_equal(read_labels(dset, image_id), truth)
        asset = dset.coco_image(image_id).find_asset('instances')
        fpath = tmp_path / 'out' / asset['file_name']
        assert asset['channels'] == 'instances' and verify_cog(fpath).dtype == 'uint32'
        assert asset['nodata'] == 0
    assert [image_id for image_id, _ in reports] == [1, 2, 3]
    assert [result.n_labels for _, result in reports] == [truth.max() for truth in truths]
    assert kwcoco.CocoDataset(dset.fpath).dataset == json.loads(json.dumps(dset.dataset))


@pytest.mark.parametrize('space', ['video', 'image'])
def test_instances_are_aligned_in_both_spaces(tmp_path, video, space):
    pytest.importorskip('skimage')
    parameters = WatershedParameters(method='foreground', threshold=0.5, context=20)
    dset = watershed_dataset(video, tmp_path / 'out' / 'out.kwcoco.json', parameters, 'nuclei',
                             space=space, block_shape=40)
    for image_id in (1, 2):
        image = dset.coco_image(image_id)
        heat = image.imdelay('nuclei', space=space, nodata_method='float')
        expected = blockwise_watershed(heat, parameters, block_shape=40).output
        assert np.array_equal(read_labels(dset, image_id, space), expected)
        assert expected.max() > 15
        for other in ('video', 'image'):
            is_object = image.imdelay('nuclei', space=other).finalize() >= 0.5
            is_object = is_object.reshape(is_object.shape[:2])
            found = warp_labels(dset, image_id, other) > 0
            assert found.shape == is_object.shape
            # Resampling may move an outline by a pixel of the coarser one.
            assert (found & is_object).sum() / (found | is_object).sum() > 0.9


def test_georeference_is_that_of_the_image(tmp_path):
    from cocoseg.coco.demo import demo_dataset
    from cocoseg.io.raster import raster_info
    pytest.importorskip('skimage')
    demo = demo_dataset(tmp_path / 'demo')
    parameters = WatershedParameters(method='foreground', threshold=120, min_size=50)
    dset = watershed_dataset(demo, tmp_path / 'out' / 'out.kwcoco.json', parameters, 'nir',
                             image_ids=[2])
    has_channel = {image_id: 'instances' in dset.coco_image(image_id).channels.fuse().as_list()
                   for image_id in dset.imgs}
    assert has_channel == {1: False, 2: True, 3: False}
    info = raster_info(tmp_path / 'out' / dset.coco_image(2).find_asset('instances')['file_name'])
    assert info.epsg == 26914


# ---- annotations ---------------------------------------------------------------

def test_annotations_have_ids_and_scores(tmp_path, src, truths):
    results = {}
    dset = watershed_dataset(src, tmp_path / 'out' / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                             polygons=True, category='disk', report=results.__setitem__)
    for image_id, truth in enumerate(truths, start=1):
        annots = dset.annots(image_id=image_id).objs
        assert [annot['segment_id'] for annot in annots] == list(range(1, truth.max() + 1))
        for annot in annots:
            is_object = truth == annot['segment_id']
            outline = kwimage.MultiPolygon.coerce(annot['segmentation']).to_shapely()
            assert outline.area == is_object.sum()
            rows, columns = np.nonzero(is_object)
            assert outline.bounds == (columns.min(), rows.min(), columns.max() + 1,
                                      rows.max() + 1)
            assert dset.cats[annot['category_id']]['name'] == 'disk'
            assert annot['score'] == results[image_id].scores[annot['segment_id']]
            assert 0.5 < annot['score'] < 0.95


def test_annotations_are_in_image_space(tmp_path, video):
    pytest.importorskip('skimage')
    parameters = WatershedParameters(method='foreground', threshold=0.5, context=20)
    dset = watershed_dataset(video, tmp_path / 'out' / 'out.kwcoco.json', parameters, 'nuclei',
                             polygons=True)
    for image_id in (1, 2):
        image = dset.coco_image(image_id)
        labels = read_labels(dset, image_id, 'video')
        for annot in dset.annots(image_id=image_id).objs:
            rows, columns = np.nonzero(labels == annot['segment_id'])
            box = kwimage.Box.coerce(annot['bbox'], format='xywh').warp(image.warp_vid_from_img)
            found = np.ravel(box.to_ltrb().data)
            assert np.allclose(found, [columns.min(), rows.min(), columns.max() + 1,
                                       rows.max() + 1], atol=1e-4)


# ---- what is not there -----------------------------------------------------------

def test_nodata_is_background(tmp_path, src, truths):
    fpath = tmp_path / 'src' / '0.tif'
    pixels = np.dstack([draw_affinities(truths[0]), truths[0] > 0]).astype('f4')
    pixels[:45] = np.nan
    write_cog(fpath, pixels, channels=f'{CHANNELS}|nuclei')
    dset = watershed_dataset(src, tmp_path / 'out' / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                             image_ids=[1])
    labels = read_labels(dset)
    assert not labels[:45].any() and score_labels(truths[0][45:], labels[45:]).f1 == 1


def test_two_orders_of_channels(tmp_path, src, truths):
    order = [2, 0, 3, 1]
    channels = '|'.join(CHANNELS.split('|')[place] for place in order)
    mixed = PARAMETERS.patch(offsets=[OFFSETS[place] for place in order])
    for name, parameters, is_right in (('a', mixed, True), ('b', PARAMETERS, False)):
        dset = watershed_dataset(src, tmp_path / name / 'out.kwcoco.json', parameters, channels,
                                 image_ids=[1])
        assert np.array_equal(read_labels(dset), truths[0]) == is_right


def test_foreground_is_a_channel_of_its_own(tmp_path, src, truths):
    parameters = PARAMETERS.patch(threshold=0.5)
    plain, masked = (
        watershed_dataset(src, tmp_path / name / 'out.kwcoco.json', parameters, CHANNELS,
                          image_ids=[1], **options)
        for name, options in (('a', {}), ('b', {'foreground': 'nuclei'})))
    assert not np.array_equal(read_labels(plain), truths[0])
    assert np.array_equal(read_labels(masked), truths[0])


@pytest.mark.parametrize('changes, error, match', [
    ({'channels': 'right|below'}, BandCountError, '2, and the parameters need 4'),
    ({'channels': 'right|below|up|west'}, OptionError, r"no channels \['west'\]"),
    ({'foreground': 'west'}, OptionError, r"no channels \['west'\]"),
    ({'out_channels': 'a|b'}, OptionError, 'one channel'),
    ({'parameters': {'bias': 0.5}}, OptionError, 'WatershedParameters'),
    ({'image_ids': [9]}, OptionError, r'no images \[9\]'),
    ({'space': 'world'}, OptionError, "space='world'"),
    ({'block_shape': 8}, OptionError, 'smaller than the context'),
])
def test_wrong_input_leaves_no_asset(tmp_path, src, changes, error, match):
    options = {'parameters': PARAMETERS, 'channels': CHANNELS, **changes}
    with pytest.raises(error, match=match):
        watershed_dataset(src, tmp_path / 'out' / 'out.kwcoco.json', **options)
    assert list_assets(tmp_path / 'out') == {} or not (tmp_path / 'out').exists()
    assert not (tmp_path / 'out' / 'out.kwcoco.json').exists()


def test_a_channel_that_exists(tmp_path, src):
    first = watershed_dataset(src, tmp_path / 'a' / 'out.kwcoco.json', PARAMETERS, CHANNELS)
    again = tmp_path / 'b' / 'out.kwcoco.json'
    with pytest.raises(ChannelCollisionError):
        watershed_dataset(first, again, PARAMETERS, CHANNELS)
    none = PARAMETERS.patch(min_size=10 ** 6)
    dset = watershed_dataset(first, again, none, CHANNELS, on_collision='replace')
    for image_id in dset.imgs:
        names = [asset['channels'] for asset in dset.imgs[image_id]['auxiliary']]
        assert names.count('instances') == 1 and not read_labels(dset, image_id).any()
    both = watershed_dataset(first, tmp_path / 'c' / 'out.kwcoco.json', none, CHANNELS,
                             out_channels='others')
    assert read_labels(both).any() and not read_labels(both, channel='others').any()


# ---- cut short -------------------------------------------------------------------

class Stop(BaseException):
    """Stands for a kill."""


def stop_after(n_images):
    """Return a ``progress`` that ends the run before an image."""
    def progress(images, total, desc):
        for number, image_id in enumerate(images):
            if number == n_images:
                raise Stop
            yield image_id
    return progress


def test_resume_after_a_kill_between_images(tmp_path, src):
    options = {'polygons': True, 'block_shape': 40}
    whole = watershed_dataset(src, tmp_path / 'whole' / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                              **options)
    dst, done = tmp_path / 'cut' / 'out.kwcoco.json', []
    with pytest.raises(Stop):
        watershed_dataset(src, dst, PARAMETERS, CHANNELS, progress=stop_after(2), **options)
    dset = watershed_dataset(src, dst, PARAMETERS, CHANNELS, resume=True,
                             report=lambda image_id, result: done.append(image_id), **options)
    assert done == [3]
    assert list_assets(tmp_path / 'cut') == list_assets(tmp_path / 'whole')
    for found, wanted in zip(dset.dataset['annotations'], whole.dataset['annotations'],
                             strict=True):
        assert {**found, 'id': 0} == {**wanted, 'id': 0}


def test_resume_within_an_image(tmp_path, src, monkeypatch):
    real, calls = watershed_module.label_instances, []

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == 8:
            raise Stop
        return real(*args, **kwargs)
    monkeypatch.setattr(watershed_module, 'label_instances', fail)
    dst = tmp_path / 'cut' / 'out.kwcoco.json'
    with pytest.raises(Stop):
        watershed_dataset(src, dst, PARAMETERS, CHANNELS, block_shape=48, resume=True)
    watershed_dataset(src, dst, PARAMETERS, CHANNELS, block_shape=48, resume=True)
    # 6 + 4 + 4 blocks, of which one was begun twice.
    assert len(calls) == 15
    monkeypatch.undo()
    watershed_dataset(src, tmp_path / 'whole' / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                      block_shape=48)
    assert list_assets(tmp_path / 'cut') == list_assets(tmp_path / 'whole')
    left = [name for _, folders, names in os.walk(tmp_path / 'cut') for name in folders + names
            if name.endswith('.blocks')]
    assert left == []


def test_other_settings_are_not_resumed(tmp_path, src):
    dst = tmp_path / 'out' / 'out.kwcoco.json'
    with pytest.raises(Stop):
        watershed_dataset(src, dst, PARAMETERS, CHANNELS, progress=stop_after(1))
    with pytest.raises(ResumeError):
        watershed_dataset(src, dst, PARAMETERS.patch(bias=0.4), CHANNELS, resume=True)


def test_executors_give_the_same_bytes(tmp_path, src):
    for name in ('serial', 'threads:3'):
        watershed_dataset(src, tmp_path / name / 'out.kwcoco.json', PARAMETERS, CHANNELS,
                          block_shape=20, executor=name)
    assert list_assets(tmp_path / 'serial') == list_assets(tmp_path / 'threads:3')


# ---- each parameter has its effect --------------------------------------------------

NOISY = draw_affinities(draw_disks(), noise=0.3, seed=3)


def find(parameters, affinities=NOISY, **options):
    return blockwise_watershed(affinities, parameters, block_shape=32, **options)


def test_offsets_act():
    """Neighbors alone leak from disk to disk at a pixel; a far repulsion keeps them apart."""
    truth = draw_disks()
    bridged = draw_affinities(truth)
    for channel, offset in enumerate(OFFSETS[:2]):
        bridged[11, 18:22, channel] = 0.9 if offset == (0, 1) else 0.05
    near = WatershedParameters(OFFSETS[:2], context=16)
    joined = find(near, bridged[..., :2]).output
    assert joined[11, 10] == joined[11, 29] > 0
    far = draw_affinities(truth, [(0, 13)])
    apart = find(near.patch(offsets=[*OFFSETS[:2], (0, 13)]),
                 np.concatenate([bridged[..., :2], far], axis=2)).output
    assert apart[11, 10] != apart[11, 29] and apart[11, 29] > 0


def test_threshold_acts():
    truth = draw_disks()
    means = compute_means(np.moveaxis(NOISY, -1, 0), OFFSETS)
    for threshold in (0.3, 0.5):
        labels = find(PARAMETERS.patch(threshold=threshold)).output
        assert not labels[means < threshold].any()
        assert (labels[truth > 0] > 0).any()
    everywhere = find(PARAMETERS.patch(threshold=None)).output
    assert everywhere[means < 0.25].any()


def test_sigma_acts():
    """Noise that has been smoothed splits no disks."""
    truth = draw_disks()
    noisy = draw_affinities(truth, noise=0.6)
    scores = [score_labels(truth, find(PARAMETERS.patch(sigma=sigma, threshold=0.35),
                                       noisy).output).f1 for sigma in (0, 1.5)]
    assert scores[1] > scores[0] + 0.2


def test_min_size_acts_after_blocks_are_joined():
    truth = draw_disks()
    sizes = np.bincount(truth.ravel())[1:]
    affinities = draw_affinities(truth)
    # Disks lie across blocks; no part of one is as large as that.
    assert find(PARAMETERS.patch(min_size=int(sizes.min())), affinities).n_labels == truth.max()
    assert find(PARAMETERS.patch(min_size=int(sizes.max()) + 1), affinities).n_labels == 0
    result = find(PARAMETERS.patch(min_size=20))
    assert 0 < result.n_labels < find(PARAMETERS).n_labels and result.sizes[1:].min() >= 20


def test_bias_acts():
    """The more affinity it takes to attract, the more disks are split."""
    truth, splits = draw_disks(), []
    for bias in (0.3, 0.6, 0.9):
        result = find(PARAMETERS.patch(bias=bias, threshold=None, filter_fragments=False))
        splits.append(score_labels(truth, result.output).vi_split)
        kept = find(PARAMETERS.patch(bias=bias, threshold=None))
        assert (kept.scores[1:] >= bias).all() and kept.n_labels < result.n_labels
    assert splits[0] < splits[1] < splits[2]


class Recording:
    """A source that knows what was read."""

    def __init__(self, pixels):
        self.name, self.pixels, self.windows = 'recording', pixels, []
        self.shape, self.dtype = pixels.shape, pixels.dtype

    def read(self, window):
        self.windows.append(window)
        return self.pixels[window.slices]


def test_context_acts():
    """Blocks read that much more, and agree better."""
    agreements = []
    for context in (9, 30):
        source = Recording(NOISY)
        result = find(PARAMETERS.patch(context=context, threshold=None, filter_fragments=False),
                      source)
        expected = [Window(y, x, min(y + 32, 90), min(x + 32, 120)).pad(context).clip((90, 120))
                    for y in range(0, 90, 32) for x in range(0, 120, 32)]
        assert source.windows == expected
        agreements.append(result.agreement)
    assert agreements[1] > agreements[0]


def test_background_stays_background():
    """What no block calls an object is 0, whatever is joined around it."""
    truth = draw_disks()
    for options in ({}, {'min_size': 30}, {'filter_fragments': False}):
        labels = find(PARAMETERS.patch(threshold=0.5, **options), draw_affinities(truth),
                      foreground=(truth > 0).astype('f4')).output
        assert not labels[truth == 0].any() and labels[truth > 0].any()


def test_instances_are_verified_like_other_assets(tmp_path):
    """Their journal has another name than that of a manager."""
    from cocoseg.coco.audit import audit_manifest
    src = make_bundle(tmp_path / 'src', [draw_disks()])
    dset = watershed_dataset(src, tmp_path / 'out' / 'out.kwcoco.json', PARAMETERS, CHANNELS)
    checks = {check.path: check for check in audit_manifest(dset.fpath).checks}
    path, = (path for path in checks if 'instances' in os.path.basename(path))
    assert checks[path].status == 'ok' and checks[path].n_tiles
    with open(path, 'r+b') as file:
        file.truncate(os.path.getsize(path) - 1)
    assert [check.path for check in audit_manifest(dset.fpath).select('bad')] == [path]
