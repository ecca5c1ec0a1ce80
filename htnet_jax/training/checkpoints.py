"""A fold's final variables on disk: Orbax arrays beside the config that says what they are.

`RUN/checkpoints/SUBJECT/` holds `config.json`, the Orbax folder `variables/`, and `manifest.json`,
the SHA-256 of every file: a flipped bit in the arrays would otherwise be read without an error.
"""

from __future__ import annotations

import json
import os
import shutil
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import linen as nn
from flax import traverse_util
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically
from htnet_jax.training import manifest, storage


class LoadedModel(NamedTuple):
    """What `htnet_jax.load` returns.

    Attributes:
        module: The Flax module.
        variables: `{"params": ...}`, float32 arrays; also the network's other collections, such as
            `batch_stats`.
        config: The settings of the run.
    """

    module: nn.Module
    variables: dict[str, Any]
    config: ConfigDict


def attributes_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes that a `config.model` gives, without the model's name."""
    # A config that was stored as JSON has lists for its tuples; modules must be hashable.
    attributes = {key: tuple(v) if isinstance(v, list) else v for key, v in config.items()}
    attributes.pop("name", None)
    return attributes


def build_module(config: Mapping[str, Any]) -> nn.Module:
    """The network that a `config.model` names.

    Args:
        config: `name` and the module's attributes.

    Raises:
        UserError: Unknown name or attribute, or sizes that do not fit together.
    """
    name = config.get("name")
    if name not in models.MODELS:
        raise UserError(f"config.model.name={name!r} is unknown; use {', '.join(models.MODELS)}")
    try:
        module = models.MODELS[name](**attributes_of(config))
        module.check_sizes()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error
    return module


def fold_folder(workdir: Path, fold: str) -> Path:
    """`WORKDIR/checkpoints/FOLD`, with a name that cannot leave that folder.

    Raises:
        UserError: The name is empty.
    """
    if not fold:
        raise UserError("a fold without a name cannot be saved; name the subject in the data")
    name = urllib.parse.quote(fold, safe=" ")
    if name.strip(". ") == "":
        name = name.replace(".", "%2E").replace(" ", "%20")
    return workdir / "checkpoints" / name


def save_fold(folder: Path, variables: Any, config: Mapping[str, Any]) -> None:
    """Writes one fold's checkpoint; it appears complete or not at all.

    Args:
        folder: Where; an older checkpoint there is replaced.
        variables: `{"params": ...}` and other collections, nested dicts of NumPy arrays.
        config: The run's settings, JSON-safe.

    Raises:
        UserError: The folder cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        try:
            temporary.mkdir(parents=True)
            text = json.dumps(config, indent=2) + "\n"
            write_atomically(temporary / "config.json", lambda file: file.write(text.encode()))
            storage.save_tree(temporary / "variables", variables)
            manifest.write(temporary, "variables")
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except (OSError, ValueError) as error:  # tensorstore reports a full disk as a ValueError
        raise UserError(
            f"{folder}: the checkpoint cannot be written ({error}). Free some space or choose a "
            "folder you can write to, then start again: finished folds are kept."
        ) from error


def load_fold(path: str | os.PathLike[str]) -> LoadedModel:
    """Opens a checkpoint written by `save_fold`; see `htnet_jax.load`."""
    folder = Path(path)
    if folder.is_file():
        raise UserError(f"{folder}: is a file; give a fold's folder, RUN/checkpoints/SUBJECT")
    if not (folder / "variables").is_dir() or not (folder / "config.json").is_file():
        raise UserError(f"{folder}: no checkpoint here. {_where_folds_are(folder)}")
    try:
        settings = json.loads((folder / "config.json").read_text())
        config = ConfigDict(settings)
        module = build_module(config.model)
        shapes = module.input_shapes(len(config.dataset.channels.split(",")))
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: not a run's config ({error})") from error
    samples = [np.zeros((1, *shape), np.float32) for shape in shapes]
    expected = jax.eval_shape(lambda: module.init(jax.random.key(0), *samples, train=False))
    try:
        manifest.check(folder, "variables")
    except manifest.DamagedError as error:
        raise _damaged(folder, error) from error
    variables = _restore(folder / "variables", expected)
    return LoadedModel(module, variables, config)


def _damaged(folder: Path, reason: object) -> UserError:
    return UserError(
        f"{folder}: the checkpoint is damaged or incomplete ({reason}); restore it from a copy "
        "or train the fold again"
    )


def _restore(folder: Path, expected: Any) -> Any:
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), expected)
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            stored = checkpointer.metadata(folder.absolute()).item_metadata.tree
            _check_shapes(folder, stored, expected)
            return checkpointer.restore(
                folder.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy)
            )
    except UserError:
        raise
    except Exception as error:  # Orbax and tensorstore raise many types for damaged files
        raise _damaged(folder, error) from error


def _check_shapes(folder: Path, stored: Any, expected: Any) -> None:
    have, want = (
        {key: tuple(leaf.shape) for key, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (stored, expected)
    )
    wrong = [
        f"  {key}: stored {have.get(key, 'nothing')}, expected {want.get(key, 'nothing')}"
        for key in sorted({*have, *want})
        if have.get(key) != want.get(key)
    ]
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} arrays do not fit the network that config.json describes\n"
            + "\n".join(wrong)
            + "\nUse the config.json that was saved with this checkpoint."
        )


def _where_folds_are(folder: Path) -> str:
    if folder.parent.name == "checkpoints" and not folder.exists():
        names = sorted(path.parent.name for path in folder.parent.glob("*/config.json"))
        if names:
            return f"{folder.parent} has {', '.join(names)}."
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    found = sorted(p.parent for p in inside.glob("*/config.json")) if inside.is_dir() else []
    if found:
        return f"Give one fold's folder, such as {found[0]}."
    return "Give a fold's folder, RUN/checkpoints/SUBJECT."
