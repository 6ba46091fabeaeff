"""Settings and fixtures that all tests share."""
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same run gives the same answer: no deadline (the first call of a kernel
# compiles it) and no random seed. HYPOTHESIS_PROFILE=search looks for new
# counterexamples.
settings.register_profile('cocoseg', deadline=None, derandomize=True, print_blob=True,
                          suppress_health_check=[HealthCheck.too_slow])
settings.register_profile('search', settings.get_profile('cocoseg'),
                          derandomize=False, max_examples=1000)
settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'cocoseg'))


@pytest.fixture(scope='session', autouse=True)
def share_out_small_work():
    """Let several threads share even the tiny windows of tests."""
    from cocoseg.stitch import canvas, carry
    with pytest.MonkeyPatch.context() as patch:
        for module in (canvas, carry):
            patch.setattr(module, '_LEAST_SHARED', 1)
        yield


@pytest.fixture(scope='session')
def repo_root():
    """Path of the checkout."""
    return Path(__file__).resolve().parents[1]


def pytest_terminal_summary(terminalreporter):
    """Tell how many examples of docstrings were run."""
    passed = [report for report in terminalreporter.stats.get('passed', [])
              if report.nodeid.startswith('cocoseg/') and report.when == 'call']
    if passed:
        terminalreporter.write_line(f'{len(passed)} examples of docstrings passed')
