"""
Where an asset lies: transforms between spaces, world coordinates, regions.

Transforms are named ``A_from_B`` and use the pixel-corner convention of
GDAL geotransforms and of ``delayed_image``: (0, 0) is the outer corner of the
top-left pixel.
"""
from __future__ import annotations

import logging
import os

import numpy as np

from cocoseg.errors import ManifestError, OptionError

logger = logging.getLogger(__name__)


def coerce_scale(scale):
    """
    Return ``warp_asset_from_stitchspace`` as a ``kwimage.Affine``.

    Args:
        scale (None | float | tuple[float, float] | Affine | ndarray | dict):
            None is 1; a pair is (sx, sy); anything else that
            ``kwimage.Affine.coerce`` reads.

    Raises:
        OptionError: if it is not finite or cannot be inverted.

    Example:
        >>> coerce_scale((0.5, 2)).concise()['scale'] == (0.5, 2.0)
        True
    """
    import kwimage
    if isinstance(scale, (list, np.ndarray)) and np.shape(scale) == (2,):
        scale = tuple(float(part) for part in scale)
    is_scale = scale is None or isinstance(scale, tuple) or np.isscalar(scale)
    try:
        warp = kwimage.Affine.coerce(scale=scale) if is_scale else kwimage.Affine.coerce(scale)
        matrix = np.asarray(warp.matrix if warp.matrix is not None else np.eye(3), dtype=float)
    except (TypeError, ValueError, KeyError, AssertionError) as ex:
        raise OptionError(f'scale_asset_from_stitchspace={scale!r} is not a number, a pair '
                          f'(sx, sy) or an affine transform: {ex}') from ex
    if (matrix.shape != (3, 3) or not np.isfinite(matrix).all()
            or abs(np.linalg.det(matrix)) < 1e-12):
        raise OptionError(f'scale_asset_from_stitchspace={scale!r} cannot be inverted; '
                          'give finite factors above 0')
    return kwimage.Affine(matrix)


def concise_affine(warp):
    """
    Return a transform as a small dict of plain Python numbers.

    Example:
        >>> import kwimage
        >>> concise_affine(kwimage.Affine.scale((2, 3)))
        {'scale': [2.0, 3.0], 'type': 'affine'}
    """
    def plain(value):
        return [float(part) for part in value] if isinstance(value, tuple) else value
    concise = warp.concise()
    return {key: plain(value.item() if isinstance(value, np.generic) else value)
            for key, value in concise.items()}


def warp_img_from_stitchspace(img, space):
    """
    Return the transform from stitching space to image space.

    Args:
        img (dict): kwcoco image.
        space (str): 'video' or 'image'. An image of no video is its own video.

    Raises:
        ManifestError: if the manifest's transform cannot be inverted.
    """
    import kwimage
    if space == 'image':
        return kwimage.Affine.eye()
    warp = img.get('warp_img_to_vid') or {'type': 'affine'}
    try:
        inverse = kwimage.Affine.coerce(warp).inv()
        is_finite = np.isfinite(np.asarray(inverse.matrix, dtype=float)).all()
    except (TypeError, ValueError, KeyError, np.linalg.LinAlgError):
        is_finite = False
    if not is_finite:
        raise ManifestError(f'image {img["id"]} has warp_img_to_vid={warp}, which is no invertible '
                            'affine transform; mend the manifest')
    return inverse


def coerce_dsize(dsize):
    """
    Return (w, h) as two Python ints.

    Raises:
        OptionError: unless they are whole numbers of at least 1.

    Example:
        >>> coerce_dsize([64.0, 32])
        (64, 32)
    """
    try:
        width, height = dsize
        pair = int(width), int(height)
        is_right = pair == (width, height) and min(pair) >= 1
    except (TypeError, ValueError, OverflowError):
        is_right = False
    if not is_right:
        raise OptionError(f'asset_dsize={dsize!r} must be (w, h), whole pixels of at least 1')
    return pair


def stitchspace_dsize(img, video, space):
    """
    Return (w, h) of stitching space in pixels.

    Args:
        img (dict): kwcoco image. video (dict | None): its video.
        space (str): 'video' or 'image'.

    Raises:
        ManifestError: if the manifest does not tell.
    """
    holder = video if space == 'video' and video is not None else img
    width, height = holder.get('width'), holder.get('height')
    if not width or not height:
        raise ManifestError(
            f'the manifest gives {space} {holder.get("id")} ({holder.get("name")!r}) no width '
            'and height; pass asset_dsize=(w, h), or add them (kwcoco conform does)')
    return int(width), int(height)


def compute_region(windows, warp_img_from_asset, img):
    """
    Compute the part of an image that windows cover.

    Args:
        windows (Iterable[Window]): clipped windows, asset px.
        warp_img_from_asset (kwimage.Affine): asset to image.
        img (dict): kwcoco image, for its width and height.

    Returns:
        shapely.geometry.base.BaseGeometry: valid, image space, pixel edges.
    """
    import shapely
    boxes = np.array([(w.x0, w.y0, w.x1, w.y1) for w in windows], dtype=float)
    union = shapely.union_all(shapely.box(*boxes.T)) if len(boxes) else shapely.Polygon()
    matrix = np.asarray(warp_img_from_asset.matrix, dtype=float)

    def warp(points):
        return points @ matrix[:2, :2].T + matrix[:2, 2]
    region = shapely.transform(union, warp)
    if img.get('width') and img.get('height'):
        # Corners that differ from the border by rounding only.
        region = region.intersection(shapely.box(0, 0, img['width'], img['height']))
    # Drops the corners of windows that lie on a straight edge of the union.
    return region.simplify(0)


def region_to_geojson(region):
    """
    Return a shapely geometry as a GeoJSON MultiPolygon of plain lists.

    Parts without area are dropped; rings are closed.

    Example:
        >>> import shapely
        >>> geojson = region_to_geojson(shapely.box(0, 0, 4, 2))
        >>> geojson['type'], len(geojson['coordinates'][0][0])
        ('MultiPolygon', 5)
    """
    parts = getattr(region, 'geoms', [region])
    polygons = [part for part in parts if part.geom_type == 'Polygon' and not part.is_empty]
    coordinates = [[[list(map(float, point)) for point in ring.coords]
                    for ring in (part.exterior, *part.interiors)] for part in polygons]
    return {'type': 'MultiPolygon', 'coordinates': coordinates}


def merge_regions(old, new):
    """
    Return the union of two GeoJSON regions as a GeoJSON MultiPolygon.

    Args:
        old (dict | None): may be missing, or invalid; then it is mended first.
        new (dict): valid.

    Example:
        >>> import shapely
        >>> a, b = (region_to_geojson(shapely.box(x, 0, x + 2, 1)) for x in (0, 1))
        >>> shapely.geometry.shape(merge_regions(a, b)).area
        3.0
    """
    import shapely
    from shapely.geometry import shape
    if not old or not old.get('coordinates'):
        return new
    merged = shapely.make_valid(shape(old)).union(shape(new))
    return region_to_geojson(merged)


def georeference(img, warp_img_from_asset, bundle_dpath):
    """
    Find the CRS and the transform of an asset.

    The manifest's ``wld_crs_info`` and ``wld_to_pxl`` are used; without them,
    the first file of the image that has a CRS of its own.

    Args:
        img (dict): kwcoco image.
        warp_img_from_asset (kwimage.Affine): asset to image.
        bundle_dpath (str): folder that file names are relative to.

    Returns:
        tuple[str | None, ndarray | None]: WKT, and the 3x3 world-from-asset
        transform with x right and y up; (None, None) if nothing is known.

    Raises:
        ManifestError: if the manifest's entries cannot be understood.
    """
    warp_img_from_asset = np.asarray(warp_img_from_asset.matrix, dtype=float)
    if img.get('wld_crs_info'):
        wkt, wld_from_img = _georeference_of_manifest(img)
    else:
        wkt, wld_from_img = _georeference_of_files(img, bundle_dpath)
    if wkt is None:
        return None, None
    return wkt, wld_from_img @ warp_img_from_asset


def _georeference_of_manifest(img):
    import kwimage

    from cocoseg.io.raster import axes_are_swapped, srs_wkt
    info = img['wld_crs_info']
    auth = info.get('auth') or ()
    if len(auth) != 2 or auth[0] != 'EPSG' or img.get('wld_to_pxl') is None:
        raise ManifestError(
            f'image {img["id"]} has wld_crs_info={info} and wld_to_pxl={img.get("wld_to_pxl")}; '
            'the authority must be EPSG and the transform must be there')
    wkt = srs_wkt(int(auth[1]))
    wld_from_img = np.asarray(kwimage.Affine.coerce(img['wld_to_pxl']).inv().matrix, dtype=float)
    strategy = info.get('axis_mapping', 'OAMS_TRADITIONAL_GIS_ORDER')
    if strategy == 'OAMS_AUTHORITY_COMPLIANT':
        if axes_are_swapped(wkt):
            wld_from_img = wld_from_img[[1, 0, 2]]
    elif strategy != 'OAMS_TRADITIONAL_GIS_ORDER':
        raise ManifestError(f'image {img["id"]} has axis_mapping={strategy!r}; use '
                            'OAMS_TRADITIONAL_GIS_ORDER or OAMS_AUTHORITY_COMPLIANT')
    return wkt, wld_from_img


def _georeference_of_files(img, bundle_dpath):
    import kwimage

    from cocoseg.io.raster import raster_info
    assets = [*(img.get('assets') or ()), *(img.get('auxiliary') or ())]
    if img.get('file_name'):
        assets.insert(0, {'file_name': img['file_name']})
    for asset in assets:
        fpath = os.path.join(bundle_dpath, asset['file_name'])
        try:
            info = raster_info(fpath)
        except OSError as ex:
            logger.debug('no georeference from %s: %s', fpath, ex)
            continue
        if info.crs_wkt and info.geotransform:
            c, a, b, f, d, e = info.geotransform
            wld_from_file = np.array([[a, b, c], [d, e, f], [0, 0, 1.0]])
            img_from_file = kwimage.Affine.coerce(asset.get('warp_aux_to_img') or
                                                  {'type': 'affine'})
            return info.crs_wkt, wld_from_file @ np.asarray(img_from_file.inv().matrix, float)
    return None, None
