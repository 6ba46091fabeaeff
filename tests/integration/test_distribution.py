"""Source distribution and wheel: what is in them, and that the installed package works."""
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.parser import Parser

import cocoseg
import pytest

SOURCES = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.rst', 'CHANGELOG.md')
FOLDERS = ('cocoseg', 'requirements', 'tests', 'docs', 'dev')
NAME = f'cocoseg-{cocoseg.__version__}'
# What `import cocoseg` leaves to the first use of a name.
LATE = {'numpy', 'numba', 'scipy', 'sklearn', 'skops', 'pandas', 'pyarrow', 'cv2', 'osgeo', 'zarr',
        'kwcoco', 'kwimage', 'ubelt', 'shapely', 'skimage', 'matplotlib', 'torch', 'dask',
        'distributed', 'typing', 'importlib.metadata'}


def run(*command, cwd):
    """Run a command that must succeed, without this checkout on the path; return its output."""
    env = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=env, text=True,
                          capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(checkout, dst):
    """Build the source distribution, and the wheel from what is in it."""
    spec = importlib.util.find_spec('build')
    if spec is not None and spec.origin is not None:    # not some folder of that name
        run(sys.executable, '-m', 'build', '--no-isolation', '--outdir', dst, checkout, cwd=dst)
        return
    run(sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', dst, cwd=checkout)
    with tarfile.open(dst / f'{NAME}.tar.gz') as archive:
        # The default from Python 3.14 on.
        archive.extraction_filter = getattr(tarfile, 'data_filter', None)
        archive.extractall(dst.parent / 'unpacked')
    run(sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-build-isolation', '--no-deps',
        '--no-index', '--wheel-dir', dst, dst.parent / 'unpacked' / NAME, cwd=dst)


@pytest.fixture(scope='module')
def dist(repo_root, tmp_path_factory):
    """A folder with both, built from a copy: what a build leaves behind is not for a checkout."""
    folder = tmp_path_factory.mktemp('distribution')
    checkout, dst = folder / 'checkout', folder / 'dist'
    dst.mkdir()
    for name in FOLDERS:
        shutil.copytree(repo_root / name, checkout / name,
                        ignore=shutil.ignore_patterns('__pycache__', '.*', '_build'))
    for name in SOURCES:
        shutil.copy(repo_root / name, checkout / name)
    build(checkout, dst)
    return dst


@pytest.fixture(scope='module')
def python(dist, tmp_path_factory):
    """The interpreter of a new environment with the wheel, and the libraries of this one."""
    root = tmp_path_factory.mktemp('environment')
    run(sys.executable, '-m', 'venv', '--without-pip', root, cwd=root)
    python = root / 'bin' / 'python'
    run(sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet', '--no-deps',
        '--no-index', dist / f'{NAME}-py3-none-any.whl', cwd=root)
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    (site,) = run(python, '-c', code, cwd=root).splitlines()
    # Names of folders only: the .pth files in them, such as ours, are not read.
    ours = dict.fromkeys([sysconfig.get_path('purelib'), sysconfig.get_path('platlib'),
                          *(path for path in sys.path if path.endswith('-packages'))])
    with open(os.path.join(site, 'libraries.pth'), 'w') as file:
        file.writelines(f'{path}\n' for path in ours)
    return python


def list_files(folder):
    """Return the files of a folder that are to be distributed."""
    return {path.relative_to(folder.parent).as_posix() for path in folder.rglob('*')
            if path.is_file() and path.suffix not in ('.pyc', '.nbi', '.nbc')
            and not any(part.startswith('.') for part in path.parts[len(folder.parts):])}


def test_both_are_built(dist):
    assert sorted(os.listdir(dist)) == [f'{NAME}-py3-none-any.whl', f'{NAME}.tar.gz']


def test_wheel_has_the_package_and_nothing_else(dist):
    with zipfile.ZipFile(dist / f'{NAME}-py3-none-any.whl') as wheel:
        names = {name for name in wheel.namelist() if not name.endswith('/')}
        metadata = Parser().parsestr(wheel.read(f'{NAME}.dist-info/METADATA').decode())
        entry_points = wheel.read(f'{NAME}.dist-info/entry_points.txt').decode()
    package = {name for name in names if not name.startswith(f'{NAME}.dist-info/')}
    assert package == list_files(dist.parent / 'checkout' / 'cocoseg')
    assert {'cocoseg/py.typed', 'cocoseg/__init__.pyi', 'cocoseg/coco/templates/report.html.j2',
            'cocoseg/coco/demodata/README.md'} <= package
    assert any(name.endswith('LICENSE') for name in names - package)
    assert 'cocoseg = cocoseg.cli.main:main' in entry_points
    assert metadata['Version'] == cocoseg.__version__
    assert metadata['Requires-Python'] == '>=3.10'
    assert 'zarr' in metadata.get_all('Provides-Extra')


def test_source_distribution_has_what_builds_and_tests_it(dist):
    with tarfile.open(dist / f'{NAME}.tar.gz') as archive:
        names = {member.name.removeprefix(f'{NAME}/') for member in archive if member.isfile()}
    assert list_files(dist.parent / 'checkout' / 'cocoseg') <= names
    assert list_files(dist.parent / 'checkout' / 'requirements') <= names
    assert set(SOURCES) <= names
    assert {'tests/conftest.py', 'dev/setup.sh', 'docs/index.rst'} <= names
    assert not [name for name in names if re.search(r'__pycache__|\.(pyc|nbi|nbc)$', name)]


def test_installed_command_tells_its_versions(python, tmp_path):
    versions = run(python, '-m', 'cocoseg', '--version', cwd=tmp_path)
    assert versions.splitlines()[0] == f'cocoseg {cocoseg.__version__}'
    assert {'python', 'numpy', 'gdal', 'kwcoco'} <= {
        line.split()[0] for line in versions.splitlines()}
    assert run(python.with_name('cocoseg'), '--version', cwd=tmp_path) == versions


DEMO = '''
import sys
from pathlib import Path
import cocoseg
from cocoseg.coco.demo import demo_dataset, run_demo
assert Path(sys.prefix).resolve() in Path(cocoseg.__file__).resolve().parents, cocoseg.__file__
print(demo_dataset(sys.argv[1]).n_images)
'''


def test_installed_demo_finds_its_images(python, tmp_path):
    pytest.importorskip('osgeo', reason='GDAL is not installed: pip install cocoseg[gdal]')
    assert run(python, '-c', DEMO, tmp_path / 'demo', cwd=tmp_path).strip() == '3'


def test_import_leaves_libraries_for_later(python, tmp_path):
    code = f"import sys, cocoseg; print(*sorted({LATE!r} & set(sys.modules)))"
    before = f"import sys; print(*sorted({LATE!r} & set(sys.modules)))"
    # What starts with the interpreter is not ours: some environments load much.
    started = run(python, '-c', before, cwd=tmp_path).split()
    assert run(python, '-c', code, cwd=tmp_path).split() == started
    assert 'numpy' not in started


def test_import_of_a_name_is_seen(python, tmp_path):
    """The test above would see a library that is imported too early."""
    code = f"import sys; from cocoseg import Area; print(*sorted({LATE!r} & set(sys.modules)))"
    assert 'numpy' in run(python, '-c', code, cwd=tmp_path).split()
