"""
``cocoseg predict``: run a predictor over a kwcoco dataset.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress
from cocoseg.cli.ending import describe_images


class PredictConfig(WriterConfig):
    """
    Run a predictor over the images of a kwcoco dataset and stitch its output.

    The predictor is a Python function on windows of pixels, or a scikit-learn
    estimator on single pixels. Each image gets one Cloud-Optimized GeoTIFF
    beside the new manifest.
    """

    __command__ = 'predict'
    __epilog__ = """
    Example:
        cocoseg predict data.kwcoco.json --dst pred/pred.kwcoco.json \\
            --predictor my_package.my_module:my_function --channels "red|green|blue" \\
            --out_channels "water|land" --expected_minmax 0 1
        cocoseg predict data.kwcoco.json --dst pred/pred.kwcoco.json --predictor model.skops
    """

    src = kwconf.Value(None, position=1, required=True, help='input kwcoco manifest')
    dst = kwconf.Value(None, required=True, help='manifest to write; assets go beside it')
    predictor = kwconf.Value(None, required=True, help=(
        'package.module:function, (h, w, B) float32 -> (h, w, K), or ids if its kind is '
        '"labels"; or a scikit-learn estimator saved with skops (*.skops)'))
    trusted = kwconf.Value([], nargs='+', type=str, help=(
        'types in a skops file to trust, such as sklearn.tree._tree.Tree'))
    channels = kwconf.Value(None, type=str, help=(
        'input bands such as "red|green|nir"; default all of the first image'))
    out_channels = kwconf.Value(None, type=str, help=(
        'names of the outputs such as "water|land"; default those of the predictor'))
    window = kwconf.Value([512, 512], nargs='+', type=int, help='window height and width, px')
    overlap = kwconf.Value(0.3, type=float, help=(
        'least shared part of neighbouring windows: a fraction below 1, or whole px'))
    space = kwconf.Value('video', choices=['video', 'image'], help='space of the windows')
    batch_size = kwconf.Value(1, type=int, help='windows per call of predict_batch')
    prefetch = kwconf.Value(2, type=int, help=(
        'batches read ahead and batches predicted ahead, in a thread each; 0 for no threads'))
    expected_minmax = kwconf.Value(None, nargs=2, type=float, help=(
        'range of the outputs, such as 0 1; default that of each image'))
    short_code = kwconf.Value('pred', type=str, help='folder for the new assets')
    prob_format = kwconf.Value('cog', choices=['cog', 'tif', 'png'], help='asset format')
    prob_compress = kwconf.Value('ZSTD', type=str, help='codec of cog and tif')
    layers = kwconf.Value(None, type=str, help=(
        'further assets, such as class,mask,disagreement: the largest output, what is above '
        '0.5, and the deviation between windows'))
    memory_budget = kwconf.Value(None, type=float, help=(
        'GiB of RAM for accumulation; what is beyond waits in files without a name'))
    dump_interval = kwconf.Value(60.0, type=float, help=(
        'seconds between two times that the manifest is saved; inf is only at the end, but '
        'for an old manifest, which is saved over before the first file'))
    mask = kwconf.Value(None, type=str, help=(
        'skip windows without valid pixels: nodata, or a channel that is 0 where masked'))
    executor = kwconf.Value('serial', type=str, help=(
        'who does the images: serial, processes:N, dask, or dask:ADDRESS of a scheduler'))
    split = kwconf.Value('auto', choices=['auto', 'images', 'rows'], help=(
        'images: one on each worker; rows: all workers share the windows of an image; auto: rows '
        'of images that are more than the share of a worker'))
    resume = kwconf.Flag(False, help='take over the finished images of a run cut short')

    @run_command
    def main(config):
        if config.dry_run:
            from cocoseg.cli.dry_manifest import preview_prediction as predict
        else:
            from cocoseg.coco.predict import predict_dataset as predict
        from cocoseg.coco.predictors import load_predictor
        window = tuple(config.window)
        overlap = config.overlap if config.overlap < 1 else _as_pixels(config.overlap)
        budget = config.memory_budget
        result = predict(
            config.src, config.dst, load_predictor(config.predictor, config.trusted),
            window if len(window) > 1 else window[0], overlap,
            channels=config.channels, out_channels=config.out_channels, space=config.space,
            batch_size=config.batch_size, prefetch=config.prefetch, short_code=config.short_code,
            expected_minmax=config.expected_minmax and tuple(config.expected_minmax),
            prob_format=config.prob_format, prob_compress=config.prob_compress,
            layers=_split(config.layers), resume=config.resume, progress=show_progress,
            dump_interval=config.dump_interval, mask=config.mask,
            executor=config.executor, split=config.split,
            memory_budget=None if budget is None else int(budget * 2 ** 30))
        if result is not None:
            say(f'manifest  {os.path.abspath(result.fpath)}')
            say(f'images    {result.n_images}')

    def can_resume(self):
        """Return True: finished images are kept."""
        return True

    def describe_finished(self):
        """Return how many images of a run that was cut short are kept."""
        return describe_images(self.dst, self.short_code)


def _split(layers):
    """
    Return the names of a list with commas.

    Example:
        >>> _split('class, mask'), _split(None)
        (['class', 'mask'], [])
    """
    return [name.strip() for name in (layers or '').split(',') if name.strip()]


def _as_pixels(overlap):
    """
    Return a number of pixels as an int.

    Example:
        >>> _as_pixels(32.0)
        32
    """
    from cocoseg.errors import OptionError
    if overlap != int(overlap):
        raise OptionError(f'--overlap={overlap} must be a fraction below 1, or whole pixels')
    return int(overlap)


__cli__ = PredictConfig
