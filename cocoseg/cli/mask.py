"""
``cocoseg mask``: where a raster, or the images of a kwcoco dataset, are valid.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress
from cocoseg.cli.ending import describe_images

_MANIFESTS = ('.json', '.zip')
# What has a meaning for one of the two kinds of input only, with its default.
_RASTER_ONLY = {'bands': None, 'extra_mask': None, 'block_size': None, 'executor': 'serial',
                'max_retries': 2, 'timeout': None}
_MANIFEST_ONLY = {'channels': None, 'mask_channel': 'valid', 'space': 'image',
                  'valid_region': False, 'resume': False}


class MaskConfig(WriterConfig):
    """
    Compute where images are valid, from their nodata.

    The input is a raster, which may be far larger than memory, or a kwcoco
    manifest (*.json, *.zip). A mask is a Cloud-Optimized GeoTIFF of one band:
    255 where data is valid, 0 where it is masked.
    """

    __command__ = 'mask'
    __epilog__ = """
    Example:
        cocoseg mask image.tif --dst valid.tif --logic any --nodata 0 --executor threads
        cocoseg mask image.tif --dst sidecar
        cocoseg mask data.kwcoco.json --dst mask/mask.kwcoco.json --channels "red|green|nir"
    """

    src = kwconf.Value(None, position=1, required=True, type=str, help=(
        'raster that GDAL opens, or kwcoco manifest'))
    dst = kwconf.Value(None, required=True, type=str, help=(
        'raster, or manifest, to write; of a raster also sidecar, for *.msk beside it, or '
        'internal, for a mask inside of it'))
    logic = kwconf.Value('all', type=str, help=(
        'mask where any or all bands are nodata, or a number: where at least so many are'))
    nodata = kwconf.Value(['file'], nargs='+', type=str, help=(
        'values that are nodata in every band; file for those of the file, none for NaN only, '
        'masks for the masks of the bands'))
    bands = kwconf.Value(None, nargs='+', type=int, help='of a raster, from 0; default all')
    extra_mask = kwconf.Value(None, type=str, help=(
        'of a raster: another one of one band, that masks where it is 0'))
    block_size = kwconf.Value(None, nargs='+', type=int, help=(
        'of a raster: height and width of a block, px; default whole tiles'))
    executor = kwconf.Value('serial', type=str, help=(
        'of a raster: serial, threads:N, processes:N, dask, or dask:ADDRESS'))
    max_retries = kwconf.Value(2, type=int, help='of a raster: how often a block is tried again')
    timeout = kwconf.Value(None, type=float, help='of a raster: seconds per block')
    channels = kwconf.Value(None, type=str, help=(
        'of a manifest: bands such as "red|green|nir"; default all of the first image'))
    mask_channel = kwconf.Value('valid', type=str, help='of a manifest: name of the new channel')
    space = kwconf.Value('image', choices=['image', 'video'], help=(
        'of a manifest: whose pixels the masks have'))
    valid_region = kwconf.Flag(False, help=(
        'of a manifest: also store the outline of each mask with its image'))
    resume = kwconf.Flag(False, help='of a manifest: go on with a run that was cut short')
    overwrite = kwconf.Flag(False, help='replace a mask that exists')

    @run_command
    def main(config):
        from cocoseg.errors import OptionError
        is_manifest = config.is_manifest()
        others = _RASTER_ONLY if is_manifest else _MANIFEST_ONLY
        given = [name for name, default in others.items() if getattr(config, name) != default]
        if given:
            kind, other = (('a manifest', 'rasters') if is_manifest else ('a raster', 'manifests'))
            raise OptionError(f'{config.src} is {kind}, and --{given[0]} is for {other}; leave it '
                              'out')
        mask = _mask_manifest if is_manifest else _mask_raster
        mask(config, as_logic(config.logic), as_nodata(config.nodata))

    def is_manifest(self):
        """Return True if the input is a kwcoco dataset."""
        return self.src.lower().endswith(_MANIFESTS)

    def list_outputs(self):
        """Return the paths that are written."""
        if self.dst == 'sidecar':
            return [f'{self.src}.msk']
        return [self.src if self.dst == 'internal' else self.dst]

    def can_resume(self):
        """Return True if finished images are kept."""
        return self.is_manifest()

    def describe_finished(self):
        """Return how many images of a run that was cut short are kept."""
        return describe_images(self.dst, 'mask') if self.is_manifest() else None


def as_logic(text):
    """
    Return 'any', 'all', or a number.

    Example:
        >>> from cocoseg.cli.mask import as_logic
        >>> as_logic('any'), as_logic('3')
        ('any', 3)
    """
    try:
        return int(text)
    except ValueError:
        return text


def as_nodata(words):
    """
    Return what is nodata from words: one of the names, or numbers.

    Example:
        >>> from cocoseg.cli.mask import as_nodata
        >>> as_nodata(['file']), as_nodata(['none']), as_nodata(['0']), as_nodata(['0', '255'])
        ('file', None, 0.0, {0.0, 255.0})
    """
    from cocoseg.errors import OptionError
    # The command line makes numbers, and None, of what looks so.
    words = ['none' if word is None else str(word) for word in words]
    if len(words) == 1 and words[0].lower() in ('file', 'masks', 'none'):
        return None if words[0].lower() == 'none' else words[0].lower()
    try:
        values = {float(word) for word in words}
    except ValueError:
        raise OptionError(f'--nodata={" ".join(words)} must be numbers, or file, masks or '
                          'none alone') from None
    return values if len(words) > 1 else values.pop()


def _mask_raster(config, logic, nodata):
    from cocoseg.postprocess.masks import PLACES, compute_mask, count_valid
    block = config.block_size
    dst = config.dst
    if dst not in PLACES and not dst.lower().endswith(('.tif', '.tiff')):
        from cocoseg.errors import OptionError
        raise OptionError(f'--dst={dst} must be a path that ends with .tif, sidecar, or internal')
    options = {
        'nodata': nodata, 'logic': logic, 'bands': config.bands, 'extra_mask': config.extra_mask,
        'block_shape': None if block is None else tuple(block) if len(block) > 1 else block[0],
        'max_retries': config.max_retries, 'timeout': config.timeout}
    if config.dry_run:
        from cocoseg.cli.dry_run import preview_mask
        preview_mask(config, **options)
        return
    result = compute_mask(config.src, dst, executor=config.executor, overwrite=config.overwrite,
                          progress=show_progress, **options)
    n_valid, n_pixels = count_valid(result.output, is_inside=dst == 'internal')
    say(f'mask      {os.path.abspath(result.output)}')
    say(f'valid     {n_valid} of {n_pixels} px, {n_valid / n_pixels:.2%}')
    say(result.format_timings())


def _mask_manifest(config, logic, nodata):
    if config.dry_run:
        from cocoseg.cli.dry_manifest import preview_masks as mask_images
    else:
        from cocoseg.coco.masks import mask_dataset as mask_images
    result = mask_images(
        config.src, config.dst, config.channels, config.mask_channel, logic=logic, nodata=nodata,
        space=config.space, valid_region=config.valid_region, overwrite=config.overwrite,
        resume=config.resume, progress=show_progress)
    if result is not None:
        say(f'manifest  {os.path.abspath(result.fpath)}')
        say(f'images    {result.n_images}')


__cli__ = MaskConfig
