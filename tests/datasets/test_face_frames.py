"""Face frames of raw clips: from pictures on disk to what training reads."""

import dataclasses
import hashlib
import json
import pathlib
from unittest import mock

import cv2
import numpy as np
import pytest
from fakes import fourdme, samm

from htnet_jax.datasets import builder, extraction, loading, pool, recipe, survey, tree
from htnet_jax.errors import UserError
from htnet_jax.motion import alignment

PLAIN = "farneback_28+align-none+landmarks-template"
NAME = f"{PLAIN}+frames-neighbours"
TEMPLATE = recipe.parse(NAME)
CSV = recipe.make(flow="farneback", landmarks="csv", frames="neighbours")
INCOMPLETE = builder.Options(workers=1, allow_incomplete=True)
# What there is of a clip with onset 1000, apex 1040 and offset 1100: one more neighbour (1002), two
# before the apex, three after it. 1001 is missing.
NUMBERS = (1000, 1002, 1038, 1039, 1040, 1041, 1042, 1043, 1100)
STORED = NUMBERS[:-1]
# Eyes, nose and mouth corners of a face in a picture of 200 x 160, turned by some degrees.
POINTS = (alignment.CANONICAL - 0.5) @ [[0.98, 0.2], [-0.2, 0.98]] * 90 + (95, 75)


def _clip(folder, picture_of, suffix=".png", numbers=NUMBERS):
    """A clip whose frame `number` is `picture_of(number)`, in OpenCV's order of channels."""
    folder.mkdir(parents=True)
    for number in numbers:
        assert cv2.imwrite(str(folder / f"006_{number:05d}{suffix}"), picture_of(number))
    return survey.RawClip("samm", "006", "006_1_2", "anger", folder, 1000, 1040, 1100)


def _job(clip, chosen=CSV):
    return extraction.Job(clip, chosen, points=POINTS)


def _frames(job):
    inspection = extraction.inspect(job)
    assert inspection.findings == ()
    return extraction.compute(job, inspection).frames


def _dots(shift=0.0):
    """Bright red dots at the points, moved to the right, on a blue picture."""
    picture = np.zeros((160, 200, 3), np.uint8)
    picture[..., 0] = 60
    for x, y in POINTS + np.array([shift, 0]):
        centre = round(x * 16), round(y * 16)
        cv2.circle(picture, centre, 48, (60, 0, 255), -1, cv2.LINE_AA, 4)
    return picture


def _brightest(face, near, reach=12):
    """Centre of the red around a point."""
    column, row = np.rint(near).astype(int)
    part = face[row - reach : row + reach + 1, column - reach : column + reach + 1, 0]
    y, x = np.mgrid[: 2 * reach + 1, : 2 * reach + 1] - reach
    weights = part / part.sum(dtype=float)
    return np.array([column + (weights * x).sum(), row + (weights * y).sum()])


@pytest.mark.parametrize("chosen", [CSV, TEMPLATE])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_red_frame_stays_red(tmp_path, chosen, suffix):
    red = np.full((160, 200, 3), (0, 0, 255), np.uint8)
    stored = _frames(_job(_clip(tmp_path / "clip", lambda _: red, suffix), chosen))
    assert stored.pixels.shape == (len(STORED), 224, 224, 3)
    assert stored.pixels.dtype == np.uint8
    assert np.abs(stored.pixels.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("chosen", [CSV, TEMPLATE])
def test_gray_pictures_have_three_equal_channels(tmp_path, chosen):
    noise = np.random.default_rng(0).integers(0, 256, (160, 200), np.uint8)
    pixels = _frames(_job(_clip(tmp_path / "clip", lambda _: noise), chosen)).pixels
    assert np.ptp(pixels[..., 0]) > 100
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 1])
    np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])


def test_neighbours_that_are_on_disk_are_stored(tmp_path):
    clip = _clip(tmp_path / "clip", lambda n: np.full((160, 200, 3), n % 200, np.uint8))
    stored = _frames(_job(clip))
    assert stored.numbers.tolist() == list(STORED)
    assert stored.onset.tolist() == [0, 0, 2]
    assert stored.apex.tolist() == [2, 4, 8]
    np.testing.assert_array_equal(stored.pixels[:, 112, 112, 0], [n % 200 for n in STORED])
    pair = _frames(_job(clip, dataclasses.replace(CSV, frames="pair")))
    assert pair.numbers.tolist() == [1000, 1040]
    assert (pair.onset.tolist(), pair.apex.tolist()) == ([0, 0, 1], [1, 1, 2])
    assert _frames(_job(clip, dataclasses.replace(CSV, frames="none"))) is None


def test_points_land_on_the_template(tmp_path):
    """All frames move as the onset does, so that the motion between them stays."""
    clip = _clip(tmp_path / "clip", lambda number: _dots(4.0 if number > 1020 else 0.0))
    stored = _frames(_job(clip))
    transform = alignment.face_transform(POINTS, 224)
    moved = transform[:, :2] @ (4.0, 0.0)
    for row, number in enumerate(stored.numbers):
        for point in alignment.canonical_points(224):
            expected = point + (moved if number > 1020 else 0)
            # A mouth corner's dot is near no other.
            assert np.abs(_brightest(stored.pixels[row], expected) - expected).max() < 0.6


def test_with_align_head_each_group_has_its_own_transform(tmp_path):
    clip = _clip(tmp_path / "clip", lambda number: _dots(4.0 if number > 1020 else 0.0))
    job = _job(clip, dataclasses.replace(CSV, landmarks="dlib", align="head"))
    found = extraction.Inspection((), 1040, "sheet", POINTS, POINTS + np.array([4, 0]), "detector")
    stored = extraction.compute(job, found).frames
    for row in range(len(stored.numbers)):
        for point in alignment.canonical_points(224):
            assert np.abs(_brightest(stored.pixels[row], point) - point).max() < 0.6


def test_without_alignment_whole_pictures_are_resized(tmp_path):
    small, large = np.zeros((100, 150, 3), np.uint8), np.zeros((448, 448, 3), np.uint8)
    small[:50], large[:, :224] = 200, 200
    pixels = _frames(_job(_clip(tmp_path / "a", lambda _: small), TEMPLATE)).pixels
    assert (pixels[:, :110] == 200).all()
    assert (pixels[:, 114:] == 0).all()
    pixels = _frames(_job(_clip(tmp_path / "b", lambda _: large), TEMPLATE)).pixels
    assert (pixels[:, :, :112] == 200).all()
    assert (pixels[:, :, 112:] == 0).all()


def test_unusable_neighbours_are_all_reported_and_left_out(tmp_path):
    clip = _clip(tmp_path / "clip", lambda _: _dots())
    files = tree.frames(clip.folder)
    files[1002].write_text("this is a text")
    files[1041].write_bytes(b"")
    assert cv2.imwrite(str(files[1043]), np.zeros((80, 100), np.uint8))
    job = _job(clip)
    inspection = extraction.inspect(job)
    assert [(f.kind, f.drops, f.clip) for f in inspection.findings] == [
        ("image", False, clip.id)
    ] * 3
    whats = [finding.what for finding in inspection.findings]
    assert whats[0] == "006_01002.png: no picture that OpenCV can read"
    assert "006_01041.png" in whats[1]
    assert whats[2] == "006_01043.png: 100x80 pixels, the onset is 200x160"
    stored = extraction.compute(job, inspection).frames
    assert stored.numbers.tolist() == [1000, 1038, 1039, 1040, 1042]
    # Without neighbours nobody looks at them.
    pair = _job(clip, dataclasses.replace(CSV, frames="pair"))
    assert extraction.inspect(pair).findings == ()


def test_the_digest_follows_the_choice_of_frames(tmp_path):
    clip = _clip(tmp_path / "clip", lambda _: _dots())
    kinds = ("none", "pair", "neighbours")
    digests = {_job(clip, dataclasses.replace(CSV, frames=kind)).digest for kind in kinds}
    assert len(digests) == 3


# Builders.


@pytest.fixture(scope="module")
def copy(tmp_path_factory, faces):
    """A SAMM of five clips whose neighbours reach as in `NUMBERS`, in colour."""
    root = tmp_path_factory.mktemp("copies") / "samm"
    rows = [row for row in samm.rows(faces) if row["name"] in _NAMES]
    for row in rows:
        row |= {"onset": 1000, "apex": 1040, "offset": 1100}
        face = faces(*row["face"])
        shown = {1000: face.onset, 1002: face.onset + 1, 1100: face.offset}

        def picture(number, face=face, shown=shown):
            gray = face.frames[shown.get(number, face.apex)]
            return np.stack([gray // 4, gray // 2, gray], axis=-1)

        _clip(root / "SAMM" / row["subject"] / row["name"], picture)
    samm.write_sheet(root / samm.SHEET, rows)
    return root


_NAMES = ("006_1_2", "006_1_13", "028_4_7", "032_3_9", "032_3_11")


def _prepare(copy, data_dir, config=NAME, workers=1, incomplete=True, name="samm"):
    options = builder.Options(workers=workers, allow_incomplete=incomplete)
    return loading.prepare(
        name, config=config, manual_dir=str(copy), data_dir=str(data_dir), options=options
    )


@pytest.fixture(scope="module")
def built(copy, tmp_path_factory):
    """(arrays, folder) of an uninterrupted build."""
    return _prepare(copy, tmp_path_factory.mktemp("data"))


def _digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(folder).iterdir())
    }


def test_what_was_built_is_loaded(copy, built, faces):
    arrays, folder = built
    stored = arrays.frames
    assert len(arrays.labels) == 5
    assert stored.share == 0.05
    assert stored.pixels.shape == (40, 224, 224, 3)
    np.testing.assert_array_equal(stored.numbers.reshape(5, 8), [STORED] * 5)
    np.testing.assert_array_equal(stored.span, [(1000, 1040, 1100)] * 5)
    np.testing.assert_array_equal(stored.onset[1], [8, 8, 10])
    np.testing.assert_array_equal(stored.apex[1], [10, 12, 16])
    rows = {row["name"]: row for row in samm.rows(faces)}
    for index, clip in enumerate(arrays.clips):
        row = rows[clip.split("/")[-1]]
        face = faces(*row["face"])
        apex = cv2.resize(face.frames[face.apex], (224, 224), interpolation=cv2.INTER_LINEAR)
        pixels = stored.pixels[stored.apex[index, 1]].astype(int)
        assert np.abs(pixels[..., 0] - apex).max() <= 1
        assert np.abs(pixels[..., 1] - apex // 2).max() <= 1
        assert np.abs(pixels[..., 2] - apex // 4).max() <= 1
        units = "+".join(survey.action_units(str(row["aus"])))
        assert arrays.action_units[index] == units
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["frames"] == {
        **{"kind": "neighbours", "side": 224, "share": 0.05},
        **{"stored": 40, "missing": 5, "unusable": 0},
    }
    assert metadata["recipe"].endswith(",variant=,frames=neighbours")


def test_two_workers_and_an_interruption_give_the_same_bytes(copy, built, tmp_path):
    _, folder = built
    original, calls = pool.keep_tensor, []

    def interrupted(task):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task)
        original(task)

    with (
        mock.patch.object(pool, "keep_tensor", interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        _prepare(copy, tmp_path)
    unfinished = tmp_path / "samm" / f"unfinished_{NAME}"
    kept = sorted(unfinished.glob("*.npz"))
    assert len(kept) == 3
    # One file lacks the frames, as if a recipe without them had written it.
    with np.load(kept[0]) as file:
        content = {key: file[key] for key in ("tensor", "landmarks")}
    np.savez(kept[0], **content)
    _, other = _prepare(copy, tmp_path, workers=2)
    assert _digests(folder) == _digests(other)
    assert not unfinished.exists()


def test_a_recipe_without_frames_has_the_same_flow_and_no_frames(copy, built, tmp_path):
    arrays, folder = _prepare(copy, tmp_path, config=PLAIN)
    assert arrays.frames is None
    np.testing.assert_array_equal(arrays.flow, built[0].flow)
    np.testing.assert_array_equal(arrays.action_units, built[0].action_units)
    assert arrays.fingerprint != built[0].fingerprint
    assert "frames" not in json.loads((folder / "metadata.json").read_text())


def test_an_unreadable_neighbour_stops_the_build_unless_allowed(copy, tmp_path):
    path = copy / "SAMM" / "006" / "006_1_2" / "006_01002.png"
    content = path.read_bytes()
    path.write_bytes(content[:200])
    try:
        with pytest.raises(UserError, match=r"image: 1\n.*006_01002\.png: no picture"):
            _prepare(copy, tmp_path, incomplete=False)
        arrays, folder = _prepare(copy, tmp_path)
    finally:
        path.write_bytes(content)
    assert len(arrays.labels) == 5
    metadata = json.loads((folder / "metadata.json").read_text())
    assert (metadata["frames"]["stored"], metadata["frames"]["unusable"]) == (39, 1)
    assert any("006_01002.png" in line for line in metadata["incomplete"])


@pytest.mark.parametrize("name", ["fourdme", "megc2019"])
def test_other_builders(copy, name, tmp_path, faces):
    manual = tmp_path / "manual"
    manual.mkdir()
    if name == "fourdme":
        fourdme.write(manual, faces)
    else:
        (manual / "samm").symlink_to(copy)
    arrays, _ = _prepare(manual, tmp_path / "data", f"{PLAIN}+frames-pair", name=name)
    assert arrays.frames.share == 0.0
    assert len(arrays.frames.pixels) == 2 * len(arrays.labels) > 0
    assert np.ptp(arrays.frames.pixels) > 100
    # fourdme's videos are gray, the copy of SAMM is in colour.
    is_gray = (arrays.frames.pixels[..., 0] == arrays.frames.pixels[..., 2]).all()
    assert is_gray == (name == "fourdme")
