"""
The harness that all benchmark scripts share.

Time is measured in one process in which the contestants take turns, so that a
drift of the machine's speed hits them alike; the first turn of each compiles
and warms caches, and is not counted. What the one before left is collected
before a turn begins. Memory is measured in a process of its own per
contestant. The figure is the median.
"""
from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / 'results'


def get_versions(packages):
    """Return the versions of cocoseg, Python, and the packages that are installed."""
    from cocoseg import __version__
    versions = {'cocoseg': __version__, 'python': platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    return versions


def get_machine():
    """Return what the figures depend on besides the code."""
    model = platform.processor()
    cpuinfo = Path('/proc/cpuinfo')
    if cpuinfo.exists():
        names = [line.partition(':')[2].strip() for line in cpuinfo.read_text().splitlines()
                 if line.startswith('model name')]
        model = names[0] if names else model
    return {'cpu': model, 'n_cpus': os.cpu_count(), 'system': platform.system()}


def _read_status(key):
    """Return a size from the status of this process, MB."""
    # Not getrusage: its figure starts at that of the process that forked us.
    status = Path('/proc/self/status').read_text()
    return int(status.partition(f'{key}:')[2].split()[0]) / 1024


def peak_rss_mb():
    """Return the largest resident memory of this process so far, MB."""
    return _read_status('VmHWM')


def start_peak_mb():
    """
    Forget the peak so far, and return the resident memory to start from, MB.

    Free memory that the C library holds is given back before, or what the
    warming left would hide what comes.
    """
    gc.collect()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)
    if trim is not None:
        trim(0)
    Path('/proc/self/clear_refs').write_text('5')
    return _read_status('VmRSS')


def keep_memory():
    """
    Let the C library keep what is freed, so that no page is new after the first turn.

    New pages are dear on virtual machines, some of which also hand free memory
    back to the host: the same run may then take several times as long. Numpy
    and torch on the CPU allocate by the C library.
    """
    # M_TRIM_THRESHOLD and M_MMAP_MAX of glibc: never trim, never map.
    for option, value in ((-1, 2 ** 31 - 1), (-4, 0)):
        if not ctypes.CDLL(None).mallopt(option, value):
            raise RuntimeError(f'mallopt({option}, {value}) was refused')


def report_worker(result):
    """Print the result of one measurement for :func:`run_worker` to read."""
    sys.stdout.write('\nRESULT ' + json.dumps(result) + '\n')


def run_worker(script, contestant, extra=()):
    """Run one measurement in a new process and return its result."""
    command = [sys.executable, str(script), '--worker', contestant, *map(str, extra)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    if done.returncode or not lines:
        raise RuntimeError(f'{contestant} failed ({done.returncode}):\n{done.stderr[-3000:]}')
    return json.loads(lines[-1].removeprefix('RESULT '))


def run_rounds(contestants, rounds, *, shuffle=False):
    """
    Let the contestants take turns; return their medians and all values.

    Args:
        contestants (dict[str, Callable]): each returns a dict of figures.
        rounds (int): counted turns of each.
        shuffle (bool): another order in each round, always the same ones, so
            that nobody always comes after the same neighbour.
    """
    values = {name: [] for name in contestants}
    names, draw = list(contestants), random.Random(0)
    for turn in range(rounds + 1):
        if shuffle:
            draw.shuffle(names)
        for name in names:
            gc.collect()
            result = contestants[name]()
            if turn:
                values[name].append(result)
            shown = {key: round(value, 3) for key, value in result.items()}
            sys.stdout.write(f'  turn {turn} {name}: {shown}\n')
            sys.stdout.flush()
    medians = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]}
               for name, rows in values.items()}
    return medians, values


def print_table(title, columns, rows):
    """Print a table."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify='left' if index == 0 else 'right')
    for row in rows:
        table.add_row(*[cell if isinstance(cell, str) else f'{cell:.2f}' for cell in row])
    Console(width=110).print(table)


def check_goal(name, value, bound, *, at_most=False, unit=''):
    """Return a goal and whether the measured value reaches it, as stored and printed."""
    met = value <= bound if at_most else value >= bound
    return {'name': name, 'value': value, 'bound': bound, 'at_most': at_most, 'unit': unit,
            'met': bool(met)}


def print_goals(goals):
    """Print what was aimed at beside what was measured."""
    if not goals:
        return
    rows = [(goal['name'], f'{goal["value"]:.3g}{goal["unit"]}',
             f'{"<=" if goal["at_most"] else ">="} {goal["bound"]:g}{goal["unit"]}',
             'yes' if goal['met'] else 'NO') for goal in goals]
    print_table('goals', ['what', 'measured', 'goal', 'met'], rows)


def print_absent(absent):
    """Print who could not take part, and why."""
    print('absent:', '; '.join(f'{name} ({why})' for name, why in absent.items()) or 'nobody')


def save_result(name, result, folder=RESULTS):
    """Store a result where the documentation reads it, and return the path."""
    folder.mkdir(parents=True, exist_ok=True)
    fpath = folder / f'{name}.json'
    fpath.write_text(json.dumps(result, indent=2) + '\n')
    return fpath


def merge_result(name, results, folder=RESULTS):
    """Store results by race beside those of races that did not run; return the path."""
    fpath = folder / f'{name}.json'
    kept = json.loads(fpath.read_text()) if fpath.exists() else {}
    return save_result(name, {**kept, **results}, folder)
