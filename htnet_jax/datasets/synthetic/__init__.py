"""Synthetic micro-expressions: clips rendered from a seed, with known true flow and landmarks."""

from htnet_jax.datasets.synthetic.builder import Synthetic, SyntheticConfig

__all__ = ["Synthetic", "SyntheticConfig"]
