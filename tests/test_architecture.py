"""
The shape of the house: layers, lazy imports, sizes and habits.

Each rule is a function from one parsed module to a list of findings, written
``file:line: what is wrong``. The rules run over the package, and over small
snippets that break them, so that a rule that finds nothing is known to work.
"""
import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = 'cocoseg'

# A module imports only from strictly lower layers or from its own folder.
LAYERS = {
    'errors': 0, 'machine': 0, 'protocols': 0,
    'grid': 1, 'labels': 1,
    'stitch': 2, 'engine': 2, 'io': 2,
    'shepherd': 3, 'postprocess': 3,
    'coco': 4,
    'cli': 5,
}
# These two may import from any layer.
DOORS = ('__init__.py', '__main__.py')

# Where a library may be imported at all: files, or folders with a slash.
ONLY_IN = {
    'osgeo': ('io/',),
    'sklearn': ('shepherd/clusters.py', 'coco/demo.py'),
    'skops': ('coco/',),
    'dask': ('engine/dask_executor.py',),
    'distributed': ('engine/dask_executor.py',),
    'kwcoco': ('coco/', 'cli/'),
}

# Libraries that are imported inside functions, never when a module is.
HEAVY = frozenset({
    'numba', 'osgeo', 'sklearn', 'skops', 'kwcoco', 'kwimage', 'cv2', 'dask', 'distributed',
    'tifffile', 'torch', 'shapely', 'scipy', 'pandas', 'pyarrow', 'matplotlib', 'skimage', 'zarr',
})

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 60

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Import:
    """One imported name. ``at_top``: it happens when the module is imported."""

    target: str
    line: int
    at_top: bool

    @property
    def library(self):
        """First part of the dotted target."""
        return self.target.partition('.')[0]


class _ImportFinder(ast.NodeVisitor):
    """Collect the imports of a module, also those inside functions."""

    def __init__(self, package):
        self.package = package
        self.found = []
        self.depth = 0

    def add(self, target, node):
        self.found.append(Import(target, node.lineno, at_top=self.depth == 0))

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name, node)

    def visit_ImportFrom(self, node):
        base = node.module or ''
        if node.level:
            parts = self.package.split('.')
            base = '.'.join(parts[:len(parts) - node.level + 1] + [base] * bool(base))
        for alias in node.names:
            self.add(f'{base}.{alias.name}', node)

    def visit_Call(self, node):
        """``importlib.import_module('x')`` and ``__import__('x')`` count too."""
        name = getattr(node.func, 'attr', getattr(node.func, 'id', None))
        if name in ('import_module', '__import__') and node.args:
            if isinstance(node.args[0], ast.Constant):
                self.add(str(node.args[0].value), node)
        self.generic_visit(node)

    def visit_If(self, node):
        """What is imported for type checkers only is not imported at the top."""
        for_types = 'TYPE_CHECKING' in ast.unparse(node.test)
        self.depth += for_types
        for child in node.body:
            self.visit(child)
        self.depth -= for_types
        for child in node.orelse:
            self.visit(child)

    def visit_function(self, node):
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = visit_function


class Module:
    """One parsed module; ``path`` is relative to the package, with slashes."""

    def __init__(self, path, text):
        self.path = path
        self.text = text
        self.tree = ast.parse(text, filename=path)
        folders = path.split('/')[:-1]
        finder = _ImportFinder('.'.join([PACKAGE, *folders]))
        finder.visit(self.tree)
        self.imports = finder.found

    @property
    def home(self):
        """The folder, or the name of a module beside the folders."""
        return self.path.split('/')[0].removesuffix('.py')

    @property
    def is_kernels(self):
        """True for the compiled modules, which others import when needed."""
        return self.path.endswith('kernels.py')

    @property
    def functions(self):
        return [node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS)]

    def is_in(self, places):
        """True if the module is one of the files, or in one of the folders."""
        return any(self.path.startswith(place) if place.endswith('/') else self.path == place
                   for place in places)

    def finding(self, line, message):
        return f'{PACKAGE}/{self.path}:{line}: {message}'


def check_layers(module):
    """Imports of the package point strictly downward, or stay in the folder."""
    if module.path in DOORS:
        return []
    if module.home not in LAYERS:
        return [module.finding(1, f'{module.home!r} is in no layer; give it one in LAYERS')]
    findings = []
    for item in module.imports:
        parts = item.target.split('.')
        if parts[0] != PACKAGE or parts[1:] == ['__version__'] or parts[1:2] == [module.home]:
            continue
        if parts[1:2] == [] or parts[1] not in LAYERS:
            findings.append(module.finding(
                item.line, f'imports {item.target}; name the module, not the door of the package'))
        elif LAYERS[parts[1]] >= LAYERS[module.home]:
            findings.append(module.finding(
                item.line, f'{module.home} (layer {LAYERS[module.home]}) imports {item.target} '
                f'(layer {LAYERS[parts[1]]}); imports point strictly downward'))
    return findings


def check_places(module):
    """Some libraries are imported in few places only."""
    return [module.finding(item.line, f'imports {item.library}, which is only for '
                           + ', '.join(ONLY_IN[item.library]))
            for item in module.imports
            if item.library in ONLY_IN and not module.is_in(ONLY_IN[item.library])]


def check_lazy(module):
    """Heavy libraries, and modules of kernels, are imported inside functions."""
    allowed = {'numba'} if module.is_kernels else set()
    findings = []
    for item in module.imports:
        if not item.at_top:
            continue
        if item.library in HEAVY - allowed:
            findings.append(module.finding(
                item.line, f'imports {item.library} at the top; import it inside the function'))
        ours = item.library == PACKAGE and not module.is_kernels
        if ours and any(part.endswith('kernels') for part in item.target.split('.')):
            findings.append(module.finding(
                item.line, f'imports {item.target} at the top, and numba with it; '
                'import it inside the function'))
    return findings


def count_lines(function):
    """Lines of a function from its ``def``, without its docstring."""
    count = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function, clean=False) is not None:
        docstring = function.body[0]
        count -= docstring.end_lineno - docstring.lineno + 1
    return count


def check_sizes(module):
    """Modules and functions stay short."""
    findings = []
    n_lines = len(module.text.splitlines())
    if n_lines > MAX_MODULE_LINES:
        findings.append(module.finding(
            n_lines, f'{n_lines} lines; the limit of a module is {MAX_MODULE_LINES}'))
    for function in module.functions:
        n_lines = count_lines(function)
        if n_lines > MAX_FUNCTION_LINES:
            findings.append(module.finding(
                function.lineno, f'{function.name} has {n_lines} lines without its docstring; '
                f'the limit is {MAX_FUNCTION_LINES}'))
    return findings


def check_prints(module):
    """Only the command line prints."""
    if module.is_in(('cli/',)):
        return []
    return [module.finding(node.lineno, 'print() outside cli/; use logging')
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == 'print']


def check_docstring(module):
    """Every public module says what it is."""
    name = module.path.split('/')[-1]
    is_private = name.startswith('_') and not name.startswith('__')
    if is_private or ast.get_docstring(module.tree):
        return []
    return [module.finding(1, 'the module has no docstring')]


def _is_mutable(node):
    displays = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)
    makers = ('list', 'dict', 'set', 'bytearray', 'defaultdict', 'OrderedDict', 'deque')
    return isinstance(node, displays) or (
        isinstance(node, ast.Call)
        and getattr(node.func, 'attr', getattr(node.func, 'id', None)) in makers)


def check_defaults(module):
    """No default value of an argument can be changed by a call."""
    return [module.finding(default.lineno, f'mutable default {ast.unparse(default)}; use None')
            for node in ast.walk(module.tree) if isinstance(node, (*FUNCTIONS, ast.Lambda))
            for default in (*node.args.defaults, *node.args.kw_defaults)
            if default is not None and _is_mutable(default)]


def check_excepts(module):
    """No handler catches everything unnamed, or swallows every error."""
    findings = []
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            findings.append(module.finding(node.lineno, 'bare except; name the error'))
        elif (getattr(node.type, 'id', None) in ('Exception', 'BaseException')
              and all(isinstance(child, ast.Pass) for child in node.body)):
            findings.append(module.finding(node.lineno, 'every error is swallowed'))
    return findings


RULES = (check_layers, check_places, check_lazy, check_sizes, check_prints, check_docstring,
         check_defaults, check_excepts)


def iter_modules():
    """Yield every module of the package, parsed."""
    package = ROOT / PACKAGE
    for path in sorted(package.rglob('*.py')):
        yield Module(path.relative_to(package).as_posix(), path.read_text(encoding='utf-8'))


@pytest.mark.parametrize('rule', RULES, ids=lambda rule: rule.__name__)
def test_package_keeps_the_rule(rule):
    findings = [finding for module in iter_modules() for finding in rule(module)]
    assert not findings, '\n' + '\n'.join(findings)


def test_walk_sees_the_package():
    paths = {module.path for module in iter_modules()}
    assert {'__init__.py', 'errors.py', 'protocols.py', 'grid/window.py'} <= paths


def test_every_folder_with_modules_is_a_package():
    folders = {path.parent for path in (ROOT / PACKAGE).rglob('*.py')}
    missing = [str(folder.relative_to(ROOT)) for folder in sorted(folders)
               if not (folder / '__init__.py').exists()]
    assert not missing, f'no __init__.py in {missing}: they would not be installed'


def test_no_test_imports_rasterio():
    """Its own copy of libgdal must not share a process with osgeo."""
    findings = []
    for path in sorted((ROOT / 'tests').rglob('*.py')):
        text = path.read_text(encoding='utf-8')
        if path.name == 'rasterio_judge.py':
            # A program: the tests run it, and none imports it.
            assert "if __name__ == '__main__':" in text
            continue
        assert not re.search(r'^\s*(from|import) .*rasterio_judge', text, re.MULTILINE), path
        finder = _ImportFinder('tests')
        finder.visit(ast.parse(text))
        findings += [f'{path.relative_to(ROOT)}:{item.line}: imports {item.library}; '
                     'run it in a process of its own'
                     for item in finder.found if item.library in ('rasterio', 'rio_cogeo')]
    assert not findings, '\n' + '\n'.join(findings)


# -- the same promise, seen from a fresh interpreter

def run_python(code):
    """Run code in a new interpreter at the checkout; return what it printed."""
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


IMPORT_ALL = f'''
import importlib, pkgutil, sys
import {PACKAGE}
for info in pkgutil.walk_packages({PACKAGE}.__path__, '{PACKAGE}.'):
    if not info.name.endswith(('kernels', '__main__')):
        importlib.import_module(info.name)
'''
PRINT_HEAVY = f'\nprint(*sorted({set(HEAVY)!r} & set(sys.modules)))'


@pytest.mark.parametrize('code', [f'import sys, {PACKAGE}', IMPORT_ALL],
                         ids=['package', 'every module'])
def test_import_loads_nothing_heavy(code):
    assert run_python(code + PRINT_HEAVY) == ''


@pytest.mark.parametrize('code', [f'import {PACKAGE}', IMPORT_ALL],
                         ids=['package', 'every module'])
def test_import_works_without_gdal(code):
    block = "import sys; sys.modules['osgeo'] = None\n"
    assert run_python(block + code + "\nprint('imported')") == 'imported'


def test_fresh_interpreter_sees_heavy_libraries():
    """The two tests above would see a heavy import, and a blocked osgeo."""
    assert run_python('import sys, numba' + PRINT_HEAVY).startswith('numba')
    blocked = "import sys; sys.modules['osgeo'] = None\n"
    with pytest.raises(AssertionError, match='osgeo'):
        run_python(blocked + 'import osgeo')


# -- the rules themselves

def long_function(n_lines, docstring=''):
    """Return a function of ``n_lines`` lines plus a docstring."""
    return 'def f():\n' + docstring + '    x = 1\n' * (n_lines - 1)


BROKEN = [
    (check_layers, 'grid/a.py', 'import os\nfrom cocoseg.stitch.soft import x', 2, 'layer 2'),
    (check_layers, 'grid/a.py', 'from cocoseg.labels import unionfind', 1, 'strictly downward'),
    (check_layers, 'io/a.py', 'from cocoseg import stitch', 1, 'strictly downward'),
    (check_layers, 'stitch/a.py', 'import cocoseg.engine.blockmap as b', 1, 'layer 2'),
    (check_layers, 'stitch/a.py', 'from ..coco import manager', 1, 'layer 4'),
    (check_layers, 'stitch/__init__.py', 'from ..coco import manager', 1, 'layer 4'),
    (check_layers, 'coco/a.py', 'def f():\n    from cocoseg.cli import main', 2, 'layer 5'),
    (check_layers, 'protocols.py', 'from .errors import CocosegError', 1, 'layer 0'),
    (check_layers, 'cli/a.py', 'from cocoseg import Window', 1, 'not the door'),
    (check_layers, 'cli/a.py', 'import cocoseg', 1, 'not the door'),
    (check_layers, 'extra/a.py', '', 1, 'no layer'),
    (check_layers, 'engine/a.py', "m = import_module('cocoseg.io.cog')", 1, 'layer 2'),
    (check_places, 'stitch/a.py', 'def f():\n    from osgeo import gdal', 2, 'osgeo'),
    (check_places, 'shepherd/a.py', 'import sklearn.cluster', 1, 'sklearn'),
    (check_places, 'shepherd/clusters.py', 'import skops.io', 1, 'skops'),
    (check_places, 'io/a.py', 'import kwcoco', 1, 'kwcoco'),
    (check_places, 'engine/blockmap.py', 'import dask.array', 1, 'dask'),
    (check_places, 'coco/a.py', 'from distributed import Client', 1, 'distributed'),
    (check_lazy, 'io/a.py', 'import numpy\nfrom osgeo import gdal', 2, 'osgeo at the top'),
    (check_lazy, 'stitch/a.py', 'try:\n    import cv2\nexcept ImportError:\n    cv2 = None', 2,
     'cv2 at the top'),
    (check_lazy, 'stitch/a.py', 'class A:\n    import scipy.ndimage', 2, 'scipy at the top'),
    (check_lazy, 'stitch/soft.py', 'from cocoseg.stitch import kernels', 1, 'at the top'),
    (check_lazy, 'stitch/soft.py', 'from .soft_kernels import add', 1, 'at the top'),
    (check_lazy, 'stitch/kernels.py', 'import numba, scipy', 1, 'scipy at the top'),
    (check_lazy, '__init__.py', 'import kwimage', 1, 'kwimage at the top'),
    (check_sizes, 'grid/a.py', 'x = 1\n' * 501, 501, '501 lines'),
    (check_sizes, 'grid/a.py', '\n' + long_function(61), 2, 'f has 61 lines'),
    (check_prints, 'grid/a.py', 'def f():\n    print(1)', 2, 'print() outside cli/'),
    (check_docstring, 'grid/a.py', 'x = 1', 1, 'no docstring'),
    (check_docstring, 'grid/__init__.py', '', 1, 'no docstring'),
    (check_defaults, 'grid/a.py', 'def f(a=[]): pass', 1, 'mutable default []'),
    (check_defaults, 'grid/a.py', 'def f(*, a=1, b=dict()): pass', 1, 'mutable default dict()'),
    (check_defaults, 'grid/a.py', 'f = lambda a={}: a', 1, 'mutable default {}'),
    (check_excepts, 'grid/a.py', 'try:\n    f()\nexcept:\n    raise', 3, 'bare except'),
    (check_excepts, 'grid/a.py', 'try:\n    f()\nexcept Exception:\n    pass', 3, 'swallowed'),
]

CLEAN = [
    ('grid/window.py', 'from cocoseg.errors import OptionError\nfrom .blocks import Block'),
    ('stitch/soft.py', 'from ..grid import window\nfrom .. import errors\nimport numpy as np'),
    ('stitch/a.py', 'def f():\n    import numba\n    from cocoseg.stitch import kernels'),
    ('stitch/kernels.py', 'import numba\nfrom .other_kernels import add'),
    ('stitch/a.py', 'from typing import TYPE_CHECKING\n'
                    'if TYPE_CHECKING:\n    import kwimage\n    from .kernels import add'),
    ('io/cog.py', 'def f():\n    from osgeo import gdal\n    return gdal'),
    ('shepherd/clusters.py', 'def f():\n    import sklearn.cluster'),
    ('coco/demo.py', 'def f():\n    import skops.io, kwcoco, sklearn.svm'),
    ('engine/dask_executor.py', 'def f():\n    import dask, distributed'),
    ('cli/main.py', 'from cocoseg import __version__\nprint(__version__)'),
    ('__init__.py', "def f():\n    return import_module('cocoseg.coco.manager')"),
    ('__main__.py', 'from cocoseg.cli.main import main\nmain()'),
    ('grid/a.py', 'def f(a=(), b=None, *, c=frozenset()):\n    sprint(a)'),
    ('grid/a.py', 'try:\n    f()\nexcept Exception as ex:\n    raise ValueError from ex'),
    ('grid/a.py', long_function(60, docstring='    """\n' + '    text\n' * 30 + '    """\n')),
]


@pytest.mark.parametrize('rule, path, text, line, message', BROKEN)
def test_rule_finds_what_is_broken(rule, path, text, line, message):
    (finding,) = rule(Module(path, text))
    assert finding.startswith(f'cocoseg/{path}:{line}: ')
    assert message in finding


@pytest.mark.parametrize('path, text', CLEAN)
def test_rules_accept_what_is_clean(path, text):
    module = Module(path, '"""Documented."""\n' + text)
    assert [finding for rule in RULES for finding in rule(module)] == []


def test_every_rule_is_shown_to_work():
    assert {case[0] for case in BROKEN} == set(RULES)
