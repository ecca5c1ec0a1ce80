"""One framework's side of a parity check: everything it computes, as NumPy arrays in one layout.

The Flax side takes the steps that training takes, `learn.step`; the PyTorch side is a loop of its
own, in PyTorch alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch
from flax import traverse_util

from htnet_jax.learn import optim
from htnet_jax.learn import step as learn
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge, match, translate
from htnet_jax.torch_bridge.layers import DropPath

Arrays = dict[str, np.ndarray]
# `(inputs, labels)`: `(B, H, W, C)` floats in the order of the network's call, `(B,)` integers.
Clips = tuple[tuple[np.ndarray, ...], np.ndarray]

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
class Trace:
    """What one framework computed; arrays by Flax path, in Flax's layout.

    Attributes:
        activations: `(positions, channels)` of every compared layer, in order of execution.
        logits: `(B, classes)` of the first batch.
        losses: Mean cross-entropy before each step; at least that of the first batch.
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
) -> Trace:
    """The Flax side of `run`; `module` and `variables` have the type to be compared in."""
    learner = learn.Learner(module, optimizer.optax(), train=train)
    moving = [name for name in variables if train or name == "params"]

    def batch(index: int) -> learn.Batch:
        inputs, labels = batches[index % len(batches)]
        mask, moment = np.ones(len(labels), np.float32), optim.Moment(0, index, steps)
        return learn.Batch(
            inputs, {}, np.asarray(labels, np.int32), mask, jax.random.key(index), moment
        )

    @jax.jit
    def layers(variables: Any, batch: learn.Batch) -> Any:
        return module.apply(
            variables,
            *batch.inputs,
            train=train,
            rngs={"dropout": batch.key},
            mutable=[*(name for name in moving if name != "params"), "intermediates"],
            capture_intermediates=True,
        )

    @jax.jit
    def gradient_of(state: learn.State, batch: learn.Batch) -> Any:
        return learner.gradient(state, batch, capture=("intermediates",))

    say("Flax: layers")
    logits, found = layers(variables, batch(0))
    activations, logits = _captured(found["intermediates"], bridge), np.asarray(logits)
    del found
    state, update = learner.state_of(variables), jax.jit(learner.update)
    losses, kept = [], []
    for step in range(max(1, steps)):
        say(f"Flax: step {step + 1}")
        loss, gradient, written = gradient_of(state, batch(step))
        losses.append(loss)
        kept.append(_draws(written.pop("intermediates", {})))
        if step == 0:
            gradients, statistics = _flat({"params": gradient}, bridge), _flat(written, bridge)
        if steps:
            state = update(state, gradient, written, batch(step))
    after = {name: state.variables[name] for name in moving} if steps else {}
    return Trace(
        activations,
        logits,
        np.asarray(losses),
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
) -> Trace:
    """The PyTorch side of `run`, on a copy of `model` in the variables' type.

    `variables` give the shapes and the type; the weights are those of `model`. `kept` are the draws
    of the Flax side: `Trace.kept`.
    """
    dtype = jax.tree.leaves(variables)[0].dtype
    model = copy.deepcopy(model).to(getattr(torch, dtype.name)).train(train)

    def batch(index: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        inputs, labels = batches[index % len(batches)]
        if kept:
            _replay(model, bridge, kept[index])
        first = [np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in inputs]
        return [torch.from_numpy(x) for x in first], torch.from_numpy(labels.astype(np.int64))

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
        logits = model(*batch(0)[0]).numpy()
    for hook in hooks:
        hook.remove()
    # In training that moved the running statistics.
    model.load_state_dict(before)
    losses, stepper = [], optimizer.torch(model.parameters())
    for step in range(max(1, steps)):
        say(f"PyTorch: step {step + 1}")
        inputs, labels = batch(step)
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(*inputs), labels)
        loss.backward()
        losses.append(loss.item())
        if step == 0:
            gradients = flax_arrays({n: p.grad for n, p in model.named_parameters()}, ["params"])
            running = [name for name in moving if name != "params"]
            statistics = flax_arrays(model.state_dict(), running) if running else {}
        if steps:
            stepper.step()
    after = flax_arrays(model.state_dict(), moving) if steps else {}
    return Trace(
        activations, logits, np.asarray(losses), gradients, start, after, statistics, tuple(kept)
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
        activations[path] = _rows(np.moveaxis(array, 1, -1) if array.ndim == 4 else array).copy()

    return hook
