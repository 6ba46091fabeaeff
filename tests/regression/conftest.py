"""Builders that the regression tests share."""
import json
import subprocess
import sys
import textwrap
from contextlib import suppress

import kwarray
import numpy as np
import pytest

from cocoseg import CocoStitchingManager
from cocoseg.errors import CocosegError


@pytest.fixture
def make_dataset(tmp_path):
    """
    Return a function that builds a small dataset of images without pixels.

    With ``n_videos`` the images are dealt out in order, as frames of equally
    long videos. ``keys`` go into every image.
    """
    import kwcoco

    def make(n_images=1, dsize=(64, 64), n_videos=0, bundle='bundle', **keys):
        width, height = dsize
        videos = [{'id': n, 'name': f'video{n}', 'width': width, 'height': height}
                  for n in range(1, n_videos + 1)]
        images = []
        for index in range(n_images):
            img = {'id': index + 1, 'name': f'img{index + 1}', 'file_name': None,
                   'width': width, 'height': height, 'auxiliary': [], **keys}
            if videos:
                n_frames = -(-n_images // n_videos)
                img.update(video_id=index // n_frames + 1, frame_index=index % n_frames)
            images.append(img)
        dset = kwcoco.CocoDataset({'images': images, 'videos': videos,
                                   'annotations': [], 'categories': []})
        dset.fpath = str(tmp_path / bundle / 'out.kwcoco.json')
        return dset
    return make


@pytest.fixture
def make_manager():
    """Return a function that makes a manager, which is closed after the test."""
    managers = []

    def make(dset, chan_code='x', **options):
        options = {'short_code': 'pred', 'stitching_space': 'image',
                   'expected_minmax': (0, 1), **options}
        managers.append(CocoStitchingManager(dset, chan_code=chan_code, **options))
        return managers[-1]
    yield make
    for manager in managers:
        with suppress(CocosegError, RuntimeError):
            manager.close()


@pytest.fixture
def read():
    """Return a function that reads channels of an image back, NaN for nodata."""
    def read_back(dset, image_id, channels='x', space='image'):
        delayed = dset.coco_image(image_id).imdelay(channels, space=space, nodata_method='float')
        # An image that is one plain file loses its axis of one band.
        return kwarray.atleast_nd(delayed.finalize(), 3)
    return read_back


@pytest.fixture
def noise():
    """Return a function that makes the same random image for the same seed."""
    def make(seed=0, shape=(64, 64, 1)):
        return np.random.RandomState(seed).rand(*shape).astype(np.float32)
    return make


@pytest.fixture
def run_child(repo_root):
    """Return a function that runs code in another process, and reads its JSON."""
    def run(code, *args):
        result = subprocess.run(
            [sys.executable, '-c', textwrap.dedent(code), *map(str, args)], cwd=repo_root,
            capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr[-3000:]
        return json.loads(result.stdout.splitlines()[-1])
    return run
