"""
How neuroglancer is told to show an array: a layer of its JSON state.

Neither neuroglancer nor zarr is imported.
"""
from __future__ import annotations

from cocoseg.io.zarr_layout import CHANNEL_AXIS


def describe_layer(array, address):
    """
    Return the layer that shows an array at its place in the world.

    Args:
        array (ZarrArray): whole numbers of 32 bits or more and without
            channels are shown as segments.
        address (str): of the array, as the viewer reads it.

    Returns:
        dict: type, name and source of the layer. Units are those of the
        attribute ``units``, else nanometers.
    """
    is_labels = (array.num_channels is None and array.dtype.kind == 'u'
                 and array.dtype.itemsize >= 4)
    return {'type': 'segmentation' if is_labels else 'image', 'name': array.name,
            'source': {'url': f'zarr://{address}',
                       'transform': {
                           'matrix': compute_matrix(array.layout),
                           'outputDimensions': _describe_axes(array)}}}


def compute_matrix(layout):
    """
    Return world_from_voxel, a row per axis with the offset last.

    Args:
        layout (VolumeLayout): channels are not moved.

    Example:
        >>> from cocoseg.io.neuroglancer import compute_matrix
        >>> from cocoseg.io.zarr_layout import VolumeLayout
        >>> compute_matrix(VolumeLayout('cyx', (40, 4), (100, 0)))
        [[1, 0, 0, 0], [0, 40, 0, 100], [0, 0, 4, 0]]
    """
    scales = layout.arrange(layout.voxel_size, 1)
    shifts = layout.arrange(layout.offset, 0)
    return [[scale if column == row else 0 for column in range(len(scales))] + [shift]
            for row, (scale, shift) in enumerate(zip(scales, shifts))]


def _describe_axes(array):
    layout = array.layout
    units = array.attrs.get('units') or ['nm'] * layout.ndim
    units = layout.pick(units) if len(units) == len(layout.axes) else units
    # Their mark of an axis along which nothing is near or far.
    return {f'{CHANNEL_AXIS}^' if axis == CHANNEL_AXIS else axis: [1, unit]
            for axis, unit in zip(layout.axes, layout.arrange(units, ''))}
