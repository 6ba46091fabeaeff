"""What workers do in the tests of their faults; imported by them, wherever they run."""
import os
import secrets
import signal
import time
from dataclasses import dataclass

import numpy as np

# s, after which a worker gives up what a test would have it wait for.
LIMIT = 60.0
# More than a worker may have in those tests, bytes.
GREED = 1_400_000_000


# -- how tasks and tests tell each other

def note(folder, name):
    """Leave a file that says that something was done; each time another one."""
    open(os.path.join(folder, f'{name}.{secrets.token_hex(6)}'), 'x').close()


def count_notes(folder):
    """Return how often each thing was done, by name."""
    counts = {}
    for name in os.listdir(folder):
        name, dot, _ = name.rpartition('.')
        if dot:
            counts[name] = counts.get(name, 0) + 1
    return counts


def heal(folder):
    """End all trouble; whoever waits goes on."""
    open(os.path.join(folder, 'healed'), 'w').close()


def is_healed(folder):
    """Return True if there is no trouble any more."""
    return os.path.exists(os.path.join(folder, 'healed'))


def wait_until(condition, seconds=LIMIT):
    """Return True once a condition holds, False if it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def get_ready():
    """Load what blocks need, which takes long; return the process id."""
    import cocoseg.postprocess.blocks  # noqa: F401
    from osgeo import gdal  # noqa: F401
    return os.getpid()


def meet(task, folder, n_workers=2):
    """Return the process id, once so many workers are here and ready."""
    note(folder, f'pid{get_ready()}')
    assert wait_until(lambda: len(count_notes(folder)) >= n_workers)
    return os.getpid()


# -- what goes wrong

def die(folder):
    """Be killed, each time."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_once(folder):
    """Be killed, the first time."""
    try:
        open(os.path.join(folder, 'died'), 'x').close()
    except FileExistsError:
        return
    die(folder)


def die_before_the_rename(folder):
    """Be killed once, when a file is written and has not its name yet."""
    if not os.path.exists(os.path.join(folder, 'died')):
        os.replace = lambda *paths: die_once(folder)


def eat(folder):
    """Take more memory than a worker may have, and wait for what comes of it."""
    held = np.ones(GREED, np.uint8)
    time.sleep(LIMIT)
    raise AssertionError(f'nobody minds {held.nbytes} bytes')


def hang(folder):
    """Take long; until healed."""
    assert wait_until(lambda: is_healed(folder))


def fail(folder):
    """Fail, each time."""
    raise ValueError('no water here')


def fail_twice(folder):
    """Fail, the first two times."""
    n_failed = count_notes(folder).get('failed', 0)
    note(folder, 'failed')
    if n_failed < 2:
        raise ValueError(f'no water here, {n_failed}')


def nothing(folder):
    """Nothing goes wrong."""


TROUBLES = {func.__name__: func for func in (
    die, die_once, die_before_the_rename, eat, hang, fail, fail_twice, nothing)}


def have(trouble, folder):
    """Be in trouble, unless healed."""
    if not is_healed(folder):
        TROUBLES[trouble](folder)


# -- tasks

@dataclass(frozen=True)
class BlockTask:
    """
    Blur a block; one of the blocks is in trouble.

    Attributes:
        folder (str): for notes, one per call, named after the block.
        trouble (str): of TROUBLES.
        where (tuple[int, int]): index of the block that is in trouble.
        bias (float): added.
    """

    folder: str
    trouble: str = 'nothing'
    where: tuple = (1, 1)
    bias: float = 0.0

    def __call__(self, pixels, block):
        note(self.folder, '{}-{}'.format(*block.index))
        if block.index == self.where:
            have(self.trouble, self.folder)
        padded = np.pad(pixels, ((1, 1), (0, 0), (0, 0)), mode='edge').astype(np.float32)
        return (padded[:-2] + padded[1:-1] + padded[2:]) / 3 + np.float32(self.bias)


@dataclass(frozen=True)
class ImagePredictor:
    """
    The mean of two bands; a third one holds the number of the image.

    Attributes:
        folder (str): for notes, one per window, named after the image.
        trouble (str): of TROUBLES.
        where (int): number of the image that is in trouble, in its third window.
    """

    folder: str
    trouble: str = 'nothing'
    where: int = 2
    config_hash = 'mean'

    def __call__(self, image):
        number = int(np.nanmax(image[..., 2]))
        note(self.folder, str(number))
        if number == self.where and count_notes(self.folder)[str(number)] >= 3:
            have(self.trouble, self.folder)
        return image[..., :2].mean(axis=2, keepdims=True) / 255


# -- a program that is killed, or is not alone

def drive(kind, image, folder, executor, notes):
    """Segment a raster; in the middle of it meet another program, or die."""
    from cocoseg import get_executor

    def progress(steps, total, desc):
        for number, step in enumerate(steps):
            if number == 1 and kind == 'dies':
                die(notes)
            if number == 1 and kind == 'meets':
                meet_driver(notes)
            yield step

    segment(image, os.path.join(folder, 'out.tif'), get_executor(executor), progress=progress)


def meet_driver(folder):
    """Return when another program is in the middle of its run, too."""
    note(folder, f'driver{os.getpid()}-{secrets.token_hex(2)}')
    assert wait_until(lambda: len(count_notes(folder)) >= 2)


def segment(image, dst, executor='serial', **options):
    """Segment a raster in small tiles, the same in each program."""
    from cocoseg import ShepherdConfig, segment_raster
    centers = np.array([[value] * 3 for value in (30.0, 90.0, 150.0, 210.0)])
    return segment_raster(image, dst, ShepherdConfig(n_clusters=4, min_segment_size=20), 64, 16,
                          executor, kmeans=centers, **options)


if __name__ == '__main__':
    import sys
    drive(*sys.argv[1:])
