"""
``cocoseg stats``: a table of the segments of a raster.
"""
from __future__ import annotations

import os

import kwconf

from cocoseg.cli.common import WriterConfig, run_command, say, show_progress


class StatsConfig(WriterConfig):
    """
    Measure the segments of a label raster, and their values in an image.

    The figures go to a table, to polygons, or into the attribute table of the
    label raster; more than one of them is possible.
    """

    __command__ = 'stats'
    __epilog__ = """
    Example:
        cocoseg stats segments.tif --image image.tif --stats mean,std,p90 --dst stats.parquet
        cocoseg stats segments.tif --stats area,centroid --dst stats.csv --polygons stats.gpkg
    """

    segments = kwconf.Value(None, position=1, required=True, type=str, help=(
        'label raster of one band; 0 is null'))
    image = kwconf.Value(None, type=str, help='raster of the same size, for statistics of values')
    stats = kwconf.Value('area', type=str, help=(
        'of values count,min,max,mean,std,median,mode,pP (a percentile, such as p90),variogram:D; '
        'of shapes area,area_crs,bbox,centroid,centroid_crs,perimeter,n_edge_pixels; with commas'))
    dst = kwconf.Value(None, type=str, help='table to write, *.parquet or *.csv')
    polygons = kwconf.Value(None, type=str, help='GeoPackage of outlines to write, *.gpkg')
    rat = kwconf.Flag(False, help=(
        'write into the attribute table of the label raster, of format HFA or KEA'))
    bands = kwconf.Value(None, nargs='+', type=int, help=(
        'bands of the image, counted from 0; default all'))
    nodata = kwconf.Value(None, nargs='+', type=float, help=(
        'value of invalid pixels, one or one per band; default that of the file'))
    missing = kwconf.Value(None, type=float, help=(
        'stands for no valid pixel; default NaN, and -9999 in columns of whole numbers'))
    block_rows = kwconf.Value(None, type=int, help='rows that are read at a time; default by size')
    num_threads = kwconf.Value(None, type=int, help='threads; default one per CPU')
    executor = kwconf.Value('serial', type=str, help=(
        'who measures: serial (with the threads), processes:N, dask, or dask:ADDRESS'))

    @run_command
    def main(config):
        from cocoseg.machine import count_cpus
        from cocoseg.shepherd.stats import segment_stats
        _check_targets(config)
        num_threads = count_cpus() if config.num_threads is None else config.num_threads
        options = {
            'bands': config.bands, 'nodata': 'file' if config.nodata is None else config.nodata,
            'missing': _as_whole(config.missing), 'block_rows': config.block_rows,
            'num_threads': num_threads, 'executor': config.executor}
        if config.dry_run:
            from cocoseg.cli.dry_run import preview_stats
            preview_stats(config, **options)
            return
        table = segment_stats(config.image, config.segments, config.stats, progress=show_progress,
                              **options)
        say(f'segments  {len(table)}')
        if config.dst is not None:
            table.write(config.dst)
            say(f'table     {os.path.abspath(config.dst)}')
        if config.polygons is not None:
            from cocoseg.io.vector import write_segment_polygons
            write_segment_polygons(config.segments, config.polygons, table)
            say(f'polygons  {os.path.abspath(config.polygons)}')
        if config.rat:
            from cocoseg.io.attribute_table import write_attribute_table
            write_attribute_table(config.segments, table)
            say(f'attributes of {os.path.abspath(config.segments)}')

    def list_outputs(self):
        """Return the paths that are written."""
        paths = (self.dst, self.polygons, self.segments if self.rat else None)
        return [path for path in paths if path is not None]


def _check_targets(config):
    """Raise before any work if a result could not be written."""
    from cocoseg.errors import OptionError
    if config.dst is None and config.polygons is None and not config.rat:
        raise OptionError('nothing is to be written; give --dst, --polygons or --rat')
    if config.dst is not None:
        from cocoseg.shepherd.segment_table import check_table_path
        check_table_path(config.dst)
    if config.polygons is not None:
        from cocoseg.io.vector import check_polygon_path
        check_polygon_path(config.polygons)
    if config.rat:
        from cocoseg.io.attribute_table import check_attribute_table_file
        check_attribute_table_file(config.segments)


def _as_whole(value):
    """
    Return a float as an int, where it is one.

    Example:
        >>> _as_whole(-1.0), _as_whole(0.5), _as_whole(None)
        (-1, 0.5, None)
    """
    return int(value) if value is not None and value.is_integer() else value


__cli__ = StatsConfig
