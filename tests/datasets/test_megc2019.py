"""The megc2019 builder: what it stores, and what it refuses."""

import csv
import os
import pathlib

import numpy as np
import pytest
import tensorflow_datasets as tfds

import htnet_jax.datasets
from htnet_jax.datasets import megc2019_release as release
from htnet_jax.motion import regions


def _build(manual_dir, data_dir, config):
    builder = tfds.builder("megc2019", config=config, data_dir=data_dir)
    settings = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    builder.download_and_prepare(download_config=settings)
    return tfds.builder("megc2019", config=config, data_dir=data_dir)


def test_release_is_the_default_config():
    assert htnet_jax.datasets.BUILDERS["megc2019"].name == "megc2019"
    configs = list(htnet_jax.datasets.Megc2019.builder_configs)
    releases = ["release", "release_partial", "release_dlib", "release_dlib_partial"]
    assert configs[:4] == releases
    assert "tvl1_28" in configs[4:]


def test_build_stores_the_files_as_they_are(tree, tmp_path, capfd):
    tree.write()
    builder = _build(tree.folder, tmp_path / "data", "release_partial")
    examples = builder.as_data_source(split="train")
    assert [example["clip"] for example in examples] == [
        b"samm/096/096_1_2",
        b"casme2/sub91/EP01_01",
        b"casme2/sub91/EP01_02",
        b"smic/s95/s95_po_01",
    ]
    assert [example["subject"] for example in examples] == [b"096", b"sub91", b"sub91", b"s95"]
    assert [example["source"] for example in examples] == [b"samm", b"casme2", b"casme2", b"smic"]
    assert [example["label"] for example in examples] == [2, 0, 1, 1]
    assert examples[0]["emotion"] == b"surprise"
    for index, example in enumerate(examples):
        assert example["flow"].dtype == np.float32
        np.testing.assert_array_equal(example["flow"], tree.picture(index))
    np.testing.assert_array_equal(
        examples[0]["landmarks"], [[9, 10], [19.5, 10], [14, 15], [10, 20], [18, 20]]
    )
    np.testing.assert_array_equal(examples[1]["landmarks"], regions.TEMPLATE_POINTS)
    # As in the file, before any clipping.
    np.testing.assert_array_equal(examples[3]["landmarks"][0], [9, -6])

    metadata = builder.info.metadata
    assert metadata["clips"] == 4
    assert metadata["subjects"] == 3
    assert metadata["per_source"]["casme2"] == {
        "negative": 1,
        "positive": 1,
        "surprise": 0,
        "subjects": 1,
    }
    assert metadata["landmarks"] == {"detected": 2, "template_in_file": 1, "template_no_row": 1}
    assert metadata["landmarks_outside"] == ["smic/s95/s95_po_01"]
    assert "all sources: 4 clips, the composite has 442" in metadata["differences"]

    shown = capfd.readouterr().err
    assert "2 clips with detected points, 1 with the template rows" in shown
    assert "1 without a row there" in shown
    assert "up to 5.5 pixels outside" in shown
    assert "not the full composite: smic: 0 negative clips, the composite has 70" in shown


def test_description_and_citation_come_from_the_files_beside_the_builder(tmp_path):
    builder = tfds.builder("megc2019", data_dir=tmp_path)
    assert "442 spontaneous micro-expression clips" in builder.info.description
    assert "see2019megc" in builder.info.citation
    valid = tfds.core.dataset_metadata.valid_tags()
    tags = builder.get_metadata().tags
    assert tags
    assert set(tags) <= set(valid)


def test_the_real_release(tmp_path):
    root = os.environ.get("HTNET_DATA", "")
    manual_dir = pathlib.Path(root) / "megc2019"
    if not root or not manual_dir.is_dir():
        pytest.skip("set HTNET_DATA to the folder that holds megc2019/ (the released flows)")
    builder = _build(manual_dir, tmp_path, "release")
    metadata = builder.info.metadata
    assert metadata["clips"] == 442
    assert metadata["subjects"] == 68
    assert metadata["differences"] == []
    assert metadata["landmarks"] == {
        "detected": 270,
        "template_in_file": 172,
        "template_no_row": 0,
    }
    examples = list(builder.as_data_source(split="train"))
    with (manual_dir / release.CLIP_LIST).open(newline="") as file:
        listed = [f"{row[0]}/{row[1]}/{row[2]}".encode() for row in list(csv.reader(file))[1:]]
    assert [example["clip"] for example in examples] == listed
    flows = np.stack([example["flow"] for example in examples])
    # Each released channel is min-max scaled to 0..255 a clip.
    assert flows.min() == 0
    assert flows.max() == 255
    np.testing.assert_array_equal(flows, np.round(flows))
    template = np.all(
        np.stack([example["landmarks"] for example in examples]) == regions.TEMPLATE_POINTS,
        axis=(1, 2),
    )
    assert template.sum() == 172
