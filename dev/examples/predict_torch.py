#!/usr/bin/env python
"""
Run a network with three heads over a video, and stitch each head by its own manager.

The structure of a fusion model's predict script:

1. A small convolutional network is trained for some seconds; a real script would
   load its weights.
2. Windows are predicted in batches, in a thread that runs ahead of the stitching
   (``predict_windows``). ``torch.inference_mode`` holds for one thread only, so
   it is inside of the predictor.
3. Three managers share dataset, memory budget and writer queue: ``salient`` (shores),
   ``water|vegetation|bare`` with a map of classes, and ``hidden.0:8`` at half size.

Usage: python dev/examples/predict_torch.py [--dst FOLDER] [--size PX] [--steps 60]
    [--device cpu]
"""
from __future__ import annotations

import sys
from contextlib import ExitStack

import numpy as np
from naip_video import draw_photo, make_parser, make_video, read_channels, save_row

from cocoseg import (
    CocoStitchingManager, MemoryBudget, Window, WindowGrid, WriterQueue, predict_windows)
from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.dataset import open_result
from cocoseg.coco.demo import (
    CLASS_CHANNELS, IMAGE_CHANNELS, held_out_pixels, index_labels, measure_agreement)
from cocoseg.coco.drawing import draw_classes, draw_heatmap, make_legend

try:
    import torch
except ImportError as ex:
    sys.exit(f'torch is needed for this example, and cannot be imported: {ex}. Install it by '
             '`pip install cocoseg[torch]`')
from torch import nn
from torch.nn import functional

CLASSES = CLASS_CHANNELS.split('|')
N_HIDDEN = 8
WINDOW, OVERLAP = 128, 32


class Network(nn.Module):
    """Pixels (N, 4, h, w) in, logits of classes and of a shore, and features at half size out."""

    def __init__(self):
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(4, 16, 3, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, N_HIDDEN, 1))
        self.grow = nn.Upsample(scale_factor=2, mode='bilinear')
        self.heads = nn.Conv2d(16 + N_HIDDEN, len(CLASSES) + 1, 3, padding=1)

    def forward(self, pixels):
        """Return (N, K, h, w), (N, 1, h, w) and (N, 8, h / 2, w / 2)."""
        fine = self.fine(pixels)
        hidden = self.coarse(fine)
        logits = self.heads(torch.cat([fine, self.grow(hidden)], dim=1))
        return logits[:, :-1], logits[:, -1:], hidden


def as_input(images, device):
    """Return images (N, h, w, 4), 0..255 or NaN, as the network takes them."""
    scaled = np.nan_to_num(images / 127.5 - 1).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(scaled)).to(device)


def make_targets(image):
    """Return classes, and where a shore is, int64 (2, H, W); -1 is not trained on."""
    from scipy import ndimage
    labels = index_labels(image)
    water = labels == 1
    inner = ndimage.binary_erosion(water, iterations=2, border_value=1)
    shore = ndimage.binary_dilation(water, iterations=2) & ~inner
    targets = np.stack([labels.astype(np.int64) - 1, shore.astype(np.int64)])
    targets[:, held_out_pixels(labels.shape) | np.isnan(image).any(axis=2)] = -1
    return targets


def train(dset, device, n_steps, size=48, n_crops=8):
    """Return a network that was trained on random crops of all images."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    images = np.stack([read_channels(dset, image_id) for image_id in dset.images()])
    targets = np.stack([make_targets(image) for image in images])
    network = Network().to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(n_steps):
        corners = rng.integers(0, (len(images), *(np.array(images.shape[1:3]) - size + 1)),
                               (n_crops, 3))
        pixels = np.stack([images[i, y:y + size, x:x + size] for i, y, x in corners])
        classes, salient, _ = network(as_input(pixels, device))
        truth = torch.from_numpy(np.stack(
            [targets[i, :, y:y + size, x:x + size] for i, y, x in corners])).to(device)
        loss = functional.cross_entropy(classes, truth[:, 0], ignore_index=-1)
        loss = loss + functional.binary_cross_entropy_with_logits(
            salient[:, 0], truth[:, 1].float(), weight=(truth[:, 1] >= 0).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


class HeadsPredictor:
    """Read and predict windows of one image: a dict per window, of an array per head."""

    def __init__(self, network, delayed, device):
        self.network, self.delayed, self.device = network, delayed, device

    def __call__(self, windows):
        """Predict a batch, in the thread that reads ahead; NaN where no data is."""
        images = np.stack([np.asarray(self.delayed.crop(window.slices).finalize(), np.float32)
                           for window in windows])
        with torch.inference_mode():
            classes, salient, hidden = self.network(as_input(images, self.device))
            heads = {'class': classes.softmax(dim=1), 'salient': salient.sigmoid(),
                     'hidden': hidden}
            heads = {name: head.cpu().numpy().transpose(0, 2, 3, 1) for name, head in heads.items()}
        is_empty = np.isnan(images).all(axis=3, keepdims=True)
        for name, step in ('class', 1), ('salient', 1), ('hidden', 2):
            heads[name] = np.where(is_empty[:, ::step, ::step], np.nan, heads[name])
        return [dict(zip(heads, parts)) for parts in zip(*heads.values())]


def open_managers(stack, dset):
    """Return a manager per head; the stack closes them, and then the queue that they share."""
    shared = {'writer_queue': stack.enter_context(WriterQueue(workers=2)),
              'memory_budget': MemoryBudget(256 * 2 ** 20)}
    probs = {'expected_minmax': (0, 1), **shared}
    managers = {
        'salient': CocoStitchingManager(dset, 'salient', 'salient', **probs),
        'class': CocoStitchingManager(dset, 'class', CLASS_CHANNELS, layers=['class'], **probs),
        # Nobody knows the range of features: each image is quantized to its own.
        'hidden': CocoStitchingManager(dset, 'hidden', f'hidden.0:{N_HIDDEN}', **shared)}
    return {name: stack.enter_context(manager) for name, manager in managers.items()}


def predict_image(dset, image_id, managers, network, device):
    """Predict the windows of an image, and hand it to the writer."""
    delayed = dset.coco_image(image_id).imdelay(IMAGE_CHANNELS, space='video',
                                                nodata_method='float')
    height, width = delayed.shape[0] // 2, delayed.shape[1] // 2
    # The windows of the coarse head decide: those of the fine heads are twice as large.
    coarse = list(WindowGrid((height, width), WINDOW // 2, OVERLAP // 2))
    fine = [Window(*(2 * edge for edge in (window.y0, window.x0, window.y1, window.x1)))
            for window in coarse]
    places = {'salient': (fine, {}), 'class': (fine, {}), 'hidden': (coarse, {
        'asset_dsize': (width, height), 'scale_asset_from_stitchspace': 0.5})}
    for name, (windows, options) in places.items():
        managers[name].expect_windows(image_id, windows, **options)
    predictor = HeadsPredictor(network, delayed, device)
    found = predict_windows(fine, predictor, batch_size=8, prefetch=2)
    for index, (_, heads) in enumerate(found):
        for name, (windows, options) in places.items():
            managers[name].accumulate_image(image_id, windows[index], heads[name], **options)
    for manager in managers.values():
        manager.submit_finalize_image(image_id)


def draw(dset, image_id, fpath):
    """Write photo, shores, three features, and classes side by side."""
    hidden = read_channels(dset, image_id, f'hidden.0:{N_HIDDEN}')[..., :3]
    low, high = np.nanpercentile(hidden, (2, 98), axis=(0, 1))
    hidden = np.nan_to_num(np.clip((hidden - low) / np.maximum(high - low, 1e-9), 0, 1))
    save_row(fpath, {
        'photo': draw_photo(dset, image_id),
        'salient: shores': draw_heatmap(read_channels(dset, image_id, 'salient'), minmax=(0, 1)),
        'three of the features': np.rint(255 * hidden).astype(np.uint8),
        'class': draw_classes(read_channels(dset, image_id, 'class_class'), CLASSES),
    }, make_legend(CLASSES))


def main(argv=None):
    """Run the example."""
    parser = make_parser('predict_torch', __doc__)
    parser.add_argument('--steps', type=int, default=60, help='of training')
    parser.add_argument('--device', default='cpu', help="of torch, such as 'cuda'")
    args = parser.parse_args(argv)
    dset = make_video(args.dst, args.size)
    network = train(dset, args.device, args.steps)
    result = open_result(dset, args.dst / 'pred.kwcoco.json')
    with ExitStack() as stack:
        managers = open_managers(stack, result)
        for image_id in dset.images():
            predict_image(dset, image_id, managers, network, args.device)
    result.dump()
    draw(result, 2, args.dst / 'heads.png')
    print(f'manifest   {result.fpath}')
    print(f'picture    {args.dst / "heads.png"}')
    print(f'verified   {len(audit_manifest(result.fpath, full=True).select("ok"))} files')
    print(f'agreement  {measure_agreement(result):.1%} of labels that were not trained on')


if __name__ == '__main__':
    sys.exit(main())
