"""
Objects, their predictions, and datasets of both, that tests of instances share.

Test files import it as ``from ..instances import …``.
"""
import kwcoco
import numpy as np

from cocoseg import write_cog

OFFSETS = [(0, 1), (1, 0), (-9, 0), (0, -9)]
CHANNELS = 'right|below|up|left'


def draw_disks(shape=(90, 120), spacing=(22, 19), radius=8.5):
    """Return int32 ids, by first pixel, of disks in columns that nearly touch."""
    rows, columns = np.mgrid[:shape[0], :shape[1]]
    truth = np.zeros(shape, np.int32)
    for number, (y, x) in enumerate((y, x) for y in range(11, shape[0], spacing[0])
                                    for x in range(10, shape[1], spacing[1])):
        truth[np.hypot(rows - y, columns - x) <= radius] = number + 1
    return number_by_first_pixel(truth)


def draw_volume(shape=(24, 40, 40)):
    """Return int32 ids, by first pixel, of bricks with gaps."""
    z, y, x = np.indices(shape)
    bricks = 1 + (z // 12 * 4 + y // 20) * 4 + x // 14
    return number_by_first_pixel(np.where((y % 20 < 17) & (x % 14 < 12), bricks, 0))


def number_by_first_pixel(labels):
    """Return labels numbered 1..n in the order of their first pixels; 0 stays."""
    flat = labels.reshape(-1)
    present, firsts = np.unique(flat, return_index=True)
    order = present[np.argsort(firsts)]
    lut = np.zeros(int(flat.max()) + 1, np.int32)
    lut[order[order > 0]] = np.arange(1, (order > 0).sum() + 1)
    return lut[labels]


def draw_affinities(truth, offsets=OFFSETS, noise=0.0, seed=0):
    """Return float32 (..., C): 0.95 where p and p + offset are one object, else 0.05."""
    rng = np.random.default_rng(seed)
    out = []
    for offset in offsets:
        other = np.roll(truth, [-step for step in offset], tuple(range(truth.ndim)))
        for axis, step in enumerate(offset):
            edge = [slice(None)] * truth.ndim
            edge[axis] = slice(truth.shape[axis] - step, None) if step > 0 else slice(0, -step)
            other[tuple(edge)] = 0
        same = np.where((truth == other) & (truth > 0), 0.95, 0.05)
        out.append(np.clip(same + noise * rng.normal(size=truth.shape), 0, 1))
    return np.stack(out, axis=-1).astype(np.float32)


def make_bundle(folder, truths, **options):
    """Return a saved dataset of images with affinities and the foreground of each truth."""
    folder.mkdir(parents=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = str(folder / 'src.kwcoco.json')
    for number, truth in enumerate(truths):
        height, width = truth.shape
        pixels = np.dstack([draw_affinities(truth, **options), truth > 0]).astype('f4')
        write_cog(folder / f'{number}.tif', pixels,
                  channels=f'{CHANNELS}|nuclei')
        image_id = dset.add_image(name=f'img{number}', width=width, height=height)
        dset.add_asset(image_id, file_name=f'{number}.tif', channels=f'{CHANNELS}|nuclei',
                       width=width, height=height, warp_aux_to_img={'scale': 1})
    dset.dump()
    return dset
