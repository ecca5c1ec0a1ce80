"""A network that compiles in a moment: nothing in training may depend on HTNet."""

from typing import ClassVar

import numpy as np
from flax import linen as nn


class Linear(nn.Module):
    """Softmax regression on the flattened input."""

    inputs: ClassVar[tuple[str, ...]] = ("mosaic",)

    num_classes: int
    image_size: int

    def check_sizes(self):
        pass

    def input_shapes(self, flow_channels):
        return ((self.image_size, self.image_size, flow_channels),)

    @nn.compact
    def __call__(self, x, *, train):
        if x.shape[1] != self.image_size:
            raise ValueError(f"x has {x.shape[1]} px; set image_size={x.shape[1]}")
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1) / np.float32(255))
