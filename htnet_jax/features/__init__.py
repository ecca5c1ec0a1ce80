"""What a network can be fed, and how it is varied in training."""

from htnet_jax.features.features import FEATURES, Feature, Feed, check_names, make_feed

__all__ = ["FEATURES", "Feature", "Feed", "check_names", "make_feed"]
