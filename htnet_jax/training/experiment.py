"""What `train.py` runs: config -> data -> folds -> predictions, checkpoints and report on disk."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from htnet_jax import optimizers
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation import protocols, report
from htnet_jax.evaluation.files import write_atomically
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training.checkpoints import build_module, fold_folder, save_fold
from htnet_jax.training.config import default_config
from htnet_jax.training.folds import Fold, FoldResult, FoldTrainer, Progress

PREDICTIONS = "predictions.npz"
# The finished folds of a run that is still going, or was interrupted.
PARTIAL = "predictions.partial.npz"

# Keys that do not change what a run computes: a run may be resumed with other values of them.
_PLACE_KEYS = (("dataset", "manual_dir"), ("dataset", "data_dir"), ("cpu_devices",))

_PACKAGES = ("htnet_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def run(config: ConfigDict, workdir: Path) -> report.Summary:
    """Runs a whole experiment, or the rest of one that was interrupted.

    Args:
        config: See `htnet_jax.training.config.default_config`.
        workdir: Folder for the results; created if missing.

    Returns:
        The summary that `metrics.json` holds.

    Raises:
        UserError: Anything wrong with the config, the data or the folder.
    """
    _check_settings(config)
    settings = json.loads(config.to_json())
    module = build_module(config.model)
    record = _open_workdir(workdir, settings)
    arrays = _load(config)
    labels = _labels(arrays, config)
    inputs = loading.network_inputs(
        arrays,
        layout=config.dataset.layout,
        channels=_names(config.dataset.channels),
        scaling=config.dataset.scaling,
    )
    _check_fit(config, arrays, inputs)
    folds = _folds(config, arrays, labels)
    keep = _kept_checkpoints(config, folds)
    if record and record.get("data_fingerprint") != arrays.fingerprint:
        raise UserError(
            f"{workdir}: was started on other data ({arrays.name} has changed since); "
            "choose another --workdir"
        )
    trainer = FoldTrainer(
        module,
        optimizers.adam(config.learning_rate),
        inputs,
        labels,
        folds,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.shuffle,
        folds_per_device=record.get("folds_per_device", config.folds_per_device),
    )
    _check_space(trainer, workdir, len(keep))
    if not record:
        record = _environment(arrays, trainer)
        _write_json(workdir / "environment.json", record)
        _write_json(workdir / "config.json", settings)
    predictions = _train(trainer, config, arrays, labels, workdir, keep, settings)
    summary = report.write_report(
        predictions, workdir, title=workdir.resolve().name, config=settings, environment=record
    )
    predictions.save(workdir / PREDICTIONS)
    (workdir / PARTIAL).unlink(missing_ok=True)
    return summary


def _train(
    trainer: FoldTrainer,
    config: ConfigDict,
    arrays: loading.ClipArrays,
    labels: np.ndarray,
    workdir: Path,
    keep: set[str],
    settings: dict[str, Any],
) -> Predictions:
    """Trains the folds that are not finished yet; after every round all finished ones are saved."""
    partial = workdir / PARTIAL
    parts = [Predictions.load(partial)] if partial.exists() else []
    done = {str(fold) for part in parts for fold in part.folds}
    rounds = trainer.rounds(done)
    if done:
        _say(f"resuming: {len(done)} of {len(trainer.folds)} folds are finished")
    total = len(trainer.folds) * config.epochs
    finished = total - sum(len(folds) for folds in rounds) * config.epochs
    with tqdm(
        total=total, initial=finished, unit="epoch", desc="compiling", mininterval=1, smoothing=0.1
    ) as bar:
        for number, folds in enumerate(rounds, 1):

            def show(progress: Progress, number: int = number, count: int = len(folds)) -> None:
                bar.set_description(f"round {number}/{len(rounds)}, {count} folds", refresh=False)
                bar.set_postfix(
                    epoch=f"{progress.epoch}/{config.epochs}",
                    loss=f"{progress.loss:.4f}",
                    refresh=False,
                )
                bar.update(progress.fold_epochs)

            results = trainer.train(folds, config.epochs, show)
            for result in results:
                if result.fold.name in keep:
                    save_fold(fold_folder(workdir, result.fold.name), result.params, settings)
            # A group that was only partly finished is trained again as a whole.
            fresh = [result for result in results if result.fold.name not in done]
            parts = [Predictions.concatenate([*parts, _predictions(fresh, arrays, labels)])]
            parts[0].save(partial)
    return parts[0]


def _predictions(
    results: Sequence[FoldResult], arrays: loading.ClipArrays, labels: np.ndarray
) -> Predictions:
    rows = np.concatenate([np.flatnonzero(result.fold.test) for result in results])
    sizes = [int(result.fold.test.sum()) for result in results]
    epochs = len(results[0].train_loss)
    return Predictions(
        logits=np.concatenate([result.logits for result in results], axis=1),
        epochs=np.arange(1, epochs + 1, dtype=np.int32),
        fold=np.repeat(np.arange(len(results), dtype=np.int32), sizes),
        folds=np.array([result.fold.name for result in results]),
        clips=arrays.clips[rows],
        subjects=arrays.subjects[rows],
        sources=arrays.sources[rows],
        labels=labels[rows].astype(np.int32),
        class_names=np.array(arrays.class_names),
        train_loss=np.stack([result.train_loss for result in results]),
    )


def _check_settings(config: ConfigDict) -> None:
    """The keys are those of `default_config` (the model checks its own), the values possible."""
    known, given = (_setting_names(tree) for tree in (default_config(), config))
    wrong = [f"config.{key} is unknown" for key in sorted(given - known)]
    wrong += [f"config.{key} is missing" for key in sorted(known - given)]
    if wrong:
        raise UserError(
            "the config does not have the keys of htnet_jax/training/config.py:\n"
            + "\n".join(f"  {line}" for line in wrong)
        )
    for key in ("epochs", "batch_size"):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be at least 1")
    for key in ("seed", "folds_per_device", "cpu_devices"):
        if config[key] < 0:
            raise UserError(f"config.{key}={config[key]} must not be negative")
    # JAX's keys take 32 bits of a seed.
    if config.seed >= 2**32:
        raise UserError(f"config.seed={config.seed} must be below 2**32")
    if not 0 < config.learning_rate < float("inf"):
        raise UserError(f"config.learning_rate={config.learning_rate} must be above 0 and finite")


def _setting_names(config: ConfigDict) -> set[str]:
    names = {key for key in _flatten(config.to_dict()) if not key.startswith("model.")}
    return names | ({"model"} if "model" in config else set())


def _open_workdir(workdir: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Creates the folder, or checks that it holds an unfinished run of the same settings.

    Returns:
        The environment record of the run to resume; empty for a new run.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be created ({error.strerror}); choose another --workdir"
        ) from error
    if (workdir / PREDICTIONS).exists():
        raise UserError(
            f"workdir {workdir} already holds a finished run; choose another --workdir, or "
            f"print its table again with: python -m htnet_jax.evaluate {workdir}"
        )
    # Found out now, not after hours of training.
    probe = workdir / ".writable"
    write_atomically(probe, lambda file: file.write(b""))
    probe.unlink()
    if not (workdir / "config.json").exists():
        return {}
    try:
        old = json.loads((workdir / "config.json").read_text())
        record = json.loads((workdir / "environment.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"workdir {workdir} holds a run that cannot be read ({error}); choose another --workdir"
        ) from error
    changed = _differences(_comparable(old), _comparable(settings))
    if changed:
        raise UserError(
            f"workdir {workdir} holds an unfinished run with other settings:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nChoose another --workdir, or repeat the settings of that run to resume it."
        )
    return record


def _comparable(settings: dict[str, Any]) -> dict[str, Any]:
    flat = _flatten(settings)
    return {key: value for key, value in flat.items() if tuple(key.split(".")) not in _PLACE_KEYS}


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [
        f"config.{key}: {old.get(key, 'not set')} there, {new.get(key, 'not set')} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key)
    ]


def _load(config: ConfigDict) -> loading.ClipArrays:
    dataset = config.dataset
    return loading.load(
        dataset.name,
        config=dataset.config,
        manual_dir=dataset.manual_dir,
        data_dir=dataset.data_dir,
    )


def _labels(arrays: loading.ClipArrays, config: ConfigDict) -> np.ndarray:
    if not config.dataset.shuffle_labels:
        return arrays.labels
    _say("control experiment: the labels are permuted over all clips")
    return np.random.default_rng(config.seed).permutation(arrays.labels)


def _check_fit(config: ConfigDict, arrays: loading.ClipArrays, inputs: np.ndarray) -> None:
    size = inputs.shape[1]
    if config.model.get("image_size", size) != size:
        raise UserError(
            f"config.model.image_size={config.model.image_size}, but the flow of {arrays.name} is "
            f"{size} px; set --config.model.image_size={size}, or choose another "
            "config.dataset.config"
        )
    classes = len(arrays.class_names)
    if config.model.get("num_classes", classes) != classes:
        raise UserError(
            f"config.model.num_classes={config.model.num_classes}, but {arrays.name} has "
            f"{classes} classes; set --config.model.num_classes={classes}"
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _folds(config: ConfigDict, arrays: loading.ClipArrays, labels: np.ndarray) -> list[Fold]:
    subjects = arrays.subjects
    names = protocols.loso_folds(subjects)
    wanted = _subjects("folds", config.folds, names) or set(names)
    for name, lost in protocols.classes_lost(labels, subjects).items():
        if name in wanted:
            classes = ", ".join(arrays.class_names[label] for label in lost)
            _say(f"warning: without subject {name} no training clip is left of class {classes}")
    return [
        Fold(name, train=subjects != name, test=subjects == name)
        for name in names
        if name in wanted
    ]


def _subjects(key: str, text: str, known: Sequence[str]) -> set[str]:
    chosen = _names(text)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise UserError(
            f"config.{key}: no subject {', '.join(unknown)}; the subjects are {', '.join(known)}"
        )
    return set(chosen)


def _kept_checkpoints(config: ConfigDict, folds: Sequence[Fold]) -> set[str]:
    names = [fold.name for fold in folds]
    if config.checkpoints == "all":
        return set(names)
    if config.checkpoints in ("", "none"):
        return set()
    return _subjects("checkpoints", config.checkpoints, names)


def _check_space(trainer: FoldTrainer, workdir: Path, checkpoints: int) -> None:
    need = checkpoints * trainer.parameter_bytes
    free = shutil.disk_usage(workdir).free
    if need > free:
        raise UserError(
            f"workdir {workdir}: {checkpoints} checkpoints need {need / 1e9:.1f} GB, but only "
            f"{free / 1e9:.1f} GB are free; set --config.checkpoints=none or to a few subjects"
        )


def _environment(arrays: loading.ClipArrays, trainer: FoldTrainer) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return {
        "started": now.isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device) for device in jax.devices()],
        "device_kind": jax.devices()[0].device_kind,
        "dataset": arrays.name,
        "data_fingerprint": arrays.fingerprint,
        "folds_per_device": trainer.folds_per_device,
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed as a package"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
