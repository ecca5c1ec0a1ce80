"""Drop path in PyTorch, which can also be told which clips keep their branch."""

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
