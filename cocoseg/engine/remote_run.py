"""
One run of tasks on workers in other processes: back-pressure, order, errors, timeouts.

What is common to processes and dask. Tasks are sent by the subclass, and come
back through a queue; all decisions are made in the thread of the caller.
"""
from __future__ import annotations

import itertools
import logging
import queue
import time
import uuid
from collections import deque
from dataclasses import dataclass
from typing import Any

from cocoseg.engine.executors import check_time, make_error
from cocoseg.engine.payload import pack, unpack
from cocoseg.errors import TaskError

logger = logging.getLogger(__name__)

# How often a task is run again when its worker died.
MAX_RERUNS = 2


@dataclass(eq=False)
class Handed:
    """
    A task that was handed out and not yet taken.

    ``begun`` is when it began (time.monotonic), once it has; ``future`` is
    that of its last attempt, ``is_back`` that the future is done.
    """

    number: int
    task: Any
    data: bytes
    begun: float | None = None
    future: Any = None
    is_back: bool = False
    is_done: bool = False
    result: Any = None
    n_deaths: int = 0


class RemoteRun:
    """
    The state of one call of ``run``; a subclass has ``send``, ``find_error`` and ``stop``.

    ``send(handed)`` begins a task, now or later; when its future is done,
    ``handed`` is put into ``arrived``, by any thread.
    """

    def __init__(self, func, describe, timeout):
        self.token = uuid.uuid4().hex
        self.func_data = pack(func, 'the function')
        self.describe, self.timeout = describe, timeout
        self.arrived = queue.SimpleQueue()
        # Nobody waits for what has begun: a task is late, or the user is in a hurry.
        self.is_urgent = False
        self._pending: dict[int, Handed] = {}
        self._is_ordered = False
        # Those that are done, in the order in which they came; unless ordered.
        self._done: deque[Handed] = deque()

    def find_max_pending(self):
        """Return how many tasks may be handed out and not yet taken."""
        raise NotImplementedError

    def send(self, handed):
        """Begin a task as soon as a worker is free."""
        raise NotImplementedError

    def find_error(self, handed):
        """Return the error of a task that is back, or None; and whether its worker died."""
        raise NotImplementedError

    def iterate(self, tasks, ordered):
        """Yield (task, result) of each task of an iterator."""
        numbers = itertools.count()
        self._is_ordered, is_exhausted = ordered, False
        while True:
            while not is_exhausted and len(self._pending) < self.find_max_pending():
                try:
                    task = next(tasks)
                except StopIteration:
                    is_exhausted = True
                    break
                handed = Handed(next(numbers), task, pack(task, self.describe(task)))
                self._pending[handed.number] = handed
                self.send(handed)
            if not self._pending:
                return
            handed = self._wait()
            del self._pending[handed.number]
            yield handed.task, handed.result

    def list_away(self):
        """Return the tasks that are not back; those whose ``begun`` is set have begun."""
        return [handed for handed in self._pending.values() if not handed.is_back]

    def fetch(self, batch):
        """Get the results of tasks that are back, if it is quicker to do so together."""

    def _wait(self):
        """Return the next task that is done; if ordered, the one that is due."""
        self._settle_all(self._drain())
        while True:
            first = next(iter(self._pending.values()))
            if self._is_ordered and first.is_done:
                return first
            if self._done:
                return self._done.popleft()
            try:
                batch = [self.arrived.get(timeout=self._find_patience())]
            except queue.Empty:
                batch = []
            self._settle_all(batch + self._drain())
            self._check_times()

    def _drain(self):
        """Return what came back by now."""
        batch = []
        while True:
            try:
                batch.append(self.arrived.get_nowait())
            except queue.Empty:
                return batch

    def _settle_all(self, batch):
        # Before the first of them ends the run: nobody hears of the others again.
        for handed in batch:
            handed.is_back = True
        if len(batch) > 1:
            self.fetch(batch)
        # Also what is not due: a task that failed ends the run.
        for handed in batch:
            self._settle(handed)

    def _settle(self, handed):
        """Take the result of a task that came back, send it again, or raise its error."""
        error, has_died = self.find_error(handed)
        if has_died and handed.n_deaths < MAX_RERUNS:
            handed.n_deaths += 1
            logger.warning('the worker process of %s died; it is run again',
                           self.describe(handed.task))
            handed.begun, handed.future, handed.is_back = None, None, False
            self.send(handed)
            return
        if has_died:
            raise make_death_error(handed.task, self.describe, handed.n_deaths + 1) from error
        if error is not None:
            raise make_error(handed.task, self.describe, error) from error
        try:
            handed.result = unpack(handed.future.result())
        except Exception as ex:
            # Whatever the classes of the result raise when they are unpacked.
            raise make_error(handed.task, self.describe, ex) from ex
        handed.is_done, handed.data, handed.future = True, b'', None
        if not self._is_ordered:
            self._done.append(handed)

    def _check_times(self):
        if self.timeout is None:
            return
        for handed in self.list_away():
            if handed.begun is not None:
                elapsed = time.monotonic() - handed.begun
                self.is_urgent = self.is_urgent or elapsed > self.timeout
                check_time(handed.task, self.describe, elapsed, self.timeout)

    def _find_patience(self):
        if self.timeout is None:
            return None
        now = time.monotonic()
        left = [self.timeout - (now - handed.begun) for handed in self.list_away()
                if handed.begun is not None]
        return max(min(left, default=self.timeout), 0.0) + 0.01


def make_death_error(task, describe, n_deaths):
    """Return the error of a task whose worker died again and again."""
    return TaskError(
        f'{describe(task)} failed: its worker process died, {n_deaths} times; it was killed, or '
        'ran out of memory, or crashed: give a task less memory to use (smaller blocks), or use '
        'fewer workers', task=task)
