"""A class-weighted RBF support vector machine on the whole flow, leave-one-subject-out.

  python -m htnet_jax.train --config=configs/baseline_svm.py --workdir=runs/svm \
      --config.dataset.manual_dir=FOLDER

FOLDER as for `megc2019_htnet.py`. Each fold chooses C on five inner folds of its training subjects.
About a minute on one core. Expect a UF1 of .702 and a UAR of .700; on the release's mosaic
(`--config.dataset.layout=release`) .713 and .706. With C = 1 throughout
(`--config.model.C="(1.0,)"`): .711 and .724, and .691 and .707. Batch size, learning rate and
shuffling have no effect on a baseline.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """See `htnet_jax.training.baselines.RBFSVM`."""
    config = default_config()
    config.epochs = 1
    config.checkpoints = "none"
    config.model = ConfigDict({"name": "RBFSVM", "num_classes": 3})
    # 0: no PCA. Of several values each fold chooses one on inner folds of its training subjects.
    config.model.components = (0,)
    config.model.C = (0.1, 1.0, 10.0, 100.0)
    config.model.gamma = (1.0,)
    config.dataset.layout = "none"
    config.dataset.channels = "u,v,strain"
    return config
