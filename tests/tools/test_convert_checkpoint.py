import json
import re
import subprocess
import sys
from pathlib import Path

import flax
import jax
import numpy as np
import pytest
import safetensors.torch
import torch
from ml_collections import ConfigDict

import htnet_jax
from htnet_jax.config import default_config
from htnet_jax.models import HTNet, MMNet
from htnet_jax.torch_bridge import BRIDGES, convert, files, htnet, parity
from htnet_jax.training.state import build_module, fold_folder, save_fold

TOOL = Path(__file__).parents[2] / "tools" / "convert_checkpoint.py"


def flat(tree):
    return flax.traverse_util.flatten_dict(tree, sep="/")


def small_config(**attributes):
    config = default_config()
    config.model.update({"dim": 6, "block_repeats": (1, 0, 1), **attributes})
    return config


def write_run(workdir, config, folds=("s01",)):
    """A run folder; returns the parameters, which hold any bits (but no NaN)."""
    expected = convert.expected_variables(build_module(config.model), 3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype("f4"), expected)["params"]
    params["head"]["bias"][:2] = [-0.0, 1e-45]
    for fold in folds:
        save_fold(fold_folder(workdir, fold), {"params": params}, json.loads(config.to_json()))
    return params


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """`(workdir, params)` of a run with settings unlike the defaults, but the release's heads."""
    config = small_config(num_classes=5, mlp_mult=2, dropout=0.1)
    config.seed = 42
    config.dataset.scaling = "minmax_255"
    workdir = tmp_path_factory.mktemp("run")
    return workdir, write_run(workdir, config, ("s01", "s02"))


@pytest.fixture(scope="module")
def two_heads(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("two_heads")
    return workdir, write_run(workdir, small_config(dim=8, heads=2))


def to_torch(workdir, output, fold="s01"):
    return "to-torch", f"--workdir={workdir}", f"--fold={fold}", f"--output={output}"


def from_torch(file, output, *more):
    return "from-torch", f"--input={file}", f"--output={output}", *more


def assert_same_params(folder, params):
    found = flat(htnet_jax.load(folder).variables["params"])
    assert found.keys() == flat(params).keys()
    for path, array in flat(params).items():
        assert found[path].dtype == np.float32
        np.testing.assert_array_equal(found[path].view("u4"), array.view("u4"), err_msg=path)


def assert_nothing_written(tmp_path, *there):
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(there)


def config_file(folder, **attributes):
    path = folder / "config.py"
    path.write_text(
        "from htnet_jax.config import default_config\n\n"
        "def get_config():\n"
        "    config = default_config()\n"
        f"    config.model.update({attributes!r})\n"
        "    config.seed = 7\n"
        "    return config\n"
    )
    return path


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".pt"])
def test_there_and_back(tmp_path, run_folder, accepts, ending):
    workdir, params = run_folder
    file, folder = tmp_path / "new" / f"w{ending}", tmp_path / "model"
    count = sum(array.size for array in flat(params).values())
    shown = accepts(*to_torch(workdir, file))
    assert f"Written: {file} ({len(flat(params))} arrays, {count:,} values)" in shown
    assert "input: (B, 3, 28, 28), channels strain,v,u" in shown
    assert "scaling minmax_255" in shown
    assert ("a .pth file holds no settings" in shown) == (ending != ".safetensors")

    shown = accepts(*from_torch(file, folder))
    assert f"Written: {folder}" in shown
    assert_same_params(folder, params)
    module, _, config = htnet_jax.load(folder)
    original = htnet_jax.load(fold_folder(workdir, "s01"))
    assert config.converted_from == f"w{ending}"
    if ending == ".safetensors":
        assert module == original.module
        kept = json.loads(config.to_json())
        del kept["converted_from"]
        assert kept == {**json.loads(original.config.to_json()), "checkpoint": {"name": "model"}}
        assert "assumed" not in shown
    else:
        # Dropout leaves no trace in the weights.
        assert module == original.module.clone(dropout=0.0)
        assert config.seed == 0
        assert "heads=3 is assumed" in shown
        assert "--heads=N" in shown
        assert "assumed, as in the release: --config or --workdir says otherwise" in shown
    assert_nothing_written(tmp_path, "new", "model")


def test_file_for_pytorch_loads_into_the_network(tmp_path, run_folder, accepts):
    workdir, params = run_folder
    file = tmp_path / "w.pth"
    accepts(*to_torch(workdir, file, fold="s02"))
    module = htnet_jax.load(fold_folder(workdir, "s02")).module
    htnet.build(module).load_state_dict(torch.load(file, weights_only=True), strict=True)
    bias = torch.load(file, weights_only=True)["mlp_head.2.bias"].numpy()
    np.testing.assert_array_equal(bias.view("u4"), params["head"]["bias"].view("u4"))


def test_metadata_says_where_a_file_comes_from(tmp_path, run_folder, accepts):
    workdir, _ = run_folder
    file = tmp_path / "w.safetensors"
    accepts(*to_torch(workdir, file, fold="s02"))
    metadata = files.read(file).metadata
    assert metadata["htnet_jax.fold"] == "s02"
    assert metadata["format"] == "pt"
    assert json.loads(metadata["htnet_jax.config"])["seed"] == 42


def test_heads_come_with_a_safetensors_file(tmp_path, two_heads, accepts):
    workdir, params = two_heads
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    accepts(*to_torch(workdir, file))
    shown = accepts(*from_torch(file, folder))
    assert "heads=2" in shown
    assert "assumed" not in shown
    assert_same_params(folder, params)
    assert htnet_jax.load(folder).module.heads == 2


def test_heads_must_be_given_for_a_pth_file(tmp_path, two_heads, accepts, refuses):
    workdir, params = two_heads
    file, folder = tmp_path / "w.pth", tmp_path / "model"
    accepts(*to_torch(workdir, file))
    message = refuses(*from_torch(file, folder))
    assert str(file) in message
    assert "heads=3 is impossible with dim=8; possible: 1, 2, 4, 8" in message
    assert "--heads" in message
    assert_nothing_written(tmp_path, "w.pth")
    shown = accepts(*from_torch(file, folder, "--heads=2"))
    assert "heads=2 is assumed" not in shown
    assert_same_params(folder, params)
    assert htnet_jax.load(folder).module.heads == 2


def test_heads_flag_goes_before_the_file(tmp_path, two_heads, accepts):
    workdir, _ = two_heads
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    accepts(*to_torch(workdir, file))
    accepts(*from_torch(file, folder, "--heads=4"))
    assert htnet_jax.load(folder).module.heads == 4


def test_settings_come_from_a_config(tmp_path, run_folder, accepts):
    workdir, params = run_folder
    file, folder = tmp_path / "w.pth", tmp_path / "model"
    accepts(*to_torch(workdir, file))
    sizes = {"num_classes": 5, "dim": 6, "block_repeats": (1, 0, 1), "mlp_mult": 2}
    config = config_file(tmp_path, **sizes, dropout=0.3)
    shown = accepts(*from_torch(file, folder, f"--config={config}"))
    assert "assumed" not in shown
    assert_same_params(folder, params)
    assert htnet_jax.load(folder).config.seed == 7
    assert htnet_jax.load(folder).module.dropout == 0.3


def test_network_of_frames_is_known_by_its_names(tmp_path, accepts, refuses):
    """What its release never reads is named and left out."""
    module = MMNet(image_size=32, stem=3, widths=(4, 4, 4, 4), depth=1, heads=4, mlp_mult=1)
    bridge = BRIDGES["MMNet"]
    variables = parity.random_variables(module, bridge, 3, 0)
    state_dict = convert.to_state_dict(variables, bridge.table, bridge.recreate)
    torch.save(state_dict, tmp_path / "frames.pth")
    shown = accepts(*from_torch(tmp_path / "frames.pth", tmp_path / "out"))
    assert "the network never reads them: timeembed (1, 4, 111, 111)" in shown
    assert "17 x num_batches_tracked" in shown
    assert "widths=(4, 4, 4, 4), depth=1" in shown
    assert "heads=4 is assumed" in shown
    assert "drop_path=0.0 is assumed (the release's, if one has these sizes; else" in shown
    assert "input: (B, 3, 32, 32), (B, 3, 32, 32)" in shown
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    assert settings["model"]["name"] == "MMNet"
    assert settings["model"]["image_size"] == 32
    message = refuses(*from_torch(tmp_path / "frames.pth", tmp_path / "other", "--with_unused"))
    assert "from-torch does not take --with_unused" in message


@pytest.mark.parametrize(("suffix", "unused"), [(".safetensors", ()), (".pth", ("--with_unused",))])
def test_a_run_of_mmnet_comes_back_with_its_statistics(tmp_path, accepts, suffix, unused):
    """The settings of the run replace those of the default network, they do not join them."""
    config = default_config()
    config.inputs = "onset,apex"
    sizes = {"image_size": 32, "stem": 3, "widths": (4, 4, 4, 4), "depth": 1, "heads": 2}
    config.model = ConfigDict({"name": "MMNet", "num_classes": 3, **sizes})
    module = build_module(config.model)
    variables = parity.random_variables(module, BRIDGES["MMNet"], 3, 0)
    workdir, file = tmp_path / "run", tmp_path / f"a{suffix}"
    save_fold(fold_folder(workdir, "a01"), variables, json.loads(config.to_json()))
    (workdir / "config.json").write_text(config.to_json())
    accepts(*to_torch(workdir, file, "a01"), *unused)
    more = [] if suffix == ".safetensors" else [f"--workdir={workdir}"]
    accepts(*from_torch(file, tmp_path / "back", *more))
    loaded = htnet_jax.load(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    assert set(loaded.variables) == {"params", "batch_stats"}
    assert (loaded.module, loaded.config.inputs) == (module, "onset,apex")


def test_a_run_of_the_attribute_network_comes_back(tmp_path, accepts):
    """By its names alone, but for what shapes do not tell."""
    config = default_config()
    sizes = {"width": 2, "depth": 10, "features": 4, "projection": 3, "text_width": 6}
    clips = {"frames": 4, "image_size": 16}
    config.model = ConfigDict({"name": "AttributeNet", "num_classes": 3, **sizes, **clips})
    module = build_module(config.model)
    variables = parity.random_variables(module, BRIDGES["AttributeNet"], 3, 0)
    workdir, file = tmp_path / "run", tmp_path / "a.pth"
    save_fold(fold_folder(workdir, "a01"), variables, json.loads(config.to_json()))
    (workdir / "config.json").write_text(config.to_json())
    accepts(*to_torch(workdir, file, "a01"))
    shown = accepts(*from_torch(file, tmp_path / "back"))
    assert "input: (B, 3, 16, 112, 112), (B, 2, 16, 112, 112)" in shown
    assert "frames=16 is assumed" in shown
    loaded = htnet_jax.load(tmp_path / "back")
    assert loaded.module == module.clone(frames=16, image_size=112)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, variables)
    shown = accepts(*from_torch(file, tmp_path / "same", f"--workdir={workdir}"))
    assert "assumed" not in shown.replace("dropout=0.5 is assumed", "")
    assert htnet_jax.load(tmp_path / "same").module == module


def test_unused_entries_are_for_networks_that_have_some(tmp_path, run_folder, refuses):
    message = refuses(*to_torch(run_folder[0], tmp_path / "out.pth"), "--with_unused")
    assert "HTNet's release has no unused entries" in message


def test_training_checkpoint_is_cleaned_and_said_so(tmp_path, run_folder, accepts):
    _, params = run_folder
    state_dict = convert.to_state_dict({"params": params}, BRIDGES["HTNet"].table)
    file, folder = tmp_path / "checkpoint.pt", tmp_path / "model"
    prefixed = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    torch.save({"epoch": 4, "model_state_dict": prefixed}, file)
    shown = accepts(*from_torch(file, folder))
    assert f"{file}: the state_dict stands under 'model_state_dict'; left out: 'epoch'" in shown
    assert f"{file}: the prefix 'module.' was taken off every name" in shown
    assert_same_params(folder, params)


def test_values_that_are_not_finite_are_a_warning(tmp_path, accepts):
    config = small_config()
    params = write_run(tmp_path / "run", config)
    params["head"]["bias"][0] = np.nan
    save_fold(
        fold_folder(tmp_path / "run", "s01"), {"params": params}, json.loads(config.to_json())
    )
    file, folder = tmp_path / "w.pth", tmp_path / "model"
    warning = "warning: mlp_head.2.bias has 1 values that are NaN or infinite"
    assert warning in accepts(*to_torch(tmp_path / "run", file))
    assert warning in accepts(*from_torch(file, folder))
    assert_same_params(folder, params)


# --- what does not fit ----------------------------------------------------------------------------


def test_config_of_another_network(tmp_path, run_folder, accepts, refuses):
    workdir, _ = run_folder
    file = tmp_path / "w.pth"
    accepts(*to_torch(workdir, file))
    config = config_file(tmp_path, dim=12, num_classes=3, block_repeats=(1, 1, 1), mlp_mult=2)
    message = refuses(*from_torch(file, tmp_path / "model", f"--config={config}"))
    assert message.startswith(f"error: {file}: ")
    assert "num_classes: 5 in the file, 3 expected" in message
    assert "dim: 6 in the file, 12 expected" in message
    assert re.search(r"block_repeats: \(1, 0, 1\) in the file, .1, 1, 1. expected", message)
    assert "mlp_mult" not in message
    assert_nothing_written(tmp_path, "w.pth", "config.py")


def test_file_of_another_network(tmp_path, refuses):
    file = tmp_path / "w.pth"
    torch.save(torch.nn.Linear(2, 3).state_dict(), file)
    message = refuses(*from_torch(file, tmp_path / "model"))
    assert message.startswith(f"error: {file}: the state_dict does not fit: ")
    assert re.search(r"\| weight \(3, 2\)$", message, re.MULTILINE)
    assert "mlp_head.2.weight" in message
    assert_nothing_written(tmp_path, "w.pth")


def test_network_with_a_misshapen_entry(tmp_path, refuses):
    module = HTNet(dim=6, block_repeats=(1, 0, 1))
    state_dict = htnet.build(module).state_dict()
    state_dict["layers.2.0.pos_emb"] = torch.zeros(4)
    del state_dict["mlp_head.2.bias"]
    file = tmp_path / "w.pth"
    torch.save(state_dict, file)
    message = refuses(*from_torch(file, tmp_path / "model"))
    assert "1 missing, 0 unknown, 1 misshapen" in message
    assert re.search(r"layers\.2\.0\.pos_emb \(1,\) +\| \(4,\)", message)
    assert "mlp_head.2.bias (3,)" in message
    assert_nothing_written(tmp_path, "w.pth")


@pytest.mark.parametrize(
    "text",
    ["no json", "[1]", "3", '"x"', '{"model": 3}', '{"model": {"dim": "six"}}'],
)
def test_metadata_that_is_no_config(tmp_path, refuses, text):
    file = tmp_path / "w.safetensors"
    state_dict = htnet.build(HTNet(dim=6, block_repeats=(1, 0, 1))).state_dict()
    safetensors.torch.save_file(state_dict, file, {"htnet_jax.config": text})
    message = refuses(*from_torch(file, tmp_path / "model"))
    assert str(file) in message
    assert "--config" in message
    assert_nothing_written(tmp_path, "w.safetensors")


def test_network_without_a_bridge(tmp_path, run_folder, accepts, refuses):
    workdir, _ = run_folder
    file = tmp_path / "w.pth"
    accepts(*to_torch(workdir, file))
    config = config_file(tmp_path, name="OtherNet")
    message = refuses(*from_torch(file, tmp_path / "model", f"--config={config}"))
    assert "OtherNet has no PyTorch bridge; there is one for HTNet" in message
    assert_nothing_written(tmp_path, "w.pth", "config.py")


# --- outputs that exist ---------------------------------------------------------------------------


def test_existing_file_is_replaced_on_request_only(tmp_path, run_folder, accepts, refuses):
    workdir, _ = run_folder
    file = tmp_path / "w.pth"
    file.write_text("mine")
    message = refuses(*to_torch(workdir, file))
    assert f"{file}: exists already" in message
    assert "--overwrite" in message
    assert file.read_text() == "mine"
    accepts(*to_torch(workdir, file), "--overwrite")
    assert torch.load(file, weights_only=True)["mlp_head.2.bias"].shape == (5,)


def test_existing_checkpoint_is_replaced_on_request_only(
    tmp_path, run_folder, two_heads, accepts, refuses
):
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    accepts(*to_torch(run_folder[0], file))
    accepts(*from_torch(file, folder))
    accepts(*to_torch(two_heads[0], file), "--overwrite")
    message = refuses(*from_torch(file, folder))
    assert f"{folder}: exists already" in message
    assert "--overwrite" in message
    assert_same_params(folder, run_folder[1])
    accepts(*from_torch(file, folder, "--overwrite"))
    assert_same_params(folder, two_heads[1])
    assert_nothing_written(tmp_path, "w.safetensors", "model")


def test_replacement_that_fails_keeps_the_checkpoint(tmp_path, run_folder, accepts, refuses):
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    accepts(*to_torch(run_folder[0], file))
    accepts(*from_torch(file, folder))
    file.write_bytes(file.read_bytes()[:-1])
    assert str(file) in refuses(*from_torch(file, folder, "--overwrite"))
    assert_same_params(folder, run_folder[1])


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
@pytest.mark.parametrize("kind", ["folder", "run", "file"])
def test_what_is_no_checkpoint_is_never_replaced(
    tmp_path, run_folder, accepts, refuses, kind, more
):
    file, output = tmp_path / "w.safetensors", tmp_path / "precious"
    accepts(*to_torch(run_folder[0], file))
    if kind == "run":
        write_run(output, small_config())
    elif kind == "folder":
        # Half of what makes a checkpoint.
        output.mkdir()
        (output / "config.json").write_text("{}")
    else:
        output.write_text("mine")
    before = sorted(output.rglob("*"))
    message = refuses(*from_torch(file, output, *more))
    assert f"{output}: exists and is no checkpoint; choose another --output" in message
    assert sorted(output.rglob("*")) == before
    assert kind != "file" or output.read_text() == "mine"
    assert_nothing_written(tmp_path, "w.safetensors", "precious")


def test_empty_folder_is_taken(tmp_path, run_folder, accepts):
    file, folder = tmp_path / "w.safetensors", tmp_path / "model"
    accepts(*to_torch(run_folder[0], file))
    folder.mkdir()
    accepts(*from_torch(file, folder))
    assert_same_params(folder, run_folder[1])


def test_output_below_a_file(tmp_path, run_folder, accepts, refuses):
    file = tmp_path / "w.safetensors"
    accepts(*to_torch(run_folder[0], file))
    assert "cannot be written" in refuses(*to_torch(run_folder[0], file / "x.pth"))
    assert "cannot be written" in refuses(*from_torch(file, file / "model"))
    assert_nothing_written(tmp_path, "w.safetensors")


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        ((), ["give one command", "to-torch", "from-torch"]),
        (("convert",), ["give one command"]),
        (("to-torch", "from-torch"), ["give one command"]),
        (("to-torch",), ["missing: --workdir, --fold, --output"]),
        (("to-torch", "--workdir=x", "--output=y.pth"), ["missing: --fold;"]),
        (("from-torch",), ["missing: --input, --output"]),
        (("from-torch", "--input=x.pth"), ["missing: --output;"]),
    ],
)
def test_incomplete_command(refuses, arguments, messages):
    shown = refuses(*arguments)
    assert all(message in shown for message in messages)


def test_unknown_fold_lists_the_folds(tmp_path, run_folder, refuses):
    message = refuses(*to_torch(run_folder[0], tmp_path / "w.pth", fold="s99"))
    assert "s01, s02" in message
    assert_nothing_written(tmp_path)


def test_unknown_run(tmp_path, refuses):
    message = refuses(*to_torch(tmp_path / "nowhere", tmp_path / "w.pth"))
    assert str(tmp_path / "nowhere") in message
    assert_nothing_written(tmp_path)


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors"])
def test_unknown_file(tmp_path, refuses, name):
    message = refuses(*from_torch(tmp_path / name, tmp_path / "model"))
    assert message == f"error: {tmp_path / name}: no such file\n"
    assert_nothing_written(tmp_path)


def test_ending_is_checked_first(tmp_path, refuses):
    message = refuses(*to_torch(tmp_path / "nowhere", tmp_path / "w.onnx"))
    assert "w.onnx: the name must end in .safetensors, .pth or .pt" in message


def test_unknown_setting(tmp_path, refuses):
    config = config_file(tmp_path)
    message = refuses(
        *from_torch("x.pth", tmp_path / "model", f"--config={config}", "--config.model.dimm=3")
    )
    assert "unknown setting --config.model.dimm; did you mean --config.model.dim?" in message


def test_as_a_program(tmp_path, run_folder):
    """Without the worker: what a user types."""
    file = tmp_path / "w.safetensors"
    done, refused = (
        subprocess.run(
            [sys.executable, str(TOOL), *arguments], capture_output=True, text=True, timeout=120
        )
        for arguments in (to_torch(run_folder[0], file), ["nonsense"])
    )
    assert done.returncode == 0, done.stderr
    assert files.read(file).state_dict["mlp_head.2.bias"].shape == (5,)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: give one command:")
    assert "Traceback" not in refused.stderr


def test_a_pth_file_with_the_settings_of_its_run(tmp_path, run_folder, accepts, refuses):
    workdir, params = run_folder
    file, folder = tmp_path / "w.pth", tmp_path / "model"
    accepts(*to_torch(workdir, file))
    settings = htnet_jax.load(fold_folder(workdir, "s01")).config.to_json()
    (workdir / "config.json").write_text(settings)
    shown = accepts(*from_torch(file, folder, f"--workdir={workdir}"))
    assert "assumed" not in shown
    assert_same_params(folder, params)
    kept = json.loads(htnet_jax.load(folder).config.to_json())
    assert kept.pop("converted_from") == "w.pth"
    assert kept == {**json.loads(settings), "checkpoint": {"name": "model"}}
    (workdir / "config.json").write_text("[1]")
    assert "not a run's config" in refuses(
        *from_torch(file, tmp_path / "other", f"--workdir={workdir}")
    )
    (workdir / "config.json").unlink()
    assert "config.json: cannot be read (No such file" in refuses(
        *from_torch(file, tmp_path / "other", f"--workdir={workdir}")
    )


def test_flags_of_the_other_command(tmp_path, run_folder, refuses):
    workdir, _ = run_folder
    shown = refuses(*to_torch(workdir, tmp_path / "w.pth"), "--input=x.pth", "--heads=2")
    assert "to-torch does not take --input, --heads" in shown
    shown = refuses(*from_torch(tmp_path / "w.pth", tmp_path / "model"), "--fold=s01")
    assert "from-torch does not take --fold" in shown
    assert not list(tmp_path.glob("w.pth"))


def test_a_missing_entry_is_named_and_no_other(tmp_path, run_folder, accepts, refuses):
    workdir, _ = run_folder
    file = tmp_path / "w.pth"
    accepts(*to_torch(workdir, file))
    state_dict = torch.load(file, weights_only=True)
    del state_dict["layers.0.0.layers.0.0.norm.g"]
    torch.save(state_dict, file)
    shown = refuses(*from_torch(file, tmp_path / "model", f"--heads={2}"))
    assert "1 missing, 0 unknown, 0 misshapen" in shown
    assert "layers.0.0.layers.0.0.norm.g" in shown


def test_no_run_in_the_folder(tmp_path, refuses):
    shown = refuses(*to_torch(tmp_path / "nope", tmp_path / "w.pth"))
    assert f"{tmp_path / 'nope'}: no run with checkpoints here" in shown
