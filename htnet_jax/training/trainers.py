"""The model that a config names, and the trainer that fits it: a network's or a baseline's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from htnet_jax import baselines, models
from htnet_jax.config import names_in
from htnet_jax.errors import UserError
from htnet_jax.evaluation.protocols import unique_subjects
from htnet_jax.features.feeds import FRAMES, Feed
from htnet_jax.learn import optim
from htnet_jax.training.baseline_folds import BaselineTrainer
from htnet_jax.training.checkpoints import attributes_of, build_module
from htnet_jax.training.cluster import ALONE, Cluster
from htnet_jax.training.folds import Fold, FoldTrainer
from htnet_jax.training.plan import Plan

Trainer = FoldTrainer | BaselineTrainer


def build_model(config: ConfigDict) -> Any:
    """The network or baseline that `config.model` names.

    Args:
        config: All settings of a run.

    Raises:
        UserError: Unknown name or attribute, values that do not fit together, or settings of a
            network that a baseline does not have.
    """
    name = config.model.get("name")
    if name not in baselines.BASELINES:
        if name not in models.MODELS:
            known = ", ".join([*models.MODELS, *baselines.BASELINES])
            raise UserError(f"config.model.name={name!r} is unknown; use {known}")
        return build_module(config.model)
    inputs = names_in(config.inputs)
    if len(inputs) != 1 or inputs[0] in FRAMES:
        raise UserError(
            f"config.inputs={config.inputs!r}, but {name} takes one flow picture; set "
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
        baseline = baselines.BASELINES[name](**attributes_of(config.model))
        baseline.check()
    except (TypeError, ValueError) as error:
        raise UserError(f"config.model: {error}") from error
    return baseline


def make_trainer(
    model: Any,
    config: ConfigDict,
    plan: Plan,
    feed: Feed,
    folds: Sequence[Fold],
    folds_per_device: int,
    cluster: Cluster = ALONE,
    devices_at_once: int = 0,
) -> Trainer:
    """The trainer of some folds.

    Args:
        model: From `build_model`.
        config: The settings.
        plan: The run.
        feed: The inputs of all clips.
        folds: What to train.
        folds_per_device: Group size; 0: chosen.
        cluster: The processes that share the folds.
        devices_at_once: Devices to use at most; 0: all.

    Raises:
        UserError: As the trainers.
    """
    if config.model.name in baselines.BASELINES:
        return BaselineTrainer(
            model,
            feed.arrays[feed.names[0]],
            plan.labels,
            folds,
            seed=config.seed,
            persons=unique_subjects(plan.subjects, plan.sources),
            sources=plan.sources,
            inner_parts=config.inner_parts,
            cluster=cluster,
        )
    return FoldTrainer(
        model,
        optimizer_of(config),
        feed,
        plan.labels,
        folds,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.shuffle,
        folds_per_device=folds_per_device,
        cluster=cluster,
        devices_at_once=devices_at_once,
        matmul_precision=config.matmul_precision,
        # Adam leaves them as they are; an optimizer with weight decay would not.
        idle=model.idle_columns()
        if hasattr(model, "idle_columns") and not config.weight_decay
        else None,
        schedule=schedule_of(config),
        classes=len(plan.class_names),
    )


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    """The optimizer that a config names, with the learning rate of the first epoch."""
    if config.optimizer == "adamw":
        return optim.adamw(config.learning_rate, config.weight_decay)
    return optim.adam(config.learning_rate)


def schedule_of(config: ConfigDict) -> Callable[[jax.Array], jax.Array] | None:
    """Epoch, from 0 -> the learning rate as a multiple of the first epoch's; None: always 1."""
    decay = config.learning_rate_decay
    if decay == 1:
        return None
    times = config.learning_rate_decay_epochs or config.epochs
    return lambda epoch: jnp.float32(decay) ** jnp.minimum(epoch, times)
