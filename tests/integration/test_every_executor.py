"""Every operation by threads, processes and dask: the bytes of the serial run, of real pixels."""
import contextlib
import functools
import inspect
import os
import re
import shutil
import threading

import numpy as np
import pytest

import cocoseg
from cocoseg import get_executor, write_cog
from cocoseg.coco.demo import demo_dataset
from cocoseg.errors import OptionError
from cocoseg.io.raster import read_raster

from ..operations import (DARK, OFFSETS, OPERATIONS, Inputs, digest_made, find_affinities,
                          make_inputs, run_operation)

# The difference of two fields in the packaged images.
CONTRAST = 12.0


@pytest.fixture(scope='module')
def inputs(tmp_path_factory):
    """The packaged video of three aerial photographs, and what is derived of it."""
    folder = tmp_path_factory.mktemp('inputs')
    dset = demo_dataset(folder)
    # The last one has a lake, which is masked where that is wanted.
    image = os.path.join(dset.bundle_dpath, dset.index.imgs[3]['assets'][0]['file_name'])
    affinities = folder / 'affinities.tif'
    write_cog(affinities, find_affinities(read_raster(image), CONTRAST))
    found = Inputs(str(folder), dset.fpath, image, str(affinities), tuple(OFFSETS.values()),
                   CONTRAST, 128)
    make_inputs(found)
    return found


@pytest.fixture(scope='module')
def serial(inputs, tmp_path_factory):
    """Return a function: what the serial run of an operation made, once for all."""
    folder = tmp_path_factory.mktemp('serial')

    @functools.cache
    def get(name):
        return run_operation(name, inputs, 'serial', folder / name)
    return get


@pytest.fixture(scope='module', params=['threads:2', 'processes:2', 'dask:2'])
def executor(request):
    """One executor for all operations: its workers are started once."""
    if request.param.startswith('dask'):
        pytest.importorskip('distributed')
    found = get_executor(request.param)
    with contextlib.closing(found) if hasattr(found, 'close') else contextlib.nullcontext():
        yield found


@pytest.mark.parametrize('name', OPERATIONS)
def test_everything_made_has_the_bytes_of_the_serial_run(executor, inputs, serial, tmp_path, name):
    out = tmp_path / 'out'
    if executor.shares_memory and not OPERATIONS[name].takes_threads:
        with pytest.raises(OptionError, match='shares memory.*one thread at a time'):
            run_operation(name, inputs, executor, out)
        return
    expected = serial(OPERATIONS[name].serial or name)
    assert run_operation(name, inputs, executor, out) == expected


# ---- is it everything?

def iter_callables():
    """Yield the public functions and classes, and the methods of these, by name."""
    for name in cocoseg.__all__:
        value = getattr(cocoseg, name)
        if callable(value):
            yield name, value
        if inspect.isclass(value):
            for part, method in inspect.getmembers(value, callable):
                if not part.startswith('_'):
                    yield f'{name}.{part}', method


def find_entry(docstring, name):
    """Return what the list of arguments says of one."""
    found = re.search(rf'^    {re.escape(name)}:.*(\n {{8}}.*)*', inspect.cleandoc(docstring),
                      re.MULTILINE)
    return found[0] if found else ''


def find_takers():
    """
    Return the names of what takes an executor.

    It is a parameter, or goes with the ``**options`` that are, as the docstring
    says, those of a block run or of another that takes one.
    """
    takers, options = set(), {}
    for name, value in iter_callables():
        try:
            parameters = inspect.signature(value).parameters.values()
        except (TypeError, ValueError):
            # Some that are inherited from C have none.
            continue
        if any(one.name == 'executor' for one in parameters):
            takers.add(name)
        for one in parameters:
            if one.kind is one.VAR_KEYWORD:
                options[name] = find_entry(value.__doc__ or '', f'**{one.name}')
    while True:
        more = {name for name, text in options.items()
                if '``executor``' in text or '.BlockRun`' in text
                or any(re.search(rf'[.`]{taker}`', text) for taker in takers)} - takers
        if not more:
            return takers
        takers |= more


def test_every_public_function_that_takes_an_executor_is_in_the_table():
    assert find_takers() == {operation.public for operation in OPERATIONS.values()}


def test_takers_are_found_by_parameter_and_by_options(monkeypatch):
    def by_parameter(executor): ...

    def by_options(**more):
        """
        Do it.

        Args:
            **more: of :func:`cocoseg.by_parameter`.
        """

    def by_neither(**more):
        """
        Do it.

        Args:
            **more: of the output, such as ``compress``.

        Returns:
            int: what ``executor`` is none of.
        """
    functions = {one.__name__: one for one in (by_parameter, by_options, by_neither)}
    before = find_takers()
    for name, one in functions.items():
        monkeypatch.setattr(cocoseg, name, one, raising=False)
    monkeypatch.setattr(cocoseg, '__all__', [*cocoseg.__all__, *functions])
    assert find_takers() - before == {'by_parameter', 'by_options'}


# ---- is a difference seen?

def name_worker(pixels):
    """A function whose result depends on who calls it."""
    return np.full(pixels.shape[:2], os.getpid() ^ threading.get_ident(), np.int64)


def test_a_result_that_depends_on_the_worker_is_seen(executor, inputs, tmp_path):
    found = [digest_made(tmp_path, cocoseg.map_blocks(name_worker, inputs.image, block_shape=128,
                                                      executor=one).output)
             for one in ('serial', executor)]
    assert found[0] != found[1]


def test_digests_see_each_byte_of_files_and_values(tmp_path):
    def digest(content=b'abc', name='a.tif', values=None):
        folder = tmp_path / 'made' / 'within'
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        return digest_made(folder.parent, values)
    assert digest() == digest()
    assert digest() != digest(b'abd') and digest() != digest(name='.a.tif')
    (tmp_path / 'empty').mkdir()
    before = digest_made(tmp_path, None)
    (tmp_path / 'empty').rmdir()
    assert digest_made(tmp_path, None) != before
    # Lines of a journal may come in any order, and all are there.
    lines = digest(b'a\nb\n', 'j.jsonl')
    assert lines == digest(b'b\na\n', 'j.jsonl') != digest(b'a\n', 'j.jsonl')
    arrays = [np.zeros(2), -np.zeros(2), np.zeros(2, np.float32), np.zeros((2, 1)),
              np.array([0, np.nan])]
    kinds = [*arrays, *([one] for one in arrays), {'a': 1}, {'b': 1}, {'a': 1.0}, [1, [2]],
             [[1], 2]]
    found = [digest(values=one)['(returned)'] for one in kinds]
    assert len(set(found)) == len(kinds)


def test_inputs_are_no_trifle(inputs, serial):
    """Masks have both values, objects cross blocks, and no two operations make the same."""
    valid = cocoseg.compute_mask(inputs.image, nodata=DARK, logic='any')
    assert 0.1 < valid.mean() < 0.9
    segments = read_raster(inputs.place('segments.tif'))[..., 0]
    assert segments.max() > 300
    crossing = np.intersect1d(segments[127], segments[128])
    assert len(crossing) > 10
    made = [serial(name) for name, operation in OPERATIONS.items() if operation.serial is None]
    returned = [found['(returned)'] for found in made if '(returned)' in found]
    assert len(set(returned)) == len(returned) > 8
