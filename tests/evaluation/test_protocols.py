import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.evaluation import protocols
from htnet_jax.evaluation.protocols import (
    Split,
    classes_lost,
    groups,
    inner_folds,
    splits,
    unique_subjects,
)

SUBJECTS = np.array(["p2", "p1", "p2", "p3", "p4"])
SOURCES = np.array(["smic", "smic", "smic", "samm", "samm"])


def test_subjects_of_two_data_sets_with_one_name_are_told_apart():
    names = unique_subjects(["s1", "s1", "s2", "s1"], ["smic", "samm", "samm", "smic"])
    assert names.tolist() == ["smic/s1", "samm/s1", "s2", "smic/s1"]
    with pytest.raises(ValueError, match="zip"):
        unique_subjects(["s1"], ["smic", "samm"])


def test_loso_leaves_out_each_subject():
    found = splits("loso", SUBJECTS, SOURCES)
    assert [split.name for split in found] == ["p1", "p2", "p3", "p4"]
    assert found[1].test.tolist() == [True, False, True, False, False]


def test_lodo_leaves_out_each_data_set():
    found = splits("lodo", SUBJECTS, SOURCES)
    assert [split.name for split in found] == ["samm", "smic"]
    assert found[0].test.tolist() == [False, False, False, True, True]


def test_kfold_names_its_folds():
    found = splits("kfold", SUBJECTS, SOURCES, count=2)
    assert [split.name for split in found] == ["fold1of2", "fold2of2"]
    assert sum(split.test.astype(int) for split in found).tolist() == [1] * 5
    many = np.array([f"p{index}" for index in range(12)])
    names = [split.name for split in splits("kfold", many, np.full(12, "smic"), count=10)]
    assert names[0] == "fold01of10"
    assert names == sorted(names)


def test_a_protocol_that_the_data_do_not_allow():
    with pytest.raises(UserError, match="unknown protocol 'loo'; use one of loso, lodo, kfold"):
        splits("loo", SUBJECTS, SOURCES)
    with pytest.raises(UserError, match=r"lodo \(leave one data set out\) needs at least two"):
        splits("lodo", SUBJECTS[:3], SOURCES[:3])
    with pytest.raises(UserError, match="4 subjects cannot be split into 5 groups; give 2 to 4"):
        splits("kfold", SUBJECTS, SOURCES, count=5)


HOMES = st.lists(st.sampled_from(["smic", "samm", "casme2"]), min_size=2, max_size=30)


@given(HOMES, st.data())
def test_groups_hold_whole_subjects_and_are_even_in_every_data_set(homes, data):
    count = data.draw(st.integers(2, len(homes)))
    clips = data.draw(st.lists(st.integers(0, len(homes) - 1), max_size=30))
    owner = np.array([*range(len(homes)), *clips])
    subjects = np.array([f"p{index}" for index in owner])
    sources = np.array(homes)[owner]
    number = groups(subjects, sources, count, "key")
    of_subject = dict(zip(subjects, number, strict=True))
    assert [of_subject[subject] for subject in subjects] == number.tolist()
    for source in {None, *homes}:
        members = [f"p{i}" for i, home in enumerate(homes) if source in (None, home)]
        sizes = np.bincount([of_subject[subject] for subject in members], minlength=count)
        assert sizes.max() - sizes.min() <= 1


def test_groups_depend_on_the_key_and_not_on_the_order_of_clips():
    subjects = np.array([f"p{index}" for index in range(20)])
    sources = np.full(20, "smic")
    number = groups(subjects, sources, 4, "0/a")
    assert groups(subjects[::-1], sources, 4, "0/a").tolist() == number[::-1].tolist()
    assert groups(subjects, sources, 4, "0/b").tolist() != number.tolist()
    # By SHA-256 of "0/a/p0" and so on (0aaf, 348e, 9400, 96d1): p2, p0, p3, p1, assigned in turn.
    assert groups(subjects[:4], sources[:4], 2, "0/a").tolist() == [1, 1, 0, 0]


def test_inner_folds_split_the_training_subjects_only():
    subjects = np.array([f"p{index}" for index in range(11)])
    sources = np.full(11, "smic")
    split = Split("p0", subjects == "p0")
    found = inner_folds(split, subjects, sources, parts=5, count=2, seed=0)
    assert found[0] == -1
    # Ten subjects in five parts of two; the first two parts validate.
    assert [int((found == part).sum()) for part in (-1, 0, 1)] == [7, 2, 2]
    every = inner_folds(split, subjects, sources, parts=5, count=5, seed=0)
    np.testing.assert_array_equal(found, np.where(every < 2, every, -1))
    other = inner_folds(split, subjects, sources, parts=5, count=5, seed=1)
    assert other.tolist() != every.tolist()


def test_inner_folds_that_cannot_be():
    split = Split("p1", SUBJECTS == "p1")
    with pytest.raises(UserError, match="3 inner folds of 2 parts; use 1 to 2"):
        inner_folds(split, SUBJECTS, SOURCES, parts=2, count=3, seed=0)
    with pytest.raises(UserError, match="fold p1, inner folds: 3 subjects cannot be split into 4"):
        inner_folds(split, SUBJECTS, SOURCES, parts=4, count=1, seed=0)


def test_classes_lost_when_their_only_subjects_are_left_out():
    labels = [0, 0, 1, 1, 2]
    found = splits("loso", np.array(["x", "y", "x", "x", "y"]), np.full(5, "s"))
    # Only x has class 1, only y has class 2; both have class 0.
    assert classes_lost(labels, found) == {"x": (1,), "y": (2,)}
    assert classes_lost([0, 0, 0, 0, 0], found) == {}


def test_every_protocol_is_described():
    assert set(protocols.PROTOCOLS) == {"loso", "lodo", "kfold"}
