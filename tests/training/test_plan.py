import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.training.plan import ORDERS, Plan, Result, Sets, Store, Unit

CLIPS = ["a1", "b1", "a2", "c1"]


FIELDS = {
    "seeds": [5],
    "epochs": [1, 2],
    "folds": ["a", "x/b"],
    "tested": [0, 1, 0, -1],
    "validated": [[-1, 0, -1, -1], [-1, -1, -1, 0]],
    "refit": True,
    "clips": CLIPS,
    "subjects": ["a", "b", "a", "c"],
    "sources": ["smic"] * 4,
    "labels": [0, 1, 1, 0],
    "class_names": ["n", "p"],
    "protocol": "loso",
    "protocol_folds": ["a", "c", "x/b"],
    "dataset": "d/1",
    "fingerprint": "f",
}


SETS = {
    "names": ["0", "4"],
    "sentences": ["None.", "Four."],
    "rows": [0, 1, -1, 0],
    "positives": np.array([1.5, 2.0], np.float32),
}


@pytest.fixture
def make_plan():
    """Folds "a" and "x/b" (clips a1 a2; b1), one inner fold each; c1 is never tested."""

    def make(**changes):
        return Plan(**(FIELDS | changes))

    return make


def result(plan, unit):
    """Logits that tell fold, seed, inner fold, epoch and clip: every number is unique."""
    clips = np.flatnonzero(plan.predicted(unit))
    inner = -1 if unit.inner is None else unit.inner
    base = 1000 * unit.fold + 100 * unit.seed + 10 * (inner + 1)
    logits = np.stack([base + clips + epoch / 4 for epoch in range(len(plan.epochs))])
    return Result(
        np.stack([logits, -logits], axis=-1).astype(np.float32),
        np.array([base, base + 1], np.float32),
    )


def finish(store, *units):
    for unit in units:
        store.write(unit, result(store.plan, unit))


def test_who_trains_on_what(make_plan):
    plan = make_plan()
    own, inner = Unit(0, 0, None), Unit(0, 0, 0)
    assert plan.trained(own).tolist() == [False, True, False, True]
    assert plan.predicted(own).tolist() == [True, False, True, False]
    # b1 validates in the inner fold of "a".
    assert plan.trained(inner).tolist() == [False, False, False, True]
    assert plan.predicted(inner).tolist() == [True, True, True, False]


def test_units_and_their_names(make_plan):
    plan = make_plan(seeds=[5, 9])
    assert plan.inner_folds == 1
    assert list(plan.units(inner=False)) == [
        Unit(fold, seed, None) for fold in (0, 1) for seed in (0, 1)
    ]
    assert [unit.inner for unit in plan.units(inner=True)] == [0] * 4
    assert plan.name(Unit(1, 1, 0)) == "x/b, inner fold 1, seed 9"
    assert make_plan().name(Unit(0, 0, None)) == "a"
    without = make_plan(validated=np.full((2, 4), -1))
    assert without.inner_folds == 0
    assert list(without.units(inner=True)) == []


def test_a_plan_survives_the_disk(make_plan, tmp_path):
    plan = make_plan()
    plan.save(tmp_path / "plan.npz")
    loaded = Plan.load(tmp_path / "plan.npz")
    for name in Plan.__dataclass_fields__.keys() - {"sets"}:
        np.testing.assert_array_equal(getattr(loaded, name), getattr(plan, name), err_msg=name)
        assert getattr(loaded, name).dtype == getattr(plan, name).dtype
    assert loaded.sets is None
    described = make_plan(sets=Sets(**SETS))
    described.save(tmp_path / "plan.npz")
    loaded = Plan.load(tmp_path / "plan.npz")
    assert loaded.same(described)
    assert not loaded.same(plan)
    assert not loaded.same(make_plan(sets=Sets(**(SETS | {"rows": [0, 1, 1, 1]}))))


def test_results_survive_the_disk(make_plan, tmp_path):
    store = Store(tmp_path / "unfinished", make_plan())
    unit = Unit(1, 0, 0)
    finish(store, unit)
    again = Store.open(tmp_path / "unfinished")
    assert again.finished() == {unit}
    for one, other in zip(again.read(unit), result(store.plan, unit), strict=True):
        np.testing.assert_array_equal(one, other)
    # The fold's name has a slash; its file lies in the folder all the same.
    assert {path.parent for path in tmp_path.rglob("*.npz")} == {tmp_path / "unfinished"}


def test_a_fold_is_finished_when_all_its_models_are(make_plan, tmp_path):
    store = Store(tmp_path, make_plan(seeds=[5, 9]))
    units = [Unit(1, seed, inner) for seed in (0, 1) for inner in (None, 0)]
    for unit in units:
        assert store.finished_folds() == []
        finish(store, unit)
    assert store.finished_folds() == [1]


def test_a_whole_run(make_plan, tmp_path):
    plan = make_plan(seeds=[5, 9])
    store = Store(tmp_path, plan)
    finish(store, *plan.units(inner=False), *plan.units(inner=True))
    run = store.assemble()
    assert run.clips.tolist() == ["a1", "a2", "b1"]
    assert run.fold.tolist() == [0, 0, 1]
    assert run.labels.tolist() == [0, 1, 1]
    assert run.missing_folds == ["c"]
    assert run.seeds.tolist() == [5, 9]
    # Clips 0 and 2 of fold 0, clip 1 of fold 1; the second seed is 100 higher.
    first = [[0, 2, 1001], [0.25, 2.25, 1001.25]]
    np.testing.assert_array_equal(run.logits[..., 0], [first, np.add(first, 100)])
    np.testing.assert_array_equal(run.train_loss[1], [[100, 101], [1100, 1101]])
    inner = run.inner
    assert inner.clips.tolist() == ["b1", "c1"]
    assert inner.fold.tolist() == [0, 1]
    assert inner.part.tolist() == [0, 0]
    np.testing.assert_array_equal(inner.logits[0, ..., 0], [[11, 1013], [11.25, 1013.25]])
    np.testing.assert_array_equal(
        inner.test_logits[0, 0, ..., 0], [[10, 12, 1011], [10.25, 12.25, 1011.25]]
    )


def test_the_finished_folds_of_an_unfinished_run(make_plan, tmp_path):
    store = Store(tmp_path, make_plan())
    with pytest.raises(UserError, match="no fold of this run is finished, with its inner"):
        store.assemble()
    finish(store, Unit(0, 0, None), Unit(1, 0, None), Unit(1, 0, 0))
    run = store.assemble()
    assert run.folds.tolist() == ["x/b"]
    assert run.fold.tolist() == [0]
    assert run.missing_folds == ["a", "c"]
    np.testing.assert_array_equal(run.logits[0, :, 0, 0], [1001, 1001.25])


def test_a_result_that_does_not_fit_the_plan(make_plan, tmp_path):
    plan = make_plan()
    store = Store(tmp_path, plan)
    unit = Unit(0, 0, None)
    store.write(unit, result(plan, Unit(1, 0, None)))
    assert store.finished() == set()
    with pytest.raises(UserError, match=r"fold-a-seed5\.npz: holds logits of shape \(2, 1, 2\)"):
        store.read(unit)
    (tmp_path / "fold-a-seed5.npz").write_bytes(b"half")
    with pytest.raises(UserError, match=r"fold-a-seed5\.npz: damaged"):
        store.read(unit)


def swapped(folder, plan):
    (folder / "fold-a-seed5.npz").rename(folder / "kept")
    (folder / "fold-a-seed9.npz").rename(folder / "fold-a-seed5.npz")
    (folder / "kept").rename(folder / "fold-a-seed9.npz")


def of_another_fold(folder, plan):
    (folder / "fold-a-seed5.npz").write_bytes((folder / "fold-x%2Fb-seed5.npz").read_bytes())


def of_another_inner_fold(folder, plan):
    (folder / "fold-a-seed5.npz").write_bytes((folder / "fold-a-seed5-inner0.npz").read_bytes())


def of_another_run(folder, plan):
    other = Store(folder.parent / "other", plan(run="other settings"))
    finish(other, Unit(0, 0, None))
    (other.folder / "fold-a-seed5.npz").rename(folder / "fold-a-seed5.npz")


def changed(folder, plan):
    with np.load(folder / "fold-a-seed5.npz") as file:
        content = dict(file)
    content["logits"] = content["logits"] + np.float32(1e-6)
    np.savez(folder / "fold-a-seed5.npz", **content)


def half(folder, plan):
    (folder / "fold-a-seed5.npz").write_bytes(b"half")


def gigantic(folder, plan):
    """Refused before memory is taken."""
    np.savez_compressed(
        folder / "fold-a-seed5.npz", format_version=2, logits=np.zeros((2, 10**6, 2), np.float32)
    )


def without_an_owner(folder, plan):
    """As an earlier version wrote them."""
    found = result(plan(), Unit(0, 0, None))
    arrays = {"logits": found.logits, "train_loss": found.train_loss}
    np.savez(folder / "fold-a-seed5.npz", format_version=np.int32(1), **arrays)


@pytest.mark.parametrize(
    ("spoil", "message", "lost"),
    [
        (swapped, "fold-a-seed5.npz: of another model of this run (fold a, seed 9, inner -1)", 2),
        (of_another_fold, "of another model of this run (fold x/b, seed 5, inner -1)", 1),
        (of_another_inner_fold, "of another model of this run (fold a, seed 5, inner 0)", 1),
        (of_another_run, "fold-a-seed5.npz: of another run, with other settings or data", 1),
        (changed, "fold-a-seed5.npz: damaged, it has changed since it was written", 1),
        (gigantic, "fold-a-seed5.npz: 16,000,008 bytes of arrays, more than the ", 1),
        (half, "fold-a-seed5.npz: damaged, or not a result of a fold", 1),
        (without_an_owner, ": 1 result of another version of htnet_jax", 1),
    ],
)
def test_what_does_not_belong_is_named_and_not_taken(spoil, message, lost, make_plan, tmp_path):
    def plan(**changes):
        return make_plan(seeds=[5, 9], **{"run": "r", **changes})

    store = Store(tmp_path / "unfinished", plan())
    every = {*store.plan.units(inner=False), *store.plan.units(inner=True)}
    finish(store, *every)
    assert store.survey() == (every, [])
    spoil(store.folder, plan)
    found, problems = store.survey()
    assert len(problems) == len(every - found) == lost
    assert message in problems[0]
    assert Unit(0, 0, None) not in found
    assert 0 not in store.finished_folds()
    # Trained again, it takes the place of the foreign file.
    finish(store, *(every - found))
    assert store.survey() == (every, [])


@given(data=st.data())
def test_whatever_is_changed_in_a_result_is_seen(data, tmp_path_factory):
    """No bytes of a file can be changed so that it is read as something else."""
    plan = Plan(**FIELDS)
    store = Store(tmp_path_factory.getbasetemp() / "mutated", plan)
    unit = Unit(0, 0, None)
    finish(store, unit)
    path = store.folder / "fold-a-seed5.npz"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    sound, problems = store.survey()
    if sound:  # the bytes of the archive that say nothing, such as its dates
        assert problems == []
        for one, other in zip(store.read(unit), result(plan, unit), strict=True):
            np.testing.assert_array_equal(one, other)
    else:
        assert len(problems) == 1


def test_a_result_of_no_model_of_the_run_is_named(make_plan, tmp_path):
    store = Store(tmp_path / "unfinished", make_plan())
    (store.folder / "fold-\x1b[2J-seed5.npz").write_bytes(b"")
    assert store.survey() == (
        set(),
        [rf"{store.folder}/fold-\x1b[2J-seed5.npz: of no model of this run"],
    )


@pytest.mark.parametrize("name", ["fold-a-seed5.npz", "fold-zz-seed1.npz", "plan.npz", "state-1"])
def test_links_in_the_folder_are_refused(name, make_plan, tmp_path):
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "unfinished" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=f"{name}: is a link, and no result of this run"):
        Store(tmp_path / "unfinished", make_plan())


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_is_no_file_is_refused(make, make_plan, tmp_path):
    """A folder could not be replaced after all the work."""
    (tmp_path / "unfinished").mkdir()
    make(tmp_path / "unfinished/fold-a-seed5.npz")
    with pytest.raises(UserError, match=r"fold-a-seed5\.npz: is not a file"):
        Store(tmp_path / "unfinished", make_plan())


def test_a_folder_elsewhere_is_refused(make_plan, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "unfinished").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"unfinished: is a link to .*elsewhere"):
        Store(tmp_path / "unfinished", make_plan())
    assert not [*(tmp_path / "elsewhere").iterdir()]
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(UserError, match="disk: is a disk of its own"):
        Store(tmp_path / "disk", make_plan())


def test_a_foreign_plan_is_replaced(make_plan, tmp_path):
    Store(tmp_path, make_plan(run="other"))
    Store(tmp_path, make_plan(run="own"))
    assert Store.open(tmp_path).plan.run == "own"
    (tmp_path / "plan.npz").write_bytes(b"half")
    Store(tmp_path, make_plan(run="own"))
    assert Store.open(tmp_path).plan.same(make_plan(run="own"))


def test_long_names_of_folds(make_plan, tmp_path):
    """A file's name has 255 bytes at most; two that begin alike stay apart."""
    names = ["\u00e9" * 300 + end for end in "ab"]
    store = Store(tmp_path, make_plan(folds=names, protocol_folds=[*names, "c"]))
    finish(store, Unit(0, 0, None), Unit(1, 0, None))
    assert store.survey() == ({Unit(0, 0, None), Unit(1, 0, None)}, [])


def test_a_folder_without_a_plan(tmp_path):
    with pytest.raises(UserError, match=r"plan\.npz: no such file"):
        Store.open(tmp_path / "unfinished")


def test_a_folder_that_cannot_be_made(make_plan, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file: cannot be created \(File exists\)"):
        Store(tmp_path / "file", make_plan())


def test_orders(make_plan):
    """As the release's folders: class by class, then by the files' names, `<subject>_<clip>`."""
    plan = make_plan(
        clips=["casme2/sub02/EP01", "smic/s1/s1_b", "smic/s1/s1_a", "casme2/sub01/EP09"],
        subjects=["sub02", "s1", "s1", "sub01"],
        sources=["casme2", "smic", "smic", "casme2"],
        labels=[1, 0, 0, 1],
    )
    assert ORDERS["release"](plan).tolist() == [2, 1, 3, 0]
    assert ORDERS["file"](plan).tolist() == [0, 1, 2, 3]


def test_descriptions_survive_the_disk_and_join(make_plan, tmp_path):
    """Of each fold's own model alone; the others' files are as without descriptions."""
    plan = make_plan(seeds=[5, 9], sets=Sets(**SETS))
    store = Store(tmp_path / "unfinished", plan)
    for unit in (*plan.units(inner=False), *plan.units(inner=True)):
        found = result(plan, unit)
        if unit.inner is None:
            near = np.flatnonzero(plan.predicted(unit))[:, None] + np.array([[0.25, 0.5]])
            found = found._replace(similarities=(near + 10 * unit.seed).astype(np.float32))
        store.write(unit, found)
    described = Store.open(tmp_path / "unfinished").assemble().described
    first = np.array([[0.25, 0.5], [2.25, 2.5], [1.25, 1.5]])
    np.testing.assert_array_equal(described.similarities, [first, first + 10])
    assert described.sets.tolist() == ["0", "4"]
    assert described.truth.tolist() == [0, -1, 1]
    # Fold "a" trains on b1 and c1, fold "x/b" on a1, a2 and c1.
    assert described.trained.tolist() == [[True, True], [True, False]]
    np.testing.assert_array_equal(described.positives, SETS["positives"])


def test_a_result_without_the_similarities_is_none(make_plan, tmp_path):
    store = Store(tmp_path, make_plan(sets=Sets(**SETS)))
    unit = Unit(0, 0, None)
    finish(store, unit)
    with pytest.raises(UserError, match="missing or unknown arrays: similarities"):
        store.read(unit)
    wrong = np.zeros((2, 3), np.float32)
    store.write(unit, result(store.plan, unit)._replace(similarities=wrong))
    with pytest.raises(
        UserError, match=r"similarities of shape \(2, 3\), the run expects \(2, 2\)"
    ):
        store.read(unit)
