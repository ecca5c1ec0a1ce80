"""Errors a user can cause, the collector that reports all bad rows together, and other messages."""

from __future__ import annotations

import contextlib
import difflib
import itertools
import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, TextIO

import htnet_jax


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


def csv_cell(text: object) -> str:
    """Text as a cell of a CSV file: `shown`, and nothing that a spreadsheet would run.

    A text that would be a formula (it starts with `= + - @`) gets an apostrophe in front, and so
    does one that starts with an apostrophe: take one leading apostrophe away to have the text.
    """
    printable = shown(text)
    # OWASP, "CSV Injection".
    return f"'{printable}" if printable.startswith(("=", "+", "-", "@", "'")) else printable


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
        self.found.append((shown(where), what))

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


_HELP = {"help", "helpshort", "helpfull", "h", "?"}


def parse_flags(argv: Sequence[str], more_help: Callable[[], str] | None = None) -> list[str]:
    """Parses the command line with absl's flags; `--help` and `--version` print, and exit with 0.

    Args:
        argv: The program's name first.
        more_help: What `--help` prints after the flags.

    Returns:
        The positional arguments, the program's name first.

    Raises:
        UserError: An unknown flag, or a value that does not fit.
        SystemExit: After `--help` and `--version`.
    """
    from absl import app, flags

    given = itertools.takewhile(lambda argument: argument != "--", argv[1:])
    asked = {argument.lstrip("-") for argument in given if argument.startswith("-")}
    if "version" in asked:
        print(f"htnet_jax {htnet_jax.__version__}")
        sys.exit(0)
    if asked & _HELP:
        app.usage(shorthelp=True, writeto_stdout=True)
        print("\n--help prints this, --version the version.")
        if more_help:
            print(f"\n{more_help()}")
        sys.exit(0)
    try:
        return flags.FLAGS(list(argv))
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        hint = f"did you mean --{near[0]}?" if near else "see --help"
        raise UserError(f"unknown flag --{error.flagname}; {hint}") from error
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


def _of_surroundings(error: Exception) -> str:
    """What to say of an error that comes from how this machine is set up; else empty."""
    frames = traceback.walk_tb(error.__traceback__)
    # Whatever JAX raises where it looks for devices: which type depends on what is wrong.
    if any(frame.f_globals.get("__name__") == "jax._src.xla_bridge" for frame, _ in frames):
        names = ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES")
        given = [f"{name}={os.environ[name]}" for name in names if name in os.environ]
        reason = (str(error).splitlines() or ["no such device is installed"])[0]
        return (
            f"JAX finds no device with {' '.join(given) or 'its defaults'} ({reason}). Unset these "
            "variables to use what there is, set JAX_PLATFORMS=cpu, or install JAX for your device "
            "(such as pip install 'jax[cuda13]')."
        )
    return ""


def _check_home() -> None:
    """Data sets, compiled programs and fonts are kept below the home folder.

    Raises:
        UserError: None is known.
    """
    if os.environ.get("HOME") == "" or os.path.expanduser("~") == "~":
        raise UserError(
            "no home folder is known: HOME is not set, and the system has none for user "
            f"{os.getuid()}. Set HOME to a folder that you can write to, such as HOME=/tmp/home."
        )


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
        _check_home()
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
        except Exception as error:
            if not (message := _of_surroundings(error)):
                raise
            print(f"error: {message}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as interrupt:
            print(
                "\ninterrupted; what was finished is kept. To resume, give this command again:\n ",
                shlex.join(sys.orig_argv),
                file=sys.stderr,
            )
            sys.exit(128 + getattr(interrupt, "signal", signal.SIGINT))
