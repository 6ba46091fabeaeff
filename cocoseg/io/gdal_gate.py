"""
The one door to GDAL.

Everything under ``cocoseg/io`` gets the ``gdal`` module from
:func:`require_gdal` and runs it inside :func:`gdal_errors_as_exceptions`.
Whether GDAL raises is a switch of the whole process (``gdal.UseExceptions``)
that belongs to the user: it is never touched. Errors are collected instead
with GDAL's error handlers, which are a stack per thread.
"""
from __future__ import annotations

import logging
from contextlib import contextmanager

from cocoseg.errors import MissingDependencyError

logger = logging.getLogger(__name__)

_REMEDY = (
    'Run dev/setup.sh, or install the library and a binding that matches it: '
    '`apt install libgdal-dev` and then '
    '`pip install "gdal[numpy]==$(gdal-config --version).*" --no-build-isolation` '
    '(with numpy and setuptools already installed), or `conda install -c conda-forge gdal`')


def require_gdal():
    """
    Return the ``osgeo.gdal`` module, checked to work with numpy.

    Returns:
        module: ``osgeo.gdal``; its process-wide state is left as it is.

    Raises:
        MissingDependencyError: if GDAL is absent, does not match its
            library, or was built without numpy. The message says what to do.

    Example:
        >>> from cocoseg.io.gdal_gate import require_gdal
        >>> gdal = require_gdal()
        >>> assert gdal.GetDriverByName('GTiff') is not None
    """
    try:
        from osgeo import gdal
    except ImportError as ex:
        raise MissingDependencyError(
            f'GDAL is needed to read and write rasters, and cannot be imported: {ex}. '
            f'{_REMEDY}') from ex
    try:
        from osgeo import gdal_array  # noqa: F401 (absent if built without numpy)
    except ImportError as ex:
        raise MissingDependencyError(
            f'the GDAL {gdal.__version__} binding has no numpy support ({ex}): it must be '
            f'built where numpy is installed, for the version that `gdal-config --version` '
            f'prints. {_REMEDY}') from ex
    return gdal


class GdalErrors:
    """
    The failures that GDAL reported in one thread, oldest first.

    Attributes:
        messages (list[str]): GDAL's own texts.
    """

    def __init__(self, gdal):
        self.messages = []
        self._failure = gdal.CE_Failure

    def __call__(self, level, number, message):
        """Receive one message from GDAL; never raises."""
        if level >= self._failure:
            self.messages.append(message)
        else:
            logger.debug('GDAL (level %s, number %s): %s', level, number, message)

    def check(self, doing, result=True):
        """
        Raise if GDAL reported a failure so far, or ``result`` is None.

        Args:
            doing (str): what was tried, for the message.
            result (object): what the GDAL call returned, if None is a failure.

        Raises:
            OSError: with the first of GDAL's messages, which names the cause.
        """
        if self.messages or result is None:
            raise OSError(f'GDAL failed in {doing}: {self.describe()}')

    def describe(self):
        """Return the distinct messages as one line."""
        return '; '.join(dict.fromkeys(self.messages)) or 'no reason was given'


@contextmanager
def gdal_errors_as_exceptions(doing='a raster operation'):
    """
    Make every failure that GDAL reports in this thread an ``OSError``.

    Works the same whether or not the user called ``gdal.UseExceptions()``, and
    in any number of threads at a time: the handler is on the calling thread's
    own stack. Failures are collected while the block runs and raised at its
    end, or earlier by :meth:`GdalErrors.check`. A plain RuntimeError in the
    block counts as a failure of GDAL.

    Args:
        doing (str): what is tried, for the message, usually with the path.

    Yields:
        GdalErrors: the failures so far.

    Raises:
        OSError: if GDAL reported a failure, also one that no return value
            showed (such as a full disk noticed while a file is closed).

    Example:
        >>> from cocoseg.io.gdal_gate import require_gdal, gdal_errors_as_exceptions
        >>> gdal = require_gdal()
        >>> try:
        >>>     with gdal_errors_as_exceptions('opening a raster'):
        >>>         gdal.Open('/no/such/file.tif')
        >>> except OSError as ex:
        >>>     print(str(ex).split(':')[0])
        GDAL failed in opening a raster
    """
    gdal = require_gdal()
    errors = GdalErrors(gdal)
    gdal.PushErrorHandler(errors)
    try:
        yield errors
    except RuntimeError as ex:
        # GDAL's own exception when the user switched them on (some versions
        # then do not call the handler), or that of a block which found out
        # from a return value.
        if type(ex) is not RuntimeError:
            raise
        errors.messages.append(str(ex))
        raise OSError(f'GDAL failed in {doing}: {errors.describe()}') from ex
    finally:
        gdal.PopErrorHandler()
    errors.check(doing)


def close_dataset(dataset):
    """
    Close a GDAL dataset, so that its last write errors are reported.

    Dropping the last reference would do the same, but a failure in a
    destructor is printed and lost. The dataset and its bands are unusable
    afterwards. Call it inside :func:`gdal_errors_as_exceptions`.

    Args:
        dataset (gdal.Dataset | None): open dataset; None is ignored.
    """
    if dataset is None:
        return
    if hasattr(dataset, 'Close'):
        dataset.Close()
        return
    try:
        # GDAL < 3.8 has no Close: run the destructor that the binding itself
        # would run, where its exception can be caught.
        dataset.FlushCache()
    finally:
        try:
            dataset.__swig_destroy__(dataset)
        finally:
            dataset.this = None


def memory_file_exists(name):
    """
    Return True if there is a file in GDAL's memory.

    Args:
        name (str): a path that begins with '/vsimem/'.

    Example:
        >>> from cocoseg.io.gdal_gate import memory_file_exists
        >>> memory_file_exists('/vsimem/no_such_file')
        False
    """
    try:
        return require_gdal().VSIStatL(name) is not None
    except RuntimeError:
        # So says GDAL where the user has switched its exceptions on.
        return False


def read_memory_file(name):
    """
    Return the bytes of a file in GDAL's memory.

    Args:
        name (str): a path that begins with '/vsimem/'.

    Raises:
        RuntimeError: if there is none; call it inside of
            :func:`gdal_errors_as_exceptions`.
    """
    gdal = require_gdal()
    file = gdal.VSIFOpenL(name, 'rb')
    if file is None:
        raise RuntimeError(f'there is no file {name}')
    try:
        nbytes = gdal.VSIStatL(name).size
        return bytes(gdal.VSIFReadL(1, nbytes, file))
    finally:
        gdal.VSIFCloseL(file)
