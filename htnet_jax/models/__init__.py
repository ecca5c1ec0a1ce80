"""Flax linen networks; they import nothing else of the project, but for what reads files."""

from htnet_jax.models.attributes import AttributeNet
from htnet_jax.models.bert import Bert
from htnet_jax.models.htnet import HTNet
from htnet_jax.models.mmnet import MMNet
from htnet_jax.models.r3d import R3D

# `config.model.name` -> module class; a new network is added here.
MODELS = {"HTNet": HTNet, "MMNet": MMNet, "AttributeNet": AttributeNet}

__all__ = ["MODELS", "R3D", "AttributeNet", "Bert", "HTNet", "MMNet"]
