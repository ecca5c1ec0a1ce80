"""Parity of the two networks, and the comparison itself on traces made by hand."""

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

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, parity, parity_report
from htnet_jax.torch_bridge.convert import match
from htnet_jax.torch_bridge.parity import Comparison, Report
from htnet_jax.torch_bridge.traces import Optimizer, Trace

BRIDGE = BRIDGES["HTNet"]
SMALL = HTNet(image_size=14, dim=6, num_hierarchies=1, block_repeats=(1,))


def names(report, kind):
    return [row.name for row in report.rows if row.kind == kind]


def paths(variables):
    return set(traverse_util.flatten_dict(variables, sep="/"))


# The networks.


# 112 px has 16 tokens a block; 56 px, with 4, already shows what attention computes.
SIZES = ["28", "56", pytest.param("112", marks=pytest.mark.slow), "adamw"]


@pytest.mark.parametrize("size", SIZES)
def test_float64_agrees_to_nine_digits(case, size):
    report = case(size).report
    assert report.dtype == "float64"
    assert report.passed, parity_report.verdict(report)
    assert all(row.relative <= 1e-9 and row.tolerance <= 1e-9 for row in report.rows)
    # HTNet has no running statistics.
    kinds = [kind for kind in parity.KINDS if kind != "statistics"]
    assert list(dict.fromkeys(row.kind for row in report.rows)) == kinds


@pytest.mark.slow  # float64 would show any difference
def test_float32_agrees(case):
    report = case("28 float32").report
    assert report.dtype == "float32"
    assert report.passed, parity_report.verdict(report)
    # Or it would have been computed in float64.
    assert max(row.relative for row in report.rows) > 1e-9
    assert case("28 float32").ours.logits.dtype == np.float32
    assert case("28").ours.logits.dtype == np.float64


@pytest.mark.parametrize("size", SIZES)
def test_every_parameter_and_every_layer_has_its_rows(case, size):
    one = case(size)
    parameters = paths(one.variables)
    for kind in ("weight", "gradient", "parameter"):
        assert set(names(one.report, kind)) == parameters
        assert len(names(one.report, kind)) == len(parameters)
    # What Adam makes of a gradient that is nothing but rounding is left out.
    last = f"params/level_{one.module.num_hierarchies - 1}/pos_emb"
    assert set(names(one.report, "update")) == parameters - {last}
    steps = one.options["steps"]
    assert names(one.report, "step loss") == [f"step {i}" for i in range(2, steps + 1)]
    assert len(one.report.losses[0]) == len(one.report.losses[1]) == steps

    layers = names(one.report, "activation")
    assert len(set(layers)) == len(layers)
    for pattern, _ in BRIDGE.layers:
        if size == "adamw" and pattern.startswith("aggregate"):
            continue  # A single level has none.
        assert any(match(pattern, layer) is not None for layer in layers), pattern
    assert set(one.ours.activations) == set(one.theirs(steps=0).activations) == set(layers)


def test_activations_are_in_the_order_of_execution(case):
    layers = names(case("56").report, "activation")
    expected = [
        "patch_embedding",
        "level_0/positioned",
        "level_0/block_0/attention_norm",
        "level_0/block_0/attention/attended",
        "level_0/block_0/attention",
        "level_0/block_0/mlp_norm",
        "level_0/block_0/mlp/fc1",
        "level_0/block_0/mlp/activated",
        "level_0/block_0/mlp",
        "level_0/block_0",
        "aggregate_0/conv",
        "aggregate_0/norm",
        "aggregate_0",
        "level_1/positioned",
    ]
    assert layers[: len(expected)] == expected
    assert layers[-2:] == ["head_norm", "head"]


@pytest.mark.parametrize("theirs", [0.0, 0.02])
def test_another_weight_decay_is_found(case, theirs):
    report = case("adamw").compare(optimizer=Optimizer("adamw", 1e-3, weight_decay=theirs))
    assert all(row.passed for row in report.rows if row.kind in parity.KINDS[:6])
    assert {row.kind for row in report.rows if not row.passed} == {
        "step loss",
        "parameter",
        "update",
    }


def test_weight_decay_on_one_side_only_is_found(case):
    """Ours is plain Adam, which is AdamW without decay."""
    learning_rate = case("28").options["optimizer"].learning_rate
    none = case("28").compare(optimizer=Optimizer("adamw", learning_rate, weight_decay=0.0))
    assert none.passed
    report = case("28").compare(optimizer=Optimizer("adamw", learning_rate, weight_decay=0.01))
    assert not report.passed
    failed = {row.kind for row in report.rows if not row.passed}
    assert {"parameter", "update"} <= failed <= {"step loss", "parameter", "update"}


def test_another_learning_rate_is_found(case):
    one = case("adamw")
    optimizer = dataclasses.replace(one.options["optimizer"], learning_rate=1.001e-3)
    report = one.compare(optimizer=optimizer)
    failed = {row.kind for row in report.rows if not row.passed}
    assert failed == {"step loss", "parameter", "update"}


def test_another_eps_of_adam_is_found(case, monkeypatch):
    monkeypatch.setattr(Optimizer, "torch", lambda self, p: torch.optim.AdamW(p, lr=1e-3, eps=1e-7))
    report = case("adamw").compare()
    assert report.first_difference.kind == "step loss"
    assert not all(row.passed for row in report.rows if row.kind == "update")


def test_alone_in_its_block_a_token_gives_query_and_key_no_gradient(case):
    for gradients in (case("28").ours.gradients, case("28").theirs(steps=0).gradients):
        found = {path: array for path, array in gradients.items() if path.endswith("qkv")}
        assert len(found) == 3
        for array in found.values():
            query, key, value = np.split(array, 3, axis=1)
            np.testing.assert_array_equal(query, 0)
            np.testing.assert_array_equal(key, 0)
            assert np.all(np.abs(value).max(axis=0) > 0)


def test_among_four_tokens_query_and_key_have_gradients(case):
    for gradients in (case("56").ours.gradients, case("56").theirs(steps=0).gradients):
        found = {path: array for path, array in gradients.items() if path.endswith("qkv")}
        assert len(found) == 4
        for array in found.values():
            for part in np.split(array, 3, axis=1):
                assert np.all(np.abs(part).max(axis=0) > 0)


def test_gradient_that_is_rounding_only(case):
    """The last level's position scalars; a real gradient there is a difference."""
    one, name = case("56"), "params/level_2/pos_emb"
    largest = max(np.abs(gradient).max() for gradient in one.ours.gradients.values())
    assert np.abs(one.ours.gradients[name]).max() < 1e-14 * largest
    (row,) = [r for r in one.report.rows if (r.kind, r.name) == ("gradient", name)]
    assert row.passed

    gradients = {**one.ours.gradients, name: np.ones_like(one.ours.gradients[name])}
    report = parity.compare(
        dataclasses.replace(one.ours, gradients=gradients), one.theirs(), one.dtype
    )
    assert (report.first_difference.kind, report.first_difference.name) == ("gradient", name)


@pytest.mark.slow  # as the steps of the other tests, more of them
def test_loss_falls_along_the_same_trajectory(case):
    """50 steps on the tiny synthetic data set."""
    ours, theirs = case("28").report.losses
    assert len(ours) == 50
    assert theirs[-3:].mean() < 0.1 * theirs[:3].mean()
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    narrow, narrow_theirs = case("28 float32").report.losses
    np.testing.assert_allclose(narrow, narrow_theirs, rtol=1e-3)
    np.testing.assert_allclose(narrow, ours, rtol=1e-3)


def test_run_changes_neither_side(case):
    one = case("adamw")
    model = one.torch_model()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variables = jax.tree.map(np.copy, one.variables)
    batches = [(x.copy(), labels.copy()) for x, labels in one.batches]
    assert one.run(torch_model=model).passed
    assert all(p.grad is None for p in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        np.testing.assert_array_equal(tensor, weights[name])
    jax.tree.map(np.testing.assert_array_equal, one.variables, variables)
    assert {leaf.dtype for leaf in jax.tree.leaves(one.variables)} == {np.dtype(np.float32)}
    for (x, labels), (kept_x, kept_labels) in zip(one.batches, batches, strict=True):
        np.testing.assert_array_equal(x, kept_x)
        np.testing.assert_array_equal(labels, kept_labels)


def test_run_leaves_the_precision_of_jax_alone(case):
    assert case("adamw").report.passed
    assert jax.numpy.zeros(1, float).dtype == np.float32


def test_weights_of_its_own(case):
    """One ulp in one weight is named: weights must be equal."""
    model = case("adamw").torch_model()
    bias = model.mlp_head[2].bias
    bias.data[0] = torch.nextafter(bias.data[0], torch.tensor(9.0))
    first = case("adamw").run(torch_model=model).first_difference
    assert (first.kind, first.name) == ("weight", "params/head/bias")


def test_progress_is_told(case):
    said = []
    case("adamw").run(on_progress=said.append)
    assert len(said) == len(set(said)) == 2 + case("adamw").options["steps"]


def test_unknown_dtype_and_no_batch():
    with pytest.raises(UserError, match="dtype='float16' is unknown"):
        parity.run(SMALL, BRIDGE, {}, [], dtype="float16")
    with pytest.raises(UserError, match="no batch"):
        parity.run(SMALL, BRIDGE, {}, [])


# Random weights.


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
    flat = traverse_util.flatten_dict(variables, sep="/")
    assert {array.dtype for array in flat.values()} == {np.dtype(np.float32)}
    for path, array in flat.items():
        assert np.all(array != 0), path
        assert np.all(array != 1), path
        assert array.size == 1 or array.std() > 0.01, path


# The comparison, on traces made by hand.


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
    ("loss", "cross-entropy"),
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


# The report.

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
    assert parity_report.verdict(GOOD) == "float32: all 3 comparisons agree"
    text = parity_report.verdict(BAD)
    assert "3 of 6" in text
    assert text.endswith("the first is activation large")


def test_table_has_every_row_in_order():
    text = parity_report.table(BAD)
    lines = text.splitlines()
    assert lines[0] == "float64"
    assert lines[-1] == parity_report.verdict(BAD)
    body = lines[2:-1]
    assert len(body) == len(BAD.rows)
    for line, comparison in zip(body, BAD.rows, strict=True):
        assert line.startswith("ok " if comparison.passed else "FAIL")
        assert f" {comparison.name} " in line
    assert len({len(line) for line in lines[1:-1]}) == 1


def test_worst_only_keeps_one_row_of_each_kind():
    body = parity_report.table(BAD, worst_only=True).splitlines()[2:-1]
    assert [line.split()[:2] for line in body] == [
        ["FAIL", "activation"],
        ["ok", "logits"],
        ["FAIL", "gradient"],
    ]
    assert " level_0/block_0/with_nan " in body[0]
    (line,) = parity_report.table(GOOD, worst_only=True).splitlines()[2:-1]
    assert " most " in line


def test_json_is_well_formed_whatever_the_numbers():
    loaded = json.loads(json.dumps(parity_report.as_json([GOOD, BAD]), allow_nan=False))
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
    assert parity_report.as_json([GOOD])["passed"] is True


def test_json_of_a_real_report(case):
    report = case("28 float32").report
    (run,) = json.loads(json.dumps(parity_report.as_json([report]), allow_nan=False))["runs"]
    assert run["losses"]["torch"] == [float(loss) for loss in report.losses[1]]
    assert len(run["rows"]) == len(report.rows)


def test_loss_table():
    lines = parity_report.loss_table(BAD).splitlines()
    assert lines[0] == "float64"
    assert [line.split()[0] for line in lines[2:]] == ["1", "2"]
    assert lines[2].split() == ["1", "1.000000000000", "1.000000000000", "0.0e+00"]
    assert lines[3].split()[1:] == ["nan", "0.250000000000", "nan"]


def test_plot_is_a_png(case, tmp_path):
    path = tmp_path / "new" / "losses.png"
    reports = [case("28").report, case("28 float32").report]
    parity_report.plot_losses(reports, path, "Losses")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert [p.name for p in path.parent.iterdir()] == ["losses.png"]


def test_plot_of_equal_losses(tmp_path):
    """As a few steps in float64 may well give; a logarithmic axis cannot show zeros."""
    parity_report.plot_losses([GOOD], tmp_path / "losses.png", "Losses")
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_plot_that_cannot_be_written_is_one_message(tmp_path):
    (tmp_path / "file").write_text("in the way")
    losses = (np.array([1.5, 1.0]), np.array([1.25, 1.0]))
    report = dataclasses.replace(GOOD, losses=losses)
    for path in (tmp_path / "file" / "losses.png", tmp_path):
        with pytest.raises(UserError, match="cannot be written"):
            parity_report.plot_losses([report], path, "Losses")
