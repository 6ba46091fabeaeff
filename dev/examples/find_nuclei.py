#!/usr/bin/env python
"""
Find the nuclei of microscope images, block by block, and score them.

No trained model comes with this package, so the predictions are of two kinds:

* *from the truth*: affinities and distances of the annotated nuclei, with
  correlated noise. They stand for what a model might say, and flatter it.
* *from the image alone*: smoothed brightness, with Otsu's threshold. That is
  honest, and no model.

All images become one kwcoco dataset with these maps; ``watershed_dataset``
makes instances of each, in blocks far smaller than needed, and a table says how
well they fit the truth, and how many are what one large block would find. The
parameters of the last kind are searched for. Written to the folder of results:

* ``maps/``: the dataset, with the maps as Cloud-Optimized GeoTIFFs;
* ``mutex/``, ``distance/``, ``bright/``: datasets with instances, and an
  annotation with a score for each;
* ``nuclei.png``, ``search.png`` and ``search.csv``.

Usage: python dev/examples/find_nuclei.py [--data FOLDER] [--out FOLDER] [--executor threads:2]

The data are stage1_train images of the 2018 Data Science Bowl (CC0), and one
image of StarDist's examples (BSD-3): ``cells_dsb2018/*_img.png`` with
``*_inst.png``, and ``cells_stardist/img2d.tif`` with ``mask2d.tif``.
"""
from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from drawing import fill, mark_blocks, outline, save_panels, stretch

from cocoseg import (
    OverlapTable, WatershedParameters, agree_objects, blockwise_watershed, enumerate_parameters,
    search_parameters, watershed_dataset, write_cog)
from cocoseg.io.raster import read_raster
from cocoseg.postprocess.scores import count_overlaps, score_overlaps

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / 'shared' / 'data'
OFFSETS = [(0, 1), (1, 0), (0, -5), (-5, 0), (-5, -5), (-5, 5)]
AFFINITIES = [f'aff{number}' for number in range(len(OFFSETS))]
BLOCK = 128
METHODS = {
    # The threshold tells nuclei from the rest. A mean affinity would not: of small
    # nuclei, most of the far offsets lead outside.
    'mutex': (AFFINITIES, WatershedParameters(
        OFFSETS, threshold=0.3, sigma=0.7, min_size=20, context=32, filter_fragments=False)),
    'distance': (['distance'], WatershedParameters(
        method='distance', threshold=0.5, sigma=1, min_size=20, seed_distance=6, context=32)),
    'bright': (['bright'], WatershedParameters(
        method='foreground', threshold=0.5, sigma=1, min_size=20, seed_distance=6, context=48)),
}
SHOWN = ('img2d', '212b858a66f0', '243443ae303c')


def parse_args(argv=None):
    """Return the arguments of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--data', type=Path, default=DATA, help='folder of the two data sets')
    parser.add_argument('--out', type=Path, default=Path('nuclei'), help='folder for the results')
    parser.add_argument('--executor', default='threads:2', help='serial, threads or threads:N')
    return parser.parse_args(argv)


def read_data(folder):
    """Return gray images (H, W) and true ids (H, W) by name."""
    pairs = {path.name[:-8]: (path, path.with_name(path.name[:-8] + '_inst.png'))
             for path in sorted(folder.glob('cells_dsb2018/*_img.png'))}
    star = folder / 'cells_stardist'
    if (star / 'img2d.tif').exists():
        pairs['img2d'] = star / 'img2d.tif', star / 'mask2d.tif'
    # Of red, green, blue and alpha, the first three.
    return {name: (read_raster(image)[..., :3].mean(axis=2), read_raster(truth)[..., 0].astype(int))
            for name, (image, truth) in pairs.items()}


# ---- predictions -------------------------------------------------------------

def draw_noise(rng, shape, strength):
    """Return noise (H, W) that is correlated over some pixels, as errors of models are."""
    from scipy import ndimage
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.5)
    return strength * noise / noise.std()


def draw_affinities(truth, rng, strength=0.3):
    """Return float32 (H, W, C): 1 where p and p + offset are one nucleus, plus noise."""
    planes = []
    for dy, dx in OFFSETS:
        padded = np.pad(truth, 5)
        other = padded[5 + dy:5 + dy + truth.shape[0], 5 + dx:5 + dx + truth.shape[1]]
        planes.append((truth == other) & (truth > 0))
    same = np.stack(planes, axis=2) + np.stack(
        [draw_noise(rng, truth.shape, strength) for _ in planes], axis=2)
    return np.clip(same, 0, 1).astype(np.float32)


def draw_distance(truth, rng, strength=1.0):
    """Return float32 (H, W): px to the boundary of the nucleus, plus noise."""
    from scipy import ndimage
    is_inside = truth > 0
    for axis in (0, 1):
        is_inside &= (np.roll(truth, 1, axis) == truth)
    distance = ndimage.distance_transform_edt(is_inside)
    return (distance + draw_noise(rng, truth.shape, strength) * (truth > 0)).astype(np.float32)


def measure_brightness(image):
    """Return float32 (H, W): smoothed brightness, 0.5 at Otsu's threshold, nuclei above."""
    from scipy import ndimage
    from skimage.filters import threshold_otsu
    # Of the root: a few bright nuclei would hide the others.
    smoothed = ndimage.gaussian_filter(np.sqrt(image.astype(np.float32)), 1)
    limit, spread = threshold_otsu(smoothed), smoothed.std()
    is_dark = (smoothed > limit).mean() > 0.5
    return 0.5 + (limit - smoothed if is_dark else smoothed - limit) / spread


def make_dataset(images, folder):
    """Write all maps, and the dataset that names them."""
    import kwcoco
    folder.mkdir(parents=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = str(folder / 'maps.kwcoco.json')
    for number, (name, (image, truth)) in enumerate(images.items()):
        rng = np.random.default_rng(number)
        maps = {'|'.join(AFFINITIES): draw_affinities(truth, rng),
                'distance': draw_distance(truth, rng), 'bright': measure_brightness(image)}
        height, width = truth.shape
        image_id = dset.add_image(name=name, width=width, height=height)
        for kind, (channels, pixels) in zip(METHODS, maps.items()):
            fname = f'{name}_{kind}.tif'
            write_cog(folder / fname, pixels, channels=channels)
            dset.add_asset(image_id, file_name=fname, channels=channels, width=width,
                           height=height, warp_aux_to_img={'scale': 1})
    dset.dump()
    return dset


# ---- instances ---------------------------------------------------------------

def find_instances(kind, maps, out, executor):
    """Return labels by name, and what is known of each image."""
    channels, parameters = METHODS[kind]
    reports = {}
    dset = watershed_dataset(
        maps, out / kind / 'instances.kwcoco.json', parameters, '|'.join(channels),
        block_shape=BLOCK, executor=executor, polygons=True, category='nucleus',
        report=reports.__setitem__)
    labels = {dset.imgs[image_id]['name']: read_raster(result.output)[..., 0]
              for image_id, result in reports.items()}
    return labels, {dset.imgs[image_id]['name']: result for image_id, result in reports.items()}


def compare_with_whole(kind, maps, labels):
    """Return the share of objects that one block of the size of the image finds as well."""
    channels, parameters = METHODS[kind]
    shares, weights = [], []
    for image_id, image in maps.imgs.items():
        heat = maps.coco_image(image_id).imdelay('|'.join(channels)).finalize()
        whole = blockwise_watershed(heat, parameters, block_shape=max(heat.shape))
        shares.append(agree_objects(labels[image['name']], whole.output))
        weights.append(whole.n_labels)
    return np.average(shares, weights=weights)


def score(labels, images):
    """Return the scores over all images."""
    return score_overlaps(OverlapTable.of_images(
        [count_overlaps(truth, labels[name]) for name, (_, truth) in images.items()]))


def print_row(*cells):
    """Print one line of the table."""
    widths = (10, 7, 7, 7, 9, 7, 9, 11)
    print('  '.join(f'{cell:.4f}'.rjust(width) if isinstance(cell, float)
                    else str(cell).rjust(width) for cell, width in zip(cells, widths)))


def search(images, out, executor):
    """Search for the smoothing and the distance of seeds of the map of brightness."""
    brightness = [measure_brightness(image) for image, _ in images.values()]

    def process(parameters, index):
        return blockwise_watershed(brightness[index], parameters, block_shape=512).output
    chosen = enumerate_parameters(METHODS['bright'][1], sigma=[0, 1, 2], seed_distance=[3, 6, 9])
    found = search_parameters(process, chosen, [truth for _, truth in images.values()],
                              executor=executor)
    found.plot(out / 'search.png')
    found.write_csv(out / 'search.csv')
    return found


def draw(images, labels, scores, out):
    """Draw some images, with the truth and with what was found."""
    rows = []
    for name in SHOWN:
        if name not in images:
            continue
        image, truth = images[name]
        part = (slice(0, 256), slice(0, 256))
        image, truth = stretch(np.sqrt(image))[part], truth[part]
        row = [(f'{name}: truth', outline(image, truth, (255, 210, 0)))]
        for kind in METHODS:
            found = fill(labels[kind][name][part], like=truth)
            row.append((f'{kind}, F1 of this image {scores[kind][name]:.2f}',
                        mark_blocks(found, (BLOCK, BLOCK))))
        rows.append(row)
    save_panels(out / 'nuclei.png', rows, zoom=1.3)


def main(argv=None):
    """Run the example."""
    args = parse_args(argv)
    images = read_data(args.data)
    if not images:
        print(f'there are no cells_dsb2018/*_img.png and cells_stardist/img2d.tif in {args.data}; '
              'give their folder by --data. Nothing was done.')
        return
    for kind in ('maps', *METHODS):
        shutil.rmtree(args.out / kind, ignore_errors=True)
    maps = make_dataset(images, args.out / 'maps')
    print_row('map', 'truth', 'found', 'F1', 'mean IoU', 'VI', 'at seams', 'as whole')
    labels, by_image = {}, {}
    for kind in METHODS:
        labels[kind], results = find_instances(kind, maps, args.out, args.executor)
        total = score(labels[kind], images)
        by_image[kind] = {name: score(labels[kind], {name: images[name]}).f1 for name in images}
        n_labeled = sum(seam.n_labeled for result in results.values() for seam in result.seams)
        n_common = sum(seam.n_common for result in results.values() for seam in result.seams)
        print_row(kind, total.n_truth, total.n_labels, total.f1, total.mean_iou, total.vi,
                  n_common / n_labeled, float(compare_with_whole(kind, maps, labels[kind])))
    draw(images, labels, by_image, args.out)
    print('\nSearch, of the map of brightness:')
    print(search(images, args.out, args.executor).as_table(by='f1'))
    print(f'\nResults are in {args.out.resolve()}')


if __name__ == '__main__':
    main()
