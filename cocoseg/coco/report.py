"""
The report of a bundle: one HTML page that shows what a manifest holds.

Here the facts are collected, as frozen values: what the audit found, what the journals
and the records of runs tell, and which images are shown. Pictures are made by
:mod:`cocoseg.coco.report_layers`, the page by :mod:`cocoseg.coco.report_page`. Nothing
of the bundle is changed. All texts of a manifest are untrusted until the page is made.
"""
from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone

from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.drawing import make_ramp
from cocoseg.coco.geometry import stitchspace_dsize
from cocoseg.coco.journal import list_journals
from cocoseg.coco.report_layers import DrawOptions, draw_layers, is_ours, plan_layers
from cocoseg.coco.report_read import Grid
from cocoseg.coco.run_record import RunRecord, read_run_record
from cocoseg.coco.versions import collect_versions
from cocoseg.errors import CocosegError, ManifestError, OptionError
from cocoseg.protocols import PathLike, Progress

_ENDINGS = ('.html', '.htm')
_SIDES = (16, 8192)  # px


# ---- values ----------------------------------------------------------------

@dataclass(frozen=True)
class RunReport:
    """
    What is known of a run that wrote assets.

    Attributes:
        name (str): of its journal, with its folder, relative to the bundle.
        settings (tuple[tuple[str, str], ...]): that change the bytes.
        record (RunRecord | None): its time and memory, if they were recorded.
    """

    name: str
    settings: tuple[tuple[str, str], ...]
    record: RunRecord | None


@dataclass(frozen=True)
class ImageReport:
    """
    One image of a report.

    Attributes:
        image_id (int): of kwcoco.
        name (str): for people.
        facts (tuple[tuple[str, str], ...]): such as its date and size.
        shape (tuple[int, int] | None): (h, w) of its pictures, px.
        pictures (tuple[Picture, ...]): all of one shape.
        checks (tuple[AssetCheck, ...]): of the files that it names.
        notes (tuple[str, ...]): what is not shown.
        problem (str | None): why there are no pictures.
    """

    image_id: int
    name: str
    facts: tuple[tuple[str, str], ...]
    shape: tuple[int, int] | None = None
    pictures: tuple = ()
    checks: tuple = ()
    notes: tuple[str, ...] = ()
    problem: str | None = None


@dataclass(frozen=True)
class Report:
    """
    All that the page says, but for the pictures.

    Attributes:
        title (str): of the page.
        fpath (str): the manifest.
        made (str): when, ISO 8601, UTC.
        n_images (int): of the manifest.
        n_shown (int): of them on the page.
        facts (tuple[tuple[str, str], ...]): about the dataset.
        counts (dict[str, int]): files by status, 'ok', 'bad', 'skipped' and
            'input'.
        bad (tuple[AssetCheck, ...]): of all images, also those not shown.
        notes (tuple[str, ...]): of the audit.
        runs (tuple[RunReport, ...]): that wrote assets.
        versions (dict): of what made the page.
        max_side (int): longest side of pictures, px.
    """

    title: str
    fpath: str
    made: str
    n_images: int
    n_shown: int
    facts: tuple[tuple[str, str], ...]
    counts: dict
    bad: tuple
    notes: tuple[str, ...]
    runs: tuple[RunReport, ...]
    versions: dict
    max_side: int


@dataclass(frozen=True)
class ReportSummary:
    """
    What :func:`write_report` wrote.

    Attributes:
        fpath (str): the page, absolute.
        n_images (int): of the manifest.
        n_shown (int): of them on the page.
        n_checked (int): files that the audit could tell whole from broken.
        n_bad (int): of them, bad or missing.
        n_failed (int): pictures that could not be drawn, also of inputs.
        nbytes (int): size of the page.
    """

    fpath: str
    n_images: int
    n_shown: int
    n_checked: int
    n_bad: int
    n_failed: int
    nbytes: int


# ---- the report ------------------------------------------------------------

def write_report(manifest: PathLike, dst: PathLike, *, images: Iterable[int] | None = None,
                 limit: int = 24, max_side: int = 768, max_channels: int = 12, cmap: str = 'magma',
                 full: bool = False, all_assets: bool = False,
                 progress: Progress | None = None) -> ReportSummary:
    """
    Write one HTML page about a manifest, its images and its runs.

    The page needs nothing but itself: no network, no file beside it. Per image
    it has the photo, a heatmap and a histogram of each channel, classes, masks,
    disagreement, segments and coverage, as far as there are any, and a slider
    that compares two of them. A file that is bad or missing has a red entry.

    Args:
        manifest (str | PathLike): kwcoco, ``.json`` or ``.zip``. Not changed, nor is
            anything that it names.
        dst (str | PathLike): page to write, ``.html``; its folder exists.
        images (Iterable[int] | None): ids of those to show; None is the first.
        limit (int): show at most so many; the page says how many there are.
        max_side (int): longest side of pictures, px, 16 to 8192.
        max_channels (int): pictures of one asset at most.
        cmap (str): colormap of heatmaps, see
            :func:`~cocoseg.coco.drawing.make_ramp`.
        full, all_assets (bool): of
            :func:`~cocoseg.coco.audit.audit_manifest`.
        progress (Callable | None): wraps an iterable, called with ``total``
            and ``desc``; for example ``ubelt.ProgIter``.

    Returns:
        ReportSummary: also if files are bad.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ManifestError: if it cannot be read as one.
        OptionError: for an option that cannot be used, an image that is not
            there, or a ``dst`` that the manifest needs.
        AssetWriteError: if the page cannot be written.
        MissingDependencyError: without jinja2, or GDAL.

    Example:
        >>> import kwcoco, ubelt as ub
        >>> from cocoseg.coco.report import write_report
        >>> dset = kwcoco.CocoDataset.demo('shapes2', image_size=(64, 64))
        >>> dst = ub.Path.appdir('cocoseg/doctest/page').ensuredir() / 'report.html'
        >>> summary = write_report(dset.fpath, dst, limit=1)
        >>> summary.n_shown, summary.n_images, summary.n_bad
        (1, 2, 0)
        >>> assert '1 of 2 images' in dst.read_text()
    """
    from cocoseg.coco.report_page import check_jinja, encode_image, write_page
    from cocoseg.io.commit import check_writable
    options = _check_options(limit, max_side, max_channels, cmap)
    check_jinja()
    manifest, dst = (os.path.abspath(os.fspath(path)) for path in (manifest, dst))
    # What is wrong is said before the long work.
    _check_dst(dst, manifest)
    dset = _open(manifest)
    shown = _choose_images(dset, images, limit)
    check_writable(dst)
    audit = _audit(manifest, full, all_assets)
    checks = _group_checks(audit)
    _check_dst(dst, manifest, *(check.path for check in audit.checks))
    report = _describe(dset, audit, shown, options)
    steps = shown if progress is None else progress(shown, total=len(shown), desc='draw')
    n_failed, encoded = 0, []
    for image_id in steps:
        # One image at a time is drawn, and only its compressed pictures are kept.
        image = _report_image(dset, image_id, checks.get(image_id, ()), options)
        n_failed += (image.problem is not None) + sum(
            picture.problem is not None for picture in image.pictures)
        encoded.append(encode_image(image))
    nbytes = write_page(dst, report, encoded)
    n_bad = len(report.bad)
    return ReportSummary(dst, report.n_images, len(shown), report.counts['ok'] + n_bad, n_bad,
                         n_failed, nbytes)


def _check_options(limit, max_side, max_channels, cmap):
    low, high = _SIDES
    for name, value, least, most in (('limit', limit, 1, None), ('max_side', max_side, low, high),
                                     ('max_channels', max_channels, 1, None)):
        if not isinstance(value, int) or value < least or (most is not None and value > most):
            limits = f'of at least {least}' if most is None else f'in {least}..{most}'
            raise OptionError(f'{name}={value!r} must be a whole number {limits}')
    make_ramp(cmap)
    return DrawOptions(max_side, max_channels, cmap)


def _check_dst(dst, *paths):
    """Raise if the page would replace one of the files that it is about."""
    if not dst.lower().endswith(_ENDINGS):
        raise OptionError(f'dst={dst} must end with .html, as it is a page')
    if os.path.realpath(dst) in map(os.path.realpath, paths):
        raise OptionError(f'dst={dst} is the manifest or one of its files; choose another name')


def _open(manifest):
    """Return the dataset."""
    import kwcoco
    # A missing file must not look like a wrong one.
    os.stat(manifest)
    try:
        return kwcoco.CocoDataset(manifest)
    except Exception as ex:
        # Whatever is in the file, kwcoco takes it at its word.
        raise _refuse(manifest, ex) from ex


def _refuse(manifest, cause):
    return ManifestError(f'{manifest} cannot be read as a kwcoco manifest: '
                         f'{type(cause).__name__}: {cause}; give a *.json or *.zip of kwcoco')


def _audit(manifest, full, all_assets):
    """Return what is found of the files; entries of a wrong kind make it no manifest."""
    try:
        return audit_manifest(manifest, full=full, all_assets=all_assets)
    except (TypeError, AttributeError, KeyError) as ex:
        if isinstance(ex, CocosegError):
            raise
        raise _refuse(manifest, ex) from ex


def _group_checks(audit):
    """Return the checks of each image, in the order of its files."""
    checks = {}
    for check in audit.checks:
        checks.setdefault(check.image_id, []).append(check)
    return checks


def _choose_images(dset, images, limit):
    """Return the ids of the images to show."""
    known = dset.index.imgs
    wanted = list(known) if images is None else list(dict.fromkeys(images))
    unknown = [image_id for image_id in wanted if image_id not in known]
    if unknown:
        raise OptionError(f'images: the manifest has no images {unknown[:5]}; its ids are '
                          f'{list(known)[:5]} and so on')
    return wanted[:limit]


# ---- one image -------------------------------------------------------------

def _report_image(dset, image_id, checks, options):
    """Return an image with its pictures; whatever is wrong with it is in there."""
    img = dset.index.imgs[image_id]
    facts = [('id', str(image_id))]
    facts += [(label, str(img[key])) for label, key in (('date', 'date_captured'),
              ('sensor', 'sensor_coarse'), ('frame', 'frame_index'))
              if img.get(key) is not None]
    name = str(img.get('name') or f'image {image_id}')
    try:
        dsize = stitchspace_dsize(img, None, 'image')
        if min(dsize) < 1:
            raise ManifestError(f'image {image_id} is {dsize[0]} × {dsize[1]} px')
        plans = plan_layers(img, checks)
    except Exception as ex:
        # An entry of a manifest may be anything.
        return ImageReport(image_id, name, tuple(facts), checks=tuple(checks), problem=str(ex))
    grid = Grid.fit(dsize, options.max_side)
    facts.append(('size', f'{dsize[0]:,} × {dsize[1]:,} px'))
    if grid.shape != dsize[::-1]:
        facts.append(('shown at', f'{grid.shape[1]} × {grid.shape[0]} px'))
    pictures, notes = draw_layers(img, plans, grid, options)
    if not any(is_ours(check) for check in checks):
        notes = [*notes, 'this image has no predictions']
    if not any(plan.kind == 'photo' for plan in plans):
        notes = [*notes, 'this image has no input file on this machine, so there is no photo']
    return ImageReport(image_id, name, tuple(facts), grid.shape, tuple(pictures), tuple(checks),
                       tuple(notes))


# ---- the dataset -----------------------------------------------------------

def _describe(dset, audit, shown, options):
    """Return what the page says of the manifest as a whole."""
    n_inputs = sum(not is_ours(check) for check in audit.checks)
    counts = {status: len(audit.select(status)) for status in ('ok', 'bad', 'skipped')}
    counts.update(skipped=counts['skipped'] - n_inputs, input=n_inputs)
    name = os.path.basename(audit.fpath)
    return Report(
        title=name, fpath=audit.fpath, n_images=len(dset.index.imgs), n_shown=len(shown),
        made=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        facts=tuple(_list_facts(dset)), counts=counts, bad=tuple(audit.select('bad')),
        notes=audit.notes, runs=tuple(_list_runs(audit)), versions=collect_versions(),
        max_side=options.max_side)


def _list_facts(dset):
    """Yield (what, value) of a dataset, for people."""
    images = list(dset.index.imgs.values())
    sizes = [(img['width'], img['height']) for img in images
             if isinstance(img.get('width'), int) and isinstance(img.get('height'), int)]
    yield 'images', f'{len(images):,}'
    yield 'with predictions', f'{sum(bool(img.get("has_predictions")) for img in images):,}'
    yield 'videos', f'{len(dset.index.videos):,}'
    yield 'annotations', f'{len(dset.index.anns):,}'
    if dset.index.cats:
        yield 'categories', _join([cat.get('name') for cat in dset.index.cats.values()])
    if sizes:
        areas = [width * height for width, height in sizes]
        (low_w, low_h), (high_w, high_h) = (pick(sizes, key=lambda size: size[0] * size[1])
                                            for pick in (min, max))
        yield 'image size', (f'{low_w:,} × {low_h:,} px' if low_w * low_h == high_w * high_h else
                             f'{low_w:,} × {low_h:,} to {high_w:,} × {high_h:,} px')
        yield 'pixels', f'{sum(areas) / 1e6:,.2f} million'
    specs = Counter(str(asset['channels']) for img in images
                    for asset in (img, *(img.get('assets') or ()), *(img.get('auxiliary') or ()))
                    if asset.get('channels'))
    if specs:
        yield 'channels', _join([f'{spec} ({count})' for spec, count in specs.items()])
    sensors = {str(img['sensor_coarse']) for img in images if img.get('sensor_coarse')}
    if sensors:
        yield 'sensors', _join(sorted(sensors))


def _join(names, most=12):
    """
    Return names with commas, the first ones if there are many.

    Example:
        >>> _join(['a', 'b']), _join('abc', most=2)
        ('a, b', 'a, b and 1 more')
    """
    names = [str(name) for name in names]
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + more


def _list_runs(audit):
    """Yield the runs whose journals lie beside the assets of a manifest."""
    bundle = os.path.dirname(audit.fpath)
    folders = dict.fromkeys(os.path.dirname(check.path) for check in audit.checks)
    for folder in folders:
        for journal in list_journals(folder):
            yield RunReport(os.path.relpath(journal, bundle), tuple(_read_settings(journal)),
                            read_run_record(journal))


def _read_settings(journal):
    """Return the (name, value) of the last whole line of a journal, as texts."""
    found = {}
    with open(journal, encoding='utf8', errors='replace') as file:
        for line in file:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict) and isinstance(entry.get('settings'), dict):
                found = entry['settings']
    return [(str(name), str(value)) for name, value in sorted(found.items())]
