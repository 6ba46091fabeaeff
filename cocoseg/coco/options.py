"""
The settings of a stitching manager, checked once, when it is made.
"""
from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from cocoseg.errors import OptionError
from cocoseg.coco.manifest import list_channels
from cocoseg.coco.names import compute_suffix

_FORMATS = {'cog': '.tif', 'tif': '.tif', 'png': '.png'}
_SPACES = ('video', 'image')
_READINESS = ('declared', 'contiguous')
_COLLISIONS = ('raise', 'replace')


@dataclass(frozen=True)
class AssetOptions:
    """
    How assets look: everything that changes their bytes, names or entries.

    See :class:`~cocoseg.coco.manager.CocoStitchingManager` for the meaning.

    Raises:
        OptionError: for any value that is unknown or contradicts another.

    Example:
        >>> options = AssetOptions(chan_code='a|b', short_code='pred')
        >>> options.channels, options.quantize_dtype, options.ext
        (('a', 'b'), 'int16', '.tif')
    """

    chan_code: str
    short_code: str | None = None
    space: str = 'video'
    thresh: float = 0.5
    write_probs: bool = True
    write_preds: bool = False
    polygon_categories: tuple | None = None
    prob_compress: str = 'ZSTD'
    prob_blocksize: int = 256
    prob_format: str = 'cog'
    expected_minmax: tuple | None = None
    quantize: bool = True
    write_prediction_attrs: bool = True
    assets_dname: str = '_assets'
    dtype: str = 'float32'

    def __post_init__(self):
        from cocoseg.stitch.canvas import check_dtype
        put = object.__setattr__
        _check_channels(self.chan_code)
        put(self, 'dtype', check_dtype(self.dtype).name)
        _check_choice('stitching_space', self.space, _SPACES)
        _check_choice('prob_format', self.prob_format, tuple(_FORMATS))
        if self.polygon_categories is not None:
            put(self, 'polygon_categories', tuple(self.polygon_categories))
            unknown = set(self.polygon_categories) - set(self.channels)
            if unknown:
                raise OptionError(f'polygon_categories={sorted(unknown)} are not among the '
                                  f'channels {self.channels}')
        if self.expected_minmax is not None:
            put(self, 'expected_minmax', _check_minmax(self.expected_minmax))
        for name in ('short_code', 'assets_dname'):
            _check_folder(name, getattr(self, name))
        if self.write_probs:
            self._check_format()

    def _check_format(self):
        if self.prob_format == 'png':
            if len(self.channels) > 4:
                raise OptionError(f'png holds at most 4 bands but {self.chan_code!r} has '
                                  f'{len(self.channels)}; use prob_format="cog"')
            if not self.quantize:
                raise OptionError('png cannot hold floats; use quantize=True or another format')
        else:
            from cocoseg.io.codecs import Codec
            from cocoseg.io.cog import check_blocksize
            is_cog = self.prob_format == 'cog'
            Codec.coerce(self.prob_compress, None, 'auto', 'int16', 'COG' if is_cog else 'GTiff')
            check_blocksize(self.prob_blocksize)

    @property
    def channels(self):
        """Names of the channels, one per band."""
        return tuple(list_channels(self.chan_code))

    @property
    def polygon_bands(self):
        """(name, band index) of the channels that become polygons."""
        wanted = self.polygon_categories or self.channels
        return [(name, index) for index, name in enumerate(self.channels) if name in wanted]

    @property
    def quantize_dtype(self):
        """Integer dtype of quantized assets."""
        return 'uint8' if self.prob_format == 'png' else 'int16'

    @property
    def ext(self):
        """File extension."""
        return _FORMATS[self.prob_format]

    @property
    def suffix(self):
        """Part of the file name that stands for the channels."""
        return compute_suffix(self.chan_code)

    @property
    def config_hash(self):
        """Hash of all settings; two runs with the same make the same bytes."""
        import ubelt as ub
        return ub.hash_data(asdict(self))[0:16]


def _check_choice(name, value, choices):
    if value not in choices:
        raise OptionError(f'{name}={value!r} is unknown; use one of {choices}')


def check_run_options(readiness, on_collision):
    """
    Raise OptionError unless both are known words.

    Example:
        >>> check_run_options('declared', 'raise')
    """
    _check_choice('readiness', readiness, _READINESS)
    _check_choice('on_collision', on_collision, _COLLISIONS)


def _check_channels(chan_code):
    if not isinstance(chan_code, str) or not chan_code or ',' in chan_code or '\0' in chan_code:
        raise OptionError(f'chan_code={chan_code!r} must be one fused channel spec such as '
                          "'water|bare' or 'hidden.0:16'")
    channels = list_channels(chan_code)
    if not channels or '' in channels or len(set(channels)) != len(channels):
        raise OptionError(f'chan_code={chan_code!r} gives the channels {channels}; they must be '
                          'distinct and not empty')


def _check_minmax(minmax):
    from cocoseg.stitch.quantize import Quantization
    try:
        low, high = minmax
    except (TypeError, ValueError):
        raise OptionError(f'expected_minmax={minmax!r} must be a pair (min, max)') from None
    try:
        code = Quantization(low, high)
    except OptionError as ex:
        raise OptionError(f'expected_minmax={minmax!r} cannot be used: {ex}') from ex
    return (code.orig_min, code.orig_max)


def _check_folder(name, value):
    if value is None and name == 'short_code':
        return
    parts = os.fspath(value).split('/') if isinstance(value, (str, os.PathLike)) else [None]
    if any(part in (None, '', '.', '..') or '\0' in part for part in parts):
        raise OptionError(f'{name}={value!r} must be a relative folder name without ".."')
