"""R3D in PyTorch, with the names and shapes of torchvision's `r3d_18`, and its Kinetics weights.

Written from the facts of torchvision's `VideoResNet` (`stem.0`, `layer1.0.conv1.0`, ...), which is
not needed: its `state_dict` fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from htnet_jax.errors import Problems, UserError
from htnet_jax.models import r3d as flax_r3d
from htnet_jax.torch_bridge import convert
from htnet_jax.torch_bridge.convert import Rule, Shape, conv_norm, kernel_and_bias

_WIDE, _NARROW, _BLOCK = "t h w i o -> o i t h w", "i o -> o i 1 1 1", "layer{i}.{j}"
# Flax's name, torchvision's, and the axes of the kernel.
_PARTS = (("first", "conv1", _WIDE), ("second", "conv2", _WIDE), ("skip", "downsample", _NARROW))


def table(flax: str = "", theirs: str = "") -> tuple[Rule, ...]:
    """The lines of a network without head, whose names begin with `flax` and with `theirs`."""
    block, their_block = f"{flax}layer_{{i}}_{{j}}", f"{theirs}{_BLOCK}"
    return (
        *conv_norm(f"{flax}stem", f"{theirs}stem.0", f"{theirs}stem.1", _WIDE),
        *(
            rule
            for ours, other, axes in _PARTS
            for rule in conv_norm(
                f"{block}/{ours}", f"{their_block}.{other}.0", f"{their_block}.{other}.1", axes
            )
        ),
    )


def layers(flax: str = "", theirs: str = "") -> tuple[tuple[str, str], ...]:
    """The layers to compare; arguments as of `table`."""
    block, their_block = f"{flax}layer_{{i}}_{{j}}", f"{theirs}{_BLOCK}"
    return (
        (f"{flax}stem/conv", f"{theirs}stem.0"),
        (f"{flax}stem/norm", f"{theirs}stem.1"),
        *(
            (f"{block}/{ours}/{layer}", f"{their_block}.{other}.{index}")
            for ours, other, _ in _PARTS
            for index, layer in enumerate(("conv", "norm"))
        ),
        (f"{block}/joined", f"{their_block}.joined"),
        (f"{flax}pooled", f"{theirs}pooled"),
    )


_STEM = "stem.0.weight"
TABLE = (*table(), *kernel_and_bias("head", "fc", "i o -> o i"))
LAYERS = (*layers(), ("head", "fc"))


def _conv(inputs: int, outputs: int, size: Sequence[int], stride: Any) -> nn.Sequential:
    """A convolution without bias and batch normalisation."""
    kernel = nn.Conv3d(inputs, outputs, size, stride, [side // 2 for side in size], bias=False)
    nn.init.kaiming_normal_(kernel.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(kernel, nn.BatchNorm3d(outputs))


class BasicBlock(nn.Module):
    """Two 3x3x3 convolutions beside a skip."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, outputs, (3, 3, 3), stride).append(nn.ReLU())
        self.conv2 = _conv(outputs, outputs, (3, 3, 3), 1)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = _conv(inputs, outputs, (1, 1, 1), stride)
        # For the parity check: it hands on what it is given.
        self.joined = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, C, T, H, W)` to the block's output."""
        skip = x if self.downsample is None else self.downsample(x)
        return self.joined(torch.relu(self.conv2(self.conv1(x)) + skip))


class R3D(nn.Module):
    """R3D; with `num_classes=400` torchvision's `r3d_18`.

    Example:
        model = R3D(num_classes=400)
        model.load_state_dict(torch.load("r3d_18.pth", weights_only=True))
        logits = model(clip)  # (B, 3, 16, 112, 112), Kinetics-normalised -> (B, 400)
    """

    def __init__(self, **attributes: Any) -> None:
        """Attributes and their defaults as of `htnet_jax.models.R3D`.

        Raises:
            ValueError: Sizes that do not fit together.
        """
        super().__init__()
        sizes = flax_r3d.R3D(**attributes)
        sizes.check_sizes()
        self.input_shape = (sizes.channels, sizes.frames, sizes.image_size, sizes.image_size)
        self.stem = _conv(sizes.channels, sizes.width, (3, 7, 7), (1, 2, 2)).append(nn.ReLU())
        narrow = sizes.width
        for stage, blocks in enumerate(flax_r3d.BLOCKS[sizes.depth]):
            wide, stage_blocks = sizes.width * 2**stage, nn.Sequential()
            for index in range(blocks):
                stage_blocks.append(BasicBlock(narrow, wide, 2 if stage and not index else 1))
                narrow = wide
            self.add_module(f"layer{stage + 1}", stage_blocks)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.pooled = nn.Flatten()
        self.fc = nn.Linear(narrow, sizes.num_classes) if sizes.num_classes else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, channels, frames, image_size, image_size)` to features or logits.

        Raises:
            ValueError: x has another shape; a Flax batch is turned by `x.permute(0, 4, 1, 2, 3)`.
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(
                f"a clip has shape {tuple(x.shape)}, expected (B, *{self.input_shape})"
            )
        x = self.stem(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.pooled(self.avgpool(x)))


def build(module: flax_r3d.R3D) -> R3D:
    """The PyTorch network with the sizes of a Flax one, in evaluation mode."""
    return R3D(**convert.attributes(module)).eval()


def from_kinetics(
    state_dict: Mapping[str, torch.Tensor],
    module: Any,
    expected: Mapping[str, Any],
    channels: int = 3,
) -> dict[str, Any]:
    """Kinetics weights, or others by torchvision's names, as variables of a Flax network.

    Args:
        state_dict: Of torchvision's `r3d_18` or a network of another size, for RGB; its head `fc`
            is left out.
        module: Has the `width` and `depth` of the Flax network.
        expected: Its variables' shapes, without head.
        channels: Of its frames. If they are not 3, each of them has the mean of the stem's kernel
            over RGB.

    Returns:
        `{"params": ..., "batch_stats": ...}`, float32.

    Raises:
        UserError: The names or sizes are others.
    """
    rules = (*table(), *(Rule(f"fc/{name}", f"fc.{name}", "") for name in ("weight", "bias")))
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in state_dict.items()
        if not name.endswith(".num_batches_tracked")
    }
    unknown = [n for n in shapes if all(convert.match(r.torch, n) is None for r in rules)]
    if unknown or _STEM not in shapes:
        told = f"it holds {unknown[0]}" if unknown else f"it lacks {_STEM}"
        raise UserError(
            f"not the weights of an R3D: {told}. Give a file with the names of torchvision's "
            "r3d_18, such as stem.0.weight and layer1.0.conv1.0.weight."
        )
    problems = Problems("the state_dict's shapes")
    found = measured(shapes, "", problems)
    if not problems and shapes[_STEM][1] != 3:
        problems.add(_STEM, f"shape {shapes[_STEM]}: {shapes[_STEM][1]} channels, not those of RGB")
    convert.check_known(found, {key: getattr(module, key) for key in found}, problems)
    sizes = "".join(f" --config.model.{key}={value}" for key, value in found.items())
    problems.raise_if_any(f"Set{sizes}, or give another file." if found else "Give another file.")
    rest = {name: state_dict[name] for name in shapes if not name.startswith("fc.")}
    if channels != 3:
        mean = rest[_STEM].float().mean(dim=1, keepdim=True)
        rest[_STEM] = mean.repeat(1, channels, 1, 1, 1)
    return convert.from_state_dict(rest, table(), expected)


def measured(shapes: Mapping[str, Shape], theirs: str, problems: Problems) -> dict[str, int]:
    """`width` and `depth` of the network whose names begin with `theirs`, from its shapes."""
    stem = f"{theirs}stem.0.weight"
    convert.check_ranks(shapes, {stem: 5}, problems)
    # Any entry counts, so that a missing one is reported as missing later.
    found = tuple(
        convert.count_numbered(shapes, rf"{theirs}layer{stage}\.(\d+)\.") for stage in (1, 2, 3, 4)
    )
    depths = {blocks: depth for depth, blocks in flax_r3d.BLOCKS.items()}
    if found not in depths:
        known = ", ".join(map(str, depths))
        problems.add(f"{theirs}layer*", f"{found} blocks in the four stages; known are {known}")
    return {} if problems else {"width": shapes[stem][0], "depth": depths[found]}
