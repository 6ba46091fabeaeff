"""
Small functions that scripts for the reference use besides the manager.
"""
from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from cocoseg.grid.window import Window, as_int
from cocoseg.stitch.blend import edge_weights
from cocoseg.stitch.soft import SoftStitcher, as_numpy, check_weights


def fix_slice(sl: Any) -> Any:
    """
    Return a slice, or a tuple of slices, with Python ints.

    Args:
        sl (slice | Sequence[slice]): with any whole numbers, or None.

    Raises:
        CoverageError: if an edge is no whole number of pixels.

    Example:
        >>> import numpy as np
        >>> fix_slice((slice(np.int64(0), 4.0), slice(None, 2)))
        (slice(0, 4, None), slice(None, 2, None))
    """
    if isinstance(sl, (tuple, list)):
        return tuple(fix_slice(part) for part in sl)

    return slice(*(None if edge is None else as_int(edge, 'edge')
                   for edge in (sl.start, sl.stop, sl.step)))


def weigh_window(window, weights, downweight_edges):
    """
    Return the weights of a window, their edges lowered on request.

    Args:
        window (Window): the whole window, before clipping.
        weights (ndarray | Tensor | None): finite, >= 0, shape (h, w).
        downweight_edges (bool): multiply by the edge weights.

    Returns:
        ndarray | None: as given if nothing is to be done.

    Example:
        >>> float(weigh_window(Window(0, 0, 16, 16), None, True).max())
        1.0
    """
    if not downweight_edges:
        return weights
    edges = edge_weights(window.shape)
    if weights is None:
        return edges
    weights = as_numpy(weights)
    check_weights(weights, window)
    return weights * edges


def center_weighted_add(stitcher, space_slice, data, weights=None, downweight_edges=True):
    """
    Add a window to a bare stitcher, its edges weighted down.

    Args:
        stitcher (SoftStitcher | kwarray.Stitcher): gets the data.
        space_slice (tuple[slice, slice] | None): px, may overhang; None is all.
        data (ndarray | Tensor): shape (h, w) or (h, w, C), NaN where invalid.
            Never modified.
        weights (ndarray | Tensor | None): shape (h, w).
        downweight_edges (bool): multiply by the edge weights.

    Example:
        >>> import kwarray
        >>> data = np.ones((8, 8))
        >>> data[0, 0] = np.nan
        >>> for stitcher in [kwarray.Stitcher((8, 8)), SoftStitcher((8, 8))]:
        ...     center_weighted_add(stitcher, None, data)
        ...     result = stitcher.finalize()
        ...     assert np.isnan(result[0, 0]) and result[4, 4] == 1
    """
    shape = stitcher.shape[:2]
    window = (Window.from_shape(shape) if space_slice is None
              else Window.coerce(fix_slice(space_slice), shape))
    weights = weigh_window(window, weights, downweight_edges)
    if isinstance(stitcher, SoftStitcher):
        stitcher.add(window, data, weights)
        return
    inside = window.clip(shape)
    crop = inside.within(window).slices
    data = as_numpy(data)[crop]
    weights = np.ones(inside.shape, 'f4') if weights is None else as_numpy(weights)[crop]
    invalid = ~np.isfinite(data)
    if data.ndim == 3:
        invalid = invalid.any(axis=2, keepdims=True)
        weights = weights[..., None]
    stitcher.add(inside.slices, np.where(invalid, 0, data), weight=np.where(invalid, 0, weights))


def take_deprecated(kwargs, asset_dsize, scale):
    """
    Return (asset_dsize, scale), also from their names of old, with a warning.

    Args:
        kwargs (dict): unknown arguments of ``accumulate_image``.
        asset_dsize: as given by its own name, or None.
        scale: as given by its own name, or None.

    Raises:
        TypeError: for any other name.

    Example:
        >>> take_deprecated({}, (8, 8), None)
        ((8, 8), None)
    """
    unknown = set(kwargs) - {'dsize', 'scale'}
    if unknown:
        raise TypeError(f'accumulate_image got unknown arguments {sorted(unknown)}')
    if kwargs:
        warnings.warn('dsize and scale are deprecated; use asset_dsize and '
                      'scale_asset_from_stitchspace', DeprecationWarning, stacklevel=3)
    return (asset_dsize if kwargs.get('dsize') is None else kwargs['dsize'],
            scale if kwargs.get('scale') is None else kwargs['scale'])
