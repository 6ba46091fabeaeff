"""
What the predict scripts share: their options, the video they run on, and their pictures.
"""
from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from cocoseg.coco.demo import IMAGE_CHANNELS, demo_dataset
from cocoseg.coco.drawing import stretch_photo

# Of the video: a shore, water, crops and bare soil are around it.
CENTER = (235, 330)


def make_parser(name, doc):
    """
    Return a parser with the options that all scripts have.

    Args:
        name (str): of the script; the default folder is called so.
        doc (str): of the script; its second line is the description.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[1])
    parser.add_argument('--dst', type=Path, help='folder for the results',
                        default=Path(tempfile.gettempdir()) / 'cocoseg_examples' / name)
    parser.add_argument('--size', type=int, metavar='PX',
                        help='only a square of this size in the middle of the video')
    return parser


def make_video(dst, size=None):
    """
    Write the video that comes with the package: three aerial photographs of one place.

    Args:
        dst (Path): folder of the results; the video goes into a folder there.
        size (int | None): px. The video becomes a square of this size: its
            frames stay what they are, and lie partly outside of it.

    Returns:
        kwcoco.CocoDataset: saved, with the channels red, green, blue and nir.
    """
    import kwimage
    dset = demo_dataset(dst / 'video')
    if size is None:
        return dset
    video, = dset.videos().objs
    corner = [min(max(middle - size // 2, 0), extent - size)
              for middle, extent in zip(CENTER, (video['height'], video['width']))]
    if min(corner) < 0:
        raise SystemExit(f'--size {size} is more than the {video["height"]} px of the video')
    shift = kwimage.Affine.translate((-corner[1], -corner[0]))
    video.update(width=size, height=size, warp_wld_to_vid=(
        shift @ kwimage.Affine.coerce(video['warp_wld_to_vid'])).__json__())
    for image in dset.images().objs:
        image['warp_img_to_vid'] = (
            shift @ kwimage.Affine.coerce(image['warp_img_to_vid'])).__json__()
    dset.dump()
    return dset


def read_channels(dset, image_id, channels=IMAGE_CHANNELS, interpolation='nearest', space='video'):
    """Return channels of an image as float32 (H, W, C), NaN where no data is."""
    delayed = dset.coco_image(image_id).imdelay(
        channels, space=space, interpolation=interpolation, nodata_method='float')
    pixels = np.asarray(delayed.finalize(interpolation=interpolation), np.float32)
    return pixels.reshape(*pixels.shape[:2], -1)


def draw_photo(dset, image_id):
    """Return an image of the video in natural colors, uint8 (H, W, 3)."""
    return stretch_photo(read_channels(dset, image_id, 'red|green|blue', 'linear'))


def draw_lines(lines, width):
    """
    Return lines of text on white, uint8 (h, width, 3).

    Args:
        lines (Sequence[tuple[str, str | None]]): texts, and the color in front
            of each, as ``make_legend`` tells them, or None.
        width (int): px.
    """
    import kwimage
    strip = np.full((26 * len(lines), width, 3), 255, np.uint8)
    for row, (text, color) in enumerate(lines):
        top = 26 * row
        if color is not None:
            strip[top + 6:top + 20, 6:26] = np.frombuffer(bytes.fromhex(color[1:]), np.uint8)
        strip = kwimage.draw_text_on_image(
            strip, text, org=(6 if color is None else 34, top + 4), color='black', fontScale=0.5,
            thickness=1, valign='top')
    return strip


def save_row(fpath, pictures, legend=()):
    """
    Write pictures side by side, each with a title.

    Args:
        fpath (Path): *.png.
        pictures (dict[str, ndarray]): uint8 (H, W, 3), by title.
        legend (Sequence): names and colors, below the last picture.
    """
    import kwimage

    from cocoseg.io.images import write_image
    columns = [np.concatenate([draw_lines([(title, None)], picture.shape[1]), picture])
               for title, picture in pictures.items()]
    if legend:
        columns[-1] = np.concatenate([columns[-1], draw_lines(legend, columns[-1].shape[1])])
        columns[:-1] = [np.pad(column, [(0, 26 * len(legend)), (0, 0), (0, 0)],
                               constant_values=255) for column in columns[:-1]]
    row = kwimage.stack_images(columns, axis=1, pad=8, bg_value='white')
    write_image(fpath, np.ascontiguousarray(row), fmt='png')
