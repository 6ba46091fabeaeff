"""
The journal: one line per finished asset, so that a killed run can go on.

A line is appended (and flushed to the disk) after the asset has its final
name and before the manifest knows it. Dumping a large manifest takes seconds,
appending a line takes none; on resume the lines are played back.
"""
from __future__ import annotations

import json
import logging
import os
import threading
import zlib

from cocoseg.errors import ResumeError

logger = logging.getLogger(__name__)

_VERSION = 1


def compute_checksum(fpath):
    """
    Return the CRC-32 of a file as 8 hex digits.

    Example:
        >>> import ubelt as ub
        >>> fpath = ub.Path.appdir('cocoseg/doctest').ensuredir() / 'checksum.txt'
        >>> fpath.write_text('123456789') and compute_checksum(fpath)
        'cbf43926'
    """
    crc = 0
    with open(fpath, 'rb') as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return f'{crc:08x}'


class Journal:
    """
    An append-only file of finished records of one manager.

    Args:
        fpath (PathLike): the file; made with the first line.
        config (str): hash of all settings that change the bytes of an asset.

    Thread-safety: ``append`` may be called from any thread.

    Example:
        >>> import ubelt as ub
        >>> fpath = ub.Path.appdir('cocoseg/doctest').ensuredir() / 'journal.jsonl'
        >>> journal = Journal(fpath.delete(), config='abc')
        >>> journal.append({'image_id': 1})
        >>> Journal(fpath, config='abc').read()
        [{'image_id': 1}]
    """

    def __init__(self, fpath, config):
        self.fpath = os.fspath(fpath)
        self.config = config
        self._lock = threading.Lock()

    def append(self, record):
        """Add one record; on return it survives a power cut."""
        line = json.dumps({'version': _VERSION, 'config': self.config, 'record': record})
        with self._lock:
            descriptor = os.open(self.fpath, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                # A line cut short by a crash must not swallow this one.
                start = b'' if self._ends_clean() else b'\n'
                payload = start + line.encode() + b'\n'
                written = os.write(descriptor, payload)
                if written != len(payload):
                    raise OSError(28, 'the journal line was cut short', self.fpath)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _ends_clean(self):
        with open(self.fpath, 'rb') as file:
            size = file.seek(0, os.SEEK_END)
            if size == 0:
                return True
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b'\n'

    def read(self):
        """
        Return all complete records, oldest first.

        Raises:
            ResumeError: if a line was written with other settings.
        """
        if not os.path.exists(self.fpath):
            return []
        records = []
        with open(self.fpath, 'r', encoding='utf8', errors='replace') as file:
            for number, line in enumerate(file, 1):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    if line.strip():
                        logger.warning('%s: line %d was cut short, its asset is redone',
                                       self.fpath, number)
                    continue
                if entry.get('version') != _VERSION or entry.get('config') != self.config:
                    raise ResumeError(
                        f'{self.fpath} was written with other settings (hash '
                        f'{entry.get("config")}, now {self.config}); use the same settings, '
                        'another short_code, or resume=False to start afresh')
                records.append(entry['record'])
        return records

    def clear(self):
        """Forget everything. The assets themselves stay."""
        with self._lock:
            if os.path.exists(self.fpath):
                os.unlink(self.fpath)
