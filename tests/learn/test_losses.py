"""Losses against PyTorch and by hand, and what the config may say of them."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from htnet_jax.errors import UserError
from htnet_jax.learn import losses
from htnet_jax.learn.optim import Moment
from htnet_jax.learn.step import Batch

LOGITS = np.array([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0], [-3.0, 4.0, 1.0]], np.float32)
LABELS = np.array([0, 2, 1], np.int32)


def batch(weights=None):
    return Batch((), {}, LABELS, np.ones(3, np.float32), None, Moment(0), weights)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_cross_entropy_is_pytorchs(smoothing, weights):
    expected = torch.nn.functional.cross_entropy(
        torch.from_numpy(LOGITS),
        torch.from_numpy(LABELS).long(),
        weight=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
        reduction="none",
    )
    found = losses.cross_entropy(
        LOGITS,
        {},
        batch(None if weights is None else np.float32(weights)),
        np.ones(3),
        label_smoothing=smoothing,
        class_weights="none" if weights is None else "balanced",
    )
    # A difference of numbers near 4, each rounded to 2e-7.
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-6, atol=3e-7)


def test_a_spare_output_has_no_weight():
    """Two classes of the data, three outputs: the third is only ever a wrong answer."""
    labels = np.array([0, 1, 1], np.int32)
    found = losses.cross_entropy(
        LOGITS,
        {},
        batch(np.float32([1.5, 0.75]))._replace(labels=labels),
        np.ones(3),
        class_weights="balanced",
    )
    plain = -jax.nn.log_softmax(jnp.asarray(LOGITS))[np.arange(3), labels]
    np.testing.assert_allclose(found, np.array([1.5, 0.75, 0.75]) * plain, rtol=1e-6)


def test_bfloat16_logits_are_widened():
    found = losses.cross_entropy(jnp.asarray(LOGITS, jnp.bfloat16), {}, batch(), np.ones(3))
    assert found.dtype == np.float32


def test_options_and_weights_reach_the_loss():
    ((weight, loss),) = losses.make(
        {"cross_entropy": 0.5}, {"cross_entropy": {"label_smoothing": 0.2}}
    )
    assert weight == 0.5
    found = loss(LOGITS, {}, batch(), np.ones(3))
    expected = losses.cross_entropy(LOGITS, {}, batch(), np.ones(3), label_smoothing=0.2)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ({"entropy": 1.0}, {}, "config.losses: entropy is unknown; use cross_entropy"),
        ({"cross_entropy": 0.0}, {}, "all weights are 0"),
        ({"cross_entropy": -1.0}, {}, "config.losses.cross_entropy=-1.0 must be at least 0"),
        ({"cross_entropy": float("nan")}, {}, "must be at least 0, and finite"),
        (
            {"cross_entropy": 1.0},
            {"cross_entropy": {"smoothing": 0.1}},
            "config.loss_options.cross_entropy.smoothing is unknown; there are label_smoothing",
        ),
        ({"cross_entropy": "a"}, {}, "config.losses.cross_entropy=a must be at least 0"),
        ({"cross_entropy": 1.0}, {"cross_entropy": 3}, "=3 must be options and their values"),
        (
            {"cross_entropy": 1.0},
            {"cross_entropy": {"label_smoothing": "x"}},
            "label_smoothing='x' must be of type float",
        ),
        (
            {"cross_entropy": 1.0},
            {"cross_entropy": {"label_smoothing": 1.0}},
            "must lie in",
        ),
        (
            {"cross_entropy": 1.0},
            {"cross_entropy": {"class_weights": "even"}},
            "class_weights='even' is unknown; use none or balanced",
        ),
    ],
)
def test_refused(weights, options, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        losses.make(weights, options)


def margin(logits, out, batch, mask, *, size=1.0):
    return size + logits[:, 0]


def test_a_network_may_bring_a_loss_of_its_own():
    class Network:
        losses: ClassVar = {"margin": margin}

    options = {"margin": {"size": 2.0}}
    ((weight, loss),) = losses.make({"margin": 0.5}, options, Network)
    assert weight == 0.5
    np.testing.assert_array_equal(loss(np.array([[1.0, 0.0]]), {}, None, None), [3.0])
    with pytest.raises(UserError, match="margin is unknown; use cross_entropy"):
        losses.make({"margin": 0.5}, options)
    with pytest.raises(UserError, match=r"margins is unknown; use cross_entropy.*margin"):
        losses.make({"margins": 1.0}, {}, Network)
