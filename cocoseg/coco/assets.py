"""
The assets of an image: the stitched mean, and extra layers beside it.

Each is a file of its own with channels of its own, written, registered and
resumed in the same way; an :class:`AssetSpec` says what is in it. A layer that
is asked for by name gets its channel names here.
"""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cocoseg.coco.manifest import list_channels
from cocoseg.coco.names import compute_suffix
from cocoseg.errors import OptionError
from cocoseg.stitch.layers import ClassMap, ThresholdMask, get_layer

# What channels of a layer end with, where that is not its name.
_ENDINGS = {'disagreement': 'std'}
_MAX_PNG_BANDS = 4


@dataclass(frozen=True)
class AssetSpec:
    """
    One of the assets that every image gets.

    Attributes:
        name (str): 'mean', 'labels', or that of the layer; distinct.
        chan_code (str): its channels, one per band.
        layer (Layer | None): what makes it; None is the main asset, the
            blended mean or the labels.
        categories (tuple[str, ...] | None): what the values 0, 1, … stand for.
        reduction (str): how overviews of the main asset are made.

    Example:
        >>> spec = AssetSpec('class', 'pred_class', ClassMap(), ('water', 'land'))
        >>> spec.channels, spec.suffix, spec.overviews
        (('pred_class',), 'pred_class', 'nearest')
        >>> AssetSpec('mask', 'a_mask|b_mask', ThresholdMask()).suffix
        'f2692324ee5549b3_mask'
    """

    name: str
    chan_code: str
    layer: Any = None
    categories: tuple[str, ...] | None = None
    reduction: str = 'average'

    @property
    def channels(self):
        """Names of the channels, one per band."""
        return tuple(list_channels(self.chan_code))

    @property
    def suffix(self):
        """Part of the file name that stands for the channels."""
        suffix = compute_suffix(self.chan_code)
        # A hash tells nobody what is in the file.
        return suffix if self.layer is None or suffix == self.chan_code else (
            f'{suffix}_{self.name}')

    @property
    def overviews(self):
        """How overviews are made."""
        return self.reduction if self.layer is None else self.layer.overviews


def check_channels(option, chan_code):
    """
    Raise OptionError unless a text is one fused spec of distinct channels.

    Args:
        option (str): what it is, for the message.
        chan_code (str): such as 'water|bare' or 'hidden.0:16'.

    Example:
        >>> check_channels('chan_code', 'a|b')
    """
    if not isinstance(chan_code, str) or not chan_code or ',' in chan_code or '\0' in chan_code:
        raise OptionError(f'{option}={chan_code!r} must be one fused channel spec such as '
                          "'water|bare' or 'hidden.0:16'")
    try:
        channels = list_channels(chan_code)
    except ValueError as ex:
        raise OptionError(f'{option}={chan_code!r} is no channel spec: {ex}; a colon is for '
                          "ranges such as 'hidden.0:16'") from ex
    if not channels or '' in channels or len(set(channels)) != len(channels):
        raise OptionError(f'{option}={chan_code!r} gives the channels {channels}; they must be '
                          'distinct and not empty')


def coerce_layers(layers, thresh=0.5):
    """
    Return ((layer, its channels or None), …) of the option ``layers``.

    Args:
        layers (Sequence | Mapping | None): names or layers, or a mapping of
            them to channel specs.
        thresh (float): threshold of a mask that is asked for by name.

    Raises:
        OptionError: for anything else, an unknown layer, or one given twice.

    Example:
        >>> coerce_layers(['class', 'mask'], 0.3)
        ((ClassMap(), None), (ThresholdMask(threshold=0.3), None))
        >>> coerce_layers({'class': 'landcover'})
        ((ClassMap(), 'landcover'),)
    """
    layers = () if layers is None else layers
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise OptionError(f"layers={layers!r} must be a list such as ['class', 'mask'], or a dict "
                          'of layers and their channels')
    items = layers.items() if isinstance(layers, Mapping) else [
        item if isinstance(item, tuple) and len(item) == 2 else (item, None) for item in layers]
    pairs = tuple((_coerce_layer(spec, thresh), chan_code) for spec, chan_code in items)
    for layer, chan_code in pairs:
        if chan_code is not None:
            check_channels(f'layers: the spec of {layer.name!r}', chan_code)
        if sum(layer == other for other, _ in pairs) > 1:
            raise OptionError(f'layers={layers!r} names {layer.name!r} twice')
    return pairs


def _coerce_layer(spec, thresh):
    layer = ThresholdMask(thresh) if spec == ThresholdMask.name else get_layer(spec)
    if not re.fullmatch(r'[A-Za-z0-9_-]{1,60}', str(layer.name)):
        raise OptionError(f'layers: the name {layer.name!r} must be of letters, digits, _ and -, '
                          'as it becomes part of channel and file names')
    if type(layer).__repr__ is object.__repr__ or type(layer).__hash__ is None:
        raise OptionError(f'layers: a later run could not tell {layer!r} from another; make its '
                          'class a frozen dataclass')
    return layer


def make_specs(options):
    """
    Return all assets of an image, the mean first if it is written.

    Args:
        options (AssetOptions): with coerced ``layers``.

    Returns:
        tuple[AssetSpec, ...]: their channels are distinct.

    Raises:
        OptionError: for a layer that cannot be made of these channels, or
            channels that clash or have another number of bands.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> options = AssetOptions('h.0:3', 'run1', layers=['class', 'disagreement'])
        >>> [(spec.name, spec.chan_code) for spec in make_specs(options)]
        [('mean', 'h.0:3'), ('class', 'run1_class'), ('disagreement', 'h_std.0:3')]
    """
    specs = [AssetSpec('mean', options.chan_code)]
    owners = dict.fromkeys(options.channels, 'chan_code')
    for layer, chan_code in options.layers:
        n_bands = options.describe(layer).n_bands
        if chan_code is None:
            chan_code = _default_channels(layer, n_bands, options)
        spec = AssetSpec(_distinct_name(layer.name, specs), chan_code, layer,
                         options.channels if isinstance(layer, ClassMap) else None)
        if len(spec.channels) != n_bands:
            raise OptionError(f'layers: {layer!r} has {n_bands} bands but {chan_code!r} names '
                              f'{len(spec.channels)} channels; give one per band')
        for channel in spec.channels:
            if channel in owners:
                raise OptionError(
                    f'layers: the channel {channel!r} of {layer!r} is one of {owners[channel]} '
                    'already; choose other channels with a dict, layers={layer: channels}')
            owners[channel] = repr(layer)
        specs.append(spec)
    return tuple(specs if options.write_probs else specs[1:])


def _distinct_name(name, specs):
    """Return the name, with a number if another asset is called so."""
    taken, candidate, number = {spec.name for spec in specs}, name, 1
    while candidate in taken:
        number += 1
        candidate = f'{name}_{number}'
    return candidate


def _default_channels(layer, n_bands, options):
    ending = _ENDINGS.get(layer.name, layer.name)
    if n_bands == len(options.channels):
        return _append(options.chan_code, options.channels, ending)
    if n_bands == 1:
        code = re.sub(r'[^\w-]+', '_', options.short_code or '').strip('_')
        return f'{code or "pred"}_{ending}'
    raise OptionError(f'layers: {layer!r} has {n_bands} bands, which have no names by default; '
                      'give them with a dict, layers={layer: channels}')


def _append(chan_code, channels, ending):
    """
    Return a spec whose channels end with a word, before their number.

    A number after a dot is an index for kwcoco, which must stay last.

    Example:
        >>> _append('a|h.1:3', ['a', 'h.1', 'h.2'], 'std')
        'a_std|h_std.1:3'
        >>> _append('rgb', ['r', 'g', 'b'], 'std')
        'r_std|g_std|b_std'
    """
    names = [re.sub(r'(\.\d+)?$', rf'_{ending}\1', channel, count=1) for channel in channels]
    short = '|'.join(re.sub(r'([.:]\d.*)?$', rf'_{ending}\1', part, count=1)
                     for part in chan_code.split('|'))
    return short if list_channels(short) == names else '|'.join(names)


def check_png(options):
    """
    Raise OptionError unless a PNG can hold each asset.

    Example:
        >>> from cocoseg.coco.options import AssetOptions
        >>> check_png(AssetOptions('a|b', prob_format='png', layers=['class', 'mask']))
    """
    for spec in options.assets:
        n_bands = len(spec.channels)
        if n_bands > _MAX_PNG_BANDS:
            raise OptionError(f'png holds at most {_MAX_PNG_BANDS} bands but {spec.chan_code!r} '
                              f'has {n_bands}; use prob_format="cog"')
        if spec.layer is None:
            if not options.quantize:
                raise OptionError('png cannot hold floats; use quantize=True or another format')
            continue
        dtype = options.describe(spec.layer).dtype
        if dtype not in ('uint8', 'uint16'):
            raise OptionError(
                f'png cannot hold the layer {spec.name!r}, which is {dtype}; use '
                'prob_format="cog", or give expected_minmax (with quantize=True), by which a '
                'disagreement becomes 8-bit codes')
