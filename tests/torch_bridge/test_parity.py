"""Parity of the networks, and the comparison itself on traces made by hand."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.learn import losses
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, parity, traces
from htnet_jax.torch_bridge.convert import match
from htnet_jax.torch_bridge.parity import Comparison, Report
from htnet_jax.torch_bridge.traces import Losses, Optimizer, Trace

BRIDGE = BRIDGES["HTNet"]
SMALL = HTNet(image_size=14, dim=6, num_hierarchies=1, block_repeats=(1,))

# name, train. The slow ones repeat others: dropout is off, so HTNet trains as it evaluates.
CASES = [
    ("four tokens", False),
    ("one token", False),
    ("adamw", False),
    ("MMNet", True),
    pytest.param("MMNet", False, marks=pytest.mark.slow),
    ("one stream", True),
    pytest.param("AttributeNet", True, marks=pytest.mark.slow),
    pytest.param("AttributeNet", False, marks=pytest.mark.slow),
]


# A single level, or stream, has no such layers.
LACKING = {"adamw": "aggregate", "one stream": "rgb/"}


def names(report, kind):
    return [row.name for row in report.rows if row.kind == kind]


# --- the networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "train"), CASES)
def test_float64_agrees_to_nine_digits(case, name, train):
    report = case(name, train).report
    assert report.dtype == "float64"
    assert report.passed, report.verdict
    assert report.label == ("float64 train" if train else "float64")
    assert all(row.relative <= 1e-9 and row.tolerance <= 1e-9 for row in report.rows)
    kinds = [kind for kind in parity.KINDS if train or kind != "statistics"]
    assert list(dict.fromkeys(row.kind for row in report.rows)) == kinds


@pytest.mark.slow  # float64 would show any difference
@pytest.mark.parametrize(("name", "train"), [("one token", False), ("MMNet", True)])
def test_float32_agrees(case, name, train):
    one = case(name, train, "float32")
    assert one.report.passed, one.report.verdict
    # Or it would have been computed in float64.
    assert max(row.relative for row in one.report.rows) > 1e-9
    assert one.ours.logits.dtype == np.float32
    assert case(name, train).ours.logits.dtype == np.float64


@pytest.mark.parametrize(("name", "train"), CASES)
def test_every_array_and_every_layer_has_its_rows(case, name, train):
    one = case(name, train)
    arrays = set()
    for path in traverse_util.flatten_dict(one.variables, sep="/"):
        pieces = [parts for pattern, parts in one.bridge.pieces if match(pattern, path) is not None]
        arrays |= {f"{path} ({part})" for part in pieces[0]} if pieces else {path}
    params = {path for path in arrays if path.startswith("params/")}
    assert sorted(names(one.report, "weight")) == sorted(arrays)
    assert sorted(names(one.report, "gradient")) == sorted(params)
    assert sorted(names(one.report, "parameter")) == sorted(arrays if train else params)
    assert set(names(one.report, "statistics")) == (arrays - params if train else set())
    # What Adam makes of a gradient that is nothing but rounding is left out.
    rounding = {
        "four tokens": {"params/level_1/pos_emb"},
        "one token": {"params/level_1/pos_emb"},
        "adamw": {"params/level_0/pos_emb"},
        "MMNet": {f"params/position/block_{i}/attention/qkv/bias (key)" for i in range(2)},
    }.get(name, set())
    assert {*names(one.report, "parameter")} - {*names(one.report, "update")} == rounding
    steps = one.options["steps"]
    assert names(one.report, "step loss") == [f"step {i}" for i in range(2, steps + 1)]
    assert len(one.report.losses[0]) == len(one.report.losses[1]) == steps

    layers = names(one.report, "activation")
    assert len(set(layers)) == len(layers)
    for pattern, _ in one.bridge.layers:
        if not pattern.startswith(LACKING.get(name, "nothing")):
            assert any(match(pattern, layer) is not None for layer in layers), pattern
    assert set(one.ours.activations) == set(layers)


def test_activations_are_in_the_order_of_execution(case):
    layers = names(case("four tokens").report, "activation")
    block = [
        *("attention_norm", "attention/attended", "attention"),
        *("mlp_norm", "mlp/fc1", "mlp/activated", "mlp"),
    ]
    first = [f"level_0/block_0/{name}" for name in block]
    assert layers[:10] == ["patch_embedding", "level_0/positioned", *first, "level_0/block_0"]
    last = ["aggregate_0/conv", "aggregate_0/norm", "aggregate_0", "level_1/positioned"]
    assert layers[18:22] == last
    assert layers[-2:] == ["head_norm", "head"]
    layers = names(case("MMNet", True).report, "activation")
    assert layers[:3] == ["grid", "position/patch_embedding", "position/positioned"]
    assert layers[-3:] == ["layer_4/weighted", "calibrated", "head"]


def test_training_moves_statistics_and_drops_branches(case):
    ours = case("MMNet", True).ours
    for path, moved in ours.statistics.items():
        assert np.all(moved != ours.start[path]), path
        assert np.all(ours.parameters[path] != moved), path
    draws = np.array([[kept[path] for path in sorted(kept)] for kept in ours.kept])
    assert draws.shape == (10, 2, 4)
    assert 0.25 < draws.mean() < 0.75
    assert len({draw.tobytes() for draw in draws}) > 5


def test_what_a_network_returns_beside_its_logits_is_compared(case):
    one = case("one stream", True)
    assert names(one.report, "activation")[-2:] == ["out/text", "out/visual"]
    lengths = np.linalg.norm(one.ours.activations["out/visual"], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-12)


@pytest.mark.parametrize(
    ("weight", "temperature"), [(0.5, 0.0701), (0.501, 0.07), (0.0, 0.07)], ids=str
)
def test_another_loss_is_found(case, weight, temperature):
    other = Losses(
        {"cross_entropy": 1.0, "attribute_contrastive": weight},
        {"attribute_contrastive": {"temperature": temperature}},
    )
    report = case("one stream", True).run(losses=other)
    assert report.first_difference.kind == "loss"
    failed = {row.name for row in report.rows if row.kind == "gradient" and not row.passed}
    # The classifier is not in the contrastive loss, the text's projection in no other.
    assert "params/head/kernel" not in failed
    assert {"params/text_projection/kernel", "params/flow/stem/conv/kernel"} <= failed


STEPS = {"step loss", "parameter", "update"}


@pytest.mark.parametrize(
    "other",
    [
        Optimizer("adamw", 1e-3, {"weight_decay": 0.0}),
        Optimizer("adamw", 1e-3, {"weight_decay": 0.02}),
        Optimizer("adamw", 1.001e-3),
        Optimizer("adamw", 1e-3, {"eps": 1e-7}),
        Optimizer("sgd", 1e-3),
    ],
    ids=["no decay", "more decay", "faster", "another eps", "SGD"],
)
def test_another_optimizer_is_found(case, other):
    report = case("adamw").compare(optimizer=other)
    assert report.first_difference.kind == "step loss"
    assert {row.kind for row in report.rows if not row.passed} == STEPS


def test_weight_decay_on_one_side_only_is_found(case):
    """Ours is plain Adam, which is AdamW without decay."""
    none, some = (
        case("one token").compare(optimizer=Optimizer("adamw", 1e-3, {"weight_decay": decay}))
        for decay in (0.0, 0.01)
    )
    assert none.passed
    failed = {row.kind for row in some.rows if not row.passed}
    assert {"parameter", "update"} <= failed <= STEPS


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 1e-2)])
def test_sgd_agrees(new_case, momentum, decay):
    rng = np.random.default_rng(0)
    x = rng.uniform(0, 1, (4, 7, 7, 3)).astype("f4")
    module = HTNet(image_size=7, dim=4, heads=1, num_hierarchies=1, block_repeats=(0,))
    optimizer = Optimizer("sgd", 0.1, {"momentum": momentum, "weight_decay": decay})
    assert new_case(module, [((x,), rng.integers(0, 3, 4))], optimizer=optimizer).report.passed


@pytest.mark.parametrize(("name", "has_some"), [("one token", False), ("four tokens", True)])
def test_gradients_of_query_and_key(case, name, has_some):
    """None for a token that is alone in its block: exactly zero, in both frameworks."""
    one = case(name)
    for gradients in (one.ours.gradients, one.theirs(steps=0).gradients):
        found = [array for path, array in gradients.items() if path.endswith("qkv")]
        assert len(found) == sum(one.module.block_repeats)
        for array in found:
            query, key, value = (np.abs(p).max(axis=0) for p in np.split(array, 3, axis=1))
            assert np.all(value > 0)
            assert np.all(query > 0) == np.any(query > 0) == has_some
            assert np.all(key > 0) == np.any(key > 0) == has_some


def test_gradient_that_is_rounding_only(case):
    """The last level's position scalars; a real gradient there is a difference."""
    one, name = case("four tokens"), "params/level_1/pos_emb"
    largest = max(np.abs(gradient).max() for gradient in one.ours.gradients.values())
    assert np.abs(one.ours.gradients[name]).max() < 1e-14 * largest
    assert row(one.report, "gradient", name).passed
    gradients = {**one.ours.gradients, name: np.ones_like(one.ours.gradients[name])}
    ours = dataclasses.replace(one.ours, gradients=gradients)
    first = parity.compare(ours, one.theirs(), one.dtype).first_difference
    assert (first.kind, first.name) == ("gradient", name)


@pytest.mark.parametrize(("name", "train"), [("adamw", False), ("MMNet", True)])
def test_run_changes_neither_side(case, name, train):
    one = case(name, train)
    model = one.torch_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variables, batches = jax.tree.map(np.copy, (one.variables, one.batches))
    said = []
    assert one.run(torch_model=model, on_progress=said.append).passed
    # The Flax side was computed before.
    assert len(said) == len(set(said)) == parity.parts(["float64"], 10) / 2
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == weights[name].dtype
        np.testing.assert_array_equal(tensor, weights[name])
    jax.tree.map(np.testing.assert_array_equal, (one.variables, one.batches), (variables, batches))
    assert {leaf.dtype for leaf in jax.tree.leaves(one.variables)} == {np.dtype(np.float32)}
    assert jax.numpy.zeros(1, float).dtype == np.float32


def test_weights_of_its_own(case):
    """One ulp in one weight is named: weights must be equal."""
    model = case("adamw").torch_model()
    bias = model.mlp_head[2].bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(9.0))
    first = case("adamw").run(torch_model=model).first_difference
    assert (first.kind, first.name) == ("weight", "params/head/bias")


def test_the_step_is_that_of_training(case, monkeypatch):
    """A mistake in `learn` is one in parity."""
    one = case("adamw")
    update = traces.learn.Learner.update

    def slower(self, state, gradient, written, batch):
        return update(self, state, jax.tree.map(lambda g: 0.5 * g, gradient), written, batch)

    monkeypatch.setattr(traces.learn.Learner, "update", slower)
    arguments = (one.module, one.bridge, one.variables, one.batches)
    (report,) = parity.run(*arguments, optimizer=Optimizer("sgd", 0.1), steps=2)
    assert {row.kind for row in report.rows if not row.passed} == STEPS


@pytest.mark.slow  # as the steps of the other tests, more of them
def test_loss_falls_along_the_same_trajectory(new_case, tmp_path):
    """50 steps on the tiny synthetic data set, in file order."""
    arrays = loading.load("synthetic", config="tiny", data_dir=str(tmp_path))
    inputs = loading.network_inputs(
        arrays, layout="upright", channels=["strain", "v", "u"], scaling="minmax_255"
    )
    starts = range(0, len(inputs), 8)
    batches = [((inputs[i : i + 8],), arrays.labels[i : i + 8]) for i in starts]
    module = HTNet(dim=8, heads=3, block_repeats=(1, 1, 1))
    options = {"optimizer": Optimizer(learning_rate=1e-3), "steps": 50}
    exact, narrow = (
        new_case(module, batches, dtype=dtype, **options).report.losses
        for dtype in ("float64", "float32")
    )
    assert exact[1][-3:].mean() < 0.1 * exact[1][:3].mean()
    np.testing.assert_allclose(exact[0], exact[1], rtol=1e-9)
    np.testing.assert_allclose(narrow[0], narrow[1], rtol=1e-3)
    np.testing.assert_allclose(narrow[0], exact[0], rtol=1e-3)


def test_what_cannot_be_compared():
    with pytest.raises(UserError, match="dtype='float16' is unknown"):
        parity.run(SMALL, BRIDGE, {}, [], dtypes=["float64", "float16"])
    with pytest.raises(UserError, match="no batch"):
        parity.run(SMALL, BRIDGE, {}, [])
    with pytest.raises(UserError, match=r"dropout=0\.1: its draws cannot be repeated"):
        parity.run(HTNet(dropout=0.1), BRIDGE, {}, [((), ())], train=True)


def test_a_loss_that_is_not_written_in_pytorch(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "new", losses.cross_entropy)
    with pytest.raises(UserError, match=r"config\.losses\.new: it is not written in PyTorch"):
        Losses({"new": 1.0}).flax(SMALL)
    assert len(Losses({"new": 0.0, "cross_entropy": 2.0}).flax(SMALL)) == 1


# --- random weights -------------------------------------------------------------------------------


def test_random_variables_come_from_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = parity.random_variables(SMALL, BRIDGE, 3, 0)
    np.testing.assert_array_equal(torch.rand(3), expected)
    again, other = (parity.random_variables(SMALL, BRIDGE, 3, seed) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    same = jax.tree.map(lambda a, b: bool((a == b).any()), first, other)
    assert not any(jax.tree.leaves(same))


def test_random_variables_have_no_neutral_element():
    variables = parity.random_variables(SMALL, BRIDGE, 3, 0)["params"]
    for path, array in traverse_util.flatten_dict(variables, sep="/").items():
        assert array.dtype == np.float32
        assert not np.isin(array, (0, 1)).any(), path
        assert array.size == 1 or array.std() > 0.01, path


# --- the comparison, on traces made by hand -------------------------------------------------------


def make_trace(**changes):
    """Of a network with two layers and three parameters, after two steps."""
    values = {
        "activations": {"first": np.array([[1.0, -2.0]]), "second": np.array([[4.0, 8.0]])},
        "logits": np.array([[0.5, -1.0]]),
        "losses": np.array([0.7, 0.6]),
        "gradients": {"p/a": np.array([1.0, 2.0]), "p/b": np.array([0.5])},
        "start": {"p/a": np.array([3.0, 4.0]), "p/b": np.array([2.0])},
        "parameters": {"p/a": np.array([2.5, 3.5]), "p/b": np.array([1.5])},
    }
    return Trace(**{**values, **changes})


def compare(ours=None, theirs=None, dtype="float64"):
    return parity.compare(ours or make_trace(), theirs or make_trace(), dtype)


def row(report, kind, name):
    (found,) = [r for r in report.rows if (r.kind, r.name) == (kind, name)]
    return found


ORDER = [
    ("weight", "p/a"),
    ("weight", "p/b"),
    ("activation", "first"),
    ("activation", "second"),
    ("logits", "logits"),
    ("loss", "loss"),
    ("gradient", "p/a"),
    ("gradient", "p/b"),
    ("step loss", "step 2"),
    ("parameter", "p/a"),
    ("parameter", "p/b"),
    ("update", "p/a"),
    ("update", "p/b"),
]


def test_order_of_rows():
    report = compare()
    assert [(r.kind, r.name) for r in report.rows] == ORDER
    assert report.passed
    assert report.first_difference is None
    assert all(r.absolute == r.relative == 0 for r in report.rows)


def test_without_steps():
    """One loss: nothing that steps would have changed is compared."""
    trace = make_trace(losses=np.array([0.7]), parameters={})
    report = compare(trace, trace)
    assert [(r.kind, r.name) for r in report.rows] == ORDER[:8]


def test_one_step_has_parameters_but_no_second_loss():
    """The parameters after the only step must be compared."""
    ours = make_trace(losses=np.array([0.7]), parameters=make_trace().start)
    theirs = make_trace(losses=np.array([0.7]))
    report = compare(ours, theirs)
    assert not report.passed


@pytest.mark.parametrize("side", ["ours", "theirs"])
@pytest.mark.parametrize("layer", ["first", "second"])
def test_layer_that_one_side_lacks(side, layer):
    activations = dict(make_trace().activations)
    del activations[layer]
    report = compare(**{side: make_trace(activations=activations)})
    assert (report.first_difference.kind, report.first_difference.name) == ("activation", layer)
    assert report.first_difference.relative == report.first_difference.absolute == math.inf
    assert sum(not r.passed for r in report.rows) == 1


@pytest.mark.parametrize("wrong", [np.ones((2, 1)), np.ones((1, 3)), np.ones((1, 1)), np.ones(2)])
def test_another_shape(wrong):
    """Also one that would broadcast."""
    report = compare(make_trace(activations={**make_trace().activations, "first": wrong}))
    assert report.first_difference.name == "first"
    assert report.first_difference.relative == math.inf


@pytest.mark.parametrize("sides", [("ours",), ("theirs",), ("ours", "theirs")])
@pytest.mark.parametrize("field", ["activations", "gradients", "start", "parameters"])
def test_nan_never_passes(sides, field):
    arrays = {name: array.copy() for name, array in getattr(make_trace(), field).items()}
    name = next(iter(arrays))
    arrays[name].flat[0] = np.nan
    report = compare(**dict.fromkeys(sides, make_trace(**{field: arrays})))
    assert not report.passed
    assert report.first_difference.name == name


@pytest.mark.parametrize("field", ["logits", "losses"])
@pytest.mark.parametrize("sides", [("ours",), ("theirs",), ("ours", "theirs")])
def test_nan_in_logits_or_loss_never_passes(sides, field):
    array = getattr(make_trace(), field).copy()
    array.flat[-1] = np.nan
    report = compare(**dict.fromkeys(sides, make_trace(**{field: array})))
    expected = {"logits": ("logits", "logits"), "losses": ("step loss", "step 2")}[field]
    assert (report.first_difference.kind, report.first_difference.name) == expected


def test_gradients_may_differ_by_ten_times_what_float32_costs_pytorch():
    """In float32 only, and the largest cost counts for all."""
    exact = make_trace(gradients={"p/a": np.array([1.0, 2.0]), "p/b": np.array([0.5])})
    theirs = make_trace(gradients={"p/a": np.array([1.0, 2.0]), "p/b": np.array([0.501])})
    ours = make_trace(gradients={"p/a": np.array([1.0, 2.03]), "p/b": np.array([0.501])})
    found = row(parity.compare(ours, theirs, "float32", exact), "gradient", "p/a")
    assert found.tolerance == pytest.approx(10 * 0.001 / 0.5)
    assert found.relative == pytest.approx(0.015)
    assert found.passed
    assert not row(parity.compare(ours, theirs, "float32"), "gradient", "p/a").passed
    # Where float32 costs nothing, the plain tolerance holds.
    assert not row(parity.compare(ours, exact, "float32", exact), "gradient", "p/a").passed
    assert row(parity.compare(ours, exact, "float32", exact), "gradient", "p/a").tolerance == 1e-4


def test_zeros_on_both_sides_pass():
    zeros = make_trace(activations={"first": np.zeros((2, 2))})
    report = compare(zeros, zeros)
    assert report.passed
    found = row(report, "activation", "first")
    assert found.absolute == found.relative == 0


def test_anything_beside_zeros_fails():
    """Relative to nothing, the smallest number is infinitely large."""
    tiny = make_trace(activations={"first": np.full((1, 2), 1e-300)})
    report = compare(tiny, make_trace(activations={"first": np.zeros((1, 2))}))
    assert report.first_difference.name == "first"
    assert report.first_difference.relative == math.inf
    assert report.first_difference.absolute == 1e-300


@given(
    kind=st.sampled_from(["activation", "logits", "loss", "gradient", "step loss", "parameter"]),
    dtype=st.sampled_from(["float64", "float32"]),
    scale=st.floats(1e-6, 1e6),
    factor=st.sampled_from([0.99, 1.01]),
    sign=st.sampled_from([-1, 1]),
)
def test_tolerance_is_relative_to_the_largest_value(kind, dtype, scale, factor, sign):
    tolerance = parity.TOLERANCES[dtype][kind]
    theirs = np.array([[0.25 * scale, -scale]])
    ours = theirs + np.array([[sign * factor * tolerance * scale, 0]])
    field = {
        "activation": lambda a: {"activations": {"x": a}},
        "logits": lambda a: {"logits": a},
        "loss": lambda a: {"losses": a[0, :1]},
        "gradient": lambda a: {"gradients": {"x": a}, "losses": np.ones(1)},
        "step loss": lambda a: {"losses": np.append(1, a[0, :1])},
        "parameter": lambda a: {"parameters": {"p/a": a[0], "p/b": make_trace().start["p/b"]}},
    }[kind]
    if kind in ("loss", "step loss"):  # A loss is measured against itself.
        ours[0, 0] = theirs[0, 0] * (1 + sign * factor * tolerance)
    report = compare(make_trace(**field(ours)), make_trace(**field(theirs)), dtype)
    found = [r for r in report.rows if r.kind == kind]
    assert found[0].passed == (factor < 1)
    np.testing.assert_allclose(found[0].relative, factor * tolerance, rtol=1e-4)


def test_tolerance_itself_passes():
    assert Comparison("logits", "logits", 1.0, 1e-9, 1e-9).passed
    assert not Comparison("logits", "logits", 1.0, np.nextafter(1e-9, 1), 1e-9).passed
    assert not Comparison("logits", "logits", math.nan, math.nan, 1e-9).passed
    assert not Comparison("logits", "logits", math.inf, math.inf, 1e-9).passed


def test_update_is_measured_by_its_norm():
    """Moved by (-0.6, -0.5) instead of (-0.5, -0.5), from another start on each side."""
    ours = make_trace(
        start={"p/a": np.array([3.5, 4.0]), "p/b": np.array([2.0])},
        parameters={"p/a": np.array([2.9, 3.5]), "p/b": np.array([1.5])},
    )
    found = row(compare(ours), "update", "p/a")
    np.testing.assert_allclose(found.absolute, 0.1)
    np.testing.assert_allclose(found.relative, 0.1 / np.hypot(0.5, 0.5))


def test_weights_must_be_equal():
    start = {**make_trace().start, "p/b": np.nextafter(make_trace().start["p/b"], 9)}
    report = compare(make_trace(start=start))
    assert (report.first_difference.kind, report.first_difference.name) == ("weight", "p/b")


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_up_to_a_hundred_eps_of_the_largest_is_rounding(dtype):
    limit = 100 * np.finfo(dtype).eps * 2.0  # 2.0 is the largest gradient.

    def with_gradient(value):
        return make_trace(gradients={**make_trace().gradients, "p/b": np.array([value])})

    below = compare(with_gradient(0.9 * limit), with_gradient(-0.9 * limit), dtype)
    assert below.passed
    assert names(below, "update") == ["p/a"]
    np.testing.assert_allclose(row(below, "gradient", "p/b").relative, 1.8 * limit / 2)
    for pair in ((1.1 * limit, 0.9 * limit), (0.9 * limit, 1.1 * limit)):
        above = compare(*map(with_gradient, pair), dtype)
        assert above.first_difference.name == "p/b"
        assert names(above, "update") == ["p/a", "p/b"]


# --- the report -----------------------------------------------------------------------------------

BAD = Report(
    "float64",
    (
        Comparison("activation", "fine", 0.0, 0.0, 1e-9),
        Comparison("activation", "large", 1.0, 0.5, 1e-9),
        Comparison("activation", "level_0/block_0/with_nan", math.nan, math.nan, 1e-9),
        Comparison("activation", "also fine", 1e-12, 1e-12, 1e-9),
        Comparison("logits", "logits", 1e-13, 1e-13, 1e-9),
        Comparison("gradient", "missing", math.inf, math.inf, 1e-9),
    ),
    (np.array([1.0, math.nan]), np.array([1.0, 0.25])),
)
GOOD = Report(
    "float32",
    (
        Comparison("activation", "less", 1e-7, 1e-7, 1e-4),
        Comparison("activation", "most", 1e-6, 1e-6, 1e-4),
        Comparison("activation", "least", 0.0, 0.0, 1e-4),
    ),
    (np.array([1.5, 1.0]), np.array([1.5, 1.0])),
)


def test_verdict():
    assert GOOD.verdict == "float32: all 3 comparisons agree"
    text = BAD.verdict
    assert "3 of 6" in text
    assert text.endswith("the first is activation large")


def test_table_has_every_row_in_order():
    text = parity.table(BAD)
    lines = text.splitlines()
    assert lines[0] == "float64"
    assert lines[-1] == BAD.verdict
    body = lines[2:-1]
    assert len(body) == len(BAD.rows)
    for line, comparison in zip(body, BAD.rows, strict=True):
        assert line.startswith("ok " if comparison.passed else "FAIL")
        assert f" {comparison.name} " in line
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_worst_only_keeps_one_row_of_each_kind():
    body = parity.table(BAD, worst_only=True).splitlines()[2:-1]
    assert [line.split()[:2] for line in body] == [
        ["FAIL", "activation"],
        ["ok", "logits"],
        ["FAIL", "gradient"],
    ]
    assert " level_0/block_0/with_nan " in body[0]
    (line,) = parity.table(GOOD, worst_only=True).splitlines()[2:-1]
    assert " most " in line


def test_json_is_well_formed_whatever_the_numbers():
    loaded = json.loads(json.dumps(parity.as_json([GOOD, BAD]), allow_nan=False))
    assert loaded["passed"] is False
    good, bad = loaded["runs"]
    assert (good["dtype"], good["passed"], good["first_difference"]) == ("float32", True, None)
    assert (bad["dtype"], bad["passed"], bad["first_difference"]) == ("float64", False, "large")
    assert [r["passed"] for r in bad["rows"]] == [r.passed for r in BAD.rows]
    assert [r["name"] for r in bad["rows"]] == [r.name for r in BAD.rows]
    assert [r["relative"] for r in bad["rows"]] == [0.0, 0.5, None, 1e-12, 1e-13, None]
    assert bad["worst"] == {"activation": None, "logits": 1e-13, "gradient": None}
    assert good["worst"] == {"activation": 1e-6}
    assert bad["losses"] == {"flax": [1.0, None], "torch": [1.0, 0.25]}
    assert parity.as_json([GOOD])["passed"] is True


def test_loss_table():
    lines = parity.loss_table(BAD).splitlines()
    assert lines[0] == "float64"
    assert [line.split()[0] for line in lines[2:]] == ["1", "2"]
    assert lines[2].split() == ["1", "1.000000000000", "1.000000000000", "0.0e+00"]
    assert lines[3].split()[1:] == ["nan", "0.250000000000", "nan"]


def test_plot_is_a_png(tmp_path):
    """Also of equal losses, as a few steps in float64 may well give: a log axis has no zeros."""
    path = tmp_path / "new" / "losses.png"
    losses = (np.array([1.5, 1.0]), np.array([1.25, 1.0]))
    parity.plot_losses([GOOD, dataclasses.replace(GOOD, losses=losses)], path, "Losses")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in path.parent.iterdir()] == ["losses.png"]


def test_plot_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "losses.png", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            parity.plot_losses([GOOD], path, "Losses")
