"""
The programs whose disk fails: full to the byte, really full, or not writable.

They tell what happened, attempt by attempt; the tests judge it.
"""
import functools
import logging
import os
import resource
import shutil
import warnings
from contextlib import contextmanager, suppress

import numpy as np

from . import mounts
from .checks import ASSETS, MANIFEST, describe_file, find_damaged, find_leftovers, list_assets
from .victims import make_blank_dataset

PAGE = 4096
IMAGE_ID = 1
# More compressed tiles than would wait in RAM.
SHAPE, WINDOW, OVERLAP = (600, 620), 240, 60


def make_grid():
    """Return the windows of the image."""
    from cocoseg import WindowGrid
    return WindowGrid(SHAPE, WINDOW, OVERLAP)


@functools.cache
def make_noise():
    """Return float32 values in [0, 1] that no codec makes smaller."""
    return np.random.default_rng(0).random((*SHAPE, 2), dtype=np.float32)


def make_manager(folder, **options):
    """Return a manager of a new bundle of one image, and its dataset."""
    from cocoseg import CocoStitchingManager
    dset = make_blank_dataset(folder, 1, SHAPE)
    return dset, CocoStitchingManager(dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1),
                                      prob_blocksize=64, **options)


def feed(manager, windows):
    """Add windows; return those that were refused."""
    from cocoseg.errors import AssetWriteError, CanvasError
    refused = []
    for window in windows:
        try:
            manager.accumulate_image(IMAGE_ID, window, make_noise()[window.slices])
        except (AssetWriteError, CanvasError):
            refused.append(window)
    return refused


def describe_error(ex):
    """Return what a test wants to know of an error."""
    return {'kind': type(ex).__name__, 'image_id': getattr(ex, 'image_id', None),
            'path': getattr(ex, 'path', None), 'is_os_error': isinstance(ex, OSError),
            'text': str(ex)}


def attempt(call):
    """Return the description of the error of a call, or None."""
    try:
        call()
    except Exception as ex:
        return describe_error(ex)
    return None


def look(folder, dset=None, is_open=True):
    """Return what is visible in a bundle now, while a manager works there or not."""
    facts = {'visible': [path.name for path in list_assets(folder)],
             'damaged': find_damaged(folder), 'leftovers': find_leftovers(folder, is_open)}
    if dset is not None:
        facts['registered'] = len(dset.imgs[IMAGE_ID]['auxiliary'])
    return facts


def finalize(manager):
    """Write the image, on this thread."""
    manager.finalize_image(IMAGE_ID)


def submit(manager):
    """Write the image, on the queue."""
    manager.submit_finalize_image(IMAGE_ID)
    manager.flush_images()


def close(manager):
    """Write the image as the last thing that the manager does."""
    manager.close()


WAYS = {function.__name__: function for function in (finalize, submit, close)}


def starve(folder, shortage, way, early, declared):
    """
    Write an image while the disk is short; then end the shortage and write it again.

    Args:
        shortage (Callable): returns a context in which the disk fails.
        way (str): of ``WAYS``.
        early (bool): the disk fails from the first window on, not just at the end.
        declared (bool): the windows are declared, so that blocks leave early.

    Returns:
        dict: 'first' (error or None), 'after' (what was visible then), 'again'
        (error or None), 'end' (visible at the end), 'file' (size and checksum).
    """
    dset, manager = make_manager(folder)
    windows = list(make_grid())
    if declared:
        manager.expect_windows(IMAGE_ID, make_grid())
    refused = []
    if early:
        with shortage():
            windows = refused = feed(manager, windows)
    assert feed(manager, windows) == []
    with shortage():
        facts = {'first': attempt(lambda: WAYS[way](manager))}
        facts['after'] = look(folder, dset)
    if facts['first'] and way != 'close':
        facts['again'] = attempt(lambda: WAYS[way](manager))
    facts['close'] = attempt(manager.close)
    facts.update(end=look(folder, dset, is_open=False), n_refused=len(refused),
                 files=[describe_file(path) for path in list_assets(folder)])
    return facts


@contextmanager
def quiet():
    """Keep warnings away from a log that has no room for them."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
    logging.disable(logging.NOTSET)


# ---- a limit for every file ------------------------------------------------

@contextmanager
def limit(nbytes):
    """Let no file grow beyond a size, as on a full disk: writing raises EFBIG."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def starve_at_limits(child, folder, limits, way, early, declared):
    """
    Write an image at each limit.

    Floats are a part of the size of its file; negative limits count from its end.
    """
    with quiet():
        whole = starve(os.path.join(folder, 'whole'), lambda: limit(resource.RLIM_INFINITY),
                       way, early, declared)
        (nbytes, _), = whole['files']
        child.tell('whole', **whole)
        for index, value in enumerate(limits):
            value = _place_limit(value, nbytes)
            child.tell('starved', limit=value, **starve(
                os.path.join(folder, str(index)), lambda: limit(value), way, early, declared))


def _place_limit(value, nbytes):
    """Return a limit in bytes from the begin of a file of that size."""
    value = int(value * nbytes) if isinstance(value, float) else value
    return value if value >= 0 else nbytes + value


def starve_journal(child, folder, cuts):
    """Let the journal's line be cut after each number of bytes."""
    padding = 64 << 10
    for cut in cuts:
        bundle = os.path.join(folder, str(cut))
        dset, manager = make_manager(bundle)
        # The asset is small; only the line about it finds no room.
        manager.accumulate_image(IMAGE_ID, None, 0 * make_noise())
        journal = _find_journal(bundle)
        with open(journal, 'ab') as file:
            file.write(b' ' * (padding - 1 - file.tell()) + b'\n')
        with quiet(), limit(padding + cut):
            facts = {'first': attempt(lambda: finalize(manager)), 'after': look(bundle, dset)}
            facts['nbytes'] = os.path.getsize(journal) - padding
        facts['again'] = attempt(lambda: finalize(manager))
        manager.close()
        fresh, manager = make_manager(bundle, resume=True)
        facts.update(is_done=manager.is_done(IMAGE_ID), end=look(bundle, fresh),
                     n_lines=_count_lines(journal))
        manager.close()
        child.tell('cut', cut=cut, **facts)


def _find_journal(folder):
    """Return where the journal of the only manager is, or will be."""
    from cocoseg.coco.options import AssetOptions
    name = AssetOptions('x|y', short_code='pred', expected_minmax=(0, 1)).journal_name
    return os.path.join(folder, ASSETS, 'pred', name)


def _count_lines(journal):
    with open(journal, 'rb') as file:
        return sum(line.startswith(b'{') and line.endswith(b'}\n') for line in file)


def starve_manifest(child, folder, parts):
    """Save the manifest while there is room for a part of it."""
    dset, manager = make_manager(folder)
    manager.dump()
    fpath = os.path.join(folder, MANIFEST)
    old = describe_file(fpath)
    feed(manager, make_grid())
    manager.finalize_image(IMAGE_ID)
    manager.dump(os.path.join(folder, 'copy.json'))
    nbytes, _ = whole = describe_file(os.path.join(folder, 'copy.json'))
    os.unlink(os.path.join(folder, 'copy.json'))
    for part in parts:
        with quiet(), limit(int(part * nbytes) if part < 1 else nbytes - 1):
            error = attempt(manager.dump)
        child.tell('dumped', part=part, error=error, kept=describe_file(fpath) == old,
                   **look(folder, dset))
    error = attempt(manager.dump)
    child.tell('again', error=error, is_whole=describe_file(fpath) == whole)
    manager.close()


def starve_writer(child, folder, limits):
    """Write a file block by block with each limit; what was refused is given again."""
    from cocoseg import CogWriter
    from cocoseg.errors import AssetWriteError
    codes = (make_noise() * 32767).astype(np.int16)
    os.makedirs(folder)

    def write(name, nbytes):
        """Return the facts of one file."""
        fpath = os.path.join(folder, name)
        writer = CogWriter(fpath, codes.shape, codes.dtype, blocksize=64, nodata=-1)
        left, errors = list(_iter_blocks()), []
        with limit(nbytes):
            for window in left.copy():
                try:
                    writer.write_block(window, codes[window.slices])
                    left.remove(window)
                except AssetWriteError as ex:
                    errors.append(describe_error(ex))
            if not left:
                errors.append(attempt(writer.close))
        names = os.listdir(folder)
        for window in left:
            writer.write_block(window, codes[window.slices])
        return {'errors': errors, 'names': names, 'again': attempt(writer.close),
                'held': writer.nbytes, 'file': describe_file(fpath)}
    (nbytes, _) = whole = write('whole', resource.RLIM_INFINITY)['file']
    child.tell('whole', file=whole)
    os.unlink(os.path.join(folder, 'whole'))
    for index, value in enumerate(limits):
        value = _place_limit(value, nbytes)
        child.tell('written', limit=value, path=os.path.join(folder, str(index)),
                   **write(str(index), value))
        os.unlink(os.path.join(folder, str(index)))


def _iter_blocks():
    """Yield the blocks of the image in an order in which few tiles are whole early."""
    from cocoseg import BlockGrid
    blocks = [block.core for block in BlockGrid(SHAPE, 100)]
    return reversed(blocks)


# ---- a disk that is really full --------------------------------------------

@contextmanager
def ballast(folder, n_free):
    """Fill the disk of a folder, but for some pages."""
    fpath = os.path.join(folder, 'ballast')
    with open(fpath, 'wb') as file:
        # Tiles of before may still be on their way to the disk.
        while (excess := os.statvfs(folder).f_bfree - n_free) > 0:
            with suppress(OSError):
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, excess * PAGE)
    try:
        yield
    finally:
        os.unlink(fpath)


def starve_on_small_disk(child, folder, free_pages, way, early, declared):
    """Write an image on a disk with so many free pages."""
    os.makedirs(folder, exist_ok=True)
    mounts.mount_small(folder, 12 << 20)
    with quiet():
        for n_free in free_pages:
            bundle = os.path.join(folder, str(n_free))
            child.tell('starved', n_free=n_free, **starve(
                bundle, lambda: ballast(folder, n_free), way, early, declared))
            shutil.rmtree(bundle)


# ---- a folder that takes no files ------------------------------------------

def deny_by_mode(child, folder, **options):
    """Take the right to write from the folders, as a user that this binds."""
    if os.geteuid() == 0:
        os.setuid(os.stat(folder).st_uid)
        assert os.geteuid() != 0, 'the folder must not belong to root'

    @contextmanager
    def deny():
        paths = [path for path, _, _ in os.walk(folder)]
        for path in paths:
            os.chmod(path, 0o555)
        try:
            yield
        finally:
            for path in paths:
                os.chmod(path, 0o755)
    _deny(child, folder, deny, **options)


def deny_by_mount(child, folder, **options):
    """Mount the folder read-only."""
    os.makedirs(folder, exist_ok=True)

    @contextmanager
    def deny():
        mounts.lock(folder)
        try:
            yield
        finally:
            mounts.unlock(folder)
    _deny(child, folder, deny, **options)


def _deny(child, folder, deny, early, declared):
    """Try all that writes while the folder takes no files, and then again."""
    bundle = os.path.join(folder, 'bundle')
    os.makedirs(bundle)
    with quiet():
        with deny():
            child.tell('made', error=attempt(lambda: make_manager(bundle)), **look(bundle))
        child.tell('starved', **starve(bundle, deny, 'finalize', early, declared))
        dset, manager = make_manager(bundle, resume=True)
        with deny():
            error = attempt(manager.dump)
            child.tell('dumped', error=error, **look(bundle, dset))
        child.tell('again', error=attempt(manager.dump), is_done=manager.is_done(IMAGE_ID))
        manager.close()


PROGRAMS = (starve_at_limits, starve_journal, starve_manifest, starve_writer,
            starve_on_small_disk, deny_by_mode, deny_by_mount)
