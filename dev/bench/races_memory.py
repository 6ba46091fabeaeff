"""
The memory that streaming adds, each in a process of its own.

The figure is the highest resident memory less that before: after a small run
of the same kind, which loads and compiles all the code, and with the pool of
tiles in place. Windows are made on the way, and blocks go to a sink that drops
them, so what is counted is the stitcher. The heights are a half and eight
times the width: streaming may depend on the width only.
"""
from __future__ import annotations

import functools
import time

import harness
from harness import check_goal
from stream_problem import Absent, NullSink, Problem, make_stitcher, stitch

SIZE = 8192
SMALL = 768
PACKAGES = ['numpy', 'numba']
MOST_SHARE, MOST_SHARE_HUGE, MOST_GROWTH = 4, 1, 5


def make_problems(size):
    """Return by name the shape of the image and the options of the stitcher."""
    huge = 40000 * size // SIZE
    return {
        'planned': ((size, size, 3), {}),
        'planned_2': ((size, size, 3), {'num_threads': 2}),
        'general': ((size, size, 3), {'engine': 'general'}),
        'low': ((size // 2, size, 3), {}),
        'high': ((8 * size, size, 3), {}),
        'huge': ((huge, huge, 1), {}),
    }


def measure(name, size):
    """Return the memory that one contestant adds, MiB; runs in its own process."""
    shape, options = make_problems(size)[name]
    problem, small = Problem(shape), Problem((SMALL, SMALL, shape[2]))
    # Both have the same pool, which is made here.
    problem.tiles = small.tiles
    try:
        make_stitcher(small, NullSink(), **options).close()
    except Absent as ex:
        return {'absent': str(ex)}
    stitch(small, small.iter_jobs(), NullSink(), **options)
    base = harness.start_peak_mb()
    sink, start = NullSink(), time.perf_counter()
    stitch(problem, problem.iter_jobs(), sink, **options)
    seconds = time.perf_counter() - start
    added = harness.peak_rss_mb() - base
    sink.check(problem)
    return {'added_mb': added, 'float_mb': problem.float_mb,
            'share_percent': 100 * added / problem.float_mb, 'total_s': seconds}


WORKERS = {name: functools.partial(measure, name) for name in make_problems(SIZE)}


def compute_goals(found):
    """Return the goals of those that took part."""
    bounds = {'planned': MOST_SHARE, 'planned_2': MOST_SHARE, 'general': MOST_SHARE,
              'huge': MOST_SHARE_HUGE}
    goals = [check_goal(f'added memory, share of the float image: {name}',
                        found[name]['share_percent'], bound, at_most=True, unit=' %')
             for name, bound in bounds.items() if name in found]
    growth = 100 * abs(found['high']['added_mb'] / found['low']['added_mb'] - 1)
    return goals + [check_goal('added memory, 16 times the height: change', growth,
                               MOST_GROWTH, at_most=True, unit=' %')]


def run(script, size, rounds):
    """Measure, print the table, and return the result to store; there are no rounds."""
    problems, found, absent = make_problems(size), {}, {}
    for name in WORKERS:
        figures = harness.run_worker(script, f'memory:{name}', ['--size', size])
        if 'absent' in figures:
            absent[name] = figures['absent']
        else:
            found[name] = {'shape': problems[name][0], **figures}
    rows = [(name, 'x'.join(map(str, row['shape'])), f'{row["added_mb"]:.1f}',
             f'{row["float_mb"]:.0f}', f'{row["share_percent"]:.2f} %', row['total_s'])
            for name, row in found.items()]
    harness.print_table('memory added, one process each',
                        ['what', 'shape', 'added MiB', 'float image MiB', 'share', 's'], rows)
    goals = compute_goals(found)
    harness.print_goals(goals)
    harness.print_absent(absent)
    return {'size': size, 'found': found, 'absent': absent, 'goals': goals,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}
