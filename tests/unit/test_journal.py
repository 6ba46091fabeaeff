"""The journal survives being cut short anywhere."""
import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cocoseg.coco.journal import Journal, compute_checksum
from cocoseg.errors import ResumeError

RECORDS = st.lists(st.dictionaries(
    st.sampled_from(['image_id', 'asset', 'region']),
    st.none() | st.integers() | st.text(max_size=5) | st.lists(st.floats(-9, 9), max_size=3)),
    max_size=4)


@pytest.fixture()
def journal(tmp_path):
    return Journal(tmp_path / 'journal.jsonl', config='abc')


def test_nothing_written_nothing_read(journal, tmp_path):
    assert journal.read() == []
    journal.clear()
    assert os.listdir(tmp_path) == []


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


def test_a_record_is_on_the_disk_when_append_returns(journal, monkeypatch):
    flushed = []
    real = os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: (flushed.append(os.fstat(fd).st_size), real(fd)))
    journal.append({'image_id': 1})
    assert flushed == [os.path.getsize(journal.fpath)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(before=RECORDS, after=RECORDS, cut=st.floats(0, 1),
       tail=st.sampled_from([b'', b'\n', b'\0\0\0', b'\xff\xfe', b'{"versi']))
def test_a_crash_loses_at_most_what_was_being_written(tmp_path, before, after, cut, tail):
    fpath = tmp_path / 'journal.jsonl'
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


def test_another_version_is_refused(journal):
    journal.append({'image_id': 1})
    fpath = Path(journal.fpath)
    fpath.write_text(fpath.read_text().replace('"version": 1', '"version": 0'))
    with pytest.raises(ResumeError):
        journal.read()


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


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(OSError):
        Journal(tmp_path / 'gone' / 'journal.jsonl', 'abc').append({'image_id': 1})


@pytest.mark.parametrize('content', [b'', b'123456789', bytes(range(256)) * 5000])
def test_checksum_is_crc32(tmp_path, content):
    (tmp_path / 'file').write_bytes(content)
    assert compute_checksum(tmp_path / 'file') == f'{zlib.crc32(content):08x}'
