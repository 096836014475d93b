"""Reading ahead in a background thread, without losing the place in the stream."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 1.0  # seconds between two looks at whether the thread lives


def prefetch_to_device(iterator: Iterator, put: Callable[[Any], Any], depth: int = 2) -> Prefetch:
    """Keep ``depth`` batches ahead: a thread reads them from the iterator and calls ``put``, such as ``jax.device_put``."""
    return Prefetch(iterator, put, depth)


class Prefetch:
    """An iterator over ``put(batch)`` that works ahead in a thread; close it, or use it in a ``with`` statement.

    An exception of the iterator or of ``put`` is raised by ``next``, in its place after the batches before it.

    Attributes:
      waited: seconds that ``next`` has waited for batches that were not ready.
    """

    def __init__(self, iterator: Iterator, put: Callable[[Any], Any], depth: int):
        self._iterator, self._put = iterator, put
        self._has_state = hasattr(iterator, "get_state")
        self._state = iterator.get_state() if self._has_state else None
        self._ready: queue.SimpleQueue = queue.SimpleQueue()
        self._room = threading.Semaphore(depth)
        self._closed = False
        self.waited = 0.0
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Prefetch:
        return self

    def __next__(self) -> Any:
        if self._closed:
            raise StopIteration
        start = time.monotonic()
        batch, state, error = self._wait()
        self.waited += time.monotonic() - start
        if error is not None:
            self.close()
            raise error
        self._state = state
        self._room.release()
        return batch

    def _wait(self) -> tuple[Any, Any, BaseException | None]:
        """What comes next; an error if the thread has ended without a word, as one does that runs out of memory twice."""
        while True:
            alive = self._thread.is_alive()  # asked first: what a thread leaves as it ends is still taken
            try:
                return self._ready.get(timeout=PATIENCE)
            except queue.Empty:
                if not alive:
                    return None, None, RuntimeError("the thread that reads ahead has ended, and says nothing of why")

    def get_state(self) -> Any:
        """The iterator's state after the batch delivered last, whatever has been read ahead since."""
        return self._state

    def close(self) -> None:
        """Stop the thread and wait until it has ended, but not long for one that is stuck in its iterator."""
        self._closed = True
        self._room.release()
        self._thread.join(timeout=5 * PATIENCE)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _work(self) -> None:
        while self._room.acquire() and not self._closed:
            try:
                batch = next(self._iterator)
                state = self._iterator.get_state() if self._has_state else None
                self._ready.put((self._put(batch), state, None))
            except BaseException as error:  # StopIteration too: each ends the stream, in the consumer
                self._ready.put((None, None, error))
                return
