"""A pre-norm transformer block in NumPy and float64, one token at a time; `p` are parameters."""

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[float])


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def dense(p, x):
    return x @ p["kernel"].astype(float) + p["bias"]


def attention(p, x, heads):
    """`x` is (tokens, width): one block."""
    tokens, width = x.shape
    head_width = width // heads
    inner = heads * head_width
    projected = x @ p["qkv"].astype(float)
    out = np.zeros((tokens, inner))
    for head in range(heads):
        first = head * head_width
        q, k, v = (
            projected[:, part * inner + first : part * inner + first + head_width]
            for part in range(3)
        )
        for token in range(tokens):
            weights = np.exp([q[token] @ other / math.sqrt(head_width) for other in k])
            out[token, first : first + head_width] = weights / weights.sum() @ v
    return dense(p["out"], out)


def mlp(p, x):
    hidden = dense(p["fc1"], x)
    return dense(p["fc2"], hidden * 0.5 * (1 + erf(hidden / math.sqrt(2))))


def block(p, x, heads):
    x = x + attention(p["attention"], layer_norm(p["attention_norm"], x), heads)
    return x + mlp(p["mlp"], layer_norm(p["mlp_norm"], x))
