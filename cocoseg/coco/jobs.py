"""
The table of images in work: who is in which state, and what may come next.

The one owner of the image jobs of a manager. It knows nothing of files and
queues; :mod:`cocoseg.coco.manager` moves images through it.
"""
from __future__ import annotations

import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from cocoseg.coco.geometry import (coerce_dsize, coerce_scale, stitchspace_dsize,
                                   warp_img_from_stitchspace)
from cocoseg.coco.lifecycle import MANAGED, ImageJob, ImageState
from cocoseg.coco.pixels import make_pixels
from cocoseg.errors import (AlreadyFinalizedError, CoverageError, ImageClosedError,
                            NothingAccumulatedError, OptionError)
from cocoseg.grid.windows import WindowGrid


class JobTable:
    """
    All images that one manager has touched.

    Args:
        manifest (Manifest): the dataset. owner (object): who claims channels.
        options (AssetOptions): how assets look.
        folder (str): where assets go.
        canvas_options (dict): ``device``, ``memmap``, ``memory_budget`` (of
            all images together).
        readiness (str): 'declared' or 'contiguous'.
        replace (bool): an existing asset with these channels may go.

    Thread-safety: all methods may be called from any thread.
    """

    def __init__(self, manifest, owner, options, folder, canvas_options, readiness, replace):
        self.manifest, self.options, self.folder = manifest, options, folder
        self.replace = replace
        self.patch_counts = Counter()
        self.lock = threading.RLock()
        self._owner = owner
        self._canvas_options = canvas_options
        self._contiguous = readiness == 'contiguous'
        self._jobs = {}
        self._done = {}
        self._last = None
        self._closed = False
        self._executor = None

    # ---- asking ------------------------------------------------------------

    def get(self, image_id):
        """Return the job of an image, or None."""
        with self.lock:
            return self._jobs.get(image_id)

    def jobs_in(self, *states):
        """Return the jobs that are in one of the states, oldest first."""
        with self.lock:
            return [job for job in self._jobs.values() if job.state in states]

    @property
    def done_ids(self):
        """Ids of finished images, a new set."""
        with self.lock:
            return set(self._done)

    def get_state(self, image_id):
        """Return the state of an image of the manifest."""
        self.manifest.get_image(image_id)
        with self.lock:
            if image_id in self._done:
                return ImageState.DONE
            job = self._jobs.get(image_id)
            return ImageState.UNSEEN if job is None else job.state

    def check_open(self, image_id):
        """Raise ImageClosedError unless the image takes data."""
        state = self.get_state(image_id)
        if self._closed:
            raise ImageClosedError('this manager is closed; make a new one')
        if state in (ImageState.FINALIZING, ImageState.DONE, ImageState.FAILED):
            raise ImageClosedError(
                f'image {image_id} is {state.value}: no more data can be added; submit an '
                'image only when all its windows came, or declare them with expect_windows')

    # ---- opening -----------------------------------------------------------

    def declare(self, image_id, windows, asset_dsize, scale):
        """Open an image whose windows are known."""
        with self.lock:
            self.check_open(image_id)
            windows = windows if isinstance(windows, WindowGrid) else list(windows or ())
            if not windows:
                raise CoverageError(f'no windows are declared for image {image_id}; give all the '
                                    'windows that will come')
            if image_id in self._jobs:
                raise CoverageError(f'image {image_id} has windows already; declare all of '
                                    'them once, before the first')
            return self._open(image_id, asset_dsize, scale, windows)

    def enter(self, image_id, asset_dsize, scale):
        """
        Return the open job of an image, for one call of :meth:`leave`.

        A size or scale that is given must agree with that of the job.
        """
        with self.lock:
            self.check_open(image_id)
            job = self._jobs.get(image_id)
            if job is None:
                job = self._open(image_id, asset_dsize, scale, None)
            else:
                self._check_same(job, asset_dsize, scale)
            job.n_users += 1
            return job

    @staticmethod
    def _check_same(job, asset_dsize, scale):
        if asset_dsize is not None and coerce_dsize(asset_dsize) != job.asset_dsize:
            raise OptionError(f'image {job.image_id} was begun with asset_dsize='
                              f'{job.asset_dsize}, now {asset_dsize}; an asset has one size')
        if scale is not None:
            warp = coerce_scale(scale)
            if not np.allclose(warp.matrix, job.scale.matrix):
                raise OptionError(f'image {job.image_id} was begun with the scale '
                                  f'{job.scale.concise()}, now {warp.concise()}')

    def leave(self, job):
        """End one use; a job that got nothing is dropped, as if it never was."""
        with self.lock:
            job.n_users -= 1
            if (job.n_users == 0 and job.state is ImageState.UNSEEN
                    and job.stitcher.n_windows == 0 and not job.stitcher.is_declared):
                self._drop(job)

    def _open(self, image_id, asset_dsize, scale, windows):
        img, options = self.manifest.get_image(image_id), self.options
        warp_asset_from_stitch = coerce_scale(scale)
        if asset_dsize is None:
            asset_dsize = stitchspace_dsize(img, self.manifest.get_video(img), options.space)
            if not np.allclose(warp_asset_from_stitch.matrix, np.eye(3)):
                warnings.warn(f'image {image_id}: scale_asset_from_stitchspace={scale} without '
                              f'asset_dsize; the asset is {asset_dsize} px, not scaled',
                              stacklevel=4)
        asset_dsize = coerce_dsize(asset_dsize)
        fpaths = list(self.reserve(image_id).values())
        try:
            pixels = make_pixels(img['id'], asset_dsize[::-1], windows, options,
                                 self._canvas_options, folder=self.folder,
                                 executor=self._get_executor())
            job = ImageJob(
                img['id'], img, options, pixels, asset_dsize, warp_asset_from_stitch,
                warp_img_from_stitchspace(img, options.space) @ warp_asset_from_stitch.inv(),
                fpaths, self.manifest.bundle_dpath)
        except BaseException:
            self.manifest.release_channels(image_id, options.asset_channels)
            raise
        self._jobs[job.image_id] = job
        return job

    def reserve(self, image_id):
        """Claim the channels of an image, and return its files by channels."""
        options = self.options
        self.manifest.claim_channels(image_id, options.asset_channels, self._owner, self.replace)
        try:
            return {spec.chan_code: self.manifest.reserve_file(
                image_id, spec.chan_code, self.folder, spec.suffix, options.ext)
                for spec in options.assets}
        except BaseException:
            self.manifest.release_channels(image_id, options.asset_channels)
            raise

    def _get_executor(self):
        """Return the threads that compress, for all images; made on first use."""
        from cocoseg.io.cog import count_cpus
        if self._executor is None:
            # They start with the first block, and no more than there is work for.
            self._executor = ThreadPoolExecutor(count_cpus(), 'cocoseg-encode')
        return self._executor

    def _drop(self, job):
        if self._jobs.get(job.image_id) is job:
            del self._jobs[job.image_id]
        self.manifest.release_channels(job.image_id, self.options.asset_channels)

    # ---- moving ------------------------------------------------------------

    def receive(self, job, is_ready):
        """Note a window that was added, and whether the image is ready now."""
        with self.lock:
            if not job.stitcher.n_windows:
                # It lies beside the area of interest, and was not taken.
                return
            self.patch_counts[job.image_id] += 1
            if self._contiguous and is_ready == 'auto':
                self._mark_previous(job)
            self._last = job
            if job.state not in (ImageState.UNSEEN, ImageState.ACCUMULATING, ImageState.READY):
                return
            ready = is_ready is True or (is_ready == 'auto' and job.stitcher.is_complete)
            job.state = ImageState.READY if ready else ImageState.ACCUMULATING

    def _mark_previous(self, job):
        """Guess that an image (video) is complete because another one began."""
        last = self._last
        if last is None or last is job:
            return
        video_id = last.img.get('video_id') if self.options.space == 'video' else None
        if video_id is not None and video_id == job.img.get('video_id'):
            return
        for other in self._jobs.values():
            related = other is last or (video_id is not None
                                        and other.img.get('video_id') == video_id)
            if related and other.state is ImageState.ACCUMULATING:
                other.state = ImageState.READY

    def mark_ready(self, image_id):
        """Declare an image with data complete."""
        with self.lock:
            self.check_open(image_id)
            self._get_touched(image_id).state = ImageState.READY

    def _get_touched(self, image_id):
        job = self._jobs.get(image_id)
        if job is None or job.state is ImageState.UNSEEN:
            raise NothingAccumulatedError(
                f'image {image_id} has received no data, so there is nothing to finalize')
        return job

    def begin_finalize(self, image_id):
        """
        Detach an image from accumulation.

        Raises:
            AlreadyFinalizedError: if somebody did before.
            NothingAccumulatedError: if it has no data.
        """
        with self.lock:
            state = self.get_state(image_id)
            if state in (ImageState.FINALIZING, ImageState.DONE):
                raise AlreadyFinalizedError(f'image {image_id} is {state.value} already; '
                                            'an image is finalized once')
            job = self._get_touched(image_id)
            job.state, job.error = ImageState.FINALIZING, None
        pending = job.stitcher.pending
        if pending:
            warnings.warn(f'image {image_id} is finalized while {len(pending)} declared windows '
                          f'are missing, the first is {pending[0]}; their pixels get no data',
                          stacklevel=3)
        return job

    def finish(self, job):
        """Note that the image is on disk and registered; free its memory."""
        with self.lock:
            job.state = ImageState.DONE
            self._done[job.image_id] = job.fpath
            self._drop(job)
        job.pixels.close()

    def fail(self, job, error):
        """Note that writing failed; the data stays for another try."""
        with self.lock:
            job.state, job.error = ImageState.FAILED, error
            if self._closed:
                job.pixels.close()

    def take_over(self, image_id, fpath):
        """Note an image that an earlier run finished."""
        with self.lock:
            self._done[image_id] = fpath

    def close(self):
        """Refuse data, and free the memory of every image."""
        with self.lock:
            self._closed = True
            jobs = list(self._jobs.values())
            for job in jobs:
                self._drop(job)
        for job in jobs:
            # One that is being written still belongs to its writer thread.
            if job.state is not ImageState.FINALIZING:
                job.pixels.close()
        if self._executor is not None:
            # An image that is being written goes on in its writer thread.
            self._executor.shutdown()

    def managed(self):
        """Return the jobs whose data nobody submitted yet, or whose write failed."""
        return self.jobs_in(*MANAGED)
