"""The benchmark's figures; how large they are is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from htnet_jax.models.costs import htnet_costs

from htnet_jax.models import HTNet

ROOT = Path(__file__).parents[2]
# One level of four tokens compiles in seconds.
SIZES = {"dim": 6, "image_size": 14, "num_hierarchies": 1, "block_repeats": (1,)}
TINY = [f"--config={ROOT / 'configs' / 'demo.py'}", "--repeats=1", "--folds=2"] + [
    f"--config.model.{key}={value}" for key, value in SIZES.items()
]


def start(*arguments, **environment):
    command = [sys.executable, str(ROOT / "tools" / "benchmark.py"), *map(str, arguments)]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", **environment},
    )


def finish(process):
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    file = tmp_path_factory.mktemp("new") / "folder" / "speed.json"
    status, output, errors = finish(
        start(
            *TINY,
            "--cases=train_step,forward_3,fold_epoch",
            *("--batch_size=435", "--epochs=32", "--threads=1", f"--json={file}"),
            # Compiling takes most of the time.
            XLA_FLAGS="--xla_backend_optimization_level=0",
        )
    )
    assert status == 0, errors
    return json.loads(file.read_text(), parse_constant=pytest.fail), output


def test_structure(measured):
    figures, output = measured
    assert list(figures) == ["train_step", "forward_3", "fold_epoch", "ceilings", "machine"]
    for name in ("train_step", "forward_3", "fold_epoch"):
        case = figures[name]
        assert case["ours_s"] > 0
        assert case["torch_s"] > 0
        assert case["ratio"] == case["torch_s"] / case["ours_s"]
        assert case["ours_quartiles_s"] == [case["ours_s"]] * 2
        assert case["ours_seconds"] == [case["ours_s"]]
        assert case["ours_flops_per_s"] == case["flops"] / case["ours_s"]
        ceiling = case["product_ceiling_flops_per_s"]
        assert case["torch_of_product_ceiling"] == case["torch_flops_per_s"] / ceiling
        assert 0 <= case["difference"] < 1e-3
        assert sum(line.startswith(name) for line in output.splitlines()) == 2
    assert set(figures["ceilings"]) == {"product", "copy", "read"}
    for name, ceiling in figures["ceilings"].items():
        unit = "flops" if name == "product" else "bytes"
        rates = [ceiling[f"{side}_{unit}_per_s"] for side in ("ours", "torch")]
        assert ceiling[f"{unit}_per_s"] == max(rates) >= min(rates) > 0


def test_work_is_counted(measured):
    figures, _ = measured
    costs = htnet_costs(HTNet(**SIZES))
    assert figures["train_step"]["flops"] == 435 * costs.step_flops
    assert figures["forward_3"]["flops"] == 3 * costs.forward_flops
    assert figures["forward_3"]["bytes"] == 4 * costs.parameters
    # 442 clips of 68 subjects: the first two subjects have 7 clips.
    epoch = 435 * costs.step_flops + 7 * costs.forward_flops
    assert figures["fold_epoch"]["flops"] == epoch
    assert figures["fold_epoch"]["bytes"] is None


def test_machine(measured):
    machine = measured[0]["machine"]
    assert machine["threads"] == machine["devices"] == 1
    assert machine["cores"] >= 1
    assert machine["platform"] == "cpu"
    assert {"jax", "torch", "python", "htnet_jax"} <= set(machine["versions"])
    assert machine["command"][0] == "benchmark.py"
    assert "--threads=1" in machine["command"]
    assert machine["model"]["dim"] == 6


def test_wrong_input_is_one_message(tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('none', name='torch')\n")
    majority = "--config=" + str(ROOT / "configs" / "baseline_majority.py")
    batches = {
        "'backward', 'forward_0'": ["--cases=train_step,backward,forward_0"],
        "--cases names nothing": ["--cases="],
        "--config.model.dropout=0.0": ["--config.model.dropout=0.5"],
        "435 training clips": ["--batch_size=436"],
        "float64: use float32": ["--config.model.dtype=float64"],
        "is a folder": [f"--json={tmp_path}"],
        "--threads=100000": ["--threads=100000"],
        "--tf32 is for GPUs": ["--tf32"],
        "unexpected argument 'all'": ["all"],
        "unknown setting --config.model.dimm": ["--config.model.dimm=3"],
        "no network in PyTorch": [majority],
        "pip install": [],
    }
    for word, arguments in batches.items():
        environment = {"PYTHONPATH": str(broken)} if word == "pip install" else {}
        given = arguments if word == "no network in PyTorch" else [*TINY, *arguments]
        status, output, errors = finish(start(*given, **environment))
        assert status == 2, (word, output, errors)
        assert errors.count("error:") == 1, errors
        assert word in errors, errors
        assert "Traceback" not in errors
        assert not output


@pytest.mark.slow
def test_torch_compile(tmp_path):
    """Takes a minute: PyTorch writes and compiles C++."""
    file = tmp_path / "speed.json"
    status, _, errors = finish(
        start(
            *TINY,
            *("--cases=train_step,forward_2", "--batch_size=8", "--compile", f"--json={file}"),
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
        )
    )
    assert status == 0, errors
    figures = json.loads(file.read_text())
    for name in ("train_step", "forward_2"):
        case = figures[name]
        assert case["ratio_compile"] == case["torch_compile_s"] / case["ours_s"] > 0
    status, _, errors = finish(
        start(
            *(*TINY, "--cases=forward_2", "--compile"),
            CXX="/nonexistent",
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "other"),
        )
    )
    assert status == 2, errors
    assert "leave --compile out" in errors
    assert "Traceback" not in errors
