import json
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
def test_random_weights_agree(tmp_path, accepts):
    table, plot = tmp_path / "figures.json", tmp_path / "losses.png"
    output = accepts(
        *(*TINY, "--steps=2", f"--json={table}", f"--plot={plot}", "--losses", "--worst")
    )
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
def test_a_network_of_two_frames_in_both_modes(tmp_path, accepts):
    (tmp_path / "frames.py").write_text(MMNET)
    output = accepts(
        f"--config={tmp_path / 'frames.py'}",
        *("--dtype=float64", "--steps=2", "--batch_size=2", "--worst", "--optimizer=adamw"),
    )
    assert "float64: all" in output
    assert "float64 train: all" in output
    # In both modes but for the running statistics.
    assert output.count("ok ") == 2 * len(KINDS) + 1


@pytest.mark.slow  # tests/torch_bridge/test_faults.py has every kind of fault
def test_a_changed_weight_is_named(tmp_path, tool, checkpoint, state_dict):
    changed = dict(state_dict)
    name = "layers.0.0.layers.0.1.fn.net.0.bias"
    changed[name] = changed[name] + 1e-3
    torch.save(changed, tmp_path / "pair.pth")
    pair = f"--flax={checkpoint}", f"--torch={tmp_path / 'pair.pth'}"
    done = tool(*pair, "--dtype=float64", "--steps=0", "--batch_size=2")
    assert done.returncode == 1, done.stderr
    output = done.stdout
    assert "the first is weight params/level_0/block_0/mlp/fc1/bias" in output
    lines = [line.split() for line in output.splitlines()]
    failed = [words[1:3] for words in lines if words[0] == "FAIL"]
    assert failed[:2] == [
        ["weight", "params/level_0/block_0/mlp/fc1/bias"],
        ["activation", "level_0/block_0/mlp/fc1"],
    ]
    assert ["ok", "activation", "level_0/block_0/mlp_norm"] in [words[:3] for words in lines]


def test_wrong_input_is_one_message(tmp_path, refuses, checkpoint, state_dict):
    other = {**state_dict, "mlp_head.2.weight": torch.zeros(3, 7)}
    del other["mlp_head.2.bias"]
    torch.save(other, tmp_path / "other.pth")
    np.savez(tmp_path / "arrays.pth", a=np.ones(3))
    (tmp_path / "frames.py").write_text(MMNET)
    frames = f"--config={tmp_path / 'frames.py'}"
    checkpoint = f"--flax={checkpoint}"
    runs = {
        "--mode=trains is unknown; use eval or train": [*TINY, "--mode=eval,trains"],
        "MMNet takes 2 of them": [frames, "--data=dataset", "--config.inputs=mosaic"],
        "--dtype=float16 is unknown; use float64 or float32": [*TINY, "--dtype=float16"],
        "--dtype is empty": [*TINY, "--dtype="],
        "--plot needs a name that ends in .png": [*TINY, "--plot=losses.jpg"],
        f"{tmp_path}: is a folder": [*TINY, f"--json={tmp_path}"],
        "--config is not for --flax": [checkpoint, frames],
        str(tmp_path / "nothing"): [f"--flax={tmp_path / 'nothing'}"],
        "other.pth": [checkpoint, f"--torch={tmp_path / 'other.pth'}"],
        "arrays.pth": [checkpoint, f"--torch={tmp_path / 'arrays.pth'}"],
    }
    for word, arguments in runs.items():
        message = refuses(*arguments)
        assert word in message
        if word == "other.pth":
            assert "mlp_head.2.bias" in message
            assert "mlp_head.2.weight (3, 6)" in message
            assert "(3, 7)" in message
