"""Reads runs back from their folders: predictions, records, and images of their clips."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax import foreign
from htnet_jax.config import read_private, split_private
from htnet_jax.errors import UserError, say
from htnet_jax.evaluation.predictions import FILE_NAME, Predictions
from htnet_jax.evaluation.protocols import PROTOCOLS
from htnet_jax.evaluation.summary import Images, shortened
from htnet_jax.io import data_folder
from htnet_jax.training.plan import Store

# A message names this many folds or folders.
_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Content:
    """What a run's folder holds; the records are None where there is no such file.

    The records may be published; `private` has the paths of the machine that trained the run.
    """

    predictions: Predictions
    config: dict[str, Any] | None
    environment: dict[str, Any] | None
    private: dict[str, str]


def holds_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    # Unlike pathlib's, these hold a name that is too long for one that is not there.
    return any(os.path.exists(folder / name) for name in (FILE_NAME, Store.FOLDER))


def read_all(folders: Sequence[Path], *, partial: bool = False) -> list[Content]:
    """Reads runs.

    Args:
        folders: The folders of the runs.
        partial: Accept what there is of a run that lacks folds or is not finished.

    Raises:
        UserError: Runs that cannot be read or lack folds; one message says what is wrong with each.
    """
    found, problems = [], []
    for folder in folders:
        try:
            found.append(_read(folder, partial))
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    return found


def images(content: Content, data_dir: str = "") -> Images:
    """Flows and mosaics of a run's clips, from the built data set.

    Args:
        content: The run.
        data_dir: Where built data sets are; empty: as the run's settings say.

    Raises:
        UserError: There are none; the message says why.
    """
    dataset = (content.config or {}).get("dataset")
    keys = ("name", "config", "layout", "channels", "scaling")
    if not isinstance(dataset, dict) or not all(isinstance(dataset.get(k), str) for k in keys):
        raise UserError("the run has no config.json that names its data set")
    name = dataset["name"]
    where = data_folder(data_dir or content.private.get("dataset.data_dir") or "")
    absent = f"{name} is not built in {where}; --data_dir=DIR says where it is"
    # Check the folder first: importing TFDS takes longer than scoring a run.
    if not (where / name).is_dir():
        raise UserError(absent)

    from htnet_jax.datasets import loading
    from htnet_jax.datasets.loading import images as images_of

    if loading.built(name, config=dataset["config"], data_dir=str(where)) is None:
        raise UserError(absent)
    labels = dataset.get("labels", "")
    arrays = loading.load(name, config=dataset["config"], data_dir=str(where), labels=labels)
    if arrays.fingerprint != str(content.predictions.fingerprint):
        raise UserError(f"{name} in {where} is not the data that the run saw")
    kept = np.isin(arrays.clips, content.predictions.clips)
    shown = dataclasses.replace(
        arrays,
        clips=arrays.clips[kept],
        flow=arrays.flow[kept],
        landmarks=arrays.landmarks[kept],
    )
    channels = [channel.strip() for channel in dataset["channels"].split(",")]
    inputs = loading.network_inputs(
        shown, layout=dataset["layout"], channels=channels, scaling=dataset["scaling"]
    )
    return images_of(shown, inputs, dataset["layout"])


def _read(folder: Path, partial: bool) -> Content:
    if os.path.isfile(folder):
        raise UserError(f"{folder}: is a file. Give the folder of the run, {folder.parent}.")
    if not os.path.isdir(folder):
        raise UserError(f"{folder}: no such folder. Give the --workdir of a training run.")
    inside = sorted(path.parent for path in folder.glob(f"*/{FILE_NAME}"))
    if inside and not (folder / FILE_NAME).exists():
        names = shortened([str(path) for path in inside], _SHOWN)
        raise UserError(f"{folder}: is not a run, but holds some: {names}. Give these.")
    if not holds_run(folder):
        raise UserError(
            f"{folder}: holds no run, there is no {FILE_NAME}. Give the --workdir of a training "
            "run."
        )
    if not (folder / FILE_NAME).exists() and (folder / Store.FOLDER).is_dir():
        predictions = _read_unfinished(folder, partial)
    else:
        predictions = Predictions.load(folder / FILE_NAME)
    config = _read_record(folder / "config.json")
    environment = _read_record(folder / "environment.json")
    private: dict[str, str] = {}
    if config is not None:
        # Runs of older versions have them among their settings.
        config, private = split_private(config)
    private |= read_private(folder)
    if environment is not None:
        environment.pop("command", None)
    seen = (environment or {}).get("data_fingerprint", str(predictions.fingerprint))
    if seen != str(predictions.fingerprint):
        raise UserError(
            f"{folder / FILE_NAME}: predictions of another data set than environment.json of "
            "this run says: the file was copied here from another run. Put the run's own "
            "predictions back, or train it again."
        )
    missing = predictions.missing_folds
    if missing and not partial:
        protocol = str(predictions.protocol)
        raise UserError(
            f"{folder}: {len(missing)} of the {len(predictions.protocol_folds)} folds of its "
            f"protocol ({PROTOCOLS.get(protocol, protocol)}) are missing: "
            f"{shortened(missing, _SHOWN)}. Train them, or give --partial to score the "
            f"{len(predictions.folds)} there are."
        )
    return Content(predictions, config, environment, private)


def _read_unfinished(folder: Path, partial: bool) -> Predictions:
    store = Store.open(folder / Store.FOLDER)
    if not partial:
        inner = " (with their inner folds)" if store.plan.inner_folds else ""
        raise UserError(
            f"{folder}: not finished: {len(store.finished_folds())} of {len(store.plan.folds)} "
            f"folds are{inner}. Give its training command again to resume, or give --partial to "
            "score the finished folds."
        )
    for problem in store.survey()[1]:
        say(f"left out, not a result of this run: {problem}")
    return store.assemble()


def _read_record(path: Path) -> dict[str, Any] | None:
    """A JSON object that the page shows; None where the run has no such file."""
    if not os.path.lexists(path):
        return None

    def check(record: Any) -> None:
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")

    remedy = "Restore it, or remove it: the scores do not need it."
    return foreign.read_json(path, "record of a run", remedy, check)
