"""What all commands have in common: options, files of options, progress, and how they end."""
import io
import json
import logging
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import kwcoco
import numpy as np
import psutil
import pytest
import yaml

from cocoseg import verify_cog, write_cog
from cocoseg.cli import progress as progress_module
from cocoseg.cli.arguments import prepare_words, read_arguments
from cocoseg.cli.common import show_progress
from cocoseg.cli.ending import Terminated, catching_terminate, make_resume_command
from cocoseg.cli.main import COMMANDS, load_command, main, make_modal, make_parser
from cocoseg.coco.demo import demo_dataset
from cocoseg.coco.versions import collect_versions
from cocoseg.io.images import write_tif
from cocoseg.io.raster import read_raster

from ..instances import draw_affinities, draw_disks, make_bundle

COMMON = {'verbose', 'quiet', 'dry_run'}
WRITERS = [name for name in COMMANDS if 'dry_run' in load_command(name).__default__]
VECTORS = ['--offsets', '0,1', '1,0', '-9,0', '0,-9']


@pytest.fixture(autouse=True)
def stay_in_a_folder(tmp_path, monkeypatch):
    """Nothing is written to where the tests are run."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope='module')
def demo(tmp_path_factory):
    """Manifest of three frames."""
    dset = demo_dataset(tmp_path_factory.mktemp('demo'))
    dset.dump()
    return dset.fpath


@pytest.fixture
def rasters(tmp_path):
    """Rasters in the current folder: an image, segments, affinities."""
    image = np.random.default_rng(0).integers(1, 200, (90, 120, 3)).astype(np.uint8)
    image[:30, :50] = 0
    write_tif(tmp_path / 'image.tif', image, nodata=0)
    truth = draw_disks()
    write_cog(tmp_path / 'segments.tif', truth.astype('u4'), nodata=0, overviews='nearest')
    write_cog(tmp_path / 'affinities.tif', draw_affinities(truth))
    return tmp_path


def run(capsys, *words):
    """Return the exit code, and what was printed on stdout and stderr."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    return (code, *capsys.readouterr())


def look(folder):
    """Return all files and folders with their bytes and times."""
    return {path.relative_to(folder).as_posix(): (
        path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else None
        for path in Path(folder).rglob('*') if '__pycache__' not in path.parts}


# ---- help ------------------------------------------------------------------

def list_examples(text):
    """Return the words of the commands below 'Example:'."""
    below = text.partition('Example:')[2].replace('\\\n', ' ')
    return [shlex.split(line) for line in below.splitlines() if line.strip()]


@pytest.mark.parametrize('name', COMMANDS)
def test_examples_of_help_are_commands(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, '--help'])
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    examples = list_examples(printed)
    assert examples and all(words[:2] == ['cocoseg', name] for words in examples)
    for _, command, *words in examples:
        config = read_arguments(load_command(command), words)
        given = {word.partition('=')[0][2:] for word in words if word.startswith('--')}
        assert given <= set(config)
    assert f'usage: cocoseg {name} ' in printed
    assert '--config' in printed and '--dumps' in printed and '--verbose' in printed


def test_overview(capsys):
    with pytest.raises(SystemExit) as caught:
        main(['--help'])
    printed = capsys.readouterr().out
    assert caught.value.code == 0 and set(COMMANDS) >= {'predict', 'watershed'}
    assert all(re.search(rf'^    {name} +\w', printed, re.MULTILINE) for name in COMMANDS)
    for code in ('0 all went well', '1 input or', '2 wrong', '130 interrupted', '143 terminated'):
        assert code in printed
    make_parser().parse_args(['demo', '--dst', 'x'])
    assert list_examples(make_modal().__epilog__)[0] == [
        'cocoseg', 'demo', '--dst', './cocoseg_demo']


def test_what_is_no_command(capsys):
    assert main([]) == 2
    with pytest.raises(SystemExit) as caught:
        main(['predit'])
    assert caught.value.code == 2 and 'predit' in capsys.readouterr().err


def test_versions(capsys):
    code, out, _ = run(capsys, '--version')
    lines = [line.split(' ', 1) for line in out.splitlines()]
    assert code == 0 and lines[0][0] == 'cocoseg'
    assert {name for name, _ in lines} == {'cocoseg', 'python', 'numpy', 'numba', 'gdal', 'kwcoco',
                                           'kwimage', 'scikit-learn'}
    assert dict(lines)['numpy'] == np.__version__ == collect_versions()['numpy']


# ---- words and files of options --------------------------------------------

@pytest.mark.parametrize('words, changes', [
    (['-v'], {'verbose': 1}), (['-vv'], {'verbose': 2}), (['-v', '-v'], {'verbose': 2}),
    (['--verbose', '2'], {'verbose': 2}), (['--verbose'], {'verbose': 1}),
    (['--verbose=2'], {'verbose': 2}), (['-q'], {'quiet': True}), (['--quiet'], {'quiet': True}),
    (['-vq'], {'verbose': 1, 'quiet': True}), (['--dry_run'], {'dry_run': True}),
    (['--dry-run'], {'dry_run': True}), (['--dry-run', 'False'], {'dry_run': False}),
    (['--dry_run=1'], {'dry_run': True}), (['--resume', '--no-resume'], {'resume': False}),
    (['--resume', '1'], {'resume': True}), (['--no-dry-run'], {'dry_run': False})])
@pytest.mark.parametrize('is_first', [True, False])
def test_flags_take_no_path(words, changes, is_first):
    others = ['--dst', 'out.json', '--predictor', 'a:b']
    argv = [*words, 'in.json', *others] if is_first else ['in.json', *others, *words]
    config = read_arguments(load_command('predict'), argv)
    assert (config.src, config.dst) == ('in.json', 'out.json')
    assert {name: config[name] for name in changes} == changes


def test_what_is_behind_two_dashes_is_no_flag():
    config = read_arguments(load_command('verify'), ['-q', '--', 'a.tif', '-v'])
    assert config.paths == ['a.tif', '-v'] and config.quiet and config.verbose == 0
    assert prepare_words(load_command('verify'), ['a', '--', '--full']) == ['a', '--', '--full']


@pytest.mark.parametrize('name', COMMANDS)
def test_dumped_options_are_read_again(name, tmp_path, capsys):
    cls = load_command(name)
    for dump in ('--dumps', '--dump=a.yaml', '--dump=a.json'):
        with pytest.raises(SystemExit) as caught:
            main([name, '-v', dump])
        assert caught.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == yaml.safe_load(Path('a.yaml').read_text()) == json.loads(
        Path('a.json').read_text())
    assert set(printed) == set(cls.__default__) and printed['verbose'] == 1
    for fpath in ('a.yaml', 'a.json'):
        with pytest.raises(SystemExit):
            main([name, '--config', fpath, '--dumps'])
        assert yaml.safe_load(capsys.readouterr().out) == printed


@pytest.mark.parametrize('name', COMMANDS)
@pytest.mark.parametrize('content, message', [
    ('colour: red', 'unknown options: colour'), ('- a\n- b', 'is no mapping'),
    ('a text', 'is no mapping'), ('a: [', 'cannot be read'), ('verbose: much', 'true or false'),
    (None, 'is no file')])
def test_wrong_files_of_options(name, content, message, capsys):
    if content is not None:
        Path('options.yaml').write_text(content)
    code, out, err = run(capsys, name, '--config', 'options.yaml')
    assert (code, out) == (2, '')
    assert message in err and len(err.splitlines()) == 1
    assert err.startswith('cocoseg: error: ') and f'see cocoseg {name} --help' in err


@pytest.mark.parametrize('line', [
    'batch_size: many', 'batch_size: 1.5', 'batch_size: [1, 2]', 'overlap: {}', 'space: moon',
    'expected_minmax: [0]', 'window: [a]', 'resume: 3', 'channels: true', 'batch_size: .inf'])
def test_wrong_values_in_files(line, capsys):
    Path('options.yaml').write_text(f'src: a.json\n{line}\n')
    code, _, err = run(capsys, 'predict', '--config', 'options.yaml', '--dst', 'b.json',
                       '--predictor', 'a:b')
    assert code == 2 and line.split(':')[0] in err and len(err.splitlines()) == 1


def test_values_in_files_are_as_those_of_words():
    Path('options.json').write_text(json.dumps({
        'src': 'a.json', 'window': 64, 'overlap': 1, 'expected_minmax': [0, 1], 'batch_size': 4.0,
        'channels': 3, 'dump_interval': '1e-3'}))
    config = read_arguments(load_command('predict'), [
        '--config', 'options.json', '--dst', 'b.json', '--predictor', 'a:b'])
    assert config.window == [64] and config.channels == '3' and config.dump_interval == 0.001
    assert isinstance(config.overlap, float) and isinstance(config.batch_size, int)
    assert config.expected_minmax == [0.0, 1.0]


def test_precedence():
    """The command line over the file over the default."""
    Path('options.yaml').write_text(
        'src: file.tif\ncompress: LZW\nblocksize: 64\nquiet: true\nverbose: 2\n')
    config = read_arguments(load_command('subset'), [
        'word.tif', 'out.tif', '--config', 'options.yaml', '--blocksize', '32', '--no-quiet'])
    assert (config.src, config.blocksize, config.quiet) == ('word.tif', 32, False)
    assert (config.compress, config.verbose) == ('LZW', 2)
    assert (config.dry_run, config.window) == (False, None)


def test_a_file_of_options_runs(rasters, capsys):
    Path('stats.yaml').write_text('segments: segments.tif\nstats: area\ndst: a.csv\n')
    assert run(capsys, 'stats', '--config', 'stats.yaml')[0] == 0
    assert run(capsys, 'stats', '--config', 'stats.yaml', '--dst', 'b.csv')[0] == 0
    assert Path('a.csv').read_bytes() == Path('b.csv').read_bytes()


# ---- messages --------------------------------------------------------------

def test_results_go_to_stdout_and_the_rest_to_stderr(rasters, capsys):
    words = ['subset', 'segments.tif', 'part.tif']
    code, out, err = run(capsys, *words)
    assert code == 0 and [line.split()[0] for line in out.splitlines()] == ['labels', 'segments']
    assert re.fullmatch(r'subset 1/1 \(100%\), \S+/s, 0:00:00 elapsed\n', err)
    assert run(capsys, *words, '--quiet') == (0, '', '')
    code, out, err = run(capsys, *words, '--mask', 'no.tif', '-q')
    assert (code, out) == (1, '') and err.startswith('cocoseg: error: ') and 'no.tif' in err


@pytest.mark.parametrize('words, levels', [
    ([], ['warning', 'error']), (['-v'], ['info', 'warning', 'error']),
    (['-vv'], ['debug', 'info', 'warning', 'error']),
    (['--verbose', '2'], ['debug', 'info', 'warning', 'error']), (['-q'], ['error'])])
def test_levels(words, levels, rasters, monkeypatch, capsys):
    def talk(*args, **options):
        log = logging.getLogger('cocoseg.shepherd.subset')
        for level in ('debug', 'info', 'warning', 'error'):
            getattr(log, level)('about %s', level)
        other = logging.getLogger('another.library')
        other.setLevel(logging.INFO)
        other.warning('of another')
        other.info('by another')
        raise FileNotFoundError(2, 'No such file', 'x')
    monkeypatch.setattr('cocoseg.shepherd.subset.subset_segments', talk)
    before = logging.getLogger('cocoseg').level, list(logging.getLogger().handlers)
    code, out, err = run(capsys, 'subset', 'segments.tif', 'part.tif', *words)
    ours = [line for line in err.splitlines() if 'about' in line]
    assert ours == [f'cocoseg: {level}: about {level}' for level in levels]
    assert ('cocoseg: warning: of another' in err) == ('-q' not in words)
    assert ('cocoseg: info: by another' in err) == ('debug' in levels)
    assert (code, out) == (1, '') and err.endswith('cocoseg: error: No such file: x\n')
    # Nothing is left of it in the process.
    assert before == (logging.getLogger('cocoseg').level, list(logging.getLogger().handlers))


def test_quiet_plan_still_plans(capsys):
    words = ['plan', '100x100', '--for', 'blocks', '--executor', 'dask:50']
    _, loud, _ = run(capsys, *words)
    code, out, err = run(capsys, *words, '-q')
    assert (code, err) == (0, '') and 'note ' in loud and 'note ' not in out
    assert out.splitlines() == [line for line in loud.splitlines() if not line.startswith('note ')]


# ---- progress --------------------------------------------------------------

class Clock:
    """Seconds that pass when somebody works."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(progress_module.time, 'monotonic', lambda: self.now)

    def work(self, steps, seconds):
        for _ in steps:
            self.now += seconds


def test_plain_lines_come_now_and_then(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    clock.work(show_progress(range(100), desc='predict'), 0.25)
    out, err = capsys.readouterr()
    assert out == '' and err.splitlines() == [
        'predict 40/100 (40%), 4.0/s, 0:00:10 elapsed, 0:00:15 left',
        'predict 80/100 (80%), 4.0/s, 0:00:20 elapsed, 0:00:05 left',
        'predict 100/100 (100%), 4.0/s, 0:00:25 elapsed']
    clock.work(show_progress(iter(range(3)), desc='read'), 60)
    assert capsys.readouterr().err.splitlines()[-1] == 'read 3, 0.02/s, 0:03:00 elapsed'
    clock.work(show_progress([], total=0, desc='none'), 1)
    assert capsys.readouterr().err == 'none 0/0 (100%), 0.00/s, 0:00:00 elapsed\n'


def test_nobody_is_told_of_the_end_of_what_fails(monkeypatch, capsys):
    def fail():
        yield 1
        raise ValueError
    with pytest.raises(ValueError):
        list(show_progress(fail(), total=2, desc='fail'))
    assert capsys.readouterr().err == ''


def test_a_bar_on_a_terminal(rasters):
    """Bar, share, count, rate, time and what is left; the results stay on stdout."""
    parent, child = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'cocoseg', 'subset', 'segments.tif', 'part.tif'],
            stdout=subprocess.PIPE, stderr=child, text=True, check=True,
            env={**os.environ, 'TERM': 'xterm-256color', 'COLUMNS': '120'})
        text = os.read(parent, 1 << 20).decode()
    finally:
        os.close(parent)
        os.close(child)
    assert done.stdout.startswith('labels    ')
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', text)
    last = [part for part in re.split(r'[\r\n]+', text) if 'subset' in part][-1]
    assert '━' in last and '100%' in last and '1/1' in last
    assert re.search(r'\d/s +\d:\d\d:\d\d +left +\d:\d\d:\d\d', last)


# ---- dry runs --------------------------------------------------------------

@pytest.fixture
def predictor(tmp_path, monkeypatch):
    """Name of a predictor of two channels, in a module of the current folder."""
    (tmp_path / 'models.py').write_text(
        'calls = []\n'
        'def halve(image):\n'
        '    calls.append(image.shape)\n'
        '    return image[..., :2] / 510\n')
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop('models', None)
    yield 'models:halve'
    sys.modules.pop('models', None)


def list_dry_runs(demo):
    """Return the words of a command of each kind, and what it writes."""
    return {
        'demo': (['demo', 'there'], 'there/predictions.kwcoco.json'),
        'mask a raster': (['mask', 'image.tif', '--dst', 'valid.tif', '--executor', 'processes:2',
                           '--block_size', '32'], 'valid.tif'),
        'mask beside': (['mask', 'image.tif', '--dst', 'sidecar'], 'image.tif.msk'),
        'mask inside': (['mask', 'image.tif', '--dst', 'internal'], 'image.tif'),
        'mask images': (['mask', demo, '--dst', 'm/m.kwcoco.json'], 'm/m.kwcoco.json'),
        'predict': (['predict', demo, '--dst', 'p/p.kwcoco.json', '--predictor', 'models:halve',
                     '--window', '200', '--executor', 'processes:2'], 'p/p.kwcoco.json'),
        'segment a raster': (['segment', 'image.tif', '--dst', 'ids.tif', '--tile_size', '64',
                              '--table', 'ids.csv'], 'ids.tif'),
        'segment images': (['segment', demo, '--dst', 's/s.kwcoco.json'], 's/s.kwcoco.json'),
        'stats': (['stats', 'segments.tif', '--image', 'image.tif', '--stats', 'mean', '--dst',
                   'a.csv', '--polygons', 'a.gpkg'], 'a.csv'),
        'subset': (['subset', 'segments.tif', 'part.tif', '--window', '0', '0', '40', '40'],
                   'part.tif'),
        'watershed': (['watershed', 'affinities.tif', '--dst', 'ids.tif', *VECTORS, '--context',
                       '16', '--executor', 'dask:2', '--resume'], 'ids.tif'),
        'watershed images': (['watershed', 'b/b.kwcoco.json', '--dst', 'w/w.kwcoco.json',
                              '--channels', 'right|below|up|left', *VECTORS, '--context', '16'],
                             'w/w.kwcoco.json'),
    }


KINDS = tuple(list_dry_runs(''))


@pytest.mark.parametrize('spelling', ['--dry_run', '--dry-run'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_dry_run_writes_nothing(kind, spelling, demo, rasters, predictor, capsys):
    os.replace(make_bundle(rasters / 'b', [draw_disks()]).fpath, 'b/b.kwcoco.json')
    words, output = list_dry_runs(demo)[kind]
    before, source = look(rasters), look(Path(demo).parent)
    code, out, err = run(capsys, *words, spelling)
    assert (code, err) == (0, ''), err
    assert look(rasters) == before and look(Path(demo).parent) == source
    assert out.startswith('dry run   nothing is written\n')
    line = next(line for line in out.splitlines() if line.startswith(
        f'write     {rasters / output}'))
    assert ('would be replaced' in line) == (kind == 'mask inside')
    assert run(capsys, *words, spelling, '-q') == (0, '', '')
    assert look(rasters) == before


def test_all_writers_have_a_dry_run():
    tested = {words[0] for words, _ in list_dry_runs('').values()}
    # Those have tests beside the others of theirs.
    assert tested == set(WRITERS) - {'report', 'style'}
    assert {'verify', 'plan'} == set(COMMANDS) - set(WRITERS)


def test_a_dry_run_tells_what_is_replaced(rasters, capsys):
    words = ['subset', 'segments.tif', 'part.tif']
    assert run(capsys, *words)[0] == 0
    before = look(rasters)
    code, out, _ = run(capsys, *words, '--window', 0, 0, 9, 9, '--dry_run')
    assert code == 0 and look(rasters) == before
    assert re.search(r'part.tif, which exists \(\d.*B\) and would be replaced', out)


@pytest.mark.parametrize('words', [
    ['mask', 'image.tif', '--dst', 'valid.tif', '--logic', 'most'],
    ['mask', 'image.tif', '--dst', 'valid.tif', '--bands', '7'],
    ['mask', 'image.tif', '--dst', 'segments.tif'],
    ['mask', 'image.tif', '--dst', 'no/valid.tif'],
    ['mask', 'segments.tif', '--dst', 'internal'],
    ['mask', 'image.tif', '--dst', 'valid.tif', '--timeout', '0'],
    ['mask', 'DEMO', '--dst', 'm/m.json', '--channels', 'teal'],
    ['mask', 'DEMO', '--dst', 'm/m.json', '--mask_channel', 'red'],
    ['mask', 'DEMO', '--dst', 'm/m.json', '--nodata', 'masks'],
    ['predict', 'DEMO', '--dst', 'DEMO', '--predictor', 'models:halve'],
    ['predict', 'none.json', '--dst', 'p.json', '--predictor', 'models:halve'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:quarter'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--channels', 'teal'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--window', '8',
     '--overlap', '9'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--batch_size', '2'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--layers', 'klass'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--short_code', '..'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--dump_interval', '-1'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--memory_budget', '0'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--prob_compress', 'X'],
    ['predict', 'DEMO', '--dst', 'p.json', '--predictor', 'models:halve', '--out_channels',
     'red|x', '--window', '400'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--driver', 'PNG'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--tile_size', '64', '--overlap', '64'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--n_clusters', '0'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--bands', '9'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--colors', '1'],
    ['segment', 'image.tif', '--dst', 'ids.tif', '--max_concurrent_reads', '0'],
    ['stats', 'segments.tif', '--dst', 'a.csv', '--stats', 'average'],
    ['stats', 'segments.tif', '--dst', 'a.csv', '--stats', 'mean'],
    ['stats', 'segments.tif', '--dst', 'a.xlsx'],
    ['stats', 'segments.tif', '--dst', 'a.csv', '--num_threads', '0'],
    ['stats', 'segments.tif'],
    ['subset', 'segments.tif', 'a.tif', '--window', '900', '0', '901', '9'],
    ['subset', 'segments.tif', 'a.tif', '--bounds', '0', '0', '1', '1'],
    ['subset', 'segments.tif', 'a.tif', '--mask', 'image.tif'],
    ['subset', 'segments.tif', 'a.tif', '--blocksize', '17'],
    ['subset', 'segments.tif', 'no/a.tif'],
    ['watershed', 'affinities.tif', '--dst', 'segments.tif', *VECTORS],
    ['watershed', 'affinities.tif', '--dst', 'ids.tif', *VECTORS[:-1]],
    ['watershed', 'affinities.tif', '--dst', 'ids.tif', *VECTORS, '--context', '4'],
    ['watershed', 'affinities.tif', '--dst', 'ids.tif', *VECTORS, '--max_retries', '-1'],
    ['watershed', 'affinities.tif', '--dst', 'ids.png', *VECTORS],
    ['watershed', 'DEMO', '--dst', 'w.json', *VECTORS, '--channels', 'red'],
    ['watershed', 'DEMO', '--dst', 'w.json', '--offsets', '0,1', '--channels', 'teal'],
    ['watershed', 'DEMO', '--dst', 'w.json', '--offsets', '0,1', '--channels', 'red',
     '--out_channels', 'green'],
    ['watershed', 'DEMO', '--dst', 'w.json', '--offsets', '0,1', '--channels', 'red', '--context',
     '99', '--block_shape', '50'],
], ids=lambda words: ' '.join([words[0], *words[-2:]]))
def test_a_dry_run_finds_what_a_run_would(words, demo, rasters, predictor, capsys):
    words = [demo if word == 'DEMO' else word for word in words]
    before = look(rasters)
    code, out, dry = run(capsys, *words, '--dry_run')
    assert (code, out) == (1, '') and len(dry.splitlines()) == 1
    assert look(rasters) == before
    code, _, real = run(capsys, *words)
    assert code == 1
    # Temporary names are random, and the order of names does not matter.
    clean = [re.sub(r'\.\d+\.[0-9a-f]{16}\.tmp|only \[[^]]*\]', '', text.splitlines()[-1])
             for text in (dry, real)]
    assert clean[0] == clean[1]


def test_a_dry_run_of_unknown_workers(rasters, capsys):
    words = ['mask', 'image.tif', '--dst', 'valid.tif', '--dry_run', '--executor']
    assert run(capsys, *words, 'robots')[0] == 1
    pytest.importorskip('distributed')
    code, out, _ = run(capsys, *words, 'dask:tcp://nowhere:8786')
    assert code == 0 and re.search(r'^tasks +\d+ for dask workers$', out, re.MULTILINE)


def test_a_dry_run_counts_what_is_done(demo, rasters, predictor, capsys):
    import models
    words = ['predict', demo, '--dst', 'p/p.kwcoco.json', '--predictor', predictor, '--window',
             '150', '--expected_minmax', '0', '1', '--out_channels', 'a|b', '--layers', 'class']
    code, out, _ = run(capsys, *words, '--dry_run')
    assert code == 0 and models.calls == []
    n_windows = int(re.search(r'^windows +(\d+),', out, re.MULTILINE)[1])
    assert 'channels  a|b|' in out
    assert run(capsys, *words)[0] == 0 and len(models.calls) == n_windows
    nbytes = sum(read_raster(path).nbytes for path in Path('p').rglob('*.tif'))
    assert f'result    {nbytes / 1e6:.1f} MB raw' in out
    before = look(rasters)
    code, out, _ = run(capsys, *words, '--dry_run', '--resume')
    assert code == 0 and 'finished  3 of 3 images' in out and look(rasters) == before
    assert f'write     {rasters}/p/p.kwcoco.json, which exists' in out
    assert ', where 6 files are' in out
    code, _, err = run(capsys, *words, '--dry_run', '--resume', '--window', '99')
    assert code == 1 and 'settings.window was [150, 150], now [99, 99]' in err
    # Some are lost: these are not finished.
    next(Path('p').rglob('*.tif')).unlink()
    assert 'finished  2 of 3 images' in run(capsys, *words, '--dry_run', '--resume')[1]


def test_a_predictor_without_names_is_asked_once(demo, predictor, capsys):
    import models
    code, out, _ = run(capsys, 'predict', demo, '--dst', 'p/p.kwcoco.json', '--predictor',
                       predictor, '--window', '64', '--dry_run')
    assert code == 0 and 'channels  pred.0|pred.1' in out and models.calls == [(64, 64, 4)]


# ---- ends ------------------------------------------------------------------

@pytest.mark.parametrize('words, expected', [
    (['a.json', '--dst', 'b c.json'], "a.json --dst 'b c.json' --resume"),
    (['a.json', '--resume'], 'a.json --resume'), (['--no-resume', 'a.json'], 'a.json --resume'),
    (['--resume=False', 'a.json'], 'a.json --resume'), (['--resume', 'False', 'a'], 'a --resume'),
    (['--channels', 'a|b', '--', 'a.json'], "--channels 'a|b' --resume -- a.json")])
def test_the_command_that_goes_on(words, expected):
    assert make_resume_command('predict', words) == f'cocoseg predict {expected}'
    config = read_arguments(load_command('predict'), [
        '--dst', 'x', '--predictor', 'a:b', *shlex.split(expected)])
    assert config.resume is True


def interrupt(*args, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize('words, where, messages', [
    (['subset', 'segments.tif', 'new.tif'], 'cocoseg.shepherd.subset.subset_segments',
     ['nothing of new.tif was written']),
    (['subset', 'segments.tif', 'image.tif'], 'cocoseg.shepherd.subset.subset_segments',
     ['the old image.tif is untouched']),
    (['mask', 'image.tif', '--dst', 'new.tif'], 'cocoseg.postprocess.masks.compute_mask',
     ['nothing of new.tif was written']),
    (['segment', 'image.tif', '--dst', 'new.tif'], 'cocoseg.shepherd.tiled.segment_raster',
     ['nothing of new.tif was written']),
    (['stats', 'segments.tif', '--dst', 'a.csv', '--polygons', 'a.gpkg'],
     'cocoseg.io.vector.write_segment_polygons',
     ['a.csv is written', 'nothing of a.gpkg was written']),
    (['watershed', 'affinities.tif', '--dst', 'new.tif', *VECTORS],
     'cocoseg.postprocess.watershed.blockwise_watershed', ['nothing of new.tif was written']),
    (['verify', 'segments.tif'], 'cocoseg.coco.audit.check_file', ['nothing is changed']),
    (['demo', 'there'], 'cocoseg.coco.demo.run_demo', ['there holds what was finished']),
])
@pytest.mark.parametrize('code', [130, 143])
def test_interrupted_without_resume(words, where, messages, code, rasters, monkeypatch, capsys):
    def end(*args, **options):
        raise KeyboardInterrupt if code == 130 else Terminated
    monkeypatch.setattr(where, end)
    found, _, err = run(capsys, *words)
    assert found == code and '--resume' not in err
    cause = 'interrupted' if code == 130 else 'terminated'
    last = err.splitlines()[-1]
    assert last.startswith(f'cocoseg: error: {cause}; ')
    assert all(message in last for message in messages)


def test_interrupted_watershed_that_keeps_its_blocks(rasters, monkeypatch, capsys):
    monkeypatch.setattr('cocoseg.postprocess.watershed.blockwise_watershed', interrupt)
    words = ['watershed', 'affinities.tif', '--dst', 'new.tif', '--resume', *VECTORS]
    code, _, err = run(capsys, *words)
    assert code == 130 and 'finished blocks are kept; go on with' in err
    assert shlex.split(err.splitlines()[-1]) == [
        'cocoseg', *[word for word in words if word != '--resume'], '--resume']


def test_sigterm_is_caught_only_while_a_command_runs():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with pytest.raises(Terminated) as caught, catching_terminate():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Slow:
    """A prediction in another process, which takes a while."""

    def __init__(self, folder, demo, *words):
        (folder / 'slow.py').write_text(
            'import os, time\n'
            'def model(image):\n'
            '    time.sleep(float(os.environ.get("PACE", 0)))\n'
            '    return image[..., :2] / 255\n')
        self.folder = folder
        self.words = ['predict', demo, '--dst', 'out/p.kwcoco.json', '--predictor', 'slow:model',
                      '--window', '200', '--expected_minmax', '0', '1', '--out_channels', 'a|b c',
                      *words]

    def start(self, pace, words=None):
        """Return the process, in a group of its own as from a shell."""
        return subprocess.Popen(
            [sys.executable, '-m', 'cocoseg', *(words or self.words)], cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, 'PYTHONPATH': os.pathsep.join(
                [str(self.folder), *filter(None, [os.environ.get('PYTHONPATH')])]),
                'PACE': str(pace)})

    def wait_for_an_image(self):
        """Return when the journal has the first image."""
        folder = self.folder / 'out' / '_assets' / 'pred'
        for _ in range(1200):
            if any(path.stat().st_size for path in folder.glob('.cocoseg*.jsonl')):
                return
            time.sleep(0.05)
        raise AssertionError('no image was finished')

    def read(self):
        """Return the bytes of all assets, and the assets that the manifest names."""
        dset = kwcoco.CocoDataset(self.folder / 'out' / 'p.kwcoco.json')
        files = {path.name: path.read_bytes() for path in (self.folder / 'out').rglob('*.tif')}
        for path in (self.folder / 'out').rglob('*.tif'):
            verify_cog(path)
        named = [asset['file_name'] for image_id in dset.images()
                 for asset in dset.coco_image(image_id).iter_assets()
                 if asset['channels'] == 'a|b c']
        return files, named


@pytest.fixture(scope='module')
def undisturbed(demo, tmp_path_factory):
    """What a prediction makes that nobody interrupts."""
    slow = Slow(tmp_path_factory.mktemp('undisturbed'), demo)
    process = slow.start(0)
    assert process.wait(120) == 0, process.stderr.read()
    process.communicate()
    files, named = slow.read()
    assert len(files) == len(named) == 3
    return files, named


@pytest.mark.parametrize('number, words', [
    (signal.SIGINT, []), (signal.SIGTERM, []), (signal.SIGINT, ['--executor', 'processes:2'])],
    ids=['SIGINT', 'SIGTERM', 'SIGINT-processes'])
def test_a_run_goes_on_as_it_was_told(number, words, demo, tmp_path, undisturbed):
    slow = Slow(tmp_path, demo, *words)
    process = slow.start(0.1)
    slow.wait_for_an_image()
    children = psutil.Process(process.pid).children(recursive=True)
    assert bool(children) == bool(words)
    if number == signal.SIGINT:
        # A terminal tells all of them.
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert out == '' and 'Traceback' not in err
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    *_, told, command = err.splitlines()
    cause = 'interrupted' if number == signal.SIGINT else 'terminated'
    assert re.fullmatch(rf'cocoseg: error: {cause}; (1 image is|2 images are) finished; go on '
                        'with', told)
    assert shlex.split(command) == ['cocoseg', *slow.words, '--resume']
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob('*.tif')
              if not path.name.startswith('.')}
    n_finished = int(re.search(r'(\d) image', told)[1])
    again = slow.start(0, shlex.split(command)[1:])
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert 'images    3\n' in out
    assert slow.read() == undisturbed
    # A worker may be killed between its last file and the line that tells of it.
    assert sum(path.stat().st_mtime_ns == seen for path, seen in before.items()) == n_finished
    leftovers = [path for path in tmp_path.rglob('.*') if path.name.endswith('.tmp')]
    assert leftovers == []


# ---- completion ------------------------------------------------------------

def complete(line):
    """Return what a shell is offered for a line."""
    reading, writing = os.pipe()

    def connect():
        os.dup2(writing, 8)
    try:
        done = subprocess.run(
            [sys.executable, '-m', 'cocoseg'], close_fds=False,
            preexec_fn=connect, capture_output=True, check=False, env={
                **os.environ, '_ARGCOMPLETE': '1', 'COMP_LINE': line,
                'COMP_POINT': str(len(line)), '_ARGCOMPLETE_IFS': '\n',
                '_ARGCOMPLETE_SUPPRESS_SPACE': '1'})
    finally:
        os.close(writing)
    with os.fdopen(reading) as file:
        return done, [word.strip() for word in file.read().split('\n') if word.strip()]


@pytest.mark.parametrize('line, expected', [
    ('cocoseg wat', {'watershed'}), ('cocoseg s', {'segment', 'stats', 'style', 'subset'}),
    ('cocoseg predict --out_ch', {'--out_channels'}),
    ('cocoseg mask --con', {'--config'}), ('cocoseg verify --dump', {'--dump', '--dumps'}),
    ('cocoseg watershed --method f', {'foreground'}),
    ('cocoseg subset --dry', {'--dry_run', '--dry-run'})])
def test_completion(line, expected):
    pytest.importorskip('argcomplete')
    done, words = complete(line)
    assert set(words) == expected, done.stderr


def test_completion_is_announced():
    """What registers completion for all programs looks for a mark near the start of the file."""
    module = Path(sys.modules['cocoseg.cli.main'].__file__)
    assert 'PYTHON_ARGCOMPLETE_OK' in module.read_text()[:1024]


def test_without_argcomplete_nothing_is_completed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'argcomplete', None)
    monkeypatch.setenv('_ARGCOMPLETE', '1')
    assert main(['plan', '100x100', '-q']) == 0 and capsys.readouterr().out


def test_stderr_may_be_no_terminal(monkeypatch):
    monkeypatch.setattr(sys, 'stderr', io.StringIO())
    assert list(show_progress([1, 2], desc='count')) == [1, 2]
    assert sys.stderr.getvalue().startswith('count 2/2 (100%)')
