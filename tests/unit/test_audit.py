"""The audit of a manifest: ours are checked against all that is known of them."""
import json
import os
import shutil
from pathlib import Path

import kwcoco
import numpy as np
import pytest
import tifffile

from cocoseg.coco.audit import AssetCheck, audit_manifest, check_file
from cocoseg.errors import ManifestError
from cocoseg.io.cog import write_cog
from cocoseg.io.images import write_png, write_tif

from ..builders import GOOD, LEFT, RIGHT, making_managers, make_two_images


def make_bundle(folder, **options):
    """Write a manifest with one asset for each of two images; return its path."""
    dset = make_two_images(folder)
    with making_managers(dset) as make:
        manager = make(**options)
        for image_id in (1, 2):
            for place in (LEFT, RIGHT):
                manager.accumulate_image(image_id, place, GOOD[place])
            manager.finalize_image(image_id)
        manager.dump()
    return Path(dset.fpath)


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp('original')).parent


@pytest.fixture
def bundle(original, tmp_path):
    """Path of a manifest that may be spoiled."""
    return Path(shutil.copytree(original, tmp_path / 'bundle')) / 'out.kwcoco.json'


def list_files(fpath, pattern='*.tif'):
    """Return the assets of make_bundle."""
    return sorted((fpath.parent / '_assets' / 'pred').glob(pattern))


def get_journal(fpath):
    (journal,) = list_files(fpath, '.cocoseg-*.jsonl')
    return journal


def flip(fpath, position):
    """Change one byte, counted from the end if negative."""
    content = bytearray(fpath.read_bytes())
    content[position] ^= 0xff
    fpath.write_bytes(content)


def edit_manifest(fpath, change):
    """Change the entry of the first asset."""
    data = json.loads(fpath.read_text())
    change(data['images'][0], data['images'][0]['auxiliary'][0])
    fpath.write_text(json.dumps(data))


def find_bad(fpath, **options):
    """Return what is wrong with the first asset, of which all others are good."""
    audit = audit_manifest(fpath, **options)
    assert [check.status for check in audit.checks] == ['bad', 'ok']
    return audit.checks[0].problem


@pytest.mark.parametrize('full', [False, True])
def test_whole_bundle(bundle, full):
    seen = []
    audit = audit_manifest(bundle, full=full, on_check=seen.append)
    assert audit.fpath == str(bundle) and audit.notes == ()
    assert audit.checks == tuple(seen)
    for check, path, image_id in zip(audit.checks, list_files(bundle), (1, 2), strict=True):
        assert check == AssetCheck(str(path), image_id, 'ok', None, path.stat().st_size, 1,
                                   check.seconds)
        assert check.seconds > 0


def test_nothing_is_changed(bundle):
    before = {path: path.stat() for path in bundle.parent.rglob('*')}
    audit_manifest(bundle, full=True, all_assets=True)
    for path in bundle.parent.rglob('*'):
        assert path.stat().st_mtime_ns == before[path].st_mtime_ns


def test_zipped_manifest(bundle):
    dset = kwcoco.CocoDataset(bundle)
    zipped = bundle.with_name('out.kwcoco.zip')
    dset.dump(zipped)
    assert len(audit_manifest(zipped).select('ok')) == 2


def test_missing_file(bundle):
    list_files(bundle)[0].unlink()
    assert find_bad(bundle) == 'there is no such file'


def test_folder_in_its_place(bundle):
    path = list_files(bundle)[0]
    path.unlink()
    path.mkdir()
    assert find_bad(bundle) == 'it is no file'


def test_truncated_file(bundle):
    path = list_files(bundle)[0]
    nbytes = path.stat().st_size
    os.truncate(path, nbytes - 3)
    assert find_bad(bundle) == f'it has {nbytes - 3} bytes, its journal says {nbytes}'
    get_journal(bundle).unlink()
    assert find_bad(bundle) == '3 bytes are missing at the end'


def test_marks_are_checked_without_full(bundle):
    flip(list_files(bundle)[0], -1)
    assert 'marks around tile 0' in find_bad(bundle)


def test_changed_pixels_need_full(bundle):
    """The codec may take the byte, but the checksum does not."""
    flip(list_files(bundle)[0], -12)
    assert len(audit_manifest(bundle).select('ok')) == 2
    assert find_bad(bundle, full=True)
    path = list_files(bundle)[0]
    shutil.copy(list_files(bundle)[1], path)
    write_cog(path, np.zeros((64, 64, 2), np.int16), channels='x|y', compress='NONE')
    change_record(bundle, nbytes=path.stat().st_size)
    assert len(audit_manifest(bundle).select('ok')) == 2
    assert 'checksum' in find_bad(bundle, full=True)


def change_record(bundle, **changes):
    """Change what the journal says of the first image."""
    journal = get_journal(bundle)
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[0]['record'].update(changes)
    journal.write_text('\n'.join(map(json.dumps, lines)) + '\n')


def test_full_decodes_without_a_journal(bundle):
    get_journal(bundle).unlink()
    path = list_files(bundle)[0]
    with tifffile.TiffFile(path) as tif:
        flip(path, tif.pages[0].dataoffsets[0])
    assert len(audit_manifest(bundle).select('ok')) == 2
    assert 'decoding level 0' in find_bad(bundle, full=True)
    assert check_file(path).status == 'ok'
    assert 'decoding level 0' in check_file(path, full=True).problem


def test_changed_coordinates_need_full(bundle):
    """No layout shows a change of a value; the checksum does."""
    path = list_files(bundle)[0]
    content = path.read_bytes()
    place = content.index(b'-9999') + 1
    path.write_bytes(content[:place] + b'8' + content[place + 1:])
    assert len(audit_manifest(bundle).select('ok')) == 2
    assert 'checksum' in find_bad(bundle, full=True)


@pytest.mark.parametrize('name, value, problem', [
    ('height', 63, 'its height is 64, the manifest says 63'),
    ('width', 65, 'its width is 64, the manifest says 65'),
    ('num_bands', 3, 'its num_bands is 2, the manifest says 3'),
    ('channels', 'x|y|z', "it has 2 bands, the manifest says 'x|y|z'"),
    ('channels', 'y|x', "its bands are 'x|y', the manifest says 'y|x'")])
def test_entry_that_disagrees(bundle, name, value, problem):
    edit_manifest(bundle, lambda img, asset: asset.update({name: value}))
    assert find_bad(bundle) == problem


def test_newer_lines_of_a_journal_win(bundle):
    journal = get_journal(bundle)
    lines = journal.read_text().splitlines()
    old = json.loads(lines[0])
    old['record']['nbytes'] += 1
    old['config'] = 'other'
    journal.write_text('\n'.join([json.dumps(old), *lines, '{"version": 1, "rec', '5', '{}', '']))
    assert len(audit_manifest(bundle).select('ok')) == 2
    with journal.open('a') as file:
        file.write(json.dumps(old) + '\n')
    assert 'its journal says' in find_bad(bundle)


def test_assets_without_a_journal_are_ours_by_has_predictions(bundle):
    get_journal(bundle).unlink()
    flip(list_files(bundle)[0], -1)
    assert 'marks' in find_bad(bundle)
    edit_manifest(bundle, lambda img, asset: img.pop('has_predictions'))
    audit = audit_manifest(bundle)
    assert [(check.status, check.problem) for check in audit.checks] == [
        ('skipped', None), ('ok', None)]
    assert [check.status for check in audit_manifest(bundle, all_assets=True).checks] == [
        'bad', 'ok']


def test_moved_bundle(bundle, tmp_path):
    """A journal speaks of the files beside it, not of where they were."""
    elsewhere = tmp_path / 'deeper' / 'still'
    elsewhere.mkdir(parents=True)
    dset = kwcoco.CocoDataset(bundle)
    dset.reroot(absolute=True)
    dset.dump(elsewhere / 'moved.kwcoco.json')
    os.truncate(list_files(bundle)[0], 1000)
    assert 'its journal says' in find_bad(elsewhere / 'moved.kwcoco.json')


@pytest.mark.parametrize('fmt, find', [('tif', '*.tif'), ('png', '*.png')])
def test_other_formats(tmp_path, fmt, find):
    fpath = make_bundle(tmp_path, prob_format=fmt)
    assert len(audit_manifest(fpath, full=True).select('ok')) == 2
    paths = list_files(fpath, find)
    flip(paths[0], -30)
    assert 'checksum' in find_bad(fpath, full=True)
    # A TIFF without layout hints has nothing else that shows damage.
    assert len(audit_manifest(fpath).select('bad')) == (fmt == 'tif')
    os.truncate(paths[0], 100)
    assert 'its journal says' in find_bad(fpath)
    get_journal(fpath).unlink()
    checks = audit_manifest(fpath).checks
    assert {(check.status, check.problem) for check in checks} == {
        ('skipped', 'cannot be checked without its journal')}
    paths[0].write_bytes(b'\0' * 5000)
    checks = audit_manifest(fpath).checks
    assert [check.status for check in checks] == ['bad', 'skipped']
    assert 'it is no image' in checks[0].problem


def test_hints_that_are_lost(bundle):
    """What makes a COG one is damaged: it is no plain TIFF for that."""
    path = list_files(bundle)[0]
    flip(path, path.read_bytes().index(b'GDAL_STRUCTURAL') + 3)
    assert 'checksum' in find_bad(bundle)


def test_layers_are_ours(tmp_path):
    fpath = make_bundle(tmp_path, layers=['class'])
    audit = audit_manifest(fpath)
    assert len(audit.select('ok')) == 4
    path = next(path for path in list_files(fpath) if 'class' in path.name)
    flip(path, -1)
    assert [check.path for check in audit_manifest(fpath).select('bad')] == [str(path)]


def make_inputs(folder):
    """Write a manifest of inputs of several kinds."""
    rgb = np.zeros((20, 30, 3), np.uint8)
    write_png(folder / 'a.png', rgb)
    write_cog(folder / 'b.tif', rgb)
    write_tif(folder / 'c.tif', rgb)
    names = ['a.png', 'b.tif', 'c.tif', 'gone.tif', 'https://example.com/d.tif', '/vsis3/e.tif']
    images = [{'id': k, 'file_name': name, 'height': 20, 'width': 30, 'channels': 'red|green|blue'}
              for k, name in enumerate(names)]
    fpath = folder / 'in.kwcoco.json'
    fpath.write_text(json.dumps({'images': images}))
    return fpath


def test_inputs_are_skipped(tmp_path):
    audit = audit_manifest(make_inputs(tmp_path))
    assert len(audit.checks) == 6
    assert {(check.status, check.problem) for check in audit.checks} == {('skipped', None)}


@pytest.mark.parametrize('full', [False, True])
def test_all_assets(tmp_path, full):
    fpath = make_inputs(tmp_path)
    audit = audit_manifest(fpath, all_assets=True, full=full)
    assert [check.status for check in audit.checks] == [
        'ok', 'ok', 'ok', 'bad', 'skipped', 'skipped']
    assert audit.checks[4].problem == 'it is not on this machine'
    assert audit.checks[4].path == 'https://example.com/d.tif'
    flip(tmp_path / 'b.tif', -1)
    os.truncate(tmp_path / 'a.png', 10)
    data = json.loads(fpath.read_text())
    data['images'][2]['height'] = 21
    fpath.write_text(json.dumps(data))
    audit = audit_manifest(fpath, all_assets=True, full=full)
    assert [check.status for check in audit.checks[:3]] == ['bad'] * 3


def test_full_decodes_inputs(tmp_path):
    """A TIFF opens when its pixels are gone."""
    fpath = make_inputs(tmp_path)
    os.truncate(tmp_path / 'c.tif', (tmp_path / 'c.tif').stat().st_size - 20)
    kinds = [audit_manifest(fpath, all_assets=True, full=full).checks[2].status
             for full in (False, True)]
    assert kinds == ['ok', 'bad']


def test_note_about_files_that_wait_for_a_resume(bundle):
    edit_manifest(bundle, lambda img, asset: img.update(auxiliary=[]))
    audit = audit_manifest(bundle)
    assert len(audit.select('ok')) == len(audit.checks) == 1
    (note,) = audit.notes
    assert '1 finished files that the manifest does not name' in note and 'img1' in note


def test_note_about_temporaries(bundle):
    from cocoseg.io.commit import atomic_write
    folder = list_files(bundle)[0].parent
    with atomic_write(folder / 'x.tif') as temporary:
        dead = Path(str(temporary).replace(f'.{os.getpid()}.', f'.{2 ** 40}.'))
        assert audit_manifest(bundle).notes == ()
        dead.touch()
        (note,) = audit_manifest(bundle).notes
    assert '1 temporary files' in note and dead.name in note and dead.exists()


@pytest.mark.parametrize('content', [
    b'', b'no json', b'[]', b'5', b'{}', b'{"images": [5]}', b'\xff\xfe', b'PK\3\4',
    b'{"images": [{"id": 1, "assets": [5]}]}', b'{"images": [{"id": 1, "file_name": 5}]}'])
def test_what_is_no_manifest(tmp_path, content):
    (tmp_path / 'a.json').write_bytes(content)
    with pytest.raises(ManifestError, match='cannot be read as a kwcoco manifest'):
        audit_manifest(tmp_path / 'a.json')


@pytest.mark.filterwarnings('ignore')
def test_images_that_share_an_id_are_all_checked(bundle):
    """kwcoco warns of them, and goes on with one."""
    data = json.loads(bundle.read_text())
    data['images'][1]['id'] = data['images'][0]['id']
    bundle.write_text(json.dumps(data))
    list_files(bundle)[0].unlink()
    assert find_bad(bundle) == 'there is no such file'


def test_missing_manifest(tmp_path):
    with pytest.raises(FileNotFoundError):
        audit_manifest(tmp_path / 'a.json')


@pytest.mark.parametrize('full', [False, True])
def test_single_file(tmp_path, full):
    report = write_cog(tmp_path / 'a.tif', np.arange(90 * 100, dtype=np.int16).reshape(90, 100),
                       blocksize=64)
    check = check_file(tmp_path / 'a.tif', full=full)
    assert (check.status, check.problem, check.image_id) == ('ok', None, None)
    assert (check.nbytes, check.n_tiles) == (report.nbytes, report.n_tiles)
    os.truncate(tmp_path / 'a.tif', report.nbytes - 1)
    check = check_file(tmp_path / 'a.tif', full=full)
    assert (check.status, check.problem) == ('bad', '1 bytes are missing at the end')
    assert (check.nbytes, check.n_tiles) == (report.nbytes - 1, None)


def test_single_files_of_other_kinds(tmp_path):
    (tmp_path / 'a.tif').write_text('text')
    assert check_file(tmp_path / 'a.tif').problem.startswith('it is no TIFF')
    assert check_file(tmp_path).problem == 'it is a folder'
    assert check_file(tmp_path / 'b.tif').problem == 'there is no such file'
    assert check_file(tmp_path / 'a.tif' / 'b.tif').status == 'bad'
    assert check_file('a\0b').status == 'bad'
