"""The rules of pyproject.toml, and the template of docstrings."""
import inspect
import re
import subprocess
import sys
import types

import pytest

import cocoseg

# Fields of a value are told as attributes.
SECTIONS = ('Args', 'Attributes')
# Told with another one.
ALIASES = {'stiching_space'}


def test_ruff_finds_nothing(repo_root):
    pytest.importorskip('ruff')
    found = subprocess.run([sys.executable, '-m', 'ruff', 'check', '--no-cache', '.'],
                           cwd=repo_root, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.fixture(params=cocoseg.__all__)
def public(request):
    """Each public name."""
    return getattr(cocoseg, request.param)


def test_the_first_line_says_what_it_does(public):
    first, _, rest = inspect.getdoc(public).partition('\n')
    assert 0 < len(first) <= 72 and first.endswith('.') and first[0].isupper(), first
    assert not rest or rest.startswith('\n'), first


def list_parameters(value):
    """Return the names of parameters, of a class those that make it."""
    target = value.__init__ if inspect.isclass(value) else value
    names = [name for name, one in inspect.signature(target).parameters.items()
             if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    return {name for name in names if name != 'self' and not name.startswith('_')}


def list_documented(text):
    """Return the names that the sections of arguments and attributes explain."""
    found = set()
    for section in SECTIONS:
        match = re.search(rf'^{section}:\n((?:(?:    .*)?\n)+)', text + '\n', re.MULTILINE)
        if match:
            for names in re.findall(r'^    ((?:\*{0,2}\w+(?:, )?(?:\n        )?)+)(?: \(.*)?',
                                    match[1], re.MULTILINE):
                found |= set(re.findall(r'\w+', names))
            # Several in one line: "rows, columns (int): px. levels (int): of them."
            found |= set(re.findall(r'(?<=[\s.])(\w+) \([^()]*(?:\([^()]*\)[^()]*)*\):', match[1]))
    return found


def test_every_parameter_is_explained(public):
    if isinstance(public, type) and issubclass(public, Exception):
        return
    missing = list_parameters(public) - list_documented(inspect.getdoc(public)) - ALIASES
    assert not missing


def test_there_is_an_example_whose_result_is_checked(public):
    text = inspect.getdoc(public)
    if inspect.isclass(public):
        # A method may have it.
        kinds = (types.FunctionType, classmethod, staticmethod)
        text += '\n'.join(inspect.getdoc(one) or '' for one in vars(public).values()
                          if isinstance(one, kinds))
    assert '>>> ' in text
    lines = [line.strip() for line in text.splitlines()]
    code = '>>>', '...'
    wants = [after for line, after in zip(lines, lines[1:])
             if line.startswith(code) and after and not after.startswith(code)]
    assert wants or re.search(r'(>>>|\.\.\.) +assert ', text)
