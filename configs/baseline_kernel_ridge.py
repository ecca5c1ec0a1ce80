"""Class-weighted kernel ridge on the whole flow: the strongest simple baseline known to us.

  python -m htnet_jax.train --config=configs/baseline_kernel_ridge.py --workdir=runs/kernel_ridge \
      --config.dataset.manual_dir=FOLDER

FOLDER as for `megc2019_htnet.py`. About a minute on one core. Expect a UF1 of .772 and a UAR of
.790, leave-one-subject-out with nothing selected: these are the scores of the first run, whose
constants were fixed beforehand. It is made for whole faces: the mirror image of a mosaic is not
that of a face (with `--config.dataset.layout=release`: .698 and .709). Seeds, batch size, learning
rate and shuffling have no effect on a baseline.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """See `htnet_jax.training.baselines.KernelRidge`."""
    config = default_config()
    config.epochs = 1
    config.checkpoints = "none"
    config.model = ConfigDict({"name": "KernelRidge", "num_classes": 3})
    # The names must be those of dataset.channels: the kernel negates u in mirrored faces.
    config.model.channels = "u,v,strain"
    config.model.compression = 1.0
    config.model.smoothing = 1.5
    config.model.bandwidths = (0.25, 0.5, 1.0, 2.0)
    config.model.ridges = (0.01, 0.1, 1.0)
    config.dataset.layout = "none"
    config.dataset.channels = "u,v,strain"
    return config
