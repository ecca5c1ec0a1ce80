"""The benchmark's clock, its figures, and that both sides compute the same."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from htnet_jax.models.costs import htnet_costs

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, parity, speed, speed_cases, speed_report, stopwatch
from htnet_jax.torch_bridge.traces import Optimizer

BRIDGE = BRIDGES["HTNet"]
# One level of four tokens compiles in seconds.
OPTIMIZER = Optimizer("adam", 1e-2)
MODULE = HTNet(image_size=14, dim=6, num_hierarchies=1, block_repeats=(1,))


@pytest.fixture(scope="module")
def setup():
    return speed_cases.Setup(
        module=MODULE,
        bridge=BRIDGE,
        costs=htnet_costs(MODULE),
        channels=3,
        optimizer=OPTIMIZER,
        variables=parity.random_variables(MODULE, BRIDGE, 3, 0),
        torch_sides={"torch": speed.TorchSide()},
        # Half the time to compile.
        options={"xla_backend_optimization_level": 0},
        precision="float32",
        rng=np.random.default_rng(0),
    )


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    return now


@pytest.fixture
def quick(monkeypatch):
    """One call a measurement."""
    monkeypatch.setattr(stopwatch, "SECONDS_PER_MEASUREMENT", 0.0)


def test_calls_are_repeated_until_a_measurement_is_long_enough(clock):
    events = []

    def call():
        clock[0] += 0.125
        events.append("call")
        return "result"

    def wait(result):
        assert result == "result"
        clock[0] += 0.0625
        events.append("wait")

    measure = stopwatch.per_call(call, wait)
    assert events == ["call", "wait"] * 3
    events.clear()
    # 0.3 s hold two calls of 0.1875 s.
    assert measure() == (2 * 0.125 + 0.0625) / 2
    assert events == ["call", "call", "wait"]


def test_sides_take_turns():
    order, ticks = [], []

    def side(name, value):
        return lambda: order.append(name) or value + len(order)

    sides = {"a": side("a", 10), "b": side("b", 20)}
    seconds = stopwatch.alternate(sides, 3, lambda: ticks.append(1))
    assert "".join(order) == "abbaab"
    assert len(ticks) == 6
    assert seconds["a"].tolist() == [11, 14, 15]
    assert seconds["b"].tolist() == [22, 23, 26]


CEILINGS = {"product": {"flops_per_s": 100.0}, "read": {"bytes_per_s": 80.0}}


def test_figures_of_a_case():
    case = speed_report.Case("step", flops=60, bytes=20, difference=0.5)
    seconds = {"ours": np.array([1.0, 2.0, 9.0]), "torch": np.array([4.0, 6.0, 9.0])}
    figures = speed_report.case_figures(case, seconds, CEILINGS)
    assert figures == {
        "unit": "step",
        "repeats": 3,
        "flops": 60,
        "bytes": 20,
        "product_ceiling_flops_per_s": 100.0,
        "read_ceiling_bytes_per_s": 80.0,
        "ours_s": 2.0,
        "ours_quartiles_s": [1.5, 5.5],
        "ours_seconds": [1.0, 2.0, 9.0],
        "ours_flops_per_s": 30.0,
        "ours_of_product_ceiling": 0.3,
        "ours_bytes_per_s": 10.0,
        "ours_of_read_ceiling": 0.125,
        "torch_s": 6.0,
        "torch_quartiles_s": [5.0, 7.5],
        "torch_seconds": [4.0, 6.0, 9.0],
        "torch_flops_per_s": 10.0,
        "torch_of_product_ceiling": 0.1,
        "torch_bytes_per_s": pytest.approx(20 / 6),
        "torch_of_read_ceiling": pytest.approx(20 / 6 / 80),
        "ratio": 3.0,
        # Of the rounds: 4, 3 and 1.
        "ratio_quartiles": [2.0, 3.5],
        "difference": 0.5,
    }


def test_figures_without_bytes_and_with_torch_compile():
    case = speed_report.Case("step", flops=60, bytes=None, difference=0.0)
    seconds = {"ours": np.array([2.0]), "torch": np.array([6.0]), "torch_compile": np.array([3.0])}
    figures = speed_report.case_figures(case, seconds, CEILINGS)
    assert (figures["ratio"], figures["ratio_compile"]) == (3.0, 1.5)
    assert figures["bytes"] is None
    assert not {"ours_bytes_per_s", "torch_bytes_per_s", "ours_of_read_ceiling"} & {*figures}
    ceilings = {
        "product": speed_report.ceiling_figures(
            1000, "flops", {"ours": np.array([5.0, 4.0, 1.0]), "torch": np.array([8.0])}
        )
    }
    assert ceilings["product"] == {
        "ours_flops_per_s": 250.0,
        "torch_flops_per_s": 125.0,
        "flops_per_s": 250.0,
    }
    lines = speed_report.table({"train_step": figures, "ceilings": ceilings, "machine": {}})
    words = [line.split() for line in lines.splitlines()]
    assert words[1:] == [
        ["train_step", "ours", "2", "s", "2", "s", "..", "2", "s", "30", "30%"],
        ["train_step", "PyTorch", "6", "s", "6", "s", "..", "6", "s", "3.00", "10", "10%"],
        ["train_step", "torch.compile", "3", "s", "3", "s", "..", "3", "s", "1.50", "20", "20%"],
        ["ceiling:", "product", "ours", "250"],
        ["ceiling:", "product", "PyTorch", "125"],
    ]


def test_cases_run_on_the_same_weights_and_clips(setup, quick):
    forward, sides = speed_cases.forward(setup, 3, "float32")
    assert set(sides) == {"ours", "torch"}
    assert all(measure() > 0 for measure in sides.values())
    assert forward.flops == 3 * setup.costs.forward_flops
    assert forward.bytes == 4 * setup.costs.parameters
    assert 0 < forward.difference < 1e-4
    before = jax.tree.map(np.array, setup.variables)
    step, sides = speed_cases.train_step(setup, 5)
    assert step.flops == 5 * setup.costs.step_flops
    assert step.bytes is None
    assert 0 <= step.difference < 1e-4
    assert all(measure() > 0 for measure in sides.values())
    # Both sides trained on copies.
    jax.tree.map(np.testing.assert_array_equal, before, setup.variables)


def test_narrow_weights_are_read_as_such(setup, quick):
    rough = dataclasses.replace(setup, precision="bfloat16")
    case, _ = speed_cases.forward(rough, 2, "bfloat16")
    assert case.bytes == 2 * setup.costs.parameters
    assert 1e-5 < case.difference < 5e-2
    with pytest.raises(UserError, match=r"forward_2, torch: .* more than float32 allows"):
        speed_cases.forward(setup, 2, "bfloat16")


def test_training_that_differs_is_not_timed(setup, quick, monkeypatch):
    """The first loss agrees, the second one shows that PyTorch took other steps."""
    original = speed.TorchSide.epoch

    def epoch(self, model, optimizer, batches, test):
        faster = dataclasses.replace(optimizer, learning_rate=10 * optimizer.learning_rate)
        return original(self, model, faster, batches, test)

    monkeypatch.setattr(speed.TorchSide, "epoch", epoch)
    with pytest.raises(UserError, match=r"train_step, torch, loss 2: .*check_parity"):
        speed_cases.train_step(setup, 5)


def test_an_epoch_trains_on_every_batch_and_predicts(setup):
    side = speed.TorchSide()
    model = setup.torch_model(side)
    batches, test = [setup.batch(4), setup.batch(2)], setup.batch(3)
    call = side.epoch(model, OPTIMIZER, batches, test)
    before = side.forward(model, test)()
    loss, logits = call()
    # The loss is that of the last batch, so it depends on the step before.
    expected = setup.torch_model(side)
    side.epoch(expected, OPTIMIZER, batches[:1], None)()
    inputs, labels = side.tensors(batches[1])
    theirs = torch.nn.functional.cross_entropy(expected(*inputs), labels)
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(side.forward(model, test)(), logits)
    assert (logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_results_that_are_no_numbers_differ(value):
    with pytest.raises(UserError, match=r"loss: .* not finite"):
        speed.compare("loss", np.array([value]), torch.tensor([value]), "float32")
    with pytest.raises(ValueError, match="shapes"):
        speed.compare("loss", np.zeros(2), torch.zeros(3), "float32")
