"""The example that masks clouds runs, and its masks are right."""
import runpy

import numpy as np
import pytest

from cocoseg import verify_cog
from cocoseg.io.raster import raster_info, read_raster


@pytest.fixture(scope='module')
def example(repo_root):
    return runpy.run_path(str(repo_root / 'dev' / 'examples' / 'mask_clouds.py'))


@pytest.fixture
def data(repo_root):
    """Folder of the image, which is not part of the checkout."""
    folder = repo_root.parent / 'shared' / 'data' / 'cloudmask_s2'
    if not (folder / 'sentinel2.npz').exists():
        pytest.skip(f'there is no {folder}')
    return folder


def test_masks_of_clouds(example, data, tmp_path, capsys):
    assert example['main'](['--data', str(data), '--out', str(tmp_path), '--buffer', '3']) == 0
    image, classes = example['read_data'](data, 1)
    free = ~np.isin(classes, (example['SHADOW'], example['CLOUD']))
    padded = np.pad(free, 3, 'edge')
    clear = np.lib.stride_tricks.sliding_window_view(padded, (7, 7)).all(axis=(2, 3))
    for name, expected in (('free', free), ('clear', clear), ('selector', clear),
                           ('dark', example['is_dark'](image) == 255)):
        verify_cog(tmp_path / f'{name}.tif')
        np.testing.assert_array_equal(read_raster(tmp_path / f'{name}.tif')[..., 0],
                                      np.where(expected, 255, 0))
    assert raster_info(tmp_path / 'clouds.png').shape == (512, 4 * 512 + 3 * 8, 3)
    printed = capsys.readouterr().out
    assert f'clear     {clear.mean():.1%}' in printed and 'clouds.png' in printed
    # The rule is no toy: most of the clouds, and little else.
    words = [float(word.rstrip('%')) for word in printed.split() if word.endswith('%')]
    assert min(words[2:4]) > 80


def test_without_data(example, tmp_path, capsys):
    assert example['main'](['--data', str(tmp_path), '--out', str(tmp_path / 'out')]) == 0
    assert 'skipped: there is no' in capsys.readouterr().out
    assert not (tmp_path / 'out').exists()
