"""
Encode an image that comes in blocks: compressed tiles of all its levels.

::

    block ──▶ tile is whole ──▶ pack, compress ──▶ spool
                   ▲                  │
                   │                  ▼
              parent is whole ◀── half size ──▶ waits for its neighbours

Blocks come in any order and from any thread. Each tile is compressed once, as
soon as it is whole, and gives its half to the tile above it; so overviews
grow with the image and no level is ever held as a whole.
"""
from __future__ import annotations

import logging
import threading
from functools import partial

import numpy as np

from cocoseg.errors import CoverageError, ImageClosedError, WindowShapeError
from cocoseg.grid.window import Window
from cocoseg.io.levels import MARK, Level, iter_z_order
from cocoseg.io.overviews import compute_overview_shapes, reduce_by_two
from cocoseg.io.tile_codec import TileCodec
from cocoseg.io.tile_intake import TileIntake
from cocoseg.io.tile_spool import TileSpool

logger = logging.getLogger(__name__)

# Quarters of overview tiles that wait in RAM; more wait in the spool.
_WAITING_NBYTES = 24 << 20
# Tiles that wait for a thread: enough that none is idle while one is late.
_IN_FLIGHT_PER_THREAD = 2
_LEAST_IN_FLIGHT_NBYTES = 2 << 20


class PyramidEncoder:
    """
    Compress the tiles of an image and of its overviews.

    Satisfies :class:`cocoseg.protocols.BlockSink`. A tile that cannot be
    stored (a full disk, a codec that fails) is kept and tried again by the
    next call; nothing is taken meanwhile, so that memory stays bounded.

    Args:
        shape (tuple[int, int, int]): (H, W, C), px.
        dtype (dtype): of the pixels.
        codec (Codec): checked compression.
        folder (PathLike): of the spool.
        blocksize (int): side of a tile, px.
        overviews (str | None): of :func:`~cocoseg.io.overviews.reduce_by_two`,
            or None for no overviews.
        nodata (int | float | None): value of invalid pixels.
        interleave (str): 'pixel' or 'band'.
        executor (Executor | None): runs the compression, and may be shared;
            None compresses in the thread of the caller.
        num_threads (int): how many threads of it are to be kept busy.
        waiting_nbytes (int | None): bytes in RAM for quarters of overview
            tiles that wait for their neighbours; None is 24 MiB.

    Attributes:
        levels (list[Level]): the full image, then overviews, fine to coarse.

    Thread-safety: all methods may be called from any thread, :meth:`finish`
    and :meth:`close` from one at a time.

    Example:
        >>> from cocoseg.io.codecs import Codec
        >>> from cocoseg.io.pyramid import PyramidEncoder
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        >>>     encoder = PyramidEncoder((100, 64, 1), 'uint8', Codec('NONE'), folder, blocksize=64)
        >>>     encoder.write_block(Window(64, 0, 100, 64), np.ones((36, 64, 1), np.uint8))
        >>>     encoder.write_block(Window(0, 0, 64, 64), np.ones((64, 64, 1), np.uint8))
        >>>     encoder.finish()
        >>>     encoder.close()
        >>> [(level.shape, level.counts.tolist()) for level in encoder.levels]
        [((100, 64), [[[4096], [4096]]]), ((50, 32), [[[4096]]])]
    """

    def __init__(self, shape, dtype, codec, folder, *, blocksize=256, overviews='average',
                 nodata=None, interleave='pixel', executor=None, num_threads=1,
                 waiting_nbytes=None):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.codec, self.blocksize, self.interleave = codec, blocksize, interleave
        self.nodata = nodata
        self._tile_codec = TileCodec(codec, dtype, self.shape[2], blocksize, interleave)
        shapes = [] if overviews is None else compute_overview_shapes(shape, blocksize)
        self.levels = [Level(level_shape, blocksize, self._tile_codec.n_planes)
                       for level_shape in [self.shape[:2], *shapes]]
        self._reduce = partial(reduce_by_two, method=overviews, nodata=nodata)
        self._spool = TileSpool(folder)
        self._executor = executor
        self._tile_nbytes = blocksize * blocksize * self.shape[2] * self.dtype.itemsize
        self._max_in_flight = max(_IN_FLIGHT_PER_THREAD * num_threads * self._tile_nbytes,
                                  _LEAST_IN_FLIGHT_NBYTES)
        self._parents = {}
        self._max_waiting = _WAITING_NBYTES if waiting_nbytes is None else waiting_nbytes
        self._waiting_nbytes = self._n_writers = 0
        # Work that is not done, by id; places of jobs that run, with their bytes.
        self._todo, self._jobs = {}, {}
        self._is_closed = False
        # Reentrant, because a job may end while it is being submitted.
        self._changed = threading.Condition(threading.RLock())
        self._intake = TileIntake(self.levels[0].grid, self.shape[2], self.dtype, self._changed)

    @property
    def nbytes(self):
        """Bytes in RAM, but for the scratch memory of the threads."""
        with self._changed:
            return (self._spool.nbytes + self._waiting_nbytes
                    + self._intake.nbytes
                    + sum(work.nbytes for work in self._todo.values()))

    # ---- taking blocks -------------------------------------------------------

    def write_block(self, window, block):
        """
        Take one block; it is copied.

        Waits while the threads are busy.

        Args:
            window (Window): where it belongs, inside the image.
            block (ndarray): of this encoder's dtype, shape (h, w, C) with
                (h, w) == ``window.shape``.

        Raises:
            WindowShapeError: for another shape or dtype.
            CoverageError: if the window is outside the image, or a pixel of it
                came before.
            ImageClosedError: after :meth:`close`.
            Exception: why an earlier tile could not be stored, as the system
                or the codec reports it; this block was not taken.
        """
        self._check(window, block)
        self.retry()
        with self._changed:
            self._check_open()
            self._n_writers += 1
        try:
            parts = self._intake.reserve(window)
            try:
                while parts:
                    self._take_part(parts, block)
            except BaseException:
                # Whatever it was, an interrupt or too little memory: when the
                # block is given again, it goes on here.
                self._intake.interrupt(window, parts)
                raise
        finally:
            with self._changed:
                self._n_writers -= 1
                self._changed.notify_all()

    def _take_part(self, parts, block):
        """Copy what a block holds of the first tile, and compress that if it is whole."""
        index, in_tile, in_block = parts[0]
        if in_tile is None:
            place = self._admit(self._tile_nbytes)
            try:
                tile = np.array(block[in_block], self.dtype, order='C')
                works = self._register([(index, tile)])
                parts.pop(0)
            except BaseException:
                self._dismiss(place)
                raise
            self._start(works, place)
            return
        tile = self._intake.fill(index, in_tile, block[in_block])
        works = [] if tile is None else self._register([(index, tile)])
        parts.pop(0)
        if works:
            self._intake.forget(index)
            self._start(works, self._admit(tile.nbytes))

    def _check_open(self):
        if self._is_closed:
            raise ImageClosedError('this writer was closed; it takes no more blocks')

    def _check(self, window, block):
        self._check_open()
        expected = (*window.shape, self.shape[2])
        if block.shape != expected or block.dtype.newbyteorder('=') != self.dtype:
            raise WindowShapeError(
                f'the block for {window} has shape {block.shape} and dtype {block.dtype}; it '
                f'needs {expected} and {self.dtype}')
        if window.is_empty or not Window.from_shape(self.shape).contains(window):
            raise CoverageError(f'{window} is not inside the image of shape {self.shape}')

    def write_image(self, data):
        """
        Take the whole image at once, without a copy; ``finish`` before it changes.

        Tiles go in the order of a Z: the four below an overview tile one
        behind the other, so that next to no overview has to wait.

        Args:
            data (ndarray): of this encoder's shape and dtype, in any layout.
        """
        self._check(Window.from_shape(self.shape), data)
        self._intake.mark_all()
        per_job = max(1, _LEAST_IN_FLIGHT_NBYTES // 4 // self._tile_nbytes)
        grid, batch = self.levels[0].grid, []
        for index in iter_z_order(grid.grid_shape):
            batch.append((index, data[grid.get(index).core.slices]))
            if len(batch) >= per_job:
                self._submit(batch)
                batch = []
                self._raise_failed()
        self._submit(batch)

    # ---- running -------------------------------------------------------------

    def _submit(self, tiles):
        """Compress tiles, in the threads if there are any."""
        place = self._admit(sum(tile.nbytes for _, tile in tiles))
        self._start(self._register(tiles), place)

    def _admit(self, nbytes):
        """Wait for a place among the jobs that may run at a time, and take it."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or not self._jobs or (
                sum(self._jobs.values()) + nbytes <= self._max_in_flight))
            self._check_open()
            place = object()
            self._jobs[place] = nbytes
        return place

    def _dismiss(self, place, job=None):
        with self._changed:
            self._jobs.pop(place, None)
            self._changed.notify_all()

    def _register(self, tiles):
        """Put the work of tiles on the list: from now on they cannot be lost."""
        works = [_Work(0, index, tile.nbytes, tile=tile) for index, tile in tiles]
        with self._changed:
            self._todo.update((id(work), work) for work in works)
        return works

    def _start(self, works, place):
        """Do work, in the threads if there are any; then leave the place among the jobs."""
        if self._executor is not None:
            try:
                job = self._executor.submit(self._run, works)
                # Also called for a job that was cancelled.
                job.add_done_callback(partial(self._dismiss, place))
                return
            except RuntimeError as ex:
                logger.debug('the threads that compress take no more (%s)', ex)
            except BaseException:
                self._dismiss(place)
                raise
        try:
            self._run(works)
        finally:
            self._dismiss(place)

    def _run(self, works):
        for work in works:
            self._attempt(work)

    def _attempt(self, work):
        """
        Do a piece of work, and what follows from it.

        It is on the list until it is done: whatever ends it before, even an
        interrupt, it can be done again.

        Returns:
            Exception | None: why it failed.
        """
        while work is not None and not self._is_closed:
            try:
                work = self._do(work)
            except Exception as ex:
                work.error = ex
                return ex
        return None

    def _do(self, work):
        """Compress a tile, store it, hand its half on; return the work that follows."""
        level, tile = self.levels[work.number], work.tile
        if tile is None:
            tile = self._join(work)
        tile = np.ascontiguousarray(tile, self.dtype)
        if not level.counts[(-1, *work.index)]:
            for plane, payload in enumerate(self._tile_codec.iter_payloads(tile)):
                if not level.counts[(plane, *work.index)]:
                    self._store(level, (plane, *work.index), memoryview(payload))
        item = None
        if work.number + 1 < len(self.levels):
            item = self._keep(self._reduce(tile))
        return self._hand_on(work, item)

    def _store(self, level, place, payload):
        leader = payload.nbytes.to_bytes(MARK, 'little')
        trailer = bytes(payload[-MARK:]).rjust(MARK, b'\0')
        level.offsets[place] = self._spool.append([leader, payload, trailer])
        level.counts[place] = payload.nbytes

    def _keep(self, quarter):
        """Return a quarter as it waits: itself, or where it is in the spool."""
        with self._changed:
            if self._waiting_nbytes + quarter.nbytes <= self._max_waiting:
                self._waiting_nbytes += quarter.nbytes
                return quarter
        data = quarter.reshape(-1).view(np.uint8)
        return _Spooled(self._spool.append([data]), quarter.nbytes, quarter.shape)

    def _hand_on(self, work, item):
        """Strike work off, and return that of the overview tile which is whole by it."""
        with self._changed:
            level = self.levels[work.number]
            is_new = self._todo.pop(id(work), None) is not None and not level.is_done[work.index]
            if is_new:
                level.is_done[work.index] = True
                self._forget(work.quarters.values())
            if not is_new or item is None:
                # It was done twice, after an interrupt; or it is the last.
                self._forget([] if item is None else [item])
                return None
            number, (row, column) = work.number + 1, work.index
            key = (number, row // 2, column // 2)
            quarters = self._parents.setdefault(key, {})
            quarters[row % 2, column % 2] = item
            rows, columns = level.grid.grid_shape
            if len(quarters) < min(2, rows - row // 2 * 2) * min(2, columns - column // 2 * 2):
                return None
            del self._parents[key]
            parent = _Work(number, key[1:], quarters=quarters)
            self._todo[id(parent)] = parent
            return parent

    def _forget(self, items):
        """Let quarters go."""
        for item in () if self._is_closed else items:
            if isinstance(item, _Spooled):
                self._spool.free(item.offset, item.nbytes)
            else:
                self._waiting_nbytes -= item.nbytes

    def _join(self, work):
        """Return an overview tile, made of its quarters."""
        half = self.blocksize // 2
        core = self.levels[work.number].grid.get(work.index).core
        tile = np.empty((*core.shape, self.shape[2]), self.dtype)
        for (row, column), item in work.quarters.items():
            quarter = item
            if isinstance(item, _Spooled):
                found = self._spool.read(item.offset, item.nbytes)
                quarter = np.frombuffer(found, self.dtype).reshape(item.shape)
            height, width = quarter.shape[:2]
            tile[row * half:row * half + height, column * half:column * half + width] = quarter
        return tile

    # ---- ending --------------------------------------------------------------

    def retry(self):
        """
        Try what failed once more.

        Raises:
            Exception: the first that fails again; everything is kept.
        """
        with self._changed:
            failed = [work for work in self._todo.values() if work.error is not None]
        for work in failed:
            self._redo(work)

    def _redo(self, work):
        """Do work in this thread; raise if it fails (again), or what follows from it."""
        with self._changed:
            if id(work) not in self._todo:
                # Another thread was faster.
                return
            work.error = None
        error = self._attempt(work)
        if error is not None:
            raise error

    def _raise_failed(self):
        with self._changed:
            for work in self._todo.values():
                if work.error is not None:
                    raise work.error

    def finish(self, fill_missing=False):
        """
        Return when every tile of every level is stored. May be called again.

        Args:
            fill_missing (bool): pixels that did not come are nodata (or NaN).

        Raises:
            CoverageError: if pixels are missing, or there is no value for them.
            Exception: why a tile could not be stored; call again to retry.
        """
        self._wait()
        self._intake.check_interrupted()
        missing = self._intake.list_missing()
        if missing:
            self._fill(missing, fill_missing)
            self._wait()
        while True:
            with self._changed:
                work = next(iter(self._todo.values()), None)
            if work is None:
                break
            self._redo(work)
        for level in self.levels:
            if not level.counts.all():
                raise CoverageError('tiles are missing although all pixels came; this is a '
                                    'defect of the writer')

    def _wait(self):
        """Wait for blocks that are being taken, and for the threads."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._n_writers)

    def _fill(self, missing, fill_missing):
        """Make tiles of which pixels did not come nodata, if that is wanted."""
        grid = self.levels[0].grid
        value = self.nodata if self.nodata is not None or self.dtype.kind != 'f' else np.nan
        if not fill_missing or value is None:
            raise CoverageError(
                f'{len(missing)} of {len(grid)} tiles did not come or have gaps, the first is '
                f'{grid.get(missing[0]).core}; write them'
                + (', or give a nodata value to fill them with' if fill_missing else
                   ', or close with fill_missing=True to have them as nodata'))
        for index in missing:
            # What failed is held; nothing more is made before it is stored.
            self.retry()
            place = self._admit(self._tile_nbytes)
            try:
                works = self._register([(index, self._intake.complete(index, value))])
                self._intake.forget(index)
            except BaseException:
                self._dismiss(place)
                raise
            self._start(works, place)

    def copy_tiles(self, descriptor):
        """Append all tiles to a file: coarse levels first, each in its order."""
        for level in reversed(self.levels):
            self._spool.copy_to(descriptor, level.iter_pieces())

    def close(self):
        """Stop, and let go of everything. May be called twice."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._wait()
        self._spool.close()
        with self._changed:
            self._intake.clear()
            self._parents, self._todo = {}, {}
            self._waiting_nbytes = 0


class _Spooled:
    """A quarter that waits in the spool."""

    def __init__(self, offset, nbytes, shape):
        self.offset, self.nbytes, self.shape = offset, nbytes, shape


class _Work:
    """A tile to be compressed: its pixels, or the quarters that it is made of."""

    def __init__(self, number, index, nbytes=0, *, tile=None, quarters=None):
        self.number, self.index, self.nbytes = number, index, nbytes
        self.tile, self.quarters = tile, {} if quarters is None else quarters
        self.error = None
