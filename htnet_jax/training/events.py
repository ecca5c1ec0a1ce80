"""Event files for TensorBoard: training loss and validation, never a score of a test subject."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from htnet_jax.errors import UserError
from htnet_jax.evaluation import metrics
from htnet_jax.training.plan import Plan, Result, Unit


class Events:
    """Writes the curves of each model when it is trained; a context manager.

    Tags are `train_loss/FOLD`, and for the models of inner folds also `validation_uf1/FOLD/...`
    (classes absent from their validation clips are skipped). Scores of the left-out subjects are
    not written: whoever watches them while choosing settings selects on the test subject.
    """

    def __init__(self, folder: Path | None, plan: Plan) -> None:
        """Opens a file of its own.

        Args:
            folder: Where; None: nothing is written.
            plan: The run.

        Raises:
            UserError: The package tensorboardX is not installed.
        """
        self._plan = plan
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
        if self._writer:
            self._writer.close()

    def write(self, unit: Unit, result: Result) -> None:
        """Adds the curves of one model, a point an epoch."""
        if not self._writer:
            return
        # Tags allow no spaces; a slash opens a group.
        name = self._plan.name(unit).replace(", ", "/").replace(" ", "_")
        curves = {f"train_loss/{name}": result.train_loss}
        if unit.inner is not None:
            curves[f"validation_uf1/{name}"] = self._validation(unit, result)
        for tag, values in curves.items():
            for epoch, value in zip(self._plan.epochs, values, strict=True):
                self._writer.add_scalar(tag, float(value), int(epoch))

    def _validation(self, unit: Unit, result: Result) -> np.ndarray:
        """(E,) UF1 over the clips that the unit validates on."""
        plan = self._plan
        predicted = plan.predicted(unit)
        validates = plan.tested[predicted] != unit.fold
        matrices = metrics.confusions(
            plan.labels[predicted][validates],
            result.logits.argmax(axis=-1)[:, validates],
            len(plan.class_names),
        )
        return metrics.scores(matrices)["uf1"]
