"""GDAL's failures become exceptions, per thread, whatever the user's switch says."""
import sys
import threading
import types

import pytest

from cocoseg.errors import MissingDependencyError
from cocoseg.io.gdal_gate import (
    close_dataset, gdal_errors_as_exceptions, require_gdal)

gdal = require_gdal()


@pytest.fixture(params=[False, True], ids=['quiet', 'exceptions'])
def user_switch(request):
    """Set the process-wide switch as a user might, and put it back."""
    before = gdal.GetUseExceptions()
    (gdal.UseExceptions if request.param else gdal.DontUseExceptions)()
    yield request.param
    assert bool(gdal.GetUseExceptions()) == request.param  # we never touch it
    (gdal.UseExceptions if before else gdal.DontUseExceptions)()


def fail_once():
    gdal.Open('/no/such/raster.tif')


def test_failure_raises_with_the_reason(user_switch):
    with pytest.raises(OSError, match='in opening it: .*raster.tif'):
        with gdal_errors_as_exceptions('opening it'):
            fail_once()


def test_check_raises_at_once(user_switch):
    with pytest.raises(OSError, match='step 2'):
        with gdal_errors_as_exceptions() as errors:
            errors.check('step 1', 'a result')
            errors.check('step 2', None)
            raise AssertionError('not reached')


def test_success_and_warnings_pass(user_switch):
    with gdal_errors_as_exceptions() as errors:
        dataset = gdal.GetDriverByName('MEM').Create('', 3, 2, 1)
        gdal.Error(gdal.CE_Warning, 1, 'just a warning')
    assert errors.messages == []
    assert dataset.RasterXSize == 3


def test_other_exceptions_pass_unchanged(user_switch):
    class Own(RuntimeError):
        pass

    for kind in (KeyError, Own):
        with pytest.raises(kind):
            with gdal_errors_as_exceptions():
                raise kind('mine')


def test_handlers_nest_and_are_removed(user_switch):
    outer_messages = []
    gdal.PushErrorHandler(lambda *args: outer_messages.append(args[2]))
    try:
        with pytest.raises(OSError):
            with gdal_errors_as_exceptions():
                fail_once()
        assert outer_messages == []
        gdal.Error(gdal.CE_Warning, 1, 'for the outer one')
    finally:
        gdal.PopErrorHandler()
    assert outer_messages == ['for the outer one']


def test_threads_do_not_see_each_others_failures(user_switch):
    barrier = threading.Barrier(2)
    results = {}

    def work(name, action):
        try:
            with gdal_errors_as_exceptions(name):
                for _ in range(50):
                    barrier.wait(30)
                    action()
            results[name] = 'fine'
        except OSError as ex:
            results[name] = str(ex)

    def swallowed_failure():
        try:
            fail_once()
        except RuntimeError:
            pass  # with the switch on; the handler has it all the same

    threads = [
        threading.Thread(target=work, args=('bad', swallowed_failure)),
        threading.Thread(target=work, args=('good', lambda: gdal.VersionInfo()))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results['good'] == 'fine'
    assert 'GDAL failed in bad' in results['bad'] or user_switch


def test_close_reports_and_is_final(user_switch, tmp_path):
    path = str(tmp_path / 'a.tif')
    with gdal_errors_as_exceptions():
        dataset = gdal.GetDriverByName('GTiff').Create(path, 3, 2, 1)
        close_dataset(dataset)
        close_dataset(None)
        again = gdal.Open(path)
    assert again.RasterXSize == 3


def test_missing_gdal_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'osgeo', None)
    with pytest.raises(MissingDependencyError, match='dev/setup.sh.*gdal-config.*conda-forge'):
        require_gdal()


def test_binding_without_numpy_names_the_remedy(monkeypatch):
    fake = types.ModuleType('osgeo')
    fake.gdal = types.SimpleNamespace(__version__='9.9.9')
    monkeypatch.setitem(sys.modules, 'osgeo', fake)
    monkeypatch.delitem(sys.modules, 'osgeo.gdal_array', raising=False)
    with pytest.raises(MissingDependencyError, match='9.9.9 binding has no numpy support'):
        require_gdal()
