"""
``cocoseg subset``: cut segments out of a label raster.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress


class SubsetConfig(WriterConfig):
    """
    Write the segments of a part of a label raster, numbered from 1.

    The part is a window, a box in world coordinates, what a mask covers, or
    both; without any of them all segments are numbered anew.
    """

    __command__ = 'subset'
    __epilog__ = """
    Example:
        cocoseg subset segments.tif part.tif --window 0 0 512 512
        cocoseg subset segments.tif part.tif --bounds 500000 5200000 501000 5201000
        cocoseg subset segments.tif part.tif --mask fields.tif --table stats.csv \\
            --dst_table part.csv
    """

    src = kwconf.Value(None, position=1, required=True, type=str, help=(
        'label raster of one band; 0 is null'))
    dst = kwconf.Value(None, position=2, required=True, type=str, help='label COG to write')
    window = kwconf.Value(None, nargs=4, type=int, help='part to keep, px: y0 x0 y1 x1')
    bounds = kwconf.Value(None, nargs=4, type=float, help=(
        'part to keep in world coordinates: xmin ymin xmax ymax'))
    mask = kwconf.Value(None, type=str, help='raster of the same size; where it is 0 is null')
    table = kwconf.Value(None, type=str, help='table of all segments, *.parquet or *.csv')
    dst_table = kwconf.Value(None, type=str, help=(
        'table of the new segments to write, with their original ids and areas, and the columns '
        'of --table'))
    compress = kwconf.Value('ZSTD', type=str, help='codec')
    blocksize = kwconf.Value(256, type=int, help='side of a tile, px')

    @run_command
    def main(config):
        from cocoseg.grid.window import Window
        from cocoseg.shepherd.segment_table import SegmentTable, check_table_path
        from cocoseg.shepherd.subset import subset_segments
        if config.table is not None and config.dst_table is None:
            from cocoseg.errors import OptionError
            raise OptionError('--table is for --dst_table; give both')
        if config.dst_table is not None:
            check_table_path(config.dst_table)
        source = None if config.table is None else SegmentTable.read(config.table)
        window = config.window and Window(*config.window)
        if config.dry_run:
            from cocoseg.cli.dry_run import preview_subset
            preview_subset(config, window)
            return
        result = subset_segments(
            config.src, config.dst, window,
            bounds=config.bounds, mask=config.mask, compress=config.compress,
            blocksize=config.blocksize, progress=show_progress)
        say(f'labels    {os.path.abspath(config.dst)}')
        say(f'segments  {result.n_segments}')
        if config.dst_table is not None:
            join_tables(result.table, source).write(config.dst_table)
            say(f'table     {os.path.abspath(config.dst_table)}')

    def list_outputs(self):
        """Return the paths that are written."""
        return [path for path in (self.dst, self.dst_table) if path is not None]


def join_tables(table, source):
    """
    Return the table of a subset with the columns of the table of all segments.

    Columns that are new ('original_id', 'area') go before old ones of the name.

    Args:
        table (SegmentTable): of a subset, with 'original_id'.
        source (SegmentTable | None): of all segments.

    Example:
        >>> from cocoseg.shepherd.segment_table import SegmentTable
        >>> import numpy as np
        >>> part = SegmentTable(np.array([1]), {'original_id': np.array([5])})
        >>> source = SegmentTable(np.array([4, 5]), {'mean': np.array([0.5, 0.25])})
        >>> join_tables(part, source).to_pandas().to_dict('list')
        {'original_id': [5], 'mean': [0.25]}
    """
    from cocoseg.shepherd.segment_table import SegmentTable
    if source is None:
        return table
    old = source.take(table['original_id'], new_ids=table.ids)
    columns = {name: column for name, column in old.columns.items() if name not in table.columns}
    return table.join(SegmentTable(old.ids, columns))


__cli__ = SubsetConfig
