"""The attribute network and R3D beside PyTorch: names, conversion, sizes, parity."""

import functools
import math

import flax
import jax
import numpy as np
import pytest
import torch
from fakes.attribute_net import SMALL

from htnet_jax.errors import UserError
from htnet_jax.models import R3D, AttributeNet, MMNet
from htnet_jax.torch_bridge import BRIDGES, attributes, convert, mmnet, r3d
from htnet_jax.torch_bridge.convert import match, translate
from htnet_jax.torch_bridge.losses import LOSSES

BRIDGE = BRIDGES["AttributeNet"]


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep="/")


@functools.cache
def expected(module):
    return convert.expected_variables(module, 3)


def any_variables(module, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), expected(module)
    )


def shapes_of(state_dict):
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def parameters(shapes):
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return sum(math.prod(s) for name, s in shapes.items() if not name.endswith(buffers))


# --- names and shapes -----------------------------------------------------------------------------


def norm(name, channels):
    return {
        **{f"{name}.{key}": (channels,) for key in ("weight", "bias")},
        **{f"{name}.{key}": (channels,) for key in ("running_mean", "running_var")},
        f"{name}.num_batches_tracked": (),
    }


def torchvision_entries(width=64, channels=3, classes=400):
    """Those of torchvision's `r3d_18`, written down by hand."""
    entries = {"stem.0.weight": (width, channels, 3, 7, 7), **norm("stem.1", width)}
    narrow = width
    for stage, wide in enumerate((width, 2 * width, 4 * width, 8 * width), 1):
        for block in (0, 1):
            name = f"layer{stage}.{block}"
            entries |= {f"{name}.conv1.0.weight": (wide, narrow, 3, 3, 3)}
            entries |= norm(f"{name}.conv1.1", wide)
            entries |= {f"{name}.conv2.0.weight": (wide, wide, 3, 3, 3)}
            entries |= norm(f"{name}.conv2.1", wide)
            if stage > 1 and block == 0:
                entries |= {f"{name}.downsample.0.weight": (wide, narrow, 1, 1, 1)}
                entries |= norm(f"{name}.downsample.1", wide)
            narrow = wide
    return entries | {"fc.weight": (classes, 8 * width), "fc.bias": (classes,)}


def test_r3d_has_torchvisions_names_and_shapes():
    with torch.device("meta"):
        shapes = shapes_of(r3d.build(R3D(num_classes=400)).state_dict())
    assert shapes == torchvision_entries()
    assert parameters(shapes) == 33_371_472


def test_r3d_takes_a_state_dict_of_torchvisions_names_strictly():
    """And the Flax network computes the same from it."""
    module = R3D(width=4, frames=4, image_size=16, num_classes=7)
    rng, state_dict = np.random.default_rng(0), kinetics(4, 7)
    for name in state_dict:
        if name.endswith("running_var"):
            state_dict[name].abs_()
    model = r3d.build(module)
    model.load_state_dict(state_dict, strict=True)
    rest = {name: t for name, t in state_dict.items() if not name.endswith("tracked")}
    shape = (2, 4, 16, 16, 3)
    clip = rng.normal(size=shape).astype(np.float32)
    sample = jax.ShapeDtypeStruct(shape, np.float32)
    wanted = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), sample)
    variables = convert.from_state_dict(rest, r3d.TABLE, wanted)
    logits = jax.jit(functools.partial(module.apply, train=False))(variables, clip)
    with torch.no_grad():
        theirs = model(torch.from_numpy(np.moveaxis(clip, -1, 1).copy()))
    np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def test_names_and_number_of_parameters():
    with torch.device("meta"):
        shapes = shapes_of(attributes.build(AttributeNet()).state_dict())
    streams = {
        f"{stream}.{name}": shape
        for stream, channels in (("rgb", 3), ("flow", 2))
        for name, shape in torchvision_entries(channels=channels).items()
        if not name.startswith("fc.")
    }
    dense = {"fusion": (512, 1024), "head": (5, 512)}
    dense |= {"visual_projection": (256, 512), "text_projection": (256, 768)}
    weights = {f"{name}.weight": shape for name, shape in dense.items()}
    biases = {f"{name}.bias": shape[:1] for name, shape in dense.items()}
    assert shapes == streams | weights | biases
    assert parameters(shapes) == 67_178_693


@pytest.mark.parametrize(
    ("module", "table"),
    [(SMALL, BRIDGE.table), (AttributeNet(), BRIDGE.table), (None, r3d.TABLE)],
    ids=["small", "full", "R3D"],
)
def test_every_array_matches_one_rule_and_every_rule_is_used(module, table):
    if module is None:
        clip = jax.ShapeDtypeStruct((1, 16, 112, 112, 3), np.float32)
        network = R3D(num_classes=400)
        variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), clip)
    else:
        variables = expected(module)
    used, names = set(), []
    for path in flat(variables):
        (rule,) = (rule for rule in table if match(rule.flax, path) is not None)
        used.add(rule.flax)
        names.append(translate(path, rule.flax, rule.torch))
    assert used == {rule.flax for rule in table}
    assert len({*names}) == len(names)


# --- conversion -----------------------------------------------------------------------------------


def test_order_of_a_kernels_axes():
    """PyTorch has output and input channel, then depth, height, width."""
    variables = any_variables(SMALL)
    kernel = variables["params"]["flow"]["stem"]["conv"]["kernel"]
    weight = convert.to_state_dict(variables, BRIDGE.table)["flow.stem.0.weight"]
    assert kernel.shape == (3, 7, 7, 2, 4)
    for t, h, w, i, o in np.ndindex(kernel.shape):
        assert weight[o, i, t, h, w] == kernel[t, h, w, i, o]


@pytest.mark.parametrize("streams", ["both", "rgb", "flow"])
def test_every_bit_comes_back(streams):
    module = SMALL.clone(streams=streams)
    variables = any_variables(module)
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    model = attributes.build(module)
    model.load_state_dict(state_dict, strict=True)
    rest, (note,) = convert.drop_unused(model.state_dict(), BRIDGE)
    assert "x num_batches_tracked" in note
    back = flat(convert.from_state_dict(rest, BRIDGE.table, expected(module)))
    assert back.keys() == flat(variables).keys()
    for path, array in flat(variables).items():
        np.testing.assert_array_equal(back[path].view("u4"), array.view("u4"), err_msg=path)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [
        AttributeNet(),
        SMALL,
        SMALL.clone(streams="flow", depth=34),
        SMALL.clone(depth=18),
    ],
)
def test_sizes_are_inferred(module):
    with torch.device("meta"):
        state_dict = attributes.build(module).state_dict()
    rest, _ = convert.drop_unused(state_dict, BRIDGE)
    known = {name: getattr(module, name) for name in BRIDGE.assumed}
    assert AttributeNet(**convert.infer_sizes(rest, BRIDGE, known, 3)) == module
    assumed = AttributeNet(**convert.infer_sizes(rest, BRIDGE, {}, 3))
    assert (assumed.frames, assumed.image_size, assumed.dropout) == (16, 112, 0.5)


@pytest.mark.parametrize(
    ("changes", "known", "message"),
    [
        ({}, {"width": 8}, "width: 4 in the file, 8 expected"),
        ({}, {"streams": "rgb"}, "streams: both in the file, rgb expected"),
        ({}, {"text_width": 768}, "text_width: 7 in the file, 768 expected"),
        ({"rgb.stem.0.weight": (8, 3, 3, 7, 7)}, {}, "streams of different sizes"),
        ({"flow.stem.0.weight": (4, 2, 7, 7)}, {}, "flow.stem.0.weight: shape .*expected 5 axes"),
        ({"rgb.layer3.1.conv1.1.bias": (16,)}, {}, r"rgb.layer\*: \(1, 1, 2, 1\) blocks"),
        ({"fusion.weight": (0, 64)}, {}, "an axis of length 0"),
    ],
)
def test_sizes_that_contradict(changes, known, message):
    shapes = shapes_of(attributes.build(SMALL).state_dict()) | changes
    with pytest.raises(UserError, match=message):
        attributes.sizes(shapes, known, 3)


def test_a_file_without_streams():
    with pytest.raises(UserError, match="no other entry of a stream"):
        attributes.sizes({"head.weight": (5, 6)}, {}, 3)


def test_pytorch_network_refuses_other_clips():
    model = attributes.build(SMALL)
    rgb, flow = torch.zeros(1, 3, 4, 16, 16), torch.zeros(1, 2, 4, 16, 16)
    for clips in ((rgb[:, :2], flow), (rgb, rgb), (rgb[:, :, :2], flow)):
        with pytest.raises(ValueError, match="a clip has shape"):
            model(*clips)
    with pytest.raises(ValueError, match="streams"):
        attributes.AttributeNet(streams="sound")


# --- weights of another training ------------------------------------------------------------------


def kinetics(width, classes=400, seed=0):
    """A state_dict of torchvision's names, with any values."""
    rng = np.random.default_rng(seed)
    return {
        name: torch.from_numpy(rng.normal(size=shape).astype(np.float32))
        if shape
        else torch.tensor(7)
        for name, shape in torchvision_entries(width, 3, classes).items()
    }


def test_pretrained_weights_go_into_both_streams():
    module, state_dict = SMALL.clone(depth=18), kinetics(4)
    found = BRIDGE.pretrained(state_dict, module)
    assert found.keys() == {"params", "batch_stats"}
    assert all(tree.keys() == {"rgb", "flow"} for tree in found.values())
    own, every = flat(found), flat(expected(module))
    # All of the streams, and nothing else.
    assert own.keys() == {path for path in every if path.split("/")[1] in ("rgb", "flow")}
    for path, array in own.items():
        assert (array.shape, array.dtype) == (every[path].shape, np.float32), path
    back = convert.to_state_dict(found, BRIDGE.table)
    for name, tensor in state_dict.items():
        if name.startswith("fc.") or name.endswith("tracked"):
            continue
        assert torch.equal(back[f"rgb.{name}"], tensor), name
        if name != "stem.0.weight":
            assert torch.equal(back[f"flow.{name}"], tensor), name
    # The mean over the channels, once for u and once for v.
    mean = state_dict["stem.0.weight"].numpy().astype(np.float64).mean(axis=1)
    stem = back["flow.stem.0.weight"].numpy()
    assert stem.shape == (4, 2, 3, 7, 7)
    for component in (0, 1):
        np.testing.assert_allclose(stem[:, component], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("streams", ["rgb", "flow"])
def test_pretrained_weights_go_into_one_stream(streams):
    found = BRIDGE.pretrained(kinetics(4), SMALL.clone(depth=18, streams=streams))
    assert [*found["params"], *found["batch_stats"]] == [streams, streams]


def test_pretrained_weights_of_the_full_size_fit():
    """Halves, and without the head, as some files are."""
    state_dict = {
        name: torch.ones(1, dtype=torch.float16).expand(shape)
        for name, shape in torchvision_entries().items()
        if shape and not name.startswith("fc.")
    }
    found = flat(BRIDGE.pretrained(state_dict, AttributeNet()))
    assert sum(array.size for path, array in found.items() if path.startswith("params")) == (
        33_166_272 + 33_156_864
    )
    assert {array.dtype for array in found.values()} == {np.dtype(np.float32)}


def resnet(shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (lambda: kinetics(8), "width: 8 in the file, 4 expected\n.*model.width=8 .*depth=18"),
        (
            lambda: convert.to_state_dict(any_variables(SMALL), BRIDGE.table),
            r"holds (rgb|flow)\.",
        ),
        (lambda: mmnet.build(MMNet(image_size=32)).state_dict(), "not the weights of an R3D"),
        (lambda: resnet({"conv1.weight": (64, 3, 7, 7)}), "it holds conv1.weight. Give a file"),
        (lambda: resnet({"stem.3.weight": (64, 45, 3, 1, 1)}), "it holds stem.3.weight"),
        (lambda: resnet({"fc.bias": (400,)}), "it lacks stem.0.weight"),
        (lambda: kinetics(4) | resnet({"stem.0.weight": (4, 3, 7, 7)}), "expected 5 axes"),
        (lambda: kinetics(4) | resnet({"stem.0.weight": (4, 2, 3, 7, 7)}), "2 channels, not"),
        (lambda: kinetics(4) | resnet({"stem.0.weight": (4, 3, 1, 7, 7)}), "1 misshapen"),
        (lambda: kinetics(4) | resnet({"layer2.2.conv1.1.bias": (8,)}), r"\(2, 3, 2, 2\) blocks"),
    ],
)
def test_pretrained_weights_of_another_network(file, message):
    with pytest.raises(UserError, match=message):
        BRIDGE.pretrained(file(), SMALL.clone(depth=18))


# --- the loss -------------------------------------------------------------------------------------


def loss_of(sets, visual, text, **options):
    out = {"visual": torch.tensor(visual), "text": torch.tensor(text)}
    return float(LOSSES["attribute_contrastive"](None, out, None, {"au_set": sets}, **options))


def test_contrastive_loss_by_hand():
    """Three clips of two sets, and one whose units are not known, at right angles."""
    e, s = np.eye(2), 1 / 0.5
    sets = torch.tensor([0, 1, 0, -1])
    visual, text = e[[0, 1, 1, 0]], e[[0, 1, 0, 1]]
    # Rows of s_ij / temperature: (s, 0, s), (0, s, 0), (0, s, 0).
    first = -math.log(math.exp(s) / (2 * math.exp(s) + 1))
    second = -math.log(math.exp(s) / (math.exp(s) + 2))
    third = -math.log(1 / (math.exp(s) + 2))
    # Columns: (s, 0, 0), (0, s, s), (s, 0, 0).
    column = -(math.log(math.exp(s) / (math.exp(s) + 2)) + math.log(1 / (math.exp(s) + 2))) / 2
    middle = -math.log(math.exp(s) / (2 * math.exp(s) + 1))
    expected = ((first + second + third) / 3 + (column + middle + column) / 3) / 2
    assert loss_of(sets, visual, text, temperature=0.5) == pytest.approx(expected, rel=1e-12)


def test_contrastive_loss_without_known_units_is_zero():
    assert loss_of(torch.tensor([-1, -1]), np.eye(2), np.eye(2)) == 0


def test_pytorch_initial_values():
    model = r3d.build(R3D(width=16))
    weight = model.layer3[0].conv2[0].weight
    assert float(weight.detach().std()) == pytest.approx((2 / (27 * 64)) ** 0.5, rel=0.02)
    stem = model.stem[0].weight.detach()
    assert float(stem.std()) == pytest.approx((2 / (147 * 16)) ** 0.5, rel=0.05)
