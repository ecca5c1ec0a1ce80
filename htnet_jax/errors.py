"""Errors a user can cause, the collector that reports all bad rows together, and other messages."""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO


def shown(text: object, keep: str = "") -> str:
    r"""Text as it can be printed: what is not printable becomes `\x1b`, `\n` or `\u202e`.

    Names of clips, subjects and files come from foreign folders and sheets: raw, they could steer
    the terminal, and a name that is not UTF-8 could not be written at all.

    Args:
        text: What to show.
        keep: Characters to leave as they are.
    """
    return "".join(
        character
        if character.isprintable() or character in keep
        else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def count(number: int, noun: str, plural: str = "") -> str:
    """`1 fold`, `2 folds`."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


class UserError(Exception):
    """A mistake in the input, not in the program: one message that names the place and the remedy.

    Commands print it without a traceback and exit with status 2. Only its lines are its own: other
    control characters come from names, and are shown escaped.
    """

    def __init__(self, message: object) -> None:
        """`message`: what is wrong, where, and the remedy."""
        super().__init__(shown(message, keep="\n\t"))


class Problems:
    """Collects what is wrong with an input, so that one report names every bad row.

    Example:
        problems = Problems("clips.csv")
        problems.add("row 3", "unknown label 7")
        problems.raise_if_any("Correct these rows.")
    """

    def __init__(self, subject: str) -> None:
        """`subject`: the file or folder the problems are in; it heads the report."""
        self.subject = subject
        self.found: list[tuple[str, str]] = []

    def add(self, where: str, what: str) -> None:
        """Records one problem: `where` names a file, row or key, `what` says what is wrong."""
        self.found.append((where, what))

    def __bool__(self) -> bool:
        return bool(self.found)

    def raise_if_any(self, remedy: str) -> None:
        """Raises one `UserError` with every problem and the remedy, if there is any."""
        if self.found:
            lines = "\n".join(f"  {where}: {what}" for where, what in self.found)
            number = count(len(self.found), "problem")
            raise UserError(f"{self.subject}: {number}\n{lines}\n{remedy}")


def say(message: object) -> None:
    """Tells the user something on standard error, at once: standard output is for results."""
    print(shown(message, keep="\n\t"), file=sys.stderr, flush=True)


class _Escaping:
    """A text stream that lets no control characters through but those of our own lines and bars."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # A progress bar's text begins with \r; within the text it would hide what is before it.
        start = text[: len(text) - len(text.lstrip("\r"))]
        safe = shown(text[len(start) :], keep="\n\t")
        encoding = self._stream.encoding or "utf-8"
        safe = safe.encode(encoding, "backslashreplace").decode(encoding)
        self._stream.write(start + safe)
        return len(text)

    def writelines(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _safe_output() -> Iterator[None]:
    """Whatever is printed meanwhile can neither steer the terminal nor fail for its encoding."""
    with (
        contextlib.redirect_stdout(_Escaping(sys.stdout)),
        contextlib.redirect_stderr(_Escaping(sys.stderr)),
    ):
        yield


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line with absl's flags.

    Returns:
        The positional arguments, the program's name first.

    Raises:
        UserError: An unknown flag, or a value that does not fit.
    """
    from absl import flags

    try:
        return flags.FLAGS(list(argv))
    except flags.Error as error:
        raise UserError(f"{error}; see --help") from error


class Stopped(KeyboardInterrupt):
    """The work has stopped because a signal asked for it; what was finished is on disk."""

    def __init__(self, number: int) -> None:
        """`number`: the signal's."""
        super().__init__()
        self.signal = number


def _stop(number: int, frame: FrameType | None) -> None:
    del frame
    raise Stopped(number)


def run_command(
    main: Callable[[list[str]], Any],
    flags_parser: Callable[[Sequence[str]], list[str]] | None = None,
) -> None:
    """`absl.app.run(main)`, with a `UserError` printed as one message (exit status 2).

    An interruption from the keyboard or by SIGTERM ends with status 128 and the signal's number,
    without a traceback.

    Args:
        main: Called with the positional arguments, the program's name first.
        flags_parser: Parses the command line; `parse_flags` by default.
    """
    from absl import app, logging

    def guarded(argv: list[str]) -> Any:
        # The libraries' own progress messages would bury ours.
        logging.set_verbosity(logging.WARNING)
        return main(argv)

    # Ended by the default action, nothing would be tidied up. Ignored, it stays ignored.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _stop)
    with _safe_output():
        try:
            app.run(guarded, flags_parser=flags_parser or parse_flags)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            print(
                "\ninterrupted; what was finished is kept. To resume, give this command again:\n ",
                shlex.join(sys.orig_argv),
                file=sys.stderr,
            )
            sys.exit(128 + getattr(interrupt, "signal", signal.SIGINT))
