"""How folds are grouped: a table of cases, and what holds for any."""

import itertools
import math

import pytest

from htnet_jax.training.memory import balanced_size, groups, spread


# Folds, devices, how many fit on one -> folds a device, sizes of the groups of each round.
@pytest.mark.parametrize(
    ("folds", "devices", "fit", "size", "rounds"),
    [
        (68, 8, 4, 3, [[3] * 8, [3] * 8, [3] * 4 + [2] * 4]),
        (68, 1, 32, 23, [[23], [23], [22]]),
        (68, 1, 68, 68, [[68]]),
        (68, 2, 1, 1, [[1, 1]] * 34),
        (67, 2, 1, 1, [[1, 1]] * 33 + [[1]]),
        (10, 2, 4, 3, [[3, 3], [2, 2]]),
        (5, 4, 100, 2, [[2, 1, 1, 1]]),
        (5, 4, 1, 1, [[1] * 4, [1]]),
        (4, 4, 9, 1, [[1] * 4]),
        (3, 8, 5, 1, [[1] * 3]),
        (3, 1, 0, 1, [[1]] * 3),
        (1, 1, 7, 1, [[1]]),
    ],
)
def test_groups_are_balanced(folds, devices, fit, size, rounds):
    assert balanced_size(folds, devices, fit) == size
    sizes = [len(group) for group in groups(range(folds), devices, size)]
    assert [sizes[i : i + devices] for i in range(0, len(sizes), devices)] == rounds


def test_any_number_of_folds_devices_and_places():
    for folds, devices, fit in itertools.product(range(1, 40), range(1, 9), range(1, 9)):
        size = balanced_size(folds, devices, fit)
        assert 1 <= size <= fit
        found = groups(range(folds), devices, size)
        assert list(itertools.chain(*found)) == list(range(folds))
        assert max(map(len, found)) <= size
        assert max(map(len, found)) - min(map(len, found)) <= 1
        # No more rounds than if every group were as large as fits, and no device idle for nothing.
        rounds = math.ceil(folds / (fit * devices))
        assert math.ceil(len(found) / devices) == rounds
        assert len(found) == min(rounds * devices, folds)


def test_no_fold_no_group():
    assert groups([], 4, 2) == []


def test_spread_gives_the_first_more():
    assert spread("abcde", 3) == [["a", "b"], ["c", "d"], ["e"]]
    assert spread("ab", 3) == [["a"], ["b"], []]
