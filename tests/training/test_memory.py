"""Memory: what there is, what a program needs, and what happens when it does not suffice."""

import functools
import re
import types

import jax
import numpy as np
import optax
import pytest
from fakes.linear import Linear

from htnet_jax.errors import UserError
from htnet_jax.learn.step import Learner
from htnet_jax.training import folds as folds_module
from htnet_jax.training import memory
from htnet_jax.training.folds import Fold, FoldTrainer, train_rounds
from htnet_jax.training.memory import Regrouped

EPOCHS = 4
SUBJECTS = np.arange(16) % 8


def make_trainer(devices=1, group=0, names="abcdefgh", **options):
    rng = np.random.default_rng(0)
    inputs = rng.uniform(0, 255, (16, 2, 2, 1)).astype(np.float32)
    chosen = [
        Fold(name, train=index != SUBJECTS, test=index == SUBJECTS)
        for index, name in enumerate(names)
    ]
    return FoldTrainer(
        Learner(Linear(num_classes=3, image_size=2), optax.adam(0.05)),
        inputs,
        rng.integers(0, 3, 16).astype(np.int32),
        chosen,
        batch_size=7,
        seed=0,
        folds_per_device=group,
        devices=jax.local_devices()[:devices],
        **options,
    )


def exhausted(text="RESOURCE_EXHAUSTED: Out of memory while trying to allocate 75161927680 bytes."):
    return jax.errors.JaxRuntimeError(text)


@pytest.fixture
def fail_when(monkeypatch):
    """Training raises what XLA raises where `too_large(trainer)`.

    While compiling; or in the third call of the compiled program, an epoch a call.
    """

    def fail_when(too_large, error=None, running=False):
        original = FoldTrainer._compile

        def compile_(trainer, *arguments, **options):
            if not running and too_large(trainer):
                raise error or exhausted()
            init, run = original(trainer, *arguments, **options)
            calls = []

            def failing(state, *rest):
                calls.append(1)
                if running and len(calls) == 3 and too_large(trainer):
                    raise error or exhausted()
                return run(state, *rest)

            return init, failing

        monkeypatch.setattr(folds_module, "SECONDS_PER_CALL", 0)
        monkeypatch.setattr(FoldTrainer, "_compile", compile_)

    return fail_when


def trained(trainer):
    return {result.fold.name: result for result in train_rounds(trainer, EPOCHS)}


@functools.cache
def quiet(devices, group):
    """A trainer whose memory sufficed, and its results; compiled once for all tests."""
    trainer = make_trainer(devices, group)
    return trainer, trained(trainer)


def assert_same_bits(first, second):
    for name in second:
        np.testing.assert_array_equal(first[name].logits, second[name].logits)
        np.testing.assert_array_equal(first[name].train_loss, second[name].train_loss)
        jax.tree.map(np.testing.assert_array_equal, first[name].variables, second[name].variables)


def test_an_exhausted_group_is_halved(fail_when, capfd):
    _, expected = quiet(1, 2)
    fail_when(lambda trainer: trainer.folds_per_device > 2)
    trainer = make_trainer(group=8)
    found = trained(trainer)
    assert capfd.readouterr().err.splitlines() == [
        "out of memory with 8 folds a device: continuing with 4",
        "out of memory with 4 folds a device: continuing with 2",
    ]
    assert (trainer.folds_per_device, trainer.devices_at_once) == (2, 0)
    assert list(found) == list("abcdefgh")
    assert_same_bits(found, expected)


@pytest.mark.slow  # compiles five times; test_regrouping.py tests the same through a whole run
def test_finished_folds_are_kept(fail_when, capfd):
    """Memory that suffices for the first round only: those folds have the bits of their group."""
    (_, halved), (_, whole) = quiet(1, 2), quiet(1, 4)
    rounds = []

    def too_large(trainer):
        rounds.append(trainer.folds_per_device)
        return rounds == [4, 4]

    fail_when(too_large, running=True)
    results = list(train_rounds(make_trainer(group=4), EPOCHS))
    assert "out of memory with 4 folds a device: continuing with 2" in capfd.readouterr().err
    found = {result.fold.name: result for result in results}
    assert len(results) == len(found) == 8
    assert_same_bits({name: found[name] for name in "abcd"}, {name: whole[name] for name in "abcd"})
    assert_same_bits(
        {name: found[name] for name in "efgh"}, {name: halved[name] for name in "efgh"}
    )


@pytest.mark.slow  # compiles four times
def test_exhausted_cpu_devices_become_fewer(fail_when, capfd):
    _, expected = quiet(2, 1)
    fail_when(lambda trainer: len(trainer._devices) > 2)
    trainer = make_trainer(devices=4, group=1)
    found = trained(trainer)
    assert capfd.readouterr().err.splitlines() == [
        "out of memory with 4 devices at once: continuing with 2 (each trains one fold)"
    ]
    assert (trainer.folds_per_device, trainer.devices_at_once) == (1, 2)
    assert_same_bits(found, expected)


def test_nothing_left_to_make_smaller(fail_when):
    fail_when(lambda trainer: True)
    message = (
        r"out of memory with a single fold: its parameters and optimizer alone take \d+\.\d\d GB, "
        r"and \d+\.\d\d GB are free\. Set a smaller --config\.batch_size or a smaller network"
    )
    with pytest.raises(UserError, match=message) as caught:
        trained(make_trainer(group=2))
    assert caught.value.__context__ is None  # the failed attempt's arrays are let go


def test_other_failures_are_not_taken_for_exhaustion(fail_when):
    error = jax.errors.JaxRuntimeError("INTERNAL: something else")
    fail_when(lambda trainer: True, error)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        trained(make_trainer(group=2))


def test_several_processes_do_not_regroup_by_themselves(fail_when, monkeypatch):
    fail_when(lambda trainer: True)
    monkeypatch.setattr(folds_module.jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match=r"Several processes cannot .* --config\.folds_per_device"):
        trained(make_trainer(group=2))


@pytest.mark.parametrize(
    ("text", "is_it"),
    [
        ("RESOURCE_EXHAUSTED: Failed to allocate request for 2.00GiB", True),
        ("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory", True),
        ("INVALID_ARGUMENT: Disallowed host-to-device transfer", False),
    ],
)
def test_what_exhaustion_looks_like(text, is_it):
    assert memory.is_exhausted(exhausted(text)) == is_it


def test_a_real_exhaustion_looks_like_that():
    """A program for more memory than any machine has."""
    huge = jax.jit(lambda: jax.numpy.ones((1 << 45,), np.float32) * jax.numpy.float32(2))
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        huge().block_until_ready()
    assert memory.is_exhausted(caught.value)


@pytest.mark.slow  # compiles HTNet
def test_the_compiler_says_what_a_program_needs():
    one, four = (quiet(*sizes)[0].program_bytes for sizes in ((2, 1), (1, 4)))
    # Parameters of a fold: 4 x 3 kernel and 3 biases; Adam's moments, as many again, and its count.
    state = 4 * (3 * 15 + 1)
    assert one > state + 16 * 4 * 4  # and the clips
    assert 3 * state < four - one < 100 * state


@pytest.mark.slow  # compiles twice; fewer devices are tested below
def test_a_wish_that_does_not_fit_becomes_smaller(monkeypatch):
    obeyed, _ = quiet(1, 4)
    free = int(obeyed.program_bytes / memory.USABLE) + 1
    monkeypatch.setattr(memory, "available_bytes", lambda devices: free)
    trainer = make_trainer(group=8)
    with pytest.raises(
        Regrouped, match=re.escape(" GB free with 8 folds a device: continuing with")
    ):
        trainer.train(trainer.rounds()[0], 1)
    assert len(trained(trainer)) == 8
    assert trainer.program_bytes <= memory.USABLE * free
    obeyed._size.check(obeyed.program_bytes, 0, obeyed._devices)
    assert obeyed.folds_per_device == 4


def test_cpu_devices_that_do_not_fit_become_fewer(monkeypatch, capfd):
    need = quiet(2, 1)[0].program_bytes
    shared = 2 * int(need / memory.USABLE + 1)
    monkeypatch.setattr(memory, "available_bytes", lambda devices: shared // len(devices))
    trainer = make_trainer(devices=4, group=1)
    assert len(trained(trainer)) == 8
    assert trainer.devices_at_once == 2
    assert "with 4 devices at once: continuing with 2" in capfd.readouterr().err


def test_snapshots_need_memory_too(monkeypatch):
    """On a CPU a copy of the state is made in the same memory."""
    trainer, _ = quiet(1, 2)
    state = 4 * (3 * 15 + 1)
    need = trainer.program_bytes + 2 * state
    monkeypatch.setattr(memory, "available_bytes", lambda _: need / memory.USABLE)
    size, program, devices = trainer._size, trainer.program_bytes, trainer._devices
    size.check(program, 1, devices)
    shrunk = []
    monkeypatch.setattr(size, "shrink", lambda fit, why, devices: shrunk.append(fit))
    monkeypatch.setattr(memory, "available_bytes", lambda _: (need - 1) / memory.USABLE)
    size.check(program, 0, devices)
    assert not shrunk
    size.check(program, 1, devices)
    assert shrunk == [1]
    asked = []
    monkeypatch.setattr(
        trainer, "_compile", lambda tables, start, copies: asked.append(copies) or trainer._programs
    )
    keeping = folds_module.Keeping(
        types.SimpleNamespace(latest=lambda like: None), 0, types.SimpleNamespace(number=0)
    )
    for kept in (None, keeping):
        trainer.train(trainer.rounds()[0], 1, None, kept)
    assert asked == [0, 1]


# Folds, devices, how many fit on one -> how many go on one.
@pytest.mark.parametrize(("folds", "devices", "fit", "group"), [(8, 2, 3, 2), (8, 1, 4, 4)])
def test_the_estimate_follows_the_free_memory(folds, devices, fit, group, monkeypatch):
    # Parameters, gradient and two moments, as float32, with Adam's counter, and room to work in.
    one_fold = memory.WORKING_FACTOR * 4 * (4 * 15 + 1)
    monkeypatch.setattr(memory, "available_bytes", lambda _: int((fit + 0.5) * one_fold))
    monkeypatch.setattr(memory, "MAX_FOLDS_PER_CPU_DEVICE", 1000)
    trainer = make_trainer(devices, names="abcdefgh"[:folds])
    assert trainer.folds_per_device == group
    assert trainer.parameter_bytes == 4 * 15


def test_a_cpu_device_takes_a_few_folds_at_most(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1 << 40)
    assert make_trainer().folds_per_device == memory.MAX_FOLDS_PER_CPU_DEVICE


def test_a_group_has_no_more_places_than_there_are_folds():
    assert make_trainer(devices=1, names="abc", group=10_000).folds_per_device == 3


def test_fewer_folds_than_devices():
    trainer = make_trainer(devices=4, names="abc")
    assert trainer.folds_per_device == 1
    assert len(trainer._devices) == 3


def test_cpu_devices_share_the_memory():
    devices = jax.local_devices()
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 1 << 20 < memory.available_bytes(devices[:2]) <= total // 2


def test_the_accelerator_with_the_least_memory_counts():
    def device(limit, used):
        stats = {"bytes_limit": limit, "bytes_in_use": used}
        return types.SimpleNamespace(memory_stats=lambda: stats)

    assert memory.available_bytes([device(10, 1), device(9, 3)]) == 6


MIB = 1 << 20


@pytest.fixture
def machine(tmp_path):
    """Files as Linux shows them: 1000 MiB free; keywords say what else is there."""

    def machine(cgroup="", files=()):
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/meminfo").write_text(
            f"MemTotal: 4096000 kB\nMemAvailable: {1000 << 10} kB\nHugePages_Total: 0\n"
        )
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in dict(files).items():
            path = tmp_path / "sys/fs/cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return memory.main_memory_bytes(tmp_path)

    return machine


def test_without_a_container_the_free_memory_counts(machine):
    assert machine() == 1000 * MIB


def test_a_container_of_version_2_limits(machine):
    """The group above it has the lower limit; files' pages can be had back."""
    files = {
        "job/memory.max": "max",
        "job/memory.current": 5 * MIB,
        "job/memory.stat": "anon 7",
        "memory.max": 300 * MIB,
        "memory.current": 200 * MIB,
        "memory.stat": f"anon 1\ninactive_file {50 * MIB}\nactive_file 3",
    }
    assert machine("0::/job\n", files) == 150 * MIB


def test_a_container_of_version_1_limits(machine):
    """The path is the host's and not there: the mount itself counts."""
    files = {
        "memory/memory.limit_in_bytes": 400 * MIB,
        "memory/memory.usage_in_bytes": 100 * MIB,
        "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {20 * MIB}",
    }
    assert machine("4:memory:/docker/abc\n1:cpu:/\n0::/\n", files) == 320 * MIB


def test_a_container_without_a_limit(machine):
    files = {
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 100 * MIB,
        "memory/memory.stat": "",
    }
    assert machine("4:memory:/\n", files) == 1000 * MIB


def test_a_container_that_is_full(machine):
    files = {"memory.max": MIB, "memory.current": 2 * MIB, "memory.stat": ""}
    assert machine("0::/\n", files) == 0


def test_other_systems_say_nothing(tmp_path):
    assert memory.main_memory_bytes(tmp_path) == memory.UNKNOWN_BYTES
