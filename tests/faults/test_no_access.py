"""A folder that takes no files: a typed error at once, and all goes on when it does."""
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from .test_full_disk import list_events

NOBODY = 65534


@pytest.fixture
def open_folder():
    """A folder that any user can reach; it is that of nobody if we are root."""
    folder = Path(tempfile.mkdtemp(prefix='cocoseg-no-access-'))
    folder.chmod(0o755)
    if os.geteuid() == 0:
        os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def check(victim):
    """Nothing is made or lost without access, and all is well with it."""
    events = victim.finish()
    if 'skip' in events:
        pytest.skip(events['skip']['reason'])
    assert events['made']['error']['kind'] == 'AssetWriteError'
    assert '_assets' in events['made']['error']['path']
    starved, = list_events(victim.events, 'starved')
    assert starved['first']['kind'] == 'AssetWriteError'
    assert starved['first']['image_id'] == 1 and starved['first']['path'].endswith('.tif')
    assert starved['after'] == {'visible': [], 'damaged': [], 'leftovers': [], 'registered': 0}
    assert starved['again'] is None and starved['close'] is None
    assert len(starved['end']['visible']) == 1 and starved['end']['registered'] == 1
    assert starved['end']['damaged'] == [] and starved['end']['leftovers'] == []
    assert events['dumped']['error']['is_os_error'] and events['dumped']['leftovers'] == []
    assert events['again']['error'] is None and events['again']['is_done']


@pytest.mark.parametrize('early, declared', [(False, True), (True, True), (True, False)])
def test_a_folder_without_the_right_to_write(nursery, open_folder, tmp_path, early, declared):
    # Nobody may have no place to keep kernels: they are compiled before.
    nursery.run('starve_at_limits', folder=str(tmp_path), limits=[], way='finalize', early=early,
                declared=declared)
    check(nursery.start('deny_by_mode', folder=str(open_folder), early=early, declared=declared))


@pytest.mark.parametrize('early, declared', [(False, True), (True, True), (True, False)])
def test_a_disk_that_is_mounted_read_only(nursery, tmp_path, early, declared):
    check(nursery.start('deny_by_mount', folder=str(tmp_path / 'disk'), mounts=True, early=early,
                        declared=declared))
