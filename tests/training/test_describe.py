"""Clips are described by the sentences nearest to them: in a run, and from a checkpoint."""

import dataclasses
import functools
import json
import shutil
from unittest import mock

import jax
import numpy as np
import pytest
from fakes.aligned import Aligned
from fakes.linear import Linear
from ml_collections import ConfigDict

import htnet_jax
from htnet_jax import models
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation import retrieval
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.features import make_feed, text
from htnet_jax.training import experiment, hosts
from htnet_jax.training.describe import Sentence, describe, make_describer, positives_in
from htnet_jax.training.plan import make_plan

# Of the four clips of each subject, in units that sheets may hold. 9 is of b02 alone.
UNITS = ["R4B", "12+6", "0", ""] * 3 + ["4", "6+12", "9", "1|2"] + ["4", "6", "0", "none"] * 2


@pytest.fixture(scope="module")
def with_units(arrays):
    """The tiny data set, whose clips have units."""
    return dataclasses.replace(arrays, action_units=np.array(UNITS))


@pytest.fixture(scope="module", autouse=True)
def aligned(with_units):
    with (
        mock.patch.dict(models.MODELS, Aligned=Aligned),
        mock.patch.object(loading, "load", lambda *_, **__: with_units),
    ):
        yield


@pytest.fixture(scope="module")
def make_aligned(make_config):
    def make(**changes):
        config = make_config(epochs=2, batch_size=5, text__kind="multi_hot")
        config.model = ConfigDict({"name": "Aligned", "num_classes": 3, "text_width": 5})
        config.losses = ConfigDict({"cross_entropy": 1.0, "towards_text": 0.1})
        config.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in changes.items()}
        )
        return config

    return make


class Interrupted(Exception):
    pass


@pytest.fixture(scope="module")
def finished(make_aligned, run_quickly, tmp_path_factory):
    """A run that was interrupted after its first fold, and resumed."""

    def save_fold(path, *rest):
        if path.name == "b02":
            raise Interrupted
        original(path, *rest)

    original = experiment.save_fold
    folder = tmp_path_factory.mktemp("described") / "run"
    config = make_aligned(folds="a01, b02", checkpoints="a01, b02")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(experiment, "save_fold", save_fold)
        run_quickly(config, folder)
    assert [path.name for path in (folder / "unfinished").glob("fold-*")] == ["fold-a01-seed0.npz"]
    run_quickly(config, folder)
    return folder


@pytest.fixture(scope="module")
def predictions(finished):
    return Predictions.load(finished / "predictions.npz")


def test_sets_are_those_of_the_data_and_of_each_folds_training_clips(predictions):
    described = predictions.described
    assert described.sets.tolist() == ["0", "1", "4", "6", "6+12", "9"]
    assert described.sentences[0] == "No facial action unit is active."
    units, *_ = retrieval.in_words(predictions)
    assert units[:4].tolist() == ["4", "6+12", "0", ""]
    fold = predictions.folds.tolist().index("b02")
    # 9 and 1 occur in b02's clips alone.
    assert described.trained[fold].tolist() == [True, False, True, True, True, False]
    assert described.trained[0].all()


def expected(path, arrays, described, rows, trained):
    """The similarities of clips, computed from a checkpoint with NumPy."""
    _, variables, config = htnet_jax.load(path)
    params = variables["params"]
    x = loading.network_inputs(
        arrays, layout="upright", channels=("strain", "v", "u"), scaling="minmax_255"
    )
    assert config.dataset.channels == "strain,v,u"
    x = x[rows].reshape(len(rows), -1).astype(np.float64) / 255
    visual = x @ params["visual"]["kernel"] + params["visual"]["bias"]
    texts = retrieval.units_of(described.sets)[1].astype(np.float64)
    texts -= texts[trained].mean(axis=0)
    texts = texts @ params["text"]["kernel"] + params["text"]["bias"]
    return visual @ texts.T


@pytest.mark.parametrize("fold", ["a01", "b02"])
def test_similarities_are_of_the_final_model_and_its_own_centre(
    predictions, finished, arrays, fold
):
    described = predictions.described
    index = predictions.folds.tolist().index(fold)
    rows = np.flatnonzero(arrays.subjects == fold)
    wanted = expected(
        finished / "checkpoints" / fold, arrays, described, rows, described.trained[index]
    )
    found = described.similarities[0, predictions.fold == index]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_describes_clips_as_the_run_did(predictions, finished, with_units, tmp_path):
    rows = with_units.subjects == "b02"
    # Of somebody new the units are not known.
    clips = dataclasses.replace(with_units.of(rows), action_units=None)
    found = describe(finished / "checkpoints/b02", clips, top=2)
    own = predictions.folds[predictions.fold] == "b02"
    described = predictions.described
    order = retrieval.ranking(described.similarities[0], described.trained[predictions.fold])
    for sentences, clip in zip(found, np.flatnonzero(own), strict=True):
        assert len(sentences) == 2
        for sentence, index in zip(sentences, order[clip], strict=False):
            assert sentence == Sentence(
                str(described.sets[index]),
                str(described.sentences[index]),
                pytest.approx(described.similarities[0, clip, index], rel=1e-4, abs=1e-6),
            )
    # A loss of the run reads units: not those of these clips, whatever they are.
    config = json.loads((finished / "checkpoints/b02/config.json").read_text())
    config["losses"]["attribute_contrastive"] = 0.5
    shutil.copytree(finished / "checkpoints/b02", tmp_path / "b02")
    (tmp_path / "b02" / "config.json").write_text(json.dumps(config))
    strange = dataclasses.replace(clips, action_units=np.full(4, "not FACS"))
    assert describe(tmp_path / "b02", strange, top=2) == found
    # Four sets are in the fold's training clips.
    assert [len(one) for one in describe(finished / "checkpoints/b02", clips, top=9)] == [4] * 4


def test_nothing_is_described_without_units_or_a_loss_that_reads_them(
    make_aligned, with_units, arrays
):
    config, model = make_aligned(), Aligned(3, 5)
    few = np.where(with_units.subjects == "a01", with_units.action_units, "")
    for said, clips, weight, network in (
        (True, with_units, 0.1, model),
        (False, with_units, 0.0, model),
        (False, with_units, 0.1, Linear(3, 28)),
        (False, arrays, 0.1, model),
        # The fold of a01 has nothing to choose from.
        (False, dataclasses.replace(with_units, action_units=few), 0.1, model),
    ):
        config.losses = ConfigDict({"cross_entropy": 1.0, "towards_text": weight})
        plan = make_plan(config, clips, clips.labels)
        found = make_describer(network, config, clips, make_feed(clips, config, network), plan)
        assert all(found) if said else found == (None, None)


def test_a_batch_of_more_clips_than_there_are(make_aligned, with_units):
    """Stands for all of them in training; here it must not be filled up with copies."""
    config, model = make_aligned(batch_size=10**12), Aligned(3, 5)
    plan = make_plan(config, with_units, with_units.labels)
    feed = make_feed(with_units, config, model)
    sets, describer = make_describer(model, config, with_units, feed, plan)
    flows = np.zeros((1, *feed.shapes[0]), np.float32)
    variables = model.init(jax.random.key(0), flows, train=False)
    found = describer(variables, np.arange(3), np.ones(len(sets.names), bool))
    assert found.shape == (3, len(sets.names))


def test_what_describe_refuses(finished, with_units, tmp_path):
    path = tmp_path / "a01"
    shutil.copytree(finished / "checkpoints/a01", path)
    points = np.full_like(with_units.landmarks, 6)
    smaller = with_units.flow[:, :12, :12]
    smaller = dataclasses.replace(with_units, flow=smaller, landmarks=points)
    with pytest.raises(UserError, match=r"gives clips of shapes \(\(12, 12, 3\),\), but the net"):
        describe(path, smaller)
    with pytest.raises(ValueError, match="top must be at least 1"):
        describe(path, with_units, top=0)
    original = json.loads((path / "config.json").read_text())
    for changes, message in (
        ({"text_model": "0" * 64}, "was trained with another text model"),
        ({"trained": []}, "config.json: damaged, or not a run's config"),
        ({"trained": ["4", "44"]}, "config.json: damaged, or not a run's config"),
        ({"names": 3}, "config.json: damaged, or not a run's config"),
        ({"names": ["999"], "trained": ["999"]}, "config.json: .*999 is no action unit"),
        ({"text_model": None}, "config.json: damaged, or not a run's config"),
    ):
        content = json.loads(json.dumps(original))
        sets = content["checkpoint"]["sets"] | changes
        content["checkpoint"]["sets"] = {k: v for k, v in sets.items() if v is not None}
        (path / "config.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match=message):
            describe(path, with_units)
    del original["checkpoint"]["sets"]  # as of another network
    (path / "config.json").write_text(json.dumps(original))
    with pytest.raises(UserError, match="not trained on sentences of action units"):
        describe(path, with_units)


def test_positives_by_hand_and_drawn():
    # Sets of 3, 1 and 2 clips, and one that is not known, in batches of 4 of 7.
    rows = np.array([0, 0, 0, 1, 2, 2, -1])
    by_hand = (3 * (1 + 3 * 2 / 6) + 1 * 1 + 2 * (1 + 3 * 1 / 6)) / 6
    assert positives_in(rows, 4) == pytest.approx(by_hand)
    generator = np.random.default_rng(0)
    batches = [generator.permutation(rows)[:4] for _ in range(4000)]
    seen = [(batch == one).sum() for batch in batches for one in batch if one >= 0]
    assert np.mean(seen) == pytest.approx(by_hand, rel=0.02)
    # A batch of all of them; a single clip.
    assert positives_in(rows, 99) == pytest.approx((9 + 1 + 4) / 6)
    assert positives_in(np.array([0]), 4) == 1.0


def test_data_without_units_are_trained_without_the_loss_and_that_is_said(
    make_aligned, run_quickly, with_units, tmp_path, capfd
):
    """As of SMIC: the run has the bits of one whose weight of that loss is 0."""
    nothing = dataclasses.replace(with_units, action_units=None)
    changes = {"folds": "a01", "checkpoints": "none"}
    with mock.patch.object(loading, "load", lambda *_, **__: nothing):
        run_quickly(make_aligned(**changes), tmp_path / "without")
        said = "has no text: training without the loss towards_text"
        assert said in capfd.readouterr().err
        run_quickly(make_aligned(**changes, losses__towards_text=0.0), tmp_path / "weight_0")
        assert "without the loss" not in capfd.readouterr().err
    found, expected = (
        Predictions.load(tmp_path / name / "predictions.npz") for name in ("without", "weight_0")
    )
    np.testing.assert_array_equal(found.logits, expected.logits)
    assert found.described is None


def test_a_run_is_resumed_with_the_same_text_model_only(
    make_aligned, run_quickly, tmp_path, monkeypatch
):
    """Its folder is not public, so its content is what the run remembers."""

    def interrupted(*_):
        raise Interrupted

    config = make_aligned(folds="a01", checkpoints="none")
    monkeypatch.setattr(text, "model_digest", lambda settings: "1" * 64)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(experiment.Store, "write", interrupted)
        run_quickly(config, tmp_path / "run")
    monkeypatch.setattr(text, "model_digest", lambda settings: "2" * 64)
    with pytest.raises(UserError, match=r"another file, or none, for config\.text\.model"):
        run_quickly(config, tmp_path / "run")
    monkeypatch.setattr(text, "model_digest", lambda settings: "1" * 64)
    run_quickly(config, tmp_path / "run")
    assert (tmp_path / "run" / "predictions.npz").is_file()


def test_all_processes_have_the_same_text_model(make_aligned, run_quickly, tmp_path, monkeypatch):
    monkeypatch.setattr(text, "model_digest", lambda settings: "1" * 64)
    for of_leader in ("2" * 64, ""):
        texts = functools.partial(as_process_0, own=f'"text.model": "{"1" * 64}"', other=of_leader)
        monkeypatch.setattr(hosts, "texts", texts)
        with pytest.raises(UserError, match=r"than process 0 in config\.text\.model; give all"):
            run_quickly(make_aligned(), tmp_path / "run")


def as_process_0(content, own, other):
    """What process 0 and this one say, if the text model of process 0 is another one, or none."""
    return [content.replace(own, f'"text.model": "{other}"' if other else ""), content]
