"""Orbax for a process that saves and restores by itself, whatever the other processes do."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def checkpointer() -> ocp.Checkpointer:
    """A checkpointer of pytrees; a context manager.

    Orbax's default expects all processes of a run to save together, and waits for them.
    """
    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=uuid.uuid4().hex
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def save(path: Path, tree: Any) -> None:
    """Writes a pytree of arrays.

    Args:
        path: A folder that does not exist.
        tree: NumPy or JAX arrays.
    """
    if jax.process_count() > 1:
        # NumPy arrays are written by process 0 only, whoever asks for it.
        device = jax.local_devices(backend="cpu")[0]
        tree = jax.tree.map(lambda a: jax.device_put(np.asarray(a), device), tree)
    with checkpointer() as one:
        one.save(path.absolute(), tree)


def restore(path: Path) -> Any:
    """Reads what `save` wrote, as NumPy arrays; Orbax's many errors for damaged files."""
    with checkpointer() as one:
        stored = one.metadata(path.absolute()).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        return one.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=as_numpy))
