"""The comparison with peers: every peer has a row, and what is compared agrees."""
import importlib.util
import json
import os
import shutil
import subprocess
import sys

import pytest

# What is called for in each row, by name.
NEEDS = {
    'stitching/kwarray': ['kwarray'], 'stitching/kwarray_nan': ['kwarray'],
    'stitching/kwimage': ['kwimage'], 'stitching/monai_merger': ['monai', 'torch'],
    'stitching/monai_inference': ['monai', 'torch'],
    'stitching/toolbelt': ['pytorch_toolbelt', 'torch', 'torchvision'],
    'segmentation/pyshepseg': ['pyshepseg'], 'segmentation/pyshepseg_tiled': ['pyshepseg'],
    'segmentation/slic': ['skimage'], 'segmentation/felzenszwalb': ['skimage'],
    'instances/mwatershed': ['mwatershed'], 'instances/seeded': ['skimage'],
    'instances/scipy': ['scipy'], 'instances/skimage': ['skimage'],
    'files/gdal_cog': ['osgeo'], 'files/gdal_translate': ['osgeo'],
    'files/rio_cogeo': ['rio_cogeo'], 'files/kwimage': ['kwimage'],
    'statistics/regionprops': ['skimage'], 'statistics/rasterstats': ['rasterstats', 'rasterio'],
}
# They may be there and yet not able to take part.
MAY_LACK_MORE = {'stitching/monai_merger', 'stitching/monai_inference', 'stitching/toolbelt',
                 'files/gdal_translate', 'files/gdal_cog'}


def run_compare(root, out, *words, peers=None):
    """Run the command; return its exit code, its text and the stored rows by name."""
    env = {**os.environ, 'COLUMNS': '120'}
    if peers is not None:
        env['PYTHONPATH'] = os.pathsep.join(filter(None, [str(peers), env.get('PYTHONPATH')]))
    done = subprocess.run(
        [sys.executable, str(root / 'dev' / 'compare' / 'compare.py'), '--smoke', '--out',
         str(out), *words], capture_output=True, text=True, env=env)
    assert 'not stored' not in done.stdout and (out / 'compare.json').exists(), done.stderr
    return done.returncode, done.stdout, json.loads((out / 'compare.json').read_text())


@pytest.fixture(scope='module')
def smoke(repo_root, tmp_path_factory):
    """What a run of all rows makes, and the folder with what it stored; do not modify."""
    out = tmp_path_factory.mktemp('smoke')
    return *run_compare(repo_root, out), out


@pytest.fixture
def compare_with(repo_root, smoke, tmp_path):
    """Return a function that runs one row with a peer of ours, after the run of all rows."""
    shutil.copytree(smoke[-1], tmp_path / 'out')

    def run(name, module, code):
        write_peer(tmp_path / 'peers', module, code)
        return run_compare(repo_root, tmp_path / 'out', '--only', name, peers=tmp_path / 'peers')
    return run


def write_peer(folder, name, code):
    """Write a module that is found before one that is installed."""
    (folder / name).mkdir(parents=True)
    (folder / name / '__init__.py').write_text(code)


def test_every_peer_has_a_row(smoke):
    code, text, rows, _ = smoke
    assert list(rows) == list(NEEDS)
    assert code == 0, text
    assert 'the same input through every peer' in text
    for name, row in rows.items():
        assert f'{name}: {row["peer"]}: {row["status"]}: ' in text
        absent = [module for module in NEEDS[name] if importlib.util.find_spec(module) is None]
        if absent:
            assert row['status'] == 'missing' and 'agreement' not in row
            assert all(module in row['error'] for module in absent)
            assert any(word in row['error'] for word in ('pip install', 'PYTHONPATH', 'GDAL'))
        elif name not in MAY_LACK_MORE:
            assert row['status'] == 'measured', row


def test_measured_rows_hold(smoke):
    _, text, rows, _ = smoke
    measured = {name: row for name, row in rows.items() if row['status'] == 'measured'}
    assert {'stitching/kwarray', 'instances/scipy'} <= set(measured)
    for row in measured.values():
        value, bound = row['agreement'], row['bound']
        assert bound is None or (value <= bound if row['at_most'] else value >= bound)
        assert row['version'] and row['rounds'] == len(row['values']['peer']) == 1
        assert row['ratio'] == row['theirs_s'] / row['ours_s'] > 0
        assert f'{row["ratio"]:.1f} x' in text
    # Only where the method is another one is nothing stated.
    assert {name for name, row in measured.items() if row['bound'] is None} <= {
        'segmentation/slic', 'segmentation/felzenszwalb'}


def test_broken_peer_is_a_row_and_other_rows_stay(compare_with, smoke):
    code, text, rows = compare_with('segmentation/pyshepseg', 'pyshepseg',
                                    "raise RuntimeError('broken on purpose')\n")
    row = rows.pop('segmentation/pyshepseg')
    assert code == 0
    assert row['status'] == 'failed' and row['version'] is None
    assert row['error'] == 'RuntimeError: broken on purpose'
    assert 'failed: RuntimeError: broken on purpose' in text
    assert rows == {name: kept for name, kept in smoke[2].items() if name in rows}
    assert len(rows) == len(NEEDS) - 1


def test_other_result_is_told_by_the_exit_code(compare_with):
    name = 'instances/mwatershed'
    code, text, rows = compare_with(name, 'mwatershed', (
        'import numpy as np\n'
        'def agglom(affinities, offsets):\n'
        '    return np.ones(affinities.shape[1:], np.uint64)\n'))
    row = rows[name]
    assert code == 1
    assert row['status'] == 'measured' and not row['holds'] and row['agreement'] < row['bound']
    assert f'beyond the stated agreement: {name}' in text


def test_stored_rows_go_to_the_page(smoke, repo_root, tmp_path):
    _, _, rows, out = smoke
    page = tmp_path / 'page.rst'
    page.write_text('Title\n=====\n\n.. report.py: comparison\n\nLast.\n')
    code = ('import sys; from pathlib import Path; import table; '
            'table.put_comparison(Path(sys.argv[1]), Path(sys.argv[2]))')
    for _ in range(2):
        subprocess.run([sys.executable, '-c', code, str(out), str(page)], check=True,
                       env={**os.environ, 'PYTHONPATH': str(repo_root / 'dev' / 'compare')})
    text = page.read_text()
    assert text.count('list-table') == 1 and text.endswith('\n\nLast.\n')
    assert text.count('   * - ') == len(rows) + 1
    assert all(row['peer'] in text for row in rows.values())


def test_page_has_the_place_of_the_table(repo_root):
    page = repo_root / 'docs' / 'explanation' / 'comparison.rst'
    assert page.read_text().count('.. report.py: comparison\n') == 1
