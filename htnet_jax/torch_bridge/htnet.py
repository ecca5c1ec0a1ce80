"""HTNet in PyTorch, with the names and shapes of the release's `state_dict`.

Files of the paper's release (arXiv 2307.14637) load into `HTNet` with `strict=True`, and its
`state_dict` loads into the release. The same function as `htnet_jax.models.HTNet`, written in
PyTorch's own way: channels first, 1x1 convolutions for dense layers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from htnet_jax.errors import Problems
from htnet_jax.models import htnet as flax_htnet
from htnet_jax.torch_bridge.tables import Bridge, Rule, Shape

# The release's heads at the bottom level; the shapes of a file leave several possible.
RELEASE_HEADS = 3

TABLE = (
    Rule("params/patch_embedding/kernel", "to_patch_embedding.1.weight", "i o -> o i 1 1"),
    Rule("params/patch_embedding/bias", "to_patch_embedding.1.bias", "o -> o"),
    Rule("params/level_{i}/pos_emb", "layers.{i}.0.pos_emb", "t -> t"),
    Rule(
        "params/level_{i}/block_{j}/attention_norm/scale",
        "layers.{i}.0.layers.{j}.0.norm.g",
        "c -> 1 c 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/attention_norm/bias",
        "layers.{i}.0.layers.{j}.0.norm.b",
        "c -> 1 c 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/attention/qkv",
        "layers.{i}.0.layers.{j}.0.fn.to_qkv.weight",
        "i o -> o i 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/attention/out/kernel",
        "layers.{i}.0.layers.{j}.0.fn.to_out.0.weight",
        "i o -> o i 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/attention/out/bias",
        "layers.{i}.0.layers.{j}.0.fn.to_out.0.bias",
        "o -> o",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp_norm/scale",
        "layers.{i}.0.layers.{j}.1.norm.g",
        "c -> 1 c 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp_norm/bias",
        "layers.{i}.0.layers.{j}.1.norm.b",
        "c -> 1 c 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp/fc1/kernel",
        "layers.{i}.0.layers.{j}.1.fn.net.0.weight",
        "i o -> o i 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp/fc1/bias",
        "layers.{i}.0.layers.{j}.1.fn.net.0.bias",
        "o -> o",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp/fc2/kernel",
        "layers.{i}.0.layers.{j}.1.fn.net.3.weight",
        "i o -> o i 1 1",
    ),
    Rule(
        "params/level_{i}/block_{j}/mlp/fc2/bias",
        "layers.{i}.0.layers.{j}.1.fn.net.3.bias",
        "o -> o",
    ),
    Rule("params/aggregate_{i}/conv/kernel", "layers.{i}.1.0.weight", "h w i o -> o i h w"),
    Rule("params/aggregate_{i}/conv/bias", "layers.{i}.1.0.bias", "o -> o"),
    Rule("params/aggregate_{i}/norm/scale", "layers.{i}.1.1.g", "c -> 1 c 1 1"),
    Rule("params/aggregate_{i}/norm/bias", "layers.{i}.1.1.b", "c -> 1 c 1 1"),
    Rule("params/head_norm/scale", "mlp_head.0.g", "c -> 1 c 1 1"),
    Rule("params/head_norm/bias", "mlp_head.0.b", "c -> 1 c 1 1"),
    Rule("params/head/kernel", "mlp_head.2.weight", "i o -> o i"),
    Rule("params/head/bias", "mlp_head.2.bias", "o -> o"),
)

LAYERS = (
    ("patch_embedding", "to_patch_embedding"),
    ("level_{i}/positioned", "layers.{i}.0.positioned"),
    ("level_{i}/block_{j}/attention_norm", "layers.{i}.0.layers.{j}.0.norm"),
    ("level_{i}/block_{j}/attention/attended", "layers.{i}.0.layers.{j}.0.fn.attended"),
    ("level_{i}/block_{j}/attention", "layers.{i}.0.layers.{j}.0.fn"),
    ("level_{i}/block_{j}/mlp_norm", "layers.{i}.0.layers.{j}.1.norm"),
    ("level_{i}/block_{j}/mlp/fc1", "layers.{i}.0.layers.{j}.1.fn.net.0"),
    ("level_{i}/block_{j}/mlp/activated", "layers.{i}.0.layers.{j}.1.fn.net.1"),
    ("level_{i}/block_{j}/mlp", "layers.{i}.0.layers.{j}.1.fn"),
    ("level_{i}/block_{j}", "layers.{i}.0.layers.{j}"),
    ("aggregate_{i}/conv", "layers.{i}.1.0"),
    ("aggregate_{i}/norm", "layers.{i}.1.1"),
    ("aggregate_{i}", "layers.{i}.1.2"),
    ("head_norm", "mlp_head.0"),
    ("head", "mlp_head.2"),
)


class Patchify(nn.Module):
    """Cuts pictures into square patches, each ordered (row, column, channel)."""

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


class LocalAttention(nn.Module):
    """Multi-head self-attention among all positions of a map; inner width `heads * (C // heads)`.

    `to_qkv` is packed q, k, v, each ordered (head, channel).
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = channels // heads
        inner = self.head_width * heads
        self.to_qkv = nn.Conv2d(channels, 3 * inner, 1, bias=False)
        self.dropout = nn.Dropout(dropout)
        # Gives the parity check the heads' joined output.
        self.attended = nn.Identity()
        self.to_out = nn.Sequential(nn.Conv2d(inner, channels, 1), nn.Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, H, W)` to the same shape."""
        batch, _, height, width = x.shape
        qkv = self.to_qkv(x).reshape(batch, 3, self.heads, self.head_width, height * width)
        query, key, value = qkv.unbind(1)
        scores = query.transpose(-1, -2) @ key * self.head_width**-0.5
        weights = self.dropout(scores.softmax(-1))
        out = value @ weights.transpose(-1, -2)
        return self.to_out(self.attended(out.reshape(batch, -1, height, width)))


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

    def __init__(
        self,
        *,
        num_classes: int = 3,
        image_size: int = 28,
        patch_size: int = 7,
        dim: int = 256,
        heads: int = RELEASE_HEADS,
        num_hierarchies: int = 3,
        block_repeats: Sequence[int] = (2, 2, 10),
        mlp_mult: int = 4,
        dropout: float = 0.0,
        channels: int = 3,
    ) -> None:
        """Attributes as in `htnet_jax.models.HTNet`; `channels` are those of the input.

        Initialised as PyTorch's layers are, with N(0, 1) for the position scalars.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        flax_htnet.HTNet(
            num_classes=num_classes,
            image_size=image_size,
            patch_size=patch_size,
            dim=dim,
            heads=heads,
            num_hierarchies=num_hierarchies,
            block_repeats=tuple(block_repeats),
            mlp_mult=mlp_mult,
            dropout=dropout,
        ).check_sizes()
        self.num_hierarchies = num_hierarchies
        self.input_shape = (channels, image_size, image_size)
        self.to_patch_embedding = nn.Sequential(
            Patchify(patch_size), nn.Conv2d(patch_size**2 * channels, dim, 1)
        )
        tokens = (image_size // patch_size // 2 ** (num_hierarchies - 1)) ** 2
        self.layers = nn.ModuleList()
        for level, repeats in enumerate(block_repeats):
            width = dim * 2**level
            last = level == num_hierarchies - 1
            transformer = Transformer(width, tokens, repeats, heads * 2**level, mlp_mult, dropout)
            aggregate = nn.Identity() if last else _aggregate(width, 2 * width)
            self.layers.append(nn.ModuleList([transformer, aggregate]))
        self.mlp_head = nn.Sequential(
            LayerNorm(width), MeanOverPositions(), nn.Linear(width, num_classes)
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
    names = ("num_classes", "image_size", "patch_size", "dim", "heads", "num_hierarchies")
    attributes = {name: getattr(module, name) for name in (*names, "mlp_mult", "dropout")}
    return HTNet(**attributes, block_repeats=tuple(module.block_repeats), channels=channels).eval()


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
    for name, value in found.items():
        if name in known and _plain(known[name]) != _plain(value):
            problems.add(name, f"{value} in the file, {known[name]} expected")
    problems.raise_if_any("Give the config (or --heads) that belongs to this file.")
    return found


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _measured(shapes: Mapping[str, Shape], channels: int, problems: Problems) -> dict[str, Any]:
    """Every size that shapes determine, and the rows of the first `to_qkv` as `qkv`."""
    prefix = "layers.{}.0.layers.{}.{}"
    # Any entry counts, so that one that is missing is called missing later on.
    levels = 1 + max((int(i) for i in _numbers(shapes, r"layers\.(\d+)\.")), default=-1)
    repeats = [
        1 + max((int(j) for j in _numbers(shapes, rf"layers\.{i}\.0\.layers\.(\d+)\.")), default=-1)
        for i in range(levels)
    ]
    needed = {
        "to_patch_embedding.1.weight": 4,
        "layers.0.0.pos_emb": 1,
        "mlp_head.2.weight": 2,
    }
    first = next((level for level, count in enumerate(repeats) if count), None)
    if first is not None:
        needed[prefix.format(first, 0, "0.fn.to_qkv.weight")] = 4
        needed[prefix.format(first, 0, "1.fn.net.0.weight")] = 4
    for name, rank in needed.items():
        if len(shapes.get(name, ())) != rank:
            problems.add(name, f"shape {shapes.get(name, 'missing')}, expected {rank} axes")
        elif 0 in shapes[name]:
            problems.add(name, f"shape {shapes[name]}: an axis of length 0")
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
        "block_repeats": tuple(repeats),
        "qkv": None,
    }
    if first is not None:
        qkv = shapes[prefix.format(first, 0, "0.fn.to_qkv.weight")]
        hidden = shapes[prefix.format(first, 0, "1.fn.net.0.weight")]
        found["qkv"] = qkv[0] // 2**first
        found["mlp_mult"] = max(1, hidden[0] // (dim * 2**first))
    return found


def _numbers(shapes: Mapping[str, Shape], pattern: str) -> Iterator[str]:
    for name in shapes:
        if found := re.match(pattern, name):
            yield found[1]


BRIDGE = Bridge(TABLE, LAYERS, build, sizes, assumed=("heads",))
