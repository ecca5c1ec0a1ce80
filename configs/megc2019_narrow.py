"""A narrow HTNet (2,158,278 parameters), leave-one-subject-out on the released MEGC 2019 flows.

  python -m htnet_jax.train --config=configs/megc2019_narrow.py --workdir=runs/narrow \
      --config.dataset.manual_dir=FOLDER

FOLDER as for `megc2019_htnet.py`. About 11 minutes on 2 idle CPU cores, twice that with
`--config.inner_folds=1`. Expect a `final` UF1 of .66 (seed 0), an `inner` one of .63, and an
`oracle`, selected on the test subject, of .86; with `--config.order=file` .65, .61 and .85.
Width, learning rate and epochs were fixed beforehand, not chosen on the results.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """The published settings but for width, learning rate and epochs."""
    config = default_config()
    config.model.dim = 32
    config.learning_rate = 3e-4
    config.epochs = 100
    return config
