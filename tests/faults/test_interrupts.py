"""Ctrl-C and SIGTERM: Python tidies up, so nothing is half there, and a run can go on."""
import signal
import time

import pytest

from .checks import check_cut, check_whole, find_leftovers
from .trials import PACE

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143}


@pytest.fixture
def interrupt(nursery, programs, undisturbed, tmp_path):
    """Return a function that interrupts a program, checks what is left, and goes on."""
    def run(program, number, delay=None, trap=None):
        options = {'folder': str(tmp_path), **programs[program]}
        victim = nursery.start(program, pace=PACE, trap=trap, **options)
        victim.wait_for('begin')
        if trap is None:
            time.sleep(delay)
            victim.kill(number)
        status = victim.join()
        # At a bad moment, some library catches what is not for it; then the run ends well.
        ends = {ENDS[number]} if trap else {ENDS[number], 0}
        assert status in ends, f'{status}: {victim.read_log()}'
        assert check_cut(tmp_path) == []
        assert find_leftovers(tmp_path) == [], 'Python had the time to tidy up'
        nursery.run(program, resume=True, **options)
        assert check_whole(tmp_path, undisturbed(program)[0]) == []
    return run


@pytest.mark.parametrize('program, delay, number', [
    ('predict', 0.02, signal.SIGINT), ('predict', 0.15, signal.SIGTERM),
    ('predict', 0.3, signal.SIGINT), ('manage', 0.2, signal.SIGTERM)])
def test_interrupted_at_some_moment(interrupt, program, delay, number):
    interrupt(program, number, delay)


@pytest.mark.parametrize('point, nth, number', [
    ('Journal.append', 2, signal.SIGINT), ('Manifest.dump', 1, signal.SIGINT),
    ('fsync', 1, signal.SIGTERM), ('Manifest.dump', 1, signal.SIGTERM)])
def test_interrupted_at_a_precise_moment(interrupt, point, nth, number):
    """In the middle of a commit: of a writer thread, or of the manifest in our own."""
    interrupt('predict', number, trap={'point': point, 'nth': nth, 'when': 'before',
                                       'signal': number})
