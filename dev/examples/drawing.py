"""
What the examples draw with: outlines, stable colors, and panels with titles.
"""
from __future__ import annotations

import numpy as np

from cocoseg.coco.drawing import EMPTY_COLOR, color_ids, draw_segments, find_edges, stretch_photo


def stretch(image):
    """Return a gray image as bytes (H, W, 3) over the middle 99 % of its values."""
    return stretch_photo(image, percentiles=(0.5, 99.5))


def fill(labels, like=None):
    """
    Return labels (H, W) as a picture (H, W, 3), with a dark line between them.

    Args:
        labels (ndarray): whole numbers, 0 is background.
        like (ndarray | None): other labels; each label takes the color of that
            with which it has most pixels in common.
    """
    ids, flat = np.unique(labels, return_inverse=True)
    flat = flat.reshape(labels.shape)
    partners = ids if like is None else find_partners(flat.ravel(), len(ids), like)
    colors = color_ids(partners)
    colors[partners == 0] = 150
    colors[ids == 0] = EMPTY_COLOR
    picture = colors[flat]
    picture[find_edges(labels)] //= 3
    return picture


def find_partners(flat, n_labels, like):
    """Return for each label the id with which it has most pixels in common; 0 for none."""
    others, flat_others = np.unique(like, return_inverse=True)
    counts = np.zeros((n_labels, len(others)), np.int64)
    np.add.at(counts, (flat, flat_others.reshape(-1)), 1)
    return others[counts.argmax(axis=1)]


def outline(picture, labels, color):
    """Return a picture with a line around each label, inside of it."""
    return draw_segments(labels, background=picture, outline=color, alpha=0)


def mark_blocks(picture, block, color=(255, 255, 255)):
    """Return a picture with dotted lines where blocks meet."""
    picture = picture.copy()
    for y in range(block[0], picture.shape[0], block[0]):
        picture[y, ::4] = color
    for x in range(block[1], picture.shape[1], block[1]):
        picture[::4, x] = color
    return picture


def save_panels(fpath, rows, zoom=1, dpi=110):
    """
    Write pictures in rows, each with its title.

    Args:
        fpath (Path): *.png or *.jpg.
        rows (list[list[tuple[str, ndarray]]]): titles and pictures (h, w, 3).
        zoom (float): how large a pixel is.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    n_columns = max(map(len, rows))
    width = max(sum(picture.shape[1] for _, picture in row) for row in rows)
    heights = [max(picture.shape[0] for _, picture in row) for row in rows]
    figure = Figure(figsize=(width * zoom / dpi + 0.3,
                             sum(heights) * zoom / dpi + 0.35 * len(rows)), dpi=dpi,
                    layout='constrained')
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(rows), n_columns, squeeze=False,
                             gridspec_kw={'height_ratios': heights})
    for axes, row in zip(panels, rows):
        for panel in axes:
            panel.axis('off')
        for panel, (title, picture) in zip(axes, row):
            panel.imshow(picture, interpolation='nearest')
            panel.set_title(title, fontsize=9, loc='left', pad=3)
    options = {'pil_kwargs': {'quality': 85}} if str(fpath).endswith('.jpg') else {}
    figure.savefig(fpath, **options)
