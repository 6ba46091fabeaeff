"""
The settings of a manager of labels: how tiles become one image of ids.

A manager of ``kind='labels'`` has the options of any other, but for those
about values that are blended: these must stay as they are.
"""
from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import ClassVar

from cocoseg.coco.assets import AssetSpec
from cocoseg.coco.options import AssetOptions
from cocoseg.errors import OptionError
from cocoseg.stitch.label import LabelStitcher

KINDS = ('soft', 'labels')
# Of a manager, all of them about values that are blended.
_SOFT_OPTIONS = ('thresh', 'expected_minmax', 'quantize', 'dtype', 'layers')
_OVERVIEWS = ('nearest', 'mode')


@dataclass(frozen=True)
class LabelOptions:
    """
    How the label tiles of an image become one image of ids.

    See :class:`~cocoseg.stitch.label.LabelStitcher` for the meaning of the
    first four.

    Args:
        connectivity (int | None): 4, 8 or None.
        match (str): 'overlap' or 'none'.
        min_size (int): px.
        max_difference (float): units of the values that come with each tile.
        overviews (str): 'nearest', or 'mode', the most frequent of four ids.

    Raises:
        OptionError: for a value that is unknown or contradicts another.

    Example:
        >>> from cocoseg.coco.label_options import LabelOptions
        >>> LabelOptions.coerce({'connectivity': 4, 'min_size': 20}).needs_values
        True
    """

    connectivity: int | None = None
    match: str = 'overlap'
    min_size: int = 0
    max_difference: float = math.inf
    overviews: str = 'nearest'

    def __post_init__(self):
        put = object.__setattr__
        is_whole = isinstance(self.min_size, numbers.Integral) and not isinstance(
            self.min_size, bool)
        if not is_whole or self.min_size < 0:
            raise OptionError(f'label_options: min_size={self.min_size!r} must be whole px, at '
                              'least 0')
        # NaN is not at least 0 either.
        if not isinstance(self.max_difference, numbers.Real) or not self.max_difference >= 0:
            raise OptionError(f'label_options: max_difference={self.max_difference!r} must be a '
                              'number, at least 0; inf is no limit')
        if self.overviews not in _OVERVIEWS:
            raise OptionError(f'label_options: overviews={self.overviews!r} is unknown; use one '
                              f'of {_OVERVIEWS}, which make no ids that are not there')
        # As plain numbers they read the same in every journal.
        put(self, 'min_size', int(self.min_size))
        put(self, 'max_difference', float(self.max_difference))
        LabelStitcher((1, 1), **self.of_stitcher)

    @classmethod
    def coerce(cls, options):
        """
        Return options that are given as such, as a dict, or as None.

        Raises:
            OptionError: for anything else, or an unknown name.
        """
        if isinstance(options, cls):
            return options
        if not isinstance(options, (Mapping, type(None))):
            raise OptionError(f'label_options={options!r} must be a dict or a LabelOptions')
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(options or ()) - set(known), key=str)
        if unknown:
            raise OptionError(f'label_options: {unknown} are unknown; there are {known}')
        return cls(**(options or {}))

    @property
    def of_stitcher(self):
        """Arguments of :class:`~cocoseg.stitch.label.LabelStitcher`, a new dict."""
        values = asdict(self)
        del values['overviews']
        return values

    @property
    def needs_values(self):
        """True if values must come with each tile."""
        return self.min_size > 1


@dataclass(frozen=True)
class LabelAssetOptions(AssetOptions):
    """
    How the assets of labels look: one channel of uint32 ids, nodata 0.

    Args:
        label_options (LabelOptions | dict | None): see there.

    Raises:
        OptionError: for any value that is unknown or contradicts another, or
            an option that has no meaning for labels.

    Example:
        >>> from cocoseg.coco.label_options import LabelAssetOptions
        >>> options = LabelAssetOptions('segments')
        >>> [(spec.name, spec.channels, spec.overviews) for spec in options.assets]
        [('labels', ('segments',), 'nearest')]
    """

    label_options: LabelOptions | None = None

    kind: ClassVar[str] = 'labels'
    main_dtype: ClassVar[str] = 'uint32'

    def __post_init__(self):
        object.__setattr__(self, 'label_options', LabelOptions.coerce(self.label_options))
        super().__post_init__()
        for field in fields(AssetOptions):
            value = getattr(self, field.name)
            if field.name in _SOFT_OPTIONS and value != field.default:
                raise OptionError(f"{field.name}={value!r} is about values that are blended; "
                                  "leave it out with kind='labels'")
        if len(self.channels) != 1:
            raise OptionError(f'chan_code={self.chan_code!r} has {len(self.channels)} channels; '
                              'labels have one')

    def _check_format(self):
        if self.prob_format == 'png':
            raise OptionError("prob_format='png' cannot hold ids of 32 bits; use 'cog' or 'tif'")
        super()._check_format()

    @property
    def assets(self):
        """Specs of all assets of an image: that of the labels, if it is written."""
        return (AssetSpec('labels', self.chan_code,
                          reduction=self.label_options.overviews),) if self.write_probs else ()

    def _list_values(self):
        values = super()._list_values()
        for name in _SOFT_OPTIONS:
            values.pop(name, None)
        options = asdict(values.pop('label_options'))
        # JSON, and so some hashes, have no infinity.
        options['max_difference'] = repr(options['max_difference'])
        return {**values, 'kind': self.kind, 'label_options': options}


def make_asset_options(kind, label_options=None, **options):
    """
    Return the options of a manager of this kind.

    Args:
        kind (str): 'soft' or 'labels'.
        label_options (LabelOptions | dict | None): only for labels.
        **options: of :class:`~cocoseg.coco.options.AssetOptions`.

    Raises:
        OptionError: for an option that is unknown or contradicts another.

    Example:
        >>> from cocoseg.coco.label_options import make_asset_options
        >>> [make_asset_options(kind, chan_code='a').main_dtype for kind in KINDS]
        ['int16', 'uint32']
    """
    if kind not in KINDS:
        raise OptionError(f'kind={kind!r} is unknown; use one of {KINDS}')
    if kind == 'labels':
        return LabelAssetOptions(label_options=label_options, **options)
    if label_options is not None:
        raise OptionError(f"label_options={label_options!r} are for kind='labels'; this manager "
                          "has kind='soft'")
    return AssetOptions(**options)
