"""Stopping on SIGTERM and Ctrl-C without losing what was computed."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

from htnet_jax.errors import UserError

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(KeyboardInterrupt):
    """Training has stopped because it was asked to; its state is on disk."""

    def __init__(self, number: int) -> None:
        """`number`: the signal's."""
        super().__init__()
        self.signal = number


class StopRequest:
    """While it is entered, the first SIGTERM or SIGINT is only remembered; a second one acts.

    A signal that is ignored stays ignored. Outside the main thread signals cannot be caught, and
    nothing changes.
    """

    def __init__(self, of_others: Callable[[], str] = str) -> None:
        """`of_others`: says why another process has stopped, so that this one should; else ""."""
        self._of_others = of_others
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # One that is ignored, as by nohup or in a shell's background, stays so.
            caught = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in caught}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    @property
    def requested(self) -> bool:
        """Whether training should stop."""
        return self._number is not None or bool(self._of_others())

    def raise_if_requested(self) -> None:
        """Raises `Stopped` if training should stop, a UserError if another process has stopped."""
        if self._number is not None:
            raise Stopped(self._number)
        reason = self._of_others()
        if reason:
            raise UserError(reason)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self._number = number
        self._restore()
        print(
            "\nstopping: the state of training will be saved; once more stops at once",
            file=sys.stderr,
            flush=True,
        )

    def _restore(self) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)
