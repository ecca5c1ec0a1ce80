import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from absl import flags
from fakes import samm

from htnet_jax import errors, prepare
from htnet_jax.datasets.synthetic import recipe, rendering

POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
# Faces are aligned, so that TV-L1 on 224 pixels takes long enough to be interrupted.
CHOICES = ("--landmarks=csv", "--allow-incomplete", "--workers=2")
NAME = "tvl1_28+landmarks-csv"
QUICK = ("--flow=farneback", "--align=none", "--landmarks=template", "--workers=1")
QUICK_NAME = "farneback_28+align-none+landmarks-template"


def _faces():
    """As the fixture `faces` of the data sets' tests."""
    planned = recipe.plan(0, 4, 12)
    subjects = list(dict.fromkeys(clip.subject for clip in planned))
    rendered = {}

    def render(subject, label):
        if (subject, label) not in rendered:
            of = (c for c in planned if c.subject == subjects[subject] and c.label == label)
            rendered[subject, label] = rendering.render_clip(0, next(of))
        return rendered[subject, label]

    return render


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A small SAMM with the points of its faces."""
    root = tmp_path_factory.mktemp("samm")
    faces = _faces()
    samm.write(root, faces)
    with (root / "landmarks.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        columns = [f"{point}_{axis}" for point in POINTS for axis in "xy"]
        writer.writerow(["source", "subject", "clip", *columns])
        for row in samm.rows(faces):
            face = faces(*row["face"])
            points = face.landmarks[face.onset].ravel().tolist()
            writer.writerow(["samm", row["subject"], row["name"], *points])
    return root


def _command(copy, data_dir, *more):
    return [
        *(sys.executable, "-m", "htnet_jax.prepare", "--dataset=samm"),
        *(f"--manual_dir={copy}", f"--data_dir={data_dir}", *more),
    ]


def _digests(folder):
    return {
        path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def built(copy, tmp_path_factory):
    """An uninterrupted build: the finished process and the data set's folder."""
    data_dir = tmp_path_factory.mktemp("built")
    done = subprocess.run(
        _command(copy, data_dir, *CHOICES, "--preview=2"), capture_output=True, text=True
    )
    return done, data_dir / "samm" / NAME / "3.0.0"


def test_one_command_builds_and_says_where(built):
    done, folder = built
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"built {folder}: 12 clips, 3 subjects\n"
    assert "12/12" in done.stderr
    assert "clip/s" in done.stderr
    assert json.loads((folder / "metadata.json").read_text())["clips"] == 12
    assert sorted(path.name for path in folder.parent.iterdir()) == ["3.0.0"]


def test_a_preview_beside_the_audit(built):
    _, folder = built
    pages = list(folder.parent.parent.glob("*.html"))
    assert [page.name for page in pages] == [f"preview_{NAME}.html"]
    text = pages[0].read_text()
    assert text.count("samm/0") >= 2
    assert "<img" in text
    assert (folder.parent.parent / f"audit_{NAME}.csv").is_file()


def test_a_preview_of_built_data_needs_their_source(built, tmp_path):
    _, folder = built
    data_dir = folder.parents[2]
    with pytest.raises(errors.UserError, match="a preview needs the source files: manual directo"):
        _call(
            *("--dataset=samm", "--manual_dir=nowhere", *CHOICES),
            *("--preview=2", f"--data_dir={data_dir}"),
        )


@pytest.mark.slow  # tests/datasets/test_raw_builders.py interrupts a build as well
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(copy, built, tmp_path):
    command = _command(copy, tmp_path, *CHOICES)
    unfinished = tmp_path / "samm" / f"unfinished_{NAME}"
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(unfinished.glob("*.npz"))) >= 2:
                break
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    kept = {path: path.stat().st_mtime_ns for path in unfinished.glob("*.npz")}
    assert 2 <= len(kept) < 12
    assert not (tmp_path / "samm" / NAME / "3.0.0").exists()

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "samm" / NAME / "3.0.0"
    assert done.stdout.splitlines()[-1] == f"built {folder}: 12 clips, 3 subjects"
    # Only what was not finished was worked on.
    assert f"{12 - len(kept)}/{12 - len(kept)}" in done.stderr
    assert _digests(folder) == _digests(built[1])
    assert not unfinished.exists()
    # Of the build that was killed nothing is left.
    assert [path.name for path in folder.parent.iterdir()] == ["3.0.0"]


@pytest.mark.parametrize(("encoding", "workers"), [("ascii", 1), ("latin-1", 2)])
def test_names_that_the_locale_cannot_print(copy, tmp_path, encoding, workers):
    """What is built has its name; what is printed of it is escaped."""
    manual = tmp_path / "Daten-\u00f6-\u65e5\u672c"
    manual.symlink_to(copy)
    data_dir = tmp_path / "aus-\u00e9-\u65e5"
    command = _command(manual, data_dir, *QUICK, f"--workers={workers}", "--allow-incomplete")
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert (data_dir / "samm" / QUICK_NAME).is_dir()
    assert b"\\u65e5" in done.stdout


def test_a_locale_in_which_names_are_no_text(copy, tmp_path):
    command = _command(copy, tmp_path / "\u65e5", *QUICK, "--allow-incomplete")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"PYTHONUTF8=1" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_it_leaves_no_process_and_says_how_to_resume(copy, tmp_path, number):
    command = _command(copy, tmp_path, *CHOICES)
    unfinished = tmp_path / "samm" / f"unfinished_{NAME}"
    # A shell's background, as tests may run in, would have it ignored.
    unignored = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL);"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", unignored, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and not list(unfinished.glob("*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # As Ctrl-C does, to all of the group; SIGTERM to the command alone.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    # Whoever still runs would hold the other end of the pipe.
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 128 + number, output
    assert b"Traceback" not in output
    assert b"what was finished is kept" in output
    assert b"htnet_jax.prepare --dataset=samm" in output
    assert list(unfinished.glob("*.npz"))


def test_an_incomplete_copy_is_one_message(copy, tmp_path):
    command = _command(copy, tmp_path, *QUICK)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "clips, the published data set has" in done.stderr
    assert "--allow-incomplete" in done.stderr


def test_clips_that_are_left_out_are_named_in_the_last_lines(copy, tmp_path, capsys):
    part = tmp_path / "part"
    shutil.copytree(copy, part)
    gone = sorted(path for path in part.rglob("*_*_*") if path.is_dir())[:2]
    for folder in gone:
        shutil.rmtree(folder)
    arguments = ("--dataset=samm", f"--manual_dir={part}", f"--data_dir={tmp_path / 'data'}")
    for _ in ("builds", "reads"):
        _call(*arguments, *QUICK, "--allow-incomplete")
        done = capsys.readouterr()
        assert done.out.endswith(": 10 clips, 3 subjects\n")
        names = ", ".join(f"samm/{folder.parent.name}/{folder.name}" for folder in gone)
        audit = tmp_path / "data" / "samm" / f"audit_{QUICK_NAME}.csv"
        last = f"left out: 2 clips that cannot be built: {names}. Why: {audit}"
        assert done.err.splitlines()[-1] == last


def _call(*arguments):
    """Runs the command in this process."""
    try:
        prepare.main(errors.parse_flags(["prepare", *arguments]))
    finally:
        for flag in flags.FLAGS.get_flags_for_module(prepare):
            flag.unparse()


HERE = ("--dataset=samm", "--manual_dir=.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give --dataset=NAME and --manual_dir=FOLDER"),
        (("--dataset=samm",), "give --dataset=NAME and --manual_dir=FOLDER"),
        (("--manual_dir=.",), "give --dataset=NAME and --manual_dir=FOLDER"),
        ((*HERE, "stray"), "unexpected argument 'stray'"),
        ((*HERE, "--colour=red"), "colour"),
        ((*HERE, "--flow=tvl2"), "tvl2"),
        ((*HERE, "--size=29"), "29"),
        ((*HERE, "--frames=all"), "frames='all' is unknown; use none, pair, neighbours, or a"),
        ((*HERE, "--frames=pair", "--recipe=tvl1_28"), "excludes --frames"),
        ((*HERE, "--labels=five"), "train with --config.dataset.labels=five"),
        ((*HERE, "--workers=-1"), "workers"),
        ((*HERE, "--workers=many"), "workers"),
        ((*HERE, "--preview=-1"), "preview"),
        (("--dataset=casme9", "--manual_dir=."), "unknown data set 'casme9'; use one of"),
        ((*HERE, "--variant=uv"), "has no variant 'uv'"),
        ((*HERE, "--recipe=tvl1_28+labels-five"), "labels are chosen on loading"),
        ((*HERE, "--recipe=tvl3_28"), "tvl3"),
        ((*HERE, "--landmarks=template"), "add align=none"),
        ((*HERE, "--landmark_model=missing.dat", "--allow-incomplete"), "missing.dat"),
        (("--dataset=samm", "--manual_dir=nowhere"), "manual directory nowhere does not exist"),
        (("--dataset=samm", "--manual_dir=empty"), "manual directory empty is empty"),
    ],
)
def test_wrong_flags(copy, tmp_path, monkeypatch, arguments, message):
    # The current folder is the copy, with an empty folder in it.
    for path in copy.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(copy if "--landmark_model=missing.dat" in arguments else tmp_path)
    with pytest.raises(errors.UserError) as caught:
        _call(*arguments, f"--data_dir={tmp_path / 'data'}")
    assert message in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(size)` -> a file system of that size; called again, it changes the size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def resize(size):
        options = f"size={size}" + (",remount" if os.path.ismount(folder) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small file system needs to be root")
        return folder

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture(scope="module")
def quickly_built(copy, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("quick")
    arguments = ("--dataset=samm", f"--manual_dir={copy}", f"--data_dir={data_dir}")
    _call(*arguments, *QUICK, "--allow-incomplete")
    return data_dir / "samm" / QUICK_NAME / "3.0.0"


# In KiB: room for the audit; for some tensors; for all, but not for the records; the same, where
# another step of writing them fails.
@pytest.mark.parametrize("size", [8, 64, 160, 200])
def test_a_full_disk_is_one_message_and_with_space_it_goes_on(
    copy, small_disk, quickly_built, size
):
    disk = small_disk(f"{size}k")
    arguments = ("--dataset=samm", f"--manual_dir={copy}", f"--data_dir={disk}", *QUICK)
    with pytest.raises(errors.UserError, match=r"[Nn]o space left on device"):
        _call(*arguments, "--allow-incomplete")
    assert not (disk / "samm" / QUICK_NAME / "3.0.0").exists()
    small_disk("4m")
    _call(*arguments, "--allow-incomplete")
    assert _digests(disk / "samm" / QUICK_NAME / "3.0.0") == _digests(quickly_built)


def test_finished_tensors_outlive_a_failure_to_write_the_records(copy, small_disk, quickly_built):
    disk = small_disk("160k")
    arguments = ("--dataset=samm", f"--manual_dir={copy}", f"--data_dir={disk}", *QUICK)
    with pytest.raises(Exception, match=r"[Nn]o space left on device"):
        _call(*arguments, "--allow-incomplete")
    assert len(list((disk / "samm" / f"unfinished_{QUICK_NAME}").glob("*.npz"))) == 12
