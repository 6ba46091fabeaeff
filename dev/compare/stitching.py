"""
Stitching: windows of predictions in, one int16 array out.

The problem is that of the streaming race (``dev/bench/stream_problem.py``).
Windows, tiles and weights are the same for both sides; weights and tensors in
the peer's layout are made before the clock starts. Both sides end with one
int16 array in RAM, 32767 steps for [0, 1].
"""
from __future__ import annotations

import bench_path  # noqa: F401
import numpy as np
import peers
from cases import Agreement, Case, Trial, timed
from stream_problem import (BANDS, N_TILES, NODATA, OVERLAP, TOP, WINDOW, ArraySink, Problem,
                            encode_numpy, encode_torch, make_stitcher, make_tiles)

SIZE = 4096
MOST_STEPS = 1
REMEDY_TORCH = 'pip install torch {}'


def compare_codes(ours, theirs):
    """Return how far two int16 images are apart."""
    if ours.shape != theirs.shape:
        raise ValueError(f'shapes {ours.shape} and {theirs.shape} cannot be compared')
    steps = np.abs(ours.astype(np.int32) - theirs)
    facts = {'equal_percent': 100 * float((steps == 0).mean()),
             'nodata_px': int((ours == NODATA).any(axis=2).sum()), 'steps_of_range': TOP}
    return Agreement('largest difference, code steps', int(steps.max()), MOST_STEPS, True, facts)


def describe(shape, n_windows, threads=1):
    """Return the input as a text."""
    return (f'{shape[0]} x {shape[1]} x {shape[2]} float32, {n_windows} windows of {WINDOW} px, '
            f'threads: {threads}')


def stitch_ours(problem, jobs, *, threads=1, **options):
    """
    Return the codes of our stitcher.

    Args:
        problem (object): its shape, and its grid or list of windows.
        jobs (list): (window, tile, weights or None for those of the plan).
        threads (int): that share the work of a window.
        **options: of the stitcher.
    """
    sink = ArraySink(problem.shape)
    stitcher = make_stitcher(problem, sink, num_threads=threads, **options)
    for window, tile, weights in jobs:
        stitcher.add(window, tile, weights)
    stitcher.finalize()
    sink.check(problem)
    return sink.codes


def stitch_kwarray(shape, jobs, policy='propogate'):
    """Return the codes of kwarray.Stitcher; weights are (h, w, 1)."""
    import kwarray
    stitcher = kwarray.Stitcher(shape, device='numpy', dtype='float32', nan_policy=policy)
    for slices, tile, weights in jobs:
        stitcher.add(slices, tile, weight=weights)
    with np.errstate(invalid='ignore'):
        return encode_numpy(stitcher.finalize())


def make_plan_weights(problem):
    """Return by window the weights of the linear plan, float32 (h, w, 1)."""
    from cocoseg import BlendPlan
    plan, known, found = BlendPlan(problem.grid), {}, {}
    for window in problem.windows:
        by_y, by_x = plan.get_weights(window)
        key = by_y.tobytes(), by_x.tobytes()
        if key not in known:
            known[key] = (by_y[:, None] * by_x)[..., None]
        found[window] = known[key]
    return found


def prepare_kwarray(size, *, nan=False):
    """Race kwarray.Stitcher with the weights that our plan has."""
    import kwarray  # noqa: F401
    problem = Problem((size, size, BANDS))
    weights = make_plan_weights(problem)
    pairs = problem.list_jobs(nan=nan)
    ours = [(window, tile, None) for window, tile in pairs]
    theirs = [(window.slices, tile, weights[window]) for window, tile in pairs]
    policy = 'omit' if nan else 'propogate'
    return Trial(describe(problem.shape, len(pairs)), timed(lambda: stitch_ours(problem, ours)),
                 timed(lambda: stitch_kwarray(problem.shape, theirs, policy)), compare_codes)


def prepare_kwarray_nan(size):
    """Race kwarray.Stitcher with holes of NaN in all tiles."""
    return prepare_kwarray(size, nan=True)


def prepare_kwimage(size):
    """Race kwarray.Stitcher with the Gaussian of kwimage, given to both sides."""
    import kwimage
    problem = Problem((size, size, BANDS))
    patch = kwimage.gaussian_patch((WINDOW, WINDOW))
    weights = (patch / patch.max()).astype(np.float32)
    pairs = problem.list_jobs()
    ours = [(window, tile, weights) for window, tile in pairs]
    theirs = [(window.slices, tile, weights[..., None]) for window, tile in pairs]
    return Trial(describe(problem.shape, len(pairs)), timed(lambda: stitch_ours(problem, ours)),
                 timed(lambda: stitch_kwarray(problem.shape, theirs)), compare_codes)


def run_torch(threads, work):
    """Return a timed work on torch whose result becomes int16 (H, W, C)."""
    import torch

    def run():
        with peers.use_threads(torch, threads):
            seconds, codes = timed(work)()
        # The view is not timed: the peer may keep its own layout.
        return seconds, codes.reshape(codes.shape[-3:]).permute(1, 2, 0).numpy()
    return run


def prepare_monai_merger(size):
    """Race MONAI's AvgMerger, a mean without weights."""
    torch, threads = peers.import_torch(None)
    from monai.inferers.merger import AvgMerger
    problem = Problem((size, size, BANDS))
    tensors = peers.make_tensors(torch, problem)
    pairs = problem.list_jobs()
    places = [((window.y0, window.x0), tensors[index % N_TILES][None])
              for index, (window, _) in enumerate(pairs)]

    def merge():
        merger = AvgMerger(merged_shape=(1, BANDS, size, size))
        for place, tile in places:
            merger.aggregate(tile, place)
        return encode_torch(merger.finalize())
    jobs = [(window, tile, None) for window, tile in pairs]
    return Trial(describe(problem.shape, len(jobs), threads),
                 timed(lambda: stitch_ours(problem, jobs, threads=threads, profile='constant')),
                 run_torch(threads, merge), compare_codes)


class ListedProblem:
    """An image whose windows a peer laid out; what :func:`stitch_ours` needs of a problem."""

    def __init__(self, shape, windows):
        self.shape, self.grid, self.windows = shape, windows, windows
        self.n_pixels = shape[0] * shape[1]
        self.tiles = make_tiles(shape[2])

    def list_jobs(self, weights):
        """Return the jobs of our side, all with the same weights."""
        return [(window, self.tiles[index % N_TILES], weights)
                for index, window in enumerate(self.windows)]


def prepare_monai_inference(size):
    """Race the merging of sliding_window_inference; its predictor only looks a tile up."""
    torch, threads = peers.import_torch(None)
    from monai.data.utils import compute_importance_map, dense_patch_slices
    from monai.inferers import sliding_window_inference

    from cocoseg import Window
    step = WINDOW - OVERLAP
    windows = [Window.from_slices(slices)
               for slices in dense_patch_slices((size, size), (WINDOW,) * 2, (step,) * 2)]
    problem = ListedProblem((size, size, BANDS), windows)
    tensors = peers.make_tensors(torch, problem)
    tile_at = {(window.y0, window.x0): tensors[index % N_TILES][None]
               for index, window in enumerate(windows)}
    weights = compute_importance_map((WINDOW,) * 2, mode='gaussian', sigma_scale=0.125,
                                     device='cpu', dtype=torch.float32)
    image = torch.zeros((1, BANDS, size, size))

    def predict(pixels, places):
        _, _, rows, columns = places[0]
        # A copy, as it would be from a model: the caller multiplies it in place.
        return tile_at[rows.start, columns.start].clone()

    def infer():
        merged = sliding_window_inference(
            image, (WINDOW,) * 2, 1, predict, overlap=OVERLAP / WINDOW, mode='gaussian',
            sigma_scale=0.125, with_coord=True)
        return encode_torch(merged)
    jobs = problem.list_jobs(weights.reshape(WINDOW, WINDOW).numpy())
    return Trial(describe(problem.shape, len(jobs), threads),
                 timed(lambda: stitch_ours(problem, jobs, threads=threads)),
                 run_torch(threads, infer), compare_codes)


def prepare_toolbelt(size):
    """Race ImageSlicer and TileMerger, on the slicer's windows and with its pyramid weights."""
    torch, threads = peers.import_torch(None)
    from pytorch_toolbelt.inference.tiles import ImageSlicer, TileMerger

    from cocoseg import Window
    slicer = ImageSlicer((size, size), WINDOW, WINDOW - OVERLAP, weight='pyramid')
    crops = [tuple(map(int, crop)) for crop in slicer.crops]
    # The canvas of the slicer is larger than the image; both sides fill all of it.
    shape = (*map(int, slicer.target_shape), BANDS)
    problem = ListedProblem(shape, [Window(y, x, y + h, x + w) for x, y, w, h in crops])
    weights = slicer.weight.astype(np.float32)
    tensors = peers.make_tensors(torch, problem)
    places = [(crop, tensors[index % N_TILES]) for index, crop in enumerate(crops)]

    def merge():
        merger = TileMerger(shape[:2], BANDS, weights)
        for crop, tile in places:
            merger.accumulate_single(tile, crop)
        return encode_torch(merger.merge_())
    jobs = problem.list_jobs(weights)
    return Trial(describe(shape, len(jobs), threads),
                 timed(lambda: stitch_ours(problem, jobs, threads=threads)),
                 run_torch(threads, merge), compare_codes)


CASES = [
    Case('stitching/kwarray', 'kwarray.Stitcher', 'kwarray', ('kwarray',),
         'windows, tiles, weights of our linear plan', prepare_kwarray, SIZE,
         'pip install kwarray'),
    Case('stitching/kwarray_nan', 'kwarray.Stitcher, NaN omitted', 'kwarray', ('kwarray',),
         'the same with NaN in every tile', prepare_kwarray_nan, SIZE, 'pip install kwarray'),
    Case('stitching/kwimage', 'kwarray.Stitcher, gaussian_patch of kwimage', 'kwimage',
         ('kwimage', 'kwarray'), 'windows, tiles, Gaussian weights of kwimage', prepare_kwimage,
         SIZE, 'pip install kwimage kwarray'),
    Case('stitching/monai_merger', 'MONAI AvgMerger', 'monai', ('monai', 'torch'),
         'windows, tiles, equal weights', prepare_monai_merger, SIZE,
         REMEDY_TORCH.format('monai'), isolated=True),
    Case('stitching/monai_inference', 'MONAI sliding_window_inference', 'monai',
         ('monai', 'torch'), 'windows of MONAI, tiles, its Gaussian weights',
         prepare_monai_inference, SIZE, REMEDY_TORCH.format('monai'), isolated=True),
    Case('stitching/toolbelt', 'pytorch-toolbelt ImageSlicer, TileMerger', 'pytorch-toolbelt',
         ('pytorch_toolbelt', 'torch', 'torchvision'),
         'windows of the slicer, tiles, its pyramid weights', prepare_toolbelt,
         SIZE, REMEDY_TORCH.format('torchvision pytorch-toolbelt'),
         isolated=True),
]
