"""
The documentation tells the truth: its examples run, its names and links exist.

Pages are README.rst and everything below docs/. They are read as text: no
Sphinx is needed but for the last test.
"""
import importlib
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import cocoseg
from cocoseg import errors
from cocoseg.cli.main import COMMANDS, load_command

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / 'docs'
PAGES = {path.relative_to(ROOT).as_posix(): path
         for path in [ROOT / 'README.rst', *sorted(DOCS.rglob('*.rst'))]
         if path.exists() and '_build' not in path.parts}
EXAMPLE_PAGES = [name for name, path in PAGES.items() if '>>>' in path.read_text('utf-8')]

LITERAL = re.compile(r'``([^`]+)``')


def read_page(name):
    """Return the text of a page."""
    return PAGES[name].read_text('utf-8')


def list_sections(text):
    """Return the text of each section; a section begins at an underlined line."""
    lines = text.splitlines()
    starts = [number - 1 for number, line in enumerate(lines)
              if number and re.fullmatch(r'([=\-~^*"])\1{2,}', line) and lines[number - 1].strip()]
    edges = [*starts, len(lines)]
    return ['\n'.join(lines[start:stop]) for start, stop in zip(edges, edges[1:])]


def is_checked(section):
    """Return True if an example of a section has a result that is compared."""
    lines = [line.strip() for line in section.splitlines()]
    code = [line.startswith(('>>>', '...')) for line in lines]
    has_want = any(was_code and not is_code and line
                   for was_code, is_code, line in zip(code, code[1:], lines[1:]))
    return has_want or any(is_code and 'assert ' in line for is_code, line in zip(code, lines))


def read_tables(name):
    """Return the list-tables of a page by title: rows of cells, without the header."""
    tables = {}
    parts = re.split(r'^\.\. list-table::(.*)\n', read_page(name), flags=re.MULTILINE)
    for title, body in zip(parts[1::2], parts[2::2]):
        rows = []
        for line in body.splitlines():
            if line.strip() and not line.startswith('   '):
                break
            cell = re.match(r'   ([* ]) - ?(.*)', line)
            if cell and cell[1] == '*':
                rows.append([cell[2]])
            elif cell:
                rows[-1].append(cell[2])
            elif rows and line.strip():
                rows[-1][-1] += ' ' + line.strip()
        tables[title.strip()] = rows[1:]
    return tables


def list_names(rows, column):
    """Return the ``literals`` of a column, in order."""
    return [name for row in rows for name in LITERAL.findall(row[column])]


def resolve(dotted):
    """Return the object with a dotted name; raises if there is none."""
    parts = dotted.split('.')
    for size in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f'{dotted} cannot be imported')


# ---- examples --------------------------------------------------------------

@pytest.fixture(scope='module')
def cache(tmp_path_factory):
    """Folder for what the examples write; shared, as toy data is kept there."""
    return tmp_path_factory.mktemp('cache')


@pytest.mark.parametrize('name', EXAMPLE_PAGES)
def test_examples_run(name, cache, tmp_path, monkeypatch):
    from xdoctest.core import parse_docstr_examples
    monkeypatch.setenv('XDG_CACHE_HOME', os.fspath(cache))
    monkeypatch.chdir(tmp_path)
    text = read_page(name)
    examples = list(parse_docstr_examples(text, callname=name, fpath=str(PAGES[name]),
                                          style='freeform'))
    found = [line for example in examples for part in example._parts
             for line in part.orig_lines if line.strip().startswith('>>>')]
    assert len(found) == len(re.findall(r'^\s*>>>', text, re.MULTILINE))
    for example in examples:
        example.mode = 'native'
        result = example.run(verbose=0, on_error='return')
        assert result['passed'], '\n'.join(example.repr_failure())
    assert os.listdir(tmp_path) == [], 'an example writes to the current folder'


@pytest.mark.parametrize('name', EXAMPLE_PAGES)
def test_examples_are_checked(name):
    unchecked = [section.splitlines()[0] for section in list_sections(read_page(name))
                 if '>>>' in section and not is_checked(section)]
    assert not unchecked, f'no example of these sections compares a result: {unchecked}'


@pytest.mark.parametrize('name', PAGES)
def test_python_code_is_an_example(name):
    assert 'code-block:: python' not in read_page(name), 'write it with >>>, so that it runs'
    folders = re.findall(r"appdir\('([^']*)'", read_page(name))
    assert all(folder.startswith('cocoseg/') for folder in folders)


def list_commands(text):
    """Return the cocoseg commands that a page shows, each as one line."""
    joined = re.sub(r'\\\n\s*', '', text)
    return [line.split() for line in re.findall(r'^ +(cocoseg [^\n]*)$', joined, re.MULTILINE)]


def get_options():
    """Return the option names of each subcommand."""
    return {name: set(load_command(name).__default__) for name in COMMANDS}


# Options of all commands, which are explained once; the others are those of kwconf.
COMMON = {'verbose', 'quiet', 'dry_run'}
OF_THE_LIBRARY = {'config', 'dump', 'dumps', 'help'}


@pytest.mark.parametrize('name', PAGES)
def test_commands_exist(name):
    options = get_options()
    for _, command, *words in list_commands(read_page(name)):
        if command in ('--help', '--version'):
            continue
        known = {f'--{option}' for option in options[command] | OF_THE_LIBRARY}
        given = {word.partition('=')[0] for word in words if word.startswith('--')}
        assert {f'--{word[2:].replace("-", "_")}' for word in given} <= known


def test_commands_are_found():
    """The test above sees the commands of the page that lists them."""
    commands = {words[1] for words in list_commands(read_page('docs/reference/cli.rst'))}
    assert commands == {*COMMANDS, '--help', '--version'}


# ---- names -----------------------------------------------------------------

MIGRATION = 'docs/howto/migrate_from_geowatch.rst'

# What scripts for the reference use. Its code is no part of this repository.
REFERENCE = {
    'Constructor arguments': (
        'result_dataset short_code chan_code stiching_space device memmap thresh write_probs '
        'write_preds num_bands prob_compress prob_blocksize prob_format polygon_categories '
        'expected_minmax quantize writer_queue write_prediction_attrs assets_dname dtype'),
    'Arguments of accumulate_image': (
        'gid space_slice data asset_dsize scale_asset_from_stitchspace is_ready weights '
        'downweight_edges dsize scale'),
    'Methods and attributes': (
        'accumulate_image ready_image_ids managed_image_ids submit_finalize_image '
        'finalize_image flush_images seen_image_ids image_stitchers writer_queue _seen_gids '
        '_stitched_gid_patch_histograms _ready_gids _stitcher_center_weighted_add'),
    'Functions and classes': (
        'quantize_image fix_slice demo_coco_stitching_manager upweight_center_mask '
        'BlockingJobQueue'),
}


def get_parameters(function):
    """Return the parameter names of a function or class."""
    return set(inspect.signature(function).parameters) - {'self'}


@pytest.mark.parametrize('title', REFERENCE)
def test_migration_names_all_of_the_reference(title):
    rows = read_tables(MIGRATION)[title]
    assert sorted(list_names(rows, 0)) == sorted(REFERENCE[title].split())
    assert all(row[1] for row in rows)


def test_migration_names_exist():
    tables = {title: list_names(rows, 1) for title, rows in read_tables(MIGRATION).items()}
    manager = cocoseg.CocoStitchingManager
    constructor = get_parameters(manager)
    assert set(tables['Constructor arguments']) == constructor - {'stiching_space'}
    accumulate = get_parameters(manager.accumulate_image)
    assert set(tables['Arguments of accumulate_image']) == accumulate - {'kwargs'}
    assert all(hasattr(manager, name) for name in tables['Methods and attributes'])
    assert set(tables['Functions and classes']) <= set(cocoseg.__all__)
    # The old private names still read.
    assert all(hasattr(manager, name) for name in REFERENCE['Methods and attributes'].split())


def test_migration_names_every_public_member():
    manager = cocoseg.CocoStitchingManager
    public = {name for name in vars(manager) if not name.startswith('_')}
    named = set(list_names(read_tables(MIGRATION)['Methods and attributes'], 1))
    # The rest are the arguments of the constructor, readable.
    assert public - named == {'chan_code', 'stitching_space', 'stiching_space', 'num_bands'}


@pytest.mark.parametrize('name', [name for name in PAGES if name.startswith('docs/')])
def test_roles_point_to_names(name):
    for dotted in re.findall(r':(?:class|func|mod|meth):`~?([\w.]+)`', read_page(name)):
        resolve(dotted)


def test_api_lists_all_public_names():
    text = read_page('docs/reference/api.rst')
    documented = re.findall(r'^\.\. auto\w+:: ([\w.]+)', text, re.MULTILINE)
    public = {name.removeprefix('cocoseg.') for name in documented if name.count('.') == 1}
    assert public - {'protocols'} == set(cocoseg.__all__)
    for dotted in documented:
        resolve(dotted)


def test_errors_are_all_explained():
    classes = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    text = read_page('docs/reference/errors.rst')
    tree = re.findall(r'^ {4}[│ ]*[├└]── (\w+) \((\w+)\)$', text, re.MULTILINE)
    for name, builtin in tree:
        assert builtin in [base.__name__ for base in classes[name].__mro__]
    rows = read_tables('docs/reference/errors.rst')['When, and what to do']
    explained = {name for row in rows for name in LITERAL.findall(row[0])}
    assert explained == {name for name, _ in tree} == set(classes) - {'CocosegError'}


@pytest.mark.parametrize('command', get_options())
def test_options_of_commands_are_all_explained(command):
    tables = read_tables('docs/reference/cli.rst')
    explained = [LITERAL.findall(row[0])[0] for row in tables[f'Options of cocoseg {command}']]
    assert sorted(explained) == sorted(
        f'--{option}' for option in get_options()[command] - COMMON)


def test_common_options_are_all_explained():
    rows = read_tables('docs/reference/cli.rst')['Options of all commands']
    explained = {LITERAL.findall(row[0])[0].removeprefix('--') for row in rows}
    assert explained == COMMON | OF_THE_LIBRARY
    assert all({'verbose', 'quiet'} <= options for options in get_options().values())


def test_table_of_codes():
    rows = read_tables('docs/explanation/quantization.rst')['Codes']
    assert len(rows) == 6
    for dtype, quant_min, quant_max, nodata, step in rows:
        code = cocoseg.Quantization(0, 1, dtype)
        found = [code.quant_min, code.quant_max, code.nodata]
        assert [str(value) for value in found] == [quant_min, quant_max, nodata]
        assert f'{code.step:.2g}' == step


def test_layers_are_those_of_the_package():
    rows = read_tables('docs/explanation/architecture.rst')['Layers, the lowest first']
    found = {path.name for path in (ROOT / 'cocoseg').iterdir() if (path / '__init__.py').exists()}
    assert set(list_names(rows, 0)) == found | {'errors', 'machine', 'protocols'}


# ---- links and paths -------------------------------------------------------

def list_links(name):
    """Return the pages that a page links to or contains, as paths."""
    text, folder = read_page(name), PAGES[name].parent
    targets = re.findall(r':doc:`(?:[^`<]*<)?([^`<>]+?)>?`', text)
    for block in re.findall(r'^\.\. toctree::\n((?:(?:   .*)?\n)*)', text, re.MULTILINE):
        targets += [line.strip() for line in block.splitlines()
                    if line.strip() and not line.strip().startswith(':')]
    return [DOCS / f'{target[1:]}.rst' if target.startswith('/')
            else (folder / f'{target}.rst').resolve() for target in targets]


@pytest.mark.parametrize('name', PAGES)
def test_links_exist(name):
    images = re.findall(r'^\.\. (?:image|figure):: (\S+)', read_page(name), re.MULTILINE)
    targets = list_links(name) + [PAGES[name].parent / image for image in images]
    targets += [ROOT / path for path in LITERAL.findall(read_page(name))
                if re.fullmatch(r'(docs|tests|dev)/[\w./-]+', path)]
    missing = [str(target) for target in targets if not target.exists()]
    assert not missing


def test_every_page_is_in_the_index():
    linked = set(list_links('docs/index.rst'))
    pages = {path for name, path in PAGES.items() if name.startswith('docs/')}
    assert pages - linked == {DOCS / 'index.rst'}


def test_every_promise_is_held_by_tests():
    rows = read_tables('docs/explanation/guarantees.rst')['']
    assert len(rows) == 10
    assert all(row[1].count('.') == 1 and list_names([row], 2) for row in rows)


@pytest.mark.parametrize('name', [name for name in PAGES if '/decisions/' in name])
def test_decisions_have_their_parts(name):
    parts = re.findall(r'^\*\*(\w+)\.\*\*', read_page(name), re.MULTILINE)
    assert parts == ['Context', 'Decision', 'Consequences']


@pytest.mark.parametrize('name', [*PAGES, 'docs/conf.py'])
def test_no_machine_paths(name):
    text = (ROOT / name).read_text('utf-8')
    folders = 'work|tmp|root|home|mnt|srv|data|opt|usr|var|Users|scratch'
    assert re.findall(rf'(?<![\w./~}}])/(?:{folders})\b\S*', text) == []
    assert re.findall(r'\b[A-Z]:\\\S*', text) == []


# ---- the build -------------------------------------------------------------

def test_sphinx_builds_without_a_warning(tmp_path):
    pytest.importorskip('sphinx')
    pytest.importorskip('sphinx_rtd_theme')
    done = subprocess.run(
        [sys.executable, '-m', 'sphinx', '-W', '--keep-going', '-q', '-d', str(tmp_path / 'trees'),
         str(DOCS), str(tmp_path / 'html')], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'html' / 'index.html').exists()


def test_pages_show_the_stored_results_of_writing():
    report = runpy.run_path(str(ROOT / 'dev' / 'bench' / 'report.py'))
    result = json.loads(report['FILES'].read_text())
    assert report['render_files'](result) in read_page('README.rst')
    page = read_page('docs/explanation/performance.rst')
    for name in ('render_writers', 'render_added', 'render_file_goals'):
        assert report[name](result) in page


def test_pages_show_the_stored_results_of_segmentation():
    report = runpy.run_path(str(ROOT / 'dev' / 'bench' / 'report.py'))
    result = json.loads(report['SEGMENTS'].read_text())
    assert report['render_segments'](result) in read_page('README.rst')
    page = read_page('docs/explanation/performance.rst')
    for name in ('render_label_rows', 'render_segment_goals'):
        assert report[name](result) in page


def test_pages_show_the_stored_results():
    report = runpy.run_path(str(ROOT / 'dev' / 'bench' / 'report.py'))
    result = json.loads(report['RESULT'].read_text())
    assert report['render_table'](result) in read_page('README.rst')
    assert f'medians of {result["rounds"]}' in read_page('README.rst')
    stream = json.loads(report['STREAM'].read_text())
    page = read_page('docs/explanation/performance.rst')
    assert report['render_race'](stream['stream']) in page
    assert report['render_goals'](stream) in page
    assert f'medians of {stream["stream"]["rounds"]} ' in page
