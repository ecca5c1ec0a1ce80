import functools
import math

import flax
import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.models import htnet as flax_htnet
from htnet_jax.torch_bridge import convert, htnet, parity

BRIDGE = htnet.BRIDGE

# Compiling takes nearly all the time of these tests: half as long with LLVM's optimisations off.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def module_of(**attributes):
    small = {"dim": 6, "heads": 2, "block_repeats": (1, 1, 1)}
    return flax_htnet.HTNet(**{**small, **attributes})


def state_dict_of(module, channels=3, seed=0):
    variables = parity.random_variables(module, BRIDGE, channels, seed)
    return variables, convert.to_state_dict(variables, BRIDGE.table)


def shapes_of(module, channels=3):
    with torch.device("meta"):
        state_dict = htnet.build(module, channels).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def pixels(seed, batch, size, channels):
    return np.random.default_rng(seed).uniform(0, 255, (batch, size, size, channels)).astype("f4")


def channels_first(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def both_logits(module, channels, variables, state_dict, seed=0):
    model = htnet.build(module, channels)
    model.load_state_dict(state_dict, strict=True)
    x = pixels(seed, 2, module.image_size, channels)
    ours = quick_jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    with torch.no_grad():
        theirs = model(channels_first(x)).numpy()
    return np.asarray(ours), theirs


def assert_same_logits(ours, theirs):
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max())
    # Else a network that ignores its input would agree as well.
    assert not np.array_equal(theirs[0], theirs[1])


# --- names and shapes -----------------------------------------------------------------------------


def published_shapes():
    """The release's names and shapes, written out from the published sizes alone."""
    shapes = {
        "to_patch_embedding.1.weight": (256, 147, 1, 1),
        "to_patch_embedding.1.bias": (256,),
    }
    levels = [(256, 255, 2), (512, 510, 2), (1024, 1020, 10)]
    for i, (width, inner, repeats) in enumerate(levels):
        shapes[f"layers.{i}.0.pos_emb"] = (1,)
        for j in range(repeats):
            block = f"layers.{i}.0.layers.{j}"
            for half in (0, 1):
                shapes[f"{block}.{half}.norm.g"] = (1, width, 1, 1)
                shapes[f"{block}.{half}.norm.b"] = (1, width, 1, 1)
            shapes[f"{block}.0.fn.to_qkv.weight"] = (3 * inner, width, 1, 1)
            shapes[f"{block}.0.fn.to_out.0.weight"] = (width, inner, 1, 1)
            shapes[f"{block}.0.fn.to_out.0.bias"] = (width,)
            shapes[f"{block}.1.fn.net.0.weight"] = (4 * width, width, 1, 1)
            shapes[f"{block}.1.fn.net.0.bias"] = (4 * width,)
            shapes[f"{block}.1.fn.net.3.weight"] = (width, 4 * width, 1, 1)
            shapes[f"{block}.1.fn.net.3.bias"] = (width,)
        if i < 2:
            shapes[f"layers.{i}.1.0.weight"] = (2 * width, width, 3, 3)
            shapes[f"layers.{i}.1.0.bias"] = (2 * width,)
            shapes[f"layers.{i}.1.1.g"] = (1, 2 * width, 1, 1)
            shapes[f"layers.{i}.1.1.b"] = (1, 2 * width, 1, 1)
    shapes["mlp_head.0.g"] = shapes["mlp_head.0.b"] = (1, 1024, 1, 1)
    shapes["mlp_head.2.weight"] = (3, 1024)
    shapes["mlp_head.2.bias"] = (3,)
    return shapes


def test_state_dict_of_the_published_configuration():
    with torch.device("meta"):
        model = htnet.HTNet()
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert found == published_shapes()
    # Nothing but parameters, all trainable.
    assert [name for name, _ in model.named_parameters()] == list(found)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 139_582_982


def test_flax_and_torch_defaults_are_the_same_network():
    assert shapes_of(flax_htnet.HTNet()) == published_shapes()


def test_build_takes_every_size_and_evaluates():
    module = module_of(num_classes=5, mlp_mult=2, dropout=0.4, block_repeats=(1, 0, 2))
    model = htnet.build(module, channels=2)
    assert not any(part.training for part in model.modules())
    dropouts = [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]
    assert dropouts == [0.4] * 4 * 3
    heads = [part.heads for part in model.modules() if isinstance(part, htnet.LocalAttention)]
    assert heads == [2, 8, 8]
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes["to_patch_embedding.1.weight"] == (6, 98, 1, 1)
    assert shapes["layers.2.0.layers.1.1.fn.net.0.weight"] == (48, 24, 1, 1)
    assert shapes["mlp_head.2.weight"] == (5, 24)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"image_size": 30}, r"image_size=30 is not divisible by patch_size=7"),
        ({"image_size": 42}, r"gives 6 patches a side.* divisible by the 4 blocks"),
        ({"block_repeats": (1, 1)}, r"block_repeats=\(1, 1\).*num_hierarchies=3"),
        ({"dim": 2}, r"dim=2 .*heads=3"),
        ({"heads": 0}, r"heads=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
    ],
)
def test_sizes_that_do_not_fit_together(attributes, message):
    with pytest.raises(ValueError, match=message):
        htnet.HTNet(**{"dim": 6, **attributes})


def test_initial_values_are_those_of_pytorch_layers():
    torch.manual_seed(0)
    model = htnet.HTNet(dim=12, block_repeats=(1, 1, 1), image_size=56)
    for name, tensor in model.state_dict().items():
        if name.endswith(".g"):
            assert torch.all(tensor == 1), name
        elif name.endswith(".b"):
            assert torch.all(tensor == 0), name
        elif name.endswith("weight"):
            bound = math.prod(tensor.shape[1:]) ** -0.5
            assert 0.9 * bound < tensor.abs().max() <= bound, name
    positions = torch.cat([model.state_dict()[f"layers.{i}.0.pos_emb"] for i in range(3)])
    assert positions.abs().max() > 1
    assert len(set(positions.tolist())) == 12


# --- the parts ------------------------------------------------------------------------------------


def test_layer_norm_in_float64():
    rng = np.random.default_rng(0)
    # Small values: here eps matters, and its place (under the root or beside it) as well.
    x = 1e-3 * rng.normal(size=(2, 5, 3, 4)) + 0.1
    gain, bias = rng.normal(size=(2, 5))
    norm = htnet.LayerNorm(5).double()
    norm.load_state_dict(
        {
            "g": torch.from_numpy(gain).reshape(1, 5, 1, 1),
            "b": torch.from_numpy(bias).reshape(1, 5, 1, 1),
        }
    )
    expected = np.empty_like(x)
    for b, i, j in np.ndindex(2, 3, 4):
        vector = x[b, :, i, j]
        variance = ((vector - vector.mean()) ** 2).sum() / 5
        expected[b, :, i, j] = (vector - vector.mean()) / np.sqrt(variance + 1e-5) * gain + bias
    with torch.no_grad():
        found = norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_patchify_orders_row_column_channel():
    # A number says where it comes from: row, column and channel are its digits.
    rows, columns, channels = np.ogrid[:4, :6, :3]
    x = 100 * rows + 10 * columns + channels
    out = htnet.Patchify(2)(channels_first(x[None])).numpy()
    assert out.shape == (1, 12, 2, 3)
    assert out[0, :, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert out[0, :, 1, 2].tolist() == [
        *[240, 241, 242, 250, 251, 252],
        *[340, 341, 342, 350, 351, 352],
    ]
    expected = np.asarray(flax_htnet.patchify(x[None], 2))
    np.testing.assert_array_equal(np.moveaxis(out, 1, -1), expected)


@settings(deadline=None, max_examples=8)
@given(
    batch=st.integers(1, 2),
    blocks=st.integers(1, 4),
    side=st.integers(1, 3),
    channels=st.integers(1, 2),
)
def test_blockify_has_the_order_of_the_flax_function(batch, blocks, side, channels):
    shape = (batch, blocks * side, blocks * side, channels)
    x = np.arange(math.prod(shape)).reshape(shape)
    cut = htnet.blockify(channels_first(x), blocks)
    assert cut.shape == (batch * blocks**2, channels, side, side)
    tokens = cut.numpy().reshape(batch, blocks**2, channels, side**2)
    expected = np.asarray(flax_htnet.blockify(x, blocks))
    np.testing.assert_array_equal(np.moveaxis(tokens, 2, 3), expected)
    np.testing.assert_array_equal(htnet.unblockify(cut, blocks), channels_first(x))


def test_dropout_is_active_in_training_only():
    module = module_of(dropout=0.3, num_hierarchies=2, block_repeats=(1, 1))
    model = htnet.build(module, 3)
    x = channels_first(pixels(0, 2, 28, 3))
    with torch.no_grad():
        still = model(x)
        assert torch.equal(still, model(x))
        model.train()
        assert not torch.equal(model(x), model(x))


# --- the same function in both frameworks ---------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "channels"),
    [
        ({}, 3),
        ({"image_size": 56, "dim": 7, "heads": 3}, 3),
        ({"dim": 8, "heads": 3, "num_hierarchies": 2, "block_repeats": (2, 1)}, 2),
        ({"num_hierarchies": 1, "block_repeats": (1,)}, 1),
        ({"block_repeats": (0, 1, 0)}, 4),
        ({"num_hierarchies": 2, "block_repeats": (0, 0)}, 3),
    ],
    ids=["28", "56", "odd heads", "one level", "level without blocks", "no block"],
)
def test_logits_agree(attributes, channels):
    module = module_of(**attributes)
    assert_same_logits(*both_logits(module, channels, *state_dict_of(module, channels)))


def test_max_pool_pads_with_less_than_any_value():
    # After LN with a negative bias all values are negative: padding with zeros would show.
    module = module_of(num_hierarchies=2, block_repeats=(0, 0), image_size=14)
    variables, _ = state_dict_of(module)
    norm = variables["params"]["aggregate_0"]["norm"]
    norm["bias"] = np.full_like(norm["bias"], -50)
    model = htnet.build(module, 3)
    model.load_state_dict(convert.to_state_dict(variables, BRIDGE.table), strict=True)
    x = pixels(0, 2, 14, 3)
    pooled = []
    hook = model.layers[0][1].register_forward_hook(lambda *call: pooled.append(call[-1]))
    with torch.no_grad():
        theirs = model(channels_first(x)).numpy()
    hook.remove()
    assert pooled[0].shape == (2, 12, 1, 1)
    assert pooled[0].max() < -40
    ours = quick_jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
    assert_same_logits(np.asarray(ours), theirs)


@st.composite
def modules(draw):
    levels = draw(st.integers(1, 3))
    patch, side = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    heads = draw(st.integers(1, 4))
    return flax_htnet.HTNet(
        num_classes=draw(st.integers(2, 5)),
        patch_size=patch,
        image_size=patch * side * 2 ** (levels - 1),
        # At least 3 channels: a LN of one is always 0, of two always +-1, whatever comes in.
        dim=draw(st.integers(max(3, heads), 12)),
        heads=heads,
        num_hierarchies=levels,
        block_repeats=tuple(
            draw(st.lists(st.integers(0, 1), min_size=levels, max_size=levels).filter(any))
        ),
        mlp_mult=draw(st.integers(1, 4)),
    )


SIZES = ("num_classes", "image_size", "patch_size", "dim", "heads", "num_hierarchies")


@settings(deadline=None, max_examples=5, derandomize=True)
@given(module=modules(), channels=st.integers(1, 3), seed=st.integers(0, 99))
def test_any_network_crosses_and_comes_back(module, channels, seed):
    variables, state_dict = state_dict_of(module, channels, seed)
    assert_same_logits(*both_logits(module, channels, variables, state_dict, seed))
    found = convert.infer_sizes(state_dict, BRIDGE, {"heads": module.heads}, channels)
    expected = {name: getattr(module, name) for name in (*SIZES, "block_repeats", "mlp_mult")}
    assert found == expected
    back = convert.from_state_dict(
        state_dict, BRIDGE.table, convert.expected_variables(module, channels)
    )
    flat, again = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (variables, back))
    assert again.keys() == flat.keys()
    for path, array in flat.items():
        assert again[path].dtype == np.float32
        np.testing.assert_array_equal(again[path].view("u4"), array.view("u4"), err_msg=path)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(module=modules(), channels=st.integers(1, 4))
def test_sizes_of_any_network(module, channels):
    found = htnet.sizes(shapes_of(module, channels), {"heads": module.heads}, channels)
    expected = {name: getattr(module, name) for name in (*SIZES, "block_repeats", "mlp_mult")}
    assert found == expected


# --- sizes from shapes ----------------------------------------------------------------------------


def test_sizes_of_the_published_configuration():
    assert htnet.sizes(published_shapes(), {}, 3) == {
        "num_classes": 3,
        "image_size": 28,
        "patch_size": 7,
        "dim": 256,
        "heads": 3,
        "num_hierarchies": 3,
        "block_repeats": (2, 2, 10),
        "mlp_mult": 4,
    }


def test_heads_that_shapes_allow_are_taken_from_what_is_known():
    # 12 channels make 12 wide heads for each of these.
    shapes = shapes_of(module_of(dim=12, heads=4))
    for heads in (1, 2, 3, 4, 6, 12):
        assert htnet.sizes(shapes, {"heads": heads}, 3)["heads"] == heads
    assert htnet.sizes(shapes, {}, 3)["heads"] == 3


def test_impossible_heads_list_the_possible():
    shapes = shapes_of(module_of(dim=8, heads=2))
    with pytest.raises(UserError) as caught:
        htnet.sizes(shapes, {}, 3)
    message = str(caught.value)
    assert "heads=3 is impossible with dim=8; possible: 1, 2, 4, 8\n" in message
    assert "--heads" in message
    # Three heads of 7 // 3 channels use 6 of 7, as two and six heads do.
    with pytest.raises(UserError, match=r"heads=4 is impossible with dim=7; possible: 2, 3, 6\n"):
        htnet.sizes(shapes_of(module_of(dim=7, heads=3)), {"heads": 4}, 3)


def test_impossible_heads_when_only_a_higher_level_has_blocks():
    shapes = shapes_of(module_of(dim=8, heads=2, block_repeats=(0, 0, 1)))
    assert htnet.sizes(shapes, {"heads": 4}, 3)["heads"] == 4
    with pytest.raises(UserError, match=r"heads=3 is impossible with dim=8; possible: 1, 2, 4, 8"):
        htnet.sizes(shapes, {}, 3)


def test_rows_that_no_number_of_heads_gives():
    shapes = shapes_of(module_of(dim=8, heads=2))
    shapes["layers.0.0.layers.0.0.fn.to_qkv.weight"] = (25, 8, 1, 1)
    with pytest.raises(UserError, match=r"heads=3 is impossible with dim=8; possible: none"):
        htnet.sizes(shapes, {}, 3)


def test_contradictions_are_reported_together():
    shapes = shapes_of(module_of(num_classes=5, dim=8, heads=2, block_repeats=(1, 0, 2)))
    known = {
        "num_classes": 3,
        "dim": 16,
        "heads": 5,
        "mlp_mult": 4,
        "block_repeats": [1, 1, 2],
        # These have nothing to do with shapes.
        "dropout": 0.5,
        "name": "HTNet",
    }
    with pytest.raises(UserError) as caught:
        htnet.sizes(shapes, known, 3)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the state_dict's shapes: 4 problems"
    assert lines[1:5] == [
        "  layers.*.to_qkv.weight: heads=5 is impossible with dim=8; possible: 1, 2, 4, 8",
        "  num_classes: 5 in the file, 3 expected",
        "  dim: 8 in the file, 16 expected",
        "  block_repeats: (1, 0, 2) in the file, (1, 1, 2) expected",
    ]
    assert "config" in lines[5]


def test_lists_and_tuples_of_repeats_are_the_same():
    shapes = shapes_of(module_of(block_repeats=(1, 0, 2)))
    found = htnet.sizes(shapes, {"block_repeats": [1, 0, 2], "heads": 2}, 3)
    assert found["block_repeats"] == (1, 0, 2)


def test_vectors_that_are_no_squares_are_reported_together():
    shapes = shapes_of(module_of())
    # 147 numbers are 7 * 7 of 3 channels, but no square of 2.
    shapes["layers.0.0.pos_emb"] = (3,)
    with pytest.raises(UserError) as caught:
        htnet.sizes(shapes, {}, 2)
    message = str(caught.value)
    assert "a patch vector of 147 is no square of 2 channels" in message
    assert "layers.0.0.pos_emb: 3 positions are no square block" in message


def test_entries_that_are_missing_or_have_other_axes():
    shapes = shapes_of(module_of())
    del shapes["mlp_head.2.weight"]
    shapes["to_patch_embedding.1.weight"] = (6, 147)
    shapes["layers.0.0.layers.0.1.fn.net.0.weight"] = (24,)
    with pytest.raises(UserError) as caught:
        htnet.sizes(shapes, {}, 3)
    message = str(caught.value)
    assert "mlp_head.2.weight: shape missing, expected 2 axes" in message
    assert "to_patch_embedding.1.weight: shape (6, 147), expected 4 axes" in message
    assert "layers.0.0.layers.0.1.fn.net.0.weight: shape (24,), expected 4 axes" in message


def test_nothing_at_all():
    with pytest.raises(UserError, match=r"layers\.0\.0\.pos_emb: shape missing"):
        htnet.sizes({}, {}, 3)


def test_empty_axes_are_no_crash():
    shapes = {name: tuple(0 * n for n in shape) for name, shape in shapes_of(module_of()).items()}
    with pytest.raises(UserError):
        htnet.sizes(shapes, {}, 3)


def test_without_blocks_the_width_of_the_mlp_is_unknown():
    shapes = shapes_of(module_of(dim=8, block_repeats=(0, 0, 0)))
    found = htnet.sizes(shapes, {"heads": 5, "mlp_mult": 2}, 3)
    assert "mlp_mult" not in found
    assert found["heads"] == 5
    assert found["block_repeats"] == (0, 0, 0)
    with pytest.raises(UserError, match=r"heads=9 is impossible with dim=8"):
        htnet.sizes(shapes, {"heads": 9}, 3)


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 3, 56, 56), (2, 1, 28, 28), (3, 28, 28)])
def test_another_input_shape_is_refused(shape):
    model = htnet.build(module_of(image_size=28), 3)
    with pytest.raises(ValueError, match=r"expected \(B, \*\(3, 28, 28\)\)"):
        model(torch.zeros(shape))
