from htnet_jax.training.checkpoints import *
from htnet_jax.training.snapshots import Snapshots as _S


class Snapshots(_S):
    def save(self, epoch, state, results=None):
        super().save(epoch, {**state, **(results or {})})
