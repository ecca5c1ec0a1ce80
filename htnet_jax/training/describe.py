"""Describing clips: how near a network puts them to sentences of action units.

Of a network that declares `describes`, the name of the text that it takes by keyword: asked with
texts, it returns vectors of clips and of texts in one space, `out["visual"]` and `out[describes]`.
It describes if it was fed the text in training, which is so if a loss in use reads it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax.config import names_in
from htnet_jax.datasets.action_units import NUMBERS
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.evaluation.retrieval import ranking
from htnet_jax.features import Feed, make_feed, text
from htnet_jax.foreign import reading
from htnet_jax.learn.step import logits_of
from htnet_jax.training.plan import Plan, Sets, Unit
from htnet_jax.training.state import load_fold


class Sentence(NamedTuple):
    """A sentence near a clip.

    Attributes:
        units: Its action units, such as `4+7`; `0`: none.
        text: The sentence.
        similarity: The cosine of the angle between it and the clip.
    """

    units: str
    text: str
    similarity: float


def describe(
    checkpoint: str | os.PathLike[str], arrays: ClipArrays, top: int = 5, *, text_model: str = ""
) -> list[list[Sentence]]:
    """The sentences nearest to clips, of those of a fold's training clips.

    Args:
        checkpoint: A fold's folder, `RUN/checkpoints/SUBJECT`.
        arrays: Clips of the same kind as the network was trained on; their own units do not matter.
        top: How many sentences; fewer where the training clips had fewer.
        text_model: Folder of the text model, where it is not where the run's settings say.

    Returns:
        For each clip its sentences, the nearest first.

    Raises:
        UserError: No sound checkpoint; its network was not trained on sentences; clips that do not
            fit it; the text model is missing or another one than in training.
        ValueError: `top` is below 1.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, got {top}")
    module, variables, config = load_fold(checkpoint)
    if "sets" not in config.get("checkpoint", ()):
        raise UserError(
            f"{checkpoint}: its network was not trained on sentences of action units, so it cannot "
            "describe clips; give a checkpoint of a run whose report has descriptions"
        )
    with reading(Path(checkpoint, "config.json"), "run's config", "Restore it from a copy."):
        about = config.checkpoint.sets
        units = [_units(name) for name in about.names]
        trained = np.zeros(len(units), bool)
        trained[[about.names.index(name) for name in about.trained]] = True
        if not trained.any():
            raise ValueError("checkpoint.sets.trained is empty")
        if strange := {unit for one in units for unit in one} - NUMBERS:
            raise ValueError(f"{min(strange)} is no action unit")
        trained_with = about.text_model
    if text_model:
        config.text.model = text_model
    if text.model_digest(config) != trained_with:
        raise UserError(
            f"{checkpoint}: was trained with another text model than that of config.text.model; "
            "name the folder of the right one"
        )
    # In training the text is that of the clips; here it is that of the sets, and no loss reads the
    # clips' own.
    config.inputs, config.losses = config.inputs or ",".join(module.inputs), {}
    feed = make_feed(arrays, config)
    expected = module.input_shapes(len(names_in(config.dataset.channels)))
    if feed.shapes != expected:
        raise UserError(
            f"{arrays.name} gives clips of shapes {feed.shapes}, but the network of {checkpoint} "
            f"takes {expected}; choose clips that are stored as those it was trained on"
        )
    sentences, embeddings = text.embedded(units, config)
    clips = np.arange(len(arrays.clips))
    batch = min(config.batch_size, len(clips))
    describer = Describer(module, feed, embeddings, config.text.centred, batch)
    similarities = describer(variables, clips, trained)
    order = ranking(similarities, np.tile(trained, (len(similarities), 1)))[:, :top]
    return [
        [Sentence(about.names[i], sentences[i], float(row[i])) for i in best if i >= 0]
        for row, best in zip(similarities, order, strict=True)
    ]


class Describer:
    """Similarities of clips and sentences, by one network after another; compiled once."""

    def __init__(
        self, module: Any, feed: Feed, embeddings: np.ndarray, centred: bool, batch_size: int
    ) -> None:
        """Compiles nothing yet.

        Args:
            module: The network.
            feed: The inputs of N clips.
            embeddings: `(D, width)` float32, of the sentence of each set.
            centred: Whether the network was trained on them less their mean.
            batch_size: Clips at a time.
        """
        self._feed, self._embeddings = feed, embeddings
        self._is_centred, self._batch_size = centred, batch_size

        def similarities(
            variables: Any, inputs: tuple[jax.Array, ...], texts: jax.Array
        ) -> jax.Array:
            asked = {module.describes: texts}
            _, out = logits_of(module.apply(variables, *inputs, **asked, train=False))
            return out["visual"] @ out[module.describes].T

        self._similarities = jax.jit(similarities)

    def __call__(
        self, variables: Mapping[str, Any], rows: np.ndarray, trained: np.ndarray
    ) -> np.ndarray:
        """The similarities of some clips to all sentences.

        Args:
            variables: Of the network.
            rows: `(m,)` int, the clips.
            trained: `(D,)` bool, the sets in the clips that it was trained on: their mean is the
                centre of the embeddings, as in training.

        Returns:
            `(m, D)` float32.
        """
        texts = self._embeddings
        if self._is_centred:
            texts = texts - texts[trained].mean(axis=0)
        size = self._batch_size
        variables, parts = jax.device_put(variables), []
        with jax.default_matmul_precision("float32"):
            for start in range(0, len(rows), size):
                # The last batch is filled up, so that one program does for all.
                batch = np.resize(rows[start : start + size], size)
                inputs = self._feed.exact(self._feed.arrays, batch)
                parts.append(np.asarray(self._similarities(variables, inputs, texts)))
        return np.concatenate(parts)[: len(rows)]


def make_describer(
    model: Any, config: ConfigDict, arrays: ClipArrays, feed: Feed, plan: Plan
) -> tuple[Sets, Describer] | tuple[None, None]:
    """By what the test clips of a run are described, and what does it.

    Args:
        model: The network or baseline.
        config: The settings.
        arrays: The clips.
        feed: What the network is fed of them.
        plan: The run.

    Returns:
        Nones where nothing is: the network was not fed a text in training, or the training clips of
        a fold have no known units.
    """
    name = getattr(model, "describes", "")
    if name not in feed.privileged:
        return None, None
    sets, rows = text.sets_of(arrays)
    folds = [plan.trained(Unit(fold, 0, None)) for fold in range(len(plan.folds))]
    if not all((rows[train] >= 0).any() for train in folds):
        return None, None
    found = Sets(
        names=np.array(["+".join(map(str, units)) or "0" for units in sets]),
        sentences=np.array([text.sentence(units, config.text.template) for units in sets]),
        rows=rows,
        positives=np.float32([positives_in(rows[train], config.batch_size) for train in folds]),
    )
    embeddings = feed.arrays[feed.banks[name]]
    # A batch that is larger than the data set stands for all of it.
    batch = min(config.batch_size, len(rows))
    return found, Describer(model, feed, embeddings, name in feed.centred, batch)


def positives_in(rows: np.ndarray, batch_size: int) -> float:
    """How many clips of the same set a clip finds in a batch that is drawn at random.

    Args:
        rows: `(n,)` int, the set of each training clip; -1: not known.
        batch_size: Clips of a batch; all, where they are fewer.

    Returns:
        The mean over clips of known units of what is expected, the clip itself counted:
        `1 + (B - 1) (n_s - 1) / (n - 1)` with `n_s` training clips of its set.
    """
    _, counts = np.unique(rows[rows >= 0], return_counts=True)
    others = min(batch_size, len(rows)) - 1
    share = others / max(len(rows) - 1, 1)
    return float(1 + share * (counts * (counts - 1)).sum() / counts.sum())


def _units(name: str) -> tuple[int, ...]:
    return () if name == "0" else tuple(map(int, name.split("+")))
