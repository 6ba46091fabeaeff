"""
The races to a finished file, against the steps of the reference.

One 4096 x 4096 x 5 float32 image from 961 windows of 256 px with 50 % overlap
and edge down-weighting. Two races:

* accumulate: ``SoftStitcher.add`` against ``kwarray.Stitcher.add``, with the
  same per-pixel weights.
* whole: ``CocoStitchingManager`` with defaults, to a verified COG with
  overviews, against what ``geowatch``'s stitcher does with the same input:
  ``kwarray.Stitcher``, quantization in numpy, and ``kwimage.imwrite`` as it
  calls it (DEFLATE, tiles of 128, no overviews). The Python overhead of the
  reference's own manager is not counted.
"""
from __future__ import annotations

import functools
import tempfile
import time
from pathlib import Path

import harness
import numpy as np

SIZE = 4096
WINDOW, OVERLAP, BANDS = 256, 128, 5
PACKAGES = ['numpy', 'numba', 'kwarray', 'kwimage', 'kwcoco', 'gdal']
GOALS = {'accumulate_s': 4.0, 'whole_s': 4.0}


def make_patches():
    """Return 8 softmax-like patches with some noise, float32 (256, 256, 5)."""
    rng = np.random.default_rng(0)
    patches = []
    for index in range(8):
        y, x = np.mgrid[0:WINDOW, 0:WINDOW] / WINDOW
        logits = np.stack([np.sin(3 * (y * band + x) + index) for band in range(BANDS)], axis=2)
        logits = np.exp(2 * logits + 0.05 * rng.standard_normal(logits.shape))
        patches.append((logits / logits.sum(axis=2, keepdims=True)).astype(np.float32))
    return patches


def iter_input(size):
    """Yield (window, patch) in row-major order."""
    from cocoseg import WindowGrid
    patches = make_patches()
    for index, window in enumerate(WindowGrid((size, size), WINDOW, OVERLAP)):
        yield window, patches[index % len(patches)]


def make_dataset(folder, size):
    """Return a dataset of one image without files, in a folder."""
    import kwcoco
    dset = kwcoco.CocoDataset()
    dset.fpath = str(Path(folder) / 'data.kwcoco.json')
    dset.add_image(name='image', width=size, height=size, assets=[], file_name=None)
    return dset


def add_with_cocoseg(size, folder):
    """Accumulate with our stitcher."""
    from cocoseg import SoftStitcher, edge_weights
    weights = edge_weights((WINDOW, WINDOW))
    stream = list(iter_input(size))
    start = time.perf_counter()
    stitcher = SoftStitcher((size, size, BANDS))
    for window, patch in stream:
        stitcher.add(window.slices, patch, weights)
    return {'accumulate_s': time.perf_counter() - start}


def add_with_kwarray(size, folder):
    """Accumulate with kwarray."""
    import kwarray

    from cocoseg import edge_weights
    weights = edge_weights((WINDOW, WINDOW))[..., None]
    stream = list(iter_input(size))
    start = time.perf_counter()
    stitcher = kwarray.Stitcher((size, size, BANDS), device='numpy', dtype='float32')
    for window, patch in stream:
        stitcher.add(window.slices, patch, weight=weights)
    return {'accumulate_s': time.perf_counter() - start}


def finish_with_cocoseg(size, folder):
    """Run our manager to the file on disk."""
    from cocoseg import CocoStitchingManager
    stream = list(iter_input(size))
    dset = make_dataset(folder, size)
    start = time.perf_counter()
    manager = CocoStitchingManager(dset, 'pred', '|'.join('abcde'), 'image',
                                   expected_minmax=(0, 1))
    for window, patch in stream:
        manager.accumulate_image(1, window.slices, patch, downweight_edges=True)
    info = manager.finalize_image(1)
    done = time.perf_counter()
    return {'whole_s': done - start,
            'file_mb': (Path(folder) / info['file_name']).stat().st_size / 1e6}


def finish_with_reference(size, folder):
    """Run the steps of the reference, with the libraries that it uses."""
    import kwarray
    import kwimage

    from cocoseg import edge_weights
    stream = list(iter_input(size))
    center = edge_weights((WINDOW, WINDOW))
    start = time.perf_counter()
    stitcher = kwarray.Stitcher((size, size, BANDS), device='numpy', dtype='float32')
    for window, patch in stream:
        weights = center[..., None]
        invalid = np.isnan(patch)
        if np.any(invalid):
            weights = weights * (1 - invalid.any(axis=2, keepdims=True))
            patch = np.where(invalid, 0, patch)
        stitcher.add(window.slices, patch, weight=weights)
    final = stitcher.finalize()
    kwimage.Mask((stitcher.weights.any(axis=2)).astype('uint8'), 'c_mask').to_multi_polygon()
    np.nansum(final)
    # float [0, 1] -> int16 [0, 32767], truncating, nodata -9999.
    nodata = np.isnan(final)
    codes = ((final.clip(0, 1) - 0) * 32767).astype(np.int16)
    codes[nodata] = -9999
    fpath = Path(folder) / 'reference.tif'
    kwimage.imwrite(str(fpath), codes, space=None, backend='gdal', compress='DEFLATE',
                    blocksize=128)
    done = time.perf_counter()
    return {'whole_s': done - start, 'file_mb': fpath.stat().st_size / 1e6}


RACES = {
    'accumulate': {'cocoseg': add_with_cocoseg, 'reference': add_with_kwarray},
    'whole': {'cocoseg': finish_with_cocoseg, 'reference': finish_with_reference},
}


def measure(contestant, size):
    """Run one contestant in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        return contestant(size, folder)


def measure_memory(name, size):
    """Return the peak memory that the big image adds to that of a small one, MB."""
    contestant = RACES['whole'][name]
    measure(contestant, WINDOW)
    base = harness.peak_rss_mb()
    measure(contestant, size)
    return {'added_rss_mb': harness.peak_rss_mb() - base}


WORKERS = {name: functools.partial(measure_memory, name) for name in RACES['whole']}


def run(script, size, rounds):
    """Measure, print the table, and return the result to store."""
    medians, values = {'cocoseg': {}, 'reference': {}}, {}
    for race, contestants in RACES.items():
        found, values[race] = harness.run_rounds(
            {name: functools.partial(measure, contestant, size)
             for name, contestant in contestants.items()}, rounds)
        for name in medians:
            medians[name].update(found[name])
    for name in medians:
        medians[name].update(harness.run_worker(script, f'file:{name}', ['--size', size]))
    ours, theirs = medians['cocoseg'], medians['reference']
    ratios = {key: theirs[key] / ours[key] for key in ours}
    rows = [(key, ours[key], theirs[key], f'{ratios[key]:.2f}x',
             f'>= {GOALS[key]:g}x' if key in GOALS else '') for key in ours]
    harness.print_table(f'{size}x{size}x{BANDS}, medians of {rounds}',
                        ['what', 'cocoseg', 'reference', 'ratio', 'goal'], rows)
    return {'size': size, 'rounds': rounds, 'medians': medians, 'ratios': ratios,
            'goals': GOALS, 'values': values, 'machine': harness.get_machine(),
            'versions': harness.get_versions(PACKAGES)}
