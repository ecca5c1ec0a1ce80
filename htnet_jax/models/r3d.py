"""R3D: the residual network of 3-D convolutions over the frames of a clip.

Tran, Wang, Torresani, Ray, LeCun, Paluri, "A Closer Look at Spatiotemporal Convolutions for Action
Recognition", CVPR 2018; sizes, strides and initial values of torchvision's `r3d_18`. The class can
be imported and used on its own.

With `mutable=["intermediates"]` the values between the layers are returned as well; else they cost
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from htnet_jax.models.layers import ConvNorm, Dense, check_ranges
from htnet_jax.ranges import Range

# Depth -> basic blocks of each of the four stages: ResNet's 18 and 34 (He et al., CVPR 2016), and
# half of the former.
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


def check_depth(depth: int) -> None:
    """Raises a ValueError if there is no network of this depth."""
    if depth not in BLOCKS:
        raise ValueError(f"depth={depth} is unknown; use {', '.join(map(str, BLOCKS))}")


def check_clip(name: str, x: jax.Array, frames: int, side: int, channels: int) -> None:
    """Raises a ValueError that names the remedy if a network's input is not a clip of its size.

    Args:
        name: Of the input.
        x: Should be `(B, frames, side, side, channels)`.
        frames: The network's `frames`.
        side: The network's `image_size`.
        channels: Of each frame.
    """
    if x.ndim == 5 and x.shape[1:] == (frames, side, side, channels):
        return
    message = (
        f"{name} has shape {x.shape}, but frames={frames} and image_size={side} need "
        f"(batch, {frames}, {side}, {side}, {channels})"
    )
    if x.ndim == 5 and x.shape[2] == x.shape[3] and x.shape[4] == channels:
        message += f"; set frames={x.shape[1]} and image_size={x.shape[2]}"
    raise ValueError(message)


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions with BN, plus the skip; ReLU after the first and after the sum.

    The skip is the identity or, with a stride or another width, a 1x1x1 convolution and BN.

    Attributes:
        features: Output channels.
        stride: Positions between two windows, in time and space.
        dtype: Type of the computation.
    """

    features: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Maps `(B, T, H, W, C)` to `(B, T / stride, H / stride, W / stride, features)`.

        Sizes are rounded up. For `train` see `BatchNorm`.
        """
        width, size = self.features, (3, 3, 3)
        out = ConvNorm(width, size, self.stride, self.dtype, name="first")(x, train=train)
        out = ConvNorm(width, size, 1, self.dtype, name="second")(nn.relu(out), train=train)
        if self.stride != 1 or x.shape[-1] != width:
            skip = ConvNorm(width, (1, 1, 1), self.stride, self.dtype, name="skip")
            x = skip(x, train=train)
        out = nn.relu(out + x)
        self.sow("intermediates", "joined", out)
        return out


class R3D(nn.Module):
    """R3D; the defaults are torchvision's `r3d_18` without its head (33,166,272 parameters).

    A 3x7x7 stem halves the frames' sides; stages 2 to 4 double the channels and halve time and
    sides; the mean over all positions is the feature vector.

    Example:
        model = R3D()
        variables = model.init(jax.random.key(0), clip, train=False)
        features = model.apply(variables, clip, train=False)  # (B, 512)
        features, moved = model.apply(variables, clip, train=True, mutable=["batch_stats"])

    Attributes:
        depth: Convolutions and a dense layer: 10, 18 or 34.
        width: Channels of the stem; the stages have 1, 2, 4 and 8 times as many.
        channels: Of each frame.
        frames: Of a clip.
        image_size: Side of the square frames in pixels.
        num_classes: Classes; 0: no head.
        dtype: Type of the computation (parameters are float32).
    """

    SIZES: ClassVar[Mapping[str, Range]] = {
        "depth": Range(min(BLOCKS), max(BLOCKS)),
        "width": Range(1, 1024),
        "channels": Range(1, 1000),
        "frames": Range(1, 1000),
        "image_size": Range(1, 2048),
        "num_classes": Range(0, 1000),
    }

    depth: int = 18
    width: int = 64
    channels: int = 3
    frames: int = 16
    image_size: int = 112
    num_classes: int = 0
    dtype: Any = jnp.float32

    def check_sizes(self) -> None:
        """Raises a ValueError that says which attribute cannot be."""
        check_ranges(self, self.SIZES)
        check_depth(self.depth)

    @nn.compact
    def __call__(self, clip: jax.Array, *, train: bool) -> jax.Array:
        """Features of clips, or their logits.

        Args:
            clip: `(B, frames, image_size, image_size, channels)`, any real type.
            train: Whether the batch's own statistics are used; `batch_stats` must then be mutable.
                `layers.batch_mask` keeps the padding of a batch out of them.

        Returns:
            `(B, 8 width)` features, or `(B, num_classes)` logits, in `dtype`.

        Raises:
            ValueError: An attribute cannot be, or the clip does not fit `frames`, `image_size` and
                `channels`.
        """
        self.check_sizes()
        check_clip("clip", clip, self.frames, self.image_size, self.channels)
        x = clip.astype(self.dtype)
        stem = ConvNorm(self.width, (3, 7, 7), (1, 2, 2), self.dtype, name="stem")
        x = nn.relu(stem(x, train=train))
        for stage, blocks in enumerate(BLOCKS[self.depth]):
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                block = BasicBlock(
                    self.width * 2**stage, stride, self.dtype, name=f"layer_{stage + 1}_{index}"
                )
                x = block(x, train=train)
        x = x.mean(axis=(1, 2, 3))
        self.sow("intermediates", "pooled", x)
        return Dense(self.num_classes, self.dtype, name="head")(x) if self.num_classes else x
