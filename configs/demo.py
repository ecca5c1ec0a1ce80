"""A small HTNet on the built-in synthetic clips: what `make demo` runs.

  python -m htnet_jax.train --config=configs/demo.py --workdir=runs/demo

12 subjects of 3 invented sources, rendered and turned into Farneback flow on first use; 12 folds x
40 epochs, 314,694 parameters. Every fold also has an inner fold, for the selection `inner` and the
calibration.
About a minute and a half on 2 CPU cores; expect a `final` UF1 of .96.
With `--config.dataset.shuffle_labels=True` the same run must score near chance.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """A network that trains in seconds a fold."""
    config = default_config()
    config.epochs = 40
    config.batch_size = 32
    config.learning_rate = 1e-3
    config.shuffle = True
    config.inner_folds = 1
    config.model.dim = 24
    config.model.block_repeats = (1, 1, 2)
    config.dataset.name = "synthetic"
    config.dataset.layout = "upright"
    config.dataset.scaling = "minmax_255"
    return config
