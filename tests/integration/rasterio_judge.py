"""
The judge of rasterio and rio-cogeo: paths in, facts out, both as JSON.

A program of its own, never imported: see :mod:`cog_judges`, which runs it.
"""
import json
import sys
import warnings

import rasterio
from cog_judges import as_image, fingerprint, judge_all, without_pixel_is
from rio_cogeo.cogeo import cog_validate


def judge(path):
    valid, errors, warned = cog_validate(path, strict=True, quiet=True)
    with rasterio.open(path) as src:
        facts = {
            'valid': valid, 'errors': errors, 'warnings': warned,
            'nodata': sorted({repr(value) for value in src.nodatavals}),
            'channels': [name or '' for name in src.descriptions],
            'scales': src.scales, 'offsets': src.offsets,
            'crs': src.crs.to_wkt() if src.crs else '',
            'epsg': src.crs.to_epsg() if src.crs else None,
            'geotransform': None if src.transform.is_identity else src.transform.to_gdal(),
            'metadata': without_pixel_is(src.tags()),
        }
        levels = [as_image(src.read())]
        n_levels = len(src.overviews(1))
    for index in range(n_levels):
        with rasterio.open(path, overview_level=index) as src:
            levels.append(as_image(src.read()))
    facts['levels'] = fingerprint(levels)
    return facts


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    print(json.dumps(judge_all(judge, json.load(sys.stdin))))
