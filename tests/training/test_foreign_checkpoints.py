"""Checkpoints that others wrote: of another fold or run, of absurd sizes, damaged, or of pipes."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import htnet_jax
from htnet_jax import models
from htnet_jax.config import split_private
from htnet_jax.errors import UserError
from htnet_jax.training import state, workdir

OLD_RUN = pathlib.Path(__file__).parents[1] / "fixtures" / "old_run"


@pytest.fixture(scope="module")
def run(make_config, run_quickly, tmp_path_factory):
    """The folder of a run of two folds with two seeds."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_quickly(make_config(folds="a01,a02", epochs=1, seeds=2), folder)
    return folder


@pytest.fixture
def copied(run, tmp_path):
    return shutil.copytree(run, tmp_path / "copied")


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """A copy of an old HTNet's checkpoint, to be spoilt."""
    return shutil.copytree(OLD_RUN, tmp_path_factory.mktemp("old") / "run") / "checkpoints" / "a02"


def refusal(path):
    with pytest.raises(UserError) as caught:
        htnet_jax.load(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@contextlib.contextmanager
def changed(path, content):
    """Another content for a while."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def replaced(copied, source, target):
    shutil.rmtree(copied / "checkpoints" / target)
    return shutil.copytree(source, copied / "checkpoints" / target)


# --- whose it is ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("source", "target"), [("a01", "a02"), ("a02", "a02.seed1")])
def test_a_checkpoint_copied_over_anothers(copied, source, target):
    path = replaced(copied, copied / "checkpoints" / source, target)
    assert f"holds the checkpoint of {source}, copied over this one" in refusal(path)


def test_a_checkpoint_of_another_run(copied):
    record = copied / "environment.json"
    content = json.loads(record.read_text())
    path = copied / "checkpoints" / "a02"
    assert htnet_jax.load(path).config.checkpoint.run == content["run"]
    record.write_text(json.dumps({**content, "run": "0" * 64}))
    assert "holds a checkpoint of another run" in refusal(path)
    record.write_text("{}")  # of an older version
    htnet_jax.load(path)


def test_moved_runs_and_checkpoints_elsewhere_load(copied, tmp_path):
    moved = copied.rename(tmp_path / "moved")
    for name in ("a01", "a01.seed1", "a02", "a02.seed1"):
        about = htnet_jax.load(moved / "checkpoints" / name).config.checkpoint
        assert (about.name, about.fold) == (name, name.partition(".")[0])
    model = shutil.copytree(moved / "checkpoints" / "a02", tmp_path / "my model")
    assert htnet_jax.load(model).config.checkpoint.fold == "a02"


def test_a_checkpoint_alone_names_its_classes(run):
    about = htnet_jax.load(run / "checkpoints" / "a01").config.checkpoint
    assert list(about.class_names) == ["negative", "positive", "surprise"]
    assert (about.labels, about.dataset[:9]) == ("megc3", "synthetic")


def test_an_old_checkpoint_has_no_name(old):
    assert "checkpoint" not in htnet_jax.load(old).config


# --- sizes ----------------------------------------------------------------------------------------

ABSURD = (-1, 0.5, 28.0, float("nan"), float("inf"), 1e30, 2**31, 2**63, 10**9, 10**400)
WRONG = (True, None, "28", [28], {"a": 1}, [[1]])


@pytest.mark.parametrize("value", [*ABSURD, *WRONG], ids=lambda value: str(value)[:9])
@pytest.mark.parametrize("key", ["num_classes", "image_size", "dim", "heads", "num_hierarchies"])
def test_sizes_are_checked_before_anything_is_built(key, value):
    start = time.process_time()
    with pytest.raises(UserError, match=f"config.model: {key}="):
        state.build_module({"name": "HTNet", key: value})
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    "value", [3, [10**9] * 3, [1, 1, 100_000], [2, 2, 1.5], [1, None, 1], ["1"] * 3, [[1]] * 3]
)
def test_repeats_are_checked_before_anything_is_built(value):
    with pytest.raises(UserError, match=r"config.model: block_repeats="):
        state.build_module({"name": "HTNet", "block_repeats": value})


@pytest.mark.parametrize("dtype", ["int32", "float8", "", None, 3, [1], {"a": 1}, "float32" * 99])
def test_types_that_no_network_computes_in(dtype):
    with pytest.raises(UserError, match=r"config.model: dtype=.* must be a floating-point type"):
        state.build_module({"name": "MMNet", "dtype": dtype})


@pytest.mark.parametrize("name", ["HTNet", "MMNet"])
def test_every_size_has_a_range(name):
    """Each default lies within, and what lies outside is refused."""
    network = models.MODELS[name]
    names = {field.name for field in dataclasses.fields(network)} - {"parent", "name", "dtype"}
    assert {*network.SIZES} == names
    for key, allowed in network.SIZES.items():
        for value in (allowed.least - 1, allowed.most + 1, "3", None, float("nan"), True):
            given = [value] * 4 if allowed.several else value
            with pytest.raises(UserError, match=f"config.model: {key}="):
                state.build_module({"name": name, key: given})


@pytest.mark.parametrize("name", [["HTNet"], {}, 3, None, "NONE"])
def test_names_that_are_none(name):
    with pytest.raises(UserError, match=r"config.model.name=.* is unknown"):
        state.build_module({"name": name})


def test_a_network_has_no_parent():
    with pytest.raises(UserError, match="parent is Flax's own"):
        state.build_module({"name": "HTNet", "parent": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [("dim", 4000), ("dim", 10**8), ("mlp_mult", 60), ("image_size", 28.0), ("heads", "2")],
)
def test_a_config_that_does_not_fit_its_arrays(old, key, value):
    """In an instant, and before the arrays are read."""
    settings = json.loads((old / "config.json").read_text())
    settings["model"][key] = value
    start = time.process_time()
    with changed(old / "config.json", json.dumps(settings).encode()):
        refusal(old)
    assert time.process_time() - start < 5


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"model": ' * 50_000,
        '{"model": {"name": 3}, "dataset": {"channels": 3}}',
        '{"model": {"name": "HTNet"}, "dataset": {"channels": []}}',
        '{"model": {"name": "HTNet"}, "dataset": "u"}',
        '{"model": {"name": "HTNet", "dim": ' + "9" * 5000 + '}, "dataset": {"channels": "u"}}',
        "\ud800",
    ],
    ids=lambda text: text[:20],
)
def test_configs_that_are_none(old, text):
    with changed(old / "config.json", text.encode("utf-8", "surrogatepass")):
        assert str(old / "config.json") in refusal(old)


@pytest.mark.parametrize("where", ["config.json", "manifest.json", "variables/d/pipe"])
def test_pipes_are_not_waited_for(tmp_path, where):
    fold = shutil.copytree(OLD_RUN / "checkpoints" / "a02", tmp_path / "a02")
    (fold / where).unlink(missing_ok=True)
    os.mkfifo(fold / where)
    assert "a pipe, socket or device" in refusal(fold)


def test_a_config_that_cannot_be_read(tmp_path, monkeypatch):
    fold = shutil.copytree(OLD_RUN / "checkpoints" / "a02", tmp_path / "a02")
    original = os.open

    def denied(path, *rest, **more):
        # Root reads everything, so rights alone would not show it.
        if str(path).endswith("config.json"):
            raise PermissionError(13, "Permission denied")
        return original(path, *rest, **more)

    monkeypatch.setattr(os, "open", denied)
    assert "config.json: cannot be read (Permission denied)" in refusal(fold)


def loads_or_is_refused(path):
    try:
        htnet_jax.load(path)
    except UserError as error:
        assert str(path) in str(error)


@settings(max_examples=30, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
def test_mutated_bytes(old, name, data):
    content = bytearray((old / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with changed(old / name, content):
        loads_or_is_refused(old)


MUTATE = """
import hashlib, json, pathlib, random, sys
import htnet_jax
from htnet_jax.errors import UserError

fold, rng = pathlib.Path(sys.argv[1]), random.Random(0)
files = [path for path in sorted((fold / "variables").rglob("*")) if path.is_file()]
manifest, before = fold / "manifest.json", (fold / "manifest.json").read_bytes()
refused = 0
for path in rng.choices([path for path in files if path.stat().st_size], k=20):
    whole = path.read_bytes()
    content = bytearray(whole)
    content[rng.randrange(len(content))] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    facts = json.loads(before)
    facts["files"][path.relative_to(fold).as_posix()] = hashlib.sha256(content).hexdigest()
    manifest.write_text(json.dumps(facts))
    try:
        htnet_jax.load(fold)
    except UserError as error:
        assert str(fold) in str(error), error
        refused += 1
    path.write_bytes(whole)
    manifest.write_bytes(before)
assert refused
htnet_jax.load(fold)
print("done")
"""


def test_mutated_arrays_with_a_manifest_of_their_own(tmp_path):
    """Whoever changes the arrays can write their hashes, too."""
    fold = shutil.copytree(OLD_RUN / "checkpoints" / "a02", tmp_path / "a02")
    # A process of its own: on damage, tensorstore's threads still complain when Orbax has left.
    command = [sys.executable, "-c", MUTATE, str(fold)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "done\n", done.stderr


def test_names_that_tensorstore_cannot_open(tmp_path):
    """Not UTF-8; or in a locale that Python takes for ASCII, where all other names look like it."""
    folder = tmp_path / os.fsdecode(b"l\xc3u")
    for use in (workdir.create, htnet_jax.load, lambda path: state.save_fold(path, {}, {})):
        with pytest.raises(UserError, match=r"its name is not UTF-8 text; .* set PYTHONUTF8=1"):
            use(folder)
    assert not list(tmp_path.iterdir())


def test_arrays_out_of_nothing(tmp_path):
    """A few bytes that claim gigabytes."""
    (tmp_path / "file").write_bytes(b"x" * 1000)
    claimed = {"a": np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (10**8, 10), (0, 0))}
    with pytest.raises(ValueError, match="1,000 bytes of files for arrays of 4,000,000,000 bytes"):
        state._check_memory(tmp_path, claimed)
    claimed["a"] = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (10**8, 100), (0, 0))
    with pytest.raises(ValueError, match="more than the"):
        state._check_memory(tmp_path, claimed)


def test_private_settings_are_taken_out():
    settings = {"coordinator": "host:1", "dataset": {"data_dir": "/home/me", "name": "samm"}}
    public, private = split_private(settings)
    assert public == {"coordinator": "", "dataset": {"data_dir": "", "name": "samm"}}
    assert private == {"coordinator": "host:1", "dataset.data_dir": "/home/me"}
    assert settings["coordinator"] == "host:1"
    for odd in ({}, {"dataset": 3}, {"dataset": None}):
        assert split_private(odd) == (odd, {})
