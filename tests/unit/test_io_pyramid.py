"""The encoder of pyramids: threads, failures that pass, and memory."""
import errno
import gc
import itertools
import os
import random
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import imagecodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg import Window
from cocoseg.errors import CoverageError, ImageClosedError, WindowShapeError
from cocoseg.io import pyramid
from cocoseg.io.codecs import Codec
from cocoseg.io.overviews import reduce_by_two
from cocoseg.io.pyramid import PyramidEncoder
from cocoseg.io.tile_codec import TileCodec
from cocoseg.io.tile_spool import TileSpool
from cocoseg.protocols import BlockSink

SIDE = 64
ZSTD = Codec('ZSTD', 1)
SHAPE = (300, 470, 2)
IMAGE = np.random.default_rng(0).integers(0, 99, SHAPE).astype(np.int16)
TILE_NBYTES = SIDE * SIDE * 2 * 2


@pytest.fixture
def make(tmp_path):
    """Return a function that makes an encoder, closed at the end with its threads."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        encoders, pools = [], []

        def make_encoder(shape=SHAPE, dtype='int16', codec=ZSTD, threads=0, **options):
            if threads:
                pools.append(ThreadPoolExecutor(threads))
                options.update(executor=pools[-1], num_threads=threads)
            encoders.append(PyramidEncoder(shape, dtype, codec, folder, **{
                'blocksize': SIDE, **options}))
            return encoders[-1]
        yield make_encoder
        # Threads that wait for ever must fail a test, not stop all of them.
        run_threads([encoder.close for encoder in encoders], seconds=5)
        for pool in pools:
            pool.shutdown()
        assert os.listdir(folder) == []


def give(encoder, windows, image=IMAGE):
    """Write windows of an image."""
    for window in windows:
        encoder.write_block(window, image[window.slices])


def cut(shape, height, width):
    """Return a partition of an image into windows."""
    return [Window(y, x, min(y + height, shape[0]), min(x + width, shape[1]))
            for y in range(0, shape[0], height) for x in range(0, shape[1], width)]


def find_runs(mask):
    """Return windows of one row each over all pixels of a mask."""
    windows = []
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(row, prepend=False, append=False)).tolist()
        windows += [Window(y, x0, y + 1, x1) for x0, x1 in zip(edges[::2], edges[1::2])]
    return windows


TILES = cut(SHAPE, SIDE, SIDE)


def take_result(encoder):
    """Return the sizes of all tiles, and their bytes in the order of a file."""
    with tempfile.TemporaryFile() as file:
        encoder.copy_tiles(file.fileno())
        content = os.pread(file.fileno(), 1 << 28, 0)
    return [level.counts.tolist() for level in encoder.levels], content


_EXPECTED = {}


def expect(image=IMAGE, **options):
    """Return the result of an encoder that nobody disturbs."""
    key = (id(image), *sorted(options.items()))
    if key not in _EXPECTED:
        with tempfile.TemporaryDirectory() as folder, closing(PyramidEncoder(
                image.shape, image.dtype, folder=folder, **{
                    'codec': ZSTD, 'blocksize': SIDE, **options})) as encoder:
            encoder.write_image(image)
            encoder.finish()
            # The image is kept, so that no other one gets its id.
            _EXPECTED[key] = (image, take_result(encoder))
    return _EXPECTED[key][1]


def no_space():
    return OSError(errno.ENOSPC, 'No space left on device (simulated)')


@contextmanager
def spool_without_room(should_fail):
    """Let the spool refuse what ``should_fail(number of the call, bytes)`` says."""
    append, numbers = TileSpool.append, itertools.count()

    def append_or_fail(spool, parts):
        if should_fail(next(numbers), sum(memoryview(part).nbytes for part in parts)):
            raise no_space()
        return append(spool, parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileSpool, 'append', append_or_fail)
        yield


@contextmanager
def codec_that_fails(should_fail, error=MemoryError):
    """Let the codec refuse tiles for which ``should_fail(tile)`` is true."""
    iter_payloads = TileCodec.iter_payloads

    def iter_or_fail(codec, tile):
        if should_fail(tile):
            raise error('no memory (simulated)')
        yield from iter_payloads(codec, tile)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TileCodec, 'iter_payloads', iter_or_fail)
        yield


def is_tile(index):
    """Return a test for the pixels of one tile of IMAGE."""
    row, column = index
    wanted = IMAGE[row * SIDE:(row + 1) * SIDE, column * SIDE:(column + 1) * SIDE]
    return lambda tile: np.array_equal(tile, wanted)


def persist(call, errors=(OSError, MemoryError), times=500):
    """Call again and again until it succeeds; return how often it failed."""
    for number in range(times):
        try:
            call()
            return number
        except errors as ex:
            assert 'simulated' in str(ex)
    raise AssertionError(f'it failed {times} times')


def run_threads(works, seconds=60):
    """Run functions in threads of their own; raise the first error."""
    errors = []

    def run(work):
        try:
            work()
        except BaseException as ex:
            errors.append(ex)
    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
    assert not any(thread.is_alive() for thread in threads), 'threads wait for ever'
    if errors:
        raise errors[0]


# ---- what comes out -------------------------------------------------------------

def test_tiles_are_those_of_each_level(make):
    """By hand: each tile of each level, compressed alone."""
    encoder = make()
    assert isinstance(encoder, BlockSink)
    give(encoder, TILES)
    encoder.finish()
    _, content = take_result(encoder)
    levels = [IMAGE]
    while max(levels[-1].shape[:2]) > SIDE:
        levels.append(reduce_by_two(levels[-1]))
    assert [level.shape for level in encoder.levels] == [level.shape[:2] for level in levels]
    codec, at = TileCodec(ZSTD, 'int16', 2, SIDE), 0
    for pixels in reversed(levels):
        for window in cut(pixels.shape, SIDE, SIDE):
            (payload,) = map(bytes, codec.iter_payloads(
                np.ascontiguousarray(pixels[window.slices])))
            piece = len(payload).to_bytes(4, 'little') + payload + payload[-4:]
            assert content[at:at + len(piece)] == piece
            at += len(piece)
    assert at == len(content)
    assert imagecodecs.zstd_decode(payload)


@pytest.mark.parametrize('threads', [0, 3])
@pytest.mark.parametrize('waiting', [0, 1 << 30])
@pytest.mark.parametrize('ram', [0, 1 << 26])
@pytest.mark.parametrize('seed', [0, 1])
def test_quarters_may_wait_in_ram_or_in_the_spool(make, monkeypatch, threads, waiting, ram, seed):
    """Also in a spool that is still in RAM itself, as that of an empty image is."""
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', waiting)
    encoder = make(threads=threads)
    encoder._spool._ram_nbytes = ram
    order = list(TILES)
    random.Random(seed).shuffle(order)
    give(encoder, order)
    encoder.finish()
    assert take_result(encoder) == expect()


def test_an_empty_image_of_many_columns_may_wait_in_the_spool(make):
    """Its tiles are so small that the spool stays in RAM while quarters fill it."""
    width = 2 * SIDE * (1 + pyramid._WAITING_NBYTES // (SIDE * SIDE * 8 * 60 // 4) // 2)
    shape = (2 * SIDE, width, 60)
    encoder, block = make(shape, 'float64', overviews='nearest'), np.zeros((SIDE, SIDE, 60))
    for window in cut(shape, SIDE, SIDE):
        encoder.write_block(window, block)
    encoder.finish()
    assert len(set(encoder.levels[1].counts.ravel().tolist())) == 1


@pytest.mark.parametrize('interleave', ['pixel', 'band'])
@pytest.mark.parametrize('overviews', ['average', 'mode', 'nearest', None])
def test_blocks_that_straddle_tiles_come_from_many_threads(make, interleave, overviews):
    options = {'interleave': interleave, 'overviews': overviews}
    encoder = make(threads=2, **options)
    windows = cut(SHAPE, 37, 91)
    random.Random(1).shuffle(windows)
    run_threads([lambda k=k: give(encoder, windows[k::5]) for k in range(5)])
    encoder.finish()
    assert take_result(encoder) == expect(**options)


def test_single_pixels_make_a_tile(make):
    shape, rng = (70, 3, 1), random.Random(0)
    image = np.arange(210, dtype=np.int16).reshape(shape)
    encoder, windows = make(shape), cut(shape, 1, 1)
    rng.shuffle(windows)
    run_threads([lambda k=k: give(encoder, windows[k::4], image) for k in range(4)])
    encoder.finish()
    assert take_result(encoder) == expect(image)


def test_a_block_is_copied(make):
    encoder, block = make(), IMAGE.copy()
    for window in cut(SHAPE, 50, 470):
        part = block[window.slices]
        encoder.write_block(window, part)
        part[...] = -1
    encoder.finish()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('change', [
    lambda block: block.astype('>i2'), np.asfortranarray, lambda block: block[::-1][::-1]])
def test_blocks_in_any_memory_layout(make, change):
    encoder = make()
    for window in cut(SHAPE, 50, 100):
        block = change(IMAGE[window.slices].copy())
        block.flags.writeable = False
        encoder.write_block(window, block)
    encoder.finish()
    assert take_result(encoder) == expect()


@given(data=st.data())
@settings(max_examples=30)
def test_any_calls_equal_a_model_of_pixels(data):
    """Windows at random, right and wrong ones: each is taken or refused as a whole."""
    shape = (data.draw(st.integers(1, 150)), data.draw(st.integers(1, 150)), 1)
    image = np.arange(shape[0] * shape[1], dtype=np.int32).reshape(shape)
    covered = np.zeros(shape[:2], bool)
    with tempfile.TemporaryDirectory() as folder, closing(PyramidEncoder(
            shape, 'int32', Codec('NONE'), folder, blocksize=SIDE)) as encoder:
        for _ in range(data.draw(st.integers(0, 8))):
            edges = [sorted((data.draw(st.integers(0, size)), data.draw(st.integers(0, size))))
                     for size in shape[:2]]
            window = Window(edges[0][0], edges[1][0], edges[0][1], edges[1][1])
            if window.is_empty or covered[window.slices].any():
                with pytest.raises(CoverageError):
                    encoder.write_block(window, image[window.slices])
            else:
                encoder.write_block(window, image[window.slices])
                covered[window.slices] = True
        if not covered.all():
            with pytest.raises(CoverageError, match='did not come'):
                encoder.finish()
            give(encoder, find_runs(~covered), image)
        encoder.finish()
        assert take_result(encoder) == expect(image, codec=Codec('NONE'))


# ---- blocks that are refused ------------------------------------------------------

def test_an_overlap_takes_nothing(make):
    encoder = make()
    give(encoder, [Window(0, 0, 64, 64), Window(64, 0, 100, 30), Window(290, 460, 300, 470)])
    before = encoder.nbytes
    for window in (
            Window(0, 0, 64, 64), Window(10, 10, 11, 11),   # with a whole tile
            Window(63, 63, 70, 70), Window(99, 29, 100, 31),  # with a corner of each
            Window(64, 64, 300, 470), Window(0, 64, 300, 470),  # with the last of many tiles
            Window(0, 0, 300, 470)):
        with pytest.raises(CoverageError, match='written before'):
            encoder.write_block(window, np.full((*window.shape, 2), -1, np.int16))
        assert encoder.nbytes == before
    rest = [Window(0, 64, 64, 470), Window(64, 30, 100, 470), Window(100, 0, 290, 470),
            Window(290, 0, 300, 460)]
    give(encoder, rest)
    encoder.finish()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('window, block, error', [
    (Window(0, 0, 8, 8), np.zeros((8, 8, 1), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 9, 2), 'i2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8, 2), 'u2'), WindowShapeError),
    (Window(0, 0, 8, 8), np.zeros((8, 8, 2), 'f4'), WindowShapeError),
    (Window(-1, 0, 7, 8), np.zeros((8, 8, 2), 'i2'), CoverageError),
    (Window(296, 0, 304, 8), np.zeros((8, 8, 2), 'i2'), CoverageError),
    (Window(0, 463, 8, 471), np.zeros((8, 8, 2), 'i2'), CoverageError),
    (Window(4, 4, 4, 9), np.zeros((0, 5, 2), 'i2'), CoverageError)])
def test_what_does_not_fit_takes_nothing(make, window, block, error):
    encoder = make()
    with pytest.raises(error, match='y='):
        encoder.write_block(window, block)
    assert encoder.nbytes == 0
    give(encoder, TILES)
    encoder.finish()
    assert take_result(encoder) == expect()


def test_of_two_threads_with_one_window_one_is_refused(make):
    encoder, refused = make(), []
    windows = cut(SHAPE, 40, 100)

    def work():
        for window in windows:
            try:
                encoder.write_block(window, IMAGE[window.slices])
            except CoverageError:
                refused.append(window)
    run_threads([work] * 3)
    assert sorted(refused) == sorted(windows * 2)
    encoder.finish()
    assert take_result(encoder) == expect()


class Scarce:
    """Stands for numpy in a module: its n-th allocation fails."""

    def __init__(self, fails):
        self._fails, self._count = fails, 0

    def __getattr__(self, name):
        found = getattr(np, name)
        if name not in ('array', 'empty', 'zeros', 'full', 'ascontiguousarray'):
            return found

        def allocate(*args, **options):
            self._count += 1
            if self._count == self._fails:
                raise MemoryError('no memory (simulated)')
            return found(*args, **options)
        return allocate


@pytest.mark.parametrize('fails', range(1, 40, 3))
@pytest.mark.parametrize('window', [Window(0, 0, 128, 128), Window(30, 30, 200, 200)])
def test_too_little_memory_takes_nothing_of_a_block(make, monkeypatch, fails, window):
    """A block that was not taken can be given again: all of it."""
    encoder = make()
    with monkeypatch.context() as patch:
        patch.setattr(pyramid, 'np', Scarce(fails))
        try:
            encoder.write_block(window, IMAGE[window.slices])
            was_taken = True
        except MemoryError:
            was_taken = False
    if not was_taken:
        encoder.write_block(window, IMAGE[window.slices])
    missing = np.ones(SHAPE[:2], bool)
    missing[window.slices] = False
    give(encoder, find_runs(missing))
    encoder.finish()
    assert take_result(encoder) == expect()


# ---- failures that pass -----------------------------------------------------------

@pytest.mark.parametrize('threads', [0, 2])
@pytest.mark.parametrize('waiting', [0, 1 << 30])
@pytest.mark.parametrize('share', [0.1, 0.4, 0.7])
def test_a_spool_that_fails_now_and_then_loses_nothing(make, monkeypatch, threads, waiting, share):
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', waiting)
    encoder, rng = make(threads=threads), random.Random(7)
    encoder._spool._ram_nbytes = 0
    windows = cut(SHAPE, 50, 120)
    rng.shuffle(windows)
    failed = []

    def is_full(number, nbytes):
        failed.append(rng.random() < share)
        return failed[-1]
    with spool_without_room(is_full):
        for window in windows:
            persist(lambda: give(encoder, [window]))
        persist(encoder.finish)
    assert any(failed)
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('number', range(0, 60, 4))
def test_any_write_to_the_spool_may_fail_once(make, monkeypatch, number):
    """One of a tile, of a quarter, or of an overview: nothing is lost or stored twice."""
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)
    encoder = make()
    encoder._spool._ram_nbytes = 0
    with spool_without_room(lambda n, nbytes: n == number):
        n_failures = sum(persist(lambda: give(encoder, [window])) for window in TILES)
        n_failures += persist(encoder.finish)
    assert n_failures <= 1
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('threads', [0, 2])
def test_a_disk_that_is_full_till_the_end(make, threads):
    """Blocks are refused meanwhile, and memory does not grow."""
    encoder = make(threads=threads)
    n_taken, is_full = 0, True
    with spool_without_room(lambda number, nbytes: is_full):
        for window in TILES:
            try:
                give(encoder, [window])
                n_taken += 1
            except OSError:
                break
            # Else all may be taken before a thread has tried the first.
            encoder._wait()
        for _ in range(5):
            with pytest.raises(OSError, match='simulated'):
                give(encoder, TILES[n_taken:n_taken + 1])
            # Pixels are missing: that comes first.
            with pytest.raises(CoverageError):
                encoder.finish()
        assert encoder.nbytes <= 2 * encoder._max_in_flight
        is_full = False
        give(encoder, TILES[n_taken:-1])
        encoder.retry()
        is_full = True
        give(encoder, TILES[-1:])
        for _ in range(3):
            with pytest.raises(OSError, match='simulated'):
                encoder.finish()
        is_full = False
        encoder.finish()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('threads', [0, 2])
@pytest.mark.parametrize('index', [(0, 0), (2, 3), (4, 7)])
def test_a_codec_that_fails_for_one_tile(make, threads, index):
    encoder, is_broken = make(threads=threads), True
    wanted = is_tile(index)
    with codec_that_fails(lambda tile: is_broken and wanted(tile)):
        give(encoder, TILES[:0])
        written = []
        for window in TILES:
            try:
                give(encoder, [window])
                written.append(window)
            except MemoryError:
                break
        if len(written) == len(TILES):
            for _ in range(3):
                with pytest.raises(MemoryError, match='simulated'):
                    encoder.finish()
        else:
            with pytest.raises(MemoryError, match='simulated'):
                encoder.retry()
        is_broken = False
        give(encoder, TILES[len(written):])
        encoder.finish()
    encoder.retry()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('seed', range(3))
def test_many_threads_meet_failures(make, monkeypatch, seed):
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 3 * TILE_NBYTES)
    encoder, rng = make(threads=2), random.Random(seed)
    encoder._spool._ram_nbytes = 0
    windows = cut(SHAPE, 45, 70)
    rng.shuffle(windows)

    def work(part):
        for window in part:
            persist(lambda: give(encoder, [window]))
    with spool_without_room(lambda number, nbytes: rng.random() < 0.3):
        run_threads([lambda k=k: work(windows[k::4]) for k in range(4)])
        persist(encoder.finish)
    assert take_result(encoder) == expect()


@contextmanager
def hasty_threads():
    """Let threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def test_all_threads_get_the_reason(make):
    """Also when several try the same tile again at a time."""
    encoder, errors = make(), []

    def work():
        for _ in range(100):
            try:
                encoder.retry()
            except BaseException as ex:
                errors.append(ex)
    with spool_without_room(lambda number, nbytes: True), hasty_threads():
        give(encoder, TILES[:1])
        run_threads([work] * 6)
    assert {type(ex) for ex in errors} == {OSError}


def test_an_image_that_is_given_at_once_meets_failures(make):
    encoder = make(threads=2)
    # The last ones: so many are on their way that none is missed before the end.
    with spool_without_room(lambda number, nbytes: number in (50, 51)):
        encoder.write_image(IMAGE)
        persist(encoder.finish)
    assert take_result(encoder) == expect()
    refused = make(threads=2)
    with spool_without_room(lambda number, nbytes: True), pytest.raises(OSError, match='simulated'):
        refused.write_image(IMAGE)
        refused.finish()


def test_quarters_that_cannot_be_read_wait(make, monkeypatch):
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)
    encoder, rng, read = make(threads=2), random.Random(0), TileSpool.read
    encoder._spool._ram_nbytes = 0

    def read_or_fail(spool, offset, nbytes):
        if rng.random() < 0.5:
            raise OSError(errno.EIO, 'Input/output error (simulated)')
        return read(spool, offset, nbytes)
    with monkeypatch.context() as patch:
        patch.setattr(TileSpool, 'read', read_or_fail)
        for window in TILES:
            persist(lambda: give(encoder, [window]))
        persist(encoder.finish)
    assert take_result(encoder) == expect()


def test_tries_that_fail_do_not_eat_the_disk(make, monkeypatch):
    """A tile has room but its quarter has none: the next try takes the place of the last."""
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)
    encoder = make(codec=Codec('NONE'))
    encoder._spool._ram_nbytes = 0
    stored, append = [], TileSpool.append

    def watch(spool, parts):
        nbytes = sum(memoryview(part).nbytes for part in parts)
        if nbytes < TILE_NBYTES:
            raise no_space()
        place = append(spool, parts)
        stored.append(place + nbytes)
        return place
    with monkeypatch.context() as patch:
        patch.setattr(TileSpool, 'append', watch)
        give(encoder, TILES[:1])
        for _ in range(20):
            with pytest.raises(OSError, match='simulated'):
                give(encoder, TILES[1:2])
    assert max(stored) <= 2 * (TILE_NBYTES + 8)
    give(encoder, TILES[1:])
    encoder.finish()
    assert take_result(encoder) == expect(codec=Codec('NONE'))


@pytest.mark.parametrize('phase', ['first', 'again'])
@pytest.mark.parametrize('number', range(0, 60, 7))
def test_an_interrupt_never_makes_a_wrong_file(make, monkeypatch, phase, number):
    """Ctrl-C may hit the thread that compresses: what it did is done again, or is missing."""
    calls, iter_payloads = itertools.count(), TileCodec.iter_payloads
    encoder, is_full = make(), phase == 'again'
    encoder._spool._ram_nbytes = 0
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)

    def interrupt(codec, tile):
        if next(calls) == number:
            raise KeyboardInterrupt
        return iter_payloads(codec, tile)

    def fail(spool, offset, nbytes):
        if is_full:
            raise no_space()
        return read(spool, offset, nbytes)
    read = TileSpool.read
    with monkeypatch.context() as patch:
        patch.setattr(TileCodec, 'iter_payloads', interrupt)
        patch.setattr(TileSpool, 'read', fail)
        for window in TILES:
            for _ in range(5):
                try:
                    give(encoder, [window])
                    break
                except OSError:
                    is_full = False
                except KeyboardInterrupt:
                    is_full = False
                except CoverageError:
                    # It was taken before the interrupt.
                    break
        for _ in range(3):
            try:
                encoder.finish()
                break
            except KeyboardInterrupt:
                pass
    encoder.finish()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('number', range(4))
def test_an_interrupt_in_a_large_block_loses_no_tile(make, number):
    """It is taken, and all of it is compressed later; or it is not, and can be given again."""
    encoder, window, calls = make(), Window(0, 0, 200, 200), itertools.count()
    with codec_that_fails(lambda tile: next(calls) == number, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            give(encoder, [window])
    missing = np.ones(SHAPE[:2], bool)
    missing[window.slices] = False
    give(encoder, find_runs(missing))
    try:
        give(encoder, [window])
    except CoverageError:
        pass
    encoder.finish()
    assert take_result(encoder) == expect()


def test_an_interrupt_of_a_second_try_keeps_the_quarters(make, monkeypatch):
    """An overview must not be made from quarters that were let go."""
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)
    encoder, square = make(), [TILES[0], TILES[1], TILES[8], TILES[9]]
    encoder._spool._ram_nbytes = 0

    def fail(spool, offset, nbytes):
        raise OSError(errno.EIO, 'Input/output error (simulated)')
    with monkeypatch.context() as patch:
        patch.setattr(TileSpool, 'read', fail)
        give(encoder, square)
    with codec_that_fails(lambda tile: True, KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        encoder.retry()
    give(encoder, [window for window in TILES if window not in square])
    encoder.finish()
    assert take_result(encoder) == expect()


# ---- memory -----------------------------------------------------------------------

@pytest.mark.parametrize('threads, n_writers', [(1, 1), (3, 1), (2, 4), (0, 3)])
def test_no_more_tiles_are_on_their_way_than_promised(make, monkeypatch, threads, n_writers):
    monkeypatch.setattr(pyramid, '_LEAST_IN_FLIGHT_NBYTES', 0)
    encoder = make(threads=threads, overviews=None)
    bound = 2 * max(threads, 1) * TILE_NBYTES
    seen, iter_payloads = [], TileCodec.iter_payloads

    def compress_late(codec, tile):
        seen.append(encoder.nbytes)
        time.sleep(0.001)
        return iter_payloads(codec, tile)
    monkeypatch.setattr(TileCodec, 'iter_payloads', compress_late)
    run_threads([lambda k=k: give(encoder, TILES[k::n_writers]) for k in range(n_writers)])
    encoder.finish()
    assert len(seen) == len(TILES)
    assert TILE_NBYTES / 4 <= max(seen) <= bound + encoder._spool.nbytes
    assert take_result(encoder) == expect(overviews=None)


def test_threads_that_take_jobs_slowly_do_not_let_more_in(make, monkeypatch):
    """Several writers wait at a time; as many go on as there is room for."""
    monkeypatch.setattr(pyramid, '_LEAST_IN_FLIGHT_NBYTES', 0)

    class Slow(ThreadPoolExecutor):
        def submit(self, *args, **options):
            time.sleep(0.002)
            return super().submit(*args, **options)
    seen, iter_payloads = [], TileCodec.iter_payloads

    def watch(codec, tile):
        seen.append(encoder.nbytes)
        return iter_payloads(codec, tile)
    monkeypatch.setattr(TileCodec, 'iter_payloads', watch)
    with Slow(1) as pool:
        encoder = make(executor=pool, num_threads=1, overviews=None)
        encoder._spool._ram_nbytes = 0
        run_threads([lambda k=k: give(encoder, TILES[k::8]) for k in range(8)])
        encoder.finish()
    assert len(seen) == len(TILES) and max(seen) <= 2 * TILE_NBYTES


@pytest.mark.parametrize('threads', [0, 2])
def test_a_large_block_is_not_copied_whole(make, threads):
    """It may be a whole image on a disk: a few of its tiles are copied at a time."""
    shape = (40 * SIDE, 40 * SIDE, 2)
    encoder, block = make(shape, threads=threads), np.zeros(shape, np.int16)
    encoder.write_block(Window(0, 0, SIDE, SIDE), block[:SIDE, :SIDE])
    tracemalloc.start()
    try:
        encoder.write_block(Window(SIDE, 0, *shape[:2]), block[SIDE:])
        encoder.write_block(Window(0, SIDE, SIDE, shape[1]), block[:SIDE, SIDE:])
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most <= block.nbytes / 3
    encoder.finish()


def test_memory_can_be_asked_for_at_any_time(make):
    shape = (SIDE, 500 * SIDE, 1)
    encoder, image = make(shape, codec=Codec('NONE'), overviews=None), np.zeros(shape, np.int16)
    is_done, seen = threading.Event(), []
    # Many tiles wait for their other half.
    give(encoder, cut((1, shape[1]), 1, SIDE), image)
    windows = [Window(1, x, SIDE, x + SIDE) for x in range(0, shape[1], SIDE)]

    def ask():
        while not is_done.is_set():
            seen.append(encoder.nbytes)

    def write():
        try:
            run_threads([lambda k=k: give(encoder, windows[k::3], image) for k in range(3)])
        finally:
            is_done.set()
    with hasty_threads():
        run_threads([ask, write])
    encoder.finish()
    assert min(seen) >= 0 and max(seen) > 0


def test_a_tile_larger_than_the_limit_goes_alone(make, monkeypatch):
    monkeypatch.setattr(pyramid, '_LEAST_IN_FLIGHT_NBYTES', 0)
    monkeypatch.setattr(pyramid, '_IN_FLIGHT_PER_THREAD', 0)
    encoder = make(threads=3)
    run_threads([lambda: (give(encoder, TILES), encoder.finish())])
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('limit', [0, 6 * TILE_NBYTES])
def test_quarters_that_wait_are_bounded_in_any_order(make, monkeypatch, limit):
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', limit)
    encoder = make()
    encoder._spool._ram_nbytes = 0
    order, most = list(TILES), 0
    random.Random(2).shuffle(order)
    for window in order:
        give(encoder, [window])
        most = max(most, encoder.nbytes)
    encoder.finish()
    assert most <= limit and (most > 0) == (limit > 0)
    assert encoder.nbytes == 0
    assert take_result(encoder) == expect()


def test_memory_is_given_back(make):
    encoder = make(threads=2)
    encoder._spool._ram_nbytes = 0
    windows = cut(SHAPE, 45, 70)
    random.Random(0).shuffle(windows)
    give(encoder, windows[:-1])
    assert encoder.nbytes > 0
    give(encoder, windows[-1:])
    encoder.finish()
    assert encoder.nbytes == 0
    assert take_result(encoder) == expect()
    encoder.close()
    assert encoder.nbytes == 0


def test_memory_is_given_back_when_it_ends_half_way(make):
    encoder = make(threads=2)
    with spool_without_room(lambda number, nbytes: number > 5):
        for window in cut(SHAPE, 45, 70):
            try:
                give(encoder, [window])
            except OSError:
                break
        assert encoder.nbytes > 0
        encoder.close()
    assert encoder.nbytes == 0


def test_partial_tiles_are_counted(make):
    encoder = make()
    give(encoder, [Window(0, 0, 1, 1), Window(64, 64, 65, 65)])
    assert 2 * TILE_NBYTES <= encoder.nbytes <= 2 * (TILE_NBYTES + SIDE * SIDE)


def test_missing_pixels_are_not_all_made_while_the_disk_is_full(make):
    shape = (40 * SIDE, 40 * SIDE, 2)
    encoder = make(shape, nodata=-1)
    seen = []

    def is_full(number, nbytes):
        seen.append(encoder.nbytes)
        return True
    with spool_without_room(is_full), pytest.raises(OSError, match='simulated'):
        encoder.finish(fill_missing=True)
    assert max(seen) <= 4 << 20 < 1600 * TILE_NBYTES
    assert encoder.nbytes <= 4 << 20
    encoder.finish(fill_missing=True)
    assert encoder.levels[0].counts.all()


def test_a_block_is_held_no_more_than_once_while_the_disk_is_full(make):
    encoder = make()
    with spool_without_room(lambda number, nbytes: True):
        give(encoder, [Window.from_shape(SHAPE)])
        for _ in range(3):
            with pytest.raises(OSError, match='simulated'):
                encoder.finish()
            assert encoder.nbytes <= IMAGE.nbytes
    encoder.finish()
    assert take_result(encoder) == expect()


# ---- threads that end ---------------------------------------------------------------

@pytest.mark.parametrize('cancel', [False, True])
def test_threads_that_are_shut_down_half_way(make, cancel):
    """Then the caller compresses; nothing waits for jobs that never run."""
    with ThreadPoolExecutor(1) as pool:
        encoder = make(executor=pool, num_threads=20)
        is_running, go_on = threading.Event(), threading.Event()

        def hold():
            is_running.set()
            assert go_on.wait(30)
        pool.submit(hold)
        assert is_running.wait(10)
        give(encoder, TILES[:10])
        pool.shutdown(wait=False, cancel_futures=cancel)
        go_on.set()

        def end():
            give(encoder, TILES[10:])
            persist(encoder.finish)
        run_threads([end], seconds=5)
    assert take_result(encoder) == expect()


def test_encoders_share_threads(make):
    with ThreadPoolExecutor(2) as pool:
        encoders = [make(executor=pool, num_threads=2) for _ in range(3)]
        run_threads([lambda encoder=encoder: give(encoder, TILES) for encoder in encoders])
        encoders[1].close()
        for encoder in (encoders[0], encoders[2]):
            encoder.finish()
            assert take_result(encoder) == expect()


def test_close_while_jobs_run(make, monkeypatch):
    """It waits for those that are compressing, drops the others, and nothing is written after."""
    encoder = make(threads=2)
    is_running, go_on, n_done = threading.Event(), threading.Event(), []
    iter_payloads = TileCodec.iter_payloads

    def hold(codec, tile):
        is_running.set()
        assert go_on.wait(30)
        n_done.append(1)
        return iter_payloads(codec, tile)
    monkeypatch.setattr(TileCodec, 'iter_payloads', hold)
    give(encoder, TILES[:20])
    assert is_running.wait(10)
    closer = threading.Thread(target=encoder.close)
    closer.start()
    closer.join(0.1)
    assert closer.is_alive()
    with pytest.raises(ImageClosedError):
        give(encoder, TILES[20:21])
    go_on.set()
    closer.join(20)
    assert not closer.is_alive() and len(n_done) <= 2
    assert encoder.nbytes == 0
    encoder.close()


def test_close_while_a_thread_tries_again(make, monkeypatch):
    """A file number that is closed under a writer may be another file's by then."""
    encoder = make(codec=Codec('NONE'))
    encoder._spool._ram_nbytes = 0
    give(encoder, TILES[:1])
    with spool_without_room(lambda number, nbytes: True):
        give(encoder, TILES[1:2])
    is_writing, go_on, pwritev = threading.Event(), threading.Event(), os.pwritev
    results = []

    def write_late(descriptor, views, offset):
        is_writing.set()
        assert go_on.wait(30)
        try:
            results.append(pwritev(descriptor, views, offset))
        except OSError as ex:
            results.append(ex.errno)
            raise
        return results[-1]
    monkeypatch.setattr(os, 'pwritev', write_late)

    def write():
        try:
            give(encoder, TILES[2:3])
        except (OSError, ImageClosedError):
            pass
    writer = threading.Thread(target=write)
    writer.start()
    assert is_writing.wait(10)
    closer = threading.Thread(target=encoder.close)
    closer.start()
    closer.join(0.2)
    go_on.set()
    closer.join(20)
    writer.join(20)
    assert not closer.is_alive() and not writer.is_alive()
    assert errno.EBADF not in results


@pytest.mark.parametrize('threads', [0, 2])
def test_close_in_the_middle_of_many_writers(make, threads):
    """Each of them ends, with the error for a closed writer and no other."""
    for seed in range(8):
        encoder, errors = make(threads=threads), []
        windows = cut(SHAPE, 13, 29)
        random.Random(seed).shuffle(windows)

        def work(part):
            try:
                give(encoder, part)
            except BaseException as ex:
                errors.append(ex)
        writers = [threading.Thread(target=work, args=(windows[k::3],)) for k in range(3)]
        for writer in writers:
            writer.start()
        time.sleep(0.001 * seed)
        encoder.close()
        for writer in writers:
            writer.join(20)
            assert not writer.is_alive()
        assert [type(ex) for ex in errors if not isinstance(ex, ImageClosedError)] == []
        assert encoder.nbytes == 0


@pytest.mark.parametrize('window', [Window(0, 0, SIDE, SIDE), Window(10, 10, 20, 20)])
@pytest.mark.parametrize('threads', [0, 2])
def test_finish_while_the_last_block_is_copied(make, window, threads):
    """It waits for the block, or says that its pixels are missing; it knows no defect."""
    encoder, is_copying, go_on = make(threads=threads), threading.Event(), threading.Event()

    class Late(np.ndarray):
        def __getitem__(self, place):
            is_copying.set()
            assert go_on.wait(30)
            return np.asarray(self)[place]
    missing = np.ones(SHAPE[:2], bool)
    missing[window.slices] = False
    give(encoder, find_runs(missing))
    errors = []

    def finish():
        try:
            encoder.finish()
        except CoverageError as ex:
            errors.append(str(ex))
    block = IMAGE[window.slices].view(Late)
    writer = threading.Thread(target=encoder.write_block, args=(window, block))
    writer.start()
    assert is_copying.wait(10)
    finisher = threading.Thread(target=finish)
    finisher.start()
    finisher.join(0.1)
    go_on.set()
    finisher.join(20)
    writer.join(20)
    assert all('did not come' in error for error in errors)
    encoder.finish()
    assert take_result(encoder) == expect()


@pytest.mark.parametrize('threads', [0, 2])
def test_memory_is_right_after_a_close_that_came_between(make, monkeypatch, threads):
    encoder, is_late, go_on = make(threads=threads), threading.Event(), threading.Event()
    hand_on = PyramidEncoder._hand_on

    def hand_on_late(*args):
        is_late.set()
        assert go_on.wait(30)
        return hand_on(*args)
    monkeypatch.setattr(PyramidEncoder, '_hand_on', hand_on_late)
    writer = threading.Thread(target=give, args=(encoder, TILES[:1]))
    writer.start()
    assert is_late.wait(10)
    closer = threading.Thread(target=encoder.close)
    closer.start()
    closer.join(0.2)
    go_on.set()
    closer.join(20)
    writer.join(20)
    assert encoder.nbytes == 0


def test_a_closed_encoder_refuses(make):
    encoder = make()
    give(encoder, TILES)
    encoder.finish()
    encoder.close()
    with pytest.raises(ImageClosedError):
        give(encoder, TILES[:1])
    with pytest.raises(ImageClosedError), tempfile.TemporaryFile() as file:
        encoder.copy_tiles(file.fileno())


def test_a_finished_encoder_can_be_asked_again(make):
    encoder = make(threads=2)
    give(encoder, TILES)
    for _ in range(3):
        encoder.finish()
        encoder.retry()
        assert take_result(encoder) == expect()


def test_a_dropped_encoder_is_freed(tmp_path):
    class Watched(PyramidEncoder):
        n_gone = 0

        def __del__(self):
            Watched.n_gone += 1
    before = len(os.listdir('/proc/self/fd'))
    encoder = Watched(SHAPE, 'int16', ZSTD, tmp_path, blocksize=SIDE)
    with spool_without_room(lambda number, nbytes: number == 2):
        give(encoder, TILES[:3])
    del encoder
    gc.collect()
    assert Watched.n_gone == 1
    assert len(os.listdir('/proc/self/fd')) == before


# ---- missing pixels -----------------------------------------------------------------

@pytest.mark.parametrize('dtype, nodata', [
    ('int8', -128), ('uint8', 255), ('int16', -9999), ('uint32', 2 ** 32 - 1), ('int32', 0),
    ('float32', None), ('float32', np.nan), ('float64', -9999.0)])
def test_missing_pixels_are_filled(make, dtype, nodata):
    shape = (150, 140, 2)
    image = np.random.default_rng(0).integers(0, 99, shape).astype(dtype)
    encoder, expected = make(shape, dtype, nodata=nodata, threads=2), np.empty(shape, dtype)
    expected[...] = np.nan if nodata is None else nodata
    for window in (Window(0, 0, 64, 64), Window(30, 70, 140, 100), Window(149, 139, 150, 140)):
        encoder.write_block(window, image[window.slices])
        expected[window.slices] = image[window.slices]
    for fill_missing in (False, False):
        with pytest.raises(CoverageError, match='fill_missing=True'):
            encoder.finish(fill_missing)
    encoder.finish(fill_missing=True)
    assert take_result(encoder) == expect(expected, nodata=nodata)
    encoder.finish()
    with pytest.raises(CoverageError):
        encoder.write_block(Window(100, 0, 101, 1), image[100:101, 0:1])


def test_integers_without_nodata_are_not_filled(make):
    encoder = make()
    give(encoder, TILES[:-1])
    with pytest.raises(CoverageError, match='give a nodata value'):
        encoder.finish(fill_missing=True)
    give(encoder, TILES[-1:])
    encoder.finish(fill_missing=True)
    assert take_result(encoder) == expect()


def test_filling_meets_failures(make, monkeypatch):
    monkeypatch.setattr(pyramid, '_WAITING_NBYTES', 0)
    expected = IMAGE.copy()
    encoder, rng = make(nodata=-9, threads=2), random.Random(5)
    encoder._spool._ram_nbytes = 0
    for window in (Window(150, 100, 300, 470), Window(0, 0, 3, 3)):
        expected[window.slices] = -9
    give(encoder, [Window(0, 3, 150, 470), Window(3, 0, 150, 3), Window(150, 0, 300, 100)])
    with spool_without_room(lambda number, nbytes: rng.random() < 0.4):
        persist(lambda: encoder.finish(fill_missing=True))
    assert take_result(encoder) == expect(expected, nodata=-9)


@pytest.mark.parametrize('fails', range(1, 12))
def test_too_little_memory_to_fill_loses_no_pixel(make, monkeypatch, fails):
    expected = np.full(SHAPE, -9, np.int16)
    encoder = make(nodata=-9)
    window = Window(30, 30, 180, 180)
    give(encoder, [window])
    expected[window.slices] = IMAGE[window.slices]
    with monkeypatch.context() as patch:
        patch.setattr(pyramid, 'np', Scarce(fails))
        persist(lambda: encoder.finish(fill_missing=True))
    encoder.finish(fill_missing=True)
    assert take_result(encoder) == expect(expected, nodata=-9)
