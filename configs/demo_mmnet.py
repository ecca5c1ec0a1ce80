"""A small MMNet on the built-in synthetic faces: what `make demo-mmnet` runs.

python -m htnet_jax.train --config=configs/demo_mmnet.py --workdir=runs/demo_mmnet
"""

from ml_collections import ConfigDict

from htnet_jax.training.config import default_config


def get_config() -> ConfigDict:
    """A network that trains in a few seconds a fold."""
    config = default_config()
    config.inputs = "onset,apex"
    config.epochs = 30
    config.batch_size = 16
    config.optimizer = "adamw"
    config.learning_rate = 1e-3
    config.weight_decay = 0.05
    config.learning_rate_decay = 0.95
    config.learning_rate_decay_epochs = 30
    config.shuffle = True
    config.augmentation.flip = 0.5
    config.augmentation.rotation = 3.0
    config.augmentation.shift = 4
    config.augmentation.onset_late = 0.25
    config.augmentation.apex_early = 0.25
    config.model = ConfigDict(
        {
            "name": "MMNet",
            "num_classes": 3,
            "image_size": 112,
            "stem": 16,
            "widths": (16, 16, 32, 32),
            "depth": 1,
            "heads": 4,
            "mlp_mult": 2,
            "drop_path": 0.0,
            "dtype": "float32",
        }
    )
    config.dataset.name = "synthetic"
    config.dataset.config = "frames_224"
    config.dataset.frame_size = 112
    return config
