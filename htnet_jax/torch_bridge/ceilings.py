"""What the machine can do at most, by both frameworks: a large product, a large copy, a large sum.

The better of the two frameworks is the ceiling.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import torch

from htnet_jax.torch_bridge.speed import synchronize
from htnet_jax.torch_bridge.stopwatch import Measure, per_call


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """One measured limit.

    Attributes:
        work: FLOPs or bytes of one call.
        unit: "flops" or "bytes".
        sides: "ours" and "torch" -> measurement.
    """

    work: int
    unit: str
    sides: dict[str, Measure]


def measures(
    device: str, dtype: str, product_size: int, copy_bytes: int, options: Mapping[str, Any] | None
) -> dict[str, Ceiling]:
    """The measurements, compiled and warm.

    Args:
        device: PyTorch's device.
        dtype: Type of the matrices that are multiplied.
        product_size: Their side.
        copy_bytes: Size of the array that is copied, and summed.
        options: XLA compiler options.

    Returns:
        "product" (2 n^3 FLOPs), "copy" (read and written: twice the array's bytes) and "read" (a
        sum: the array's bytes). Nothing is copied into fresh memory, whose first use is slow: JAX
        negates an array in its place, PyTorch copies into an array that is there.
    """
    count = copy_bytes // 4
    # Small numbers, so that sums stay finite; zeros might be skipped.
    matrix = jnp.full((product_size, product_size), 1e-3, dtype)
    array = jnp.full(count, 1e-3, jnp.float32)
    torch_matrix = torch.full(matrix.shape, 1e-3, dtype=getattr(torch, dtype), device=device)
    torch_array = torch.full((count,), 1e-3, device=device)
    target = torch.empty_like(torch_array)
    return {
        "product": Ceiling(
            2 * product_size**3,
            "flops",
            {
                "ours": _jax(lambda a: a @ a, matrix, options),
                "torch": _torch(lambda: torch_matrix @ torch_matrix, device),
            },
        ),
        "copy": Ceiling(
            2 * 4 * count,
            "bytes",
            {
                "ours": _jax_in_place(jnp.negative, array, options),
                "torch": _torch(lambda: target.copy_(torch_array), device),
            },
        ),
        "read": Ceiling(
            4 * count,
            "bytes",
            {
                "ours": _jax(jnp.sum, array, options),
                "torch": _torch(lambda: torch_array.sum(), device),
            },
        ),
    }


def _jax(work: Any, array: jax.Array, options: Mapping[str, Any] | None) -> Measure:
    compiled = jax.jit(work).lower(array).compile(options)
    # Each call waits: several results at once would need several times the memory.
    return per_call(lambda: jax.block_until_ready(compiled(array)), jax.block_until_ready)


def _jax_in_place(work: Any, array: jax.Array, options: Mapping[str, Any] | None) -> Measure:
    compiled = jax.jit(work, donate_argnums=0).lower(array).compile(options)
    kept = [jnp.array(array)]

    def call() -> jax.Array:
        kept[0] = jax.block_until_ready(compiled(kept[0]))
        return kept[0]

    return per_call(call, jax.block_until_ready)


def _torch(call: Any, device: str) -> Measure:
    return per_call(call, lambda result: synchronize(device))
