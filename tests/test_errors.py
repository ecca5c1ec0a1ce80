"""What commands say besides their errors."""

import signal
import sys

import pytest

from htnet_jax.errors import count, run_command


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
