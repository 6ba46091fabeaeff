"""The error tree: catchable as the builtin, readable, and able to cross processes."""
import copy
import errno
import inspect
import pickle

import pytest

from cocoseg import errors
from cocoseg.errors import AssetWriteError, CocosegError

BUILTINS = {
    'OptionError': ValueError,
    'WindowShapeError': ValueError,
    'BandCountError': ValueError,
    'WeightError': ValueError,
    'CoverageError': ValueError,
    'ImageClosedError': RuntimeError,
    'AlreadyFinalizedError': KeyError,
    'UnknownImageError': KeyError,
    'NothingAccumulatedError': KeyError,
    'ManifestError': ValueError,
    'BundleBusyError': RuntimeError,
    'ChannelCollisionError': ValueError,
    'ResumeError': RuntimeError,
    'CogError': ValueError,
    'AssetWriteError': OSError,
    'CanvasError': OSError,
    'MissingDependencyError': ImportError,
}
ALL = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}


@pytest.mark.parametrize('name, builtin', BUILTINS.items())
def test_each_error_is_ours_and_the_expected_builtin(name, builtin):
    with pytest.raises(builtin):
        raise ALL[name]('text')
    with pytest.raises(CocosegError):
        raise ALL[name]('text')


def test_a_second_finalize_is_also_late_data():
    assert issubclass(errors.AlreadyFinalizedError, errors.ImageClosedError)


@pytest.mark.parametrize('name', sorted(ALL))
def test_each_error_has_a_docstring_and_a_readable_message(name):
    message = "image 3 has no 'fpath'; give one"
    # A KeyError would quote it.
    assert str(ALL[name](message)) == message
    assert ALL[name].__doc__.strip().endswith('.')


def test_an_error_with_a_number_reads_as_a_sentence():
    error = errors.CanvasError(errno.ENOSPC, 'no room for 3 bytes; free some')
    assert error.errno == errno.ENOSPC
    for twin in (error, pickle.loads(pickle.dumps(error))):
        assert str(twin).endswith('no room for 3 bytes; free some')


@pytest.mark.parametrize('name', sorted(ALL))
def test_each_error_survives_pickling(name):
    error = ALL[name]('text')
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is type(error)
        assert str(twin) == 'text'


def test_a_failed_write_names_its_image_and_path():
    error = AssetWriteError('cannot write', image_id=3, path='out.tif')
    for twin in (error, pickle.loads(pickle.dumps(error))):
        assert (str(twin), twin.image_id, twin.path) == ('cannot write', 3, 'out.tif')
    assert AssetWriteError('x').image_id is AssetWriteError('x').path is None
