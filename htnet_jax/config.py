"""The settings of a run and their defaults, and the `--config` flag of the commands.

Files in `configs/` override a few of the defaults.
"""

from __future__ import annotations

import copy
import difflib
import os
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from htnet_jax import foreign
from htnet_jax.errors import UserError, parse_flags


def default_config() -> ConfigDict:
    """Settings as HTNet was published, on the released MEGC 2019 flow images.

    Every key can be set on the command line: `--config.epochs=10`, `--config.model.dim=32`.
    """
    config = ConfigDict()
    # Root of every random number: initial parameters, order of clips, dropout.
    config.seed = 0
    # Passes over each fold's training clips (HTNet's release: 800).
    config.epochs = 800
    # Clips a step (release: 256).
    config.batch_size = 256
    # What is minimised: the weight of each loss of htnet_jax/learn/losses.py, and the options of
    # each. "class_weights" is "none" or "balanced"; "label_smoothing" as PyTorch's.
    config.losses = ConfigDict({"cross_entropy": 1.0})
    config.loss_options = ConfigDict(
        {"cross_entropy": ConfigDict({"label_smoothing": 0.0, "class_weights": "none"})}
    )
    # "adam", "adamw" (b1 0.9, b2 0.999, eps 1e-8) or "sgd", all as PyTorch's.
    config.optimizer = "adam"
    # The optimizer's learning rate (release: 5e-5).
    config.learning_rate = 5e-5
    # Of "adamw" and "sgd", on every parameter.
    config.weight_decay = 0.0
    # Of "sgd".
    config.momentum = 0.0
    # How the learning rate changes: "constant", "step" (see the next keys), "cosine" (down to 0)
    # or "one_cycle" (as PyTorch's OneCycleLR).
    config.schedule = "constant"
    # Of "step": after every epoch the learning rate is multiplied by this, as often as the next key
    # says (0: always).
    config.learning_rate_decay = 1.0
    config.learning_rate_decay_epochs = 0
    # Epochs in which the learning rate rises to its full value; of "one_cycle" 0 means 30 % of all.
    config.warmup_epochs = 0
    # Decay of a moving average of the parameters, which then predicts and is kept; 0: none.
    config.ema = 0.0
    # The network's inputs in the order of its arguments, comma-separated; empty: those that it
    # declares. There are "mosaic" (as config.dataset.layout says), "flow" (the whole of it), and of
    # data sets with face frames "onset" and "apex", RGB normalised by ImageNet's mean and standard
    # deviation.
    config.inputs = ""
    # A new order of the training clips every epoch; False: always that of the next key.
    config.shuffle = False
    # Without shuffle: "release" (class by class, in a class by subject and clip name, so that most
    # batches hold one class, as HTNet's release) or "file" (as the data set has the clips).
    config.order = "release"
    # Repetitions of the whole run, with the seeds seed, seed + 1, ...; they train side by side.
    config.seeds = 1
    # Who is left out: "loso" (a fold for each subject), "lodo" (a fold for each data set), "kfold"
    # (groups of subjects, balanced per data set).
    config.protocol = "loso"
    # Number of folds of "kfold".
    config.protocol_folds = 5
    # Folds to run (for "loso" the left-out subjects), comma-separated; empty: all.
    config.folds = ""
    # Inner folds of each fold, for the selection "inner" and the temperature; 0: none. Each trains
    # one more model.
    config.inner_folds = 0
    # The training subjects are split into this many parts; an inner fold validates on one of them.
    config.inner_parts = 5
    # The selection "inner" applies the epoch chosen on the validation subjects to the model that is
    # trained on all training subjects; False: to the inner folds' models themselves.
    config.inner_refit = True
    # Outputs of the network beyond the classes of the data. They are trained as classes that never
    # occur, and left out of predictions. (MMNet's release for three classes has 2.)
    config.spare_outputs = 0
    # Folds trained side by side on one device; 0: chosen from its free memory. Fewer either way, if
    # memory runs short.
    config.folds_per_device = 0
    # How products of float32 are computed: "float32", or, faster on GPUs, "tf32" (10 bits of
    # mantissa instead of 23) and "bfloat16" (7 bits). Sums are float32. No effect on a CPU.
    config.matmul_precision = "float32"
    # Several processes share the folds, one on each host, with one --workdir that all see.
    config.distributed = False
    # HOST:PORT of process 0, the number of processes, and which one this is. Empty, 0 and -1: read
    # from the cluster's environment (SLURM and others).
    config.coordinator = ""
    config.processes = 0
    config.process = -1
    # Devices to split a CPU into; 0: one for each core. No effect on accelerators.
    config.cpu_devices = 0
    # Whose final parameters to keep: "all", "none", or comma-separated folds.
    config.checkpoints = "all"
    # Epochs between snapshots of the folds in training, so that a killed run loses little; 0: only
    # on SIGTERM and Ctrl-C. A snapshot holds three times the parameters of every fold in training;
    # two are kept.
    config.checkpoint_every = 100
    # At least this many seconds between snapshots: fast epochs would otherwise wait for the disk.
    config.checkpoint_seconds = 300
    # Also write event files for TensorBoard into WORKDIR/tensorboard (needs the extra
    # "tensorboard"): mean training loss over folds, and UF1 and UAR of validation subjects, when
    # all folds are trained; never scores of test subjects.
    config.tensorboard = False
    # With config.tensorboard: also the curves of each fold, as soon as it is trained.
    config.tensorboard_folds = False

    # Augmentation of the training clips, drawn in every epoch: all face frames and whole flows of a
    # clip are moved alike, the flow's vectors with them. Predictions are made on the exact clip.
    config.augmentation = ConfigDict()
    # Probability of a mirrored face.
    config.augmentation.flip = 0.0
    # Largest rotation in degrees, either way; nearest pixel, zeros from outside.
    config.augmentation.rotation = 0.0
    # Largest shift on each axis, in pixels of the largest images as they are used (a random crop
    # after padding with that many zeros).
    config.augmentation.shift = 0
    # Frames drawn instead of the exact ones: up to these shares of the way from onset to apex after
    # the onset and before the apex, and of the way from apex to offset after the apex.
    config.augmentation.onset_late = 0.0
    config.augmentation.apex_early = 0.0
    config.augmentation.apex_late = 0.0

    config.model = ConfigDict()
    config.model.name = "HTNet"
    # The rest of config.model are the attributes of the module; see htnet_jax.models.HTNet.
    config.model.num_classes = 3
    config.model.image_size = 28
    config.model.patch_size = 7
    config.model.dim = 256
    config.model.heads = 3
    config.model.num_hierarchies = 3
    config.model.block_repeats = (2, 2, 10)
    config.model.mlp_mult = 4
    config.model.dropout = 0.0
    # Type of the network's computation, "float32" or "bfloat16"; parameters, loss and optimizer are
    # always float32.
    config.model.dtype = "float32"

    config.dataset = ConfigDict()
    config.dataset.name = "megc2019"
    # Builder config; empty: the data set's default.
    config.dataset.config = ""
    # Label set: how clips are put into classes, such as "megc3", "five", "own" or "objective";
    # those without a class are left out. Empty: the data set's default.
    config.dataset.labels = ""
    # Sources to use of a data set that has several, comma-separated; empty: all.
    config.dataset.sources = ""
    # Folder with the files the data set is built from on first use.
    config.dataset.manual_dir = ""
    # Where built data sets are kept; empty: $TFDS_DATA_DIR or ~/tensorflow_datasets.
    config.dataset.data_dir = ""
    # The network's input: "release" (the release's mosaic, row = x), "upright", or "none" (no
    # mosaic, the whole flow).
    config.dataset.layout = "release"
    # Channels of the flow in the network's order; the release reads its images as BGR.
    config.dataset.channels = "strain,v,u"
    # "minmax_255": each clip and channel to 0..255, as the released images already are; "none".
    config.dataset.scaling = "none"
    # Side in pixels that face frames are shrunk to; 0: as they are stored (224).
    config.dataset.frame_size = 0
    # Control experiment: labels permuted over all clips; an honest protocol then scores at chance.
    config.dataset.shuffle_labels = False
    return config


# What tells of the user's machine helps to resume, but is not for others to read. A run keeps it in
# a file of its own, `WORKDIR/private.json`.
PRIVATE_FILE = "private.json"
_PRIVATE_KEYS = (
    ("coordinator",),
    ("dataset", "manual_dir"),
    ("dataset", "data_dir"),
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


def parser_for(flag: Any) -> Callable[[Sequence[str]], list[str]]:
    """A command-line parser in which a config that cannot be read or set ends in one message.

    Args:
        flag: What `config_flags.DEFINE_config_file` returned.

    Returns:
        For `run_command`; raises a UserError for an unknown `--config.KEY`, or a config file that
        is missing or broken.
    """

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            rest = parse_flags(argv)
            # For a config file that is missing, the flag holds an object that raises when used.
            getattr(flag.value, "items", None)
            return rest
        except Exception as error:  # whatever the user's config file raises when it is run
            if unknown := _unknown_keys(argv):
                raise UserError("\n".join(unknown)) from error
            if isinstance(error, UserError):
                raise
            if missing := [path for path in _files(argv) if not Path(path).is_file()]:
                raise UserError(f"{missing[0]}: no such file") from error
            named = [argument for argument in argv if argument.startswith("--config")]
            raise UserError(f"{' '.join(named)}: {type(error).__name__}: {error}") from error

    return parse


def _files(argv: Sequence[str]) -> Iterator[str]:
    """The files that `--config=FILE` and `--config FILE` name."""
    for argument, following in zip(argv, [*argv[1:], ""], strict=True):
        if argument == "--config":
            yield following
        elif argument.startswith("--config="):
            yield argument.partition("=")[2].partition(":")[0]


def _unknown_keys(argv: Sequence[str]) -> list[str]:
    """One line for each unknown `--config.KEY`, with the nearest known one."""
    known = list(_keys(_config_of(argv)))
    lines = []
    for argument in argv:
        key = argument.partition("=")[0].removeprefix("--config.")
        if argument.startswith("--config.") and key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean --config.{near[0]}?" if near else f"there are {', '.join(known)}"
            lines.append(f"unknown setting --config.{key}; {hint}")
    return lines


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


def _keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key
