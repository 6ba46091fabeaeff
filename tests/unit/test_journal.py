"""The journal survives being cut short anywhere, and has one writer."""
import gc
import json
import os
import stat
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoseg.coco.journal import Journal, compute_checksum
from cocoseg.errors import BundleBusyError, ResumeError

RECORDS = st.lists(st.dictionaries(
    st.sampled_from(['image_id', 'asset', 'region']),
    st.none() | st.integers() | st.text(max_size=5) | st.lists(st.floats(-9, 9), max_size=3)),
    max_size=4)


@pytest.fixture()
def folder(tmp_path):
    """The folder of the journal; the lock lies beside it."""
    (tmp_path / 'pred').mkdir()
    return tmp_path / 'pred'


@pytest.fixture()
def journal(folder):
    return Journal(folder / 'journal.jsonl', config='abc')


def test_nothing_written_nothing_read(journal, folder):
    assert journal.read() == []
    journal.clear()
    assert os.listdir(folder) == []


def test_records_come_back_in_order(journal):
    records = [{'image_id': 2, 'x': [1.5, None]}, {'image_id': 1, 'name': 'ümlaut\n'}]
    for record in records:
        journal.append(record)
    assert journal.read() == records
    assert Journal(journal.fpath, 'abc').read() == records


def test_each_record_is_one_line_that_says_its_settings(journal):
    journal.append({'image_id': 1, 'name': 'two\nlines'})
    line, = Path(journal.fpath).read_text().splitlines()
    assert json.loads(line)['config'] == 'abc'


@pytest.fixture()
def flushed(monkeypatch):
    """A list of what is flushed: the size of a file, or 'folder'."""
    found, real = [], os.fsync

    def fsync(descriptor):
        facts = os.fstat(descriptor)
        found.append('folder' if stat.S_ISDIR(facts.st_mode) else facts.st_size)
        real(descriptor)
    monkeypatch.setattr(os, 'fsync', fsync)
    return found


def test_a_record_is_on_the_disk_when_append_returns(journal, flushed):
    sizes = []
    for image_id in (1, 2):
        journal.append({'image_id': image_id})
        sizes.append(os.path.getsize(journal.fpath))
    # The name of the file, too, but only once.
    assert flushed == [sizes[0], 'folder', sizes[1]]


def test_what_is_forgotten_stays_so(journal, flushed):
    journal.append({'image_id': 1})
    del flushed[:]
    journal.clear()
    assert flushed == ['folder'] and not os.path.exists(journal.fpath)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(before=RECORDS, after=RECORDS, cut=st.floats(0, 1),
       tail=st.sampled_from([b'', b'\n', b'\0\0\0', b'\xff\xfe', b'{"versi']))
def test_a_crash_loses_at_most_what_was_being_written(folder, before, after, cut, tail):
    fpath = folder / 'journal.jsonl'
    fpath.unlink(missing_ok=True)
    journal = Journal(fpath, 'abc')
    for record in before:
        journal.append(record)
    content = fpath.read_bytes() if before else b''
    content = content[:round(cut * len(content))]
    fpath.write_bytes(content + tail)
    for record in after:
        journal.append(record)
    found = journal.read()
    # A line without its line feed is complete, unless the tail spoils it.
    n_whole = content.count(b'\n')
    n_kept = len(found) - len(after)
    assert n_whole <= n_kept <= n_whole + 1
    assert found == before[:n_kept] + after


def test_other_settings_are_refused(journal):
    journal.append({'image_id': 1})
    with pytest.raises(ResumeError, match='abc.*now def.*resume=False'):
        Journal(journal.fpath, 'def').read()


def test_the_settings_that_differ_are_named_with_both_values(folder):
    old = {'thresh': '0.5', 'dtype': "'float32'", 'gone': '1'}
    new = {'thresh': '0.25', 'dtype': "'float32'", 'come': '2'}
    Journal(folder / 'journal.jsonl', 'abc', old).append({'image_id': 1})
    with pytest.raises(ResumeError) as caught:
        Journal(folder / 'journal.jsonl', 'def', new).read()
    message = str(caught.value)
    assert ('come was not given, now 2, gone was 1, now not given, thresh was 0.5, now 0.25;'
            in message)
    assert 'dtype' not in message and str(folder / 'journal.jsonl') in message


def write_old_line(fpath, config, **more):
    """Write a line as it was before the settings were noted."""
    Path(fpath).write_text(json.dumps({'version': 1, 'config': config,
                                       'record': {'image_id': 1}, **more}) + '\n')


def test_a_line_without_settings_can_be_resumed(journal):
    write_old_line(journal.fpath, 'abc')
    assert journal.read() == [{'image_id': 1}]
    write_old_line(journal.fpath, 'def')
    with pytest.raises(ResumeError, match='other settings.*not known'):
        journal.read()


@pytest.mark.parametrize('version', [0, 2, None, '1'])
def test_another_version_is_refused(journal, version):
    write_old_line(journal.fpath, 'abc', version=version)
    with pytest.raises(ResumeError, match=f'version {version!r}.*reads version 1'):
        journal.read()


@pytest.mark.parametrize('line', ['5', '[]', 'null', '{}', '"text"', '{"version": 1}'])
def test_what_is_json_but_no_record_is_passed_over(journal, line):
    journal.append({'image_id': 1})
    with open(journal.fpath, 'a') as file:
        file.write(f'{line}\n')
    journal.append({'image_id': 2})
    assert journal.read() == [{'image_id': 1}, {'image_id': 2}]


def test_clear_forgets(journal):
    journal.append({'image_id': 1})
    journal.clear()
    assert journal.read() == []
    journal.append({'image_id': 2})
    assert journal.read() == [{'image_id': 2}]


def test_threads_do_not_mix_their_lines(journal):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(journal.append, ({'image_id': i, 'pad': 'x' * 500} for i in range(60))))
    assert sorted(record['image_id'] for record in journal.read()) == list(range(60))


def test_a_short_write_is_an_error_and_spoils_nothing(journal, monkeypatch):
    journal.append({'image_id': 1})
    real = os.write
    monkeypatch.setattr(os, 'write', lambda fd, data: real(fd, data[:10]))
    with pytest.raises(OSError, match='cut short'):
        journal.append({'image_id': 2})
    monkeypatch.undo()
    journal.append({'image_id': 3})
    assert journal.read() == [{'image_id': 1}, {'image_id': 3}]


def test_a_write_that_fails_is_an_error(journal, monkeypatch):
    def fail(descriptor, data):
        raise OSError(28, 'No space left on device (simulated)')
    monkeypatch.setattr(os, 'write', fail)
    with pytest.raises(OSError, match='simulated'):
        journal.append({'image_id': 1})
    assert journal.read() == []


# --- several journals of one file in one process -------------------------------

def open_two(folder, busy=True, configs=('abc', 'abc')):
    """Return one that has begun, written a line and may be busy, and one that has not."""
    first = Journal(folder / 'journal.jsonl', configs[0], is_busy=lambda: busy)
    first.begin()
    first.append({'image_id': 1})
    return first, Journal(folder / 'journal.jsonl', configs[1])


def test_equals_share_and_nothing_is_cleared(folder):
    first, second = open_two(folder)
    assert second.begin() == []
    second.append({'image_id': 2})
    first.append({'image_id': 3})
    assert [record['image_id'] for record in first.read()] == [1, 2, 3]


def test_an_idle_one_is_no_reason_to_keep_lines(folder):
    first, second = open_two(folder, busy=False)
    second.begin()
    assert second.read() == []
    # It has the same settings, so that it may go on.
    first.append({'image_id': 2})
    assert second.read() == [{'image_id': 2}]


@pytest.mark.parametrize('resume', [False, True])
def test_one_with_other_settings_waits_for_a_busy_one(folder, resume):
    first, second = open_two(folder, configs=('abc', 'def'))
    with pytest.raises(BundleBusyError, match='journal.jsonl.*images in work.*short_code'):
        second.begin(resume)
    with pytest.raises(BundleBusyError):
        second.append({'image_id': 2})
    with pytest.raises(BundleBusyError):
        second.clear()
    first.append({'image_id': 3})
    assert [record['image_id'] for record in first.read()] == [1, 3]
    first.close()
    second.begin()
    second.append({'image_id': 4})
    assert second.read() == [{'image_id': 4}]


def test_one_with_other_settings_replaces_an_idle_one(folder):
    first, second = open_two(folder, busy=False, configs=('abc', 'def'))
    second.begin()
    second.append({'image_id': 3})
    assert second.read() == [{'image_id': 3}]


def test_who_was_replaced_waits_while_the_other_is_busy(folder, caplog):
    first, second = open_two(folder, busy=False, configs=('abc', 'def'))
    busy = [True]
    second._is_busy = lambda: busy[0]
    second.begin()
    for act in (first.ensure, first.clear, lambda: first.append({'image_id': 2})):
        with pytest.raises(BundleBusyError, match='other settings'):
            act()
    second.append({'image_id': 3})
    busy[0] = False
    first.append({'image_id': 4})
    # Both lines are kept, and that they do not go together is told, now and later.
    assert 'two managers with different settings' in caplog.text
    for journal in (first, second):
        with pytest.raises(ResumeError):
            journal.read()


def test_who_cannot_resume_replaces_nobody(folder):
    first, second = open_two(folder, busy=False, configs=('abc', 'def'))
    with pytest.raises(ResumeError):
        second.begin(resume=True)
    first.append({'image_id': 2})
    assert len(first.read()) == 2


def test_one_that_nobody_refers_to_is_not_in_the_way(folder):
    first, second = open_two(folder, configs=('abc', 'def'))
    # As a manager that is part of a cycle is not freed at once.
    first.myself = first
    del first
    second.begin()
    assert second.read() == []


def test_the_lock_lasts_as_long_as_its_users(folder):
    def list_locks():
        return [name for name in os.listdir(folder.parent) if name.endswith('.lock')]
    first, second = open_two(folder)
    second.begin()
    first.close()
    first.close()
    assert len(list_locks()) == 1
    del second
    gc.collect()
    assert list_locks() == []
    # Whoever closed it can take it again.
    first.append({'image_id': 2})
    assert len(list_locks()) == 1
    first.close()
    assert list_locks() == []


def test_journals_in_threads_do_not_mix_their_lines(folder):
    journals = [Journal(folder / 'journal.jsonl', 'abc', is_busy=lambda: True) for _ in range(4)]
    for journal in journals:
        journal.begin()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: journals[i % 4].append({'image_id': i, 'pad': 'x' * 5000}),
                      range(80)))
    assert sorted(record['image_id'] for record in journals[0].read()) == list(range(80))


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(OSError):
        Journal(tmp_path / 'gone' / 'journal.jsonl', 'abc').append({'image_id': 1})


@pytest.mark.parametrize('content', [b'', b'123456789', bytes(range(256)) * 5000])
def test_checksum_is_crc32(tmp_path, content):
    (tmp_path / 'file').write_bytes(content)
    assert compute_checksum(tmp_path / 'file') == f'{zlib.crc32(content):08x}'
