"""
Block runs that are killed: a map, components, and a watershed, from an array to a file.
"""
import json
import os

import numpy as np

from .victims import make_pixels

SHAPE, BLOCK = (90, 110), 32


def run_blocks(child, folder, kind, executor='serial'):
    """Resume the run of one kind in a folder; tell what was done before, and now."""
    pixels = make_pixels(5, SHAPE)
    child.tell('begin', n_done=_count_noted(folder))
    n_called = []
    options = {'block_shape': BLOCK, 'resume': True, 'overwrite': True, 'executor': executor,
               'blocksize': 64}
    result = _RUNS[kind](pixels, os.path.join(folder, 'out.tif'), n_called, options)
    n_blocks = int(np.prod([-(-size // BLOCK) for size in SHAPE]))
    child.tell('end', n_resumed=result.n_resumed, n_called=len(n_called), n_blocks=n_blocks)


def _count_noted(folder):
    path = os.path.join(folder, '.out.tif.blocks', 'blocks.jsonl')
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        lines = file.read().splitlines()
    return sum('index' in json.loads(line) for line in lines if line.endswith('}'))


def _map(pixels, dst, n_called, options):
    from cocoseg import map_blocks

    def blur(data):
        n_called.append(1)
        padded = np.pad(data, ((1, 1), (0, 0), (0, 0)), mode='edge')
        return ((padded[:-2] + padded[1:-1] + padded[2:]) / 3).astype(np.float32)
    return map_blocks(blur, pixels, dst, halo=1, **options)


class _Counting:
    """A source that counts how often it is read."""

    name = 'counting'

    def __init__(self, pixels, n_called):
        self._pixels, self._n_called = pixels, n_called
        self.shape, self.dtype = pixels.shape, pixels.dtype

    def read(self, window):
        self._n_called.append(1)
        return self._pixels[window.slices]


def _find_components(pixels, dst, n_called, options):
    from cocoseg import connected_components
    return connected_components(_Counting(pixels, n_called), dst, threshold=0.6, **options)


def _find_watershed(pixels, dst, n_called, options):
    from cocoseg import WatershedParameters, blockwise_watershed
    parameters = WatershedParameters([(0, 1), (1, 0)], bias=0.6, context=8, min_size=4)
    return blockwise_watershed(_Counting(pixels, n_called), parameters, dst, **options)


_RUNS = {'map': _map, 'components': _find_components, 'watershed': _find_watershed}
PROGRAMS = (run_blocks,)
