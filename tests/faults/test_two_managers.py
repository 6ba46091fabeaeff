"""Two managers on one bundle: of the same settings only one, of other channels both."""
import json
import shutil

import pytest

from .checks import (MANIFEST, check_cut, check_whole, find_differences, find_leftovers,
                     list_assets, list_named)
from .trials import PACE


def test_the_second_process_is_refused(nursery, programs, undisturbed, tmp_path):
    """Its journal would mix with ours; the first does not notice."""
    options = {'folder': str(tmp_path), **programs['predict']}
    first = nursery.start('predict', trap={'point': 'fsync', 'nth': 2, 'when': 'before',
                                           'wait': True}, **options)
    first.wait_for('trap')
    for resume in (True, False):
        second = nursery.start('predict', resume=resume, **options)
        assert second.join() == 1
        assert 'BundleBusyError' in second.read_log()
    first.say()
    first.finish()
    assert check_whole(tmp_path, undisturbed('predict')[0]) == []


def test_a_killed_process_keeps_nobody_out(nursery, programs, undisturbed, tmp_path):
    """Its lock ends with it, also while another waits to take over."""
    options = {'folder': str(tmp_path), **programs['predict']}
    first = nursery.start('predict', pace=PACE, trap={
        'point': 'Journal.append', 'nth': 2, 'when': 'before'}, **options)
    assert first.join() == -9
    nursery.run('predict', resume=True, **options)
    assert check_whole(tmp_path, undisturbed('predict')[0]) == []


def test_processes_of_other_channels_work_at_a_time(nursery, programs, undisturbed, tmp_path):
    """They share the folder of assets; each saves a manifest of its own."""
    other = {**programs['predict'], 'out_channels': 'u|v', 'name': 'other.kwcoco.json'}
    alone, together = tmp_path / 'alone', tmp_path / 'together'
    shutil.copytree(undisturbed('predict')[0], alone)
    nursery.run('predict', folder=str(alone), **other)
    victims = [nursery.start('predict', folder=str(together), pace=PACE, **options)
               for options in (programs['predict'], other)]
    for victim in victims:
        victim.finish()
    assert len(list_assets(together)) == 8
    assert check_cut(together) == []
    for name in (MANIFEST, other['name']):
        assert find_differences(together, alone, name) == []
    (together / other['name']).unlink()
    assert find_leftovers(together) == []


def test_one_of_two_processes_is_killed(nursery, programs, undisturbed, tmp_path):
    """The other does not notice; who comes next does not sweep away what it is writing."""
    other = {**programs['predict'], 'out_channels': 'u|v', 'name': 'other.kwcoco.json'}
    alone, folder = tmp_path / 'alone', tmp_path / 'together'
    nursery.run('predict', folder=str(alone), **other)
    trap = {'point': 'replace', 'nth': 1, 'when': 'before'}
    survivor = nursery.start('predict', folder=str(folder), trap={**trap, 'wait': True}, **other)
    survivor.wait_for('trap')
    victim = nursery.start('predict', folder=str(folder), trap=trap, **programs['predict'])
    assert victim.join() == -9
    assert len(list(folder.rglob('.*.tmp'))) == 2
    nursery.run('predict', folder=str(folder), resume=True, **programs['predict'])
    assert len(list(folder.rglob('.*.tmp'))) == 1
    survivor.say()
    survivor.finish()
    reference = undisturbed('predict')[0]
    for path in list_assets(reference) + list_assets(alone):
        root = reference if path.is_relative_to(reference) else alone
        assert (folder / path.relative_to(root)).read_bytes() == path.read_bytes()
    assert len(list_assets(folder)) == 8
    (folder / other['name']).unlink()
    assert find_leftovers(folder) == [] and check_cut(folder) == []


@pytest.fixture
def share(nursery, tmp_path):
    """Return a function that runs managers of some channels on one dataset."""
    def run(*codes, **options):
        folder = tmp_path / '-'.join(codes).replace('|', '')
        events = nursery.run('share', folder=str(folder), codes=codes, **options)
        manifest = json.loads((folder / MANIFEST).read_text())
        named = {(image_id, asset['channels']): asset for image_id, asset in list_named(manifest)}
        content = {path.name: path.read_bytes() for path in list_assets(folder)}
        assert check_cut(folder) == [] and find_leftovers(folder) == []
        return events['end'], named, content
    return run


def test_managers_of_one_process_share_dataset_and_queue(share):
    """What they make together is what each makes alone."""
    end, named, content = share('x|y', 'u|v')
    assert end['errors'] == {'x|y': [], 'u|v': []}
    assert set(map(tuple, end['done'].values())) == {(1, 2, 3, 4, 5, 6)}
    _, named_one, content_one = share('x|y')
    _, named_two, content_two = share('u|v')
    assert named == {**named_one, **named_two} and len(named) == 12
    assert content == {**content_one, **content_two} and len(content) == 12


def test_the_failure_of_one_manager_is_not_that_of_another(share):
    end, named, content = share('x|y', 'u|v', with_obstacle=True)
    # It is told at once, and again at the end.
    assert set(end['errors']['x|y']) == {2} and end['errors']['u|v'] == []
    assert end['done'] == {'x|y': [1, 3, 4, 5, 6], 'u|v': [1, 2, 3, 4, 5, 6]}
    assert (2, 'x|y') not in named and len(named) == len(content) == 11
