"""Threads load the results of blocks at a time, also while garbage is collected."""
import gc
import sys
import threading

import numpy as np
import pytest

from cocoseg.engine.block_store import BlockFiles


@pytest.fixture
def busy_collector():
    """Collect garbage often, and run Python code then, so that threads take turns."""
    def turn(phase, info):
        for _ in range(50):
            pass
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(20)
    gc.callbacks.append(turn)
    yield
    gc.callbacks.remove(turn)
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


def test_headers_are_parsed_one_at_a_time(tmp_path, busy_collector):
    files, errors = BlockFiles(tmp_path), []
    files.save((0, 0), {'facts': np.zeros(3, [('size', 'i8'), ('first', 'i8'), ('sum', 'f8')])})

    def load():
        try:
            for _ in range(500):
                files.load((0, 0), 'facts')
        except SystemError as ex:
            errors.append(ex)
    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
