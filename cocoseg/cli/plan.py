"""
``cocoseg plan``: what a run would take, before anything is computed.
"""
from __future__ import annotations

import collections
import json
import re
from dataclasses import dataclass

import kwconf

from cocoseg.cli.common import CommandConfig, run_command
from cocoseg.cli.plan_text import print_estimate, print_plan

_MANIFESTS = ('.json', '.zip')
_PURPOSES = ('predict', 'blocks', 'watershed', 'segment')
# What has a meaning for some purposes only, with its default.
_ONLY = {
    'window': (None, ('predict', 'segment')),
    'overlap': (None, ('predict', 'segment')),
    'block_shape': (None, ('blocks', 'watershed')),
    'context': (None, ('blocks', 'watershed')),
    'channels_out': (None, ('predict', 'blocks')),
    'dtype': (None, ('predict', 'blocks')),
    'dtype_in': (None, ('blocks', 'watershed', 'segment')),
    'label_size': (400.0, ('watershed', 'segment')),
    'batch_size': (1, ('predict',)),
    'prefetch': (2, ('predict',)),
    'split': ('auto', ('predict',)),
    'predictor': (None, ('predict',)),
    'resume': (False, ('blocks',)),
    'write_rate': (100.0, ('blocks', 'watershed', 'segment')),
}
# What runs over the images of a manifest one by one.
_OF_MANIFESTS = ('predict', 'watershed')
# Forecasts go through windows one by one; beyond this many there is a bound.
_MAX_FORECAST = 50_000
_N_PROBES = 4


class PlanConfig(CommandConfig):
    """
    Tell what a run would take: counts, disk, memory, tasks and time.

    The input is a raster, a Zarr array, a kwcoco manifest, or a size such as
    30000x20000 for what is not here. Only sizes are looked at, unless
    --calibrate reads a few windows. Counts and the bytes of results are
    exact, memory and temporary files are upper bounds.
    """

    __command__ = 'plan'
    __epilog__ = """
    Example:
        cocoseg plan image.tif --for watershed --block_shape 1024 --context 32 --executor threads
        cocoseg plan data.kwcoco.json --for predict --window 256 --channels_out 5 --calibrate
        cocoseg plan 1024x1024 --n_images 1000000 --channels_in 5 --channels_out 5 --window 256 \\
            --executor dask:64 --rate 2
    """

    src = kwconf.Value(None, position=1, required=True, type=str, help=(
        'raster, Zarr array, kwcoco manifest, or a size: HxW or DxHxW'))
    vars()['for'] = kwconf.Value('predict', choices=list(_PURPOSES), help=(
        'predict: cocoseg predict; blocks: any function over blocks; watershed: cocoseg '
        'watershed; segment: cocoseg segment'))
    window = kwconf.Value(None, nargs='+', type=int, help=(
        'px; to predict height and width, default 512; to segment the tile size, default 4096'))
    overlap = kwconf.Value(None, type=float, help=(
        'shared by neighboring windows: a fraction below 1, or whole px; default 0.3, of tiles a '
        'quarter'))
    block_shape = kwconf.Value(None, nargs='+', type=int, help=(
        'extent of a block, px; one number, or one per axis, which makes a volume of three; '
        'default 1024, of a watershed 512, of volumes 128'))
    context = kwconf.Value(None, nargs='+', type=int, help=(
        'px that a block reads around its core; default 0, of a watershed 32'))
    channels_in = kwconf.Value(None, type=int, help=(
        'bands that are read; default those of the input, 1 of a size'))
    channels_out = kwconf.Value(None, type=int, help='channels of the result; default 1')
    dtype = kwconf.Value(None, type=str, help=(
        'of the result; default int16 to predict, float32 of blocks'))
    dtype_in = kwconf.Value(None, type=str, help=(
        'of what is read, but to predict; default that of the input, float32 of a size'))
    n_images = kwconf.Value(None, type=int, help='of a size: images that have it; default 1')
    space = kwconf.Value('video', choices=['video', 'image'], help=(
        'of a manifest: whose pixels the windows have'))
    channels = kwconf.Value(None, type=str, help=(
        'of a manifest: bands such as "red|green|nir"'))
    label_size = kwconf.Value(400.0, type=float, help=(
        'of a watershed or to segment: px of an object on average, a guess'))
    batch_size = kwconf.Value(1, type=int, help='to predict: windows per call')
    prefetch = kwconf.Value(2, type=int, help='to predict: batches between two stages')
    split = kwconf.Value('auto', choices=['auto', 'images', 'rows'], help=(
        'to predict: images: one on each worker; rows: all workers share the windows of an image; '
        'auto: rows of those that are more than the share of a worker'))
    resume = kwconf.Flag(False, help='of blocks: results are kept in files until all are done')
    executor = kwconf.Value('serial', type=str, help=(
        'serial, threads:N, processes:N, dask:N, or an address such as dask:tcp://…; to predict '
        'no threads'))
    n_workers = kwconf.Value(None, type=int, help='of dask: workers of the cluster')
    rate = kwconf.Value(None, type=float, help='Mpx per second that one worker does')
    write_rate = kwconf.Value(100.0, type=float, help=(
        'MB of raw pixels per second that the process which drives the others writes'))
    calibrate = kwconf.Flag(False, help=(
        'find the rate: read a few windows or blocks, and predict them if there is a --predictor'))
    predictor = kwconf.Value(None, type=str, help=(
        'to predict, with --calibrate: package.module:function, or *.skops'))
    json = kwconf.Flag(False, help='print JSON')

    @run_command
    def main(config):
        from cocoseg.engine.estimate import estimate_time, list_warnings
        work = make_work(config)
        rate, basis = _find_rate(config, work.content)
        estimate = None if rate is None else estimate_time(
            work.plan, rate, work.kind, work.n_workers, config.write_rate * 1e6)
        warnings = list_warnings(work.plan, estimate, work.kind, work.n_workers)
        if config.json:
            print(json.dumps({
                'plan': work.plan.as_dict(), 'executor': work.kind, 'n_workers': work.n_workers,
                'pixels_per_second': rate, 'rate_from': basis, 'warnings': warnings,
                'seconds': None if estimate is None else estimate.as_dict()}, indent=1))
            return
        print_plan(work.plan, work.kind, work.n_workers)
        if estimate is not None:
            print_estimate(estimate, rate, basis)
        for warning in [] if config.quiet else warnings:
            print(f'note      {warning}')


@dataclass(frozen=True)
class Work:
    """A :class:`~cocoseg.engine.plan.WorkPlan`, of what, and who does it."""

    plan: object
    kind: str
    n_workers: int
    content: object


def make_work(config):
    """
    Return the plan of a run, checked.

    Args:
        config (PlanConfig): that tells of the run.

    Example:
        >>> from cocoseg.cli.plan import PlanConfig, make_work
        >>> work = make_work(PlanConfig(src='100x80', window=[50], overlap=10.0))
        >>> work.plan.n_units, work.kind
        (6, 'serial')
    """
    from cocoseg.engine.estimate import parse_executor
    _check_options(config)
    kind, n_workers = parse_executor(config.executor, config.n_workers)
    _check_kind(config['for'], kind)
    content = _open_input(config)
    return Work(_make_plan(config, content, kind, n_workers), kind, n_workers, content)


@dataclass(frozen=True)
class _Input:
    """What is known of the input: how many images of which shape, and how to read a window."""

    counts: dict
    n_bands: int
    dtype: str
    read: object = None


def _check_options(config):
    """Raise for an option that would be ignored."""
    from cocoseg.errors import OptionError
    purpose = config['for']
    for name, (default, purposes) in _ONLY.items():
        if config[name] != default and purpose not in purposes:
            raise OptionError(f'--{name} is for {" and ".join(purposes)}, not for {purpose}; leave '
                              'it out')
    is_size, is_manifest = _parse_size(config.src), config.src.lower().endswith(_MANIFESTS)
    if not is_size and config.n_images is not None:
        raise OptionError(f'--n_images is for a size, and {config.src} is none; leave it out')
    if not is_manifest and (config.space != 'video' or config.channels is not None):
        raise OptionError(f'--space and --channels are for a manifest, and {config.src} is none; '
                          'leave them out')
    if is_manifest and purpose not in _OF_MANIFESTS:
        raise OptionError(f'{config.src} is a manifest; --for {purpose} is for a raster or a size')
    for name in ('dtype', 'dtype_in'):
        _check_dtype(name, config[name])
    if config.calibrate and (is_size or config.rate is not None):
        raise OptionError('--calibrate needs pixels to read, and no --rate')
    if config.predictor is not None and not config.calibrate:
        raise OptionError('--predictor is for --calibrate; add it')


def _check_kind(purpose, kind):
    from cocoseg.errors import OptionError
    if purpose == 'predict' and kind == 'threads':
        raise OptionError("a predictor is called by one thread at a time; use 'serial', "
                          'processes:N or dask')


def _check_dtype(name, dtype):
    import numpy as np
    from cocoseg.errors import OptionError
    try:
        is_right = dtype is None or np.dtype(dtype).kind in 'biuf'
    except TypeError:
        is_right = False
    if not is_right:
        raise OptionError(f'--{name}={dtype} is no type of pixels, such as uint8 or float32')


def _parse_size(text):
    """
    Return the extents that a text spells, or None.

    Example:
        >>> _parse_size('30000x20000'), _parse_size('a.tif')
        ((30000, 20000), None)
    """
    if re.fullmatch(r'[0-9]+(x[0-9]+){1,2}', text) is None:
        return None
    return tuple(map(int, text.split('x')))


def _open_input(config):
    """Return what is to be worked on."""
    shape = _parse_size(config.src)
    if shape is not None:
        found = _Input({shape: config.n_images or 1}, 1, 'float32')
    elif config.src.lower().endswith(_MANIFESTS):
        found = _open_manifest(config)
    else:
        from cocoseg.io.arrays import open_source
        source = open_source(config.src, _count_axes(config))
        found = _Input({source.shape[:-1]: 1}, source.shape[-1], str(source.dtype),
                       lambda shape: source.read)
    if config['for'] in ('predict', 'segment') and any(len(shape) != 2 for shape in found.counts):
        from cocoseg.errors import OptionError
        raise OptionError(f'{config.src} is a volume; --for {config["for"]} is for images')
    return _Input(found.counts, config.channels_in or found.n_bands,
                  config.dtype_in or found.dtype, found.read)


def _open_manifest(config):
    from cocoseg.coco.dataset import list_image_ids, load_dataset
    from cocoseg.coco.geometry import stitchspace_dsize
    from cocoseg.coco.manifest import list_channels
    dset = load_dataset(config.src)
    first = {}
    counts = collections.Counter()
    for image_id in list_image_ids(dset):
        img = dset.index.imgs[image_id]
        shape = stitchspace_dsize(img, dset.index.videos.get(img.get('video_id')),
                                  config.space)[::-1]
        counts[shape] += 1
        first.setdefault(shape, image_id)
    spec = config.channels or dset.coco_image(first[next(iter(first))]).channels.fuse().spec

    def open_image(shape):
        from cocoseg.io.arrays import open_source
        image = dset.coco_image(first[shape])
        space = config.space if image.img.get('video_id') is not None else 'image'
        return open_source(image, channels=spec, space=space).read
    return _Input(dict(counts), len(list_channels(spec)), 'float32', open_image)


def _count_axes(config):
    from cocoseg.io.zarr_place import ArrayIdentifier, is_zarr_path
    given = [len(values) for values in (config.block_shape, config.context)
             if values is not None and len(values) > 1]
    if not given and config['for'] in ('blocks', 'watershed') and is_zarr_path(config.src):
        from cocoseg.io.zarr_store import open_zarr
        return 3 if open_zarr(ArrayIdentifier.parse(config.src)).ndim > 3 else 2
    return given[0] if given else 2


def _as_extent(numbers, default):
    if numbers is None:
        return default
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _find_windows(config):
    """Return window and overlap, px, as (y, x)."""
    from cocoseg.errors import OptionError
    from cocoseg.grid.window import as_pair
    is_tile = config['for'] == 'segment'
    window = as_pair(_as_extent(config.window, 4096 if is_tile else 512), 'window')
    overlap = config.overlap if config.overlap is not None else 0.25 if is_tile else 0.3
    if overlap >= 1:
        if overlap != int(overlap):
            raise OptionError(f'--overlap={overlap} must be a fraction below 1, or whole pixels')
        return window, (int(overlap),) * 2
    # Tiles are cut in the middle of what they share.
    pixels = tuple(min(round(overlap * size), size - 1) for size in window)
    return window, tuple(size // 2 * 2 for size in pixels) if is_tile else pixels


def _find_blocks(config, ndim):
    """Return the extents of a block and of its context, px, one per axis."""
    is_watershed = config['for'] == 'watershed'
    usual = 128 if ndim == 3 else 512 if is_watershed else 1024
    found = (_as_extent(config.block_shape, usual),
             _as_extent(config.context, 32 if is_watershed else 0))
    return [extent if isinstance(extent, tuple) else (extent,) * ndim for extent in found]


def _make_plan(config, content, kind, n_workers):
    """Return the sum of the plans of all images."""
    total = None
    for shape, n_images in content.counts.items():
        plan = _PLANNERS[config['for']](config, content, shape, n_images, kind, n_workers)
        total = plan if total is None else total + plan
    return total


def _plan_predict(config, content, shape, n_images, kind, n_workers):
    from cocoseg.engine.plan import plan_predict
    from cocoseg.engine.sharing import is_shared
    from cocoseg.grid.windows import WindowGrid
    from cocoseg.stitch.blend import BlendPlan
    window, overlap = _find_windows(config)
    n_channels, dtype = config.channels_out or 1, config.dtype or 'int16'
    grid, stitch_nbytes = WindowGrid(shape, window, overlap), None
    n_all = sum(n_equal * len(WindowGrid(other, window, overlap))
                for other, n_equal in content.counts.items())
    if len(grid) <= _MAX_FORECAST:
        stitch_nbytes = BlendPlan(grid).describe(n_bands=n_channels,
                                                 quantize_dtype=dtype).peak_nbytes
    return plan_predict(
        shape, window, overlap, n_bands=content.n_bands, n_channels=n_channels, dtype=dtype,
        n_images=n_images, n_workers=n_workers, batch_size=config.batch_size,
        prefetch=config.prefetch, stitch_nbytes=stitch_nbytes,
        is_shared=kind in ('processes', 'dask') and is_shared(config.split, len(grid), n_all,
                                                              n_workers))


def _repeat(plan, n_images):
    """Return the plan of as many equal images, by doubling."""
    total = None
    while n_images:
        if n_images % 2:
            total = plan if total is None else total + plan
        plan, n_images = plan + plan, n_images // 2
    return total


def _plan_blocks(config, content, shape, n_images, kind, n_workers):
    from cocoseg.engine.plan import plan_blocks
    block_shape, context = _find_blocks(config, len(shape))
    return _repeat(plan_blocks(
        shape, block_shape, context, n_bands=content.n_bands,
        n_channels=config.channels_out or 1, read_dtype=content.dtype,
        dtype=config.dtype or 'float32', n_workers=n_workers,
        is_kept=config.resume or kind in ('processes', 'dask')), n_images)


def _plan_watershed(config, content, shape, n_images, kind, n_workers):
    from cocoseg.engine.plan import plan_watershed
    block_shape, context = _find_blocks(config, len(shape))
    return _repeat(plan_watershed(
        shape, block_shape, context, n_bands=content.n_bands, read_dtype=content.dtype,
        n_workers=n_workers, label_size=config.label_size), n_images)


def _plan_segment(config, content, shape, n_images, kind, n_workers):
    from cocoseg.engine.plan import plan_segments
    from cocoseg.shepherd.tiles import TilePlan
    tiles = TilePlan.make(shape, *_find_windows(config))
    return _repeat(plan_segments(
        tiles.row_spans, tiles.column_spans, n_bands=content.n_bands, read_dtype=content.dtype,
        n_workers=n_workers, label_size=config.label_size), n_images)


_PLANNERS = {'predict': _plan_predict, 'blocks': _plan_blocks, 'watershed': _plan_watershed,
             'segment': _plan_segment}


def _find_rate(config, content):
    """Return px per second of one worker, or None, and where it is from."""
    if config.rate is not None:
        return config.rate * 1e6, 'given'
    if not config.calibrate:
        return None, None
    import time
    shape = max(content.counts, key=content.counts.get)
    read, predict = content.read(shape), _load_predictor(config)
    n_pixels = seconds = 0
    for number, window in enumerate(_list_probes(config, shape)):
        start = time.perf_counter()
        pixels = read(window)
        if predict is not None:
            import numpy as np
            predict(np.ascontiguousarray(pixels, np.float32))
        # The first time is for what is done once.
        if number:
            seconds += time.perf_counter() - start
            n_pixels += pixels.size // pixels.shape[-1]
    return n_pixels / max(seconds, 1e-9), 'reading only' if predict is None else 'predicting'


def _load_predictor(config):
    if config.predictor is None:
        return None
    from cocoseg.coco.predictors import load_predictor
    return load_predictor(config.predictor)


def _list_probes(config, shape):
    """Return some windows that are read in a run, on a diagonal; the first one twice."""
    if config['for'] in ('predict', 'segment'):
        from cocoseg.grid.window import Window
        from cocoseg.grid.windows import WindowGrid
        (height, width), overlap = _find_windows(config)
        grid = WindowGrid(shape, (height, width), overlap)
        spots = [(y, x) for y, x in zip(_pick(grid.row_starts), _pick(grid.column_starts))]
        found = [Window(y, x, y + height, x + width).clip(shape) for y, x in spots]
    else:
        from cocoseg.grid.blocks import BlockGrid
        grid = BlockGrid(shape, *_find_blocks(config, len(shape)))
        axes = [_pick(range(n)) for n in grid.grid_shape]
        found = [grid.get(index).read for index in zip(*axes)]
    return [found[0], *found]


def _pick(values):
    """
    Return as many values as there are probes, from the first to the last.

    Example:
        >>> _pick(range(100)), _pick([7])
        ([0, 33, 66, 99], [7, 7, 7, 7])
    """
    return [values[(len(values) - 1) * number // (_N_PROBES - 1)] for number in range(_N_PROBES)]


__cli__ = PlanConfig
