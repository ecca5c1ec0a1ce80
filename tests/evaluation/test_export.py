import csv
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax.evaluation import calibration
from htnet_jax.evaluation.export import predictions_csv
from htnet_jax.evaluation.selection import select
from htnet_jax.evaluation.temperature import scaled


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
        "predicted": "negative",
        "correct": "0",
        "p_negative": "0.576117",
        "p_positive": "0.211942",
        "p_surprise": "0.211942",
        "selected_epoch": "20",
    }
    assert [row["correct"] for row in rows] == ["1", "1", "0", "1", "1", "1"]
    assert [row["selected_epoch"] for row in rows] == ["20"] * 3 + ["10"] * 3


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
        logits = scaled(run, select(run, selection))
        np.testing.assert_allclose(found, calibration.softmax(logits[0]), atol=5e-7)
    assert not [name for name in read(predictions_csv(run, "oracle"))[0] if "calibrated" in name]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "'"])
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


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES, min_size=6, max_size=6, unique_by=lambda name: name.rstrip("\0")))
def test_every_name_comes_back(make_run, names):
    rows = read(predictions_csv(make_run(clips=names), "final"))
    found = [row["clip"] for row in rows]
    assert not [name for name in found if name.startswith(("=", "+", "-", "@"))]
    assert [name.removeprefix("'") for name in found] == names
