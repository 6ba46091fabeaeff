"""
Work ahead of a loop: a background thread makes items while the loop uses others.

Order, errors and memory are those of the plain loop, but for a few items more
that are alive. A thread waits for leave to make one more item and the loop
waits for the item: both sleep until it is there, nothing is polled. Knows
nothing about what the items are.
"""
from __future__ import annotations

import atexit
import contextvars
import functools
import itertools
import logging
import numbers
import threading
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue
from typing import Any

from cocoseg.errors import OptionError, WindowShapeError
from cocoseg.grid.window import Window

logger = logging.getLogger(__name__)

# What a message of the thread is.
_ITEM, _ERROR, _END = range(3)


def prefetch(iterable, depth=2):
    """
    Iterate in a background thread, a few items ahead of the consumer.

    Args:
        iterable (Iterable): iterated by one thread from beginning to end, so a
            generator may use what belongs to a thread. It sees the context
            variables of the first ``next``.
        depth (int): most items that are made before they are asked for; with
            the two that a loop holds, ``depth + 2`` are alive. 0 is no thread.

    Returns:
        Prefetcher: an iterator and context manager.

    Raises:
        OptionError: if ``depth`` is negative, or no whole number.

    Example:
        >>> from cocoseg.engine.prefetch import prefetch
        >>> list(prefetch(range(5)))
        [0, 1, 2, 3, 4]
        >>> with prefetch(itertools.count(), depth=3) as numbers:
        ...     print(next(numbers), next(numbers))
        0 1
    """
    return Prefetcher(iterable, depth)


class Prefetcher:
    """
    The iterator that :func:`prefetch` returns.

    The thread starts with the first ``next``. An error of the source, of any
    class, is raised in its place: after the items before it, and with its
    traceback. Then, and at the end, the thread is gone.

    A consumer that stops early ends the thread: it finishes the item it is at
    and closes the source (its ``close()``, if it has one, as ``yield from``
    does). Leaving a ``with`` block and :meth:`close` wait for that; a ``for``
    loop that is left, or garbage collection, only starts it.

    One thread may iterate at a time. :meth:`close` may be called from any.

    Args:
        iterable (Iterable): the source. depth (int): see :func:`prefetch`.

    Raises:
        OptionError: if ``depth`` is negative, or no whole number.

    Example:
        >>> from cocoseg.engine.prefetch import Prefetcher
        >>> squares = Prefetcher(n * n for n in range(9))
        >>> next(squares), next(squares)
        (0, 1)
        >>> squares.close()
        >>> list(squares)
        []
    """

    _puller = None

    def __init__(self, iterable, depth=2):
        self._depth = check_depth(depth)
        self._iterator = iter(iterable)
        self._finished = False

    def __iter__(self):
        return self

    def __next__(self):
        if self._finished:
            raise StopIteration
        try:
            kind, item = self._take()
        except BaseException:
            # Also an interrupt: an item may be lost, so none may follow.
            self._finished = True
            self._let_go()
            raise
        if kind is _ITEM:
            return item
        self.close()
        if kind is _END:
            raise StopIteration
        try:
            raise item
        finally:
            # The traceback that leads here must not lead back to the error.
            del item

    def _take(self):
        """Wait for the next message, and give leave to make another item."""
        if not self._depth:
            return _ITEM, next(self._iterator)
        puller = self._puller
        if puller is None:
            puller = self._puller = _Puller(self._iterator, self._depth)
            self._iterator = iter(())
            puller.start()
        if puller is threading.current_thread():
            raise RuntimeError('the source of a prefetch asks for its own next item, which would '
                               'never come; iterate it outside of the source')
        message = puller.messages.get()
        puller.allow(1)
        return message

    def _let_go(self):
        """Tell the thread to end, without waiting."""
        self._iterator = iter(())
        if self._puller is not None:
            self._puller.stop()

    def close(self):
        """
        End the thread and close the source; may be called again.

        Waits for the item that is being made. Items that were made and not
        asked for are dropped, and so is an error among them.

        Raises:
            Exception: what the source raises when it is closed.
        """
        self._finished = True
        puller, self._puller = self._puller, None
        iterator, self._iterator = self._iterator, iter(())
        if puller is None:
            _close_source(iterator)
            return
        puller.stop()
        if puller.is_alive() and puller is not threading.current_thread():
            puller.join()
        if puller.close_error is not None:
            raise puller.close_error

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()

    def __del__(self):
        if self._puller is not None:
            self._puller.abandoned = True
            self._puller.stop()


class _Puller(threading.Thread):
    """
    Pull items when there is leave to, and send them as (kind, item).

    The consumer and the thread meet in two ``SimpleQueue``: unlike locks and
    conditions these may be used by a destructor, which garbage collection
    runs at any place of any thread, also inside of ``get`` and ``put``.
    """

    def __init__(self, iterator, depth):
        # Threads that are no daemons are waited for before anyone can tell
        # them to end; see _end_all.
        super().__init__(name='cocoseg-prefetch', daemon=True)
        self.messages = SimpleQueue()
        self.close_error = None
        self.abandoned = False
        self._iterator = iterator
        self._leaves = SimpleQueue()
        self._n_allowed = depth
        self._stopped = False
        self._context = contextvars.copy_context()
        _end_threads_at_exit()

    def allow(self, n_items):
        """Give leave to make more items."""
        self._leaves.put(n_items)

    def stop(self):
        """End the thread before the next item."""
        self._stopped = True
        self._leaves.put(0)

    def run(self):
        """Pull until the end, an error, or a stop; always send the end."""
        try:
            self._context.run(self._pull)
        finally:
            self.messages.put((_END, None))

    def _pull(self):
        iterator, self._iterator = self._iterator, None
        try:
            # No name for the item: it would keep it alive while we wait.
            while self._wait_for_leave():
                self.messages.put((_ITEM, next(iterator)))
        except StopIteration:
            return
        except BaseException as ex:
            self.messages.put((_ERROR, ex))
            return
        try:
            _close_source(iterator)
        except BaseException as ex:
            self.close_error = ex
            if self.abandoned:
                logger.error('a source failed while it was closed', exc_info=ex)

    def _wait_for_leave(self):
        """Return True when an item may be made, False to end."""
        while not self._n_allowed and not self._stopped:
            self._n_allowed += self._leaves.get()
        self._n_allowed -= 1
        return not self._stopped


@functools.cache
def _end_threads_at_exit():
    atexit.register(_end_all)


def _end_all():
    """End the threads of iterators that are still alive when Python ends."""
    pullers = [thread for thread in threading.enumerate() if isinstance(thread, _Puller)]
    for puller in pullers:
        puller.stop()
    for puller in pullers:
        puller.join()


def _close_source(iterator):
    """Call ``close()`` of an iterator that has it."""
    close = getattr(iterator, 'close', None)
    if close is not None:
        close()


def check_depth(depth, name='depth'):
    """
    Return the depth of a prefetch if it can be one.

    Raises:
        OptionError: if it is negative, or no whole number.

    Example:
        >>> check_depth(2)
        2
    """
    if not isinstance(depth, numbers.Integral) or depth < 0:
        raise OptionError(f'{name}={depth!r} must be a whole number, at least 0; 0 works without '
                          'a thread')
    return int(depth)


def iter_batches(items, size):
    """
    Iterate over lists of up to ``size`` items, in order; none is empty.

    Args:
        items (Iterable): any number of anything.
        size (int): items per list, at least 1; the last may be shorter.

    Returns:
        Iterator[list]: takes the items of a list when it is asked for.

    Raises:
        OptionError: if ``size`` is below 1, or no whole number.

    Example:
        >>> from cocoseg.engine.prefetch import iter_batches
        >>> list(iter_batches('abcde', 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    if not isinstance(size, numbers.Integral) or size < 1:
        raise OptionError(f'batch_size={size!r} must be a whole number, at least 1')
    iterator, size = iter(items), int(size)
    # Not a generator: its frame would keep the last list alive.
    return iter(lambda: list(itertools.islice(iterator, size)), [])


def predict_windows(windows: Iterable[Window], predict_batch: Callable[[list[Window]], Any], *,
                    batch_size: int = 1, prefetch: int = 2) -> Iterator[tuple[Window, Any]]:
    """
    Predict windows in a background thread, for a loop that stitches them.

    Args:
        windows (Iterable[Window]): iterated in the thread.
        predict_batch (Callable): called with a list of 1 to ``batch_size``
            windows, always in the same thread; returns as many predictions, a
            sequence such as a list or an array (N, h, w, C).
        batch_size (int): windows per call; the last call may have fewer.
        prefetch (int): batches that are predicted ahead; 0 predicts in the
            thread of the loop.

    Yields:
        tuple: (window, prediction), in the order of the windows.

    Raises:
        OptionError: for sizes that cannot be; at once, not in the loop.
        WindowShapeError: for another number of predictions than windows.
        Exception: of ``windows`` or ``predict_batch``, in its place.

    Example:
        >>> from cocoseg import SoftStitcher, WindowGrid
        >>> from cocoseg.engine.prefetch import predict_windows
        >>> import numpy as np
        >>> image = np.arange(60.0).reshape(6, 10, 1)
        >>> def copy(batch):
        ...     return [image[window.slices] for window in batch]
        >>> grid = WindowGrid((6, 10), window=4, overlap=2)
        >>> stitcher = SoftStitcher((6, 10), grid)
        >>> for window, data in predict_windows(grid, copy, batch_size=3):
        ...     n_pixels = stitcher.add(window, data)
        >>> assert np.allclose(stitcher.finalize(), image)
    """
    check_depth(prefetch, 'prefetch')
    batches = iter_batches(windows, batch_size)
    return _iter_pairs(Prefetcher(_iter_predicted(batches, predict_batch), prefetch))


def _iter_predicted(batches, predict_batch):
    """Yield (windows, predictions) of each batch."""
    for windows in batches:
        yield windows, _predict(predict_batch, windows)


def _predict(predict_batch, windows):
    predictions = predict_batch(windows)
    try:
        n_predictions = len(predictions)
    except TypeError:
        raise WindowShapeError(
            f'predict_batch returned {type(predictions).__name__} for {len(windows)} windows; '
            'return a sequence with one prediction per window') from None
    if n_predictions != len(windows):
        raise WindowShapeError(f'predict_batch returned {n_predictions} predictions for '
                               f'{len(windows)} windows; return one per window')
    return predictions


def _iter_pairs(batches):
    # No `with`: garbage collection may end this in any thread, where to wait
    # for another thread can be to wait for ever.
    for windows, predictions in batches:
        yield from zip(windows, predictions)
