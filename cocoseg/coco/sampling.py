"""
Pixels of all images of a dataset, for predictors that learn from them first.

The choice is seeded and made before anything is predicted, so that it is the
same whatever is predicted ahead, and when a run is resumed.
"""
from __future__ import annotations

import logging
from functools import partial

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.grid.blocks import BlockGrid
from cocoseg.protocols import FittedPredictor

logger = logging.getLogger(__name__)

# Side of the blocks that are read, px: tiles of files are often as large.
_BLOCKSIZE = 256
# Blocks of all images together, and at least of each one that has so many: few
# places see few kinds of land.
_N_BLOCKS, _LEAST_BLOCKS = 256, 4
# All samples are in memory at a time.
_MAX_NBYTES = 4 << 30


def fit_predictor(predictor, read, shapes):
    """
    Fit a predictor to the images of a dataset, if it wants that.

    Args:
        predictor (Predictor): fitted in place if it is a
            :class:`~cocoseg.protocols.FittedPredictor` that is not fitted;
            nothing happens to others.
        read (Callable[[int, Window], ndarray]): image id and place ->
            float32 (h, w, B).
        shapes (dict[int, tuple[int, int]]): (H, W) of each image, px.

    Returns:
        bool: True if it was fitted.

    Raises:
        OptionError: if it wants more samples than fit in memory.
        Exception: whatever its ``fit`` raises.

    Example:
        >>> from cocoseg.coco.sampling import fit_predictor
        >>> class Mean:
        ...     is_fitted, seed = False, 0
        ...     def __call__(self, image):
        ...         return image - self.mean
        ...     def count_samples(self, n_pixels):
        ...         return 10
        ...     def find_valid(self, image):
        ...         return np.isfinite(image).all(axis=2)
        ...     def fit(self, samples):
        ...         self.mean, self.is_fitted = samples.mean(axis=0), True
        >>> predictor = Mean()
        >>> fit_predictor(predictor, lambda image_id, window: np.full((*window.shape, 2), 7.0),
        ...               {1: (40, 30), 2: (20, 20)})
        True
        >>> predictor.mean.tolist()
        [7.0, 7.0]
    """
    if not isinstance(predictor, FittedPredictor) or predictor.is_fitted:
        return False
    n_pixels = sum(height * width for height, width in shapes.values())
    n_samples = predictor.count_samples(n_pixels)
    samples = draw_dataset_samples(read, shapes, n_samples, predictor.find_valid, predictor.seed)
    logger.info('fitting %r to %d pixels of %d images', predictor, len(samples), len(shapes))
    predictor.fit(samples)
    return True


def draw_dataset_samples(read, shapes, n_samples, find_valid, seed=0):
    """
    Draw valid pixels of many images, each by its share of all pixels.

    Of each image blocks at random places are read, until there are enough
    valid pixels or none are left.

    Args:
        read (Callable[[int, Window], ndarray]): see :func:`fit_predictor`.
        shapes (dict[int, tuple[int, int]]): (H, W) of each image, px.
        n_samples (int): of all images; up to one more of each may come, or
            fewer if there are not so many valid ones.
        find_valid (Callable[[ndarray], ndarray]): (h, w, B) -> bool (h, w).
        seed (int): of the choice.

    Returns:
        ndarray: float32 (n, B), by image id; the order of ``shapes`` does not
        matter. (0, B) if no pixel is valid.

    Raises:
        OptionError: if so many do not fit in 4 GiB.

    Example:
        >>> from cocoseg.coco.sampling import draw_dataset_samples
        >>> image = np.arange(60, dtype='f4').reshape(6, 10, 1)
        >>> samples = draw_dataset_samples(lambda image_id, window: image[window.slices],
        ...                                {1: (6, 10)}, 8, lambda part: part[..., 0] > 50)
        >>> len(samples), bool(samples.min() > 50)
        (8, True)
    """
    n_total = sum(height * width for height, width in shapes.values())
    parts = []
    for number, image_id in enumerate(sorted(shapes)):
        height, width = shapes[image_id]
        share = height * width / n_total
        parts += _draw_image(partial(read, image_id), (height, width),
                             int(np.ceil(share * n_samples)), int(np.ceil(share * _N_BLOCKS)),
                             find_valid, (seed, number))
        if n_samples * parts[0].itemsize * parts[0].shape[1] > _MAX_NBYTES:
            raise OptionError(f'{n_samples} samples of {parts[0].shape[1]} bands do not fit in '
                              f'{_MAX_NBYTES >> 30} GiB; fit to fewer')
    return np.concatenate(parts)


def _draw_image(read, shape, n_wanted, n_blocks, find_valid, seeds):
    """Return the samples of the blocks of one image, a list with at least one array."""
    blocks = [block.core for block in BlockGrid(shape, _BLOCKSIZE)]
    n_blocks = max(n_blocks, _LEAST_BLOCKS)
    todo, n_taken, parts = np.random.default_rng(seeds).permutation(len(blocks)), {}, []
    # Once, where data is everywhere; blocks with more are read again, where it is not.
    while len(todo) and n_wanted:
        per_block, left = -(-n_wanted // min(n_blocks, len(todo))), []
        for index in todo:
            pixels, start = read(blocks[index]), n_taken.get(index, 0)
            places = np.random.default_rng([*seeds, index]).permutation(
                np.flatnonzero(find_valid(pixels)))
            chosen = places[start:start + min(per_block, n_wanted)]
            parts.append(pixels.reshape(-1, pixels.shape[2])[np.sort(chosen)])
            n_taken[index] = start + len(chosen)
            n_wanted -= len(chosen)
            if n_taken[index] < len(places):
                left.append(index)
            if not n_wanted:
                break
        todo = left
    return parts
