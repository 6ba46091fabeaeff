"""
Where a block run keeps what it has done, and how it knows its input again.
"""
from __future__ import annotations

import contextlib
import os
import tempfile
import zlib

import numpy as np

from cocoseg.engine.block_store import BlockStore
from cocoseg.errors import OptionError
from cocoseg.io.commit import sweep_temporaries
from cocoseg.io.cropped import CroppedSource


@contextlib.contextmanager
def open_store(dst, run, make_key):
    """
    Open the folder of a run; remove it when all went well.

    It is ``run.workdir``, or a hidden folder beside the output, whose name only
    depends on that of the output: two runs never write one file. An output
    that is no path has a folder of the system for temporary ones.

    Args:
        dst (object): output; a path or anything else.
        run (BlockRun): says whether to resume, and what to keep.
        make_key (Callable[[], dict]): returns what the results of blocks depend
            on. Called if they may be used again, as it may read all of a source.

    Yields:
        BlockStore: which is closed afterwards. After an error it stays if the
        run may be resumed.

    Raises:
        OptionError: to resume without a folder that could be found again.
    """
    is_path = isinstance(dst, (str, os.PathLike))
    if run.resume and run.workdir is None and not is_path:
        raise OptionError('resume=True needs workdir, since the output is no path beside which '
                          'results could be kept')
    folder = run.workdir
    if folder is None and is_path:
        parent, name = os.path.split(os.path.abspath(dst))
        folder = os.path.join(parent, f'.{name}.blocks')
        # What a run that was killed at the very end has left.
        sweep_temporaries(parent)
    if folder is None:
        folder = tempfile.mkdtemp(prefix='cocoseg-blocks-')
    store = BlockStore(folder, make_key() if run.is_resumable else None, run.resume)
    try:
        with store:
            yield store
    except BaseException:
        if not (run.resume or run.keep_tmpdir):
            store.remove()
        raise
    if not run.keep_tmpdir:
        store.remove()


def identify(source):
    """
    Return what tells a source from another, for the key of a run.

    Files are told by size and time of change, arrays by a checksum.

    Args:
        source (BlockSource): any.

    Returns:
        dict: plain values.

    Example:
        >>> from cocoseg.io.strips import Source
        >>> from cocoseg.postprocess.workspace import identify
        >>> one, other = (identify(Source.open(np.full((2, 3), value))) for value in (1, 2))
        >>> one == other, one['shape']
        (False, [2, 3, 1])
    """
    if isinstance(source, CroppedSource):
        return {**identify(source.source), 'part': str(source.window)}
    found = {'name': source.name, 'shape': [int(size) for size in source.shape],
             'dtype': str(source.dtype)}
    path = getattr(source, 'fpath', None)
    if path is not None and os.path.exists(path):
        found['files'] = _summarize_files(path)
    elif getattr(source, 'fpaths', None):
        found['files'] = [_summarize_files(one) for one in source.fpaths]
    elif getattr(source, 'pixels', None) is not None:
        found['crc'] = _compute_crc(source.pixels)
    return found


def _summarize_files(path):
    """Return number, bytes, and latest time of change of a file, or of all in a folder."""
    paths = [path]
    if os.path.isdir(path):
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(path)
                 for name in names]
    stats = [os.stat(one) for one in paths]
    return [len(stats), sum(one.st_size for one in stats), max(one.st_mtime_ns for one in stats)]


def _compute_crc(pixels):
    crc = 0
    for part in pixels:
        crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return crc
