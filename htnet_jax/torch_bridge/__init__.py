"""The same networks in PyTorch: conversion of checkpoints both ways, and parity checks.

The only folder that imports torch: `pip install -e .[torch]`.
"""

from htnet_jax.errors import UserError

try:
    import einops  # noqa: F401
    import safetensors  # noqa: F401
    import torch  # noqa: F401
except ImportError as error:
    raise UserError(
        f"{error.name} is not installed; the PyTorch bridge needs the extra `torch`:\n"
        "  pip install --constraint constraints.txt -e .[torch]"
    ) from error

from htnet_jax.torch_bridge import attributes, htnet, mmnet
from htnet_jax.torch_bridge.convert import Bridge, Rule

# `config.model.name` -> how that network crosses; a new network is added here.
BRIDGES = {
    "HTNet": htnet.BRIDGE,
    "MMNet": mmnet.BRIDGE,
    "AttributeNet": attributes.BRIDGE,
}


def bridge_of(name: str) -> Bridge:
    """The bridge of `config.model.name`.

    Raises:
        UserError: There is none; names those there are.
    """
    if name not in BRIDGES:
        raise UserError(f"{name} has no PyTorch bridge; there is one for {', '.join(BRIDGES)}")
    return BRIDGES[name]


__all__ = ["BRIDGES", "Bridge", "Rule", "bridge_of"]
