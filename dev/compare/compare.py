#!/usr/bin/env python
"""
The same input through every peer that is installed: agreement and speed.

Subjects, each a module beside this one: stitching, segmentation, instances,
files, statistics (segment_figures). Both sides take turns in one process; peers
on torch, or with a libgdal of their own, do so in a process of their own. The
first turn of each is not counted.

Every peer has a row. One that is not installed is told as missing, with how to
get it; one that fails, with its error. The exit code is 1 if an agreement is
beyond its stated bound, or our side fails; and else 0.

pyshepseg has no release in the usual registries: put a checkout on PYTHONPATH.

Results are stored in ``compare.json`` when rows have their full size and at
least 5 rounds, or where ``--out`` says, by row, each with its machine and
versions. What was stored of rows that do not run stays. ``table.py`` writes them
into the documentation.

Usage: PYTHONPATH=../pyshepseg python dev/compare/compare.py
    [--only stitching files/rio_cogeo ...] [--size 512] [--rounds 5] [--smoke]
    [--out FOLDER]
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

import bench_path  # noqa: F401
import cases
import files
import harness
import instances
import segment_figures
import segmentation
import stitching
import table

MODULES = (stitching, segmentation, instances, files, segment_figures)
CASES = {case.name: case for module in MODULES for case in module.CASES}
SUBJECTS = list(dict.fromkeys(case.subject for case in CASES.values()))
LEAST_ROUNDS = 5
SMOKE_SIZE = 272


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--only', nargs='+', choices=[*SUBJECTS, *CASES], metavar='NAME',
                        help=f'subjects or rows: {", ".join([*SUBJECTS, *CASES])}')
    parser.add_argument('--size', type=int, help='px; by default each row has its own')
    parser.add_argument('--rounds', type=int, help=f'counted turns; by default {LEAST_ROUNDS}')
    parser.add_argument('--out', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--smoke', action='store_true',
                        help=f'does it run? by default 1 round of {SMOKE_SIZE} px')
    parser.add_argument('--worker', choices=CASES, metavar='NAME',
                        help='one row, for processes of their own')
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.smoke else LEAST_ROUNDS)
    args.size = args.size or (SMOKE_SIZE if args.smoke else None)
    return args


def pick_cases(only):
    """Return the cases of the given subjects and names, in our order."""
    return [case for case in CASES.values()
            if only is None or case.name in only or case.subject in only]


def store(args, rows):
    """Store rows, and say where."""
    if args.out is None and (args.rounds < LEAST_ROUNDS or args.size is not None):
        print('not stored; give --out for a run that is not the full one')
        return
    fpath = harness.merge_result(table.RESULT, rows, args.out or harness.RESULTS)
    print(f'stored in {fpath.name}')


def print_outcome(name, row):
    """Print what became of a row, in one line."""
    said = row.get('error') or table.describe_agreement(row)
    print(f'{name}: {row["peer"]}: {row["status"]}: {said}', flush=True)


def main():
    """Compare, print the table, store the rows, and return the exit code."""
    args = parse_args()
    if args.worker:
        case = CASES[args.worker]
        harness.report_worker(cases.measure_here(case, args.size or case.size, args.rounds))
        return 0
    print(f'machine {harness.get_machine()}, versions {harness.get_versions(cases.PACKAGES)}')
    rows = {}
    for case in pick_cases(args.only):
        rows[case.name] = cases.measure(case, args.size or case.size, args.rounds)
        print_outcome(case.name, rows[case.name])
    table.print_rows(rows.values())
    store(args, rows)
    beyond = [name for name, row in rows.items() if not row['holds']]
    if beyond:
        print(f'beyond the stated agreement: {", ".join(beyond)}')
    return int(bool(beyond))


if __name__ == '__main__':
    sys.exit(main())
