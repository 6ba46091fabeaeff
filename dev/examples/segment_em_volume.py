#!/usr/bin/env python
"""
Segment a volume of electron microscopy, block by block, from Zarr to Zarr.

No trained model comes with this package: the affinities are those of the
annotated bodies, with noise that is correlated over some voxels. They stand for
what a model might say, and flatter it. A mutex watershed makes instances of
them, in blocks of 16 x 96 x 96 voxels, and once in one block; both are scored
against the truth, and compared with each other. Written to the folder of results:

* ``em.zarr``: arrays ``raw``, ``bodies``, ``truth``, ``affinities``, ``instances`` and
  ``whole``, all with the voxel size of 8 nm;
* ``volume.png``: slices of raw data, truth and instances, and one across them.

Usage: python dev/examples/segment_em_volume.py [--data FOLDER] [--out FOLDER]
    [--executor threads:2]

The data are a FIB-SEM volume of the fly's medulla (Janelia FlyEM, CC BY 3.0),
``em_fib25/fib25_trvol250_z0_32.npz``, with the arrays raw and gt_bodies.
"""
from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from drawing import fill, mark_blocks, outline, save_panels, stretch

from cocoseg import (
    Roi, WatershedParameters, ZarrArray, agree_objects, blockwise_watershed, connected_components,
    score_labels)

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data'
VOXEL = (8, 8, 8)
OFFSETS = [(0, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, -9), (0, -9, 0), (-4, 0, 0), (0, -7, -7),
           (0, -7, 7)]
# A mean affinity tells little of thin bodies: most far offsets lead out of them.
PARAMETERS = WatershedParameters(OFFSETS, sigma=0.6, bias=0.5, min_size=100,
                                 context=(12, 32, 32), filter_fragments=False)
BLOCK = (16, 96, 96)


def parse_args(argv=None):
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--data', type=Path, default=DATA, help='folder of em_fib25')
    parser.add_argument('--out', type=Path, default=Path('em_volume'),
                        help='folder for the results')
    parser.add_argument('--executor', default='threads:2', help='serial, threads or threads:N')
    return parser.parse_args(argv)


def write_array(fpath, array):
    """Write an array (D, H, W) or (C, D, H, W) as Zarr, with the voxel size."""
    shape = array.shape[-3:]
    roi = Roi((0, 0, 0), tuple(size * step for size, step in zip(shape, VOXEL)))
    axes, n_channels = ('zyx', None) if array.ndim == 3 else ('czyx', len(array))
    out = ZarrArray.create(fpath, axes, roi, n_channels, VOXEL, array.dtype,
                           write_size=[size * step for size, step in zip(BLOCK, VOXEL)])
    out[roi] = array
    return out


def draw_affinities(truth, strength=0.25, seed=0):
    """Return float32 (C, D, H, W): 1 where p and p + offset are one body, plus noise."""
    from scipy import ndimage
    rng = np.random.default_rng(seed)
    out = np.zeros((len(OFFSETS), *truth.shape), np.float32)
    for channel, offset in enumerate(OFFSETS):
        ours = tuple(slice(max(-step, 0), size - max(step, 0))
                     for step, size in zip(offset, truth.shape))
        theirs = tuple(slice(max(step, 0), size - max(-step, 0))
                       for step, size in zip(offset, truth.shape))
        out[channel][ours] = (truth[ours] == truth[theirs]) & (truth[ours] > 0)
        noise = ndimage.gaussian_filter(rng.normal(size=truth.shape), 1.5)
        out[channel] += strength * noise / noise.std()
    return np.clip(out, 0, 1)


def segment(container, name, block_shape, executor):
    """Write instances; return what is known of them, and the seconds it took."""
    start = time.perf_counter()
    result = blockwise_watershed(container / 'affinities', PARAMETERS, container / name,
                                 block_shape=block_shape, executor=executor)
    return result, time.perf_counter() - start


def print_row(*cells):
    """Print one line of the table."""
    print('  '.join(f'{cell:.4f}'.rjust(11) if isinstance(cell, float) else str(cell).rjust(11)
                    for cell in cells))


def draw(raw, truth, labels, fpath):
    """Draw two slices along z, and one across."""
    rows = []
    for title, part, block in (
            ('z = 8', np.s_[8], BLOCK[1:]), ('z = 24', np.s_[24], BLOCK[1:]),
            ('y = 100', np.s_[:, 100], BLOCK[::2])):
        gray, ids, found = raw[part], truth[part], labels[part]
        rows.append([(f'{title}: raw, outlines of instances',
                      outline(stretch(gray), found, (255, 210, 0))),
                     ('truth', fill(ids)),
                     ('instances, and where blocks meet', mark_blocks(fill(found, like=ids),
                                                                      block))])
    save_panels(fpath, rows, zoom=1.4)


def main(argv=None):
    """Run the example."""
    args = parse_args(argv)
    source = args.data / 'em_fib25' / 'fib25_trvol250_z0_32.npz'
    if not source.exists():
        print(f'there is no {source}; give the folder of em_fib25 by --data. Nothing was done.')
        return
    with np.load(source) as data:
        raw, bodies = data['raw'], data['gt_bodies']
    container = args.out / 'em.zarr'
    shutil.rmtree(container, ignore_errors=True)
    args.out.mkdir(parents=True, exist_ok=True)
    write_array(container / 'raw', raw)
    # Bodies that leave the volume and come back are several objects here.
    write_array(container / 'bodies', bodies)
    truth = connected_components(container / 'bodies', container / 'truth', block_shape=BLOCK,
                                 by_value=True, connectivity=26, executor=args.executor)
    n_large = np.count_nonzero(truth.sizes >= PARAMETERS.min_size)
    truth = ZarrArray.open(truth.output).data[:]
    write_array(container / 'affinities', draw_affinities(truth))
    found, seconds = segment(container, 'instances', BLOCK, args.executor)
    whole, seconds_whole = segment(container, 'whole', raw.shape, 'serial')
    print(f'Of the true objects, {n_large} have at least {PARAMETERS.min_size} voxels; smaller '
          'ones are not looked for.\n')
    print_row('blocks', 'truth', 'found', 'VI split', 'VI merge', 'Rand error', 'at seams',
              'seconds')
    labels = {}
    for result, taken in ((found, seconds), (whole, seconds_whole)):
        array = ZarrArray.open(result.output)
        assert array.voxel_size == VOXEL
        labels[result.output] = array.data[:]
        scores = score_labels(truth, labels[result.output])
        print_row('x'.join(map(str, result.grid_shape)), scores.n_truth, scores.n_labels,
                  scores.vi_split, scores.vi_merge, scores.rand_error, result.agreement,
                  f'{taken:.1f}')
    same = agree_objects(labels[found.output], labels[whole.output])
    between = score_labels(labels[whole.output], labels[found.output])
    print(f'\n{same:.2%} of the objects are the same, voxel by voxel, in blocks and in one; '
          f'VI between them {between.vi:.4f} bits')
    print('\nThe three worst seams:\n' + '\n'.join(found.format_seams().splitlines()[:4]))
    draw(raw, truth, labels[found.output], args.out / 'volume.png')
    print(f'\nResults are in {args.out.resolve()}')


if __name__ == '__main__':
    main()
