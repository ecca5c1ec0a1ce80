"""What a helping process leaves beside its results, for process 0 to finish.

Process 0 writes the checkpoints and the records of a run; final variables and choices of
hyper-parameters of folds that another process trained wait for it in the folder of the unfinished
results. They are still there if the run is gone on with by other processes, or by one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flax import traverse_util

from htnet_jax import io
from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically

FORMAT_VERSION = 1


class Handover:
    """The files of helping processes in a folder."""

    def __init__(self, folder: Path) -> None:
        """`folder`: that of the unfinished results."""
        self._folder = folder

    def leave_variables(self, name: str, variables: Any) -> None:
        """Keeps the final variables of a fold.

        Args:
            name: Name of its checkpoint's folder.
            variables: Nested dict of NumPy arrays.

        Raises:
            UserError: They cannot be written.
        """
        flat = traverse_util.flatten_dict(variables, sep="/")
        io.save_arrays(self._variables(name), flat, FORMAT_VERSION, compress=False)

    def take_variables(self, name: str, save: Callable[[Any], None]) -> None:
        """Lets `save` keep the variables of a fold, if they were left, and then removes them.

        Args:
            name: Name of its checkpoint's folder.
            save: Called with the nested dict.

        Raises:
            UserError: The file is damaged.
        """
        path = self._variables(name)
        if not path.is_file():
            return
        try:
            flat = io.load_arrays(path, FORMAT_VERSION, "variables of a fold")
        except UserError as error:
            raise UserError(
                f"{error}\nDelete this file, and the fold's own beside it (fold-*.npz), to train "
                "only this fold again."
            ) from error
        save(traverse_util.unflatten_dict(flat, sep="/"))
        path.unlink()

    def leave_choices(self, index: int, choices: dict[str, Any]) -> None:
        """Adds hyper-parameters to those that a process has chosen.

        Args:
            index: The process.
            choices: Fold -> hyper-parameter -> value, JSON-safe.

        Raises:
            UserError: They cannot be written.
        """
        path = self._folder / f"choices-{index}.json"
        content = json.dumps({**_read(path), **choices})
        write_atomically(path, lambda file: file.write(content.encode()))

    def choices(self) -> dict[str, Any]:
        """The hyper-parameters that helping processes have chosen."""
        found: dict[str, Any] = {}
        for path in sorted(self._folder.glob("choices-*.json")):
            found |= _read(path)
        return found

    def _variables(self, name: str) -> Path:
        return self._folder / f"variables-{name}.npz"


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(
            f"{path}: damaged ({error}). Delete it; the hyper-parameters in it will be missing "
            "from environment.json, the predictions do not need it."
        ) from error
