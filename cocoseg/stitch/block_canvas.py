"""
The block canvas: only the blocks that are in work, and a bound on their bytes.

Blocks are those of the sink, so that a finished one leaves as a whole. They
are made when a window first touches them and are gone when they are taken;
beyond the memory budget, those that were not touched for longest wait in a
file without a name.
"""
from __future__ import annotations

import errno
import tempfile
from collections import OrderedDict

import numpy as np

from cocoseg.errors import CanvasError
from cocoseg.grid.window import Window
from cocoseg.stitch.canvas import check_dtype, prepare_input


class BlockCanvas:
    """
    Sums and weights of one image, block by block.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        blocks (BlockGrid): of the image.
        dtype (str | dtype): 'float32' or 'float64'.
        memory_budget (int | None): bytes that blocks may hold in RAM; those
            of one window are always there. None is no bound.
        spill_dir (PathLike | None): folder for what is beyond; None is the
            system's temporary folder.

    Attributes:
        nbytes (int): bytes in RAM, also of blocks that were taken.
        peak_nbytes (int): the most that there were.

    Thread-safety: none; the stitcher holds a lock around every call.

    Example:
        >>> from cocoseg import BlockGrid
        >>> blocks = BlockGrid((4, 8), 4)
        >>> canvas = BlockCanvas((4, 8, 1), blocks)
        >>> ones = np.ones(2, 'f4')
        >>> canvas.add(0, 3, np.ones((2, 2, 1), 'f4'), (ones, ones))
        (4, 0)
        >>> sums, weights = canvas.take(blocks.get((0, 1)))
        >>> float(weights.sum()), canvas.n_live
        (2.0, 1)
    """

    def __init__(self, shape, blocks, dtype='float32', memory_budget=None, spill_dir=None):
        self.shape = tuple(shape)
        self.dtype = check_dtype(dtype)
        self.nbytes = 0
        self.peak_nbytes = 0
        self._blocks = blocks
        self._budget = memory_budget
        # Block index -> (sums, weights), least recently touched first.
        self._live = OrderedDict()
        self._pool = []
        self._store = _SpillFile(self._slot_nbytes, spill_dir)

    @property
    def _slot_nbytes(self):
        height, width = self._blocks.block
        return height * width * (self.shape[2] + 1) * self.dtype.itemsize

    @property
    def n_live(self):
        """Number of blocks in RAM."""
        return len(self._live)

    @property
    def weights(self):
        """Weight plane, (H, W), a new array; 0 where a block was taken."""
        return self.read(Window.from_shape(self.shape))[1]

    def add(self, y0, x0, data, weights):
        """Add one window; see :meth:`cocoseg.stitch.canvas.Canvas.add`."""
        from cocoseg.stitch import kernels
        height, width, _ = data.shape
        flat, rows, columns, expanded = prepare_input(data, weights, self.dtype)
        added = invalid = 0
        # All blocks are here before the first is changed: an error of the spill
        # file leaves the window out as a whole.
        parts = [(*part, self._touch(part[0])) for part in
                 self._iter_parts(y0, x0, y0 + height, x0 + width)]
        self._keep_budget(len(parts))
        for _, (ya, xa, yb, xb), (by, bx), (sums, plane) in parts:
            lines, dx = slice(ya - y0, yb - y0), xa - x0
            if expanded is None:
                counts = kernels._kernel_add(
                    sums, plane, ya - by, xa - bx, flat[lines], dx, rows[lines],
                    columns[dx:dx + xb - xa])
            else:
                counts = kernels._kernel_add_dense(
                    sums, plane, ya - by, xa - bx, flat[lines], dx, xb - xa, rows[lines],
                    expanded[lines])
            added, invalid = added + counts[0], invalid + counts[1]
        return added, invalid

    def _iter_parts(self, y0, x0, y1, x1):
        """
        Yield the blocks that a rectangle touches.

        As (index, the common part (y0, x0, y1, x1), origin of the block); plain
        numbers, because this runs for every window.
        """
        height, width = self._blocks.block
        for row in range(y0 // height, -(-y1 // height)):
            by = row * height
            ya, yb = max(y0, by), min(y1, by + height)
            for column in range(x0 // width, -(-x1 // width)):
                bx = column * width
                yield ((row, column), (ya, max(x0, bx), yb, min(x1, bx + width)), (by, bx))

    def _touch(self, index):
        """Return the arrays of a block, made or fetched if they are not in RAM."""
        arrays = self._live.get(index)
        if arrays is not None:
            self._live.move_to_end(index)
            return arrays
        arrays = self._make(self._blocks.get(index).core.shape)
        self._store.fetch(index, arrays)
        self._live[index] = arrays
        return arrays

    def _make(self, shape):
        """Return zeroed arrays for a block, used ones where they fit."""
        height, width = shape
        shapes = (height, width * self.shape[2]), (height, width)
        for position, arrays in enumerate(self._pool):
            if tuple(array.shape for array in arrays) == shapes:
                del self._pool[position]
                for array in arrays:
                    array.fill(0)
                return arrays
        arrays = tuple(np.zeros(shape, self.dtype) for shape in shapes)
        self.nbytes += _nbytes(arrays)
        self.peak_nbytes = max(self.peak_nbytes, self.nbytes)
        return arrays

    def _keep_budget(self, n_used=0):
        """Spill until the budget is kept, but not the blocks touched last."""
        if self._budget is None:
            return
        while self._pool and self.nbytes > self._budget:
            self.nbytes -= _nbytes(self._pool.pop())
        while len(self._live) > n_used and self.nbytes > self._budget:
            index, arrays = next(iter(self._live.items()))
            self._store.put(index, arrays)
            del self._live[index]
            self.nbytes -= _nbytes(arrays)

    def take(self, block):
        """
        Take a block out, so that nothing else changes it.

        Returns:
            tuple[ndarray, ndarray]: sums (h, w, C) and weights (h, w); zeros
            if no window ever touched it.
        """
        sums, weights = self._touch(block.index)
        del self._live[block.index]
        return sums.reshape(*block.core.shape, self.shape[2]), weights

    def give_back(self, block, arrays):
        """Put back what :meth:`take` gave."""
        sums, weights = arrays
        self._live[block.index] = (sums.reshape(weights.shape[0], -1), weights)

    def recycle(self, arrays):
        """Use the memory of a block that is done for the next one."""
        sums, weights = arrays
        self._pool.append((sums.reshape(weights.shape[0], -1), weights))
        self._keep_budget()

    def read(self, window):
        """Return copies of (sums (h, w, C), weights (h, w)) of a window."""
        sums = np.zeros((*window.shape, self.shape[2]), self.dtype)
        weights = np.zeros(window.shape, self.dtype)
        for index, (ya, xa, yb, xb), (by, bx) in self._iter_parts(
                window.y0, window.x0, window.y1, window.x1):
            if index not in self._live and index not in self._store:
                continue
            block_sums, block_weights = self._touch(index)
            self._keep_budget(1)
            source = (slice(ya - by, yb - by), slice(xa - bx, xb - bx))
            target = (slice(ya - window.y0, yb - window.y0), slice(xa - window.x0, xb - window.x0))
            sums[target] = block_sums.reshape(*block_weights.shape, self.shape[2])[source]
            weights[target] = block_weights[source]
        return sums, weights

    def close(self):
        """Let go of all memory and of the spill file. May be called twice."""
        self._live.clear()
        self._pool.clear()
        self.nbytes = 0
        self._store.close()


def _nbytes(arrays):
    return sum(array.nbytes for array in arrays)


class _SpillFile:
    """Slots of one size in a file without a name, made with the first block."""

    def __init__(self, slot_nbytes, folder):
        self._slot_nbytes = slot_nbytes
        self._folder = folder
        self._file = None
        self._slots = {}
        self._free = []
        self._n_slots = 0

    def __contains__(self, index):
        return index in self._slots

    def put(self, index, arrays):
        """Write the arrays of a block."""
        slot = self._free.pop() if self._free else self._n_slots
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, prefix='cocoseg-spill-')
            self._file.seek(slot * self._slot_nbytes)
            for array in arrays:
                self._file.write(array)
            self._file.flush()
        except OSError as ex:
            self._free.append(slot)
            self._n_slots = max(self._n_slots, slot + 1)
            raise CanvasError(ex.errno or errno.EIO, f'cannot spill a block: {ex.strerror}; free '
                              'space, choose another spill_dir, or give a larger '
                              'memory_budget') from ex
        self._n_slots = max(self._n_slots, slot + 1)
        self._slots[index] = slot

    def fetch(self, index, arrays):
        """Read a block back into arrays and free its slot; nothing if it is not here."""
        if index not in self._slots:
            return
        slot = self._slots[index]
        self._file.seek(slot * self._slot_nbytes)
        for array in arrays:
            if self._file.readinto(memoryview(array).cast('B')) != array.nbytes:
                raise CanvasError(errno.EIO, 'the spill file of the canvas was cut short')
        del self._slots[index]
        self._free.append(slot)

    def close(self):
        """Let the file vanish."""
        if self._file is not None:
            self._file.close()
        self._slots.clear()
