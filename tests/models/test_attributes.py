"""Sizes, parts and the flow of values by hand; the whole of both networks beside PyTorch is tested
in tests/torch_bridge."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.modules import flat, normal

from htnet_jax.models import MODELS, R3D, AttributeNet
from htnet_jax.models.attributes import unit
from htnet_jax.models.layers import batch_mask

assert_close = np.testing.assert_allclose
SMALL = AttributeNet(
    width=2, depth=10, frames=4, image_size=8, features=6, projection=4, text_width=3
)
CLIPS = normal(0, 3, 4, 8, 8, 3), normal(1, 3, 4, 8, 8, 2)
TEXT = normal(2, 5, 3)
# Compiling takes nearly all of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shapes_of(module, *shapes, **more):
    clips = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in shapes]
    return jax.eval_shape(
        lambda *x: module.init(jax.random.key(0), *x, train=False, **more), *clips
    )


def size(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


@pytest.fixture(scope="module")
def variables():
    """Random, with no neutral element."""
    rng = np.random.default_rng(5)
    draw = {"var": lambda s: rng.uniform(1, 2, s), "scale": lambda s: rng.uniform(0.5, 1.5, s)}
    arrays = {
        path: draw.get(path.split("/")[-1], lambda s: 0.5 * rng.normal(size=s))(leaf.shape)
        for path, leaf in flat(shapes_of(SMALL, *SMALL.input_shapes(3))).items()
    }
    arrays = {path: array.astype(np.float32) for path, array in arrays.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


@pytest.fixture(scope="module")
def learn():
    """`(variables, clips, text, weights) -> gradients, (logits, out, running statistics)`."""
    network = SMALL.clone(dropout=0.0)

    def loss(params, stats, clips, text, weights):
        variables = {"params": params, "batch_stats": stats}
        with batch_mask(weights):
            (logits, out), moved = network.apply(
                variables, *clips, text=text, train=True, mutable=["batch_stats"]
            )
        values = jnp.sin(logits).sum(axis=1) + (out["visual"] @ out["text"].T).sum(axis=1)
        return (values * weights).sum(), (logits, out, moved["batch_stats"])

    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    return lambda v, *rest: gradient(v["params"], v["batch_stats"], *rest)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "count"),
    # torchvision's r3d_18 without its head, on flow, and with 400 classes.
    [({}, 33_166_272), ({"channels": 2}, 33_156_864), ({"num_classes": 400}, 33_371_472)],
)
def test_parameter_counts_of_a_stream(attributes, count):
    module = R3D(**attributes)
    shapes = shapes_of(module, (16, 112, 112, module.channels))
    assert size(shapes) == count
    assert shapes.keys() == {"params", "batch_stats"}


@pytest.mark.parametrize("with_text", [False, True])
def test_parameter_count_with_and_without_text(with_text):
    """The text's projection is there in either case."""
    module = MODELS["AttributeNet"](num_classes=5)
    more = {"text": np.zeros((7, 768), np.float32)} if with_text else {}
    shapes = shapes_of(module, *module.input_shapes(3), **more)
    assert size(shapes) == 67_178_693
    assert shapes["params"].keys() == {
        *("rgb", "flow", "fusion", "head", "visual_projection", "text_projection")
    }


@pytest.mark.parametrize(("streams", "count"), [("rgb", 33_166_272), ("flow", 33_156_864)])
def test_parameter_counts_with_a_single_stream(streams, count):
    module = AttributeNet(streams=streams)
    shapes = shapes_of(module, *module.input_shapes(3))
    dense = 512 * 512 + 512 + 512 * 5 + 5 + 512 * 256 + 256 + 768 * 256 + 256
    assert size(shapes) == count + dense
    assert size({"params": shapes["params"][streams]}) == count


@pytest.mark.parametrize(("depth", "blocks"), [(10, 1111), (18, 2222), (34, 3463)])
def test_blocks_of_each_stage(depth, blocks):
    params = shapes_of(R3D(depth, width=1, frames=2, image_size=8), (2, 8, 8, 3))["params"]
    found = [name.split("_")[1] for name in params if name != "stem"]
    assert [found.count(stage) for stage in "1234"] == [int(digit) for digit in str(blocks)]
    skips = {name for name in params if "skip" in params[name]}
    assert skips == {"layer_2_0", "layer_3_0", "layer_4_0"}


def test_input_shapes():
    """A clip's flow has u and v whatever the apex frame's flow has."""
    assert SMALL.input_shapes(5) == ((4, 8, 8, 3), (4, 8, 8, 2))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"depth": 12}, "depth=12 is unknown; use 10, 18, 34"),
        ({"streams": "text"}, "streams='text' is unknown; use both, rgb, flow"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"dtype": "int32"}, "floating-point"),
        *[({key: 0}, f"{key}=0") for key in ("num_classes", "width", "frames", "image_size")],
        *[({key: 0}, f"{key}=0") for key in ("features", "projection", "text_width", "depth")],
    ],
)
def test_attributes_that_do_not_fit(attributes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.clone(**attributes).check_sizes()
    with pytest.raises(ValueError, match=message):
        SMALL.clone(**attributes).init(jax.random.key(0), *CLIPS, train=False)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((3, 6, 8, 8), "; set frames=6 and image_size=8"),
        ((3, 4, 16, 16), "; set frames=4 and image_size=16"),
        ((3, 4, 8, 6), "(\n|$)"),
        ((3, 8, 8), "(\n|$)"),
    ],
)
@pytest.mark.parametrize("which", [0, 1])
def test_clip_of_the_wrong_shape(which, shape, remedy):
    clips = [np.zeros((*shape, x.shape[-1])) if i == which else x for i, x in enumerate(CLIPS)]
    message = ("rgb", "flow")[which] + "_clip has shape .*need \\(batch, 4, 8, 8, [23]\\)"
    with pytest.raises(ValueError, match=message + remedy):
        jax.eval_shape(lambda: SMALL.init(jax.random.key(0), *clips, train=False))


def test_text_of_another_width():
    with pytest.raises(ValueError, match=r"text_width=3 needs \(texts, 3\); set text_width=384"):
        jax.eval_shape(
            lambda: SMALL.init(jax.random.key(0), *CLIPS, text=np.zeros((3, 384)), train=False)
        )


# --- values ---------------------------------------------------------------------------------------


def test_unit_by_hand():
    """A vector of zeros stays, and its gradient is finite."""
    x = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    assert_close(unit(x), [[0.6, 0.8], [0, 0]], rtol=1e-6)
    assert unit(x.astype(jnp.bfloat16)).dtype == jnp.float32
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()


def test_initial_values():
    """torchvision's: N(0, 2 / fan-out) for kernels, 1 and 0 for the normalisation."""
    module = R3D(10, width=16, frames=1, image_size=4)
    arrays = flat(
        jax.jit(module.init, static_argnames="train", compiler_options=QUICK)(
            jax.random.key(0), np.zeros((1, 1, 4, 4, 3), np.float32), train=False
        )
    )
    for path, array in arrays.items():
        if path.endswith("kernel"):
            area = np.prod(array.shape[:-2])
            expected = (2 / area / array.shape[-1]) ** 0.5
            assert np.std(array) == pytest.approx(expected, rel=0.1), path
        else:
            last = path.split("/")[-1]
            assert np.array_equal(array, np.full(array.shape, last in ("scale", "var"))), path


def test_every_parameter_learns_and_statistics_move(variables, learn):
    gradients, (logits, out, stats) = learn(variables, CLIPS, TEXT, np.ones(3, np.float32))
    assert logits.shape == (3, 5)
    assert (out["visual"].shape, out["text"].shape) == ((3, 4), (5, 4))
    for values in out.values():
        assert_close(np.linalg.norm(values, axis=-1), 1, rtol=1e-5)
    for path, gradient in flat(gradients).items():
        assert np.isfinite(gradient).all(), path
        assert np.asarray(gradient).any(), path
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_padding_changes_nothing_of_the_others(variables, learn):
    weights = np.array([1, 0, 1], np.float32)
    gradients, (logits, _, stats) = learn(variables, CLIPS, TEXT, weights)
    others = tuple(np.where(weights.reshape(3, 1, 1, 1, 1) > 0, x, 7.0).astype("f4") for x in CLIPS)
    again, (other_logits, _, other_stats) = learn(variables, others, TEXT, weights)
    jax.tree.map(
        lambda a, b: assert_close(a, b, rtol=1e-4, atol=1e-5),
        (gradients, stats),
        (again, other_stats),
    )
    assert_close(logits[::2], other_logits[::2], rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def evaluated(variables):
    """`(variables, *clips, text) -> (logits, out), what lies between`, by streams."""

    def apply(streams):
        network = SMALL.clone(streams=streams)
        return jax.jit(
            lambda v, *clips, text=None: network.apply(
                v, *clips, text=text, train=False, mutable=["intermediates"]
            ),
            compiler_options=QUICK,
        )

    return {streams: apply(streams) for streams in ("both", "rgb")}


def test_text_changes_nothing_of_the_logits(variables, evaluated):
    (logits, out), between = evaluated["both"](variables, *CLIPS)
    assert out.keys() == {"visual"}
    (with_text, more), _ = evaluated["both"](variables, *CLIPS, text=TEXT)
    assert_close(with_text, logits, rtol=1e-4, atol=1e-5)
    assert_close(more["visual"], out["visual"], rtol=1e-4, atol=1e-5)
    # Head and projections by hand.
    fused = between["intermediates"]["fused"][0]
    params = variables["params"]
    for name, found in (("head", logits), ("visual_projection", out["visual"])):
        expected = np.asarray(fused) @ params[name]["kernel"] + params[name]["bias"]
        if name == "visual_projection":
            expected = expected / np.linalg.norm(expected, axis=-1, keepdims=True)
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
    projected = TEXT @ params["text_projection"]["kernel"] + params["text_projection"]["bias"]
    assert_close(
        more["text"], projected / np.linalg.norm(projected, axis=-1, keepdims=True), rtol=1e-4
    )


def test_values_between_the_layers(variables, evaluated):
    """Those that a comparison layer by layer needs, and the sizes that the strides leave."""
    _, between = evaluated["both"](variables, *CLIPS)
    shapes = {
        path.removesuffix("/0"): value[0].shape
        for path, value in flat(between["intermediates"]).items()
    }
    blocks = [(4, 4, 4, 2), (2, 2, 2, 4), (1, 1, 1, 8), (1, 1, 1, 16)]
    assert shapes == {
        "fused": (3, 6),
        **{f"{stream}/pooled": (3, 16) for stream in ("rgb", "flow")},
        **{
            f"{stream}/layer_{number}_0/joined": (3, *shape)
            for stream in ("rgb", "flow")
            for number, shape in enumerate(blocks, 1)
        },
    }


def test_a_single_stream_ignores_the_other(variables, evaluated):
    params = dict(variables["params"])
    params["fusion"] = {**params["fusion"], "kernel": params["fusion"]["kernel"][:16]}
    one = {
        "params": {key: value for key, value in params.items() if key != "flow"},
        "batch_stats": {"rgb": variables["batch_stats"]["rgb"]},
    }
    (logits, _), _ = evaluated["rgb"](one, *CLIPS)
    (again, _), _ = evaluated["rgb"](one, CLIPS[0], CLIPS[1] + 5)
    np.testing.assert_array_equal(logits, again)
    (other, _), _ = evaluated["rgb"](one, CLIPS[0] + normal(3, 1, 1, 8, 8, 3), CLIPS[1])
    assert np.abs(logits - other).max() > 1e-3


def test_dropout_is_drawn_in_training_only(variables):
    def fused(rate, key):
        network = SMALL.clone(dropout=rate)
        (logits, _), _ = network.apply(
            variables, *CLIPS, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return logits

    draw = jax.jit(fused, static_argnums=0, compiler_options=QUICK)
    first, second = (draw(0.5, jax.random.key(seed)) for seed in (0, 1))
    assert np.abs(first - second).max() > 1e-3
