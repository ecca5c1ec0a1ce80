"""From stored action units to sentences and their embeddings, kept beside the data."""

import importlib.util
import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest
from fakes import text_model

from htnet_jax.config import default_config
from htnet_jax.datasets import action_units
from htnet_jax.datasets.loading import ClipArrays
from htnet_jax.errors import UserError
from htnet_jax.features import text
from htnet_jax.models import bert

tokenizers = pytest.importorskip("tokenizers", reason="needs the extra `text`")

TEMPLATE = "The facial action units are: {units}."
# Of five clips; the last has no entry.
STORED = ("4+L7B", "1|2+4?", "R7+4D", "0", "")
SETS = ((), (1, 4), (4, 7))


def make_arrays(stored=STORED):
    count = len(STORED)
    return ClipArrays(
        flow=np.zeros((count, 2, 2, 3), np.float32),
        landmarks=np.zeros((count, 5, 2), np.float32),
        labels=np.zeros(count, np.int32),
        subjects=np.array(["s"] * count),
        sources=np.array(["x"] * count),
        clips=np.array([f"x/s/{i}" for i in range(count)]),
        emotions=np.array(["?"] * count),
        class_names=("negative", "positive", "surprise"),
        fingerprint="0" * 64,
        name="invented/frames/1.0.0",
        action_units=None if stored is None else np.array(stored),
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_model.write(tmp_path_factory.mktemp("model"))


@pytest.fixture
def settings(model, tmp_path):
    config = default_config()
    config.text.model, config.dataset.data_dir = str(model), str(tmp_path / "data")
    return config


def refusal(function, *arguments):
    with pytest.raises(UserError) as caught:
        function(*arguments)
    return str(caught.value)


# --- sentences ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stored", "units"),
    [
        ("R1+2|4+L10B?", (1, 2, 10)),
        ("7+4", (4, 7)),
        ("4+4+L4", (4,)),
        ("T23E", (23,)),
        ("12|10", (12,)),
        ("0", ()),
        ("none", ()),
        ("", None),
        ("?", None),
    ],
)
def test_units_of(stored, units):
    assert text.units_of(stored) == units


@pytest.mark.parametrize(
    ("stored", "named"), [("4+3", "'3'"), ("99", "'99'"), ("4+x;y", "'x', 'y'")]
)
def test_units_that_are_not_facs(stored, named):
    assert refusal(text.units_of, stored) == f"{named}: no action unit of FACS"


@pytest.mark.parametrize(
    ("units", "template", "expected"),
    [
        ((4, 7), TEMPLATE, "The facial action units are: AU4 brow lowerer, AU7 lid tightener."),
        ((7, 4, 4), "{codes}: {names}", "AU4, AU7: brow lowerer, lid tightener"),
        ((12,), "{{{codes}}}", "{AU12}"),
        ((), TEMPLATE, "No facial action unit is active."),
        ((), "{codes}", "No facial action unit is active."),
    ],
)
def test_sentence(units, template, expected):
    assert text.sentence(units, template) == expected


def test_every_unit_has_a_name_of_its_own():
    found = {text.sentence((unit,), "{names}") for unit in action_units.NUMBERS}
    assert len(found) == len(action_units.NUMBERS) == 79
    assert all(name == name.lower() and name.strip() == name for name in found)


@pytest.mark.parametrize(
    "template", ["", "units", "{}", "{unit}", "{units!r}", "{units:>9}", "{units.x}", "{units", "}"]
)
def test_a_template_that_does_not_name_the_units(settings, template):
    settings.text.template = template
    message = refusal(text.text_table, make_arrays(), settings)
    assert f"config.text.template={template!r}: " in message
    assert "name the units by {units}, {codes}, {names}" in message


# --- the table ------------------------------------------------------------------------------------


def test_multi_hot_needs_no_model(settings, monkeypatch):
    settings.text.kind, settings.text.model = "multi_hot", "/nowhere"
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    table = text.text_table(make_arrays(), settings)
    assert table.sets == SETS
    assert table.sentences[1] == (
        "The facial action units are: AU1 inner brow raiser, AU4 brow lowerer."
    )
    # Columns: 1, 4, 7.
    np.testing.assert_array_equal(table.embeddings, [[0, 0, 0], [1, 1, 0], [0, 1, 1]])
    assert table.embeddings.dtype == np.float32
    assert table.rows.tolist() == [2, 1, 2, 0, -1]
    assert table.rows.dtype == np.int32
    assert text.model_digest(settings) == ""


@pytest.mark.parametrize("stored", [None, [""] * len(STORED)])
@pytest.mark.parametrize("kind", ["sentence", "multi_hot"])
def test_a_data_set_without_units(settings, stored, kind):
    """It needs no text model."""
    settings.text.kind, settings.text.model = kind, "/nowhere"
    table = text.text_table(make_arrays(stored), settings)
    assert (table.sets, table.sentences) == ((), ())
    assert (table.embeddings.shape, table.embeddings.dtype) == ((0, 0), np.float32)
    assert table.rows.tolist() == [-1] * len(STORED)


def test_all_clips_whose_units_are_not_facs_are_named(settings):
    message = refusal(text.text_table, make_arrays(("4", "3", "", "99", "7")), settings)
    assert "invented/frames/1.0.0: action units: 2 problems" in message
    assert "x/s/1: '3': no action unit" in message
    assert "x/s/3: '99': no action unit" in message


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_embeddings(settings, model, pooling):
    """Each as if its sentence were alone, without padding, tokens by hand."""
    settings.text.template, settings.text.pooling = "Units: {codes}", pooling
    table = text.text_table(make_arrays(), settings)
    assert table.sentences == (text.NO_UNITS, "Units: AU1, AU4", "Units: AU4, AU7")
    assert table.embeddings.dtype == np.float32
    module, variables = bert.load(model)
    words = ["[CLS]", "units", "[UNK]", "au", "##1", ",", "au", "##4", "[SEP]"]
    tokens = np.array([[text_model.VOCABULARY.index(word) for word in words]], np.int32)
    hidden = jax.jit(module.apply)(variables, tokens, np.ones_like(tokens))[0]
    expected = hidden[0] if pooling == "cls" else hidden.mean(axis=0)
    np.testing.assert_allclose(table.embeddings[1], expected, rtol=0, atol=2e-6)


def test_many_sentences_are_read_in_batches(model):
    """The last batch is filled up; alone, in another batch and place, a sentence is the same."""
    sentences = ["the " * (1 + i % 7) + "unit" for i in range(text._BATCH + 5)]
    found = text.embed(model, sentences, "mean")
    assert found.shape == (len(sentences), 12)
    np.testing.assert_allclose(found[35], found[0], rtol=0, atol=2e-6)
    assert np.abs(found[1] - found[0]).max() > 1e-3


def test_embeddings_are_kept(settings, model, tmp_path, monkeypatch, capsys):
    expected = text.text_table(make_arrays(), settings).embeddings
    (kept,) = (tmp_path / "data" / "text").iterdir()

    def never(*arguments):
        raise AssertionError("computed again")

    with monkeypatch.context() as patch:
        patch.setattr(text, "embed", never)
        np.testing.assert_array_equal(text.text_table(make_arrays(), settings).embeddings, expected)
        # The same model elsewhere, and clips in another order.
        settings.text.model = str(shutil.copytree(model, tmp_path / "copy"))
        again = text.text_table(make_arrays(STORED[::-1]), settings)
        np.testing.assert_array_equal(again.embeddings, expected)
    assert capsys.readouterr().err == ""

    # A damaged one is computed anew, and said; so are those of other shapes and values.
    good = kept.read_bytes()
    np.savez(tmp_path / "nan.npz", embeddings=np.full((3, 12), np.nan, "f4"), format_version=1)
    np.savez(tmp_path / "two.npz", embeddings=np.zeros((2, 12), "f4"), format_version=1)
    np.savez(tmp_path / "old.npz", embeddings=expected, format_version=0)
    others = [(tmp_path / f"{name}.npz").read_bytes() for name in ("nan", "two", "old")]
    for content in (b"", good[:100], *others):
        kept.write_bytes(content)
        table = text.text_table(make_arrays(), settings)
        np.testing.assert_array_equal(table.embeddings, expected)
        message = capsys.readouterr().err
        assert str(kept) in message
        assert "computed anew" in message
        assert kept.read_bytes() == good


def test_what_decides_about_embeddings_is_in_the_name_of_their_file(settings, tmp_path):
    def number():
        text.text_table(make_arrays(), settings)
        return len([*(tmp_path / "data" / "text").iterdir()])

    assert number() == 1
    settings.text.pooling = "mean"
    assert number() == 2
    settings.text.template = "{codes}"
    assert number() == 3
    settings.text.model = str(text_model.write(tmp_path / "other", seed=1))
    assert number() == 4
    assert number() == 4


def test_a_data_folder_that_cannot_be_written(settings, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "text").write_text("in the way")
    table = text.text_table(make_arrays(), settings)
    assert table.embeddings.shape == (3, 12)
    assert "The embeddings of 3 sentences are not kept." in capsys.readouterr().err


def test_model_digest(settings, model, tmp_path):
    """It is that of the files' content: not of their folder, and of nothing else in it."""
    before = text.model_digest(settings)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    (copy / "README.md").write_text("of the model")
    settings.text.model = str(copy)
    assert text.model_digest(settings) == before
    (copy / "tokenizer_config.json").write_text("{}")
    found = {before, text.model_digest(settings)}
    for name in ("config.json", "vocab.txt", "model.safetensors", "tokenizer_config.json"):
        content = bytearray((copy / name).read_bytes())
        content[-1] ^= 1
        (copy / name).write_bytes(content)
        # Written within the resolution of the file system's clock, it would look unchanged.
        os.utime(copy / name, ns=(1, len(found)))
        found.add(text.model_digest(settings))
    assert len(found) == 6


# --- tokens and models that do not fit ------------------------------------------------------------


@pytest.mark.parametrize(("lower", "second"), [(True, "units"), (False, "[UNK]"), (None, "units")])
def test_letter_case_is_that_of_the_model(tmp_path, lower, second):
    text_model.write(tmp_path)
    if lower is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    tokens, mask = text._tokenize(tmp_path, ["Units", "no active unit"])
    words = [text_model.VOCABULARY[token] for token in tokens[0]]
    assert words == ["[CLS]", second, "[SEP]", "[PAD]", "[PAD]"]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert tokens.dtype == mask.dtype == np.int32


def test_tokens_are_those_of_transformers(tmp_path):
    """By `tokenizer.json`, whose own padding and cutting are not wanted, and by `vocab.txt`."""
    transformers = pytest.importorskip("transformers", reason="needs the extra `test`")
    if importlib.util.find_spec(text.MODEL_PACKAGE) is None:
        pytest.skip("needs the extra `text`, which brings all-MiniLM-L6-v2")
    folder = text.model_folder("")
    numbers = sorted(action_units.NUMBERS)
    sets = ((), *((unit,) for unit in numbers), tuple(numbers[:40]))
    sentences = [text.sentence(units, TEMPLATE) for units in sets]
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    expected = theirs(sentences)["input_ids"]
    shutil.copy(folder / "vocab.txt", tmp_path)
    for place in (folder, tmp_path):
        tokens, mask = text._tokenize(place, sentences)
        assert [row[real == 1].tolist() for row, real in zip(tokens, mask, strict=True)] == expected


def test_no_text_model_is_installed(settings, monkeypatch):
    settings.text.model = ""
    monkeypatch.setattr(text, "MODEL_PACKAGE", "nowhere_to_be_found")
    for function in (text.text_table, lambda arrays, config: text.model_digest(config)):
        message = refusal(function, make_arrays(), settings)
        assert "-e .[text]" in message
        assert "config.text.kind=multi_hot" in message


def test_no_tokenizers_are_installed(settings, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "-e .[text]" in refusal(text.text_table, make_arrays(), settings)


def test_models_that_do_not_fit(settings, tmp_path):
    folder = tmp_path / "model"
    settings.text.model = str(folder)
    message = refusal(text.text_table, make_arrays(), settings)
    assert f"{folder}: no such folder. Give the folder of a BERT" in message
    text_model.write(folder, config={"model_type": "gpt2"})
    assert "model_type is 'gpt2'" in refusal(text.text_table, make_arrays(), settings)
    text_model.write(folder)
    settings.text.template = "the " * 50 + "{codes}"
    message = refusal(text.text_table, make_arrays(), settings)
    assert "reads at most 48 tokens, but a sentence has" in message
    settings.text.template = TEMPLATE
    for content in ("[PAD]\n[UNK]\n", "", "\x00" * 40):
        (folder / "vocab.txt").write_text(content)
        message = refusal(text.text_table, make_arrays(), settings)
        assert "vocab.txt: damaged, or not a vocabulary of a BERT" in message
    words = [f"word{i}" for i in range(60)]
    (folder / "vocab.txt").write_text("\n".join([*words, *text_model.VOCABULARY]))
    message = refusal(text.text_table, make_arrays(), settings)
    assert "the model's vocabulary ends at 39" in message
    (folder / "vocab.txt").unlink()
    message = refusal(text.text_table, make_arrays(), settings)
    assert f"{folder}: has no tokenizer.json or vocab.txt" in message
    for content in ("{}", "[" * 10_000, *broken_tokenizers()):
        (folder / "tokenizer.json").write_text(content)
        message = refusal(text.text_table, make_arrays(), settings)
        assert "tokenizer.json: damaged, or not a vocabulary of a BERT" in message


def broken_tokenizers():
    """Whole files, but one has tokens of impossible numbers, and one makes no tokens.

    With the third, the library panics, which is no exception of Python's.
    """
    vocabulary = {token: row for row, token in enumerate(text_model.VOCABULARY)}
    found = tokenizers.BertWordPieceTokenizer(vocabulary)
    content = json.loads(found.to_str())
    content["model"]["vocab"]["[UNK]"] = 2**32 - 1
    yield json.dumps(content)
    content = json.loads(found.to_str())
    content["post_processor"], content["normalizer"] = None, {"type": "Replace"}
    content["normalizer"] |= {"pattern": {"Regex": "."}, "content": ""}
    yield json.dumps(content)
    content = json.loads(found.to_str())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
        "special_tokens": {},
    }
    yield json.dumps(content)
