#!/usr/bin/env python
"""
Segment an image, classify its segments by their table, and write a map of classes.

Objects instead of pixels, in five steps:

1. ``segment_raster`` makes Shepherd segments, tile by tile.
2. ``segment_stats`` makes a table: a row of mean, deviation and shape each.
3. A model of scikit-learn is fitted to the segments whose class is known, which
   is where nearly all pixels have one label, and says the class of all others.
   Half of the known ones are held out, and scored.
4. ``map_blocks`` looks up the class of each segment, block by block: neither the
   ids nor the classes are ever in memory as a whole.
5. The map is registered in the manifest, with the names of its classes. A file
   beside it tells GDAL, and so QGIS, their names and colors.

Usage: python dev/examples/segment_and_classify.py [--dst FOLDER] [--size PX]
    [--clusters 16] [--min_size 40]
"""
from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
from naip_video import draw_photo, make_parser, make_video, read_channels, save_row

from cocoseg import (
    ShepherdConfig, map_blocks, segment_raster, segment_stats, verify_cog, write_cog)
from cocoseg.coco.demo import CLASS_CHANNELS, IMAGE_CHANNELS, index_labels
from cocoseg.coco.drawing import color_classes, draw_classes, draw_segments, make_legend
from cocoseg.io.commit import atomic_write
from cocoseg.io.raster import raster_info, read_raster

CLASSES = CLASS_CHANNELS.split('|')
IMAGE_ID = 2
NO_CLASS = 255
STATS = 'area,perimeter,mean,std'


def write_frame(dset, fpath):
    """Write a frame as it is in the video, with 0 where no data is, and where it lies."""
    from cocoseg.coco.geometry import georeference, warp_img_from_stitchspace
    pixels = np.nan_to_num(read_channels(dset, IMAGE_ID)).astype(np.uint8)
    image = dset.imgs[IMAGE_ID]
    crs, transform = georeference(image, warp_img_from_stitchspace(image, 'video'),
                                  dset.bundle_dpath)
    write_cog(fpath, pixels, nodata=0, channels=IMAGE_CHANNELS, crs=crs, transform=transform)


def find_known(frame, segments, table):
    """
    Return the class of each row of the table, -1 where it is not known.

    It is known where one label has nine tenths of the pixels of a segment; labels
    are those of the packaged demo, which many pixels do not have.
    """
    labels = index_labels(frame.astype(np.float32))
    size = int(segments.max()) + 1
    shares = np.stack([np.bincount(segments[labels == index], minlength=size)
                       for index in range(1, len(CLASSES) + 1)], axis=1)[table.ids]
    shares = shares / table['area'][:, None]
    return np.where(shares.max(axis=1) > 0.9, shares.argmax(axis=1), -1)


def classify(table, known):
    """Return the class of each row, and the share of held out rows that got theirs."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    features = np.stack([table[name] for name in table.columns if name != 'area'], axis=1)
    rows = np.random.default_rng(0).permutation(np.flatnonzero(known >= 0))
    training, held_out = rows[::2], rows[1::2]
    model = HistGradientBoostingClassifier(max_iter=50, min_samples_leaf=5, random_state=0)
    model.fit(features[training], known[training], sample_weight=table['area'][training])
    classes = model.predict(features).astype(np.uint8)
    return classes, float((classes[held_out] == known[held_out]).mean())


def look_up(ids, classes):
    """Return the class (h, w) of each id (h, w, 1)."""
    return classes[ids[..., 0]]


def write_legend(fpath):
    """Write what GDAL reads beside a raster: a color and a name per class."""
    colors = ''.join('<Entry c1="{}" c2="{}" c3="{}" c4="255"/>'.format(*color)
                     for color in color_classes(len(CLASSES)).tolist())
    names = ''.join(f'<Category>{name}</Category>' for name in CLASSES)
    with atomic_write(f'{fpath}.aux.xml') as temp:
        Path(temp).write_text(
            '<PAMDataset><PAMRasterBand band="1"><ColorInterp>Palette</ColorInterp>'
            f'<CategoryNames>{names}</CategoryNames><ColorTable>{colors}</ColorTable>'
            '</PAMRasterBand></PAMDataset>\n')


def register(dset, fpath, dst):
    """Add the map to a copy of the manifest, where it lies in the frame; return the copy."""
    from cocoseg.coco.dataset import open_result
    result = open_result(dset, dst)
    coco_image = result.coco_image(IMAGE_ID)
    height, width = raster_info(fpath).shape[:2]
    coco_image.add_asset(
        file_name=fpath.name, channels='cover', width=width, height=height, num_bands=1,
        warp_aux_to_img=coco_image.warp_vid_from_img.inv().concise(), categories=CLASSES)
    result.dump()
    return result


def main(argv=None):
    """Run the example."""
    parser = make_parser('segment_and_classify', __doc__)
    parser.add_argument('--clusters', type=int, default=16, help='of colors, to segment by')
    parser.add_argument('--min_size', type=int, default=40, help='px of the smallest segment')
    args = parser.parse_args(argv)
    dset = make_video(args.dst, args.size)
    frame, segments, cover = (args.dst / f'{name}.tif' for name in ('frame', 'segments', 'cover'))
    write_frame(dset, frame)
    config = ShepherdConfig(n_clusters=args.clusters, min_segment_size=args.min_size)
    found = segment_raster(frame, segments, config, tile_size=256, overlap=64)
    table = segment_stats(frame, segments, STATS)
    labels = read_raster(segments)[..., 0]
    classes, share = classify(table, find_known(read_raster(frame), labels, table))
    by_id = np.full(found.n_segments + 1, NO_CLASS, np.uint8)
    by_id[table.ids] = classes
    map_blocks(functools.partial(look_up, classes=by_id), segments, cover, block_shape=256,
               overwrite=True, nodata=NO_CLASS, overviews='mode', channels=['cover'])
    write_legend(cover)
    for fpath in (frame, segments, cover):
        verify_cog(fpath)
    result = register(dset, cover, args.dst / 'cover.kwcoco.json')
    photo = draw_photo(dset, IMAGE_ID)
    save_row(args.dst / 'cover.png', {
        'photo': photo,
        f'{found.n_segments} segments, by mean color': draw_segments(
            labels, background=photo, colors='mean', outline='#ffff00', alpha=1),
        'class': draw_classes(read_channels(result, IMAGE_ID, 'cover'), CLASSES),
    }, make_legend(CLASSES))
    for fpath in (segments, cover, args.dst / 'cover.png'):
        print(f'written    {fpath}')
    print(f'manifest   {result.fpath}')
    print(f'agreement  {share:.1%} of the known segments that were not trained on')


if __name__ == '__main__':
    sys.exit(main())
