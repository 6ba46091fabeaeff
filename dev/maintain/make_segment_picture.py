#!/usr/bin/env python
"""
Draw docs/images/segments.jpg: the packaged image, its segments, their mean colors.

Usage: python dev/maintain/make_segment_picture.py
"""
from __future__ import annotations

import tempfile
from pathlib import Path

import kwimage
import numpy as np

from cocoseg import ShepherdConfig, shepherd_segment
from cocoseg.coco.demo import demo_dataset
from cocoseg.io.raster import read_raster

ROOT = Path(__file__).resolve().parents[2]
# Rows and columns that are shown, and how often each pixel is.
PART, ZOOM = (slice(40, 300), slice(120, 380)), 2
OUTLINE = (255, 220, 0)


def stretch(image):
    """Return red, green and blue as bytes over the middle 96 % of their values."""
    low, high = np.percentile(image[..., :3], [2, 98], axis=(0, 1))
    return (np.clip((image[..., :3] - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def enlarge(array):
    """Repeat each pixel, so that outlines can be thinner than one."""
    return np.repeat(np.repeat(array, ZOOM, axis=0), ZOOM, axis=1)


def draw_outlines(picture, labels):
    """Return an enlarged picture with a line wherever the label changes."""
    picture, labels = enlarge(picture).copy(), enlarge(labels)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    picture[edge] = OUTLINE
    return picture


def fill_means(image, labels):
    """Return the image with the mean value of its segment at each pixel."""
    flat, sizes = labels.ravel(), np.maximum(np.bincount(labels.ravel()), 1)
    means = [np.bincount(flat, image[..., band].ravel()) / sizes for band in range(3)]
    return np.stack(means, axis=1)[labels].astype(np.uint8)


def main():
    """Write the picture."""
    with tempfile.TemporaryDirectory() as folder:
        image = read_raster(demo_dataset(folder).coco_image(1).primary_image_filepath())
    labels = shepherd_segment(image, ShepherdConfig(n_clusters=30), nodata=0).labels
    picture, labels = stretch(image)[PART], labels[PART]
    gap = np.full((picture.shape[0] * ZOOM, 8, 3), 255, np.uint8)
    panels = [enlarge(picture), gap, draw_outlines(picture, labels), gap,
              enlarge(fill_means(picture, labels))]
    kwimage.imwrite(ROOT / 'docs/images/segments.jpg', np.concatenate(panels, axis=1))


if __name__ == '__main__':
    main()
