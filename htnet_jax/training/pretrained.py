"""Weights of another training that every fold starts from: `config.model.pretrained`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from flax import traverse_util

from htnet_jax import foreign
from htnet_jax.errors import UserError
from htnet_jax.training import hosts


class Start(NamedTuple):
    """What folds start from instead of initial values of their own.

    Attributes:
        variables: Part of the network's variables, nested dicts of float32 arrays; empty: none.
        digest: SHA-256 of their names, shapes and values; empty without any.
    """

    variables: Mapping[str, Any] = {}
    digest: str = ""


def read(module: Any, name: str) -> Start:
    """The weights that a network's attribute `pretrained` names; nothing where it names none.

    Args:
        module: The network.
        name: `config.model.name`.

    Raises:
        UserError: The file is missing, damaged, holds something other than tensors, or belongs to
            another network or size.
    """
    path = getattr(module, "pretrained", "")
    if not path:
        return Start()
    # Here, because PyTorch is an extra, and takes a second to import.
    from htnet_jax.torch_bridge import bridge_of, files

    bridge = bridge_of(name)
    if bridge.pretrained is None:
        raise UserError(f"config.model.pretrained={path}: {name} cannot start from a file")
    file = files.read(path)
    remedy = "Set --config.model.pretrained to a file of the right network."
    with foreign.reading(path, "file of pretrained weights", remedy):
        try:
            variables = bridge.pretrained(file.state_dict, module)
        except UserError as error:
            raise UserError(f"config.model.pretrained={path}: {error}") from error
    flat = traverse_util.flatten_dict(variables, sep="/")
    digest = hashlib.sha256()
    for key in sorted(flat):
        digest.update(f"{key} {flat[key].shape} {flat[key].dtype}\n".encode())
        digest.update(flat[key].tobytes())
    for note in file.notes:
        hosts.tell(f"{path}: {note}")
    hosts.tell(
        f"{', '.join(variables['params'])}: {len(jax.tree.leaves(variables))} arrays start from "
        f"{path}"
    )
    return Start(variables, digest.hexdigest())
