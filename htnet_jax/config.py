"""The settings of a run and their defaults, and the `--config` flag of the commands.

Files in `configs/` override a few of the defaults.
"""

from __future__ import annotations

import copy
import difflib
import os
import runpy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from htnet_jax import foreign
from htnet_jax.errors import UserError, parse_flags
from htnet_jax.ranges import Allowed, Choice, Range, Switch, Text


class Setting(NamedTuple):
    """A key of the config.

    Attributes:
        default: Its value where a config does not set it.
        allowed: What it may be; names of what is in a registry are checked against that.
        meaning: What it does, for `train --help` and docs/settings.md.
    """

    default: Any
    allowed: Allowed
    meaning: str


_TEXT, _SWITCH, _SHARE = Text(), Switch(), Range(0.0, 1.0, ends="[]")
_MOST_EPOCHS = 100_000
# Of `config.losses`, whatever the loss.
LOSS_WEIGHT = Range(0.0, 1e6, ends="[]")

# The defaults are HTNet as published, on the released MEGC 2019 flow images. The attributes of
# networks and baselines (`config.model`) have their ranges beside their code.
SETTINGS: Mapping[str, Setting] = {
    "seed": Setting(
        0,
        Range(0, 2**32 - 1),
        "Root of every random number: initial parameters, order of clips, dropout.",
    ),
    "epochs": Setting(
        800,
        Range(1, _MOST_EPOCHS),
        "Passes over each fold's training clips (HTNet's release: 800).",
    ),
    "batch_size": Setting(
        256,
        Range(1, 1_000_000),
        "Clips a step (release: 256). More than a fold's training clips: all of them in one step.",
    ),
    "losses.cross_entropy": Setting(
        1.0,
        LOSS_WEIGHT,
        "What is minimised: the weight of each loss of htnet_jax/learn/losses.py.",
    ),
    "loss_options.cross_entropy.label_smoothing": Setting(
        0.0, Range(0.0, 1.0), "Share of the target spread evenly over all classes, as PyTorch's."
    ),
    "loss_options.cross_entropy.class_weights": Setting(
        "none", Choice(("none", "balanced")), "Whether rare classes count more in training."
    ),
    "optimizer": Setting("adam", _TEXT, "As PyTorch's (b1 0.9, b2 0.999, eps 1e-8)."),
    "learning_rate": Setting(
        5e-5, Range(0.0, 100.0, ends="(]"), "The optimizer's learning rate (release: 5e-5)."
    ),
    "weight_decay": Setting(
        0.0, Range(0.0, 100.0, ends="[]"), 'Of "adamw" and "sgd", on every parameter.'
    ),
    "momentum": Setting(0.0, Range(0.0, 1.0), 'Of "sgd".'),
    "schedule": Setting(
        "constant",
        _TEXT,
        'How the learning rate changes: "step" (see the next keys), "cosine" (down to 0), '
        '"one_cycle" (as PyTorch\'s OneCycleLR).',
    ),
    "learning_rate_decay": Setting(
        1.0,
        Range(0.0, 1.0, ends="(]"),
        'Of "step": after every epoch the learning rate is multiplied by this; the next key limits '
        "for how many epochs.",
    ),
    "learning_rate_decay_epochs": Setting(
        0, Range(0, _MOST_EPOCHS), 'Of "step": epochs after which the rate falls; 0: after all.'
    ),
    "warmup_epochs": Setting(
        0,
        Range(0, _MOST_EPOCHS),
        'Epochs in which the learning rate rises to its full value; of "one_cycle" 0 means 30 % '
        "of all.",
    ),
    "ema": Setting(
        0.0,
        Range(0.0, 1.0),
        "Decay of a moving average of the parameters, which then predicts and is kept; 0: none. "
        "Batch statistics are not averaged: they move by themselves.",
    ),
    "inputs": Setting(
        "",
        _TEXT,
        "The network's inputs in the order of its arguments, comma-separated; empty: those that it "
        'declares. There are "mosaic" (as config.dataset.layout says), "flow" (the whole of it), '
        'and of data sets with face frames "onset" and "apex", RGB normalised by ImageNet\'s mean '
        "and standard deviation.",
    ),
    "shuffle": Setting(
        False,
        _SWITCH,
        "A new order of the training clips every epoch; False: always that of the next key.",
    ),
    "order": Setting(
        "release",
        _TEXT,
        'Without shuffle: "release" (class by class, in a class by subject and clip name, so that '
        'most batches hold one class, as HTNet\'s release) or "file" (as the data set has the '
        "clips).",
    ),
    "seeds": Setting(
        1,
        Range(1, 1000),
        "Repetitions of the whole run, with the seeds seed, seed + 1, ...; they train side by "
        "side.",
    ),
    "protocol": Setting(
        "loso",
        _TEXT,
        'Who is left out: "loso" (a fold for each subject), "lodo" (a fold for each data set), '
        '"kfold" (groups of subjects, balanced per data set).',
    ),
    "protocol_folds": Setting(5, Range(2, 10_000), 'Number of folds of "kfold".'),
    "folds": Setting(
        "",
        _TEXT,
        'Folds to run (for "loso" the left-out subjects), comma-separated; empty: all.',
    ),
    "inner_folds": Setting(
        0,
        Range(0, 1000),
        'Inner folds of each fold, for the selection "inner" and the temperature; 0: none. Each '
        "trains one more model.",
    ),
    "inner_parts": Setting(
        5,
        Range(1, 1000),
        "The training subjects are split into this many parts; an inner fold validates on one of "
        "them.",
    ),
    "inner_refit": Setting(
        True,
        _SWITCH,
        'The selection "inner" applies the epoch chosen on the validation subjects to the model '
        "that is trained on all training subjects; False: to the inner folds' models themselves.",
    ),
    "spare_outputs": Setting(
        0,
        Range(0, 1000),
        "Outputs of the network beyond the classes of the data. They are trained as classes that "
        "never occur, and left out of predictions. (MMNet's release for three classes has 2.)",
    ),
    "folds_per_device": Setting(
        0,
        Range(0, 10_000),
        "Folds trained side by side on one device; 0: chosen from its free memory. Fewer either "
        "way, if memory runs short.",
    ),
    "matmul_precision": Setting(
        "float32",
        _TEXT,
        'How products of float32 are computed: "float32", or, faster on GPUs, "tf32" (10 bits of '
        'mantissa instead of 23) and "bfloat16" (7 bits). Sums are float32. No effect on a CPU.',
    ),
    "distributed": Setting(
        False,
        _SWITCH,
        "Several processes share the folds, one on each host, with one --workdir that all see.",
    ),
    "coordinator": Setting(
        "",
        _TEXT,
        "HOST:PORT of process 0; empty: read from the cluster's environment (SLURM and others).",
    ),
    "processes": Setting(
        0, Range(0, 100_000), "Number of processes; 0: read from the cluster's environment."
    ),
    "process": Setting(
        -1, Range(-1, 100_000), "Which one this is; -1: read from the cluster's environment."
    ),
    "cpu_devices": Setting(
        0,
        Range(0, 1024),
        "Devices to split a CPU into; 0: one for each core. No effect on accelerators.",
    ),
    "checkpoints": Setting(
        "all",
        _TEXT,
        'Whose final parameters to keep: "all", "none", or comma-separated folds.',
    ),
    "checkpoint_every": Setting(
        100,
        Range(0, _MOST_EPOCHS),
        "Epochs between snapshots of the folds in training, so that a killed run loses little; 0: "
        "only on SIGTERM and Ctrl-C. A snapshot holds three times the parameters of every fold in "
        "training; two are kept.",
    ),
    "checkpoint_seconds": Setting(
        300,
        Range(0, 10_000_000),
        "At least this many seconds between snapshots: fast epochs would otherwise wait for the "
        "disk.",
    ),
    "tensorboard": Setting(
        False,
        _SWITCH,
        "Also write event files for TensorBoard into WORKDIR/tensorboard (needs the extra "
        '"tensorboard"): mean training loss over folds, and UF1 and UAR of validation subjects, '
        "when all folds are trained; never scores of test subjects.",
    ),
    "tensorboard_folds": Setting(
        False,
        _SWITCH,
        "With tensorboard: also the curves of each fold, as soon as it is trained.",
    ),
    # Augmentation of the training clips, drawn in every epoch: all face frames and whole flows of a
    # clip are moved alike, the flow's vectors with them. Predictions are made on the exact clip.
    "augmentation.flip": Setting(0.0, _SHARE, "Probability of a mirrored face."),
    "augmentation.rotation": Setting(
        0.0,
        Range(0.0, 180.0, ends="[]"),
        "Largest rotation in degrees, either way; nearest pixel, zeros from outside.",
    ),
    "augmentation.shift": Setting(
        0,
        Range(0, 2048),
        "Largest shift on each axis, in pixels of the largest images as they are used (a random "
        "crop after padding with that many zeros).",
    ),
    "augmentation.onset_late": Setting(
        0.0,
        _SHARE,
        "Frames drawn instead of the onset: up to this share of the way to the apex after it.",
    ),
    "augmentation.apex_early": Setting(
        0.0,
        _SHARE,
        "Frames drawn instead of the apex: up to this share of the way from the onset before it.",
    ),
    "augmentation.apex_late": Setting(
        0.0,
        _SHARE,
        "Frames drawn instead of the apex: up to this share of the way to the offset after it.",
    ),
    # What a network with the privileged feature "text" learns beside the images.
    "text.kind": Setting(
        "sentence",
        Choice(("sentence", "multi_hot")),
        'What stands for a clip\'s action units: "sentence" (its embedding by a BERT), or '
        '"multi_hot" (1 for each unit that is there), which needs no text model.',
    ),
    "text.model": Setting(
        "",
        _TEXT,
        "Folder of a BERT as Hugging Face keeps it: config.json, model.safetensors, and "
        'tokenizer.json or vocab.txt; empty: all-MiniLM-L6-v2, which the extra "text" installs.',
    ),
    "text.pooling": Setting(
        "cls",
        Choice(("cls", "mean")),
        "The embedding of a sentence: the output of its first token, [CLS], or the mean over its "
        "tokens.",
    ),
    "text.template": Setting(
        "The facial action units are: {units}.",
        _TEXT,
        "The sentence: {units} is AU4 brow lowerer, AU7 lid tightener; {codes} is AU4, AU7; "
        "{names} is brow lowerer, lid tightener.",
    ),
    "text.centred": Setting(
        True,
        _SWITCH,
        "Subtracts the mean over the distinct sets of units of a fold's own training clips: "
        "sentences of action units lie close together.",
    ),
    "model.name": Setting(
        "HTNet", _TEXT, "The network or baseline; the other keys of config.model are its own."
    ),
    "dataset.name": Setting("megc2019", _TEXT, "Data set; docs/datasets.md lists them."),
    "dataset.config": Setting("", _TEXT, "Builder config; empty: the data set's default."),
    "dataset.labels": Setting(
        "",
        _TEXT,
        'Label set: how clips are put into classes, such as "megc3", "five", "own" or "objective"; '
        "those without a class are left out. Empty: the data set's default.",
    ),
    "dataset.sources": Setting(
        "", _TEXT, "Sources to use of a data set that has several, comma-separated; empty: all."
    ),
    "dataset.manual_dir": Setting(
        "", _TEXT, "Folder with the files the data set is built from on first use."
    ),
    "dataset.data_dir": Setting(
        "",
        _TEXT,
        "Where built data sets are kept; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.",
    ),
    "dataset.layout": Setting(
        "release",
        _TEXT,
        'The network\'s input: "release" (the release\'s mosaic, row = x), "upright", or "none" '
        "(no mosaic, the whole flow).",
    ),
    "dataset.channels": Setting(
        "strain,v,u",
        _TEXT,
        "Channels of the flow in the network's order; the release reads its images as BGR.",
    ),
    "dataset.scaling": Setting(
        "none",
        _TEXT,
        '"minmax_255": each clip and channel to 0..255, as the released images already are.',
    ),
    "dataset.frame_size": Setting(
        0,
        Range(0, 2048),
        "Side in pixels that face frames are shrunk to; 0: as they are stored (224).",
    ),
    "dataset.clip_frames": Setting(
        16,
        Range(2, 9999),
        "Frames of the clips rgb_clip and flow_clip, evenly from onset to offset.",
    ),
    "dataset.flow_gain": Setting(
        0.5,
        # The product is kept in float16, which holds it up to 65,504 and not much below 1e-4.
        Range(0.01, 100.0, ends="[]"),
        "Factor on the flow of flow_clip, which is in pixels of the aligned face.",
    ),
    "dataset.shuffle_labels": Setting(
        False,
        _SWITCH,
        "Control experiment: labels permuted over all clips; an honest protocol then scores at "
        "chance.",
    ),
}

# Of the default network; see htnet_jax.models.HTNet.
_MODEL = {
    "num_classes": 3,
    "image_size": 28,
    "patch_size": 7,
    "dim": 256,
    "heads": 3,
    "num_hierarchies": 3,
    "block_repeats": (2, 2, 10),
    "mlp_mult": 4,
    "dropout": 0.0,
    # Of the network's computation; parameters, loss and optimizer are always float32.
    "dtype": "float32",
}

# Trees of the config whose keys belong to what they name, which has ranges of its own.
FREE = ("model", "losses", "loss_options")
GROUPS = (*FREE, "augmentation", "text", "dataset")


def default_config() -> ConfigDict:
    """Settings as HTNet was published, on the released MEGC 2019 flow images.

    Every key can be set on the command line: `--config.epochs=10`, `--config.model.dim=32`.
    """
    nested: dict[str, Any] = {}
    for key, setting in SETTINGS.items():
        *groups, name = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[name] = setting.default
    nested["model"] |= _MODEL
    return ConfigDict(nested)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested settings by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three known keys that may have been meant: same last part, initials, or spelling."""
    last = name.rpartition(".")[2].casefold()
    tails = {one: one.rpartition(".")[2] for one in known}
    initials = {one: "".join(word[0] for word in tail.split("_")) for one, tail in tails.items()}
    same = [one for one, tail in tails.items() if last in (tail, initials[one]) and len(last) > 1]
    if same:
        return same[:3]
    spelt = difflib.get_close_matches(name.casefold(), tails, n=1)
    alike = difflib.get_close_matches(last, tails.values(), n=1)
    return spelt or [one for one, tail in tails.items() if tail in alike][:3]


def did_you_mean(name: str, known: Iterable[str], prefix: str = "config.") -> str:
    """A remark on the known keys that may have been meant; empty: none is near."""
    near = " or ".join(f"{prefix}{one}" for one in nearest(name, known))
    return f"; did you mean {near}?" if near else ""


# What tells of the user's machine helps to resume, but is not for others to read. A run keeps it in
# a file of its own, `WORKDIR/private.json`.
PRIVATE_FILE = "private.json"
_PRIVATE_KEYS = (
    ("coordinator",),
    ("dataset", "manual_dir"),
    ("dataset", "data_dir"),
    ("text", "model"),
    ("model", "pretrained"),
)


def split_private(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What may be published of a run's settings, and what may not.

    Args:
        settings: JSON-safe, of this version or an older one.

    Returns:
        The settings with private values emptied, and these values by their dotted keys.
    """
    public, private = copy.deepcopy(dict(settings)), {}
    for *groups, key in _PRIVATE_KEYS:
        place = public
        for group in groups:
            place = place.get(group) if isinstance(place.get(group), dict) else {}
        if place.get(key):
            private[".".join([*groups, key])] = str(place[key])
            place[key] = ""
    return public, private


def read_private(workdir: Path) -> dict[str, str]:
    """The private settings of a run, by their dotted keys; empty where there is no such file.

    Raises:
        UserError: The file is damaged.
    """
    path = workdir / PRIVATE_FILE
    if not os.path.lexists(path):
        return {}
    known = {".".join(key) for key in _PRIVATE_KEYS}

    def check(content: Any) -> None:
        if not all(isinstance(v, str) for k, v in content["config"].items() if k in known):
            raise ValueError("a path that is no text")

    remedy = "Remove it; give paths by flags instead."
    content = foreign.read_json(path, "record of paths", remedy, check)
    return {key: value for key, value in content["config"].items() if key in known}


def names_in(text: str) -> list[str]:
    """The items of a comma-separated setting."""
    return [name.strip() for name in text.split(",") if name.strip()]


def chosen_in(key: str, text: str, known: list[str], what: str) -> set[str]:
    """The items of a comma-separated setting, each of which must be known.

    Args:
        key: Name of the setting, for the message.
        text: Its value.
        known: What there is.
        what: What the items are ("fold").

    Raises:
        UserError: Names all unknown items.
    """
    found = names_in(text)
    unknown = [name for name in found if name not in known]
    if unknown:
        raise UserError(
            f"config.{key}: no {what} {', '.join(unknown)}; the {what}s are {', '.join(known)}"
        )
    return set(found)


def hint(argument: str) -> str:
    """What to write instead of an argument that no command takes."""
    key = argument.partition("=")[0].lstrip("-").removeprefix("config.")
    if key.endswith(".py"):
        return f"give a config as --config={argument}"
    return "settings are given as --config.KEY=VALUE" + did_you_mean(key, SETTINGS, "--config.")


def parser_for(
    flag: Any, more_help: Callable[[], str] | None = None
) -> Callable[[Sequence[str]], list[str]]:
    """A command-line parser in which a config that cannot be read or set ends in one message.

    Args:
        flag: What `config_flags.DEFINE_config_file` returned.
        more_help: What `--help` prints after the flags.

    Returns:
        For `run_command`; raises a UserError for an unknown `--config.KEY`, or a config file that
        is missing or broken.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv, more_help)
            # For a config file that is missing, the flag holds an object that raises when used.
            getattr(flag.value, "items", None)
        except Exception as error:  # whatever the user's config file raises when it is run
            if unknown := _unknown_keys(argv):
                raise UserError("\n".join(unknown)) from error
            if isinstance(error, UserError):
                raise
            if missing := [path for path in _files(argv) if not Path(path).is_file()]:
                raise UserError(f"{missing[0]}: no such file{_files_like(missing[0])}") from error
            named = [argument for argument in argv if argument.startswith("--config")]
            raise UserError(f"{' '.join(named)}: {type(error).__name__}: {error}") from error
        return rest

    return parse


def _files(argv: Sequence[str]) -> Iterator[str]:
    """The files that `--config=FILE` and `--config FILE` name."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--config":
            yield following
        elif argument.startswith("--config="):
            yield argument.partition("=")[2].partition(":")[0]


def _files_like(path: str) -> str:
    """Config files of a similar name, in the same folder or in `configs/`."""
    near = []
    for folder in {Path(path).parent, Path("configs")}:
        names = {file.stem: file for file in sorted(folder.glob("*.py"))}
        near += [
            str(names[stem]) for stem in difflib.get_close_matches(Path(path).stem, names, n=3)
        ]
    return f"; did you mean {' or '.join(sorted(near))}?" if near else ""


def _unknown_keys(argv: Sequence[str]) -> list[str]:
    """One line for each `--config.KEY` that is unknown or a group, and what may be meant by it."""
    from absl import flags

    given = flatten(_config_of(argv))
    lines = []
    for argument in argv[1:]:
        name = argument.partition("=")[0].lstrip("-")
        group, _, key = name.partition(".")
        inside = [one for one in given if one.startswith(f"{key}.")]
        if not argument.startswith("-") or (name in flags.FLAGS and not (key and inside)):
            continue
        if group == "config" and key and inside:
            lines.append(f"--config.{key} is a group; set one of its keys: " + _listed(inside))
        elif group == "config" and key and key not in given:
            lines.append(
                f"unknown setting --config.{key}"
                + (did_you_mean(key, given, "--config.") or "; --help lists all")
            )
        elif group == "config" and key:
            if not [*_files(argv)]:
                lines.append(f"--config.{key} changes a config: give --config=FILE.py too")
        elif key in given and difflib.get_close_matches(group, ["config"]):
            lines.append(f"unknown flag --{name}; did you mean --config.{key}?")
        elif not key and not difflib.get_close_matches(name, flags.FLAGS) and nearest(name, given):
            lines.append(f"unknown flag --{name}{did_you_mean(name, given, '--config.')}")
    return lines


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(f"--config.{key}" for key in keys)


def _config_of(argv: Sequence[str]) -> ConfigDict:
    """What the config file returns; the defaults if it returns no config."""
    for path in _files(argv):
        try:
            config = runpy.run_path(path)["get_config"]()
        except Exception:  # the file is at fault, not a key: `parse` reports that
            break
        if isinstance(config, ConfigDict):
            return config
    return default_config()
