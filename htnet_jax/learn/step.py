"""The one training step: the trainer, the parity check and the benchmark all run it.

`Learner.step` takes `(state, batch)` to `(state, metrics)`. Clips that only pad a batch are masked
here and nowhere else: they leave no trace in the loss, in batch statistics or in the parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from htnet_jax.learn import idle, losses, optim
from htnet_jax.learn.losses import Batch
from htnet_jax.models.layers import batch_mask


class State(NamedTuple):
    """What training changes, and what goes along with it.

    Attributes:
        trained: The parameters, without the idle columns.
        idle: Columns of parameters that are kept, but not trained; see `idle.split`.
        collections: The network's other variables, such as `batch_stats`.
        optimizer: The optimizer's state.
        average: Moving average of `trained`; None without one.
    """

    trained: Any
    idle: Any
    collections: Any
    optimizer: Any
    average: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """All variables as they are trained."""
        return {"params": idle.join(self.trained, self.idle), **self.collections}

    @property
    def predicting(self) -> dict[str, Any]:
        """All variables as predictions use them: the averaged parameters, where there are some."""
        params = self.trained if self.average is None else self.average
        return {"params": idle.join(params, self.idle), **self.collections}


def _overlaid(tree: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts with the leaves of others in their places."""
    new = {
        key: _overlaid(tree[key], value) if isinstance(value, Mapping) else value
        for key, value in above.items()
    }
    return {**tree, **new}


def logits_of(result: Any) -> tuple[jax.Array, Mapping[str, jax.Array]]:
    """`(logits, out)` of what a network returns: logits alone, or both."""
    return result if isinstance(result, tuple) else (result, {})


@dataclasses.dataclass(frozen=True)
class Learner:
    """A network and how it is trained.

    Attributes:
        module: Flax module; `apply(variables, *inputs, train=..., **privileged)` gives logits
            `(B, C)`, or `(logits, out)`; it is given those features that it declares `privileged`.
            Variables other than `params` change in training only.
        optimizer: An optax transformation.
        losses: `(weight, function)` pairs, see `losses.make`.
        schedule: Factor on the optimizer's updates; None: always 1.
        idle: Path of a parameter -> its leading columns that are not trained, see `idle.split`.
        average: Decay of the moving average of the parameters; 0: none.
        has_empty_batches: Batches may consist of padding alone. They then change nothing: an
            optimizer with momentum would move the parameters even so.
        train: False: steps without dropout, and with running statistics, as the parity check
            compares them too.
    """

    module: Any
    optimizer: optax.GradientTransformation
    losses: tuple[tuple[float, Callable[..., jax.Array]], ...] = ((1.0, losses.cross_entropy),)
    schedule: optim.Schedule | None = None
    idle: Mapping[str, int] = dataclasses.field(default_factory=dict)
    average: float = 0.0
    has_empty_batches: bool = False
    train: bool = True

    def init(
        self, key: jax.Array, inputs: tuple[jax.Array, ...], start: Mapping[str, Any] | None = None
    ) -> State:
        """The state before the first step.

        Args:
            key: Of the initial parameters.
            inputs: A batch of inputs, whose shapes matter alone.
            start: Variables to begin with, or part of them: nested dicts of the same names and
                shapes; the others are initial ones.
        """
        variables = self.module.init(key, *inputs, train=False)
        return self.state_of(_overlaid(variables, start or {}))

    def state_of(self, variables: Mapping[str, Any]) -> State:
        """The state that begins with some variables."""
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        trained, idle_columns = idle.split(variables["params"], self.idle)
        # A copy, because a donated buffer must not be two of the state's leaves.
        average = jax.tree.map(jnp.copy, trained) if self.average else None
        return State(trained, idle_columns, collections, self.optimizer.init(trained), average)

    def predict(self, variables: Mapping[str, Any], inputs: tuple[jax.Array, ...]) -> jax.Array:
        """`(B, C)` float32 logits of some clips."""
        result = self.module.apply(variables, *inputs, train=False)
        return logits_of(result)[0].astype(jnp.float32)

    def gradient(
        self, state: State, batch: Batch, *, capture: tuple[str, ...] = ()
    ) -> tuple[jax.Array, Any, dict[str, Any]]:
        """The loss of a batch and its gradient.

        Args:
            state: Before the step.
            batch: The clips.
            capture: Further collections to return, such as `intermediates`.

        Returns:
            The mean loss over the clips, the gradient in the structure of `state.trained`, and the
            collections that the network wrote.
        """
        count = batch.mask.sum()
        written = [*(state.collections if self.train else ()), *capture]
        own = getattr(self.module, "privileged", batch.privileged)
        privileged = {name: batch.privileged[name] for name in own if name in batch.privileged}

        def loss_of(trained: Any) -> tuple[jax.Array, dict[str, Any]]:
            with batch_mask(batch.mask):
                found = self.module.apply(
                    state._replace(trained=trained).variables,
                    *batch.inputs,
                    **privileged,
                    train=self.train,
                    rngs={"dropout": batch.key},
                    mutable=written or False,
                )
            result, changed = found if written else (found, {})
            logits, out = logits_of(result)
            total = None
            for weight, loss in self.losses:
                each = loss(logits, out, batch, batch.mask)
                each = each if weight == 1 else weight * each
                total = each if total is None else total + each
            return (total * batch.mask).sum() / jnp.maximum(count, 1), changed

        (loss, changed), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.trained)
        return loss, gradient, changed

    def update(
        self, state: State, gradient: Any, written: Mapping[str, Any], batch: Batch
    ) -> State:
        """The state after the optimizer's step along a gradient; arguments as `gradient` gives."""
        updates, optimizer = self.optimizer.update(gradient, state.optimizer, state.trained)
        if self.schedule:
            factor = self.schedule(batch.moment)
            updates = jax.tree.map(lambda update: factor.astype(update.dtype) * update, updates)
        trained = optax.apply_updates(state.trained, updates)
        collections = {name: written.get(name, tree) for name, tree in state.collections.items()}
        average = state.average
        if self.average:
            average = optim.average(average, trained, self.average, batch.moment)
        new = State(trained, state.idle, collections, optimizer, average)
        if self.has_empty_batches:
            is_empty = batch.mask.sum() == 0
            new = jax.tree.map(lambda a, b: jnp.where(is_empty, b, a), new, state)
        return new

    def step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """One optimizer step.

        Returns:
            The new state, and sums over the batch: `loss` (of its clips) and `clips`.
        """
        loss, gradient, written = self.gradient(state, batch)
        count = batch.mask.sum()
        return self.update(state, gradient, written, batch), {"loss": loss * count, "clips": count}


def make(module: Any, config: ConfigDict, absent: Collection[str] = (), **options: Any) -> Learner:
    """How a config trains a network.

    Args:
        module: The network.
        config: The settings of a run; those read are `losses`, `loss_options`, `ema`, and those of
            `optim.make`.
        absent: Features that the data set does not have, see `losses.make`.
        options: Attributes of the `Learner` that are not in the config.

    Raises:
        UserError: As `losses.make` and `optim.make`.
    """
    optimizer, schedule = optim.make(config)
    # Adam leaves idle columns as they are; an optimizer with weight decay would not.
    columns = getattr(module, "idle_columns", dict)() if not config.weight_decay else {}
    return Learner(
        module,
        optimizer,
        losses.make(config.losses.to_dict(), config.loss_options.to_dict(), module, absent),
        schedule,
        columns,
        config.ema,
        **options,
    )
