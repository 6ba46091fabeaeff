#!/usr/bin/env python
"""
Draw docs/images/tiled_segments.jpg: tiles that are not joined, and that are.

Runs the code of the tutorial, and draws what it made.

Usage: python dev/maintain/make_tutorial_picture.py
"""
from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs/tutorial/segment_a_big_image.rst'
PICTURE = ROOT / 'docs/images/tiled_segments.jpg'
# Rows and columns that are shown, and how often each pixel is.
PART, ZOOM = (slice(60, 270), slice(110, 370)), 2
LINE, QUALITY = (255, 220, 0), 82


def run_page():
    """Return the names that the code of the page defines."""
    lines = re.findall(r'^(?:>>>|\.\.\.) ?(.*)$', PAGE.read_text('utf-8'), re.MULTILINE)
    names = {}
    exec('\n'.join(lines), names)
    return names


def mark_cuts(picture, tiles):
    """Return a picture with a dashed line in the middle of each overlap."""
    picture = picture.copy()
    for starts, stops, lay in (
            ({t.y0 for t in tiles}, {t.y1 for t in tiles}, np.asarray),
            ({t.x0 for t in tiles}, {t.x1 for t in tiles}, lambda array: array.swapaxes(0, 1))):
        for start, stop in zip(sorted(starts)[1:], sorted(stops)):
            line = lay(picture)[(start + stop) // 2]
            line[np.arange(len(line)) % 8 < 5] = LINE
    return picture


def main():
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ['XDG_CACHE_HOME'] = folder
        import cv2
        page = run_page()
        apart = page['folder'] / 'apart.tif'
        page['segment_raster'](
            page['image_path'], apart, page['config'], tile_size=256, overlap=128,
            recode='simple', kmeans=page['result'].kmeans)
        labels = [page['read_raster'](apart)[..., 0], page['labels']]
        tiles = {tile for seam in page['result'].seams for tile in (seam.first, seam.second)}
        panels = [mark_cuts(page['photo'], tiles)] + [
            page['draw_segments'](found, background=page['photo'], outline='black', alpha=0.55)
            for found in labels]
        panels = [np.repeat(np.repeat(panel[PART], ZOOM, axis=0), ZOOM, axis=1)
                  for panel in panels]
        gap = np.full((panels[0].shape[0], 8, 3), 255, np.uint8)
        strip = np.concatenate([panels[0], gap, panels[1], gap, panels[2]], axis=1)
        cv2.imwrite(os.fspath(PICTURE), strip[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])


if __name__ == '__main__':
    main()
