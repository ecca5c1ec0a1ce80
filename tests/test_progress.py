"""Bars on a terminal, plain lines elsewhere, nothing in other processes than the leading one."""

import contextlib
import io

import pytest

from htnet_jax import progress
from htnet_jax.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when told."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_a_line_now_and_then(capfd, clock):
    for _ in progress.progress(range(8), 8, "aligning", "clip"):
        clock.now += 10
    assert capfd.readouterr().err.splitlines() == [
        "aligning: 3/8 clips, 00:30 elapsed, 0.1 clip/s, 00:50 left",
        "aligning: 6/8 clips, 01:00 elapsed, 0.1 clip/s, 00:20 left",
        "aligning: 8/8 clips, 01:20 elapsed, 0.1 clip/s",
    ]


def test_a_log_gets_a_line_where_one_is_asked_for(capfd, clock):
    with Bar(20, "starting", "epoch", done=10) as bar:
        clock.now += 60  # compiling: not part of what an epoch takes
        bar.restart()
        bar.write("compiled in 60 s")
        clock.now += 10
        bar.update(5, title="round 1/1", note="loss=0.5", line=True)
        bar.update(5)
    assert capfd.readouterr().err.splitlines() == [
        "compiled in 60 s",
        "round 1/1: 15/20 epochs, loss=0.5, 01:10 elapsed, 0.5 epoch/s, 00:10 left",
        "round 1/1: 20/20 epochs, loss=0.5, 01:10 elapsed, 1 epoch/s",
    ]


def test_counting_again(capfd, clock):
    with Bar(4, "training", "fold") as bar:
        bar.update(2, line=True)
        bar.restart(1)
        bar.update(3)
    assert "training: 4/4 folds" in capfd.readouterr().err.splitlines()[-1]


def test_what_is_brief_leaves_nothing(capfd, clock):
    assert [*progress.progress("ab", 2, "comparing", "block", brief=True)] == ["a", "b"]
    assert capfd.readouterr().err == ""


def test_an_interruption_leaves_where_it_was(capfd, clock):
    with pytest.raises(KeyboardInterrupt):
        for item in progress.progress(range(3), 3, "aligning", "clip"):
            if item == 2:
                raise KeyboardInterrupt
    assert "aligning: 2/3 clips" in capfd.readouterr().err


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_other_processes_are_silent(stream):
    with (
        contextlib.redirect_stderr(stream()) as screen,
        Bar(2, "training", "epoch", hidden=True) as bar,
    ):
        bar.update(line=True)
        bar.write("a word")
    assert screen.getvalue() == ""


def test_a_terminal_gets_a_bar():
    with (
        contextlib.redirect_stderr(Terminal()) as terminal,
        Bar(4, "round 1", "epoch", done=1) as bar,
    ):
        bar.update(title="round 2", note="loss=0.5")
        bar.write("a word")
        bar.restart(1)
        bar.update(3)
    shown = terminal.getvalue()
    assert "\r" in shown
    assert "a word\n" in shown
    assert "0/4" not in shown
    last = shown.splitlines()[-1]
    assert "round 2: 100%" in last
    assert "4/4" in last
    assert "loss=0.5" in last


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\nb", "a\rb", "a\u202eb", "a\udcffb"])
def test_names_are_shown_escaped(stream, name):
    with contextlib.redirect_stderr(stream()) as screen, Bar(1, name, "clip") as bar:
        bar.update(title=name, note=name)
    assert "a\\" in screen.getvalue()
    assert name not in screen.getvalue()
    assert screen.getvalue().count("\n") == 1
