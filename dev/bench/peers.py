"""
The peers in the streaming races, each by its fastest documented way.

Counted: making the merger, adding all windows, normalizing, and int16 with
nodata. Not counted: weight maps, plans of windows, and tensors in the layout
that a peer wants (CHW for those on torch), unless its interface makes them in
the call. What a peer ends with is one int16 array in its own layout. Threads
are those of torch: its default, and 1.
"""
from __future__ import annotations

import contextlib

import numpy as np
from stream_problem import (BANDS, N_TILES, OVERLAP, WINDOW, Clock, encode_numpy,
                            encode_torch)

PACKAGES = ['kwarray', 'torch', 'monai', 'pytorch-toolbelt', 'tiler', 'seamless-seg']


def make_taper():
    """Return weights that fall linearly over the overlap to each side, (256, 256, 1)."""
    ramp = np.minimum((np.arange(WINDOW) + 1) / (OVERLAP + 1), 1)
    profile = np.minimum(ramp, ramp[::-1]).astype(np.float32)
    return (profile[:, None] * profile)[..., None]


def make_kwarray(problem, *, taper=True, nan=False):
    """Return a run of kwarray.Stitcher."""
    import kwarray
    weights = make_taper() if taper else None
    jobs = [(window.slices, tile) for window, tile in problem.list_jobs(nan=nan)]
    policy = 'omit' if nan else 'propogate'

    def run():
        clock = Clock()
        stitcher = kwarray.Stitcher(problem.shape, device='numpy', dtype='float32',
                                    nan_policy=policy)
        for slices, tile in jobs:
            stitcher.add(slices, tile, weight=weights)
        clock.mark_added()
        with np.errstate(invalid='ignore'):
            encode_numpy(stitcher.finalize())
        return clock.stop()
    return run


def import_torch(n_threads):
    """Return torch and the number of threads to use, None being its default."""
    import torch
    return torch, n_threads or torch.get_num_threads()


@contextlib.contextmanager
def use_threads(torch, n_threads):
    """Let torch use so many threads within."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make_tensors(torch, problem):
    """Return the pool as contiguous CHW tensors; all peers on torch share it."""
    if not hasattr(problem, 'tensors'):
        problem.tensors = [torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))
                           for tile in problem.tiles]
    return problem.tensors


def make_monai(problem, *, n_threads=None):
    """Return a run of MONAI's AvgMerger, which knows no weights."""
    torch, n_threads = import_torch(n_threads)
    from monai.inferers.merger import AvgMerger
    tensors = [tensor[None] for tensor in make_tensors(torch, problem)]
    jobs = [((window.y0, window.x0), tensors[index % N_TILES])
            for index, window in enumerate(problem.windows)]
    height, width, n_bands = problem.shape

    def run():
        with use_threads(torch, n_threads):
            clock = Clock()
            merger = AvgMerger(merged_shape=(1, n_bands, height, width))
            for place, tile in jobs:
                merger.aggregate(tile, place)
            clock.mark_added()
            encode_torch(merger.finalize())
            return clock.stop()
    return run


def make_toolbelt(problem, *, n_threads=None):
    """Return a run of pytorch-toolbelt's TileMerger with its pyramid weights."""
    torch, n_threads = import_torch(n_threads)
    from pytorch_toolbelt.inference.tiles import TileMerger, compute_pyramid_patch_weight_loss
    weights = compute_pyramid_patch_weight_loss(WINDOW, WINDOW)[0].astype(np.float32)
    tensors = make_tensors(torch, problem)
    jobs = [((window.x0, window.y0, WINDOW, WINDOW), tensors[index % N_TILES])
            for index, window in enumerate(problem.windows)]

    def run():
        with use_threads(torch, n_threads):
            clock = Clock()
            merger = TileMerger(problem.shape[:2], problem.shape[2], weights)
            for place, tile in jobs:
                merger.accumulate_single(tile, place)
            clock.mark_added()
            encode_torch(merger.merge_())
            return clock.stop()
    return run


def make_tiler(problem):
    """Return a run of tiler's Merger, on its own grid of as many windows."""
    from tiler import Merger, Tiler
    plan = Tiler(data_shape=problem.shape, tile_shape=(WINDOW, WINDOW, BANDS),
                 overlap=(OVERLAP, OVERLAP, 0), channel_dimension=2, mode='constant')

    def run():
        clock = Clock()
        merger = Merger(plan, window='triang', save_visits=False)
        for index in range(len(plan)):
            merger.add(index, problem.tiles[index % N_TILES])
        clock.mark_added()
        encode_numpy(merger.merge())
        return clock.stop()
    return run


def make_seamless(problem):
    """Return a run of seamless_seg, on its own grid of as many windows."""
    import seamless_seg
    plan, _ = seamless_seg.plan_regular_grid(problem.shape[:2], (WINDOW, WINDOW),
                                             (OVERLAP, OVERLAP))

    def run():
        clock = Clock()
        indices = [index for index, _ in seamless_seg.get_plan_input_geoms(plan)]
        tiles = (problem.tiles[index % N_TILES] for index in range(len(indices)))
        codes = np.empty(problem.shape, np.int16)
        for _, place, tile in seamless_seg.run_plan(plan, tiles):
            codes[seamless_seg.shape_to_slices(place)] = encode_numpy(tile)
        # It has no phase of its own after the last window.
        clock.mark_added()
        return clock.stop()
    return run


# name -> (label, what makes the run, its options)
PEERS = {
    'kwarray_weights': ('kwarray.Stitcher, weights (H, W, 1)', make_kwarray, {}),
    'kwarray_plain': ('kwarray.Stitcher, no weights', make_kwarray, {'taper': False}),
    'kwarray_omit': ('kwarray.Stitcher, weights, NaN omitted', make_kwarray, {'nan': True}),
    'monai': ('MONAI AvgMerger, no weights, threads: {threads}', make_monai, {}),
    'monai_1': ('MONAI AvgMerger, no weights, threads: 1', make_monai, {'n_threads': 1}),
    'toolbelt': ('pytorch-toolbelt TileMerger, threads: {threads}', make_toolbelt, {}),
    'tiler': ('tiler.Merger, triang', make_tiler, {}),
    'seamless_seg': ('seamless_seg.run_plan', make_seamless, {}),
}


def make_peers(problem, only=None):
    """
    Prepare the peers.

    Args:
        problem (Problem): the image.
        only (list[str] | None): names of those that take part; None is all.

    Returns:
        tuple[dict, dict, dict]: by name the runs, the labels, and for those
        that cannot take part the reason.
    """
    runs, labels, absent = {}, {}, {}
    for name, (label, make, options) in PEERS.items():
        if only and name not in only:
            continue
        try:
            runs[name] = make(problem, **options)
        # A package that is half installed may fail in more ways than ImportError.
        except (ImportError, AttributeError, OSError, RuntimeError) as ex:
            absent[name] = f'{type(ex).__name__}: {ex}'
            continue
        threads = import_torch(None)[1] if '{threads}' in label else None
        labels[name] = label.format(threads=threads)
    return runs, labels, absent
