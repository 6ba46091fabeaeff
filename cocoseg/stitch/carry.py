"""
The plan-known engine: a strip of carried sums instead of a canvas.

When all windows are known, lie on rows and columns, come in row-major order
and hold no NaN, most of an image never needs a canvas. The weights add up to
1, so that nothing has to be divided, and each window is finished in one pass
over its data::

            x          x_next     x + w
          y +----------+----------+
            |  final   | to the   |     final   finished pixels, to their block
            |          | window   |     left    columns that the next window in
     y_next +----------+ on the   |             the row shares
            |  carry   | right    |     carry   rows that the next row of windows
      y + h +----------+----------+             shares

What is held is the carry, the left strip, and the blocks that are begun: it
does not depend on the height of the image. The first window that does not fit
(another one, weights of its own, NaN or infinity) ends this, and
:meth:`CarryCanvas.pour_into` hands what there is to the general canvas.
"""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from cocoseg.grid.window import Window
from cocoseg.stitch.lanes import make_spans, strip_shapes


# Windows that are added at once at most: each needs a left strip of its own.
MAX_BATCH = 16
# Numbers that are worth waking another thread, which takes about 0.1 ms.
_LEAST_SHARED = 1 << 20


def _get_narrow(codec):
    """Return a codec if floats of 32 bits hold its codes, else None."""
    return codec if codec is not None and np.dtype(codec.dtype).itemsize <= 2 else None


class CarryValues:
    """A finished block; the counterpart of :class:`~cocoseg.stitch.products.BlockValues`."""

    weights = deviations = None

    def __init__(self, array, n_clipped):
        self._array, self._n_clipped = array, n_clipped

    def compute_mean(self):
        """Return the weighted mean, (h, w, C); only of a canvas without a codec."""
        return self._array

    def encode(self, codec):
        """Return the codes (h, w, C) and how many values were clipped."""
        if self._array.dtype == codec.dtype:
            return self._array, self._n_clipped
        return codec.encode(self._array)

    def release(self):
        """Do nothing: the block belongs to whoever got it."""


class CarryCanvas:
    """
    Sums of one image whose windows come in the order of their plan.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        blocks (BlockGrid): of the image.
        lanes (tuple[list[Lane], list[Lane]]): of :func:`find_lanes`.
        dtype (dtype): accumulator, float32 or float64.
        codec (Quantization | None): blocks become codes, else floats.
        budget (MemoryBudget | None): told of the bytes that are held.
        num_threads (int): threads that share the rows of a window.

    Attributes:
        next_window (Window | None): the only one (clipped) that may come now.
        nbytes (int): bytes held.
        peak_nbytes (int): the most that there were.

    Thread-safety: none; the stitcher holds a lock around every call.
    """

    def __init__(self, shape, blocks, lanes, dtype='float32', codec=None, *, budget=None,
                 num_threads=1):
        # Loads numba, once and not for every window.
        from cocoseg.stitch import carry_kernels
        self._kernels = carry_kernels
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self.nbytes = self.peak_nbytes = 0
        self._blocks = blocks
        self._rows, self._columns = lanes
        self._codec = _get_narrow(codec)
        self._budget = budget
        self._num_threads = num_threads
        self._pool = None if num_threads == 1 else ThreadPoolExecutor(
            num_threads - 1, thread_name_prefix='cocoseg-carry')
        carry, self._left_shape = strip_shapes(self.shape, lanes)
        self._row_spans = make_spans(self._rows, blocks.block[0], self.shape[0])
        self._column_spans = make_spans(self._columns, blocks.block[1], self.shape[1])
        self._column_weights = [np.repeat(lane.weights, self.shape[2]) for lane in self._columns]
        self._code_args = () if self._codec is None else self._codec.kernel_args[:4]
        # What is read, and what is written meanwhile; a left strip per window in work.
        self._carries = [np.empty(carry, self.dtype) for _ in range(2)]
        self._lefts = []
        self._count(sum(array.nbytes for array in self._carries))
        self._make_lefts(2)
        self._row = self._column = 0
        # Block index -> _OpenBlock
        self._open = {}
        self.next_window = self._find_next()

    def _make_lefts(self, number):
        while len(self._lefts) < number:
            self._lefts.append(np.empty(self._left_shape, self.dtype))
            self._count(self._lefts[-1].nbytes)

    @staticmethod
    def forecast_nbytes(shape, blocks, lanes, dtype, codec=None):
        """Return the most bytes that a canvas with these arguments will hold."""
        itemsize = np.dtype(dtype).itemsize
        codec = _get_narrow(codec)
        per_pixel = shape[2] * (itemsize if codec is None else np.dtype(codec.dtype).itemsize)
        height, width = (min(pair) for pair in zip(blocks.block, shape))
        # A row of windows ends one row of blocks from the left, and begins the
        # next; where it meets more, those are begun only where the window is.
        n_rows, n_columns = (
            max(len(span.parts) for span in make_spans(axis, block, size))
            for axis, block, size in zip(lanes, blocks.block, shape))
        n_blocks = blocks.grid_shape[1] + n_columns * (n_rows - 1)
        return (CarryCanvas.strip_nbytes(shape, lanes, dtype)
                + n_blocks * height * width * per_pixel)

    @staticmethod
    def strip_nbytes(shape, lanes, dtype):
        """Return the bytes of the carry and of the left strip."""
        return sum(2 * height * width * np.dtype(dtype).itemsize
                   for height, width in strip_shapes(shape, lanes))

    def _count(self, nbytes):
        self.nbytes += nbytes
        self.peak_nbytes = max(self.peak_nbytes, self.nbytes)
        if self._budget is not None:
            self._budget.charge(nbytes)

    def _find_next(self):
        if self._row == len(self._rows):
            return None
        row, column = self._rows[self._row], self._columns[self._column]
        return Window(row.start, column.start, row.stop, column.stop)

    @property
    def n_clipped(self):
        """Values that were clipped in the blocks that are begun."""
        return sum(block.n_clipped for block in self._open.values())

    def match(self, items):
        """Return how many of the items are the next windows, and can be added at once."""
        if items[0].inside != self.next_window or items[0].weights is not None:
            return 0
        row, first = self._rows[self._row], self._column
        n_windows = 1
        for item, column in zip(items[1:], self._columns[first + 1:first + MAX_BATCH]):
            window = item.inside
            if (item.weights is not None or window.x0 != column.start or window.x1 != column.stop
                    or window.y0 != row.start or window.y1 != row.stop):
                break
            n_windows += 1
        return n_windows

    def add(self, batch):
        """
        Add the next windows.

        Args:
            batch (list[ndarray]): as many as :meth:`match` said, of the canvas
                dtype; see :func:`cocoseg.stitch.canvas.as_planes`.

        Returns:
            int: how many were added; the one after holds NaN or infinity.
        """
        self._make_lefts(len(batch) + 1)
        row_span = self._row_spans[self._row]
        # Before the work is shared out: one block may get rows from two threads.
        for span in self._column_spans[self._column:self._column + len(batch)]:
            for row, _, _, _ in row_span.parts:
                for column, _, _, _ in span.parts:
                    self._open_block((row, column))
        results = self._share_out(batch)
        n_added = min(len(counts) for counts in results)
        for counts in results:
            for clipped in counts[:n_added]:
                for index, n_clipped in clipped:
                    self._open[index].n_clipped += n_clipped
        self._step(n_added)
        return n_added

    def _share_out(self, batch):
        """Add all rows of the windows, some of them in each thread."""
        height = batch[0].shape[1]
        if self._pool is None or len(batch) * batch[0].size < _LEAST_SHARED:
            return [self._add_rows(batch, 0, height)]
        share = -(-height // self._num_threads)
        spans = [(first, min(first + share, height)) for first in range(0, height, share)]
        futures = [self._pool.submit(self._add_rows, batch, *span) for span in spans[1:]]
        return [self._add_rows(batch, *spans[0]), *(future.result() for future in futures)]

    def _open_block(self, index):
        if index not in self._open:
            height, width = self._blocks.get(index).core.shape
            dtype = self.dtype if self._codec is None else self._codec.dtype
            block = self._open[index] = _OpenBlock(
                np.empty((height, width * self.shape[2]), dtype))
            self._count(block.array.nbytes)

    def _add_rows(self, batch, first, last):
        """
        Add rows first to last of each window.

        Returns:
            list[list]: per window (block index, clipped values) pairs; it ends
            before a window that is not finite.
        """
        found = []
        for number, planes in enumerate(batch):
            clipped = self._add_window_rows(planes, self._column + number, *self._lefts[
                number:number + 2], first, last)
            if clipped is None:
                break
            found.append(clipped)
        return found

    def _add_window_rows(self, planes, j, left, left_out, first, last):
        kernels, row, column = self._kernels, self._row_spans[self._row], self._column_spans[j]
        carry, carry_out = self._carries
        inputs = (planes, self.shape[2], self._rows[self._row].weights, self._column_weights[j],
                  left, column.shared, carry)
        start, width, ready = column.start, column.stop - column.start, column.next - column.start
        if self._codec is not None and len(row.parts) <= 2 and len(column.parts) <= 2:
            return self._add_quad(inputs, row, column, left_out, first, last)
        clipped = []
        for block_row, y, y_stop, y_in in row.parts:
            y_in += max(first - y, 0)
            y, y_stop = max(y, first), min(y_stop, last)
            if y >= y_stop:
                continue
            for block_column, x, x_stop, x_in in column.parts:
                block = self._open[block_row, block_column].array
                part = (row.shared, start, y, x, y_stop, x_stop, block, y_in, x_in)
                if self._codec is None:
                    n_clipped = kernels._kernel_carry(*inputs, *part) - 1
                else:
                    n_clipped = kernels._kernel_carry_encode(*inputs, *part, self._code_args)
                if n_clipped < 0:
                    return None
                if n_clipped:
                    clipped.append(((block_row, block_column), n_clipped))
        y = max(first, row.next - row.start)
        if y < last and not kernels._kernel_carry(
                *inputs, row.shared, start, y, 0, last, ready, carry_out,
                y - (row.next - row.start), start):
            return None
        # The carry of these columns is added by the next window, which ends them.
        if ready < width and not kernels._kernel_carry(
                *inputs, 0, start, first, ready, last, width, left_out, first, 0):
            return None
        return clipped

    def _add_quad(self, inputs, row, column, left_out, first, last):
        """Do the same as :meth:`_add_window_rows` in one call, for up to 2 x 2 blocks."""
        indices = [(above[0], beside[0]) for above in (row.parts[0], row.parts[-1])
                   for beside in (column.parts[0], column.parts[-1])]
        counts = self._kernels._kernel_carry_window(
            inputs, row.shared, column.start,
            (first, last, row.parts[0][2], row.next - row.start),
            (column.parts[0][2], column.next - column.start, column.stop - column.start),
            tuple([self._open[index].array for index in indices]),
            (row.parts[0][3], column.parts[0][3]), self._carries[1], left_out, self._code_args)
        if counts[0] < 0:
            return None
        return [pair for pair in zip(indices, counts) if pair[1]]

    def _step(self, n_windows):
        if not n_windows:
            return
        self._lefts[0], self._lefts[n_windows] = self._lefts[n_windows], self._lefts[0]
        self._column += n_windows
        if self._column == len(self._columns):
            self._row, self._column = self._row + 1, 0
            self._carries.reverse()
        self.next_window = self._find_next()

    def take(self, index, is_complete=True):
        """Return the :class:`CarryValues` of a block all of whose windows came."""
        block = self._open.pop(index)
        self._count(-block.array.nbytes)
        shape = self._blocks.get(index).core.shape
        return CarryValues(block.array.reshape(*shape, self.shape[2]), block.n_clipped)

    def close(self):
        """Let go of all memory. May be called twice."""
        self._open.clear()
        self._carries, self._lefts = [], []
        self.next_window = None
        self._count(-self.nbytes)
        if self._pool is not None:
            self._pool.shutdown()

    # ---- leaving -----------------------------------------------------------

    def pour_into(self, canvas):
        """
        Load all that is begun into a general canvas.

        Args:
            canvas (BlockCanvas): empty, of the same image and blocks.
        """
        frame = self._make_frame()
        rows = [index[0] for index in self._open]
        if self.next_window is not None:
            rows.append(frame.y // self._blocks.block[0])
        if not rows:
            return
        bottom = max(lane.stop for lane in self._rows[:self._row + 1])
        window = Window(min(rows) * self._blocks.block[0], 0, bottom, self.shape[1])
        for index, _, _ in self._blocks.iter_parts(window.y0, window.x0, window.y1, window.x1):
            core = self._blocks.get(index).core
            terms = list(self._iter_terms(core))
            if terms and not (index not in self._open and self._is_final(core, frame)):
                canvas.load(index, self._gather(index, core, frame, terms), terms)

    def _make_frame(self):
        if self.next_window is None:
            height = self.shape[0]
            return _Frame(height, 0, height, height, 0, 0)
        row, column = self._row_spans[self._row], self._column_spans[self._column]
        return _Frame(row.start, column.start, row.stop, row.next, row.shared, column.shared)

    @staticmethod
    def _is_final(core, frame):
        return core.y1 <= (frame.y_next if core.x1 <= frame.x else frame.y)

    def _iter_terms(self, core):
        """Yield the weights of the windows that came and touch a block."""
        for i, row in enumerate(self._rows[:self._row + 1]):
            n_columns = len(self._columns) if i < self._row else self._column
            for column in self._columns[:n_columns]:
                common = core.intersect(Window(row.start, column.start, row.stop, column.stop))
                if not common.is_empty:
                    yield (common.y0 - core.y0, common.x0 - core.x0, common.y0 - row.start,
                           common.x0 - column.start, *common.shape, row.weights, column.weights)

    def _gather(self, index, core, frame, terms):
        """Return the sums (h, w, C) of a block: final pixels, carry and left strip."""
        from cocoseg.stitch import kernels
        sums = np.zeros((*core.shape, self.shape[2]), self.dtype)
        block = self._open.get(index)
        if block is not None:
            values = block.array.reshape(sums.shape)
            if self._codec is not None:
                # In float64: the same code must come out of it again.
                values = replace(self._codec, orig_dtype='float64').decode(values)
            plane = np.zeros(core.shape, self.dtype)
            for term in terms:
                kernels._kernel_add_weights(plane, *term)
            for done in (Window(0, 0, frame.y, self.shape[1]),
                         Window(frame.y, 0, frame.y_next, frame.x)):
                part = core.intersect(done)
                if not part.is_empty:
                    inside = part.within(core).slices
                    sums[inside] = values[inside] * plane[inside][..., None]
        left, (carry, carry_out) = self._lefts[0], self._carries
        width = self.shape[1]
        for array, window in (
                (left, Window(frame.y, frame.x, frame.y_stop, frame.x + frame.x_shared)),
                (carry, Window(frame.y, frame.x, frame.y + frame.y_shared, width)),
                (carry_out, Window(frame.y_next, 0, frame.y_stop, frame.x))):
            part = core.intersect(window)
            if not part.is_empty:
                # The strips of rows span the image, the left strip its window.
                origin = window if array is left else Window(window.y0, 0, window.y1, width)
                source = array.reshape(len(array), -1, self.shape[2])
                sums[part.within(core).slices] += source[part.within(origin).slices]
        return sums


@dataclass(frozen=True)
class _Frame:
    """Where the next window lies, and what of it is final; see the module."""

    y: int
    x: int
    y_stop: int
    y_next: int
    y_shared: int
    x_shared: int


class _OpenBlock:
    """A block that is begun: its array (h, w*C), and how many values were clipped."""

    def __init__(self, array):
        self.array, self.n_clipped = array, 0
