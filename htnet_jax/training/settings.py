"""A run's settings: checked before anything is done, turned into a model, and compared."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import default_config, names_in
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.features import FEATURES, Feed
from htnet_jax.learn import losses, optim
from htnet_jax.learn.step import logits_of
from htnet_jax.training.folds import MATMUL_PRECISIONS
from htnet_jax.training.plan import ORDERS
from htnet_jax.training.state import attributes_of, build_module

# Keys that do not change what a run computes: it may be resumed with other values.
_PLACE_KEYS = (
    "coordinator",
    "dataset.manual_dir",
    "dataset.data_dir",
    "distributed",
    "process",
    "processes",
    "cpu_devices",
    "tensorboard",
    "tensorboard_folds",
    "checkpoint_every",
    "checkpoint_seconds",
)

# Trees of the config whose keys belong to what they name, which checks them itself.
_FREE = ("model", "losses", "loss_options")

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
        *("learning_rate_decay_epochs", "warmup_epochs", "momentum", "ema"),
        *(key for key in flat if key.startswith("augmentation.")),
    ):
        # Not a comparison with 0 alone: NaN is neither.
        if not 0 <= flat[key] < float("inf"):
            raise UserError(f"config.{key}={flat[key]} must be at least 0, and finite")
    # JAX's keys take 32 bits of a seed.
    if config.seed + config.seeds > 2**32:
        raise UserError(f"config.seed={config.seed}: seeds must be below 2**32")
    if config.ema >= 1:
        raise UserError(f"config.ema={config.ema} must be below 1")
    optim.make(config)
    network = models.MODELS.get(config.model.get("name"))
    losses.make(config.losses.to_dict(), config.loss_options.to_dict(), network)
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
    if config.order not in ORDERS:
        raise UserError(f"config.order={config.order!r} is unknown; use {' or '.join(ORDERS)}")
    if config.protocol not in PROTOCOLS:
        raise UserError(
            f"config.protocol={config.protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}"
        )
    if config.inner_folds and not config.inner_folds <= config.inner_parts:
        raise UserError(
            f"config.inner_folds={config.inner_folds} must not exceed "
            f"config.inner_parts={config.inner_parts}"
        )


def build_model(config: ConfigDict) -> Any:
    """The network or baseline that `config.model` names.

    Args:
        config: All settings of a run.

    Raises:
        UserError: Unknown name or attribute, values that do not fit together, or settings of a
            network that a baseline does not have.
    """
    name = config.model.get("name")
    if name in models.MODELS:
        return build_module(config.model)
    # Here, because scikit-learn takes most of a second to import.
    from htnet_jax.training.baselines import BASELINES

    if name not in BASELINES:
        known = ", ".join([*models.MODELS, *BASELINES])
        raise UserError(f"config.model.name={name!r} is unknown; use {known}")
    inputs = names_in(config.inputs) or BASELINES[name].inputs
    if len(inputs) != 1 or (inputs[0] in FEATURES and FEATURES[inputs[0]].kind == "image"):
        raise UserError(
            f"config.inputs={config.inputs!r}, but {name} takes one flow image; set "
            "--config.inputs=mosaic or flow"
        )
    for key, value in (("epochs", 1), ("checkpoints", "none")):
        if config[key] != value:
            raise UserError(
                f"config.{key}={config[key]}, but {name} is fitted once and has no checkpoint; set "
                f"--config.{key}={value}"
            )
    order, given = config.model.get("channels"), config.dataset.channels
    if order is not None and names_in(order) != names_in(given):
        raise UserError(
            f"config.model.channels={order!r}, but config.dataset.channels={given!r}; {name} must "
            "know which channel is which: give both the same names"
        )
    try:
        baseline = BASELINES[name](**attributes_of(config.model))
        baseline.check()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error
    return baseline


def check_fit(config: ConfigDict, model: Any, arrays: ClipArrays, feed: Feed) -> None:
    """The network takes what the data set gives, and has an output for every class.

    Raises:
        UserError: It does not.
    """
    classes, spare = len(arrays.class_names), config.spare_outputs
    wanted = classes + spare
    if config.model.get("num_classes", wanted) != wanted:
        why = f" and config.spare_outputs={spare}" if spare else ""
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {arrays.name} has "
            f"{classes} classes{why}; set --config.model.num_classes={wanted}"
        )
    if not isinstance(model, nn.Module):
        return  # a baseline takes a flow of any size
    samples = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in feed.shapes]
    given = ", ".join(
        f"{name} {' x '.join(map(str, shape))}"
        for name, shape in zip(feed.names, feed.shapes, strict=True)
    )
    try:
        result, _ = jax.eval_shape(
            lambda *inputs: model.init_with_output(jax.random.key(0), *inputs, train=False),
            *samples,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{config.model.name} does not fit {arrays.name}, which gives {given}: {error}\n"
            "Set config.model to fit, or choose another --config.dataset.config, "
            "--config.dataset.frame_size (of face frames) or --config.inputs."
        ) from error
    logits = logits_of(result)[0]
    if logits.shape != (1, wanted):
        raise UserError(
            f"{config.model.name} gives {logits.shape[1:]} logits a clip, but {arrays.name} has "
            f"{classes} classes and config.spare_outputs={spare}"
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


def _names(config: ConfigDict) -> set[str]:
    found = {key for key in _flatten(config.to_dict()) if key.split(".")[0] not in _FREE}
    return found | {key for key in _FREE if key in config}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
