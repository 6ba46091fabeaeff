"""
What every subcommand shares: its options, its messages, and how it ends.
"""
from __future__ import annotations

import logging
import sys

import kwconf

from cocoseg.cli.arguments import read_arguments
from cocoseg.cli.ending import Outputs, Terminated, describe_cut
from cocoseg.cli.progress import show_progress

__all__ = ['CommandConfig', 'WriterConfig', 'run_command', 'say', 'show_progress']

logger = logging.getLogger('cocoseg.cli')

_GROUP = 'options of all commands'


class CommandConfig(kwconf.Config):
    """
    Options of all commands. A subclass has a ``__command__``, and a ``main``.

    Example:
        >>> class HelloConfig(CommandConfig):
        ...     __command__ = 'hello'
        ...     @run_command
        ...     def main(config):
        ...         say('hello')
        >>> code = HelloConfig.main(argv=[])
        hello
        >>> code, HelloConfig.main(argv=['-q'])
        (0, 0)
    """

    # --config reads options from a file, --dump and --dumps write them.
    __special_options__ = True
    # Whether the word behind a flag may be its value.
    __flags_take_words__ = True

    verbose = kwconf.Value(0, isflag='counter', short_alias=['v'], group=_GROUP, help=(
        'also print what is done; twice, or 2, also details'))
    quiet = kwconf.Flag(False, short_alias=['q'], group=_GROUP, help=(
        'print errors only: no progress, no summary'))

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        if '__command__' in vars(cls):
            cls.__prog__ = f'cocoseg {cls.__command__}'

    def list_outputs(self):
        """Return the paths that the command writes."""
        return [] if self.get('dst') is None else [self.dst]

    def can_resume(self):
        """Return True if a run that is cut short is kept, for --resume to go on with."""
        return False

    def describe_finished(self):
        """Return how much of a run that was cut short is kept, or None."""
        return None


class WriterConfig(CommandConfig):
    """Options of the commands that write something."""

    dry_run = kwconf.Flag(False, group=_GROUP, help=(
        'check everything and print what would be done, but write nothing'))


def say(text):
    """
    Print a line of the result on stdout, unless --quiet was given.

    Example:
        >>> say('manifest  out.kwcoco.json')
        manifest  out.kwcoco.json
    """
    if logger.isEnabledFor(logging.WARNING):
        print(text)


def run_command(command):
    """
    Make a subcommand end with one line and an exit code instead of a trace.

    0 is fine, 1 is input or a run that failed, 2 wrong arguments, 130 an
    interrupt, and 143 is SIGTERM. Anything unforeseen keeps its trace.
    """
    # Not functools.wraps: kwconf looks for ``argv`` in this signature.
    def main(cls, argv=None, **kwargs):
        words = list(sys.argv[1:]) if argv is None else argv
        with _Logging() as messages:
            try:
                config = read_arguments(cls, words, kwargs)
            except ValueError as ex:
                logger.error('%s; see cocoseg %s --help', ex, cls.__command__)
                return 2
            except OSError as ex:
                logger.error('%s: %s', ex.strerror, ex.filename)
                return 1
            messages.set_level(config)
            return _run(command, config, words)
    name = command.__module__.rpartition('.')[2]
    main.__doc__ = f'Run ``cocoseg {name}`` and return its exit code.'
    return classmethod(main)


def _run(command, config, words):
    """Run a command; return its exit code."""
    from cocoseg.errors import CocosegError
    outputs = Outputs.look(config)
    try:
        command(config)
    except CocosegError as ex:
        logger.error('%s', ex)
        return 1
    except (FileNotFoundError, IsADirectoryError, PermissionError) as ex:
        logger.error('%s: %s', ex.strerror, ex.filename)
        return 1
    except (KeyboardInterrupt, Terminated) as ex:
        code = getattr(ex, 'code', 130)
        logger.error('%s', describe_cut(config, words, outputs, code))
        return code
    return 0


class _Logging:
    """Send what is logged to stderr, while a command runs."""

    def __enter__(self):
        self._handler = _Handler()
        self._root, self._ours = logging.getLogger(), logging.getLogger('cocoseg')
        self._level = self._ours.level
        self._root.addHandler(self._handler)
        return self

    def set_level(self, config):
        """Print as much as -v and -q ask for."""
        if getattr(config, 'quiet', False):
            level = logging.ERROR
        else:
            level = {0: logging.WARNING, 1: logging.INFO}.get(
                int(getattr(config, 'verbose', 0)), logging.DEBUG)
        self._ours.setLevel(level)
        # Others are not asked to say more, but are heard less.
        self._handler.least = {logging.ERROR: logging.ERROR, logging.DEBUG: logging.DEBUG}.get(
            level, logging.WARNING)

    def __exit__(self, *exc_info):
        self._root.removeHandler(self._handler)
        self._ours.setLevel(self._level)


class _Handler(logging.Handler):
    """Write records to what is stderr at that time: a bar of progress may be in front of it."""

    def __init__(self):
        super().__init__()
        # Of other libraries.
        self.least = logging.WARNING
        self.setFormatter(_Formatter('cocoseg: %(level)s: %(message)s'))

    def emit(self, record):
        """Print one record."""
        if record.name.partition('.')[0] != 'cocoseg' and record.levelno < self.least:
            return
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


class _Formatter(logging.Formatter):
    def format(self, record):
        record.level = record.levelname.lower()
        return super().format(record)
