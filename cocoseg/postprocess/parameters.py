"""
What a watershed depends on, as one value that can be compared, stored and enumerated.
"""
from __future__ import annotations

import dataclasses
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from cocoseg.errors import OptionError

METHODS = ('mutex', 'boundary', 'distance', 'foreground')
# As dacapo's WatershedPostProcessor enumerates them.
DEFAULT_BIASES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclasses.dataclass(frozen=True)
class WatershedParameters:
    """
    How predictions become instances.

    In this order: smooth the predictions (``sigma``), mask them
    (``threshold``), find fragments in each block with its surroundings
    (``context``), join them across blocks, drop fragments that do not hold
    together (``bias``, ``filter_fragments``) and small ones (``min_size``).

    Args:
        offsets (Sequence[Sequence[int]]): of method 'mutex', one per channel:
            channel i at p tells whether p and p + offset i are one object.
            One entry per axis, (y, x) or (z, y, x), px.
        threshold (float | None): pixels of foreground are at least this. What
            is compared is, by method: the mean over the channels; for
            'boundary' 1 minus the boundary; the distance, px; the foreground.
            None masks nothing, and cannot be for the last two.
        sigma (float): width of the Gaussian that smooths predictions, px.
        min_size (int): px that an instance needs, counted when blocks are
            joined.
        bias (float): subtracted from affinities: above it they attract, below
            it they repel.
        context (int | Sequence[int]): what a block reads around its core, px.
        method (str): 'mutex': mutex watershed of affinities [MWS]_. 'boundary',
            'distance', 'foreground': a seeded watershed on a map of boundaries
            (0..1), of distances to the boundary (px), or on the distances
            inside of a map of foreground.
        seed_distance (int): of the seeded methods: seeds are higher than all
            within this distance, px.
        filter_fragments (bool): of method 'mutex': drop instances whose mean
            affinity is below ``bias``.

    Raises:
        OptionError: for a value that has no meaning, or a context smaller than
            the largest offset.

    References:
        .. [MWS] Wolf et al., The Mutex Watershed, 2018.
           <https://arxiv.org/abs/1904.12654>

    Example:
        >>> from cocoseg import WatershedParameters
        >>> parameters = WatershedParameters(offsets=[(0, 1), (1, 0), (0, -9)], min_size=20)
        >>> parameters.context, parameters.patch(bias=0.25).bias
        ((32, 32), 0.25)
    """

    offsets: tuple[tuple[int, ...], ...] = ()
    threshold: float | None = None
    sigma: float = 0.0
    min_size: int = 0
    bias: float = 0.5
    context: int | tuple[int, ...] = 32
    method: str = 'mutex'
    seed_distance: int = 5
    filter_fragments: bool = True

    if TYPE_CHECKING:
        # The fields say what is kept; this, what may be given.
        def __init__(self, offsets: Sequence[Sequence[int]] = (), threshold: float | None = None,
                     sigma: float = 0.0, min_size: int = 0, bias: float = 0.5,
                     context: int | Sequence[int] = 32, method: str = 'mutex',
                     seed_distance: int = 5, filter_fragments: bool = True) -> None: ...

    def __post_init__(self):
        put = object.__setattr__
        if self.method not in METHODS:
            raise OptionError(f'method={self.method!r} is unknown; use one of {METHODS}')
        put(self, 'offsets', as_offsets(self.offsets, self.method))
        for name in ('min_size', 'seed_distance'):
            put(self, name, _as_count(getattr(self, name), name))
        for name in ('bias', 'sigma'):
            _check_number(name, getattr(self, name), least=None if name == 'bias' else 0)
        if self.threshold is not None:
            _check_number('threshold', self.threshold)
        elif self.method in ('distance', 'foreground'):
            raise OptionError(f'method={self.method!r} needs a threshold, above which there is '
                              'an object')
        if self.seed_distance < 1:
            raise OptionError(f'seed_distance={self.seed_distance} must be at least 1 px')
        put(self, 'context', self._check_context())

    def _check_context(self):
        """Return one number per axis where the axes are known, else the int."""
        is_sequence = isinstance(self.context, (tuple, list))
        context = tuple(_as_count(extent, 'context')
                        for extent in (self.context if is_sequence else [self.context]))
        if not self.offsets:
            return context if is_sequence else context[0]
        ndim = len(self.offsets[0])
        context = context if is_sequence else context * ndim
        if len(context) != ndim:
            raise OptionError(f'context={self.context} must have one entry per axis, of which the '
                              f'offsets have {ndim}')
        reach = tuple(max(abs(offset[axis]) for offset in self.offsets) for axis in range(ndim))
        if any(extent < most for extent, most in zip(context, reach)):
            raise OptionError(f'context={context} is smaller than the largest offsets {reach}; '
                              'blocks would not see whom their pixels attract')
        return context

    def patch(self, **changes: Any) -> WatershedParameters:
        """Return a copy with other values."""
        return dataclasses.replace(self, **changes)

    def as_context(self, ndim: int) -> tuple[int, ...]:
        """Return the context per axis."""
        context = self.context if isinstance(self.context, tuple) else (self.context,) * ndim
        if len(context) != ndim:
            raise OptionError(f'context={context} is for {len(context)} axes, the data have {ndim}')
        return context

    def as_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for JSON."""
        values = dataclasses.asdict(self)
        values['offsets'] = [list(offset) for offset in self.offsets]
        if isinstance(self.context, tuple):
            values['context'] = list(self.context)
        return values


def enumerate_parameters(base: WatershedParameters,
                         **choices: Sequence) -> Iterator[WatershedParameters]:
    """
    Yield all combinations of some values, the last choice changing fastest.

    Args:
        base (WatershedParameters): of all that is not a choice.
        **choices (Sequence): values by name of a parameter. Without any, the
            biases 0.1, 0.25, 0.5, 0.75 and 0.9.

    Yields:
        WatershedParameters: one per combination.

    Raises:
        OptionError: for a name that is no parameter, or one without values.

    Example:
        >>> from cocoseg import WatershedParameters, enumerate_parameters
        >>> base = WatershedParameters(offsets=[(0, 1), (1, 0)])
        >>> [(p.bias, p.min_size) for p in enumerate_parameters(base, bias=[0.2, 0.4],
        ...                                                     min_size=[0, 9])]
        [(0.2, 0), (0.2, 9), (0.4, 0), (0.4, 9)]
        >>> [p.bias for p in enumerate_parameters(base)]
        [0.1, 0.25, 0.5, 0.75, 0.9]
    """
    choices = choices or {'bias': DEFAULT_BIASES}
    known = [field.name for field in dataclasses.fields(WatershedParameters)]
    unknown = sorted(set(choices) - set(known))
    empty = [name for name, values in choices.items() if not len(values)]
    if unknown or empty:
        raise OptionError(f'choices {unknown or empty} ' + (
            f'are no parameters; there are {known}' if unknown else 'have no values'))
    for values in itertools.product(*choices.values()):
        yield base.patch(**dict(zip(choices, values)))


def as_offsets(offsets, method='mutex'):
    """
    Return offsets as a tuple of tuples of ints.

    Raises:
        OptionError: if there are none for a mutex watershed, some for another
            method, or they are no vectors of two or three whole numbers, each
            once and none zero.

    Example:
        >>> from cocoseg.postprocess.parameters import as_offsets
        >>> as_offsets([[0, 1], [1, 0]])
        ((0, 1), (1, 0))
    """
    try:
        found = tuple(tuple(operator.index(step) for step in offset) for offset in offsets)
    except TypeError:
        raise OptionError(f'offsets={offsets!r} must be a list of vectors of whole pixels, such '
                          'as [(0, 1), (1, 0)]') from None
    if method != 'mutex':
        if found:
            raise OptionError(f'offsets={found} are for method="mutex", not {method!r}')
        return found
    if not found:
        raise OptionError('a mutex watershed needs offsets, one per channel of the affinities')
    if len({len(offset) for offset in found}) > 1 or len(found[0]) not in (2, 3):
        raise OptionError(f'offsets={found} must all have two or three entries, one per axis')
    if len(set(found)) < len(found) or any(not any(offset) for offset in found):
        raise OptionError(f'offsets={found} must be different from each other, and not zero')
    return found


def _as_count(value, name):
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if count < 0 or isinstance(value, bool):
        raise OptionError(f'{name}={value!r} must be a whole number of at least 0')
    return count


def _check_number(name, value, least=None):
    is_number = isinstance(value, (int, float)) or hasattr(value, 'dtype')
    if not is_number or not math.isfinite(value) or (least is not None and value < least):
        limit = '' if least is None else f' of at least {least}'
        raise OptionError(f'{name}={value!r} must be a finite number{limit}')
