import re

import flax
import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htnet_jax.errors import UserError
from htnet_jax.models import HTNet
from htnet_jax.torch_bridge import BRIDGES, convert, htnet
from htnet_jax.torch_bridge.convert import Rule, match, translate

BRIDGE = BRIDGES["HTNet"]
SMALL = HTNet(dim=6, heads=2, image_size=14, num_hierarchies=2, block_repeats=(1, 1))
EXPECTED = convert.expected_variables(SMALL, 3)


def flat(variables):
    return flax.traverse_util.flatten_dict(variables, sep="/")


def nested(arrays):
    return flax.traverse_util.unflatten_dict(arrays, sep="/")


def variables_like(expected, dtype="f4", seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(dtype), expected)


def small_state_dict():
    return convert.to_state_dict(variables_like(EXPECTED), BRIDGE.table)


def message_of(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


# --- patterns -------------------------------------------------------------------------------------


def test_match_takes_numbers_of_many_digits():
    pattern = "a_{i}.b.{j}"
    assert match(pattern, "a_0.b.123") == {"i": "0", "j": "123"}
    assert match(pattern, "a_907.b.5") == {"i": "907", "j": "5"}
    assert match("plain", "plain") == {}


@pytest.mark.parametrize(
    "name",
    ["a_1.b.2.c", "xa_1.b.2", "a_1.b.", "a_.b.2", "a_-1.b.2", "a_x.b.2", "a_1.b.2\n", "A_1.b.2"],
)
def test_match_is_never_partial(name):
    assert match("a_{i}.b.{j}", name) is None
    assert translate(name, "a_{i}.b.{j}", "c.{i}.{j}") is None


def test_special_characters_are_literal():
    assert match("a.b", "axb") is None
    assert match("w+[0](x)|{i}*", "w+[0](x)|7*") == {"i": "7"}
    assert match("w+[0](x)|{i}*", "ww0x") is None


def test_translate_puts_every_number_in_its_place():
    assert translate("a/12/3", "a/{i}/{j}", "{j}.b.{i}") == "3.b.12"
    assert translate("3.b.12", "{j}.b.{i}", "a/{i}/{j}") == "a/12/3"


@given(numbers=st.tuples(st.integers(0, 999), st.integers(0, 999)))
def test_translate_there_and_back(numbers):
    i, j = numbers
    for rule in BRIDGE.table:
        name = rule.flax.format(i=i, j=j)
        there = translate(name, rule.flax, rule.torch)
        assert there == rule.torch.format(i=i, j=j)
        assert translate(there, rule.torch, rule.flax) == name


# --- the table ------------------------------------------------------------------------------------


def test_every_parameter_matches_one_rule_and_every_rule_is_used():
    paths = list(flat(convert.expected_variables(HTNet(), 3)))
    used = set()
    names = []
    for path in paths:
        rules = [rule for rule in BRIDGE.table if match(rule.flax, path) is not None]
        assert len(rules) == 1, path
        used.add(rules[0].flax)
        names.append(translate(path, rules[0].flax, rules[0].torch))
        # Nor may a PyTorch name be claimed by two rules.
        assert sum(match(rule.torch, names[-1]) is not None for rule in BRIDGE.table) == 1
    assert used == {rule.flax for rule in BRIDGE.table}
    assert len(set(names)) == len(paths)
    with torch.device("meta"):
        assert set(names) == set(htnet.HTNet().state_dict())


@pytest.mark.parametrize("rule", BRIDGE.table, ids=lambda rule: rule.flax)
def test_axes_are_reversible(rule):
    left, right = (side.split() for side in rule.axes.split(" -> "))
    assert len(set(left)) == len(left)
    assert sorted(axis for axis in right if axis != "1") == sorted(left)
    array = np.random.default_rng(0).normal(size=range(2, 2 + len(left))).astype("f4")
    name = rule.flax.format(i=1, j=2)
    tensors = convert.to_state_dict(nested({name: array}), [rule])
    assert list(tensors) == [rule.torch.format(i=1, j=2)]
    expected = {"params": nested({name.removeprefix("params/"): array})}
    back = flat(convert.from_state_dict(tensors, [rule], expected))
    np.testing.assert_array_equal(back[name], array)


def test_axes_of_every_kind_of_array():
    rng = np.random.default_rng(0)
    kernel, conv, vector = (rng.normal(size=s) for s in [(2, 3), (3, 3, 4, 5), (6,)])
    state_dict = convert.to_state_dict(
        nested(
            {
                "params/patch_embedding/kernel": kernel,
                "params/head/kernel": kernel,
                "params/aggregate_0/conv/kernel": conv,
                "params/level_11/block_10/mlp_norm/scale": vector,
                "params/level_0/pos_emb": vector,
            }
        ),
        BRIDGE.table,
    )
    found = {name: tensor.numpy() for name, tensor in state_dict.items()}
    expected = {
        "to_patch_embedding.1.weight": kernel.T[:, :, None, None],
        "mlp_head.2.weight": kernel.T,
        "layers.0.1.0.weight": conv.transpose(3, 2, 0, 1),
        "layers.11.0.layers.10.1.norm.g": vector.reshape(1, 6, 1, 1),
        "layers.0.0.pos_emb": vector,
    }
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float64
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# --- there and back -------------------------------------------------------------------------------

# -0.0, the smallest and another denormal, infinities, NaNs: quiet, negative, with a payload.
SPECIAL = (
    *[0x80000000, 0x00000001, 0x807FFFFF, 0x7F800000, 0xFF800000],
    *[0x7FC00000, 0xFFC00000, 0x7FC12345, 0xFFFFFFFF],
)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_bit_comes_back(seed):
    rng = np.random.default_rng(seed)

    def any_bits(leaf):
        bits = rng.integers(0, 2**32, leaf.shape, np.uint32)
        special = rng.choice(np.array(SPECIAL, np.uint32), leaf.shape)
        return np.where(rng.random(leaf.shape) < 0.3, special, bits).view("f4")

    variables = jax.tree.map(any_bits, EXPECTED)
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    model = htnet.build(SMALL)
    model.load_state_dict(state_dict, strict=True)
    for tensors in (state_dict, model.state_dict()):
        back = flat(convert.from_state_dict(tensors, BRIDGE.table, EXPECTED))
        assert back.keys() == flat(variables).keys()
        for path, array in flat(variables).items():
            np.testing.assert_array_equal(back[path].view("u4"), array.view("u4"), err_msg=path)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_types_are_kept_on_the_way_to_torch(dtype):
    variables = variables_like(EXPECTED, dtype)
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    assert {tensor.dtype for tensor in state_dict.values()} == {getattr(torch, dtype)}
    back = convert.from_state_dict(state_dict, BRIDGE.table, EXPECTED, dtype)
    for path, array in flat(back).items():
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, flat(variables)[path])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_become_float32(dtype):
    state_dict = {name: tensor.to(dtype) for name, tensor in small_state_dict().items()}
    variables = convert.from_state_dict(state_dict, BRIDGE.table, EXPECTED)
    assert {array.dtype for array in flat(variables).values()} == {np.dtype("f4")}
    again = convert.to_state_dict(variables, BRIDGE.table)
    for name, tensor in state_dict.items():
        assert torch.equal(again[name], tensor.to(torch.float32)), name


def test_jax_arrays_and_parameters_with_gradients_are_taken():
    variables = jax.tree.map(jax.numpy.asarray, variables_like(EXPECTED))
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    trained = {name: torch.nn.Parameter(tensor) for name, tensor in state_dict.items()}
    back = flat(convert.from_state_dict(trained, BRIDGE.table, EXPECTED))
    for path, array in flat(variables).items():
        assert type(back[path]) is np.ndarray
        np.testing.assert_array_equal(back[path], array)


def test_no_memory_is_shared():
    variables = variables_like(EXPECTED)
    state_dict = convert.to_state_dict(variables, BRIDGE.table)
    kept = {name: tensor.clone() for name, tensor in state_dict.items()}
    for array in flat(variables).values():
        array[...] = 7
    assert all(torch.equal(tensor, kept[name]) for name, tensor in state_dict.items())
    assert all(tensor.is_contiguous() for tensor in state_dict.values())
    back = flat(convert.from_state_dict(state_dict, BRIDGE.table, EXPECTED))
    copies = {path: array.copy() for path, array in back.items()}
    for tensor in state_dict.values():
        tensor.fill_(9)
    for path, array in back.items():
        np.testing.assert_array_equal(array, copies[path])
        assert array.flags.c_contiguous
        assert array.flags.writeable


def test_tensors_that_are_not_contiguous():
    state_dict = small_state_dict()
    name = "mlp_head.2.weight"
    strided = {**state_dict, name: state_dict[name].T.contiguous().T}
    assert not strided[name].is_contiguous()
    plain, other = (
        flat(convert.from_state_dict(tensors, BRIDGE.table, EXPECTED))
        for tensors in (state_dict, strided)
    )
    np.testing.assert_array_equal(plain["params/head/kernel"], other["params/head/kernel"])


# --- what does not fit ----------------------------------------------------------------------------


def columns(message):
    """The rows of the two-column report, stripped."""
    rows = [line.partition("|") for line in message.splitlines() if "|" in line]
    return [(left.strip(), right.strip()) for left, _, right in rows]


def test_all_that_does_not_fit_stands_in_one_message():
    state_dict = small_state_dict()
    del state_dict["mlp_head.2.bias"], state_dict["layers.0.0.pos_emb"]
    state_dict["fc.weight"] = torch.zeros(4, 2)
    state_dict["mlp_head.0.g"] = torch.zeros(12)
    message = message_of(convert.from_state_dict, state_dict, BRIDGE.table, EXPECTED)
    assert message.startswith("the state_dict does not fit: 2 missing, 1 unknown, 1 misshapen\n")
    rows = columns(message)
    assert rows[0] == ("expected", "in the file")
    assert rows[1] == ("mlp_head.0.g (1, 12, 1, 1)", "(12,)")
    assert len(rows) == 4
    assert {left for left, _ in rows[2:]} == {"mlp_head.2.bias (3,)", "layers.0.0.pos_emb (1,)"}
    assert [right for _, right in rows[2:]] == ["fc.weight (4, 2)", ""]
    # Aligned, so that the two columns can be compared.
    assert len({line.index("|") for line in message.splitlines() if "|" in line}) == 1


def test_more_unknown_than_missing():
    state_dict = {**small_state_dict(), "a": torch.zeros(1), "b": torch.zeros(())}
    rows = columns(message_of(convert.from_state_dict, state_dict, BRIDGE.table, EXPECTED))
    assert rows[1:] == [("", "a (1,)"), ("", "b ()")]


def test_same_number_of_values_in_another_shape_is_misshapen():
    state_dict = small_state_dict()
    state_dict["mlp_head.2.weight"] = state_dict["mlp_head.2.weight"].T.contiguous()
    rows = columns(message_of(convert.from_state_dict, state_dict, BRIDGE.table, EXPECTED))
    assert rows[1:] == [("mlp_head.2.weight (3, 12)", "(12, 3)")]


def test_leading_zeros_are_another_name():
    state_dict = small_state_dict()
    state_dict["layers.00.0.pos_emb"] = state_dict.pop("layers.0.0.pos_emb")
    message = message_of(convert.from_state_dict, state_dict, BRIDGE.table, EXPECTED)
    assert columns(message)[1:] == [("layers.0.0.pos_emb (1,)", "layers.00.0.pos_emb (1,)")]


def test_state_dict_of_another_network():
    state_dict = {"conv1.weight": torch.zeros(8, 3, 7, 7), "mlp_head.0.g": torch.zeros(1, 4, 1, 1)}
    message = message_of(convert.infer_sizes, state_dict, BRIDGE, {}, 3)
    rows = columns(message)
    assert message.startswith("the state_dict does not fit: 21 missing, 1 unknown, 0 misshapen")
    assert [right for _, right in rows[1:] if right] == ["conv1.weight (8, 3, 7, 7)"]
    patterns = {left for left, _ in rows[1:]}
    assert patterns == {rule.torch for rule in BRIDGE.table} - {"mlp_head.0.g"}
    assert "layers.{i}.0.layers.{j}.0.fn.to_qkv.weight" in patterns


def test_sizes_are_inferred_and_contradictions_are_named():
    state_dict = small_state_dict()
    sizes = convert.infer_sizes(state_dict, BRIDGE, {"heads": 2}, 3)
    assert sizes["dim"] == 6
    assert sizes["image_size"] == 14
    message = message_of(convert.infer_sizes, state_dict, BRIDGE, {"heads": 2, "dim": 8}, 3)
    assert "dim: 6 in the file, 8 expected" in message


def test_flax_arrays_that_the_table_does_not_name():
    variables = variables_like(EXPECTED)
    variables["params"]["extra"] = {"kernel": np.zeros((1, 1), "f4")}
    variables["batch_stats"] = {"mean": np.zeros(1, "f4")}
    message = message_of(convert.to_state_dict, variables, BRIDGE.table)
    assert "params/extra/kernel" in message
    assert "batch_stats/mean" in message
    assert "params/head" not in message


def test_expected_arrays_that_the_table_does_not_name():
    message = message_of(convert.from_state_dict, {}, [Rule("params/a", "a", "c -> c")], EXPECTED)
    assert "params/head/kernel" in message


# --- what a file holds ----------------------------------------------------------------------------

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(1)}


def assert_is_tensors(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_bare_state_dict_is_taken_as_it_is():
    found, notes = convert.clean(TENSORS)
    assert_is_tensors(found)
    assert notes == []


@pytest.mark.parametrize("key", convert.NESTED_KEYS)
def test_state_dict_in_a_training_checkpoint(key):
    found, notes = convert.clean({"epoch": 3, key: TENSORS, "optimizer": {"lr": 0.1}})
    assert_is_tensors(found)
    (note,) = notes
    assert re.search(rf"under '{key}'.*left out: 'epoch', 'optimizer'", note)


def test_state_dict_alone_under_a_key():
    found, notes = convert.clean({"state_dict": TENSORS})
    assert_is_tensors(found)
    (note,) = notes
    assert "'state_dict'" in note
    assert "left out" not in note


def test_state_dict_that_is_nested_twice():
    found, notes = convert.clean({"model": {"state_dict": TENSORS, "arch": "HTNet"}, "epoch": 1})
    assert_is_tensors(found)
    assert len(notes) == 2
    assert "'model'; left out: 'epoch'" in notes[0]
    assert "'state_dict'; left out: 'arch'" in notes[1]


@pytest.mark.parametrize(
    "prefixes", [*[(p,) for p in convert.PREFIXES], ("module.", "model."), ("model.", "module.")]
)
def test_prefixes_of_every_name_are_taken_off(prefixes):
    before = "".join(prefixes)
    found, notes = convert.clean({before + name: tensor for name, tensor in TENSORS.items()})
    assert_is_tensors(found)
    assert len(notes) == len(prefixes)
    for prefix, note in zip(prefixes, notes, strict=True):
        assert repr(prefix) in note


def test_prefix_of_some_names_stays():
    mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
    found, notes = convert.clean(mixed)
    assert list(found) == ["module.a", "b"]
    assert notes == []


def test_nested_with_prefixes():
    prefixed = {"module." + name: tensor for name, tensor in TENSORS.items()}
    found, notes = convert.clean({"state_dict": prefixed})
    assert_is_tensors(found)
    assert len(notes) == 2


@pytest.mark.parametrize(
    ("loaded", "listed"),
    [
        ({"epoch": 1, "weird": TENSORS}, ["'epoch'", "'weird'"]),
        ({"state_dict": torch.zeros(1), "epoch": 1}, ["'state_dict'", "'epoch'"]),
        ({"state_dict": {}}, ["nothing"]),
        ({"state_dict": {"a": 1}}, ["'a'"]),
        ({1: torch.zeros(1)}, ["1"]),
        ({"a": torch.zeros(1), "b": 2.0}, ["'a'", "'b'"]),
        ({}, ["nothing"]),
    ],
)
def test_no_state_dict(loaded, listed):
    message = message_of(convert.clean, loaded)
    assert message.startswith("no state_dict found; there is ")
    shown = message.partition(". It must")[0]
    assert all(key in shown for key in listed)
    assert all(key in message for key in convert.NESTED_KEYS)


def test_non_finite_values_are_counted():
    nan, inf = float("nan"), float("inf")
    state_dict = {
        "good": torch.ones(3),
        "bad": torch.tensor([[nan, 1.0], [inf, -inf]]),
        "half": torch.tensor([nan, 0.0], dtype=torch.bfloat16),
        "count": torch.tensor([1, 2]),
        "double": torch.tensor([1e300], dtype=torch.float64),
    }
    assert convert.non_finite(state_dict) == {"bad": 3, "half": 1}


@pytest.mark.parametrize("number", ["1000", "1000000000", "9" * 5000, "00", "٣", "-1", "1.5"])
@pytest.mark.parametrize("name", ["layers.{}.0.pos_emb", "layers.0.0.layers.{}.0.norm.g"])
def test_numbers_of_layers_that_are_none(name, number):
    """Not counted up to, which would take for ever."""
    state_dict = {"layers.0.0.pos_emb": torch.zeros(1), name.format(number): torch.zeros(1)}
    with pytest.raises(UserError, match="1 unknown"):
        convert.infer_sizes(state_dict, htnet.BRIDGE, {}, 3)
