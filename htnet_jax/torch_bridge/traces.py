"""One framework's side of a parity check: everything it computes, as NumPy arrays in one layout."""

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

from htnet_jax import optimizers
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.tables import Bridge, translate

Arrays = dict[str, np.ndarray]
# `(x, labels)`: `(B, H, W, C)` floats and `(B,)` integers.
Batch = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer in both frameworks.

    Attributes:
        name: "adam" or "adamw"; b1 0.9, b2 0.999, eps 1e-8 (PyTorch's defaults and optax's).
        learning_rate: Default 5e-5 as HTNet's release.
        weight_decay: For "adamw"; default 0.01 as PyTorch (optax's own is 1e-4).
    """

    name: str = "adam"
    learning_rate: float = 5e-5
    weight_decay: float = 0.01

    def optax(self) -> optax.GradientTransformation:
        """The optax transformation."""
        if self.name == "adam":
            return optimizers.adam(self.learning_rate)
        return optimizers.adamw(self.learning_rate, self.weight_decay)

    def torch(self, parameters: Any) -> torch.optim.Optimizer:
        """The PyTorch optimizer of these parameters."""
        if self.name == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate)
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What one framework computed; arrays by Flax path, in Flax's layout.

    Attributes:
        activations: `(positions, channels)` of every compared layer, in order of execution.
        logits: `(B, classes)` of the first batch.
        losses: Mean cross-entropy before each step; at least that of the first batch.
        gradients: Of the first batch's loss.
        start: Parameters before the steps.
        parameters: Parameters after the steps; empty if there were none.
    """

    activations: Arrays
    logits: np.ndarray
    losses: np.ndarray
    gradients: Arrays
    start: Arrays
    parameters: Arrays


def flax_trace(
    module: Any,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Batch],
    optimizer: Optimizer,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
) -> Trace:
    """The Flax side of `run`; `module` and `variables` have the type to be compared in."""
    tx = optimizer.optax()

    @jax.jit
    def forward(variables: Any, x: jax.Array) -> Any:
        return module.apply(
            variables, x, train=False, capture_intermediates=True, mutable=["intermediates"]
        )

    def loss_fn(variables: Any, x: jax.Array, labels: jax.Array) -> jax.Array:
        logits = module.apply(variables, x, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @jax.jit
    def update(variables: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, variables)
        return optax.apply_updates(variables, updates), state

    loss_and_gradient = jax.jit(jax.value_and_grad(loss_fn))
    say("Flax: layers")
    logits, captured = forward(variables, batches[0][0])
    activations = _captured(captured["intermediates"], bridge)
    logits = np.asarray(logits)
    del captured
    say("Flax: gradients")
    loss, gradient = loss_and_gradient(variables, *batches[0])
    gradients = _flat(gradient)
    del gradient
    losses = [] if steps else [loss]
    now, state = variables, tx.init(variables)
    for step in range(steps):
        say(f"Flax: step {step + 1} of {steps}")
        loss, gradient = loss_and_gradient(now, *batches[step % len(batches)])
        losses.append(loss)
        now, state = update(now, state, gradient)
    after = _flat(now) if steps else {}
    return Trace(activations, logits, np.asarray(losses), gradients, _flat(variables), after)


def torch_trace(
    model: torch.nn.Module,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Batch],
    optimizer: Optimizer,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
) -> Trace:
    """The PyTorch side of `run`, on a copy of `model` in the variables' type.

    `variables` give the shapes and the type; the weights are those of `model`.
    """
    dtype = jax.tree.leaves(variables)[0].dtype
    model = copy.deepcopy(model).to(getattr(torch, dtype.name)).eval()

    def batch(index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, labels = batches[index % len(batches)]
        channels_first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
        return channels_first, torch.from_numpy(labels.astype(np.int64))

    def flax_arrays(tensors: Mapping[str, torch.Tensor]) -> Arrays:
        return _flat(convert.from_state_dict(tensors, bridge.table, variables, dtype))

    def backward(index: int) -> float:
        x, labels = batch(index)
        model.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        return loss.item()

    say("PyTorch: layers")
    start = flax_arrays(model.state_dict())
    activations: Arrays = {}
    hooks = [
        module.register_forward_hook(_keep(activations, path))
        for name, module in model.named_modules()
        if (path := _partner(name, bridge))
    ]
    with torch.no_grad():
        logits = model(batch(0)[0]).numpy()
    for hook in hooks:
        hook.remove()
    say("PyTorch: gradients")
    loss = backward(0)
    gradients = flax_arrays({name: p.grad for name, p in model.named_parameters()})
    losses = [] if steps else [loss]
    stepper = optimizer.torch(model.parameters())
    for step in range(steps):
        say(f"PyTorch: step {step + 1} of {steps}")
        losses.append(backward(step))
        stepper.step()
    after = flax_arrays(model.state_dict()) if steps else {}
    return Trace(activations, logits, np.asarray(losses), gradients, start, after)


def _flat(variables: Any) -> Arrays:
    flat = traverse_util.flatten_dict(variables, sep="/")
    return {path: np.asarray(array) for path, array in flat.items()}


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
