"""Every failed write raises, and leaves the folder as it was."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import cocoseg
from cocoseg.errors import AssetWriteError, CogError
from cocoseg.io import cog
from cocoseg.io.cog import write_cog
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.images import write_image

# Writes the same file again and again while the system refuses to let a file
# grow past a limit, as a full disk would. Prints what happened at each limit.
LIMITED = '''
import json, os, resource, sys
import numpy as np
from cocoseg.io.gdal_gate import require_gdal
from cocoseg.io.images import write_image

folder, fmt, switch = sys.argv[1:]
if switch == 'exceptions':
    require_gdal().UseExceptions()
fpath = os.path.join(folder, 'a')
rng = np.random.default_rng(0)
data = rng.integers(0, 255, (300, 333, 3)).astype(np.uint8)
nbytes = write_image(fpath, data, fmt=fmt)
with open(fpath, 'wb') as file:
    file.write(b'old')
cuts = {0, 1, 8, 100, 400, 2000, nbytes // 3, nbytes // 2}
cuts |= {nbytes - k for k in (1, 2, 3, 4, 5, 8, 12, 13, 100, 1000, 4095, 4096, 4097, 10000, 65536)}
cuts |= {int(cut) for cut in rng.integers(0, nbytes, 15)}
wrong = []
for cut in sorted(cut for cut in cuts if 0 <= cut < nbytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (cut, resource.RLIM_INFINITY))
    try:
        write_image(fpath, data, fmt=fmt)
        result = 'no error'
    except OSError as ex:
        result = 'fine' if fpath in str(ex) else f'no path in {ex}'
    except BaseException as ex:
        result = repr(ex)
    with open(fpath, 'rb') as file:
        content = file.read(10)
    if result != 'fine' or content != b'old' or os.listdir(folder) != ['a']:
        wrong.append((cut, result, os.listdir(folder)))
resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, resource.RLIM_INFINITY))
again = write_image(fpath, data, fmt=fmt)
print(json.dumps({'n_cuts': len(cuts), 'wrong': wrong, 'same': again == nbytes}))
'''


@pytest.mark.skipif(os.name != 'posix', reason='limits of file size are POSIX')
@pytest.mark.parametrize('switch', ['quiet', 'exceptions'])
@pytest.mark.parametrize('fmt', ['cog', 'tif', 'png'])
def test_disk_full_at_any_byte(tmp_path, fmt, switch):
    result = subprocess.run(
        [sys.executable, '-c', LIMITED, str(tmp_path), fmt, switch],
        cwd=Path(cocoseg.__file__).parent.parent, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    assert summary['wrong'] == [] and summary['same'] and summary['n_cuts'] > 20


def pixels():
    return np.arange(300 * 100, dtype=np.int16).reshape(300, 100)


@pytest.mark.parametrize('fmt', ['cog', 'tif', 'png'])
def test_unusable_targets(tmp_path, fmt):
    (tmp_path / 'file').write_bytes(b'')
    (tmp_path / 'folder').mkdir()
    for name in ('file/a', 'folder', 'missing/a'):
        with pytest.raises(OSError) as caught:
            write_image(tmp_path / name, np.zeros((4, 5), np.uint8), fmt=fmt)
        assert name.split('/')[0] in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ['file', 'folder']


@pytest.mark.parametrize('fmt, method', [('tif', 'CreateCopy'), ('png', 'CreateCopy'),
                                         ('cog', 'Create')])
def test_gdal_failure_carries_reason_and_path(tmp_path, monkeypatch, fmt, method):
    gdal = require_gdal()
    create = getattr(gdal.Driver, method)

    def broken(driver, *args):
        gdal.Error(gdal.CE_Failure, 1, 'the disk is on fire')
        return create(driver, *args)

    monkeypatch.setattr(gdal.Driver, method, broken)
    with pytest.raises(AssetWriteError, match='disk is on fire') as caught:
        write_image(tmp_path / 'a.tif', pixels().astype(np.uint16), fmt=fmt)
    assert caught.value.path == str(tmp_path / 'a.tif')
    assert os.listdir(tmp_path) == []


def test_incomplete_file_is_never_renamed(tmp_path, monkeypatch):
    (tmp_path / 'a.tif').write_bytes(b'old')
    verify = cog.verify_cog

    def truncate_first(temp, **options):
        os.truncate(temp, os.path.getsize(temp) - 1)
        return verify(temp, **options)

    monkeypatch.setattr(cog, 'verify_cog', truncate_first)
    with pytest.raises(AssetWriteError, match='1 bytes are missing') as caught:
        write_cog(tmp_path / 'a.tif', pixels())
    assert isinstance(caught.value.__cause__, CogError)
    assert os.listdir(tmp_path) == ['a.tif']
    assert (tmp_path / 'a.tif').read_bytes() == b'old'


KILLED = '''
import os, signal, sys, threading, time
import numpy as np
from cocoseg.io.cog import write_cog

fpath, delay = sys.argv[1], float(sys.argv[2])
data = np.random.default_rng(0).integers(0, 9999, (700, 700, 3)).astype(np.int16)
write_cog(os.path.join(os.path.dirname(fpath), 'warm.tif'), data[:300, :300])
print('ready', flush=True)
threading.Thread(target=lambda: (time.sleep(delay), os.kill(os.getpid(), signal.SIGKILL))).start()
while True:
    write_cog(fpath, data)
    os.unlink(fpath)
'''


@pytest.mark.skipif(os.name != 'posix', reason='needs SIGKILL')
def test_killed_writer_leaves_nothing_that_looks_whole(tmp_path):
    from cocoseg.io.commit import sweep_temporaries
    from cocoseg.io.verify import verify_cog
    for delay in (0.011, 0.04, 0.09):
        result = subprocess.run(
            [sys.executable, '-c', KILLED, str(tmp_path / 'a.tif'), str(delay)],
            cwd=Path(cocoseg.__file__).parent.parent, capture_output=True, text=True, timeout=60)
        assert result.returncode == -9 and result.stdout.startswith('ready')
        if (tmp_path / 'a.tif').exists():
            verify_cog(tmp_path / 'a.tif', full=True)
        sweep_temporaries(tmp_path)
        assert set(os.listdir(tmp_path)) <= {'a.tif', 'warm.tif'}
