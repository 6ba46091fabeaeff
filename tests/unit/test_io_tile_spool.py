"""The spool of tiles: in RAM, in a nameless file, and on disks that fail half way."""
import errno
import gc
import os
import random
import tempfile
import threading
import warnings
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.errors import ImageClosedError
from cocoseg.io import tile_spool
from cocoseg.io.tile_spool import TileSpool, write_all

from ..builders import watch_files

LARGE = 3 * tile_spool._LEAST_COPY + 17


@pytest.fixture(params=['ram', 'file'])
def make(request, tmp_path):
    """Return a function that makes a spool of each kind, closed at the end."""
    spools = []

    def make_spool(**options):
        options = {'ram_nbytes': {'ram': 1 << 26, 'file': 0}[request.param], **options}
        spools.append(TileSpool(tmp_path, **options))
        return spools[-1]
    yield make_spool
    for spool in spools:
        spool.close()


@pytest.fixture
def target(tmp_path):
    """Descriptor of an empty file, and a function that returns what it holds."""
    with tempfile.TemporaryFile() as file:
        descriptor = file.fileno()
        yield descriptor, lambda: os.pread(descriptor, 1 << 28, 0)


def noise(nbytes, seed=0):
    return random.Random(seed).randbytes(nbytes)


def refuse(code):
    """Return a function that fails as the system does."""
    def call(*args, **options):
        raise OSError(code, f'{os.strerror(code)} (simulated)')
    return call


def count_descriptors():
    return len(os.listdir('/proc/self/fd'))


# ---- where bytes are ------------------------------------------------------------

def test_the_move_to_a_file_keeps_every_byte(tmp_path, monkeypatch):
    made = watch_files(monkeypatch)
    spool, limit = TileSpool(tmp_path, ram_nbytes=1000), 1000
    parts = [noise(300, seed) for seed in range(8)]
    places = [spool.append([part[:7], part[7:]]) for part in parts[:3]]
    assert made == [] and spool.nbytes == 900 <= limit
    places += [spool.append([part]) for part in parts[3:]]
    assert len(made) <= 1 and spool.nbytes == 0
    assert [spool.read(place, 300) for place in places] == parts
    assert os.listdir(tmp_path) == []
    spool.close()


@pytest.mark.parametrize('nbytes, in_ram', [(999, True), (1000, True), (1001, False)])
def test_the_limit_of_ram_is_exact(tmp_path, nbytes, in_ram):
    spool = TileSpool(tmp_path, ram_nbytes=1000)
    place = spool.append([noise(nbytes)])
    assert spool.nbytes == (nbytes if in_ram else 0)
    assert spool.read(place, nbytes) == noise(nbytes)
    spool.close()


def test_parts_may_be_any_bytes(make):
    spool = make()
    array = np.arange(12, dtype=np.uint16).reshape(3, 4)
    expected = b'abcdef' + array.tobytes() + b'z'
    place = spool.append([b'ab', bytearray(b'cd'), memoryview(b'xefx')[1:3], array, b'', b'z'])
    # They are copied, not held.
    array[...] = 0
    assert spool.read(place, len(expected)) == expected
    assert spool.read(spool.append([b'']), 0) == b''


def test_a_part_of_the_middle_can_be_read(make):
    spool = make()
    place = spool.append([noise(5000)])
    assert spool.read(place + 1234, 77) == noise(5000)[1234:1311]


@given(data=st.data())
@settings(max_examples=60)
def test_any_order_of_calls_equals_a_list(data):
    """Append, free and read against a dict; the limit of RAM is anywhere."""
    limit = data.draw(st.integers(0, 300))
    with tempfile.TemporaryDirectory() as folder, closing(TileSpool(folder, limit)) as spool:
        held, n_stored = {}, 0
        for number in range(data.draw(st.integers(1, 30))):
            if held and data.draw(st.booleans()):
                place = data.draw(st.sampled_from(sorted(held)))
                spool.free(place, len(held.pop(place)))
                continue
            content = noise(data.draw(st.sampled_from([1, 5, 5, 40])), number)
            place = spool.append([content[:2], content[2:]])
            assert all(place + len(content) <= start or start + len(part) <= place
                       for start, part in held.items())
            held[place] = content
            n_stored += len(content)
            for start, part in held.items():
                assert spool.read(start, len(part)) == part
        assert max((start + len(part) for start, part in held.items()), default=0) <= n_stored
        order = data.draw(st.permutations(sorted(held)))
        with tempfile.TemporaryFile() as file:
            spool.copy_to(file.fileno(), [(place, len(held[place])) for place in order])
            found = os.pread(file.fileno(), 1 << 16, 0)
        assert found == b''.join(held[place] for place in order)


@pytest.mark.parametrize('limit', [0, 100, 1 << 20])
def test_freed_bytes_are_used_again(tmp_path, limit):
    spool = TileSpool(tmp_path, ram_nbytes=limit)
    places = [spool.append([noise(40, seed)]) for seed in range(4)]
    spool.free(places[1], 40)
    # Another number of bytes does not fit there.
    other = spool.append([noise(39, 8)])
    assert other not in places
    assert spool.append([noise(17, 9), noise(23, 10)]) == places[1]
    assert spool.read(places[1], 40) == noise(17, 9) + noise(23, 10)
    assert [spool.read(places[k], 40) for k in (0, 2, 3)] == [noise(40, k) for k in (0, 2, 3)]
    assert spool.append([noise(40, 11)]) not in places
    spool.close()


def test_what_was_freed_in_ram_is_used_in_the_file(tmp_path):
    spool = TileSpool(tmp_path, ram_nbytes=100)
    first, second = spool.append([noise(40, 0)]), spool.append([noise(40, 1)])
    spool.free(first, 40)
    large = spool.append([noise(500, 2)])
    assert spool.nbytes == 0
    assert spool.append([noise(40, 3)]) == first
    found = [spool.read(*place) for place in ((first, 40), (second, 40), (large, 500))]
    assert found == [noise(40, 3), noise(40, 1), noise(500, 2)]
    spool.close()


# ---- copies ---------------------------------------------------------------------

def test_copies_come_in_the_order_that_was_asked_for(make, target):
    spool = make()
    descriptor, get_content = target
    parts = [noise(nbytes, seed) for seed, nbytes in enumerate(
        [1, LARGE, 10, tile_spool._LEAST_COPY, tile_spool._LEAST_COPY - 1, 5, LARGE, 900] * 2)]
    places = [spool.append([part]) for part in parts]
    order = list(range(len(parts)))
    random.Random(0).shuffle(order)
    os.write(descriptor, b'head')
    spool.copy_to(descriptor, ((places[k], len(parts[k])) for k in order))
    # Again, as after an error: a piece may be copied more than once.
    spool.copy_to(descriptor, [(places[3], 7), (places[3], 7)])
    expected = b'head' + b''.join(parts[k] for k in order) + parts[3][:7] * 2
    assert get_content() == expected


def test_many_short_pieces_are_more_than_one_batch(make, target, monkeypatch):
    monkeypatch.setattr(tile_spool, '_BATCH', 1000)
    monkeypatch.setattr(tile_spool, '_LEAST_COPY', 600)
    spool, (descriptor, get_content) = make(), target
    parts = [noise(nbytes, nbytes) for nbytes in (599, 401, 1, 599, 600, 1, 999, 1000, 2, 398)]
    places = [spool.append([part]) for part in parts]
    spool.copy_to(descriptor, [(place, len(part))
                               for place, part in reversed(list(zip(places, parts)))])
    assert get_content() == b''.join(reversed(parts))


def test_nothing_is_copied_for_no_pieces(make, target):
    spool, (descriptor, get_content) = make(), target
    spool.append([b'abc'])
    spool.copy_to(descriptor, [])
    assert get_content() == b''


CANNOT = [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.ETXTBSY]


@pytest.mark.parametrize('code', [*CANNOT, None])
def test_a_system_that_cannot_copy_is_no_error(tmp_path, target, monkeypatch, code):
    spool, (descriptor, get_content) = TileSpool(tmp_path, ram_nbytes=0), target
    monkeypatch.setattr(tile_spool, '_BATCH', 1 << 12)
    places = [spool.append([noise(LARGE, seed)]) for seed in range(3)]
    if code is None:
        monkeypatch.delattr(os, 'copy_file_range')
    else:
        monkeypatch.setattr(os, 'copy_file_range', refuse(code))
    spool.copy_to(descriptor, [(places[k], LARGE) for k in (2, 0, 1)])
    assert get_content() == b''.join(noise(LARGE, k) for k in (2, 0, 1))
    spool.close()


def test_a_copy_that_stops_half_way_goes_on_by_hand(tmp_path, target, monkeypatch):
    spool, (descriptor, get_content) = TileSpool(tmp_path, ram_nbytes=0), target
    place = spool.append([noise(LARGE)])
    copy, calls = os.copy_file_range, []

    def copy_some(source, target, count, **options):
        calls.append(count)
        if len(calls) > 2:
            raise OSError(errno.EXDEV, 'another disk (simulated)')
        return copy(source, target, 1000, **options)
    monkeypatch.setattr(os, 'copy_file_range', copy_some)
    spool.copy_to(descriptor, [(place, LARGE)])
    assert get_content() == noise(LARGE) and calls == [LARGE, LARGE - 1000, LARGE - 2000]
    spool.close()


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO, errno.EFBIG, errno.EDQUOT])
def test_a_copy_that_fails_is_an_error(tmp_path, target, monkeypatch, code):
    spool, (descriptor, _) = TileSpool(tmp_path, ram_nbytes=0), target
    place = spool.append([noise(LARGE)])
    with monkeypatch.context() as patch:
        patch.setattr(os, 'copy_file_range', refuse(code))
        with pytest.raises(OSError, match='simulated') as caught:
            spool.copy_to(descriptor, [(place, LARGE)])
    assert caught.value.errno == code
    assert spool.read(place, LARGE) == noise(LARGE)
    spool.close()


def test_a_copy_of_nothing_is_tried_by_hand(tmp_path, target, monkeypatch):
    """Some disks and kernels say 0 where they cannot copy; only a read tells the end."""
    spool, (descriptor, get_content) = TileSpool(tmp_path, ram_nbytes=0), target
    place = spool.append([noise(LARGE)])
    monkeypatch.setattr(os, 'copy_file_range', lambda *args, **options: 0)
    spool.copy_to(descriptor, [(place, LARGE)])
    assert get_content() == noise(LARGE)
    spool.close()


# ---- systems that stop half way -------------------------------------------------

def cut_short(monkeypatch, seed=0):
    """Let every call of the system do only a part, at least a byte."""
    rng = random.Random(seed)
    writev, pwritev, preadv, copy = (
        os.writev, os.pwritev, os.preadv, os.copy_file_range)

    def take(views):
        nbytes = sum(memoryview(view).nbytes for view in views)
        joined = b''.join(views)
        return joined[:rng.randint(1, nbytes)]
    monkeypatch.setattr(os, 'writev', lambda fd, views: writev(fd, [take(views)]))
    monkeypatch.setattr(
        os, 'pwritev', lambda fd, views, offset: pwritev(fd, [take(views)], offset))
    monkeypatch.setattr(os, 'preadv', lambda fd, views, offset: preadv(
        fd, [views[0][:rng.randint(1, len(views[0]))]], offset))
    monkeypatch.setattr(os, 'copy_file_range', lambda source, target, count, **options: copy(
        source, target, rng.randint(1, count), **options))


@pytest.mark.parametrize('seed', range(3))
def test_short_writes_reads_and_copies_lose_nothing(make, target, monkeypatch, seed):
    cut_short(monkeypatch, seed)
    spool, (descriptor, get_content) = make(), target
    parts = [noise(nbytes, nbytes) for nbytes in (1, 2, 777, LARGE, 30000, LARGE + 1, 3)]
    places = [spool.append([part[:1], part[1:-1], part[-1:]] if len(part) > 1 else [part])
              for part in parts]
    assert [spool.read(place, len(part)) for place, part in zip(places, parts)] == parts
    spool.copy_to(descriptor, [(place, len(part)) for place, part in zip(places, parts)])
    assert get_content() == b''.join(parts)


@given(parts=st.lists(st.binary(max_size=9), max_size=9), seed=st.integers(0, 99),
       offset=st.none() | st.integers(0, 20))
@settings(max_examples=100)
def test_all_is_written_however_the_system_cuts_it(parts, seed, offset):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryFile() as file:
        cut_short(patch, seed)
        os.write(file.fileno(), b'....')
        write_all(file.fileno(), parts, offset)
        found = os.pread(file.fileno(), 1000, 0)
    content, start = b''.join(parts), 4 if offset is None else offset
    assert found[start:start + len(content)] == content
    assert found[:start].strip(b'\0') == b'....'[:start]


@pytest.mark.parametrize('offset', [None, 0])
def test_a_system_that_writes_nothing_is_an_error(target, monkeypatch, offset):
    descriptor, _ = target
    monkeypatch.setattr(os, 'writev', lambda *args: 0)
    monkeypatch.setattr(os, 'pwritev', lambda *args: 0)
    write_all(descriptor, [b'', b''], offset)
    with pytest.raises(OSError, match='wrote nothing') as caught:
        write_all(descriptor, [b'', b'a'], offset)
    assert caught.value.errno == errno.EIO


def test_a_spool_that_ends_too_early_is_an_error(tmp_path, target):
    spool, (descriptor, _) = TileSpool(tmp_path, ram_nbytes=0), target
    place = spool.append([noise(LARGE)])
    with pytest.raises(OSError, match='too early'):
        spool.read(place + 1, LARGE)
    for pieces in ([(place + 1, LARGE)], [(place + LARGE - 1, 2)]):
        with pytest.raises(OSError, match='too early'):
            spool.copy_to(descriptor, pieces)
    spool.close()


# ---- full disks -----------------------------------------------------------------

def watch_ends(monkeypatch):
    """Return a list to which every write at a place in a file adds its end."""
    ends, pwritev = [], os.pwritev

    def watch(descriptor, views, offset):
        ends.append(offset + sum(memoryview(view).nbytes for view in views))
        return pwritev(descriptor, views, offset)
    monkeypatch.setattr(os, 'pwritev', watch)
    return ends


def test_no_room_to_move_from_ram_leaves_the_spool_as_it_was(tmp_path, monkeypatch):
    spool, before = TileSpool(tmp_path, ram_nbytes=1000), count_descriptors()
    place = spool.append([noise(900)])
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(os, 'pwritev', refuse(errno.ENOSPC))
            with pytest.raises(OSError, match='simulated') as caught:
                spool.append([noise(500, 1)])
        assert caught.value.errno == errno.ENOSPC and spool.nbytes == 900
        del caught
        assert count_descriptors() == before
        assert spool.read(place, 900) == noise(900)
    # What still fits in RAM is taken.
    small = spool.append([noise(50, 2)])
    large = spool.append([noise(500, 1)])
    assert large == 950 and spool.nbytes == 0
    found = [spool.read(*piece) for piece in ((place, 900), (small, 50), (large, 500))]
    assert found == [noise(900), noise(50, 2), noise(500, 1)]
    spool.close()


def test_an_error_that_is_kept_does_not_hold_the_ram(tmp_path, monkeypatch):
    """A frame of its traceback held a view, and the RAM could not grow any more."""
    def fail(*args):
        raise OSError(errno.ENOSPC, 'no room')
    with closing(TileSpool(tmp_path, ram_nbytes=8)) as spool:
        first = spool.append([b'abcd'])
        with monkeypatch.context() as patch, pytest.raises(OSError) as info:
            patch.setattr(os, 'pwritev', fail)
            spool.append([b'too much of it'])
        second = spool.append([b'efg'])
        assert info.value.errno == errno.ENOSPC
        assert spool.read(first, 4) + spool.read(second, 3) == b'abcdefg'


def test_a_folder_that_is_gone_leaves_the_spool_as_it_was(tmp_path):
    folder = tmp_path / 'a'
    folder.mkdir()
    spool = TileSpool(folder, ram_nbytes=10)
    place = spool.append([b'abc'])
    folder.rmdir()
    with pytest.raises(FileNotFoundError):
        spool.append([noise(500)])
    folder.mkdir()
    large = spool.append([noise(500)])
    assert (spool.read(place, 3), spool.read(large, 500)) == (b'abc', noise(500))
    spool.close()


def test_the_folder_is_that_of_the_start(tmp_path, monkeypatch):
    """Also when the process goes elsewhere before the file is needed."""
    made = watch_files(monkeypatch)
    seen, make_file = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, 'TemporaryFile', lambda *args, **options: (
        seen.append(options['dir']), make_file(*args, **options))[1])
    (tmp_path / 'other').mkdir()
    monkeypatch.chdir(tmp_path)
    spool = TileSpool('', ram_nbytes=0)
    monkeypatch.chdir(tmp_path / 'other')
    spool.append([b'a'])
    assert seen == [str(tmp_path)] and made == []
    spool.close()


@pytest.mark.parametrize('code', [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_write_that_fails_can_be_tried_again(tmp_path, monkeypatch, code):
    spool = TileSpool(tmp_path, ram_nbytes=0)
    places = [spool.append([noise(100, 0)])]
    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwritev', refuse(code))
        with pytest.raises(OSError, match='simulated'):
            spool.append([noise(100, 1)])
    places += [spool.append([noise(100, seed)]) for seed in (1, 2)]
    assert [spool.read(place, 100) for place in places] == [noise(100, k) for k in range(3)]
    spool.close()


@pytest.mark.parametrize('is_freed', [False, True])
def test_tries_that_fail_do_not_eat_the_disk(tmp_path, monkeypatch, is_freed):
    """A part of each may have been written: the next must take its place."""
    spool = TileSpool(tmp_path, ram_nbytes=0)
    place = spool.append([noise(100)])
    if is_freed:
        spool.free(place, 100)
    pwritev = os.pwritev

    def stop_half_way(descriptor, views, offset):
        if offset % 100:
            raise OSError(errno.ENOSPC, 'no space (simulated)')
        return pwritev(descriptor, [b''.join(views)[:50]], offset)
    with monkeypatch.context() as patch:
        patch.setattr(os, 'pwritev', stop_half_way)
        for _ in range(20):
            with pytest.raises(OSError, match='simulated'):
                spool.append([noise(100, 1)])
    ends = watch_ends(monkeypatch)
    found = spool.append([noise(100, 1)])
    assert spool.read(found, 100) == noise(100, 1)
    assert ends[-1] <= (100 if is_freed else 200)
    spool.close()


def test_an_error_between_two_parts_does_not_shift_what_comes_next(make):
    spool = make()
    first = spool.append([b'first'])
    # As too little memory would: a view with gaps has a size, but no bytes to copy.
    with pytest.raises((BufferError, TypeError, ValueError, NotImplementedError)):
        spool.append([b'ab', memoryview(b'0123456789')[::2]])
    second = spool.append([b'second'])
    assert (spool.read(first, 5), spool.read(second, 6)) == (b'first', b'second')


@pytest.mark.parametrize('method', ['__setitem__', '__iadd__', 'extend'])
def test_too_little_memory_does_not_shift_what_comes_next(tmp_path, method):
    class Scarce(bytearray):
        """Bytes that cannot grow, for once."""

    def fail(*args):
        delattr(Scarce, method)
        raise MemoryError('no memory (simulated)')
    spool = TileSpool(tmp_path)
    spool._ram = Scarce()
    places = {spool.append([b'first']): b'first'}
    setattr(Scarce, method, fail)
    for content in (b'second', b'third', b'fourth'):
        try:
            places[spool.append([content[:2], content[2:]])] = content
        except MemoryError:
            places[spool.append([content])] = content
    assert {place: spool.read(place, len(content))
            for place, content in places.items()} == places
    spool.close()


# ---- threads and the end --------------------------------------------------------

@pytest.mark.parametrize('limit', [0, 20000, 1 << 26])
def test_many_threads_use_one_spool(tmp_path, limit):
    spool, wrong = TileSpool(tmp_path, ram_nbytes=limit), []

    def work(seed):
        rng, held = random.Random(seed), []
        for number in range(150):
            content = noise(rng.choice([64, 64, 100, 3000]), 1000 * seed + number)
            held.append((spool.append([content[:9], content[9:]]), content))
            if rng.random() < 0.5:
                place, content = held.pop(rng.randrange(len(held)))
                if spool.read(place, len(content)) != content:
                    wrong.append(place)
                spool.free(place, len(content))
        wrong.extend(place for place, content in held
                     if spool.read(place, len(content)) != content)
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == [] and os.listdir(tmp_path) == []
    spool.close()


def test_a_closed_spool_is_empty_and_refuses(make, target):
    before = count_descriptors()
    spool = make()
    place = spool.append([noise(5000)])
    spool.close()
    spool.close()
    assert spool.nbytes == 0 and count_descriptors() == before
    for call in (lambda: spool.append([b'a']), lambda: spool.read(place, 5),
                 lambda: spool.copy_to(target[0], [(place, 5)])):
        with pytest.raises(ImageClosedError):
            call()
    spool.free(place, 5000)


def test_a_spool_that_was_dropped_leaves_nothing(tmp_path):
    before = count_descriptors()
    for _ in range(3):
        spool = TileSpool(tmp_path, ram_nbytes=0)
        spool.append([noise(100)])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)
            del spool
    assert count_descriptors() == before and os.listdir(tmp_path) == []


def test_close_waits_for_a_write_that_is_under_way(tmp_path, monkeypatch):
    """Else the number of the file may be that of another one when the write goes on."""
    spool, pwritev = TileSpool(tmp_path, ram_nbytes=0), os.pwritev
    spool.append([b'a'])
    is_writing, go_on = threading.Event(), threading.Event()

    def write_late(descriptor, views, offset):
        is_writing.set()
        assert go_on.wait(10)
        return pwritev(descriptor, views, offset)
    monkeypatch.setattr(os, 'pwritev', write_late)

    def append():
        try:
            spool.append([b'tile'])
        except (OSError, ImageClosedError):
            pass
    writer = threading.Thread(target=append)
    writer.start()
    assert is_writing.wait(10)
    closer = threading.Thread(target=spool.close)
    closer.start()
    closer.join(0.2)
    other = open(tmp_path / 'precious', 'w+b', buffering=0)
    other.write(b'precious')
    go_on.set()
    writer.join(10)
    closer.join(10)
    other.close()
    assert (tmp_path / 'precious').read_bytes() == b'precious'


# ---- files that a process may open -----------------------------------------------

def test_spools_leave_half_of_the_files_to_others(tmp_path, monkeypatch, caplog):
    """Without one, what is finished could not even be written."""
    monkeypatch.setattr(tile_spool, '_FILES', tile_spool._OpenFiles())
    monkeypatch.setattr(tile_spool, '_get_file_limit', lambda: 5)
    spools = [TileSpool(tmp_path, ram_nbytes=0) for _ in range(4)]
    places = [spool.append([noise(100, number)]) for number, spool in enumerate(spools)]
    assert [spool.nbytes for spool in spools] == [0, 0, 100, 100]
    assert caplog.text.count('ulimit -n') == 1
    spools[0].close()
    # There is room for one more file: what waited in RAM goes there.
    spools[3].append([noise(50)])
    spools[2].append([noise(50)])
    assert [spool.nbytes for spool in spools[1:]] == [0, 150, 0]
    for number in (1, 2, 3):
        assert spools[number].read(places[number], 100) == noise(100, number)
        spools[number].close()


def test_a_file_that_cannot_be_made_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(tile_spool, '_FILES', tile_spool._OpenFiles())
    monkeypatch.setattr(tile_spool, '_get_file_limit', lambda: 2)
    spool = TileSpool(tmp_path / 'missing', ram_nbytes=0)
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            spool.append([b'tile'])
    (tmp_path / 'missing').mkdir()
    assert spool.read(spool.append([b'tile']), 4) == b'tile'
    assert spool.nbytes == 0
    spool.close()


def test_a_forgotten_spool_lets_its_file_go(tmp_path, monkeypatch):
    files = tile_spool._OpenFiles()
    monkeypatch.setattr(tile_spool, '_FILES', files)
    # What other tests have left must not go between the two counts.
    gc.collect()
    before = count_descriptors()
    spool = TileSpool(tmp_path, ram_nbytes=0)
    spool.append([b'tile'])
    assert files._n_open == 1
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        del spool
        gc.collect()
    assert files._n_open == 0 and count_descriptors() == before
