"""The attribute network in PyTorch; its two streams have the names of torchvision's `r3d_18`.

Written in PyTorch's own way from the specification of the reconstruction: channels first,
`nn.Conv3d`, `nn.BatchNorm3d`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from htnet_jax.errors import Problems
from htnet_jax.models import attributes as flax_attributes
from htnet_jax.torch_bridge import convert, r3d
from htnet_jax.torch_bridge.convert import Bridge, Shape, kernel_and_bias

_DENSE = ("fusion", "head", "visual_projection", "text_projection")

TABLE = (
    *(rule for name in flax_attributes.STREAMS for rule in r3d.table(f"{name}/", f"{name}.")),
    *(rule for name in _DENSE for rule in kernel_and_bias(name, name, "i o -> o i")),
)
LAYERS = (
    *(pair for name in flax_attributes.STREAMS for pair in r3d.layers(f"{name}/", f"{name}.")),
    ("fused", "fused"),
    *((name, name) for name in _DENSE),
)
# Shapes say nothing of them.
ASSUMED = ("frames", "image_size", "dropout")


class AttributeNet(nn.Module):
    """The attribute network; the defaults are those of the reconstruction.

    Example:
        model = AttributeNet()
        logits, out = model(rgb_clip, flow_clip, text)  # (B, 3 or 2, 16, 112, 112), (M, 768)
        similarities = out["visual"] @ out["text"].T  # (B, M) cosines
    """

    def __init__(self, **attributes: Any) -> None:
        """Attributes and their defaults as of `htnet_jax.models.AttributeNet`.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        sizes = flax_attributes.AttributeNet(**attributes)
        sizes.check_sizes()
        self.streams = tuple(stream_names(sizes))
        for name in self.streams:
            stream = r3d.R3D(
                channels=flax_attributes.STREAMS[name],
                **{key: getattr(sizes, key) for key in ("width", "depth", "frames", "image_size")},
            )
            self.add_module(name, stream)
        seen = 8 * sizes.width * len(self.streams)
        self.fusion = nn.Linear(seen, sizes.features)
        self.fused = nn.ReLU()
        self.dropout = nn.Dropout(sizes.dropout)
        self.head = nn.Linear(sizes.features, sizes.num_classes)
        self.visual_projection = nn.Linear(sizes.features, sizes.projection)
        self.text_projection = nn.Linear(sizes.text_width, sizes.projection)

    def forward(
        self, rgb_clip: torch.Tensor, flow_clip: torch.Tensor, text: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Maps clips `(B, 3 or 2, T, H, W)` to `(B, num_classes)` logits and vectors of length 1.

        The vectors are `visual` `(B, projection)` and, for `text` `(M, text_width)`, `text`.

        Raises:
            ValueError: A clip has another shape.
        """
        clips = {"rgb": rgb_clip, "flow": flow_clip}
        seen = [self.get_submodule(name)(clips[name]) for name in self.streams]
        x = self.dropout(self.fused(self.fusion(torch.cat(seen, dim=1))))
        out = {"visual": nn.functional.normalize(self.visual_projection(x))}
        if text is not None:
            out["text"] = nn.functional.normalize(self.text_projection(text))
        return self.head(x), out


def stream_names(module: flax_attributes.AttributeNet) -> list[str]:
    """The streams that a network has, in their order."""
    return [name for name in flax_attributes.STREAMS if module.streams in ("both", name)]


def build(module: flax_attributes.AttributeNet, channels: int = 3) -> AttributeNet:
    """The PyTorch network with the sizes of a Flax one, in evaluation mode.

    `channels` are those of the apex frame's flow, which it does not see.
    """
    del channels
    return AttributeNet(**convert.attributes(module)).eval()


def sizes(shapes: Mapping[str, Shape], known: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The attributes of the Flax module that a `state_dict` belongs to.

    Args:
        shapes: Shape of every entry, by name. All must be names of the attribute network.
        known: Attributes known from elsewhere (a config, a flag). `frames`, `image_size` and
            `dropout` are taken from here, because shapes say nothing of them, else the defaults;
            any other attribute must agree with the shapes.
        channels: Channels of the apex frame's flow, which it does not see.

    Returns:
        All attributes but `dtype`.

    Raises:
        UserError: The shapes are no attribute network's, or contradict what is known; all reasons
            together.
    """
    del channels
    problems = Problems("the state_dict's shapes")
    found = _measured(shapes, problems)
    problems.raise_if_any("Convert a state_dict of AttributeNet, or give the right --config.")
    default = flax_attributes.AttributeNet()
    found |= {name: known.get(name, getattr(default, name)) for name in ASSUMED}
    convert.check_known(found, known, problems)
    problems.raise_if_any("Give the config that belongs to this file.")
    return found


def _measured(shapes: Mapping[str, Shape], problems: Problems) -> dict[str, Any]:
    """Every size that shapes determine."""
    convert.check_ranks(shapes, {f"{name}.weight": 2 for name in _DENSE}, problems)
    streams = [
        name
        for name in flax_attributes.STREAMS
        if any(entry.startswith(f"{name}.") for entry in shapes)
    ]
    if not streams:
        problems.add("rgb.stem.0.weight", "missing, and no other entry of a stream")
    found = [r3d.measured(shapes, f"{name}.", problems) for name in streams]
    if problems:
        return {}
    if any(one != found[0] for one in found):
        problems.add("rgb, flow", f"streams of different sizes: {found[0]} and {found[1]}")
    return {
        **found[0],
        "num_classes": shapes["head.weight"][0],
        "streams": "both" if len(streams) > 1 else streams[0],
        "features": shapes["fusion.weight"][0],
        "projection": shapes["visual_projection.weight"][0],
        "text_width": shapes["text_projection.weight"][1],
    }


def pretrained(
    state_dict: Mapping[str, torch.Tensor], module: flax_attributes.AttributeNet
) -> dict[str, Any]:
    """The streams of a Flax network from the weights of torchvision's `r3d_18`.

    Args:
        state_dict: By its names; the head `fc` is left out. The flow's stem has the mean of the
            kernel over RGB, once for each of its two channels.
        module: The Flax network.

    Returns:
        `{"params": {"rgb": ..., "flow": ...}, "batch_stats": ...}`, the streams that there are.

    Raises:
        UserError: The names or sizes are others.
    """
    expected = convert.expected_variables(module, 3)
    found: dict[str, Any] = {collection: {} for collection in expected}
    for name in stream_names(module):
        wanted = {collection: tree[name] for collection, tree in expected.items()}
        own = r3d.from_kinetics(state_dict, module, wanted, flax_attributes.STREAMS[name])
        for collection, tree in own.items():
            found[collection][name] = tree
    return found


def draw(
    module: flax_attributes.AttributeNet, count: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Random texts of clips, one for each set of units; the units of some clips are not known."""
    sets = rng.integers(-1, max(1, count // 2), count).astype(np.int32)
    texts = rng.normal(size=(1 + sets.max(initial=0), module.text_width)).astype(np.float32)
    return {"text": texts[sets], "au_set": sets}


BRIDGE = Bridge(TABLE, LAYERS, build, sizes, assumed=ASSUMED, pretrained=pretrained, draw=draw)
