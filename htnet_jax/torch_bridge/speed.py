"""What the benchmark runs: forward passes, training steps and epochs in Flax and in PyTorch.

Both sides start from the same weights and see the same clips. Every function gives a call without
arguments that `stopwatch.per_call` repeats.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch

from htnet_jax.errors import UserError
from htnet_jax.learn.idle import join, split
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge
from htnet_jax.torch_bridge.traces import Batch, Optimizer, inputs_of

# Largest difference of logits or losses that passes, relative to the largest value: rounding of
# sums over ten thousand terms, computed in the type, through fifty layers.
TOLERANCES = {"float32": 1e-3, "tensorfloat32": 2e-2, "bfloat16": 5e-2}

# `(state, inputs, labels) -> (state, loss)`; the state is anything that JAX can hold.
Step = Callable[[Any, Any, jax.Array], tuple[Any, jax.Array]]


def synchronize(device: str) -> None:
    """Waits until PyTorch's work on "cpu" or "cuda" is done."""
    if device == "cuda":
        torch.cuda.synchronize()


@dataclasses.dataclass(frozen=True)
class TorchSide:
    """PyTorch on one device.

    Attributes:
        device: "cpu" or "cuda".
        autocast: Type of the products, or None: that of the weights.
        compiled: Whether `torch.compile` and the fused optimizer are used; else eager, PyTorch's
            default implementation of the optimizer.
    """

    device: str = "cpu"
    autocast: torch.dtype | None = None
    compiled: bool = False

    def wait(self, result: Any = None) -> None:
        """Waits until all work is done."""
        del result
        synchronize(self.device)

    def model(
        self, module: Any, bridge: Bridge, variables: Mapping[str, Any], channels: int
    ) -> Any:
        """The network with the weights of the Flax one, which share no memory with it."""
        # Weights that are replaced at once need neither memory nor random numbers.
        with torch.device("meta"):
            model = bridge.build(module, channels)
        state_dict = convert.to_state_dict(variables, bridge.table)
        model.load_state_dict(state_dict, strict=True, assign=True)
        return model.to(self.device)

    def tensors(self, batch: Batch) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """`(B, H, W, C)` inputs and their labels on the device, channels first."""
        inputs = (np.ascontiguousarray(np.moveaxis(x, -1, 1)) for x in inputs_of(batch))
        classes = torch.from_numpy(np.asarray(batch[1], np.int64))
        channels_first = tuple(torch.from_numpy(x).to(self.device) for x in inputs)
        return channels_first, classes.to(self.device)

    def forward(self, model: torch.nn.Module, batch: Batch) -> Callable[[], torch.Tensor]:
        """A call that gives the logits of a batch, and waits for them."""
        clips, _ = self.tensors(batch)
        network = self._network(model.eval())

        def call() -> torch.Tensor:
            with torch.inference_mode():
                logits = network(*clips)
            self.wait()
            return logits

        return call

    def epoch(
        self,
        model: torch.nn.Module,
        optimizer: Optimizer,
        batches: Sequence[Batch],
        test: Batch | None,
    ) -> Callable[[], Any]:
        """A call that trains on every batch in turn, then predicts the test clips.

        Args:
            model: Changed in place.
            optimizer: What it is trained by.
            batches: Clips and labels of every step.
            test: Test clips; None: predict nothing.

        Returns:
            The call gives `(mean loss of the last batch, test logits or None)`.
        """
        steps = [self.tensors(batch) for batch in batches]
        clips = None if test is None else self.tensors(test)[0]
        network = self._network(model)
        # Not what PyTorch does unasked, so only on the side that has all that PyTorch can do.
        fused = {"fused": True} if self.compiled else {}
        stepper = optimizer.torch(model.parameters(), **fused)

        def call() -> Any:
            model.train()
            for inputs, labels in steps:
                stepper.zero_grad()
                loss = torch.nn.functional.cross_entropy(network(*inputs), labels)
                loss.backward()
                stepper.step()
            if clips is None:
                return loss.detach(), None
            model.eval()
            with torch.no_grad():
                return loss.detach(), network(*clips)

        return call

    def _network(self, model: torch.nn.Module) -> Callable[..., torch.Tensor]:
        called = torch.compile(model, dynamic=False) if self.compiled else model

        def network(*inputs: torch.Tensor) -> torch.Tensor:
            with torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
                try:
                    return called(*inputs).float()
                except torch._dynamo.exc.BackendCompilerFailed as error:
                    raise UserError(
                        f"torch.compile failed: {str(error).splitlines()[0]}\nIt needs a C++ "
                        "compiler (on a GPU also Triton); install one, or leave --compile out."
                    ) from error

        return network


def flax_forward(
    module: Any, variables: Any, batch: Batch, options: Mapping[str, Any] | None
) -> Callable[[], jax.Array]:
    """A call that gives the logits of a batch, and waits for them.

    Args:
        module: The network.
        variables: On the device.
        batch: `(B, H, W, C)` float32 inputs, and labels that play no part.
        options: XLA compiler options.
    """
    clips = jax.device_put(inputs_of(batch))
    forward = jax.jit(lambda variables, clips: module.apply(variables, *clips, train=False))
    compiled = forward.lower(variables, clips).compile(options)
    return lambda: jax.block_until_ready(compiled(variables, clips))


def training_step(module: Any, optimizer: optax.GradientTransformation) -> Step:
    """One step on the mean cross-entropy; the state is from `training_state`."""

    def step(state: Any, inputs: Any, labels: jax.Array) -> tuple[Any, jax.Array]:
        (trained, idle, collections), optimizer_state = state

        def loss_fn(trained: Any) -> tuple[jax.Array, Any]:
            variables = {"params": join(trained, idle), **collections}
            mutable = list(collections) or False
            out = module.apply(variables, *inputs, train=True, mutable=mutable)
            logits, changed = out if mutable else (out, {})
            losses = optax.softmax_cross_entropy_with_integer_labels(
                logits.astype(np.float32), labels
            )
            return losses.mean(), changed

        (loss, changed), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, trained)
        return ((optax.apply_updates(trained, updates), idle, changed), optimizer_state), loss

    return step


def training_state(
    optimizer: optax.GradientTransformation, variables: Mapping[str, Any], idle: Mapping[str, int]
) -> Any:
    """The state to begin with, as `FoldTrainer` has it; copies. `idle`: see `idle.split`."""

    def begin(variables: Any) -> Any:
        trained, left = split(variables["params"], idle)
        collections = {name: tree for name, tree in variables.items() if name != "params"}
        return (trained, left, collections), optimizer.init(trained)

    # Compiled, because the two moments of Adam would else be one and the same zeros.
    return jax.jit(begin)(dict(variables))


def flax_step(
    step: Step, state: Any, batch: Batch, options: Mapping[str, Any] | None
) -> Callable[[], jax.Array]:
    """A call that takes the next training step on one batch and gives its loss.

    Args:
        step: The step.
        state: On the device; its memory is used up.
        batch: `(B, H, W, C)` float32 inputs and `(B,)` labels.
        options: XLA compiler options.
    """
    inputs, labels = jax.device_put((inputs_of(batch), np.asarray(batch[1], np.int32)))
    compiled = jax.jit(step, donate_argnums=0).lower(state, inputs, labels).compile(options)
    kept = [state]

    def call() -> jax.Array:
        kept[0], loss = compiled(kept[0], inputs, labels)
        return loss

    return call


def compare(what: str, ours: Any, theirs: Any, precision: str) -> float:
    """The largest difference of two results, relative to PyTorch's largest value.

    Raises:
        UserError: It is above the tolerance of `precision`, one of `TOLERANCES` (times of different
            computations cannot be compared), or a result is not finite.
    """
    one, other = (np.asarray(value, np.float32) for value in (ours, _numpy(theirs)))
    if one.shape != other.shape:
        raise ValueError(f"{what}: shapes {one.shape} and {other.shape}")
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise UserError(f"{what}: ours or PyTorch's is not finite; lower the learning rate")
    apart = float(np.abs(one - other).max() / max(np.abs(other).max(), 1e-30))
    if apart > TOLERANCES[precision]:
        raise UserError(
            f"{what}: ours and PyTorch's differ by {apart:.1e}, more than {precision} allows "
            f"({TOLERANCES[precision]:.0e}); find the first difference by tools/check_parity.py"
        )
    return apart


def _numpy(value: Any) -> Any:
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else value
