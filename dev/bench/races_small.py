"""
What one small window costs besides its data.

Windows of 32 x 32 x 1 px, declared to a null sink and undeclared to an array
of ours. Each ``add`` is timed on its own; the figures are medians over all of
a round, then over the rounds. Beside them stand the mean of a round, which
has the blocks that are finished on the way, and what numpy takes to weight
and to add the same data. The overhead is the median less that.
"""
from __future__ import annotations

import functools
import statistics
import time

import harness
import numpy as np
from stream_problem import Absent, NullSink, make_stitcher

SIZE = 2048
WINDOW, OVERLAP = 32, 8
PACKAGES = ['numpy', 'numba']
MOST_US = 10

BATCH = 16

LABELS = {'declared': 'declared grid, null sink', 'batched': f'the same, batches of {BATCH}',
          'undeclared': 'undeclared, no sink', 'numpy': 'the data alone, in numpy'}


class SmallProblem:
    """A grid of small windows with one tile."""

    def __init__(self, size):
        from cocoseg import WindowGrid
        self.shape = (size, size, 1)
        self.grid = WindowGrid(self.shape, WINDOW, OVERLAP)
        self.windows = list(self.grid)
        self.tile = np.random.default_rng(0).random((WINDOW, WINDOW, 1), np.float32)


def summarize(nanoseconds):
    """Return the figures of a round, us."""
    return {'median_us': statistics.median(nanoseconds) / 1e3,
            'mean_us': statistics.fmean(nanoseconds) / 1e3}


def time_adds(problem, batch=1, **options):
    """Return the figures of our ``add``, or of ``add_batch`` per window."""
    sink = NullSink() if 'sink' not in options else options.pop('sink')
    stitcher = make_stitcher(problem, sink, **options)
    taken, clock, tile = [], time.perf_counter_ns, problem.tile
    if batch == 1:
        for window in problem.windows:
            start = clock()
            stitcher.add(window, tile)
            taken.append(clock() - start)
    for first in range(0, len(problem.windows) if batch > 1 else 0, batch):
        windows = problem.windows[first:first + batch]
        tiles = [tile] * len(windows)
        start = clock()
        stitcher.add_batch(windows, tiles)
        taken.append((clock() - start) / len(windows))
    stitcher.finalize()
    return summarize(taken)


def time_numpy(problem):
    """Return the figures of weighting and adding in numpy."""
    sums = np.zeros(problem.shape, np.float32)
    plane = np.zeros(problem.shape, np.float32)
    weights = np.ones_like(problem.tile)
    taken, clock, tile = [], time.perf_counter_ns, problem.tile
    for slices in [window.slices for window in problem.windows]:
        start = clock()
        sums[slices] += tile * weights
        plane[slices] += weights
        taken.append(clock() - start)
    return summarize(taken)


def make_contestants(problem):
    """Return by name the runs, and why some are absent."""
    options = {'declared': {}, 'batched': {'batch': BATCH},
               'undeclared': {'windows': None, 'sink': None}}
    runs, absent = {'numpy': functools.partial(time_numpy, problem)}, {}
    for name, chosen in options.items():
        kept = {key: value for key, value in chosen.items() if key != 'batch'}
        try:
            make_stitcher(problem, **{'sink': NullSink(), **kept}).close()
        except Absent as ex:
            absent[name] = str(ex)
        else:
            runs[name] = functools.partial(time_adds, problem, **chosen)
    return runs, absent


def run(script, size, rounds):
    """Measure, print the table, and return the result to store."""
    problem = SmallProblem(size)
    runs, absent = make_contestants(problem)
    medians, values = harness.run_rounds(runs, rounds, shuffle=True)
    data_us = medians['numpy']['median_us']
    for row in medians.values():
        row['overhead_us'] = row['median_us'] - data_us
    goals = [harness.check_goal(f'overhead of a window, {LABELS[name]}',
                                medians[name]['overhead_us'], MOST_US, at_most=True, unit=' us')
             for name in runs if name != 'numpy']
    rows = [(LABELS[name], *[medians[name][key] for key in
                             ('median_us', 'mean_us', 'overhead_us')]) for name in medians]
    harness.print_table(f'{len(problem.windows)} windows of {WINDOW}x{WINDOW}x1, us per add, '
                        f'medians of {rounds}', ['what', 'median', 'mean', 'overhead'], rows)
    harness.print_goals(goals)
    harness.print_absent(absent)
    return {'size': size, 'window': WINDOW, 'overlap': OVERLAP,
            'n_windows': len(problem.windows), 'rounds': rounds, 'labels': LABELS,
            'medians': medians, 'absent': absent, 'goals': goals, 'values': values,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}
