"""
Builders and checks that tests of different folders share.

Test files import it as ``from ..builders import …``.
"""
import copy
import errno
import functools
import tempfile
import threading
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path

import kwcoco
import numpy as np
import pytest

from cocoseg import CocoStitchingManager
from cocoseg.coco.sinks import EncoderSink, SpoolSink
from cocoseg.errors import CocosegError
from cocoseg.io import pyramid as pyramid_module
from cocoseg.io.levels import MARK
from cocoseg.io.spool import BlockSpool
from cocoseg.io.tile_codec import TileCodec
from cocoseg.io.tile_spool import TileSpool

LEFT, RIGHT = (slice(0, 64), slice(0, 32)), (slice(0, 64), slice(32, 64))
GOOD = np.random.RandomState(0).rand(64, 64, 2)
# A rotated pole, as weather models use it: GeoTIFF has no keys for it.
ROTATED = (
    'GEOGCRS["rotated",BASEGEOGCRS["WGS 84",DATUM["World Geodetic System 1984",'
    'ELLIPSOID["WGS 84",6378137,298.257223563]],PRIMEM["Greenwich",0]],'
    'DERIVINGCONVERSION["Rotated pole",METHOD["PROJ ob_tran o_proj=longlat"],'
    'PARAMETER["o_lon_p",-162,ANGLEUNIT["degree",0.0174532925199433]],'
    'PARAMETER["o_lat_p",39.25,ANGLEUNIT["degree",0.0174532925199433]],'
    'PARAMETER["lon_0",180,ANGLEUNIT["degree",0.0174532925199433]]],'
    'CS[ellipsoidal,2],AXIS["longitude",east,ANGLEUNIT["degree",0.0174532925199433]],'
    'AXIS["latitude",north,ANGLEUNIT["degree",0.0174532925199433]]]')


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


def watch_tile_files(monkeypatch):
    """Return a list to which every file of compressed tiles adds its folder."""
    made, make_file = [], tempfile.TemporaryFile

    def watch(*args, **options):
        if (options.get('prefix') or '').startswith('.cocoseg-'):
            made.append(str(options['dir']))
        return make_file(*args, **options)
    monkeypatch.setattr(tempfile, 'TemporaryFile', watch)
    return made


def spill_tiles(monkeypatch, ram_nbytes=0):
    """Let compressed tiles wait in a file from the first, or from so many bytes."""
    monkeypatch.setattr(pyramid_module, 'TileSpool',
                        functools.partial(TileSpool, ram_nbytes=ram_nbytes))


def get_encoders(manager, image_id=1):
    """Return the encoders of an image: of its mean, then of its layers."""
    sinks = manager._table.get(image_id).pixels._sinks
    return [sink.encoder for sink in sinks if isinstance(sink, EncoderSink)]


def wait_for_tiles(manager, image_id=1):
    """Return when no tile of an image is being compressed any more."""
    for encoder in get_encoders(manager, image_id):
        if encoder is not None:
            encoder._wait()


def count_stored(encoder):
    """Return the bytes of the compressed tiles of an encoder, with their marks."""
    return sum(int(level.counts.sum()) + 2 * MARK * np.count_nonzero(level.counts)
               for level in encoder.levels)


def count_waiting(encoder):
    """Return the bytes of the halves that wait for a neighbour, by what is stored."""
    nbytes = 0
    for level, above in zip(encoder.levels, encoder.levels[1:]):
        for row, column in np.argwhere(level.counts[0] > 0).tolist():
            if not above.counts[0, row // 2, column // 2]:
                height, width = level.grid.get((row, column)).core.shape
                nbytes += -(-height // 2) * -(-width // 2)
    return nbytes * encoder.shape[2] * encoder.dtype.itemsize


class InlineExecutor:
    """Runs what it gets at once, so that a test knows when."""

    def submit(self, work, *args):
        future = Future()
        future.set_result(work(*args))
        return future

    def shutdown(self, wait=True):
        pass


class StoreFaults:
    """
    Watches finished blocks on their way to where they wait, and lets some fail.

    Knows both ways of the manager: the blocks that wait as they are, and those
    that are compressed at once by other threads.

    Attributes:
        taken (list[Window]): blocks that a sink took.
        n_failures (float): so many of the next attempts fail; inf: all.
        place (str): 'disk' or 'codec': what fails.
        only (Callable | None): told the spool or codec; says whether it fails.
        hook (Callable | None): called with each window before it is taken.
        codec_hook (Callable | None): called before each tile is compressed.
        n_compressed (int): tiles that were given to a codec.
    """

    def __init__(self, monkeypatch):
        self.taken, self.n_failures, self.place, self.n_compressed = [], 0, 'disk', 0
        self.only = self.hook = self.codec_hook = None
        self._lock = threading.Lock()
        for kind in (EncoderSink, SpoolSink):
            monkeypatch.setattr(kind, '_store', self._watch(kind._store))
        for kind, name in ((BlockSpool, 'write_block'), (TileSpool, 'append')):
            monkeypatch.setattr(kind, name, self._break('disk', getattr(kind, name)))
        monkeypatch.setattr(TileCodec, 'iter_payloads', self._compress(
            self._break('codec', TileCodec.iter_payloads)))

    def _watch(self, real):
        def store(sink, window, block):
            if self.hook is not None:
                self.hook(window)
            real(sink, window, block)
            self.taken.append(window)
        return store

    def _break(self, place, real):
        def attempt(owner, *args):
            with self._lock:
                fails = (self.place == place and self.n_failures > 0
                         and (self.only is None or self.only(owner)))
                self.n_failures -= fails
            if fails:
                raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
            return real(owner, *args)
        return attempt

    def _compress(self, real):
        def iter_payloads(codec, tile):
            if self.codec_hook is not None:
                self.codec_hook()
            with self._lock:
                self.n_compressed += 1
            return real(codec, tile)
        return iter_payloads


@contextmanager
def fail_times(monkeypatch, owner, name, n_times, make=None):
    """Let a function fail for the first times, after what ``make`` does with its arguments."""
    real, left = getattr(owner, name), [n_times]

    def attempt(*args, **options):
        if not left[0]:
            return real(*args, **options)
        left[0] -= 1
        if make is not None:
            make(*args, **options)
        raise OSError(errno.ENOSPC, 'No space left on device (simulated)')
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, attempt)
        yield left
