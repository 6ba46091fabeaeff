"""
How long a plan takes, on which workers, and what should be changed about it.

As good as the rates that are given; nothing is measured here.
"""
from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

from cocoseg.errors import OptionError
from cocoseg.machine import count_cpus

#: Empty tasks per second that one process can hand out, on a machine of two cores; measured by
#: dev/bench/races_engines.py (27, 265 and 4058 µs each).
DISPATCH_RATES = {'serial': math.inf, 'threads': 37_000.0, 'processes': 3_800.0, 'dask': 246.0}
#: Bytes of raw pixels per second that one process packs into a file, measured likewise.
WRITE_RATE = 100e6
#: Seconds below which a task is too short to be worth handing out.
LEAST_TASK_SECONDS = 0.2

_MAX_LABELS = (1 << 32) - 1
_SPEC = re.compile(r'(serial|threads|processes|dask)(?::(.+))?')


@dataclass(frozen=True)
class TimeEstimate:
    """
    How long a run takes, in seconds.

    Attributes:
        task (float): one of the tasks that take long.
        work (float): all tasks, shared by the workers.
        dispatch (float): to hand out all tasks, by one process.
        write (float): to write the results that one process writes.
    """

    task: float
    work: float
    dispatch: float
    write: float

    @property
    def total(self):
        """The longest of the three, which run at the same time."""
        return max(self.work, self.dispatch, self.write)

    @property
    def bottleneck(self):
        """What sets the pace: 'workers', 'tasks' or 'writing'."""
        seconds = {'workers': self.work, 'tasks': self.dispatch, 'writing': self.write}
        return max(seconds, key=seconds.get)

    def as_dict(self):
        """Return the figures as plain values by name."""
        return {**dataclasses.asdict(self), 'total': self.total, 'bottleneck': self.bottleneck}


def parse_executor(spec, n_workers=None):
    """
    Return the kind of an executor and its workers, without starting any.

    Args:
        spec (str): as for :func:`cocoseg.get_executor`.
        n_workers (int | None): of a cluster, whose address tells none.

    Returns:
        tuple[str, int]: 'serial', 'threads', 'processes' or 'dask', and how
        many tasks run at a time.

    Raises:
        OptionError: for another one, or if the workers are not known.

    Example:
        >>> from cocoseg.engine.estimate import parse_executor
        >>> parse_executor('processes:4'), parse_executor('dask:tcp://10.0.0.1:8786', 64)
        (('processes', 4), ('dask', 64))
    """
    match = _SPEC.fullmatch(spec) if isinstance(spec, str) else None
    kind, number = match.groups() if match else (None, None)
    is_address = kind == 'dask' and number is not None and '://' in number
    is_count = number is None or (number.isdecimal() and int(number) > 0)
    if match is None or (kind == 'serial' and number) or not (is_address or is_count):
        raise OptionError(f"executor={spec!r} is unknown; use 'serial', 'threads', 'processes', "
                          "'dask', each but 'serial' with a number as in 'threads:N', or "
                          "'dask:tcp://…'")
    if n_workers is not None and n_workers < 1:
        raise OptionError(f'n_workers={n_workers} must be at least 1')
    if is_address and n_workers is None:
        raise OptionError(f'executor={spec!r} does not tell how many workers there are; give '
                          'n_workers')
    if n_workers is not None and not is_address and kind != 'dask':
        raise OptionError(f'n_workers={n_workers} is for dask; of {kind!r} it is in executor')
    if kind == 'serial':
        return kind, 1
    return kind, n_workers or (int(number) if number else count_cpus())


def estimate_time(plan, rate, kind='serial', n_workers=1, write_rate=WRITE_RATE):
    """
    Estimate how long a plan takes.

    Args:
        plan (WorkPlan): what is to be done.
        rate (float): px that one worker reads and works on, per second.
        kind (str): of executor; see :func:`parse_executor`.
        n_workers (int): tasks that are done at a time.
        write_rate (float): raw bytes per second that the driver writes.

    Returns:
        TimeEstimate: as if workers did not slow each other down, at a disk
        or in memory.

    Example:
        >>> from cocoseg.engine.estimate import estimate_time
        >>> from cocoseg.engine.plan import plan_blocks
        >>> plan = plan_blocks((100_000, 100_000), 1000, n_bands=1, n_channels=1, dtype='uint8')
        >>> estimate = estimate_time(plan, 1e7, 'dask', 50)
        >>> estimate.task, estimate.work, estimate.write, estimate.bottleneck
        (0.1, 20.0, 100.0, 'writing')
    """
    if not rate > 0 or not write_rate > 0:
        raise OptionError(f'rate={rate} and write_rate={write_rate} must be above 0 per second')
    seconds = plan.n_read / rate
    task = seconds / plan.n_long
    work = task * -(-plan.n_long // n_workers)
    return TimeEstimate(task, work, plan.n_tasks / DISPATCH_RATES[kind],
                        plan.driven_nbytes / write_rate)


def list_warnings(plan, estimate=None, kind='serial', n_workers=1):
    """
    Return what should be changed about a plan, for people.

    Args:
        plan (WorkPlan): what is to be done.
        estimate (TimeEstimate | None): of the same plan.
        kind (str): of executor.
        n_workers (int): tasks that are done at a time.

    Returns:
        list[str]: a sentence each; empty if all is well.

    Example:
        >>> from cocoseg.engine.estimate import list_warnings
        >>> from cocoseg.engine.plan import plan_blocks
        >>> list_warnings(plan_blocks((50, 50), 10, 20, n_bands=1, n_channels=1))
        ['a pixel is read 14.4 times; larger blocks read less often']
    """
    found = []
    if plan.purpose != 'predict' and plan.read_factor > 2:
        found.append(f'a pixel is read {plan.read_factor:.1f} times; larger {plan.units} read '
                     'less often')
    if plan.n_labels > _MAX_LABELS:
        found.append(f'some {plan.n_labels:.2g} labels do not fit in 32 bits; divide the image '
                     'into regions, each with an output of its own')
    if n_workers > plan.n_long:
        found.append(f'only {plan.n_long} of {n_workers} workers have something to do')
    if estimate is None or kind == 'serial':
        return found
    if estimate.task < LEAST_TASK_SECONDS and kind != 'threads':
        found.append(f'a task takes {estimate.task:.2g} s, and should take '
                     f'{LEAST_TASK_SECONDS:g} s at least; make {plan.units} larger')
    if estimate.bottleneck == 'tasks':
        found.append(f'{plan.n_tasks} tasks take {estimate.dispatch:.3g} s to hand out, more than '
                     f'to do; make {plan.units} larger, or use fewer workers')
    if estimate.bottleneck == 'writing':
        found.append('the process that writes the result sets the pace; use fewer workers, or '
                     'divide the image into regions, each with an output of its own')
    return found
