"""
The settings of a stitching manager, checked once, when it is made.
"""
from __future__ import annotations

import json
import numbers
import os
from dataclasses import dataclass, fields
from typing import ClassVar

from cocoseg.coco.assets import check_channels, check_png, coerce_layers, make_specs
from cocoseg.coco.manifest import list_channels
from cocoseg.coco.names import compute_suffix
from cocoseg.errors import OptionError
from cocoseg.stitch.quantize import Quantization

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
    layers: tuple = ()

    # What windows hold: values to blend. Labels have options of their own.
    kind: ClassVar[str] = 'soft'
    # Of the files of the main asset, when codes are as wide as they get.
    main_dtype: ClassVar[str] = 'int16'

    def __post_init__(self):
        from cocoseg.stitch.canvas import check_dtype
        put = object.__setattr__
        check_channels('chan_code', self.chan_code)
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
        put(self, 'layers', coerce_layers(self.layers, self.thresh))
        if self.assets:
            self._check_format()

    def _check_format(self):
        if self.prob_format == 'png':
            check_png(self)
            return
        from cocoseg.io.codecs import Codec
        from cocoseg.io.cog import check_blocksize
        from cocoseg.io.overviews import check_method
        driver = 'COG' if self.prob_format == 'cog' else 'GTiff'
        for spec in self.assets:
            dtype = self.main_dtype if spec.layer is None else self.describe(spec.layer).dtype
            Codec.coerce(self.prob_compress, None, 'auto', dtype, driver)
            check_method(spec.overviews)
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
    def codec(self):
        """Code of the mean, or None if its range is not known yet, or for floats."""
        if not self.quantize or self.expected_minmax is None:
            return None
        return Quantization(*self.expected_minmax, dtype=self.quantize_dtype,
                            orig_dtype=self.dtype)

    @property
    def assets(self):
        """Specs of all assets of an image, the mean first if it is written."""
        return make_specs(self)

    @property
    def asset_channels(self):
        """Channels of all assets of an image."""
        return [channel for spec in self.assets for channel in spec.channels]

    def describe(self, layer):
        """Return the :class:`~cocoseg.stitch.layers.LayerFormat` of a layer's asset."""
        return layer.describe(len(self.channels), self.codec)

    @property
    def ext(self):
        """File extension."""
        return _FORMATS[self.prob_format]

    @property
    def suffix(self):
        """Part of file names that stands for the channels."""
        return compute_suffix(self.chan_code)

    @property
    def journal_name(self):
        """
        Name of the journal's file: after the first asset.

        So one manager may write the mean of some channels, and another layers.
        """
        suffix = self.assets[0].suffix if self.assets else self.suffix
        return f'.cocoseg-{suffix}.jsonl'

    @property
    def config_hash(self):
        """Hash of all settings; two runs with the same make the same bytes."""
        import ubelt as ub
        return ub.hash_data(self._list_values())[0:16]

    def _list_values(self):
        """Return all settings by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        # Runs without layers have the hash that they had before there were any.
        layers = values.pop('layers')
        if layers:
            values['layers'] = [(layer.name, repr(layer), chan_code)
                                for layer, chan_code in layers]
        return values

    def describe_run(self, settings=None):
        """
        Return what must be the same for a run to be resumed.

        Args:
            settings (dict | None): what else changes the bytes, JSON by name.

        Returns:
            tuple[str, dict[str, str]]: the hash of all, and each as text.
            Without ``settings`` the hash is :attr:`config_hash`.

        Raises:
            OptionError: if settings cannot be told by JSON.

        Example:
            >>> options = AssetOptions('a|b')
            >>> config, texts = options.describe_run({'window': (64, 32)})
            >>> texts['chan_code'], texts['settings.window']
            ("'a|b'", '[64, 32]')
            >>> assert config != options.describe_run()[0] == options.config_hash
        """
        import ubelt as ub
        extra = _check_settings(settings)
        texts = {name: repr(value) for name, value in self._list_values().items()}
        texts.update({f'settings.{name}': text for name, text in extra.items()})
        config = self.config_hash
        return (ub.hash_data([config, sorted(extra.items())])[0:16] if extra else config), texts


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


def _check_settings(settings):
    """Return the settings as JSON texts by name."""
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
        raise OptionError(f'settings={settings!r} must be a dict with names as keys')
    texts = {}
    for name, value in settings.items():
        try:
            texts[name] = json.dumps(value, sort_keys=True)
        except (TypeError, ValueError) as ex:
            raise OptionError(f'settings[{name!r}]={value!r} is no JSON value ({ex}); give '
                              'numbers, strings, lists and dicts of them') from None
    return texts


def check_dump_interval(dump_interval):
    """
    Return the seconds between two dumps as a float, or None.

    Raises:
        OptionError: unless it is None or a number that is not negative.

    Example:
        >>> check_dump_interval(60), check_dump_interval(None)
        (60.0, None)
    """
    if dump_interval is None:
        return None
    is_number = isinstance(dump_interval, numbers.Real) and not isinstance(dump_interval, bool)
    if not is_number or not dump_interval >= 0:
        raise OptionError(f'dump_interval={dump_interval!r} must be seconds, 0 or more, or None '
                          'to leave dumping to the caller')
    return float(dump_interval)


def check_num_bands(num_bands, chan_code, n_channels):
    """
    Raise OptionError unless ``num_bands`` is 'auto' or the number of channels.

    Example:
        >>> check_num_bands('auto', 'a|b', 2)
    """
    if num_bands not in ('auto', n_channels):
        raise OptionError(f'num_bands={num_bands!r} but chan_code={chan_code!r} has '
                          f"{n_channels} channels; use 'auto'")


def make_canvas_options(device, memmap, memory_budget, kind='soft'):
    """
    Return how images are accumulated, with one budget for all of them.

    Args:
        device, memmap, memory_budget: of the manager.
        kind (str): 'soft' or 'labels'.

    Raises:
        OptionError: for an option that is unknown or contradicts another.

    Example:
        >>> make_canvas_options('numpy', None, 1 << 30)['memory_budget'].nbytes
        1073741824
    """
    from cocoseg.stitch.budget import MemoryBudget
    from cocoseg.stitch.canvas import check_canvas_options
    check_canvas_options(device, memmap)
    if kind == 'labels' and (str(device) != 'numpy' or memory_budget is not None):
        name, value = (('memory_budget', memory_budget) if str(device) == 'numpy'
                       else ('device', device))
        raise OptionError(f"{name}={value!r} is about sums that are blended; leave it out with "
                          "kind='labels', whose large images wait in a file anyway")
    if memory_budget is not None and str(device) != 'numpy':
        raise OptionError(f'device={device!r} excludes memory_budget, which is about host '
                          "memory; use device='numpy'")
    if memory_budget == 0:
        raise OptionError('memory_budget=0 must be bytes, above 0')
    return {'device': device, 'memmap': memmap,
            'memory_budget': MemoryBudget.coerce(memory_budget)}


def _check_minmax(minmax):
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
