"""
The harness that all benchmark scripts share.

Time is measured in one process in which the contestants take turns, so that a
drift of the machine's speed hits them alike; the first turn of each compiles
and warms caches, and is not counted. Memory is measured in a process of its
own per contestant. The figure is the median.
"""
from __future__ import annotations

import importlib.metadata
import json
import os
import platform
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


def peak_rss_mb():
    """Return the largest resident memory of this process so far, MB."""
    # Not getrusage: its figure starts at that of the process that forked us.
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 1024


def report_worker(result):
    """Print the result of one measurement for :func:`run_rounds` to read."""
    sys.stdout.write('\nRESULT ' + json.dumps(result) + '\n')


def run_worker(script, contestant, extra=()):
    """Run one measurement in a new process and return its result."""
    command = [sys.executable, str(script), '--worker', contestant, *map(str, extra)]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith('RESULT ')]
    if done.returncode or not lines:
        raise RuntimeError(f'{contestant} failed ({done.returncode}):\n{done.stderr[-3000:]}')
    return json.loads(lines[-1].removeprefix('RESULT '))


def run_rounds(contestants, rounds):
    """
    Let the contestants take turns; return their medians and all values.

    Args:
        contestants (dict[str, Callable]): each returns a dict of figures.
        rounds (int): counted turns of each.
    """
    values = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, contestant in contestants.items():
            result = contestant()
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


def save_result(name, result):
    """Store a result where the documentation reads it, and return the path."""
    RESULTS.mkdir(exist_ok=True)
    fpath = RESULTS / f'{name}.json'
    fpath.write_text(json.dumps(result, indent=2) + '\n')
    return fpath
