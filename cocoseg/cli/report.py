"""
``cocoseg report``: one HTML page that shows what a manifest holds.
"""
from __future__ import annotations

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress


class ReportConfig(WriterConfig):
    """
    Write one HTML page about a manifest: pictures, histograms, checks, runs.

    The page needs no network and no file beside it. Per image there are the
    photo, a heatmap of each channel, classes, masks, disagreement, segments
    and coverage, and a slider that compares two of them. The page is written
    also if files are bad or missing, which it shows in red; the exit code is 1
    then, as that of verify.
    """

    __command__ = 'report'
    __epilog__ = """
    Example:
        cocoseg report pred/pred.kwcoco.json --dst report.html
        cocoseg report pred/pred.kwcoco.json --dst report.html --images 3 7 --max_side 1200
    """

    manifest = kwconf.Value(None, position=1, type=str, required=True, help=(
        'kwcoco manifest (*.json, *.zip)'))
    dst = kwconf.Value(None, type=str, required=True, help='page to write, *.html')
    images = kwconf.Value(None, nargs='+', type=int, help=(
        'ids of the images to show; default the first'))
    limit = kwconf.Value(24, type=int, help='show at most so many images')
    max_side = kwconf.Value(768, type=int, help='longest side of pictures, px')
    max_channels = kwconf.Value(12, type=int, help='pictures of one file at most')
    cmap = kwconf.Value('magma', type=str, help='colormap of heatmaps')
    full = kwconf.Flag(False, help=(
        'also decode every pixel, and compare the checksums in journals'))
    all = kwconf.Flag(False, help=(
        'also check the files that cocoseg did not make, such as the inputs'))

    def list_outputs(self):
        """Return the path of the page."""
        return [self.dst]

    @run_command
    def main(config):
        from cocoseg.coco.report import write_report
        from cocoseg.errors import CogError
        options = {'images': config.images, 'limit': config.limit, 'max_side': config.max_side,
                   'max_channels': config.max_channels, 'cmap': config.cmap, 'full': config.full,
                   'all_assets': config.all}
        if config.dry_run:
            from cocoseg.cli.dry_run import begin_preview, preview_output, run_until_work
            begin_preview(config.manifest)
            n_images = run_until_work(write_report, config.manifest, config.dst, **options)
            preview_output(config.dst, f', images: {n_images}')
            return
        summary = write_report(config.manifest, config.dst, progress=show_progress, **options)
        say(f'report    {summary.fpath}')
        say(f'images    {summary.n_shown} of {summary.n_images}')
        say(f'size      {summary.nbytes / 1e6:.1f} MB')
        if summary.n_failed:
            say(f'problems  {summary.n_failed} pictures cannot be made; the page says why')
        if summary.n_bad:
            raise CogError(f'{summary.n_bad} of {summary.n_checked} files are bad or missing, the '
                           'page is written; make them again, a run with --resume makes only '
                           'those')


__cli__ = ReportConfig
