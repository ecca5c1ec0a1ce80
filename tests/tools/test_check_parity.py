import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from htnet_jax.config import default_config
from htnet_jax.torch_bridge import BRIDGES, convert, parity
from htnet_jax.training.state import build_module, save_fold

ROOT = Path(__file__).parents[2]
BRIDGE = BRIDGES["HTNet"]
# It has no running statistics.
KINDS = {*parity.KINDS} - {"statistics"}
# One level of four tokens compiles in seconds.
SIZES = {"dim": 6, "image_size": 14, "num_hierarchies": 1, "block_repeats": (1,)}
TINY = [f"--config={ROOT / 'configs' / 'demo.py'}", "--batch_size=3"] + [
    f"--config.model.{key}={value}" for key, value in SIZES.items()
]
MMNET = """
from ml_collections import ConfigDict
from htnet_jax.config import default_config

def get_config():
    config = default_config()
    with config.unlocked():
        config.model = ConfigDict(dict(name="MMNet", num_classes=5, image_size=32, stem=3,
            widths=(4, 4, 4, 4), depth=1, heads=2, mlp_mult=1, drop_path=0.0))
    return config
"""


def start(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "check_parity.py"), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def config():
    config = default_config()
    config.model.update(SIZES)
    return config


@pytest.fixture(scope="module")
def variables(config):
    return parity.random_variables(build_module(config.model), BRIDGE, 3, 0)


@pytest.fixture(scope="module")
def state_dict(variables):
    return convert.to_state_dict(variables, BRIDGE.table)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, config, variables):
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "s01"
    save_fold(folder, variables, config.to_dict())
    return folder


@pytest.mark.slow  # as test_parity.py without the command
def test_random_weights_agree(tmp_path):
    table, plot = tmp_path / "figures.json", tmp_path / "losses.png"
    status, output, errors = finish(
        start(*TINY, "--steps=2", f"--json={table}", f"--plot={plot}", "--losses", "--worst")
    )
    assert status == 0, errors
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    loaded = json.loads(table.read_text(), parse_constant=lambda word: pytest.fail(word))
    assert loaded["passed"] is True
    assert [run["dtype"] for run in loaded["runs"]] == ["float64", "float32"]
    for run in loaded["runs"]:
        assert run["passed"] is True
        assert set(run["worst"]) == KINDS
        assert run["mode"] == "eval"
        assert len(run["losses"]["flax"]) == len(run["losses"]["torch"]) == 2
        assert f"{run['dtype']}: all {len(run['rows'])} comparisons agree" in output
        assert f"{run['losses']['torch'][1]:.12f}" in output
    assert output.count("ok ") == 2 * len(KINDS)
    assert "FAIL" not in output


@pytest.mark.slow  # tests/torch_bridge/test_mmnet.py compares the networks themselves
def test_a_network_of_two_frames_in_both_modes(tmp_path):
    (tmp_path / "frames.py").write_text(MMNET)
    status, output, errors = finish(
        start(
            f"--config={tmp_path / 'frames.py'}",
            *("--dtype=float64", "--steps=2", "--batch_size=2", "--worst", "--optimizer=adamw"),
        )
    )
    assert status == 0, errors
    assert "float64: all" in output
    assert "float64 train: all" in output
    # In both modes but for the running statistics.
    assert output.count("ok ") == 2 * len(KINDS) + 1


@pytest.mark.slow  # tests/torch_bridge/test_faults.py has every kind of fault
def test_a_changed_weight_is_named(tmp_path, checkpoint, state_dict):
    changed = dict(state_dict)
    name = "layers.0.0.layers.0.1.fn.net.0.bias"
    changed[name] = changed[name] + 1e-3
    torch.save(changed, tmp_path / "pair.pth")
    pair = f"--flax={checkpoint}", f"--torch={tmp_path / 'pair.pth'}"
    status, output, errors = finish(start(*pair, "--dtype=float64", "--steps=0", "--batch_size=2"))
    assert status == 1, errors
    assert "the first is weight params/level_0/block_0/mlp/fc1/bias" in output
    lines = [line.split() for line in output.splitlines()]
    failed = [words[1:3] for words in lines if words[0] == "FAIL"]
    assert failed[:2] == [
        ["weight", "params/level_0/block_0/mlp/fc1/bias"],
        ["activation", "level_0/block_0/mlp/fc1"],
    ]
    assert ["ok", "activation", "level_0/block_0/mlp_norm"] in [words[:3] for words in lines]


def test_wrong_input_is_one_message(tmp_path, checkpoint, state_dict):
    other = {**state_dict, "mlp_head.2.weight": torch.zeros(3, 7)}
    del other["mlp_head.2.bias"]
    torch.save(other, tmp_path / "other.pth")
    np.savez(tmp_path / "arrays.pth", a=np.ones(3))
    (tmp_path / "frames.py").write_text(MMNET)
    frames = f"--config={tmp_path / 'frames.py'}"
    runs = {
        "--mode=trains": start(*TINY, "--mode=eval,trains"),
        "MMNet takes 2 of them": start(frames, "--data=dataset"),
        "float16": start(*TINY, "--dtype=float16"),
        str(tmp_path / "nothing"): start(f"--flax={tmp_path / 'nothing'}"),
        "other.pth": start(f"--flax={checkpoint}", f"--torch={tmp_path / 'other.pth'}"),
        "arrays.pth": start(f"--flax={checkpoint}", f"--torch={tmp_path / 'arrays.pth'}"),
    }
    for word, process in runs.items():
        status, output, errors = finish(process)
        assert status == 2, (word, output, errors)
        assert errors.count("error:") == 1, errors
        assert word in errors
        assert "Traceback" not in errors
        assert not output
        if word == "other.pth":
            assert "mlp_head.2.bias" in errors
            assert "mlp_head.2.weight (3, 6)" in errors
            assert "(3, 7)" in errors
