"""
Numbers as people read them: bytes and times.
"""
from __future__ import annotations


def format_bytes(nbytes):
    """
    Return a number of bytes for people.

    Example:
        >>> from cocoseg.engine.texts import format_bytes
        >>> [format_bytes(nbytes) for nbytes in (999, 184689571, 2 * 10 ** 12, 3e18)]
        ['999 B', '184.7 MB', '2.0 TB', '3000.0 PB']
    """
    size, units = nbytes, ['B', 'kB', 'MB', 'GB', 'TB', 'PB']
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f'{size} B' if units[0] == 'B' else f'{size:.1f} {units[0]}'


def format_seconds(seconds):
    """
    Return a time for people.

    Example:
        >>> from cocoseg.engine.texts import format_seconds
        >>> [format_seconds(value) for value in (0.25, 75, 5400, 1e6)]
        ['0.2 s', '75.0 s', '1.5 h', '11.6 days']
    """
    for size, unit in ((86400, 'days'), (3600, 'h')):
        if seconds >= size:
            return f'{seconds / size:.1f} {unit}'
    return f'{seconds:.1f} s'
