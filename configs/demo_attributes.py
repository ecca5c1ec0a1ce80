"""A small attribute network on built-in synthetic clips: what `make demo-attributes` runs.

  python -m htnet_jax.train --config=configs/demo_attributes.py --workdir=runs/demo_attributes

A reconstruction, see docs/attributes.md. 144 clips of 12 subjects of 3 invented sources, 8 frames
of 56 px and the flow to each, used at 28 px; 12 folds x 25 epochs, 1,066,395 parameters. About 4
minutes on 2 CPU cores; expect a `final` UF1 of .88, with the contrastive loss and without.

Learning rate, shift, size and batch were chosen on clips rendered with another seed, leaving out
three groups of four subjects. Sentences of the rendered action units are embedded by the MiniLM of
the extra `text`; `--config.text.kind=multi_hot --config.model.text_width=12` needs no text model.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """A network that trains in seconds a fold."""
    config = default_config()
    config.inputs = "rgb_clip,flow_clip"
    config.epochs = 25
    config.batch_size = 8
    config.shuffle = True
    config.optimizer = "adamw"
    config.learning_rate = 2e-3
    config.weight_decay = 1e-2
    config.schedule = "cosine"
    config.losses.attribute_contrastive = 0.5
    config.loss_options.attribute_contrastive = ConfigDict({"temperature": 0.07})
    config.augmentation.flip = 0.5
    config.augmentation.shift = 1
    config.model = ConfigDict(
        {
            "name": "AttributeNet",
            "num_classes": 3,
            "streams": "both",
            "depth": 18,
            "width": 8,
            "frames": 8,
            "image_size": 28,
            "features": 64,
            "projection": 32,
            "text_width": 384,
            "dropout": 0.5,
            "pretrained": "",
            "dtype": "float32",
        }
    )
    config.dataset.name = "synthetic"
    config.dataset.config = "clips_56"
    config.dataset.frame_size = 28
    config.dataset.clip_frames = 8
    config.text.pooling = "mean"
    return config
