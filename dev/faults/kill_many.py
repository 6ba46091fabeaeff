"""
Kill runs at many moments, and check that nothing is ever half there or lost.

A trial kills a run of ``predict_dataset`` or of a manager, at a random time or
at a random call of the system; checks every file that it left; goes on, maybe
to be killed again; and compares the end with a run that nobody disturbed. The
same seed makes the same trials (the moments in time differ a little).

    python dev/faults/kill_many.py --kills 200 --seed 0

Ends with 1 if anything was found.
"""
from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from faults.nursery import Nursery  # noqa: E402
from faults.trials import PACE, Trial, choose_trap, name_stage, run_trial  # noqa: E402

PROGRAMS = ('predict', 'manage')


class Campaign:
    """
    Trials until there were enough kills.

    Args:
        folder (Path): for the bundles; those without findings are removed.
        seed (int): of all trials.
        n_kills (int): to reach.
    """

    def __init__(self, folder, seed, n_kills):
        self.folder, self.seed, self.n_kills = folder, seed, n_kills
        self.stages, self.findings = Counter(), {}
        self.n_trials = self.n_unharmed = 0
        self._lock = threading.Lock()
        self._indices = itertools.count()
        self._options, self._references, self._counts, self._seconds = {}, {}, {}, {}

    def prepare(self, nursery):
        """Run every program undisturbed."""
        nursery.run('make_source', folder=os.fspath(self.folder / 'source'))
        self._options = {'predict': {'source': str(self.folder / 'source/source.kwcoco.json')},
                         'manage': {}}
        for program in PROGRAMS:
            # The first run compiles the kernels, and its time is not that of others.
            for name in ('warm', 'reference'):
                folder = self.folder / f'{program}-{name}'
                begin = time.monotonic()
                events = nursery.run(program, folder=os.fspath(folder), pace=PACE,
                                     **self._options[program])
                self._seconds[program] = time.monotonic() - begin
            self._references[program] = folder
            self._counts[program] = events['counts']['counts']

    def make_trial(self, index):
        """Return the trial with this number."""
        rng = random.Random(f'{self.seed} {index}')
        program = rng.choice(PROGRAMS)
        kills = []
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            if rng.random() < 0.5:
                kills.append({'delay': rng.uniform(0, 1.1 * self._seconds[program])})
            else:
                kills.append(choose_trap(rng, self._counts[program]))
        again = program == 'predict' and rng.random() < 0.15
        # Saved when an image is finished, or at the end, or when the program says so.
        interval = rng.choice([None, 0, 0.1])
        return Trial(program, kills, again, {**self._options[program], 'dump_interval': interval})

    def work(self):
        """Run trials until there were enough kills; several threads may."""
        nursery = Nursery()
        try:
            while sum(self.stages.values()) < self.n_kills:
                with self._lock:
                    index = next(self._indices)
                self._try(nursery, index)
        finally:
            nursery.close()

    def _try(self, nursery, index):
        trial = self.make_trial(index)
        folder = self.folder / f'trial-{index}'
        stages, findings = run_trial(nursery, trial, folder, self._references[trial.program])
        with self._lock:
            self.n_trials += 1
            self.stages.update((trial.program, stage) for stage in stages)
            self.n_unharmed += len(trial.kills) - len(stages)
            if findings:
                self.findings[index] = findings
                places = ', '.join(map(name_stage, trial.kills))
                print(f'trial {index} ({trial.program}: {places}):', *findings, sep='\n  ',
                      flush=True)
        if not findings:
            shutil.rmtree(folder)


def report(campaign):
    """Print how many kills there were at each stage, and what was found."""
    stages = sorted({stage for _, stage in campaign.stages})
    width = max(map(len, stages), default=0)
    print(f'{"killed":<{width}}', *(f'{program:>8}' for program in PROGRAMS))
    for stage in stages:
        print(f'{stage:<{width}}',
              *(f'{campaign.stages[program, stage]:>8}' for program in PROGRAMS))
    n_kills, n_findings = (sum(campaign.stages.values()),
                           sum(map(len, campaign.findings.values())))
    print(f'{n_kills} kills in {campaign.n_trials} trials; {campaign.n_unharmed} runs ended before '
          f'their kill; violations {n_findings}')


def main(argv=None):
    """Run a campaign; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.strip().partition('\n')[0])
    parser.add_argument('--kills', type=int, default=200, help='how many (200)')
    parser.add_argument('--seed', type=int, default=0, help='of the trials (0)')
    parser.add_argument('--jobs', type=int, default=2, help='trials at a time (2)')
    args = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix='kill-many-'))
    campaign = Campaign(folder, args.seed, args.kills)
    nursery = Nursery()
    try:
        campaign.prepare(nursery)
    finally:
        nursery.close()
    with ThreadPoolExecutor(args.jobs) as pool:
        for future in [pool.submit(campaign.work) for _ in range(args.jobs)]:
            future.result()
    report(campaign)
    if campaign.findings:
        print(f'the bundles are in {folder}')
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
