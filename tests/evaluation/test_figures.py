import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from htnet_jax.evaluation import figures
from htnet_jax.evaluation.selection import select
from htnet_jax.evaluation.summary import Run


def size(drawn):
    """(height, width) of a plot that must be a PNG with something on it."""
    picture = imread(io.BytesIO(drawn.png), format="png")
    assert picture.std() > 0.01
    return picture.shape[:2]


def test_curves_of_a_hand_made_run(make_run, make_inner):
    found = figures.curves(make_run(inner=make_inner()))
    assert found.epochs.tolist() == [10, 20, 30]
    # Truth 0 1 2 0 1 2. Epoch 10, predicted 0 0 0 0 1 2: F1 2*2/(2+4), 2*1/(2+1), 2/3.
    # Epochs 20 and 30, predicted 0 1 0 0 0 0 and 0 0 2 0 0 0: 4/7, and 2/3 and 0 in turn.
    assert found.final == pytest.approx(
        np.array([[2 / 3, (4 / 7 + 2 / 3) / 3, (4 / 7 + 2 / 3) / 3]])
    )
    # oracle: after epoch 10 the same; from epoch 20 on fold "a" takes epoch 20 (30 only ties) and
    # "b" stays with 10: predicted 0 1 0 0 1 2, F1 4/5, 1, 2/3.
    best = (4 / 5 + 1 + 2 / 3) / 3
    assert found.oracle == pytest.approx(np.array([[2 / 3, best, best]]))
    assert found.inner.tolist() == [20, 10]
    assert found.loss == pytest.approx(np.array([[1.1, 0.55, 0.275]]))


# `make_wide` is a function: nothing of one example is left for the next.
@settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(key=st.integers(0, 10_000), seeds=st.integers(1, 3), epochs=st.integers(2, 5))
def test_curves_end_where_the_tables_are(make_wide, key, seeds, epochs):
    predictions = make_wide(key=key, seeds=seeds, epochs=epochs)
    run = Run.of("a", predictions)
    found = figures.curves(predictions)
    for name, curve in (("final", found.final), ("oracle", found.oracle)):
        assert curve.shape == (seeds, epochs)
        assert curve[:, -1].mean() == pytest.approx(run.summary[name]["composite"]["uf1"])
    assert found.final[:, 0] == pytest.approx(found.oracle[:, 0])


def test_learning_curves_in_words(make_run, make_inner):
    drawn = figures.draw_curves([Run.of("net", make_run(inner=make_inner()))])
    assert drawn.alt == (
        "Learning curves. net: after epoch 30 UF1 is 0.413 for final and 0.822 for oracle; the "
        "training loss goes from 1.1 to 0.275. inner takes epochs 10 to 20, half of them 15 or "
        "earlier."
    )
    assert size(drawn) > (700, 700)


def test_learning_curves_of_several_runs(make_wide):
    net = Run.of("net", make_wide(seeds=2, epochs=4))
    single = Run.of("ridge", make_wide(epochs=1))
    drawn = figures.draw_curves([net, single])
    assert "ridge: fitted once; nothing to select, UF1" in drawn.alt
    assert size(drawn) > (700, 700)


def test_one_epoch_has_no_curve(make_wide):
    assert figures.draw_curves([Run.of("ridge", make_wide(epochs=1))]) is None


def test_subjects_of_a_hand_made_run(make_run):
    run = make_run()
    found = figures.subjects(run, select(run, "final").predicted)
    assert [(one.source, one.name, one.clips, one.correct.tolist()) for one in found] == [
        ("smic", "a", 3, [2]),
        ("samm", "b", 3, [1]),
    ]
    assert found[0].accuracy == pytest.approx(2 / 3)


def test_subjects_are_sorted_within_their_source_and_told_apart(make_run):
    run = make_run(
        fold=[0, 0, 1, 1, 2, 2],
        folds=["smic/1", "smic/2", "samm/1"],
        protocol_folds=["smic/1", "smic/2", "samm/1"],
        subjects=["1", "1", "2", "2", "1", "1"],
        sources=["smic"] * 4 + ["samm"] * 2,
        train_loss=np.ones((1, 3, 3), np.float32),
    )
    # Truth 0 1 2 0 1 2.
    predicted = np.array([[0, 0, 2, 0, 0, 0], [1, 0, 2, 0, 1, 2]])
    found = figures.subjects(run, predicted)
    assert [(one.source, one.name, one.correct.tolist()) for one in found] == [
        ("smic", "2", [2, 2]),
        ("smic", "smic/1", [1, 0]),
        ("samm", "samm/1", [0, 2]),
    ]
    drawn = figures.draw_subjects(found)
    assert drawn.alt == (
        "Accuracy of each subject, last epoch. SMIC: 62% of all clips right; of 2 subjects 1 have "
        "all their clips right and 0 none. SAMM: 50% of all clips right; of 1 subjects 0 have all "
        "their clips right and 0 none."
    )
    assert size(drawn) > (300, 700)


def test_agreement_of_two_runs():
    def subjects(*correct):
        return [
            figures.Subject("smic", name, 4, np.array(right))
            for name, right in zip("abc", correct, strict=True)
        ]

    shares = figures.agreement(subjects([4], [1], [2]), subjects([3, 2], [1, 1], [4, 4])[::-1])
    assert shares[0].tolist() == [1.0, 0.25, 0.5]
    assert shares[1].tolist() == [0.625, 0.25, 1.0]
    drawn = figures.draw_agreement(shares, ("A", "B"))
    assert drawn.alt.endswith("A is better on 1 subjects, B on 1; 1 are equal.")
    with pytest.raises(ValueError, match="different subjects or clips"):
        figures.agreement(subjects([4], [1], [2]), subjects([4], [1], [2])[:2])


def test_reliabilities_pool_the_seeds_and_follow_the_temperature(make_run, make_inner):
    run = make_run()
    found = figures.reliabilities(run, select(run, "final"))
    assert list(found) == ["as trained"]
    # Every logit is 1 against 0 and 0: probability e / (e + 2) = 0.576, in bin 9 of 15.
    table = found["as trained"]
    assert table.count.tolist() == [0] * 8 + [6] + [0] * 6
    assert table.confidence[8] == pytest.approx(np.e / (np.e + 2))
    assert table.accuracy[8] == pytest.approx(3 / 6)

    with_inner = make_run(inner=make_inner())
    found = figures.reliabilities(with_inner, select(with_inner, "final"))
    assert list(found) == ["as trained", "with temperature"]
    # At epoch 30 the 3 validation clips of fold "a" are right, of fold "b" 1 of 3: the temperature
    # moves the probabilities of the 3 test clips of "a" up, those of "b" down.
    scaled = found["with temperature"]
    assert scaled.count[:8].sum() == scaled.count[9:].sum() == 3
    # Of "a" 2 of 3 test clips are right, of "b" 1 of 3.
    assert np.nanmax(scaled.accuracy[9:]) == pytest.approx(2 / 3)
    assert np.nanmax(scaled.accuracy[:8]) == pytest.approx(1 / 3)


def test_a_confusion_matrix_in_words_and_with_an_empty_class():
    drawn = figures.draw_confusion([[3, 1], [0, 0]], ["$x$", "b"], "SMIC", seeds=2, mark="PARTIAL")
    assert drawn.alt == ("Confusion matrix, last epoch, SMIC. Recognised: $x$ 75%, b has no clip.")
    bare = figures.draw_confusion([[3, 1], [0, 0]], ["$x$", "b"], "SMIC", seeds=2)
    assert drawn.png != bare.png


def test_intervals_of_runs(make_wide, make_run):
    runs = [Run.of("net", make_wide(seeds=2)), Run.of("one subject", make_wide(number=1))]
    drawn = figures.draw_intervals(runs)
    assert "net, final: UF1 " in drawn.alt
    assert "oracle" not in drawn.alt
    assert runs[1].summary["final"]["composite"]["uf1_interval"] == [None, None]
    assert size(drawn) > (200, 700)


@pytest.mark.parametrize(
    "name", ["$x^{$", "a\nb", "日本語の名前", "x" * 300, "<b>", r"\alpha $\frac"], ids=str
)
def test_any_name_can_be_drawn(make_wide, name):
    """Neither formulas, nor missing letters (a warning is an error here), nor length matter."""
    run = Run.of(name, make_wide(epochs=2))
    assert size(figures.draw_curves([run, Run.of("b", make_wide(epochs=2))])) > (400, 700)
    assert size(figures.draw_confusion(np.eye(2, dtype=int), [name, "b"], name)) > (200, 200)
    subject = figures.Subject(name, name, 4, np.array([1]))
    assert size(figures.draw_subjects([subject])) > (200, 700)
    shares = figures.agreement([subject], [subject])
    assert size(figures.draw_agreement(shares, (name, name))) > (400, 700)


def test_the_same_plot_has_the_same_bytes():
    first, second = (figures.draw_confusion(np.eye(3, dtype=int), list("abc"), "x") for _ in "12")
    assert first.png == second.png


def test_names_are_shortened():
    assert figures.plain("a" * 26) == "a" * 26
    assert figures.plain("a" * 27) == "a" * 25 + "…"
    assert figures.plain("$5") == r"\$5"
