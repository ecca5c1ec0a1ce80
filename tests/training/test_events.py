"""What TensorBoard gets to see: means over folds, single folds on request, no test scores."""

import struct

import numpy as np
import pytest
from sklearn.metrics import f1_score, recall_score

from htnet_jax.training.events import Events
from htnet_jax.training.plan import Plan, Result

SUBJECTS = np.repeat(["a", "b", "c"], 4)
LABELS = np.tile([0, 1, 0, 1], 3).astype(np.int32)


@pytest.fixture
def plan():
    """Three subjects of four clips; each fold has one inner fold, two seeds, two epochs."""
    tested = np.repeat([0, 1, 2], 4)
    validated = np.full((3, 12), -1)
    for fold in range(3):
        validated[fold, tested == (fold + 1) % 3] = 0
    return Plan(
        seeds=[0, 1],
        epochs=[1, 2],
        folds=["a", "b", "c"],
        tested=tested,
        validated=validated,
        refit=True,
        clips=[f"clip{i}" for i in range(12)],
        subjects=SUBJECTS,
        sources=["smic"] * 12,
        labels=LABELS,
        class_names=["n", "p"],
        protocol="loso",
        protocol_folds=["a", "b", "c"],
        dataset="d/1",
        fingerprint="f",
    )


@pytest.fixture
def results(plan):
    draw = np.random.default_rng(0)
    return {
        unit: Result(
            draw.normal(size=(2, plan.predicted(unit).sum(), 2)).astype(np.float32),
            draw.random(2).astype(np.float32),
        )
        for unit in [*plan.units(inner=False), *plan.units(inner=True)]
    }


def curves(folder):
    """Tag -> its values, of the one event file in a folder."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    (path,) = folder.iterdir()
    content, found = path.read_bytes(), {}
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        for value in event.summary.value:
            found.setdefault(value.tag, {})[event.step] = value.simple_value
        content = content[12 + size + 4 :]
    assert all([*steps] == [1, 2] for steps in found.values())
    return {tag: [*steps.values()] for tag, steps in found.items()}


def written(folder, plan, results, **options):
    pytest.importorskip("tensorboardX")
    with Events(folder, plan, **options) as events:
        for unit, result in results.items():
            events.write(unit, result)
        events.write_means(results.__getitem__)
    return curves(folder)


def test_means_over_folds(plan, results, tmp_path):
    found = written(tmp_path, plan, results)
    assert found.keys() == {"mean/train_loss", "mean/validation_uf1", "mean/validation_uar"}
    losses = [results[unit].train_loss for unit in plan.units(inner=False)]
    np.testing.assert_allclose(found["mean/train_loss"], np.mean(losses, axis=0), rtol=1e-6)
    for name, score in (("uf1", f1_score), ("uar", recall_score)):
        expected = np.empty((2, 2))
        for seed in (0, 1):
            for epoch in (0, 1):
                truth, chosen = [], []
                for unit in plan.units(inner=True):
                    if unit.seed == seed:
                        clips = plan.predicted(unit)
                        validates = SUBJECTS[clips] == "bca"[unit.fold]
                        truth += [*LABELS[clips][validates]]
                        chosen += [*results[unit].logits[epoch].argmax(axis=-1)[validates]]
                expected[seed, epoch] = score(truth, chosen, average="macro")
        np.testing.assert_allclose(found[f"mean/validation_{name}"], expected.mean(axis=0))


def test_single_folds_on_request(plan, results, tmp_path):
    found = written(tmp_path, plan, results, singly=True)
    groups = {tag.partition("/")[0] for tag in found}
    assert groups == {"mean", "train_loss", "validation_uf1", "validation_uar"}
    own, inner = next(plan.units(inner=False)), next(plan.units(inner=True))
    np.testing.assert_allclose(found["train_loss/a/seed_0"], results[own].train_loss)
    clips = plan.predicted(inner)
    chosen = results[inner].logits.argmax(axis=-1)[:, SUBJECTS[clips] == "b"]
    np.testing.assert_allclose(
        found["validation_uar/a/inner_fold_1/seed_0"],
        [recall_score(LABELS[SUBJECTS == "b"], one, average="macro") for one in chosen],
    )


def test_nothing_is_written_without_a_folder(plan, results, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Events(None, plan) as events:
        events.write(*next(iter(results.items())))
        events.write_means(results.__getitem__)
    assert not list(tmp_path.iterdir())
