"""Small clips in which a class shows as motion at a place of its own."""

import numpy as np
import pytest

SIZE = 8


@pytest.fixture(scope="session")
def make_clips():
    """`(count, S, S, 3)` float32 and labels; class c moves along channel c in row 2c + 1."""

    def make(count, seed, classes=(0, 1, 2)):
        rng = np.random.default_rng(seed)
        labels = np.resize(classes, count).astype(np.int32)
        inputs = rng.normal(size=(count, SIZE, SIZE, 3))
        for clip, label in zip(inputs, labels, strict=True):
            clip[2 * label + 1, :, label] += 4
        return inputs.astype(np.float32), labels

    return make
