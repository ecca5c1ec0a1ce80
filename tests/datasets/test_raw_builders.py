"""From a tree as distributed to flow tensors, leave-one-subject-out and a report."""

import hashlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow_datasets as tfds
from fakes import casme2, casme3, fourdme, mmew, samm, smic
from fakes.linear import Linear
from htnet_jax.datasets.audit import Audit
from ml_collections import ConfigDict

from htnet_jax import models
from htnet_jax.config import default_config
from htnet_jax.datasets import loading, pool, raw_builder
from htnet_jax.errors import UserError
from htnet_jax.training import experiment

FAKES = {
    "casme2": casme2,
    "casme3": casme3,
    "fourdme": fourdme,
    "mmew": mmew,
    "samm": samm,
    "smic": smic,
}
RECIPE = "farneback_28+align-none+landmarks-template"
INCOMPLETE = raw_builder.Options(workers=1, allow_incomplete=True)


@pytest.fixture(scope="module")
def copies(tmp_path_factory, faces):
    """Name -> folder with a small copy of the data set."""
    root = tmp_path_factory.mktemp("copies")
    for name, fake in FAKES.items():
        (root / name).mkdir()
        fake.write(root / name, faces)
    (root / "megc2019").mkdir()
    for name in ("casme2", "smic", "samm"):
        (root / "megc2019" / name.upper()).symlink_to(root / name)
    return root


@pytest.fixture(scope="module")
def built(copies, tmp_path_factory):
    """Name -> what `loading.prepare` returned, built once."""
    data_dir = str(tmp_path_factory.mktemp("data"))
    found = {}

    def get(name):
        if name not in found:
            found[name] = loading.prepare(
                name,
                config=RECIPE,
                manual_dir=str(copies / name),
                data_dir=data_dir,
                options=INCOMPLETE,
            )
        return found[name]

    get.data_dir = data_dir
    return get


def metadata(folder):
    return json.loads((Path(folder) / "metadata.json").read_text())


def train(name, recipe, classes, data_dir, workdir):
    """Leave-one-subject-out with the linear network."""
    config = default_config()
    config.update({"epochs": 2, "batch_size": 2, "folds_per_device": 1, "checkpoints": "none"})
    config.model = ConfigDict({"name": "Linear", "num_classes": classes, "image_size": 28})
    config.dataset.update(
        {"name": name, "config": recipe, "data_dir": data_dir, "scaling": "minmax_255"}
    )
    with mock.patch.dict(models.MODELS, Linear=Linear):
        return experiment.run(config, workdir)


@pytest.mark.parametrize("name", [*FAKES, "megc2019"])
def test_from_the_tree_to_a_report(name, built, tmp_path):
    arrays, folder = built(name)
    assert arrays.flow.shape == (len(arrays.clips), 28, 28, 3)
    assert np.abs(arrays.flow[..., :2]).max(axis=(1, 2, 3)).min() > 0.01  # Every face moves.
    found = metadata(folder)
    assert found["clips"] == len(arrays.clips)
    assert "flow=farneback,size=28,align=none" in found["recipe"]
    # Numbers of 4DME and MMEW are not published in a form that could be enforced.
    enforced = name not in ("fourdme", "mmew")
    assert any(line.startswith("count") for line in found["incomplete"]) == enforced
    run = train(name, RECIPE, 3, built.data_dir, tmp_path / "run")
    assert len(run.predictions.clips) == len(arrays.clips)
    assert "UF1" in (tmp_path / "run" / "report.html").read_text()


def test_the_composite_has_the_tensors_of_its_parts(built):
    whole, _ = built("megc2019")
    rows = {clip: index for index, clip in enumerate(whole.clips)}
    assert [c.split("/")[0] for c in whole.clips] == sorted(
        (c.split("/")[0] for c in whole.clips), key=["casme2", "smic", "samm"].index
    )
    common = 0
    for name in ("casme2", "smic", "samm"):
        part, _ = built(name)
        for index, clip in enumerate(part.clips):
            if clip in rows:
                common += 1
                np.testing.assert_array_equal(whole.flow[rows[clip]], part.flow[index])
                np.testing.assert_array_equal(whole.landmarks[rows[clip]], part.landmarks[index])
                assert whole.labels[rows[clip]] == part.labels[index]
    assert common == len(rows) > 0


def test_without_permission_an_incomplete_copy_is_one_report(copies, tmp_path):
    with pytest.raises(UserError) as caught:
        loading.prepare(
            "samm", config=RECIPE, manual_dir=str(copies / "samm"), data_dir=str(tmp_path)
        )
    assert "--allow-incomplete" in str(caught.value)
    assert "count" in str(caught.value)
    audit = tmp_path / "samm" / f"audit_{RECIPE}.csv"
    assert audit.read_text().startswith("kind,clip,where,what,drops\n")
    assert not (tmp_path / "samm" / RECIPE / "1.0.0").exists()


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).iterdir())
    }


def test_two_workers_give_the_bytes_of_one(copies, built, tmp_path):
    _, folder = built("samm")
    options = raw_builder.Options(workers=2, allow_incomplete=True)
    _, other = loading.prepare(
        "samm",
        config=RECIPE,
        manual_dir=str(copies / "samm"),
        data_dir=str(tmp_path),
        options=options,
    )
    assert digests(folder) == digests(other)


def test_an_interrupted_build_goes_on_with_what_is_finished(copies, built, tmp_path):
    _, folder = built("samm")
    original = pool.keep_tensor
    calls = []

    def interrupted(task):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(task)
        original(task)

    arguments = {
        "config": RECIPE,
        "manual_dir": str(copies / "samm"),
        "data_dir": str(tmp_path),
        "options": INCOMPLETE,
    }
    with (
        mock.patch.object(pool, "keep_tensor", interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        loading.prepare("samm", **arguments)
    unfinished = tmp_path / "samm" / f"unfinished_{RECIPE}"
    assert len(list(unfinished.glob("*.npz"))) == 3
    # One file is spoilt, as a power cut might.
    next(unfinished.glob("*.npz")).write_bytes(b"PK")
    again = []
    with mock.patch.object(pool, "keep_tensor", lambda task: (again.append(task), original(task))):
        arrays, other = loading.prepare("samm", **arguments)
    assert len(again) == len(arrays.clips) - 2
    assert digests(folder) == digests(other)
    assert not unfinished.exists()


def test_two_recipes_live_side_by_side(copies, built, tmp_path):
    """Here of two label sets; the second one trains as the first does."""
    first, _ = built("samm")
    name = f"{RECIPE}+labels-five"
    second, folder = loading.prepare(
        "samm",
        config=name,
        manual_dir=str(copies / "samm"),
        data_dir=built.data_dir,
        options=INCOMPLETE,
    )
    assert second.class_names == ("anger", "contempt", "happiness", "surprise", "other")
    assert metadata(folder)["recipe_hash"] != metadata(built("samm")[1])["recipe_hash"]
    assert loading.load("samm", config=RECIPE, data_dir=built.data_dir).name == first.name
    run = train("samm", name, 5, built.data_dir, tmp_path / "run")
    assert run.predictions.class_names.tolist() == list(second.class_names)
    assert np.shape(run.summary["final"]["composite"]["confusion"]) == (5, 5)


def test_tfds_knows_the_builders():
    for name in FAKES:
        builder = tfds.builder_cls(name)
        assert issubclass(builder, raw_builder.RawBuilder)
        assert "tvl1_28" in builder.builder_configs


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("tvl2_28", "flow='tvl2' is unknown"),
        ("tvl1_29", "size='29' is unknown"),
        ("tvl1_28+labels-six", "labels='six' is unknown"),
        ("tvl1_28+labels-objective", "has no labels=objective"),
        ("tvl1_28+variant-uv", "has no variant 'uv'"),
        ("tvl1_28+align-onset", "its usual name is 'tvl1_28'"),
        ("tvl1_28+landmarks-template", "add align=none"),
    ],
)
def test_wrong_recipes(copies, tmp_path, config, message):
    with pytest.raises(UserError) as caught:
        loading.prepare(
            "smic", config=config, manual_dir=str(copies / "smic"), data_dir=str(tmp_path)
        )
    assert message in str(caught.value)


def test_an_audit_reports_by_kind_and_drops_only_clips():
    audit = Audit()
    audit.add("count", "samm", "158 clips")
    audit.add("onset", "folder", "frame 3 is not there", clip="samm/006/006_1_2")
    audit.add("offset", "folder", "frame 9 is not there", clip="samm/006/006_1_3", drops=False)
    audit.note("row 4", "apex mended", clip="samm/006/006_1_4", kind="corrected")
    assert audit.dropped == {"samm/006/006_1_2"}
    assert [finding.kind for finding in audit.errors] == ["count", "onset", "offset"]
    with pytest.raises(UserError, match="3 findings, 2 clips concerned"):
        audit.raise_if_errors("samm", "Mend it.")
