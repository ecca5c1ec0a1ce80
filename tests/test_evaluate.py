import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from htnet_jax import evaluate
from htnet_jax.datasets import loading
from htnet_jax.errors import UserError
from htnet_jax.evaluation import page
from htnet_jax.evaluation.figures import Drawn
from htnet_jax.evaluation.predictions import Predictions
from htnet_jax.training import finished
from htnet_jax.training.plan import Plan, Result, Store

ROOT = Path(__file__).parents[1]


def predictions(**changes):
    """A run of 2 subjects with three clips each; the last epoch is right everywhere."""
    fields = {
        "logits": np.stack([np.zeros((6, 3)), np.eye(3)[[0, 1, 2] * 2]])[None].astype(np.float32),
        "seeds": [0],
        "epochs": [1, 2],
        "fold": [0, 0, 0, 1, 1, 1],
        "folds": ["s1", "s2"],
        "clips": list("abcdef"),
        "subjects": ["s1"] * 3 + ["s2"] * 3,
        "sources": ["synthetic"] * 6,
        "labels": [0, 1, 2] * 2,
        "class_names": ["negative", "positive", "surprise"],
        "train_loss": np.ones((1, 2, 2), np.float32),
        "protocol": "loso",
        "protocol_folds": ["s1", "s2"],
        "dataset": "synthetic/tiny/1.0.0",
        "fingerprint": "f" * 64,
    }
    return Predictions(**(fields | changes))


@pytest.fixture
def make_folder(tmp_path):
    """`make_folder("name", **changes)`: the folder of a finished run."""

    def make(name="my_run", **changes):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        predictions(**changes).save(folder / "predictions.npz")
        return folder

    return make


@pytest.fixture
def drawn(monkeypatch):
    """What would have been drawn: a list of (runs, pairs); the pages stay empty."""
    calls = []

    def figures(runs, pairs=()):
        calls.append((runs, pairs))
        return {"plot": Drawn(b"png", "a plot")}

    monkeypatch.setattr(page, "figures", figures)
    monkeypatch.setattr(page, "render", lambda runs, pairs, figures: "page")
    return calls


def files(folder):
    return sorted(path.name for path in folder.iterdir())


RUN_FILES = [
    *("metrics.json", "plots", "predictions.npz", "predictions_final.csv"),
    *("predictions_oracle.csv", "report.html", "table.md", "table.tex"),
]


def test_one_run(make_folder, drawn, capsys):
    folder = make_folder()
    (folder / "config.json").write_text('{"epochs": 2}')
    (folder / "environment.json").write_text(json.dumps({"data_fingerprint": "f" * 64}))
    evaluate.evaluate([folder])
    assert files(folder) == sorted([*RUN_FILES, "config.json", "environment.json"])
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["final"]["composite"]["uf1"] == 1.0
    shown = capsys.readouterr()
    assert "my_run: 6 clips, 2 folds" in shown.out
    assert "1.0000 / 1.0000" in shown.out
    assert f"Report: {folder / 'report.html'}" in shown.out
    ((run,), pairs) = drawn[0]
    assert (run.name, run.config, pairs) == ("my_run", {"epochs": 2}, ())
    # Said on the other stream, so that the tables can be piped.
    assert "scoring 6 clips, 2 recorded epochs, 1 seed" in shown.err
    assert "no images of mistakes in the report: the run has no config.json that" in shown.err


def test_one_run_reported_elsewhere(make_folder, drawn, tmp_path):
    folder = make_folder()
    evaluate.evaluate([folder], output=tmp_path / "deep" / "elsewhere")
    assert files(folder) == ["predictions.npz"]
    without = [name for name in RUN_FILES if name != "predictions.npz"]
    assert files(tmp_path / "deep" / "elsewhere") == without
    evaluate.evaluate([folder], output=folder)
    assert files(folder) == RUN_FILES


def test_two_runs_are_compared(make_folder, drawn, tmp_path, capsys):
    wrong = np.roll(predictions().logits, 1, axis=-1)
    first, second = make_folder("net"), make_folder("base", logits=wrong, seeds=[4])
    evaluate.evaluate([first, second])
    assert files(first) == files(second) == RUN_FILES
    target = tmp_path / "net_vs_base"
    assert files(target) == ["comparison.json", "plots", "report.html", "table.md", "table.tex"]
    (pair,) = json.loads((target / "comparison.json").read_text())["pairs"]
    assert (pair["first"], pair["second"]) == ("net", "base")
    assert pair["differences"]["final"]["composite"]["uf1"]["difference"] == 1.0
    shown = capsys.readouterr().out
    assert "net - base" in shown
    assert f"Report: {target / 'report.html'}" in shown
    assert [[run.name for run in runs] for runs, _ in drawn] == [["net"], ["base"], ["net", "base"]]


def test_four_runs_are_compared_in_pairs_more_with_the_first(make_folder, drawn, tmp_path):
    folders = [make_folder(name, seeds=[seed]) for seed, name in enumerate("vwxyz")]
    for count, pairs in ((4, ["vw", "vx", "vy", "wx", "wy", "xy"]), (5, ["vw", "vx", "vy", "vz"])):
        evaluate.evaluate(folders[:count], output=tmp_path / f"of_{count}")
        found = json.loads((tmp_path / f"of_{count}" / "comparison.json").read_text())["pairs"]
        assert [pair["first"] + pair["second"] for pair in found] == pairs
    evaluate.evaluate(folders)
    assert (tmp_path / "v_vs_w_vs_x_and_2_more" / "report.html").exists()


def test_runs_of_one_name_are_told_apart(make_folder, drawn, tmp_path):
    folders = [make_folder(f"{parent}/run") for parent in ("old", "new")] + [make_folder("third")]
    evaluate.evaluate(folders)
    runs, _ = drawn[-1]
    assert [run.name for run in runs] == ["old/run", "new/run", "third"]
    assert (tmp_path / "old" / "old_run_vs_new_run_vs_third" / "report.html").exists()
    deeper = [make_folder(f"{parent}/old/run") for parent in "pq"]
    evaluate.evaluate(deeper, output=tmp_path / "out")
    assert [run.name for run in drawn[-1][0]] == ["old/run (1)", "old/run (2)"]


def test_other_data_for_the_same_clips_are_noted(make_folder, drawn, capsys):
    evaluate.evaluate([make_folder("net"), make_folder("base", fingerprint="e" * 64)])
    assert "The runs saw other data for the same clips" in capsys.readouterr().out


def test_missing_folds(make_folder, drawn, capsys):
    names = ["s1", "s2", *(f"t{index:02d}" for index in range(30))]
    folder = make_folder(protocol_folds=names)
    with pytest.raises(UserError) as caught:
        evaluate.evaluate([folder])
    message = str(caught.value)
    assert f"{folder}: 30 of the 32 folds of its protocol (leave one subject out)" in message
    assert "t00, t01, " in message
    assert "t19 and 10 more" in message
    assert "give --partial to score the 2 there are" in message
    assert files(folder) == ["predictions.npz"]
    evaluate.evaluate([folder], partial=True)
    assert capsys.readouterr().out.count("PARTIAL: 2 of 32 folds") == 2
    assert "PARTIAL: 2 of 32 folds" in (folder / "table.tex").read_text()
    assert json.loads((folder / "metrics.json").read_text())["run"]["missing_folds"] == names[2:]


def start_run(folder, finished):
    """The folder of a run of two folds that stopped early."""
    plan = Plan(
        seeds=[0],
        epochs=[1],
        folds=["s1", "s2"],
        tested=[0, 1],
        validated=[[-1, -1]] * 2,
        refit=True,
        clips=["a", "b"],
        subjects=["s1", "s2"],
        sources=["synthetic"] * 2,
        labels=[0, 1],
        class_names=["negative", "positive"],
        protocol="loso",
        protocol_folds=["s1", "s2"],
        dataset="synthetic/tiny/1.0.0",
        fingerprint="f" * 64,
    )
    store = Store(folder / "unfinished", plan)
    for unit in list(plan.units(inner=False))[:finished]:
        store.write(unit, Result(np.ones((1, 1, 2), np.float32), np.ones(1, np.float32)))


def test_an_unfinished_run(tmp_path, drawn, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    start_run(folder, 0)
    with pytest.raises(UserError, match=r"run: not finished: 0 of 2 folds are.*--partial"):
        evaluate.evaluate([folder])
    with pytest.raises(UserError, match="no fold of this run is finished yet"):
        evaluate.evaluate([folder], partial=True)
    start_run(folder, 1)
    evaluate.evaluate([folder], partial=True)
    assert "PARTIAL: 1 of 2 folds" in capsys.readouterr().out
    assert "report.html" in files(folder)


def test_a_foreign_result_of_an_unfinished_run_is_named_and_left_out(tmp_path, drawn, capsys):
    folder = tmp_path / "run"
    folder.mkdir()
    start_run(folder, 2)
    own, other = (folder / "unfinished" / f"fold-s{number}-seed0.npz" for number in (1, 2))
    other.write_bytes(own.read_bytes())
    evaluate.evaluate([folder], partial=True)
    shown = capsys.readouterr()
    assert "PARTIAL: 1 of 2 folds" in shown.out
    assert f"left out, not a result of this run: {other}: of another model of this" in shown.err


def test_predictions_of_another_data_set(make_folder):
    folder = make_folder()
    (folder / "environment.json").write_text('{"data_fingerprint": "e"}')
    with pytest.raises(UserError, match=r"predictions\.npz: predictions of another data set than"):
        evaluate.evaluate([folder])


def spoil(folder, **changes):
    """Replaces arrays of the predictions file without the checks of `Predictions`."""
    path = folder / "predictions.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **(arrays | changes))


def test_duplicate_clips(make_folder):
    folder = make_folder()
    spoil(folder, clips=np.array(list("abcdba")))
    with pytest.raises(UserError, match=r"predictions\.npz: clips holds 'a', 'b' more than once"):
        evaluate.evaluate([folder])


def test_logits_that_are_no_numbers(make_folder):
    folder = make_folder()
    logits = predictions().logits.copy()
    logits[0, 1, 4, 2] = np.nan
    spoil(folder, logits=logits)
    with pytest.raises(UserError, match=r"npz: fold 's2', seed 0, epoch 2: the logits of clip 'e'"):
        evaluate.evaluate([folder])


def test_a_truncated_file(make_folder):
    path = make_folder() / "predictions.npz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match=r"predictions\.npz: damaged"):
        evaluate.evaluate([path.parent])


def test_runs_that_do_not_share_their_clips(make_folder, drawn):
    folders = [make_folder("net"), make_folder("base", clips=list("abcdex"))]
    with pytest.raises(UserError, match=r"(?s)net and base cannot be compared.*only in net: f"):
        evaluate.evaluate(folders)
    # Nothing is half done.
    assert [files(folder) for folder in folders] == [["predictions.npz"]] * 2
    assert drawn == []


def test_on_the_clips_that_both_have(make_folder, drawn, tmp_path, capsys):
    """The runs' own tables stay; only the comparison leaves clips out, and says so."""
    net = make_folder("net")
    few = {"clips": list("cabx"), "labels": [2, 0, 1, 0], "subjects": ["s1"] * 3 + ["s9"]}
    fields = {
        **{"fold": [0, 0, 0, 1], "folds": ["s1", "s9"], "protocol_folds": ["s1", "s9"]},
        **{"sources": ["synthetic"] * 4, "logits": np.zeros((1, 2, 4, 3), np.float32)},
    }
    base = make_folder("base", **few, **fields)
    with pytest.raises(UserError, match=r"(?s)3 clips only in net: d, e, f.*--common"):
        evaluate.evaluate([net, base])
    evaluate.evaluate([net, base], common=True)
    shown = capsys.readouterr().out
    assert "Only the 3 clips that all runs have are scored (net has 6, base has 4)." in shown
    found = json.loads((tmp_path / "net_vs_base" / "comparison.json").read_text())
    assert {name: run["run"]["clips"] for name, run in found["runs"].items()} == {
        "net": 3,
        "base": 3,
    }
    assert found["pairs"][0]["differences"]["final"]["composite"]["uar"]["difference"] > 0.6
    assert json.loads((net / "metrics.json").read_text())["run"]["clips"] == 6
    other = make_folder("other", clips=list("uvwxyz"))
    with pytest.raises(UserError, match="net, other: no clip that all of them have"):
        evaluate.evaluate([net, other], common=True)
    with pytest.raises(UserError, match="--common compares several runs"):
        evaluate.evaluate([net], common=True)


def tree(folder):
    """Every file below a folder, with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.json", "report.html", "table.md", "table.tex", "predictions_final.csv"),
        *("predictions_inner.csv", "plots", "plots/plot.png", "plots/confusion_old.png"),
    ],
)
@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
def test_nothing_outside_the_folder_is_touched(make_folder, drawn, tmp_path, name, kind):
    """Neither through links in the places of our files nor by names in `metrics.json`."""
    folder, outside = make_folder(), tmp_path / "outside"
    outside.mkdir()
    names = ["plot.png", "confusion_old.png", "kept.png"]
    for one in names:
        (outside / one).write_text("kept")
    listed = [*names, f"{outside}/kept.png", "../../outside/kept.png", "a\0b.png", "..", "", 3]
    (folder / "metrics.json").write_text(json.dumps({"plots": listed}))
    place = folder / name
    place.parent.mkdir(exist_ok=True)
    target = outside if name == "plots" else outside / "kept.png"
    place.unlink(missing_ok=True)
    if kind == "hard" and name != "plots":
        place.hardlink_to(target)
    else:
        place.symlink_to(target if kind == "symbolic" else outside / "nowhere")
    before = tree(outside)
    if name == "plots":
        with pytest.raises(UserError, match=r"plots: is a link to .*outside"):
            evaluate.evaluate([folder])
    else:
        evaluate.evaluate([folder])
    assert tree(outside) == before
    assert not (folder / "report.html").is_symlink()


def test_names_that_would_steer_a_terminal(make_folder, tmp_path, capsys):
    """Real pages, figures and tables of names in any script, with controls and lone surrogates."""
    bad = "\x1b]0;x\x07\n\udc80\u202e$_{ 面 ع \U0001f600"
    run = make_folder(
        f"run{bad}".replace("\0", ""),
        clips=[f"{bad}{index}" for index in range(6)],
        subjects=[bad] * 3 + ["s2"] * 3,
        folds=[bad, "s2"],
        protocol_folds=[bad, "s2", f"{bad}missing"],
        sources=[f"{bad} source"] * 6,
        class_names=[bad, "positive", "surprise"],
        dataset=bad,
    )
    (run / "config.json").write_text(json.dumps({"a": bad}))
    evaluate.evaluate([run], partial=True, output=tmp_path / "out")
    out = capsys.readouterr().out
    written = [path for path in (tmp_path / "out").rglob("*") if path.suffix != ".png"]
    texts = [path.read_bytes().decode() for path in written if path.is_file()]
    for text in (out.replace(str(run.parent), ""), *texts):
        assert not [c for c in text if not c.isprintable() and c not in "\r\n"]
    assert "\\x1b]0;x\\x07\\n\\udc80" in out


PRIVATE = [
    "/home/annika/data",
    "~/data",
    "C:\\Users\\annika",
    "annika-laptop:1234",
    "../annika/x",
    "file:///annika",
]


def test_the_report_says_nothing_of_the_machine(make_folder):
    """Whatever the records hold; the settings that shaped the numbers stay."""
    folder = make_folder()
    dataset = {
        "name": "synthetic",
        "config": "tiny",
        "manual_dir": PRIVATE[0],
        "data_dir": "annika",
    }
    config = {"dataset": dataset, "coordinator": PRIVATE[3], "model": {"name": "HTNet"}}
    record = {
        **{"command": ["train.py", "--workdir=annika"], "host": "annika-laptop", "user": "annika"},
        **{
            "devices": ["TFRT_CPU_0"],
            "notes": PRIVATE[:3] + PRIVATE[4:],
            "packages": {"jax": "1.2"},
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "environment.json").write_text(json.dumps(record))
    evaluate.evaluate([folder])
    for path in folder.iterdir():
        if path.suffix in (".html", ".md", ".tex", ".csv") or path.name == "metrics.json":
            text = path.read_text()
            assert not [word for word in (str(folder.parent), "annika") if word in text], path
    page_text = (folder / "report.html").read_text()
    assert "TFRT_CPU_0" in page_text and "HTNet" in page_text and "1.2" in page_text
    assert "do not publish private.json" in page_text


def test_no_run_or_one_twice(make_folder):
    with pytest.raises(UserError, match="No run given"):
        evaluate.evaluate([])
    folder = make_folder()
    with pytest.raises(UserError, match="my_run: given more than once"):
        evaluate.evaluate([folder, folder / ".." / "my_run"])


def test_all_runs_that_cannot_be_read_are_named_at_once(make_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "nowhere", make_folder(), tmp_path / "empty"]
    with pytest.raises(UserError) as caught:
        evaluate.evaluate(folders)
    first, second = str(caught.value).splitlines()
    assert "nowhere: no such folder" in first
    assert "empty: holds no run" in second


@pytest.mark.parametrize("name", ["config.json", "environment.json"])
def test_damaged_records(make_folder, name):
    folder = make_folder()
    for content, message in (
        *(("{", "Expecting property"), ("[]", "not a JSON object")),
        *(("[" * 100_000, "nested too deep"), ("\ud800", "utf-8")),
    ):
        (folder / name).write_bytes(content.encode(errors="surrogatepass"))
        with pytest.raises(UserError, match=rf"{name}: damaged, or not a record.*{message}"):
            evaluate.evaluate([folder])
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=rf"{name}: damaged, or not a record.*pipe"):
        evaluate.evaluate([folder])


def test_outputs_that_cannot_be(make_folder, drawn, tmp_path, monkeypatch):
    first, second = make_folder("net"), make_folder("base")
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(UserError, match=r"file: is a file, not a folder\. Give another --output"):
        evaluate.evaluate([first], output=file)
    with pytest.raises(UserError, match=r"below: cannot be created \(Not a directory\)"):
        evaluate.evaluate([first], output=file / "below")
    assert file.read_text() == "kept"
    with pytest.raises(UserError, match="base: holds a run, whose report this would overwrite"):
        evaluate.evaluate([first], output=second)
    with pytest.raises(UserError, match="net: holds a run"):
        evaluate.evaluate([first, second], output=first)

    def refuse(self, *arguments, **keywords):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"out: cannot be created \(Permission denied\)"):
        evaluate.evaluate([first], output=tmp_path / "out")


def test_names_that_are_too_long(make_folder, drawn, tmp_path):
    folder, long = make_folder(), tmp_path / ("x" * 300)
    with pytest.raises(UserError, match=r"x: no such folder"):
        evaluate.evaluate([long])
    with pytest.raises(UserError, match=r"x: cannot be created \(File name too long\)"):
        evaluate.evaluate([folder], output=long)
    folders = [make_folder(letter * 200, seeds=[seed]) for seed, letter in enumerate("ab")]
    with pytest.raises(UserError, match=r"b: cannot be created .*Give another --output"):
        evaluate.evaluate(folders)


def test_disk_full(make_folder, drawn, monkeypatch):
    folder = make_folder()

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"my_run.*: cannot be written \(No space left on device\)"):
        evaluate.evaluate([folder])
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["predictions.npz"]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def arrays(data_dir):
    return loading.load("synthetic", config="tiny", data_dir=str(data_dir))


@pytest.fixture
def real_run(make_folder, arrays):
    """A run on the built data set."""
    subjects, fold = np.unique(arrays.subjects, return_inverse=True)
    folder = make_folder(
        logits=np.eye(3, dtype=np.float32)[arrays.labels][None, None].repeat(2, axis=1),
        fold=fold,
        folds=subjects,
        clips=arrays.clips,
        subjects=arrays.subjects,
        sources=arrays.sources,
        labels=arrays.labels,
        train_loss=np.ones((1, len(subjects), 2), np.float32),
        protocol_folds=subjects,
        fingerprint=arrays.fingerprint,
    )
    write_config(folder)
    return folder


def write_config(folder, **changes):
    dataset = {
        **{"name": "synthetic", "config": "tiny", "data_dir": "", "layout": "upright"},
        **{"channels": "strain, v,u", "scaling": "minmax_255"},
    }
    (folder / "config.json").write_text(json.dumps({"dataset": dataset | changes}))


def test_paths_are_not_shown_but_found(real_run, arrays, data_dir):
    """Of old runs, which have them among their settings, and of new ones, which have them apart."""
    private = real_run / "private.json"
    (real_run / "environment.json").write_text(json.dumps({"command": [str(data_dir)], "a": 1}))
    write_config(real_run, data_dir=str(data_dir))
    for _ in range(2):
        (content,) = finished.read_all([real_run])
        assert content.config["dataset"]["data_dir"] == ""
        assert content.environment == {"a": 1}
        assert len(finished.images(content).flow) == len(arrays.clips)
        write_config(real_run)
        private.write_text(json.dumps({"config": {"dataset.data_dir": str(data_dir)}}))
    for text in ("{", "[1]", '{"config": {"dataset.data_dir": 3}}', "[" * 100_000):
        private.write_text(text)
        with pytest.raises(UserError, match=r"private.json: damaged.*Remove it"):
            finished.read_all([real_run])


def test_images_from_the_built_data_set(real_run, arrays, data_dir, drawn):
    evaluate.evaluate([real_run], data_dir=str(data_dir))
    images = drawn[0][0][0].images
    np.testing.assert_array_equal(images.clips, arrays.clips)
    np.testing.assert_array_equal(images.flow, arrays.flow)
    expected = loading.network_inputs(
        arrays, layout="upright", channels=("strain", "v", "u"), scaling="minmax_255"
    )
    np.testing.assert_array_equal(images.mosaic, expected)
    assert images.centred


def test_only_the_runs_own_clips_are_shown(real_run, arrays, data_dir, drawn):
    kept = arrays.subjects == arrays.subjects[0]
    predictions(
        logits=np.zeros((1, 2, kept.sum(), 3), np.float32),
        fold=[0] * kept.sum(),
        folds=arrays.subjects[:1],
        protocol_folds=arrays.subjects[:1],
        train_loss=np.ones((1, 1, 2), np.float32),
        fingerprint=arrays.fingerprint,
        **{
            name: getattr(arrays, name)[kept] for name in ("clips", "subjects", "sources", "labels")
        },
    ).save(real_run / "predictions.npz")
    write_config(real_run, data_dir=str(data_dir), layout="none")
    evaluate.evaluate([real_run])
    images = drawn[0][0][0].images
    assert images.clips.tolist() == arrays.clips[kept].tolist()
    assert images.mosaic is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": 3}, "the run has no config.json that names its data set"),
        (
            {"config": "tvl1_28"},
            "synthetic is not built in {data}; --data_dir=DIR says where it is",
        ),
        ({"name": "smic"}, "smic is not built in {data}; --data_dir=DIR"),
        ({"config": "huge"}, "unknown config of data set synthetic 'huge'"),
        ({"labels": "own"}, "synthetic has no labels=own; use one of megc3"),
        ({"layout": "round"}, "unknown layout 'round'"),
    ],
)
def test_no_images_and_why(real_run, data_dir, drawn, capsys, changes, reason):
    write_config(real_run, **changes)
    evaluate.evaluate([real_run], data_dir=str(data_dir))
    assert drawn[0][0][0].images is None
    said = capsys.readouterr().err
    expected = f"no images of mistakes in the report: {reason.format(data=data_dir)}"
    assert said.count(expected) == 1
    assert "building" not in said


def test_no_images_of_other_data(real_run, data_dir, drawn, capsys):
    spoil(real_run, fingerprint=np.array("e" * 64))
    evaluate.evaluate([real_run], data_dir=str(data_dir))
    assert drawn[0][0][0].images is None
    assert f"synthetic in {data_dir} is not the data that the run saw" in capsys.readouterr().err


def command(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


# The command, and then the libraries it has loaded.
COMMAND = """
import runpy, sys
try:
    runpy.run_module("htnet_jax.evaluate", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_the_command(real_run, data_dir, tmp_path):
    """With real pages and flags among the runs; neither JAX nor torch nor TensorFlow is loaded."""
    other = shutil.copytree(real_run, tmp_path / "other")
    flags = f"--output={tmp_path / 'out'}", f"--data_dir={data_dir}"
    done = command("-c", COMMAND, str(real_run), *flags, str(other))
    assert done.returncode == 0, done.stderr
    assert "my_run: 24 clips, 6 folds" in done.stdout
    assert "last epoch" in done.stdout
    for folder in (real_run, other, tmp_path / "out"):
        assert "selected on the test subject" in (folder / "report.html").read_text()
    loaded = set(done.stdout.splitlines()[-1].split())
    assert {"htnet_jax", "tensorflow_datasets"} <= loaded
    assert not loaded & {"jax", "jaxlib", "flax", "optax", "torch", "tensorflow"}


@pytest.mark.parametrize(
    ("argument", "message"),
    [("none", "none: no such folder"), ("--all", "unknown flag --all")],
)
def test_a_mistake_is_one_message(make_folder, argument, message):
    done = command("-m", "htnet_jax.evaluate", str(make_folder()), argument)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_names_of_folders_cannot_break_lines_or_become_other_files(make_folder, capfd, drawn):
    first, second = make_folder("a\nReport: x\x1b[31m"), make_folder("b", clips=list("uvwxyz"))
    with pytest.raises(UserError) as caught:
        evaluate.evaluate([first, second])
    evaluate.evaluate([first])
    said = capfd.readouterr()
    for text in (str(caught.value), said.out, said.err):
        assert "a\\nReport: x\\x1b[31m" in text
        assert "\nReport: x" not in text


def test_a_folder_that_nobody_chose_may_not_be_a_link(make_folder, tmp_path, drawn):
    first, second = make_folder("a"), make_folder("b")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a_vs_b").symlink_to("elsewhere")
    with pytest.raises(UserError, match=r"a_vs_b: is a link, which is not followed"):
        evaluate.evaluate([first, second])
    assert files(tmp_path / "elsewhere") == []
    # The user's own link is followed.
    evaluate.evaluate([first, second], output=tmp_path / "a_vs_b")
    assert "report.html" in files(tmp_path / "elsewhere")
