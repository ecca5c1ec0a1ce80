"""A tiny hand-made release tree with invented subjects."""

import csv
import dataclasses
import functools
import pathlib

import cv2
import numpy as np
import pytest

from htnet_jax.datasets.synthetic import recipe, rendering

PNG_FOLDER = "STSNet_whole_norm_u_v_os"
CLIP_LIST = "combined_3_class2_for_optical_flow.csv"
LANDMARKS = "landmarks_mtcnn_28px.csv"


@dataclasses.dataclass
class ReleaseTree:
    """Rows and pictures as they should be; tests spoil them before or after `write`."""

    folder: pathlib.Path
    header: list = dataclasses.field(
        default_factory=lambda: ["dataset", "sub", "filename_o", "label", "apex", "imagename"]
    )
    rows: list = dataclasses.field(
        default_factory=lambda: [
            ["samm", "096", "096_1_2", "2", "", "a.jpg"],
            ["casme2", "sub91", "EP01_01", "0", "", "b.jpg"],
            ["casme2", "sub91", "EP01_02", "1", "", "c.jpg"],
            ["smic", "s95", "s95_po_01", "1", "", "d.jpg"],
        ]
    )
    landmark_header: list = dataclasses.field(
        default_factory=lambda: [
            *["sub", "filename_o", "detected", "left_eye_x", "left_eye_y", "right_eye_x"],
            *["right_eye_y", "nose_x", "nose_y", "left_mouth_x", "left_mouth_y"],
            *["right_mouth_x", "right_mouth_y"],
        ]
    )
    # The second clip has no row; the third has a template row; the fourth lies 6 px outside.
    landmark_rows: list = dataclasses.field(
        default_factory=lambda: [
            ["096", "096_1_2", "1", 9, 10, 19.5, 10, 14, 15, 10, 20, 18, 20],
            ["sub91", "EP01_02", "0", 9.5, 11, 21, 11, 15, 17, 10, 22, 20.5, 22],
            ["s95", "s95_po_01", "1", 9, -6, 19, 10, 14, 15, -2, 20, 29.25, 20],
        ]
    )

    def picture(self, index):
        """The (28, 28, 3) uint8 picture of a row: u, v, strain all different."""
        row, column = np.mgrid[:28, :28]
        return np.stack([row + index, 100 + column, 200 - row], axis=-1).astype(np.uint8)

    def png(self, index, stray_space=True):
        stem = "_".join(self.rows[index][1:3])
        return self.folder / PNG_FOLDER / f"{stem}{' ' if stray_space else ''}.png"

    def write(self, stray_space=True):
        (self.folder / PNG_FOLDER).mkdir(parents=True)
        for index in range(len(self.rows)):
            rgb = self.picture(index)
            assert cv2.imwrite(str(self.png(index, stray_space)), rgb[..., ::-1])
        self.write_clips()
        self.write_landmarks()
        return self

    def write_clips(self):
        self._csv(CLIP_LIST, self.header, self.rows)

    def write_landmarks(self):
        self._csv(LANDMARKS, self.landmark_header, self.landmark_rows)

    def _csv(self, name, header, rows):
        with (self.folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])


@pytest.fixture
def tree(tmp_path):
    return ReleaseTree(tmp_path / "manual")


@pytest.fixture(scope="session")
def faces():
    """`faces(subject, label)` -> a rendered clip with its frames, points and true flow."""
    planned = recipe.plan(0, 4, 12)
    subjects = list(dict.fromkeys(clip.subject for clip in planned))

    @functools.cache
    def render(subject, label):
        of = (c for c in planned if c.subject == subjects[subject] and c.label == label)
        return rendering.render_clip(0, next(of))

    return render
