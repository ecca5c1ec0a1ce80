"""htnet_jax: micro-expression recognition in JAX/Flax.

Importing this package imports nothing heavy; `htnet_jax.load` opens a checkpoint.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from htnet_jax.training.state import LoadedModel

__version__ = "0.1.0"
__all__ = ["load"]

# Imported when first used, as `htnet_jax.models.HTNet`.
_PACKAGES = ("datasets", "evaluation", "models", "motion", "torch_bridge", "training")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load(path: str | Path) -> LoadedModel:
    """Opens the checkpoint of one fold.

    Args:
        path: A fold's checkpoint folder (`RUN/checkpoints/SUBJECT`).

    Returns:
        `(module, variables, config)`: the Flax module, its variables (float32 arrays) and the
        run's `ml_collections.ConfigDict`; call `module.apply(variables, x, train=False)`.

    Raises:
        UserError: The folder is missing, incomplete, or does not fit its own config.
    """
    from htnet_jax.training.state import load_fold

    return load_fold(path)
