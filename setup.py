"""
Packaging of cocoseg: what is installed, what it needs, what it is called.

The version is read as text, because importing the package would need its
requirements before they are installed. Requirements live in
``requirements/*.txt``, one file per extra.
"""
import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
EXTRAS = ('gdal', 'tables', 'zarr', 'instances', 'report', 'dask', 'torch', 'tests', 'docs')


def read_version():
    """Return ``__version__`` of cocoseg/__init__.py without importing it."""
    text = (ROOT / 'cocoseg' / '__init__.py').read_text(encoding='utf-8')
    match = re.search(r'''^__version__ = ['"]([^'"]+)['"]''', text, re.MULTILINE)
    if match is None:
        raise RuntimeError("cocoseg/__init__.py has no line __version__ = '...'")
    return match.group(1)


def read_requirements(name):
    """Return the requirements of ``requirements/<name>.txt``, without comments."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text(encoding='utf-8')
    lines = (line.partition('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def read_long_description():
    """Return the README, or an empty text while there is none."""
    readme = ROOT / 'README.rst'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


def build_extras():
    """Return the extras by name; ``all`` is every requirement of the others."""
    extras = {name: read_requirements(name) for name in EXTRAS}
    extras['all'] = sorted({line for lines in extras.values() for line in lines})
    return extras


setup(
    name='cocoseg',
    version=read_version(),
    description='Stitch windowed predictions of large images into Cloud-Optimized '
                'GeoTIFFs, registered in kwcoco',
    long_description=read_long_description(),
    long_description_content_type='text/x-rst',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10',
    packages=find_packages(include=['cocoseg', 'cocoseg.*']),
    package_data={
        'cocoseg': ['py.typed', '__init__.pyi', 'coco/demodata/*', 'coco/templates/*']},
    install_requires=read_requirements('runtime'),
    extras_require=build_extras(),
    entry_points={'console_scripts': ['cocoseg = cocoseg.cli.main:main']},
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: GIS',
        'Topic :: Scientific/Engineering :: Image Processing',
    ],
)
