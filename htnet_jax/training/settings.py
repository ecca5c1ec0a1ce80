"""Checks of a run's settings before anything is done, and how two runs' settings differ."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ml_collections import ConfigDict

from htnet_jax.config import default_config, names_in
from htnet_jax.errors import UserError
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.training.folds import MATMUL_PRECISIONS

# Keys that do not change what a run computes: a run may be resumed with other values of them.
_PLACE_KEYS = (
    "coordinator",
    "dataset.manual_dir",
    "dataset.data_dir",
    "distributed",
    "process",
    "processes",
    "cpu_devices",
    "tensorboard",
    "checkpoint_every",
    "checkpoint_seconds",
)

# `config.optimizer`.
OPTIMIZERS = ("adam", "adamw")

# Types in which a network may compute.
_DTYPES = ("float32", "bfloat16")


def check(config: ConfigDict) -> None:
    """The keys are those of `default_config` (the model checks its own), the values possible.

    Raises:
        UserError: Unknown or missing keys, or an impossible value.
    """
    known, given = (_names(tree) for tree in (default_config(), config))
    wrong = [f"config.{key} is unknown" for key in sorted(given - known)]
    wrong += [f"config.{key} is missing" for key in sorted(known - given)]
    if wrong:
        raise UserError(
            "the config does not have the keys of htnet_jax/config.py:\n"
            + "\n".join(f"  {line}" for line in wrong)
        )
    for key in ("epochs", "batch_size", "seeds"):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be at least 1")
    flat = _flatten(config.to_dict())
    for key in (
        *("seed", "folds_per_device", "cpu_devices", "inner_folds", "spare_outputs"),
        *("checkpoint_every", "checkpoint_seconds", "dataset.frame_size", "weight_decay"),
        *("learning_rate_decay_epochs", *(key for key in flat if key.startswith("augmentation."))),
    ):
        # Not a comparison with 0 alone: NaN is neither.
        if not 0 <= flat[key] < float("inf"):
            raise UserError(f"config.{key}={flat[key]} must be at least 0, and finite")
    # JAX's keys take 32 bits of a seed.
    if config.seed + config.seeds > 2**32:
        raise UserError(f"config.seed={config.seed}: seeds must be below 2**32")
    if not 0 < config.learning_rate < float("inf"):
        raise UserError(f"config.learning_rate={config.learning_rate} must be above 0 and finite")
    if not 0 < config.learning_rate_decay <= 1:
        raise UserError(
            f"config.learning_rate_decay={config.learning_rate_decay} must lie in (0, 1]; 1: none"
        )
    if config.optimizer not in OPTIMIZERS:
        raise UserError(
            f"config.optimizer={config.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}"
        )
    if config.weight_decay and config.optimizer != "adamw":
        raise UserError(
            f"config.weight_decay={config.weight_decay} is for adamw; set "
            "--config.optimizer=adamw, or --config.weight_decay=0"
        )
    if config.augmentation.rotation > 180:
        raise UserError(
            f"config.augmentation.rotation={config.augmentation.rotation} is in degrees either "
            "way: at most 180"
        )
    if config.augmentation.flip > 1:
        raise UserError(
            f"config.augmentation.flip={config.augmentation.flip} is a probability: at most 1"
        )
    if config.matmul_precision not in MATMUL_PRECISIONS:
        raise UserError(
            f"config.matmul_precision={config.matmul_precision!r} is unknown; use "
            f"{', '.join(MATMUL_PRECISIONS)}"
        )
    if config.model.get("dtype", "float32") not in _DTYPES:
        raise UserError(
            f"config.model.dtype={config.model.dtype!r} is not for training; use "
            f"{' or '.join(_DTYPES)} (parameters, loss and optimizer are float32 always)"
        )
    if config.protocol not in PROTOCOLS:
        raise UserError(
            f"config.protocol={config.protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}"
        )
    if config.inner_folds and not config.inner_folds <= config.inner_parts:
        raise UserError(
            f"config.inner_folds={config.inner_folds} must not exceed "
            f"config.inner_parts={config.inner_parts}"
        )


def digest(config: dict[str, Any]) -> str:
    """SHA-256 of the settings that change what a run computes."""
    flat = {key: value for key, value in _flatten(config).items() if key not in _PLACE_KEYS}
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def differences(
    old: dict[str, Any], new: dict[str, Any], whose: tuple[str, str] = ("there", "now")
) -> list[str]:
    """One line for each setting that differs and changes what a run computes.

    Args:
        old: Settings, JSON-safe.
        new: Others.
        whose: What to call each.
    """
    before, after = _flatten(old), _flatten(new)
    return [
        f"config.{key}: {before.get(key, 'not set')} {whose[0]}, "
        f"{after.get(key, 'not set')} {whose[1]}"
        for key in sorted({*before, *after} - {*_PLACE_KEYS})
        if before.get(key) != after.get(key)
    ]


def chosen(key: str, text: str, known: list[str], what: str) -> set[str]:
    """The items of a comma-separated setting, each of which must be known.

    Args:
        key: Name of the setting, for the message.
        text: Its value.
        known: What there is.
        what: What the items are ("fold").

    Raises:
        UserError: Names all unknown items.
    """
    found = names_in(text)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise UserError(
            f"config.{key}: no {what} {', '.join(unknown)}; the {what}s are {', '.join(known)}"
        )
    return set(found)


def _names(config: ConfigDict) -> set[str]:
    found = {key for key in _flatten(config.to_dict()) if not key.startswith("model.")}
    return found | ({"model"} if "model" in config else set())


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
