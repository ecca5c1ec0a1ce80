import dataclasses
import importlib.util
import os
import pathlib

import cv2
import numpy as np
import pytest

from htnet_jax.datasets import extraction, recipe, survey, tree
from htnet_jax.motion import alignment, flow

needs_dlib = pytest.mark.skipif(
    importlib.util.find_spec("dlib") is None, reason="dlib is an optional dependency"
)
TEMPLATE = recipe.make(flow="farneback", align="none", landmarks="template")
CSV = recipe.make(flow="farneback", landmarks="csv")


@pytest.fixture
def clip(tmp_path, faces):
    """A clip of a rendered face; its frames are numbered from 8, so that they cross 10."""
    return _write(tmp_path / "clip", faces(0, 1), first=8)


def _write(folder, face, first=1):
    folder.mkdir()
    for number, frame in enumerate(face.frames, first):
        assert cv2.imwrite(str(folder / f"img{number}.png"), frame)
    numbers = (index + first for index in (face.onset, face.apex, face.offset))
    return survey.RawClip("casme2", "sub01", "EP01", "happiness", folder, *numbers)


def _still(folder, picture, numbers):
    """A clip whose frames are all the same."""
    folder.mkdir()
    for number in numbers:
        assert cv2.imwrite(str(folder / f"img{number}.png"), picture)
    return survey.RawClip(
        "smic", "s01", "c1", "positive", folder, numbers[0], numbers[1], numbers[-1]
    )


def _picture(clip, number):
    return clip.folder / f"img{number}.png"


def _compute(job):
    inspection = extraction.inspect(job)
    assert inspection.findings == ()
    return extraction.compute(job, inspection)


# What is missing on disk.


def test_nothing_is_missing(clip):
    assert list(extraction.check_frames(clip)) == []


@pytest.mark.parametrize(("kind", "drops"), [("onset", True), ("apex", True), ("offset", False)])
def test_missing_frames(clip, kind, drops):
    _picture(clip, getattr(clip, kind)).unlink()
    (finding,) = extraction.check_frames(clip)
    assert (finding.kind, finding.drops, finding.clip) == (kind, drops, clip.id)
    assert finding.where == str(clip.folder)
    assert f"{kind} frame {getattr(clip, kind)} is not there" in finding.what


def test_all_missing_frames_are_told(clip):
    other = dataclasses.replace(clip, onset=1001, apex=1005, offset=1010)
    found = list(extraction.check_frames(other))
    assert [finding.kind for finding in found] == ["onset", "apex", "offset"]
    count = len(tree.frames(clip.folder))
    assert f"the folder has frames 8 to {7 + count}" in found[0].what


def test_a_known_gap_is_only_a_note(clip):
    _picture(clip, clip.offset).unlink()
    (finding,) = extraction.check_frames(clip, "the distributed copies end early")
    assert (finding.kind, finding.drops) == ("note", False)
    assert "the distributed copies end early" in finding.what
    # It excuses the offset alone.
    other = dataclasses.replace(clip, onset=1)
    kinds = [finding.kind for finding in extraction.check_frames(other, "a gap")]
    assert kinds == ["onset", "note"]


@pytest.mark.parametrize("apex", [None, 0, 5000])
def test_an_impossible_apex_is_not_looked_for(clip, apex):
    assert list(extraction.check_frames(dataclasses.replace(clip, apex=apex))) == []


def test_folders_without_usable_frames(clip, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    (finding,) = extraction.check_frames(dataclasses.replace(clip, folder=empty))
    assert (finding.kind, finding.drops) == ("folder", True)
    (finding,) = extraction.check_frames(dataclasses.replace(clip, folder=tmp_path / "nowhere"))
    assert (finding.kind, finding.drops) == ("path", True)
    _picture(clip, clip.onset).with_name("img008.png").write_text("")
    (finding,) = extraction.check_frames(clip)
    assert (finding.kind, finding.drops) == ("path", True)
    assert "have the same number" in finding.what


# What is wrong with pictures.


@pytest.mark.parametrize("which", ["onset", "apex"])
def test_a_text_file_as_a_picture(clip, which):
    path = _picture(clip, getattr(clip, which))
    path.write_text("this is a text")
    (finding,) = extraction.inspect(extraction.Job(clip, TEMPLATE)).findings
    assert (finding.kind, finding.drops, finding.clip) == ("image", True, clip.id)
    assert path.name in finding.what


def test_pictures_that_are_not_used_are_not_read(clip):
    _picture(clip, clip.onset + 1).write_text("this is a text")
    assert extraction.inspect(extraction.Job(clip, TEMPLATE)).findings == ()


def test_an_apex_of_another_size(clip):
    assert cv2.imwrite(str(_picture(clip, clip.apex)), np.zeros((120, 100), np.uint8))
    (finding,) = extraction.inspect(extraction.Job(clip, TEMPLATE)).findings
    assert (finding.kind, finding.drops) == ("image", True)
    assert finding.what == "apex is 100x120 pixels, onset is 128x128"


def test_a_picture_too_small_for_a_method(tmp_path):
    small = _still(tmp_path / "clip", np.zeros((8, 8), np.uint8), [1, 2, 3])
    chosen = recipe.make(flow="dis", align="none", landmarks="template")
    findings = extraction.inspect(extraction.Job(small, chosen)).findings
    assert [(finding.kind, finding.drops) for finding in findings] == [("image", True)]


# The apex rule.


def _rule(clip, rule="midpoint", **changes):
    chosen = dataclasses.replace(TEMPLATE, apex=rule)
    return extraction.inspect(extraction.Job(dataclasses.replace(clip, **changes), chosen))


def test_a_possible_apex_is_the_sheet_s(clip):
    for apex in (clip.onset + 1, clip.apex, clip.offset):
        found = _rule(clip, apex=apex)
        assert (found.apex, found.apex_rule, found.findings) == (apex, "sheet", ())


def test_without_an_apex_the_middle_is_taken(clip):
    found = _rule(clip, apex=None)
    middle = (clip.onset + clip.offset) // 2
    assert (found.apex, found.apex_rule, found.findings) == (middle, "midpoint", ())


@pytest.mark.parametrize("shift", ["onset", "before", "after"])
def test_an_impossible_apex_is_noted(clip, shift):
    apex = {"onset": clip.onset, "before": clip.onset - 1, "after": clip.offset + 1}[shift]
    found = _rule(clip, apex=apex)
    middle = (clip.onset + clip.offset) // 2
    assert (found.apex, found.apex_rule) == (middle, "midpoint")
    (finding,) = found.findings
    assert (finding.kind, finding.drops) == ("note", False)
    assert f"apex {apex} is impossible" in finding.what
    assert f"midpoint gives {middle}" in finding.what


def test_the_nearest_frame_to_a_missing_middle(tmp_path):
    picture = np.zeros((32, 32), np.uint8)
    for missing, expected in (((), 15), ((15,), 14), ((14, 15), 16), ((13, 14, 15, 16, 17), 12)):
        numbers = [number for number in range(10, 21) if number not in missing]
        clip = _still(tmp_path / f"clip{len(missing)}", picture, numbers)
        assert _rule(clip, apex=None, offset=20).apex == expected


def test_frames_outside_of_the_clip_are_no_apex(tmp_path):
    picture = np.zeros((32, 32), np.uint8)
    clip = _still(tmp_path / "clip", picture, [1, 9, 10, 20, 21, 30])
    assert _rule(clip, onset=10, apex=None, offset=20).apex == 20


@pytest.mark.parametrize("rule", ["midpoint", "estimate"])
def test_no_frame_after_the_onset(tmp_path, rule):
    clip = _still(tmp_path / "clip", np.zeros((32, 32), np.uint8), [1, 2, 9])
    (finding,) = _rule(clip, rule, onset=2, apex=None, offset=8).findings
    assert (finding.kind, finding.drops) == ("apex", True)
    assert finding.what == "no frame between onset 2 and offset 8"


@pytest.mark.parametrize("face", [(0, 1), (1, 2), (2, 0)])
def test_an_estimated_apex_is_near_the_true_one(tmp_path, faces, face):
    rendered = faces(*face)
    clip = dataclasses.replace(_write(tmp_path / "clip", rendered), apex=None)
    chosen = dataclasses.replace(CSV, apex="estimate")
    job = extraction.Job(clip, chosen, points=rendered.landmarks[rendered.onset])
    found = extraction.inspect(job)
    assert found.apex_rule == "estimate"
    true = rendered.apex + 1
    assert abs(found.apex - true) <= 2
    # Near because it was looked for: shifted annotations move the middle, not the apex.
    early = dataclasses.replace(job, clip=dataclasses.replace(clip, offset=true))
    assert abs(extraction.inspect(early).apex - true) <= 1


def test_an_unreadable_frame_among_those_that_are_looked_at(clip):
    _picture(clip, clip.onset + 1).write_text("this is a text")
    found = _rule(clip, "estimate", apex=None)
    assert [(f.kind, f.drops) for f in found.findings] == [("image", True)]


# Points.


def test_template_points_scale_with_the_picture(tmp_path):
    clip = _still(tmp_path / "clip", np.zeros((56, 112), np.uint8), [1, 2, 3])
    found = extraction.inspect(extraction.Job(clip, TEMPLATE))
    assert found.found == "template"
    expected = alignment.CANONICAL * (112, 56) - 0.5
    np.testing.assert_allclose(found.points, expected, atol=1e-6)
    assert found.apex_points is None


def test_points_from_a_file(clip):
    points = np.arange(10.0).reshape(5, 2)
    found = extraction.inspect(extraction.Job(clip, CSV, points=points))
    assert found.found == "csv"
    np.testing.assert_array_equal(found.points, points)
    (finding,) = extraction.inspect(extraction.Job(clip, CSV)).findings
    assert (finding.kind, finding.drops) == ("landmarks", True)
    assert finding.what == "no row in landmarks.csv"


def test_points_that_no_face_has_are_a_finding(clip):
    job = extraction.Job(clip, CSV, points=np.full((5, 2), 7.0))
    findings = extraction.inspect(job).findings
    assert [(finding.kind, finding.drops) for finding in findings] == [("landmarks", True)]


@needs_dlib
def test_dlib_finds_rendered_faces(tmp_path, faces):
    for index, face in enumerate([(0, 1), (1, 2), (2, 0)]):
        rendered = faces(*face)
        clip = _write(tmp_path / str(index), rendered)
        found = extraction.inspect(extraction.Job(clip, recipe.make(align="head")))
        assert found.findings == ()
        assert found.found in ("detector", "upsampled", "whole picture")
        for points, frame in ((found.points, rendered.onset), (found.apex_points, rendered.apex)):
            true = rendered.landmarks[frame]
            eyes = np.linalg.norm(true[1] - true[0])
            assert np.linalg.norm(points - true, axis=1).max() < 0.15 * eyes


@needs_dlib
def test_a_flat_picture_has_no_face(tmp_path):
    clip = _still(tmp_path / "clip", np.full((128, 128), 90, np.uint8), [1, 2, 3])
    (finding,) = extraction.inspect(extraction.Job(clip, recipe.Recipe())).findings
    assert (finding.kind, finding.drops, finding.clip) == ("landmarks", True, clip.id)
    assert finding.what


@needs_dlib
def test_aligning_each_frame_takes_head_motion_out(tmp_path, faces):
    rendered = faces(0, 1)
    clip = _still(tmp_path / "clip", rendered.frames[rendered.onset], [1, 2, 3])
    shift = np.float64([[1, 0, 6], [0, 1, 0]])
    moved = cv2.warpAffine(
        rendered.frames[rendered.onset], shift, (128, 128), borderMode=cv2.BORDER_REPLICATE
    )
    assert cv2.imwrite(str(_picture(clip, 2)), moved)
    median = {}
    for align in ("onset", "head"):
        chosen = recipe.make(flow="farneback", align=align)
        tensor = _compute(extraction.Job(clip, chosen)).tensor
        median[align] = np.median(tensor[8:20, 8:20, 0])
    assert median["onset"] > 0.7
    assert abs(median["head"]) < median["onset"] / 4


# Tensors.


@pytest.mark.parametrize("order", flow.ORDERS)
@pytest.mark.parametrize("method", flow.METHODS)
def test_a_face_at_rest_has_neither_flow_nor_strain(tmp_path, faces, method, order):
    rendered = faces(0, 1)
    clip = _still(tmp_path / "clip", rendered.frames[0], [1, 2, 3])
    for strain in flow.STRAIN_FORMULAS if method == "farneback" else ["four_terms"]:
        chosen = recipe.make(
            flow=method, order=order, landmarks="csv", strain=strain, align="onset"
        )
        steps = _compute(extraction.Job(clip, chosen, points=rendered.landmarks[0]))
        np.testing.assert_array_equal(steps.onset, steps.apex)
        if method == "farneback":
            # OpenCV's Farneback invents motion at the border: up to 0.2 px of 28 when frames are
            # resized first, which fades inwards.
            inner = 9 if order == "size" else 4
            assert np.abs(steps.tensor[inner:-inner, inner:-inner]).max() < 0.005
            assert np.abs(steps.tensor).max() < (0.3 if order == "size" else 0.005)
        else:
            np.testing.assert_array_equal(steps.tensor, 0)


@pytest.mark.parametrize("size", [28, 56, 112])
def test_sizes(clip, faces, size):
    points = faces(0, 1).landmarks[faces(0, 1).onset]
    chosen = dataclasses.replace(CSV, size=size)
    steps = _compute(extraction.Job(clip, chosen, points=points))
    assert steps.tensor.shape == (size, size, 3)
    assert steps.tensor.dtype == np.float32
    assert steps.landmarks.shape == (5, 2)
    assert steps.landmarks.dtype == np.float32
    assert steps.onset.shape == steps.apex.shape == (recipe.FACE_SIZE, recipe.FACE_SIZE)
    assert np.isfinite(steps.tensor).all()
    # The smile moves the mouth's corners further than the forehead.
    magnitude = np.linalg.norm(steps.tensor[..., :2], axis=-1)
    assert magnitude[size // 2 :].max() > 2 * magnitude[: size // 4].max()


@pytest.mark.parametrize("size", [28, 56, 112])
@pytest.mark.parametrize("turn", [-20, 0, 35])
def test_aligned_points_lie_on_the_template(tmp_path, size, turn):
    # A face like the template, turned, scaled and moved, in a picture that is not square.
    angle = np.deg2rad(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (alignment.CANONICAL - 0.5) @ rotation.T * 90 + (80, 60)
    picture = np.zeros((128, 160), np.uint8)
    for x, y in points:
        cv2.circle(picture, (round(x * 16), round(y * 16)), 48, 255, -1, cv2.LINE_AA, 4)
    clip = _still(tmp_path / "clip", picture, [1, 2, 3])
    chosen = dataclasses.replace(CSV, size=size)
    steps = _compute(extraction.Job(clip, chosen, points=points))
    np.testing.assert_allclose(steps.landmarks, alignment.canonical_points(size), atol=0.01)
    # The picture itself went with its points.
    for x, y in alignment.canonical_points(recipe.FACE_SIZE).round().astype(int):
        near = steps.onset[y - 9 : y + 10, x - 9 : x + 10].astype(np.float64)
        rows, columns = np.mgrid[-9:10, -9:10]
        centre = [(near * axis).sum() / near.sum() for axis in (columns, rows)]
        assert np.abs(centre).max() < 1


def test_aligned_points_of_rendered_faces_lie_near_the_template(tmp_path, faces):
    for index, face in enumerate([(0, 1), (1, 2), (2, 0)]):
        rendered = faces(*face)
        clip = _write(tmp_path / str(index), rendered)
        points = rendered.landmarks[rendered.onset]
        landmarks = _compute(extraction.Job(clip, CSV, points=points)).landmarks
        expected = alignment.canonical_points(28)
        # A similarity keeps the centre exactly, and people's proportions.
        np.testing.assert_allclose(landmarks.mean(axis=0), expected.mean(axis=0), atol=1e-4)
        assert np.linalg.norm(landmarks - expected, axis=1).max() < 1.5


def test_without_alignment_points_scale_with_the_picture(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8)
    clip = _still(tmp_path / "clip", picture, [1, 2, 3])
    points = np.array([[0, 0], [127, 63], [-0.5, -0.5], [127.5, 63.5], [63.5, 31.5]])
    chosen = recipe.make(flow="farneback", align="none", landmarks="csv")
    steps = _compute(extraction.Job(clip, chosen, points=points))
    np.testing.assert_array_equal(steps.onset, picture)
    # Pixel centres are whole numbers, and the borders are half a pixel further out.
    expected = [
        *[[0.5 * 28 / 128 - 0.5, 0.5 * 28 / 64 - 0.5], [27.5 - 0.5 * 28 / 128, 27.5 - 14 / 64]],
        *[[-0.5, -0.5], [27.5, 27.5], [13.5, 13.5]],
    ]
    np.testing.assert_allclose(steps.landmarks, expected, atol=1e-5)


def test_flow_of_a_picture_that_is_not_square_is_in_the_tensor_s_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (140, 280)).astype(np.uint8)
    picture = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    clip = _still(tmp_path / "clip", picture, [1, 2, 3])
    moved = cv2.warpAffine(
        picture, np.float64([[1, 0, 4], [0, 1, 2]]), (280, 140), borderMode=cv2.BORDER_REPLICATE
    )
    assert cv2.imwrite(str(_picture(clip, 2)), moved)
    tensor = _compute(extraction.Job(clip, TEMPLATE)).tensor
    inner = tensor[6:-6, 6:-6]
    np.testing.assert_allclose(inner[..., 0].mean(), 4 * 28 / 280, atol=0.03)
    np.testing.assert_allclose(inner[..., 1].mean(), 2 * 28 / 140, atol=0.03)


@pytest.mark.parametrize("method", flow.METHODS)
def test_two_calls_give_the_same_bits(clip, faces, method):
    points = faces(0, 1).landmarks[faces(0, 1).onset]
    job = extraction.Job(clip, dataclasses.replace(CSV, flow=method), points=points)
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        one = _compute(job)
        cv2.setNumThreads(4)
        other = _compute(job)
        # The caller's setting survives.
        assert cv2.getNumThreads() == 4
    finally:
        cv2.setNumThreads(before)
    for name in ("onset", "apex", "tensor", "landmarks"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()
    assert one.frames is other.frames is None


# Whether a result may be used again.


def test_the_digest_stays(clip):
    job = extraction.Job(clip, CSV, pathlib.Path("a"), np.ones((5, 2)))
    again = extraction.Job(
        dataclasses.replace(clip), dataclasses.replace(CSV), pathlib.Path("a"), np.ones((5, 2))
    )
    assert job.digest == again.digest
    # Frames outside of the clip, reading and other files do not matter.
    (clip.folder / "notes.txt").write_text("")
    later = dataclasses.replace(clip, onset=clip.onset + 1)
    trimmed = dataclasses.replace(job, clip=later)
    before = trimmed.digest
    os.utime(_picture(clip, clip.onset), ns=(1, 1))
    assert trimmed.digest == before
    extraction.inspect(trimmed)
    assert trimmed.digest == before


def test_the_digest_follows_frames(clip):
    job = extraction.Job(clip, TEMPLATE)
    path = _picture(clip, clip.apex)
    seen = [job.digest]
    times = path.stat()
    # Another content of the same time, then another time of the same content.
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    seen.append(job.digest)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
    seen.append(job.digest)
    assert len(set(seen)) == 3


def test_the_digest_follows_everything_else(clip, tmp_path):
    job = extraction.Job(clip, CSV, None, np.ones((5, 2)))
    moved = np.ones((5, 2))
    moved[4, 1] += 1e-9
    others = [
        dataclasses.replace(job, points=None),
        dataclasses.replace(job, points=moved),
        dataclasses.replace(job, model=tmp_path / "model.dat"),
        *[
            dataclasses.replace(job, clip=dataclasses.replace(clip, **change))
            for change in (
                {"apex": None},
                {"apex": clip.apex + 1},
                {"onset": clip.onset + 1},
                {"name": "EP02"},
            )
        ],
        *[
            dataclasses.replace(job, recipe=dataclasses.replace(CSV, **change))
            for change in (
                {"size": 56},
                {"flow": "dis"},
                {"strain": "four_terms"},
                {"variant": "vis"},
            )
        ],
    ]
    digests = {job.digest, *(other.digest for other in others)}
    assert len(digests) == 1 + len(others)
