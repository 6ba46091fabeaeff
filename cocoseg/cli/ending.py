"""
How a command ends before its time: Ctrl-C, SIGTERM, and what to do next.
"""
from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import threading
from pathlib import Path

_RESUME = '--resume'


class Terminated(SystemExit):
    """Somebody sent SIGTERM; ends a program with 143, after it has tidied up."""

    def __init__(self):
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def catching_terminate():
    """
    Raise :class:`Terminated` in the main thread at SIGTERM, as Ctrl-C does its own.

    Nothing is changed if somebody else handles that signal, or in another thread.

    Example:
        >>> with catching_terminate():
        ...     pass
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def terminate(number, frame):
        raise Terminated
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Outputs:
    """The outputs of a command as they were before it began."""

    def __init__(self, stamps):
        self._stamps = stamps

    @classmethod
    def look(cls, config):
        """Return the state of what a command is to write."""
        paths = config.list_outputs() if hasattr(config, 'list_outputs') else []
        return cls({path: _stamp(path) for path in paths})

    def describe(self):
        """Return what became of them until now."""
        found = []
        for path, before in self._stamps.items():
            if _stamp(path) != before:
                found.append(f'{path} is written')
            elif before is None:
                found.append(f'nothing of {path} was written')
            else:
                found.append(f'the old {path} is untouched')
        return ', '.join(found) or 'nothing is changed'


def _stamp(path):
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def describe_cut(config, words, outputs, code):
    """
    Return what is told to somebody who stopped a command.

    Args:
        config (CommandConfig): of the command.
        words (Sequence[str]): of its command line.
        outputs (Outputs): before it began.
        code (int): with which it ends.
    """
    cause = 'interrupted' if code == 128 + signal.SIGINT else 'terminated'
    if getattr(config, 'dry_run', False) or not hasattr(config, 'can_resume'):
        return f'{cause}; nothing is changed'
    if isinstance(words, bool) or not config.can_resume():
        return f'{cause}; {config.describe_finished() or outputs.describe()}'
    finished = config.describe_finished()
    return (f'{cause}; {f"{finished}; " if finished else ""}go on with\n'
            f'{make_resume_command(config.__command__, words)}')


def make_resume_command(command, words):
    """
    Return the command that goes on with a run that was cut short.

    Args:
        command (str): name of the subcommand.
        words (Sequence[str]): its arguments.

    Example:
        >>> make_resume_command('predict', ['a b.json', '--dst', 'c.json'])
        "cocoseg predict 'a b.json' --dst c.json --resume"
        >>> make_resume_command('predict', ['--resume', '--', 'a.json'])
        'cocoseg predict --resume -- a.json'
    """
    head, rest = list(words), []
    if '--' in head:
        place = head.index('--')
        head, rest = head[:place], head[place:]
    kept, spelled = [], (_RESUME, '--no-resume')
    while head:
        word = head.pop(0)
        if word.partition('=')[0] not in spelled:
            kept.append(word)
        elif head and head[0].lower() in ('true', 'false', '0', '1'):
            head.pop(0)
    return shlex.join(['cocoseg', command, *kept, _RESUME, *rest])


def list_finished(manifest, short_code):
    """
    Return the ids of images that the journals of a bundle name as finished.

    Args:
        manifest (str): that is written.
        short_code (str): folder of the assets.

    Example:
        >>> list_finished('no/such.kwcoco.json', 'pred')
        set()
    """
    folder = Path(os.path.dirname(os.path.abspath(manifest))) / '_assets' / short_code
    found = set()
    for fpath in (*folder.glob('*.jsonl'), *folder.glob('.*.jsonl')):
        for line in fpath.read_text('utf8', 'replace').splitlines():
            try:
                found.add(json.loads(line)['record']['image_id'])
            except (ValueError, KeyError, TypeError):
                # Cut short: its image is not finished.
                continue
    return found


def describe_images(manifest, short_code):
    """
    Return how many images of a run are finished, in words.

    Example:
        >>> describe_images('no/such.kwcoco.json', 'pred')
        'no image is finished'
    """
    n_images = len(list_finished(manifest, short_code))
    if not n_images:
        return 'no image is finished'
    return '1 image is finished' if n_images == 1 else f'{n_images} images are finished'
