"""
One kill, and what must hold after it: shared by the tests and kill_many.py.

A trial runs a program in a child that is killed, checks what it left, lets
others go on (who may be killed too), and checks the end against a run that
nobody disturbed.
"""
import os
import shutil
import time
from dataclasses import dataclass, field

from .checks import check_cut, check_whole, count_done
from .victims import IMAGES, make_grid

PACE = 0.005  # seconds per window: a run takes about half a second
# Calls that write bytes can be cut in the middle.
_WRITING = ('write', 'writev', 'pwrite', 'pwritev', 'copy_file_range')


@dataclass
class Trial:
    """
    Attributes:
        program (str): of victims.py.
        kills (list[dict]): of the runs one after another: {'delay': seconds}
            since the begin, or a trap of victims.py.
        again (bool): the bundle is whole already, and the first run starts afresh.
        options (dict): of the program.
    """

    program: str
    kills: list
    again: bool = False
    options: dict = field(default_factory=dict)


def name_stage(kill):
    """Return what a kill is called in a table."""
    return 'at any moment' if 'delay' in kill else f'{kill["when"]} {kill["point"]}'


def choose_trap(rng, counts):
    """Return a random trap among the calls that an undisturbed run made."""
    point = rng.choice(sorted(counts))
    when = rng.choice(['before', 'after'] + ['half'] * (point in _WRITING))
    return {'point': point, 'nth': rng.randint(1, counts[point]), 'when': when,
            'hold': rng.choice([0, 0, 0.02])}


def kill_once(nursery, trial, kill, folder, resume):
    """Run the program until it is killed; return True if it was."""
    trap = kill if 'point' in kill else None
    victim = nursery.start(trial.program, folder=os.fspath(folder), resume=resume, pace=PACE,
                           trap=trap, **trial.options)
    victim.wait_for('begin')
    if trap is None:
        time.sleep(kill['delay'])
        victim.kill()
    status = victim.join()
    if status not in (0, -9):
        raise AssertionError(f'it ended with {status}:\n{victim.read_log()}')
    return status == -9


def run_trial(nursery, trial, folder, reference):
    """
    Kill, check, resume, check.

    Args:
        nursery (Nursery): of the children.
        trial (Trial): what to do.
        folder (Path): of the bundle; empty.
        reference (Path): bundle of an undisturbed run.

    Returns:
        tuple[list[str], list[str]]: the stages at which there was a kill, and
        the findings; with none, all is well.
    """
    if trial.again:
        shutil.copytree(reference, folder, dirs_exist_ok=True)
    stages, findings = [], []
    for index, kill in enumerate(trial.kills):
        if kill_once(nursery, trial, kill, folder, resume=index > 0):
            stages.append(name_stage(kill))
        # The old manifest names assets of which the new journal knows nothing yet.
        findings += check_cut(folder, len(stages), is_noted=not trial.again)
    return stages, findings + go_on(nursery, trial, folder, reference, len(stages))


def go_on(nursery, trial, folder, reference, n_kills):
    """Finish what was killed, and return the findings; only what is missing may be redone."""
    n_left = IMAGES[trial.program] - count_done(folder)
    events = nursery.run(trial.program, folder=os.fspath(folder), resume=True, **trial.options)
    n_windows, n_needed = events['end']['n_windows'], n_left * len(make_grid())
    findings = check_whole(folder, reference, n_kills)
    if n_windows != n_needed:
        findings.append(f'{n_windows} windows were predicted instead of the missing {n_needed}')
    return findings
