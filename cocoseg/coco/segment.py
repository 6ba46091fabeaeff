"""
Segment the images of a kwcoco dataset: settings in, a stitched dataset out.
"""
from __future__ import annotations

from cocoseg.coco.predict import predict_dataset
from cocoseg.coco.shepherd_predictor import ShepherdPredictor


def segment_dataset(src, dst, config=None, *, window=2048, overlap=512, channels=None,
                    kmeans=None, nodata=None, polygons=False, out_channels='segments',
                    num_threads=None, resume=False, progress=None, **options):
    """
    Segment every image of a dataset, with the same clusters.

    Each image gets an asset of one channel: uint32 ids of its segments, 0
    where a band has no data. The clusters are fitted once, to pixels of all
    images, so that what looks the same has the same color in all of them. To
    have them back, make a :class:`ShepherdPredictor` and give it to
    :func:`predict_dataset`, which is all that this does.

    Args:
        src (kwcoco.CocoDataset | PathLike): the input; not modified.
        dst (PathLike): manifest to write. Its folder becomes the bundle.
        config (ShepherdConfig | None): what to do; None is the default one.
        window (int | tuple[int, int]): (h, w) of what is segmented at a time, px.
        overlap (int | float | tuple): px, or a fraction, that neighbors share:
            more than the segments are wide.
        channels (str | None): input bands, such as 'red|green|nir'; None is
            all the channels of the first image.
        kmeans (KMeans | ndarray | None): fitted clusters, or their centres;
            None fits them.
        nodata (float | None): see :class:`ShepherdPredictor`.
        polygons (bool): also add each segment as an annotation.
        out_channels (str): the channel of the labels.
        num_threads (int | None): None is one per CPU.
        resume (bool): take over the finished images of a run cut short.
        progress (Callable | None): see :func:`predict_dataset`.
        **options: of :func:`predict_dataset`, such as ``space``,
            ``short_code``, ``image_ids``, ``prob_format``.

    Returns:
        kwcoco.CocoDataset: the result, as saved at ``dst``.

    Raises:
        OptionError: for an option that cannot be used, missing channels, or
            fewer different pixels than clusters.
        ManifestError, AssetWriteError, BundleBusyError, ResumeError: see
            :func:`predict_dataset`.

    Example:
        >>> import kwcoco, ubelt as ub
        >>> from cocoseg import ShepherdConfig
        >>> from cocoseg.coco.segment import segment_dataset
        >>> src = kwcoco.CocoDataset.demo('vidshapes1-frames2', image_size=(64, 64))
        >>> dst = ub.Path.appdir('cocoseg/doctest/segment').delete() / 'out.kwcoco.json'
        >>> config = ShepherdConfig(n_clusters=4, min_segment_size=20)
        >>> dset = segment_dataset(src, dst, config, window=48, overlap=24, channels='r|g|b')
        >>> labels = dset.coco_image(1).imdelay('segments', interpolation='nearest').finalize()
        >>> labels.dtype.name, labels.shape[:2], bool(labels.max() > 0)
        ('uint32', (64, 64), True)
    """
    predictor = ShepherdPredictor(config, kmeans, nodata, channels=out_channels,
                                  num_threads=num_threads)
    return predict_dataset(src, dst, predictor, window, overlap, channels=channels,
                           write_preds=polygons, resume=resume, progress=progress, **options)
