"""What this machine offers to the process. Imports nothing of the package."""
from __future__ import annotations

import os


def count_cpus():
    """
    Return how many CPUs this process may use.

    Example:
        >>> from cocoseg.machine import count_cpus
        >>> assert count_cpus() >= 1
    """
    if hasattr(os, 'sched_getaffinity'):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
