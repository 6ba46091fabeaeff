"""
Styles of QGIS for the assets of a dataset, a file beside each.

What an asset is, its entry in the manifest and its file tell; what it is to look
like, :mod:`cocoseg.io.qgis_style` puts into words. Colors are those of
:mod:`cocoseg.coco.drawing`. The manifest is not changed: a style is a sidecar that
nothing refers to, and no check calls it an orphan.
"""
from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import numpy as np

from cocoseg.coco import drawing
from cocoseg.coco.journal import list_journals, read_journaled
from cocoseg.coco.manifest import get_manifest, list_channels
from cocoseg.errors import OptionError
from cocoseg.grid.window import Window
from cocoseg.io import qgis_style
from cocoseg.io.commit import as_write_error, atomic_write
from cocoseg.io.raster import raster_info, read_raster

if TYPE_CHECKING:
    import kwcoco

logger = logging.getLogger(__name__)

_RGB_NAMES = (('red', 'green', 'blue'), ('r', 'g', 'b'))
_RAMP, _DEVIATION_RAMP = 'magma', 'viridis'
_MASK_COLOR = '#e69f00'
# Pixels that are decoded at a time, and the windows that a range is taken from.
_STEP, _SAMPLE_SIDE, _SAMPLES = 2 ** 24, 256, 4


def write_styles(dset: kwcoco.CocoDataset, channels: str | None = None) -> list[str]:
    """
    Write a QGIS style beside assets, by which QGIS opens them in color.

    For every image, of every asset that cocoseg wrote: ``{stem}.qml`` beside
    ``{stem}.tif``, complete or not at all. The kind is told by the asset:

    * a class map: its classes, with names and the colors of ``draw_classes``;
    * labels: each id in the color of ``draw_segments``, 0 transparent (see
      :func:`~cocoseg.io.qgis_style.make_segments_qml` for many);
    * a mask: what it holds in orange, the rest transparent;
    * a disagreement, a mean, or any other values: a ramp over the first band,
      from ``expected_minmax`` (of floats: 2 % to 98 % of a sample).

    A style tells what was in the file when it was written. A run that replaces
    an asset leaves it; write styles again after it. A style of ours whose asset
    is gone is removed. A style that somebody saved in QGIS, or made
    themselves, is never touched: QGIS drops the mark by which ours are told.

    Args:
        dset (kwcoco.CocoDataset): the manifest; not changed.
        channels (str | None): assets with one of these channels, also those
            that are not of cocoseg; the first band among them is shown. An
            asset with red, green and blue is drawn in its colors. None is
            every asset that a journal or ``has_predictions`` tells as ours.

    Returns:
        list[str]: the styles that were written, in the order of the manifest.

    Raises:
        OptionError: if no asset has one of the channels.
        OSError: if a file cannot be read.
        AssetWriteError: if a style cannot be written.

    Note:
        Files of labels are read as a whole, of others little or nothing.

    Example:
        >>> import os
        >>> from cocoseg import demo_coco_stitching_manager
        >>> from cocoseg.coco.styles import write_styles
        >>> dset = demo_coco_stitching_manager()
        >>> fpaths = write_styles(dset)
        >>> len(fpaths), sorted({os.path.splitext(fpath)[1] for fpath in fpaths})
        (4, ['.qml'])
    """
    wanted = None if channels is None else set(list_channels(channels))
    written = []
    for style, path, asset, names, is_ours in _iter_styles(dset, wanted, channels):
        if not os.path.exists(path):
            _remove(style)
            logger.warning('%s is missing and gets no style', path)
            continue
        _write(style, _describe(path, asset, names, wanted, is_ours))
        written.append(style)
    return written


def list_styles(dset, channels=None):
    """
    Return what :func:`write_styles` would write, and write nothing.

    Args:
        dset, channels: of that function.

    Example:
        >>> from cocoseg import demo_coco_stitching_manager
        >>> from cocoseg.coco.styles import list_styles
        >>> [fpath[-4:] for fpath in list_styles(demo_coco_stitching_manager())]
        ['.qml', '.qml', '.qml', '.qml']
    """
    wanted = None if channels is None else set(list_channels(channels))
    return [style for style, path, *_ in _iter_styles(dset, wanted, channels)
            if os.path.exists(path)]


def _iter_styles(dset, wanted, channels):
    """Yield (style, file, entry, channels of the file, whether it is ours) of what gets one."""
    bundle = get_manifest(dset).bundle_dpath
    seen, n_found, journaled = set(), 0, {}
    for img, asset in _iter_assets(dset):
        path = os.path.normpath(os.path.join(bundle, asset['file_name']))
        names = list_channels(asset['channels']) if asset.get('channels') else []
        is_ours = _is_ours(img, asset, path, journaled)
        if not (is_ours if wanted is None else wanted & set(names)):
            continue
        n_found += 1
        style = os.path.splitext(path)[0] + '.qml'
        if style in seen:
            logger.warning('%s has the style of another asset of this name; it gets none', path)
        elif _is_foreign(style):
            logger.info('%s is not of cocoseg, or was saved in QGIS; it is kept', style)
        else:
            seen.add(style)
            yield style, path, asset, names, is_ours
    if wanted is not None and not n_found:
        raise OptionError(f'channels={channels!r}: no asset of {dset.fpath} on this machine has '
                          'one of them; give others, or None for all that cocoseg wrote')


def _iter_assets(dset):
    """Yield (image, entry) of every file on this machine."""
    for img in dset.dataset['images']:
        for asset in (img, *(img.get('assets') or ()), *(img.get('auxiliary') or ())):
            name = asset.get('file_name')
            if name and '://' not in name and not name.startswith('/vsi'):
                yield img, asset


def _is_ours(img, asset, path, journaled):
    """Return True if cocoseg wrote an asset; ``journaled`` keeps what journals say."""
    told = img.get('has_predictions')
    if isinstance(told, dict) and asset.get('channels') in told:
        return True
    folder = os.path.dirname(path)
    if folder not in journaled:
        journaled[folder] = {found for journal in list_journals(folder)
                             for found in read_journaled(journal)}
    return path in journaled[folder]


def _is_foreign(style):
    """Return True if there is a style that is not, or no longer, ours."""
    try:
        with open(style, encoding='utf8', errors='replace') as file:
            return not qgis_style.is_ours(file.read(1000))
    except FileNotFoundError:
        return False


def _remove(style):
    """Remove a style of ours, if it is there."""
    try:
        os.unlink(style)
    except FileNotFoundError:
        return


def _write(style, text):
    try:
        with atomic_write(style) as temp:
            temp.write_text(text, encoding='utf8')
    except OSError as ex:
        raise as_write_error(style, ex) from ex


def _describe(path, asset, names, wanted, is_ours):
    """Return the style of one asset."""
    info = raster_info(path)
    band = next((index for index, name in enumerate(names) if wanted and name in wanted), 0)
    if asset.get('categories'):
        legend = drawing.make_legend([str(name) for name in asset['categories']])
        return qgis_style.make_classes_qml(
            [(value, name, color) for value, (name, color) in enumerate(legend)])
    if asset.get('quantization'):
        return _describe_values(names[band], band, _find_range(asset['quantization'], info, band))
    if info.dtype == 'uint32' and info.shape[2] == 1:
        return qgis_style.make_segments_qml(_list_ids(path, info), drawing.color_ids)
    if is_ours and info.dtype == 'uint8':
        # Of a threshold 1 is in and 255 nodata; of valid pixels 255 is in.
        value = 255 if asset.get('nodata') == 0 else 1
        return qgis_style.make_classes_qml([(value, names[band], _MASK_COLOR)], band=band + 1)
    for colors in _RGB_NAMES:
        if set(colors) <= set(names):
            bands = [names.index(color) for color in colors]
            ranges = [_sample_range(path, info, index) for index in bands]
            return qgis_style.make_rgb_qml([index + 1 for index in bands], ranges)
    name = names[band] if names else ''
    return _describe_values(name, band, _sample_range(path, info, band))


def _describe_values(name, band, minmax):
    """Return the style of values; deviations have a ramp of their own."""
    is_deviation = name.partition('.')[0].endswith('_std')
    stops = drawing.list_stops(_DEVIATION_RAMP if is_deviation else _RAMP, 17)
    return qgis_style.make_heatmap_qml(stops, minmax, band=band + 1)


def _find_range(quantization, info, band):
    """Return the range of a quantized band, as QGIS sees its values."""
    # A file without a scale, such as a PNG, shows its codes.
    is_scaled = info.scales[band] is not None and (info.scales[band], info.offsets[band]) != (1, 0)
    ends = ('orig_min', 'orig_max') if is_scaled else ('quant_min', 'quant_max')
    return tuple(float(quantization[end]) for end in ends)


def _sample_range(path, info, band):
    """Return 2 % to 98 % of the true values in windows spread over the image."""
    height, width, _ = info.shape
    starts = [np.unique(np.linspace(0, max(side - _SAMPLE_SIDE, 0), _SAMPLES).astype(int))
              for side in (height, width)]
    parts = []
    for y0 in starts[0].tolist():
        for x0 in starts[1].tolist():
            window = Window(y0, x0, min(y0 + _SAMPLE_SIDE, height), min(x0 + _SAMPLE_SIDE, width))
            part = read_raster(path, window, bands=[band]).astype(np.float64)
            if info.nodata is not None:
                part[part == info.nodata] = np.nan
            parts.append(part.reshape(-1))
    scale = 1.0 if info.scales[band] is None else info.scales[band]
    low, high = drawing.pick_minmax(np.concatenate(parts) * scale + (info.offsets[band] or 0.0))
    return (low, high) if low < high else (low, low + 1)


def _list_ids(path, info):
    """Return the ids of labels, ascending; of too many for a list some, with both ends."""
    height, width, _ = info.shape
    step = max(1, _STEP // width)
    ids, top = np.zeros(0, np.int64), 0
    for y0 in range(0, height, step):
        labels = read_raster(path, Window(y0, 0, min(y0 + step, height), width))
        top = max(top, int(labels.max()))
        if len(ids) <= qgis_style.MAX_ENTRIES:
            ids = np.union1d(ids, labels[labels > 0]).astype(np.int64)
    return ids if not len(ids) or ids[-1] == top else np.append(ids, top)
