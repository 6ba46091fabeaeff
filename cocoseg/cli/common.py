"""
What every subcommand shares: progress bars, and how errors end a program.
"""
from __future__ import annotations

import logging
import sys


def show_progress(iterable, total=None, desc=''):
    """
    Wrap an iterable in a progress bar; plain lines where there is no terminal.

    Example:
        >>> assert list(show_progress([1, 2], total=2, desc='count')) == [1, 2]
    """
    if sys.stdout.isatty():
        from rich.progress import track
        return track(iterable, description=desc, total=total)
    import ubelt as ub
    return ub.ProgIter(iterable, total=total, desc=desc, verbose=1)


def run_command(command):
    """
    Make a subcommand end with one line and an exit code instead of a trace.

    Wrong arguments are 2, wrong input is 1, an interrupt is 130. Anything
    unforeseen keeps its trace.
    """
    # Not functools.wraps: kwconf looks for ``argv`` in this signature.
    def main(cls, argv=None, **kwargs):
        from cocoseg.errors import CocosegError
        logging.basicConfig(format='%(levelname)s: %(message)s', level=logging.WARNING)
        try:
            config = cls.cli(argv=argv, data=kwargs, strict=True)
        except ValueError as ex:
            print(f'cocoseg: {ex}; see cocoseg {cls.__command__} --help', file=sys.stderr)
            return 2
        try:
            command(config)
        except CocosegError as ex:
            print(f'cocoseg: {ex}', file=sys.stderr)
            return 1
        except (FileNotFoundError, IsADirectoryError, PermissionError) as ex:
            print(f'cocoseg: {ex.strerror}: {ex.filename}', file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print('cocoseg: interrupted; finished images are kept, run it again with '
                  '--resume where the command has it', file=sys.stderr)
            return 130
        return 0
    name = command.__module__.rpartition('.')[2]
    main.__doc__ = f'Run ``cocoseg {name}`` and return its exit code.'
    return classmethod(main)
