"""The command ``cocoseg report``: the page that it writes, as a parser and a browser see it."""
import base64
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import cv2
import kwcoco
import numpy as np
import pytest

from cocoseg import CocoStitchingManager
from cocoseg.cli.report import ReportConfig
from cocoseg.coco.run_record import RunClock, write_run_record
from cocoseg.io.cog import write_cog

pytest.importorskip('jinja2')

BROWSER = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))),
               None)
VOID = {'meta', 'img', 'input', 'br', 'link'}
PINK = (240, 20, 200)
EVIL = '<script>alert("x")</script> & \'friends\' {{ 7 * 7 }} \u202e'
SIZE = (120, 160)  # (h, w)


# ---- bundles ---------------------------------------------------------------

@pytest.fixture(scope='module')
def original(tmp_path_factory):
    """
    Three images: with all layers and labels, without any data, without predictions.

    The windows of the first leave the right quarter out.
    """
    folder = tmp_path_factory.mktemp('original')
    dset = kwcoco.CocoDataset()
    dset.fpath = str(folder / 'out.kwcoco.json')
    height, width = SIZE
    for image_id in (1, 2, 3):
        photo = np.zeros((height, width, 3), np.uint8)
        photo[:, :width // 2], photo[:, width // 2:] = PINK, (20, 60, 30)
        write_cog(folder / f'in{image_id}.tif', photo, blocksize=64)
        dset.add_image(id=image_id, name=f'img{image_id}', width=width, height=height, assets=[
            {'file_name': f'in{image_id}.tif', 'channels': 'red|green|blue', 'height': height,
             'width': width, 'num_bands': 3, 'warp_aux_to_img': {'type': 'affine'}}])
    reached = slice(0, 120), slice(0, 120)
    data = np.zeros((120, 120, 2))
    data[:60, :, 0], data[60:, :, 1] = 0.95, 0.8
    data[:10] = np.nan
    with CocoStitchingManager(dset, 'pred', 'water|land', 'image', expected_minmax=(0, 1),
                              layers=['class', 'mask', 'disagreement']) as manager:
        manager.accumulate_image(1, reached, data)
        manager.accumulate_image(1, (slice(0, 120), slice(0, 60)), data[:, :60] * 0.9)
        manager.finalize_image(1)
        manager.accumulate_image(2, None, np.full((height, width, 2), np.nan))
        manager.finalize_image(2)
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((40, 40), int))
    with CocoStitchingManager(dset, 'seg', 'segments', 'image', kind='labels') as manager:
        manager.accumulate_image(1, None, labels)
        manager.finalize_image(1)
        manager.dump()
    return folder


@pytest.fixture
def manifest(original, tmp_path):
    return Path(shutil.copytree(original, tmp_path / 'bundle')) / 'out.kwcoco.json'


def change(manifest, **changes):
    """Change the entry of the first image."""
    content = json.loads(manifest.read_text())
    content['images'][0].update(changes)
    manifest.write_text(json.dumps(content))


def get_path(manifest, channels, image=0):
    """Return the path of an asset."""
    assets = json.loads(manifest.read_text())['images'][image]['assets']
    (name,) = [asset['file_name'] for asset in assets if asset['channels'] == channels]
    return manifest.parent / name


# ---- pages -----------------------------------------------------------------

class Page(HTMLParser):
    """A page: its tags in order, its texts, and that it is well nested."""

    def __init__(self, fpath):
        super().__init__()
        self.html = Path(fpath).read_text('utf8')
        self.tags, self.texts, self._open = [], [], []
        self.feed(self.html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] not in (['style'], ['script']):
            self.texts.append(data)

    @property
    def text(self):
        return ' '.join(' '.join(self.texts).split())

    def find(self, tag, css=None):
        """Return the attributes of the tags of a name, and maybe of a class."""
        return [attrs for name, attrs in self.tags if name == tag
                and (css is None or css in (attrs.get('class') or '').split())]

    def get_pictures(self):
        """Return {name: RGB} of the pictures of the layers, of the first image with each."""
        found = {}
        for attrs in self.find('img'):
            if 'data-name' in attrs:
                content = base64.b64decode(attrs['src'].partition(';base64,')[2])
                pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
                found.setdefault(attrs['data-name'], pixels[..., ::-1])
        return found


def run(capsys, manifest, *words, dst='report.html'):
    """Return the exit code, what was printed, and the page if there is one."""
    dst = manifest.parent / dst
    code = ReportConfig.main(argv=[str(manifest), '--dst', str(dst), *map(str, words)])
    found = capsys.readouterr()
    return code, found.out, found.err, Page(dst) if dst.is_file() else None


def read_all(folder):
    return {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in sorted(folder.rglob('*')) if path.is_file()}


def test_page_of_a_whole_bundle(manifest, capsys):
    before = read_all(manifest.parent)
    code, out, errors, page = run(capsys, manifest)
    assert code == 0 and 'error' not in errors
    assert f'report    {manifest.parent / "report.html"}' in out and '3 of 3' in out
    after = read_all(manifest.parent)
    del after[manifest.parent / 'report.html']
    assert after == before
    assert '3 of 3 images are shown' in page.text
    assert 'All 9 checked files are whole 3 inputs were not checked' in page.text
    assert page.find('title') and 'out.kwcoco.json – cocoseg report' in page.text


def test_pictures_show_what_is_in_the_files(manifest, capsys):
    pictures = run(capsys, manifest)[3].get_pictures()
    assert list(pictures) == [
        'photo: red, green, blue', 'heat: water', 'heat: land', 'classes: pred_class',
        'mask: water_mask', 'mask: land_mask', 'disagreement: water_std',
        'disagreement: land_std', 'segments', 'coverage']
    for name, pixels in pictures.items():
        assert pixels.shape == (*SIZE, 3), name
        assert pixels.std() > 5, name
    photo = pictures['photo: red, green, blue']
    assert photo[60, 20, 0] > 200 and photo[60, 20, 1] < 60 and photo[60, 20, 2] > 150
    heat = pictures['heat: water'].astype(int)
    assert heat[30, 80].sum() > 600 > 100 > heat[90, 80].sum()
    assert np.abs(heat[3, 30] - 128).max() < 20 and np.abs(heat[60, 150] - 128).max() < 20
    classes = pictures['classes: pred_class']
    assert classes[30, 20].tolist() == [0, 114, 178] and classes[90, 20].tolist() == [0, 158, 115]
    coverage = pictures['coverage']
    # All of the labels was reached; without them the right quarter was not.
    assert (coverage[60, 150] == coverage[60, 20]).all()


def test_coverage_tells_nodata_from_what_no_window_reached(manifest, capsys):
    assets = json.loads(manifest.read_text())['images'][0]['assets']
    region = {'type': 'MultiPolygon', 'coordinates': [[
        [[0, 0], [0, 120], [120, 120], [120, 0], [0, 0]]]]}
    change(manifest, prediction_region=region,
           assets=[asset for asset in assets if asset['channels'] != 'segments'])
    coverage = run(capsys, manifest)[3].get_pictures()['coverage']
    colors = [coverage[y, x].tolist() for y, x in ((60, 20), (4, 20), (60, 150))]
    assert colors == [[0, 158, 115], [230, 159, 0], [58, 58, 68]]


def test_histograms_and_shares(manifest, capsys):
    page = run(capsys, manifest)[3]
    # One per channel of the mean and of the disagreement of the image that has data.
    assert len(page.find('svg')) == 4
    assert 'classes pred_class water 45.5% land 54.5%' in page.text
    assert '11 segments seen at this size, highest id 11' in page.text
    assert 'no pixel has data' in page.text
    assert 'this image has no predictions' in page.text


def test_nothing_comes_from_elsewhere(manifest, capsys):
    page = run(capsys, manifest)[3]
    for tag, attrs in page.tags:
        for name in ('src', 'href', 'srcset', 'data', 'action', 'poster'):
            value = attrs.get(name)
            assert value is None or value.startswith(('data:image/', '#image-')), (tag, attrs)
        assert not [name for name in attrs if name.startswith('on')]
    assert not re.search(r'https?://|url\(|@import|//cdn', page.html)
    assert not page.find('link')
    (policy,) = [attrs['content'] for attrs in page.find('meta')
                 if attrs.get('http-equiv') == 'Content-Security-Policy']
    assert policy.startswith("default-src 'none'; img-src data:;")
    targets = {attrs['id'] for _, attrs in page.tags if 'id' in attrs}
    assert {attrs['href'][1:] for attrs in page.find('a')} <= targets


def test_the_slider_is_an_input(manifest, capsys):
    page = run(capsys, manifest)[3]
    (slider, *_), n_stages = page.find('input'), len(page.find('div', 'stage'))
    assert slider['type'] == 'range' and slider['aria-label']
    assert len(page.find('input')) == n_stages == 3


def test_names_are_texts(manifest, capsys):
    """Whatever a manifest calls its things, they become texts."""
    content = json.loads(manifest.read_text())
    image = content['images'][0]
    image.update(name=EVIL, date_captured='<b onclick=1>', sensor_coarse='"><img src=x>')
    image['assets'][2]['categories'] = ['</style><h1>', '"' * 3]
    evil = manifest.parent / '<img src=x onerror=alert(1)>.tif'
    shutil.copy(manifest.parent / 'in1.tif', evil)
    image['assets'][0]['file_name'] = evil.name
    content['categories'] = [{'id': 1, 'name': '<i>'}]
    manifest.write_text(json.dumps(content))
    manifest = manifest.rename(manifest.with_name("<script>'&.json"))
    code, _, _, page = run(capsys, manifest)
    assert code == 0
    assert len(page.find('script')) == 1 and not page.find('b', None)[0].get('onclick')
    assert len(page.find('h1')) == 1 and not page.find('i', None)[0].get('onclick')
    for text in (EVIL.replace('\u202e', '').strip(), '<b onclick=1>', '"><img src=x>',
                 '</style><h1>', evil.name, '<i>', manifest.name):
        assert ' '.join(text.split()) in page.text
    assert all('src' in attrs or 'alt' in attrs for attrs in page.find('img'))
    assert not [attrs for attrs in page.find('img') if attrs.get('src') == 'x']


def test_a_missing_file_is_red_and_no_crash(manifest, capsys):
    os.unlink(get_path(manifest, 'water|land'))
    code, out, errors, page = run(capsys, manifest)
    assert code == 1
    assert '1 of 9 files are bad or missing, the page is written' in errors
    assert '1 pictures cannot be made' in out
    assert '1 of 9 checked files is bad or missing' in page.text
    assert len(page.find('figure', 'failed')) == 1
    assert page.text.count('there is no such file') == 3
    assert len(page.find('tr', 'bad')) == 2 and page.find('details')[0].get('open', 0) is None
    assert 'classes: pred_class' in page.get_pictures()


def test_a_damaged_file_is_found(manifest, capsys):
    path = get_path(manifest, 'segments')
    os.truncate(path, path.stat().st_size - 5)
    code, _, _, page = run(capsys, manifest)
    assert code == 1 and 'its journal says' in page.text
    assert 'segments' not in page.get_pictures()


def test_full_finds_a_byte_inside_of_a_tile(manifest, capsys):
    path = get_path(manifest, 'water|land')
    content = bytearray(path.read_bytes())
    content[-12] ^= 0xff
    path.write_bytes(content)
    assert run(capsys, manifest)[0] == 0
    assert run(capsys, manifest, '--full')[0] == 1


def test_a_lost_input_is_red_but_not_ours(manifest, capsys):
    os.unlink(manifest.parent / 'in1.tif')
    code, out, _, page = run(capsys, manifest)
    assert code == 0 and '1 pictures cannot be made' in out
    assert len(page.find('figure', 'failed')) == 1
    assert 'it cannot be read: there is no such file' in page.text
    assert run(capsys, manifest, '--all')[0] == 1


@pytest.mark.parametrize('changes', [{'width': None}, {'height': 0}, {'width': 'wide'},
                                     {'width': -5}], ids=str)
def test_an_image_without_a_size(manifest, capsys, changes):
    change(manifest, **changes)
    code, _, _, page = run(capsys, manifest)
    assert page is not None and 'No pictures:' in page.text and '3 of 3 images' in page.text
    assert len(page.find('p', 'problem')) == 1


@pytest.mark.parametrize('region', [{'type': 'MultiPolygon', 'coordinates': [[5]]}, 'all', []],
                         ids=str)
def test_a_region_that_is_none(manifest, capsys, region):
    change(manifest, prediction_region=region)
    code, _, _, page = run(capsys, manifest)
    assert code == 0 and len(page.find('figure', 'failed')) == 1


def test_limits(manifest, capsys):
    page = run(capsys, manifest, '--limit', 2)[3]
    assert '2 of 3 images are shown' in page.text and len(page.find('article')) == 4
    page = run(capsys, manifest, '--images', 3, 1, '--max_side', 64, '--max_channels', 1)[3]
    assert '2 of 3 images are shown, at 64 px or less a side' in page.text
    assert page.text.index('img3') < page.text.index('img1')
    pictures = page.get_pictures()
    assert {pixels.shape for pixels in pictures.values()} == {(48, 64, 3)}
    assert 'heat: land' not in pictures and '1 of the 2 channels' in page.text
    small = len(page.html)
    assert small < len(run(capsys, manifest)[3].html)


def test_runs_are_told(manifest, capsys):
    page = run(capsys, manifest)[3]
    assert page.text.count('Time and memory: not recorded.') == 2
    assert 'chan_code' in page.text and "'water|land'" in page.text
    (journal,) = (manifest.parent / '_assets/seg').glob('.cocoseg-*.jsonl')
    write_run_record(journal, RunClock.start().stop(images=7, windows=41, px=12_345_678,
                                                    executor='<threads>'))
    page = run(capsys, manifest)[3]
    assert page.text.count('Time and memory: not recorded.') == 1
    for text in ('windows 41', '12.3 million', '<threads>', 'without workers'):
        assert text in page.text
    for path in manifest.parent.rglob('.cocoseg-*'):
        path.unlink()
    code, _, _, page = run(capsys, manifest)
    assert code == 0 and 'No journal lies beside the files' in page.text
    assert 'disagreement: land_std' in page.get_pictures()


def test_an_input_without_channels(manifest, capsys):
    """As most pictures have it: only a file name."""
    cv2.imwrite(str(manifest.parent / 'a.png'), np.full((120, 160, 3), (200, 20, 240), np.uint8))
    change(manifest, file_name='a.png', assets=json.loads(
        manifest.read_text())['images'][0]['assets'][1:])
    page = run(capsys, manifest)[3]
    assert 'photo: a.png' in page.get_pictures()


def test_a_dataset_without_predictions(manifest, capsys):
    content = json.loads(manifest.read_text())
    for image in content['images']:
        image['assets'] = image['assets'][:1]
        image.pop('has_predictions', None), image.pop('prediction_region', None)
    manifest.write_text(json.dumps(content))
    code, _, _, page = run(capsys, manifest)
    assert code == 0 and 'No file was checked' in page.text
    assert list(page.get_pictures()) == ['photo: red, green, blue']
    # One layer is nothing to compare.
    assert all('hidden' in attrs for attrs in page.find('div', 'compare'))


def test_a_zipped_manifest(manifest, capsys):
    dset = kwcoco.CocoDataset(str(manifest))
    dset.fpath = str(manifest.with_suffix('.zip'))
    dset.dump(dset.fpath, compress=True)
    code, _, _, page = run(capsys, Path(dset.fpath))
    assert code == 0 and 'All 9 checked files are whole' in page.text


# ---- what is refused -------------------------------------------------------

@pytest.mark.parametrize('content', ['', '{}', 'text', '[]'])
def test_what_is_no_manifest(tmp_path, capsys, content):
    (tmp_path / 'a.json').write_text(content)
    code, _, errors, page = run(capsys, tmp_path / 'a.json')
    assert (code, page) == (1, None)
    assert 'cannot be read as a kwcoco manifest' in errors
    assert errors.count('\n') == 1 and 'Traceback' not in errors


@pytest.mark.parametrize('entry', [
    {'channels': {'a': 1}}, {'channels': 5}, {'file_name': 7}, {'quantization': 'x'},
    {'warp_aux_to_img': [1]}, {'categories': 3}, {'nodata': 'none'}, {'width': [5]}], ids=str)
def test_entries_of_a_wrong_kind_are_no_trace(manifest, capsys, entry):
    """Either the manifest is refused, or a picture says what is wrong, or nothing is lost."""
    content = json.loads(manifest.read_text())
    content['images'][0]['assets'][2].update(entry)
    manifest.write_text(json.dumps(content))
    code, out, errors, page = run(capsys, manifest)
    assert code in (0, 1) and 'Traceback' not in errors
    assert (page is None) == ('cannot be read as a kwcoco manifest' in errors)


def test_a_manifest_that_is_not_there(tmp_path, capsys):
    code, _, errors, page = run(capsys, tmp_path / 'a.json')
    assert (code, page) == (1, None) and 'No such file' in errors


@pytest.mark.parametrize('dst, message', [
    ('out.kwcoco.json', 'must end with .html'), ('in1.tif', 'must end with .html'),
    ('no/folder/a.html', 'could not write'), ('link.html', 'is the manifest or one of its files')])
def test_the_page_replaces_nothing_of_the_bundle(manifest, capsys, dst, message):
    os.symlink(manifest, manifest.parent / 'link.html')
    before = read_all(manifest.parent)
    code = ReportConfig.main(argv=[str(manifest), '--dst', str(manifest.parent / dst)])
    assert code == 1 and message in capsys.readouterr().err
    assert read_all(manifest.parent) == before


def test_a_dry_run_writes_nothing(manifest, capsys):
    before = read_all(manifest.parent)
    code, out, _, page = run(capsys, manifest, '--dry_run', '--limit', 2)
    assert (code, page) == (0, None) and 'images: 2' in out and 'report.html' in out
    assert run(capsys, manifest, '--dry_run', '--images', 99)[0] == 1
    assert read_all(manifest.parent) == before


def test_quiet_prints_nothing(manifest, capsys):
    code, out, errors, page = run(capsys, manifest, '--quiet')
    assert (code, out, errors) == (0, '', '') and page is not None


def test_an_unknown_image(manifest, capsys):
    code, _, errors, page = run(capsys, manifest, '--images', 1, 99)
    assert (code, page) == (1, None) and 'has no images [99]' in errors


def test_wrong_arguments(manifest, capsys):
    assert ReportConfig.main(argv=[str(manifest)]) == 2
    assert 'dst' in capsys.readouterr().err


# ---- in a browser ----------------------------------------------------------

def browse(*words):
    """Run the browser; return what it printed, and what the page logged."""
    done = subprocess.run(
        [BROWSER, '--headless=new', '--no-sandbox', '--disable-gpu', '--hide-scrollbars',
         '--enable-logging=stderr', '--v=0', *map(str, words)], capture_output=True, text=True,
        timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if 'CONSOLE' in line]


def count_near(screen, color, tolerance=40):
    return int((np.abs(screen.astype(int) - color).max(axis=2) < tolerance).sum())


@pytest.mark.skipif(BROWSER is None, reason='there is no chromium to look at the page')
@pytest.mark.parametrize('width', [1200, 500])
def test_a_browser_shows_the_page(manifest, tmp_path, capsys, width):
    change(manifest, name=EVIL)
    run(capsys, manifest)
    page = manifest.parent / 'report.html'
    screen = tmp_path / 'screen.png'
    _, logged = browse(f'--screenshot={screen}', f'--window-size={width},1600',
                       f'--user-data-dir={tmp_path / "profile"}', page.as_uri())
    assert logged == []
    pixels = cv2.imread(str(screen))[..., ::-1]
    assert pixels.shape == (1600, width, 3) and pixels.std() > 20
    assert len(np.unique(pixels.reshape(-1, 3)[::7], axis=0)) > 200
    # The left half of the comparison is the photo, the right one a heatmap.
    assert count_near(pixels, PINK) > 20_000
    assert count_near(pixels, (0, 0, 4), 20) > 5_000


@pytest.mark.skipif(BROWSER is None, reason='there is no chromium to look at the page')
def test_the_script_runs(manifest, tmp_path, capsys):
    run(capsys, manifest, '--images', 1)
    html, logged = browse('--dump-dom', f'--user-data-dir={tmp_path / "profile"}',
                          (manifest.parent / 'report.html').as_uri())
    assert logged == []
    (tmp_path / 'dom.html').write_text(html)
    dom = Page(tmp_path / 'dom.html')
    (compare,) = dom.find('div', 'compare')
    assert 'hidden' not in compare
    under, over = dom.find('img', 'under')[0], dom.find('img', 'over')[0]
    thumbs = [attrs for attrs in dom.find('img') if 'data-name' in attrs]
    assert (under['src'], over['src']) == (thumbs[0]['src'], thumbs[1]['src'])
    assert [attrs['aria-pressed'] for attrs in thumbs[:3]] == ['false', 'true', 'false']
    assert len(dom.find('option')) == 2 * len(thumbs)
