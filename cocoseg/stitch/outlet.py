"""
The outlet: finished blocks leave for their sinks, each exactly once.
"""
from __future__ import annotations

import threading


class Outlet:
    """
    Hand the products of each block to their sinks.

    A block whose sink raises is kept, as it was rendered, and offered again by
    :meth:`send_rest`; sinks that took it already are not asked again.

    Args:
        blocks (BlockGrid): of the image.
        products (Products): made of each block.
        sinks (Sequence[BlockSink]): for the mean, then for each layer.
        lock (RLock): of the stitcher.

    Attributes:
        n_unsent (int): blocks that are left.
        n_clipped (int): values of the mean that were clipped.

    Thread-safety: methods may be called from any thread; sinks may be called
    from several at a time, for different blocks.
    """

    def __init__(self, blocks, products, sinks, lock):
        self.n_unsent = len(blocks)
        self.n_clipped = 0
        self._n_columns = blocks.grid_shape[1]
        # A byte per block, in row-major order.
        self._is_unsent = bytearray(b'\1' * self.n_unsent)
        self._blocks, self._products, self._sinks = blocks, products, list(sinks)
        # Block index -> deliveries that failed.
        self._kept = {}
        self._n_sending = 0
        self._lock = lock
        self._changed = threading.Condition(lock)

    @property
    def unsent(self):
        """Indices of the blocks that are left, a new set."""
        return {divmod(number, self._n_columns)
                for number, flag in enumerate(self._is_unsent) if flag}

    def _mark(self, index, is_unsent):
        """Note whether a block is left; return False if that was known."""
        number = index[0] * self._n_columns + index[1]
        if self._is_unsent[number] == is_unsent:
            return False
        self._is_unsent[number] = is_unsent
        self.n_unsent += 1 if is_unsent else -1
        return True

    def send(self, indices, take):
        """
        Send blocks that are final.

        Args:
            indices (Iterable[tuple[int, int]]): those that were sent before
                are left out.
            take (Callable): returns the values of a block, under the lock.

        Raises:
            Exception: whatever a sink raises.
        """
        for index in indices:
            with self._lock:
                if not self._mark(index, False):
                    continue
                try:
                    delivery = self._kept.pop(index, None) or _Delivery(take(index))
                except BaseException:
                    self._mark(index, True)
                    raise
                self._n_sending += 1
            sent = False
            try:
                self._deliver(delivery, self._blocks.get(index).core)
                sent = True
            finally:
                with self._lock:
                    if not sent:
                        self._kept[index] = delivery
                        self._mark(index, True)
                    self._n_sending -= 1
                    self._changed.notify_all()

    def _deliver(self, delivery, window):
        if delivery.values is not None:
            blocks, n_clipped = self._products.render(delivery.values, window)
            delivery.todo = list(zip(self._sinks, blocks))
            with self._lock:
                delivery.values.release()
                self.n_clipped += n_clipped
            delivery.values = None
        while delivery.todo:
            sink, block = delivery.todo[0]
            sink.write_block(window, block)
            del delivery.todo[0]

    def send_rest(self, take):
        """Send every block that is left, also those that fail meanwhile elsewhere."""
        while True:
            with self._lock:
                rest = sorted(self.unsent)
            self.send(rest, take)
            with self._lock:
                self._changed.wait_for(lambda: self._n_sending == 0)
                if not self.n_unsent:
                    return


class _Delivery:
    """A block on its way: values to render, then (sink, block) pairs to write."""

    def __init__(self, values):
        self.values, self.todo = values, []
