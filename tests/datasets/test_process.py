"""From frames to flow tensors and face frames, by one process or several."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import operator
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from unittest import mock

import cv2
import numpy as np
import pytest
from fakes import fourdme, samm, work

from htnet_jax import errors, io
from htnet_jax.datasets import action_units, builder, loading, process, recipe, recording, survey
from htnet_jax.errors import UserError
from htnet_jax.motion import alignment, flow, regions

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


def _still(folder, image, numbers):
    """A clip whose frames are all the same."""
    folder.mkdir()
    for number in numbers:
        assert cv2.imwrite(str(folder / f"img{number}.png"), image)
    return survey.RawClip(
        "smic", "s01", "c1", "positive", folder, numbers[0], numbers[1], numbers[-1]
    )


def _image(clip, number):
    return clip.folder / f"img{number}.png"


def _compute(job):
    inspection = process.inspect(job)
    assert inspection.findings == ()
    return process.compute(job, inspection)


# What is missing on disk.


def test_nothing_is_missing(clip):
    assert list(process.check_frames(clip)) == []


@pytest.mark.parametrize(("kind", "drops"), [("onset", True), ("apex", True), ("offset", False)])
def test_missing_frames(clip, kind, drops):
    _image(clip, getattr(clip, kind)).unlink()
    (finding,) = process.check_frames(clip)
    assert (finding.kind, finding.drops, finding.clip) == (kind, drops, clip.id)
    assert finding.where == str(clip.folder)
    assert f"{kind} frame {getattr(clip, kind)} is not there" in finding.what


def test_all_missing_frames_are_told(clip):
    other = dataclasses.replace(clip, onset=1001, apex=1005, offset=1010)
    found = list(process.check_frames(other))
    assert [finding.kind for finding in found] == ["onset", "apex", "offset"]
    count = len(recording.image_files(clip.folder))
    assert f"the folder has frames 8 to {7 + count}" in found[0].what


def test_a_known_gap_is_only_a_note(clip):
    _image(clip, clip.offset).unlink()
    (finding,) = process.check_frames(clip, "the distributed copies end early")
    assert (finding.kind, finding.drops) == ("note", False)
    assert "the distributed copies end early" in finding.what
    # It excuses the offset alone.
    other = dataclasses.replace(clip, onset=1)
    kinds = [finding.kind for finding in process.check_frames(other, "a gap")]
    assert kinds == ["onset", "note"]


@pytest.mark.parametrize("apex", [None, 0, 5000])
def test_an_impossible_apex_is_not_looked_for(clip, apex):
    assert list(process.check_frames(dataclasses.replace(clip, apex=apex))) == []


def test_folders_without_usable_frames(clip, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("")
    (finding,) = process.check_frames(dataclasses.replace(clip, folder=empty))
    assert (finding.kind, finding.drops) == ("folder", True)
    (finding,) = process.check_frames(dataclasses.replace(clip, folder=tmp_path / "nowhere"))
    assert (finding.kind, finding.drops) == ("path", True)
    _image(clip, clip.onset).with_name("img008.png").write_text("")
    (finding,) = process.check_frames(clip)
    assert (finding.kind, finding.drops) == ("image", False)
    assert finding.what.startswith("img008.png is not used: not named like the frames, img<number>")
    _image(clip, clip.onset).with_name("img8.PNG").write_text("")
    finding = next(process.check_frames(clip))
    assert (finding.kind, finding.drops) == ("path", True)
    assert "have the same number" in finding.what
    # What is left out is recorded with the data set.
    assert str(tmp_path) not in finding.what


@pytest.mark.parametrize("names", ["out{:04d}.png", "{}_flow.png", "img{:03d}.jpg"])
def test_more_images_than_frames_are_not_taken_for_the_frames(clip, names):
    for number in range(1, 60):
        (clip.folder / names.format(number)).write_text("no image")
    (finding,) = (finding for finding in process.check_frames(clip) if finding.drops)
    assert (finding.kind, finding.is_problem) == ("image", True)
    assert "its frames are there twice" in finding.what


def test_some_images_named_alike_do_not_drop_a_clip(clip):
    for number in range(clip.onset, clip.offset):  # no flow from the last frame
        (clip.folder / f"img{number}_flow.png").write_text("no image")
    found = list(process.check_frames(clip))
    assert {(finding.kind, finding.drops) for finding in found} == {("image", False)}


# What is wrong with images.


@pytest.mark.parametrize("which", ["onset", "apex"])
def test_a_text_file_as_an_image(clip, which):
    path = _image(clip, getattr(clip, which))
    path.write_text("this is a text")
    (finding,) = process.inspect(process.Job(clip, TEMPLATE)).findings
    assert (finding.kind, finding.drops, finding.clip) == ("image", True, clip.id)
    assert path.name in finding.what


def test_images_that_are_not_used_are_not_read(clip):
    _image(clip, clip.onset + 1).write_text("this is a text")
    assert process.inspect(process.Job(clip, TEMPLATE)).findings == ()


def test_an_apex_of_another_size(clip):
    assert cv2.imwrite(str(_image(clip, clip.apex)), np.zeros((120, 100), np.uint8))
    (finding,) = process.inspect(process.Job(clip, TEMPLATE)).findings
    assert (finding.kind, finding.drops) == ("image", True)
    assert finding.what == "apex is 100x120 pixels, onset is 128x128"


def test_an_image_too_small_for_a_method(tmp_path):
    small = _still(tmp_path / "clip", np.zeros((8, 8), np.uint8), [1, 2, 3])
    chosen = recipe.make(flow="dis", align="none", landmarks="template")
    findings = process.inspect(process.Job(small, chosen)).findings
    assert [(finding.kind, finding.drops) for finding in findings] == [("image", True)]


# The apex rule.


def _rule(clip, rule="midpoint", **changes):
    chosen = dataclasses.replace(TEMPLATE, apex=rule)
    return process.inspect(process.Job(dataclasses.replace(clip, **changes), chosen))


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
    image = np.zeros((32, 32), np.uint8)
    for missing, expected in (((), 15), ((15,), 14), ((14, 15), 16), ((13, 14, 15, 16, 17), 12)):
        numbers = [number for number in range(10, 21) if number not in missing]
        clip = _still(tmp_path / f"clip{len(missing)}", image, numbers)
        assert _rule(clip, apex=None, offset=20).apex == expected


def test_frames_outside_of_the_clip_are_no_apex(tmp_path):
    image = np.zeros((32, 32), np.uint8)
    clip = _still(tmp_path / "clip", image, [1, 9, 10, 20, 21, 30])
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
    job = process.Job(clip, chosen, points=rendered.landmarks[rendered.onset])
    found = process.inspect(job)
    assert found.apex_rule == "estimate"
    true = rendered.apex + 1
    assert abs(found.apex - true) <= 2
    # Near because it was looked for: shifted annotations move the middle, not the apex.
    early = dataclasses.replace(job, clip=dataclasses.replace(clip, offset=true))
    assert abs(process.inspect(early).apex - true) <= 1


def test_an_unreadable_frame_among_those_that_are_looked_at(clip):
    _image(clip, clip.onset + 1).write_text("this is a text")
    found = _rule(clip, "estimate", apex=None)
    assert [(f.kind, f.drops) for f in found.findings] == [("image", True)]


# Points.


def test_template_points_scale_with_the_image(tmp_path):
    clip = _still(tmp_path / "clip", np.zeros((56, 112), np.uint8), [1, 2, 3])
    found = process.inspect(process.Job(clip, TEMPLATE))
    assert found.found == "template"
    expected = alignment.CANONICAL * (112, 56) - 0.5
    np.testing.assert_allclose(found.points, expected, atol=1e-6)
    assert found.apex_points is None


def test_points_from_a_file(clip):
    points = np.arange(10.0).reshape(5, 2)
    found = process.inspect(process.Job(clip, CSV, points=points))
    assert found.found == "csv"
    np.testing.assert_array_equal(found.points, points)
    (finding,) = process.inspect(process.Job(clip, CSV)).findings
    assert (finding.kind, finding.drops) == ("landmarks", True)
    assert finding.what == "no row in landmarks.csv"


def test_points_that_no_face_has_are_a_finding(clip):
    job = process.Job(clip, CSV, points=np.full((5, 2), 7.0))
    findings = process.inspect(job).findings
    assert [(finding.kind, finding.drops) for finding in findings] == [("landmarks", True)]


@needs_dlib
def test_dlib_finds_rendered_faces(tmp_path, faces):
    for index, face in enumerate([(0, 1), (1, 2), (2, 0)]):
        rendered = faces(*face)
        clip = _write(tmp_path / str(index), rendered)
        found = process.inspect(process.Job(clip, recipe.make(align="head")))
        assert found.findings == ()
        assert found.found in ("detector", "upsampled", "whole picture")
        for points, frame in ((found.points, rendered.onset), (found.apex_points, rendered.apex)):
            true = rendered.landmarks[frame]
            eyes = np.linalg.norm(true[1] - true[0])
            assert np.linalg.norm(points - true, axis=1).max() < 0.15 * eyes


@needs_dlib
def test_a_flat_image_has_no_face(tmp_path):
    clip = _still(tmp_path / "clip", np.full((128, 128), 90, np.uint8), [1, 2, 3])
    (finding,) = process.inspect(process.Job(clip, recipe.Recipe())).findings
    assert (finding.kind, finding.drops, finding.clip) == ("landmarks", True, clip.id)
    assert finding.what


@needs_dlib
@pytest.mark.parametrize("align", ["onset", "head", "none"])
@pytest.mark.parametrize("shown", ["nothing", "upside down", "aside"])
def test_an_apex_without_the_face_is_a_finding(tmp_path, faces, align, shown):
    rendered = faces(0, 1)
    folder = tmp_path / "clip"
    wide = [
        cv2.copyMakeBorder(frame, 0, 0, 0, 160, cv2.BORDER_REPLICATE) for frame in rendered.frames
    ]
    apex = wide[rendered.apex]
    shown = {
        "nothing": np.full_like(apex, 90),
        "upside down": np.ascontiguousarray(apex[::-1]),
        "aside": np.roll(apex, 120, axis=1),
    }[shown]
    clip = _write(folder, dataclasses.replace(rendered, frames=wide))
    job = process.Job(clip, recipe.make(align=align))
    assert process.inspect(job).findings == ()
    assert cv2.imwrite(str(_image(clip, clip.apex)), shown)
    (finding,) = process.inspect(job).findings
    assert (finding.kind, finding.drops) == ("landmarks", True)
    assert f"apex frame {clip.apex}: " in finding.what


@needs_dlib
def test_aligning_each_frame_takes_head_motion_out(tmp_path, faces):
    rendered = faces(0, 1)
    clip = _still(tmp_path / "clip", rendered.frames[rendered.onset], [1, 2, 3])
    shift = np.float64([[1, 0, 6], [0, 1, 0]])
    moved = cv2.warpAffine(
        rendered.frames[rendered.onset], shift, (128, 128), borderMode=cv2.BORDER_REPLICATE
    )
    assert cv2.imwrite(str(_image(clip, 2)), moved)
    median = {}
    for align in ("onset", "head"):
        chosen = recipe.make(flow="farneback", align=align)
        tensor = _compute(process.Job(clip, chosen)).tensor
        median[align] = np.median(tensor[8:20, 8:20, 0])
    assert median["onset"] > 0.7
    assert abs(median["head"]) < median["onset"] / 4


def _swapped(tmp_path, rendered, how):
    """A clip whose apex image is another than it should be."""
    clip = _write(tmp_path / "clip", rendered)
    apex = rendered.frames[rendered.apex]
    rng = np.random.default_rng(0)
    shown = {
        "as it is": apex,
        "aside": np.roll(apex, 30, axis=1),
        "black": np.zeros_like(apex),
        "noise": rng.integers(0, 256, apex.shape, np.uint8),
        "clouds": cv2.GaussianBlur(rng.normal(128, 900, (128, 128)), (0, 0), 6)
        .clip(0, 255)
        .astype(np.uint8),
    }[how]
    assert cv2.imwrite(str(_image(clip, clip.apex)), np.ascontiguousarray(shown))
    return clip


@pytest.mark.parametrize(
    ("align", "how"),
    [
        *(("onset", how) for how in ("as it is", "aside", "black", "noise")),
        *(("none", how) for how in ("aside", "clouds", "black")),
    ],
)
def test_flow_that_no_face_can_make_is_a_finding(tmp_path, faces, align, how):
    rendered = faces(0, 1)
    clip = _swapped(tmp_path, rendered, how)
    points = rendered.landmarks[rendered.onset]
    chosen = recipe.make(flow="dis", landmarks="csv", align=align)
    job = process.Job(clip, chosen, points=points)
    inspection = process.inspect(job)
    assert inspection.findings == ()
    path = tmp_path / "kept.npz"
    finding = process.keep_tensor((path, job, inspection))
    assert path.exists() == (how == "as it is") == (finding is None)
    if finding:
        assert (finding.kind, finding.drops, finding.clip) == ("flow", True, clip.id)
        said = "correlation of" if how in ("black", "noise") else "pixels of 28"
        assert said in finding.what


@pytest.mark.parametrize("size", [28, 56, 112])
def test_the_limit_of_flow_is_relative_to_the_face(clip, size):
    job = process.Job(clip, TEMPLATE)
    points = regions.TEMPLATE_POINTS * size / 28
    eyes = np.linalg.norm(points[1] - points[0])
    tensor = np.zeros((size, size, 3), np.float32)
    image = np.random.default_rng(0).integers(0, 256, (224, 224), np.uint8)
    for scale in (1, 0.5):
        small = (points - size / 2) * scale + size / 2
        for share in (0.3, 0.4):
            tensor[size // 2, size // 2, 0] = -share * eyes * scale
            steps = process.Steps(image, image, tensor, small)
            assert (process.impossible_flow(job, steps) is None) == (share < 0.35)
    # Beside the face anything may move.
    tensor[:] = 0
    tensor[0, 0] = size
    assert process.impossible_flow(job, process.Steps(image, image, tensor, small)) is None


def test_a_clip_with_impossible_flow_is_reported_and_left_out(tmp_path, copy):
    manual = tmp_path / "samm"
    shutil.copytree(copy, manual)
    path = manual / "SAMM" / "006" / "006_1_2" / "006_01040.png"
    assert cv2.imwrite(str(path), np.roll(cv2.imread(str(path)), 30, axis=1))
    config = "dis_28+align-none+landmarks-template"
    arrays, folder = _prepare(manual, tmp_path / "data", config, workers=2)
    assert len(arrays.labels) == 4
    metadata = json.loads((folder / "metadata.json").read_text())
    assert any("flow samm/006/006_1_2" in line for line in metadata["incomplete"])


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
        steps = _compute(process.Job(clip, chosen, points=rendered.landmarks[0]))
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
    steps = _compute(process.Job(clip, chosen, points=points))
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
    # A face like the template, turned, scaled and moved, in an image that is not square.
    angle = np.deg2rad(turn)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = (alignment.CANONICAL - 0.5) @ rotation.T * 90 + (80, 60)
    image = np.zeros((128, 160), np.uint8)
    for x, y in points:
        cv2.circle(image, (round(x * 16), round(y * 16)), 48, 255, -1, cv2.LINE_AA, 4)
    clip = _still(tmp_path / "clip", image, [1, 2, 3])
    chosen = dataclasses.replace(CSV, size=size)
    steps = _compute(process.Job(clip, chosen, points=points))
    np.testing.assert_allclose(steps.landmarks, alignment.canonical_points(size), atol=0.01)
    # The image itself went with its points.
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
        landmarks = _compute(process.Job(clip, CSV, points=points)).landmarks
        expected = alignment.canonical_points(28)
        # A similarity keeps the centre exactly, and a face's proportions.
        np.testing.assert_allclose(landmarks.mean(axis=0), expected.mean(axis=0), atol=1e-4)
        assert np.linalg.norm(landmarks - expected, axis=1).max() < 1.5


def test_without_alignment_points_scale_with_the_image(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (64, 128), np.uint8)
    clip = _still(tmp_path / "clip", image, [1, 2, 3])
    points = np.array([[0, 0], [127, 63], [-0.5, -0.5], [127.5, 63.5], [63.5, 31.5]])
    chosen = recipe.make(flow="farneback", align="none", landmarks="csv")
    steps = _compute(process.Job(clip, chosen, points=points))
    np.testing.assert_array_equal(steps.onset, image)
    # Pixel centres are whole numbers, and the borders are half a pixel further out.
    expected = [
        *[[0.5 * 28 / 128 - 0.5, 0.5 * 28 / 64 - 0.5], [27.5 - 0.5 * 28 / 128, 27.5 - 14 / 64]],
        *[[-0.5, -0.5], [27.5, 27.5], [13.5, 13.5]],
    ]
    np.testing.assert_allclose(steps.landmarks, expected, atol=1e-5)


def test_flow_of_an_image_that_is_not_square_is_in_the_tensor_s_pixels(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (140, 280)).astype(np.uint8)
    image = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX)
    clip = _still(tmp_path / "clip", image, [1, 2, 3])
    moved = cv2.warpAffine(
        image, np.float64([[1, 0, 4], [0, 1, 2]]), (280, 140), borderMode=cv2.BORDER_REPLICATE
    )
    assert cv2.imwrite(str(_image(clip, 2)), moved)
    tensor = _compute(process.Job(clip, TEMPLATE)).tensor
    inner = tensor[6:-6, 6:-6]
    np.testing.assert_allclose(inner[..., 0].mean(), 4 * 28 / 280, atol=0.03)
    np.testing.assert_allclose(inner[..., 1].mean(), 2 * 28 / 140, atol=0.03)


@pytest.mark.parametrize("method", flow.METHODS)
def test_two_calls_give_the_same_bits(clip, faces, method):
    points = faces(0, 1).landmarks[faces(0, 1).onset]
    job = process.Job(clip, dataclasses.replace(CSV, flow=method), points=points)
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
    job = process.Job(clip, CSV, pathlib.Path("a"), np.ones((5, 2)))
    again = process.Job(
        dataclasses.replace(clip), dataclasses.replace(CSV), pathlib.Path("a"), np.ones((5, 2))
    )
    assert job.digest == again.digest
    # Frames outside of the clip, reading and other files do not matter.
    (clip.folder / "notes.txt").write_text("")
    later = dataclasses.replace(clip, onset=clip.onset + 1)
    trimmed = dataclasses.replace(job, clip=later)
    before = trimmed.digest
    os.utime(_image(clip, clip.onset), ns=(1, 1))
    assert trimmed.digest == before
    process.inspect(trimmed)
    assert trimmed.digest == before


def test_the_digest_follows_frames(clip):
    job = process.Job(clip, TEMPLATE)
    path = _image(clip, clip.apex)
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
    job = process.Job(clip, CSV, None, np.ones((5, 2)))
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


# Face frames.

PLAIN = "farneback_28+align-none+landmarks-template"
NAME = f"{PLAIN}+frames-neighbours"
TEMPLATE_FRAMES = recipe.parse(NAME)
CSV_FRAMES = recipe.make(flow="farneback", landmarks="csv", frames="neighbours")
INCOMPLETE = builder.Options(workers=1, allow_incomplete=True)
# What there is of a clip with onset 1000, apex 1040 and offset 1100: one more neighbour (1002), two
# before the apex, three after it. 1001 is missing.
NUMBERS = (1000, 1002, 1038, 1039, 1040, 1041, 1042, 1043, 1100)
STORED = NUMBERS[:-1]
# Eyes, nose and mouth corners of a face in an image of 200 x 160, turned by some degrees.
POINTS = (alignment.CANONICAL - 0.5) @ [[0.98, 0.2], [-0.2, 0.98]] * 90 + (95, 75)


def _clip(folder, picture_of, suffix=".png", numbers=NUMBERS):
    """A clip whose frame `number` is `picture_of(number)`, in OpenCV's order of channels."""
    folder.mkdir(parents=True)
    for number in numbers:
        assert cv2.imwrite(str(folder / f"006_{number:05d}{suffix}"), picture_of(number))
    return survey.RawClip("samm", "006", "006_1_2", "anger", folder, 1000, 1040, 1100)


def _job(clip, chosen=CSV_FRAMES):
    return process.Job(clip, chosen, points=POINTS)


def _frames(job):
    inspection = process.inspect(job)
    assert inspection.findings == ()
    return process.compute(job, inspection).frames


def _dots(shift=0.0):
    """Bright red dots at the points, moved to the right, on a blue image."""
    image = np.zeros((160, 200, 3), np.uint8)
    image[..., 0] = 60
    for x, y in POINTS + np.array([shift, 0]):
        centre = round(x * 16), round(y * 16)
        cv2.circle(image, centre, 48, (60, 0, 255), -1, cv2.LINE_AA, 4)
    return image


def _brightest(face, near, reach=12):
    """Centre of the red around a point."""
    column, row = np.rint(near).astype(int)
    part = face[row - reach : row + reach + 1, column - reach : column + reach + 1, 0]
    y, x = np.mgrid[: 2 * reach + 1, : 2 * reach + 1] - reach
    weights = part / part.sum(dtype=float)
    return np.array([column + (weights * x).sum(), row + (weights * y).sum()])


@pytest.mark.parametrize("chosen", [CSV_FRAMES, TEMPLATE_FRAMES])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_red_frame_stays_red(tmp_path, chosen, suffix):
    red = np.full((160, 200, 3), (0, 0, 255), np.uint8)
    stored = _frames(_job(_clip(tmp_path / "clip", lambda _: red, suffix), chosen))
    assert stored.pixels.shape == (len(STORED), 224, 224, 3)
    assert stored.pixels.dtype == np.uint8
    assert np.abs(stored.pixels.astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("chosen", [CSV_FRAMES, TEMPLATE_FRAMES])
def test_gray_images_have_three_equal_channels(tmp_path, chosen):
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
    pair = _frames(_job(clip, dataclasses.replace(CSV_FRAMES, frames="pair")))
    assert pair.numbers.tolist() == [1000, 1040]
    assert (pair.onset.tolist(), pair.apex.tolist()) == ([0, 0, 1], [1, 1, 2])
    assert _frames(_job(clip, dataclasses.replace(CSV_FRAMES, frames="none"))) is None


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
    job = _job(clip, dataclasses.replace(CSV_FRAMES, landmarks="dlib", align="head"))
    found = process.Inspection((), 1040, "sheet", POINTS, POINTS + np.array([4, 0]), "detector")
    stored = process.compute(job, found).frames
    for row in range(len(stored.numbers)):
        for point in alignment.canonical_points(224):
            assert np.abs(_brightest(stored.pixels[row], point) - point).max() < 0.6


def test_without_alignment_whole_images_are_resized(tmp_path):
    small, large = np.zeros((100, 150, 3), np.uint8), np.zeros((448, 448, 3), np.uint8)
    small[:50], large[:, :224] = 200, 200
    pixels = _frames(_job(_clip(tmp_path / "a", lambda _: small), TEMPLATE_FRAMES)).pixels
    assert (pixels[:, :110] == 200).all()
    assert (pixels[:, 114:] == 0).all()
    pixels = _frames(_job(_clip(tmp_path / "b", lambda _: large), TEMPLATE_FRAMES)).pixels
    assert (pixels[:, :, :112] == 200).all()
    assert (pixels[:, :, 112:] == 0).all()


def test_unusable_neighbours_are_all_reported_and_left_out(tmp_path):
    clip = _clip(tmp_path / "clip", lambda _: _dots())
    files = recording.image_files(clip.folder)
    files[1002].write_text("this is a text")
    files[1041].write_bytes(b"")
    assert cv2.imwrite(str(files[1043]), np.zeros((80, 100), np.uint8))
    job = _job(clip)
    inspection = process.inspect(job)
    assert [(f.kind, f.drops, f.clip) for f in inspection.findings] == [
        ("image", False, clip.id)
    ] * 3
    whats = [finding.what for finding in inspection.findings]
    assert whats[0] == "006_01002.png: no image that OpenCV can read"
    assert "006_01041.png" in whats[1]
    assert whats[2] == "006_01043.png: 100x80 pixels, the onset is 200x160"
    stored = process.compute(job, inspection).frames
    assert stored.numbers.tolist() == [1000, 1038, 1039, 1040, 1042]
    # Without neighbours nobody looks at them.
    pair = _job(clip, dataclasses.replace(CSV_FRAMES, frames="pair"))
    assert process.inspect(pair).findings == ()


def test_the_digest_follows_the_rule(tmp_path):
    clip = _clip(tmp_path / "clip", lambda _: _dots())
    rules = ("none", "pair", "neighbours", "4", "16")
    recipes = [dataclasses.replace(CSV_FRAMES, frames=rule) for rule in rules]
    recipes += [dataclasses.replace(recipes[-1], clip=side) for side in (56, 112)]
    assert len({_job(clip, chosen).digest for chosen in recipes}) == 7


def test_frames_evenly_with_another_in_place_of_an_unreadable_one(tmp_path):
    numbers = range(1000, 1101)
    clip = _clip(
        tmp_path / "clip", lambda n: np.full((160, 200, 3), n % 100, np.uint8), numbers=numbers
    )
    job = _job(clip, dataclasses.replace(CSV_FRAMES, frames="6"))
    assert _frames(job).numbers.tolist() == [1000, 1020, 1040, 1060, 1080, 1100]
    # The nearest to 1060 is taken: 1059 as it comes first, and 1061 as 1059 has another size.
    files = recording.image_files(clip.folder)
    files[1060].write_text("this is a text")
    assert cv2.imwrite(str(files[1059]), np.zeros((80, 100), np.uint8))
    inspection = process.inspect(job)
    assert [finding.what for finding in inspection.findings] == [
        "006_01059.png: 100x80 pixels, the onset is 200x160",
        "006_01060.png: no image that OpenCV can read",
    ]
    stored = process.compute(job, inspection).frames
    assert stored.numbers.tolist() == [1000, 1020, 1040, 1061, 1080, 1100]
    assert stored.onset.tolist() == [0, 0, 1]
    assert stored.apex.tolist() == [1, 2, 6]
    assert np.isnan(stored.times).all()
    about = process.about_frames([job], [inspection])
    assert about == {
        **{"kind": "6", "side": 224, "share": 0.0},
        **{"stored": 6, "missing": 0, "unusable": 2},
    }


@pytest.mark.parametrize("method", flow.METHODS)
def test_a_clip_is_aligned_to_its_side_and_has_the_flow_to_each_frame(tmp_path, method):
    rng = np.random.default_rng(0)
    textured = cv2.GaussianBlur(rng.integers(0, 256, (160, 200, 3), np.uint8), (0, 0), 3)

    def moved(number):  # By two pixels to the right, from 1020 on.
        return np.roll(textured, 2 * (number >= 1020), axis=1)

    numbers = (1000, 1020, 1040, 1100)
    clip = _clip(tmp_path / "clip", moved, numbers=numbers)
    chosen = recipe.make(flow=method, landmarks="csv", frames=6, clip=56)
    job = _job(clip, chosen)
    stored = _frames(job)
    assert stored.numbers.tolist() == list(numbers)
    transform = alignment.face_transform(POINTS, 56)
    for face, number in zip(stored.pixels, numbers, strict=True):
        expected = alignment.warp(moved(number)[..., ::-1], transform, 56)
        np.testing.assert_array_equal(face, expected)
    assert (stored.flow.shape, stored.flow.dtype) == ((4, 56, 56, 2), np.float16)
    assert not stored.flow[0].any()
    # In pixels of the aligned face; away from its border.
    across = transform[:, :2] @ (2.0, 0.0)
    for found in stored.flow[1:, 16:-16, 16:-16].astype(float):
        assert np.abs(np.median(found, axis=(0, 1)) - across).max() < 0.1
    about = process.about_frames([job], [process.inspect(job)])
    assert about == {
        **{"kind": "6", "side": 56, "share": 0.0, "flow": method},
        **{"stored": 4, "missing": 2, "unusable": 0, "repeating": 1},
    }


# A clip that is a video.


@pytest.fixture
def film(tmp_path, faces):
    """A rendered clip as a folder and, without loss, as a video of 50 frames a second."""
    folder = _write(tmp_path / "clip", faces(0, 1))
    path = tmp_path / "clip.avi"
    frames = faces(0, 1).frames
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 50, (128, 128))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()
    return folder, dataclasses.replace(folder, folder=path)


@pytest.mark.parametrize("apex", ["sheet", "estimate"])
@pytest.mark.parametrize("rule", ["none", "neighbours", "5"])
def test_a_video_gives_what_its_frames_give(film, faces, rule, apex):
    points = faces(0, 1).landmarks[faces(0, 1).onset]
    chosen = recipe.make(flow="farneback", landmarks="csv", frames=rule, apex="estimate")
    found = []
    for clip in film:
        clip = clip if apex == "sheet" else dataclasses.replace(clip, apex=None)
        assert list(process.check_frames(clip)) == []
        found.append(_compute(process.Job(clip, chosen, points=points)))
    folder, video = found
    np.testing.assert_array_equal(folder.tensor, video.tensor)
    assert (video.frames is None) == (rule == "none")
    if rule != "none":
        np.testing.assert_array_equal(folder.frames.pixels, video.frames.pixels)
        np.testing.assert_array_equal(folder.frames.numbers, video.frames.numbers)
    if rule == "5":
        times = (video.frames.numbers - 1) / 50
        np.testing.assert_allclose(video.frames.times, times, atol=1e-9)


def test_what_is_wrong_with_a_video(film):
    _, clip = film
    late = dataclasses.replace(clip, apex=98, offset=99)
    findings = list(process.check_frames(late))
    assert [(f.kind, f.drops) for f in findings] == [("apex", True), ("offset", False)]
    assert "apex frame 98 is not there; the video has frames 1 to " in findings[0].what
    job = process.Job(clip, TEMPLATE)
    before = job.digest
    os.utime(clip.folder, ns=(1, 1))
    assert job.digest != before
    clip.folder.write_text("this is a text")
    (finding,) = process.check_frames(clip)
    assert (finding.kind, finding.drops) == ("path", True)
    assert "no video that OpenCV can read" in finding.what


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

        def image(number, face=face, shown=shown):
            gray = face.frames[shown.get(number, face.apex)]
            return np.stack([gray // 4, gray // 2, gray], axis=-1)

        _clip(root / "SAMM" / row["subject"] / row["name"], image)
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
        units = "+".join(action_units.parse(str(row["aus"])).stored)
        assert arrays.action_units[index] == units
    metadata = json.loads((folder / "metadata.json").read_text())
    assert metadata["frames"] == {
        **{"kind": "neighbours", "side": 224, "share": 0.05},
        **{"stored": 40, "missing": 5, "unusable": 0},
    }
    assert metadata["recipe"].endswith(",variant=,frames=neighbours")


def test_two_workers_and_an_interruption_give_the_same_bytes(copy, built, tmp_path):
    _, folder = built
    original, calls = process.keep_tensor, []

    def interrupted(task):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task)
        original(task)

    with (
        mock.patch.object(process, "keep_tensor", interrupted),
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
        with pytest.raises(UserError, match=r"image: 1\n.*006_01002\.png: no image"):
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


# Worker processes, and what they keep.


def _run(function, items, workers):
    return list(process.run(function, items, workers=workers, title="test"))


@pytest.mark.parametrize("workers", [1, 2])
def test_results_are_in_order(workers, capfd):
    items = range(12)
    assert _run(work.early_items_last, items, workers) == [item**2 for item in items]
    bar = capfd.readouterr().err
    assert "test" in bar
    assert "12/12" in bar


def test_who_works():
    items = range(8)
    here = _run(work.process, items, 1)
    assert here == [(item, os.getpid()) for item in items]
    there = _run(work.process, items, 2)
    assert [item for item, _ in there] == list(items)
    processes = {process for _, process in there}
    assert os.getpid() not in processes
    assert len(processes) <= 2
    # For a single item no process is worth its start.
    assert _run(work.process, [5], 2) == [(5, os.getpid())]


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_to_do(workers):
    assert _run(operator.neg, [], workers) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_in_a_worker_comes_through(workers):
    results = process.run(work.fail_at_three, range(6), workers=workers, title="test")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="item 3 is wrong"):
        next(results)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_is_not_made_a_user_s_mistake(workers):
    with pytest.raises(TypeError):
        _run(operator.neg, ["text", "text"], workers)


def test_a_killed_worker_is_one_message():
    with pytest.raises(UserError, match=r"a worker process was killed.*fewer --workers"):
        _run(work.die_at_three, range(6), 2)


def test_a_run_that_is_left_early_ends_its_workers():
    results = process.run(work.process, range(200), workers=2, title="test")
    assert next(results)[0] == 0
    results.close()
    assert list(results) == []


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, errors.Stopped)]
)
def test_while_workers_begin_interruptions_wait(number, error):
    # In a shell's background, where tests may run, SIGINT is ignored.
    handlers = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: errors._stop}
    before = {one: signal.signal(one, handler) for one, handler in handlers.items()}
    done = False
    try:
        with pytest.raises(error), process._uninterrupted():
            os.kill(os.getpid(), number)
            status = pathlib.Path("/proc/self/status")
            child = subprocess.run(["cat", status], capture_output=True, text=True).stdout
            done = True
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    assert done
    blocked = int(re.search(r"SigBlk:\s*(\w+)", child)[1], 16)
    assert blocked >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


_PARENT = """
import pathlib, sys
from htnet_jax.datasets import process
from fakes import work

def main(argv):
    items = [(pathlib.Path(argv[1]), number) for number in range(8)]
    list(process.run(work.begin_and_sleep, items, workers=2, title="test"))

if __name__ == "__main__":
    from htnet_jax import errors
    errors.run_command(main)
"""


def _members(group):
    """Names of a process group's members that run: in a container nobody buries the dead."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, fields = path.read_text().rpartition(")")
            state, _, of = fields.split()[:3]
            if int(of) == group and state != "Z":
                found.append(name)
    return found


@pytest.mark.parametrize(
    ("folder_name", "number"),
    [("tmp", signal.SIGKILL), ("tmp", signal.SIGTERM), ("a-long-name" * 10, signal.SIGKILL)],
)
def test_workers_end_with_their_parent_however_it_ends(tmp_path, folder_name, number):
    """Also where TMPDIR is too long for a socket, so that workers start in another way."""
    temporary = tmp_path / folder_name
    temporary.mkdir()
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    begun = tmp_path / "begun"
    begun.mkdir()
    tests = pathlib.Path(__file__).parents[1]
    environment = os.environ | {"TMPDIR": str(temporary)}
    environment["PYTHONPATH"] = os.pathsep.join([str(tests), str(tests.parent)])
    parent = subprocess.Popen(
        [sys.executable, str(script), str(begun)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while len(list(begun.iterdir())) < 2 and parent.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert parent.poll() is None, parent.stdout.read()
        parent.send_signal(number)
        deadline = time.monotonic() + 5
        # Whoever still runs would hold the other end of the pipe.
        output, _ = parent.communicate(timeout=5)
        assert b"Traceback" not in output
        assert (b"give this command again" in output) == (number == signal.SIGTERM)
        assert parent.returncode == (143 if number == signal.SIGTERM else -number)
        while left := _members(parent.pid):
            assert time.monotonic() < deadline, left
            time.sleep(0.05)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


def test_the_cores_of_this_process():
    assert io.core_count() == len(os.sched_getaffinity(0))


@pytest.fixture
def job(tmp_path, faces):
    clip = faces(0, 1)
    folder = tmp_path / "clip"
    folder.mkdir()
    for number, index in ((1, clip.onset), (2, clip.apex)):
        assert cv2.imwrite(str(folder / f"img{number}.png"), clip.frames[index])
    chosen = recipe.make(flow="farneback", align="none", landmarks="template")
    return process.Job(survey.RawClip("x", "s1", "c1", "happy", folder, 1, 2, 2), chosen)


@pytest.fixture
def kept(tmp_path):
    (tmp_path / "kept").mkdir()
    return process.Kept(tmp_path / "kept")


def test_what_is_kept_comes_back(job, kept):
    assert kept.load(job) is None
    inspection = process.inspect(job)
    process.keep_tensor((kept.path(job), job, inspection))
    found = kept.load(job)
    steps = process.compute(job, inspection)
    np.testing.assert_array_equal(found["tensor"], steps.tensor)
    np.testing.assert_array_equal(found["landmarks"], steps.landmarks)
    assert [path.name for path in kept.folder.iterdir()] == [f"{job.digest}.npz"]
    kept.clear()
    assert not kept.folder.exists()
    kept.clear()


@pytest.fixture
def whole(job, kept):
    process.keep_tensor((kept.path(job), job, process.inspect(job)))
    return kept.path(job).read_bytes()


@pytest.mark.parametrize(
    "change",
    [
        {"tensor": np.zeros((1000, 1000, 3), np.float32)},
        {"tensor": np.zeros((28, 28, 3), np.float64)},
        {"landmarks": np.array([None] * 10).reshape(5, 2)},
        {"landmarks": None},
    ],
)
def test_arrays_of_another_kind_are_ignored(job, kept, whole, change):
    found = {**kept.load(job), **change}
    np.savez_compressed(kept.path(job), **{k: v for k, v in found.items() if v is not None})
    start = time.process_time()
    assert kept.load(job) is None
    assert time.process_time() - start < 1


@pytest.mark.parametrize("share", [0, 0.0001, 0.001, 0.01, 0.5, 0.99, 0.9999])
def test_a_file_that_was_cut_is_ignored(job, kept, whole, share):
    kept.path(job).write_bytes(whole[: int(len(whole) * share)])
    assert kept.load(job) is None


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_a_file_with_zeros_in_it_is_ignored(job, kept, whole, share):
    """As a power cut leaves them."""
    start = int(len(whole) * share)
    length = len(whole[start:])
    kept.path(job).write_bytes(whole[:start] + bytes(length))
    assert kept.load(job) is None


def test_a_file_with_one_changed_byte_is_ignored(job, kept, whole):
    spoilt = bytearray(whole)
    spoilt[len(whole) // 2] ^= 1
    kept.path(job).write_bytes(spoilt)
    assert kept.load(job) is None


def test_other_files_are_ignored(job, kept):
    path = kept.path(job)
    path.write_text("not an archive")
    assert kept.load(job) is None
    np.savez(path, tensor=np.zeros(3))  # No landmarks.
    assert kept.load(job) is None
    objects = np.array([types.SimpleNamespace()], dtype=object)
    np.savez(path, tensor=objects, landmarks=objects)
    assert kept.load(job) is None
    path.unlink()
    path.mkdir()
    assert kept.load(job) is None


def test_a_folder_that_cannot_be_written(job, kept):
    kept.clear()
    with pytest.raises(UserError, match="cannot be written"):
        process.keep_tensor((kept.path(job), job, process.inspect(job)))


# What is wrong with single frames reaches the audit.


def _deep(clip, depth):
    for path in clip.folder.iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16)
        assert cv2.imwrite(str(path), image << (depth - 8))
    os.utime(clip.folder, ns=(depth, depth))


@pytest.mark.parametrize("depth", [10, 12, 16])
def test_bits_of_a_clip(clip, depth):
    job = process.Job(clip, TEMPLATE)
    digest, before = job.digest, _compute(job)
    _deep(clip, depth)
    inspection = process.inspect(job)
    said = [(f.kind, f.is_problem, f.what) for f in inspection.findings]
    what = f"16-bit images with values of {depth} bits: the lowest {depth - 8} are dropped"
    assert said == ([] if depth == 16 else [("note", False, what)])
    np.testing.assert_array_equal(process.compute(job, inspection).tensor, before.tensor)
    assert job.digest != digest


def test_a_damaged_apex_is_a_finding(clip):
    clip = dataclasses.replace(clip, folder=clip.folder.with_name("jpeg"))
    clip.folder.mkdir()
    for path in clip.folder.with_name("clip").iterdir():
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert cv2.imwrite(str(clip.folder / f"{path.stem}.jpg"), image)
    apex = clip.folder / f"img{clip.apex}.jpg"
    data = bytearray(apex.read_bytes())
    half = len(data) // 2
    data[half : half + 300] = np.random.default_rng(0).bytes(300)
    apex.write_bytes(data)
    (finding,) = process.inspect(process.Job(clip, TEMPLATE)).findings
    assert (finding.kind, finding.drops, finding.clip) == ("image", True, clip.id)
    assert f"{apex.name}: damaged: the decoder says" in finding.what
