"""
Builders and checks that tests of different folders share.

Test files import it as ``from ..builders import …``.
"""
import copy
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import CocoStitchingManager
from cocoseg.errors import CocosegError

LEFT, RIGHT = (slice(0, 64), slice(0, 32)), (slice(0, 64), slice(32, 64))
GOOD = np.random.RandomState(0).rand(64, 64, 2)


def make_two_images(folder):
    """Return a dataset of two images of 64 x 64 without pixels."""
    images = [{'id': n, 'name': f'img{n}', 'file_name': None, 'width': 64, 'height': 64,
               'auxiliary': []} for n in (1, 2)]
    dset = kwcoco.CocoDataset({'images': images, 'videos': [], 'annotations': [],
                               'categories': []})
    dset.fpath = str(folder / 'out.kwcoco.json')
    return dset


@contextmanager
def making_managers(dset):
    """Yield a function that makes managers of two channels; close them at the end."""
    managers = []

    def make(**options):
        managers.append(CocoStitchingManager(dset, **{
            'short_code': 'pred', 'chan_code': 'x|y', 'stitching_space': 'image',
            'expected_minmax': (0, 1), **options}))
        return managers[-1]
    yield make
    for manager in managers:
        with suppress(CocosegError):
            manager.close()


def put_in_state(manager, state):
    """Bring image 1 into a state; return the windows that are still to come."""
    if state == 'untouched':
        return [LEFT, RIGHT]
    if state == 'declared':
        manager.expect_windows(1, [LEFT, RIGHT])
    manager.accumulate_image(1, LEFT, GOOD[LEFT])
    return [RIGHT]


def take_picture(manager):
    """Return all that bad input must leave as it is."""
    folder = Path(manager.prob_dpath)
    return (copy.deepcopy(manager.result_dataset.dataset), dict(manager.patch_counts),
            manager.managed_image_ids(), manager.ready_image_ids(), manager.seen_image_ids,
            manager.image_state(1), manager.image_state(2), manager.pending_windows(1),
            sorted(path.name for path in folder.iterdir() if path.suffix != '.jsonl'))


@contextmanager
def refuse(manager, error, match=None):
    """Expect an error of ours, with a message that helps, and no change."""
    before = take_picture(manager)
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert isinstance(caught.value, CocosegError)
    assert len(str(caught.value)) > 20
    assert take_picture(manager) == before


def finish_right(manager, todo, image_id=1):
    """Finish an image, and check that it holds what was sent and nothing else."""
    for place in todo:
        manager.accumulate_image(image_id, place, GOOD[place])
    manager.finalize_image(image_id)
    img = manager.result_dataset.imgs[image_id]
    assert len(img['auxiliary']) == 1
    found = manager.result_dataset.coco_image(image_id).imdelay('x|y', space='image').finalize()
    assert np.allclose(found, GOOD, atol=1e-4)
    assert take_picture(manager)[-1] == [Path(img['auxiliary'][0]['file_name']).name]


def watch_files(monkeypatch):
    """Return a list to which every file of ours without a name adds (kind, folder)."""
    made, make_file = [], tempfile.TemporaryFile

    def watch(*args, **options):
        prefix = options.get('prefix') or ''
        if prefix.startswith('cocoseg-'):
            made.append((prefix[len('cocoseg-'):].rstrip('-'),
                         str(options.get('dir') or tempfile.gettempdir())))
        return make_file(*args, **options)
    monkeypatch.setattr(tempfile, 'TemporaryFile', watch)
    return made
