"""A run's settings: checked before anything is done, turned into a model, and compared."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import (
    FREE,
    GROUPS,
    LOSS_WEIGHT,
    SETTINGS,
    default_config,
    did_you_mean,
    flatten,
    names_in,
)
from htnet_jax.datasets.loading import LAYOUTS, SCALINGS, ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.features import FEATURES, Feed
from htnet_jax.features.text import check_template
from htnet_jax.learn import losses, optim
from htnet_jax.learn.step import logits_of
from htnet_jax.ranges import Allowed, Choice, refusals, short
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

# Types in which a network may compute.
_DTYPES = ("float32", "bfloat16")

# Keys whose values are the names in a registry.
_CHOICES: Mapping[str, Callable[[], Choice]] = {
    key: lambda names=names: Choice(tuple(names))
    for key, names in {
        "optimizer": optim.OPTIMIZERS,
        "schedule": optim.SCHEDULES,
        "order": ORDERS,
        "protocol": PROTOCOLS,
        "matmul_precision": MATMUL_PRECISIONS,
        "dataset.layout": LAYOUTS,
        "dataset.scaling": SCALINGS,
    }.items()
}


def check(config: ConfigDict) -> None:
    """The keys are those of `default_config` (the model checks its own), the values possible.

    Raises:
        UserError: Names all keys that are unknown, missing, or have an impossible value; if there
            are none, all values that do not fit together.
    """
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"the config is a {type(config).__name__}; get_config() must return a ConfigDict, made "
            "by htnet_jax.config.default_config()"
        )
    _raise_any([*_wrong_keys(config), *wrong_values(config)])
    lines = []
    # JAX's keys take 32 bits of a seed.
    if config.seed + config.seeds > 2**32:
        lines.append(f"config.seed={config.seed}: seeds must be below 2**32")
    if config.inner_folds > config.inner_parts:
        lines.append(
            f"config.inner_folds={config.inner_folds} must not exceed "
            f"config.inner_parts={config.inner_parts}"
        )
    network = models.MODELS.get(config.model.name)
    for make in (
        lambda: optim.make(config),
        lambda: losses.make(config.losses.to_dict(), config.loss_options.to_dict(), network),
        lambda: build_model(config),
        lambda: check_template(config.text.template),
    ):
        try:
            make()
        except UserError as error:
            lines.append(str(error))
    _raise_any(lines)


def wrong_values(config: ConfigDict, keys: Collection[str] = ()) -> list[str]:
    """One line for each value of a wrong type or out of range, taken by itself.

    Args:
        config: The settings.
        keys: Those to look at; empty: all.
    """
    values = {}
    lines = []
    for key, value in flatten(config.to_dict()).items():
        if keys and key not in keys:
            continue
        values[f"config.{key}"] = value
        # `config.json` holds the settings: of NumPy's numbers it would know nothing.
        if not all(type(one) in (bool, int, float, str, type(None)) for one in _items(value)):
            del values[f"config.{key}"]
            lines.append(
                f"config.{key}={short(value)} is of type {type(value).__name__}; settings are "
                "numbers, text, True or False of Python itself, or tuples of these"
            )
    return lines + refusals(values, ((f"config.{key}", one) for key, one in _allowed(config)))


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else (value,)


def _allowed(config: ConfigDict) -> Iterator[tuple[str, Allowed]]:
    """What each key may be, those of the losses and of the model included."""
    for key, setting in SETTINGS.items():
        if not key.startswith("losses."):
            yield key, _CHOICES[key]() if key in _CHOICES else setting.allowed
    weights, model = config.get("losses"), config.get("model")
    if isinstance(weights, ConfigDict):
        yield from ((f"losses.{name}", LOSS_WEIGHT) for name in weights)
    if isinstance(model, ConfigDict):
        try:
            found = attributes(class_of(model.get("name")))
        except UserError:
            return  # the name is wrong; `_wrong_keys` says so
        for name, attribute in found.items():
            if attribute.allowed is not None:
                yield f"model.{name}", attribute.allowed


def _wrong_keys(config: ConfigDict) -> list[str]:
    """One line for each key that is unknown, missing, or a value where settings are grouped."""
    groups = [name for name in GROUPS if not isinstance(config.get(name), ConfigDict)]
    known, given = (_names(tree) - {*GROUPS} for tree in (default_config(), config))
    lines = [f"config.{name} must be a group of settings" for name in groups]
    known = {key for key in known if key.split(".")[0] not in groups}
    for key in sorted(given - known):
        lines.append(f"config.{key} is unknown{did_you_mean(key, known)}")
    lines += [f"config.{key} is missing" for key in sorted(known - given)]
    if lines:
        lines.append("The keys are listed by: python -m htnet_jax.train --help")
    if "model" not in groups:
        try:
            own = attributes(class_of(config.model.get("name")))
        except UserError as error:
            return [*lines, str(error)]
        lines += [
            f"config.model.{key} must be a value, not a group"
            for key, value in config.model.items()
            if isinstance(value, ConfigDict)
        ]
        for key in sorted({*config.model} - {*own, "name"}):
            hint = did_you_mean(key, own, "config.model.") or f"; there are {', '.join(own)}"
            lines.append(f"config.model.{key} is unknown to {config.model.name}{hint}")
    return lines


def _raise_any(lines: list[str]) -> None:
    if len(lines) > 1:
        lines = ["the settings are not possible:", *(f"  {line}" for line in lines)]
    if lines:
        raise UserError("\n".join(lines))


class Attribute(NamedTuple):
    """An attribute of a network or baseline, which `config.model` sets.

    Attributes:
        default: Its value where the config does not set it.
        allowed: What it may be; None: it has no stated range.
        meaning: What its class's docstring says of it.
    """

    default: Any
    allowed: Allowed | None
    meaning: str


def class_of(name: Any) -> type:
    """The class of a network or baseline.

    Raises:
        UserError: Unknown name.
    """
    if isinstance(name, str) and name in models.MODELS:
        return models.MODELS[name]
    # Here, because scikit-learn takes most of a second to import.
    from htnet_jax.training.baselines import BASELINES

    if not isinstance(name, str) or name not in BASELINES:
        known = ", ".join([*models.MODELS, *BASELINES])
        raise UserError(f"config.model.name={name!r} is unknown; use {known}")
    return BASELINES[name]


def attributes(model: type) -> dict[str, Attribute]:
    """The attributes that `config.model` may set, by name."""
    meanings = {}
    for base in reversed(model.__mro__):
        text = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")[2]
        for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {6,}.*)*)", text, re.MULTILINE):
            meanings[name] = " ".join(meaning.split())
    found = {}
    for field in dataclasses.fields(model):
        if field.name in ("parent", "name"):
            continue  # Flax's own
        allowed = getattr(model, "SIZES", {}).get(field.name, field.metadata.get("allowed"))
        if field.name == "dtype":
            allowed = Choice(_DTYPES)
        default = "float32" if field.name == "dtype" else field.default
        found[field.name] = Attribute(default, allowed, meanings.get(field.name, ""))
    return found


def build_model(config: ConfigDict) -> Any:
    """The network or baseline that `config.model` names.

    Args:
        config: All settings of a run.

    Raises:
        UserError: Unknown name or attribute, values that do not fit together, or settings of a
            network that a baseline does not have.
    """
    name = config.model.get("name")
    kind = class_of(name)
    if name in models.MODELS:
        return build_module(config.model)
    inputs = names_in(config.inputs) or kind.inputs
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
        baseline = kind(**attributes_of(config.model))
        baseline.check()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error
    return baseline


def table() -> dict[str, dict[str, Attribute]]:
    """Every setting: those of all runs under "", those of `config.model` under its class's name."""
    from htnet_jax.training.baselines import BASELINES

    common = {
        key: Attribute(
            one.default, _CHOICES[key]() if key in _CHOICES else one.allowed, one.meaning
        )
        for key, one in SETTINGS.items()
    }
    common["model.name"] = common["model.name"]._replace(
        allowed=Choice((*models.MODELS, *BASELINES))
    )
    return {"": common} | {
        name: {f"model.{key}": one for key, one in attributes(kind).items()}
        for name, kind in {**models.MODELS, **BASELINES}.items()
    }


def as_text() -> str:
    """All settings for a terminal: default, meaning, what they may be."""
    lines = []
    indents = {"initial_indent": " " * 6, "subsequent_indent": " " * 6}
    for name, rows in table().items():
        lines.append(f"Settings of {name}:" if name else "Settings, each with its default:")
        for key, one in rows.items():
            lines.append(f"  --config.{key}={one.default}")
            lines += textwrap.wrap(f"{one.meaning} [{one.allowed or 'any'}]", 96, **indents)
    return "\n".join(lines)


def as_markdown() -> str:
    """docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Every key of a config, with its default and what it may be; on the command line it is",
        "`--config.KEY=VALUE`. `python -m htnet_jax.train --help` prints the same. This page is",
        "written from `htnet_jax/config.py` and the classes of networks and baselines, and a test",
        "compares them. `[` and `]` include the end of a range, `(` and `)` do not.",
    ]
    for name, rows in table().items():
        lines += ["", f"## {f'Attributes of {name}' if name else 'Of every run'}", ""]
        lines += ["| key | default | values | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{key}` | `{one.default!r}` | {one.allowed or 'any'} | {one.meaning} |"
            for key, one in rows.items()
        ]
    return "\n".join(lines) + "\n"


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
        if len(feed.shapes[0]) != 3:
            raise UserError(
                f"config.inputs={config.inputs!r}, but {config.model.name} takes one flow image; "
                "set --config.inputs=mosaic or flow"
            )
        return  # of any size
    own = [name for name in getattr(model, "privileged", ()) if name in feed.privileged]
    shapes = {name: feed.shape_of(name) for name in (*feed.names, *own)}
    samples = {
        name: jax.ShapeDtypeStruct((1, *shape), np.float32) for name, shape in shapes.items()
    }
    given = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
    key = jax.random.key(0)
    try:
        result, _ = jax.eval_shape(
            lambda inputs, hints: model.init_with_output(key, *inputs, train=False, **hints),
            [samples[name] for name in feed.names],
            {name: samples[name] for name in own},
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{config.model.name} does not fit {arrays.name}, which gives {given}: {error}\n"
            "Set config.model to fit, or choose another --config.dataset.config, "
            "--config.dataset.frame_size (of face frames) or --config.inputs."
        ) from error
    logits, out = logits_of(result)
    needed = losses.declared(config.losses, "needs", model, feed.absent)
    if lost := [name for name, used in needed.items() if used and name not in out]:
        names = ", ".join(dict.fromkeys(loss for name in lost for loss in needed[name]))
        raise UserError(
            f"config.losses: {names} needs {', '.join(lost)} from the network, which "
            f"{config.model.name} does not return; set its weight to 0"
        )
    if logits.shape != (1, wanted):
        raise UserError(
            f"{config.model.name} gives {logits.shape[1:]} logits a clip, but {arrays.name} has "
            f"{classes} classes and config.spare_outputs={spare}"
        )


def digest(config: dict[str, Any]) -> str:
    """SHA-256 of the settings that change what a run computes."""
    flat = {key: value for key, value in flatten(config).items() if key not in _PLACE_KEYS}
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
    before, after = flatten(old), flatten(new)
    lines = [
        f"config.{key}: {before.get(key, 'not set')} {whose[0]}, "
        f"{after.get(key, 'not set')} {whose[1]}"
        for key in sorted({*before, *after} - {*_PLACE_KEYS})
        if before.get(key) != after.get(key)
        and (key.startswith(FREE) or (key in before) == (key in after))
    ]
    for one, other, where in ((before, after, whose[0]), (after, before, whose[1])):
        # Keys come and go with versions of the program.
        lost = {key for key in other if key not in one and not key.startswith(FREE)}
        if lost := sorted(lost - {*_PLACE_KEYS}):
            lines.append(f"{', '.join(f'config.{key}' for key in lost)}: not known {where}")
    return lines


def _names(config: ConfigDict) -> set[str]:
    found = {key for key in flatten(config.to_dict()) if key.split(".")[0] not in FREE}
    return found | {key for key in FREE if key in config}
