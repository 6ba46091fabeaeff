"""
The streaming race: windows in, int16 out, against the peers.

8192 x 8192 x 3 float32 from 1849 windows of 256 px that overlap by 64 (see
``stream_problem``). Counted: making the stitcher, adding all windows,
normalizing, and int16 (32767 steps for [0, 1], NaN as -9999). Ours hands
blocks to a sink that counts and drops them; one more contestant pastes them
into an array, which is what the peers (see ``peers``) end with.

Left out: making the windows and tiles, imports and compiling (the first turn
is not counted), and any file. All take turns in one process, in another order
in each round. The machine's bandwidth takes turns as well, and the best that
was seen in any turn is the limit.

New memory is counted: who needs gigabytes also waits for their pages, which on
a virtual machine may take longer than the work, and not always as long. With
``--keep-memory`` nobody does; that run is the kinder one to the peers.
"""
from __future__ import annotations

import functools

import harness
import machine_limit
import peers
from harness import check_goal
from stream_problem import (BANDS, OVERLAP, WINDOW, Absent, ArraySink, Clock, NullSink,
                            Problem, make_stitcher)

SIZE = 8192
PACKAGES = ['numpy', 'numba', *peers.PACKAGES]
BASELINE = 'kwarray_weights'

# A batch as a model gives it.
BATCH = 16

# name -> (label, options of the stitcher, options of the jobs, windows per call, 'null' or
# 'array')
OURS = {
    'planned_1': ('cocoseg planned, threads: 1', {}, {}, 1, 'null'),
    'batched_1': (f'cocoseg planned, threads: 1, batches of {BATCH}', {}, {}, BATCH, 'null'),
    'planned_2': (f'cocoseg planned, threads: 2, batches of {BATCH}', {'num_threads': 2}, {},
                  BATCH, 'null'),
    'planned_array': ('cocoseg planned, threads: 1, into an array', {}, {}, 1, 'array'),
    'general': ('cocoseg general, random order', {'engine': 'general'}, {'shuffled': True}, 1,
                'null'),
    'general_rows': ('cocoseg general, in order', {'engine': 'general'}, {}, 1, 'null'),
    'nan': ('cocoseg, NaN in every window', {}, {'nan': True}, 1, 'null'),
    'nan_random': ('cocoseg, NaN in every window, random order', {},
                   {'nan': True, 'shuffled': True}, 1, 'null'),
}

NAMES = [*OURS, *peers.PEERS]

# (what is goal, ours, theirs of whom the quickest counts, least ratio of times)
RATIOS = [
    ('planned, 1 thread / kwarray weights', 'planned_1', ['kwarray_weights'], 10),
    ('planned, 2 threads / kwarray weights', 'planned_2', ['kwarray_weights'], 15),
    ('planned, 1 thread / MONAI', 'planned_1', ['monai', 'monai_1'], 2.5),
    ('general, random order / kwarray weights', 'general', ['kwarray_weights'], 6),
    ('NaN / kwarray omit', 'nan', ['kwarray_omit'], 5),
    ('NaN, random order / kwarray omit', 'nan_random', ['kwarray_omit'], 5),
]
LEAST_FRACTION = 0.6


def make_cocoseg(problem, options, jobs, batch, kind):
    """Return a run of ours."""
    # Whether it can be made at all; the message names the missing option.
    make_stitcher(problem, NullSink(), **options).close()
    jobs = problem.list_jobs(**jobs)

    def run():
        clock = Clock()
        sink = NullSink() if kind == 'null' else ArraySink(problem.shape)
        stitcher = make_stitcher(problem, sink, **options)
        if batch == 1:
            for window, tile in jobs:
                stitcher.add(window, tile)
        else:
            for start in range(0, len(jobs), batch):
                stitcher.add_batch(*zip(*jobs[start:start + batch]))
        clock.mark_added()
        stitcher.finalize()
        figures = clock.stop()
        sink.check(problem)
        return figures
    return run


def make_contestants(problem, only=None):
    """
    Return by name the runs, the labels, and why some are absent.

    Args:
        problem (Problem): the image.
        only (list[str] | None): names of those that take part; None is all.
    """
    runs, labels, absent = {}, {}, {}
    for name, (label, *options) in OURS.items():
        if only and name not in only:
            continue
        try:
            runs[name] = make_cocoseg(problem, *options)
        except Absent as ex:
            absent[name] = str(ex)
        else:
            labels[name] = label
    for ours, theirs in zip((runs, labels, absent), peers.make_peers(problem, only)):
        ours.update(theirs)
    return runs, labels, absent


def compute_limits(problem, medians, values):
    """Return the machine's limit and which fraction of it each thread count reaches."""
    best = {key: max(row[key] for row in values) for key in values[0]}
    traffic = machine_limit.compute_traffic(problem)
    limits = {'bandwidths': best, 'read_bytes': traffic[0], 'written_bytes': traffic[1]}
    for n_threads in machine_limit.THREADS:
        ours = medians.get(f'planned_{n_threads}')
        for source, suffix in (('read', ''), ('pool', '_pool')):
            seconds = machine_limit.compute_limit(traffic, best, n_threads, source)
            limits[f'limit_{n_threads}{suffix}_s'] = seconds
            if ours:
                limits[f'fraction_{n_threads}{suffix}'] = seconds / ours['total_s']
    return limits


def compute_goals(medians, limits):
    """Return the goals of the race whose contestants took part."""
    goals = []
    for name, ours, theirs, least in RATIOS:
        times = [medians[their]['total_s'] for their in theirs if their in medians]
        if ours in medians and times:
            ratio = min(times) / medians[ours]['total_s']
            goals.append(check_goal(name, ratio, least, unit='x'))
    return goals + [check_goal(f'share of the memory limit, threads: {n_threads}',
                               limits[f'fraction_{n_threads}'], LEAST_FRACTION)
                    for n_threads in machine_limit.THREADS if f'fraction_{n_threads}' in limits]


def print_race(result):
    """Print the table of the race, the limit, and the goals."""
    medians, values = result['medians'], result['values']
    base = medians.get(BASELINE, {}).get('total_s')
    size = result['size']
    rows = []
    for name, label in result['labels'].items():
        seconds = medians[name]['total_s']
        every = [row['total_s'] for row in values[name]]
        rows.append((label, f'{seconds:.3f}', f'{medians[name]["add_s"]:.3f}',
                     f'{min(every):.2f}-{max(every):.2f}', f'{medians[name]["cpu_s"]:.2f}',
                     f'{size * size / seconds / 1e6:.0f}',
                     f'{base / seconds:.2f}x' if base else ''))
    harness.print_table(f'{size}x{size}x{BANDS} to int16, medians of {result["rounds"]}, '
                        f'baseline {BASELINE}',
                        ['what', 'total s', 'add s', 'range s', 'CPU s', 'MPix/s',
                         'baseline /'], rows)
    print_limits(result['limits'])
    harness.print_goals(result['goals'])
    harness.print_absent(result['absent'])


def print_limits(limits):
    """Print the bandwidths, the least time, and the share of it that is reached."""
    rows = []
    for n_threads in machine_limit.THREADS:
        cells = [f'{limits["bandwidths"][f"{kind}_{n_threads}"]:.1f}'
                 for kind in ('read', 'copy', 'pool')]
        for suffix in ('', '_pool'):
            fraction = limits.get(f'fraction_{n_threads}{suffix}')
            cells += [f'{limits[f"limit_{n_threads}{suffix}_s"]:.3f}',
                      '' if fraction is None else f'{fraction:.2f}']
        rows.append((f'threads: {n_threads}', *cells))
    harness.print_table(f'memory: read {limits["read_bytes"] / 1e9:.2f} GB, '
                        f'write {limits["written_bytes"] / 1e9:.2f} GB',
                        ['', 'read GB/s', 'copy GB/s', 'tiles GB/s', 'limit s', 'share reached',
                         'by tiles, s', 'share'], rows)


def run(script, size, rounds, only=None):
    """Measure, print the tables, and return the result to store."""
    problem = Problem((size, size, BANDS))
    runs, labels, absent = make_contestants(problem, only)
    runs['bandwidth'] = functools.partial(machine_limit.measure, problem.tiles)
    medians, values = harness.run_rounds(runs, rounds, shuffle=True)
    limits = compute_limits(problem, medians, values['bandwidth'])
    result = {'size': size, 'window': WINDOW, 'overlap': OVERLAP, 'bands': BANDS,
              'n_windows': len(problem.windows), 'rounds': rounds, 'labels': labels,
              'medians': medians, 'absent': absent, 'limits': limits,
              'goals': compute_goals(medians, limits), 'values': values,
              'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}
    print_race(result)
    return result
