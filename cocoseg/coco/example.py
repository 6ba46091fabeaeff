"""
The smallest complete use of the stitching manager, as a function.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cocoseg.protocols import PathLike

if TYPE_CHECKING:
    import kwcoco


def demo_coco_stitching_manager(dst_dpath: PathLike | None = None) -> kwcoco.CocoDataset:
    """
    Stitch a made-up feature over every frame of a small toy video.

    Args:
        dst_dpath (PathLike | None): folder for the bundle; default a cache
            folder.

    Returns:
        kwcoco.CocoDataset: the result, saved, with a new asset per image.

    Example:
        >>> from cocoseg import demo_coco_stitching_manager
        >>> dset = demo_coco_stitching_manager()
        >>> coco_img = dset.coco_image(1)
        >>> data = coco_img.imdelay('demochan.0:3', space='video').finalize()
        >>> assert data.shape == (128, 128, 3) and np.isfinite(data).all()
    """
    import kwcoco
    import ubelt as ub

    from cocoseg.coco.manager import CocoStitchingManager
    from cocoseg.grid.windows import WindowGrid
    if dst_dpath is None:
        dst_dpath = ub.Path.appdir('cocoseg/demo_stitching')
    source = kwcoco.CocoDataset.demo('vidshapes', num_videos=1, num_frames=4,
                                     image_size=(128, 128))
    result = source.copy()
    result.reroot(absolute=True)
    result.fpath = ub.Path(dst_dpath).ensuredir() / 'demo_stitched.kwcoco.json'
    rng = np.random.RandomState(0)
    windows = WindowGrid((128, 128), window=96, overlap=32)
    with CocoStitchingManager(
            result, short_code='demofeat', chan_code='demochan.0|demochan.1|demochan.2',
            stitching_space='video', expected_minmax=(0, 1)) as manager:
        for image_id in result.images():
            manager.expect_windows(image_id, windows)
            frame = source.coco_image(image_id).imdelay('r|g|b', space='video').finalize()
            for window in windows:
                is_bright = (frame[window.slices] > 200).all(axis=2, keepdims=True)
                feature = rng.rand(*window.shape, 3) * is_bright
                # Marks at the borders of a window, which blending must hide.
                feature[:4, :, 0] = feature[:, :4, 1] = feature[:, -4:, 2] = 1
                manager.accumulate_image(image_id, window, feature, downweight_edges=True)
        for image_id in manager.ready_image_ids():
            manager.submit_finalize_image(image_id)
        manager.dump()
    return result
