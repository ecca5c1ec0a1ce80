"""MMNet in PyTorch, with the names and shapes of the release's `state_dict`.

Written in PyTorch's own way from the facts of the release (arXiv 2201.05297): channels first,
`nn.BatchNorm2d`, bilinear `interpolate`. What the release's class declares and never reads is not
there: `UNUSED` names it, `recreate` makes it anew for a file that its strict loading takes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from htnet_jax.errors import Problems
from htnet_jax.models import mmnet as flax_mmnet
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import (
    Bridge,
    Rule,
    Shape,
    batch_norm,
    conv_norm,
    gain_and_bias,
    kernel_and_bias,
)
from htnet_jax.torch_bridge.layers import Attention, DropPath

# The release's; the shapes of a file leave several possible.
RELEASE_HEADS = 4
# By depth and mlp_mult: the network for five classes, and the one for three.
RELEASE_DROP_PATH = {(2, 4): 0.0, (3, 2): 0.3}
# Of the vision transformer's layer norms, as usual there; a tenth of PyTorch's default.
VIT_EPS = 1e-6


_WIDE, _NARROW, _DENSE = "h w i o -> o i h w", "i o -> o i 1 1", "i o -> o i"
_LAYER, _BLOCK = "main_branch.layer{i}.0", "vit_pos.blocks.{i}"

TABLE = (
    *conv_norm("stem", "conv_act.0", "conv_act.1", _WIDE),
    *conv_norm("entry", "main_branch.conv1", "main_branch.bn1", _WIDE),
    *conv_norm("layer_{i}/first", f"{_LAYER}.conv1", f"{_LAYER}.bn1", _WIDE),
    *conv_norm("layer_{i}/second", f"{_LAYER}.conv2", f"{_LAYER}.bn2", _NARROW),
    *conv_norm("layer_{i}/skip", f"{_LAYER}.downsample.0", f"{_LAYER}.downsample.1", _NARROW),
    Rule("params/layer_{i}/attention/kernel", f"{_LAYER}.attn.0.weight", "c -> 1 c 1 1"),
    *batch_norm("layer_{i}/attention/norm", f"{_LAYER}.attn.1"),
    *kernel_and_bias("position/patch_embedding", "vit_pos.patch_embed.proj", _NARROW),
    Rule("params/position/pos_embed", "vit_pos.pos_embed", "t c -> 1 t c"),
    *gain_and_bias("position/block_{i}/attention_norm", f"{_BLOCK}.norm1"),
    *kernel_and_bias("position/block_{i}/attention/qkv", f"{_BLOCK}.attn.qkv", _DENSE),
    *kernel_and_bias("position/block_{i}/attention/out", f"{_BLOCK}.attn.proj", _DENSE),
    *gain_and_bias("position/block_{i}/mlp_norm", f"{_BLOCK}.norm2"),
    *kernel_and_bias("position/block_{i}/mlp/fc1", f"{_BLOCK}.mlp.fc1", _DENSE),
    *kernel_and_bias("position/block_{i}/mlp/fc2", f"{_BLOCK}.mlp.fc2", _DENSE),
    *gain_and_bias("position/norm", "vit_pos.norm"),
    *kernel_and_bias("head", "main_branch.fc", "h w c o -> o (c h w)"),
)

LAYERS = (
    ("grid", "resize"),
    ("position/patch_embedding", "vit_pos.patch_embed.proj"),
    ("position/positioned", "vit_pos.positioned"),
    ("position/block_{i}/attention_norm", f"{_BLOCK}.norm1"),
    ("position/block_{i}/attention/qkv", f"{_BLOCK}.attn.qkv"),
    ("position/block_{i}/attention/attended", f"{_BLOCK}.attn.attended"),
    ("position/block_{i}/attention", f"{_BLOCK}.attn"),
    ("position/block_{i}/attention_path", f"{_BLOCK}.attn_path"),
    ("position/block_{i}/mlp_norm", f"{_BLOCK}.norm2"),
    ("position/block_{i}/mlp/fc1", f"{_BLOCK}.mlp.fc1"),
    ("position/block_{i}/mlp/activated", f"{_BLOCK}.mlp.act"),
    ("position/block_{i}/mlp", f"{_BLOCK}.mlp"),
    ("position/block_{i}/mlp_path", f"{_BLOCK}.mlp_path"),
    ("position/block_{i}", _BLOCK),
    ("position/norm", "vit_pos.norm"),
    ("stem/conv", "conv_act.0"),
    ("stem/norm", "conv_act.1"),
    ("entry/conv", "main_branch.conv1"),
    ("entry/norm", "main_branch.bn1"),
    ("layer_{i}/first/conv", f"{_LAYER}.conv1"),
    ("layer_{i}/first/norm", f"{_LAYER}.bn1"),
    ("layer_{i}/second/conv", f"{_LAYER}.conv2"),
    ("layer_{i}/second/norm", f"{_LAYER}.bn2"),
    ("layer_{i}/skip/conv", f"{_LAYER}.downsample.0"),
    ("layer_{i}/skip/norm", f"{_LAYER}.downsample.1"),
    ("layer_{i}/joined", f"{_LAYER}.joined"),
    ("layer_{i}/attention/joined", f"{_LAYER}.attn.0"),
    ("layer_{i}/attention/norm", f"{_LAYER}.attn.1"),
    ("layer_{i}/map", f"{_LAYER}.map"),
    ("layer_{i}/weighted", f"{_LAYER}.weighted"),
    ("calibrated", "main_branch.calibrated"),
    ("head", "main_branch.fc"),
)

# The release's class declares these; its forward pass reads none of them. Its two scripts name one
# of them differently.
UNUSED = (
    "timeembed",
    "pos.0.weight",
    *(f"pos.1.{name}" for name in ("weight", "bias", "running_mean", "running_var")),
    "pos.1.num_batches_tracked",
    "vit_pos.cls_token",
    "vit_pos.head.weight",
    "vit_pos.head.bias",
    "vit_pos.to_Mask.0.weight",
    "vit_pos.to_Mask.0.bias",
    "head.1.weight",
    "head1.1.weight",
)


def recreate(shapes: Mapping[str, Shape]) -> dict[str, torch.Tensor]:
    """What the release's class declares and never reads, so that its strict loading takes a file.

    Zeros, and ones where batch normalisation starts with ones: no value of them matters. The last
    one is called `head1` by the 3-class script, which has three vision blocks, and `head` by the
    5-class script.

    Args:
        shapes: Of the network's entries, by name.
    """
    width = shapes["vit_pos.pos_embed"][-1]
    classes = shapes["main_branch.fc.bias"][0]
    head = "head1" if "vit_pos.blocks.2.norm1.weight" in shapes else "head"
    return {
        # These two have the same shape at any size of the network.
        "timeembed": torch.zeros(1, 4, 111, 111),
        f"{head}.1.weight": torch.zeros(38, 12544),
        "pos.0.weight": torch.zeros(width, 3, 1, 1),
        "pos.1.weight": torch.ones(width),
        "pos.1.bias": torch.zeros(width),
        "pos.1.running_mean": torch.zeros(width),
        "pos.1.running_var": torch.ones(width),
        "pos.1.num_batches_tracked": torch.tensor(0),
        "vit_pos.cls_token": torch.zeros(1, 1, width),
        "vit_pos.head.weight": torch.zeros(classes, width),
        "vit_pos.head.bias": torch.zeros(classes),
        "vit_pos.to_Mask.0.weight": torch.zeros(1, width),
        "vit_pos.to_Mask.0.bias": torch.zeros(1),
    }


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A convolution of the main branch."""
    layer = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class MeanAndMaximum(nn.Module):
    """Mean and maximum over the channels, in this order."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, 2, H, W)`."""
        return torch.cat([x.mean(dim=1, keepdim=True), x.max(dim=1, keepdim=True).values], dim=1)


class ContinuousAttentionBlock(nn.Module):
    """A residual block weighted by a map of attention, which it multiplies on the previous one."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _conv(outputs, outputs, 1)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)
            )
        self.statistics = MeanAndMaximum()
        self.attn = nn.Sequential(_conv(2, 1, 1), nn.BatchNorm2d(1))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        # For the parity check: they hand on what they are given.
        self.joined, self.map, self.weighted = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(
        self, x: torch.Tensor, attention: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Maps `(B, C, H, W)` and the previous map `(B, 1, H, W)` or None to the next two."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        skip = x if self.downsample is None else self.downsample(x)
        out = self.joined(torch.relu(out + skip))
        own = torch.sigmoid(self.attn(self.statistics(out)))
        if attention is not None:
            own = self.pool(attention) * own
        own = self.map(own)
        return self.weighted(out * own), own


class MainBranch(nn.Module):
    """Four blocks after a second convolution; also holds the classifier of the summed branches."""

    def __init__(self, stem: int, widths: Sequence[int], cells: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = _conv(stem, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        narrow = widths[0]
        for number, width in enumerate(widths, 1):
            block = ContinuousAttentionBlock(narrow, width, 1 if number == 1 else 2)
            self.add_module(f"layer{number}", nn.Sequential(block))
            narrow = width
        self.calibrated = nn.Identity()
        self.fc = nn.Linear(narrow * cells, num_classes)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Maps the stem's `(B, C, H, W)` and the other branch's map to logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        attention = None
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x, attention = layer[0](x, attention)
        return self.fc(torch.flatten(self.calibrated(x + position), 1))


class SelfAttention(Attention):
    """Self-attention among all tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(heads)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, tokens, C)` to the same shape."""
        return self.proj(self.attend(self.qkv(x)))


class Mlp(nn.Module):
    """Linear, exact GELU, linear."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(..., C)` to the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class ViTBlock(nn.Module):
    """A pre-norm block with drop path."""

    def __init__(self, width: int, heads: int, mlp_mult: int, rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=VIT_EPS)
        self.attn = SelfAttention(width, heads)
        self.attn_path = DropPath(rate)
        self.norm2 = nn.LayerNorm(width, eps=VIT_EPS)
        self.mlp = Mlp(width, width * mlp_mult)
        self.mlp_path = DropPath(rate)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, tokens, C)` to the same shape."""
        x = x + self.attn_path(self.attn(self.norm1(x)))
        return x + self.mlp_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """A linear layer for every cell of the grid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, 3, H, W)` to `(B, H * W, width)`."""
        return self.proj(x).flatten(2).transpose(1, 2)


class PositionCalibration(nn.Module):
    """A vision transformer without class token over the coarse grid of the onset frame."""

    def __init__(
        self, width: int, side: int, depth: int, heads: int, mlp_mult: int, drop_path: float
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbedding(width)
        self.pos_embed = nn.Parameter(torch.empty(1, side**2, width))
        self.positioned = nn.Identity()
        rates = np.linspace(0, drop_path, depth).tolist()
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, mlp_mult, rate) for rate in rates))
        self.norm = nn.LayerNorm(width, eps=VIT_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """Maps `(B, 3, H, W)` to `(B, width, H, W)`."""
        x = self.positioned(self.patch_embed(grid) + self.pos_embed)
        x = self.norm(self.blocks(x))
        return x.transpose(1, 2).reshape(len(x), -1, *grid.shape[2:])


class Resize(nn.Module):
    """Bilinear, without antialiasing."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, C, side, side)`."""
        return nn.functional.interpolate(
            x, (self.side, self.side), mode="bilinear", align_corners=False
        )


class MMNet(nn.Module):
    """MMNet; the defaults are the published 5-class network.

    Example:
        model = MMNet()
        logits = model(onset, apex)  # (B, 3, 224, 224) each, ImageNet-normalised -> (B, 5)
    """

    def __init__(self, **attributes: Any) -> None:
        """Attributes, their defaults and initial values as of `htnet_jax.models.MMNet`.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        sizes = flax_mmnet.MMNet(**attributes)
        sizes.check_sizes()
        self.input_shape = (3, sizes.image_size, sizes.image_size)
        side, width = sizes.image_size // flax_mmnet.CELL, sizes.widths[-1]
        self.conv_act = nn.Sequential(
            nn.Conv2d(3, sizes.stem, 3, 2, 1, bias=False), nn.BatchNorm2d(sizes.stem), nn.ReLU()
        )
        self.resize = Resize(side)
        self.vit_pos = PositionCalibration(
            width, side, sizes.depth, sizes.heads, sizes.mlp_mult, sizes.drop_path
        )
        self.main_branch = MainBranch(sizes.stem, sizes.widths, side**2, sizes.num_classes)

    def forward(self, onset: torch.Tensor, apex: torch.Tensor) -> torch.Tensor:
        """Maps two frames `(B, 3, image_size, image_size)` to `(B, num_classes)` logits.

        Raises:
            ValueError: A frame has another shape; `x.permute(0, 3, 1, 2)` turns a Flax batch.
        """
        for name, x in (("onset", onset), ("apex", apex)):
            if x.shape[1:] != self.input_shape:
                raise ValueError(
                    f"{name} has shape {tuple(x.shape)}, expected (B, *{self.input_shape})"
                )
        position = self.vit_pos(self.resize(onset))
        return self.main_branch(self.conv_act(apex - onset), position)


def build(module: flax_mmnet.MMNet, channels: int = 3) -> MMNet:
    """The PyTorch network with the sizes of a Flax one, in evaluation mode.

    `channels` are those of the flow, which it does not see.
    """
    del channels
    return MMNet(**convert.attributes(module)).eval()


def sizes(shapes: Mapping[str, Shape], known: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The attributes of the Flax module that a `state_dict` belongs to.

    Args:
        shapes: Shape of every entry, by name. All must be names of MMNet.
        known: Attributes known from elsewhere (a config, a flag). `heads` and `drop_path` are taken
            from here, because shapes say nothing of them, else the release's (of sizes that no
            release has, no drop path); any other attribute must agree with the shapes.
        channels: Channels of the flow, which it does not see.

    Returns:
        `num_classes`, `image_size`, `stem`, `widths`, `depth`, `heads`, `mlp_mult`, `drop_path`.

    Raises:
        UserError: The shapes are no MMNet's, or contradict what is known; all reasons together.
    """
    del channels
    problems = Problems("the state_dict's shapes")
    found = _measured(shapes, problems)
    problems.raise_if_any("Convert a state_dict of MMNet, or give the right --config.")
    found["heads"] = int(known.get("heads", RELEASE_HEADS))
    released = RELEASE_DROP_PATH.get((found["depth"], found["mlp_mult"]), 0.0)
    found["drop_path"] = float(known.get("drop_path", released))
    width = found["widths"][-1]
    if found["heads"] < 1 or width % found["heads"]:
        problems.add(
            "vit_pos.blocks.*.attn.qkv.weight",
            f"heads={found['heads']} is impossible with a width of {width}, which it must divide",
        )
    convert.check_known(found, known, problems)
    problems.raise_if_any("Give the config (or --heads) that belongs to this file.")
    return found


def _measured(shapes: Mapping[str, Shape], problems: Problems) -> dict[str, Any]:
    """Every size that shapes determine."""
    layers = [f"main_branch.layer{number}.0.conv1.weight" for number in (1, 2, 3, 4)]
    ranks = {
        "conv_act.0.weight": 4,
        **dict.fromkeys(layers, 4),
        "vit_pos.pos_embed": 3,
        "vit_pos.blocks.0.mlp.fc1.weight": 2,
        "main_branch.fc.weight": 2,
    }
    convert.check_ranks(shapes, ranks, problems)
    if problems:
        return {}
    cells, width = shapes["vit_pos.pos_embed"][1:]
    side = math.isqrt(cells)
    if side**2 != cells:
        problems.add("vit_pos.pos_embed", f"{cells} positions are no square grid")
    return {
        "num_classes": shapes["main_branch.fc.weight"][0],
        "image_size": flax_mmnet.CELL * side,
        "stem": shapes["conv_act.0.weight"][0],
        "widths": tuple(shapes[name][0] for name in layers),
        # Any entry counts, so that a missing one is reported as missing later.
        "depth": convert.count_numbered(shapes, r"vit_pos\.blocks\.(\d+)\."),
        "mlp_mult": max(1, shapes["vit_pos.blocks.0.mlp.fc1.weight"][0] // width),
    }


BRIDGE = Bridge(
    TABLE,
    LAYERS,
    build,
    sizes,
    assumed=("heads", "drop_path"),
    unused=UNUSED,
    recreate=recreate,
    # The same number added to all keys shifts all scores alike: the key's bias has no gradient.
    pieces=(("params/position/block_{i}/attention/qkv/bias", ("query", "key", "value")),),
)
