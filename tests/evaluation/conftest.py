import numpy as np
import pytest

from htnet_jax.evaluation.predictions import Described, InnerPredictions, Predictions


def one_hot_logits(predicted, num_classes=3):
    """(...) predicted classes -> (..., C) logits, 1 for the predicted class and 0 elsewhere."""
    return np.eye(num_classes, dtype=np.float32)[np.asarray(predicted)]


@pytest.fixture
def make_run():
    """A run of 1 seed, 2 folds, 3 epochs, 6 clips in two sources; every field can be replaced.

    Fold "a" (clips 0-2, truth 0 1 2): epoch 10 has 1 correct, epochs 20 and 30 have 2.
    Fold "b" (clips 3-5, truth 0 1 2): epoch 10 has 3 correct, epochs 20 and 30 have 1.
    """

    def make(**changes):
        fields = {
            "logits": one_hot_logits(
                [[[0, 0, 0, 0, 1, 2], [0, 1, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0]]]
            ),
            "seeds": [7],
            "epochs": [10, 20, 30],
            "fold": [0, 0, 0, 1, 1, 1],
            "folds": ["a", "b"],
            "clips": ["a1", "a2", "a3", "b1", "b2", "b3"],
            "subjects": ["a", "a", "a", "b", "b", "b"],
            "sources": ["smic", "smic", "smic", "samm", "samm", "samm"],
            "labels": [0, 1, 2, 0, 1, 2],
            "class_names": ["negative", "positive", "surprise"],
            "train_loss": np.array([[[1.0, 0.5, 0.25], [1.2, 0.6, 0.3]]], np.float32),
            "protocol": "loso",
            "protocol_folds": ["a", "b"],
            "dataset": "megc2019/release/1.0.0",
            "fingerprint": "f" * 64,
        }
        return Predictions(**(fields | changes))

    return make


@pytest.fixture
def make_inner():
    """One inner fold for each fold of `make_run`: fold "a" validates on b's clips, "b" on a's.

    Validation, truth 0 1 2 in both folds: fold "a" has 1, 3, 3 correct at epochs 10, 20, 30; fold
    "b" has 3, 3, 1. The inner models call every test clip 1 at epoch 10, 2 at 20 and 0 at 30.
    """

    def make(**changes):
        fields = {
            "logits": one_hot_logits(
                [[[0, 0, 0, 0, 1, 2], [0, 1, 2, 0, 1, 2], [0, 1, 2, 0, 0, 0]]]
            ),
            "test_logits": one_hot_logits([[[[1] * 6, [2] * 6, [0] * 6]]]),
            "fold": [0, 0, 0, 1, 1, 1],
            "part": [0] * 6,
            "clips": ["b1", "b2", "b3", "a1", "a2", "a3"],
            "subjects": ["b", "b", "b", "a", "a", "a"],
            "sources": ["samm", "samm", "samm", "smic", "smic", "smic"],
            "labels": [0, 1, 2, 0, 1, 2],
            "refit": np.bool_(True),
        }
        return InnerPredictions(**(fields | changes))

    return make


@pytest.fixture
def make_wide():
    """A run of random logits: `number` subjects (half smic, half samm) with four clips each."""

    def make(*, number=6, seeds=1, epochs=3, skill=1.0, key=0, **changes):
        random = np.random.default_rng(key)
        names = np.array([f"s{index:02d}" for index in range(number)])
        fold = np.repeat(np.arange(number), 4)
        labels = np.tile([0, 1, 2, 0], number)
        noise = random.normal(size=(seeds, epochs, len(fold), 3))
        fields = {
            "logits": (noise + skill * np.eye(3)[labels]).astype(np.float32),
            "seeds": np.arange(seeds),
            "epochs": np.arange(1, epochs + 1),
            "fold": fold,
            "folds": names,
            "clips": [f"{names[f]}_{index}" for index, f in enumerate(fold)],
            "subjects": names[fold],
            "sources": np.where(fold % 2, "smic", "samm"),
            "labels": labels,
            "class_names": ["negative", "positive", "surprise"],
            "train_loss": np.ones((seeds, number, epochs), np.float32),
            "protocol": "loso",
            "protocol_folds": names,
            "dataset": "megc2019/release/1.0.0",
            "fingerprint": "f" * 64,
        }
        return Predictions(**(fields | changes))

    return make


@pytest.fixture
def make_described():
    """Similarities for `make_run`: of its six clips to the sets 0, 4, 4+7 and 12.

    No training clip of fold "a" has 12, none of fold "b" has 4. Nearest of those that are trained:
    4 (right), 4+7 (right), 4 (12 would be nearest, and is the truth), 4+7 (truth 0, the second),
    0 (truth 4+7, the third), 12 (units not known).
    """

    def make(**changes):
        fields = {
            "similarities": np.array(
                [
                    [
                        [0.0, 0.9, 0.5, 0.1],
                        [0.1, 0.2, 0.8, 0.9],
                        [0.1, 0.8, 0.3, 0.9],
                        [0.5, 0.9, 0.8, 0.0],
                        [0.7, 0.9, 0.1, 0.3],
                        [0.0, 0.0, 0.1, 0.6],
                    ]
                ],
                np.float32,
            ),
            "sets": ["0", "4", "4+7", "12"],
            "sentences": ["None.", "Four.", "Four and seven.", "Twelve."],
            "truth": [1, 2, 3, 0, 2, -1],
            "trained": [[True, True, True, False], [True, False, True, True]],
            "positives": np.array([1.5, 2.5], np.float32),
        }
        return Described(**(fields | changes))

    return make
