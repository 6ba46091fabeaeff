"""Workers that are killed, full, late or lost: a run ends right, or says what is missing."""
import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cocoseg import (WatershedParameters, blockwise_watershed, get_executor, map_blocks,
                     predict_dataset, segment_stats, write_cog)
from cocoseg.errors import TaskError, TaskTimeoutError

from ..cells import OFFSETS_2D, make_affinities, make_cells
from .worker_tasks import (BlockTask, ImagePredictor, count_notes, get_ready, heal, meet,
                           meet_driver, segment, wait_until)

pytest.importorskip('cloudpickle')

SHAPE = (150, 190)
N_BLOCKS = 9
N_IMAGES = 4
PLACES = ['processes', 'dask']
# s, after which a test hangs; each takes a few.
PATIENCE = 100
STATS = ['area', 'mean', 'median', 'std']


@pytest.fixture(autouse=True)
def raise_if_it_hangs():
    """Fail where a test hangs; end the program if that does not help."""
    if not hasattr(signal, 'SIGALRM'):
        yield
        return

    def give_up(number, frame):
        faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
        pytest.fail(f'the test did not end in {PATIENCE} s')

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    yield
    signal.alarm(0)
    faulthandler.cancel_dump_traceback_later()
    signal.signal(signal.SIGALRM, before)


# -- where workers run

@pytest.fixture(scope='module')
def surroundings(repo_root, tmp_path_factory):
    """Let workers find the functions of tests; return the folder for temporaries."""
    temporary = tmp_path_factory.mktemp('temporary')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(repo_root)
        patch.setenv('PYTHONPATH', str(repo_root), prepend=os.pathsep)
        patch.setenv('TMPDIR', str(temporary))
        patch.setattr(tempfile, 'tempdir', str(temporary))
        yield temporary


class Cluster:
    """A cluster of dask on this machine, and its executor."""

    def __init__(self):
        distributed = pytest.importorskip('distributed')
        self._cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address='127.0.0.1:0',
            silence_logs=logging.CRITICAL, memory_limit=None)
        self._client = distributed.Client(self._cluster, set_as_default=False)
        self.executor = get_executor(self._client)

    def is_whole(self):
        """Return True once all workers are there."""
        return wait_until(lambda: len(self._client.nthreads()) == 2, 15)

    def close(self):
        """End it."""
        self._client.close()
        self._cluster.close()


@pytest.fixture(scope='module')
def places(surroundings):
    """Return a function that gives the executor of a place; workers take long to start."""
    clusters, processes = [], []

    def get(place):
        if place == 'processes':
            if not processes:
                processes.append(get_executor('processes:2'))
            return processes[0]
        # On a busy machine, dask does not always replace a worker that was killed.
        if not clusters or not clusters[-1].is_whole():
            clusters.append(Cluster())
            assert clusters[-1].is_whole()
        return clusters[-1].executor

    yield get
    for one in [*clusters, *processes]:
        one.close()


@pytest.fixture
def executor(request, places):
    return places(request.param)


everywhere = pytest.mark.parametrize('executor', PLACES, indirect=True)


def find_pids(executor, folder):
    """Return the processes of an executor, all of them ready to work."""
    if hasattr(executor, 'get_client'):
        pids = list(executor.get_client().run(get_ready).values())
    else:
        folder.mkdir()
        pids = [pid for _, pid in executor.run(partial(meet, folder=str(folder)), range(2))]
    assert len(set(pids)) == 2 and os.getpid() not in pids
    return pids


class Outpost:
    """A scheduler of dask and its workers, programs each; workers have their own folders."""

    def __init__(self, folder, n_workers=2):
        self.folder, self.n_workers = folder, n_workers
        self.homes, self._programs = [], []
        scheduler_file = folder / 'scheduler.json'
        self.scheduler = self._start('scheduler', folder, '--host', '127.0.0.1', '--port', '0',
                                     '--scheduler-file', scheduler_file,
                                     '--dashboard-address', '127.0.0.1:0')
        for number in range(n_workers):
            home = folder / f'home{number}'
            home.mkdir()
            self.homes.append(home)
            self._start('worker', home, '--scheduler-file', scheduler_file, '--nthreads', '1',
                        '--no-nanny', '--local-directory', folder / f'scratch{number}')
        assert wait_until(lambda: self._read_address(scheduler_file))

    def _start(self, role, cwd, *options):
        program = subprocess.Popen(
            [sys.executable, '-m', f'distributed.cli.dask_{role}', '--no-dashboard',
             *map(str, options)],
            cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._programs.append(program)
        return program

    def _read_address(self, path):
        try:
            self.address = json.loads(path.read_text())['address']
        except (FileNotFoundError, json.JSONDecodeError):
            return False
        return True

    def connect(self):
        """Return an executor, once all workers are there."""
        executor = get_executor(f'dask:{self.address}')
        executor.get_client().wait_for_workers(self.n_workers, timeout=60)
        return executor

    def close(self):
        """End all programs."""
        for program in self._programs:
            program.kill()
        for program in self._programs:
            program.wait()


@pytest.fixture(scope='module')
def outpost(surroundings, tmp_path_factory):
    """A scheduler and two workers, as on other hosts."""
    pytest.importorskip('distributed')
    outpost = Outpost(tmp_path_factory.mktemp('outpost'))
    yield outpost
    outpost.close()


# -- what is done there

@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Return a folder with all that is read."""
    import kwcoco
    folder = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    cells = make_cells(SHAPE, 12)
    image = (rng.integers(1, 250, (cells.max() + 1, 3))[cells]
             + rng.integers(0, 5, (*SHAPE, 3))).astype(np.uint8)
    write_cog(folder / 'image.tif', image, nodata=0, blocksize=64)
    write_cog(folder / 'segments.tif', cells.astype(np.uint32), nodata=0, blocksize=64)
    write_cog(folder / 'affinities.tif', make_affinities(cells, OFFSETS_2D, noise=0.3),
              blocksize=64)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'src.kwcoco.json')
    for number in range(1, N_IMAGES + 1):
        pixels = rng.integers(1, 200, (100 + number, 90, 3)).astype(np.uint8)
        pixels[..., 2] = number
        write_cog(folder / f'{number}.tif', pixels)
        image_id = dset.add_image(name=f'img{number}', width=90, height=100 + number)
        dset.add_asset(image_id, file_name=f'{number}.tif', channels='r|g|n', width=90,
                       height=100 + number, warp_aux_to_img={'scale': 1})
    dset.dump()
    return folder


def predict(data, folder, executor, predictor, **options):
    """Predict the images; return all files of the bundle."""
    predict_dataset(data / 'src.kwcoco.json', folder / 'out.kwcoco.json', predictor, 48, 16,
                    channels='r|g|n', out_channels='mean', expected_minmax=(0, 1), space='image',
                    executor=executor, **options)
    return read_bundle(folder)


def read_bundle(folder):
    """Return the bytes of the assets by name, and the images of the manifest."""
    assets = {os.path.relpath(path, folder): path.read_bytes()
              for path in folder.rglob('*.tif')}
    manifest = json.loads((folder / 'out.kwcoco.json').read_text())
    assert len(assets) == len(manifest['images']) == N_IMAGES
    return assets, sorted(manifest['images'], key=lambda img: img['id'])


def apply(data, folder, executor, task, **options):
    """Map blocks; return the bytes of the output."""
    map_blocks(task, data / 'image.tif', folder / 'out.tif', block_shape=64, halo=1,
               executor=executor, **options)
    return (folder / 'out.tif').read_bytes()


def flood(data, folder, executor, **options):
    """Find instances by a watershed; return the bytes of the output."""
    blockwise_watershed(data / 'affinities.tif', WatershedParameters(
        OFFSETS_2D, context=16, min_size=5), folder / 'out.tif', block_shape=64,
        executor=executor, **options)
    return (folder / 'out.tif').read_bytes()


def cut(data, folder, executor, **options):
    """Segment a raster; return the bytes of the output."""
    segment(data / 'image.tif', folder / 'out.tif', executor, **options)
    return (folder / 'out.tif').read_bytes()


def measure(data, folder, executor, **options):
    """Measure segments; return the columns as bytes. Nothing is written."""
    table = segment_stats(data / 'image.tif', data / 'segments.tif', STATS, block_rows=16,
                          executor=executor, **options)
    return {name: column.tobytes() for name, column in table.columns.items()}


# Those that take a function of ours, and those that take none.
OPEN = {'predict': (predict, ImagePredictor), 'map': (apply, BlockTask)}
CLOSED = {'watershed': flood, 'segment': cut, 'stats': measure}


@dataclass(frozen=True)
class Undisturbed:
    """A serial run: its result, its calls by name, and the files that it leaves."""

    result: Any
    calls: dict
    files: list


@pytest.fixture(scope='module')
def serial(data, tmp_path_factory):
    """Return a function that gives the serial run, made when first asked for."""
    made = {}

    def get(name):
        if name not in made:
            folder, notes = tmp_path_factory.mktemp(name), tmp_path_factory.mktemp('notes')
            if name in OPEN:
                run, make = OPEN[name]
                result = run(data, folder, 'serial', make(str(notes)))
            else:
                result = CLOSED[name](data, folder, 'serial')
            made[name] = Undisturbed(result, count_notes(notes), list_files(folder))
        return made[name]
    return get


def list_files(folder):
    """Return all files and folders below, by their relative paths."""
    return sorted(os.fspath(path.relative_to(folder)) for path in folder.rglob('*'))


def assert_nothing_is_left(surroundings, folder, expected):
    """Check the folder of an output, and that for temporaries."""
    assert list_files(folder) == expected
    # The scratch space of dask itself lives as long as the cluster.
    left = [name for name in os.listdir(surroundings) if not name.startswith('dask')]
    assert [name for name in left if 'cocoseg' in name or name.endswith('.tmp')] == []


@pytest.fixture
def out(tmp_path):
    """Return the folder for an output."""
    folder = tmp_path / 'out'
    folder.mkdir()
    return folder


@pytest.fixture
def notes(tmp_path):
    """Return the folder for notes."""
    folder = tmp_path / 'notes'
    folder.mkdir()
    return folder


# -- killed in the middle

@everywhere
@pytest.mark.parametrize('trouble', ['die_once', 'die_before_the_rename'])
@pytest.mark.parametrize('name', OPEN)
def test_a_task_that_is_killed_once_changes_no_byte(executor, data, serial, surroundings, out,
                                                    notes, name, trouble):
    run, make = OPEN[name]
    found = run(data, out, executor, make(str(notes), trouble))
    assert (notes / 'died').exists()
    assert found == serial(name).result
    # It was done again.
    assert sum(count_notes(notes).values()) > sum(serial(name).calls.values())
    assert_nothing_is_left(surroundings, out, serial(name).files)


class KillOne:
    """Wrap the steps of a run, as ``progress`` does; kill a worker in the middle of its task."""

    def __init__(self, executor, pids):
        self.pids, self.is_dead, self._lock = pids, False, threading.Lock()
        self._client = getattr(executor, 'get_client', lambda: None)()
        self._pid_of = self._client.run(os.getpid) if self._client else None

    def __call__(self, steps, total=None, desc=None):
        if self.is_dead:
            yield from steps
        elif self._client is None:
            yield from self._kill_one_that_stands(steps)
        else:
            yield from self._kill_one_that_works(steps)

    def _kill_one_that_stands(self, steps):
        """
        Stop a worker before it gets a task, and kill it when there is a first result.

        The task that it had then has begun, and did not end.
        """
        os.kill(self.pids[0], signal.SIGSTOP)
        # For a first step that needs this very worker.
        timer = threading.Timer(5, self._kill, self.pids[:1])
        timer.start()
        for step in steps:
            self._kill(self.pids[0])
            yield step
        timer.cancel()

    def _kill_one_that_works(self, steps):
        """Stop and kill a worker that has a task, by what the scheduler says."""
        for step in steps:
            for address, keys in self._client.processing().items():
                if keys and not self.is_dead:
                    os.kill(self._pid_of[address], signal.SIGSTOP)
                    self._kill(self._pid_of[address])
            yield step

    def _kill(self, pid):
        with self._lock:
            if not self.is_dead:
                os.kill(pid, signal.SIGKILL)
            self.is_dead = True


@everywhere
@pytest.mark.parametrize('name', CLOSED)
def test_a_worker_that_is_killed_changes_no_byte(executor, data, serial, surroundings, out,
                                                 tmp_path, name):
    killer = KillOne(executor, find_pids(executor, tmp_path / 'pids'))
    found = CLOSED[name](data, out, executor, progress=killer)
    assert killer.is_dead
    assert found == serial(name).result
    assert_nothing_is_left(surroundings, out, serial(name).files)


@pytest.mark.parametrize('n_taken', [0, 5], ids=['begin', 'end'])
def test_a_worker_that_dies_while_it_is_told_of_a_run(places, tmp_path, caplog, n_taken):
    executor = places('dask')
    pids = find_pids(executor, tmp_path / 'pids')
    steps = executor.run(abs, range(-5, 0))
    found = [next(steps) for _ in range(n_taken)]
    # One that does not answer holds up the run.
    os.kill(pids[0], signal.SIGSTOP)
    timer = threading.Timer(0.5, os.kill, (pids[0], signal.SIGKILL))
    timer.start()
    assert sorted([*found, *steps]) == [(task, -task) for task in range(-5, 0)]
    timer.join()
    assert 'scheduler of dask is gone' not in caplog.text
    plugins = executor.get_client().run_on_scheduler(
        lambda dask_scheduler: [name for name in dask_scheduler.worker_plugins if len(name) == 32])
    assert plugins == []


# -- killed again and again

@pytest.fixture(scope='module')
def narrow(surroundings):
    """An executor whose workers have little memory."""
    distributed = pytest.importorskip('distributed')
    import dask
    with dask.config.set({'distributed.scheduler.allowed-failures': 1}):
        cluster = distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address='127.0.0.1:0',
            silence_logs=logging.CRITICAL, memory_limit=1_000_000_000)
    with cluster, distributed.Client(cluster, set_as_default=False) as client:
        yield get_executor(client)


# The last task is in trouble: dask blames those, too, that wait behind it at its worker.
TROUBLED = {'predict': {'where': N_IMAGES}, 'map': {'where': (2, 2)}}
TROUBLED_NAMES = {'predict': f"image {N_IMAGES} 'img{N_IMAGES}'",
                  'map': r'block \(2, 2\) at Window.* of .*image.tif'}


def go_on(data, serial, folder, notes, name, executor, trouble, **options):
    """Do the rest without trouble; check the result, and return what was done again."""
    run, make = OPEN[name]
    for path in notes.iterdir():
        path.unlink()
    heal(notes)
    found = run(data, folder, executor, make(str(notes), trouble, **TROUBLED[name]), resume=True,
                **options)
    assert found == serial(name).result
    assert list_files(folder) == serial(name).files
    calls = count_notes(notes)
    # What is done again is done once.
    assert calls == {key: serial(name).calls[key] for key in calls}
    return set(calls)


@pytest.mark.parametrize('name', OPEN)
@pytest.mark.parametrize('place', PLACES)
def test_a_task_that_is_always_killed(places, request, data, serial, surroundings, out, notes,
                                      name, place):
    is_dask = place == 'dask'
    executor = request.getfixturevalue('narrow') if is_dask else places(place)
    trouble, n_deaths = ('eat', 2) if is_dask else ('die', 3)
    run, make = OPEN[name]
    with pytest.raises(TaskError, match=f'^{TROUBLED_NAMES[name]} failed: its worker process died, '
                       f'{n_deaths} times; .*out of memory.*less memory.*fewer workers'):
        run(data, out, executor, make(str(notes), trouble, **TROUBLED[name]),
            **({'resume': True} if name == 'map' else {}))
    again = go_on(data, serial, out, notes, name, 'serial', trouble)
    # All others were before it, at two workers: one of them may have been under way.
    assert len(again) <= 2 and next(reversed(sorted(serial(name).calls))) in again
    assert_nothing_is_left(surroundings, out, serial(name).files)


# -- the scheduler is gone

class KillProgram:
    """Wrap the steps of a run, and kill a program when there is a first result."""

    def __init__(self, program):
        self.program = program

    def __call__(self, steps, total=None, desc=None):
        for step in steps:
            if self.program.poll() is None:
                self.program.kill()
                self.program.wait()
            yield step


@pytest.mark.parametrize('name', ['map', 'predict', 'segment'])
def test_a_scheduler_that_is_killed_in_the_middle(places, data, serial, surroundings, out, notes,
                                                  tmp_path, name):
    pytest.importorskip('distributed')
    outpost = Outpost(tmp_path)
    try:
        executor = outpost.connect()
        progress = KillProgram(outpost.scheduler)
        with pytest.raises(TaskError, match='(?s)the scheduler of dask is gone.*start a scheduler'):
            if name == 'segment':
                cut(data, out, executor, progress=progress)
            else:
                run, make = OPEN[name]
                run(data, out, executor, make(str(notes), **TROUBLED[name]), progress=progress,
                    **({'resume': True} if name == 'map' else {}))
        executor.close()
    finally:
        outpost.close()
    if name == 'segment':
        assert list_files(out) == []
        return
    again = go_on(data, serial, out, notes, name, places('processes'), 'nothing')
    assert 1 <= len(again) < len(serial(name).calls)
    assert_nothing_is_left(surroundings, out, serial(name).files)


# -- late, or failing

@everywhere
def test_a_task_that_is_late(executor, data, serial, surroundings, out, notes, tmp_path):
    find_pids(executor, tmp_path / 'pids')
    with pytest.raises(TaskTimeoutError, match=f'^{TROUBLED_NAMES["map"]} took .*timeout=3 s'):
        apply(data, out, executor, BlockTask(str(notes), 'hang', (2, 2)), timeout=3, resume=True)
    assert go_on(data, serial, out, notes, 'map', executor, 'hang', timeout=30) == {'2-2'}
    assert_nothing_is_left(surroundings, out, serial('map').files)


def test_a_late_task_of_an_earlier_run_changes_no_byte(places, data, out, notes, tmp_path):
    executor = places('dask')
    client = executor.get_client()
    find_pids(executor, tmp_path / 'pids')
    with pytest.raises(TaskTimeoutError):
        apply(data, out, executor, BlockTask(str(notes), 'hang'), timeout=3)

    def count_running(dask_worker):
        return len(dask_worker.state.executing)

    def let_it_end(steps, total, desc):
        # It saves its result after ours was saved, and before ours is used.
        for step in steps:
            if step.block.index == (1, 1):
                assert sum(client.run(count_running).values()) >= 1
                heal(notes)
                assert wait_until(lambda: not sum(client.run(count_running).values()))
            yield step

    (tmp_path / 'one').mkdir()
    plain = BlockTask(str(tmp_path / 'one'), bias=7.0)
    found = apply(data, out, executor, plain, progress=let_it_end)
    (tmp_path / 'serial').mkdir()
    assert found == apply(data, tmp_path / 'serial', 'serial', plain)
    assert list_files(out) == ['out.tif']


@everywhere
def test_a_task_that_fails_twice(executor, data, serial, surroundings, out, notes):
    task = BlockTask(str(notes), 'fail_twice')
    assert apply(data, out, executor, task, max_retries=2) == serial('map').result
    assert count_notes(notes) == {**serial('map').calls, '1-1': 3, 'failed': 3}
    assert_nothing_is_left(surroundings, out, serial('map').files)


@everywhere
def test_a_task_that_always_fails(executor, data, serial, surroundings, out, notes):
    task = BlockTask(str(notes), 'fail', (2, 2))
    with pytest.raises(TaskError, match=f'^{TROUBLED_NAMES["map"]} failed: .*tried 3 times, at '
                       'last ValueError: no water here'):
        apply(data, out, executor, task, max_retries=2, resume=True)
    assert count_notes(notes)['2-2'] == 3
    again = go_on(data, serial, out, notes, 'map', executor, 'fail')
    assert '2-2' in again and len(again) <= 2
    assert_nothing_is_left(surroundings, out, serial('map').files)


# -- elsewhere, and not alone

@pytest.mark.parametrize('name', [*OPEN, 'segment'])
def test_relative_paths_where_workers_have_other_folders(outpost, data, serial, surroundings, out,
                                                         notes, monkeypatch, name):
    executor = outpost.connect()
    monkeypatch.chdir(out.parent)
    here, expected = Path(os.path.relpath(data)), serial(name).result
    if name == 'segment':
        found = cut(here, Path('out'), executor)
    else:
        run, make = OPEN[name]
        found = run(here, Path('out'), executor, make(str(notes)))
    executor.close()
    if name == 'predict':
        # The manifest tells of the relative paths.
        expected = predict(here, Path('serial'), 'serial', make(str(notes)))
    assert found == expected
    assert [list_files(home) for home in outpost.homes] == [[], []]
    assert_nothing_is_left(surroundings, out, serial(name).files)


def start_driver(kind, image, folder, executor, notes):
    """Start a program that segments an image."""
    return subprocess.Popen(
        [sys.executable, '-m', 'tests.faults.worker_tasks',
         *map(str, (kind, image, folder, executor, notes))], stderr=subprocess.PIPE, text=True)


def test_two_drivers_of_one_scheduler(outpost, data, serial, surroundings, out, notes, tmp_path):
    other = tmp_path / 'other'
    other.mkdir()

    def progress(steps, total, desc):
        for number, step in enumerate(steps):
            if number == 1:
                meet_driver(notes)
            yield step

    with start_driver('meets', data / 'image.tif', other, f'dask:{outpost.address}',
                      notes) as driver:
        executor = outpost.connect()
        found = cut(data, out, executor, progress=progress)
        executor.close()
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 0, errors
    assert found == (other / 'out.tif').read_bytes() == serial('segment').result
    assert_nothing_is_left(surroundings, out, ['out.tif'])
    assert_nothing_is_left(surroundings, other, ['out.tif'])


def test_what_a_killed_driver_leaves_is_swept(places, data, serial, surroundings, out, notes):
    with start_driver('dies', data / 'image.tif', out, 'processes:2', notes) as driver:
        driver.wait()
    assert driver.returncode == -signal.SIGKILL
    # There is something to be swept.
    assert list_files(out)
    assert cut(data, out, places('processes')) == serial('segment').result
    assert_nothing_is_left(surroundings, out, ['out.tif'])
