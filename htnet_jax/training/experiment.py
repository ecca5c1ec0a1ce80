"""What `train.py` runs: config -> data -> plan -> folds -> predictions, checkpoints and report."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import split_private
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError, count
from htnet_jax.evaluation import predictions, report
from htnet_jax.evaluation.protocols import unique_subjects
from htnet_jax.evaluation.summary import Run, shortened
from htnet_jax.features import Feed, check_names, make_feed
from htnet_jax.io import inner_folder
from htnet_jax.learn import losses, step
from htnet_jax.progress import Bar
from htnet_jax.training import hosts, pretrained, settings, workdir
from htnet_jax.training import plan as plans
from htnet_jax.training.describe import make_describer
from htnet_jax.training.events import Events
from htnet_jax.training.folds import Fold, FoldResult, FoldTrainer, Keeping, Progress
from htnet_jax.training.interrupts import Stopped, StopRequest
from htnet_jax.training.memory import Regrouped
from htnet_jax.training.plan import ORDERS, Plan, Result, Store, Unit
from htnet_jax.training.state import KEPT, Snapshots, fold_folder, save_fold

if TYPE_CHECKING:
    from htnet_jax.training.baselines import BaselineTrainer

# A message names this many models.
_SHOWN = 20

Trainer: TypeAlias = "FoldTrainer | BaselineTrainer"


def run(config: ConfigDict, folder: Path) -> Run | None:
    """Runs a whole experiment, or resumes one that was interrupted.

    Several processes run this in lockstep; process 0 writes all but the snapshots.

    Args:
        config: See `htnet_jax.config.default_config`.
        folder: Folder for the results; created if missing.

    Returns:
        The run, as its report shows it; None in the other processes than the first.

    Raises:
        UserError: Anything wrong with the config, the data or the folder.
    """
    with hosts.together():
        settings.check(config)
        model = settings.build_model(config)
        check_names(config, model)
        hosts.check_devices()
        with _locked(folder):
            return _Experiment(config, model, folder).run()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keeps other runs out of the folder, which is made here."""
    if not hosts.leads():
        yield
        return
    workdir.create(folder)
    with workdir.locked(folder):
        yield


def _first(function: Callable[[], Any]) -> Any:
    """What a function gives in process 0, JSON-safe, told to all; the others do not call it."""
    return json.loads(hosts.texts(json.dumps(function() if hosts.leads() else None))[0])


@dataclasses.dataclass
class _Stage:
    """The folds' own models, or those of their inner folds: one compiled program each.

    Apart, because with the inner folds' clips among those to predict, the folds' own models would
    be compiled for other shapes: their bits must not depend on whether there are inner folds.

    Attributes:
        key: Under which the environment record keeps its group size.
        title: For the progress bar.
        units: Name of a fold -> the unit that it trains.
        trainer: Of these folds.
    """

    key: str
    title: str
    units: dict[str, Unit]
    trainer: Trainer

    def rounds(self, done: set[Unit]) -> list[list[Fold]]:
        return self.trainer.rounds([name for name, unit in self.units.items() if unit in done])

    def record_change(self, record: dict[str, Any], reason: str, done: set[Unit]) -> None:
        """Notes in the environment record that the models trained from now on are regrouped."""
        record[self.key] = self.trainer.folds_per_device
        change = {
            "of": self.key,
            "folds_per_device": self.trainer.folds_per_device,
            "devices_at_once": self.trainer.devices_at_once,
            "reason": reason,
            "models_trained_before": sum(unit in done for unit in self.units.values()),
        }
        record["regrouped"] = [*record.get("regrouped", []), change]


class _Experiment:
    """One run: its data, plan and records, and the rounds of training."""

    def __init__(self, config: ConfigDict, model: Any, folder: Path) -> None:
        """Loads the data, and refuses what does not fit together."""
        self.config, self.model, self.folder = config, model, folder
        self.as_json, self.private = split_private(json.loads(config.to_json()))
        self._check_settings()
        self.record = _first(lambda: workdir.unfinished(folder, self.as_json))
        workdir.check_versions(folder, self.record)
        self.start = pretrained.read(model, config.model.name)
        # Process 0 builds the data set if necessary; the others find it built.
        arrays = _load(config) if hosts.leads() else None
        leads_with = hosts.texts(arrays.fingerprint if arrays else "")[0]
        arrays = arrays or _load(config)
        if arrays.fingerprint != leads_with:
            raise UserError(
                f"process {jax.process_index()} has other data than process 0 in the data set "
                f"{arrays.name}: the fingerprint is {arrays.fingerprint} here, {leads_with} there; "
                "build it from the same files, or give all processes one "
                "--config.dataset.data_dir that all hosts share"
            )
        self.arrays = plans.of_sources(arrays, config.dataset.sources)
        self.feed = make_feed(self.arrays, config, model)
        settings.check_fit(config, model, self.arrays, self.feed)
        self._tell_of_losses()
        # Of files that the settings name, which are not theirs to tell of: their content.
        start = {"model.pretrained": self.start.digest} if self.start.digest else {}
        self.files = start | self.feed.files
        self._check_files()
        self.digest = settings.digest(self.as_json | ({"files": self.files} if self.files else {}))
        labels = _labels(self.arrays, config)
        self.plan = plans.make_plan(config, self.arrays, labels, self.digest, hosts.tell)
        sets, self.describer = make_describer(model, config, self.arrays, self.feed, self.plan)
        self.plan = dataclasses.replace(self.plan, sets=sets)
        workdir.check_memory(self.plan)
        self.run_digest = workdir.run_digest(self.digest, self.arrays.fingerprint)
        self.kept = plans.kept_checkpoints(config, self.plan)
        if self.record and self.record.get("data_fingerprint") != self.arrays.fingerprint:
            raise UserError(
                f"{folder}: was started on other data ({self.arrays.name} has changed since); "
                "choose another --workdir"
            )
        self.stages = [
            self._stage(inner=inner)
            for inner in (False, True)
            if self.plan.inner_folds or not inner
        ]
        self._tell_of_whole_sets()

    def _check_settings(self) -> None:
        """All processes have the settings of process 0."""
        leads = json.loads(hosts.texts(json.dumps(self.as_json))[0])
        index = jax.process_index()
        changed = settings.differences(leads, self.as_json, ("in process 0", f"in process {index}"))
        if changed:
            raise UserError(
                f"process {index} has other settings than process 0:\n"
                + "\n".join(f"  {line}" for line in changed)
                + "\nGive all processes the same settings, apart from --config.process."
            )

    def _check_files(self) -> None:
        """What settings name has the same content in all processes, and as when the run began."""
        leads = json.loads(hosts.texts(json.dumps(self.files))[0])
        names = [name for name in leads | self.files if leads.get(name) != self.files.get(name)]
        if names:
            raise UserError(
                f"process {jax.process_index()} has other content than process 0 in "
                f"{', '.join(f'config.{name}' for name in names)}; give all processes the same"
            )
        workdir.check_files(self.folder, self.record, self.files)

    def _tell_of_losses(self) -> None:
        """Says if losses are left out, because the data set does not have what they read."""
        reading = losses.declared(self.config.losses, "reads", self.model)
        for name in dict.fromkeys(one for key in self.feed.absent for one in reading[key]):
            lost = ", ".join(key for key in self.feed.absent if name in reading[key])
            hosts.tell(f"{self.arrays.name} has no {lost}: training without the loss {name}")

    def _tell_of_whole_sets(self) -> None:
        """Says if a batch is larger than training sets: there it is the whole set."""
        size = self.config.batch_size
        units = [unit for stage in self.stages for unit in stage.units.values()]
        clips = [int(self.plan.trained(unit).sum()) for unit in units]
        small = sum(number < size for number in clips)
        if small and not self.stages[0].trainer.fits_once:
            hosts.tell(
                f"config.batch_size={size} is larger than the training set of {small} of "
                f"{count(len(units), 'model')} (the smallest: {count(min(clips), 'clip')}); "
                "a batch there is the whole set"
            )

    def run(self) -> Run | None:
        """Trains what is not finished yet, and writes the results."""
        if hosts.leads():
            self._prepare()
            Store(self.folder / Store.FOLDER, self.plan)  # makes it, before the others look
            if self.kept:
                inner_folder(self.folder, "checkpoints")
        hosts.texts("prepared")
        store = Store(self.folder / Store.FOLDER, self.plan)
        logs = self.config.tensorboard and hosts.leads()
        logged = inner_folder(self.folder, "tensorboard") if logs else None
        singly = self.config.tensorboard_folds
        try:
            with Events(logged, self.plan, singly=singly) as events, StopRequest() as stop:
                self._train_all(store, events, stop)
                if hosts.leads():
                    events.write_means(store.read)
        finally:
            if hosts.leads():
                self._record_choices()
        if not hosts.leads():
            # Until the results are written: all hear of it if that fails.
            hosts.texts("written")
            return None
        finished = Run.of(
            self.folder.resolve().name,
            plans.joined(self.plan, store.read, [*range(len(self.plan.folds))]),
            config=self.as_json,
            environment=self.record,
            images=loading.images(
                self.arrays, self.feed.arrays.get("mosaic"), self.config.dataset.layout
            ),
        )
        report.write_run(finished, self.folder)
        self._tell_of_lost_checkpoints()
        finished.predictions.save(self.folder / predictions.FILE_NAME)
        try:
            shutil.rmtree(store.folder)
        except OSError as error:  # the results are written all the same
            hosts.tell(f"{store.folder}: cannot be removed ({error}); remove it yourself")
        hosts.texts("written")
        return finished

    def _stage(self, *, inner: bool) -> _Stage:
        key = "inner_folds_per_device" if inner else "folds_per_device"
        folds = plans.folds(self.plan, self.plan.units(inner=inner))
        changes = [one for one in self.record.get("regrouped", []) if one["of"] == key]
        trainer = make_trainer(
            self.model,
            self.config,
            self.plan,
            self.feed,
            list(folds.values()),
            # Group sizes shape the arithmetic: a resumed run keeps them.
            folds_per_device=self.record.get(key, self.config.folds_per_device),
            devices_at_once=changes[-1]["devices_at_once"] if changes else 0,
            start=self.start.variables,
        )
        units = {fold.name: unit for unit, fold in folds.items()}
        return _Stage(key, "inner, " if inner else "", units, trainer)

    def _prepare(self) -> None:
        """Records of a new run."""
        checkpoints = len(self.kept) * len(self.plan.seeds)
        trainer = self.stages[0].trainer
        # The one being written exists beside those that are kept.
        number = 1 + KEPT if self.config.checkpoint_every else 1
        at_once = max(len(folds) for stage in self.stages for folds in stage.trainer.rounds())
        workdir.check_space(
            self.folder,
            self.plan,
            checkpoints,
            trainer.parameter_bytes,
            number * at_once * trainer.state_bytes,
        )
        if not self.record:
            groups = {stage.key: stage.trainer.folds_per_device for stage in self.stages}
            self.record.update(
                workdir.environment(self.arrays.name, self.arrays.fingerprint, groups)
            )
            self.record["run"] = self.run_digest
            self.record["fits_once"] = self.stages[0].trainer.fits_once
            if self.files:
                self.record["files"] = self.files
            self._write_record()
            workdir.write_json(self.folder / "config.json", self.as_json)
        # Where it was resumed last.
        workdir.write_private(self.folder, self.private)

    def _write_record(self) -> None:
        workdir.write_json(self.folder / "environment.json", self.record)

    def _record_choices(self) -> None:
        """Adds the hyper-parameters that baselines chose in their folds."""
        chosen = {}
        for stage in self.stages:
            choices = getattr(stage.trainer, "choices", {})
            chosen |= {name: choice for name, choice in choices.items() if choice}
        if chosen:
            before = self.record.get("hyperparameters", {})
            self.record["hyperparameters"] = {**before, **chosen}
            self._write_record()

    def _train_all(self, store: Store, events: Events, stop: StopRequest) -> None:
        """Trains what has no result, and once more what has lost it meanwhile.

        Raises:
            UserError: Results that were written are gone or changed again.
        """
        every = [*self.plan.units(inner=False), *self.plan.units(inner=True)]
        for attempt in range(3):
            done = {every[i] for i in _first(lambda: _positions(every, _sound(store)))}
            missing = [unit for unit in every if unit not in done]
            if not missing:
                return
            names = shortened([self.plan.name(unit) for unit in missing], _SHOWN)
            if attempt == 2:
                raise UserError(
                    f"{store.folder}: results disappear or change as soon as they are written "
                    f"({names}). Find out what cleans up or changes this folder, or choose another "
                    "--workdir; then give the same command again."
                )
            if attempt == 1:
                hosts.tell(f"training again, the results are gone: {names}")
            elif done:
                hosts.tell(f"resuming: {len(done)} of {count(len(every), 'model')} are trained")
            self._train(done, store, events, stop)

    def _train(self, done: set[Unit], store: Store, events: Events, stop: StopRequest) -> None:
        """Trains all units but those that are done; after every round all are saved."""
        config, plan = self.config, self.plan
        identity = workdir.identity(self.digest, self.arrays.fingerprint)
        rounds = [(stage, folds) for stage in self.stages for folds in stage.rounds(done)]
        if hosts.leads():
            _discard_others(store, rounds)
        is_fitted = self.stages[0].trainer.fits_once
        epochs = 0 if is_fitted else config.epochs
        number = 0
        with Bar(
            plan.unit_count * config.epochs,
            "fitting" if is_fitted else "compiling",
            "fit" if is_fitted else "epoch",
            done=len(done) * config.epochs,
            hidden=not hosts.leads(),
        ) as bar:
            while rounds:
                stage, folds = rounds.pop(0)
                number += 1
                part = f"round {number}/{number + len(rounds)}, {count(len(folds), 'fold')}"
                title = stage.title + ("fitting" if is_fitted else part)
                snapshots = Snapshots(_state_folder(store, folds), identity)
                keeping = Keeping(
                    snapshots, config.checkpoint_every, stop, config.checkpoint_seconds
                )
                wanted = [fold.name for fold in folds if self._wants(stage.units[fold.name])]
                try:
                    show = _shower(bar, title, epochs)
                    trained = stage.trainer.train(folds, config.epochs, show, keeping, wanted)
                except Regrouped as change:
                    bar.write(change)
                    # Before the new size is on disk: no run may find the state of another one.
                    snapshots.clear()
                    stage.record_change(self.record, str(change), done)
                    self._write_record()
                    rounds = [(one, f) for one in self.stages for f in one.rounds(done)]
                    number -= 1
                    bar.restart(len(done) * config.epochs)
                    continue
                for result in trained:
                    unit = stage.units[result.fold.name]
                    if hosts.leads():
                        outcome = Result(
                            result.logits, result.train_loss, self._similarities(unit, result)
                        )
                        events.write(unit, outcome)
                        if self._keeps(unit):
                            self._keep_checkpoint(unit, result)
                        # Last, because it makes the model count as finished.
                        store.write(unit, outcome)
                    done.add(unit)
                signal = int(hosts.gather(np.array([stop.number])).max())
                snapshots.clear()
                if signal:
                    raise Stopped(signal)

    def _keeps(self, unit: Unit) -> bool:
        """Whether the final variables of a fold become a checkpoint."""
        return unit.inner is None and self.plan.folds[unit.fold] in self.kept

    def _wants(self, unit: Unit) -> bool:
        """Whether the final variables of a model are looked at."""
        return self._keeps(unit) or (unit.inner is None and self.describer is not None)

    def _similarities(self, unit: Unit, result: FoldResult) -> np.ndarray | None:
        """Of a fold's test clips, see `Result`."""
        if self.describer is None or unit.inner is not None:
            return None
        trained = self.plan.sets.among(self.plan.trained(unit))
        return self.describer(result.variables, np.flatnonzero(result.fold.test), trained)

    def _checkpoint_folder(self, unit: Unit) -> Path:
        name, seed = str(self.plan.folds[unit.fold]), int(self.plan.seeds[unit.seed])
        return fold_folder(self.folder, f"{name}.seed{seed}" if unit.seed else name)

    def _tell_of_lost_checkpoints(self) -> None:
        """Names those of a resumed run that were deleted after their folds were finished."""
        units = [u for u in self.plan.units(inner=False) if self.plan.folds[u.fold] in self.kept]
        lost = [self.plan.name(u) for u in units if not self._checkpoint_folder(u).is_dir()]
        if lost:
            hosts.tell(
                f"warning: {self.folder / 'checkpoints'} lacks {shortened(lost, _SHOWN)}, deleted "
                "since these were trained; to have them, train again in another --workdir"
            )

    def _keep_checkpoint(self, unit: Unit, result: FoldResult) -> None:
        """Writes the final variables of a fold."""
        name, seed = str(self.plan.folds[unit.fold]), int(self.plan.seeds[unit.seed])
        path = self._checkpoint_folder(unit)
        dataset = self.config.dataset
        about = {
            "fold": name,
            "run": self.run_digest,
            "dataset": self.arrays.name,
            "fingerprint": self.arrays.fingerprint,
            "labels": dataset.labels or next(iter(loading.label_sets(dataset.name))),
            "class_names": list(self.arrays.class_names),
        }
        if self.plan.sets is not None:
            names, trained = self.plan.sets.names, self.plan.sets.among(self.plan.trained(unit))
            about["sets"] = {
                "names": names.tolist(),
                "trained": names[trained].tolist(),
                "text_model": self.files.get("text.model", ""),
            }
        config = {**self.as_json, "seed": seed, "seeds": 1, "checkpoint": about}
        save_fold(path, result.variables, config)


def make_trainer(
    model: Any,
    config: ConfigDict,
    plan: Plan,
    feed: Feed,
    folds: list[Fold],
    *,
    folds_per_device: int,
    devices_at_once: int = 0,
    start: Mapping[str, Any] | None = None,
) -> Trainer:
    """The trainer of some folds.

    Args:
        model: From `settings.build_model`.
        config: The settings.
        plan: The run.
        feed: The inputs of all clips.
        folds: What to train.
        folds_per_device: Group size; 0: chosen.
        devices_at_once: Devices to use at most; 0: all.
        start: Part of a network's variables that every fold begins with, see `pretrained`.

    Raises:
        UserError: As the trainers.
    """
    if config.model.name not in models.MODELS:
        # Here, because scikit-learn takes most of a second to import.
        from htnet_jax.training.baselines import BaselineTrainer

        return BaselineTrainer(
            model,
            feed.arrays[feed.names[0]],
            plan.labels,
            folds,
            seed=config.seed,
            subjects=unique_subjects(plan.subjects, plan.sources),
            sources=plan.sources,
            inner_parts=config.inner_parts,
        )
    return FoldTrainer(
        step.make(model, config, feed.absent),
        feed,
        plan.labels,
        folds,
        batch_size=config.batch_size,
        seed=config.seed,
        shuffle=config.shuffle,
        order=None if config.shuffle else ORDERS[config.order](plan),
        folds_per_device=folds_per_device,
        devices_at_once=devices_at_once,
        matmul_precision=config.matmul_precision,
        classes=len(plan.class_names),
        start=start,
    )


def _shower(bar: Bar, title: str, epochs: int) -> Any:
    """What shows the progress of a round; `epochs` 0: of something that is fitted once."""

    def show(progress: Progress) -> None:
        if progress.compiling_s:
            bar.write(f"compiled in {progress.compiling_s:.0f} s")
            # The remaining time is estimated from the epochs alone.
            bar.restart()
            return
        loss = f"loss={progress.loss:.4f}"
        note = f"epoch={progress.epoch}/{epochs}, {loss}" if epochs else loss
        # A log gets a line a round; fits take a moment each.
        line = progress.epoch == epochs or progress.is_resumed
        bar.update(progress.fold_epochs, title=title, note=note, line=line)
        if progress.is_resumed:
            bar.restart()

    return show


def _positions(every: list[Unit], done: set[Unit]) -> list[int]:
    return [i for i, unit in enumerate(every) if unit in done]


def _sound(store: Store) -> set[Unit]:
    """The units that have a sound result; names the files that are none."""
    done, problems = store.survey()
    if problems:
        lines = "\n".join(f"  {problem}" for problem in problems)
        hosts.tell(f"not results of this run; models that lack theirs are trained again:\n{lines}")
    return done


def _state_folder(store: Store, folds: list[Fold]) -> Path:
    """Where a round's snapshots are: named after its folds, which may be grouped differently."""
    names = "\n".join(fold.name for fold in folds)
    return store.folder / f"state-{hashlib.sha256(names.encode()).hexdigest()[:16]}"


def _discard_others(store: Store, rounds: list[tuple[_Stage, list[Fold]]]) -> None:
    """Deletes the states of rounds that no longer exist, as when part of one was finished."""
    needed = {_state_folder(store, folds) for _, folds in rounds}
    others = [found for found in store.folder.glob("state-*") if found not in needed]
    for found in others:
        shutil.rmtree(found)
    if others:
        hosts.tell(
            f"discarding the state of {count(len(others), 'unfinished round')}: their folds were "
            "grouped differently"
        )


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
    hosts.tell("control experiment: the labels are permuted over all clips")
    return np.random.default_rng(config.seed).permutation(arrays.labels)
