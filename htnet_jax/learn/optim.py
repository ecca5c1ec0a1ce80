"""Optimizers and schedules by name, as PyTorch computes them; moving averages of parameters.

A new optimizer is one entry of `OPTIMIZERS`, a new schedule one of `SCHEDULES`: the config's check,
its messages and the tests go through these tables.

optax forms Adam's bias corrections 1 - b**t in float32, where 1 - 0.999 has lost all but five
digits; PyTorch forms them in double precision. Such a difference in every step is a hundred times
larger than the rounding of the networks themselves, and training amplifies it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from htnet_jax.errors import UserError

# PyTorch's defaults, which the releases use (optax's are the same but for weight_decay).
B1, B2, EPS, WEIGHT_DECAY = 0.9, 0.999, 1e-8, 0.01

# torch.optim.lr_scheduler.OneCycleLR's defaults: share of the rise, and the first and last rate as
# fractions of the largest and of the first.
ONE_CYCLE_RISE, ONE_CYCLE_START, ONE_CYCLE_END = 0.3, 1 / 25, 1e-4


def scale_by_adam(b1: float = B1, b2: float = B2, eps: float = EPS) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with bias corrections that keep all digits of the parameters' type."""

    def init(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return optax.ScaleByAdamState(jnp.zeros([], jnp.int32), zeros, zeros)

    def update(
        gradient: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mean = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, gradient, state.mu)
        square = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, gradient, state.nu)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            steps = count.astype(m.dtype)
            # 1 - b**t, without the cancellation.
            correct1, correct2 = (-jnp.expm1(steps * math.log(b)) for b in (b1, b2))
            return m / correct1 / (jnp.sqrt(v / correct2) + eps)

        return jax.tree.map(direction, mean, square), optax.ScaleByAdamState(count, mean, square)

    return optax.GradientTransformation(init, update)


def adam(learning_rate: float) -> optax.GradientTransformation:
    """`torch.optim.Adam(lr=learning_rate)`."""
    return optax.chain(scale_by_adam(), optax.scale_by_learning_rate(learning_rate))


def adamw(learning_rate: float, weight_decay: float = WEIGHT_DECAY) -> optax.GradientTransformation:
    """`torch.optim.AdamW(lr=learning_rate, weight_decay=weight_decay)`, decay on everything."""
    return optax.chain(
        scale_by_adam(),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )


def sgd(
    learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """`torch.optim.SGD(lr=learning_rate, momentum=momentum, weight_decay=weight_decay)`."""
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum) if momentum else optax.identity(),
        optax.scale_by_learning_rate(learning_rate),
    )


class Optimizer(NamedTuple):
    """An entry of `OPTIMIZERS`.

    Attributes:
        make: Called with `config.learning_rate` and, by keyword, the settings it uses.
        settings: Keys of the config that it uses besides; the others must be 0.
    """

    make: Callable[..., optax.GradientTransformation]
    settings: tuple[str, ...] = ()


OPTIMIZERS = {
    "adam": Optimizer(adam),
    "adamw": Optimizer(adamw, ("weight_decay",)),
    "sgd": Optimizer(sgd, ("momentum", "weight_decay")),
}


class Moment(NamedTuple):
    """When a step takes place.

    Attributes:
        epoch: Scalar int32, from 0.
        step: Scalar int32, the step's number in its epoch, from 0.
        steps: Scalar int32, steps of an epoch.
    """

    epoch: jax.Array | int
    step: jax.Array | int = 0
    steps: jax.Array | int = 1

    @property
    def number(self) -> jax.Array:
        """Steps before this one, float32."""
        return jnp.asarray(self.epoch * self.steps + self.step, jnp.float32)


# Moment -> the learning rate as a multiple of `config.learning_rate`.
Schedule = Callable[[Moment], jax.Array]


def _step(config: ConfigDict) -> Schedule | None:
    decay = config.learning_rate_decay
    if decay == 1:
        return None
    times = config.learning_rate_decay_epochs or config.epochs
    return lambda moment: jnp.float32(decay) ** jnp.minimum(moment.epoch, times)


def _cosine(config: ConfigDict) -> Schedule:
    """Half a cosine from 1 to 0 over what the warm-up leaves of the run."""

    def factor(moment: Moment) -> jax.Array:
        warm = config.warmup_epochs * jnp.asarray(moment.steps, jnp.float32)
        whole = config.epochs * jnp.asarray(moment.steps, jnp.float32)
        done = jnp.clip((moment.number - warm) / jnp.maximum(whole - warm, 1), 0, 1)
        return (1 + jnp.cos(jnp.pi * done)) / 2

    return factor


def _one_cycle(config: ConfigDict) -> Schedule:
    """`torch.optim.lr_scheduler.OneCycleLR` of its own defaults, stepped after every batch."""

    def factor(moment: Moment) -> jax.Array:
        steps = jnp.asarray(moment.steps, jnp.float32)
        whole = config.epochs * steps
        rise = (config.warmup_epochs or ONE_CYCLE_RISE * config.epochs) * steps - 1
        up = jnp.clip(moment.number / jnp.maximum(rise, 1e-6), 0, 1)
        down = jnp.clip((moment.number - rise) / jnp.maximum(whole - 1 - rise, 1e-6), 0, 1)
        last = ONE_CYCLE_START * ONE_CYCLE_END
        rising = 1 + (ONE_CYCLE_START - 1) / 2 * (1 + jnp.cos(jnp.pi * up))
        falling = last + (1 - last) / 2 * (1 + jnp.cos(jnp.pi * down))
        return jnp.where(moment.number <= rise, rising, falling)

    return factor


def _warmed(schedule: Schedule | None, config: ConfigDict) -> Schedule | None:
    """The schedule, behind a linear rise over `config.warmup_epochs`."""
    if not config.warmup_epochs:
        return schedule

    def factor(moment: Moment) -> jax.Array:
        warm = config.warmup_epochs * jnp.asarray(moment.steps, jnp.float32)
        rising = jnp.minimum((moment.number + 1) / jnp.maximum(warm, 1), 1)
        return rising * (schedule(moment) if schedule else 1.0)

    return factor


# `config.schedule` -> what makes the schedule of a config; None: the factor is always 1.
SCHEDULES: dict[str, Callable[[ConfigDict], Schedule | None]] = {
    "constant": lambda config: _warmed(None, config),
    "step": lambda config: _warmed(_step(config), config),
    "cosine": lambda config: _warmed(_cosine(config), config),
    # Its rise is the warm-up.
    "one_cycle": _one_cycle,
}


def make(config: ConfigDict) -> tuple[optax.GradientTransformation, Schedule | None]:
    """The optimizer and the schedule that a config names.

    Args:
        config: Reads `optimizer`, `learning_rate`, `weight_decay`, `momentum`, `schedule`,
            `learning_rate_decay`, `learning_rate_decay_epochs`, `warmup_epochs`, `epochs`.

    Raises:
        UserError: An unknown name, a value out of range, or one that the choice does not use.
    """
    if config.optimizer not in OPTIMIZERS:
        raise UserError(
            f"config.optimizer={config.optimizer!r} is unknown; use {' or '.join(OPTIMIZERS)}"
        )
    if config.schedule not in SCHEDULES:
        raise UserError(
            f"config.schedule={config.schedule!r} is unknown; use {' or '.join(SCHEDULES)}"
        )
    if not 0 < config.learning_rate < float("inf"):
        raise UserError(f"config.learning_rate={config.learning_rate} must be above 0 and finite")
    if not 0 < config.learning_rate_decay <= 1:
        raise UserError(
            f"config.learning_rate_decay={config.learning_rate_decay} must lie in (0, 1]; 1: none"
        )
    if not config.momentum < 1:
        raise UserError(f"config.momentum={config.momentum} must lie in [0, 1)")
    if config.warmup_epochs > config.epochs:
        raise UserError(
            f"config.warmup_epochs={config.warmup_epochs} is more than "
            f"config.epochs={config.epochs}"
        )
    if config.learning_rate_decay != 1 and config.schedule != "step":
        raise UserError(
            f"config.learning_rate_decay={config.learning_rate_decay} is for the step schedule; "
            "set --config.schedule=step, or --config.learning_rate_decay=1.0"
        )
    if config.learning_rate_decay_epochs and config.learning_rate_decay == 1:
        raise UserError(
            f"config.learning_rate_decay_epochs={config.learning_rate_decay_epochs} says how often "
            "the learning rate is multiplied by config.learning_rate_decay, which is 1; set "
            "--config.learning_rate_decay, or --config.learning_rate_decay_epochs=0"
        )
    chosen = OPTIMIZERS[config.optimizer]
    for key in sorted({key for other in OPTIMIZERS.values() for key in other.settings}):
        users = [name for name, other in OPTIMIZERS.items() if key in other.settings]
        if config[key] and key not in chosen.settings:
            raise UserError(
                f"config.{key}={config[key]} is for {' or '.join(users)}; set "
                f"--config.optimizer={users[0]}, or --config.{key}=0"
            )
    optimizer = chosen.make(
        config.learning_rate, **{key: float(config[key]) for key in chosen.settings}
    )
    return optimizer, SCHEDULES[config.schedule](config)


def average(old: Any, new: Any, decay: float, moment: Moment) -> Any:
    """An exponential moving average of parameters after a step.

    At step t (from 0) the old average weighs min(decay, (1 + t) / (10 + t)), as in TensorFlow's
    `ExponentialMovingAverage(num_updates=t)`: the first parameters are soon forgotten.

    Args:
        old: The average before, a tree of arrays.
        new: The parameters after the step, the same tree.
        decay: In (0, 1).
        moment: Of the step.
    """
    share = jnp.minimum(decay, (1 + moment.number) / (10 + moment.number))
    return jax.tree.map(
        lambda a, b: (share * a + (1 - share) * b.astype(a.dtype)).astype(a.dtype), old, new
    )
