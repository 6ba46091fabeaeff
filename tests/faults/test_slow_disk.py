"""A slow disk: the producer waits, memory stays bounded, and all comes right."""
import pytest

from .checks import check_whole

# Of one image of the programs: 150 x 190 px, 2 channels of float32.
IMAGE_NBYTES = 150 * 190 * 2 * 4


@pytest.fixture(scope='module')
def healthy(nursery, tmp_path_factory):
    """The bundle of a disk that is not slow."""
    folder = tmp_path_factory.mktemp('healthy')
    events = nursery.run('crawl', folder=str(folder), is_slow=False, max_pending_bytes=1 << 30,
                         workers=2)
    assert events['end']['total'] >= 12 * IMAGE_NBYTES
    return folder


@pytest.mark.parametrize('n_bytes, workers', [(1, 1), (1, 3), (2.5 * IMAGE_NBYTES, 3)])
def test_images_do_not_pile_up(nursery, tmp_path, healthy, n_bytes, workers):
    """A child that hangs is ended with its stacks, which fails the test."""
    events = nursery.run('crawl', folder=str(tmp_path), is_slow=True,
                         max_pending_bytes=int(n_bytes), workers=workers)
    end = events['end']
    assert end['total'] >= 12 * IMAGE_NBYTES and end['left'] == 0
    assert 0 < end['peak'] <= max(n_bytes, end['total'] / 12)
    assert check_whole(tmp_path, healthy) == []


def test_blocks_that_leave_early_wait_for_a_slow_disk_too(nursery, tmp_path):
    """Declared images are compressed while they come; on any disk to the same bytes."""
    options = {'max_pending_bytes': 1, 'workers': 2, 'declared': True}
    for name, is_slow in (('healthy', False), ('slow', True)):
        nursery.run('crawl', folder=str(tmp_path / name), is_slow=is_slow, **options)
    assert check_whole(tmp_path / 'slow', tmp_path / 'healthy') == []


def test_images_pile_up_without_a_bound(nursery, tmp_path):
    """So that the test above can fail."""
    events = nursery.run('crawl', folder=str(tmp_path), is_slow=True, max_pending_bytes=1 << 30,
                         workers=1)
    assert events['end']['peak'] > 4 * IMAGE_NBYTES
