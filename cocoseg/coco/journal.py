"""
The journal: one line per finished asset, so that a killed run can go on.

A line is appended (and flushed to the disk) after the asset has its final
name and before the manifest knows it. Dumping a large manifest takes seconds,
appending a line takes none; on resume the lines are played back. One process
at a time writes a journal, see :mod:`cocoseg.coco.checkpoint`.
"""
from __future__ import annotations

import gc
import glob
import json
import logging
import os
import zlib

from cocoseg.coco.checkpoint import share_file
from cocoseg.coco.manifest import list_files
from cocoseg.errors import BundleBusyError, ResumeError
from cocoseg.io.commit import fsync_folder

logger = logging.getLogger(__name__)

_VERSION = 1
# Of managers, and of what makes the assets of images one by one.
_PATTERNS = ('.cocoseg-*.jsonl', 'journal.jsonl')
_REMEDY = 'wait until it ends, use another short_code, or write to another bundle'


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

    It is locked against other processes from :meth:`begin` (or the first
    line) until :meth:`close`, or until nobody refers to it. Within a process,
    journals of one file and one ``config`` are used side by side. One of
    another ``config`` takes the file over from those that are idle, and they
    from it when it is.

    Args:
        fpath (PathLike): the file; made with the first line.
        config (str): hash of all settings that change the bytes of an asset.
        settings (dict[str, str] | None): these settings, to tell which differ.
        is_busy (Callable[[], bool] | None): says whether lines are still to
            come; None is never. Called from any thread.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> import ubelt as ub
        >>> fpath = ub.Path.appdir('cocoseg/doctest').ensuredir() / 'journal.jsonl'
        >>> journal = Journal(fpath.delete(), config='abc')
        >>> journal.append({'image_id': 1})
        >>> Journal(fpath, config='abc').read()
        [{'image_id': 1}]
    """

    def __init__(self, fpath, config, settings=None, is_busy=None):
        self.fpath = os.fspath(fpath)
        self.config = config
        self.settings = dict(settings or {})
        self._is_busy = is_busy
        # Who only reads, or is done, does not keep the lock.
        self._held = None

    # ---- whose it is -------------------------------------------------------

    def begin(self, resume=False):
        """
        Take the file; return what is in it, or clear it.

        It is not cleared while another journal of this process uses it.

        Args:
            resume (bool): take over the records of an earlier run.

        Returns:
            list[dict]: all complete records, oldest first; none if not resumed.

        Raises:
            BundleBusyError: if another process has it, or another journal of
                this process with other settings that is busy.
            ResumeError: if a line was written with other settings.
        """
        shared = share_file(self.fpath)
        with shared.mutex:
            busy = self._join(shared)
            try:
                records = self.read() if resume else []
                if not resume and busy:
                    logger.warning('%s is in use by another manager of this process and is not '
                                   'cleared', self.fpath)
                elif not resume:
                    self.clear()
                self._let_go(self._find_foreign(shared))
            except BaseException:
                self.close()
                raise
        return records

    def ensure(self):
        """
        Raise unless lines may be written now; take the file again if needed.

        Raises:
            BundleBusyError: if somebody else took it meanwhile, and is busy.
                So it is for a process forked off the one that has it.
        """
        shared = share_file(self.fpath)
        with shared.mutex:
            if self in shared.users:
                return
            self._join(shared)
            foreign = self._find_foreign(shared)
            if foreign:
                logger.warning('%s gets lines of two managers with different settings; it cannot '
                               'be resumed', self.fpath)
            self._let_go(foreign)

    def close(self):
        """Let others have the file. May be called twice."""
        share_file(self.fpath).leave(self)
        self._held = None

    def is_busy(self):
        """Return True if lines are still to come."""
        return self._is_busy is not None and bool(self._is_busy())

    def _join(self, shared):
        """Become a user of the file; return True if another one is busy."""
        configs = self._list_busy(shared)
        if configs:
            # Old managers are often dropped without being closed.
            gc.collect()
            configs = self._list_busy(shared)
        if set(configs) - {self.config}:
            raise BundleBusyError(
                f'{self.fpath} is in use by another manager of this process ({os.getpid()}) with '
                'other settings, which has images in work; finish or close that one first, or '
                f'{_REMEDY.partition(", ")[2]}')
        holder = shared.enter(self)
        if holder is not None:
            raise BundleBusyError(f'{self.fpath} is in use by {holder}; {_REMEDY}')
        self._held = shared
        return bool(configs)

    def _list_busy(self, shared):
        """Return the configs of the others that are busy."""
        return [other.config for other in shared.users
                if other is not self and other.is_busy()]

    def _find_foreign(self, shared):
        """Return the users with other settings; none is busy once we have joined."""
        return [other for other in shared.users if other.config != self.config]

    @staticmethod
    def _let_go(others):
        for other in others:
            other.close()

    # ---- what is in it -----------------------------------------------------

    def append(self, record):
        """
        Add one record; on return it survives a power cut.

        Raises:
            BundleBusyError: if somebody else took the file, see :meth:`ensure`.
            OSError: if the line could not be written as a whole.
        """
        line = json.dumps({'version': _VERSION, 'config': self.config, 'settings': self.settings,
                           'record': record})
        shared = share_file(self.fpath)
        with shared.mutex:
            self.ensure()
            is_new = not os.path.exists(self.fpath)
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
            if is_new:
                fsync_folder(os.path.dirname(os.path.abspath(self.fpath)))

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
            ResumeError: if a line was written with other settings; it names
                those that differ.
        """
        if not os.path.exists(self.fpath):
            return []
        records = []
        with open(self.fpath, 'r', encoding='utf8', errors='replace') as file:
            for number, line in enumerate(file, 1):
                entry = _parse(line)
                if entry is not None:
                    self._check(entry)
                    records.append(entry['record'])
                elif line.strip():
                    logger.warning('%s: line %d was cut short, its asset is redone',
                                   self.fpath, number)
        return records

    def _check(self, entry):
        """Raise unless a line was written as ours are."""
        if entry.get('version') != _VERSION:
            raise ResumeError(
                f'{self.fpath} has a line of version {entry.get("version")!r}, and this cocoseg '
                f'reads version {_VERSION}; resume with the cocoseg that wrote it, use another '
                'short_code, or resume=False to start afresh')
        if entry.get('config') != self.config:
            raise ResumeError(
                f'{self.fpath} was written with other settings (hash {entry.get("config")}, now '
                f'{self.config}): {self._describe_change(entry.get("settings"))}; use the same '
                'settings, another short_code, or resume=False to start afresh')

    def _describe_change(self, old):
        """Return which settings differ, with both values."""
        if not isinstance(old, dict):
            return 'which ones is not known, as the journal does not list them'
        new, nothing = self.settings, 'not given'
        changes = [f'{name} was {old.get(name, nothing)}, now {new.get(name, nothing)}'
                   for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
        return ', '.join(changes) or 'none that the journal lists'

    def clear(self):
        """
        Forget everything, durably. The assets themselves stay.

        Raises:
            BundleBusyError: if somebody else took the file, see :meth:`ensure`.
        """
        shared = share_file(self.fpath)
        with shared.mutex:
            self.ensure()
            if os.path.exists(self.fpath):
                os.unlink(self.fpath)
                fsync_folder(os.path.dirname(os.path.abspath(self.fpath)))


def _parse(line):
    """
    Return a line as a dict, None if it is not whole.

    Example:
        >>> _parse('{"record": {}}'), _parse('{"rec'), _parse('5')
        ({'record': {}}, None, None)
    """
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and 'record' in entry else None


# ---- journals of any run ---------------------------------------------------

def list_journals(folder):
    """
    Return the journals that lie in a folder of assets, sorted.

    Args:
        folder (str): of managers, or of what makes assets image by image.

    Example:
        >>> from cocoseg.coco.journal import list_journals
        >>> list_journals('no_such_folder')
        []
    """
    return sorted(path for pattern in _PATTERNS
                  for path in glob.glob(os.path.join(glob.escape(folder), pattern)))


def read_journaled(fpath):
    """
    Return {path: ``nbytes`` and ``checksum``} of the files that a journal tells of.

    Lines that were cut short, or are of another kind, are left out. All files
    of a journal are in its folder, wherever the bundle is now.

    Args:
        fpath (str): the journal.
    """
    folder, records = os.path.dirname(fpath), {}
    with open(fpath, encoding='utf8', errors='replace') as file:
        for line in file:
            try:
                for found in list_files(json.loads(line)['record']):
                    name = os.path.basename(found['asset']['file_name'])
                    records[os.path.join(folder, name)] = {
                        'nbytes': int(found['nbytes']), 'checksum': str(found['checksum'])}
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                continue
    return records
