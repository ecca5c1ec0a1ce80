import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from htnet_jax.datasets.megc2019 import release

ROOT = Path(__file__).parents[2]


def run(*arguments):
    command = [sys.executable, str(ROOT / "tools" / "audit_dataset.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("built")


@pytest.fixture(scope="module")
def manual_dir(tmp_path_factory):
    """Three clips of the release's layout: the first and the last are one picture."""
    folder = tmp_path_factory.mktemp("manual")
    (folder / release.PNG_FOLDER).mkdir()
    rows = [
        ("samm", "096", "096_1_2", 2),
        ("samm", "096", "096_1_3", 0),
        ("smic", "s95", "s95_1", 2),
    ]
    with (folder / release.CLIP_LIST).open("w", newline="") as file:
        csv.writer(file).writerows([("dataset", "sub", "filename_o", "label"), *rows])
    for seed, (_, subject, name, _) in zip((0, 1, 0), rows, strict=True):
        noise = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), np.uint8)
        assert cv2.imwrite(str(folder / release.PNG_FOLDER / f"{subject}_{name}.png"), noise)
    return folder


def test_clean_data(tmp_path, data_dir):
    figures, table = tmp_path / "new" / "audit.json", tmp_path / "audit.csv"
    status, output, errors = run(
        *("--dataset=synthetic", "--config=tiny", f"--data_dir={data_dir}", "--protocol=kfold"),
        *("--protocol_folds=3", f"--json={figures}", f"--csv={table}"),
    )
    assert status == 0, errors
    assert output.startswith("synthetic/tiny/1.0.0: subject-grouped folds, 3 folds\n")
    assert output.endswith("0 problems, 0 notes\n")
    assert "published counts: none to compare" in output
    found = json.loads(figures.read_text())
    assert found["passed"] is True
    assert (found["protocol"], found["folds"], found["findings"]) == ("kfold", 3, [])
    assert found["counts"]["all"]["clips"] == 24
    assert len(found["clips_of_subject"]) == 6
    assert 0 < found["most_similar"]["same_subject"]["similarity"] < found["similarity_from"]
    assert table.read_text() == "severity,kind,clips,folds,what\n"


def test_a_leak_is_a_problem(data_dir, manual_dir):
    status, output, errors = run(
        *("--dataset=megc2019", "--config=release_partial", f"--data_dir={data_dir}"),
        *(f"--manual_dir={manual_dir}", "--json=-"),
    )
    assert status == 1, errors
    found = json.loads(output)
    assert found["passed"] is False
    leak = next(f for f in found["findings"] if f["kind"] == "identical")
    assert leak["severity"] == "problem"
    assert leak["clips"] == ["samm/096/096_1_2", "smic/s95/s95_1"]
    assert leak["folds"] == ["096", "s95"]
    assert found["findings_by_fold"]["s95"] == {"identical": 1, "template": 1}
    assert found["findings_by_fold"]["096"] == {"identical": 1, "class": 1, "template": 2}
    assert found["landmarks_when_built"]["template_no_row"] == 3
    assert "casme2: 0 negative clips, the composite has 88" in [
        f["what"] for f in found["findings"]
    ]


def test_wrong_use_is_one_message(tmp_path, data_dir):
    (tmp_path / "file").write_text("in the way")
    tiny = "--dataset=synthetic", "--config=tiny", f"--data_dir={data_dir}"
    for arguments, words in (
        (["--dataset=mnist"], "unknown data set 'mnist'; use one of"),
        (["--dataset=synthetic", "--fold=3"], "unknown flag --fold"),
        ([], "give --dataset=NAME"),
        ([*tiny, "--similarity=2"], "similarity"),
        ([*tiny, f"--json={tmp_path}/file/audit.json"], "audit.json: cannot be written"),
        ([*tiny, f"--csv={tmp_path}"], "is a folder"),
        ([*tiny, "--csv=-"], "--csv needs a file name"),
        ([*tiny, "--protocol=loo"], "--protocol=loo is unknown; use one of loso, lodo, kfold"),
        ([*tiny, "--protocol=kfold", "--protocol_folds=7"], "6 subjects cannot be split into 7"),
        ([*tiny, "--labels=own"], "synthetic has no labels=own; use one of megc3"),
        (["synthetic"], "unexpected argument 'synthetic'"),
    ):
        status, output, errors = run(*arguments)
        assert status == 2, (arguments, output, errors)
        assert errors.count("error:") == 1, errors
        assert words in errors
        assert "Traceback" not in errors
        assert not output


def test_hostile_names_are_shown_escaped(tmp_path):
    manual = tmp_path / "manual"
    (manual / release.PNG_FOLDER).mkdir(parents=True)
    rows = [("samm", "0\x1b[31m6", "a\nb", 2), ("smic", "s\u202e9", "c\x07", 0)]
    with (manual / release.CLIP_LIST).open("w", newline="") as file:
        csv.writer(file).writerows([("dataset", "sub", "filename_o", "label"), *rows])
    flow = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    for _, subject, name, _ in rows:
        assert cv2.imwrite(str(manual / release.PNG_FOLDER / f"{subject}_{name}.png"), flow)
    table = tmp_path / "audit.csv"
    status, output, errors = run(
        *("--dataset=megc2019", "--config=release_partial", f"--data_dir={tmp_path / 'data'}"),
        *(f"--manual_dir={manual}", f"--csv={table}"),
    )
    assert status == 1, errors
    names = [r"samm/0\x1b[31m6/a\nb", r"smic/s\u202e9/c\x07"]
    assert ", ".join(names) in output
    for text in (output, errors, table.read_text()):
        assert all(line.isprintable() for line in text.splitlines()), ascii(text)
    found = list(csv.DictReader(table.read_text().splitlines()))
    assert any(row["clips"] == " | ".join(names) for row in found)
