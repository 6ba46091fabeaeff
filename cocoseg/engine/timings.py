"""
Where the time of a run went: named intervals, from any thread.
"""
from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


class Timings:
    """
    Collect durations by name.

    An interval that ends by an exception is not counted. Can be pickled, so
    that workers send theirs home for :meth:`merge`.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> from cocoseg.engine.timings import Timings
        >>> timings = Timings()
        >>> for seconds in (1.0, 3.0):
        ...     timings.add('reading', seconds)
        >>> with timings.interval('walltime'):
        ...     pass
        >>> timings.summary()['reading']
        {'total': 4.0, 'min': 1.0, 'max': 3.0, 'lowerq': 1.5, 'median': 2.0, 'upperq': 2.5, \
'mean': 2.0, 'count': 2}
    """

    def __init__(self) -> None:
        self._durations = {}
        self._lock = threading.Lock()

    def __getstate__(self):
        return self.durations

    def __setstate__(self, durations):
        self.__init__()
        self._durations = durations

    @property
    def durations(self) -> dict[str, list[float]]:
        """Seconds of each interval, a new dict of lists by name, in order of first use."""
        with self._lock:
            return {name: list(values) for name, values in self._durations.items()}

    def add(self, name: str, seconds: float) -> None:
        """Count one interval."""
        with self._lock:
            self._durations.setdefault(name, []).append(seconds)

    @contextmanager
    def interval(self, name: str) -> Iterator[None]:
        """Count the time that a ``with`` block takes, unless it raises."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def merge(self, other: Timings) -> None:
        """Count the intervals of another collection, too."""
        for name, values in other.durations.items():
            for seconds in values:
                self.add(name, seconds)

    def total(self, name: str) -> float:
        """Return the seconds of all intervals of a name; 0 if there was none."""
        with self._lock:
            return float(sum(self._durations.get(name, ())))

    def summary(self) -> dict[str, dict]:
        """
        Return figures per name, for people and for JSON.

        Returns:
            dict[str, dict]: ``total``, ``min``, ``max``, ``lowerq``,
            ``median``, ``upperq``, ``mean`` (s) and ``count``, by name.
        """
        return {name: _summarize(values) for name, values in self.durations.items()}


def _summarize(values):
    lower, median, upper = np.percentile(values, [25, 50, 75])
    figures = {'total': sum(values), 'min': min(values), 'max': max(values), 'lowerq': lower,
               'median': median, 'upperq': upper, 'mean': sum(values) / len(values)}
    return {**{name: float(value) for name, value in figures.items()}, 'count': len(values)}


def format_timings(summary: dict[str, dict], title: str = 'Timings') -> str:
    """
    Return a table of timings for people.

    Args:
        summary (dict[str, dict]): of :meth:`Timings.summary`.
        title (str): what was timed.

    Returns:
        str: a row per name with seconds: total, how often, median, and the
        slowest; the time from begin to end, ``walltime``, above.

    Example:
        >>> timings = Timings()
        >>> timings.add('walltime', 2.5)
        >>> timings.add('reading', 0.25)
        >>> timings.add('reading', 0.75)
        >>> print(format_timings(timings.summary(), 'Segmentation timings (s)'))
        Segmentation timings (s)
        Walltime: 2.50
        <BLANKLINE>
        Timer         Total  Count  Median    Max
        -----------------------------------------
        reading        1.00      2    0.50   0.75
    """
    lines = [title]
    if 'walltime' in summary:
        lines.append(f'Walltime: {summary["walltime"]["total"]:.2f}')
    names = [name for name in summary if name != 'walltime']
    width = max([12, *map(len, names)])
    head = f'{"Timer":<{width}} {"Total":>6} {"Count":>6} {"Median":>7} {"Max":>6}'
    lines += ['', head, '-' * len(head)]
    for name in names:
        row = summary[name]
        lines.append(f'{name:<{width}} {row["total"]:>6.2f} {row["count"]:>6} '
                     f'{row["median"]:>7.2f} {row["max"]:>6.2f}')
    return '\n'.join(lines)
