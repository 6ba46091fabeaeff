"""A disk that is full at any byte: a typed error, nothing visible, nothing lost."""
import errno

import pytest

# To the byte where a file is short, and at its very end: the last flush is where
# an error goes missing. Floats are parts of the file; 1 MiB is where the tiles that
# wait leave the RAM.
LIMITS = [0, 1, 8, 16, 200, 1000, 4095, 4096, 4097, 0.05, 0.3, 0.6, (1 << 20) - 1, 1 << 20,
          (1 << 20) + 1, 0.9, -70000, -8192, -4096, -1000, -100, -16, -8, -4, -3, -2, -1]
FREE = [0, 1, 2, 5, 32, 100, 200, 256, 257, 300, -10, -2, -1]  # pages


def check_error(error):
    """It says which image and which file, and what to do."""
    assert error['kind'] == 'AssetWriteError' and error['is_os_error']
    assert error['image_id'] == 1 and 'image 1' in error['text']
    assert error['path'].endswith('.tif') and error['path'] in error['text']
    assert 'submit the image again' in error['text']


def check_starved(fact, whole, way):
    """It failed with nothing visible, and then gave the bytes of a healthy disk."""
    check_error(fact['first'])
    assert fact['after'] == {'visible': [], 'damaged': [], 'leftovers': [], 'registered': 0}
    if way == 'close':
        assert fact['end']['visible'] == [] and fact['end']['registered'] == 0
    else:
        assert fact['again'] is None, fact['again']['text']
        assert fact['close'] is None, fact['close']['text']
        assert fact['end']['visible'] == whole['end']['visible']
        assert fact['files'] == whole['files'] and fact['end']['registered'] == 1
    assert fact['end']['damaged'] == [] and fact['end']['leftovers'] == []


def list_events(events, kind):
    return [event for event in events if event['kind'] == kind]


@pytest.mark.parametrize('way, early, declared, limits', [
    ('finalize', False, True, LIMITS), ('finalize', True, True, LIMITS[1::3]),
    ('submit', True, False, LIMITS[::4]),
    ('close', True, True, LIMITS[::5]), ('close', False, False, LIMITS[3::5])])
def test_a_file_that_cannot_grow(nursery, tmp_path, way, early, declared, limits):
    """A system limit ends every file at a byte that the test chooses."""
    victim = nursery.start('starve_at_limits', folder=str(tmp_path), limits=limits, way=way,
                           early=early, declared=declared)
    victim.finish()
    whole, = list_events(victim.events, 'whole')
    assert whole['first'] is None and whole['end']['registered'] == 1
    (nbytes, _), = whole['files']
    starved = list_events(victim.events, 'starved')
    assert len(starved) == len(limits)
    for fact in starved:
        assert 0 <= fact['limit'] < nbytes
        check_starved(fact, whole, way)


@pytest.mark.parametrize('way, early, declared, free', [
    ('finalize', False, True, FREE), ('submit', True, True, FREE[::2]),
    ('finalize', True, False, FREE[1::3])])
def test_a_disk_without_space(nursery, tmp_path, way, early, declared, free):
    """A real small disk is filled up but for some pages."""
    victim = nursery.start('starve_at_limits', folder=str(tmp_path / 'whole'), limits=[], way=way,
                           early=False, declared=declared)
    whole = victim.finish()['whole']
    (nbytes, _), = whole['files']
    n_needed = -(-nbytes // 4096)
    pages = [n_free if n_free >= 0 else n_needed + n_free for n_free in free]
    assert max(pages) < n_needed
    victim = nursery.start('starve_on_small_disk', folder=str(tmp_path / 'disk'), mounts=True,
                           free_pages=[*pages, 4 * n_needed], way=way, early=early,
                           declared=declared)
    events = victim.finish()
    if 'skip' in events:
        pytest.skip(events['skip']['reason'])
    *starved, roomy = list_events(victim.events, 'starved')
    assert [fact['n_free'] for fact in starved] == pages
    for fact in starved:
        check_starved(fact, whole, way)
        assert 'No space left' in fact['first']['text']
    assert roomy['first'] is None and roomy['files'] == whole['files']


def test_a_writer_whose_blocks_find_no_room(nursery, tmp_path):
    """What was refused is given again when there is room; the bytes are the same."""
    victim = nursery.start('starve_writer', folder=str(tmp_path / 'files'), limits=LIMITS[::3])
    whole = victim.finish()['whole']['file']
    found = list_events(victim.events, 'written')
    assert len(found) == len(LIMITS[::3])
    for fact in found:
        assert fact['errors'] and fact['names'] == []
        for error in fact['errors']:
            assert error['kind'] == 'AssetWriteError' and error['path'] == fact['path']
        assert fact['again'] is None and fact['file'] == whole and fact['held'] == 0


def test_no_room_for_the_line_of_the_journal(nursery, tmp_path):
    """The asset is there already; it must not count before its line is whole."""
    cuts = [0, 1, 2, 10, 50, 100, 200, 300]
    victim = nursery.start('starve_journal', folder=str(tmp_path), cuts=cuts)
    victim.finish()
    found = list_events(victim.events, 'cut')
    assert [fact['cut'] for fact in found] == cuts
    for fact in found:
        assert fact['first']['kind'] == 'AssetWriteError' and fact['first']['image_id'] == 1
        assert fact['nbytes'] <= fact['cut'], 'the journal met the limit'
        assert fact['after']['registered'] == 0 and fact['after']['damaged'] == []
        assert fact['again'] is None and fact['n_lines'] == 1
        assert fact['is_done'] and fact['end']['registered'] == 1
        assert fact['end']['damaged'] == [] and fact['end']['leftovers'] == []


def test_no_room_for_the_manifest(nursery, tmp_path):
    """The old one stays as it is, to the byte."""
    parts = [0, 0.01, 0.3, 0.7, 0.99, 1]
    victim = nursery.start('starve_manifest', folder=str(tmp_path), parts=parts)
    events = victim.finish()
    found = list_events(victim.events, 'dumped')
    assert [fact['part'] for fact in found] == parts
    for fact in found:
        assert fact['error']['is_os_error'] and f'[Errno {errno.EFBIG}]' in fact['error']['text']
        assert fact['kept'] and fact['leftovers'] == []
    assert events['again']['error'] is None and events['again']['is_whole']
