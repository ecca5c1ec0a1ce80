"""What commands say besides their errors, and of mistakes in the surroundings and in flags."""

import json
import os
import pathlib
import pwd
import re
import signal
import subprocess
import sys

import pytest

import htnet_jax
from htnet_jax import foreign
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError, count, parse_flags, run_command

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = [
    *(ROOT / "htnet_jax" / f"{name}.py" for name in ("train", "evaluate", "prepare")),
    *sorted((ROOT / "tools").glob("*.py")),
]


def test_counts():
    assert [count(number, "clip") for number in (0, 1, 2)] == ["0 clips", "1 clip", "2 clips"]
    assert count(2, "is", "are") == "2 are"


def test_an_interruption_says_the_command_that_resumes(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train"])
    monkeypatch.setattr(
        sys, "orig_argv", ["python", "-m", "htnet_jax.train", "--workdir=my runs/\x1b[2J"]
    )

    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        run_command(main)
    assert caught.value.code == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "interrupted; what was finished is kept. To resume, give this command again:",
        r"  python -m htnet_jax.train '--workdir=my runs/\x1b[2J'",
    ]


def command(*arguments, **environment):
    """(exit status, standard output, standard error) of a Python command."""
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", ["train", "evaluate", "prepare"])
def test_help_and_version_are_no_errors(name):
    status, out, error = command("-m", f"htnet_jax.{name}", "--help")
    assert (status, error) == (0, "")
    assert f"python -m htnet_jax.{name} " in out
    assert "\nflags:\n" in out
    assert ("--config.epochs=800" in out) == (name == "train")


@pytest.mark.parametrize("flag", ["--version", "-version"])
def test_every_command_has_a_version(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_flags(["any", "stray", flag])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"htnet_jax {htnet_jax.__version__}\n"
    # All of them parse their flags there.
    for path in COMMANDS:
        assert re.search(
            r"^    run_command\(main(, flags_parser=parser_for\(.*)?\)$", path.read_text(), re.M
        )
    with pytest.raises(UserError):
        parse_flags(["any", "--versoin"])


# Mistyped commands of `train`, parsed in one process.
PARSE = """
import json, sys
from absl import flags
from htnet_jax import train
from htnet_jax.config import parser_for
from htnet_jax.errors import UserError
for arguments in json.loads(sys.argv[1]):
    flags.FLAGS.unparse_flags()
    try:
        train.main(parser_for(train._CONFIG)(["train", *arguments]))
        print(json.dumps(""))
    except UserError as error:
        print(json.dumps(str(error)))
"""
DEMO = ["--config=configs/demo.py", "--workdir=/nowhere"]
MISTYPED = {
    "--wrkdir=runs/demo": "unknown flag --wrkdir; did you mean --workdir?",
    "--confg.epochs=3": "unknown flag --confg.epochs; did you mean --config.epochs?",
    "--config.epochs=3": "--config.epochs changes a config: give --config=FILE.py too",
    "--lr=3": "unknown flag --lr; did you mean --config.learning_rate?",
    "--config=configs/dmeo.py": "configs/dmeo.py: no such file; did you mean configs/demo.py?",
    "configs/demo.py": "give a config as --config=configs/demo.py",
    "D --config.lr=3": "unknown setting --config.lr; did you mean --config.learning_rate?",
    "D --config.Epochs=3": "unknown setting --config.Epochs; did you mean --config.epochs?",
    "D --config.dim=3": "unknown setting --config.dim; did you mean --config.model.dim?",
    "D --config.losses=focal": "--config.losses is a group; set one of its keys: --config.losses.",
    "D --config.model=HTNet": "--config.model is a group; set one of its keys: --config.model.",
    "D config.lr=3": "'config.lr=3'; settings are given as --config.KEY=VALUE; did you mean "
    "--config.learning_rate?",
    "D --config.qqqqq=1": "unknown setting --config.qqqqq; --help lists all",
}


@pytest.fixture(scope="module")
def said():
    calls = [[*(DEMO if a.startswith("D ") else []), a.removeprefix("D ")] for a in MISTYPED]
    status, out, error = command("-c", PARSE, json.dumps(calls))
    assert status == 0, error
    return dict(zip(MISTYPED, map(json.loads, out.splitlines()), strict=True))


@pytest.mark.parametrize("mistyped", MISTYPED)
def test_a_mistyped_command_is_told_what_may_be_meant(said, mistyped):
    assert MISTYPED[mistyped] in said[mistyped]
    assert "\n" not in said[mistyped]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_device_that_is_not_there_is_one_message(platform):
    code = (
        "import jax; from htnet_jax.errors import run_command; run_command(lambda _: jax.devices())"
    )
    status, out, error = command("-c", code, JAX_PLATFORMS=platform)
    if platform == "cuda" and status == 0:
        pytest.skip("there is a GPU")
    assert (status, out) == (2, "")
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("error:")]
    assert f"no device with JAX_PLATFORMS={platform} (" in line
    assert "set JAX_PLATFORMS=cpu" in line


def test_other_errors_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train"])

    def main(argv):
        raise RuntimeError("a mistake in the program")

    with pytest.raises(RuntimeError, match="a mistake in the program"):
        run_command(main)


@pytest.fixture(params=["unset", "empty"])
def no_home(request, monkeypatch, tmp_path):
    """As in a container whose user the system does not know."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME")
    if request.param == "empty":
        monkeypatch.setenv("HOME", "")
    monkeypatch.chdir(tmp_path)
    return request.param


@pytest.mark.usefixtures("no_home")
def test_without_a_home_commands_end_in_one_message(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train"])
    with pytest.raises(SystemExit) as caught:
        run_command(lambda _: pytest.fail("it began"))
    assert caught.value.code == 2
    assert "Set HOME to a folder that you can write to" in capsys.readouterr().err


@pytest.mark.parametrize("no_home", ["unset"], indirect=True)
@pytest.mark.parametrize("data_dir", ["~/data", "~", ""])
@pytest.mark.usefixtures("no_home")
def test_without_a_home_no_folder_is_called_like_its_sign(data_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    with pytest.raises(UserError, match="give the path without ~"):
        loading.load("synthetic", config="tiny", data_dir=data_dir)
    with pytest.raises(UserError, match="give the path without ~"):
        foreign.expanded("~/x")
    assert not list(tmp_path.iterdir())
