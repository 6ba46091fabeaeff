"""
Read layers of an image at reduced size, never a large raster as a whole.

Overviews are used where a file has them. Where it has none, the picture is
read in parts, so that memory depends on the size of the picture.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Samples of the file that are in memory at a time: 64 MiB of float32.
_MAX_SAMPLES = 2 ** 22
_LEAST_ROWS = 16
# Pixels of the picture around a part, from which its means take something.
_MARGIN = 3


@dataclass(frozen=True)
class Grid:
    """
    The pixels of a picture, which cover an image.

    Attributes:
        shape (tuple[int, int]): (h, w) of the picture, px.
        dsize (tuple[int, int]): (w, h) of the image, px.

    Example:
        >>> Grid.fit((4000, 1000), 768)
        Grid(shape=(192, 768), dsize=(4000, 1000))
        >>> Grid.fit((40, 10), 768).scale_xy
        (1.0, 1.0)
    """

    shape: tuple[int, int]
    dsize: tuple[int, int]

    @classmethod
    def fit(cls, dsize, max_side):
        """Return the grid of an image whose longest side is at most ``max_side``."""
        width, height = dsize
        factor = min(1.0, max_side / max(width, height))
        return cls((max(1, round(height * factor)), max(1, round(width * factor))),
                   (width, height))

    @property
    def scale_xy(self):
        """Picture pixels per image pixel, (x, y)."""
        return self.shape[1] / self.dsize[0], self.shape[0] / self.dsize[1]

    def iter_parts(self, samples_per_pixel):
        """
        Yield slices (rows, columns) of parts that can be read one at a time.

        Args:
            samples_per_pixel (float): of the file, per pixel of the picture.

        Example:
            >>> len(list(Grid((768, 768), (768, 768)).iter_parts(3)))
            1
        """
        height, width = self.shape
        budget = max(1, int(_MAX_SAMPLES / max(samples_per_pixel, 1e-9)))  # px of the picture
        # Whole rows suit files best, but very flat parts would mostly be margin.
        rows = min(height, max(budget // width, min(_LEAST_ROWS, budget)))
        columns = min(width, max(1, budget // rows))
        for y0 in range(0, height, rows):
            for x0 in range(0, width, columns):
                yield slice(y0, min(y0 + rows, height)), slice(x0, min(x0 + columns, width))


def read_smooth(fpath, bands, grid, warp_img_from_asset=None, quantization=None):
    """
    Read what may be averaged: pixels of the picture are means.

    Args:
        fpath (str): any raster that GDAL opens.
        bands (Sequence[int] | None): from 0; None: three for a photo, or one
            if there are no three.
        grid (Grid): of the picture.
        warp_img_from_asset, quantization (dict | None): as a manifest has
            them; None is none.

    Returns:
        ndarray: float32, true values, shape (h, w, C); NaN outside of the file
        and where there is no data.

    Example:
        >>> import numpy as np, ubelt as ub
        >>> from cocoseg import write_cog
        >>> fpath = ub.Path.appdir('cocoseg/doctest/report').ensuredir() / 'grays.tif'
        >>> info = write_cog(fpath, np.kron([[1, 7], [3, 9]], np.ones((64, 64))).astype('u1'))
        >>> read_smooth(fpath, [0], Grid((4, 4), (128, 128)))[0, ::3, 0].round(1).tolist()
        [1.0, 7.0]
    """
    import kwimage
    from delayed_image import DelayedLoad
    leaf = DelayedLoad(fpath, nodata_method='float').prepare()
    if bands is None:
        bands = range(3 if leaf.num_channels > 2 else 1)
    bands, n_overviews = list(bands), leaf.num_overviews or 0
    warp = kwimage.Affine.scale(grid.scale_xy) @ kwimage.Affine.coerce(
        warp_img_from_asset or {'type': 'affine'})
    matrix = np.linalg.inv(np.asarray(warp.matrix, float))
    level = min(n_overviews, _count_halvings(matrix))
    cost = len(bands) * abs(np.linalg.det(matrix[:2, :2])) / 4 ** level
    leaf = leaf.take_channels(bands)
    if quantization:
        leaf = leaf.dequantize(quantization)
    small = leaf.warp(warp, dsize=grid.shape[::-1])
    out = np.empty((*grid.shape, len(bands)), np.float32)
    for place in grid.iter_parts(cost):
        wider = tuple(_widen(side, size) for side, size in zip(place, grid.shape))
        part = np.asarray(small.crop(wider).finalize())
        inner = tuple(slice(side.start - wide.start, side.stop - wide.start)
                      for side, wide in zip(place, wider))
        out[place] = part.reshape(*part.shape[:2], -1)[inner]
    return out


def _count_halvings(file_from_picture):
    """
    Return how often a file can be halved and still has a pixel per pixel of a picture.

    Example:
        >>> _count_halvings(np.diag([4.0, 9.0, 1.0])), _count_halvings(np.eye(3) / 2)
        (2, 0)
    """
    steps = np.hypot(*file_from_picture[:2, :2])
    return max(0, math.floor(math.log2(max(min(steps), 1)) + 1e-9))


def _widen(side, size):
    """
    Return a slice with a margin, which is less where it would cost much.

    Example:
        >>> _widen(slice(0, 20), 100), _widen(slice(50, 51), 100)
        (slice(0, 23, None), slice(50, 51, None))
    """
    margin = min(_MARGIN, (side.stop - side.start) // 4)
    return slice(max(0, side.start - margin), min(size, side.stop + margin))


def read_nearest(fpath, band, grid, warp_img_from_asset=None, nodata=None):
    """
    Read what must not be averaged: each pixel is one of the file, as stored.

    Args:
        fpath (str): any raster that GDAL opens.
        band (int): from 0.
        grid (Grid): of the picture.
        warp_img_from_asset (dict | None): as a manifest has it; None is none.
        nodata (int | float | None): value that stands for none; None: that
            of the file.

    Returns:
        ndarray: float64, which holds every 32-bit id, shape (h, w); NaN
        outside of the file and where there is no data.

    Example:
        >>> import numpy as np, ubelt as ub
        >>> from cocoseg import write_cog
        >>> fpath = ub.Path.appdir('cocoseg/doctest/report').ensuredir() / 'ids.tif'
        >>> info = write_cog(fpath, np.kron([[0, 7], [8, 9]], np.ones((8, 8))).astype('u4'),
        ...                  nodata=0)
        >>> read_nearest(fpath, 0, Grid((2, 2), (16, 16))).tolist()
        [[nan, 7.0], [8.0, 9.0]]
    """
    import kwimage
    from delayed_image import DelayedLoad
    warp = kwimage.Affine.coerce(warp_img_from_asset or {'type': 'affine'})
    file_from_picture = np.asarray(warp.inv().matrix, float) @ np.diag(
        [1 / grid.scale_xy[0], 1 / grid.scale_xy[1], 1.0])
    leaf = DelayedLoad(fpath, nodata_method='float' if nodata is None else None).prepare()
    level = min(leaf.num_overviews or 0, _count_halvings(file_from_picture))
    if level:
        small = leaf.get_overview(level)
        shrink = np.diag([small.dsize[0] / leaf.dsize[0], small.dsize[1] / leaf.dsize[1], 1.0])
        leaf, file_from_picture = small, shrink @ file_from_picture
    leaf = leaf.take_channels([band])
    out = np.full(grid.shape, np.nan)
    cost = max(1.0, abs(np.linalg.det(file_from_picture[:2, :2])))
    for place in grid.iter_parts(cost):
        out[place] = _pick(leaf, place, file_from_picture)
    if nodata is not None:
        out[out == nodata] = np.nan
    return out


def _pick(leaf, place, file_from_picture):
    """Return the pixels of a file in which the centers of a part of a picture lie."""
    rows, columns = (np.arange(part.start, part.stop) + 0.5 for part in place)
    points = np.stack(np.broadcast_arrays(columns[None], rows[:, None], 1.0))
    x, y = np.floor(np.einsum('ij,jhw->ihw', file_from_picture[:2], points) + 1e-9).astype(int)
    width, height = leaf.dsize
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    out = np.full(inside.shape, np.nan)
    if inside.any():
        x, y = x[inside], y[inside]
        box = slice(y.min(), y.max() + 1), slice(x.min(), x.max() + 1)
        found = np.asarray(leaf.crop(box).finalize())
        out[inside] = found.reshape(*found.shape[:2])[y - box[0].start, x - box[1].start]
    return out
