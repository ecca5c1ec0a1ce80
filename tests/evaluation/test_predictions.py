import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax import foreign
from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import FORMAT_VERSION, Predictions

FIELDS = {
    "logits": np.float32,
    "seeds": np.int64,
    "epochs": np.int32,
    "fold": np.int32,
    "labels": np.int32,
    "train_loss": np.float32,
}
TEXT_FIELDS = (
    *("folds", "clips", "subjects", "sources", "class_names"),
    *("protocol", "protocol_folds", "dataset", "fingerprint"),
)
INNER_FIELDS = (
    *("logits", "test_logits", "fold", "part", "clips", "subjects", "sources", "labels", "refit"),
)
DESCRIBED_FIELDS = ("similarities", "sets", "sentences", "truth", "trained", "positives")


def assert_same(one, other):
    for name in (*FIELDS, *TEXT_FIELDS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    assert (one.inner is None) == (other.inner is None)
    assert (one.described is None) == (other.described is None)
    for block, names in (("inner", INNER_FIELDS), ("described", DESCRIBED_FIELDS)):
        for name in names if getattr(one, block) else ():
            ours, theirs = (getattr(getattr(run, block), name) for run in (one, other))
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


@pytest.mark.parametrize("with_inner", [False, True])
@pytest.mark.parametrize("with_described", [False, True])
def test_round_trip_keeps_values_and_types(
    make_run, make_inner, make_described, tmp_path, with_inner, with_described
):
    inner = make_inner() if with_inner else None
    described = make_described() if with_described else None
    run = make_run(clips=["ä", "b c", "c", "d", "e", "f"], inner=inner, described=described)
    run.save(tmp_path / "predictions.npz")
    loaded = Predictions.load(tmp_path / "predictions.npz")
    assert_same(loaded, run)
    for name, dtype in FIELDS.items():
        assert getattr(loaded, name).dtype == dtype
    assert all(getattr(loaded, name).dtype.kind == "U" for name in TEXT_FIELDS)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]


def test_missing_folds_keep_the_protocols_order(make_run):
    assert make_run().missing_folds == []
    run = make_run(protocol_folds=["z", "b", "c", "a"])
    assert run.missing_folds == ["z", "c"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 0, 1]}, r"logits has shape \(1, 3, 6, 3\), expected \(1, 3, 5, 3\)"),
        ({"seeds": [1, 2]}, r"logits has shape \(1, 3, 6, 3\), expected \(2, 3, 6, 3\) \(seeds"),
        ({"train_loss": np.ones((1, 3, 2), np.float32)}, r"train_loss has shape \(1, 3, 2\)"),
        ({"labels": [0, 1, 2, 0, 1, 3]}, "clip 'b3': labels is 3, expected 0 to 2"),
        ({"labels": [0.0, 1, 2, 0, 1, 2]}, "labels has type float64, expected int32"),
        ({"fold": [0, 0, 0, 1, 1, 2]}, "clip 'b3': fold is 2, expected 0 to 1"),
        ({"fold": [0] * 6}, "fold 'b' has no test clip"),
        ({"clips": ["x", "b", "c", "d", "e", "x"]}, "clips holds 'x' more than once"),
        ({"folds": ["a", "a"]}, "folds holds 'a' more than once"),
        ({"epochs": [0, 1, 2]}, "epochs must be 1-based and increasing"),
        ({"epochs": [1, 3, 3]}, "epochs must be 1-based and increasing"),
        ({"subjects": [1, 1, 1, 2, 2, 2]}, "subjects has type int64, expected str"),
        (
            {
                "epochs": np.zeros(0, np.int32),
                "logits": np.zeros((1, 0, 6, 3), np.float32),
                "train_loss": np.zeros((1, 2, 0), np.float32),
            },
            "the predictions hold no recorded epochs",
        ),
        ({"protocol_folds": ["a", "c"]}, "fold 'b' is not one of the protocol's folds"),
        ({"protocol": ["loso"]}, r"protocol has shape \(1,\), expected \(\)"),
        (
            {"subjects": ["b", "a", "a", "b", "b", "b"], "sources": ["s"] * 6},
            "b: is tested in fold",
        ),
        (
            {"train_loss": np.full((1, 2, 3), np.inf, np.float32)},
            "fold 'a', seed 7, epoch 10: the training loss is not finite",
        ),
    ],
)
def test_contradictions_are_refused(make_run, changes, message):
    with pytest.raises(UserError, match=message):
        make_run(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 0, 1]}, r"inner_logits has shape \(1, 3, 6, 3\), expected \(1, 3, 5"),
        ({"part": [0, 0, 0, 0, 0, 1]}, "clip 'a3': inner_part is 1, expected 0 to 0"),
        ({"clips": ["b1", "b1", "b3", "a1", "a2", "a3"]}, "a clip validates twice in one inner"),
        (
            {"fold": [0] * 6, "subjects": ["b"] * 6, "sources": ["samm"] * 6},
            "fold 'b': inner fold 0",
        ),
        (
            {"subjects": ["a", "b", "b", "a", "a", "a"], "sources": ["smic"] * 6},
            "fold 'a': subject 'a' validates and is tested",
        ),
        ({"refit": 1}, "inner_refit has type int64, expected bool"),
        (
            {"test_logits": np.full((1, 1, 3, 6, 3), np.nan, np.float32)},
            "fold 'a', seed 7, epoch 10: the logits of inner fold 0 of clip 'a1' are not finite",
        ),
        (
            {"logits": np.full((1, 3, 6, 3), np.inf, np.float32)},
            "fold 'a', seed 7, epoch 10: the validation logits of clip 'b1' are not finite",
        ),
    ],
)
def test_contradictions_of_the_inner_folds_are_refused(make_run, make_inner, changes, message):
    with pytest.raises(UserError, match=message):
        make_run(inner=make_inner(**changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"truth": [0, 1, 2, 3, 4, -1]}, "clip 'b2': described_truth is 4, expected 0 to 3"),
        ({"truth": [0, 1, 2, 3, -2, -1]}, "clip 'b2': described_truth is -2"),
        ({"truth": [0, 1]}, r"described_truth has shape \(2,\), expected \(6,\) \(clips\)"),
        ({"sets": ["0", "4", "4", "12"]}, "described_sets holds a set twice"),
        ({"sets": ["0", "4", "4,7", "12"]}, "described_sets holds '4,7', which is no set"),
        ({"sets": ["0", "4", "4+100", "12"]}, "described_sets holds '4.100', which is no set"),
        ({"trained": np.eye(2, 4, -1, bool)}, "fold 'a': no set of units is in its training"),
        ({"positives": np.array([0.5, 2], np.float32)}, "described_positives holds a number below"),
        (
            {"similarities": np.full((1, 6, 4), np.nan, np.float32)},
            "fold 'a', seed 7: the similarities of clip 'a1' are not finite",
        ),
    ],
)
def test_contradictions_of_the_descriptions_are_refused(make_run, make_described, changes, message):
    with pytest.raises(UserError, match=message):
        make_run(described=make_described(**changes))


def test_some_clips_alone_keep_their_descriptions(make_run, make_described):
    some = make_run(described=make_described()).of_clips(["b1", "b3"])
    np.testing.assert_array_equal(some.described.truth, [0, -1])
    np.testing.assert_array_equal(some.described.positives, [2.5])
    np.testing.assert_array_equal(some.described.trained, [[True, False, True, True]])
    expected = make_described().similarities[:, [3, 5]]
    np.testing.assert_array_equal(some.described.similarities, expected)


def raw_file(run, path, **changes):
    """Writes a file as `save` would, with arrays replaced, or left out where None."""
    arrays = {name: getattr(run, name) for name in (*FIELDS, *TEXT_FIELDS)}
    arrays |= {"format_version": np.int32(FORMAT_VERSION)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_non_finite_logits_name_file_fold_and_epoch(make_run, tmp_path):
    run = make_run()
    logits = run.logits.copy()
    logits[0, 1, 4, 2] = np.nan
    raw_file(run, tmp_path / "p.npz", logits=logits)
    with pytest.raises(
        UserError, match=r"p\.npz: fold 'b', seed 7, epoch 20: the logits of clip 'b2'"
    ):
        Predictions.load(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": None}, "missing or unknown arrays: logits"),
        ({"extra": np.zeros(1)}, "missing or unknown arrays: extra"),
        ({"described_truth": np.zeros(6, int)}, "missing or unknown arrays: described_positives"),
        ({"format_version": None}, "not a predictions file"),
        ({"format_version": np.int32(FORMAT_VERSION + 1)}, f"version {FORMAT_VERSION + 1}"),
        ({"labels": np.zeros(5, np.int32)}, "logits has shape"),
        ({"clips": np.array([{}] * 6)}, "damaged, or not a predictions file"),
    ],
)
def test_wrong_content_names_the_file(make_run, tmp_path, changes, message):
    raw_file(make_run(), tmp_path / "p.npz", **changes)
    with pytest.raises(UserError, match=rf"p\.npz: .*{message}"):
        Predictions.load(tmp_path / "p.npz")


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.npz: no such file"):
        Predictions.load(tmp_path / "nowhere.npz")


def test_a_file_that_is_no_archive(tmp_path):
    (tmp_path / "p.npz").write_text("hello")
    with pytest.raises(UserError, match="damaged, or not a predictions file"):
        Predictions.load(tmp_path / "p.npz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_file(make_run, tmp_path, share):
    path = tmp_path / "p.npz"
    make_run().save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"p\.npz: damaged"):
        Predictions.load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(make_run, tmp_path, share, flip):
    path = tmp_path / "p.npz"
    run = make_run()
    run.save(path)
    content = bytearray(path.read_bytes())
    content[int(share * len(content))] ^= flip
    path.write_bytes(content)
    try:
        loaded = Predictions.load(path)
    except UserError as error:
        assert "p.npz" in str(error)
    else:
        assert_same(loaded, run)


def test_disk_full_keeps_the_old_file(make_run, tmp_path, monkeypatch):
    path = tmp_path / "predictions.npz"
    make_run().save(path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"predictions\.npz: cannot be written \(No space left"):
        make_run(epochs=[1, 2, 3]).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]


def test_saving_into_a_missing_folder(make_run, tmp_path):
    with pytest.raises(UserError, match="cannot be written"):
        make_run().save(tmp_path / "missing" / "predictions.npz")


@pytest.mark.parametrize(
    "name", ["logits", "clips", "train_loss", "fold", "inner_logits", "described_similarities"]
)
def test_shapes_and_types_are_checked_before_anything_is_read(
    make_run, make_inner, make_described, tmp_path, monkeypatch, name
):
    path = tmp_path / "p.npz"
    make_run(inner=make_inner(), described=make_described()).save(path)
    with np.load(path) as archive:
        arrays = dict(archive)
    monkeypatch.setattr(foreign, "read_array", lambda *_: pytest.fail("read"))
    wrong = {"[0-9]+": arrays[name].repeat(2, axis=-1), "type": arrays[name].astype("S9")}
    for word, array in wrong.items():
        np.savez(path, **(arrays | {name: array}))
        with pytest.raises(UserError, match=rf"p\.npz: {name} has .*{word}"):
            Predictions.load(path)
