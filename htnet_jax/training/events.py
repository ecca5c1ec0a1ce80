"""Event files for TensorBoard: training loss and validation, never a score of a test subject."""

from __future__ import annotations

import collections
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation import metrics
from htnet_jax.training.plan import Plan, Result, Unit


class Events:
    """Writes the curves of a run; a context manager.

    Tags are `mean/train_loss` (over folds and seeds), and with inner folds `mean/validation_uf1`
    and `mean/validation_uar` (pooled over the validation clips of all folds, the mean over seeds).
    On request also the curves of each model: `train_loss/FOLD`, for those of inner folds
    `validation_uf1/FOLD/...` and `validation_uar/FOLD/...`. Classes absent from the validation
    clips are skipped. Scores of the left-out subjects are not written: whoever watches them while
    choosing settings selects on the test subject.
    """

    def __init__(self, folder: Path | None, plan: Plan, *, singly: bool = False) -> None:
        """Opens a file of its own.

        Args:
            folder: Where; None: nothing is written.
            plan: The run.
            singly: Also write the curves of each model.

        Raises:
            UserError: The package tensorboardX is not installed.
        """
        self._plan, self._singly = plan, singly
        self._writer: Any = None
        if folder is None:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "config.tensorboard needs the package tensorboardX: pip install -e .[tensorboard]"
            ) from error
        self._writer = SummaryWriter(str(folder))

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._writer:
            return
        self._writer.close()
        # The library names files after the host, which is nobody's business. Those of runs that
        # were killed, too.
        host = f".{socket.gethostname()}"
        for path in Path(self._writer.logdir).iterdir():
            if path.name.endswith(host):
                path.rename(path.with_name(path.name.removesuffix(host)))

    def write(self, unit: Unit, result: Result) -> None:
        """Adds the curves of one model, a point an epoch, if they were asked for."""
        if not self._writer or not self._singly:
            return
        # Tags allow no spaces; a slash opens a group.
        name = self._plan.name(unit).replace(", ", "/").replace(" ", "_")
        curves = {"train_loss": result.train_loss}
        if unit.inner is not None:
            curves |= _validation(self._matrices(unit, result))
        self._add({f"{key}/{name}": values for key, values in curves.items()})

    def write_means(self, read: Callable[[Unit], Result]) -> None:
        """Adds the mean curves of the whole run.

        Args:
            read: Gives the result of a unit.
        """
        if not self._writer:
            return
        plan = self._plan
        own, inner = [*plan.units(inner=False)], [*plan.units(inner=True)]
        curves = {"train_loss": np.mean([read(unit).train_loss for unit in own], axis=0)}
        if inner:
            matrices: dict[int, Any] = collections.defaultdict(int)
            for unit in inner:
                matrices[unit.seed] += self._matrices(unit, read(unit))
            scores = [_validation(of_seed) for of_seed in matrices.values()]
            curves |= {key: np.mean([one[key] for one in scores], axis=0) for key in scores[0]}
        self._add({f"mean/{key}": values for key, values in curves.items()})

    def _add(self, curves: dict[str, np.ndarray]) -> None:
        for tag, values in curves.items():
            for epoch, value in zip(self._plan.epochs, values, strict=True):
                self._writer.add_scalar(tag, float(value), int(epoch))

    def _matrices(self, unit: Unit, result: Result) -> np.ndarray:
        """`(E, C, C)` confusions of the clips that the unit validates on."""
        plan = self._plan
        predicted = plan.predicted(unit)
        validates = plan.tested[predicted] != unit.fold
        return metrics.confusions(
            plan.labels[predicted][validates],
            result.logits.argmax(axis=-1)[:, validates],
            len(plan.class_names),
        )


def _validation(matrices: np.ndarray) -> dict[str, np.ndarray]:
    scores = metrics.scores(matrices)
    return {f"validation_{name}": scores[name] for name in ("uf1", "uar")}
