"""
``cocoseg verify``: tell whole results from those that only look so.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import CommandConfig, run_command
from cocoseg.engine.texts import format_bytes

_MANIFESTS = ('.json', '.zip')
_STYLES = {'ok': 'green', 'bad': 'bold red', 'skipped': 'yellow'}
_COLUMNS = '{:<8}{:>9}{:>8}{:>10}  '


class VerifyConfig(CommandConfig):
    """
    Check that files are complete Cloud-Optimized GeoTIFFs.

    A file must be whole to the byte: every tile stored, in its place, with its
    marks, and nothing lost at the end. Of a kwcoco manifest, every asset that
    cocoseg made is checked, also against its entry and its journal. All files
    are gone through; the exit code is 1 if one of them is bad or missing.
    """

    __command__ = 'verify'
    # It would be a path.
    __flags_take_words__ = False
    __epilog__ = """
    Example:
        cocoseg verify heatmap.tif other.tif
        cocoseg verify pred/pred.kwcoco.json --full
    """

    paths = kwconf.Value(None, position=1, nargs='+', parser=str, required=True, help=(
        'files to check; of a kwcoco manifest (*.json, *.zip) the assets'))
    full = kwconf.Flag(False, help=(
        'also decode every pixel, and compare the checksums in journals'))
    all = kwconf.Flag(False, help=(
        'also check the assets of a manifest that cocoseg did not make, such as its inputs'))

    @run_command
    def main(config):
        from cocoseg.errors import CogError
        table = _Table(config.quiet)
        for path in config.paths:
            if path.lower().endswith(_MANIFESTS) and not os.path.isdir(path):
                _verify_manifest(path, config, table)
            else:
                from cocoseg.coco.audit import check_file
                table.add(check_file(path, full=config.full))
        table.close()
        n_bad = table.counts['bad']
        if n_bad:
            raise CogError(f'{n_bad} of {sum(table.counts.values())} files are bad or missing; '
                           'make them again, a run with --resume makes only those')


def _verify_manifest(path, config, table):
    """Check the assets of a manifest, and put them into the table."""
    from cocoseg.coco.audit import AssetCheck, audit_manifest
    from cocoseg.errors import ManifestError
    try:
        audit = audit_manifest(path, full=config.full, all_assets=config.all, on_check=table.add)
    except (ManifestError, OSError) as ex:
        table.add(AssetCheck(path, None, 'bad', getattr(ex, 'strerror', None) or str(ex)))
        return
    for note in audit.notes:
        table.note(note)


class _Table:
    """Print a line per file as soon as it is checked, and count them."""

    def __init__(self, quiet):
        from rich.console import Console
        # A path with brackets or colons is no markup.
        self._console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._quiet = quiet
        self._is_begun = False
        self.counts = {'ok': 0, 'bad': 0, 'skipped': 0}

    def add(self, check):
        """Print a check, unless nobody asked for it."""
        self.counts[check.status] += 1
        is_input = check.status == 'skipped' and check.problem is None
        if is_input or (self._quiet and check.status != 'bad'):
            return
        if not self._is_begun:
            self._print(_COLUMNS.format('status', 'size', 'tiles', 'ms') + 'file', 'bold')
            self._is_begun = True
        status = 'BAD' if check.status == 'bad' else check.status
        tiles = '-' if check.n_tiles is None else check.n_tiles
        size = '-' if check.nbytes is None else format_bytes(check.nbytes)
        line = _COLUMNS.format(status, size, tiles,
                               f'{check.seconds * 1e3:.1f}')
        reason = '' if check.problem is None else f': {check.problem}'
        self._print(f'{line}{check.path}{reason}', _STYLES[check.status])

    def note(self, text):
        """Print what is good to know."""
        if not self._quiet:
            self._print(f'note: {text}')

    def close(self):
        """Print the sum of it."""
        if not self._quiet:
            self._print(', '.join(f'{count} {status}' for status, count in self.counts.items()))

    def _print(self, text, style=None):
        # Names of files need not be text.
        self._console.print(text.encode('utf8', 'backslashreplace').decode(), style=style)


__cli__ = VerifyConfig
