"""
The process that forks the children of the fault tests, and what it gives them.

It has imported everything and compiled the kernels, and has one thread, so
that a fork is safe and cheap; see nursery.py for the other end of its socket.
"""
import faulthandler
import importlib
import json
import os
import pkgutil
import signal
import socket
import sys
import tempfile
import threading
import time

from . import blocks, crowded, mounts, starved, victims
from .victims import SHAPE, WINDOW, make_grid, make_pixels

PATIENCE = 60  # seconds until a child that hangs prints its stacks and ends
PROGRAMS = {function.__name__: function for function in (
    *victims.PROGRAMS, *starved.PROGRAMS, *crowded.PROGRAMS, *blocks.PROGRAMS)}

_write = os.write  # the traps replace that of the module


class Child:
    """What a program may do: talk to the test that started it."""

    def __init__(self, events, orders, pace=0.0):
        self._events, self._orders = events, os.fdopen(orders, 'r')
        self.pace = pace

    def tell(self, kind, **facts):
        """Send one event to the test."""
        _write(self._events, json.dumps({'kind': kind, **facts}).encode() + b'\n')

    def wait(self):
        """Return the next line from the test; empty at its end."""
        return self._orders.readline().strip()


# ---- traps -----------------------------------------------------------------

def list_points():
    """Return {name: (owner, attribute)} of the calls at which a child can be killed."""
    from kwcoco import CocoDataset

    from cocoseg.coco.journal import Journal
    from cocoseg.coco.manifest import Manifest
    from cocoseg.engine.block_store import BlockStore
    points = {name: (os, name) for name in (
        'open', 'write', 'writev', 'pwrite', 'pwritev', 'copy_file_range', 'fsync', 'replace',
        'unlink')}
    points.update({'Journal.append': (Journal, 'append'), 'Manifest.commit': (Manifest, 'commit'),
                   'Manifest.dump': (Manifest, 'dump'),
                   'CocoDataset.dump': (CocoDataset, 'dump'),
                   'BlockStore.note': (BlockStore, 'note')})
    return points


class Traps:
    """
    Count the calls of every point, and kill this process at one of them.

    A trap is {'point', 'nth', 'when'}: before the nth call, after it, or when
    the first half of its bytes is written. Other threads go on for 'hold'
    seconds. With 'signal' it is that one, and the call goes on if we survive.
    With 'wait' there is no signal: it goes on when the test says a line.
    """

    def __init__(self, child, trap):
        self._child, self._trap = child, trap or {}
        self._lock = threading.Lock()
        self.counts = {}
        for point, (owner, name) in list_points().items():
            setattr(owner, name, self._wrap(point, getattr(owner, name)))

    def _wrap(self, point, call):
        def wrapped(*args, **options):
            with self._lock:
                self.counts[point] = nth = self.counts.get(point, 0) + 1
            when = None
            if (point, nth) == (self._trap.get('point'), self._trap.get('nth')):
                when = self._trap['when']
            if when == 'before':
                self._strike()
            if when == 'half':
                args = self._halve(point, args)
            result = call(*args, **options)
            if when in ('half', 'after'):
                self._strike()
            return result
        return wrapped

    @staticmethod
    def _halve(point, args):
        """Return the arguments of a call that writes half as much."""
        if point == 'copy_file_range':
            return (*args[:2], max(1, args[2] // 2), *args[3:])
        if point.endswith('v'):
            data = b''.join(args[1])
            return (args[0], [data[:len(data) // 2]], *args[2:])
        data = memoryview(args[1]).cast('B')
        return (args[0], data[:len(data) // 2], *args[2:])

    def _strike(self):
        self._child.tell('trap', **self._trap)
        if self._trap.get('wait'):
            self._child.wait()
            return
        time.sleep(self._trap.get('hold', 0))
        number = self._trap.get('signal', signal.SIGKILL)
        os.kill(os.getpid(), number)
        if number == signal.SIGKILL:
            time.sleep(PATIENCE)


# ---- the process itself ----------------------------------------------------

def warm_up():
    """Import what the programs import, and load the kernels; start no thread."""
    # Libraries load it late, when a child may have no right to read it any more.
    # pandas would load it where it is there, and it starts threads.
    sys.modules['pyarrow'] = None
    import fractions  # noqa: F401

    import delayed_image  # noqa: F401
    import kwcoco  # noqa: F401
    import kwimage  # noqa: F401
    import scipy.ndimage  # noqa: F401

    import cocoseg
    from cocoseg.protocols import MemorySink
    for module in pkgutil.walk_packages(cocoseg.__path__, 'cocoseg.'):
        if module.name.startswith(('cocoseg.coco.', 'cocoseg.io.', 'cocoseg.stitch.',
                                   'cocoseg.labels.', 'cocoseg.postprocess.')):
            importlib.import_module(module.name)
    pixels = make_pixels(0, (WINDOW, WINDOW))
    for windows in (None, make_grid()):
        sink = MemorySink()
        stitcher = cocoseg.SoftStitcher(SHAPE, windows, sink=sink, expected_minmax=(0, 1))
        for window in make_grid():
            stitcher.add(window, pixels)
        stitcher.finalize()
    with tempfile.TemporaryDirectory() as folder:
        cocoseg.write_cog(os.path.join(folder, 'a.tif'), sink.as_array(), nodata=-9999,
                          blocksize=64, num_threads=1)


def count_threads():
    """Return the number of threads of this process, also those that are not Python's."""
    return len(os.listdir('/proc/self/task'))


def fork(order, fds):
    """Fork a child that runs one program; return its process id."""
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        events, orders, log = fds
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        child = Child(events, orders, order['pace'])
        run(child, order)
        status = 0
    except KeyboardInterrupt:
        status = 130
    except SystemExit as ex:
        status = ex.code
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def run(child, order):
    """Run one program in the child."""
    if order['mounts']:
        try:
            mounts.enter_namespace()
        except OSError as ex:
            child.tell('skip', reason=f'this system permits no mounts: {ex}')
            return
    # A child that hangs says where, and ends.
    faulthandler.dump_traceback_later(PATIENCE, exit=True)
    traps = Traps(child, order['trap'])
    PROGRAMS[order['program']](child, **order['options'])
    child.tell('counts', counts=traps.counts)


def main(descriptor):
    """Fork and reap on request, until the socket is closed."""
    warm_up()
    # The test may be interrupted from the keyboard; then the socket closes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=descriptor) as link:
        answer = {'n_threads': count_threads()}
        while True:
            link.sendall(json.dumps(answer).encode() + b'\n')
            message, fds, _, _ = socket.recv_fds(link, 1 << 16, 3)
            if not message:
                return
            order = json.loads(message)
            if 'reap' in order:
                answer = {'status': os.waitpid(order['reap'], 0)[1]}
            else:
                answer = {'pid': fork(order, fds)}
            for descriptor in fds:
                os.close(descriptor)


if __name__ == '__main__':
    main(int(sys.argv[1]))
