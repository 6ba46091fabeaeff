"""
A GDAL dataset of labels, from a file or an array.
"""
from __future__ import annotations

from contextlib import contextmanager

from cocoseg.io.dataset import RasterMeta, memory_dataset
from cocoseg.io.gdal_gate import close_dataset
from cocoseg.io.raster import open_dataset


@contextmanager
def open_labels(source):
    """
    Yield GDAL's dataset of a label source.

    Call inside :func:`cocoseg.io.gdal_gate.gdal_errors_as_exceptions`.

    Args:
        source (Source): of :meth:`cocoseg.io.strips.Source.as_label_source`.

    Yields:
        gdal.Dataset: of a file itself; of an array with uint32 pixels, nodata
        0, and where it lies.

    Example:
        >>> from cocoseg.io.label_dataset import open_labels
        >>> from cocoseg.io.strips import Source
        >>> import numpy as np
        >>> with open_labels(Source.open(np.ones((2, 3), int))) as dataset:
        >>>     size = dataset.RasterXSize, dataset.RasterYSize
        >>> size
        (3, 2)
    """
    if source.fpath is not None:
        with open_dataset(source.fpath) as dataset:
            yield dataset
        return
    labels = source.read_labels(0, source.shape[0])
    meta = RasterMeta(nodata=0, crs_wkt=source.crs_wkt, geotransform=source.geotransform)
    dataset = memory_dataset(labels[:, :, None], meta)
    try:
        yield dataset
    finally:
        close_dataset(dataset)
