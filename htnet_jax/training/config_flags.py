"""The `--config` flag of the commands, with clear errors for settings that do not exist."""

from __future__ import annotations

import difflib
import runpy
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from htnet_jax.errors import UserError, parse_flags
from htnet_jax.training.config import default_config


def parser_for(flag: Any) -> Callable[[Sequence[str]], list[str]]:
    """A command-line parser in which a config that cannot be read or set ends in one message.

    Args:
        flag: What `config_flags.DEFINE_config_file` returned.

    Returns:
        For `run_command`; raises a UserError for an unknown `--config.KEY`, or a config file that
        is missing or broken.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv)
            # For a config file that is missing, the flag holds an object that raises when used.
            getattr(flag.value, "items", None)
            return rest
        except Exception as error:  # whatever the user's config file raises when it is run
            if unknown := _unknown_keys(argv):
                raise UserError("\n".join(unknown)) from error
            if isinstance(error, UserError):
                raise
            if missing := [path for path in _files(argv) if not Path(path).is_file()]:
                raise UserError(f"{missing[0]}: no such file") from error
            named = [argument for argument in argv if argument.startswith("--config")]
            raise UserError(f"{' '.join(named)}: {type(error).__name__}: {error}") from error

    return parse


def _files(argv: Sequence[str]) -> Iterator[str]:
    """The files that `--config=FILE` and `--config FILE` name."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--config":
            yield following
        elif argument.startswith("--config="):
            yield argument.partition("=")[2].partition(":")[0]


def _unknown_keys(argv: Sequence[str]) -> list[str]:
    """One line for each `--config.KEY` that no setting is called, with the nearest that is."""
    known = list(_keys(_config_of(argv)))
    lines = []
    for argument in argv:
        key = argument.partition("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean --config.{near[0]}?" if near else f"there are {', '.join(known)}"
            lines.append(f"unknown setting --config.{key}; {hint}")
    return lines


def _config_of(argv: Sequence[str]) -> ConfigDict:
    """What the config file gives, whose model may be any; the defaults if it gives nothing."""
    for path in _files(argv):
        try:
            config = runpy.run_path(path)["get_config"]()
        except Exception:  # the file is at fault, not a key: `parse` reports that
            break
        if isinstance(config, ConfigDict):
            return config
    return default_config()


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
