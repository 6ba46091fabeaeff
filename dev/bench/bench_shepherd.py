#!/usr/bin/env python
"""
Shepherd segmentation against pyshepseg.

The races are described in races_shepherd; their images in shepherd_problem.
pyshepseg 2.0.3 must be importable: there is no release of it in the usual
registries, so put a checkout on PYTHONPATH. Without it nothing is measured, and
the script says so.

Results are stored when the run has its full size and at least 5 rounds, or where
``--out`` says, in ``bench_shepherd.json``, by race, each with its machine and
versions. What was stored of races that do not run stays.

Usage: PYTHONPATH=../pyshepseg python dev/bench/bench_shepherd.py
    [--races labels memory ...] [--rounds 5] [--scenes FOLDER] [--smoke]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import harness
from races_shepherd import RACES, SIZE, TILED_SIZE, get_peer, measure_rss
from stream_problem import Absent

LEAST_ROUNDS = 5
SMOKE_SIZE = 400
RESULT = 'bench_shepherd'


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--races', nargs='+', choices=RACES, default=list(RACES))
    parser.add_argument('--rounds', type=int, help=f'counted turns; by default {LEAST_ROUNDS}')
    parser.add_argument('--size', type=int, help=f'of images in RAM, px; by default {SIZE}')
    parser.add_argument('--tiled_size', type=int, help=f'of files, px; by default {TILED_SIZE}')
    parser.add_argument('--scenes', type=Path, help='folder of real scenes, for the labels')
    parser.add_argument('--out', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--smoke', action='store_true',
                        help=f'does it run? by default 1 round of {SMOKE_SIZE} px')
    parser.add_argument('--worker', help='one measurement, for processes of their own')
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.smoke else LEAST_ROUNDS)
    args.size = args.size or (SMOKE_SIZE if args.smoke else SIZE)
    args.tiled_size = args.tiled_size or (2 * SMOKE_SIZE if args.smoke else TILED_SIZE)
    return args


def main():
    """Measure, print the tables, and store the results."""
    args = parse_args()
    if args.worker:
        _, kind, who = args.worker.split(':')
        size = args.size if kind == 'memory' else args.tiled_size
        harness.report_worker(measure_rss(f'{kind}:{who}', size))
        return
    try:
        get_peer()
    except Absent as ex:
        harness.print_absent({'pyshepseg': ex})
        return
    print(f'machine {harness.get_machine()}')
    is_full = args.rounds >= LEAST_ROUNDS and (args.size, args.tiled_size) == (SIZE, TILED_SIZE)
    for race in args.races:
        print(f'race {race}', flush=True)
        result = RACES[race](__file__, args)
        if args.out is None and not is_full:
            print(f'{race}: not stored; give --out for a run that is not the full one')
            continue
        fpath = harness.merge_result(RESULT, {race: result}, args.out or harness.RESULTS)
        print(f'{race}: stored in {fpath.name}; versions {result["versions"]}')


if __name__ == '__main__':
    main()
