"""
The races of block runs: components, relabeling, agreement of blocks, memory, kills.

``components``: a mask in a memory map to ids in another, blockwise with two threads,
against ``scipy.ndimage.label`` of the whole; equal up to ids or it fails.
``relabel``: ids by a table, against a copy of the same bytes, which is what memory
can do. ``agreement``: the share of objects of the whole-image watershed that the
blockwise one finds pixel by pixel. ``memory``: what is added for an image of four
times the height, without an array on either side. ``kills``: runs that are killed at
random moments and go on, against one that is not.
"""
from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import check_goal
from instance_problem import OFFSETS, make_affinities, make_cells

SIZE, VOLUME = 8192, 128
PACKAGES = ['numpy', 'numba', 'scipy', 'scikit-image', 'gdal', 'zarr']
BLOCK = 2048
HALO = 32
# Name: shape, spacing of cells, offsets, noise, blur of the noise, block; of the full size.
PROBLEMS = {
    'noise 0.15': (2, 14, 4, 0.15, 0, 256),
    'noise 0.35': (2, 14, 4, 0.35, 0, 256),
    'noise 0.35, correlated': (2, 16, 4, 0.35, 2, 256),
    'volume, noise 0.15': (3, 12, 6, 0.15, 0, 64),
    'volume, noise 0.35': (3, 12, 6, 0.35, 0, 64),
    'volume, noise 0.25, correlated': (3, 12, 6, 0.25, 1, 64),
}


def finish(goals, medians, labels, **more):
    """Print goals and return what is stored of a race."""
    harness.print_goals(goals)
    return {'goals': goals, 'medians': medians, 'labels': labels, **more,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}


def make_mask(size, seed=0):
    """Return uint8 blobs of some hundred px, about two fifths of the image."""
    from scipy import ndimage
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.random((size // 4, size // 4), dtype=np.float32), 3)
    mask = (field > np.quantile(field, 0.6)).astype(np.uint8)
    return np.kron(mask, np.ones((4, 4), np.uint8))


# ---- components

def race_components(script, args):
    """Time components of a mask, both connectivities."""
    from cocoseg import connected_components
    from scipy import ndimage
    goals, medians, values = [], {}, {}
    labels = {'scipy': 'scipy.ndimage.label, whole', 'blocks': 'cocoseg, blocks, 2 threads',
              'serial': 'cocoseg, blocks, 1 thread'}
    with tempfile.TemporaryDirectory() as folder:
        path, out_path = (os.path.join(folder, name) for name in ('mask.npy', 'out.npy'))
        np.save(path, make_mask(args.size))
        mask = np.load(path, mmap_mode='r')
        out = np.lib.format.open_memmap(out_path, 'w+', np.uint32, mask.shape)
        for connectivity in (4, 8):
            name = f'{connectivity}-connected'
            structure = ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)

            def run_ours(executor, connectivity=connectivity):
                start = time.perf_counter()
                connected_components(mask, out, block_shape=BLOCK, connectivity=connectivity,
                                     executor=executor, workdir=os.path.join(folder, 'work'))
                return {'wall_s': time.perf_counter() - start}

            def run_scipy(structure=structure):
                start = time.perf_counter()
                ndimage.label(mask, structure)
                return {'wall_s': time.perf_counter() - start}
            medians[name], values[name] = harness.run_rounds(
                {'scipy': run_scipy, 'serial': lambda: run_ours('serial'),
                 'blocks': lambda: run_ours('threads:2')}, args.rounds)
            n_differ = count_different(out, ndimage.label(mask, structure)[0])
            rate = mask.size / medians[name]['blocks']['wall_s'] / 1e6
            goals += [check_goal(f'{name}: objects not equal to those of scipy', n_differ, 0,
                                 at_most=True),
                      check_goal(f'{name}: Mpx/s', rate, 60)]
    return finish(goals, medians, labels, values=values, size=args.size)


def count_different(labels, expected):
    """Return how many objects of two label images are not in both of them."""
    from cocoseg import agree_objects
    n_expected, n_labels = int(expected.max()), int(labels.max())
    return round((1 - agree_objects(labels, expected)) * n_expected) + abs(n_expected - n_labels)


# ---- relabel

def race_relabel(script, args):
    """Time the lookup of ids, against a copy."""
    from cocoseg.labels.relabel import apply_lut
    from cocoseg.postprocess.label_blocks import relabel
    side = args.size // 2
    rng = np.random.default_rng(0)
    small = rng.integers(0, 1000, (side // 8, side // 8))
    narrow = np.kron(small, np.ones((8, 8), np.uint16)).astype(np.uint16)
    wide = narrow.astype(np.uint32)
    lut = rng.permutation(1000).astype(np.uint32)
    out = np.empty_like(wide)

    def time_call(call, *call_args):
        start = time.perf_counter()
        call(*call_args)
        return {'wall_s': time.perf_counter() - start}

    def keep(labels):
        np.copyto(out, labels)
    harness.keep_memory()
    medians, values = harness.run_rounds({
        'copy': lambda: time_call(keep, wide),
        'in_place': lambda: time_call(apply_lut, lut, wide),
        'block': lambda: time_call(relabel, narrow, lut),
        'numpy': lambda: time_call(lut.__getitem__, wide)}, 2 * args.rounds)
    labels = {'copy': 'copy of uint32', 'in_place': 'apply_lut, uint32 in place',
              'block': 'relabel, uint16 to uint32', 'numpy': 'lut[labels] of numpy'}
    rates = {name: wide.size / row['wall_s'] / 1e9 for name, row in medians.items()}
    harness.print_table('relabeling', ['who', 'Gpx/s'],
                        [(labels[name], rate) for name, rate in rates.items()])
    goals = [check_goal(f'{labels[name]}: time / copy', medians[name]['wall_s']
                        / medians['copy']['wall_s'], 1.5, at_most=True, unit=' x')
             for name in ('in_place', 'block')]
    goals.append(check_goal('the quicker of both: Gpx/s', max(rates['in_place'], rates['block']),
                            1))
    return finish(goals, medians, labels, values=values)


# ---- agreement

def race_agreement(script, args):
    """Compare the blockwise mutex watershed with that of the whole."""
    from cocoseg import WatershedParameters, agree_objects, blockwise_watershed
    rows, goals, seams = [], [], {}
    for name, (ndim, spacing, n_offsets, noise, blur, block) in PROBLEMS.items():
        side = args.size // 8 if ndim == 2 else VOLUME * args.size // SIZE
        shape, offsets = (side,) * ndim, OFFSETS[n_offsets]
        block = min(block, side // 2)
        shares, worst = [], None
        for seed in range(args.seeds):
            cells = make_cells(shape, spacing, seed)
            affinities = np.moveaxis(make_affinities(cells, offsets, noise, blur, seed + 100), 0,
                                     -1)
            parameters = WatershedParameters(offsets, context=min(HALO, block),
                                             filter_fragments=False)
            whole = blockwise_watershed(affinities, parameters, block_shape=side)
            found = blockwise_watershed(affinities, parameters, block_shape=block,
                                        executor='threads:2')
            shares.append(agree_objects(found.output, whole.output))
            if seed == 0:
                print(f'{name}: {whole.n_labels} objects, blocks {found.grid_shape}, worst seams')
                print('\n'.join(found.format_seams().splitlines()[:6]))
                seams[name] = [[str(seam.first), str(seam.second), seam.agreement]
                               for seam in found.seams]
                worst = (whole.n_labels, found.agreement,
                         min(seam.agreement for seam in found.seams))
        rows.append((name, str(worst[0]), f'{worst[1]:.4f}', f'{worst[2]:.4f}',
                     f'{100 * min(shares):.3f}', f'{100 * np.mean(shares):.3f}'))
        goals.append(check_goal(f'{name}: objects identical, least of {args.seeds}',
                                100 * min(shares), 99.8, unit=' %'))
    harness.print_table(f'blocks against the whole, halo {HALO}', [
        'problem', 'objects', 'agreement', 'worst seam', 'identical, least %', 'mean %'], rows)
    return finish(goals, {}, {}, rows=rows, seams=seams)


# ---- memory

class Blobs:
    """A mask without an array: periodic disks, of any size."""

    name, dtype = 'blobs', np.dtype(np.uint8)

    def __init__(self, shape):
        self.shape = (*shape, 1)

    def read(self, window):
        """Compute a window."""
        y, x = (np.arange(part.start, part.stop) % 37 - 18 for part in window.slices)
        return ((y[:, None] ** 2 + x[None] ** 2) < 300).astype(np.uint8)[..., None]


class NoSink:
    """Drop every block."""

    def write_block(self, window, block):
        """Drop a block."""


def measure_memory(name, size):
    """Return the memory that components add, MB; runs in its own process."""
    from cocoseg import connected_components
    options = {'block_shape': 1024, 'executor': 'threads:2'}
    connected_components(Blobs((2048, 2048)), NoSink(), **options)
    base = harness.start_peak_mb()
    height = size if name == 'low' else 4 * size
    result = connected_components(Blobs((height, size)), NoSink(), **options)
    return {'added_mb': harness.peak_rss_mb() - base, 'n_labels': result.n_labels}


def race_memory(script, args):
    """Measure added memory at two heights."""
    found = {name: harness.run_worker(script, f'memory:{name}', ['--size', args.size])
             for name in ('low', 'high')}
    rows = [(name, row['added_mb'], str(row['n_labels'])) for name, row in found.items()]
    harness.print_table('added memory of components', ['height', 'MB', 'objects'], rows)
    # What any way needs: a number per object of each block, several times.
    more_labels = found['high']['n_labels'] - found['low']['n_labels']
    growth = found['high']['added_mb'] - found['low']['added_mb'] - more_labels * 200 / 2 ** 20
    goals = [check_goal('added memory', found['high']['added_mb'],
                        16 * 1024 ** 2 * 5 / 2 ** 20, at_most=True, unit=' MB'),
             check_goal('growth with four times the height, beside 200 B per object', growth, 16,
                        at_most=True, unit=' MB')]
    return finish(goals, {}, {}, rows=rows)


# ---- kills

_PROGRAM = """
import sys, numpy as np
sys.path.insert(0, {bench!r})
from cocoseg import WatershedParameters, blockwise_watershed, connected_components
from instance_problem import OFFSETS
kind, executor, dst = sys.argv[1:4]
options = dict(block_shape=128, executor=executor, resume=True, overwrite=True)
print('begin', flush=True)
if kind == 'components':
    connected_components(np.load({mask!r}, mmap_mode='r'), dst, **options)
else:
    parameters = WatershedParameters(OFFSETS[4], context=16)
    blockwise_watershed(np.load({affinities!r}, mmap_mode='r'), parameters, dst, **options)
"""


def race_kills(script, args):
    """Kill runs at random moments, let them go on, and compare the bytes."""
    rng, rows, n_wrong, n_killed = random.Random(0), [], 0, 0
    with tempfile.TemporaryDirectory() as folder:
        mask, affinities = (os.path.join(folder, name) for name in ('mask.npy', 'affs.npy'))
        np.save(mask, make_mask(1024))
        np.save(affinities, np.moveaxis(
            make_affinities(make_cells((512, 512), 14), OFFSETS[4], 0.3), 0, -1))
        program = os.path.join(folder, 'program.py')
        Path(program).write_text(_PROGRAM.format(
            bench=os.fspath(Path(__file__).parent), mask=mask, affinities=affinities))
        for kind in ('components', 'watershed'):
            whole = os.path.join(folder, f'{kind}.tif')
            seconds = _run_killed(program, kind, 'serial', whole, None)[1]
            expected = Path(whole).read_bytes()
            for executor in ('serial', 'threads:2'):
                kills = wrong = 0
                for trial in range(args.kills):
                    dst = os.path.join(folder, f'{kind}-{executor}-{trial}.tif')
                    while _run_killed(program, kind, executor, dst,
                                      rng.uniform(0, seconds) if kills <= trial * 3 + 2
                                      else None)[0]:
                        kills += 1
                    wrong += Path(dst).read_bytes() != expected
                rows.append((kind, executor, str(args.kills), str(kills), str(wrong)))
                n_wrong, n_killed = n_wrong + wrong, n_killed + kills
    harness.print_table('killed runs that went on', ['what', 'executor', 'runs', 'kills',
                                                     'other bytes'], rows)
    goals = [check_goal('runs with other bytes', n_wrong, 0, at_most=True),
             check_goal('kills', n_killed, args.kills)]
    return finish(goals, {}, {}, rows=rows)


def _run_killed(program, kind, executor, dst, delay):
    """Return whether a run was killed, so many seconds after it began, and how long it took."""
    process = subprocess.Popen([sys.executable, program, kind, executor, dst],
                               stdout=subprocess.PIPE)
    process.stdout.readline()
    start = time.perf_counter()
    try:
        process.wait(delay)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    if process.returncode not in (0, -9):
        raise RuntimeError(f'{kind} failed with {process.returncode}')
    return process.returncode == -9, time.perf_counter() - start


RACES = {'components': race_components, 'relabel': race_relabel, 'agreement': race_agreement,
         'memory': race_memory, 'kills': race_kills}
