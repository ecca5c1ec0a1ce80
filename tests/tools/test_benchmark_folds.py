"""The figures of whole folds; how large they are is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# One level of one token compiles in seconds.
TINY = [
    f"--config={ROOT / 'configs' / 'demo.py'}",
    *("--config.dataset.config=tiny", "--config.batch_size=10", "--config.inner_folds=0"),
    *("--config.model.dim=6", "--config.model.patch_size=28", "--config.model.num_hierarchies=1"),
    *("--config.model.block_repeats=(1,)", "--config.cpu_devices=1", "--epochs=2"),
]


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "benchmark_folds.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu", **environment},
    )


@pytest.mark.slow  # three processes that compile
def test_figures(tmp_path):
    file = tmp_path / "folds.json"
    done = run(
        *(*TINY, "--folds=3", "--groups=0,3", "--repeats=2", "--torch", f"--json={file}"),
        f"--config.dataset.data_dir={tmp_path}",
        # Compiling takes most of the time.
        XLA_FLAGS="--xla_backend_optimization_level=0",
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(file.read_text(), parse_constant=pytest.fail)
    single, group = figures["cases"]
    assert (single["folds_per_device"], group["folds_per_device"]) == (1, 3)
    for case in (single, group):
        assert (case["folds"], case["devices"], case["epochs"]) == (3, 1, 2)
        assert len(case["seconds"]) == 2
        assert min(case["seconds"]) > 0
        each = sum(case["seconds"]) / 2 / (3 * 2)
        assert case["seconds_per_fold_epoch"] == pytest.approx(each)
        assert case["fold_epochs_per_s"] == pytest.approx(1 / each)
        assert case["compile_s"] > 0
        assert case["peak_bytes"] > case["held_before_bytes"] > 1 << 20
    assert group["program_bytes"] > single["program_bytes"] > 0
    loop = figures["torch"]
    # The tiny data set has six subjects; the demo trains forty epochs.
    assert loop["whole_run_s"] == pytest.approx(loop["seconds_per_fold_epoch"] * 6 * 40)
    assert len(loop["fold_seconds"]) == 2
    assert len(done.stdout.splitlines()) == 5
    assert "for 6 folds x 40 epochs" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--folds=0"], "--folds=0: give whole numbers from 1"),
        (["--groups=a"], "--groups=a: give whole numbers from 0"),
        (["all"], "unexpected argument 'all'"),
    ],
)
def test_wrong_input_is_one_message(arguments, message):
    done = run(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_too_many_folds(tmp_path):
    done = run(*TINY, "--folds=7", f"--config.dataset.data_dir={tmp_path}")
    assert done.returncode == 2
    assert "--folds names 7 folds, but the config has 6" in done.stderr
    assert "Traceback" not in done.stderr
