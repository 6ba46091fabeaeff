"""
Previews: one picture that shows what a reader of the result gets.

The photograph, one class's heatmap and the class map of an image, side by
side, read back through the manifest: dequantized, aligned in video space, and
grey where there is no data. Pictures are RGB uint8 arrays until they are
written. Reads the manifest, never changes it.
"""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from cocoseg.coco import drawing
from cocoseg.errors import AssetWriteError, ManifestError, OptionError

# As many classes as have colors for color-blind readers, but for black.
_MAX_CLASSES = 7
_BACKGROUND = (0, 0, 0)
_TEXT_COLOR = (235, 235, 235)
_FOOTER_HEIGHT = 34
_MIN_FOOTER_WIDTH = 300


def draw_preview(dset, image_id, channels, fpath, *, heat_channel=None,
                 rgb_channels='red|green|blue'):
    """
    Draw photograph, heatmap and class map of one image into a PNG.

    Args:
        dset (kwcoco.CocoDataset): manifest with the predicted ``channels``.
        image_id (int): which image.
        channels (str): predicted class probabilities, at most 7.
        fpath (str | PathLike): new file; its folder is made if missing. It
            appears only when it is complete.
        heat_channel (str | None): class of the heatmap; the first by default.
        rgb_channels (str): three channels of the photograph.

    Returns:
        str: path of the file.

    Raises:
        ManifestError: if the image lacks one of the channels.
        OptionError: for more than 7 classes, or a ``heat_channel`` that is
            not one of them.
        AssetWriteError: if the file could not be written.

    Example:
        >>> import kwcoco, kwimage
        >>> import ubelt as ub
        >>> from cocoseg.coco.preview import draw_preview
        >>> dset = kwcoco.CocoDataset.demo('vidshapes1-multispectral', num_frames=1)
        >>> dpath = ub.Path.appdir('cocoseg/doctest/preview').delete()
        >>> fpath = draw_preview(dset, 1, 'B1|B8', dpath / 'frame.png',
        ...                      rgb_channels='B8a|B8a|B8a')
        >>> image = kwimage.imread(fpath)
        >>> assert image.shape[2] == 3 and image.std() > 10
    """
    names = _channel_names(channels)
    heat_channel = names[0] if heat_channel is None else heat_channel
    if len(names) > _MAX_CLASSES or heat_channel not in names:
        raise OptionError(
            f'cannot draw {len(names)} classes {names} with the heatmap of '
            f'{heat_channel!r}; give at most {_MAX_CLASSES} channels, and '
            'one of them as heat_channel')
    coco_image = dset.coco_image(image_id)
    photo = _read_channels(coco_image, rgb_channels)
    probs = _read_channels(coco_image, channels)

    heat = probs[..., names.index(heat_channel)]
    panels = [
        _draw_panel(_describe_image(coco_image), draw_photo(photo), None),
        _draw_panel(f'probability of {heat_channel}', draw_heatmap(heat),
                    _draw_color_bar()),
        _draw_panel('most probable class', draw_class_map(probs),
                    _draw_legend(names)),
    ]
    import kwimage
    canvas = kwimage.stack_images(panels, axis=1, pad=8, bg_value=_BACKGROUND)
    return _write_png(Path(fpath), canvas, image_id)


def draw_photo(photo):
    """
    Draw three bands, stretched so that 1 % to 99 % of the values fit.

    Args:
        photo (ndarray): float, shape (h, w, 3), any unit; NaN without data.

    Returns:
        ndarray: uint8 RGB, shape (h, w, 3); grey where a band is NaN. One
            stretch for all bands, so hues stay true.

    Example:
        >>> from cocoseg.coco.preview import draw_photo
        >>> import numpy as np
        >>> photo = np.full((1, 3, 3), 10.0)
        >>> photo[0, 1], photo[0, 2] = 20.0, np.nan
        >>> draw_photo(photo)[0, :, 0].tolist()
        [0, 255, 128]
    """
    return drawing.stretch_photo(photo)


def draw_heatmap(probs):
    """
    Draw one probability through a perceptually uniform colour map.

    Args:
        probs (ndarray): float, shape (h, w), 0..1; outside is clipped. NaN
            without data.

    Returns:
        ndarray: uint8 RGB, shape (h, w, 3); dark purple is 0, yellow is 1,
            grey is NaN.

    Example:
        >>> from cocoseg.coco.preview import draw_heatmap
        >>> import numpy as np
        >>> draw_heatmap(np.array([[0.0, 1.0, np.nan]]))[0].tolist()
        [[68, 1, 84], [253, 231, 37], [128, 128, 128]]
    """
    return drawing.draw_heatmap(probs, minmax=(0, 1), cmap='viridis')


def draw_class_map(probs):
    """
    Draw the most probable class of every pixel.

    Args:
        probs (ndarray): float, shape (h, w, K), K at most 7; NaN without data.

    Returns:
        ndarray: uint8 RGB, shape (h, w, 3); grey where any class is NaN.

    Example:
        >>> from cocoseg.coco.preview import draw_class_map
        >>> import numpy as np
        >>> probs = np.array([[[0.9, 0.1], [0.2, 0.8], [np.nan, 1.0]]])
        >>> draw_class_map(probs)[0].tolist()
        [[0, 114, 178], [0, 158, 115], [128, 128, 128]]
    """
    valid = np.isfinite(probs).all(axis=2)
    classes = np.where(valid, probs.argmax(axis=2), -1)
    return drawing.draw_classes(classes, [''] * probs.shape[2])


def _channel_names(channels):
    """Return the names of a channel spec, in order."""
    from delayed_image import FusedChannelSpec
    return FusedChannelSpec.coerce(channels).as_list()


def _read_channels(coco_image, channels):
    """Return channels in video space as float32 (h, w, C), NaN without data."""
    names = _channel_names(channels)
    present = set(coco_image.channels.fuse().as_list()) if coco_image.channels else set()
    missing = [name for name in names if name not in present]
    if missing:
        raise ManifestError(
            f'image {coco_image.img["id"]} has no channels {missing}, only '
            f'{sorted(present)}; predict them first, or give other channels')
    space = 'video' if coco_image.img.get('video_id') is not None else 'image'
    delayed = coco_image.imdelay(channels, space=space, nodata_method='float')
    return np.asarray(delayed.finalize(), np.float32)


def _describe_image(coco_image):
    """Return a title such as ``naip_20090818, 2009-08-18``."""
    img = coco_image.img
    title = str(img.get('name') or f'image {img["id"]}')
    date = img.get('date_captured')
    return f'{title}, {date}' if date else title


def _draw_panel(title, picture, footer):
    """Return a picture with its title above and its legend below."""
    import kwimage

    if footer is None:
        footer = _blank_footer()
    panel = kwimage.draw_header_text(
        picture, title, fit='shrink', color=_TEXT_COLOR,
        bg_color=_BACKGROUND, fontScale=0.6, thickness=1)
    return kwimage.stack_images([panel, footer], axis=0, bg_value=_BACKGROUND)


def _blank_footer(width=_MIN_FOOTER_WIDTH):
    """Return an empty strip of the height of every legend."""
    return np.full((_FOOTER_HEIGHT, width, 3), _BACKGROUND, np.uint8)


def _draw_color_bar():
    """Return the legend of the heatmap: 0 to 1, and the colour of no data."""
    footer = _blank_footer()
    ramp = draw_heatmap(np.linspace(0, 1, 120)[None].repeat(12, axis=0))
    footer[11:23, 26:146] = ramp
    _put_text(footer, '0', 10)
    _put_text(footer, '1', 152)
    _draw_swatch(footer, 'no data', 190, drawing.NODATA_COLOR)
    return footer


def _draw_legend(names):
    """Return the legend of the class map: a swatch and a name per class."""
    widths = [40 + 9 * len(name) for name in names]
    footer = _blank_footer(max(_MIN_FOOTER_WIDTH, 10 + sum(widths)))
    x = 10
    for name, width, color in zip(names, widths, drawing.color_classes(len(names))):
        _draw_swatch(footer, name, x, color)
        x += width
    return footer


def _draw_swatch(footer, text, x, color):
    """Draw a coloured square and its name into a footer, in place."""
    footer[11:23, x:x + 12] = color
    _put_text(footer, text, x + 18)


def _put_text(footer, text, x):
    """Draw a line of text into a footer, in place."""
    import cv2
    cv2.putText(footer, text, (x, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.45,
                _TEXT_COLOR, 1, cv2.LINE_AA)


def _write_png(fpath, canvas, image_id):
    """Write an RGB picture under a temporary name, then rename; return the path."""
    import cv2

    encoded = cv2.imencode('.png', np.ascontiguousarray(canvas[..., ::-1]))[1]
    part = None
    try:
        fpath.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
                dir=fpath.parent, prefix=f'.{fpath.name}.', suffix='.part',
                delete=False) as file:
            part = file.name
            file.write(encoded.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, fpath)
    except OSError as ex:
        if part is not None and os.path.exists(part):
            os.unlink(part)
        raise AssetWriteError(
            f'the preview {fpath} could not be written: {ex}; check the folder '
            'and the free space', image_id=image_id, path=os.fspath(fpath)) from ex
    return os.fspath(fpath)
