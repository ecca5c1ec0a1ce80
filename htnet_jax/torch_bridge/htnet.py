"""HTNet in PyTorch, with the names and shapes of the release's `state_dict`.

Files of the paper's release (arXiv 2307.14637) load into `HTNet` with `strict=True`, and its
`state_dict` loads into the release. The same function as `htnet_jax.models.HTNet`, written in
PyTorch's own way: channels first, 1x1 convolutions for dense layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from htnet_jax.errors import Problems
from htnet_jax.models import htnet as flax_htnet
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Bridge, Rule, Shape, kernel_and_bias
from htnet_jax.torch_bridge.layers import Attention

# The release's heads at the bottom level; the shapes of a file leave several possible.
RELEASE_HEADS = 3

_DENSE = "i o -> o i 1 1"
_OURS, _THEIRS = "level_{i}/block_{j}", "layers.{i}.0.layers.{j}"


def _norm(flax: str, theirs: str) -> tuple[Rule, Rule]:
    return convert.gain_and_bias(flax, theirs, ("g", "b"), "c -> 1 c 1 1")


TABLE = (
    *kernel_and_bias("patch_embedding", "to_patch_embedding.1", _DENSE),
    Rule("params/level_{i}/pos_emb", "layers.{i}.0.pos_emb", "t -> t"),
    *_norm(f"{_OURS}/attention_norm", f"{_THEIRS}.0.norm"),
    Rule(f"params/{_OURS}/attention/qkv", f"{_THEIRS}.0.fn.to_qkv.weight", _DENSE),
    *kernel_and_bias(f"{_OURS}/attention/out", f"{_THEIRS}.0.fn.to_out.0", _DENSE),
    *_norm(f"{_OURS}/mlp_norm", f"{_THEIRS}.1.norm"),
    *kernel_and_bias(f"{_OURS}/mlp/fc1", f"{_THEIRS}.1.fn.net.0", _DENSE),
    *kernel_and_bias(f"{_OURS}/mlp/fc2", f"{_THEIRS}.1.fn.net.3", _DENSE),
    *kernel_and_bias("aggregate_{i}/conv", "layers.{i}.1.0", "h w i o -> o i h w"),
    *_norm("aggregate_{i}/norm", "layers.{i}.1.1"),
    *_norm("head_norm", "mlp_head.0"),
    *kernel_and_bias("head", "mlp_head.2", "i o -> o i"),
)

LAYERS = (
    ("patch_embedding", "to_patch_embedding"),
    ("level_{i}/positioned", "layers.{i}.0.positioned"),
    (f"{_OURS}/attention_norm", f"{_THEIRS}.0.norm"),
    (f"{_OURS}/attention/attended", f"{_THEIRS}.0.fn.attended"),
    (f"{_OURS}/attention", f"{_THEIRS}.0.fn"),
    (f"{_OURS}/mlp_norm", f"{_THEIRS}.1.norm"),
    (f"{_OURS}/mlp/fc1", f"{_THEIRS}.1.fn.net.0"),
    (f"{_OURS}/mlp/activated", f"{_THEIRS}.1.fn.net.1"),
    (f"{_OURS}/mlp", f"{_THEIRS}.1.fn"),
    (_OURS, _THEIRS),
    ("aggregate_{i}/conv", "layers.{i}.1.0"),
    ("aggregate_{i}/norm", "layers.{i}.1.1"),
    ("aggregate_{i}", "layers.{i}.1.2"),
    ("head_norm", "mlp_head.0"),
    ("head", "mlp_head.2"),
)


class Patchify(nn.Module):
    """Cuts images into square patches, each ordered (row, column, channel)."""

    def __init__(self, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to `(B, patch_size**2 * C, H / patch_size, W / patch_size)`."""
        size = self.patch_size
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        x = x.permute(0, 3, 5, 1, 2, 4)
        return x.reshape(batch, size * size * channels, height // size, width // size)


class LayerNorm(nn.Module):
    """LN over channels: biased variance, eps under the root. Parameters `g`, `b` `(1, C, 1, 1)`."""

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.b = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.g + self.b


class PreNorm(nn.Module):
    """`fn(norm(x))`."""

    def __init__(self, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = LayerNorm(channels)
        self.fn = fn

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        return self.fn(self.norm(x))


class LocalAttention(Attention):
    """Self-attention among all positions of a map; inner width `heads * (C // heads)`."""

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(heads, dropout)
        inner = heads * (channels // heads)
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        out = self.attend(self.to_qkv(x).flatten(2).transpose(1, 2))
        return self.to_out(out.transpose(1, 2).reshape(len(x), -1, *x.shape[2:]))


class FeedForward(nn.Module):
    """1x1 convolution, exact (erf) GELU, dropout, 1x1 convolution, dropout."""

    def __init__(self, channels: int, mult: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(channels, channels * mult, 1),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Conv2d(channels * mult, channels, 1),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        return self.net(x)


class TransformerBlock(nn.ModuleList):
    """`x + attention(x)`, then `x + feed_forward(x)`; a list because the names are `0` and `1`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        attention, feed_forward = self
        x = x + attention(x)
        return x + feed_forward(x)


class Transformer(nn.Module):
    """One level on blocks that have joined the batch: position scalars, then the blocks."""

    def __init__(
        self, channels: int, tokens: int, repeats: int, heads: int, mult: int, dropout: float
    ) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(torch.randn(tokens))
        # Gives the parity check the tokens with their position scalars.
        self.positioned = nn.Identity()
        self.layers = nn.ModuleList(
            TransformerBlock(
                [
                    PreNorm(channels, LocalAttention(channels, heads, dropout)),
                    PreNorm(channels, FeedForward(channels, mult, dropout)),
                ]
            )
            for _ in range(repeats)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B * blocks**2, C, h, w)` to the same shape."""
        x = self.positioned(x + self.pos_emb.reshape(1, 1, *x.shape[2:]))
        for layer in self.layers:
            x = layer(x)
        return x


def _aggregate(channels: int, features: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, features, 3, padding=1),
        LayerNorm(features),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


class MeanOverPositions(nn.Module):
    """Maps `(B, C, H, W)` to `(B, C)`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The mean over H and W."""
        return x.mean(dim=(2, 3))


def blockify(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """`(B, C, H, W)` -> `(B * blocks**2, C, H / blocks, W / blocks)`, blocks in row-major order."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, blocks, height // blocks, blocks, width // blocks)
    x = x.permute(0, 2, 4, 1, 3, 5)
    return x.reshape(batch * blocks**2, channels, height // blocks, width // blocks)


def unblockify(x: torch.Tensor, blocks: int) -> torch.Tensor:
    """The inverse of `blockify`."""
    count, channels, height, width = x.shape
    x = x.reshape(count // blocks**2, blocks, blocks, channels, height, width)
    x = x.permute(0, 3, 1, 4, 2, 5)
    return x.reshape(count // blocks**2, channels, blocks * height, blocks * width)


class HTNet(nn.Module):
    """HTNet; the defaults are the published configuration.

    Example:
        model = HTNet()
        model.load_state_dict(torch.load("release.pth", weights_only=True))
        logits = model(x)  # x: (B, 3, 28, 28), raw 0..255 -> (B, 3)
    """

    def __init__(self, *, channels: int = 3, **attributes: Any) -> None:
        """Initialised as PyTorch's layers are, with N(0, 1) for the position scalars.

        Args:
            channels: Those of the input.
            attributes: As of `htnet_jax.models.HTNet`, with its defaults.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        sizes = flax_htnet.HTNet(**attributes)
        sizes.check_sizes()
        dim, dropout = sizes.dim, sizes.dropout
        self.num_hierarchies = sizes.num_hierarchies
        self.input_shape = (channels, sizes.image_size, sizes.image_size)
        self.to_patch_embedding = nn.Sequential(
            Patchify(sizes.patch_size), nn.Conv2d(sizes.patch_size**2 * channels, dim, 1)
        )
        side = sizes.image_size // sizes.patch_size // 2 ** (sizes.num_hierarchies - 1)
        self.layers = nn.ModuleList()
        for level, repeats in enumerate(sizes.block_repeats):
            width, heads = dim * 2**level, sizes.heads * 2**level
            last = level == sizes.num_hierarchies - 1
            transformer = Transformer(width, side**2, repeats, heads, sizes.mlp_mult, dropout)
            aggregate = nn.Identity() if last else _aggregate(width, 2 * width)
            self.layers.append(nn.ModuleList([transformer, aggregate]))
        self.mlp_head = nn.Sequential(
            LayerNorm(width), MeanOverPositions(), nn.Linear(width, sizes.num_classes)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, channels, image_size, image_size)` to `(B, num_classes)` logits.

        Raises:
            ValueError: x has another shape; a Flax batch is turned by `x.permute(0, 3, 1, 2)`.
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, *{self.input_shape})")
        x = self.to_patch_embedding(x)
        for level, (transformer, aggregate) in enumerate(self.layers):
            blocks = 2 ** (self.num_hierarchies - 1 - level)
            x = aggregate(unblockify(transformer(blockify(x, blocks)), blocks))
        return self.mlp_head(x)


def build(module: flax_htnet.HTNet, channels: int = 3) -> HTNet:
    """The PyTorch network with the sizes of a Flax one, in evaluation mode."""
    return HTNet(channels=channels, **convert.attributes(module)).eval()


def sizes(shapes: Mapping[str, Shape], known: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """The attributes of the Flax module that a `state_dict` belongs to.

    Args:
        shapes: Shape of every entry, by name. All must be names of HTNet.
        known: Attributes known from elsewhere (a config, a flag). `heads` is taken from here, else
            3 as in the release, because shapes leave several values possible; any other attribute
            must agree with the shapes.
        channels: Channels of the network's input; with the patch vector's length they give
            `patch_size`.

    Returns:
        `num_classes`, `image_size`, `patch_size`, `dim`, `heads`, `num_hierarchies`,
        `block_repeats`, `mlp_mult`.

    Raises:
        UserError: The shapes are no HTNet's, or contradict what is known; all reasons together.
    """
    problems = Problems("the state_dict's shapes")
    found = _measured(shapes, channels, problems)
    problems.raise_if_any("Convert a state_dict of HTNet, or give the right --config.")
    qkv, width = found.pop("qkv"), found["dim"]
    found["heads"] = int(known.get("heads", RELEASE_HEADS))
    possible = [h for h in range(1, width + 1) if qkv in (None, 3 * h * (width // h))]
    if found["heads"] not in possible:
        values = ", ".join(map(str, possible)) or "none"
        problems.add(
            "layers.*.to_qkv.weight",
            f"heads={found['heads']} is impossible with dim={width}; possible: {values}",
        )
    convert.check_known(found, known, problems)
    problems.raise_if_any("Give the config (or --heads) that belongs to this file.")
    return found


def _measured(shapes: Mapping[str, Shape], channels: int, problems: Problems) -> dict[str, Any]:
    """Every size that shapes determine, and the rows of the first `to_qkv` as `qkv`."""
    # Any entry counts, so that a missing one is reported as missing later.
    levels = convert.count_numbered(shapes, r"layers\.(\d+)\.")
    repeats = tuple(
        convert.count_numbered(shapes, rf"layers\.{level}\.0\.layers\.(\d+)\.")
        for level in range(levels)
    )
    ranks = {"to_patch_embedding.1.weight": 4, "layers.0.0.pos_emb": 1, "mlp_head.2.weight": 2}
    first = next((level for level, count in enumerate(repeats) if count), None)
    qkv = f"layers.{first}.0.layers.0.0.fn.to_qkv.weight"
    hidden = f"layers.{first}.0.layers.0.1.fn.net.0.weight"
    convert.check_ranks(shapes, ranks | ({} if first is None else {qkv: 4, hidden: 4}), problems)
    if problems:
        return {}
    dim, patch_vector = shapes["to_patch_embedding.1.weight"][:2]
    patch_size = math.isqrt(patch_vector // channels)
    if patch_size**2 * channels != patch_vector:
        problems.add(
            "to_patch_embedding.1.weight",
            f"a patch vector of {patch_vector} is no square of {channels} channels",
        )
    (tokens,) = shapes["layers.0.0.pos_emb"]
    side = math.isqrt(tokens)
    if side**2 != tokens:
        problems.add("layers.0.0.pos_emb", f"{tokens} positions are no square block")
    found = {
        "num_classes": shapes["mlp_head.2.weight"][0],
        "image_size": patch_size * side * 2 ** (levels - 1),
        "patch_size": patch_size,
        "dim": dim,
        "num_hierarchies": levels,
        "block_repeats": repeats,
        "qkv": None,
    }
    if first is not None:
        found["qkv"] = shapes[qkv][0] // 2**first
        found["mlp_mult"] = max(1, shapes[hidden][0] // (dim * 2**first))
    return found


BRIDGE = Bridge(TABLE, LAYERS, build, sizes, assumed=("heads",))
