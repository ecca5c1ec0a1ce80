"""Parts of parameters that cannot change what a network computes: they are kept, but not trained.

Their gradient is exactly zero, and Adam leaves a parameter alone that never had another: both its
moments stay zero. Left out of the gradient and of the optimizer's state they cost no time there,
and the results are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util


def split(params: Any, columns: Mapping[str, int]) -> tuple[Any, dict[str, Any]]:
    """Takes the idle columns out of parameters.

    Args:
        params: Nested dict of arrays.
        columns: Path, joined by `/` -> number of leading columns (on the last axis) that are idle.

    Returns:
        `(trained, idle)`: the parameters without those columns, and path -> those columns.

    Raises:
        KeyError: There is no such parameter.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    idle = {path: flat[path][..., :count] for path, count in columns.items()}
    trained = flat | {path: flat[path][..., count:] for path, count in columns.items()}
    return traverse_util.unflatten_dict(trained, sep="/"), idle


def join(trained: Any, idle: Mapping[str, Any]) -> Any:
    """The inverse of `split`, on arrays of JAX or NumPy."""
    if not idle:
        return trained
    flat = traverse_util.flatten_dict(trained, sep="/")
    for path, columns in idle.items():
        concatenate = jnp.concatenate if isinstance(columns, jax.Array) else np.concatenate
        flat[path] = concatenate([columns, flat[path]], axis=-1)
    return traverse_util.unflatten_dict(flat, sep="/")
