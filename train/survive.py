"""How a run ends early without a loss: signals, a step that never comes, numbers that are none, a disk that is full."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

CANNOT_SAVE, NOT_FINITE, INTERRUPTED = 3, 4, 42  # exit codes
SIGNALS = (signal.SIGTERM, signal.SIGINT)
STDERR = 2  # the file descriptor: ``sys.stderr`` may be anything


class Stopped(BaseException):
    """The run ends here, on purpose, with all that is worth keeping on disk.

    Not an ``Exception``: a signal may raise it anywhere, and no library on the way may take it for an error of its own.

    Attributes:
      code: the command's exit code.
    """

    def __init__(self, code: int, sentence: str):
        super().__init__(sentence)
        self.code = code


class Signals:
    """SIGTERM and Ctrl-C. While signals are ``held`` the first one asks for an end, else it ends the run at once.

    A second one ends the process where it stands, even within a library that never returns. With several processes JAX's
    preemption service takes SIGTERM, whichever process it was sent to, and lets all of them stop after the same step.
    """

    def __enter__(self) -> Signals:
        self.received: signal.Signals | None = None
        self._held, self._asked = False, 0
        self._several = jax.process_count() > 1
        mine = (signal.SIGINT,) if self._several else SIGNALS
        main = threading.current_thread() is threading.main_thread()  # elsewhere Python allows no handlers
        self._before = {number: signal.signal(number, self._first) for number in mine} if main else {}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: a handler that was not set by Python

    def _first(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for mine in self._before:
            signal.signal(mine, signal.SIG_DFL)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the others
        elif not self._held:
            raise self.end()

    def asked(self) -> bool:
        """Whether to end after this step. With several processes all must ask equally often, and get the same answer."""
        self._asked += 1
        if self._several and multihost_utils.reached_preemption_sync_point(self._asked):
            self.received = self.received or signal.SIGTERM
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            return True
        return self.received is not None and not self._several

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Until the block ends a signal is only noted; it is for the block to ask, and to raise ``end`` when all is saved."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.check()

    def check(self) -> None:
        """Raise ``end`` if a signal has come: for work within a held block that may be broken off.

        With several processes it may not: the others are in the midst of the same work.
        """
        if self.received and not self._several:
            raise self.end()

    def end(self, saved: int | None = None) -> Stopped:
        """What ends the run. Args: saved: the step that was saved for it."""
        name = self.received.name if self.received else "a signal"
        done = "" if saved is None else f" after step {saved}, which is saved"
        return Stopped(INTERRUPTED, f"stopped by {name}{done}; repeat the command to continue")


class Watchdog:
    """Ends the process with exit code 1 and the stacks of all threads if ``alive`` is not called for some seconds.

    The clock runs in a thread of C, which no lock of Python's can stop.
    """

    def __init__(self, seconds: float):
        """Args: seconds: 0 watches nothing."""
        self.seconds = seconds

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def alive(self) -> None:
        """The run goes on."""
        if self.seconds:
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=STDERR)


class Programs:
    """Notices when a step is compiled for a shape that has been seen before."""

    EVENT = "/jax/core/compile/backend_compile_duration"

    def __enter__(self) -> Programs:
        self._compiled, self._seen = 0, set()
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *exception: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, seconds: float, **details: object) -> None:
        if event == self.EVENT and threading.get_ident() == self._thread:  # the thread that reads ahead may compile too
            self._compiled += 1

    @contextlib.contextmanager
    def watched(self, shape: tuple, again: Callable[[], None]) -> Iterator[None]:
        """Calls ``again`` if the block compiles anything though one with the same shape has run before."""
        before = self._compiled
        yield
        if self._compiled > before and shape in self._seen:
            again()
        self._seen.add(shape)


def disk_is_full(error: BaseException) -> bool:
    """Whether writing failed for want of space or quota."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
