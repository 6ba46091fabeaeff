"""The manifest: one per dataset, changed as a whole or not at all."""
import copy
import gc
import json
import os
import weakref
from concurrent.futures import ThreadPoolExecutor

import kwcoco
import pytest
from shapely.geometry import shape

from cocoseg.coco.manifest import asset_key, check_dataset, get_manifest, list_channels
from cocoseg.errors import ChannelCollisionError, ManifestError, UnknownImageError


class Owner:
    """Stands for a stitching manager."""


def make_dataset(folder, **fields):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'data.kwcoco.json')
    video_id = dset.add_video(name='vid', width=8, height=8)
    for index in range(3):
        own = copy.deepcopy(fields or {'auxiliary': []})
        if 'file_name' in own:
            own['file_name'] = f'{index}_{own["file_name"]}'
        dset.add_image(name=f'f{index}', width=8, height=8, video_id=video_id,
                       frame_index=index, **own)
    return dset


@pytest.fixture()
def dset(tmp_path):
    return make_dataset(tmp_path)


@pytest.fixture()
def manifest(dset):
    return get_manifest(dset)


def make_record(image_id=1, channels='a|b', file_name='_assets/x.tif', **fields):
    return {'image_id': image_id, 'image_name': f'f{image_id - 1}', 'asset': {
        'file_name': file_name, 'channels': channels, 'width': 8, 'height': 8,
        'num_bands': len(list_channels(channels)), 'warp_aux_to_img': {'type': 'affine'}}, **fields}


# --- which datasets ------------------------------------------------------

def test_one_manifest_per_dataset(dset, tmp_path):
    assert get_manifest(dset) is get_manifest(dset)
    assert get_manifest(dset.copy()) is not get_manifest(dset)


def test_the_manifest_does_not_keep_its_dataset_alive(tmp_path):
    dset = make_dataset(tmp_path)
    get_manifest(dset)
    seen = weakref.ref(dset)
    del dset
    gc.collect()
    assert seen() is None


def test_a_dataset_that_lives_nowhere_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dset = kwcoco.CocoDataset()
    with pytest.raises(ManifestError, match='fpath'):
        get_manifest(dset)
    dset.fpath = None
    with pytest.raises(ManifestError, match='fpath'):
        check_dataset(dset)
    dset.fpath = 'out.kwcoco.json'
    assert get_manifest(dset).bundle_dpath == os.fspath(tmp_path)


def test_an_sql_view_is_refused(tmp_path):
    pytest.importorskip('sqlalchemy')
    dset = make_dataset(tmp_path)
    dset.dump()
    with pytest.raises(ManifestError, match='JSON-backed'):
        get_manifest(dset.view_sql(backend='sqlite'))


class CocoSqlDatabase(kwcoco.CocoDataset):
    """Looks like a dataset, but its image dictionaries are copies."""


@pytest.mark.parametrize('thing', [None, {}, 'path.json', object(), CocoSqlDatabase()])
def test_what_is_no_dataset_is_refused(thing):
    with pytest.raises(ManifestError, match='JSON-backed'):
        get_manifest(thing)


# --- small questions -----------------------------------------------------

@pytest.mark.parametrize('spec, channels', [
    ('a', ['a']), ('r|g|b', ['r', 'g', 'b']), ('hidden.0:3', ['hidden.0', 'hidden.1', 'hidden.2']),
    ('a|h.2:4', ['a', 'h.2', 'h.3'])])
def test_channels_of_a_spec(spec, channels):
    assert list_channels(spec) == channels


@pytest.mark.parametrize('img, key', [
    ({}, 'auxiliary'), ({'auxiliary': []}, 'auxiliary'), ({'auxiliary': None}, 'auxiliary'),
    ({'assets': []}, 'assets'), ({'assets': None}, 'auxiliary'), ({'assets': [{}]}, 'assets'),
    ({'assets': [{}], 'auxiliary': []}, 'assets'), ({'assets': [{}], 'auxiliary': None}, 'assets'),
    ({'assets': [{}], 'auxiliary': [{}]}, 'auxiliary'),
    ({'assets': None, 'auxiliary': [{}]}, 'auxiliary')])
def test_the_list_that_kwcoco_reads_gets_the_asset(img, key):
    assert asset_key(img) == key


def test_unknown_image_names_some_that_exist(manifest):
    with pytest.raises(UnknownImageError, match=r'99.*3 images.*\[1, 2, 3\]'):
        manifest.get_image(99)


def test_video_of_an_image(manifest, dset):
    assert manifest.get_video(dset.index.imgs[1])['name'] == 'vid'
    assert manifest.get_video({'id': 5}) is None


# --- files ---------------------------------------------------------------

def reserve(manifest, image_id, chan_code='a|b', suffix='ab', folder='/b/_assets/pred'):
    return manifest.reserve_file(image_id, chan_code, folder, suffix, '.tif')


def test_the_same_asset_gets_the_same_file(manifest):
    assert reserve(manifest, 1) == '/b/_assets/pred/f0_ab.tif'
    assert reserve(manifest, 1) == reserve(manifest, 1)
    assert reserve(manifest, 2) == '/b/_assets/pred/f1_ab.tif'


def test_files_that_would_meet_are_kept_apart(manifest, dset):
    """'a' + '_b_c' and 'a_b' + '_c' spell the same name, also in another case."""
    dset.add_image(id=10, name='a')
    dset.add_image(id=11, name='A_B')
    first = manifest.reserve_file(10, 'b_c', '/b', 'b_c', '.tif')
    second = manifest.reserve_file(11, 'c', '/b', 'c', '.tif')
    assert first == '/b/a_b_c.tif' and second == '/b/A_B_id11_c.tif'


def test_the_file_of_another_asset_is_never_reserved(manifest, dset, tmp_path):
    dset.index.imgs[2]['auxiliary'] = [{'file_name': '_assets/pred/f0_ab.tif', 'channels': 'x'}]
    found = reserve(manifest, 1, folder=os.fspath(tmp_path / '_assets/pred'))
    assert os.path.basename(found) == 'f0_id1_ab.tif'


def test_same_name_in_two_videos(tmp_path):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(tmp_path / 'data.json')
    for video in ('v1', 'v2'):
        video_id = dset.add_video(name=video)
        dset.add_image(name=None, file_name=f'{video}.png', video_id=video_id, frame_index=0)
    for img in dset.index.imgs.values():
        img['name'] = 'frame'
    names = {os.path.basename(reserve(get_manifest(dset), i)) for i in (1, 2)}
    assert names == {'frame_id1_ab.tif', 'frame_id2_ab.tif'}


@pytest.mark.parametrize('name', ['../../etc/passwd', '/etc/passwd', 'a/b/../../..', '..',
                                  'C:x\\y'])
def test_no_name_leaves_the_folder(manifest, dset, name):
    dset.add_image(id=20, name=name)
    fpath = reserve(manifest, 20)
    assert os.path.dirname(os.path.normpath(fpath)) == '/b/_assets/pred'


# --- channels ------------------------------------------------------------

def test_a_channel_that_the_image_has_is_a_collision(tmp_path):
    dset = make_dataset(tmp_path, auxiliary=[{'file_name': 'rgb.png', 'channels': 'r|g|b'}])
    with pytest.raises(ChannelCollisionError, match=r"\['b'\] in 'rgb.png'.*on_collision"):
        get_manifest(dset).claim_channels(1, ['a', 'b'], Owner())


def test_a_promised_channel_is_a_collision_for_others_only(manifest):
    first, second = Owner(), Owner()
    manifest.claim_channels(1, ['a', 'b'], first)
    manifest.claim_channels(1, ['a', 'b'], first)
    manifest.claim_channels(2, ['a'], second)
    with pytest.raises(ChannelCollisionError, match="'b' of image 1"):
        manifest.claim_channels(1, ['c', 'b'], second)
    # Nothing of the refused claim stays.
    manifest.claim_channels(1, ['c'], first)
    manifest.release_channels(1, ['a', 'b'])
    manifest.claim_channels(1, ['a', 'b'], second)


def test_a_promise_dies_with_its_owner(manifest):
    owner = Owner()
    manifest.claim_channels(1, ['a'], owner)
    del owner
    gc.collect()
    manifest.claim_channels(1, ['a'], Owner())


def test_replace_takes_whole_assets_only(tmp_path):
    dset = make_dataset(tmp_path, auxiliary=[{'file_name': 'ab.tif', 'channels': 'a|b'}])
    manifest = get_manifest(dset)
    manifest.claim_channels(1, ['a', 'b', 'c'], Owner(), replace=True)
    with pytest.raises(ChannelCollisionError, match='whole asset'):
        manifest.claim_channels(1, ['a'], Owner(), replace=True)


def test_replace_never_takes_the_image_itself(tmp_path):
    dset = make_dataset(tmp_path, file_name='base.png', channels='a')
    with pytest.raises(ChannelCollisionError):
        get_manifest(dset).claim_channels(1, ['a'], Owner(), replace=True)


# --- commit --------------------------------------------------------------

@pytest.mark.parametrize('fields, key', [
    ({'auxiliary': []}, 'auxiliary'), ({'auxiliary': None}, 'auxiliary'),
    ({'assets': [{'file_name': 'r.png', 'channels': 'r'}]}, 'assets'),
    ({'assets': [{'file_name': 'r.png', 'channels': 'r'}], 'auxiliary': None}, 'assets'),
    ({'assets': [{'file_name': 'r.png', 'channels': 'r'}], 'auxiliary': []}, 'assets'),
    ({'auxiliary': [{'file_name': 'r.png', 'channels': 'r'}]}, 'auxiliary'),
    ({'file_name': 'r.png', 'channels': 'r'}, 'auxiliary')])
def test_commit_adds_where_kwcoco_finds_it(tmp_path, fields, key):
    dset = make_dataset(tmp_path, **fields)
    n_old = len(dset.index.imgs[1].get(key) or ())
    get_manifest(dset).commit(make_record())
    img = dset.index.imgs[1]
    assert [asset['channels'] for asset in img[key]][n_old:] == ['a|b']
    channels = set(dset.coco_image(1).channels.fuse().as_list())
    assert {'a', 'b'} <= channels and (n_old == 0 or 'r' in channels)
    # What imdelay would load.
    assert {'a', 'b'} <= set(dset.coco_image(1).imdelay().channels.as_list())


def test_commit_registers_everything_of_a_record(manifest, dset):
    region = {'type': 'MultiPolygon', 'coordinates': [[[[0, 0], [4, 0], [4, 8], [0, 8], [0, 0]]]]}
    other = {'type': 'MultiPolygon', 'coordinates': [[[[4, 0], [8, 0], [8, 8], [4, 8], [4, 0]]]]}
    annotation = {'category': 'a', 'bbox': [0, 0, 1, 1], 'score': 0.5}
    manifest.commit(make_record(region=region, has_predictions={'a|b': True},
                                annotations=[annotation]))
    manifest.commit(make_record(channels='c', file_name='_assets/c.tif', region=other,
                                has_predictions={'c': True}))
    img = dset.index.imgs[1]
    assert [asset['channels'] for asset in img['auxiliary']] == ['a|b', 'c']
    assert shape(img['prediction_region']).area == 64
    assert img['has_predictions'] == {'a|b': True, 'c': True}
    annot, = dset.annots().objs
    assert annot['image_id'] == 1 and annot['score'] == 0.5
    assert dset.cats[annot['category_id']]['name'] == 'a'
    assert 'prediction_region' not in dset.index.imgs[2]


def test_commit_keeps_no_reference_to_the_record(manifest, dset):
    record = make_record()
    manifest.commit(record)
    record['asset']['file_name'] = 'changed'
    assert dset.index.imgs[1]['auxiliary'][0]['file_name'] == '_assets/x.tif'


def test_commit_ends_the_promise(manifest):
    manifest.claim_channels(1, ['a', 'b'], Owner())
    manifest.commit(make_record())
    with pytest.raises(ChannelCollisionError):
        manifest.claim_channels(1, ['a'], Owner())


def test_commit_makes_the_hash_stale(manifest, dset):
    before = dset._build_hashid()
    manifest.commit(make_record())
    assert dset._build_hashid() != before


def test_commit_happens_as_a_whole_or_not_at_all(manifest, dset):
    manifest.commit(make_record())
    before = copy.deepcopy(dset.dataset)
    clash = make_record(channels='b|c', has_predictions={'b|c': True},
                        annotations=[{'category': 'new', 'bbox': [0, 0, 1, 1]}])
    with pytest.raises(ChannelCollisionError):
        manifest.commit(clash)
    with pytest.raises(UnknownImageError):
        manifest.commit(make_record(image_id=99))
    bad = make_record(channels='d', annotations=[
        {'category': 'fine', 'bbox': [0, 0, 1, 1]}, {'bbox': 'no category'}])
    with pytest.raises(KeyError):
        manifest.commit(bad)
    assert dset.dataset == before


def test_commit_can_replace(tmp_path):
    dset = make_dataset(tmp_path, assets=[
        {'file_name': 'r.png', 'channels': 'r'}, {'file_name': 'old.tif', 'channels': 'a|b'}])
    manifest = get_manifest(dset)
    with pytest.raises(ChannelCollisionError):
        manifest.commit(make_record())
    manifest.commit(make_record(), replace=True)
    assert [asset['file_name'] for asset in dset.index.imgs[1]['assets']] == [
        'r.png', '_assets/x.tif']
    assert len(dset.index.imgs[2]['assets']) == 2


def test_replace_looks_into_both_lists(tmp_path):
    dset = make_dataset(tmp_path, auxiliary=[{'file_name': 'r.png', 'channels': 'r'}],
                        assets=[{'file_name': 'old.tif', 'channels': 'a|b'}])
    get_manifest(dset).commit(make_record(), replace=True)
    img = dset.index.imgs[1]
    assert img['assets'] == []
    assert [asset['file_name'] for asset in img['auxiliary']] == ['r.png', '_assets/x.tif']


def test_whether_a_record_is_registered_already(manifest):
    assert not manifest.holds(make_record())
    manifest.commit(make_record())
    assert manifest.holds(make_record())
    assert not manifest.holds(make_record(file_name='other.tif'))
    assert not manifest.holds(make_record(channels='a'))
    assert not manifest.holds(make_record(image_id=2))


def test_a_record_without_an_asset_is_known_by_its_polygons(manifest):
    annotation = {'category': 'a', 'bbox': [0, 0, 1, 1], 'score': 0.5}
    record = {'image_id': 1, 'annotations': [annotation], 'has_predictions': {'a': True}}
    assert not manifest.holds(record)
    manifest.commit(record)
    assert manifest.holds(record)
    assert not manifest.holds({**record, 'image_id': 2})
    assert not manifest.holds({**record, 'annotations': [{**annotation, 'bbox': [1, 0, 1, 1]}]})


@pytest.mark.parametrize('key', ['auxiliary', 'assets'])
def test_retract_takes_one_asset_out(tmp_path, key):
    dset = make_dataset(tmp_path, **{key: [{'file_name': 'r.png', 'channels': 'r'}]})
    manifest = get_manifest(dset)
    manifest.commit(make_record(has_predictions={'a|b': True}))
    manifest.commit(make_record(channels='c', has_predictions={'c': True}))
    before = dset._build_hashid()
    manifest.retract(make_record())
    manifest.retract(make_record(image_id=2))
    assert [asset['channels'] for asset in dset.index.imgs[1][key]] == ['r', 'c']
    assert [asset['channels'] for asset in dset.index.imgs[2][key]] == ['r']
    assert dset.index.imgs[1]['has_predictions'] == {'c': True}
    assert dset._build_hashid() != before
    manifest.commit(make_record())


def test_many_threads_commit_at_a_time(manifest, dset):
    records = [make_record(image_id, f'c{index}', f'_assets/{image_id}_{index}.tif',
                           has_predictions={f'c{index}': True},
                           annotations=[{'category': f'c{index}', 'bbox': [0, 0, 1, 1]}])
               for image_id in (1, 2, 3) for index in range(20)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(manifest.commit, records))
    for image_id in (1, 2, 3):
        img = dset.index.imgs[image_id]
        assert len({asset['channels'] for asset in img['auxiliary']}) == 20
        assert len(img['has_predictions']) == 20
    assert dset.n_annots == 60 and dset.n_cats == 20


# --- saving --------------------------------------------------------------

def test_dump_makes_a_file_that_kwcoco_reads(tmp_path):
    dset = make_dataset(tmp_path / 'new' / 'bundle')
    get_manifest(dset).commit(make_record())
    get_manifest(dset).dump()
    assert kwcoco.CocoDataset(dset.fpath).dataset == dset.dataset
    assert os.listdir(tmp_path / 'new' / 'bundle') == ['data.kwcoco.json']


def test_dump_elsewhere_leaves_the_dataset_where_it_is(manifest, dset, tmp_path):
    before = dset.fpath
    manifest.dump(tmp_path / 'copy.kwcoco.json')
    assert dset.fpath == before and not os.path.exists(before)
    assert kwcoco.CocoDataset(os.fspath(tmp_path / 'copy.kwcoco.json')).n_images == 3


def test_dump_to_a_zip(manifest, dset, tmp_path):
    manifest.commit(make_record())
    manifest.dump(tmp_path / 'data.kwcoco.zip')
    reopened = kwcoco.CocoDataset(os.fspath(tmp_path / 'data.kwcoco.zip'))
    assert reopened.dataset == dset.dataset


@pytest.mark.parametrize('fields', [{'auxiliary': None}, {'assets': None},
                                    {'auxiliary': None, 'assets': []}])
def test_dump_of_images_with_null_lists(tmp_path, fields):
    """kwcoco itself saves such a manifest, so a stitched one can be saved too."""
    dset = make_dataset(tmp_path, **fields)
    get_manifest(dset).commit(make_record())
    get_manifest(dset).dump()
    assert kwcoco.CocoDataset(dset.fpath).n_images == 3


def test_a_failed_dump_leaves_the_old_file(manifest, dset, tmp_path, monkeypatch):
    manifest.dump()
    old = (tmp_path / 'data.kwcoco.json').read_bytes()
    manifest.commit(make_record())

    def fail(file, **options):
        file.write('{"images": [')
        raise OSError(28, 'No space left on device (simulated)')
    monkeypatch.setattr(dset, 'dump', fail)
    with pytest.raises(OSError, match='simulated'):
        manifest.dump()
    assert (tmp_path / 'data.kwcoco.json').read_bytes() == old
    assert os.listdir(tmp_path) == ['data.kwcoco.json']
    assert json.loads(old)['images'][0]['auxiliary'] == []
