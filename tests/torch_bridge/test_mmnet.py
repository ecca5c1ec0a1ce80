"""MMNet beside PyTorch: names, conversion, sizes, parts."""

import functools
import math

import flax
import jax
import numpy as np
import pytest
import torch

from htnet_jax.errors import UserError
from htnet_jax.models import MMNet
from htnet_jax.torch_bridge import BRIDGES, convert, mmnet, parity
from htnet_jax.torch_bridge.convert import match, translate
from htnet_jax.torch_bridge.layers import DropPath

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
    # The releases': .3 for three classes, 0 for five, and where no release says otherwise.
    assert (assumed["heads"], assumed["drop_path"]) == (4, 0.3 if module == THREE else 0.0)
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


def frames():
    rng = np.random.default_rng(0)
    onset, apex = rng.normal(size=(2, 4, 32, 32, 3)).astype(np.float32)
    return (onset, apex), rng.integers(0, 5, 4)


def test_logits_in_evaluation():
    """All layers of it are compared in the slow tests."""
    variables, ((onset, apex), _) = parity.random_variables(SMALL, BRIDGE, 3, 0), frames()
    logits = jax.jit(functools.partial(SMALL.apply, train=False))(variables, onset, apex)
    model = mmnet.build(SMALL)
    model.load_state_dict(convert.to_state_dict(variables, BRIDGE.table), strict=True)
    with torch.no_grad():
        theirs = model(*(torch.from_numpy(np.moveaxis(x, -1, 1).copy()) for x in (onset, apex)))
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))
