#!/usr/bin/env python
"""
Train a random forest on annotations, and run it over the video they are in.

What a predict script with scikit-learn needs, in the order of ``main``:

1. Pixels inside of polygons of the manifest become the training set.
2. The model is fitted, saved without pickle (skops), and loaded again.
3. ``predict_dataset`` runs it in overlapping windows. Besides the probabilities
   there is a map of classes, and how much the windows disagree.
4. Every file is verified, and polygons that were not trained on are scored.

Usage: python dev/examples/predict_sklearn.py [--dst FOLDER] [--size PX] [--trees 40]
"""
from __future__ import annotations

import sys

import numpy as np
from naip_video import draw_photo, make_parser, make_video, read_channels, save_row

from cocoseg import load_predictor, predict_dataset
from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.demo import IMAGE_CHANNELS
from cocoseg.coco.drawing import draw_classes, draw_heatmap, make_legend

CLASSES = ('bare', 'vegetation', 'water')
COLORS = ('#e69f00', '#009e73', '#0072b2')
RADIUS = 4
# What somebody marked in each frame: circles x, y, radius, px. The first and third of a class are
# trained on, the others are for the score.
MARKED = {
    1: {'water': [(133, 294, 24), (374, 210, 24), (374, 420, 24), (354, 82, 18)],
        'vegetation': [(121, 135, 24), (273, 157, 24), (200, 398, 24), (116, 30, 24)],
        'bare': [(394, 307, 24), (320, 226, 18), (483, 226, 18), (421, 392, 15)]},
    2: {'water': [(131, 288, 24), (389, 429, 24), (353, 82, 23), (443, 266, 23)],
        'vegetation': [(261, 96, 24), (173, 201, 24), (38, 294, 24), (249, 347, 24)],
        'bare': [(375, 297, 24), (370, 135, 13), (471, 226, 22), (454, 368, 24)]},
    3: {'water': [(139, 290, 24), (376, 210, 24), (375, 415, 24), (347, 87, 24)],
        'vegetation': [(261, 100, 24), (384, 304, 24), (169, 199, 24), (442, 156, 24)],
        'bare': [(39, 456, 6), (201, 329, 6)]},
}


class ContextPredictor:
    """
    A predictor (h, w, B) -> (h, w, K) that looks at a pixel and at what is around it.

    Args:
        predict_pixels (Predictor): of the features, such as an estimator that
            was loaded by ``load_predictor``.

    Attributes:
        channels (str): names of the K outputs.
        config_hash (str): tells it from others, so that a run can be resumed.
    """

    def __init__(self, predict_pixels):
        self.predict_pixels = predict_pixels
        self.channels = predict_pixels.channels
        self.config_hash = f'context-{RADIUS}-{predict_pixels.config_hash}'

    def __call__(self, image):
        """Predict one window, NaN where there is no data."""
        return self.predict_pixels(compute_features(image))


def compute_features(image):
    """Return bands, and mean and deviation around each pixel: (h, w, 3 * B), NaN as before."""
    from scipy import ndimage
    values = np.nan_to_num(image)
    size = (2 * RADIUS + 1, 2 * RADIUS + 1, 1)
    mean = ndimage.uniform_filter(values, size)
    spread = np.sqrt(np.maximum(ndimage.uniform_filter(values ** 2, size) - mean ** 2, 0))
    return np.concatenate([image, mean, spread], axis=2)


def annotate(dset):
    """Add the marked circles as polygons; the attribute ``split`` is 'train' or 'test'."""
    import kwimage
    for image_id, by_class in MARKED.items():
        for name, circles in by_class.items():
            category_id = dset.ensure_category(name)
            for number, (x, y, radius) in enumerate(circles):
                polygon = kwimage.Polygon.circle((x, y), radius)
                dset.add_annotation(image_id, category_id, split=('train', 'test')[number % 2],
                                    bbox=polygon.box().to_xywh().data.tolist(),
                                    segmentation=polygon.to_coco(style='new'))
    dset.dump()


def rasterize(dset, image_id, split, space):
    """Return which class is marked, int8 (H, W): a place in ``CLASSES``, or -1."""
    import kwimage
    coco_image = dset.coco_image(image_id)
    frame, warp = coco_image.img, kwimage.Affine.eye()
    if space == 'video':
        frame, warp = coco_image.video, coco_image.warp_vid_from_img
    marks = np.full((frame['height'], frame['width']), -1, np.int8)
    for annot in dset.annots(image_id=image_id).objs:
        if annot.get('split') == split:
            polygon = kwimage.MultiPolygon.coerce(annot['segmentation']).warp(warp)
            name = dset.cats[annot['category_id']]['name']
            polygon.fill(marks, CLASSES.index(name))
    return marks


def collect_samples(dset, n_per_class=3000):
    """Return features (n, F) and class names (n,) of marked pixels of all frames."""
    rng = np.random.default_rng(0)
    features, names = [], []
    for image_id in dset.images():
        image = compute_features(read_channels(dset, image_id, space='image'))
        marks = rasterize(dset, image_id, 'train', 'image')
        marks[np.isnan(image).any(axis=2)] = -1
        for index, name in enumerate(CLASSES):
            found = image[marks == index]
            chosen = rng.permutation(len(found))[:n_per_class]
            features.append(found[chosen])
            names += [name] * len(chosen)
    return np.concatenate(features), np.array(names)


def train(dset, fpath, n_trees):
    """Fit the forest, save it, and return the predictor that was loaded from the file."""
    import skops.io
    from sklearn.ensemble import RandomForestClassifier
    features, names = collect_samples(dset)
    forest = RandomForestClassifier(n_trees, max_depth=10, min_samples_leaf=5,
                                    class_weight='balanced', random_state=0)
    skops.io.dump(forest.fit(features, names), fpath)
    # Trees are no types that skops trusts by itself; this file is our own.
    return ContextPredictor(load_predictor(str(fpath), trusted=['sklearn.tree._tree.Tree']))


def score(dset):
    """Return the share of marked test pixels that got their class, by class."""
    right, total = np.zeros(len(CLASSES), int), np.zeros(len(CLASSES), int)
    for image_id in dset.images():
        marks = rasterize(dset, image_id, 'test', 'video')
        found = read_channels(dset, image_id, 'pred_class')[..., 0]
        for index in range(len(CLASSES)):
            is_marked = (marks == index) & np.isfinite(found)
            right[index] += (found[is_marked] == index).sum()
            total[index] += is_marked.sum()
    return {name: right[index] / total[index] for index, name in enumerate(CLASSES) if total[index]}


def draw(dset, image_id, fpath):
    """Write photo, classes, and disagreement of the windows side by side."""
    # An asset is read as a whole; of its bands the largest tells.
    spread = read_channels(dset, image_id, '|'.join(f'{name}_std' for name in CLASSES))
    classes = read_channels(dset, image_id, 'pred_class')
    save_row(fpath, {
        'photo': draw_photo(dset, image_id),
        'disagreement': draw_heatmap(spread.max(axis=2), minmax=(0, 0.1)),
        'class': draw_classes(classes, CLASSES, colors=COLORS),
    }, make_legend(CLASSES, COLORS))


def main(argv=None):
    """Run the example."""
    parser = make_parser('predict_sklearn', __doc__)
    parser.add_argument('--trees', type=int, default=40, help='of the forest')
    args = parser.parse_args(argv)
    dset = make_video(args.dst, args.size)
    annotate(dset)
    predictor = train(dset, args.dst / 'forest.skops', args.trees)
    result = predict_dataset(
        dset, args.dst / 'pred.kwcoco.json', predictor, window=128, overlap=0.25,
        channels=IMAGE_CHANNELS, expected_minmax=(0, 1), layers=['class', 'disagreement'])
    audit = audit_manifest(result.fpath, full=True)
    draw(result, 2, args.dst / 'classes.png')
    print(f'manifest  {result.fpath}')
    print(f'model     {args.dst / "forest.skops"}')
    print(f'picture   {args.dst / "classes.png"}')
    print(f'verified  {len(audit.select("ok"))} files')
    for name, share in score(result).items():
        print(f'{name:<10}  {share:.1%} of the pixels of test polygons')


if __name__ == '__main__':
    sys.exit(main())
