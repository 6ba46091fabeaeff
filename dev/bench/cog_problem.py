"""
The images of the races to write files.

Probabilities as int16: 32767 steps for [0, 1], nodata -9999 in all bands of a
pixel. A value is sigmoid(center + spread * field) + noise, clipped to [0, 1]
and rounded. A field is the sum of 32 plane waves of equal weight, scaled to
unit variance: wavelengths log-uniform in [48, 2048] px, directions and phases
uniform, other ones for each band, always the same. Three kinds:

* bands5, bands1: five bands, or one; center 0, spread 1.2, gaussian noise of
  sigma 5e-4 (16 steps). The noise is what a codec cannot compress.
* rare: one band of rare positives without noise; center -4.4, spread 1.3.

A tenth of the image is nodata: a corner beyond a slanted edge (y / H + x / W <
0.346, 6 %), as of a swath, and one disc of radius 119 px in each cell of
1024 x 1024 px (4.2 % of the cell), as of clouds.

The races of memory take a pool of 32 blocks of 256 px from such an image, and
hand them out in turn: images can be larger than memory, and nothing is computed
while memory is watched.
"""
from __future__ import annotations

import functools

import numpy as np

BLOCK = 256
TOP, NODATA = 32767, -9999
N_WAVES, SHORTEST, LONGEST = 32, 64, 2048
NOISE = 5e-4
# y / H + x / W of the slanted edge: the triangle beyond it is 6 % of the image.
EDGE = 0.346
CELL, RADIUS = 1024, 119
N_POOL, POOL_SIZE = 32, 8192

# kind -> (bands, center, spread, sigma of the noise)
KINDS = {'bands5': (5, 0, 1.2, NOISE), 'bands1': (1, 0, 1.2, NOISE), 'rare': (1, -4.4, 1.3, 0)}


class CogProblem:
    """
    One image to write.

    Args:
        kind (str): of KINDS.
        height, width (int): px.
        pooled (bool): blocks are those of a pool, which all images share.

    Attributes:
        shape (tuple): (H, W, C).
        windows (list[Window]): blocks of 256 px in row-major order.
        order (ndarray): a random order of the blocks, always the same.
    """

    def __init__(self, kind, height, width, *, pooled=False):
        from cocoseg import Window
        n_bands, *self._options = KINDS[kind]
        self.shape = (height, width, n_bands)
        self.pool = make_pool(kind) if pooled else None
        self.windows = [Window(y, x, min(y + BLOCK, height), min(x + BLOCK, width))
                        for y in range(0, height, BLOCK) for x in range(0, width, BLOCK)]
        self.order = np.random.default_rng(1).permutation(len(self.windows))
        self._waves = [make_waves(seed) for seed in range(n_bands)]

    @property
    def raw_mb(self):
        """Size of the pixels, MB."""
        return np.prod(self.shape, dtype=float) * 2 / 1e6

    @functools.cached_property
    def data(self):
        """The whole image, int16 (H, W, C)."""
        data = np.empty(self.shape, np.int16)
        for window in self.windows:
            data[window.slices] = self.get_block(window)
        return data

    def list_windows(self, *, shuffled=False):
        """Return the blocks in row-major or in random order."""
        return [self.windows[index] for index in self.order] if shuffled else self.windows

    def get_block(self, window):
        """Return the pixels of one of the blocks, int16 (h, w, C)."""
        if self.pool is None:
            return self.make_block(window)
        n_columns = -(-self.shape[1] // BLOCK)
        index = window.y0 // BLOCK * n_columns + window.x0 // BLOCK
        height, width = window.shape
        return self.pool[index % N_POOL][:height, :width]

    def make_block(self, window):
        """Return the pixels of one of the blocks of an image without a pool."""
        center, spread, noise = self._options
        y, x = np.arange(window.y0, window.y1), np.arange(window.x0, window.x1)
        logits = np.stack([sum_waves(y, x, waves) for waves in self._waves], axis=2)
        values = 1 / (1 + np.exp(-(center + spread * logits)))
        if noise:
            rng = np.random.default_rng((window.y0, window.x0))
            values += noise * rng.standard_normal(values.shape, np.float32)
        codes = np.rint(values.clip(0, 1) * TOP).astype(np.int16)
        codes[find_nodata(y, x, self.shape)] = NODATA
        return codes


@functools.cache
def make_pool(kind):
    """Return the pool of a kind: blocks from the diagonal of a large image."""
    problem = CogProblem(kind, POOL_SIZE, POOL_SIZE)
    picked = np.linspace(0, len(problem.windows) - 1, N_POOL).astype(int)
    return [problem.make_block(problem.windows[index]) for index in picked]


def make_waves(seed):
    """Return frequencies in y and in x (radians per px) and phases, each (32,)."""
    rng = np.random.default_rng((2, seed))
    lengths = SHORTEST * (LONGEST / SHORTEST) ** rng.random(N_WAVES)
    angles = 2 * np.pi * rng.random(N_WAVES)
    return (2 * np.pi * np.sin(angles) / lengths, 2 * np.pi * np.cos(angles) / lengths,
            2 * np.pi * rng.random(N_WAVES))


def sum_waves(y, x, waves):
    """Return a field of unit variance at rows and columns, float32 (h, w)."""
    by_y, by_x, phases = waves
    # sin(a + b) = sin(a) cos(b) + cos(a) sin(b): one product of small matrices.
    a, b = np.outer(y, by_y) + phases, np.outer(x, by_x)
    rows, columns = np.hstack([np.sin(a), np.cos(a)]), np.hstack([np.cos(b), np.sin(b)])
    return (np.sqrt(2 / N_WAVES) * rows @ columns.T).astype(np.float32)


def find_nodata(y, x, shape):
    """Return where rows and columns of an image are nodata, bool (h, w)."""
    corner = (y / shape[0])[:, None] + x / shape[1] < EDGE
    # The center of the disc in each cell, the same whatever the image.
    cell_y, cell_x = (y // CELL)[:, None], x // CELL
    free = CELL - 2 * RADIUS
    disc_y = RADIUS + (37 * cell_y + 71 * cell_x) % 101 / 101 * free
    disc_x = RADIUS + (53 * cell_y + 29 * cell_x) % 103 / 103 * free
    inside = (((y % CELL)[:, None] - disc_y) ** 2 + (x % CELL - disc_x) ** 2) < RADIUS ** 2
    return corner | inside
