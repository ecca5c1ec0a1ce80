import errno
import json
import os

import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.evaluation import page, report, tables
from htnet_jax.evaluation.figures import Drawn
from htnet_jax.evaluation.summary import Run, compare, describe, summarize
from htnet_jax.evaluation.tables import predictions_csv

FIGURES = {"curves": Drawn(b"\x89PNG one", "one"), "confusion_smic": Drawn(b"\x89PNG two", "two")}


@pytest.fixture(autouse=True)
def quick_page(monkeypatch):
    """A page that says what it was given: drawing is tested elsewhere."""

    def render(runs, pairs, figures):
        return f"page of {[run.name for run in runs]} {len(pairs)} {list(figures)} ä"

    monkeypatch.setattr(page, "figures", lambda runs, pairs=(): FIGURES)
    monkeypatch.setattr(page, "render", render)


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_files_of_a_run(make_run, tmp_path):
    run = Run.of("net", make_run(labels=[0, 1, 1, 0, 1, 2]))
    report.write_run(run, tmp_path)
    assert names_in(tmp_path) == [
        "metrics.json",
        "plots/confusion_smic.png",
        "plots/curves.png",
        "predictions_final.csv",
        "predictions_oracle.csv",
        "report.html",
        "table.md",
        "table.tex",
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics.pop("run") == describe(run.predictions)
    assert metrics.pop("plots") == ["confusion_smic.png", "curves.png"]
    assert metrics == summarize(run.predictions)
    assert (tmp_path / "table.md").read_text() == tables.markdown([run])
    assert (tmp_path / "table.tex").read_text() == tables.latex([run])
    page_text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page_text == "page of ['net'] 0 ['curves', 'confusion_smic'] ä"
    assert (tmp_path / "plots" / "curves.png").read_bytes() == b"\x89PNG one"
    content = (tmp_path / "predictions_oracle.csv").read_bytes().decode()
    assert content == predictions_csv(run.predictions, "oracle")


def test_a_partial_run_is_marked_in_its_metrics(make_run, tmp_path):
    report.write_run(Run.of("net", make_run(protocol_folds=["a", "b", "c"])), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["run"]["missing_folds"] == ["c"]
    assert "PARTIAL: 2 of 3 folds" in (tmp_path / "table.md").read_text()


def test_what_no_longer_holds_is_removed_and_nothing_else(
    make_run, make_inner, tmp_path, monkeypatch
):
    report.write_run(Run.of("net", make_run(inner=make_inner())), tmp_path)
    assert (tmp_path / "predictions_inner.csv").exists()
    (tmp_path / "plots" / "mine.png").write_text("mine")
    (tmp_path / "predictions_mine.csv").write_text("mine")
    monkeypatch.setattr(page, "figures", lambda runs, pairs=(): {"curves": FIGURES["curves"]})
    report.write_run(Run.of("net", make_run()), tmp_path)
    assert names_in(tmp_path) == [
        "metrics.json",
        "plots/curves.png",
        "plots/mine.png",
        "predictions_final.csv",
        "predictions_mine.csv",
        "predictions_oracle.csv",
        "report.html",
        "table.md",
        "table.tex",
    ]


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", '{"plots": 3}', '{"plots": ["../report.html", 4]}', '{"plots": {"a": 1}}'),
        *("[" * 100_000, '"\\ud800"', "null", '{"plots": "kept.png"}'),
    ],
)
def test_a_foreign_metrics_file_removes_nothing(make_run, tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    (tmp_path / "kept.png").write_text("kept")
    report.write_run(Run.of("net", make_run()), tmp_path)
    assert "kept.png" in names_in(tmp_path)
    assert "report.html" in names_in(tmp_path)


def test_a_listed_plot_outside_the_folder_is_left_alone(make_run, tmp_path):
    (tmp_path / "metrics.json").write_text('{"plots": ["../kept.png", "gone.png"]}')
    (tmp_path / "kept.png").write_text("kept")
    report.write_run(Run.of("net", make_run()), tmp_path)
    assert "kept.png" in names_in(tmp_path)


def test_the_files_of_a_comparison(make_run, tmp_path):
    runs = [Run.of("net", make_run()), Run.of("base", make_run(seeds=[8]))]
    pairs = [compare(runs[0].predictions, runs[1].predictions, ("net", "base"))]
    report.write_comparison(runs, pairs, tmp_path)
    assert names_in(tmp_path) == [
        "comparison.json",
        "plots/confusion_smic.png",
        "plots/curves.png",
        "report.html",
        "table.md",
        "table.tex",
    ]
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert list(found) == ["runs", "pairs", "plots"]
    assert list(found["runs"]) == ["net", "base"]
    assert found["runs"]["base"]["run"]["seeds"] == [8]
    assert found["runs"]["net"]["final"] == runs[0].summary["final"]
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"]) == ("net", "base")
    zero = {"difference": 0, "low": 0, "high": 0, "p_value": 1}
    assert pair["differences"]["final"]["composite"]["uf1"] == zero
    # One subject: no interval.
    assert pair["differences"]["final"]["smic"]["uf1"] == zero | {"low": None, "high": None}
    assert (tmp_path / "table.tex").read_text() == tables.latex(runs, pairs)


def test_runs_need_names_of_their_own(make_run, tmp_path):
    run = Run.of("net", make_run())
    with pytest.raises(ValueError, match="share a name"):
        report.write_comparison([run, run], [], tmp_path)


def test_a_folder_that_cannot_be_written(make_run, tmp_path):
    run = Run.of("net", make_run())
    with pytest.raises(UserError, match=r"plots: cannot be created \(No such file"):
        report.write_run(run, tmp_path / "missing")
    (tmp_path / "plots").write_text("a file")
    with pytest.raises(UserError, match=r"plots: cannot be created \(File exists\)"):
        report.write_run(run, tmp_path)
    (tmp_path / "plots").unlink()
    (tmp_path / "report.html").mkdir()
    with pytest.raises(UserError, match=r"report\.html: cannot be written"):
        report.write_run(run, tmp_path)


def test_an_old_file_that_cannot_be_removed(make_run, tmp_path):
    (tmp_path / "predictions_inner.csv").mkdir()
    with pytest.raises(UserError, match=r"predictions_inner\.csv: .*; delete it"):
        report.write_run(Run.of("net", make_run()), tmp_path)


def test_disk_full_keeps_the_old_report(make_run, tmp_path, monkeypatch):
    report.write_run(Run.of("net", make_run()), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)}

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    worse = make_run(logits=np.zeros((1, 3, 6, 3), np.float32))
    with pytest.raises(UserError, match=r"cannot be written \(No space left"):
        report.write_run(Run.of("net", worse), tmp_path)
    assert {name: (tmp_path / name).read_bytes() for name in names_in(tmp_path)} == before


def test_descriptions_are_in_the_metrics(make_run, make_described, tmp_path):
    run = Run.of("net", make_run(described=make_described()))
    report.write_run(run, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["descriptions"] == run.descriptions
    assert metrics["descriptions"]["recall_at_1"] == pytest.approx(0.4)
