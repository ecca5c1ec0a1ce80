"""Converts the checkpoint of one fold to PyTorch, or a PyTorch file to a checkpoint.

  python tools/convert_checkpoint.py to-torch --workdir=RUN --fold=SUBJECT --output=FILE
  python tools/convert_checkpoint.py from-torch --input=FILE [--workdir=RUN] --output=DIR

Files end in .safetensors (keeps the run's settings) or .pth (a bare state_dict that
`model.load_state_dict(torch.load(FILE, weights_only=True))` takes, as the paper's release writes
them). `htnet_jax.load(DIR)` opens the result of from-torch. The sizes of the network are read from
the shapes; what is not determined by them, such as `heads`, comes from --heads, --config,
--workdir, the .safetensors file, or is the release's.

Entries of a release's file that its network never reads are named and left out; --with_unused
writes them again (zeros, and ones for scales), so that the release's own class takes the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from htnet_jax import foreign
from htnet_jax.config import default_config, parser_for, split_private
from htnet_jax.errors import UserError, run_command

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "from-torch: the settings to keep with the checkpoint; its sizes must fit."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of a run. from-torch: whose settings to keep, instead of --config."
)
_FOLD = flags.DEFINE_string("fold", None, "to-torch: the left-out subject.")
_INPUT = flags.DEFINE_string("input", None, "from-torch: .safetensors, .pth or .pt file.")
_OUTPUT = flags.DEFINE_string("output", None, "File (to-torch) or folder (from-torch) to write.")
_HEADS = flags.DEFINE_integer("heads", None, "from-torch: attention heads at the bottom level.")
_WITH_UNUSED = flags.DEFINE_bool(
    "with_unused", None, "to-torch: also write what the release's files hold and never read."
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace an output that exists.")

# Keys in a .safetensors file's metadata.
CONFIG_KEY, FOLD_KEY = "htnet_jax.config", "htnet_jax.fold"


def main(argv: Sequence[str]) -> None:
    """Runs the command that the first argument names."""
    commands = {"to-torch": to_torch, "from-torch": from_torch}
    if len(argv) != 2 or argv[1] not in commands:
        raise UserError(
            "give one command:\n"
            "  to-torch   --workdir=RUN --fold=SUBJECT --output=FILE.safetensors\n"
            "  from-torch --input=FILE.pth --output=DIR"
        )
    commands[argv[1]]()


def to_torch() -> None:
    """Writes one fold's variables as a PyTorch file."""
    _require(workdir=_WORKDIR.value, fold=_FOLD.value, output=_OUTPUT.value)
    _refuse("to-torch", input=_INPUT.value, config=_CONFIG.value, heads=_HEADS.value)
    import htnet_jax
    from htnet_jax.torch_bridge import bridge_of, convert, files
    from htnet_jax.training.state import fold_folder

    output = foreign.expanded(_OUTPUT.value)
    files.check_output(output, overwrite=_OVERWRITE.value)
    workdir = foreign.expanded(_WORKDIR.value)
    if not (workdir / "checkpoints").is_dir():
        raise UserError(f"{workdir}: no run with checkpoints here; give the --workdir of a run")
    folder = fold_folder(workdir, _FOLD.value)
    module, variables, config = htnet_jax.load(folder)
    bridge = bridge_of(config.model.name)
    if _WITH_UNUSED.value and not bridge.unused:
        raise UserError(
            f"--with_unused: {config.model.name}'s release has no unused entries; leave it out"
        )
    state_dict = convert.to_state_dict(
        variables, bridge.table, bridge.recreate if _WITH_UNUSED.value else None
    )
    for name, count in convert.non_finite(state_dict).items():
        print(f"warning: {name} has {count} values that are NaN or infinite")
    public, _ = split_private(json.loads(config.to_json()))
    metadata = {"format": "pt", CONFIG_KEY: json.dumps(public), FOLD_KEY: _FOLD.value}
    files.write(output, state_dict, metadata, overwrite=_OVERWRITE.value)
    print(f"Written: {output} ({_count(state_dict)})")
    print(f"  input: {_inputs(module, config)}")
    if output.suffix in files.TORCH:
        print(f"  a .pth file holds no settings: to convert it back, add --workdir={workdir}")


def from_torch() -> None:
    """Writes a PyTorch file as a checkpoint that `htnet_jax.load` opens."""
    _require(input=_INPUT.value, output=_OUTPUT.value)
    _refuse("from-torch", fold=_FOLD.value, with_unused=_WITH_UNUSED.value)
    if _WORKDIR.value and _CONFIG.value is not None:
        raise UserError("give --config or --workdir, not both")
    output, source = foreign.expanded(_OUTPUT.value), foreign.expanded(_INPUT.value)
    _check_folder(output)
    from htnet_jax.torch_bridge import bridge_of, convert, files
    from htnet_jax.training.state import build_module, save_fold

    file = files.read(source)
    for note in file.notes:
        print(f"{source}: {note}")
    config, origin = _settings(file.metadata)
    if not origin:
        _guess_network(config, file.state_dict)
    channels = len(_channels(config))
    known: dict[str, Any] = dict(config.model) if origin else {}
    if _HEADS.value is not None:
        known["heads"] = _HEADS.value
    with foreign.reading(source, "file of this network with these settings", "Give --config."):
        try:
            bridge = bridge_of(config.model.name)
            state_dict, notes = convert.drop_unused(file.state_dict, bridge)
            sizes = convert.infer_sizes(state_dict, bridge, known, channels)
            with config.unlocked():
                config.model.update(sizes)
            module = build_module(config.model)
            expected = convert.expected_variables(module, channels)
            variables = convert.from_state_dict(state_dict, bridge.table, expected)
        except UserError as error:
            raise UserError(f"{source}: {error}") from error
    with config.unlocked():
        config.converted_from = source.name
    save_fold(output, variables, json.loads(config.to_json()))
    for note in notes:
        print(f"{source}: {note}")
    print(f"Written: {output} ({_count(state_dict)})")
    print("  " + ", ".join(f"{name}={value}" for name, value in sizes.items()))
    assumed = "" if origin else "; assumed, as in the release: --config or --workdir says otherwise"
    print(f"  input: {_inputs(module, config)}{assumed}")
    for name in bridge.assumed:
        if name not in known:
            remedy = "--heads=N" if name == "heads" else f"--config with model.{name}"
            print(
                f"  {name}={sizes[name]} is assumed (the release's, if one has these sizes; else "
                f"the default): shapes do not determine it; {remedy} sets it"
            )


def _settings(metadata: Mapping[str, str]) -> tuple[ConfigDict, str]:
    """The settings to keep, and where they come from ("" for the defaults)."""
    if _CONFIG.value is not None:
        _check_config(_CONFIG.value)
        return ConfigDict(_CONFIG.value), "--config"
    if _WORKDIR.value:
        path = foreign.expanded(_WORKDIR.value) / "config.json"
        stored = foreign.read_json(path, "run's config", "Give --config.")
        return _stored(stored, str(path)), "--workdir"
    if CONFIG_KEY in metadata:
        where = f"{_INPUT.value}: its metadata {CONFIG_KEY}"
        with foreign.reading(where, "run's config", "Give --config."):
            stored = json.loads(metadata[CONFIG_KEY])
        return _stored(stored, where), "file"
    return default_config(), ""


def _stored(content: Any, where: str) -> ConfigDict:
    """A run's settings; keys that are missing have their defaults."""
    config = default_config()
    with foreign.reading(where, "run's config", "Give --config."):
        with config.unlocked():
            stored = ConfigDict(content)
            if stored.model.name != config.model.name:
                # The defaults are attributes of another network.
                config.model = ConfigDict()
            config.update(stored)
        _check_config(config)
        return config


def _check_config(config: ConfigDict) -> None:
    for key in ("model", "dataset"):
        if not isinstance(config.get(key), ConfigDict):
            raise UserError(f"the config has no {key}; begin with config.default_config()")


def _guess_network(config: ConfigDict, state_dict: Mapping[str, Any]) -> None:
    """Without settings, the network is the one whose names a file has, if there is one."""
    from htnet_jax.torch_bridge import BRIDGES, convert

    def known_names(name: str) -> int:
        patterns = [rule.torch for rule in BRIDGES[name].table]
        return sum(any(convert.match(p, key) is not None for p in patterns) for key in state_dict)

    name = max(BRIDGES, key=known_names)
    if name != config.model.name and known_names(name):
        with config.unlocked():
            config.model = ConfigDict({"name": name})


def _channels(config: ConfigDict) -> list[str]:
    return config.dataset.channels.split(",")


def _inputs(module: Any, config: ConfigDict) -> str:
    """What the PyTorch network is called with."""
    shapes = [
        f"(B, {', '.join(map(str, (shape[-1], *shape[:-1])))})"
        for shape in module.input_shapes(len(_channels(config)))
    ]
    if len(shapes) > 1:
        return ", ".join(shapes)
    dataset = config.dataset
    return (
        f"{shapes[0]}, channels {dataset.channels}, mosaic {dataset.layout}, "
        f"scaling {dataset.scaling}"
    )


def _check_folder(folder: Path) -> None:
    """Only an empty folder or, with --overwrite, a checkpoint may be replaced."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    is_checkpoint = (folder / "variables").is_dir() and (folder / "config.json").is_file()
    if not is_checkpoint:
        raise UserError(f"{folder}: exists and is no checkpoint; choose another --output")
    if not _OVERWRITE.value:
        raise UserError(f"{folder}: exists already; choose another --output, or add --overwrite")


def _require(**values: str | None) -> None:
    missing = [f"--{name}" for name, value in values.items() if not value]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; see --help")


def _refuse(command: str, **values: object) -> None:
    given = [f"--{name}" for name, value in values.items() if value is not None]
    if given:
        raise UserError(f"{command} does not take {', '.join(given)}; see --help")


def _count(state_dict: Mapping[str, Any]) -> str:
    total = sum(tensor.numel() for tensor in state_dict.values())
    return f"{len(state_dict)} arrays, {total:,} values"


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG))
