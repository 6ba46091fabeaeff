#!/usr/bin/env python
"""
Workers: how much quicker two are than one, and what an engine costs per task.

The races are described in races_scale, races_engines and races_equal. All executors make
the same bytes, or a race fails. Results are stored when the run has its full size and at least
5 rounds, or where ``--out`` says, in ``bench_scale.json``, by race.

Usage: python dev/bench/bench_scale.py [--races segment ...] [--rounds 5] [--smoke]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import harness
import races_engines
import races_equal
import races_scale

RACES = {**races_scale.RACES, **races_engines.RACES, **races_equal.RACES}
LEAST_ROUNDS = 5
SMOKE_SIZE = 900
RESULT = 'bench_scale'


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--races', nargs='+', choices=RACES, default=list(RACES))
    parser.add_argument('--rounds', type=int, help=f'counted turns; by default {LEAST_ROUNDS}')
    parser.add_argument('--size', type=int,
                        help=f'of images, px; by default {races_scale.SIZE}')
    parser.add_argument('--out', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--smoke', action='store_true',
                        help=f'does it run? by default 1 round of {SMOKE_SIZE} px')
    parser.add_argument('--worker', help='one measurement, for processes of their own')
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.smoke else LEAST_ROUNDS)
    args.size = args.size or (SMOKE_SIZE if args.smoke else races_scale.SIZE)
    return args


def main():
    """Measure, print the tables, and store the results."""
    args = parse_args()
    if args.worker:
        kind, _, who = args.worker.partition(':')
        harness.report_worker(races_engines.WORKERS[kind](who, args.size))
        return
    print(f'machine {harness.get_machine()}')
    is_full = args.rounds >= LEAST_ROUNDS and args.size == races_scale.SIZE
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
