"""
Map a function over the blocks of rasters and volumes, from any source to any sink.
"""
from __future__ import annotations

import contextlib
import inspect
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np

from cocoseg.engine.blockmap import BlockRun, run_blocks
from cocoseg.engine.timings import Timings, format_timings
from cocoseg.errors import OptionError, WindowShapeError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.io.arrays import check_sink, open_sink, open_source
from cocoseg.io.cropped import crop_source
from cocoseg.io.strips import Source, check_same_grid
from cocoseg.postprocess.workspace import identify, open_store


@dataclass(frozen=True)
class BlockMapResult:
    """
    What :func:`map_blocks` made.

    Attributes:
        output (object): the array or path that was written.
        n_blocks (int): all blocks.
        n_resumed (int): those that an earlier run had done.
        n_retries (int): how often blocks were tried again.
        timings (Timings): seconds of the stages.

    Example:
        >>> from cocoseg import map_blocks
        >>> result = map_blocks(lambda pixels: pixels + 1, np.zeros((5, 7)), block_shape=4)
        >>> result.n_blocks, result.n_retries, result.output.sum().item()
        (4, 0, 35.0)
    """

    output: Any
    n_blocks: int
    n_resumed: int
    n_retries: int
    timings: Timings

    def format_timings(self) -> str:
        """Return a table of the seconds per stage, for people."""
        return format_timings(self.timings.summary(), 'Seconds per stage, over all workers')


def map_blocks(func: Callable, source: Any, sink: Any = None, *,
               block_shape: int | tuple[int, ...] = 1024, halo: int | tuple[int, ...] = 0,
               roi: Any = None, check: Callable | None = None, overwrite: bool = False,
               **options: Any) -> BlockMapResult:
    """
    Apply a function to all blocks of a raster or a volume.

    A block reads its core and a halo around it, and writes its core: blocks
    do not depend on each other, and the result does not depend on who does
    them and in which order.

    Args:
        func (Callable): called with the pixels that a block reads, (h, w, C)
            or (d, h, w, C), clipped to the image, not to be written to; with
            several sources, with as many arrays. If it has a parameter
            ``block`` it gets the :class:`~cocoseg.Block`, too. Returns (h, w)
            or (h, w, K) of what the block reads or of its core alone, of the
            same dtype and K for all blocks, and the same when called again.
        source (object | list): a path that GDAL or Zarr opens, an array or
            memory map (H, W), (H, W, C), or a volume with an axis more in
            front, a Zarr array, a kwcoco image, or a
            :class:`~cocoseg.protocols.BlockSource`; several in a list.
        sink (object): where results go. None: a new array. An array, memory
            map or Zarr array is filled. A path ending in '.tif' becomes a
            Cloud-Optimized GeoTIFF where the source is, one ending in '.zarr'
            a Zarr array. A :class:`~cocoseg.protocols.BlockSink` gets the
            blocks.
        block_shape (int | tuple[int, ...]): extent of a core, px. Three
            entries mean a volume.
        halo (int | tuple[int, ...]): margin that a block reads around its
            core, px.
        roi (Window | Box | Roi | tuple | None): the part to do, px, or world
            units of a Zarr array; see :func:`cocoseg.io.cropped.crop_source`.
            The output is of that part alone, and halos end where it does.
        check (Callable | None): called as ``check(block, result)``; a result
            for which it is not true counts as failed.
        overwrite (bool): replace an output that exists.
        **options: of :class:`~cocoseg.engine.blockmap.BlockRun`: ``executor``,
            ``max_retries``, ``timeout``, ``max_pending``, ``init``,
            ``upstream``, ``workdir``, ``resume``, ``keep_tmpdir``,
            ``progress``. Others are of the output: those of
            :class:`~cocoseg.CogWriter` or of
            :func:`cocoseg.io.arrays.open_sink`.

    Returns:
        BlockMapResult: with the output, and where the time went.

    Raises:
        OptionError: for options that have no meaning, or an output that
            exists; before any block begins, but for those of the output that
            the first result does not fit.
        WindowShapeError: if a result has another shape than its block, or
            another dtype or K than those before.
        TaskError: if a block fails ``max_retries`` + 1 times; from its error,
            with the block.
        TaskTimeoutError: if one takes too long.
        ResumeError: if the work of a run with other settings is resumed.

    Note:
        With an executor of processes or dask, ``func``, ``check`` and the
        sources are sent to the workers: functions that can be imported, and
        paths, memory maps or Zarr arrays instead of large arrays. Results go
        by files in ``workdir``, or a hidden folder beside the output, which
        all workers must see.

        To resume, results are also kept in a folder (``workdir``, or a hidden
        one beside the output) until all are done. Results that the work
        depends on must be told apart by name: the function, the sources and
        the blocks are compared, not what a function closes over.

    Example:
        >>> from cocoseg import map_blocks
        >>> image = np.arange(12.0).reshape(3, 4)
        >>> def scale(data, block):
        ...     return data * block.index[1]
        >>> map_blocks(scale, image, block_shape=2).output[..., 0].tolist()
        [[0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 6.0, 7.0], [0.0, 0.0, 10.0, 11.0]]
    """
    run, sink_options = BlockRun.split(options)
    ndim = len(block_shape) if isinstance(block_shape, (tuple, list)) else 2
    sources = open_sources(source, ndim, roi)
    grid = BlockGrid(sources[0].shape, block_shape, halo)
    work = _MapWork(func, sources, _takes_block(func))
    check_sink(sink, overwrite)

    def make_key():
        return {'kind': 'map', 'func': _name_function(func), 'sources': [*map(identify, sources)],
                'block': grid.block, 'halo': grid.halo}
    timings, n_resumed, n_retries = Timings(), 0, 0
    with timings.interval('walltime'), contextlib.ExitStack() as stack:
        run.finish_upstream()
        # Workers elsewhere leave their results in files, too.
        is_kept = run.is_resumable or not run.shares_memory
        store = stack.enter_context(open_store(sink, run, make_key)) if is_kept else None
        output = stack.enter_context(_Output(sink, grid, sources[0], overwrite, sink_options))
        for outcome in run_blocks(work, grid, run, name=sources[0].name, check=check and
                                  _Check(check), store=store, timings=timings):
            n_resumed, n_retries = n_resumed + outcome.is_resumed, n_retries + outcome.n_retries
            result = (store.files.load(outcome.block.index, 'result') if outcome.result is None
                      else outcome.result['result'])
            with timings.interval('writing'):
                output.write(outcome.block, result)
        with timings.interval('writing'):
            output.commit()
    return BlockMapResult(output.value, len(grid), n_resumed, n_retries, timings)


def open_sources(source, ndim, roi=None):
    """
    Open one source, or several that lie on each other.

    Args:
        source (object | list): as for :func:`map_blocks`.
        ndim (int): axes without that of the channels.
        roi (object): part of all of them; see :func:`crop_source`.

    Returns:
        tuple[BlockSource, ...]: at least one.

    Raises:
        OptionError: if there is none, or they have different sizes or places.

    Example:
        >>> from cocoseg.postprocess.blocks import open_sources
        >>> [source.shape for source in open_sources([np.ones((2, 3)), np.ones((2, 3, 4))], 2)]
        [(2, 3, 1), (2, 3, 4)]
    """
    several = source if isinstance(source, (list, tuple)) else [source]
    sources = tuple(open_source(one, ndim) for one in several)
    if not sources:
        raise OptionError('source=[] holds none; give a raster or an array')
    for other in sources[1:]:
        if isinstance(other, Source) and isinstance(sources[0], Source):
            check_same_grid(sources[0], other)
        elif other.shape[:-1] != sources[0].shape[:-1]:
            raise OptionError(f'{sources[0].name} has the shape {sources[0].shape[:-1]} and '
                              f'{other.name} {other.shape[:-1]}; they must be equal')
    return tuple(crop_source(one, roi) for one in sources)


@dataclass(frozen=True)
class _MapWork:
    """Read a block, call the function, and cut its result to the core."""

    func: Callable
    sources: tuple
    takes_block: bool

    def __call__(self, block, timings):
        with timings.interval('reading'):
            data = [source.read(block.read) for source in self.sources]
        with timings.interval('computing'):
            result = (self.func(*data, block=block) if self.takes_block else self.func(*data))
        return {'result': cut_result(result, block)}


@dataclass(frozen=True)
class _Check:
    """Hand a check of the caller the plain result."""

    check: Callable

    def __call__(self, block, arrays):
        return self.check(block, arrays['result'])


def cut_result(result, block):
    """
    Return the core of what a function made of a block.

    Args:
        result (array_like): of the shape of ``block.read`` or ``block.core``,
            with or without a last axis.
        block (Block): that was read.

    Raises:
        WindowShapeError: for another shape.

    Example:
        >>> from cocoseg import BlockGrid
        >>> block = BlockGrid((4, 4), 2, halo=1).get((1, 0))
        >>> cut_result(np.arange(9).reshape(3, 3), block).tolist()
        [[3, 4], [6, 7]]
    """
    result = np.asarray(result)
    ndim = len(block.core.shape)
    if result.ndim in (ndim, ndim + 1) and result.dtype != object:
        if result.shape[:ndim] == block.core.shape:
            return result
        if result.shape[:ndim] == block.read.shape:
            return result[block.core.within(block.read).slices]
    raise WindowShapeError(
        f'the function returned {result.dtype} of shape {result.shape} for a block that reads '
        f'{block.read.shape} and writes {block.core.shape}; return one of these shapes, with or '
        'without a last axis of channels')


class _Output:
    """The sink of a run, opened when the first result tells what it holds."""

    def __init__(self, sink, grid, source, overwrite, options):
        self._args = sink, grid, source, overwrite, options
        self._sink = self._kind = None
        self.value = None

    def write(self, block, result):
        kind = (str(result.dtype), *result.shape[len(block.core.shape):])
        if self._sink is None:
            self._kind, self._sink = kind, self._open(result, kind[1:])
        if kind != self._kind:
            raise WindowShapeError(
                f'the function returned {kind} (type, channels) for block {block.index}, and '
                f'{self._kind} before; return the same for all blocks')
        self._sink.write_block(block.core, result if kind[1:] else result[..., None])

    def _open(self, result, channels):
        sink, grid, source, overwrite, options = self._args
        if sink is None and not channels and not options:
            # An image as the function makes them.
            sink = np.zeros(grid.shape, result.dtype)
        return open_sink(sink, (*grid.shape, *(channels or (1,))), result.dtype,
                         overwrite=overwrite, like=source, chunks=grid.block, **options)

    def commit(self):
        self.value = self._sink.commit()

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        if exc_type is not None and self._sink is not None:
            self._sink.abort()


def _takes_block(func):
    if not callable(func):
        raise OptionError(f'func={func!r} cannot be called; give a function of the pixels')
    try:
        return 'block' in inspect.signature(func).parameters
    except ValueError:
        # Functions of numpy tell no signature.
        return False


def _name_function(func):
    """Return what tells a function from others, as far as names do."""
    inner = getattr(func, 'func', func)
    name = getattr(inner, '__qualname__', None)
    if name is None:
        return repr(func) if ' at 0x' not in repr(func) else type(func).__qualname__
    name = f'{inner.__module__}.{name}'
    if inner is not func:
        name += repr((func.args, sorted(func.keywords.items())))
    return name
