"""Draws the README's figure from the synthetic clips: frames -> flow -> mosaic.

python tools/draw_pipeline.py --output=docs/pipeline.png
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from htnet_jax.errors import UserError, run_command
from htnet_jax.io import write_atomically

_OUTPUT = flags.DEFINE_string("output", "docs/pipeline.png", "PNG file to write.")


def main(argv: Sequence[str]) -> None:
    """Renders one clip and draws what happens to it, left to right."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}")
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from htnet_jax.datasets.synthetic import recipe, rendering
    from htnet_jax.motion import flow as motion_flow
    from htnet_jax.motion import regions

    # The first subject's clip that moves most, so that the arrows can be seen.
    clips = (rendering.render_clip(0, planned) for planned in recipe.plan(0, 4, 12)[:12])
    clip = max(clips, key=lambda clip: float(np.linalg.norm(clip.true_flow, axis=-1).mean()))
    onset, apex = clip.frames[clip.onset], clip.frames[clip.apex]
    points = clip.landmarks[clip.onset]
    full = motion_flow.optical_flow(onset, apex, method="farneback")
    tensor = motion_flow.flow_tensor(onset, apex, method="farneback", size=28)
    scaled_points = (points + 0.5) * 28 / onset.shape[0] - 0.5
    mosaic = regions.mosaic(motion_flow.minmax_255(tensor), scaled_points, layout="upright")

    figure, axes = plt.subplots(1, 5, figsize=(15, 3.4), layout="constrained")
    axes[0].imshow(onset, cmap="gray", vmin=0, vmax=255)
    axes[0].plot(*points.T, "o", color="#ff5a36", markersize=5)
    axes[0].set_title("onset, five landmarks")
    axes[1].imshow(apex, cmap="gray", vmin=0, vmax=255)
    axes[1].set_title("apex")
    rows, columns = np.mgrid[4 : onset.shape[0] : 6, 4 : onset.shape[1] : 6]
    axes[2].imshow(onset, cmap="gray", vmin=0, vmax=255, alpha=0.35)
    axes[2].quiver(
        columns,
        rows,
        full[rows, columns, 0],
        full[rows, columns, 1],
        angles="xy",
        scale_units="xy",
        scale=0.3,
        color="#0b62a4",
        width=0.005,
    )
    axes[2].set_title("optical flow onset → apex")
    axes[3].imshow(tensor[..., 2], cmap="magma")
    axes[3].set_title("optical strain, 28 x 28")
    axes[4].imshow(mosaic.astype(np.uint8))
    axes[4].axhline(13.5, color="white")
    axes[4].axvline(13.5, color="white")
    axes[4].set_title("mosaic of four regions (u, v, strain)")
    for axis in axes:
        axis.set_axis_off()
    output = Path(_OUTPUT.value)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror})") from error
    write_atomically(output, lambda file: figure.savefig(file, format="png", dpi=80))
    print(f"Written: {output}")


if __name__ == "__main__":
    run_command(main)
