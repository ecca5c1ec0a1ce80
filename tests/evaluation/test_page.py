import dataclasses
import re

import numpy as np
import pytest
from fakes.report_page import Blank, show

from htnet_jax.evaluation import page, published
from htnet_jax.evaluation.selection import Selection
from htnet_jax.evaluation.statistics import Comparison
from htnet_jax.evaluation.summary import Images, Pair, Run, compare

WARNING = "selected on the test subject; for comparison with published tables only"
NASTY = """<script>alert("$x$ & 'y'")</script>"""


@pytest.fixture
def make_composite(make_run):
    """As `make_run`, with a subject of each source of MEGC 2019."""

    def make(**changes):
        return make_run(
            **{
                "fold": [0, 0, 1, 1, 2, 2],
                "folds": ["a", "b", "c"],
                "protocol_folds": ["a", "b", "c"],
                "subjects": ["a", "a", "b", "b", "c", "c"],
                "sources": ["smic", "smic", "casme2", "casme2", "samm", "samm"],
                "train_loss": np.ones((1, 3, 3), np.float32),
            }
            | changes
        )

    return make


def test_headings_and_images_of_one_run(make_run):
    run = Run.of("net", make_run(), config={"model.dim": 32}, environment={"jax": "9"})
    found = show([run], drawn=page.figures([run]))
    assert found.headings == [
        ("h1", "net"),
        ("h2", "Result"),
        ("h2", "Scores"),
        ("h2", "Over the epochs"),
        ("h2", "Classes and confusion"),
        ("h2", "Accuracy of each subject"),
        ("h2", "Calibration"),
        ("h2", "The most confident mistakes"),
        ("h2", "How to read this"),
        ("h2", "Settings"),
    ]
    alts = [image["alt"] for image in found.images]
    assert [alt.partition(".")[0] for alt in alts] == [
        "Learning curves",
        "Confusion matrix, last epoch, composite",
        "Confusion matrix, last epoch, SMIC",
        "Confusion matrix, last epoch, SAMM",
        "Accuracy of each subject, last epoch",
        "Reliability of the probabilities, last epoch",
    ]
    assert '"model.dim": 32' in found.text
    assert '"jax": "9"' in found.text
    assert "PARTIAL" not in found.text


def test_the_headline_says_what_was_run(make_run):
    text = show([Run.of("net", make_run())]).text
    start = text.index("Result")
    headline = text[start : text.index("Scores UF1", start)]
    # Truth 0 1 2 0 1 2, predicted 0 0 2 0 0 0: F1 4/7, 0, 2/3; recall 1, 0, 1/2.
    assert headline.startswith("Result final : last epoch 0.413 UF1 ")
    assert "0.500 UAR " in headline
    assert headline.rstrip().endswith(
        "6 clips of 2 subjects in megc2019/release/1.0.0; leave one subject out: 2 of 2 folds; "
        "seed 7; last epoch 30, 3 recorded. Scores are pooled over folds; ranges are 95 % "
        "intervals over subjects."
    )
    assert "oracle" not in headline
    assert "inner" not in headline


def test_intervals_and_seeds_are_those_of_the_summary(make_wide):
    run = Run.of("net", make_wide(seeds=2))
    entry = run.summary["final"]["composite"]
    low, high = entry["uf1_interval"]
    text = show([run]).text
    assert (
        f"{entry['uf1']:.3f} UF1 {low:.3f} to {high:.3f}; ± {entry['uf1_std']:.3f} over seeds"
    ) in text
    assert "seeds 0, 1;" in text


def test_inner_is_second_and_every_selection_says_how(make_run, make_inner):
    text = show([Run.of("net", make_run(inner=make_inner()))]).text
    headline = text[: text.index("Scores")]
    assert headline.index("final : last epoch") < headline.index(
        f"inner : {Selection.INNER.description}"
    )
    assert "1 inner fold in each fold; inner takes the model trained on all training" in headline
    for selection in Selection:
        # The table of scores, and the explanations.
        assert f"Epoch: {selection.description}" in text
        assert f"{selection.value} {selection.description}" in text[text.index("How to read") :]
    assert "oracle" not in headline
    assert "The temperature of a fold" in text


def test_without_inner_folds_there_is_no_temperature_and_it_says_why(make_run):
    text = show([Run.of("net", make_run())]).text
    assert "No temperature: the run has no inner folds to fit it on" in text
    assert f"Epoch: {Selection.INNER.description}" not in text


def test_one_epoch_has_no_curve_and_no_oracle(make_wide):
    run = Run.of("ridge", make_wide(epochs=1))
    found = show([run], drawn=page.figures([run]))
    # A baseline has no epochs, and no network.
    assert "Result final : fitted once; nothing to select" in found.text
    for word in ("oracle", "epoch", "network", "learning"):
        assert word not in found.text.lower(), word
    assert not [image for image in found.images if "Learning" in image["alt"]]


def test_missing_folds_are_marked_everywhere(make_run):
    run = Run.of("net", make_run(protocol_folds=["a", "b", "c", "d"]))
    found = show([run])
    mark = "PARTIAL: 2 of 4 folds"
    assert f"{mark}. These numbers are not the result of the protocol: missing c, d" in found.text
    headings = dict.fromkeys(name for _, name in found.headings)
    for title in ("Classes and confusion", "Accuracy of each subject", "Calibration"):
        assert f"{title} ({mark})" in headings
    assert f"The most confident mistakes ({mark})" in headings
    assert f"this run, final ({mark})" in found.text
    assert f"this run, oracle ({mark})" in found.text
    whole = page.figures([Run.of("net", make_run())])
    marked = page.figures([run])
    assert all(marked[stem].png != whole[stem].png for stem in whole)


def test_a_partial_run_among_others_is_marked(make_run):
    runs = [
        Run.of("whole", make_run()),
        Run.of("half", make_run(protocol_folds=["a", "b", "c"])),
    ]
    pair = compare(runs[0].predictions, runs[1].predictions, ("whole", "half"))
    found = show(runs, [pair])
    assert "half, final (PARTIAL: 2 of 3 folds)" in found.text
    assert "whole, final (" not in found.text
    assert ("h3", "whole and half (PARTIAL: 2 of 3 folds)") in found.headings


def test_published_rows_stand_with_those_selected_alike(make_composite):
    text = show([Run.of("net", make_composite())]).text
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
    assert "Compare rows of one group only" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": "kfold"},
        {"protocol_folds": ["a", "b", "c", "d"]},
        {"sources": ["smic", "smic", "casme2", "casme2", "mmew", "mmew"]},
        {"sources": ["smic", "smic", "casme2", "casme2", "casme2", "casme2"]},
        {"class_names": ["negative", "positive", "others"]},
    ],
    ids=["protocol", "partial", "other source", "fewer sources", "classes"],
)
def test_no_published_rows_beside_another_experiment(make_composite, changes):
    assert len(published.comparable_rows(make_composite())) == 4
    run = make_composite(**changes)
    assert published.comparable_rows(run) == []
    text = show([Run.of("net", run)]).text
    assert "published (" not in text


@pytest.mark.parametrize(("source", "accuracy"), [("casme2", "0.7782"), ("mmew", "0.7104")])
def test_an_accuracy_of_unknown_protocol_is_shown_as_such(make_run, source, accuracy):
    five = ["others", "disgust", "happiness", "surprise", "repression"]
    logits = np.zeros((1, 3, 6, 5), np.float32)
    run = make_run(sources=[source] * 6, class_names=five, logits=logits, protocol="kfold")
    text = show([Run.of("net", run)]).text
    row = "Attribute embedding and contrastive learning, published, protocol unknown"
    assert f"{row} (Song et al., arXiv 2205.14643) - / - accuracy {accuracy}" in text
    # In the table of all scores, below the run's own.
    assert f"{row}: selection not known to us - - {accuracy} -" in text
    # Other classes of CASME II are another task; those of MMEW are not known.
    other = make_run(sources=[source] * 6)
    assert len(published.comparable_rows(other)) == (source == "mmew")


def test_scores_of_classes_and_subjects(make_run):
    text = show([Run.of("net", make_run())]).text
    # Predicted 0 five times, 2 right; 1 never; 2 once, right. "-" is 0/0.
    classes = text[text.index("Classes and confusion") : text.index("Accuracy of each subject")]
    assert "composite negative 0.400 1.000 0.571 2 positive - 0.000 0.000 2" in classes
    assert "surprise 1.000 0.500 0.667 2 SMIC" in classes
    assert "a SMIC 3 2 of 3 (67%)" in text
    assert "b SAMM 3 1 of 3 (33%)" in text


def test_absent_classes_are_marked_and_named(make_run):
    text = show([Run.of("net", make_run(labels=[0, 1, 1, 0, 1, 2]))]).text
    # SMIC, truth 0 1 1, predicted 0 0 2: F1 2/3 and 0; recall 1 and 0.
    assert "0.3333 / 0.5000*" in text
    assert "* net: mean over the classes present only, not comparable with a full run" in text
    assert "no clip of class surprise in SMIC." in text


def test_a_single_source_stands_for_all_clips(make_run):
    run = Run.of("net", make_run(sources=["smic"] * 6))
    found = show([run], drawn=page.figures([run]))
    confusions = [image["alt"] for image in found.images if "Confusion" in image["alt"]]
    assert len(confusions) == 1
    assert confusions[0].startswith("Confusion matrix, last epoch, SMIC.")
    assert "composite" not in found.text


@pytest.mark.parametrize("protocol", ["lodo", "kfold"])
def test_other_protocols_are_named(make_run, protocol):
    run = make_run(protocol=protocol, folds=["smic", "samm"], protocol_folds=["smic", "samm"])
    text = show([Run.of("net", run)]).text
    words = {"lodo": "leave one data set out", "kfold": "subject-grouped folds"}[protocol]
    assert f"{words}: 2 of 2 folds" in text
    assert f"({protocol}): a clip is tested by a model that never saw its" in text


def test_text_from_outside_is_escaped(make_run):
    predictions = make_run(
        sources=[NASTY] * 3 + ["samm"] * 3,
        subjects=[NASTY] * 3 + ["b"] * 3,
        clips=[NASTY, "2", "3", "4", "5", "6"],
        class_names=[NASTY, "$_{$", "surprise"],
        folds=[NASTY, "b"],
        protocol_folds=[NASTY, "b", NASTY + "missing"],
        dataset=NASTY,
    )
    flow = np.zeros((6, 4, 4, 3), np.float32)
    run = Run.of(
        NASTY,
        predictions,
        config={NASTY: NASTY},
        environment={"x": NASTY},
        images=Images(predictions.clips, flow, flow, True),
    )
    other = dataclasses.replace(run, name='"> <img src="http://example.org/x.png">')
    pair = compare(predictions, predictions, (run.name, other.name))
    found = show([run, other], [pair], Blank(NASTY))
    assert NASTY in [image["alt"] for image in found.images]
    assert NASTY in found.text
    assert ("h3", f"{run.name} and {other.name} (PARTIAL: 2 of 3 folds)") in found.headings


def test_two_runs_side_by_side(make_wide):
    good, bad = (
        Run.of(name, make_wide(number=12, skill=skill, key=key, epochs=epochs))
        for name, skill, key, epochs in (("good", 6.0, 1, 3), ("bad", 0.0, 2, 1))
    )
    pair = compare(good.predictions, bad.predictions, ("good", "bad"))
    figures = page.figures([good, bad], [pair])
    found = show([good, bad], [pair], figures)
    assert found.headings == [
        ("h1", "good and bad"),
        ("h2", "good"),
        ("h2", "bad"),
        ("h2", "All runs"),
        ("h2", "Differences between the runs"),
        ("h3", "good and bad"),
        ("h2", "Scores"),
        ("h2", "Over the epochs"),
        ("h2", "Classes and confusion: good"),
        ("h2", "Classes and confusion: bad"),
        ("h2", "Accuracy of each subject: good"),
        ("h2", "Accuracy of each subject: bad"),
        ("h2", "Calibration: good"),
        ("h2", "Calibration: bad"),
        ("h2", "The most confident mistakes"),
        ("h2", "How to read this"),
    ]
    assert (
        "final (last epoch (bad: fitted once; nothing to select)): good is better than bad by "
        in found.text
    )
    assert "good, final" in found.text
    assert "bad, final" in found.text
    assert "nothing was selected in it, so in differences its final stands for inner too" in (
        found.text
    )
    assert set(figures) == {
        "intervals",
        "learning_curves",
        "agreement_1_2",
        *(
            f"{stem}_{number}"
            for stem in ("confusion_composite", "confusion_smic", "confusion_samm")
            for number in (1, 2)
        ),
        *(f"{stem}_{number}" for stem in ("subjects", "calibration") for number in (1, 2)),
    }
    assert len(found.images) == len(figures)


def test_several_pairs_are_no_single_test(make_wide):
    runs = [Run.of(name, make_wide(key=key)) for key, name in enumerate("abc")]
    pairs = [
        compare(runs[0].predictions, other.predictions, ("a", other.name)) for other in runs[1:]
    ]
    found = show(runs, pairs)
    text = found.text
    assert found.headings[0] == ("h1", "a, b and c")
    assert "2 comparisons: the p-values are not corrected for their number" in text
    assert "a and b final (last epoch): " in text
    assert "a and c final (last epoch): " in text
    assert "not corrected" not in show(runs, pairs[:1]).text


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            Comparison(0.1, 0.05, 0.14, 0.001),
            "A is better than B by 0.100 UF1 (95 % interval 0.050 to 0.140, p = 0.001).",
        ),
        (
            Comparison(-0.1, -0.14, -0.05, 0.0001),
            "B is better than A by 0.100 UF1 (95 % interval 0.050 to 0.140, p < 0.001).",
        ),
        (
            Comparison(-0.01, -0.05, 0.03, 0.6),
            "No difference in UF1 is shown: A minus B is \N{MINUS SIGN}0.010 (95 % interval "
            "\N{MINUS SIGN}0.050 to +0.030, p = 0.600).",
        ),
        (
            Comparison(0.1, -0.01, 0.2, 0.04),
            "No difference in UF1 is shown: A minus B is +0.100 (95 % interval \N{MINUS SIGN}0.010 "
            "to +0.200, p = 0.040).",
        ),
        (
            Comparison(0.1, 0.01, 0.2, 0.05),
            "No difference in UF1 is shown: A minus B is +0.100 (95 % interval +0.010 to +0.200, "
            "p = 0.050).",
        ),
        (
            Comparison(0.1, np.nan, np.nan, 1.0),
            "No difference in UF1 is shown: A minus B is +0.100 (no interval, p = 1.000).",
        ),
    ],
    ids=["better", "worse", "none", "interval holds 0", "p at the limit", "one subject"],
)
def test_differences_in_words(found, words):
    assert page.in_words(Pair("A", "B", {}), "UF1", found) == words


def test_figures_have_names_fit_for_files(make_run):
    sources = ["../x y", "../x y", "..X*y", "..X*y", "***", "***"]
    run = make_run(
        sources=sources,
        fold=[0, 0, 1, 1, 2, 2],
        folds=["a", "b", "c"],
        protocol_folds=["a", "b", "c"],
        subjects=["a", "a", "b", "b", "c", "c"],
        train_loss=np.ones((1, 3, 3), np.float32),
    )
    stems = list(page.figures([Run.of("a/b", run)]))
    assert all(re.fullmatch(r"[a-z0-9_]+", stem) for stem in stems)
    assert sorted(stem for stem in stems if "confusion" in stem) == [
        "confusion_composite",
        "confusion_source",
        "confusion_x_y",
        "confusion_x_y_",
    ]
    long = Run.of("a", make_run(sources=["z" * 300] * 3 + ["samm"] * 3))
    assert max(map(len, page.figures([long]))) < 100


def test_pages_that_cannot_be_told_apart_are_refused(make_run):
    run = Run.of("net", make_run())
    for runs in ([], [run, run]):
        with pytest.raises(ValueError, match="different names"):
            page.figures(runs, [])
    with pytest.raises(ValueError, match=r"not on the page: \['other'\]"):
        page.render([run], [Pair("net", "other", {})], {})


def test_descriptions_stand_beside_chance_and_at_the_mistakes(make_run, make_described):
    run = Run.of("net", make_run(described=make_described()))
    found = show([run])
    assert ("h2", "Descriptions") in found.headings
    text = found.text[found.text.index("Descriptions") :]
    chance = run.descriptions["recall_at_1_chance"]
    assert re.search(rf"recall@1 0\.400 0\.\d+ to 0\.\d+ {chance:.3f} 0\.000 to 0\.800", text)
    assert "macro-F1 of units 0.357" in text
    assert "5 clips of 2 subjects with 4 distinct sets of units; 1 further clip has no" in text
    assert "20% of the clips have a set that no training clip of their fold has" in text
    assert "finds 2.00 clips of its own set" in text
    # Clip a2 has 4+7 and is described so; the units of b3 are not known.
    mistakes = text[text.index("The most confident mistakes") :]
    assert re.search(r"a2 SMIC a positive negative \(\d+%\) 4\+7 4\+7", mistakes)
    assert re.search(r"b3 SAMM b surprise negative \(\d+%\) - 12", mistakes)
    assert "Descriptions" not in show([Run.of("net", make_run())]).text


def test_a_card_says_units_and_nearest_sentence(make_run, make_described):
    images = Images(np.array(["a2"]), np.zeros((1, 28, 28, 3), np.float32), None, centred=True)
    run = Run.of("net", make_run(described=make_described()), images=images)
    assert "a2 units 4+7, nearest sentence 4+7" in show([run]).text
    plain = Run.of("net", make_run(), images=images)
    assert "nearest sentence" not in show([plain]).text
