"""
What a run would take, before anything is read: counts, bytes, tasks and time.

Everything follows from the sizes of images and of what is read at a time.
Windows and blocks are counted axis by axis, never listed, so that a continent
takes no longer than a photo. Counts and the bytes of results are exact; memory
and files are upper bounds. How long it takes is for :mod:`cocoseg.engine.estimate`.
"""
from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from cocoseg.engine.sharing import choose_task_length
from cocoseg.errors import OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.grid.windows import WindowGrid

# The codecs and overviews of one file that is being written.
_WRITER_NBYTES = 64 << 20
# What a stitcher takes of the system at a time.
_SLAB_NBYTES = 32 << 20
# The entry of an asset, and of each of its channels, in a manifest.
_ASSET_NBYTES, _CHANNEL_NBYTES = 600, 20
# In the process that drives a prediction: an image in the manifest read, and in its copy.
_IMAGE_NBYTES = 6000
# In the process that joins the labels of blocks.
_JOIN_NBYTES = 200
# In the files of block results: the header of an array, the facts and the id of a label.
_HEADER_NBYTES, _FACT_NBYTES, _ID_NBYTES = 128, 40, 4
_FACTS_HEADER_NBYTES = 192
# In the process that drives a run: what it notes of a block, and of its seams.
_NOTE_NBYTES, _SEAM_NBYTES = 1024, 2048
# Per px of a segment tile, beside the pixels.
_SEGMENT_NBYTES = 34
# Per px of a watershed, and per edge of a mutex watershed.
_WATERSHED_NBYTES, _EDGE_NBYTES = 64, 36


@dataclass(frozen=True)
class WorkPlan:
    """
    What a run takes. Plans of several images add up.

    Attributes:
        purpose (str): 'predict', 'blocks', 'watershed' or 'segment'.
        units (str): what they read: 'windows', 'blocks' or 'tiles'.
        n_images (int): images.
        n_units (int): windows, blocks or tiles of all images.
        n_tasks (int): what is handed to workers one by one; to predict, images,
            or runs of windows.
        n_pixels (int): px of all images.
        n_read (int): px that are read, those in several windows as often.
        result_nbytes (int): bytes of the results, raw, without overviews.
        temporary_nbytes (int): most bytes of files that vanish in the end.
        worker_nbytes (int): most bytes that one worker holds, beside the
            interpreter, libraries, and the predictor or function.
        driver_nbytes (int): the same of the process that drives them.
        driven_nbytes (int): bytes of the results, raw, that the process that
            drives them writes.
        manifest_nbytes (int): bytes that are added to a manifest.
        n_labels (int): labels of all blocks or tiles, from the size of one.
    """

    purpose: str
    units: str
    n_images: int
    n_units: int
    n_tasks: int
    n_pixels: int
    n_read: int
    result_nbytes: int
    temporary_nbytes: int
    worker_nbytes: int
    driver_nbytes: int
    driven_nbytes: int = 0
    manifest_nbytes: int = 0
    n_labels: int = 0

    @property
    def n_long(self):
        """Tasks that take long: to join and to write the blocks of a watershed does not."""
        return min(self.n_tasks, self.n_units)

    @property
    def read_factor(self):
        """How often a pixel is read, on average."""
        return self.n_read / self.n_pixels

    def __add__(self, other):
        if self.purpose != other.purpose:
            raise OptionError(f'plans to {self.purpose} and to {other.purpose} do not add up')
        # Images come one after another, so that only the largest counts.
        largest = ['temporary_nbytes', 'worker_nbytes']
        if self.purpose != 'predict':
            # Else it is the manifest, which has all.
            largest.append('driver_nbytes')
        both = {entry.name: (getattr(self, entry.name), getattr(other, entry.name))
                for entry in dataclasses.fields(self) if entry.name not in ('purpose', 'units')}
        return dataclasses.replace(self, **{
            name: max(pair) if name in largest else sum(pair) for name, pair in both.items()})

    def as_dict(self):
        """Return the figures as plain values by name."""
        return {**dataclasses.asdict(self), 'read_factor': self.read_factor}


def bound_stitching(shape, window, n_channels, blocksize=256):
    """
    Bound the bytes that stitching holds while windows come row by row.

    Args:
        shape (tuple[int, int]): (H, W) of the image, px.
        window (tuple[int, int]): (h, w), px.
        n_channels (int): K.
        blocksize (int): of the file, px.

    Returns:
        int: enough for either engine, whatever the placement of the windows.
        :meth:`cocoseg.BlendPlan.describe` tells the same more closely, by
        going through all windows.

    Example:
        >>> from cocoseg.engine.plan import bound_stitching
        >>> from cocoseg import BlendPlan, WindowGrid
        >>> report = BlendPlan(WindowGrid((2000, 3000), 256, 64)).describe(n_bands=5)
        >>> report.peak_nbytes < bound_stitching((2000, 3000), (256, 256), 5) < 120e6
        True
    """
    height, width = min(window[0], shape[0]), min(window[1], shape[1])
    # A row of windows touches no more rows of blocks than this; sums and a plane of weights.
    rows = min((height + blocksize - 2) // blocksize + 1, -(-shape[0] // blocksize))
    blocks = rows * blocksize * -(-shape[1] // blocksize) * blocksize * 4 * (n_channels + 1)
    strips = 2 * 4 * n_channels * height * (shape[1] + width)
    image = 4 * n_channels * shape[0] * shape[1]
    return blocks + strips + min(_SLAB_NBYTES, image // 16)


def plan_predict(shape, window, overlap, *, n_bands, n_channels, fit='balanced', dtype='int16',
                 n_images=1, n_workers=1, batch_size=1, prefetch=2, stitch_nbytes=None,
                 is_shared=False):
    """
    Plan :func:`cocoseg.predict_dataset` on images of one size.

    Args:
        shape (tuple[int, int]): (H, W) of an image, px.
        window (int | tuple[int, int]): (h, w), px.
        overlap (int | tuple[int, int]): px.
        n_bands (int): B that are read.
        n_channels (int): K that are predicted.
        fit (str): placement of windows.
        dtype (str): of the codes in the files.
        n_images (int): images of this size.
        n_workers (int): that each have an image at a time.
        batch_size, prefetch (int): of the predict loop.
        stitch_nbytes (int | None): of a forecast; None is
            :func:`bound_stitching`.
        is_shared (bool): workers share the windows of an image, and the
            caller stitches; see :func:`cocoseg.engine.sharing.choose_shared`.

    Returns:
        WorkPlan: for outputs whose range is given, so that images stream.

    Raises:
        OptionError: for sizes that cannot be.

    Example:
        >>> from cocoseg.engine.plan import plan_predict
        >>> plan = plan_predict((1024, 1024), 256, 64, n_bands=3, n_channels=5, n_images=10**6)
        >>> plan.n_units, plan.result_nbytes == 1024 ** 2 * 5 * 2 * 10**6
        (25000000, True)
    """
    _check_counts(n_bands=n_bands, n_channels=n_channels, n_images=n_images, n_workers=n_workers,
                  batch_size=batch_size)
    grid = WindowGrid(shape, window, overlap, fit)
    n_windows, n_pixels = math.prod(grid.grid_shape), math.prod(grid.shape)
    if stitch_nbytes is None:
        stitch_nbytes = bound_stitching(grid.shape, grid.window, n_channels)
    # Between two stages wait ``prefetch`` batches; each stage has one in hand.
    n_batches = 2 * prefetch + 3
    batches = n_batches * batch_size * math.prod(grid.window) * 4 * (n_bands + n_channels)
    result = n_pixels * n_channels * np.dtype(dtype).itemsize
    # Compressed tiles, with overviews, wait until their file can be put together.
    n_tasks, waiting = n_images, min(n_workers, n_images) * 2 * result * 4 // 3
    stitching, part = stitch_nbytes + _WRITER_NBYTES, 0
    if is_shared:
        length = choose_task_length(grid, batch_size, n_channels, n_workers)
        n_tasks = n_images * -(-n_windows // length)
        part = length * math.prod(grid.window) * 4 * n_channels
        waiting = 2 * n_workers * part + 2 * 2 * result * 4 // 3
    return WorkPlan(
        'predict', 'windows', n_images, n_images * n_windows, n_tasks, n_images * n_pixels,
        n_images * n_windows * math.prod(map(min, grid.window, grid.shape)), n_images * result,
        temporary_nbytes=waiting, worker_nbytes=batches + (part if is_shared else stitching),
        driver_nbytes=n_images * _IMAGE_NBYTES + is_shared * stitching,
        driven_nbytes=is_shared * n_images * result,
        manifest_nbytes=n_images * (_ASSET_NBYTES + _CHANNEL_NBYTES * n_channels))


def plan_blocks(shape, block_shape, halo=0, *, n_bands, n_channels, read_dtype='float32',
                dtype='float32', n_workers=1, is_kept=False):
    """
    Plan :func:`cocoseg.map_blocks` on one image or volume.

    Args:
        shape (tuple[int, ...]): px.
        block_shape (int | tuple[int, ...]): of a core, px.
        halo (int | tuple[int, ...]): px.
        n_bands (int): C that are read.
        n_channels (int): K of the result.
        read_dtype, dtype (str): of what is read, and of the result.
        n_workers (int): blocks that are done at a time.
        is_kept (bool): results go by files: of other processes, or to resume.

    Returns:
        WorkPlan: without what the function takes by itself.

    Example:
        >>> from cocoseg.engine.plan import plan_blocks
        >>> plan = plan_blocks((5, 7), 4, 1, n_bands=1, n_channels=1)
        >>> plan.n_units, plan.n_read
        (4, 63)
    """
    _check_counts(n_bands=n_bands, n_channels=n_channels, n_workers=n_workers)
    grid = BlockGrid(shape, block_shape, halo)
    core, read = _largest_block(grid)
    pixel, n_pixels = np.dtype(dtype).itemsize * n_channels, math.prod(grid.shape)
    result = n_pixels * pixel
    kept = (result + len(grid) * _HEADER_NBYTES) if is_kept else 0
    return WorkPlan(
        'blocks', 'blocks', 1, len(grid), len(grid), n_pixels, count_read(grid), result,
        temporary_nbytes=kept + 2 * result * 4 // 3,
        worker_nbytes=read * n_bands * np.dtype(read_dtype).itemsize + read * pixel,
        driver_nbytes=(_WRITER_NBYTES + (2 * n_workers + 1) * core * pixel
                       + is_kept * len(grid) * _NOTE_NBYTES), driven_nbytes=result)


def plan_watershed(shape, block_shape, context, *, n_bands, read_dtype='float32', n_workers=1,
                   label_size=400):
    """
    Plan :func:`cocoseg.blockwise_watershed` on one image or volume.

    Args:
        shape, block_shape, n_bands, read_dtype, n_workers: as for
            :func:`plan_blocks`; above one band is of the method 'mutex'.
        context (int | tuple[int, ...]): px.
        label_size (float): px of an object, on average; a guess.

    Returns:
        WorkPlan: a block is three tasks: labeled, joined, and written.

    Example:
        >>> from cocoseg.engine.plan import plan_watershed
        >>> plan = plan_watershed((4096, 4096), 512, 32, n_bands=4)
        >>> plan.n_units, plan.n_tasks, plan.n_labels > 4096 ** 2 / 400
        (64, 192, True)
    """
    _check_counts(n_bands=n_bands, n_workers=n_workers)
    grid = BlockGrid(shape, block_shape, context)
    core, read = _largest_block(grid)
    n_pixels, n_read = math.prod(grid.shape), count_read(grid)
    n_labels = _count_labels(n_read, label_size)
    # Labels are kept in two bytes where they fit.
    label = 2 if read / label_size < 1 << 16 else 4
    per_label = _FACT_NBYTES + _ID_NBYTES
    headers = 2 * _HEADER_NBYTES + _FACTS_HEADER_NBYTES
    # Each block also has the facts of the background.
    kept = n_read * label + len(grid) * (headers + per_label) + n_labels * per_label
    per_pixel = _WATERSHED_NBYTES + n_bands * (_EDGE_NBYTES if n_bands > 1 else 0)
    return WorkPlan(
        'watershed', 'blocks', 1, len(grid), 3 * len(grid), n_pixels, n_read, 4 * n_pixels,
        temporary_nbytes=kept + 2 * 4 * n_pixels * 4 // 3,
        worker_nbytes=read * (per_pixel + n_bands * np.dtype(read_dtype).itemsize),
        driver_nbytes=(_WRITER_NBYTES + (2 * n_workers + 1) * core * 4
                       + len(grid) * (_NOTE_NBYTES + _SEAM_NBYTES) + n_labels * _JOIN_NBYTES),
        driven_nbytes=4 * n_pixels, n_labels=n_labels)


def plan_segments(row_spans, column_spans, *, n_bands, read_dtype='uint8', n_workers=1,
                  label_size=400):
    """
    Plan :func:`cocoseg.segment_raster` on one raster.

    Args:
        row_spans, column_spans (Sequence[tuple[int, int]]): (start, stop) of
            the rows and columns of tiles, px.
        n_bands, read_dtype, n_workers, label_size: as for
            :func:`plan_watershed`.

    Returns:
        WorkPlan: a tile is one task.

    Example:
        >>> from cocoseg.engine.plan import plan_segments
        >>> plan = plan_segments([(0, 60), (40, 100)], [(0, 80)], n_bands=3)
        >>> plan.n_units, plan.n_pixels, plan.n_read
        (2, 8000, 9600)
    """
    _check_counts(n_bands=n_bands, n_workers=n_workers)
    extents = [[stop - start for start, stop in spans] for spans in (row_spans, column_spans)]
    n_pixels = row_spans[-1][1] * column_spans[-1][1]
    n_tiles, n_read = math.prod(map(len, extents)), math.prod(map(sum, extents))
    largest, n_labels = math.prod(map(max, extents)), _count_labels(n_read, label_size)
    return WorkPlan(
        'segment', 'tiles', 1, n_tiles, n_tiles, n_pixels, n_read, 4 * n_pixels,
        temporary_nbytes=4 * n_read + 2 * 4 * n_pixels * 4 // 3,
        worker_nbytes=largest * (_SEGMENT_NBYTES + n_bands * np.dtype(read_dtype).itemsize),
        driver_nbytes=_WRITER_NBYTES + (2 * n_workers + 2) * largest * 4
        + n_labels * _JOIN_NBYTES, driven_nbytes=4 * n_pixels, n_labels=n_labels)


def count_read(grid):
    """
    Return how many pixels all blocks read, with their halos.

    Args:
        grid (BlockGrid): whose blocks are counted axis by axis.

    Example:
        >>> from cocoseg import BlockGrid
        >>> from cocoseg.engine.plan import count_read
        >>> grid = BlockGrid((5, 7, 9), (2, 3, 4), halo=1)
        >>> count_read(grid) == sum(block.read.size for block in grid)
        True
    """
    return math.prod(
        sum(min(start + block + halo, size) - max(start - halo, 0)
            for start in range(0, size, block))
        for size, block, halo in zip(grid.shape, grid.block, grid.halo))


def _check_counts(**counts):
    for name, count in counts.items():
        if not isinstance(count, (int, np.integer)) or count < 1:
            raise OptionError(f'{name}={count!r} must be a whole number of at least 1')


def _count_labels(n_read, label_size):
    if not label_size >= 1:
        raise OptionError(f'label_size={label_size!r} must be px of an object, at least 1')
    return math.ceil(n_read / label_size)


def _largest_block(grid):
    """Return the px of the largest core, and of the largest part that is read."""
    core = [min(size, block) for size, block in zip(grid.shape, grid.block)]
    read = [min(size, block + 2 * halo) for size, block, halo in
            zip(grid.shape, grid.block, grid.halo)]
    return math.prod(core), math.prod(read)
