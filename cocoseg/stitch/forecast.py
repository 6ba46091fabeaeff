"""
What a plan will cost, before any pixel is read.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.window import Window
from cocoseg.grid.windows import WindowGrid
from cocoseg.stitch.canvas import check_dtype
from cocoseg.stitch.carry import CarryCanvas
from cocoseg.stitch.coverage import Coverage
from cocoseg.stitch.intake import check_shape
from cocoseg.stitch.lanes import find_lanes
from cocoseg.stitch.quantize import Quantization


@dataclass(frozen=True)
class PlanReport:
    """
    The cost of stitching all windows of a plan to a sink, in their order.

    Attributes:
        shape (tuple[int, int, int]): (H, W, C) of the image, px and bands.
        n_windows (int): windows to come.
        window_pixels (int): pixels that the model predicts, all windows.
        n_blocks (int): blocks of the result.
        engine (str): 'carry' or 'general'; what :class:`SoftStitcher` takes
            while windows come in this order and hold no NaN.
        peak_blocks (int): the most blocks that are begun at a time.
        peak_nbytes (int): the most bytes of sums and begun blocks. The
            general engine takes up to 1/16 of the image more, in slabs, and a
            weight plane for blocks with NaN or more than 32 windows.
        image_nbytes (int): bytes of the whole image in the accumulator dtype.

    Example:
        >>> from cocoseg import BlendPlan, WindowGrid
        >>> report = BlendPlan(WindowGrid((40_000, 40_000), 256, 64)).describe()
        >>> report.n_windows, report.engine, report.fraction < 0.01
        (43264, 'carry', True)
    """

    shape: tuple[int, int, int]
    n_windows: int
    window_pixels: int
    n_blocks: int
    engine: str
    peak_blocks: int
    peak_nbytes: int
    image_nbytes: int

    @property
    def fraction(self):
        """Peak bytes as a part of the whole image."""
        return self.peak_nbytes / self.image_nbytes

    def __str__(self):
        height, width, n_bands = self.shape
        return (f'{height} x {width} x {n_bands}: {self.n_windows} windows '
                f'({self.window_pixels / (height * width):.2f} predictions per pixel), '
                f'{self.n_blocks} blocks; {self.engine} engine, at most {self.peak_blocks} blocks '
                f'begun, {self.peak_nbytes / 1e6:.1f} MB ({self.fraction:.2%} of the image)')


def describe_plan(plan, *, shape=None, n_bands=1, dtype='float32', quantize_dtype='int16',
                  blocksize=256):
    """
    Forecast what stitching a plan holds in memory.

    Args:
        plan (BlendPlan): whose windows come in their order.
        shape (tuple[int, int] | None): (H, W) of the image, px. None is that
            of the grid; for a list of windows the rectangle around them.
        n_bands (int): C.
        dtype (str): accumulator.
        quantize_dtype (dtype | None): of the finished blocks; None is float.
        blocksize (int): of the sink, px.

    Returns:
        PlanReport: figures that a run will show.

    Raises:
        OptionError: for a size or a dtype that a stitcher would refuse.
        CoverageError: if a window lies outside the image.
    """
    windows = plan.windows
    if shape is None:
        shape = windows.shape if isinstance(windows, WindowGrid) else (
            max(window.y1 for window in windows), max(window.x1 for window in windows))
    shape = check_shape(tuple(shape)[:2])[0]
    n_bands = check_shape((*shape, n_bands))[1]
    blocks, dtype = BlockGrid(shape, blocksize), check_dtype(dtype)
    is_masked = isinstance(windows, WindowGrid) and windows.area is not None
    lanes = None if is_masked else find_lanes(plan, shape, dtype)
    out = dtype if quantize_dtype is None else np.dtype(
        Quantization(0, 1, np.dtype(quantize_dtype).name).dtype)
    # Codes of 32 bits are made of floats when a block is finished.
    out = out if out.itemsize <= 2 else dtype
    if lanes is not None:
        held, per_pixel = CarryCanvas.strip_nbytes((*shape, n_bands), lanes, dtype), out.itemsize
    else:
        held, per_pixel = 0, dtype.itemsize
    peak_blocks, peak_pixels, n_windows, n_pixels = _simulate(windows, shape, blocks, lanes)
    if lanes is None:
        # Blocks at the far edges have as much room as the others.
        peak_pixels = peak_blocks * blocks.get((0, 0)).core.area
    return PlanReport(
        shape=(*shape, n_bands), n_windows=n_windows, window_pixels=n_pixels,
        n_blocks=len(blocks), engine='general' if lanes is None else 'carry',
        peak_blocks=peak_blocks, peak_nbytes=held + peak_pixels * n_bands * per_pixel,
        image_nbytes=shape[0] * shape[1] * n_bands * dtype.itemsize)


def _simulate(windows, shape, blocks, lanes):
    """Return the most blocks and pixels begun at a time; all windows and their pixels."""
    coverage = Coverage(shape, windows, blocks)
    begun, pixels, peak_blocks, peak_pixels, n_pixels = set(), 0, 0, 0, 0
    ends = None if lanes is None else [
        dict(zip((lane.start for lane in axis), [lane.start for lane in axis[1:]] + [size]))
        for axis, size in zip(lanes, shape)]
    for window in windows:
        inside = coverage.clip(window)
        n_pixels += window.area
        touched = inside
        if ends is not None:
            # Of a window that is carried, only what is final gets a block.
            touched = Window(inside.y0, inside.x0, ends[0][inside.y0], ends[1][inside.x0])
        rows, columns = blocks.touched_by(touched)
        for index in ((row, column) for row in range(rows.start, rows.stop)
                      for column in range(columns.start, columns.stop)):
            if index not in begun:
                begun.add(index)
                pixels += blocks.get(index).core.area
        peak_blocks, peak_pixels = max(peak_blocks, len(begun)), max(peak_pixels, pixels)
        for index in coverage.receive(inside):
            begun.discard(index)
            pixels -= blocks.get(index).core.area
    return peak_blocks, peak_pixels, coverage.n_received, n_pixels
