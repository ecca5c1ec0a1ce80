"""A network that puts flows and texts into one space, and compiles in a moment."""

from typing import ClassVar

import numpy as np
from flax import linen as nn
from jax import numpy as jnp


def towards_text(logits, out, batch, mask):
    """Keeps the vectors of clips small: what a loss does with the text does not matter here."""
    del logits, batch, mask
    return jnp.square(out["visual"]).sum(axis=-1)


towards_text.reads = ("text",)
towards_text.needs = ("visual",)


class Aligned(nn.Module):
    """Linear layers; as `Linear`, it takes flows of 28 px."""

    inputs: ClassVar[tuple[str, ...]] = ("mosaic",)
    privileged: ClassVar[tuple[str, ...]] = ("text",)
    describes: ClassVar[str] = "text"
    losses: ClassVar = {"towards_text": towards_text}

    num_classes: int
    text_width: int
    image_size: int = 28

    def check_sizes(self):
        pass

    def input_shapes(self, flow_channels):
        return ((self.image_size, self.image_size, flow_channels),)

    @nn.compact
    def __call__(self, x, *, text=None, train):
        x = x.reshape(x.shape[0], -1) / np.float32(255)
        out = {"visual": nn.Dense(4, name="visual")(x)}
        project = nn.Dense(4, name="text")
        if text is not None:
            out["text"] = project(text)
        elif self.is_initializing():
            project(jnp.zeros((1, self.text_width)))
        return nn.Dense(self.num_classes, name="head")(x), out
