"""A small BERT of random weights, as Hugging Face would keep it."""

import json
import pathlib

import numpy as np
import safetensors.numpy

CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "vocab_size": 40,
    "max_position_embeddings": 48,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "position_embedding_type": "absolute",
}
VOCABULARY = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "##1", "##2", "##4", "##7"),
    *("the", "facial", "action", "units", "unit", "are", "is", "no", "active", "au"),
    *("inner", "outer", "brow", "lid", "raise", "##r", "lower", "##er", "tighten"),
)


def weights(seed=0):
    """Every entry of a `BertModel`, by name."""
    width, hidden, rng = (
        CONFIG["hidden_size"],
        CONFIG["intermediate_size"],
        np.random.default_rng(seed),
    )
    shapes = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], width),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (CONFIG["type_vocab_size"], width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    linear = {
        "attention.self.query": (width, width),
        "attention.self.key": (width, width),
        "attention.self.value": (width, width),
        "attention.output.dense": (width, width),
        "intermediate.dense": (hidden, width),
        "output.dense": (width, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder, *, seed=0, config=(), entries=None):
    """Writes `config.json`, `model.safetensors` and `vocab.txt`, and returns the folder."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | dict(config)))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    entries = weights(seed) if entries is None else entries
    (folder / "model.safetensors").write_bytes(safetensors.numpy.save(entries))
    return folder
