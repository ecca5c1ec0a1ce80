"""Checks, layer by layer, that a network computes and learns the same in Flax and in PyTorch.

  python tools/check_parity.py                                   # random weights, published size
  python tools/check_parity.py --config=configs/demo.py --config.model.image_size=56
  python tools/check_parity.py --flax=RUN/checkpoints/SUBJECT --torch=FILE.pth

Prints the largest differences of every layer's activations, the logits, the loss, every parameter's
gradient, and the parameters after a number of optimizer steps, each against its tolerance. Exit
status 0: all agree; 1: something differs (the first is named); 2: the input is wrong.

Networks with batch normalisation are compared in evaluation and in training mode; there PyTorch
repeats the draws of Flax's drop path. Dropout is off throughout.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags

from htnet_jax.config import parser_for
from htnet_jax.errors import UserError, run_command
from htnet_jax.progress import Bar

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(Path(__file__).parents[1] / "configs" / "megc2019_htnet.py"),
    "Network, learning rate and data set; keys can be overridden.",
)
_FLAX = flags.DEFINE_string(
    "flax", None, "Checkpoint folder of one fold; its own config is used. Default: random weights."
)
_TORCH = flags.DEFINE_string(
    "torch", None, "PyTorch file with weights of its own. Default: converted from the Flax side."
)
_DTYPE = flags.DEFINE_list("dtype", "float64,float32", "Types to compute in.")
_MODE = flags.DEFINE_list(
    "mode", None, "eval, train or both; default: both with batch statistics, else eval."
)
_STEPS = flags.DEFINE_integer("steps", 20, "Optimizer steps.", lower_bound=0)
_OPTIMIZER = flags.DEFINE_enum(
    "optimizer", None, ["adam", "adamw", "sgd"], "Optimizer. Default: the config's."
)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", None, "Default: the config's.")
_WEIGHT_DECAY = flags.DEFINE_float(
    "weight_decay", None, "Default: the config's if it is its optimizer, else PyTorch's."
)
_DATA = flags.DEFINE_enum(
    "data",
    "random",
    ["random", "dataset"],
    "random: inputs, labels and texts drawn from --seed (pixels in 0..255; for a network of frames "
    "normalised ones); dataset: the config's data set.",
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 8, "Clips a step.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of random weights and inputs.")
_WORST = flags.DEFINE_bool("worst", False, "Print only the worst comparison of each kind.")
_LOSSES = flags.DEFINE_bool("losses", False, "Print the loss before every step, side by side.")
_JSON = flags.DEFINE_string("json", None, "File to write all figures to; '-' prints them instead.")
_PLOT = flags.DEFINE_string("plot", None, "PNG file to draw the losses over the steps to.")


MODES = ("eval", "train")


def main(argv: Sequence[str]) -> int:
    """Runs the comparison that the flags describe; returns the exit status."""
    if len(argv) > 1:
        raise UserError(
            f"unexpected argument {argv[1]!r}; settings are given as --config.KEY=VALUE"
        )
    from htnet_jax.torch_bridge import bridge_of, parity
    from htnet_jax.torch_bridge.traces import Losses

    if not _DTYPE.value:
        raise UserError("--dtype is empty; give float64, float32 or both")
    _check_outputs()
    if _FLAX.value and flags.FLAGS["config"].present:
        raise UserError("--config is not for --flax: a checkpoint has its own config")
    for flag, known in ((_DTYPE, [*parity.TOLERANCES]), (_MODE, MODES)):
        for value in flag.value or ():
            if value not in known:
                raise UserError(f"--{flag.name}={value} is unknown; use {' or '.join(known)}")
    module, variables, config = _flax_side(_CONFIG.value)
    bridge = bridge_of(config.model.name)
    batches, absent = _batches(module, bridge, config)
    channels = len(_channels(config))
    if variables is None:
        variables = parity.random_variables(module, bridge, channels, _SEED.value)
    torch_model = _torch_side(module, bridge, channels)
    dtypes = sorted(set(_DTYPE.value), reverse=True)
    modes = _MODE.value or (MODES if "batch_stats" in variables else MODES[:1])
    reports = []
    with Bar(len(modes) * parity.parts(dtypes, _STEPS.value), "comparing", "part") as bar:

        def say(text: str) -> None:
            bar.update(title=text)

        for mode in modes:
            reports += parity.run(
                module,
                bridge,
                variables,
                batches,
                dtypes=dtypes,
                optimizer=_optimizer(config),
                losses=Losses.of_config(config, module, absent),
                steps=_STEPS.value,
                torch_model=torch_model,
                train=mode == "train",
                on_progress=say,
            )
    _write(reports, config)
    return 0 if all(report.passed for report in reports) else 1


def _optimizer(config: ConfigDict) -> Any:
    """The config's settings, overridden by the flags."""
    from htnet_jax.torch_bridge.traces import Optimizer

    # A checkpoint of an older version does not name its optimizer.
    own = config.get("optimizer", "adam")
    name = _OPTIMIZER.value or own
    settings = dict(Optimizer.of_config(config).settings) if name == own != "adam" else {}
    if _WEIGHT_DECAY.value is not None and name != "adam":
        settings["weight_decay"] = _WEIGHT_DECAY.value
    given = _LEARNING_RATE.value
    return Optimizer(name, config.learning_rate if given is None else given, settings)


def _check_outputs() -> None:
    """Checked before the work, so that none is lost."""
    if _PLOT.value and (not _PLOT.value.endswith(".png") or not _STEPS.value):
        raise UserError("--plot needs a name that ends in .png, and --steps above 0")
    for name in (_JSON.value, _PLOT.value):
        if name and name != "-":
            try:
                Path(name).parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"{name}: cannot be written ({error.strerror})") from error
            if Path(name).is_dir():
                raise UserError(f"{name}: is a folder; give a file name")


def _flax_side(config: ConfigDict) -> tuple[Any, Any, ConfigDict]:
    """`(module, variables, config)`; variables are None for random weights."""
    import htnet_jax
    from htnet_jax.training.state import build_module

    if _FLAX.value:
        return htnet_jax.load(_FLAX.value)
    return build_module(config.model), None, config


def _torch_side(module: Any, bridge: Any, channels: int) -> Any:
    """The PyTorch network with the weights of `--torch`, or None."""
    if not _TORCH.value:
        return None
    from htnet_jax.torch_bridge import convert, files

    read = files.read(_TORCH.value)
    for note in read.notes:
        print(f"{_TORCH.value}: {note}", file=sys.stderr)
    state_dict, notes = convert.drop_unused(read.state_dict, bridge)
    for note in notes:
        print(f"{_TORCH.value}: {note}", file=sys.stderr)
    try:
        # Names and shapes are compared here, so that all that is wrong is said at once.
        variables = convert.from_state_dict(
            state_dict, bridge.table, convert.expected_variables(module, channels)
        )
    except UserError as error:
        raise UserError(f"{_TORCH.value}: {error}") from error
    model = bridge.build(module, channels)
    model.load_state_dict(convert.to_state_dict(variables, bridge.table), strict=True)
    return model


def _channels(config: ConfigDict) -> list[str]:
    """The channels of the flow."""
    return [name.strip() for name in config.dataset.channels.split(",")]


def _batches(module: Any, bridge: Any, config: ConfigDict) -> tuple[list[Any], tuple[str, ...]]:
    """Batches in file order, as many as there are steps at most; the features that have no data."""
    from htnet_jax.torch_bridge.traces import Clips

    names = _channels(config)
    shapes = module.input_shapes(len(names))
    count = max(1, _STEPS.value)
    if _DATA.value == "random":
        rng = np.random.default_rng(_SEED.value)

        def pixels(shape: tuple[int, ...]) -> np.ndarray:
            shape = (_BATCH_SIZE.value, *shape)
            # Frames reach a network normalised, mosaics of flow as they are.
            drawn = rng.normal(size=shape) if len(shapes) > 1 else rng.uniform(0, 255, shape)
            return drawn.astype(np.float32)

        return [
            Clips(
                tuple(pixels(shape) for shape in shapes),
                rng.integers(0, config.model.num_classes, _BATCH_SIZE.value),
                bridge.draw(module, _BATCH_SIZE.value, rng),
            )
            for _ in range(count)
        ], ()
    import jax

    from htnet_jax.datasets import loading
    from htnet_jax.features.features import check_names, make_feed
    from htnet_jax.training.settings import check_fit

    check_names(config, module)
    arrays = loading.load(
        config.dataset.name,
        config=config.dataset.config,
        data_dir=config.dataset.data_dir,
        manual_dir=config.dataset.manual_dir,
        labels=config.dataset.labels,
    )
    feed = make_feed(arrays, config, module)
    check_fit(config, module, arrays, feed)
    rows = np.arange(len(arrays.labels))
    starts = range(0, len(rows), _BATCH_SIZE.value)
    cut = [rows[start : start + _BATCH_SIZE.value] for start in starts][:count]

    fitted = feed.fitted(feed.arrays, rows, np.ones(len(rows), bool))

    def clips(batch: np.ndarray) -> Clips:
        _, privileged = feed.varied(fitted, batch, jax.random.key(0))
        found = feed.exact(fitted, batch), arrays.labels[batch], privileged
        return Clips(*jax.tree.map(np.array, found))

    return [clips(batch) for batch in cut], feed.absent


def _write(reports: Sequence[Any], config: ConfigDict) -> None:
    from htnet_jax.io import write_atomically
    from htnet_jax.torch_bridge import parity

    text = json.dumps(parity.as_json(reports), indent=2) + "\n"
    if _JSON.value == "-":
        print(text, end="")
    else:
        for report in reports:
            print(parity.table(report, worst_only=_WORST.value))
            if _LOSSES.value:
                print(parity.loss_table(report))
        if len(reports) > 1:
            print("\n".join(["", *(report.verdict for report in reports)]))
        if _JSON.value:
            write_atomically(Path(_JSON.value), lambda file: file.write(text.encode()))
            print(f"Written: {_JSON.value}")
    if _PLOT.value:
        optimizer = _OPTIMIZER.value or config.get("optimizer", "adam")
        title = f"{config.model.name}, {optimizer}, {_DATA.value}"
        parity.plot_losses(reports, Path(_PLOT.value), title)
        print(f"Written: {_PLOT.value}", file=sys.stderr)


if __name__ == "__main__":
    run_command(main, flags_parser=parser_for(_CONFIG))
