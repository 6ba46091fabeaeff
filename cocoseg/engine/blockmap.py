"""
Run a function on blocks: retried, checked, bounded, and resumed after a kill.

Blocks are independent of each other, and each can be done again at any time.
What a block reads and where its result goes is the business of the caller;
:func:`cocoseg.map_blocks` is the door for arrays and rasters.
"""
from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Callable, Sequence

from cocoseg.engine.executors import get_executor
from cocoseg.engine.timings import Timings
from cocoseg.errors import (BandCountError, BlockCheckError, OptionError, TaskError,
                            WindowShapeError)

logger = logging.getLogger(__name__)

# What comes again when a block is tried again.
_LASTING = (OptionError, WindowShapeError, BandCountError, MemoryError)
_begun = threading.local()


@dataclass(frozen=True)
class BlockRun:
    """
    How blocks are run; checked.

    Args:
        executor (str | Executor): see :func:`cocoseg.get_executor`.
        max_retries (int): how often a block that fails, or whose result does
            not pass its check, is tried again.
        timeout (float | None): seconds that one block may take, with its
            retries.
        max_pending (int | None): blocks that are begun, or done and not yet
            taken, at most; None is two per worker.
        init (Callable[[], object] | None): called by each worker before its
            first block, for what workers need once, such as a model.
        upstream (Sequence): what must be done before the first block: futures
            are waited for, functions are called without arguments.
        workdir (str | PathLike | None): folder for the results of blocks until
            all are done; None is one beside the output, or the system's.
        resume (bool): go on where an earlier run with the same settings ended.
        keep_tmpdir (bool): keep that folder when all is done.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.

    Raises:
        OptionError: for a value that has no meaning.

    Example:
        >>> from cocoseg.engine.blockmap import BlockRun
        >>> BlockRun('threads:2').executor.n_workers, BlockRun(max_retries=0).max_retries
        (2, 0)
    """

    executor: Any = 'serial'
    max_retries: int = 2
    timeout: float | None = None
    max_pending: int | None = None
    init: Callable[[], Any] | None = None
    upstream: Sequence[Any] = ()
    workdir: Any = None
    resume: bool = False
    keep_tmpdir: bool = False
    progress: Callable | None = None

    def __post_init__(self):
        object.__setattr__(self, 'executor', get_executor(self.executor))
        if not isinstance(self.max_retries, int) or self.max_retries < 0:
            raise OptionError(f'max_retries={self.max_retries!r} must be a whole number of at '
                              'least 0')
        if self.timeout is not None and not self.timeout > 0:
            raise OptionError(f'timeout={self.timeout!r} must be seconds, above 0, or None')
        if self.max_pending is not None and not self.max_pending >= 1:
            raise OptionError(f'max_pending={self.max_pending!r} must be at least 1, or None')
        for name in ('resume', 'keep_tmpdir'):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f'{name}={getattr(self, name)!r} must be True or False')
        wrong = [one for one in self.upstream if not (callable(one) or hasattr(one, 'result'))]
        if wrong:
            raise OptionError(f'upstream={wrong[0]!r} is neither a future nor a function')

    @property
    def is_resumable(self):
        """True if results of blocks are kept for a later run."""
        return self.resume or self.keep_tmpdir or self.workdir is not None

    @property
    def shares_memory(self):
        """True if blocks are done in this process; else tasks and results are files."""
        return getattr(self.executor, 'shares_memory', True)

    def stay_here(self):
        """
        Return a run for what is not worth another process.

        Example:
            >>> run = BlockRun('threads:2')
            >>> run.stay_here() is run
            True
        """
        if self.shares_memory:
            return self
        return dataclasses.replace(self, executor='threads', init=None)

    @classmethod
    def split(cls, options):
        """
        Return a run made of the options that are its own, and a dict of the others.

        Example:
            >>> run, others = BlockRun.split({'max_retries': 1, 'compress': 'LZW'})
            >>> run.max_retries, others
            (1, {'compress': 'LZW'})
        """
        names = {entry.name for entry in dataclasses.fields(cls)}
        own = {name: value for name, value in options.items() if name in names}
        return cls(**own), {name: value for name, value in options.items() if name not in names}

    def finish_upstream(self):
        """Wait for, or call, what must be done first; its errors are raised."""
        for one in self.upstream:
            one.result() if hasattr(one, 'result') else one()


@dataclass
class BlockOutcome:
    """
    What became of one block.

    Attributes:
        block (Block): that was done.
        result (object): what the function returned; None if it was stored.
        n_retries (int): how often it was tried again.
        is_resumed (bool): an earlier run had done it.
    """

    block: Any
    result: Any = None
    n_retries: int = 0
    is_resumed: bool = False


@dataclass(frozen=True)
class _Describe:
    """Name a block in messages."""

    name: str

    def __call__(self, block):
        return f'block {block.index} at {block.core} of {self.name}'


@dataclass(frozen=True)
class _BlockCall:
    """What a worker does with one block. Can be pickled if its parts can."""

    work: Callable
    check: Callable | None
    max_retries: int
    init: Callable | None
    files: Any
    describe: Callable
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __call__(self, block):
        if self.init is not None and getattr(_begun, 'token', None) != self.token:
            self.init()
            _begun.token = self.token
        for attempt in range(self.max_retries + 1):
            # Only the attempt that succeeds is counted.
            timings = Timings()
            try:
                result = self._try_once(block, timings)
            except Exception as ex:
                if isinstance(ex, _LASTING):
                    raise
                if attempt == self.max_retries:
                    raise self._make_error(block, ex, attempt) from ex
                logger.warning('%s failed and is tried again: %s: %s', self.describe(block),
                               type(ex).__name__, ex)
                continue
            checksums = None
            if self.files is not None:
                start = time.perf_counter()
                checksums, result = self.files.save(block.index, result), None
                timings.add('storing', time.perf_counter() - start)
            return BlockOutcome(block, result, attempt), checksums, timings

    def _try_once(self, block, timings):
        result = self.work(block, timings)
        if self.check is not None:
            with timings.interval('checking'):
                if not self.check(block, result):
                    raise BlockCheckError('its result did not pass the check')
        return result

    def _make_error(self, block, cause, attempt):
        if not attempt:
            return cause
        return TaskError(f'tried {attempt + 1} times, at last {type(cause).__name__}: {cause}',
                         task=block)


def run_blocks(work, blocks, run, *, name='blocks', check=None, store=None, timings=None):
    """
    Do all blocks; yield what became of each, as they come.

    Args:
        work (Callable): called as ``work(block, timings)``, with a
            :class:`~cocoseg.engine.timings.Timings` for the intervals it wants
            to report. Must give the same result when called again. With a
            store it returns a dict of arrays.
        blocks (Collection[Block]): taken one by one.
        run (BlockRun): how.
        name (str): what is done, for messages and progress.
        check (Callable | None): called as ``check(block, result)``; a result
            for which it is not true counts as failed.
        store (BlockStore | None): where results are kept. Blocks that it has
            are not done again; the others are saved by the workers.
        timings (Timings | None): gets the intervals of the workers.

    Yields:
        BlockOutcome: of each block once, in any order.

    Raises:
        TaskError: if a block fails in the end; from its error, with the block.
            No other block begins then.
        TaskTimeoutError: if one takes too long.

    Example:
        >>> from cocoseg import BlockGrid
        >>> from cocoseg.engine.blockmap import BlockRun, run_blocks
        >>> found = run_blocks(lambda block, timings: block.core.area, BlockGrid((5, 7), 4),
        ...                    BlockRun('threads:2'))
        >>> sorted(outcome.result for outcome in found)
        [3, 4, 12, 16]
    """
    describe = _Describe(name)
    call = _BlockCall(work, check, run.max_retries, run.init,
                      None if store is None else store.files, describe)
    steps = _run_all(call, blocks, run, store, timings, describe)
    with contextlib.closing(steps):
        yield from (steps if run.progress is None else
                    run.progress(steps, total=len(blocks), desc=name))


def _run_all(call, blocks, run, store, timings, describe):
    """Yield the outcomes of blocks that are stored, then of the others."""
    missing = blocks
    if store is not None and store.done:
        missing = []
        for block in blocks:
            if store.is_done(block.index):
                yield BlockOutcome(block, is_resumed=True)
            else:
                missing.append(block)
    found = run.executor.run(call, missing, describe=describe, timeout=run.timeout,
                             max_pending=run.max_pending)
    with contextlib.closing(found):
        for block, (outcome, checksums, measured) in found:
            if store is not None:
                store.note(block.index, checksums)
            if timings is not None:
                timings.merge(measured)
            yield outcome
