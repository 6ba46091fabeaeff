"""
Whether one type of pixels holds every value of another.

numpy's own 'safe' casts let whole numbers of 64 bits become floats, where the
large ones are rounded: an id of a label would be another.
"""
from __future__ import annotations

import numpy as np

from cocoseg.errors import OptionError


def holds(dtype, other):
    """
    Return True if every value of the type ``other`` is one of ``dtype``.

    Example:
        >>> from cocoseg.io.exactness import holds
        >>> holds('uint16', 'uint8'), holds('float32', 'int32'), holds('float64', 'int64')
        (True, False, False)
    """
    dtype, other = np.dtype(dtype), np.dtype(other)
    rounds = dtype.kind in 'fc' and other.kind in 'iu' and other.itemsize == 8
    return bool(np.can_cast(other, dtype, 'safe')) and not rounds


def check_holds(dtype, other, name):
    """
    Raise OptionError unless every value of the type ``other`` is one of ``dtype``.

    Args:
        dtype (dtype): of what is written to.
        other (dtype): of the pixels.
        name (str): what is written to, for the message.

    Example:
        >>> from cocoseg.io.exactness import check_holds
        >>> check_holds('uint8', 'bool', 'mask')
    """
    if not holds(dtype, other):
        raise OptionError(f'{name} of {np.dtype(dtype)} cannot hold all values of '
                          f'{np.dtype(other)}; convert the pixels, or choose another type for it')


def as_exact(value, dtype, name):
    """
    Return a number as one of a type, which must be the same number.

    Args:
        value (ndarray): of shape ().
        dtype (dtype): of what is written to.
        name (str): what is written to, for the message.

    Raises:
        OptionError: if the type does not have it.

    Example:
        >>> from cocoseg.io.exactness import as_exact
        >>> as_exact(np.asarray(7.0), 'uint8', 'mask')
        array(7, dtype=uint8)
    """
    with np.errstate(invalid='ignore', over='ignore'):
        found = value.astype(dtype)
    # Numbers of Python are compared exactly, those of numpy as floats.
    both_nan = bool(value != value) and bool(found != found)
    if found.item() != value.item() and not both_nan:
        raise OptionError(f'{name} of {np.dtype(dtype)} cannot hold {value}; give a number that it '
                          'holds')
    return found
