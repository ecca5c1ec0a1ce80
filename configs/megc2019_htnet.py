"""HTNet as published, leave-one-subject-out on the released MEGC 2019 flow images.

  python -m htnet_jax.train --config=configs/megc2019_htnet.py --workdir=runs/htnet \
      --config.dataset.manual_dir=FOLDER

FOLDER holds the release's `STSNet_whole_norm_u_v_os/` and
`combined_3_class2_for_optical_flow.csv` (and `landmarks_mtcnn_28px.csv`, if you have it).

68 folds x 800 epochs of 139,582,982 parameters: meant for an accelerator; on 2 CPU cores an epoch
of one fold takes 4 seconds, so try `--config.folds=sub01 --config.epochs=2` there. All 68
checkpoints take 38 GB; this config keeps none (`--config.checkpoints=sub01,...` keeps some).
Published, choosing the best epoch on the test subject: UF1 .8603, UAR .8475.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """The published settings are the defaults."""
    config = default_config()
    config.checkpoints = "none"
    return config
