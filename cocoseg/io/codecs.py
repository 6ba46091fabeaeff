"""
Compression options, checked against what the writer can really do.

Cloud-Optimized GeoTIFFs are compressed by imagecodecs, plain TIFFs by GDAL.
GDAL only warns about an unknown option and then writes an uncompressed file;
here a wrong option is an error before anything is written.
"""
from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np

from cocoseg.errors import OptionError
from cocoseg.io.gdal_gate import require_gdal

_ALIASES = {None: 'NONE', 'RAW': 'NONE', 'ZSTANDARD': 'ZSTD', 'ZIP': 'DEFLATE', 'GZIP': 'DEFLATE'}
_LOSSY = ('JPEG', 'WEBP')
# Bilevel fax codecs cannot hold our pixels.
_BILEVEL = ('CCITTRLE', 'CCITTFAX3', 'CCITTFAX4')
_WITH_PREDICTOR = ('ZSTD', 'DEFLATE', 'LZW')
_LEVELS = {
    'ZSTD': (1, 22), 'LERC_ZSTD': (1, 22), 'DEFLATE': (1, 9), 'LERC_DEFLATE': (1, 9),
    'LZMA': (0, 9)}
_LEVEL_OPTIONS = {
    'ZSTD': 'ZSTD_LEVEL', 'LERC_ZSTD': 'ZSTD_LEVEL', 'DEFLATE': 'ZLEVEL',
    'LERC_DEFLATE': 'ZLEVEL', 'LZMA': 'LZMA_PRESET'}
# The fastest ZSTD level loses 2 to 15 % of size against level 9, at an eighth of its time.
_DEFAULT_LEVELS = {'ZSTD': 1, 'LERC_ZSTD': 1}
# Numbers of TIFF's compression tag. LERC has its second codec in a tag of its own.
_TAGS = {'NONE': 1, 'LZW': 5, 'DEFLATE': 8, 'LZMA': 34925, 'ZSTD': 50000, 'LERC': 34887,
         'LERC_DEFLATE': 34887, 'LERC_ZSTD': 34887}


@dataclass(frozen=True)
class Codec:
    """
    A checked compression.

    Attributes:
        name (str): GDAL's name.
        level (int | None): None where the codec has none, or for GDAL's default.
        predictor (int): TIFF's number: 1 none, 2 differences, 3 floating point.
    """

    name: str
    level: int | None = None
    predictor: int = 1

    @classmethod
    def coerce(cls, compress, level, predictor, dtype, driver='COG'):
        """
        Check the compression options of a TIFF.

        Args:
            compress (str | None): name of a lossless codec, any case.
            level (int | None): effort of the codec; None for the default.
            predictor (str | int | None): 'auto', 1 (or None), 2 or 3.
            dtype (np.dtype): of the pixels.
            driver (str): what writes: 'COG' is ours, 'GTiff' GDAL's.

        Returns:
            Codec: the checked values.

        Raises:
            OptionError: if the writer does not have the codec, or an option
                does not fit it.

        Example:
            >>> from cocoseg.io.codecs import Codec
            >>> import numpy as np
            >>> Codec.coerce('zstd', None, 'auto', np.dtype('int16'))
            Codec(name='ZSTD', level=1, predictor=2)
            >>> Codec.coerce('raw', None, 'auto', np.dtype('float32'))
            Codec(name='NONE', level=None, predictor=1)
        """
        name = _coerce_name(compress, driver)
        return cls(name, _coerce_level(name, level), _coerce_predictor(name, predictor, dtype))

    @property
    def tag(self):
        """Number of the compression in a TIFF."""
        return _TAGS[self.name]

    def gtiff_options(self):
        """Return creation options for GDAL's GTiff driver."""
        options = [f'COMPRESS={self.name}']
        if self.name in _WITH_PREDICTOR:
            options.append(f'PREDICTOR={self.predictor}')
        if self.level is not None:
            options.append(f'{_LEVEL_OPTIONS[self.name]}={self.level}')
        return options


def list_codecs(driver='COG'):
    """
    List the lossless codecs of a writer: imagecodecs for COG, else GDAL.

    Args:
        driver (str): 'COG' or 'GTiff'.

    Returns:
        list[str]: their names, as GDAL spells them.

    Example:
        >>> from cocoseg.io.codecs import list_codecs
        >>> assert {'NONE', 'DEFLATE', 'LZW'} <= set(list_codecs())
    """
    if driver == 'COG':
        import imagecodecs
        return [name for name in _TAGS
                if all(getattr(imagecodecs, part).available for part in name.split('_'))]
    gdal = require_gdal()
    text = gdal.GetDriverByName(driver).GetMetadataItem('DMD_CREATIONOPTIONLIST')
    values = ElementTree.fromstring(text).findall("Option[@name='COMPRESS']/Value")
    return [value.text for value in values if value.text not in _LOSSY + _BILEVEL]


def _coerce_name(compress, driver):
    """Return GDAL's name of a codec that it has."""
    if compress is not None and not isinstance(compress, str):
        raise OptionError(f'compress={compress!r} must be the name of a codec, or None')
    name = compress and compress.strip().upper()
    name = _ALIASES.get(name, name)
    known = list_codecs(driver)
    if name in _LOSSY:
        raise OptionError(
            f'compress={compress!r} changes pixel values; use a lossless one of {known}')
    if name not in known:
        raise OptionError(
            f'compress={compress!r} is unknown, or not in this build of '
            f'{"imagecodecs" if driver == "COG" else "GDAL"}; use one of {known}')
    return name


def _coerce_level(name, level):
    """Return a level that the codec has."""
    if level is None:
        return _DEFAULT_LEVELS.get(name)
    if name not in _LEVELS:
        raise OptionError(f'compress={name!r} has no level, but level={level!r} was given')
    low, high = _LEVELS[name]
    if isinstance(level, bool) or level not in range(low, high + 1):
        raise OptionError(f'level={level!r} is not in {low}..{high}, the levels of {name}')
    return int(level)


def _coerce_predictor(name, predictor, dtype):
    """Return TIFF's number of a predictor that fits codec and pixels."""
    is_float = np.dtype(dtype).kind == 'f'
    if predictor == 'auto':
        return (3 if is_float else 2) if name in _WITH_PREDICTOR else 1
    if predictor in (None, 1):
        return 1
    if name not in _WITH_PREDICTOR:
        raise OptionError(f"predictor={predictor!r} does not fit compress={name!r}; use 'auto'")
    if predictor not in (2, 3) or (predictor == 3 and not is_float):
        raise OptionError(
            f"predictor={predictor!r} does not fit pixels of type {dtype}; use 'auto', "
            '1 (none), 2 (differences) or 3 (floating point only)')
    return int(predictor)
