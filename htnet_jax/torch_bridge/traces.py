"""One framework's side of a parity check: everything it computes, as NumPy arrays in one layout.

The Flax side takes the steps that training takes, `learn.step`; the PyTorch side is a loop of its
own, in PyTorch alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
import torch
from flax import traverse_util

from htnet_jax.errors import UserError
from htnet_jax.learn import losses, optim
from htnet_jax.learn import step as learn
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge, match, translate
from htnet_jax.torch_bridge.layers import DropPath
from htnet_jax.torch_bridge.losses import LOSSES

Arrays = dict[str, np.ndarray]


class Clips(NamedTuple):
    """A batch without padding.

    Attributes:
        inputs: `(B, ..., C)` floats in the order of the network's call.
        labels: `(B,)` integers.
        privileged: Name -> `(B, ...)`, what the network and its losses see in training only.
    """

    inputs: tuple[np.ndarray, ...]
    labels: np.ndarray
    privileged: Mapping[str, np.ndarray] = {}


TORCH_OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer in both frameworks; what is not given has PyTorch's default in both.

    Attributes:
        name: A key of `TORCH_OPTIMIZERS`.
        learning_rate: Default 5e-5 as HTNet's release.
        settings: Such as `weight_decay`, by PyTorch's names.
    """

    name: str = "adam"
    learning_rate: float = 5e-5
    settings: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_config(cls, config: Any) -> Optimizer:
        """The one that a run's settings name."""
        keys = optim.OPTIMIZERS[config.optimizer].settings
        return cls(config.optimizer, config.learning_rate, {key: config[key] for key in keys})

    def optax(self) -> optax.GradientTransformation:
        """As training uses it."""
        return optim.OPTIMIZERS[self.name].make(self.learning_rate, **self.settings)

    def torch(self, parameters: Any) -> torch.optim.Optimizer:
        """The PyTorch optimizer of these parameters."""
        return TORCH_OPTIMIZERS[self.name](parameters, lr=self.learning_rate, **self.settings)


@dataclasses.dataclass(frozen=True)
class Losses:
    """What is minimised, in both frameworks.

    Attributes:
        weights: By the names of `learn.losses`.
        options: Name -> keyword arguments.
    """

    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"cross_entropy": 1.0})
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_config(cls, config: Any, module: Any, absent: Sequence[str] = ()) -> Losses:
        """Those that a run's settings name; a checkpoint of an older version names none.

        Args:
            config: The settings.
            module: The network.
            absent: Features that there are not: losses that read one are left out.
        """
        weights, options = (config.get(key) for key in ("losses", "loss_options"))
        if not weights or not options:
            return cls()
        reading = losses.declared(weights, "reads", module)
        lost = {name for feature in absent for name in reading[feature]}
        kept = {name: weight for name, weight in weights.items() if name not in lost}
        return cls(kept, options.to_dict())

    def flax(self, module: Any) -> tuple[tuple[float, losses.Loss], ...]:
        """As training uses them.

        Raises:
            UserError: As `losses.make`; or a loss that PyTorch's side lacks.
        """
        found = losses.make(self.weights, self.options, module)
        if lost := [name for name, weight in self.weights.items() if weight and name not in LOSSES]:
            raise UserError(
                f"config.losses.{lost[0]}: it is not written in PyTorch, which has "
                f"{', '.join(LOSSES)}; compare with --config.losses.{lost[0]}=0"
            )
        return found

    def torch(
        self, result: Any, labels: torch.Tensor, privileged: Mapping[str, torch.Tensor]
    ) -> torch.Tensor:
        """The weighted mean over a batch; `result` is what the network returned."""
        logits, out = learn.logits_of(result)
        return sum(
            weight * LOSSES[name](logits, out, labels, privileged, **self.options.get(name, {}))
            for name, weight in self.weights.items()
            if weight
        )


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one framework computed; arrays by Flax path, in Flax's layout.

    Attributes:
        activations: `(positions, channels)` of every compared layer, in order of execution; last
            what the network returned beside the logits, as `out/NAME`.
        logits: `(B, classes)` of the first batch.
        losses: Loss before each step; at least that of the first batch.
        gradients: Of the first batch's loss.
        start: All variables before the steps: parameters and running statistics.
        parameters: Those that training moves, after the steps; empty if there were none.
        statistics: Running statistics after the first batch, in training.
        kept: For every loss, which clips kept the branches that drop path could take: path ->
            `(B,)` bool; empty in evaluation.
    """

    activations: Arrays
    logits: np.ndarray
    losses: np.ndarray
    gradients: Arrays
    start: Arrays
    parameters: Arrays
    statistics: Arrays = dataclasses.field(default_factory=dict)
    kept: tuple[Arrays, ...] = ()


def fed(module: Any, privileged: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the features that a Flax network is fed by keyword, of those that there are."""
    return tuple(name for name in getattr(module, "privileged", ()) if name in privileged)


def flax_trace(
    module: Any,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Clips],
    optimizer: Optimizer,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
    *,
    train: bool = False,
    losses: Losses | None = None,
) -> Trace:
    """The Flax side of `run`; `module` and `variables` have the type to be compared in."""
    losses = losses or Losses()
    learner = learn.Learner(module, optimizer.optax(), losses.flax(module), train=train)
    moving = [name for name in variables if train or name == "params"]

    def batch(index: int) -> learn.Batch:
        clips = batches[index % len(batches)]
        mask, moment = np.ones(len(clips.labels), np.float32), optim.Moment(0, index, steps)
        return learn.Batch(
            clips.inputs,
            dict(clips.privileged),
            np.asarray(clips.labels, np.int32),
            mask,
            jax.random.key(index),
            moment,
        )

    @jax.jit
    def layers(variables: Any, batch: learn.Batch) -> Any:
        return module.apply(
            variables,
            *batch.inputs,
            **{name: batch.privileged[name] for name in fed(module, batch.privileged)},
            train=train,
            rngs={"dropout": batch.key},
            mutable=[*(name for name in moving if name != "params"), "intermediates"],
            capture_intermediates=True,
        )

    @jax.jit
    def gradient_of(state: learn.State, batch: learn.Batch) -> Any:
        return learner.gradient(state, batch, capture=("intermediates",))

    say("Flax: layers")
    result, found = layers(variables, batch(0))
    logits, out = learn.logits_of(result)
    activations = _captured(found["intermediates"], bridge) | _returned(out)
    del found
    # A few clips have no balance of classes: all weigh 1.
    balance = np.ones(logits.shape[-1], np.float32)
    state, update = learner.state_of(variables), jax.jit(learner.update)
    totals, kept = [], []
    for step in range(max(1, steps)):
        say(f"Flax: step {step + 1}")
        loss, gradient, written = gradient_of(state, batch(step)._replace(class_weights=balance))
        totals.append(loss)
        kept.append(_draws(written.pop("intermediates", {})))
        if step == 0:
            gradients, statistics = _flat({"params": gradient}, bridge), _flat(written, bridge)
        if steps:
            state = update(state, gradient, written, batch(step))
    after = {name: state.variables[name] for name in moving} if steps else {}
    return Trace(
        activations,
        np.asarray(logits),
        np.asarray(totals),
        gradients,
        _flat(variables, bridge),
        _flat(after, bridge),
        statistics,
        tuple(kept),
    )


def torch_trace(
    model: torch.nn.Module,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Clips],
    optimizer: Optimizer,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
    *,
    train: bool = False,
    kept: Sequence[Arrays] = (),
    losses: Losses | None = None,
    privileged: Sequence[str] = (),
) -> Trace:
    """The PyTorch side of `run`, on a copy of `model` in the variables' type.

    `variables` give the shapes and the type; the weights are those of `model`. `kept` are the draws
    of the Flax side: `Trace.kept`. `privileged` names the features that the network is fed by
    keyword.
    """
    dtype = jax.tree.leaves(variables)[0].dtype
    losses = losses or Losses()
    model = copy.deepcopy(model).to(getattr(torch, dtype.name)).train(train)

    def result_of(index: int) -> Any:
        clips = batches[index % len(batches)]
        if kept:
            _replay(model, bridge, kept[index])
        first = [_channels_first(x) for x in clips.inputs]
        named = {name: _channels_first(clips.privileged[name]) for name in privileged}
        return model(*first, **named)

    def loss_of(index: int) -> torch.Tensor:
        clips = batches[index % len(batches)]
        labels = torch.from_numpy(clips.labels.astype(np.int64))
        features = {name: torch.from_numpy(value) for name, value in clips.privileged.items()}
        return losses.torch(result_of(index), labels, features)

    def flax_arrays(tensors: Mapping[str, torch.Tensor], collections: Sequence[str]) -> Arrays:
        expected = {name: variables[name] for name in collections}
        table = [rule for rule in bridge.table if rule.flax.partition("/")[0] in collections]
        names = {
            name: tensor
            for name, tensor in tensors.items()
            if any(match(rule.torch, name) is not None for rule in table)
        }
        return _flat(convert.from_state_dict(names, table, expected, dtype), bridge)

    moving = [name for name in variables if train or name == "params"]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = flax_arrays(before, list(variables))
    activations: Arrays = {}
    hooks = [
        module.register_forward_hook(_keep(activations, path))
        for name, module in model.named_modules()
        if (path := _partner(name, bridge))
    ]
    say("PyTorch: layers")
    with torch.no_grad():
        logits, out = learn.logits_of(result_of(0))
    activations |= _returned(out)
    for hook in hooks:
        hook.remove()
    # In training that moved the running statistics.
    model.load_state_dict(before)
    totals, stepper = [], optimizer.torch(model.parameters())
    for step in range(max(1, steps)):
        say(f"PyTorch: step {step + 1}")
        model.zero_grad()
        loss = loss_of(step)
        loss.backward()
        totals.append(loss.item())
        if step == 0:
            # What the loss does not depend on has none.
            found = {
                name: torch.zeros_like(p) if p.grad is None else p.grad
                for name, p in model.named_parameters()
            }
            gradients = flax_arrays(found, ["params"])
            running = [name for name in moving if name != "params"]
            statistics = flax_arrays(model.state_dict(), running) if running else {}
        if steps:
            stepper.step()
    after = flax_arrays(model.state_dict(), moving) if steps else {}
    return Trace(
        activations,
        logits.numpy(),
        np.asarray(totals),
        gradients,
        start,
        after,
        statistics,
        tuple(kept),
    )


def _flat(variables: Any, bridge: Bridge) -> Arrays:
    """Arrays by path; those that hold several parameters in pieces."""
    arrays = {}
    for path, array in traverse_util.flatten_dict(variables, sep="/").items():
        names = _pieces(path, bridge)
        if names:
            parts = np.split(np.asarray(array), len(names), axis=-1)
            arrays |= {f"{path} ({name})": part for name, part in zip(names, parts, strict=True)}
        else:
            arrays[path] = np.asarray(array)
    return arrays


def _pieces(path: str, bridge: Bridge) -> tuple[str, ...]:
    return next((names for rule, names in bridge.pieces if match(rule, path) is not None), ())


def _draws(intermediates: Any) -> Arrays:
    """Which clips every drop path kept, by the path of its module."""
    return {
        path.removesuffix("/mask"): np.asarray(values[0] != 0)
        for path, values in traverse_util.flatten_dict(intermediates, sep="/").items()
        if path.endswith("/mask")
    }


def _replay(model: torch.nn.Module, bridge: Bridge, kept: Arrays) -> None:
    """Tells every drop path which clips to keep."""
    for name, module in model.named_modules():
        if isinstance(module, DropPath):
            path = _partner(name, bridge)
            module.kept = torch.from_numpy(kept[path].copy()) if path in kept else None


def _channels_first(array: np.ndarray) -> torch.Tensor:
    """`(B, ..., C)` -> `(B, C, ...)`."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


def _returned(out: Mapping[str, Any]) -> Arrays:
    """What a network returned beside the logits."""
    return {f"out/{name}": np.asarray(out[name]) for name in sorted(out)}


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _captured(intermediates: Any, bridge: Bridge) -> Arrays:
    """The compared layers among what Flax captured, as `(positions, channels)`."""
    found = {}
    for path, values in traverse_util.flatten_dict(intermediates, sep="/").items():
        name = path.removesuffix("/__call__")
        if any(translate(name, flax, flax) for flax, _ in bridge.layers):
            found[name] = _rows(np.asarray(values[-1]))
    return found


def _partner(name: str, bridge: Bridge) -> str | None:
    """The Flax path that a PyTorch module is compared with, if any."""
    for flax, theirs in bridge.layers:
        if path := translate(name, theirs, flax):
            return path
    return None


def _keep(activations: Arrays, path: str) -> Callable[..., None]:
    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        array = output.detach().numpy()
        activations[path] = _rows(np.moveaxis(array, 1, -1) if array.ndim >= 4 else array).copy()

    return hook
