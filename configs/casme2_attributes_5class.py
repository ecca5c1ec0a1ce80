"""The attribute network on the five classes of CASME II, leave-one-subject-out: a reconstruction.

  python -m htnet_jax.train --config=configs/casme2_attributes_5class.py --workdir=runs/casme2 \
      --config.dataset.manual_dir=FOLDER --config.text.model=BERT

FOLDER is your copy of CASME II; docs/datasets.md says what it must hold. BERT is a folder with
`bert-base-uncased` as Hugging Face distributes it; docs/attributes.md says what else can be used.

67,178,693 parameters on clips of 16 frames of 112 px: meant for an accelerator. Start from the
weights that torchvision offers for its R3D-18 with `--config.model.pretrained=r3d_18.pth`.

Published (Song et al., IJCNN 2022): accuracy .7782, protocol unknown. The paper's body could not be
read and its code is not public: clips, network, sentence, loss and training are our reconstruction
from its abstract, every unknown is a setting, and no parity is claimed. This toolkit has not been
run on CASME II itself.
"""

from ml_collections import ConfigDict

from htnet_jax.config import default_config


def get_config() -> ConfigDict:
    """The settings of the reconstruction."""
    config = default_config()
    config.inputs = "rgb_clip,flow_clip"
    config.epochs = 60
    config.batch_size = 16
    config.shuffle = True
    config.optimizer = "adamw"
    config.learning_rate = 1e-4
    config.weight_decay = 1e-2
    config.schedule = "cosine"
    config.losses.attribute_contrastive = 0.5
    config.loss_options.attribute_contrastive = ConfigDict({"temperature": 0.07})
    config.augmentation.flip = 0.5
    config.augmentation.shift = 8
    config.model = ConfigDict(
        {
            "name": "AttributeNet",
            "num_classes": 5,
            "streams": "both",
            "depth": 18,
            "width": 64,
            "frames": 16,
            "image_size": 112,
            "features": 512,
            "projection": 256,
            "text_width": 768,
            "dropout": 0.5,
            "pretrained": "",
            "dtype": "float32",
        }
    )
    config.dataset.name = "casme2"
    config.dataset.config = "tvl1_28+frames-16+clip-112"
    config.dataset.labels = "five"
    config.dataset.clip_frames = 16
    config.dataset.flow_gain = 0.5
    config.text.kind = "sentence"
    config.text.pooling = "cls"
    config.text.centred = True
    return config
