"""The losses of `htnet_jax.learn.losses` in PyTorch, for the parity check."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

# Name -> `fn(logits, out, labels, privileged, **options) -> ()`: the mean over a batch without
# padding. The options are those of the Flax side.
Loss = Callable[..., torch.Tensor]


def cross_entropy(
    logits: torch.Tensor,
    out: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    privileged: Mapping[str, torch.Tensor],
    *,
    label_smoothing: float = 0.0,
    class_weights: str = "none",
) -> torch.Tensor:
    """PyTorch's own; in a parity check all classes weigh 1, also where they are balanced."""
    del out, privileged, class_weights
    return torch.nn.functional.cross_entropy(logits, labels, label_smoothing=label_smoothing)


def attribute_contrastive(
    logits: torch.Tensor,
    out: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    privileged: Mapping[str, torch.Tensor],
    *,
    temperature: float = 0.07,
) -> torch.Tensor:
    """The symmetric contrastive loss between clips and the sentences of their units.

    Clips whose `au_set` is -1 take no part; without any other clip the loss is 0.
    """
    del logits, labels
    sets = privileged["au_set"]
    taking_part = sets >= 0
    sets = sets[taking_part]
    if not len(sets):
        return (out["visual"] * 0).sum()
    similarity = out["visual"][taking_part] @ out["text"][taking_part].T / temperature
    same = (sets[:, None] == sets).to(similarity.dtype)
    both = [
        torch.nn.functional.cross_entropy(scores, same / same.sum(1, keepdim=True))
        for scores in (similarity, similarity.T)
    ]
    return (both[0] + both[1]) / 2


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "attribute_contrastive": attribute_contrastive,
}
