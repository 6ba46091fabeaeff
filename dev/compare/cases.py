"""
What one comparison is, and how it becomes a row.

A :class:`Case` names a peer and makes a :class:`Trial`: one input, what both
sides do with it, and how far their results agree. Whatever happens, a case
ends as one row: measured, missing (with how to get the peer) or failed (with
the error). Nothing here knows any peer.
"""
from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import bench_path  # noqa: F401
import harness
from stream_problem import Absent

from cocoseg.errors import CocosegError

SCRIPT = Path(__file__).with_name('compare.py')
MEASURED, MISSING, FAILED = 'measured', 'missing', 'failed'
PACKAGES = ['numpy', 'numba', 'gdal']


@dataclass(frozen=True)
class Agreement:
    """
    How far two results agree.

    Args:
        measure (str): what the value is, with its unit.
        value (float): as measured.
        bound (float | None): what was stated before; None states nothing, as
            where the peer has another method.
        at_most (bool): the bound is the most, not the least.
        facts (dict): what else is worth a look, such as bytes.
    """

    measure: str
    value: float
    bound: float | None = None
    at_most: bool = False
    facts: dict = field(default_factory=dict)

    @property
    def holds(self):
        """True unless the value is beyond the bound; NaN always is."""
        if self.bound is None:
            return True
        return bool(self.value <= self.bound if self.at_most else self.value >= self.bound)


@dataclass(frozen=True)
class Trial:
    """
    One input, ready to be raced.

    Args:
        input (str): what both sides get, with its size.
        ours, theirs (Callable): take nothing, return (seconds, result); see
            :func:`timed`.
        agree (Callable): takes both results, returns an Agreement.
    """

    input: str
    ours: Callable
    theirs: Callable
    agree: Callable


@dataclass(frozen=True)
class Case:
    """
    One peer at one job.

    Args:
        name (str): 'subject/peer'.
        peer (str): what is called of the peer.
        package (str): distribution that the version is of.
        modules (tuple[str, ...]): top-level modules that must be there.
        same (str): what both sides share besides the pixels.
        prepare (Callable): takes the size (px), returns a Trial; may raise
            Absent, with what to do. Imports of the peer belong in here.
        size (int): px, of a full run.
        remedy (str): how to get the peer.
        isolated (bool): both sides run in a process of their own, for peers
            with libraries that must not meet ours.
    """

    name: str
    peer: str
    package: str
    modules: tuple
    same: str
    prepare: Callable
    size: int
    remedy: str
    isolated: bool = False

    @property
    def subject(self):
        """What the job is about."""
        return self.name.partition('/')[0]

    def describe(self):
        """Return what all rows of this case hold."""
        # What has to stay in a process of its own is not imported for its version.
        module = None if self.isolated else self.modules[0]
        return {'subject': self.subject, 'peer': self.peer, 'package': self.package,
                'version': find_version(self.package, module), 'same': self.same}


class OursFailed(Exception):
    """It was not the peer; the error is its cause."""


def timed(work):
    """Return a function that returns (seconds, result) of a work without arguments."""
    def run():
        start = time.perf_counter()
        made = work()
        return time.perf_counter() - start, made
    return run


def find_version(package, module=None):
    """
    Return the version of a package, or None.

    A checkout that is not installed says it in ``__version__`` of its module.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        if module is None:
            return None
    # It may be broken in any way, which its row then tells.
    try:
        return getattr(importlib.import_module(module), '__version__', None)
    except Exception:
        return None


def find_missing(case):
    """Return why a case cannot begin, or None; imports nothing."""
    absent = [name for name in case.modules if importlib.util.find_spec(name) is None]
    return f'no module {", ".join(absent)}: {case.remedy}' if absent else None


def describe_error(error):
    """Return an error in one line."""
    lines = str(error).strip().splitlines() or ['']
    return f'{type(error).__name__}: {lines[-1]}'.strip()


def race(trial, rounds):
    """Let both sides take turns; return medians, all values (s) and the Agreement."""
    made = {}

    def run_ours():
        try:
            seconds, made['ours'] = trial.ours()
        except Exception as ex:
            raise OursFailed from ex
        return {'wall_s': seconds}

    def run_theirs():
        seconds, made['theirs'] = trial.theirs()
        return {'wall_s': seconds}
    medians, values = harness.run_rounds({'cocoseg': run_ours, 'peer': run_theirs}, rounds)
    seconds = {who: row['wall_s'] for who, row in medians.items()}
    every = {who: [turn['wall_s'] for turn in turns] for who, turns in values.items()}
    return seconds, every, trial.agree(made['ours'], made['theirs'])


def measure_here(case, size, rounds):
    """Return the row of a case, measured in this process."""
    row = {**case.describe(), 'size': size, 'rounds': rounds}
    try:
        trial = case.prepare(size)
        seconds, values, agreement = race(trial, rounds)
    except Absent as ex:
        return {**row, 'status': MISSING, 'holds': True, 'error': str(ex)}
    except (OursFailed, CocosegError) as ex:
        error = ex.__cause__ if isinstance(ex, OursFailed) else ex
        return {**row, 'status': FAILED, 'holds': False,
                'error': f'cocoseg: {describe_error(error)}'}
    # A peer may fail in any way; the row tells how.
    except Exception as ex:
        return {**row, 'status': FAILED, 'holds': True, 'error': describe_error(ex)}
    return {**row, 'status': MEASURED, 'holds': agreement.holds, 'input': trial.input,
            'measure': agreement.measure, 'agreement': agreement.value,
            'bound': agreement.bound, 'at_most': agreement.at_most, 'facts': agreement.facts,
            'ours_s': seconds['cocoseg'], 'theirs_s': seconds['peer'],
            'ratio': seconds['peer'] / seconds['cocoseg'], 'values': values,
            'machine': harness.get_machine(),
            'versions': {**harness.get_versions(PACKAGES), case.package: row['version']}}


def measure(case, size, rounds):
    """Return the row of a case, wherever it has to run."""
    missing = find_missing(case)
    row = {**case.describe(), 'size': size, 'rounds': rounds}
    if missing:
        return {**row, 'status': MISSING, 'holds': True, 'error': missing}
    if not case.isolated:
        return measure_here(case, size, rounds)
    try:
        return harness.run_worker(SCRIPT, case.name, ['--size', size, '--rounds', rounds])
    except RuntimeError as ex:
        return {**row, 'status': FAILED, 'holds': True, 'error': describe_error(ex)}
