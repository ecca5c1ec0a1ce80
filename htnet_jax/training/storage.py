"""Arrays on disk: Orbax, and `.npz` where several processes write, each for itself.

With several processes, Orbax takes arrays for parts of one common state: those of NumPy it writes
in process 0 only, and those on one process's devices it refuses. A state that a single process
owns is therefore written without it.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

_NPZ = "arrays.npz"


def save_tree(path: Path, tree: Any) -> None:
    """Writes a pytree with Orbax; of several processes only process 0 may do so.

    Args:
        path: A folder that does not exist.
        tree: NumPy arrays.
    """
    with _checkpointer() as checkpointer:
        checkpointer.save(path.absolute(), tree)


def save_state(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a process's own arrays: with Orbax if it is the only one, else as `.npz`.

    Args:
        path: A folder that does not exist.
        arrays: Name -> array.
    """
    if jax.process_count() == 1:
        save_tree(path, dict(arrays))
        return
    path.mkdir()
    content = dict(_with_plain_types(name, array) for name, array in arrays.items())
    with open(path / _NPZ, "wb") as file:
        np.savez(file, **content)


def restore_state(path: Path) -> dict[str, np.ndarray]:
    """Reads what `save_state` wrote, whoever did; many types of errors if it is damaged.

    Args:
        path: The folder.
    """
    if (path / _NPZ).is_file():
        with np.load(path / _NPZ, allow_pickle=False) as file:
            return dict(_with_own_types(name, file[name]) for name in file.files)
    with _checkpointer() as checkpointer:
        arrays = checkpointer.restore(path.absolute())
    return {name: np.asarray(array) for name, array in arrays.items()}


def _checkpointer() -> ocp.Checkpointer:
    if jax.process_count() == 1:
        return ocp.PyTreeCheckpointer()
    # By itself Orbax would wait until all processes save or restore.
    own = jax.process_index()
    options = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=uuid.uuid4().hex
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _with_plain_types(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    """NumPy's files know nothing of types such as bfloat16: their bits, the type in the name."""
    if array.dtype.isbuiltin == 1:
        return name, array
    return f"{name}|{array.dtype.name}", array.view(f"u{array.dtype.itemsize}")


def _with_own_types(name: str, array: np.ndarray) -> tuple[str, np.ndarray]:
    name, _, dtype = name.partition("|")
    return name, array.view(jnp.dtype(dtype)) if dtype else array
