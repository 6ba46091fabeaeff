"""
What ``--dry_run`` has in common: a run that stops where the work would begin.

Where it can be, the function that does the work is called itself, with an
output that takes nothing, and stopped at its first step: its checks are those
of a real run. Nothing is written.
"""
from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib.util
import logging
import os

from cocoseg.cli.common import say
from cocoseg.cli.plan_text import print_plan
from cocoseg.engine.texts import format_bytes


class _Begun(Exception):
    """All is checked, and the work would begin."""


class _NoSink:
    """An output that gets nothing, as no block is done."""

    def write_block(self, window, block):
        """Never called."""
        raise AssertionError('a dry run does no block')


def run_until_work(function, *args, takes_sink=None, **options):
    """
    Call what does the work, and stop it before its first step.

    Args:
        function (Callable): takes ``progress``, which wraps its steps.
        *args: for it.
        takes_sink (str | None): name of the argument that gets an output which
            takes nothing.
        **options: for it.

    Returns:
        int: steps that there would be.

    Example:
        >>> def work(values, progress):
        ...     for value in progress(values, total=len(values), desc='work'):
        ...         raise ValueError(value)
        >>> run_until_work(work, [1, 2, 3])
        3
    """
    found = []

    def stop(iterable, total=None, desc=''):
        found.append(total)
        raise _Begun
    if takes_sink is not None:
        options[takes_sink] = _NoSink()
    try:
        function(*args, progress=stop, **options)
    except _Begun:
        return found[0]
    return 0


def parse_workers(spec):
    """
    Return the kind of an executor and its workers, and start none.

    Args:
        spec (str): as for :func:`cocoseg.get_executor`.

    Returns:
        tuple[str, int | None]: None are the workers of a cluster, not known.

    Raises:
        OptionError: for another one.
        MissingDependencyError: for dask, if it is absent.

    Example:
        >>> parse_workers('processes:3')
        ('processes', 3)
    """
    from cocoseg.engine.estimate import parse_executor
    from cocoseg.errors import MissingDependencyError
    has_address = isinstance(spec, str) and '://' in spec
    kind, n_workers = parse_executor(spec, 1 if has_address else None)
    if kind == 'dask' and importlib.util.find_spec('distributed') is None:
        raise MissingDependencyError(f'executor={spec!r} needs dask; pip install cocoseg[dask]')
    return kind, None if has_address else n_workers


def begin_preview(*sources):
    """Print that nothing is done, and what would be read."""
    say('dry run   nothing is written')
    for source in sources:
        if source is not None:
            say(f'read      {_as_place(source)}')


def preview_work(purpose, src, executor, *, has_memory=True, pixel_nbytes=None, **options):
    """
    Print the plan of a run.

    Args:
        purpose (str): of ``cocoseg plan``, as are the options.
        src (str): the input.
        executor (str): who would do it.
        has_memory (bool): the figures of memory are those of this run.
        pixel_nbytes (int | None): bytes per pixel of the result, if the plan
            cannot know them.
        **options: that are not None.
    """
    from cocoseg.cli.plan import PlanConfig, make_work
    kind, n_workers = parse_workers(executor)
    given = {name: value for name, value in options.items() if value is not None}
    work = make_work(PlanConfig(
        src=src, executor=executor, n_workers=1 if n_workers is None else None,
        **{'for': purpose}, **given))
    plan = work.plan
    if pixel_nbytes is not None:
        result = plan.n_pixels * pixel_nbytes
        plan = dataclasses.replace(plan, result_nbytes=result, temporary_nbytes=(
            plan.temporary_nbytes * result // plan.result_nbytes))
    if is_loud():
        print_plan(plan, kind, n_workers, has_memory)


def is_loud():
    """Return True unless --quiet was given."""
    return logging.getLogger('cocoseg.cli').isEnabledFor(logging.WARNING)


def preview_output(path, what=''):
    """Print what would be written, and whether something is there."""
    note = ''
    if os.path.isdir(path):
        note = ', which exists'
    elif os.path.lexists(path):
        note = f', which exists ({format_bytes(os.path.getsize(path))}) and would be replaced'
    say(f'write     {_as_place(path)}{what}{note}')


def check_folder(fpath):
    """
    Raise unless a file could be written whose folder may still have to be made.

    Args:
        fpath (str): of the file.

    Raises:
        AssetWriteError: if not.
    """
    from cocoseg.io.commit import check_writable
    folder = os.path.dirname(os.path.abspath(fpath))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    check_writable(os.path.join(folder, os.path.basename(fpath) or 'file'))


def _as_place(path):
    return os.path.abspath(path)


# -- rasters

def preview_mask(config, **options):
    """
    Check and print what ``cocoseg mask`` would do with a raster.

    Args:
        config (MaskConfig): of the command.
        **options: for :func:`cocoseg.compute_mask`.
    """
    from cocoseg.io.arrays import check_sink
    from cocoseg.io.mask_file import check_internal, check_sidecar
    from cocoseg.postprocess.masks import compute_mask
    if config.dst == 'internal':
        check_internal(config.src, config.overwrite)
        output = config.src
    elif config.dst == 'sidecar':
        output = check_sidecar(config.src, config.overwrite)
    else:
        check_sink(config.dst, config.overwrite)
        output = config.dst
    parse_workers(config.executor)
    run_until_work(compute_mask, config.src, takes_sink='dst', **options)
    begin_preview(config.src, config.extra_mask)
    block_shape = _find_mask_blocks(config, options)
    preview_work('blocks', config.src, config.executor, dtype='uint8', channels_out=1,
                 block_shape=list(block_shape))
    preview_output(output, ' (the mask inside of it)' if config.dst == 'internal' else '')


def _find_mask_blocks(config, options):
    """Return the height and width of a block."""
    from cocoseg.grid.window import as_pair
    from cocoseg.postprocess.blocks import open_sources
    from cocoseg.postprocess.mask_sources import CommonMask, MaskSource
    from cocoseg.postprocess.masks import choose_block_shape, open_flags
    block_shape = options['block_shape']
    if block_shape is None:
        base, = open_sources(config.src, 2)
        masks = [MaskSource.open(base, bands=config.bands, logic=options['logic'],
                                 nodata=options['nodata'])]
        if config.extra_mask is not None:
            masks.insert(0, open_flags(config.extra_mask, base.shape))
        block_shape = choose_block_shape(CommonMask.open(masks))
    return as_pair(block_shape, 'block_shape')


def preview_watershed(config, parameters, **options):
    """
    Check and print what ``cocoseg watershed`` would do with a raster or an array.

    Args:
        config (WatershedConfig): of the command.
        parameters (WatershedParameters): of the watershed.
        **options: for :func:`cocoseg.blockwise_watershed`.
    """
    from cocoseg.io.arrays import check_sink
    from cocoseg.postprocess.watershed import blockwise_watershed
    check_sink(config.dst, config.overwrite)
    parse_workers(config.executor)
    # What is resumed is found by the output, which is none here.
    options = {**options, 'executor': 'serial', 'resume': False}
    run_until_store(blockwise_watershed, config.src, parameters, **options)
    begin_preview(config.src, config.foreground)
    ndim = config.ndim or (len(parameters.offsets[0]) if parameters.offsets else None)
    shape, context = (_as_list(options['block_shape'], ndim), _as_list(parameters.context, ndim))
    preview_work('watershed', config.src, config.executor, block_shape=shape, context=context)
    preview_output(config.dst)
    if config.polygons is not None:
        preview_output(config.polygons)


def run_until_store(function, *args, **options):
    """
    Call what does the work on blocks, and stop it before it keeps anything of them.

    Args:
        function (Callable): takes ``dst`` and ``upstream``, as
            :func:`cocoseg.blockwise_watershed`.
        *args, **options: for it.
    """
    def stop():
        raise _Begun
    with contextlib.suppress(_Begun):
        function(*args, dst=_NoSink(), upstream=(stop,), **options)


def _as_list(numbers, ndim):
    """
    Return extents as a list, one per axis if the axes are known.

    Example:
        >>> _as_list(32, 3), _as_list((8, 9), None), _as_list(None, 2), _as_list(32, None)
        ([32, 32, 32], [8, 9], None, [32])
    """
    if numbers is None or isinstance(numbers, (tuple, list)):
        return None if numbers is None else list(numbers)
    return [numbers] * (ndim or 1)


def preview_segment(config, options, kmeans, tile_size, overlap):
    """
    Check and print what ``cocoseg segment`` would do with a raster.

    Args:
        config (SegmentConfig): of the command.
        options (ShepherdConfig): of the segmentation.
        kmeans (ndarray | None): clusters that are given.
        tile_size, overlap (int): px.
    """
    from cocoseg.engine.executors import SerialExecutor
    from cocoseg.engine.timings import Timings
    from cocoseg.shepherd.clusters import as_centres
    from cocoseg.shepherd.output import LabelOutput
    from cocoseg.shepherd.raster import SegmentSource
    from cocoseg.shepherd.tiled import TiledRun
    from cocoseg.shepherd.tiles import TilePlan
    executor = config.executor or 'serial'
    parse_workers(executor)
    TiledRun(options, Timings(), SerialExecutor(), config.num_threads, config.max_concurrent_reads,
         config.tile_timeout, None)
    source = SegmentSource.open(config.src, config.bands,
                                'file' if config.nodata is None else config.nodata)
    TilePlan.make(source.shape, tile_size, overlap, options.is_compat)
    LabelOutput.make(config.dst, config.driver, config.creation_options or (), config.table,
                     config.colors)
    if kmeans is not None:
        as_centres(kmeans, source.n_bands)
    begin_preview(config.src, config.clusters)
    preview_work('segment', config.src, executor, window=[tile_size], overlap=float(overlap),
                 channels_in=source.n_bands)
    for path in (config.dst, config.table, config.save_clusters):
        if path is not None:
            preview_output(path)


# -- segments

def preview_stats(config, **options):
    """
    Check and print what ``cocoseg stats`` would do.

    Args:
        config (StatsConfig): of the command.
        **options: for :func:`cocoseg.segment_stats`.
    """
    from cocoseg.io.cog import check_num_threads
    from cocoseg.shepherd.stats import segment_stats
    check_num_threads(options['num_threads'])
    kind, n_workers = parse_workers(config.executor)
    # One thread, which reads nothing ahead.
    n_strips = run_until_work(segment_stats, config.image, config.segments, config.stats,
                              **{**options, 'num_threads': 1, 'executor': 'serial'})
    begin_preview(config.segments, config.image)
    say(f'stats     {config.stats}')
    say(f'strips    {n_strips}, for {"the" if n_workers is None else n_workers} {kind} '
        f'worker{"" if n_workers == 1 else "s"}')
    for path in (config.dst, config.polygons):
        if path is not None:
            preview_output(path)
    if config.rat:
        say(f'write     the attribute table of {_as_place(config.segments)}')


def preview_subset(config, window):
    """
    Check and print what ``cocoseg subset`` would do.

    Args:
        config (SubsetConfig): of the command.
        window (Window | None): that is given.
    """
    import numpy as np
    from cocoseg.io.cog import CogOptions
    from cocoseg.io.commit import check_writable
    from cocoseg.io.strips import Source
    from cocoseg.shepherd.subset import choose_window, open_mask
    source = Source.open(config.src, 'segments').as_label_source()
    part = choose_window(source, window, config.bounds)
    open_mask(config.mask, source)
    CogOptions.coerce(np.uint32, compress=config.compress, blocksize=config.blocksize,
                      overviews='nearest')
    folder = os.path.dirname(os.path.abspath(config.dst))
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, 'no such folder', folder)
    check_writable(config.dst)
    begin_preview(config.src, config.mask, config.table)
    say(f'window    {part.shape[0]} x {part.shape[1]} px of {source.shape[0]} x '
        f'{source.shape[1]}, {format_bytes(4 * part.shape[0] * part.shape[1])} raw')
    for path in (config.dst, config.dst_table):
        if path is not None:
            preview_output(path)
