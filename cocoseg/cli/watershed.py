"""
``cocoseg watershed``: instances of a raster, a volume, or a kwcoco dataset.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress
from cocoseg.cli.ending import describe_images

_MANIFESTS = ('.json', '.zip')
# What has a meaning for one kind of input, or of method, only, with its default.
_RASTER_ONLY = {'ndim': None}
_MANIFEST_ONLY = {'channels': None, 'out_channels': 'instances', 'space': 'video',
                  'category': 'instance'}
_MUTEX_ONLY = {'offsets': None, 'bias': 0.5, 'keep_fragments': False, 'foreground': None}
_SEEDED_ONLY = {'seed_distance': 5}
# What --polygons alone stands for.
_ANNOTATIONS = 'annotations'


class WatershedConfig(WriterConfig):
    """
    Find instances in predictions, by watersheds of blocks.

    The input is a raster or a Zarr array (2-D or 3-D), which may be far larger
    than memory, or a kwcoco manifest (*.json, *.zip). The result holds uint32
    ids 1..n, 0 for background: a Cloud-Optimized GeoTIFF or a Zarr array, or a
    manifest whose images have one more asset.
    """

    __command__ = 'watershed'
    __epilog__ = """
    Example:
        cocoseg watershed affinities.tif --dst ids.tif --offsets 0,1 1,0 0,-9 -9,0
        cocoseg watershed em.zarr/affs --dst em.zarr/ids --offsets 0,0,1 0,1,0 1,0,0 --context 16
        cocoseg watershed pred.kwcoco.json --dst ids/ids.kwcoco.json --channels nuclei \\
            --method foreground --threshold 0.5 --sigma 1 --min_size 20 --polygons
    """

    src = kwconf.Value(None, position=1, required=True, type=str, help=(
        'raster that GDAL opens, path of a Zarr array, or kwcoco manifest'))
    dst = kwconf.Value(None, required=True, type=str, help=(
        '*.tif or a path with .zarr in it, or manifest, to write'))
    method = kwconf.Value('mutex', choices=['mutex', 'boundary', 'distance', 'foreground'], help=(
        'mutex: of affinities; the others: from seeds, on a map of boundaries, of distances to '
        'them, or of foreground'))
    offsets = kwconf.Value(None, nargs='+', type=str, help=(
        'of mutex: one per channel, y,x or z,y,x with commas, such as 0,1 1,0 -9,0'))
    threshold = kwconf.Value(None, type=float, help=(
        'least mean affinity, 1 - boundary, distance, or foreground of an object; default: no '
        'mask'))
    sigma = kwconf.Value(0.0, type=float, help='Gaussian that smooths predictions, px')
    min_size = kwconf.Value(0, type=int, help='px that an instance needs, over all blocks')
    bias = kwconf.Value(0.5, type=float, help='of mutex: affinities above attract, below repel')
    context = kwconf.Value([32], nargs='+', type=int, help=(
        'px that a block reads around its core; one number, or one per axis'))
    seed_distance = kwconf.Value(5, type=int, help=(
        'of the seeded methods: px within which a seed is the highest'))
    keep_fragments = kwconf.Flag(False, help=(
        'of mutex: keep instances whose mean affinity is below the bias'))
    foreground = kwconf.Value(None, type=str, help=(
        'of mutex: what is compared with the threshold instead of the mean affinity; a raster or '
        'Zarr array of one channel, or a channel of the manifest'))
    ndim = kwconf.Value(None, type=int, choices=[2, 3], help=(
        'of a Zarr array: axes of space; default those of offsets or blocks, else 2'))
    block_shape = kwconf.Value(None, nargs='+', type=int, help=(
        'extent of a block, px; one number, or one per axis; default 512, of volumes 128'))
    executor = kwconf.Value('serial', type=str, help=(
        'who does the blocks: serial, threads:N, processes:N, dask, or dask:ADDRESS'))
    max_retries = kwconf.Value(2, type=int, help='how often a block that fails is tried again')
    timeout = kwconf.Value(None, type=float, help='seconds per block')
    resume = kwconf.Flag(False, help=(
        'go on with a run that was cut short; give it from the start to keep finished blocks '
        'after errors, too'))
    overwrite = kwconf.Flag(False, help=(
        'replace an output that exists; of a manifest, assets with this channel'))
    polygons = kwconf.Value(None, bare=_ANNOTATIONS, type=str, help=(
        'of a raster: GeoPackage of outlines to write, with size and score, *.gpkg; of a '
        'manifest, without a value: also add instances as annotations'))
    channels = kwconf.Value(None, type=str, help=(
        'of a manifest: predictions such as "right|below|far", in the order of the offsets'))
    out_channels = kwconf.Value('instances', type=str, help=(
        'of a manifest: name of the new channel'))
    space = kwconf.Value('video', choices=['video', 'image'], help=(
        'of a manifest: whose pixels the instances have'))
    category = kwconf.Value('instance', type=str, help='of a manifest: of the annotations')

    @run_command
    def main(config):
        is_manifest = config.is_manifest()
        _check_kind(config, is_manifest)
        _check_method(config)
        find = _find_in_manifest if is_manifest else _find_in_raster
        find(config, _make_parameters(config))

    @staticmethod
    def protect_words(argv):
        """Return arguments in which offsets that begin with a minus are no options."""
        return protect_vectors(argv)

    def is_manifest(self):
        """Return True if the input is a kwcoco dataset."""
        return self.src.lower().endswith(_MANIFESTS)

    def list_outputs(self):
        """Return the paths that are written."""
        return [path for path in (self.dst, self.polygons) if path not in (None, _ANNOTATIONS)]

    def can_resume(self):
        """Return True if finished images, or blocks, are kept."""
        return self.is_manifest() or self.resume

    def describe_finished(self):
        """Return how many images of a run that was cut short are kept."""
        if self.is_manifest():
            return describe_images(self.dst, 'instances')
        return 'finished blocks are kept' if self.resume else None


def protect_vectors(argv):
    """
    Return arguments in which offsets that begin with a minus are no options.

    Args:
        argv (Sequence[str]): of this command.

    Example:
        >>> protect_vectors(['a.tif', '--offsets', '0,1', '-9,0', '--bias', '-1'])
        ['a.tif', '--offsets', '0,1', ' -9,0', '--bias', '-1']
        >>> protect_vectors(['--offsets=-9,0', '0,1'])
        ['--offsets', ' -9,0', '0,1']
    """
    found = []
    for word in argv:
        name, equals, value = word.partition('=')
        words = [name, value] if equals and name == '--offsets' else [word]
        # The parser takes what begins with a space for a value.
        found += [f' {one}' if one[:1] == '-' and ',' in one and one[1:2].isdigit() else one
                  for one in words]
    return found


def as_offsets(words):
    """
    Return offsets from words, or from the lists of a file.

    Raises:
        OptionError: if one is no list of whole numbers.

    Example:
        >>> as_offsets(['0,1', ' -9,0']), as_offsets(['0,1 1,0']), as_offsets([[0, 1]])
        ([(0, 1), (-9, 0)], [(0, 1), (1, 0)], [(0, 1)])
    """
    from cocoseg.errors import OptionError
    if isinstance(words, str):
        words = [words]
    vectors = [vector for word in words
               for vector in (word.split() if isinstance(word, str) else [word])]
    try:
        return [tuple(int(step) for step in (
            vector.split(',') if isinstance(vector, str) else vector)) for vector in vectors]
    except (TypeError, ValueError):
        raise OptionError(f'--offsets={words} must be whole px with commas between the axes and '
                          'spaces between the offsets, such as 0,1 1,0 -9,0') from None


def _check_kind(config, is_manifest):
    """Raise for an option that would be ignored, or does not fit the input."""
    from cocoseg.errors import OptionError
    others = _RASTER_ONLY if is_manifest else _MANIFEST_ONLY
    given = _list_given(config, others)
    kind, other = ('a manifest', 'rasters') if is_manifest else ('a raster', 'manifests')
    if given:
        raise OptionError(f'{config.src} is {kind}, and --{given[0]} is for {other}; leave it out')
    if not is_manifest:
        if config.polygons == _ANNOTATIONS:
            raise OptionError(f'{config.src} is {kind}; give --polygons a path, *.gpkg')
        if config.polygons is not None and '.zarr' in config.dst:
            raise OptionError('--polygons of a raster are made from a GeoTIFF; give a --dst that '
                              'ends with .tif')
        return
    if not config.dst.lower().endswith(_MANIFESTS):
        raise OptionError(f'{config.src} is {kind}, and so must be --dst={config.dst}: a path '
                          'that ends with .json or .zip')
    if config.channels is None:
        raise OptionError(f'{config.src} is {kind}; give --channels, the predictions')
    if config.polygons not in (None, _ANNOTATIONS):
        raise OptionError(f'{config.src} is {kind}, where --polygons takes no path; leave '
                          f'{config.polygons} out')
    if config.polygons is None and config.category != _MANIFEST_ONLY['category']:
        raise OptionError('--category is of the annotations; add --polygons')


def _check_method(config):
    """Raise for an option that the method would ignore."""
    from cocoseg.errors import OptionError
    is_mutex = config.method == 'mutex'
    given = _list_given(config, _SEEDED_ONLY if is_mutex else _MUTEX_ONLY)
    if given:
        other = 'the seeded methods' if is_mutex else 'mutex'
        raise OptionError(f'--{given[0]} is for {other}, not for --method={config.method}; leave '
                          'it out')


def _list_given(config, defaults):
    return [name for name, default in defaults.items() if getattr(config, name) != default]


def _make_parameters(config):
    from cocoseg.postprocess.parameters import WatershedParameters
    return WatershedParameters(
        offsets=as_offsets(config.offsets or []), threshold=config.threshold, sigma=config.sigma,
        min_size=config.min_size, bias=config.bias, context=_as_extent(config.context),
        method=config.method, seed_distance=config.seed_distance,
        filter_fragments=not config.keep_fragments)


def _as_extent(numbers):
    """
    Return one number as it is, several as a tuple.

    Example:
        >>> _as_extent([32]), _as_extent([8, 32, 32]), _as_extent(None), _as_extent(16)
        (32, (8, 32, 32), None, 16)
    """
    if numbers is None or isinstance(numbers, int):
        return numbers
    return numbers[0] if len(numbers) == 1 else tuple(numbers)


def _list_run_options(config):
    return {'block_shape': _as_extent(config.block_shape), 'executor': config.executor,
            'max_retries': config.max_retries, 'timeout': config.timeout,
            'resume': config.resume, 'progress': show_progress}


def _find_in_raster(config, parameters):
    from cocoseg.postprocess.watershed import blockwise_watershed
    if config.polygons is not None:
        from cocoseg.io.vector import check_polygon_path
        check_polygon_path(config.polygons)
    options = {'foreground': config.foreground, 'ndim': config.ndim, **_list_run_options(config)}
    if config.dry_run:
        from cocoseg.cli.dry_run import preview_watershed
        preview_watershed(config, parameters, **options)
        return
    result = blockwise_watershed(config.src, parameters, config.dst, overwrite=config.overwrite,
                                 **options)
    summary = _Summary()
    summary.add('', result)
    summary.print()
    say(f'labels    {os.path.abspath(result.output)}')
    if config.polygons is not None:
        _write_polygons(result, config.polygons)
        say(f'polygons  {os.path.abspath(config.polygons)}')
    say(result.format_timings())


def _write_polygons(result, fpath):
    """Write the outline of each instance, with its size and score."""
    import numpy as np
    from cocoseg.io.vector import write_segment_polygons
    from cocoseg.shepherd.segment_table import SegmentTable
    table = SegmentTable(np.arange(1, result.n_labels + 1),
                         {'size': result.sizes[1:], 'score': result.scores[1:]})
    write_segment_polygons(result.output, fpath, table, layer='instances')


def _find_in_manifest(config, parameters):
    from cocoseg.coco.instances import watershed_dataset
    from cocoseg.engine.timings import format_timings
    options = {
        'foreground': config.foreground, 'out_channels': config.out_channels,
        'space': config.space, 'on_collision': 'replace' if config.overwrite else 'raise',
        **_list_run_options(config)}
    if config.dry_run:
        from cocoseg.cli.dry_manifest import preview_instances
        preview_instances(config.src, config.dst, parameters, config.channels, **options)
        return
    summary = _Summary()
    dset = watershed_dataset(
        config.src, config.dst, parameters, config.channels, report=summary.add,
        polygons=config.polygons is not None, category=config.category, **options)
    summary.print()
    say(f'manifest  {os.path.abspath(dset.fpath)}')
    say(f'images    {dset.n_images}, of which {summary.n_images} were done now')
    say(format_timings(summary.timings.summary(), 'Seconds per stage, over all images'))


class _Summary:
    """Count the instances and seams of all images."""

    def __init__(self):
        from cocoseg.engine.timings import Timings
        self.n_images = self.n_labels = self.n_seams = self.n_common = self.n_labeled = 0
        self.worst, self.timings = None, Timings()

    def add(self, image_id, result):
        """Take in what is known of one image."""
        self.n_images += 1
        self.n_labels += result.n_labels
        self.n_seams += len(result.seams)
        self.n_common += sum(seam.n_common for seam in result.seams)
        self.n_labeled += sum(seam.n_labeled for seam in result.seams)
        found = [(seam.agreement, f'{seam.first} | {seam.second}'
                  + (f' of image {image_id}' if image_id else '')) for seam in result.seams]
        self.worst = min([*found, *([self.worst] if self.worst else [])], default=None)
        self.timings.merge(result.timings)

    def print(self):
        """Print the counts."""
        say(f'instances {self.n_labels}')
        if self.n_seams:
            agreement = self.n_common / self.n_labeled if self.n_labeled else 1.0
            say(f'seams     {self.n_seams}, agreement {agreement:.4f} overall, '
                  f'{self.worst[0]:.4f} at least, between {self.worst[1]}')


__cli__ = WatershedConfig
