"""
Which versions of the packages that matter are installed.

Told by the metadata of the installed packages: none of them is imported.
"""
from __future__ import annotations

import platform

# Name for people: name of the distribution.
_PACKAGES = {'numpy': 'numpy', 'gdal': 'GDAL', 'kwcoco': 'kwcoco', 'kwimage': 'kwimage',
             'numba': 'numba', 'sklearn': 'scikit-learn'}


def collect_versions():
    """
    Return the versions of cocoseg, Python, and what results depend on.

    Returns:
        dict[str, str | None]: by name, 'cocoseg' and 'python' first. None:
        the package is not installed, or has no metadata.

    Example:
        >>> from cocoseg.coco.versions import collect_versions
        >>> versions = collect_versions()
        >>> list(versions)
        ['cocoseg', 'python', 'numpy', 'gdal', 'kwcoco', 'kwimage', 'numba', 'sklearn']
        >>> import numpy
        >>> assert versions['numpy'] == numpy.__version__
    """
    from cocoseg import __version__
    return {'cocoseg': __version__, 'python': platform.python_version(),
            **{name: _find_version(package) for name, package in _PACKAGES.items()}}


def _find_version(package):
    """
    Return the version of an installed distribution, or None.

    Example:
        >>> _find_version('no-such-package-of-anybody')
    """
    from importlib.metadata import PackageNotFoundError, version
    try:
        return version(package)
    except PackageNotFoundError:
        return None
