"""A small MMNet on the built-in synthetic faces: what `make demo-mmnet` runs.

  python -m htnet_jax.train --config=configs/demo_mmnet.py --workdir=runs/demo_mmnet

288 clips of 12 subjects of 3 invented sources, rendered, aligned to 224 px and used at 64 px;
12 folds x 30 epochs, 36,931 parameters. About 4 minutes on 2 CPU cores; expect a `final` UF1 of
.89. Learning rate, decay, widths and augmentation were chosen on clips rendered with another seed,
leaving out two groups of four subjects; then the clips were doubled (with 144 it has .82) and the
epochs halved.
With `--config.dataset.shuffle_labels=True` the same run must score near chance.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """A network that trains in seconds a fold."""
    config = default_config()
    config.inputs = "onset,apex"
    config.epochs = 30
    config.batch_size = 8
    config.shuffle = True
    config.optimizer = "adamw"
    config.learning_rate = 4e-3
    config.weight_decay = 2.0
    config.schedule = "step"
    config.learning_rate_decay = 0.865
    config.learning_rate_decay_epochs = 30
    config.augmentation.flip = 0.5
    config.augmentation.shift = 1
    # Synthetic clips have few frames from onset to apex: a quarter of the way is one.
    config.augmentation.onset_late = 0.25
    config.augmentation.apex_early = 0.25
    config.model = ConfigDict(
        {
            "name": "MMNet",
            "num_classes": 3,
            "image_size": 64,
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
    config.dataset.frame_size = 64
    return config
