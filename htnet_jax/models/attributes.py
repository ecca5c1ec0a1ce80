"""The attribute network: clips of frames and flow, aligned with the text of their action units.

A reconstruction after Song, Wang, Wu, Huang, Xiao, "Micro-Expression Recognition Based on Attribute
Information Embedding and Cross-modal Contrastive Learning", IJCNN 2022, arXiv 2205.14643. Its
authors published no code, and the abstract names neither backbone nor sizes: what is not known is
an attribute here. No parity with the paper is claimed.

With `mutable=["intermediates"]` the values between the layers are returned as well; else they cost
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from htnet_jax.models.layers import Dense, check_ranges
from htnet_jax.models.r3d import R3D, check_clip, check_depth
from htnet_jax.ranges import Allowed, Choice, Range, Text

# Stream -> channels: RGB; u and v of the flow.
STREAMS = {"rgb": 3, "flow": 2}

# The least length that `unit` divides by, that of PyTorch's `normalize`.
LEAST_LENGTH = 1e-12


def unit(x: jax.Array) -> jax.Array:
    """`(..., C)` vectors at length 1, float32 at least; zeros stay, with a finite gradient."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    squared = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squared, LEAST_LENGTH**2))


class AttributeNet(nn.Module):
    """Two R3D networks, on frames and on flow, fused and classified, beside a projection of text.

    The defaults have 67,178,693 parameters. The text is an embedding of a clip's action units; only
    a contrastive loss needs it, and `describe`. Recognition itself is visual.

    Example:
        model = AttributeNet()
        variables = model.init(jax.random.key(0), rgb_clip, flow_clip, train=False)
        logits, out = model.apply(variables, rgb_clip, flow_clip, text=text, train=False)
        similarities = out["visual"] @ out["text"].T  # (B, M) cosines

    Attributes:
        num_classes: Classes.
        streams: What is looked at.
        width: Channels of each stream's stem; its last stage has 8 times as many.
        depth: Of each stream: 10, 18 or 34.
        frames: Of a clip.
        image_size: Side of the square frames in pixels.
        features: Width of the fused features.
        projection: Width of the space that clips and text share.
        text_width: Width of the text's embedding.
        dropout: Rate on the fused features; with a rate above 0, `train=True` needs a `dropout`
            RNG.
        pretrained: File (.pth, .pt, .safetensors) of torchvision's r3d_18 from which training
            starts both streams; empty: none. The network itself does not read it.
        dtype: Type of the computation (parameters are float32).
    """

    inputs: ClassVar[tuple[str, ...]] = ("rgb_clip", "flow_clip")
    privileged: ClassVar[tuple[str, ...]] = ("text",)
    describes: ClassVar[str] = "text"
    SIZES: ClassVar[Mapping[str, Allowed]] = {
        "num_classes": Range(1, 1000),
        "streams": Choice(("both", *STREAMS)),
        **{key: R3D.SIZES[key] for key in ("width", "depth", "frames", "image_size")},
        "features": Range(1, 8192),
        "projection": Range(1, 8192),
        "text_width": Range(1, 8192),
        "dropout": Range(0.0, 1.0),
        "pretrained": Text(),
    }

    num_classes: int = 5
    streams: str = "both"
    width: int = 64
    depth: int = 18
    frames: int = 16
    image_size: int = 112
    features: int = 512
    projection: int = 256
    text_width: int = 768
    dropout: float = 0.5
    pretrained: str = ""
    dtype: Any = jnp.float32

    def check_sizes(self) -> None:
        """Raises a ValueError that says which attribute cannot be."""
        check_ranges(self, self.SIZES)
        check_depth(self.depth)

    def input_shapes(self, flow_channels: int) -> tuple[tuple[int, ...], ...]:
        """The shape of each input of one clip, in the order of the call: frames and flow.

        Args:
            flow_channels: Channels of the apex frame's flow; a clip's flow has u and v.
        """
        del flow_channels
        size = (self.frames, self.image_size, self.image_size)
        return tuple((*size, channels) for channels in STREAMS.values())

    @nn.compact
    def __call__(
        self,
        rgb_clip: jax.Array,
        flow_clip: jax.Array,
        *,
        text: jax.Array | None = None,
        train: bool,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Classifies clips, and puts clips and text into one space.

        Args:
            rgb_clip: `(B, frames, image_size, image_size, 3)` RGB, normalised by Kinetics' mean and
                standard deviation.
            flow_clip: `(B, frames, image_size, image_size, 2)`, u and v from the first frame to
                each. With a single stream the other one is ignored.
            text: `(M, text_width)` embeddings, of the clips or of any others.
            train: Whether the batch's own statistics and dropout are used; `batch_stats` must then
                be mutable. `layers.batch_mask` keeps the padding of a batch out of them.

        Returns:
            `(B, num_classes)` logits in `dtype`; and, of length 1 and float32 at least, `visual`
            `(B, projection)` and, if text was given, `text` `(M, projection)`.

        Raises:
            ValueError: An attribute cannot be, or an input does not fit.
        """
        self.check_sizes()
        clips = {"rgb": rgb_clip, "flow": flow_clip}
        if self.streams != "both":
            clips = {self.streams: clips[self.streams]}
        for name, clip in clips.items():
            check_clip(f"{name}_clip", clip, self.frames, self.image_size, STREAMS[name])
        if text is not None and (text.ndim != 2 or text.shape[1] != self.text_width):
            raise ValueError(
                f"text has shape {text.shape}, but text_width={self.text_width} needs "
                f"(texts, {self.text_width}); set text_width={text.shape[-1]}"
            )
        sizes = self.depth, self.width
        shape = self.frames, self.image_size
        seen = [
            R3D(*sizes, STREAMS[name], *shape, dtype=self.dtype, name=name)(clip, train=train)
            for name, clip in clips.items()
        ]
        x = nn.relu(Dense(self.features, self.dtype, name="fusion")(jnp.concatenate(seen, axis=-1)))
        self.sow("intermediates", "fused", x)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        project = Dense(self.projection, self.dtype, name="visual_projection")
        out = {"visual": unit(project(x))}
        # Its parameters are there however the network is initialised.
        project = Dense(self.projection, self.dtype, name="text_projection")
        if text is not None:
            out["text"] = unit(project(text))
        elif self.is_initializing():
            project(jnp.zeros((1, self.text_width)))
        return Dense(self.num_classes, self.dtype, name="head")(x), out
