"""
The races of the executors: what a task costs that does nothing, and what many leave behind.

``engines``: microseconds per empty task, in turns, with workers that have been started,
against a plain ``ProcessPoolExecutor.map``. ``engines_memory``: what 10^5 trivial tasks
add to the peak memory of the driver beyond what 10^3 do, each in a process of its own.
The scheduler of the cluster on this machine lives in the driver, and its logs of fixed
length with it; dask gets a tenth of the tasks.
"""
from __future__ import annotations

import contextlib
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import harness
from harness import check_goal

from cocoseg import get_executor

PACKAGES = ['distributed', 'cloudpickle']
SPECS = ['serial', 'threads:2', 'processes:2', 'dask:2']
N_TASKS, N_FEW = 100_000, 1000
# Tasks are 0.2 s and more; a millisecond each is nothing then.
MOST_MICROSECONDS = {'processes:2': 1000, 'dask:2': 10_000}
MOST_ADDED_MB = 20


@contextlib.contextmanager
def open_executor(spec):
    """Give an executor whose workers have been started."""
    executor = get_executor(spec)
    run_empty(executor, 20)
    try:
        yield executor
    finally:
        if hasattr(executor, 'close'):
            executor.close()


def run_empty(executor, n_tasks):
    """Run tasks that do nothing; return the seconds."""
    start = time.perf_counter()
    n_done = sum(1 for _ in executor.run(abs, range(n_tasks)))
    assert n_done == n_tasks
    return time.perf_counter() - start


def run_plain(pool, n_tasks):
    """Run them by the pool of the standard library, one by one; return the seconds."""
    start = time.perf_counter()
    assert len(list(pool.map(abs, range(n_tasks)))) == n_tasks
    return time.perf_counter() - start


def race_overhead(script, args):
    """Race empty tasks; ``--rounds`` turns."""
    n_tasks = N_FEW if args.smoke else 2 * N_FEW
    best = {}
    with contextlib.ExitStack() as stack:
        contestants = {spec: (run_empty, stack.enter_context(open_executor(spec)))
                       for spec in SPECS}
        pool = stack.enter_context(
            ProcessPoolExecutor(2, multiprocessing.get_context('spawn')))
        run_plain(pool, 20)
        contestants['concurrent.futures'] = run_plain, pool
        for _ in range(args.rounds):
            for name, (run, target) in contestants.items():
                seconds = run(target, n_tasks)
                best[name] = min(best.get(name, seconds), seconds)
    costs = {name: seconds / n_tasks * 1e6 for name, seconds in best.items()}
    harness.print_table('an empty task', ['executor', 'us', 'tasks per s'],
                        [(name, f'{cost:.0f}', f'{1e6 / cost:.0f}')
                         for name, cost in costs.items()])
    goals = [check_goal(f'overhead per task, {spec}', costs[spec], most, at_most=True, unit=' us')
             for spec, most in MOST_MICROSECONDS.items()]
    return _finish(goals, microseconds=costs, n_tasks=n_tasks)


def measure_memory(who, size):
    """Return what many tasks add to the peak beyond few, MB. ``who`` is SPEC/COUNT."""
    spec, _, count = who.partition('/')
    with open_executor(spec) as executor:
        run_empty(executor, N_FEW)
        few = harness.peak_rss_mb()
        seconds = run_empty(executor, int(count))
        return {'added_mb': harness.peak_rss_mb() - few, 'peak_mb': harness.peak_rss_mb(),
                'n_tasks': int(count), 'seconds': seconds}


def race_memory(script, args):
    """Measure the driver with many tasks."""
    n_tasks = 10 * N_FEW if args.smoke else N_TASKS
    found = {}
    for spec in SPECS:
        n_own = n_tasks // 10 if spec.startswith('dask') else n_tasks
        found[spec] = harness.run_worker(script, f'engines_memory:{spec}/{n_own}')
    harness.print_table('memory of the driver', ['executor', 'tasks', 'added MB', 'peak MB', 's'], [
        (spec, f'{one["n_tasks"]}', f'{one["added_mb"]:.1f}', f'{one["peak_mb"]:.0f}',
         f'{one["seconds"]:.1f}') for spec, one in found.items()])
    goals = [check_goal(f'memory added by many tasks, {spec}', one['added_mb'], MOST_ADDED_MB,
                        at_most=True, unit=' MB') for spec, one in found.items()]
    return _finish(goals, found=found)


def _finish(goals, **more):
    """Print goals, and return what is stored."""
    harness.print_goals(goals)
    return {'goals': goals, **more, 'machine': harness.get_machine(),
            'versions': harness.get_versions(PACKAGES)}


RACES = {'engines': race_overhead, 'engines_memory': race_memory}
WORKERS = {'engines_memory': measure_memory}
