"""
Audit a manifest: is every asset that it names whole?

Ours are the assets that a journal beside them names, or that hold channels
which their image lists in ``has_predictions``. A Cloud-Optimized GeoTIFF shows
by itself that it is complete; other formats only against their journal.
Nothing is changed, and no manager is needed.
"""
from __future__ import annotations

import os
import time
from dataclasses import dataclass

from cocoseg.coco.journal import compute_checksum, list_journals, read_journaled
from cocoseg.coco.manifest import list_channels
from cocoseg.errors import CocosegError, CogError, ManifestError, MissingDependencyError
from cocoseg.io.verify import verify_cog

_NO_JOURNAL = 'cannot be checked without its journal'
_HINTS = b'GDAL_STRUCTURAL_METADATA_SIZE='
_MAGICS = (b'II*\0', b'MM\0*', b'II+\0', b'MM\0+', b'\x89PNG')
_HEAD = 64  # bytes, with the beginning of the hints
_STEP = 2 ** 22  # pixels that are decoded at a time


@dataclass(frozen=True)
class AssetCheck:
    """
    What was found of one asset.

    Attributes:
        path (str): of the file, absolute.
        image_id (int | None): kwcoco image; None if no manifest is about it.
        status (str): 'ok', 'bad' or 'skipped'.
        problem (str | None): what is wrong, or why it was skipped; None for a
            skipped input.
        nbytes (int | None): size of the file, if it is there.
        n_tiles (int | None): stored tiles of all levels of a COG.
        seconds (float): that the check took.
    """

    path: str
    image_id: int | None
    status: str
    problem: str | None = None
    nbytes: int | None = None
    n_tiles: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Audit:
    """
    What was found of a manifest.

    Attributes:
        fpath (str): of the manifest.
        checks (tuple[AssetCheck, ...]): of every file that it names.
        notes (tuple[str, ...]): what is no error, but good to know.
    """

    fpath: str
    checks: tuple[AssetCheck, ...]
    notes: tuple[str, ...]

    def select(self, status):
        """Return the checks with a status, a list."""
        return [check for check in self.checks if check.status == status]


def audit_manifest(fpath, *, full=False, all_assets=False, on_check=None):
    """
    Check every asset of ours that a kwcoco manifest names.

    Each must be there, be a complete COG
    (:func:`~cocoseg.io.verify.verify_cog`), agree in height, width and bands
    with its entry, and have the size that its journal tells. A TIFF without
    the layout hints of a COG has nothing that would show damage but its
    checksum, so that is compared, too. A PNG is opened.

    Args:
        fpath (str | PathLike): the manifest (.json, or .zip). Not changed.
        full (bool): also compare the checksums in the journals, and decode
            every pixel.
        all_assets (bool): also check what is not ours: a COG in the same way,
            anything else must open.
        on_check (Callable[[AssetCheck], None] | None): told of each asset as
            soon as it is checked.

    Returns:
        Audit: checks in the order of the manifest, and notes about journaled
        files that the manifest does not name, and temporary files that killed
        processes left.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ManifestError: if it cannot be read as one.
        MissingDependencyError: without GDAL, where pixels or another format
            than COG are to be read.

    Example:
        >>> import ubelt as ub
        >>> from cocoseg.coco.audit import audit_manifest
        >>> from cocoseg.coco.example import demo_coco_stitching_manager
        >>> dpath = ub.Path.appdir('cocoseg/doctest/audit').delete().ensuredir()
        >>> fpath = dpath / 'data.kwcoco.json'
        >>> size = fpath.write_text('{"images": [{"id": 1, "file_name": "a.png"}]}')
        >>> [check.status for check in audit_manifest(fpath).checks]
        ['skipped']
        >>> audit_manifest(fpath, all_assets=True).checks[0].problem
        'there is no such file'
    """
    fpath = os.path.abspath(os.fspath(fpath))
    assets = _list_assets(fpath)
    folders = list(dict.fromkeys(os.path.dirname(path) for path, _, _ in assets))
    journals = {name: read_journaled(name) for folder in folders
                for name in list_journals(folder)}
    records = {path: record for journal in journals.values() for path, record in journal.items()}
    # Loads what reads channels, which is not the time of the first check.
    list_channels('loaded')
    checks = []
    for path, asset, img in assets:
        told = img.get('has_predictions')
        is_ours = path in records or isinstance(told, dict) and asset.get('channels') in told
        if is_ours or all_assets:
            check = _check_asset(path, asset, img.get('id'), records.get(path), is_ours, full)
        else:
            check = AssetCheck(path, img.get('id'), 'skipped')
        checks.append(check)
        if on_check is not None:
            on_check(check)
    named = {path for path, _, _ in assets}
    return Audit(fpath, tuple(checks), (*_note_unnamed(journals, named), *_note_orphans(folders)))


def check_file(path, *, full=False):
    """
    Check one Cloud-Optimized GeoTIFF that no manifest is about.

    Args:
        path (str | PathLike): the file.
        full (bool): also decode every pixel.

    Returns:
        AssetCheck: also for a file that is missing or cannot be read.

    Raises:
        MissingDependencyError: without GDAL, if ``full``.

    Example:
        >>> from cocoseg.coco.audit import check_file
        >>> check = check_file('no_such_file.tif')
        >>> check.status, check.problem
        ('bad', 'there is no such file')
    """
    path = os.fspath(path)
    return _run_check(path, None, lambda: (None, verify_cog(path, full=full).n_tiles))


def _list_assets(fpath):
    """Return (path, entry, image) of every file that a manifest names."""
    import kwcoco
    # A missing file must not look like a wrong one.
    os.stat(fpath)
    try:
        # Not by the index: of two images with one id it has one.
        return list(_iter_assets(fpath, kwcoco.CocoDataset(fpath).dataset['images']))
    except Exception as ex:
        # Whatever is in the file, kwcoco takes it at its word.
        raise ManifestError(f'{fpath} cannot be read as a kwcoco manifest: '
                            f'{type(ex).__name__}: {ex}; give a *.json or *.zip of kwcoco') from ex


def _iter_assets(fpath, images):
    """Yield the items of :func:`_list_assets`."""
    folder = os.path.dirname(fpath)
    for img in images:
        for asset in (img, *(img.get('assets') or ()), *(img.get('auxiliary') or ())):
            name = asset.get('file_name')
            if name and _is_remote(name):
                yield name, asset, img
            elif name:
                yield os.path.normpath(os.path.join(folder, name)), asset, img


def _is_remote(name):
    return '://' in name or name.startswith('/vsi')


# ---- one asset -------------------------------------------------------------

class _Unknown(Exception):
    """Why nothing can be said of a file."""


def _run_check(path, image_id, inspect):
    """Return what ``inspect`` finds: it raises, or returns a problem and the tiles."""
    start, nbytes, n_tiles = time.perf_counter(), None, None
    try:
        nbytes = None if _is_remote(path) else os.stat(path).st_size
        problem, n_tiles = inspect()
        status = 'bad' if problem else 'ok'
    except _Unknown as ex:
        status, problem = 'skipped', str(ex)
    except MissingDependencyError:
        raise
    except CogError as ex:
        # Its cause is the reason alone, without the path.
        status, problem = 'bad', str(ex.__cause__ or ex)
    except FileNotFoundError:
        status, problem = 'bad', 'there is no such file'
    except (CocosegError, OSError, ValueError) as ex:
        status, problem = 'bad', getattr(ex, 'strerror', None) or str(ex)
    return AssetCheck(path, image_id, status, problem, nbytes, n_tiles,
                      time.perf_counter() - start)


def _check_asset(path, asset, image_id, record, is_ours, full):
    """Check one asset of an image, against its entry and its journal."""
    def inspect():
        if _is_remote(path):
            raise _Unknown('it is not on this machine')
        if not os.path.isfile(path):
            return 'it is no file', None
        nbytes = os.path.getsize(path)
        if record is not None and nbytes != record['nbytes']:
            return f'it has {nbytes} bytes, its journal says {record["nbytes"]}', None
        with open(path, 'rb') as file:
            head = file.read(_HEAD)
        report = verify_cog(path, full=full) if _HINTS in head else None
        n_tiles = None if report is None else report.n_tiles
        is_mute = report is None and path.lower().endswith(('.tif', '.tiff'))
        if record is not None and (full or is_mute) and (
                compute_checksum(path) != record['checksum']):
            return 'its bytes have changed: the checksum is not that of its journal', n_tiles
        if report is None and is_ours and record is None:
            _refuse_unknown(head)
        facts = _inspect_other(path, full) if report is None else report
        return _compare_entry(asset, facts, is_ours), n_tiles
    return _run_check(path, image_id, inspect)


def _refuse_unknown(head):
    """Raise, for a file of ours that has neither hints nor a journal."""
    if not head.startswith(_MAGICS):
        raise CogError(f'it is no image, it starts with {head[:4]!r}')
    raise _Unknown(_NO_JOURNAL)


def _inspect_other(path, full):
    """Return the facts of a raster that is no COG; decode it if asked to."""
    from cocoseg.grid.window import Window
    from cocoseg.io.raster import raster_info, read_raster
    info = raster_info(path)
    height, width, _ = info.shape
    step = max(1, _STEP // width)
    for y0 in range(0, height if full else 0, step):
        read_raster(path, Window(y0, 0, min(y0 + step, height), width))
    return info


def _compare_entry(asset, facts, is_ours):
    """Return where an entry of the manifest disagrees with its file, or None."""
    for name, found in zip(('height', 'width', 'num_bands'), facts.shape):
        told = asset.get(name)
        if isinstance(told, (int, float)) and told != found:
            return f'its {name} is {found}, the manifest says {told}'
    if not is_ours or not asset.get('channels'):
        return None
    channels = tuple(list_channels(asset['channels']))
    if len(channels) != facts.shape[2]:
        return f'it has {facts.shape[2]} bands, the manifest says {asset["channels"]!r}'
    if None not in facts.channels and facts.channels != channels and any(facts.channels):
        return (f'its bands are {"|".join(facts.channels)!r}, the manifest says '
                f'{asset["channels"]!r}')
    return None


# ---- notes -----------------------------------------------------------------

def _note_unnamed(journals, named):
    """Yield a note for each journal of files that the manifest does not name."""
    for fpath, records in journals.items():
        unnamed = [path for path in records if path not in named]
        if unnamed:
            yield (f'{fpath} has {len(unnamed)} finished files that the manifest does not name, '
                   f'the first is {os.path.basename(unnamed[0])}; a run that resumes takes them '
                   'over')


def _note_orphans(folders):
    """Yield a note for each folder where killed processes left temporary files."""
    from cocoseg.io.commit import list_orphans
    for folder in folders:
        try:
            orphans = [os.path.basename(path) for path in list_orphans(folder)]
        except OSError:
            # Each file in there is reported.
            continue
        if orphans:
            yield (f'{folder} has {len(orphans)} temporary files of processes that ended, the '
                   f'first is {orphans[0]}; the next run removes them')
