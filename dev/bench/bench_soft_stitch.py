#!/usr/bin/env python
"""
Soft stitching against its peers: to a file, and as a stream.

The races, each described in its own module:

* file: to a finished file, against the steps of the reference (races_file).
* stream: windows in, int16 out, against all peers and against the memory
  bandwidth of the machine (races_stream, peers, machine_limit).
* small: what one small window costs besides its data (races_small).
* memory: what streaming adds, also for high and huge images (races_memory).
* error: the difference from a float64 reference (races_error).

Peers that are not installed are named and left out. Results are stored when
the run has its full size and at least 5 rounds, or where ``--results`` says:
``bench_soft_stitch.json`` for the file, ``bench_soft_stream.json`` for the
others, by race, each with its machine and versions. What was stored of races
that do not run stays.

Usage: python dev/bench/bench_soft_stitch.py [--races file stream ...]
    [--rounds 5] [--size 8192] [--only NAME ...] [--keep-memory]
    [--results FOLDER]
"""
from __future__ import annotations

import argparse
from pathlib import Path

import harness
import races_error
import races_file
import races_memory
import races_small
import races_stream

RACES = {'file': races_file, 'stream': races_stream, 'small': races_small,
         'memory': races_memory, 'error': races_error}
LEAST_ROUNDS = 5
# Files of results; the first is what the README shows.
FILE_RESULT, STREAM_RESULT = 'bench_soft_stitch', 'bench_soft_stream'


def parse_args():
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--races', nargs='+', choices=RACES, default=list(RACES))
    parser.add_argument('--rounds', type=int, default=LEAST_ROUNDS)
    parser.add_argument('--size', type=int, help='px; by default each race has its own')
    parser.add_argument('--only', nargs='+', choices=races_stream.NAMES, metavar='NAME',
                        help='contestants of the stream race; for work on kernels')
    parser.add_argument('--keep-memory', action='store_true',
                        help='stream race in memory that is not new; stored as stream_kept')
    parser.add_argument('--results', type=Path, help='folder to store in, whatever the size')
    parser.add_argument('--worker', help='one measurement RACE:NAME, for processes of their own')
    args = parser.parse_args()
    if args.keep_memory and args.races != ['stream']:
        parser.error('--keep-memory holds for the process; use it with --races stream alone')
    return args


def is_full(args, race):
    """Return True if a run is large enough to be stored."""
    return (args.rounds >= LEAST_ROUNDS and args.size in (None, RACES[race].SIZE)
            and not args.only)


def store(args, race, result):
    """Store the result of a race, and say where."""
    if args.results is None and not is_full(args, race):
        print(f'{race}: not stored; give --results for a run that is not the full one')
        return
    folder = args.results or harness.RESULTS
    if race == 'file':
        fpath = harness.save_result(FILE_RESULT, result, folder)
    else:
        name = f'{race}_kept' if args.keep_memory else race
        fpath = harness.merge_result(STREAM_RESULT, {name: result}, folder)
    print(f'{race}: stored in {fpath.name}; versions {result["versions"]}')


def main():
    """Measure, print the tables, and store the results."""
    args = parse_args()
    if args.worker:
        race, _, name = args.worker.partition(':')
        harness.report_worker(RACES[race].WORKERS[name](args.size))
        return
    if args.keep_memory:
        harness.keep_memory()
    for race in args.races:
        module = RACES[race]
        print(f'race {race}: {module.__doc__.strip().splitlines()[0]}', flush=True)
        options = {'only': args.only} if race == 'stream' else {}
        store(args, race, module.run(__file__, args.size or module.SIZE, args.rounds, **options))


if __name__ == '__main__':
    main()
