import operator
import os
import types

import cv2
import numpy as np
import pytest
from fakes import work

from htnet_jax import io
from htnet_jax.datasets import extraction, pool, recipe, survey
from htnet_jax.errors import UserError


def _run(function, items, workers):
    return list(pool.run(function, items, workers=workers, title="test"))


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
    results = pool.run(work.fail_at_three, range(6), workers=workers, title="test")
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
    results = pool.run(work.process, range(200), workers=2, title="test")
    assert next(results)[0] == 0
    results.close()
    assert list(results) == []


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
    return extraction.Job(survey.RawClip("x", "s1", "c1", "happy", folder, 1, 2, 2), chosen)


@pytest.fixture
def kept(tmp_path):
    (tmp_path / "kept").mkdir()
    return pool.Kept(tmp_path / "kept")


def test_what_is_kept_comes_back(job, kept):
    assert kept.load(job) is None
    inspection = extraction.inspect(job)
    pool.keep_tensor((kept.path(job), job, inspection))
    found = kept.load(job)
    steps = extraction.compute(job, inspection)
    np.testing.assert_array_equal(found["tensor"], steps.tensor)
    np.testing.assert_array_equal(found["landmarks"], steps.landmarks)
    assert [path.name for path in kept.folder.iterdir()] == [f"{job.digest}.npz"]
    kept.clear()
    assert not kept.folder.exists()
    kept.clear()


@pytest.fixture
def whole(job, kept):
    pool.keep_tensor((kept.path(job), job, extraction.inspect(job)))
    return kept.path(job).read_bytes()


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
        pool.keep_tensor((kept.path(job), job, extraction.inspect(job)))
