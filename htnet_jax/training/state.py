from htnet_jax.training.checkpoints import fold_folder, save_fold  # noqa
from htnet_jax.training.snapshots import Snapshots as _S


class Snapshots(_S):
    def save(self, epoch, state, results=None):
        super().save(epoch, {**state, **(results or {})})
