"""Variations of frames against plain NumPy, and what their draws depend on."""

import functools
import itertools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes.recording import log_gradients
from flax import linen as nn

from htnet_jax.features import Feed, augment
from htnet_jax.features.augment import Geometry, Move
from htnet_jax.learn.step import Learner
from htnet_jax.training.folds import Fold, FoldTrainer

SIDE = 9
# (flipped, degrees, down, right)
MOVES = [
    (False, 0.0, 0, 0),
    (True, 0.0, 0, 0),
    (False, 0.0, 2, -3),
    (True, 0.0, -1, 2),
    (False, 90.0, 0, 0),
    (False, -20.0, 0, 0),
    (True, 20.0, 0, 0),
    (False, 33.0, 1, -2),
    (True, -33.0, -4, 3),
    (True, 4.0, 4, 4),
    (False, 0.0, SIDE, 0),
]
GEOMETRY = Geometry(flip=0.25, rotation=4.0, shift=3)


draw_moves = jax.jit(augment.draw_moves, static_argnums=1)


@functools.cache
def keys():
    return jax.random.split(jax.random.key(0), 3000)


def images(count, seed=0, side=SIDE):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def by_numpy(frame, flipped, angle, down, right):
    """One after another: mirrored, turned about the centre, moved; `(moved, sure)`.

    Where `sure` is False the nearest pixel is a tie up to the rounding of float32.
    """
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    frame = (frame / 255.0 - mean) / std
    if flipped:
        frame = frame[:, ::-1]
    side = len(frame)
    turned, sure = np.zeros_like(frame), np.ones((side, side), bool)
    for row, column in itertools.product(range(side), repeat=2):
        # With y downwards a factor of exp(ia) turns clockwise; this is the way back.
        place = complex(column - (side - 1) / 2, row - (side - 1) / 2)
        place *= np.exp(-1j * np.radians(angle))
        from_row, from_column = place.imag + (side - 1) / 2, place.real + (side - 1) / 2
        nearest = [int(np.floor(value + 0.5)) for value in (from_row, from_column)]
        ties = [abs(value % 1 - 0.5) for value in (from_row, from_column)]
        sure[row, column] = min(ties) > 1e-4
        if all(0 <= value < side for value in nearest):
            turned[row, column] = frame[nearest[0], nearest[1]]
    moved, still_sure = np.zeros_like(frame), np.ones_like(sure)
    for row, column in itertools.product(range(side), repeat=2):
        if 0 <= row - down < side and 0 <= column - right < side:
            moved[row, column] = turned[row - down, column - right]
            still_sure[row, column] = sure[row - down, column - right]
    return moved, still_sure


def test_moves_equal_plain_numpy():
    flipped, angle, down, right = (np.array(values) for values in zip(*MOVES, strict=True))
    move = Move(flipped, np.float32(angle), down.astype(np.int32), right.astype(np.int32))
    pixels = images(20)
    rows = np.arange(len(MOVES), dtype=np.int32) + 5
    where = augment.sources(move, SIDE)
    found = augment.moved_images(jnp.asarray(pixels), rows, where)
    assert found.shape == (len(MOVES), SIDE, SIDE, 3)
    assert found.dtype == np.float32
    for clip, move in enumerate(MOVES):
        expected, sure = by_numpy(pixels[rows[clip]], *move)
        assert sure.mean() > 0.95
        np.testing.assert_allclose(found[clip][sure], expected[sure], atol=1e-5, err_msg=f"{move}")
    # Moved out of sight altogether: zeros, the mean colour.
    assert not found[-1].any()


def test_positive_angles_turn_clockwise():
    """A bright pixel right of the centre comes to lie below it."""
    pixels = np.zeros((1, SIDE, SIDE, 3), np.uint8)
    pixels[0, 4, 7] = 255
    move = Move(*(np.array([value]) for value in (False, np.float32(90), 0, 0)))
    found = augment.moved_images(pixels, np.array([0]), augment.sources(move, SIDE))
    assert np.argwhere(found[0, ..., 0] == found[0, ..., 0].max()).tolist() == [[7, 4]]


def test_a_field_turns_with_its_vectors():
    """A quarter turn clockwise: the vector right of the centre comes below, and points down."""
    field = np.zeros((1, SIDE, SIDE, 3), np.float32)
    field[0, 4, 7] = (1.0, 0.25, 9.0)  # u, v, strain
    move = Move(*(np.array([value]) for value in (False, np.float32(90), 0, 0)))
    where = augment.sources(move, SIDE)
    found = np.array(augment.moved_fields(field, np.array([0]), where, move, (0, 1)))
    np.testing.assert_allclose(found[0, 7, 4], (-0.25, 1.0, 9.0), atol=1e-6)
    found[0, 7, 4] = 0
    assert not found.any()


@pytest.mark.parametrize("move", MOVES)
def test_a_moved_flow_is_the_flow_of_the_moved_face(move):
    """A linear motion field v = A (x - centre) turns as R A R^-1, and is mirrored as M A M."""
    flipped, angle, down, right = move
    matrix = np.array([[0.3, -0.2], [0.5, 0.1]])
    row, column = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
    field = np.stack([column, row], axis=-1) @ matrix.T
    drawn = Move(*(np.array([value]) for value in (flipped, np.float32(angle), down, right)))
    where = augment.sources(drawn, SIDE)
    found = augment.moved_fields(np.float32(field[None]), np.array([0]), where, drawn, (0, 1))[0]
    turn = np.radians(angle)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    change = rotation @ np.diag([-1.0 if flipped else 1.0, 1.0])
    moved = change @ matrix @ np.linalg.inv(change)
    expected = np.stack([column - right, row - down], axis=-1) @ moved.T
    inside = np.asarray(where[2][0])
    # The nearest pixel is up to half a diagonal away.
    nearest = np.abs(matrix).sum() * 0.75
    assert np.abs(np.where(inside[..., None], found - expected, 0)).max() < nearest
    assert not found[~inside].any()


def test_smaller_images_are_shifted_by_as_much_of_the_face():
    move = Move(*(np.array([value]) for value in (False, np.float32(0), 4, -2)))
    images = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1).repeat(3, axis=-1)
    found = augment.gathered(images, np.array([0]), augment.sources(move, 4, scale=0.5))
    # By 2 down and 1 to the left.
    np.testing.assert_array_equal(found[0, 2:, :3, 0], images[0, :2, 1:, 0])


def test_clips_of_several_images_are_moved_alike():
    move = draw_moves(keys()[:2], Geometry(flip=0.5, rotation=20.0, shift=2))
    where, bank = augment.sources(move, SIDE), images(6)
    rows = np.array([[0, 3, 1], [5, 2, 4]])
    found = augment.moved_images(bank, rows, where)
    assert found.shape == (2, 3, SIDE, SIDE, 3)
    for place in range(3):
        alone = augment.moved_images(bank, rows[:, place], where)
        np.testing.assert_array_equal(found[:, place], alone)


def test_draws_lie_within_bounds_on_both_sides():
    move = draw_moves(keys(), GEOMETRY)
    # Three standard deviations are 0.024.
    assert abs(np.mean(move.flipped) - 0.25) < 0.024
    assert 3.9 < np.max(move.angle) <= 4
    assert -4 <= np.min(move.angle) < -3.9
    assert abs(np.mean(move.angle)) < 0.15
    for shift in (move.down, move.right):
        values, counts = np.unique(shift, return_counts=True)
        assert values.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        assert counts.min() > 3000 / 7 * 0.8
    # Drawn apart from each other.
    drawn = np.array([move.flipped, move.angle, move.down, move.right], float)
    correlations = np.corrcoef(drawn) - np.eye(4)
    assert np.abs(correlations).max() < 0.06


def test_what_is_not_asked_for_is_not_moved():
    move = draw_moves(keys(), Geometry(flip=1.0))
    assert np.all(move.flipped)
    assert not np.any(move.angle)
    assert not np.any(move.down)
    assert not np.any(move.right)
    assert not Geometry()
    assert all([Geometry(flip=0.1), Geometry(rotation=1.0), Geometry(shift=1)])


def test_normalise_with_imagenets_constants():
    """(value / 255 - mean) / std of each channel, as torchvision's documentation gives them."""
    found = augment.normalise(jnp.array([[0, 0, 0], [255, 255, 255], [100, 150, 200]], "u1"))
    expected = [
        [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225],
        [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225],
        [(100 / 255 - 0.485) / 0.229, (150 / 255 - 0.456) / 0.224, (200 / 255 - 0.406) / 0.225],
    ]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_jitter_draws_all_frames_of_a_clip_and_no_others():
    first = np.repeat(np.array([0, 7, 20], np.int32), 1000)
    count = np.repeat(np.array([1, 4, 10], np.int32), 1000)
    found = np.asarray(augment.jittered(keys(), first, count)).reshape(3, 1000)
    for drawn, start, length in zip(found, (0, 7, 20), (1, 4, 10), strict=True):
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == [*range(start, start + length)]
        assert counts.min() > 0.6 * 1000 / length


# --- on what the draws depend ---------------------------------------------------------------------


CLIPS = np.arange(8, dtype=np.int32)


def frames_feed():
    """Five onset and five apex frames a clip, with jitter of both."""
    starts = 10 * CLIPS
    five = np.full(len(CLIPS), 5, np.int32)
    arrays = {"frames": images(10 * len(CLIPS))}
    arrays |= {"onset/exact": starts, "onset/first": starts, "onset/count": five}
    arrays |= {"apex/exact": starts + 7, "apex/first": starts + 5, "apex/count": five}
    banks = {"onset": "frames", "apex": "frames"}
    return Feed(("onset", "apex"), arrays, GEOMETRY, banks=banks)


FEED = frames_feed()


@jax.jit
def varied_by(arrays, rows, seed):
    return FEED.varied(arrays, rows, jax.random.key(seed))[0]


def varied(rows=CLIPS, seed=1, **changes):
    return [np.asarray(x) for x in varied_by(FEED.arrays | changes, np.array(rows, "i4"), seed)]


def test_a_clip_varies_alike_in_any_batch_and_place():
    rows = [4, 1, 3, 1, 0, 5, 5, 4]
    for part, frames in zip(varied(rows), varied(), strict=True):
        np.testing.assert_array_equal(part, frames[rows])


def test_another_epoch_varies_otherwise():
    for one, other in zip(varied(seed=1), varied(seed=2), strict=True):
        assert all(not np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_both_frames_of_a_clip_are_moved_alike():
    """All frames of a clip look the same here, so that only the move shows."""
    alike = np.repeat(images(len(CLIPS)), 10, axis=0)
    onset, apex = varied(frames=alike)
    np.testing.assert_array_equal(onset, apex)
    exact = augment.normalise(jnp.asarray(alike[::10]))
    assert all(not np.array_equal(a, b) for a, b in zip(onset, exact, strict=True))


def test_onset_and_apex_are_drawn_apart():
    """From the same five frames; the shade in the middle says which it was."""
    shades = np.empty_like(FEED.arrays["frames"])
    shades[:] = np.arange(len(shades))[:, None, None, None]
    same = {f"apex/{key}": FEED.arrays[f"onset/{key}"] for key in ("exact", "first", "count")}
    drawn = np.array([varied(seed=seed, frames=shades, **same) for seed in range(5)])
    middle = drawn[:, :, :, SIDE // 2, SIDE // 2, 0]
    assert 0.05 < np.mean(middle[:, 0] == middle[:, 1]) < 0.5


class Seen(nn.Module):
    """The gradient of a clip's row is as long as its apex frame is bright."""

    clips: int
    steps: int

    @nn.compact
    def __call__(self, clip, apex, *, train):
        kernel = self.param("kernel", nn.initializers.zeros, (self.clips, 3))
        self.param("log", nn.initializers.zeros, (self.steps, self.clips))
        brightness = apex[:, 0, 0, :1] * augment.IMAGENET_STD[0]
        return clip @ kernel * (brightness + augment.IMAGENET_MEAN[0])


@pytest.mark.slow
def test_draws_come_from_seed_fold_epoch_and_clip_alone():
    """Trained in new batches every epoch, on the frames that the documented keys choose."""
    clips, count, epochs, batch = 12, 50, 3, 5
    shades = np.broadcast_to(
        (np.arange(clips * count) % count)[:, None, None, None] + 1, (600, 1, 1, 3)
    )
    first = (count * np.arange(clips)).astype(np.int32)
    arrays = {"flow": np.eye(clips, dtype=np.float32), "frames": shades.astype(np.uint8)}
    arrays |= {"apex/exact": first, "apex/first": first, "apex/count": np.full(clips, count, "i4")}
    test = np.arange(clips) == 0
    folds = [
        Fold("a", ~test, test),
        Fold("b", ~test, test),
        Fold("a again", ~test, test, repetition=1, stream="a"),
    ]
    trainer = FoldTrainer(
        Learner(Seen(clips, steps=epochs * 3), log_gradients()),
        Feed(("flow", "apex"), arrays, banks={"apex": "frames"}),
        np.zeros(clips, np.int32),
        folds,
        batch_size=batch,
        seed=3,
        shuffle=True,
        devices=jax.local_devices()[:3],
    )
    found = []
    for result in trainer.train(trainer.rounds()[0], epochs):
        # The gradient of the mean over a batch, at a uniform softmax.
        log = result.variables["params"]["log"].reshape(epochs, 3, clips)
        sizes = (log > 0).sum(axis=2, keepdims=True)
        assert sizes[..., 0].tolist() == [[5, 5, 1]] * epochs
        length = np.sqrt(1 / 9 + 1 / 9 + 4 / 9)
        found.append(np.rint((log * sizes).sum(axis=1) / length * 255))
    found = np.array(found)
    assert not found[..., 0].any()

    @jax.jit
    def expected(seed, stream, epoch, clip):
        key = jax.random.fold_in(jax.random.key(seed), stream)
        for number in (3, epoch, clip):  # 3: for the variation of inputs
            key = jax.random.fold_in(key, number)
        return jax.random.randint(jax.random.split(key, 3)[1], (), 0, count) + 1

    for numbers, (seed, name) in zip(found, [(3, "a"), (3, "b"), (4, "a")], strict=True):
        stream = np.uint32(zlib.crc32(name.encode()))
        for epoch, clip in itertools.product(range(epochs), range(1, clips)):
            assert numbers[epoch, clip] == expected(seed, stream, epoch, clip), (name, epoch, clip)
    for one, other in itertools.combinations(found[..., 1:].reshape(9, clips - 1), 2):
        assert np.mean(one == other) < 0.3
