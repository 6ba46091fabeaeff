"""
The program ``cocoseg``: hands over to one of its subcommands.
"""
# PYTHON_ARGCOMPLETE_OK
from __future__ import annotations

import importlib
import importlib.util
import os
import sys

# Name of a subcommand, which is that of its module.
COMMANDS = tuple(name for name in (
    'demo', 'mask', 'plan', 'predict', 'report', 'segment', 'stats', 'style', 'subset',
    'verify', 'watershed') if importlib.util.find_spec(f'cocoseg.cli.{name}') is not None)


def load_command(name):
    """
    Return the class of a subcommand.

    Args:
        name (str): one of ``COMMANDS``.

    Example:
        >>> from cocoseg.cli.main import load_command
        >>> load_command('verify').__command__
        'verify'
    """
    return importlib.import_module(f'cocoseg.cli.{name}').__cli__


def main(argv=None):
    """
    Run the command line.

    Args:
        argv (list[str] | None): arguments; None is those of the process.

    Returns:
        int: exit code: 0 if all went well, 1 if input or the run failed, 2 for
        wrong arguments, 130 after Ctrl-C, 143 after SIGTERM.

    Example:
        >>> from cocoseg.cli.main import main
        >>> main(['verify'])
        2
    """
    from cocoseg.cli.ending import Terminated, catching_terminate
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        with catching_terminate():
            return _dispatch(argv)
    except KeyboardInterrupt:
        print('cocoseg: error: interrupted', file=sys.stderr)
        return 130
    except Terminated as ex:
        print('cocoseg: error: terminated', file=sys.stderr)
        return ex.code


def _dispatch(argv):
    """Run one subcommand, or tell of all of them."""
    if '_ARGCOMPLETE' in os.environ:
        complete_words()
    if argv and argv[0] in COMMANDS:
        return load_command(argv[0]).main(argv=argv[1:])
    if argv[:1] == ['--version']:
        return _print_versions()
    import kwconf
    try:
        code = make_modal()().run(argv=argv)
    except kwconf.modal.NoCommandError:
        return 2
    return code if isinstance(code, int) else 0


def make_modal():
    """
    Return the class that tells of all subcommands.

    Example:
        >>> from cocoseg.cli.main import make_modal
        >>> assert 'verify' in make_modal()().argparse().format_help()
    """
    import kwconf

    from cocoseg import __version__

    class CocosegModal(kwconf.ModalCLI):
        """Stitch window-by-window predictions into Cloud-Optimized GeoTIFFs."""

        __prog__ = 'cocoseg'
        __epilog__ = (
            'Exit codes: 0 all went well, 1 input or the run failed, 2 wrong arguments,\n'
            '130 interrupted (Ctrl-C), 143 terminated (SIGTERM).\n\n'
            'Example:\n'
            '    cocoseg demo --dst ./cocoseg_demo\n'
            '    cocoseg predict --help')

    CocosegModal.__version__ = __version__
    for name in COMMANDS:
        CocosegModal.register(load_command(name))
    return CocosegModal


def _print_versions():
    from cocoseg.coco.versions import collect_versions
    for name, version in collect_versions().items():
        print(f'{_NAMES.get(name, name)} {version or "is not installed"}')
    return 0


_NAMES = {'sklearn': 'scikit-learn'}


def complete_words():
    """Answer a shell that completes a command line; ends the process then."""
    try:
        import argcomplete
    except ImportError:
        return
    argcomplete.autocomplete(make_parser())


def make_parser():
    """
    Return one parser of all subcommands with all their options.

    Example:
        >>> from cocoseg.cli.main import make_parser
        >>> make_parser().parse_args(['verify', 'a.tif', '--full']).full
        True
    """
    import argparse
    parser = argparse.ArgumentParser(prog='cocoseg')
    parser.add_argument('--version', action='store_true', help='print versions')
    commands = parser.add_subparsers()
    for name in COMMANDS:
        config = load_command(name)
        config().argparse(parser=commands.add_parser(name), special_options=True)
    return parser


if __name__ == '__main__':
    sys.exit(main())
