"""
The canvas: weighted sums and one weight plane of one image.

It is the only owner of the big arrays, in RAM, in an anonymous file, or on a
torch device. It does no bookkeeping: :mod:`cocoseg.stitch.soft` decides what
to add and when.
"""
from __future__ import annotations

import errno
import functools
import os
import tempfile

import numpy as np

from cocoseg.errors import CanvasError, OptionError

_DTYPES = ('float32', 'float64')


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


def compute_nbytes(shape, dtype='float32'):
    """
    Return the bytes that the canvas of an (H, W, C) image holds.

    Example:
        >>> compute_nbytes((10, 20, 4))     # 4 sums and 1 weight, 4 bytes each
        4000
    """
    height, width, n_bands = shape
    return height * width * (n_bands + 1) * np.dtype(dtype).itemsize


def _map_file(shape, dtype, folder):
    """
    Return a zeroed array on a file without a name.

    The file is gone as soon as the process is, however it ends. Its space is
    reserved at once: a full disk is an error now, not a crash (SIGBUS) in the
    middle of a sum.
    """
    nbytes = int(np.prod(shape)) * dtype.itemsize
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix='cocoseg-canvas-') as file:
            _reserve(file, nbytes)
            # The mapping keeps the file alive after the descriptor is closed.
            return np.memmap(file, dtype=dtype, mode='r+', shape=shape)
    except OSError as ex:
        place = folder or tempfile.gettempdir()
        raise CanvasError(ex.errno, f'cannot map {nbytes} bytes in {place}: {ex.strerror}; '
                          'free space there or choose another memmap folder') from ex


def _reserve(file, nbytes):
    """Give a file its size, with real space behind it where the system can."""
    try:
        os.posix_fallocate(file.fileno(), 0, nbytes)
    except (AttributeError, OSError) as ex:
        if getattr(ex, 'errno', None) not in (
                None, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        file.truncate(nbytes)


def prepare_input(data, weights, dtype):
    """
    Bring the data and weights of a window into the layout of the kernels.

    Args:
        data (ndarray): real, shape (h, w, C).
        weights (tuple[ndarray, ndarray] | ndarray): separable (wy, wx), or
            dense, shape (h, w).
        dtype (dtype): of the canvas.

    Returns:
        tuple: data (h, w*C); then wy, wx and None, or for dense weights
        weights (h, w), None, and weights repeated per band (h, w*C).

    Example:
        >>> flat, *_ = prepare_input(np.ones((2, 3, 4)), np.ones((2, 3)), np.dtype('f4'))
        >>> flat.shape
        (2, 12)
    """
    height, width, n_bands = data.shape
    flat = np.ascontiguousarray(data, dtype).reshape(height, width * n_bands)
    if isinstance(weights, tuple):
        rows, columns = (np.ascontiguousarray(part, dtype) for part in weights)
        return flat, rows, columns, None
    if weights.flags.owndata and not weights.flags.writeable and weights.dtype == dtype:
        # Nobody can change these meanwhile; edge weights come for every window.
        return flat, weights, None, _expand_shared(_ById(weights), n_bands)
    dense = np.ascontiguousarray(weights, dtype)
    return flat, dense, None, _expand(dense, n_bands)


class _ById:
    """An array as the key of a cache, which keeps it alive."""

    def __init__(self, array):
        self.array = array

    def __eq__(self, other):
        return self.array is other.array

    def __hash__(self):
        return id(self.array)


@functools.lru_cache(maxsize=8)
def _expand_shared(key, n_bands):
    return _expand(key.array, n_bands)


def _expand(weights, n_bands):
    """Return weights (h, w) repeated per band, (h, w*C)."""
    from cocoseg.stitch import kernels
    expanded = np.empty((weights.shape[0], weights.shape[1] * n_bands), weights.dtype)
    kernels._kernel_expand(weights, n_bands, expanded)
    return expanded


class Canvas:
    """
    Sums and weights of one image in RAM or in memory-mapped files.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        dtype (str | dtype): 'float32' or 'float64'.
        memmap (None | bool | PathLike): False or None for RAM; True for files
            in the system's temporary folder; or the folder to use.

    Raises:
        OptionError: for another dtype.
        CanvasError: if the memmap folder cannot be used or has no room.

    Thread-safety: none; the stitcher holds a lock around every call.

    Example:
        >>> canvas = Canvas((4, 4, 1))
        >>> ones = np.ones((2, 2, 1), 'f4')
        >>> canvas.add(1, 1, ones, (np.ones(2, 'f4'), np.full(2, 0.5, 'f4')))
        (4, 0)
        >>> float(canvas.sums.sum()), float(canvas.weights.sum())
        (2.0, 2.0)
    """

    def __init__(self, shape, dtype='float32', memmap=None):
        self.shape = tuple(shape)
        self.dtype = check_dtype(dtype)
        height, width, n_bands = self.shape
        if memmap is not None and memmap is not False:
            folder = None if memmap is True else os.fspath(memmap)
            self._sums = _map_file((height, width * n_bands), self.dtype, folder)
            self.weights = _map_file((height, width), self.dtype, folder)
        else:
            self._sums = np.zeros((height, width * n_bands), self.dtype)
            self.weights = np.zeros((height, width), self.dtype)

    @property
    def sums(self):
        """Weighted sums, shape (H, W, C), a view."""
        return self._sums.reshape(self.shape)

    @property
    def nbytes(self):
        """Bytes held."""
        return self._sums.nbytes + self.weights.nbytes

    def add(self, y0, x0, data, weights):
        """
        Add one window that lies inside the canvas.

        Args:
            y0 (int): first row. x0 (int): first column, px.
            data (ndarray): any real dtype, shape (h, w, C). Never modified.
            weights (tuple[ndarray, ndarray] | ndarray): separable (wy, wx) of
                shapes (h,) and (w,), or one per pixel, shape (h, w).

        Returns:
            tuple[int, int]: pixels added, and pixels skipped as invalid (NaN
            or infinite in any band).
        """
        from cocoseg.stitch import kernels
        flat, rows, columns, expanded = prepare_input(data, weights, self.dtype)
        if expanded is None:
            return kernels._kernel_add(self._sums, self.weights, y0, x0, flat, 0, rows, columns)
        return kernels._kernel_add_dense(self._sums, self.weights, y0, x0, flat, 0,
                                         data.shape[1], rows, expanded)

    def read(self, window):
        """Return (sums (h, w, C), weights (h, w)) of a window; views where possible."""
        return self.sums[window.slices], self.weights[window.slices]

    def take(self, block):
        """Return (sums, weights) of a final block; nothing is freed before the end."""
        return self.read(block.core)

    def give_back(self, block, arrays):
        """Do nothing: the block was never away."""

    def recycle(self, arrays):
        """Do nothing: the memory is freed with the canvas."""

    def close(self):
        """Let go of the arrays; files vanish with their mapping. May be called twice."""
        self._sums = np.zeros((0, 0), self.dtype)
        self.weights = np.zeros((0, 0), self.dtype)
        self.shape = (0, 0, self.shape[2])


class TorchCanvas:
    """
    The same as :class:`Canvas`, on a torch device.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        device (torch.device | str): where sums and weights live.
        dtype (str | dtype): 'float32' or 'float64'.

    Example:
        >>> # xdoctest: +REQUIRES(module:torch)
        >>> canvas = TorchCanvas((4, 4, 1), device='cpu')
        >>> canvas.add(0, 0, np.ones((2, 2, 1)), np.ones((2, 2)))
        (4, 0)
    """

    def __init__(self, shape, device, dtype='float32'):
        import torch
        self.shape = tuple(shape)
        self.dtype = check_dtype(dtype)
        self._torch_dtype = getattr(torch, self.dtype.name)
        self.device = torch.device(device)
        self._sums = torch.zeros(self.shape, dtype=self._torch_dtype, device=self.device)
        self._weights = torch.zeros(self.shape[:2], dtype=self._torch_dtype, device=self.device)

    @property
    def weights(self):
        """Weight plane, numpy (H, W), a copy unless the device is the CPU."""
        return self._weights.cpu().numpy()

    @property
    def nbytes(self):
        """Bytes held on the device."""
        return (self._sums.numel() + self._weights.numel()) * self.dtype.itemsize

    def _as_tensor(self, data):
        import torch
        if not torch.is_tensor(data):
            # A copy: torch refuses read-only arrays and must not alias the caller's.
            data = torch.from_numpy(np.array(data, self.dtype))
        return data.detach().to(self.device, self._torch_dtype)

    def add(self, y0, x0, data, weights):
        """Add one window; see :meth:`Canvas.add`. Tensors stay on their device."""
        import torch
        data = self._as_tensor(data)
        if isinstance(weights, tuple):
            rows, columns = (self._as_tensor(part) for part in weights)
            weights = rows[:, None] * columns
        else:
            weights = self._as_tensor(weights)
        height, width = data.shape[:2]
        part = (slice(y0, y0 + height), slice(x0, x0 + width))
        valid = torch.isfinite(data).all(dim=2)
        weights = torch.where(valid, weights, torch.zeros_like(weights))
        data = torch.where(valid[..., None], data, torch.zeros_like(data))
        self._sums[part] += data * weights[..., None]
        self._weights[part] += weights
        added = int(valid.sum())
        return added, height * width - added

    def read(self, window):
        """Return (sums, weights) of a window as numpy arrays."""
        return (self._sums[window.slices].cpu().numpy(),
                self._weights[window.slices].cpu().numpy())

    def take(self, block):
        """Return (sums, weights) of a final block as numpy arrays."""
        return self.read(block.core)

    def give_back(self, block, arrays):
        """Do nothing: the block was never away."""

    def recycle(self, arrays):
        """Do nothing: the memory is freed with the canvas."""

    def close(self):
        """Let go of the device memory. May be called twice."""
        self._sums = self._sums[:0, :0].clone()
        self._weights = self._weights[:0, :0].clone()
        self.shape = (0, 0, self.shape[2])


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
    try:
        import torch
        torch.zeros(1, device=torch.device(device))
    except (ImportError, RuntimeError, AssertionError, TypeError) as ex:
        raise OptionError(f"device={device!r} cannot be used ({ex}); use 'numpy', or a device "
                          'that torch has here') from ex


def make_canvas(shape, *, dtype='float32', memmap=None, device='numpy'):
    """
    Make the canvas that the options ask for.

    Args:
        shape (tuple[int, int, int]): (H, W, C).
        dtype (str): 'float32' or 'float64'.
        memmap (None | bool | PathLike): see :class:`Canvas`.
        device (str | torch.device): 'numpy', or a torch device.

    Raises:
        CanvasError: if there is no room.

    Example:
        >>> make_canvas((2, 3, 1)).nbytes
        48
    """
    try:
        if str(device) == 'numpy':
            return Canvas(shape, dtype, memmap)
        return TorchCanvas(shape, device, dtype)
    except MemoryError as ex:
        raise CanvasError(errno.ENOMEM, f'no memory for a canvas of {shape}: {ex}; use memmap, '
                          'or a memory_budget on the manager') from ex
