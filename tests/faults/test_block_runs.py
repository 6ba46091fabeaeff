"""SIGKILL in a block run: going on gives the same bytes, with one worker and with two."""
import os
import random

import pytest

from .nursery import Victim

KINDS = ('map', 'components', 'watershed')


def read_output(folder):
    with open(os.path.join(folder, 'out.tif'), 'rb') as file:
        return file.read()


@pytest.fixture(scope='session')
def whole(nursery, tmp_path_factory):
    """Return a function that gives the bytes and the events of a run without a fault."""
    made = {}

    def get(kind):
        if kind not in made:
            folder = os.fspath(tmp_path_factory.mktemp(kind))
            events = nursery.run('run_blocks', folder=folder, kind=kind)
            # Nothing but the output stays.
            assert os.listdir(folder) == ['out.tif']
            made[kind] = read_output(folder), events
        return made[kind]
    return get


def kill_and_go_on(nursery, folder, kind, traps, executor):
    """Run until killed, with each trap in turn, then to the end; return its events."""
    n_done = 0
    for trap in traps:
        victim = nursery.start('run_blocks', folder=folder, kind=kind, trap=trap,
                               executor=executor)
        assert isinstance(victim, Victim)
        assert victim.join() in (0, -9), victim.read_log()
        # Nothing of the output is visible before it is whole.
        if victim.status == -9 and not os.path.exists(os.path.join(folder, 'out.tif')):
            names = os.listdir(folder)
            assert all(name.startswith('.') for name in names), names
        begun = [event for event in victim.events if event['kind'] == 'begin']
        assert begun and begun[0]['n_done'] >= n_done
        n_done = begun[0]['n_done']
    return nursery.run('run_blocks', folder=folder, kind=kind, executor=executor)


@pytest.mark.parametrize('executor', ['serial', 'threads:2'])
@pytest.mark.parametrize('kind', KINDS)
def test_killed_at_random_points(nursery, whole, tmp_path, kind, executor):
    expected, events = whole(kind)
    rng = random.Random(f'{kind} {executor}')
    counts = events['counts']['counts']
    for trial in range(3):
        folder = os.fspath(tmp_path / str(trial))
        os.makedirs(folder)
        point = rng.choice(['replace', 'replace', 'open', 'BlockStore.note'])
        traps = [{'point': point, 'when': rng.choice(['before', 'after']), 'hold': 0,
                  'nth': rng.randint(1, counts[point])} for _ in range(rng.randint(1, 2))]
        kill_and_go_on(nursery, folder, kind, traps, executor)
        assert read_output(folder) == expected
        assert os.listdir(folder) == ['out.tif']


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_done_is_not_done_again(nursery, whole, tmp_path, kind):
    _, events = whole(kind)
    n_notes = events['counts']['counts']['BlockStore.note']
    assert n_notes == events['end']['n_blocks']
    trap = {'point': 'BlockStore.note', 'when': 'after', 'nth': n_notes - 1, 'hold': 0}
    events = kill_and_go_on(nursery, os.fspath(tmp_path), kind, [trap], 'serial')
    assert events['end']['n_resumed'] == n_notes - 1
    assert events['end']['n_called'] == 1
