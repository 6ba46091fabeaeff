"""
The canvas: weighted sums and weights of one image, block by block.

It is the only owner of the big arrays. Blocks are made when a window first
touches them and leave as a whole when they are final, so that memory follows
the windows in flight and not the image. It does no bookkeeping of windows:
:mod:`cocoseg.stitch.soft` decides what to add and when a block is final.

Most windows have separable weights and no NaN. Such a window is a *term*: its
weights are noted, and added up only when the block is finished, in cache and
once, instead of in memory and for every window. A window with NaN, or with
weights per pixel, settles the terms of its block into a weight plane first.
The sums and weights are the same to the last bit; where the terms of a block
add up to 1 by their plan, the division is left out.
"""
from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cocoseg.errors import CanvasError, OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.stitch.arena import Arena, FileArena, SpillFile
from cocoseg.stitch.intake import as_planes, expand_weights
from cocoseg.stitch.products import BlockValues

_DTYPES = ('float32', 'float64')
NAN_POLICIES = ('pixel', 'band')
# A block that more windows touch than this is settled: a plane is cheaper than
# so many terms.
_MAX_TERMS = 32
# Numbers that are worth waking another thread, which takes about 0.1 ms.
_LEAST_SHARED = 1 << 20


def check_dtype(dtype):
    """
    Return the accumulator dtype as a numpy dtype.

    Raises:
        OptionError: for anything but float32 or float64. float16 saturates
            (3000 ones sum to 2048), integers cannot hold a weighted mean.

    Example:
        >>> check_dtype('float32')
        dtype('float32')
    """
    try:
        # numpy would read None as float64.
        found = None if dtype is None else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.name not in _DTYPES:
        raise OptionError(f'dtype={dtype} cannot accumulate; use one of {_DTYPES}')
    return found


def check_nan_policy(nan_policy):
    """
    Raise OptionError unless it is known.

    Example:
        >>> check_nan_policy('pixel')
    """
    if nan_policy not in NAN_POLICIES:
        raise OptionError(f'nan_policy={nan_policy!r} is unknown; use one of {NAN_POLICIES}')


def compute_nbytes(shape, dtype='float32'):
    """
    Return the bytes that a canvas over a whole (H, W, C) image holds at most.

    Example:
        >>> compute_nbytes((10, 20, 4))     # 4 sums and 1 weight, 4 bytes each
        4000
    """
    height, width, n_bands = shape
    return height * width * (n_bands + 1) * np.dtype(dtype).itemsize


class _Block:
    """The arrays of one block, and the weights that are not in them yet."""

    __slots__ = ('shape', 'sums', 'plane', 'deviations', 'slots', 'terms', 'has_plane')

    def __init__(self, shape):
        self.shape = shape
        self.sums = self.plane = self.deviations = None
        self.has_plane = False
        self.slots, self.terms = [], []

    def drop_arrays(self):
        """Forget the arrays, but not whether there was a plane."""
        self.sums = self.plane = self.deviations = None
        self.slots = []

    @property
    def arrays(self):
        return [array for array in (self.sums, self.plane, self.deviations) if array is not None]


class CanvasValues(BlockValues):
    """Values of a block that was taken out of a canvas, whose memory it returns to."""

    def __init__(self, canvas, block, is_unity):
        height, width = block.shape
        plane = None
        if block.plane is not None or not is_unity:
            plane = canvas.compute_plane(block)
            plane = plane.reshape(height, width, -1) if canvas.per_band else plane
        super().__init__(block.sums.reshape(height, width, -1), plane,
                         None if block.deviations is None
                         else block.deviations.reshape(height, width, -1))
        self._canvas, self._block = canvas, block

    def release(self):
        """Give the memory back to the canvas."""
        self._canvas.release(self._block)


class BlockCanvas:
    """
    Sums and weights of one image.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        blocks (BlockGrid | None): of the image; None is one block, the image.
        dtype (str | dtype): 'float32' or 'float64'.
        nan_policy (str): 'pixel': a pixel that is not finite in one band gets
            nothing in any; 'band': the other bands count.
        deviations (bool): also accumulate the spread between windows.
        memmap (None | bool | PathLike): False or None for RAM; True for files
            in the system's temporary folder; or the folder to use.
        budget (MemoryBudget | None): what is beyond is spilled.
        num_threads (int): threads that share the blocks of a window.
        is_unity (bool): separable weights add up to 1 where all windows came.
        lock (RLock | None): of the owner, held around every call.

    Raises:
        OptionError: for another dtype or policy.

    Thread-safety: none; the owner holds its lock around every call. Values
    that were taken are free of it until they are released.

    Example:
        >>> from cocoseg import BlockGrid
        >>> canvas = BlockCanvas((4, 8, 1), BlockGrid((4, 8), 4))
        >>> ones = np.ones(2, 'f4')
        >>> canvas.add(0, 3, np.ones((2, 2, 1), 'f4'), (ones, ones))
        (4, 0)
        >>> values = canvas.take((0, 1))
        >>> float(values.weights.sum()), canvas.n_live
        (2.0, 1)
    """

    def __init__(self, shape, blocks=None, dtype='float32', *, nan_policy='pixel',
                 deviations=False, memmap=None, budget=None, num_threads=1, is_unity=False,
                 lock=None):
        # Loads numba, once and not for every window.
        from cocoseg.stitch import kernels
        check_nan_policy(nan_policy)
        self._kernels = kernels
        self.shape = tuple(shape)
        self.dtype = check_dtype(dtype)
        self.per_band = nan_policy == 'band' and self.shape[2] > 1
        self.lock = threading.RLock() if lock is None else lock
        self.peak_nbytes = 0
        self._blocks = blocks or BlockGrid(self.shape[:2], self.shape[:2])
        self._has_deviations = deviations
        self._is_unity = is_unity
        self._memmap = memmap if memmap is not None and memmap is not False else None
        self._budget, self._charged = budget, 0
        self._live, self._spilled = {}, {}
        self._pool = None if num_threads == 1 else ThreadPoolExecutor(
            num_threads - 1, thread_name_prefix='cocoseg-canvas')
        height, width = (min(pair) for pair in zip(self._blocks.block, self.shape))
        n_pixels = height * width
        n_bands = self.shape[2]
        self._sums_arena = self._make_arena(n_pixels * n_bands)
        self._plane_arena = self._make_arena(n_pixels * (n_bands if self.per_band else 1))
        self._deviations_arena = self._make_arena(n_pixels * n_bands)
        self._store = SpillFile(n_pixels * 3 * n_bands * self.dtype.itemsize,
                                None if budget is None else budget.spill_dir)

    def _make_arena(self, size):
        if self._memmap is not None:
            folder = None if self._memmap is True else os.fspath(self._memmap)
            return FileArena(size, self.dtype, folder)
        return Arena(size, self.dtype, len(self._blocks), grouped=self._budget is None)

    @property
    def _arenas(self):
        return self._sums_arena, self._plane_arena, self._deviations_arena

    @property
    def nbytes(self):
        """Bytes held, also by blocks that were taken and not yet released."""
        return sum(arena.nbytes for arena in self._arenas)

    @property
    def n_live(self):
        """Number of blocks in RAM."""
        return len(self._live)

    @property
    def weights(self):
        """Weight plane, (H, W) or (H, W, C), a new array; 0 where a block was taken."""
        return self.read(Window.from_shape(self.shape)).weights

    # ---- adding ------------------------------------------------------------

    def add(self, y0, x0, data, weights):
        """
        Add one window that lies inside the image, to all its blocks or to none.

        Args:
            y0 (int): first row. x0 (int): first column, px.
            data (ndarray): any real dtype, shape (h, w, C). Never modified.
            weights (tuple[ndarray, ndarray] | ndarray): separable (wy, wx) of
                shapes (h,) and (w,), which must not change until the end, or
                one per pixel, shape (h, w).

        Returns:
            tuple[int, int]: pixels added, and pixels skipped as invalid.

        Raises:
            CanvasError: if there is no room; the window was left out then.
        """
        height, width, _ = data.shape
        planes = as_planes(data, self.dtype)
        if isinstance(weights, tuple):
            rows, columns = weights
            factors = (np.ascontiguousarray(rows, self.dtype),
                       np.ascontiguousarray(columns, self.dtype))
        else:
            # Read-only ones stay the same array, which is expanded once.
            factors = np.ascontiguousarray(weights, self.dtype)
        expanded = (None if self.per_band or type(factors) is tuple
                    else expand_weights(factors, self.shape[2]))
        parts = list(self._blocks.iter_parts(y0, x0, y0 + height, x0 + width))
        is_term = (type(factors) is tuple and not self._has_deviations
                   and self._kernels._kernel_all_finite(planes))
        # All the memory is here before the first block is changed: without room,
        # the window is left out as a whole.
        tasks = []
        for index, (ya, xa, yb, xb), (by, bx) in parts:
            block = self._touch(index)
            if block.plane is not None or not is_term or len(block.terms) >= _MAX_TERMS:
                self._settle(block)
            tasks.append((block, planes, factors, expanded, ya - by, xa - bx, ya - y0, xa - x0,
                          yb - ya, xb - xa))
        if self._budget is not None:
            self._budget.keep(self, {part[0] for part in parts})
        if self._pool is None or len(tasks) == 1 or data.size < _LEAST_SHARED:
            invalid = 0
            for task in tasks:
                invalid += self._add_part(*task)
        else:
            futures = [self._pool.submit(self._add_part, *task) for task in tasks[1:]]
            invalid = self._add_part(*tasks[0]) + sum(future.result() for future in futures)
        return height * width - invalid, invalid

    def _add_part(self, block, planes, factors, expanded, y, x, dy, dx, height, width):
        """Add (height, width) px at (dy, dx) of a window at (y, x) of a block."""
        kernels, place = self._kernels, (y, x, planes, dy, dx, height, width)
        is_separable = type(factors) is tuple
        if block.plane is None:
            kernels._kernel_add_sums(block.sums, *place, *factors)
            block.terms.append((y, x, dy, dx, height, width, *factors))
            return 0
        if self._has_deviations:
            self._add_deviations(block, place, factors)
        if is_separable and not self.per_band:
            return kernels._kernel_add(block.sums, block.plane, *place, *factors)
        if self.per_band:
            dense = factors[0][:, None] * factors[1] if is_separable else factors
            return kernels._kernel_add_bands(block.sums, block.plane, *place, dense)
        return kernels._kernel_add_dense(block.sums, block.plane, *place, factors, expanded)

    @staticmethod
    def _add_deviations(block, place, factors):
        """Add to the spread between windows; before sums and weights change."""
        from cocoseg.stitch import layer_kernels
        if type(factors) is tuple:
            layer_kernels._kernel_add_deviation(
                block.deviations, block.sums, block.plane, *place, *factors)
        else:
            layer_kernels._kernel_add_deviation_dense(
                block.deviations, block.sums, block.plane, *place, factors)

    # ---- blocks ------------------------------------------------------------

    def _touch(self, index):
        """Return a block, made or fetched if it is not in RAM."""
        block = self._live.get(index)
        if block is None:
            block = self._spilled.get(index)
            if block is None:
                block = _Block(self._blocks.get(index).core.shape)
            self._fill(index, block)
            self._live[index] = block
            self._spilled.pop(index, None)
        if self._budget is not None:
            self._budget.touch(self, index)
        return block

    def _fill(self, index, block):
        """Give a block its arrays, zeroed or as they were spilled."""
        try:
            block.sums = self._take(self._sums_arena, block)
            if self._has_deviations:
                block.deviations = self._take(self._deviations_arena, block)
            # In a file, room for the plane is reserved now: later is too late for an error.
            if block.has_plane or self._memmap is not None or self._has_deviations:
                self._add_plane(block)
            if index in self._store:
                self._store.fetch(index, block.arrays)
        except BaseException:
            self.release(block)
            raise
        self._count_bytes()

    def _add_plane(self, block):
        block.plane = self._take(self._plane_arena, block)
        block.has_plane = True

    def _take(self, arena, block):
        height, width = block.shape
        try:
            slot = arena.take()
        except MemoryError as ex:
            raise CanvasError(errno.ENOMEM, f'no memory for a block of {block.shape} px of an '
                              f'image of {self.shape}: {ex}; use memmap, or a '
                              'memory_budget') from ex
        block.slots.append((arena, slot))
        n_bands = 1 if arena is self._plane_arena and not self.per_band else self.shape[2]
        return slot[:height * width * n_bands].reshape(height, width * n_bands)

    def _count_bytes(self):
        nbytes = self.nbytes
        self.peak_nbytes = max(self.peak_nbytes, nbytes)
        if self._budget is not None:
            self._budget.charge(nbytes - self._charged)
        self._charged = nbytes

    def _settle(self, block):
        """Add up the terms of a block in its weight plane."""
        if block.plane is None:
            self._add_plane(block)
            self._count_bytes()
        self._add_terms(block, block.plane)
        block.terms.clear()

    def _add_terms(self, block, plane):
        if not block.terms:
            return
        target = np.zeros(block.shape, self.dtype) if self.per_band else plane
        for term in block.terms:
            self._kernels._kernel_add_weights(target, *term)
        if self.per_band:
            plane += np.repeat(target, self.shape[2], axis=1)

    def compute_plane(self, block):
        """Return the weights of a block, (h, w) or (h, w*C); of a taken one, lock-free."""
        if block.plane is not None:
            self._add_terms(block, block.plane)
            block.terms.clear()
            return block.plane
        plane = np.zeros((block.shape[0], block.shape[1] * (self.shape[2] if self.per_band else 1)),
                         self.dtype)
        self._add_terms(block, plane)
        return plane

    def spill(self, index):
        """Write a block to the file and free its memory; return False if it is not here."""
        block = self._live.get(index)
        if block is None:
            return False
        self._store.put(index, block.arrays)
        del self._live[index]
        self._spilled[index] = block
        self._budget.forget(self, index)
        self.release(block)
        return True

    def take(self, index, is_complete=False):
        """
        Take a block out, so that nothing else changes it.

        Args:
            index (tuple[int, int]): of the block.
            is_complete (bool): all its windows came.

        Returns:
            CanvasValues: zeros if no window ever touched it. To be released.
        """
        block = self._touch(index)
        if self._budget is not None:
            self._budget.keep(self, {index})
            self._budget.forget(self, index)
        del self._live[index]
        return CanvasValues(self, block, is_complete and self._is_unity)

    def release(self, block):
        """Use the memory of a block for the next ones."""
        for arena, slot in block.slots:
            arena.give(slot)
        block.drop_arrays()
        self._count_bytes()

    def load(self, index, sums, terms):
        """
        Start a block with sums of windows whose weights are known.

        Args:
            index (tuple[int, int]): a block that no window touched.
            sums (ndarray): (h, w, C).
            terms (list[tuple]): (y, x, dy, dx, height, width, wy, wx) each: the
                part of (height, width) px at (dy, dx) of a window at (y, x).
        """
        block = self._touch(index)
        block.sums[...] = sums.reshape(block.sums.shape)
        block.terms += terms

    def read(self, window):
        """Return copies of the values of a window, as :class:`BlockValues`."""
        height, width = window.shape
        n_bands = self.shape[2]
        sums = np.zeros((height, width, n_bands), self.dtype)
        weights = np.zeros((height, width, n_bands if self.per_band else 1), self.dtype)
        deviations = np.zeros_like(sums) if self._has_deviations else None
        for index, source, target in self._blocks.iter_slices(window):
            if index not in self._live and index not in self._spilled:
                continue
            block = self._touch(index)
            self._settle(block)
            for out, array in ((sums, block.sums), (weights, block.plane),
                               (deviations, block.deviations)):
                if array is not None:
                    out[target] = array.reshape(*block.shape, -1)[source]
            if self._budget is not None:
                self._budget.keep(self)
        return BlockValues(sums, weights if self.per_band else weights[..., 0], deviations)

    def close(self):
        """Let go of all memory and files. May be called twice."""
        if self._budget is not None:
            for index in self._live:
                self._budget.forget(self, index)
        self._live.clear()
        self._spilled.clear()
        for arena in self._arenas:
            arena.close()
        self._count_bytes()
        self._store.close()
        if self._pool is not None:
            self._pool.shutdown()


def check_canvas_options(device, memmap):
    """
    Raise OptionError unless a canvas can be made with these options.

    Example:
        >>> check_canvas_options('numpy', None)
    """
    is_mapped = memmap is not None and memmap is not False
    if is_mapped and memmap is not True and not isinstance(memmap, (str, os.PathLike)):
        raise OptionError(f'memmap={memmap!r} must be a folder, True, False or None')
    if str(device) == 'numpy':
        return
    if is_mapped:
        raise OptionError(f'device={device!r} and memmap={memmap!r} exclude each other; '
                          "a memmapped canvas needs device='numpy'")
    from cocoseg.stitch.torch_canvas import check_device
    check_device(device)
