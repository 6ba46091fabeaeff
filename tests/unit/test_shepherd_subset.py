"""Parts of label rasters: numbered by first occurrence, whatever the strips."""
import numpy as np
import pytest

from cocoseg import Window, write_cog
from cocoseg.errors import AssetWriteError, CoverageError, LabelOverflowError, OptionError
from cocoseg.io.images import write_tif
from cocoseg.io.raster import raster_info, read_raster
from cocoseg.shepherd import subset
from cocoseg.shepherd.stats import segment_stats
from cocoseg.shepherd.subset import subset_segments

from .segment_models import make_segments

GEO = {'crs': 'EPSG:32618', 'transform': (500_000, 10, 0, 4_000_000, 0, -20)}


@pytest.fixture
def segments():
    return make_segments(np.random.default_rng(0), (40, 31), n_labels=30)


def renumber(labels):
    """Return new labels by first occurrence, and the old ones in that order."""
    originals = list(dict.fromkeys(labels[labels > 0].tolist()))
    lookup = {0: 0, **{old: new for new, old in enumerate(originals, 1)}}
    return np.array([[lookup[label] for label in row] for row in labels.tolist()]), originals


def check(result, path, expected):
    labels, originals = renumber(expected)
    np.testing.assert_array_equal(read_raster(path)[:, :, 0], labels)
    assert result.table['original_id'].tolist() == originals
    assert result.table.ids.tolist() == list(range(1, len(originals) + 1))
    assert result.table['area'].tolist() == [(expected == label).sum() for label in originals]
    assert result.n_segments == len(originals) and result.path == str(path)


@pytest.mark.parametrize('rows', [1, 7, 40, None])
@pytest.mark.parametrize('window', [None, Window(0, 0, 40, 31), Window(3, 5, 30, 6),
                                    (slice(39, 40), slice(30, 31)), Window(-9, 20, 13, 99)])
def test_windows(segments, tmp_path, rows, window):
    path = tmp_path / 'a.tif'
    result = subset_segments(segments, path, window, block_rows=rows)
    part = Window.from_shape(segments.shape) if window is None else Window.coerce(
        window, segments.shape).clip(segments.shape)
    assert result.window == part
    check(result, path, segments[part.slices])
    info = raster_info(path)
    assert (info.dtype, info.nodata) == ('uint32', 0) and info.shape == (*part.shape, 1)


def test_a_single_segment(segments, tmp_path):
    """Nothing is lost where one segment is left, whichever it was."""
    for label in (1, 17, 30):
        result = subset_segments(segments, tmp_path / 'a.tif', mask=segments == label)
        check(result, tmp_path / 'a.tif', np.where(segments == label, segments, 0))
        assert result.n_segments == 1


@pytest.mark.parametrize('n_labels', [1, 99_999, 100_000, 100_001])
def test_no_page_is_forgotten(tmp_path, n_labels):
    """Every id from the first to the last, at any number of them."""
    labels = np.arange(n_labels, 0, -1, dtype=np.uint32).reshape(1, -1)
    result = subset_segments(labels, tmp_path / 'a.tif')
    assert result.table['original_id'].tolist() == labels[0].tolist()
    assert read_raster(tmp_path / 'a.tif')[0, -1, 0] == n_labels


def test_bounds(segments, tmp_path):
    write_cog(tmp_path / 'a.tif', segments, nodata=0, overviews='nearest', **GEO)
    # The pixels that are touched; what is at an edge, but for rounding, is not.
    for bounds, part in (((500_020, 3_999_900, 500_050, 4_000_000), Window(0, 2, 5, 5)),
                         ((500_021, 3_999_899, 500_051, 3_999_999), Window(0, 2, 6, 6)),
                         ((500_020.000001, 3_999_900, 500_050 + 1e-7, 4_000_000),
                          Window(0, 2, 5, 5)),
                         ((0, 0, 500_020, 9e9), Window(0, 0, 40, 2))):
        result = subset_segments(tmp_path / 'a.tif', tmp_path / 'b.tif', bounds=bounds)
        assert result.window == part
        check(result, tmp_path / 'b.tif', segments[part.slices])
        transform = raster_info(tmp_path / 'b.tif').geotransform
        assert transform == (500_000 + 10 * part.x0, 10, 0, 4_000_000 - 20 * part.y0, 0, -20)
        assert raster_info(tmp_path / 'b.tif').epsg == 32618


def test_bounds_of_a_turned_raster(segments, tmp_path):
    turned = (1000, 0, 2, 500, 3, 0)
    result = subset_segments(segments, tmp_path / 'a.tif', bounds=(1004, 509, 1010, 521),
                             transform=turned)
    assert result.window == Window(2, 3, 5, 7)
    assert raster_info(tmp_path / 'a.tif').geotransform == (1004, 0, 2, 509, 3, 0)


@pytest.mark.parametrize('from_file', [True, False])
def test_masks(segments, tmp_path, from_file):
    mask = np.random.default_rng(1).integers(0, 3, segments.shape).astype(np.uint8)
    keeps = mask > 0
    given = mask
    if from_file:
        # What is nodata is out, too.
        mask[0, :9] = 200
        keeps = (mask > 0) & (mask < 200)
        write_tif(tmp_path / 'mask.tif', mask, nodata=200)
        given = tmp_path / 'mask.tif'
    window = Window(0, 4, 33, 20)
    result = subset_segments(segments, tmp_path / 'a.tif', window, mask=given, block_rows=4)
    check(result, tmp_path / 'a.tif', np.where(keeps, segments, 0)[window.slices])


def test_float_masks(segments, tmp_path):
    mask = np.where(segments > 9, 0.5, np.nan)
    result = subset_segments(segments, tmp_path / 'a.tif', mask=mask)
    check(result, tmp_path / 'a.tif', np.where(segments > 9, segments, 0))


def test_ids_with_gaps(tmp_path):
    """Whatever the ids, the new ones can be measured."""
    segments = np.array([[2 ** 32 - 1, 7], [0, 2 ** 31]], np.int64)
    result = subset_segments(segments, tmp_path / 'a.tif', block_rows=1)
    check(result, tmp_path / 'a.tif', segments)
    assert segment_stats(None, tmp_path / 'a.tif', ['area'])['area'].tolist() == [1, 1, 1]


def test_nothing_but_null(tmp_path):
    result = subset_segments(np.zeros((5, 4), int), tmp_path / 'a.tif')
    assert result.n_segments == 0 and not read_raster(tmp_path / 'a.tif').any()


def test_table_goes_along(segments, tmp_path):
    table = segment_stats(segments, segments, 'min')
    result = subset_segments(segments, tmp_path / 'a.tif', Window(0, 0, 9, 9))
    part = table.take(result.table['original_id'], new_ids=result.table.ids)
    assert part['min'].tolist() == result.table['original_id'].tolist()
    assert result.table.join(part).ids.tolist() == result.table.ids.tolist()


def test_source_is_not_changed_and_may_be_replaced(segments, tmp_path):
    copy = segments.copy()
    subset_segments(segments, tmp_path / 'a.tif')
    np.testing.assert_array_equal(segments, copy)
    expected = read_raster(tmp_path / 'a.tif')[:, :9, 0].astype(int)
    result = subset_segments(tmp_path / 'a.tif', tmp_path / 'a.tif', Window(0, 0, 40, 9))
    check(result, tmp_path / 'a.tif', expected)


@pytest.mark.parametrize('options, error, match', [
    ({'window': Window(50, 0, 60, 9)}, CoverageError, 'no pixel'),
    ({'bounds': (0, 0, 1, 1)}, CoverageError, 'no pixel'),
    ({'bounds': (1, 0, 0, 1)}, OptionError, 'not empty'),
    ({'bounds': (0, 0, 1)}, OptionError, 'not empty'),
    ({'bounds': (0, 0, 1, 1), 'window': Window(0, 0, 9, 9)}, OptionError, 'exclude'),
    ({'bounds': (0, 0, 1, 1), 'transform': None}, OptionError, 'no geotransform'),
    ({'mask': np.ones((4, 4))}, OptionError, 'same size'),
    ({'mask': np.ones((40, 31, 2))}, OptionError, 'one band'),
    ({'block_rows': 0}, OptionError, 'at least 1'), ({'blocksize': 7}, OptionError, 'multiple'),
    ({'compress': 'x'}, OptionError, 'ZSTD')])
def test_wrong_arguments(segments, tmp_path, monkeypatch, options, error, match):
    monkeypatch.setattr(subset, 'read_ahead', lambda *args: pytest.fail('reading began'))
    with pytest.raises(error, match=match):
        subset_segments(segments, tmp_path / 'a.tif', **{'transform': GEO['transform'],
                                                         **options})
    with pytest.raises(FileNotFoundError):
        subset_segments(segments, tmp_path / 'no' / 'a.tif')
    assert list(tmp_path.iterdir()) == []


def test_a_failed_subset_leaves_the_old_file(segments, tmp_path, monkeypatch):
    path = tmp_path / 'a.tif'
    path.write_text('old')
    labels = segments.astype(np.int64)
    labels[-1, -1] = -4
    with pytest.raises(LabelOverflowError):
        subset_segments(labels, path, block_rows=5)
    monkeypatch.setattr('cocoseg.io.cog.verify_cog',
                        lambda *args, **options: (_ for _ in ()).throw(OSError('bad disk')))
    with pytest.raises(AssetWriteError, match='bad disk'):
        subset_segments(segments, path)
    assert path.read_text() == 'old' and len(list(tmp_path.iterdir())) == 1
