"""The benchmark's clock, its figures, and that both sides compute the same.

How large the figures are is not tested.
"""

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from absl import flags

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet, MMNet
from htnet_jax.torch_bridge import BRIDGES

ROOT = Path(__file__).parents[2]
# One level of four tokens compiles in seconds.
SIZES = {"dim": 6, "image_size": 14, "num_hierarchies": 1, "block_repeats": (1,)}
TINY = [f"--config={ROOT / 'configs' / 'demo.py'}", "--repeats=1", "--folds=2"] + [
    f"--config.model.{key}={value}" for key, value in SIZES.items()
]


@pytest.fixture(scope="module")
def benchmark():
    """The tool as a module; its flags are taken away again."""
    path, before = ROOT / "tools" / "benchmark.py", {*flags.FLAGS}
    spec = importlib.util.spec_from_file_location("benchmark_tool", path)
    module = sys.modules["benchmark_tool"] = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings(action="ignore"):  # ml_collections' about its own loading
        spec.loader.exec_module(module)
    yield module
    for name in {*flags.FLAGS} - before:
        delattr(flags.FLAGS, name)
    del sys.modules["benchmark_tool"]


# --- useful work ----------------------------------------------------------------------------------


def work_of(benchmark, module):
    with torch.device("meta"):
        clip = [torch.empty(1, c, h, w) for h, w, c in module.input_shapes(3)]
        model = BRIDGES[type(module).__name__].build(module, 3)
    found = benchmark.count_work(model, clip)
    return found.forward_flops, found.step_flops, found.read_parameters


def test_work_of_the_published_network(benchmark):
    # q and k of 2, 2 and 10 blocks: 3, 6, 12 heads of 85 channels.
    idle = 2 * (2 * 256 * 255 + 2 * 512 * 510 + 10 * 1024 * 1020)
    # Per token: v and out, then the MLP; 16, 4 and 1 tokens; two convolutions and the head.
    blocks = [2 * c * inner + 8 * c * c for c, inner in ((256, 255), (512, 510), (1024, 1020))]
    products = 16 * 2 * blocks[0] + 4 * 2 * blocks[1] + 10 * blocks[2]
    # Taps inside a 4x4 and a 2x2 map.
    convolutions = 100 * 256 * 512 + 16 * 512 * 1024
    forward = 2 * (16 * 147 * 256 + products + convolutions + 1024 * 3)
    step = 3 * forward - 2 * 16 * 147 * 256
    assert work_of(benchmark, HTNet()) == (forward, step, 139_582_982 - idle)


def test_work_of_blocks_with_several_tokens(benchmark):
    # One level of four tokens, 6 channels, one head, hidden width 12, patches of 7 x 7 x 3.
    module = HTNet(image_size=14, dim=6, heads=1, num_hierarchies=1, block_repeats=(1,), mlp_mult=2)
    embedding = 2 * 4 * 147 * 6
    qkv, scores, weighted, out = 2 * 4 * 6 * 18, 2 * 4 * 4 * 6, 2 * 4 * 4 * 6, 2 * 4 * 6 * 6
    forward = embedding + qkv + scores + weighted + out + 2 * 2 * 4 * 6 * 12 + 2 * 6 * 3
    weights = (147 + 1) * 6 + 4 + 24 + 6 * 18 + 7 * 6 + 7 * 12 + 13 * 6 + 12 + 7 * 3
    assert work_of(benchmark, module) == (forward, 3 * forward - embedding, weights)


def test_work_of_mmnet(benchmark):
    """14.3 and 42.7 GFLOP a clip; the frames, and the grid of the onset, need no gradient."""
    forward, step, parameters = work_of(benchmark, MMNet())
    stem, patches = 2 * (3 * 112 - 1) ** 2 * 3 * 180, 2 * 196 * 3 * 512
    assert (forward, parameters) == (14_273_297_800, 9_438_841)
    assert step == 3 * forward - stem - patches


def test_work_of_a_convolution_of_clips(benchmark):
    """Ones under a kernel of ones count its points inside the clip."""
    layer = torch.nn.Conv3d(2, 5, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
    clip, ones = torch.ones(1, 2, 4, 9, 8), torch.ones(1, 2, 3, 7, 7)
    inside = torch.nn.functional.conv3d(clip, ones, None, layer.stride, layer.padding).sum()
    found = benchmark.count_work(layer, [clip])
    assert found.forward_flops == 2 * 5 * int(inside)
    assert (found.step_flops, found.read_parameters) == (2 * found.forward_flops, 2 * 5 * 147)


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 1), (5, 1), (2, 2), (8, 2)])
def test_taps(benchmark, side, stride):
    """Ones under a window of ones: every place counts its points inside the map."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(np.ones(side, int), 1), 3)
    assert benchmark.taps(side, 3, stride, 1) == windows[::stride].sum()
    assert benchmark.taps(side, 1, 1, 0) == side


# --- the clock and the figures --------------------------------------------------------------------


def test_calls_are_repeated_until_a_measurement_is_long_enough(benchmark, monkeypatch):
    now, events = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now[0])

    def call():
        now[0] += 0.125
        events.append("call")
        return "result"

    def wait(result):
        assert result == "result"
        now[0] += 0.0625
        events.append("wait")

    measure = benchmark.per_call(call, wait)
    assert events == ["call", "wait"] * 3
    events.clear()
    # 0.3 s hold two calls of 0.1875 s.
    assert measure() == (2 * 0.125 + 0.0625) / 2
    assert events == ["call", "call", "wait"]


def test_sides_take_turns(benchmark):
    order, ticks = [], []

    def side(name, value):
        return lambda: order.append(name) or value + len(order)

    sides = {"a": side("a", 10), "b": side("b", 20)}
    seconds = benchmark.alternate(sides, 3, lambda: ticks.append(1))
    assert "".join(order) == "abbaab"
    assert len(ticks) == 6
    assert seconds["a"].tolist() == [11, 14, 15]
    assert seconds["b"].tolist() == [22, 23, 26]


def test_figures_and_table(benchmark):
    ceilings = {"flops": 100.0, "bytes": 80.0}
    seconds = {"ours": np.array([1.0, 2.0, 9.0]), "torch": np.array([4.0, 6.0, 9.0])}
    case = benchmark.Case({}, flops=60, bytes=20, difference=0.5)
    figures = benchmark.case_figures(case, seconds, ceilings)
    assert figures == {
        "difference": 0.5,
        "flops": 60,
        "bytes": 20,
        "flops_ceiling_per_s": 100.0,
        "bytes_ceiling_per_s": 80.0,
        "ours_s": 2.0,
        "ours_quartiles_s": [1.5, 5.5],
        "ours_seconds": [1.0, 2.0, 9.0],
        "ours_flops_per_s": 30.0,
        "ours_of_flops_ceiling": 0.3,
        "ours_bytes_per_s": 10.0,
        "ours_of_bytes_ceiling": 0.125,
        "torch_s": 6.0,
        "torch_quartiles_s": [5.0, 7.5],
        "torch_seconds": [4.0, 6.0, 9.0],
        "torch_flops_per_s": 10.0,
        "torch_of_flops_ceiling": 0.1,
        "torch_bytes_per_s": pytest.approx(20 / 6),
        "torch_of_bytes_ceiling": pytest.approx(20 / 6 / 80),
        "ratio": 3.0,
    }
    figures = {"f": figures, "s": benchmark.case_figures(case, seconds, ceilings), "machine": {}}
    figures["s"] = benchmark.case_figures(benchmark.Case({}, 60, None, 0), seconds, ceilings)
    assert not [key for key in figures["s"] if key.endswith(("bytes_per_s", "of_bytes_ceiling"))]
    lines = benchmark.table(figures).splitlines()
    assert lines[1].split() == [
        *("f", "ours", "2", "s", "1.5", "s", "..", "5.5", "s", "30", "30%", "10", "12%")
    ]
    assert lines[4].split() == [
        *("s", "torch", "6", "s", "5", "s", "..", "7.5", "s", "3.00", "10", "10%")
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_results_that_differ(benchmark, value):
    with pytest.raises(UserError, match=r"loss: .* not finite"):
        benchmark.compare("loss", np.array([value]), torch.tensor([value]), "float32")
    with pytest.raises(ValueError, match="shapes"):
        benchmark.compare("loss", np.zeros(2), torch.zeros(3), "float32")
    ours, theirs = np.array([1.0, 2.0]), torch.tensor([1.0, 2.01])
    assert benchmark.compare("loss", ours, theirs, "bfloat16") == pytest.approx(0.01 / 2.01)
    with pytest.raises(UserError, match=r"loss: .* 5\.0e-03, more than float32 .*check_parity"):
        benchmark.compare("loss", ours, theirs, "float32")


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(tool, tmp_path_factory):
    file = tmp_path_factory.mktemp("new") / "speed.json"
    cases = ["--cases=train_step,forward_3,folds", "--batch_size=435", "--epochs=32"]
    done = tool(*TINY, *cases, f"--json={file}")
    assert done.returncode == 0, done.stderr
    return json.loads(file.read_text(), parse_constant=pytest.fail), done


def test_measurement(measured, benchmark):
    figures, output = measured[0], measured[1].stdout
    assert list(figures) == ["train_step", "forward_3", "folds", "machine"]
    for name in ("train_step", "forward_3", "folds"):
        case = figures[name]
        assert min(case["ours_s"], case["torch_s"]) > 0
        assert case["ratio"] == case["torch_s"] / case["ours_s"]
        assert case["ours_seconds"] == [case["ours_s"]]
        assert 0 <= case["difference"] < 1e-3
        assert sum(line.startswith(f"{name} ") for line in output.splitlines()) == 2
    forward, step, parameters = work_of(benchmark, HTNet(**SIZES))
    assert figures["train_step"]["flops"] == 435 * step
    assert (figures["forward_3"]["flops"], figures["forward_3"]["bytes"]) == (
        *(3 * forward, 4 * parameters),
    )
    # 442 clips of 68 subjects: the first two subjects have 7 clips.
    assert figures["folds"]["flops"] == 435 * step + 7 * forward
    folds = figures["folds"]
    assert (folds["folds"], folds["folds_per_device"]) == (2, 1)
    assert min(folds["compile_s"], folds["program_bytes"], folds["peak_bytes"]) > 0
    assert "folds: 2 folds, 1 a device on" in output
    machine = figures["machine"]
    assert (machine["platform"], machine["model"]["dim"]) == ("cpu", 6)
    assert {"jax", "torch"} <= set(machine["versions"])
    assert "--epochs=32" in machine["command"]


def test_each_case_is_printed_as_it_is_done(measured):
    """With how long to expect, what it took, and what is left."""
    lines = measured[1].stderr.splitlines()
    done = [line for line in lines if ", ratio " in line]
    assert [line.split(":")[0] for line in done] == ["train_step", "forward_3", "folds"]
    assert [line.split("; ")[-1] for line in done] == [
        *("2 cases left)", "1 case left)", "0 cases left)")
    ]
    (expected,) = [line for line in lines if "a case takes" in line]
    assert lines.index(expected) < lines.index(done[0])
    assert expected.startswith("3 cases, 1 measurement of each side")


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("'backward', 'forward_0'", ["--cases=train_step,backward,forward_0"]),
        ("--cases names nothing", ["--cases="]),
        ("--config.model.dropout=0.0", ["--config.model.dropout=0.5"]),
        ("435 training clips", ["--batch_size=436"]),
        ("float64: use float32", ["--config.model.dtype=float64"]),
        ("is a folder", ["--json=/"]),
        ("unexpected argument 'all'", ["all"]),
        ("unknown setting --config.model.dimm", ["--config.model.dimm=3"]),
    ],
)
def test_wrong_input_is_one_message(refuses, word, arguments):
    assert word in refuses(*TINY, *arguments)


def test_a_model_without_a_bridge(refuses):
    majority = ROOT / "configs" / "baseline_majority.py"
    message = "MajorityClass has no PyTorch bridge; there is one for HTNet, MMNet"
    assert message in refuses(f"--config={majority}")


def test_without_pytorch(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('none', name='torch')\n")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "benchmark.py")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch is not installed")
    assert "pip install" in done.stderr
    assert "Traceback" not in done.stderr
