"""
Styles beside the assets of a dataset: what each is told as, and what is left alone.
"""
import logging
import os
from pathlib import Path
from xml.etree import ElementTree

import kwcoco
import numpy as np
import pytest

from cocoseg import CocoStitchingManager, mask_dataset, write_cog
from cocoseg.cli.main import main
from cocoseg.coco.audit import audit_manifest
from cocoseg.coco.drawing import color_ids
from cocoseg.coco.styles import write_styles
from cocoseg.errors import AssetWriteError, OptionError
from cocoseg.io.qgis_style import MAX_ENTRIES, make_classes_qml

SHAPE = (48, 64)
VALUES = np.random.default_rng(0).random((*SHAPE, 3)).astype('f4')
LABELS = np.arange(48)[:, None] // 12 * 4 + np.arange(64) // 16


def make_dataset(folder):
    dset = kwcoco.CocoDataset()
    dset.fpath = os.fspath(folder / 'out.kwcoco.json')
    dset.add_image(name='im1', width=SHAPE[1], height=SHAPE[0], assets=[])
    return dset


def predict(dset, chan_code='a|b|c', data=VALUES, **options):
    """Write the assets of one manager."""
    with CocoStitchingManager(dset, options.pop('short_code', 'pred'), chan_code, 'image',
                              **options) as manager:
        manager.accumulate_image(1, None, data)
        # Two predictions, so that they can disagree.
        if manager.result_dataset is dset and options.get('layers'):
            manager.accumulate_image(1, None, data / 2)
        manager.finalize_image(1)
    dset.dump()


@pytest.fixture()
def dset(tmp_path):
    dset = make_dataset(tmp_path)
    predict(dset, expected_minmax=(0, 2), layers=['class', 'mask', 'disagreement'])
    predict(dset, 'segments', LABELS, short_code='segs', kind='labels')
    return dset


def read_styles(fpaths):
    """Return the renderers by what follows the name of the image."""
    found = {}
    for fpath in map(Path, fpaths):
        root = ElementTree.fromstring(fpath.read_text(encoding='utf8'))
        assert fpath.suffix == '.qml' and fpath.with_suffix('.tif').exists()
        found[fpath.stem.removeprefix('im1_')] = root.find('pipe/rasterrenderer')
    return found


def test_each_kind_is_told_and_drawn(dset):
    before = Path(dset.fpath).read_bytes()
    fpaths = write_styles(dset)
    styles = read_styles(fpaths)
    kinds = {asset['channels']: styles[Path(asset['file_name']).stem.removeprefix('im1_')]
             for asset in dset.imgs[1]['assets']}
    assert len(kinds) == len(fpaths) == 5
    assert [(name, kinds[name].get('type'), kinds[name].get('band')) for name in kinds] == [
        ('a|b|c', 'singlebandpseudocolor', '1'), ('pred_class', 'paletted', '1'),
        ('a_mask|b_mask|c_mask', 'paletted', '1'),
        ('a_std|b_std|c_std', 'singlebandpseudocolor', '1'), ('segments', 'paletted', '1')]
    # True values, as QGIS applies the scale of the file.
    assert kinds['a|b|c'].get('classificationMax') == '2'
    assert kinds['a_std|b_std|c_std'].get('classificationMax') == '1'
    assert [entry.get('label') for entry in kinds['pred_class'].iter('paletteEntry')] == [
        'a', 'b', 'c']
    mask, = kinds['a_mask|b_mask|c_mask'].iter('paletteEntry')
    assert (mask.get('value'), mask.get('label')) == ('1', 'a_mask')
    entries = list(kinds['segments'].iter('paletteEntry'))
    assert [int(entry.get('value')) for entry in entries] == list(range(1, LABELS.max() + 1))
    colors = color_ids(np.arange(1, LABELS.max() + 1))
    assert [tuple(bytes.fromhex(entry.get('color')[1:])) for entry in entries] == [
        tuple(color) for color in colors]
    assert Path(dset.fpath).read_bytes() == before


def test_styles_are_no_orphans_for_the_audit(dset, capsys):
    before = audit_manifest(dset.fpath)
    write_styles(dset)
    after = audit_manifest(dset.fpath, full=True)
    assert after.notes == before.notes == ()
    assert [check.status for check in after.checks] == ['ok'] * 5
    assert main(['verify', dset.fpath]) in (0, None)
    assert '.qml' not in capsys.readouterr().out


def test_a_later_run_keeps_the_style_until_it_is_written_again(dset):
    first = {fpath: Path(fpath).read_text(encoding='utf8') for fpath in write_styles(dset)}
    style = next(fpath for fpath in first if fpath.endswith('pred_class.qml'))
    again = make_dataset(Path(dset.fpath).parent)
    predict(again, 'sea|land|ice', layers=['class'], expected_minmax=(0, 2))
    assert Path(style).read_text(encoding='utf8') == first[style]
    assert style in write_styles(again)
    assert 'label="sea"' in Path(style).read_text(encoding='utf8')


def test_a_style_that_somebody_saved_is_kept(dset, caplog):
    fpaths = write_styles(dset)
    own = '<qgis version="3.34.1"><pipe/></qgis>'
    Path(fpaths[0]).write_text(own, encoding='utf8')
    with caplog.at_level(logging.INFO):
        assert write_styles(dset) == fpaths[1:]
    assert Path(fpaths[0]).read_text(encoding='utf8') == own
    assert 'it is kept' in caplog.text


def test_style_of_an_asset_that_is_gone_is_removed(dset, caplog):
    fpaths = write_styles(dset)
    Path(fpaths[1]).with_suffix('.tif').unlink()
    assert write_styles(dset) == [fpaths[0], *fpaths[2:]]
    assert not os.path.exists(fpaths[1]) and 'is missing' in caplog.text


def test_channels_choose_assets_and_the_band(dset):
    styles = read_styles(write_styles(dset, 'b|c_std'))
    assert sorted(renderer.get('band') for renderer in styles.values()) == ['2', '3']
    with pytest.raises(OptionError, match='no_such'):
        write_styles(dset, 'no_such')


def test_only_what_is_ours_gets_a_style_unless_asked_for(tmp_path):
    dset = make_dataset(tmp_path)
    photo = (VALUES * 200).astype(np.uint8)
    write_cog(tmp_path / 'photo.tif', photo)
    write_cog(tmp_path / 'heat.tif', VALUES[..., :1] * 4 - 2)
    dset.imgs[1]['assets'] = [
        {'file_name': 'photo.tif', 'channels': 'red|green|blue', 'num_bands': 3},
        {'file_name': 'heat.tif', 'channels': 'heat', 'num_bands': 1},
        {'file_name': 'https://no.where/x.tif', 'channels': 'heat', 'num_bands': 1}]
    assert write_styles(dset) == []
    fpaths = write_styles(dset, 'red|heat')
    photo_style, heat = [ElementTree.parse(fpath).find('pipe/rasterrenderer') for fpath in fpaths]
    assert photo_style.get('type') == 'multibandcolor' and photo_style.get('blueBand') == '3'
    assert float(photo_style.find('redContrastEnhancement/maxValue').text) == pytest.approx(
        np.percentile(photo[..., 0], 98))
    ends = np.percentile(VALUES[..., 0] * 4 - 2, [2, 98])
    assert float(heat.get('classificationMin')) == pytest.approx(ends[0], abs=1e-5)
    assert float(heat.get('classificationMax')) == pytest.approx(ends[1], abs=1e-5)


def test_range_of_floats_leaves_out_nodata_and_applies_scales(tmp_path):
    dset = make_dataset(tmp_path)
    data = np.full((600, 700), 1000, np.int16)
    data[:, :350], data[:100] = 3000, -9999
    write_cog(tmp_path / 'x.tif', data, nodata=-9999, scale=0.001, offset=1)
    write_cog(tmp_path / 'y.tif', np.full((30, 20), 5.0, np.float32))
    dset.imgs[1]['assets'] = [{'file_name': f'{name}.tif', 'channels': name} for name in 'xy']
    ranges = [[float(renderer.get(f'classification{end}')) for end in ('Min', 'Max')]
              for renderer in (ElementTree.parse(fpath).find('pipe/rasterrenderer')
                               for fpath in write_styles(dset, 'x|y'))]
    assert ranges == [[pytest.approx(2), pytest.approx(4)], [5, 6]]


def test_codes_of_a_png_are_what_qgis_sees(tmp_path):
    dset = make_dataset(tmp_path)
    predict(dset, prob_format='png', expected_minmax=(0, 1), layers=['mask'])
    fpaths = write_styles(dset)
    soft, mask = [ElementTree.parse(fpath).find('pipe/rasterrenderer') for fpath in fpaths]
    quantization = dset.imgs[1]['assets'][0]['quantization']
    assert float(soft.get('classificationMax')) == quantization['quant_max'] > 100
    assert mask.get('type') == 'paletted'


def test_many_segments_get_a_ramp(tmp_path):
    dset = make_dataset(tmp_path)
    labels = np.arange(1, 80 * 80 + 1).reshape(80, 80)
    dset.imgs[1].update(width=80, height=80)
    predict(dset, 'segments', labels, kind='labels')
    renderer = ElementTree.parse(write_styles(dset)[0]).find('pipe/rasterrenderer')
    items = [int(item.get('value')) for item in renderer.iter('item')]
    assert (len(items), items[0], items[-1]) == (MAX_ENTRIES, 1, 6400)


def test_ids_are_found_in_all_strips(tmp_path, monkeypatch):
    from cocoseg.coco import styles
    monkeypatch.setattr(styles, '_STEP', 64 * 5)
    dset = make_dataset(tmp_path)
    labels = LABELS[::-1].astype(np.uint32) * 1000
    write_cog(tmp_path / 'ids.tif', labels, nodata=0)
    dset.imgs[1]['assets'] = [{'file_name': 'ids.tif', 'channels': 'ids'}]
    entries = ElementTree.parse(write_styles(dset, 'ids')[0]).iter('paletteEntry')
    assert [int(entry.get('value')) for entry in entries] == list(range(1000, 16000, 1000))
    monkeypatch.setattr(styles.qgis_style, 'MAX_ENTRIES', 4)
    renderer = ElementTree.parse(write_styles(dset, 'ids')[0]).find('pipe/rasterrenderer')
    assert [int(item.get('value')) for item in renderer.iter('item')][-1] == 15000


def test_masks_of_valid_pixels_are_ours(tmp_path):
    dset = make_dataset(tmp_path)
    write_cog(tmp_path / 'photo.tif', (VALUES * 200).astype(np.uint8))
    dset.imgs[1]['assets'] = [{'file_name': 'photo.tif', 'channels': 'r|g|b', 'width': 64,
                               'height': 48, 'num_bands': 3, 'warp_aux_to_img': {'scale': 1}}]
    dset.dump()
    result = mask_dataset(dset, tmp_path / 'masked.kwcoco.json')
    fpath, = write_styles(result)
    entry, = ElementTree.parse(fpath).iter('paletteEntry')
    assert (entry.get('value'), entry.get('label')) == ('255', 'valid')


def test_ours_without_attributes_are_told_by_the_journal(tmp_path):
    dset = make_dataset(tmp_path)
    predict(dset, expected_minmax=(0, 1), write_prediction_attrs=False)
    assert 'has_predictions' not in dset.imgs[1]
    journal, = Path(dset.fpath).parent.rglob('.cocoseg-*.jsonl')
    journal.write_text(journal.read_text() + '{"cut short\n5\n{"record": 7}\n')
    assert len(write_styles(dset)) == 1
    journal.unlink()
    assert write_styles(dset) == []


def test_two_assets_of_one_stem_do_not_share_a_style(tmp_path, caplog):
    dset = make_dataset(tmp_path)
    for name in ('x.tif', 'x.tiff'):
        write_cog(tmp_path / name, VALUES)
    dset.imgs[1]['assets'] = [{'file_name': name, 'channels': 'x|y|z'}
                              for name in ('x.tif', 'x.tiff')]
    assert write_styles(dset, 'x') == [str(tmp_path / 'x.qml')]
    assert 'style of another asset' in caplog.text


def test_a_style_that_cannot_be_written_says_so(dset, monkeypatch):
    from cocoseg.coco import styles

    def fail(*args, **options):
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(styles, 'atomic_write', fail)
    with pytest.raises(AssetWriteError, match=r'\.qml.*No space'):
        write_styles(dset)


def test_a_marked_style_is_replaced(dset):
    fpath = write_styles(dset)[0]
    good = Path(fpath).read_text(encoding='utf8')
    Path(fpath).write_text(make_classes_qml([(1, 'old', '#000000')]), encoding='utf8')
    write_styles(dset)
    assert Path(fpath).read_text(encoding='utf8') == good


# ---- the command line ------------------------------------------------------

def test_the_command_writes_what_the_function_does(dset, capsys):
    assert main(['style', dset.fpath]) == 0
    told = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    texts = [Path(fpath).read_text() for fpath in told]
    assert told == write_styles(dset) and len(told) == 5
    assert texts == [Path(fpath).read_text() for fpath in told]


@pytest.mark.parametrize('words', [[], ['--channels', 'b']])
def test_a_dry_run_lists_what_would_be_written(dset, tmp_path, capsys, words):
    before = sorted(tmp_path.rglob('*'))
    assert main(['style', dset.fpath, '--dry_run', *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(tmp_path.rglob('*')) == before
    assert [line.split()[1] for line in lines if line.startswith('write')] == write_styles(
        dset, words[-1] if words else None)


def test_channels_that_are_not_there_are_one_line(dset, capsys):
    assert main(['style', dset.fpath, '--channels', 'nope']) == 1
    assert 'no asset' in capsys.readouterr().err
