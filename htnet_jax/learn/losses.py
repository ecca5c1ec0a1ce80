"""Losses by name: `fn(logits, out, batch, mask, **options) -> (B,)`, one value a clip.

`config.losses` names those of a run and their weights, `config.loss_options` their options. A new
loss is one function here and one line in `LOSSES`; one of a single network may stand beside it, in
its attribute `losses`. The step takes the mean over the clips that are
no padding, so a loss only looks at `mask` where it compares clips with each other. A loss that
looks at more than logits and labels declares it: `reads` names features that are there in training
only, `needs` names what else the network returns.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from htnet_jax.errors import UserError
from htnet_jax.learn.optim import Moment

Loss = Callable[..., jax.Array]
CLASS_WEIGHTS = ("none", "balanced")


class Batch(NamedTuple):
    """What one step sees.

    Attributes:
        inputs: `(B, ...)` floats, in the order of the network's arguments.
        privileged: Name -> `(B, ...)`, what the network sees in training only.
        labels: `(B,)` int32.
        mask: `(B,)` float32: 1 for a clip, 0 for padding.
        key: Of the network's random draws, such as dropout.
        moment: When the step takes place.
        class_weights: `(C,)` float32, see `losses.cross_entropy`; None: no loss asks for it.
    """

    inputs: tuple[jax.Array, ...]
    privileged: Mapping[str, jax.Array]
    labels: jax.Array
    mask: jax.Array
    key: jax.Array
    moment: Moment
    class_weights: jax.Array | None = None


def cross_entropy(
    logits: jax.Array,
    out: Mapping[str, jax.Array],
    batch: Batch,
    mask: jax.Array,
    *,
    label_smoothing: float = 0.0,
    class_weights: str = "none",
) -> jax.Array:
    """Softmax cross-entropy with the labels; with neither option PyTorch's and the releases'.

    Args:
        logits: `(B, C)`.
        out: What else the network returned; not used.
        batch: Its `labels`, and for "balanced" its `class_weights`.
        mask: `(B,)`; not used.
        label_smoothing: Share of the target that is spread evenly over all classes, as PyTorch's.
        class_weights: "balanced": a clip counts clips / (classes x clips of its class), counted in
            its fold's training clips. The mean of these weights over the training clips is 1, so
            the step's mean is over clips (PyTorch would divide by the sum of a batch's weights).

    Returns:
        `(B,)` in float32 at least.
    """
    del out, mask
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label_smoothing == 0 and class_weights == "none":
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels)
    classes = logits.shape[-1]
    target = jax.nn.one_hot(batch.labels, classes, dtype=logits.dtype)
    target = (1 - label_smoothing) * target + label_smoothing / classes
    if class_weights == "balanced":
        weights = batch.class_weights.astype(logits.dtype)
        # A spare output has no clip, hence no weight of its own.
        target *= jnp.pad(weights, (0, classes - len(weights))).reshape(1, -1)
    return -(target * jax.nn.log_softmax(logits)).sum(axis=-1)


def attribute_contrastive(
    logits: jax.Array,
    out: Mapping[str, jax.Array],
    batch: Batch,
    mask: jax.Array,
    *,
    temperature: float = 0.07,
) -> jax.Array:
    """Draws a clip to the text of its action units, and away from the texts of other clips.

    A supervised contrastive loss (Khosla et al., NeurIPS 2020) between two modalities: with
    s_ij = visual_i . text_j / temperature and P(i) the clips of the batch with the same set of
    units as i, i among them, it is the mean of two directions,
    -1 / |P(i)| sum over j in P(i) of log softmax_j s_ij, and the same with the roles exchanged.
    A reconstruction: the paper (Song et al., arXiv 2205.14643) does not give its loss.

    Args:
        logits: `(B, C)`; not used.
        out: `visual` and `text`, both `(B, P)` and of length 1.
        batch: Its privileged `au_set`, `(B,)` int32: clips with the same set of units have the
            same number; -1: its units are not known.
        mask: `(B,)`. Neither padding nor clips without known units take part, in any sum.
        temperature: Above 0; the smaller, the more the nearest texts count.

    Returns:
        `(B,)` in float32 at least; 0 for clips that take no part. The others are weighted so that
        the mean over all clips of the batch is the mean over those that take part.
    """
    del logits
    sets = batch.privileged["au_set"]
    part = (mask > 0) & (sets >= 0)
    same = (sets[:, None] == sets[None]) & part[:, None] & part[None]
    visual, text = (
        out[name].astype(jnp.promote_types(out[name].dtype, jnp.float32))
        for name in ("visual", "text")
    )
    similarity = visual @ text.T / temperature
    # Finite, so that the softmax of a batch in which no clip takes part has a gradient.
    lowest = jnp.finfo(similarity.dtype).min / 2

    def direction(scores: jax.Array) -> jax.Array:
        likely = jax.nn.log_softmax(jnp.where(part[None], scores, lowest))
        return -jnp.where(same, likely, 0).sum(axis=1) / jnp.maximum(same.sum(axis=1), 1)

    each = (direction(similarity) + direction(similarity.T)) / 2
    # In the type of the loss: float32 would round it in a check in float64.
    return each * (mask.sum().astype(each.dtype) / jnp.maximum(part.sum(), 1))


attribute_contrastive.reads = ("text", "au_set")
attribute_contrastive.needs = ("visual", "text")

LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "attribute_contrastive": attribute_contrastive,
}


def declared(
    weights: Mapping[str, float], what: str, model: Any = None, absent: Collection[str] = ()
) -> dict[str, list[str]]:
    """What losses declare: its name -> the losses in use that declare it, which may be none.

    Args:
        weights: As for `make`.
        what: "reads" or "needs".
        model: As for `make`.
        absent: As for `make`.
    """
    found: dict[str, list[str]] = {}
    for name, loss in _known(model).items():
        in_use = weights.get(name) and not {*absent} & {*getattr(loss, "reads", ())}
        for one in getattr(loss, what, ()):
            found.setdefault(one, []).extend([name] if in_use else [])
    return found


def _known(model: Any) -> dict[str, Loss]:
    return {**LOSSES, **getattr(model, "losses", {})}


def make(
    weights: Mapping[str, float],
    options: Mapping[str, Mapping[str, Any]],
    model: Any = None,
    absent: Collection[str] = (),
) -> tuple[tuple[float, Loss], ...]:
    """The weighted losses that a config names.

    Args:
        weights: `config.losses`: name -> weight; a loss of weight 0 is left out.
        options: `config.loss_options`: name -> keyword arguments of the loss.
        model: The network, or its class; what it declares as `losses` is known besides `LOSSES`.
        absent: Features that the data set does not have: losses that read one are left out.

    Returns:
        `(weight, function)` pairs; each function has its options.

    Raises:
        UserError: An unknown loss, option or value, or no loss at all.
    """
    known = _known(model)
    unknown = sorted({*weights, *options} - {*known})
    if unknown:
        raise UserError(f"config.losses: {', '.join(unknown)} is unknown; use {', '.join(known)}")
    bad = [name for name, weight in weights.items() if not _is_weight(weight)]
    if bad:
        raise UserError(
            f"config.losses.{bad[0]}={weights[bad[0]]} must be at least 0, and finite: a number"
        )
    chosen = {name: float(weight) for name, weight in weights.items() if weight}
    if not chosen:
        raise UserError("config.losses: all weights are 0; a network needs a loss to be trained")
    chosen = {
        name: weight
        for name, weight in chosen.items()
        if not {*absent} & {*getattr(known[name], "reads", ())}
    }
    if not chosen:
        raise UserError(
            f"config.losses: the data set has no {', '.join(absent)}, which every loss reads; add "
            "--config.losses.cross_entropy=1"
        )
    return tuple(
        (weight, _with(known[name], name, options.get(name, {}))) for name, weight in chosen.items()
    )


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value < float("inf")


def _with(loss: Loss, name: str, options: Mapping[str, Any]) -> Loss:
    known = getattr(loss, "__kwdefaults__", None) or {}
    if not isinstance(options, Mapping):
        raise UserError(f"config.loss_options.{name}={options!r} must be options and their values")
    for key, value in options.items():
        where = f"config.loss_options.{name}.{key}"
        if key not in known:
            raise UserError(f"{where} is unknown; there are {', '.join(known) or 'none'}")
        kind = type(known[key])
        kinds = (int, float) if kind in (int, float) else (kind,)
        if isinstance(value, bool) != (kind is bool) or not isinstance(value, kinds):
            raise UserError(f"{where}={value!r} must be of type {kind.__name__}")
        if key == "label_smoothing" and not 0 <= value < 1:
            raise UserError(f"{where}={value} must lie in [0, 1)")
        if key == "temperature" and not 0 < value < float("inf"):
            raise UserError(f"{where}={value} must be above 0, and finite")
        if key == "class_weights" and value not in CLASS_WEIGHTS:
            raise UserError(f"{where}={value!r} is unknown; use {' or '.join(CLASS_WEIGHTS)}")
    fixed = dict(options)
    return lambda *arguments: loss(*arguments, **fixed)
