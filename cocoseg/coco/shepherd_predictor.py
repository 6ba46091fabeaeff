"""
Shepherd segmentation of the images of a dataset, window by window.

Every window is segmented by itself, with the same clusters; the label
stitcher puts the segments of all windows together.
"""
from __future__ import annotations

import hashlib
import logging
import math
from typing import Any

import numpy as np

from cocoseg.coco.label_options import LabelOptions
from cocoseg.errors import BandCountError, OptionError
from cocoseg.shepherd.config import ShepherdConfig

logger = logging.getLogger(__name__)

# Changes when the same settings come to give other labels.
_VERSION = 1


class ShepherdPredictor:
    """
    Segment windows of pixels: float32 in, ids of segments out.

    A predictor of labels for :func:`~cocoseg.coco.predict.predict_dataset`,
    which fits its clusters once to all images, if it has none yet. It may
    then be used again, for more images of the same kind.

    Args:
        config (ShepherdConfig | None): what to do; None is the default one.
            Without ``compat``, which has other rules for seams.
        kmeans (KMeans | ndarray | None): fitted clusters, or their centres
            (K, B); None waits for :meth:`fit`.
        nodata (float | None): a pixel is null if any band is equal to it.
            Pixels with NaN or infinity are null anyway.
        channels (str): the channel of the labels.
        num_threads (int | None): for each window; None is one per CPU. The
            labels are the same for any number.

    Attributes:
        kmeans (KMeans | ndarray | None): given, or fitted.
        kind (str): 'labels'.

    Raises:
        OptionError: for clusters that are none, or a config with ``compat``.

    Thread-safety: may be called from many threads once it is fitted.

    Example:
        >>> from cocoseg import ShepherdConfig, ShepherdPredictor
        >>> image = np.full((8, 8, 1), 10, 'f4')
        >>> image[:, 5:], image[0] = 90, np.nan
        >>> config = ShepherdConfig(min_segment_size=4)
        >>> predictor = ShepherdPredictor(config, kmeans=[[10.0], [90.0]])
        >>> labels = predictor(image)
        >>> labels.shape, labels[:2, ::7, 0].tolist(), predictor.label_options.min_size
        ((8, 8, 1), [[0, 0], [1, 2]], 4)
    """

    kind = 'labels'

    def __init__(self, config: ShepherdConfig | None = None, kmeans: Any = None,
                 nodata: float | None = None, *, channels: str = 'segments',
                 num_threads: int | None = None) -> None:
        from cocoseg.shepherd.assign import find_valid
        self.config = ShepherdConfig() if config is None else config
        if self.config.is_compat:
            raise OptionError(f'compat={self.config.compat!r} has its own way to put tiles '
                              'together, which windows of a dataset do not have; use '
                              'segment_raster, or leave compat out')
        if num_threads is not None and (isinstance(num_threads, bool) or num_threads < 1
                                        or num_threads != int(num_threads)):
            raise OptionError(f'num_threads={num_threads!r} must be a whole number of at least '
                              '1, or None')
        # Raises for a nodata that is none.
        find_valid(np.zeros((1, 1, 1), np.float32), nodata)
        self.nodata, self.channels, self.num_threads = nodata, channels, num_threads
        self.kmeans: Any = None
        self._centres = self._limit = None
        if kmeans is not None:
            self._set_clusters(kmeans)

    def __repr__(self):
        state = 'fitted' if self.is_fitted else 'not fitted'
        return f'<ShepherdPredictor({self.config!r}, {state})>'

    # ---- the clusters ------------------------------------------------------

    @property
    def is_fitted(self) -> bool:
        """True if there are clusters."""
        return self.kmeans is not None

    @property
    def seed(self) -> int:
        """Seed of the samples that it is fitted to."""
        return self.config.seed

    @property
    def max_spectral_diff(self) -> float | None:
        """Largest distance of means that are merged; None if it is not known before the fit."""
        if self.is_fitted:
            return float(self._limit)
        limit = self.config.max_spectral_diff
        return None if limit in ('auto', None) else float(limit)

    def count_samples(self, n_pixels: int) -> int:
        """
        Return how many of the pixels of a dataset the clusters are to be fitted to.

        Args:
            n_pixels (int): of all images, with those without data.
        """
        from cocoseg.shepherd.clusters import count_samples
        return count_samples(self.config, n_pixels)

    def find_valid(self, image: np.ndarray) -> np.ndarray:
        """Return which pixels of a window have data, bool (h, w)."""
        from cocoseg.shepherd.assign import find_valid
        valid = find_valid(image, self.nodata)
        return np.ones(image.shape[:2], bool) if valid is None else valid

    def fit(self, samples: np.ndarray) -> None:
        """
        Fit the clusters.

        Args:
            samples (ndarray): valid pixels (n, B). With none, nothing is
                fitted: windows without any data have no segments anyway.

        Raises:
            OptionError: if there are fewer different ones than clusters.
        """
        from cocoseg.shepherd.clusters import fit_clusters
        if not len(samples):
            logger.warning('no pixel has data, so there are no clusters, and no segments')
            return
        self._set_clusters(fit_clusters(samples, self.config))

    def _set_clusters(self, kmeans):
        from cocoseg.shepherd.clusters import as_centres, resolve_max_spectral_diff
        centres = np.asarray(getattr(kmeans, 'cluster_centers_', kmeans))
        centres = as_centres(kmeans, centres.shape[-1] if centres.ndim else 0)
        if len(centres) < 2 and self.config.max_spectral_diff in ('auto', None):
            raise OptionError(f'max_spectral_diff={self.config.max_spectral_diff!r} is made from '
                              'the distances of clusters, and there is only one; give a number')
        self._centres, self.kmeans = centres, kmeans
        self._limit = resolve_max_spectral_diff(self.config, centres)

    # ---- what the loop asks for --------------------------------------------

    @property
    def label_options(self) -> LabelOptions:
        """How windows are put together: the rules within a window hold at seams, too."""
        limit = self.max_spectral_diff
        return LabelOptions(connectivity=4 if self.config.four_connected else 8,
                            min_size=self.config.min_segment_size,
                            max_difference=math.inf if limit is None else limit)

    @property
    def config_hash(self) -> str:
        """What tells it from others, the same in each run; another one once it is fitted."""
        parts = [_VERSION, self.config, self.nodata]
        digest = hashlib.sha256(repr(parts).encode())
        if self.is_fitted:
            digest.update(self._centres.tobytes())
        return f'shepherd-{digest.hexdigest()[:16]}'

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """
        Segment one window.

        Args:
            image (ndarray): int or float, shape (h, w, B); float32 from a
                dataset, and in that precision it is segmented. Never modified.

        Returns:
            ndarray: uint32, shape (h, w, 1), ids from 1; 0 where a band has
            no data.

        Raises:
            OptionError: if it is not fitted, and the window has data.
            BandCountError: if the clusters have other bands.
        """
        from cocoseg.machine import count_cpus
        from cocoseg.shepherd.segment import segment_pixels
        valid = self.find_valid(image)
        labels = np.zeros((*valid.shape, 1), np.uint32)
        if not valid.any():
            return labels
        if not self.is_fitted:
            raise OptionError(f'{self!r} has no clusters; give kmeans, call fit, or let '
                              'predict_dataset fit them')
        if image.shape[2] != self._centres.shape[1]:
            raise BandCountError(f'the image has {image.shape[2]} bands and the clusters '
                                 f'{self._centres.shape[1]}; choose the channels that they were '
                                 'fitted to')
        # A window may be much larger than what it sees of its image.
        rows, columns = (_find_range(valid.any(axis=axis)) for axis in (1, 0))
        found = segment_pixels(
            image[rows, columns], valid[rows, columns], self._centres, self._limit, self.config,
            num_threads=count_cpus() if self.num_threads is None else int(self.num_threads))
        labels[rows, columns, 0] = found.labels
        return labels


def _find_range(flags):
    """
    Return a slice from the first True to the last.

    Example:
        >>> _find_range(np.array([False, True, False, True, False]))
        slice(1, 4, None)
    """
    places = np.flatnonzero(flags)
    return slice(int(places[0]), int(places[-1]) + 1)
