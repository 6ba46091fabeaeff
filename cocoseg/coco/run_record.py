"""
The record of a run: how long it took, what it did, and what ran it.

A small JSON file beside the journal, replaced at the end of each run that did
any image. Nobody needs it: a run resumes without it, and :mod:`cocoseg.coco.audit`
does not look at it. It is for people, who read it in a report.
"""
from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timezone

from cocoseg.coco.versions import collect_versions

logger = logging.getLogger(__name__)

_VERSION = 1
_ENDING = '.run.json'
_MAX_BYTES = 2 ** 20  # of a file that can be ours


@dataclass(frozen=True)
class RunRecord:
    """
    What is known of a run that ended well.

    Attributes:
        started, ended (str): ISO 8601, UTC, to the second.
        seconds (float): between them, by a clock that nobody sets.
        images (int): that were done, without those of an earlier run.
        windows (int): of these images.
        px (int): of these images, in the space of the windows.
        peak_rss (int | None): most memory of the process since it began,
            bytes; without that of workers. None: the system does not tell.
        executor (str): who did the images.
        prefetch (int): batches read ahead.
        versions (dict): see :func:`~cocoseg.coco.versions.collect_versions`.
    """

    started: str
    ended: str
    seconds: float
    images: int
    windows: int
    px: int
    peak_rss: int | None
    executor: str
    prefetch: int
    versions: dict = field(default_factory=dict)

    @property
    def px_per_s(self):
        """Pixels per second, or None if it took no time."""
        return self.px / self.seconds if self.seconds > 0 else None


@dataclass(frozen=True)
class RunClock:
    """
    When a run began.

    Attributes:
        began (float): seconds since 1970, UTC.
        ticks (float): seconds of :func:`time.perf_counter`.

    Example:
        >>> from cocoseg.coco.run_record import RunClock
        >>> record = RunClock(0.0, 0.0).stop(images=1, windows=4, px=100)
        >>> record.started, record.images, record.executor
        ('1970-01-01T00:00:00+00:00', 1, 'serial')
    """

    began: float
    ticks: float

    @classmethod
    def start(cls):
        """Return a clock that begins now."""
        return cls(time.time(), time.perf_counter())

    def stop(self, *, images, windows, px, executor='serial', prefetch=0):
        """
        Return the record of a run that ends now.

        Args:
            images, windows, px (int): what was done.
            executor (str | Executor): who did it, as its text.
            prefetch (int): batches read ahead.
        """
        seconds = time.perf_counter() - self.ticks
        return RunRecord(_as_iso(self.began), _as_iso(self.began + seconds), round(seconds, 3),
                         int(images), int(windows), int(px), measure_peak_rss(), str(executor),
                         int(prefetch), collect_versions())


def _as_iso(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec='seconds')


def measure_peak_rss():
    """
    Return the most memory that this process has had so far, in bytes.

    Returns:
        int | None: without that of its workers. None where the system does
        not tell.

    Example:
        >>> from cocoseg.coco.run_record import measure_peak_rss
        >>> assert (measure_peak_rss() or 2 ** 21) > 2 ** 20
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Only macOS counts bytes.
    return int(peak if sys.platform == 'darwin' else peak * 1024)


def get_record_path(journal_fpath):
    """
    Return the path of the record of the run that writes a journal.

    Args:
        journal_fpath (str | PathLike): ``.cocoseg-….jsonl``.

    Example:
        >>> from cocoseg.coco.run_record import get_record_path
        >>> get_record_path('_assets/pred/.cocoseg-water.jsonl')
        '_assets/pred/.cocoseg-water.run.json'
    """
    return os.path.splitext(os.fspath(journal_fpath))[0] + _ENDING


def write_run_record(journal_fpath, record):
    """
    Write the record of a run beside its journal, in place of an older one.

    A run that did no image, as all were done before, leaves the older one. A
    record that cannot be written is a warning: the images are what counts.

    Args:
        journal_fpath (str | PathLike): of the run; its folder exists.
        record (RunRecord): what to write.

    Returns:
        str | None: path of the file, if it was written.

    Example:
        >>> import ubelt as ub
        >>> from cocoseg.coco.run_record import RunClock, read_run_record, write_run_record
        >>> journal = ub.Path.appdir('cocoseg/doctest/run').ensuredir() / '.cocoseg-a.jsonl'
        >>> record = RunClock.start().stop(images=3, windows=12, px=3000)
        >>> fpath = write_run_record(journal, record)
        >>> assert read_run_record(journal) == record
    """
    from cocoseg.io.commit import atomic_write
    if not record.images:
        return None
    fpath = get_record_path(journal_fpath)
    content = {'version': _VERSION, **asdict(record), 'px_per_s': record.px_per_s}
    try:
        with atomic_write(fpath) as temp:
            temp.write_text(json.dumps(content, indent=1) + '\n', encoding='utf8')
    except OSError as ex:
        logger.warning('the record of the run could not be written to %s: %s', fpath, ex)
        return None
    return fpath


def read_run_record(journal_fpath):
    """
    Return the record of the run that wrote a journal.

    Args:
        journal_fpath (str | PathLike): the journal, which need not be there.

    Returns:
        RunRecord | None: None if there is none, or none that can be read.

    Example:
        >>> from cocoseg.coco.run_record import read_run_record
        >>> read_run_record('no_such_folder/.cocoseg-a.jsonl')
    """
    fpath = get_record_path(journal_fpath)
    try:
        if os.path.getsize(fpath) > _MAX_BYTES:
            raise ValueError('it is too large')
        with open(fpath, encoding='utf8') as file:
            return _parse(json.load(file))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as ex:
        logger.warning('%s is no record of a run: %s', fpath, ex)
        return None


def _parse(content):
    """
    Return a record from its JSON; raise ValueError if it is none.

    Example:
        >>> _parse({'version': 1, 'seconds': 'long'})
        Traceback (most recent call last):
        ValueError: started=None is no str
    """
    if not isinstance(content, dict) or content.get('version') != _VERSION:
        raise ValueError(f'it is not of version {_VERSION}')
    values = {item.name: content.get(item.name) for item in fields(RunRecord)}
    kinds = {'started': str, 'ended': str, 'seconds': (int, float), 'images': int,
             'windows': int, 'px': int, 'peak_rss': (int, type(None)), 'executor': str,
             'prefetch': int, 'versions': dict}
    for name, value in values.items():
        if not isinstance(value, kinds[name]) or isinstance(value, bool):
            kind = getattr(kinds[name], '__name__', 'number')
            raise ValueError(f'{name}={value!r} is no {kind}')
    return RunRecord(**values)
