"""What must never change without being noticed: bits of training, of rendered data, and old files.

`fixtures/old_run` and the hashes below are of commit bad2fb9, before the house was rebuilt.
XLA, NumPy and OpenCV round otherwise on processors with other vector instructions or in other
versions: there the run is compared up to rounding, and the hashes are not compared.
"""

import hashlib
import importlib.metadata
import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict

from htnet_jax.config import default_config
from htnet_jax.datasets import loading
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import experiment, state

OLD_RUN = pathlib.Path(__file__).parent / "fixtures" / "old_run"
VERSIONS = {"jaxlib": "0.10.2", "numpy": "2.4.6", "opencv-contrib-python-headless": "5.0.0.93"}
INSTRUCTIONS = {"avx2", "avx512f", "avx512_vnni", "amx_tile"}
# Data set config -> SHA-256 of its content and of its file of records.
RECORDS = {
    "tiny": (
        "33400a54a3d07f3c407d8330593825a4c290285fdab5dbe68b822bdbdaf11969",
        "ef9056397a4d3f2560067223114059ad36f6e5a0be5cb478b1ae63b19d6990f1",
    ),
    "tiny_frames": (
        "34d0532808d77413af59aab2eaa0afb55de8b6f58d8b3b937838dd0a81c57df9",
        "45cc1049208aaa5566ea1786b5c517ed8af0c6c0af33462e7ecaabd99cb99117",
    ),
}


def is_machine_of_the_goldens():
    try:
        flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    versions = {name: importlib.metadata.version(name) for name in VERSIONS}
    return versions == VERSIONS and {*flags} >= INSTRUCTIONS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def repeated(data_dir, tmp_path_factory):
    """The old run again, by its own config.json."""
    config = default_config()
    old = json.loads((OLD_RUN / "config.json").read_text())
    config.model = ConfigDict(old.pop("model"))
    config.model.block_repeats = tuple(config.model.block_repeats)
    config.update(old)
    config.dataset.data_dir = str(data_dir)
    folder = tmp_path_factory.mktemp("runs") / "again"
    experiment.run(config, folder)
    return folder


def same(found, expected, name):
    if is_machine_of_the_goldens():
        np.testing.assert_array_equal(found, expected, err_msg=name)
    elif expected.dtype.kind == "f":
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4, err_msg=name)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_predictions_of_an_old_run_are_repeated(repeated):
    with np.load(OLD_RUN / "predictions.npz") as old, np.load(repeated / "predictions.npz") as new:
        assert {*old.files} == {*new.files}
        for name in old.files:
            if name != "fingerprint" or is_machine_of_the_goldens():
                same(new[name], old[name], name)
    assert Predictions.load(OLD_RUN / "predictions.npz").logits.shape == (1, 2, 4, 3)


def test_checkpoints_keep_their_trees_and_values(repeated):
    old, new = (
        state.load_fold(folder / "checkpoints" / "a02").variables for folder in (OLD_RUN, repeated)
    )
    flat_old, flat_new = (dict(flat(tree)) for tree in (old, new))
    assert flat_old.keys() == flat_new.keys()
    for path, array in flat_old.items():
        same(flat_new[path], array, path)


def flat(tree, path=""):
    if not isinstance(tree, dict):
        yield path, np.asarray(tree)
        return
    for key, value in tree.items():
        yield from flat(value, f"{path}/{key}")


@pytest.mark.parametrize("config", RECORDS)
def test_rendered_data_keep_their_bytes(config, data_dir):
    if not is_machine_of_the_goldens():
        pytest.skip("rendering and flow round otherwise on this processor or in these versions")
    arrays = loading.load("synthetic", config=config, data_dir=str(data_dir))
    (records,) = data_dir.glob(f"synthetic/{config}/*/*array_record*")
    found = arrays.fingerprint, hashlib.sha256(records.read_bytes()).hexdigest()
    assert found == RECORDS[config]
