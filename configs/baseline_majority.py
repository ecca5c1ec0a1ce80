"""The most frequent class of the training clips, leave-one-subject-out: what anything must beat.

  python -m htnet_jax.train --config=configs/baseline_majority.py --workdir=runs/majority \
      --config.dataset.manual_dir=FOLDER

FOLDER as for `megc2019_htnet.py`. Seconds. Expect a UF1 of .241 and a UAR of .333 (every clip is
called negative). Seeds, batch size, learning rate and shuffling have no effect on a baseline.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """See `htnet_jax.training.baselines.MajorityClass`."""
    config = default_config()
    config.epochs = 1
    config.checkpoints = "none"
    config.model = ConfigDict({"name": "MajorityClass", "num_classes": 3})
    config.dataset.layout = "none"
    config.dataset.channels = "u,v,strain"
    return config
