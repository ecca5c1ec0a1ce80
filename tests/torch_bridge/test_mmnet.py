"""MMNet beside PyTorch: names, conversion, parity layer by layer, and faults that must be found."""

import dataclasses
import functools
import math

import flax
import jax
import numpy as np
import pytest
import torch
from torch import nn

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet, MMNet
from htnet_jax.torch_bridge import BRIDGES, convert, mmnet, parity, parity_report
from htnet_jax.torch_bridge.convert import match, translate
from htnet_jax.torch_bridge.layers import DropPath
from htnet_jax.torch_bridge.traces import Optimizer

BRIDGE = BRIDGES["MMNet"]
FIVE, THREE = MMNet(), MMNet(depth=3, mlp_mult=2, drop_path=0.3)
# Every layer once; two blocks, because the first has no drop path.
SMALL = MMNet(
    image_size=32, stem=5, widths=(4, 4, 6, 8), depth=2, heads=2, mlp_mult=2, drop_path=0.5
)


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep="/")


@functools.cache
def expected(module):
    return convert.expected_variables(module, 3)


def any_variables(module, seed=0):
    """Arrays of any bits but those of NaN."""
    rng = np.random.default_rng(seed)
    special = np.array([0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000], np.uint32)

    def draw(leaf):
        plain = rng.normal(size=leaf.shape).astype("f4").view("u4")
        return np.where(rng.random(leaf.shape) < 0.3, rng.choice(special, leaf.shape), plain)

    return jax.tree.map(lambda leaf: draw(leaf).astype("u4").view("f4"), expected(module))


# --- names and shapes -----------------------------------------------------------------------------


def norm(name, channels):
    return {
        **{f"{name}.{key}": (channels,) for key in ("weight", "bias")},
        **{f"{name}.{key}": (channels,) for key in ("running_mean", "running_var")},
        f"{name}.num_batches_tracked": (),
    }


def release_entries(depth, hidden):
    """What the release's network reads, written down by hand."""
    entries = {"conv_act.0.weight": (180, 3, 3, 3), **norm("conv_act.1", 180)}
    entries |= {"main_branch.conv1.weight": (128, 180, 3, 3), **norm("main_branch.bn1", 128)}
    narrow = 128
    for number, width in ((1, 128), (2, 128), (3, 256), (4, 512)):
        layer = f"main_branch.layer{number}.0"
        entries |= {f"{layer}.conv1.weight": (width, narrow, 3, 3), **norm(f"{layer}.bn1", width)}
        entries |= {f"{layer}.conv2.weight": (width, width, 1, 1), **norm(f"{layer}.bn2", width)}
        entries |= {f"{layer}.attn.0.weight": (1, 2, 1, 1), **norm(f"{layer}.attn.1", 1)}
        if number > 1:
            entries[f"{layer}.downsample.0.weight"] = (width, narrow, 1, 1)
            entries |= norm(f"{layer}.downsample.1", width)
        narrow = width
    entries |= {"main_branch.fc.weight": (5, 100352), "main_branch.fc.bias": (5,)}
    entries |= {
        "vit_pos.pos_embed": (1, 196, 512),
        "vit_pos.patch_embed.proj.weight": (512, 3, 1, 1),
        "vit_pos.patch_embed.proj.bias": (512,),
        "vit_pos.norm.weight": (512,),
        "vit_pos.norm.bias": (512,),
    }
    for index in range(depth):
        block = f"vit_pos.blocks.{index}"
        for name in ("norm1", "norm2"):
            entries |= {f"{block}.{name}.weight": (512,), f"{block}.{name}.bias": (512,)}
        for name, shape in {
            "attn.qkv": (1536, 512),
            "attn.proj": (512, 512),
            "mlp.fc1": (hidden, 512),
            "mlp.fc2": (512, hidden),
        }.items():
            entries |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
    return entries


def unused_entries(head):
    return {
        "timeembed": (1, 4, 111, 111),
        "pos.0.weight": (512, 3, 1, 1),
        **norm("pos.1", 512),
        "vit_pos.cls_token": (1, 1, 512),
        "vit_pos.head.weight": (5, 512),
        "vit_pos.head.bias": (5,),
        "vit_pos.to_Mask.0.weight": (1, 512),
        "vit_pos.to_Mask.0.bias": (1,),
        f"{head}.1.weight": (38, 12544),
    }


def shapes_of(state_dict):
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def parameters(shapes):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(s) for name, s in shapes.items() if not name.endswith(buffers))


@pytest.mark.parametrize(
    ("module", "depth", "hidden", "head", "used", "all_of_them"),
    [
        (FIVE, 2, 2048, "head", 9_438_841, 9_970_947),
        (THREE, 3, 1024, "head1", 9_442_425, 9_974_531),
    ],
)
def test_names_and_shapes_are_the_releases(module, depth, hidden, head, used, all_of_them):
    with torch.device("meta"):
        shapes = shapes_of(mmnet.build(module).state_dict())
    assert shapes == release_entries(depth, hidden)
    assert parameters(shapes) == used
    unused = BRIDGE.recreate(shapes)
    assert shapes_of(unused) == unused_entries(head)
    assert parameters(shapes_of(unused)) + used == all_of_them
    assert set(unused) <= set(BRIDGE.unused)
    # As its class starts them where that is not at random; counts are integers.
    for name, tensor in unused.items():
        ones = name in ("pos.1.weight", "pos.1.running_var")
        assert torch.equal(tensor, torch.full_like(tensor, ones)), name
        assert tensor.dtype == (torch.int64 if name.endswith("tracked") else torch.float32)


def test_every_array_matches_one_rule_and_every_rule_is_used():
    used, names = set(), set()
    for path in flat(expected(THREE)):
        rules = [rule for rule in BRIDGE.table if match(rule.flax, path) is not None]
        assert len(rules) == 1, path
        used.add(rules[0].flax)
        names.add(translate(path, rules[0].flax, rules[0].torch))
    assert used == {rule.flax for rule in BRIDGE.table}
    counters = {name for name in release_entries(3, 1024) if name.endswith("tracked")}
    assert names == release_entries(3, 1024).keys() - counters
    assert not names & set(BRIDGE.unused)


# --- conversion -----------------------------------------------------------------------------------


def test_order_of_the_classifiers_inputs():
    """PyTorch flattens channel, row, column."""
    variables = any_variables(SMALL)
    kernel = variables["params"]["head"]["kernel"]
    weight = convert.to_state_dict(variables, BRIDGE.table)["main_branch.fc.weight"]
    assert kernel.shape == (2, 2, 8, 5)
    for row, column, channel, out in np.ndindex(kernel.shape):
        assert weight[out, 4 * channel + 2 * row + column] == kernel[row, column, channel, out]


def test_every_bit_comes_back():
    variables = any_variables(SMALL)
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    model = mmnet.build(SMALL)
    model.load_state_dict(state_dict, strict=True)
    without = {name: t for name, t in state_dict.items() if not name.endswith("tracked")}
    for tensors in (state_dict, model.state_dict(), without):
        back = flat(convert.from_state_dict(tensors, BRIDGE.table, expected(SMALL)))
        assert back.keys() == flat(variables).keys()
        for path, array in flat(variables).items():
            np.testing.assert_array_equal(back[path].view("u4"), array.view("u4"), err_msg=path)


def test_counts_of_batches_are_zero():
    state_dict = convert.to_state_dict(any_variables(SMALL), BRIDGE.table)
    counts = {name: t for name, t in state_dict.items() if name.endswith("num_batches_tracked")}
    assert len(counts) == sum(name.endswith("running_mean") for name in state_dict) == 17
    assert all(t.dtype == torch.int64 and t.shape == () and t == 0 for t in counts.values())


def test_unused_entries_are_left_out_by_name_and_made_again():
    variables = any_variables(SMALL)
    plain = convert.to_state_dict(variables, BRIDGE.table)
    full = convert.to_state_dict(variables, BRIDGE.table, BRIDGE.recreate)
    assert full.keys() - plain.keys() == unused_entries("head").keys()
    assert full["vit_pos.to_Mask.0.weight"].shape == (1, 8)
    rest, (unused, counts) = convert.drop_unused(full, BRIDGE)
    assert rest.keys() == {name for name in plain if not name.endswith("tracked")}
    for name in unused_entries("head"):
        assert f"{name} (" in unused
    assert "timeembed (1, 4, 111, 111)" in unused
    assert "conv_act" not in unused
    # Not that of pos.1, which is named.
    assert "17 x num_batches_tracked" in counts
    assert convert.drop_unused(rest, BRIDGE) == (rest, [])
    back = convert.from_state_dict(rest, BRIDGE.table, expected(SMALL))
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_unused_entries_are_not_taken_for_the_networks():
    full = convert.to_state_dict(any_variables(SMALL), BRIDGE.table, BRIDGE.recreate)
    with pytest.raises(UserError, match="0 missing, 13 unknown, 0 misshapen"):
        convert.from_state_dict(full, BRIDGE.table, expected(SMALL))


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [FIVE, THREE, SMALL])
def test_sizes_are_inferred(module):
    with torch.device("meta"):
        state_dict = mmnet.build(module).state_dict()
    rest, _ = convert.drop_unused(state_dict, BRIDGE)
    known = {"heads": module.heads, "drop_path": module.drop_path, "dtype": "float32"}
    sizes = convert.infer_sizes(rest, BRIDGE, known, 3)
    assert MMNet(**sizes) == module
    assumed = convert.infer_sizes(rest, BRIDGE, {}, 3)
    assert (assumed["heads"], assumed["drop_path"]) == (4, 0.0)
    assert {name for name in sizes if name not in BRIDGE.assumed} == sizes.keys() - {
        *("heads", "drop_path")
    }


@pytest.mark.parametrize(
    ("changes", "known", "message"),
    [
        ({}, {"widths": [4, 4, 6, 9]}, r"widths: \(4, 4, 6, 8\) in the file, \(4, 4, 6, 9\)"),
        ({}, {"image_size": 64}, "image_size: 32 in the file, 64 expected"),
        ({}, {"heads": 3}, "heads=3 is impossible with a width of 8"),
        ({"vit_pos.pos_embed": (1, 5, 8)}, {}, "5 positions are no square grid"),
        ({"conv_act.0.weight": (5, 3)}, {}, "conv_act.0.weight: shape .*expected 4 axes"),
        ({"main_branch.fc.weight": (0, 32)}, {}, "an axis of length 0"),
    ],
)
def test_sizes_that_contradict(changes, known, message):
    shapes = shapes_of(mmnet.build(SMALL).state_dict()) | changes
    with pytest.raises(UserError, match=message):
        mmnet.sizes(shapes, known, 3)


def test_pytorch_network_refuses_other_frames():
    model = mmnet.build(SMALL)
    frame = torch.zeros(1, 3, 32, 32)
    for name, frames in (("onset", (frame[..., 1:], frame)), ("apex", (frame, frame[:, 1:]))):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            model(*frames)
    with pytest.raises(ValueError, match="image_size=40"):
        mmnet.MMNet(image_size=40)


def test_pytorch_initial_values():
    model = mmnet.MMNet(image_size=64, stem=60, widths=(40, 40, 48, 64))
    model.requires_grad_(False)
    block = model.main_branch.layer3[0]
    assert float(block.conv1.weight.std()) == pytest.approx((2 / (9 * 48)) ** 0.5, rel=0.05)
    assert float(block.conv2.weight.std()) == pytest.approx((2 / 48) ** 0.5, rel=0.1)
    assert model.conv_act[0].weight.abs().max() <= 27**-0.5
    assert float(model.vit_pos.blocks[1].mlp.fc1.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert not model.vit_pos.blocks[1].mlp.fc1.bias.any()
    assert float(model.vit_pos.pos_embed.std()) == pytest.approx(0.02, rel=0.1)


def test_drop_path_draws_or_repeats():
    layer, x = DropPath(0.25).train(), torch.ones(4000, 2, 3)
    torch.manual_seed(0)
    out = layer(x)
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert torch.equal(out, out[:, :1, :1].expand_as(out))
    # Five standard deviations.
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=5 * (0.1875 / 4000) ** 0.5)
    layer.kept = torch.arange(4000) % 2 == 0
    assert torch.equal(layer(x)[:, 0, 0] != 0, layer.kept)
    assert torch.equal(layer.eval()(x), x)


# --- parity ---------------------------------------------------------------------------------------


def frames(count, clips=4, seed=0):
    rng = np.random.default_rng(seed)

    def draw():
        return rng.normal(size=(clips, 32, 32, 3)).astype(np.float32)

    return [((draw(), draw()), rng.integers(0, 5, clips)) for _ in range(count)]


@pytest.fixture(scope="module")
def quick_compiler():
    """Compiling takes nearly all of the time."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def mm(quick_compiler, new_case):
    @functools.cache
    def get(name):
        mode, dtype = name.split()
        return new_case(
            SMALL,
            frames(3),
            dtype=dtype,
            # The release's weight decay.
            optimizer=Optimizer("adamw", 8e-4, 0.6),
            steps=20 if mode == "train" else 1,
            train=mode == "train",
            bridge=BRIDGE,
        )

    return get


def names(report, kind):
    return [row.name for row in report.rows if row.kind == kind]


MODES = [pytest.param("eval", marks=pytest.mark.slow), "train"]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_float64_agrees_to_nine_digits(mm, mode):
    report = mm(f"{mode} float64").report
    assert report.passed, parity_report.table(report)
    assert all(row.relative <= 1e-9 and row.tolerance <= 1e-9 for row in report.rows)
    assert report.train == (mode == "train")
    assert parity_report.verdict(report).startswith(
        "float64 train: all" if report.train else "float64: all"
    )


@pytest.mark.slow
def test_float32_agrees(mm):
    report = mm("train float32").report
    assert report.passed, parity_report.table(report)
    # Or it would have been computed in float64.
    assert max(row.relative for row in report.rows) > 1e-9


def test_logits_in_evaluation(quick_compiler):
    """All layers of it are compared in the slow tests."""
    variables, ((onset, apex), _) = parity.random_variables(SMALL, BRIDGE, 3, 0), frames(1)[0]
    logits = jax.jit(functools.partial(SMALL.apply, train=False))(variables, onset, apex)
    model = mmnet.build(SMALL)
    model.load_state_dict(convert.to_state_dict(variables, BRIDGE.table), strict=True)
    with torch.no_grad():
        theirs = model(*(torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (onset, apex)))
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_every_array_and_every_layer_has_its_rows(mm, mode):
    one = mm(f"{mode} float64")
    arrays = set()
    for path in flat(one.variables):
        biases = path.endswith("attention/qkv/bias")
        arrays |= {f"{path} ({n})" for n in ("query", "key", "value")} if biases else {path}
    params = {path for path in arrays if path.startswith("params/")}
    assert set(names(one.report, "weight")) == arrays
    assert set(names(one.report, "gradient")) == params
    assert set(names(one.report, "parameter")) == (arrays if mode == "train" else params)
    assert set(names(one.report, "statistics")) == (arrays - params if mode == "train" else set())
    # The key's bias: its gradient is rounding.
    moved = set(names(one.report, "update"))
    assert set(names(one.report, "parameter")) - moved == {
        f"params/position/block_{i}/attention/qkv/bias (key)" for i in range(2)
    }
    layers = names(one.report, "activation")
    assert len(set(layers)) == len(layers)
    for pattern, _ in BRIDGE.layers:
        assert any(match(pattern, layer) is not None for layer in layers), pattern
    assert set(one.ours.activations) == set(layers)
    assert layers[:3] == ["grid", "position/patch_embedding", "position/positioned"]
    assert layers[-3:] == ["layer_4/weighted", "calibrated", "head"]


@pytest.mark.slow
def test_training_moves_statistics_and_drops_branches(mm):
    ours = mm("train float64").ours
    for path, moved in ours.statistics.items():
        assert np.all(moved != ours.start[path]), path
        assert np.all(ours.parameters[path] != moved), path
    assert len(ours.kept) == 20
    draws = np.array([[kept[path] for path in sorted(kept)] for kept in ours.kept])
    assert draws.shape == (20, 2, 4)
    assert 0.3 < draws.mean() < 0.7
    assert len({draw.tobytes() for draw in draws}) > 10


@pytest.mark.slow
def test_run_changes_neither_side(mm):
    one = mm("train float64")
    model = one.torch_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert one.run(torch_model=model, steps=20).passed
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert not model.training


def test_dropout_cannot_be_compared_in_training():
    module = HTNet(dropout=0.1)
    with pytest.raises(UserError, match=r"dropout=0\.1: its draws cannot be repeated"):
        parity.run(module, BRIDGES["HTNet"], {}, frames(1), train=True)


# --- faults ---------------------------------------------------------------------------------------


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
    def forward(self, x):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, self.heads, 3, width // self.heads)
        query, key, value = qkv.permute(3, 0, 2, 1, 4)
        out = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.proj(self.attended(out.transpose(1, 2).reshape(x.shape)))


class Antialiased(mmnet.Resize):
    def forward(self, x):
        return nn.functional.interpolate(x, (2, 2), mode="bilinear", antialias=True)


class RowsFirst(nn.Linear):
    def forward(self, x):
        return super().forward(x.reshape(len(x), -1, 4).transpose(1, 2).flatten(1))


class Unscaled(DropPath):
    def forward(self, x):
        return super().forward(x) * (1 - self.rate)


def as_class(find, wrong):
    def change(model):
        find(model).__class__ = wrong

    return change


def with_value(find, **values):
    def change(model):
        for name, value in values.items():
            setattr(find(model), name, value)

    return change


def layer(number):
    return lambda model: getattr(model.main_branch, f"layer{number}")[0]


def part(find, *path):
    return lambda model: functools.reduce(
        lambda at, key: at[key] if isinstance(key, int) else getattr(at, key), path, find(model)
    )


def itself(model):
    return model


BLOCK = ("vit_pos", "blocks", 1)
FAULTS = [
    (as_class(part(layer(1), "statistics"), MaximumAndMean), "layer_1/attention/joined"),
    (as_class(part(layer(4), "statistics"), MaximumAndMean), "layer_4/attention/joined"),
    (as_class(part(itself, "conv_act", 0), SamePadding), "stem/conv"),
    (as_class(part(layer(3), "conv1"), SamePadding), "layer_3/first/conv"),
    (as_class(layer(2), NoPreviousMap), "layer_2/map"),
    (as_class(part(itself, *BLOCK, "attn"), HeadsFirst), "position/block_1/attention/attended"),
    (as_class(part(itself, "resize"), Antialiased), "grid"),
    (as_class(part(itself, "main_branch", "fc"), RowsFirst), "head"),
    (as_class(part(itself, *BLOCK, "mlp_path"), Unscaled), "position/block_1/mlp_path"),
    (with_value(part(layer(2), "bn2"), eps=1e-4), "layer_2/second/norm"),
    (with_value(part(layer(3), "downsample", 1), eps=1e-4), "layer_3/skip/norm"),
    (with_value(part(itself, *BLOCK, "norm1"), eps=1e-5), "position/block_1/attention_norm"),
    (
        with_value(part(itself, *BLOCK, "mlp"), act=nn.GELU("tanh")),
        "position/block_1/mlp/activated",
    ),
    (with_value(layer(3), pool=nn.AvgPool2d(3, 2, 1)), "layer_3/map"),
    (lambda model: layer(1)(model).attn[1].eval(), "layer_1/attention/norm"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("change", "name"), FAULTS, ids=[name for _, name in FAULTS])
def test_a_fault_is_named_at_its_layer(mm, change, name):
    model = mm("train float64").torch_model()
    change(model)
    # `torch_trace` sets the mode of the whole network, so a layer must hold its own.
    if name == "layer_1/attention/norm":
        norm = layer(1)(model).attn[1]
        norm.train = lambda mode: norm
    first = mm("train float64").compare_layers(model).first_difference
    assert (first.kind, first.name) == ("activation", name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "name"),
    [
        (as_class(part(itself, "conv_act", 1), BiasedVariance), "stem/norm/var"),
        (as_class(part(layer(4), "bn2"), BiasedVariance), "layer_4/second/norm/var"),
        (with_value(part(layer(2), "attn", 1), momentum=0.2), "layer_2/attention/norm/mean"),
    ],
)
def test_a_fault_in_running_statistics_is_named(mm, change, name):
    model = mm("train float64").torch_model()
    change(model)
    report = mm("train float64").compare_layers(model)
    assert all(row.passed for row in report.rows if row.kind in ("activation", "logits"))
    first = report.first_difference
    assert (first.kind, first.name) == ("statistics", f"batch_stats/{name}")


@pytest.mark.slow
def test_other_draws_of_drop_path_are_found(mm):
    one = mm("train float64")
    path = "position/block_1/attention_path"
    kept = ({**one.ours.kept[0], path: ~one.ours.kept[0][path]},)
    other = dataclasses.replace(one, ours=dataclasses.replace(one.ours, kept=kept))
    first = other.compare_layers(one.torch_model()).first_difference
    assert (first.kind, first.name) == ("activation", path)


@pytest.mark.slow
def test_statistics_that_do_not_move_along_the_steps_are_found(mm):
    one = mm("train float64")
    ours = dataclasses.replace(
        one.ours,
        parameters=one.ours.parameters
        | {path: a for path, a in one.ours.start.items() if path.startswith("batch_stats/")},
    )
    report = parity.compare(ours, one.theirs(), "float64")
    assert report.first_difference.kind == "parameter"
    assert report.first_difference.name.startswith("batch_stats/")
