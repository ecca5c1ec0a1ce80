"""Synthetic micro-expressions: clips rendered from a seed, with known true flow and landmarks."""

from htnet_jax.datasets.synthetic.synthetic_dataset_builder import Synthetic, SyntheticConfig

__all__ = ["Synthetic", "SyntheticConfig"]
