"""BERT's names on both sides; its PyTorch twin is `transformers.BertModel` itself.

    state_dict = convert.to_state_dict(variables, TABLE)
    model = transformers.BertModel(config, add_pooling_layer=False)
    model.load_state_dict(state_dict)

It is no entry of `BRIDGES`: it is not trained here, and its inputs are no images.
"""

from __future__ import annotations

from htnet_jax.models import bert
from htnet_jax.torch_bridge.convert import Rule

TABLE = tuple(Rule(f"params/{flax}", theirs, axes) for flax, theirs, axes in bert.TABLE)

_THEIRS = "encoder.layer.{i}"
# As `Bridge.layers`.
LAYERS = (
    ("embedding_norm", "embeddings.LayerNorm"),
    *(
        (f"layer_{{i}}/attention/{name}", f"{_THEIRS}.attention.self.{name}")
        for name in ("query", "key", "value")
    ),
    ("layer_{i}/attention/attended", f"{_THEIRS}.attention.self"),
    ("layer_{i}/attention", f"{_THEIRS}.attention.output.dense"),
    ("layer_{i}/attention_norm", f"{_THEIRS}.attention.output.LayerNorm"),
    ("layer_{i}/intermediate", f"{_THEIRS}.intermediate.dense"),
    ("layer_{i}/output", f"{_THEIRS}.output.dense"),
    ("layer_{i}/output_norm", f"{_THEIRS}.output.LayerNorm"),
)
