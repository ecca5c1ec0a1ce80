import csv
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from htnet_jax.errors import shown
from htnet_jax.evaluation import calibration, tables
from htnet_jax.evaluation.selection import select
from htnet_jax.evaluation.summary import Run, compare
from htnet_jax.evaluation.tables import predictions_csv

WARNING = "selected on the test subject; for comparison with published tables only"
HOSTILE = r"a|b*c_d & 50% {x} \y ~ ^ # $z$ <i> [1] `q` " + '"r"'


@pytest.fixture
def pair(make_wide):
    """Two runs of six subjects, the first of two seeds, and their comparison."""
    runs = [Run.of("net", make_wide(key=1, seeds=2)), Run.of("base", make_wide(key=2, epochs=1))]
    first, second = runs
    return runs, [compare(first.predictions, second.predictions, ("net", "base"))]


def test_text_of_one_run(make_run):
    lines = tables.text([Run.of("net", make_run())]).splitlines()
    head, titles, rule, final, ends, oracle, _, clips, empty, *notes = lines
    assert re.fullmatch(r"selection +composite +SMIC +SAMM", head)
    assert titles.split() == ["UF1", "/", "UAR"] * 3
    assert set(rule) == {"-", " "}
    # Final: F1 4/7, 0, 2/3 and recall 1, 0, 1/2; see test_summary.
    assert re.fullmatch(r"final \[1\] +0\.4127 / 0\.5000 +.*", final)
    assert re.fullmatch(r" +\[0\.\d{3}, 0\.\d{3}\] / \[.*\]", ends)
    assert re.fullmatch(r"oracle \[2\] +0\.8222 / 0\.8333 +.*", oracle)
    assert clips.split() == ["clips", "6", "3", "3"]
    assert empty == ""
    assert notes == [
        "[1] last epoch",
        f"[2] best epoch, {WARNING}",
        "[low, high]: 95 % interval over subjects, bootstrap.",
        "Intervals of fewer than 8 subjects are rough: composite.",
        "No interval for SMIC: a single subject.",
        "No interval for SAMM: a single subject.",
    ]


def test_text_of_several_runs(pair):
    runs, pairs = pair
    lines = tables.text(runs, pairs).splitlines()
    assert lines[0].split()[:3] == ["run", "selection", "composite"]
    # Under one selection the runs stand together.
    rows = [line.split()[:2] for line in lines if line.startswith(("net  ", "base  "))]
    assert rows == [["net", "final"], ["base", "final"], ["net", "oracle"]]
    (scores,) = [line for line in lines if re.match("net +final", line)]
    entry = runs[0].summary["final"]["composite"]
    assert f"{entry['uf1']:.4f} / {entry['uar']:.4f}" in scores
    assert f"+-{entry['uf1_std']:.4f} / +-{entry['uar_std']:.4f}" in "\n".join(lines)
    found = pairs[0].differences["final"]["composite"]["uf1"]
    differences = [line for line in lines if line.startswith("net - base")]
    # All sources are compared, each on a line of its own.
    groups = [line.split()[5] for line in differences]
    assert groups[:3] == groups[3:] == ["composite", "SMIC", "SAMM"]
    difference = differences[0]
    assert (
        f"{found.difference:+.4f} [{found.low:+.3f}, {found.high:+.3f}]  {found.p_value:.4f}"
        in difference
    )
    # Each number has the number of its note, which tells the baseline from the network.
    assert "net - base  final [4]" in difference
    assert "[1] last epoch" in lines
    assert "[2] fitted once; nothing to select" in lines
    assert "[4] last epoch (base: fitted once; nothing to select)" in lines
    assert max(map(len, lines)) <= tables.WIDTH
    assert "Mean over 2 seeds; +-: standard deviation over seeds." in lines
    assert "p: two-sided, subjects' results swapped between the runs." in lines


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(
    st.text(min_size=1, max_size=120),
    st.lists(st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=60), min_size=6),
)
def test_no_table_is_wider_than_a_terminal(make_run, name, sources):
    """Whatever names there are, and however many sources; each name is one line of a cell."""
    sources = (sources * 6)[:6]
    run = make_run(
        **{"sources": sources, "subjects": list("abcdef"), "fold": [0, 1, 0, 1, 0, 1]},
        class_names=[name + "1", "positive", "surprise"],
    )
    assume("composite" not in sources)
    runs = [Run.of(name, run), Run.of(name + "2", run)]
    pairs = [compare(run, run, (runs[0].name, runs[1].name))]
    for found in (runs[:1], []), (runs, pairs):
        lines = tables.text(*found).split("\n")
        assert max(map(len, lines)) <= tables.WIDTH
        assert all(line.isprintable() for line in lines)
        for table in (tables.markdown, tables.latex):
            lines = table(*found).split("\n")
            assert all(line.isprintable() for line in lines)
            assert "\n".join(lines).encode()


def test_a_baseline_stands_in_for_inner(make_wide, make_run, make_inner):
    net = Run.of("net", make_run(inner=make_inner()))
    single = make_run(
        logits=make_run().logits[:, -1:], epochs=[1], train_loss=np.ones((1, 2, 1), np.float32)
    )
    base = Run.of("base", single)
    notes = tables.notes([net, base], [compare(net.predictions, single, ("net", "base"))])
    assert [note for note in notes if note.startswith("base: nothing was selected")]
    assert not [note for note in notes if note.startswith("net: nothing was selected")]


@pytest.mark.parametrize("table", [tables.text, tables.markdown, tables.latex])
def test_every_table_says_that_folds_are_missing(make_run, table):
    partial = Run.of("net", make_run(protocol_folds=["a", "b", "c", "d"]))
    whole = Run.of("base", make_run())
    for runs in ([partial], [whole, partial]):
        head, _, rest = table(runs).partition("selection")
        assert "PARTIAL: 2 of 4 folds" in head
        assert "(PARTIAL)" in rest
        assert "missing: c, d." in rest
    assert "PARTIAL" not in table([whole])


def test_a_long_list_of_missing_folds_is_cut(make_run):
    names = ["a", "b", *(f"x{index}" for index in range(25))]
    (note,) = [
        note
        for note in tables.notes([Run.of("net", make_run(protocol_folds=names))])
        if "PARTIAL" in note
    ]
    assert note.endswith("x18, x19 and 5 more.")


@pytest.mark.parametrize("table", [tables.text, tables.markdown])
def test_absent_classes_are_marked_and_named(make_run, table):
    shown = table([Run.of("net", make_run(labels=[0, 1, 1, 0, 1, 2]))]).replace("\\", "")
    shown = shown.replace("\n  ", " ")
    assert "0.3333 / 0.5000*" in shown
    assert (
        "* mean over the classes present only, not comparable with a full run: "
        "no clip of class surprise in SMIC\n" in shown
    )


def test_runs_of_other_clips_and_data_are_told_apart(make_run):
    first = Run.of("one", make_run())
    second = Run.of(
        "two", make_run(sources=["smic"] * 6, fingerprint="e" * 64, dataset="megc2019/tvl1/1.0.0")
    )
    shown = tables.text([first, second])
    counts = [line.split() for line in shown.splitlines() if line.startswith("clips of")]
    assert counts == [["clips", "of", "one", "6", "3", "3"], ["clips", "of", "two", "6", "6", "-"]]
    assert (
        "The runs saw other data for the same clips (one: megc2019/release/1.0.0; "
        "two: megc2019/tvl1/1.0.0)." in shown
    )
    assert "other data" not in tables.text([first, Run.of("three", make_run())])


def cells(line):
    """The cells of a Markdown row, as a reader of the rendered table sees them."""
    return [re.sub(r"\\(.)", r"\1", cell).strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_markdown(make_run):
    lines = tables.markdown([Run.of("net", make_run())]).splitlines()
    assert cells(lines[0]) == [
        "selection",
        "composite UF1 / UAR",
        "SMIC UF1 / UAR",
        "SAMM UF1 / UAR",
        "epoch selected by",
    ]
    assert lines[1] == "| --- | --- | --- | --- | --- |"
    final = cells(lines[2])
    assert final[0] == "final"
    assert re.fullmatch(r"0\.4127 / 0\.5000<br>\[0\.\d+, 0\.\d+\] / \[0\.\d+, 0\.\d+\]", final[1])
    assert final[-1] == "last epoch"
    assert cells(lines[3])[-1] == f"best epoch, {WARNING}"
    assert cells(lines[4]) == ["clips", "6", "3", "3", ""]


def test_markdown_of_several_runs(pair):
    runs, pairs = pair
    lines = [line for line in tables.markdown(runs, pairs).splitlines() if line.startswith("|")]
    scores, differences = lines[:6], lines[6:]
    assert {len(cells(line)) for line in scores} == {6}
    assert {len(cells(line)) for line in differences} == {8}
    assert cells(differences[0])[:4] == ["difference", "selection", "group", "UF1"]
    assert [cells(line)[2] for line in differences[2:]] == ["composite", "SMIC", "SAMM"]
    assert "±" in scores[2]


def hostile_pair(make_wide):
    runs = [
        Run.of(HOSTILE, make_wide(key=1, class_names=["n", "p", HOSTILE], labels=[0, 1, 1, 0] * 6)),
        Run.of(
            "*starred\nname",
            make_wide(key=2, class_names=["n", "p", HOSTILE], labels=[0, 1, 1, 0] * 6),
        ),
    ]
    names = (runs[0].name, runs[1].name)
    return runs, [compare(runs[0].predictions, runs[1].predictions, names)]


def test_markdown_of_hostile_names(make_wide):
    runs, pairs = hostile_pair(make_wide)
    shown = tables.markdown(runs, pairs)
    rows = [line for line in shown.splitlines() if line.startswith("|")]
    assert {len(cells(line)) for line in rows[:7]} == {6}
    assert cells(rows[2])[0] == HOSTILE
    assert cells(rows[3])[0] == r"*starred\nname"
    # Nothing of the name is left that Markdown or HTML would take for its own.
    assert not re.search(r"(?<!\\)[*_`$~#]", shown.replace("---", ""))
    assert "<i>" not in shown


def unescaped(text, characters):
    return re.findall(rf"(?<!\\)[{characters}]", text)


def assert_sound_latex(text):
    """Braces and environments are closed, rows of a table have equally many cells."""
    body = "\n".join(line for line in text.splitlines() if not line.startswith("%"))
    depth = 0
    for brace in unescaped(body, "{}"):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(unescaped(body, "$")) % 2 == 0
    assert not unescaped(body, "#_%")
    found = re.findall(r"\\begin\{tabular\}\{@\{\}(.*?)@\{\}\}\n(.*?)\\end\{tabular\}", body, re.S)
    assert found
    for columns, rows in found:
        width = len(columns)
        for row in rows.splitlines():
            if row in ("\\toprule", "\\midrule", "\\bottomrule"):
                continue
            assert row.endswith(r" \\")
            assert len(unescaped(row, "&")) + 1 == width
            # Behind the end of a row these would be taken for options.
            assert not row.startswith(("[", "*"))


def test_latex(pair, make_wide):
    runs, pairs = pair
    shown = tables.latex(runs, pairs)
    assert_sound_latex(shown)
    entry = runs[0].summary["final"]["composite"]
    assert f"net & final & {entry['uf1']:.4f} / {entry['uar']:.4f} &" in shown
    assert f" &  & $\\pm${entry['uf1_std']:.4f} / $\\pm${entry['uar_std']:.4f} &" in shown
    low, high = entry["uf1_interval"]
    assert f" &  & {{\\scriptsize {{[}}{low:.3f}, {high:.3f}] / {{[}}" in shown
    found = pairs[0].differences["final"]["composite"]["uf1"]
    assert f"${found.difference:+.4f} {{[}}{found.low:+.3f}, {found.high:+.3f}]$" in shown
    assert f"oracle: best epoch, {WARNING}." in shown
    assert "95 \\% interval" in shown
    assert_sound_latex(tables.latex(*hostile_pair(make_wide)))
    assert_sound_latex(tables.latex([runs[1]]))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_compiles(make_wide, tmp_path):
    content = tables.latex(*hostile_pair(make_wide))
    (tmp_path / "paper.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        f"{content}\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_intervals():
    assert tables.interval([0.12345, 0.5]) == "[0.123, 0.500]"
    assert tables.interval([-0.1, 0.25], sign="+") == "[-0.100, +0.250]"
    assert tables.interval([None, None]) == ""
    assert tables.interval([float("nan"), 0.5]) == ""


def read(text):
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_row_a_clip(make_run):
    rows = read(predictions_csv(make_run(), "oracle"))
    assert list(rows[0]) == [
        *("clip", "subject", "source", "fold", "seed", "truth", "predicted", "correct"),
        *("p_negative", "p_positive", "p_surprise", "selected_epoch"),
    ]
    assert [row["clip"] for row in rows] == ["a1", "a2", "a3", "b1", "b2", "b3"]
    # Logits 1 0 0: e / (e + 2) = 0.576117, the others half of what is left.
    assert rows[2] == {
        "clip": "a3",
        "subject": "a",
        "source": "smic",
        "fold": "a",
        "seed": "7",
        "truth": "surprise",
        "predicted": "surprise",
        "correct": "1",
        "p_negative": "0.211942",
        "p_positive": "0.211942",
        "p_surprise": "0.576117",
        "selected_epoch": "30",
    }
    assert [row["correct"] for row in rows] == ["1", "0", "1", "1", "1", "1"]
    assert [row["selected_epoch"] for row in rows] == ["30"] * 3 + ["10"] * 3


def test_a_row_a_seed_and_clip(make_wide):
    run = make_wide(seeds=2)
    rows = read(predictions_csv(run, "final"))
    assert [(row["seed"], row["clip"]) for row in rows] == [
        (seed, clip) for seed in "01" for clip in run.clips.tolist()
    ]
    expected = calibration.softmax(run.logits[1, -1, 5])
    found = [float(rows[24 + 5][f"p_{name}"]) for name in run.class_names]
    np.testing.assert_allclose(found, expected, atol=5e-7)


def test_calibrated_probabilities_where_there_is_a_temperature(make_run, make_inner):
    run = make_run(inner=make_inner())
    for selection in ("final", "inner"):
        rows = read(predictions_csv(run, selection))
        columns = [f"p_{name}_calibrated" for name in run.class_names]
        found = [[float(row[column]) for column in columns] for row in rows]
        logits = calibration.scaled(run, select(run, selection))
        np.testing.assert_allclose(found, calibration.softmax(logits[0]), atol=5e-7)
    assert not [name for name in read(predictions_csv(run, "oracle"))[0] if "calibrated" in name]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "'"])
def test_no_name_becomes_a_formula(make_run, start):
    name = f"{start}SUM(A1)"
    run = make_run(
        clips=[name, "a2", "a3", "b1", "b2", "b3"],
        subjects=[name] * 3 + ["b"] * 3,
        sources=[name] * 3 + ["samm"] * 3,
        folds=[name, "b"],
        protocol_folds=[name, "b"],
        class_names=[name, "positive", "surprise"],
    )
    row = read(predictions_csv(run, "final"))[0]
    for column in ("clip", "subject", "source", "fold", "truth", "predicted"):
        assert row[column] == f"'{name}"
    assert row[f"p_{name}"] == "0.576117"


# Lone surrogates too, as in file names that are not UTF-8. NumPy drops NULs at the end.
NAMES = st.text(st.characters(exclude_characters="\0"), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=6, max_size=6, unique_by=lambda name: name.rstrip("\0")))
def test_every_name_comes_back(make_run, names):
    rows = read(predictions_csv(make_run(clips=names), "final"))
    found = [row["clip"] for row in rows]
    assert not [name for name in found if name.startswith(("=", "+", "-", "@"))]
    assert [name.removeprefix("'") for name in found] == [shown(name) for name in names]
    assert all(name.isprintable() for name in found)


def test_nearest_units_are_columns_of_final_alone(make_run, make_described):
    run = make_run(described=make_described())
    rows = list(csv.DictReader(io.StringIO(predictions_csv(run, "final"))))
    assert [row["units"] for row in rows] == ["4", "4+7", "12", "0", "4+7", ""]
    assert [row["nearest_units"] for row in rows] == ["4", "4+7", "4", "4+7", "0", "12"]
    # The models of another epoch were not asked; other runs have the columns they had.
    assert predictions_csv(run, "oracle") == predictions_csv(make_run(), "oracle")
    assert "units" not in predictions_csv(make_run(), "final")


def test_a_note_on_descriptions(make_run, make_described):
    run = Run.of("net", make_run(described=make_described()))
    note = " ".join(tables.text([run]).split())
    assert re.search(
        r"Nearest sentences of the last epoch: recall@1 0\.400 \[0\.\d{3}, 0\.\d{3}\] "
        r"\(chance 0\.\d{3}\), recall@5 0\.800 .* macro-F1 of units 0\.357 .*; 20% of 5 clips",
        note,
    )
    assert "Nearest" not in tables.text([Run.of("net", make_run())])
