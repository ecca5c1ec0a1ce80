"""The command: a whole run, and bad input as one clear message without a traceback."""

import base64
import json
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import tensorstore

import htnet_jax
from htnet_jax.datasets import loading
from htnet_jax.evaluation.predictions import Predictions

ROOT = pathlib.Path(__file__).parents[1]
# One token and one block: the quickest HTNet to compile.
CONFIG = """
from ml_collections import ConfigDict
from htnet_jax.config import default_config

def get_config():
    config = default_config()
    config.epochs = 2
    config.batch_size = 20
    config.learning_rate = 0.01
    config.folds = "a01,g02"
    config.model.patch_size = 28
    config.model.dim = 6
    config.model.num_hierarchies = 1
    config.model.block_repeats = (1,)
    config.dataset.name = "synthetic"
    config.dataset.config = "tiny"
    config.dataset.layout = "upright"
    config.dataset.scaling = "minmax_255"
    return config
"""


@pytest.fixture(scope="module", autouse=True)
def user_folders(tmp_path_factory):
    """Where the data sets and the compiled programs of all commands here go: not to the user's."""
    folder = tmp_path_factory.mktemp("user")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(folder / "data"))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("JAX_PLATFORMS", "cpu")
        # Found in a run's files, they would be a leak.
        for name in ("USER", "LOGNAME"):
            patch.setenv(name, "jane-doe-user")
        yield folder


# On a machine of this name: the real one's may be two letters, which are in every image.
ON_A_HOST = """
import platform, runpy, socket
socket.gethostname = platform.node = lambda: "jane-does-laptop"
runpy.run_module("htnet_jax.train", run_name="__main__", alter_sys=True)
"""


def train(*arguments, how=("-m", "htnet_jax.train")):
    return subprocess.run(
        [sys.executable, *how, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def finished(config_file, user_folders, tmp_path_factory):
    """(what the command said, its folder) of a whole run."""
    folder = tmp_path_factory.mktemp("train") / "run"
    data = f"--config.dataset.data_dir={user_folders / 'data'}"
    logs = "--config.tensorboard", "--config.tensorboard_folds"
    done = train(
        f"--config={config_file}",
        f"--workdir={folder}",
        "--config.seed=3",
        data,
        *logs,
        how=("-c", ON_A_HOST),
    )
    assert done.returncode == 0, done.stderr
    return done, folder


def test_a_whole_run(finished):
    done, folder = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    table = done.stdout.splitlines()
    assert re.fullmatch(r"PARTIAL: 2 of \d folds", table[0])
    assert table[1].split()[0] == "selection"
    (final,) = [line for line in table if line.startswith("final")]
    (oracle,) = [line for line in table if line.startswith("oracle")]
    for line, key in ((final, "final"), (oracle, "oracle")):
        scores = metrics[key]["composite"]
        assert f"{scores['uf1']:.4f} / {scores['uar']:.4f}" in line
    # The numbers of the notes below the table.
    notes = dict(line.split(" ", 1) for line in table if re.match(r"\[\d\] ", line))
    assert notes[re.search(r"\[\d\]", final)[0]] == "last epoch"
    assert "selected on the test subject" in notes[re.search(r"\[\d\]", oracle)[0]]
    assert table[-1] == f"Written to {folder}: predictions.npz, metrics.json, report.html"
    assert metrics["final"]["composite"]["clips"] == 8
    for word in ("epoch=2/2", "loss="):
        assert word in done.stderr
    assert "Traceback" not in done.stderr


def test_overrides_are_recorded(finished):
    settings = json.loads((finished[1] / "config.json").read_text())
    assert settings["seed"] == 3
    assert settings["epochs"] == 2
    private = json.loads((finished[1] / "private.json").read_text())
    assert "--config.seed=3" in private["command"]


def contents(folder):
    """(where, bytes) of whatever is in a folder, also within archives, images and checkpoints."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        yield path, path.name.encode() + data
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.infolist():
                    array = archive.read(member)
                    # NumPy's text has four bytes a character.
                    yield path, member.filename.encode() + array + array.replace(b"\0", b"")
        for embedded in re.findall(rb"base64,([A-Za-z0-9+/=]+)", data):
            yield path, base64.b64decode(embedded)
    for arrays in folder.glob("checkpoints/*/variables"):
        store = tensorstore.KvStore.open({"driver": "ocdbt", "base": f"file://{arrays}/"}).result()
        for key in store.list().result():
            yield arrays, key + store.read(key).result().value


def test_a_run_tells_nothing_of_the_machine(finished, user_folders, config_file):
    """Only the file that says so does."""
    folder = finished[1]
    secrets = [str(folder.parent), str(user_folders), str(config_file.parent), "jane-doe-user"]
    secrets += [str(pathlib.Path.home())] if pathlib.Path.home() != pathlib.Path("/") else []
    secrets += ["jane-does-laptop"] + [socket.gethostname()] * (len(socket.gethostname()) > 8)
    found = list(contents(folder))
    assert len(found) > 50
    leaks = {
        (str(path.relative_to(folder)), secret)
        for path, data in found
        for secret in secrets
        if secret.encode() in data
    }
    assert {name for name, _ in leaks} == {"private.json"}
    assert ("private.json", str(user_folders)) in leaks


def test_its_checkpoint_knows_where_the_data_are_while_it_is_in_its_run(
    finished, user_folders, tmp_path
):
    checkpoint = finished[1] / "checkpoints" / "g02"
    data_dir = htnet_jax.load(checkpoint).config.dataset.data_dir
    assert data_dir == str(user_folders / "data")
    copied = shutil.copytree(checkpoint, tmp_path / "g02")
    assert htnet_jax.load(copied).config.dataset.data_dir == ""


@pytest.mark.usefixtures("finished")
def test_the_compiler_cache_is_in_the_users_cache_folder(user_folders):
    assert any((user_folders / "cache" / "htnet_jax" / "compiled").iterdir())


def test_its_checkpoint_predicts_the_same_here(finished, user_folders):
    """HTNet from the command to `htnet_jax.load`, as a user does it."""
    folder = finished[1]
    module, variables, _ = htnet_jax.load(folder / "checkpoints" / "g02")
    arrays = loading.load("synthetic", config="tiny", data_dir=str(user_folders / "data"))
    inputs = loading.network_inputs(
        arrays, layout="upright", channels=("strain", "v", "u"), scaling="minmax_255"
    )
    logits = module.apply(variables, inputs[arrays.subjects == "g02"], train=False)
    predictions = Predictions.load(folder / "predictions.npz")
    np.testing.assert_allclose(
        logits, predictions.logits[0, -1, predictions.subjects == "g02"], rtol=1e-4, atol=1e-5
    )


def refusal(*arguments):
    """The message of a command that must fail."""
    done = train(*arguments)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(re.findall("^(error:|FATAL)", done.stderr, re.MULTILINE)) == 1
    return done.stderr


def test_a_finished_run_is_not_overwritten(finished, config_file):
    _, folder = finished
    before = (folder / "predictions.npz").stat().st_mtime_ns
    message = refusal(f"--config={config_file}", f"--workdir={folder}", "--config.seed=3")
    assert f"{folder} already holds a finished run; choose another --workdir" in message
    assert (folder / "predictions.npz").stat().st_mtime_ns == before


def test_missing_flags(config_file, tmp_path):
    for arguments in ([], [f"--config={config_file}"], [f"--workdir={tmp_path}"]):
        assert "give --config=FILE and --workdir=DIR" in refusal(*arguments)


@pytest.mark.parametrize(
    ("flags", "messages"),
    [
        (["--config.nonsense=1"], ["nonsense"]),
        (["--config.model.nonsense=1"], ["model.nonsense"]),
        (["--config.epochs=many"], ["config.epochs", "many"]),
        (["--nonsense=1"], ["nonsense"]),
        (["stray"], ["unexpected argument 'stray'"]),
        (["--config.cpu_devices=-1"], ["config.cpu_devices=-1"]),
        (["--config.seed=18446744073709551616"], ["config.seed=18446744073709551616"]),
        (["--config.model.dtype=float7"], ["config.model", "float7"]),
    ],
)
def test_bad_flags(config_file, tmp_path, flags, messages):
    shown = refusal(f"--config={config_file}", f"--workdir={tmp_path / 'run'}", *flags)
    for message in messages:
        assert message in shown
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file"),
        ("def get_config(:\n", "line 1"),
        ("import htnet_nonsense\n", "htnet_nonsense"),
        ("VALUE = 1\n", "get_config"),
        ("def get_config():\n    raise AttributeError('modle')\n", "modle"),
        ("def get_config():\n    return None\n", "get_config"),
    ],
    ids=["none", "syntax", "import", "no function", "raises", "returns none"],
)
def test_config_files_that_cannot_be_loaded(tmp_path, text, message):
    path = tmp_path / "mine.py"
    if text is not None:
        path.write_text(text)
    shown = refusal(f"--config={path}", f"--workdir={tmp_path / 'run'}")
    assert message in shown
    assert str(path) in shown


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("config.sed = 1", "sed"),
        ("config.dataset.nam = ''", "dataset.nam"),
        ("del config.seed", "seed"),
    ],
)
def test_config_files_with_unknown_or_missing_keys(tmp_path, line, message):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.replace("    return", f"    {line}\n    return"))
    assert message in refusal(f"--config={path}", f"--workdir={tmp_path / 'run'}")


def test_a_file_in_the_way_of_the_workdir(config_file, tmp_path):
    (tmp_path / "file").write_text("")
    message = refusal(f"--config={config_file}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert f"workdir {tmp_path / 'file' / 'run'} cannot be created" in message


def test_a_missing_manual_directory(tmp_path):
    message = refusal(
        "--config=configs/megc2019_narrow.py",
        f"--workdir={tmp_path / 'run'}",
        f"--config.dataset.manual_dir={tmp_path / 'nowhere'}",
    )
    assert f"manual directory {tmp_path / 'nowhere'} does not exist" in message
    assert "combined_3_class2_for_optical_flow.csv" in message
