"""A codec that fails: a typed error, nothing visible, and no tile is lost."""
import errno
import os
import threading
from pathlib import Path

import imagecodecs
import pytest

from cocoseg import CocoStitchingManager
from cocoseg.errors import AssetWriteError

from .victims import SHAPE, make_blank_dataset, make_grid, make_pixels


class BrokenCodec:
    """Compresses well up to a call; then it fails so many times."""

    def __init__(self, encode, error, first, n_failures):
        self._encode, self._error, self._lock = encode, error, threading.Lock()
        self.first, self.n_left, self.n_calls = first, n_failures, 0

    def __call__(self, *args, **options):
        with self._lock:
            self.n_calls += 1
            fails = self.n_calls >= self.first and self.n_left > 0
            self.n_left -= fails
        if fails:
            raise self._error
        return self._encode(*args, **options)


@pytest.fixture
def break_codec(monkeypatch):
    """Return a function that breaks the codec, and returns it."""
    encode = imagecodecs.zstd_encode

    def replace(error=None, first=1, n_failures=0):
        codec = BrokenCodec(encode, error, first, n_failures)
        monkeypatch.setattr(imagecodecs, 'zstd_encode', codec)
        return codec
    return replace


def stitch(folder, declared, finish):
    """Stitch image 1 of a new bundle, and return the bytes of its asset."""
    dset, pixels = make_blank_dataset(str(folder), 1), make_pixels(1)
    with CocoStitchingManager(dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1),
                              prob_blocksize=64) as manager:
        if declared:
            manager.expect_windows(1, make_grid())
        for window in make_grid():
            inside = window.clip(SHAPE)
            manager.accumulate_image(1, inside, pixels[inside.slices])
        finish(manager)
        assert manager.is_done(1) and len(dset.imgs[1]['auxiliary']) == 1
    path, = [path for path in Path(manager.prob_dpath).iterdir() if path.name[0] != '.']
    return path.read_bytes()


def try_to_finish(manager, way):
    """Write image 1; return True if that worked, else check the error and what is left."""
    try:
        if way == 'finalize':
            manager.finalize_image(1)
        else:
            manager.submit_finalize_image(1)
            manager.flush_images()
        return True
    except AssetWriteError as ex:
        assert ex.image_id == 1 and ex.path.endswith('.tif')
    assert os.listdir(manager.prob_dpath) == []
    assert manager.result_dataset.imgs[1]['auxiliary'] == []
    assert manager.managed_image_ids() == [1] and not manager.is_done(1)
    return False


@pytest.mark.parametrize('declared', [True, False])
@pytest.mark.parametrize('way', ['finalize', 'submit'])
@pytest.mark.parametrize('error', [
    RuntimeError('codec'), MemoryError(), OSError(errno.EIO, 'codec'), ValueError('codec')],
    ids=repr)
def test_a_codec_that_fails_until_it_is_mended(tmp_path, break_codec, declared, way, error):
    healthy = break_codec()
    whole = stitch(tmp_path / 'whole', declared, lambda manager: try_to_finish(manager, way))
    assert healthy.n_calls > 9, 'each tile is compressed by this codec'

    def finish(manager):
        assert not try_to_finish(manager, way)
        assert not try_to_finish(manager, way)
        codec.n_left = 0
        assert try_to_finish(manager, way)
    codec = break_codec(error, 5, 10 ** 6)
    assert stitch(tmp_path / 'broken', declared, finish) == whole


@pytest.mark.parametrize('declared', [True, False])
def test_a_codec_that_fails_for_one_tile(tmp_path, break_codec, declared):
    """Whoever comes next tries that tile again; at the latest the caller does."""
    healthy = break_codec()
    whole = stitch(tmp_path / 'whole', declared, lambda manager: try_to_finish(manager, 'submit'))

    def finish(manager):
        assert try_to_finish(manager, 'submit') or try_to_finish(manager, 'submit')
    for number in range(1, healthy.n_calls + 1):
        codec = break_codec(RuntimeError('codec'), number, 1)
        assert stitch(tmp_path / str(number), declared, finish) == whole
        assert codec.n_left == 0 and codec.n_calls > healthy.n_calls
