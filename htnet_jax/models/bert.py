"""BERT's encoder (Devlin et al., NAACL 2019), and its weights as Hugging Face keeps them.

A folder holds `config.json` and `model.safetensors` or `pytorch_model.bin`, with the names of
`transformers.BertModel`. The network is not trained here: sentences are embedded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from htnet_jax import foreign, tensors
from htnet_jax.errors import UserError
from htnet_jax.models.layers import Attention, Dense, LayerNorm, check_ranges, vit_normal
from htnet_jax.models.xla_cpu import gelu
from htnet_jax.ranges import Range

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_REMEDY = "Give the folder of a BERT such as bert-base-uncased, copied whole."

# Axes of a kernel from here to there.
_TURNED = "i o -> o i"
# A message names this many entries.
_SHOWN = 8

# Attribute of `Bert` -> its key in config.json.
_KEYS = {
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "types": "type_vocab_size",
    "eps": "layer_norm_eps",
}
# What other values of these keys would be another network; the first is BertConfig's default.
_FIXED = {
    "model_type": ("bert",),
    "hidden_act": ("gelu", "gelu_python"),  # both are the exact one
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
}


def _dense(flax: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{flax}/kernel", f"{theirs}.weight", _TURNED),
        (f"{flax}/bias", f"{theirs}.bias", "o -> o"),
    )


def _norm(flax: str, theirs: str) -> tuple[tuple[str, str, str], ...]:
    return (
        (f"{flax}/scale", f"{theirs}.weight", "c -> c"),
        (f"{flax}/bias", f"{theirs}.bias", "c -> c"),
    )


_THEIRS = "encoder.layer.{i}"
# (parameter, name in BertModel's state_dict, axes from here to there); `{i}` is a layer's number.
TABLE = (
    *(
        (f"{kind}_embeddings", f"embeddings.{theirs}_embeddings.weight", "n c -> n c")
        for kind, theirs in (
            ("word", "word"),
            ("position", "position"),
            ("type", "token_type"),
        )
    ),
    *_norm("embedding_norm", "embeddings.LayerNorm"),
    *_dense("layer_{i}/attention/query", f"{_THEIRS}.attention.self.query"),
    *_dense("layer_{i}/attention/key", f"{_THEIRS}.attention.self.key"),
    *_dense("layer_{i}/attention/value", f"{_THEIRS}.attention.self.value"),
    *_dense("layer_{i}/attention/out", f"{_THEIRS}.attention.output.dense"),
    *_norm("layer_{i}/attention_norm", f"{_THEIRS}.attention.output.LayerNorm"),
    *_dense("layer_{i}/intermediate", f"{_THEIRS}.intermediate.dense"),
    *_dense("layer_{i}/output", f"{_THEIRS}.output.dense"),
    *_norm("layer_{i}/output_norm", f"{_THEIRS}.output.LayerNorm"),
)
# Old files call the gain and bias of a LayerNorm so.
_OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Entries that are no weights of the encoder: buffers that count 0, 1, ...
_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


class BertLayer(nn.Module):
    """A post-norm transformer block: `x = LN(x + Attention(x))`, then `x = LN(x + MLP(x))`.

    Attributes:
        heads: Of the attention.
        hidden: Width between the two layers of the MLP.
        eps: Of both LNs.
        dtype: Type of the computation.
    """

    heads: int
    hidden: int
    eps: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """Maps `(B, T, C)`, with the mask `(B, T)` of real tokens, to the same shape."""
        shared = {
            "dtype": self.dtype,
            "kernel_init": vit_normal,
            "bias_init": nn.initializers.zeros,
        }
        attention = Attention(self.heads, packed=False, **shared, name="attention")
        x = x + attention(x, mask, train=False)
        x = LayerNorm(self.dtype, self.eps, name="attention_norm")(x)
        branch = gelu(Dense(self.hidden, **shared, name="intermediate")(x))
        x = x + Dense(x.shape[-1], **shared, name="output")(branch)
        return LayerNorm(self.dtype, self.eps, name="output_norm")(x)


class Bert(nn.Module):
    """BERT's encoder; the defaults are bert-base-uncased: 108,891,648 parameters.

    Word, position and type embeddings (all tokens are of type 0), LN, then the layers. It has no
    dropout and no pooler. Kernels and embeddings start as N(0, 0.02), biases as 0.

    Attributes:
        layers: Number of layers.
        width: Channels of a token.
        heads: Of each layer's attention; they divide the width.
        hidden: Width inside each layer's MLP.
        vocabulary: Number of tokens that it knows.
        positions: Tokens that a sequence may have.
        types: Rows of the type embeddings, of which the first is used.
        eps: Of all LNs.
        dtype: Type of the computation.
    """

    SIZES: ClassVar[Mapping[str, Range]] = {
        "layers": Range(1, 1000),
        "width": Range(1, 2**20),
        "heads": Range(1, 2**20),
        "hidden": Range(1, 2**20),
        "vocabulary": Range(1, 2**24),
        "positions": Range(1, 2**24),
        "types": Range(1, 2**20),
        "eps": Range(0.0, 1.0),
    }

    layers: int = 12
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    eps: float = 1e-12
    dtype: Any = jnp.float32

    def check_sizes(self) -> None:
        """Raises a ValueError that names the attributes that are impossible."""
        check_ranges(self, self.SIZES)
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide width={self.width}")

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The last hidden state.

        Args:
            tokens: `(B, T)` int32, numbers of the vocabulary.
            mask: `(B, T)` int32: 1 for a token, 0 for padding, which no token attends to.

        Returns:
            `(B, T, width)`; at padding it means nothing.

        Raises:
            ValueError: Impossible attributes, shapes that differ, or more than `positions` tokens.
        """
        self.check_sizes()
        if tokens.ndim != 2 or tokens.shape != mask.shape or tokens.shape[1] > self.positions:
            raise ValueError(
                f"tokens {tokens.shape} and mask {mask.shape} must both be (B, T), with T at most "
                f"positions={self.positions}"
            )
        word, position, kind = (
            self.param(f"{name}_embeddings", vit_normal, (rows, self.width))
            for name, rows in (
                ("word", self.vocabulary),
                ("position", self.positions),
                ("type", self.types),
            )
        )
        x = word[tokens] + position[: tokens.shape[1]][None] + kind[0][None, None]
        x = LayerNorm(self.dtype, self.eps, name="embedding_norm")(x)
        for i in range(self.layers):
            name = f"layer_{i}"
            x = BertLayer(self.heads, self.hidden, self.eps, self.dtype, name=name)(x, mask)
        return x


def load(folder: str | Path) -> tuple[Bert, dict[str, Any]]:
    """A BERT from a folder of Hugging Face's form.

    Names may begin with `bert.`, and LNs may have the old names `gamma` and `beta`. The pooler and
    the heads of other tasks are not read.

    Args:
        folder: With `config.json`, and `model.safetensors` or `pytorch_model.bin`, of which nothing
            but tensors is unpickled.

    Returns:
        The module, and its variables `{"params": ...}` as NumPy arrays, float32.

    Raises:
        UserError: As `read_config` and `weights_of`; entries that are missing, of another shape, or
            not finite; entries of an encoder that is another one.
    """
    module = read_config(folder)
    path = weights_of(folder)
    found = {}
    for name, array in tensors.read_arrays(path, "file of BERT's weights").items():
        short = name.removeprefix("bert.")
        for old, new in _OLD.items():
            short = short.replace(old, new)
        if short.startswith(("embeddings.", "encoder.")) and short not in _BUFFERS:
            found[short] = array
    wrong, params = [], {}
    for flax, theirs, axes, shape in _entries(module):
        array = found.pop(theirs, None)
        if array is None:
            wrong.append(f"{theirs} is missing")
            continue
        params[flax] = array.T if axes == _TURNED else array
        if params[flax].shape != shape:
            wrong.append(f"{theirs} has shape {array.shape}")
        elif not np.isfinite(array).all():
            wrong.append(f"{theirs} has values that are NaN or infinite")
    wrong += [f"{name} belongs to no layer" for name in found]
    if wrong:
        more = f", and {len(wrong) - _SHOWN} more such entries" if len(wrong) > _SHOWN else ""
        raise UserError(
            f"{path}: not the weights that {CONFIG} beside it describes: "
            f"{', '.join(wrong[:_SHOWN])}{more}. {_REMEDY}"
        )
    return module, {"params": traverse_util.unflatten_dict(params, sep="/")}


def read_config(folder: str | Path) -> Bert:
    """The network that `config.json` of a folder describes; keys that it lacks are BERT-base's.

    Raises:
        UserError: The folder or the file is missing or damaged, or describes another network.
    """
    path = _checked(folder) / CONFIG

    def check(content: Any) -> None:
        if not isinstance(content, dict):
            raise ValueError("not an object of keys and values")

    content = foreign.read_json(path, "config of a BERT", _REMEDY, check)
    for key, known in _FIXED.items():
        if content.get(key, known[0]) not in known:
            raise UserError(
                f"{path}: {key} is {content[key]!r}, but this BERT has {known[0]!r}. {_REMEDY}"
            )
    module = Bert(**{name: content[key] for name, key in _KEYS.items() if key in content})
    with foreign.reading(path, "config of a BERT", _REMEDY):
        module.check_sizes()
    return module


def weights_of(folder: str | Path) -> Path:
    """The file of a folder's weights, of `WEIGHTS` the first that is there.

    Raises:
        UserError: There is none.
    """
    folder = _checked(folder)
    for name in WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: has no {' or '.join(WEIGHTS)}. {_REMEDY}")


def _checked(folder: str | Path) -> Path:
    folder = foreign.expanded(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder. {_REMEDY}")
    return folder


def _entries(module: Bert) -> Iterator[tuple[str, str, str, tuple[int, ...]]]:
    """`TABLE` of all layers, each line with the parameter's shape."""
    # Of one layer: all have the same shapes.
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    shapes = jax.eval_shape(module.clone(layers=1).init, jax.random.key(0), tokens, tokens)
    one = traverse_util.flatten_dict(shapes["params"], sep="/")
    for flax, theirs, axes in TABLE:
        for i in range(module.layers if "{i}" in flax else 1):
            yield flax.format(i=i), theirs.format(i=i), axes, one[flax.format(i=0)].shape
