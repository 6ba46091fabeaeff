"""
What the examples draw with: outlines, stable colors, and panels with titles.
"""
from __future__ import annotations

import colorsys

import numpy as np

BACKGROUND = (24, 24, 28)


def stretch(image):
    """Return a gray image as bytes (H, W, 3) over the middle 99 % of its values."""
    low, high = np.percentile(image, [0.5, 99.5])
    gray = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 255
    return np.repeat(gray.astype(np.uint8)[..., None], 3, axis=2)


def color_of(ids):
    """Return bytes (n, 3): bright colors, always the same for the same id."""
    # Steps of the golden ratio around the circle: near ids are far apart.
    hues = np.asarray(ids) * 0.61803398875 % 1
    levels = 0.75 + 0.25 * (np.asarray(ids) * 0.7548776662 % 1)
    colors = [colorsys.hsv_to_rgb(hue, 0.65, level) for hue, level in zip(hues, levels)]
    return np.array(colors).reshape(-1, 3) * 255


def fill(labels, like=None):
    """
    Return labels (H, W) as a picture (H, W, 3), with a dark line between them.

    Args:
        labels (ndarray): whole numbers, 0 is background.
        like (ndarray | None): other labels; each label takes the color of that
            with which it has most pixels in common.
    """
    ids, flat = np.unique(labels, return_inverse=True)
    partners = ids if like is None else find_partners(flat.reshape(-1), len(ids), like)
    colors = color_of(partners)
    colors[partners == 0] = 150
    colors[ids == 0] = BACKGROUND
    picture = colors.astype(np.uint8)[flat.reshape(labels.shape)]
    picture[find_edges(labels) & (labels > 0)] //= 3
    return picture


def find_partners(flat, n_labels, like):
    """Return for each label the id with which it has most pixels in common; 0 for none."""
    others, flat_others = np.unique(like, return_inverse=True)
    counts = np.zeros((n_labels, len(others)), np.int64)
    np.add.at(counts, (flat, flat_others.reshape(-1)), 1)
    return others[counts.argmax(axis=1)]


def outline(picture, labels, color):
    """Return a picture with a line around each label, inside of it."""
    picture = picture.copy()
    picture[find_edges(labels) & (labels > 0)] = color
    return picture


def find_edges(labels):
    """Return where the pixel to the right or below, or to the left or above, is another label."""
    edges = np.zeros(labels.shape, bool)
    edges[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edges[1:] |= labels[1:] != labels[:-1]
    edges[:, :-1] |= (labels[:, 1:] != labels[:, :-1]) & (labels[:, 1:] == 0)
    edges[:-1] |= (labels[1:] != labels[:-1]) & (labels[1:] == 0)
    return edges


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
