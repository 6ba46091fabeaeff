"""
``cocoseg style``: styles by which QGIS shows assets in color.
"""
from __future__ import annotations

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say


class StyleConfig(WriterConfig):
    """
    Write a QGIS style beside each asset that cocoseg made.

    QGIS takes it when the file is opened: names and colors of classes, colors
    of segments, a ramp over the range of a heatmap. The manifest is not
    changed, and a style that was saved in QGIS is kept.
    """

    __command__ = 'style'
    __epilog__ = """
    Example:
        cocoseg style pred/pred.kwcoco.json
        cocoseg style pred/pred.kwcoco.json --channels water
    """

    manifest = kwconf.Value(None, position=1, type=str, required=True, help=(
        'kwcoco manifest (*.json, *.zip)'))
    channels = kwconf.Value(None, type=str, help=(
        'assets that have one of these channels, also those that cocoseg did not make; the first '
        'of them is shown'))

    def list_outputs(self):
        """Return nothing: styles are beside the assets."""
        return []

    @run_command
    def main(config):
        from cocoseg.coco.dataset import load_dataset
        from cocoseg.coco.styles import list_styles, write_styles
        dset = load_dataset(config.manifest)
        if config.dry_run:
            from cocoseg.cli.dry_run import begin_preview, preview_output
            begin_preview(config.manifest)
            for fpath in list_styles(dset, config.channels):
                preview_output(fpath)
            return
        for fpath in write_styles(dset, config.channels):
            say(f'style     {fpath}')


__cli__ = StyleConfig
