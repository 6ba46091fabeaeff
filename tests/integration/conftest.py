"""Managers to give bad input to; modules with others of these names use their own."""
import pytest

from ..builders import make_two_images, making_managers


@pytest.fixture
def dset(tmp_path):
    """Two images without pixels."""
    return make_two_images(tmp_path / 'bundle')


@pytest.fixture
def make_manager(dset):
    """Return a function that makes a manager, which is closed after the test."""
    with making_managers(dset) as make:
        yield make


@pytest.fixture
def manager(make_manager):
    """A manager of the two images with the channels x and y."""
    return make_manager()
