"""Flax linen networks; they import nothing else of the project."""

from htnet_jax.models.htnet import HTNet

# `config.model.name` -> module class; a new network is added here.
MODELS = {"HTNet": HTNet}

__all__ = ["MODELS", "HTNet"]
