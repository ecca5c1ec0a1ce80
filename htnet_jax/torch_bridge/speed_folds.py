"""PyTorch's loop over folds, timed on a few of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from htnet_jax.torch_bridge import BRIDGES, parity
from htnet_jax.torch_bridge.speed import TorchSide
from htnet_jax.torch_bridge.stopwatch import timed
from htnet_jax.torch_bridge.traces import Optimizer


def loop_seconds(
    name: str,
    module: Any,
    inputs: np.ndarray,
    labels: np.ndarray,
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    batch_size: int,
    learning_rate: float,
    epochs: int,
    device: str,
) -> list[float]:
    """Seconds an epoch of each fold: Adam's steps in file order, then the test clips' logits.

    Eager PyTorch, float32, one fold after the other, each with a network of its own; its first
    epoch, in which memory is gathered, does not count.

    Args:
        name: Of the model, a key of `BRIDGES`.
        module: The Flax network.
        inputs: `(N, H, W, C)` float32.
        labels: `(N,)` int32.
        splits: For each fold its training and its test clips, `(N,)` bool.
        batch_size: Clips a step.
        learning_rate: Adam's.
        epochs: That are timed, of each fold.
        device: "cpu" or "cuda".
    """
    side, bridge, channels = TorchSide(device), BRIDGES[name], inputs.shape[-1]
    seconds = []
    for index, (train, test) in enumerate(splits):
        variables = parity.random_variables(module, bridge, channels, index)
        rows = np.flatnonzero(train)
        steps = [rows[at : at + batch_size] for at in range(0, len(rows), batch_size)]
        batches = [(inputs[step], labels[step]) for step in steps]
        model = side.model(module, bridge, variables, channels)
        optimizer = Optimizer("adam", learning_rate)
        epoch = side.epoch(model, optimizer, batches, (inputs[test], labels[test]))
        side.wait(epoch())

        def run(epoch: Any = epoch) -> None:
            for _ in range(epochs):
                side.wait(epoch())

        seconds.append(timed(run) / epochs)
    return seconds
