"""A fault in any one layer of the PyTorch side is found, and the first layer it shows in is named.

In HTNet every block has four tokens, so that attention matters; MMNet trains.
"""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from htnet_jax.torch_bridge import htnet, mmnet, parity
from htnet_jax.torch_bridge.layers import Attention, DropPath

BLOCKS = [(0, 0), (0, 1), (1, 0)]
LAST = 1


@pytest.fixture
def net(case):
    return case("four tokens")


@pytest.fixture
def model(net):
    return net.torch_model()


def place(level, block):
    return f"level_{level}/block_{block}"


def attention_of(model, level, block):
    return model.layers[level][0].layers[block][0].fn


def norms():
    """`(layer's name, function of a model that returns the norm)` of every LayerNorm."""
    for level, block in BLOCKS:
        for index, name in enumerate(("attention_norm", "mlp_norm")):
            yield (
                f"{place(level, block)}/{name}",
                lambda m, i=index, a=level, b=block: m.layers[a][0].layers[b][i].norm,
            )
    for level in range(LAST):
        yield f"aggregate_{level}/norm", lambda m, a=level: m.layers[a][1][1]
    yield "head_norm", lambda m: m.mlp_head[0]


def assert_weight_fault_is_named(report, weight, layer):
    assert [r.name for r in report.rows if r.kind == "weight" and not r.passed] == [weight]
    assert (report.first_difference.kind, report.first_difference.name) == ("weight", weight)
    failed = [row.name for row in report.rows if row.kind == "activation" and not row.passed]
    assert failed[0] == layer


def assert_code_fault_is_named(report, layer):
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


# --- wrong numbers --------------------------------------------------------------------------------


def test_every_parameter_rolled_by_one_is_named(net, model):
    """Each in turn; all parameters there are."""
    assert net.compare_layers(model).passed
    names = {row.name for row in net.report.rows if row.kind == "weight"}
    for name, parameter in model.named_parameters():
        kept = parameter.detach().clone()
        parameter.data = kept.flatten().roll(1).reshape(kept.shape)
        report = net.compare_layers(model)
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
def test_kernel_not_transposed(net, model, name, weight):
    """Flax's `(in, out)` numbers read as PyTorch's `(out, in)`."""
    kernel = model.get_parameter(name)
    rows, columns = kernel.shape[:2]
    kernel.data = kernel.detach().reshape(rows, columns).T.contiguous().reshape(kernel.shape)
    assert_weight_fault_is_named(net.compare_layers(model), weight, layer_of(weight))


def packed(order):
    return lambda kernel, heads: torch.cat([kernel.chunk(3)[i] for i in order])


def channel_before_head(kernel, heads):
    parts = kernel.reshape(3, heads, -1, kernel.shape[1])
    return parts.transpose(1, 2).reshape(kernel.shape).contiguous()


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize(
    "wrong", [packed((1, 0, 2)), packed((0, 2, 1)), packed((2, 1, 0)), channel_before_head]
)
def test_qkv_in_another_order(net, model, level, block, wrong):
    attention = attention_of(model, level, block)
    kernel = attention.to_qkv.weight
    kernel.data = wrong(kernel.detach(), attention.heads)
    path = f"{place(level, block)}/attention"
    report = net.compare_layers(model)
    assert_weight_fault_is_named(report, f"params/{path}/qkv", f"{path}/attended")


@pytest.mark.parametrize(
    ("name", "weight", "wrong"),
    [
        ("layers.0.1.0.weight", "params/aggregate_0/conv/kernel", lambda k: k.flip(2, 3)),
        ("layers.0.1.0.weight", "params/aggregate_0/conv/kernel", lambda k: k.transpose(2, 3)),
        *(
            (f"layers.{i}.0.pos_emb", f"params/level_{i}/pos_emb", lambda s: s.reshape(2, 2).T)
            for i in range(LAST + 1)
        ),
        ("mlp_head.2.weight", "params/head/kernel", lambda k: k[[1, 0, 2]]),
    ],
    ids=["flipped", "transposed", "column order 0", "column order 1", "classes swapped"],
)
def test_parameter_in_another_order(net, model, name, weight, wrong):
    parameter = model.get_parameter(name)
    parameter.data = wrong(parameter.detach()).contiguous().reshape(parameter.shape)
    assert_weight_fault_is_named(net.compare_layers(model), weight, layer_of(weight))


# --- wrong code -----------------------------------------------------------------------------------


class UnbiasedLayerNorm(htnet.LayerNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, unbiased=True, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.g + self.b


class EpsOutsideTheRoot(htnet.LayerNorm):
    def forward(self, x):
        variance, mean = torch.var_mean(x, dim=1, unbiased=False, keepdim=True)
        return (x - mean) / (variance.sqrt() + self.eps) * self.g + self.b


@pytest.mark.parametrize(("layer", "find"), list(norms()))
@pytest.mark.parametrize("wrong", [1e-6, UnbiasedLayerNorm, EpsOutsideTheRoot])
def test_another_layer_norm(net, model, layer, find, wrong):
    """1e-6 is Flax's eps."""
    if isinstance(wrong, float):
        find(model).eps = wrong
    else:
        find(model).__class__ = wrong
    assert_code_fault_is_named(net.compare_layers(model), layer)


def attend_by(weights_of):
    """An attention whose weights are `weights_of(scores without scale, head width)`."""

    def attend(self, qkv):
        batch, tokens, _ = qkv.shape
        query, key, value = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = weights_of(query @ key.transpose(-1, -2), query.shape[-1])
        return self.attended((weights @ value).transpose(1, 2).reshape(batch, tokens, -1))

    return attend


def scaled_by_the_width(scores, width):
    return (scores / width).softmax(-1)


def softmax_over_queries(scores, width):
    return (scores * width**-0.5).softmax(-2)


def right_weights(scores, width):
    return (scores * width**-0.5).softmax(-1)


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize("wrong", [scaled_by_the_width, softmax_over_queries, "heads"])
def test_another_attention(net, model, level, block, wrong):
    attention = attention_of(model, level, block)
    if wrong == "heads":  # A third of them, of the same inner width, so every shape stays.
        attention.heads //= 3
    else:
        attention.attend = attend_by(wrong).__get__(attention)
    layer = f"{place(level, block)}/attention/attended"
    assert_code_fault_is_named(net.compare_layers(model), layer)


class NoSecondResidual(htnet.TransformerBlock):
    def forward(self, x):
        attention, feed_forward = self
        return feed_forward(x + attention(x))


class ParallelBlock(htnet.TransformerBlock):
    def forward(self, x):
        attention, feed_forward = self
        return x + attention(x) + feed_forward(x)


@pytest.mark.parametrize(("level", "block"), BLOCKS)
@pytest.mark.parametrize(
    ("wrong", "layer"), [(NoSecondResidual, ""), (ParallelBlock, "/mlp_norm"), ("GELU", "/mlp/act")]
)
def test_another_block(net, model, level, block, wrong, layer):
    found = model.layers[level][0].layers[block]
    if wrong == "GELU":
        found[1].fn.net[1] = nn.GELU(approximate="tanh")
        layer = "/mlp/activated"
    else:
        found.__class__ = wrong
    assert_code_fault_is_named(net.compare_layers(model), place(level, block) + layer)


class Pool(nn.Module):
    def __init__(self, padding, value):
        super().__init__()
        self.padding, self.value = padding, value

    def forward(self, x):
        padded = nn.functional.pad(x, self.padding, value=self.value)
        return nn.functional.max_pool2d(padded, 3, stride=2)


@pytest.mark.parametrize("pool", [Pool((0, 1, 0, 1), -np.inf), Pool((1, 1, 1, 1), 0.0)])
def test_another_padding_of_the_pool(net, model, pool):
    """As `SAME`, and with zeros."""
    model.layers[0][1][2] = pool
    assert_code_fault_is_named(net.compare_layers(model), "aggregate_0")


class Patches(htnet.Patchify):
    order = ()

    def forward(self, x):
        size = self.patch_size
        batch, channels, height, width = x.shape
        x = x.reshape(batch, channels, height // size, size, width // size, size)
        x = x.permute(0, *self.order, 2, 4)
        return x.reshape(batch, size * size * channels, height // size, width // size)


@pytest.mark.parametrize("order", [(1, 3, 5), (5, 3, 1)], ids=["channels first", "columns first"])
def test_another_order_in_a_patch(net, model, order):
    model.to_patch_embedding[0].__class__ = type("Wrong", (Patches,), {"order": order})
    assert_code_fault_is_named(net.compare_layers(model), "patch_embedding")


def test_what_replaces_parts_above_is_no_fault_itself(net, model):
    """The converse: the same modules with the right settings pass."""
    model.layers[0][1][2] = Pool((1, 1, 1, 1), -np.inf)
    model.to_patch_embedding[0].__class__ = type("Right", (Patches,), {"order": (3, 5, 1)})
    for attention in model.modules():
        if isinstance(attention, Attention):
            attention.attend = attend_by(right_weights).__get__(attention)
    assert net.compare_layers(model).passed


class FirstPosition(nn.Module):
    def forward(self, x):
        return x[:, :, 0, 0]


def test_another_reduction_before_the_head(net, model):
    model.mlp_head[1] = FirstPosition()
    assert_code_fault_is_named(net.compare_layers(model), "head")


@pytest.mark.parametrize(
    ("name", "layer"), [("blockify", "level_0/positioned"), ("unblockify", "aggregate_0/conv")]
)
def test_blocks_in_column_order(net, model, monkeypatch, name, layer):
    right = getattr(htnet, name)
    monkeypatch.setattr(
        htnet, name, lambda x, blocks: right(x.transpose(2, 3), blocks).transpose(2, 3)
    )
    assert_code_fault_is_named(net.compare_layers(model), layer)


# --- MMNet, in training ---------------------------------------------------------------------------


class MaximumAndMean(mmnet.MeanAndMaximum):
    def forward(self, x):
        return super().forward(x).flip(1)


class SamePadding(nn.Conv2d):
    def forward(self, x):
        padded = nn.functional.pad(x, (0, 1, 0, 1))
        return nn.functional.conv2d(padded, self.weight, stride=2)


class BiasedVariance(nn.BatchNorm2d):
    def forward(self, x):
        with torch.no_grad():
            biased = x.var(dim=(0, 2, 3), unbiased=False)
            kept = 0.9 * self.running_var + 0.1 * biased
        out = super().forward(x)
        self.running_var = kept
        return out


class NoPreviousMap(mmnet.ContinuousAttentionBlock):
    def forward(self, x, attention):
        return super().forward(x, None)


class HeadsFirst(mmnet.SelfAttention):
    def attend(self, qkv):
        parts = qkv.unflatten(-1, (self.heads, 3, -1)).transpose(2, 3).flatten(2)
        return super().attend(parts)


class Antialiased(mmnet.Resize):
    def forward(self, x):
        return nn.functional.interpolate(x, (2, 2), mode="bilinear", antialias=True)


class RowsFirst(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(len(x), -1, 4).transpose(1, 2).flatten(1))


class Unscaled(DropPath):
    def forward(self, x):
        return super().forward(x) * (1 - self.rate)


def as_class(wrong):
    return lambda part: setattr(part, "__class__", wrong)


def with_value(**values):
    return lambda part: [setattr(part, name, value) for name, value in values.items()]


def stays_in_evaluation(part):
    """`torch_trace` sets the mode of the whole network, so the layer must hold its own."""
    part.eval()
    part.train = lambda mode: part


LAYER, BLOCK = "main_branch.layer{}.0", "vit_pos.blocks.1"
FAULTS = [
    (LAYER.format(1) + ".statistics", as_class(MaximumAndMean), "layer_1/attention/joined"),
    (LAYER.format(4) + ".statistics", as_class(MaximumAndMean), "layer_4/attention/joined"),
    ("conv_act.0", as_class(SamePadding), "stem/conv"),
    (LAYER.format(3) + ".conv1", as_class(SamePadding), "layer_3/first/conv"),
    (LAYER.format(2), as_class(NoPreviousMap), "layer_2/map"),
    (f"{BLOCK}.attn", as_class(HeadsFirst), "position/block_1/attention/attended"),
    ("resize", as_class(Antialiased), "grid"),
    ("main_branch.fc", as_class(RowsFirst), "head"),
    (f"{BLOCK}.mlp_path", as_class(Unscaled), "position/block_1/mlp_path"),
    (LAYER.format(2) + ".bn2", with_value(eps=1e-4), "layer_2/second/norm"),
    (LAYER.format(3) + ".downsample.1", with_value(eps=1e-4), "layer_3/skip/norm"),
    (f"{BLOCK}.norm1", with_value(eps=1e-5), "position/block_1/attention_norm"),
    (f"{BLOCK}.mlp", with_value(act=nn.GELU("tanh")), "position/block_1/mlp/activated"),
    (LAYER.format(3), with_value(pool=nn.AvgPool2d(3, 2, 1)), "layer_3/map"),
    (LAYER.format(1) + ".attn.1", stays_in_evaluation, "layer_1/attention/norm"),
]
STATISTICS = [
    ("conv_act.1", as_class(BiasedVariance), "stem/norm/var"),
    (LAYER.format(4) + ".bn2", as_class(BiasedVariance), "layer_4/second/norm/var"),
    (LAYER.format(2) + ".attn.1", with_value(momentum=0.2), "layer_2/attention/norm/mean"),
]


@pytest.fixture
def frames(case):
    return case("MMNet", train=True)


@pytest.mark.parametrize(("part", "change", "name"), FAULTS, ids=[fault[-1] for fault in FAULTS])
def test_a_fault_in_mmnet(frames, part, change, name):
    model = frames.torch_model()
    change(model.get_submodule(part))
    assert_code_fault_is_named(frames.compare_layers(model), name)


@pytest.mark.parametrize(("part", "change", "name"), STATISTICS)
def test_a_fault_in_running_statistics(frames, part, change, name):
    model = frames.torch_model()
    change(model.get_submodule(part))
    report = frames.compare_layers(model)
    assert all(row.passed for row in report.rows if row.kind in ("activation", "logits"))
    first = report.first_difference
    assert (first.kind, first.name) == ("statistics", f"batch_stats/{name}")


def test_other_draws_of_drop_path(frames):
    path = "position/block_1/attention_path"
    kept = ({**frames.ours.kept[0], path: ~frames.ours.kept[0][path]},)
    other = dataclasses.replace(frames, ours=dataclasses.replace(frames.ours, kept=kept))
    assert_code_fault_is_named(other.compare_layers(frames.torch_model()), path)


def test_statistics_that_do_not_move_along_the_steps(frames):
    still = {p: a for p, a in frames.ours.start.items() if p.startswith("batch_stats/")}
    ours = dataclasses.replace(frames.ours, parameters=frames.ours.parameters | still)
    first = parity.compare(ours, frames.theirs(), "float64").first_difference
    assert first.kind == "parameter"
    assert first.name.startswith("batch_stats/")
