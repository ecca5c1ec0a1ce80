"""The useful arithmetic and the parameters of a network: the floors that measured times meet.

Only products that can change the result are counted, so a program that computes more (products by
zero padding, q and k of a single token) shows a lower rate, not a higher one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from htnet_jax.models.htnet import HTNet
from htnet_jax.models.mmnet import CELL, MMNet


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a network costs; FLOPs are those of one clip, a multiply-add counted as 2.

    Element by element work (normalisation, GELU, bias, pooling, the optimizer) is not counted.

    Attributes:
        forward_flops: Of the matrix products of a forward pass.
        embedding_flops: Of the products among them that read the pictures: those need no gradient.
        parameters: Numbers that are trained.
        idle_parameters: Those among them that cannot change the result and are never read.
    """

    forward_flops: int
    embedding_flops: int
    parameters: int
    idle_parameters: int

    @property
    def step_flops(self) -> int:
        """FLOPs of a forward and backward pass: a product has two gradients, the first only one."""
        return 3 * self.forward_flops - self.embedding_flops

    def forward_bytes(self, bytes_each: int = 4) -> int:
        """Bytes of the parameters that a forward pass reads, each once, at `bytes_each` bytes."""
        return (self.parameters - self.idle_parameters) * bytes_each


def convolution_taps(side: int, stride: int = 1) -> int:
    """Products that a 3x3 convolution with padding 1 takes on a `side` x `side` map, by channels.

    Taps on the padding are left out: 16 of 36 on a 2x2 map, 100 of 144 on a 4x4 map.

    Args:
        side: Of the map that the convolution reads.
        stride: 1, or 2 on an even side, where only the first window of a row meets the padding.
    """
    if stride == 2:
        return (3 * (side // 2) - 1) ** 2
    return (3 * side - 2) ** 2


def htnet_costs(module: HTNet, channels: int = 3) -> Costs:
    """What an HTNet costs.

    Args:
        module: The network.
        channels: Channels of its input.

    Returns:
        The costs. Where a block holds a single token, q and k are idle.

    Raises:
        ValueError: The module's attributes do not fit together.
    """
    module.check_sizes()
    patch = module.patch_size**2 * channels
    side = module.image_size // module.patch_size
    tokens = (side // 2 ** (module.num_hierarchies - 1)) ** 2
    embedding = 2 * side**2 * patch * module.dim
    flops, parameters, idle = embedding, (patch + 1) * module.dim, 0
    width = module.dim
    for level, repeats in enumerate(module.block_repeats):
        heads, width = module.heads * 2**level, module.dim * 2**level
        inner, hidden = heads * (width // heads), width * module.mlp_mult
        alone = tokens == 1
        # Products a token: q, k, v; scores and their weighted sum; out; the two of the MLP.
        projected = inner if alone else 3 * inner
        attended = 0 if alone else 2 * tokens * inner
        a_token = width * projected + attended + inner * width + 2 * width * hidden
        flops += 2 * repeats * side**2 * a_token
        norms = 2 * 2 * width
        attention = width * 3 * inner + inner * width + width
        parameters += repeats * (norms + attention + 2 * width * hidden + hidden + width) + tokens
        idle += repeats * width * 2 * inner if alone else 0
        if level < module.num_hierarchies - 1:
            flops += 2 * convolution_taps(side) * width * 2 * width
            # Kernel, bias, and the norm after it.
            parameters += 9 * width * 2 * width + 3 * 2 * width
            side //= 2
    flops += 2 * width * module.num_classes
    parameters += 2 * width + (width + 1) * module.num_classes
    return Costs(flops, embedding, parameters, idle)


def mmnet_costs(module: MMNet, channels: int = 3) -> Costs:
    """What an MMNet costs.

    Args:
        module: The network.
        channels: Channels of the flow, which it does not see.

    Returns:
        The costs, without the taps of convolutions on the padding. Of the running statistics none
        are parameters.

    Raises:
        ValueError: The module's attributes do not fit together.
    """
    del channels
    module.check_sizes()
    side, narrow = module.image_size // 2, module.stem
    stem = 2 * convolution_taps(module.image_size, 2) * 3 * module.stem
    flops = stem + 2 * convolution_taps(side) * module.stem * module.widths[0]
    # A convolution without bias, and the gain and the bias after it.
    parameters = 9 * 3 * narrow + 2 * narrow + (9 * narrow + 2) * module.widths[0]
    narrow = module.widths[0]
    for number, width in enumerate(module.widths):
        stride = 1 if number == 0 else 2
        flops += 2 * convolution_taps(side, stride) * narrow * width
        side //= stride
        # The 1x1 convolutions: the second, that of the map (2 to 1), that of the skip.
        skip = 0 if number == 0 else narrow * width
        flops += 2 * side**2 * (width * width + 2 + skip)
        parameters += (9 * narrow + 2) * width + (width + 2) * width + 4
        parameters += skip + 2 * width if skip else 0
        narrow = width
    width, tokens = module.widths[-1], (module.image_size // CELL) ** 2
    hidden = width * module.mlp_mult
    patches = 2 * tokens * 3 * width
    a_token = 4 * width * width + 2 * tokens * width + 2 * width * hidden
    flops += patches + 2 * module.depth * tokens * a_token
    dense = 4 * width * width + 4 * width + 2 * width * hidden + hidden + width
    parameters += (3 + 1) * width + tokens * width + module.depth * (dense + 4 * width) + 2 * width
    flops += 2 * tokens * width * module.num_classes
    parameters += (tokens * width + 1) * module.num_classes
    return Costs(flops, stem + patches, parameters, 0)


# `config.model.name` -> `(module, channels) -> Costs`; a new network is added here.
COSTS: dict[str, Callable[[Any, int], Costs]] = {"HTNet": htnet_costs, "MMNet": mmnet_costs}
