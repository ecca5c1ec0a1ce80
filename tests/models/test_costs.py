"""FLOPs and parameters against hand counts, JAX's own program, and XLA's count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from htnet_jax.models import MODELS, HTNet, MMNet
from htnet_jax.models.costs import COSTS, Costs, convolution_taps, htnet_costs, mmnet_costs
from htnet_jax.models.xla_cpu import FEW_ROWS


def shapes(module, channels=3, clips=1):
    x = jax.ShapeDtypeStruct((clips, module.image_size, module.image_size, channels), jnp.float32)
    return jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x), x


def forward(module):
    return lambda variables, x: module.apply(variables, x, train=False)


def gradient(module):
    return jax.grad(lambda variables, x: module.apply(variables, x, train=False).sum())


def product_flops(jaxpr):
    """2 x multiply-adds of every matrix product in a program, those of inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            out = equation.outvars[0].aval.shape
            total += 2 * int(np.prod(out)) * int(np.prod([shape[axis] for axis in contracted]))
        for inner in jaxprs_in_params(equation.params):
            total += product_flops(inner)
    return total


def test_every_network_has_costs():
    # Tests of training add a network of their own for the whole session.
    assert set(COSTS) == set(MODELS) - {"Linear"}


def test_published_network():
    costs = htnet_costs(HTNet())
    assert costs.parameters == 139_582_982
    # q and k of 2, 2 and 10 blocks: 3, 6, 12 heads of 85 channels.
    assert costs.idle_parameters == 2 * (2 * 256 * 255 + 2 * 512 * 510 + 10 * 1024 * 1020)
    assert costs.embedding_flops == 2 * 16 * 147 * 256
    assert costs.forward_bytes() == 4 * (139_582_982 - costs.idle_parameters)
    assert costs.forward_bytes(2) * 2 == costs.forward_bytes()
    # Per token: v and out, then the MLP; 16, 4 and 1 tokens; two convolutions and the head.
    blocks = [2 * c * inner + 8 * c * c for c, inner in ((256, 255), (512, 510), (1024, 1020))]
    products = 16 * 2 * blocks[0] + 4 * 2 * blocks[1] + 10 * blocks[2]
    convolutions = 100 * 256 * 512 + 16 * 512 * 1024
    expected = 2 * (16 * 147 * 256 + products + convolutions + 1024 * 3)
    assert costs.forward_flops == expected
    assert costs.step_flops == 3 * expected - costs.embedding_flops


def test_small_network_by_hand():
    # One level of four tokens, 6 channels, one head, hidden width 12, patches of 7 x 7 x 2.
    module = HTNet(image_size=14, dim=6, heads=1, num_hierarchies=1, block_repeats=(1,), mlp_mult=2)
    embedding = 2 * 4 * 98 * 6
    qkv, scores, weighted, out = 2 * 4 * 6 * 18, 2 * 4 * 4 * 6, 2 * 4 * 4 * 6, 2 * 4 * 6 * 6
    mlp, head = 2 * 2 * 4 * 6 * 12, 2 * 6 * 3
    total = embedding + qkv + scores + weighted + out + mlp + head
    weights = (98 + 1) * 6 + 4 + 24 + 6 * 18 + 7 * 6 + 7 * 12 + 13 * 6 + 12 + 7 * 3
    assert htnet_costs(module, 2) == Costs(total, embedding, weights, 0)


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (4, 1), (5, 1), (2, 2), (8, 2)])
def test_convolution_taps(side, stride):
    """Ones under a window of ones: every pixel counts its taps inside the map."""
    inside = np.pad(np.ones((side, side), int), 1)
    windows = np.lib.stride_tricks.sliding_window_view(inside, (3, 3))[::stride, ::stride]
    assert convolution_taps(side, stride) == windows.sum()


@pytest.mark.parametrize(
    "module",
    [
        MMNet(),
        MMNet(depth=3, mlp_mult=2, drop_path=0.3),
        MMNet(num_classes=3, image_size=48, stem=6, widths=(4, 4, 8, 12), depth=1, heads=3),
    ],
)
def test_mmnet(module):
    clips = FEW_ROWS + 1  # So that the head's is a product as well.
    frames = [jax.ShapeDtypeStruct((clips, *s), jnp.float32) for s in module.input_shapes(3)]
    variables = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x, train=False), *frames)
    costs = mmnet_costs(module)
    assert costs.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert costs.idle_parameters == 0
    # All but the attention maps' two multiplications and the 3x3 convolutions are products.
    program = jax.make_jaxpr(lambda v, *x: module.apply(v, *x, train=False))(variables, *frames)
    sides = [module.image_size // by for by in (2, 4, 8, 16)]
    convolutions = 2 * (
        convolution_taps(module.image_size, 2) * 3 * module.stem
        + convolution_taps(sides[0]) * (module.stem + module.widths[0]) * module.widths[0]
        + sum(
            convolution_taps(side, 2) * narrow * wide
            for side, narrow, wide in zip(sides, module.widths, module.widths[1:], strict=False)
        )
    )
    maps = sum(2 * 2 * side**2 for side in sides)
    # Sums over channels count as element by element work, but are taken as products with ones.
    means = sum(2 * side**2 * width for side, width in zip(sides, module.widths, strict=True))
    products = product_flops(program.jaxpr)
    assert products == clips * (costs.forward_flops - convolutions - maps + means)
    patches = 2 * sides[-1] ** 2 * 3 * module.widths[-1]
    stem = 2 * convolution_taps(module.image_size, 2) * 3 * module.stem
    assert costs.embedding_flops == stem + patches


SIZES = st.builds(
    lambda heads, spare, **keywords: HTNet(heads=heads, dim=4 * heads + spare, **keywords),
    heads=st.integers(1, 3),
    spare=st.integers(0, 2),
    image_size=st.sampled_from([7, 14, 28]),
    num_hierarchies=st.just(1),
    block_repeats=st.tuples(st.integers(0, 2)),
    mlp_mult=st.integers(1, 3),
    num_classes=st.integers(1, 4),
)


@settings(deadline=None, max_examples=15)
@given(SIZES, st.integers(1, 3), st.integers(FEW_ROWS + 1, FEW_ROWS + 3))
def test_flops_are_those_of_the_products_in_the_program(module, channels, clips):
    """Without convolutions, which the program does in products with zeros, and few rows."""
    costs = htnet_costs(module, channels)
    variables, x = shapes(module, channels, clips)
    program = jax.make_jaxpr(forward(module))(variables, x)
    assert product_flops(program.jaxpr) == clips * costs.forward_flops
    backward = jax.make_jaxpr(gradient(module))(variables, x)
    assert product_flops(backward.jaxpr) == clips * costs.step_flops
    assert costs.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))


@pytest.mark.parametrize("size", [28, 56])
def test_parameters_of_a_hierarchy(size):
    module = HTNet(image_size=size, dim=7, heads=2, block_repeats=(1, 0, 2))
    variables, _ = shapes(module)
    costs = htnet_costs(module)
    assert costs.parameters == sum(leaf.size for leaf in jax.tree.leaves(variables))
    # 2 and 8 heads of 3 channels; at 56 pixels a block holds four tokens.
    assert costs.idle_parameters == (2 * (7 * 6 + 2 * 28 * 24) if size == 28 else 0)


def test_xla_counts_the_same_and_a_little_more():
    """XLA also counts the work element by element: 5% at this width."""
    module = HTNet(image_size=28, dim=96, num_hierarchies=1, block_repeats=(2,))
    variables, x = shapes(module, clips=2)
    counted = jax.jit(forward(module)).lower(variables, x).cost_analysis()["flops"]
    assert 1 < counted / (2 * htnet_costs(module).forward_flops) < 1.05


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match="patch_size=5"):
        htnet_costs(HTNet(patch_size=5))
