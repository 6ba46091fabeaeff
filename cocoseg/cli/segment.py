"""
``cocoseg segment``: Shepherd segmentation of a raster, or of a kwcoco dataset.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress
from cocoseg.cli.ending import describe_images

_MANIFESTS = ('.json', '.zip')
# What has a meaning for one of the two kinds of input only, with its default.
_RASTER_ONLY = {'executor': None, 'bands': None, 'recode': 'overlap', 'driver': 'COG',
                'creation_options': None, 'table': None, 'colors': None, 'tile_timeout': None,
                'max_concurrent_reads': 20}
_MANIFEST_ONLY = {'channels': None, 'polygons': False, 'resume': False}


class SegmentConfig(WriterConfig):
    """
    Divide images into segments of pixels that are alike.

    The input is a raster, which may be far larger than memory, or a kwcoco
    manifest (*.json, *.zip), all images of which get the same clusters. The
    result is a Cloud-Optimized GeoTIFF of ids per image, 0 where there is no
    data; of a manifest, a manifest with these as assets.
    """

    __command__ = 'segment'
    __epilog__ = """
    Example:
        cocoseg segment image.tif --dst segments.tif --executor threads
        cocoseg segment data.kwcoco.json --dst seg/seg.kwcoco.json --channels "red|green|nir"
    """

    src = kwconf.Value(None, position=1, required=True, type=str, help=(
        'raster that GDAL opens, or kwcoco manifest'))
    dst = kwconf.Value(None, required=True, type=str, help='raster, or manifest, to write')
    n_clusters = kwconf.Value(60, type=int, help='colors that the image is reduced to at first')
    min_segment_size = kwconf.Value(50, type=int, help='px; smaller segments are merged')
    max_spectral_diff = kwconf.Value('auto', type=str, help=(
        'largest distance of the means of segments that are merged: a number, auto (from the '
        'clusters), or none'))
    spectral_percentile = kwconf.Value(50.0, type=float, help='of the distances, for auto')
    connectivity = kwconf.Value(4, type=int, choices=[4, 8], help=(
        'pixels touch at edges (4), or also at corners (8)'))
    init = kwconf.Value('k-means++', choices=['k-means++', 'diagonal'], help=(
        'start of the fit; diagonal needs no random numbers'))
    sample_percent = kwconf.Value(None, type=float, help='share of pixels to fit clusters to')
    n_samples = kwconf.Value(None, type=int, help='number of pixels to fit clusters to')
    seed = kwconf.Value(0, type=int, help='of the random choices of the fit')
    compat = kwconf.Value(None, choices=['pyshepseg'], help=(
        'pyshepseg for the labels of pyshepseg, with its flaws'))
    tile_size = kwconf.Value(None, type=int, help=(
        'px that are segmented at a time; default 4096, of a manifest 2048'))
    overlap = kwconf.Value(None, type=int, help=(
        'px that neighboring tiles share; default a quarter of the tiles'))
    nodata = kwconf.Value(None, type=float, help='null value; default that of the file')
    clusters = kwconf.Value(None, type=str, help='use clusters that were saved, *.npz')
    save_clusters = kwconf.Value(None, type=str, help='save the clusters, *.npz')
    num_threads = kwconf.Value(None, type=int, help='threads within a tile; default by CPUs')
    executor = kwconf.Value(None, type=str, help=(
        'of a raster: serial, threads:N, processes:N, dask, or dask:ADDRESS'))
    bands = kwconf.Value(None, nargs='+', type=int, help='of a raster, from 0; default all')
    recode = kwconf.Value('overlap', choices=['overlap', 'simple'], help=(
        'of a raster: match the segments of tiles, or keep tiles apart'))
    driver = kwconf.Value('COG', type=str, help='of a raster: COG, or HFA or KEA')
    creation_options = kwconf.Value(None, nargs='+', type=str, help=(
        'of a raster with another driver: NAME=VALUE …'))
    table = kwconf.Value(None, type=str, help='of a raster: table of sizes, *.csv or *.parquet')
    colors = kwconf.Value(None, type=int, help=(
        'of a raster: seed of random colors, in the table or attribute table'))
    tile_timeout = kwconf.Value(None, type=float, help='of a raster: seconds per tile')
    max_concurrent_reads = kwconf.Value(20, type=int, help='of a raster: tiles read at a time')
    channels = kwconf.Value(None, type=str, help=(
        'of a manifest: input bands such as "red|green|nir"; default all of the first image'))
    polygons = kwconf.Flag(False, help='of a manifest: also add segments as annotations')
    resume = kwconf.Flag(False, help='of a manifest: go on with a run that was cut short')

    @run_command
    def main(config):
        is_manifest = config.is_manifest()
        _check_kind(config, is_manifest)
        kmeans = None if config.clusters is None else load_clusters(config.clusters)
        if config.save_clusters is not None:
            from cocoseg.io.commit import check_writable
            check_writable(config.save_clusters)
        segment = _segment_manifest if is_manifest else _segment_raster
        kmeans = segment(config, _make_config(config), kmeans)
        if config.save_clusters is not None and not config.dry_run:
            save_clusters(config.save_clusters, kmeans)
            say(f'clusters  {os.path.abspath(config.save_clusters)}')

    def is_manifest(self):
        """Return True if the input is a kwcoco dataset."""
        return self.src.lower().endswith(_MANIFESTS)

    def list_outputs(self):
        """Return the paths that are written."""
        return [path for path in (self.dst, self.table, self.save_clusters) if path is not None]

    def can_resume(self):
        """Return True if finished images are kept."""
        return self.is_manifest()

    def describe_finished(self):
        """Return how many images of a run that was cut short are kept."""
        return describe_images(self.dst, 'seg') if self.is_manifest() else None


def _check_kind(config, is_manifest):
    """Raise for an option that would be ignored."""
    from cocoseg.errors import OptionError
    others = _RASTER_ONLY if is_manifest else _MANIFEST_ONLY
    given = [name for name, default in others.items() if getattr(config, name) != default]
    if given:
        kind, other = ('a manifest', 'rasters') if is_manifest else ('a raster', 'manifests')
        hint = '; for outlines run cocoseg stats --polygons' if 'polygons' in given else ''
        raise OptionError(f'{config.src} is {kind}, and --{given[0]} is for {other}; leave it out'
                          f'{hint}')


def _make_config(config):
    from cocoseg.errors import OptionError
    from cocoseg.shepherd.config import ShepherdConfig
    limit = config.max_spectral_diff
    if limit not in ('auto', 'none'):
        try:
            limit = float(limit)
        except ValueError:
            raise OptionError(f"--max_spectral_diff={limit!r} must be a number, 'auto' or "
                              "'none'") from None
    return ShepherdConfig(
        n_clusters=config.n_clusters, min_segment_size=config.min_segment_size,
        max_spectral_diff=None if limit == 'none' else limit,
        spectral_percentile=config.spectral_percentile,
        four_connected=config.connectivity == 4, init=config.init,
        sample_percent=config.sample_percent, n_samples=config.n_samples, seed=config.seed,
        compat=config.compat)


def _find_overlap(tile_size, overlap):
    """
    Return an even overlap of about a quarter of the tiles, unless it is given.

    Example:
        >>> _find_overlap(4096, None), _find_overlap(500, None), _find_overlap(500, 31)
        (1024, 124, 31)
    """
    return tile_size // 8 * 2 if overlap is None else overlap


def _segment_raster(config, options, kmeans):
    from cocoseg.shepherd.tiled import segment_raster
    tile_size = config.tile_size or 4096
    if config.dry_run:
        from cocoseg.cli.dry_run import preview_segment
        preview_segment(config, options, kmeans, tile_size,
                        _find_overlap(tile_size, config.overlap))
        return None
    result = segment_raster(
        config.src, config.dst, options, tile_size, _find_overlap(tile_size, config.overlap),
        config.executor or 'serial', kmeans, bands=config.bands,
        nodata='file' if config.nodata is None else config.nodata, recode=config.recode,
        driver=config.driver, creation_options=config.creation_options or (), table=config.table,
        colors=config.colors, max_concurrent_reads=config.max_concurrent_reads,
        tile_timeout=config.tile_timeout, num_threads=config.num_threads, progress=show_progress)
    say(f'segments  {result.n_segments}')
    say(f'limit     {result.max_spectral_diff:g}')
    if result.seams:
        agreements = [seam.agreement for seam in result.seams]
        say(f'seams     {len(agreements)}, agreement {sum(agreements) / len(agreements):.3f} '
            f'on average, {min(agreements):.3f} at least')
    say(f'labels    {os.path.abspath(result.path)}')
    say(result.format_timings())
    return result.kmeans


def _segment_manifest(config, options, kmeans):
    if config.dry_run:
        from cocoseg.cli.dry_manifest import preview_prediction as predict
    else:
        from cocoseg.coco.predict import predict_dataset as predict
    from cocoseg.coco.shepherd_predictor import ShepherdPredictor
    predictor = ShepherdPredictor(options, kmeans, config.nodata, num_threads=config.num_threads)
    tile_size = config.tile_size or 2048
    result = predict(
        config.src, config.dst, predictor, tile_size, _find_overlap(tile_size, config.overlap),
        channels=config.channels, write_preds=config.polygons, resume=config.resume,
        short_code='seg', progress=show_progress)
    if result is not None:
        say(f'manifest  {os.path.abspath(result.fpath)}')
        say(f'images    {result.n_images}')
    return predictor.kmeans


def save_clusters(fpath, kmeans):
    """
    Save the centres of clusters to a file that holds no code.

    Args:
        fpath (str | PathLike): ``*.npz``.
        kmeans (KMeans | ndarray): fitted clusters, or their centres (K, B).

    Example:
        >>> from cocoseg.cli.segment import load_clusters, save_clusters
        >>> import numpy as np, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     fpath = os.path.join(folder, 'clusters.npz')
        ...     save_clusters(fpath, np.array([[1.0, 2.0]]))
        ...     load_clusters(fpath).tolist()
        [[1.0, 2.0]]
    """
    import numpy as np
    from cocoseg.errors import OptionError
    from cocoseg.io.commit import atomic_write
    if kmeans is None:
        raise OptionError('there are no clusters to save, as no pixel is valid')
    with atomic_write(fpath) as temp, open(temp, 'wb') as file:
        np.savez(file, centres=getattr(kmeans, 'cluster_centers_', kmeans))


def load_clusters(fpath):
    """
    Return the centres (K, B) of a file of :func:`save_clusters`.

    Raises:
        OptionError: if it is no such file.
    """
    import numpy as np
    from cocoseg.errors import OptionError
    try:
        with np.load(fpath, allow_pickle=False) as file:
            return file['centres']
    except (ValueError, KeyError, AttributeError, OSError) as ex:
        if isinstance(ex, FileNotFoundError):
            raise
        raise OptionError(f'{fpath} holds no clusters ({ex}); give a file of '
                          '--save_clusters') from ex


__cli__ = SegmentConfig
