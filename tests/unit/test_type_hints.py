"""Type hints of public names: all there, all resolvable, and seen by a type checker."""
import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import cocoseg
import numpy as np
import pytest

# Methods with two underscores that callers use by syntax.
SYNTAX = {'__init__', '__call__', '__len__', '__iter__', '__getitem__', '__setitem__',
          '__contains__', '__add__', '__enter__', '__exit__'}


def iter_functions(value):
    """Yield (name, function, whether it is bound) of a function, or of all public methods."""
    if not inspect.isclass(value):
        yield value.__name__, value, True
        return
    for base in value.__mro__:
        if base is not value and not base.__module__.startswith('cocoseg.'):
            continue
        for name, member in vars(base).items():
            if name.startswith('_') and name not in SYNTAX:
                continue
            if isinstance(member, property):
                for function in filter(None, (member.fget, member.fset)):
                    yield f'{base.__name__}.{name}', function, False
            elif isinstance(member, functools.cached_property):
                yield f'{base.__name__}.{name}', member.func, False
            elif isinstance(member, staticmethod):
                yield f'{base.__name__}.{name}', member.__func__, True
            elif isinstance(member, classmethod):
                yield f'{base.__name__}.{name}', member.__func__, False
            elif inspect.isfunction(member):
                yield f'{base.__name__}.{name}', member, False


def list_missing(value):
    """Return what has no hint: 'name(parameter)' or 'name -> '."""
    missing = []
    for name, function, is_bound in iter_functions(value):
        signature = inspect.signature(function)
        parameters = list(signature.parameters.values())[not is_bound:]
        missing += [f'{name}({parameter.name})' for parameter in parameters
                    if parameter.annotation is parameter.empty]
        if signature.return_annotation is signature.empty:
            missing.append(f'{name} -> ')
    return missing


class _Absent:
    """Stands for a library that is not installed: all of its types are Any."""

    def __getattr__(self, name):
        return typing.Any


@functools.lru_cache(maxsize=None)
def read_namespace(home):
    """Return the names of a module, with those that only type checkers import."""
    module = importlib.import_module(home)
    names = {'kwimage': importlib.import_module('kwimage')}     # of WindowLike
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            for statement in node.body:
                try:
                    exec(ast.unparse(statement), names)
                except ImportError:
                    names.update({alias.name: _Absent() for alias in statement.names})
    return {**vars(module), **names}


def resolve(value):
    """Evaluate all hints of a public name; a name that nobody knows raises NameError."""
    for _, function, _ in iter_functions(value):
        typing.get_type_hints(function, read_namespace(value.__module__))
    if inspect.isclass(value):
        typing.get_type_hints(value, read_namespace(value.__module__))


@pytest.mark.parametrize('name', cocoseg.__all__)
def test_every_parameter_and_result_has_a_hint(name):
    assert list_missing(getattr(cocoseg, name)) == []


@pytest.mark.parametrize('name', cocoseg.__all__)
def test_every_hint_is_a_type(name):
    resolve(getattr(cocoseg, name))


class Half:
    """Hints here and there, for the tests of the tests."""

    def __init__(self, a: int, b=0):
        self._kept = a, b

    @property
    def first(self):
        return self._kept[0]

    @functools.cached_property
    def second(self):
        return self._kept[1]

    @classmethod
    def make(cls, a) -> 'Half':
        return cls(a)

    @staticmethod
    def count(what) -> int:
        return len(what)

    def _hidden(self, a):
        return a

    def __add__(self, other) -> 'Half':
        return self


@dataclass
class Typo:
    """A field of a type that there is not."""

    value: 'np.ndaray'


def test_missing_hints_are_found():
    assert list_missing(Half) == [
        'Half.__init__(b)', 'Half.__init__ -> ', 'Half.first -> ', 'Half.second -> ',
        'Half.make(a)', 'Half.count(what)', 'Half.__add__(other)']
    assert list_missing(list_missing) == ['list_missing(value)', 'list_missing -> ']


def test_unknown_types_are_found(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], 'read_namespace', lambda home: globals())
    with pytest.raises(AttributeError, match='ndaray'):
        resolve(Typo)


# -- what a type checker sees of the names, which are loaded when first used

def test_type_checkers_import_what_the_package_loads():
    stub = Path(cocoseg.__file__).with_suffix('.pyi')
    seen, others = {}, []
    for node in ast.parse(stub.read_text()).body[1:]:
        if isinstance(node, ast.ImportFrom):
            # `as` makes it a public name of the package.
            assert all(alias.asname == alias.name for alias in node.names), ast.unparse(node)
            seen[node.module] = [alias.name for alias in node.names]
        else:
            others.append(ast.unparse(node))
    assert seen == cocoseg._HOMES
    assert others == ['__version__: str', '__all__: list[str]']


def test_marker_of_typed_packages_is_there_and_empty(repo_root):
    assert (repo_root / 'cocoseg' / 'py.typed').read_bytes() == b''


# A line may end with the type that is to be revealed, or the code of the error.
PROGRAM = '''
from pathlib import Path
from typing import Any

import numpy as np

import cocoseg
from cocoseg import Nothing                                     # error: attr-defined
from cocoseg import SoftStitcher, Window, WindowGrid, write_cog
from cocoseg.protocols import (BatchPredictor, BlockSink, BlockSource, FittedPredictor, JobQueue,
                               MemorySink, MemorySource)
from cocoseg.stitch.layers import Layer

image = np.zeros((90, 100, 3), np.float32)
grid = WindowGrid(image.shape, window=40, overlap=(8, 8))
reveal_type(grid.overlap)                                       # tuple[int, int]
reveal_type([window.clip((9, 9)) for window in grid])           # list[Window]
WindowGrid(image.shape, window='40')                            # error: arg-type

stitcher = SoftStitcher(image.shape, grid, expected_minmax=(0, 1))
for window in grid:
    reveal_type(stitcher.add(window, image[window.slices]))     # int
stitcher.add((slice(0, 4), slice(0, 4)), [[1.0] * 4] * 4)
stitcher.add(window)                                            # error: call-arg
mean: np.ndarray = stitcher.finalize()
report = write_cog(Path('a.tif'), mean, channels='r|g|b')
reveal_type(report.path)                                        # str
write_cog('a.tif', mean, blocksiz=512)                          # error: call-arg


class Sink:
    def write_block(self, window: Any, block: np.ndarray) -> None: ...


SoftStitcher(image.shape, sink=Sink())
SoftStitcher(image.shape, sink=image)                           # error: arg-type
SoftStitcher(image.shape, sink=cocoseg.CogWriter('a.tif', image.shape, np.int16))


def predict(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., :1]


dset = cocoseg.predict_dataset('in.json', 'out.json', predict, expected_minmax=(0, 1))
cocoseg.predict_dataset('in.json', 'out.json', 'predict')       # error: arg-type
with cocoseg.CocoStitchingManager(dset, 'pred', 'water|bare') as manager:
    reveal_type(manager.is_done(1))                             # bool
    reveal_type(manager.pending_windows(1))                     # list[Window]

ids, entry = cocoseg.quantize_image(image)
reveal_type(cocoseg.quantize_image(None, 0, 1))                 # dict[Any, Any]
cocoseg.quantize_image(None)                                    # error: call-overload
valid: np.ndarray = cocoseg.compute_mask('a.tif')
reveal_type(cocoseg.compute_mask('a.tif', 'valid.tif').n_blocks)                # int
reveal_type(cocoseg.prepare_selector('a.tif', 'b.tif', lazy=True).name)         # str
source: BlockSource = cocoseg.ZarrArray.open('a.zarr/raw')
sinks: list[BlockSink] = [cocoseg.ZarrArray.open('b.zarr/raw'), MemorySink()]
queue: JobQueue = cocoseg.WriterQueue()
source = MemorySource(image)
fitted: FittedPredictor = cocoseg.ShepherdPredictor()
batches: BatchPredictor = cocoseg.EstimatorPredictor(None)
layers: list[Layer] = [cocoseg.ClassMap(), cocoseg.ThresholdMask([0.5, 1]), cocoseg.Disagreement()]
result = cocoseg.segment_raster('a.tif', 'b.tif', executor=cocoseg.get_executor('threads:2'))
reveal_type(result.seams)                                       # list[Seam]
parameters = cocoseg.WatershedParameters(offsets=[(0, 1), (1, 0)], context=8)
choices = cocoseg.enumerate_parameters(parameters, bias=[0.2, 0.4])
reveal_type(choices)                                            # Iterator[WatershedParameters]
'''


# Reading other libraries would take most of the time; their types are not looked at.
SETTINGS = """
[mypy]
strict = True
ignore_missing_imports = True
follow_imports = silent

[mypy-dask.*,distributed.*,kwcoco.*,kwimage.*,numba.*,torch.*,ubelt.*,zarr.*]
follow_imports = skip
"""


def run_checker(repo_root, folder, program):
    """Run mypy; return the type or 'error: code' of each line that it speaks about."""
    (folder / 'program.py').write_text(program)
    (folder / 'mypy.ini').write_text(SETTINGS)
    done = subprocess.run(
        [sys.executable, '-m', 'mypy', '--no-pretty', '--no-error-summary', '--show-error-codes',
         '--cache-dir', str(folder / 'cache'), 'program.py'],
        cwd=folder, env={**os.environ, 'MYPYPATH': str(repo_root)}, capture_output=True,
        text=True, check=False)
    assert done.stderr == '' and done.returncode in (0, 1), done.stdout + done.stderr
    found = {}
    for line in done.stdout.splitlines():
        path, number, kind, text = re.fullmatch(r'(.*?):(\d+): (\w+): (.*)', line).groups()
        if path != 'program.py' and kind == 'note':     # where a function is defined
            continue
        assert path == 'program.py', line
        revealed = re.fullmatch(r'Revealed type is "(.*)"', text)
        if kind == 'error':
            found[int(number)] = 'error: ' + re.search(r'\[([\w-]+)\]$', text).group(1)
        elif revealed:
            found[int(number)] = re.sub(r'\b(?:\w+\.)+', '', revealed.group(1))
    return found


def test_type_checker_sees_public_names_and_their_hints(repo_root, tmp_path):
    pytest.importorskip('mypy', reason='mypy is not installed: pip install mypy')
    expected = {}
    for number, line in enumerate(PROGRAM.splitlines(), 1):
        code, _, comment = line.partition('  # ')
        if comment:
            expected[number] = comment.strip()
    found = run_checker(repo_root, tmp_path, PROGRAM)
    assert found == expected
