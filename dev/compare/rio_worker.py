"""
One file by rio-cogeo, in a process of its own: ``rio_worker.py --worker SRC DST``.

rasterio has its own copy of libgdal, which must not share a process with osgeo.
Imports and a first small file are not counted.
"""
from __future__ import annotations

import argparse
import time
import warnings

import bench_path  # noqa: F401
import harness
import numpy as np
from races_cog import BLOCKSIZE, NODATA


def translate(src, dst):
    """Write a COG as the other sides are asked to."""
    from rio_cogeo.cogeo import cog_translate
    from rio_cogeo.profiles import cog_profiles
    profile = {**cog_profiles.get('zstd'), 'blockxsize': BLOCKSIZE, 'blockysize': BLOCKSIZE,
               'predictor': 2, 'zstd_level': 1}
    cog_translate(src, dst, profile, in_memory=False, overview_resampling='average', quiet=True,
                  config={'GDAL_NUM_THREADS': 'ALL_CPUS',
                          'GDAL_TIFF_OVR_BLOCKSIZE': str(BLOCKSIZE)})


def warm():
    """Write a small file in memory."""
    from rasterio.io import MemoryFile
    with MemoryFile() as source, MemoryFile() as target:
        with source.open(driver='GTiff', width=64, height=64, count=1, dtype='int16',
                         nodata=NODATA) as small:
            small.write(np.ones((1, 64, 64), np.int16))
        with source.open() as small:
            translate(small, target.name)


def main():
    """Time one file, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument('--worker', metavar='SRC', required=True)
    parser.add_argument('dst')
    args = parser.parse_args()
    # Of the small file, which has no place in the world.
    warnings.simplefilter('ignore')
    warm()
    start = time.perf_counter()
    translate(args.worker, args.dst)
    harness.report_worker({'wall_s': time.perf_counter() - start})


if __name__ == '__main__':
    main()
