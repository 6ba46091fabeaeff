"""
The life of one image: UNSEEN, ACCUMULATING, READY, FINALIZING, DONE or FAILED.

::

    UNSEEN ──data──▶ ACCUMULATING ──last window──▶ READY
                          │                          │
                          └────────submit────────────┴──▶ FINALIZING ──▶ DONE
                                                    ▲          │
                                                    └─retry─ FAILED
"""
from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any


class ImageState(enum.Enum):
    """Where an image is in its life."""

    UNSEEN = 'unseen'
    ACCUMULATING = 'accumulating'
    READY = 'ready'
    FINALIZING = 'finalizing'
    DONE = 'done'
    FAILED = 'failed'


# States in which the accumulated data still waits for somebody.
MANAGED = (ImageState.ACCUMULATING, ImageState.READY, ImageState.FAILED)


@dataclass
class ImageJob:
    """
    One image that is being stitched, and all that is needed to write it.

    ``fpaths`` are those of ``options.assets``. Owned by the manager, which
    guards every change with its lock; the writer thread only reads it while
    the state is FINALIZING.
    """

    image_id: int
    img: dict
    options: Any
    pixels: Any
    asset_dsize: tuple[int, int]
    scale: Any
    warp_img_from_asset: Any
    fpaths: list[str]
    bundle_dpath: str
    state: ImageState = ImageState.UNSEEN
    error: Exception | None = None
    n_users: int = 0

    @property
    def fpath(self):
        """Path of the first asset, or None if none is written."""
        return self.fpaths[0] if self.fpaths else None

    @property
    def stitcher(self):
        """The SoftStitcher or LabelStitcher that puts the windows together."""
        return self.pixels.stitcher

    @property
    def nbytes(self):
        """Bytes that wait in RAM."""
        return self.pixels.nbytes
