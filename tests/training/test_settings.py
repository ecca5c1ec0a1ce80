"""What settings may be: types and ranges of every key, together in one message and in the docs."""

import math
import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import SETTINGS, default_config
from htnet_jax.errors import UserError
from htnet_jax.models import HTNet
from htnet_jax.ranges import Range
from htnet_jax.training import experiment, folds, memory, plan, settings
from htnet_jax.training.baselines import BASELINES

DOCS = pathlib.Path(__file__).parents[2] / "docs"
# From a config file anything may come.
ODD = (
    *(None, [], (), {}, object(), b"x", 1j, "", "1", "Adam", "\0", True, False, [1], (1, 2)),
    *(-1, -0.5, 0, 1, 0.5, 1.5, 10**9, 10**400, -(10**400), 1e9, 1e-300, 1e300),
    *(math.nan, math.inf, -math.inf, np.int64(3), np.float32(0.5), np.float64("nan"), np.zeros(2)),
    *(np.array(3), np.bool_(True), np.str_("none"), range(2), (2, 2, 1.5), ("a",), [[1]]),
)
MODELS = {
    "HTNet": HTNet,
    **{key: models.MODELS[key] for key in ("MMNet", "AttributeNet")},
    **BASELINES,
}


def with_value(key, value, model=""):
    """The defaults, or those of a model, with another value of any type."""
    config = default_config()
    if model:
        config.model = ConfigDict({"name": model})
    if model in BASELINES:
        config.epochs, config.checkpoints = 1, "none"
    *groups, name = key.split(".")
    place = config
    for group in groups:
        place = place[group]
    with config.unlocked():
        if name in place:
            del place[name]  # whose type it would be turned into
        place[name] = value
    return config


def refused(config):
    """The lines of the refusal; none if the settings are possible."""
    try:
        settings.check(config)
    except UserError as error:
        return str(error).splitlines()
    return []


def is_possible(allowed, value):
    """By what the table says in words; only for numbers, text and switches."""
    said = str(allowed)
    if said == "True or False":
        return type(value) is bool
    if said == "text":
        return type(value) is str and "\0" not in value
    if not isinstance(allowed, Range):
        return None
    if allowed.several and type(value) in (list, tuple):
        one = allowed._replace(several="")
        return len(value) > 0 and all(is_possible(one, item) for item in value)
    is_real = isinstance(allowed.least, float)
    if allowed.several == "all" or type(value) not in ((int, float) if is_real else (int,)):
        return False
    if not allowed.least <= value <= allowed.most:
        return False
    if is_real:
        return not (
            (value == allowed.least and allowed.ends[0] == "(")
            or (value == allowed.most and allowed.ends[1] == ")")
        )
    return True


@pytest.mark.parametrize("model", ["", *MODELS])
def test_every_key_refuses_other_types_and_values_out_of_range(model):
    table = settings.table()
    checked = 0
    for key, setting in table[model].items():
        for value in ODD:
            if isinstance(value, dict):
                continue  # a group where a value belongs: below
            lines = [line for line in settings.wrong_values(with_value(key, value, model))]
            possible = is_possible(setting.allowed, value)
            if possible is None:
                assert not lines or f"config.{key}=" in lines[0], (key, value)
            else:
                assert bool(lines) != possible, (key, value)
                assert len(lines) == (not possible), (key, value)
                assert all(line.startswith(f"config.{key}=") for line in lines)
                assert all(len(line) < 400 for line in lines)
            checked += 1
    assert checked >= len(ODD) - 1


@pytest.mark.parametrize("model", ["", *MODELS])
def test_the_whole_check_ends_in_a_message_whatever_the_value(model):
    """Also where values only contradict each other, names are unknown, or groups are values."""
    for key in settings.table()[model]:
        for value in (*ODD[:12], 10**9, math.nan, np.int64(3), {"a": 1}):
            refused(with_value(key, value, model))
    for group in ("losses", "loss_options", "model", "dataset", "augmentation"):
        for value in (None, 3, "x", [], ()):
            lines = refused(with_value(group, value))
            assert any(f"config.{group} must be a group of settings" in line for line in lines)
    for value in (None, {}, [], "x", 3):
        with pytest.raises(UserError, match="must return a ConfigDict"):
            settings.check(value)


@pytest.mark.parametrize("key", SETTINGS)
def test_every_key_has_a_finite_range_a_type_and_a_meaning(key):
    setting = SETTINGS[key]
    assert setting.meaning.endswith((".", ".)"))
    assert not settings.wrong_values(default_config(), [key])
    if isinstance(setting.allowed, Range):
        low, high = setting.allowed[:2]
        assert math.isfinite(low)
        assert math.isfinite(high)
        for end, sign in ((low, setting.allowed.ends[0]), (high, setting.allowed.ends[1])):
            is_in = isinstance(low, int) or sign in "[]"
            assert bool(settings.wrong_values(with_value(key, end), [key])) != is_in


@given(st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=5)))
def test_ranges_hold_what_they_say(value):
    for allowed in (Range(0, 7), Range(0.0, 1.0), Range(1e-6, 10.0, ends="(]"), Range(-1, 3)):
        try:
            allowed.refuse("key", value)
        except ValueError as error:
            assert str(error).startswith("key=")
            assert not is_possible(allowed, value)
        else:
            assert is_possible(allowed, value)


def test_all_wrong_keys_are_reported_together():
    config = default_config()
    config.epochs, config.seeds, config.cpu_devices, config.ema = 10**9, 10**6, 10**6, math.inf
    config.model.dim, config.model.mlp_mult = 10**8, 10**8
    config.model.block_repeats = (2, 2, 1.5)
    config.losses.cross_entropy = -1.0
    config.lr = 0.1
    config.optimizer = "Adam"
    config.dataset.layout = "RELEASE"
    del config.momentum
    lines = refused(config)
    for start in (
        *("epochs=1000000000", "seeds=", "cpu_devices=", "ema=inf"),
        *("model.dim=", "model.mlp_mult="),
        *("model.block_repeats=(2, 2, 1.5)", "losses.cross_entropy=-1.0"),
        *("optimizer='Adam' is unknown; use adam", "dataset.layout='RELEASE' is unknown"),
        *("lr is unknown; did you mean config.learning_rate?", "momentum is missing"),
    ):
        assert sum(line.startswith(f"  config.{start}") for line in lines) == 1, start
    assert len(lines) == 14


def test_what_does_not_fit_together_is_reported_together():
    config = default_config()
    config.update({"seed": 2**32 - 1, "seeds": 2, "inner_folds": 6, "momentum": 0.5})
    config.model.patch_size, config.text.template = 5, "{unit}"
    lines = refused(config)
    assert len(lines) == 6
    for word in (
        *("below 2**32", "config.inner_parts=5", "momentum=0.5 is for sgd", "patch_size=5"),
        "config.text.template='{unit}'",
    ):
        assert any(word in line for line in lines)


@pytest.mark.parametrize("schedule", ["constant", "step", "cosine", "one_cycle"])
def test_a_number_of_decays_without_a_decay_is_refused(schedule):
    config = default_config()
    config.schedule, config.learning_rate_decay_epochs = schedule, 50
    (line,) = refused(config)
    assert "config.learning_rate_decay_epochs=50 says how often" in line


def test_a_misspelt_attribute_of_a_network():
    config = default_config()
    config.model.drop_out = 0.1
    (line,) = refused(config)
    assert line == "config.model.drop_out is unknown to HTNet; did you mean config.model.dropout?"
    for name in ("parent", "SIZES", "setup", "__init__"):
        config = with_value(f"model.{name}", 1)
        assert f"config.model.{name} is unknown to HTNet" in refused(config)[0]


def test_the_defaults_of_the_network_are_its_own():
    own = {key: one.default for key, one in settings.attributes(HTNet).items()}
    assert {"name": "HTNet", **own} == default_config().model.to_dict()


def test_the_docs_have_the_table(monkeypatch):
    monkeypatch.delitem(models.MODELS, "Linear")  # of the tests here
    assert (DOCS / "settings.md").read_text() == settings.as_markdown(), (
        "write it again: python -c 'from htnet_jax.training import settings; "
        'print(settings.as_markdown(), end="")\' > docs/settings.md'
    )


def test_the_help_has_every_setting_and_fits_the_terminal():
    text = settings.as_text()
    for key, default in default_config().items():
        if not isinstance(default, ConfigDict):
            assert f"\n  --config.{key}={default}\n" in text
    for key in ("dataset.layout=release", "model.widths=(128, 128, 256, 512)", "model.gamma=1.0"):
        assert f"\n  --config.{key}\n" in text
    assert max(map(len, text.splitlines())) <= 100


def test_settings_of_an_earlier_version_take_one_line():
    old = default_config().to_dict()
    new = default_config().to_dict()
    for key in ("order", "ema", "tensorboard"):
        del old[key]
    new["epochs"] = 7
    assert settings.differences(old, new) == [
        "config.epochs: 800 there, 7 now",
        "config.ema, config.order: not known there",
    ]
    assert settings.differences(new, old)[1:] == ["config.ema, config.order: not known now"]


class Stop(Exception):
    """Raised where training would begin."""


def test_what_a_run_takes_is_refused_with_the_figure_before_it_is_allocated(
    make_config, monkeypatch, tmp_path
):
    monkeypatch.setattr(memory, "main_memory_bytes", lambda: 10**9)
    monkeypatch.setattr(folds.FoldTrainer, "_arrange", lambda _: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        experiment.run(make_config(), tmp_path / "small")
    # 24 clips, 3 classes, float32, once as results and once joined: 2 x 288 bytes an epoch.
    message = r"6 folds x 50 seeds x 1 models of 100000 epochs need about 2\.9 GB .* 1\.0 GB are"
    with pytest.raises(UserError, match=message):
        experiment.run(make_config(epochs=100_000, seeds=50), tmp_path / "long")
    network = ConfigDict(
        {"name": "HTNet", "patch_size": 28, "num_hierarchies": 1, "block_repeats": (1,)}
    )
    network.dim = 4096
    with pytest.raises(UserError, match=r"a single fold takes at least .* 1\.0 GB are free"):
        experiment.run(make_config(model=network), tmp_path / "large")


def test_the_figure_is_that_of_the_predictions(make_config, arrays):
    """What is estimated is what will be written, inner folds included."""
    config = make_config(epochs=2, inner_folds=2, seeds=2, folds="a01,g02")
    run = plan.make_plan(config, arrays, arrays.labels)

    def read(unit):
        shape = (2, int(run.predicted(unit).sum()), 3)
        return plan.Result(np.zeros(shape, np.float32), np.zeros(2, np.float32))

    found = plan.joined(run, read, [0, 1])
    written = found.logits, found.inner.logits, found.inner.test_logits
    assert run.result_bytes == sum(array.nbytes for array in written)
