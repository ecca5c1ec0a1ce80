"""Planted faults are found and named, with their folds; clean data have none."""

import dataclasses
import os
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from htnet_jax.datasets import Casme2, Mmew, Samm, checks, labels, loading, similarity
from htnet_jax.evaluation import protocols
from htnet_jax.motion import regions


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """24 clips of 6 subjects, four each, of 3 sources."""
    folder = str(tmp_path_factory.mktemp("data"))
    return loading.load("synthetic", config="tiny", data_dir=folder)


def check(arrays, protocol="loso", metadata=None, **options):
    subjects = protocols.unique_subjects(arrays.subjects, arrays.sources)
    folds = protocols.splits(protocol, subjects, arrays.sources, count=3)
    return checks.check(arrays, subjects, folds, metadata, **options)


def changed(arrays, **rows):
    """A copy with some rows of some arrays replaced: `labels={3: 1}`."""
    copies = {}
    for name, values in rows.items():
        old = getattr(arrays, name)
        copy = old.astype(object) if old.dtype.kind == "U" else old.copy()
        for row, value in values.items():
            copy[row] = value
        copies[name] = copy.astype(np.str_) if old.dtype.kind == "U" else copy
    return dataclasses.replace(arrays, **copies)


def ids(arrays, *rows):
    return tuple(str(arrays.clips[row]) for row in rows)


def only(checkup, kind):
    found = [finding for finding in checkup.findings if finding.kind == kind]
    assert len(found) == 1, checkup.findings
    return found[0]


def rows_of(arrays, subject):
    return np.flatnonzero(arrays.subjects == subject)


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_clean_data_have_no_finding(tiny, protocol):
    checkup = check(tiny, protocol)
    assert checkup.findings == ()
    assert checkup.alike.within.similarity < similarity.SAME
    assert checkup.alike.between.similarity < similarity.SAME
    assert len(checkup.rows) == 24


def test_a_clip_of_one_subject_under_another_crosses_folds(tiny):
    first, second = rows_of(tiny, "a01")[0], rows_of(tiny, "b02")[1]
    spoiled = changed(tiny, flow={second: tiny.flow[first]}, labels={second: tiny.labels[first]})
    finding = only(check(spoiled), "identical")
    assert finding.is_problem
    assert finding.clips == ids(tiny, first, second)
    assert finding.folds == ("a01", "b02")
    assert "2 subjects" in finding.what
    assert "crosses folds: each of a01, b02 tests" in finding.what
    by_source = only(check(spoiled, "lodo"), "identical")
    assert by_source.folds == tuple(sorted({tiny.sources[first], tiny.sources[second]}))


def test_a_rescaled_copy_is_found_across_subjects_and_only_noted_within_one(tiny):
    first, second = rows_of(tiny, "a01")[:2]
    other = rows_of(tiny, "g01")[0]
    copy = tiny.flow[first] * np.float32([3, 0.5, 2]) + np.float32([10, -1, 0])
    label = tiny.labels[first]
    within = check(changed(tiny, flow={second: copy}, labels={second: label}))
    finding = only(within, "similar")
    assert not finding.is_problem
    assert finding.clips == ids(tiny, first, second)
    assert finding.folds == ("a01",)
    assert "similarity 1.000" in finding.what
    across = only(check(changed(tiny, flow={other: copy}, labels={other: label})), "similar")
    assert across.is_problem
    assert across.folds == ("a01", "g01")


def test_an_identical_clip_within_a_subject_is_a_problem_that_crosses_no_fold(tiny):
    first, second = rows_of(tiny, "a02")[:2]
    spoiled = changed(tiny, flow={second: tiny.flow[first]}, labels={second: tiny.labels[first]})
    finding = only(check(spoiled), "identical")
    assert finding.is_problem
    assert finding.folds == ("a02",)
    assert "crosses" not in finding.what


def test_one_clip_with_two_labels(tiny):
    first, second = rows_of(tiny, "a01")[0], rows_of(tiny, "b01")[0]
    other = (int(tiny.labels[first]) + 1) % 3
    spoiled = changed(
        tiny,
        flow={second: tiny.flow[first]},
        labels={second: other},
        emotions={second: "a word of its own"},
    )
    finding = only(check(spoiled), "label")
    assert finding.is_problem
    assert finding.clips == ids(tiny, first, second)
    assert f"{tiny.clips[first]} is {tiny.class_names[tiny.labels[first]]}" in finding.what
    assert f"{tiny.clips[second]} is {tiny.class_names[other]}" in finding.what


def test_one_word_with_two_labels_names_the_odd_clip(tiny):
    source, rows = tiny.sources[0], np.flatnonzero(tiny.sources == tiny.sources[0])
    words = changed(tiny, emotions={row: tiny.class_names[tiny.labels[row]] for row in rows})
    odd = rows[3]
    label = (int(tiny.labels[odd]) + 1) % 3
    finding = only(check(changed(words, labels={odd: label})), "label")
    assert finding.clips == ids(tiny, odd)
    assert finding.folds == (tiny.subjects[odd],)
    assert f"of {source} has the label" in finding.what
    assert "np.str_" not in finding.what


def test_objective_classes_may_share_a_word(tiny):
    rows = np.flatnonzero(tiny.sources == tiny.sources[0])
    one_word = changed(tiny, emotions=dict.fromkeys(rows, "disgust"))
    assert {f.kind for f in check(one_word).findings} == {"label"}
    objective = dataclasses.replace(one_word, class_names=labels.OBJECTIVE)
    assert check(objective).findings == ()


def test_a_subject_spelled_in_two_ways(tiny):
    rows = rows_of(tiny, "a01")
    row = rows[-1]
    source, _, name = tiny.clips[row].split("/")
    spoiled = changed(tiny, subjects={row: "A1"}, clips={row: f"{source}/A1/{name}"})
    finding = only(check(spoiled), "names")
    assert finding.is_problem
    assert set(finding.clips) == set(spoiled.clips[rows])
    assert finding.folds == ("A1", "a01")
    assert f"{source}/A1, {source}/a01" in finding.what


def test_one_clip_under_two_ids(tiny):
    first, second = rows_of(tiny, "a01")[:2]
    source, subject, name = tiny.clips[first].split("/")
    again = changed(tiny, clips={second: tiny.clips[first]})
    assert only(check(again), "names").what == f"2 clips have the id {tiny.clips[first]}"
    spelled = f"{source}/{subject}/{name.upper().replace('_', '-')}-"
    assert spelled.strip("-") != tiny.clips[first]
    finding = only(check(changed(tiny, clips={second: spelled.strip("-")})), "names")
    assert finding.is_problem
    assert finding.what.startswith("one clip under several ids: ")
    other = rows_of(tiny, "b01")[0]
    moved = changed(tiny, clips={other: f"beta/{subject}/{name}"}, subjects={other: subject})
    finding = only(check(moved), "names")
    assert not finding.is_problem  # another data set may use the same names
    assert set(finding.clips) == {tiny.clips[first], f"beta/{subject}/{name}"}


@pytest.mark.parametrize(
    ("change", "kind", "what"),
    [
        (lambda f: f * 0, "empty", "0 everywhere, as from an apex that is the onset"),
        (lambda f: f * 0 + 127, "empty", "u and v do not vary (127, 127)"),
        (lambda f: f * np.float32([0, 1, 1]), "empty", "u is 0 everywhere"),
        (lambda f: f * np.float32([1, 1, 0]), "empty", "strain is 0 everywhere"),
        (
            lambda f: np.where(f > np.median(f, axis=(0, 1)), 255, 0).astype(np.float32),
            "empty",
            "u, v, strain: saturated",
        ),
        (
            lambda f: np.where(np.arange(3) == 1, np.nan, f).astype(np.float32),
            "values",
            "not finite: 784 of v",
        ),
    ],
)
def test_empty_flow(tiny, change, kind, what):
    row = rows_of(tiny, "g02")[2]
    # Twice, as two empty clips are no copies of each other.
    other = rows_of(tiny, "a01")[0]
    checkup = check(changed(tiny, flow={i: change(tiny.flow[i]) for i in (row, other)}))
    assert [f.kind for f in checkup.findings] == [kind] * 2
    for finding, i in zip(checkup.findings, sorted((row, other)), strict=True):
        assert finding.is_problem
        assert finding.clips == ids(tiny, i)
        assert finding.folds == (tiny.subjects[i],)
        assert what in finding.what
    assert len(checkup.rows) == 22


@pytest.mark.parametrize(
    ("points", "kind", "is_problem", "what"),
    [
        (regions.TEMPLATE_POINTS, "template", False, "template"),
        (np.full((5, 2), 3), "landmarks", True, "all five points are one"),
        (regions.TEMPLATE_POINTS - [11, 0], "landmarks", False, "0.97 pixels outside"),
        (regions.TEMPLATE_POINTS[[1, 0, 2, 4, 3]], "landmarks", False, "left eye is not to the"),
        (regions.TEMPLATE_POINTS * np.nan, "values", True, "a landmark is not finite"),
    ],
)
def test_landmarks(tiny, points, kind, is_problem, what):
    row = rows_of(tiny, "b02")[0]
    finding = only(check(changed(tiny, landmarks={row: points})), kind)
    assert finding.is_problem is is_problem
    assert finding.clips == ids(tiny, row)
    assert finding.folds == ("b02",)
    assert what in finding.what


def test_the_template_is_known_at_other_sizes(tiny):
    large = np.repeat(np.repeat(tiny.flow, 2, axis=1), 2, axis=2)
    points = np.stack([(regions.TEMPLATE_POINTS + 0.5) * 2 - 0.5] * 24)
    checkup = check(dataclasses.replace(tiny, flow=large, landmarks=points))
    assert [f.kind for f in checkup.findings] == ["template"] * 24


def test_counts_that_differ(tiny):
    named = dataclasses.replace(tiny, name="megc2019/release_partial/1.0.0")
    checkup = check(named)
    assert checkup.compared
    assert "all sources: 24 clips, the composite has 442" in [f.what for f in checkup.findings]
    assert all(f.kind == "counts" and f.is_problem for f in checkup.findings)
    assert not check(tiny).compared
    left_out = check(tiny, metadata={"incomplete": ["onset samm/096/096_1_2: no frame 12"]})
    finding = only(left_out, "counts")
    assert finding.is_problem
    assert "onset samm/096/096_1_2: no frame 12" in finding.what


def test_counts_of_a_data_set_made_from_its_own_copy(tiny):
    """SAMM: 57 anger, 12 contempt, 9 disgust, 8 fear, 6 sadness, 26 happiness, 15 surprise."""
    words = {"anger": 57, "contempt": 12, "disgust": 9, "fear": 8, "sadness": 6, "happiness": 26}
    emotions = np.repeat([*words, "surprise"], [*words.values(), 15])
    samm = dataclasses.replace(tiny, name="samm/tvl1_28/1.0.0", emotions=emotions)
    assert Samm.differences(samm) == []
    assert Samm.differences(dataclasses.replace(samm, emotions=emotions[1:])) == [
        ("samm", "56 clips of anger, the published data set has 57")
    ]
    objective = dataclasses.replace(samm, class_names=labels.OBJECTIVE)
    assert Samm.differences(objective) is None
    assert Mmew.differences(samm) is None


def test_casme2_is_compared_with_the_sheet_that_comes_nearest(tiny):
    """The sheet of 2019 has 28 surprise instead of 25."""
    for surprise in (25, 28):
        emotions = np.repeat(
            ["disgust", "repression", "happiness", "surprise"], [63, 27, 32, surprise]
        )
        casme2 = dataclasses.replace(tiny, name="casme2/tvl1_28/1.0.0", emotions=emotions)
        assert Casme2.differences(casme2) == []


def test_counted(tiny):
    counts = checks.counted(tiny)
    assert list(counts)[-1] == "all"
    assert counts["all"]["clips"] == 24
    assert counts["all"]["subjects"] == 6
    for source in np.unique(tiny.sources):
        rows = tiny.sources == source
        expected = np.bincount(tiny.labels[rows], minlength=3)
        assert list(counts[source].values()) == [2, *expected, 8]
    by_person = checks.counted_by_subject(tiny, tiny.subjects)
    assert [person["clips"] for person in by_person.values()] == [4] * 6


def test_a_class_of_one_subject_is_lost_in_its_fold(tiny):
    own = rows_of(tiny, "g01")
    labels = {row: 0 for row in range(24)} | {own[0]: 2}
    spoiled = changed(tiny, labels=labels, emotions=dict.fromkeys(range(24), "calm"))
    spoiled = changed(spoiled, emotions={own[0]: "wonder"})
    finding = only(check(spoiled), "class")
    assert not finding.is_problem
    assert finding.clips == ids(tiny, own[0])
    assert finding.folds == ("g01",)
    assert "class surprise" in finding.what


def test_wrong_lengths_are_a_programming_error(tiny):
    subjects = protocols.unique_subjects(tiny.subjects, tiny.sources)
    folds = protocols.splits("loso", subjects, tiny.sources)
    with pytest.raises(ValueError, match="of the same clips"):
        checks.check(dataclasses.replace(tiny, flow=tiny.flow[:5]), subjects, folds)


def test_reports_name_clips_and_folds(tiny):
    first, second = rows_of(tiny, "a01")[0], rows_of(tiny, "b02")[1]
    template = dict.fromkeys(range(24), regions.TEMPLATE_POINTS)
    spoiled = changed(
        tiny,
        flow={second: tiny.flow[first]},
        labels={second: tiny.labels[first]},
        landmarks=template,
    )
    checkup = check(spoiled)
    text = checks.as_text(checkup, spoiled, "leave one subject out, 6 folds")
    assert f"{tiny.clips[first]}, {tiny.clips[second]}: the same flow" in text
    assert "... and 14 more" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a01", "1", "4"] in lines
    assert ["a02", "4"] in lines
    assert text.endswith("1 problem, 24 notes")
    assert checks.by_fold(checkup.findings)["b02"] == {"identical": 1, "template": 4}
    rows = checks.as_csv(checkup.findings).splitlines()
    assert len(rows) == 26
    assert rows[1].startswith(
        f"problem,identical,{tiny.clips[first]} | {tiny.clips[second]},a01 | b02,"
    )


# Similarity.


def _flows(seed, count=6, side=8):
    return np.random.default_rng(seed).normal(size=(count, side, side, 2)).astype(np.float32)


@hypothesis.given(
    st.integers(0, 10_000),
    arrays_of.arrays(np.float64, (6, 1, 1, 2), elements=st.floats(1e-3, 1e3)),
    arrays_of.arrays(np.float64, (6, 1, 1, 2), elements=st.floats(-100, 100)),
)
def test_scale_and_offset_of_a_channel_do_not_matter(seed, scale, offset):
    flows = _flows(seed).astype(np.float64)
    plain = similarity.standardised(flows)
    moved = similarity.standardised(flows * scale + offset)
    np.testing.assert_allclose(plain @ plain.T, moved @ plain.T, atol=2e-6)


def test_similarity_is_the_mean_correlation_of_the_channels():
    flows = _flows(0)
    vectors = similarity.standardised(flows)
    a, b = flows[0].reshape(-1, 2), flows[1].reshape(-1, 2)
    expected = np.mean([np.corrcoef(a[:, c], b[:, c])[0, 1] for c in range(2)])
    np.testing.assert_allclose(vectors[0] @ vectors[1], expected, atol=1e-6)
    # A constant channel counts as none; without any other the flow is like nothing.
    flows[2, ..., 1] = 5
    flows[3] = 5
    vectors = similarity.standardised(flows)
    np.testing.assert_allclose(vectors[2] @ vectors[2], 1, atol=1e-6)
    assert not vectors[3].any()


def test_groups_across_blocks():
    """300 flows are two blocks: 3 = 290 (scaled), 5 = 7 = 299."""
    flows = _flows(1, 300)
    flows[290] = 2 * flows[3] + 1
    flows[7] = flows[299] = flows[5]
    owners = np.array(["x", "y"] * 150)
    found = similarity.alike(flows, owners)
    assert found.groups == ((3, 290), (5, 7, 299))
    assert found.lowest == pytest.approx((1, 1), abs=1e-6)
    assert (found.within.first, found.within.second) in {(5, 7), (5, 299), (7, 299)}
    assert (found.between.first, found.between.second) == (3, 290)
    assert similarity.equal_groups(flows) == [(5, 7, 299)]


def test_zero_has_no_sign():
    flows = np.zeros((2, 4, 4, 1), np.float32)
    flows[1] = -0.0
    flows[:, 0, 0] = 1
    assert similarity.equal_groups(flows) == [(0, 1)]


def test_similarity_refuses_what_it_cannot_compare():
    flows = _flows(0)
    with pytest.raises(ValueError, match=r"\(N, H, W, C\)"):
        similarity.standardised(flows[0])
    with pytest.raises(ValueError, match="6 flows, but owners"):
        similarity.alike(flows, ["x"])
    flows[0, 0, 0, 0] = np.inf
    with pytest.raises(ValueError, match="finite"):
        similarity.alike(flows, ["x"] * 6)


def test_nothing_to_compare_with():
    found = similarity.alike(_flows(0, 1), ["x"])
    assert found == similarity.Alike((), (), None, None)
    found = similarity.alike(_flows(0, 0), [])
    assert found == similarity.Alike((), (), None, None)


# The release.


def test_the_release_has_no_problem_and_172_templates(tmp_path):
    root = os.environ.get("HTNET_DATA", "")
    manual = pathlib.Path(root, "megc2019")
    if not root or not manual.is_dir():
        pytest.skip("no folder $HTNET_DATA/megc2019: the release's files are not public")
    arrays = loading.load("megc2019", manual_dir=str(manual), data_dir=str(tmp_path))
    checkup = check(arrays)
    assert checkup.problems == []
    assert checkup.compared
    assert checkup.counts["all"] == {
        "subjects": 68,
        "negative": 250,
        "positive": 109,
        "surprise": 83,
        "clips": 442,
    }
    template = [f.clips[0].split("/")[0] for f in checkup.findings if f.kind == "template"]
    assert len(template) == 172
    assert (template.count("casme2"), template.count("smic")) == (130, 42)
    # What the threshold is made from, see similarity.SAME.
    assert round(checkup.alike.within.similarity, 3) == 0.936
    assert round(checkup.alike.between.similarity, 3) == 0.858
