"""
A window arrives: what its image takes of it, for values and for labels.
"""
from __future__ import annotations

import numpy as np

from cocoseg.coco.compat import weigh_window
from cocoseg.errors import BandCountError, OptionError
from cocoseg.grid.window import Window
from cocoseg.stitch.soft import as_numpy


def take_window(job, place, data, *, weights=None, downweight_edges=False, values=None):
    """
    Add a window to the pixels of an image.

    Args:
        job (ImageJob): the image.
        place (tuple[slice, slice] | Window | kwimage.Box | None): px; None is
            the whole image.
        data, weights, downweight_edges, values: of
            :meth:`CocoStitchingManager.accumulate_image`.

    Raises:
        OptionError: for an argument that has no meaning for this kind.
        CocosegError: see :meth:`CocoStitchingManager.accumulate_image`.
    """
    options, shape = job.options, job.stitcher.shape
    window = Window.from_shape(shape) if place is None else Window.coerce(place, shape)
    if options.kind == 'labels':
        if weights is not None or downweight_edges:
            raise OptionError("weights and downweight_edges are for values that are blended; "
                              "leave them out with kind='labels'")
        _check_bands(options, window, data)
        job.pixels.add(window, data, values)
        return
    if values is not None:
        raise OptionError("values are for labels, to tell which are alike; this manager has "
                          "kind='soft', which takes its values as data")
    job.stitcher.clip(window)
    weights = weigh_window(window, weights, downweight_edges)
    job.pixels.add(window, _fit_bands(options, window, data), weights)


def _fit_bands(options, window, data):
    """Return the data with a band axis that fits the channels."""
    n_bands = len(options.channels)
    if not hasattr(data, 'detach'):
        data = as_numpy(data)
    if len(data.shape) == 2:
        # No band axis: the plane stands for every channel.
        data = as_numpy(data)[..., None].repeat(n_bands, axis=2)
    _check_bands(options, window, data)
    return data


def _check_bands(options, window, data):
    shape, n_bands = np.shape(data), len(options.channels)
    if len(shape) == 3 and shape[2] != n_bands:
        raise BandCountError(
            f'data for {window} has {shape[2]} bands but chan_code={options.chan_code!r} '
            f'has {n_bands}; give one band per channel')
