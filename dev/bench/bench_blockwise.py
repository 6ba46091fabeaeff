#!/usr/bin/env python
"""
Block runs: components, mutex watershed, agreement of blocks, masks, relabeling, kills.

The races are described in races_blocks, races_mutex and races_masks. Peers are
scipy, numpy, GDAL and mwatershed (PyPI); one that is absent is named.

Results are stored when the run has its full size and at least 5 rounds, or where
``--out`` says, in ``bench_blockwise.json``, by race, each with its machine and
versions. What was stored of races that do not run stays.

Usage: python dev/bench/bench_blockwise.py [--races components masks ...] [--rounds 5]
    [--smoke]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import harness
import races_blocks
import races_masks
import races_mutex

RACES = {**races_blocks.RACES, **races_mutex.RACES, **races_masks.RACES}
LEAST_ROUNDS, SEEDS, KILLS = 5, 5, 10
SMOKE_SIZE = 1024
RESULT = 'bench_blockwise'


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--races', nargs='+', choices=RACES, default=list(RACES))
    parser.add_argument('--rounds', type=int, help=f'counted turns; by default {LEAST_ROUNDS}')
    parser.add_argument('--size', type=int,
                        help=f'of images, px; by default {races_blocks.SIZE}')
    parser.add_argument('--seeds', type=int, help=f'problems of agreement; by default {SEEDS}')
    parser.add_argument('--kills', type=int, help=f'runs that are killed; by default {KILLS}')
    parser.add_argument('--out', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--smoke', action='store_true',
                        help=f'does it run? by default 1 round of {SMOKE_SIZE} px')
    parser.add_argument('--worker', help='one measurement, for processes of their own')
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.smoke else LEAST_ROUNDS)
    args.size = args.size or (SMOKE_SIZE if args.smoke else races_blocks.SIZE)
    args.seeds = args.seeds or (1 if args.smoke else SEEDS)
    args.kills = args.kills or (1 if args.smoke else KILLS)
    return args


def main():
    """Measure, print the tables, and store the results."""
    args = parse_args()
    if args.worker:
        kind, _, who = args.worker.partition(':')
        measure = {'memory': races_blocks.measure_memory, **races_mutex.WORKERS,
                   **races_masks.WORKERS}[kind]
        harness.report_worker(measure(who, args.size))
        return
    print(f'machine {harness.get_machine()}')
    is_full = (args.rounds >= LEAST_ROUNDS and args.seeds >= SEEDS and args.kills >= KILLS
               and args.size == races_blocks.SIZE)
    for race in args.races:
        print(f'race {race}', flush=True)
        result = RACES[race](__file__, args)
        if result is None:
            continue
        if args.out is None and not is_full:
            print(f'{race}: not stored; give --out for a run that is not the full one')
            continue
        fpath = harness.merge_result(RESULT, {race: result}, args.out or harness.RESULTS)
        print(f'{race}: stored in {fpath.name}; versions {result["versions"]}')


if __name__ == '__main__':
    main()
