"""A demo.

python -m htnet_jax.train --config=configs/demo_attributes.py --workdir=runs/demo_attributes
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.inputs = "rgb_clip,flow_clip"
    config.epochs = 10
    config.batch_size = 16
    config.shuffle = True
    config.optimizer = "adamw"
    config.learning_rate = 2e-3
    config.weight_decay = 1e-2
    config.schedule = "cosine"
    config.losses.attribute_contrastive = 0.5
    config.loss_options.attribute_contrastive = ConfigDict({"temperature": 0.07})
    config.augmentation.flip = 0.5
    config.augmentation.shift = 2
    config.model = ConfigDict(
        {
            "name": "AttributeNet",
            "num_classes": 3,
            "streams": "both",
            "depth": 18,
            "width": 8,
            "frames": 8,
            "image_size": 56,
            "features": 64,
            "projection": 32,
            "text_width": 384,
            "dropout": 0.5,
            "dtype": "float32",
        }
    )
    config.dataset.name = "synthetic"
    config.dataset.config = "clips_56"
    config.dataset.clip_frames = 8
    config.text.pooling = "mean"
    return config
