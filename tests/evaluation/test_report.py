import base64
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from htnet_jax.errors import UserError
from htnet_jax.evaluation import published
from htnet_jax.evaluation.report import markdown_table, summarize, table, write_report

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
WARNING = "selected on the test subject; for comparison with published tables only"


class Page(HTMLParser):
    """What a browser would take from a page: its pictures, references, tags and text."""

    def __init__(self, text):
        super().__init__()
        self.images, self.references, self.tags, self.open, self.words = [], [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "img":
            self.images.append(attrs)
        self.references += [attrs[name] for name in ("src", "href") if name in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def test_summary_of_a_hand_made_run(make_run):
    summary = summarize(make_run())
    assert list(summary) == ["final", "oracle"]
    assert list(summary["final"]) == ["composite", "smic", "samm"]
    # final, truth 0 1 2 0 1 2, predicted 0 0 2 0 0 0:
    # TP 2 0 1; predicted 5 0 1; truth 2 2 2 -> F1 4/7, 0, 2/3; recall 1, 0, 1/2.
    composite = summary["final"]["composite"]
    assert composite["uf1"] == pytest.approx((4 / 7 + 2 / 3) / 3)
    assert composite["uar"] == pytest.approx(1 / 2)
    assert composite["accuracy"] == pytest.approx(1 / 2)
    assert composite["clips"] == 6
    assert "absent" not in composite
    # oracle: smic predicts 0 1 0 -> F1 2/3, 1, 0; samm is perfect.
    assert summary["oracle"]["smic"]["uf1"] == pytest.approx(5 / 9)
    assert summary["oracle"]["samm"]["uf1"] == 1.0


def test_absent_classes_are_skipped_and_named(make_run):
    run = make_run(labels=[0, 1, 1, 0, 1, 2])
    summary = summarize(run)
    entry = summary["final"]["smic"]
    # Truth 0 1 1, predicted 0 0 2: F1 of class 0: 2/3, of class 1: 0; class 2 is absent.
    assert entry["uf1"] == pytest.approx(1 / 3)
    assert entry["absent"] == ["surprise"]
    assert "absent" not in summary["final"]["samm"]
    text = table(summary)
    assert "0.3333 / 0.5000*" in text
    assert text.splitlines()[-1] == (
        "* mean over the classes present only, not comparable with a full run: "
        "no clip of class surprise in SMIC"
    )


def test_a_source_called_composite_is_refused(make_run):
    with pytest.raises(UserError, match="rename it"):
        summarize(make_run(sources=["composite"] * 6))


def test_table_text(make_run):
    lines = table(summarize(make_run())).splitlines()
    assert lines[0].split("  ")[0] == "selection"
    assert [part in lines[0] for part in ("composite UF1 / UAR", "SMIC", "SAMM")] == [True] * 3
    assert re.fullmatch(r"final +0\.4127 / 0\.5000 +.* last epoch", lines[2])
    assert re.fullmatch(rf"oracle +0\.8222 / 0\.8333 +.* best epoch, {WARNING}", lines[3])
    assert lines[4].split() == ["clips", "6", "3", "3"]
    assert len(lines) == 5
    starts = {line.index(cell) for line, cell in zip(lines[2:4], ["last", "best"], strict=True)}
    assert starts == {lines[0].index("epoch selected by")}


def test_markdown_table(make_run):
    lines = markdown_table(summarize(make_run(labels=[0, 1, 1, 0, 1, 2]))).splitlines()
    assert lines[1] == "| --- | --- | --- | --- | --- |"
    assert all(line.count("|") == 6 for line in lines[:5])
    assert r"0.3333 / 0.5000\*" in lines[2]
    assert WARNING in lines[3]
    assert lines[-1].startswith(r"\* mean over the classes present only")


def test_report_is_one_self_contained_page(make_run, tmp_path):
    write_report(make_run(), tmp_path, title="A & B", config={"model.dim": 32})
    page = Page((tmp_path / "report.html").read_text())
    assert page.open == []
    assert "script" not in page.tags
    assert "link" not in page.tags
    # Learning curve, and the confusion matrix of the composite and of two sources.
    assert len(page.images) == 4
    for image in page.images:
        assert image["alt"]
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"), validate=True)
        assert data.startswith(PNG_SIGNATURE)
    assert all(reference.startswith("data:") for reference in page.references)
    assert "url(" not in (tmp_path / "report.html").read_text()
    assert "A & B" in page.text
    assert WARNING in page.text
    assert '"model.dim": 32' in page.text
    assert "1 of 3 (33%)" in page.text
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.json", "report.html"]


def test_metrics_file_is_the_summary(make_run, tmp_path):
    run = make_run(labels=[0, 1, 1, 0, 1, 2])
    summary = write_report(run, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary == summarize(run)


def test_text_from_outside_is_escaped(make_run, tmp_path):
    nasty = "<script>alert('$x$')</script>"
    run = make_run(
        sources=[nasty] * 6,
        subjects=[nasty] * 6,
        class_names=[nasty, "$_{$", "surprise"],
    )
    write_report(run, tmp_path, title=nasty, config={nasty: nasty}, environment={"x": nasty})
    page = Page((tmp_path / "report.html").read_text())
    assert "script" not in page.tags
    assert nasty in page.text


def test_published_rows_only_beside_the_same_sources(make_run, tmp_path):
    assert published.comparable_rows(["smic", "samm"]) == ()
    assert published.comparable_rows(["smic", "samm", "casme2", "casme3"]) == ()
    assert len(published.comparable_rows(np.array(["samm", "smic", "casme2", "smic"]))) == 4

    write_report(make_run(), tmp_path)
    assert "published (" not in (tmp_path / "report.html").read_text()

    write_report(make_run(sources=["smic", "casme2", "samm"] * 2), tmp_path)
    text = Page((tmp_path / "report.html").read_text()).text
    order = [
        text.index(part)
        for part in (
            "Epoch: last epoch",
            "this run, final",
            "STSTNet",
            f"Epoch: best epoch, {WARNING}",
            "this run, oracle",
            "HTNet, published",
            "Epoch: selection not known to us",
            "FeatRef",
            "RCN",
        )
    ]
    assert order == sorted(order)
    assert "0.8603 / 0.8475" in text


def test_a_single_epoch_and_fold(make_run, tmp_path):
    logits = np.zeros((1, 2, 3), np.float32)
    run = make_run(
        logits=logits,
        epochs=[5],
        fold=[0, 0],
        folds=["a"],
        clips=["a1", "a2"],
        subjects=["a", "a"],
        sources=["smic", "smic"],
        labels=[0, 1],
        train_loss=np.ones((1, 1), np.float32),
    )
    summary = write_report(run, tmp_path)
    assert summary["final"] == {
        name: {
            "uf1": pytest.approx(1 / 3),  # F1 of class 0: 2/(2+1), of class 1: 0
            "uar": 0.5,
            "accuracy": 0.5,
            "clips": 2,
            "absent": ["surprise"],
        }
        for name in ("composite", "smic")
    }
    text = Page((tmp_path / "report.html").read_text()).text
    assert "2 clips, 1 fold," in text


def test_report_into_a_missing_folder(make_run, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        write_report(make_run(), tmp_path / "missing")
