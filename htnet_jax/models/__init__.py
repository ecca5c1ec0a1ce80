"""Flax linen networks; they import nothing else of the project but what a value may be.

`bert` also reads its files.
"""

from htnet_jax.models.bert import Bert
from htnet_jax.models.htnet import HTNet
from htnet_jax.models.mmnet import MMNet

# `config.model.name` -> module class; a new network is added here.
MODELS = {"HTNet": HTNet, "MMNet": MMNet}

__all__ = ["MODELS", "Bert", "HTNet", "MMNet"]
