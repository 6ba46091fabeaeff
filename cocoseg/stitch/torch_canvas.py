"""
The canvas on a torch device: sums stay there, finished integers come back.
"""
from __future__ import annotations

import errno
import threading

import numpy as np

from cocoseg.errors import CanvasError, OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.stitch.canvas import check_dtype, check_nan_policy
from cocoseg.stitch.products import BlockValues


def check_device(device):
    """
    Raise OptionError unless torch can compute on a device here.

    Example:
        >>> # xdoctest: +REQUIRES(module:torch)
        >>> check_device('cpu')
    """
    try:
        import torch
        torch.zeros(1, device=torch.device(device))
    except (ImportError, RuntimeError, AssertionError, TypeError) as ex:
        raise OptionError(f"device={device!r} cannot be used ({ex}); use 'numpy', or a device "
                          'that torch has here') from ex


class TorchValues(BlockValues):
    """
    Values of a block on a device; what is made of them comes to the host.

    ``weights`` and ``deviations`` are numpy copies, made when asked for.
    """

    def __init__(self, canvas, arrays):
        self._canvas, self._arrays = canvas, arrays
        self._sums, self._weights, self._deviations = arrays

    @property
    def sums(self):
        """Weighted sums, (h, w, C), a copy on the host."""
        return self._sums.cpu().numpy()

    @property
    def weights(self):
        """Weights, (h, w) or (h, w, C), a copy on the host."""
        weights = self._weights if self._canvas.per_band else self._weights[..., 0]
        return weights.cpu().numpy()

    @property
    def deviations(self):
        """Weighted sums of squared deviations on the host, or None."""
        return None if self._deviations is None else self._deviations.cpu().numpy()

    def drop(self, mask):
        """Forget the pixels where ``mask``, bool (h, w), is True."""
        import torch
        self._weights = self._weights.clone()
        self._weights[torch.from_numpy(mask).to(self._weights.device)] = 0

    def _mean_on_device(self):
        import torch
        mean = self._sums / self._weights
        return torch.where(self._weights > 0, mean, torch.full_like(mean, torch.nan))

    def compute_mean(self):
        """Return the weighted mean, numpy (h, w, C), NaN where no weight."""
        return self._mean_on_device().cpu().numpy()

    def encode(self, codec, out=None):
        """Compute codes on the device; see :meth:`BlockValues.encode`."""
        import torch
        low, high, factor, quant_min, nodata = codec.kernel_args
        # In float64, as everywhere; devices without it (mps) round on the host.
        mean = self._mean_on_device()
        if mean.device.type == 'mps':
            mean = mean.cpu()
        mean = mean.double()
        valid = torch.isfinite(mean)
        margin = 0.5 / factor if factor > 0 else 0.0
        n_clipped = int((valid & ((low - mean > margin) | (mean - high > margin))).sum())
        codes = torch.round((mean.clamp(low, high) - low) * factor) + quant_min
        codes = torch.where(valid, codes, torch.full_like(codes, nodata))
        # torch has few unsigned types: 64 bits hold every code until numpy narrows it.
        narrow = {'uint8': torch.uint8, 'int8': torch.int8, 'int16': torch.int16,
                  'int32': torch.int32}.get(codec.dtype, torch.int64)
        codes = codes.to(narrow).cpu().numpy().astype(codec.dtype, copy=False)
        if out is None:
            return codes, n_clipped
        out[...] = codes
        return out, n_clipped

    def release(self):
        """Let go of the device memory."""
        self._canvas.release(self._arrays)


class TorchCanvas:
    """
    The same as :class:`~cocoseg.stitch.canvas.BlockCanvas`, on a torch device.

    Args:
        shape (tuple[int, int, int]): (H, W, C) px and bands.
        device (torch.device | str): where sums and weights live.
        blocks (BlockGrid | None): of the image; None is one block, the image.
        dtype, nan_policy, deviations, lock: as for a BlockCanvas.

    Example:
        >>> # xdoctest: +REQUIRES(module:torch)
        >>> canvas = TorchCanvas((4, 4, 1), device='cpu')
        >>> canvas.add(0, 0, np.ones((2, 2, 1)), np.ones((2, 2)))
        (4, 0)
    """

    def __init__(self, shape, device, blocks=None, dtype='float32', *, nan_policy='pixel',
                 deviations=False, lock=None):
        import torch
        check_nan_policy(nan_policy)
        self.shape = tuple(shape)
        self.dtype = check_dtype(dtype)
        self.per_band = nan_policy == 'band' and self.shape[2] > 1
        self.device = torch.device(device)
        self.lock = threading.RLock() if lock is None else lock
        self.peak_nbytes = 0
        self._torch_dtype = getattr(torch, self.dtype.name)
        self._blocks = blocks or BlockGrid(self.shape[:2], self.shape[:2])
        self._has_deviations = deviations
        # Block index -> [sums, weights, deviations]
        self._live = {}
        self.nbytes = 0

    @property
    def n_live(self):
        """Number of blocks on the device."""
        return len(self._live)

    @property
    def weights(self):
        """Weight plane, (H, W) or (H, W, C), numpy; 0 where a block was taken."""
        return self.read(Window.from_shape(self.shape)).weights

    def _as_tensor(self, data):
        import torch
        if not torch.is_tensor(data):
            # A copy: torch refuses read-only arrays and must not alias the caller's.
            data = torch.from_numpy(np.array(data, self.dtype))
        return data.detach().to(self.device, self._torch_dtype)

    def add(self, y0, x0, data, weights):
        """Add one window; see :meth:`BlockCanvas.add`. Tensors stay on their device."""
        import torch
        data = self._as_tensor(data)
        if isinstance(weights, tuple):
            rows, columns = (self._as_tensor(part) for part in weights)
            weights = rows[:, None] * columns
        else:
            weights = self._as_tensor(weights)
        height, width = data.shape[:2]
        valid = torch.isfinite(data)
        covered = valid.any(dim=2) if self.per_band else valid.all(dim=2)
        weights = weights[..., None] * (valid if self.per_band else covered[..., None])
        data = torch.where(valid, data, torch.zeros_like(data))
        parts = list(self._blocks.iter_parts(y0, x0, y0 + height, x0 + width))
        # All blocks are here before the first is changed: an error leaves the
        # window out as a whole.
        live = [self._touch(part[0]) for part in parts]
        for arrays, (_, (ya, xa, yb, xb), (by, bx)) in zip(live, parts):
            inside = (slice(ya - y0, yb - y0), slice(xa - x0, xb - x0))
            self._add_part(arrays, (slice(ya - by, yb - by), slice(xa - bx, xb - bx)),
                           data[inside], weights[inside])
        added = int(covered.sum())
        return added, height * width - added

    def _add_part(self, arrays, part, data, weights):
        import torch
        sums, plane, deviations = arrays
        old = plane[part]
        if deviations is not None:
            # West's update: exact 0 for a lone window, and nothing cancels.
            total = old + weights
            both = (old > 0) & (weights > 0)
            mean = torch.where(both, sums[part] / old, data)
            share = torch.where(both, weights * old / total, torch.zeros_like(total))
            deviations[part] += share * (data - mean) ** 2
        sums[part] += data * weights
        plane[part] += weights

    def _touch(self, index):
        import torch
        arrays = self._live.get(index)
        if arrays is None:
            height, width = self._blocks.get(index).core.shape
            n_bands = self.shape[2]
            depths = [n_bands, n_bands if self.per_band else 1]
            depths += [n_bands] if self._has_deviations else []
            try:
                arrays = [torch.zeros((height, width, depth), dtype=self._torch_dtype,
                                      device=self.device) for depth in depths]
            except (RuntimeError, MemoryError) as ex:
                raise CanvasError(errno.ENOMEM, f'no memory on {self.device} for a block of an '
                                  f'image of {self.shape}: {ex}; use smaller windows in flight, '
                                  "or device='numpy'") from ex
            arrays += [] if self._has_deviations else [None]
            self._live[index] = arrays
            self.nbytes += self._count(arrays)
            self.peak_nbytes = max(self.peak_nbytes, self.nbytes)
        return arrays

    def _count(self, arrays):
        return sum(array.numel() for array in arrays if array is not None) * self.dtype.itemsize

    def take(self, index, is_complete=False):
        """Take a block out; see :meth:`BlockCanvas.take`."""
        arrays = self._touch(index)
        del self._live[index]
        return TorchValues(self, arrays)

    def release(self, arrays):
        """Let go of the device memory of a block. May be called twice."""
        self.nbytes = max(0, self.nbytes - self._count(arrays))
        arrays[:] = [None] * len(arrays)

    def read(self, window):
        """Return copies of the values of a window, numpy :class:`BlockValues`."""
        n_bands = self.shape[2]
        sums = np.zeros((*window.shape, n_bands), self.dtype)
        weights = np.zeros((*window.shape, n_bands if self.per_band else 1), self.dtype)
        deviations = np.zeros_like(sums) if self._has_deviations else None
        for index, source, target in self._blocks.iter_slices(window):
            for out, tensor in zip((sums, weights, deviations), self._live.get(index, ())):
                if tensor is not None:
                    out[target] = tensor[source].cpu().numpy()
        return BlockValues(sums, weights if self.per_band else weights[..., 0], deviations)

    def close(self):
        """Let go of the device memory. May be called twice."""
        self._live.clear()
        self.nbytes = 0
