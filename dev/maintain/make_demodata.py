#!/usr/bin/env python
"""
Recreate the packaged demo data by cropping three public NAIP images.

Usage::

    python dev/maintain/make_demodata.py NAIP_FOLDER [OUT_FOLDER]

``NAIP_FOLDER`` holds ``m_4709963_se_14_1_{20090818,20120731,20180716}.tif`` of
the ``opengeos/data`` repository (folder ``naip``); their SHA-256 are checked
first. The same pixel window is cut from every file, so the natural differences
stay: the grids differ by 2 to 3 m at 5 m pixels, and the 2012 frame, whose
original is one row shorter, is one row shorter here too. The size stays at
or below 512 pixels, where a valid Cloud-Optimized GeoTIFF needs no overviews.
Needs the GDAL Python binding.
"""
import argparse
import hashlib
import os
from pathlib import Path

#: SHA-256 of each original, by date.
ORIGINALS = {
    '20090818': (
        '568f0d3dc3118d6df63510361db6c627b81541ad4c65122caf54e18030fc7100'),
    '20120731': (
        '695ff3bef666f84b9d8bee8292c21be1edf5fbd52b0db839a40a949403799dc4'),
    '20180716': (
        '599bb9bb7f78e9a1f3e0e712290e6423e2f513c69afc00a18ff586a6fcd4aba7'),
}

#: Column and row of the crop's corner: lakes, crops, bare fields and a road.
X_OFF, Y_OFF = 340, 176
WIDTH, HEIGHT = 512, 480
FULL_HEIGHT = 724
BANDS = ('red', 'green', 'blue', 'nir')
CREATION_OPTIONS = [
    'TILED=YES', 'BLOCKXSIZE=256', 'BLOCKYSIZE=256', 'COMPRESS=DEFLATE',
    'PREDICTOR=2', 'ZLEVEL=9', 'PHOTOMETRIC=MINISBLACK', 'ALPHA=NO',
]


def sha256(fpath):
    """Return the SHA-256 of a file as hexadecimal text."""
    return hashlib.sha256(Path(fpath).read_bytes()).hexdigest()


def crop(src, dst):
    """Write the crop of the file ``src`` to the new file ``dst``."""
    from osgeo import gdal
    gdal.UseExceptions()
    source = gdal.Open(str(src))
    missing_rows = FULL_HEIGHT - source.RasterYSize
    part = dst.with_name(dst.name + '.part')
    out = gdal.GetDriverByName('GTiff').Create(
        str(part), WIDTH, HEIGHT - missing_rows, len(BANDS), gdal.GDT_Byte,
        options=CREATION_OPTIONS)
    x0, dx, _, y0, _, dy = source.GetGeoTransform()
    out.SetGeoTransform((x0 + X_OFF * dx, dx, 0, y0 + Y_OFF * dy, 0, dy))
    out.SetProjection(source.GetProjection())
    out.WriteRaster(0, 0, out.RasterXSize, out.RasterYSize, source.ReadRaster(
        X_OFF, Y_OFF, out.RasterXSize, out.RasterYSize))
    for index, name in enumerate(BANDS, start=1):
        band = out.GetRasterBand(index)
        band.SetDescription(name)
        band.SetNoDataValue(0)
    out.FlushCache()
    out = band = None
    os.replace(part, dst)


def main(argv=None):
    """Check the originals, write the crops and print their checksums."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('naip_folder', type=Path)
    parser.add_argument('out_folder', type=Path, nargs='?', default=Path(
        __file__).resolve().parents[2] / 'cocoseg/coco/demodata')
    args = parser.parse_args(argv)
    args.out_folder.mkdir(parents=True, exist_ok=True)
    for date, expected in ORIGINALS.items():
        name = f'm_4709963_se_14_1_{date}.tif'
        src, dst = args.naip_folder / name, args.out_folder / name
        found = sha256(src)
        if found != expected:
            raise SystemExit(
                f'{src} has SHA-256 {found}, expected {expected}; get the '
                'file from the opengeos/data repository again')
        crop(src, dst)
        print(f'{sha256(dst)}  {dst.stat().st_size:7d}  {name}')


if __name__ == '__main__':
    main()
