"""
The programs that are killed and interrupted, and the data that they work on.
"""
import os
import time

import numpy as np

IMAGES = {'predict': 4, 'manage': 6}
SHAPE = (150, 190)
WINDOW, OVERLAP = 48, 12


def make_pixels(seed, shape=SHAPE, n_bands=2):
    """Return smooth float32 values in [0, 1] with noise, shape (H, W, C)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    waves = [np.sin(rows / rng.uniform(12, 30) + columns / rng.uniform(12, 30)) / 2 + 0.5
             for _ in range(n_bands)]
    noise = rng.random((*shape, n_bands), dtype=np.float32)
    return (0.98 * np.stack(waves, axis=2) + 0.02 * noise).astype(np.float32)


def make_blank_dataset(folder, n_images, shape=SHAPE):
    """Return a dataset of images without pixels, or the one that was saved there."""
    import kwcoco
    fpath = os.path.join(folder, 'out.kwcoco.json')
    if os.path.exists(fpath):
        return kwcoco.CocoDataset(fpath)
    images = [{'id': n, 'name': f'img{n}', 'file_name': None, 'width': shape[1],
               'height': shape[0], 'auxiliary': []} for n in range(1, n_images + 1)]
    dset = kwcoco.CocoDataset({'images': images, 'videos': [], 'annotations': [],
                               'categories': []})
    dset.fpath = fpath
    return dset


def make_grid(shape=SHAPE):
    """Return the windows of an image."""
    from cocoseg import WindowGrid
    return WindowGrid(shape, WINDOW, OVERLAP)


class Predictor:
    """A deterministic predictor of two channels that takes its time."""

    def __init__(self, pace):
        self.pace, self.n_windows = pace, 0

    def __call__(self, image):
        time.sleep(self.pace)
        self.n_windows += 1
        return np.stack([image.mean(axis=2), np.abs(image[..., 0] - image[..., 1])], axis=2)


# ---- programs --------------------------------------------------------------

def make_source(child, folder):
    """Write the images that ``predict`` reads."""
    import kwcoco
    from cocoseg import write_cog
    os.makedirs(folder, exist_ok=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.path.join(folder, 'source.kwcoco.json')
    for image_id in range(1, IMAGES['predict'] + 1):
        file_name = f'img{image_id}.tif'
        write_cog(os.path.join(folder, file_name), make_pixels(image_id))
        dset.add_image(id=image_id, name=f'img{image_id}', width=SHAPE[1], height=SHAPE[0],
                       auxiliary=[{'file_name': file_name, 'channels': 'a|b', 'width': SHAPE[1],
                                   'height': SHAPE[0], 'warp_aux_to_img': {'type': 'affine'}}])
    dset.dump()


def predict(child, folder, source, resume=False, name='out.kwcoco.json', out_channels='x|y',
            **options):
    """Run ``predict_dataset`` with small windows."""
    from cocoseg import predict_dataset
    predictor = Predictor(child.pace)
    child.tell('begin')
    predict_dataset(
        source, os.path.join(folder, name), predictor, WINDOW, OVERLAP,
        out_channels=out_channels, expected_minmax=(0, 1), prob_blocksize=64, space='image',
        resume=resume, **options)
    child.tell('end', n_windows=predictor.n_windows)


def manage(child, folder, resume=False, **options):
    """Feed a manager from two threads: polygons, layers, two writers, dumps in between."""
    from concurrent.futures import ThreadPoolExecutor

    from cocoseg import CocoStitchingManager, WriterQueue
    child.tell('begin')
    dset = make_blank_dataset(folder, IMAGES['manage'])
    with WriterQueue(workers=2) as queue, CocoStitchingManager(
            dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1), prob_blocksize=64,
            write_preds=True, layers=['class', 'disagreement'], writer_queue=queue,
            resume=resume, **options) as manager:
        todo = [image_id for image_id in dset.images() if not manager.is_done(image_id)]
        # Each image has one thread: the order of its windows is always the same.
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda image_id: _finish(child, manager, image_id), todo))
        manager.dump()
    child.tell('end', n_windows=len(todo) * len(make_grid()))


def _finish(child, manager, image_id):
    """Stitch and submit one image; every second one does not declare its windows."""
    grid, pixels = make_grid(), make_pixels(image_id)
    if image_id % 2:
        manager.expect_windows(image_id, grid)
    for window in grid:
        time.sleep(child.pace)
        inside = window.clip(SHAPE)
        manager.accumulate_image(image_id, inside, pixels[inside.slices])
    manager.submit_finalize_image(image_id)
    if image_id % 3 == 0:
        manager.dump()


PROGRAMS = (make_source, predict, manage)
