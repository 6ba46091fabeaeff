"""The parts of a report: reading at reduced size, pictures, records of runs, values of the page."""
import base64
import json
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cocoseg.coco import report_read, versions
from cocoseg.coco.audit import AssetCheck, audit_manifest
from cocoseg.coco.drawing import color_classes
from cocoseg.coco.report import ImageReport, write_report
from cocoseg.coco.report_layers import (DrawOptions, Histogram, Picture, draw_layers, draw_region,
                                        plan_layers)
from cocoseg.coco.report_page import (check_jinja, draw_histogram, encode_image, encode_picture,
                                      render_page)
from cocoseg.coco.report_read import Grid, read_nearest, read_smooth
from cocoseg.coco.run_record import (RunClock, get_record_path, read_run_record, write_run_record)
from cocoseg.errors import MissingDependencyError, OptionError
from cocoseg.io.cog import write_cog
from cocoseg.io.images import write_tif

from ..builders import GOOD, LEFT, RIGHT, making_managers, make_two_images


# ---- versions and records of runs ------------------------------------------

def test_versions_are_those_that_run():
    found = versions.collect_versions()
    for name in ('numpy', 'numba', 'kwcoco', 'kwimage', 'sklearn'):
        assert found[name] == __import__(name).__version__
    assert found['gdal'] is not None


def test_a_package_that_is_not_there_has_no_version(monkeypatch):
    monkeypatch.setitem(versions._PACKAGES, 'gdal', 'no-such-package-of-anybody')
    assert versions.collect_versions()['gdal'] is None


@pytest.fixture
def journal(tmp_path):
    return tmp_path / '.cocoseg-water.jsonl'


def make_record(**changes):
    return RunClock.start().stop(**{'images': 2, 'windows': 8, 'px': 1000, **changes})


def test_record_comes_back(journal):
    record = make_record(executor='processes:2', prefetch=3)
    assert write_run_record(journal, record) == str(journal.parent / '.cocoseg-water.run.json')
    assert read_run_record(journal) == record
    content = json.loads(Path(get_record_path(journal)).read_text())
    assert content['px_per_s'] == record.px_per_s
    assert content['peak_rss'] is None or content['peak_rss'] > 2 ** 22
    assert record.started.endswith('+00:00') and record.started <= record.ended
    assert os.listdir(journal.parent) == ['.cocoseg-water.run.json']


def test_record_measures_seconds():
    record = RunClock(1e9, 0.0).stop(images=1, windows=1, px=500)
    assert record.seconds > 0 and record.px_per_s == 500 / record.seconds
    assert record.started == '2001-09-09T01:46:40+00:00'


def test_a_run_that_did_nothing_keeps_the_older_record(journal):
    record = make_record()
    write_run_record(journal, record)
    assert write_run_record(journal, make_record(images=0)) is None
    assert read_run_record(journal) == record


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        assert write_run_record(tmp_path / 'missing' / '.cocoseg-a.jsonl', make_record()) is None
    assert 'could not be written' in caplog.text


@pytest.mark.parametrize('content', [
    '', '[]', '{"version": 2}', '{"version": 1}', '{"version": 1, "started": 5}',
    pytest.param('[' * 100000, id='deep')])
def test_what_is_no_record_is_not_read(journal, content, caplog):
    Path(get_record_path(journal)).write_text(content)
    with caplog.at_level(logging.WARNING):
        assert read_run_record(journal) is None
    assert 'is no record of a run' in caplog.text


def read_all(folder):
    return {path.relative_to(folder): path.read_bytes()
            for path in sorted(Path(folder).rglob('*')) if path.is_file()}


def test_a_bundle_with_a_record_is_audited_and_resumed_as_without(tmp_path):
    dset = make_two_images(tmp_path)
    with making_managers(dset) as make:
        manager = make()
        for place in (LEFT, RIGHT):
            manager.accumulate_image(1, place, GOOD[place])
        manager.finalize_image(1)
        manager.dump()
        manager.close()
        before = audit_manifest(dset.fpath)
        write_run_record(Path(manager.prob_dpath, manager.options.journal_name), make_record())
        after = audit_manifest(dset.fpath)
        assert [(check.path, check.status) for check in before.checks] == [
            (check.path, check.status) for check in after.checks]
        assert before.notes == after.notes == ()
        files = read_all(tmp_path)
        assert any(path.name.endswith('.run.json') for path in files)
        again = make(resume=True)
        assert again.is_done(1)
        again.close()
    assert read_all(tmp_path) == files


# ---- reading at reduced size -----------------------------------------------

@settings(max_examples=50)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(16, 300), st.floats(0, 1e9))
def test_parts_cover_each_pixel_once(width, height, max_side, cost):
    grid = Grid.fit((width, height), max_side)
    assert max(grid.shape) <= max(max_side, 1) and min(grid.shape) >= 1
    seen = np.zeros(grid.shape, int)
    for index, place in enumerate(grid.iter_parts(cost)):
        seen[place] += 1
        if index == 2000:
            return
    assert (seen == 1).all()


@pytest.fixture(scope='module')
def ids():
    """Labels with ids that no float32 holds."""
    rng = np.random.RandomState(1)
    return rng.randint(0, 2 ** 32, (37, 53), np.uint32)


@pytest.mark.parametrize('scale', [1, 2])
@pytest.mark.parametrize('max_side', [53, 20, 16])
def test_nearest_picks_the_pixel_below_each_center(tmp_path, ids, scale, max_side):
    write_tif(tmp_path / 'ids.tif', ids[..., None], nodata=0)
    grid = Grid.fit((53 * scale, 37 * scale), max_side)
    found = read_nearest(str(tmp_path / 'ids.tif'), 0, grid,
                         {'type': 'affine', 'scale': float(scale)}, 0)
    height, width = grid.shape
    rows = ((np.arange(height) + 0.5) * 37 / height).astype(int)
    columns = ((np.arange(width) + 0.5) * 53 / width).astype(int)
    assert (np.nan_to_num(found) == ids[rows][:, columns]).all()


def test_nearest_follows_the_transform_of_the_asset(tmp_path):
    write_tif(tmp_path / 'a.tif', np.full((10, 10, 1), 7, np.uint8), nodata=0)
    found = read_nearest(str(tmp_path / 'a.tif'), 0, Grid.fit((40, 20), 40),
                         {'type': 'affine', 'offset': [15.0, 5.0]})
    expected = np.full((20, 40), np.nan)
    expected[5:15, 15:25] = 7
    assert np.array_equal(found, expected, equal_nan=True)


def test_nearest_uses_overviews(tmp_path, watch_reads):
    write_cog(tmp_path / 'a.tif', np.full((1024, 1024), 3, np.uint8), nodata=0, blocksize=64,
              overviews='nearest')
    found = read_nearest(str(tmp_path / 'a.tif'), 0, Grid.fit((1024, 1024), 64))
    assert (found == 3).all() and sum(watch_reads) == 64 * 64


@pytest.fixture
def watch_reads(monkeypatch):
    """Return a list of how many samples each read of a file gave."""
    from delayed_image.lazy_loaders import LazyGDalFrameFile
    sizes, read = [], LazyGDalFrameFile.__getitem__

    def watch(self, index):
        found = read(self, index)
        sizes.append(found.size)
        return found
    monkeypatch.setattr(LazyGDalFrameFile, '__getitem__', watch)
    return sizes


def make_image(folder, array, channels):
    """Return the path of a file without overviews, and the image that has it."""
    write_tif(folder / 'a.tif', array, nodata=0)
    height, width, n_bands = array.shape
    return str(folder / 'a.tif'), {'id': 1, 'name': 'a', 'width': width, 'height': height,
                                   'assets': [{'file_name': 'a.tif', 'channels': channels,
                                               'width': width, 'height': height,
                                               'num_bands': n_bands}]}


def test_a_large_raster_is_read_in_parts(tmp_path, watch_reads, monkeypatch):
    """Without overviews all is read, but never at a time; no seam is seen."""
    y, x = np.mgrid[:600, :500]
    array = np.stack([5000 + 2000 * np.sin(x / 40) + 2000 * np.cos(y / 50), x + y + 1], axis=2)
    array = array.astype(np.uint16)
    path, _ = make_image(tmp_path, array, 'a|b')
    grid = Grid.fit((500, 600), 60)
    whole = read_smooth(path, [0, 1], grid)
    ids = read_nearest(path, 1, grid)
    assert max(watch_reads) >= array[..., 0].size * 0.9
    del watch_reads[:]
    monkeypatch.setattr(report_read, '_MAX_SAMPLES', 40_000)
    ranges = whole.max(axis=(0, 1)) - whole.min(axis=(0, 1))
    assert (np.abs(read_smooth(path, [0, 1], grid) - whole) < 0.01 * ranges).all()
    assert np.array_equal(read_nearest(path, 1, grid), ids)
    # Some more, as a mean needs what lies around.
    assert 0 < max(watch_reads) < 100_000


def test_smooth_is_the_mean(tmp_path):
    array = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((64, 64)))[..., None]
    path, _ = make_image(tmp_path, array.astype(np.uint16), 'a')
    found = read_smooth(path, [0], Grid.fit((128, 128), 16))
    assert np.allclose(found[2:6, 2:6], 1, atol=0.01) and np.allclose(found[10:14, 10:14], 4,
                                                                    atol=0.01)
    assert found.mean() == pytest.approx(2.5, abs=0.01)


# ---- layers and pictures ---------------------------------------------------

ENTRIES = [
    ({'channels': 'water|bare', 'quantization': {'orig_min': 0, 'orig_max': 1}}, 'heat'),
    ({'channels': 'floats'}, 'heat'),
    ({'channels': 'pred_class', 'categories': ['water', 'bare'], 'nodata': 255}, 'classes'),
    ({'channels': 'water_mask|hidden_mask.0:2', 'nodata': 255}, 'mask'),
    ({'channels': 'water_std|hidden_std.0:2', 'quantization': {'orig_min': 0}}, 'disagreement'),
]


@pytest.mark.parametrize('entry, kind', ENTRIES, ids=[kind for _, kind in ENTRIES])
def test_kind_of_an_asset(entry, kind):
    img = {'id': 1, 'assets': [{'file_name': 'a.tif', **entry}]}
    (plan,) = plan_layers(img, [AssetCheck('/b/a.tif', 1, 'ok')])
    assert plan.kind == kind
    # A file that is lost has the same one.
    (plan,) = plan_layers(img, [AssetCheck('/b/a.tif', 1, 'bad', 'there is no such file')])
    assert (plan.kind, plan.problem) == (kind, 'there is no such file')


@pytest.mark.parametrize('dtype, kind', [('uint8', 'mask'), ('uint32', 'segments'),
                                         ('uint16', 'segments')])
def test_kind_of_whole_numbers(tmp_path, dtype, kind):
    write_cog(tmp_path / 'a.tif', np.zeros((16, 16), dtype), nodata=0)
    img = {'id': 1, 'assets': [{'file_name': 'a.tif', 'channels': 'x', 'nodata': 0}]}
    (plan,) = plan_layers(img, [AssetCheck(str(tmp_path / 'a.tif'), 1, 'ok')])
    assert plan.kind == kind


@pytest.mark.parametrize('specs, names', [
    (['nir|blue|green|red'], ('red', 'green', 'blue')),
    (['B03', 'B02', 'B04'], ('B04', 'B03', 'B02')),
    (['c|b|a|d'], ('c', 'b', 'a')), (['pan'], ('pan',)), (['x|y'], ('x',))])
def test_bands_of_the_photo(specs, names):
    assets = [{'file_name': f'{spec}.tif', 'channels': spec} for spec in specs]
    checks = [AssetCheck(f'/{spec}.tif', 1, 'skipped') for spec in specs]
    (plan,) = plan_layers({'id': 1, 'assets': assets}, checks)
    assert (plan.kind, plan.names) == ('photo', names)


@pytest.mark.parametrize('path', ['https://example.org/a.tif', '/vsicurl/a.tif'])
def test_a_report_does_not_go_to_the_network(path):
    img = {'id': 1, 'assets': [{'file_name': path, 'channels': 'a'}]}
    assert plan_layers(img, [AssetCheck(path, 1, 'skipped')]) == []
    (plan,) = plan_layers(img, [AssetCheck(path, 1, 'skipped', 'it is not on this machine')])
    assert plan.problem == 'it is not on this machine'


def test_layers_are_known_without_their_journal():
    img = {'id': 1, 'has_predictions': {'a': True}, 'assets': [
        {'file_name': 'in.tif', 'channels': 'r'}, {'file_name': 'p/a.tif', 'channels': 'a'},
        {'file_name': 'p/b.tif', 'channels': 'a_std'}]}
    checks = [AssetCheck('/in.tif', 1, 'skipped'), AssetCheck('/p/a.tif', 1, 'ok'),
              AssetCheck('/p/b.tif', 1, 'skipped')]
    assert [plan.kind for plan in plan_layers(img, checks)] == ['photo', 'heat', 'disagreement']


def test_an_input_beside_the_predictions_stays_one():
    img = {'id': 1, 'has_predictions': {'a': True}, 'assets': [
        {'file_name': 'in.tif', 'channels': 'r'}, {'file_name': 'a.tif', 'channels': 'a'}]}
    checks = [AssetCheck('/in.tif', 1, 'skipped'), AssetCheck('/a.tif', 1, 'ok')]
    assert [plan.kind for plan in plan_layers(img, checks)] == ['photo', 'heat']


def test_values_are_those_of_imdelay(tmp_path):
    """kwcoco reads an asset of another scale as the report does, without its kwcoco."""
    import kwcoco
    rng = np.random.RandomState(3)
    codes = rng.randint(1, 255, (24, 32, 2)).astype(np.uint8)
    codes[:5, :7] = 0
    write_tif(tmp_path / 'a.tif', codes, nodata=0)
    entry = {'file_name': 'a.tif', 'channels': 'x|y', 'width': 32, 'height': 24, 'num_bands': 2,
             'warp_aux_to_img': {'type': 'affine', 'scale': 2.0, 'offset': [1.0, 3.0]},
             'quantization': {'orig_min': -1.0, 'orig_max': 3.0, 'quant_min': 1,
                              'quant_max': 255, 'nodata': 0, 'orig_dtype': 'float32'}}
    dset = kwcoco.CocoDataset()
    dset.fpath = str(tmp_path / 'data.kwcoco.json')
    dset.add_image(name='a', width=70, height=60, assets=[entry])
    expected = dset.coco_image(1).imdelay('y|x', space='image', nodata_method='float').finalize()
    found = read_smooth(str(tmp_path / 'a.tif'), [1, 0], Grid.fit((70, 60), 768),
                        entry['warp_aux_to_img'], entry['quantization'])
    assert np.allclose(found, expected, equal_nan=True, atol=1e-5)
    assert np.isfinite(found).any() and np.isnan(found).any()


def test_region_with_a_hole():
    ring = [[0, 0], [0, 10], [10, 10], [10, 0], [0, 0]]
    hole = [[4, 4], [6, 4], [6, 6], [4, 6], [4, 4]]
    region = {'type': 'MultiPolygon', 'coordinates': [[ring, hole]]}
    found = draw_region(region, Grid.fit((20, 10), 20))
    expected = np.zeros((10, 20), bool)
    expected[:, :10] = True
    expected[4:6, 4:6] = False
    assert (found == expected).all()


def draw(image, entry, **options):
    """Draw one file as if it were ours."""
    path, img = image
    img['assets'][0].update(entry)
    return draw_layers(img, plan_layers(img, [AssetCheck(path, 1, 'ok')]),
                       Grid.fit((img['width'], img['height']), 64), DrawOptions(**options))


def test_classes_have_colors_and_shares(tmp_path):
    array = np.full((40, 40, 1), 255, np.uint8)
    array[:20], array[20:30] = 0, 2
    image = make_image(tmp_path, array, 'x')
    (classes, coverage), notes = draw(image, {
        'categories': ['a', 'b', 'c'], 'nodata': 255})
    assert notes == []
    assert [(name, share) for name, _, share in classes.legend] == [
        ('a', 2 / 3), ('b', 0), ('c', 1 / 3)]
    assert (classes.pixels[5, 5] == color_classes(3)[0]).all()
    assert classes.pixels[35, 5].tolist() == [128, 128, 128]
    assert [share for _, _, share in coverage.legend] == [0.75, 0.25, 0]
    assert 'no prediction_region' in coverage.detail


def test_histogram_has_true_values(tmp_path):
    array = np.full((32, 32, 1), 100, np.int16)
    array[:16] = 300
    image = make_image(tmp_path, array, 'x')
    code = {'orig_min': -1.0, 'orig_max': 3.0, 'quant_min': 0, 'quant_max': 400, 'nodata': 0,
            'orig_dtype': 'float32'}
    heat = draw(image, {'quantization': code})[0][0]
    assert (heat.histogram.low, heat.histogram.high) == (0, 2)
    assert heat.histogram.mean == pytest.approx(1) and heat.minmax == (-1, 3)
    assert sum(heat.histogram.counts) == 32 * 32


def test_many_channels_are_limited(tmp_path):
    image = make_image(tmp_path, np.ones((16, 16, 5), np.float32), 'h.0:5')
    pictures, notes = draw(image, {}, max_channels=2)
    assert [picture.title for picture in pictures] == ['h.0', 'h.1', 'coverage']
    assert notes == ['2 of the 5 channels of a.tif are shown']


def test_what_cannot_be_drawn_says_why(tmp_path):
    image = make_image(tmp_path, np.ones((16, 16, 1), np.float32), 'x')
    (tmp_path / 'a.tif').write_bytes(b'II*\0 and nothing else')
    image[1]['prediction_region'] = {'type': 'Nonsense'}
    pictures, _ = draw(image, {})
    assert [picture.kind for picture in pictures] == ['heat', 'coverage']
    assert all(picture.problem.startswith('it cannot be read: ') for picture in pictures)


@given(st.lists(st.one_of(st.floats(-1e6, 1e6), st.just(np.nan)), min_size=1, max_size=60))
@settings(max_examples=50)
def test_histogram_counts_each_pixel(values):
    found = Histogram.of(values)
    n_invalid = int(np.isnan(values).sum())
    if found is None:
        assert n_invalid == len(values)
        return
    assert sum(found.counts) + found.n_invalid == len(values) and found.n_invalid == n_invalid
    assert (found.low, found.high) == (np.nanmin(values), np.nanmax(values))
    svg = draw_histogram(found)
    assert 'nan' not in svg and 'inf' not in svg and svg.count('H') == len(found.counts)


# ---- the page --------------------------------------------------------------

def decode(uri):
    kind, _, content = uri.partition(';base64,')
    return kind, cv2.imdecode(np.frombuffer(base64.b64decode(content), np.uint8), 1)[..., ::-1]


@pytest.mark.parametrize('kind, form', [('classes', 'png'), ('mask', 'png'), ('coverage', 'png'),
                                        ('heat', 'webp'), ('photo', 'webp'), ('segments', 'webp')])
def test_pictures_are_compressed(kind, form):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 20:] = (250, 20, 90)
    found, image = decode(encode_picture(Picture(kind, 'a', pixels)))
    assert found == f'data:image/{form}'
    if form == 'png':
        assert (image == pixels).all()
    else:
        assert np.abs(image[:, 30:].astype(int) - pixels[:, 30:]).mean() < 6


def test_without_webp_it_is_jpeg(monkeypatch):
    monkeypatch.setattr(cv2, 'haveImageWriter', lambda ending: False)
    assert encode_picture(Picture('photo', 'a', np.zeros((8, 8, 3), np.uint8))).startswith(
        'data:image/jpeg;')


def test_encoded_images_hold_no_pixels():
    picture = Picture('photo', 'a', np.zeros((8, 8, 3), np.uint8))
    encoded = encode_image(ImageReport(1, 'a', (), (8, 8), (picture,)))
    assert encoded.facts.pictures == () and encoded.layers[0][0].pixels is None
    assert encoded.layers[0][1].startswith('data:')


def test_without_jinja_it_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__('sys').modules, 'jinja2', None)
    for call in (check_jinja, lambda: render_page(None, ()),
                 lambda: write_report('no.kwcoco.json', tmp_path / 'a.html')):
        with pytest.raises(MissingDependencyError, match=r'pip install cocoseg\[report\]'):
            call()


@pytest.mark.parametrize('options', [
    {'limit': 0}, {'limit': 1.5}, {'max_side': 15}, {'max_side': 9000}, {'max_channels': 0},
    {'cmap': 'no such map'}], ids=str)
def test_options_are_checked_first(options, tmp_path):
    with pytest.raises(OptionError, match=next(iter(options))):
        write_report(tmp_path / 'missing.kwcoco.json', tmp_path / 'a.html', **options)
