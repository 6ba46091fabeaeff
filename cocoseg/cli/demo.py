"""
``cocoseg demo``: the whole main job on imagery that comes with the package.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress


class DemoConfig(WriterConfig):
    """
    Stitch class probabilities over a real three-date image video.

    Fits a pixel classifier on public-domain NAIP imagery, runs it by
    overlapping windows, and writes one Cloud-Optimized GeoTIFF per frame, the
    kwcoco manifest, and a preview picture per frame.
    """

    __command__ = 'demo'
    __epilog__ = """
    Example:
        cocoseg demo --dst ./cocoseg_demo
    """

    dst = kwconf.Value('./cocoseg_demo', position=1, help='folder for the results')

    @run_command
    def main(config):
        from cocoseg.coco.demo import run_demo
        if config.dry_run:
            _preview(config)
            return
        result = run_demo(config.dst, progress=show_progress)
        say(f'manifest  {result.manifest_fpath}')
        for asset, preview in zip(result.asset_fpaths, result.preview_fpaths):
            say(f'heatmap   {asset}')
            say(f'preview   {preview}')
        for stage, seconds in result.timings.items():
            say(f'{stage:<9} {seconds:.1f} s')

    def describe_finished(self):
        """Return what is kept of a run that was cut short."""
        return f'{self.dst} holds what was finished; run it again to make the rest'


def _preview(config):
    """Print what would be made."""
    from cocoseg.cli.dry_run import begin_preview, check_folder, preview_output
    from cocoseg.coco.demo import VIDEO_NAME
    check_folder(os.path.join(config.dst, 'file'))
    begin_preview()
    say('images    3 frames of the package, which are copied')
    for name, what in ((f'{VIDEO_NAME}.kwcoco.json', ' (the input, with its images)'),
                       ('predictions.kwcoco.json', ''), ('_assets/demo', ' (a heatmap per frame)'),
                       ('previews', ' (a picture per frame)')):
        preview_output(os.path.join(config.dst, name), what)


__cli__ = DemoConfig
