"""The checks of this folder find what they are for, each in a bundle that is damaged so."""
import json
import os
import shutil

import pytest

from .checks import (MANIFEST, check_cut, check_whole, find_damaged, find_differences,
                     find_journal_faults, find_leftovers, find_manifest_faults, list_assets,
                     list_named, read_journals)


@pytest.fixture
def bundle(undisturbed, tmp_path):
    """Return a copy of a whole bundle."""
    folder, _ = undisturbed('manage')
    shutil.copytree(folder, tmp_path / 'bundle')
    return tmp_path / 'bundle'


def edit_manifest(bundle, change):
    """Load, change and save the manifest."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def edit_journal(bundle, change):
    """Replace the bytes of the journal by those that ``change`` makes of them."""
    path, = read_journals(bundle)
    path.write_bytes(change(path.read_bytes()))


def test_a_whole_bundle_passes(bundle, undisturbed):
    assert check_whole(bundle, undisturbed('manage')[0]) == []
    assert len(list_assets(bundle)) == 18
    assert len(list_named(json.loads((bundle / MANIFEST).read_text()))) == 18


def test_a_bundle_that_was_never_begun_passes(tmp_path):
    assert check_cut(tmp_path) == []


@pytest.mark.parametrize('nbytes', [0, 1, 100, -1])
def test_a_cut_asset_is_found(bundle, nbytes):
    path = list_assets(bundle)[3]
    os.truncate(path, nbytes % path.stat().st_size)
    assert len(find_damaged(bundle)) == 1 and path.name in find_damaged(bundle)[0]
    assert len(find_journal_faults(bundle)) == 1
    assert len(check_cut(bundle)) == 2


def test_a_changed_pixel_is_found(bundle, undisturbed):
    path = list_assets(bundle)[0]
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    assert any('its journal says' in finding for finding in find_journal_faults(bundle))
    assert any('other bytes' in finding
               for finding in find_differences(bundle, undisturbed('manage')[0]))


def test_a_lost_asset_is_found(bundle, undisturbed):
    list_assets(bundle)[5].unlink()
    assert 'not on the disk' in find_journal_faults(bundle)[0]
    assert 'which is not there' in find_manifest_faults(bundle)[0]
    assert 'in one bundle only' in find_differences(bundle, undisturbed('manage')[0])[0]


def test_broken_journal_lines_are_counted(bundle):
    edit_journal(bundle, lambda content: content + b'{"version": 1, "rec')
    assert find_journal_faults(bundle) == []
    assert '1 broken lines' in find_journal_faults(bundle, max_broken=0)[0]


def test_an_asset_that_the_journal_does_not_know_is_found(bundle):
    edit_journal(bundle, lambda content: content.split(b'\n', 1)[1])
    assert len(find_manifest_faults(bundle)) == 3
    assert 'no journal knows' in find_manifest_faults(bundle)[0]
    assert find_manifest_faults(bundle, is_noted=False) == []


def test_a_cut_manifest_is_found(bundle):
    os.truncate(bundle / MANIFEST, 1000)
    assert 'cannot be read' in find_manifest_faults(bundle)[0]


@pytest.mark.parametrize('change', [
    lambda manifest: manifest['images'][2]['auxiliary'].pop(),
    lambda manifest: manifest['annotations'].pop(),
    lambda manifest: manifest['annotations'][0].update(score=2),
    lambda manifest: manifest['annotations'].append(manifest['annotations'][0]),
    lambda manifest: manifest['images'][0].update(width=1),
    lambda manifest: manifest['categories'][0].update(name='z'),
    lambda manifest: manifest.update(more=[])])
def test_another_manifest_is_found(bundle, undisturbed, change):
    edit_manifest(bundle, change)
    assert 'the manifest has other' in find_differences(bundle, undisturbed('manage')[0])[0]


def test_ids_in_another_order_are_no_difference(bundle, undisturbed):
    def swap(manifest):
        for annotation in manifest['annotations']:
            annotation['id'] += 7
            annotation['category_id'] = 3 - annotation['category_id']
        for category in manifest['categories']:
            category['id'] = 3 - category['id']
        manifest['annotations'].reverse()
    edit_manifest(bundle, swap)
    assert find_differences(bundle, undisturbed('manage')[0]) == []


@pytest.mark.parametrize('name', [
    '_assets/pred/.img1.tif.123.0011223344556677.tmp', '.out.kwcoco.json.1.0011223344556677.tmp',
    '_assets/.cocoseg-x.lock', 'a.spool', '_assets/pred/.hidden'])
def test_leftovers_are_found(bundle, name):
    (bundle / name).write_bytes(b'')
    assert find_leftovers(bundle) == [f'{name} was left behind']
    assert len(find_leftovers(bundle, is_open=True)) == (not name.endswith('.lock'))


def test_a_child_that_fails_is_an_error(nursery, tmp_path):
    victim = nursery.start('predict', folder=str(tmp_path), source='missing.json')
    with pytest.raises(AssertionError, match='(?s)ended with 1.*missing.json'):
        victim.finish()
    with pytest.raises(AssertionError, match="ended before 'end'"):
        nursery.start('predict', folder=str(tmp_path), source='missing.json').wait_for('end')
