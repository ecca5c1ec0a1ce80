"""How far a long task is: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from htnet_jax.errors import count, say, shown

T = TypeVar("T")

# Without a terminal, seconds between lines that nobody asked for.
INTERVAL_S = 30.0


class Bar:
    """Progress of one task on standard error; a context manager.

    On a terminal it is a moving bar. Elsewhere (a file, a pipe) it is a plain line every
    `INTERVAL_S`, where `update` asks for one, and at the end.
    """

    def __init__(
        self,
        total: int,
        title: str,
        unit: str,
        *,
        done: int = 0,
        brief: bool = False,
        hidden: bool = False,
    ) -> None:
        """Begins.

        Args:
            total: How much there is to do, in units.
            title: What is being done.
            unit: What is counted ("clip").
            done: What is done already.
            brief: Show nothing unless it takes long, and leave nothing behind.
            hidden: Show nothing at all, as in other processes than the leading one.
        """
        self._total, self._title, self._unit = total, shown(title), unit
        self._note = ""
        self._brief, self._hidden = brief, hidden
        self._bar: tqdm | None = None
        if not hidden and sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=done,
                desc=self._title,
                unit=f" {unit}",
                mininterval=0.5,
                smoothing=0.1,
                delay=2 if brief else 0,
                leave=not brief,
            )
        self._began = self._clock = self._line_at = time.monotonic()
        self._done = self._clock_done = self._line_done = done

    def restart(self, done: int | None = None) -> None:
        """Counts from `done` (None: from where it is); the time left follows from what comes."""
        self._done = self._clock_done = self._done if done is None else done
        self._clock = time.monotonic()
        if self._bar is not None:
            # Not `reset`, which would show 0 for a moment.
            self._bar.initial = self._bar.n = self._bar.last_print_n = self._done
            self._bar.start_t = self._bar.last_print_t = time.time()

    def update(
        self, number: int = 1, *, title: str = "", note: str = "", line: bool = False
    ) -> None:
        """Some more is done.

        Args:
            number: How much, in units.
            title: What is being done now; empty: as before.
            note: What else to show, such as a loss; empty: as before.
            line: Without a terminal, print a line now.
        """
        self._title, self._note = shown(title) or self._title, shown(note) or self._note
        self._done += number
        if self._bar is not None:
            self._bar.set_description(self._title, refresh=False)
            self._bar.set_postfix_str(self._note, refresh=False)
            self._bar.update(number)
        elif line or time.monotonic() - self._line_at >= INTERVAL_S:
            self._print()

    def write(self, message: object) -> None:
        """Prints a message of its own."""
        if self._bar is not None:
            self._bar.write(shown(message, keep="\n\t"), file=sys.stderr)
        elif not self._hidden:
            say(message)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif not self._brief and self._done != self._line_done:
            self._print()

    def _print(self) -> None:
        now = time.monotonic()
        self._line_at, self._line_done = now, self._done
        if self._hidden:
            return
        facts = [f"{self._done}/{count(self._total, self._unit)}"]
        facts += [self._note] if self._note else []
        facts.append(f"{tqdm.format_interval(now - self._began)} elapsed")
        # Never 0: a clock may stand still for a moment.
        rate = (self._done - self._clock_done) / max(now - self._clock, 1e-3)
        if rate:
            digits = f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
            facts.append(f"{digits} {self._unit}/s")
        if rate and self._done < self._total:
            facts.append(f"{tqdm.format_interval((self._total - self._done) / rate)} left")
        say(f"{self._title}: {', '.join(facts)}")


def progress(
    items: Iterable[T], total: int, title: str, unit: str, *, brief: bool = False
) -> Iterator[T]:
    """Yields the items, and shows how many are done; the arguments are those of `Bar`."""
    with Bar(total, title, unit, brief=brief) as bar:
        for item in items:
            yield item
            bar.update()
