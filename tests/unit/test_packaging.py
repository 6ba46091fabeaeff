"""What is installed and how: setup.py, requirements, change log and scripts."""
import os
import re
import runpy
import shutil
import stat
import subprocess
import sys

import pytest
import setuptools
from packaging.requirements import Requirement

SCRIPTS = ['dev/setup.sh', 'dev/demo.sh', 'dev/test.sh', '.ci/run']
EXTRAS = ['gdal', 'tables', 'zarr', 'instances', 'report', 'dask', 'torch', 'tests', 'docs']
BASH = shutil.which('bash')


@pytest.fixture
def metadata(repo_root, monkeypatch):
    """The keywords with which setup.py calls setuptools."""
    calls = []
    monkeypatch.setattr(setuptools, 'setup', lambda **keywords: calls.append(keywords))
    monkeypatch.chdir(repo_root)
    runpy.run_path('setup.py')
    (keywords,) = calls
    return keywords


def parse_requirements(path):
    """Return the requirements of a file; an invalid line raises."""
    lines = (line.partition('#')[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line]


def read_version(repo_root):
    text = (repo_root / 'cocoseg' / '__init__.py').read_text()
    return re.search(r"^__version__ = '(.+)'$", text, re.MULTILINE).group(1)


def test_metadata_names_the_package_and_its_command(metadata, repo_root):
    assert metadata['name'] == 'cocoseg'
    assert metadata['version'] == read_version(repo_root)
    assert metadata['python_requires'] == '>=3.10'
    assert metadata['license'] == 'Apache-2.0'
    assert metadata['entry_points'] == {
        'console_scripts': ['cocoseg = cocoseg.cli.main:main']}


def test_metadata_installs_every_module_and_the_demo_data(metadata, repo_root):
    folders = {path.parent for path in (repo_root / 'cocoseg').rglob('*.py')}
    names = {'.'.join(folder.relative_to(repo_root).parts) for folder in folders}
    assert names == set(metadata['packages'])
    assert metadata['package_data'] == {
        'cocoseg': ['py.typed', '__init__.pyi', 'coco/demodata/*', 'coco/templates/*']}


def test_metadata_has_every_extra(metadata):
    extras = metadata['extras_require']
    assert set(extras) == {*EXTRAS, 'all'}
    assert all(extras[name] for name in EXTRAS)
    assert set(extras['all']) == {line for name in EXTRAS for line in extras[name]}


@pytest.mark.parametrize('name', ['runtime', *EXTRAS])
def test_requirements_parse_and_have_lower_bounds_only(repo_root, name):
    requirements = parse_requirements(repo_root / 'requirements' / f'{name}.txt')
    assert requirements
    names = [requirement.name for requirement in requirements]
    assert len(names) == len(set(names))
    for requirement in requirements:
        operators = [spec.operator for spec in requirement.specifier]
        assert operators == ['>='], f'{name}.txt: {requirement}'


def test_no_requirements_file_is_forgotten(repo_root):
    files = {path.stem for path in (repo_root / 'requirements').glob('*.txt')}
    assert files == {'runtime', *EXTRAS}


def test_gdal_and_torch_are_needed_by_no_plain_install(metadata):
    names = {Requirement(line).name for line in metadata['install_requires']}
    assert not names & {'gdal', 'torch', 'dask', 'zarr'}
    assert {'numpy', 'kwcoco', 'kwimage', 'opencv-python-headless', 'skops'} <= names


def test_top_entry_of_the_change_log_is_this_version(repo_root):
    text = (repo_root / 'CHANGELOG.md').read_text()
    entries = re.findall(r'^## \[(.+?)\] - (?:unreleased|\d{4}-\d\d-\d\d)$', text, re.MULTILINE)
    assert entries[0] == read_version(repo_root)


@pytest.mark.parametrize('name', SCRIPTS)
def test_script_is_executable_and_parses(repo_root, name):
    path = repo_root / name
    assert path.stat().st_mode & stat.S_IXUSR
    done = subprocess.run([BASH, '-n', str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, '')
    assert 'set -euo pipefail' in path.read_text()


# -- dev/setup.sh on machines that lack something, in a bare copy of the checkout

@pytest.fixture
def bare_machine(repo_root, tmp_path):
    """A checkout and a folder of commands: no gdal-config, no apt-get, no compiler."""
    checkout, commands = tmp_path / 'checkout', tmp_path / 'bin'
    shutil.copytree(repo_root / 'dev', checkout / 'dev',
                    ignore=shutil.ignore_patterns('bench', 'compare', '__pycache__'))
    shutil.copytree(repo_root / 'requirements', checkout / 'requirements')
    for name in ('setup.py', 'pyproject.toml'):
        shutil.copy(repo_root / name, checkout / name)
    commands.mkdir()
    for name in ('dirname', 'id', 'env', 'cat', 'cksum', 'rm'):
        (commands / name).symlink_to(shutil.which(name))
    return checkout, commands


def add_command(commands, name, body):
    """Put a shell script on the PATH of the bare machine."""
    path = commands / name
    path.write_text(f'#!{BASH}\n{body}\n')
    path.chmod(0o755)


def run_setup(machine, python=sys.executable):
    """Run dev/setup.sh with nothing but the machine's commands on its PATH."""
    checkout, commands = machine
    env = {'PATH': str(commands), 'HOME': str(checkout), 'PYTHON': python or ''}
    return subprocess.run([BASH, 'dev/setup.sh'], cwd=checkout, env=env,
                          capture_output=True, text=True, check=False)


def test_setup_without_gdal_and_apt_says_what_to_install(bare_machine):
    done = run_setup(bare_machine)
    assert done.returncode == 1
    (line,) = (done.stdout + done.stderr).splitlines()
    assert 'libgdal-dev' in line
    assert 'conda install -c conda-forge gdal' in line
    assert not (bare_machine[0] / '.venv').exists()


def test_setup_installs_gdal_with_apt(bare_machine):
    """The apt-get of this machine only notes its arguments, then fails."""
    add_command(bare_machine[1], 'apt-get', 'echo "apt-get $*" >&2; [ "$2" = update ]')
    add_command(bare_machine[1], 'sudo', '"$@"')
    done = run_setup(bare_machine)
    assert done.returncode == 1
    calls = [line for line in done.stderr.splitlines() if line.startswith('apt-get ')]
    assert calls[0] == 'apt-get -qq update'
    assert {'install', '-y', 'libgdal-dev', 'gdal-bin', 'g++'} <= set(calls[1].split())
    assert 'could not install libgdal-dev' in done.stderr.splitlines()[-1]


def test_setup_with_gdal_needs_no_apt(bare_machine):
    """It goes on to the virtual environment, which fails here on purpose."""
    checkout, commands = bare_machine
    add_command(commands, 'gdal-config', 'echo 3.6.2')
    add_command(commands, 'c++', 'exit 1')
    add_command(commands, 'python3', 'case $* in *"-m venv"*) exit 1;; '
                                     '*version*) echo 3.11.7;; esac')
    done = run_setup((checkout, commands), python='python3')
    assert done.returncode == 1
    assert 'making .venv with Python 3.11.7' in done.stderr
    assert "'python3 -m venv' failed" in done.stderr


def test_setup_keeps_the_interpreter_of_the_environment(bare_machine):
    """Without PYTHON; the pip of this environment fails, so that the run ends."""
    checkout, commands = bare_machine
    add_command(commands, 'gdal-config', 'echo 3.6.2')
    add_command(commands, 'c++', 'exit 1')
    add_command(commands, 'python3', 'echo 3.11.7')
    (checkout / '.venv' / 'bin').mkdir(parents=True)
    add_command(checkout / '.venv' / 'bin', 'python',
                'case $* in *"pip install"*) exit 1;; *version*) echo 3.12.1;; esac')
    done = run_setup((checkout, commands), python=None)
    assert done.returncode == 1
    assert 'making .venv' not in done.stderr
    assert 'pip could not install the build tools' in done.stderr
    assert not (checkout / '.venv' / 'cocoseg-setup.stamp').exists()


@pytest.mark.parametrize('version', ['2.7.18', '3.9.18'])
def test_setup_refuses_an_old_python(bare_machine, version):
    add_command(bare_machine[1], 'python3', f'echo {version}')
    done = run_setup(bare_machine, python='python3')
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert version in line and '3.10' in line


def test_setup_names_a_missing_python(bare_machine):
    done = run_setup(bare_machine, python='no-such-python')
    assert done.returncode == 1
    assert "there is no 'no-such-python'" in done.stderr


@pytest.mark.parametrize('name, last', [
    ('dev/demo.sh', '/.venv/bin/cocoseg demo --size 7'),
    ('dev/test.sh', '/.venv/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile '
                    '--xdoctest --xdoctest-style google cocoseg tests --size 7'),
])
def test_script_sets_up_then_passes_its_arguments(bare_machine, tmp_path, name, last):
    """With a set-up that does nothing and commands that say how they were called."""
    checkout, _ = bare_machine
    (checkout / 'dev' / 'setup.sh').write_text('echo set up')
    commands = checkout / '.venv' / 'bin'
    commands.mkdir(parents=True)
    for command in ('cocoseg', 'python'):
        add_command(commands, command, 'echo "$0 $*"')
    done = subprocess.run([BASH, str(checkout / name), '--size', '7'], cwd=tmp_path,
                          env=os.environ, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first == 'set up'
    assert second.endswith(last.removeprefix('/'))
