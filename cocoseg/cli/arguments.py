"""
From words and files to the options of a command.

Precedence: the command line, over a file of ``--config``, over defaults.
"""
from __future__ import annotations

import os
import re

# What a flag takes for its value where that is a word of its own.
_TRUTHS = {'true': 'True', 'false': 'False', '1': 'True', '0': 'False'}


class ArgumentError(ValueError):
    """Arguments, or a file of them, that make no sense."""


def read_arguments(cls, argv, data=None):
    """
    Return the options of a command.

    Args:
        cls (type): a :class:`cocoseg.cli.common.CommandConfig`.
        argv (Sequence[str] | bool): of this command; False is none.
        data (dict | None): options by name, below the command line.

    Raises:
        ValueError: for a file with unknown options, with values that they
            cannot have, or that is none, and for options that are missing.
        OSError: if a file of ``--dump`` cannot be written.
        SystemExit: for words that make no sense (2), ``--help`` and ``--dump``
            (0).

    Example:
        >>> from cocoseg.cli.subset import SubsetConfig
        >>> config = read_arguments(SubsetConfig, ['-vv', 'a.tif', 'b.tif', '--window', *'0188'])
        >>> config.src, config.dst, config.window, config.verbose
        ('a.tif', 'b.tif', [0, 1, 8, 8], 2)
    """
    told = {}
    if not isinstance(argv, bool):
        argv = prepare_words(cls, argv)
        has_file = getattr(cls, '__special_options__', False)
        parser = cls().argparse(special_options=has_file)
        fpath = getattr(parser.parse_args(argv), 'config', None)
        if fpath is not None:
            told = read_options(cls, fpath)
    config = cls.cli(argv=argv, data=data, strict=True, autocomplete=False)
    for name, value in told.items():
        # What the command line says is not that of the file, or the same.
        if config[name] == value:
            config[name] = _coerce(name, cls.__default__[name], value)
    return config


def prepare_words(cls, argv):
    """
    Return words in which no flag takes the next one for its value.

    Args:
        cls (type): of the command; one with a method ``protect_words`` changes
            them first.
        argv (Sequence[str]): of this command.

    Example:
        >>> from cocoseg.cli.verify import VerifyConfig
        >>> prepare_words(VerifyConfig, ['--full', 'a.tif', '-qv', 'b.tif', '--no-all'])
        ['--verbose=1', 'a.tif', 'b.tif', '--full=True', '--quiet=True', '--all=False']
    """
    if hasattr(cls, 'protect_words'):
        argv = cls.protect_words(argv)
    flags = {spelled: name for name, value in cls.__default__.items() if _is_flag(value)
             for spelled in (f'--{name}', f'--{name.replace("_", "-")}')}
    takes_words = getattr(cls, '__flags_take_words__', True)
    found, last, n_verbose, rest = [], [], None, list(argv)
    # Between paths of one list no option may stand.
    place = found if takes_words else last
    while rest and rest[0] != '--':
        word = rest.pop(0)
        is_off = word.startswith('--no-')
        name = flags.get(f'--{word[5:]}' if is_off else word)
        if name == 'verbose':
            has_count = bool(rest) and rest[0].isdecimal() and not is_off
            n_verbose = int(rest.pop(0)) if has_count else 0 if is_off else (n_verbose or 0) + 1
        elif name is not None:
            takes_word = bool(rest) and rest[0].lower() in _TRUTHS and takes_words
            value = _TRUTHS[rest.pop(0).lower()] if takes_word else 'True'
            place.append(f'--{name}={_negate(value) if is_off else value}')
        elif re.fullmatch('-[vq]+', word) and 'quiet' in cls.__default__:
            n_verbose = (n_verbose or 0) + word.count('v') if 'v' in word else n_verbose
            place += ['--quiet=True'] if 'q' in word else []
        else:
            found.append(word)
    first = [] if n_verbose is None else [f'--verbose={n_verbose}']
    return [*first, *found, *last, *rest]


def _is_flag(value):
    return bool(getattr(value, 'isflag', False))


def _negate(value):
    return 'False' if value == 'True' else 'True'


# -- files

def read_options(cls, fpath):
    """
    Return the options of a file, YAML or JSON, as they are in it.

    Args:
        cls (type): of the command.
        fpath (str): ``*.json``, or YAML.

    Raises:
        ArgumentError: if there is no such file, or not of a mapping, or with
            options or values that the command does not have.
    """
    if not os.path.isfile(fpath):
        raise ArgumentError(f'--config={fpath} is no file')
    try:
        with open(fpath, encoding='utf8') as file:
            found = _parse(file, fpath)
    except (OSError, ValueError) as ex:
        reason = ' '.join(str(ex).split())
        raise ArgumentError(f'--config={fpath} cannot be read: {reason}') from ex
    found = {} if found is None else found
    if not isinstance(found, dict):
        raise ArgumentError(f'--config={fpath} is no mapping of options to values')
    unknown = [str(name) for name in found if name not in cls.__default__]
    if unknown:
        raise ArgumentError(f'--config={fpath} has unknown options: {", ".join(unknown)}')
    for name, value in found.items():
        _coerce(name, cls.__default__[name], value)
    return found


def _parse(file, fpath):
    import json
    if fpath.lower().endswith('.json'):
        return json.load(file)
    import yaml
    try:
        return yaml.safe_load(file)
    except yaml.YAMLError as ex:
        raise ValueError(str(ex)) from ex


def _coerce(name, template, value):
    """
    Return a value of a file as the command line would have made it.

    Example:
        >>> import kwconf
        >>> _coerce('window', kwconf.Value(None, nargs='+', type=int), 64)
        [64]
        >>> _coerce('sigma', kwconf.Value(0.0, type=float), '1e-3')
        0.001
    """
    if value is None or not hasattr(template, 'parsekw'):
        return value
    if _is_flag(template):
        is_right = isinstance(value, bool) or (
            template.isflag == 'counter' and isinstance(value, int))
        if not is_right:
            raise ArgumentError(f'{name}: {value!r} must be true or false')
        return value
    # An option that may stand alone is true in a file.
    bare = getattr(template, 'bare', None)
    if isinstance(value, bool) and isinstance(bare, str):
        return bare if value else None
    nargs = template.parsekw['nargs']
    if nargs in (None, '?'):
        return _coerce_one(name, template, value)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if isinstance(nargs, int) and len(values) != nargs:
        raise ArgumentError(f'{name}: {value!r} must be {nargs} values')
    return [one if template.type is str and isinstance(one, list)
            else _coerce_one(name, template, one) for one in values]


def _coerce_one(name, template, value):
    kind, choices = template.type, template.parsekw['choices']
    if isinstance(value, (list, dict, bool)):
        raise ArgumentError(f'{name}: {value!r} must be one {_describe(kind)}')
    try:
        found = value if kind is None else kind(value)
    except (TypeError, ValueError, OverflowError):
        found = None
    # 2.5 is no whole number.
    if found is None or (kind is int and not isinstance(value, str) and found != value):
        raise ArgumentError(f'{name}: {value!r} must be a {_describe(kind)}')
    if choices and found not in choices:
        raise ArgumentError(f'{name}: {value!r} must be one of {", ".join(map(str, choices))}')
    return found


def _describe(kind):
    return {int: 'whole number', float: 'number'}.get(kind, 'text')
