"""
Run tasks on the workers of dask.distributed: of this machine, or of a cluster.

SLURM, Kubernetes and clouds come with their own clusters of dask, whose client
is given to :func:`cocoseg.get_executor`. The function goes to each worker once
per run, also to those that join later; tasks follow one by one.
"""
from __future__ import annotations

import atexit
import logging
import queue
import time
import weakref

from cocoseg.engine.payload import call_packed, forget_function, keep_function
from cocoseg.engine.process_executor import get_cpu_variables
from cocoseg.engine.remote_run import MAX_RERUNS, RemoteRun, make_death_error
from cocoseg.errors import MissingDependencyError, OptionError, TaskError
from cocoseg.machine import count_cpus

logger = logging.getLogger(__name__)

# How long the number of workers is taken for the same, s.
_COUNT_SECONDS = 5.0
# How often workers are told something while one after the other dies.
_MAX_TELLS = 5
# How long the client needs to notice that the scheduler is gone, s.
_NOTICE_SECONDS = 0.2
# What means that the scheduler did not answer; CommClosedError is an OSError.
_LOST = (OSError, TimeoutError)


class DaskExecutor:
    """
    Run tasks on the workers of a scheduler of dask.

    Workers need the same cocoseg, and what the function imports. The function
    and the tasks are pickled, at most 16 MiB each: they carry windows, small
    values, and paths that the workers can read and write. A script must start
    its work under ``if __name__ == '__main__':``.

    The first task that fails ends the run, as with threads. One that is beyond
    its ``timeout`` is cancelled: a cluster of ours is ended with it, on that of
    others it goes on, unseen. A task whose worker died is run again by dask;
    how often is up to the scheduler (distributed.scheduler.allowed-failures).

    Args:
        target (distributed.Client | str | None): a client, which is never
            closed here; the address of a scheduler; or None for a cluster of
            this machine, made by the first run.
        n_workers (int | None): processes of the cluster of this machine; None
            is one per CPU.

    Example:
        >>> # xdoctest: +REQUIRES(module:distributed)
        >>> from cocoseg.engine.dask_executor import DaskExecutor
        >>> executor = DaskExecutor(n_workers=1)
        >>> sorted(executor.run(abs, [-1, 2]))
        [(-1, 1), (2, 2)]
        >>> executor.close()
    """

    shares_memory = False

    def __init__(self, target=None, *, n_workers=None):
        distributed = _import_distributed()
        if target is not None and not isinstance(target, (str, distributed.Client)):
            raise OptionError(f'target={target!r} is neither a client of dask nor the address of '
                              'a scheduler')
        if getattr(target, 'asynchronous', False):
            raise OptionError('the client is asynchronous; give one that is not')
        self._target, self._n_asked = target, n_workers or count_cpus()
        self._client, self._finalizer = None, None
        self._count, self._count_until = 0, -1.0

    @property
    def n_workers(self):
        """How many tasks run at a time: threads of all workers there are now."""
        if self._target is None:
            return self._n_asked
        if time.monotonic() > self._count_until:
            self._count = max(sum(self._connect().nthreads().values()), 1)
            self._count_until = time.monotonic() + _COUNT_SECONDS
        return self._count

    def run(self, func, tasks, *, describe=repr, timeout=None, max_pending=None, ordered=False):
        """
        Yield (task, result) as they come.

        Args:
            func (Callable): can be pickled.
            tasks (Iterable): taken one by one; can be pickled.
            describe, timeout, ordered: as for
                :meth:`cocoseg.engine.executors.ThreadExecutor.run`.
            max_pending (int | None): tasks that are begun, or done and not yet
                taken, at most; None is two per thread of a worker. Give more
                for a cluster that grows with its load.

        Raises:
            OptionError: if the function or a task cannot be pickled, or is too
                large.
            TaskError: if a task fails, its worker died too often, or the
                scheduler is gone.
            TaskTimeoutError: if one takes too long.
        """
        run = _DaskRun(func, describe, timeout, self, max_pending)
        try:
            yield from run.iterate(iter(tasks), ordered)
        except (KeyboardInterrupt, SystemExit):
            run.is_urgent = True
            raise
        finally:
            try:
                run.stop()
            finally:
                if run.is_urgent and self._target is None:
                    self.close()

    def get_client(self):
        """Return the client, connected; that of the first call is kept."""
        return self._connect()

    def close(self):
        """End the cluster, or connection, that was made here; a later run makes another."""
        if self._finalizer is not None:
            atexit.unregister(self._finalizer)
            self._finalizer()
            self._client = self._finalizer = None

    def _connect(self):
        if self._target is not None and not isinstance(self._target, str):
            if self._target.status not in ('running', 'connecting'):
                raise TaskError(f'the client {self._target!r} of dask is {self._target.status}; '
                                'give one that is connected to a scheduler')
            return self._target
        if self._client is not None and self._client.status == 'closed':
            self.close()
        if self._client is None:
            if self._target is None:
                cluster, client = _start_cluster(self._n_asked)
            else:
                cluster, client = None, _open_client(self._target)
            self._client = client
            self._finalizer = weakref.finalize(self, _close, client, cluster)
            # At exit ours must be first: dask would take the loop away before.
            self._finalizer.atexit = False
            atexit.register(self._finalizer)
        return self._client


class _DaskRun(RemoteRun):
    """The state of one call of :meth:`DaskExecutor.run`."""

    def __init__(self, func, describe, timeout, executor, max_pending):
        super().__init__(func, describe, timeout)
        self._executor, self._max_pending = executor, max_pending
        self._client = executor.get_client()
        self._topic = None if timeout is None else f'cocoseg-{self.token}'
        try:
            self._hand_out_function()
            if self._topic is not None:
                self._client.subscribe_topic(self._topic, self._note_begin)
        except _LOST as ex:
            raise TaskError(f'the scheduler of dask does not answer: {type(ex).__name__}: {ex}; '
                            'no task was begun') from ex

    def _hand_out_function(self):
        """Give the function to all workers; again if one of them dies then."""
        plugin = _make_plugin(self.token, self.func_data)
        for n_deaths in range(_MAX_TELLS):
            try:
                self._client.register_plugin(plugin, name=self.token)
                return
            except _LOST as ex:
                if n_deaths == _MAX_TELLS - 1 or not self._has_scheduler():
                    raise
                logger.debug('told again, as a worker died: %s: %s', type(ex).__name__, ex)

    def _take_function_back(self):
        """A task that has not begun finds no function then, and is through at once."""
        try:
            self._client.unregister_worker_plugin(self.token)
        except _LOST:
            # If it was a worker that died, the others were told, and those to come are not.
            if not self._has_scheduler():
                raise

    def _has_scheduler(self):
        """Return True if it was not the scheduler that was gone, but a worker."""
        time.sleep(_NOTICE_SECONDS)
        return self._client.status == 'running'

    def find_max_pending(self):
        """Return how many tasks may be handed out and not yet taken."""
        if self._max_pending is not None:
            return max(self._max_pending, 1)
        try:
            return 2 * self._executor.n_workers
        except _LOST as ex:
            self.is_urgent = True
            raise _make_lost_error(None, None, ex) from ex

    def send(self, handed):
        """Submit a task."""
        try:
            handed.future = self._client.submit(_call, self.token, handed.data, self._topic,
                                                handed.number, pure=False)
        except (*_LOST, RuntimeError) as ex:
            self.is_urgent = True
            raise _make_lost_error(handed.task, self.describe, ex) from ex
        handed.future.add_done_callback(lambda future: self.arrived.put(handed))

    def fetch(self, batch):
        """Get the results of tasks together: one trip for all of a busy cluster."""
        finished = [handed for handed in batch if handed.future.status == 'finished']
        if not finished:
            return
        try:
            found = self._client.gather([handed.future for handed in finished])
        except Exception as ex:
            # A worker is gone with its results: each tells by itself, or is done again.
            logger.debug('results are fetched one by one: %s: %s', type(ex).__name__, ex)
            return
        for handed, data in zip(finished, found):
            handed.future = _Result(data)

    def find_error(self, handed):
        """Return the error of a task that is back, or None; and whether its worker died."""
        from distributed import KilledWorker
        future = handed.future
        try:
            # The result comes over the network; with an error comes its traceback.
            data = future.result()
        except KilledWorker as ex:
            # How often is up to the scheduler.
            raise make_death_error(handed.task, self.describe, ex.allowed_failures + 1) from ex
        except KeyboardInterrupt:
            raise
        except BaseException as ex:
            # That a future was cancelled is no Exception in some versions.
            is_gone = future.status == 'finished' and isinstance(ex, _LOST)
            if is_gone or future.status in ('cancelled', 'lost'):
                self.is_urgent = True
                raise _make_lost_error(handed.task, self.describe, ex) from ex
            if future.status != 'error':
                raise
            return ex, False
        handed.future = _Result(data)
        return None, False

    def _note_begin(self, event):
        """Keep when a task began; in the thread of the client."""
        _, number = event
        handed = self._pending.get(number)
        if handed is not None:
            handed.begun = time.monotonic()

    def stop(self):
        """Begin no other task, and wait for those that have begun, unless it is urgent."""
        away = self.list_away()
        if self._client.status != 'running':
            return
        try:
            if self._topic is not None:
                self._client.unsubscribe_topic(self._topic)
            self._take_function_back()
            if not self.is_urgent:
                self._wait_for(away)
            self._client.cancel([handed.future for handed in away if handed.future is not None])
        except _LOST as ex:
            logger.warning('the scheduler of dask is gone at the end of a run: %s', ex)

    def _wait_for(self, away):
        waiting = {handed.number for handed in away
                   if handed.future is not None and not handed.future.done()}
        while waiting:
            try:
                waiting.discard(self.arrived.get(timeout=_COUNT_SECONDS).number)
            except queue.Empty:
                if self._client.status != 'running':
                    return


class _Result:
    """What is left of a future when its data have come."""

    status = 'finished'

    def __init__(self, data):
        self._data = data

    def result(self):
        """Return the data."""
        return self._data


def _make_lost_error(task, describe, cause):
    where = '' if describe is None else f'{describe(task)} was not done: '
    return TaskError(f'{where}the scheduler of dask is gone, or the task was cancelled there: '
                     f'{type(cause).__name__}: {cause}; start a scheduler, and run again',
                     task=task)


def _import_distributed():
    try:
        import distributed
    except ImportError as ex:
        raise MissingDependencyError(
            f'distributed is needed for this executor, and cannot be imported: {ex}. Install it '
            "by `pip install cocoseg[dask]`, or use 'processes'") from ex
    return distributed


def _start_cluster(n_workers):
    """Return a cluster of processes of this machine, and its client; quiet, no dashboard."""
    import dask
    from distributed import Client, LocalCluster
    with dask.config.set({
            'distributed.scheduler.allowed-failures': MAX_RERUNS,
            # It would have malloc give every array back at once (which made a filter 1.6 times
            # as slow), and leave that in our own environment, for processes that come later.
            'distributed.nanny.pre-spawn-environ': {}}):
        cluster = LocalCluster(
            n_workers=n_workers, threads_per_worker=1, processes=True, dashboard_address=None,
            # Its HTTP server cannot be left out; it gets a port that is free.
            scheduler_kwargs={'dashboard': False, 'dashboard_address': '127.0.0.1:0'},
            silence_logs=logging.CRITICAL,
            env=get_cpu_variables(max(count_cpus() // n_workers, 1)))
    return cluster, Client(cluster, set_as_default=False)


def _open_client(address):
    from distributed import Client
    try:
        return Client(address, set_as_default=False)
    except (*_LOST, ValueError) as ex:
        raise TaskError(f'no scheduler of dask answers at {address}: {type(ex).__name__}: {ex}; '
                        'start one, or give its address') from ex


def _close(client, cluster):
    client.close()
    if cluster is not None:
        cluster.close()


def _make_plugin(token, func_data):
    """Return a plugin that gives the function to each worker, and takes it away in the end."""
    from distributed import WorkerPlugin

    class FunctionPlugin(WorkerPlugin):
        """Holds bytes; a local class goes to workers by value."""

        def setup(self, worker):
            keep_function(token, func_data)

        def teardown(self, worker):
            forget_function(token)

    return FunctionPlugin()


# -- in the worker

def _call(token, data, topic, number):
    if topic is not None:
        from distributed import get_worker
        get_worker().log_event(topic, number)
    return call_packed(token, data)
