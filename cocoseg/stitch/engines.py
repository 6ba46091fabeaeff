"""
Which engine stitches an image: the carry strip, blocks, or a torch device.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from cocoseg.errors import OptionError
from cocoseg.stitch.budget import MemoryBudget
from cocoseg.stitch.canvas import (BlockCanvas, check_canvas_options, check_dtype,
                                   check_nan_policy)
from cocoseg.stitch.carry import CarryCanvas
from cocoseg.stitch.lanes import find_lanes

ENGINES = ('auto', 'general')


@dataclass(frozen=True)
class EngineOptions:
    """
    How the sums of an image are held; see :class:`SoftStitcher` for each.

    Raises:
        OptionError: for an option that is unknown or contradicts another.

    Example:
        >>> EngineOptions(dtype='f4').dtype
        'float32'
    """

    engine: str = 'auto'
    dtype: str = 'float32'
    memmap: Any = None
    device: Any = 'numpy'
    memory_budget: Any = None
    spill_dir: Any = None
    nan_policy: str = 'pixel'
    num_threads: int = 1
    budget: MemoryBudget | None = field(init=False, default=None, repr=False)

    def __post_init__(self):
        object.__setattr__(self, 'dtype', check_dtype(self.dtype).name)
        check_canvas_options(self.device, self.memmap)
        check_nan_policy(self.nan_policy)
        if self.engine not in ENGINES:
            raise OptionError(f'engine={self.engine!r} is unknown; use one of {ENGINES}')
        if (isinstance(self.num_threads, bool) or not isinstance(self.num_threads, Integral)
                or self.num_threads < 1):
            raise OptionError(f'num_threads={self.num_threads!r} must be a whole number >= 1')
        if self.num_threads > 1 and self.on_device:
            raise OptionError(f'num_threads={self.num_threads} is about threads of the host; '
                              f'device={self.device!r} brings its own')
        if self.memory_budget is not None and (self.is_mapped or self.on_device):
            raise OptionError(f'memory_budget={self.memory_budget!r} is about blocks in RAM; give '
                              'no memmap or device with it')
        if self.spill_dir is not None and self.memory_budget is None:
            raise OptionError(f'spill_dir={self.spill_dir!r} is only used with a memory_budget')
        object.__setattr__(self, 'budget',
                           MemoryBudget.coerce(self.memory_budget, self.spill_dir))

    @property
    def on_device(self):
        """True if sums live on a torch device."""
        return str(self.device) != 'numpy'

    @property
    def is_mapped(self):
        """True if sums live in memory-mapped files."""
        return self.memmap is not None and self.memmap is not False


def make_canvas(shape, blocks, options, *, plan=None, deviations=False, lock=None):
    """
    Make the canvas for windows in any order.

    Args:
        shape (tuple[int, int, int]): (H, W, C).
        blocks (BlockGrid | None): None is one block, the image.
        options (EngineOptions): of the image.
        plan (BlendPlan | None): of the declared windows.
        deviations (bool): see :class:`~cocoseg.stitch.canvas.BlockCanvas`.
        lock (RLock | None): of the owner.

    Example:
        >>> make_canvas((2, 3, 1), None, EngineOptions()).shape
        (2, 3, 1)
    """
    common = {'nan_policy': options.nan_policy, 'deviations': deviations, 'lock': lock}
    if options.on_device:
        from cocoseg.stitch.torch_canvas import TorchCanvas
        return TorchCanvas(shape, options.device, blocks, options.dtype, **common)
    # The weights of a plan are float32: a float64 canvas adds up what they really are.
    is_unity = (plan is not None and options.dtype == 'float32'
                and find_lanes(plan, shape[:2], options.dtype) is not None)
    return BlockCanvas(shape, blocks, options.dtype, memmap=options.memmap, budget=options.budget,
                       num_threads=options.num_threads, is_unity=is_unity, **common)


def make_carry(shape, blocks, plan, options, products):
    """
    Make the engine for windows in the order of their plan, if it can be used.

    Args:
        shape, blocks, options: as for :func:`make_canvas`.
        plan (BlendPlan): of the declared windows.
        products (Products): made of the finished blocks.

    Returns:
        CarryCanvas | None: None if something asks for the general canvas.

    Example:
        >>> from cocoseg import BlendPlan, BlockGrid, WindowGrid
        >>> from cocoseg.stitch.products import Products
        >>> plan = BlendPlan(WindowGrid((40, 30), window=16, overlap=4))
        >>> carry = make_carry((40, 30, 1), BlockGrid((40, 30), 16), plan, EngineOptions(),
        ...                    Products())
        >>> carry.next_window
        Window(y=0:16, x=0:16)
    """
    if (options.engine != 'auto' or options.on_device or options.is_mapped
            or products.area is not None or products.needs_deviations):
        return None
    lanes = find_lanes(plan, shape[:2], options.dtype)
    if lanes is None:
        return None
    codec = None if products.layers else products.codec
    budget = options.budget
    if budget is not None:
        # A strip cannot be spilled: it is for budgets that it does not fill.
        wanted = CarryCanvas.forecast_nbytes(shape, blocks, lanes, options.dtype, codec)
        if budget.used + wanted > budget.nbytes // 2:
            return None
    return CarryCanvas(shape, blocks, lanes, options.dtype, codec, budget=budget,
                       num_threads=options.num_threads)


def add_items(canvas, items, get_weights):
    """
    Add windows to a canvas, one by one.

    Args:
        canvas (BlockCanvas | TorchCanvas): where they go.
        items (list[Item]): of :func:`cocoseg.stitch.intake.crop_item`.
        get_weights (Callable): separable weights of (window, its part inside
            the image), for items without weights.

    Returns:
        tuple[int, int, int]: windows, valid pixels and invalid pixels added.
        Fewer windows than items if one could not be added; the error is raised
        when it comes first.

    Example:
        >>> import numpy as np
        >>> from cocoseg.grid.window import Window
        >>> from cocoseg.stitch.intake import Item
        >>> window = Window(0, 0, 2, 2)
        >>> item = Item(window, window, np.ones((2, 2, 1)), np.ones((2, 2)))
        >>> add_items(BlockCanvas((4, 4, 1)), [item, item], None)
        (2, 8, 0)
    """
    added = invalid = 0
    for number, (full, inside, data, weights) in enumerate(items):
        if weights is None:
            weights = get_weights(full, inside)
        try:
            counts = canvas.add(inside.y0, inside.x0, data, weights)
        except Exception:
            if number:
                return number, added, invalid
            raise
        added, invalid = added + counts[0], invalid + counts[1]
    return len(items), added, invalid
