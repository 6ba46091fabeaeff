"""
Results of blocks in a folder, and the journal of those that are done.

A result is there whole or not at all: it is written under another name, then
renamed, and counts once its line is in the journal. A run that was killed goes
on from there. Nothing is flushed to the disk one by one; a result that did not
get there before the power went is told by its checksum, and made again.
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shutil
import threading
import zlib

import numpy as np

from cocoseg.errors import BundleBusyError, OptionError, ResumeError

try:
    import fcntl
except ImportError:
    fcntl = None

logger = logging.getLogger(__name__)

_JOURNAL = 'blocks.jsonl'
_VERSION = 1
# numpy parses the header of a file as Python. In Python 3.11 that may fail in two threads at
# a time, with a SystemError (AST constructor recursion depth mismatch).
_parsing = threading.Lock()


class BlockFiles:
    """
    The files of block results in a folder.

    Args:
        folder (str): must exist.
        tag (str): part of the names. Runs of different tags do not write each
            other's files.

    Thread-safety: any thread or process may save and load, each block by one
    at a time. Can be pickled.

    Example:
        >>> import tempfile
        >>> from cocoseg.engine.block_store import BlockFiles
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     files = BlockFiles(folder)
        ...     sums = files.save((0, 2), {'labels': np.arange(3)})
        ...     files.load((0, 2), 'labels').tolist(), sums == files.compute_checksums((0, 2), sums)
        ([0, 1, 2], True)
    """

    def __init__(self, folder, tag=''):
        self.folder, self.tag = os.fspath(folder), tag

    def get_path(self, index, name):
        """Return the path of one array of a block."""
        place = '-'.join(map(str, index))
        return os.path.join(self.folder, '.'.join(filter(None, [place, self.tag, name, 'npy'])))

    def save(self, index, arrays):
        """
        Write the arrays of one block.

        Args:
            index (tuple[int, ...]): of the block.
            arrays (dict[str, ndarray]): by name.

        Returns:
            dict[str, int]: CRC-32 of the arrays by name.
        """
        checksums = {}
        for name, array in arrays.items():
            array = np.asarray(array, order='C')
            path = self.get_path(index, name)
            temporary = f'{path}.{secrets.token_hex(4)}.tmp'
            try:
                with open(temporary, 'wb') as file:
                    np.save(file, array, allow_pickle=False)
                os.replace(temporary, path)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary)
                raise
            checksums[name] = _compute_crc(array)
        return checksums

    def load(self, index, name):
        """Return one array of a block, mapped from its file, not to be written to."""
        path = self.get_path(index, name)
        with _parsing:
            try:
                return np.load(path, mmap_mode='r', allow_pickle=False)
            except ValueError:
                # Nothing can be mapped of an array without entries.
                return np.load(path, allow_pickle=False)

    def compute_checksums(self, index, names):
        """Return what :meth:`save` returned, from the files; None if they are no more."""
        try:
            return {name: _compute_crc(self.load(index, name)) for name in names}
        except (OSError, ValueError, EOFError):
            return None


def _compute_crc(array):
    """Return the CRC-32 of the values of a C-contiguous array."""
    return zlib.crc32(array.reshape(-1).data) if array.size else 0


class BlockStore:
    """
    A folder of block results, and which of them are done.

    One run at a time has it, also among processes.

    Args:
        folder (str | PathLike): made if needed; its parent must exist.
        key (dict | None): what the results depend on; plain values for JSON.
            None: nobody will resume from it.
        resume (bool): keep what an earlier run with the same key has done.
            False begins anew.

    Raises:
        ResumeError: if the folder belongs to a run with another key.
        BundleBusyError: if another run has it.
        OptionError: if the folder holds something else.

    Thread-safety: none; by the thread that drives a run. :attr:`files` may be
    used by all.

    Example:
        >>> import tempfile
        >>> from cocoseg.engine.block_store import BlockStore
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     for attempt in range(2):
        ...         with BlockStore(f'{parent}/work', {'bias': 0.5}, resume=True) as store:
        ...             print(sorted(store.done))
        ...             store.note((0, 1), store.files.save((0, 1), {'sum': np.ones(1)}))
        []
        [(0, 1)]
    """

    def __init__(self, folder, key, resume=False):
        self.folder = os.path.abspath(folder)
        self._key = json.loads(json.dumps(key))
        self.done, self._tag = {}, ''
        os.makedirs(self.folder, exist_ok=True)
        self._file = self._open()
        try:
            self._begin(resume)
        except BaseException:
            self.close()
            raise
        self.files = BlockFiles(self.folder, self._tag)

    def _open(self):
        path = os.path.join(self.folder, _JOURNAL)
        others = [name for name in os.listdir(self.folder)]
        if others and not os.path.exists(path):
            raise OptionError(f'the folder {self.folder} holds other files, such as '
                              f'{sorted(others)[0]}; give one of its own, or a new one')
        file = open(path, 'a+', encoding='utf-8')
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as ex:
                file.close()
                raise BundleBusyError(f'another run works in {self.folder}; wait until it ends, or '
                                      'give another workdir') from ex
        return file

    def _begin(self, resume):
        lines = self._read_lines() if resume else []
        if not lines or lines[0].get('key') is None:
            self._clear()
            # A worker of an earlier run may still be at a block, and nobody can stop it: what it
            # saves then, with other settings maybe, is not taken for ours.
            self._tag = secrets.token_hex(4)
            self._write({'version': _VERSION, 'key': self._key, 'tag': self._tag})
            return
        head = lines[0]
        if head.get('version') != _VERSION or head.get('key') != self._key:
            raise ResumeError(
                f'{self.folder} was begun with {_find_differences(head.get("key"), self._key)}; '
                'use the same settings and data, or begin anew with resume=False')
        self._tag = head.get('tag', '')
        # The last line of each block counts.
        for line in lines[1:]:
            self.done[tuple(line['index'])] = line

    def _read_lines(self):
        self._file.seek(0)
        lines, n_good = [], 0
        for line in self._file.read().splitlines(keepends=True):
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                # A kill may cut the last line off.
                break
            n_good += len(line)
            if not line.endswith('\n'):
                n_good = self._end_line(n_good)
        # What is written is ASCII: characters are bytes.
        self._file.truncate(n_good)
        return lines

    def _end_line(self, n_good):
        """Add the end of a last line that lacks nothing else; return the new length."""
        self._file.write('\n')
        self._file.flush()
        return n_good + 1

    def _clear(self):
        for name in os.listdir(self.folder):
            if name != _JOURNAL:
                os.unlink(os.path.join(self.folder, name))
        self._file.truncate(0)

    def _write(self, record):
        self._file.write(json.dumps(record) + '\n')
        self._file.flush()

    def note(self, index, checksums, record=None):
        """
        Count a block as done.

        Args:
            index (tuple[int, ...]): of the block.
            checksums (dict[str, int]): of :meth:`BlockFiles.save`.
            record (object): small, for JSON; for those who resume.
        """
        line = {'index': list(index), 'checksums': checksums, 'record': record}
        self._write(line)
        self.done[tuple(index)] = line

    def is_done(self, index):
        """Return True if a block is done, and its files still hold what they did."""
        line = self.done.get(tuple(index))
        if line is None:
            return False
        if self.files.compute_checksums(index, line['checksums']) == line['checksums']:
            return True
        logger.warning('the files of block %s in %s are not what they were; it is done again',
                       tuple(index), self.folder)
        del self.done[tuple(index)]
        return False

    def close(self):
        """Let go of the folder; its files stay. May be called again."""
        if not self._file.closed:
            # What was written may not reach the disk, and is then told as an error.
            try:
                self._file.flush()
            finally:
                if fcntl is not None:
                    # Closing alone would leave it to a child that is being forked just now.
                    fcntl.flock(self._file, fcntl.LOCK_UN)
                self._file.close()

    def remove(self):
        """Remove the folder."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, exc_type, exc, traceback):
        self.close()


def _find_differences(old, new):
    """Return which entries of two keys differ, for people."""
    if not isinstance(old, dict):
        return 'another kind of run'
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return ', '.join(f'{name}={old.get(name)!r} instead of {new.get(name)!r}' for name in names)
