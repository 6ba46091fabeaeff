"""
``cocoseg demo``: the whole main job on imagery that comes with the package.
"""
from __future__ import annotations

import kwconf

from cocoseg.cli.common import run_command, show_progress


class DemoConfig(kwconf.Config):
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
        result = run_demo(config.dst, progress=show_progress)
        print(f'manifest  {result.manifest_fpath}')
        for asset, preview in zip(result.asset_fpaths, result.preview_fpaths):
            print(f'heatmap   {asset}')
            print(f'preview   {preview}')
        for stage, seconds in result.timings.items():
            print(f'{stage:<9} {seconds:.1f} s')


__cli__ = DemoConfig
