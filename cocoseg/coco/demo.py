"""
The packaged demo: a real image video, a pixel classifier, a finished bundle.

Three aerial photographs of one place (``demodata/README.md``) become a kwcoco
video whose frames differ by a fraction of a pixel; a small scikit-learn model
with a little spatial context labels water, vegetation and bare ground; and
:func:`run_demo` sends both through ``predict_dataset`` and draws what a reader
of the result gets. Nothing here is needed by the rest of the package.
"""
from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cocoseg.errors import BandCountError, ManifestError

VIDEO_NAME = 'naip_nd'
IMAGE_CHANNELS = 'red|green|blue|nir'
CLASS_CHANNELS = 'water|vegetation|bare'

_FRAME_DATES = ('20090818', '20120731', '20180716')
_CRS_INFO = {
    'auth': ['EPSG', '26914'],
    'axis_mapping': 'OAMS_TRADITIONAL_GIS_ORDER',
}

#: Radii of the local means, in pixels: about a road's and a shore's width.
_RADII = (2, 6)
#: Training pixels and held-out pixels alternate in squares of this size, px.
_SQUARE = 32


def demo_dataset(dst_dpath):
    """
    Write the demo video and its manifest into a folder.

    The grid of the first frame is the video grid. ``warp_img_to_vid`` and
    ``wld_to_pxl`` are computed from the geotransforms of the files; their
    coordinates are pixel corners: (0, 0) is the top-left corner of an image.

    Args:
        dst_dpath (str | PathLike): folder of the new bundle; made if missing.
            Demo files that are there already are replaced.

    Returns:
        kwcoco.CocoDataset: one video ``naip_nd`` of three frames, already
            written to ``naip_nd.kwcoco.json`` in the folder.

    Note:
        Not safe for two processes that write to one folder.

    Example:
        >>> import ubelt as ub
        >>> from cocoseg.coco.demo import demo_dataset
        >>> dpath = ub.Path.appdir('cocoseg/doctest/demo_dataset').ensuredir()
        >>> dset = demo_dataset(dpath)
        >>> dset.images().lookup('height')
        [480, 479, 480]
        >>> coco_image = dset.coco_image(3)
        >>> coco_image.warp_vid_from_img.matrix[:2, 2].tolist()
        [0.4, -0.2]
        >>> coco_image.imdelay('red|nir', space='video').finalize().shape
        (480, 512, 2)
    """
    import kwcoco

    from cocoseg.coco.manifest import get_manifest

    bundle = Path(dst_dpath)
    (bundle / VIDEO_NAME).mkdir(parents=True, exist_ok=True)
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(bundle / f'{VIDEO_NAME}.kwcoco.json')
    video_id = vid_from_wld = None
    for frame_index, date in enumerate(_FRAME_DATES):
        asset, wld_from_img = _copy_frame(bundle, date)
        if video_id is None:
            vid_from_wld = np.linalg.inv(wld_from_img)
            video_id = dset.add_video(
                name=VIDEO_NAME, width=asset['width'], height=asset['height'],
                wld_crs_info=_CRS_INFO, warp_wld_to_vid=_affine_dict(vid_from_wld))
        dset.add_image(
            name=f'naip_{date}', video_id=video_id, frame_index=frame_index,
            date_captured=f'{date[:4]}-{date[4:6]}-{date[6:]}', sensor_coarse='NAIP',
            width=asset['width'], height=asset['height'], assets=[asset],
            # A billionth of a pixel is the rounding noise of UTM coordinates.
            warp_img_to_vid=_affine_dict((vid_from_wld @ wld_from_img).round(9)),
            wld_to_pxl=_affine_dict(np.linalg.inv(wld_from_img)),
            wld_crs_info=_CRS_INFO)
    get_manifest(dset).dump()
    return dset


def _copy_frame(bundle, date):
    """Copy one image into the bundle; return its asset and world transform."""
    from importlib import resources

    from cocoseg.io.raster import raster_info

    file_name = f'{VIDEO_NAME}/m_4709963_se_14_1_{date}.tif'
    dst = bundle / file_name
    source = resources.files('cocoseg.coco') / 'demodata' / dst.name
    part = dst.with_name(f'{dst.name}.{os.getpid()}.part')
    part.write_bytes(source.read_bytes())
    os.replace(part, dst)

    info = raster_info(dst)
    height, width, num_bands = (int(size) for size in info.shape)
    asset = {
        'file_name': file_name, 'channels': IMAGE_CHANNELS,
        'width': width, 'height': height, 'num_bands': num_bands,
        'warp_aux_to_img': _affine_dict(np.eye(3)),
    }
    x0, x_per_col, x_per_row, y0, y_per_col, y_per_row = info.geotransform
    wld_from_img = np.array([
        [x_per_col, x_per_row, x0], [y_per_col, y_per_row, y0], [0.0, 0.0, 1.0]])
    return asset, wld_from_img


def _affine_dict(matrix):
    """Return a (3, 3) matrix as the JSON that kwimage reads as an Affine."""
    # Adding zero turns the -0.0 of an inverse into 0.0.
    return {'type': 'affine', 'matrix': (matrix + 0.0).tolist()}


def index_labels(image):
    """
    Label the pixels whose spectral indices leave no doubt.

    Water absorbs near infrared (NDWI high, NDVI low), green leaves reflect it
    (NDVI high), and soil or ripe straw is bright and between them. The
    thresholds sit in the gaps of the histograms of the three demo frames;
    what lies in a gap stays unlabelled.

    Args:
        image (ndarray): float, shape (h, w, 4): red, green, blue, nir as
            stored (0..255); NaN where there is no data. Never modified.

    Returns:
        ndarray: uint8, shape (h, w): 0 unlabelled, then 1 water, 2 vegetation,
            3 bare, in the order of ``CLASS_CHANNELS``.

    Example:
        >>> from cocoseg.coco.demo import index_labels
        >>> import numpy as np
        >>> pixels = [[56, 71, 57, 11], [80, 90, 70, 190], [159, 148, 131, 168]]
        >>> index_labels(np.array([pixels + [[np.nan] * 4]], 'f4'))
        array([[1, 2, 3, 0]], dtype=uint8)
    """
    red, green, _, nir = np.moveaxis(image, -1, 0)
    with np.errstate(invalid='ignore', divide='ignore'):
        ndvi = (nir - red) / (nir + red)
        ndwi = (green - nir) / (green + nir)
    labels = np.zeros(image.shape[:2], np.uint8)
    labels[(ndwi > 0.15) & (ndvi < -0.12)] = 1
    labels[ndvi > 0.2] = 2
    labels[(np.abs(ndvi) < 0.12) & (ndwi < 0.08) & (red > 105)] = 3
    return labels


def pixel_features(image):
    """
    Describe each pixel by its bands and by its neighbourhood.

    Per band: the value, its local mean at two radii, and its local standard
    deviation at the smaller one. Only pixels with data enter a neighbourhood;
    beyond the border it is mirrored, so a pixel near the border of a window
    gets slightly other features than the same pixel inside one. Overlapping
    windows exist to blend that away.

    Args:
        image (ndarray): float32, shape (h, w, B), 0..255, NaN without data.
            Never modified.

    Returns:
        ndarray: float32, shape (h, w, 4 * B); finite.

    Example:
        >>> from cocoseg.coco.demo import pixel_features
        >>> import numpy as np
        >>> image = np.full((20, 30, 4), 51, 'f4')
        >>> image[0, 0] = np.nan
        >>> features = pixel_features(image)
        >>> features.shape, [round(float(f), 3) for f in features[5, 5, ::4]]
        ((20, 30, 16), [0.2, 0.2, 0.2, 0.0])
    """
    valid = np.isfinite(image).all(axis=2).astype(np.float32)
    values = np.where(valid[..., None] > 0, image, 0).astype(np.float32) / 255
    means = [_local_mean(values, valid, radius) for radius in _RADII]
    squares = _local_mean(values * values, valid, _RADII[0])
    deviation = np.sqrt(np.maximum(squares - means[0] * means[0], 0))
    return np.concatenate([values, *means, deviation], axis=2)


def _local_mean(values, valid, radius):
    """Return the mean of the valid pixels (value 0 if invalid) of a box."""
    import cv2

    ksize = (2 * radius + 1, 2 * radius + 1)
    sums = cv2.blur(values, ksize, borderType=cv2.BORDER_REFLECT)
    share = cv2.blur(valid, ksize, borderType=cv2.BORDER_REFLECT)
    return sums / np.maximum(share, 1e-6)[..., None]


@dataclass(frozen=True, eq=False)
class PixelClassifier:
    """
    A predictor: pixels in, class probabilities out.

    A plain callable that fulfils ``cocoseg.protocols.Predictor``. It holds no
    state but the fitted model, can be pickled, and may be called from
    several threads.

    Args:
        model (Any): fitted scikit-learn classifier of :func:`pixel_features`.
        channels (str): what the output bands are, in order.

    Example:
        >>> import numpy as np, ubelt as ub
        >>> from cocoseg.coco.demo import demo_dataset, fit_pixel_classifier
        >>> dpath = ub.Path.appdir('cocoseg/doctest/classifier').ensuredir()
        >>> classifier = fit_pixel_classifier(demo_dataset(dpath))
        >>> lake = np.full((3, 3, 4), (60, 70, 60, 10), 'f4')
        >>> lake[0, 0, 3] = np.nan
        >>> probs = classifier(lake)
        >>> classifier.channels.split('|')[int(probs[2, 2].argmax())]
        'water'
        >>> assert np.isnan(probs[0, 0]).all() and np.isfinite(probs[2, 2]).all()
    """

    model: Any = field(repr=False)
    channels: str = CLASS_CHANNELS

    def __call__(self, image):
        """
        Predict one window.

        Args:
            image (ndarray): float32, shape (h, w, 4), 0..255, NaN without
                data. Never modified.

        Returns:
            ndarray: float32, shape (h, w, 3), probabilities that sum to 1;
                NaN where any band of the pixel is NaN.

        Raises:
            BandCountError: if the image has other than 4 bands.
        """
        image = np.asarray(image, np.float32)
        n_bands = len(IMAGE_CHANNELS.split('|'))
        if image.ndim != 3 or image.shape[2] != n_bands:
            raise BandCountError(
                f'the image has shape {image.shape} but the classifier needs '
                f'(h, w, {n_bands}); read the channels {IMAGE_CHANNELS!r}')
        valid = np.isfinite(image).all(axis=2)
        n_classes = len(self.channels.split('|'))
        probs = np.full((*valid.shape, n_classes), np.nan, np.float32)
        if valid.any():
            probs[valid] = self.model.predict_proba(pixel_features(image)[valid])
        return probs


def fit_pixel_classifier(dset, seed=0):
    """
    Fit a model that generalizes the index labels of a dataset.

    Training pixels are drawn from every image, equally many of each class, and
    only from every other 32-pixel square (:func:`held_out_pixels` are the
    rest). Logistic regression on standardized features: its labels are as good
    as those of gradient boosted trees here, and it predicts five times as many
    pixels per second.

    Args:
        dset (kwcoco.CocoDataset): images with red, green, blue and nir.
        seed (int): seed of the pixel sample; one seed gives one model.

    Returns:
        PixelClassifier: see there for an example.

    Raises:
        ManifestError: if the images hold no pixel of one of the classes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(seed)
    parts = [_sample_image(_read_image(dset, image_id, IMAGE_CHANNELS), rng)
             for image_id in dset.images()]
    seen = {int(label) for _, labels in parts for label in np.unique(labels)}
    names = CLASS_CHANNELS.split('|')
    missing = [name for index, name in enumerate(names, 1) if index not in seen]
    if missing:
        raise ManifestError(
            f'no training pixels of {missing} in {len(parts)} images of '
            f'{dset.fpath}; use images with the channels {IMAGE_CHANNELS!r}, 0..255')
    features, targets = (np.concatenate(column) for column in zip(*parts))
    # Weaker regularization agrees a little better with the labels, but is so
    # sure of itself that the heatmap turns black and white.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.005, max_iter=500))
    return PixelClassifier(model.fit(features, targets))


def _sample_image(image, rng, n_per_class=2000):
    """Return (features, labels) of a sample of one image's training pixels."""
    labels = index_labels(image)
    labels[held_out_pixels(labels.shape)] = 0
    rows = []
    for index in range(1, labels.max(initial=0) + 1):
        found = np.flatnonzero(labels == index)
        rows.append(rng.choice(found, min(n_per_class, found.size), replace=False))
    rows = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    features = pixel_features(image)
    return features.reshape(-1, features.shape[2])[rows], labels.reshape(-1)[rows]


def held_out_pixels(shape):
    """
    Mark the pixels that are never trained on: every other 32-pixel square.

    Args:
        shape (tuple[int, int]): (h, w) of the image.

    Returns:
        ndarray: bool, shape (h, w).

    Example:
        >>> from cocoseg.coco.demo import held_out_pixels
        >>> held_out_pixels((64, 96))[::32, ::32].astype(int).tolist()
        [[0, 1, 0], [1, 0, 1]]
    """
    row = np.arange(shape[0])[:, None] // _SQUARE
    col = np.arange(shape[1])[None, :] // _SQUARE
    return (row + col) % 2 == 1


def measure_agreement(dset, channels=CLASS_CHANNELS):
    """
    Compare the stitched classes with the index labels on held-out pixels.

    Both are read back from the manifest in video space, so this sees what a
    reader sees: dequantized and aligned.

    Args:
        dset (kwcoco.CocoDataset): images with the predicted ``channels``.
        channels (str): predicted classes, in the order of ``CLASS_CHANNELS``.

    Returns:
        float: fraction of the labelled held-out pixels, over all images, whose
            most probable class is their label; NaN if there is none.
    """
    n_equal = n_total = 0
    for image_id in dset.images():
        labels = index_labels(_read_image(dset, image_id, IMAGE_CHANNELS, 'video'))
        probs = _read_image(dset, image_id, channels, 'video')
        used = held_out_pixels(labels.shape) & (labels > 0)
        used &= np.isfinite(probs).all(axis=2)
        n_equal += int((probs[used].argmax(axis=1) + 1 == labels[used]).sum())
        n_total += int(used.sum())
    return n_equal / n_total if n_total else float('nan')


def _read_image(dset, image_id, channels, space='image'):
    """Return channels of an image as float32 (h, w, C), NaN without data."""
    delayed = dset.coco_image(image_id).imdelay(
        channels, space=space, nodata_method='float')
    return np.asarray(delayed.finalize(), np.float32)


@dataclass(frozen=True)
class DemoResult:
    """
    What :func:`run_demo` made.

    Args:
        manifest_fpath (str): kwcoco manifest with the predictions.
        asset_fpaths (tuple[str, ...]): one quantized COG per frame.
        preview_fpaths (tuple[str, ...]): one PNG per frame.
        agreement (float): see :func:`measure_agreement`.
        timings (dict[str, float]): seconds of each step, in order.
    """

    manifest_fpath: str
    asset_fpaths: tuple[str, ...]
    preview_fpaths: tuple[str, ...]
    agreement: float
    timings: dict[str, float] = field(compare=False)


def run_demo(dst_dpath, window=(192, 192), overlap=0.3, seed=0, *, progress=None):
    """
    Run the demo from the packaged images to the previews.

    Args:
        dst_dpath (str | PathLike): folder of the bundle; made if missing.
        window (tuple[int, int]): (h, w) of a prediction window, px.
        overlap (float): shared fraction of neighbouring windows, in [0, 1).
        seed (int): seed of the training sample.
        progress (Callable | None): handed to ``predict_dataset``.

    Returns:
        DemoResult: paths, quality and timings.

    Example:
        >>> import ubelt as ub
        >>> from cocoseg.coco.demo import run_demo
        >>> dpath = ub.Path.appdir('cocoseg/doctest/run_demo').delete()
        >>> result = run_demo(dpath)
        >>> len(result.asset_fpaths), len(result.preview_fpaths)
        (3, 3)
        >>> assert result.agreement > 0.95
    """
    from cocoseg.coco.predict import predict_dataset
    from cocoseg.coco.preview import draw_preview

    bundle = Path(dst_dpath).absolute()
    now = time.perf_counter
    marks = {'start': now()}
    dset = demo_dataset(bundle)
    marks['dataset'] = now()
    classifier = fit_pixel_classifier(dset, seed)
    marks['fit'] = now()
    result = predict_dataset(
        dset, bundle / 'predictions.kwcoco.json', classifier, window=window,
        overlap=overlap, channels=IMAGE_CHANNELS, out_channels=CLASS_CHANNELS,
        space='video', short_code='demo', expected_minmax=(0, 1),
        progress=progress)
    marks['predict'] = now()
    images = [result.coco_image(image_id) for image_id in result.images()]
    preview_fpaths = [
        draw_preview(result, image.img['id'], CLASS_CHANNELS,
                     bundle / 'previews' / f'{image.img["name"]}.png',
                     heat_channel='vegetation') for image in images]
    marks['previews'] = now()
    agreement = measure_agreement(result)
    marks['check'] = now()
    steps = list(marks.items())
    return DemoResult(
        manifest_fpath=os.fspath(result.fpath),
        asset_fpaths=tuple(
            os.path.join(result.bundle_dpath, image.find_asset(CLASS_CHANNELS)['file_name'])
            for image in images),
        preview_fpaths=tuple(preview_fpaths), agreement=agreement,
        timings={name: end - start for (_, start), (name, end) in zip(steps, steps[1:])})
