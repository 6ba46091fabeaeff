"""
The races of the mutex watershed against mwatershed, on one core, in turns.

``mutex``: seconds for cells in two and three axes, with noise that is independent or
blurred, and whether the partitions are equal. The affinities become weights whose
magnitudes all differ, as the sort of mwatershed is not stable; both get the same
ones, ours as float32, mwatershed as float64, the only type that it takes, without
strides. ``mutex_ties``: the same with affinities that are clipped, so that many are
equal; here partitions may differ, and the share of pixels whose objects are the same
in both is told. ``mutex_memory``: what one call adds, each in a process of its own
after a small one that loads and compiles all.
"""
from __future__ import annotations

import functools
import time

import harness
import numpy as np
from harness import check_goal
from instance_problem import OFFSETS, make_affinities, make_cells
from stream_problem import Absent

PACKAGES = ['numpy', 'numba', 'mwatershed']
NOISES = {'noise .15': (0.15, 0), 'noise .35': (0.35, 0), 'noise .35 blurred': (0.35, 2)}
LEAST_RATIO = {2: 4, 3: 3}
SPACING = 13
# Images of more are for whoever has the memory that mwatershed wants.
MOST_SIDE = 1024
MEMORY_CASES = {'4 offsets': 4, '8 offsets': 8, '6 offsets': 6}


def get_peer():
    """Return ``mwatershed.agglom``, or raise Absent."""
    try:
        from mwatershed import agglom
    except ImportError as ex:
        raise Absent(f'{ex}; pip install mwatershed') from ex
    return agglom


def get_shape(n_offsets, size):
    """Return the shape of a problem: an image of at most that side, or a volume an eighth of it."""
    side = min(size, MOST_SIDE)
    return (side,) * 2 if len(OFFSETS[n_offsets][0]) == 2 else (max(side // 8, 16),) * 3


@functools.lru_cache(maxsize=1)
def make_weights(n_offsets, size, noise, blur, *, distinct=True):
    """Return weights float32 (C, ...) of noisy cells, by default all of different magnitude."""
    cells = make_cells(get_shape(n_offsets, size), SPACING)
    affinities = make_affinities(cells, OFFSETS[n_offsets], noise, blur)
    weights = affinities - np.float32(0.5)
    return make_distinct(weights) if distinct else weights


def make_distinct(weights):
    """
    Return weights of the same order and signs whose magnitudes all differ.

    Equal ones are taken in any order, and raised by the least steps of float32.
    """
    bits = np.abs(weights).ravel().view(np.uint32).astype(np.int64)
    shuffled = np.random.default_rng(0).permutation(len(bits))
    order = shuffled[np.argsort(bits[shuffled], kind='stable')]
    count = np.arange(len(bits))
    raised = np.empty_like(bits)
    raised[order] = np.maximum.accumulate(bits[order] - count) + count
    magnitudes = raised.astype(np.uint32).view(np.float32).reshape(weights.shape)
    return np.copysign(magnitudes, weights)


def list_cases(size):
    """Return by name (number of offsets, noise, blur)."""
    cases = {}
    for n_offsets in (4, 8, 6):
        shape = 'x'.join(map(str, get_shape(n_offsets, size)))
        for name, (noise, blur) in NOISES.items():
            cases[f'{shape}, {n_offsets} offsets, {name}'] = (n_offsets, noise, blur)
    return cases


def run_ours(weights, offsets):
    """Return labels."""
    from cocoseg.postprocess.mutex import mutex_watershed
    return mutex_watershed(weights, offsets, bias=0)


def measure_agreement(ours, theirs):
    """Return the share of pixels whose object, or background, is the same set in both."""
    ours = ours.ravel().astype(np.int64)
    theirs = np.unique(theirs, return_inverse=True)[1].ravel() + (theirs.min() > 0)
    pairs, inverse, sizes = np.unique(ours * (int(theirs.max()) + 1) + theirs,
                                      return_inverse=True, return_counts=True)
    common = sizes[inverse.ravel()]
    is_same = (common == np.bincount(ours)[ours]) & (common == np.bincount(theirs)[theirs])
    return float((is_same & ((ours == 0) == (theirs == 0))).mean())


def _time(found, who, work):
    start = time.perf_counter()
    found[who] = work()
    return {'wall_s': time.perf_counter() - start}


def race_one(weights, offsets, rounds):
    """Return (medians, all values, share of pixels in equal objects or None) of a problem."""
    found = {}
    contestants = {'cocoseg': lambda: _time(found, 'cocoseg', lambda: run_ours(weights, offsets))}
    try:
        agglom = get_peer()
        wide, steps = weights.astype(np.float64), [list(offset) for offset in offsets]
        contestants['mwatershed'] = lambda: _time(found, 'mwatershed',
                                                  lambda: agglom(wide, steps))
    except Absent:
        pass
    medians, values = harness.run_rounds(contestants, rounds)
    agreement = None
    if 'mwatershed' in found:
        agreement = measure_agreement(found['cocoseg'], found['mwatershed'])
    return medians, values, agreement


def run_race(args, *, distinct):
    """Race all cases, print the table, and return what is stored."""
    medians, values, agreements, rows, goals = {}, {}, {}, [], []
    for name, (n_offsets, noise, blur) in list_cases(args.size).items():
        offsets = OFFSETS[n_offsets]
        weights = make_weights(n_offsets, args.size, noise, blur, distinct=distinct)
        medians[name], values[name], agreements[name] = race_one(weights, offsets, args.rounds)
        seconds = {who: row['wall_s'] for who, row in medians[name].items()}
        rate = weights[0].size / 1e6 / seconds['cocoseg']
        if 'mwatershed' in seconds:
            ratio = seconds['mwatershed'] / seconds['cocoseg']
            same = f'{100 * agreements[name]:.4f} %'
            rows.append((name, f'{seconds["cocoseg"]:.3f}', f'{rate:.2f}',
                         f'{seconds["mwatershed"]:.3f}', f'{ratio:.1f}', same))
            goals.append(check_goal(f'{name}: mwatershed / cocoseg', ratio,
                                    LEAST_RATIO[len(offsets[0])], unit=' x'))
            if distinct:
                goals.append(check_goal(f'{name}: pixels in equal objects',
                                        100 * agreements[name], 100, unit=' %'))
        else:
            rows.append((name, f'{seconds["cocoseg"]:.3f}', f'{rate:.2f}', '-', '-', '-'))
    harness.print_table('mutex watershed, one core', ['problem', 's', 'Mpx/s', 'mwatershed s',
                                                      'ratio', 'equal'], rows)
    return _finish(goals, medians=medians, values=values, agreements=agreements)


def race_distinct(script, args):
    """Race weights that all differ, where the partition is unique."""
    return run_race(args, distinct=True)


def race_ties(script, args):
    """Race weights of which many are equal."""
    return run_race(args, distinct=False)


def measure_memory(who, size):
    """Return what one call adds, MB; ``who`` is CONTESTANT/CASE. In its own process."""
    contestant, _, case = who.partition('/')
    offsets = OFFSETS[MEMORY_CASES[case]]
    weights = make_weights(MEMORY_CASES[case], size, *NOISES['noise .35'])
    work = functools.partial(run_ours, offsets=offsets)
    if contestant == 'mwatershed':
        try:
            agglom = get_peer()
        except Absent as ex:
            return {'absent': str(ex)}
        weights = weights.astype(np.float64)
        work = functools.partial(agglom, offsets=[list(offset) for offset in offsets])
    make_weights.cache_clear()
    work(np.ascontiguousarray(weights[..., :16, :16]))
    base = harness.start_peak_mb()
    work(weights)
    n_pixels = weights[0].size
    return {'added_mb': harness.peak_rss_mb() - base, 'n_pixels': n_pixels,
            'input_mb': weights.nbytes / 2 ** 20}


def race_memory(script, args):
    """Measure what one call adds besides its input."""
    found, absent, rows, goals = {}, {}, [], []
    for case in MEMORY_CASES:
        for contestant in ('cocoseg', 'mwatershed'):
            name = f'{contestant}/{case}'
            figures = harness.run_worker(script, f'mutex_memory:{name}', ['--size', args.size])
            if 'absent' in figures:
                absent[contestant] = figures['absent']
                continue
            found[name] = figures
            per_pixel = figures['added_mb'] * 2 ** 20 / figures['n_pixels']
            rows.append((name, f'{figures["added_mb"]:.0f}', f'{figures["input_mb"]:.0f}',
                         f'{per_pixel:.0f}'))
        if f'mwatershed/{case}' in found:
            ratio = (found[f'mwatershed/{case}']['added_mb']
                     / found[f'cocoseg/{case}']['added_mb'])
            goals.append(check_goal(f'memory added, {case}: mwatershed / cocoseg', ratio, 1,
                                    unit=' x'))
    harness.print_table('memory added, one process each', ['what', 'MB', 'input MB',
                                                           'bytes per px'], rows)
    return _finish(goals, found=found, absent=absent)


def _finish(goals, **more):
    """Print goals and who is absent, and return what is stored."""
    harness.print_goals(goals)
    absent = more.pop('absent', {})
    try:
        get_peer()
    except Absent as ex:
        absent = {'mwatershed': str(ex)}
    harness.print_absent(absent)
    return {'goals': goals, 'absent': absent, **more, 'machine': harness.get_machine(),
            'versions': harness.get_versions(PACKAGES)}


RACES = {'mutex': race_distinct, 'mutex_ties': race_ties, 'mutex_memory': race_memory}
WORKERS = {'mutex_memory': measure_memory}
