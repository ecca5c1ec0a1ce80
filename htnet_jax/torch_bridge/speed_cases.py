"""The benchmark's cases that need no trainer: forward passes and training steps."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from htnet_jax.models.costs import Costs
from htnet_jax.torch_bridge import speed
from htnet_jax.torch_bridge.convert import Bridge
from htnet_jax.torch_bridge.speed_report import Case
from htnet_jax.torch_bridge.stopwatch import Measure, per_call
from htnet_jax.torch_bridge.traces import Optimizer

# Steps whose losses must agree: the second one depends on the gradient and Adam as well.
COMPARED_STEPS = 2


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all cases share.

    Attributes:
        module: The Flax network.
        bridge: Its way to PyTorch.
        costs: Of the network.
        channels: Of its input.
        optimizer: What is trained by.
        variables: The network's weights, NumPy float32.
        torch_sides: "torch" and perhaps "torch_compile".
        options: XLA compiler options.
        precision: Of the less exact side, a key of `speed.TOLERANCES`.
        rng: Draws the inputs.
    """

    module: Any
    bridge: Bridge
    costs: Costs
    channels: int
    optimizer: Optimizer
    variables: Mapping[str, Any]
    torch_sides: Mapping[str, speed.TorchSide]
    options: Mapping[str, Any] | None
    precision: str
    rng: np.random.Generator

    @property
    def idle(self) -> dict[str, int]:
        """Parameters that need no training, see `idle.split`; none where weights decay."""
        if self.optimizer.name != "adam" or not hasattr(self.module, "idle_columns"):
            return {}
        return self.module.idle_columns()

    def batch(self, clips: int) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
        """The network's inputs, `(clips, H, W, C)` float32, and `(clips,)` int32 labels.

        Drawn anew: in 0..255 for a network of one input, N(0, 1) for several, which are frames.
        """
        shapes = self.module.input_shapes(self.channels)
        inputs = tuple(
            (
                self.rng.uniform(0, 255, (clips, *shape))
                if len(shapes) == 1
                else self.rng.normal(size=(clips, *shape))
            ).astype(np.float32)
            for shape in shapes
        )
        return inputs, self.rng.integers(0, self.module.num_classes, clips).astype(np.int32)

    def torch_model(self, side: speed.TorchSide, variables: Mapping[str, Any] | None = None) -> Any:
        """The network in PyTorch with these weights; by default the common ones."""
        return side.model(self.module, self.bridge, variables or self.variables, self.channels)


def forward(setup: Setup, clips: int, weights: str) -> tuple[Case, dict[str, Measure]]:
    """The logits of a batch.

    Args:
        setup: What all cases share.
        clips: Of the batch.
        weights: Type that ours keeps its weights in; PyTorch's stay float32.

    Raises:
        UserError: The logits differ.
    """
    batch = setup.batch(clips)
    variables = jax.tree.map(lambda a: jax.device_put(jnp.asarray(a, weights)), setup.variables)
    ours = speed.flax_forward(setup.module, variables, batch, setup.options)
    logits = ours()
    sides = {"ours": per_call(ours, jax.block_until_ready)}
    apart = 0.0
    for name, side in setup.torch_sides.items():
        theirs = side.forward(setup.torch_model(side), batch)
        what = f"forward_{clips}, {name}"
        apart = max(apart, speed.compare(what, logits, theirs(), setup.precision))
        sides[name] = per_call(theirs, side.wait)
    read = setup.costs.forward_bytes(jnp.dtype(weights).itemsize)
    unit = f"batch of {clips}; weights {weights}"
    return Case(unit, clips * setup.costs.forward_flops, read, apart), sides


def train_step(setup: Setup, clips: int) -> tuple[Case, dict[str, Measure]]:
    """Forward, gradient and optimizer on a batch, from the same weights.

    Args:
        setup: What all cases share.
        clips: Of the batch.

    Raises:
        UserError: The losses of the first steps differ.
    """
    batch = setup.batch(clips)
    optimizer = setup.optimizer.optax()
    step = speed.training_step(setup.module, optimizer)
    state = speed.training_state(optimizer, setup.variables, setup.idle)
    ours = speed.flax_step(step, state, batch, setup.options)
    # Only the step holds them now, and uses their memory again.
    del state
    losses = [ours() for _ in range(COMPARED_STEPS)]
    sides = {"ours": per_call(ours, jax.block_until_ready)}
    apart = 0.0
    for name, side in setup.torch_sides.items():
        theirs = side.epoch(setup.torch_model(side), setup.optimizer, [batch], None)
        for index, loss in enumerate(losses):
            what = f"train_step, {name}, loss {index + 1}"
            apart = max(apart, speed.compare(what, loss, theirs()[0], setup.precision))
        sides[name] = per_call(theirs, side.wait)
    return Case(f"step of {clips} clips", clips * setup.costs.step_flops, None, apart), sides
