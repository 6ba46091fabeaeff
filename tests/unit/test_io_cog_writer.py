"""The block-wise writer: what it takes, what it refuses, and what it leaves behind."""
import errno
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import kwimage
import numpy as np
import pytest

import cocoseg
from cocoseg import CogWriter, Window
from cocoseg.errors import (AssetWriteError, BandCountError, CoverageError, ImageClosedError,
                            OptionError, WindowShapeError)
from cocoseg.io import cog, tile_spool
from cocoseg.io.cog import CogOptions, write_cog
from cocoseg.io.raster import read_raster
from cocoseg.io.verify import verify_cog

SHAPE = (200, 310, 2)
IMAGE = np.random.default_rng(0).integers(0, 999, SHAPE).astype(np.int16)
WINDOWS = [Window(y, x, min(y + 70, 200), min(x + 90, 310))
           for y in range(0, 200, 70) for x in range(0, 310, 90)]


@pytest.fixture(autouse=True)
def leave_nothing_behind():
    """No thread and no open file stays after a test."""
    before = set(threading.enumerate()), count_descriptors()
    yield
    assert_all_ended(before)


@pytest.fixture
def folder(tmp_path):
    """A folder for the results, and nothing else in it."""
    (tmp_path / 'results').mkdir()
    return tmp_path / 'results'


def count_descriptors():
    return len(os.listdir('/proc/self/fd'))


def assert_all_ended(before):
    """Check threads and files against (threads, number of files) of before."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        # Fewer files: what another test had forgotten may end now.
        if set(threading.enumerate()) <= before[0] and count_descriptors() <= before[1]:
            return
        gc.collect()
        time.sleep(0.01)
    raise AssertionError((before, threading.enumerate(), count_descriptors()))


def names(folder):
    return sorted(os.listdir(folder))


def make_writer(folder, **options):
    return CogWriter(folder / 'a.tif', SHAPE, 'int16', **{
        'blocksize': 64, 'num_threads': 2, 'nodata': -9, **options})


def give(writer, windows=WINDOWS, image=IMAGE):
    for window in windows:
        writer.write_block(window, image[window.slices])


def expect(folder, image=IMAGE, **options):
    """Return the bytes of the file that the same image makes at once."""
    write_cog(folder.parent / 'expected.tif', image, **{'blocksize': 64, 'nodata': -9, **options})
    return (folder.parent / 'expected.tif').read_bytes()


def refuse(code):
    """Return a function that fails as the system does."""
    def call(*args, **options):
        raise OSError(code, f'{os.strerror(code)} (simulated)')
    return call


# ---- options ----------------------------------------------------------------------

@pytest.mark.parametrize('options, match', [
    ({'blocksze': 256}, 'blocksze'), ({'predictors': 2, 'compresion': 'LZW'}, 'compresion'),
    ({'driver': 'COG'}, 'driver'), ({'dtype_': 1}, 'dtype_')])
def test_unknown_options_are_named_with_the_known(folder, options, match):
    with pytest.raises(OptionError, match=match) as caught:
        make_writer(folder, **options)
    for known in ('blocksize', 'compress', 'num_threads'):
        assert known in str(caught.value)
    assert names(folder) == []


@pytest.mark.parametrize('options', [
    {'blocksize': True}, {'blocksize': 64.0}, {'blocksize': 72}, {'blocksize': 0},
    {'blocksize': -64}, {'blocksize': None}, {'blocksize': (64, 64)}, {'num_threads': True},
    {'num_threads': 0}, {'num_threads': 2.0}, {'num_threads': '2'}, {'interleave': 'line'},
    {'interleave': None}, {'interleave': True}, {'bigtiff': 'YES'}, {'bigtiff': 2},
    {'overviews': 'average '}, {'overviews': False}, {'overviews': 2}, {'compress': ['ZSTD']},
    {'compress': True}, {'compress': b'ZSTD'}, {'level': 1.5}, {'level': '1'},
    {'predictor': [2]}, {'predictor': 'none'}, {'nodata': 0.5}, {'nodata': 'x'},
    {'nodata': 40000}, {'nodata': [1]}, {'nodata': np.nan}, {'nodata': np.inf},
    {'nodata': 1j}], ids=str)
def test_bad_options_touch_nothing(folder, options):
    with pytest.raises(OptionError) as caught:
        make_writer(folder, **options)
    assert next(iter(options)) in str(caught.value)
    assert names(folder) == []


@pytest.mark.parametrize('options', [
    {'channels': 'a'}, {'channels': ['a', 'b', 'c']}, {'scale': [1, 2, 3]}, {'offset': [1]}])
def test_a_wrong_number_of_bands_is_known_at_once(folder, options):
    with pytest.raises(BandCountError):
        make_writer(folder, **options)
    assert names(folder) == []


@pytest.mark.parametrize('value', [0, np.False_, 1, np.True_])
def test_other_words_for_yes_and_no_mean_that_or_are_refused(value):
    try:
        found = CogOptions.coerce('uint8', bigtiff=value).bigtiff
    except OptionError:
        return
    assert found is bool(value)


@pytest.mark.parametrize('dtype', [
    bool, complex, 'complex64', 'float16', 'int64', 'uint64', object, 'S3', 'datetime64[s]',
    [('a', 'u1')], 'longdouble'])
def test_types_that_a_file_cannot_hold_are_refused(folder, dtype):
    with pytest.raises(OptionError, match='cannot be written'):
        CogWriter(folder / 'a.tif', (9, 9), dtype)
    assert names(folder) == []


@pytest.mark.parametrize('dtype', ['int17', None, 3])
def test_what_is_no_type_is_refused(folder, dtype):
    with pytest.raises((OptionError, TypeError)):
        CogWriter(folder / 'a.tif', (9, 9), dtype)


@pytest.mark.parametrize('shape', [
    (9,), (9, 9, 1, 1), (0, 9), (9, 0, 1), (9, 9, 0), (-1, 9), (9.0, 9), (True, 9), ('9', 9), (),
    9, None, (9, np.nan), (9, None)])
def test_bad_shapes_are_refused(folder, shape):
    with pytest.raises(OptionError, match='shape'):
        CogWriter(folder / 'a.tif', shape, 'uint8')
    assert names(folder) == []


@pytest.mark.parametrize('shape', [
    (70, 80), (70, 80, 1), [70, 80], np.array([70, 80]), (np.int64(70), np.uint8(80)),
    np.zeros((70, 80)).shape])
def test_spellings_of_a_shape(folder, shape):
    with CogWriter(folder / 'a.tif', shape, 'uint8') as writer:
        assert writer.shape == (70, 80, 1)
        assert all(type(size) is int for size in writer.shape)
        writer.write_block(Window(0, 0, 70, 80), np.full((70, 80), 3, np.uint8))
    assert writer.report.shape == (70, 80, 1)


@pytest.mark.parametrize('n_bands', [65536, 70000])
def test_more_bands_than_a_tiff_can_hold_are_refused_before_they_are_computed(folder, n_bands):
    with pytest.raises(OptionError, match='bands'):
        CogWriter(folder / 'a.tif', (9, 9, n_bands), 'uint8', interleave='band')


def test_a_tile_that_is_too_large_is_refused_at_once(folder):
    with pytest.raises(OptionError, match="interleave='band'"):
        CogWriter(folder / 'a.tif', (9, 9, 300), 'float64', blocksize=4096)
    assert names(folder) == []


@pytest.mark.parametrize('place', ['missing/a.tif', 'file/a.tif'])
def test_a_folder_that_is_none_is_known_at_once(folder, place):
    (folder / 'file').write_text('in the way')
    with pytest.raises(OSError) as caught:
        CogWriter(folder / place, SHAPE, 'int16')
    assert place.split('/')[0] in str(caught.value)
    assert names(folder) == ['file']


# ---- blocks -------------------------------------------------------------------------

@pytest.mark.parametrize('as_window', [
    lambda window: window, lambda window: window.slices, lambda window: list(window.slices),
    lambda window: window.as_box(),
    lambda window: kwimage.Box.coerce([window.x0, window.y0, *window.dsize], format='xywh'),
    lambda window: (*window.slices, slice(None))])
def test_spellings_of_a_window(folder, as_window):
    with make_writer(folder) as writer:
        for window in WINDOWS:
            writer.write_block(as_window(window), IMAGE[window.slices])
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_open_slices_reach_to_the_edge(folder):
    with make_writer(folder) as writer:
        writer.write_block((slice(None), slice(None, 100)), IMAGE[:, :100])
        writer.write_block((slice(50, None), slice(100, None)), IMAGE[50:, 100:])
        writer.write_block((slice(None, 50), slice(100, None)), IMAGE[:50, 100:])
    assert (folder / 'a.tif').read_bytes() == expect(folder)


@pytest.mark.parametrize('window', [
    (slice(-8, None), slice(0, 8)), (slice(0, 8, 2), slice(0, 8)), (slice(0, 8),), 'all', None,
    (0, 0, 8, 8), kwimage.Box.coerce([0.5, 0, 8, 8], format='ltrb'), (slice(0, 201), slice(0, 8)),
    (slice(8, 0), slice(0, 8))])
def test_what_is_no_window_is_refused(folder, window):
    with make_writer(folder) as writer:
        with pytest.raises((CoverageError, WindowShapeError), match='y=|slice|window'):
            writer.write_block(window, IMAGE[:8, :8])
        give(writer)
    assert (folder / 'a.tif').read_bytes() == expect(folder)


@pytest.mark.parametrize('block', [
    IMAGE[:8, :8, 0], IMAGE[:8, :8, :1], IMAGE[:8, :7], IMAGE[:8, :8].astype('i4'),
    IMAGE[:8, :8].astype(float), IMAGE[:8, :8].tolist(), None, 'block'])
def test_what_is_no_block_is_refused(folder, block):
    with make_writer(folder) as writer:
        with pytest.raises(WindowShapeError):
            writer.write_block(Window(0, 0, 8, 8), block)
        give(writer)
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_a_masked_block_is_refused(folder):
    """Its mask would be lost, as it would for an image that is given at once."""
    block = np.ma.masked_less(IMAGE[:70, :90], 100)
    with make_writer(folder) as writer:
        with pytest.raises((OptionError, WindowShapeError), match='mask'):
            writer.write_block(WINDOWS[0], block)
        give(writer)


@pytest.mark.parametrize('n_bands, block_shape, fits', [
    (1, (9, 8), True), (1, (9, 8, 1), True), (2, (9, 8), False), (2, (9, 8, 2), True),
    (1, (9, 8, 2), False), (1, (1, 9, 8), False)])
def test_blocks_of_one_band_may_be_flat(folder, n_bands, block_shape, fits):
    with CogWriter(folder / 'a.tif', (9, 8, n_bands), 'uint8') as writer:
        if not fits:
            with pytest.raises(WindowShapeError):
                writer.write_block(Window(0, 0, 9, 8), np.zeros(block_shape, np.uint8))
        writer.write_block(Window(0, 0, 9, 8), np.ones(
            block_shape if fits else (9, 8, n_bands), np.uint8))
    assert (read_raster(folder / 'a.tif') == 1).all()


def test_the_byte_order_of_type_and_blocks_does_not_matter(folder):
    with CogWriter(folder / 'a.tif', SHAPE, '>i2', nodata=-9, blocksize=64) as writer:
        assert writer.dtype == np.dtype('int16') and writer.dtype.isnative
        give(writer, WINDOWS[::2], IMAGE.astype('>i2'))
        give(writer, WINDOWS[1::2])
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_a_block_of_a_caller_is_neither_kept_nor_changed(folder):
    with make_writer(folder) as writer:
        for window in WINDOWS:
            block = IMAGE[window.slices].copy()
            block.flags.writeable = False
            writer.write_block(window, block)
            block.flags.writeable = True
            block[...] = -1
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_a_place_that_is_relative_is_that_of_the_start(folder, monkeypatch):
    """Also when the process goes elsewhere while blocks come."""
    (folder / 'other').mkdir()
    monkeypatch.chdir(folder)
    with CogWriter('a.tif', SHAPE, 'int16', nodata=-9, blocksize=64) as writer:
        give(writer)
        monkeypatch.chdir(folder / 'other')
    assert names(folder) == ['a.tif', 'other'] and names(folder / 'other') == []


# ---- the end --------------------------------------------------------------------------

def test_closing_twice_does_nothing(folder):
    writer = make_writer(folder)
    give(writer)
    report = writer.close()
    (folder / 'a.tif').rename(folder / 'moved.tif')
    assert writer.close() is report is writer.report
    writer.abort()
    assert writer.close(fill_missing=True) is report
    assert names(folder) == ['moved.tif']
    assert writer.nbytes == 0
    assert verify_cog(folder / 'moved.tif', full=True).shape == SHAPE


def test_aborting_twice_does_nothing(folder):
    writer = make_writer(folder)
    give(writer, WINDOWS[:5])
    for _ in range(2):
        writer.abort()
        assert writer.nbytes == 0 and names(folder) == []
    with pytest.raises(ImageClosedError, match='a.tif'):
        writer.close()


@pytest.mark.parametrize('end', ['close', 'abort'])
def test_blocks_that_come_too_late_are_refused(folder, end):
    writer = make_writer(folder)
    give(writer)
    getattr(writer, end)()
    before = (folder / 'a.tif').read_bytes() if end == 'close' else None
    for window in WINDOWS[:2]:
        with pytest.raises(ImageClosedError):
            give(writer, [window])
    assert names(folder) == (['a.tif'] if end == 'close' else [])
    if before:
        assert (folder / 'a.tif').read_bytes() == before


@pytest.mark.parametrize('error', [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_an_exception_in_the_block_leaves_the_folder_empty(folder, error):
    with pytest.raises(error), make_writer(folder) as writer:
        give(writer)
        raise error
    assert names(folder) == []
    with pytest.raises(ImageClosedError):
        writer.close()


def test_a_failed_close_at_the_end_of_the_block_leaves_the_folder_empty(folder):
    with pytest.raises(CoverageError, match='did not come'), make_writer(folder) as writer:
        give(writer, WINDOWS[1:])
    assert names(folder) == [] and writer.nbytes == 0


def test_a_writer_that_was_aborted_in_its_block_leaves_quietly(folder):
    with make_writer(folder) as writer:
        give(writer, WINDOWS[:3])
        writer.abort()
    assert names(folder) == []


def test_a_writer_that_was_closed_in_its_block_stays_closed(folder):
    with make_writer(folder) as writer:
        give(writer)
        report = writer.close()
    assert writer.report is report and names(folder) == ['a.tif']


def test_missing_pixels_can_still_come_after_close_refused(folder):
    with make_writer(folder) as writer:
        give(writer, WINDOWS[:-1])
        for fill_missing in (False, False):
            with pytest.raises(CoverageError, match='fill_missing'):
                writer.close(fill_missing)
        give(writer, WINDOWS[-1:])
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_missing_pixels_become_nodata(folder):
    with make_writer(folder) as writer:
        give(writer, WINDOWS[:7])
        writer.close(fill_missing=True)
    image = np.full_like(IMAGE, -9)
    for window in WINDOWS[:7]:
        image[window.slices] = IMAGE[window.slices]
    assert (folder / 'a.tif').read_bytes() == expect(folder, image)


def test_an_image_of_which_nothing_came_can_be_filled(folder):
    with make_writer(folder) as writer:
        writer.close(fill_missing=True)
    assert (folder / 'a.tif').read_bytes() == expect(folder, np.full_like(IMAGE, -9))


# ---- failures of the disk -----------------------------------------------------------------

def test_a_folder_that_vanishes_and_comes_back(folder):
    writer = make_writer(folder)
    give(writer)
    folder.rename(folder.parent / 'elsewhere')
    for _ in range(3):
        with pytest.raises(OSError, match='a.tif'):
            writer.close()
    (folder.parent / 'elsewhere').rename(folder)
    assert names(folder) == []
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_a_folder_in_the_way_of_the_file(folder):
    (folder / 'a.tif').mkdir()
    writer = make_writer(folder)
    give(writer)
    with pytest.raises(OSError, match='a.tif'):
        writer.close()
    assert names(folder) == ['a.tif'] and names(folder / 'a.tif') == []
    (folder / 'a.tif').rmdir()
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)


@pytest.mark.parametrize('ram', [0, 1 << 26])
@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
@pytest.mark.parametrize('module, name', [
    (cog, 'write_all'), (tile_spool, 'write_all'), (os, 'copy_file_range'), (os, 'fsync'),
    (os, 'replace')])
def test_a_close_that_failed_succeeds_later(folder, monkeypatch, module, name, code, ram):
    monkeypatch.setattr(tile_spool, '_LEAST_COPY', 1000 if name == 'copy_file_range' else 1 << 30)
    writer = make_writer(folder)
    writer._encoder._spool._ram_nbytes = ram
    (folder / 'a.tif').write_bytes(b'old')
    give(writer)
    writer._encoder.finish()
    is_used = name != 'copy_file_range' or ram == 0
    for _ in range(2 * is_used):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, refuse(code))
            with pytest.raises(OSError, match='simulated'):
                writer.close()
        assert names(folder) == ['a.tif'] and (folder / 'a.tif').read_bytes() == b'old'
        assert writer.report is None
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)
    assert names(folder) == ['a.tif']


def test_a_disk_that_fills_half_way_through_the_copy(folder, monkeypatch):
    monkeypatch.setattr(tile_spool, '_LEAST_COPY', 1000)
    writer, copy = make_writer(folder), os.copy_file_range
    writer._encoder._spool._ram_nbytes = 0
    give(writer)
    calls = []

    def copy_some(source, target, count, **options):
        calls.append(count)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, 'no space (simulated)')
        return copy(source, target, min(count, 500), **options)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'copy_file_range', copy_some)
        with pytest.raises(AssetWriteError, match='simulated') as caught:
            writer.close()
    assert caught.value.path == str(folder / 'a.tif') and names(folder) == []
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_blocks_are_refused_while_the_disk_is_full(folder, monkeypatch):
    writer, written = make_writer(folder), []
    writer._encoder._spool._ram_nbytes = 0
    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwritev', refuse(errno.ENOSPC))
        for window in WINDOWS:
            try:
                give(writer, [window])
                written.append(window)
            except AssetWriteError as ex:
                assert ex.path == str(folder / 'a.tif') and 'simulated' in str(ex)
                break
        if len(written) == len(WINDOWS):
            with pytest.raises(AssetWriteError, match='simulated'):
                writer.close()
    give(writer, [window for window in WINDOWS if window not in written])
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)


@pytest.mark.parametrize('damage', ['shorter', 'longer', 'other byte'])
def test_a_file_that_is_not_whole_is_never_renamed(folder, monkeypatch, damage):
    writer, verify = make_writer(folder), cog.verify_cog
    give(writer)

    def spoil(temp, **options):
        size = os.path.getsize(temp)
        if damage == 'other byte':
            content = bytearray(Path(temp).read_bytes())
            content[-1] ^= 1
            Path(temp).write_bytes(content)
        else:
            os.truncate(temp, size + (1 if damage == 'longer' else -1))
        return verify(temp, **options)
    with monkeypatch.context() as patch:
        patch.setattr(cog, 'verify_cog', spoil)
        with pytest.raises(AssetWriteError):
            writer.close()
    assert names(folder) == []
    writer.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)


def test_a_file_of_another_image_is_never_renamed(folder, monkeypatch):
    """Whole, but not what was asked for."""
    writer, other = make_writer(folder), folder.parent / 'other.tif'
    write_cog(other, IMAGE[:50], blocksize=64)
    give(writer)
    with monkeypatch.context() as patch:
        patch.setattr(cog, '_write_parts', lambda temp, *args: temp.write_bytes(other.read_bytes()))
        with pytest.raises(AssetWriteError, match='instead of'):
            writer.close()
    assert names(folder) == []
    writer.abort()


# ---- names ----------------------------------------------------------------------------------

def test_an_older_file_is_replaced_with_its_sidecars(folder, monkeypatch):
    path = folder / 'a.tif'
    path.write_bytes(b'old')
    for suffix in ('.aux.xml', '.ovr', '.msk'):
        (folder / f'a.tif{suffix}').write_bytes(b'of the old file')
    (folder / 'a.tif.txt').write_bytes(b'of somebody else')
    with make_writer(folder) as writer:
        give(writer)
        assert path.read_bytes() == b'old' and len(names(folder)) == 5
    assert names(folder) == ['a.tif', 'a.tif.txt']
    assert path.read_bytes() == expect(folder)


def test_two_writers_of_one_path_do_not_mix(folder):
    """The last one wins, as a whole."""
    first, second = make_writer(folder), make_writer(folder)
    for window in WINDOWS:
        give(first, [window])
        give(second, [window], IMAGE + 1)
    second.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder, IMAGE + 1)
    first.close()
    assert (folder / 'a.tif').read_bytes() == expect(folder)
    third = make_writer(folder)
    give(third, WINDOWS[:4])
    third.abort()
    assert (folder / 'a.tif').read_bytes() == expect(folder)
    assert names(folder) == ['a.tif']


def test_two_writers_may_close_one_path_at_a_time(folder):
    writers = [make_writer(folder) for _ in range(3)]
    for number, writer in enumerate(writers):
        give(writer, image=IMAGE + number)
    errors = []

    def close(writer):
        try:
            writer.close()
        except BaseException as ex:
            errors.append(ex)
    threads = [threading.Thread(target=close, args=(writer,)) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == [] and names(folder) == ['a.tif']
    found = (folder / 'a.tif').read_bytes()
    assert found in [expect(folder, IMAGE + number) for number in range(3)]


@pytest.mark.parametrize('name', ['ünï 語.tif', 'a b', 'x' * 251 + '.tif', '.hidden', '-a'])
def test_odd_names(folder, name):
    with CogWriter(folder / name, (9, 9), 'uint8') as writer:
        writer.write_block(Window(0, 0, 9, 9), np.zeros((9, 9), np.uint8))
    assert names(folder) == [name]


def test_nothing_is_visible_while_blocks_come(folder):
    with make_writer(folder) as writer:
        writer._encoder._spool._ram_nbytes = 0
        for window in WINDOWS:
            give(writer, [window])
            assert names(folder) == []
    assert names(folder) == ['a.tif']


# ---- threads, files, and writers that are forgotten -----------------------------------------

@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
@pytest.mark.parametrize('end', ['close', 'abort', 'forget'])
@pytest.mark.parametrize('num_threads', [1, 4])
def test_threads_and_files_end_with_the_writer(folder, end, num_threads):
    before = set(threading.enumerate()), count_descriptors()
    for _ in range(3):
        writer = make_writer(folder, num_threads=num_threads)
        writer._encoder._spool._ram_nbytes = 0
        give(writer)
        if end != 'forget':
            getattr(writer, end)()
        del writer
    assert_all_ended(before)
    assert names(folder) == (['a.tif'] if end == 'close' else [])


def test_no_thread_is_started_for_one(folder):
    before = set(threading.enumerate())
    with make_writer(folder, num_threads=1) as writer:
        give(writer)
        assert set(threading.enumerate()) == before


def test_a_refused_writer_leaves_no_thread(folder):
    before = set(threading.enumerate())
    for shape in ((9, 9, 300), (9, 9, 0)):
        with pytest.raises(OptionError):
            CogWriter(folder / 'a.tif', shape, 'float64', blocksize=4096, num_threads=4)
    assert set(threading.enumerate()) == before


def test_an_error_of_a_block_does_not_keep_it_alive(folder):
    class Block(np.ndarray):
        pass

    writer, gone = make_writer(folder), []
    for window in (Window(0, 0, 8, 9), Window(-1, 0, 7, 8)):
        block = IMAGE[:8, :8].copy().view(Block)
        weakref.finalize(block, gone.append, window)
        with pytest.raises((WindowShapeError, CoverageError)):
            writer.write_block(window, block)
        del block
        gc.collect()
        assert gone[-1] == window
    writer.abort()


FORGOTTEN = '''
import os, sys, threading, time
import numpy as np
from cocoseg import CogWriter, Window
from cocoseg.io import tile_codec, tile_spool
tile_spool.RAM_NBYTES = 0
folder, how = sys.argv[1:]
slow = tile_codec.TileCodec.iter_payloads
def late(codec, tile):
    time.sleep(0.02)
    return slow(codec, tile)
tile_codec.TileCodec.iter_payloads = late
writer = CogWriter(os.path.join(folder, 'a.tif'), (512, 512), 'uint8', blocksize=64, num_threads=3)
for y in range(0, 448, 64):
    writer.write_block(Window(y, 0, y + 64, 512), np.full((64, 512), y % 251, np.uint8))
if how == 'full':
    def refuse(*args):
        raise OSError(28, 'No space left on device')
    os.pwritev = refuse
    writer.write_block(Window(448, 0, 512, 512), np.zeros((64, 512), np.uint8))
if how == 'error':
    raise ZeroDivisionError
if how == 'daemon':
    def work():
        for x in range(0, 512):
            writer.write_block(Window(448, x, 512, x + 1), np.zeros((64, 1), np.uint8))
    threading.Thread(target=work, daemon=True).start()
print('end', os.listdir(folder), flush=True)
'''


def test_a_forgotten_writer_does_not_stop_the_process_from_ending(folder):
    processes = {}
    for how in ('error', 'full', 'daemon'):
        (folder / how).mkdir()
        processes[how] = subprocess.Popen(
            [sys.executable, '-c', FORGOTTEN, str(folder / how), how], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=Path(cocoseg.__file__).parent.parent)
    for how, process in processes.items():
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert names(folder / how) == []
        if how == 'error':
            assert process.returncode == 1 and 'ZeroDivisionError' in err
        else:
            assert process.returncode == 0 and out == 'end []\n', err


@pytest.mark.parametrize('num_threads', [1, 2])
def test_close_in_one_thread_while_another_writes(folder, num_threads):
    """Either all pixels came, or they are told to be missing; no block is half taken."""
    for number in range(6):
        writer, results = make_writer(folder, num_threads=num_threads), []

        def write():
            try:
                give(writer)
                results.append('written')
            except ImageClosedError:
                results.append('closed')
            except BaseException as ex:
                results.append(ex)
        thread = threading.Thread(target=write)
        thread.start()
        time.sleep(0.003 * number)
        try:
            writer.close()
        except CoverageError as ex:
            assert 'did not come' in str(ex)
            thread.join(20)
            writer.close()
        thread.join(20)
        assert results == ['written']
        assert (folder / 'a.tif').read_bytes() == expect(folder)
        os.unlink(folder / 'a.tif')


def test_abort_in_one_thread_while_others_write(folder):
    for number in range(4):
        writer, results = make_writer(folder), []

        def write(part):
            try:
                give(writer, part)
            except ImageClosedError:
                pass
            except BaseException as ex:
                results.append(ex)
        threads = [threading.Thread(target=write, args=(WINDOWS[k::3],)) for k in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.002 * number)
        writer.abort()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        assert results == [] and names(folder) == [] and writer.nbytes == 0
