"""
The races to the validity mask of a raster, against a plain loop.

A GeoTIFF of 8 bands, uint16, tiles of 256 px, with a rotated collar of nodata
that is shifted a little from band to band. The race is to a file of 0 and 255:

* ours: ``compute_mask(src, dst, executor='threads:2')``, to a verified
  Cloud-Optimized GeoTIFF with overviews.
* plain: one thread that reads all bands of a block of 512 px, compares, reduces
  with numpy, and writes the block to a tiled GeoTIFF without compression. It
  ends when its file is closed.

Kinds: bands stored apart or together, compressed or not; masked where all or
where any band is nodata. After each round both files must be equal. Each kind
is a race of its own, and its input is removed when it ends. ``masks_memory``: what
a turn adds in a process of its own, for two heights.
"""
from __future__ import annotations

import functools
import os
import statistics
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import check_goal

BANDS, TILE, STRIP = 8, 256, 512
# Side of what the plain loop reads at a time, px; quicker than single tiles.
LOOP = 512
PACKAGES = ['numpy', 'numba', 'gdal']
EXECUTOR = 'threads:2'
LEAST_RATIO, MOST_ADDED_MB, MOST_GROWTH_MB = 5, 256, 64
_CODECS = {'deflate': ['COMPRESS=DEFLATE', 'PREDICTOR=2', 'ZLEVEL=1'],
           'zstd': ['COMPRESS=ZSTD', 'PREDICTOR=2', 'ZSTD_LEVEL=1'], 'none': []}
# name -> (interleave, codec, logic)
KINDS = {
    **{f'masks_{interleave}_{codec}': (interleave, codec, 'all')
       for interleave in ('band', 'pixel') for codec in _CODECS},
    'masks_band_zstd_any': ('band', 'zstd', 'any'),
    'masks_pixel_zstd_any': ('pixel', 'zstd', 'any'),
}


def make_rows(first, stop, shape, texture):
    """Return (8, h, W) uint16 of some rows: smooth land with noise, in a rotated frame."""
    height, width = shape
    x, y = np.arange(width), np.arange(first, stop)[:, None]
    rows = np.empty((BANDS, stop - first, width), np.uint16)
    for band in range(BANDS):
        u, v = x + 0.2 * y - 0.12 * width + 3 * band, y - 0.2 * x + 0.1 * height
        inside = (u > 0) & (u < 0.95 * width) & (v > 0) & (v < 0.95 * height)
        land = 1500 + 900 * np.sin((x + 37 * band) / 300) * np.cos(y / 220)
        noise = np.roll(texture[:stop - first], 991 * band + first, axis=1)
        rows[band] = np.where(inside, np.clip(land + noise, 1, None), 0)
    return rows


def write_input(fpath, shape, interleave, codec):
    """Write the raster, strip by strip."""
    from osgeo import gdal
    height, width = shape
    texture = np.random.default_rng(0).normal(0, 40, (STRIP, width)).astype(np.float32)
    options = ['TILED=YES', f'BLOCKXSIZE={TILE}', f'BLOCKYSIZE={TILE}', 'BIGTIFF=YES',
               f'INTERLEAVE={interleave.upper()}', *_CODECS[codec]]
    raster = gdal.GetDriverByName('GTiff').Create(
        os.fspath(fpath), width, height, BANDS, gdal.GDT_UInt16, options)
    for number in range(BANDS):
        raster.GetRasterBand(number + 1).SetNoDataValue(0)
    for first in range(0, height, STRIP):
        raster.WriteArray(make_rows(first, min(first + STRIP, height), shape, texture), 0, first)
    raster.FlushCache()


def mask_with_cocoseg(src, dst, logic):
    """Run ours."""
    from cocoseg import compute_mask
    compute_mask(src, dst, logic=logic, executor=EXECUTOR, overwrite=True)


def mask_with_loop(src, dst, logic):
    """Run the plain loop."""
    from osgeo import gdal
    raster = gdal.Open(os.fspath(src))
    height, width = raster.RasterYSize, raster.RasterXSize
    target = gdal.GetDriverByName('GTiff').Create(
        os.fspath(dst), width, height, 1, gdal.GDT_Byte,
        ['TILED=YES', f'BLOCKXSIZE={TILE}', f'BLOCKYSIZE={TILE}'])
    band = target.GetRasterBand(1)
    for y in range(0, height, LOOP):
        for x in range(0, width, LOOP):
            data = raster.ReadAsArray(x, y, min(LOOP, width - x), min(LOOP, height - y))
            nodata = data == 0
            masked = nodata.all(axis=0) if logic == 'all' else nodata.any(axis=0)
            band.WriteArray(np.where(masked, np.uint8(0), np.uint8(255)), x, y)
    target.FlushCache()


RUNS = {'cocoseg': mask_with_cocoseg, 'plain': mask_with_loop}


def check_equal(folder):
    """Raise RuntimeError unless both files hold the same mask; return its valid share."""
    from osgeo import gdal
    n_valid = 0
    rasters = [gdal.Open(str(folder / f'{name}.tif')) for name in RUNS]
    height, width = rasters[0].RasterYSize, rasters[0].RasterXSize
    for first in range(0, height, STRIP):
        ours, theirs = (raster.ReadAsArray(0, first, width, min(STRIP, height - first))
                        for raster in rasters)
        if not np.array_equal(ours, theirs):
            raise RuntimeError(f'the masks differ in rows {first} to {first + STRIP}')
        n_valid += int((ours == 255).sum())
    return n_valid / (height * width)


def measure(name, folder, logic):
    """Run one contestant; return its times."""
    dst = folder / f'{name}.tif'
    dst.unlink(missing_ok=True)
    cpu, start = time.process_time(), time.perf_counter()
    RUNS[name](folder / 'input.tif', dst, logic)
    return {'wall_s': time.perf_counter() - start, 'cpu_s': time.process_time() - cpu}


def run_race(kind, script, args):
    """Measure one kind, print the table, and return the result to store."""
    size, rounds = args.size, args.rounds
    interleave, codec, logic = KINDS[kind]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_input(folder / 'input.tif', (size, size), interleave, codec)
        os.sync()
        input_mb = (folder / 'input.tif').stat().st_size / 1e6
        medians, values = harness.run_rounds(
            {name: functools.partial(measure, name, folder, logic) for name in RUNS}, rounds)
        valid = check_equal(folder)
    ratio = medians['plain']['wall_s'] / medians['cocoseg']['wall_s']
    goals = [check_goal(f'plain loop / compute_mask, {kind}', ratio, LEAST_RATIO, unit='x')]
    result = {'size': size, 'bands': BANDS, 'interleave': interleave, 'codec': codec,
              'logic': logic, 'rounds': rounds, 'input_mb': input_mb,
              'valid_percent': 100 * valid, 'medians': medians, 'ratio': ratio, 'goals': goals,
              'values': values, 'machine': harness.get_machine(),
              'versions': harness.get_versions(PACKAGES)}
    harness.print_table(
        f'{kind}: {size}x{size}x{BANDS} uint16, {input_mb:.0f} MB, {100 * valid:.0f} % valid, '
        f'medians of {rounds}', ['who', 'total s', 'CPU s', 'MPix/s'],
        [(name, f'{row["wall_s"]:.3f}', f'{row["cpu_s"]:.3f}',
          f'{size * size / row["wall_s"] / 1e6:.0f}') for name, row in medians.items()])
    harness.print_goals(goals)
    return result


def measure_memory(name, size):
    """Return the memory that one run adds, MB; in a process of its own."""
    height = size if name == 'low' else 2 * size
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for path, shape in (('small.tif', (600, 600)), ('input.tif', (height, size))):
            write_input(folder / path, shape, 'band', 'zstd')
        mask_with_cocoseg(folder / 'small.tif', folder / 'out.tif', 'all')
        base = harness.start_peak_mb()
        mask_with_cocoseg(folder / 'input.tif', folder / 'out.tif', 'all')
        return {'added_mb': harness.peak_rss_mb() - base}


def run_memory(script, args):
    """Measure both heights, and return the result to store."""
    size, rounds = args.size, args.rounds
    values = {name: [harness.run_worker(script, f'masks_memory:{name}', ['--size', size])
                     for _ in range(rounds)] for name in ('low', 'high')}
    found = {name: statistics.median(turn['added_mb'] for turn in turns)
             for name, turns in values.items()}
    goals = [check_goal('added memory of compute_mask', found['high'], MOST_ADDED_MB,
                        at_most=True, unit=' MB'),
             check_goal('added memory of compute_mask, twice the height: more by',
                        found['high'] - found['low'], MOST_GROWTH_MB, at_most=True, unit=' MB')]
    harness.print_goals(goals)
    return {'size': size, 'rounds': rounds, 'medians': found, 'goals': goals, 'values': values,
            'machine': harness.get_machine(), 'versions': harness.get_versions(PACKAGES)}


RACES = {**{kind: functools.partial(run_race, kind) for kind in KINDS},
         'masks_memory': run_memory}
WORKERS = {'masks_memory': measure_memory}
