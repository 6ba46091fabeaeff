"""Every promise, on the page of guarantees and in the README, has tests that are there."""
import ast
import re

import pytest

from .test_docs import ROOT, list_names, list_sections, read_page, read_tables

PAGE = 'docs/explanation/guarantees.rst'
PROMISES = ['Cover', 'Partition of unity', 'Seam bound', 'Any order', 'Bounded memory', 'Codec',
            'Commit last', 'Resume', 'Never repair silently', 'Confined']


def list_functions(fpath):
    """Return the names of the test functions of a file."""
    return {node.name for node in ast.parse(fpath.read_text('utf-8')).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith('test_')}


def is_there(name):
    """Return True if a file of tests, ``file.py::function`` in it, or a folder is there."""
    path, _, function = name.partition('::')
    if function:
        return (ROOT / path).is_file() and function in list_functions(ROOT / path)
    return bool(list((ROOT / path).glob('test_*.py'))) or (
        (ROOT / path).is_file() and bool(list_functions(ROOT / path)))


def list_links():
    """Return the promises of the README, each with the files that its sentence links to."""
    section, = [section for section in list_sections(read_page('README.rst'))
                if section.startswith('What it promises\n')]
    items = re.split(r'^\* ', section, flags=re.MULTILINE)[1:]
    return {re.match(r'\*\*(.+?)\.\*\*', item)[1]: re.findall(r'`[^`<]+<(tests/[^`>]+)>`__', item)
            for item in items}


def test_all_promises_are_told():
    assert [row[0] for row in read_tables(PAGE)['']] == PROMISES
    assert list(list_links()) == PROMISES


@pytest.mark.parametrize('row', read_tables(PAGE)[''], ids=PROMISES)
def test_a_promise_has_tests(row):
    names = list_names([row], 2)
    assert [name for name in names if not is_there(name)] == []
    assert len(names) == len(set(names))
    assert any('::' in name for name in names), 'name the tests to read'


def test_the_readme_links_to_tests():
    links = list_links()
    assert len(links) == len(PROMISES)
    for files in links.values():
        assert files and all(is_there(name) for name in files)


def test_a_test_that_is_gone_is_seen():
    assert is_there('tests/unit/test_blend.py') and is_there('tests/faults')
    assert is_there('tests/unit/test_blend.py::test_lattice')
    for name in ('tests/unit/test_no.py', 'tests/unit/test_blend.py::test_no', 'tests/no',
                 'tests/builders.py'):
        assert not is_there(name)
