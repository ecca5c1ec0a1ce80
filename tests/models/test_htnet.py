import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import slow_block
from fakes.modules import evaluate, fast_key, flat, init_shapes, normal, quick_jit, random_params
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.models import MODELS
from htnet_jax.models.htnet import (
    Aggregate,
    Hierarchy,
    HTNet,
    blockify,
    patchify,
    unblockify,
)

assert_close = np.testing.assert_allclose


def pixels(seed, batch, size, channels=3):
    return np.random.default_rng(seed).uniform(0, 255, (batch, size, size, channels)).astype("f4")


def size(params):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


# --- the network again, in NumPy and float64, one token or one window at a time -------------------


def ref_hierarchy(p, x, blocks, repeats, heads):
    """`x` is (side, side, width): one picture."""
    out = np.zeros(x.shape)
    n = x.shape[0] // blocks
    for row in range(blocks):
        for column in range(blocks):
            here = np.s_[row * n : (row + 1) * n, column * n : (column + 1) * n]
            tokens = np.array([token for line in x[here] for token in line], dtype=float)
            for index in range(n * n):
                tokens[index] += p["pos_emb"][index]
            for repeat in range(repeats):
                tokens = slow_block.block(p[f"block_{repeat}"], tokens, heads)
            for index, token in enumerate(tokens):
                out[here][index // n, index % n] = token
    return out


def ref_aggregate(p, x):
    side, _, width = x.shape
    padded = np.zeros((side + 2, side + 2, width))
    padded[1:-1, 1:-1] = x
    kernel = p["conv"]["kernel"].astype(float)
    conv = np.array(
        [
            [np.tensordot(padded[i : i + 3, j : j + 3], kernel, 3) for j in range(side)]
            for i in range(side)
        ]
    )
    normed = slow_block.layer_norm(p["norm"], conv + p["conv"]["bias"])
    framed = np.full((side + 2, side + 2, normed.shape[-1]), -np.inf)
    framed[1:-1, 1:-1] = normed
    steps = range(0, side, 2)
    return np.array([[framed[i : i + 3, j : j + 3].max(axis=(0, 1)) for j in steps] for i in steps])


def ref_htnet(model, p, picture):
    """`picture` is (image_size, image_size, channels); returns the logits."""
    patch, side = model.patch_size, model.image_size // model.patch_size
    x = np.zeros((side, side, model.dim))
    for i in range(side):
        for j in range(side):
            vector = [
                value
                for line in picture[i * patch : (i + 1) * patch]
                for pixel in line[j * patch : (j + 1) * patch]
                for value in pixel
            ]
            x[i, j] = slow_block.dense(p["patch_embedding"], np.array(vector, dtype=float))
    for level in range(model.num_hierarchies):
        blocks = 2 ** (model.num_hierarchies - 1 - level)
        heads = model.heads * 2**level
        x = ref_hierarchy(p[f"level_{level}"], x, blocks, model.block_repeats[level], heads)
        if level < model.num_hierarchies - 1:
            x = ref_aggregate(p[f"aggregate_{level}"], x)
    return slow_block.dense(p["head"], slow_block.layer_norm(p["head_norm"], x).mean(axis=(0, 1)))


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "count"), [(256, 139_582_982), (32, 2_158_278)])
def test_parameter_counts(dim, count):
    assert size(init_shapes(HTNet(dim=dim), jnp.zeros((1, 28, 28, 3)))) == count


def test_defaults_are_the_published_configuration():
    model = MODELS["HTNet"]()
    assert isinstance(model, HTNet)
    assert (model.num_classes, model.image_size, model.patch_size, model.dim) == (3, 28, 7, 256)
    assert (model.heads, model.num_hierarchies, model.block_repeats) == (3, 3, (2, 2, 10))
    assert (model.mlp_mult, model.dropout, model.dtype) == (4, 0.0, jnp.float32)


def test_published_head_widths():
    """256 // 3 = 85: the inner width is 255, then 510 and 1020."""
    shapes = flat(init_shapes(HTNet(), jnp.zeros((1, 28, 28, 3))))
    for level, (width, inner) in enumerate([(256, 255), (512, 510), (1024, 1020)]):
        attention = f"level_{level}/block_1/attention"
        assert shapes[f"{attention}/qkv"].shape == (width, 3 * inner)
        assert shapes[f"{attention}/out/kernel"].shape == (inner, width)
        assert shapes[f"level_{level}/pos_emb"].shape == (1,)


def test_every_parameter_of_a_small_network():
    model = HTNet(
        num_classes=5, dim=6, heads=4, num_hierarchies=2, block_repeats=(1, 2), mlp_mult=2
    )
    params = flat(init_shapes(model, jnp.zeros((1, 28, 28, 2))))

    def block(path, width, inner):
        return {
            f"{path}/attention_norm/scale": (width,),
            f"{path}/attention_norm/bias": (width,),
            f"{path}/attention/qkv": (width, 3 * inner),
            f"{path}/attention/out/kernel": (inner, width),
            f"{path}/attention/out/bias": (width,),
            f"{path}/mlp_norm/scale": (width,),
            f"{path}/mlp_norm/bias": (width,),
            f"{path}/mlp/fc1/kernel": (width, 2 * width),
            f"{path}/mlp/fc1/bias": (2 * width,),
            f"{path}/mlp/fc2/kernel": (2 * width, width),
            f"{path}/mlp/fc2/bias": (width,),
        }

    # 4x4 patches of 7 * 7 * 2 numbers; 6 // 4 = 12 // 8 = 1 channel a head.
    expected = {
        "patch_embedding/kernel": (98, 6),
        "patch_embedding/bias": (6,),
        "level_0/pos_emb": (4,),
        **block("level_0/block_0", 6, 4),
        "aggregate_0/conv/kernel": (3, 3, 6, 12),
        "aggregate_0/conv/bias": (12,),
        "aggregate_0/norm/scale": (12,),
        "aggregate_0/norm/bias": (12,),
        "level_1/pos_emb": (4,),
        **block("level_1/block_0", 12, 8),
        **block("level_1/block_1", 12, 8),
        "head_norm/scale": (12,),
        "head_norm/bias": (12,),
        "head/kernel": (12, 5),
        "head/bias": (5,),
    }
    assert {path: leaf.shape for path, leaf in params.items()} == expected
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype(np.float32)}


@pytest.mark.parametrize(
    ("image_size", "patch_size", "repeats", "tokens"),
    [
        (28, 7, (1, 1, 1), 1),
        (56, 7, (1, 1, 1), 4),
        (112, 7, (1, 1, 1), 16),
        (56, 4, (1, 1), 49),
        (28, 7, (1,), 16),
    ],
)
def test_sizes_are_general(image_size, patch_size, repeats, tokens):
    """The number of tokens in a block is the same on every level."""
    model = HTNet(
        num_classes=7,
        image_size=image_size,
        patch_size=patch_size,
        dim=6,
        heads=2,
        num_hierarchies=len(repeats),
        block_repeats=repeats,
    )
    x = jnp.zeros((5, image_size, image_size, 3))
    logits, variables = jax.eval_shape(
        lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
    )
    assert logits.shape == (5, 7)
    for level in range(len(repeats)):
        assert variables["params"][f"level_{level}"]["pos_emb"].shape == (tokens,)
    top = 6 * 2 ** (len(repeats) - 1)
    assert variables["params"]["head"]["kernel"].shape == (top, 7)


def test_repeats_may_differ_between_levels_and_be_a_list():
    model = HTNet(dim=6, heads=2, block_repeats=[3, 0, 1])
    params = init_shapes(model, jnp.zeros((1, 28, 28, 3)))
    blocks = [sorted(set(params[f"level_{level}"]) - {"pos_emb"}) for level in range(3)]
    assert blocks == [["block_0", "block_1", "block_2"], [], ["block_0"]]


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"image_size": 30}, r"image_size=30 is not divisible by patch_size=7"),
        ({"patch_size": 5}, r"image_size=28 is not divisible by patch_size=5"),
        (
            {"num_hierarchies": 4, "block_repeats": (1, 1, 1, 1)},
            r"image_size=28 with patch_size=7 gives 4 patches.*8 blocks.*num_hierarchies=4",
        ),
        ({"image_size": 42}, r"gives 6 patches a side.* divisible by the 4 blocks"),
        ({"block_repeats": (2, 2)}, r"block_repeats=\(2, 2\).*num_hierarchies=3"),
        ({"block_repeats": (1, 1, 1, 1)}, r"block_repeats=\(1, 1, 1, 1\).*num_hierarchies=3"),
        ({"dropout": -0.1}, r"dropout=-0.1 must lie in \[0, 1\)"),
        ({"dropout": 1.0}, r"dropout=1.0 must lie in \[0, 1\)"),
        ({"dim": 2, "heads": 3}, r"dim=2 .*heads=3"),
        ({"num_classes": 0}, r"num_classes=0 must be at least 1"),
        ({"patch_size": 0}, r"patch_size=0 must be at least 1"),
        ({"heads": 0}, r"heads=0 must be at least 1"),
        ({"mlp_mult": -1}, r"mlp_mult=-1 must be at least 1"),
    ],
)
def test_attributes_that_do_not_fit(attributes, message):
    model = HTNet(**{"dim": 6, "heads": 2, **attributes})
    x = jnp.zeros((1, model.image_size, model.image_size, 3))
    with pytest.raises(ValueError, match=message):
        init_shapes(model, x)


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [
        ((2, 56, 56, 3), "; set image_size=56"),
        *[
            (shape, "")
            for shape in [(28, 28, 3), (2, 28, 14, 3), (2, 3, 28, 28), (1, 2, 28, 28, 3)]
        ],
    ],
)
def test_input_of_the_wrong_shape(shape, remedy):
    with pytest.raises(ValueError) as caught:
        init_shapes(HTNet(dim=6, heads=2), jnp.zeros(shape))
    assert str(caught.value) == (
        f"x has shape {shape}, but image_size=28 needs (batch, 28, 28, channels){remedy}"
    )


# --- blockify, unblockify, patchify ---------------------------------------------------------------


def test_blockify_by_hand():
    x = np.arange(16).reshape(1, 4, 4, 1)
    blocks = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    out = blockify(x, 2)
    assert out.shape == (1, 4, 4, 1)
    assert out[0, :, :, 0].tolist() == blocks
    assert np.array_equal(unblockify(out, 2), x)


def test_blockify_of_a_map_that_is_not_square():
    out = blockify(np.arange(8).reshape(2, 4, 1), 2)
    assert out[..., 0].tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


def test_blockify_keeps_channels_together():
    x = np.arange(8).reshape(2, 2, 2)
    assert blockify(x, 2).tolist() == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    assert blockify(x, 1).tolist() == [[[0, 1], [2, 3], [4, 5], [6, 7]]]


@settings(deadline=None, max_examples=10)
@given(
    lead=st.lists(st.integers(1, 2), max_size=2),
    blocks=st.integers(1, 4),
    side=st.integers(1, 3),
    channels=st.integers(1, 2),
)
def test_blockify_round_trip(lead, blocks, side, channels):
    shape = (*lead, blocks * side, blocks * side, channels)
    x = np.arange(math.prod(shape)).reshape(shape)
    cut = blockify(x, blocks)
    assert cut.shape == (*lead, blocks**2, side**2, channels)
    for row, column in np.ndindex(blocks, blocks):
        block = x[..., row * side : (row + 1) * side, column * side : (column + 1) * side, :]
        expected = block.reshape(*lead, side**2, channels)
        assert np.array_equal(cut[..., row * blocks + column, :, :], expected)
    assert np.array_equal(unblockify(cut, blocks), x)


@pytest.mark.parametrize("shape", [(5, 4, 1), (4, 6, 1), (2, 3, 4, 1)])
def test_blockify_refuses_what_does_not_divide(shape):
    message = rf"a {shape[-3]}x{shape[-2]} map cannot be cut into 4x4 blocks"
    with pytest.raises(ValueError, match=message):
        blockify(jnp.zeros(shape), 4)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 4, 1), r"3 blocks of 4 tokens are not 2x2 square blocks"),
        ((4, 2, 1), r"4 blocks of 2 tokens are not 2x2 square blocks"),
        ((1, 16, 1), r"1 blocks of 16 tokens are not 2x2 square blocks"),
    ],
)
def test_unblockify_refuses_what_is_not_square(shape, message):
    with pytest.raises(ValueError, match=message):
        unblockify(jnp.zeros(shape), 2)


def test_patchify_orders_row_column_channel():
    # A number says where it comes from: row, column and channel are its digits.
    rows, columns, channels = np.ogrid[:4, :6, :3]
    x = 100 * rows + 10 * columns + channels
    out = patchify(x[None], 2)
    assert out.shape == (1, 2, 3, 12)
    assert out[0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12, 100, 101, 102, 110, 111, 112]
    assert out[0, 1, 2].tolist() == [240, 241, 242, 250, 251, 252, 340, 341, 342, 350, 351, 352]


# --- Hierarchy, Aggregate -------------------------------------------------------------------------


def test_position_scalars_are_shared_by_blocks_and_channels():
    model = Hierarchy(blocks=2, repeats=0, heads=1)
    x = np.zeros((2, 4, 4, 3), np.float32)
    x[1] = 100
    params = {"pos_emb": np.array([1.0, 2.0, 3.0, 4.0], np.float32)}
    out = np.asarray(evaluate(model, params, x))
    tile = [[1, 2, 1, 2], [3, 4, 3, 4], [1, 2, 1, 2], [3, 4, 3, 4]]
    for channel in range(3):
        assert out[0, :, :, channel].tolist() == tile
        assert np.array_equal(out[1, :, :, channel] - 100, tile)


def test_position_scalars_start_as_a_standard_normal():
    model = Hierarchy(blocks=1, repeats=0, heads=1)
    init = quick_jit(lambda x: model.init(jax.random.key(0), x, train=False))
    values = np.asarray(init(np.zeros((1, 50, 50, 1), np.float32))["params"]["pos_emb"])
    assert values.shape == (2500,)
    assert values.mean() == pytest.approx(0, abs=0.06)
    assert values.std() == pytest.approx(1, abs=0.05)
    # A normal distribution: 68.3 % and 95.4 % within one and two deviations.
    assert np.mean(np.abs(values) < 1) == pytest.approx(0.683, abs=0.03)
    assert np.mean(np.abs(values) < 2) == pytest.approx(0.954, abs=0.015)


def test_hierarchy_against_numpy():
    model = Hierarchy(blocks=2, repeats=2, heads=3, mlp_mult=2)
    x = normal(0, 2, 4, 4, 7)
    params = random_params(model, x)
    out = evaluate(model, params, x)
    expected = [ref_hierarchy(params, picture, 2, 2, 3) for picture in x]
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [2, 5])
def test_aggregate_against_numpy(side):
    model = Aggregate(9)
    x = normal(0, 2, side, side, 4)
    params = random_params(model, x)
    out = evaluate(model, params, x)
    assert out.shape == (2, -(-side // 2), -(-side // 2), 9)
    expected = [ref_aggregate(params, picture) for picture in x.astype(float)]
    assert_close(out, expected, rtol=1e-4, atol=1e-5)


# --- the whole network ----------------------------------------------------------------------------

# Odd widths, and heads that do not divide them; blocks of one token and of four.
ONE = HTNet(dim=7, heads=2, block_repeats=(1, 1, 2), mlp_mult=2)
FOUR = HTNet(image_size=56, num_classes=4, dim=7, heads=3, block_repeats=(2, 1, 1), mlp_mult=2)
# Two levels compile faster.
SMALL = HTNet(image_size=16, patch_size=4, dim=9, heads=2, num_hierarchies=2, block_repeats=(1, 1))
SMALL_ONE = SMALL.copy(image_size=8)


@pytest.mark.parametrize("model", [ONE, FOUR, SMALL], ids=["one", "four", "small"])
def test_network_against_numpy(model):
    x = pixels(0, 2, model.image_size)
    params = random_params(model, x)
    logits = evaluate(model, params, x)
    assert logits.shape == (2, model.num_classes)
    assert logits.dtype == jnp.float32
    assert_close(logits, [ref_htnet(model, params, picture) for picture in x], rtol=1e-3, atol=1e-4)


def test_bottom_level_is_local():
    """One pixel changes all tokens of its own block and no other."""
    model = FOUR
    x = pixels(0, 1, 56)
    params = random_params(model, x)

    @quick_jit
    def bottom(params, x):
        _, state = model.apply(
            {"params": params},
            x,
            train=False,
            mutable=["intermediates"],
            capture_intermediates=lambda module, _: module.name == "level_0",
        )
        return state["intermediates"]["level_0"]["__call__"][0]

    moved = x.copy()
    moved[0, 17, 40] += 100  # patch row 2, column 5: block row 1, column 2
    before, after = np.asarray(bottom(params, x)), np.asarray(bottom(params, moved))
    assert before.shape == (1, 8, 8, 7)
    changed = np.any(before != after, axis=-1)[0]
    expected = np.zeros((8, 8), bool)
    expected[2:4, 4:6] = True
    assert np.array_equal(changed, expected)


@pytest.mark.parametrize("model", [SMALL_ONE, SMALL], ids=["one", "four"])
def test_gradients_reach_every_parameter(model):
    """Reverse and forward mode agree, and only what cannot matter has no gradient.

    A shift of all channels passes through residual blocks and is removed by LN, so the position
    scalars of the last level cannot matter either: their gradient is rounding.
    """
    x = pixels(0, 2, model.image_size)
    params = random_params(model, x)
    tangent = random_params(model, x, seed=1)

    def loss(params, x):
        logits = model.apply({"params": params}, x, train=True)
        return -jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([0, 2])].mean(), logits

    @quick_jit
    def both(params, tangent, x):
        gradients, logits = jax.grad(loss, has_aux=True)(params, x)
        slope = jax.jvp(lambda params: loss(params, x)[0], (params,), (tangent,))[1]
        return gradients, logits, slope

    gradients, logits, slope = both(params, tangent, x)
    # Without dropout, training computes the same.
    assert_close(logits, evaluate(model, params, x), rtol=1e-4, atol=1e-5)
    gradients = {path: np.asarray(value) for path, value in flat(gradients).items()}
    assert all(np.isfinite(value).all() for value in gradients.values())
    one_token = params["level_0"]["pos_emb"].shape == (1,)
    for path, value in gradients.items():
        if path == "level_1/pos_emb":
            assert np.abs(value).max() < 1e-5
        elif path.endswith("/qkv"):
            query, key, value_part = np.split(value, 3, axis=1)
            assert np.abs(value_part).max() > 1e-4, path
            for part in (query, key):
                assert np.all(part == 0) if one_token else np.abs(part).max() > 1e-5, path
        else:
            assert np.abs(value).max() > 1e-5, path
    terms = [(value * flat(tangent)[path]).sum() for path, value in gradients.items()]
    assert slope == pytest.approx(sum(terms), rel=1e-3, abs=1e-4)


def test_initial_values():
    x = np.zeros((1, 14, 14, 3), np.float32)
    model = HTNet(image_size=14, dim=6, heads=2, num_hierarchies=2, block_repeats=(0, 1))
    init = quick_jit(lambda key: model.init(key, x, train=False)["params"])
    params = {path: np.asarray(value) for path, value in flat(init(fast_key(0))).items()}
    kernels = 0
    for path, value in params.items():
        parent, _, name = path.rpartition("/")
        if parent.endswith("norm"):
            assert np.all(value == (1 if name == "scale" else 0)), path
            continue
        if name == "pos_emb":
            continue
        kernel = params[f"{parent}/kernel"] if name == "bias" else value
        bound = math.prod(kernel.shape[:-1]) ** -0.5
        assert np.abs(value).max() <= bound, path
        assert np.abs(value).max() > 0.5 * bound, path
        if value.size > 100:
            kernels += 1
            assert np.abs(value).max() > 0.95 * bound, path
            # U(-b, b) has a deviation of b / sqrt(3).
            assert value.std() == pytest.approx(bound / 3**0.5, rel=0.15), path
    # The patch embedding, the convolution, qkv, out, fc1 and fc2.
    assert kernels == 6
    assert not np.array_equal(params["level_0/pos_emb"], params["level_1/pos_emb"])
    other = flat(init(fast_key(1)))
    assert not np.array_equal(other["head/kernel"], params["head/kernel"])


def test_dropout_is_active_in_training_only():
    model = SMALL.copy(dropout=0.3)
    x = pixels(0, 2, 16)
    params = random_params(model, x)

    @quick_jit
    def both(params, x, key):
        variables = {"params": params}
        trained = model.apply(variables, x, train=True, rngs={"dropout": key})
        # No RNG is needed here.
        return trained, model.apply(variables, x, train=False)

    (first, without), (second, _) = (both(params, x, fast_key(seed)) for seed in (0, 1))
    assert np.array_equal(first, both(params, x, fast_key(0))[0])
    assert np.all(np.asarray(first != second))
    assert np.all(np.abs(first - without) > 1e-3)
    assert_close(without, evaluate(SMALL, params, x), rtol=1e-4, atol=1e-5)
    with pytest.raises(flax.errors.InvalidRngError, match="dropout"):
        jax.eval_shape(lambda x: model.apply({"params": params}, x, train=True), x)


def test_train_must_be_said():
    with pytest.raises(TypeError, match="train"):
        HTNet(dim=6, heads=2).init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))


def test_bfloat16():
    x = pixels(0, 2, 16)
    model = SMALL.copy(dtype=jnp.bfloat16)
    params = random_params(model, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(init_shapes(model, x))} == {np.dtype("f4")}
    logits = evaluate(model, params, x)
    assert logits.dtype == jnp.bfloat16
    expected = np.asarray(evaluate(SMALL, params, x))
    # bfloat16 has 8 bits: a few percent of the logits' spread, but not the float32 values.
    assert_close(np.asarray(logits, np.float32), expected, atol=0.1 * expected.std())
    assert not np.array_equal(np.asarray(logits, np.float32), expected)


def test_integer_pictures_are_taken_as_they_are():
    x = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    params = random_params(SMALL, x)
    logits = evaluate(SMALL, params, x)
    assert logits.dtype == jnp.float32
    assert_close(logits, evaluate(SMALL, params, x.astype(np.float32)), rtol=1e-5, atol=1e-6)


def test_vmap_over_networks_equals_a_loop():
    """As in fold-parallel training: stacked parameters and a batch for each."""
    x = np.stack([pixels(seed, 2, 16) for seed in (0, 1)])
    several = [random_params(SMALL, x[0], seed) for seed in (0, 1)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *several)
    apply = jax.vmap(lambda params, x: SMALL.apply({"params": params}, x, train=False))
    together = quick_jit(apply)(stacked, x)
    assert together.shape == (2, 2, 3)
    for index, params in enumerate(several):
        assert_close(together[index], evaluate(SMALL, params, x[index]), rtol=1e-4, atol=1e-5)


def test_examples_of_a_batch_are_independent():
    x = pixels(0, 2, 56)
    params = random_params(FOUR, x)
    moved = x.copy()
    moved[1] = 255 - moved[1]
    before, after = (np.asarray(evaluate(FOUR, params, value)) for value in (x, moved))
    assert_close(before[0], after[0], rtol=1e-6)
    assert np.all(before[1] != after[1])
