"""
The ports of the package: small Protocols, each with a fake beside it.

A port is what one layer asks of another without knowing who answers: a
stitcher hands blocks to any :class:`BlockSink`, a predict loop calls any
:class:`Predictor`, a manager submits to any :class:`JobQueue`. The fakes are
real, tiny implementations for tests and examples. No other module is imported.
"""
from __future__ import annotations

import os
from typing import Any, Callable, Iterable, Protocol, runtime_checkable

import numpy as np

#: A path, as functions take it.
PathLike = str | os.PathLike[str]
#: What shows progress: called with an iterable, ``total=`` and ``desc=``; yields its items.
Progress = Callable[..., Iterable[Any]]


@runtime_checkable
class Predictor(Protocol):
    """
    Turn one window of pixels into predictions of the same height and width.

    ``image`` is float32, shape (h, w, B), NaN where there is no data, and must
    not be modified. The result is float, shape (h, w, K). One thread calls at
    a time. With an attribute ``kind`` of 'labels' the result is int, ids from
    1 that mean something in this window only, shape (h, w) or (h, w, 1), 0
    where nothing is; ``label_options`` then tell how they are put together.
    """

    def __call__(self, image: np.ndarray, /) -> np.ndarray: ...


@runtime_checkable
class BatchPredictor(Predictor, Protocol):
    """
    A predictor that also takes several windows at once.

    ``images`` is float32, shape (N, h, w, B); the result is (N, h, w, K).
    """

    def predict_batch(self, images: np.ndarray, /) -> np.ndarray: ...


@runtime_checkable
class FittedPredictor(Predictor, Protocol):
    """
    A predictor that learns from pixels of all images before the first window.

    While ``is_fitted`` is False, ``count_samples`` is asked how many of so many
    pixels it wants, ``find_valid`` which pixels (h, w) of an image (h, w, B)
    have data, and ``fit`` gets such pixels, float32 (n, B), in place. ``seed``
    (int) is that of their choice.
    """

    @property
    def is_fitted(self) -> bool: ...

    @property
    def seed(self) -> int: ...

    def count_samples(self, n_pixels: int) -> int: ...

    def find_valid(self, image: np.ndarray) -> np.ndarray: ...

    def fit(self, samples: np.ndarray) -> None: ...


@runtime_checkable
class BlockSource(Protocol):
    """
    Give the pixels of windows of an image, or of boxes of a volume.

    ``shape`` is (H, W, C) or (D, H, W, C), ``name`` is for messages. ``read``
    returns ``dtype``, shape (h, w, C) with (h, w) == ``window.shape``, of a
    window that lies inside; nobody may write to it. Any number of threads may
    read at a time.
    """

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, window: Any) -> np.ndarray: ...


@runtime_checkable
class BlockSink(Protocol):
    """
    Receive finished blocks, each exactly once, in any order.

    ``block`` has shape (h, w, C) with (h, w) == ``window.shape``; it belongs
    to the sink from then on. May be called from several threads at a time. An
    exception leaves the block with the stitcher, which offers it again.
    """

    def write_block(self, window: Any, block: np.ndarray) -> None: ...


@runtime_checkable
class JobQueue(Protocol):
    """
    Run jobs, now or later; the part of ``kwutil``'s BlockingJobQueue we need.

    ``submit`` may block while the queue is full. ``wait_until_finished``
    returns when every submitted job has ended.
    """

    def submit(self, func: Callable, *args, **kwargs) -> Any: ...

    def wait_until_finished(self, desc: str | None = None) -> None: ...


class MemorySource:
    """
    A :class:`BlockSource` of an array (H, W, C) or (D, H, W, C).

    Example:
        >>> from cocoseg.protocols import BlockSource, MemorySource
        >>> from cocoseg.grid.window import Window
        >>> source = MemorySource(np.arange(6).reshape(2, 3, 1))
        >>> assert isinstance(source, BlockSource)
        >>> source.read(Window(0, 1, 2, 2)).ravel().tolist()
        [1, 4]
    """

    name = 'array'

    def __init__(self, pixels: np.ndarray) -> None:
        self._pixels = pixels
        self.shape, self.dtype = pixels.shape, pixels.dtype

    def read(self, window: Any) -> np.ndarray:
        """Return a view of the pixels of a window."""
        return self._pixels[window.slices]


class MemorySink:
    """
    Keep every block in a dict, and paste them together on request.

    Example:
        >>> from cocoseg.protocols import MemorySink, BlockSink
        >>> from cocoseg.grid.window import Window
        >>> sink = MemorySink()
        >>> assert isinstance(sink, BlockSink)
        >>> sink.write_block(Window(0, 0, 1, 2), np.ones((1, 2, 1)))
        >>> sink.write_block(Window(0, 2, 1, 3), np.zeros((1, 1, 1)))
        >>> sink.as_array().ravel().tolist()
        [1.0, 1.0, 0.0]
    """

    def __init__(self) -> None:
        self.blocks: dict[Any, np.ndarray] = {}

    def write_block(self, window: Any, block: np.ndarray) -> None:
        """Store one block; a second write of the same window is an error."""
        if window in self.blocks:
            raise RuntimeError(f'{window} was written twice')
        self.blocks[window] = block

    def as_array(self) -> np.ndarray:
        """Return all blocks as one (H, W, C) array."""
        height = max(window.y1 for window in self.blocks)
        width = max(window.x1 for window in self.blocks)
        first = next(iter(self.blocks.values()))
        out = np.zeros((height, width, first.shape[2]), first.dtype)
        for window, block in self.blocks.items():
            out[window.slices] = block
        return out


class FailingSink(MemorySink):
    """A :class:`MemorySink` whose first ``n_failures`` writes raise OSError."""

    def __init__(self, n_failures: int = 1) -> None:
        super().__init__()
        self.n_failures = n_failures

    def write_block(self, window: Any, block: np.ndarray) -> None:
        """Fail while failures are left, then store the block."""
        if self.n_failures > 0:
            self.n_failures -= 1
            raise OSError(28, 'No space left on device (simulated)')
        super().write_block(window, block)


class EagerQueue:
    """A :class:`JobQueue` that runs each job inside ``submit``."""

    def submit(self, func: Callable, *args: Any, **kwargs: Any) -> Any:
        """Run the job and return its result."""
        return func(*args, **kwargs)

    def wait_until_finished(self, desc: str | None = None) -> None:
        """Return at once: nothing is ever pending."""
