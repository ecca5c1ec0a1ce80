"""A fault in any one layer of the PyTorch side is found, and the first layer it shows in is named.

The network is the shared one at 56 px, where every block has four tokens and attention matters.
"""

import numpy as np
import pytest
import torch
from torch import nn

from htnet_jax.torch_bridge import htnet

REPEATS = (1, 2, 1)
BLOCKS = [(level, block) for level, count in enumerate(REPEATS) for block in range(count)]
LAST = len(REPEATS) - 1


def place(level, block):
    return f"level_{level}/block_{block}"


def block_of(model, level, block):
    """`(attention with its norm, feed-forward with its norm)`."""
    return model.layers[level][0].layers[block]


def norms():
    """`(layer's name, function of a model that returns the norm)` of every LayerNorm."""
    for level, block in BLOCKS:
        for index, name in enumerate(("attention_norm", "mlp_norm")):
            yield (
                f"{place(level, block)}/{name}",
                lambda m, i=index, a=level, b=block: block_of(m, a, b)[i].norm,
            )
    for level in range(LAST):
        yield f"aggregate_{level}/norm", lambda m, a=level: m.layers[a][1][1]
    yield "head_norm", lambda m: m.mlp_head[0]


def first_activation(report):
    return next(row for row in report.rows if row.kind == "activation" and not row.passed)


def assert_weight_fault_is_named(report, weight, layer):
    assert not report.passed
    assert [r.name for r in report.rows if r.kind == "weight" and not r.passed] == [weight]
    assert (report.first_difference.kind, report.first_difference.name) == ("weight", weight)
    assert first_activation(report).name == layer


def assert_code_fault_is_named(report, layer):
    assert not report.passed
    assert all(row.passed for row in report.rows if row.kind == "weight")
    assert (report.first_difference.kind, report.first_difference.name) == ("activation", layer)


def layer_of(weight):
    """The first compared layer that a parameter acts on."""
    path, _, leaf = weight.removeprefix("params/").rpartition("/")
    if leaf == "pos_emb":
        return f"{path}/positioned"
    if leaf == "qkv":
        return f"{path}/attended"
    return path.removesuffix("/out").removesuffix("/fc2")


def test_without_a_fault_all_agree(case):
    report = case("56").compare_layers(case("56").torch_model())
    assert report.passed
    assert report.first_difference is None


def test_every_parameter_rolled_by_one_is_named(case):
    """Each in turn; all parameters there are."""
    model = case("56").torch_model()
    names = {row.name for row in case("56").report.rows if row.kind == "weight"}
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        parameter.data = kept.flatten().roll(1).reshape(kept.shape)
        report = case("56").compare_layers(model)
        parameter.data = kept
        weight = report.first_difference.name
        assert_weight_fault_is_named(report, weight, layer_of(weight))
        assert weight in names, name
        names.remove(weight)
    assert not names


def kernels():
    """`(state_dict name, Flax path)` of every matrix."""
    yield "to_patch_embedding.1.weight", "params/patch_embedding/kernel"
    for level, block in BLOCKS:
        theirs, ours = f"layers.{level}.0.layers.{block}", f"params/{place(level, block)}"
        yield f"{theirs}.0.fn.to_qkv.weight", f"{ours}/attention/qkv"
        yield f"{theirs}.0.fn.to_out.0.weight", f"{ours}/attention/out/kernel"
        yield f"{theirs}.1.fn.net.0.weight", f"{ours}/mlp/fc1/kernel"
        yield f"{theirs}.1.fn.net.3.weight", f"{ours}/mlp/fc2/kernel"
    yield "mlp_head.2.weight", "params/head/kernel"


@pytest.mark.parametrize(("name", "weight"), list(kernels()))
def test_kernel_not_transposed(case, name, weight):
    """Flax's `(in, out)` numbers read as PyTorch's `(out, in)`."""
    model = case("56").torch_model()
    kernel = model.get_parameter(name)
    rows, columns = kernel.shape[:2]
    wrong = kernel.detach().reshape(rows, columns).T.contiguous().reshape(kernel.shape)
    kernel.data = wrong
    assert_weight_fault_is_named(case("56").compare_layers(model), weight, layer_of(weight))


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize("order", [(1, 0, 2), (0, 2, 1), (2, 1, 0)])
def test_qkv_packed_in_another_order(case, level, block, order):
    model = case("56").torch_model()
    kernel = block_of(model, level, block)[0].fn.to_qkv.weight
    parts = kernel.detach().chunk(3)
    kernel.data = torch.cat([parts[i] for i in order])
    path = f"{place(level, block)}/attention"
    report = case("56").compare_layers(model)
    assert_weight_fault_is_named(report, f"params/{path}/qkv", f"{path}/attended")


@pytest.mark.parametrize(("level", "block"), BLOCKS)
def test_qkv_ordered_channel_before_head(case, level, block):
    model = case("56").torch_model()
    attention = block_of(model, level, block)[0].fn
    kernel = attention.to_qkv.weight
    parts = kernel.detach().reshape(3, attention.heads, attention.head_width, -1)
    kernel.data = parts.transpose(1, 2).reshape(kernel.shape).contiguous()
    path = f"{place(level, block)}/attention"
    report = case("56").compare_layers(model)
    assert_weight_fault_is_named(report, f"params/{path}/qkv", f"{path}/attended")


@pytest.mark.parametrize("level", range(LAST))
@pytest.mark.parametrize(
    "wrong", [lambda k: k.flip(2, 3), lambda k: k.transpose(2, 3)], ids=["flipped", "transposed"]
)
def test_convolution_kernel_with_other_spatial_axes(case, level, wrong):
    model = case("56").torch_model()
    kernel = model.layers[level][1][0].weight
    kernel.data = wrong(kernel.detach()).contiguous()
    report = case("56").compare_layers(model)
    layer = f"aggregate_{level}/conv"
    assert_weight_fault_is_named(report, f"params/{layer}/kernel", layer)


@pytest.mark.parametrize("level", range(LAST + 1))
def test_position_scalars_in_column_order(case, level):
    model = case("56").torch_model()
    scalars = model.layers[level][0].pos_emb
    scalars.data = scalars.detach().reshape(2, 2).T.flatten()
    report = case("56").compare_layers(model)
    assert_weight_fault_is_named(
        report, f"params/level_{level}/pos_emb", f"level_{level}/positioned"
    )


def test_head_with_two_classes_swapped(case):
    model = case("56").torch_model()
    kernel = model.mlp_head[2].weight
    kernel.data = kernel.detach()[[1, 0, 2]]
    assert_weight_fault_is_named(case("56").compare_layers(model), "params/head/kernel", "head")


@pytest.mark.parametrize(("layer", "find"), list(norms()))
def test_eps_of_flax_in_a_layer_norm(case, layer, find):
    model = case("56").torch_model()
    find(model).eps = 1e-6
    assert_code_fault_is_named(case("56").compare_layers(model), layer)


class UnbiasedLayerNorm(htnet.LayerNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, unbiased=True, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.g + self.b


class EpsOutsideTheRoot(htnet.LayerNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance.sqrt() + self.eps) * self.g + self.b


@pytest.mark.parametrize(("layer", "find"), list(norms()))
@pytest.mark.parametrize("wrong", [UnbiasedLayerNorm, EpsOutsideTheRoot])
def test_another_layer_norm(case, layer, find, wrong):
    model = case("56").torch_model()
    find(model).__class__ = wrong
    assert_code_fault_is_named(case("56").compare_layers(model), layer)


@pytest.mark.parametrize(("level", "block"), BLOCKS)
def test_gelu_by_tanh(case, level, block):
    model = case("56").torch_model()
    block_of(model, level, block)[1].fn.net[1] = nn.GELU(approximate="tanh")
    assert_code_fault_is_named(
        case("56").compare_layers(model), f"{place(level, block)}/mlp/activated"
    )


class WrongScale(htnet.LocalAttention):
    """Scores divided by the head's width instead of its root."""

    def forward(self, x):
        batch, _, height, width = x.shape
        qkv = self.to_qkv(x).reshape(batch, 3, self.heads, self.head_width, height * width)
        query, key, value = qkv.unbind(1)
        weights = (query.transpose(-1, -2) @ key / self.head_width).softmax(-1)
        out = value @ weights.transpose(-1, -2)
        return self.to_out(self.attended(out.reshape(batch, -1, height, width)))


class SoftmaxOverQueries(htnet.LocalAttention):
    def forward(self, x):
        batch, _, height, width = x.shape
        qkv = self.to_qkv(x).reshape(batch, 3, self.heads, self.head_width, height * width)
        query, key, value = qkv.unbind(1)
        weights = (query.transpose(-1, -2) @ key * self.head_width**-0.5).softmax(-2)
        out = value @ weights.transpose(-1, -2)
        return self.to_out(self.attended(out.reshape(batch, -1, height, width)))


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize("wrong", [WrongScale, SoftmaxOverQueries])
def test_another_attention(case, level, block, wrong):
    model = case("56").torch_model()
    block_of(model, level, block)[0].fn.__class__ = wrong
    layer = f"{place(level, block)}/attention/attended"
    assert_code_fault_is_named(case("56").compare_layers(model), layer)


@pytest.mark.parametrize(("level", "block"), BLOCKS)
def test_another_number_of_heads(case, level, block):
    """Of the same inner width, so every shape stays."""
    model = case("56").torch_model()
    attention = block_of(model, level, block)[0].fn
    attention.heads, attention.head_width = attention.heads // 3, attention.head_width * 3
    layer = f"{place(level, block)}/attention/attended"
    assert_code_fault_is_named(case("56").compare_layers(model), layer)


class NoSecondResidual(htnet.TransformerBlock):
    def forward(self, x):
        attention, feed_forward = self
        return feed_forward(x + attention(x))


class ParallelBlock(htnet.TransformerBlock):
    def forward(self, x):
        attention, feed_forward = self
        return x + attention(x) + feed_forward(x)


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize(("wrong", "layer"), [(NoSecondResidual, ""), (ParallelBlock, "/mlp_norm")])
def test_another_residual(case, level, block, wrong, layer):
    model = case("56").torch_model()
    block_of(model, level, block).__class__ = wrong
    assert_code_fault_is_named(case("56").compare_layers(model), place(level, block) + layer)


class Pool(nn.Module):
    def __init__(self, padding, value):
        super().__init__()
        self.padding, self.value = padding, value

    def forward(self, x):
        padded = nn.functional.pad(x, self.padding, value=self.value)
        return nn.functional.max_pool2d(padded, 3, stride=2)


@pytest.mark.parametrize("level", range(LAST))
@pytest.mark.parametrize(
    ("padding", "value"),
    [((0, 1, 0, 1), -np.inf), ((1, 1, 1, 1), 0.0)],
    ids=["SAME", "zeros"],
)
def test_another_padding_of_the_pool(case, level, padding, value):
    model = case("56").torch_model()
    model.layers[level][1][2] = Pool(padding, value)
    assert_code_fault_is_named(case("56").compare_layers(model), f"aggregate_{level}")


def test_our_pool_is_no_fault(case):
    """The converse of the test above: the same module with the right padding passes."""
    model = case("56").torch_model()
    for level in range(LAST):
        model.layers[level][1][2] = Pool((1, 1, 1, 1), -np.inf)
    assert case("56").compare_layers(model).passed


class Patches(htnet.Patchify):
    order = ()

    def forward(self, x):
        size = self.patch_size
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        x = x.permute(0, *self.order, 2, 4)
        return x.reshape(batch, size * size * channels, height // size, width // size)


class ChannelsFirstPatches(Patches):
    order = (1, 3, 5)


class ColumnsFirstPatches(Patches):
    order = (5, 3, 1)


class RightPatches(Patches):
    order = (3, 5, 1)


@pytest.mark.parametrize("wrong", [ChannelsFirstPatches, ColumnsFirstPatches])
def test_another_order_in_a_patch(case, wrong):
    model = case("56").torch_model()
    model.to_patch_embedding[0].__class__ = wrong
    assert_code_fault_is_named(case("56").compare_layers(model), "patch_embedding")


def test_our_order_in_a_patch_is_no_fault(case):
    model = case("56").torch_model()
    model.to_patch_embedding[0].__class__ = RightPatches
    assert case("56").compare_layers(model).passed


class FirstPosition(nn.Module):
    def forward(self, x):
        return x[:, :, 0, 0]


def test_another_reduction_before_the_head(case):
    model = case("56").torch_model()
    model.mlp_head[1] = FirstPosition()
    assert_code_fault_is_named(case("56").compare_layers(model), "head")


def test_blocks_in_column_order(case, monkeypatch):
    blockify = htnet.blockify
    monkeypatch.setattr(
        htnet, "blockify", lambda x, blocks: blockify(x.transpose(2, 3), blocks).transpose(2, 3)
    )
    report = case("56").compare_layers(case("56").torch_model())
    assert_code_fault_is_named(report, "level_0/positioned")


def test_blocks_put_back_in_column_order(case, monkeypatch):
    unblockify = htnet.unblockify
    monkeypatch.setattr(
        htnet, "unblockify", lambda x, blocks: unblockify(x.transpose(2, 3), blocks).transpose(2, 3)
    )
    report = case("56").compare_layers(case("56").torch_model())
    assert_code_fault_is_named(report, "aggregate_0/conv")
