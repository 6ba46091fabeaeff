"""
How far the int16 result is from a float64 reference, in steps.

The reference is numpy: weighted sums of all windows in float64, strip by
strip, with the weights of the same ``BlendPlan``. Nothing is timed.
"""
from __future__ import annotations

import harness
import numpy as np
from stream_problem import BANDS, NODATA, TOP, Absent, Problem, stitch

SIZE = 2048
ROWS = 128
PACKAGES = ['numpy', 'numba']
MOST_STEPS = 1

# name -> (label, options of the stitcher, options of the jobs)
CASES = {
    'planned': ('planned, threads: 1', {}, {}),
    'planned_2': ('planned, threads: 2', {'num_threads': 2}, {}),
    'random': ('as it chooses, random order', {}, {'shuffled': True}),
    'general': ('general', {'engine': 'general'}, {}),
    'general_random': ('general, random order', {'engine': 'general'}, {'shuffled': True}),
    'nan': ('NaN in every window', {}, {'nan': True}),
    'nan_random': ('NaN in every window, random order', {}, {'nan': True, 'shuffled': True}),
}


def compute_reference(problem, jobs):
    """Return the int16 codes of the weighted mean in float64, (H, W, C)."""
    from cocoseg import BlendPlan
    plan = BlendPlan(problem.grid)
    height, width, n_bands = problem.shape
    codes = np.empty(problem.shape, np.int16)
    for y in range(0, height, ROWS):
        stop = min(y + ROWS, height)
        sums, plane = np.zeros((stop - y, width, n_bands)), np.zeros((stop - y, width, 1))
        for window, tile in jobs:
            y0, y1 = max(y, window.y0), min(stop, window.y1)
            if y0 < y1:
                rows, columns = (part.astype(float) for part in plan.get_weights(window))
                part = tile[y0 - window.y0:y1 - window.y0].astype(float)
                is_valid = np.isfinite(part).all(axis=2, keepdims=True)
                weights = (rows[y0 - window.y0:y1 - window.y0, None] * columns)[..., None]
                place = slice(y0 - y, y1 - y), slice(window.x0, window.x1)
                sums[place] += np.where(is_valid, weights * part, 0)
                plane[place] += np.where(is_valid, weights, 0)
        mean = sums / np.where(plane, plane, 1)
        codes[y:stop] = np.where(plane, np.rint(mean * TOP), NODATA)
    return codes


def compare(problem, reference, jobs, options):
    """Return how the result of ours differs from the reference."""
    from cocoseg.protocols import MemorySink
    sink = MemorySink()
    stitch(problem, jobs, sink, **options)
    codes = sink.as_array()
    steps = np.abs(codes.astype(np.int32) - reference)
    return {'max_steps': int(steps.max()), 'differing': int((steps > 0).sum()),
            'values': int(steps.size),
            'nodata_differing': int(((codes == NODATA) != (reference == NODATA)).sum())}


def run(script, size, rounds):
    """Compare, print the table, and return the result to store; there are no rounds."""
    problem = Problem((size, size, BANDS))
    references, found, absent = {}, {}, {}
    for name, (_, options, how) in CASES.items():
        nan = how.get('nan', False)
        if nan not in references:
            references[nan] = compute_reference(problem, problem.list_jobs(nan=nan))
        try:
            found[name] = compare(problem, references[nan], problem.list_jobs(**how), options)
        except Absent as ex:
            absent[name] = str(ex)
    rows = [(CASES[name][0], str(row['max_steps']),
             f'{100 * row["differing"] / row["values"]:.3f} %', str(row['nodata_differing']))
            for name, row in found.items()]
    harness.print_table(f'{size}x{size}x{BANDS} int16 against float64',
                        ['what', 'largest difference, steps', 'values that differ',
                         'nodata that differs'], rows)
    goals = [harness.check_goal(f'largest difference: {name}', row['max_steps'], MOST_STEPS,
                                at_most=True, unit=' steps') for name, row in found.items()]
    harness.print_goals(goals)
    harness.print_absent(absent)
    return {'size': size, 'found': found, 'absent': absent, 'goals': goals,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}
