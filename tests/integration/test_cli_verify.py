"""The command ``cocoseg verify``: what it prints, and its exit codes."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cocoseg.cli.main import main
from cocoseg.io.cog import write_cog

from ..builders import GOOD, LEFT, RIGHT, making_managers, make_two_images


@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """A bundle of two images with an asset each, and a third that is an input."""
    folder = tmp_path_factory.mktemp('original')
    dset = make_two_images(folder)
    with making_managers(dset) as make:
        manager = make()
        for image_id in (1, 2):
            for place in (LEFT, RIGHT):
                manager.accumulate_image(image_id, place, GOOD[place])
            manager.finalize_image(image_id)
        write_cog(folder / 'input.tif', np.zeros((64, 64), np.uint8))
        dset.add_image(id=3, name='input', file_name='input.tif', width=64, height=64)
        manager.dump()
    return folder


@pytest.fixture
def manifest(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / 'bundle')) / 'out.kwcoco.json'


@pytest.fixture
def files(tmp_path):
    """Two good files."""
    data = np.arange(100 * 90, dtype=np.int16).reshape(100, 90)
    for name in 'ab':
        write_cog(tmp_path / f'{name}.tif', data, blocksize=64)
    return [str(tmp_path / f'{name}.tif') for name in 'ab']


def flip(fpath, position):
    content = bytearray(Path(fpath).read_bytes())
    content[position] ^= 0xff
    Path(fpath).write_bytes(content)


def get_assets(manifest):
    return sorted(str(path) for path in manifest.parent.rglob('*.tif') if path.name != 'input.tif')


def run(capsys, *words):
    """Return the exit code, and the lines on stdout and stderr."""
    code = main(['verify', *map(str, words)])
    found = capsys.readouterr()
    return code, found.out.splitlines(), found.err


def test_good_files(files, capsys):
    code, lines, errors = run(capsys, *files)
    assert (code, errors, len(lines)) == (0, '', 4)
    assert lines[0].split() == ['status', 'size', 'tiles', 'ms', 'file']
    for line, path in zip(lines[1:3], files):
        words = line.split()
        assert words[0] == 'ok' and words[3] == '5' and words[-1] == path
        assert float(words[4]) > 0
        assert float(words[1]) == pytest.approx(os.path.getsize(path) / 1000, abs=0.06)
    assert lines[3] == '2 ok, 0 bad, 0 skipped'


def test_goes_on_after_a_bad_file(files, tmp_path, capsys):
    os.truncate(files[0], os.path.getsize(files[0]) - 7)
    missing = str(tmp_path / 'missing.tif')
    code, lines, errors = run(capsys, files[0], missing, tmp_path, files[1])
    assert code == 1
    assert [line.split()[0] for line in lines[1:5]] == ['BAD', 'BAD', 'BAD', 'ok']
    assert lines[1].endswith(f'{files[0]}: 7 bytes are missing at the end')
    assert lines[2].endswith(f'{missing}: there is no such file')
    assert lines[3].endswith(f'{tmp_path}: it is a folder')
    assert lines[5] == '1 ok, 3 bad, 0 skipped'
    assert errors.startswith('cocoseg: error: 3 of 4 files are bad or missing; ')


def test_full_finds_a_byte_inside_of_a_tile(manifest, capsys):
    path = get_assets(manifest)[1]
    flip(path, -12)
    assert run(capsys, manifest)[0] == run(capsys, path)[0] == 0
    code, lines, _ = run(capsys, manifest, '--full')
    assert code == 1
    assert [line.split()[0] for line in lines[1:3]] == ['ok', 'BAD']
    assert path in lines[2]


def test_full_decodes_single_files(files, capsys):
    with tifffile.TiffFile(files[1]) as tif:
        flip(files[1], tif.pages[0].dataoffsets[2])
    assert run(capsys, *files)[0] == 0
    code, lines, _ = run(capsys, *files, '--full')
    assert code == 1 and [line.split()[0] for line in lines[1:3]] == ['ok', 'BAD']
    assert 'decoding level 0' in lines[2]


def test_manifest(manifest, capsys):
    code, lines, errors = run(capsys, manifest)
    assert (code, errors) == (0, '')
    assert [line.split()[-1] for line in lines[1:3]] == get_assets(manifest)
    assert lines[3:] == ['2 ok, 0 bad, 1 skipped']


def test_manifest_with_a_missing_file(manifest, files, capsys):
    missing, other = get_assets(manifest)
    os.unlink(missing)
    code, lines, _ = run(capsys, manifest, *files)
    assert code == 1
    assert lines[1].endswith(f'{missing}: there is no such file')
    assert [line.split()[-1] for line in lines[2:5]] == [other, *files]
    assert lines[5] == '3 ok, 1 bad, 1 skipped'


def test_all_checks_inputs(manifest, capsys):
    flip(manifest.parent / 'input.tif', -1)
    assert run(capsys, manifest)[0] == 0
    code, lines, _ = run(capsys, manifest, '--all')
    assert code == 1 and lines[-1] == '2 ok, 1 bad, 0 skipped'
    assert 'input.tif: the marks around tile 0' in lines[3]


def test_skipped_with_a_reason(manifest, capsys):
    """What cannot be checked is shown, and is no failure."""
    from cocoseg.io.images import write_tif
    for path in get_assets(manifest):
        write_tif(path, np.zeros((64, 64, 2), np.int16))
    for journal in manifest.parent.rglob('.cocoseg-*.jsonl'):
        journal.unlink()
    code, lines, _ = run(capsys, manifest)
    assert code == 0 and lines[-1] == '0 ok, 0 bad, 3 skipped'
    assert lines[1].endswith(': cannot be checked without its journal')


def test_notes(manifest, capsys):
    content = manifest.read_text()
    first = Path(get_assets(manifest)[0]).name
    assert first in content
    shutil.copy(manifest.parent / '_assets/pred' / first, manifest.parent / '_assets/pred/new.tif')
    manifest.write_text(content.replace(first, 'new.tif'))
    code, lines, _ = run(capsys, manifest)
    assert code == 0
    assert lines[-2].startswith('note: ') and first in lines[-2]


def test_quiet(manifest, files, capsys):
    assert run(capsys, *files, manifest, '--quiet') == (0, [], '')
    flip(files[1], -1)
    code, lines, _ = run(capsys, '--quiet', *files, manifest)
    assert code == 1 and len(lines) == 2
    assert lines[1].startswith('BAD') and files[1] in lines[1]


@pytest.mark.parametrize('content', ['', '{}', 'text'])
def test_what_is_no_manifest(tmp_path, files, capsys, content):
    (tmp_path / 'a.json').write_text(content)
    code, lines, _ = run(capsys, tmp_path / 'a.json', tmp_path / 'b.json', files[0])
    assert code == 1
    assert 'cannot be read as a kwcoco manifest' in lines[1]
    assert lines[2].endswith('b.json: No such file or directory')
    assert lines[3].startswith('ok')


@pytest.mark.parametrize('place', range(3))
def test_flags_take_no_path(files, capsys, place):
    """Wherever a flag stands, every path is checked."""
    words = list(files)
    words.insert(place, '--full')
    code, lines, _ = run(capsys, *words)
    assert code == 0 and lines[-1] == '2 ok, 0 bad, 0 skipped'


def test_names_that_are_no_words(tmp_path, capsys):
    """Numbers stay names, and markup of the terminal library is not used."""
    folder = tmp_path / '[bold]'
    folder.mkdir()
    names = [str(folder / name) for name in ('1e3', '12', ':smile:.tif', 'a,b.tif')]
    for name in names:
        write_cog(name, np.zeros((16, 16), np.uint8))
    code, lines, _ = run(capsys, *names)
    assert code == 0
    assert [line.split()[-1] for line in lines[1:5]] == names
    # A line is never broken, however long.
    long_name = str(tmp_path / ('x' * 200 + '.tif'))
    assert run(capsys, long_name)[1][1].endswith(f'{long_name}: there is no such file')


def test_a_number_is_a_name(files, capsys, monkeypatch):
    monkeypatch.chdir(Path(files[0]).parent)
    shutil.copy(files[0], '007')
    code, lines, _ = run(capsys, '007')
    assert code == 0 and lines[1].endswith('  007')


def test_wrong_arguments(files, capsys):
    code, lines, errors = run(capsys)
    assert code == 2 and not lines and 'paths' in errors
    with pytest.raises(SystemExit) as caught:
        main(['verify', files[0], '--bogus'])
    assert caught.value.code == 2


def test_program(files, tmp_path):
    """The same from a shell; the last line on stderr has the sum of what is bad."""
    def call(*words):
        return subprocess.run([sys.executable, '-m', 'cocoseg', 'verify', *words], text=True,
                              capture_output=True, check=False)
    done = call(*files)
    assert (done.returncode, done.stderr) == (0, '')
    assert done.stdout.endswith('2 ok, 0 bad, 0 skipped\n')
    done = call(files[0], str(tmp_path / 'missing.tif'))
    assert done.returncode == 1 and done.stderr.count('\n') == 1
