import numpy as np
import pytest

from htnet_jax.evaluation.predictions import Predictions


def one_hot_logits(predicted, num_classes=3):
    """(E, M) predicted classes -> (E, M, C) logits, 1 for the predicted class and 0 elsewhere."""
    return np.eye(num_classes, dtype=np.float32)[np.asarray(predicted)]


@pytest.fixture
def make_run():
    """A run of 2 folds, 3 epochs, 6 clips in two sources; every field can be replaced.

    Fold "a" (clips 0-2, truth 0 1 2): epoch 10 has 1 correct, epochs 20 and 30 have 2.
    Fold "b" (clips 3-5, truth 0 1 2): epoch 10 has 3 correct, epochs 20 and 30 have 1.
    """

    def make(**changes):
        fields = {
            "logits": one_hot_logits([[0, 0, 0, 0, 1, 2], [0, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0]]),
            "epochs": [10, 20, 30],
            "fold": [0, 0, 0, 1, 1, 1],
            "folds": ["a", "b"],
            "clips": ["a1", "a2", "a3", "b1", "b2", "b3"],
            "subjects": ["a", "a", "a", "b", "b", "b"],
            "sources": ["smic", "smic", "smic", "samm", "samm", "samm"],
            "labels": [0, 1, 2, 0, 1, 2],
            "class_names": ["negative", "positive", "surprise"],
            "train_loss": np.array([[1.0, 0.5, 0.25], [1.2, 0.6, 0.3]], np.float32),
        }
        return Predictions(**(fields | changes))

    return make
