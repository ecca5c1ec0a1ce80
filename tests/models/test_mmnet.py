"""The network's parts by hand and against PyTorch; the whole of it beside PyTorch is tested in
tests/torch_bridge."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes.modules import flat, normal

from htnet_jax.models import MODELS, MMNet
from htnet_jax.models.layers import batch_mask
from htnet_jax.models.mmnet import (
    AttentionMap,
    ContinuousAttentionBlock,
    MapHead,
    PositionCalibration,
    shrink,
)

assert_close = np.testing.assert_allclose
SMALL = MMNet(image_size=32, stem=6, widths=(4, 4, 8, 8), depth=1, mlp_mult=2)
# Compiling takes nearly all of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shapes_of(module):
    frames = [jax.ShapeDtypeStruct((1, *shape), np.float32) for shape in module.input_shapes(2)]
    return jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, train=False), *frames)


FRAMES = normal(0, 3, 32, 32, 3), normal(1, 3, 32, 32, 3)


@pytest.fixture(scope="module")
def variables():
    """Random, with no neutral element."""
    rng = np.random.default_rng(5)
    draw = {"var": lambda s: rng.uniform(1, 2, s), "scale": lambda s: rng.uniform(0.5, 1.5, s)}
    arrays = {
        path: draw.get(path.split("/")[-1], lambda s: 0.5 * rng.normal(size=s))(leaf.shape)
        for path, leaf in flat(shapes_of(SMALL)).items()
    }
    arrays = {path: array.astype(np.float32) for path, array in arrays.items()}
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


@pytest.fixture(scope="module")
def evaluate():
    def apply(variables, onset, apex):
        return SMALL.apply(variables, onset, apex, train=False)

    return jax.jit(apply, compiler_options=QUICK)


@pytest.fixture(scope="module")
def learn():
    """`(variables, onset, apex, weights) -> gradients, (logits, running statistics)`."""

    def loss(params, stats, onset, apex, weights):
        variables = {"params": params, "batch_stats": stats}
        with batch_mask(weights):
            logits, moved = SMALL.apply(variables, onset, apex, train=True, mutable=["batch_stats"])
        return (jnp.sin(logits).sum(axis=1) * weights).sum(), (logits, moved["batch_stats"])

    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK)
    return lambda v, *rest: gradient(v["params"], v["batch_stats"], *rest)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "count"),
    [({}, 9_438_841), ({"depth": 3, "mlp_mult": 2, "drop_path": 0.3}, 9_442_425)],
)
def test_parameter_counts(attributes, count):
    shapes = shapes_of(MODELS["MMNet"](**attributes))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    # A mean and a variance for every pair of gain and bias of a batch norm.
    pairs = {path.rpartition("/")[0] for path in flat(shapes["batch_stats"])}
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["batch_stats"])) == 2 * sum(
        flat(shapes["params"])[f"{path}/scale"].size for path in pairs
    )
    assert shapes.keys() == {"params", "batch_stats"}


def test_input_shapes():
    """Frames have three channels whatever the flow has."""
    assert SMALL.input_shapes(5) == ((32, 32, 3), (32, 32, 3))
    assert MODELS["HTNet"]().input_shapes(5) == ((28, 28, 5),)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"image_size": 40}, "image_size=40 is not divisible by 16"),
        ({"widths": (4, 4, 8)}, "must name four widths"),
        ({"widths": (4, 0, 8, 8)}, "must be at least 1"),
        ({"widths": (4, 4, 8, 6)}, "is not divisible by heads=4"),
        ({"drop_path": 1.0}, r"drop_path=1.0 must lie in \[0, 1\)"),
        ({"dtype": "int32"}, "floating-point"),
        *[({key: 0}, f"{key}=0") for key in ("num_classes", "image_size", "stem", "depth")],
        *[({key: 0}, f"{key}=0") for key in ("heads", "mlp_mult")],
    ],
)
def test_attributes_that_do_not_fit(attributes, message):
    with pytest.raises(ValueError, match=message):
        SMALL.clone(**attributes).check_sizes()
    with pytest.raises(ValueError, match=message):
        SMALL.clone(**attributes).init(jax.random.key(0), *FRAMES, train=False)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 32, 32, 2), (3, 32, 48, 3), (3, 16, 16, 3)])
def test_frame_of_the_wrong_shape(which, shape):
    frames = [np.zeros(shape) if index == which else FRAMES[0] for index in range(2)]
    with pytest.raises(ValueError, match=("onset", "apex")[which] + " has shape"):
        jax.eval_shape(lambda: SMALL.init(jax.random.key(0), *frames, train=False))


# --- parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cells", [1, 3, 14])
def test_shrink_is_pytorchs_bilinear_without_antialiasing(cells):
    frames = normal(0, 2, 16 * cells, 32, 3)
    tensor = torch.from_numpy(np.moveaxis(frames, -1, 1).copy())
    theirs = torch.nn.functional.interpolate(
        tensor, (cells, 2), mode="bilinear", align_corners=False, antialias=False
    )
    assert_close(shrink(frames), np.moveaxis(theirs.numpy(), 1, -1), rtol=1e-5, atol=1e-6)


def test_attention_map_by_hand():
    """Mean first, then the maximum, evaluated with mean 0.5 and variance 4."""
    x = jnp.array([[1.0, 3.0], [0.0, -2.0]]).reshape(1, 1, 2, 2)
    variables = {
        "params": {
            "kernel": jnp.array([1.0, 10.0]),
            "norm": {"scale": np.ones(1), "bias": np.ones(1)},
        },
        "batch_stats": {"norm": {"mean": np.array([0.5]), "var": np.array([4.0])}},
    }
    out = AttentionMap().apply(variables, x, train=False)
    # 2 + 10 * 3 = 32; -1 + 0 = -1.
    normed = (np.array([32.0, -1.0]) - 0.5) / 2 + 1
    assert_close(out.reshape(-1), 1 / (1 + np.exp(-normed)), rtol=1e-5)


def test_block_multiplies_maps_and_hands_them_on():
    block, x = ContinuousAttentionBlock(4, 2), normal(0, 2, 6, 6, 3)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, train=False))
    variables = jax.tree.map(lambda leaf: 0.1 + np.abs(normal(3, *leaf.shape)), shapes)
    plain, own = block.apply(variables, x, train=False)
    before = np.random.default_rng(1).uniform(size=(2, 6, 6, 1)).astype(np.float32)
    out, handed = block.apply(variables, x, before, train=False)
    tensor = torch.from_numpy(np.moveaxis(before, -1, 1).copy())
    pooled = np.moveaxis(torch.nn.functional.max_pool2d(tensor, 3, 2, 1).numpy(), 1, -1)
    assert_close(handed, pooled * own, rtol=1e-6)
    assert_close(out, plain * pooled, rtol=1e-5, atol=1e-7)


def test_skip_is_the_identity_or_a_convolution():
    x = normal(0, 1, 4, 4, 3)
    for features, stride, has_skip in ((3, 1, False), (4, 1, True), (3, 2, True)):
        block = ContinuousAttentionBlock(features, stride)
        shapes = jax.eval_shape(lambda b=block: b.init(jax.random.key(0), x, train=False))
        assert ("skip" in shapes["params"]) == has_skip


def test_map_before_a_block_of_stride_1():
    with pytest.raises(ValueError, match="needs stride 2"):
        ContinuousAttentionBlock(3).init(
            jax.random.key(0), normal(0, 1, 4, 4, 3), np.ones((1, 4, 4, 1)), train=False
        )


def test_head_by_hand():
    kernel, bias = normal(0, 2, 3, 4, 5), normal(1, 5)
    x = normal(2, 6, 2, 3, 4)
    out = MapHead(5).apply({"params": {"kernel": kernel, "bias": bias}}, x)
    assert_close(out, np.einsum("bhwc,hwcn->bn", x, kernel) + bias, rtol=1e-4, atol=1e-5)


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.slow  # tests of the layers have each kind of start
def test_initial_values():
    started = SMALL.clone(image_size=64, stem=60, widths=(40, 40, 48, 64), depth=1)
    frames = [np.zeros((1, 64, 64, 3), np.float32)] * 2
    init = jax.jit(lambda k: started.init(k, *frames, train=False), compiler_options=QUICK)
    arrays = flat(init(jax.random.key(0, impl="rbg")))
    uniform = {
        "params/stem/conv/kernel": 27,
        "params/position/patch_embedding/kernel": 3,
        "params/position/patch_embedding/bias": 3,
        "params/head/kernel": 16 * 64,
        "params/head/bias": 16 * 64,
    }
    for path, array in arrays.items():
        last = path.split("/")[-1]
        if path in uniform:
            assert np.abs(array).max() <= uniform[path] ** -0.5, path
            assert array.size < 100 or np.abs(array).max() > 0.9 * uniform[path] ** -0.5, path
        elif last in ("scale", "var", "bias", "mean"):
            assert np.array_equal(array, np.full(array.shape, last in ("scale", "var"))), path
        elif last == "pos_embed" or "/position/" in path:
            assert np.std(array) == pytest.approx(0.02, rel=0.1), path
        elif not path.endswith("attention/kernel"):
            area = 9 if array.ndim == 4 else 1
            assert np.std(array) == pytest.approx((2 / area / array.shape[-1]) ** 0.5, rel=0.1), (
                path
            )
    maps = [array for path, array in arrays.items() if path.endswith("attention/kernel")]
    assert len(maps) == 4
    # Eight draws of N(0, 2).
    assert 0.5 < np.std(maps) < 3


def test_kernel_of_a_map_starts_wide():
    """Kaiming normal by fan-out with one output."""
    x = np.zeros((1, 1, 1, 2), np.float32)
    one = jax.vmap(lambda k: AttentionMap().init(k, x, train=False))
    kernels = one(jax.random.split(jax.random.key(1), 2000))["params"]["kernel"]
    assert np.std(kernels) == pytest.approx(2**0.5, rel=0.05)


def test_drop_path_rises_from_zero():
    """Rates 0, 0.15 and 0.3."""
    branch = PositionCalibration(4, depth=3, heads=1, mlp_mult=1, drop_path=0.3)
    grid = np.zeros((200, 1, 2, 3), np.float32)
    shapes = jax.eval_shape(lambda: branch.init(jax.random.key(0), grid, train=False))
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)

    def apply(key):
        rngs = {"dropout": key}
        return branch.apply(ones, grid, train=True, rngs=rngs, mutable=["intermediates"])[1]

    masks = {
        path: np.asarray(value[0])
        for path, value in flat(
            jax.jit(apply, compiler_options=QUICK)(jax.random.key(0))["intermediates"]
        ).items()
        if path.endswith("/mask")
    }
    assert masks.keys() == {
        f"block_{index}/{name}_path/mask" for index in (1, 2) for name in ("attention", "mlp")
    }
    for path, mask in masks.items():
        rate = 0.15 if path.startswith("block_1") else 0.3
        kept = mask != 0
        assert_close(mask[kept], 1 / (1 - rate), rtol=1e-6)
        # Four standard deviations of 200 draws.
        assert kept.mean() == pytest.approx(1 - rate, abs=4 * (rate * (1 - rate) / 200) ** 0.5)


def test_gradients_reach_every_parameter(variables, learn):
    gradients, (logits, stats) = learn(variables, *FRAMES, np.ones(3, np.float32))
    assert logits.shape == (3, 5)
    for path, gradient in flat(gradients).items():
        assert np.isfinite(gradient).all(), path
        assert np.asarray(gradient).any(), path
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), stats, variables["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_padding_changes_nothing_of_the_others(variables, learn):
    """Neither gradients nor running statistics."""
    weights = np.array([1, 0, 1], np.float32)
    gradients, (logits, stats) = learn(variables, *FRAMES, weights)
    others = [np.where(weights[:, None, None, None] > 0, x, 7.0).astype("f4") for x in FRAMES]
    again, (other_logits, other_stats) = learn(variables, *others, weights)
    jax.tree.map(
        lambda a, b: assert_close(a, b, rtol=1e-5, atol=1e-6),
        (gradients, stats),
        (again, other_stats),
    )
    assert_close(logits[::2], other_logits[::2], rtol=1e-5, atol=1e-6)
    assert np.abs(logits[1] - other_logits[1]).max() > 1e-3


def test_all_padding_is_harmless(variables, learn):
    gradients, (logits, stats) = learn(variables, *FRAMES, np.zeros(3, np.float32))
    assert np.isfinite(logits).all()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradients))
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])


def test_branches_see_what_is_theirs(variables, evaluate):
    """The main branch sees the difference only; the other one four pixels of every cell."""
    onset, apex = FRAMES
    logits = evaluate(variables, onset, apex)
    shifted = onset.copy()
    shifted[:, 0, 0] += 5
    assert_close(evaluate(variables, shifted, apex + shifted - onset), logits, rtol=1e-3, atol=1e-4)
    shifted[:, 7, 8] += 5
    moved = evaluate(variables, shifted, apex + shifted - onset)
    assert np.abs(moved - logits).max(axis=1).min() > 1e-3
    moved = evaluate(variables, onset, apex * 1.5)
    assert np.abs(moved - logits).max(axis=1).min() > 1e-3


def test_examples_are_independent_in_evaluation(variables, evaluate):
    together = evaluate(variables, *FRAMES)
    order = [2, 0, 1]
    assert_close(
        evaluate(variables, *(x[order] for x in FRAMES)), together[order, :], rtol=1e-4, atol=1e-5
    )


def test_train_must_be_said(variables):
    with pytest.raises(TypeError, match="train"):
        SMALL.apply(variables, *FRAMES)
