"""What `train.py` runs: config -> data -> folds -> predictions, checkpoints and report on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from htnet_jax.datasets import loading
from htnet_jax.datasets.loading import pictures
from htnet_jax.errors import UserError
from htnet_jax.evaluation import predictions, report
from htnet_jax.evaluation.summary import Run
from htnet_jax.features.feeds import Feed
from htnet_jax.features.inputs import check_names, make_feed
from htnet_jax.training import cluster, planning, settings, workdir
from htnet_jax.training.checkpoints import fold_folder, save_fold
from htnet_jax.training.cluster import Cluster, Others
from htnet_jax.training.events import Events
from htnet_jax.training.folds import Fold, FoldResult, Keeping, Progress, Regrouped
from htnet_jax.training.handover import Handover
from htnet_jax.training.plan import Plan, Result, Store, Unit
from htnet_jax.training.snapshots import Snapshots
from htnet_jax.training.stopping import StopRequest
from htnet_jax.training.trainers import Trainer, build_model, make_trainer


def run(config: ConfigDict, folder: Path) -> Run | None:
    """Runs a whole experiment, or the rest of one that was interrupted.

    Args:
        config: See `htnet_jax.config.default_config`.
        folder: Folder for the results; created if missing.

    Returns:
        The run, as its report shows it; None in the processes that only helped.

    Raises:
        UserError: Anything wrong with the config, the data or the folder.
    """
    among = cluster.here()
    others = Others(folder / Store.FOLDER, among)
    with others.told():
        settings.check(config)
        as_json = json.loads(config.to_json())
        model = build_model(config)
        check_names(config, model)
        if among.leads:
            workdir.create(folder)
            with workdir.locked(folder):
                return _run(config, as_json, model, folder, among, others)
        workdir.refuse_finished(folder)
        # Process 0 makes the folder, the records and, if need be, the data set.
        others.meet()
        return _run(config, as_json, model, folder, among, others)


def _run(
    config: ConfigDict,
    as_json: dict[str, Any],
    model: Any,
    folder: Path,
    among: Cluster,
    others: Others,
) -> Run | None:
    if among.leads:
        record = workdir.unfinished(folder, as_json)
    else:
        record = workdir.joined(folder, as_json, among.index)
    workdir.check_versions(folder, record)
    arrays = planning.of_sources(_load(config), config.dataset.sources)
    labels = _labels(arrays, config)
    feed = make_feed(arrays, config)
    planning.check_fit(config, model, arrays, feed)
    plan = planning.make_plan(config, arrays, labels)
    keep = planning.kept_checkpoints(config, plan)
    if record and record.get("data_fingerprint") != arrays.fingerprint:
        if not among.leads:
            raise UserError(
                f"process {among.index} has other data than process 0 in the data set "
                f"{arrays.name}: the fingerprint is {arrays.fingerprint} here, "
                f"{record.get('data_fingerprint')} there; build it from the same files, or give "
                "all processes one --config.dataset.data_dir that all hosts share"
            )
        raise UserError(
            f"{folder}: was started on other data ({arrays.name} has changed since); "
            "choose another --workdir"
        )
    stages = [
        _Stage(model, config, plan, feed, inner, record, among)
        for inner in (False, True)
        if plan.inner_folds or not inner
    ]
    if among.leads:
        checkpoints = len(keep) * len(plan.seeds)
        workdir.check_space(folder, checkpoints, stages[0].trainer.parameter_bytes)
    if not record:
        groups = {stage.key: stage.trainer.folds_per_device for stage in stages}
        record = workdir.environment(arrays.name, arrays.fingerprint, groups)
        workdir.write_json(folder / "environment.json", record)
        workdir.write_json(folder / "config.json", as_json)
    store = Store(folder / Store.FOLDER, plan)
    identity = workdir.identity(settings.digest(as_json), arrays.fingerprint)
    results = _Results(store, folder, keep, as_json, among)
    if among.leads:
        others.meet()
    try:
        with (
            Events(
                folder / "tensorboard" if config.tensorboard else None, plan, among.index
            ) as events,
            StopRequest(others.stopped) as stop,
        ):
            _train(stages, config, results, events, identity, stop, record, folder)
            if not among.leads:
                cluster.wait((folder / predictions.FILE_NAME).exists, stop)
                return None
            cluster.wait(results.complete, stop)
    finally:
        if among.leads:
            _record_choices(stages, results.handover, record, folder)
    finished = Run.of(
        folder.resolve().name,
        store.assemble(),
        config=as_json,
        environment=record,
        images=pictures(arrays, feed.arrays.get("mosaic"), config.dataset.layout),
    )
    report.write_run(finished, folder)
    finished.predictions.save(folder / predictions.FILE_NAME)
    shutil.rmtree(store.folder)
    return finished


class _Stage:
    """The folds' own models, or those of their inner folds: one compiled program each.

    Apart, because with the inner folds' clips among those to predict, the folds' own models would
    be compiled for other shapes: their bits must not depend on whether there are inner folds.
    """

    def __init__(
        self,
        model: Any,
        config: ConfigDict,
        plan: Plan,
        feed: Feed,
        inner: bool,
        record: dict[str, Any],
        among: Cluster,
    ) -> None:
        self.title = "inner, " if inner else ""
        # Group sizes shape the arithmetic: a resumed run keeps them.
        self.key = "inner_folds_per_device" if inner else "folds_per_device"
        self.folds = planning.folds(plan, plan.units(inner=inner))
        self.units = {fold.name: unit for unit, fold in self.folds.items()}
        self.trainer: Trainer = make_trainer(
            model,
            config,
            plan,
            feed,
            list(self.folds.values()),
            record.get(self.key, config.folds_per_device),
            among,
            next((c["devices_at_once"] for c in reversed(self._changes(record))), 0),
        )

    def _changes(self, record: dict[str, Any]) -> list[dict[str, Any]]:
        return [change for change in record.get("regrouped", []) if change["of"] == self.key]

    def record_change(self, record: dict[str, Any], reason: str, trained: int) -> None:
        """Notes in the environment record that the models trained from now on are grouped anew."""
        record[self.key] = self.trainer.folds_per_device
        change = {
            "of": self.key,
            "folds_per_device": self.trainer.folds_per_device,
            "devices_at_once": self.trainer.devices_at_once,
            "reason": reason,
            "models_trained_before": trained,
        }
        record["regrouped"] = [*record.get("regrouped", []), change]

    def rounds(self, done: set[Unit]) -> list[list[Fold]]:
        return self.trainer.rounds([self.folds[unit].name for unit in done if unit in self.folds])

    @property
    def choices(self) -> dict[str, Any]:
        """The hyper-parameters that a baseline chose in the folds trained so far."""
        choices = getattr(self.trainer, "choices", {})
        return {name: choice for name, choice in choices.items() if choice}


class _Results:
    """What trained models leave in the run's folder: process 0 writes it, helpers hand it over."""

    def __init__(
        self, store: Store, folder: Path, keep: set[str], as_json: dict[str, Any], among: Cluster
    ) -> None:
        """`keep`: the folds whose final parameters to keep."""
        self.store, self.among = store, among
        self.handover = Handover(store.folder)
        self._as_json = as_json
        self._checkpoints = {
            unit: fold_folder(folder, self._checkpoint_name(unit))
            for unit in store.plan.units(inner=False)
            if store.plan.folds[unit.fold] in keep
        }
        self._missing = 0

    def keeps(self, unit: Unit) -> bool:
        """Whether the final parameters of a model become a checkpoint."""
        return unit in self._checkpoints

    def keep(self, unit: Unit, kept: Result, result: FoldResult, choices: dict[str, Any]) -> None:
        """Keeps everything of a model; its predictions last, which make it count as finished."""
        path = self._checkpoints.get(unit)
        if path and self.among.leads:
            self._save(unit, result.variables)
        elif path:
            self.handover.leave_variables(path.name, result.variables)
        if choices and not self.among.leads:
            self.handover.leave_choices(self.among.index, choices)
        self.store.write(unit, kept)

    def complete(self) -> bool:
        """Whether all models are trained; takes what was handed over, says how many are missing."""
        done = self.store.finished()
        for unit in self._checkpoints.keys() & done:
            name = self._checkpoints[unit].name
            self.handover.take_variables(name, lambda found, unit=unit: self._save(unit, found))
        missing = self.store.plan.unit_count - len(done)
        if missing and missing != self._missing:
            _say(f"waiting for the other processes: {missing} models are left")
        self._missing = missing
        return not missing

    def _save(self, unit: Unit, variables: Any) -> None:
        seed = int(self.store.plan.seeds[unit.seed])
        save_fold(self._checkpoints[unit], variables, {**self._as_json, "seed": seed, "seeds": 1})

    def _checkpoint_name(self, unit: Unit) -> str:
        name, seed = str(self.store.plan.folds[unit.fold]), int(self.store.plan.seeds[unit.seed])
        return f"{name}.seed{seed}" if unit.seed else name


def _train(
    stages: list[_Stage],
    config: ConfigDict,
    results: _Results,
    events: Events,
    identity: dict[str, Any],
    stop: StopRequest,
    record: dict[str, Any],
    folder: Path,
) -> None:
    """Trains the units that are not finished yet; after every round all finished ones are saved."""
    store, among = results.store, results.among
    done = store.finished()

    def pending() -> list[tuple[_Stage, list[Fold]]]:
        return [(stage, folds) for stage in stages for folds in stage.rounds(done)]

    rounds = pending()
    if among.count == 1:
        _discard_others(store, rounds)
    number = 0
    # Of this process: what the others train is not shown.
    total = sum(len(folds) for stage in stages for folds in stage.rounds(set()))
    left = sum(len(folds) for _, folds in rounds)
    if done and among.leads:
        _say(f"resuming: {len(done)} of {store.plan.unit_count} models are trained")
    with tqdm(
        total=total * config.epochs,
        initial=(total - left) * config.epochs,
        unit="epoch",
        desc="compiling",
        mininterval=1,
        smoothing=0.1,
    ) as bar:
        while rounds:
            stage, folds = rounds.pop(0)
            number += 1
            title = f"{stage.title}round {number}/{number + len(rounds)}, {len(folds)} folds"
            if among.count > 1:
                title = f"process {among.index}, {title}"

            def show(progress: Progress, title: str = title) -> None:
                if progress.compiling_s:
                    bar.write(f"compiled in {progress.compiling_s:.0f} s", file=sys.stderr)
                    # The time that is left is told from the epochs alone.
                    bar.unpause()
                    return
                bar.set_description(title, refresh=False)
                bar.set_postfix(
                    epoch=f"{progress.epoch}/{config.epochs}",
                    loss=f"{progress.loss:.4f}",
                    refresh=False,
                )
                bar.update(progress.fold_epochs)

            snapshots = Snapshots(_state_folder(store, folds), identity)
            keeping = Keeping(snapshots, config.checkpoint_every, stop, config.checkpoint_seconds)
            units = {fold.name: stage.units[fold.name] for fold in folds}
            wanted = [name for name, unit in units.items() if results.keeps(unit)]
            try:
                trained = stage.trainer.train(folds, config.epochs, show, keeping, wanted)
            except Regrouped as change:
                bar.write(str(change), file=sys.stderr)
                # Before the new size is on disk: no run may find the state of another one.
                snapshots.clear()
                before = sum(unit in done for unit in stage.units.values())
                stage.record_change(record, str(change), before)
                workdir.write_json(folder / "environment.json", record)
                rounds, number = pending(), number - 1
                bar.reset()
                bar.update(len(done) * config.epochs)
                continue
            for result in trained:
                unit = units[result.fold.name]
                outcome = Result(result.logits, result.train_loss)
                events.write(unit, outcome)
                results.keep(unit, outcome, result, stage.choices)
                done.add(unit)
            snapshots.clear()
            stop.raise_if_requested()


def _state_folder(store: Store, folds: list[Fold]) -> Path:
    """Where a round's snapshots are: named after its folds, which other devices may group anew."""
    names = "\n".join(fold.name for fold in folds)
    return store.folder / f"state-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _discard_others(store: Store, rounds: list[tuple[_Stage, list[Fold]]]) -> None:
    """Deletes the states of rounds that are formed no more, as when part of one was finished."""
    needed = {_state_folder(store, folds) for _, folds in rounds}
    others = [found for found in store.folder.glob("state-*") if found not in needed]
    for found in others:
        shutil.rmtree(found)
    if others:
        _say(f"{len(others)} unfinished rounds had other groups of folds: those begin anew")


def _record_choices(
    stages: list[_Stage], handover: Handover, record: dict[str, Any], folder: Path
) -> None:
    """Adds the hyper-parameters that baselines chose in their folds to the environment record."""
    chosen = handover.choices()
    for stage in stages:
        chosen |= stage.choices
    if chosen:
        record["hyperparameters"] = {**record.get("hyperparameters", {}), **chosen}
        workdir.write_json(folder / "environment.json", record)


def _load(config: ConfigDict) -> loading.ClipArrays:
    dataset = config.dataset
    return loading.load(
        dataset.name,
        config=dataset.config,
        manual_dir=dataset.manual_dir,
        data_dir=dataset.data_dir,
        labels=dataset.labels,
    )


def _labels(arrays: loading.ClipArrays, config: ConfigDict) -> np.ndarray:
    if not config.dataset.shuffle_labels:
        return arrays.labels
    _say("control experiment: the labels are permuted over all clips")
    return np.random.default_rng(config.seed).permutation(arrays.labels)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
