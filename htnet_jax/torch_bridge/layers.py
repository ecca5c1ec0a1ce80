"""Layers that several networks share on the PyTorch side."""

from __future__ import annotations

import torch
from torch import nn


class DropPath(nn.Module):
    """Leaves out a residual branch, for each clip on its own; the others are scaled up to the mean.

    Attributes:
        rate: Probability that a clip loses the branch in training.
        kept: `(B,)` bool, which clips keep it in the next calls; None: they are drawn.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.kept: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps `(B, ...)` to the same shape."""
        if not self.training or not self.rate:
            return x
        keep = 1 - self.rate
        kept = torch.rand(len(x), device=x.device) < keep if self.kept is None else self.kept
        return x * (kept.to(x.dtype) / keep).reshape(-1, *(1,) * (x.ndim - 1))


class Attention(nn.Module):
    """Multi-head self-attention; a network adds the two projections under its own names.

    The first of them, which must be the module's first parameter, gives q, k, v, packed in this
    order, each ordered (head, channel).

    Attributes:
        heads: Number of heads.
        dropout: Acts on the attention weights.
        attended: Hands on the heads' joined output, for the parity check.
    """

    def __init__(self, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = nn.Dropout(dropout)
        self.attended = nn.Identity()

    def attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """Maps `(B, tokens, 3 * inner)` to `(B, tokens, inner)`."""
        batch, tokens, _ = qkv.shape
        query, key, value = qkv.reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        # Not PyTorch's fused attention: there the gradients of a single token's q and k, which are
        # zero, come out as rounding, and Adam takes whole steps along them.
        out = self.dropout(scores.softmax(-1)) @ value
        return self.attended(out.transpose(1, 2).reshape(batch, tokens, -1))
