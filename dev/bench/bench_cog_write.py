#!/usr/bin/env python
"""
Writing Cloud-Optimized GeoTIFFs against what else writes them.

The races, described in races_cog; their images in cog_problem:

* bands5, bands1, rare: an int16 array in RAM to a file, against
  ``kwimage.imwrite`` as geowatch calls it, and GDAL's COG driver; and the same
  image fed block by block. With the size of the files, and the time of
  ``verify_cog``.
* memory: what writing adds, also for streams of several heights.

Peers that are not installed are named and left out. Results are stored when
the run has its full size and at least 5 rounds, or where ``--out`` says, in
``bench_cog_write.json``, by race, each with its machine and versions. What was
stored of races that do not run stays.

Usage: python dev/bench/bench_cog_write.py [--races bands5 memory ...]
    [--rounds 5] [--size 8192] [--out FOLDER] [--smoke]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import harness
from races_cog import RACES, SIZE, WORKERS

LEAST_ROUNDS = 5
SMOKE_SIZE = 512
RESULT = 'bench_cog_write'


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--races', nargs='+', choices=RACES, default=list(RACES))
    parser.add_argument('--rounds', type=int, help=f'counted turns; by default {LEAST_ROUNDS}')
    parser.add_argument('--size', type=int, help=f'px; by default {SIZE}')
    parser.add_argument('--out', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--smoke', action='store_true',
                        help=f'does it run? by default 1 round of {SMOKE_SIZE} px')
    parser.add_argument('--worker', help='one measurement RACE:NAME, for processes of their own')
    args = parser.parse_args()
    args.rounds = args.rounds or (1 if args.smoke else LEAST_ROUNDS)
    args.size = args.size or (SMOKE_SIZE if args.smoke else SIZE)
    return args


def store(args, race, result):
    """Store the result of a race, and say where."""
    if args.out is None and not (args.rounds >= LEAST_ROUNDS and args.size == SIZE):
        print(f'{race}: not stored; give --out for a run that is not the full one')
        return
    fpath = harness.merge_result(RESULT, {race: result}, args.out or harness.RESULTS)
    print(f'{race}: stored in {fpath.name}; versions {result["versions"]}')


def main():
    """Measure, print the tables, and store the results."""
    args = parse_args()
    if args.worker:
        harness.report_worker(WORKERS[args.worker.partition(':')[2]](args.size))
        return
    print(f'machine {harness.get_machine()}')
    for race in args.races:
        print(f'race {race}', flush=True)
        store(args, race, RACES[race](__file__, args.size, args.rounds))


if __name__ == '__main__':
    main()
