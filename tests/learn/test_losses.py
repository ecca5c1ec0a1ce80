"""Losses against PyTorch and by hand, and what the config may say of them."""

import math
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


# Of the contrastive loss: clips 0 and 1 have the same set of units, clip 2 another one.
VISUAL = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]])
TEXT = np.array([[0.8, 0.6], [0.8, 0.6], [0.0, -1.0]])
SETS = np.array([4, 4, 1], np.int32)


def contrastive(visual, text, sets, mask=None, **options):
    mask = np.ones(len(sets)) if mask is None else np.asarray(mask, np.float64)
    of_batch = batch()._replace(privileged={"au_set": jnp.asarray(sets)}, mask=mask)
    out = {"visual": jnp.asarray(visual), "text": jnp.asarray(text)}
    return losses.attribute_contrastive(None, out, of_batch, jnp.asarray(mask), **options)


def random_clips(seed, clips):
    rng = np.random.default_rng(seed)
    visual, text = (rng.normal(size=(clips, 5)) for _ in range(2))
    lengths = (np.linalg.norm(each, axis=1, keepdims=True) for each in (visual, text))
    return [each / length for each, length in zip((visual, text), lengths, strict=True)]


def test_the_contrastive_loss_by_hand():
    """Temperature 1. Similarities: [.8 .8 0], [.96 .96 -.8], [.6 .6 -1]."""
    with jax.enable_x64(True):
        found = contrastive(VISUAL, TEXT, SETS, temperature=1.0)
    # Rows: visual to text. Both texts of the set of clips 0 and 1 are equal.
    rows = [
        -math.log(math.e**0.8 / (2 * math.e**0.8 + 1)),
        -math.log(math.e**0.96 / (2 * math.e**0.96 + math.e**-0.8)),
        -math.log(math.e**-1 / (2 * math.e**0.6 + math.e**-1)),
    ]
    # Columns: text to visual; of the first two the mean over the clips of their set.
    shared = math.log(math.e**0.8 + math.e**0.96 + math.e**0.6) - (0.8 + 0.96) / 2
    last = -math.log(math.e**-1 / (1 + math.e**-0.8 + math.e**-1))
    expected = (np.array(rows) + np.array([shared, shared, last])) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_contrastive_loss_is_symmetric_and_its_temperature_divides():
    with jax.enable_x64(True):
        visual, text = random_clips(0, 6)
        sets = np.array([0, 1, 0, 2, 1, 0])
        found = contrastive(visual, text, sets)
        np.testing.assert_allclose(contrastive(text, visual, sets), found, rtol=1e-12)
        warm = contrastive(visual * 3, text, sets, temperature=0.21)
        np.testing.assert_allclose(warm, found, rtol=1e-12)


@pytest.mark.parametrize("out_by", ["mask", "set"])
def test_padding_and_clips_without_units_take_no_part_in_the_contrastive_loss(out_by):
    with jax.enable_x64(True):
        visual, text = random_clips(1, 4)
        sets = np.array([0, 1, 0, 1])
        alone = contrastive(visual, text, sets)
        visual, text = (
            np.concatenate([x, 7 * x[:3]])[[0, 4, 1, 2, 5, 3, 6]] for x in (visual, text)
        )
        mask, numbers = np.array([1, 0, 1, 1, 0, 1, 0]), np.array([0, 0, 1, 0, 1, 1, 0])
        if out_by == "mask":
            found = contrastive(visual, text, numbers, mask)
            # The step's mean is over 4 clips.
            np.testing.assert_allclose(found[mask == 1], alone, rtol=1e-12)
        else:
            found = contrastive(visual, text, np.where(mask, numbers, -1))
            # The step's mean is over 7 clips, of which 4 take part.
            np.testing.assert_allclose(found[mask == 1], alone * 7 / 4, rtol=1e-12)
        assert not found[mask == 0].any()


def test_a_batch_without_units_has_no_contrastive_loss_and_no_gradient():
    visual, text = random_clips(2, 3)
    total = lambda v: contrastive(v, text, [-1, -1, -1]).sum()  # noqa: E731
    value, gradient = jax.value_and_grad(total)(jnp.asarray(visual, jnp.float32))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("of", [0, 1])
def test_the_gradient_of_the_contrastive_loss_is_that_of_differences(of):
    with jax.enable_x64(True):
        arguments = random_clips(3, 5)
        sets, mask = np.array([0, 1, 0, -1, 1]), np.array([1, 1, 1, 1, 0])

        def total(x):
            both = [*arguments]
            both[of] = x
            return contrastive(*both, sets, mask).sum()

        gradient = jax.grad(total)(jnp.asarray(arguments[of]))
        step = 1e-6
        for place in np.ndindex(5, 5):
            moved = np.zeros((5, 5))
            moved[place] = step
            slope = (total(arguments[of] + moved) - total(arguments[of] - moved)) / (2 * step)
            np.testing.assert_allclose(gradient[place], slope, rtol=1e-6, atol=1e-7)


def test_what_losses_declare():
    reading = losses.declared({"cross_entropy": 1.0, "attribute_contrastive": 0.5}, "reads")
    assert reading == {name: ["attribute_contrastive"] for name in ("text", "au_set")}
    assert losses.declared({"attribute_contrastive": 0.0}, "reads") == {"text": [], "au_set": []}
    absent = losses.declared({"attribute_contrastive": 1.0}, "needs", absent=("text",))
    assert absent == {"visual": [], "text": []}


def test_losses_that_read_what_the_data_do_not_have_are_left_out():
    weights = {"cross_entropy": 1.0, "attribute_contrastive": 0.5}
    assert len(losses.make(weights, {})) == 2
    assert len(losses.make(weights, {}, absent=("text", "au_set"))) == 1
    with pytest.raises(UserError, match="no text, au_set, which every loss reads"):
        losses.make({"attribute_contrastive": 0.5}, {}, absent=("text", "au_set"))
    with pytest.raises(UserError, match=r"temperature=0\.0 must be above 0"):
        losses.make(weights, {"attribute_contrastive": {"temperature": 0.0}})
