"""
What plans look like on a screen.
"""
from __future__ import annotations

from cocoseg.engine.texts import format_bytes, format_seconds


def print_plan(plan, kind, n_workers, has_memory=True):
    """
    Print the counts and bytes of a run.

    Args:
        plan (WorkPlan): of the run.
        kind (str): of its executor.
        n_workers (int | None): that it has; None is not known.
        has_memory (bool): also print bounds of memory and temporary files.
    """
    workers = f'{kind} workers' if n_workers is None else (
        f'{n_workers} {kind} worker{"" if n_workers == 1 else "s"}')
    print(f'images    {plan.n_images}, {plan.n_pixels / 1e6:.6g} Mpx')
    print(f'{plan.units:<9} {plan.n_units}, {plan.n_read / 1e6:.6g} Mpx to read, each pixel '
          f'{plan.read_factor:.2f} times')
    print(f'tasks     {plan.n_tasks} for {workers}')
    print(f'result    {format_bytes(plan.result_nbytes)} raw')
    if has_memory:
        print(f'temporary {format_bytes(plan.temporary_nbytes)} of files at most')
        print(f'memory    {format_bytes(plan.worker_nbytes)} per worker at most, '
              f'{format_bytes(plan.driver_nbytes)} for the process that drives them')
    if plan.manifest_nbytes:
        print(f'manifest  {format_bytes(plan.manifest_nbytes)} more')
    if plan.n_labels:
        print(f'labels    about {plan.n_labels:.3g}')


def print_estimate(estimate, rate, basis):
    """
    Print how long a run takes.

    Args:
        estimate (TimeEstimate): of the run.
        rate (float): px per second of one worker.
        basis (str): where that is from.
    """
    print(f'rate      {rate / 1e6:.3g} Mpx/s per worker ({basis})')
    print(f'task      {estimate.task:.3g} s')
    print(f'time      {format_seconds(estimate.total)}: {format_seconds(estimate.work)} of work, '
          f'{format_seconds(estimate.dispatch)} to hand out tasks, '
          f'{format_seconds(estimate.write)} to write; {estimate.bottleneck} set the pace')
