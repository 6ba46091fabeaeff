"""
One bound on the bytes of many canvases.
"""
from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Container, Hashable
from numbers import Real
from typing import TYPE_CHECKING

from cocoseg.errors import OptionError
from cocoseg.protocols import PathLike

if TYPE_CHECKING:
    from cocoseg.stitch.canvas import BlockCanvas


class MemoryBudget:
    """
    Bytes that the blocks of any number of images may hold in RAM together.

    Beyond it, the blocks that were not touched for longest wait in files
    without a name, of whatever image they are. The blocks of the window that
    is being added are always in RAM.

    Args:
        nbytes (int): the bound.
        spill_dir (PathLike | None): folder for the files; None is the
            system's temporary folder.

    Raises:
        OptionError: if ``nbytes`` is no finite number, or negative.

    Thread-safety: all methods may be called from any thread.

    Example:
        >>> import numpy as np
        >>> from cocoseg import SoftStitcher
        >>> from cocoseg.stitch.budget import MemoryBudget
        >>> budget = MemoryBudget(1 << 20)
        >>> first = SoftStitcher((512, 512, 1), memory_budget=budget)
        >>> second = SoftStitcher((512, 512, 1), memory_budget=budget)
        >>> for stitcher in [first, second]:
        ...     n_pixels = stitcher.add(None, np.ones((512, 512)))
        >>> assert budget.used <= budget.nbytes
        >>> assert (first.finalize() == 1).all() and (second.finalize() == 1).all()
    """

    def __init__(self, nbytes: int, spill_dir: PathLike | None = None) -> None:
        if (isinstance(nbytes, bool) or not isinstance(nbytes, Real)
                or not 0 <= nbytes < math.inf):
            raise OptionError(f'memory_budget={nbytes!r} must be bytes, 0 or more, and finite')
        self.nbytes: int = int(nbytes)
        self.spill_dir: PathLike | None = spill_dir
        self.used: int = 0
        self._lock = threading.Lock()
        # (canvas, block index) in RAM, least recently touched first.
        self._entries = OrderedDict()

    def __repr__(self):
        return f'<MemoryBudget({self.used} of {self.nbytes} bytes)>'

    @classmethod
    def coerce(cls, data: int | MemoryBudget | None,
               spill_dir: PathLike | None = None) -> MemoryBudget | None:
        """Return a budget itself, a new one of that many bytes, or None of None."""
        if data is None or isinstance(data, cls):
            if spill_dir is not None:
                raise OptionError(f'spill_dir={spill_dir!r} needs a memory_budget in bytes; a '
                                  'MemoryBudget has its own')
            return data
        return cls(data, spill_dir)

    def charge(self, nbytes: int) -> None:
        """Count bytes that come or, if negative, go."""
        with self._lock:
            self.used += nbytes

    def touch(self, canvas: BlockCanvas, index: Hashable) -> None:
        """Note that a block is in RAM and was used just now."""
        with self._lock:
            key = (canvas, index)
            self._entries[key] = None
            self._entries.move_to_end(key)

    def forget(self, canvas: BlockCanvas, index: Hashable) -> None:
        """Note that a block is no longer to be spilled."""
        with self._lock:
            self._entries.pop((canvas, index), None)

    def keep(self, canvas: BlockCanvas, used: Container = ()) -> None:
        """
        Spill until the bound is kept, or nothing can be spilled.

        Args:
            canvas (BlockCanvas): of the caller, who holds its lock.
            used (Container): indices of its blocks that must stay.

        Raises:
            CanvasError: if there is no room to spill.
        """
        while self.used > self.nbytes and self._spill_one(canvas, used):
            pass

    def _spill_one(self, canvas, used):
        with self._lock:
            entries = list(self._entries)
        for owner, index in entries:
            if owner is canvas:
                if index not in used and canvas.spill(index):
                    return True
            # Waiting for another image here could be for one that waits for us.
            elif owner.lock.acquire(blocking=False):
                try:
                    if owner.spill(index):
                        return True
                finally:
                    owner.lock.release()
        return False
