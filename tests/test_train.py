"""The command, as a user types it: bad input ends in one message and no traceback."""

import subprocess
import sys
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[1] / "configs"


def train(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "htnet_jax.train", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def demo(tmp_path, *arguments):
    return train(
        f"--config={CONFIGS / 'demo.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        *arguments,
    )


def check_message(result, *parts):
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr
    assert result.stdout == ""


def test_flags_are_needed():
    check_message(train(), "--config=FILE", "--workdir=DIR")


def test_unknown_keys_are_all_named(tmp_path):
    result = demo(tmp_path, "--config.nonsense=1", "--config.model.dimm=3")
    check_message(
        result, "--config.nonsense", "--config.model.dimm; did you mean --config.model.dim?"
    )


def test_value_of_the_wrong_type(tmp_path):
    check_message(demo(tmp_path, "--config.epochs=many"), "config.epochs=many")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "No such file"), ("def get_config(:", "invalid syntax")]
)
def test_config_file_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "settings.py"
    if text:
        path.write_text(text)
    check_message(train(f"--config={path}", f"--workdir={tmp_path}"), str(path), message)


def test_workdir_that_cannot_be_made(tmp_path):
    (tmp_path / "run").write_text("in the way")
    check_message(demo(tmp_path), "workdir", str(tmp_path / "run"), "choose another --workdir")


def test_missing_manual_directory(tmp_path):
    missing = tmp_path / "nowhere"
    result = train(
        f"--config={CONFIGS / 'megc2019_narrow.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.data_dir={tmp_path / 'data'}",
        f"--config.dataset.manual_dir={missing}",
    )
    check_message(result, str(missing), "does not exist")


def test_a_run_from_the_command_line(tmp_path):
    arguments = (
        "--config.dataset.config=tiny",
        "--config.epochs=2",
        "--config.batch_size=8",
        "--config.model.dim=6",
        "--config.model.block_repeats=(1,0,1)",
        "--config.checkpoints=none",
        "--config.folds=a01,b01",
    )
    result = demo(tmp_path, *arguments)
    assert result.returncode == 0, result.stderr
    assert "last epoch" in result.stdout
    assert "selected on the test subject" in result.stdout
    written = {path.name for path in (tmp_path / "run").iterdir()}
    assert written == {
        "config.json",
        "environment.json",
        "metrics.json",
        "predictions.npz",
        "report.html",
    }
    check_message(demo(tmp_path, *arguments), "already holds a finished run")
