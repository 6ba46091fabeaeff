"""
How far a run is: a bar on a terminal, a plain line now and then elsewhere.
"""
from __future__ import annotations

import logging
import sys
import time

logger = logging.getLogger('cocoseg.cli')

# Seconds between two plain lines.
_INTERVAL = 10.0


def show_progress(iterable, total=None, desc=''):
    """
    Wrap an iterable so that stderr tells how far it is.

    On a terminal there is a bar with percentage, count, rate, time and the
    time that is left; elsewhere a line about every 10 seconds, and at the end.
    Nothing with ``--quiet``.

    Args:
        iterable (Iterable): gone through once.
        total (int | None): its length, if it is known.
        desc (str): what is done.

    Returns:
        Iterable: the same items.

    Example:
        >>> assert list(show_progress([1, 2], total=2, desc='count')) == [1, 2]
    """
    if not logger.isEnabledFor(logging.WARNING):
        return iterable
    if total is None and hasattr(iterable, '__len__'):
        total = len(iterable)
    if sys.stderr.isatty():
        return _iter_with_bar(iterable, total, desc)
    return _iter_with_lines(iterable, total, desc)


def _iter_with_bar(iterable, total, desc):
    from rich.console import Console
    from rich.progress import (
        BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn,
        TimeRemainingColumn)
    columns = (TextColumn('{task.description}'), BarColumn(), TaskProgressColumn(),
               MofNCompleteColumn(), TextColumn('{task.fields[rate]}'), TimeElapsedColumn(),
               TextColumn('left'), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(desc, total=total, rate='')
        began = time.monotonic()
        for number, item in enumerate(iterable, 1):
            yield item
            rate = format_rate(number, time.monotonic() - began)
            progress.update(task, advance=1, rate=rate)


def _iter_with_lines(iterable, total, desc, interval=None):
    interval = _INTERVAL if interval is None else interval
    began = told = time.monotonic()
    number = 0
    for number, item in enumerate(iterable, 1):
        yield item
        now = time.monotonic()
        # The last line is told below.
        if now - told >= interval and number != total:
            _tell(number, total, desc, now - began)
            told = now
    _tell(number, total, desc, time.monotonic() - began)


def _tell(number, total, desc, seconds):
    print(format_line(number, total, desc, seconds), file=sys.stderr, flush=True)


def format_line(number, total, desc, seconds):
    """
    Return a line that tells how far something is.

    Args:
        number (int): items that are done.
        total (int | None): of so many.
        desc (str): what is done.
        seconds (float): since it began.

    Example:
        >>> format_line(30, 120, 'predict', 60)
        'predict 30/120 (25%), 0.50/s, 0:01:00 elapsed, 0:03:00 left'
        >>> format_line(120, 120, 'predict', 60), format_line(7, None, '', 2)
        ('predict 120/120 (100%), 2.0/s, 0:01:00 elapsed', '7, 3.5/s, 0:00:02 elapsed')
    """
    share = number / total if total else 1
    count = f'{number}' if total is None else f'{number}/{total} ({share:.0%})'
    parts = [f'{desc} {count}'.strip(), format_rate(number, seconds),
             f'{_format_time(seconds)} elapsed']
    if total is not None and 0 < number < total:
        parts.append(f'{_format_time(seconds * (total - number) / number)} left')
    return ', '.join(parts)


def format_rate(number, seconds):
    """
    Return items per second.

    Example:
        >>> [format_rate(number, 2.0) for number in (1, 7, 470, 12345)]
        ['0.50/s', '3.5/s', '235/s', '6172/s']
    """
    rate = number / max(seconds, 1e-9)
    return f'{rate:.2f}/s' if rate < 1 else f'{rate:.1f}/s' if rate < 100 else f'{rate:.0f}/s'


def _format_time(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{seconds:02d}'
