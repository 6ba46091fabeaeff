"""The CPUs of the machine, and of a worker that has others beside it."""
import pytest

from cocoseg.machine import count_cpus


@pytest.mark.parametrize('share, expected', [
    ('1', 1), ('0', 1), ('', None), ('many', None), ('-2', None), ('1000000', None)])
def test_the_environment_may_say_fewer(monkeypatch, share, expected):
    monkeypatch.delenv('COCOSEG_NUM_CPUS', raising=False)
    n_cpus = count_cpus()
    monkeypatch.setenv('COCOSEG_NUM_CPUS', share)
    assert count_cpus() == (n_cpus if expected is None else expected)
