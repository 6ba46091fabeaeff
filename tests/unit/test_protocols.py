"""The fakes beside the ports behave as their ports promise."""
import numpy as np
import pytest

from cocoseg import Window
from cocoseg.protocols import (BatchPredictor, BlockSink, EagerQueue, FailingSink, JobQueue,
                               MemorySink, Predictor)


class Doubler:
    def __call__(self, image):
        return image * 2


class BatchDoubler(Doubler):
    def predict_batch(self, images):
        return images * 2


def test_ports_are_told_by_their_methods():
    assert isinstance(Doubler(), Predictor) and isinstance(len, Predictor)
    assert not isinstance(Doubler(), BatchPredictor)
    assert isinstance(BatchDoubler(), BatchPredictor)
    assert isinstance(MemorySink(), BlockSink) and isinstance(FailingSink(), BlockSink)
    assert isinstance(EagerQueue(), JobQueue)
    assert not isinstance(MemorySink(), JobQueue)


def test_a_memory_sink_pastes_its_blocks_in_any_order():
    image = np.arange(5 * 7 * 2).reshape(5, 7, 2)
    windows = [Window(0, 0, 3, 4), Window(0, 4, 3, 7), Window(3, 0, 5, 7)]
    sink = MemorySink()
    for window in reversed(windows):
        sink.write_block(window, image[window.slices])
    assert sink.as_array().dtype == image.dtype
    assert np.array_equal(sink.as_array(), image)
    assert set(sink.blocks) == set(windows)


def test_a_memory_sink_refuses_a_block_that_comes_twice():
    sink = MemorySink()
    sink.write_block(Window(0, 0, 1, 1), np.ones((1, 1, 1)))
    with pytest.raises(RuntimeError, match='written twice'):
        sink.write_block(Window(0, 0, 1, 1), np.zeros((1, 1, 1)))
    assert sink.as_array() == 1


def test_a_failing_sink_recovers():
    sink = FailingSink(n_failures=2)
    window, block = Window(0, 0, 1, 1), np.ones((1, 1, 1))
    for _ in range(2):
        with pytest.raises(OSError, match='No space left'):
            sink.write_block(window, block)
    assert not sink.blocks
    sink.write_block(window, block)
    assert sink.as_array() == 1


def test_an_eager_queue_runs_jobs_at_once():
    queue, seen = EagerQueue(), []
    assert queue.submit(lambda *args, **kwargs: seen.append((args, kwargs)), 1, key=2) is None
    assert seen == [((1,), {'key': 2})]
    assert queue.submit(pow, 2, 3) == 8
    with pytest.raises(ZeroDivisionError):
        queue.submit(lambda: 1 / 0)
    assert queue.wait_until_finished(desc='text') is None
