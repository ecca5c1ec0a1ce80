"""Clips through worker processes, with progress; results are kept on disk until all are done."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from htnet_jax.datasets import extraction
from htnet_jax.datasets.frames import EXAMPLE_KEYS
from htnet_jax.errors import UserError
from htnet_jax.io import write_atomically

T = TypeVar("T")
R = TypeVar("R")


def run(function: Callable[[T], R], items: Sequence[T], *, workers: int, title: str) -> Iterator[R]:
    """`map(function, items)` over processes, in order, with clips/s and the time left.

    Args:
        function: A picklable function of one item.
        items: What to work on.
        workers: Processes; 1 works in this one.
        title: Shown before the progress bar.
    """
    bar = {"total": len(items), "desc": title, "unit": "clip", "mininterval": 0.5}
    if workers <= 1 or len(items) <= 1:
        yield from tqdm(map(function, items), **bar)
        return
    context = _context()
    pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(items)), mp_context=context)
    try:
        yield from tqdm(pool.map(function, items), **bar)
    except concurrent.futures.process.BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, perhaps for lack of memory; give fewer --workers. "
            "Finished clips are kept."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _context() -> multiprocessing.context.BaseContext:
    """Processes that share no locks with this one: a fork would copy those of OpenCV and JAX.

    Where possible a server that has imported all that a worker needs is forked: importing takes as
    long as dozens of clips.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([extraction.__name__, "htnet_jax.motion.flow", __name__])
    return context


class Kept:
    """Results of finished clips in a folder beside the data set, until that is built."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, job: extraction.Job) -> Path:
        """The file of one clip; another recipe or changed frames give another name."""
        return self.folder / f"{job.digest}.npz"

    def load(self, job: extraction.Job) -> dict[str, Any] | None:
        """What was kept of a clip; None if nothing usable was."""
        try:
            # An open file, because NumPy leaves its own open when the archive is damaged.
            with open(self.path(job), "rb") as opened, np.load(opened) as file:
                return {key: file[key] for key in _keys(job)}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
            return None

    def clear(self) -> None:
        """Deletes all."""
        shutil.rmtree(self.folder, ignore_errors=True)


def keep_tensor(task: tuple[Path, extraction.Job, extraction.Inspection]) -> None:
    """Computes one clip and writes its tensor to a file, complete or not at all."""
    path, job, inspection = task
    steps = extraction.compute(job, inspection)
    found = {"tensor": steps.tensor, "landmarks": steps.landmarks}
    if steps.frames is not None:
        found |= steps.frames.example()
    write_atomically(path, lambda file: np.savez(file, **found))


def _keys(job: extraction.Job) -> tuple[str, ...]:
    of_frames = () if job.recipe.frames == "none" else EXAMPLE_KEYS
    return ("tensor", "landmarks", *of_frames)
