"""Stopping on SIGTERM and Ctrl-C without losing what was computed."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from htnet_jax.errors import Stopped, say

__all__ = ["StopRequest", "Stopped"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """While it is entered, the first SIGTERM or SIGINT is only remembered; a second one acts.

    A signal that is ignored stays ignored. Outside the main thread signals cannot be caught, and
    nothing changes.

    Attributes:
        number: The signal that was caught; 0: none.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            # One that is ignored, as by nohup or in a shell's background, stays so.
            caught = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._remember) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.number = number
        self.__exit__()
        say("\nstopping: the state of training will be saved; once more stops at once")
