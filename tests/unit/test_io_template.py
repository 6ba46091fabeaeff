"""What GDAL says about pixels, taken over tag by tag."""
import subprocess
import sys
import threading

import numpy as np
import pytest

from cocoseg.errors import CocosegError, OptionError
from cocoseg.io.cog import write_cog
from cocoseg.io.dataset import RasterMeta
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.raster import raster_info
from cocoseg.io.template import harvest_tags

from ..builders import ROTATED

gdal = require_gdal()
DTYPES = ['int8', 'uint8', 'int16', 'uint16', 'int32', 'uint32', 'float32', 'float64']
TRANSFORM = (500000.0, 20.0, 0.5, 4000000.0, 0.25, -20.0)


@pytest.fixture(autouse=True)
def leave_nothing_in_memory():
    """Files in GDAL's memory stay for ever."""
    before = set(gdal.ReadDir('/vsimem/') or [])
    yield
    assert set(gdal.ReadDir('/vsimem/') or []) == before


def numbers(tag):
    return np.frombuffer(tag.data, {3: '<u2', 4: '<u4', 12: '<f8'}[tag.dtype]).tolist()


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('n_bands', [1, 3, 4, 1000])
@pytest.mark.parametrize('interleave', ['pixel', 'band'])
def test_pixels_are_told_as_they_are(dtype, n_bands, interleave):
    main, overview = harvest_tags(dtype, n_bands, RasterMeta(), interleave)
    bits, kind = np.dtype(dtype).itemsize * 8, {'u': 1, 'i': 2, 'f': 3}[np.dtype(dtype).kind]
    for tags in (main, overview):
        assert numbers(tags[258]) == [bits] * n_bands
        assert numbers(tags[339]) == [kind] * n_bands
        assert numbers(tags[277]) == [n_bands]
        # No color and no opacity: each band is itself.
        assert numbers(tags[262]) == [1]
        if n_bands > 1:
            assert numbers(tags[284]) == [2 if interleave == 'band' else 1]
            assert numbers(tags[338]) == [0] * (n_bands - 1)
    assert main == overview


@pytest.mark.parametrize('nodata', [None, 0, -9999, 2 ** 31 - 1])
def test_nodata_is_told_in_all_levels(nodata):
    meta = RasterMeta.coerce('int32', 2, nodata=nodata)
    for tags in harvest_tags('int32', 2, meta):
        text = tags[42113].data if 42113 in tags else None
        assert text == (None if nodata is None else f'{nodata}\0'.encode())


@pytest.mark.parametrize('dtype', ['float32', 'float64'])
@pytest.mark.parametrize('nodata', [
    0.1, -1e-30, 1 / 3, np.nan, np.inf, -np.inf, -3.4028234663852886e38, 2.0 ** 31])
def test_nodata_of_floats_is_exact(dtype, nodata):
    meta = RasterMeta.coerce(dtype, 1, nodata=nodata)
    text = harvest_tags(dtype, 1, meta)[0][42113].data.rstrip(b'\0').decode()
    np.testing.assert_array_equal(np.array(float(text), dtype), np.array(nodata, dtype))


def test_world_and_texts_are_told_once():
    meta = RasterMeta.coerce('uint8', 2, crs=32618, transform=TRANSFORM, channels='a|b',
                             scale=[2, 3], offset=1, metadata={'key': 'value'})
    main, overview = harvest_tags('uint8', 2, meta)
    assert set(main) - set(overview) == {34264, 34735, 34736, 34737, 42112}
    assert numbers(main[34264])[:8] == [20, 0.5, 0, 5e5, 0.25, -20, 0, 4e6]
    for text in (b'value', b'>a<', b'>b<', b'scale', b'offset'):
        assert text in main[42112].data
    north_up = RasterMeta.coerce('uint8', 1, transform=(5, 2, 0, 7, 0, -2))
    main, _ = harvest_tags('uint8', 1, north_up)
    assert numbers(main[33550]) == [2, 2, 0] and numbers(main[33922]) == [0, 0, 0, 5, 7, 0]


def assert_round_trip(folder, n_bands=2, **meta):
    """Write and read; return what the file says."""
    write_cog(folder / 'a.tif', np.ones((5, 6, n_bands), np.int16), **meta)
    info = raster_info(folder / 'a.tif')
    assert [path.name for path in folder.iterdir()] == ['a.tif']
    return info


@pytest.mark.parametrize('crs', [
    4326, 32618, 3857, 4979, 'EPSG:2154', 5514, 'LOCAL_CS["x",UNIT["metre",1]]'])
@pytest.mark.parametrize('transform', [None, TRANSFORM])
def test_coordinate_systems_come_back(tmp_path, crs, transform):
    info = assert_round_trip(tmp_path, crs=crs, transform=transform)
    assert info.geotransform == transform
    if 'LOCAL' in str(crs):
        assert info.crs_wkt.startswith('LOCAL_CS["x"')
    else:
        assert info.epsg == int(str(crs).rpartition(':')[2])


def test_a_coordinate_system_that_a_tiff_cannot_hold_is_refused(tmp_path):
    """GDAL puts it into a file beside, which is not ours: it would be lost without a word."""
    try:
        info = assert_round_trip(tmp_path, crs=ROTATED, transform=TRANSFORM)
    except CocosegError as ex:
        assert 'crs' in str(ex) or 'coordinate system' in str(ex)
        assert list(tmp_path.iterdir()) == []
    else:
        assert info.crs_wkt and 'ob_tran' in info.crs_wkt


@pytest.mark.parametrize('area_or_point', ['Area', 'Point'])
def test_a_transform_means_corners_whatever_a_pixel_is(tmp_path, area_or_point):
    info = assert_round_trip(tmp_path, crs=32618, transform=(5, 2, 0, 7, 0, -2),
                             metadata={'AREA_OR_POINT': area_or_point})
    assert info.geotransform == (5, 2, 0, 7, 0, -2)
    assert info.metadata['AREA_OR_POINT'] == area_or_point


@pytest.mark.parametrize('key, value', [
    ('TIFFTAG_SOFTWARE', 'cocoseg'), ('TIFFTAG_DATETIME', '2020:01:02 03:04:05'),
    ('TIFFTAG_IMAGEDESCRIPTION', 'probabilities'), ('TIFFTAG_DOCUMENTNAME', 'doc'),
    ('TIFFTAG_ARTIST', 'me'), ('TIFFTAG_HOSTCOMPUTER', 'here'), ('TIFFTAG_COPYRIGHT', 'all'),
    ('TIFFTAG_RESOLUTIONUNIT', '2 (pixels/inch)'), ('TIFFTAG_MINSAMPLEVALUE', '0'),
    ('TIFFTAG_MAXSAMPLEVALUE', '9')])
def test_metadata_that_has_a_tag_of_its_own_comes_back(tmp_path, key, value):
    info = assert_round_trip(tmp_path, metadata={key: value, 'other': 'x'})
    assert info.metadata['other'] == 'x'
    assert info.metadata.get(key) == value


def test_a_resolution_needs_its_unit(tmp_path):
    """GDAL drops it without one, and says nothing."""
    resolution = {'TIFFTAG_XRESOLUTION': '72', 'TIFFTAG_YRESOLUTION': '72.5'}
    with pytest.raises(OptionError, match='TIFFTAG_RESOLUTIONUNIT'):
        write_cog(tmp_path / 'a.tif', np.zeros((4, 5), np.uint8), metadata=resolution)
    info = assert_round_trip(
        tmp_path, metadata={**resolution, 'TIFFTAG_RESOLUTIONUNIT': '2 (pixels/inch)'})
    assert {key: info.metadata[key] for key in resolution} == resolution


@pytest.mark.parametrize('key', [
    'NODATA_VALUES', 'STATISTICS_MAXIMUM', 'DESCRIPTION', 'NAME', 'BAND_1', 'key with blanks',
    'ünï', 'a' * 500, 'PIXELTYPE', 'INTERLEAVE', 'LAYOUT', 'GDAL_METADATA'])
def test_keys_with_a_meaning_elsewhere_come_back(tmp_path, key):
    info = assert_round_trip(tmp_path, metadata={key: '1'}, nodata=3, scale=2)
    assert info.metadata[key] == '1'
    assert info.nodata == 3 and info.dtype == 'int16' and info.scales == (2, 2)


def test_long_texts_come_back(tmp_path):
    channels = [f'band {number} ' + 'x' * 60 for number in range(300)]
    metadata = {f'key{number}': 'v' * 3000 for number in range(100)}
    info = assert_round_trip(tmp_path, 300, channels=channels, metadata=metadata,
                             scale=[number + 2 for number in range(300)])
    assert info.channels == tuple(channels)
    assert {key: info.metadata[key] for key in metadata} == metadata
    assert info.scales == tuple(range(2, 302))


@pytest.mark.parametrize('scale, offset', [(1 / 3, 1e-300), (1e300, -0.1), (-2, 0)])
def test_scales_are_exact(tmp_path, scale, offset):
    info = assert_round_trip(tmp_path, scale=scale, offset=offset)
    assert info.scales == (scale, scale) and info.offsets == (offset, offset)


def test_threads_do_not_meet():
    metas = [RasterMeta.coerce('int16', k + 1, nodata=k, metadata={'k': str(k)}) for k in range(4)]
    expected = [harvest_tags('int16', k + 1, meta) for k, meta in enumerate(metas)]
    wrong = []

    def work(start):
        for k in range(start, start + 30):
            try:
                if harvest_tags('int16', k % 4 + 1, metas[k % 4]) != expected[k % 4]:
                    wrong.append(k)
            except Exception as ex:
                wrong.append(ex)
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


@pytest.mark.parametrize('exceptions', [False, True])
def test_the_switch_of_the_user_is_not_touched(exceptions):
    before = gdal.GetUseExceptions()
    (gdal.UseExceptions if exceptions else gdal.DontUseExceptions)()
    try:
        main, _ = harvest_tags('int8', 2, RasterMeta.coerce('int8', 2, nodata=-1, crs=4326))
        assert main[42113].data == b'-1\0' and gdal.GetUseExceptions() == exceptions
    finally:
        (gdal.UseExceptions if before else gdal.DontUseExceptions)()


@pytest.mark.parametrize('exceptions', [False, True])
def test_a_gdal_that_fails_is_an_error_and_leaves_nothing(monkeypatch, exceptions):
    before = gdal.GetUseExceptions()
    (gdal.UseExceptions if exceptions else gdal.DontUseExceptions)()

    def fail(dataset, *args):
        gdal.Error(gdal.CE_Failure, 1, 'the disk is on fire')
        return gdal.CE_Failure
    monkeypatch.setattr(gdal.Dataset, 'SetMetadata', fail)
    try:
        with pytest.raises(OSError, match='disk is on fire'):
            harvest_tags('int16', 1, RasterMeta.coerce('int16', 1, metadata={'a': 'b'}))
        assert gdal.GetUseExceptions() == exceptions
    finally:
        (gdal.UseExceptions if before else gdal.DontUseExceptions)()


CONFIGURED = '''
import sys
import numpy as np
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.dataset import RasterMeta
from cocoseg.io.template import harvest_tags
meta = RasterMeta.coerce('int16', 3, nodata=-1, crs=32618, transform=(5, 2, 0, 7, 0, -2),
                         channels='a|b|c', scale=2, metadata={'key': 'value'})
plain = harvest_tags('int16', 3, meta)
gdal = require_gdal()
for key, value in (line.split('=') for line in sys.argv[1:]):
    gdal.SetConfigOption(key, value)
    same = harvest_tags('int16', 3, meta) == plain
    gdal.SetConfigOption(key, None)
    print(key, value, same, gdal.ReadDir('/vsimem/'))
'''


def test_settings_of_gdal_do_not_change_what_is_told():
    """They are for the whole process and may have been made for other files."""
    settings = ['GDAL_PAM_ENABLED=NO', 'ESRI_XML_PAM=YES', 'GDAL_TIFF_ENDIANNESS=BIG',
                'GDAL_DISABLE_READDIR_ON_OPEN=EMPTY_DIR', 'GTIFF_POINT_GEO_IGNORE=TRUE',
                'GDAL_TIFF_INTERNAL_MASK=YES', 'BIGTIFF_OVERVIEW=YES']
    result = subprocess.run([sys.executable, '-c', CONFIGURED, *settings],
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines()]
    assert [line[2] for line in lines] == ['True None'] * len(settings), result.stdout
