"""The plan of the synthetic composite: ids, classes, and random streams."""

import collections

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.datasets.synthetic import recipe
from htnet_jax.errors import UserError


@given(st.integers(0, 2**40), st.integers(1, 12), st.integers(3, 15))
def test_plan_has_unique_ids_and_every_class_for_every_subject(seed, subjects, clips):
    planned = recipe.plan(seed, subjects, clips)
    assert len(planned) == 3 * subjects * clips
    assert len({(p.subject, p.name) for p in planned}) == len(planned)
    classes = collections.defaultdict(set)
    sources = collections.defaultdict(set)
    for p in planned:
        classes[p.subject].add(p.label)
        sources[p.subject].add(p.source.name)
    assert len(classes) == 3 * subjects
    assert all(found == {0, 1, 2} for found in classes.values())
    assert all(len(found) == 1 for found in sources.values())


@given(st.integers(0, 1000), st.integers(1, 5), st.integers(3, 8))
def test_a_subject_does_not_depend_on_how_many_others_there_are(seed, subjects, clips):
    few = recipe.plan(seed, subjects, clips)
    many = recipe.plan(seed, subjects + 2, clips)
    assert [p for p in many if p.number <= subjects] == few


def test_classes_are_mixed_as_in_the_source():
    clips = 23  # one of each class, and 20 drawn from the shares
    planned = recipe.plan(5, 40, clips)
    for source in recipe.SOURCES:
        labels = [p.label for p in planned if p.source == source]
        share = np.bincount(labels, minlength=3) / len(labels)
        expected = (1 + 20 * np.array(source.mix)) / clips
        # The share of 800 draws has a standard deviation of at most 0.018.
        assert np.abs(share - expected).max() < 0.06
        assert share.argmax() == 0
        assert sum(source.mix) == pytest.approx(1)


def test_position_within_a_subject_does_not_tell_the_label():
    planned = recipe.plan(5, 100, 3)
    first = np.bincount([p.label for p in planned if p.index == 1], minlength=3) / 300
    assert first.min() > 0.2  # each about 1/3; standard deviation 0.027


def test_streams_repeat_and_differ():
    def draw(*key):
        return recipe.generator(*key).integers(0, 2**62)

    keys = [
        (0, "noise", "alpha", 1, 1),
        (1, "noise", "alpha", 1, 1),
        (0, "drift", "alpha", 1, 1),
        (0, "noise", "beta", 1, 1),
        (0, "noise", "alpha", 2, 1),
        (0, "noise", "alpha", 1, 2),
        (0, "noise", "alpha", 1),
    ]
    assert len({draw(*key) for key in keys}) == len(keys)
    assert [draw(*key) for key in keys] == [draw(*key) for key in keys]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1, 1, 3), "seed"), ((0, 0, 3), "subjects_per_source"), ((0, 1, 2), "clips_per_subject")],
)
def test_numbers_that_are_too_small_are_named(arguments, name):
    with pytest.raises(UserError, match=name):
        recipe.plan(*arguments)
