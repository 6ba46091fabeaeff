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
                 nodata=None, interleave='pixel', executor=None, num_threads=1):
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
        tile_nbytes = blocksize * blocksize * self.shape[2] * self.dtype.itemsize
        self._max_in_flight = max(_IN_FLIGHT_PER_THREAD * num_threads * tile_nbytes,
                                  _LEAST_IN_FLIGHT_NBYTES)
        self._whole = np.zeros(self.levels[0].grid.grid_shape, bool)
        self._parts, self._parents = {}, {}
        self._waiting_nbytes = self._in_flight_nbytes = self._n_running = 0
        self._failed = []
        self._is_closed = False
        self._changed = threading.Condition()

    @property
    def nbytes(self):
        """Bytes in RAM, but for the scratch memory of the threads."""
        with self._changed:
            return (self._spool.nbytes + self._waiting_nbytes + self._in_flight_nbytes
                    + sum(part.nbytes for part in self._parts.values())
                    + sum(failure.nbytes for failure in self._failed))

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
        parts = self._reserve(window)
        while parts:
            try:
                tile = self._copy_part(*parts[0], block)
            except BaseException:
                self._release(parts)
                raise
            index, _, _ = parts.pop(0)
            if tile is not None:
                self._submit([(index, tile)])

    def _copy_part(self, index, in_tile, in_block, block):
        """Copy what a block holds of a tile; return the tile if it is whole now."""
        if in_tile is None:
            return np.array(block[in_block], self.dtype, order='C')
        part = self._parts[index]
        if not part.fill(in_tile, block[in_block], self._changed):
            return None
        with self._changed:
            return self._parts.pop(index).pixels

    def _check(self, window, block):
        if self._is_closed:
            raise ImageClosedError('this writer was closed; it takes no more blocks')
        expected = (*window.shape, self.shape[2])
        if block.shape != expected or block.dtype.newbyteorder('=') != self.dtype:
            raise WindowShapeError(
                f'the block for {window} has shape {block.shape} and dtype {block.dtype}; it '
                f'needs {expected} and {self.dtype}')
        if window.is_empty or not Window.from_shape(self.shape).contains(window):
            raise CoverageError(f'{window} is not inside the image of shape {self.shape}')

    def _reserve(self, window):
        """Note that a window comes: all of it, or nothing if a pixel came before."""
        found = []
        with self._changed:
            for index, in_tile, in_block in self.levels[0].grid.iter_slices(window):
                height, width = self.levels[0].grid.get(index).core.shape
                part = self._parts.get(index)
                if self._whole[index] or part is not None and part.covered[in_tile].any():
                    raise CoverageError(f'{window} meets pixels that were written before; give '
                                        'each pixel once')
                is_whole = (in_tile[0].stop - in_tile[0].start == height
                            and in_tile[1].stop - in_tile[1].start == width)
                found.append((index, None if is_whole else in_tile, in_block, (height, width)))
            for index, in_tile, _, shape in found:
                if in_tile is None:
                    self._whole[index] = True
                else:
                    part = self._parts.get(index)
                    if part is None:
                        part = self._parts[index] = _PartialTile(
                            (*shape, self.shape[2]), self.dtype)
                    part.covered[in_tile] = True
                    self._whole[index] = part.covered.all()
        return [entry[:3] for entry in found]

    def _release(self, parts):
        """Take back the note that parts of a window come."""
        with self._changed:
            for index, in_tile, _ in parts:
                self._whole[index] = False
                if in_tile is not None:
                    self._parts[index].covered[in_tile] = False

    def write_image(self, data):
        """
        Take the whole image at once, without a copy; ``finish`` before it changes.

        Tiles go in the order of a Z: the four below an overview tile one
        behind the other, so that next to no overview has to wait.

        Args:
            data (ndarray): of this encoder's shape and dtype, in any layout.
        """
        self._check(Window.from_shape(self.shape), data)
        self._whole[...] = True
        tile_nbytes = self.blocksize ** 2 * self.shape[2] * self.dtype.itemsize
        per_job = max(1, _LEAST_IN_FLIGHT_NBYTES // 4 // tile_nbytes)
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
        if not tiles:
            return
        nbytes = sum(tile.nbytes for _, tile in tiles)
        with self._changed:
            self._changed.wait_for(lambda: not self._in_flight_nbytes or (
                self._in_flight_nbytes + nbytes <= self._max_in_flight))
            self._in_flight_nbytes += nbytes
            self._n_running += 1
        if self._executor is not None:
            try:
                self._executor.submit(self._run, tiles, nbytes)
                return
            except RuntimeError as ex:
                logger.debug('the threads that compress take no more (%s)', ex)
        self._run(tiles, nbytes)

    def _run(self, tiles, nbytes):
        try:
            for index, tile in tiles:
                self._attempt(partial(self._finish_tile, 0, index, tile), tile.nbytes)
        finally:
            with self._changed:
                self._in_flight_nbytes -= nbytes
                self._n_running -= 1
                self._changed.notify_all()

    def _attempt(self, work, nbytes):
        """Do a piece of work that may be done again; keep it if it fails."""
        if self._is_closed:
            return
        try:
            work()
        except Exception as ex:
            self._keep(ex, work, nbytes)

    def _keep(self, error, work, nbytes):
        with self._changed:
            self._failed.append(_Failure(error, work, nbytes))

    def _finish_tile(self, number, index, tile):
        """Compress a tile and store it, and hand its half to the level above."""
        tile = np.ascontiguousarray(tile, self.dtype)
        level = self.levels[number]
        for plane, payload in enumerate(self._tile_codec.iter_payloads(tile)):
            payload = memoryview(payload)
            count = payload.nbytes
            leader = count.to_bytes(MARK, 'little')
            trailer = bytes(payload[-MARK:]).rjust(MARK, b'\0')
            level.offsets[(plane, *index)] = self._spool.append([leader, payload, trailer])
            level.counts[(plane, *index)] = count
        if number + 1 < len(self.levels):
            self._offer(number + 1, index, self._reduce(tile))

    def _offer(self, number, index, quarter):
        """Give a quarter to a tile of an overview, and finish it if that was the last."""
        (row, column), grid = index, self.levels[number].grid
        parent_index = (row // 2, column // 2)
        with self._changed:
            in_ram = self._waiting_nbytes + quarter.nbytes <= _WAITING_NBYTES
            self._waiting_nbytes += quarter.nbytes if in_ram else 0
        item = quarter if in_ram else _Spooled(
            self._spool.append([quarter.reshape(-1).view(np.uint8)]), quarter.shape)
        with self._changed:
            key = (number, parent_index)
            quarters = self._parents.setdefault(key, {})
            quarters[row % 2, column % 2] = item
            below = self.levels[number - 1].grid.grid_shape
            n_expected = (min(2, below[0] - row // 2 * 2) * min(2, below[1] - column // 2 * 2))
            if len(quarters) < n_expected:
                return
            del self._parents[key]
        shape = (*grid.get(parent_index).core.shape, self.shape[2])
        self._attempt(partial(self._finish_parent, number, parent_index, quarters),
                      int(np.prod(shape)) * self.dtype.itemsize)

    def _finish_parent(self, number, index, quarters):
        """Join the quarters of an overview tile and finish it."""
        half = self.blocksize // 2
        tile = np.empty((*self.levels[number].grid.get(index).core.shape, self.shape[2]),
                        self.dtype)
        for (row, column), item in quarters.items():
            quarter = item
            if isinstance(item, _Spooled):
                nbytes = int(np.prod(item.shape)) * self.dtype.itemsize
                found = self._spool.read(item.offset, nbytes)
                quarter = np.frombuffer(found, self.dtype).reshape(item.shape)
            height, width = quarter.shape[:2]
            tile[row * half:row * half + height, column * half:column * half + width] = quarter
        for item in quarters.values():
            if isinstance(item, _Spooled):
                self._spool.free(item.offset, int(np.prod(item.shape)) * self.dtype.itemsize)
            else:
                with self._changed:
                    self._waiting_nbytes -= item.nbytes
        quarters.clear()
        self._attempt(partial(self._finish_tile, number, index, tile), tile.nbytes)

    # ---- ending --------------------------------------------------------------

    def retry(self):
        """
        Try what failed once more.

        Raises:
            Exception: the first that fails again; everything is kept.
        """
        with self._changed:
            n_failed = len(self._failed)
        for _ in range(n_failed):
            with self._changed:
                if not self._failed:
                    return
                failure = self._failed.pop(0)
            try:
                self._attempt(failure.work, failure.nbytes)
            except BaseException:
                with self._changed:
                    self._failed.append(failure)
                raise
        if n_failed:
            self._raise_failed()

    def _raise_failed(self):
        with self._changed:
            if self._failed:
                raise self._failed[0].error

    def finish(self, fill_missing=False):
        """
        Return when every tile of every level is stored. May be called again.

        Args:
            fill_missing (bool): pixels that did not come are nodata (or NaN).

        Raises:
            CoverageError: if pixels are missing, or there is no value for them.
            Exception: why a tile could not be stored; call again to retry.
        """
        if not self._whole.all():
            self._fill_missing(fill_missing)
        self._wait()
        while True:
            with self._changed:
                is_clean = not self._failed
            if is_clean:
                break
            self.retry()
        for level in self.levels:
            if not level.counts.all():
                raise CoverageError('tiles are missing although all pixels came; this is a '
                                    'defect of the writer')

    def _wait(self):
        with self._changed:
            self._changed.wait_for(lambda: not self._n_running)

    def _fill_missing(self, fill_missing):
        grid = self.levels[0].grid
        missing = [tuple(index) for index in np.argwhere(~self._whole).tolist()]
        fill = self.nodata if self.nodata is not None or self.dtype.kind != 'f' else np.nan
        if not fill_missing or fill is None:
            raise CoverageError(
                f'{len(missing)} of {len(grid)} tiles did not come or have gaps, the first is '
                f'{grid.get(missing[0]).core}; write them'
                + (', or give a nodata value to fill them with' if fill_missing else
                   ', or close with fill_missing=True to have them as nodata'))
        for index in missing:
            part = self._parts.pop(index, None)
            if part is None:
                shape = (*grid.get(index).core.shape, self.shape[2])
                pixels = np.full(shape, fill, self.dtype)
            else:
                pixels = part.pixels
                pixels[~part.covered] = fill
            self._whole[index] = True
            self._submit([(index, pixels)])

    def copy_tiles(self, descriptor):
        """Append all tiles to a file: coarse levels first, each in its order."""
        for level in reversed(self.levels):
            self._spool.copy_to(descriptor, level.iter_pieces())

    def close(self):
        """Stop, and let go of everything. May be called twice."""
        self._is_closed = True
        self._wait()
        self._spool.close()
        with self._changed:
            self._parts, self._parents, self._failed = {}, {}, []
            self._waiting_nbytes = 0


class _PartialTile:
    """A tile of which some pixels came: they, and which."""

    def __init__(self, shape, dtype):
        self.pixels = np.empty(shape, dtype)
        # Promised pixels, and how many of all are still to be copied.
        self.covered = np.zeros(shape[:2], bool)
        self._n_left = self.covered.size
        self.nbytes = self.pixels.nbytes + self.covered.nbytes

    def fill(self, place, part, lock):
        """Copy a part; return True to the one who copied the last."""
        self.pixels[place] = part
        with lock:
            self._n_left -= part.shape[0] * part.shape[1]
            return self._n_left == 0


class _Spooled:
    """A quarter that waits in the spool."""

    def __init__(self, offset, shape):
        self.offset, self.shape = offset, shape


class _Failure:
    """Work that failed, to be done again."""

    def __init__(self, error, work, nbytes):
        self.error, self.work, self.nbytes = error, work, nbytes
