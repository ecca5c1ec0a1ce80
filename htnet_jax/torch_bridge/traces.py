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

from htnet_jax.learn import optim
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.drop_path import DropPath
from htnet_jax.torch_bridge.tables import Bridge, match, translate

Arrays = dict[str, np.ndarray]
# `(inputs, labels)`: a tuple of `(B, H, W, C)` floats in the order of the call, or the array alone
# if there is one; and `(B,)` integers.
Batch = tuple[np.ndarray | tuple[np.ndarray, ...], np.ndarray]


def inputs_of(batch: Batch) -> tuple[np.ndarray, ...]:
    """The inputs of a batch, one or several."""
    inputs = batch[0]
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


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
            return optim.adam(self.learning_rate)
        return optim.adamw(self.learning_rate, self.weight_decay)

    def torch(self, parameters: Any, **options: Any) -> torch.optim.Optimizer:
        """The PyTorch optimizer of these parameters; `options` as PyTorch's (`fused=True`)."""
        if self.name == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, **options)
        decay = self.weight_decay
        return torch.optim.AdamW(parameters, self.learning_rate, weight_decay=decay, **options)


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
        kept: For the first batch of all, and then for every further step, which clips kept the
            branches that drop path could take: path -> `(B,)` bool. Empty lists of them in
            evaluation.
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
    batches: Sequence[Batch],
    optimizer: Optimizer,
    steps: int,
    say: Callable[[str], None] = lambda text: None,
    *,
    train: bool = False,
) -> Trace:
    """The Flax side of `run`; `module` and `variables` have the type to be compared in."""
    tx = optimizer.optax()
    params = {"params": variables["params"]}
    start_statistics = {name: tree for name, tree in variables.items() if name != "params"}
    collections = list(start_statistics) if train else []

    def apply(
        variables: Any, inputs: Any, key: Any, **options: Any
    ) -> tuple[jax.Array, dict[str, Any], Any, dict[str, jax.Array]]:
        """Logits, the moved statistics, what was captured, and the draws of drop path."""
        logits, found = module.apply(
            variables,
            *inputs,
            train=train,
            rngs={"dropout": key} if train else None,
            mutable=[*collections, "intermediates"],
            **options,
        )
        captured = found.get("intermediates", {})
        return logits, {name: found[name] for name in collections}, captured, _draws(captured)

    @jax.jit
    def forward(variables: Any, inputs: Any, key: Any) -> Any:
        return apply(variables, inputs, key, capture_intermediates=True)

    def loss_fn(params: Any, statistics: Any, inputs: Any, labels: jax.Array, key: Any) -> Any:
        logits, moved, _, draws = apply({**statistics, **params}, inputs, key)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, ({**statistics, **moved}, draws)

    @jax.jit
    def update(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    loss_and_gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))
    keys = [jax.random.key(step) for step in range(max(1, steps))]
    inputs, labels = inputs_of(batches[0]), batches[0][1]
    say("Flax: layers")
    logits, moved, captured, _ = forward(variables, inputs, keys[0])
    activations = _captured(captured, bridge)
    logits, statistics = np.asarray(logits), _flat(moved, bridge)
    del captured, moved
    say("Flax: gradients")
    (loss, (_, draws)), gradient = loss_and_gradient(
        params, start_statistics, inputs, labels, keys[0]
    )
    gradients = _flat(gradient, bridge)
    del gradient
    losses, kept = ([], []) if steps else ([loss], [_flat(draws)])
    now, now_statistics, state = params, start_statistics, tx.init(params)
    for step in range(steps):
        say(f"Flax: step {step + 1} of {steps}")
        batch = batches[step % len(batches)]
        (loss, (now_statistics, draws)), gradient = loss_and_gradient(
            now, now_statistics, inputs_of(batch), batch[1], keys[step]
        )
        losses.append(loss)
        kept.append(_flat(draws))
        now, state = update(now, state, gradient)
    after = _flat({**now, **(now_statistics if train else {})}, bridge) if steps else {}
    return Trace(
        activations,
        logits,
        np.asarray(losses),
        gradients,
        _flat(variables, bridge),
        after,
        statistics,
        tuple(kept),
    )


def torch_trace(
    model: torch.nn.Module,
    bridge: Bridge,
    variables: Mapping[str, Any],
    batches: Sequence[Batch],
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
        batch = batches[index % len(batches)]
        channels_first = [
            torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))) for x in inputs_of(batch)
        ]
        return channels_first, torch.from_numpy(batch[1].astype(np.int64))

    def flax_arrays(tensors: Mapping[str, torch.Tensor], collections: Sequence[str]) -> Arrays:
        expected = {name: variables[name] for name in collections}
        table = [rule for rule in bridge.table if rule.flax.partition("/")[0] in collections]
        names = {
            name: tensor
            for name, tensor in tensors.items()
            if any(match(rule.torch, name) is not None for rule in table)
        }
        return _flat(convert.from_state_dict(names, table, expected, dtype), bridge)

    def backward(index: int) -> float:
        inputs, labels = batch(index)
        model.zero_grad()
        if kept:
            _replay(model, bridge, kept[index])
        loss = torch.nn.functional.cross_entropy(model(*inputs), labels)
        loss.backward()
        return loss.item()

    say("PyTorch: layers")
    collections = list(variables)
    moving = collections if train else ["params"]
    statistics_only = [name for name in moving if name != "params"]
    start = flax_arrays(model.state_dict(), collections)
    begin = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    activations: Arrays = {}
    hooks = [
        module.register_forward_hook(_keep(activations, path))
        for name, module in model.named_modules()
        if (path := _partner(name, bridge))
    ]
    if kept:
        _replay(model, bridge, kept[0])
    with torch.no_grad():
        logits = model(*batch(0)[0]).numpy()
    for hook in hooks:
        hook.remove()
    statistics = flax_arrays(model.state_dict(), statistics_only) if statistics_only else {}
    say("PyTorch: gradients")
    loss = backward(0)
    gradients = flax_arrays({name: p.grad for name, p in model.named_parameters()}, ["params"])
    # In training both forward passes moved the running statistics.
    model.load_state_dict(begin)
    losses = [] if steps else [loss]
    stepper = optimizer.torch(model.parameters())
    for step in range(steps):
        say(f"PyTorch: step {step + 1} of {steps}")
        losses.append(backward(step))
        stepper.step()
    after = flax_arrays(model.state_dict(), moving) if steps else {}
    return Trace(
        activations, logits, np.asarray(losses), gradients, start, after, statistics, tuple(kept)
    )


def _flat(variables: Any, bridge: Bridge | None = None) -> Arrays:
    """Arrays by path; those that hold several parameters in pieces, if a bridge says so."""
    arrays = {}
    for path, array in traverse_util.flatten_dict(variables, sep="/").items():
        names = _pieces(path, bridge)
        if names:
            parts = np.split(np.asarray(array), len(names), axis=-1)
            arrays |= {f"{path} ({name})": part for name, part in zip(names, parts, strict=True)}
        else:
            arrays[path] = np.asarray(array)
    return arrays


def _pieces(path: str, bridge: Bridge | None) -> tuple[str, ...]:
    found = (
        names for rule, names in (bridge.pieces if bridge else ()) if match(rule, path) is not None
    )
    return next(found, ())


def _draws(intermediates: Any) -> dict[str, jax.Array]:
    """Which clips every drop path kept, by the path of its module."""
    return {
        path.removesuffix("/mask"): values[0] != 0
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
