"""Measures how many clips a second become flow tensors, by number of worker processes.

python tools/benchmark_prepare.py --clips=60 --flow=tvl1,farneback --workers=1,2

Writes onset and apex pictures of 640x480 pixels with a rendered face into a temporary folder and
runs all of it on them: decoding, landmarks, alignment, flow. Starting the processes is included.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from htnet_jax.errors import UserError, run_command

_CLIPS = flags.DEFINE_integer("clips", 60, "Clips.", lower_bound=1)
_FLOW = flags.DEFINE_list("flow", "tvl1,farneback", "Flow methods.")
_WORKERS = flags.DEFINE_list("workers", "1,2", "Numbers of processes; ratios are to the first.")
_WIDTH, _HEIGHT = 640, 480


def main(argv: Sequence[str]) -> None:
    """Prints clips/s for every flow method and number of workers."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not all(count.isdigit() and int(count) for count in _WORKERS.value):
        raise UserError("--workers must be numbers such as 1,2")
    from htnet_jax.datasets import recipe

    recipes = [recipe.make(flow=flow) for flow in _FLOW.value]
    with tempfile.TemporaryDirectory() as folder:
        jobs = {chosen: _jobs(Path(folder), chosen) for chosen in recipes}
        for chosen in recipes:
            first = 0.0
            for count in map(int, _WORKERS.value):
                rate = _CLIPS.value / _seconds(jobs[chosen], count, Path(folder, "kept"))
                first = first or rate
                print(f"{chosen.flow:10} {count} workers {rate:7.2f} clips/s {rate / first:5.2f}x")


def _jobs(folder: Path, chosen: object) -> list:
    import cv2

    from htnet_jax.datasets.process import Job
    from htnet_jax.datasets.survey import RawClip
    from htnet_jax.datasets.synthetic import recipe as synthetic
    from htnet_jax.datasets.synthetic import rendering

    clip = rendering.render_clip(0, synthetic.plan(0, 4, 12)[0])
    jobs = []
    for index in range(_CLIPS.value):
        place = folder / str(index)
        if not place.exists():
            place.mkdir()
            for number in (clip.onset, clip.apex):
                picture = np.full((_HEIGHT, _WIDTH), 90, np.uint8)
                picture[48:432, 128:512] = cv2.resize(clip.frames[number], (384, 384))
                cv2.imwrite(str(place / f"{number}.jpg"), picture)
        raw = RawClip("none", "s", str(index), "", place, clip.onset, clip.apex, clip.apex)
        jobs.append(Job(raw, chosen))
    return jobs


def _seconds(jobs: list, workers: int, folder: Path) -> float:
    from htnet_jax.datasets import process

    kept = process.Kept(folder)
    folder.mkdir(exist_ok=True)
    began = time.monotonic()
    inspections = list(process.run(process.inspect, jobs, workers=workers, title="landmarks"))
    if bad := [f.what for inspection in inspections for f in inspection.findings if f.drops]:
        raise UserError(f"{len(bad)} clips failed: {bad[0]}")
    tasks = [(kept.path(job), job, i) for job, i in zip(jobs, inspections, strict=True)]
    for _ in process.run(process.keep_tensor, tasks, workers=workers, title="flow"):
        pass
    seconds = time.monotonic() - began
    kept.clear()
    return seconds


if __name__ == "__main__":
    run_command(main)
