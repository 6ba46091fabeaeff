"""
The programs with a slow disk, and with several managers at a time.
"""
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from .victims import IMAGES, SHAPE, make_blank_dataset, make_grid, make_pixels

SLOW_S = 0.004
N_IMAGES = 12


def slow_down():
    """Let every call that writes take its time."""
    def wrap(call):
        def slow(*args, **options):
            time.sleep(SLOW_S)
            return call(*args, **options)
        return slow
    for name in ('write', 'writev', 'pwrite', 'pwritev', 'copy_file_range', 'fsync'):
        setattr(os, name, wrap(getattr(os, name)))


def make_metered_queue(**options):
    """Return a writer queue that knows how many bytes waited in it at most."""
    from cocoseg import WriterQueue

    class MeteredQueue(WriterQueue):
        n_bytes = peak = total = 0
        lock = threading.Lock()

        def enqueue(self, func, *args, **options):
            future = super().enqueue(func, *args, **options)
            with self.lock:
                self.n_bytes += func.nbytes
                self.total += func.nbytes
                self.peak = max(self.peak, self.n_bytes)
            future.add_done_callback(lambda _: self._leave(func.nbytes))
            return future

        def _leave(self, nbytes):
            with self.lock:
                self.n_bytes -= nbytes
    return MeteredQueue(**options)


def crawl(child, folder, is_slow, max_pending_bytes, workers, declared=False):
    """Stitch images faster than the disk takes them."""
    from cocoseg import CocoStitchingManager
    if is_slow:
        slow_down()
    dset = make_blank_dataset(folder, N_IMAGES)
    queue = make_metered_queue(workers=workers, max_pending_bytes=max_pending_bytes,
                               max_pending_jobs=N_IMAGES)
    with queue, CocoStitchingManager(
            dset, 'pred', 'x|y', 'image', expected_minmax=(0, 1), prob_blocksize=64,
            writer_queue=queue) as manager:
        if declared:
            for image_id in dset.images():
                manager.expect_windows(image_id, make_grid())
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda image_id: stitch(manager, image_id), dset.images()))
        manager.dump()
    child.tell('end', peak=queue.peak, total=queue.total, left=queue.n_bytes)


def stitch(manager, image_id, errors=None):
    """Accumulate and submit one image; note which others are told to have failed."""
    from cocoseg.errors import AssetWriteError
    pixels, todo = make_pixels(image_id), [window.clip(SHAPE) for window in make_grid()]
    while todo:
        try:
            manager.accumulate_image(image_id, todo[0], pixels[todo[0].slices])
            del todo[0]
        except AssetWriteError as ex:
            # This window was not taken; it is given again.
            errors.append(ex.image_id)
    try:
        manager.submit_finalize_image(image_id)
    except AssetWriteError as ex:
        # This image was submitted all the same.
        errors.append(ex.image_id)


def share(child, folder, codes, with_obstacle=False):
    """Let managers of other channels work on one dataset with one queue."""
    from cocoseg import CocoStitchingManager, WriterQueue
    from cocoseg.errors import AssetWriteError
    dset = make_blank_dataset(folder, IMAGES['manage'])
    errors = {code: [] for code in codes}

    def work(manager):
        for image_id in dset.images():
            stitch(manager, image_id, errors[manager.chan_code])
        try:
            manager.close()
        except AssetWriteError as ex:
            errors[manager.chan_code].append(ex.image_id)
    with WriterQueue(workers=2) as queue:
        managers = [CocoStitchingManager(dset, 'pred', code, 'image', expected_minmax=(0, 1),
                                         prob_blocksize=64, writer_queue=queue)
                    for code in codes]
        if with_obstacle:
            # A folder where the file of the first manager should be.
            os.mkdir(os.path.join(managers[0].prob_dpath,
                                  f'img2_{managers[0].options.suffix}.tif'))
        threads = [threading.Thread(target=work, args=[manager]) for manager in managers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        done = {manager.chan_code: sorted(manager.seen_image_ids) for manager in managers}
    managers[-1].manifest.dump()
    child.tell('end', errors=errors, done=done)


PROGRAMS = (crawl, share)
