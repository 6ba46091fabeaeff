"""
Starts the children of the fault tests: the other end of forking.py.

A child is forked from a process that is ready, so that a kill costs tenths of
a second and not the seconds of an import.
"""
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PATIENCE = 90  # seconds until silence is an error; longer than that of a child
_HERE = Path(__file__).parent


class Victim:
    """
    One running child.

    Attributes:
        events (list[dict]): what it told so far; the key 'kind' is always there.
        status (int | None): 0, the negative number of the signal that ended it,
            or its exit code; None while nobody waited for its end.
    """

    def __init__(self, nursery, pid, events, orders, log):
        self._nursery, self._events, self._orders, self._log = nursery, events, orders, log
        self._rest, self._last_words = b'', ''
        self._lines = []
        self.pid, self.events, self.status = pid, [], None

    def read_event(self):
        """Return the next event, or None when the child has ended."""
        deadline = time.monotonic() + PATIENCE
        while not self._lines:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._events], [], [], left)[0]:
                raise TimeoutError(f'child {self.pid} is silent:\n{self.read_log()}')
            chunk = os.read(self._events, 1 << 16)
            if not chunk:
                return None
            *self._lines, self._rest = (self._rest + chunk).split(b'\n')
        event = json.loads(self._lines.pop(0))
        self.events.append(event)
        return event

    def wait_for(self, kind):
        """Return the next event of this kind; it is an error if none comes."""
        while (event := self.read_event()) is not None:
            if event['kind'] == kind:
                return event
        self.join()
        raise AssertionError(f'child {self.pid} ended before {kind!r}:\n{self.read_log()}')

    def say(self, line=''):
        """Send it a line."""
        os.write(self._orders, line.encode() + b'\n')

    def kill(self, number=signal.SIGKILL):
        """Send it a signal."""
        os.kill(self.pid, number)

    def join(self):
        """Wait for its end, and return the status."""
        while self.read_event() is not None:
            pass
        if self.status is None:
            code = self._nursery.ask({'reap': self.pid})['status']
            self.status = os.waitstatus_to_exitcode(code)
            for descriptor in (self._events, self._orders):
                os.close(descriptor)
            self._last_words = self.read_log()
            self._log.close()
        return self.status

    def finish(self):
        """Wait for a good end, and return its events by kind."""
        if self.join() != 0:
            raise AssertionError(f'child {self.pid} ended with {self.status}:\n{self.read_log()}')
        return {event['kind']: event for event in self.events}

    def read_log(self):
        """Return what it wrote to its standard error."""
        if self._log.closed:
            return self._last_words
        # At a place of our own: the child may still write.
        return os.pread(self._log.fileno(), 1 << 20, 0).decode(errors='replace')[-6000:]


class Nursery:
    """The process that forks children. One thread may use it."""

    def __init__(self):
        self._link, other = socket.socketpair()
        self._link.settimeout(PATIENCE)
        # As one package with relative imports, wherever it is started from.
        paths = [_HERE.parents[1], _HERE.parent, os.environ.get('PYTHONPATH', '')]
        # Libraries that make threads when they are imported would be forked with them.
        env = {**os.environ, 'OPENBLAS_NUM_THREADS': '1', 'OMP_NUM_THREADS': '1',
               'PYTHONPATH': os.pathsep.join(map(str, paths))}
        with other:
            self._process = subprocess.Popen(
                [sys.executable, '-m', f'{_HERE.name}.forking', str(other.fileno())], env=env,
                pass_fds=[other.fileno()])
        self.n_threads = self._read()['n_threads']

    def _read(self):
        with self._link.makefile('r') as lines:
            line = lines.readline()
        if not line:
            raise RuntimeError('the nursery of the fault tests has died; see its standard error')
        return json.loads(line)

    def ask(self, order, fds=()):
        """Send an order, and return the answer."""
        socket.send_fds(self._link, [json.dumps(order).encode()], list(fds))
        return self._read()

    def start(self, program, *, trap=None, pace=0.0, mounts=False, **options):
        """
        Fork a child.

        Args:
            program (str): of victims.py or starved.py.
            trap (dict | None): where it kills itself, see ``Traps``.
            pace (float): seconds that it takes for each window.
            mounts (bool): it gets mounts of its own, or tells 'skip'.
            **options: of the program; JSON.
        """
        events, events_there = os.pipe()
        orders_there, orders = os.pipe()
        log = tempfile.TemporaryFile()
        order = {'program': program, 'trap': trap, 'pace': pace, 'mounts': mounts,
                 'options': options}
        pid = self.ask(order, [events_there, orders_there, log.fileno()])['pid']
        os.close(events_there)
        os.close(orders_there)
        return Victim(self, pid, events, orders, log)

    def run(self, program, **options):
        """Run a program to its good end, and return its events by kind."""
        return self.start(program, **options).finish()

    def close(self):
        """End the process."""
        self._link.close()
        self._process.wait(PATIENCE)
