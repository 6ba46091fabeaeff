"""The nursery of children that are hurt, and what they would make undisturbed."""
import os
import sys

import pytest

from .nursery import Nursery


@pytest.fixture(scope='session')
def nursery():
    """Return what forks children; the tests that use it are for Linux."""
    if not sys.platform.startswith('linux'):
        pytest.skip('children are forked and watched with the means of Linux')
    nursery = Nursery()
    assert nursery.n_threads == 1, 'a fork of several threads can hang'
    yield nursery
    nursery.close()


@pytest.fixture(scope='session')
def programs(nursery, tmp_path_factory):
    """Return {program: its options besides the folder}."""
    source = tmp_path_factory.mktemp('source')
    nursery.run('make_source', folder=os.fspath(source))
    return {'predict': {'source': os.fspath(source / 'source.kwcoco.json')}, 'manage': {}}


@pytest.fixture(scope='session')
def undisturbed(nursery, programs, tmp_path_factory):
    """Return a function that gives the bundle and the events of a run without a fault."""
    made = {}

    def get(program):
        if program not in made:
            folder = tmp_path_factory.mktemp(program)
            events = nursery.run(program, folder=os.fspath(folder), **programs[program])
            made[program] = folder, events
        return made[program]
    return get
