"""What a compiled call is: nothing compiled twice, nothing copied in its middle, batched folds."""

import re

import jax
import numpy as np
import optax
import pytest
from fakes.linear import Linear
from flax import linen as nn

from htnet_jax.learn.step import Learner
from htnet_jax.models import HTNet, layers
from htnet_jax.training import folds as folds_module
from htnet_jax.training.folds import Fold, FoldTrainer

CLIPS = 10
NAMES = "abcde"


def make_trainer(devices=1, group=3, module=None, size=2, **options):
    subjects = np.arange(CLIPS) % len(NAMES)
    inputs = np.random.default_rng(0).uniform(0, 255, (CLIPS, size, size, 1)).astype(np.float32)
    chosen = [
        Fold(name, train=index != subjects, test=index == subjects)
        for index, name in enumerate(NAMES)
    ]
    return FoldTrainer(
        Learner(module or Linear(num_classes=3, image_size=2), optax.adam(0.01)),
        inputs,
        np.zeros(CLIPS, np.int32),
        chosen,
        batch_size=4,
        seed=0,
        folds_per_device=group,
        devices=jax.local_devices()[:devices],
        **options,
    )


@pytest.fixture
def compilations():
    """Grows by one with each program that XLA compiles."""
    seen = []

    def listen(name, seconds, **facts):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(facts.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def lowered_run(trainer):
    """The program of a round, before XLA compiles it."""
    lowered = []
    original = trainer._run.lower

    class Recorder:
        def lower(self, *arguments):
            lowered.append(original(*arguments))
            return lowered[-1]

    trainer._run = Recorder()
    trainer.train(trainer.rounds()[0], 1)
    return lowered[0].as_text()


def test_nothing_is_compiled_after_the_first_call(compilations, monkeypatch):
    """Five folds on two devices, in rounds of three and two, several calls a round."""
    monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", 0)
    trainer = make_trainer(devices=2, group=2)
    first, last = trainer.rounds()
    assert (len(first), len(last)) == (3, 2)
    compilations.clear()
    counts = []
    trainer.train(first, 4, lambda progress: counts.append(len(compilations)))
    # The initial parameters and the run; then four calls.
    assert counts == [2] * 5
    trainer.train(last, 3)
    trainer.train(first, 2)
    assert len(compilations) == 2


def test_a_copy_in_the_middle_of_a_call_is_an_error():
    """Arguments that are still on the host would be copied while the devices wait."""
    trainer = make_trainer()
    trainer._place = lambda *arrays: arrays
    trainer._data = jax.device_get(trainer._data)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
        trainer.train(trainer.rounds()[0], 1)


def products(text, rank):
    """The types of the left operands of a lowered program's products, of so many dimensions."""
    found = re.findall(r"stablehlo\.dot_general.*: \(tensor<([\dx]+)xf32>", text)
    assert found
    return [shape for shape in found if shape.count("x") == rank - 1]


def test_products_over_folds_are_batched():
    """Every product of a step has the folds as its batch; no loop takes one fold after another."""
    text = lowered_run(make_trainer(group=3))
    batched = products(text, 3)
    # Forward and gradient of the kernel, for a whole and the last batch, and the test clips.
    assert batched
    assert not products(text, 2)
    assert {shape.split("x")[0] for shape in batched} == {"3"}
    batches = re.findall(r"stablehlo\.dot_general.*batching_dims = \[0\] x \[0\]", text)
    assert len(batches) == len(batched)


def test_a_group_of_one_has_plain_products():
    """XLA turns gradients of weights the right way round only in products without a batch."""
    text = lowered_run(make_trainer(group=1))
    assert products(text, 2)
    assert not products(text, 3)
    assert not re.search(r"stablehlo\.dot_general.*batching_dims", text)


@pytest.mark.parametrize(
    ("name", "inside"), [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "DEFAULT")]
)
def test_the_precision_of_products(name, inside):
    """On a CPU the compiler takes note of none of them."""
    text = lowered_run(make_trainer(group=1, matmul_precision=name))
    found = re.findall(r"stablehlo\.dot_general.*precision = \[(\w+), (\w+)\]", text)
    assert len(found) == text.count("stablehlo.dot_general") > 0
    assert set(found) == {(inside, inside)}


class Small(nn.Module):
    """HTNet's layers, few of them."""

    dtype: str

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(x.shape[0], -1).astype(self.dtype)
        x = layers.LayerNorm(self.dtype)(layers.Dense(6, self.dtype)(x))
        return layers.Dense(3, self.dtype)(layers.gelu(x))


def small_htnet(dtype):
    return HTNet(image_size=7, num_hierarchies=1, block_repeats=(1,), dim=6, heads=1, dtype=dtype)


@pytest.mark.parametrize("make", [Small, pytest.param(small_htnet, marks=pytest.mark.slow)])
def test_bfloat16_trains_in_float32_state(make):
    """The computation is in bfloat16; parameters, optimizer, loss and logits stay float32."""
    outcomes = {}
    for dtype in ("float32", "bfloat16"):
        module = make(dtype)
        trainer = make_trainer(group=1, module=module, size=7)
        outcomes[dtype] = trainer.train(trainer.rounds()[0], 12)[0]
        state = jax.eval_shape(trainer._init, jax.ShapeDtypeStruct((1, 1, 2), np.uint32), {})
        types = {leaf.dtype.name for leaf in jax.tree.leaves(state)}
        assert types == {"float32", "int32"}  # int32: Adam's count
    exact, coarse = outcomes.values()
    assert coarse.logits.dtype == coarse.train_loss.dtype == np.float32
    assert {leaf.dtype.name for leaf in jax.tree.leaves(coarse.variables)} == {"float32"}
    assert coarse.train_loss[-1] < coarse.train_loss[0]
    # bfloat16 has 8 bits of mantissa.
    assert not np.array_equal(coarse.logits, exact.logits)
    np.testing.assert_allclose(coarse.train_loss, exact.train_loss, rtol=0.05, atol=0.02)
