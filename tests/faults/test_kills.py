"""SIGKILL at any moment: what is visible is whole, and going on gives the same bytes."""
import json
import random

import pytest

from .checks import MANIFEST, check_cut, list_named
from .trials import Trial, choose_trap, go_on, kill_once, run_trial


@pytest.fixture
def try_kills(nursery, programs, undisturbed, tmp_path):
    """Return a function that runs one trial, and checks all that it left."""
    def run(program, *kills, **options):
        trial = Trial(program, list(kills), options=programs[program], **options)
        stages, findings = run_trial(nursery, trial, tmp_path / 'bundle',
                                     undisturbed(program)[0])
        assert findings == [], f'{trial}: {findings}'
        return stages
    return run


@pytest.mark.parametrize('program, delay', [
    ('predict', 0.0), ('predict', 0.13), ('predict', 0.31), ('manage', 0.17), ('manage', 0.43)])
def test_killed_at_some_moment(try_kills, program, delay):
    """No call of ours is needed for it to be the wrong moment."""
    assert try_kills(program, {'delay': delay}) in ([], ['at any moment'])


@pytest.mark.parametrize('program, point, when, nth', [
    ('predict', 'fsync', 'before', 1),  # the first asset is not flushed
    ('predict', 'replace', 'before', 2),  # flushed and verified, without a name
    ('predict', 'Journal.append', 'before', 2),  # with a name, and nobody knows
    ('predict', 'write', 'half', 1),  # the journal knows half of it
    ('predict', 'Manifest.commit', 'before', 3),  # noted, not registered
    ('predict', 'Manifest.dump', 'before', 1),  # all done, nothing saved
    ('predict', 'replace', 'before', -1),  # the saved manifest has no name yet
    ('manage', 'Manifest.dump', 'after', 1),  # saved in the middle, others are being written
    ('manage', 'replace', 'after', 5)])  # one of the three assets of an image has its name
def test_killed_at_a_precise_moment(try_kills, undisturbed, program, point, when, nth):
    """Between any two steps of a commit there is a moment to die."""
    if nth < 0:
        nth += 1 + undisturbed(program)[1]['counts']['counts'][point]
    stages = try_kills(program, {'point': point, 'when': when, 'nth': nth, 'hold': 0})
    assert stages == [f'{when} {point}']


def test_killed_again_and_again(try_kills, undisturbed):
    """Who takes over a killed run can be killed too."""
    rng = random.Random(0)
    counts = undisturbed('predict')[1]['counts']['counts']
    kills = [{'delay': 0.3}, choose_trap(rng, counts), {'delay': 0.15}]
    assert 'at any moment' in try_kills('predict', *kills)


def test_killed_while_a_whole_bundle_is_made_anew(try_kills):
    """A run that starts afresh replaces files; old and new ones are whole."""
    assert try_kills('predict', {'delay': 0.3}, again=True) == ['at any moment']


@pytest.mark.parametrize('point, when, nth', [
    ('Journal.append', 'before', 3), ('CocoDataset.dump', 'before', 2),
    ('CocoDataset.dump', 'after', 2)])
def test_killed_between_two_dumps(nursery, programs, undisturbed, tmp_path, point, when, nth):
    """A manifest that is saved while images are finished names only what is there."""
    trial = Trial('predict', [], options={**programs['predict'], 'dump_interval': 0})
    kill = {'point': point, 'when': when, 'nth': nth}
    assert kill_once(nursery, trial, kill, tmp_path, resume=False)
    assert check_cut(tmp_path) == []
    assert len(list_named(json.loads((tmp_path / MANIFEST).read_text()))) >= 1
    assert go_on(nursery, trial, tmp_path, undisturbed('predict')[0], 1) == []
