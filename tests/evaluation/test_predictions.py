import errno
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.evaluation.predictions import FORMAT_VERSION, Predictions

FIELDS = {
    "logits": np.float32,
    "epochs": np.int32,
    "fold": np.int32,
    "labels": np.int32,
    "train_loss": np.float32,
}
TEXT_FIELDS = ("folds", "clips", "subjects", "sources", "class_names")


def assert_same(one, other):
    for name in (*FIELDS, *TEXT_FIELDS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


def test_round_trip_keeps_values_and_types(make_run, tmp_path):
    run = make_run(clips=["ä", "b c", "c", "d", "e", "f"])
    run.save(tmp_path / "predictions.npz")
    loaded = Predictions.load(tmp_path / "predictions.npz")
    assert_same(loaded, run)
    for name, dtype in FIELDS.items():
        assert getattr(loaded, name).dtype == dtype
    assert all(getattr(loaded, name).dtype.kind == "U" for name in TEXT_FIELDS)
    assert [file.name for file in tmp_path.iterdir()] == ["predictions.npz"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1, 2, 0, 1]}, r"logits has shape \(3, 6, 3\), expected \(3, 5, 3\)"),
        ({"train_loss": np.ones((3, 2), np.float32)}, r"train_loss has shape \(3, 2\)"),
        ({"labels": [0, 1, 2, 0, 1, 3]}, "clip 'b3': labels is 3, expected 0 to 2"),
        ({"labels": [0.0, 1, 2, 0, 1, 2]}, "labels has type float64, expected int32"),
        ({"fold": [0, 0, 0, 1, 1, 2]}, "clip 'b3': fold is 2, expected 0 to 1"),
        ({"fold": [0] * 6}, "fold 'b' has no test clip"),
        ({"clips": ["x", "b", "c", "d", "e", "x"]}, "clips holds 'x' more than once"),
        ({"folds": ["a", "a"]}, "folds holds 'a' more than once"),
        ({"epochs": [0, 1, 2]}, "epochs must be 1-based and increasing"),
        ({"epochs": [1, 3, 3]}, "epochs must be 1-based and increasing"),
        ({"subjects": [1, 1, 1, 2, 2, 2]}, "subjects has type int64, expected str"),
        ({"epochs": np.zeros(0, np.int32)}, "no recorded epochs"),
        ({"train_loss": np.full((2, 3), np.inf, np.float32)}, "fold 'a', epoch 10.*loss"),
    ],
)
def test_contradictions_are_refused(make_run, changes, message):
    with pytest.raises(UserError, match=message):
        make_run(**changes)


def raw_file(run, path, **changes):
    """Writes a file as `save` would, with arrays replaced, or left out where None."""
    arrays = {name: getattr(run, name) for name in (*FIELDS, *TEXT_FIELDS)}
    arrays |= {"format_version": np.int32(FORMAT_VERSION)} | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


def test_non_finite_logits_name_file_fold_and_epoch(make_run, tmp_path):
    run = make_run()
    logits = run.logits.copy()
    logits[1, 4, 2] = np.nan
    raw_file(run, tmp_path / "p.npz", logits=logits)
    with pytest.raises(UserError, match=r"p\.npz: fold 'b', epoch 20: the logits of clip 'b2'"):
        Predictions.load(tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": None}, "missing or unknown arrays: logits"),
        ({"extra": np.zeros(1)}, "missing or unknown arrays: extra"),
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


def split(run, fold):
    own = run.fold == fold
    return Predictions(
        logits=run.logits[:, own],
        epochs=run.epochs,
        fold=np.zeros(own.sum(), np.int32),
        folds=run.folds[[fold]],
        class_names=run.class_names,
        train_loss=run.train_loss[[fold]],
        **{name: getattr(run, name)[own] for name in ("clips", "subjects", "sources", "labels")},
    )


def test_concatenate_undoes_a_split_into_folds(make_run):
    run = make_run()
    assert_same(Predictions.concatenate([split(run, 0), split(run, 1)]), run)


def test_concatenate_refuses_what_does_not_belong_together(make_run):
    run = make_run()
    other = split(make_run(epochs=[1, 2, 3]), 1)
    with pytest.raises(UserError, match="Part 2 has other epochs than part 1"):
        Predictions.concatenate([split(run, 0), other])
    other = split(make_run(class_names=["x", "y", "z"]), 1)
    with pytest.raises(UserError, match="Part 2 has other class_names"):
        Predictions.concatenate([split(run, 0), other])
    with pytest.raises(UserError, match="folds holds 'a' more than once"):
        Predictions.concatenate([split(run, 0), split(run, 0)])
    with pytest.raises(UserError, match="at least one part"):
        Predictions.concatenate([])
