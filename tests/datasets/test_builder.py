"""From a tree as distributed to flow tensors, leave-one-subject-out and a report."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import ClassVar
from unittest import mock

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from fakes import casme2, casme3, fourdme, mmew, samm, smic
from fakes.linear import Linear
from ml_collections import ConfigDict

from htnet_jax import datasets, models
from htnet_jax.config import default_config
from htnet_jax.datasets import builder, loading, process
from htnet_jax.datasets.labels import own_classes
from htnet_jax.datasets.survey import Counts, RawClip
from htnet_jax.errors import UserError
from htnet_jax.motion import flow
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
CLIPS = f"{RECIPE}+frames-6+clip-28"
INCOMPLETE = builder.Options(workers=1, allow_incomplete=True)


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
    """Name, recipe -> what `loading.prepare` returned, built once."""
    data_dir = str(tmp_path_factory.mktemp("data"))

    @functools.cache
    def get(name, recipe=RECIPE):
        return loading.prepare(
            name,
            config=recipe,
            manual_dir=str(copies / name),
            data_dir=data_dir,
            options=INCOMPLETE,
        )

    get.data_dir = data_dir
    return get


def metadata(folder):
    return json.loads((Path(folder) / "metadata.json").read_text())


def train(name, recipe, classes, data_dir, workdir, labels=""):
    """Leave-one-subject-out with the linear network."""
    config = default_config()
    config.update({"epochs": 2, "batch_size": 2, "folds_per_device": 1, "checkpoints": "none"})
    config.model = ConfigDict({"name": "Linear", "num_classes": classes, "image_size": 28})
    config.dataset.update(
        {"name": name, "config": recipe, "data_dir": data_dir, "labels": labels}
        | {"scaling": "minmax_255"}
    )
    with mock.patch.dict(models.MODELS, Linear=Linear):
        return experiment.run(config, workdir)


@pytest.mark.parametrize("name", [*FAKES, "megc2019"])
def test_from_the_tree_to_tensors(name, built):
    arrays, folder = built(name)
    assert arrays.flow.shape == (len(arrays.clips), 28, 28, 3)
    assert np.abs(arrays.flow[..., :2]).max(axis=(1, 2, 3)).min() > 0.01  # Every face moves.
    found = metadata(folder)
    assert found["clips"] == sum(found["emotions"].values()) >= len(arrays.clips)
    assert "flow=farneback,size=28,align=none" in found["recipe"]
    # Numbers of 4DME and MMEW are not published in a form that could be enforced.
    enforced = name not in ("fourdme", "mmew")
    assert any(line.startswith("count") for line in found["incomplete"]) == enforced


def test_from_tensors_to_a_report(built, tmp_path):
    arrays, _ = built("megc2019")
    run = train("megc2019", RECIPE, 3, built.data_dir, tmp_path / "run")
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
    assert not (tmp_path / "samm" / RECIPE / "3.0.0").exists()


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(folder).iterdir())
    }


@pytest.mark.parametrize("name", [*FAKES, "megc2019"])
def test_clips_of_frames_with_flow(name, built, capfd):
    arrays, folder = built(name, CLIPS)
    bank = arrays.frames
    assert (bank.evenly, bank.pixels.shape[1:]) == (6, (28, 28, 3))
    assert (bank.flow.shape[:-1], bank.flow.dtype) == (bank.pixels.shape[:-1], np.float16)
    for start, end in zip(bank.onset[:, 1], bank.apex[:, 2], strict=True):
        gray = [cv2.cvtColor(face, cv2.COLOR_RGB2GRAY) for face in bank.pixels[start:end]]
        found = [flow.optical_flow(gray[0], face, "farneback") for face in gray[1:]]
        assert not bank.flow[start].any()
        np.testing.assert_array_equal(bank.flow[start + 1 : end], np.float16(found))
    assert np.abs(bank.flow[bank.apex[:, 1]]).max(axis=(1, 2, 3)).min() > 0.01  # All faces move.
    # From onset to offset, evenly as far as there are frames: SMIC's and MMEW's clips have five.
    rows = bank.rows_evenly(6)
    moments = np.linspace(bank.span[:, 0], bank.span[:, 2], 6, axis=1)
    assert np.abs(bank.numbers[rows] - moments).max() <= 0.5
    np.testing.assert_array_equal(rows[:, 0], bank.onset[:, 1])
    short = {"smic": 10, "mmew": 10, "megc2019": 10}.get(name, 0)
    about = metadata(folder)["frames"]
    assert (about["side"], about["flow"], about["repeating"]) == (28, "farneback", short)
    assert about["stored"] >= len(bank.pixels)
    assert f"{short} clips with fewer than 6 frames" in capfd.readouterr().err
    # The tensors are those of a recipe without frames; action units are there in both.
    plain, _ = built(name)
    np.testing.assert_array_equal(arrays.flow, plain.flow)
    np.testing.assert_array_equal(arrays.action_units, plain.action_units)
    assert any(arrays.action_units) == (name != "smic")
    assert arrays.fingerprint != plain.fingerprint


def test_sixteen_is_built_under_the_name_of_what_it_stands_for():
    for name in FAKES:
        chosen = datasets.BUILDERS[name].config_of("dis_28+frames-sixteen")
        assert chosen.name == "dis_28+frames-16+clip-112"
        assert chosen.description.endswith(",frames=16,clip=112")


def test_two_workers_give_the_bytes_of_one(copies, built, tmp_path):
    _, folder = built("samm", CLIPS)
    options = builder.Options(workers=2, allow_incomplete=True)
    _, other = loading.prepare(
        "samm",
        config=CLIPS,
        manual_dir=str(copies / "samm"),
        data_dir=str(tmp_path),
        options=options,
    )
    assert digests(folder) == digests(other)


def test_an_interrupted_build_goes_on_with_what_is_finished(copies, built, tmp_path):
    _, folder = built("samm")
    original = process.keep_tensor
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
        mock.patch.object(process, "keep_tensor", interrupted),
        pytest.raises(KeyboardInterrupt),
    ):
        loading.prepare("samm", **arguments)
    unfinished = tmp_path / "samm" / f"unfinished_{RECIPE}"
    assert len(list(unfinished.glob("*.npz"))) == 3
    # One file is spoilt, as a power cut might.
    next(unfinished.glob("*.npz")).write_bytes(b"PK")
    again = []
    with mock.patch.object(
        process, "keep_tensor", lambda task: again.append(task) or original(task)
    ):
        _, other = loading.prepare("samm", **arguments)
    assert len(again) == metadata(other)["clips"] - 2
    assert digests(folder) == digests(other)
    assert not unfinished.exists()


def test_label_sets_need_no_other_build(built, tmp_path):
    default, folder = built("samm")
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    found = {
        name: loading.load("samm", config=RECIPE, data_dir=built.data_dir, labels=name)
        for name in ("", "megc3", "five", "own", "objective")
    }
    assert found[""].fingerprint == found["megc3"].fingerprint == default.fingerprint
    assert {name: len(arrays.clips) for name, arrays in found.items()} == {
        **{"": 11, "megc3": 11, "five": 9, "own": 12, "objective": 12}
    }
    assert len({arrays.fingerprint for arrays in found.values()}) == 4
    five = found["five"]
    assert five.class_names == ("anger", "contempt", "happiness", "surprise", "other")
    assert [five.class_names[label] for label in five.labels] == five.emotions.tolist()
    objective = found["objective"]
    np.testing.assert_array_equal(objective.labels, objective.objective - 1)
    assert objective.of(objective.labels == 0).objective.tolist() == [1, 1, 1]
    # The same clips in the same order, whatever their classes.
    kept = np.isin(found["own"].clips, default.clips)
    np.testing.assert_array_equal(found["own"].of(kept).flow, default.flow)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps
    run = train("samm", RECIPE, 5, built.data_dir, tmp_path / "run", labels="five")
    assert run.predictions.class_names.tolist() == list(five.class_names)
    assert np.shape(run.summary["final"]["composite"]["confusion"]) == (5, 5)


def test_a_label_set_without_clips_is_refused(built):
    built("casme2")  # whose sheet has no objective classes
    with pytest.raises(UserError, match=r"no clip of the classes I, II.*dataset\.labels"):
        loading.load("casme2", config=RECIPE, data_dir=built.data_dir, labels="objective")


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("casme2", "megc3, five, own, objective, mmnet5, mmnet3"),
        ("smic", "megc3, own"),
        ("megc2019", "megc3"),
        ("synthetic", "megc3"),
    ],
)
def test_unknown_label_sets_are_refused_before_anything_is_built(name, known, tmp_path):
    with pytest.raises(UserError) as caught:
        loading.load(name, labels="six", data_dir=str(tmp_path), manual_dir=str(tmp_path))
    assert str(caught.value) == f"{name} has no labels=six; use one of {known}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
def test_what_an_older_version_built_is_refused_with_the_command(copies, tmp_path, version):
    """It holds the clips and classes of one label set, or action units that are none."""
    old = tmp_path / "samm" / RECIPE / version
    old.mkdir(parents=True)
    (old / "dataset_info.json").write_text("{}")
    command = "python -m htnet_jax.prepare --dataset=samm --recipe={} --manual_dir=FOLDER"
    with pytest.raises(UserError) as caught:
        loading.load("samm", config=RECIPE, data_dir=str(tmp_path))
    assert f"{old} was built by an older version" in str(caught.value)
    assert command.format(RECIPE) in str(caught.value)
    assert loading.built("samm", config=RECIPE, data_dir=str(tmp_path)) is None
    # Recipes named their label set.
    with pytest.raises(UserError) as caught:
        loading.load("samm", config="tvl1_28+labels-five+frames-pair", data_dir=str(tmp_path))
    assert "'tvl1_28+frames-pair' with dataset.labels=five" in str(caught.value)
    assert command.format("tvl1_28+frames-pair") in str(caught.value)
    # With the source files at hand it is built again, beside the old one.
    where = {"manual_dir": str(copies / "samm"), "data_dir": str(tmp_path)}
    arrays, folder = loading.prepare("samm", config=RECIPE, options=INCOMPLETE, **where)
    assert (len(arrays.clips), folder.name) == (11, "3.0.0")


def test_tfds_knows_the_builders():
    for name in FAKES:
        found = tfds.builder_cls(name)
        assert issubclass(found, builder.RawBuilder)
        assert "tvl1_28" in found.builder_configs
        metadata = found.get_metadata()
        assert metadata.citation.startswith("@")
        assert set(metadata.tags) <= set(tfds.core.dataset_metadata.valid_tags())
        assert len(metadata.description) > 500


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("tvl2_28", "flow='tvl2' is unknown"),
        ("tvl1_29", "size='29' is unknown"),
        ("tvl1_28+labels-six", "labels are chosen on loading"),
        ("tvl1_28+variant-uv", "has no variant 'uv'"),
        ("tvl1_28+variant-../../../x", "variant='../../../x' is no name"),
        ("tvl1_28+align-onset", "its usual name is 'tvl1_28'"),
        ("tvl1_28+landmarks-template", "add align=none"),
    ],
)
def test_wrong_recipes(copies, tmp_path, config, message):
    with pytest.raises(UserError) as caught:
        loading.prepare(
            "smic", config=config, manual_dir=str(copies / "smic"), data_dir=str(tmp_path / "data")
        )
    assert message in str(caught.value)
    assert not [*tmp_path.iterdir()]  # no folder is named after what is refused


class Toy(builder.RawBuilder, skip_registration=True):
    """All that a data set needs: its labels, and where its clips are."""

    HOMEPAGE = "https://example.org"
    MANUAL_DOWNLOAD_INSTRUCTIONS = "the manual directory must hold SUBJECT/EMOTION/1.png"
    LABELS: ClassVar = {"own": own_classes("joy anger")}
    COUNTS = (Counts("toy", clips=3, subjects=2, emotions={"joy": 2, "anger": 1}),)

    @classmethod
    def survey(cls, tree, variant, audit):
        return [
            RawClip(cls.name, folder.parent.name, folder.name, folder.name, folder, 1, 2, 3)
            for folder in tree.names("joy|anger|calm")
        ]


def test_a_data_set_is_one_class(faces, tmp_path):
    root = tmp_path / "copy"
    for subject, emotion in (("s1", "joy"), ("s1", "calm"), ("s2", "joy"), ("s2", "anger")):
        face = faces(int(subject[1]), 0)
        (root / subject / emotion).mkdir(parents=True)
        for number, index in enumerate((face.onset, face.apex, face.offset), start=1):
            path = root / subject / emotion / f"{number}.png"
            assert cv2.imwrite(str(path), face.frames[index])
    where = {"config": RECIPE, "manual_dir": str(root), "data_dir": str(tmp_path / "data")}
    with mock.patch.dict(datasets.BUILDERS, toy=Toy):
        with pytest.raises(UserError, match="4 clips, the published data set has 3"):
            loading.load("toy", **where)
        with pytest.raises(UserError, match="toy has no variant 'raw'; leave it out"):
            loading.load("toy", **where | {"config": f"{RECIPE}+variant-raw"})
        arrays, folder = loading.prepare("toy", options=INCOMPLETE, **where)
    assert arrays.clips.tolist() == ["toy/s1/joy", "toy/s2/anger", "toy/s2/joy"]
    assert arrays.class_names == ("joy", "anger")
    assert arrays.labels.tolist() == [0, 1, 0]
    assert metadata(folder)["emotions"] == {"calm": 1, "joy": 2, "anger": 1}


def test_strays_and_damage_are_in_every_report(faces, tmp_path, capfd):
    root, data = tmp_path / "manual", tmp_path / "data"
    clips = casme2.write(root, faces)
    strays = ("39 (1).jpg", "mean_face2.jpg")
    for name in strays:
        (clips[0].folder / name).write_text("no image")
    apex = clips[1].folder / f"img{clips[1].apex}.jpg"
    content = bytearray(apex.read_bytes())
    half = len(content) // 2
    content[half : half + 300] = np.random.default_rng(0).bytes(300)
    apex.write_bytes(content)
    arguments = {"config": RECIPE, "manual_dir": str(root), "data_dir": str(data)}
    with pytest.raises(UserError) as caught:
        loading.build("casme2", **arguments, options=builder.Options(workers=1))
    options = dataclasses.replace(INCOMPLETE, preview=len(clips))
    stored = loading.build("casme2", **arguments, options=options)
    # The strays do no harm; the clip with the damage is left out.
    built = {example["clip"].decode() for example in stored.examples}
    assert clips[0].id in built
    assert clips[1].id not in built
    places = {
        "refusal": str(caught.value),
        "audit": next(data.glob("**/audit_*.csv")).read_text(),
        "preview": next(data.glob("**/preview_*.html")).read_text(),
        "terminal": capfd.readouterr().err,
        "built": json.dumps(metadata(stored.folder)),
    }
    for place, text in places.items():
        for name in strays:
            assert f"{name} is not used" in text, place
        assert f"{apex.name}: damaged" in text, place
        assert clips[1].id in text, place
