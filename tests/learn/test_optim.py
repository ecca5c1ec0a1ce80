import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from htnet_jax.config import default_config
from htnet_jax.errors import UserError
from htnet_jax.learn import optim

STEPS = 30


def gradients(seed):
    """Of very different sizes, some zero."""
    rng = np.random.default_rng(seed)
    sizes = 10.0 ** rng.integers(-12, 3, 40)
    sizes[:3] = 0
    return (rng.normal(size=(STEPS, 40)) * sizes).astype(np.float32)


def start(seed):
    return np.random.default_rng(seed).normal(size=40).astype(np.float32)


def ours(transformation, seed, dtype=np.float32):
    params = jnp.asarray(start(seed), dtype)
    state = transformation.init(params)
    path = []
    step = jax.jit(transformation.update)
    for gradient in gradients(seed):
        updates, state = step(jnp.asarray(gradient, dtype), state, params)
        params = optax.apply_updates(params, updates)
        path.append(np.asarray(params))
    return np.stack(path)


def torchs(make, seed, dtype=torch.float32):
    parameter = torch.nn.Parameter(torch.from_numpy(start(seed)).to(dtype))
    optimizer = make([parameter])
    path = []
    for gradient in gradients(seed):
        parameter.grad = torch.from_numpy(gradient).to(dtype)
        optimizer.step()
        path.append(parameter.detach().numpy().copy())
    return np.stack(path)


PAIRS = {
    "adam": (optim.adam(3e-3), lambda p: torch.optim.Adam(p, lr=3e-3)),
    "adamw": (optim.adamw(3e-3), lambda p: torch.optim.AdamW(p, lr=3e-3)),
    "adamw decay": (
        optim.adamw(3e-3, 0.6),
        lambda p: torch.optim.AdamW(p, lr=3e-3, weight_decay=0.6),
    ),
}
SGD = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.1},
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_same_path_as_pytorch_in_double_precision(name):
    ours_of, torchs_of = PAIRS[name]
    with jax.enable_x64(True):
        path = ours(ours_of, 0, np.float64)
    expected = torchs(torchs_of, 0, torch.float64)
    assert np.abs(expected[-1] - start(0)).max() > 1e-2
    np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("options", SGD.values(), ids=SGD)
def test_sgd_is_pytorchs(options):
    with jax.enable_x64(True):
        path = ours(optim.sgd(3e-3, **options), 0, np.float64)
    expected = torchs(lambda p: torch.optim.SGD(p, lr=3e-3, **options), 0, torch.float64)
    np.testing.assert_allclose(path, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PAIRS)
def test_single_precision_moves_as_far_as_double(name):
    """Within a few eps of float32 a step; the parameters' own rounding is left out."""
    ours_of, _ = PAIRS[name]
    transformation = optax.chain(ours_of)
    gradient = gradients(1)

    def first_updates(dtype):
        params = jnp.zeros(40, dtype)
        state = transformation.init(params)
        path = []
        for row in gradient:
            updates, state = transformation.update(jnp.asarray(row, dtype), state, params)
            path.append(np.asarray(updates, np.float64))
        return np.stack(path)

    single = first_updates(np.float32)
    with jax.enable_x64(True):
        double = first_updates(np.float64)
    # The first steps are where 1 - b**t cancels: optax's own is off by 6e-6 there.
    np.testing.assert_allclose(single[0], double[0], rtol=5e-7, atol=1e-12)
    difference = np.abs(single - double).max(axis=1) / np.abs(double).max(axis=1)
    assert difference.max() < 2e-6


def test_the_corrections_cancel_at_the_first_step():
    """Then the step is the learning rate in the gradient's direction, whatever its size."""
    gradient = jnp.asarray([1e3, -1.0, 1e-3, 0.0], jnp.float32)
    transformation = optim.adam(1.0)
    updates, _ = transformation.update(gradient, transformation.init(gradient), gradient)
    expected = -np.asarray(gradient) / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(updates, expected, rtol=3e-7)


def test_state_and_updates_keep_type_and_structure():
    params = {"a": jnp.ones((2, 3), jnp.float32), "b": [jnp.ones(4, jnp.float32)]}
    transformation = optim.adamw(1e-3)
    state = transformation.init(params)
    updates, after = transformation.update(params, state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(updates))
    assert int(after[0].count) == 1


# --- by name --------------------------------------------------------------------------------------

STEPS_AN_EPOCH, EPOCHS = 4, 10


def config_of(**changes):
    config = default_config()
    config.update({"epochs": EPOCHS, **changes})
    return config


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_every_optimizer_of_the_table_descends(name):
    transformation, _ = optim.make(config_of(optimizer=name, learning_rate=0.1))
    params = jnp.array([1.0, -2.0])
    state = transformation.init(params)
    for _ in range(100):
        updates, state = transformation.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert jnp.abs(params).max() < 0.1


def factors(**changes):
    """The factor at every step of a run; always 1 if there is no schedule."""
    _, schedule = optim.make(config_of(**changes))
    moments = [optim.Moment(e, s, STEPS_AN_EPOCH) for e in range(EPOCHS) for s in range(4)]
    return np.array([schedule(moment) if schedule else 1.0 for moment in moments])


def torchs_factors(make, each="step"):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimizer)
    found = []
    for number in range(EPOCHS * STEPS_AN_EPOCH):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if each == "step" or number % STEPS_AN_EPOCH == STEPS_AN_EPOCH - 1:
            scheduler.step()
    return np.array(found)


def test_schedules_are_pytorchs():
    lr = torch.optim.lr_scheduler
    total = EPOCHS * STEPS_AN_EPOCH
    np.testing.assert_allclose(
        factors(schedule="step", learning_rate_decay=0.9),
        torchs_factors(lambda o: lr.ExponentialLR(o, 0.9), "epoch"),
        rtol=1e-6,
    )
    np.testing.assert_allclose(
        factors(schedule="cosine"),
        torchs_factors(lambda o: lr.CosineAnnealingLR(o, total)),
        atol=1e-6,
    )
    one_cycle = torchs_factors(lambda o: lr.OneCycleLR(o, 1.0, total_steps=total))
    np.testing.assert_allclose(factors(schedule="one_cycle"), one_cycle, atol=1e-6)
    half = torchs_factors(lambda o: lr.OneCycleLR(o, 1.0, total_steps=total, pct_start=0.5))
    found = factors(schedule="one_cycle", warmup_epochs=EPOCHS // 2)
    np.testing.assert_allclose(found, half, atol=1e-6)


def test_no_schedule_is_none_at_all():
    for changes in ({}, {"schedule": "step"}):
        assert optim.make(config_of(**changes))[1] is None


def test_decay_stops_after_some_epochs():
    found = factors(schedule="step", learning_rate_decay=0.5, learning_rate_decay_epochs=3)
    np.testing.assert_allclose(found[::STEPS_AN_EPOCH], [1, 0.5, 0.25] + [0.125] * 7)


@pytest.mark.parametrize("name", ["constant", "step", "cosine"])
def test_warmup_rises_in_a_line_to_the_schedule(name):
    decay = {"learning_rate_decay": 0.9} if name == "step" else {}
    found = factors(schedule=name, warmup_epochs=2, **decay)
    if name == "constant":
        np.testing.assert_allclose(found[:8], np.arange(1, 9) / 8, rtol=1e-6)
        assert (found[8:] == 1).all()
    assert found[0] == pytest.approx(1 / 8)
    assert (np.diff(found[:4]) > 0).all()
    assert found[-1] < 1 or name == "constant"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "best"}, "config.optimizer='best' is unknown; use adam or adamw or sgd"),
        ({"schedule": "best"}, "config.schedule='best' is unknown; use constant or step"),
        ({"weight_decay": 0.1}, "config.weight_decay=0.1 is for adamw or sgd"),
        ({"momentum": 0.9}, "config.momentum=0.9 is for sgd"),
        ({"momentum": 1.0, "optimizer": "sgd"}, "config.momentum=1.0 must lie in"),
        ({"learning_rate": float("nan")}, "config.learning_rate=nan must be above 0 and finite"),
        ({"learning_rate_decay": 0.0}, "config.learning_rate_decay=0.0 must lie in"),
        ({"learning_rate_decay": 0.9}, "is for the step schedule; set --config.schedule=step"),
        ({"warmup_epochs": 11}, "config.warmup_epochs=11 is more than config.epochs=10"),
    ],
)
def test_refused(changes, message):
    with pytest.raises(UserError, match=message):
        optim.make(config_of(**changes))
