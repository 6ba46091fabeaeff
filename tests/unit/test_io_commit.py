"""Atomic commit: the old file or the new one, and no debris."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cocoseg
from cocoseg.io import commit
from cocoseg.errors import AssetWriteError
from cocoseg.io.commit import (
    atomic_write, check_writable, sweep_temporaries, temporary_folder)


def names(folder):
    return sorted(os.listdir(folder))


def test_file_appears_only_after_the_block(tmp_path):
    with atomic_write(tmp_path / 'a.tif') as temp:
        temp.write_bytes(b'new')
        assert names(tmp_path) == [temp.name]
        assert temp.parent == tmp_path
    assert names(tmp_path) == ['a.tif']
    assert (tmp_path / 'a.tif').read_bytes() == b'new'


def test_targets_are_checked_and_left_alone(tmp_path, monkeypatch):
    (tmp_path / 'old.tif').write_bytes(b'old')
    for name in ('new.tif', 'old.tif'):
        check_writable(tmp_path / name)
    for place in (tmp_path, tmp_path / 'no' / 'a.tif', tmp_path / 'old.tif' / 'a.tif'):
        with pytest.raises(AssetWriteError) as caught:
            check_writable(place)
        assert caught.value.path == os.fspath(place)
    plain = os.open

    def refuse(path, flags, *args):
        if flags & os.O_CREAT:
            raise PermissionError(13, 'Permission denied (simulated)', os.fspath(path))
        return plain(path, flags, *args)
    monkeypatch.setattr(os, 'open', refuse)
    with pytest.raises(AssetWriteError, match='simulated'):
        check_writable(tmp_path / 'new.tif')
    assert names(tmp_path) == ['old.tif'] and (tmp_path / 'old.tif').read_bytes() == b'old'


def test_error_in_the_block_leaves_the_old_file(tmp_path):
    final = tmp_path / 'a.tif'
    final.write_bytes(b'old')
    with pytest.raises(KeyboardInterrupt):
        with atomic_write(final) as temp:
            temp.write_bytes(b'half')
            for suffix in ('.ovr.tmp', '.aux.xml', '.msk'):
                temp.with_name(temp.name + suffix).write_bytes(b'debris')
            raise KeyboardInterrupt
    assert names(tmp_path) == ['a.tif']
    assert final.read_bytes() == b'old'


def test_refused_file_is_removed(tmp_path):
    final = tmp_path / 'a.tif'
    final.write_bytes(b'old')

    def refuse(temp):
        assert temp.read_bytes() == b'bad'
        assert final.read_bytes() == b'old'
        raise ValueError('not good enough')

    with pytest.raises(ValueError, match='not good enough'):
        with atomic_write(final, verify=refuse) as temp:
            temp.write_bytes(b'bad')
    assert names(tmp_path) == ['a.tif']
    assert final.read_bytes() == b'old'


def test_order_is_fsync_verify_renamefsync_folder(tmp_path, monkeypatch):
    events = []
    replace, fsync = os.replace, commit._fsync_path
    monkeypatch.setattr(
        commit.os, 'replace', lambda *args: (events.append('rename'), replace(*args)))
    monkeypatch.setattr(commit, '_fsync_path', lambda path, *args: (
        events.append('fsync folder' if os.path.isdir(path) else 'fsync'), fsync(path, *args)))
    with atomic_write(tmp_path / 'a', verify=lambda temp: events.append('verify')):
        pass
    assert events == ['fsync', 'verify', 'rename', 'fsync folder']


def test_failed_fsync_keeps_the_old_file(tmp_path, monkeypatch):
    final = tmp_path / 'a'
    final.write_bytes(b'old')

    def broken(path, *args):
        raise OSError(5, 'Input/output error')

    monkeypatch.setattr(commit, '_fsync_path', broken)
    with pytest.raises(OSError, match='Input/output'):
        with atomic_write(final) as temp:
            temp.write_bytes(b'new')
    assert names(tmp_path) == ['a']
    assert final.read_bytes() == b'old'


def test_replacing_removes_stale_sidecars(tmp_path):
    for name in ('a.tif', 'a.tif.aux.xml', 'a.tif.ovr', 'b.tif.aux.xml'):
        (tmp_path / name).write_bytes(b'old')
    with atomic_write(tmp_path / 'a.tif') as temp:
        temp.write_bytes(b'new')
    assert names(tmp_path) == ['a.tif', 'b.tif.aux.xml']
    with atomic_write(tmp_path / 'b.tif'):
        pass
    assert 'b.tif.aux.xml' in names(tmp_path)  # nothing was replaced


def test_unusable_targets_raise_what_the_system_says(tmp_path):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'file').write_bytes(b'')
    cases = [('folder', IsADirectoryError), ('missing/a.tif', FileNotFoundError),
             ('file/a.tif', NotADirectoryError)]
    for name, kind in cases:
        with pytest.raises(kind):
            with atomic_write(tmp_path / name):
                raise AssertionError('the block must not run')
    assert names(tmp_path) == ['file', 'folder']


@pytest.mark.parametrize('letter', ['x', 'ä', '語'])
def test_longest_names_work(tmp_path, letter):
    name = letter * (255 // len(letter.encode()))
    with atomic_write(tmp_path / name) as temp:
        assert len(os.fsencode(temp.name)) <= 255 - len('.msk.ovr.tmp')
        temp.write_bytes(b'new')
    assert names(tmp_path) == [name]


def test_relative_path_and_umask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old = os.umask(0o027)
    try:
        with atomic_write('a') as temp:
            temp.write_bytes(b'')
    finally:
        os.umask(old)
    assert (tmp_path / 'a').stat().st_mode & 0o777 == 0o640


def test_sweep_takes_only_the_dead(tmp_path):
    script = (
        'import os, sys\n'
        'from cocoseg.io.commit import atomic_write\n'
        'with atomic_write(sys.argv[1]) as temp:\n'
        '    open(f"{temp}.ovr.tmp", "w").close()\n'
        '    os._exit(0)\n')
    subprocess.run(
        [sys.executable, '-c', script, str(tmp_path / 'a.tif')], check=True,
        cwd=Path(cocoseg.__file__).parent.parent)
    (tmp_path / '.hidden.tmp').write_bytes(b'')
    (tmp_path / '.a.tif.12.tmp').write_bytes(b'')
    assert len(names(tmp_path)) == 4
    with atomic_write(tmp_path / 'b.tif') as temp:
        removed = sweep_temporaries(tmp_path)
        assert temp.exists()
    assert len(removed) == 2 and all('.a.tif.' in path for path in removed)
    assert names(tmp_path) == ['.a.tif.12.tmp', '.hidden.tmp', 'b.tif']


def test_sweep_removes_the_folders_of_the_dead(tmp_path):
    script = (
        'import os, sys\n'
        'from cocoseg.io.commit import temporary_folder\n'
        'with temporary_folder(sys.argv[1]) as temp:\n'
        '    open(os.path.join(temp, "part"), "w").close()\n'
        '    os._exit(0)\n')
    subprocess.run(
        [sys.executable, '-c', script, str(tmp_path / 'a.tif')], check=True,
        cwd=Path(cocoseg.__file__).parent.parent)
    assert len(names(tmp_path)) == 1
    with temporary_folder(tmp_path / 'a.tif') as temp:
        removed = sweep_temporaries(tmp_path)
        assert names(tmp_path) == [os.path.basename(temp)]
    assert len(removed) == 1 and names(tmp_path) == []


def test_who_comes_late_finds_no_temporary_folder(tmp_path):
    with temporary_folder(tmp_path / 'a.tif') as temp:
        Path(temp, 'part').write_bytes(b'')
    with pytest.raises(FileNotFoundError):
        Path(temp, 'late').write_bytes(b'')
    assert names(tmp_path) == []


def test_sweep_of_another_machine_goes_by_age(tmp_path):
    fresh = tmp_path / f'.a.tif.{2 ** 40}.{"0" * 16}.tmp'
    old = tmp_path / f'.b.tif.{2 ** 40}.{"0" * 16}.tmp'
    for path in (fresh, old):
        path.write_bytes(b'')
    os.utime(old, (0, 0))
    assert sweep_temporaries(tmp_path) == [str(old)]
    assert sweep_temporaries(tmp_path / 'missing') == []
    assert names(tmp_path) == [fresh.name]
